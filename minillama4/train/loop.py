"""A training loop to be read: AdamW, warm-up and cosine, clipping, validation, exact resume.

Everything a step does follows from its number: batch, learning rate, random numbers. A run that
was stopped and resumed is therefore the run that was never stopped, to the last bit. Under
``torchrun`` each process takes its rows of the same batch and gradients are averaged (DDP).

In a notebook        history = train(model, batches, TrainSettings(steps=500))
As a command         python -m minillama4.train --steps 500 --out runs/mini
On two GPUs          torchrun --nproc-per-node 2 -m minillama4.train --steps 500 --out runs/mini
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, is_dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from tqdm.auto import tqdm

from ..files import written_whole
from .processes import distributed, is_main, mean_over_processes

Batches = Callable[[int], Tensor]  # step -> tokens (b, t + 1)
Validate = Callable[[nn.Module], dict[str, float]]  # model -> loss in nats per token, by name


@dataclass(frozen=True)
class TrainSettings:
    """What a run depends on besides model and data. Rates are per step."""

    steps: int
    learning_rate: float = 3e-3  # at the top, reached after ``warmup`` steps
    final_rate: float = 0.1  # of learning_rate, at the last step
    warmup: int = 50
    betas: tuple[float, float] = (0.9, 0.95)
    weight_decay: float = 0.1  # on matrices only
    clip: float = 1.0  # largest norm of all gradients together
    validate_every: int = 100
    save_every: int = 100  # of the state to resume from, where a folder is given
    seed: int = 0

    def __post_init__(self):
        for name in ("steps", "learning_rate", "clip", "validate_every", "save_every"):
            if getattr(self, name) <= 0:
                raise ValueError(f"{name} = {getattr(self, name)} must be above 0.")
        for name in ("final_rate", "warmup", "weight_decay"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} = {getattr(self, name)} must not be below 0.")


def next_token_loss(model: nn.Module, tokens: Tensor) -> Tensor:
    """Mean cross-entropy in nats of tokens (b, t + 1), each predicted from those before it."""
    logits = model(tokens[:, :-1])
    return F.cross_entropy(logits.flatten(0, 1).float(), tokens[:, 1:].flatten().long())


def rate(step: int, settings: TrainSettings) -> float:
    """Learning rate of a step (from 0): a straight warm-up, then half a cosine down."""
    s = settings
    if step < s.warmup:
        return s.learning_rate * (step + 1) / s.warmup
    done = (step - s.warmup) / max(1, s.steps - s.warmup)
    wave = (1 + math.cos(math.pi * done)) / 2
    return s.learning_rate * (s.final_rate + (1 - s.final_rate) * wave)


def train(
    model: nn.Module,
    batches: Batches,
    settings: TrainSettings,
    *,
    validate: Validate | None = None,
    folder: str | Path | None = None,
    loss: Callable[[nn.Module, Tensor], Tensor] = next_token_loss,
    after: Callable[[nn.Module, int], None] | None = None,
    until: int | None = None,
    about: dict | None = None,
) -> list[dict]:
    """Train ``model`` in place and return its history, one dict per step.

    batches(step) gives this process's rows, as many as every other's, on the model's device. With
    a ``folder`` the state is kept there and a further call resumes from it; ``until`` stops early.
    after(model, done) is called once ``done`` steps are behind it, with 0 before the first.
    about: plain values that the batches depend on. They, the settings, the model's config and how
    it is balanced must be the same to resume: ValueError if not. Keys of the history: step, loss
    (nats), rate, grad_norm, seconds, "balance" (what an auxiliary loss added; it is not in loss),
    and "validation" every ``validate_every`` steps. FloatingPointError when the loss is no longer
    a number.
    """
    optimizer = make_optimizer(model, settings)
    state_file = None if folder is None else Path(folder) / "training.pt"
    facts = _facts(model, settings, about)
    history = _resume(state_file, model, optimizer, facts)
    wrapped, balanced = distributed(model), getattr(model, "balanced", None)
    end = settings.steps if until is None else min(until, settings.steps)
    steps = range(len(history), end)
    bar = tqdm(steps, desc="training", unit="step", disable=None if is_main() else True)
    with torch.random.fork_rng():  # the caller's random numbers stay as they were
        if after and not history:
            after(model, 0)
        for step in bar:
            row = train_step(wrapped, optimizer, batches(step), step, settings, loss, balanced)
            last = step + 1 == settings.steps
            if validate and (last or (step + 1) % settings.validate_every == 0):
                row["validation"] = _evaluate(model, validate)
                bar.set_postfix({k: f"{v:.3f}" for k, v in row["validation"].items()})
            history.append(row)
            if after:
                after(model, step + 1)
            if state_file and (step + 1 == steps.stop or (step + 1) % settings.save_every == 0):
                _save_state(state_file, model, optimizer, facts, history)
    return history


def train_step(
    model, optimizer, tokens, step: int, settings: TrainSettings, loss, balanced=None
) -> dict:
    """Forward, backward, clip, update; returns the step's row of the history."""
    began = time.perf_counter()
    if balanced:
        balanced.term = None  # what it adds in this step alone
    torch.manual_seed(settings.seed + step)
    for group in optimizer.param_groups:
        group["lr"] = rate(step, settings)
    optimizer.zero_grad()
    value = loss(model, tokens)
    value.backward()
    norm = nn.utils.clip_grad_norm_(model.parameters(), settings.clip)
    total = mean_over_processes(value.detach())
    if not (math.isfinite(total) and math.isfinite(norm)):
        raise FloatingPointError(
            f"Loss {total} and gradient norm {float(norm)} at step {step}: training has diverged. "
            "Lower learning_rate, or lengthen warmup; the last saved state is unharmed."
        )
    optimizer.step()
    row = {"step": step, "loss": total, "rate": rate(step, settings), "grad_norm": float(norm)}
    if balanced and balanced.term is not None:
        row["balance"] = mean_over_processes(balanced.term.clone())
        row["loss"] -= row["balance"]
    return row | {"seconds": time.perf_counter() - began}


def make_optimizer(model: nn.Module, settings: TrainSettings) -> torch.optim.AdamW:
    """AdamW; weight decay pulls on matrices, not on norm weights and biases."""
    parameters = [p for p in model.parameters() if p.requires_grad]
    groups = [
        {"params": [p for p in parameters if p.ndim >= 2], "weight_decay": settings.weight_decay},
        {"params": [p for p in parameters if p.ndim < 2], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=settings.learning_rate, betas=settings.betas, fused=True)


def _evaluate(model: nn.Module, validate: Validate) -> dict[str, float]:
    training = model.training
    model.eval()
    try:
        with torch.no_grad():
            return validate(model)
    finally:
        model.train(training)


# ---------------------------------------------------------------------- resuming
def _facts(model: nn.Module, settings: TrainSettings, about: dict | None) -> dict:
    """What makes a run this run, as plain values."""
    config = getattr(model, "config", None)
    balanced = getattr(model, "balanced", None)  # set by ``balance`` inside its ``with``
    facts = (about or {}) | asdict(settings) | {"balanced": balanced.settings if balanced else {}}
    return facts | ({"model": asdict(config)} if is_dataclass(config) else {})


def _save_state(file: Path, model, optimizer, facts: dict, history: list[dict]) -> None:
    if not is_main():
        return
    state = {"model": model.state_dict(), "optimizer": optimizer.state_dict()}
    with written_whole(file) as part:  # a crash leaves the older state whole
        torch.save(state | {"facts": facts, "history": history}, part)


def _resume(file: Path | None, model, optimizer, facts: dict) -> list[dict]:
    if file is None or not file.exists():
        return []
    try:
        state = torch.load(file, map_location="cpu", weights_only=True)
        before, history = state["facts"], state["history"]
    except Exception as error:
        raise ValueError(f"{file} cannot be read ({error}): delete it to start anew.") from None
    ways = [before.setdefault("balanced", facts["balanced"]), facts["balanced"]]  # not in old files
    if ways[0] != ways[1]:
        then, now = (", ".join(f"{k} {v}" for k, v in way.items()) or "not at all" for way in ways)
        raise ValueError(
            f"{file} belongs to a run balanced in another way (there: {then}; now: {now}): "
            "balance as there to resume it, or give another folder."
        )
    if before != facts:
        changed = sorted(k for k in before.keys() | facts.keys() if before.get(k) != facts.get(k))
        raise ValueError(
            f"{file} belongs to a run with other settings ({', '.join(changed)}): "
            "give the same ones to resume it, or another folder."
        )
    try:
        model.load_state_dict(state["model"])
    except RuntimeError:
        raise ValueError(
            f"{file} holds other tensors than this model has: it belongs to another model, or to a "
            "run balanced in another way."
        ) from None
    optimizer.load_state_dict(state["optimizer"])
    return history

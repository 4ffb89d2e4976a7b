"""Section "train": a whole step of training (forward, loss, backward, fused AdamW), float32."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .pairs import gradients, model_pair
from .plan import MODELS, Plan, model_config
from .report import Row
from .timing import Candidate, check_equal, take_turns

GAIN = 6


def cases(plan: Plan) -> Iterator[tuple[str, Callable[[], list[Row]]]]:
    """(title, what measures it), in the order of the table."""
    for name, batch, length in plan.train_shape:
        yield f"step of {name}", lambda n=name, b=batch, t=length: step(plan, n, b, t)


def step(plan: Plan, name: str, batch: int, length: int) -> list[Row]:
    """Both models on the same tokens: the same loss and gradients first, then the time."""
    config = model_config(name)
    ours, theirs = (model.train() for model in model_pair(config))
    tokens = torch.randint(0, config.vocab_size, (batch, length + 1))
    read = {
        "ours": (ours, ours),
        "theirs": (theirs, lambda t: theirs(input_ids=t, use_cache=False).logits),
    }
    losses = {key: loss(forward, tokens) for key, (_, forward) in read.items()}
    for value in losses.values():
        value.backward()
    mine, other = gradients(ours, theirs)
    what = f"step of {MODELS[name]}, {batch} × {length} tokens"
    gap = check_equal(what, [losses["ours"], *mine], [losses["theirs"], *other])
    steps = {key: Candidate(Trainer(*pair, tokens)) for key, pair in read.items()}
    times = take_turns(steps, plan.rounds, 4 * plan.seconds, plan.fewest)
    against, target = times["theirs"], GAIN if name == "mini" else None
    return [
        Row("train", what, times["ours"], "transformers", against, plan.threads, gap, target=target)
    ]


class Trainer:
    """One step per call."""

    def __init__(self, model: nn.Module, forward: Callable[[Tensor], Tensor], tokens: Tensor):
        self.forward, self.tokens = forward, tokens
        self.optimizer = torch.optim.AdamW(model.parameters(), lr=1e-5, fused=True)

    def __call__(self, _) -> None:
        self.optimizer.zero_grad()
        loss(self.forward, self.tokens).backward()
        self.optimizer.step()


def loss(forward: Callable[[Tensor], Tensor], tokens: Tensor) -> Tensor:
    """Mean cross-entropy of each token, predicted from those before it; the same for both."""
    logits = forward(tokens[:, :-1])
    return F.cross_entropy(logits.flatten(0, 1).float(), tokens[:, 1:].flatten())

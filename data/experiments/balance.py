"""Balancing on text, eight ways: what it does to the load, to specialisation and to the loss.

    python data/experiments/balance.py          writes balance.json beside itself; goes on where
                                                it was stopped; about 15 minutes of one core

A small Llama 4 (4 layers, width 64, 8 experts) reads six domains, two rows of 256 tokens a step,
each row from one domain: a batch is then far from the mixture of all six. Claim M9 is that evening
the load within such a batch works against specialisation, and over many batches does not.
"""

import argparse
import statistics
from functools import partial
from pathlib import Path

import torch

import minillama4 as ml4
from minillama4.data.text import Corpus
from minillama4.explore.experiment import repeat
from minillama4.explore.routing import effective_experts, load, specialisation
from minillama4.train.balance import balance
from minillama4.train.loop import TrainSettings, next_token_loss, train

HERE = Path(__file__).resolve()
ROWS, LENGTH, STEPS, EVERY = 2, 256, 700, 50
HELD_OUT_ROWS = 24  # of each domain
CONDITIONS = {
    "none": dict(kind="none"),
    "row 0.01": dict(kind="aux", over="row", weight=0.01),
    "row 0.1": dict(kind="aux", over="row", weight=0.1),
    "batch 0.01": dict(kind="aux", over="batch", weight=0.01),
    "batch 0.1": dict(kind="aux", over="batch", weight=0.1),
    "many 0.01": dict(kind="aux", over="many", weight=0.01),
    "many 0.1": dict(kind="aux", over="many", weight=0.1),
    "bias": dict(kind="bias", rate=0.01),
}


def make_config() -> ml4.Llama4Config:
    context = dict(chunk=64, floor_scale=64)
    return ml4.Llama4Config.nano(vocab_size=2048, patch_token=2047, experts=8, **context)


def run(texts: tuple[Corpus, list], how: dict, seed: int) -> dict:
    """Train with one way of balancing, and measure on held-out text."""
    corpus, held_out = texts
    torch.manual_seed(seed)
    model = ml4.Llama4(make_config())

    def batches(step: int) -> torch.Tensor:
        return corpus.batch(step, ROWS, LENGTH, seed, pieces=1).tokens

    with balance(model, **how) as balanced:
        train(model, batches, TrainSettings(STEPS, seed=seed), loss=balanced.loss)
        measured = measure(model, held_out)
    by_stretch = balanced.loads.unflatten(0, (-1, EVERY)).sum(1)  # stretches, layers, e
    measured["step"] = list(range(EVERY, STEPS + 1, EVERY))
    measured["effective_over_training"] = rounded(effective_experts(by_stretch).mean(1))
    measured["loss_without_bias"] = measure_losses(model, held_out)[0]
    return measured


@torch.no_grad()
def measure(model, held_out: list) -> dict:
    """Loss, load and specialisation on held-out text, each domain equally."""
    loss, per_domain = measure_losses(model, held_out)
    domains = torch.cat([batch.domains[:, :-1] for batch in held_out])  # b t
    rows = torch.arange(len(domains))[:, None].expand_as(domains)
    choices = read_choices(model, torch.cat([batch.tokens[:, :-1] for batch in held_out]))
    experts = model.config.experts
    loads = torch.stack([torch.stack([load(row, experts) for row in c]) for c in choices])
    per_expert = loads.sum(1)  # layers e
    within = loads.unflatten(1, (len(held_out), -1)).sum(2)  # layers, domains, e
    told = [specialisation(c, domains, groups=rows, permutations=100) for c in choices]
    return {
        "loss": loss,
        "loss_per_domain": per_domain,
        "effective": effective_experts(per_expert).mean().item(),
        "effective_per_layer": rounded(effective_experts(per_expert)),
        "effective_within_domain": effective_experts(within).mean().item(),
        "effective_within_row": effective_experts(loads).mean().item(),
        "busiest": (per_expert.max(1).values / per_expert.sum(1)).mean().item(),
        "dead": int((per_expert * 100 < per_expert.sum(1, keepdim=True)).sum()),
        "specialisation": statistics.fmean(one.excess for one in told),
        "specialisation_per_layer": rounded([one.excess for one in told]),
        "null_per_layer": rounded([one.null for one in told]),
    }


def read_choices(model, tokens: torch.Tensor) -> torch.Tensor:
    """Tokens (b, t) -> choices (layers, b, t)."""
    with ml4.trace(model) as seen:
        model(tokens)
    return torch.stack([seen.router[layer].choice[..., 0] for layer in model.config.moe_layers])


@torch.no_grad()
def measure_losses(model, held_out: list) -> tuple[float, list[float]]:
    """Nats per token: the mean over domains, and each."""
    losses = [next_token_loss(model, batch.tokens).item() for batch in held_out]
    return statistics.fmean(losses), rounded(losses)


def rounded(values) -> list[float]:
    values = values.tolist() if isinstance(values, torch.Tensor) else values
    return [round(value, 4) for value in values]


def read_texts() -> tuple[Corpus, list]:
    """Training text, and one batch of held-out rows of each domain."""
    tokenizer = ml4.load_tokenizer()
    validation = Corpus.build(tokenizer, "validation", HELD_OUT_ROWS * LENGTH + 1)
    held_out = list(validation.validation_batches(HELD_OUT_ROWS, LENGTH))
    return Corpus.build(tokenizer, "train"), held_out


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--keep", type=Path, default=HERE.with_suffix(".runs.json"))
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    texts = read_texts()
    conditions = {name: partial(run, texts, how) for name, how in CONDITIONS.items()}
    runs = repeat(conditions, range(arguments.seeds), keep=arguments.keep)
    runs.save(HERE.with_suffix(".json"), command=f"python data/experiments/{HERE.name}")
    arguments.keep.unlink()


if __name__ == "__main__":
    main()

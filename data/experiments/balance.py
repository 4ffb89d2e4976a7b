"""Balancing on text, eight ways: what it does to the load, to specialisation and to the loss.

    python data/experiments/balance.py          writes balance.json beside itself; goes on where
                                                it was stopped; about 15 minutes of one core

A small Llama 4 (4 layers, width 64, 8 experts) reads six domains, two rows of 256 tokens a step,
each row from one domain: a batch is then far from the mixture of all six. Claim M9 is that evening
the load within such a batch works against specialisation, and over many batches does not.
"""

import statistics

import torch
from six_domains import command, measure_losses, rounded

import minillama4 as ml4
from minillama4.data.text import Corpus
from minillama4.explore.routing import effective_experts, load, specialisation
from minillama4.train.balance import balance
from minillama4.train.loop import TrainSettings, train

ROWS, LENGTH, STEPS, EVERY = 2, 256, 700, 50
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


if __name__ == "__main__":
    command(__file__, __doc__, run, CONDITIONS, LENGTH)

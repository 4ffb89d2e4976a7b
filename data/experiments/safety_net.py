"""The shared expert as a safety net: models with and without one, routed well and badly.

    python data/experiments/safety_net.py       writes safety_net.json beside itself; goes on where
                                                it was stopped; about 8 minutes of one core

A small Llama 4 reads six domains, a row of each at every step. Without a shared expert the routed
experts are twice as wide, so that a token uses equally many parameters (and more are stored). Each
is trained at the usual learning rate and at a rough one, then read with its routers overruled.
"""

import statistics

import torch
from six_domains import command, measure_losses, rounded
from torch import Tensor, nn

import minillama4 as ml4
from minillama4.data.text import DOMAINS, Corpus
from minillama4.explore import steer
from minillama4.explore.routing import effective_experts
from minillama4.explore.steer import at_random, ranked
from minillama4.train.balance import balance
from minillama4.train.loop import TrainSettings, train

ROWS, LENGTH, STEPS = len(DOMAINS), 128, 600
EVERY = 25  # steps averaged to one point of a curve
CONDITIONS = {
    "shared": dict(shared=True, learning_rate=3e-3),
    "no shared": dict(shared=False, learning_rate=3e-3),
    "shared, rough": dict(shared=True, learning_rate=2e-2),
    "no shared, rough": dict(shared=False, learning_rate=2e-2),
}


class Nothing(nn.Module):
    """Stands where the shared expert stood, and adds nothing."""

    def forward(self, tokens: Tensor) -> Tensor:
        return torch.zeros_like(tokens)


def make_model(shared: bool) -> ml4.Llama4:
    """With 8 experts of 64 and a shared one, or 8 of 128 and none: equal in what a token uses."""
    sizes = dict(experts=8, expert_hidden=64 if shared else 128)
    context = dict(vocab_size=2048, patch_token=2047, chunk=64, floor_scale=64)
    model = ml4.Llama4(ml4.Llama4Config.nano(**sizes, **context))
    if not shared:
        for block in model.blocks:
            block.ffn.shared = Nothing()
    return model


def run(texts: tuple[Corpus, list], how: dict, seed: int) -> dict:
    """Train one model, note how steadily, and route it badly."""
    corpus, held_out = texts
    torch.manual_seed(seed)
    model = make_model(how["shared"])

    def batches(step: int) -> Tensor:
        return corpus.batch(step, ROWS, LENGTH, seed, pieces=1).tokens

    settings = TrainSettings(STEPS, learning_rate=how["learning_rate"], seed=seed)
    with balance(model, "aux", weight=0.01, over="many") as balanced:
        history = train(model, batches, settings, loss=balanced.loss)
    late = effective_experts(balanced.loads[-EVERY:].sum(0)).mean().item()
    return {"effective": late} | steadiness(history) | measure(model, held_out)


def steadiness(history: list[dict]) -> dict:
    """From the second quarter on: jumps of the loss from step to step, gradient norms, spikes.

    Of the loss that was descended, what balancing added included: about 0.01 nats.
    """
    loss = torch.tensor([row["loss"] + row["balance"] for row in history])
    norm = torch.tensor([row["grad_norm"] for row in history])
    begin = len(history) // 4
    before = loss.unfold(0, 20, 1).median(1).values[begin - 20 : -1]  # of the 20 steps before
    above = loss[begin:] - before
    return {
        "jump": loss[begin:].diff().abs().mean().item(),
        "worst_rise": above.max().item(),
        "spikes": int((above > 0.5).sum()),
        "grad_norm": norm[begin:].mean().item(),
        "grad_norm_highest": norm[begin:].max().item(),
        "step": list(range(EVERY, STEPS + 1, EVERY)),
        "loss_over_training": rounded(loss.unflatten(0, (-1, EVERY)).mean(1)),
        "grad_norm_over_training": rounded(norm.unflatten(0, (-1, EVERY)).mean(1)),
    }


def measure(model: ml4.Llama4, held_out: list) -> dict:
    """Held-out loss in nats, and how much it rises when other experts are asked."""
    loss = measure_losses(model, held_out)[0]
    last = model.config.experts - 1
    rise = {
        "second": with_choice(model, held_out, ranked(1)) - loss,
        "random": statistics.fmean(
            with_choice(model, held_out, at_random(draw)) - loss for draw in range(3)
        ),
        "worst": with_choice(model, held_out, ranked(last)) - loss,
    }
    one = [with_choice(model, held_out, ranked(1), [i]) - loss for i in model.config.moe_layers]
    return {"loss": loss, "second_per_layer": rounded(one)} | rise


def with_choice(model, held_out: list, choose, layers=None) -> float:
    with steer(model, choose, layers):
        return measure_losses(model, held_out)[0]


if __name__ == "__main__":
    command(__file__, __doc__, run, CONDITIONS, LENGTH)

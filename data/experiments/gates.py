"""Does a model trained with another gate learn as well? Writes gates.json beside this file.

    python data/experiments/gates.py

Six gates, three seeds, a nano model with 16 experts on four kinds of text that are the same on
every machine; about 11 minutes on one core. Shown in notebooks/01_moe/03_router_by_hand.ipynb.
"""

import argparse
from pathlib import Path

import torch
from einops import rearrange
from torch import Tensor

import minillama4 as ml4
from minillama4.data.text import Corpus
from minillama4.explore.experiment import repeat
from minillama4.model.moe import MoE
from minillama4.train.loop import TrainSettings, next_token_loss, train

DOMAINS = ("arithmetic", "records", "spanish", "german")  # python and english differ by machine
BATCH, LENGTH, STEPS, EVERY = 8, 64, 1200, 200


class Gated(MoE):
    """A layer of experts (top-1) whose score enters elsewhere, or otherwise, than in Llama 4."""

    gate = "Llama 4"

    def forward(self, x: Tensor) -> Tensor:
        tokens = rearrange(x, "b t m -> (b t) m")
        return (self.shared(tokens) + self.routed(tokens)).view_as(x)

    def routed(self, x: Tensor) -> Tensor:
        logits = self.router.logits(x)
        best, choice = logits.topk(1)
        g, one = torch.sigmoid(best), torch.ones_like(best)
        if self.gate == "on the output":
            return g * self.experts(x, one, choice)
        if self.gate == "softmax over all":
            return self.experts(x, logits.softmax(-1).gather(1, choice), choice)
        if self.gate == "renormalised":
            return self.experts(x, best.softmax(-1), choice)
        if (
            self.gate == "score cut off"
        ):  # control: scaled as in Llama 4, but the router is not told
            return self.experts(x, g.detach(), choice)
        if self.gate == "shared only":  # control: what the routed experts are worth
            return torch.zeros_like(x)
        return self.experts(x, g, choice)


GATES = (
    "Llama 4",
    "on the output",
    "softmax over all",
    "renormalised",
    "score cut off",
    "shared only",
)


def new_model(vocab_size: int, gate: str, seed: int) -> ml4.Llama4:
    """The same random weights for every gate of a seed."""
    torch.manual_seed(seed)
    model = ml4.Llama4(ml4.Llama4Config.nano(vocab_size=vocab_size, experts=16))
    for block in model.blocks:
        block.ffn.__class__ = Gated
        block.ffn.gate = gate
    return model


def experiment(gate: str, tokenizer, corpus: Corpus, held_out: list[Tensor]):
    """seed -> held-out loss while learning, and how evenly the experts are used at the end."""

    def validate(model) -> dict[str, float]:
        losses = [next_token_loss(model, tokens).item() for tokens in held_out]
        return {"mean": sum(losses) / len(losses)}

    def run(seed: int) -> dict:
        model = new_model(tokenizer.vocab_size, gate, seed)
        settings = TrainSettings(steps=STEPS, validate_every=EVERY, seed=seed)
        history = train(
            model,
            lambda step: corpus.batch(step, BATCH, LENGTH, seed).tokens,
            settings,
            validate=validate,
        )
        curve = [
            (row["step"] + 1, row["validation"]["mean"]) for row in history[EVERY - 1 :: EVERY]
        ]
        steps, losses = zip(*curve, strict=True)
        even = effective_experts(model, torch.cat(held_out))
        return {"step": steps, "curve": losses, "loss": losses[-1], "effective_experts": even}

    return run


@torch.no_grad()
def effective_experts(model, tokens: Tensor) -> float:
    """exp of the entropy of the experts' loads, the mean over layers; 16 is even."""
    numbers = []

    def count(layer: Gated, inputs: tuple[Tensor]) -> None:
        choice = layer.router.logits(inputs[0]).argmax(-1)
        share = choice.flatten().bincount(minlength=16) / choice.numel()
        numbers.append(torch.special.entr(share).sum().exp().item())

    hooks = [block.ffn.register_forward_pre_hook(count) for block in model.blocks]
    model(tokens[:, :-1])
    for hook in hooks:
        hook.remove()
    return sum(numbers) / len(numbers)


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    arguments.add_argument("--seeds", type=int, default=3)
    arguments.add_argument("--keep", default="", help="file from which a stopped run goes on")
    args = arguments.parse_args()
    torch.set_num_threads(1)
    tokenizer = ml4.load_tokenizer()
    corpus = Corpus.build(tokenizer, "train", 200_000, domains=DOMAINS)
    fresh = Corpus.build(tokenizer, "validation", 32 * LENGTH + 1, domains=DOMAINS)
    held_out = [batch.tokens for batch in fresh.validation_batches(32, LENGTH)]
    conditions = {gate: experiment(gate, tokenizer, corpus, held_out) for gate in GATES}
    runs = repeat(conditions, range(args.seeds), keep=args.keep)
    runs.save(Path(__file__).with_suffix(".json"), "python data/experiments/gates.py")
    for gate in GATES[1:]:
        print(f"{gate:17} {runs.effect(gate, GATES[0], 'loss') if args.seeds > 1 else ''}")


if __name__ == "__main__":
    main()

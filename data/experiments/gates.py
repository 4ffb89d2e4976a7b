"""Does a model trained with another gate learn as well? Writes gates.json beside this file.

    python data/experiments/gates.py

Six gates, three seeds, two tasks: next tokens in four kinds of text that are the same on every
machine, and 16,384 facts to be learned by heart. About 12 minutes on one quiet core. Shown in
notebooks/01_moe/03_router_by_hand.ipynb.
"""

import argparse
from pathlib import Path

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor

import minillama4 as ml4
from minillama4.data.text import Corpus
from minillama4.explore.experiment import repeat
from minillama4.model.moe import MoE
from minillama4.train.loop import TrainSettings, next_token_loss, train

DOMAINS = ("arithmetic", "records", "spanish", "german")  # python and english differ by machine
BATCH, LENGTH, STEPS, EVERY = 8, 64, 1200, 200
FACTS, FACT_BATCH, FACT_STEPS, NAMES = 16_384, 512, 450, 250


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


def new_model(config: ml4.Llama4Config, gate: str, seed: int) -> ml4.Llama4:
    """The same random weights for every gate of a seed."""
    torch.manual_seed(seed)
    model = ml4.Llama4(config)
    for block in model.blocks:
        block.ffn.__class__ = Gated
        block.ffn.gate = gate
    return model


def text(gate: str, vocab_size: int, corpus: Corpus, held_out: list[Tensor]):
    """seed -> held-out loss while learning, and how evenly the experts are used at the end."""

    def validate(model) -> dict[str, float]:
        losses = [next_token_loss(model, tokens).item() for tokens in held_out]
        return {"mean": sum(losses) / len(losses)}

    def run(seed: int) -> dict:
        config = ml4.Llama4Config.nano(vocab_size=vocab_size, experts=16)
        model = new_model(config, gate, seed)
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


def facts(gate: str):
    """seed -> loss and accuracy on the facts themselves: two names in, the third to be known."""

    def loss(model, rows: Tensor) -> Tensor:
        return F.cross_entropy(model(rows[:, :2])[:, 1], rows[:, 2])

    def run(seed: int) -> dict:
        draw = torch.Generator().manual_seed(seed)
        pair = torch.randperm(NAMES**2, generator=draw)[:FACTS]
        answer = torch.randint(NAMES, (FACTS,), generator=draw)
        known = torch.stack([pair // NAMES, pair % NAMES, answer], dim=1)
        sizes = dict(layers=2, width=32, heads=2, kv_heads=1, experts=16, expert_hidden=32)
        model = new_model(ml4.Llama4Config.nano(**sizes), gate, seed)
        order = [torch.randint(FACTS, (FACT_BATCH,), generator=draw) for _ in range(FACT_STEPS)]
        settings = TrainSettings(FACT_STEPS, learning_rate=5e-3, weight_decay=0.0, seed=seed)
        train(model, lambda step: known[order[step]], settings, loss=loss)
        with torch.no_grad():
            right = (model(known[:, :2])[:, 1].argmax(1) == known[:, 2]).float().mean().item()
            return {"loss": loss(model, known).item(), "right": right}

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
    size = tokenizer.vocab_size
    conditions = {gate: text(gate, size, corpus, held_out) for gate in GATES}
    conditions |= {f"{gate}, facts": facts(gate) for gate in GATES}
    runs = repeat(conditions, range(args.seeds), keep=args.keep)
    runs.save(Path(__file__).with_suffix(".json"), "python data/experiments/gates.py")
    for task in ("", ", facts") if args.seeds > 1 else ():
        for gate in GATES[1:]:
            effect = runs.effect(gate + task, GATES[0] + task, "loss")
            print(f"{gate + task:25} {effect}")


if __name__ == "__main__":
    main()

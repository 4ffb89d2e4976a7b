"""What sparsity buys on text: a mixture of experts against dense models, trained alike.

    python data/experiments/sparsity.py          about 25 minutes on one core; start again to resume

MoE                      4 layers, each with 8 experts of hidden width 64, top-1, and a shared one
dense, equal active      one SwiGLU of 128 per layer: what a token uses in the MoE
dense, equal total       one SwiGLU of 576 per layer: what the MoE stores
dense, equal compute     the same, stopped after as many multiply-adds as the MoE was trained with

Everything else is equal: for each seed the same text in the same order, learning rate, schedule.
The MoE is balanced by an auxiliary loss over many batches. Before, one run each at three learning
rates (sparsity_rates.json) shows whether the rate is a fair one. Results:
sparsity.json, for `minillama4.explore.Runs.load`; the first two once more, for 1,000 steps:
sparsity_longer.json.
"""

import argparse
import time
from pathlib import Path

import torch

import minillama4 as ml4
from minillama4.data.text import Corpus
from minillama4.explore import Runs, effective_experts, repeat
from minillama4.train.__main__ import held_out_loss
from minillama4.train.balance import balance
from minillama4.train.loop import TrainSettings, train

HERE = Path(__file__).parent
STEPS, SWEEP_STEPS, LONGER_STEPS = 400, 300, 1000
ROWS, LENGTH = 8, 256
RATE, RATES = 8e-3, (4e-3, 8e-3, 1.6e-2)
SEEDS, SWEEP_SEED = (0, 1, 2), 100  # the rate was chosen on a seed that no result rests on


def configs(tokenizer) -> dict[str, ml4.Llama4Config]:
    patch = tokenizer.special["<|patch|>"]
    sizes = dict(vocab_size=tokenizer.vocab_size, patch_token=patch)
    moe = ml4.Llama4Config.nano(experts=8, expert_hidden=64, **sizes)
    hidden = moe.expert_hidden
    large = moe.replace(moe_at=(), dense_hidden=(moe.experts + 1) * hidden)
    return {
        "MoE": moe,
        "dense, equal active": moe.replace(moe_at=(), dense_hidden=(moe.top_k + 1) * hidden),
        "dense, equal total": large,
        "dense, equal compute": large,
    }


def multiply_adds(config: ml4.Llama4Config) -> int:
    """Of one token's forward pass, with the weights: each active matrix entry once.

    The embedding is looked up, the norms are no matrices. Attention's scores are left out; they
    are equal for all models here. Training costs about three times as much.
    """
    count = config.parameters()
    return count.active - count.text["embedding"] - count.text["norms"]


class Text:
    """Training and held-out text, the same for every model."""

    def __init__(self, tokenizer):
        self.train = Corpus.build(tokenizer, "train", tokens_per_domain=200_000)
        held_out = Corpus.build(tokenizer, "validation", tokens_per_domain=32 * LENGTH)
        self.validate = held_out_loss(held_out, 8, LENGTH, "cpu")  # 2,048 tokens of each domain
        self.validate_at_end = held_out_loss(held_out, 32, LENGTH, "cpu")

    def batches(self, seed: int):
        return lambda step: self.train.batch(step, ROWS, LENGTH, seed, pieces=2).tokens


def run(config, text: Text, seed: int, steps: int, rate: float = RATE) -> dict:
    """Train one model; its held-out losses, and what they cost, as the steps go by."""
    torch.manual_seed(seed)
    model = ml4.Llama4(config)
    settings = TrainSettings(steps, learning_rate=rate, validate_every=50, seed=seed)
    cpu, paused, began = [], 0.0, time.process_time()

    def validate(model):
        nonlocal paused
        start = time.process_time()
        cpu.append(round(start - began - paused, 2))  # of training alone
        losses = text.validate(model)
        paused += time.process_time() - start
        return losses

    with balance(model, "aux", weight=0.01, over="many") as balanced:
        more = dict(validate=validate, loss=balanced.loss)
        history = train(model, text.batches(seed), settings, **more)
        sparse = bool(balanced.routers)
        loads = balanced.loads[-50:].sum(0) if sparse else ()
    rows = [row for row in history if "validation" in row]
    at = [row["step"] + 1 for row in rows]
    per_step = 3 * multiply_adds(config) * ROWS * LENGTH
    with torch.no_grad():
        final = text.validate_at_end(model)
    return {name: round(loss, 4) for name, loss in final.items()} | {
        "step": at,
        "held_out": [round(row["validation"]["mean"], 4) for row in rows],
        "training": [round(row["loss"], 3) for row in history[9::10]],
        "multiply_adds": [per_step * step for step in at],
        "cpu_seconds": cpu,
        "effective_experts": [round(float(effective_experts(load)), 2) for load in loads],
    }


def conditions(tokenizer, text: Text) -> dict:
    sizes = configs(tokenizer)
    cost = {name: multiply_adds(config) for name, config in sizes.items()}
    fewer = round(STEPS * cost["MoE"] / cost["dense, equal compute"])
    steps = dict.fromkeys(sizes, STEPS) | {"dense, equal compute": fewer}
    return {
        name: (lambda seed, n=name, c=config: run(c, text, seed, steps[n]))
        for name, config in sizes.items()
    }


def sweep(tokenizer, text: Text) -> dict:
    """Each model at each rate, for fewer steps."""
    sizes = list(configs(tokenizer).items())[:3]
    return {
        f"{name}, rate {rate}": (lambda seed, c=config, r=rate: run(c, text, seed, SWEEP_STEPS, r))
        for name, config in sizes
        for rate in RATES
    }


def longer(tokenizer, text: Text) -> dict:
    """The two of equal active size once more, trained for longer: does their order change?"""
    sizes = list(configs(tokenizer).items())[:2]
    return {
        name: (lambda seed, c=config: run(c, text, seed, LONGER_STEPS)) for name, config in sizes
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.parse_args()
    torch.set_num_threads(1)
    tokenizer = ml4.load_tokenizer()
    text = Text(tokenizer)
    for name, parts, seeds in (
        ("sparsity_rates", sweep(tokenizer, text), (SWEEP_SEED,)),
        ("sparsity", conditions(tokenizer, text), SEEDS),
        ("sparsity_longer", longer(tokenizer, text), SEEDS),
    ):
        if (HERE / f"{name}.json").exists():
            print(f"{name}.json is there: delete it to make it anew.")
            continue
        keep = HERE / f"{name}.part.json"  # finished runs, from which a second start goes on
        runs: Runs = repeat(parts, seeds, keep=keep)
        runs.save(HERE / f"{name}.json", command="python data/experiments/sparsity.py")
        keep.unlink()


if __name__ == "__main__":
    main()

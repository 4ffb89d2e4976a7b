"""What experiments on the six domains share: their text, the held-out loss, and the command."""

import argparse
import statistics
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch

import minillama4 as ml4
from minillama4.data.text import Corpus
from minillama4.explore.experiment import repeat
from minillama4.train.loop import next_token_loss

HELD_OUT_ROWS = 24  # of each domain


def read_texts(length: int) -> tuple[Corpus, list]:
    """Training text, and one batch of held-out rows of ``length`` tokens for each domain."""
    tokenizer = ml4.load_tokenizer()
    validation = Corpus.build(tokenizer, "validation", HELD_OUT_ROWS * length + 1)
    held_out = list(validation.validation_batches(HELD_OUT_ROWS, length))
    return Corpus.build(tokenizer, "train"), held_out


@torch.no_grad()
def measure_losses(model, held_out: list) -> tuple[float, list[float]]:
    """Nats per token: the mean over domains, and each."""
    losses = [next_token_loss(model, batch.tokens).item() for batch in held_out]
    return statistics.fmean(losses), rounded(losses)


def rounded(values) -> list[float]:
    values = values.tolist() if isinstance(values, torch.Tensor) else values
    return [round(value, 4) for value in values]


def command(script: str, about: str, run: Callable, conditions: dict, length: int) -> None:
    """Run ``run(texts, how, seed)`` for each condition's ``how``; the result lies by the script."""
    file = Path(script).resolve()
    parser = argparse.ArgumentParser(description=about.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--keep", type=Path, default=file.with_suffix(".runs.json"))
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    texts = read_texts(length)
    every = {name: partial(run, texts, how) for name, how in conditions.items()}
    runs = repeat(every, range(arguments.seeds), keep=arguments.keep)
    runs.save(file.with_suffix(".json"), command=f"python data/experiments/{file.name}")
    arguments.keep.unlink()

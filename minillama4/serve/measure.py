"""Stop-watches: the memory's speed, the time to the first token, the time of each further one.

    TTFT  time to first token: the prompt is read         TPOT  time per output token after it

A GPU works while the CPU goes on, so a clock is read only after waiting for it. Everything is
measured several times and all samples are given.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable

import torch

from .static import StaticDecoder


def wait(device) -> None:
    """Until all that was asked of a GPU is done."""
    if torch.device(device).type == "cuda":
        torch.cuda.synchronize(device)


def seconds(run: Callable[[], object], device, rounds: int = 5, warm: int = 1) -> list[float]:
    """Of ``run()``, ``rounds`` times, after ``warm`` unmeasured ones."""
    samples = []
    for i in range(warm + rounds):
        wait(device)
        began = time.perf_counter()
        run()
        wait(device)
        if i >= warm:
            samples.append(time.perf_counter() - began)
    return samples


def memory_speed(device, size: int = 2**32, rounds: int = 9) -> dict[str, float]:
    """Bytes per second, medians: "read" of ``size`` bytes summed up, "copy" read and written."""
    numbers = torch.ones(size // 4, dtype=torch.float32, device=device)
    other = torch.empty_like(numbers)
    read = statistics.median(seconds(numbers.sum, device, rounds))
    copy = statistics.median(seconds(lambda: other.copy_(numbers), device, rounds))
    return {"read": numbers.nbytes / read, "copy": 2 * numbers.nbytes / copy}


def tpot(decoder: StaticDecoder, context: int, steps: int = 64, rounds: int = 5) -> list[float]:
    """Seconds for each of ``steps`` greedy tokens of every row, behind ``context`` others."""
    token = torch.zeros_like(decoder.token)

    def run() -> None:
        decoder.pretend(context)
        decoder.write(token, steps)

    return [sample / steps for sample in seconds(run, token.device, rounds)]


def ttft(decoder: StaticDecoder, length: int, rounds: int = 3) -> list[float]:
    """Seconds until the logits behind a prompt of ``length`` random tokens are there."""
    draw = torch.Generator(decoder.token.device).manual_seed(0)
    shape, device = (decoder.rows, length), decoder.token.device
    prompt = torch.randint(decoder.config.vocab_size, shape, generator=draw, device=device)
    return seconds(lambda: decoder.read(prompt), device, rounds)

"""Stop-watches: the memory's speed, the time to the first token, the time of each further one.

    TTFT  time to first token: the prompt is read         TPOT  time per output token after it

A GPU works while the CPU goes on, so a clock is read only after waiting for it. Everything is
measured several times and all samples are given.
"""

from __future__ import annotations

import copy
import statistics
import time
from collections.abc import Callable

import torch
from torch import Tensor

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


def memory_speed(device, size: int = 2**32, rounds: int = 9, warm: int = 1) -> dict[str, float]:
    """Bytes per second, medians: "read" of ``size`` bytes summed up, "copy" read and written.

    warm: unmeasured rounds before each; a GPU that was idle needs some to raise its clocks.
    """
    numbers = torch.ones(size // 4, dtype=torch.float32, device=device)
    other = torch.empty_like(numbers)
    read = statistics.median(seconds(numbers.sum, device, rounds, warm))
    copied = statistics.median(seconds(lambda: other.copy_(numbers), device, rounds, warm))
    return {"read": numbers.nbytes / read, "copy": 2 * numbers.nbytes / copied}


def tpot(decoder: StaticDecoder, context: int, steps: int = 64, rounds: int = 5) -> list[float]:
    """Seconds for each of ``steps`` greedy tokens of every row, behind ``context`` others.

    The others are noise and the first token is drawn, so that rows differ as texts do: equal rows
    would all read the same experts.
    """
    token = _text_of_noise(decoder)

    def run() -> None:
        decoder.pretend(context)
        decoder.write(token, steps)

    return [sample / steps for sample in seconds(run, token.device, rounds)]


@torch.inference_mode()
def experts_read(
    decoder: StaticDecoder, context: int, steps: int = 64, looks: int = 16
) -> list[float]:
    """Different experts that a step of ``tpot`` reads, in each layer that has some.

    The mean over ``looks`` of the steps, on the same tokens. They are run once more, one operation
    after another, and nothing of it is timed.
    """
    token = _text_of_noise(decoder)
    decoder.pretend(context)
    fed = torch.cat([token[:, None], decoder.write(token, steps)], dim=1)
    twin = copy.copy(decoder)  # the same weights and memory, but nothing compiled or recorded
    layers = [layer for layer in twin.layers if layer.experts is not None]
    for layer in layers:
        layer.experts = _Watched(layer.experts)
    try:
        for i in range(0, steps, max(1, steps // looks)):
            twin.token.copy_(fed[:, i]), twin.position.fill_(context + i)
            twin.program()
        return [statistics.mean(layer.experts.counts) for layer in layers]
    finally:
        for layer in layers:
            layer.experts = layer.experts.inner


def ttft(decoder: StaticDecoder, length: int, rounds: int = 3) -> list[float]:
    """Seconds until the logits behind a prompt of ``length`` random tokens are there."""
    draw = torch.Generator(decoder.token.device).manual_seed(0)
    shape, device = (decoder.rows, length), decoder.token.device
    prompt = torch.randint(decoder.config.vocab_size, shape, generator=draw, device=device)
    return seconds(lambda: decoder.read(prompt), device, rounds)


def _text_of_noise(decoder: StaticDecoder) -> Tensor:
    """Noise in the cache, and a first token (b,) to go on from: the same each time."""
    device = decoder.token.device
    draw = torch.Generator(device).manual_seed(0)
    for memory in decoder.cache.layers:
        memory.keys.normal_(generator=draw), memory.values.normal_(generator=draw)
    shape = decoder.token.shape
    return torch.randint(decoder.config.vocab_size, shape, generator=draw, device=device)


class _Watched:
    """A layer's experts, and how many different ones each call chose."""

    def __init__(self, inner):
        self.inner, self.adds_shared, self.counts = inner, inner.adds_shared, []

    def __call__(self, x: Tensor, score: Tensor, choice: Tensor) -> Tensor:
        self.counts.append(choice.unique().numel())
        return self.inner(x, score, choice)

"""Honest timing: results are compared first, candidates take turns, medians are kept.

On a machine that others use as well, a disturbance then hits all candidates alike.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor


class ResultsDiffer(AssertionError):
    """Two candidates do not compute the same: their times must not be compared."""


def clock() -> float:
    """Seconds: of this process on one thread, which neighbours disturb least; else wall time."""
    return time.process_time() if torch.get_num_threads() == 1 else time.perf_counter()


@dataclass(frozen=True)
class Timing:
    """Seconds per call, one sample per round."""

    samples: tuple[float, ...]

    @property
    def median(self) -> float:
        return statistics.median(self.samples)

    @property
    def low(self) -> float:
        return min(self.samples)

    @property
    def high(self) -> float:
        return max(self.samples)

    def per(self, count: int) -> Timing:
        """The same per token, or per whatever a call makes ``count`` of."""
        return Timing(tuple(s / count for s in self.samples))


@dataclass(frozen=True)
class Candidate:
    """Something to be timed: ``run(prepare())``, of which only ``run`` counts."""

    run: Callable[[Any], Any]
    prepare: Callable[[], Any] = lambda: None

    def seconds(self, repeats: int = 1) -> float:
        """Mean time of ``repeats`` calls."""
        total = 0.0
        for _ in range(repeats):
            state = self.prepare()
            began = clock()
            self.run(state)
            total += clock() - began
        return total / repeats


def take_turns(
    candidates: Mapping[str, Candidate], rounds: int, seconds: float, fewest: int = 1
) -> dict[str, Timing]:
    """A B C A B C …: a sample of each per round, each sample long enough for the clock.

    A candidate gets about ``seconds`` in all: a fast one repeats its call within a sample, a
    slow one leaves after fewer rounds, but not before ``fewest``.
    """
    repeats, turns = {}, {}
    samples = {name: [] for name in candidates}
    for name, candidate in candidates.items():
        once = max(candidate.seconds(), 1e-7)
        if once < seconds:
            once = max(candidate.seconds(), 1e-7)  # the first was the warm-up
        else:
            samples[name].append(once)  # warming up matters little over such a time
        repeats[name] = max(1, int(seconds / rounds / once))
        turns[name] = min(rounds, max(fewest, int(seconds / once)))
    for _ in range(rounds):
        for name, candidate in candidates.items():
            if len(samples[name]) < turns[name]:
                samples[name].append(candidate.seconds(repeats[name]))
    return {name: Timing(tuple(values)) for name, values in samples.items()}


def difference(ours: Tensor, theirs: Tensor) -> float:
    """Length of the difference, relative to the length of ``theirs``."""
    if ours.shape != theirs.shape:
        raise ResultsDiffer(f"Shapes {tuple(ours.shape)} and {tuple(theirs.shape)}.")
    gap = (ours.double() - theirs.double()).norm()
    return (gap / theirs.double().norm().clamp(min=1e-30)).item()


def check_equal(what: str, ours, theirs, limit: float = 1e-4) -> float:
    """The largest ``difference`` of two lists of tensors; ResultsDiffer above ``limit``."""
    worst = max(difference(a, b) for a, b in zip(ours, theirs, strict=True))
    if not worst <= limit:  # not a number is not equal either
        raise ResultsDiffer(f"{what}: relative difference {worst:.1e}, allowed is {limit:.0e}.")
    return worst


@contextmanager
def threads(count: int):
    """Let PyTorch use ``count`` threads inside the block."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)

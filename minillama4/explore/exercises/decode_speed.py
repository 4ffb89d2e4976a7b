"""Checks for *Decode at the memory's speed* (05_serving/05_decode_at_the_memorys_speed.ipynb)."""

import torch
from torch import Tensor

from ..checks import Check

# ------------------------------------------------------------------ 1: a ceiling


def _sizes(seed: int) -> tuple[float, float, float, int]:
    """Bytes of weights and of one text's cache that a step reads; bytes per second; the batch."""
    weights = (9.8e9, 4.0e9, 12.5e9, 1.2e9, 32.3e9)[seed % 5]
    return (
        weights,
        1.5e8 * (seed + 1),
        (3.35e12, 4.3e12, 2.0e12)[seed % 3],
        (1, 4, 16, 2, 8)[seed % 5],
    )


def _ceiling(weights: float, cache: float, bandwidth: float, batch: int) -> float:
    return batch * bandwidth / (weights + batch * cache)


ceiling = Check(
    "ceiling",
    reference=_ceiling,
    inputs=_sizes,
    wrong={
        "Every text has its own cache: batch caches are read in a step, not one.": (
            lambda w, c, s, b: b * s / (w + c)
        ),
        "The weights are read once for all texts of the batch; only the caches are read for "
        "each.": lambda w, c, s, b: s / (w + c),
        "That is what each text gets. Asked is for all of them together.": (
            lambda w, c, s, b: _ceiling(w, c, s, b) / b
        ),
        "That is the time of a step: tokens per second are batch divided by it.": (
            lambda w, c, s, b: (w + b * c) / s
        ),
        "The time of a step divided by the batch is seconds per token; turn it over.": (
            lambda w, c, s, b: (w + b * c) / s / b
        ),
        "The caches are read too.": lambda w, c, s, b: b * s / w,
        "The weights are read too.": lambda w, c, s, b: b * s / (b * c),
        "Bandwidth counts bytes here, not bits.": lambda w, c, s, b: _ceiling(w, c, s, b) / 8,
    },
    praise="With many texts the caches outweigh the weights, and a larger batch gains little.",
    tolerance=1e-9,
)

# ------------------------------------------------------------------ 2: how many experts are hit


def _chances(seed: int) -> tuple[Tensor, int]:
    """Shares of tokens that choose each expert, and a number of tokens."""
    p = torch.rand((16, 4, 128, 8, 16)[seed % 5], generator=torch.Generator().manual_seed(seed))
    p = p.double() ** (1, 3, 2, 4, 1)[seed % 5]
    return p / p.sum(), (4, 2, 64, 16, 7)[seed % 5]


def _hit(p: Tensor, n: int) -> Tensor:
    return (1 - (1 - p) ** n).sum()


def _even(p: Tensor, n: int) -> Tensor:
    return _hit(torch.full_like(p, 1 / len(p)), n)


experts_hit = Check(
    "experts_hit",
    reference=_hit,
    inputs=_chances,
    wrong={
        "That is how many are NOT hit.": lambda p, n: ((1 - p) ** n).sum(),
        "That holds for even routing. Here some experts are chosen more often.": _even,
        "n tokens hit n experts only if no two choose the same.": (
            lambda p, n: torch.tensor(float(min(n, len(p))), dtype=torch.float64)
        ),
        "n · p can be above 1, but an expert is hit or not: it is 1 - (1 - p)^n.": (
            lambda p, n: (n * p).sum()
        ),
        "Capping n · p at 1 is near for rare experts, and too high for the others.": (
            lambda p, n: (n * p).clamp(max=1).sum()
        ),
        "p^n is the chance that ALL tokens choose the expert.": lambda p, n: (1 - p**n).sum(),
        "That is for one token.": lambda p, n: _hit(p, 1),
        "The mean over experts is the share that is hit; asked is how many.": (
            lambda p, n: _hit(p, n) / len(p)
        ),
        "One token too few or too many in the exponent.": lambda p, n: _hit(p, n - 1),
        "n misses in a row have the chance (1 - p)^n: a power, not n times as much.": (
            lambda p, n: (1 - (1 - p) * n).sum()
        ),
        "That is the chance to hit an expert that no one else hits: twice is a hit too.": (
            lambda p, n: (n * p * (1 - p) ** (n - 1)).sum()
        ),
    },
    praise="The roofline counts the weights of so many experts in each layer.",
    tolerance=1e-7,
)

# ------------------------------------------------------------------ 3: bandwidth utilisation


def _measured(seed: int) -> tuple[float, float, float, int]:
    """Milliseconds of a step, bytes that it reads, bytes per second, the batch.

    One of them is faster than the memory can be: an answer must not hide that.
    """
    return (4.1, 30.0, 1.4, 8.0, 5.2)[seed % 5], 2e9 * (seed + 1), 3e12 + 1e11 * seed, 4 + seed


def _mbu(milliseconds: float, read: float, bandwidth: float, batch: int) -> float:
    return read / (milliseconds / 1000) / bandwidth


mbu = Check(
    "mbu",
    reference=_mbu,
    inputs=_measured,
    wrong={
        "Milliseconds: divide by 1,000 first.": lambda t, r, s, b: r / t / s,
        "The batch is in the bytes already: a step reads what it reads, for all its texts.": (
            lambda t, r, s, b: b * _mbu(t, r, s, b)
        ),
        "Divided by the batch it is a share of a share: the step reads its bytes once.": (
            lambda t, r, s, b: _mbu(t, r, s, b) / b
        ),
        "That is bytes per second; divide by what the memory could give.": (
            lambda t, r, s, b: r / (t / 1000)
        ),
        "Upside down: used over possible.": lambda t, r, s, b: 1 / _mbu(t, r, s, b),
        "In percent it is a hundred times that; asked is for the share.": (
            lambda t, r, s, b: 100 * _mbu(t, r, s, b)
        ),
        "That is the least time of a step, in seconds.": lambda t, r, s, b: r / s,
        "Times 1,000 in place of divided by it.": lambda t, r, s, b: r / (t * 1000) / s,
        "Above 1 something was counted wrong (question 3): whoever cuts it off at 1 never sees "
        "that.": lambda t, r, s, b: min(1, _mbu(t, r, s, b)),
        "That is tokens per second: MBU compares bytes.": lambda t, r, s, b: b / (t / 1000),
    },
    praise="It says how far a program is from the fastest that any program could be.",
    tolerance=1e-9,
)

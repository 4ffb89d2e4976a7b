"""Checks for *Attention temperature* (notebooks/02_irope/03_attention_temperature.ipynb)."""

import math

import torch
from einops import einsum, rearrange
from torch import Tensor

from ...model.attention import attention_temperature
from ..checks import Check

# ------------------------------------------------------------------ 1: the formula


def _positions(seed: int) -> tuple[Tensor, int, float]:
    """p (t,), floor_scale, attn_scale; from before the floor to far beyond it."""
    floor, scale = ((8192, 0.1), (128, 0.1), (16, 0.3), (100, 0.2), (1000, 0.5))[seed % 5]
    steps = torch.tensor([0, 1, 2, 3, 7, 64])
    return torch.cat([steps * floor + shift for shift in (0, floor // 2, floor - 1)]), floor, scale


def _log_of(steps):
    """A wrong answer that differs in how the steps are counted: ``steps(p, floor)``."""
    return lambda p, floor, scale: 1 + scale * torch.log1p(steps(p.double(), floor))


temperature = Check(
    "temperature",
    reference=attention_temperature,
    inputs=_positions,
    wrong={
        "The floor is missing: s climbs in steps, and is 1 until the first of them.": _log_of(
            lambda p, floor: (p + 1) / floor
        ),
        "You took p for p + 1 inside the floor: each step comes one token late.": _log_of(
            lambda p, floor: torch.floor(p / floor)
        ),
        "That is the straight line of section 2, cut off below 1: Llama 4 climbs in steps, "
        "floor(...) + 1.": lambda p, f, a: 1 + a * ((p + 1) / f).clamp(1).log(),
        "The + 1 inside the logarithm is missing: short contexts get ln 0.": lambda p, f, a: (
            1 + a * torch.floor((p + 1.0) / f).log()
        ),
        "The + 1 inside the logarithm is missing, and below the floor you put 1 instead: every "
        "step is one too low.": lambda p, f, a: 1 + a * torch.floor((p + 1.0) / f).clamp(1).log(),
        "The 1 in front is missing: short contexts would have all scores 0.": lambda p, f, a: (
            attention_temperature(p, f, a) - 1
        ),
        "That is the inverse: a temperature in the books divides, Llama 4's factor multiplies, "
        "and grows.": lambda p, f, a: 1 / attention_temperature(p, f, a),
        "ln is the natural logarithm; you took the one to base 2.": lambda p, f, a: (
            1 + a * torch.log2(torch.floor((p + 1.0) / f) + 1)
        ),
        "ln is the natural logarithm; you took the one to base 10.": lambda p, f, a: (
            1 + a * torch.log10(torch.floor((p + 1.0) / f) + 1)
        ),
        "You rounded up: s must be 1 below the floor.": _log_of(
            lambda p, floor: torch.ceil((p + 1) / floor)
        ),
        "attn_scale is not used: it stands before the logarithm.": lambda p, f, a: (
            attention_temperature(p, f, 1.0)
        ),
        "Nothing grows: the positions are not used.": lambda p, f, a: torch.ones(p.shape),
    },
    praise="It is the library's, from before the floor to 65 times beyond.",
)

# ------------------------------------------------------------------ 2: in a layer


def _heads(seed: int) -> tuple[Tensor, Tensor, Tensor, bool]:
    """q and k (b, t, h, d), positions (t,), rope; floor 128, scale 0.1."""
    draw = torch.Generator().manual_seed(seed)
    q, k = torch.randn(2, 2, 6, 3, 8, generator=draw)
    return q, k, 100 + 300 * seed + 25 * torch.arange(6), seed % 2 == 1


def _scores(q: Tensor, k: Tensor) -> Tensor:
    return einsum(q, k, "b t h d, b s h d -> b h t s") * q.shape[-1] ** -0.5


def _factor(positions: Tensor) -> Tensor:
    return rearrange(attention_temperature(positions, 128, 0.1), "t -> t 1 1")


def _right_scores(q, k, positions, rope):
    return _scores(q if rope else q * _factor(positions), k)


def _mistake(change):
    """Wrong in NoPE layers: ``change(q, k, s, positions)`` gives the scores."""

    def answer(q, k, positions, rope):
        s = torch.ones(len(positions), 1, 1) if rope else _factor(positions)
        return change(q, k, s, positions)

    return answer


scores = Check(
    "scores",
    reference=_right_scores,
    inputs=_heads,
    wrong={
        "You warmed every layer; RoPE layers have no temperature.": lambda q, k, p, rope: _scores(
            q * _factor(p), k
        ),
        "You warmed the RoPE layers; it belongs to the others.": lambda q, k, p, rope: (
            _right_scores(q, k, p, not rope)
        ),
        "You warmed keys as well: queries only, or the factor counts twice.": _mistake(
            lambda q, k, s, p: _scores(q * s, k * s)
        ),
        "You warmed the keys: then a score depends on where the key stands. Queries "
        "only.": _mistake(lambda q, k, s, p: _scores(q, k * s)),
        "You divided: Llama 4's factor multiplies.": _mistake(lambda q, k, s, p: _scores(q / s, k)),
        "Queries go down and keys to the right, (b, h, t, s): yours are the other way "
        "round.": lambda q, k, p, rope: _right_scores(q, k, p, rope).mT,
        "The scores are not divided by the square root of d.": lambda q, k, p, rope: (
            _right_scores(q, k, p, rope) * q.shape[-1] ** 0.5
        ),
        "Nothing is warmed: the factor is missing, or you counted tokens from 0 where positions "
        "are given.": lambda q, k, p, rope: _scores(q, k),
    },
    praise="Queries of NoPE layers only, and by their true positions.",
)

# ------------------------------------------------------------------ 3: where it reaches a factor


def _targets(seed: int) -> tuple[float, int, float]:
    """factor, floor_scale, attn_scale; none falls on a step exactly."""
    return ((1.5, 8192, 0.1), (1.2, 8192, 0.1), (1.5, 128, 0.2), (2.3, 128, 0.4), (1.01, 64, 0.3))[
        seed % 5
    ]


def _first(factor: float, floor: int, scale: float) -> int:
    return math.ceil(math.exp((factor - 1) / scale) - 1) * floor - 1


def _unrounded(factor, floor, scale):
    return math.ceil((math.exp((factor - 1) / scale) - 1) * floor) - 1


first_position = Check(
    "first_position",
    reference=_first,
    inputs=_targets,
    wrong={
        "One too many: the first step stands at floor_scale - 1, because the formula has p + "
        "1.": lambda *sizes: _first(*sizes) + 1,
        "You left out the floor: between two steps s does not move. Round the steps up.": (
            _unrounded
        ),
        "You rounded the steps down: there s has not reached the factor yet.": lambda f, n, a: (
            math.floor(math.exp((f - 1) / a) - 1) * n - 1
        ),
        "A step too late: take off the 1 that is added inside the logarithm.": lambda f, n, a: (
            math.ceil(math.exp((f - 1) / a)) * n - 1
        ),
        "The 1 in front of the logarithm is to be taken off the factor first.": lambda f, n, a: (
            math.ceil(math.exp(f / a) - 1) * n - 1
        ),
        "That is the number of steps: times floor_scale makes tokens.": lambda f, n, a: math.ceil(
            math.exp((f - 1) / a) - 1
        ),
    },
    praise="In Llama 4 the factor passes 1.5 at position 1,212,415.",
    tolerance=1e-9,
)

"""Checks for *Rotary embeddings* (notebooks/02_irope/01_rotary_embeddings.ipynb)."""

import math
from dataclasses import dataclass

import torch
from einops import rearrange
from torch import Tensor

from ...config import RopeScaling
from ...model.rope import rope_frequencies, rotate, rotation
from ..checks import Check

# ------------------------------------------------------------------ 1: turn one vector


def _vector(seed: int) -> tuple[Tensor, int, float]:
    """x (d,), position, theta.

    Both are small: with the wrong sign in the exponent angles grow to p · theta, and in float32 the
    mistake must be recognised however it is rounded.
    """
    draw = torch.Generator().manual_seed(seed)
    width, theta = ((8, 100.0), (16, 300.0), (4, 20.0))[seed % 3]
    return torch.randn(width, generator=draw), 2 + 3 * seed, theta


def _library_turn(x: Tensor, p: int, theta: float) -> Tensor:
    turn = rotation(torch.tensor([[p]]), rope_frequencies(len(x), theta))
    return rotate(x[None, None, None], turn)[0, 0, 0]


def _pairs(x: Tensor) -> Tensor:
    return rearrange(x, "(d two) -> two d", two=2)


def _halves(x: Tensor) -> Tensor:
    return rearrange(x, "(two d) -> two d", two=2)


def _side_by_side(pair) -> Tensor:
    return rearrange(list(pair), "two d -> (d two)")


def _turned(pair: Tensor, angle: Tensor) -> tuple[Tensor, Tensor]:
    (one, other), cos, sin = pair, angle.cos(), angle.sin()
    return one * cos - other * sin, one * sin + other * cos


def _angle(x: Tensor, p: float, theta: float) -> Tensor:
    return p * rope_frequencies(len(x), theta)


def _by(change, combine=_turned):
    """A wrong answer: the pairs are right, their angle is not, or how it is used."""

    def answer(x, p, theta):
        return _side_by_side(combine(_pairs(x), change(_angle(x, p, theta), p, theta)))

    return answer


def _as_it_is(angle, p, theta) -> Tensor:
    return angle


def _half_the_exponent(angle, p, theta) -> Tensor:
    exponent = torch.arange(len(angle)) / (2 * len(angle))
    return p * theta**-exponent


def _llama_4s_theta(angle, p, theta) -> Tensor:
    return p * 500_000.0 ** -(torch.arange(len(angle)) / len(angle))


def _of_halves(x, p, theta) -> Tensor:
    return torch.cat(_turned(_halves(x), _angle(x, p, theta)))


def _left_as_halves(x, p, theta) -> Tensor:
    return torch.cat(_turned(_pairs(x), _angle(x, p, theta)))


def _already_turned(pair, angle) -> tuple[Tensor, Tensor]:
    (one, other), cos, sin = pair, angle.cos(), angle.sin()
    one = one * cos - other * sin
    return one, one * sin + other * cos


def _mirrored(pair, angle) -> tuple[Tensor, Tensor]:
    (one, other), cos, sin = pair, angle.cos(), angle.sin()
    return one * cos + other * sin, one * sin - other * cos


def _both_plus(pair, angle) -> tuple[Tensor, Tensor]:
    (one, other), cos, sin = pair, angle.cos(), angle.sin()
    return one * cos + other * sin, one * sin + other * cos


turn_vector = Check(
    "turn_vector",
    reference=_library_turn,
    inputs=_vector,
    wrong={
        "You turned halves, channel i with i + d/2; Llama 4 turns neighbours.": _of_halves,
        "The turn is right, but the channels come out as halves: put each pair side by side "
        "again.": _left_as_halves,
        "You turned backwards: the first channel is x·cos - y·sin.": _by(lambda a, p, t: -a),
        "Is the sign of the angle's exponent right? Later pairs must be slower, not faster.": _by(
            lambda a, p, t: p * p / a
        ),
        "The exponent is -2i/d with i counting pairs; you used -i/d.": _by(_half_the_exponent),
        "All pairs turn at the same speed here; pair i has its own frequency.": _by(
            lambda a, p, t: torch.full_like(a, p)
        ),
        "Position 0 must not turn at all: you counted from 1.": _by(
            lambda a, p, t: a * (p + 1) / p
        ),
        "The angle is in radians; you took it for degrees.": _by(lambda a, p, t: a * math.pi / 180),
        "The frequency is in radians per position already: no 2π.": _by(
            lambda a, p, t: 2 * math.pi * a
        ),
        "The position is missing: this is the turn of position 1.": _by(lambda a, p, t: a / p),
        "Sine and cosine are exchanged.": _by(lambda a, p, t: math.pi / 2 - a),
        "The second channel was made from the first one after its turn; keep the old one.": _by(
            _as_it_is, _already_turned
        ),
        "That is a mirror image, not a turn: check the signs.": _by(_as_it_is, _mirrored),
        "Both sines have a plus: one of the two must be subtracted, or lengths change.": _by(
            _as_it_is, _both_plus
        ),
        "theta is an argument; you took Llama 4's 500,000.": _by(_llama_4s_theta),
        "Nothing has turned.": lambda x, p, theta: x,
    },
    praise="It is the library's rotation.",
    tolerance=1e-3,
)

# ------------------------------------------------------------------ 2: a program nobody can read


@dataclass(frozen=True)
class Unknown:
    """A rotation of the last axis at some position: ``order`` lists the channels pair by pair."""

    order: tuple[int, ...]
    angle: tuple[float, ...]

    def __call__(self, x: Tensor) -> Tensor:
        order = torch.tensor(self.order)
        pair = rearrange(x[..., order], "... (d two) -> two ... d", two=2)
        turned = _turned(pair, torch.tensor(self.angle, dtype=x.dtype))
        out = torch.empty_like(x)
        out[..., order] = rearrange(list(turned), "two ... d -> ... (d two)")
        return out

    def __repr__(self) -> str:
        return f"Unknown(d={len(self.order)})"


def unknown(seed: int = 0) -> Unknown:
    """Seed 0 turns pairs, 1 halves, 2 backwards halves; others whatever comes."""
    width = (8, 16, 12)[seed % 3]
    natural = torch.arange(width)
    orders = (natural, _side_by_side(_halves(natural)), _side_by_side(_halves(natural)))
    chance = torch.randperm(width, generator=torch.Generator().manual_seed(seed))
    order = orders[seed] if seed < len(orders) else chance
    frequency = rope_frequencies(width, 10_000.0).double() * (-1 if seed == 2 else 1)
    return Unknown(tuple(order.tolist()), tuple((4 * frequency).tolist()))


def _others(turn, d: int) -> Tensor:
    """How strongly channel c of the input shows in every other channel: (c, d), signed."""
    return turn(torch.eye(d, dtype=torch.float64)).fill_diagonal_(0)


def _partners(turn, d: int) -> Tensor:
    return _others(turn, d).abs().argmax(1)


partners = Check(
    "partners",
    reference=_partners,
    inputs=lambda seed: (unknown(seed), len(unknown(seed).order)),
    wrong={
        "You answered with neighbours without asking the program: it may turn others.": (
            lambda turn, d: torch.arange(d) ^ 1
        ),
        "You answered with halves without asking the program: it may turn others.": (
            lambda turn, d: (torch.arange(d) + d // 2) % d
        ),
        "You answered with the next channel; a partner's partner is the channel itself.": (
            lambda turn, d: (torch.arange(d) + 1) % d
        ),
        "A channel is not its own partner: look at where else it shows.": (
            lambda turn, d: torch.arange(d)
        ),
        "The largest output is the channel itself wherever a pair has turned by little: leave it "
        "out.": lambda turn, d: turn(torch.eye(d, dtype=torch.float64)).abs().argmax(1),
        "You took the first channel in which each shows; of a pair's second channel that is the "
        "partner, of its first the channel itself.": lambda turn, d: torch.minimum(
            torch.arange(d), _partners(turn, d)
        ),
        "One channel of a pair shows in its partner with a minus: look at the size, not at the "
        "sign.": lambda turn, d: _others(turn, d).argmax(1),
        "A partner may show with a minus, and then argmax passes it by: take sizes "
        "first.": lambda turn, d: _others(turn, d).fill_diagonal_(-math.inf).argmax(1),
        "You took the second largest output. A pair that has turned by more than 45° shows most in "
        "its partner: leave out the channel itself instead.": lambda turn, d: (
            turn(torch.eye(d, dtype=torch.float64)).abs().topk(2).indices[:, 1]
        ),
        "Slow pairs have turned by very little: take whatever is not zero, not what is "
        "large.": lambda turn, d: (_others(turn, d).abs() > 0.5).double().argmax(1),
    },
    praise="It finds the pairs of every program, those of chance too.",
    tolerance=1e-9,
)

# ------------------------------------------------------------------ 3: who has not turned once


def _sizes(seed: int) -> tuple[int, float, int]:
    """d, theta, length: Scout, Llama 2, mini Scout, and two more."""
    sizes = (
        (128, 5e5, 8192),
        (128, 1e4, 4096),
        (32, 5e5, 128),
        (64, 1e4, 2048),
        (256, 1e6, 32_768),
    )
    return sizes[seed % len(sizes)]


def _wave(theta: float, share: float) -> float:
    return 2 * math.pi * theta**share


def _slow(d: int, theta: float, length: int) -> int:
    return int((2 * math.pi / rope_frequencies(d, theta).double() > length).sum())


def _count(turns):
    """A wrong count: ``turns(theta, length, share)`` for every share = 2i/d, below 1."""

    def answer(d, theta, length):
        share = torch.arange(0, d, 2, dtype=torch.float64) / d
        return int((turns(theta, length, share) < 1).sum())

    return answer


slow_pairs = Check(
    "slow_pairs",
    reference=_slow,
    inputs=_sizes,
    wrong={
        "These are the pairs that have turned once; the others are asked "
        "for.": lambda d, theta, length: d // 2 - _slow(d, theta, length),
        "A whole turn is 2π radians: you counted one radian as a turn.": _count(
            lambda theta, length, share: length * theta**-share
        ),
        "The exponent is -2i/d with i counting pairs; you used -i/d.": _count(
            lambda theta, length, share: length * theta ** (-share / 2) / (2 * math.pi)
        ),
        "A pair has one frequency: i counts the d/2 pairs, you counted d channels.": (
            lambda d, theta, length: sum(_wave(theta, i / d) > length for i in range(d))
        ),
        "29 is Scout's number; other sizes are tried as well: count.": lambda *sizes: 29,
        "theta is an argument; you took Llama 4's 500,000.": lambda d, theta, length: _slow(
            d, 5e5, length
        ),
        "length is an argument; you took 8,192.": lambda d, theta, length: _slow(d, theta, 8192),
        "Without Scout's factors, please: by the formula alone.": lambda d, theta, length: int(
            (2 * math.pi / rope_frequencies(d, theta, RopeScaling()).double() > length).sum()
        ),
        "Two channels make one pair: you counted channels.": lambda d, theta, length: (
            2 * _slow(d, theta, length)
        ),
        "A whole turn is 2π radians: you took the frequency for degrees.": _count(
            lambda theta, length, share: length * theta**-share / 360
        ),
        "A whole turn is 2π radians: you counted half a turn.": _count(
            lambda theta, length, share: length * theta**-share / math.pi
        ),
        "All pairs turn once here: is the sign of the exponent right? Later pairs are "
        "slower.": lambda d, theta, length: 0,
        "You counted one too many: pair 0 is the first.": lambda *sizes: _slow(*sizes) + 1,
    },
    praise="Scout's 29 of 64 are among the cases.",
    tolerance=1e-9,
)

"""Checks for *The whole text model* (notebooks/02_irope/05_the_whole_text_model.ipynb)."""

import torch
from torch import Tensor

from ...config import Llama4Config
from ...serve.memory import kv_bytes_per_slot
from ...serve.sampling import top_p_of
from ..checks import Check

# ------------------------------------------------------------------ 1: how long a text fits


def _room(seed: int) -> tuple[Llama4Config, int]:
    """A model and bytes: much room and little, borders of the first chunk among them."""
    scout, mini = Llama4Config.scout(), Llama4Config.mini()
    other = scout.replace(layers=20, kv_heads=4, head_width=64, chunk=1024, nope_every=5)
    cases = (
        (scout, 13_500_000_000),
        (mini, 5_000_000),
        (scout, 1_000_000_000),  # less than one chunk
        (other, 2_000_000_123),
        (mini, 40_000),
    )
    return cases[seed % len(cases)]


def _fitting(config: Llama4Config, room: int, one: int, growing: int, fixed: bool = True) -> int:
    """``one``: bytes of a token in a layer; ``growing``: layers that keep everything."""
    within = room // (one * config.layers)
    if within <= config.chunk:
        return within
    chunks = one * (config.layers - growing) * config.chunk
    return (room - chunks * fixed) // (one * growing)


def _by(one=1.0, growing=lambda c: len(c.nope_layers), fixed=True):
    """A wrong answer: ``one`` times the bytes of a token, other growing layers, no fixed part."""

    def answer(config, room):
        size = int(kv_bytes_per_slot(config) * (one(config) if callable(one) else one))
        return _fitting(config, room, size, growing(config), fixed)

    return answer


def _always_beyond(config, room):
    one, growing = kv_bytes_per_slot(config), len(config.nope_layers)
    return (room - one * (config.layers - growing) * config.chunk) // (one * growing)


def _in_fractions(config, room):
    one, growing = kv_bytes_per_slot(config), len(config.nope_layers)
    within = room / (one * config.layers)
    chunks = one * (config.layers - growing) * config.chunk
    return within if within <= config.chunk else (room - chunks) / (one * growing)


def _behind_the_chunk(config, room):
    one = kv_bytes_per_slot(config)
    length = _fitting(config, room, one, len(config.nope_layers))
    return length if length <= config.chunk else length - config.chunk


longest_text = Check(
    "longest_text",
    reference=_by(),
    inputs=_room,
    wrong={
        "You let every layer grow; RoPE layers stop at one chunk.": lambda c, room: (
            room // (kv_bytes_per_slot(c) * c.layers)
        ),
        "You counted the growing layers alone; RoPE layers still keep one chunk each.": (
            lambda c, room: room // (kv_bytes_per_slot(c) * len(c.nope_layers))
        ),
        "Right for long texts. Where the room ends within the first chunk, every layer still "
        "grows.": _always_beyond,
        "Within the first chunk you are right; beyond it you forgot what the RoPE layers go on "
        "keeping.": _by(fixed=False),
        "You exchanged the kinds: RoPE layers stop at a chunk, NoPE layers grow.": _by(
            growing=lambda c: c.layers - len(c.nope_layers)
        ),
        "Half the bytes: a key and a value are kept, not one of them; or two bytes a number were "
        "forgotten.": _by(one=0.5),
        "A quarter of the bytes: keys and values make two, and bf16 takes two bytes.": _by(
            one=0.25
        ),
        "Keys and values are kept per KV head; you counted query heads.": _by(
            one=lambda c: c.heads // c.kv_heads
        ),
        "That is a cache in float32; bf16 takes two bytes.": _by(one=2),
        "One KV head only: multiply by their number.": _by(one=lambda c: 1 / c.kv_heads),
        "That is a fraction of a token: what is the longest whole text that fits?": _in_fractions,
        "Beyond the first chunk you count only what follows it: the chunk's own tokens are part of "
        "the text.": _behind_the_chunk,
        "One token too many: it does not fit any more.": lambda c, room: _by()(c, room) + 1,
        "room is in bytes; you took it for bits.": lambda c, room: _by()(c, room // 8),
    },
    praise="Scout, with what Int4 weights leave of 80 GB, is among the cases.",
    tolerance=1e-9,
)

# ------------------------------------------------------------------ 2: top-p


def _probabilities(seed: int) -> tuple[Tensor, float]:
    """p (v,), sharper and flatter; the likeliest alone never reaches the limit.

    Otherwise an answer that leaves out the crossing token divides by 0, and is not recognised.
    """
    draw = torch.Generator().manual_seed(seed)
    logits = torch.randn(12, generator=draw, dtype=torch.float64) * (1, 3, 0.3, 2, 5)[seed % 5]
    return logits.softmax(0), (0.9, 0.5, 0.7, 0.4, 0.95)[seed % 5]


def _ordered(p: Tensor, limit: float, rule) -> Tensor:
    """A wrong set: ``rule(sum before and with, sum before)`` in order of falling probability."""
    value, order = p.sort(descending=True)
    kept = value * rule(value.cumsum(0), value.cumsum(0) - value, limit)
    return torch.zeros_like(p).scatter(0, order, kept / kept.sum().clamp(min=1e-12))


def _kept(p: Tensor, mask: Tensor) -> Tensor:
    kept = p * mask
    return kept / kept.sum().clamp(min=1e-12)


def _unlikely(p: Tensor, limit: float) -> Tensor:
    value, order = p.sort()
    kept = value * (value.cumsum(0) - value < limit)
    return torch.zeros_like(p).scatter(0, order, kept / kept.sum())


def _one_more(p: Tensor, limit: float) -> Tensor:
    count = int((top_p_of(p, limit) > 0).sum()) + 1
    return _kept(p, p >= p.sort(descending=True).values[min(count, len(p)) - 1])


keep_top_p = Check(
    "keep_top_p",
    reference=top_p_of,
    inputs=_probabilities,
    wrong={
        "Nothing is left out.": lambda p, limit: p,
        "The set is right; what is left must sum to 1 again: divide by its sum.": (
            lambda p, limit: p * (top_p_of(p, limit) > 0)
        ),
        "The token that crosses the limit belongs to the set; you left it out.": (
            lambda p, limit: _ordered(p, limit, lambda upto, before, at: upto <= at)
        ),
        "One token too many: stop with the first that reaches the limit.": _one_more,
        "The probabilities are right but stand in sorted order: put each back in its place.": (
            lambda p, limit: top_p_of(p, limit).sort(descending=True).values
        ),
        "You sum from the least likely token; begin with the most likely.": _unlikely,
        "You compare each token's own probability with the limit; it is the sum that "
        "counts.": lambda p, limit: _kept(p, p >= limit),
        "You keep tokens of at least `limit` times the largest: that is min-p, another "
        "filter.": lambda p, limit: _kept(p, p >= limit * p.max()),
        "You sum in the order of the vocabulary: sort first.": lambda p, limit: _kept(
            p, p.cumsum(0) - p < limit
        ),
        "The set is found in sorted order; its mask was laid on the vocabulary's.": (
            lambda p, limit: _kept(p, top_p_of(p, limit).sort(descending=True).values > 0)
        ),
        "Divide by the sum of what stays; it is somewhat more than `limit`.": (
            lambda p, limit: p * (top_p_of(p, limit) > 0) / limit
        ),
        "These are probabilities already: divide by their sum, no second softmax.": (
            lambda p, limit: p.masked_fill(top_p_of(p, limit) == 0, -torch.inf).softmax(0)
        ),
        "That is the most likely token alone.": lambda p, limit: _kept(p, p == p.max()),
    },
    properties={
        "The most likely token must stay, however small the limit: with a limit of 1e-9 yours "
        "goes.": lambda answer: float(answer(torch.tensor([0.1, 0.6, 0.3]), 1e-9)[1]) > 0.999,
        "A sum equal to the limit has reached it: of 0.5, 0.25, 0.25 only the first stays at "
        "0.5.": lambda answer: float(answer(torch.tensor([0.25, 0.5, 0.25]), 0.5)[1]) > 0.999,
        "With a limit of 1 nothing is left out.": lambda answer: bool(
            (answer(torch.tensor([0.125, 0.625, 0.25]), 1.0) > 0).all()
        ),
    },
    praise="The set, its sum and its places are those of the library.",
    tolerance=1e-9,
)

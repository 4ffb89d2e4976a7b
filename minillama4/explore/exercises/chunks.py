"""Checks for *Chunks and NoPE* (notebooks/02_irope/02_chunks_and_nope.ipynb)."""

import math

import torch
from einops import rearrange
from torch import Tensor

from ...config import Llama4Config
from ..checks import Check
from ..reach import kv_entries, receptive_field, visible

# ------------------------------------------------------------------ 1: the mask of a piece


def _piece(seed: int) -> tuple[int, int, int]:
    """start, t, chunk."""
    return ((0, 20, 8), (13, 6, 8), (8, 3, 8), (15, 1, 4), (5, 14, 6))[seed % 5]


def _library_mask(start: int, t: int, chunk: int) -> Tensor:
    return visible(Llama4Config.nano(chunk=chunk, nope_at=()), 0, start + t)[start:]


def _mask(rule):
    """An answer: ``rule(q, k, start, chunk)`` for positions q (t, 1) and k (s,)."""

    def answer(start, t, chunk):
        q = rearrange(torch.arange(start, start + t), "t -> t 1")
        return rule(q, torch.arange(start + t), start, chunk)

    return answer


def _shifted(by: int):
    return _mask(lambda q, k, start, c: (k <= q) & ((q + by) // c == (k + by) // c))


piece_mask = Check(
    "piece_mask",
    reference=_library_mask,
    inputs=_piece,
    wrong={
        "The first query stands at position start, not at 0: with that, masks after the first "
        "piece go wrong.": _mask(
            lambda q, k, start, c: (k <= q - start) & ((q - start) // c == k // c)
        ),
        "Chunks are counted from the text's first token, not from the piece's.": _mask(
            lambda q, k, start, c: (k <= q) & ((q - start) // c == (k - start) // c)
        ),
        "That is a sliding window: a query may look at its own chunk only.": _mask(
            lambda q, k, start, c: (k <= q) & (q - k < c)
        ),
        "One border is not enough: each query has the chunk of its own position, and a piece may "
        "cross a border.": _mask(lambda q, k, start, c: (k <= q) & (k >= start // c * c)),
        "That is a NoPE layer's mask: the chunk rule is missing.": _mask(
            lambda q, k, start, c: k <= q
        ),
        "Queries see later tokens of their chunk here: the causal rule is missing.": _mask(
            lambda q, k, start, c: q // c == k // c
        ),
        "A query sees itself too: k ≤ q, not k < q.": _mask(
            lambda q, k, start, c: (k < q) & (q // c == k // c)
        ),
        "Your borders come one token early: the first chunk is 0 to chunk - 1.": _shifted(1),
        "Your borders come one token late: position chunk opens the second chunk.": _shifted(-1),
        "These are the piece's own keys only; those of earlier pieces wait in the "
        "cache.": lambda start, t, chunk: _library_mask(start, t, chunk)[:, start:],
        "Queries go down and keys to the right: (t, start + t).": lambda start, t, chunk: (
            _library_mask(start, t, chunk).T
        ),
        "True is for what a query sees; you marked what is hidden.": lambda start, t, chunk: (
            ~_library_mask(start, t, chunk)
        ),
        "That is a mask to add to the scores, 0 and -inf; True and False are asked for.": (
            lambda start, t, chunk: torch.where(_library_mask(start, t, chunk), 0.0, -torch.inf)
        ),
    },
    properties={
        "The places are right, but True and False are asked for: a mask of numbers is added to "
        "the scores and hides nothing.": lambda answer: answer(*_piece(0)).dtype == torch.bool,
    },
    praise="It is the library's mask, wherever the piece begins.",
    tolerance=1e-9,
)

# ------------------------------------------------------------------ 2: what must be kept


def _sizes(seed: int) -> tuple[int, ...]:
    """length, layers, nope_every, chunk, kv_heads, head_width: Scout, mini Scout twice, others."""
    sizes = (
        (131_072, 48, 4, 8192, 8, 128),
        (100, 8, 4, 128, 2, 32),
        (1000, 8, 4, 128, 2, 32),
        (5000, 10, 4, 512, 4, 64),
        (700, 7, 2, 64, 1, 16),
    )
    return sizes[seed % len(sizes)]


def _kept(length, layers, nope_every, chunk) -> int:
    return sum(
        kv_entries(Llama4Config.nano(layers=layers, nope_every=nope_every, chunk=chunk), length)
    )


def _library_bytes(length, layers, nope_every, chunk, kv_heads, head_width) -> int:
    return _kept(length, layers, nope_every, chunk) * 2 * kv_heads * head_width * 2


def _entries(count):
    """A wrong answer: ``count(length, nope, rope, chunk)`` tokens over all layers."""

    def answer(length, layers, nope_every, chunk, kv_heads, head_width):
        nope = layers // nope_every
        return count(length, nope, layers - nope, chunk) * 4 * kv_heads * head_width

    return answer


def _from_layer_0(length, layers, nope_every, chunk, kv_heads, head_width) -> int:
    nope = math.ceil(layers / nope_every)
    tokens = nope * length + (layers - nope) * min(length, chunk)
    return tokens * 4 * kv_heads * head_width


def _in_parts(length, layers, nope_every, chunk, kv_heads, head_width) -> float:
    nope = layers / nope_every
    tokens = nope * length + (layers - nope) * min(length, chunk)
    return tokens * 4 * kv_heads * head_width


cache_bytes = Check(
    "cache_bytes",
    reference=_library_bytes,
    inputs=_sizes,
    wrong={
        "All layers keep everything here; a RoPE layer needs one chunk at most.": _entries(
            lambda n, nope, rope, chunk: (nope + rope) * n
        ),
        "No layer grows here; a NoPE layer keeps every token.": _entries(
            lambda n, nope, rope, chunk: (nope + rope) * min(n, chunk)
        ),
        "The kinds are exchanged: RoPE layers keep a chunk, NoPE layers everything.": _entries(
            lambda n, nope, rope, chunk: rope * n + nope * min(n, chunk)
        ),
        "A text shorter than a chunk does not fill it.": _entries(
            lambda n, nope, rope, chunk: nope * n + rope * chunk
        ),
        "That is what is left after the last border; the most is asked for, a whole "
        "chunk.": _entries(lambda n, nope, rope, chunk: nope * n + rope * (n % chunk)),
        "Before what is left of the last chunk each RoPE layer held a whole one; the most is asked "
        "for.": _entries(lambda n, nope, rope, chunk: nope * n + rope * (n % chunk or chunk)),
        "Layers come whole: of 10 layers with nope_every = 4 two are NoPE layers.": _in_parts,
        "That is half of it: a key and a value, two bytes for each number.": lambda *sizes: (
            _library_bytes(*sizes) // 2
        ),
        "That is a quarter of it: a key and a value, two bytes for each number.": lambda *sizes: (
            _library_bytes(*sizes) // 4
        ),
        "That is twice as much: bf16 takes two bytes for a number, not four.": lambda *sizes: (
            _library_bytes(*sizes) * 2
        ),
        "Those are bits; eight make a byte.": lambda *sizes: _library_bytes(*sizes) * 8,
        "That is one KV head's share.": lambda *sizes: _library_bytes(*sizes) // sizes[4],
        "With nope_every = 4 the NoPE layers are 3, 7, 11, ...; you counted from layer "
        "0.": _from_layer_0,
    },
    praise="Scout at 131,072 tokens is among the cases: 7.125 GiB.",
    tolerance=1e-12,
)

# ------------------------------------------------------------------ 3: who knows of whom, and when

_CASES = (
    (5, 5, 8, (3, 7), 8),
    (2, 7, 8, (3, 7), 8),
    (7, 8, 8, (3, 7), 8),
    (3, 40, 8, (3, 7), 8),
    (20, 10, 8, (3, 7), 8),
    (6, 4, 8, (3, 7), 8),
    (3, 12, 8, (), 6),
    (1, 3, 4, (), 5),
    (0, 9, 4, (0, 2), 5),
    (2, 23, 4, (1, 2, 4), 6),
    (3, 30, 16, (5,), 7),
    (12, 12, 4, (), 3),
)


def _library_count(s, t, chunk, nope_layers, layers) -> int:
    config = Llama4Config.nano(layers=layers, chunk=chunk, nope_at=nope_layers)
    knows = receptive_field(config, max(s, t) + 1)[:, t, s].tolist()
    return knows.index(True) if True in knows else -1


def _count(
    inside=1,
    same=lambda s, t, chunk: s // chunk == t // chunk,
    across=lambda s, t, chunk, nope: nope[0] + 1,
    own=0,
    never=lambda layers: -1,
    future=False,
):
    """An answer whose parts can be exchanged for wrong ones."""

    def answer(s, t, chunk, nope_layers, layers):
        if s == t:
            return own
        if s > t and not future:
            return never(layers)
        if same(s, t, chunk):
            return inside
        found = across(s, t, chunk, nope_layers) if nope_layers else layers + 1
        return found if found <= layers else never(layers)

    return answer


def _window(s, t, chunk, nope_layers, layers) -> int:
    if s > t:
        return -1
    steps = math.ceil((t - s) / (chunk - 1))
    first = nope_layers[0] + 1 if nope_layers and t > s else layers + 1
    steps = min(steps, first)
    return steps if steps <= layers else -1


def _one_for_each_border(s, t, chunk, nope_layers):
    borders = t // chunk - s // chunk
    return nope_layers[borders - 1] + 1 if borders <= len(nope_layers) else 10**6


knows_after = Check(
    "knows_after",
    reference=_library_count,
    inputs=lambda seed: _CASES[seed % len(_CASES)],
    wrong={
        "Layers are counted from 0: after layer 3 a token has passed four layers.": _count(
            across=lambda s, t, chunk, nope: nope[0]
        ),
        "No layer is needed first to reach the chunk's end: a NoPE layer sees token s "
        "itself.": _count(across=lambda s, t, chunk, nope: nope[0] + 2),
        "A neighbour in the chunk knows after one layer; 0 is for the token itself.": _count(
            inside=0
        ),
        "One NoPE layer is enough, however many borders lie between.": _count(
            across=_one_for_each_border
        ),
        "More borders need no more NoPE layers: one is enough.": _count(
            across=lambda s, t, chunk, nope: nope[min(t // chunk - s // chunk, len(nope)) - 1] + 1
        ),
        "The last NoPE layer? The first will do.": _count(
            across=lambda s, t, chunk, nope: nope[-1] + 1
        ),
        "That is how it would be without chunks: any layer tells.": _count(
            same=lambda s, t, chunk: True
        ),
        "Two tokens of one chunk need no NoPE layer.": _count(same=lambda s, t, chunk: False),
        "Nearness is not enough: positions 7 and 8 are neighbours in two chunks of 8.": _count(
            same=lambda s, t, chunk: t - s < chunk
        ),
        "That is a sliding window's reach, chunk - 1 tokens a layer.": _window,
        "Nobody sees what comes later: s > t is never known.": _count(future=True),
        "A token's state holds its own input from the start: 0 layers.": _count(own=1),
        "What never gets there is -1.": _count(never=lambda layers: layers),
        "What never gets there is -1, not one layer more than there are.": _count(
            never=lambda layers: layers + 1
        ),
        "What never gets there is -1; 0 is for a token itself.": _count(never=lambda layers: 0),
    },
    praise="It agrees with the product of the masks.",
    tolerance=1e-9,
    trials=len(_CASES),
)

"""Checks for *Loading Scout* (notebooks/05_serving/04_loading_scout.ipynb)."""

import torch
from torch import Tensor

from ..checks import Check

# ------------------------------------------------------------------ 1: where an expert begins


def _place(seed: int) -> tuple[int, int, tuple[int, int, int], int]:
    """Length of a header, where the tensor's data begins behind it, its shape, an expert of it."""
    shape = ((16, 64, 96), (4, 8, 24), (128, 32, 16), (2, 256, 64), (16, 48, 40))[seed % 5]
    return 1000 + 8 * seed, 4096 * (seed + 1), shape, (3, 1, 77, 1, 15)[seed % 5]


def _first_byte(header: int, begin: int, shape: tuple[int, ...], expert: int) -> int:
    _, rows, columns = shape
    return 8 + header + begin + expert * rows * columns * 2


first_byte = Check(
    "first_byte",
    reference=_first_byte,
    inputs=_place,
    wrong={
        "Offsets in a header count from the end of the header: its own length has to be added, and "
        "the eight bytes that hold that length.": lambda h, b, s, e: b + e * s[1] * s[2] * 2,
        "Eight bytes are missing: the file opens with the header's length, a number of eight "
        "bytes.": lambda h, b, s, e: _first_byte(h, b, s, e) - 8,
        "The header itself lies before the data as well: add its length.": (
            lambda h, b, s, e: _first_byte(h, b, s, e) - h
        ),
        "That counts numbers. A number in bfloat16 has two bytes.": (
            lambda h, b, s, e: 8 + h + b + e * s[1] * s[2]
        ),
        "Experts are counted from 0: expert 3 has three before it.": (
            lambda h, b, s, e: _first_byte(h, b, s, e - 1)
        ),
        "That is where the expert ends.": lambda h, b, s, e: _first_byte(h, b, s, e + 1),
        "Four bytes a number is float32; the file is in bfloat16, of two.": (
            lambda h, b, s, e: 8 + h + b + e * s[1] * s[2] * 4
        ),
        "The tensor's own beginning is missing: begin bytes of other tensors lie before it.": (
            lambda h, b, s, e: 8 + h + e * s[1] * s[2] * 2
        ),
        "An expert is a matrix of rows times columns; you have moved on by rows alone.": (
            lambda h, b, s, e: 8 + h + b + e * s[1] * 2
        ),
        "An expert is a matrix of rows times columns; you have moved on by columns alone.": (
            lambda h, b, s, e: 8 + h + b + e * s[2] * 2
        ),
        "That is where the tensor begins: the experts before this one lie in between.": (
            lambda h, b, s, e: 8 + h + b
        ),
        "For each expert you have moved on by the whole tensor; an expert is one of shape[0].": (
            lambda h, b, s, e: 8 + h + b + e * s[0] * s[1] * s[2] * 2
        ),
        "begin counts bytes already; only numbers are doubled.": (
            lambda h, b, s, e: 8 + h + 2 * (b + e * s[1] * s[2])
        ),
    },
    praise="From there one expert of Scout, 168 MB of gate and up, can be read and nothing else.",
    tolerance=1e-12,
)

# ------------------------------------------------------------------ 2: a split down projection


def _shards(seed: int) -> tuple[list[Tensor], int]:
    """Shards (e·f/n, m) of a down projection, and e."""
    e, f, m, n = ((2, 8, 3, 4), (3, 4, 5, 2), (4, 16, 2, 8), (2, 4, 4, 4), (5, 6, 3, 3))[seed % 5]
    down = torch.randn(e, f, m, generator=torch.Generator().manual_seed(seed))
    return [part.flatten(0, 1) for part in down.chunk(n, dim=1)], e


def _joined(shards: list[Tensor], experts: int) -> Tensor:
    return torch.cat([shard.unflatten(0, (experts, -1)) for shard in shards], dim=1)


def _below(shards: list[Tensor], experts: int) -> Tensor:
    return torch.cat(shards).unflatten(0, (experts, -1))


def _interleaved(shards: list[Tensor], experts: int) -> Tensor:
    return torch.stack(shards, dim=1).flatten(0, 1).unflatten(0, (experts, -1))


join_down = Check(
    "join_down",
    reference=_joined,
    inputs=_shards,
    wrong={
        "The shape is right, and every expert got pieces of the others: a shard holds a part of "
        "each expert, so look at it as (experts, f / shards, m) before you join.": _below,
        "You took turns row by row. A shard's rows of an expert stay together.": _interleaved,
        "A shard's rows are expert by expert, f / shards rows each; you took the experts as the "
        "faster axis.": lambda shards, e: torch.cat(
            [shard.unflatten(0, (-1, e)).transpose(0, 1) for shard in shards], dim=1
        ),
        "Each expert is right, but still in two dimensions: (experts, f, m) is asked for.": (
            lambda shards, e: _joined(shards, e).flatten(0, 1)
        ),
        "Right, but the other way round: (experts, f, m) is asked for, with f the split axis.": (
            lambda shards, e: _joined(shards, e).mT
        ),
        "The shards are in the reverse order.": lambda shards, e: _joined(shards[::-1], e),
        "You joined along the experts: now there are too many of them, each with a part of f.": (
            lambda shards, e: torch.cat([s.unflatten(0, (e, -1)) for s in shards], dim=0)
        ),
        "You joined along the width m; it is f that was split.": (
            lambda shards, e: torch.cat([s.unflatten(0, (e, -1)) for s in shards], dim=2)
        ),
        "That is the first shard alone.": lambda shards, e: shards[0].unflatten(0, (e, -1)),
        "Join the shards along f that is there already: a stack makes a dimension of its own.": (
            lambda shards, e: torch.stack([s.unflatten(0, (e, -1)) for s in shards], dim=1)
        ),
        "A sum over shards belongs to their outputs, not to their weights.": (
            lambda shards, e: sum(s.unflatten(0, (e, -1)) for s in shards)
        ),
    },
    praise="Meta's loader does the same, for 16 experts and eight shards.",
    tolerance=0.0,
)

# ------------------------------------------------------------------ 3: q, k and v in every shard


def _attention(seed: int) -> tuple[list[Tensor], int, int]:
    """Shards of wqkv, and the rows of the whole q and of the whole k."""
    sizes = (16, 8, 3, 4), (8, 4, 5, 2), (40, 16, 2, 8), (12, 8, 4, 4), (12, 6, 3, 3)
    q, k, m, n = sizes[seed % 5]
    draw = torch.Generator().manual_seed(seed)
    whole = [torch.randn(rows, m, generator=draw) for rows in (q, k, k)]
    parts = zip(*(each.chunk(n) for each in whole), strict=True)
    return [torch.cat(each) for each in parts], q, k


def _keys(shards: list[Tensor], q: int, k: int) -> Tensor:
    n = len(shards)
    return torch.cat([shard[q // n : (q + k) // n] for shard in shards])


gather_keys = Check(
    "gather_keys",
    reference=_keys,
    inputs=_attention,
    wrong={
        "You joined first and cut afterwards: but every shard holds its own q, k and v, so keys "
        "of all shards are never neighbours.": lambda s, q, k: torch.cat(s)[q : q + k],
        "Those are the values: they come after the keys.": (
            lambda s, q, k: torch.cat([t[(q + k) // len(s) :] for t in s])
        ),
        "Those are the queries.": lambda s, q, k: torch.cat([t[: q // len(s)] for t in s]),
        "Those are keys and values together.": (
            lambda s, q, k: torch.cat([t[q // len(s) :] for t in s])
        ),
        "No rows come out. Of every shard, queries take the first q / shards rows, not q, and keys "
        "the next k / shards: give both ends of them.": (
            lambda s, q, k: torch.cat([t[q : q + k] for t in s])
        ),
        "These rows begin too early: the first q / shards of a shard are queries.": (
            lambda s, q, k: torch.cat([t[: k // len(s)] for t in s])
        ),
        "There are not always eight shards: len(shards) says how many.": (
            lambda s, q, k: torch.cat([t[q // 8 : (q + k) // 8] for t in s])
        ),
        "q, k and v are not three equal parts of a shard: q has more rows.": (
            lambda s, q, k: torch.cat([t.chunk(3)[1] for t in s])
        ),
        "Put the pieces below each other, not into a dimension of their own: (k, m) is due.": (
            lambda s, q, k: torch.stack([t[q // len(s) : (q + k) // len(s)] for t in s])
        ),
        "The shards' keys belong below each other (dim 0); you put them side by side.": (
            lambda s, q, k: torch.cat([t[q // len(s) : (q + k) // len(s)] for t in s], dim=1)
        ),
        "That is one shard's keys; the others have more.": (
            lambda s, q, k: s[0][q // len(s) : (q + k) // len(s)]
        ),
        "The shards are in the reverse order.": lambda s, q, k: _keys(s[::-1], q, k),
        "These are the right rows of each shard, but transposed.": lambda s, q, k: _keys(s, q, k).T,
        "The keys begin one row later or earlier: rows are counted from 0.": (
            lambda s, q, k: torch.cat([t[q // len(s) + 1 : (q + k) // len(s) + 1] for t in s])
        ),
    },
    praise="In Scout each of eight shards holds 640 rows of q and 128 each of k and v.",
    tolerance=0.0,
)

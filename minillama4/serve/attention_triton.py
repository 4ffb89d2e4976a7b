"""Attention of one new token over its cache on a GPU, reading what it may see and no more.

    part     SPAN slots of the cache: softmax(q · k) v as if these were all, and their weight
    whole    the parts of a query head, weighed together

A long cache is cut into parts because one token alone would keep a handful of the GPU's processors
busy. The grid covers the whole cache; parts beyond the last slot in use return at once, so that one
CUDA graph serves every length. Source: FlashAttention's running softmax, split over the keys.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

SPAN, BLOCK, LEAST = 256, 64, 16  # slots of a part, slots at a time, rows a tensor core takes
TILE = 64  # parts at a time: of a long text there are hundreds


@triton.jit
def part_kernel(
    q, keys, values, last, out, top, weight, scale,
    KV: tl.constexpr, R: tl.constexpr, D: tl.constexpr, SLOTS: tl.constexpr, PARTS: tl.constexpr,
    SPAN: tl.constexpr, BLOCK: tl.constexpr, HEADS: tl.constexpr,
):  # fmt: skip
    """The R query heads of one KV head of one row, over one part of its slots."""
    head, part = tl.program_id(0).to(tl.int64), tl.program_id(1)
    seen = tl.load(last + head // KV) + 1
    begin = part * SPAN
    if begin < seen:
        r, d = tl.arange(0, HEADS)[:, None], tl.arange(0, D)[None, :]
        query = tl.load(q + (head * R + r) * D + d, mask=r < R, other=0.0)
        most = tl.full([HEADS], float("-inf"), tl.float32)
        total = tl.zeros([HEADS], tl.float32)
        mixed = tl.zeros([HEADS, D], tl.float32)
        for s in range(begin, begin + SPAN, BLOCK):
            slot = s + tl.arange(0, BLOCK)[:, None]
            here = (head * SLOTS + slot) * D + d
            key = tl.load(keys + here, mask=slot < seen, other=0.0)
            value = tl.load(values + here, mask=slot < seen, other=0.0)
            score = tl.dot(query, tl.trans(key)) * scale
            visible = (s + tl.arange(0, BLOCK))[None, :] < seen
            score = tl.where(visible, score, float("-inf"))
            now = tl.maximum(most, tl.max(score, 1))
            fade, e = tl.exp(most - now), tl.exp(score - now[:, None])
            total = total * fade + tl.sum(e, 1)
            mixed = mixed * fade[:, None] + tl.dot(e.to(value.dtype), value)
            most = now
        place = (head * R + tl.arange(0, HEADS)) * PARTS + part
        mine = tl.arange(0, HEADS) < R
        tl.store(top + place, most, mask=mine)
        tl.store(weight + place, total, mask=mine)
        tl.store(out + place[:, None] * D + d, mixed, mask=r < R)


@triton.jit
def whole_kernel(
    out, top, weight, last, y,
    HEADS: tl.constexpr, D: tl.constexpr, PARTS: tl.constexpr, SPAN: tl.constexpr,
    TILE: tl.constexpr,
):  # fmt: skip
    """One query head: its parts, each with the weight that it has in the whole."""
    head = tl.program_id(0).to(tl.int64)
    parts = (tl.load(last + head // HEADS) + SPAN) // SPAN
    d = tl.arange(0, D)
    most, total = tl.load(top + head * PARTS), 0.0  # the first part always holds a slot
    mixed = tl.zeros([TILE, D], tl.float32)
    for first in range(0, parts, TILE):
        part = first + tl.arange(0, TILE)
        here = part < parts
        place = head * PARTS + part
        high = tl.load(top + place, mask=here, other=float("-inf"))
        share = tl.load(weight + place, mask=here, other=0.0)
        each = tl.load(out + place[:, None] * D + d, mask=here[:, None], other=0.0)
        now = tl.maximum(most, tl.max(high))
        fade, fresh = tl.exp(most - now), tl.exp(high - now)
        total = total * fade + tl.sum(share * fresh)
        mixed = mixed * fade + each * fresh[:, None]
        most = now
    tl.store(y + head * D + d, (tl.sum(mixed, 0) / total).to(y.dtype.element_ty))


def attend(q: Tensor, keys: Tensor, values: Tensor, last: Tensor) -> Tensor:
    """q (b, h, d), keys and values (b, k, slots, d), last (b,) int64, the slot of the newest token
    of each row -> (b, h, d). float16 or bfloat16; d a power of two from 16 on."""
    (b, h, d), (kv, slots) = q.shape, keys.shape[1:3]
    parts = triton.cdiv(slots, SPAN)
    out = torch.empty(b, h, parts, d, dtype=torch.float32, device=q.device)
    top, weight = torch.empty(2, b, h, parts, dtype=torch.float32, device=q.device)
    y, r = torch.empty_like(q, memory_format=torch.contiguous_format), h // kv
    sizes = (kv, r, d, slots, parts, SPAN, BLOCK, max(triton.next_power_of_2(r), LEAST))
    part_kernel[(b * kv, parts)](
        q.contiguous(), keys, values, last, out, top, weight, d**-0.5, *sizes, num_warps=4
    )
    whole_kernel[(b * h,)](out, top, weight, last, y, h, d, parts, SPAN, TILE, num_warps=8)
    return y

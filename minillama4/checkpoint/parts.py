"""What every layout comes down to: rectangles of stored tensors, and their places in ours.

A ``Part`` says: these rows and columns of that stored tensor belong there in our matrix. Reading
moves one after the other, a few rows at a time, from a file that is mapped, not read: pages come
when they are touched and are given back when they are copied. So host memory never holds more of
a file than ``BLOCK`` bytes, however large its tensors are.
"""

from __future__ import annotations

import ctypes
import mmap
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from math import prod

import torch
from torch import Tensor

BLOCK = 2**25  # bytes of a file that are held at once

Read = Callable[[int, str, tuple[slice, ...]], Tensor]  # shard, key, what to take of it


@dataclass(frozen=True)
class Stored:
    """A tensor as a file's header describes it."""

    file: str
    shape: tuple[int, ...]
    dtype: torch.dtype | str  # the file's own word for one that torch does not have


@dataclass(frozen=True)
class Part:
    """``take`` of a stored tensor belongs at ``put`` of our matrix (one expert's, or a parameter).

    Leading axes that ours does not have hold one entry. flip: stored the other way round.
    """

    shard: int
    key: str
    take: tuple[slice, ...]
    put: tuple[slice, ...]
    flip: bool = False

    def within(self, first: int, last: int) -> Part | None:
        """What falls into rows ``first`` to ``last`` of our matrix, counted from there."""
        rows = self.put[0]
        a, b = max(rows.start, first), min(rows.stop, last)
        if a >= b:
            return None
        take, axis = list(self.take), -1 if self.flip else -len(self.put)
        start = take[axis].start - rows.start
        take[axis] = slice(a + start, b + start)
        return replace(self, take=tuple(take), put=(slice(a - first, b - first), *self.put[1:]))

    def numbers(self) -> int:
        return prod(s.stop - s.start for s in self.take)

    def copy(self, read: Read, into: Tensor, report: Callable[[int], object]) -> None:
        """Fill this part of our matrix; ``report`` hears of the bytes that were read."""
        target = into[self.put].T if self.flip else into[self.put]
        axis = len(self.take) - target.ndim
        rows, others = self.take[axis], self.take[axis + 1 :]
        step = max(1, BLOCK // (8 * prod(s.stop - s.start for s in others)))
        for at in range(rows.start, rows.stop, step):
            now = slice(at, min(at + step, rows.stop))
            piece = read(self.shard, self.key, (*self.take[:axis], now, *others))
            place = target[at - rows.start : now.stop - rows.start]
            place.copy_(piece.reshape(place.shape))
            forget(piece)
            report(piece.nbytes)


def whole(shape: tuple[int, ...]) -> tuple[slice, ...]:
    return tuple(slice(0, size) for size in shape)


def corner(parts: list[Part]) -> tuple[int, ...]:
    """The shape of the stored tensor that these parts make up together."""
    return tuple(max(ends) for ends in zip(*([s.stop for s in p.take] for p in parts), strict=True))


def forget(piece: Tensor) -> None:
    """Give the pages of a mapped tensor that was copied back to the system; it is read anew from
    its file if it is needed again. Without this, memory would fill with the whole file (it would be
    taken back when others need it, but counts as ours until then)."""
    if sys.platform != "linux" or not piece.is_contiguous():
        return
    page, start = mmap.PAGESIZE, piece.data_ptr()
    first, last = -(-start // page) * page, (start + piece.nbytes) // page * page  # whole pages
    if first < last:
        _madvise()(ctypes.c_void_p(first), ctypes.c_size_t(last - first), mmap.MADV_DONTNEED)


def _madvise():
    return ctypes.CDLL(None).madvise

"""Counting and shuffling under the measures of routing: tables, information, nulls, error bars.

x, y and z are flat int64 tensors with a value for each token: expert, label, and what is given.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor


def numbers(values: Tensor, name: str) -> Tensor:
    """Flat, on the CPU; an error if these are not whole numbers from 0 up."""
    if values.is_floating_point() or values.is_complex():
        raise TypeError(f"{name} must hold whole numbers (int64), not {values.dtype}.")
    values = values.detach().cpu().long().flatten()
    if len(values) and values.min() < 0:
        raise ValueError(f"{name} holds {values.min()}: numbers start at 0.")
    return values


def count(z: Tensor, x: Tensor, y: Tensor, sizes: tuple[int, int, int]) -> Tensor:
    """(z, x, y) int64: how often the three occur together."""
    index = (z * sizes[1] + x) * sizes[2] + y
    return index.bincount(minlength=math.prod(sizes)).reshape(sizes)


def information(table: Tensor) -> float:
    """I(x; y | z) in nats of a table (z, x, y): H(x, z) + H(y, z) - H(z) - H(x, y, z)."""
    plus = _n_log_n(table) + _n_log_n(table.sum((1, 2)))
    return max(0.0, plus - _n_log_n(table.sum(1)) - _n_log_n(table.sum(2))) / table.sum().item()


def _n_log_n(count: Tensor) -> float:
    count = count[count > 0].double()
    return (count * count.log()).sum().item()


Shuffle = Callable[[torch.Generator], Tensor]


def shuffler(y: Tensor, z: Tensor, rows: Tensor | None = None) -> Shuffle:
    """A function that gives y anew each time: among equal z, or, if there are rows, row by row."""
    if rows is None:
        return _among_equals(y, z)
    # a cell: one value of z in one row; without z, a row
    cells, cell = (z * (rows.max() + 1) + rows).unique(return_inverse=True)
    label, kind = (torch.empty_like(cells).scatter_(0, cell, part) for part in (y, z))
    if torch.equal(label[cell], y):  # one label a row
        mixed = _among_equals(label, kind)
        return lambda draw: mixed(draw)[cell]
    if z.any():
        raise ValueError("With given and groups together, each group must have one label.")
    return _place_by_place(y, rows)


def _among_equals(y: Tensor, z: Tensor) -> Shuffle:
    places = z.argsort(stable=True)

    def shuffled(draw):
        chance = torch.rand(len(y), generator=draw, dtype=torch.float64)
        return torch.empty_like(y).scatter_(0, places, y[(z + chance).argsort()])

    return shuffled


def _place_by_place(y: Tensor, rows: Tensor) -> Shuffle:
    order, size = rows.argsort(stable=True), rows.bincount()
    if size.min() != size.max():
        raise ValueError(
            "Rows with several labels each can only be shuffled whole if they have one length, and "
            f"these have {size.min()} to {size.max()} tokens: leave groups out."
        )
    by_row = y[order].view(len(size), -1)

    def shuffled(draw):
        mixed = by_row[torch.randperm(len(size), generator=draw)]
        return torch.empty_like(y).scatter_(0, order, mixed.flatten())

    return shuffled


def jackknife(table: Tensor, tokens: tuple[Tensor, Tensor, Tensor], rows: Tensor) -> float:
    """Standard error of the information, from leaving each row out in turn."""
    if rows.max() < 1:
        raise ValueError("One group alone gives no error bar: at least two are needed.")
    parts = []
    for row in range(int(rows.max()) + 1):
        out = (part[rows == row] for part in tokens)
        parts.append(information(table - count(*out, tuple(table.shape))))
    values = torch.tensor(parts, dtype=torch.float64)
    return math.sqrt((len(parts) - 1) * values.var(correction=0).item())


def stretches(n: int, pieces: int = 50) -> Tensor:
    """(n,) the number of the stretch of text that each token lies in."""
    return torch.arange(n) * min(pieces, n) // n


def quantiles(values: list[float]) -> tuple[float, float]:
    """2.5 and 97.5 per cent."""
    values = torch.tensor(values, dtype=torch.float64)
    return tuple(values.quantile(torch.tensor([0.025, 0.975], dtype=torch.float64)).tolist())

"""Rounding weights in four ways, from 2 to 8 bits: what `int4` keeps, seen as numbers again.

    compressed-tensors, meta   as in ``serve.int4``
    textbook                   scale = amax / (2^(bits-1) - 1): the largest weight is a level
    asymmetric                 levels from the least to the largest weight, zero among them; one
                               zero point for each group, in ``bits`` bits

A weight is (..., out, in), with groups along the input, as there.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..serve.int4 import CONVENTIONS, round_to_grid

WAYS = (*CONVENTIONS, "textbook", "asymmetric")


def round_weight(weight: Tensor, bits: int = 4, group: int = 128, how: str = WAYS[0]) -> Tensor:
    """weight (..., out, in) -> the same shape, as it is read back after rounding."""
    q, scale, zero = _grid(weight, bits, group, how)
    return ((q - zero) * scale).flatten(-2)


def levels_of(weight: Tensor, bits: int = 4, how: str = WAYS[0]) -> Tensor:
    """One group (n,) -> the values that its weights can be rounded to, ascending; (2^bits,), one
    less for the textbook's."""
    _, scale, zero = _grid(weight[None], bits, len(weight), how)
    half = 2 ** (bits - 1)
    first = 0 if how == "asymmetric" else 1 - half if how == "textbook" else -half
    places = torch.arange(first, 2**bits if how == "asymmetric" else half, device=weight.device)
    return ((places - zero) * scale).flatten()


def bits_per_weight(bits: int, group: int, how: str = WAYS[0]) -> float:
    """With its share of the scale (float32 at Meta's, 16 bits elsewhere) and of the zero point."""
    zero = bits if how == "asymmetric" else 0
    return bits + ((32 if how == "meta" else 16) + zero) / group


def _grid(weight: Tensor, bits: int, group: int, how: str) -> tuple[Tensor, Tensor, Tensor | int]:
    """q (..., groups, group), its scale and zero point (..., groups, 1): w ≈ (q - zero) · scale."""
    if how not in WAYS:
        raise ValueError(f"how = {how!r} is none of {', '.join(WAYS)}.")
    if how in CONVENTIONS:
        q, scale = round_to_grid(weight, group, how, bits)
        return q.unflatten(-1, (-1, group)), scale[..., None], 0
    w, top = weight.unflatten(-1, (-1, group)), 2**bits - 1
    if how == "textbook":
        scale = w.abs().amax(-1, keepdim=True).clamp(min=1e-9) / (2 ** (bits - 1) - 1)
        return (w / scale).round(), scale, 0
    low, high = w.amin(-1, keepdim=True).clamp(max=0), w.amax(-1, keepdim=True).clamp(min=0)
    scale = (high - low).clamp(min=1e-9) / top
    zero = (-low / scale).round()
    return ((w / scale).round() + zero).clamp(0, top), scale, zero

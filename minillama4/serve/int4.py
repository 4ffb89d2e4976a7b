"""Int4: sixteen values for a weight, and one scale for each group of 128 weights along the input.

    q = clamp(round(w / scale), -8, 7)          w ≈ q · scale          4 bits + 16 / 128 of a scale

Symmetric: zero is always one of the sixteen. Two published conventions differ in the scale alone:

    "compressed-tensors"   scale = amax / 7.5, in the weight's dtype: ±amax are off by half a step
    "meta"                 scale = amax / 8, in float32: -amax is exact, +amax is cut to 7/8 of it

amax is the largest magnitude of the group. Both rest here in the packing of compressed-tensors,
eight weights in an int32, the first in the lowest bits, each stored as q + 8. A weight is always
(..., out, in), as in a Linear. Source: spec, section 14.
"""

from __future__ import annotations

import torch
from torch import Tensor

GROUP = 128  # weights that share a scale
CONVENTIONS = {"compressed-tensors": 0.5, "meta": 0.0}  # what is taken off the 8 that amax becomes
PER_WORD = 8  # weights in one int32


def round_to_grid(
    weight: Tensor, group: int = GROUP, convention: str = "compressed-tensors", bits: int = 4
) -> tuple[Tensor, Tensor]:
    """weight (..., out, in) -> q int8 of the same shape, scale (..., out, in / group).

    bits from 2 to 8: q lies in [-2^(bits-1), 2^(bits-1) - 1]. ValueError for an unknown convention,
    a group that does not divide ``in``, or weights that are not finite.
    """
    _check(weight, group, convention, bits)
    half = 2 ** (bits - 1)
    w = weight.detach().unflatten(-1, (-1, group))  # rounding has no gradient, nor has its scale
    amax = w.abs().amax(-1, keepdim=True)
    if not amax.is_meta and not amax.isfinite().all():  # so it is if any weight is not
        raise ValueError("A weight is not finite (NaN or infinity): it cannot be quantised.")
    if convention == "meta":
        w = w.float()
        scale = amax.float().clamp(min=1e-6) / half
    else:  # in the weight's own dtype throughout, as the package computes it
        scale = amax / (half - CONVENTIONS[convention])
        scale = torch.where(scale == 0, torch.finfo(w.dtype).eps, scale)
    q = (w / scale).round_().clamp_(-half, half - 1)
    return q.to(torch.int8).flatten(-2), scale.squeeze(-1)


def pack(q: Tensor) -> Tensor:
    """q int8 in [-8, 7], (..., out, in) -> int32 (..., out, in / 8); ``in`` a multiple of 8."""
    if q.shape[-1] % PER_WORD:
        raise ValueError(f"{q.shape[-1]} weights to a row do not fill int32 words of 8 weights.")
    if q.numel() and not q.is_meta and (q.amin() < -8 or q.amax() > 7):
        raise ValueError("A weight is not from -8 to 7: four bits cannot hold it.")
    nibbles = (q.to(torch.int8) + 8).view(torch.uint8)
    pairs = nibbles[..., 0::2] | (nibbles[..., 1::2] << 4)  # bytes: four times as fast as words
    words = pairs.flatten().view(torch.int32)  # little end first, as wherever PyTorch runs
    return words.view(*q.shape[:-1], q.shape[-1] // PER_WORD)


def unpack(packed: Tensor) -> Tensor:
    """int32 (..., out, in / 8) -> q int8 in [-8, 7], (..., out, in): the inverse of ``pack``."""
    nibbles = (packed[..., None] >> _shifts(packed.device)) & 15
    return (nibbles - 8).to(torch.int8).flatten(-2)


def quantize(
    weight: Tensor, group: int = GROUP, convention: str = "compressed-tensors"
) -> tuple[Tensor, Tensor]:
    """weight (..., out, in) -> packed int32 (..., out, in / 8), scale (..., out, in / group)."""
    q, scale = round_to_grid(weight, group, convention)
    return pack(q), scale


def dequantize(packed: Tensor, scale: Tensor, dtype: torch.dtype | None = None) -> Tensor:
    """(..., out, in) in ``dtype`` (None: the scale's): q · scale."""
    dtype = scale.dtype if dtype is None else dtype
    q = unpack(packed).to(dtype)
    return (q.unflatten(-1, (scale.shape[-1], -1)) * scale[..., None].to(dtype)).flatten(-2)


def pack_meta(q: Tensor) -> Tensor:
    """Meta's packing: q (..., out, in) -> int8 (..., out, in / 2), even columns in the low nibble,
    both in two's complement. ``in`` is even."""
    if q.shape[-1] % 2:
        raise ValueError(f"{q.shape[-1]} weights to a row do not fill bytes of 2 weights.")
    low, high = q[..., 0::2], q[..., 1::2]
    return ((high << 4) | (low & 15)).to(torch.int8)


def unpack_meta(packed: Tensor) -> Tensor:
    """int8 (..., out, in / 2) -> q int8 (..., out, in): the inverse of ``pack_meta``."""
    low, high = (packed << 4) >> 4, packed >> 4  # shifts of int8 keep the sign
    return torch.stack([low, high], dim=-1).flatten(-2)


def _shifts(device) -> Tensor:
    return torch.arange(0, 32, 4, dtype=torch.int32, device=device)


def _check(weight: Tensor, group: int, convention: str, bits: int) -> None:
    if convention not in CONVENTIONS:
        raise ValueError(f"convention {convention!r} is none of {', '.join(CONVENTIONS)}.")
    if not (isinstance(bits, int) and 2 <= bits <= 8):
        raise ValueError(f"bits must be a whole number from 2 to 8, not {bits!r}.")
    if weight.ndim < 2 or not weight.is_floating_point():
        shape = f"{weight.dtype} of shape {tuple(weight.shape)}"
        raise ValueError(f"A weight must be floating, (..., out, in), not {shape}.")
    if not (isinstance(group, int) and group > 0) or weight.shape[-1] % group:
        raise ValueError(
            f"Groups of {group!r} do not divide {weight.shape[-1]} inputs: choose one that does."
        )

"""What multiplies packed Int4 weights: torch's kernel on a CPU, Triton's on a GPU, or unpacking.

Few rows are bound by reading the weights, so they are read packed; for many rows the arithmetic
counts, and the weights are unpacked first.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .int4 import PER_WORD, dequantize, unpack


def gpu_kernels(x: Tensor):
    """``int4_triton`` where it can multiply x: on a GPU, in 16 bits, with Triton installed."""
    if not x.is_cuda or x.dtype not in (torch.bfloat16, torch.float16):
        return None
    try:
        from . import int4_triton
    except ImportError:  # Windows
        return None
    return int4_triton


def unpacked(packed: Tensor, scale: Tensor, x: Tensor) -> Tensor:
    """(..., out, in) in x's dtype, to multiply x with."""
    if kernels := gpu_kernels(x):
        return kernels.unpack(packed, scale, x.dtype)
    return dequantize(packed, scale, x.dtype)


class CpuWeight:
    """One weight as torch's CPU kernel reads it: x (n, in), rounded to bfloat16 -> (n, out) bf16.

    The kernel takes scales in bfloat16, so Meta's float32 ones are rounded (by 2^-9 at most).
    """

    def __init__(self, packed: Tensor, scale: Tensor):
        nibbles = unpack(packed).to(torch.int32) + 8
        self.packed = torch.ops.aten._convert_weight_to_int4pack_for_cpu(nibbles, 1)
        steps = scale.to(torch.bfloat16).T  # in / group, out
        self.scales = torch.stack([steps, torch.zeros_like(steps)], dim=-1)  # no zero points
        self.group = nibbles.shape[1] // scale.shape[1]

    def __call__(self, x: Tensor) -> Tensor:
        # with float32 activations this kernel is fifty times slower; strides it does not take
        x = x.to(torch.bfloat16).contiguous()
        return torch.ops.aten._weight_int4pack_mm_for_cpu(x, self.packed, self.group, self.scales)

    @staticmethod
    def can_hold(packed: Tensor, scale: Tensor) -> bool:
        group = packed.shape[-1] * PER_WORD // scale.shape[-1]
        return packed.device.type == "cpu" and packed.shape[-2] % 16 == 0 and group in (32, 64, 128)

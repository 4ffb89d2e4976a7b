"""RMSNorm: x / sqrt(mean(x²) + eps), then a learned weight per channel.

Source: Zhang and Sennrich 2019; spec section 3 for the order of casts.
"""

import torch
from torch import Tensor, nn


def at_least_float32(x: Tensor) -> Tensor:
    """bf16 and fp16 are widened, float32 and float64 stay: for sums that need the digits."""
    return x if x.dtype.itemsize >= 4 else x.float()


def rms_norm(x: Tensor, eps: float) -> Tensor:
    """Divide each vector of the last axis by its root mean square. Shape and dtype stay."""
    wide = at_least_float32(x)
    # mean, not sum: the "L2Norm" that transformers names in its QK-norm is an RMS norm as well
    return (wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + eps)).to(x.dtype)


class RMSNorm(nn.Module):
    """``rms_norm`` times a learned weight; (…, m) -> (…, m)."""

    def __init__(self, width: int, eps: float):
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        return self.weight * rms_norm(x, self.eps)  # cast first, then the weight: Llama's order

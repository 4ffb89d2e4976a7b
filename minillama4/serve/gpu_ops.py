"""The Triton kernels as operations that torch.compile knows by name and does not look into.

Each says what it returns without computing it, so that a step that calls them compiles whole.
"""

from __future__ import annotations

import torch
from torch import Tensor

from . import attention_triton, int4_triton


@torch.library.custom_op("minillama4::int4_linear", mutates_args=())
def int4_linear(x: Tensor, packed: Tensor, scale: Tensor) -> Tensor:
    """x (n, in) -> (n, out); see ``int4_triton.linear``."""
    return int4_triton.linear(x, packed, scale)


@int4_linear.register_fake
def _(x, packed, scale):
    return x.new_empty(len(x), len(packed))


@torch.library.custom_op("minillama4::int4_experts", mutates_args=())
def int4_experts(x: Tensor, score: Tensor, choice: Tensor, weights: list[Tensor]) -> Tensor:
    """x (n, m), score and choice (n,) -> (n, m); weights: the four tensors of ``Int4Experts``, and
    after them the shared expert's six, whose output is then added. See ``int4_triton.experts``."""
    return int4_triton.experts(x, score, choice, *weights[:4], tuple(weights[4:]) or None)


@int4_experts.register_fake
def _(x, score, choice, weights):
    return torch.empty_like(x)


@torch.library.custom_op("minillama4::decode_attention", mutates_args=())
def decode_attention(q: Tensor, keys: Tensor, values: Tensor, last: Tensor) -> Tensor:
    """q (b, h, d), keys and values (b, k, slots, d), last (b,) -> (b, h, d)."""
    return attention_triton.attend(q, keys, values, last)


@decode_attention.register_fake
def _(q, keys, values, last):
    return torch.empty_like(q)

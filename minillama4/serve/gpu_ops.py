"""The Triton kernels as operations that torch.compile knows by name and does not look into.

Each says what it returns without computing it, so that a step that calls them compiles whole. The
parts of a product are added outside, where the compiler joins the sum to what follows.
"""

from __future__ import annotations

import torch
from torch import Tensor

from . import attention_triton, int4_triton


def int4_linear(x: Tensor, packed: Tensor, scale: Tensor) -> Tensor:
    """x (n, in) -> (n, out); see ``int4_triton.linear``."""
    cuts = int4_triton.linear_cuts(len(x), packed, scale)
    return int4_linear_parts(x, packed, scale, cuts).sum(0).to(x.dtype)


@torch.library.custom_op("minillama4::int4_linear_parts", mutates_args=())
def int4_linear_parts(x: Tensor, packed: Tensor, scale: Tensor, parts: int) -> Tensor:
    """x (n, in) -> (parts, n, out) float32."""
    return int4_triton.linear_parts(x, packed, scale, parts)


@int4_linear_parts.register_fake
def _(x, packed, scale, parts):
    return x.new_empty(parts, len(x), len(packed), dtype=torch.float32)


def int4_experts(x: Tensor, score: Tensor, choice: Tensor, weights: list[Tensor]) -> Tensor:
    """x (n, m), score and choice (n,) -> (n, m); weights: the four tensors of ``Int4Experts``, and
    after them the shared expert's six, whose output is then added. See ``int4_triton.experts``."""
    cuts = int4_triton.expert_cuts(len(x), weights)
    return int4_expert_parts(x, score, choice, weights, cuts).sum(0).to(x.dtype)


@torch.library.custom_op("minillama4::int4_expert_parts", mutates_args=())
def int4_expert_parts(
    x: Tensor, score: Tensor, choice: Tensor, weights: list[Tensor], parts: int
) -> Tensor:
    """The same in parts, float32: those of the routed expert, then those of the shared one."""
    return int4_triton.expert_parts(x, score, choice, weights, parts)


@int4_expert_parts.register_fake
def _(x, score, choice, weights, parts):
    experts = 1 + (len(weights) > 4)
    return x.new_empty(experts * parts, *x.shape, dtype=torch.float32)


@torch.library.custom_op("minillama4::decode_attention", mutates_args=())
def decode_attention(q: Tensor, keys: Tensor, values: Tensor, last: Tensor) -> Tensor:
    """q (b, h, d), keys and values (b, k, slots, d), last (b,) -> (b, h, d)."""
    return attention_triton.attend(q, keys, values, last)


@decode_attention.register_fake
def _(q, keys, values, last):
    return torch.empty_like(q)

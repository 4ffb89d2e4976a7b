"""What a ``StaticDecoder`` multiplies with: plain or Int4 weights, on a CPU or through kernels.

Weights that read the same vector are joined into one, so that one product does for three; the
modules they come from then hold views of it, and nothing is stored twice.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..model.moe import MoE
from .decoder import turned
from .int4_modules import Int4Experts, Int4Linear
from .int4_products import CpuWeight

multiply = torch.ops.aten._weight_int4pack_mm_for_cpu


def join(linears: list[nn.Linear | Int4Linear], kernels: bool, copy: bool = False):
    """One product (b, in) -> (b, sum of outs); a list that is partly Int4 is a ValueError.

    copy: plain weights are turned, see ``decoder.turned``.
    """
    if all(isinstance(linear, nn.Linear) for linear in linears):
        weights = [linear.weight for linear in linears]
        return Plain(turned(torch.cat(weights) if copy else _share(weights), copy))
    if not all(isinstance(linear, Int4Linear) for linear in linears):
        raise ValueError("Int4 and plain weights that read the same vector cannot be joined.")
    packed = _share([linear.packed for linear in linears])
    scale = _share([linear.scale for linear in linears])
    if kernels:
        return Kernel(packed, scale)
    if CpuWeight.can_hold(packed, scale):
        return Cpu(packed, scale)
    return Plain(Int4Linear.of(packed, scale).weight().T)


def _share(tensors: list[Tensor]) -> Tensor:
    """All rows in one tensor, of which the given ones become views."""
    if len(tensors) == 1:
        return tensors[0]
    together = torch.cat([t.detach() for t in tensors])
    for tensor, part in zip(tensors, together.split([len(t) for t in tensors]), strict=True):
        tensor.data = part
    return together


class Plain:
    """x (b, in) -> (b, out), weight (in, out)."""

    def __init__(self, weight: Tensor):
        self.weight = weight  # in, out

    def __call__(self, x: Tensor) -> Tensor:
        return x @ self.weight.to(x.dtype)


class Kernel:
    """The same from packed (out, in / 8) and scale (out, in / group), by Triton; x in 16 bits."""

    def __init__(self, packed: Tensor, scale: Tensor):
        self.packed, self.scale = packed, scale

    def __call__(self, x: Tensor) -> Tensor:
        from .gpu_ops import int4_linear

        return int4_linear(x.contiguous(), self.packed, self.scale)


class Cpu(CpuWeight):
    """The same by torch's CPU kernel, which rounds x to bfloat16; in x's dtype again."""

    def __call__(self, x: Tensor) -> Tensor:
        return super().__call__(x).to(x.dtype)


# ---------------------------------------------------------------------- experts
def make_experts(moe: MoE, kernels: bool):
    """(x (b, m), score (b, k), choice (b, k)) -> (b, m), the shared expert added if
    ``adds_shared``."""
    experts = moe.experts
    if isinstance(experts, Int4Experts) and kernels:
        return KernelExperts(moe)
    if isinstance(experts, Int4Experts) and experts.can_run_on_cpu():
        return CpuExperts(experts)
    if isinstance(experts, Int4Experts):
        weights = [experts.weights(e) for e in range(len(experts.down_packed))]
        gate_up, down = (torch.stack([w.T for w in each]) for each in zip(*weights, strict=True))
        return PlainExperts(gate_up, down)
    return PlainExperts(experts.gate_up, experts.down)


class KernelExperts:
    """Both launches of ``int4_triton.experts``; with one expert a token, the shared one in them."""

    def __init__(self, moe: MoE):
        self.adds_shared = moe.router.top_k == 1 and isinstance(moe.shared.gate, Int4Linear)
        self.tensors = list(moe.experts.tensors())
        if self.adds_shared:
            for part in (moe.shared.gate, moe.shared.up, moe.shared.down):
                self.tensors += [part.packed, part.scale]

    def __call__(self, x: Tensor, score: Tensor, choice: Tensor) -> Tensor:
        from .gpu_ops import int4_experts

        k = choice.shape[1]
        pairs = x.repeat_interleave(k, 0) if k > 1 else x.contiguous()
        out = int4_experts(pairs, score.flatten(), choice.flatten(), self.tensors)
        return out.unflatten(0, (-1, k)).sum(1)


class CpuExperts:
    """Expert by expert through torch's CPU kernel; which one, a number read from a tensor."""

    adds_shared = False

    def __init__(self, experts: Int4Experts):
        def stacked(packed: Tensor, scale: Tensor) -> tuple[Tensor, Tensor]:
            made = [CpuWeight(p, s) for p, s in zip(packed, scale, strict=True)]
            self.group = made[0].group
            return torch.stack([w.packed for w in made]), torch.stack([w.scales for w in made])

        self.wide, self.back = (stacked(*pair) for pair in experts.pairs())

    def one(self, x: Tensor, e: int) -> Tensor:
        (wide, wide_scales), (back, back_scales) = self.wide, self.back
        gate, up = multiply(x.bfloat16(), wide[e], self.group, wide_scales[e]).chunk(2, -1)
        h = F.silu(gate.to(x.dtype)) * up.to(x.dtype)
        return multiply(h.bfloat16(), back[e], self.group, back_scales[e]).to(x.dtype)

    def __call__(self, x: Tensor, score: Tensor, choice: Tensor) -> Tensor:
        return one_by_one(self.one, len(self.wide[0]), x, score, choice)


class PlainExperts:
    """The same with weights (e, m, 2f) and (e, f, m)."""

    adds_shared = False

    def __init__(self, gate_up: Tensor, down: Tensor):
        self.gate_up, self.down = gate_up, down

    def one(self, x: Tensor, e: int) -> Tensor:
        gate, up = (x @ self.gate_up[e].to(x.dtype)).chunk(2, -1)
        return (F.silu(gate) * up) @ self.down[e].to(x.dtype)

    def __call__(self, x: Tensor, score: Tensor, choice: Tensor) -> Tensor:
        if x.is_cuda:  # nothing may wait for the CPU: each token's weights are gathered
            gate_up, down = self.gate_up[choice], self.down[choice]  # b k m 2f, b k f m
            scaled = (x[:, None] * score[..., None])[:, :, None]  # b k 1 m
            gate, up = (scaled @ gate_up).chunk(2, -1)
            return ((F.silu(gate) * up) @ down).sum((1, 2))
        return one_by_one(self.one, len(self.down), x, score, choice)


def one_by_one(one, experts: int, x: Tensor, score: Tensor, choice: Tensor) -> Tensor:
    """Each row by each of its experts: on a CPU a view of the weights costs nothing."""
    rows = []
    for i in range(len(x)):
        out = 0
        for j in range(choice.shape[1]):
            e = choice[i, j].item()
            torch._check(e >= 0)  # what a compiler has to be told about a number it does not know
            torch._check(e < experts)
            out = out + one(x[i : i + 1] * score[i, j], e)
        rows.append(out)
    return torch.cat(rows)

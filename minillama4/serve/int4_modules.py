"""Modules that compute from packed Int4 weights, in the places of Linear and Experts.

``quantize.py`` puts them there. Few rows are multiplied with packed weights, by a kernel; for many
they are unpacked first. Source: spec, section 14.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..model.moe import swiglu
from .int4 import GROUP, PER_WORD, dequantize
from .int4_products import CpuWeight, gpu_kernels, unpacked

UNPACKED = 4  # experts unpacked at a time in reading a prompt: 1 GB of Scout's
FEW = 64  # rows up to which a product is bound by reading weights: beyond, they are unpacked first


class Packed(nn.Module):
    """Tensors in Int4, and in ``_cpu`` what a CPU's kernel makes of them when first asked: made
    anew when they are others or were written to, dropped when moved, never copied or pickled."""

    def __init__(self):
        super().__init__()
        self._cpu: dict[int, tuple[tuple, list, object]] = {}

    def laid_out(self, key: int, tensors: tuple[Tensor, ...], make):
        """``make()``, or what it has made of these very tensors before."""
        now = [(t.data_ptr(), None if t.is_inference() else t._version) for t in tensors]
        held, then, made = self._cpu.get(key, ((), None, None))
        if then != now or any(a is not b for a, b in zip(held, tensors, strict=True)):
            made = make()
            self._cpu[key] = tensors, now, made  # held, or another could come to lie there
        return made

    def _apply(self, fn, recurse=True):
        self._cpu = {}
        return super()._apply(fn, recurse)

    def __getstate__(self) -> dict:
        return super().__getstate__() | {"_cpu": {}}


class Int4Linear(Packed):
    """x (..., in) -> (..., out), as a Linear without bias; ``packed`` and ``scale`` as in int4."""

    def __init__(self, in_features: int, out_features: int, group: int = GROUP, dtype=None):
        super().__init__()
        words = torch.empty(out_features, in_features // PER_WORD, dtype=torch.int32)
        self.register_buffer("packed", words)
        self.register_buffer("scale", torch.empty(out_features, in_features // group, dtype=dtype))

    @classmethod
    def of(cls, packed: Tensor, scale: Tensor) -> Int4Linear:
        """Around these two tensors, without a copy."""
        with torch.device("meta"):
            new = cls(packed.shape[1] * PER_WORD, packed.shape[0])
        new.packed, new.scale = packed, scale
        return new

    @property
    def in_features(self) -> int:
        return self.packed.shape[1] * PER_WORD

    @property
    def out_features(self) -> int:
        return self.packed.shape[0]

    def extra_repr(self) -> str:
        group = self.in_features // self.scale.shape[1]
        return f"in_features={self.in_features}, out_features={self.out_features}, group={group}"

    def weight(self, dtype: torch.dtype | None = None) -> Tensor:
        """Unpacked, (out, in); dtype None: the scale's."""
        return dequantize(self.packed, self.scale, dtype)

    def forward(self, x: Tensor) -> Tensor:
        rows = x.numel() // x.shape[-1]
        if not 0 < rows <= FEW or (torch.is_grad_enabled() and x.requires_grad):
            return F.linear(x, unpacked(self.packed, self.scale, x))
        if (kernels := gpu_kernels(x)) and self.out_features % kernels.LEAST == 0:
            out = kernels.linear(x.reshape(rows, -1), self.packed, self.scale)
            return out.view(*x.shape[:-1], -1)
        if x.dtype == torch.bfloat16 and self.can_run_on_cpu():
            return self.on_cpu(x.reshape(rows, -1)).view(*x.shape[:-1], -1)
        return F.linear(x, unpacked(self.packed, self.scale, x))  # exact in x's own precision

    def can_run_on_cpu(self) -> bool:
        return CpuWeight.can_hold(self.packed, self.scale)

    def on_cpu(self, x: Tensor) -> Tensor:
        """x (n, in) of any dtype -> (n, out) bfloat16, through torch's Int4 kernel."""
        return self.cpu_weight()(x)

    def cpu_weight(self) -> CpuWeight:
        """The weights as that kernel reads them, made when first asked for."""
        both = self.packed, self.scale
        return self.laid_out(0, both, lambda: CpuWeight(*both))


class Int4Experts(Packed):
    """The routed experts of a layer; the same call and result as ``model.moe.Experts``.

    gate_up_packed (e, 2f, m/8), gate_up_scale (e, 2f, m/group), gate rows first; down_packed
    (e, m, f/8), down_scale (e, m, f/group). Experts are stored (out, in), unlike in ``Experts``.
    """

    NAMES = ("gate_up_packed", "gate_up_scale", "down_packed", "down_scale")

    def __init__(self, experts: int, width: int, hidden: int, group: int = GROUP, dtype=None):
        super().__init__()
        for name, rows, columns in (("gate_up", 2 * hidden, width), ("down", width, hidden)):
            words = torch.empty(experts, rows, columns // PER_WORD, dtype=torch.int32)
            scale = torch.empty(experts, rows, columns // group, dtype=dtype)
            self.register_buffer(f"{name}_packed", words)
            self.register_buffer(f"{name}_scale", scale)

    @classmethod
    def of(cls, *tensors: Tensor) -> Int4Experts:
        """Around the four tensors of ``NAMES``, in this order, without a copy."""
        e, width, words = tensors[2].shape
        with torch.device("meta"):
            new = cls(e, width, words * PER_WORD)
        for name, tensor in zip(cls.NAMES, tensors, strict=True):
            setattr(new, name, tensor)
        return new

    def extra_repr(self) -> str:
        e, width, words = self.down_packed.shape
        return f"experts={e}, width={width}, hidden={words * PER_WORD}"

    def weights(self, expert: int, dtype: torch.dtype | None = None) -> tuple[Tensor, Tensor]:
        """gate_up (2f, m) and down (m, f) of one expert, unpacked."""
        gate_up = dequantize(self.gate_up_packed[expert], self.gate_up_scale[expert], dtype)
        return gate_up, dequantize(self.down_packed[expert], self.down_scale[expert], dtype)

    def forward(self, tokens: Tensor, score: Tensor, choice: Tensor) -> Tensor:
        """tokens (n, m), score and choice (n, k) -> (n, m)."""
        k = choice.shape[1]
        trains = torch.is_grad_enabled() and (tokens.requires_grad or score.requires_grad)
        few = len(tokens) * k <= FEW and not trains
        if few and (kernels := gpu_kernels(tokens)):
            pairs = tokens.repeat_interleave(k, 0) if k > 1 else tokens
            out = kernels.experts(pairs, score.flatten(), choice.flatten(), *self.tensors())
            return out.unflatten(0, (-1, k)).sum(1) if k > 1 else out
        choice = choice.flatten()
        pair = choice.argsort(stable=True)  # expert by expert
        source = pair // k
        scaled = tokens[source] * score.flatten()[pair, None]
        load = choice.bincount(minlength=len(self.down_packed)).tolist()
        if gpu_kernels(tokens):
            out = self.grouped(scaled, load)
            return torch.zeros_like(tokens).index_add(0, source, out)
        hit = [(e, n) for e, n in enumerate(load) if n]
        parts = zip(scaled.split([n for _, n in hit]), hit, strict=True)
        out = torch.cat([self.one(part, e) for part, (e, _) in parts])
        return torch.zeros_like(tokens).index_add(0, source, out)

    def grouped(self, x: Tensor, load: list[int]) -> Tensor:
        """x (n, m), scaled and sorted by expert, load[e] of them for expert e -> (n, m).

        A prompt hits all experts with many tokens each: a few experts at a time are unpacked, and
        one grouped product serves them.
        """
        outs, begin = [], 0
        for first in range(0, len(load), UNPACKED):
            counts = load[first : first + UNPACKED]
            part = x[begin : begin + sum(counts)]
            begin += sum(counts)
            if not len(part):
                continue
            some = slice(first, first + len(counts))
            gate_up, down = (unpacked(p[some], s[some], x).mT for p, s in self.pairs())
            ends = torch.tensor(counts, device=x.device).cumsum(0, dtype=torch.int32)
            gate, up = F.grouped_mm(part, gate_up, offs=ends).chunk(2, dim=-1)
            outs.append(F.grouped_mm(F.silu(gate) * up, down, offs=ends))
        return torch.cat(outs)

    def one(self, x: Tensor, expert: int) -> Tensor:
        """x (n, m), already scaled, through one expert; (n, m)."""
        quick = len(x) <= FEW and x.dtype == torch.bfloat16 and not x.requires_grad
        if quick and self.can_run_on_cpu():
            return self.on_cpu(x, expert)
        gate_up, down = self.weights(expert, x.dtype)
        return swiglu(x, gate_up.T, down.T)

    def on_cpu(self, x: Tensor, expert: int) -> Tensor:
        """The same through torch's Int4 kernel; (n, m) bfloat16."""
        wide, back = self.cpu_weights(expert)
        gate, up = wide(x).chunk(2, dim=-1)
        return back(F.silu(gate) * up)

    def cpu_weights(self, expert: int) -> tuple[CpuWeight, CpuWeight]:
        """gate_up and down of one expert as that kernel reads them, made when first asked for."""

        def make() -> tuple[CpuWeight, CpuWeight]:
            wide, back = ((t[expert] for t in pair) for pair in self.pairs())
            return CpuWeight(*wide), CpuWeight(*back)

        return self.laid_out(expert, self.tensors(), make)

    def can_run_on_cpu(self) -> bool:
        return all(CpuWeight.can_hold(*pair) for pair in self.pairs())

    def tensors(self) -> tuple[Tensor, ...]:
        return tuple(getattr(self, name) for name in self.NAMES)

    def pairs(self) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
        t = self.tensors()
        return t[:2], t[2:]

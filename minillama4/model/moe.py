"""Mixture of experts as in Llama 4: one shared expert for all, and the router's choice per token.

    score, e = top-k of W_r x
    out      = Shared(x) + sum over chosen e of Expert_e(sigmoid(score_e) · x)

The score multiplies the expert's INPUT. A SwiGLU is not linear, so Expert(g·x) is not g·Expert(x):
scaling the output instead is the most common mistake in public code. No softmax, no renormalising
(with top-1 that would be a constant 1 and give the router no gradient). Source: spec, section 8.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from einops import einsum, rearrange
from torch import Tensor, nn

from ..config import Llama4Config
from .norm import at_least_float32


class SwiGLU(nn.Module):
    """down(silu(gate x) · up x): the shared expert, and the whole FFN of a dense layer."""

    def __init__(self, width: int, hidden: int):
        super().__init__()
        self.gate = nn.Linear(width, hidden, bias=False)
        self.up = nn.Linear(width, hidden, bias=False)
        self.down = nn.Linear(hidden, width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.down(F.silu(self.gate(x)) * self.up(x))


class Router(nn.Module):
    """Picks the experts with the highest logits; their score is the sigmoid of that logit."""

    def __init__(self, width: int, experts: int, top_k: int):
        super().__init__()
        self.top_k = top_k
        self.weight = nn.Parameter(torch.empty(experts, width))

    def logits(self, tokens: Tensor) -> Tensor:
        """(n, m) -> (n, e)."""
        return F.linear(tokens, self.weight)

    def forward(self, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """(n, m) -> score (n, k) in (0, 1), choice (n, k) int64, best first."""
        logit, choice = self.logits(tokens).topk(self.top_k, dim=-1)
        return torch.sigmoid(at_least_float32(logit)).to(tokens.dtype), choice


class Experts(nn.Module):
    """e SwiGLUs in two tensors, input axis first as in the checkpoint: gate_up = [gate | up]."""

    def __init__(self, experts: int, width: int, hidden: int):
        super().__init__()
        self.gate_up = nn.Parameter(torch.empty(experts, width, 2 * hidden))
        self.down = nn.Parameter(torch.empty(experts, hidden, width))

    def forward(self, tokens: Tensor, score: Tensor, choice: Tensor) -> Tensor:
        """tokens (n, m), score and choice (n, k) -> (n, m): each expert reads its tokens once."""
        k = choice.shape[1]
        if len(tokens) == 1 and not torch.is_grad_enabled():  # decoding: nothing to sort
            return self._one(tokens, score, choice[0].tolist())
        choice = choice.flatten()  # n·k pairs of token and expert
        pair = choice.argsort(stable=True)  # expert by expert
        source = pair // k  # the token of each pair
        scaled = tokens[source] * score.flatten()[pair, None]
        load = choice.bincount(minlength=len(self.down))  # tokens per expert
        out = self._grouped(scaled, load) if self._can_group(scaled) else self._split(scaled, load)
        return torch.zeros_like(tokens).index_add(0, source, out.to(tokens.dtype))  # autocast

    def _one(self, token: Tensor, score: Tensor, experts: list[int]) -> Tensor:
        """One token (1, m), score (1, k), by its k experts."""
        outs = [
            swiglu(token * score[:, i : i + 1], self.gate_up[e], self.down[e])
            for i, e in enumerate(experts)
        ]
        return outs[0] if len(outs) == 1 else sum(outs)

    def _can_group(self, x: Tensor) -> bool:
        """grouped_mm wants rows of whole 16 bytes and no float64; a few are faster one by one."""
        hidden, width = self.down.shape[1:]
        whole = all(size * x.element_size() % 16 == 0 for size in (hidden, width))
        if torch.compiler.is_compiling():  # which knows its shapes in bf16 only
            return whole and x.dtype == torch.bfloat16
        return whole and len(x) >= 16 and x.dtype != torch.float64

    def _grouped(self, x: Tensor, load: Tensor) -> Tensor:
        """x sorted by expert: one grouped matrix product for all experts, no padding."""
        ends = load.cumsum(0, dtype=torch.int32)
        gate, up = F.grouped_mm(x, self.gate_up, offs=ends).chunk(2, dim=-1)
        return F.grouped_mm(F.silu(gate) * up, self.down, offs=ends)

    def _split(self, x: Tensor, load: Tensor) -> Tensor:
        """The same, expert by expert, touching only those that have tokens."""
        # unbind: indexing a parameter in a loop would build a full-size gradient per expert
        train = torch.is_grad_enabled()
        gate_up, down = (w.unbind() if train else w for w in (self.gate_up, self.down))
        hit = [(e, n) for e, n in enumerate(load.tolist()) if n]
        parts = zip(x.split([n for _, n in hit]), hit, strict=True)
        return torch.cat([swiglu(part, gate_up[e], down[e]) for part, (e, _) in parts])


class MoE(nn.Module):
    """Shared(x) + Expert_e(sigmoid(score_e) · x), e the experts with the highest scores."""

    def __init__(self, config: Llama4Config):
        super().__init__()
        c = config
        self.router = Router(c.width, c.experts, c.top_k)
        self.experts = Experts(c.experts, c.width, c.expert_hidden)
        self.shared = SwiGLU(c.width, c.expert_hidden)

    def forward(self, x: Tensor) -> Tensor:
        tokens = rearrange(x, "b t m -> (b t) m")
        score, choice = self.router(tokens)  # n k, n k
        routed = self.experts(tokens, score, choice)  # n m
        return rearrange(self.shared(tokens) + routed, "(b t) m -> b t m", b=len(x))


def swiglu(x: Tensor, gate_up: Tensor, down: Tensor) -> Tensor:
    """One expert: x (n, m), gate_up (m, 2f), down (f, m) -> (n, m)."""
    gate, up = (x @ gate_up).chunk(2, dim=-1)
    return (F.silu(gate) * up) @ down


def naive_experts(experts: Experts, tokens: Tensor, score: Tensor, choice: Tensor) -> Tensor:
    """Every expert on every token, as transformers and Meta's reference do: clear, e/k times dear.

    Tokens an expert was not chosen for are scaled by 0, and Expert(0) = 0 as there are no biases.
    """
    scale = tokens.new_zeros(len(tokens), len(experts.down)).scatter(1, choice, score)  # n e
    scaled = einsum(tokens, scale, "n m, n e -> e n m")
    gate, up = einsum(scaled, experts.gate_up, "e n m, e m f -> e n f").chunk(2, dim=-1)
    return einsum(F.silu(gate) * up, experts.down, "e n f, e f m -> n m")


def looped_experts(experts: Experts, tokens: Tensor, score: Tensor, choice: Tensor) -> Tensor:
    """One expert after the other, each on its own tokens."""
    out = torch.zeros_like(tokens)
    weights = zip(experts.gate_up.unbind(), experts.down.unbind(), strict=True)
    for e, (gate_up, down) in enumerate(weights):
        token, slot = (choice == e).nonzero(as_tuple=True)
        if len(token):
            scaled = tokens[token] * score[token, slot, None]
            out = out.index_add(0, token, swiglu(scaled, gate_up, down).to(out.dtype))
    return out

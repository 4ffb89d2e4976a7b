"""One further token for every row: the model's forward again, written flat for decoding.

At one token a row it is not arithmetic that takes the time but the number of operations, each with
its cost of being called. So here q, k and v are one product, gate and up of the shared expert
another, and nothing is moved about. Weights, cache and numbers are the model's own: after every
step the logits equal those of ``model(tokens, cache=cache)``, and the two can take turns.

    decoder = Decoder(model)
    logits = decoder.step(tokens, cache)               # tokens (b,) -> (b, v)

A decoder copies the weights that it joins when it is made; make a new one after training.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..config import Llama4Config
from ..model import KVCache, Llama4
from ..model.attention import Attention, attention_temperature
from ..model.moe import Experts, MoE, Router, SwiGLU
from ..model.norm import RMSNorm, at_least_float32
from ..model.rope import rope_frequencies, rotation
from ..model.transformer import Block

KNOWN = (nn.ModuleList, nn.Embedding, nn.Linear, RMSNorm, Block, Attention, MoE, SwiGLU)
KNOWN += (Router, Experts)


def flat(model: nn.Module) -> bool:
    """Can a ``Decoder`` stand in for this model? Not where any part of it was exchanged, or is
    being watched or steered by hooks: those act on modules, which a decoder does not call."""
    if type(model) is not Llama4:
        return False
    parts = [*model.blocks.modules(), model.embed, model.norm, model.head]
    own = all(type(part) in KNOWN for part in parts)
    hooked = (part._forward_hooks or part._forward_pre_hooks for part in model.modules())
    return own and not any(hooked)


@dataclass(frozen=True)
class Layer:
    """A block's weights as the step wants them; no module is called."""

    rope: bool
    qk_norm: bool
    temperature: bool
    attention_norm: Tensor  # (m,)
    qkv: Tensor  # ((h + 2k)·d, m)
    o: Tensor  # (m, h·d)
    ffn_norm: Tensor  # (m,)
    gate_up: Tensor  # (2f, m), of the shared expert or the dense layer
    down: Tensor  # (m, f)
    moe: MoE | None

    @classmethod
    def of(cls, block: Block) -> Layer:
        a, ffn = block.attention, block.ffn
        mlp = ffn.shared if isinstance(ffn, MoE) else ffn
        return cls(
            *(a.rope, a.qk_norm, a.temperature, block.attention_norm.weight),
            torch.cat([a.q.weight, a.k.weight, a.v.weight]),
            *(a.o.weight, block.ffn_norm.weight),
            torch.cat([mlp.gate.weight, mlp.up.weight]),
            *(mlp.down.weight, ffn if isinstance(ffn, MoE) else None),
        )


class Decoder:
    """Reads one token a row. ValueError for a model that was changed or is watched (``flat``)."""

    @torch.no_grad()
    def __init__(self, model: Llama4):
        if not flat(model):
            raise ValueError(
                "This model has parts that a decoder does not know, or hooks that watch it: "
                "call model(tokens, cache=cache) for each token in place of a Decoder."
            )
        c = self.config = model.config
        self.embed, self.norm, self.head = model.embed.weight, model.norm.weight, model.head.weight
        device = self.embed.device
        self.frequency = rope_frequencies(c.head_width, c.rope_theta, c.rope_scaling, device)
        self.layers = [Layer.of(block) for block in model.blocks]
        wide = at_least_float32(self.embed[:0]).dtype
        self.eps = torch.full((1,), c.norm_eps, dtype=wide, device=device)
        self.mean = {n: torch.full((n, 1), 1 / n, dtype=wide, device=device) for n in widths(c)}

    @torch.inference_mode()
    def step(self, tokens: Tensor, cache: KVCache) -> Tensor:
        """tokens (b,) int64 -> logits (b, v) of what follows; the cache is moved on by one.

        ValueError beyond max_length, or for a cache of another model or number of rows.
        """
        c = self.config
        if cache.config != c:
            raise ValueError("This cache was made for another model: use KVCache(model.config).")
        start = cache.start(len(tokens))
        if max(start) >= c.max_length:
            raise ValueError(f"No room: max_length is {c.max_length:,} tokens.")
        cache.begin()
        position = torch.tensor(start, device=tokens.device)
        turn = rotation(position, self.frequency)[:, None]  # b 1 d/2
        heat = attention_temperature(position, c.floor_scale, c.attn_scale)[:, None, None]
        x = F.embedding(tokens, self.embed)
        for layer, memory in zip(self.layers, cache.layers, strict=True):
            q, k, v = self.project(layer, layer.attention_norm * self.rms_norm(x), turn, heat)
            x = x + F.linear(attend(q, *memory.append(k, v, start)), layer.o)
            x = x + feed(layer, layer.ffn_norm * self.rms_norm(x))
        cache.advance_by_one()
        return F.linear(self.norm * self.rms_norm(x), self.head)

    def rms_norm(self, x: Tensor) -> Tensor:
        """``model.norm.rms_norm`` of rows (n, m), in four operations where it needs seven."""
        wide = at_least_float32(x)
        square = torch.addmm(self.eps, wide * wide, self.mean[x.shape[1]])  # mean(x²) + eps
        return (wide * square.rsqrt()).to(x.dtype)

    def project(self, layer: Layer, x: Tensor, turn: Tensor, heat: Tensor) -> tuple[Tensor, ...]:
        """x (b, m) -> q (b, h, d), k and v (b, k, d), ready to be compared."""
        c = self.config
        b, both = len(x), c.heads + c.kv_heads
        qkv = F.linear(x, layer.qkv).view(b, -1, c.head_width)
        qk, v = qkv[:, :both], qkv[:, both:]
        if layer.rope:
            pairs = at_least_float32(qk).view(b, both, -1, 2)
            qk = torch.view_as_real(torch.view_as_complex(pairs) * turn).view(b, both, -1)
            qk = qk.to(x.dtype)
        if layer.qk_norm:
            qk = self.rms_norm(qk.reshape(b * both, -1)).view_as(qk)
        q, k = qk[:, : c.heads], qk[:, c.heads :]
        return (q * heat).to(x.dtype) if layer.temperature else q, k, v


def widths(config: Llama4Config) -> tuple[int, int]:
    """Of what is normalised: a token's vector, and a head of q or k."""
    return config.width, config.head_width


def attend(q: Tensor, keys: Tensor, values: Tensor, seen: Tensor | None) -> Tensor:
    """q (b, h, d), keys and values (b, k, s, d), seen (b, s) or None for all -> (b, h·d)."""
    b, kv, s, d = keys.shape
    q = q.reshape(b * kv, -1, d)  # the r query heads of a KV head side by side
    score = torch.baddbmm(q.new_empty(1), q, keys.view(b * kv, s, d).mT, beta=0, alpha=d**-0.5)
    if seen is not None:
        score = score.view(b, -1, s).masked_fill(~seen[:, None], float("-inf")).view_as(score)
    return torch.bmm(score.softmax(-1), values.view(b * kv, s, d)).view(b, -1)


def feed(layer: Layer, x: Tensor) -> Tensor:
    """The shared expert and the chosen ones, or the dense layer; x (b, m) -> (b, m)."""
    gate, up = F.linear(x, layer.gate_up).chunk(2, -1)
    out = F.linear(F.silu(gate) * up, layer.down)
    if layer.moe is None:
        return out
    return out + layer.moe.experts.forward(x, *layer.moe.router.forward(x))

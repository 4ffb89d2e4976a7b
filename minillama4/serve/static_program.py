"""One step of decoding as a program in which nothing depends on numbers that the CPU has to know.

Positions are a tensor, a layer's cache has all its slots from the start (a chunk for RoPE layers),
and which of them are seen is computed. ``static.StaticDecoder`` reads prompts and runs this.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from ..model import KVCache, Llama4
from ..model.attention import attention_temperature
from ..model.cache import LayerMemory
from ..model.moe import MoE
from ..model.norm import at_least_float32, rms_norm
from ..model.rope import rope_frequencies
from ..model.transformer import Block
from .decoder import worth_copying
from .static_products import join, make_experts


class StaticLayer:
    """A block's weights, joined where they read the same, and its memory."""

    def __init__(self, block: Block, memory: LayerMemory, kernels: bool, copy: bool):
        a, ffn = block.attention, block.ffn
        self.rope, self.qk_norm, self.temperature = a.rope, a.qk_norm, a.temperature
        self.attention_norm, self.ffn_norm = block.attention_norm.weight, block.ffn_norm.weight
        self.qkv, self.o = join([a.q, a.k, a.v], kernels, copy), join([a.o], kernels, copy)
        self.keys, self.values, self.chunk = memory.keys, memory.values, memory.chunk
        mlp = ffn.shared if isinstance(ffn, MoE) else ffn
        self.router = ffn.router if isinstance(ffn, MoE) else None
        self.experts = make_experts(ffn, kernels) if isinstance(ffn, MoE) else None
        self.adds_shared = self.experts is not None and self.experts.adds_shared
        if not self.adds_shared:
            self.gate_up = join([mlp.gate, mlp.up], kernels, copy)
            self.down = join([mlp.down], kernels, copy)


class StaticProgram:
    """The program of a model for so many rows and so long a cache, and all its memory.

    token and position (b,) are its input and, when it has run, the next step's.
    """

    @torch.no_grad()
    def __init__(self, model: Llama4, rows: int, length: int, kernels: bool):
        c, weight = model.config, model.embed.weight
        self.model, self.config, self.kernels, self.rows = model, c, kernels, rows
        self.length = length
        self.cache = KVCache(c)
        self.cache.reserve(rows, length, weight.dtype, weight.device)
        memories = zip(model.blocks, self.cache.layers, strict=True)
        copy = worth_copying(model)
        self.layers = [StaticLayer(block, memory, kernels, copy) for block, memory in memories]
        self.head = join([model.head], kernels, copy)
        self.frequency = rope_frequencies(c.head_width, c.rope_theta, c.rope_scaling, weight.device)
        self.row = torch.arange(rows, device=weight.device)
        self.token = torch.zeros(rows, dtype=torch.int64, device=weight.device)
        self.position = torch.zeros(rows, dtype=torch.int64, device=weight.device)

    def program(self) -> Tensor:
        """Logits (b, v) for ``self.token`` at ``self.position``, both of which move on."""
        c, position = self.config, self.position
        angle = position[:, None].float() * self.frequency  # b d/2
        turn = angle.cos()[:, None, :, None], angle.sin()[:, None, :, None]
        heat = attention_temperature(position, c.floor_scale, c.attn_scale)[:, None, None]
        x = F.embedding(self.token, self.model.embed.weight)
        written = self.written()
        for layer in self.layers:
            q, k, v = self.before(layer, x, turn, heat)
            x = self.after(layer, x, self.look(layer, q, k, v, written))
        logits = self.end(x)
        self.token.copy_(logits.argmax(-1))
        self.position.add_(1)
        return logits

    def before(self, layer: StaticLayer, x: Tensor, turn, heat: Tensor) -> tuple[Tensor, ...]:
        """x (b, m) -> q (b, h, d), k and v (b, k, d), ready to be compared."""
        c = self.config
        x = layer.attention_norm * rms_norm(x, c.norm_eps)
        qkv = layer.qkv(x).view(self.rows, -1, c.head_width)
        qk, v = qkv[:, : c.heads + c.kv_heads], qkv[:, c.heads + c.kv_heads :]
        if layer.rope:
            qk = rotate(qk, *turn)
        if layer.qk_norm:
            qk = rms_norm(qk, c.norm_eps)
        q, k = qk[:, : c.heads], qk[:, c.heads :]
        return (q * heat).to(x.dtype) if layer.temperature else q, k, v

    def written(self) -> int | None:
        """How many slots of a NoPE layer hold a token after this step. A GPU is not asked: the CPU
        would wait for its answer, and a recorded graph could not."""
        if self.position.is_cuda:
            return None
        count = self.position.max().item() + 1
        torch._check(count >= 1)  # for the compiler, which leaves the number open
        torch._check(count <= self.length)
        return count

    def look(self, layer: StaticLayer, q: Tensor, k: Tensor, v: Tensor, written) -> Tensor:
        """Remember k and v, and attend to all that may be seen; (b, h, d)."""
        slot = self.position if layer.chunk is None else self.position % layer.chunk
        layer.keys[self.row, :, slot], layer.values[self.row, :, slot] = k, v
        if self.kernels and self.config.head_width in (16, 32, 64, 128, 256):
            from .gpu_ops import decode_attention

            return decode_attention(q.contiguous(), layer.keys, layer.values, slot)
        upto = written if layer.chunk is None else None
        return attend_masked(q, layer.keys[:, :, :upto], layer.values[:, :, :upto], slot)

    def after(self, layer: StaticLayer, x: Tensor, seen: Tensor) -> Tensor:
        """What attention has read, then the experts; (b, m)."""
        x = x + layer.o(seen.reshape(self.rows, -1))
        y = layer.ffn_norm * rms_norm(x, self.config.norm_eps)
        if not layer.adds_shared:  # shared expert or dense layer; else the experts' kernel has it
            gate, up = layer.gate_up(y).chunk(2, -1)
            x = x + layer.down(F.silu(gate) * up)
        if layer.experts is not None:
            x = x + layer.experts(y, *layer.router.forward(y))
        return x

    def end(self, x: Tensor) -> Tensor:
        """x (b, m) -> logits (b, v)."""
        return self.head(self.model.norm.weight * rms_norm(x, self.config.norm_eps))


def rotate(x: Tensor, cosine: Tensor, sine: Tensor) -> Tensor:
    """``model.rope.rotate`` without complex numbers, which compilers do not know."""
    a, b = at_least_float32(x).unflatten(-1, (-1, 2)).split(1, -1)
    return torch.cat([a * cosine - b * sine, a * sine + b * cosine], -1).flatten(-2).to(x.dtype)


def attend_masked(q: Tensor, keys: Tensor, values: Tensor, last: Tensor) -> Tensor:
    """q (b, h, d) over slots 0 to ``last`` (b,) of keys and values (b, k, s, d); (b, h, d)."""
    b, kv, s, d = keys.shape
    seen = torch.arange(s, device=q.device) <= last[:, None]
    score = torch.matmul(q.reshape(b, kv, -1, d), keys.mT) * d**-0.5
    score = score.masked_fill(~seen[:, None, None], float("-inf")).softmax(-1)
    return torch.matmul(score, values).reshape(b, -1, d)

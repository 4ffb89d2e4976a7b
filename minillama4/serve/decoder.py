"""One further token for every row: the model's forward again, written flat for decoding.

At one token a row it is not arithmetic that takes the time but the number of operations, each with
its cost of being called. So no module is called here, a residual is added within the product that
makes it, and what depends on the position alone is made for many positions at once. Weights, cache
and numbers are the model's own: after every step the logits equal those of
``model(tokens, cache=cache)``, and the two can take turns.

    decoder = Decoder(model)
    logits = decoder.step(tokens, cache)               # tokens (b,) -> (b, v)

A decoder turns the weights of a small model, that is, copies them; make a new one after training.
Int4 weights are read by torch's CPU kernel, which rounds what it multiplies to bfloat16, as a GPU
does; everything between the products keeps the model's precision.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..model import KVCache, Llama4
from ..model.attention import Attention, attention_temperature
from ..model.moe import Experts, MoE, Router, SwiGLU
from ..model.norm import RMSNorm, at_least_float32
from ..model.rope import rope_frequencies, rotation
from ..model.transformer import Block
from .int4_modules import Int4Experts, Int4Linear

KNOWN = (nn.ModuleList, nn.Embedding, nn.Linear, RMSNorm, Block, Attention, MoE, SwiGLU)
KNOWN += (Router, Experts, Int4Linear, Int4Experts)
FEW = 16  # rows whose experts are called one by one
COPIED = 2**30  # bytes of weights that a decoder turns at most
AHEAD = 256  # positions whose rotations are made at once


def flat(model: nn.Module) -> bool:
    """Can a ``Decoder`` stand in for this model? Not where any part of it was exchanged, or is
    being watched or steered by hooks: those act on modules, which a decoder does not call."""
    if type(model) is not Llama4:
        return False
    parts = [*model.blocks.modules(), model.embed, model.norm, model.head]
    own = all(type(part) in KNOWN for part in parts)
    hooked = (part._forward_hooks or part._forward_pre_hooks for part in model.modules())
    return own and not any(hooked)


def turned(weight: Tensor, copy: bool) -> Tensor:
    """(out, in) -> (in, out): a view, or a copy in that order, which a CPU multiplies with one row
    twice as fast (it then reads all of memory in sequence)."""
    return weight.detach().T.contiguous() if copy else weight.detach().T


def worth_copying(model: Llama4) -> bool:
    """On a CPU, and not if the copies would take more than a gigabyte. Nor in 16 bits, where a CPU
    reads an (out, in) matrix the faster: in bfloat16 by half, in float16 sixty times."""
    weight = model.embed.weight
    if weight.device.type != "cpu" or weight.itemsize < 4:
        return False
    linears = (part.weight for part in model.modules() if isinstance(part, nn.Linear))
    return sum(w.nbytes for w in linears) <= COPIED


class Product:
    """x (b, in) -> (b, out) with a weight (in, out)."""

    def __init__(self, weight: Tensor):
        self.weight = weight

    def __call__(self, x: Tensor) -> Tensor:
        return torch.mm(x, self.weight)

    def add(self, rest: Tensor, x: Tensor) -> Tensor:
        """rest + the product, in one operation."""
        return torch.addmm(rest, x, self.weight)


class Int4Product:
    """The same with packed weights; ``multiply`` gives bfloat16."""

    def __init__(self, multiply: Callable[[Tensor], Tensor]):
        self.multiply = multiply

    def __call__(self, x: Tensor) -> Tensor:
        return self.multiply(x).to(x.dtype)

    def add(self, rest: Tensor, x: Tensor) -> Tensor:
        return rest + self.multiply(x).to(rest.dtype)


def product(linear: nn.Linear | Int4Linear, copy: bool) -> Product | Int4Product:
    if isinstance(linear, nn.Linear):
        return Product(turned(linear.weight, copy))
    return Int4Product(linear.cpu_weight() if linear.can_run_on_cpu() else linear)


def expert_products(experts: Experts | Int4Experts) -> tuple:
    """(gate_up, down) of every expert; () where they are better left to the module."""
    if isinstance(experts, Experts):
        pairs = zip(experts.gate_up.unbind(), experts.down.unbind(), strict=True)
        return tuple((Product(up), Product(down)) for up, down in pairs)
    if not experts.can_run_on_cpu():
        return ()
    return tuple(
        tuple(Int4Product(weight) for weight in experts.cpu_weights(e))
        for e in range(len(experts.down_packed))
    )


@dataclass(frozen=True)
class Layer:
    """A block's weights as the step wants them."""

    rope: bool
    qk_norm: bool
    temperature: bool
    attention_norm: Tensor  # (m,)
    q: Product | Int4Product
    k: Product | Int4Product
    v: Product | Int4Product
    o: Product | Int4Product
    ffn_norm: Tensor  # (m,)
    gate: Product | Int4Product  # these three of the shared expert, or of the dense layer
    up: Product | Int4Product
    down: Product | Int4Product
    moe: MoE | None
    experts: tuple  # gate_up and down of each

    @classmethod
    def of(cls, block: Block, copy: bool) -> Layer:
        a, ffn = block.attention, block.ffn
        mlp = ffn.shared if isinstance(ffn, MoE) else ffn
        return cls(
            *(a.rope, a.qk_norm, a.temperature, block.attention_norm.weight),
            *(product(linear, copy) for linear in (a.q, a.k, a.v, a.o)),
            block.ffn_norm.weight,
            *(product(linear, copy) for linear in (mlp.gate, mlp.up, mlp.down)),
            ffn if isinstance(ffn, MoE) else None,
            expert_products(ffn.experts) if isinstance(ffn, MoE) else (),
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
        c, copy = model.config, worth_copying(model)
        self.config = c
        self.embed, self.norm = model.embed.weight, model.norm.weight
        self.head = product(model.head, copy)
        self.device = self.embed.device
        self.frequency = rope_frequencies(c.head_width, c.rope_theta, c.rope_scaling, self.device)
        self.layers = [Layer.of(block, copy) for block in model.blocks]
        wide = at_least_float32(self.embed[:0]).dtype
        self.eps = torch.full((1,), c.norm_eps, dtype=wide, device=self.device)
        self.mean = {  # of a token's vector, and of a head of q or k
            n: torch.full((n, 1), 1 / n, dtype=wide, device=self.device)
            for n in (c.width, c.head_width)
        }
        self.first, self.turns, self.heats = 0, (), ()  # of AHEAD positions, from ``first`` on

    @torch.inference_mode()
    def step(self, tokens: Tensor, cache: KVCache) -> Tensor:
        """tokens (b,) int64 -> logits (b, v) of what follows; the cache is moved on by one.

        ValueError beyond max_length, or for a cache of another model or number of rows.
        """
        if cache.config != self.config:
            raise ValueError("This cache was made for another model: use KVCache(model.config).")
        start = cache.start(len(tokens))
        if max(start) >= self.config.max_length:
            raise ValueError(f"No room: max_length is {self.config.max_length:,} tokens.")
        cache.begin()
        turn, heat = self.locate(start)
        x = F.embedding(tokens, self.embed)
        for layer, memory in zip(self.layers, cache.layers, strict=True):
            q, k, v = self.project(layer, layer.attention_norm * self.rms_norm(x), turn, heat)
            x = layer.o.add(x, attend(q, *memory.append(k, v, start)))
            x = feed(layer, x, layer.ffn_norm * self.rms_norm(x))
        cache.advance_by_one()
        return self.head(self.norm * self.rms_norm(x))

    def locate(self, start: tuple[int, ...]) -> tuple[Tensor, float | Tensor]:
        """RoPE's rotation (d/2,) and the temperature; (b, 1, ...) where rows stand apart."""
        c = self.config
        if len(set(start)) > 1:
            position = torch.tensor(start, device=self.device)
            heat = attention_temperature(position, c.floor_scale, c.attn_scale)
            return rotation(position, self.frequency)[:, None], heat[:, None, None]
        at = start[0] - self.first
        if not 0 <= at < len(self.turns):
            self.first, at = start[0], 0
            ahead = torch.arange(self.first, self.first + AHEAD, device=self.device)
            self.turns = rotation(ahead, self.frequency)
            self.heats = attention_temperature(ahead, c.floor_scale, c.attn_scale).tolist()
        return self.turns[at], self.heats[at]

    def rms_norm(self, x: Tensor) -> Tensor:
        """``model.norm.rms_norm`` of rows (n, m), in four operations where it needs seven."""
        wide = at_least_float32(x)
        square = torch.addmm(self.eps, wide * wide, self.mean[x.shape[1]])  # mean(x²) + eps
        return (wide * square.rsqrt_()).to(x.dtype)

    def project(self, layer: Layer, x: Tensor, turn: Tensor, heat) -> tuple[Tensor, ...]:
        """x (b, m) -> q (b, h, d), k and v (b, k, d), ready to be compared."""
        c = self.config
        b, both = len(x), c.heads + c.kv_heads
        qk = torch.cat([layer.q(x), layer.k(x)], dim=1)  # what turns q turns k
        if layer.rope:
            pairs = torch.view_as_complex(at_least_float32(qk).view(b, both, -1, 2))
            qk = torch.view_as_real(pairs * turn).to(x.dtype)
        if layer.qk_norm:
            qk = self.rms_norm(qk.reshape(b * both, -1))
        qk = qk.view(b, both, -1)
        q, k, v = qk[:, : c.heads], qk[:, c.heads :], layer.v(x).view(b, c.kv_heads, -1)
        if layer.temperature and not (isinstance(heat, float) and heat == 1):
            q = (q * heat).to(x.dtype)
        return q, k, v


def attend(q: Tensor, keys: Tensor, values: Tensor, seen: Tensor | None) -> Tensor:
    """q (b, h, d), keys and values (b, k, s, d), seen (b, s) or None for all -> (b, h·d)."""
    b, kv, s, d = keys.shape
    q = q.reshape(b * kv, -1, d)  # the r query heads of a KV head side by side
    score = torch.baddbmm(q.new_empty(1), q, keys.view(b * kv, s, d).mT, beta=0, alpha=d**-0.5)
    if seen is not None:
        score = score.view(b, -1, s).masked_fill(~seen[:, None], float("-inf")).view_as(score)
    return torch.bmm(score.softmax(-1), values.view(b * kv, s, d)).view(b, -1)


def feed(layer: Layer, x: Tensor, y: Tensor) -> Tensor:
    """x + the shared expert and the chosen ones, or the dense layer, of y; all (b, m)."""
    out = layer.down.add(x, F.silu(layer.gate(y)).mul_(layer.up(y)))
    if layer.moe is None:
        return out
    score, choice = layer.moe.router.forward(y)
    if len(y) > FEW or not layer.experts:
        return out + layer.moe.experts.forward(y, score, choice)
    for row, chosen in enumerate(choice.tolist()):  # few rows: quicker than sorting them by expert
        one, place = y[row : row + 1], out[row : row + 1]
        for k, e in enumerate(chosen):
            gate_up, down = layer.experts[e]
            gate, up = gate_up(one * score[row, k]).chunk(2, -1)
            place.copy_(down.add(place, F.silu(gate).mul_(up)))
    return out

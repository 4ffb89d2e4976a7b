"""iRoPE attention: RoPE layers see one chunk, every fourth layer has no positions and sees all.

    RoPE layer   q, k turned by position, then RMS-normed (Scout); query p sees key s
                 when s <= p and both lie in the same chunk
    NoPE layer   q times a temperature that grows with the position; query p sees all s <= p

A chunk is not a sliding window: the first token of a chunk sees only itself. Source: spec,
sections 4 to 7; Llama 4's announcement for the name iRoPE.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from ..config import Llama4Config
from .norm import rms_norm
from .rope import rope_frequencies, rotate, rotation


@dataclass(frozen=True)
class Place:
    """Where the tokens of one call stand. Rows begin at slot 0: padding comes after the real.

    start (b,) ints, the position of each row's first token; real (b, t) bool, or None when
    every token is; turn (b or 1, t, d/2), RoPE's rotations; temperature (b or 1, t).
    """

    start: tuple[int, ...]
    positions: Tensor  # (b or 1, t)
    turn: Tensor
    temperature: Tensor
    real: Tensor | None = None

    @property
    def uniform(self) -> bool:
        """Do all rows stand at the same position, with no padding among them?"""
        return self.real is None and len(set(self.start)) == 1


def locate(
    config: Llama4Config, start: tuple[int, ...], length: int, real: Tensor | None, device=None
) -> Place:
    """The ``Place`` of ``length`` further tokens in rows that already hold ``start`` tokens."""
    rows = start[:1] if len(set(start)) == 1 else start  # one row stands for all where it can
    first = torch.tensor(rows, device=device)[:, None]
    positions = first + torch.arange(length, device=device)
    frequency = rope_frequencies(config.head_width, config.rope_theta, config.rope_scaling, device)
    temperature = attention_temperature(positions, config.floor_scale, config.attn_scale)
    return Place(start, positions, rotation(positions, frequency), temperature, real)


def attention_temperature(positions: Tensor, floor_scale: int, attn_scale: float) -> Tensor:
    """s(p) = 1 + attn_scale · ln(floor((p + 1) / floor_scale) + 1); exactly 1 in short contexts."""
    steps = torch.floor((positions.float() + 1) / floor_scale)
    return 1 + attn_scale * torch.log1p(steps)


def attend_causal(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Every query sees itself and all before it: (b, h, t, d), k and v (b, k, t, d)."""
    # no mask tensor: is_causal lets the kernel skip what is hidden, in memory linear in length
    return F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)


def attend_chunks(q: Tensor, k: Tensor, v: Tensor, chunk: int) -> Tensor:
    """Causal within each chunk, at a cost linear in length: chunks become rows of the batch."""
    b, t = q.shape[0], q.shape[2]
    if t <= chunk:
        return attend_causal(q, k, v)
    whole = t // chunk * chunk
    folded = [rearrange(x[:, :, :whole], "b h (n c) d -> (b n) h c d", c=chunk) for x in (q, k, v)]
    out = rearrange(attend_causal(*folded), "(b n) h c d -> b h (n c) d", b=b)
    if whole == t:
        return out
    rest = attend_causal(*(x[:, :, whole:] for x in (q, k, v)))
    return torch.cat([out, rest], dim=2)


class Attention(nn.Module):
    """Grouped-query attention of one layer, RoPE or NoPE by its number; (b, t, m) -> (b, t, m)."""

    def __init__(self, config: Llama4Config, layer: int):
        super().__init__()
        c = config
        self.head_width, self.eps = c.head_width, c.norm_eps
        self.rope = layer not in c.nope_layers
        self.chunk = c.chunk if self.rope else None
        self.qk_norm = c.qk_norm and self.rope
        self.temperature = c.temperature and not self.rope
        self.q = nn.Linear(c.width, c.heads * c.head_width, bias=False)
        self.k = nn.Linear(c.width, c.kv_heads * c.head_width, bias=False)
        self.v = nn.Linear(c.width, c.kv_heads * c.head_width, bias=False)
        self.o = nn.Linear(c.heads * c.head_width, c.width, bias=False)

    def project(self, x: Tensor, place: Place) -> tuple[Tensor, Tensor, Tensor]:
        """q (b, h, t, d), k and v (b, k, t, d), ready to be compared."""
        q, k, v = (
            rearrange(layer(x), "b t (h d) -> b t h d", d=self.head_width)
            for layer in (self.q, self.k, self.v)
        )
        if self.rope:
            q, k = rotate(q, place.turn), rotate(k, place.turn)
        if self.qk_norm:  # over each head's channels alone, no learned weight
            q, k = rms_norm(q, self.eps), rms_norm(k, self.eps)
        if self.temperature:  # float32 times bf16 is float32: cast back
            q = (q * place.temperature[..., None, None]).to(q.dtype)
        return tuple(rearrange(u, "b t h d -> b h t d") for u in (q, k, v))

    def forward(self, x: Tensor, place: Place, memory=None) -> Tensor:
        """``memory`` is this layer's part of a KVCache, which then attends in its own way."""
        q, k, v = self.project(x, place)
        if memory is not None:
            out = memory.attend(q, k, v, place)
        elif self.chunk is None:
            out = attend_causal(q, k, v)
        else:
            out = attend_chunks(q, k, v, self.chunk)
        return self.o(rearrange(out, "b h t d -> b t (h d)"))

"""The eye of Llama 4: a tile of 336 × 336 pixels becomes 144 vectors of the text model's width.

    tile -> 24 × 24 patches -> 34 bidirectional blocks with 2-D RoPE -> pixel shuffle (2 × 2 -> 1)
         -> adapter (two linears, GELU after each) -> projection

Letters: i tiles, p patches (and the class token, last), w the encoder's width. Source: spec,
section 11.
"""

import torch
import torch.nn.functional as F
from einops import rearrange, repeat
from torch import Tensor, nn

from ..config import VisionConfig
from .rope import rotate, vision_rotation


class VisionAttention(nn.Module):
    """Every patch sees every patch; biases everywhere, positions by 2-D RoPE."""

    def __init__(self, width: int, heads: int):
        super().__init__()
        self.heads = heads
        self.q, self.k, self.v, self.o = (nn.Linear(width, width) for _ in range(4))

    def forward(self, x: Tensor, turn: Tensor) -> Tensor:
        q, k, v = (
            rearrange(layer(x), "i p (h d) -> i p h d", h=self.heads)
            for layer in (self.q, self.k, self.v)
        )
        q, k = rotate(q, turn), rotate(k, turn)
        q, k, v = (rearrange(u, "i p h d -> i h p d") for u in (q, k, v))
        out = F.scaled_dot_product_attention(q, k, v)
        return self.o(rearrange(out, "i h p d -> i p (h d)"))


class VisionBlock(nn.Module):
    """x + Attention(LayerNorm(x)), then x + MLP(LayerNorm(x)); GELU is the exact one (erf)."""

    def __init__(self, config: VisionConfig):
        super().__init__()
        w, eps = config.width, config.norm_eps
        self.attention_norm = nn.LayerNorm(w, eps=eps)
        self.attention = VisionAttention(w, config.heads)
        self.mlp_norm = nn.LayerNorm(w, eps=eps)
        self.up = nn.Linear(w, config.hidden)
        self.down = nn.Linear(config.hidden, w)

    def forward(self, x: Tensor, turn: Tensor) -> Tensor:
        x = x + self.attention(self.attention_norm(x), turn)
        return x + self.down(F.gelu(self.up(self.mlp_norm(x))))


class Vision(nn.Module):
    """Encoder, pixel shuffle, adapter and projection; tiles (i, c, H, W) -> (i, p, m)."""

    def __init__(self, config: VisionConfig, text_width: int):
        super().__init__()
        self.config, c = config, config
        w = c.width
        self.patches = nn.Linear(c.channels * c.patch_size**2, w, bias=False)
        self.class_token = nn.Parameter(torch.empty(w))
        self.positions = nn.Parameter(torch.empty(c.grid**2 + 1, w))
        self.norm_before = nn.LayerNorm(w, eps=c.norm_eps)
        self.blocks = nn.ModuleList(VisionBlock(c) for _ in range(c.layers))
        self.norm_after = nn.LayerNorm(w, eps=c.norm_eps)
        self.adapter_in = nn.Linear(w * c.shuffle**2, c.adapter, bias=False)
        self.adapter_out = nn.Linear(c.adapter, c.adapter, bias=False)
        self.projection = nn.Linear(c.adapter, text_width, bias=False)

    def forward(self, tiles: Tensor) -> Tensor:
        patches = self.encode(tiles)  # i p w
        merged = pixel_shuffle(patches, self.config.shuffle)
        adapted = F.gelu(self.adapter_out(F.gelu(self.adapter_in(merged))))  # GELU twice
        return self.projection(adapted)

    def encode(self, tiles: Tensor) -> Tensor:
        """Tiles -> one vector per patch, (i, grid², w), before shuffling."""
        size = self.config.patch_size
        pixels = rearrange(tiles, "i c (h y) (w x) -> i (h w) (c y x)", y=size, x=size)
        x = self.patches(pixels.to(self.patches.weight.dtype))
        last = repeat(self.class_token, "w -> i 1 w", i=len(x))
        x = self.norm_before(torch.cat([x, last], dim=1) + self.positions)
        turn = vision_rotation(self.config, x.device)
        for block in self.blocks:
            x = block(x, turn)
        return self.norm_after(x)[:, :-1]


def pixel_shuffle(patches: Tensor, side: int) -> Tensor:
    """Merge side × side neighbours into one vector: (i, p, w) -> (i, p / side², w · side²)."""
    rows = int(patches.shape[1] ** 0.5)
    pattern = "i (h y w x) c -> i (h w) (y x c)"  # row, column, channel
    return rearrange(patches, pattern, y=side, x=side, h=rows // side, w=rows // side)

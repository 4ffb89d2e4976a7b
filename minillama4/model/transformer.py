"""Llama 4: embed, blocks, norm, head; image vectors take the places of patch tokens.

    h      = x + Attention(RMSNorm(x))
    out    = h + FFN(RMSNorm(h))            FFN: MoE, or one SwiGLU in a dense layer
    logits = head(RMSNorm(out_last))

Source: spec, section 3.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ..config import Llama4Config
from .attention import Attention, Place, locate
from .cache import KVCache
from .moe import MoE, SwiGLU
from .norm import RMSNorm
from .vision import Vision


class Block(nn.Module):
    """One layer; (b, t, m) -> (b, t, m)."""

    def __init__(self, config: Llama4Config, layer: int):
        super().__init__()
        c = config
        self.attention_norm = RMSNorm(c.width, c.norm_eps)
        self.attention = Attention(c, layer)
        self.ffn_norm = RMSNorm(c.width, c.norm_eps)
        self.ffn = MoE(c) if layer in c.moe_layers else SwiGLU(c.width, c.dense_hidden)

    def forward(self, x: Tensor, place: Place, memory=None) -> Tensor:
        x = x + self.attention(self.attention_norm(x), place, memory)
        return x + self.ffn(self.ffn_norm(x))


class Llama4(nn.Module):
    """The whole model, text and vision. Weights are random until ``ml4.load`` brings real ones."""

    def __init__(self, config: Llama4Config):
        super().__init__()
        self.config, c = config, config
        self.embed = nn.Embedding(c.vocab_size, c.width)
        self.blocks = nn.ModuleList(Block(c, layer) for layer in range(c.layers))
        self.norm = RMSNorm(c.width, c.norm_eps)
        self.head = nn.Linear(c.width, c.vocab_size, bias=False)
        self.vision = None if c.vision is None else Vision(c.vision, c.width)
        self.reset_parameters()
        if c.tied:
            self.head.weight = self.embed.weight

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Matrices normal with deviation 0.02, biases 0, norm weights 1."""
        for name, parameter in self.named_parameters():
            if "norm" in name:
                nn.init.constant_(parameter, float(name.endswith("weight")))
            elif name.endswith("bias"):
                nn.init.zeros_(parameter)
            else:
                nn.init.normal_(parameter, std=0.02)

    def forward(
        self,
        tokens: Tensor,
        images: Tensor | None = None,
        cache: KVCache | None = None,
        attention_mask: Tensor | None = None,
        last_only: bool = False,
    ) -> Tensor:
        """tokens (b, t) int64 -> logits (b, t, v), in the model's dtype.

        images (i, 3, H, W): tiles, whose vectors replace the patch tokens in reading order;
        patch tokens without images are read as text.
        cache: continues where it stands, and is moved on; no gradients are kept then.
        attention_mask (b, t) bool: False at padding, which may stand on either side; logits
        there mean nothing. last_only: logits of each row's last real token alone, (b, 1, v), which
        is all that writing on needs; over a long text the others can outweigh the model.
        ValueError or IndexError if shapes, ids or counts do not fit.
        """
        start = self._check(tokens, images, cache, attention_mask)
        with torch.set_grad_enabled(torch.is_grad_enabled() and cache is None):
            x = self.embed(tokens)
            if images is not None:
                x = self._fuse(x, tokens, images)
            x, real, back = _padding_last(x, attention_mask)
            place = locate(self.config, start, tokens.shape[1], real, tokens.device)
            memories = [None] * self.config.layers if cache is None else cache.layers
            if cache is not None:
                cache.begin()
            for block, memory in zip(self.blocks, memories, strict=True):
                x = block(x, place, memory)
            if cache is not None:
                cache.advance(place, tokens.shape[1])
            x = x if back is None else _take(x, back)
            x = _last(x, attention_mask) if last_only else x
            return self.head(self.norm(x))

    def _fuse(self, x: Tensor, tokens: Tensor, images: Tensor) -> Tensor:
        """Early fusion: image vectors stand where patch tokens were; all else is as for text."""
        where = (tokens == self.config.patch_token)[..., None]
        return x.masked_scatter(where, self.vision(images).to(x.dtype))

    def _check(self, tokens, images, cache, mask) -> tuple[int, ...]:
        """The start of each row, or an error that says what is wrong and what to do."""
        c = self.config
        for name, given in (("tokens", tokens), ("images", images), ("attention_mask", mask)):
            if not (isinstance(given, Tensor) or (given is None and name != "tokens")):
                raise TypeError(f"{name} must be a torch.Tensor, not {type(given).__name__}.")
        if tokens.ndim != 2 or tokens.numel() == 0:
            shape = tuple(tokens.shape)
            raise ValueError(f"tokens must have shape (batch, time), both above 0, not {shape}.")
        if tokens.dtype not in (torch.int64, torch.int32):
            raise ValueError(f"tokens must be int64 token ids, not {tokens.dtype}.")
        if mask is not None and (mask.shape != tokens.shape or mask.dtype != torch.bool):
            raise ValueError(
                f"attention_mask must be bool of the tokens' shape {tuple(tokens.shape)}, not "
                f"{mask.dtype} of shape {tuple(mask.shape)}: True where a token is real."
            )
        if cache is not None and getattr(cache, "config", None) != c:
            raise ValueError("This cache was made for another model: use KVCache(model.config).")
        start = (0,) * len(tokens) if cache is None else cache.start(len(tokens))
        new = [tokens.shape[1]] * len(tokens) if mask is None else mask.sum(1).tolist()
        longest = max(s + n for s, n in zip(start, new, strict=True))
        if longest > c.max_length:
            raise ValueError(
                f"The sequence would grow to {longest:,} tokens, but this model's max_length is "
                f"{c.max_length:,}: give fewer tokens."
            )
        self._check_values(tokens, images)
        return start

    def _check_values(self, tokens: Tensor, images: Tensor | None) -> None:
        c = self.config
        if tokens.is_meta or (tokens.is_cuda and torch.cuda.is_current_stream_capturing()):
            return  # reading values would stop a CUDA graph
        low, high = tokens.aminmax()
        if low < 0 or high >= c.vocab_size:
            wrong = int(low if low < 0 else high)
            raise IndexError(
                f"Token id {wrong} is outside this model's vocabulary of {c.vocab_size:,}: was the "
                "text encoded with another model's tokenizer?"
            )
        if images is None:
            return
        if c.vision is None:
            raise ValueError("This model reads text only (its config has no vision).")
        v = c.vision
        tile = (v.channels, v.image_size, v.image_size)
        if images.ndim != 4 or tuple(images.shape[1:]) != tile:
            raise ValueError(f"images must have shape (tiles, {tile}), not {tuple(images.shape)}.")
        if not images.is_floating_point():
            raise ValueError(f"images must hold numbers from -1 to 1, not {images.dtype}.")
        places, patches = int((tokens == c.patch_token).sum()), len(images) * v.tokens_per_tile
        if places != patches:
            raise ValueError(
                f"{len(images)} tiles make {patches} vectors, but the tokens hold {places} patch "
                f"tokens (id {c.patch_token}): {v.tokens_per_tile} are needed for each tile."
            )


def _padding_last(x: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """Move each row's real tokens to its front, so that slot and position are the same thing.

    Causal attention then never looks at padding, and needs no mask for it. Returns x, which of
    its tokens are real, and the order that undoes the move.
    """
    if mask is None or bool(mask.all()):
        return x, None, None
    order = (~mask).to(torch.uint8).argsort(dim=1, stable=True)
    return _take(x, order), mask.gather(1, order), order.argsort(dim=1)


def _last(x: Tensor, mask: Tensor | None) -> Tensor:
    """Each row's last real token, (b, 1, m)."""
    if mask is None:
        return x[:, -1:]
    padding = mask.flip(1).int().argmax(1)  # behind the last real token of each row
    return _take(x, (x.shape[1] - 1 - padding)[:, None])


def _take(x: Tensor, order: Tensor) -> Tensor:
    return x.gather(1, order[..., None].expand_as(x))

"""Attention as Llama 4 does not have it: controls for what interleaving and chunks are worth.

    config.replace(**WAYS["RoPE everywhere"])       a model of another kind, same sizes
    sliding_window(model)                           the last ``chunk`` tokens in place of chunks

A window has no borders: a token always sees its ``chunk - 1`` predecessors, and what it reads has
read theirs, so the past still reaches it layer by layer. Gemma and Mistral have windows.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor

from ..model import Llama4
from ..model.attention import Attention, Place

# fields of Llama4Config by what people call the result; nope_at must name the layers of the model
WAYS = {
    "RoPE everywhere": dict(nope_at=(), chunk=None),
    "chunks alone": dict(nope_at=()),
    "iRoPE": dict(),
}


def nope_everywhere(layers: int) -> dict:
    """The config's fields for a model that knows no positions at all."""
    return dict(nope_at=tuple(range(layers)))


class WindowAttention(Attention):
    """A RoPE layer whose queries see the last ``chunk`` tokens, themselves included. No cache."""

    def forward(self, x: Tensor, place: Place, memory=None) -> Tensor:
        if memory is not None:
            raise NotImplementedError("A sliding window is a control here, and has no cache.")
        q, k, v = self.project(x, place)
        t = torch.arange(x.shape[1], device=x.device)
        back = rearrange(t, "t -> t 1") - t  # how far behind the query each key lies
        seen = (back >= 0) & (back < self.chunk)
        out = F.scaled_dot_product_attention(q, k, v, attn_mask=seen, enable_gqa=True)
        return self.o(rearrange(out, "b h t d -> b t (h d)"))


def sliding_window(model: Llama4) -> Llama4:
    """Give ``model``'s RoPE layers a window in place of chunks, in place; its weights stay.

    ValueError for a model without chunks: there is no width for the window then.
    """
    if model.config.chunk is None:
        raise ValueError("This model has no chunk, and so no width for a window: set chunk.")
    for layer, block in enumerate(model.blocks):
        if block.attention.rope:
            window = WindowAttention(model.config, layer).to(block.attention.q.weight)
            window.load_state_dict(block.attention.state_dict())
            block.attention = window
    return model

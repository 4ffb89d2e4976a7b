"""Who can see whom in interleaved attention: masks, receptive fields, computed and measured.

    one layer       RoPE: query t sees key s if s <= t and both lie in the same chunk
                    NoPE: query t sees every s <= t
    several layers  t depends on s after layer l if t sees, in layer l, some u that depended on s
                    after layer l - 1: a product of boolean matrices

A chunk is not a sliding window: the first token of a chunk sees only itself. ``window=True`` asks
for that control in place of chunks: the last ``chunk`` tokens, the query's own among them.
Source: spec, section 6; a model of Gemma's or Mistral's kind for the window.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence

import torch
from einops import rearrange, repeat
from torch import Tensor

from ..config import Llama4Config
from ..count import kv_entries as kv_entries  # counted there, for serving as well
from .trace import trace

AT_ONCE = 16_384  # tokens in one batch of perturbed texts
FELT = 1e-11  # a change of hidden states below this part of their size is rounding


def visible(config: Llama4Config, layer: int, length: int, window: bool = False) -> Tensor:
    """(t, s) bool: does query t see key s in this layer? ValueError for a layer there is not."""
    t = _positions(config, length, layer)
    query, key = rearrange(t, "t -> t 1"), rearrange(t, "s -> 1 s")
    seen = key <= query
    if layer in config.nope_layers or config.chunk is None:
        return seen
    near = query - key < config.chunk if window else query // config.chunk == key // config.chunk
    return seen & near


def receptive_field(config: Llama4Config, length: int, window: bool = False) -> Tensor:
    """(layers + 1, t, s) bool: after l layers, can token t's hidden state depend on token s?

    [0] is the identity. A row [l, t] is what t draws from, a column [l, :, s] whom s reaches.
    """
    field = [torch.eye(length, dtype=torch.bool)]
    for layer in range(config.layers):
        seen = visible(config, layer, length, window)
        field.append((seen.float() @ field[-1].float()) > 0)  # the residual is t's view of itself
    return torch.stack(field)


def drawn_from(config: Llama4Config, length: int, token: int, window: bool = False) -> Tensor:
    """(layers + 1, t) bool: whose state after l layers the last state of ``token`` depends on.

    The last row holds the token alone, row 0 the inputs it draws from: the way down.
    """
    _within(token, length)
    rows = [torch.arange(length) == token]
    for layer in reversed(range(config.layers)):
        seen = visible(config, layer, length, window)
        rows.append(seen[rows[-1]].any(dim=0))
    return torch.stack(rows[::-1])


@torch.no_grad()
def measured_field(model, tokens: Tensor, disturbed: Sequence[int] | None = None) -> Tensor:
    """(t,) tokens -> (layers + 1, t, s) bool: what ``receptive_field`` says, found by trying.

    The embedding of each token s is disturbed in turn, in float64; [l, t, s] tells whether the
    hidden state of t after l layers has changed. disturbed: only these tokens, s is then their
    number in this list. ``model`` stays as it is: a copy is measured. Time grows as t·s.
    """
    if tokens.ndim != 1:
        raise ValueError(f"tokens has shape {tuple(tokens.shape)}: one text, (t,), is measured.")
    twin = copy.deepcopy(model).double().eval()
    tokens = tokens.to(twin.embed.weight.device)
    length, calm = len(tokens), _states(twin, tokens[None], None)  # l 1 t m
    size = calm.square().mean(dim=(1, 2, 3), keepdim=True).sqrt()
    parts = []
    wanted = torch.arange(length) if disturbed is None else torch.tensor(list(disturbed))
    for some in wanted.split(max(1, AT_ONCE // length)):
        rows = repeat(tokens, "t -> b t", b=len(some))
        change = (_states(twin, rows, some) - calm).abs()  # l b t m
        parts.append((change > FELT * size).any(dim=-1))
    return rearrange(torch.cat(parts, dim=1), "l s t -> l t s")


def seen_before(config: Llama4Config, layer: int, length: int, window: bool = False) -> Tensor:
    """(t,) int64: how many earlier tokens each position sees directly in this layer.

    In a chunk t mod chunk, in a window at most chunk - 1, in a NoPE layer all t.
    """
    t = _positions(config, length, layer)
    if layer in config.nope_layers or config.chunk is None:
        return t
    return t.clamp(max=config.chunk - 1) if window else t % config.chunk


def _states(model, tokens: Tensor, disturbed: Tensor | None) -> Tensor:
    """(b, t) -> (layers + 1, b, t, m); in row i the token disturbed[i] enters as another vector."""

    def disturb(block, inputs):
        if disturbed is None:
            return inputs
        x = inputs[0].clone()
        noise = torch.randn(x.shape[-1], generator=torch.Generator().manual_seed(0)).to(x)
        x[torch.arange(len(x)), disturbed] += noise * x.square().mean().sqrt()
        return x, *inputs[1:]

    hook = model.blocks[0].register_forward_pre_hook(disturb)
    try:
        with trace(model, hidden=True) as seen:
            model(tokens)
    finally:
        hook.remove()
    return torch.stack([seen.embedding, *(seen.hidden[at] for at in seen.hidden)])


def _positions(config: Llama4Config, length: int, layer: int) -> Tensor:
    if not 0 <= layer < config.layers:
        raise ValueError(f"There is no layer {layer}: this model has 0 to {config.layers - 1}.")
    if length < 1:
        raise ValueError(f"A text of {length} tokens has nobody to see: length must be above 0.")
    return torch.arange(length)


def _within(token: int, length: int) -> None:
    if not 0 <= token < length:
        raise ValueError(f"There is no token {token} among {length}: they are 0 to {length - 1}.")

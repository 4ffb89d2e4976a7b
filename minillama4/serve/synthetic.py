"""A model of any size with random Int4 weights, made where it will run: to measure its speed.

What a step reads and computes does not depend on what the weights are, but for one thing: how
tokens spread over the experts. Random routers spread them evenly; ``skew`` makes some experts the
favourites of all layers.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from tqdm.auto import tqdm

from ..config import Llama4Config
from ..model import Llama4
from .int4 import GROUP
from .int4_modules import Int4Experts, Int4Linear
from .quantize import quantize_model

DEVIATION = 0.02  # of all weights; a nibble as drawn here has 4.2
NIBBLE = 4.18


@torch.no_grad()
def synthetic_int4(
    config: Llama4Config,
    what: str = "blocks",
    device="cpu",
    dtype: torch.dtype = torch.bfloat16,
    skew: float = 0.0,
    seed: int = 0,
    group: int = GROUP,
) -> Llama4:
    """``config``'s model, its weights drawn on ``device``: no more memory than it will have.

    what: as for ``quantize_model``. skew 0 is even routing; above, router rows of expert number i
    are shrunk by (i + 1)^-skew, so that low numbers win more often.
    """
    if skew < 0:
        raise ValueError(f"skew must be 0 or more, not {skew}.")
    with torch.device("meta"):
        model = quantize_model(Llama4(config), what, group).to(dtype)
    draw = torch.Generator(device).manual_seed(seed)
    for part in tqdm(list(model.modules()), desc="drawing weights", leave=False):
        for name, tensor in [*part.named_parameters(recurse=False), *_buffers(part)]:
            new = torch.empty_like(tensor, device=device)
            _fill(new, name, draw)
            is_parameter = isinstance(tensor, nn.Parameter)
            setattr(part, name, nn.Parameter(new, requires_grad=False) if is_parameter else new)
    if config.tied:
        model.head.weight = model.embed.weight
    for block in model.blocks:
        if hasattr(block.ffn, "router"):
            rank = torch.arange(1, config.experts + 1, device=device)[:, None]
            block.ffn.router.weight.mul_((rank**-skew).to(dtype))
        block.attention_norm.weight.fill_(1), block.ffn_norm.weight.fill_(1)
    model.norm.weight.fill_(1)
    return model


def _buffers(part: nn.Module) -> list[tuple[str, Tensor]]:
    return list(part.named_buffers(recurse=False)) if _is_int4(part) else []


def _is_int4(part: nn.Module) -> bool:
    return isinstance(part, Int4Linear | Int4Experts)


def _fill(tensor: Tensor, name: str, draw: torch.Generator) -> None:
    if tensor.dtype == torch.int32:
        tensor.random_(-(2**31), 2**31 - 1, generator=draw)
        _centre(tensor)
    elif name.endswith("scale"):
        tensor.fill_(DEVIATION / NIBBLE)
    else:
        tensor.normal_(std=DEVIATION, generator=draw)


def _centre(words: Tensor) -> None:
    """Every nibble 0, which is -8, becomes 8, which is 0: the others, -7 to 7, have no mean.

    A mean, however small, is common to all outputs of a matrix; through many layers it becomes a
    direction that all tokens share, and one expert would win them all.
    """
    ones = 0x11111111  # the lowest bit of each nibble
    used = (words | words >> 1 | words >> 2 | words >> 3) & ones
    words |= (used ^ ones) << 3


def expert_shares(decoder, steps: int = 8) -> list[list[float]]:
    """How a ``StaticDecoder``'s tokens spread: for each layer with experts, each expert's share of
    the choices over ``steps`` steps, random tokens in. Not recorded, not compiled: for looking."""
    counts = []
    layers = [layer for layer in decoder.layers if layer.experts is not None]
    for layer in layers:
        counts.append(torch.zeros(decoder.config.experts, dtype=torch.int64))
        layer.experts = _Counting(layer.experts, counts[-1])
    try:
        with torch.inference_mode():
            for _ in range(steps):
                decoder.token.random_(0, decoder.config.vocab_size)
                type(decoder).program(decoder)
                decoder.position.sub_(1)
    finally:
        for layer in layers:
            layer.experts = layer.experts.inner
    return [(count / count.sum() * decoder.config.top_k).tolist() for count in counts]


class _Counting:
    def __init__(self, inner, counts: Tensor):
        self.inner, self.counts, self.adds_shared = inner, counts, inner.adds_shared

    def __call__(self, x: Tensor, score: Tensor, choice: Tensor) -> Tensor:
        self.counts += choice.flatten().bincount(minlength=len(self.counts)).cpu()
        return self.inner(x, score, choice)

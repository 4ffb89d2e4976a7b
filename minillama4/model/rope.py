"""Rotary position embedding (RoPE): a position turns each pair of channels by an angle.

    pair i of q at position p  ->  pair i · exp(1j · p · frequency_i),   frequency_i = theta^(-2i/d)

so that q·k depends on the distance of the two positions alone (Su et al. 2021). Llama 4 turns
neighbouring channels (2i, 2i+1), and its checkpoints are stored for that; code that turns halves
(i, i + d/2), as for Llama 2 and 3 in transformers, needs permuted weights. Spec, section 5.
"""

import math

import torch
from einops import rearrange, repeat
from torch import Tensor

from ..config import RopeScaling, VisionConfig
from .norm import at_least_float32


def rope_frequencies(
    head_width: int, theta: float, scaling: RopeScaling | None = None, device=None
) -> Tensor:
    """Radians per position of each channel pair, (head_width / 2,) float32, fastest first."""
    exponent = torch.arange(0, head_width, 2, device=device).float() / head_width
    frequency = 1.0 / theta**exponent
    return frequency if scaling is None else scale_frequencies(frequency, scaling)


def scale_frequencies(frequency: Tensor, scaling: RopeScaling) -> Tensor:
    """Slow pairs become ``factor`` times slower, fast ones stay, with a ramp in between."""
    turns = scaling.original_length * frequency / (2 * math.pi)  # within the original context
    slow, fast = turns < scaling.low, turns > scaling.high
    if scaling.low == scaling.high:  # Scout: no ramp, and its formula would divide 0 by 0
        ramp = torch.zeros_like(turns)
    else:
        ramp = (turns - scaling.low) / (scaling.high - scaling.low)
    between = (1 - ramp) * frequency / scaling.factor + ramp * frequency
    between = torch.where(slow, frequency / scaling.factor, between)
    return torch.where(fast, frequency, between)


def rotation(positions: Tensor, frequency: Tensor) -> Tensor:
    """exp(1j · position · frequency): (…, t) and (d/2,) -> (…, t, d/2) complex64."""
    angle = positions[..., None].float() * frequency  # float32, also in a bf16 or float64 model
    return torch.polar(torch.ones_like(angle), angle)


def rotate(x: Tensor, turn: Tensor) -> Tensor:
    """Turn the pairs of x (b, t, h, d) by ``turn`` (b or 1, t, d/2); shape and dtype stay."""
    pairs = rearrange(at_least_float32(x), "b t h (d two) -> b t h d two", two=2)
    turned = torch.view_as_complex(pairs.contiguous()) * rearrange(turn, "b t d -> b t 1 d")
    return rearrange(torch.view_as_real(turned), "b t h d two -> b t h (d two)").to(x.dtype)


def vision_rotation(config: VisionConfig, device=None) -> Tensor:
    """The 2-D form for a tile: (1, patches + 1, d/2), the class token last and not turned.

    The first half of the pairs turns with the column, the second with the row, both counted
    from 1. Column before row: the other order is a known mistake (spec, gotcha 22).
    """
    pairs = config.width // config.heads // 2
    frequency = rope_frequencies(pairs, config.rope_theta, device=device)
    place = torch.arange(1, config.grid + 1, device=device)
    turn = rotation(place, frequency)
    column = repeat(turn, "col d -> (row col) d", row=config.grid)
    row = repeat(turn, "row d -> (row col) d", col=config.grid)
    still = torch.ones(1, pairs, dtype=turn.dtype, device=device)
    return torch.cat([torch.cat([column, row], dim=-1), still])[None]

"""From logits to the next token: temperature, then top-k, then top-p, then a draw.

    temperature T   p = softmax(logits / T); 0 stands for the most likely token
    top-k           only the k most likely tokens
    top-p           of those, the smallest set of the most likely whose sum reaches p

The order and the borders are those of transformers: what top-p sums up is what temperature and
top-k have left, and the token whose probability crosses p still belongs to the set. Sources: Fan et
al. 2018 for top-k; Holtzman et al. 2020 for top-p (nucleus sampling).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from ..model.norm import at_least_float32


@dataclass(frozen=True)
class Sampling:
    """How tokens are chosen; ValueError or TypeError for what is not possible."""

    temperature: float = 0.0
    top_k: int | None = None
    top_p: float | None = None

    def __post_init__(self):
        heat, k, p = self.temperature, self.top_k, self.top_p
        if not (_number(heat) and 0 <= heat < math.inf):
            raise ValueError(f"temperature must be 0 (the most likely token) or above, not {heat}.")
        if k is not None and not (is_count(k) and k >= 1):
            raise ValueError(f"top_k must be a whole number from 1 on, or None, not {k}.")
        if p is not None and not (_number(p) and 0 < p <= 1):
            raise ValueError(f"top_p must be above 0 and at most 1, or None, not {p}.")

    def probabilities(self, logits: Tensor) -> Tensor:
        """(…, v) logits -> (…, v), float32 or wider; 0 where a token cannot be drawn."""
        logits = at_least_float32(logits)
        if self.temperature == 0:
            best = logits.argmax(-1, keepdim=True)
            return torch.zeros_like(logits).scatter(-1, best, 1.0)
        logits = (logits - logits.amax(-1, keepdim=True)) / self.temperature  # or 1e-40 overflows
        if self.top_k is not None and self.top_k < logits.shape[-1]:
            worst = logits.topk(self.top_k, dim=-1).values[..., -1:]
            logits = logits.masked_fill(logits < worst, -math.inf)  # equals of the last one stay
        p = logits.softmax(-1)
        if self.top_p is not None and self.top_p < 1:
            p = top_p_of(p, self.top_p)
        return p

    def choose(self, logits: Tensor, draw: torch.Generator | None) -> Tensor:
        """(b, v) -> (b,) int64; ``draw`` stands on the logits' device, and moves on."""
        if self.temperature == 0:
            return logits.argmax(-1)
        return torch.multinomial(self.probabilities(logits), 1, generator=draw)[:, 0]


def top_p_of(p: Tensor, limit: float) -> Tensor:
    """The smallest set of the most likely whose sum reaches ``limit``, scaled to sum 1."""
    ordered, order = p.sort(dim=-1, descending=True, stable=True)
    before = ordered.cumsum(-1) - ordered  # what the likelier ones have summed up to
    kept = before < limit
    kept[..., 0] = True
    ordered = ordered * kept
    return torch.zeros_like(p).scatter(-1, order, ordered / ordered.sum(-1, keepdim=True))


def generator(seed: int | torch.Generator | None, device: torch.device) -> torch.Generator:
    """Random numbers of one's own: the global ones are neither read nor moved.

    An int begins a sequence, a generator is continued where it stands, None begins anywhere.
    """
    if isinstance(seed, torch.Generator):
        if seed.device.type != device.type:
            raise ValueError(
                f"The generator draws on {seed.device}, but the model is on {device}: "
                f"torch.Generator({str(device)!r})."
            )
        return seed
    draw = torch.Generator(device)
    if seed is None:
        draw.seed()
    elif is_count(seed):
        draw.manual_seed(seed)
    else:
        raise TypeError(f"seed must be a whole number, a torch.Generator or None, not {seed!r}.")
    return draw


def is_count(x) -> bool:
    """A whole number; True and False are none."""
    return isinstance(x, int) and not isinstance(x, bool)


def _number(x) -> bool:
    return isinstance(x, (int, float)) and not isinstance(x, bool)

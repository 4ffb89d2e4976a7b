"""When routing settles: the share of tokens whose expert, in training, is already the last one.

Two routers that look at no token agree by chance, the more often the less even they are; that much
is told beside it and taken off. The question is that of Muennighoff et al. 2024 (OLMoE).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Saturation:
    """steps (s,); same, chance (s, layers): the share of tokens whose expert is already the last.

    chance: how often two routers with these loads would agree if neither looked at the token.
    """

    steps: Tensor
    same: Tensor
    chance: Tensor

    @property
    def settled(self) -> Tensor:
        """(s, layers): (same - chance) / (1 - chance): 0 by chance, 1 when all is decided.

        nan where nothing is left to decide: all tokens with one expert, then as at the end.
        """
        return (self.same - self.chance) / (1 - self.chance)

    def __repr__(self) -> str:
        half = (self.settled.mean(1) >= 0.5).nonzero()
        when = f"half at {self.steps[half[0]].item()}" if len(half) else "never half"
        return f"Saturation({len(self.steps)} times, {self.same.shape[1]} layers; {when})"


def saturation(choice: Tensor, steps: Tensor) -> Saturation:
    """Choices (s, layers, ...) on the same tokens after ``steps`` (s,), the last one the end.

    ``Routing.load(file)`` of ``minillama4.train.routing_history`` has both.
    """
    if choice.ndim < 3 or len(choice) != len(steps) or not choice.numel():
        raise ValueError(
            f"choice must be (s, layers, ...) with {len(steps)} steps: {tuple(choice.shape)}."
        )
    flat = choice.flatten(2)
    experts = int(choice.max()) + 1
    loads = torch.nn.functional.one_hot(flat, experts).double().mean(2)  # s layers e
    same = (flat == flat[-1]).double().mean(2)
    return Saturation(steps, same, (loads * loads[-1]).sum(-1))

"""Measures of routing, on tensors of choices: how even, how specialised, how settled, how alike.

    load                 tokens per expert                      effective_experts   exp(entropy)
    specialisation       I(expert; label), against chance       coactivation        layer with layer
    saturation           chosen already as at the end           adjusted_rand       up to renaming

Information is in nats:  I(x; y) = Σ p(x, y) · ln [ p(x, y) / (p(x) · p(y)) ].  On a finite sample
it is above 0 even for a router that draws lots, so every measure comes with its null: the same
count after a shuffle. The questions are those of Muennighoff et al. 2024 (OLMoE); the nulls and
error bars are ours. A choice is an expert's number, int64; with top-k above 1 give one slot.
saturation stands in settling.py.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from .counting import count, information, jackknife, numbers, quantiles, shuffler, stretches
from .settling import Saturation, saturation

__all__ = [
    "CoActivation",
    "Saturation",
    "Specialisation",
    "adjusted_rand",
    "coactivation",
    "effective_experts",
    "joint",
    "load",
    "mutual_information",
    "saturation",
    "specialisation",
]


# ---------------------------------------------------------------------- how even
def load(choice: Tensor, experts: int) -> Tensor:
    """Choices of any shape -> (e,) int64: how many tokens each expert was given."""
    choice = numbers(choice, "choice")
    if len(choice) and choice.max() >= experts:
        raise ValueError(f"choice names expert {choice.max()}, but there are {experts} experts.")
    return choice.bincount(minlength=experts)


def effective_experts(load: Tensor) -> Tensor:
    """exp(-Σ p ln p) of loads (..., e), counts or shares -> (...): from 1 (all to one) to e (even).

    The number of experts that, evenly used, would have the same entropy.
    """
    load = load.double()
    total = load.sum(-1, keepdim=True)
    if not ((load >= 0).all() and (total > 0).all() and total.isfinite().all()):
        raise ValueError("A load is finite and not negative, and some expert must have a token.")
    return torch.special.entr(load / total).sum(-1).exp()


# ---------------------------------------------------------------------- how specialised
@dataclass(frozen=True)
class Specialisation:
    """What the expert tells about the label, in nats; see ``specialisation``.

    raw: as counted. null, null_low, null_high: mean and 95 % range of the same count after
    shuffles. excess = raw - null, with its 95 % interval low to high. share: of label_entropy.
    """

    raw: float
    null: float
    null_low: float
    null_high: float
    low: float
    high: float
    label_entropy: float

    @property
    def excess(self) -> float:
        """Nats above the null; about 0 for a router that draws lots."""
        return self.raw - self.null

    @property
    def share(self) -> float:
        """excess / label_entropy: of what there is to know about the label, how much."""
        return self.excess / self.label_entropy if self.label_entropy else 0.0

    @property
    def beyond_chance(self) -> bool:
        """Is raw above the range of the null?"""
        return self.raw > self.null_high

    def __repr__(self) -> str:
        return (
            f"Specialisation({self.excess:.3f} nats [{self.low:.3f}, {self.high:.3f}] above a null "
            f"of {self.null:.3f} [{self.null_low:.3f}, {self.null_high:.3f}]; "
            f"{self.share:.1%} of the label's {self.label_entropy:.3f})"
        )


def specialisation(
    choice: Tensor,
    labels: Tensor,
    *,
    given: Tensor | None = None,
    groups: Tensor | None = None,
    permutations: int = 200,
    seed: int = 0,
) -> Specialisation:
    """I(choice; labels) in nats against a permutation null. All tensors int64 of one shape.

    given: I(choice; labels | given) instead, the average over the values of ``given``; its null
    shuffles labels among equal values of ``given``. Use it to ask what a domain adds to a token.

    groups: the row or document of each token. Without it single tokens change labels, as if each
    were drawn by itself; but neighbours are alike, so for a label that whole rows share (a domain)
    this null is too low. With it rows are shuffled whole: their labels change places where a row
    has one label, else row i's choices meet row j's labels, place by place (rows of one length).
    With ``given`` too, equal values in one row keep together. Where there is a real effect, rows
    differ more and their null lies higher: it errs on the low side. It wants many rows per label:
    with one row each, every shuffle only renames.

    The interval is a jackknife over groups (without them, 50 stretches of text): the information
    is counted once without each. A bootstrap, which repeats rows, would add a bias of its own.
    """
    for name, other in (("labels", labels), ("given", given), ("groups", groups)):
        if other is not None and other.shape != choice.shape:
            shapes = f"{tuple(other.shape)}, choice of {tuple(choice.shape)}"
            raise ValueError(f"{name} are of shape {shapes}: one value for each token is needed.")
    if choice.numel() < 2 or permutations < 1:
        raise ValueError("At least two tokens and one permutation are needed.")
    x, y = numbers(choice, "choice"), numbers(labels, "labels")
    z = torch.zeros_like(x) if given is None else numbers(given, "given")
    rows = stretches(len(x)) if groups is None else numbers(groups, "groups")
    x, y, z, rows = (part.unique(return_inverse=True)[1] for part in (x, y, z, rows))
    shuffled = shuffler(y, z, None if groups is None else rows)
    draw = torch.Generator().manual_seed(seed)
    sizes = (int(z.max()) + 1, int(x.max()) + 1, int(y.max()) + 1)
    raw = information(count(z, x, y, sizes))
    null = [information(count(z, x, shuffled(draw), sizes)) for _ in range(permutations)]
    low, high = quantiles(null)
    mean = math.fsum(null) / len(null)
    margin = 1.96 * jackknife(count(z, x, y, sizes), (z, x, y), rows)
    entropy = torch.special.entr(y.bincount().double() / len(y)).sum().item()
    return Specialisation(
        raw, mean, low, high, raw - mean - margin, raw - mean + margin, label_entropy=entropy
    )


def joint(x: Tensor, y: Tensor, x_size: int | None = None, y_size: int | None = None) -> Tensor:
    """How often each pair occurs: two int64 tensors of one shape -> (x_size, y_size) int64."""
    if x.shape != y.shape or not x.numel():
        raise ValueError(f"x {tuple(x.shape)} and y {tuple(y.shape)}: one each for every token.")
    x, y = numbers(x, "x"), numbers(y, "y")
    sizes = (1, x_size or int(x.max()) + 1, y_size or int(y.max()) + 1)
    if x.max() >= sizes[1] or y.max() >= sizes[2]:
        raise ValueError(f"values reach {x.max()} and {y.max()}: sizes {sizes[1:]} are too small.")
    return count(torch.zeros_like(x), x, y, sizes)[0]


def mutual_information(joint: Tensor) -> float:
    """I(x; y) in nats of a table (x, y) of counts or probabilities, as counted: no null taken."""
    if not joint.sum() > 0:
        raise ValueError("This table is empty: nothing was counted.")
    return information(joint[None])


# ---------------------------------------------------------------------- layer with layer
@dataclass(frozen=True)
class CoActivation:
    """information, null (layers, layers): I(expert in a; expert in b) in nats, and by chance.

    The diagonal holds the entropy of a layer's load: what a layer tells about itself.
    """

    information: Tensor
    null: Tensor

    @property
    def excess(self) -> Tensor:
        """(layers, layers) nats above chance."""
        return self.information - self.null

    def __repr__(self) -> str:
        apart = ~torch.eye(len(self.null), dtype=torch.bool)
        values = self.excess[apart]
        return (
            f"CoActivation({len(self.null)} layers; {values.min():.3f} to {values.max():.3f} nats "
            f"above a null of {self.null[apart].mean():.3f})"
        )


def coactivation(
    choice: Tensor, *, given: Tensor | None = None, permutations: int = 20, seed: int = 0
) -> CoActivation:
    """Choices (layers, ...) -> what the expert of one layer tells about the expert of another.

    given (...): beyond what it explains, e.g. the token's id. ``joint(choice[a], choice[b])`` is
    the table behind one entry.
    """
    if choice.ndim < 2 or len(choice) < 2 or not choice.numel():
        shape = tuple(choice.shape)
        raise ValueError(f"choice must be (layers, ...), two layers or more, not {shape}.")
    layers = [numbers(layer, "choice") for layer in choice]
    z = torch.zeros_like(layers[0]) if given is None else numbers(given, "given")
    z = z.unique(return_inverse=True)[1]
    experts = int(choice.max()) + 1
    sizes = (int(z.max()) + 1, experts, experts)
    draw = torch.Generator().manual_seed(seed)
    found, null = torch.zeros(2, len(layers), len(layers), dtype=torch.float64)
    for b, other in enumerate(layers):
        shuffled = shuffler(other, z)
        mixed = [shuffled(draw) for _ in range(permutations)]
        for a in range(b):
            found[a, b] = information(count(z, layers[a], other, sizes))
            chance = [information(count(z, layers[a], mix, sizes)) for mix in mixed]
            null[a, b] = math.fsum(chance) / permutations
        found[b, b] = information(count(z, other, other, sizes)) / 2
    return CoActivation(found + found.T, null + null.T)


# ---------------------------------------------------------------------- two models, two layers
def adjusted_rand(a: Tensor, b: Tensor) -> float:
    """How alike two ways of sorting the same tokens are, whatever the experts are called.

    Of all pairs of tokens, those that share an expert in both, against chance: 1 for the same
    groups under any names, about 0 for unrelated ones. Drift is 1 minus it. Hubert and Arabie 1985.
    """
    table = joint(a, b).double()

    def pairs(sizes: Tensor) -> float:
        return (sizes * (sizes - 1) / 2).sum().item()

    both, first, second = pairs(table), pairs(table.sum(1)), pairs(table.sum(0))
    chance = first * second / max(pairs(table.sum()), 1)
    most = (first + second) / 2
    return 1.0 if most == chance else (both - chance) / (most - chance)

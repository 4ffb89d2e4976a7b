"""Checks for *Three ways to run experts* (notebooks/01_moe/04_three_ways.ipynb)."""

import math

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from ..checks import Check, number

_PRODUCTS = {"mm", "addmm", "bmm", "baddbmm", "mv", "addmv", "dot", "_grouped_mm"}
_BYTES, _OPERATIONS = 3.35e12, 990e12  # a second, of an H100 in bf16: as its data sheet says

break_even = number(
    "break_even",
    right=_OPERATIONS / _BYTES,
    wrong={
        "A weight takes part in two operations per token, a multiplication and an addition.": (
            2 * _OPERATIONS / _BYTES
        ),
        "A weight in bf16 takes two bytes.": _OPERATIONS / _BYTES / 2,
        "Upside down: that is how much of the computing time reading takes at one token.": (
            _BYTES / _OPERATIONS
        ),
        "That is a batch for all 16 experts; tokens of one expert are asked for.": 16
        * _OPERATIONS
        / _BYTES,
        "Mind the units: both are a million millions, T.": 1e3 * _OPERATIONS / _BYTES,
        "Nearly: do not round, or round to a whole token.": 300.0,
    },
    praise="About 300 tokens for each expert: with 16 evenly chosen experts a batch of nearly "
    "5,000, with 128 one of nearly 38,000.",
    tolerance=3e-3,  # 295 and 296 are right as well
)


def _products(seed: int) -> tuple[Tensor, Tensor, Tensor]:
    """x (n, m), choice (n,), weight (e, m, f); the last of five has experts with no token.

    m and f are multiples of 4: grouped_mm wants rows of whole 16 bytes.
    """
    draw = torch.Generator().manual_seed(seed)
    experts = 4 if seed < 4 else 9
    choice = torch.randint(4, (14,), generator=draw)
    x = torch.randn(14, 8, generator=draw)
    return x, choice, torch.randn(experts, 8, 4, generator=draw)


def _sorted_products(x, choice, weight) -> tuple[Tensor, Tensor]:
    order = choice.argsort(stable=True)
    load = choice.bincount(minlength=len(weight)).tolist()
    parts = x[order].split(load)
    return torch.cat([part @ w for part, w in zip(parts, weight, strict=True)]), order


def _reference(x, choice, weight) -> Tensor:
    out, order = _sorted_products(x, choice, weight)
    return torch.empty_like(out).index_copy(0, order, out)


def _left_sorted(x, choice, weight) -> Tensor:
    return _sorted_products(x, choice, weight)[0]


def _put_back_twice_sorted(x, choice, weight) -> Tensor:
    out, order = _sorted_products(x, choice, weight)
    return out[order]


def _not_sorted(x, choice, weight) -> Tensor:
    load = choice.bincount(minlength=len(weight)).tolist()
    return torch.cat([part @ w for part, w in zip(x.split(load), weight, strict=True)])


def _put_back_not_sorted(x, choice, weight) -> Tensor:
    out = _not_sorted(x, choice, weight)
    return torch.empty_like(out).index_copy(0, choice.argsort(stable=True), out)


def _one_expert(x, choice, weight) -> Tensor:
    return x @ weight[choice.mode().values]


def _multiplies_once(answer) -> bool:
    x, choice, weight = _products(4)
    with FlopCounterMode(display=False) as counter:
        answer(x, choice, weight)
    return counter.get_total_flops() <= 2 * x.numel() * weight.shape[2]


class _Watched(TorchDispatchMode):
    """The size of the largest tensor that is made inside, and how many products are called."""

    numbers = products = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        self.products += func._schema.name.split("::")[1] in _PRODUCTS
        made = [out] if isinstance(out, Tensor) else out if isinstance(out, tuple | list) else []
        for tensor in made:
            if isinstance(tensor, Tensor):
                self.numbers = max(self.numbers, tensor.numel())
        return out


def _watched(answer) -> _Watched:
    """64 tokens of 3 experts, m = f = 16."""
    draw = torch.Generator().manual_seed(0)
    x = torch.randn(64, 16, generator=draw)
    choice = torch.randint(3, (64,), generator=draw)
    with _Watched() as seen:
        answer(x, choice, torch.randn(3, 16, 16, generator=draw))
    return seen


def _copies_no_matrices(answer) -> bool:
    return _watched(answer).numbers < 64 * 16 * 16


def _one_product_per_stretch(answer) -> bool:
    return _watched(answer).products < 64


grouped_products = Check(
    "grouped_products",
    reference=_reference,
    inputs=_products,
    wrong={
        "Your rows are still in the experts' order: put each back in its token's place.": (
            _left_sorted
        ),
        "You put rows back with out[order], which sorts once more: write out[order] = ..., or use "
        "order.argsort().": _put_back_twice_sorted,
        "You cut x without sorting it: a piece then holds tokens of several experts.": _not_sorted,
        "You put rows back in order but never sorted them: x[order] goes to the experts.": (
            _put_back_not_sorted
        ),
        "You sent all tokens to one expert.": _one_expert,
    },
    properties={
        "Right, but it multiplies tokens with experts that they did not choose: that is the naive "
        "form.": _multiplies_once,
        "Right, but it copies a whole matrix for every token. Sort the tokens: then each expert's "
        "matrix is read once.": _copies_no_matrices,
        "Right, but it multiplies token by token, so that a matrix is read anew for each. Sort the "
        "tokens, and multiply each expert's stretch in one product.": _one_product_per_stretch,
    },
    praise="It agrees, multiplies each expert's tokens together, and copies no expert.",
)


def _batch(seed: int) -> tuple[Tensor, int, float]:
    """choice (n,), experts, capacity factor: some experts overflow and some do not."""
    draw = torch.Generator().manual_seed(seed)
    popular = torch.tensor([5.0, 3.0, 2.0, 1.0, 1.0, 0.5])
    choice = popular.multinomial(61 + seed, replacement=True, generator=draw)
    return choice, 6, (1.0, 1.3, 0.8, 1.5, 1.1)[seed]


def _overflow(choice, experts, capacity) -> Tensor:
    return (choice.bincount(minlength=experts) - capacity).clamp(min=0)


def _capacity(choice, experts, factor) -> int:
    return math.ceil(factor * len(choice) / experts)


def _dropped(choice, experts, factor) -> float:
    return _overflow(choice, experts, _capacity(choice, experts, factor)).sum().item() / len(choice)


def _of_full_experts(choice, experts, factor) -> float:
    load = choice.bincount(minlength=experts)
    return load[load > _capacity(choice, experts, factor)].sum().item() / len(choice)


def _of_busiest(choice, experts, factor) -> float:
    over = _overflow(choice, experts, _capacity(choice, experts, factor))
    return over.max().item() / len(choice)


def _rounded_down(choice, experts, factor) -> float:
    over = _overflow(choice, experts, int(factor * len(choice) / experts))
    return over.sum().item() / len(choice)


def _full_experts(choice, experts, factor) -> float:
    over = _overflow(choice, experts, _capacity(choice, experts, factor))
    return (over > 0).sum().item() / experts


def _over(capacity):
    """A wrong answer that has another idea of the capacity."""
    return lambda c, e, f: _overflow(c, e, capacity(c, e, f)).sum().item() / len(c)


dropped = Check(
    "dropped",
    reference=_dropped,
    inputs=_batch,
    wrong={
        "That is the number of dropped tokens: divide by all tokens.": lambda c, e, f: (
            _dropped(c, e, f) * len(c)
        ),
        "That is the share of tokens that were kept.": lambda c, e, f: 1 - _dropped(c, e, f),
        "You dropped every token of a full expert; only those beyond its capacity go.": (
            _of_full_experts
        ),
        "You looked at the busiest expert alone; others may be full too.": _of_busiest,
        "Round the capacity up: here it was rounded down.": _rounded_down,
        "That is the share of experts that are full; tokens are counted.": _full_experts,
        "The capacity is a whole number: round it up.": _over(lambda c, e, f: f * len(c) / e),
        "Round the capacity up: here it went to the nearest whole number.": _over(
            lambda c, e, f: round(f * len(c) / e)
        ),
        "Whoever takes the last place is still in: only those beyond the capacity go.": _over(
            lambda c, e, f: _capacity(c, e, f) - 1
        ),
        "The factor is missing: the capacity is factor · n / experts.": _over(
            lambda c, e, f: _capacity(c, e, 1)
        ),
        "Experts with room to spare took from your sum: clamp each at 0 first.": lambda c, e, f: (
            1 - e * _capacity(c, e, f) / len(c)
        ),
        "That is a percentage: give a number from 0 to 1.": lambda c, e, f: 100 * _dropped(c, e, f),
        "Nothing was dropped: is the capacity that of all experts together? It is factor · n / "
        "experts for each.": lambda c, e, f: 0.0,
    },
    praise="It agrees on skewed batches.",
)

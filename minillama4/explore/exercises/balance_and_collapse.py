"""Checks for *Balance and collapse* (notebooks/01_moe/06_balance_and_collapse.ipynb)."""

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from ...train.balance import choose_with_bias
from ..checks import Check, Verdict
from ..routing import effective_experts


@dataclass(frozen=True)
class CountingCheck(Check):
    """A check that adds what a common error of counting means, where it comes up."""

    def _judge(self, answer) -> Verdict:
        try:
            return super()._judge(answer)
        except RuntimeError as error:
            if "The size of tensor" not in str(error):
                raise
            hint = "Does your count of the load leave out an idle last expert? See minlength."
            return Verdict(False, f"{hint} (Your code stopped: {error})")

    def _describe(self, given: list, cases: list[tuple]) -> str:
        if any(isinstance(v, Tensor | float) and torch.as_tensor(v).isnan().any() for v in given):
            return "You have nan: 0 · ln 0 is 0 here, and nan for the computer. Leave zeros out."
        return super()._describe(given, cases)


# ---------------------------------------------------------------------- 1: how many are at work
def _load(seed: int) -> tuple[Tensor]:
    """(e,) int64; some experts have no token."""
    draw = torch.Generator().manual_seed(seed)
    load = torch.randint(1, 90, (8,), generator=draw)
    load[seed % 8] = 0
    return (load,)


def _entropy(load: Tensor) -> float:
    return torch.special.entr(load.double() / load.sum()).sum().item()


def _of_counts(load: Tensor) -> float:
    return torch.special.entr(load.double()).sum().exp().item()


at_work = CountingCheck(
    "at_work",
    reference=lambda load: effective_experts(load).item(),
    inputs=_load,
    wrong={
        "That is the entropy; the number of experts is exp of it.": _entropy,
        "The sign is lost: entropy is minus the sum of p ln p.": lambda load: math.exp(
            -_entropy(load)
        ),
        "You counted the experts that have a token at all; one with a single token counts as much "
        "as the busiest then.": lambda load: int((load > 0).sum()),
        "Take shares, not counts: divide the load by its sum first.": _of_counts,
        "The logarithm is to base 2 and the exponential is e to the power: take both to one "
        "base.": lambda load: math.exp(_entropy(load) / math.log(2)),
        "The exponential is to base 2 and the logarithm is the natural one: take both to one "
        "base.": lambda load: 2 ** _entropy(load),
        "A softmax of the counts is no share: divide the load by its sum.": lambda load: (
            torch.special.entr(load.double().softmax(0)).sum().exp().item()
        ),
        "That is 1 / Σ p², which counts too, but another way: the exponential of the entropy is "
        "asked for.": lambda load: 1 / (load / load.sum()).double().square().sum().item(),
        "You divided by the largest possible entropy: leave it as it is.": lambda load: math.exp(
            _entropy(load) / math.log(len(load))
        ),
        "You took the mean over the experts; it is the sum.": lambda load: math.exp(
            _entropy(load) / len(load)
        ),
    },
    praise="It agrees with the library's, also where an expert has no token.",
)


# ---------------------------------------------------------------------- 2: the auxiliary loss
def _routing(seed: int) -> tuple[Tensor, Tensor]:
    """logits (n, e), choice (n, k), k = 1 and 2 in turn."""
    draw = torch.Generator().manual_seed(seed)
    logits = torch.randn(12, 5, generator=draw) * 1.5 + torch.randn(5, generator=draw)
    if seed >= 3:
        logits[:, -1] -= 20  # the last expert idle: its load of 0 must not be forgotten
    return logits, logits.topk(1 + seed % 2, dim=-1).indices


def _share(logits: Tensor, choice: Tensor) -> Tensor:
    return F.one_hot(choice.flatten(), logits.shape[1]).float().mean(0)


def _even(logits: Tensor, choice: Tensor) -> Tensor:
    chance = logits.softmax(-1).mean(0)
    return logits.shape[1] * (_share(logits, choice) * chance).sum()


def _variant(share=_share, chance=None, factor=None):
    """A mistake: another f, another P, another factor."""

    def answer(logits, choice):
        n, e = logits.shape
        p = (chance or (lambda lg: lg.softmax(-1).mean(0)))(logits)
        return (e if factor is None else factor(n, e)) * (share(logits, choice) * p).sum()

    return answer


def _gradient(answer) -> Tensor | None:
    logits, choice = _routing(1)
    logits.requires_grad_()
    out = answer(logits, choice)
    if not isinstance(out, Tensor) or not out.requires_grad:
        return None
    return torch.autograd.grad(out, logits, allow_unused=True)[0]


def _has_gradient(answer) -> bool:
    gradient = _gradient(answer)
    return gradient is not None and bool(gradient.abs().sum() > 0)


def _same_gradient(answer) -> bool:
    if not _has_gradient(answer):
        return False
    return torch.allclose(_gradient(answer), _gradient(_even), rtol=1e-4, atol=1e-6)


_BOTH_SQUARED = (
    "f stands there twice: P, the mean probability, is missing, and the gradient with it."
)
auxiliary_loss = CountingCheck(
    "auxiliary_loss",
    reference=_even,
    inputs=_routing,
    wrong={
        "The factor e is missing: an even load should give 1.": _variant(factor=lambda n, e: 1),
        "P is the softmax over the experts; you took sigmoids.": _variant(
            chance=lambda logits: logits.sigmoid().mean(0)
        ),
        "P is a softmax; you divided sigmoids by their sum.": _variant(
            chance=lambda logits: (logits.sigmoid() / logits.sigmoid().sum(-1, keepdim=True)).mean(
                0
            )
        ),
        "You counted only the first choice of each token; with k of 2, the second counts "
        "too.": _variant(share=lambda logits, choice: _share(logits, choice[:, :1])),
        "P is made of probabilities: a softmax of the logits is missing.": _variant(
            chance=lambda logits: logits.mean(0)
        ),
        "The softmax runs over the tokens; it belongs over the experts, the last axis.": _variant(
            chance=lambda logits: logits.softmax(0).mean(0)
        ),
        "f is a count in your answer; it is a share: divide by the sum of the load.": _variant(
            share=lambda logits, choice: _share(logits, choice) * choice.numel()
        ),
        "f adds up to k in your answer; each token has k choices, so divide by n · k.": _variant(
            share=lambda logits, choice: _share(logits, choice) * choice.shape[1]
        ),
        "You summed the probabilities over the tokens; P is their mean.": _variant(
            chance=lambda logits: logits.softmax(-1).sum(0)
        ),
        "Both f and P are sums over tokens in your answer; take shares and means.": _variant(
            share=lambda logits, choice: _share(logits, choice) * choice.numel(),
            chance=lambda logits: logits.softmax(-1).sum(0),
        ),
        _BOTH_SQUARED: lambda logits, choice: (
            logits.shape[1] * _share(logits, choice).square().sum()
        ),
        "P stands there twice: f, the share that was really given, is missing.": lambda logits, c: (
            logits.shape[1] * logits.softmax(-1).mean(0).square().sum()
        ),
        "You multiplied f and P token by token; average each over tokens first.": lambda lg, c: (
            lg.shape[1] * lg.softmax(-1).gather(1, c).mean()
        ),
        "The sign is turned: that would reward the busy experts.": lambda logits, choice: (
            -_even(logits, choice)
        ),
    },
    properties={
        "The values are right, but no gradient reaches the router, so it changes nothing. It comes "
        "through P: did .detach(), .item() or no_grad cut it off?": _has_gradient,
        "The values are right, but the gradient is another: it comes through P alone. f is a "
        "count of choices and has none.": _same_gradient,
    },
    praise="It equals the formula, for top-1 and top-2, and its gradient comes through P alone.",
)


# ---------------------------------------------------------------------- 3: the selection bias
def _biased(seed: int) -> tuple[Tensor, Tensor, float]:
    """logits (n, e), bias (e,), rate."""
    draw = torch.Generator().manual_seed(seed)
    logits = torch.randn(30, 6, generator=draw)
    bias = torch.randn(6, generator=draw) * 0.3
    if seed == 3:
        bias[-1] = -2.0  # the last expert idle: its load of 0 must not be forgotten
    return logits, bias, 0.01 * (seed + 1)


def _step(logits, bias, rate, choose=None, weigh=None, move=None):
    """(weight (n,), next bias (e,)) as one tensor, with a part replaced by a mistake."""
    chosen = choose(logits, bias) if choose else choose_with_bias(logits, bias, 1)[1][:, 0]
    at = chosen[:, None]
    weight = (weigh(logits, bias) if weigh else logits.sigmoid()).gather(1, at)[:, 0]
    load = chosen.bincount(minlength=logits.shape[1]).float()
    gap = move(load) if move else (load.mean() - load).sign()
    return torch.cat([weight, bias + rate * gap])


def _wrong_step(**part):
    return lambda logits, bias, rate: _step(logits, bias, rate, **part)


def _swapped(logits, bias, rate):
    weight, following = _step(logits, bias, rate).split([len(logits), len(bias)])
    return torch.cat([following, weight])


def _change(logits, bias, rate):
    weight, following = _step(logits, bias, rate).split([len(logits), len(bias)])
    return torch.cat([weight, following - bias])


def _best_weight(logits, bias, rate):
    following = _step(logits, bias, rate)[len(logits) :]
    return torch.cat([logits.sigmoid().amax(-1), following])


def _unbiased_load(logits, bias, rate):
    best = logits.argmax(-1).bincount(minlength=len(bias))
    return _step(logits, bias, rate, move=lambda load: (load.mean() - best).sign())


@dataclass(frozen=True)
class PairCheck(CountingCheck):
    """A check of an answer that returns a pair of tensors of one axis."""

    def __call__(self, answer) -> Verdict:
        return super().__call__(lambda *given: self._join(answer(*given)))

    def _join(self, value):
        if isinstance(value, tuple | list):
            if len(value) != 2 or not all(isinstance(part, Tensor) for part in value):
                raise TypeError("a pair of tensors is expected: weight (n,), next bias (e,).")
            return torch.cat([part.squeeze(-1) if part.ndim > 1 else part for part in value])
        return value


bias_step = PairCheck(
    "bias_step",
    reference=_step,
    inputs=_biased,
    wrong={
        "The bias moves the wrong way: it grows where an expert had too little.": _wrong_step(
            move=lambda load: (load - load.mean()).sign()
        ),
        "The step is one rate up or down, however far off the load is: take the sign.": _wrong_step(
            move=lambda load: load.mean() - load
        ),
        "The step is one rate up or down; you scaled it by the share that is missing.": _wrong_step(
            move=lambda load: (load.mean() - load) / load.sum()
        ),
        "Compare with the mean load, not with that of the busiest expert.": _wrong_step(
            move=lambda load: (load.max() - load).sign()
        ),
        "The bias got into the weight: it chooses, and weighs nothing.": _wrong_step(
            weigh=lambda logits, bias: logits.sigmoid() + bias
        ),
        "The bias got into the weight, and inside the sigmoid: it chooses, and weighs "
        "nothing.": _wrong_step(weigh=lambda logits, bias: (logits + bias).sigmoid()),
        "You chose without the bias: add it to the scores before the best is taken.": _wrong_step(
            choose=lambda logits, bias: logits.argmax(-1)
        ),
        "You added the bias to the logits; here it is added to their sigmoids.": _wrong_step(
            choose=lambda logits, bias: (logits + bias).argmax(-1)
        ),
        "You added the bias to the logits, for the weight too: it is added to the sigmoids, and "
        "weighs nothing.": _wrong_step(
            choose=lambda logits, bias: (logits + bias).argmax(-1),
            weigh=lambda logits, bias: (logits + bias).sigmoid(),
        ),
        "The order is: the weight first, then the next bias.": _swapped,
        "You return the change of the bias; the next bias is asked for.": _change,
        "The weight is that of the expert with the highest score; it belongs to the one that was "
        "chosen, with the bias.": _best_weight,
        "You counted whom the scores alone would choose; the load is what was really given, with "
        "the bias.": _unbiased_load,
        "You move an expert with the mean load too; it stays: sign(0) is 0.": _wrong_step(
            move=lambda load: torch.where(load < load.mean(), 1.0, -1.0)
        ),
        "The weight is a sigmoid; you took a softmax over the experts.": _wrong_step(
            weigh=lambda logits, bias: logits.softmax(-1)
        ),
        "The bias is taken away where it should be added.": _wrong_step(
            choose=lambda logits, bias: (logits.sigmoid() - bias).argmax(-1)
        ),
        "The weight is the sigmoid of the chosen score; you return the score itself.": _wrong_step(
            weigh=lambda logits, bias: logits
        ),
    },
    praise="The bias chooses and weighs nothing, and it moves towards the idle experts.",
)

"""Checks for *A router by hand* (notebooks/01_moe/03_router_by_hand.ipynb)."""

import torch
from torch import Tensor

from ...model.moe import Router
from ..checks import Check
from .broken_layers import Hunt, Layer, suspects

__all__ = ["Layer", "expert_weights", "is_broken", "router_gradient", "suspects"]

# ------------------------------------------------------------------ 1: the weights of a router


def _scores(seed: int) -> tuple[Tensor, Tensor, int]:
    """x (n, m), weight (e, m), k."""
    draw = torch.Generator().manual_seed(seed)
    return torch.randn(7, 8, generator=draw), torch.randn(5, 8, generator=draw), 1 + seed % 3


def _library_weights(x: Tensor, weight: Tensor, k: int) -> Tensor:
    router = Router(8, experts=5, top_k=k)
    router.load_state_dict({"weight": weight})
    with torch.no_grad():
        score, choice = router(x)
    return torch.zeros(len(x), len(weight)).scatter(1, choice, score)


def _weigh(of=torch.sigmoid, best=lambda score, k: score.topk(k, dim=1).indices):
    """A wrong answer: other weights than the sigmoid, or another choice than the best."""

    def answer(x, weight, k):
        score = x @ weight.T
        chosen = torch.zeros_like(score).scatter(1, best(score, k), 1.0)
        return of(score) * chosen

    return answer


def _softmax_of_best(x, weight, k) -> Tensor:
    best, choice = (x @ weight.T).topk(k, dim=1)
    return torch.zeros(len(x), len(weight)).scatter(1, choice, best.softmax(1))


def _table_first(of):
    """A wrong answer: the scores are put into the table of zeros, and squeezed afterwards."""

    def answer(x, weight, k):
        best, choice = (x @ weight.T).topk(k, dim=1)
        return of(torch.zeros(len(x), len(weight)).scatter(1, choice, best))

    return answer


def _sum_to_one(x, weight, k) -> Tensor:
    weights = _library_weights(x, weight, k)
    return weights / weights.sum(1, keepdim=True)


def _experts_choose(x, weight, k) -> Tensor:
    score = x @ weight.T
    return torch.sigmoid(score) * torch.zeros_like(score).scatter(0, score.topk(k, 0).indices, 1.0)


def _gradient_reaches_router(answer) -> bool:
    x, weight, k = _scores(1)
    weight.requires_grad_()
    out = answer(x, weight, k)
    if not out.requires_grad:
        return False
    (gradient,) = torch.autograd.grad(out.sum(), weight, allow_unused=True)
    return gradient is not None and bool(gradient.abs().sum() > 0)


def _works_in_float64(answer) -> bool:
    x, weight, k = _scores(2)
    try:
        out = answer(x.double(), weight.double(), k)
    except RuntimeError:
        return False
    return out.dtype == torch.float64


expert_weights = Check(
    "expert_weights",
    reference=_library_weights,
    inputs=_scores,
    wrong={
        "That is a softmax over all experts: Llama 4 looks at each chosen score alone.": _weigh(
            lambda score: score.softmax(1)
        ),
        "That is a softmax over the chosen experts; with k = 1 it is always 1. A sigmoid of each "
        "chosen score is meant.": _softmax_of_best,
        "You took the sigmoid after the scores were in the table: of the zeros where nothing was "
        "chosen it makes 0.5. Sigmoid first, then scatter.": _table_first(torch.sigmoid),
        "You took a softmax after the scores were in the table, so experts that were not chosen "
        "get a share too. A sigmoid of each chosen score is meant.": _table_first(
            lambda table: table.softmax(1)
        ),
        "You made the weights sum to one; Llama 4 leaves each sigmoid as it is.": _sum_to_one,
        "Experts that were not chosen must have weight 0.": lambda x, weight, k: torch.sigmoid(
            x @ weight.T
        ),
        "These are the raw scores: the sigmoid is missing.": _weigh(lambda score: score),
        "You marked the chosen experts with 1: their sigmoid is meant.": _weigh(torch.ones_like),
        "You took the lowest scores.": _weigh(
            best=lambda score, k: score.topk(k, 1, largest=False).indices
        ),
        "You took the scores that are largest in size; a large negative score loses.": _weigh(
            best=lambda score, k: score.abs().topk(k, 1).indices
        ),
        "You took one expert for each token: k of them are asked for.": _weigh(
            best=lambda score, k: score.argmax(1, keepdim=True)
        ),
        "Here each expert chooses k tokens; each token should choose k experts: mind the axis of "
        "topk.": _experts_choose,
    },
    properties={
        "The values are right, but no gradient reaches the router's weight. Did .item(), .data or "
        "no_grad cut it off?": _gradient_reaches_router,
        "Right in float32, not in float64: there it stops, or gives another dtype. Make the table "
        "like the scores, with torch.zeros_like.": _works_in_float64,
    },
    praise="It equals the library's router for k = 1, 2 and 3, and its gradient gets through.",
)

# ------------------------------------------------------------------ 2: what reaches the router


def _token(seed: int) -> tuple[Tensor, Tensor, Tensor]:
    """x (m,), weight (e, m), gradient at the expert's input (m,)."""
    draw = torch.Generator().manual_seed(seed)
    x, weight, at_input = (torch.randn(shape, generator=draw) for shape in ((6,), (4, 6), (6,)))
    return x, weight / 6**0.5, at_input  # scores of about 1, where g has a slope


def _autograd(x, weight, at_input) -> Tensor:
    weight = weight.clone().requires_grad_()
    with torch.enable_grad():
        (torch.sigmoid((weight @ x).max()) * x).backward(at_input)
    return weight.grad


def _row(value):
    """A wrong answer: ``value(x, g, at_input)`` in the chosen expert's row, zeros elsewhere."""

    def answer(x, weight, at_input):
        score = weight @ x
        e = score.argmax()
        out = torch.zeros_like(weight)
        out[e] = value(x, torch.sigmoid(score[e]), at_input)
        return out

    return answer


def _all_rows(x, weight, at_input) -> Tensor:
    g = torch.sigmoid(weight @ x)
    return torch.outer(g * (1 - g) * (at_input @ x), x)


def _through_softmax(x, weight, at_input) -> Tensor:
    p = (weight @ x).softmax(0)
    e = p.argmax()
    own = torch.zeros_like(p).scatter(0, e, 1.0)
    return torch.outer(p[e] * (own - p) * (at_input @ x), x)


router_gradient = Check(
    "router_gradient",
    reference=_autograd,
    inputs=_token,
    wrong={
        "The slope of the sigmoid is missing: g(1 - g).": _row(lambda x, g, d: (d @ x) * x),
        "You used g where the slope of the sigmoid belongs: g(1 - g).": _row(
            lambda x, g, d: g * (d @ x) * x
        ),
        "You used 1 - g where the slope of the sigmoid belongs: g(1 - g).": _row(
            lambda x, g, d: (1 - g) * (d @ x) * x
        ),
        "Every row has a gradient here; only the chosen expert's score was used.": _all_rows,
        "That is the gradient of a softmax over all experts; the gate is a sigmoid of one "
        "score.": _through_softmax,
        "All zeros: the choice has no slope, but g has.": _row(lambda x, g, d: 0 * x),
        "You stopped at the score; a row of the weight gets that times x.": _row(
            lambda x, g, d: g * (1 - g) * (d @ x)
        ),
        "g multiplies the whole vector, so its gradient is a sum over channels, a dot "
        "product.": _row(lambda x, g, d: g * (1 - g) * d * x),
        "The slope of g · x by g is x, not g · x: there is a g too many.": _row(
            lambda x, g, d: g * g * (1 - g) * (d @ x) * x
        ),
        "Nothing of at_input is in your gradient: what comes back depends on it.": _row(
            lambda x, g, d: g * (1 - g) * x
        ),
        "The chain has three links, and you stop at the second: the slope of g · x by g is x (a "
        "dot product with at_input), that of g is g(1 - g), that of the score is x.": _row(
            lambda x, g, d: g * (1 - g) * d
        ),
        "The last factor is the router's input x, not the gradient that came in.": _row(
            lambda x, g, d: g * (1 - g) * (d @ x) * d
        ),
    },
    praise="It is what autograd gives: one row, along x, largest where g is undecided.",
)

# ------------------------------------------------------------------ 3: the bug hunt

is_broken = Hunt("is_broken", "No false alarm, and all eleven mistakes caught.")

"""Checks for *Start here* (notebooks/01_moe/01_start_here.ipynb)."""

import torch
import torch.nn.functional as F
from torch import Tensor

from ...config import Llama4Config
from ...model.moe import Experts, Router
from ..checks import Check, number

_SCOUT = Llama4Config.scout().parameters()
_SHARED = _SCOUT.text["shared experts"]
_MINI = Llama4Config.mini().parameters()

without_shared = number(
    "without_shared",
    right=_SCOUT.active - _SHARED,
    wrong={
        "That is the stored total; count what one token uses.": _SCOUT.text_total - _SHARED,
        "Right, but in billions: return the whole number.": (_SCOUT.active - _SHARED) / 1e9,
        "That is the mini model; Scout is asked for.": _MINI.active - _MINI.text["shared experts"],
        "You left the shared experts in.": _SCOUT.active,
        "You took away one layer's shared expert; all 48 layers have one.": _SCOUT.active
        - _SHARED // 48,
        "That is the shared experts' own share: take it away from what a token uses.": _SHARED,
        "You took away the routed expert too.": _SCOUT.active
        - _SHARED
        - _SCOUT.active_text["routed experts"],
    },
    praise="11.1 billion: more than a third of what a token costs is the shared expert.",
    tolerance=1e-4,
)


def _inputs(seed: int) -> tuple[Tensor, ...]:
    """x (m,), router (e, m), gate_up (e, m, 2f), down (e, f, m)."""
    draw = torch.Generator().manual_seed(seed)
    shapes = ((8,), (5, 8), (5, 8, 12), (5, 6, 8))
    return tuple(torch.randn(shape, generator=draw) * 0.7 for shape in shapes)


def _library(x, router, gate_up, down) -> Tensor:
    gate = Router(8, experts=5, top_k=1)
    experts = Experts(5, width=8, hidden=6)
    weights = {"gate_up": gate_up, "down": down}
    gate.load_state_dict({"weight": router})
    experts.load_state_dict(weights)
    with torch.no_grad():
        return experts(x[None], *gate(x[None]))[0]


def _expert(x, gate_up, down) -> Tensor:
    gate, up = (x @ gate_up).chunk(2)
    return (F.silu(gate) * up) @ down


def _mistake(weight, before=True, after=False, pick=Tensor.argmax, expert=_expert):
    """A wrong answer: another weight of the score, another place for it, another expert."""

    def answer(x, router, gate_up, down):
        score = router @ x
        e = pick(score)
        g = weight(score, e)
        out = expert(g * x if before else x, gate_up[e], down[e])
        return g * out if after else out

    return answer


def _sigmoid(score, e) -> Tensor:
    return torch.sigmoid(score[e])


def _softmax(score, e) -> Tensor:
    return score.softmax(0)[e]


def _swapped(x, gate_up, down) -> Tensor:
    up, gate = (x @ gate_up).chunk(2)
    return (F.silu(gate) * up) @ down


def _interleaved(x, gate_up, down) -> Tensor:
    both = x @ gate_up
    return (F.silu(both[0::2]) * both[1::2]) @ down


def _plain_gate(x, gate_up, down) -> Tensor:
    gate, up = (x @ gate_up).chunk(2)
    return (torch.sigmoid(gate) * up) @ down


def _no_curve(x, gate_up, down) -> Tensor:
    gate, up = (x @ gate_up).chunk(2)
    return (gate * up) @ down


def _every_expert(x, router, gate_up, down) -> Tensor:
    score = torch.sigmoid(router @ x)
    parts = zip(score, gate_up, down, strict=True)
    return sum(_expert(g * x, into, out) for g, into, out in parts)


def _gradient_reaches_router(answer) -> bool:
    x, router, gate_up, down = _inputs(0)
    router.requires_grad_()
    out = answer(x, router, gate_up, down)
    if not out.requires_grad:
        return False
    out.sum().backward()
    return router.grad is not None and bool(router.grad.abs().sum() > 0)


_OUTSIDE = "You scaled the expert's output. Llama 4 scales its input: see section 4."
routed_expert = Check(
    "routed_expert",
    reference=_library,
    inputs=_inputs,
    wrong={
        _OUTSIDE: _mistake(_sigmoid, before=False, after=True),
        "The score is missing: scale the input by its sigmoid.": _mistake(lambda s, e: 1.0),
        "You scaled both input and output: the input alone.": _mistake(_sigmoid, after=True),
        "You used a softmax over all experts; Llama 4 takes the sigmoid of the chosen score "
        "alone.": _mistake(_softmax),
        "A softmax, and on the output: it is a sigmoid, and on the input.": _mistake(
            _softmax, before=False, after=True
        ),
        "You scaled with the raw score: its sigmoid is meant.": _mistake(lambda s, e: s[e]),
        "You took the lowest score.": _mistake(_sigmoid, pick=Tensor.argmin),
        "Gate and up are swapped: the first half is the gate.": _mistake(_sigmoid, expert=_swapped),
        "You took every second column as gate: the first half is the gate.": _mistake(
            _sigmoid, expert=_interleaved
        ),
        "The gate passes through silu, which is z times sigmoid(z).": _mistake(
            _sigmoid, expert=_plain_gate
        ),
        "The silu is missing: the gate passes through it.": _mistake(_sigmoid, expert=_no_curve),
        "You asked every expert; the token goes to the best one alone.": _every_expert,
        "You took the expert whose score is largest in size; negative scores lose.": _mistake(
            _sigmoid, pick=lambda score: score.abs().argmax()
        ),
    },
    properties={
        "The values are right, but no gradient reaches the router, so it could never learn. "
        "Did .item(), .data or float() cut it off?": _gradient_reaches_router
    },
    praise="It equals the library's on random inputs, and its gradient reaches the router.",
)

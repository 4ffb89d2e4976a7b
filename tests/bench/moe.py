"""Section "moe": a layer of experts beside transformers', beside our plainer forms, and growth."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from einops import rearrange
from torch import Tensor

from minillama4.model.moe import MoE, looped_experts, naive_experts

from .pairs import moe_pair
from .plan import Plan
from .report import Row
from .timing import Candidate, check_equal, take_turns, threads

GAIN = {(16, False): 10, (16, True): 10, (128, False): 40}  # (experts, training), 4,096 tokens
GROWTH = {False: 1.25, True: 1.5}
LARGE = 4096


def cases(plan: Plan) -> Iterator[tuple[str, Callable[[], list[Row]]]]:
    """(title, what measures it), in the order of the table."""
    for train, experts, tokens in _sizes(plan):
        yield f"{experts} experts", lambda e=experts, n=tokens, t=train: against(plan, e, n, t)
    most, many = plan.growth, max(plan.tokens)
    for train in (False, True):
        yield "our forms", lambda t=train: forms(plan, 16, many, t)
        for count in sorted({1, plan.threads}):
            yield "growth", lambda c=count, t=train: growth(plan, most, many, c, t)


def _sizes(plan: Plan) -> list[tuple[bool, int, int]]:
    forward = [(False, e, n) for n in plan.tokens for e in plan.experts]
    return forward + [(True, e, n) for n in plan.train_tokens for e in plan.train_experts]


def against(plan: Plan, experts: int, tokens: int, train: bool) -> list[Row]:
    """Ours and transformers on the same weights and tokens."""
    ours, theirs = moe_pair(experts, plan.width, plan.hidden)
    runs = {
        "minillama4": Step(ours, tokens, train, ours),
        "transformers": Step(ours, tokens, train, lambda x: theirs(x)[0].view_as(x)),
    }
    what = _title(experts, tokens, train)
    gap = check_equal(what, runs["minillama4"].results(), runs["transformers"].results())
    times = _time(plan, runs)
    target = GAIN.get((experts, train)) if tokens == LARGE else None
    mine, other = times["minillama4"], times["transformers"]
    return [Row("moe", what, mine, "transformers", other, plan.threads, gap, target=target)]


def forms(plan: Plan, experts: int, tokens: int, train: bool) -> list[Row]:
    """The library's form beside the two that are there to be read."""
    ours, _ = moe_pair(experts, plan.width, plan.hidden)
    runs = {
        "minillama4": Step(ours, tokens, train, ours),
        "our naive form": Step(ours, tokens, train, _with(ours, naive_experts)),
        "our looped form": Step(ours, tokens, train, _with(ours, looped_experts)),
    }
    what, mine = _title(experts, tokens, train), runs["minillama4"].results()
    others = list(runs)[1:]
    gaps = {name: check_equal(f"{what}, {name}", mine, runs[name].results()) for name in others}
    times = _time(plan, runs)
    return [
        Row("moe", what, times["minillama4"], name, times[name], plan.threads, gaps[name])
        for name in others
    ]


def growth(plan: Plan, most: int, tokens: int, count: int, train: bool) -> list[Row]:
    """What more experts cost, though each token still meets one of them and the shared one."""
    layers = {e: moe_pair(e, plan.width, plan.hidden)[0] for e in (1, most)}
    runs = {e: Step(layer, tokens, train, layer) for e, layer in layers.items()}
    with threads(count):
        times = _time(plan, runs)
    target = GROWTH[train] if (most, tokens) == (128, LARGE) else None
    what = _title(most, tokens, train)
    few = "ours with 1 expert"
    return [Row("moe", what, times[most], few, times[1], count, kind="cost", target=target)]


class Step:
    """A forward pass over fixed tokens, with its backward pass when ``train``."""

    def __init__(self, layer: MoE, tokens: int, train: bool, forward: Callable[[Tensor], Tensor]):
        draw = torch.Generator().manual_seed(1)
        width = layer.router.weight.shape[1]
        self.x = torch.randn(1, tokens, width, generator=draw).requires_grad_(train)
        self.weight = torch.randn(1, tokens, width, generator=draw)
        self.layer, self.train, self.forward = layer, train, forward

    def __call__(self, _=None) -> Tensor:
        with torch.set_grad_enabled(self.train):
            out = self.forward(self.x)
        if self.train:
            self.x.grad = None
            self.layer.zero_grad()
            out.backward(self.weight)
        return out

    def results(self) -> list[Tensor]:
        """The output, and every gradient."""
        out = [self().detach().clone()]
        if self.train:
            out += [p.grad.clone() for p in (self.x, *self.layer.parameters())]
        return out


def _with(layer: MoE, form: Callable) -> Callable[[Tensor], Tensor]:
    """The layer, its experts computed by ``form``."""

    def forward(x: Tensor) -> Tensor:
        tokens = rearrange(x, "b t m -> (b t) m")
        routed = form(layer.experts, tokens, *layer.router(tokens))
        return rearrange(layer.shared(tokens) + routed, "(b t) m -> b t m", b=len(x))

    return forward


def _time(plan: Plan, runs: dict) -> dict:
    candidates = {name: Candidate(run) for name, run in runs.items()}
    return take_turns(candidates, plan.rounds, plan.seconds, plan.fewest)


def _title(experts: int, tokens: int, train: bool) -> str:
    kind = "forward+backward" if train else "forward"
    plural = ("" if experts == 1 else "s", "" if tokens == 1 else "s")
    return f"{kind}, {experts} expert{plural[0]}, {tokens:,} token{plural[1]}"

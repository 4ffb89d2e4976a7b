"""Layers of experts with a mistake in them, and the judge of a test that should find it.

Each mistake has been made in public code (spec, sections 16 and 17). All shapes are right, nothing
crashes, and the output looks like any other.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from einops import einsum, rearrange
from torch import Tensor, nn

from ...config import Llama4Config
from ...model.moe import MoE
from ..checks import Verdict

TYPES = (torch.float32, torch.float64)


def _output(
    layer: MoE,
    x: Tensor,
    *,
    weight=lambda score, best, choice: torch.sigmoid(best),
    before: bool = True,
    after: bool = False,
    columns=lambda gate_up: gate_up,
    shared=lambda layer, x, g: layer.shared(x),
    skip: int = 0,
) -> Tensor:
    """What a layer with some mistake gives; x (n, m). The defaults are Llama 4."""
    score = layer.router.logits(x)
    best, choice = (part[:, skip:] for part in score.topk(layer.router.top_k + skip))  # n k
    g = weight(score, best, choice)
    inputs = einsum(x, g if before else torch.ones_like(g), "n m, n k -> n k m")
    into, down = columns(layer.experts.gate_up)[choice], layer.experts.down[choice]
    gate, up = einsum(inputs, into, "n k m, n k m f -> n k f").chunk(2, dim=-1)
    out = einsum(F.silu(gate) * up, down, "n k f, n k f m -> n k m")
    routed = einsum(out, g if after else torch.ones_like(g), "n k m, n k -> n m")
    return shared(layer, x, g) + routed


MISTAKES = {
    "the score on the expert's output": dict(before=False, after=True),
    "the score on input and output": dict(after=True),
    "no score at all": dict(before=False),
    "the raw score, without its sigmoid": dict(weight=lambda score, best, choice: best),
    "a softmax over all experts": dict(
        weight=lambda score, best, choice: score.softmax(-1).gather(1, choice)
    ),
    "a softmax over the chosen experts": dict(weight=lambda score, best, choice: best.softmax(-1)),
    "the shared expert scaled too": dict(shared=lambda layer, x, g: layer.shared(g[:, :1] * x)),
    "no shared expert": dict(shared=lambda layer, x, g: 0),
    "gate and up swapped": dict(columns=lambda w: w.roll(w.shape[-1] // 2, -1)),
    "gate and up read from every second column": dict(
        columns=lambda w: rearrange(w, "e m (f two) -> e m (two f)", two=2)
    ),
    "the second-best expert": dict(skip=1),
}


class Layer(MoE):
    """A layer of experts, perhaps with a mistake: a test has to find out."""

    def __init__(self, mistake: str | None = None, top_k: int = 1, seed: int = 0):
        sizes = dict(width=16, experts=4, expert_hidden=24, top_k=top_k)
        super().__init__(Llama4Config.nano(**sizes))
        self._mistake = None if mistake is None else MISTAKES[mistake]
        draw = torch.Generator().manual_seed(seed)
        for weight in self.parameters():
            nn.init.normal_(weight, std=weight.shape[1] ** -0.5, generator=draw)

    def __repr__(self) -> str:
        experts, width = self.router.weight.shape
        return f"Layer(width {width}, {experts} experts, top-{self.router.top_k})"

    def forward(self, x: Tensor) -> Tensor:
        if self._mistake is None:
            return super().forward(x)
        return _output(self, x.flatten(0, 1), **self._mistake).view_as(x)


def suspects() -> dict[str, Layer]:
    """Three layers with the same weights, one of them broken."""
    return {"A": Layer(), "B": Layer("the score on input and output"), "C": Layer()}


@dataclass(frozen=True)
class Hunt:
    """Judges a test of layers: no false alarm, and every broken layer caught."""

    name: str
    praise: str = "No false alarm, and every broken layer caught."

    def __call__(self, test) -> Verdict:
        try:
            with torch.random.fork_rng():  # the same test gets the same verdict
                torch.manual_seed(0)
                return self._judge(test)
        except NotImplementedError:
            return Verdict(False, f"{self.name} is still to do: replace the line that raises.")
        except Exception as error:
            return Verdict(False, f"Your test stopped with {type(error).__name__}: {error}")

    def _judge(self, test) -> Verdict:
        right = [
            Layer(None, k, seed).to(kind) for k in (1, 2) for seed in range(4) for kind in TYPES
        ]
        answers = [test(layer) for layer in right]
        if any(answer is None for answer in answers):
            return Verdict(False, f"{self.name} returns None: is a return missing?")
        if all(answers):
            return Verdict(
                False,
                "You call every layer broken, right ones too. True should mean broken; and if you "
                "compare numbers, leave room for rounding (torch.allclose).",
            )
        if any(answers):
            return Verdict(
                False,
                "A false alarm: you called a right layer broken. If you compare numbers, leave "
                "room for rounding (torch.allclose); layers come with top-1 and top-2, in float32 "
                "and float64.",
            )
        missed = [name for name in MISTAKES if not all(map(test, _broken(name)))]
        if not missed:
            return Verdict(True, self.praise)
        caught = f"{len(MISTAKES) - len(missed)} of {len(MISTAKES)} mistakes caught"
        return Verdict(False, f"No false alarm; {caught}. One that got away: {missed[0]}.")


def _broken(mistake: str) -> list[Layer]:
    # with top-1, a softmax over the chosen is the same as no score at all
    return [Layer(mistake, top_k, seed) for top_k, seed in ((1, 5), (2, 6))]

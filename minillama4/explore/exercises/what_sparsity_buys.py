"""Checks for *What sparsity buys* (notebooks/01_moe/05_what_sparsity_buys.ipynb)."""

import random

from ...config import Llama4Config
from ..checks import Check


def _config(seed: int) -> Llama4Config:
    """A small model with experts in every layer, other sizes for each seed."""
    draw = random.Random(seed)
    sizes = dict(
        width=draw.choice([32, 48, 64]),
        layers=draw.randint(2, 6),
        experts=draw.choice([8, 12, 16]),
        top_k=1 + seed % 3,
        expert_hidden=draw.choice([32, 48, 64]),
        vocab_size=draw.choice([300, 512, 2048]),
    )
    return Llama4Config.nano(**sizes)


class _NumberCheck(Check):
    """A check of an answer that is one number."""

    def _describe(self, given, cases) -> str:
        for value in given:
            if not isinstance(value, int | float):
                kind = type(value).__name__
                return f"{self.name} returns {kind}; a number is expected."
        return super()._describe(given, cases)


# ---------------------------------------------------------------------- 1: equal total
def _stored_exactly(c: Llama4Config) -> float:
    return (c.experts + 1) * c.expert_hidden + c.experts / 3


equal_total = _NumberCheck(
    "equal_total",
    reference=lambda c: (c.experts + 1) * c.expert_hidden,
    inputs=lambda seed: (_config(seed),),
    wrong={
        "You forgot the shared expert: it is stored as well.": lambda c: (
            c.experts * c.expert_hidden
        ),
        "That is equal active: what one token uses. All that is stored is asked for.": lambda c: (
            (c.top_k + 1) * c.expert_hidden
        ),
        "That is what one token uses, and the shared expert is missing in it.": lambda c: (
            c.top_k * c.expert_hidden
        ),
        "You counted the chosen experts twice: they are among the stored ones.": lambda c: (
            (c.experts + c.top_k + 1) * c.expert_hidden
        ),
        "That is the sum over all layers: dense_hidden is the width of one.": lambda c: (
            c.layers * (c.experts + 1) * c.expert_hidden
        ),
        "That is a number of parameters; the hidden width of the SwiGLU is asked for.": lambda c: (
            3 * c.width * (c.experts + 1) * c.expert_hidden
        ),
        "You spread the router's matrix over the layer as well: leave it out here.": (
            _stored_exactly
        ),
        "That is the width of one expert.": lambda c: c.expert_hidden,
        "576 is the answer for this notebook's model alone: compute it from the config.": (
            lambda c: 576
        ),
    },
    praise="A dense layer so wide stores what the MoE layer stores, its router apart.",
)


# ---------------------------------------------------------------------- 2: equal compute
def _cost(c: Llama4Config) -> int:
    count = c.parameters()
    return count.active - count.text["embedding"] - count.text["norms"]


def _ratio(cost):
    return lambda moe, dense, steps: steps * cost(moe) / cost(dense)


def _feed_forward(c: Llama4Config) -> int:
    parts = ("routers", "shared experts", "routed experts", "dense layers")
    return sum(c.parameters().active_text[part] for part in parts)


def _pair(seed: int) -> tuple[Llama4Config, Llama4Config, int]:
    moe = _config(seed)
    dense = moe.replace(moe_at=(), dense_hidden=(moe.experts + 1) * moe.expert_hidden)
    return moe, dense, 1000 * (seed + 1)


equal_compute = _NumberCheck(
    "equal_compute",
    reference=_ratio(_cost),
    inputs=_pair,
    wrong={
        "The ratio stands upside down: the dearer model gets fewer steps.": lambda m, d, n: (
            n * _cost(d) / _cost(m)
        ),
        "You counted what is stored; a token costs what it uses.": _ratio(
            lambda c: c.parameters().text_total
        ),
        "You counted the embedding: it is looked up, not multiplied with.": _ratio(
            lambda c: c.parameters().active
        ),
        "You counted the norms: they are vectors, not matrices.": _ratio(
            lambda c: c.parameters().active - c.parameters().text["embedding"]
        ),
        "You counted the feed-forward layers alone: attention and head cost as well.": _ratio(
            _feed_forward
        ),
        "The head is missing: every token is compared with the whole vocabulary.": _ratio(
            lambda c: _cost(c) - c.parameters().text["head"]
        ),
        "You compared the widths alone: attention and head cost as well.": lambda m, d, n: (
            n * (m.top_k + 1) * m.expert_hidden / d.dense_hidden
        ),
        "You compared the widths alone, and as if one expert were always chosen: attention and "
        "head cost as well.": lambda m, d, n: n * 2 * m.expert_hidden / d.dense_hidden,
        "That is the ratio of the costs; a number of steps is asked for.": lambda m, d, n: (
            _cost(m) / _cost(d)
        ),
        "180 is the answer for this notebook's models alone: compute it from the configs.": (
            lambda m, d, n: 180
        ),
        "Both would get equally many steps: the dense model would cost more.": lambda m, d, n: n,
    },
    praise="With so many steps, both have done equally many multiply-adds.",
    tolerance=2e-3,  # rounded to whole steps or not
)


# ---------------------------------------------------------------------- 3: finer experts
class _ConfigCheck(Check):
    """A check of an answer that is a config."""

    def _agree(self, given, function, cases) -> bool:
        return all(value == function(*case) for value, case in zip(given, cases, strict=True))

    def _describe(self, given, cases) -> str:
        for value, (config,) in zip(given, cases, strict=True):
            if not isinstance(value, Llama4Config):
                kind = type(value).__name__
                return f"{self.name} returns {kind}; a config is expected: config.replace(...)."
            for what, count in (("active", _active), ("stored", _stored)):
                if count(value) != count(config):
                    return (
                        f"Hidden width {what} in a layer is {count(value)}, and was "
                        f"{count(config)} with {config.experts} experts, top-{config.top_k}."
                    )
            if 2 * value.expert_hidden != config.expert_hidden:
                return f"An expert has hidden width {value.expert_hidden}, not half of the old."
        return "Active and stored are right, but something else was changed with them."


def _active(c: Llama4Config) -> int:
    return (c.top_k + 1) * c.expert_hidden


def _stored(c: Llama4Config) -> int:
    return (c.experts + 1) * c.expert_hidden


def _half(top_k, experts, part=2):
    """An answer with top_k(k) and experts(e), each expert a ``part`` of the old width."""
    return lambda c: c.replace(
        expert_hidden=c.expert_hidden // part, top_k=top_k(c.top_k), experts=experts(c.experts)
    )


def _twice(n: int) -> int:
    return 2 * n


def _twice_and_one(n: int) -> int:
    return 2 * n + 1


def _same(n: int) -> int:
    return n


finer = _ConfigCheck(
    "finer",
    reference=_half(_twice_and_one, _twice_and_one),
    inputs=lambda seed: (_config(seed),),
    wrong={
        "The shared expert is halved with the others (it has the same width): one more routed "
        "expert must make up for it, among those chosen and among those stored.": _half(
            _twice, _twice
        ),
        "Stored is right. Active is short by half an old expert: the shared one.": _half(
            _twice, _twice_and_one
        ),
        "Active is right. Stored is short by half an old expert: the shared one.": _half(
            _twice_and_one, _twice
        ),
        "You halved the experts and changed neither how many there are nor how many are "
        "chosen.": _half(_same, _same),
        "You doubled the experts; a token must choose more of them too.": _half(_same, _twice),
        "A token chooses more, but as many are stored as before, each half as wide.": _half(
            _twice, _same
        ),
        "The experts still have their old width.": _half(_twice, _twice, part=1),
        "The numbers of experts are right; their width is still the old one.": _half(
            _twice_and_one, _twice_and_one, part=1
        ),
        "A quarter of the width, where half is asked for.": _half(_twice, _twice, part=4),
    },
    praise="Active and stored are what they were, the router apart, in smaller pieces.",
)

"""Checks for *Scout, Maverick, Behemoth* (notebooks/01_moe/08_scout_maverick_behemoth.ipynb)."""

import math

from ...config import Llama4Config
from ..checks import Check, number

_SCOUT = Llama4Config.scout().parameters()
_ROUTED = _SCOUT.text["routed experts"]
_GUARD = _SCOUT.total - _ROUTED - _SCOUT.text["routers"]

guard = number(
    "guard",
    right=_GUARD,
    wrong={
        "The routers are still in: with no experts to choose from, they go too.": _SCOUT.total
        - _ROUTED,
        "You left the vision part out; Llama Guard 4 sees images.": _GUARD - _SCOUT.vision_total,
        "You took the shared experts out as well; they stay, as the layers' FFN.": _GUARD
        - _SCOUT.text["shared experts"],
        "You took away what one token touches of the routed experts: all of them go.": _SCOUT.total
        - _SCOUT.active_text["routed experts"]
        - _SCOUT.text["routers"],
        "Right, but in billions: return the whole number.": _GUARD / 1e9,
        "That is Scout itself.": _SCOUT.total,
    },
    praise='12,001,097,216: to the last parameter what Llama Guard 4, "12B", is said to have.',
    tolerance=1e-10,
)


def _batch(experts: int) -> int:
    return math.ceil(math.log(0.5) / math.log(1 - 1 / experts))


half = number(
    "half",
    right=_batch(128),
    wrong={
        "That would be right if no two tokens ever chose the same expert.": 64,
        "With one token fewer than needed: just below half.": _batch(128) - 1,
        "That is Scout, with 16 experts; Maverick has 128.": _batch(16),
        "That is all the experts there are, not half of what a batch meets.": 128,
        "That is the place where ln(1/2) is divided by 1/128: close, but use ln(127/128).": (
            128 * math.log(2)
        ),
    },
    praise="89 tokens meet half of Maverick's experts, where 11 do in Scout.",
)

_MIXTRAL = (46_702_792_704, 12_879_925_248, 8, 2)  # 8x7B: two of eight experts, none shared


def _models(seed: int) -> tuple[int, int, int, int]:
    """(total, active, experts, top_k) of five models."""
    if seed == 0:
        return (_SCOUT.text_total, _SCOUT.active, 16, 1)
    if seed == 1:
        return _MIXTRAL
    presets = (Llama4Config.maverick, Llama4Config.behemoth, Llama4Config.mini)
    config = presets[seed - 2](top_k=seed - 1)
    count = config.parameters()
    return (count.text_total, count.active, config.experts, config.top_k)


def _expert(total, active, experts, top_k) -> float:
    return (total - active) / (experts - top_k)


outside = Check(
    "outside",
    reference=lambda t, a, e, k: a - k * _expert(t, a, e, k),
    inputs=_models,
    wrong={
        "That is one routed expert over all layers: take what a token uses of them from the active "
        "ones.": _expert,
        "That is what a token uses of routed experts: what is left of the active ones?": (
            lambda t, a, e, k: k * _expert(t, a, e, k)
        ),
        "You took one expert away; a token uses top_k of them.": lambda t, a, e, k: (
            a - _expert(t, a, e, k)
        ),
        "total - active holds experts - top_k experts; you divided by experts - 1.": (
            lambda t, a, e, k: a - k * (t - a) / (e - 1)
        ),
        "total - active holds experts - top_k experts; you divided by experts.": (
            lambda t, a, e, k: a - k * (t - a) / e
        ),
        "You divided the total by the experts; the total holds what is outside of them too.": (
            lambda t, a, e, k: a - k * t / e
        ),
        "That is everything but the experts not chosen, which is the active count itself.": (
            lambda t, a, e, k: a
        ),
    },
    praise="Two public numbers and the number of experts say it, for any model of this kind.",
    tolerance=1e-6,
)

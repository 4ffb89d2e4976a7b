"""Parameters and cache entries, counted from the configuration alone.

Source: arithmetic on the shapes of the published checkpoints; equal to ``sum(p.numel())``
of the model (a test compares them on the meta device, Scout and Maverick included).
"""

from __future__ import annotations

from dataclasses import dataclass

from .config import Llama4Config, VisionConfig


@dataclass(frozen=True)
class ParameterCount:
    """Counts by component; ``active`` is what one text token multiplies with.

    ``active`` counts embedding and head whole, as the published "17B" does.
    """

    text: dict[str, int]
    vision: dict[str, int]
    active_text: dict[str, int]

    @property
    def text_total(self) -> int:
        return sum(self.text.values())

    @property
    def vision_total(self) -> int:
        return sum(self.vision.values())

    @property
    def total(self) -> int:
        return self.text_total + self.vision_total

    @property
    def active(self) -> int:
        return sum(self.active_text.values())

    def __repr__(self) -> str:
        rows = [("", "stored", "active per token")]
        rows += [(k, f"{n:,}", f"{self.active_text[k]:,}") for k, n in self.text.items()]
        rows += [("text in all", f"{self.text_total:,}", f"{self.active:,}")]
        if self.vision:
            rows += [(f"vision {k}", f"{n:,}", "") for k, n in self.vision.items()]
            rows += [("all", f"{self.total:,}", "")]
        wide = [max(len(row[i]) for row in rows) for i in range(3)]
        lines = [f"{a:<{wide[0]}}  {b:>{wide[1]}}  {c:>{wide[2]}}" for a, b, c in rows]
        return "\n".join(line.rstrip() for line in lines)


def count_parameters(config: Llama4Config) -> ParameterCount:
    c, m = config, config.width
    moe, dense = len(c.moe_layers), c.layers - len(c.moe_layers)
    swiglu = 3 * m  # gate, up and down, per unit of hidden width
    text = {
        "embedding": c.vocab_size * m,
        "attention": c.layers * 2 * m * c.head_width * (c.heads + c.kv_heads),
        "norms": (2 * c.layers + 1) * m,
        "routers": moe * c.experts * m,
        "shared experts": moe * swiglu * c.expert_hidden,
        "routed experts": moe * c.experts * swiglu * c.expert_hidden,
        "dense layers": dense * swiglu * c.dense_hidden,
        "head": 0 if c.tied else c.vocab_size * m,
    }
    active = dict(text) | {"routed experts": moe * c.top_k * swiglu * c.expert_hidden}
    return ParameterCount(text, _vision(c.vision, m) if c.vision else {}, active)


def kv_entries(config: Llama4Config, length: int, chunked: bool = True) -> list[int]:
    """Keys (and as many values) that each layer holds at most while ``length`` tokens are read.

    A RoPE layer needs one chunk, and may forget it at a border; a window holds as many. A NoPE
    layer keeps all. chunked=False: every layer keeps all, as Meta's reference code reserves it.
    """
    if length < 0:
        raise ValueError(f"length must be a number of tokens, 0 or more, not {length}.")
    bounded = chunked and config.chunk is not None
    near = min(length, config.chunk) if bounded else length
    return [length if at in config.nope_layers else near for at in range(config.layers)]


def _vision(v: VisionConfig, text_width: int) -> dict[str, int]:
    w, patch, norm = v.width, v.channels * v.patch_size**2, 2 * v.width
    attention = 4 * (w * w + w)
    mlp = 2 * w * v.hidden + v.hidden + w
    return {
        "patch embedding": patch * w,
        "class and positions": w + (v.grid**2 + 1) * w,
        "outer norms": 2 * norm,
        "blocks": v.layers * (attention + mlp + 2 * norm),
        "adapter": w * v.shuffle**2 * v.adapter + v.adapter**2,
        "projection": v.adapter * text_width,
    }

"""Turn a model's sizes and see what it costs: stored, touched by a token, and in bytes.

Bytes are counted for weights in bf16, or as in Meta's Int4 release: routed and shared experts in
4 bits with one float32 scale for 128 weights, all else in bf16. Source: spec, sections 2 and 14.
"""

from __future__ import annotations

import ipywidgets as widgets

from ..config import Llama4Config
from ..count import ParameterCount
from .view import KeepsHtml

BF16 = 2.0  # bytes for a weight
INT4 = (4 + 32 / 128) / 8  # likewise: its 4 bits and its share of a scale
GPU = 80e9  # bytes of one GPU's memory
QUANTISED = ("shared experts", "routed experts")
COLOURS = {
    "embedding and head": "#b6c9c6",
    "attention": "#696cf4",
    "dense layers": "#a47684",
    "shared experts": "#1c902f",
    "routed experts": "#c3dc5a",
    "vision": "#efaa83",
}
WIDE = 620  # pixels that the longer bar may fill


def stored_bytes(count: ParameterCount, scheme: str = "bf16") -> float:
    """Bytes of all weights, vision included; scheme: "bf16" or "int4"."""
    return sum(_stored(count, scheme).values())


def touched_bytes(count: ParameterCount, scheme: str = "bf16") -> float:
    """Bytes that one text token reads at batch 1: of the embedding table one row, nothing else
    of it, so the table is left out."""
    return sum(_touched(count, scheme).values())


def _stored(count: ParameterCount, scheme: str) -> dict[str, float]:
    return _bytes(count.text, scheme) | {"vision": count.vision_total * BF16}


def _touched(count: ParameterCount, scheme: str) -> dict[str, float]:
    return _bytes(count.active_text | {"embedding": 0}, scheme)


def _bytes(parts: dict[str, int], scheme: str) -> dict[str, float]:
    """By the names of COLOURS; norms and routers, a fraction of a percent, go with attention."""
    if scheme not in ("bf16", "int4"):
        raise ValueError(f'scheme = {scheme!r} is not known: use "bf16" or "int4".')
    cost = {name: INT4 if scheme == "int4" and name in QUANTISED else BF16 for name in parts}
    size = {name: parts[name] * cost[name] for name in parts}
    return {
        "embedding and head": size["embedding"] + size["head"],
        "attention": size["attention"] + size["norms"] + size["routers"],
        **{name: size[name] for name in ("dense layers", *QUANTISED)},
    }


def draw(config: Llama4Config, scheme: str = "bf16") -> str:
    """Two bars, what is stored and what a token touches, and the numbers: a piece of HTML."""
    count = config.parameters()
    stored, touched = _stored(count, scheme), _touched(count, scheme)
    whole, read = sum(stored.values()), sum(touched.values())
    word = {"bf16": "bf16", "int4": "Int4"}[scheme]
    lines = [
        f"<b>{_short(count.total)} parameters stored, {_short(count.active)} active per token</b> "
        f"({count.active / count.total:.1%})",
        f"In {word}: {whole / 1e9:,.1f} GB stored, {read / 1e9:,.1f} GB read for a token at batch "
        f"1. {_gpus(whole)}",
    ]
    text = "".join(f'<div style="margin:2px 0">{line}</div>' for line in lines)
    return f'<div class="ml4-sizes">{text}{_bars(stored, touched)}{_legend()}</div>'


def _gpus(size: float) -> str:
    if size <= GPU:
        return f"One GPU of 80 GB holds it, with {(GPU - size) / 1e9:.1f} GB to spare."
    return f"One GPU of 80 GB does not hold it: {-int(-size // GPU)} would."


def _short(count: int) -> str:
    for size, unit in ((1e12, "T"), (1e9, "B"), (1e6, "M")):
        if count >= size:
            return f"{count / size:,.2f}{unit}"
    return f"{count:,}"


def _bars(stored: dict[str, float], touched: dict[str, float]) -> str:
    """Both bars on one scale; a dashed line where the memory of each GPU ends."""
    scale = WIDE / max(sum(stored.values()), GPU)
    rows = [("stored", stored, 16), ("per token", touched, 48)]
    parts = [_bar(name, sizes, y, scale) for name, sizes, y in rows]
    ends = [GPU * i for i in range(1, 9) if GPU * i * scale <= WIDE]
    for end in ends:
        x = 70 + end * scale
        parts.append(
            f'<line x1="{x:.1f}" x2="{x:.1f}" y1="10" y2="76" stroke="currentColor" '
            'stroke-dasharray="3 3"/>'
            f'<text x="{x:.1f}" y="88" text-anchor="middle">{end / 1e9:.0f} GB</text>'
        )
    style = 'style="max-width:100%" font-family="sans-serif" font-size="11" fill="currentColor"'
    return (
        f'<svg viewBox="0 0 {WIDE + 90} 92" width="{WIDE + 90}" {style} role="img" '
        f'aria-label="bars: stored and touched bytes">{"".join(parts)}</svg>'
    )


def _bar(name: str, sizes: dict[str, float], y: int, scale: float) -> str:
    parts, x = [f'<text x="62" y="{y + 15}" text-anchor="end">{name}</text>'], 70.0
    for part, size in sizes.items():
        wide = size * scale
        parts.append(
            f'<rect x="{x:.1f}" y="{y}" width="{wide:.2f}" height="22" fill="{COLOURS[part]}">'
            f"<title>{part}: {size / 1e9:.1f} GB</title></rect>"
        )
        x += wide
    return "".join(parts)


def _legend() -> str:
    names = (
        f'<span style="white-space:nowrap;margin-right:12px"><span style="background-color:{c};'
        f'border:1px solid #888888;padding:0 7px;margin-right:4px"></span>{name}</span>'
        for name, c in COLOURS.items()
    )
    return f'<div style="font-size:12px">{" ".join(names)}</div>'


PRESETS = {
    "Scout": Llama4Config.scout(),
    "Maverick": Llama4Config.maverick(),
    "Behemoth (estimate)": Llama4Config.behemoth(),
}


class SizesView(KeepsHtml, widgets.VBox):
    """See ``sizes_view``. ``config`` is what the knobs say; ``scheme`` how weights are kept."""

    def __init__(self, config: Llama4Config, scheme: str = "bf16"):
        slide = dict(continuous_update=True, layout=widgets.Layout(width="420px"))
        self.layers = widgets.IntSlider(48, 4, 128, 4, description="layers", **slide)
        self.width = widgets.IntSlider(5120, 1024, 20_480, 1024, description="width m", **slide)
        self.experts = widgets.IntSlider(16, 1, 256, 1, description="experts e", **slide)
        self.hidden = widgets.IntSlider(8192, 256, 32_768, 256, description="hidden f", **slide)
        every = [("every layer", 1), ("every second", 2)]
        self.every = widgets.ToggleButtons(options=every, description="experts in")
        kept = [("bf16", "bf16"), ("Int4 experts", "int4")]
        self.kept = widgets.ToggleButtons(options=kept, value=scheme, description="weights in")
        self.presets = [widgets.Button(description=name) for name in PRESETS]
        for button in self.presets:
            button.on_click(lambda pressed: self.show(PRESETS[pressed.description]))
        self.drawing = widgets.HTML()
        self.knobs = (self.layers, self.width, self.experts, self.hidden, self.every)
        self.vision = config.vision
        super().__init__([widgets.HBox(self.presets), *self.knobs, self.kept, self.drawing])
        for knob in (*self.knobs, self.kept):
            knob.observe(self._draw, "value")
        self.show(config)

    def show(self, config: Llama4Config) -> None:
        """Set the knobs to a model's sizes; what they cannot say keeps the rule of Llama 4."""
        self.vision = config.vision
        sizes = (config.layers, config.width, config.experts, config.expert_hidden)
        for knob, size in zip(self.knobs, (*sizes, config.moe_every), strict=True):
            knob.value = size
        self._draw()

    @property
    def config(self) -> Llama4Config:
        """Heads of 128 numbers, 8 KV heads, a dense layer as wide as two experts: as in Scout."""
        return Llama4Config(
            layers=self.layers.value,
            width=self.width.value,
            heads=self.width.value // 128,
            experts=self.experts.value,
            expert_hidden=self.hidden.value,
            dense_hidden=2 * self.hidden.value,
            moe_every=self.every.value,
            vision=self.vision,
        )

    @property
    def scheme(self) -> str:
        return self.kept.value

    def _draw(self, change=None) -> None:
        self.drawing.value = draw(self.config, self.scheme)

    def __repr__(self) -> str:
        return f"SizesView({self.layers.value} layers, {self.experts.value} experts)"

    def to_html(self) -> str:
        """The drawing as it is now, for where no kernel runs."""
        return self.drawing.value


def sizes_view(config: Llama4Config | None = None, scheme: str = "bf16") -> SizesView:
    """Sliders for a model's sizes, and what they cost. config: shown at first, Scout if None.

    scheme: "bf16", or "int4" for Meta's Int4 (experts only). With no kernel a still drawing stays.
    """
    return SizesView(config or Llama4Config.scout(), scheme)

"""Figures under the chunk and temperature explorers: what stays when nothing runs."""

from collections.abc import Sequence

from .colours import INK
from .entropy import one_among
from .reach import visible
from .widget_chunks import COLOURS, chunk_explorer

FAINT, EDGE = "#eeeeee", "#8a8a8a"
WITH, WITHOUT = "#e44100", "#696cf4"


def plot_reach(
    length: int = 48,
    chunk: int = 8,
    layers: int = 8,
    nope_every: int = 4,
    *,
    window: bool = False,
    token: int = 13,
    way: str = "reach",
    ax=None,
    title: str | None = None,
):
    """The chunk explorer's rows of tokens as a figure; its arguments. Returns the axes.

    Lit cells: blue after a RoPE layer, orange after a NoPE layer, a dot where newly lit; borders
    of chunks are lines. The numbers on the right count the lit.
    """
    sizes = dict(length=length, chunk=chunk, layers=layers, nope_every=nope_every)
    view = chunk_explorer(**sizes, window=window, token=token, way=way)
    ax = _axes(ax, (max(4.5, 0.11 * length + 1.6), 0.26 * layers + 0.9))
    nope = view.config.nope_layers
    for level, lit in enumerate(view.lit.tolist()):
        kind = "input" if not level else "nope" if level - 1 in nope else "rope"
        for t, on in enumerate(lit):
            look = dict(facecolor=COLOURS[kind] if on else FAINT, edgecolor="white", linewidth=0.6)
            _box(ax, t, level, 1, 0.8, **look)
        new = view.newly(level)
        ax.plot([t + 0.5 for t in new], [level + 0.4] * len(new), ".", color=INK, markersize=3)
        if kind == "rope" and not window:
            ax.vlines(range(chunk, length, chunk), level - 0.06, level + 0.86, INK, linewidth=1.2)
        ax.text(length + 0.8, level + 0.4, str(sum(lit)), va="center", fontsize=8, color=INK)
    start = 0 if way == "reach" else layers
    _box(ax, token, start, 1, 0.8, fill=False, edgecolor=INK, linewidth=2, zorder=3)
    names = [f"layer {at} {'NoPE' if at in nope else 'RoPE'}" for at in range(layers)]
    ax.set_yticks([level + 0.4 for level in range(layers + 1)], ["input", *names])
    ax.set(xlim=(0, length + 4), ylim=(-0.2, layers + 1), xlabel="position (tokens)")
    _ticks(ax.set_xticks, length, chunk)
    ax.tick_params(length=0, labelsize=8)
    ax.spines[:].set_visible(False)
    found = int(view.lit[-1 if way == "reach" else 0].sum())
    verb = "reaches" if way == "reach" else "draws on"
    ax.set_title(title or f"Token {token} {verb} {found} of {length} tokens", loc="left")
    return ax


def plot_mask(
    config,
    layer: int,
    length: int,
    *,
    window: bool = False,
    token: int | None = None,
    ax=None,
    title: str | None = None,
):
    """Who sees whom in one layer: queries downwards, keys to the right. Returns the axes.

    token: its row and column are framed.
    """
    ax = _axes(ax, (3.6, 3.6))
    mask = visible(config, layer, length, window)
    kind = "nope" if layer in config.nope_layers else "rope"
    for t, row in enumerate(mask.tolist()):  # what a query sees is one stretch
        first, count = row.index(True), sum(row)
        _box(ax, first, t, count, 1, facecolor=COLOURS[kind], linewidth=0)
    _box(ax, 0, 0, length, length, fill=False, edgecolor=EDGE, linewidth=1)
    if kind == "rope" and not window and config.chunk is not None:
        borders = range(config.chunk, length, config.chunk)
        for border in borders:
            ax.plot([border, border, 0], [length, border, border], color=EDGE, linewidth=0.6)
    if token is not None:
        _box(ax, 0, token, length, 1, fill=False, edgecolor=INK, linewidth=1.5)
        _box(ax, token, 0, 1, length, fill=False, edgecolor=INK, linewidth=1.5)
    ax.set(xlim=(-0.3, length + 0.3), ylim=(length + 0.3, -0.3))
    ax.set(xlabel="key (position)", ylabel="query (position)", aspect="equal")
    for ticks in (ax.set_xticks, ax.set_yticks):
        _ticks(ticks, length, config.chunk or length)
    ax.tick_params(length=0, labelsize=8)
    ax.spines[:].set_visible(False)
    ax.set_title(title or f"Layer {layer}, {'NoPE' if kind == 'nope' else 'RoPE'}", loc="left")
    return ax


def plot_temperature(
    floor_scale: int = 8192,
    attn_scale: float = 0.1,
    *,
    advantage: float = 12.0,
    spread: float = 1.0,
    shortest: int = 1024,
    longest: int = 10_485_760,
    titles: Sequence[str] = (),
):
    """The temperature explorer's three panels as a figure; its arguments. Returns the figure.

    titles: three, the message of each panel with these numbers; what is drawn if left out.
    """
    import matplotlib.pyplot as plt
    import torch

    from ..model.attention import attention_temperature

    n = torch.logspace(torch.tensor(shortest).log2(), torch.tensor(longest).log2(), 800, 2.0)
    n = n.round().long()
    s = attention_temperature(n - 1, floor_scale, attn_scale)
    rows = {"with temperature": s, "without": torch.ones_like(s)}
    looks = {"with temperature": dict(color=WITH), "without": dict(color=WITHOUT, linestyle="--")}
    figure, axes = plt.subplots(1, 3, figsize=(11, 3.1), layout="constrained")
    for name, factor in rows.items():
        weight, entropy = one_among(n, advantage, spread, factor)
        for ax, line in zip(axes, (factor, weight, entropy), strict=True):
            ax.plot(n, line, label=name, linewidth=2, **looks[name])
    axes[2].plot(n, n.double().log(), ":", color=EDGE, label="ln n: all the same")
    names = ("factor s on the scores", "weight of the relevant token", "entropy (nats)")
    for ax, name in zip(axes, names, strict=True):
        ax.set(xscale="log", xlabel="context length (tokens)", ylabel=name)
        ax.axvline(floor_scale, color=EDGE, linewidth=0.8)
    axes[1].set_ylim(0, 1.02)
    floor = f"s is exactly 1 up to {floor_scale - 1:,} tokens"
    titles = titles or (floor, "How much the relevant token gets", "How widely attention spreads")
    for ax, title in zip(axes, titles, strict=True):
        ax.set_title(title, loc="left", fontsize=10)
    axes[2].legend(fontsize=8)
    return figure


def _axes(ax, size: tuple[float, float]):
    import matplotlib.pyplot as plt  # here: the rest of the library can do without

    if ax is None:
        _, ax = plt.subplots(figsize=size, layout="constrained", facecolor="white")
    return ax


def _box(ax, x: float, y: float, width: float, height: float, **look) -> None:
    from matplotlib.patches import Rectangle

    ax.add_patch(Rectangle((x, y), width, height, **look))


def _ticks(put, length: int, chunk: int) -> None:
    """Positions at the starts of chunks, as far as they leave room for their numbers."""
    step = chunk * max(1, -(-length // (chunk * 12)))
    put([t + 0.5 for t in range(0, length, step)], [str(t) for t in range(0, length, step)])

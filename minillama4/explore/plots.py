"""Figures that stay when the kernel is gone: one message each, readable in grey and on any page."""

from collections.abc import Sequence

from .colours import INK, PALETTE, expert_colour
from .plots_routing import (
    plot_coactivation,
    plot_experts_by_domain,
    plot_load,
    plot_rise_by_domain,
    plot_saturation,
    plot_specialisation,
)
from .reading import shown

__all__ = [
    "PALETTE",
    "expert_colour",
    "plot_coactivation",
    "plot_curves",
    "plot_experts_by_domain",
    "plot_load",
    "plot_rise_by_domain",
    "plot_routing",
    "plot_runs",
    "plot_saturation",
    "plot_specialisation",
]

CELL = 0.27  # inches along a cell's side
QUIET = "#555555"
# of conditions in experiments: dark enough for lines, apart for every kind of sight
RUN_COLOURS = ("#1c902f", "#e44100", "#696cf4", "#a47684", "#04a0b8", "#b6b601")


def plot_routing(
    seen,
    pieces: Sequence[str],
    layer: int | None = None,
    row: int = 0,
    title: str | None = None,
    per_line: int = 34,
):
    """The expert of every token in every layer, from ``trace``; returns a matplotlib figure.

    pieces: what to print for each token, as ``tokenizer.pieces`` gives them. layer: framed, if
    one is meant. row: of the batch. Long texts go on in further strips, ``per_line`` tokens each.
    With top-k above 1 the first choice is shown. Dense layers are grey.
    """
    length = seen.tokens.shape[1]
    if len(pieces) != length:
        raise ValueError(f"{len(pieces)} pieces for {length} tokens: one each is needed.")
    if layer is not None:
        seen.router[layer]  # a dense layer raises, and says which have a router
    choice = {at: seen.router[at].choice[row, :, 0].tolist() for at in seen.router}
    strips = [range(a, min(a + per_line, length)) for a in range(0, length, per_line)]
    names = [_short(piece) for piece in shown(list(pieces))]
    figure, axes = _empty(seen.config.layers, strips, max(map(len, names)))
    for ax, strip in zip(axes, strips, strict=True):
        _strip(ax, strip, names, choice, seen.config)
        if layer is not None:
            line = dict(fill=False, edgecolor=INK, linewidth=1.8, clip_on=False, zorder=3)
            _box(ax, 0, layer, len(strip), **line)
    experts = f"the same number is the same expert, of {seen.config.experts}"
    _name(figure, title or f"Which expert reads which token: {experts}")
    return figure


def _empty(layers: int, strips: list[range], longest: int):
    """A white figure, axes for each strip: white, so that a dark page can carry it too."""
    import matplotlib.pyplot as plt  # here: the rest of the library can do without

    grid, names, left, title = layers * CELL, 0.072 * longest + 0.15, 0.55, 0.35
    wide = max(len(strips[0]) * CELL, 5.0)
    high = (grid + names) * len(strips) + title
    figure = plt.figure(figsize=(left + wide + 0.1, high + 0.1), facecolor="white")
    (full_w, full_h), axes = figure.get_size_inches(), []
    for i, strip in enumerate(strips):
        bottom, across = high + 0.1 - title - (i + 1) * (grid + names), len(strip) * CELL
        axes.append(
            figure.add_axes((left / full_w, bottom / full_h, across / full_w, grid / full_h))
        )
    return figure, axes


def _name(figure, title: str) -> None:
    wide, high = figure.get_size_inches()
    place = dict(ha="left", va="top", fontsize=10, color=INK)
    figure.text(0.55 / wide, 1 - 0.08 / high, title, **place)


def _strip(ax, strip: range, names: list[str], choice: dict[int, list[int]], config) -> None:
    """One stretch of text: a column for each token, a row for each layer."""
    for layer in range(config.layers):
        if layer not in choice:
            _cell(ax, 0, layer, len(strip), "#e8e8e8", "dense" if len(strip) > 2 else "")
            continue
        for x, t in enumerate(strip):
            expert = choice[layer][t]
            _cell(ax, x, layer, 1, expert_colour(expert, config.experts), str(expert))
    ax.set(xlim=(0, len(strip)), ylim=(config.layers, 0), ylabel="layer")
    ax.xaxis.tick_top()
    words = [names[t] for t in strip]
    ax.set_xticks([x + 0.5 for x in range(len(strip))], words, rotation=90, family="monospace")
    ax.set_yticks([at + 0.5 for at in range(config.layers)], map(str, range(config.layers)))
    ax.tick_params(length=0, labelsize=8, colors=QUIET)
    ax.spines[:].set_visible(False)


def _cell(ax, x: int, layer: int, width: int, colour: str, words: str) -> None:
    _box(ax, x, layer, width, facecolor=colour, edgecolor="white", linewidth=1)
    place = dict(ha="center", va="center", fontsize=7.5, color=INK)
    ax.text(x + width / 2, layer + 0.52, words, **place)


def _box(ax, x: int, layer: int, width: int, **look) -> None:
    from matplotlib.patches import Rectangle

    ax.add_patch(Rectangle((x, layer), width, 1, **look))


def _short(piece: str) -> str:
    """At most twelve characters; "$" alone would start a formula."""
    return (piece if len(piece) <= 12 else piece[:11] + "…").replace("$", r"\$")


def use_palette() -> None:
    """Let every further figure of this notebook draw its lines in the colours of the series."""
    import matplotlib.pyplot as plt

    plt.rcParams["axes.prop_cycle"] = plt.cycler(color=RUN_COLOURS)


def plot_runs(ax, runs, key: str, conditions: Sequence[str] = (), colours: Sequence[str] = ()):
    """A dot for every run and a bar at the mean of each condition; runs from ``experiment``."""
    names = tuple(conditions) or runs.conditions
    for x, name in enumerate(names):
        values = runs.values(name, key)
        colour = colours[x] if colours else RUN_COLOURS[x % len(RUN_COLOURS)]
        spread = [x + 0.09 * (i - (len(values) - 1) / 2) for i in range(len(values))]
        ax.plot([x - 0.25, x + 0.25], [sum(values) / len(values)] * 2, color=colour, linewidth=3)
        ax.plot(spread, values, "o", color=colour, markeredgecolor=INK, markersize=6, zorder=3)
    ax.set_xticks(range(len(names)), names)
    ax.set_xlim(-0.6, len(names) - 0.4)
    return ax


def plot_curves(ax, runs, key: str, x: str = "step", conditions: Sequence[str] = (), colours=()):
    """A thin line for every run and a thick one for each condition's mean; ``key`` and ``x`` name
    lists of numbers, ``x`` the same for all seeds of a condition."""
    for i, name in enumerate(tuple(conditions) or runs.conditions):
        colour = colours[i] if colours else RUN_COLOURS[i % len(RUN_COLOURS)]
        places, lines = runs.values(name, x)[0], runs.values(name, key)
        for line in lines:
            ax.plot(places, line, color=colour, linewidth=0.8, alpha=0.6)
        mean = [sum(values) / len(values) for values in zip(*lines, strict=True)]
        style = ("-", "--", "-.", ":")[i % 4]  # told apart in grey as well
        ax.plot(places, mean, style, color=colour, linewidth=2.4, label=name)
    return ax


LAYOUT_COLOURS = {
    "attention": "#696cf4",
    "dense layer, or shared expert": "#1c902f",
    "the chosen expert": "#e44100",
    "experts not chosen": "#d9d9d9",
    "embedding and head": "#8391b5",
}


def plot_layout(ax, config) -> None:
    """A bar for each layer, as wide as its parameters: area is count. What one token touches is in
    strong colours, the experts it does not visit are grey."""
    part = config.parameters().active_text
    moe = config.moe_layers
    attention = part["attention"] / config.layers
    expert = part["routed experts"] / max(len(moe), 1)
    dense = part["dense layers"] / max(config.layers - len(moe), 1)
    rest = (config.experts / config.top_k - 1) * expert
    for layer in range(config.layers):
        inside = (attention, expert / config.top_k, expert, rest)
        sizes = inside if layer in moe else (attention, dense, 0, 0)
        left = 0.0
        for size, colour in zip(sizes, LAYOUT_COLOURS.values(), strict=False):
            ax.barh(layer, size / 1e9, left=left / 1e9, height=0.85, color=colour, linewidth=0)
            left += size
    table = part["embedding"] / 1e9
    for y in (-2, config.layers + 1):
        ax.barh(y, table, height=0.85, color=LAYOUT_COLOURS["embedding and head"], linewidth=0)
    ax.set(xlabel="parameters (billions)", ylabel="layer", ylim=(config.layers + 2, -3))


def plot_loads(ax, loads, window: int = 10):
    """Loads (steps, e), counts -> bands of each expert's share, its colour, over training steps;
    a mean over ``window`` steps at each point. A number where a band is broad enough at the end."""
    steps, experts = loads.shape
    means = loads.double().unfold(0, min(window, steps), 1).mean(-1)
    shares = (means / means.sum(1, keepdim=True)).T.numpy()  # e, points
    colours = [expert_colour(e, experts) for e in range(experts)]
    places = range(steps - len(means), steps)
    ax.stackplot(places, shares, colors=colours, edgecolor=INK, linewidth=0.3)
    below = 0.0
    for e, share in enumerate(shares[:, -1]):
        if share > 0.05:
            place = dict(ha="right", va="center", fontsize=8, color=INK)
            ax.text(steps * 0.99, below + share / 2, str(e), **place)
        below += share
    ax.set(xlim=(places[0], places[-1]), ylim=(0, 1), xlabel="training step")
    return ax

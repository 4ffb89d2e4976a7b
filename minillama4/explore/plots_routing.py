"""Figures of the measures in ``routing``. Each draws on the axes it is given and returns them; the
message, the title, is the caller's. Numbers stand in the cells where there is room for them."""

from collections.abc import Sequence

from .colours import INK, SHADES, expert_colour

GREY = "#777777"
BARS = 16  # experts that a bar each and a colour each can tell apart
NUMBERS = 40  # rows or columns of a heat map that still have room for numbers


def plot_load(ax, load, name: str = "expert"):
    """Tokens per expert (e,), as shares. Up to 16: a bar each, in the expert's colour, and a line
    where even loads would be. More: a grid of positions, dark for idle, its first row experts 0
    to 7 (of up to 64) or 0 to 15."""
    shares = [float(count) / float(sum(load)) for count in load]
    experts = len(shares)
    if experts > BARS:
        return _load_grid(ax, shares, name)
    colours = [expert_colour(e, experts) for e in range(experts)]
    ax.bar(range(experts), shares, color=colours, edgecolor="#444444", linewidth=0.8)
    ax.axhline(1 / experts, color=INK, linestyle="--", linewidth=1, label="even")
    ax.set_xticks(range(experts))
    ax.set(xlabel=name, ylabel="share of tokens")
    return ax


def _load_grid(ax, shares: list[float], name: str):
    across = 8 if len(shares) <= 64 else 16
    padded = shares + [float("nan")] * (-len(shares) % across)
    rows = [padded[i : i + across] for i in range(0, len(padded), across)]
    image = ax.imshow(rows, cmap=_shades(), vmin=0, aspect="auto")
    top = max(shares)
    for e, share in enumerate(shares):
        _write(ax, e % across, e // across, str(e), share / top, size=7)
    ax.set_xticks([])
    ax.set_yticks([])
    ax.set_xlabel(f"{name}, by its number")
    ax.figure.colorbar(image, ax=ax, label=f"share of tokens (even: {1 / len(shares):.3f})")
    return ax


def plot_specialisation(
    ax,
    found: Sequence,
    layers: Sequence[int] = (),
    colour: str = "#1c902f",
    label: str = "as counted",
    null: str = "shuffled: mean and 95 %",
):
    """What the expert tells, by layer, with its 95 % interval, over the band of its null.

    found: one ``Specialisation`` per layer. Call it again with another colour for another label.
    """
    at = list(layers) or list(range(len(found)))
    raw = [f.raw for f in found]
    margin = [f.high - f.excess for f in found]
    low, high = [f.null_low for f in found], [f.null_high for f in found]
    ax.fill_between(at, low, high, color=colour, alpha=0.25, linewidth=0)
    ax.plot(at, [f.null for f in found], "--", color=colour, linewidth=1.2, label=null)
    ax.errorbar(at, raw, yerr=margin, fmt="o-", color=colour, capsize=3, label=label)
    ax.set_xticks(at)
    ax.set(xlabel="layer", ylabel="nats")
    ax.set_ylim(bottom=0)
    return ax


def plot_experts_by_domain(ax, table, domains: Sequence[str]):
    """Counts (e, domains) as a heat map: of each domain's tokens, the share that an expert reads
    (a column sums to 1). ``joint(choice, domains)`` gives the table."""
    totals = [float(sum(row[d] for row in table)) or 1.0 for d in range(len(domains))]
    shares = [[float(row[d]) / totals[d] for d in range(len(domains))] for row in table]
    return _by_domain(ax, shares, domains, "expert", "share of the domain's tokens")


def plot_rise_by_domain(ax, rise, domains: Sequence[str]):
    """Nats (e, domains) by which a domain's loss rises with an expert switched off."""
    values = [[float(x) for x in row] for row in rise]
    return _by_domain(ax, values, domains, "expert switched off", "rise of the loss, nats")


def _by_domain(ax, values, domains: Sequence[str], rows: str, unit: str):
    image = _heat(ax, values, "{:.2f}")
    ax.set_xticks(range(len(domains)), domains, rotation=30, ha="right")
    step = 1 if len(values) <= NUMBERS else 8
    ax.set_yticks(range(0, len(values), step))
    ax.set_ylabel(rows)
    ax.figure.colorbar(image, ax=ax, label=unit)
    return ax


def plot_coactivation(ax, excess, layers: Sequence[int] = ()):
    """(layers, layers) nats that the experts of two layers tell about each other, above chance.

    The diagonal is left white: a layer knows all about itself.
    """
    names = list(layers) or list(range(len(excess)))
    values = [
        [float(x) if a != b else float("nan") for b, x in enumerate(row)]
        for a, row in enumerate(excess)
    ]
    image = _heat(ax, values, "{:.2f}")
    ax.set_xticks(range(len(names)), names)
    ax.set_yticks(range(len(names)), names)
    ax.set(xlabel="layer", ylabel="layer")
    ax.figure.colorbar(image, ax=ax, label="nats above chance")
    return ax


def plot_saturation(ax, found, layers: Sequence[int] = ()):
    """By training step, the share of decisions that are already the last, chance taken off."""
    names = list(layers) or list(range(found.same.shape[1]))
    settled = found.settled.T.tolist()
    for i, (layer, line) in enumerate(zip(names, settled, strict=True)):
        shade = SHADES[round(i * (len(SHADES) - 3) / max(1, len(names) - 1))]  # none too pale
        style = ("o-", "s--", "^-.", "d:")[i % 4]
        look = {"color": shade, "markersize": 4, "linewidth": 1.5}
        ax.plot(found.steps.tolist(), line, style, label=f"layer {layer}", **look)
    ax.axhline(0, color=GREY, linewidth=0.8)
    ax.set_xscale("symlog", linthresh=1)
    ax.set_xlim(left=-0.1)
    ax.set(xlabel="training steps done", ylabel="settled (0 chance, 1 final)")
    ax.set_ylim(top=1.03)
    return ax


# ---------------------------------------------------------------------- heat maps
def _heat(ax, values: list[list[float]], words: str):
    """An image with its numbers, where there is room."""
    known = [x for row in values for x in row if x == x]
    top, bottom = max(known), min(0.0, *known)
    image = ax.imshow(values, cmap=_shades(), vmin=bottom, vmax=top, aspect="auto")
    if len(values) <= NUMBERS:
        for y, row in enumerate(values):
            for x, value in enumerate(row):
                if value == value:
                    depth = (value - bottom) / ((top - bottom) or 1)
                    rounded = round(value, 2) + 0.0  # no "-0.00"
                    _write(ax, x, y, words.format(rounded), depth, size=7.5)
    return image


def _write(ax, x: int, y: int, words: str, depth: float, size: float) -> None:
    """Dark on the light half of the map, light on the dark one."""
    colour = INK if depth > 0.5 else "#ffffff"
    ax.text(x, y, words, ha="center", va="center", fontsize=size, color=colour)


def _shades():
    from matplotlib.colors import LinearSegmentedColormap

    return LinearSegmentedColormap.from_list("shades", SHADES).with_extremes(bad="#ffffff")

"""Figures of chapter 02, as far as the drawing is not the idea. Each draws on the axes it is given;
the message, the title, is the caller's."""

import math
from collections.abc import Sequence

from .colours import INK

HAND = "#e44100"
FACE = "#bbbbbb"


def plot_hands(ax, frequency, pairs: Sequence[int], positions: Sequence[int]):
    """A clock face for each pair (row) and position (column): its hand points right at position 0
    and turns anticlockwise. frequency: radians per position of every pair."""
    for row, pair in enumerate(pairs):
        for column, position in enumerate(positions):
            angle = position * float(frequency[pair])
            tip = (column + 0.38 * math.cos(angle), row - 0.38 * math.sin(angle))
            _circle(ax, column, row, 0.42, facecolor="white", edgecolor=FACE)
            line = dict(color=HAND, linewidth=2, solid_capstyle="round")
            ax.plot([column, tip[0]], [row, tip[1]], **line)
    ax.set_xticks(range(len(positions)), [f"{position:,}" for position in positions])
    turns = (2 * math.pi / float(frequency[pair]) for pair in pairs)
    names = [f"pair {p}, once in {turn:,.0f}" for p, turn in zip(pairs, turns, strict=True)]
    ax.set_yticks(range(len(pairs)), names)
    ax.set(xlim=(-0.6, len(positions) - 0.4), ylim=(len(pairs) - 0.4, -0.6), xlabel="position")
    ax.set_aspect("equal")
    ax.tick_params(length=0)
    ax.spines[:].set_visible(False)
    return ax


def plot_pairings(ax, d: int, colours: Sequence[str]):
    """The d channels of a head in two rows: above with an arc between neighbours, below, where
    each has gone, with an arc between channel i and i + d/2. A colour for each pair."""
    for channel in range(d):
        pair, second = divmod(channel, 2)
        place, colour = pair + second * d // 2, colours[pair % len(colours)]
        ax.plot([channel, place], [1, 0], color=colour, linewidth=1.4, alpha=0.7, zorder=1)
        for x, y, number in ((channel, 1, channel), (place, 0, channel)):
            _circle(ax, x, y, 0.2, facecolor="white", edgecolor=colour, linewidth=2, zorder=2)
            ax.text(x, y, str(number), ha="center", va="center", fontsize=9, color=INK, zorder=3)
    for pair in range(d // 2):
        colour = colours[pair % len(colours)]
        _arc(ax, 2 * pair, 2 * pair + 1, 1.22, 0.35, colour)
        _arc(ax, pair, pair + d // 2, -0.22, -0.75, colour)
    ax.set(xlim=(-0.7, d - 0.3), ylim=(-1.15, 1.75))
    ax.set_yticks([1, 0], ["pairs", "halves"])
    ax.set_xticks([])
    ax.set_aspect("equal")
    ax.tick_params(length=0)
    ax.spines[:].set_visible(False)
    return ax


def _circle(ax, x: float, y: float, radius: float, **look) -> None:
    from matplotlib.patches import Circle  # here: the rest of the library can do without

    ax.add_patch(Circle((x, y), radius, **look))


def _arc(ax, left: float, right: float, base: float, height: float, colour: str) -> None:
    middle, half = (left + right) / 2, (right - left) / 2
    steps = [math.pi * step / 40 for step in range(41)]
    x = [middle + half * math.cos(step) for step in steps]
    ax.plot(x, [base + height * math.sin(step) for step in steps], color=colour, linewidth=2)

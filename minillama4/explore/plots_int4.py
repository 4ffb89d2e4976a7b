"""Figures for Int4: a group of weights among its levels, as in the explorer."""

from torch import Tensor

from .rounding import WAYS, levels_of, round_weight

KEPT, CUT, EDGE = "#696cf4", "#e44100", "#8a8a8a"


def plot_group(
    weights: Tensor,
    bits: int = 4,
    how: str = WAYS[0],
    ax=None,
    title: str | None = None,
):
    """One group of weights (n,) above, what they become below, and the levels. Returns the axes.

    What moves by more than half a step is drawn in red, and thicker.
    """
    import matplotlib.pyplot as plt

    if ax is None:
        ax = plt.subplots(figsize=(9, 2.2), layout="constrained")[1]
    weights = weights.detach().float()
    levels, back = (
        levels_of(weights, bits, how),
        round_weight(weights[None], bits, len(weights), how),
    )
    step = (levels[1] - levels[0]).item()
    ax.vlines(levels.tolist(), -0.12, 1.0, EDGE, linewidth=0.8)
    for before, after in zip(weights.tolist(), back[0].tolist(), strict=True):
        cut = abs(after - before) > 0.5001 * step
        look = dict(color=CUT if cut else KEPT, zorder=3 if cut else 2)
        ax.plot([before, after], [1, 0], linewidth=2.2 if cut else 0.8, alpha=0.9, **look)
        ax.plot(before, 1, "o", markersize=4, markerfacecolor="none", **look)
        ax.plot(after, 0, "s" if cut else "o", markersize=4.5, **look)
    ax.set(yticks=[0, 1], yticklabels=["level", "weight"], xlabel="value", ylim=(-0.25, 1.2))
    far = 1.05 * max(weights.abs().max().item(), levels.abs().max().item())
    ax.set_xlim(-far, far)
    ax.spines[["top", "right", "left"]].set_visible(False)
    ax.tick_params(axis="y", length=0)
    worst = ((back[0] - weights).abs() / step).max().item()
    ax.set_title(title or f"{how}, {len(levels)} levels: off by {worst:.2f} steps at most")
    return ax

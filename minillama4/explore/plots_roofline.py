"""Figures of decoding's speed: the roofline, time against bytes, and a GPU's recorded run."""

from __future__ import annotations

import json
import statistics
from itertools import cycle
from pathlib import Path

import matplotlib.pyplot as plt

from ..serve.roofline import Step
from .colours import PALETTE

BLUE, ORANGE, GREEN = PALETTE[3], PALETTE[1], PALETTE[13]


def plot_ceilings(steps: dict[str, list[Step]], ax=None):
    """Tokens per second of all texts together against the batch; a line for each entry.

    steps: label -> steps of growing batch. Where arithmetic is the lower limit, the line is dotted.
    """
    ax = ax or plt.figure(figsize=(7.5, 3.6)).gca()
    for colour, (label, line) in zip((BLUE, ORANGE, GREEN, *PALETTE), steps.items(), strict=False):
        batch = [step.batch for step in line]
        ax.loglog(batch, [step.ceiling for step in line], color=colour, label=label, marker=".")
        for step in line:
            if step.bound == "arithmetic":
                ax.plot(step.batch, step.ceiling, "s", color=colour, markersize=7)
    ax.set(xlabel="texts side by side (batch)", ylabel="tokens per second, in all, at most")
    ax.legend()
    return ax


def plot_time(points: dict[str, list[tuple[float, list[float]]]], ax=None, memory=None):
    """Milliseconds of a step against the bytes that it reads; every sample a dot, medians a line.

    points: label -> (bytes, milliseconds of each round). Labels that begin alike up to ", "
    share a colour, and the first of them is drawn hollow and dotted. memory: bytes per second,
    drawn as the line that nothing can be below.
    """
    ax = ax or plt.figure(figsize=(7.5, 3.6)).gca()
    kinds = [label.split(", ")[0] for label in points]
    colours = dict(zip(dict.fromkeys(kinds), cycle((BLUE, ORANGE, GREEN, *PALETTE)), strict=False))
    for i, (kind, (label, line)) in enumerate(zip(kinds, points.items(), strict=True)):
        hollow = kind in kinds[i + 1 :] and kind not in kinds[:i]
        style = dict(color=colours[kind], linestyle=":" if hollow else "-", linewidth=1.2)
        dots = dict(color=colours[kind], markersize=4.5, markerfacecolor="none" if hollow else None)
        for size, samples in line:
            ax.plot([size / 1e6] * len(samples), samples, "o", **dots)
        middle = [statistics.median(samples) for _, samples in line]
        ax.plot([size / 1e6 for size, _ in line], middle, **style)
        ax.plot([], [], marker="o", label=label, **(dots | style))
    if memory is not None:
        low, high = ax.get_xlim()
        sizes = [max(low, 0.3), high]
        ax.plot(sizes, [1e9 * mb / memory for mb in sizes], "k--", linewidth=1, label="memory")
    ax.set(xscale="log", yscale="log", xlabel="read in a step (MB)", ylabel="a step (ms)")
    ax.legend(fontsize="small")
    return ax


# ---------------------------------------------------------------------- a GPU's run
def read_gpu_run(file: str | Path) -> dict | None:
    """What ``python start.py gpu --json`` recorded; None where nothing has been recorded yet.

    ValueError for a file that is something else.
    """
    file = Path(file)
    if not file.exists():
        return None
    try:
        run = json.loads(file.read_text(encoding="utf-8"))
        sections = [row["section"] for row in run["rows"]]
    except (ValueError, KeyError, TypeError):
        raise ValueError(f"{file} is no record of `python start.py gpu`.") from None
    return run | {"sections": sections}


def plot_gpu_run(run: dict, ax=None):
    """Measured tokens per second against the batch, a line for each context, with the MBU beside
    each point. ``run`` is what ``read_gpu_run`` gave."""
    ax = ax or plt.figure(figsize=(7.5, 3.6)).gca()
    rows = [row for row in run["rows"] if row["section"] == "decode" and not row["skew"]]
    contexts = sorted({row["context"] for row in rows})
    for colour, context in zip((BLUE, ORANGE, GREEN, *PALETTE), contexts, strict=False):
        line = [row for row in rows if row["context"] == context]
        batch, speed = ([row[key] for row in line] for key in ("batch", "tokens_per_second"))
        ax.loglog(batch, speed, marker="o", color=colour, label=f"{context:,} tokens behind")
        for row in line:
            place = row["batch"], row["tokens_per_second"]
            ax.annotate(
                f"{row['mbu']:.0%}", place, fontsize=8, xytext=(4, 4), textcoords="offset points"
            )
    ax.set(xlabel="texts side by side (batch)", ylabel="tokens per second, in all")
    ax.set_title(f"{run['gpu']}, {run['date'][:10]}: percent of the memory's ceiling")
    ax.legend()
    return ax

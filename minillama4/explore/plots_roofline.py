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
RIGHT = 0.01  # relative error against float64 that 16 bits leave, as the benchmark has it


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
    """Measured tokens per second against the batch, with the MBU beside each point.

    A line for each context, dotted where routing was skewed; small dots are the rounds.
    ``run`` is what ``read_gpu_run`` gave.
    """
    ax = ax or plt.figure(figsize=(7.5, 3.6)).gca()
    rows = {}
    for row in run["rows"]:
        if row["section"] in ("headline", "decode"):  # the second of two that measured the same
            rows[row["context"], row["skew"], row["batch"]] = row
    contexts = dict.fromkeys(context for context, _, _ in sorted(rows))
    colours = dict(zip(contexts, cycle((BLUE, ORANGE, GREEN, *PALETTE)), strict=False))
    for context, skew in sorted({key[:2] for key in rows}):
        line = [rows[key] for key in sorted(rows) if key[:2] == (context, skew)]
        side = ("left", "right")[list(contexts).index(context) % 2]
        _plot_line(ax, line, colours[context], skew, side)
    ax.set(xscale="log", yscale="log")
    batches = sorted({batch for _, _, batch in rows})
    ax.set_xticks(batches, batches)
    ax.minorticks_off()
    ax.yaxis.set_major_formatter("{x:,.0f}")
    ax.margins(0.09)
    ax.set(xlabel="texts side by side (batch)", ylabel="tokens per second, in all")
    ax.set_title(f"{run['gpu']}, {run['date'][:10]}: percent of the memory's ceiling")
    ax.legend(fontsize="small")
    return ax


def _plot_line(ax, line: list[dict], colour: str, skew: float, side: str) -> None:
    """Rows of one context and one routing; side: where its percentages stand."""
    label = f"{line[0]['context']:,} tokens behind" + (f", skew {skew:g}" if skew else "")
    batch, speed = ([row[key] for row in line] for key in ("batch", "tokens_per_second"))
    face = "none" if skew else colour
    style = dict(color=colour, marker="s" if skew else "o", linestyle=":" if skew else "-")
    ax.plot(batch, speed, label=label, markerfacecolor=face, **style)
    for row in line:
        rounds = [row["batch"] / seconds for seconds in row["samples"]]
        ax.scatter([row["batch"]] * len(rounds), rounds, color=colour, s=6, alpha=0.5)
        place = row["batch"], row["tokens_per_second"]
        offset = 6 if side == "left" else -6, 5 if skew else -11
        style = dict(textcoords="offset points", ha=side, color=colour, fontsize=8)
        ax.annotate(f"{row['mbu']:.0%}", place, offset, **style)


def tell_gpu_run(run: dict) -> str:
    """What the figure does not show of a record, a line each: the memory, kernels, prompts, long
    texts and loading; and what failed or was left out."""
    by = {name: [r for r in run["rows"] if r["section"] == name] for name in run["sections"]}
    lines = []
    for row in by.get("memory", []):
        when = f" at the {row['when']}" if "when" in row else ""
        lines.append(f"memory{when}: {row['read'] / 1e12:.2f} TB/s read")
    lines += _tell_kernels(by.get("kernels", []))
    for row in by.get("prefill", []):
        lines.append(f"prompt of {row['tokens']:,} tokens: read in {row['seconds']:.2f} s")
    for row in by.get("long", []):
        told = "does not fit"
        if row["fits"]:
            told = f"{1 / statistics.median(row['samples']):.0f} tokens a second"
        lines.append(f"text of {row['context']:,} tokens: {told}")
    lines += [_tell_load(row) for row in by.get("load", [])]
    lines += [f"failed: {row['what']}: {row['error']}" for row in by.get("failed", [])]
    left = (row["what"] for row in by.get("left out", []))
    names = [name for what in left for name in ([what] if isinstance(what, str) else what)]
    if names:
        lines.append(f"left out: {', '.join(dict.fromkeys(names))}")
    return "\n".join(lines)


def _tell_kernels(rows: list[dict]) -> list[str]:
    """Checks together, each wrong one by its name, and of each product its best tuning."""
    lines = []
    checks = [(row, float(row["error"])) for row in rows if "check" in row]
    wrong = [f"{row['check']} ({error:.2g})" for row, error in checks if not error < RIGHT]
    if checks:
        told = f"{len(checks) - len(wrong)} of {len(checks)} checks within {RIGHT:.0%}"
        lines.append(f"kernels: {told} of float64" + "".join(f"; wrong: {w}" for w in wrong))
    timed = [row for row in rows if "bytes_per_second" in row]
    for name in dict.fromkeys(row["sweep"] for row in timed):
        best = max((r for r in timed if r["sweep"] == name), key=lambda r: r["bytes_per_second"])
        told = f"{best['bytes_per_second'] / 1e12:.2f} TB/s, {best['share_of_read']:.0%}"
        lines.append(f"kernel {name}: {told} of the memory's, with {best['tuning']}")
    return lines


def _tell_load(row: dict) -> str:
    """A load that was timed, or what a model wrote that had been loaded."""
    wrong = "" if row.get("passed", True) else ": WRONG"
    if "file_bytes" not in row:
        return (
            f"loaded, and {row['decoded']} tokens written: error {float(row['error']):.2g}{wrong}"
        )
    told = f"loading: {row['file_bytes'] / 1e9:.1f} GB of files"
    if "layers" in row:
        told += f", {row['layers']} of {row['layers_of_model']} layers,"
    told += f" in {row['seconds']:.0f} s"
    for key, where in (("host_above_start", "the host above its start"), ("peak", "the device")):
        if row.get(key) is not None:
            told += f", {row[key] / 1e9:.1f} GB at most on {where}"
    return told + wrong

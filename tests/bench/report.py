"""Rows of results, the table of them, and the file they are kept in."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from dataclasses import dataclass
from datetime import datetime, timezone
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path

import torch

from .timing import Timing

ROOT = Path(__file__).resolve().parents[2]
HEAD = ("section", "case", "minillama4", "against", "", "factor", "target", "", "difference")


@dataclass(frozen=True)
class Row:
    """Ours beside another. A "gain" is their time over ours, a "cost" our time over theirs."""

    section: str
    case: str
    ours: Timing
    against: str
    theirs: Timing
    threads: int
    difference: float | None = None  # relative, of the results; None: not the same computation
    kind: str = "gain"
    target: float | None = None  # at least, for a gain; at most, for a cost
    unit: str = ""  # "token" where times are per token
    note: str = ""

    @property
    def factor(self) -> float:
        ours, theirs = self.ours.median, self.theirs.median
        return theirs / ours if self.kind == "gain" else ours / theirs

    @property
    def verdict(self) -> str:
        if self.target is None:
            return ""
        met = self.factor >= self.target if self.kind == "gain" else self.factor <= self.target
        return "met" if met else "missed"

    def cells(self) -> tuple[str, ...]:
        """The row as the table shows it."""
        sign = {"gain": "≥", "cost": "≤"}[self.kind]
        target = "" if self.target is None else f"{sign} {self.target:g}×"
        gap = "" if self.difference is None else f"{self.difference:.0e}"
        factor = f"{self.factor:.2f}×" if self.factor < 10 else f"{self.factor:.1f}×"
        factor += " faster" if self.kind == "gain" else " the time"
        case = f"{self.case}, {self.threads}T" + (f" ({self.note})" if self.note else "")
        times = (spread(self.ours, self.unit), self.against, spread(self.theirs, self.unit))
        return (self.section, case, *times, factor, target, self.verdict, gap)

    def record(self) -> dict:
        """The row as the file keeps it, times in seconds, every sample."""
        names = ("section", "case", "against", "threads", "difference", "kind", "target", "unit")
        kept = {name: getattr(self, name) for name in (*names, "note", "factor", "verdict")}
        return kept | {"ours": self.ours.samples, "theirs": self.theirs.samples}


def duration(seconds: float) -> str:
    """Three digits and a unit: 12.3 ms."""
    for size, unit in ((1, "s"), (1e-3, "ms")):
        if seconds >= size:
            return f"{seconds / size:.3g} {unit}"
    return f"{seconds / 1e-6:.3g} µs"


def spread(time: Timing, unit: str = "") -> str:
    """Median, and lowest and highest sample as percentages around it."""
    per = f"/{unit}" if unit else ""
    if len(time.samples) == 1:
        return f"{duration(time.median)}{per} once"
    below, above = (100 * (end / time.median - 1) for end in (time.low, time.high))
    return f"{duration(time.median)}{per} {below:+.0f}..{above:+.0f} %"


def table(rows: list[Row], markdown: bool = False) -> str:
    """All rows under one head, aligned; with ``markdown`` as a README shows it."""
    lines = [HEAD, *(row.cells() for row in rows)]
    widths = [max(len(line[i]) for line in lines) for i in range(len(HEAD))]
    padded = [
        [cell.ljust(width) for cell, width in zip(line, widths, strict=True)] for line in lines
    ]
    if not markdown:
        ruled = [padded[0], ["─" * width for width in widths], *padded[1:]]
        return "\n".join("  ".join(line).rstrip() for line in ruled)
    ruled = [padded[0], ["-" * width for width in widths], *padded[1:]]
    return "\n".join(f"| {' | '.join(line)} |" for line in ruled)


# ---------------------------------------------------------------------- where and how
def provenance(command: list[str], threads: int) -> dict:
    """All that a figure depends on besides the code."""
    packages = ["torch", "transformers", "triton", "einops", "numpy", "llama-cpp-python"]
    packages = [p for p in packages if find_spec(p.replace("-python", "").replace("-", "_"))]
    system = f"{platform.system()} {platform.machine()}"
    return {
        "command": " ".join(command),
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "commit": _git("describe", "--always", "--dirty", "--abbrev=12", "--exclude=*"),
        "machine": {"cpu": _cpu(), "cores": os.cpu_count(), "system": system},
        "vector_instructions": torch.backends.cpu.get_cpu_capability(),
        "versions": {"python": platform.python_version()} | {p: version(p) for p in packages},
        "threads": threads,
        "load_before": load(),
    }


def load() -> float | None:
    """Processes that wanted a core in the last minute; None where the system does not say."""
    return round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else None


def _git(*args: str) -> str | None:
    """What git answers; None without git or outside a checkout."""
    try:
        done = subprocess.run(["git", *args], cwd=ROOT, capture_output=True, text=True, timeout=10)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() or None


def _cpu() -> str:
    """The processor's name, as the system tells it."""
    if sys.platform == "linux":
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()

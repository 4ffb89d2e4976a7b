"""Experiments: several conditions, several seeds, every run kept, effects with their spread.

    runs = repeat({"dense": train_dense, "sparse": train_sparse}, seeds=range(3))
    runs.effect("sparse", "dense", "loss")          # -0.12 (95 %: -0.15 to -0.09, 3 seeds)

A condition is a function of a seed that returns what it measured. All conditions see the same
seeds, so that an effect is a difference of pairs: what a seed does to both is not in it. With three
seeds the 95 % interval is 2.5 times the spread of the differences to either side: wide, and right.
"""

from __future__ import annotations

import json
import math
import os
import platform
import statistics
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass, field
from datetime import date
from pathlib import Path

import torch
from tqdm.auto import tqdm

from ..files import write_json

Condition = Callable[[int], dict]

# Student's t, two-sided 95 %, by degrees of freedom from 1; beyond, 1.96 + 2.4 / freedom is near
T95 = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228, 2.201, 2.179)


@dataclass(frozen=True)
class Effect:
    """A mean with its 95 % interval over seeds (Student's t), in the unit of what was measured."""

    mean: float
    low: float
    high: float
    seeds: int

    @classmethod
    def of(cls, values: Iterable[float]) -> Effect:
        """From one finite number per seed; two or more."""
        values = [float(value) for value in values]
        if len(values) < 2:
            raise ValueError(f"{len(values)} value has no spread: give two seeds or more.")
        for place, value in enumerate(values, 1):
            if not math.isfinite(value):
                raise ValueError(
                    f"Number {place} of {len(values)} is {value}, and there is no mean with it: "
                    "leave that seed out of every condition, and say so."
                )
        freedom = len(values) - 1
        t = T95[freedom - 1] if freedom <= len(T95) else 1.96 + 2.4 / freedom
        half = t * statistics.stdev(values) / math.sqrt(len(values))
        mean = statistics.fmean(values)
        return cls(mean, mean - half, mean + half, len(values))

    @property
    def certain(self) -> bool:
        """Does the interval leave out zero?"""
        return self.low > 0 or self.high < 0

    def __repr__(self) -> str:
        return f"{self.mean:+.3g} (95 %: {self.low:+.3g} to {self.high:+.3g}, {self.seeds} seeds)"


@dataclass(frozen=True)
class Runs:
    """results[condition][i]: what the run with seeds[i] measured, numbers or lists of numbers.

    "seconds" (wall time) is added to each run. A number that is none (a run that diverged) is
    None. about: how the file was made, where it was read from one.
    """

    seeds: tuple[int, ...]
    results: dict[str, list[dict]]
    about: dict = field(default_factory=dict)

    @property
    def conditions(self) -> tuple[str, ...]:
        return tuple(self.results)

    def __repr__(self) -> str:
        keys = {key: None for rows in self.results.values() for row in rows for key in row}
        return f"Runs({len(self.seeds)} seeds of {', '.join(self.results)}; {', '.join(keys)})"

    def values(self, condition: str, key: str) -> list:
        """What was measured under ``key``, one per seed."""
        if condition not in self.results:
            raise LookupError(f"No condition {condition!r}; there are {', '.join(self.results)}.")
        rows = self.results[condition]
        if any(key not in row for row in rows):
            raise LookupError(f"{condition!r} measured no {key!r}, but {', '.join(rows[0])}.")
        return [row[key] for row in rows]

    def mean(self, condition: str, key: str) -> float:
        return statistics.fmean(self._numbers(condition, key))

    def effect(self, condition: str, control: str, key: str) -> Effect:
        """``condition`` minus ``control``, paired by seed; of numbers, and finite ones."""
        ones, others = self._numbers(condition, key), self._numbers(control, key)
        return Effect.of(a - b for a, b in zip(ones, others, strict=True))

    def _numbers(self, condition: str, key: str) -> list[float]:
        """``values`` where each is a finite number: TypeError or ValueError names what is not."""
        values = self.values(condition, key)
        for seed, value in zip(self.seeds, values, strict=True):
            where = f"{key!r} of {condition!r} with seed {seed}"
            if value is None or (isinstance(value, float) and not math.isfinite(value)):
                raise ValueError(
                    f"{where} is {value}: that run diverged, or had nothing to measure, and there "
                    "is no mean or effect with it. Compare `values`, or the seeds without it."
                )
            if not isinstance(value, int | float):
                raise TypeError(f"{where} is {type(value).__name__}: one number a run is wanted.")
        return values

    def save(self, file: str | Path, command: str) -> None:
        """As JSON with machine, versions, command and date; whole or not at all."""
        about = {
            "command": command,
            "date": date.today().isoformat(),
            "machine": f"{platform.machine()}, {os.cpu_count()} cores, {torch.get_num_threads()} "
            "threads used",
            "python": platform.python_version(),
            "torch": torch.__version__,
        }
        record = asdict(self) | {"about": about}
        write_json(file, record)

    @classmethod
    def load(cls, file: str | Path) -> Runs:
        """Read what ``save`` wrote; ValueError if the file is something else, or lacks runs."""
        try:
            raw = json.loads(Path(file).read_text(encoding="utf-8"))
            runs = cls(tuple(raw["seeds"]), dict(raw["results"]), raw["about"])
            counts = {name: len(rows) for name, rows in runs.results.items()}
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(f"{file} holds no experiment ({error!r}).") from None
        for name, count in counts.items():
            if count != len(runs.seeds):
                raise ValueError(
                    f"{file} has {len(runs.seeds)} seeds but {count} runs of {name!r}: it was cut "
                    "short or edited. Restore it, or run its experiment again."
                )
        return runs


def repeat(
    conditions: Mapping[str, Condition], seeds: Iterable[int] = (0, 1, 2), keep: str | Path = ""
) -> Runs:
    """Run every condition with every seed, seed by seed, and keep all that was measured.

    keep: a JSON file to which each finished run is written, and from which an interrupted
    experiment goes on; it is the caller's to delete when a condition changes.
    """
    seeds = tuple(seeds)
    if not conditions or not seeds:
        raise ValueError("An experiment needs a condition and a seed, at least.")
    if len(set(seeds)) < len(seeds):
        raise ValueError(f"A seed stands twice in {seeds}: equal runs are not two runs.")
    kept = _read(keep)
    order = [(name, seed) for seed in seeds for name in conditions]  # slow drifts hit all alike
    for name, seed in tqdm(order, desc="runs", unit="run"):
        if f"{name}/{seed}" in kept:
            continue
        began = time.perf_counter()
        row = _plain(conditions[name](seed), f"{name!r} with seed {seed}")
        kept[f"{name}/{seed}"] = row | {"seconds": round(time.perf_counter() - began, 2)}
        if keep:
            write_json(keep, kept)
    return Runs(seeds, {name: [kept[f"{name}/{s}"] for s in seeds] for name in conditions})


def _plain(row, run: str) -> dict:
    """What was measured as JSON can hold it, told at once and not when all is done."""
    if not isinstance(row, dict):
        raise TypeError(f"{run} returned {type(row).__name__}: a dict of what it measured is due.")
    if "seconds" in row:
        raise ValueError(f"{run} measured 'seconds', which is the name of the run's own time.")
    return {key: _value(value, f"{run}, {key!r}") for key, value in row.items()}


def _value(value, where: str):
    if isinstance(value, dict):
        return {str(key): _value(part, where) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [_value(part, where) for part in value]
    if isinstance(value, torch.Tensor) or hasattr(value, "tolist"):
        return _value(value.tolist(), where)
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if value is None or isinstance(value, bool | int | float | str):
        return value
    raise TypeError(f"{where} is {type(value).__name__}: numbers, text and lists can be kept.")


def _read(keep: str | Path) -> dict:
    if not keep or not Path(keep).exists():
        return {}
    try:
        kept = json.loads(Path(keep).read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        raise ValueError(f"{keep} cannot be read ({error}): delete it to start anew.") from None
    if not all(isinstance(row, dict) and "seconds" in row for row in kept.values()):
        raise ValueError(f"{keep} is not what an interrupted experiment leaves: name another file.")
    return kept

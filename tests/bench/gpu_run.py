"""One call of the GPU's benchmark: what it runs on, until when, and every row as it comes.

A call may be ended from outside, and a GPU may refuse at any moment. So each row is printed and
written to the file when it is there, and what fails is a row as well: the others go on.
"""

from __future__ import annotations

import gc
import math
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import torch

import minillama4 as ml4
from minillama4.files import write_json
from minillama4.serve.int4_modules import Int4Experts, Int4Linear
from minillama4.serve.measure import memory_speed, wait
from minillama4.serve.synthetic import synthetic_int4

SCHEMES = {"experts": "w4a16", "blocks": "int4-blocks", "all": "int4-all"}
NEEDED = 30  # seconds left, or nothing new is begun


@dataclass
class Run:
    """What is measured, on what, until when; ``rows`` is the result, ``about`` the file's head."""

    device: str
    dtype: torch.dtype
    config: ml4.Llama4Config
    what: str
    limit: float
    steps: int = 64
    rounds: int = 5
    weights: str | None = None
    file: Path | None = None
    folder: Path | None = None  # of large files
    about: dict = field(default_factory=dict)
    rows: list[dict] = field(default_factory=list)
    speed: dict[str, float] = field(default_factory=dict)
    began: float = field(default_factory=time.monotonic)
    held: dict[float, ml4.Llama4] = field(default_factory=dict)  # at most one model, by its skew

    # ------------------------------------------------------------------ time and rows
    @property
    def left(self) -> float:
        """Seconds."""
        return self.limit - (time.monotonic() - self.began)

    def keep(self, section: str, **row) -> None:
        """One more row: printed, and the whole file written anew."""
        self.rows.append({"section": section} | row)
        told = ((key, value) for key, value in row.items() if value is not None)
        print(section, *(f"{key} {_short(value)}" for key, value in told), flush=True)
        if self.file is not None:
            whole = self.about | {"seconds": self.limit - self.left, "rows": self.rows}
            write_json(self.file, _in_json(whole))

    def leave_out(self, what: str, why: str, **row) -> None:
        self.keep("left out", what=what, why=why, **row)

    def attempt(self, what: str, part: Callable, *args):
        """``part(*args)``; if that fails it is a row, and None comes back."""
        try:
            return part(*args)
        except Exception as error:
            frames = traceback.extract_tb(error.__traceback__)[-3:]
            where = [f"{Path(frame.filename).name}:{frame.lineno}" for frame in frames]
            self.keep("failed", what=what, error=repr(error)[:300], where=" ".join(where))

    @property
    def failed(self) -> bool:
        """Did anything fail, or a check find something wrong?"""
        return any(row["section"] == "failed" or row.get("passed") is False for row in self.rows)

    # ------------------------------------------------------------------ the device
    def measure_memory(self, when: str) -> None:
        """The faster of reading and copying is what all that follows is compared with."""
        on_cpu = self.device == "cpu"
        size, rounds, warm = (2**26, 3, 1) if on_cpu else (2**32, 25, 100)
        speed = memory_speed(self.device, size, rounds, warm)
        self.speed = self.speed or speed
        self.keep("memory", when=when, **speed)

    @property
    def bandwidth(self) -> float:
        """Bytes per second, as measured at the start."""
        return max(self.speed.values())

    def peak(self) -> dict[str, int | None]:
        """Bytes of the device's memory at most since the last time of asking: "peak" as taken from
        the device, "peak_allocated" as used by tensors."""
        if self.device == "cpu":
            return {"peak": None, "peak_allocated": None}
        reserved, used = torch.cuda.max_memory_reserved(), torch.cuda.max_memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        return {"peak": reserved, "peak_allocated": used}

    def clean(self) -> None:
        """Give back what nobody uses any more. Not while a decoder is in use: this drops what was
        compiled for it."""
        self.attempt("cleaning up", self._clean)

    def _clean(self) -> None:
        if self.device == "cpu":
            gc.collect()
            return
        torch.compiler.reset()
        gc.collect()  # what holds itself in a circle, as a decoder with its program does
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()

    # ------------------------------------------------------------------ the model
    def model(self, skew: float = 0.0) -> ml4.Llama4:
        """Loaded or drawn when first asked for, in place of one of another skew."""
        if skew not in self.held:
            self.forget_model()
            began = time.perf_counter()
            self.held = {skew: self._make(skew)}
            wait(self.device)
            took, peak = time.perf_counter() - began, self.peak()
            self.clean()  # of what drawing has needed
            held, about = self.held[skew], dict(skew=skew, weights=self.weights or "drawn")
            about |= dict(scheme=scheme_of(held), bytes=bytes_of(held), seconds=took)
            self.keep("model", what=self.what, **about, **peak)
        return self.held[skew]

    def _make(self, skew: float) -> ml4.Llama4:
        if self.weights:
            return ml4.load(self.weights, self.dtype, self.device, SCHEMES[self.what])
        return synthetic_int4(self.config, self.what, self.device, self.dtype, skew)

    def forget_model(self) -> None:
        self.held = {}
        self.clean()


def scheme_of(model: ml4.Llama4) -> str:
    """What ``precision.SCHEMES`` calls the way in which this model's weights are kept."""
    if isinstance(model.head, Int4Linear):
        return "int4-all"
    if isinstance(model.blocks[0].attention.q, Int4Linear):
        return "int4-blocks"
    return "w4a16" if any(isinstance(part, Int4Experts) for part in model.modules()) else "bf16"


def bytes_of(model: ml4.Llama4) -> int:
    """Of all its weights and scales, each counted once."""
    tensors = {id(t): t for t in (*model.parameters(), *model.buffers())}
    return sum(t.nbytes for t in tensors.values())


def _short(value) -> str:
    if isinstance(value, list):
        return f"({len(value)})"
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _in_json(value):
    """nan and infinity, which JSON does not have, as words."""
    if isinstance(value, dict):
        return {key: _in_json(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [_in_json(each) for each in value]
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    return value

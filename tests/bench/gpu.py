"""``python start.py gpu``: all that a GPU has to say, in one call of under ten minutes.

    kernels   checked against float64 on the device, then the best way to cut them up
    decode    a full-size Scout with Int4 weights: batches, contexts, even and skewed routing
    prefill   time to the first token
    long      how long a text fits into 80 GB
    load      the real loading path, on files of Scout's names and shapes

With --weights FOLDER the real Scout is loaded and measured; else its weights are drawn on the
device. Memory is capped at what an H100 of 80 GB has. Sections that the time no longer allows are
named in the result as left out.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path

import torch

import minillama4 as ml4
from minillama4.files import write_json
from minillama4.serve.hardware import H100
from minillama4.serve.measure import memory_speed, tpot, ttft
from minillama4.serve.memory import kv_bytes
from minillama4.serve.precision import weight_bytes
from minillama4.serve.roofline import decode_step
from minillama4.serve.static import StaticDecoder
from minillama4.serve.synthetic import expert_shares, synthetic_int4

from . import gpu_kernels, gpu_load
from .report import provenance

CAP = 80_000_000_000  # bytes: an H100 of 80 GB, by its name
WORKSPACE = 3_000_000_000
SCHEMES = {"experts": "w4a16", "blocks": "int4-blocks", "all": "int4-all"}
SECTIONS = ("kernels", "decode", "prefill", "long", "load")


@dataclass
class Run:
    """One call: what is measured, on what, until when; ``rows`` is the result."""

    device: str
    dtype: torch.dtype
    config: ml4.Llama4Config
    what: str
    limit: float
    steps: int = 64
    rounds: int = 5
    weights: str | None = None
    rows: list[dict] = field(default_factory=list)
    speed: dict = field(default_factory=dict)
    began: float = field(default_factory=time.monotonic)

    def keep(self, section: str, **row) -> None:
        self.rows.append({"section": section} | row)
        print(section, *(f"{key} {_short(value)}" for key, value in row.items()), flush=True)

    @property
    def left(self) -> float:
        """Seconds."""
        return self.limit - (time.monotonic() - self.began)

    @property
    def scheme(self) -> str:
        """The name of ``what`` where bytes are counted and weights are loaded."""
        return SCHEMES[self.what]

    def model(self, skew: float = 0.0) -> ml4.Llama4:
        if self.weights:
            return ml4.load(self.weights, torch.bfloat16, self.device, self.scheme)
        return synthetic_int4(self.config, self.what, self.device, self.dtype, skew)

    def peak(self) -> int | None:
        """Bytes of the device's memory in use at most, since the last time of asking."""
        if self.device == "cpu":
            return None
        peak = torch.cuda.max_memory_reserved()
        torch.cuda.reset_peak_memory_stats()
        return peak


def decode(run: Run, model, batches, contexts, skew: float) -> None:
    """Greedy steps; the bytes of a step are counted with the routing that was seen."""
    c, scheme = model.config, run.scheme
    room = CAP - sum(weight_bytes(c, scheme).values()) - WORKSPACE
    hardware = H100.replace(name=run.device, bandwidth=run.speed["read"])
    for batch in batches:
        fitting = [n for n in contexts if batch * kv_bytes(c, n + run.steps) <= room]
        if not fitting or run.left < 30:
            continue
        decoder = StaticDecoder(model, batch, max(fitting) + run.steps)
        decoder.pretend(min(fitting))
        shares = expert_shares(decoder)
        for context in fitting:
            if run.left < 30:
                break
            samples = tpot(decoder, context, run.steps, run.rounds)
            step = decode_step(
                c, hardware, scheme, context + run.steps // 2, batch,
                average=False, chances=shares,
            )  # fmt: skip
            speed = batch / statistics.median(samples)
            run.keep(
                *("decode",), batch=batch, context=context, skew=skew,
                tokens_per_second=speed, mbu=step.mbu(speed), bytes_per_step=step.bytes,
                peak=run.peak(), samples=samples,
            )  # fmt: skip
        del decoder
        _clean(run)


def prefill(run: Run, model, lengths) -> None:
    decoder = StaticDecoder(model, 1, max(lengths) + 1)
    for length in lengths:
        if run.left > 30:
            samples = ttft(decoder, length, rounds=3)
            rate = length / statistics.median(samples)
            run.keep(
                *("prefill",), tokens=length, seconds=statistics.median(samples),
                tokens_per_second=rate, peak=run.peak(), samples=samples,
            )  # fmt: skip
    del decoder
    _clean(run)


def long(run: Run, model, contexts) -> None:
    """One text of each length, its cache in full, read to the end by one token."""
    for context in contexts:
        try:
            decoder = StaticDecoder(model, 1, context)
            samples = tpot(decoder, context - 9, 8, 3)
            fits = True
        except torch.OutOfMemoryError:
            samples, fits = [], False
        decoder = None
        run.keep("long", context=context, fits=fits, peak=run.peak(), samples=samples)
        _clean(run)


def measure(run: Run, sections, batches, contexts, prompts, texts) -> None:
    """All sections, as long as time is left; what was left out is the last row."""
    run.speed = memory_speed(run.device, 2**32 if run.device != "cpu" else 2**26)
    run.keep("memory", **run.speed)
    if "kernels" in sections:
        gpu_kernels.measure(run)
        _clean(run)
    model, left_out = None, []
    if {"decode", "prefill", "long"} & set(sections):
        model = run.model()
        run.keep("model", what=run.what, weights=run.weights or "drawn", peak=run.peak())
    parts = {
        "decode": (40, lambda: decode(run, model, batches, contexts, 0.0)),
        "prefill": (40, lambda: prefill(run, model, prompts)),
        "long": (40, lambda: long(run, model, texts)),
    }
    for name, (needed, part) in parts.items():
        if name in sections:
            part() if run.left > needed else left_out.append(name)
    del model, parts
    _clean(run)
    if "decode" in sections and not run.weights and run.left > 60:
        model = run.model(skew=1.0)
        decode(run, model, batches[1:], contexts[:1], 1.0)
        del model
        _clean(run)
    if "load" in sections:
        gpu_load.measure(run) if run.left > 90 else left_out.append("load")
    if left_out:
        run.keep("left out", what=left_out)


def _clean(run: Run) -> None:
    if run.device != "cpu":
        torch.compiler.reset()
        torch.cuda.empty_cache()


def _short(value) -> str:
    if isinstance(value, list):
        return f"({len(value)})"
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def describe_gpu() -> dict:
    properties = torch.cuda.get_device_properties(0)
    return {"gpu": properties.name, "gpu_memory": properties.total_memory, "cap": CAP}


def parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python start.py gpu", description=__doc__)
    parser.add_argument("--weights", help="a folder of Scout's weights, in any published layout")
    parser.add_argument("--what", choices=SCHEMES, default="blocks", help="what is in Int4")
    parser.add_argument("--only", default=",".join(SECTIONS), metavar=",".join(SECTIONS))
    parser.add_argument("--limit", type=float, default=560, help="seconds in all")
    parser.add_argument("--json", type=Path, metavar="FILE", help="keep every sample there")
    options = parser.parse_args(arguments)
    options.only = options.only.split(",")
    if unknown := set(options.only) - set(SECTIONS):
        parser.error(f"no {', '.join(sorted(unknown))}; there are {', '.join(SECTIONS)}")
    return options


def main(arguments: list[str] | None = None) -> int:
    """The command; 1 where there is no GPU."""
    options = parse(arguments)
    if not torch.cuda.is_available():
        print("There is no CUDA device here: nothing was measured.", file=sys.stderr)
        return 1
    total = torch.cuda.get_device_properties(0).total_memory
    torch.cuda.set_per_process_memory_fraction(min(1.0, CAP / total))
    about = provenance(["python start.py gpu", *(arguments or sys.argv[1:])], 1) | describe_gpu()
    config = ml4.Llama4Config.scout(max_length=1_048_576)
    run = Run("cuda", torch.bfloat16, config, options.what, options.limit, weights=options.weights)
    try:
        measure(
            *(run, options.only), batches=(1, 4, 16, 64), contexts=(1024, 8192, 32_768, 131_072),
            prompts=(1024, 8192, 32_768), texts=(131_072, 262_144, 393_216),
        )  # fmt: skip
    finally:  # what was measured before something failed is kept
        if options.json:
            write_json(options.json, about | {"seconds": run.limit - run.left, "rows": run.rows})
    return 0


if __name__ == "__main__":
    sys.exit(main())

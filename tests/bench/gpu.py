"""``python start.py gpu``: all that a GPU has to say, in one call of under ten minutes.

    headline  one text and sixteen, 1,024 tokens behind each: first, in case nothing else succeeds
    kernels   checked against float64 on the device, then the best way to cut them up
    decode    a full-size Scout with Int4 weights: batches, contexts
    prefill   time to the first token
    long      how long a text fits into 80 GB
    skew      decode once more, with routing that has favourites
    load      the real loading path, on files of Scout's names and shapes

With --weights FOLDER the real Scout is loaded and measured; else its weights are drawn on the
device. Memory is capped at what an H100 of 80 GB has. Every row is in the file as soon as it is
measured. What fails, and what the time no longer allows, is a row as well.

On a machine that has torch, triton and pytest, but not what notebooks need, the tests of kernels,
static program and benchmark run by themselves: ``python start.py gpu --tests``.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from functools import partialmethod
from pathlib import Path

import torch
from tqdm.auto import tqdm

import minillama4 as ml4

from . import BEGAN, gpu_kernels, gpu_load
from .gpu_decode import CAP, decode, long, prefill
from .gpu_run import NEEDED, SCHEMES, Run
from .report import provenance

SECTIONS = ("headline", "kernels", "decode", "prefill", "long", "skew", "load")
HEADLINE = (1, 16)  # texts side by side

# Borders of chunks are avoided: these contexts read as many keys as one in the mean.
CONTEXTS = (1024, 12_288, 36_864, 126_976)
TEXTS = (131_072, 262_144, 327_680, 393_216)  # the last is too long for 80 GB


def measure(run: Run, sections, batches, contexts, prompts, texts) -> None:
    """All sections in their order, as long as time is left."""
    run.attempt("memory", run.measure_memory, "start")
    first = [batch for batch in batches if batch in HEADLINE]
    parts = {
        "headline": (decode, first, contexts[:1], 0.0, "headline"),
        "kernels": (gpu_kernels.measure,),
        "decode": (decode, batches, contexts),
        "prefill": (prefill, prompts),
        "long": (long, texts),
        "skew": (decode, batches[1:], contexts[:1], 1.0),
        "load": (gpu_load.measure,),
    }
    for name in [name for name in SECTIONS if name in sections]:
        part, *args = parts[name]
        if name == "skew" and run.weights:
            run.leave_out(name, "weights that are not drawn have a routing of their own")
        elif run.left < NEEDED:
            run.leave_out(name, "time")
        else:
            run.attempt(name, part, run, *args)
            run.clean()
    run.forget_model()
    run.attempt("memory", run.measure_memory, "end")


def describe_gpu() -> dict:
    properties = torch.cuda.get_device_properties(0)
    return {
        "gpu": properties.name, "gpu_memory": properties.total_memory, "cap": CAP,
        "cuda": torch.version.cuda, "driver": _driver(),
    }  # fmt: skip


def _driver() -> str | None:
    """The driver's version; None where nobody tells."""
    command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=20)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.split("\n")[0].strip() or None


def parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python start.py gpu",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--weights", help="a folder of Scout's weights, in any published layout")
    parser.add_argument("--what", choices=SCHEMES, default="blocks", help="what is in Int4")
    parser.add_argument("--only", default=",".join(SECTIONS), metavar=",".join(SECTIONS))
    parser.add_argument("--limit", type=float, default=500, help="seconds in all")
    parser.add_argument("--json", type=Path, metavar="FILE", help="keep every sample there")
    parser.add_argument("--folder", type=Path, help="for 9 GB of files; if not given, FILE's")
    options = parser.parse_args(arguments)
    options.only = options.only.split(",")
    if unknown := set(options.only) - set(SECTIONS):
        parser.error(f"no {', '.join(sorted(unknown))}; there are {', '.join(SECTIONS)}")
    if options.json and not options.folder:
        options.folder = options.json.resolve().parent
    return options


def main(arguments: list[str] | None = None) -> int:
    """The command; 1 where there is no GPU, or something failed or is wrong."""
    options = parse(arguments)
    if not torch.cuda.is_available():
        print("There is no CUDA device here: nothing was measured.", file=sys.stderr)
        return 1
    tqdm.__init__ = partialmethod(tqdm.__init__, disable=None)  # bars at a terminal only
    total = torch.cuda.get_device_properties(0).total_memory
    torch.cuda.set_per_process_memory_fraction(min(1.0, CAP / total))
    about = provenance(["python start.py gpu", *(arguments or sys.argv[1:])], 1) | describe_gpu()
    run = Run(
        "cuda", torch.bfloat16, ml4.Llama4Config.scout(max_length=1_048_576), options.what,
        options.limit, weights=options.weights, file=options.json, folder=options.folder,
        about=about, began=BEGAN,
    )  # fmt: skip
    measure(
        run, options.only, batches=(1, 4, 16, 64), contexts=CONTEXTS,
        prompts=(1024, 8192, 32_768), texts=TEXTS,
    )  # fmt: skip
    return int(run.failed)


if __name__ == "__main__":
    sys.exit(main())

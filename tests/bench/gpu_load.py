"""Section "load": the real loading path, over files of Scout's own names, shapes and sizes.

The weights of Scout have 217 GB. Here its fifty files are hollow: a true header, and behind it a
hole of the right size, which a file system stores as nothing and reads as zeros. Every tensor is
found, sliced, quantised on arrival and moved exactly as the real one; what is left out is the
disk's own speed, and that the result can say something.
"""

from __future__ import annotations

import json
import resource
import struct
import sys
import tempfile
import time
from pathlib import Path

import torch

import minillama4 as ml4
from minillama4.checkpoint import hf_name
from minillama4.serve.quantize import int4_bytes

SHARDS = 50  # as Scout is published


def write_hollow(config: ml4.Llama4Config, folder: Path, shards: int = SHARDS) -> int:
    """A folder in Hugging Face's layout, in bf16, that weighs nothing; bytes it seems to hold."""
    with torch.device("meta"):
        model = ml4.Llama4(config)
    shapes = {hf_name(n, config.vision is not None): p.shape for n, p in model.named_parameters()}
    (folder / "config.json").write_text(json.dumps(config.to_hf() | {"dtype": "bfloat16"}))
    total = 2 * sum(shape.numel() for shape in shapes.values())
    files, filled = [{}], 0
    for name, shape in shapes.items():
        if filled > total / shards and files[-1]:
            files, filled = [*files, {}], 0
        files[-1][name] = shape
        filled += 2 * shape.numel()
    where = {}
    for i, some in enumerate(files):
        file = f"model-{i + 1:05}-of-{len(files):05}.safetensors"
        _write_header(folder / file, some)
        where |= dict.fromkeys(some, file)
    index = {"metadata": {"total_size": total}, "weight_map": where}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    return total


def _write_header(file: Path, shapes: dict[str, torch.Size]) -> None:
    header, at = {}, 0
    for name, shape in shapes.items():
        end = at + 2 * shape.numel()
        header[name] = {"dtype": "BF16", "shape": list(shape), "data_offsets": [at, end]}
        at = end
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with file.open("wb") as out:
        out.write(struct.pack("<Q", len(text)) + text)
        out.truncate(8 + len(text) + at)  # the hole


def measure(run) -> None:
    """Load as Int4; bytes per second, and memory on the host and the device."""
    with tempfile.TemporaryDirectory() as folder:
        size = write_hollow(run.config, Path(folder))
        before = host_memory()
        run.peak()
        began = time.perf_counter()
        model = ml4.load(folder, torch.bfloat16, run.device, run.scheme)
        if run.device != "cpu":
            torch.cuda.synchronize()
        took = time.perf_counter() - began
        run.keep(
            *("load",), file_bytes=size, seconds=took, bytes_per_second=size / took,
            host_above_start=host_memory() - before, peak=run.peak(),
            int4_bytes=int4_bytes(model), hollow=True,
        )  # fmt: skip


def host_memory() -> int:
    """Bytes of this process's memory at most so far, pages of files that it reads included."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else 1024 * peak

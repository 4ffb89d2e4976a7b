"""Three ways to attend, and the peak memory of each, measured in a process of its own.

The figure is the growth of the resident set's peak (what the system really handed out), from
before the call to its highest point, the dense mask included where there is one. Linux only:
other systems do not let a process start its peak anew.
"""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import torch
from torch import Tensor

from minillama4.model.attention import attend_causal, attend_chunks

from .report import ROOT

CHUNKS, DENSE, FULL = "chunks", "transformers, dense mask", "full causal (NoPE layer)"


def attention(
    name: str, heads: tuple[int, int, int], length: int, chunk: int
) -> Callable[[], Tensor]:
    """One of the three ways, over fixed random inputs, as something to be called."""
    draw = torch.Generator().manual_seed(0)
    queries, groups, width = heads
    q, k, v = (torch.randn(1, h, length, width, generator=draw) for h in (queries, groups, groups))
    if name == CHUNKS:
        return lambda: attend_chunks(q, k, v, chunk)
    if name == FULL:
        return lambda: attend_causal(q, k, v)
    # imported here: the other ways need no transformers, and start sooner
    from transformers.integrations.sdpa_attention import sdpa_attention_forward

    layer = SimpleNamespace(num_key_value_groups=queries // groups, is_causal=True)
    mask = dense_mask(length, chunk)
    return lambda: sdpa_attention_forward(layer, q, k, v, mask)[0].transpose(1, 2)


def dense_mask(length: int, chunk: int) -> Tensor:
    """What transformers' layers are given, (1, 1, t, s) bool; made with less memory than there."""
    mask = torch.zeros(1, 1, length, length, dtype=torch.bool)
    for begin in range(0, length, chunk):
        block = mask[0, 0, begin : begin + chunk, begin : begin + chunk]
        block.copy_(torch.ones_like(block).tril())
    return mask


def peak_bytes(name: str, heads: tuple[int, int, int], length: int, chunk: int) -> int | None:
    """Bytes beyond q, k and v; None where the system does not tell."""
    if sys.platform != "linux":
        return None
    arguments = [name, *map(str, (*heads, length, chunk))]
    command = [sys.executable, "-m", "tests.bench.memory", *arguments]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    return int(done.stdout) if done.returncode == 0 else None


def _measure(name: str, heads: tuple[int, int, int], length: int, chunk: int) -> int:
    with torch.inference_mode():
        attention(CHUNKS, heads, chunk, chunk)()  # the library's own buffers are made here
        run = attention(name, heads, length, chunk)
        mask = length**2 if name == DENSE else 0  # a byte each, and already there
        Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
        before = _resident("VmRSS")
        run()
    return _resident("VmHWM") - before + mask


def _resident(field: str) -> int:
    status = Path("/proc/self/status").read_text()
    return int(re.search(rf"{field}:\s+(\d+) kB", status)[1]) * 1024


if __name__ == "__main__":
    name, *numbers = sys.argv[1:]
    *heads, length, chunk = map(int, numbers)
    print(_measure(name, tuple(heads), length, chunk))

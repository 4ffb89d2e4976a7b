"""A context of 16,384 tokens on a laptop: memory that grows in a straight line with length."""

import subprocess
import sys

import pytest

MEASURE = """
import re, sys
from pathlib import Path
import torch
import minillama4 as ml4

torch.set_num_threads(1)
model = ml4.load(ml4.shipped("mini_scout"), dtype=torch.float32).eval()

def resident(field):
    return int(re.search(field + r":\\s+(\\d+) kB", Path("/proc/self/status").read_text())[1])

with torch.inference_mode():
    model(torch.zeros(1, 128, dtype=torch.int64), last_only=True)  # buffers are made once
    tokens = torch.randint(2000, (1, int(sys.argv[1])))
    Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
    before = resident("VmRSS")
    logits = model(tokens, cache=ml4.KVCache(model.config), last_only=True)
    assert logits.isfinite().all()
    print(resident("VmHWM") - before)
"""


def peak(length: int) -> float:
    """MiB that reading so many tokens takes beyond the model, in a process of its own."""
    command = [sys.executable, "-c", MEASURE, str(length)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return int(done.stdout) / 1024


@pytest.mark.skipif(sys.platform != "linux", reason="other systems do not tell a process's peak")
def test_sixteen_thousand_tokens_take_four_times_the_memory_of_four_thousand():
    few, many = peak(4096), peak(16384)
    assert many < 8 * few  # linear is 4, a (t, s) matrix makes 16; the peak wavers by tens of MiB
    assert many < 400  # one dense mask of 16,384² bytes alone is 256, one head's scores 1,024

"""Section "kernels": right against float64 on the device, then how best to cut them up."""

from __future__ import annotations

import itertools
import statistics

import torch

from minillama4.serve import attention_triton, int4_triton
from minillama4.serve.int4 import dequantize
from minillama4.serve.int4_triton import Tuning
from minillama4.serve.measure import seconds

LAYERS = 4  # weights that are used in turn, so that none is still in the GPU's own cache
TUNINGS = [
    Tuning(rows, warps, stages)
    for rows, warps, stages in itertools.product((32, 64, 128), (4, 8), (3, 4, 6))
]


def random_packed(*shape: int, device) -> tuple[torch.Tensor, torch.Tensor]:
    """Packed weights (..., out, in) and scales in bf16."""
    *rest, columns = shape
    words = torch.empty(*rest, columns // 8, dtype=torch.int32, device=device)
    words.random_(-(2**31), 2**31 - 1)
    scale = torch.full((*rest, columns // 128), 0.004, dtype=torch.bfloat16, device=device)
    return words, scale * torch.rand_like(scale)


def layer_of(config, device):
    """Routed experts' four tensors and the shared expert's six."""
    e, m, f = config.experts, config.width, config.expert_hidden
    routed = (*random_packed(e, 2 * f, m, device=device), *random_packed(e, m, f, device=device))
    shared = [random_packed(*shape, device=device) for shape in ((f, m), (f, m), (m, f))]
    return routed, tuple(t for pair in shared for t in pair)


def exact(x, score, choice, routed, shared) -> torch.Tensor:
    """The layer in float64, one token after the other."""

    def expert(x, gate_up, down):
        gate, up = (gate_up @ x).chunk(2)
        return down @ (torch.nn.functional.silu(gate) * up)

    whole = [dequantize(shared[i], shared[i + 1], torch.float64) for i in (0, 2, 4)]
    both = torch.cat(whole[:2]), whole[2]
    rows = []
    for one, s, e in zip(x.double(), score.double(), choice.tolist(), strict=True):
        gate_up = dequantize(routed[0][e], routed[1][e], torch.float64)
        down = dequantize(routed[2][e], routed[3][e], torch.float64)
        rows.append(expert(one * s, gate_up, down) + expert(one, *both))
    return torch.stack(rows)


def check(run, layer) -> None:
    """Each kernel against float64; errors are kept, and one above 0.01 ends the run."""
    c, device = run.config, run.device
    routed, shared = layer
    for n in (1, 5, 16):
        x = torch.randn(n, c.width, device=device, dtype=run.dtype)
        score = torch.rand(n, device=device)
        choice = torch.randint(0, c.experts, (n,), device=device)
        found = int4_triton.experts(x, score, choice, *routed, shared)
        error = _relative(found, exact(x, score, choice, routed, shared))
        run.keep("kernels", check="experts", tokens=n, error=error)
        assert error < 0.01, error
    packed, scale = shared[:2]
    found = int4_triton.linear(x, packed, scale)
    error = _relative(found, x.double() @ dequantize(packed, scale, torch.float64).T)
    run.keep("kernels", check="linear", tokens=16, error=error)
    assert error < 0.01, error
    q = torch.randn(2, c.heads, c.head_width, device=device, dtype=run.dtype)
    shape = (2, 2, c.kv_heads, 5000, c.head_width)
    keys, values = torch.randn(shape, device=device, dtype=run.dtype)
    last = torch.tensor([4321, 77], device=device)
    found = attention_triton.attend(q, keys, values, last)
    error = max(
        _relative(found[row], _attention(q[row], keys[row], values[row], int(last[row])))
        for row in range(2)
    )
    run.keep("kernels", check="attention", tokens=2, error=error)
    assert error < 0.01, error


def _attention(q, keys, values, last) -> torch.Tensor:
    r = len(q) // len(keys)
    k, v = (x[:, : last + 1].double().repeat_interleave(r, 0) for x in (keys, values))
    score = torch.einsum("hd,hsd->hs", q.double(), k) * q.shape[-1] ** -0.5
    return torch.einsum("hs,hsd->hd", score.softmax(-1), v)


def _relative(found, expected) -> float:
    return ((found.double() - expected).norm() / expected.norm()).item()


def measure(run) -> None:
    """Checks, then a sweep; the best tunings are used for all that follows."""
    layers = [layer_of(run.config, run.device) for _ in range(LAYERS)]
    check(run, layers[0])
    c = run.config
    half = run.limit * 0.25
    for which in ("up", "down", "linear"):
        best = None
        for tuning in TUNINGS:
            if run.left < run.limit - half:
                break
            try:
                median, size = sweep(run, layers, which, tuning)
            except Exception as error:  # too much shared memory, on some GPUs
                run.keep("kernels", sweep=which, tuning=str(tuning), failed=str(error)[:80])
                continue
            if best is None or median < best[0]:
                best = median, tuning, size
        if best is not None:
            median, tuning, size = best
            share = size / median / run.speed["read"]
            run.keep(
                *("kernels",), sweep=which, tuning=str(tuning), seconds=median,
                bytes_per_second=size / median, share_of_read=share, experts=c.experts,
            )  # fmt: skip
            int4_triton.TUNINGS[which] = tuning


def sweep(run, layers, which: str, tuning: Tuning) -> tuple[float, int]:
    """Median seconds of one token's product, and the bytes that it reads."""
    c, device = run.config, run.device
    before = dict(int4_triton.TUNINGS)
    int4_triton.TUNINGS[which] = tuning
    try:
        x = torch.randn(1, c.width, device=device, dtype=run.dtype)
        score = torch.rand(1, device=device)
        choice = torch.zeros(1, dtype=torch.int64, device=device)

        def once(i: int):
            routed, shared = layers[i]
            if which == "linear":
                return int4_triton.linear(x, *shared[:2])
            return int4_triton.experts(x, score, choice, *routed, shared)

        median = statistics.median(_replayed(once, len(layers), device))
    finally:
        int4_triton.TUNINGS.update(before)
    words, scales = layers[0][1][0].nbytes, layers[0][1][1].nbytes
    return median, (words + scales) * (1 if which == "linear" else 6)


def _replayed(once, layers: int, device) -> list[float]:
    """Seconds of one call, of a graph that goes through all layers; on a CPU one after another."""

    def all_layers() -> None:
        for i in range(layers):
            once(i)

    if device == "cpu":
        return [s / layers for s in seconds(all_layers, device, rounds=1)]
    all_layers()
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        all_layers()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        all_layers()
    return [s / layers for s in seconds(graph.replay, device, rounds=9)]

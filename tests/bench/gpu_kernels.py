"""Section "kernels": right against float64 on the device, then how best to cut them up.

A single product is over before the CPU has asked for the next, and its weights could still lie in
the GPU's own cache. So many are recorded in one graph, over more weights than that cache holds, and
the GPU's own clock times them.
"""

from __future__ import annotations

import itertools
import statistics

import torch

from minillama4.serve import attention_triton, int4_triton
from minillama4.serve.int4 import dequantize
from minillama4.serve.int4_triton import Tuning
from minillama4.serve.measure import seconds

LAYERS = 4  # of experts that are read in turn: 500 MB of Scout's
ATTENTION_BYTES = 320_000_000  # of attention's weights that are read in turn
TIMES = 20  # through all of them, in one graph
BUDGET = 90  # seconds for all tunings
RIGHT = 0.01  # relative error against float64: that of 16 bits
TUNINGS = [
    Tuning(rows, warps, stages)
    for (rows, warps), stages in itertools.product(((128, 4), (128, 8), (64, 4)), (3, 4, 6))
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


def attention_of(config, device) -> list[tuple[torch.Tensor, ...]]:
    """Packed weight and scale of a layer's q, k and v in one, and of its o; of many layers."""
    c = config
    heads = c.heads * c.head_width
    made = []
    while sum(t.nbytes for pair in made for t in pair) < ATTENTION_BYTES:
        made.append(random_packed(heads + 2 * c.kv_heads * c.head_width, c.width, device=device))
        made.append(random_packed(c.width, heads, device=device))
    return made


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


def check(run, layer, tuned: bool) -> None:
    """Each kernel against float64. A wrong one is told, and what follows is timed all the same."""
    for n in (1, 5, 16):
        run.attempt("kernels, experts", _check_experts, run, layer, n, tuned)
    run.attempt("kernels, linear", _check_linear, run, layer[1], tuned)
    run.attempt("kernels, attention", _check_attention, run, tuned)


def _check_experts(run, layer, n: int, tuned: bool) -> None:
    c, device, (routed, shared) = run.config, run.device, layer
    x = torch.randn(n, c.width, device=device, dtype=run.dtype)
    score = torch.rand(n, device=device)
    choice = torch.randint(0, c.experts, (n,), device=device)
    found = int4_triton.experts(x, score, choice, *routed, shared)
    _told(run, "experts", n, tuned, _relative(found, exact(x, score, choice, routed, shared)))


def _check_linear(run, shared, tuned: bool) -> None:
    packed, scale = shared[:2]
    x = torch.randn(16, run.config.width, device=run.device, dtype=run.dtype)
    expected = x.double() @ dequantize(packed, scale, torch.float64).T
    _told(run, "linear", 16, tuned, _relative(int4_triton.linear(x, packed, scale), expected))


def _check_attention(run, tuned: bool) -> None:
    c, device = run.config, run.device
    q = torch.randn(2, c.heads, c.head_width, device=device, dtype=run.dtype)
    shape = (2, 2, c.kv_heads, 5000, c.head_width)
    keys, values = torch.randn(shape, device=device, dtype=run.dtype)
    last = torch.tensor([4321, 77], device=device)
    found = attention_triton.attend(q, keys, values, last)
    error = max(
        _relative(found[row], _attention(q[row], keys[row], values[row], int(last[row])))
        for row in range(2)
    )
    _told(run, "attention", 2, tuned, error)


def _told(run, what: str, n: int, tuned: bool, error: float) -> None:
    run.keep("kernels", check=what, tokens=n, tuned=tuned, error=error, passed=error < RIGHT)


def _attention(q, keys, values, last) -> torch.Tensor:
    r = len(q) // len(keys)
    k, v = (x[:, : last + 1].double().repeat_interleave(r, 0) for x in (keys, values))
    score = torch.einsum("hd,hsd->hs", q.double(), k) * q.shape[-1] ** -0.5
    return torch.einsum("hs,hsd->hd", score.softmax(-1), v)


def _relative(found, expected) -> float:
    return ((found.double() - expected).norm() / expected.norm()).item()


# ---------------------------------------------------------------------- tuning
def measure(run) -> None:
    """Checks, then all tunings of each product; the best are used for all that follows."""
    layers = [layer_of(run.config, run.device) for _ in range(LAYERS)]
    check(run, layers[0], tuned=False)
    attention, left = attention_of(run.config, run.device), run.left
    for i, which in enumerate(("up", "down", "linear"), 1):
        weights = attention if which == "linear" else layers
        best = sweep(run, which, weights, until=left - BUDGET * i / 3)
        if best is not None:
            int4_triton.TUNINGS[which] = best
            run.keep("kernels", chosen=which, tuning=str(best))
    check(run, layers[0], tuned=True)


def sweep(run, which: str, weights, until: float) -> Tuning | None:
    """The fastest tuning, a row for each; what would begin with less time left is left out."""
    medians = {}
    for tuning in TUNINGS:
        if run.left < until:
            run.leave_out("kernels", "time", sweep=which, tuning=str(tuning))
            continue
        told = f"kernels, {which}, {tuning}"  # too much shared memory, on some GPUs
        if (median := run.attempt(told, _one_tuning, run, which, weights, tuning)) is not None:
            medians[tuning] = median
    return min(medians, key=medians.get, default=None)


def _one_tuning(run, which: str, weights, tuning: Tuning) -> float:
    """Median seconds of one token's product."""
    before = int4_triton.TUNINGS[which]
    int4_triton.TUNINGS[which] = tuning
    try:
        calls, size = (_linears if which == "linear" else _experts)(run, weights)
        samples = _timed(calls, run.device)
    finally:
        int4_triton.TUNINGS[which] = before
    median = statistics.median(samples)
    run.keep(
        *("kernels",), sweep=which, tuning=str(tuning), seconds=median, bytes=size,
        bytes_per_second=size / median, share_of_read=size / median / run.bandwidth,
        samples=samples,
    )  # fmt: skip
    return median


def _linears(run, weights):
    """One token times each of the weights in turn, and the bytes of one, in the mean."""

    def call(packed, scale):
        x = torch.randn(1, 8 * packed.shape[1], device=run.device, dtype=run.dtype)
        return lambda: int4_triton.linear(x, packed, scale)

    calls = [call(*pair) for pair in weights]
    return calls, sum(t.nbytes for pair in weights for t in pair) / len(weights)


def _experts(run, layers):
    """One token through one expert of each layer and the shared one, and the bytes of a layer."""
    x = torch.randn(1, run.config.width, device=run.device, dtype=run.dtype)
    score = torch.rand(1, device=run.device)
    choice = torch.zeros(1, dtype=torch.int64, device=run.device)
    calls = [
        lambda r=routed, s=shared: int4_triton.experts(x, score, choice, *r, s)
        for routed, shared in layers
    ]
    return calls, 2 * sum(t.nbytes for t in layers[0][1])


def _timed(calls, device) -> list[float]:
    """Seconds of one call, of a graph that goes through all; on a CPU one after the other."""

    def all_calls(times: int = 1) -> None:
        for call in times * calls:
            call()

    if device == "cpu":
        return [s / len(calls) for s in seconds(all_calls, device, rounds=1)]
    stream = torch.cuda.Stream()  # recording asks for a first time elsewhere
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        all_calls()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        all_calls(TIMES)
    return [s / (TIMES * len(calls)) for s in _gpu_seconds(graph.replay)]


def _gpu_seconds(run, rounds: int = 9, warm: int = 2) -> list[float]:
    """By the GPU's own clock."""
    samples = []
    for _ in range(warm + rounds):
        began, ended = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        began.record()
        run()
        ended.record()
        ended.synchronize()
        samples.append(began.elapsed_time(ended) / 1e3)
    return samples[warm:]

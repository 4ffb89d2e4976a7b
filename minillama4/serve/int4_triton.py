"""Int4 products on a GPU for few tokens: as fast as the packed weights can be read from memory.

    h = silu(gate x · s) · (up x · s)        one launch for all experts that tokens chose
    y = down h                               and one more; s is the router's score, 1 when shared

Every expert that was hit is read once, for up to 64 tokens. The grid is fixed (a program whose
expert has no token returns at once), nothing is sorted and nothing waits for the
CPU, so that a CUDA graph can replay it. The device code is in ``int4_kernels.py``.

A program takes 128 rows of weights: what it does for x costs a weight the less, the more rows share
it. That makes few programs (40 for 5120 rows, on 132 processors), so the input is cut as well, and
whoever reads the result adds its parts; a compiled step does so without a launch of its own.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton
from torch import Tensor

from .int4_kernels import down_kernel, linear_kernel, unpack_kernel, up_kernel

LEAST, MOST = 16, 64  # tokens of a program: what a tensor core takes, what its registers hold


@dataclass(frozen=True)
class Tuning:
    """How a product is cut up: weight rows of a program, its warps, loads kept in flight, and how
    many programs are wanted: the input is cut into up to eight parts until there are as many."""

    rows: int = 128
    warps: int = 4
    stages: int = 4
    programs: int = 200

    def launch(self, tokens: int) -> dict[str, int]:
        """Options of a launch. With 64 tokens, four warps have too few registers, and more than
        three stages take the shared memory that a second program needs."""
        if tokens < MOST:
            return {"num_warps": self.warps, "num_stages": self.stages}
        return {"num_warps": max(self.warps, 8), "num_stages": min(self.stages, 3)}


TUNINGS = {"up": Tuning(), "down": Tuning(), "linear": Tuning()}  # ``start.py gpu`` tries others


def unpack(packed: Tensor, scale: Tensor, dtype: torch.dtype) -> Tensor:
    """packed (..., out, in / 8), scale (..., out, in / group) -> (..., out, in) in 16 bits."""
    width = packed.shape[-1] * 8
    w = torch.empty(*packed.shape[:-1], width, dtype=dtype, device=packed.device)
    group, rows = width // scale.shape[-1], w.numel() // width
    at_once = _rows(rows, 64)
    unpack_kernel[(rows // at_once, width // group)](packed, scale, w, width, group, at_once)
    return w


def linear(x: Tensor, packed: Tensor, scale: Tensor) -> Tensor:
    """x (n, in) float16 or bfloat16, packed (out, in / 8), scale (out, in / group) -> (n, out)."""
    parts = linear_parts(x, packed, scale, linear_cuts(len(x), packed, scale))
    return parts.sum(0).to(x.dtype)


def linear_parts(x: Tensor, packed: Tensor, scale: Tensor, parts: int) -> Tensor:
    """The same before it is added up: (parts, n, out) float32."""
    n, out = len(x), len(packed)
    group = x.shape[1] // scale.shape[1]
    y = x.new_empty(parts, n, out, dtype=torch.float32)
    tuning, tokens = TUNINGS["linear"], _tokens(n)
    rows = _rows(out, tuning.rows)
    grid = (out // rows * parts, triton.cdiv(n, tokens))
    sizes = (x.shape[1], out, group, rows, tokens, parts)
    linear_kernel[grid](x.contiguous(), packed, scale, y, n, *sizes, **tuning.launch(tokens))
    return y


def experts(
    x: Tensor,
    score: Tensor,
    choice: Tensor,
    gate_up_packed: Tensor,
    gate_up_scale: Tensor,
    down_packed: Tensor,
    down_scale: Tensor,
    shared: tuple[Tensor, ...] = (),
) -> Tensor:
    """x (n, m) float16 or bfloat16, score and choice (n,) -> (n, m): Expert_choice(score · x).

    The packed weights are those of ``Int4Experts``. ``shared``: packed and scale of the shared
    expert's gate, up and down, six tensors; its output is then added, from the same two launches.
    """
    weights = [gate_up_packed, gate_up_scale, down_packed, down_scale, *shared]
    parts = expert_parts(x, score, choice, weights, expert_cuts(len(x), weights))
    return parts.sum(0).to(x.dtype)


def expert_parts(
    x: Tensor, score: Tensor, choice: Tensor, weights: list[Tensor], parts: int
) -> Tensor:
    """The same before it is added up, (parts of all experts, n, m) float32; weights: all ten, or
    four without the shared expert's."""
    (n, width), (e, double, _) = x.shape, weights[0].shape
    group, experts = width // weights[1].shape[2], 1 + (len(weights) > 4)
    shared = weights[4:] or [*weights[:2], *weights[:4]]  # not used, but a pointer is wanted
    h = x.new_empty(experts, n, double // 2)
    y = x.new_empty(experts * parts, n, width, dtype=torch.float32)
    up, down, tokens = TUNINGS["up"], TUNINGS["down"], _tokens(n)
    others = (min(n, e) + experts - 1, triton.cdiv(n, tokens))
    sizes = (n, e, width, double // 2, group, n < e)
    rows = _rows(double, up.rows)
    up_kernel[(double // rows, *others)](
        x.contiguous(), score, choice, *weights[:2], *shared[:4], h, *sizes, rows, tokens,
        **up.launch(tokens),
    )  # fmt: skip
    rows = _rows(width, down.rows)
    down_kernel[(width // rows * parts, *others)](
        h, choice, *weights[2:4], *shared[4:], y, *sizes, rows, tokens, parts,
        **down.launch(tokens),
    )  # fmt: skip
    return y


def linear_cuts(n: int, packed: Tensor, scale: Tensor) -> int:
    """How many parts ``linear_parts`` should make of the input, for n tokens."""
    return _cuts(TUNINGS["linear"], -(-n // MOST), packed, scale)


def expert_cuts(n: int, weights: list[Tensor]) -> int:
    """How many ``expert_parts`` should make of each expert's hidden vector."""
    places = min(n, len(weights[0])) + (len(weights) > 4)
    return _cuts(TUNINGS["down"], places * -(-n // MOST), *weights[2:4])


def _cuts(tuning: Tuning, others: int, packed: Tensor, scale: Tensor) -> int:
    programs = packed.shape[-2] // _rows(packed.shape[-2], tuning.rows) * others
    cuts, groups = 1, scale.shape[-1]
    while cuts < 8 and cuts * programs < tuning.programs and groups % (2 * cuts) == 0:
        cuts *= 2
    return cuts


def _rows(out: int, most: int) -> int:
    """The largest power of two up to ``most`` that divides ``out``: no row is then masked."""
    rows = min(most, out & -out)
    if rows < LEAST:
        raise ValueError(f"{out} output rows are not a multiple of {LEAST}: unpack this weight.")
    return rows


def _tokens(n: int) -> int:
    """All tokens in one program up to 64, so that a weight is read once for all of them."""
    return min(max(triton.next_power_of_2(n), LEAST), MOST)

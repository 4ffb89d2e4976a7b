"""Int4 products on a GPU for few tokens: as fast as the packed weights can be read from memory.

    h = silu(gate x · s) · (up x · s)        one launch for all experts that tokens chose
    y = down h                               and one more; s is the router's score, 1 when shared

Every expert that was hit is read once, for up to 64 tokens. The grid is fixed (a program whose
expert has no token returns at once), nothing is sorted and nothing waits for the
CPU, so that a CUDA graph can replay it.

The trap is arithmetic, not memory: at 4 TB/s a GPU has four instructions for each weight, and
turning a nibble into a number the usual way takes seven. So a nibble is put into the bits of a
float as it stands: 0x4300 | n is 128 + n in bfloat16 (0x6400 | n is 1024 + n in float16). One
subtraction for two weights then gives n - 8, exactly, and the tensor cores do the rest.
Source: PTX ISA, bfloat16 and float16 layouts; spec, section 14 for the packing.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

LEAST = 16  # tokens, and rows, that a tensor core multiplies at once


@dataclass(frozen=True)
class Tuning:
    """How a product is cut up: output rows of a program, its warps, and loads kept in flight."""

    rows: int = 64
    warps: int = 4
    stages: int = 6


TUNINGS = {"up": Tuning(), "down": Tuning(), "linear": Tuning()}  # ``start.py gpu`` tries others


# ---------------------------------------------------------------------- device code
@triton.jit
def numbers(words, dtype: tl.constexpr, ROWS: tl.constexpr, GROUP: tl.constexpr):
    """int32 (ROWS, GROUP / 8) -> q in ``dtype`` (ROWS, GROUP), columns in ``column_order``."""
    LOW: tl.constexpr = 0x000F000F  # one nibble of each half word
    ONES: tl.constexpr = 0x43004300 if dtype == tl.bfloat16 else 0x64006400
    ZERO: tl.constexpr = 136.0 if dtype == tl.bfloat16 else 1032.0  # what a stored 8 becomes
    pairs = tl.join(
        tl.join(words & LOW | ONES, (words >> 8) & LOW | ONES),
        tl.join((words >> 4) & LOW | ONES, (words >> 12) & LOW | ONES),
    ).reshape(ROWS, GROUP // 2)
    low = (pairs & 0xFFFF).to(tl.int16).to(dtype, bitcast=True)
    high = (pairs >> 16).to(tl.int16).to(dtype, bitcast=True)
    return tl.join(low, high).reshape(ROWS, GROUP) - tl.full([1, 1], ZERO, dtype)


@triton.jit
def column_order(GROUP: tl.constexpr):
    """``numbers`` gives the weights of a word in the order 0 4 1 5 2 6 3 7: x is read likewise."""
    column = tl.arange(0, GROUP)
    return column // 8 * 8 + column % 8 // 2 + column % 2 * 4


@triton.jit
def product(
    x, packed, scale, rows, tokens, mine, IN: tl.constexpr, GROUP: tl.constexpr,
    ROWS: tl.constexpr, TOKENS: tl.constexpr,
):  # fmt: skip
    """W[rows] @ x[tokens].T, float32 (ROWS, TOKENS); tokens that are not ``mine`` give zeros."""
    dtype: tl.constexpr = x.dtype.element_ty
    column = column_order(GROUP)
    total = tl.zeros([ROWS, TOKENS], tl.float32)
    for k in range(0, IN, GROUP):
        words = tl.load(packed + rows[:, None] * (IN // 8) + k // 8 + tl.arange(0, GROUP // 8))
        part = tl.load(x + tokens * IN + (k + column)[:, None], mask=mine, other=0.0)
        step = tl.load(scale + rows * (IN // GROUP) + k // GROUP).to(tl.float32)
        total += tl.dot(numbers(words, dtype, ROWS, GROUP), part) * step[:, None]
    return total


@triton.jit
def whose(choice, n, EXPERTS: tl.constexpr, BY_TOKEN: tl.constexpr, TOKENS: tl.constexpr):
    """The expert that this program serves, and which of its tokens (1, TOKENS) are that expert's.

    The second axis of the grid counts experts, or, where tokens are fewer, tokens: the first of
    those that chose an expert serves it for all. The last place is the shared expert's.
    """
    place = tl.program_id(1)
    tokens = (tl.program_id(2) * TOKENS + tl.arange(0, TOKENS))[None, :]
    inside = tokens < n
    chosen = tl.load(choice + tokens, mask=inside, other=-1).to(tl.int32)
    if BY_TOKEN:
        shared = place == n
        expert = tl.load(choice + place, mask=place < n, other=-1).to(tl.int32)
        first = tl.min(tl.where(chosen == expert, tokens, n)) == place
        mine = tl.where(shared, inside, tl.where(first, chosen == expert, tokens < 0))
    else:
        shared = place == EXPERTS
        expert = place
        mine = tl.where(shared, inside, chosen == expert)
    return expert, shared, tokens, mine


@triton.jit
def linear_kernel(
    x, packed, scale, y, n, IN: tl.constexpr, OUT: tl.constexpr, GROUP: tl.constexpr,
    ROWS: tl.constexpr, TOKENS: tl.constexpr,
):  # fmt: skip
    """y[t] = W x[t] for TOKENS tokens and ROWS outputs."""
    rows = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    tokens = (tl.program_id(1) * TOKENS + tl.arange(0, TOKENS))[None, :]
    out = product(x, packed, scale, rows, tokens, tokens < n, IN, GROUP, ROWS, TOKENS)
    tl.store(y + tokens * OUT + rows[:, None], out.to(y.dtype.element_ty), mask=tokens < n)


@triton.jit
def up_kernel(
    x, score, choice, packed, scale, gate_packed, gate_scale, up_packed, up_scale, h, n,
    EXPERTS: tl.constexpr, WIDTH: tl.constexpr, HIDDEN: tl.constexpr, GROUP: tl.constexpr,
    BY_TOKEN: tl.constexpr, ROWS: tl.constexpr, TOKENS: tl.constexpr,
):  # fmt: skip
    """h[0, t] of the routed expert, h[1, t] of the shared one."""
    rows = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    expert, shared, tokens, mine = whose(choice, n, EXPERTS, BY_TOKEN, TOKENS)
    if tl.sum(mine.to(tl.int32)) > 0:
        if shared:
            heat = tl.full([1, TOKENS], 1.0, tl.float32)
            gate, up, gate_step, up_step = gate_packed, up_packed, gate_scale, up_scale
        else:  # offsets in int64: Maverick's experts exceed what int32 can count
            heat = tl.load(score + tokens, mask=mine, other=0.0).to(tl.float32)
            gate = packed + expert.to(tl.int64) * (2 * HIDDEN * (WIDTH // 8))
            gate_step = scale + expert.to(tl.int64) * (2 * HIDDEN * (WIDTH // GROUP))
            up = gate + HIDDEN * (WIDTH // 8)
            up_step = gate_step + HIDDEN * (WIDTH // GROUP)
        g = product(x, gate, gate_step, rows, tokens, mine, WIDTH, GROUP, ROWS, TOKENS) * heat
        u = product(x, up, up_step, rows, tokens, mine, WIDTH, GROUP, ROWS, TOKENS) * heat
        place = h + (shared.to(tl.int32) * n + tokens) * HIDDEN + rows[:, None]
        tl.store(place, (g * tl.sigmoid(g) * u).to(h.dtype.element_ty), mask=mine)


@triton.jit
def down_kernel(
    h, choice, packed, scale, shared_packed, shared_scale, y, n,
    EXPERTS: tl.constexpr, WIDTH: tl.constexpr, HIDDEN: tl.constexpr, GROUP: tl.constexpr,
    BY_TOKEN: tl.constexpr, ROWS: tl.constexpr, TOKENS: tl.constexpr,
):  # fmt: skip
    """y[0, t] of the routed expert, y[1, t] of the shared one; float32."""
    rows = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    expert, shared, tokens, mine = whose(choice, n, EXPERTS, BY_TOKEN, TOKENS)
    if tl.sum(mine.to(tl.int32)) > 0:
        if shared:
            down, step = shared_packed, shared_scale
        else:
            down = packed + expert.to(tl.int64) * (WIDTH * (HIDDEN // 8))
            step = scale + expert.to(tl.int64) * (WIDTH * (HIDDEN // GROUP))
        slot = shared.to(tl.int32) * n + tokens
        out = product(h, down, step, rows, slot, mine, HIDDEN, GROUP, ROWS, TOKENS)
        tl.store(y + slot * WIDTH + rows[:, None], out, mask=mine)


@triton.jit
def unpack_kernel(packed, scale, w, IN: tl.constexpr, GROUP: tl.constexpr, ROWS: tl.constexpr):
    """One group of ROWS rows, back to numbers: for many tokens, where reading is not the limit."""
    rows = (tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS))[:, None]
    k = tl.program_id(1) * GROUP
    words = tl.load(packed + rows * (IN // 8) + k // 8 + tl.arange(0, GROUP // 8))
    step = tl.load(scale + rows * (IN // GROUP) + k // GROUP).to(tl.float32)
    numbers_here = numbers(words, w.dtype.element_ty, ROWS, GROUP).to(tl.float32) * step
    tl.store(w + rows * IN + k + column_order(GROUP), numbers_here.to(w.dtype.element_ty))


# ---------------------------------------------------------------------- launches
def unpack(packed: Tensor, scale: Tensor, dtype: torch.dtype) -> Tensor:
    """packed (..., out, in / 8), scale (..., out, in / group) -> (..., out, in) in 16 bits."""
    width = packed.shape[-1] * 8
    w = torch.empty(*packed.shape[:-1], width, dtype=dtype, device=packed.device)
    group, rows = width // scale.shape[-1], w.numel() // width
    at_once = _rows(rows, Tuning(rows=64))
    unpack_kernel[(rows // at_once, width // group)](packed, scale, w, width, group, at_once)
    return w


def linear(x: Tensor, packed: Tensor, scale: Tensor) -> Tensor:
    """x (n, in) float16 or bfloat16, packed (out, in / 8), scale (out, in / group) -> (n, out)."""
    n, out = len(x), len(packed)
    group = x.shape[1] // scale.shape[1]
    y, tuning = x.new_empty(n, out), TUNINGS["linear"]
    rows, tokens = _rows(out, tuning), _tokens(n)
    grid = (out // rows, triton.cdiv(n, tokens))
    sizes = (x.shape[1], out, group, rows, tokens)
    linear_kernel[grid](
        x.contiguous(), packed, scale, y, n, *sizes,
        num_warps=tuning.warps, num_stages=tuning.stages,
    )  # fmt: skip
    return y


def experts(
    x: Tensor,
    score: Tensor,
    choice: Tensor,
    gate_up_packed: Tensor,
    gate_up_scale: Tensor,
    down_packed: Tensor,
    down_scale: Tensor,
    shared: tuple[Tensor, ...] | None = None,
) -> Tensor:
    """x (n, m) float16 or bfloat16, score and choice (n,) -> (n, m): Expert_choice(score · x).

    The packed weights are those of ``Int4Experts``. ``shared``: packed and scale of the shared
    expert's gate, up and down, six tensors; its output is then added, from the same two launches.
    """
    (n, width), (e, double, _) = x.shape, gate_up_packed.shape
    hidden, group, both = double // 2, width // gate_up_scale.shape[2], int(shared is not None)
    routed = (gate_up_packed, gate_up_scale, down_packed, down_scale)
    gate_p, gate_s, up_p, up_s, down_p, down_s = shared or (*routed[:2], *routed)
    h, y = x.new_empty(1 + both, n, hidden), x.new_empty(1 + both, n, width, dtype=torch.float32)
    tokens = _tokens(n)
    for kernel, out, tuning, tensors in (
        (up_kernel, hidden, TUNINGS["up"],
         (x.contiguous(), score, choice, *routed[:2], gate_p, gate_s, up_p, up_s, h)),
        (down_kernel, width, TUNINGS["down"], (h, choice, *routed[2:], down_p, down_s, y)),
    ):  # fmt: skip
        rows = _rows(out, tuning)
        grid = (out // rows, min(n, e) + both, triton.cdiv(n, tokens))
        kernel[grid](
            *tensors, n, e, width, hidden, group, n < e, rows, tokens,
            num_warps=tuning.warps, num_stages=tuning.stages,
        )  # fmt: skip
    return y.sum(0).to(x.dtype)


def _rows(out: int, tuning: Tuning) -> int:
    """The largest power of two up to the tuning's that divides ``out``: no row is then masked."""
    rows = min(tuning.rows, out & -out)
    if rows < LEAST:
        raise ValueError(f"{out} output rows are not a multiple of {LEAST}: unpack this weight.")
    return rows


def _tokens(n: int) -> int:
    """All tokens in one program up to 64, so that a weight is read once for all of them."""
    return min(max(triton.next_power_of_2(n), LEAST), 64)

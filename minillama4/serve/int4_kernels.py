"""Int4 products on a GPU, the device code: what ``int4_triton`` launches.

The trap is arithmetic, not memory: at 4 TB/s a GPU has four instructions for each weight, and
turning a nibble into a number the usual way takes seven. So a nibble is put into the bits of a
float as it stands: 0x4300 | n is 128 + n in bfloat16 (0x6400 | n is 1024 + n in float16). One
subtraction for two weights then gives n - 8, exactly, and the tensor cores do the rest.
Source: PTX ISA, bfloat16 and float16 layouts; spec, section 14 for the packing.
"""

from __future__ import annotations

import triton
import triton.language as tl


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
def product(
    x, packed, scale, tokens, mine, part, PARTS: tl.constexpr, IN: tl.constexpr,
    GROUP: tl.constexpr, ROWS: tl.constexpr, TOKENS: tl.constexpr,
):  # fmt: skip
    """W @ x[tokens].T, float32 (ROWS, TOKENS), of one part of the input; tokens that are not
    ``mine`` give zeros. packed and scale (ROWS,) point to where each row of W begins."""
    begin = part * (IN // PARTS)
    total = tl.zeros([ROWS, TOKENS], tl.float32)
    for k in range(begin, begin + IN // PARTS, GROUP):
        words = tl.load(packed[:, None] + k // 8 + tl.arange(0, GROUP // 8))
        column = (k + tl.arange(0, GROUP))[:, None]
        here = tl.load(x + tokens * IN + column, mask=mine, other=0.0)
        here = here.reshape(GROUP // 8, 2, 4, TOKENS).permute(0, 2, 1, 3).reshape(GROUP, TOKENS)
        step = tl.load(scale + k // GROUP).to(tl.float32)
        total += tl.dot(numbers(words, x.dtype.element_ty, ROWS, GROUP), here) * step[:, None]
    return total


@triton.jit
def block(OUT: tl.constexpr, ROWS: tl.constexpr):
    """The rows (ROWS,) of this program, and which part of the input it reads."""
    blocks: tl.constexpr = OUT // ROWS
    return tl.program_id(0) % blocks * ROWS + tl.arange(0, ROWS), tl.program_id(0) // blocks


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
    ROWS: tl.constexpr, TOKENS: tl.constexpr, PARTS: tl.constexpr,
):  # fmt: skip
    """y[part, t] of W x[t] for TOKENS tokens and ROWS outputs; float32."""
    rows, part = block(OUT, ROWS)
    tokens = (tl.program_id(1) * TOKENS + tl.arange(0, TOKENS))[None, :]
    mine, packed, scale = tokens < n, packed + rows * (IN // 8), scale + rows * (IN // GROUP)
    out = product(x, packed, scale, tokens, mine, part, PARTS, IN, GROUP, ROWS, TOKENS)
    tl.store(y + (part * n + tokens) * OUT + rows[:, None], out, mask=mine)


@triton.jit
def up_kernel(
    x, score, choice, packed, scale, gate_packed, gate_scale, up_packed, up_scale, h, n,
    EXPERTS: tl.constexpr, WIDTH: tl.constexpr, HIDDEN: tl.constexpr, GROUP: tl.constexpr,
    BY_TOKEN: tl.constexpr, ROWS: tl.constexpr, TOKENS: tl.constexpr,
):  # fmt: skip
    """h[0, t] of the routed expert, h[1, t] of the shared one. Half of a tile's rows are gate's,
    the others up's."""
    half: tl.constexpr = ROWS // 2
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
        place = tl.arange(0, ROWS)
        rows = tl.program_id(0) * half + place % half
        words = tl.where(place < half, gate, up) + rows * (WIDTH // 8)
        step = tl.where(place < half, gate_step, up_step) + rows * (WIDTH // GROUP)
        both = product(x, words, step, tokens, mine, 0, 1, WIDTH, GROUP, ROWS, TOKENS) * heat
        g, u = tl.split(both.reshape(2, half, TOKENS).permute(1, 2, 0))
        rows = tl.program_id(0) * half + tl.arange(0, half)
        place = h + (shared.to(tl.int32) * n + tokens) * HIDDEN + rows[:, None]
        tl.store(place, (g * tl.sigmoid(g) * u).to(h.dtype.element_ty), mask=mine)


@triton.jit
def down_kernel(
    h, choice, packed, scale, shared_packed, shared_scale, y, n,
    EXPERTS: tl.constexpr, WIDTH: tl.constexpr, HIDDEN: tl.constexpr, GROUP: tl.constexpr,
    BY_TOKEN: tl.constexpr, ROWS: tl.constexpr, TOKENS: tl.constexpr, PARTS: tl.constexpr,
):  # fmt: skip
    """y[0, part, t] of the routed expert, y[1, part, t] of the shared one; float32."""
    rows, part = block(WIDTH, ROWS)
    expert, shared, tokens, mine = whose(choice, n, EXPERTS, BY_TOKEN, TOKENS)
    if tl.sum(mine.to(tl.int32)) > 0:
        if shared:
            down, step = shared_packed, shared_scale
        else:
            down = packed + expert.to(tl.int64) * (WIDTH * (HIDDEN // 8))
            step = scale + expert.to(tl.int64) * (WIDTH * (HIDDEN // GROUP))
        down += rows * (HIDDEN // 8)
        step += rows * (HIDDEN // GROUP)
        one = shared.to(tl.int32)
        slot, place = one * n + tokens, (one * PARTS + part) * n + tokens
        out = product(h, down, step, slot, mine, part, PARTS, HIDDEN, GROUP, ROWS, TOKENS)
        tl.store(y + place * WIDTH + rows[:, None], out, mask=mine)


@triton.jit
def unpack_kernel(packed, scale, w, IN: tl.constexpr, GROUP: tl.constexpr, ROWS: tl.constexpr):
    """One group of ROWS rows, back to numbers: for many tokens, where reading is not the limit."""
    rows = (tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS))[:, None]
    k = tl.program_id(1) * GROUP
    words = tl.load(packed + rows * (IN // 8) + k // 8 + tl.arange(0, GROUP // 8))
    step = tl.load(scale + rows * (IN // GROUP) + k // GROUP).to(tl.float32)
    q = numbers(words, w.dtype.element_ty, ROWS, GROUP)
    q = q.reshape(ROWS, GROUP // 8, 4, 2).permute(0, 1, 3, 2).reshape(ROWS, GROUP)  # 0 1 2 3 ...
    out = (q.to(tl.float32) * step).to(w.dtype.element_ty)
    tl.store(w + rows * IN + k + tl.arange(0, GROUP), out)

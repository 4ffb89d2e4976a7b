"""Section "attention": one chunked layer's attention over growing lengths, and its memory.

Ours folds chunks into the batch. A dense mask is what transformers gives every layer; we time its
attention alone, the mask being made once per forward pass. Full causal is what a NoPE layer does.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace

import torch

from .memory import CHUNKS, DENSE, FULL, attention, peak_bytes
from .plan import Plan
from .report import Row
from .timing import Candidate, check_equal, take_turns

COST, FLAT = 1.2, 32_768  # at most, at this length
GAIN, LONG = 20, 16_384  # at least, at this length


def cases(plan: Plan) -> Iterator[tuple[str, Callable[[], list[Row]]]]:
    """(title, what measures it), in the order of the table."""
    for length in plan.lengths:
        yield f"{length:,} tokens", lambda t=length: at_length(plan, t)
    first, last = min(plan.lengths), max(plan.lengths)
    yield "growth", lambda: growth(plan, first, last)


@torch.inference_mode()
def at_length(plan: Plan, length: int) -> list[Row]:
    """Ours beside the dense mask, which computes the same, and beside full causal attention."""
    names = [CHUNKS, DENSE, FULL] if length in plan.dense_lengths else [CHUNKS, FULL]
    runs = {name: attention(name, plan.heads, length, plan.chunk) for name in names}
    what = f"{length:,} tokens, chunks of {plan.chunk:,}"
    gap = check_equal(what, [runs[CHUNKS]()], [runs[DENSE]()]) if DENSE in runs else None
    candidates = {name: Candidate(lambda _, run=run: run()) for name, run in runs.items()}
    times = take_turns(candidates, plan.rounds, plan.seconds, plan.fewest)
    times = {name: time.per(length) for name, time in times.items()}
    peak = {name: _peak(plan, name, length) for name in names}
    return [
        Row(
            *("attention", what, times[CHUNKS], name, times[name], plan.threads),
            difference=gap if name == DENSE else None,
            target=GAIN if (name, length) == (DENSE, LONG) else None,
            unit="token",
            note=f"{peak[CHUNKS]} against {peak[name]}" if peak[name] else "",
        )
        for name in names[1:]
    ]


def _peak(plan: Plan, name: str, length: int) -> str:
    """Memory beyond the inputs, as text; empty where it is not measured."""
    found = (
        peak_bytes(name, plan.heads, length, plan.chunk) if length in plan.memory_lengths else None
    )
    return "" if found is None else f"{found / 2**20:,.0f} MiB"


@torch.inference_mode()
def growth(plan: Plan, first: int, last: int) -> list[Row]:
    """Cost per token at the longest length beside that at the shortest: linear means 1."""
    runs = {t: attention(CHUNKS, plan.heads, t, plan.chunk) for t in (first, last)}
    candidates = {t: Candidate(lambda _, run=run: run()) for t, run in runs.items()}
    times = take_turns(candidates, plan.rounds, plan.seconds, plan.fewest)
    ours, theirs = times[last].per(last), times[first].per(first)
    what, few = f"{last:,} tokens, chunks of {plan.chunk:,}", f"ours at {first:,} tokens"
    row = Row("attention", what, ours, few, theirs, plan.threads, kind="cost", unit="token")
    return [replace(row, target=COST if last == FLAT else None)]

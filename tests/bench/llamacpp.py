"""Section "llamacpp": prefill and decode beside llama.cpp, which reads what we export.

Ours is a model of the config that llama.cpp follows (``as_llamacpp``) with the same weights, so
that both compute the same. Nothing is measured where llama-cpp-python is not installed.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from minillama4 import Llama4, Llama4Config
from minillama4.serve.gguf import save_gguf
from minillama4.serve.llamacpp import as_llamacpp
from minillama4.serve.quantize import quantize_model

from .inference import Ours, begin, write
from .int4 import Fixed
from .plan import MODELS, Plan, model_config
from .report import Row
from .timing import Candidate, check_equal, take_turns

INSTALLED = find_spec("llama_cpp") is not None
KINDS = ("f32", "q4_0")  # the same numbers, and what llama.cpp is known for
PREFILL, DECODE_INT4 = 1.3, 0.5  # times llama.cpp, at least
HALF = 5e-3  # what its flash attention may differ by: it rounds keys and values to 16 bits


def cases(plan: Plan) -> Iterator[tuple[str, Callable[[], list[Row]]]]:
    """(title, what measures it), in the order of the table."""
    if not INSTALLED:
        return
    for name in plan.models:
        length = min(plan.prefill)
        yield f"prefill, {name}, {length} tokens", lambda n=name, t=length: prefill(plan, n, t)
        yield f"decode, {name}", lambda n=name: decode(plan, n)


@torch.inference_mode()
def prefill(plan: Plan, name: str, length: int) -> list[Row]:
    """Read a prompt into a new cache; all give the last position's logits."""
    model = exportable_model(model_config(name))
    tokens = torch.randint(0, model.config.vocab_size, (1, length))
    what = f"{MODELS[name]}, prefill of {length:,} tokens"
    readers = side_by_side(plan, model, length, flash=True)  # twice as fast in prefill
    gap = difference(what, readers, lambda reader: reader.read_new(tokens), HALF)
    runs = {key: Candidate(r.read_new, lambda: tokens) for key, r in readers.items()}
    times = take_turns(runs, plan.rounds, plan.seconds, plan.fewest)
    times = {key: time.per(length) for key, time in times.items()}
    sides = {"f32": ("ours", PREFILL), "q4_0": ("ours", PREFILL)}
    return rows(plan, what, times, gap, "token", sides)


@torch.inference_mode()
def decode(plan: Plan, name: str) -> list[Row]:
    """Greedy tokens of one row after a prompt that all have read; the clock runs from there."""
    model = exportable_model(model_config(name))
    prompt = torch.randint(0, model.config.vocab_size, (1, plan.prompt))
    forced = torch.randint(0, model.config.vocab_size, (plan.steps, 1, 1))
    what = f"{MODELS[name]}, decode of {plan.steps} tokens after {plan.prompt}"
    length = plan.prompt + plan.steps
    readers = side_by_side(plan, model, length, flash=False)  # a tenth faster in decode
    gap = difference(
        what, readers, lambda r: torch.cat([r.read_new(prompt)[:, -1:], *map(r.read, forced)])
    )
    same = exportable_model(model_config(name))  # quantised in place, so another one
    readers["ours in Int4"] = Ours(quantize_model(same, "all", group=32))
    readers["ours in Int4, compiled"] = Fixed(same, length)
    runs = {
        key: Candidate(lambda last, r=r: write(r, last, plan.steps), begin(r, prompt))
        for key, r in readers.items()
    }
    times = take_turns(runs, plan.rounds, plan.seconds, plan.fewest)
    times = {key: time.per(plan.steps) for key, time in times.items()}
    first = rows(
        plan, what, times, gap, "step", {"f32": ("ours", None), "q4_0": ("ours in Int4", None)}
    )
    return first + rows(
        plan, what, times, gap, "step", {"q4_0": ("ours in Int4, compiled", DECODE_INT4)}
    )


def side_by_side(plan: Plan, model: Llama4, length: int, flash: bool) -> dict:
    """Readers by name; all with a cache in float32, llama.cpp with or without flash attention."""
    options = dict(threads=plan.threads, length=length, flash_attn=flash)
    return {"ours": Ours(model)} | {kind: LlamaCpp(model, kind, **options) for kind in KINDS}


def difference(what: str, readers: dict, logits, limit: float = 1e-4) -> float:
    """Of llama.cpp's logits from ours, with the same weights; ResultsDiffer above ``limit``."""
    return check_equal(what, [logits(readers["f32"])], [logits(readers["ours"])], limit)


def rows(plan: Plan, what: str, times: dict, gap: float, unit: str, sides: dict) -> list[Row]:
    """sides: kind of file -> which of ours stands beside it, and the target. Different roundings
    to four bits are not compared."""
    return [
        Row(
            *("llamacpp", what, times[ours], f"llama.cpp {kind.upper()}", times[kind]),
            *(plan.threads, gap if kind == "f32" else None),
            target=target,
            unit=unit,
            note=ours.removeprefix("ours").strip(),
        )
        for kind, (ours, target) in sides.items()
    ]


def exportable_model(config: Llama4Config) -> Llama4:
    """Random weights, in evaluation mode, that mean the same here and in llama.cpp."""
    torch.manual_seed(0)
    return Llama4(as_llamacpp(config)).eval()


class LlamaCpp:
    """A model in llama.cpp, fed with ids; cache "f32" as ours, or "f16", its default."""

    def __init__(self, model: Llama4, kind: str, threads: int, length: int, cache="f32", **options):
        import llama_cpp

        self.cpp = llama_cpp
        stored = {"f16": llama_cpp.GGML_TYPE_F16, "f32": llama_cpp.GGML_TYPE_F32}[cache]
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder) / "model.gguf"
            save_gguf(model, file, kind=kind)
            given = dict(type_k=stored, type_v=stored, use_mmap=False, verbose=False)
            given |= dict(n_ctx=length, n_batch=length, n_threads=threads, n_threads_batch=threads)
            self.llama = llama_cpp.Llama(str(file), **given | options)
        self.vocab_size = model.config.vocab_size
        self.read_so_far = 0

    def read_new(self, tokens: Tensor, every: bool = False) -> Tensor:
        """Forget everything, then read."""
        self.llama._ctx.kv_cache_clear()
        self.read_so_far = 0
        return self.read(tokens, every)

    def read(self, tokens: Tensor, every: bool = False) -> Tensor:
        """tokens (1, t) -> logits (1, 1, v) of the last position, or (1, t, v) of every one."""
        (row,), context = tokens.tolist(), self.llama._ctx
        if every:
            self.llama._batch.set_batch(row, n_past=self.read_so_far, logits_all=True)
            context.decode(self.llama._batch)
        else:  # quicker: set_batch writes five numbers a token, one by one
            ids = (self.cpp.llama_token * len(row))(*row)
            failed = self.cpp.llama_decode(context.ctx, self.cpp.llama_batch_get_one(ids, len(row)))
            assert not failed
        self.read_so_far += len(row)
        size = self.vocab_size * (len(row) if every else 1)
        numbers = np.ctypeslib.as_array(context.get_logits(), shape=(size,))
        return torch.from_numpy(numbers.copy()).view(1, -1, self.vocab_size)

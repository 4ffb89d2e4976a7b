"""Sections "headline", "decode", "skew", "prefill" and "long": a full-size Scout writes and reads.

The bytes of a step are counted with the experts that it was seen to read. A model writes at most
as fast as the memory can deliver them; MBU is the share of that.
"""

from __future__ import annotations

import dataclasses
import statistics
from contextlib import suppress

import torch

from minillama4.serve.hardware import H100
from minillama4.serve.measure import experts_read, tpot, ttft
from minillama4.serve.memory import WORKSPACE, kv_bytes
from minillama4.serve.precision import weight_bytes
from minillama4.serve.roofline import Step, decode_step
from minillama4.serve.static import StaticDecoder

from .gpu_run import NEEDED, Run, bytes_of, scheme_of

CAP = 80_000_000_000  # bytes: an H100 of 80 GB, by its name


def decode(run: Run, batches, contexts, skew: float = 0.0, section: str = "decode") -> None:
    """Greedy steps. The shortest context has decoders of its own: a step begins more programs in a
    decoder for long texts, and most of them find nothing to do."""
    model = run.model(skew)
    room = CAP - bytes_of(model) - WORKSPACE
    for batch in batches:
        fits = {n: batch * kv_bytes(model.config, n + run.steps) <= room for n in contexts}
        for n in contexts:
            if not fits[n]:
                run.leave_out(section, "memory", batch=batch, context=n, skew=skew)
        for some in (contexts[:1], contexts[1:]):
            if fitting := [n for n in some if fits[n]]:
                told = f"{section}, batch {batch}, contexts {fitting}"
                run.attempt(told, _one_decoder, run, model, batch, fitting, skew, section)
                run.clean()


def _one_decoder(run: Run, model, batch: int, contexts, skew: float, section: str) -> None:
    decoder = None
    for context in contexts:
        if run.left < NEEDED:
            run.leave_out(section, "time", batch=batch, context=context, skew=skew)
            continue
        if decoder is None:
            decoder = StaticDecoder(model, batch, max(contexts) + run.steps)
        told = f"{section}, batch {batch}, context {context}"
        run.attempt(told, _one_row, run, decoder, context, skew, section)


def _one_row(run: Run, decoder: StaticDecoder, context: int, skew: float, section: str) -> None:
    samples, peak = tpot(decoder, context, run.steps, run.rounds), run.peak()
    experts = experts_read(decoder, context, run.steps)
    step = step_of(run, decoder, context + run.steps // 2, experts)
    speed = decoder.rows / statistics.median(samples)
    run.keep(
        *(section,), batch=decoder.rows, context=context, skew=skew, tokens_per_second=speed,
        mbu=step.mbu(speed), bytes_per_step=step.bytes, slots=decoder.length,
        experts=statistics.mean(experts), experts_by_layer=experts, **peak, samples=samples,
    )  # fmt: skip


def step_of(run: Run, decoder: StaticDecoder, context: int, experts: list[float]) -> Step:
    """What a step reads, with so many experts in each layer that has some."""
    c, scheme = decoder.config, scheme_of(decoder.model)
    hardware = H100.replace(name=run.device, bandwidth=run.bandwidth)
    step = decode_step(c, hardware, scheme, context, decoder.rows, average=False)
    one = weight_bytes(c, scheme)["routed experts"] / (len(c.moe_layers) * c.experts)
    return dataclasses.replace(step, reads=step.reads | {"routed experts": one * sum(experts)})


def prefill(run: Run, lengths) -> None:
    decoder = StaticDecoder(run.model(), 1, max(lengths) + 1)
    for length in lengths:
        if run.left < NEEDED:
            run.leave_out("prefill", "time", tokens=length)
        else:
            run.attempt(f"prefill {length}", _one_prompt, run, decoder, length)


def _one_prompt(run: Run, decoder: StaticDecoder, length: int) -> None:
    samples = ttft(decoder, length, rounds=3)
    took = statistics.median(samples)
    run.keep(
        *("prefill",), tokens=length, seconds=took, tokens_per_second=length / took,
        **run.peak(), samples=samples,
    )  # fmt: skip


def long(run: Run, contexts) -> None:
    """One text of each length, its cache in full, read to the end by one token."""
    for context in contexts:
        if run.left < NEEDED:
            run.leave_out("long", "time", context=context)
        else:
            run.attempt(f"long {context}", _one_text, run, context)
            run.clean()


def _one_text(run: Run, context: int) -> None:
    model, samples = run.model(), []
    with suppress(torch.OutOfMemoryError):  # no failure, but an answer
        samples = tpot(StaticDecoder(model, 1, context), context - 9, 8, 3)
    run.keep("long", context=context, fits=bool(samples), **run.peak(), samples=samples)

"""Sections "prefill" (reading a prompt) and "decode" (writing one token after the other)."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor
from transformers import DynamicCache, Llama4ForCausalLM

from minillama4 import KVCache, Llama4
from minillama4.serve.decoder import Decoder

from .pairs import model_pair
from .plan import MODELS, Plan, model_config
from .report import Row
from .timing import Candidate, check_equal, take_turns

PREFILL, DECODE = 6, 4  # times transformers, at least

Cases = Iterator[tuple[str, Callable[[], list[Row]]]]


def prefill_cases(plan: Plan) -> Cases:
    """(title, what measures it), in the order of the table."""
    for name in plan.models:
        for length in plan.prefill:
            yield f"{name}, {length} tokens", lambda n=name, t=length: prefill(plan, n, t)


def decode_cases(plan: Plan) -> Cases:
    """(title, what measures it), in the order of the table."""
    for name in plan.models:
        for batch in plan.decode_batches:
            yield f"{name}, batch {batch}", lambda n=name, b=batch: decode(plan, n, b)


@torch.inference_mode()
def prefill(plan: Plan, name: str, length: int) -> list[Row]:
    """Read a prompt into a new cache; both give the last position's logits."""
    ours, theirs = model_pair(model_config(name))
    tokens = torch.randint(0, ours.config.vocab_size, (1, length))
    readers = [Ours(ours), Theirs(theirs)]
    what = f"{MODELS[name]}, {length:,} tokens"
    mine, other = (reader.read(tokens) for reader in readers)
    gap = check_equal(what, [mine], [other])
    runs = {type(r).__name__: Candidate(r.read_new, lambda: tokens) for r in readers}
    times = take_turns(runs, plan.rounds, plan.seconds, plan.fewest)
    times = {key: time.per(length) for key, time in times.items()}
    against = "transformers, logits_to_keep=1"
    sides = (times["Ours"], against, times["Theirs"])
    return [Row("prefill", what, *sides, plan.threads, gap, target=PREFILL, unit="token")]


@torch.inference_mode()
def decode(plan: Plan, name: str, batch: int) -> list[Row]:
    """Greedy tokens after a prompt that both have read; the clock runs from there."""
    ours, theirs = model_pair(model_config(name))
    prompt = torch.randint(0, ours.config.vocab_size, (batch, plan.prompt))
    forced = torch.randint(0, ours.config.vocab_size, (plan.steps, batch, 1))
    what = f"{MODELS[name]}, batch {batch}, {plan.steps} tokens after {plan.prompt}"
    readers = [Ours(ours), Theirs(theirs)]
    logits = [torch.cat([r.read_new(prompt)[:, -1:], *map(r.read, forced)]) for r in readers]
    gap = check_equal(what, *([each] for each in logits))
    runs = {
        type(r).__name__: Candidate(lambda last, r=r: write(r, last, plan.steps), begin(r, prompt))
        for r in readers
    }
    times = take_turns(runs, plan.rounds, plan.seconds, plan.fewest)
    times = {key: time.per(plan.steps) for key, time in times.items()}
    sides = (times["Ours"], "transformers, DynamicCache", times["Theirs"])
    target = DECODE if batch == 1 else None
    return [Row("decode", what, *sides, plan.threads, gap, target=target, unit="step")]


def begin(reader, prompt: Tensor) -> Callable[[], Tensor]:
    return lambda: reader.read_new(prompt)[:, -1:].argmax(-1)


def write(reader, last: Tensor, steps: int) -> None:
    """Feed each most likely token back in, ``steps`` times."""
    if hasattr(reader, "write"):  # it does so by itself
        return reader.write(last, steps)
    for _ in range(steps):
        last = reader.read(last)[:, -1:].argmax(-1)


class Ours:
    """minillama4 with its KVCache, as ``ml4.generate`` runs it."""

    def __init__(self, model: Llama4):
        self.model = model
        self.decoder = Decoder(model)
        self.cache = KVCache(model.config)

    def read_new(self, tokens: Tensor) -> Tensor:
        """Forget everything, then read."""
        self.cache = KVCache(self.model.config)
        return self.read(tokens)

    def read(self, tokens: Tensor) -> Tensor:
        if tokens.shape[1] == 1:
            return self.decoder.step(tokens[:, 0], self.cache)[:, None]
        return self.model(tokens, cache=self.cache, last_only=True)


class Theirs:
    """transformers at its fastest in eager mode: called directly, logits of the last token only."""

    def __init__(self, model: Llama4ForCausalLM):
        self.model = model
        self.cache = DynamicCache(config=model.config)

    def read_new(self, tokens: Tensor) -> Tensor:
        """Forget everything, then read."""
        self.cache = DynamicCache(config=self.model.config)
        return self.read(tokens)

    def read(self, tokens: Tensor) -> Tensor:
        inputs = dict(input_ids=tokens, past_key_values=self.cache, use_cache=True)
        return self.model(**inputs, logits_to_keep=1).logits

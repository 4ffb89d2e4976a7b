"""Checks for *Will it fit?* (notebooks/05_serving/03_will_it_fit.ipynb)."""

import math
import random

from ..checks import Check, number

# ------------------------------------------------------------------ 1: bits for a weight
bits = number(
    "bits",
    right=4.5,
    wrong={
        "That is the weight alone: its group's scale takes room as well.": 4.0,
        "That is for groups of 128; here 32 weights share a scale.": 4.125,
        "That is Meta's form: a scale of 32 bits for 128 weights.": 4.25,
        "A scale in bf16 has 16 bits, not 32.": 5.0,
        "You added the scale's bytes to bits: it has 2 bytes, 16 bits.": 4 + 2 / 32,
        "Right, but in bytes: return bits.": 4.5 / 8,
        "Every weight pays a share of the scale only, 1/32 of it.": 20.0,
        "Upside down: 16 bits are shared by 32 weights, so each pays 16/32.": 4 + 32 / 16,
        "That is a whole group: 32 weights and their scale. Of one weight?": 32 * 4.0 + 16,
    },
    praise="4.5 bits: small groups follow the weights more closely, and cost more.",
    tolerance=1e-9,
)


# ------------------------------------------------------------------ 2: the context that fits
def _room(seed: int) -> tuple[int, ...]:
    """left, batch, layers, nope, chunk, per_entry: Scout's, a model all within its first chunk,
    and others at random; so that a whole number is not hit by chance."""
    draw = random.Random(seed)
    if seed == 0:
        return (10_522_613_248, 1, 48, 12, 8192, 4096)
    if seed == 1:
        return (10_522_613_248, 16, 48, 12, 8192, 4096)  # less than a chunk for each
    layers, chunk = draw.randint(6, 40), draw.choice([128, 512, 8192])
    nope, per_entry = draw.randint(1, layers // 3), draw.choice([256, 1024, 4096])
    batch = draw.randint(2, 9)
    tokens = chunk * draw.choice([0.3, 3, 20])
    kept = nope * tokens + (layers - nope) * min(tokens, chunk)
    return (int(batch * kept * per_entry) + 1237, batch, layers, nope, chunk, per_entry)


def _longest(left, batch, layers, nope, chunk, per_entry) -> int:
    entries = left // (batch * per_entry)  # of one text, over all layers
    if entries < layers * chunk:
        return entries // layers
    return (entries - (layers - nope) * chunk) // nope


def _beyond(left, batch, layers, nope, chunk, per_entry) -> int:
    return (left // (batch * per_entry) - (layers - nope) * chunk) // nope


def _one_chunk_for_all(left, batch, layers, nope, chunk, per_entry) -> int:
    entries = left // per_entry
    if entries < batch * layers * chunk:
        return entries // (batch * layers)
    return (entries - (layers - nope) * chunk) // (batch * nope)


def _one_chunk_for_all_beyond(left, batch, layers, nope, chunk, per_entry) -> int:
    return (left // per_entry - (layers - nope) * chunk) // (batch * nope)


def _one_chunk_for_all_or_none(left, batch, layers, nope, chunk, per_entry) -> int:
    """As ``_one_chunk_for_all``, but where that one chunk finds room every text is taken to fill
    one."""
    entries = left // per_entry
    beyond = entries - (layers - nope) * chunk
    return entries // (batch * layers) if beyond < 0 else beyond // (batch * nope)


def _chunk_not_added(left, batch, layers, nope, chunk, per_entry) -> int:
    entries = left // (batch * per_entry)
    if entries < layers * chunk:
        return entries // layers
    return (entries - layers * chunk) // nope


def _not_whole(left, batch, layers, nope, chunk, per_entry) -> float:
    entries = left / (batch * per_entry)
    if entries < layers * chunk:
        return entries / layers
    return (entries - (layers - nope) * chunk) / nope


longest = Check(
    "longest",
    reference=_longest,
    inputs=_room,
    wrong={
        "Every text of the batch has a cache of its own: share what is left among them.": (
            lambda left, batch, *sizes: _longest(left, 1, *sizes)
        ),
        "All layers keep everything here; a RoPE layer stops at one chunk.": (
            lambda left, batch, layers, nope, chunk, per_entry: left // (batch * layers * per_entry)
        ),
        "You left out what the RoPE layers keep, one chunk each.": (
            lambda left, batch, layers, nope, chunk, per_entry: left // (batch * nope * per_entry)
        ),
        "Right for long texts; where not even one chunk fits, RoPE layers keep less.": _beyond,
        "No room for a whole chunk does not mean no room: the text is shorter than a chunk.": (
            lambda *sizes: max(0, _beyond(*sizes))
        ),
        "One chunk for the whole batch is too little, and where it does not fit, all keep less.": (
            _one_chunk_for_all_beyond
        ),
        "The RoPE layers keep a chunk of every text, not one for the whole batch.": (
            _one_chunk_for_all
        ),
        "You paid the RoPE layers' chunk once for the whole batch: share the bytes out first.": (
            _one_chunk_for_all_or_none
        ),
        "You took the first chunk off the bytes: its tokens are part of the text, add them.": (
            _chunk_not_added
        ),
        "A text goes on behind its first chunk: the NoPE layers keep growing.": (
            lambda left, batch, layers, nope, chunk, per_entry: min(
                chunk, left // (batch * layers * per_entry)
            )
        ),
        "nope counts the layers that keep everything; you took it for those that keep a chunk.": (
            lambda left, batch, layers, nope, chunk, per_entry: _longest(
                left, batch, layers, layers - nope, chunk, per_entry
            )
        ),
        "Right, but a text has a whole number of tokens: round down.": _not_whole,
        "Rounded to the nearest, the last token does not always fit: round down.": (
            lambda *sizes: round(_not_whole(*sizes))
        ),
        "Rounded up, the last token no longer fits.": lambda *sizes: math.ceil(_not_whole(*sizes)),
    },
    praise="It fits at this length and not at one token more, within the first chunk and beyond.",
    tolerance=1e-12,
    trials=8,
)


# ------------------------------------------------------------------ 3: how many GPUs
def _models(seed: int) -> tuple[float, ...]:
    """weights, cache, memory, workspace in GB: Maverick in bf16, FP8 and Int4, and Scout."""
    cases = (
        (803.17, 12.3, 80.0, 3.0),
        (432.98, 61.2, 80.0, 3.0),
        (230.99, 1.61, 80.0, 3.0),
        (217.28, 23.1, 80.0, 3.0),
        (66.48, 1.61, 24.0, 2.0),
        (150.0, 4.0, 80.0, 3.0),  # 77 · 2 to the last byte
        (124.74, 52.7, 80.0, 3.0),
        (235.0, 40.0, 80.0, 3.0),
        (157.0, 2.0, 80.0, 3.0),  # 80 · 2 would do, but for the workspace
    )
    return cases[seed % len(cases)]


gpus = Check(
    "gpus",
    reference=lambda w, c, memory, s: math.ceil((w + c) / (memory - s)),
    inputs=_models,
    wrong={
        "Each GPU needs a workspace of its own.": lambda w, c, memory, s: math.ceil(
            (w + c + s) / memory
        ),
        "You left the workspace out.": lambda w, c, memory, s: math.ceil((w + c) / memory),
        "You left the cache out.": lambda w, c, memory, s: math.ceil(w / (memory - s)),
        "The cache is split as well: no GPU keeps all of it.": lambda w, c, memory, s: math.ceil(
            w / (memory - s - c)
        ),
        "The weights alone: cache and workspace take room too.": lambda w, c, memory, s: math.ceil(
            w / memory
        ),
        "Rounded down, the last part of the model has no place.": lambda w, c, memory, s: int(
            (w + c) / (memory - s)
        ),
        "Rounded to the nearest, it does not always fit: round up.": lambda w, c, memory, s: round(
            (w + c) / (memory - s)
        ),
        "Right, but GPUs come whole: round up.": lambda w, c, memory, s: (w + c) / (memory - s),
        "Weights and cache may share a GPU: add them first, then round up.": (
            lambda w, c, memory, s: math.ceil(w / (memory - s)) + math.ceil(c / (memory - s))
        ),
        "The workspace takes memory away: it is not more of it.": lambda w, c, memory, s: math.ceil(
            (w + c) / (memory + s)
        ),
        "That is the next power of two; here any number of GPUs can share.": (
            lambda w, c, memory, s: 2 ** math.ceil(math.log2((w + c) / (memory - s)))
        ),
        "If it fits exactly, one more is not needed.": lambda w, c, memory, s: (
            int((w + c) / (memory - s)) + 1
        ),
    },
    praise="Each GPU brings memory and takes a workspace.",
    tolerance=1e-9,
    trials=9,
)

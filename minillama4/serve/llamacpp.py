"""What llama.cpp makes of a Llama 4, whatever its file says: where it agrees with us, how long.

For the architecture "llama4" a GGUF file names sizes and tensors; the rest stands in llama.cpp's
own code, and no field changes it:

    chunk          8192 on RoPE layers
    temperature    0.1 and 8192 on NoPE layers
    NoPE           layers 3, 7, 11, ..., of which there must be one
    QK-norm        always, unless there are exactly 128 experts

A model that differs from the first tokens on cannot be exported (``differences``). One that differs
in long texts alone can, up to ``llamacpp_length``; beyond it llama.cpp computes ``as_llamacpp``.

Source: spec, section 15; llama.cpp, src/models/llama4.cpp, as packed in llama-cpp-python 0.3.36.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator

from ..config import Llama4Config
from ..data.tokenizer import Tokenizer, check_fits
from ..data.vocabulary import split_pattern

CHUNK, FLOOR_SCALE, ATTN_SCALE, NOPE_EVERY = 8192, 8192, 0.1, 4
NO_QK_NORM = 128  # experts
NORMAL, CONTROL = 1, 3  # kinds of token: control tokens are never made from text


class GGUFError(ValueError):
    """A model or tokenizer that a GGUF file cannot hold; the message says which part and why."""


def llamacpp_length(config: Llama4Config) -> int:
    """Tokens up to which llama.cpp computes what this model computes; 0 if not even one.

    Within it the two differ by rounding alone. Beyond it llama.cpp sees past our chunk's border, or
    scales queries where we do not; nothing is said then, and the text stays fluent.
    """
    c, length = config, config.max_length
    if c.chunk != CHUNK and len(c.nope_layers) < c.layers:
        length = min(length, c.chunk or CHUNK, CHUNK)
    scale = c.attn_scale if c.temperature else 0.0
    if c.nope_layers and (c.floor_scale, scale) != (FLOOR_SCALE, ATTN_SCALE):
        first = c.floor_scale if scale else FLOOR_SCALE  # position p counts as p + 1
        length = min(length, first - 1, FLOOR_SCALE - 1)
    return length


def as_llamacpp(config: Llama4Config) -> Llama4Config:
    """The config that llama.cpp follows when it reads this model's weights, at any length."""
    norm = config.experts != NO_QK_NORM if config.moe_layers else config.qk_norm
    sizes = dict(chunk=CHUNK, floor_scale=FLOOR_SCALE, attn_scale=ATTN_SCALE, temperature=True)
    nope = dict(nope_every=NOPE_EVERY, nope_at=None)
    return config.replace(qk_norm=norm, **sizes, **nope)


def differences(config: Llama4Config) -> Iterator[str]:
    """Sentences on what llama.cpp would compute otherwise from the first tokens on, if at all."""
    c = config
    if c.vision is not None:
        yield (
            "It reads images, and llama.cpp wants its vision in a second file, which is not "
            "written here: load the text weights into a model of config.replace(vision=None)."
        )
    if c.layers < NOPE_EVERY:
        yield (
            f"It has {c.layers} layers, and llama.cpp stops with an error at fewer than "
            f"{NOPE_EVERY}: it counts on a NoPE layer being there."
        )
    elif c.nope_layers != as_llamacpp(c).nope_layers:
        yield (
            f"Its NoPE layers are {c.nope_layers}: llama.cpp takes every fourth, 3, 7, 11 and so "
            "on, and no field says otherwise."
        )
    if c.moe_layers and c.moe_at is not None:
        yield f"Its MoE layers are {c.moe_layers}: the file can only say one layer in so many."
    if c.qk_norm != as_llamacpp(c).qk_norm:
        has, would = ("has", "leave it out") if c.qk_norm else ("has no", "apply it")
        yield (
            f"It {has} QK-norm, and llama.cpp would {would}: it goes by the number of experts, "
            f"{c.experts} here, and leaves QK-norm out for exactly {NO_QK_NORM}."
        )
    if llamacpp_length(c) < 1:
        yield f"Its temperature acts from the first token on (floor_scale = {c.floor_scale})."


def vocabulary(tokenizer: Tokenizer, size: int) -> tuple[list[str], list[int], list[str]]:
    """Names by id in the byte alphabet, their kinds, and the merges as "left right", best first.

    GGUFError if llama.cpp would give other ids, TokenizerError if there are not ``size`` tokens.
    """
    check_fits(tokenizer, size)
    definition = tokenizer.definition()
    ids = definition["model"]["vocab"] | {t["content"]: t["id"] for t in definition["added_tokens"]}
    names = sorted(ids, key=ids.__getitem__)
    _check_cut(definition, names)
    kinds = [CONTROL if name in tokenizer.special else NORMAL for name in names]
    merges = [m if isinstance(m, str) else " ".join(m) for m in definition["model"]["merges"]]
    return names, kinds, merges


def _check_cut(definition: dict, names: list[str]) -> None:
    """llama.cpp's pre-tokenizer "llama4" cuts as Llama 4's own, digits by threes. Digits cut one by
    one, as in our small vocabulary, come out the same, since no merge joins two."""
    cuts = json.dumps(definition["pre_tokenizer"])
    plain = definition["normalizer"] is None and '"add_prefix_space": true' not in cuts
    threes, ones = (json.dumps(p) for p in (split_pattern(), split_pattern(digits=r"\p{N}")))
    pairs = any(re.search(r"\d\d", name) for name in names)
    if not plain or (threes not in cuts and (ones not in cuts or pairs)):
        raise GGUFError(
            "This tokenizer cuts text before merging as llama.cpp's pre-tokenizer "
            '"llama4" does not: export without it.'
        )

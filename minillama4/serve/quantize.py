"""A model whose weights become Int4, in place.

    quantize_model(model)                   # routed and shared experts, as both published schemes
    quantize_model(model, what="blocks")    # attention and dense layers too
    quantize_model(model, what="all")       # and the head

The router is never quantised: it is small, and a score that moves can send a token to another
expert. Embedding, norms and vision keep their precision as well. Source: spec, section 14.
"""

from __future__ import annotations

import torch
from torch import nn
from tqdm.auto import tqdm

from ..model import Llama4
from ..model.moe import Experts, MoE
from .int4 import GROUP, PER_WORD, quantize
from .int4_modules import Int4Experts, Int4Linear

WHAT = ("experts", "blocks", "all")


@torch.no_grad()
def quantize_model(
    model: Llama4, what: str = "experts", group: int = GROUP, convention="compressed-tensors"
) -> Llama4:
    """Replace weights by Int4 ones, in place, part by part; returns the same model.

    what: "experts" (routed and shared), "blocks" (also attention and dense layers) or "all" (also
    the head). What is in Int4 already stays as it is: rounding twice would lose twice. ValueError
    for another word, sizes that groups do not divide, or a model with nothing left to quantise.
    """
    check_what(what)
    parts = unquantised(model, what)
    if not parts:
        raise ValueError("This model is in Int4 already: load the original weights again.")
    check_groups(model.config, what, group)
    _check_numbers(model)  # now, not when half of the layers are done
    for parent, name in tqdm(parts, desc="quantising", leave=False):
        part = getattr(parent, name)
        if isinstance(part, Experts):
            new = quantize_experts(part, group, convention)
        else:
            new = Int4Linear.of(*quantize(part.weight, group, convention))
        setattr(parent, name, new)
    return model


def unquantised(model: Llama4, what: str) -> list[tuple[nn.Module, str]]:
    """(parent, name) of each part that ``what`` asks for and that is not in Int4 yet."""
    parts: list[tuple[nn.Module, str]] = []
    for block in model.blocks:
        if isinstance(block.ffn, MoE):
            parts += [(block.ffn, "experts")]
            parts += [(block.ffn.shared, name) for name in ("gate", "up", "down")]
        elif what != "experts":
            parts += [(block.ffn, name) for name in ("gate", "up", "down")]
        if what != "experts":
            parts += [(block.attention, name) for name in ("q", "k", "v", "o")]
    if what == "all":
        parts += [(model, "head")]
    return [each for each in parts if isinstance(getattr(*each), Experts | nn.Linear)]


def quantize_experts(experts: Experts, group: int, convention: str) -> Int4Experts:
    """One expert at a time, so that never more than one lies unpacked beside the result."""
    if experts.down.is_meta:  # shapes without numbers: nothing to compute, 3,072 times in Maverick
        e, hidden, width = experts.down.shape
        dtype = torch.float32 if convention == "meta" else experts.down.dtype
        with torch.device("meta"):
            return Int4Experts(e, width, hidden, group, dtype)
    made = []
    for gate_up, down in zip(experts.gate_up, experts.down, strict=True):
        pair = quantize(gate_up.T, group, convention), quantize(down.T, group, convention)
        made.append((*pair[0], *pair[1]))
    return Int4Experts.of(*(torch.stack(each) for each in zip(*made, strict=True)))


def _check_numbers(model: Llama4) -> None:
    for name, weight in model.named_parameters():
        if not (weight.is_meta or weight.isfinite().all()):
            raise ValueError(f"{name} is not finite (NaN or infinity): it cannot be quantised.")


def check_what(what: str) -> None:
    if what not in WHAT:
        raise ValueError(f"what = {what!r} is none of {', '.join(WHAT)}.")


def check_groups(config, what: str, group: int) -> None:
    """Every quantised weight's inputs must be whole groups, and every group whole words."""
    c = config
    inputs = {"width": c.width, "expert_hidden": c.expert_hidden}
    if what != "experts":
        inputs |= {"heads · head_width": c.heads * c.head_width}
        if len(c.moe_layers) < c.layers:
            inputs |= {"dense_hidden": c.dense_hidden}
    if not (isinstance(group, int) and group > 0):
        raise ValueError(f"group = {group!r} is not a number of weights.")
    wrong = [f"{name} = {size}" for name, size in inputs.items() if size % group]
    if group % PER_WORD or wrong:
        told = ", ".join(wrong) or f"group = {group}, which is not a multiple of {PER_WORD}"
        raise ValueError(f"Groups of {group} weights do not fit {told}: choose another group.")
    if what == "all" and c.tied:
        raise ValueError("The head is the embedding table in this model: quantise its blocks only.")


def is_int4(model: nn.Module) -> bool:
    """Is any part of this model in Int4?"""
    return any(isinstance(part, Int4Linear | Int4Experts) for part in model.modules())


def int4_bytes(model: nn.Module) -> int:
    """Bytes of all packed weights and their scales."""
    parts = [part for part in model.modules() if isinstance(part, Int4Linear | Int4Experts)]
    return sum(t.nbytes for part in parts for t in part.buffers())

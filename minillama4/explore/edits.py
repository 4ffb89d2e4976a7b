"""Edits of a router's choice, as the explorer keeps them, and what they do to the loss.

    [{"layer": 3, "kind": "off", "expert": 5},                  layer 3 does without its expert 5
     {"layer": 3, "kind": "force", "expert": 2, "token": 7}]    and gives token 7 to its expert 2

Without "token" an edit holds for every token. Where two forces meet, the later one wins.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import torch
import torch.nn.functional as F
from einops import rearrange, repeat
from torch import Tensor

from .steer import steer

KINDS = ("off", "force")
AT_ONCE = 8192  # tokens in one batch, when every expert of a layer is switched off in turn


class CannotSteer(ValueError):
    """An edit that this model or text has no place for; the message is for the reader."""


@contextmanager
def edited(model, edits: list[dict]) -> Iterator[None]:
    """Steer the model by these edits for as long as the ``with`` lasts; a batch of one text."""
    check(edits, model.config)
    with ExitStack() as undo:
        for layer in sorted({edit["layer"] for edit in edits}):
            here = [edit for edit in edits if edit["layer"] == layer]
            undo.enter_context(steer(model, _chooser(here, layer), layers=[layer]))
        yield


def check(edits: list[dict], config) -> None:
    """CannotSteer if an edit names a layer, an expert or a kind that there is not."""
    for edit in edits:
        layer, expert, kind = (edit.get(name) for name in ("layer", "expert", "kind"))
        if kind not in KINDS:
            raise CannotSteer(f"An edit is one of {' and '.join(KINDS)}, not {kind!r}.")
        if layer not in config.moe_layers:
            raise CannotSteer(f"Layer {layer} has no router to take a choice from.")
        if not isinstance(expert, int) or not 0 <= expert < config.experts:
            raise CannotSteer(f"There is no expert {expert}: they are 0 to {config.experts - 1}.")


def _chooser(edits: list[dict], layer: int):
    def choose(logits: Tensor, k: int) -> Tensor:
        wish = logits.float().clone()  # n e
        for order, edit in enumerate(edits):
            token = edit.get("token")
            if token is not None and not 0 <= token < len(wish):
                raise CannotSteer(f"There is no token {token}: this text has {len(wish)}.")
            rows = slice(None) if token is None else token
            value = float("-inf") if edit["kind"] == "off" else 1e30 * (1 + order)
            wish[rows, edit["expert"]] = value
        best, choice = wish.topk(k, dim=-1)
        if best.isneginf().any():
            raise CannotSteer(f"Layer {layer} needs {k} of its experts: not all can be off.")
        return choice

    return choose


def losses(logits: Tensor, tokens: Tensor) -> Tensor:
    """(b, t, v), (b, t) -> (b, t - 1): nats per token, each given those before it."""
    predicted = rearrange(logits[:, :-1].float(), "b t v -> b v t")
    return F.cross_entropy(predicted, tokens[:, 1:], reduction="none")


@torch.no_grad()
def knock_outs(model, tokens: Tensor, layer: int) -> Tensor:
    """(1, t) tokens -> (e, t - 1): the loss with each expert of a layer off alone, minus without.

    One pass for many experts: the text is repeated, and each row does without another expert.
    """
    config = model.config
    if config.experts <= config.top_k:
        raise CannotSteer(f"Layer {layer} needs all of its {config.experts} experts.")
    before = losses(model(tokens), tokens)  # 1 t-1
    rows = max(1, AT_ONCE // tokens.shape[1])
    parts = []
    for experts in torch.arange(config.experts).split(rows):
        with steer(model, _without_each(experts), layers=[layer]):
            batch = repeat(tokens, "1 t -> e t", e=len(experts))
            parts.append(losses(model(batch), batch) - before)
    return torch.cat(parts)


def _without_each(experts: Tensor):
    """A chooser for a batch whose row i does without experts[i]."""

    def choose(logits: Tensor, k: int) -> Tensor:
        wish = rearrange(logits.float(), "(b t) e -> b t e", b=len(experts)).clone()
        off = experts.to(wish.device)
        wish.scatter_(2, off.view(-1, 1, 1).expand(-1, wish.shape[1], 1), float("-inf"))
        return rearrange(wish.topk(k, dim=-1).indices, "b t k -> (b t) k")

    return choose

"""What a page without a kernel holds: the readings, and each expert switched off, within a budget.

A page carries the first text in every model, the samples, what is compared, and for each expert of
a layer how the losses change without it. What does not fit is left out; there the page says so.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from .edits import CannotSteer, knock_outs
from .export import page, snapshot
from .reading import pack
from .script import page_script, style

LIMIT = 390_000  # characters of the whole piece: a notebook holds a few of them
RUNS = 40_000_000_000  # parameters times tokens times experts that are worth trying out beforehand
ZERO, STEPS = 32_768, 2_048  # a change of loss travels as steps of 1/2048 nat around this


def to_html(view) -> str:
    """The whole piece for a RoutingExplorer."""
    values = {name: getattr(view, name) for name in view.keys if name in KEPT}
    values |= dict(text=view.state["text"], model=view.state["model"], live=False)
    values |= dict(message="", other_message="", steer_message="")
    still = snapshot(view.steered or view.state, view.layer)
    fixed = still, page_script(), style(), json.dumps(values)
    texts, knockouts = stored(view, LIMIT - sum(map(len, fixed)))
    values |= dict(texts=texts, knockouts=knockouts)
    values["examples"] = [
        [label, text]
        for label, text in _with_first(view)
        if any(text in readings for readings in texts.values())
    ]
    return page(values, still)


KEPT = {
    *("layer", "token", "scope", "compare", "other_text", "other_model", "other_layer"),
    *("other_token", "edits", "steered", "loads", "counted", "models"),
    *("palette", "shades", "same_run", "full"),
}


def _with_first(view) -> list[list[str]]:
    """The samples, and before them the text that is shown, so that one can come back to it."""
    texts = [text for _, text in view.examples]
    first = [] if view.state["text"] in texts else [["this text", view.state["text"]]]
    return first + view.examples if view.examples else []


def stored(view, left: int) -> tuple[dict, dict]:
    """model -> text -> reading, and model -> text -> layer -> packed changes of the losses; in
    all about ``left`` characters."""
    texts, knockouts = {}, {}
    for place, make in [*_readings(view), *_knockouts(view)]:
        try:
            piece = make()
        except CannotSteer:
            continue
        left -= len(json.dumps(piece))
        first = not texts  # the reading that is shown is never left out
        if left < 0 and not first:
            break
        kind, model, text, *layer = place
        if kind == "reading":
            texts.setdefault(model, {})[text] = piece
        else:
            knockouts.setdefault(model, {}).setdefault(text, {})[layer[0]] = piece
    return texts, knockouts


def _readings(view) -> Iterator[tuple[tuple, Callable]]:
    """What to store, the most needed first: (place, what makes it)."""
    shown, texts = view.state["text"], [text for _, text in view.examples]
    if view.compare == "text":
        texts = [view.other_text, *texts]
    wanted = [(view.model, shown), *((name, shown) for name in view.models)]
    wanted += [(name, text) for text in texts for name in _by_need(view)]
    for model, text in dict.fromkeys(wanted):
        yield ("reading", model, text), lambda m=model, t=text: view._read(m, t)


def _knockouts(view) -> Iterator[tuple[tuple, Callable]]:
    shown, texts = view.state["text"], [text for _, text in view.examples]
    wanted = []
    for model in _by_need(view) if view.full else []:
        layers = view._models[model].config.moe_layers
        near = sorted(layers, key=lambda layer: (abs(layer - view.layer), layer))
        wanted += [(rank, 0, model, shown, layer) for rank, layer in enumerate(near)]
        wanted += [(0, 1, model, text, near[0]) for text in texts if near]
    for _, _, model, text, layer in sorted(wanted, key=lambda w: w[:2]):
        if _is_quick(view, model):
            make = lambda m=model, t=text, at=layer: _changes(view, m, t, at)  # noqa: E731
            yield ("knockout", model, text, layer), make


def _by_need(view) -> list[str]:
    return [view.model, *(name for name in view.models if name != view.model)]


def _is_quick(view, model: str) -> bool:
    """Not for a real Llama: there each of these would take minutes."""
    parameters = sum(p.numel() for p in view._models[model].parameters())
    tokens, config = len(view.state["pieces"]), view._models[model].config
    return parameters * tokens * config.experts < RUNS


def _changes(view, name: str, text: str, layer: int) -> str:
    model = view._models[name]
    ids = torch.tensor([[view._tokenizer.begin, *view._tokenizer.encode(text)]])
    return pack_changes(knock_outs(model, ids.to(model.embed.weight.device), layer))


def pack_changes(changes: Tensor) -> str:
    """(e, t - 1) nats -> base64 of 16-bit numbers; beyond 15.9 nats they are cut off."""
    return pack([(changes * STEPS + ZERO).clamp(0, 65_535)])

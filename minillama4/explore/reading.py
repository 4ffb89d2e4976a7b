"""A text, read by a model: tokens, every router's scores, and the losses, packed for a view."""

import base64
from collections.abc import Iterable

import torch
from torch import Tensor

from .edits import edited, losses
from .routing import load
from .trace import trace

STEPS = 65_535  # scores travel as shares of this, two bytes each
BEGIN = "<|begin_of_text|>"


class CannotRead(ValueError):
    """A text that this model or this view cannot take; the message is for the reader."""


def read(model, tokenizer, text: str, limit: int, edits: Iterable[dict] = ()) -> dict:
    """What the explorer draws: pieces; per router the scores (t, e) and choices (t, k); losses.

    loss: nats of each token but the first, given those before it. edits: see ``edits``.
    """
    ids = token_ids(tokenizer, text, model.config.vocab_size, limit)
    tokens = torch.tensor([ids], device=model.embed.weight.device)
    with torch.no_grad(), edited(model, list(edits)), trace(model) as seen:
        logits = model(tokens)
    if not logits.isfinite().all():
        raise CannotRead("The model's numbers are not finite: its weights are damaged.")
    routers = [seen.router[layer] for layer in seen.router]
    return {
        "text": text,
        "pieces": shown(tokenizer.pieces(ids)),
        "breaks": [t for t, i in enumerate(ids) if "\n" in tokenizer.decode([i])],
        "layers": model.config.layers,
        "moe": list(model.config.moe_layers),
        "experts": model.config.experts,
        "top_k": model.config.top_k,
        "scores": pack([router.score[0] * STEPS for router in routers]),
        "choice": pack([router.choice[0] for router in routers]),
        "loss": [round(nats, 4) for nats in losses(logits, tokens)[0].tolist()],
    }


def domain_loads(model, rows: dict[str, Tensor]) -> dict[str, list[list[int]]]:
    """label -> (b, t) token ids gives label -> tokens per expert, for each layer with experts."""
    counts = {}
    for label, tokens in rows.items():
        total = torch.zeros(len(model.config.moe_layers), model.config.experts, dtype=torch.int64)
        for part in tokens.long().split(max(1, 4096 // tokens.shape[1])):
            with torch.no_grad(), trace(model) as seen:
                model(part.to(model.embed.weight.device))
            for at, layer in enumerate(seen.router):
                total[at] += load(seen.router[layer].choice, model.config.experts)
        counts[label] = total.tolist()
    return counts


def token_ids(tokenizer, text: str, vocab_size: int, limit: int) -> list[int]:
    """Begin-of-text and the text, as in training; CannotRead if it does not fit."""
    try:
        ids = [tokenizer.begin, *tokenizer.encode(text)]
    except UnicodeEncodeError:
        raise CannotRead("The text holds half a character (a lone surrogate).") from None
    if len(ids) > limit:
        raise CannotRead(
            f"The text has {len(ids):,} tokens and at most {limit:,} fit here: shorten it."
        )
    if max(ids) >= vocab_size:
        piece = tokenizer.pieces([max(ids)])[0]
        raise CannotRead(
            f"“{piece}” is token {max(ids):,}, but this model knows {vocab_size:,} tokens: "
            "it needs the tokenizer it was trained with."
        )
    return ids


def sample_rows(
    models: Iterable, tokenizer, samples: dict[str, str], longest: int
) -> dict[str, Tensor]:
    """label -> text gives label -> (1, t) token ids; CannotRead if one of the models refuses it."""
    rows = {}
    for label, text in samples.items():
        for model in models:
            limit = min(longest, model.config.max_length)
            try:
                ids = token_ids(tokenizer, text, model.config.vocab_size, limit)
            except CannotRead as refused:
                raise CannotRead(f"Sample {label!r}: {refused}") from None
        rows[label] = torch.tensor([ids])
    return rows


def shown(pieces: list[str]) -> list[str]:
    """Pieces for the eye: "a" and " a" must not look the same, and begin-of-text is a long word."""
    return ["⟨begin⟩" if piece == BEGIN else _dotted(piece) for piece in pieces]


def _dotted(piece: str) -> str:
    before = len(piece) - len(piece.lstrip(" "))
    after = len(piece) - before - len(piece.strip(" "))
    return "·" * before + piece.strip(" ") + "·" * after


def pack(tables: list[Tensor]) -> str:
    """Tables of one shape, one per layer, as base64 of little-endian 16-bit numbers."""
    raw = b"".join(table.round().int().cpu().numpy().astype("<u2").tobytes() for table in tables)
    return base64.b64encode(raw).decode()


def unpack(packed: str, *shape: int) -> Tensor:
    """What ``pack`` packed, int64."""
    raw = bytearray(base64.b64decode(packed))
    if not raw:  # a model without routers
        return torch.zeros(shape, dtype=torch.int64)
    return torch.frombuffer(raw, dtype=torch.uint16).long().reshape(shape)

"""A text, read by a model: the tokens and every router's scores, packed for a view."""

import base64

import torch
from torch import Tensor

from .trace import trace

STEPS = 65_535  # scores travel as shares of this, two bytes each
BEGIN = "<|begin_of_text|>"


class CannotRead(ValueError):
    """A text that this model or this view cannot take; the message is for the reader."""


def read(model, tokenizer, text: str, limit: int) -> dict:
    """What a routing view draws: pieces, and per router the scores (t, e) and choices (t, k)."""
    ids = token_ids(tokenizer, text, model.config.vocab_size, limit)
    tokens = torch.tensor([ids], device=model.embed.weight.device)
    with torch.no_grad(), trace(model) as seen:
        model(tokens)
    routers = [seen.router[layer] for layer in seen.router]
    return {
        "text": text,
        "pieces": shown(tokenizer.pieces(ids)),
        "breaks": [t for t, i in enumerate(ids) if "\n" in tokenizer.decode([i])],
        "layers": model.config.layers,
        "moe": list(model.config.moe_layers),
        "experts": model.config.experts,
        "top_k": model.config.top_k,
        "scores": _pack([router.score * STEPS for router in routers]),
        "choice": _pack([router.choice for router in routers]),
    }


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


def shown(pieces: list[str]) -> list[str]:
    """Pieces for the eye: "a" and " a" must not look the same, and begin-of-text is a long word."""
    return ["⟨begin⟩" if piece == BEGIN else _dotted(piece) for piece in pieces]


def _dotted(piece: str) -> str:
    before = len(piece) - len(piece.lstrip(" "))
    after = len(piece) - before - len(piece.strip(" "))
    return "·" * before + piece.strip(" ") + "·" * after


def _pack(layers: list[Tensor]) -> str:
    """Tensors (1, t, n), one per layer, as base64 of little-endian 16-bit numbers."""
    raw = b"".join(x[0].round().int().numpy().astype("<u2").tobytes() for x in layers)
    return base64.b64encode(raw).decode()


def unpack(packed: str, *shape: int) -> Tensor:
    """What ``_pack`` packed, (layers, t, n) int64."""
    raw = bytearray(base64.b64decode(packed))
    if not raw:  # a model without routers
        return torch.zeros(shape, dtype=torch.int64)
    return torch.frombuffer(raw, dtype=torch.uint16).long().reshape(shape)

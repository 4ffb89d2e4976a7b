"""Writing: read the prompt once (prefill), then one token after the other (decode).

    for token in ml4.generate(model, prompt, max_new_tokens=100):      # token (b,), as it is made
        ...
    rows = ml4.complete(model, [prompt, another], max_new_tokens=100)  # all of it, row by row

What was read stays in the KV cache, so a new token costs one token's work, however long the text.
Rows of a batch may have prompts of different lengths, and each is continued as it would be alone.

In place of the model a ``StaticDecoder`` of it may be given, made once for many texts: its steps
are compiled, or recorded for a GPU.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor

from ..config import Llama4Config
from ..model import KVCache, Llama4
from .decoder import Decoder, flat
from .sampling import Sampling, generator, is_count
from .static import StaticDecoder

ENDED = -1  # stands in the place of a token in rows that have stopped
Prompts = Tensor | Sequence[int] | Sequence[Sequence[int]]


def generate(
    model: Llama4 | StaticDecoder,
    tokens: Prompts,
    max_new_tokens: int,
    *,
    temperature: float = 0.0,
    top_k: int | None = None,
    top_p: float | None = None,
    stop: int | Iterable[int] = (),
    seed: int | torch.Generator | None = None,
    attention_mask: Tensor | None = None,
    images: Tensor | None = None,
    cache: KVCache | None = None,
) -> Iterator[Tensor]:
    """Continue ``tokens``: yields (b,) int64, the next token of every row, as soon as it is there.

    tokens: one prompt (ids, or a tensor (t,)), several of any lengths (lists of ids), or a tensor
    (b, t), padded where attention_mask (b, t) bool is False.
    temperature 0 takes the most likely token; above 0 one is drawn, of the top_k or top_p (see
    ``sampling``). stop: ids that end a row; such a token is yielded, and from then on -1 (ENDED) in
    that row. Generation ends with the last row, or after max_new_tokens.
    seed: a whole number, or a torch.Generator to go on with; global random numbers stay untouched.
    cache: what was read before, which ``tokens`` follow; it is moved on, and in the end holds
    everything but the last token yielded; not with a StaticDecoder, which has one of its own.
    images: as for the model.

    The prompt is read when this is called, and errors are raised then: ValueError, TypeError, or
    IndexError for an id that the model does not have.
    """
    given, decoder = model, model if isinstance(model, StaticDecoder) else None
    model = model.model if decoder else model
    _check_model(model, max_new_tokens)
    sampling = Sampling(temperature, top_k, top_p)
    stops = stop_tokens(stop, model.config)
    tokens, mask = _batch(tokens, attention_mask, model)
    kept = _cache(cache, decoder, model.config)
    _check_room(given, kept, tokens, mask, max_new_tokens)
    draw = generator(seed, tokens.device) if temperature else None
    logits = read(given, tokens, kept, mask, images)
    if logits.isnan().any():
        why = "its training failed, or weights are missing"
        why += "" if images is None else ", or an image is not made of numbers"
        raise ValueError(f"The model's logits are not numbers (NaN): {why}.")
    follow = _fixed(decoder) if decoder else _follower(model, kept, shared=cache is not None)
    return _write(logits, lambda x: sampling.choose(x, draw), follow, stops, max_new_tokens)


def complete(
    model: Llama4 | StaticDecoder, tokens: Prompts, max_new_tokens: int, **options
) -> list[list[int]]:
    """What ``generate`` writes, as a list of ids per row, without the prompt.

    A row ends with its stop token, if it met one. Options are those of ``generate``.
    """
    steps = list(generate(model, tokens, max_new_tokens, **options))
    rows = torch.stack(steps, dim=1).tolist()
    return [[token for token in row if token != ENDED] for row in rows]


@torch.inference_mode()
def read(model, tokens: Tensor, cache: KVCache, mask=None, images=None) -> Tensor:
    """Prefill: logits (b, v) of what follows each row's last real token."""
    if isinstance(model, StaticDecoder):
        with _evaluating(model.model):
            return model.read(tokens, mask, images)
    with _evaluating(model):
        inputs = dict(cache=cache, attention_mask=mask, images=images)
        return model(tokens, last_only=True, **inputs)[:, 0]


def _write(logits: Tensor, choose, follow, stops: Tensor, count: int) -> Iterator[Tensor]:
    """Choose, show, read what was chosen; ``follow(token, going)`` gives the next logits."""
    going = torch.ones(len(logits), dtype=torch.bool, device=logits.device)
    for left in reversed(range(count)):
        with torch.inference_mode():
            token = choose(logits)
        shown = token.clone()  # outside inference mode: training may use what was written
        if stops.numel():
            shown[~going] = ENDED
            going = going & ~torch.isin(token, stops)
        yield shown
        if not left or (stops.numel() and not going.any()):
            return
        logits = follow(token, going)


def _follower(model, cache: KVCache, shared: bool) -> Callable[[Tensor, Tensor], Tensor]:
    """Reads one more token of every row: flat where that is the same, else through the model.

    A cache that the caller goes on using must not hold what rows are fed after they have ended.
    """
    step = Decoder(model).step if flat(model) else None

    def follow(token: Tensor, going: Tensor) -> Tensor:
        waits = shared and not going.all()
        if step is not None and not waits:
            return step(token, cache)
        return read(model, token[:, None], cache, going[:, None] if waits else None)

    return follow


def _fixed(decoder: StaticDecoder) -> Callable[[Tensor, Tensor], Tensor]:
    """The same by a program that is made already, as long as it is still at this text."""
    moves = decoder.moves

    def follow(token: Tensor, going: Tensor) -> Tensor:
        nonlocal moves
        if decoder.moves != moves:
            raise RuntimeError(
                "This StaticDecoder has read or written something else since: finish one text "
                "before the next, or make a decoder for each."
            )
        logits, moves = decoder.step(token), moves + 1
        return logits

    return follow


@contextmanager
def _evaluating(model) -> Iterator[None]:
    """Evaluation mode inside; afterwards every part is as it was, also those frozen before."""
    training = [part for part in model.modules() if part.training]
    for part in training:
        part.training = False
    try:
        yield
    finally:
        for part in training:
            part.training = True


# ------------------------------------------------------------------ what was given
def _check_model(model, count) -> None:
    known = isinstance(model, torch.nn.Module)
    if not (known and isinstance(getattr(model, "config", None), Llama4Config)):
        raise TypeError(
            f"generate takes a Llama4 or a StaticDecoder of it, not a {type(model).__name__}."
        )
    if not (is_count(count) and count >= 1):
        raise ValueError(f"max_new_tokens must be a whole number from 1 on, not {count!r}.")


def stop_tokens(stop: int | Iterable[int], config: Llama4Config) -> Tensor:
    """The ids that end a row, as one or several were given; ValueError for what is none."""
    ids = [stop] if is_count(stop) else list(stop)
    for token in ids:
        if not (is_count(token) and 0 <= token < config.vocab_size):
            raise ValueError(
                f"stop names {token!r}, which is no token id of this model (0 to "
                f"{config.vocab_size - 1:,}): use ids, as in stop=tokenizer.stop_ids."
            )
    return torch.tensor(ids, dtype=torch.int64)


def _batch(tokens: Prompts, mask: Tensor | None, model) -> tuple[Tensor, Tensor | None]:
    """tokens (b, t) on the model's device, and which are real: (b, t) bool, or None for all."""
    device = next(model.parameters()).device
    if isinstance(tokens, Tensor):
        tokens = tokens[None] if tokens.ndim == 1 else tokens
        if tokens.numel() == 0 or (mask is not None and not mask.any(-1).all()):
            raise ValueError("A prompt is empty: give each row at least one token to begin with.")
        return tokens.to(device), None if mask is None else mask.to(device)
    if mask is not None:
        raise ValueError("attention_mask belongs to a tensor: lists of ids need none.")
    if isinstance(tokens, str) or any(isinstance(row, str) for row in tokens):
        raise TypeError("generate takes token ids, not text: tokenizer.encode(text) makes them.")
    rows = [tokens] if tokens and all(map(is_count, tokens)) else tokens
    rows = [torch.as_tensor(row, dtype=torch.int64) for row in rows]
    if not rows or not all(row.numel() for row in rows):
        raise ValueError("A prompt is empty: give each row at least one token to begin with.")
    blank = int(model.config.patch_token == 0)  # anything but the place of an image
    padded = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=blank)
    lengths = torch.tensor([len(row) for row in rows])[:, None]
    real = torch.arange(padded.shape[1]) < lengths
    return padded.to(device), None if real.all() else real.to(device)


def _cache(cache: KVCache | None, decoder: StaticDecoder | None, config: Llama4Config) -> KVCache:
    if decoder is None:
        return KVCache(config) if cache is None else cache
    if cache is not None:
        raise ValueError(
            "A StaticDecoder has a cache of its own: give it the whole text as tokens, or continue "
            "this cache with the model."
        )
    return KVCache(config)  # only to count: the decoder begins anew


def _check_room(given: Llama4 | StaticDecoder, cache: KVCache, tokens, mask, count: int) -> None:
    """Refuse now what would end at max_length, or at the decoder's length, halfway through."""
    if tokens.ndim != 2 or getattr(cache, "config", None) != given.config:
        return  # the model says what is wrong with these
    new = [tokens.shape[1]] * len(tokens) if mask is None else mask.sum(1).tolist()
    start = cache.start(len(tokens))
    longest = max(s + n for s, n in zip(start, new, strict=True))
    limit, whose = given.config.max_length, "this model's max_length of"
    if isinstance(given, StaticDecoder):
        limit, whose = given.length, "this decoder was made for, which are"
    if longest + count > limit:
        room = limit - longest
        raise ValueError(
            f"A prompt of {longest:,} tokens and {count:,} new ones are more than {whose} "
            f"{limit:,}: "
            + (f"max_new_tokens can be at most {room:,}." if room > 0 else "shorten the prompt.")
        )

"""Prompt caching: what many prompts have in common is read once.

    store = PromptCache(model, room=100_000_000)                # bytes
    for token in store.generate(prompt, max_new_tokens=100):    # the text of ml4.generate
        ...
    cache, rest = store.find(another)            # or by hand: a KVCache that holds its beginning,
    ml4.generate(model, rest, 100, cache=cache)                 # and what is left to be read

Keys and values of a token depend on it, on its place and on all that stands before it: two texts
share their common beginning, and nothing behind the first token that differs. A cache can be cut
back to that place if its RoPE layers still hold what the next token must see: within the last
chunk, which is kept, and at every chunk border, where nothing of it is needed. Elsewhere it was
overwritten, and a cut goes back to the border before.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..model import KVCache, Llama4
from .generate import generate
from .sampling import is_count

Prompt = Tensor | Sequence[int]


def reusable(shared: int, length: int, chunk: int | None) -> int:
    """How far a cache of ``length`` tokens holds, if the first ``shared`` are those wanted."""
    if chunk is None or shared >= length // chunk * chunk:  # no borders, or within the last chunk
        return shared
    return shared // chunk * chunk


def beginning(cache: KVCache, length: int) -> KVCache:
    """The first ``length`` tokens of a one-row cache, which shares its memory until written on.

    ValueError for a place to which it cannot be cut back (``reusable``), or for several rows.
    """
    (held,) = _one_row(cache)
    if not 0 <= length <= held or reusable(length, held, cache.config.chunk) != length:
        raise ValueError(
            f"A cache of {held:,} tokens cannot be cut to {length:,}: its RoPE layers hold the "
            f"last chunk alone. Cut at a multiple of {cache.config.chunk}, or within that chunk."
        )
    other = KVCache(cache.config)
    if length == 0:
        return other
    other.lengths = (length,)
    for mine, new in zip(cache.layers, other.layers, strict=True):
        # exactly as many slots as are in use: the next token finds no room and moves the layer
        # to memory of its own, so that nothing is ever written into what is shared
        if used := mine.slot(length):
            new.keys, new.values = mine.keys[:, :, :used], mine.values[:, :, :used]
    return other


@dataclass(frozen=True, eq=False)  # two texts are equal if they are the same one
class Text:
    """One text that was read: its tokens (t,) int64, and its cache."""

    tokens: Tensor
    cache: KVCache

    def usable(self, prompt: Tensor) -> int:
        """How many tokens of its cache this prompt (t,) can begin with."""
        n = min(len(self.tokens), len(prompt))
        shared = int((self.tokens[:n] == prompt[:n]).cumprod(0).sum())
        return reusable(shared, len(self.tokens), self.cache.config.chunk)


class PromptCache:
    """Texts that one model has read, within ``room`` bytes; the least recently used goes first.

    Its keys are the model's work: after the model has changed (trained, cast, moved), make a new
    one. Each text keeps all of its own keys and values, also those that two texts share.
    """

    def __init__(self, model: Llama4, room: int):
        if not is_count(room) or room < 1:
            raise ValueError(f"room must be a whole number of bytes from 1 on, not {room!r}.")
        self.model, self.room = model, room
        self.texts: list[Text] = []  # the most recently used last

    def __len__(self) -> int:
        return len(self.texts)

    def __repr__(self) -> str:
        return f"PromptCache({len(self)} texts, {self.bytes / 1e6:.1f} of {self.room / 1e6:.1f} MB)"

    @property
    def bytes(self) -> int:
        return sum(text.cache.bytes for text in self.texts)

    def find(self, prompt: Prompt) -> tuple[KVCache, list[int]]:
        """A cache that holds as much of the prompt's beginning as any text here, and the rest.

        The cache is the caller's to go on with. At least one token is left to be read: its logits
        say what follows.
        """
        prompt = self._checked(prompt)
        texts = [(text.usable(prompt[:-1]), text) for text in self.texts]
        length, best = max(texts, key=lambda pair: pair[0], default=(0, None))
        if not length:
            return KVCache(self.model.config), prompt.tolist()
        self._use(best)
        return beginning(best.cache, length), prompt[length:].tolist()

    def keep(self, tokens: Prompt, cache: KVCache) -> None:
        """Remember ``tokens``, which ``cache`` has read: all of them, and nothing else.

        A copy is kept. Texts that this one contains, as far as they can be cut from it, are
        dropped; a text larger than the whole room is not kept.
        """
        tokens = self._checked(tokens)
        if cache.config != self.model.config:
            raise ValueError("This cache was made for another model than this PromptCache.")
        if _one_row(cache) != (len(tokens),):
            raise ValueError(
                f"The cache has read {cache.lengths[0]:,} tokens, but {len(tokens):,} were given: "
                "give those that it has read. The last token that was written is not among them."
            )
        for text in self.texts:
            if text.usable(tokens) == len(tokens):  # it is here already
                return self._use(text)
        new = Text(tokens.clone(), beginning(cache, len(tokens)).select([0]))
        if new.cache.bytes > self.room:
            return
        self.texts = [text for text in self.texts if new.usable(text.tokens) < len(text.tokens)]
        self.texts.append(new)
        while self.bytes > self.room:
            self.texts.pop(0)

    def generate(self, prompt: Prompt, max_new_tokens: int, **options) -> Iterator[Tensor]:
        """``ml4.generate`` of one prompt, which reads only what no text here begins with.

        The prompt is remembered; what is written is not. Options are those of ``ml4.generate``,
        without images: equal patch tokens can stand for different pictures.
        """
        for name in ("images", "attention_mask", "cache"):
            if options.get(name) is not None:
                raise ValueError(f"PromptCache.generate takes no {name}: use ml4.generate.")
        cache, rest = self.find(prompt)
        steps = generate(self.model, rest, max_new_tokens, cache=cache, **options)
        self.keep(prompt, cache)  # the prompt has been read by now, and nothing written yet
        return steps

    def _use(self, text: Text) -> None:
        self.texts.remove(text)
        self.texts.append(text)

    def _checked(self, prompt: Prompt) -> Tensor:
        """The prompt as (t,) int64, of one row and of text alone."""
        config = self.model.config
        if isinstance(prompt, str):
            raise TypeError("PromptCache takes token ids, not text: tokenizer.encode(text).")
        if not isinstance(prompt, Tensor) and not all(map(is_count, prompt)):
            raise ValueError(
                "PromptCache takes one prompt at a time, a list of token ids: rows of a batch may "
                "begin differently. For several continuations of one prompt: cache.select([0, 0])."
            )
        prompt = torch.as_tensor(prompt, dtype=torch.int64)
        if prompt.ndim != 1:
            raise ValueError(f"PromptCache takes one prompt (t,), not {tuple(prompt.shape)}.")
        if not len(prompt):
            raise ValueError("A prompt is empty: give it at least one token to begin with.")
        if config.vision is not None and (prompt == config.patch_token).any():
            raise ValueError("This prompt holds pictures, which its token ids do not tell apart.")
        return prompt


def _one_row(cache: KVCache) -> tuple[int]:
    """The length of a cache's only row."""
    if cache.lengths is None:
        raise ValueError("This cache has read nothing yet.")
    if len(cache.lengths) != 1:
        raise ValueError(
            f"This cache holds {len(cache.lengths)} rows, of {', '.join(map(str, cache.lengths))} "
            "tokens: a stored text is one row. Take one out with cache.select([row])."
        )
    return cache.lengths

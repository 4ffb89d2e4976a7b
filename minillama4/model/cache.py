"""The key/value cache: everything for NoPE layers, one chunk for RoPE layers.

Keys are kept by position. A NoPE layer has a slot for every position; a RoPE layer has ``chunk``
slots and position p lives in slot p % chunk. When a row steps over a chunk border it starts again
at slot 0, and "slot <= p % chunk" is then the causal rule and the chunk rule in one: what it hides
is exactly the previous chunk's leftovers. Rows of different lengths need nothing more. Meta's own
decoding drops the chunk rule and leaves its own full forward at the first border (spec, section 6).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from ..config import Llama4Config
from .attention import Place, attend_causal, attend_chunks

LONGEST_PIECE = 1024  # queries that a NoPE layer compares with the past at a time


class LayerMemory:
    """Keys and values of one layer, (b, k, slots, d), grown by doubling up to ``limit`` slots."""

    def __init__(self, chunk: int | None, limit: int):
        self.chunk = chunk
        self.limit = limit if chunk is None else min(chunk, limit)
        self.keys: Tensor | None = None
        self.values: Tensor | None = None

    def slot(self, position):
        """Where a position (int or tensor) is kept."""
        return position if self.chunk is None else position % self.chunk

    def reserve(self, like: Tensor, slots: int) -> None:
        """Take the memory of ``slots`` slots now, or of a whole chunk; like (b, k, any, d)."""
        self.limit = slots if self.chunk is None else min(self.chunk, slots)
        self._grow(like, self.limit)

    def attend(self, q: Tensor, k: Tensor, v: Tensor, place: Place) -> Tensor:
        """Remember k, v (b, k, t, d) and return what q (b, h, t, d) reads; (b, h, t, d)."""
        if not any(place.start):  # nothing remembered yet: as without a cache
            self._remember_start(k, v, place)
            full = self.chunk is None
            return attend_causal(q, k, v) if full else attend_chunks(q, k, v, self.chunk)
        ends = self._borders(place.start, q.shape[2])
        pieces = zip([0, *ends[:-1]], ends, strict=True)
        return torch.cat([self._attend_piece(q, k, v, place, a, z) for a, z in pieces], dim=2)

    def append(
        self, k: Tensor, v: Tensor, start: tuple[int, ...]
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        """Remember one further token of each row, at position start[row]; k, v (b, k, d).

        Returns all that these tokens may look at: keys and values (b, k, s, d), and where rows
        stand at different places, which slots each of them sees, (b, s) bool; else None.
        """
        slots = [self.slot(position) for position in start]
        top = max(slots) + 1
        self._grow(k[:, :, None], top)
        seen = None
        if top == min(slots) + 1:
            self.keys[:, :, top - 1], self.values[:, :, top - 1] = k, v
        else:
            slot, row = (torch.tensor(x, device=k.device) for x in (slots, range(len(slots))))
            self.keys[row, :, slot], self.values[row, :, slot] = k, v
            seen = torch.arange(top, device=k.device) <= slot[:, None]
        return self.keys[:, :, :top], self.values[:, :, :top], seen

    def _borders(self, start: tuple[int, ...], length: int) -> list[int]:
        """Ends of the pieces within which no row steps over a chunk border."""
        if self.chunk is None:  # no borders; short pieces keep the mask of a long call small
            return [*range(LONGEST_PIECE, length, LONGEST_PIECE), length]
        first = {-s % self.chunk for s in start}
        ends = {end for f in first for end in range(f, length, self.chunk) if end > 0}
        return sorted(ends | {length})

    def _attend_piece(self, q, k, v, place: Place, a: int, z: int) -> Tensor:
        slots = self.slot(place.positions[:, a:z])  # b or 1, t
        top = max(self.slot(s + a) for s in place.start) + z - a
        self._write(k[:, :, a:z], v[:, :, a:z], place, a, top)
        keys, values = self.keys[:, :, :top], self.values[:, :, :top]
        mask = None
        if not (place.uniform and z - a == 1):  # a lone newest token sees all that is kept
            seen = torch.arange(top, device=q.device) <= slots[..., None]
            mask = seen[:, None]  # b or 1, 1, t, s
        return F.scaled_dot_product_attention(
            q[:, :, a:z], keys, values, attn_mask=mask, enable_gqa=True
        )

    def _remember_start(self, k: Tensor, v: Tensor, place: Place) -> None:
        """Write a first piece; a RoPE layer keeps only what the next token can still see."""
        t = k.shape[2]
        if place.real is None:
            first = 0 if self.chunk is None else t // self.chunk * self.chunk
            if first < t:
                self._write(k[:, :, first:], v[:, :, first:], place, first, t - first)
            return
        lengths = place.real.sum(1)
        first = torch.zeros_like(lengths) if self.chunk is None else lengths // self.chunk
        first = first * (self.chunk or 1)
        kept = place.real & (torch.arange(t, device=k.device) >= first[:, None])
        self._scatter(k, v, kept, self.slot(place.positions), int(kept.sum(1).max()))

    def _write(self, k: Tensor, v: Tensor, place: Place, a: int, top: int) -> None:
        """Put k, v of the call's tokens a.. into their slots, below ``top``."""
        t = k.shape[2]
        if place.uniform:
            self._grow(k, top)
            begin = self.slot(place.start[0] + a)
            self.keys[:, :, begin : begin + t] = k
            self.values[:, :, begin : begin + t] = v
            return
        kept = k.new_ones(k.shape[0], t, dtype=torch.bool)
        if place.real is not None:  # padding must not overwrite keys that are still needed
            kept = place.real[:, a : a + t]
        self._scatter(k, v, kept, self.slot(place.positions[:, a : a + t]), top)

    def _scatter(self, k: Tensor, v: Tensor, kept: Tensor, slots: Tensor, top: int) -> None:
        self._grow(k, top)
        row, column = kept.nonzero(as_tuple=True)
        slot = slots.expand_as(kept)[row, column]
        self.keys[row, :, slot] = k[row, :, column]
        self.values[row, :, slot] = v[row, :, column]

    def _grow(self, like: Tensor, needed: int) -> None:
        held = 0 if self.keys is None else self.keys.shape[2]
        if held and (self.keys.dtype, self.keys.device) != (like.dtype, like.device):
            raise ValueError(
                f"This cache holds {self.keys.dtype} on {self.keys.device}, the model now gives "
                f"{like.dtype} on {like.device}: use a new KVCache after moving or casting a model."
            )
        if held >= needed and held:
            return
        slots = min(max(needed, 2 * held, 16), max(self.limit, needed))
        b, heads, _, width = like.shape
        for name in ("keys", "values"):
            with torch.inference_mode(False):  # or no call outside inference_mode could go on
                new = like.new_zeros(b, heads, slots, width)
            if (old := getattr(self, name)) is not None:
                new[:, :, :held] = old
            setattr(self, name, new)


class KVCache:
    """What a model remembers of the tokens it has read: ``model(tokens, cache=cache)``.

    Feed it pieces of any length; each continues where the last one stood. ``lengths`` holds the
    tokens read per row (None before the first call). Made for inference: a forward with a cache
    keeps no gradients.
    """

    def __init__(self, config: Llama4Config):
        if not isinstance(config, Llama4Config):
            raise TypeError(f"KVCache takes a model's config, not a {type(config).__name__}.")
        self.config = config
        self.lengths: tuple[int, ...] | None = None
        self._halfway = False
        chunk = [None if i in config.nope_layers else config.chunk for i in range(config.layers)]
        self.layers = [LayerMemory(c, config.max_length) for c in chunk]

    def __repr__(self) -> str:
        return f"KVCache(lengths={self.lengths}, {self.bytes / 2**20:.1f} MiB)"

    @property
    def bytes(self) -> int:
        """Memory held, slots not yet used included."""
        held = [t for layer in self.layers for t in (layer.keys, layer.values) if t is not None]
        return sum(t.numel() * t.element_size() for t in held)

    def reserve(self, rows: int, length: int, dtype: torch.dtype, device=None) -> None:
        """Take the memory for ``length`` tokens of each row now, rather than by doubling.

        For programs that must find their memory in one place; lengths still start at 0.
        """
        shape = (rows, self.config.kv_heads, 0, self.config.head_width)
        like = torch.empty(shape, dtype=dtype, device=device)
        for layer in self.layers:
            layer.reserve(like, length)

    def start(self, rows: int) -> tuple[int, ...]:
        """Positions at which a call with this many rows begins.

        ValueError if the number of rows changed, RuntimeError after a call that was cut off: its
        first layers have moved on, and the others have not.
        """
        if self._halfway:
            raise RuntimeError("An earlier call stopped halfway through: use a new KVCache.")
        if self.lengths is None:
            return (0,) * rows
        if len(self.lengths) != rows:
            raise ValueError(
                f"This cache holds {len(self.lengths)} rows, but the tokens have {rows}: "
                "use a new KVCache for another batch."
            )
        return self.lengths

    def begin(self) -> None:
        """Note that a call has started to write; ``advance`` ends it."""
        self._halfway = True

    def advance(self, place: Place, length: int) -> None:
        """Count the tokens of a finished call."""
        self._halfway = False
        new = [length] * len(place.start) if place.real is None else place.real.sum(1).tolist()
        self.lengths = tuple(s + n for s, n in zip(place.start, new, strict=True))

    def advance_by_one(self) -> None:
        """Count one token in every row."""
        self._halfway = False
        self.lengths = tuple(length + 1 for length in self.lengths)

    def select(self, rows: list[int]) -> KVCache:
        """A copy that holds these rows alone, in this order; a row may come more than once.

        So one prompt read once can be continued in many ways.
        """
        if self.lengths is None or self._halfway:
            raise RuntimeError("Nothing whole to select from: read a prompt into this cache first.")
        if not rows or not all(0 <= row < len(self.lengths) for row in rows):
            raise IndexError(f"rows = {rows} must be from 0 to {len(self.lengths) - 1}, and some.")
        other = KVCache(self.config)
        other.lengths = tuple(self.lengths[row] for row in rows)
        for mine, new in zip(self.layers, other.layers, strict=True):
            if mine.keys is not None:
                with torch.inference_mode(False):
                    new.keys, new.values = mine.keys[rows].clone(), mine.values[rows].clone()
        return other

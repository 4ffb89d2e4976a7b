"""What ``trace`` has seen: routers, hidden states and attention, by layer, in time order."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace

import torch
from einops import einsum, repeat
from torch import Tensor

from ..config import Llama4Config
from ..model.norm import at_least_float32


@dataclass(frozen=True)
class RouterSeen:
    """One layer's router: logits (b, t, e), choice and weight (b, t, k), best first.

    ``choice`` is what the experts were given, ``weight`` what their input was scaled by.
    input (b, t, m), what router and experts read, is kept where hidden states are.
    """

    logits: Tensor
    choice: Tensor
    weight: Tensor
    input: Tensor | None = None

    @property
    def score(self) -> Tensor:
        """(b, t, e): the sigmoid of every logit, of experts that were not chosen too."""
        return torch.sigmoid(at_least_float32(self.logits))

    @property
    def load(self) -> Tensor:
        """(e,) int64: how many tokens each expert was given."""
        return self.choice.flatten().bincount(minlength=self.logits.shape[-1])

    def __repr__(self) -> str:
        b, t, e = self.logits.shape
        k = self.choice.shape[-1]
        return f"RouterSeen({b} rows × {t} tokens, {e} experts, {k} chosen for each)"


class Layers:
    """Values by layer number; a layer that has none says why. Iterates over the layers it has."""

    def __init__(self, layers: tuple[int, ...], read: Callable, missing: Callable[[int], str]):
        self.layers = layers
        self._read, self._missing = read, missing

    def __getitem__(self, layer: int):
        if layer not in self.layers:
            raise LookupError(self._missing(layer))
        return self._read(layer)

    def __iter__(self) -> Iterator[int]:
        return iter(self.layers)

    def __len__(self) -> int:
        return len(self.layers)

    def __repr__(self) -> str:
        return _span(self.layers)


class Seen:
    """The record of a ``with ml4.trace(model) as seen:``; all calls, one after the other in time.

    router[layer]      a RouterSeen
    hidden[layer]      (b, t, m), what leaves the block; ``embedding`` (b, t, m), what enters the
                       first, images fused in. Asked for with ``trace(model, hidden=True)``
    attention[layer]   (b, h, t, s), weights that sum to 1 over s. A call that continues a cache
                       looks back at earlier calls; calls without one do not see each other.
                       Asked for with ``trace(model, attention=True)``, or ``attention=[3, 7]``
    tokens             (b, t)
    """

    def __init__(self, config: Llama4Config, hidden: bool, attention: tuple[int, ...]):
        self.config = config
        every = tuple(range(config.layers))
        self.router = Layers(config.moe_layers, self._router, self._why_no_router)
        self.hidden = Layers(every if hidden else (), self._hidden, self._why_no_hidden)
        self.attention = Layers(attention, self._attention, self._why_no_attention)
        self._calls: list[Call] = []

    @property
    def tokens(self) -> Tensor:
        """(b, t) int64."""
        return self._join(lambda call: call.tokens)

    @property
    def embedding(self) -> Tensor:
        """(b, t, m): what enters the first block."""
        if not self.hidden.layers:
            raise LookupError("Hidden states were not asked for: trace(model, hidden=True).")
        return self._hidden(-1)

    def __repr__(self) -> str:
        size = "no call yet"
        if self._calls:
            lengths = [call.tokens.shape[1] for call in self._calls]
            calls = f"{len(lengths)} call{'s' * (len(lengths) > 1)}"
            size = f"{calls}, {len(self._calls[0].tokens)} rows × {sum(lengths)} tokens"
        kinds = {"router": self.router, "hidden": self.hidden, "attention": self.attention}
        return f"Seen({size}; " + "; ".join(f"{k}: {v!r}" for k, v in kinds.items()) + ")"

    def _append(self, call: Call) -> None:
        self._calls.append(call)

    def _join(self, value: Callable[[Call], Tensor]) -> Tensor:
        """All calls along time, which is axis 1 in everything that is recorded."""
        if not self._calls:
            raise LookupError("Nothing seen yet: call model(tokens) inside the `with` first.")
        rows = sorted({len(call.tokens) for call in self._calls})
        if len(rows) > 1:
            raise LookupError(
                f"The calls had {' and '.join(map(str, rows))} rows, which cannot stand one after "
                "the other: open a new trace for each batch."
            )
        return torch.cat([value(call) for call in self._calls], dim=1)

    def _part(self, name: str, layer: int) -> Tensor:
        return self._join(lambda call: call.parts[name, layer])

    def _router(self, layer: int) -> RouterSeen:
        names = ["logits", "choice", "weight"] + ["input"] * bool(self.hidden.layers)
        return RouterSeen(**{name: self._part(name, layer) for name in names})

    def _hidden(self, layer: int) -> Tensor:
        return self._part("hidden", layer)

    def _attention(self, layer: int) -> Tensor:
        q, k = self._part("q", layer), self._part("k", layer)
        chunk = None if layer in self.config.nope_layers else self.config.chunk
        return attention_weights(q, k, self._visible(chunk))

    def _visible(self, chunk: int | None) -> Tensor:
        """(b, t, s) bool: which query sees which key, over all calls."""
        positions = self._join(lambda call: call.positions)
        real = self._join(lambda call: call.real)
        text = torch.cat(self._texts()).to(positions.device)
        query, key = positions[:, :, None], positions[:, None, :]
        visible = (key <= query) & (text[:, None] == text) & real[:, :, None] & real[:, None, :]
        return visible if chunk is None else visible & (key // chunk == query // chunk)

    def _texts(self) -> list[Tensor]:
        """For each call, (t,) the number of the text it belongs to: a cache continues one."""
        numbers, last, texts = [], 0, {}  # texts: cache -> (number, tokens read so far)
        for call in self._calls:
            text, lengths = texts.get(id(call.cache), (0, ()))
            if not any(call.start):
                text, lengths = (last := last + 1), call.start
            if lengths != call.start:
                raise LookupError(
                    f"A call continued a cache at position {max(call.start)}, and this trace has "
                    "not seen all that went before: open the trace before the cache's first call."
                )
            new = call.real.sum(1).tolist()
            lengths = tuple(a + n for a, n in zip(lengths, new, strict=True))
            texts[id(call.cache)] = text, lengths
            numbers.append(torch.full((call.tokens.shape[1],), text))
        return numbers

    def _why_no_router(self, layer: int) -> str:
        if layer not in range(self.config.layers):
            return self._no_such(layer)
        return f"Layer {layer} is dense and has no router. Layers with one: {self.router!r}."

    def _why_no_hidden(self, layer: int) -> str:
        if self.hidden.layers:
            return self._no_such(layer)
        return "Hidden states were not asked for: trace(model, hidden=True)."

    def _why_no_attention(self, layer: int) -> str:
        if layer not in range(self.config.layers):
            return self._no_such(layer)
        return (
            f"The attention of layer {layer} was not asked for: trace(model, attention=True), "
            f"or attention=[{layer}]."
        )

    def _no_such(self, layer: int) -> str:
        return f"There is no layer {layer!r}: this model has 0 to {self.config.layers - 1}."


@dataclass
class Call:
    """One forward pass: recorded tensors have time on axis 1, in the caller's order.

    back (b, t): where each of the caller's slots stands after padding was moved; None if not.
    """

    tokens: Tensor
    back: Tensor | None
    mask: Tensor | None
    cache: object = None  # which text this call goes on with
    start: tuple[int, ...] = ()
    positions: Tensor | None = None  # (b, t)
    real: Tensor | None = None  # (b, t) bool
    parts: dict[tuple[str, int], Tensor] = field(default_factory=dict)

    def put(self, layer: int, flat: bool = False, **values: Tensor) -> None:
        """Keep (b, t, ...) tensors of a layer; flat: given as (b·t, ...)."""
        for name, value in values.items():
            value = value.detach()
            value = value.unflatten(0, self.tokens.shape) if flat else value
            self.parts[name, layer] = self._callers(value)

    def stand(self, start: tuple[int, ...], positions: Tensor) -> None:
        """Note where the tokens stand; every layer says the same."""
        self.start = start
        self.positions = self._callers(positions.expand(self.tokens.shape))
        ones = torch.ones_like(self.tokens, dtype=torch.bool)
        self.real = ones if self.mask is None else self.mask

    def to(self, device) -> Call:
        """The same on another device; None leaves it where it is."""
        if device is None:
            return self
        moved = {k: v.to(device) for k, v in vars(self).items() if isinstance(v, Tensor)}
        parts = {key: value.to(device) for key, value in self.parts.items()}
        return replace(self, **moved, parts=parts)

    def _callers(self, value: Tensor) -> Tensor:
        if self.back is None:
            return value
        index = self.back.reshape(*self.back.shape, *[1] * (value.ndim - 2)).expand(value.shape)
        return value.gather(1, index)


def attention_weights(q: Tensor, k: Tensor, visible: Tensor) -> Tensor:
    """q (b, t, h, d), k (b, s, k, d), visible (b, t, s) -> (b, h, t, s); unseen keys get 0."""
    q, k = at_least_float32(q), at_least_float32(k)
    keys = repeat(k, "b s k d -> b s (k r) d", r=q.shape[2] // k.shape[2])
    scores = einsum(q, keys, "b t h d, b s h d -> b h t s") * q.shape[-1] ** -0.5
    scores = scores.masked_fill(~visible[:, None], float("-inf"))
    nothing = ~visible.any(dim=-1)[:, None, :, None]  # padding: softmax over no keys is nan
    return scores.softmax(dim=-1).masked_fill(nothing, 0.0)


def _span(layers: tuple[int, ...]) -> str:
    """(0, 1, 2, 5) -> "0-2, 5"."""
    if not layers:
        return "not asked for"
    runs: list[list[int]] = []
    for layer in layers:
        if runs and layer == runs[-1][-1] + 1:
            runs[-1].append(layer)
        else:
            runs.append([layer])
    return ", ".join(str(r[0]) if len(r) == 1 else f"{r[0]}-{r[-1]}" for r in runs)

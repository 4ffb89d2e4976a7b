"""Watch a model while it reads, and leave it as it was.

    with ml4.trace(model) as seen:
        model(tokens)
    seen.router[3].choice                   # (b, t, k): the experts that layer 3 really asked

The forward pass knows nothing of this: hooks hang on the modules for as long as the ``with`` lasts,
and come off after an error too. Several calls inside one ``with``, such as decoding with a cache,
are put one behind the other along time. What is seen stands in the caller's order of tokens, also
where the model moves left padding to the end; at padding itself the numbers mean nothing.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from ..config import Llama4Config
from .seen import Call, Layers, RouterSeen, Seen

__all__ = ["Layers", "RouterSeen", "Seen", "trace"]


@contextmanager
def trace(
    model: nn.Module,
    hidden: bool = False,
    attention: bool | Iterable[int] = False,
    device: str | torch.device | None = "cpu",
) -> Iterator[Seen]:
    """Record what ``model`` (a Llama4) does in every call inside the ``with``.

    Routers are always recorded. hidden: also the vectors that enter and leave each block, and
    those that its router reads.
    attention: also the weights, in all layers (True) or in those named. device: where the
    records are kept; None leaves them where the model is. Everything recorded is detached.
    """
    if not isinstance(getattr(model, "config", None), Llama4Config):
        raise TypeError(f"trace watches a minillama4.Llama4, not a {type(model).__name__}.")
    seen = Seen(model.config, hidden, _layers_named(attention, model.config.layers))
    with ExitStack() as undo:
        for remove in _Recorder(model, seen, device).hang():
            undo.callback(remove)
        yield seen


def _layers_named(attention: bool | Iterable[int], layers: int) -> tuple[int, ...]:
    if isinstance(attention, bool):
        return tuple(range(layers)) if attention else ()
    named = tuple(sorted(set(attention)))
    wrong = [layer for layer in named if not 0 <= layer < layers]
    if wrong:
        raise ValueError(f"attention names layer {wrong[0]}; this model has 0 to {layers - 1}.")
    return named


@dataclass
class _Recorder:
    """Hangs the hooks, and hands each finished call to ``seen``.

    ``call`` is what the running forward has shown so far. A forward that ends in an error never
    hands it over; blocks run outside the model's forward, as checkpointing does, find none.
    """

    model: nn.Module
    seen: Seen
    device: str | torch.device | None
    call: Call | None = field(default=None)

    def hang(self) -> Iterator[Callable[[], None]]:
        """Hang one hook after the other, and yield what takes each off again."""
        yield self.model.register_forward_pre_hook(self._begin, with_kwargs=True).remove
        yield self.model.register_forward_hook(self._finish, always_call=True).remove
        for layer, block in enumerate(self.model.blocks):
            if layer in self.seen.router.layers:
                yield block.ffn.router.register_forward_hook(self._router(layer)).remove
            if layer in self.seen.attention.layers:
                yield _tap(block.attention, "project", self._project(layer))
            if self.seen.hidden.layers:
                yield block.register_forward_hook(self._hidden(layer)).remove
        if self.seen.hidden.layers:
            yield self.model.blocks[0].register_forward_pre_hook(self._embedding).remove

    def _begin(self, model, args, kwargs) -> None:
        given = inspect.signature(model.forward).bind(*args, **kwargs).arguments
        mask = given.get("attention_mask")
        mask = None if mask is None else mask.clone()
        back = None if mask is None else _way_back(mask)
        tokens = given["tokens"].clone()  # the caller may reuse its buffers
        self.call = Call(tokens, back, mask, given.get("cache"))

    def _finish(self, model, inputs, logits) -> None:
        if logits is not None:  # None: the forward has raised
            self.seen._append(self.call.to(self.device))
        self.call = None

    def _router(self, layer: int):
        def see(router, inputs, output):
            if self.call is None:
                return
            with torch.no_grad():
                logits = router.logits(inputs[0])  # n e
            weight, choice = output  # n k, n k
            self.call.put(layer, flat=True, logits=logits, choice=choice, weight=weight)
            if self.seen.hidden.layers:
                self.call.put(layer, flat=True, input=inputs[0])

        return see

    def _project(self, layer: int):
        def see(inputs, output):
            if self.call is None:
                return
            (_, place), (q, k, _) = inputs, output
            self.call.stand(place.start, place.positions)
            self.call.put(layer, q=q.transpose(1, 2), k=k.transpose(1, 2))  # b t h d

        return see

    def _hidden(self, layer: int):
        def see(block, inputs, output):
            if self.call is not None:
                self.call.put(layer, hidden=output)

        return see

    def _embedding(self, block, inputs) -> None:
        if self.call is not None:
            self.call.put(-1, hidden=inputs[0])


def _way_back(mask: Tensor) -> Tensor:
    """Where each of the caller's slots stands once the model has moved padding to the end."""
    order = (~mask).to(torch.uint8).argsort(dim=1, stable=True)
    return order.argsort(dim=1)


def _tap(module: nn.Module, name: str, see: Callable) -> Callable[[], None]:
    """Let ``see(inputs, output)`` watch a method, where a hook cannot.

    Watching the call itself and not repeating it: a repeat would draw new dropout in training.
    """
    method = getattr(module, name)
    before = vars(module).get(name)  # another trace's tap, if there is one

    def watched(*inputs):
        output = method(*inputs)
        see(inputs, output)
        return output

    def remove() -> None:
        if before is None:
            delattr(module, name)
        else:
            setattr(module, name, before)

    setattr(module, name, watched)
    return remove

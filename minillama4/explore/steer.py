"""Take the choice out of the routers' hands: switch an expert off, force one, take the second best.

    with steer(model, off(3), layers=[5]):
        logits = model(tokens)                  # layer 5 does without its expert 3

Whatever is chosen in the router's place, its input is scaled as Llama 4 scales it: by the sigmoid
of that expert's own score. The forward pass knows nothing of this: hooks hang on the routers for as
long as the ``with`` lasts. To watch a steered model, open the trace inside: hooks act in order, and
a trace opened outside sees what the router itself would have chosen. A model that was compiled
before does not notice hooks: steer the plain one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager

import torch
from torch import Tensor, nn

from ..config import Llama4Config
from ..model.norm import at_least_float32

Choose = Callable[[Tensor, int], Tensor]  # scores (n, e) before the sigmoid, k -> choice (n, k)


@contextmanager
def steer(model: nn.Module, choose: Choose, layers: Iterable[int] | None = None) -> Iterator[None]:
    """Let ``choose`` pick the experts of every token in these layers; all layers with experts if
    None. LookupError for a layer that has no router; ValueError for a choice that does not fit.
    """
    if not isinstance(getattr(model, "config", None), Llama4Config):
        raise TypeError(f"steer takes a minillama4.Llama4, not a {type(model).__name__}.")
    moe = model.config.moe_layers
    if isinstance(layers, int):
        raise TypeError(f"layers is a list of layer numbers: layers=[{layers}].")
    named = moe if layers is None else tuple(dict.fromkeys(layers))  # each once
    for layer in named:
        if layer not in moe:
            raise LookupError(f"Layer {layer} has no router; layers with one: {list(moe)}.")
    with ExitStack() as undo:
        for layer in named:
            router = model.blocks[layer].ffn.router
            undo.callback(router.register_forward_hook(_steering(choose, layer)).remove)
        yield


def off(*experts: int) -> Choose:
    """Never these experts: their tokens go to the best of the others."""

    def choose(logits: Tensor, k: int) -> Tensor:
        _known(experts, logits)
        if len(set(experts)) > logits.shape[1] - k:
            raise ValueError(
                f"With {len(set(experts))} experts off, {k} of the others are missing."
            )
        without = logits.clone()
        without[:, list(experts)] = float("-inf")
        return without.topk(k, dim=-1).indices

    return choose


def force(expert: int) -> Choose:
    """Always this expert; with top-k above 1 the best others beside it."""

    def choose(logits: Tensor, k: int) -> Tensor:
        _known((expert,), logits)
        first = logits.clone()
        first[:, expert] = float("inf")
        return first.topk(k, dim=-1).indices

    return choose


def ranked(place: int) -> Choose:
    """The expert at this place of the router's own ranking, 0 the best (and the k - 1 after it)."""

    def choose(logits: Tensor, k: int) -> Tensor:
        if not 0 <= place <= logits.shape[1] - k:
            raise ValueError(f"place = {place} is not possible: 0 to {logits.shape[1] - k}.")
        return logits.topk(place + k, dim=-1).indices[:, place:]

    return choose


def at_random(seed: int = 0) -> Choose:
    """Experts drawn evenly, and anew for each token, layer and call; a seed is one sequence."""
    draw = torch.Generator().manual_seed(seed)

    def choose(logits: Tensor, k: int) -> Tensor:
        noise = torch.rand(logits.shape, generator=draw)
        return noise.topk(k, dim=-1).indices.to(logits.device)

    return choose


def _steering(choose: Choose, layer: int):
    def hook(router, inputs, output):
        logits = router.logits(inputs[0])  # n e
        choice = choose(logits.detach().clone(), router.top_k)  # a chooser may work in place
        _check(choice, logits, router.top_k, layer)
        score = torch.sigmoid(at_least_float32(logits.gather(1, choice)))
        return score.to(inputs[0].dtype), choice

    return hook


def _check(choice, logits: Tensor, k: int, layer: int) -> None:
    n, experts = logits.shape
    given = type(choice).__name__
    if isinstance(choice, Tensor):
        given = f"{str(choice.dtype).removeprefix('torch.')} of shape {tuple(choice.shape)}"
    if given != f"int64 of shape {(n, k)}":
        raise ValueError(f"Layer {layer}: a choice is int64 of shape {(n, k)}, not {given}.")
    if choice.numel() and not 0 <= int(choice.min()) <= int(choice.max()) < experts:
        raise ValueError(f"Layer {layer}: a choice names an expert that is not 0 to {experts - 1}.")
    if k > 1 and (choice.sort(dim=-1).values.diff(dim=-1) == 0).any():
        raise ValueError(f"Layer {layer}: a choice names one expert twice for the same token.")


def _known(experts: Iterable[int], logits: Tensor) -> None:
    for expert in experts:
        if not 0 <= expert < logits.shape[1]:
            raise ValueError(
                f"There is no expert {expert}: this layer has 0 to {logits.shape[1] - 1}."
            )

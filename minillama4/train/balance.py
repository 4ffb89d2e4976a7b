"""Keeping all experts busy while a model trains, and a record of how busy they were.

    with balance(model, "aux", weight=0.01, over="many") as balanced:
        train(model, batches, settings, loss=balanced.loss)
    balanced.loads                                    # (steps, layers, e): who got how much

none   only watches.
aux    adds  weight · e · Σ_e f_e · P_e  to the loss, the mean over the layers: f_e the share of
       tokens that expert e was given, P_e its mean softmax probability. f is a count and has no
       gradient; pushing P down where f is high evens the load. Even routing makes e · Σ f · P 1.
bias   adds a number b_e to each expert's score, for the choice alone: after each step b_e grows by
       ``rate`` where e was given less than the mean, and shrinks where it was given more. The loss
       is left alone, and the weight on the expert's input remains the unbiased sigmoid(score).

A bias must travel with its model: Llama 4's checkpoints have no place for one (spec, section 8).
Sources: Fedus et al. 2021, eq. 4 (aux); Qiu et al. 2025 (f over many batches); Wang et al. 2024
(bias). How Meta balanced Llama 4 is not public; its code holds no auxiliary loss.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import torch
import torch.distributed as dist
from einops import reduce
from torch import Tensor, nn

from ..config import Llama4Config
from ..model.norm import at_least_float32
from .loop import next_token_loss

KINDS = ("none", "aux", "bias")
SCOPES = ("row", "batch", "many")


@contextmanager
def balance(
    model: nn.Module,
    kind: str = "none",
    *,
    weight: float = 0.01,
    over: str = "batch",
    memory: int = 50,
    rate: float = 0.01,
) -> Iterator[Balance]:
    """Balance ``model`` (a Llama4) inside the ``with``; afterwards it is as it was.

    weight: of the auxiliary loss. over: what f_e is counted over: each "row" of a batch by itself,
    the "batch", or "many": a running mean over about ``memory`` batches. rate: step of the bias.
    What must survive a stop (running means, biases) lies in buffers of the routers, so that
    ``train`` keeps it with the rest and a resumed run is the run never stopped. A copy of the model
    made inside the ``with`` keeps hooks and buffers: copy its ``state_dict`` instead. Loads and
    biases are those of the routers; to overrule them as well, open ``steer`` inside the ``with``.
    """
    if not isinstance(getattr(model, "config", None), Llama4Config):
        raise TypeError(f"balance takes a minillama4.Llama4, not a {type(model).__name__}.")
    if kind not in KINDS:
        raise ValueError(f"kind = {kind!r} is not known: choose one of {', '.join(KINDS)}.")
    if over not in SCOPES:
        raise ValueError(f"over = {over!r} is not known: choose one of {', '.join(SCOPES)}.")
    if not (memory >= 1 and weight >= 0 and rate >= 0):  # nan is refused too
        raise ValueError("memory must be at least 1, weight and rate not below 0.")
    if hasattr(model, "balanced"):
        raise RuntimeError("This model is being balanced already: leave the other `with` first.")
    balanced = Balance(model, kind, weight, over, memory, rate)
    with ExitStack() as undo:
        model.balanced = balanced  # so that ``train`` can note how, and refuse to resume otherwise
        undo.callback(delattr, model, "balanced")
        for layer in balanced.routers:
            undo.callback(balanced._hang(layer))
        yield balanced


class Balance:
    """See ``balance``. ``loss`` is for ``train``; ``loads`` and ``bias`` are what it found.

    term: what the last training loss had added to it, weight included; None if nothing.
    """

    def __init__(self, model, kind: str, weight: float, over: str, memory: int, rate: float):
        self.kind, self.weight, self.over = kind, weight, over
        self.memory, self.rate = memory, rate
        self.term: Tensor | None = None
        self.routers = {i: model.blocks[i].ffn.router for i in model.config.moe_layers}
        self._seen: dict[int, tuple[Tensor, Tensor]] = {}  # layer -> logits (n, e), choice (n, k)
        self._last_bias: dict[int, Tensor] = {}
        self._recording = False
        self._loads: list[Tensor] = []

    def __repr__(self) -> str:
        how = f", over={self.over!r}" if self.kind == "aux" else ""
        return f"Balance({self.kind!r}{how}, {len(self._loads)} steps seen)"

    @property
    def settings(self) -> dict:
        """What training depends on, as plain values; empty where nothing is balanced."""
        if self.kind == "none" or not self.routers:
            return {}
        if self.kind == "bias":
            return {"kind": "bias", "rate": self.rate}
        memory = {"memory": self.memory} if self.over == "many" else {}
        return {"kind": "aux", "weight": self.weight, "over": self.over} | memory

    @property
    def loads(self) -> Tensor:
        """(steps, layers, e) int64: tokens that each expert was given, layers with experts only.

        Steps of this ``with`` only: those before a stop are not in it.
        """
        if not self.routers:
            raise LookupError("A dense model has no routers, and no loads.")
        if not self._loads:
            raise LookupError("No step seen yet: train with loss=balanced.loss inside the `with`.")
        return torch.stack(self._loads)

    @property
    def bias(self) -> Tensor:
        """(layers, e): what is added to the scores for the choice; zeros unless kind is "bias".

        After the ``with``, where the model does without it: what it was at the end.
        """
        if not self.routers:
            raise LookupError("A dense model has no routers, and no bias.")
        last = self._last_bias
        now = [getattr(r, "balance_bias", last.get(i, _zeros(r))) for i, r in self.routers.items()]
        return torch.stack(now)

    def loss(self, model: nn.Module, tokens: Tensor) -> Tensor:
        """Next-token loss in nats of tokens (b, t + 1), plus the auxiliary loss if there is one.

        In evaluation mode the next-token loss alone: nothing is counted, and no bias moves.
        """
        if not model.training:
            return next_token_loss(model, tokens)
        self._seen.clear()
        self._recording = True
        try:
            value = next_token_loss(model, tokens)
        finally:
            self._recording = False
        missing = self.routers.keys() - self._seen.keys()
        if missing:
            raise RuntimeError(
                f"The router of layer {min(missing)} was not seen at work: this loss is for the "
                "model that is being balanced, inside the `with`."
            )
        loads = {layer: self._count(layer) for layer in self.routers}
        if self.kind == "aux" and loads:
            terms = [self._auxiliary(layer, load, len(tokens)) for layer, load in loads.items()]
            term = self.weight * torch.stack(terms).mean()
            value, self.term = value + term, term.detach()
        if loads:  # a dense model has no routers
            self._loads.append(torch.stack([load.cpu() for load in loads.values()]))
        if self.kind == "bias":
            self._move_biases(loads)
        self._seen.clear()
        return value

    # ------------------------------------------------------------------ the two ways
    def _auxiliary(self, layer: int, load: Tensor, rows: int) -> Tensor:
        """e · Σ f · P of one layer, over what ``over`` says; 1 when the load is even."""
        logits, choice = self._seen[layer]
        experts = logits.shape[-1]
        chance = at_least_float32(logits).softmax(dim=-1)  # n e
        if self.over == "row":
            picks = nn.functional.one_hot(choice, experts).to(chance.dtype)  # n k e
            share = reduce(picks, "(b t) k e -> b e", "mean", b=rows)
            mean = reduce(chance, "(b t) e -> b e", "mean", b=rows)
            return experts * (share * mean).sum(-1).mean()
        share = load / load.sum()
        if self.over == "many":
            share = self._remember(layer, share)
        return experts * (share * chance.mean(0)).sum()

    def _remember(self, layer: int, share: Tensor) -> Tensor:
        """A running mean of the shares, this batch's included; the first few count in full."""
        router = self.routers[layer]
        router.balance_steps += 1
        step = 1 / router.balance_steps.clamp(max=self.memory)
        router.balance_share.lerp_(share.to(router.balance_share), step)
        return router.balance_share.clone()  # autograd keeps it, and the next step changes ours

    def _move_biases(self, loads: dict[int, Tensor]) -> None:
        for layer, load in loads.items():
            gap = load.float().mean() - load
            self.routers[layer].balance_bias += self.rate * gap.sign()

    # ------------------------------------------------------------------ watching the routers
    def _count(self, layer: int) -> Tensor:
        """(e,) int64: tokens per expert in this batch, over all processes."""
        logits, choice = self._seen[layer]
        load = choice.flatten().bincount(minlength=logits.shape[-1])
        if dist.is_initialized():
            dist.all_reduce(load)
        return load

    def _hang(self, layer: int):
        """Watch one router, and choose for it where there is a bias; returns what undoes it."""
        router = self.routers[layer]
        buffers = {}
        if self.kind == "bias":
            buffers = {"balance_bias": _zeros(router)}
        elif self.kind == "aux" and self.over == "many":
            buffers = {"balance_share": _zeros(router), "balance_steps": _zeros(router)[0]}
        for name, value in buffers.items():
            router.register_buffer(name, value)
        hook = router.register_forward_hook(self._watch(layer))

        def undo() -> None:
            hook.remove()
            if self.kind == "bias":
                self._last_bias[layer] = router.balance_bias
            for name in buffers:
                delattr(router, name)

        return undo

    def _watch(self, layer: int):
        def see(router, inputs, output):
            if not self._recording and self.kind != "bias":
                return None
            logits = router.logits(inputs[0])  # n e
            if self.kind == "bias":
                score, choice = choose_with_bias(logits, router.balance_bias, router.top_k)
                output = score.to(inputs[0].dtype), choice
            if self._recording:
                self._seen[layer] = logits, output[1]
            return output

        return see


def choose_with_bias(logits: Tensor, bias: Tensor, top_k: int) -> tuple[Tensor, Tensor]:
    """(n, e), (e,) -> score (n, k), choice (n, k): the bias helps to choose and weighs nothing."""
    order = logits.detach().argsort(dim=-1, descending=True, stable=True)
    # many large scores have the same sigmoid, 1: among equals the router's own order decides
    helped = torch.sigmoid(logits.detach().double()).gather(1, order) + bias[order]
    choice = order.gather(1, helped.argsort(dim=-1, descending=True, stable=True)[:, :top_k])
    return torch.sigmoid(at_least_float32(logits.gather(1, choice))), choice


def _zeros(router: nn.Module) -> Tensor:
    """(e,) float32, whatever the model's dtype: a bias must be able to grow by small steps."""
    return router.weight.detach().float().new_zeros(len(router.weight))

"""Who went where while a model learned: every router's choices on the same held-out tokens.

Kept at the start and after 1, 2, 4, ... steps, since routers settle early: one small safetensors
file, from which saturation and specialisation over training are measured afterwards.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

import minillama4 as ml4
from minillama4.data.text import Batch, Corpus

from ..files import written_whole


@dataclass(frozen=True)
class Routing:
    """steps (s,), tokens and domains (b, t), choice (s, layers, b, t), layers with experts only."""

    steps: Tensor
    tokens: Tensor
    domains: Tensor
    choice: Tensor

    @classmethod
    def load(cls, file: str | Path) -> Routing:
        """Read what ``RoutingHistory`` wrote; ValueError if the file is something else."""
        try:
            tensors = load_file(file)
            routing = cls(**{name: tensor.long() for name, tensor in tensors.items()})
        except (TypeError, SafetensorError) as error:
            raise ValueError(f"{file} holds no routing history ({error}).") from None
        if len(routing.steps) != len(routing.choice):
            counts = f"{len(routing.steps)} steps, {len(routing.choice)} sets of choices"
            raise ValueError(f"{file} holds no routing history ({counts}).")
        return routing


class RoutingHistory:
    """Call it with (model, steps done): at some steps it reads held-out tokens and notes who went
    where, in ``file``. A resumed run goes on with the file; one begun anew begins it anew.

    ``rows`` rows of ``length`` tokens from each domain. First choices only, if top_k is above 1.
    """

    def __init__(self, file: str | Path, corpus: Corpus, length: int, steps: int, rows: int = 1):
        self.file = Path(file)
        per_domain: dict[int, Batch] = {}
        for batch in corpus.validation_batches(rows, length):
            per_domain.setdefault(int(batch.domains[0, 0]), batch)
        self.tokens = torch.cat([batch.tokens[:, :-1] for batch in per_domain.values()])
        self.domains = torch.cat([batch.domains[:, :-1] for batch in per_domain.values()])
        doubling = itertools.takewhile(lambda step: step < steps, (2**i for i in itertools.count()))
        self.wanted = {0, *doubling, steps}
        self.kept: dict[int, Tensor] = {}
        if self.file.exists():
            self.kept = self._resume()

    def __call__(self, model: nn.Module, done: int) -> None:
        if done not in self.wanted or not model.config.moe_layers:
            return
        if done == 0:
            self.kept = {}
        with torch.no_grad(), ml4.trace(model) as seen:
            model(self.tokens.to(model.embed.weight.device))
        layers = [seen.router[layer].choice[..., 0] for layer in seen.router]
        self.kept[done] = torch.stack(layers)  # layers b t
        self._save()

    def _resume(self) -> dict[int, Tensor]:
        try:
            before = Routing.load(self.file)
        except ValueError as error:
            raise ValueError(
                f"{error} Nothing was changed. Put a good copy in its place; or move it away, and "
                "the run goes on with its model, but what was noted about routing so far is lost."
            ) from None
        return dict(zip(before.steps.tolist(), before.choice, strict=True))

    def _save(self) -> None:
        choice = torch.stack(list(self.kept.values()))
        tensors = {
            "steps": torch.tensor(list(self.kept)),
            "tokens": self.tokens.to(torch.int32),
            "domains": self.domains.to(torch.uint8),
            "choice": choice.to(torch.uint8 if choice.max() < 256 else torch.int32),
        }
        with written_whole(self.file) as part:
            save_file(tensors, part)

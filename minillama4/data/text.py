"""Text for training, with the domain of every token: what an expert's choice is compared with.

A `Corpus` holds one long row of token ids per domain. A batch is cut from it at random places that
depend on (seed, step) alone, so a run resumed at step k sees what an unbroken one sees there, and
several processes share one global batch: process r of w takes its rows r, r+w, r+2w, ...

    corpus = Corpus.build(load_tokenizer(), "train")
    batch = corpus.batch(step=0, batch=8, length=256)
    batch.tokens[:, :-1], batch.tokens[:, 1:]          # inputs and targets, (b, t) each

See `sources` for the documents, and for why there is no leak between the splits.
"""

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from minillama4.data.sources import DOMAINS, SPLITS, documents
from minillama4.data.tokenizer import Tokenizer

__all__ = ["DOMAINS", "SPLITS", "Batch", "Corpus", "batches", "documents"]


@dataclass(frozen=True)
class Batch:
    """Tokens and the domain of each, as an index into `DOMAINS`; both (b, t+1) int64."""

    tokens: Tensor
    domains: Tensor


@dataclass(frozen=True)
class Corpus:
    """Token ids per domain, (n,) int32: each document opened by begin-of-text, one after another.

    Build one with `Corpus.build`.
    """

    tokens: dict[str, Tensor]
    begin: int

    @classmethod
    def build(
        cls,
        tokenizer: Tokenizer,
        split: str,
        tokens_per_domain: int = 200_000,
        seed: int = 0,
        domains: Sequence[str] = DOMAINS,
    ) -> "Corpus":
        """Encode documents until each domain has `tokens_per_domain`, or real text has run out."""
        if tokens_per_domain < 2:
            raise ValueError(f"tokens_per_domain must be at least 2, not {tokens_per_domain}")
        if not domains:
            raise ValueError(f"a corpus needs at least one domain of {', '.join(DOMAINS)}")
        tokens = {}
        for domain in domains:
            stream = _encoded(tokenizer, documents(domain, split, seed))
            ids = list(itertools.islice(stream, tokens_per_domain))
            tokens[domain] = torch.tensor(ids, dtype=torch.int32)
        return cls(tokens, tokenizer.begin)

    @property
    def domains(self) -> tuple[str, ...]:
        """Names of the domains held here."""
        return tuple(self.tokens)

    def batch(
        self,
        step: int,
        batch: int,
        length: int,
        seed: int = 0,
        *,
        pieces: int = 1,
        rank: int = 0,
        world: int = 1,
        device: torch.device | str | None = None,
    ) -> Batch:
        """The batch of a step: `batch` rows of `length` + 1 tokens over all processes.

        Each row is cut into `pieces` windows, each from a domain of its own drawing and opened by
        begin-of-text. Over the batch the domains come equally often, up to one. Process `rank` of
        `world` gets rows rank, rank + world, ...
        """
        self._check_batch(batch, length, pieces, rank, world)
        generator = torch.Generator().manual_seed(mixed_seed(seed, step))
        count = batch * pieces
        # a shuffled round of all domains; the shift lets another one be left over at each step
        shift = torch.randint(len(self.tokens), (), generator=generator)
        choice = (torch.randperm(count, generator=generator) + shift) % len(self.tokens)
        start = torch.rand(count, generator=generator, dtype=torch.float64)
        sizes = [part.numel() for part in torch.arange(length + 1).tensor_split(pieces)]
        rows = []
        for row in range(rank, batch, world):
            cells = range(row * pieces, (row + 1) * pieces)
            rows.append(
                [
                    self._window(int(choice[cell]), float(start[cell]), size)
                    for cell, size in zip(cells, sizes, strict=True)
                ]
            )
        return _stack(rows, device)

    def validation_batches(
        self, batch: int, length: int, device: torch.device | str | None = None
    ) -> Iterator[Batch]:
        """Every token of every domain once as a target, in order; a batch holds one domain.

        Row w of a domain is begin-of-text and tokens w·length to (w+1)·length: (b, length + 1).
        Tokens that do not fill a last row are left out; the last batch may have fewer rows.
        """
        self._check_batch(batch, length, 1, 0, 1)
        for number, tokens in enumerate(self.tokens.values()):
            starts = range(0, tokens.numel() - length + 1, length)
            for first in range(0, len(starts), batch):
                rows = [[self._at(number, s, length + 1)] for s in starts[first : first + batch]]
                yield _stack(rows, device)

    def _window(self, number: int, fraction: float, size: int) -> tuple[Tensor, Tensor]:
        """A window at a fraction in [0, 1) of the places where one fits."""
        places = self.tokens[self.domains[number]].numel() - (size - 1) + 1
        return self._at(number, int(fraction * places), size)

    def _at(self, number: int, start: int, size: int) -> tuple[Tensor, Tensor]:
        """Begin-of-text and the `size` - 1 tokens from `start`, with their domain: (size,) each."""
        domain = self.domains[number]
        ids = torch.empty(size, dtype=torch.int64)
        ids[0] = self.begin
        ids[1:] = self.tokens[domain][start : start + size - 1]
        return ids, torch.full((size,), DOMAINS.index(domain))

    def _check_batch(self, batch: int, length: int, pieces: int, rank: int, world: int) -> None:
        if batch < 1 or length < 1:
            raise ValueError(f"batch and length must be at least 1, not {batch} and {length}")
        if not 0 <= rank < world:
            raise ValueError(f"rank {rank} is not one of the {world} processes 0..{world - 1}")
        if batch % world:
            raise ValueError(f"a batch of {batch} rows does not divide among {world} processes")
        if not 1 <= pieces <= (length + 1) // 2:
            raise ValueError(f"cannot cut {length + 1} tokens into {pieces} pieces of 2 or more")
        longest = -(-(length + 1) // pieces) - 1
        for domain, tokens in self.tokens.items():
            if tokens.numel() < longest:
                raise ValueError(
                    f"{domain} holds {tokens.numel()} tokens, too few for a window of {longest}: "
                    "take shorter rows, or build the corpus with more tokens_per_domain"
                )


def batches(
    tokenizer: Tokenizer,
    split: str,
    batch: int,
    length: int,
    seed: int = 0,
    domains: Sequence[str] = DOMAINS,
    *,
    tokens_per_domain: int = 200_000,
    first_step: int = 0,
    pieces: int = 1,
) -> Iterator[tuple[Tensor, Tensor]]:
    """Endless (tokens, domains), both (b, t+1) int64; `first_step` resumes an earlier stream."""
    corpus = Corpus.build(tokenizer, split, tokens_per_domain, seed, domains)
    for step in itertools.count(first_step):
        drawn = corpus.batch(step, batch, length, seed, pieces=pieces)
        yield drawn.tokens, drawn.domains


def _encoded(tokenizer: Tokenizer, texts: Iterator[str]) -> Iterator[int]:
    for text in texts:
        yield tokenizer.begin
        yield from tokenizer.encode(text)


def mixed_seed(seed: int, step: int) -> int:
    """One number below 2**63 for (seed, step); neighbours must not give related generators."""
    mixed = (seed * 0x9E3779B97F4A7C15 + step + 1) % 2**64
    mixed = (mixed ^ (mixed >> 30)) * 0xBF58476D1CE4E5B9 % 2**64  # splitmix64's finaliser
    mixed = (mixed ^ (mixed >> 27)) * 0x94D049BB133111EB % 2**64
    return (mixed ^ (mixed >> 31)) >> 1


def _stack(rows: list[list[tuple[Tensor, Tensor]]], device) -> Batch:
    """Rows of (ids, domains) windows -> one Batch on `device`."""
    tokens = torch.stack([torch.cat([ids for ids, _ in row]) for row in rows])
    domains = torch.stack([torch.cat([labels for _, labels in row]) for row in rows])
    return Batch(tokens.to(device), domains.to(device))

"""Rows that know nothing of each other: one stretch of each document, for statistics.

Rows cut one after the other from a long text share documents, and what shares a document is alike.
Whoever counts such rows as so many independent ones trusts an error bar that is too small.
"""

import itertools
from random import Random

import torch

from minillama4.data.sources import DOMAINS, documents
from minillama4.data.text import Batch
from minillama4.data.tokenizer import Tokenizer


def excerpts(
    tokenizer: Tokenizer, rows: int, length: int, split: str = "validation", seed: int = 0
) -> Batch:
    """``rows`` rows of each domain, domain after domain: (6 · rows, length) tokens and domains.

    A row is begin-of-text and a stretch from a random place of a document; no document gives two.
    Documents that are too short are passed over; ValueError if a domain has too few others.
    """
    if rows < 1 or length < 2:
        raise ValueError(f"rows must be at least 1 and length 2, not {rows} and {length}.")
    tokens = []
    for domain in DOMAINS:
        random = Random(f"{domain} {seed}")
        texts = itertools.islice(documents(domain, split, seed), 50 * rows)  # some never end
        long_enough = (ids for ids in map(tokenizer.encode, texts) if len(ids) >= length - 1)
        found = list(itertools.islice(long_enough, rows))
        if len(found) < rows:
            raise ValueError(
                f"{domain} has only {len(found)} documents of {length - 1} tokens or more in "
                f"{split}: ask for fewer rows, or shorter ones."
            )
        for ids in found:
            start = random.randrange(len(ids) - length + 2)
            tokens.append([tokenizer.begin, *ids[start : start + length - 1]])
    domains = torch.arange(len(DOMAINS)).repeat_interleave(rows)
    return Batch(torch.tensor(tokens), domains[:, None].repeat(1, length))

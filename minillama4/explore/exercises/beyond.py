"""Checks for *Beyond the trained length* (notebook 4 of notebooks/02_irope)."""

import itertools

import torch
from torch import Tensor

from minillama4.data.recall import Haystack

from ..checks import Check, number

CHUNK = 32
HAY = Haystack(names=12, noise=12, facts=5, max_hops=3)


# ---------------------------------------------------------------------- facts at a border
def _places(seed: int) -> tuple[Tensor, int]:
    """Where facts begin, (n,), and the chunk: every remainder is there."""
    draw = torch.Generator().manual_seed(seed)
    return torch.randperm(8 * (4 + seed), generator=draw), 4 + seed


def _remainder(wanted):
    return lambda place, chunk: place % chunk == wanted(chunk)


is_cut = Check(
    "is_cut",
    reference=lambda place, chunk: place // chunk != (place + 1) // chunk,
    inputs=_places,
    wrong={
        "That is a fact whose first name begins a chunk: both its names lie in that chunk.": (
            _remainder(lambda chunk: 0)
        ),
        "One too early: a fact at chunk - 2 has its second name at chunk - 1, the chunk's last "
        "place.": _remainder(lambda chunk: chunk - 2),
        "You have it the other way round: these are the facts that no border cuts.": (
            lambda place, chunk: place // chunk == (place + 1) // chunk
        ),
        "A fact has two names, at place and place + 1; you looked two further.": (
            lambda place, chunk: place // chunk != (place + 2) // chunk
        ),
        "That is true for every fact beyond the first chunk.": lambda place, chunk: place >= chunk,
        "Chunks of 16 are this notebook's; take those of chunk.": lambda place, chunk: (
            (place + 1) % 16 == 0
        ),
    },
    praise="One fact in every chunk's length of places is cut.",
)


# ---------------------------------------------------------------------- answers by reading
def _questions(seed: int) -> tuple[list[int], int, int, int]:
    """A text as ids, the asked name, hops, and how many names there are."""
    hops = 1 + seed % 3
    asked = HAY.batch(seed, 1, 30, split="test", hops=hops)
    row = asked.tokens[0].tolist()
    return row[:30], row[31], hops, HAY.names


def follow(text: list[int], name: int, hops: int, names: int) -> int:
    """The name ``hops`` facts on from ``name``, by reading."""
    for _ in range(hops):
        name = next(b for a, b in itertools.pairwise(text) if a == name and b < names)
    return name


def _first_place(text: list[int], name: int, hops: int, names: int) -> int:
    for _ in range(hops):
        name = text[text.index(name) + 1]
    return name


def _next_name(text: list[int], name: int, hops: int, names: int) -> int:
    read = [token for token in text if token < names]
    for _ in range(hops):
        name = read[read.index(name) + 1]
    return name


def _back(text: list[int], name: int, hops: int, names: int) -> int:
    for _ in range(hops):
        name = next(a for a, b in itertools.pairwise(text) if b == name and a < names)
    return name


answer = Check(
    "answer",
    reference=follow,
    inputs=_questions,
    wrong={
        "You make one hop, whatever was asked.": lambda text, name, hops, names: follow(
            text, name, 1, names
        ),
        "You make one hop too many.": lambda text, name, hops, names: follow(
            text, name, hops + 1, names
        ),
        "You make one hop too few.": lambda text, name, hops, names: follow(
            text, name, hops - 1, names
        ),
        "You go backwards: a fact says which name follows.": _back,
        "A name stands in two facts: first in one, second in another, with noise after it. Take "
        "the place where a name follows.": _first_place,
        "You take the next name in the text, though noise may lie between: that is another "
        "fact's.": _next_name,
    },
    praise="So every question has one answer, and reading finds it.",
    trials=12,
)


# ---------------------------------------------------------------------- what a guess is worth
guess = number(
    "guess",
    1 / 2,
    {
        "That is a guess among all five names.": 1 / 5,
        "Besides the asked name, the reader can exclude the one after it, which is known, and one "
        "more.": 1 / 4,
        "One more name is out: the one before the asked one. In a ring of five it is four hops "
        "away.": 1 / 3,
        "With two names left, nobody is certain.": 1.0,
        "A share of all answers, please, not per cent.": 50,
    },
    "Two names are left. An accuracy of a half on two hops is no second look-up.",
)

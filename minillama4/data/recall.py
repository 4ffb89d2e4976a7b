"""Facts hidden in noise, and questions with one exact answer: recall, needles, several hops.

    . . a b . . . c a . . b c . .    ?1 a  ->  b        the name behind a
                                     ?2 a  ->  c        the name behind that one

A fact is a name followed by another. The names of a text form a ring (a b, b c, c a), so that
every name has an answer for any number of hops, and none can be guessed from what is missing.
Facts are never neighbours: a name behind a name is always an answer. Noise has tokens of its own.
The answer is read off at the asked name and never written down: no question helps with the next.

No leak: which names stand together decides where a text belongs, to the training or to the test,
so that no test text is one of the training's in another order. Facts are drawn anew for each
text: to answer is to have read. (Keeping single facts back for the test would be worse: a model
learns which facts never occur, and holds that against them.)
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from minillama4.data.text import mixed_seed

IGNORED = -100  # the target where nothing is asked, as torch's cross-entropy has it
SPLITS = ("train", "test")


@dataclass(frozen=True)
class Asked:
    """tokens (b, t) int64; targets (b, t), the answer at each asked name, else IGNORED.

    place (b, q): where the fact that each question names first begins. hops (b, q).
    """

    tokens: Tensor
    targets: Tensor
    place: Tensor
    hops: Tensor

    def right(self, logits: Tensor) -> Tensor:
        """Was the best token (of logits (b, t, v)) the answer? (b, q) bool."""
        asked = self.targets != IGNORED
        answer, best = self.targets[asked], logits.argmax(-1)[asked]
        return (answer == best).view_as(self.hops)


@dataclass(frozen=True)
class Haystack:
    """Makes texts with ``facts`` facts among noise and questions of up to ``max_hops`` hops.

    Token ids: names, then noise, then one question mark for each number of hops.
    """

    names: int = 32
    noise: int = 32
    facts: int = 4
    max_hops: int = 1

    def __post_init__(self):
        if not (1 <= self.max_hops < self.facts < self.names and self.names >= 4):
            raise ValueError(
                f"max_hops = {self.max_hops}, facts = {self.facts}, names = {self.names}: a ring "
                "of facts needs more facts than hops, and more names than facts (4 or more)."
            )

    @property
    def vocab_size(self) -> int:
        return self.names + self.noise + self.max_hops

    def batch(
        self,
        step: int,
        rows: int,
        length: int,
        seed: int = 0,
        *,
        split: str = "train",
        hops: int | None = None,
        depth: float | Tensor | None = None,
    ) -> Asked:
        """Texts of ``length`` tokens with their questions behind them, the same for (seed, step).

        A training text is followed by a question for each of its facts, a test text by one.
        hops: of all questions; drawn for each where None. depth in [0, 1], one for all rows or
        (rows,): where in the text the fact stands that a test question names (in a training text,
        one of the facts). Even steps of depth can all fall on chunk borders: draw them at random.
        ValueError where it does not fit.
        """
        self._check(length, split, hops, depth)
        generator = torch.Generator().manual_seed(mixed_seed(seed, 2 * step + SPLITS.index(split)))
        asked = self.facts if split == "train" else 1
        shape = (rows, asked)
        drawn = torch.randint(1, self.max_hops + 1, shape, generator=generator)
        hop = drawn if hops is None else torch.full(shape, hops)
        ring = self._rings(rows, split, generator)
        start = self._places(rows, length, depth, generator)
        text = torch.randint(
            self.names, self.names + self.noise, (rows, length), generator=generator
        )
        text.scatter_(1, start, ring).scatter_(1, start + 1, ring.roll(-1, 1))
        # in no order: asked around the ring, the last question's answer would be the first's name
        about = torch.rand(rows, self.facts, generator=generator).argsort(1)
        about = about if split == "train" else torch.zeros(rows, 1, dtype=torch.int64)
        answer = ring.gather(1, (about + hop) % self.facts)
        mark = self.names + self.noise + hop - 1
        tail = torch.stack([mark, ring.gather(1, about)], dim=-1).flatten(1)
        tokens = torch.cat([text, tail], dim=1)
        targets = torch.full_like(tokens, IGNORED)
        targets[:, length + 1 :: 2] = answer
        return Asked(tokens, targets, start.gather(1, about), hop)

    def _rings(self, rows: int, split: str, generator) -> Tensor:
        """Names in ring order, (rows, facts); a quarter of all sets of names is the test's."""
        ring = torch.empty(rows, self.facts, dtype=torch.int64)
        missing = torch.ones(rows, dtype=torch.bool)
        while missing.any():
            drawn = torch.rand(rows, self.names, generator=generator).argsort(1)[:, : self.facts]
            fits = (drawn.sum(1) % 4 == 0) == (split == "test")
            ring[missing & fits] = drawn[missing & fits]
            missing &= ~fits
        return ring

    def _places(self, rows: int, length: int, depth: float | Tensor | None, generator) -> Tensor:
        """Where each fact begins, (rows, facts), at least one token of noise behind each.

        With a depth the first fact is there, and the others are anywhere.
        """
        free = length - 2 * self.facts  # choose among so many, then widen each choice to three
        score = torch.rand(rows, free, generator=generator)
        if depth is not None:
            place = (torch.as_tensor(depth) * (free - 1)).round().long().expand(rows)
            score[torch.arange(rows), place] = 2.0
        chosen = score.topk(self.facts).indices  # best first, which is no order of places
        return chosen + 2 * chosen.argsort(1).argsort(1)

    def _check(self, length: int, split: str, hops: int | None, depth) -> None:
        if split not in SPLITS:
            raise ValueError(f"no split {split!r}; there are {' and '.join(SPLITS)}")
        if length < 3 * self.facts:
            raise ValueError(f"{self.facts} facts need {3 * self.facts} tokens, not {length}")
        if hops is not None and not 1 <= hops <= self.max_hops:
            raise ValueError(f"hops = {hops} must be from 1 to max_hops = {self.max_hops}")
        depths = torch.as_tensor(0.0 if depth is None else depth)
        if not bool(((depths >= 0) & (depths <= 1)).all()):
            raise ValueError(f"depth = {depth} must be from 0 (the text's begin) to 1 (its end)")

"""Is what a model writes like its domain? Counted unit by unit: has it the form, and is it true?

    domain            unit    form                             true
    python            line    it parses, by itself             -
    english           word    the training text has it         -
    arithmetic        line    a problem of the three kinds     every step of it
    records           line    order (JSON, CSV) or log line    total = quantity · price (orders)
    spanish, german   word    the training text has it         -

Form is no more than that: the measure cannot tell whether a sentence means anything, nor whether a
line of Python follows from the one before it.
"""

from __future__ import annotations

import ast
import itertools
import json
import re
import warnings
from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache

from ..data import arithmetic, records
from ..data.text import documents

WORD = re.compile(r"[^\W\d_]+")
SUM = re.compile(r"(\d+) \+ (\d+): .+ Answer \d+")
PRODUCT = re.compile(r"(\d+) \* (\d+)(?: = [\d *+]+)+")
COMPARISON = re.compile(r"(\d+) [<>=] (\d+) because .+")
PROBLEMS = {
    SUM: arithmetic.addition,
    PRODUCT: arithmetic.multiplication,
    COMPARISON: arithmetic.comparison,
}
LOG = re.compile(
    r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d (?:INFO|WARNING|ERROR) \w+\[\d+\]: [a-z ]+ "
    r"host=10\.0\.\d+\.\d+ ms=\d+"
)
FIELDS = records.CSV_HEADER.split(",")
TRAINING_DOCUMENTS = 4000  # from which known words are collected


@dataclass(frozen=True)
class Marks:
    """Counts over units; ``checked`` are those of which it can be said whether they are true."""

    units: int = 0
    form: int = 0
    checked: int = 0
    true: int = 0

    def __add__(self, other: Marks) -> Marks:
        sums = zip(vars(self).values(), vars(other).values(), strict=True)
        return Marks(*(a + b for a, b in sums))

    @property
    def well_formed(self) -> float:
        """Share of units in form; nan if there were none."""
        return self.form / self.units if self.units else float("nan")

    @property
    def right(self) -> float:
        """Share of what is true among all that could be checked; nan if nothing could."""
        return self.true / self.checked if self.checked else float("nan")


def judge(domain: str, text: str) -> Marks:
    """Marks for the whole units of a text; the first and the last may be cut off, and are left out.

    ValueError for an unknown domain.
    """
    if domain in ("english", "spanish", "german"):
        words = WORD.findall(text)[1:-1]
        known = known_words(domain)
        return Marks(len(words), sum(word in known for word in words))
    if domain not in _LINES:
        raise ValueError(f"no domain {domain!r}; there are {', '.join(_LINES)} and the languages")
    lines = [line for line in text.split("\n")[1:-1] if line.strip()]
    verdicts = map(_LINES[domain], lines)
    return sum((_marks(*verdict) for verdict in verdicts), Marks())


def _marks(form: bool, sense: bool | None) -> Marks:
    return Marks(1, int(form), int(sense is not None), int(bool(sense)))


@lru_cache(maxsize=3)
def known_words(domain: str) -> frozenset[str]:
    """The words of the training text."""
    texts: Iterable[str] = itertools.islice(documents(domain, "train"), TRAINING_DOCUMENTS)
    return frozenset(word for text in texts for word in WORD.findall(text))


def python_line(line: str) -> tuple[bool, bool | None]:
    """Does the line parse by itself? What it opens gets a body, what it continues a beginning."""
    line = line.strip()
    if line.startswith(("elif ", "else:")):
        line = f"if x: pass\n{line}"
    if line.startswith(("except", "finally:")):
        line = f"try: pass\n{line}"
    if line.startswith("@"):
        line = f"{line}\ndef f(): pass"
    body = " pass" if line.endswith(":") else ""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of escapes in strings that are none
        try:
            ast.parse(line + body)
        except (SyntaxError, ValueError):
            return False, None
    return True, None


def arithmetic_line(line: str) -> tuple[bool, bool | None]:
    for form, write in PROBLEMS.items():
        if found := form.fullmatch(line):
            return True, line == write(*map(int, found.groups()))
    return False, None


def record_line(line: str) -> tuple[bool, bool | None]:
    if line == records.CSV_HEADER or LOG.fullmatch(line):
        return True, None
    if line.startswith("{"):
        try:
            order = json.loads(line)
        except ValueError:
            return False, None
    else:
        order = dict(zip(FIELDS, line.split(","), strict=False))
    if list(order) != FIELDS or line.count(",") != len(FIELDS) - 1:
        return False, None
    try:
        quantity, price, total = (int(order[name]) for name in FIELDS[-3:])
    except (TypeError, ValueError):
        return False, None
    return True, total == quantity * price


_LINES = {"python": python_line, "arithmetic": arithmetic_line, "records": record_line}

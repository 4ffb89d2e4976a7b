"""German sentences from a small grammar.

Rules kept: three genders, four cases, weak, mixed and strong adjective endings; n-declension
(den Jungen); dative plural in -n; weak, strong and mixed verbs by six persons in present,
preterite, perfect (haben or sein) and future; the verb second in main clauses and last in
subordinate ones; contractions such as im, zum, ins.
"""

import re
from dataclasses import dataclass, field
from functools import lru_cache
from random import Random

from minillama4.data.languages.german_words import (
    ACTIONS,
    ADJECTIVES,
    AUXILIARY,
    DATIVE_VERBS,
    GIVING,
    INFLECTED_STEM,
    MOTIONS,
    N_DECLENSION,
    NOUNS,
    PRINCIPAL_PARTS,
    PRONOUNS,
    TENSES,
    TIMES,
    VERBS,
    WITH_SEIN,
)

# Endings by case; the columns are masculine, feminine, neuter, plural.
CASES = ("nominative", "accusative", "dative", "genitive")
DEFINITE = {case: row.split() for case, row in zip(
    CASES, ["der die das die", "den die das die", "dem der dem den", "des der des der"],
    strict=True)}  # fmt: skip
DIESER = {case: row.split() for case, row in zip(
    CASES, ["er e es e", "en e es e", "em er em en", "es er es er"], strict=True)}  # fmt: skip
WEAK = {"nominative": ["e", "e", "e", "en"], "accusative": ["en", "e", "e", "en"]}
MIXED = {"nominative": ["er", "e", "es", "en"], "accusative": ["en", "e", "es", "en"]}
CONTRACTIONS = {
    "in dem": "im", "in das": "ins", "an dem": "am", "zu dem": "zum", "zu der": "zur",
    "von dem": "vom", "bei dem": "beim",
}  # fmt: skip


@dataclass(frozen=True)
class Noun:
    """A dictionary entry: gender is the column 0 masculine, 1 feminine, 2 neuter."""

    singular: str
    plural: str
    gender: int

    def form(self, case: str, is_plural: bool) -> str:
        """The noun in a case and number: Hund -> Hundes, Kinder -> Kindern, Junge -> Jungen."""
        if is_plural:
            needs_n = case == "dative" and self.plural[-1] not in "ns"
            return self.plural + "n" * needs_n
        if self.singular in N_DECLENSION and case != "nominative":
            return self.plural  # den Jungen, dem Studenten: the same form as the plural
        if case == "genitive" and self.gender != 1:
            one_syllable = len(re.findall("[aeiouyäöü]+", self.singular.lower())) == 1
            return self.singular + ("es" if one_syllable else "s")
        return self.singular


@lru_cache
def nouns(kind: str) -> list[Noun]:
    """The nouns of a kind."""
    entries = (entry.split() for entry in NOUNS[kind].split(","))
    return [Noun(singular, many, ["der", "die", "das"].index(article))
            for article, singular, many in entries]  # fmt: skip


def adjective_ending(family: str, case: str, column: int) -> str:
    """Ending after "definite" (weak), "ein" (mixed) or "none" (strong, as dieser declines)."""
    if family == "none":
        return DIESER[case][column]
    table = WEAK if family == "definite" else MIXED
    return table[case][column] if case in table else "en"


def determiner(rng: Random, case: str, column: int) -> tuple[str, str]:
    """(word, family of adjective endings that follows it); in the plural "ein" has no form."""
    words = "der der der ein ein dieser mein sein ihr unser"
    word = rng.choice((words + " kein" * (case == "accusative")).split())
    if word == "der":
        return DEFINITE[case][column], "definite"
    if word == "dieser":
        return "dies" + DIESER[case][column], "definite"
    if word == "ein" and column == 3:
        return "", "none"
    bare = (case == "nominative" and column in (0, 2)) or (case == "accusative" and column == 2)
    return word + ("" if bare else DIESER[case][column]), "ein"


def noun_phrase(rng: Random, kind: str, case: str, attribute: bool = True) -> tuple[str, int]:
    """(words, person): determiner, perhaps adjective, noun, perhaps a genitive; person 2 or 5."""
    noun = rng.choice(nouns(kind))
    is_plural = rng.random() < 0.3
    column = 3 if is_plural else noun.gender
    article, family = determiner(rng, case, column)
    words = [article] if article else []
    if rng.random() < 0.35:
        adjective = rng.choice(ADJECTIVES[kind].split())
        stem = INFLECTED_STEM.get(adjective, adjective)
        words.append(stem + adjective_ending(family, case, column))
    words.append(noun.form(case, is_plural))
    if attribute and family == "definite" and rng.random() < 0.15:
        owner = rng.choice(nouns("person"))
        words += [DEFINITE["genitive"][owner.gender], owner.form("genitive", False)]
    return " ".join(words), 5 if is_plural else 2


def with_preposition(preposition: str, phrase: str) -> str:
    """Preposition before a phrase, contracted with its article: in dem Haus -> im Haus."""
    words = f"{preposition} {phrase}"
    for long, short in CONTRACTIONS.items():
        if words.startswith(long + " "):
            return short + words[len(long) :]
    return words


def _stem(verb: str) -> str:
    return verb[:-2] if verb.endswith("en") else verb[:-1]


def _linking_e(stem: str) -> str:
    """The e that makes an ending speakable: arbeit-e-t, öffn-e-t, but lern-t."""
    return "e" if re.search("(?:[dt]|ch[mn]|[^aeiouäöülrhmn][mn])$", stem) else ""


def _present(verb: str, person: int) -> str:
    stem = _stem(verb)
    third = PRINCIPAL_PARTS[verb][1] if verb in PRINCIPAL_PARTS else stem + _linking_e(stem) + "t"
    second = third[:-1] + ("t" if third[-2] in "sßzx" else "st")
    return [stem + "e", second, third, verb, stem + _linking_e(stem) + "t", verb][person]


def _preterite(verb: str, person: int) -> str:
    stem = _stem(verb)
    base = PRINCIPAL_PARTS[verb][2] if verb in PRINCIPAL_PARTS else stem + _linking_e(stem) + "te"
    if base.endswith("e"):
        return base + ["", "st", "", "n", "t", "n"][person]
    second = "est" if base[-1] in "dtsß" else "st"
    return base + ["", second, "", "en", _linking_e(base) + "t", "en"][person]


def finite(verb: str, tense: str, person: int) -> str:
    """Present or preterite form; `person` 0..5 is ich, du, er, wir, ihr, sie."""
    if (verb, tense) in AUXILIARY:
        return AUXILIARY[verb, tense].split()[person]
    return _present(verb, person) if tense == "present" else _preterite(verb, person)


def participle(verb: str) -> str:
    """Past participle: gekauft, gefunden, besucht, repariert."""
    if verb == "sein":
        return "gewesen"
    if verb in PRINCIPAL_PARTS:
        return PRINCIPAL_PARTS[verb][3]
    stem = _stem(verb)
    bare = verb.startswith(("be", "ver", "er")) or verb.endswith("ieren")
    return ("" if bare else "ge") + stem + _linking_e(stem) + "t"


@dataclass
class Clause:
    """A clause before its word order is chosen."""

    subject: str
    person: int
    verb: str
    tense: str
    middle: list[str] = field(default_factory=list)  # objects and places, in order

    def verbs(self) -> tuple[str, str]:
        """(finite verb, what stands at the end of the clause)."""
        if self.tense == "future":
            return finite("werden", "present", self.person), self.verb
        if self.tense == "perfect":
            helper = "sein" if self.verb in WITH_SEIN | {"sein"} else "haben"
            return finite(helper, "present", self.person), participle(self.verb)
        return finite(self.verb, self.tense, self.person), ""

    def main(self, front: str = "") -> str:
        """Verb second: after the subject, or after `front` with the subject behind the verb."""
        first, last = self.verbs()
        opening = [front, first, self.subject] if front else [self.subject, first]
        return " ".join(word for word in [*opening, *self.middle, last] if word)

    def subordinate(self, conjunction: str) -> str:
        """Verb last: weil das Kind den Hund gesehen hat."""
        first, last = self.verbs()
        words = [conjunction, self.subject, *self.middle, last, first]
        return " ".join(word for word in words if word)


def _subject(rng: Random, kind: str = "person") -> tuple[str, int]:
    draw = rng.random()
    if kind == "person" and draw < 0.25:
        person = rng.choice(list(PRONOUNS))
        return PRONOUNS[person], person
    phrase, person = noun_phrase(rng, kind, "nominative")
    if draw > 0.9:
        return f"{phrase} und {noun_phrase(rng, kind, 'nominative', attribute=False)[0]}", 5
    return phrase, person


def _place(rng: Random) -> str:
    preposition = rng.choice(["in", "in", "in", "bei", "vor", "hinter", "neben"])
    return with_preposition(preposition, noun_phrase(rng, "place", "dative", attribute=False)[0])


def _doing(rng: Random, tense: str) -> Clause:
    kind = rng.choice(list(VERBS))
    middle = [noun_phrase(rng, kind, "accusative")[0]]
    if rng.random() < 0.3:
        middle.append(_place(rng))
    return Clause(*_subject(rng), rng.choice(VERBS[kind].split()), tense, middle)


def _giving(rng: Random, tense: str) -> Clause:
    receiver, _ = noun_phrase(rng, "person", "dative", attribute=False)
    if rng.random() < 0.3:
        return Clause(*_subject(rng), rng.choice(DATIVE_VERBS), tense, [receiver])
    gift, _ = noun_phrase(rng, rng.choice(["food", "text", "thing"]), "accusative")
    return Clause(*_subject(rng), rng.choice(GIVING), tense, [receiver, gift])


def _being(rng: Random, tense: str) -> Clause:
    kind = rng.choice(list(ADJECTIVES))
    adjective = rng.choice(ADJECTIVES[kind].split())  # a predicate adjective takes no ending
    degree = rng.choice(["", "", "sehr", "immer", "noch"])
    return Clause(*_subject(rng, kind), "sein", tense, [f"{degree} {adjective}".strip()])


def _acting(rng: Random, tense: str) -> Clause:
    if rng.random() < 0.4:
        goal, _ = noun_phrase(rng, "place", "accusative", attribute=False)
        middle, verb = [with_preposition("in", goal)], rng.choice(MOTIONS)
    else:
        middle, verb = [_place(rng)], rng.choice(ACTIONS.split())
    if rng.random() < 0.3:
        middle.insert(0, "mit " + noun_phrase(rng, "person", "dative", attribute=False)[0])
    return Clause(*_subject(rng), verb, tense, middle)


def _clause(rng: Random, tense: str) -> Clause:
    return rng.choice([_doing, _doing, _giving, _being, _acting])(rng, tense)


def sentence(rng: Random) -> str:
    """One German sentence with its capital and stop, drawn with `rng`."""
    tense = rng.choice(TENSES)
    clause = _clause(rng, tense)
    front = rng.choice(TIMES[tense]) if rng.random() < 0.4 else ""
    words = clause.main(front)
    if rng.random() < 0.25:
        conjunction = rng.choice(["weil", "obwohl", "wenn" if tense == "present" else "weil"])
        words += ", " + _clause(rng, tense).subordinate(conjunction)
    return words[0].upper() + words[1:] + "."

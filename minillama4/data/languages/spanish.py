"""Spanish sentences from a small grammar.

Rules kept: gender and number of article, noun and adjective; six persons in four tenses with
spelling changes (busqué, crucé, conozco) and stem changes (cierra, encuentra); a + el = al,
de + el = del; the personal *a* (veo a la niña); *gustar*, whose subject is the thing liked;
*el agua* with feminine adjectives; *e* for *y* before an i-sound.
"""

import re
from dataclasses import dataclass
from functools import lru_cache
from random import Random

from minillama4.data.languages.spanish_words import (
    ACTIONS,
    ADJECTIVES,
    ENDINGS,
    FUTURE,
    FUTURE_STEM,
    IRREGULAR,
    NOUNS,
    PRONOUNS,
    STATES,
    STRESSED_A,
    STRESSED_STEM,
    TIMES,
    VERBS,
)


@dataclass(frozen=True)
class Phrase:
    """A noun phrase: its words, gender ("m", "f"), whether plural, and the kind of its noun."""

    text: str
    gender: str
    plural: bool
    kind: str

    @property
    def person(self) -> int:
        """Index into a conjugation: 2 (él, ella) or 5 (ellos, ellas)."""
        return 5 if self.plural else 2


@lru_cache
def noun_list(kind: str) -> list[tuple[str, str]]:
    """Nouns of a kind as (singular, gender)."""
    words = NOUNS[kind].split()
    pairs = zip(words[::2], words[1::2], strict=True)
    return [(noun, "m" if article == "el" else "f") for article, noun in pairs]


def plural(word: str) -> str:
    """Plural of a noun or adjective: casa -> casas, pez -> peces, canción -> canciones."""
    if word == "joven":
        return "jóvenes"
    if word == "paraguas":
        return word
    if word[-1] in "aeioué":
        return word + "s"
    if word.endswith("z"):
        return word[:-1] + "ces"
    if word[-1] in "ns":  # the accent of a stressed last syllable is no longer needed
        word = word[:-2] + word[-2].translate(str.maketrans("áéíóú", "aeiou")) + word[-1]
    return word + "es"


def inflect(adjective: str, gender: str, is_plural: bool) -> str:
    """Adjective in the gender and number of its noun: rojo -> rojas, azul -> azules."""
    if gender == "f" and adjective.endswith("o"):
        adjective = adjective[:-1] + "a"
    return plural(adjective) if is_plural else adjective


def conjugate(verb: str, tense: str, person: int) -> str:
    """Finite form of `verb`; `person` 0..5 is yo, tú, él, nosotros, vosotros, ellos."""
    if (verb, tense) in IRREGULAR:
        return IRREGULAR[verb, tense].split()[person]
    if tense == "future":
        return FUTURE_STEM.get(verb, verb) + FUTURE[person]
    stem, ending = verb[:-2], ENDINGS[tense][verb[-2:]].split()[person]
    if tense == "present" and person in (0, 1, 2, 5):
        stem = STRESSED_STEM.get(verb, stem)
    return _spell(stem, ending, verb)


def _spell(stem: str, ending: str, verb: str) -> str:
    """Join stem and ending so that the consonant keeps its sound: busc + é -> busqué."""
    if ending == "é":
        stem = re.sub("c$", "qu", re.sub("g$", "gu", re.sub("z$", "c", stem)))
    if ending == "o" and verb.endswith("ger"):
        stem = stem[:-1] + "j"
    if ending == "o" and re.search("[aeo]cer$", verb):
        stem = stem[:-1] + "zc"
    return stem + ending


def determiner(rng: Random, gender: str, is_plural: bool) -> str:
    """An article, demonstrative or possessive that agrees."""
    column = 2 * is_plural + (gender == "f")
    table = ["el la los las"] * 4 + ["un una unos unas"] * 2
    table += ["este esta estos estas", "mi mi mis mis", "su su sus sus"]
    table += ["nuestro nuestra nuestros nuestras", "aquel aquella aquellos aquellas"]
    return rng.choice(table).split()[column]


def noun_phrase(rng: Random, kind: str, definite: bool = False) -> Phrase:
    """Determiner, noun and sometimes an adjective, in agreement."""
    noun, gender = rng.choice(noun_list(kind))
    is_plural = rng.random() < 0.3 and noun != "agua"
    if definite:
        article = ["el", "la", "los", "las"][2 * is_plural + (gender == "f")]
    else:
        article = determiner(rng, gender, is_plural)
    if noun in STRESSED_A and not is_plural:
        article = {"la": "el", "una": "un"}.get(article, article)
    words = [article, plural(noun) if is_plural else noun]
    if rng.random() < 0.35:
        words.append(inflect(rng.choice(ADJECTIVES[kind].split()), gender, is_plural))
    return Phrase(" ".join(words), gender, is_plural, kind)


def with_preposition(preposition: str, phrase: str) -> str:
    """Preposition before a phrase, contracted where Spanish does: a el -> al, de el -> del."""
    if preposition in ("a", "de") and phrase.startswith("el "):
        return preposition + phrase[1:]
    return f"{preposition} {phrase}"


def _subject(rng: Random, kind: str = "person") -> tuple[str, int, Phrase]:
    """(words, person, phrase): a phrase, two joined by *y*, or a pronoun, often left out."""
    first = noun_phrase(rng, kind)
    draw = rng.random()
    if draw < 0.12:
        second = noun_phrase(rng, kind)
        gender = "f" if first.gender == second.gender == "f" else "m"
        return f"{first.text} y {second.text}", 5, Phrase("", gender, True, kind)
    if draw < 0.35 and kind == "person":
        person = rng.choice(list(PRONOUNS))
        pronoun = rng.choice(PRONOUNS[person])
        gender = "f" if pronoun.endswith("as") else "m"
        spoken = pronoun if rng.random() < 0.4 or gender == "f" else ""
        return spoken, person, Phrase("", gender, person > 2, kind)
    if draw < 0.45:
        place = with_preposition("de", noun_phrase(rng, "place").text)
        return f"{first.text} {place}", first.person, first
    return first.text, first.person, first


def _transitive(rng: Random, tense: str) -> str:
    subject, person, _ = _subject(rng)
    kind = rng.choice(list(VERBS))
    target = noun_phrase(rng, kind).text
    if kind == "person":
        target = with_preposition("a", target)
    place = f" en {noun_phrase(rng, 'place').text}" if rng.random() < 0.3 else ""
    negation = "no " if rng.random() < 0.15 else ""
    verb = conjugate(rng.choice(VERBS[kind].split()), tense, person)
    return f"{subject} {negation}{verb} {target}{place}"


def _description(rng: Random, tense: str) -> str:
    tense = {"preterite": "imperfect"}.get(tense, tense)  # lasting states are told in the imperfect
    kind = rng.choice(list(ADJECTIVES))
    subject, person, phrase = _subject(rng, kind)
    if kind in ("person", "animal") and rng.random() < 0.5:
        adjective, verb = rng.choice(STATES.split()), "estar"
    else:
        adjective, verb = rng.choice(ADJECTIVES[kind].split()), "ser"
    return f"{subject} {conjugate(verb, tense, person)} " + inflect(
        adjective, phrase.gender, phrase.plural
    )


def _action(rng: Random, tense: str) -> str:
    subject, person, _ = _subject(rng)
    place = noun_phrase(rng, "place").text
    if rng.random() < 0.4:
        return f"{subject} {conjugate('ir', tense, person)} {with_preposition('a', place)}"
    return f"{subject} {conjugate(rng.choice(ACTIONS.split()), tense, person)} en {place}"


def _liking(rng: Random, tense: str) -> str:
    person = noun_phrase(rng, "person")
    liked = noun_phrase(rng, rng.choice(["food", "animal", "text", "place"]), definite=True)
    tense = {"preterite": "imperfect"}.get(tense, tense)
    pronoun = "les" if person.plural else "le"
    verb = conjugate("gustar", tense, liked.person)
    return f"{with_preposition('a', person.text)} {pronoun} {verb} {liked.text}"


def _question(rng: Random) -> str:
    tense = rng.choice(["present", "imperfect", "preterite"])
    kind = rng.choice(["person", "animal", "thing"])
    phrase = noun_phrase(rng, kind)
    if rng.random() < 0.5:
        tense = "imperfect" if tense == "preterite" else tense
        return f"¿Dónde {conjugate('estar', tense, phrase.person)} {phrase.text}?"
    word, verb = rng.choice([("Quién", "buscar"), ("Cuándo", "comprar"), ("Por qué", "vender")])
    if kind == "person":
        verb, phrase = "buscar", Phrase(with_preposition("a", phrase.text), "m", False, kind)
    person = 2 if word == "Quién" else rng.choice([1, 4])
    return f"¿{word} {conjugate(verb, tense, person)} {phrase.text}?"


def _clause(rng: Random, tense: str) -> str:
    return rng.choice([_transitive, _transitive, _description, _action, _liking])(rng, tense)


def sentence(rng: Random) -> str:
    """One Spanish sentence with its capital and stop, drawn with `rng`."""
    if rng.random() < 0.08:
        return _question(rng)
    tense = rng.choice(list(TIMES))
    words = _clause(rng, tense).strip()
    if rng.random() < 0.35:
        words = f"{rng.choice(TIMES[tense])} {words}"
    if rng.random() < 0.2:
        lasting = tense in ("present", "imperfect")
        link = rng.choice(["porque", "pero", "y", "mientras" if lasting else "porque"])
        comma = "," if link == "pero" else ""
        words = f"{words}{comma} {link} {_clause(rng, tense).strip()}"
    words = re.sub(r"\by (?=h?[ií](?!e))", "e ", words)
    return words[0].upper() + words[1:] + "."

"""Text with domain labels: right by construction, never leaking, the same on every run."""

import itertools
import json
import re
from random import Random

import pytest
import torch

from minillama4.data import arithmetic
from minillama4.data.languages import german, spanish
from minillama4.data.records import CSV_HEADER
from minillama4.data.sources import prose, split_of
from minillama4.data.text import DOMAINS, Corpus, batches, documents
from minillama4.data.tokenizer import load_tokenizer

GENERATED = ("arithmetic", "records", "spanish", "german")


@pytest.fixture(scope="module")
def tokenizer():
    return load_tokenizer()


@pytest.fixture(scope="module")
def corpus(tokenizer):
    return Corpus.build(tokenizer, "train", tokens_per_domain=4000)


def some(domain, split, count=60, seed=0):
    return list(itertools.islice(documents(domain, split, seed), count))


# ---- documents ----


@pytest.mark.parametrize("domain", DOMAINS)
def test_documents_depend_on_the_seed_alone(domain):
    assert some(domain, "train", 5) == some(domain, "train", 5)
    assert some(domain, "train", 5) != some(domain, "train", 5, seed=1)


@pytest.mark.parametrize("arguments", [("klingon", "train"), ("python", "test")])
def test_unknown_names_are_named(arguments):
    with pytest.raises(ValueError, match=r"klingon|'test'"):
        documents(*arguments)


@pytest.mark.parametrize("domain", GENERATED)
def test_no_generated_line_is_in_both_splits(domain):
    units = {}
    for split in ("train", "validation"):
        text = "".join(some(domain, split, 400))
        separator = r"(?<=[.?]) |\n" if domain in ("spanish", "german") else "\n"
        units[split] = set(re.split(separator, text)) - {"", CSV_HEADER}
    assert len(units["validation"]) > 500
    assert not units["train"] & units["validation"]


def test_a_sum_and_its_mirror_image_share_a_split():
    for text in "".join(some("arithmetic", "validation", 100)).splitlines():
        a, sign, b = re.match(r"(\d+) (\S) (\d+)", text).groups()
        kind = {"+": "addition", "*": "multiplication"}.get(sign, "comparison")
        a, b = sorted((int(a), int(b)))
        assert split_of(f"{kind} {a} {b}") == "validation"


def test_no_file_is_in_both_splits_and_no_prose_leaks_from_python():
    train, held_out = set(documents("python", "train")), set(documents("python", "validation"))
    assert len(train) > 100 and len(held_out) > 10 and not train & held_out
    seen = " ".join(" ".join(train).split())
    seen += " ".join(" ".join(documents("english", "train")).split())
    paragraphs = [" ".join(p.split()) for d in documents("english", "validation") for p in prose(d)]
    leaks = [p for p in paragraphs if p in seen]
    assert len(paragraphs) > 100
    assert not leaks


def test_no_english_of_the_training_stands_in_held_out_files():
    held_out = " ".join(" ".join(documents("python", "validation")).split())
    train = "\n\n".join(documents("english", "train")).split("\n\n")
    paragraphs = [" ".join(paragraph.split()) for paragraph in train]
    assert len(paragraphs) > 1000 and len(held_out) > 100_000
    assert not [paragraph for paragraph in paragraphs if paragraph and paragraph in held_out]


# ---- arithmetic and records ----


def test_arithmetic_is_right():
    rng = Random(0)
    for _ in range(3000):
        _, text = arithmetic.problem(rng)
        if "Answer" in text:
            a, b, answer = map(int, re.match(r"(\d+) \+ (\d+): .* Answer (\d+)$", text).groups())
            written = "".join(reversed(re.findall(r"write (\d)", text)))
            assert a + b == answer == int(written)
            for x, y, carry, total in re.findall(r"(\d)\+(\d)(\+1)?=(\d+)", text):
                assert int(x) + int(y) + bool(carry) == int(total)
        elif "because" in text:
            a, sign, b = text.split()[:3]
            assert {"<": int(a) < int(b), ">": int(a) > int(b), "=": a == b}[sign]
        else:
            sides = [eval(side) for side in text.split(" = ")]  # digits and + * of our own making
            assert len(set(sides)) == 1


def test_carries_by_hand():
    assert arithmetic.addition(478, 356) == (
        "478 + 356: 8+6=14 write 4 carry 1, 7+5+1=13 write 3 carry 1, 4+3+1=8 write 8. Answer 834"
    )
    assert arithmetic.multiplication(47, 36) == "47 * 36 = 47*30 + 47*6 = 1410 + 282 = 1692"
    assert arithmetic.comparison(478, 512) == "478 < 512 because 4 < 5 in the hundreds"


def test_records_agree_with_themselves():
    orders = 0
    for text in some("records", "train", 200):
        lines = text.splitlines()
        if lines[0] == CSV_HEADER:
            keys = CSV_HEADER.split(",")
            rows = [dict(zip(keys, line.split(","), strict=True)) for line in lines[1:]]
        elif lines[0].startswith("{"):
            rows = [json.loads(line) for line in lines]
        else:
            assert lines == sorted(lines, key=lambda line: line[:19])
            continue
        for row in rows:
            assert int(row["quantity"]) * int(row["price"]) == int(row["total"])
        identifiers = [int(row["id"]) for row in rows]
        assert identifiers == sorted(set(identifiers))
        orders += len(rows)
    assert orders > 300


# ---- grammar ----

SPANISH_DETERMINERS = {
    ("m", False): "el un este nuestro aquel", ("f", False): "la una esta nuestra aquella",
    ("m", True): "los unos estos nuestros aquellos", ("f", True): "las unas estas nuestras",
}  # fmt: skip


def test_spanish_determiners_and_adjectives_agree():
    nouns = {}
    for kind in spanish.NOUNS:
        for noun, gender in spanish.noun_list(kind):
            nouns[noun], nouns[spanish.plural(noun)] = (gender, False), (gender, True)
    column = {w: key for key, ws in SPANISH_DETERMINERS.items() for w in ws.split()}
    exempt = {"paraguas", "agua", "águila", "cocina"}  # same plural; el agua; also a verb
    pairs = 0
    for text in some("spanish", "train", 300):
        words = re.findall(r"\w+", text.lower())
        for before, noun in itertools.pairwise(words):
            if before in column and noun in nouns and noun not in exempt:
                assert column[before] == nouns[noun], f"{before} {noun} in {text}"
                pairs += 1
    assert pairs > 1000


def test_spanish_contracts_and_marks_persons():
    text = "".join(some("spanish", "train", 500)).lower()
    assert " al " in text and " del " in text and "el agua" in text
    assert not re.search(r"\b(a el|de el|la agua|la águila|una águila|y i\w+)\b", text)
    sentences = re.split(r"(?<=[.?])\s", text)
    liking = [s for s in sentences if re.search(r"\bles? gust", s)]
    assert liking
    for sentence in liking:
        verb, article = re.search(r"gust(\w+) (\w+)", sentence).groups()
        assert verb.endswith("n") == (article in ("los", "las")), sentence


@pytest.mark.parametrize(
    ("verb", "tense", "forms"),
    [
        ("hablar", "present", "hablo hablas habla hablamos habláis hablan"),
        ("buscar", "preterite", "busqué buscaste buscó buscamos buscasteis buscaron"),
        ("vivir", "imperfect", "vivía vivías vivía vivíamos vivíais vivían"),
        ("tener", "future", "tendré tendrás tendrá tendremos tendréis tendrán"),
        ("conocer", "present", "conozco conoces conoce conocemos conocéis conocen"),
        (
            "encontrar",
            "present",
            "encuentro encuentras encuentra encontramos encontráis encuentran",
        ),
    ],
)
def test_spanish_conjugation(verb, tense, forms):
    assert [spanish.conjugate(verb, tense, person) for person in range(6)] == forms.split()


@pytest.mark.parametrize(
    ("verb", "tense", "forms"),
    [
        ("arbeiten", "present", "arbeite arbeitest arbeitet arbeiten arbeitet arbeiten"),
        ("lesen", "present", "lese liest liest lesen lest lesen"),
        (
            "zeichnen",
            "preterite",
            "zeichnete zeichnetest zeichnete zeichneten zeichnetet zeichneten",
        ),
        ("finden", "preterite", "fand fandest fand fanden fandet fanden"),
        ("bringen", "preterite", "brachte brachtest brachte brachten brachtet brachten"),
        ("wandern", "present", "wandere wanderst wandert wandern wandert wandern"),
    ],
)
def test_german_conjugation(verb, tense, forms):
    assert [german.finite(verb, tense, person) for person in range(6)] == forms.split()


def test_german_cases_of_nouns():
    forms = {noun.singular: noun for kind in german.NOUNS for noun in german.nouns(kind)}
    assert forms["Hund"].form("genitive", False) == "Hundes"
    assert forms["Kind"].form("dative", True) == "Kindern"
    assert forms["Bär"].form("accusative", False) == "Bären"
    assert forms["Auto"].form("dative", True) == "Autos"
    assert german.with_preposition("in", "dem Haus") == "im Haus"
    assert german.with_preposition("in", "den Garten") == "in den Garten"


def test_german_word_order():
    clause = german.Clause("das Kind", 2, "sehen", "perfect", ["den Hund"])
    assert clause.main() == "das Kind hat den Hund gesehen"
    assert clause.main("gestern") == "gestern hat das Kind den Hund gesehen"
    assert clause.subordinate("weil") == "weil das Kind den Hund gesehen hat"


def test_german_phrases_decline():
    """Every accusative masculine with der, and every dative plural, as the tables of Duden say."""
    rng, masculine, plurals = Random(0), 0, 0
    for _ in range(3000):
        words = german.noun_phrase(rng, "animal", "accusative", attribute=False)[0].split()
        if words[0] in ("den", "einen", "keinen"):
            masculine += 1
            assert all(adjective.endswith("en") for adjective in words[1:-1]), words
        words, person = german.noun_phrase(rng, "person", "dative", attribute=False)
        if person == 5:
            plurals += 1
            assert all(w.endswith("n") for w in words.split()[:-1]), words
            assert words.endswith(("n", "s")), words
    assert masculine > 300 and plurals > 300


# ---- corpus ----


def test_every_token_has_the_label_of_its_domain(corpus, tokenizer):
    batch = corpus.batch(step=3, batch=12, length=50, pieces=2)
    assert batch.tokens.shape == batch.domains.shape == (12, 51)
    assert batch.tokens.dtype == batch.domains.dtype == torch.int64
    for row, labels in zip(batch.tokens, batch.domains, strict=True):
        for part, names in zip(row.tensor_split(2), labels.tensor_split(2), strict=True):
            assert part[0] == tokenizer.begin and names.unique().numel() == 1
            ids, where = part[1:].tolist(), corpus.tokens[DOMAINS[names[0]]].tolist()
            assert any(where[i : i + len(ids)] == ids for i in range(len(where)))


def test_domains_come_equally_often(corpus):
    labels = corpus.batch(step=0, batch=12, length=8).domains[:, 0]
    assert labels.bincount(minlength=len(DOMAINS)).tolist() == [2] * 6


def test_a_batch_depends_on_seed_and_step_alone(corpus, tokenizer):
    again = Corpus.build(tokenizer, "train", tokens_per_domain=4000)
    first, second = corpus.batch(7, 4, 32), again.batch(7, 4, 32)
    assert torch.equal(first.tokens, second.tokens)
    assert not torch.equal(first.tokens, corpus.batch(8, 4, 32).tokens)
    assert not torch.equal(first.tokens, corpus.batch(7, 4, 32, seed=1).tokens)


def test_a_resumed_stream_goes_on_where_it_stopped(tokenizer):
    options = dict(domains=("arithmetic", "german"), tokens_per_domain=500)
    whole = list(itertools.islice(batches(tokenizer, "train", 2, 16, **options), 5))
    rest = itertools.islice(batches(tokenizer, "train", 2, 16, first_step=3, **options), 2)
    for (tokens, domains), (resumed, labels) in zip(whole[3:], rest, strict=True):
        assert torch.equal(tokens, resumed) and torch.equal(domains, labels)
    assert set(whole[0][1].unique().tolist()) <= {DOMAINS.index(d) for d in options["domains"]}


@pytest.mark.parametrize("world", [1, 2, 3])
def test_processes_share_one_global_batch(corpus, world):
    whole = corpus.batch(5, 6, 20, pieces=2)
    for rank in range(world):
        part = corpus.batch(5, 6, 20, pieces=2, rank=rank, world=world)
        assert torch.equal(part.tokens, whole.tokens[rank::world])
        assert torch.equal(part.domains, whole.domains[rank::world])


def test_validation_sees_every_token_once(corpus):
    targets = {number: [] for number in range(len(DOMAINS))}
    for batch in corpus.validation_batches(batch=7, length=100):
        (number,) = batch.domains.unique().tolist()
        targets[number].append(batch.tokens[:, 1:].flatten())
    for number, parts in targets.items():
        assert torch.equal(torch.cat(parts), corpus.tokens[DOMAINS[number]].long())  # 4000 = 40·100


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (dict(batch=3, length=8, world=2), "does not divide"),
        (dict(batch=2, length=8, rank=2, world=2), "rank 2"),
        (dict(batch=2, length=9000), "too few"),
        (dict(batch=2, length=8, pieces=5), "pieces"),
        (dict(batch=0, length=8), "at least 1"),
    ],
)
def test_impossible_batches_say_why(corpus, arguments, message):
    with pytest.raises(ValueError, match=message):
        corpus.batch(0, **arguments)

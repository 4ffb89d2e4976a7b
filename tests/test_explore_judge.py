"""Form and truth of written text: what is right passes, and each kind of mistake is seen."""

import itertools
import json
import math
from random import Random

import pytest

from minillama4.data import arithmetic, records
from minillama4.data.text import DOMAINS, documents
from minillama4.explore import judge as judging
from minillama4.explore.judge import Marks, judge


@pytest.mark.parametrize("domain", DOMAINS)
def test_the_training_text_has_the_form_and_is_true(domain):
    marks = Marks()
    for text in itertools.islice(documents(domain, "train"), 10):
        marks += judge(domain, text)
    least = 0.6 if domain == "python" else 1  # lines of a longer statement do not parse alone
    assert marks.units > 20 and marks.well_formed >= least
    assert marks.checked == marks.true and bool(marks.checked) == (domain in CHECKED)


CHECKED = ("arithmetic", "records")


def test_the_first_and_last_line_or_word_may_be_cut_off():
    assert judge("arithmetic", "7 < 9\n3 < 4 because 3 < 4 in the units\n5 +") == Marks(1, 1, 1, 1)
    assert judge("arithmetic", "3 < 4 because 3 < 4 in the units") == Marks()
    assert judge("german", "xund der Hundx") == Marks(1, 1)


def test_marks_add_up_and_know_when_there_is_nothing():
    assert Marks(3, 2, 1, 1) + Marks(1, 1) == Marks(4, 3, 1, 1)
    assert Marks(4, 3, 2, 1).well_formed == 0.75 and Marks(4, 3, 2, 1).right == 0.5
    assert math.isnan(Marks().well_formed) and math.isnan(Marks(2, 1).right)


def test_an_unknown_domain_is_named():
    with pytest.raises(ValueError, match="no domain 'music'"):
        judge("music", "la la")


def test_every_written_problem_is_true():
    rng = Random(0)
    for _ in range(500):
        assert judging.arithmetic_line(arithmetic.problem(rng)[1]) == (True, True)


@pytest.mark.parametrize(
    "line, verdict",
    [
        (arithmetic.addition(478, 356).replace("Answer 834", "Answer 835"), (True, False)),
        (arithmetic.addition(478, 356).replace("4+3+1=8", "4+3+1=9"), (True, False)),
        ("47 * 36 = 47*30 + 47*6 = 1410 + 282 = 1693", (True, False)),
        ("7 > 9 because 7 > 9 in the units", (True, False)),
        ("7 < 9 because 7 > 9 in the units", (True, False)),
        ("478 + 356 = 834", (False, None)),
        ("47 * = 36", (False, None)),
        ("seven", (False, None)),
    ],
)
def test_wrong_problems(line, verdict):
    assert judging.arithmetic_line(line) == verdict


def order(**changes):
    base = dict(id=7, date="2024-01-01", customer="Ada", city="Oslo", item="bolt")
    return json.dumps({**base, **dict(quantity=3, price=5, total=15), **changes})


@pytest.mark.parametrize(
    "line, verdict",
    [
        (order(), (True, True)),
        (order(total=16), (True, False)),
        (order(total="much"), (False, None)),
        (order(extra=1), (False, None)),
        (order()[:-1], (False, None)),
        ("[1, 2]", (False, None)),
        ("{}", (False, None)),
        (records.CSV_HEADER, (True, None)),
        ("7,2024-01-01,Ada,Oslo,bolt,3,5,15", (True, True)),
        ("7,2024-01-01,Ada,Oslo,bolt,3,5,16", (True, False)),
        ("7,2024-01-01,Ada,Oslo,bolt,3,5", (False, None)),
        ("7,2024-01-01,Ada,Oslo,bolt,3,5,15,1", (False, None)),
        ("2024-01-01 10:00:00 INFO auth[7]: job finished host=10.0.1.2 ms=9", (True, None)),
        ("2024-01-01 10:00:00 INFO auth: job finished host=10.0.1.2 ms=9", (False, None)),
    ],
)
def test_records(line, verdict):
    assert judging.record_line(line) == verdict


@pytest.mark.parametrize(
    "line, form",
    [
        ("    x = f(1)", True),
        ("def f(x):", True),
        ("  else:", True),
        ("elif x:", True),
        ("except ValueError:", True),
        ("@property", True),
        ("# a comment", True),
        ("x = f(1", False),
        ("return of the king", False),
        ("x = \0", False),
    ],
)
def test_lines_of_python(line, form):
    assert judging.python_line(line) == (form, None)

"""The checks of Beyond the trained length: right answers pass, each known mistake is named."""

import itertools

import pytest
import torch

from minillama4.explore.exercises import beyond
from minillama4.explore.exercises.beyond import follow
from tests.exercises import assert_mistakes_are_named, assert_unfinished_is_told, each

CHECKS = [beyond.is_cut, beyond.answer, beyond.guess]


@each(CHECKS)
def test_every_known_mistake_gets_its_own_message(check):
    assert_mistakes_are_named(check, at_least=4)


@each(CHECKS)
def test_an_unfinished_answer_is_told(check):
    assert_unfinished_is_told(check)


def test_other_right_answers_pass():
    assert beyond.is_cut(lambda place, chunk: (place + 1) % chunk == 0).right
    assert beyond.is_cut(lambda place, chunk: place % chunk == chunk - 1).right

    def by_table(text, name, hops, names):
        fact = {a: b for a, b in itertools.pairwise(text) if max(a, b) < names}
        for _ in range(hops):
            name = fact[name]
        return name

    assert beyond.answer(by_table).right
    assert beyond.guess(lambda: 0.5).right


@pytest.mark.parametrize(
    ("check", "answer"),
    [
        (beyond.is_cut, lambda place, chunk: torch.zeros_like(place, dtype=torch.bool)),
        (beyond.is_cut, lambda place, chunk: (place + 1) % 7 == 0),
        (beyond.answer, lambda text, name, hops, names: name),
        (beyond.answer, lambda text, name, hops, names: follow(text, name, min(hops, 2), names)),
        (beyond.guess, lambda: 0.4),
        (beyond.guess, lambda: 50),
    ],
)
def test_other_wrong_answers_are_refused(check, answer):
    assert not check(answer).right

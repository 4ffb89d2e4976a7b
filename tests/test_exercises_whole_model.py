"""Checks of *The whole text model*: they pass what is right, and name what is wrong."""

import torch

from minillama4.explore.exercises import whole_model
from minillama4.serve.memory import kv_bytes
from tests.exercises import assert_mistakes_are_named, assert_unfinished_is_told, each

CHECKS = [whole_model.longest_text, whole_model.keep_top_p]


def right_length(config, room):
    """By halving: no formula."""
    low, high = 0, 2**40
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if kv_bytes(config, middle) <= room else (low, middle)
    return low


def right_set(p, limit):
    """Token by token."""
    kept, total = torch.zeros_like(p), 0.0
    for token in sorted(range(len(p)), key=lambda token: -p[token]):
        kept[token] = p[token]
        total += float(p[token])
        if total >= limit:
            break
    return kept / kept.sum()


def test_right_answers_pass():
    assert whole_model.longest_text(right_length).right
    assert whole_model.keep_top_p(right_set).right


@each(CHECKS)
def test_every_known_mistake_gets_its_own_message(check):
    assert_mistakes_are_named(check, at_least=9)


@each(CHECKS)
def test_an_unfinished_answer_is_told(check):
    assert_unfinished_is_told(check)


def test_a_set_that_may_be_empty_is_refused():
    def answer(p, limit):
        return right_set(p, limit) if limit > 1e-6 else torch.zeros_like(p)

    verdict = whole_model.keep_top_p(answer)
    assert not verdict.right and "must stay" in verdict.message

"""Checks of *Scout, Maverick, Behemoth*: what is right passes, each known mistake is named."""

import pytest

from minillama4.explore.exercises import scout_maverick_behemoth as exercises
from tests.exercises import assert_mistakes_are_named, each

CHECKS = (exercises.guard, exercises.half, exercises.outside)


def test_what_is_right_passes():
    assert exercises.guard(lambda: 12_001_097_216).right
    assert exercises.half(lambda: 89).right
    assert exercises.outside(right_answer).right


def right_answer(total, active, experts, top_k):
    return total - experts * (total - active) / (experts - top_k)


@each(CHECKS)
def test_every_known_mistake_gets_its_own_message(check):
    assert_mistakes_are_named(check, at_least=5)


@pytest.mark.parametrize("answer", [12_001_097_217 + 2, 12e9, -1])
def test_the_count_must_be_right_to_the_last_parameter(answer):
    assert not exercises.guard(lambda: answer).right


def test_the_known_models_come_out_as_published():
    """Mixtral 8x7B: 1.6 billion outside of its experts, 32 layers of 3 × 4096 × 14336 within."""
    total, active, experts, top_k = exercises._MIXTRAL
    expert = 32 * 3 * 4096 * 14_336
    assert total - active == (experts - top_k) * expert
    assert right_answer(*exercises._MIXTRAL) == total - 8 * expert

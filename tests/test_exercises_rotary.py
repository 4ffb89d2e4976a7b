"""Checks of *Rotary embeddings*: they pass what is right, and name what is wrong."""

import math

import torch

from minillama4.explore.exercises import rotary
from tests.exercises import assert_mistakes_are_named, each

CHECKS = [rotary.turn_vector, rotary.partners, rotary.slow_pairs]


def right_turn(x, p, theta):
    """With complex numbers, in double precision."""
    angle = p * theta ** (-torch.arange(0, len(x), 2, dtype=torch.float64) / len(x))
    pairs = torch.view_as_complex(x.double().view(-1, 2))
    return torch.view_as_real(pairs * torch.polar(torch.ones_like(angle), angle)).flatten()


def right_partners(turn, d):
    """Channel by channel."""
    found = []
    for channel in range(d):
        x = torch.zeros(d)
        x[channel] = 1
        (places,) = turn(x).nonzero(as_tuple=True)
        (other,) = set(places.tolist()) - {channel}
        found.append(other)
    return torch.tensor(found)


def right_count(d, theta, length):
    return sum(2 * math.pi * theta ** (2 * i / d) > length for i in range(d // 2))


def test_right_answers_pass():
    assert rotary.turn_vector(right_turn).right
    assert rotary.partners(right_partners).right
    assert rotary.slow_pairs(right_count).right


@each(CHECKS)
def test_every_known_mistake_gets_its_own_message(check):
    assert_mistakes_are_named(check, at_least=7)


def test_scouts_count_is_29():
    assert right_count(128, 5e5, 8192) == 29


def test_the_unknown_programs_turn_and_keep_lengths():
    for seed in range(5):
        turn = rotary.unknown(seed)
        x = torch.randn(3, len(turn.order), dtype=torch.float64)
        out = turn(x)
        assert out.shape == x.shape and not torch.allclose(out, x)
        torch.testing.assert_close(out.norm(dim=1), x.norm(dim=1))
        torch.testing.assert_close(turn(x[0]), out[0])


def test_unknown_0_is_pairs_and_1_is_halves():
    assert right_partners(rotary.unknown(0), 8).tolist() == [1, 0, 3, 2, 5, 4, 7, 6]
    assert right_partners(rotary.unknown(1), 16).tolist() == [*range(8, 16), *range(8)]


def test_an_answer_that_works_in_place_is_judged_on_fresh_inputs():
    def in_place(x, p, theta):
        x.copy_(right_turn(x, p, theta))
        return x

    assert rotary.turn_vector(in_place).right

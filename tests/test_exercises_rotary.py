"""Checks of *Rotary embeddings*: they pass what is right, and name what is wrong."""

import math
from unittest.mock import patch

import torch

import minillama4 as ml4
from minillama4.data.text import Corpus
from minillama4.explore.exercises import rotary
from minillama4.model import attention
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


def test_growing_frequencies_are_recognised_in_float32_too():
    def answer(x, p, theta):
        angle = p * (1 / theta) ** (-torch.arange(0, len(x), 2) / len(x))
        turn = torch.polar(torch.ones_like(angle), angle)
        return torch.view_as_real(torch.view_as_complex(x.view(-1, 2)) * turn).flatten()

    assert "not faster" in rotary.turn_vector(answer).message


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


@torch.no_grad()
def test_the_open_exercise_ends_as_its_answer_says():
    """The first layer's rotation is worth most; the six prices sum to about half of all."""
    model = ml4.load(ml4.shipped("mini_scout"), dtype=torch.float32)
    corpus = Corpus.build(ml4.load_tokenizer(), "validation", tokens_per_domain=1030)
    rows = torch.cat([batch.tokens for batch in corpus.validation_batches(4, 256)])

    def loss():
        logits = model(rows[:, :-1])
        return torch.nn.functional.cross_entropy(logits.mT, rows[:, 1:]).item()

    right, price = loss(), {}
    turning = [i for i, block in enumerate(model.blocks) if block.attention.rope]
    for layer in turning:
        model.blocks[layer].attention.rope = False
        price[layer] = loss() - right
        model.blocks[layer].attention.rope = True
    with patch.object(attention, "rotate", lambda x, turn: x):
        together = loss() - right
    first, *others = price.values()
    assert first > 2 * max(others) and min(others) > 0
    assert 0.3 < sum(price.values()) / together < 0.8

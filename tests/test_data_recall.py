"""Facts in noise: every answer can be looked up, no question can be guessed, no leak."""

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from minillama4.data.recall import IGNORED, SPLITS, Asked, Haystack

HAY = Haystack(max_hops=3, facts=6)


def facts_of(hay: Haystack, text: list[int]) -> dict[int, int]:
    """What a careful reader finds: a name behind a name is its answer."""
    pairs = itertools.pairwise(text)
    return {a: b for a, b in pairs if a < hay.names and b < hay.names}


def solve(hay: Haystack, asked: Asked, length: int) -> torch.Tensor:
    """The answers (b, q) by reading alone."""
    answers = []
    for row in asked.tokens.tolist():
        fact = facts_of(hay, row[:length])
        for mark, name in zip(row[length::2], row[length + 1 :: 2], strict=True):
            for _ in range(mark - hay.names - hay.noise + 1):
                name = fact[name]
            answers.append(name)
    return torch.tensor(answers).view_as(asked.hops)


@settings(max_examples=40, deadline=None)
@given(
    st.integers(18, 200), st.sampled_from(SPLITS), st.integers(0, 10**9), st.sampled_from([0, 7])
)
def test_every_question_can_be_answered_by_reading(length, split, step, seed):
    asked = HAY.batch(step, 5, length, seed, split=split)
    there = asked.targets[asked.targets != IGNORED].view_as(asked.hops)
    torch.testing.assert_close(there, solve(HAY, asked, length))
    for row in asked.tokens[:, :length].tolist():
        assert len(facts_of(HAY, row)) == HAY.facts  # and no two facts are neighbours
    assert asked.tokens.max() < HAY.vocab_size


def test_place_and_hops_tell_what_is_asked():
    asked = HAY.batch(0, 64, 40)
    name = asked.tokens[:, 41::2]
    torch.testing.assert_close(asked.tokens.gather(1, asked.place), name)
    torch.testing.assert_close(asked.tokens[:, 40::2] - HAY.names - HAY.noise + 1, asked.hops)
    assert set(asked.hops.flatten().tolist()) == {1, 2, 3}


def test_a_depth_moves_the_asked_fact_and_nothing_else_is_tied_to_it():
    for depth in (0.0, 0.3, 1.0):
        asked = HAY.batch(1, 200, 400, split="test", hops=1, depth=depth)
        assert (asked.place / 397 - depth).abs().max() < 0.04
    depths = torch.linspace(0, 1, 50)
    asked = HAY.batch(1, 50, 400, split="test", depth=depths)
    assert (asked.place[:, 0] / 397 - depths).abs().max() < 0.04
    free = HAY.batch(1, 2000, 400, split="test", hops=1).place.float()
    assert abs(free.mean() / 397 - 0.5) < 0.03


def test_the_answer_is_no_likelier_than_another_name_of_the_text():
    """A reader who knows only which names are there must guess."""
    asked = HAY.batch(0, 4000, 60, split="test", hops=2)
    answer = asked.targets[asked.targets != IGNORED]
    assert len(answer.unique()) == HAY.names
    first = asked.tokens[:, :60].ge(HAY.names).long().argmin(1)  # the first name in the text
    earliest = asked.tokens.gather(1, first[:, None])[:, 0]
    assert abs((earliest == answer).float().mean() - 1 / HAY.facts) < 0.03


def test_no_set_of_names_stands_in_training_and_test():
    def sets(split):
        batches = [HAY.batch(step, 500, 60, split=split) for step in range(4)]
        rows = torch.cat([batch.tokens[:, :60] for batch in batches]).tolist()
        return {frozenset(name for name in row if name < HAY.names) for row in rows}

    train, test = sets("train"), sets("test")
    assert len(train) > 1500 and len(test) > 1500 and not train & test


def test_the_same_numbers_give_the_same_texts_and_others_do_not():
    one, same, other = HAY.batch(3, 8, 50, 1), HAY.batch(3, 8, 50, 1), HAY.batch(4, 8, 50, 1)
    assert torch.equal(one.tokens, same.tokens) and not torch.equal(one.tokens, other.tokens)
    state = torch.get_rng_state()
    HAY.batch(0, 4, 50)
    assert torch.equal(state, torch.get_rng_state())


def test_right_compares_at_the_asked_names():
    asked = HAY.batch(0, 3, 40)
    logits = torch.zeros(*asked.tokens.shape, HAY.vocab_size)
    logits.scatter_(2, asked.targets.clamp(min=0)[..., None], 1.0)
    assert asked.right(logits).all()
    logits[0, -1] = 0  # then the first token is the best: the last question of row 0
    wrong = ~asked.right(logits)
    assert wrong.sum() == (asked.targets[0, -1] != 0) and not wrong[1:].any()


@pytest.mark.parametrize(
    ("how", "message"),
    [
        (dict(length=17), "need 18 tokens"),
        (dict(length=40, split="dev"), "no split 'dev'"),
        (dict(length=40, hops=4), "from 1 to max_hops = 3"),
        (dict(length=40, depth=1.5), "depth = 1.5"),
    ],
)
def test_what_does_not_fit_is_told(how, message):
    with pytest.raises(ValueError, match=message):
        HAY.batch(0, 2, **how)
    with pytest.raises(ValueError, match="a ring of facts"):
        Haystack(facts=3, max_hops=3)
    with pytest.raises(ValueError, match="a ring of facts"):
        Haystack(facts=4, names=4)

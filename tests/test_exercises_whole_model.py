"""Checks of *The whole text model*: they pass what is right, and name what is wrong."""

import torch

import minillama4 as ml4
from minillama4.explore.exercises import whole_model
from minillama4.explore.judge import judge
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


def test_the_crossing_token_left_out_is_recognised():
    """Written as it comes, with no care for a set that is empty."""

    def answer(p, limit):
        value, place = p.sort(descending=True)
        kept = torch.zeros_like(p)
        kept[place] = value * (value.cumsum(0) < limit)
        return kept / kept.sum()

    assert "crosses the limit" in whole_model.keep_top_p(answer).message


def test_a_sum_equal_to_the_limit_has_reached_it():
    def answer(p, limit):
        value, place = p.sort(descending=True)
        kept = torch.zeros_like(p)
        kept[place] = value * (value.cumsum(0) - value <= limit)
        return kept / kept.sum()

    assert "equal to the limit" in whole_model.keep_top_p(answer).message


def test_the_open_exercise_ends_as_its_answer_says():
    """Eight drafts find sums of one digit, with a carry, that the likeliest does not; no others."""
    model = ml4.load(ml4.shipped("mini_scout"), dtype=torch.float32).requires_grad_(False)
    tokenizer = ml4.load_tokenizer()

    def found(sums, drafts, **how):
        heads = [f"{a} + {b}:" for a, b in sums for _ in range(drafts)]
        prompts = [[tokenizer.begin, *tokenizer.encode(head)] for head in heads]
        texts = ml4.complete(model, prompts, 60, **how)
        lines = [
            (head + tokenizer.decode(text)).split("\n")[0]
            for head, text in zip(heads, texts, strict=True)
        ]
        true = torch.tensor([judge("arithmetic", f"\n{line}\n").true for line in lines])
        return true.reshape(len(sums), drafts)

    with_carry = [(a, b) for a in range(5, 10) for b in range(5, 10)]
    draw = dict(temperature=0.7, seed=0)
    drafts = found(with_carry, 8, **draw)
    assert 0.03 < drafts.float().mean() < 0.3 < 2 * drafts.any(1).float().mean()
    assert found(with_carry, 1).float().mean() < drafts.any(1).float().mean() / 2
    for others in ([(1, 2), (3, 3), (0, 4)], [(12, 35), (59, 63), (47, 18)]):
        assert found(others, 8, **draw).float().mean() < 0.1

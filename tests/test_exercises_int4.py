"""Checks of *Int4*: they pass what is right, and name what is wrong."""

import pytest
import torch

from minillama4.explore.exercises import int4 as checks
from tests.exercises import assert_mistakes_are_named, assert_unfinished_is_told, each

CHECKS = [checks.unpacking, checks.rounding, checks.rerouted]


def right_unpacking(packed):
    """In plain Python, word by word."""
    rows = [[(int(word) % 2**32 >> 4 * j) % 16 - 8 for word in row for j in range(8)]
            for row in packed]  # fmt: skip
    return torch.tensor(rows)


def right_rounding(w, group):
    """Group by group, by looking for the nearest of sixteen levels."""
    out = torch.empty_like(w)
    for row in range(w.shape[0]):
        for start in range(0, w.shape[1], group):
            part = w[row, start : start + group]
            levels = torch.arange(-8, 8) * (part.abs().max() / 8)
            nearest = (part[:, None] - levels).abs().argmin(1)
            out[row, start : start + group] = levels[nearest]
    return out


def right_rerouted(before, after, k):
    """With Python's sets."""
    pairs = zip(before.topk(k).indices.tolist(), after.topk(k).indices.tolist(), strict=True)
    return sum(set(a) != set(b) for a, b in pairs) / len(before)


def test_right_answers_pass():
    assert checks.unpacking(right_unpacking).right
    assert checks.rounding(right_rounding).right
    assert checks.rerouted(right_rerouted).right


def test_right_answers_in_other_words_pass():
    def by_division(w, group):
        parts = w.reshape(w.shape[0], -1, group)
        top = parts.abs().max(dim=2, keepdim=True).values
        return ((parts * 8 / top).round().clip(-8, 7) * top / 8).reshape(w.shape)

    def sorted_sets(before, after, k):
        a, b = (x.topk(k).indices.sort(dim=1).values for x in (before, after))
        return (a != b).any(dim=1).double().mean()

    assert checks.rounding(by_division).right
    assert checks.rerouted(sorted_sets).right
    assert checks.unpacking(lambda packed: right_unpacking(packed).to(torch.int8)).right


@each(CHECKS)
def test_every_known_mistake_gets_its_own_message(check):
    assert_mistakes_are_named(check, at_least=8)


@each(CHECKS)
def test_unfinished_answers_are_told(check):
    assert_unfinished_is_told(check)


@pytest.mark.parametrize("seed", range(5))
def test_no_weight_lies_between_two_levels(seed):
    w, group = checks._matrix(seed)
    groups = w.unflatten(-1, (-1, group))
    places = groups / (groups.abs().amax(-1, keepdim=True) / 8)
    assert ((places.frac().abs() - 0.5).abs() > 0.019).all()
    assert (groups.amax(-1) > -groups.amin(-1)).any() and (groups.amax(-1) < -groups.amin(-1)).any()

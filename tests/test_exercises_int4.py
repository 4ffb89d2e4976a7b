"""Checks of *Int4*: they pass what is right, and name what is wrong."""

import copy

import pytest
import torch
import torch.nn.functional as F

import minillama4 as ml4
from minillama4.data.text import Corpus
from minillama4.explore.exercises import int4 as checks
from minillama4.explore.rounding import round_weight
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


def rounded(model, head=(4, 128), shared=(4, 128), routed=(4, 128)):
    """All but embedding, norms and routers; (bits, group) of three kinds, the others in 4 bits."""
    model = copy.deepcopy(model)
    for block in model.blocks:
        experts, all_read, a = block.ffn.experts, block.ffn.shared, block.attention
        for weight in (experts.gate_up, experts.down):  # (e, in, out)
            weight.copy_(round_weight(weight.mT, *routed).mT)
        for linear in (all_read.gate, all_read.up, all_read.down):
            linear.weight.copy_(round_weight(linear.weight, *shared))
        for linear in (a.q, a.k, a.v, a.o):
            linear.weight.copy_(round_weight(linear.weight, 4, 128))
    model.head.weight.copy_(round_weight(model.head.weight, *head))
    return model


def test_what_the_open_exercise_says_a_tenth_of_a_megabyte_buys():
    model = ml4.load(ml4.shipped("mini_scout"), dtype=torch.float32).requires_grad_(False)
    corpus = Corpus.build(ml4.load_tokenizer(), "validation", tokens_per_domain=4 * 256 + 1)
    texts = torch.cat([batch.tokens for batch in corpus.validation_batches(4, 256)])

    def loss(model):
        return F.cross_entropy(model(texts[:, :-1]).flatten(0, 1), texts[:, 1:].flatten()).item()

    start = loss(rounded(model))
    head, shared, finer = (
        start - loss(rounded(model, **change))
        for change in (dict(head=(5, 128)), dict(shared=(5, 128)), dict(routed=(4, 64)))
    )
    assert head == pytest.approx(0.013, abs=0.001)
    assert shared == pytest.approx(0.007, abs=0.001)
    assert abs(finer) < 0.001
    parts = model.config.parameters().text
    bytes_of_a_bit = [parts[kind] // 8 for kind in ("head", "shared experts")]
    assert bytes_of_a_bit == [32_768, 49_152] and 2 * parts["routed experts"] // 128 == 98_304

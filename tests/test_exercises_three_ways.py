"""Checks of *Three ways to run experts*: what is right passes, each known mistake is named."""

import math
import statistics

import pytest
import torch
import torch.nn.functional as F
from einops import einsum

import minillama4 as ml4
from minillama4.data.text import Corpus
from minillama4.explore.exercises import three_ways
from tests.exercises import assert_mistakes_are_named, each

CHECKS = (three_ways.break_even, three_ways.grouped_products, three_ways.dropped)


def by_hand(x, choice, weight):
    order = choice.argsort()
    out = torch.empty(len(x), weight.shape[2])
    ends = choice.bincount(minlength=len(weight)).cumsum(0).tolist()
    for w, begin, end in zip(weight, [0, *ends], ends, strict=False):
        out[order[begin:end]] = x[order[begin:end]] @ w
    return out


def with_inverse(x, choice, weight):
    order = choice.argsort()
    parts = x[order].split(choice.bincount(minlength=len(weight)).tolist())
    done = torch.cat([part @ weight[e] for e, part in enumerate(parts)])
    return done[order.argsort()]


def looped(x, choice, weight):
    out = torch.zeros(len(x), weight.shape[2])
    for e in choice.unique():
        out[choice == e] = x[choice == e] @ weight[e]
    return out


def in_one_call(x, choice, weight):
    order = choice.argsort(stable=True)
    ends = choice.bincount(minlength=len(weight)).cumsum(0, dtype=torch.int32)
    out = torch.empty(len(x), weight.shape[2])
    out[order] = F.grouped_mm(x[order], weight, offs=ends)
    return out


def share(choice, experts, factor):
    capacity = math.ceil(factor * len(choice) / experts)
    place = F.one_hot(choice, experts).cumsum(0).gather(1, choice[:, None])[:, 0]
    return (place > capacity).float().mean()


@pytest.mark.parametrize("answer", [by_hand, with_inverse, looped, in_one_call])
def test_every_way_to_group_passes(answer):
    assert three_ways.grouped_products(answer).right


def test_what_is_right_passes():
    for tokens in (990 / 3.35, 295, 296):
        assert three_ways.break_even(lambda tokens=tokens: tokens).right
    assert three_ways.dropped(share).right


@each(CHECKS)
def test_every_known_mistake_gets_its_own_message(check):
    assert_mistakes_are_named(check, at_least=5)


def test_the_naive_form_and_copied_matrices_are_named():
    def naive(x, choice, weight):
        every = einsum(x, weight, "n m, e m f -> n e f")
        return every[torch.arange(len(x)), choice]

    def masked(x, choice, weight):
        return sum((choice == e)[:, None] * x @ w for e, w in enumerate(weight))

    def copied(x, choice, weight):
        return einsum(x, weight[choice], "n m, n m f -> n f")

    for answer in (naive, masked):
        verdict = three_ways.grouped_products(answer)
        assert not verdict.right and "the naive form" in verdict.message
    verdict = three_ways.grouped_products(copied)
    assert not verdict.right and "copies a whole matrix" in verdict.message


def test_a_product_for_each_token_is_named():
    def one_by_one(x, choice, weight):
        return torch.stack([row @ weight[e] for row, e in zip(x, choice, strict=True)])

    verdict = three_ways.grouped_products(one_by_one)
    assert not verdict.right and "token by token" in verdict.message


@pytest.mark.parametrize("tokens", [0, 3e-10, 74, 290, 1182])
def test_another_number_is_not_taken_for_a_known_mistake(tokens):
    verdict = three_ways.break_even(lambda: tokens)
    assert not verdict.right and "not it" in verdict.message


def busiest(devices, load):
    """What the busiest device has to do, by the mean; devices: expert ids of each."""
    work = torch.stack([load[experts].sum() for experts in devices]).double()
    return (work.max() / work.mean()).item()


def by_falling_load(load):
    devices = [[] for _ in range(4)]
    for e in load.argsort(descending=True).tolist():
        free = [device for device in devices if len(device) < 4]
        min(free, key=lambda device: load[device].sum().item()).append(e)
    return devices


def test_a_placement_for_one_domain_is_hardly_better_elsewhere():
    """What the answer of exercise 4 says."""
    model = ml4.load(ml4.shipped("mini_scout"), dtype=torch.float32).eval()
    corpus = Corpus.build(ml4.load_tokenizer(), "validation", tokens_per_domain=512)
    loads = []  # of domains: layer expert
    for batch in corpus.validation_batches(batch=4, length=128):
        with ml4.trace(model) as seen, torch.no_grad():
            model(batch.tokens)
        choices = [seen.router[at].choice.flatten() for at in seen.router]
        loads.append(torch.stack([choice.bincount(minlength=16) for choice in choices]))
    placed = [by_falling_load(load) for load in loads[0]]
    in_order = torch.arange(16).view(4, 4).tolist()

    def mean(pairs):
        return statistics.mean(busiest(devices, load) for devices, load in pairs)

    there = mean(pair for load in loads[1:] for pair in zip(placed, load, strict=True))
    numbered = mean((in_order, each) for load in loads[1:] for each in load)
    assert mean(zip(placed, loads[0], strict=True)) < 1.15
    assert 0.9 * numbered < there

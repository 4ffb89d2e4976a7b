"""Checks of *Decode at the memory's speed*: they pass what is right, and name what is wrong."""

import torch

from minillama4.explore.exercises import decode_speed as checks
from minillama4.serve.roofline import distinct_experts
from tests.exercises import assert_mistakes_are_named, assert_unfinished_is_told, each

CHECKS = [checks.ceiling, checks.experts_hit, checks.mbu]


def right_ceiling(weights, cache, bandwidth, batch):
    seconds = (weights + sum([cache] * batch)) / bandwidth
    return batch / seconds


def right_hit(p, n):
    return torch.tensor(sum(1 - float(1 - each) ** n for each in p), dtype=torch.float64)


def right_mbu(milliseconds, read, bandwidth, batch):
    return (read / bandwidth) / (milliseconds * 1e-3)


def test_right_answers_pass():
    assert checks.ceiling(right_ceiling).right
    assert checks.experts_hit(right_hit).right
    assert checks.mbu(right_mbu).right


def test_the_librarys_count_passes():
    verdict = checks.experts_hit(
        lambda p, n: torch.tensor(distinct_experts(len(p), n, 1, p.tolist()), dtype=torch.float64)
    )
    assert verdict.right


@each(CHECKS)
def test_every_known_mistake_gets_its_own_message(check):
    assert_mistakes_are_named(check, at_least=8)


def test_a_utilisation_cut_off_at_one_is_refused():
    verdict = checks.mbu(lambda *given: min(1.0, right_mbu(*given)))
    assert not verdict.right and "cuts it off" in verdict.message
    shares = [right_mbu(*checks.mbu.inputs(seed)) for seed in range(5)]
    assert sum(share > 1 for share in shares) == 1  # the others could have been measured


@each(CHECKS)
def test_unfinished_answers_are_told(check):
    assert_unfinished_is_told(check)

"""Checks of *Attention temperature*: they pass what is right, and name what is wrong."""

import math

import pytest
import torch

from minillama4.explore.exercises import temperature as checks

CHECKS = [checks.temperature, checks.scores, checks.first_position]


def right_temperature(p, floor_scale, attn_scale):
    """One position at a time, in plain Python."""
    steps = [(int(x) + 1) // floor_scale for x in p]
    return torch.tensor([1 + attn_scale * math.log(step + 1) for step in steps])


def right_scores(q, k, positions, rope):
    q = q.clone()
    for t, p in enumerate(positions.tolist()):
        q[:, t] *= 1.0 if rope else 1 + 0.1 * math.log((p + 1) // 128 + 1)
    return torch.matmul(q.transpose(1, 2), k.permute(0, 2, 3, 1)) / math.sqrt(q.shape[-1])


def right_first(factor, floor_scale, attn_scale):
    """Step by step until it is reached."""
    steps = 1
    while 1 + attn_scale * math.log(steps + 1) < factor:
        steps += 1
    return steps * floor_scale - 1


def test_right_answers_pass():
    assert checks.temperature(right_temperature).right
    assert checks.scores(right_scores).right
    assert checks.first_position(right_first).right


@pytest.mark.parametrize("check", CHECKS)
def test_every_known_mistake_gets_its_own_message(check):
    assert len(check.wrong) >= 6
    for message, mistake in check.wrong.items():
        verdict = check(mistake)
        assert not verdict.right and verdict.message == message


def test_llama_4_reaches_one_and_a_half_after_1_2_million_tokens():
    assert right_first(1.5, 8192, 0.1) == 148 * 8192 - 1 == 1_212_415

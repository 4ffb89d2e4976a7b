"""Checks of *Loading Scout*: they pass what is right, and name what is wrong."""

import torch

from minillama4.explore.exercises import loading_scout as checks
from tests.exercises import assert_mistakes_are_named, assert_unfinished_is_told, each

CHECKS = [checks.first_byte, checks.join_down, checks.gather_keys]


def right_first_byte(header, begin, shape, expert):
    """By walking over the experts before it."""
    at = 8 + header + begin
    for _ in range(expert):
        at += 2 * shape[1] * shape[2]
    return at


def right_join_down(shards, experts):
    """Expert by expert."""
    own = []
    for e in range(experts):
        pieces = [
            shard[e * len(shard) // experts : (e + 1) * len(shard) // experts] for shard in shards
        ]
        own.append(torch.cat(pieces))
    return torch.stack(own)


def right_gather_keys(shards, q, k):
    rows = []
    for shard in shards:
        first = q // len(shards)
        rows += [shard[first + i] for i in range(k // len(shards))]
    return torch.stack(rows)


def test_right_answers_pass():
    assert checks.first_byte(right_first_byte).right
    assert checks.join_down(right_join_down).right
    assert checks.gather_keys(right_gather_keys).right


@each(CHECKS)
def test_every_known_mistake_gets_its_own_message(check):
    assert_mistakes_are_named(check, at_least=9)


@each(CHECKS)
def test_unfinished_answers_are_told(check):
    assert_unfinished_is_told(check)


def test_whatever_leaves_no_keys_gets_one_message():
    """Both ends wrong in different ways, an empty slice each time."""
    empty = [
        lambda shards, q, k: torch.cat([t[q : q + k] for t in shards]),
        lambda shards, q, k: torch.cat([t[q // len(shards) : k // len(shards)] for t in shards]),
        lambda shards, q, k: torch.cat([t[q : (q + k) // len(shards)] for t in shards]),
    ]
    told = {checks.gather_keys(answer).message for answer in empty}
    assert len(told) == 1 and told.pop().startswith("No rows come out.")

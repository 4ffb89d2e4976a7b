"""Checks of *Chunks and NoPE*: they pass what is right, and name what is wrong."""

import torch

from minillama4.config import Llama4Config
from minillama4.explore.exercises import chunks
from minillama4.serve.memory import kv_bytes
from tests.exercises import assert_mistakes_are_named, assert_unfinished_is_told, each

CHECKS = [chunks.piece_mask, chunks.cache_bytes, chunks.knows_after]


def right_mask(start, t, chunk):
    """Pair by pair."""
    seen = torch.zeros(t, start + t, dtype=torch.bool)
    for row in range(t):
        query = start + row
        seen[row, query - query % chunk : query + 1] = True
    return seen


def right_bytes(length, layers, nope_every, chunk, kv_heads, head_width):
    sizes = dict(layers=layers, nope_every=nope_every, chunk=chunk, kv_heads=kv_heads)
    config = Llama4Config.nano(heads=kv_heads, head_width=head_width, **sizes)
    return kv_bytes(config, length)


def right_count(s, t, chunk, nope_layers, layers):
    """Layer by layer: whom has word of s reached?"""
    length = max(s, t) + 1
    reached = {s}
    for count in range(layers + 1):
        if t in reached:
            return count
        full = count in nope_layers
        reached |= {
            late
            for early in reached
            for late in range(early, length)
            if full or early // chunk == late // chunk
        }
    return -1


def test_right_answers_pass():
    assert chunks.piece_mask(right_mask).right
    assert chunks.cache_bytes(right_bytes).right
    assert chunks.knows_after(right_count).right


@each(CHECKS)
def test_every_known_mistake_gets_its_own_message(check):
    assert_mistakes_are_named(check, at_least=10)


def test_a_mask_of_numbers_is_refused():
    verdict = chunks.piece_mask(lambda *piece: right_mask(*piece).float())
    assert not verdict.right and "True and False are asked for" in verdict.message


def test_an_unknown_mistake_is_shown_with_its_input():
    said = chunks.knows_after(lambda s, t, chunk, nope_layers, layers: 17).message
    assert said == "You have 17 for knows_after(5, 5, 8, (3, 7), 8); that is not it."


@each(CHECKS)
def test_an_unfinished_answer_is_told(check):
    assert_unfinished_is_told(check)


def test_scouts_bytes_are_the_specs():
    assert right_bytes(131_072, 48, 4, 8192, 8, 128) == 7.125 * 2**30

"""Checks of *Will it fit?*: what is right passes, each known mistake is named."""

import pytest

import minillama4 as ml4
from minillama4.explore.exercises import will_it_fit as exercises
from minillama4.serve.hardware import H100, RTX_4090
from minillama4.serve.memory import kv_bytes_per_slot, longest_context, plan
from tests.exercises import assert_mistakes_are_named, assert_unfinished_is_told, each

CHECKS = (exercises.bits, exercises.longest, exercises.gpus)


def right_length(left, batch, layers, nope, chunk, per_entry):
    """By trying: the bytes of a text, doubled up and halved down to the last that fits."""

    def fits(n):
        kept = nope * n + (layers - nope) * min(n, chunk)
        return batch * kept * per_entry <= left

    low, high = 0, 1
    while fits(high):
        low, high = high, 2 * high
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if fits(middle) else (low, middle)
    return low


def right_gpus(weights, cache, memory, workspace):
    number = 1
    while number * (memory - workspace) < weights + cache:
        number += 1
    return number


def test_what_is_right_passes():
    assert exercises.bits(lambda: 4 + 16 / 32).right
    assert exercises.longest(right_length).right
    assert exercises.gpus(right_gpus).right


@each(CHECKS)
def test_every_known_mistake_gets_its_own_message(check):
    assert_mistakes_are_named(check, at_least=6)


@each(CHECKS)
def test_an_unfinished_answer_is_told(check):
    assert_unfinished_is_told(check)


@pytest.mark.parametrize("answer", [4.4999, 0, -4.5, float("nan")])
def test_another_number_is_refused(answer):
    assert not exercises.bits(lambda: answer).right


def test_the_first_room_is_scouts_in_int4_on_one_gpu():
    scout = ml4.Llama4Config.scout()
    left, batch, layers, nope, chunk, per_entry = exercises._room(0)
    now = plan(scout, H100, "int4-meta", context=0)
    assert left == now.free
    assert (layers, nope, chunk) == (scout.layers, len(scout.nope_layers), scout.chunk)
    assert per_entry == kv_bytes_per_slot(scout)
    for texts in (batch, exercises._room(1)[1]):
        found = right_length(left, texts, layers, nope, chunk, per_entry)
        assert found == longest_context(scout, H100, "int4-meta", texts)


def test_both_sides_of_the_first_chunk_are_asked():
    rooms = [exercises._room(seed) for seed in range(exercises.longest.trials)]
    short = [right_length(*room) < room[4] for room in rooms]
    assert 2 <= sum(short) <= len(short) - 2


def test_what_the_notebook_says_of_a_gpu_of_24_gb():
    """Exercise 4 and the last question of the recap, whose numbers stand in the text alone."""
    scout = ml4.Llama4Config.scout()
    now = plan(scout, RTX_4090, "int4-all")
    experts = scout.parameters().text["routed experts"]
    may_stay = now.weights["routed experts"] + now.free
    assert round(8 * may_stay / experts, 2) == 0.86  # bits
    assert round(-now.free / 1e9) == 39
    assert round((now.weights["vision"] + now.cache) / 1e9, 1) == 3.4
    chunks, rest = 36 * 8192 * 4096, 12 * scout.max_length * 4096
    assert (round(chunks / 1e9, 1), round(rest / 1e9)) == (1.2, 515)

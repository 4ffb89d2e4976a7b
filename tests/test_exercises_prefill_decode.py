"""Checks of *Prefill, decode and the cache*: they pass what is right, and name what is wrong."""

import torch

import minillama4 as ml4
from minillama4.explore.exercises import prefill_decode
from minillama4.serve.prompt_cache import PromptCache
from tests.exercises import assert_mistakes_are_named, assert_unfinished_is_told, each
from tests.reference import random_tokens, small

CHECKS = [prefill_decode.seconds, prefill_decode.reusable, prefill_decode.tokens_read]


def right_seconds(prompt, answer, cached, read, write):
    """Token by token."""
    place, clock = cached, 0.0
    while place < prompt or place == cached == prompt:
        clock, place = clock + read, place + 1
    for _ in range(1, answer):
        clock += write
    return clock


def right_reuse(stored, prompt, chunk):
    """By a simulation of what every position's keys are, slot by slot."""
    slots = {}
    last = len(stored) // chunk * chunk
    for place in range(last, len(stored)):
        slots[place % chunk] = place
    for length in reversed(range(min(len(stored), len(prompt) - 1) + 1)):
        needed = range(length // chunk * chunk, length)
        kept = all(slots.get(place % chunk) == place for place in needed)
        if kept and stored[:length] == prompt[:length]:
            return length


def right_read(turns, cached):
    """With lists of tokens."""
    held, text, read = 0, [], 0
    for asked, answered in turns:
        text += ["asked"] * asked
        read += len(text) - (held if cached else 0)
        text += ["answered"] * answered
        held = len(text) - 1
    return read


def test_right_answers_pass():
    assert prefill_decode.seconds(right_seconds).right
    assert prefill_decode.reusable(right_reuse).right
    assert prefill_decode.tokens_read(right_read).right


@each(CHECKS)
def test_every_known_mistake_gets_its_own_message(check):
    assert_mistakes_are_named(check, at_least=9)


@each(CHECKS)
def test_an_unfinished_answer_is_told(check):
    assert_unfinished_is_told(check)


def test_the_store_reuses_what_the_check_says():
    model = small()  # chunks of 8, as in the check
    letters = sorted(set("".join(map("".join, prefill_decode._PAIRS))))
    for pair in prefill_decode._PAIRS:
        stored, prompt = ([letters.index(letter) for letter in text] for text in pair)
        store = PromptCache(model, 10**9)
        cache = ml4.KVCache(model.config)
        ml4.complete(model, stored, 1, cache=cache)
        store.keep(stored, cache)
        reused = len(prompt) - len(store.find(prompt)[1])
        assert reused == right_reuse(stored, prompt, model.config.chunk)


def test_the_open_exercise_ends_as_its_answer_says():
    """Five beginnings in turn and room for four: the least recently used is the next one due."""
    model = small()
    heads = [[head, *random_tokens(model.config, 1, 20, head)[0].tolist()] for head in range(5)]

    def reused(room, order):
        store = PromptCache(model, room)
        found = []
        for number in order:
            prompt = [*heads[number], number]
            found.append(len(prompt) - len(store.find(prompt)[1]))
            cache = ml4.KVCache(model.config)
            ml4.complete(model, heads[number], 1, cache=cache)
            store.keep(heads[number], cache)
        return torch.tensor(found) > 0

    cache = ml4.KVCache(model.config)
    ml4.complete(model, heads[0], 1, cache=cache)
    probe = PromptCache(model, 10**9)
    probe.keep(heads[0], cache)
    turns = [0, 1, 2, 3, 4] * 4
    assert not reused(4 * probe.bytes, turns).any()
    assert reused(5 * probe.bytes, turns)[5:].all()
    draw = torch.randint(5, (60,), generator=torch.Generator().manual_seed(0)).tolist()
    assert 0.6 < reused(4 * probe.bytes, draw).float().mean() < 0.95

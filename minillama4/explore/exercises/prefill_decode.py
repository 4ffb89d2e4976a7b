"""Checks for *Prefill, decode and the cache* (05_serving/01_prefill_decode_cache.ipynb)."""

import itertools
from collections.abc import Callable

from ...serve import prompt_cache
from ..checks import Check

# ------------------------------------------------------------------ 1: how long an answer takes

_REQUESTS = (  # prompt, answer, cached, read, write
    (8000, 200, 6000, 0.0001, 0.002),
    (500, 1, 0, 0.001, 0.02),
    (4096, 50, 4096, 0.0002, 0.001),
    (300, 40, 299, 0.01, 0.003),
    (1000, 10, 250, 0.004, 0.05),
)


def _seconds(
    left=lambda prompt, cached: max(prompt - cached, 1), further=lambda answer: answer - 1
):
    """An answer whose two parts, tokens read and tokens waited for, can be exchanged."""

    def answer_time(prompt, answer, cached, read, write):
        return left(prompt, cached) * read + further(answer) * write

    return answer_time


def _all_of_it(answer: int) -> int:
    return answer


def _negative_or_none(prompt: int, cached: int) -> int:
    return prompt - cached


seconds = Check(
    "seconds",
    reference=_seconds(),
    inputs=lambda seed: _REQUESTS[seed % len(_REQUESTS)],
    wrong={
        "The first token comes out of the prefill: you wait `write` for each further one, "
        "answer - 1 times.": _seconds(further=_all_of_it),
        "Right but for a prompt that is cached to its last token: one token must be read all the "
        "same, its logits say what follows.": _seconds(left=_negative_or_none),
        "Two things: the first token comes out of the prefill, and of a prompt that is cached "
        "whole one token must still be read.": _seconds(_negative_or_none, _all_of_it),
        "You read the whole prompt; what is cached need not be read again.": _seconds(
            left=lambda prompt, cached: prompt
        ),
        "You read the whole prompt, and wait `write` for the first token too.": _seconds(
            lambda prompt, cached: prompt, _all_of_it
        ),
        "You read the cached tokens; it is the others that must be read.": _seconds(
            left=lambda prompt, cached: cached
        ),
        "That is the time to the first token; the others follow.": _seconds(
            further=lambda answer: 0
        ),
        "That is the writing alone: before it the prompt is read.": _seconds(
            left=lambda prompt, cached: 0
        ),
        "One token too many is read: only a prompt that is cached whole needs one more.": _seconds(
            left=lambda prompt, cached: prompt - cached + 1
        ),
        "`read` and `write` are exchanged.": lambda prompt, answer, cached, read, write: _seconds()(
            prompt, answer, cached, write, read
        ),
        "Two things: `read` and `write` are exchanged; and of a prompt that is cached whole one "
        "token must still be read.": lambda prompt, answer, cached, read, write: _seconds(
            left=_negative_or_none
        )(prompt, answer, cached, write, read),
        "Two things: `read` and `write` are exchanged; and the first token comes out of the "
        "prefill.": lambda prompt, answer, cached, read, write: _seconds(further=_all_of_it)(
            prompt, answer, cached, write, read
        ),
        "You added what is cached; it need not be read again: take it off.": _seconds(
            left=lambda prompt, cached: prompt + cached
        ),
        "You paid `read` once for the whole prompt: every token that is not cached takes as "
        "long.": _seconds(left=lambda prompt, cached: 1),
        "`read` and `write` are seconds for a token, not tokens in a second: multiply.": (
            lambda prompt, answer, cached, read, write: _seconds()(
                prompt, answer, cached, 1 / read, 1 / write
            )
        ),
    },
    praise="A prompt that is cached whole and an answer of one token are among the cases.",
    tolerance=1e-9,
)

# ------------------------------------------------------------------ 2: how far a cache can be used

_CHUNK = 8
_CAT = "the cat sat on a mat"  # a letter is a token; borders at 8 and 16
_PAIRS = (  # stored, prompt
    (_CAT, "the cat sat on a map of it"),  # within the last chunk
    (_CAT, "the cat sat in a mat"),  # in an earlier one, and equal again behind it
    (_CAT, "the cat in a hat"),  # at a border
    (_CAT, _CAT + " and slept"),  # a whole text continued
    (_CAT, _CAT),  # the same prompt again
    (_CAT, _CAT[:13]),  # a shorter one
    (_CAT, _CAT[:17]),  # one token into the last chunk
    (_CAT, "she cat sat on a mat"),  # nothing in common
    (_CAT, "the dog sat on a mat"),  # less than a chunk
    (_CAT[:16], "the cat sat on it"),  # the stored text ends at a border
    (_CAT[:16], _CAT[:16]),
    (_CAT[:16], _CAT),
    (_CAT[:7], "the cow sat"),  # a text of less than a chunk
)


def _reuse(stored: str, prompt: str, chunk: int) -> int:
    return prompt_cache.reusable(_shared(stored, prompt[:-1]), len(stored), chunk)


def _shared(stored: str, prompt: str) -> int:
    pairs = zip(stored, prompt, strict=False)
    return len(list(itertools.takewhile(lambda pair: pair[0] == pair[1], pairs)))


def _from(rule: Callable[[int, int, int], int], leave: int = 1):
    """A wrong answer: ``rule(shared, length of the stored text, chunk)``."""
    return lambda stored, prompt, chunk: rule(
        _shared(stored, prompt[: len(prompt) - leave]), len(stored), chunk
    )


def _taken_off_behind(stored: str, prompt: str, chunk: int) -> int:
    whole = prompt_cache.reusable(_shared(stored, prompt), len(stored), chunk)
    return min(whole, len(prompt) - 1)


def _equal_in_place(stored: str, prompt: str, chunk: int) -> int:
    pairs = zip(stored, prompt[:-1], strict=False)
    return prompt_cache.reusable(sum(a == b for a, b in pairs), len(stored), chunk)


reusable = Check(
    "reusable",
    reference=_reuse,
    inputs=lambda seed: (*_PAIRS[seed % len(_PAIRS)], _CHUNK),
    wrong={
        "That is how much the texts share. But in an earlier chunk than the last the RoPE layers' "
        "keys were overwritten: go back to a border.": _from(lambda shared, n, chunk: shared),
        "You go back to a border always; within the stored text's last chunk all keys are still "
        "there.": _from(lambda shared, n, chunk: shared // chunk * chunk),
        "One token of the prompt must be left to read: its logits say what follows.": _from(
            prompt_cache.reusable, leave=0
        ),
        "Two things: one token of the prompt must be left to read; and in earlier chunks than the "
        "last the RoPE layers' keys were overwritten.": _from(
            lambda shared, n, chunk: shared, leave=0
        ),
        "Two things: one token of the prompt must be left to read; and within the stored text's "
        "last chunk you need not go back.": _from(
            lambda shared, n, chunk: shared // chunk * chunk, leave=0
        ),
        "A whole stored text or nothing? A beginning of it can be used too.": _from(
            lambda shared, n, chunk: n if shared == n else 0
        ),
        "Within the last chunk you are right; before it not all is lost: at a border the RoPE "
        "layers need nothing.": _from(
            lambda shared, n, chunk: shared if shared >= n // chunk * chunk else 0
        ),
        "A text that ends at a border keeps nothing of the chunk before it: its last chunk is "
        "empty.": _from(
            lambda shared, n, chunk: (
                shared if shared >= (n - 1) // chunk * chunk else shared // chunk * chunk
            )
        ),
        "Leave a token of the prompt first, and go back to a border then: in your order the place "
        "may be one where nothing is kept.": _taken_off_behind,
        "Only tokens before the first that differs count: what stands behind it was read after "
        "another text.": _equal_in_place,
        "One border too far: between the border and the first other token the keys are "
        "gone.": _from(
            lambda shared, n, chunk: (
                shared if shared >= n // chunk * chunk else -(-shared // chunk) * chunk
            )
        ),
        "The last chunk of the stored text counts, not the last `chunk` tokens: borders stand at "
        "multiples of `chunk`.": _from(
            lambda shared, n, chunk: shared if shared >= n - chunk else shared // chunk * chunk
        ),
        "That is what is left to read; the tokens that need not be read are asked for.": (
            lambda stored, prompt, chunk: len(prompt) - _reuse(stored, prompt, chunk)
        ),
        "That counts chunks; tokens are asked for.": (
            lambda stored, prompt, chunk: _reuse(stored, prompt, chunk) // chunk
        ),
    },
    praise="That is the rule of minillama4/serve/prompt_cache.py.",
    tolerance=1e-9,
    trials=len(_PAIRS),
)

# ------------------------------------------------------------------ 3: what a conversation reads

_TALKS = (
    [(1000, 200), (30, 150), (40, 100)],
    [(20, 300)],
    [(500, 1), (1, 1), (1, 7), (60, 5)],
    [(12, 40), (12, 40), (12, 40), (12, 40), (12, 40)],
)


def _talk(seed: int) -> tuple[list[tuple[int, int]], bool]:
    return _TALKS[seed // 2 % len(_TALKS)], seed % 2 == 0


def _read(again=lambda before, asked: asked + 1, history=lambda asked, answered: asked + answered):
    """``again``: tokens read at a later turn with caching; ``history``: what a turn adds."""

    def tokens_read(turns, cached):
        total, before = 0, 0
        for number, (asked, answered) in enumerate(turns):
            first = number == 0
            total += again(before, asked) if cached and not first else before + asked
            before += history(asked, answered)
        return total

    return tokens_read


def _always_one_more(turns, cached):
    return _read()(turns, cached) + cached


def _turned(turns, cached):
    return _read()(turns, not cached)


def _with_answers(turns, cached):
    return _read()(turns, cached) + sum(answered for _, answered in turns)


def _with_steps(turns, cached):
    return _read()(turns, cached) + sum(answered - 1 for _, answered in turns)


tokens_read = Check(
    "tokens_read",
    reference=_read(),
    inputs=_talk,
    wrong={
        "Without caching you are right. With it, the last token of each answer was written but "
        "never read: the next turn reads it too.": _read(again=lambda before, asked: asked),
        "Two things: each answer is part of what is read without caching; and with it the answer's "
        "last token, which was never read.": _read(
            again=lambda before, asked: asked, history=lambda asked, answered: asked
        ),
        "The answer's last token was not read, but before the first turn there is no "
        "answer.": _always_one_more,
        "Each answer becomes part of what the next turn must read.": _read(
            history=lambda asked, answered: asked
        ),
        "With caching the answers are in the cache already, all but the last token of "
        "each.": lambda turns, cached: (
            sum(a for a, _ in turns) + sum(b for _, b in turns[:-1])
            if cached
            else _read()(turns, 0)
        ),
        "With caching you count every answer; they are in the cache already, all but the last "
        "token of each.": lambda turns, cached: (
            sum(a + b for a, b in turns) if cached else _read()(turns, False)
        ),
        "You exchanged the two cases.": _turned,
        "The tokens that are written while an answer grows are decoding; those read before its "
        "first token are asked for.": _with_answers,
        "The tokens that are read one by one while an answer grows are decoding; those read before "
        "its first token are asked for.": _with_steps,
        "You read each message once in both cases; without a cache every turn begins "
        "anew.": lambda turns, cached: _read()(turns, True),
        "You begin anew at every turn in both cases; with a cache only what is new is "
        "read.": lambda turns, cached: _read()(turns, False),
        "That is the last turn alone; all turns together are asked for.": lambda turns, cached: (
            _read()(turns, cached) - (_read()(turns[:-1], cached) if len(turns) > 1 else 0)
        ),
    },
    praise="What a conversation reads grows with the square of its turns; with a cache, with their "
    "number.",
    tolerance=1e-9,
    trials=2 * len(_TALKS),
)

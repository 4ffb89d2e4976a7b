"""What the tests of every notebook's exercises share: mistakes named, unfinished answers told."""

import pytest


def each(checks):
    """A decorator: the test runs once for each of the checks, under its name."""
    return pytest.mark.parametrize("check", checks, ids=lambda check: check.name)


def assert_mistakes_are_named(check, at_least: int) -> None:
    """Every known wrong answer is refused, and with the message written for it."""
    assert len(check.wrong) >= at_least, f"{check.name} knows {len(check.wrong)} mistakes only"
    for message, mistake in check.wrong.items():
        verdict = check(mistake)
        told = f"{check.name}: where {message!r} is due, {verdict.message!r} came"
        assert not verdict.right and verdict.message == message, told


def assert_unfinished_is_told(check) -> None:
    """A stub, an answer that fails and one that returns nothing end in a word, not in an error."""

    def stub(*given):
        raise NotImplementedError

    unfinished = {
        "still to do": stub,
        "ZeroDivisionError": lambda *given: 1 / 0,
        "return missing": lambda *given: None,
    }
    for words, answer in unfinished.items():
        verdict = check(answer)
        told = f"{check.name}: where {words!r} is due, {verdict.message!r} came"
        assert not verdict.right and words in verdict.message, told

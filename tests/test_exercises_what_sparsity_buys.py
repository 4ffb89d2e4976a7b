"""What sparsity buys: its checks pass what is right, and name what is wrong."""

import pytest

from minillama4.explore.exercises import what_sparsity_buys as checks
from tests.exercises import assert_mistakes_are_named, assert_unfinished_is_told, each

CHECKS = [checks.equal_total, checks.equal_compute, checks.finer]


def right_total(config):
    return (config.experts + 1) * config.expert_hidden


def right_compute(moe, dense, steps):
    def cost(config):
        used = config.parameters().active_text
        return sum(used.values()) - used["embedding"] - used["norms"]

    return round(steps * cost(moe) / cost(dense))


def right_finer(config):
    k, e = 2 * config.top_k + 1, 2 * config.experts + 1
    return config.replace(expert_hidden=config.expert_hidden // 2, top_k=k, experts=e)


@pytest.mark.parametrize(
    "check, answer",
    list(zip(CHECKS, [right_total, right_compute, right_finer], strict=True)),
    ids=lambda value: getattr(value, "name", ""),
)
def test_what_is_right_passes(check, answer):
    assert check(answer).right


@each(CHECKS)
def test_every_known_mistake_gets_its_own_message(check):
    assert_mistakes_are_named(check, at_least=7)


@each(CHECKS)
def test_a_stub_and_an_error_are_told(check):
    assert_unfinished_is_told(check)


def test_unknown_mistakes_are_described():
    assert "7" in checks.equal_total(lambda c: 7).message
    assert "7" in checks.equal_compute(lambda *_: 7).message
    sister = checks.equal_total(lambda c: c.replace(moe_at=()))
    assert sister.message == "equal_total returns Llama4Config; a number is expected."
    assert "a config is expected" in checks.finer(lambda c: (3, 17)).message
    more = checks.finer(lambda c: c.replace(top_k=c.top_k + 1)).message
    assert "active" in more
    deeper = checks.finer(lambda c: right_finer(c).replace(layers=7)).message
    assert "something else" in deeper
    unhalved = checks.finer(lambda c: c).message
    assert "not half" in unhalved


def test_whole_steps_and_fractions_both_pass():
    assert checks.equal_compute(lambda m, d, n: right_compute(m, d, 1000 * n) / 1000).right

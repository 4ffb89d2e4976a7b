"""Checks of exercises: they pass what is right, and name what is wrong."""

import torch

from minillama4.explore.checks import Check, number

CHECK = Check(
    "double",
    reference=lambda x: 2 * x,
    inputs=lambda seed: (torch.randn(3, generator=torch.Generator().manual_seed(seed)),),
    wrong={"You squared it.": lambda x: x * x},
    properties={"It changes its input.": lambda f: unchanged(f)},
)


def unchanged(function):
    x = torch.ones(3)
    function(x)
    return torch.equal(x, torch.ones(3))


def in_place(x):
    given = x.clone()
    x += 1
    return 2 * given


def stub(x):
    raise NotImplementedError


def test_right_and_wrong():
    assert CHECK(lambda x: x + x).right
    assert repr(CHECK(lambda x: x + x)).startswith("Right.")
    assert repr(CHECK(lambda x: x * x)) == "Not yet. You squared it."
    assert not CHECK(lambda x: 2 * x + 1e-3).right
    assert "up to 1" in CHECK(lambda x: 2 * x + 1).message
    assert "(3, 1)" in CHECK(lambda x: 2 * x[:, None]).message


def test_it_never_raises():
    assert "stub" in CHECK(stub).message
    assert "return missing" in CHECK(lambda x: None).message
    assert "KeyError" in CHECK(lambda x: {}["a"]).message
    assert not CHECK(lambda x: 2 * x + float("nan")).right


def test_properties_are_checked_after_the_values():
    assert CHECK(in_place).message == "It changes its input."


def test_numbers():
    check = number("share", 0.25, {"You counted the experts only.": 0.1}, "A quarter.")
    assert check(lambda: 0.25).right and check(lambda: 0.2500001).right
    assert check(lambda: 0.1).message == "You counted the experts only."
    assert "0.7" in check(lambda: 0.7).message

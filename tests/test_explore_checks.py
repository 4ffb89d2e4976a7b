"""Checks of exercises: they pass what is right, and name what is wrong."""

import pytest
import torch

from minillama4.explore.checks import Check, number
from minillama4.explore.exercises import start_here

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
    assert "still to do" in CHECK(stub).message
    softmax = CHECK(lambda x: x.long().softmax(0)).message  # raises a NotImplementedError of torch
    assert "Long" in softmax and "still to do" not in softmax
    assert "return missing" in CHECK(lambda x: None).message
    assert "KeyError" in CHECK(lambda x: {}["a"]).message
    assert not CHECK(lambda x: 2 * x + float("nan")).right
    assert "returns str" in CHECK(lambda x: "2x").message


def test_properties_are_checked_after_the_values():
    assert CHECK(in_place).message == "It changes its input."


def test_numbers():
    check = number("share", 0.25, {"You counted the experts only.": 0.1}, "A quarter.")
    assert check(lambda: 0.25).right and check(lambda: 0.2500001).right
    assert check(lambda: 0.1).message == "You counted the experts only."
    assert "0.7" in check(lambda: 0.7).message


def test_start_here_passes_what_is_right():
    assert start_here.routed_expert(right_answer).right
    assert start_here.without_shared(lambda: 17_172_894_720 - 6_039_797_760).right


def right_answer(x, router, gate_up, down):
    score = router @ x
    e = score.argmax()
    gate, up = (torch.sigmoid(score[e]) * x @ gate_up[e]).chunk(2)
    return (torch.nn.functional.silu(gate) * up) @ down[e]


@pytest.mark.parametrize("check", [start_here.routed_expert, start_here.without_shared])
def test_every_known_mistake_gets_its_own_message(check):
    assert len(check.wrong) >= 4
    for message, mistake in check.wrong.items():
        verdict = check(mistake)
        assert not verdict.right and verdict.message == message


def test_an_answer_without_gradient_is_caught():
    def cut(x, router, gate_up, down):
        return right_answer(x, router.detach(), gate_up, down)

    verdict = start_here.routed_expert(cut)
    assert not verdict.right and "no gradient" in verdict.message


def test_yes_and_no_are_counted_where_they_differ():
    even = Check("even", lambda x: x % 2 == 0, lambda seed: (torch.arange(8),))
    assert even(lambda x: x % 2 == 0).right
    assert even(lambda x: x % 4 == 0).message == "Shape (8,) is right; 2 of its values are not."
    assert even(lambda x: (x % 2 == 0).int()).right

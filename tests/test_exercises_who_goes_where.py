"""The checks of *Who goes where* pass what is right and name every known mistake."""

import torch

from minillama4.explore.exercises import who_goes_where as checks
from tests.exercises import assert_mistakes_are_named, each

ALL = [checks.effective_experts, checks.mutual_information, checks.suffers]


def effective_experts(load):
    p = load[load > 0] / load.sum()
    return torch.exp(-(p * p.log()).sum())


def mutual_information(joint):
    p = joint / joint.sum()
    ratio = p / (p.sum(1, keepdim=True) * p.sum(0, keepdim=True))
    return (p * ratio.log()).nansum()


def suffers(table):
    return (table / table.sum(0, keepdim=True)).argmax(dim=1)


def test_right_answers_pass():
    assert checks.effective_experts(effective_experts).right
    assert checks.effective_experts(
        lambda load: effective_experts(load).item()
    ).right  # a plain number
    assert checks.mutual_information(mutual_information).right
    assert checks.suffers(suffers).right


@each(ALL)
def test_every_known_mistake_gets_its_own_message(check):
    assert_mistakes_are_named(check, at_least=4)


def test_zeros_are_asked_for():
    def careless(load):
        p = load / load.sum()
        return torch.exp(-(p * p.log()).sum())

    def careless_too(joint):
        p = joint / joint.sum()
        return (p * (p / (p.sum(1, keepdim=True) * p.sum(0, keepdim=True))).log()).sum()

    assert "no token" in checks.effective_experts(careless).message
    assert "never occurs" in checks.mutual_information(careless_too).message


def test_dividing_by_the_experts_tokens_is_named():
    message = checks.suffers(lambda table: (table / table.sum(1, keepdim=True)).argmax(1)).message
    assert "divided by the expert's tokens" in message

"""The checks of *Balance and collapse*: right answers pass, and every mistake is named."""

import torch
import torch.nn.functional as F

from minillama4.explore.exercises import balance_and_collapse as exercises
from tests.exercises import assert_mistakes_are_named, assert_unfinished_is_told, each

CHECKS = [exercises.at_work, exercises.auxiliary_loss, exercises.bias_step]


def auxiliary(logits, choice):
    e = logits.shape[1]
    share = choice.flatten().bincount(minlength=e) / choice.numel()
    return e * (share * logits.softmax(dim=-1).mean(0)).sum()


def step(logits, bias, rate):
    score = logits.sigmoid()
    chosen = (score + bias).argmax(-1)
    load = chosen.bincount(minlength=len(bias)).float()
    return score[torch.arange(len(score)), chosen], bias + rate * (load.mean() - load).sign()


def test_right_answers_pass():
    def at_work(load):
        p = load[load > 0] / load.sum()
        return (-(p * p.log()).sum()).exp()

    assert exercises.at_work(at_work).right
    assert exercises.at_work(lambda load: at_work(load).item()).right
    assert exercises.auxiliary_loss(auxiliary).right
    assert exercises.bias_step(step).right
    column = exercises.bias_step(lambda *given: (step(*given)[0][:, None], step(*given)[1]))
    assert column.right  # (n, 1), as a router returns it


@each(CHECKS)
def test_every_known_mistake_gets_its_own_message(check):
    assert_mistakes_are_named(check, at_least=8)


@each(CHECKS)
def test_an_unfinished_answer_is_told_so(check):
    assert_unfinished_is_told(check)


def test_zero_times_its_logarithm_is_not_passed_over():
    def nan(load):
        p = load / load.sum()
        return (-(p * p.log()).sum()).exp().item()

    assert "nan" in exercises.at_work(nan).message
    assert "Leave zeros out" in exercises.at_work(nan).message


def test_a_gradient_that_is_missing_or_another_is_found():
    def cut(logits, choice):
        return auxiliary(logits.detach(), choice)

    def through_f(logits, choice):
        """Values as they should be; the gradient comes through f and not through P."""
        chance = logits.softmax(-1)
        hard = F.one_hot(choice, logits.shape[1]).float().mean(1)
        soft = hard + chance - chance.detach()
        return logits.shape[1] * (soft.mean(0) * chance.detach().mean(0)).sum()

    def number(logits, choice):
        return auxiliary(logits, choice).item()

    assert "no gradient" in exercises.auxiliary_loss(cut).message
    assert "no gradient" in exercises.auxiliary_loss(number).message
    assert "through P alone" in exercises.auxiliary_loss(through_f).message


def test_a_pair_is_asked_for():
    check = exercises.bias_step
    assert "pair" in check(lambda *given: (step(*given)[0],)).message
    assert "pair" in check(lambda *given: (0.5, step(*given)[1])).message
    assert not check(lambda *given: step(*given)[1]).right
    assert not check(lambda *given: step(*given)[::-1]).right


def test_an_idle_last_expert_is_not_forgotten():
    def forgets(logits, choice):  # bincount without minlength
        share = choice.flatten().bincount() / choice.numel()
        return logits.shape[1] * (share * logits.softmax(dim=-1).mean(0)).sum()

    def forgets_too(logits, bias, rate):
        score = logits.sigmoid()
        chosen = (score + bias).argmax(-1)
        load = chosen.bincount().float()
        return score[torch.arange(len(score)), chosen], bias + rate * (load.mean() - load).sign()

    for check, answer in ((exercises.auxiliary_loss, forgets), (exercises.bias_step, forgets_too)):
        assert "idle last expert" in check(answer).message and not check(answer).right

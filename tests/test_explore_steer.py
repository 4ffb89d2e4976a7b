"""Steering: the choice changes, the score is the chosen expert's own, and nothing stays behind."""

import pytest
import torch

import minillama4 as ml4
from minillama4.explore.steer import at_random, force, off, ranked, steer

TOKENS = torch.arange(40).reshape(2, 20)


def model(**changes):
    torch.manual_seed(0)
    made = ml4.Llama4(ml4.Llama4Config.nano(**changes)).double().eval()
    for block in made.blocks:
        if hasattr(block.ffn, "router"):  # scores far apart: no ties
            torch.nn.init.normal_(block.ffn.router.weight)
    return made


def seen(made, choose, layers=None):
    with torch.no_grad(), steer(made, choose, layers), ml4.trace(made) as watched:
        made(TOKENS)
    return watched


def test_steering_by_the_routers_own_rule_changes_nothing():
    for top_k in (1, 2):
        made = model(top_k=top_k)
        plain = made(TOKENS)
        with steer(made, ranked(0)):
            assert torch.equal(made(TOKENS), plain)
        with steer(made, off()):
            assert torch.equal(made(TOKENS), plain)


def test_each_chooser_does_what_it_says_in_its_layers_only():
    made = model()
    own = seen(made, ranked(0))
    best = own.router[0].logits.argsort(dim=-1, descending=True)
    assert (
        not (seen(made, off(1, 2)).router[2].choice < 3)
        .logical_and(seen(made, off(1, 2)).router[2].choice > 0)
        .any()
    )
    assert (seen(made, force(3)).router[1].choice == 3).all()
    assert torch.equal(seen(made, ranked(1), [0]).router[0].choice[..., 0], best[..., 1])
    forced = seen(made, force(3), [2])
    assert torch.equal(forced.router[1].choice, own.router[1].choice)
    assert (forced.router[2].choice == 3).all() and (own.router[2].choice != 3).any()


def test_off_moves_only_the_tokens_of_that_expert_to_their_second_best():
    made = model()
    own, without = seen(made, ranked(0)), seen(made, off(2), [0])
    before, after = own.router[0].choice[..., 0], without.router[0].choice[..., 0]
    second = own.router[0].logits.topk(2).indices[..., 1]
    assert (before == 2).any()
    assert torch.equal(after, torch.where(before == 2, second, before))


def test_the_score_is_the_sigmoid_of_the_chosen_experts_own_logit():
    router = seen(model(), force(1)).router[3]
    torch.testing.assert_close(router.weight[..., 0], router.logits[..., 1].sigmoid())


def test_random_choices_are_even_repeatable_and_differ_between_layers():
    made = model(experts=4)
    first, again = seen(made, at_random(5)), seen(made, at_random(5))
    other = seen(made, at_random(6))
    assert torch.equal(first.router[0].choice, again.router[0].choice)
    assert not torch.equal(first.router[0].choice, other.router[0].choice)
    assert not torch.equal(first.router[0].choice, first.router[1].choice)
    with torch.no_grad(), steer(made, at_random(0), [0]), ml4.trace(made) as watched:
        for _ in range(50):
            made(TOKENS)
    assert watched.router[0].load.float().div(2000).sub(0.25).abs().max() < 0.05


def test_a_chooser_may_work_in_place():
    def in_place(logits, k):
        logits[:, 1] = float("inf")
        return logits.topk(k, dim=-1).indices

    made = model()
    with steer(made, in_place):
        changed = made(TOKENS)
    with steer(made, force(1)):
        assert torch.equal(made(TOKENS), changed)


def test_steering_by_the_routers_own_rule_changes_nothing_under_autocast_either():
    made = model().float()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        plain = made(TOKENS)
        with steer(made, ranked(0)):
            assert torch.equal(made(TOKENS), plain)


def test_two_experts_per_token_stay_two():
    made = model(top_k=2)
    for choose in (off(0), force(2), ranked(1), at_random(1)):
        choice = seen(made, choose).router[0].choice
        assert choice.shape == (2, 20, 2)
        assert (choice[..., 0] != choice[..., 1]).all()
    assert (seen(made, force(2)).router[0].choice == 2).any(-1).all()


def test_a_trace_outside_sees_the_routers_own_choice():
    made = model()
    with torch.no_grad(), ml4.trace(made) as outside, steer(made, force(3)):
        made(TOKENS)
    assert torch.equal(outside.router[0].choice, seen(made, ranked(0)).router[0].choice)


def test_nothing_stays_behind_after_an_error_either():
    made = model()
    plain = made(TOKENS)
    with pytest.raises(ValueError, match="no expert 9"), steer(made, force(9)):
        made(TOKENS)
    assert torch.equal(made(TOKENS), plain)
    assert not any(module._forward_hooks for module in made.modules())


def test_gradients_reach_the_router_of_a_steered_model():
    made = model()
    with steer(made, force(1)):
        made(TOKENS).sum().backward()
    grad = made.blocks[0].ffn.router.weight.grad
    assert grad[1].abs().sum() > 0 and not grad[[0, 2, 3]].any()


def test_what_cannot_be_steered_is_told():
    made = model(moe_every=2)
    with pytest.raises(LookupError, match=r"Layer 0 has no router.*\[1, 3\]"):
        steer(made, ranked(0), [0]).__enter__()
    with pytest.raises(TypeError, match="Linear"):
        steer(torch.nn.Linear(2, 2), ranked(0)).__enter__()
    with pytest.raises(TypeError, match=r"layers=\[1\]"):
        steer(made, ranked(0), 1).__enter__()
    twice = model(top_k=2)
    with pytest.raises(ValueError, match="twice"), steer(twice, lambda s, k: s.long()[:, :k] * 0):
        twice(TOKENS)
    wrong = {
        "experts off": off(0, 1, 2, 3),
        "place = 4": ranked(4),
        "int64 of shape": lambda logits, k: logits.argmax(-1),
        "names an expert": lambda logits, k: torch.full((len(logits), k), 7),
        "not list": lambda logits, k: [0],
    }
    for message, choose in wrong.items():
        with pytest.raises(ValueError, match=message), steer(made, choose):
            made(TOKENS)

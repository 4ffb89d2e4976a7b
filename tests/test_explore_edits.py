"""Experts switched off and forced, as the explorer asks for it: choices, losses, refusals."""

import pytest
import torch
import torch.nn.functional as F

import minillama4 as ml4
from minillama4.explore import steer, trace
from minillama4.explore.edits import CannotSteer, edited, knock_outs, losses
from minillama4.explore.steer import force, off


def nano(**changes):
    torch.manual_seed(0)
    model = ml4.Llama4(ml4.Llama4Config.nano(**changes)).eval()
    with torch.no_grad():
        for block in model.blocks:
            if hasattr(block.ffn, "router"):
                block.ffn.router.weight.mul_(8)
    return model


def tokens(model, length=24, seed=0):
    draw = torch.Generator().manual_seed(seed)
    return torch.randint(model.config.vocab_size - 1, (1, length), generator=draw)


def choices(model, ids, edits):
    with torch.no_grad(), edited(model, edits), trace(model) as seen:
        model(ids)
    return {layer: seen.router[layer].choice[0] for layer in seen.router}


def one(kind, expert, layer, token=None):
    edit = {"layer": layer, "kind": kind, "expert": expert}
    return edit if token is None else {**edit, "token": token}


@pytest.mark.parametrize("k", [1, 2])
def test_an_expert_that_is_off_is_asked_by_nobody(k):
    model = nano(top_k=k)
    ids, layer = tokens(model), model.config.moe_layers[-1]
    before = choices(model, ids, [])
    busiest = int(before[layer].flatten().mode().values)
    after = choices(model, ids, [one("off", busiest, layer)])
    assert (before[layer] == busiest).any() and not (after[layer] == busiest).any()
    kept = ~(before[layer] == busiest).any(-1)
    assert torch.equal(after[layer][kept], before[layer][kept])


def test_edits_are_what_steer_does():
    model = nano()
    ids, layer = tokens(model), model.config.moe_layers[0]
    for edit, choose in [(one("off", 1, layer), off(1)), (one("force", 2, layer), force(2))]:
        with torch.no_grad(), steer(model, choose, layers=[layer]):
            expected = model(ids)
        with torch.no_grad(), edited(model, [edit]):
            assert torch.equal(model(ids), expected)


def test_one_token_can_be_forced_and_a_later_force_wins():
    model = nano()
    ids, layer = tokens(model), model.config.moe_layers[0]
    before = choices(model, ids, [])[layer][:, 0]
    other = (int(before[7]) + 1) % model.config.experts
    after = choices(model, ids, [one("force", other, layer, token=7)])[layer][:, 0]
    assert after[7] == other
    assert torch.equal(after[torch.arange(24) != 7], before[torch.arange(24) != 7])
    both = [one("force", 0, layer), one("off", 0, layer), one("force", 1, layer, token=3)]
    mixed = choices(model, ids, both)[layer][:, 0]
    assert mixed[3] == 1 and not (mixed == 0).any()  # what was said last holds


def test_edits_in_several_layers_and_the_model_as_it_was():
    model = nano()
    ids, layers = tokens(model), model.config.moe_layers[:2]
    after = choices(model, ids, [one("force", e, layer) for e, layer in enumerate(layers)])
    assert all((after[layer] == e).all() for e, layer in enumerate(layers))
    assert not any(module._forward_hooks for module in model.modules())


@pytest.mark.parametrize(
    ("edits", "says"),
    [
        ([one("off", 99, 1)], "no expert 99: they are 0 to 3"),
        ([one("off", None, 1)], "no expert None"),
        ([one("off", 0, 7)], "Layer 7 has no router"),
        ([one("swap", 0, 1)], "off and force, not 'swap'"),
        ([one("force", 0, 1, token=24)], "no token 24: this text has 24"),
        ([one("off", e, 1) for e in range(4)], "Layer 1 needs 1 of its experts"),
    ],
)
def test_an_edit_that_cannot_be_is_refused_in_words(edits, says):
    model = nano(experts=4, moe_at=(1,))
    with pytest.raises(CannotSteer, match=says), edited(model, edits), torch.no_grad():
        model(tokens(model))
    assert not any(module._forward_hooks for module in model.modules())


def test_losses_are_of_each_token_given_those_before():
    model = nano()
    ids = tokens(model)
    with torch.no_grad():
        logits = model(ids)
    expected = [F.cross_entropy(logits[0, t - 1], ids[0, t]).item() for t in range(1, 24)]
    torch.testing.assert_close(losses(logits, ids)[0], torch.tensor(expected))


@pytest.mark.parametrize("changes", [{}, {"top_k": 2}, {"experts": 5}])
def test_knock_outs_are_each_expert_off_alone(changes, monkeypatch):
    model = nano(**changes)
    ids, layer = tokens(model), model.config.moe_layers[-1]
    monkeypatch.setattr("minillama4.explore.edits.AT_ONCE", 24 * 3)  # in batches of three
    found = knock_outs(model, ids, layer)
    assert found.shape == (model.config.experts, 23)
    with torch.no_grad():
        before = losses(model(ids), ids)[0]
        for expert in range(model.config.experts):
            with steer(model, off(expert), layers=[layer]):
                alone = losses(model(ids), ids)[0] - before
            torch.testing.assert_close(found[expert], alone, atol=2e-5, rtol=1e-4)
    assert found.abs().max() > 1e-3
    assert not any(module._forward_hooks for module in model.modules())


def test_where_every_expert_is_needed_none_can_be_off():
    model = nano(experts=2, top_k=2)
    with pytest.raises(CannotSteer, match="needs all of its 2 experts"):
        knock_outs(model, tokens(model), model.config.moe_layers[0])

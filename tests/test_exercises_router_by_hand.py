"""Checks of *A router by hand*: they pass what is right, and name what is wrong."""

import pytest
import torch
import torch.nn.functional as F
from einops import einsum

from minillama4.explore.exercises import broken_layers, router_by_hand
from minillama4.explore.exercises.broken_layers import MISTAKES, Layer
from minillama4.model.moe import MoE
from tests.exercises import assert_mistakes_are_named, each


def by_hand(layer, x):
    best, choice = (x @ layer.router.weight.T).topk(layer.router.top_k)
    scaled = einsum(best.sigmoid(), x, "n k, n m -> n k m")
    hidden = einsum(scaled, layer.experts.gate_up[choice], "n k m, n k m f -> n k f")
    gate, up = hidden.chunk(2, dim=-1)
    down = layer.experts.down[choice]
    return layer.shared(x) + einsum(F.silu(gate) * up, down, "n k f, n k f m -> n m")


def broken(layer):
    weight = layer.router.weight
    x = torch.randn(1, 20, weight.shape[1], dtype=weight.dtype)
    return not torch.allclose(layer(x)[0], by_hand(layer, x[0]), rtol=1e-4, atol=1e-4)


def right_weights(x, weight, k):
    score = x @ weight.T
    best, choice = score.topk(k)
    return torch.zeros_like(score).scatter(1, choice, best.sigmoid())


def right_gradient(x, weight, at_input):
    score = weight @ x
    e = score.argmax()
    g = torch.sigmoid(score[e])
    gradient = torch.zeros_like(weight)
    gradient[e] = g * (1 - g) * (at_input @ x) * x
    return gradient


def test_right_answers_pass():
    assert router_by_hand.expert_weights(right_weights).right
    assert router_by_hand.router_gradient(right_gradient).right
    torch.manual_seed(0)
    assert router_by_hand.is_broken(broken).right


@each([router_by_hand.expert_weights, router_by_hand.router_gradient])
def test_every_known_mistake_gets_its_own_message(check):
    assert_mistakes_are_named(check, at_least=9)


def test_weights_without_gradient_are_caught():
    verdict = router_by_hand.expert_weights(lambda x, w, k: right_weights(x, w.detach(), k))
    assert not verdict.right and "no gradient" in verdict.message


def test_weights_that_do_not_keep_the_dtype_are_caught():
    def in_float32(x, weight, k):
        best, choice = (x @ weight.T).topk(k)
        return torch.zeros(len(x), len(weight)).scatter(1, choice, best.sigmoid())

    def rounded(x, weight, k):
        return right_weights(x, weight, k).float()

    for answer in (in_float32, rounded):
        verdict = router_by_hand.expert_weights(answer)
        assert not verdict.right and "torch.zeros_like" in verdict.message


def test_sigmoid_after_the_table_is_named():
    def answer(x, weight, k):
        score = x @ weight.T
        chosen = torch.zeros_like(score).scatter(1, score.topk(k).indices, 1.0)
        return (score * chosen).sigmoid()

    verdict = router_by_hand.expert_weights(answer)
    assert not verdict.right and "0.5" in verdict.message and "Sigmoid first" in verdict.message


def test_a_gradients_chosen_gate_is_not_saturated():
    for seed in range(router_by_hand.router_gradient.trials):
        x, weight, _ = router_by_hand.router_gradient.inputs(seed)
        g = torch.sigmoid((weight @ x).max())
        assert g * (1 - g) > 0.02


# The bug hunt ------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("top_k", [1, 2, 3])
@torch.no_grad()
def test_without_a_mistake_the_broken_form_is_the_librarys(top_k, dtype):
    layer = Layer(None, top_k).to(dtype)
    x = torch.randn(3, 5, 16, dtype=dtype)
    flat = broken_layers._output(layer, x.flatten(0, 1)).view_as(x)
    torch.testing.assert_close(flat, MoE.forward(layer, x))
    torch.testing.assert_close(layer(x), MoE.forward(layer, x))


@pytest.mark.parametrize("mistake", MISTAKES)
@torch.no_grad()
def test_every_mistake_moves_the_output_a_lot(mistake):
    for layer in broken_layers._broken(mistake):
        x = torch.randn(1, 50, 16, generator=torch.Generator().manual_seed(1))
        right = MoE.forward(layer, x)
        assert (layer(x) - right).norm() > 0.05 * right.norm()
        assert repr(layer) == repr(Layer(None, layer.router.top_k))  # it does not tell


@torch.no_grad()
def test_one_suspect_is_broken():
    torch.manual_seed(0)
    assert {name: broken(layer) for name, layer in router_by_hand.suspects().items()} == {
        "A": False,
        "B": True,
        "C": False,
    }


def shape_only(layer):
    x = torch.randn(2, 3, 16, dtype=layer.router.weight.dtype)
    return layer(x).shape != x.shape


def zero_only(layer):
    x = torch.zeros(1, 3, 16, dtype=layer.router.weight.dtype)
    return bool(layer(x).any())


def gradient_only(layer):
    layer.router.weight.grad = None
    layer(torch.randn(1, 9, 16, dtype=layer.router.weight.dtype)).sum().backward()
    gradient = layer.router.weight.grad
    return gradient is None or bool(gradient.abs().max() < 1e-6)


def to_the_last_bit(layer):
    x = torch.randn(1, 20, 16, dtype=layer.router.weight.dtype)
    return not torch.equal(layer(x)[0], by_hand(layer, x[0]))


def todo(layer):
    raise NotImplementedError


@pytest.mark.parametrize(
    "test, words",
    [
        (lambda layer: True, "every layer broken"),
        (lambda layer: False, "0 of 11 mistakes caught"),
        (lambda layer: None, "return missing"),
        (shape_only, "0 of 11 mistakes caught"),
        (zero_only, "0 of 11 mistakes caught"),
        (gradient_only, "got away: the score on the expert's output"),
        (to_the_last_bit, "room for rounding"),
        (lambda layer: layer.router.top_k == 2, "false alarm"),
        (lambda layer: layer.nothing, "AttributeError"),
        (todo, "still to do"),
    ],
)
def test_weak_tests_of_layers_are_told_what_they_lack(test, words):
    torch.manual_seed(0)
    verdict = router_by_hand.is_broken(test)
    assert not verdict.right and words in verdict.message

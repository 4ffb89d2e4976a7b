"""Experts: three ways to the same numbers, sparse indeed, and the score on the expert's input."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from minillama4.model.moe import Experts, Router, looped_experts, naive_experts, swiglu
from tests.reference import error, noise, random_tokens, seeds, small

TOLERANCE = {torch.float32: 1e-6, torch.float64: 1e-13}


def experts_and_tokens(experts, width, hidden, tokens, top_k, seed, dtype, choice=None):
    """Random experts, and tokens that choose distinct experts with scores in (0, 1)."""
    module = Experts(experts, width, hidden).to(dtype)
    with torch.no_grad():
        module.gate_up.copy_(1.5 * noise(experts, width, 2 * hidden, seed=seed) / width**0.5)
        module.down.copy_(1.5 * noise(experts, hidden, width, seed=seed + 1) / hidden**0.5)
    x, logits = noise(tokens, width, seed=seed + 2), noise(tokens, experts, seed=seed + 3)
    score, wanted = logits.topk(top_k, dim=-1)
    return module, x.to(dtype), torch.sigmoid(score).to(dtype), wanted if choice is None else choice


def both_kernels(module, x, score, choice):
    """The library's forward, by the loop and (where the sizes allow) by grouped_mm."""
    pair = choice.flatten().argsort(stable=True)
    scaled = (x[pair // choice.shape[1]] * score.flatten()[pair, None]).contiguous()
    load = choice.flatten().bincount(minlength=len(module.down))
    ways = [module._split] + ([module._grouped] if module._can_group(scaled) else [])
    for way in ways:
        yield torch.zeros_like(x).index_add(0, pair // choice.shape[1], way(scaled, load))


def value_and_gradients(function, module, x, score, choice):
    x, score = x.clone().requires_grad_(), score.clone().requires_grad_()
    out = function(module, x, score, choice)
    weight = torch.linspace(-1, 1, out.numel(), dtype=out.dtype).view_as(out)
    inputs = [x, score, module.gate_up, module.down]
    return [out, *torch.autograd.grad((out * weight).sum(), inputs)]


def forward(module, x, score, choice):
    return module(x, score, choice)


def agree(module, x, score, choice):
    reference = value_and_gradients(naive_experts, module, x, score, choice)
    ways = [looped_experts, forward]
    ways += [lambda *args, i=i: list(both_kernels(*args))[i] for i in range(2)]
    if len(list(both_kernels(module, x, score, choice))) == 1:
        ways.pop()
    for way in ways:
        found = value_and_gradients(way, module, x, score, choice)
        for ours, theirs in zip(found, reference, strict=True):
            assert error(ours, theirs) < TOLERANCE[x.dtype]


@settings(max_examples=60, deadline=None)
@given(
    experts=st.integers(1, 8),
    width=st.sampled_from([4, 8, 12, 16, 5, 7]),
    hidden=st.sampled_from([4, 8, 16, 20, 3, 9]),
    tokens=st.integers(1, 40),
    top_k=st.integers(1, 3),
    seed=seeds(),
    dtype=st.sampled_from([torch.float32, torch.float64]),
)
def test_naive_looped_and_grouped_agree(experts, width, hidden, tokens, top_k, seed, dtype):
    sizes = max(experts, top_k), width, hidden, tokens, top_k
    agree(*experts_and_tokens(*sizes, seed, dtype))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("favourite", [0, 2, 3])
def test_all_tokens_on_one_expert(favourite, dtype):
    """Three experts of four are empty: first, middle or last one full."""
    choice = torch.full((20, 1), favourite)
    module, x, score, choice = experts_and_tokens(4, 8, 12, 20, 1, 0, dtype, choice)
    agree(module, x, score, choice)
    gradient = value_and_gradients(forward, module, x, score, choice)[3]
    idle = [e for e in range(4) if e != favourite]
    assert not gradient[idle].any() and gradient[favourite].abs().min() > 0


def test_the_grouped_kernel_is_in_use():
    """Else the tests above would compare the loop with itself."""
    module, x, score, choice = experts_and_tokens(4, 8, 12, 20, 1, 0, torch.float32)
    assert len(list(both_kernels(module, x, score, choice))) == 2
    assert module._can_group(x) and not module._can_group(x[:15])
    assert not module._can_group(x.double())
    assert not Experts(4, 7, 12)._can_group(torch.zeros(20, 7))


@pytest.mark.parametrize("shape", [(0, 3), (2, 0)])
def test_nothing_to_read_is_told(shape):
    with pytest.raises(ValueError, match="both above 0"):
        small()(torch.zeros(shape, dtype=torch.int64))


@pytest.mark.parametrize("grad", [True, False])
@pytest.mark.parametrize("expert", range(4))
def test_a_token_touches_its_expert_only(expert, grad):
    """The weights of all others are poisoned: whoever reads them gets NaN."""
    choice = torch.tensor([[expert]])
    module, x, score, choice = experts_and_tokens(4, 8, 12, 1, 1, 0, torch.float32, choice)
    with torch.no_grad():
        clean = module(x, score, choice)
        others = [e for e in range(4) if e != expert]
        module.gate_up[others], module.down[others] = float("nan"), float("nan")
    with torch.set_grad_enabled(grad):
        assert torch.equal(module(x, score, choice), clean)
        assert naive_experts(module, x, score, choice).isnan().all()  # this one reads everything


@torch.no_grad()
def test_the_order_of_experts_and_of_tokens_does_not_matter():
    model = small(top_k=2)
    moe, x = model.blocks[0].ffn, noise(2, 9, 16)
    before = moe(x)
    assert error(moe(x.flip(1)).flip(1), before) < 1e-13
    order = torch.tensor([2, 0, 3, 1])
    for weight in (moe.router.weight, moe.experts.gate_up, moe.experts.down):
        weight.copy_(weight[order].clone())
    assert error(moe(x), before) < 1e-13


# ------------------------------------------------------------------ the formula
@torch.no_grad()
@pytest.mark.parametrize("top_k", [1, 2, 3])
def test_the_formula_token_by_token(top_k):
    """Shared(x) + sum of Expert_e(sigmoid(score_e) · x), written out with plain loops."""
    moe = small(top_k=top_k).blocks[0].ffn
    x = noise(1, 7, 16)
    for ours, token in zip(moe(x)[0], x[0], strict=True):
        logits = moe.router.weight @ token
        out = moe.shared.down.weight @ (
            F.silu(moe.shared.gate.weight @ token) * (moe.shared.up.weight @ token)
        )
        for e in logits.argsort(descending=True)[:top_k]:
            scaled = torch.sigmoid(logits[e]) * token
            gate, up = (scaled @ moe.experts.gate_up[e]).split(16)
            out += (F.silu(gate) * up) @ moe.experts.down[e]
        assert error(ours, out) < 1e-12


def test_the_score_belongs_on_the_input():
    module, x, score, choice = experts_and_tokens(1, 8, 12, 5, 1, 0, torch.float64)
    weights = module.gate_up[0], module.down[0]
    assert error(score * swiglu(x, *weights), swiglu(score * x, *weights)) > 0.1
    assert error(module(x, score, choice), swiglu(score * x, *weights)) < 1e-13


@torch.no_grad()
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_router_scores_are_sigmoids_of_the_best_logits(dtype):
    router, x = Router(8, 5, 3).to(dtype), noise(11, 8, dtype=dtype)
    router.weight.copy_(noise(5, 8, seed=1))
    score, choice = router(x)
    logits = router.logits(x)
    assert score.dtype == dtype and choice.dtype == torch.int64 and choice.shape == (11, 3)
    assert torch.equal(choice, logits.sort(dim=-1, descending=True, stable=True).indices[:, :3])
    best = logits.gather(1, choice)
    assert torch.equal(score, torch.sigmoid(best.float()).to(dtype))  # in float32, then cast
    assert (score.sum(1) != 1).all()  # not renormalised


def test_the_router_learns_from_the_score_also_with_one_expert_chosen():
    moe, x = small().blocks[0].ffn, noise(2, 9, 16)
    moe(x).square().sum().backward()
    chosen = moe.router(x.flatten(0, 1))[1].unique()
    assert moe.router.weight.grad[chosen].abs().amax(1).min() > 0


@pytest.mark.parametrize("length", [2, 40])
def test_autocast_runs_and_is_near(length):
    model = small()
    model.float()
    tokens = random_tokens(model.config, 1, length)
    with torch.autocast("cpu", torch.bfloat16):
        near = model(tokens)
    gap = (near.float() - model(tokens)).abs()
    assert torch.isfinite(near).all() and gap.median() < 0.05  # a flipped route moves a few far

"""Choosing a token: the distribution is transformers', and what its options promise holds."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers.generation.logits_process import (
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from minillama4.serve.sampling import Sampling, generator


@st.composite
def logits(draw):
    """(rows, vocabulary), from nearly even to nearly certain, all numbers different."""
    rows, size = draw(st.integers(1, 3)), draw(st.integers(2, 30))
    spread = draw(st.sampled_from([0.01, 1.0, 5.0, 50.0]))
    order = torch.Generator().manual_seed(draw(st.integers(0, 2**16)))
    ranks = torch.stack([torch.randperm(size, generator=order) for _ in range(rows)])
    return spread * (ranks + torch.rand(rows, 1, generator=order)) / size


temperatures = st.floats(0.05, 5.0)
ks = st.none() | st.integers(1, 40)
ps = st.none() | st.floats(0.01, 1.0)


def theirs(x, temperature, k, p):
    """transformers, in its order."""
    steps = [TemperatureLogitsWarper(float(temperature))]
    steps += [] if k is None else [TopKLogitsWarper(k)]
    steps += [] if p is None or p == 1 else [TopPLogitsWarper(p)]
    for step in steps:
        x = step(None, x)
    return x.softmax(-1)


@settings(max_examples=200, deadline=None)
@given(logits(), temperatures, ks, ps)
def test_the_distribution_is_that_of_transformers(x, temperature, k, p):
    ours = Sampling(temperature, k, p).probabilities(x.double())
    other = theirs(x.double(), temperature, k, p)
    if p is not None:  # a sum that equals p to the last bit may round to either side
        sums = theirs(x.double(), temperature, k, None).sort(descending=True).values.cumsum(-1)
        if (sums - p).abs().min() < 1e-9:
            return
    torch.testing.assert_close(ours, other, rtol=1e-9, atol=1e-12)


@settings(max_examples=200, deadline=None)
@given(logits(), temperatures, ks, ps)
def test_what_each_option_promises(x, temperature, k, p):
    found = Sampling(temperature, k, p).probabilities(x)
    torch.testing.assert_close(found.sum(-1), torch.ones(len(x)))
    assert (found.argmax(-1) == x.argmax(-1)).all()  # the most likely stays, and stays first
    kept = found > 0
    if k is not None:
        assert (kept.sum(-1) <= k).all()
    if p is None:
        return
    whole = Sampling(temperature, k).probabilities(x)
    inside = (whole * kept).sum(-1)
    smallest = whole.masked_fill(~kept, 2).min(-1).values
    assert (inside >= p - 1e-5).all()  # the set reaches p
    assert ((inside - smallest < p + 1e-5) | (p == 1)).all()  # and without its last does not


def test_the_token_that_crosses_p_is_kept():
    x = torch.tensor([[0.5, 0.3, 0.2]]).log()
    kept = [(Sampling(1.0, top_p=p).probabilities(x) > 0).sum().item() for p in (0.4, 0.6, 0.9, 1)]
    assert kept == [1, 2, 3, 3]


def test_top_p_counts_what_top_k_has_left():
    x = torch.tensor([[0.4, 0.2, 0.2, 0.2]]).log()
    first = Sampling(1.0, top_k=1, top_p=0.9).probabilities(x)
    assert first.tolist() == [[1, 0, 0, 0]]  # of all four, 0.9 would take every one
    # temperature comes first: it decides how many reach p
    cold, hot = (
        Sampling(t, top_p=0.5).probabilities(torch.tensor([[3.0, 2, 1, 0]])) for t in (0.5, 9.0)
    )
    assert ((cold > 0).sum(), (hot > 0).sum()) == (1, 2)


def test_temperature_zero_is_certain_and_the_smallest_is_nearly():
    x = torch.tensor([[1.0, 3.0, 2.0]])
    for temperature in (0, 1e-6, 1e-40):
        found = Sampling(temperature).probabilities(x)
        torch.testing.assert_close(found, torch.tensor([[0.0, 1, 0]]))


def test_draws_follow_the_distribution():
    x = torch.tensor([0.5, 0.3, 0.15, 0.05]).log().expand(20_000, 4)
    drawn = Sampling(1.0, top_k=3).choose(x, generator(0, x.device))
    share = drawn.bincount(minlength=4) / len(x)
    expected = torch.tensor([0.5, 0.3, 0.15, 0.0]) / 0.95
    torch.testing.assert_close(share, expected, atol=0.015, rtol=0)


def test_half_precision_is_widened():
    x = torch.randn(2, 50).bfloat16()
    assert Sampling(1.0, top_p=0.9).probabilities(x).dtype == torch.float32


def test_seeds():
    cpu = torch.device("cpu")
    first, same, other = (torch.rand(5, generator=generator(s, cpu)) for s in (1, 1, 2))
    assert first.equal(same) and not first.equal(other)
    mine = torch.Generator()
    assert generator(mine, cpu) is mine
    anywhere = [torch.rand(1, generator=generator(None, cpu)) for _ in range(2)]
    assert anywhere[0] != anywhere[1]


@pytest.mark.parametrize(
    ("name", "wrong"),
    [
        *(("temperature", x) for x in (-0.1, float("inf"), float("nan"), None, "hot")),
        *(("top_k", x) for x in (0, -1, 2.0, True)),
        *(("top_p", x) for x in (0, -0.5, 1.01, float("nan"), True)),
    ],
)
def test_options_that_are_not_possible(name, wrong):
    with pytest.raises(ValueError, match=f"{name} must be"):
        Sampling(**{name: wrong})
    with pytest.raises(TypeError, match="seed must be"):
        generator("1", torch.device("cpu"))

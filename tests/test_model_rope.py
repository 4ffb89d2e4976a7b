"""Angles: frequencies as transformers computes them, rotations that keep lengths and distances."""

import math

import pytest
import torch
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS
from transformers.models.llama4 import modeling_llama4

import minillama4 as ml4
from minillama4.model.rope import rope_frequencies, rotate, rotation, vision_rotation
from tests.reference import error, hf_config, noise, scalings, vision_configs


def hf_frequencies(head_width, theta, scaling):
    config = ml4.Llama4Config(head_width=head_width, rope_theta=theta, rope_scaling=scaling)
    hf = hf_config(config)
    if scaling is None:
        return modeling_llama4.Llama4TextRotaryEmbedding.compute_default_rope_parameters(hf)[0]
    return ROPE_INIT_FUNCTIONS["llama3"](hf)[0]


# ------------------------------------------------------------------ frequencies
def test_scout_divides_29_of_64_frequencies_by_16():
    scout = ml4.Llama4Config.scout()
    plain = rope_frequencies(128, scout.rope_theta)
    scaled = rope_frequencies(128, scout.rope_theta, scout.rope_scaling)
    assert torch.equal(scaled[:35], plain[:35])
    assert torch.equal(scaled[35:], plain[35:] / 16)
    wavelength = 2 * math.pi / plain.double()
    assert wavelength[34] < 8192 < wavelength[35] == pytest.approx(8218.7, abs=0.05)
    assert 2 * math.pi / scaled[-1].item() == pytest.approx(40.9e6, rel=2e-3)


def test_frequencies_by_the_formula():
    ours = rope_frequencies(128, 500_000.0).double()
    formula = torch.tensor([500_000.0 ** (-2 * i / 128) for i in range(64)], dtype=torch.float64)
    assert (ours / formula - 1).abs().max() < 1e-6
    assert ours[0] == 1 and rope_frequencies(128, 500_000.0).dtype == torch.float32


@pytest.mark.parametrize("theta", [10_000.0, 500_000.0])
@pytest.mark.parametrize("head_width", [2, 8, 88, 128])
@pytest.mark.parametrize("scaling", [None, ml4.RopeScaling(), ml4.RopeScaling(16, 1, 1, 64)])
def test_without_a_ramp_frequencies_are_bit_for_bit_those_of_transformers(
    head_width, theta, scaling
):
    theirs = hf_frequencies(head_width, theta, scaling)
    assert torch.equal(rope_frequencies(head_width, theta, scaling), theirs)


@settings(max_examples=60, deadline=None)
@given(st.sampled_from([2, 4, 8, 64, 128]), st.sampled_from([100.0, 10_000.0, 5e5]), scalings())
def test_any_scaling_equals_transformers(head_width, theta, scaling):
    theirs = hf_frequencies(head_width, theta, scaling)
    ours = rope_frequencies(head_width, theta, scaling)
    torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=0)
    assert ours.isfinite().all()


def test_llama_3_1_values_leave_29_ramp_6_and_divide_29():
    """Why a converted file with factors 8 and 4 must not be taken for Scout's."""
    plain = rope_frequencies(128, 500_000.0)
    ratio = plain / rope_frequencies(128, 500_000.0, ml4.RopeScaling(8, 1, 4, 8192))
    assert (ratio == 1).sum() == 29 and (ratio == 8).sum() == 29
    assert ((ratio > 1) & (ratio < 8)).sum() == 6


def test_a_frequency_exactly_on_the_border_is_finite():
    theta = 100.0
    border = 2 * math.pi / rope_frequencies(8, theta)[2].item()
    for high in (1, 4):
        scaling = ml4.RopeScaling(16, 1, high, round(border))
        assert rope_frequencies(8, theta, scaling).isfinite().all()


# ------------------------------------------------------------------ rotation
def turned(x, positions, head_width=8):
    return rotate(x, rotation(positions, rope_frequencies(head_width, 100.0)))


def test_neighbouring_channels_turn_together():
    """Channel 2i is cos, channel 2i+1 sin, of angle p · frequency_i: pairs, not halves."""
    x = torch.zeros(1, 3, 1, 8)
    x[..., ::2] = 1
    out = turned(x, torch.tensor([[0, 1, 7]]))[0, :, 0]
    angle = torch.tensor([0, 1, 7])[:, None] * rope_frequencies(8, 100.0)
    assert error(out[:, ::2], angle.cos()) < 1e-6 and error(out[:, 1::2], angle.sin()) < 1e-6


def test_lengths_stay_and_scores_depend_on_the_distance_alone():
    q, k = noise(2, 1, 1, 1, 8)
    q_length = turned(q, torch.tensor([[1000]])).norm()
    assert error(q_length, q.norm()) < 1e-6
    scores = [
        (turned(q, torch.tensor([[p + 5]])) * turned(k, torch.tensor([[p]]))).sum()
        for p in (0, 1, 40, 1000)
    ]
    assert max(scores) - min(scores) < 1e-3 * q.norm() * k.norm()
    far = (turned(q, torch.tensor([[9]])) * turned(k, torch.tensor([[0]]))).sum()
    assert abs(far - scores[0]) > 0.01


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64])
def test_rotate_equals_transformers_in_its_dtype(dtype):
    """bf16 is turned in float32 and rounded once: bit for bit."""
    q, k = noise(2, 2, 9, 3, 8, dtype=dtype)
    turn = rotation(torch.arange(9)[None], rope_frequencies(8, 100.0))
    ours = rotate(q, turn), rotate(k, turn)
    theirs = modeling_llama4.apply_rotary_emb(q, k, turn)
    limit = 1e-6 if dtype == torch.float64 else 0  # transformers narrows float64
    for one, other in zip(ours, theirs, strict=True):
        assert one.dtype == dtype and error(one, other) <= limit


def test_angles_are_float32_also_for_positions_in_the_millions():
    turn = rotation(torch.tensor([[10_485_759]]), rope_frequencies(128, 5e5, ml4.RopeScaling()))
    assert turn.dtype == torch.complex64
    assert error(turn.abs(), torch.ones(1, 1, 64)) < 1e-6
    slowest = 10_485_759 * rope_frequencies(128, 5e5, ml4.RopeScaling())[-1].double()
    assert turn[0, 0, -1].angle().item() == pytest.approx(slowest.item(), rel=1e-5)


# ------------------------------------------------------------------ two dimensions
@settings(max_examples=30, deadline=None)
@given(vision_configs())
def test_vision_angles_equal_transformers(config):
    hf = hf_config(ml4.Llama4Config.nano(vision=config)).vision_config
    theirs = modeling_llama4.Llama4VisionRotaryEmbedding._compute_freqs_ci(hf)[:, 0]
    ours = vision_rotation(config)[0]
    assert ours.shape == theirs.shape == (config.grid**2 + 1, config.width // config.heads // 2)
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-6)


def test_vision_angles_of_the_real_encoder():
    """Column first, row second, both counted from 1; the class token is last and still."""
    v = ml4.VisionConfig()
    turn = vision_rotation(v)[0].view(-1, 44)
    frequency = torch.tensor([10_000.0 ** (-2 * m / 44) for m in range(22)])
    for row, column in [(0, 0), (0, 5), (3, 0), (23, 11)]:
        angle = torch.cat([(column + 1) * frequency, (row + 1) * frequency])
        expected = torch.polar(torch.ones(44), angle)
        torch.testing.assert_close(turn[row * 24 + column], expected, rtol=0, atol=1e-5)
    assert torch.equal(turn[-1], torch.ones(44, dtype=torch.complex64))
    theirs = transformers.Llama4VisionConfig(hidden_size=1408, image_size=336)
    theirs = modeling_llama4.Llama4VisionRotaryEmbedding._compute_freqs_ci(theirs)[:, 0]
    torch.testing.assert_close(turn, theirs, rtol=0, atol=1e-5)

"""The whole model equals transformers': logits and gradients, over random configurations."""

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from minillama4.checkpoint import hf_name
from tests.reference import (
    SINGLE,
    TIGHT,
    configs,
    error,
    hf_logits,
    hf_twin,
    noise,
    place_patches,
    random_images,
    random_model,
    random_tokens,
    router_margin,
    seeds,
    small,
    small_multimodal,
)


@torch.no_grad()
@settings(max_examples=100, deadline=None)
@given(configs(), seeds(), st.integers(0, 12))
def test_logits_in_float64(config, seed, extra):
    model = random_model(config, seed)
    tokens = random_tokens(config, 2, 4 * config.chunk + extra, seed)  # more than four chunks
    assert error(model(tokens), hf_logits(hf_twin(model), tokens)) < TIGHT


@torch.no_grad()
@settings(max_examples=60, deadline=None)
@given(configs(), seeds(), st.integers(0, 12))
def test_logits_in_float32(config, seed, extra):
    model = random_model(config, seed, torch.float32)
    tokens = random_tokens(config, 2, 4 * config.chunk + extra, seed)
    assume(router_margin(model, tokens) > 1e-4)  # else rounding may pick another expert
    assert error(model(tokens), hf_logits(hf_twin(model), tokens)) < SINGLE


@torch.no_grad()
@settings(max_examples=50, deadline=None)
@given(configs(vision=True), seeds())
def test_multimodal_logits_in_float64(config, seed):
    model = random_model(config, seed)
    size = config.vision.tokens_per_tile
    tokens = random_tokens(config, 2, max(4 * config.chunk, 2 * size + 5), seed)
    tokens = place_patches(config, tokens, (0, 1), (0, size + 3), (1, 2))  # two tiles and one
    images = random_images(config, 3, torch.float64, seed)
    ours = model(tokens, images=images)
    assert error(ours, hf_logits(hf_twin(model), tokens, images)) < TIGHT
    assert error(model(tokens, images=images.flip(0)), ours) > 1e-4  # the order of tiles matters


@torch.no_grad()
def test_multimodal_logits_in_float32():
    model = small_multimodal(dtype=torch.float32)
    tokens = place_patches(model.config, random_tokens(model.config, 2, 37), (0, 3), (1, 9))
    images = random_images(model.config, 2, torch.float32)
    assert router_margin(model, tokens, images=images) > 1e-4
    assert error(model(tokens, images=images), hf_logits(hf_twin(model), tokens, images)) < SINGLE


@torch.no_grad()
def test_a_multimodal_model_without_images_is_its_text_model():
    model = small_multimodal()
    tokens = random_tokens(model.config, 2, 37)
    assert error(model(tokens), hf_logits(hf_twin(model), tokens)) < TIGHT


def gradients(model, twin, tokens, images=None, seed=0):
    """(name, ours, theirs) for every parameter, of a random linear function of the logits."""
    ours, theirs = model(tokens, images=images), hf_logits(twin, tokens, images)
    weight = noise(*ours.shape, seed=seed, dtype=ours.dtype)
    (ours * weight).sum().backward()
    (theirs * weight).sum().backward()
    reference = dict(twin.named_parameters())
    for name, parameter in model.named_parameters():
        yield name, parameter.grad, reference[hf_name(name, model.vision is not None)].grad


@settings(max_examples=50, deadline=None)
@given(configs(), seeds())
def test_gradients(config, seed):
    model = random_model(config, seed)
    tokens = random_tokens(config, 2, 4 * config.chunk + 1, seed)
    for name, ours, theirs in gradients(model, hf_twin(model), tokens, seed=seed):
        assert error(ours, theirs) < 1e-9, name  # backward sums the errors of forward
        assert ours.abs().max() > 1e-9, f"nothing reaches {name}"  # the router included


def test_gradients_in_float32_with_grouped_experts():
    model = small(dtype=torch.float32, top_k=2)
    tokens = random_tokens(model.config, 2, 37)
    assert router_margin(model, tokens) > 1e-4
    for name, ours, theirs in gradients(model, hf_twin(model), tokens):
        assert error(ours, theirs) < 1e-3, name


def test_multimodal_gradients():
    model = small_multimodal()
    tokens = place_patches(model.config, random_tokens(model.config, 2, 37), (0, 3), (1, 9))
    images = random_images(model.config, 2, torch.float64)
    for name, ours, theirs in gradients(model, hf_twin(model), tokens, images):
        assert error(ours, theirs) < 1e-9, name
        assert ours.abs().max() > 1e-9, f"nothing reaches {name}"


@torch.no_grad()
@pytest.mark.parametrize("length", [1, 7, 8, 9, 16, 17, 37])
def test_lengths_around_a_chunk_border(length):
    model = small()
    tokens = random_tokens(model.config, 3, length)
    assert error(model(tokens), hf_logits(hf_twin(model), tokens)) < TIGHT


@torch.no_grad()
def test_without_a_chunk_rope_layers_see_everything():
    model = small(chunk=None)
    tokens = random_tokens(model.config, 2, 37)
    assert error(model(tokens), hf_logits(hf_twin(model), tokens)) < TIGHT
    assert error(small(chunk=8)(tokens)[:, 8:], model(tokens)[:, 8:]) > 0.01

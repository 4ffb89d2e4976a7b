"""The eye: patches, encoder, pixel shuffle and adapter, piece by piece against transformers."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers.models.llama4 import modeling_llama4

import minillama4 as ml4
from minillama4.model.vision import pixel_shuffle
from tests.reference import (
    SMALL,
    TIGHT,
    error,
    full_precision,
    hf_twin,
    noise,
    place_patches,
    random_images,
    random_model,
    random_tokens,
    seeds,
    small_multimodal,
    vision_configs,
)


@torch.no_grad()
@settings(max_examples=25, deadline=None)
@given(vision_configs(), st.integers(1, 3), seeds())
def test_encoder_adapter_and_projection(vision, tiles, seed):
    model = random_model(ml4.Llama4Config(**SMALL, vision=vision), seed)
    images, twin = random_images(model.config, tiles, torch.float64, seed), hf_twin(model)
    encoded = []
    twin.vision_model.layernorm_post.register_forward_hook(lambda *a: encoded.append(a[2]))
    with full_precision():
        adapted = twin.vision_model(images).last_hidden_state
        projected = twin.multi_modal_projector(adapted)
    assert error(model.vision.encode(images), encoded[0][:, :-1]) < TIGHT
    assert error(model.vision(images), projected) < TIGHT


@pytest.mark.parametrize("grid", [2, 4, 6, 24])
def test_pixel_shuffle_equals_transformers(grid):
    x = noise(2, grid**2, 6)
    assert torch.equal(pixel_shuffle(x, 2), modeling_llama4.pixel_shuffle(x, 0.5))


def test_pixel_shuffle_by_hand():
    """A 4 × 4 grid of numbered patches: each token holds a 2 × 2 square, row by row."""
    patches = torch.arange(16.0).view(1, 16, 1)
    assert pixel_shuffle(patches, 2)[0].tolist() == [
        [0, 1, 4, 5],
        [2, 3, 6, 7],
        [8, 9, 12, 13],
        [10, 11, 14, 15],
    ]


@torch.no_grad()
def test_patches_are_unfolded_by_channel_row_and_column():
    model = small_multimodal()
    images, seen = random_images(model.config, 2, torch.float64), []
    hook = model.vision.patches.register_forward_hook(lambda *a: seen.append(a[1][0]))
    model.vision.encode(images)
    hook.remove()
    unfolded = torch.nn.functional.unfold(images, 2, stride=2).mT  # i p (c y x)
    assert torch.equal(seen[0], unfolded)


@torch.no_grad()
def test_only_patch_tokens_are_replaced_in_reading_order():
    model = small_multimodal()
    c = model.config
    tokens = place_patches(c, random_tokens(c, 2, 14), (0, 2), (0, 8), (1, 5))
    images = random_images(c, 3, torch.float64)
    seen = []
    model.blocks[0].register_forward_hook(lambda *a: seen.append(a[1][0]))
    model(tokens, images=images)
    expected = model.embed(tokens)
    vectors = model.vision(images)
    expected[0, 2:6], expected[0, 8:12], expected[1, 5:9] = vectors
    assert error(seen[0], expected) < 1e-13


@torch.no_grad()
def test_tiles_do_not_see_each_other():
    model = small_multimodal()
    images = random_images(model.config, 3, torch.float64)
    together = model.vision(images)
    alone = torch.cat([model.vision(tile[None]) for tile in images])
    assert error(together, alone) < 1e-13


def test_the_real_encoder_turns_336_pixels_into_144_tokens():
    v = ml4.VisionConfig()
    assert (v.grid, v.tokens_per_tile) == (24, 144)
    with torch.device("meta"):
        model = ml4.model.vision.Vision(v, 5120)
    assert model(torch.empty(2, 3, 336, 336, device="meta")).shape == (2, 144, 5120)


@torch.no_grad()
def test_images_of_another_dtype_are_cast():
    model = small_multimodal(dtype=torch.float32)
    images = random_images(model.config, 1, torch.float64)
    assert model.vision(images).dtype == torch.float32
    half = small_multimodal(dtype=torch.bfloat16)
    tokens = place_patches(half.config, random_tokens(half.config, 1, 9), (0, 2))
    assert half(tokens, images=images).dtype == torch.bfloat16


def test_images_that_do_not_fit_are_refused():
    model = small_multimodal()
    c = model.config
    tokens = place_patches(c, random_tokens(c, 1, 9), (0, 2))
    image = random_images(c, 1, torch.float64)
    with pytest.raises(ValueError, match="2 tiles make 8 vectors, but the tokens hold 4"):
        model(tokens, images=image.repeat(2, 1, 1, 1))
    with pytest.raises(ValueError, match="images must have shape"):
        model(tokens, images=image[..., :-1])
    with pytest.raises(ValueError, match="reads text only"):
        text = ml4.Llama4(ml4.Llama4Config(**SMALL))
        text(tokens, images=image)

"""The living reference: transformers' Llama 4 holding the weights of one of our models.

Two models agree only as far as they round alike. transformers narrows to float32 inside its norms,
its router and its RoPE, even in a float64 model; ``full_precision`` takes those casts away. What
remains is float64's own rounding, 1e-15 per step: a limit of 1e-10 on logits leaves room for what
random weights amplify, and still shows an epsilon of 1e-6 in place of 1e-5 (a relative 5e-6).
Angles and temperature stay float32 on both sides.
"""

from __future__ import annotations

from contextlib import contextmanager

import torch
import transformers
from hypothesis import strategies as st
from torch import Tensor

import minillama4 as ml4
from minillama4.checkpoint import hf_name
from minillama4.model.moe import Router
from minillama4.model.rope import rope_frequencies, vision_rotation

torch.set_num_threads(1)  # more are ten times slower at these sizes
transformers.logging.set_verbosity_error()  # it warns of low == high, which is Scout's

TIGHT = 1e-10  # float64, see above
SINGLE = 1e-4  # float32: 6e-8 per step; random weights amplify it a hundredfold at most

# Scout in miniature: three RoPE layers, one NoPE layer, one more RoPE layer, experts in each. A
# width equal to the experts' lets transposed weights load, as in the real mistake.
SMALL = dict(
    vocab_size=29,
    width=16,
    layers=5,
    heads=4,
    kv_heads=2,
    head_width=8,
    experts=4,
    expert_hidden=16,
    dense_hidden=24,
    chunk=8,
    floor_scale=5,
    rope_scaling=ml4.RopeScaling(original_length=64),  # stretches three of four pairs
    patch_token=28,
    max_length=300,
)
# 4 × 4 patches of 2 × 2 pixels, shuffled to 4 tokens a tile
SMALL_VISION = dict(width=16, layers=2, heads=2, hidden=64, image_size=8, patch_size=2, adapter=12)


def small(seed: int = 0, dtype=torch.float64, **changes) -> ml4.Llama4:
    """A small random Scout (``SMALL``), some sizes changed."""
    return random_model(ml4.Llama4Config(**SMALL).replace(**changes), seed, dtype)


def small_multimodal(seed: int = 0, dtype=torch.float64, **changes) -> ml4.Llama4:
    return small(seed, dtype, vision=ml4.VisionConfig(**SMALL_VISION), **changes)


@torch.no_grad()
def random_model(config: ml4.Llama4Config, seed: int, dtype=torch.float64) -> ml4.Llama4:
    """Random weights large enough that every part of the model shows in the logits, which are O(1).

    Router logits spread over about ±2, so that scores differ; norm weights are not 1, biases not 0.
    """
    model = ml4.Llama4(config).to(dtype)
    draw = torch.Generator().manual_seed(seed)
    for name, parameter in model.named_parameters():
        shape = parameter.shape
        noise = torch.randn(shape, generator=draw, dtype=torch.float64)
        if "norm" in name and name.endswith("weight"):
            noise = 1 + 0.5 * torch.tanh(noise)
        elif len(shape) == 1 or name in ("embed.weight", "vision.positions"):
            noise = 0.7 * noise
        elif "experts" in name:  # (e, in, out)
            noise = 1.5 * noise / shape[1] ** 0.5
        else:  # (out, in)
            gain = 2.0 if "router" in name else 1.0
            noise = gain * noise / shape[1] ** 0.5
        parameter.copy_(noise)
    return model.requires_grad_()


def random_tokens(config: ml4.Llama4Config, rows: int, length: int, seed: int = 0) -> Tensor:
    """Token ids (rows, length); never the patch token of a multimodal model."""
    draw = torch.Generator().manual_seed(seed)
    return torch.randint(0, config.vocab_size - 1, (rows, length), generator=draw)


def noise(*shape: int, seed: int = 0, dtype=torch.float64) -> Tensor:
    draw = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=draw, dtype=torch.float64).to(dtype)


def random_images(config: ml4.Llama4Config, tiles: int, dtype, seed: int = 0) -> Tensor:
    v, draw = config.vision, torch.Generator().manual_seed(seed)
    shape = (tiles, v.channels, v.image_size, v.image_size)
    return (2 * torch.rand(shape, generator=draw, dtype=torch.float64) - 1).to(dtype)


def place_patches(config: ml4.Llama4Config, tokens: Tensor, *where: tuple[int, int]) -> Tensor:
    """Tokens with one tile's patch tokens written at each (row, first position)."""
    tokens = tokens.clone()
    for row, first in where:
        tokens[row, first : first + config.vision.tokens_per_tile] = config.patch_token
    return tokens


# ------------------------------------------------------------------ transformers
def hf_config(config: ml4.Llama4Config) -> transformers.PreTrainedConfig:
    raw = config.to_hf()
    if config.vision is None:
        return transformers.Llama4TextConfig.from_dict(raw)
    return transformers.Llama4Config.from_dict(raw)


def hf_class(config: ml4.Llama4Config):
    text_only = config.vision is None
    names = transformers.Llama4ForCausalLM, transformers.Llama4ForConditionalGeneration
    return names[0] if text_only else names[1]


def hf_twin(model: ml4.Llama4):
    """transformers' model with the very tensors of ours (shared, not copied)."""
    config = hf_config(model.config)
    config._attn_implementation = "eager"
    twin = hf_class(model.config)(config).eval()
    state = {
        hf_name(name, model.vision is not None): p.detach() for name, p in model.named_parameters()
    }
    head = "lm_head.weight" if model.vision is None else "language_model.lm_head.weight"
    if model.config.tied:
        state[head] = model.embed.weight.detach()
    twin.load_state_dict(state, assign=True)  # assign: in our dtype; .to() would ruin vision's RoPE
    if model.config.tied:
        twin.get_output_embeddings().weight = twin.get_input_embeddings().weight
    _same_angles(twin, model.config)
    return twin


def _same_angles(twin, config: ml4.Llama4Config) -> None:
    """Two ways to the same float32 angle may differ in its last bit; the twin takes ours.

    That bit would hide all differences below 1e-6. ``test_model_rope`` compares the angles.
    """
    text = twin if config.vision is None else twin.language_model
    ours = rope_frequencies(config.head_width, config.rope_theta, config.rope_scaling)
    pairs = [(text.model.rotary_emb.inv_freq, ours)]
    if config.vision is not None:
        turn = vision_rotation(config.vision)[0]
        pairs.append((twin.vision_model.rotary_embedding.freqs_ci, turn[:, None]))
    for theirs, ours in pairs:
        torch.testing.assert_close(theirs, ours, rtol=1e-6, atol=1e-6)
        theirs.copy_(ours)


@contextmanager
def full_precision():
    """Inside, ``Tensor.float`` leaves float64 as it is: transformers' casts only ever widen."""
    narrow = torch.Tensor.float
    torch.Tensor.float = lambda x, *a, **k: x if x.dtype == torch.float64 else narrow(x, *a, **k)
    try:
        yield
    finally:
        torch.Tensor.float = narrow


def hf_logits(twin, tokens: Tensor, images: Tensor | None = None, **more) -> Tensor:
    extra = {} if images is None else {"pixel_values": images}
    with full_precision():
        return twin(input_ids=tokens, use_cache=False, **extra, **more).logits


# ------------------------------------------------------------------ comparing
def error(ours: Tensor, reference: Tensor) -> float:
    """The largest difference, relative to the largest number of the reference."""
    assert ours.shape == reference.shape, (ours.shape, reference.shape)
    largest = reference.abs().max().clamp_min(1e-300)
    return ((ours.double() - reference.double()).abs().max() / largest).item()


@torch.no_grad()
def router_margin(model: ml4.Llama4, *inputs, **more) -> float:
    """How close any routing decision is to going the other way; float32 may flip below 1e-4."""
    margins = [float("inf")]

    def look(router: Router, inputs, _):
        best = router.logits(*inputs).sort(dim=-1, descending=True).values
        if router.top_k < best.shape[-1]:
            gap = best[:, router.top_k - 1] - best[:, router.top_k]
            margins.append(gap.min().item())

    routers = [m for m in model.modules() if isinstance(m, Router)]
    hooks = [router.register_forward_hook(look) for router in routers]
    try:
        model(*inputs, **more)
    finally:
        for hook in hooks:
            hook.remove()
    return min(margins)


# ------------------------------------------------------------------ random models
def layer_sets(layers: int) -> st.SearchStrategy:
    """Some of the layers: none, all, and anything between."""
    return st.frozensets(st.integers(0, layers - 1)).map(lambda s: tuple(sorted(s)))


def scalings() -> st.SearchStrategy:
    """No scaling, Scout's (no ramp), and Llama 3.1's kind (a ramp)."""
    original = st.integers(8, 4000)
    flat = st.builds(ml4.RopeScaling, factor=st.sampled_from([8.0, 16.0]), original_length=original)
    ramp = st.builds(
        ml4.RopeScaling,
        factor=st.sampled_from([4.0, 10.0]),
        low=st.sampled_from([0.5, 1.0]),
        high=st.sampled_from([2.0, 4.0]),
        original_length=original,
    )
    return st.none() | flat | ramp


@st.composite
def configs(draw, vision: bool = False) -> ml4.Llama4Config:
    """Any small valid configuration, odd widths included (grouped_mm cannot take those)."""
    layers, experts = draw(st.integers(1, 6)), draw(st.integers(1, 5))
    kv_heads = draw(st.integers(1, 3))
    sizes = dict(
        vocab_size=draw(st.integers(7, 40)),
        width=draw(st.integers(5, 20)),
        layers=layers,
        heads=kv_heads * draw(st.integers(1, 3)),
        kv_heads=kv_heads,
        head_width=draw(st.sampled_from([2, 4, 6, 8, 16])),
    )
    ffn = dict(
        experts=experts,
        top_k=draw(st.integers(1, min(3, experts))),
        expert_hidden=draw(st.integers(3, 20)),
        dense_hidden=draw(st.integers(3, 20)),
        moe_every=draw(st.integers(1, 3)),
        moe_at=draw(st.none() | layer_sets(layers)),
    )
    attention = dict(
        nope_every=draw(st.integers(1, 5)),
        nope_at=draw(st.none() | layer_sets(layers)),
        chunk=draw(st.integers(3, 11)),
        rope_theta=draw(st.sampled_from([100.0, 10_000.0, 500_000.0])),
        rope_scaling=draw(scalings()),
        qk_norm=draw(st.booleans()),
        temperature=draw(st.booleans()),
        floor_scale=draw(st.integers(1, 9)),
        attn_scale=draw(st.sampled_from([0.1, 0.5])),
    )
    return ml4.Llama4Config(
        **sizes,
        **ffn,
        **attention,
        norm_eps=draw(st.sampled_from([1e-5, 1e-3])),
        max_length=300,
        tied=draw(st.booleans()),
        patch_token=sizes["vocab_size"] - 1,
        vision=draw(vision_configs()) if vision else None,
    )


@st.composite
def vision_configs(draw) -> ml4.VisionConfig:
    heads, shuffle = draw(st.integers(1, 3)), draw(st.sampled_from([1, 2]))
    width = heads * draw(st.sampled_from([4, 8, 12]))
    patch = draw(st.integers(1, 3))
    return ml4.VisionConfig(
        width=width,
        layers=draw(st.integers(1, 3)),
        heads=heads,
        hidden=width * shuffle**2,  # transformers uses it as the adapter's input width too
        image_size=patch * 2 * draw(st.integers(1, 3)),
        patch_size=patch,
        channels=draw(st.sampled_from([1, 3])),
        shuffle=shuffle,
        adapter=draw(st.integers(3, 16)),
    )


def seeds() -> st.SearchStrategy:
    return st.integers(0, 2**16)


@st.composite
def pieces(draw, length: int) -> list[int]:
    """A random way to cut ``length`` tokens into pieces."""
    cuts = draw(st.frozensets(st.integers(1, length - 1), max_size=min(length - 1, 12)))
    ends = [*sorted(cuts), length]
    return [z - a for a, z in zip([0, *ends], ends, strict=False)]

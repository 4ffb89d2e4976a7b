"""Sizes: the published counts to the last parameter, and config.json in every published form."""

import json
import warnings

import pytest
import torch
import transformers
from hypothesis import given, settings

import minillama4 as ml4
from tests.reference import SMALL, SMALL_VISION, configs, hf_class, hf_config

Config = ml4.Llama4Config

# Spec, section 2, where each row was compared with the released models' shapes
COUNTS = {
    "scout": {
        "embedding": 1_034_485_760,
        "attention": 3_019_898_880,
        "norms": 496_640,
        "routers": 3_932_160,
        "shared experts": 6_039_797_760,
        "routed experts": 96_636_764_160,
        "dense layers": 0,
        "head": 1_034_485_760,
    },
    "maverick": {
        "embedding": 1_034_485_760,
        "attention": 3_019_898_880,
        "norms": 496_640,
        "routers": 15_728_640,
        "shared experts": 3_019_898_880,
        "routed experts": 386_547_056_640,
        "dense layers": 6_039_797_760,
        "head": 1_034_485_760,
    },
}
VISION_COUNTS = {
    "patch embedding": 827_904,
    "class and positions": 813_824,
    "outer norms": 5_632,
    "blocks": 34 * 23_807_872,
    "adapter": 23_068_672 + 16_777_216,
    "projection": 20_971_520,
}
TOTALS = {  # text, all, active
    "scout": (107_769_861_120, 108_641_793_536, 17_172_894_720),
    "maverick": (400_711_848_960, 401_583_781_376, 17_184_691_200),
}


# ------------------------------------------------------------------ counts
@pytest.mark.parametrize("name", ["scout", "maverick"])
def test_counts_component_by_component(name):
    count = getattr(Config, name)().parameters()
    assert count.text == COUNTS[name]
    assert count.vision == VISION_COUNTS and count.vision_total == 871_932_416
    assert (count.text_total, count.total, count.active) == TOTALS[name]
    without_table = count.active - count.active_text["embedding"]
    assert without_table == count.active - 1_034_485_760


@pytest.mark.parametrize("name", ["scout", "maverick"])
def test_counts_equal_both_models_in_full_size(name):
    """On the meta device: shapes without memory."""
    config = getattr(Config, name)()
    with torch.device("meta"):
        ours, theirs = ml4.Llama4(config), hf_class(config)(hf_config(config))
    for model in (ours, theirs):
        assert sum(p.numel() for p in model.parameters()) == TOTALS[name][1]


@settings(max_examples=25, deadline=None)
@given(configs(vision=True))
def test_counts_equal_the_model(config):
    count = config.parameters()
    with torch.device("meta"):
        model = ml4.Llama4(config)
    sizes = {name: p.numel() for name, p in model.named_parameters()}
    assert count.total == sum(sizes.values())
    assert count.text_total == sum(n for name, n in sizes.items() if "vision" not in name)
    assert count.text["routers"] == sum(n for name, n in sizes.items() if "router" in name)
    idle = 1 - config.top_k / config.experts
    assert count.active == count.text_total - round(idle * count.text["routed experts"])


def test_behemoth_is_near_what_was_published():
    count = Config.behemoth().parameters()
    assert round(count.active / 1e9) == 288
    assert count.total == pytest.approx(2e12, rel=0.01)
    assert Config.behemoth().experts == 16
    assert "estimate" in Config.behemoth.__doc__


def test_a_count_prints_as_a_table():
    rows = [line.split() for line in repr(Config.scout().parameters()).splitlines()]
    assert ["routed", "experts", "96,636,764,160", "6,039,797,760"] in rows
    assert rows[-1] == ["all", "108,641,793,536"]


def test_presets_are_the_released_models():
    scout, maverick = Config.scout(), Config.maverick()
    assert scout.nope_layers == maverick.nope_layers == tuple(range(3, 48, 4))
    assert scout.moe_layers == tuple(range(48)) and maverick.moe_layers == tuple(range(1, 48, 2))
    assert (scout.experts, maverick.experts) == (16, 128) and scout.top_k == maverick.top_k == 1
    assert scout.qk_norm and not maverick.qk_norm
    assert scout.rope_scaling == ml4.RopeScaling(16, 1, 1, 8192) and maverick.rope_scaling is None
    assert (scout.max_length, maverick.max_length) == (10_485_760, 1_048_576)
    for c in (scout, maverick):
        assert (c.chunk, c.floor_scale, c.attn_scale, c.norm_eps) == (8192, 8192, 0.1, 1e-5)
        assert c.temperature and not c.tied and c.patch_token == 200_092


@pytest.mark.parametrize("name", ["scout", "maverick", "mini", "nano", "behemoth"])
def test_presets_take_changes_and_hash(name):
    config = getattr(Config, name)(layers=2, vision=None)
    assert config.layers == 2 and config.vision is None
    assert hash(config) == hash(getattr(Config, name)(layers=2, vision=None))


# ------------------------------------------------------------------ config.json, read
# The released Scout's config.json in its first published form: derived layers, 4 for true
HUB_TEXT = {
    "_attn_implementation_autoset": True,
    "attention_bias": False,
    "attention_chunk_size": 8192,
    "attention_dropout": 0.0,
    "attn_scale": 0.1,
    "attn_temperature_tuning": 4,
    "bos_token_id": 200000,
    "eos_token_id": [200001, 200007, 200008],
    "floor_scale": 8192,
    "for_llm_compressor": False,
    "head_dim": 128,
    "hidden_act": "silu",
    "hidden_size": 5120,
    "interleave_moe_layer_step": 1,
    "intermediate_size": 8192,
    "intermediate_size_mlp": 16384,
    "max_position_embeddings": 10485760,
    "model_type": "llama4_text",
    "no_rope_layers": [],
    "num_attention_heads": 40,
    "num_experts_per_tok": 1,
    "num_hidden_layers": 48,
    "num_key_value_heads": 8,
    "num_local_experts": 16,
    "output_router_logits": False,
    "pad_token_id": 200018,
    "rms_norm_eps": 1e-05,
    "rope_scaling": {
        "factor": 16.0,
        "high_freq_factor": 1.0,
        "low_freq_factor": 1.0,
        "original_max_position_embeddings": 8192,
        "rope_type": "llama3",
    },
    "rope_theta": 500000.0,
    "router_aux_loss_coef": 0.001,
    "router_jitter_noise": 0.0,
    "torch_dtype": "bfloat16",
    "use_cache": True,
    "use_qk_norm": True,
    "vocab_size": 202048,
}
HUB_VISION = {
    "attention_dropout": 0.0,
    "hidden_act": "gelu",
    "hidden_size": 1408,
    "image_size": 336,
    "intermediate_size": 5632,
    "model_type": "llama4_vision_model",
    "multi_modal_projector_bias": False,
    "norm_eps": 1e-05,
    "num_attention_heads": 16,
    "num_channels": 3,
    "num_hidden_layers": 34,
    "patch_size": 14,
    "pixel_shuffle_ratio": 0.5,
    "projector_dropout": 0.0,
    "projector_input_dim": 4096,
    "projector_output_dim": 4096,
    "rope_theta": 10000,
    "vision_feature_layer": -1,
    "vision_feature_select_strategy": "default",
    "vision_output_dim": 4096,
}
HUB = {
    "architectures": ["Llama4ForConditionalGeneration"],
    "boi_token_index": 200080,
    "eoi_token_index": 200081,
    "image_token_index": 200092,
    "model_type": "llama4",
    "text_config": HUB_TEXT,
    "tie_word_embeddings": False,
    "torch_dtype": "bfloat16",
    "vision_config": HUB_VISION,
}
MAVERICK_TEXT = HUB_TEXT | {
    "interleave_moe_layer_step": 2,
    "max_position_embeddings": 1048576,
    "moe_layers": list(range(1, 48, 2)),
    "num_local_experts": 128,
    "rope_scaling": None,
    "use_qk_norm": False,
}


def without(raw: dict, *keys: str) -> dict:
    return {key: value for key, value in raw.items() if key not in keys}


def test_the_published_files_are_the_presets():
    assert Config.from_hf(HUB) == Config.scout()
    assert Config.from_hf(HUB | {"text_config": MAVERICK_TEXT}) == Config.maverick()
    assert Config.from_hf(HUB_TEXT) == Config.scout(vision=None)


ROPE = HUB_TEXT["rope_scaling"]
SAME = {
    "temperature as true": {"attn_temperature_tuning": True},
    "no_rope_layers null": {"no_rope_layers": None},
    "no_rope_layers listed": {"no_rope_layers": [1, 1, 1, 0] * 12},
    "moe_layers listed": {"moe_layers": list(range(48))},
    "layer_types too": {
        "no_rope_layers": [1, 1, 1, 0] * 12,
        "layer_types": [*["chunked_attention"] * 3, "full_attention"] * 12,
    },
    "layer_types alone": {"layer_types": [*["chunked_attention"] * 3, "full_attention"] * 12},
    "rope_parameters": {
        "rope_parameters": ROPE | {"rope_theta": 500_000.0},
        "rope_scaling": None,
        "rope_theta": None,
    },
    "type for rope_type": {"rope_scaling": without(ROPE, "rope_type") | {"type": "llama3"}},
    "head_dim null": {"head_dim": None},
}


@pytest.mark.parametrize("changes", SAME.values(), ids=SAME)
def test_other_ways_to_write_the_same(changes):
    assert Config.from_hf(HUB_TEXT | changes) == Config.scout(vision=None)


DIFFERENT = {
    "temperature 0": ({"attn_temperature_tuning": 0}, dict(temperature=False)),
    "temperature false": ({"attn_temperature_tuning": False}, dict(temperature=False)),
    "RoPE everywhere": ({"no_rope_layers": [1] * 48}, dict(nope_at=())),
    "NoPE everywhere": ({"no_rope_layers": [0] * 48}, dict(nope_at=tuple(range(48)))),
    "an interval of 6": ({"no_rope_layer_interval": 6}, dict(nope_every=6)),
    "no experts": ({"moe_layers": []}, dict(moe_at=())),
    "no experts, as vLLM reads it": ({"interleave_moe_layer_step": 0}, dict(moe_at=())),
    "KV heads null": ({"num_key_value_heads": None}, dict(kv_heads=40)),
    "no scaling": ({"rope_scaling": None}, dict(rope_scaling=None)),
    "no chunk": ({"attention_chunk_size": None}, dict(chunk=None)),
    "tied": ({"tie_word_embeddings": True}, dict(tied=True)),
}


@pytest.mark.parametrize(("changes", "fields"), DIFFERENT.values(), ids=DIFFERENT)
def test_values_that_change_the_model(changes, fields):
    assert Config.from_hf(HUB_TEXT | changes) == Config.scout(vision=None, **fields)


def test_missing_keys_mean_the_defaults_of_transformers():
    theirs = transformers.Llama4TextConfig()
    assert Config.from_hf({}) == Config.from_hf(theirs.to_dict())
    for key in without(HUB_TEXT, "rope_scaling", "rope_theta", "model_type"):
        raw = without(HUB_TEXT, key)
        expected = transformers.Llama4TextConfig(**without(raw, "attn_temperature_tuning"))
        assert Config.from_hf(raw) == Config.from_hf(expected.to_dict()), key
    for key in ("num_channels", "patch_size", "norm_eps", "pixel_shuffle_ratio", "rope_theta"):
        assert Config.from_hf(HUB | {"vision_config": without(HUB_VISION, key)}) == Config.scout()
    found = Config.from_hf(HUB | {"vision_config": without(HUB_VISION, "image_size")})
    assert found.vision.image_size == transformers.Llama4VisionConfig().image_size == 448


def test_image_size_as_a_pair_and_image_token_by_its_other_name():
    vision = HUB_VISION | {"image_size": [336, 336], "patch_size": (14, 14)}
    raw = without(HUB, "image_token_index") | {"vision_config": vision, "image_token_id": 7}
    assert Config.from_hf(raw) == Config.scout(patch_token=7)


def test_factors_of_llama_3_1_are_read_with_a_warning():
    rope = ROPE | {"factor": 8.0, "high_freq_factor": 4.0}
    with pytest.warns(UserWarning, match="16 and 1"):
        config = Config.from_hf(HUB_TEXT | {"rope_scaling": rope})
    assert config.rope_scaling == ml4.RopeScaling(8, 1, 4, 8192)  # the file decides
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        Config.from_hf(HUB)


def test_from_a_folder_a_path_and_a_dict(tmp_path):
    file = tmp_path / "config.json"
    file.write_text(json.dumps(HUB))
    for source in (HUB, file, str(file), tmp_path, str(tmp_path)):
        assert Config.from_hf(source) == Config.scout()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, "No config.json at"),
        ("{", "not readable as JSON"),
        ("[1]", "holds list"),
        ('{"model_type": "llama"}', "model_type 'llama'; this library reads Llama 4 only"),
    ],
)
def test_files_that_are_no_llama_4(tmp_path, text, message):
    if text is not None:
        (tmp_path / "config.json").write_text(text)
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        Config.from_hf(tmp_path)


REFUSED = {
    "three entries for 48 layers": {"no_rope_layers": [1, 1, 0]},
    "rope_type 'yarn'": {"rope_scaling": {"rope_type": "yarn", "factor": 4}},
    "lacks low_freq_factor": {"rope_scaling": without(ROPE, "low_freq_factor")},
    "attention_bias": {"attention_bias": True},
    "hidden_act 'gelu'": {"hidden_act": "gelu"},
    "layer_types and no_rope_layers disagree": {
        "no_rope_layers": [1, 1, 1, 0] * 12,
        "layer_types": ["full_attention"] * 48,
    },
    "layer_types and .* disagree": {"layer_types": ["chunked_attention"] * 48},
    "interleave_moe_layer_step = 0 .* one of them is wrong": {
        "interleave_moe_layer_step": 0,
        "moe_layers": [1],
    },
}


@pytest.mark.parametrize(("message", "changes"), REFUSED.items(), ids=REFUSED)
def test_settings_that_no_llama_4_has(message, changes):
    message = message.replace("three entries", "3 entries")
    with pytest.raises(ValueError, match=message):
        Config.from_hf(HUB_TEXT | changes)


def test_a_vision_tower_whose_sizes_disagree_is_refused():
    with pytest.raises(ValueError, match="must be equal, but are 7680 and 4096"):
        Config.from_hf(HUB | {"vision_config": without(HUB_VISION, "vision_output_dim")})


# ------------------------------------------------------------------ config.json, written
@settings(max_examples=100, deadline=None)
@given(configs(vision=True))
def test_out_and_in_again_is_the_identity(config):
    for c in (config, config.replace(vision=None)):
        raw = json.loads(json.dumps(c.to_hf()))
        assert Config.from_hf(raw) == c
        assert Config.from_hf(hf_config(c).to_dict()) == c  # and through transformers


@pytest.mark.parametrize("name", ["scout", "maverick", "mini", "nano", "behemoth"])
def test_presets_survive_the_round_trip(name):
    config = getattr(Config, name)()
    assert Config.from_hf(config.to_hf()) == config
    assert Config.from_hf(hf_config(config).to_dict()) == config


def test_no_chunk_is_written_as_one_chunk_of_the_greatest_length():
    """transformers cannot take null; a chunk as long as the context hides nothing either."""
    config = Config(**SMALL).replace(chunk=None)
    assert Config.from_hf(config.to_hf()) == config.replace(chunk=config.max_length)


# ------------------------------------------------------------------ wrong sizes
WRONG = {
    "kv_heads = 3 .* a divisor of heads = 4": dict(kv_heads=3),
    "head_width = 7 .* even": dict(head_width=7),
    "top_k = 5 .* at most experts = 4": dict(top_k=5),
    "layers = 0 .* a whole number above 0": dict(layers=0),
    "layers = 1.5 .* a whole number above 0": dict(layers=1.5),
    "experts = True .* a whole number above 0": dict(experts=True),
    "chunk = 0 .* a whole number above 0": dict(chunk=0),
    "norm_eps = 0 .* a number above 0": dict(norm_eps=0),
    r"moe_at = \(5,\) .* layer numbers from 0 to 4": dict(moe_at=(5,)),
    r"nope_at = \[-1\] .* layer numbers from 0 to 4": dict(nope_at=[-1]),
    "patch_token = 29 .* a token id below vocab_size = 29": dict(
        patch_token=29, vision=ml4.VisionConfig()
    ),
}
WRONG_VISION = {
    "patch_size = 3 .* a divisor of image_size = 8": dict(patch_size=3),
    "heads = 3 .* a divisor of width = 16": dict(heads=3),
    "width / heads = 2 .* a multiple of 4": dict(heads=8),
    "shuffle = 3 .* a divisor of the 4 patches": dict(shuffle=3),
    "hidden = -1 .* a whole number above 0": dict(hidden=-1),
}


@pytest.mark.parametrize(("message", "changes"), WRONG.items(), ids=WRONG)
def test_impossible_sizes_are_named_with_the_rule(message, changes):
    with pytest.raises(ValueError, match=message):
        Config(**SMALL).replace(**changes)


@pytest.mark.parametrize(("message", "changes"), WRONG_VISION.items(), ids=WRONG_VISION)
def test_impossible_vision_sizes(message, changes):
    with pytest.raises(ValueError, match=message):
        ml4.VisionConfig(**(SMALL_VISION | changes))


@pytest.mark.parametrize("wrong", [dict(factor=0.5), dict(low=2, high=1), dict(low=0)])
def test_impossible_rope_scaling(wrong):
    with pytest.raises(ValueError, match="rope_scaling"):
        ml4.RopeScaling(**wrong)


def test_a_misspelt_field_is_an_error():
    with pytest.raises(TypeError, match="expert"):
        Config(**SMALL).replace(expert=3)


def test_layers_named_as_the_interval_names_them_are_the_same_configuration():
    c = Config(**SMALL)
    assert c.replace(nope_at=[3], moe_at=(4, 2, 0, 1, 3, 3)) == c
    assert c.replace(nope_at=[3]).replace(layers=8).nope_layers == (3, 7)
    assert c.replace(nope_at=(2, 0)).nope_layers == (0, 2)


def test_vision_that_transformers_cannot_hold_is_not_written():
    config = Config(**SMALL, vision=ml4.VisionConfig(**(SMALL_VISION | dict(hidden=32))))
    with pytest.raises(ValueError, match="it must be width × shuffle² = 64"):
        config.to_hf()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"rope_scaling": {"factor": 16}}, "rope_scaling = .* RopeScaling"),
        ({"vision": {"width": 8}}, "vision = .* VisionConfig"),
        ({"attn_scale": "x"}, "attn_scale = 'x'"),
        ({"qk_norm": "no"}, "qk_norm = 'no'.* bool"),
    ],
)
def test_fields_of_another_type_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        ml4.Llama4Config.nano(**changes)


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("no_rope_layer_interval", 0, "nope_every = 0"),
        ("num_hidden_layers", None, "layers = None"),
        ("layer_types", ["full_attention"], "layer_types has 1 entries"),
        ("moe_layers", 3, "moe_layers must be a list"),
        ("rope_parameters", "llama3", "rope_parameters must be a dict"),
    ],
)
def test_damaged_config_files_are_told(key, value, message):
    with pytest.raises(ValueError, match=message):
        ml4.Llama4Config.from_hf(ml4.Llama4Config.nano().to_hf() | {key: value})

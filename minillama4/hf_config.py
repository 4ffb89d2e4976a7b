"""Hugging Face's config.json, both ways, in every form that published Llama 4 files use.

Traps, each seen in a published file (spec, section 17): ``no_rope_layers`` marks RoPE layers
with 1 and NoPE layers with 0, and ``[]`` means "derive from the interval"; the number 4 stands
for true in ``attn_temperature_tuning``; ``intermediate_size`` is the expert's width and
``intermediate_size_mlp`` the dense one; keys left out mean transformers' defaults.
"""

from __future__ import annotations

import json
import warnings
from pathlib import Path

from .config import Llama4Config, RopeScaling, VisionConfig

TEXT = {  # ours: (theirs, their default)
    "vocab_size": ("vocab_size", 202_048),
    "width": ("hidden_size", 5120),
    "layers": ("num_hidden_layers", 48),
    "heads": ("num_attention_heads", 40),
    "experts": ("num_local_experts", 16),
    "top_k": ("num_experts_per_tok", 1),
    "expert_hidden": ("intermediate_size", 8192),
    "dense_hidden": ("intermediate_size_mlp", 16_384),
    "moe_every": ("interleave_moe_layer_step", 1),
    "nope_every": ("no_rope_layer_interval", 4),
    "chunk": ("attention_chunk_size", 8192),
    "qk_norm": ("use_qk_norm", True),
    "temperature": ("attn_temperature_tuning", True),
    "floor_scale": ("floor_scale", 8192),
    "attn_scale": ("attn_scale", 0.1),
    "norm_eps": ("rms_norm_eps", 1e-5),
    "max_length": ("max_position_embeddings", 131_072),
    "tied": ("tie_word_embeddings", False),
}
VISION = {
    "width": ("hidden_size", 768),
    "layers": ("num_hidden_layers", 34),
    "heads": ("num_attention_heads", 16),
    "hidden": ("intermediate_size", 5632),
    "image_size": ("image_size", 448),
    "patch_size": ("patch_size", 14),
    "channels": ("num_channels", 3),
    "adapter": ("projector_output_dim", 4096),
    "norm_eps": ("norm_eps", 1e-5),
}


def read_hf(source: str | Path | dict) -> Llama4Config:
    """A config.json (path, folder or dict) as ``Llama4Config``; ValueError if it is another's."""
    raw = source if isinstance(source, dict) else read_json(Path(source))
    kind = raw.get("model_type", "llama4" if "text_config" in raw else "llama4_text")
    if kind not in ("llama4", "llama4_text"):
        raise ValueError(f"config.json has model_type {kind!r}; this library reads Llama 4 only.")
    text = raw if kind == "llama4_text" else raw.get("text_config") or {}
    fields = {ours: text.get(theirs, default) for ours, (theirs, default) in TEXT.items()}
    fields |= {name: bool(fields[name]) for name in ("qk_norm", "temperature", "tied")}
    dense = fields["moe_every"] == 0  # no layer has experts
    if dense and text.get("moe_layers"):
        raise ValueError(
            f"interleave_moe_layer_step = 0 says that no layer has experts, and moe_layers = "
            f"{text['moe_layers']} that some have: one of them is wrong."
        )
    fields |= {"moe_every": 1} if dense else {}
    fields |= {"patch_token": raw.get("image_token_index", raw.get("image_token_id", 200_092))}
    if kind == "llama4":
        fields |= {"vision": _read_vision(raw.get("vision_config") or {})}
        fields |= {"tied": bool(raw.get("tie_word_embeddings", fields["tied"]))}
    kv_heads = text.get("num_key_value_heads", 8) or fields["heads"]
    head_width = text.get("head_dim", 128) or fields["width"] // fields["heads"]
    theta, scaling = _read_rope(text)
    _refuse_unknown(text)
    known = {"kv_heads": kv_heads, "head_width": head_width, "rope_theta": theta}
    config = Llama4Config(**fields, **known, rope_scaling=scaling)  # sizes are checked first
    moe = () if dense else _list(text, "moe_layers")
    return config.replace(
        moe_at=None if moe is None else tuple(moe), nope_at=_read_nope(text, config)
    )


def read_json(path: Path) -> dict:
    """The dict of a config.json, given its path or folder; errors say what is wrong with it."""
    path = path / "config.json" if path.is_dir() else path
    if not path.exists():
        raise FileNotFoundError(f"No config.json at {path}: give the folder of a Llama 4 model.")
    try:
        raw = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is not readable as JSON ({error}); copy it again.") from None
    if not isinstance(raw, dict):
        raise ValueError(f"{path} holds {type(raw).__name__}, not a configuration; copy it again.")
    return raw


def _list(text: dict, name: str) -> list | None:
    value = text.get(name)
    if value is not None and not isinstance(value, list | tuple):
        raise ValueError(f"{name} must be a list, not {value!r}.")
    return value


def _read_nope(text: dict, config: Llama4Config) -> tuple[int, ...]:
    layers = config.layers
    derived = [int(i not in config.nope_layers) for i in range(layers)]
    rope = _list(text, "no_rope_layers") or derived  # missing, null or []: derived
    kinds = _list(text, "layer_types")
    for name, given in (("no_rope_layers", rope), ("layer_types", kinds)):
        if given and len(given) < layers:
            raise ValueError(f"{name} has {len(given)} entries for {layers} layers.")
    nope = tuple(i for i in range(layers) if not rope[i])
    if kinds and nope != tuple(i for i in range(layers) if kinds[i] == "full_attention"):
        raise ValueError(
            "layer_types and no_rope_layers disagree: in Llama 4 a layer is either RoPE with "
            "chunked_attention or NoPE with full_attention."
        )
    return nope


def _read_rope(text: dict) -> tuple[float, RopeScaling | None]:
    rope = text.get("rope_parameters") or text.get("rope_scaling") or {}
    if not isinstance(rope, dict):
        raise ValueError(f"rope_parameters must be a dict, not {rope!r}.")
    theta = rope.get("rope_theta", text.get("rope_theta", 500_000.0))
    kind = rope.get("rope_type", rope.get("type", "default"))
    if kind == "default":
        return theta, None
    if kind != "llama3":
        raise ValueError(f"rope_type {kind!r} is not Llama 4's; expected 'llama3' or 'default'.")
    keys = ("factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings")
    missing = [key for key in keys if key not in rope]
    if missing:
        raise ValueError(f"rope scaling of type llama3 lacks {', '.join(missing)}.")
    scaling = RopeScaling(*(rope[key] for key in keys))
    if (scaling.factor, scaling.high) == (8, 4):
        warnings.warn(
            "This config scales RoPE by factor 8 with high_freq_factor 4: Llama 3.1's values. "
            "Scout was trained with 16 and 1; some converted files carry the wrong ones.",
            stacklevel=4,
        )
    return theta, scaling


def _read_vision(vision: dict) -> VisionConfig:
    fields = {ours: vision.get(theirs, default) for ours, (theirs, default) in VISION.items()}
    for name in ("image_size", "patch_size"):
        if not isinstance(fields[name], int):  # [336, 336]
            fields[name] = fields[name][0]
    ratio = vision.get("pixel_shuffle_ratio", 0.5)
    shuffle = round(1 / ratio)
    rope = vision.get("rope_parameters") or {}
    theta = rope.get("rope_theta", vision.get("rope_theta", 10_000.0))
    config = VisionConfig(shuffle=shuffle, rope_theta=theta, **fields)
    equal = {
        "intermediate_size and hidden_size / pixel_shuffle_ratio²": (
            config.hidden,
            config.width * shuffle**2,
        ),
        "projector_input_dim and projector_output_dim": (
            vision.get("projector_input_dim", 4096),
            config.adapter,
        ),
        "vision_output_dim and projector_output_dim": (
            vision.get("vision_output_dim", 7680),
            config.adapter,
        ),
    }
    for names, (one, other) in equal.items():
        if one != other:
            raise ValueError(f"vision_config: {names} must be equal, but are {one} and {other}.")
    return config


def _refuse_unknown(text: dict) -> None:
    """Settings that would change the result and that no Llama 4 has."""
    if text.get("attention_bias"):
        raise ValueError("attention_bias: true is not Llama 4: its projections have no biases.")
    if text.get("hidden_act", "silu") != "silu":
        raise ValueError(f"hidden_act {text['hidden_act']!r} is not Llama 4's 'silu'.")


def write_hf(config: Llama4Config) -> dict:
    """The dict of a config.json that transformers 5 opens as the same model."""
    text = {theirs: getattr(config, ours) for ours, (theirs, _) in TEXT.items()}
    rope: dict = {"rope_type": "default", "rope_theta": config.rope_theta}
    if (s := config.rope_scaling) is not None:
        rope |= {"rope_type": "llama3", "factor": s.factor, "low_freq_factor": s.low}
        rope |= {"high_freq_factor": s.high, "original_max_position_embeddings": s.original_length}
    nope = config.nope_layers
    text |= {
        "model_type": "llama4_text",
        "architectures": ["Llama4ForCausalLM"],
        "num_key_value_heads": config.kv_heads,
        "head_dim": config.head_width,
        "attention_chunk_size": config.chunk or config.max_length,  # transformers cannot take null
        "moe_layers": list(config.moe_layers),
        # vLLM reads this and not the list
        "interleave_moe_layer_step": 0 if config.moe_at == () else config.moe_every,
        "no_rope_layers": [int(i not in nope) for i in range(config.layers)],
        "rope_parameters": rope,
        "hidden_act": "silu",
        "router_aux_loss_coef": 0.0,
        "bos_token_id": None,
        "eos_token_id": None,
    }
    if config.vision is None:
        return text | {"image_token_index": config.patch_token}
    return {
        "model_type": "llama4",
        "architectures": ["Llama4ForConditionalGeneration"],
        "image_token_index": config.patch_token,
        "tie_word_embeddings": config.tied,
        "text_config": text,
        "vision_config": _write_vision(config.vision),
    }


def _write_vision(v: VisionConfig) -> dict:
    if v.hidden != v.width * v.shuffle**2:
        raise ValueError(
            f"vision.hidden = {v.hidden} cannot be written: transformers uses it as the adapter's "
            f"input width too, so it must be width × shuffle² = {v.width * v.shuffle**2}."
        )
    vision = {theirs: getattr(v, ours) for ours, (theirs, _) in VISION.items()}
    return vision | {
        "model_type": "llama4_vision_model",
        "pixel_shuffle_ratio": 1 / v.shuffle,
        "projector_input_dim": v.adapter,
        "vision_output_dim": v.adapter,
        "rope_parameters": {"rope_type": "default", "rope_theta": v.rope_theta},
    }

"""Meta's params.json as a ``Llama4Config``.

It gives the sizes of feed-forwards by rules, not by numbers: two thirds of a multiple of the width,
times ``ffn_dim_multiplier``, rounded up to ``multiple_of``; of experts half of that, so that a
routed and a shared one cost as much as a dense layer. Source: spec, section 1.
"""

from __future__ import annotations

import json
from pathlib import Path

from ..config import Llama4Config, RopeScaling, VisionConfig
from .errors import CheckpointError

PARAMS = "params.json"
PATCH_TOKEN = 200_092  # of Llama 4's tokenizer, which params.json does not speak of


def read_params(folder: Path, vocab_size: int) -> Llama4Config:
    """The configuration; vocab_size: the rows of the embedding table (the file's entry is unused,
    as it is by Meta). Of a small vocabulary the last token is taken as the patch token."""
    p = _read(folder / PARAMS)
    for kind in ("quantization_args", "lora_args"):
        if p.get(kind):
            raise CheckpointError(f"{PARAMS} has {kind} = {p[kind]}: plain weights are read only.")
    moe, vision, interval = p.get("moe_args"), p.get("vision_args"), p.get("nope_layer_interval")
    heads = p["n_heads"]
    return Llama4Config(
        vocab_size=vocab_size,
        width=p["dim"],
        layers=p["n_layers"],
        heads=heads,
        kv_heads=p.get("n_kv_heads") or heads,
        head_width=p["dim"] // heads,  # head_dim, where it is given, is not used by Meta either
        **_feed_forward(p, moe),
        **(dict(nope_every=interval) if interval else dict(nope_at=())),
        chunk=p.get("attention_chunk_size"),
        rope_theta=p.get("rope_theta", 500_000.0),
        rope_scaling=_scaling(p),
        qk_norm=bool(p.get("use_qk_norm", False)),
        temperature=bool(p.get("attn_temperature_tuning", False)),
        floor_scale=int(p.get("floor_scale", 8192)),
        attn_scale=p.get("attn_scale", 0.1),
        norm_eps=p.get("norm_eps", 1e-5),
        max_length=10_485_760 if (moe or {}).get("num_experts") == 16 else 1_048_576,
        patch_token=min(PATCH_TOKEN, vocab_size - 1),
        vision=_vision(vision) if vision else None,
    )


def _read(file: Path) -> dict:
    if not file.exists():
        raise FileNotFoundError(f"No {PARAMS} at {file}: it belongs to Meta's consolidated files.")
    try:
        raw = json.loads(file.read_text(encoding="utf-8"))
        p = raw.get("model", raw)
        missing = [name for name in ("dim", "n_layers", "n_heads") if name not in p]
    except (ValueError, AttributeError, TypeError):
        raise CheckpointError(f"{file} is not a configuration in JSON: copy it again.") from None
    if missing:
        raise CheckpointError(f"{file} lacks {', '.join(missing)}: is it of a Llama 4?")
    return p


def _feed_forward(p: dict, moe: dict | None) -> dict:
    width, more = p["dim"], p.get("ffn_dim_multiplier") or 1.0
    fields = dict(dense_hidden=_rounded(int(more * int(2 * 4 * width / 3)), p))
    if not moe:
        return fields | dict(moe_at=())
    hidden = int(more * int(2 * int((p.get("ffn_exp") or 4) * width) / 3))
    if moe.get("auto_scale_F", True):
        hidden = int(hidden / (moe.get("capacity_factor", 1.0) + 1))
    fields |= dict(expert_hidden=_rounded(hidden, p), experts=moe["num_experts"])
    return fields | dict(
        top_k=moe.get("top_k", 1), moe_every=moe.get("interleave_moe_layer_step", 1)
    )


def _rounded(size: int, p: dict) -> int:
    """Up to a multiple of ``multiple_of``."""
    step = p.get("multiple_of", 256)
    return -(-size // step) * step


def _scaling(p: dict) -> RopeScaling | None:
    if not p.get("use_scaled_rope"):
        return None
    factor, high = p.get("rope_scaling_factor"), p.get("rope_high_freq_factor")
    return RopeScaling(factor=float(factor or 16), low=1.0, high=float(high or 1))


def _vision(v: dict) -> VisionConfig:
    return VisionConfig(
        width=v["dim"],
        layers=v["n_layers"],
        heads=v["n_heads"],
        hidden=int(v["mlp_ratio"] * v["dim"]),
        image_size=v["image_size"]["height"],
        patch_size=v["patch_size"]["height"],
        shuffle=round(1 / v["pixel_shuffle_ratio"]),
        adapter=v["output_dim"],
    )

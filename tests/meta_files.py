"""Meta's files of one of our models, written from the spec's tables (sections 9 and 10) and not
from the loader's: consolidated.*.pth in any number of shards, and params.json."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from torch import Tensor

from minillama4 import Llama4, Llama4Config


def write_meta(model: Llama4, folder: Path, shards: int, extra: dict | None = None) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "params.json").write_text(json.dumps(params_of(model.config)))
    for i, shard in enumerate(shards_of(model, shards)):
        torch.save(shard | (extra or {}), folder / f"consolidated.{i:02d}.pth")


def params_of(c: Llama4Config) -> dict:
    """The sizes as params.json says them; ValueError if its rules do not give them."""
    p = dict(dim=c.width, n_layers=c.layers, n_heads=c.heads, n_kv_heads=c.kv_heads)
    p |= dict(norm_eps=c.norm_eps, rope_theta=c.rope_theta, multiple_of=8, vocab_size=c.vocab_size)
    p |= dict(attention_chunk_size=c.chunk, use_qk_norm=c.qk_norm, nope_layer_interval=c.nope_every)
    p |= dict(attn_temperature_tuning=c.temperature, floor_scale=c.floor_scale)
    p |= dict(attn_scale=c.attn_scale, use_scaled_rope=c.rope_scaling is not None)
    p |= dict(rope_scaling_factor=16, rope_high_freq_factor=1)
    p["ffn_dim_multiplier"] = c.dense_hidden / int(2 * 4 * c.width / 3)
    if 2 * c.expert_hidden != c.dense_hidden:
        raise ValueError("params.json makes a routed and a shared expert as wide as a dense layer.")
    p["moe_args"] = dict(
        num_experts=c.experts, top_k=c.top_k, capacity_factor=1.0, auto_scale_F=True,
        interleave_moe_layer_step=c.moe_every,
    )  # fmt: skip
    if (v := c.vision) is not None:
        square = dict(height=v.image_size, width=v.image_size)
        p["vision_args"] = dict(
            dim=v.width, n_layers=v.layers, n_heads=v.heads, mlp_ratio=v.hidden / v.width,
            image_size=square, patch_size=dict(height=v.patch_size, width=v.patch_size),
            pixel_shuffle_ratio=1 / v.shuffle, output_dim=v.adapter,
        )  # fmt: skip
    return p


def shards_of(model: Llama4, n: int) -> list[dict[str, Tensor]]:
    """The state of each of ``n`` GPUs."""
    shards: list[dict[str, Tensor]] = [{} for _ in range(n)]

    def put(key: str, pieces) -> None:
        for shard, piece in zip(shards, pieces, strict=True):
            shard[key] = piece.detach().clone()

    def rows(t: Tensor):
        return t.chunk(n, 0)

    def columns(t: Tensor):
        return t.chunk(n, 1)

    def copies(t: Tensor):
        return [t] * n

    def stacked(*tensors: Tensor):
        return [torch.cat(each) for each in zip(*map(rows, tensors), strict=True)]

    put("tok_embeddings.weight", rows(model.embed.weight))
    put("norm.weight", copies(model.norm.weight))
    put("output.weight", rows(model.head.weight))
    for i, block in enumerate(model.blocks):
        a, ffn, at = block.attention, block.ffn, f"layers.{i}."
        put(at + "attention.wqkv.weight", stacked(a.q.weight, a.k.weight, a.v.weight))
        put(at + "attention.wqkv.layer_norm_weight", copies(block.attention_norm.weight))
        put(at + "attention.wo.weight", columns(a.o.weight))
        at += "feed_forward."
        if not hasattr(ffn, "router"):
            put(at + "mlp.layer_norm_weight", copies(block.ffn_norm.weight))
            put(at + "mlp.fc1_weight", stacked(ffn.gate.weight, ffn.up.weight))
            put(at + "mlp.fc2_weight", columns(ffn.down.weight))
            continue
        put(at + "norm.weight", copies(block.ffn_norm.weight))
        put(at + "router_DE", copies(ffn.router.weight.T))
        gate, up = ffn.experts.gate_up.chunk(2, -1)  # e m f
        for name, weight in (("moe_w_in_eD_F", gate), ("moe_w_swiglu_eD_F", up)):
            put(at + f"experts.{name}", [w.flatten(0, 1) for w in weight.chunk(n, 2)])
        split = ffn.experts.down.chunk(n, 1)  # inside each expert
        put(at + "experts.moe_w_out_eF_D", [w.flatten(0, 1) for w in split])
        put(at + "w_in_shared_FD.weight", rows(ffn.shared.gate.weight))
        put(at + "w_swiglu_FD.weight", rows(ffn.shared.up.weight))
        put(at + "w_out_shared_DF.weight", columns(ffn.shared.down.weight))
    if model.vision is not None:
        _vision(model.vision, put, rows, columns, copies)
    return shards


def _vision(v, put, rows, columns, copies) -> None:
    at = "vision_embeddings.vision_encoder."
    put(at + "conv1._linear.weight", rows(v.patches.weight))
    put(at + "class_embedding", copies(v.class_token))
    put(at + "positional_embedding_vlm", copies(v.positions))
    for name, norm in (("ln_pre", v.norm_before), ("ln_post", v.norm_after)):
        put(f"{at}{name}.weight", copies(norm.weight))
        put(f"{at}{name}.bias", copies(norm.bias))
    for j, block in enumerate(v.blocks):
        here = f"{at}transformer.resblocks.{j}."
        for name, linear in (("q", block.attention.q), ("k", block.attention.k), ("v", block.attention.v)):  # noqa: E501  # fmt: skip
            put(f"{here}attn.w{name}.weight", rows(linear.weight))
            put(f"{here}attn.w{name}.bias", rows(linear.bias))
        put(here + "attn.wo.weight", columns(block.attention.o.weight))
        put(here + "attn.wo.bias", copies(block.attention.o.bias))
        put(here + "mlp.c_fc.weight", rows(block.up.weight))
        put(here + "mlp.c_fc.bias", rows(block.up.bias))
        put(here + "mlp.c_proj.weight", columns(block.down.weight))
        put(here + "mlp.c_proj.bias", copies(block.down.bias))
        for name, norm in (("ln_1", block.attention_norm), ("ln_2", block.mlp_norm)):
            put(f"{here}{name}.weight", copies(norm.weight))
            put(f"{here}{name}.bias", copies(norm.bias))
    put("vision_embeddings.vision_adapter.mlp.c_fc.weight", rows(v.adapter_in.weight))
    put("vision_embeddings.vision_adapter.mlp.c_proj.weight", columns(v.adapter_out.weight))
    put("vision_projection.weight", rows(v.projection.weight))

"""The names of Hugging Face's files: ours on the left, theirs on the right.

Every tensor has the same shape here and there; only the names differ. Packed Int4 weights are named
after the Linear that they stand for, and there every expert is one (three Linears).
Source: names and shapes of the published checkpoints, spec sections 9, 10 and 14.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from torch import nn

from ..model import Llama4
from ..model.moe import Experts, Router
from ..serve.int4_modules import Int4Experts, Int4Linear

NAMES = [  # ours -> theirs, applied in this order; the text model's prefix comes last
    (r"^vision\.class_token$", "vision_model.class_embedding"),
    (r"^vision\.positions$", "vision_model.positional_embedding_vlm"),
    (r"^vision\.patches\.", "vision_model.patch_embedding.linear."),
    (r"^vision\.norm_before\.", "vision_model.layernorm_pre."),
    (r"^vision\.norm_after\.", "vision_model.layernorm_post."),
    (r"^vision\.adapter_in\.", "vision_model.vision_adapter.mlp.fc1."),
    (r"^vision\.adapter_out\.", "vision_model.vision_adapter.mlp.fc2."),
    (r"^vision\.projection\.", "multi_modal_projector.linear_1."),
    (r"^vision\.blocks\.", "vision_model.model.layers."),
    (r"(layers\.\d+)\.up\.", r"\1.mlp.fc1."),
    (r"(layers\.\d+)\.down\.", r"\1.mlp.fc2."),
    (r"\.mlp_norm\.", ".post_attention_layernorm."),
    (r"^embed\.", "model.embed_tokens."),
    (r"^norm\.", "model.norm."),
    (r"^head\.", "lm_head."),
    (r"^blocks\.", "model.layers."),
    (r"\.attention_norm\.", ".input_layernorm."),
    (r"\.ffn_norm\.", ".post_attention_layernorm."),
    (r"\.attention\.([qkvo])\.", r".self_attn.\1_proj."),
    (r"\.ffn\.experts\.(gate_up|down)$", r".feed_forward.experts.\1_proj"),
    (r"\.ffn\.shared\.(gate|up|down)\.", r".feed_forward.shared_expert.\1_proj."),
    (r"\.ffn\.router\.", ".feed_forward.router."),
    (r"\.ffn\.(gate|up|down)\.", r".feed_forward.\1_proj."),
]
PACKED = {"packed": "weight_packed", "scale": "weight_scale"}
EXPERTS = re.compile(r"(.*\.ffn\.experts)\.(gate_up|down)(?:_(packed|scale))?")


def hf_name(name: str, multimodal: bool) -> str:
    """The published name of one of our parameters: ``blocks.0.attention.q.weight`` -> ..."""
    for ours, theirs in NAMES:
        name = re.sub(ours, theirs, name)
    return f"language_model.{name}" if multimodal and name.startswith(("model.", "lm_")) else name


def linear_name(module: str, multimodal: bool) -> str:
    """The published name of one of our Linears: ``blocks.0.attention.q`` -> ..."""
    return hf_name(f"{module}.weight", multimodal).removesuffix(".weight")


def expert_names(experts: str, expert: int, multimodal: bool) -> list[str]:
    """Gate, up and down of one expert, where each is a Linear; experts: our module's name."""
    fused = hf_name(f"{experts}.down", multimodal).removesuffix("down_proj")
    return [f"{fused}{expert}.{one}_proj" for one in ("gate", "up", "down")]


def linears(model: Llama4) -> Iterator[tuple[str, bool]]:
    """(published name, is it packed?) of everything that is a Linear to the others: experts one by
    one, and the router too."""
    multimodal = model.vision is not None
    for name, module in model.named_modules():
        if isinstance(module, Experts | Int4Experts):
            packed = isinstance(module, Int4Experts)
            for e in range(len(module.down_packed if packed else module.down)):
                yield from ((each, packed) for each in expert_names(name, e, multimodal))
        elif isinstance(module, nn.Linear | Router | Int4Linear):
            yield linear_name(name, multimodal), isinstance(module, Int4Linear)

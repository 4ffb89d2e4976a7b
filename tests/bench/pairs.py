"""The same weights twice: a model of ours, and transformers' on what ``ml4.save`` wrote."""

from __future__ import annotations

import tempfile

import torch
from torch import Tensor, nn
from transformers import Llama4ForCausalLM, Llama4TextConfig
from transformers.models.llama4.modeling_llama4 import Llama4TextMoe
from transformers.utils import logging

import minillama4 as ml4
from minillama4 import Llama4, Llama4Config
from minillama4.checkpoint import hf_name
from minillama4.model.moe import MoE

logging.set_verbosity_error()
logging.disable_progress_bar()


def model_pair(config: Llama4Config) -> tuple[Llama4, Llama4ForCausalLM]:
    """Both in float32, evaluation mode; theirs with its fastest attention on a CPU."""
    torch.manual_seed(0)
    ours = Llama4(config).eval()
    with tempfile.TemporaryDirectory() as folder:
        ml4.save(ours, folder)
        theirs = Llama4ForCausalLM.from_pretrained(
            folder, dtype=torch.float32, attn_implementation="sdpa"
        )
    return ours, theirs.eval()


def moe_pair(experts: int, width: int, hidden: int) -> tuple[MoE, nn.Module]:
    """One mixture-of-experts layer; the parameters are shared, not copied."""
    torch.manual_seed(0)
    config = Llama4Config.nano(width=width, experts=experts, expert_hidden=hidden)
    ours = MoE(config)
    for parameter in ours.parameters():
        nn.init.normal_(parameter, std=0.05)
    theirs = Llama4TextMoe(
        Llama4TextConfig(
            hidden_size=width,
            intermediate_size=hidden,
            num_local_experts=experts,
            num_experts_per_tok=config.top_k,
        )
    )
    prefix = "model.layers.0.feed_forward."
    for name, parameter in ours.named_parameters():
        path = hf_name(f"blocks.0.ffn.{name}", multimodal=False).removeprefix(prefix)
        owner, _, leaf = path.rpartition(".")
        setattr(theirs.get_submodule(owner), leaf, parameter)
    return ours, theirs


def gradients(ours: Llama4, theirs: nn.Module) -> tuple[list[Tensor], list[Tensor]]:
    """All gradients of both models, in the same order."""
    named = dict(theirs.named_parameters())
    pairs = [
        (p.grad, named[hf_name(name, multimodal=False)].grad) for name, p in ours.named_parameters()
    ]
    return [a for a, _ in pairs], [b for _, b in pairs]

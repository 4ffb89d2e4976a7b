"""Which sizes are measured, and how long: the full run, the quick one, and what tests use."""

from __future__ import annotations

from dataclasses import dataclass

from minillama4 import Llama4Config


@dataclass(frozen=True)
class Plan:
    """Sizes of all sections. Lengths are in tokens; ``seconds`` and ``rounds`` per candidate."""

    threads: int = 2
    seconds: float = 2.0  # a slow candidate stops after this, but not before ``fewest`` rounds
    rounds: int = 9
    fewest: int = 2
    # mixture of experts
    width: int = 256
    hidden: int = 512
    experts: tuple[int, ...] = (1, 4, 16, 64, 128)
    tokens: tuple[int, ...] = (1, 64, 4096)
    train_experts: tuple[int, ...] = (1, 4, 16, 64, 128)
    growth: int = 128  # experts, beside one
    train_tokens: tuple[int, ...] = (64, 4096)
    # whole models: batch and length of a training step, lengths of prefill, decode
    models: tuple[str, ...] = ("mini", "laptop")
    train_shape: tuple[tuple[str, int, int], ...] = (("mini", 8, 512), ("laptop", 2, 512))
    prefill: tuple[int, ...] = (512, 4096)
    decode_batches: tuple[int, ...] = (1, 8)
    prompt: int = 64
    steps: int = 32
    # attention
    heads: tuple[int, int, int] = (8, 2, 64)  # query heads, KV heads, head width
    chunk: int = 1024
    lengths: tuple[int, ...] = (1024, 4096, 16_384, 32_768)
    dense_lengths: tuple[int, ...] = (1024, 4096, 16_384)
    memory_lengths: tuple[int, ...] = (1024, 16_384, 32_768)


def quick(threads: int) -> Plan:
    """Under a minute: few repeats, none of transformers' slow cases."""
    moe = dict(experts=(1, 16), tokens=(1, 4096), train_experts=(16,), train_tokens=(4096,))
    whole = dict(models=("mini",), train_shape=(("mini", 8, 512),), prefill=(512,), steps=16)
    attention = dict(lengths=(1024, 4096, 8192), dense_lengths=(1024, 4096), memory_lengths=())
    return Plan(threads, seconds=0.3, rounds=3, fewest=1, **moe, **whole, **attention)


def model_config(name: str) -> Llama4Config:
    """The models of the sections train, prefill and decode."""
    if name == "nano":
        return Llama4Config.nano()
    if name == "mini":
        return Llama4Config.mini()
    sizes = dict(vocab_size=8192, width=384, layers=8, heads=8, kv_heads=2, head_width=48)
    ffn = dict(experts=16, expert_hidden=512, dense_hidden=1024, patch_token=8191)
    return Llama4Config.mini(**sizes, **ffn)


MODELS = {
    "nano": "nano",
    "mini": "mini (8 layers of 128, 16 experts of 128)",
    "laptop": "laptop (8 layers of 384, 16 experts of 512)",
}

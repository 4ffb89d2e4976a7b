"""What fits: every byte of weights, cache and workspace against a GPU's memory.

    weights     by component, in any of ``precision.SCHEMES``
    cache       2 · kv_heads · head_width numbers for a token in a layer, a key and a value for each
                KV head; a RoPE layer keeps one chunk at most, a NoPE layer every token
    workspace   what the forward pass itself needs, the driver, and memory that lies about unused

Source: spec, sections 6, 13 and 14. GB are 10^9 bytes, GiB 2^30.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch

from ..config import Llama4Config
from ..count import kv_entries
from .hardware import H100, Hardware
from .precision import weight_bytes

# Per GPU: prompts read in pieces of 8,192 tokens take 0.9 GB of it in Scout (``activation_bytes``);
# the rest is an allowance for the driver, loaded kernels and gaps between tensors.
WORKSPACE = 3_000_000_000


def kv_bytes(
    config: Llama4Config, length: int, dtype: torch.dtype = torch.bfloat16, chunked: bool = True
) -> int:
    """Bytes of all keys and values of one text of ``length`` tokens, over all layers.

    chunked: RoPE layers keep one chunk, all that a later token may need of them; False: every layer
    keeps everything, as Meta's reference code reserves it. Exact for what must be kept: a cache
    that grows in steps holds more, one that has just met a chunk border less. ValueError for a
    length below 0. Scout in bf16: 196,608 bytes a token, 49,152 beyond the first chunk.
    """
    return sum(kv_entries(config, length, chunked)) * kv_bytes_per_slot(config, dtype)


def kv_bytes_per_slot(config: Llama4Config, dtype: torch.dtype = torch.bfloat16) -> int:
    """Bytes of one token's keys and values in one layer: 4,096 in Scout and Maverick, in bf16."""
    if not isinstance(dtype, torch.dtype):
        raise TypeError(f"dtype must be a torch.dtype such as torch.bfloat16, not {dtype!r}.")
    return 2 * config.kv_heads * config.head_width * dtype.itemsize


def activation_bytes(config: Llama4Config, tokens: int) -> int:
    """Bytes that our forward in bf16 holds at its worst moment while it reads ``tokens`` at once.

    Within a tenth or so: the hidden state, its norm, and in the widest layer what a SwiGLU or the
    attention has in hand. Logits come on top: vocab_size · 2 bytes for each token that has them.
    """
    c = config
    held = [2 * c.width + 5 * c.head_width * (c.heads + c.kv_heads)]  # copies in float32 among them
    if c.moe_layers:
        held.append(4 * c.width + 4 * c.top_k * c.expert_hidden)
    if len(c.moe_layers) < c.layers:
        held.append(3 * c.width + 3 * c.dense_hidden)
    return 2 * tokens * max(held)


@dataclass(frozen=True)
class Plan:
    """What must lie in memory at once, and what there is; shown as a table in GB.

    weights: bytes by component. cache: of all texts of the batch. workspace and memory: of all
    GPUs together.
    """

    weights: dict[str, int]
    cache: int
    workspace: int
    memory: int
    words: str = field(default="", compare=False)

    @property
    def total(self) -> int:
        return sum(self.weights.values()) + self.cache + self.workspace

    @property
    def free(self) -> int:
        """Bytes left; below 0 it is what is missing."""
        return self.memory - self.total

    @property
    def fits(self) -> bool:
        return self.free >= 0

    def __repr__(self) -> str:
        rows = [(name, size) for name, size in self.weights.items() if size]
        rows += [("weights in all", sum(self.weights.values())), ("cache", self.cache)]
        rows += [("workspace", self.workspace), ("in all", self.total), ("memory", self.memory)]
        rows += [("left" if self.fits else "missing", abs(self.free))]
        wide = max(len(f"{size / 1e9:,.2f}") for _, size in rows)
        lines = [f"{name:<14}  {size / 1e9:>{wide},.2f} GB" for name, size in rows]
        return "\n".join([self.words] * bool(self.words) + lines)


def plan(
    config: Llama4Config,
    hardware: Hardware = H100,
    scheme: str = "bf16",
    context: int = 8192,
    batch: int = 1,
    *,
    cache: torch.dtype = torch.bfloat16,
    chunked: bool = True,
    vision: bool = True,
    workspace: int = WORKSPACE,
) -> Plan:
    """Weights in ``scheme``, ``batch`` texts of ``context`` tokens each, on ``hardware``.

    cache: its dtype, torch.float8_e4m3fn for one byte a number. workspace: bytes on each GPU.
    A node's GPUs share everything evenly here; norms and routers, which each holds whole, are too
    small to matter. ValueError for a batch below 1, a context below 0 or an unknown scheme.
    """
    if isinstance(batch, bool) or not isinstance(batch, int) or batch < 1:
        raise ValueError(f"batch must be a number of texts, 1 or more, not {batch!r}.")
    if workspace < 0:
        raise ValueError(f"workspace must be bytes, 0 or more, not {workspace!r}.")
    return Plan(
        weight_bytes(config, scheme, vision),
        batch * kv_bytes(config, context, cache, chunked),
        hardware.gpus * workspace,
        hardware.total_memory,
        f"{hardware.name}, {scheme}, {batch} × {context:,} tokens",
    )


def longest_context(
    config: Llama4Config,
    hardware: Hardware = H100,
    scheme: str = "bf16",
    batch: int = 1,
    **options,
) -> int:
    """The largest context at which ``plan`` fits with all texts of the batch that long, in tokens.

    At most the model's own max_length, which more memory does not extend; 0 where not even one
    token fits. options: those of ``plan``.
    """

    def fits(context: int) -> bool:
        return plan(config, hardware, scheme, context, batch, **options).fits

    low, high = 0, config.max_length
    while low < high:  # bytes never shrink with the context, so halving finds the last that fits
        middle = (low + high + 1) // 2
        low, high = (middle, high) if fits(middle) else (low, middle - 1)
    return low


def largest_batch(
    config: Llama4Config,
    hardware: Hardware = H100,
    scheme: str = "bf16",
    context: int = 8192,
    **options,
) -> int:
    """How many texts of ``context`` tokens fit at once; 0 if not even one does.

    ValueError for a context below 1: nothing would bound their number.
    """
    if context < 1:
        raise ValueError(f"context must be a number of tokens, 1 or more, not {context}.")
    one = plan(config, hardware, scheme, context, **options)
    return max(0, (one.free + one.cache) // one.cache)

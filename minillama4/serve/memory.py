"""What fits: the bytes that a text of some length keeps in memory while it is read and written.

    per token and layer   2 · kv_heads · head_width numbers, a key and a value for each KV head
    RoPE layer            the tokens of one chunk at most, then constant
    NoPE layer            every token: the only layers that grow with the text

Source: spec, sections 6 and 13. GB are 10^9 bytes, GiB 2^30.
"""

from __future__ import annotations

import torch

from ..config import Llama4Config


def kv_bytes(
    config: Llama4Config, length: int, dtype: torch.dtype = torch.bfloat16, chunked: bool = True
) -> int:
    """Bytes of all keys and values of one text of ``length`` tokens, over all layers.

    chunked: RoPE layers keep one chunk, all that a later token may need of them; False: every layer
    keeps everything, as Meta's reference code reserves it. Exact for what must be kept: a cache
    that grows in steps holds more, one that has just met a chunk border less. ValueError for a
    length below 0. Scout in bf16: 196,608 bytes a token, 49,152 beyond the first chunk.
    """
    if length < 0:
        raise ValueError(f"length must be a number of tokens, 0 or more, not {length}.")
    slots = [kv_slots(config, layer, length, chunked) for layer in range(config.layers)]
    return sum(slots) * kv_bytes_per_slot(config, dtype)


def kv_slots(config: Llama4Config, layer: int, length: int, chunked: bool = True) -> int:
    """Tokens whose key and value this layer keeps, of a text of ``length``."""
    everything = not chunked or config.chunk is None or layer in config.nope_layers
    return length if everything else min(length, config.chunk)


def kv_bytes_per_slot(config: Llama4Config, dtype: torch.dtype = torch.bfloat16) -> int:
    """Bytes of one token's keys and values in one layer: 4,096 in Scout and Maverick, in bf16."""
    return 2 * config.kv_heads * config.head_width * dtype.itemsize

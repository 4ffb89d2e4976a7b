"""The forward pass of Llama 4, one file per idea; imports nothing of this package but config."""

from .cache import KVCache
from .transformer import Block, Llama4

__all__ = ["Block", "KVCache", "Llama4"]

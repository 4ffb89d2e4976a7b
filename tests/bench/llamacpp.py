"""llama.cpp as the other side, where llama-cpp-python is installed: it reads what we export.

Ours is then a model of the config that llama.cpp follows (``as_llamacpp``), with the same weights.
"""

from __future__ import annotations

import importlib.util
import tempfile
from importlib.metadata import version
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from minillama4 import Llama4, Llama4Config
from minillama4.serve.gguf import save_gguf
from minillama4.serve.llamacpp import as_llamacpp

INSTALLED = importlib.util.find_spec("llama_cpp") is not None


def versions() -> dict[str, str]:
    """For the record; nothing where it is not installed."""
    return {"llama-cpp-python": version("llama-cpp-python")} if INSTALLED else {}


def exportable_model(config: Llama4Config) -> Llama4:
    """Random weights, in evaluation mode, that mean the same here and in llama.cpp."""
    torch.manual_seed(0)
    return Llama4(as_llamacpp(config)).eval()


class LlamaCpp:
    """A model in llama.cpp, fed with ids; cache "f16" (its default) or "f32" (as ours)."""

    def __init__(self, model: Llama4, kind: str, threads: int, length: int, cache="f32", **options):
        from llama_cpp import GGML_TYPE_F16, GGML_TYPE_F32, Llama

        stored = {"f16": GGML_TYPE_F16, "f32": GGML_TYPE_F32}[cache]
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder) / "model.gguf"
            save_gguf(model, file, kind=kind)
            given = dict(type_k=stored, type_v=stored, use_mmap=False, verbose=False)
            given |= dict(n_ctx=length, n_batch=length, n_threads=threads, n_threads_batch=threads)
            self.llama = Llama(str(file), **given | options)
        self.vocab_size = model.config.vocab_size
        self.read_so_far = 0

    def forget(self) -> None:
        """Begin a new text."""
        self.llama._ctx.kv_cache_clear()
        self.read_so_far = 0

    def read_new(self, tokens: Tensor, every: bool = False) -> Tensor:
        """Forget everything, then read."""
        self.forget()
        return self.read(tokens, every)

    def read(self, tokens: Tensor, every: bool = False) -> Tensor:
        """tokens (1, t) -> logits (1, 1, v) of the last position, or (1, t, v) of every one."""
        (row,) = tokens.tolist()
        self.llama._batch.set_batch(row, n_past=self.read_so_far, logits_all=every)
        self.llama._ctx.decode(self.llama._batch)
        self.read_so_far += len(row)
        size = self.vocab_size * (len(row) if every else 1)
        numbers = np.ctypeslib.as_array(self.llama._ctx.get_logits(), shape=(size,))
        return torch.from_numpy(numbers.copy()).view(1, -1, self.vocab_size)

"""A text model as one GGUF file, which llama.cpp opens, with its tokenizer inside.

    save_gguf(model, "mini.gguf", load_tokenizer(), kind="q8_0")

GGUF has the sizes and the tensors, not all of the architecture: see ``llamacpp.py`` for what its
reader fixes. What would be another model there from the first tokens on is refused; what is so in
long texts alone is written with a context length within which both compute the same.

Source: spec, section 15; the GGUF specification of ggml.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from einops import rearrange
from torch import Tensor

from ..checkpoint.errors import some
from ..config import Llama4Config
from ..data.tokenizer import Tokenizer
from ..files import written_whole
from ..model import Llama4
from ..model.rope import rope_frequencies
from .generate import stop_tokens
from .llamacpp import NO_QK_NORM, GGUFError, differences, llamacpp_length, vocabulary

KINDS = {"f32": 0, "f16": 1, "bf16": 32, "q8_0": 7, "q4_0": 2}  # GGUF's number for such a file
BLOCK = 32  # numbers that share a scale in q8_0 and q4_0

NAMES = [  # ours -> theirs, applied in this order
    (r"^embed\.", "token_embd."),
    (r"^norm\.", "output_norm."),
    (r"^head\.", "output."),
    (r"^blocks\.", "blk."),
    (r"\.attention_norm\.", ".attn_norm."),
    (r"\.attention\.o\.", ".attn_output."),
    (r"\.attention\.([qkv])\.", r".attn_\1."),
    (r"\.ffn\.router\.", ".ffn_gate_inp."),
    (r"\.ffn\.experts\.down$", ".ffn_down_exps.weight"),
    (r"\.ffn\.shared\.(gate|up|down)\.", r".ffn_\1_shexp."),
    (r"\.ffn\.(gate|up|down)\.", r".ffn_\1."),
]


def save_gguf(
    model: Llama4,
    file: str | Path,
    tokenizer: Tokenizer | None = None,
    kind: str = "f32",
    overwrite: bool = False,
    stop: int | None = None,
) -> None:
    """Write ``model`` to ``file``, whole or not at all, with one tensor in memory at a time.

    kind: how matrices are stored, a name in KINDS; norms and routers are float32 always. q8_0 and
    q4_0 keep 8 or 4 bits a weight and one scale for 32 of them. Without a tokenizer the file takes
    and gives token ids; stop: the id that ends a text there (the tokenizer's end). GGUFError for
    what the format cannot hold, TokenizerError for another model's tokenizer, FileExistsError
    unless ``overwrite``; ImportError without the package gguf.
    """
    gguf, file = _package(), Path(file)
    check_exportable(model, kind)
    if stop is not None:
        stop_tokens(stop, model.config)  # a ValueError if it is none
    words = None if tokenizer is None else vocabulary(tokenizer, model.config.vocab_size)
    if file.exists() and not overwrite:
        raise FileExistsError(f"{file} is there already: pass overwrite=True to replace it.")
    with written_whole(file) as part:
        writer = gguf.GGUFWriter(part, "llama4")
        try:
            _add_sizes(writer, model.config, kind)
            _add_vocabulary(writer, words, tokenizer, stop)
            for name, tensor in tensors(model):
                _announce(writer, name, tensor, _kind_of(name, tensor, kind))
            writer.write_header_to_file(part)
            writer.write_kv_data_to_file()
            writer.write_ti_data_to_file()
            for name, tensor in tensors(model):
                writer.write_tensor_data(encode(tensor, _kind_of(name, tensor, kind)))
        finally:
            writer.close()


def check_exportable(model: Llama4, kind: str = "f32") -> None:
    """GGUFError for a model that would be read as another, or could not be read at all."""
    if kind not in KINDS:
        raise GGUFError(f"kind must be one of {', '.join(KINDS)}, not {kind!r}.")
    if type(model) is not Llama4:
        raise GGUFError(f"save_gguf takes a minillama4.Llama4, not a {type(model).__name__}.")
    if reasons := [*differences(model.config), *_oddities(model, kind)]:
        raise GGUFError("This model does not fit into a GGUF file. " + " ".join(reasons))


def _oddities(model: Llama4, kind: str) -> Iterator[str]:
    """Weights that are not those of a Llama4, or do not divide into blocks."""
    with torch.device("meta"):
        wanted = {name: p.shape for name, p in Llama4(model.config).named_parameters()}
    found = dict(model.named_parameters())
    if {name: p.shape for name, p in found.items()} != wanted:
        yield "Its weights are not those of its config: was a part exchanged, or quantised?"
        return
    if any(p.is_meta for p in found.values()):
        yield "It is on the meta device: it has shapes but no weights."
        return
    if odd := [name for name, p in found.items() if not p.isfinite().all()]:
        yield f"Not all of its weights are numbers (NaN or infinity): {some(odd)}."
    rows = {n: t.shape[-1] for n, t in tensors(model) if _kind_of(n, t, kind) in ("q8_0", "q4_0")}
    odd = [f"{name} ({width})" for name, width in rows.items() if width % BLOCK]
    if odd:
        yield f"{kind} packs rows {BLOCK} numbers at a time, and these do not divide so: "
        yield f"{', '.join(odd[:4])}. Choose f16 or bf16."


# ------------------------------------------------------------------ fields
def _add_sizes(writer, config: Llama4Config, kind: str) -> None:
    """Sizes under llama.cpp's names, and the whole config under our own, which it passes over."""
    c = config
    dense = not c.moe_layers  # then the number of experts decides on QK-norm and nothing else
    writer.add_name("minillama4")
    writer.add_file_type(KINDS[kind])
    writer.add_quantization_version(2)  # of the layout of q8_0 and q4_0
    writer.add_block_count(c.layers)
    writer.add_context_length(llamacpp_length(c))
    writer.add_vocab_size(c.vocab_size)
    writer.add_embedding_length(c.width)
    writer.add_feed_forward_length(c.dense_hidden)
    writer.add_expert_feed_forward_length(c.expert_hidden)
    writer.add_expert_count((1 if c.qk_norm else NO_QK_NORM) if dense else c.experts)
    writer.add_expert_used_count(1 if dense else c.top_k)
    writer.add_interleave_moe_layer_step(0 if dense else c.moe_every)
    writer.add_head_count(c.heads)
    writer.add_head_count_kv(c.kv_heads)
    writer.add_key_length(c.head_width)
    writer.add_value_length(c.head_width)
    writer.add_rope_dimension_count(c.head_width)
    writer.add_rope_freq_base(c.rope_theta)
    writer.add_layer_norm_rms_eps(c.norm_eps)
    writer.add_string("minillama4.config", json.dumps(c.to_hf()))


def _add_vocabulary(writer, words, tokenizer: Tokenizer | None, stop: int | None) -> None:
    if words is None:
        writer.add_tokenizer_model("none")
        return
    names, kinds, merges = words
    writer.add_tokenizer_model("gpt2")  # byte-level BPE
    writer.add_tokenizer_pre("llama4")
    writer.add_token_list(names)
    writer.add_token_types(kinds)
    writer.add_token_merges(merges)
    writer.add_add_bos_token(True)  # texts begin with it, in training as in Llama 4
    writer.add_bos_token_id(tokenizer.begin)
    writer.add_eos_token_id(tokenizer.end if stop is None else stop)
    writer.add_eom_token_id(tokenizer.special["<|eom|>"])
    writer.add_eot_token_id(tokenizer.special["<|eot|>"])
    writer.add_pad_token_id(tokenizer.pad)


# ------------------------------------------------------------------ tensors
def tensors(model: Llama4) -> Iterator[tuple[str, Tensor]]:
    """(llama.cpp's name, tensor) in file order, output axis before input axis throughout.

    Experts' tensors, which have the input axis first here, are transposed; gate and up, one tensor
    here, are two there. q and k stay as they are. A tied head is left out, as llama.cpp expects.
    """
    c = model.config
    if c.rope_scaling is not None:
        plain = rope_frequencies(c.head_width, c.rope_theta)
        slowed = rope_frequencies(c.head_width, c.rope_theta, c.rope_scaling)
        yield "rope_freqs.weight", plain / slowed  # llama.cpp divides by it
    for name, parameter in model.named_parameters():
        tensor = parameter.detach()
        if name.endswith("experts.gate_up"):
            block = gguf_name(name.removesuffix("ffn.experts.gate_up"))
            for part, half in zip(("gate", "up"), tensor.chunk(2, dim=-1), strict=True):
                yield f"{block}ffn_{part}_exps.weight", rearrange(half, "e m f -> e f m")
        elif name.endswith("experts.down"):
            yield gguf_name(name), rearrange(tensor, "e f m -> e m f")
        else:
            yield gguf_name(name), tensor


def gguf_name(name: str) -> str:
    """llama.cpp's name of one of our parameters: ``blocks.0.attention.q.weight`` -> ..."""
    for ours, theirs in NAMES:
        name = re.sub(ours, theirs, name)
    return name


def _kind_of(name: str, tensor: Tensor, kind: str) -> str:
    return "f32" if tensor.ndim == 1 or "ffn_gate_inp" in name else kind


def encode(tensor: Tensor, kind: str) -> np.ndarray:
    """Numbers, or for bf16, q8_0 and q4_0 the bytes that stand for them, row by row."""
    gguf = _package()
    array = np.ascontiguousarray(tensor.float().cpu().numpy())
    return gguf.quants.quantize(array, gguf.GGMLQuantizationType[kind.upper()])


def _announce(writer, name: str, tensor: Tensor, kind: str) -> None:
    """Shape, type and size, which stand in the file before any tensor."""
    gguf = _package()
    stored = gguf.GGMLQuantizationType[kind.upper()]
    dtype = {"f32": np.float32, "f16": np.float16}.get(kind, np.uint8)
    whole = dtype is not np.uint8
    shape = tensor.shape if whole else gguf.quant_shape_to_byte_shape(tensor.shape, stored)
    size = math.prod(shape) * np.dtype(dtype).itemsize
    writer.add_tensor_info(name, tuple(shape), np.dtype(dtype), size, stored)


def _package():
    """The package gguf, which only this file needs."""
    try:
        import gguf
    except ImportError:
        raise ImportError(
            "GGUF files are written with the package gguf, which is not installed: "
            "pip install 'minillama4[gguf]'."
        ) from None
    return gguf

"""Saving: Hugging Face's layout, which transformers and vLLM open; Int4 weights as
compressed-tensors has them. A folder is written beside its place first, and then takes it.
"""

from __future__ import annotations

import json
import re
import shutil
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from ..data.tokenizer import Tokenizer, check_fits
from ..model import Llama4
from ..serve.generate import stop_tokens
from ..serve.int4 import PER_WORD
from ..serve.int4_modules import Int4Experts, Int4Linear
from ..serve.quantize import is_int4
from .beside import GENERATION, write_generation, write_tokenizer
from .errors import CheckpointError, some
from .hugging_face import INDEX, SINGLE
from .names import PACKED, expert_names, hf_name, linear_name, linears
from .packing import write_packing

OURS = re.compile(
    r"(generation_)?config\.json|model(-\d{5}-of-\d{5})?\.safetensors(\.index\.json)?"
)


def save(
    model: Llama4,
    folder: str | Path,
    shard_bytes: int = 5 * 10**9,
    overwrite: bool = False,
    tokenizer: Tokenizer | None = None,
    stop: int | Iterable[int] | None = None,
) -> None:
    """Write ``model`` to ``folder``, whole or not at all: transformers and vLLM open it.

    More than ``shard_bytes`` of weights become several files with an index. FileExistsError if
    the folder already holds a model and ``overwrite`` is False; its other files are kept.
    tokenizer: written beside the weights, so that others can go from text to text.
    stop: ids that end a text (the tokenizer's stop_ids), which generation_config.json names.
    A process that is killed in the middle leaves the old model whole, and beside it a hidden folder
    ``.NAME-...`` that may be deleted.
    CheckpointError, TokenizerError or ValueError for what could not be read back or does not fit.
    """
    folder = Path(folder).resolve()  # a link stays a link: its target is replaced
    _check_savable(model)
    if tokenizer is not None:
        check_fits(tokenizer, model.config.vocab_size)
    if stop is None:
        stop = () if tokenizer is None else tokenizer.stop_ids
    stops = stop_tokens(stop, model.config).tolist()
    if (folder / "config.json").exists() and not overwrite:
        raise FileExistsError(f"{folder} holds a model already: pass overwrite=True to replace it.")
    folder.parent.mkdir(parents=True, exist_ok=True)
    new = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
    try:
        # first, as it may refuse: before gigabytes are written
        write_generation(model.config, new / GENERATION, folder / GENERATION, stops)
        if tokenizer is not None:
            write_tokenizer(tokenizer, new, model.config, stops)
        _write(model, new, shard_bytes)
        _swap(new, folder)
    finally:
        shutil.rmtree(new, ignore_errors=True)


def _check_savable(model: Llama4) -> None:
    """What would write a file that cannot be read back is refused before anything is written."""
    tied = model.head.weight is model.embed.weight
    if tied != model.config.tied:
        raise CheckpointError(
            f"The config says tied = {model.config.tied}, but head and embedding are "
            f"{'one tensor' if tied else 'two tensors'}: change one or the other before saving."
        )
    every = dict(model.named_parameters(remove_duplicate=False))
    shared = every.keys() - dict(model.named_parameters()).keys() - {"head.weight"}
    if shared:
        raise CheckpointError(f"Shared weights cannot be saved: {some(sorted(shared))}.")
    if any(tensor.is_meta for tensor in model.state_dict().values()):
        raise CheckpointError("This model is on the meta device: it has shapes but no weights.")


def stored(model: Llama4) -> Iterator[tuple[str, Tensor]]:
    """(published name, tensor) of all that is written; a tied head is the embedding, once."""
    multimodal = model.vision is not None
    for name, parameter in model.named_parameters():
        yield hf_name(name, multimodal), parameter.detach()
    for name, module in model.named_modules():
        if isinstance(module, Int4Linear):
            yield from _packed(linear_name(name, multimodal), module.packed, module.scale)
        elif isinstance(module, Int4Experts):
            (gate_up, wide), (down, narrow) = module.pairs()
            for e in range(len(down)):
                weights = *gate_up[e].chunk(2), down[e]
                scales = *wide[e].chunk(2), narrow[e]
                for parts in zip(expert_names(name, e, multimodal), weights, scales, strict=True):
                    yield from _packed(*parts)


def _packed(linear: str, packed: Tensor, scale: Tensor) -> Iterator[tuple[str, Tensor]]:
    yield f"{linear}.{PACKED['packed']}", packed
    yield f"{linear}.{PACKED['scale']}", scale
    shape = torch.tensor([packed.shape[0], PER_WORD * packed.shape[1]])
    yield f"{linear}.weight_shape", shape


def _config(model: Llama4) -> dict:
    config = model.config.to_hf() | {"dtype": _dtype_name(model)}
    if not is_int4(model):
        return config
    ignore = [name for name, packed in linears(model) if not packed]
    return config | {"quantization_config": write_packing(ignore, _group(model))}


def _group(model: Llama4) -> int:
    """Weights to a scale, which the format says once for all."""
    pairs = []
    for part in model.modules():
        if isinstance(part, Int4Linear):
            pairs.append((part.packed, part.scale))
        elif isinstance(part, Int4Experts):
            pairs += part.pairs()
    groups = {PER_WORD * packed.shape[-1] // scale.shape[-1] for packed, scale in pairs}
    if len(groups) > 1:
        raise CheckpointError(f"Weights in groups of {sorted(groups)}: one size can be saved only.")
    return groups.pop()


def _write(model: Llama4, folder: Path, shard_bytes: int) -> None:
    text = json.dumps(_config(model), indent=2)
    (folder / "config.json").write_text(text + "\n", encoding="utf-8")
    shards = _plan(model, shard_bytes)
    where, size = {}, 0
    for i, shard in enumerate(shards):
        many = f"model-{i + 1:05}-of-{len(shards):05}.safetensors"
        file = SINGLE if len(shards) == 1 else many
        tensors = {name: tensor.cpu().contiguous() for name, tensor in shard.items()}
        save_file(tensors, folder / file, metadata={"format": "pt"})  # transformers asks for it
        (folder / file).chmod(0o644)  # safetensors lets nobody but its owner read
        where |= dict.fromkeys(tensors, file)
        size += sum(tensor.nbytes for tensor in tensors.values())
    if len(shards) > 1:
        index = {"metadata": {"total_size": size}, "weight_map": where}
        (folder / INDEX).write_text(json.dumps(index, indent=2), encoding="utf-8")


def _plan(model: Llama4, shard_bytes: int) -> list[dict[str, Tensor]]:
    """Tensors by published name, in shards of at most ``shard_bytes`` (or of one tensor)."""
    shards, room = [{}], shard_bytes
    for name, tensor in stored(model):
        if tensor.nbytes > room and shards[-1]:
            shards, room = [*shards, {}], shard_bytes
        shards[-1][name] = tensor
        room -= tensor.nbytes
    return shards


def _swap(new: Path, folder: Path) -> None:
    """Put ``new`` in the place of ``folder``, and what else lay there beside it again."""
    if not folder.exists():
        new.chmod(0o755)
        new.rename(folder)
        return
    new.chmod(folder.stat().st_mode)
    old = new.with_name(new.name + "-old")
    folder.rename(old)
    try:
        new.rename(folder)
    except BaseException:  # Ctrl-C included
        old.rename(folder)
        raise
    for other in list(old.iterdir()):
        if not (OURS.fullmatch(other.name) or (folder / other.name).exists()):
            other.rename(folder / other.name)
    shutil.rmtree(old)


def _dtype_name(model: Llama4) -> str:
    return str(model.embed.weight.dtype).removeprefix("torch.")

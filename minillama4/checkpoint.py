"""Weights in and out, in the layout of Hugging Face: what ``save`` writes, transformers opens.

A folder holds ``config.json`` and either ``model.safetensors`` or many shards with an index.
Every tensor has the same shape here and there; only the names differ (table ``NAMES``).
Source: names and shapes of the published checkpoints, spec section 10.
"""

from __future__ import annotations

import json
import re
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import nn
from tqdm.auto import tqdm

from .config import Llama4Config
from .model import Llama4

INDEX, SINGLE = "model.safetensors.index.json", "model.safetensors"
OURS = re.compile(r"config\.json|model(-\d{5}-of-\d{5})?\.safetensors(\.index\.json)?")
IGNORED = re.compile(r"rotary_emb.*inv_freq$|rotary_embedding\.freqs_ci$")  # computed, not learned

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


class CheckpointError(ValueError):
    """A folder of weights that is not what its config says; the message names each tensor."""


def hf_name(name: str, multimodal: bool) -> str:
    """The published name of one of our parameters: ``blocks.0.attention.q.weight`` -> ..."""
    for ours, theirs in NAMES:
        name = re.sub(ours, theirs, name)
    return f"language_model.{name}" if multimodal and name.startswith(("model.", "lm_")) else name


def _parameters(model: Llama4) -> Iterator[tuple[str, str, nn.Parameter]]:
    """(our name, published name, parameter); a tied head is stored once, as the embedding."""
    for name, parameter in model.named_parameters():
        yield name, hf_name(name, model.vision is not None), parameter


# ---------------------------------------------------------------------- load
def load(folder: str | Path, dtype: torch.dtype | None = None, device="cpu") -> Llama4:
    """The model in ``folder``, text only or multimodal, as its config.json says.

    dtype None keeps the file's own. Tensors come one by one, so that host memory holds little
    more than the result. FileNotFoundError or CheckpointError before anything large is read.
    """
    folder = Path(folder)
    if dtype is not None and not (isinstance(dtype, torch.dtype) and dtype.is_floating_point):
        raise TypeError(
            f"dtype must be a floating torch.dtype such as torch.bfloat16, not {dtype!r}."
        )
    config = Llama4Config.from_hf(folder)
    with torch.device("meta"):  # shapes without memory
        model = Llama4(config)
    files = _find_files(folder)
    _compare(model, _read_shapes(folder, files), folder)
    state, names = {}, {theirs: ours for ours, theirs, _ in _parameters(model)}
    with tqdm(total=len(names), desc=f"loading {folder.name}", leave=False) as bar:
        for file in files:
            with safe_open(folder / file, "pt") as tensors:
                for theirs in tensors.keys():  # noqa: SIM118 (not a dict)
                    if theirs in names:
                        state[names[theirs]] = tensors.get_tensor(theirs).to(device, dtype)
                        bar.update()
    model.load_state_dict(state, strict=False, assign=True)
    if config.tied:
        model.head.weight = model.embed.weight
    return model


def _find_files(folder: Path) -> list[str]:
    """The safetensors files that make up the model."""
    if (folder / INDEX).exists():
        try:
            index = json.loads((folder / INDEX).read_text(encoding="utf-8"))
            files = {str(name) for name in index["weight_map"].values()}
        except (ValueError, KeyError, AttributeError, TypeError):
            raise CheckpointError(f"{folder / INDEX} is damaged: copy it again.") from None
        odd = sorted(name for name in files if Path(name).name != name)
        if odd:
            raise CheckpointError(f"{INDEX} points outside its folder: {', '.join(odd)}.")
        missing = sorted(name for name in files if not (folder / name).exists())
        if missing:
            raise FileNotFoundError(f"{folder} lacks {_some(missing)}, which {INDEX} names.")
        return sorted(files)
    if (folder / SINGLE).exists():
        return [SINGLE]
    if list(folder.glob("consolidated*.pth")):
        raise CheckpointError(f"{folder} is in Meta's own layout, which is not read yet.")
    raise FileNotFoundError(f"No weights in {folder}: neither {SINGLE} nor {INDEX} is there.")


def _read_shapes(folder: Path, files: list[str]) -> dict[str, tuple[int, ...]]:
    """Names and shapes from the headers alone; finds a file that was cut off."""
    shapes = {}
    for file in files:
        try:
            with safe_open(folder / file, "pt") as tensors:
                for name in tensors.keys():  # noqa: SIM118
                    header = tensors.get_slice(name)
                    _check_header(name, header.get_dtype(), file, shapes)
                    shapes[name] = tuple(header.get_shape())
        except SafetensorError as error:
            raise CheckpointError(
                f"{folder / file} is truncated or not a safetensors file ({error}): copy it again."
            ) from None
    return shapes


def _check_header(name: str, dtype: str, file: str, before: dict) -> None:
    if name in before:
        raise CheckpointError(f"{name} is stored twice, the second time in {file}.")
    if dtype not in ("F64", "F32", "F16", "BF16") and not IGNORED.search(name):
        raise CheckpointError(f"{name} in {file} is {dtype}: quantised weights are not read yet.")


def _compare(model: Llama4, found: dict[str, tuple[int, ...]], folder: Path) -> None:
    wanted = {theirs: tuple(p.shape) for _, theirs, p in _parameters(model)}
    if model.config.tied:  # some files store the shared table twice
        found = {name: s for name, s in found.items() if not name.endswith("lm_head.weight")}
    missing = [name for name in wanted if name not in found]
    extra = [name for name in found if name not in wanted and not IGNORED.search(name)]
    shapes = [
        f"{name} {list(found[name])} in place of {list(shape)}"
        for name, shape in wanted.items()
        if found.get(name, shape) != shape
    ]
    told = [("missing", missing), ("unexpected", extra), ("wrongly shaped", shapes)]
    told = [f"{len(names)} {kind}: {_some(names)}" for kind, names in told if names]
    if told:
        raise CheckpointError(f"{folder} does not fit its config.json. " + ". ".join(told) + ".")


def _some(names: list[str], most: int = 8) -> str:
    rest = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + rest


# ---------------------------------------------------------------------- save
def save(
    model: Llama4, folder: str | Path, shard_bytes: int = 5 * 10**9, overwrite: bool = False
) -> None:
    """Write ``model`` to ``folder``, whole or not at all; transformers opens it.

    More than ``shard_bytes`` of weights become several files with an index. FileExistsError if
    the folder already holds a model and ``overwrite`` is False; its other files are kept.
    """
    folder = Path(folder).resolve()  # a link stays a link: its target is replaced
    _check_savable(model)
    if (folder / "config.json").exists() and not overwrite:
        raise FileExistsError(f"{folder} holds a model already: pass overwrite=True to replace it.")
    folder.parent.mkdir(parents=True, exist_ok=True)
    new = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
    try:
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
        raise CheckpointError(f"Shared weights cannot be saved: {_some(sorted(shared))}.")
    if any(parameter.is_meta for parameter in every.values()):
        raise CheckpointError("This model is on the meta device: it has shapes but no weights.")


def _write(model: Llama4, folder: Path, shard_bytes: int) -> None:
    text = json.dumps(model.config.to_hf() | {"dtype": _dtype_name(model)}, indent=2)
    (folder / "config.json").write_text(text + "\n", encoding="utf-8")
    shards = _plan(model, shard_bytes)
    where, size = {}, 0
    for i, shard in enumerate(shards):
        many = f"model-{i + 1:05}-of-{len(shards):05}.safetensors"
        file = SINGLE if len(shards) == 1 else many
        tensors = {name: p.detach().cpu().contiguous() for name, p in shard.items()}
        save_file(tensors, folder / file, metadata={"format": "pt"})  # transformers asks for it
        (folder / file).chmod(0o644)  # safetensors lets nobody but its owner read
        where |= dict.fromkeys(tensors, file)
        size += sum(t.numel() * t.element_size() for t in tensors.values())
    if len(shards) > 1:
        index = {"metadata": {"total_size": size}, "weight_map": where}
        (folder / INDEX).write_text(json.dumps(index, indent=2), encoding="utf-8")


def _plan(model: Llama4, shard_bytes: int) -> list[dict[str, nn.Parameter]]:
    """Parameters by published name, in shards of at most ``shard_bytes`` (or of one tensor)."""
    shards, room = [{}], shard_bytes
    for _, name, parameter in _parameters(model):
        size = parameter.numel() * parameter.element_size()
        if size > room and shards[-1]:
            shards, room = [*shards, {}], shard_bytes
        shards[-1][name] = parameter
        room -= size
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
        if not OURS.fullmatch(other.name):
            other.rename(folder / other.name)
    shutil.rmtree(old)


def _dtype_name(model: Llama4) -> str:
    return str(model.embed.weight.dtype).removeprefix("torch.")

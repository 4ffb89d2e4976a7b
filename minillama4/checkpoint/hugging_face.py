"""Hugging Face's layout: config.json, and safetensors files, plain or with packed Int4 weights.

A folder holds ``model.safetensors``, or many shards with an index (Scout has 50). Plain experts are
two tensors to a layer. In a packed folder each expert is three Linears, and each packed Linear is
three tensors: ``weight_packed``, ``weight_scale`` and ``weight_shape``.
"""

from __future__ import annotations

import json
import re
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from ..config import Llama4Config
from ..hf_config import read_json
from ..model import Llama4
from ..model.moe import Experts
from ..serve.int4_modules import Int4Experts, Int4Linear
from .errors import CheckpointError, cannot_map, some, unreadable
from .layout import Key, Layout
from .names import EXPERTS, PACKED, expert_names, hf_name, linear_name, linears
from .packing import Packing, read_packing
from .parts import Part, Stored, whole

INDEX, SINGLE = "model.safetensors.index.json", "model.safetensors"
DTYPES = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
DTYPES |= {"I32": torch.int32, "I64": torch.int64}


class HuggingFace(Layout):
    """Tensors by their published names; all shards are one space of names, shard 0."""

    ignored = re.compile(r"rotary_emb.*inv_freq$|rotary_embedding\.freqs_ci$")  # computed

    def read_headers(self) -> None:
        self.config = Llama4Config.from_hf(self.folder)
        self.multimodal = self.config.vision is not None
        self.packing = read_packing(read_json(self.folder))
        self.headers, self.files = {}, {}
        for file in find_files(self.folder):
            self._read_header(file)
        if self.config.tied:  # some files store the shared table twice
            prefix = "language_model." if self.multimodal else ""
            self.headers.pop((0, f"{prefix}lm_head.weight"), None)

    def _read_header(self, file: str) -> None:
        """Names, shapes and dtypes from the header alone; finds a file that was cut off."""
        try:
            tensors = self.open_files.enter_context(safe_open(self.folder / file, "pt"))
            for name in tensors.keys():  # noqa: SIM118 (not a dict)
                if before := self.headers.get((0, name)):
                    twice = f"in {before.file} and in {file}"
                    raise CheckpointError(f"{name} is stored twice, {twice}: remove one of them.")
                found = tensors.get_slice(name)
                dtype = DTYPES.get(found.get_dtype(), found.get_dtype())
                self.headers[0, name] = Stored(file, tuple(found.get_shape()), dtype)
        except SafetensorError as error:
            what = f"truncated or not a safetensors file ({error}): copy it again."
            raise unreadable(self.folder / file, what) from None
        except RuntimeError as error:
            raise cannot_map(self.folder / file, error) from None
        self.files[file] = tensors

    def read(self, shard: int, key: str, take: tuple[slice, ...]) -> Tensor:
        return self.files[self.headers[shard, key].file].get_slice(key)[take]

    # ------------------------------------------------------------------ names and shapes
    def parts(self, name: str, shape: tuple[int, ...], expert: int | None = None) -> list[Part]:
        if expert is not None:
            return self._expert_parts(name, shape, expert)
        module, _, kind = name.rpartition(".")
        key = hf_name(name, self.multimodal)
        if kind in PACKED:
            key = f"{linear_name(module, self.multimodal)}.{PACKED[kind]}"
        return [Part(0, key, whole(shape), whole(shape))]

    def _expert_parts(self, name: str, shape: tuple[int, ...], expert: int) -> list[Part]:
        experts, which, kind = EXPERTS.fullmatch(name).groups()
        fused = hf_name(f"{experts}.{which}", self.multimodal)
        if (kind is None and (0, fused) in self.headers) or self.packing is None:
            return [Part(0, fused, (slice(expert, expert + 1), *whole(shape)), whole(shape))]
        linears = expert_names(experts, expert, self.multimodal)
        linears = linears[2:] if which == "down" else linears[:2]  # gate's rows, then up's
        flip = kind is None  # stored (out, in), as packed weights are here too
        out, rest = (shape[1], shape[0]) if flip else shape
        rows, parts = out // len(linears), []
        for i, linear in enumerate(linears):
            put = slice(i * rows, (i + 1) * rows), slice(0, rest)
            key = f"{linear}.{PACKED.get(kind, 'weight')}"
            parts.append(Part(0, key, whole((rows, rest)), put[::-1] if flip else put, flip))
        return parts

    # ------------------------------------------------------------------ packed weights
    def skeleton(self) -> Llama4:
        model = super().skeleton()
        if self.packing is not None:
            with torch.device("meta"):
                put_int4(model, self.packing)
        return model

    def wanted(self, model: Llama4) -> dict[Key, tuple[int, ...]]:
        packed = [name for name, is_packed in linears(model) if is_packed]
        return super().wanted(model) | {(0, f"{name}.weight_shape"): (2,) for name in packed}

    def check(self, model: Llama4) -> None:
        if odd := [name for _, name in self.headers if name.endswith(("_g_idx", "_zero_point"))]:
            kinds = "reordered columns (g_idx) or zero points are not read"
            raise CheckpointError(f"{self.folder} holds {some(odd)}: {kinds}.")
        super().check(model)
        for (_, key), stored in self.headers.items():
            if key.endswith(".weight_shape"):
                packed = self.headers[0, f"{key.removesuffix('shape')}packed"].shape
                shape = self.read(0, key, (slice(0, 2),)).tolist()
                if shape != [packed[0], 8 * packed[1]]:
                    told = f"{key} in {stored.file} says {shape}"
                    raise CheckpointError(f"{told}, but its weights are {list(packed)} words of 8.")

    def check_dtypes(self, wanted: dict[Key, tuple[int, ...]]) -> None:
        kinds = {"weight_packed": torch.int32, "weight_shape": torch.int64}
        for key in list(wanted):
            needed = kinds.get(key[1].rpartition(".")[2])
            if needed is not None and wanted.pop(key) and self.headers[key].dtype != needed:
                odd = f"{key[1]} is {self.headers[key].dtype}"
                raise CheckpointError(f"{odd} in {self.headers[key].file}, not {needed}.")
        super().check_dtypes(wanted)

    odd_dtype = (
        "of quantised weights, Int4 as compressed-tensors packs it is read, and only if "
        "config.json says so (quantization_config)."
    )


def put_int4(model: Llama4, packing: Packing) -> None:
    """Int4 modules in the places of those that are packed; CheckpointError where we have none."""
    multimodal = model.vision is not None
    odd = dict.fromkeys(name for name, _ in linears(model) if packing.packs(name))
    for name, module in list(model.named_modules()):
        parent, _, last = name.rpartition(".")
        if isinstance(module, Experts):
            names = [
                each for e in range(len(module.down)) for each in expert_names(name, e, multimodal)
            ]
            new = Int4Experts(len(module.down), *module.down.shape[:0:-1], packing.group)
        elif isinstance(module, nn.Linear) and not name.startswith("vision."):
            names = [linear_name(name, multimodal)]
            new = Int4Linear(module.in_features, module.out_features, packing.group)
        else:
            continue
        packed = [each for each in names if packing.packs(each)]
        for each in packed:
            del odd[each]
        if packed and len(packed) < len(names):
            left = some([each for each in names if not packing.packs(each)])
            raise CheckpointError(f"Some experts of {name} are packed, but not {left}.")
        if packed:
            setattr(model.get_submodule(parent), last, new)
    if odd:
        raise CheckpointError(
            f"quantization_config packs {some(list(odd))}: routers and vision are read in full "
            "precision only (its ignore list should name them)."
        )


def find_files(folder: Path) -> list[str]:
    """The safetensors files that make up the model."""
    if (folder / INDEX).exists():
        try:
            index = json.loads((folder / INDEX).read_text(encoding="utf-8"))
            files = {str(name) for name in index["weight_map"].values()}
        except (ValueError, KeyError, AttributeError, TypeError):
            raise unreadable(folder / INDEX, "damaged: copy it again.") from None
        odd = sorted(name for name in files if Path(name).name != name)
        if odd:
            raise CheckpointError(f"{INDEX} points outside its folder: {', '.join(odd)}.")
        missing = sorted(name for name in files if not (folder / name).is_file())
        if missing:
            raise FileNotFoundError(f"{folder} lacks {some(missing)}, which {INDEX} names.")
        return sorted(files)
    if (folder / SINGLE).is_file():
        return [SINGLE]
    raise FileNotFoundError(f"No weights in {folder}: neither {SINGLE} nor {INDEX} is there.")

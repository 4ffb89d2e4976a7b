"""Meta's layout: params.json and ``consolidated.00.pth``, one file or one for each of eight GPUs.

A shard holds a GPU's share of every matrix: of most its rows (outputs), of those that end a block
its columns (inputs), of norms and routers a whole copy. q, k and v lie in one tensor and so do gate
and up of a dense layer, in every shard (q/8, k/8, v/8) and (gate/8, up/8). Experts are stacked in
two dimensions, (e·m, f) and (e·f, m): the down projection is split inside each expert, so shards of
it that are simply put one below the other would hand every expert pieces of the others.
Source: spec, sections 9 and 10; META's resharding (models/checkpoint.py) for the axes.
"""

from __future__ import annotations

import io
import pickle
import re
import zipfile
from pathlib import Path

import torch
from torch import Tensor

from .errors import CheckpointError, cannot_map, some, unreadable
from .layout import Key, Layout
from .names import EXPERTS
from .params import PARAMS, read_params
from .parts import Part, Stored, whole

FILE = re.compile(r"consolidated(?:\.(\d+))?\.pth")
EMBED = "tok_embeddings.weight"
EXPERT_KEYS = {"gate": "moe_w_in_eD_F", "up": "moe_w_swiglu_eD_F", "down": "moe_w_out_eF_D"}

_LAYER, _FFN = r"layers.\1.", r"layers.\1.feed_forward."
_BLOCK, _EYE = r"blocks\.(\d+)\.", "vision_embeddings.vision_encoder."
_RES = _EYE + r"transformer.resblocks.\1."
NAMES = [  # ours, theirs, and what of it a shard holds
    (r"embed\.weight", EMBED, "rows"),
    (r"norm\.weight", "norm.weight", "all"),
    (r"head\.weight", "output.weight", "rows"),
    (_BLOCK + r"attention_norm\.weight", _LAYER + "attention.wqkv.layer_norm_weight", "all"),
    (_BLOCK + r"attention\.[qkv]\.weight", _LAYER + "attention.wqkv.weight", "stacked"),
    (_BLOCK + r"attention\.o\.weight", _LAYER + "attention.wo.weight", "columns"),
    (_BLOCK + r"ffn\.router\.weight", _FFN + "router_DE", "flipped"),
    (_BLOCK + r"ffn\.shared\.gate\.weight", _FFN + "w_in_shared_FD.weight", "rows"),
    (_BLOCK + r"ffn\.shared\.up\.weight", _FFN + "w_swiglu_FD.weight", "rows"),
    (_BLOCK + r"ffn\.shared\.down\.weight", _FFN + "w_out_shared_DF.weight", "columns"),
    (_BLOCK + r"ffn\.(?:gate|up)\.weight", _FFN + "mlp.fc1_weight", "stacked"),
    (_BLOCK + r"ffn\.down\.weight", _FFN + "mlp.fc2_weight", "columns"),
    (r"vision\.patches\.weight", _EYE + "conv1._linear.weight", "rows"),
    (r"vision\.class_token", _EYE + "class_embedding", "all"),
    (r"vision\.positions", _EYE + "positional_embedding_vlm", "all"),
    (r"vision\.norm_before\.(weight|bias)", _EYE + r"ln_pre.\1", "all"),
    (r"vision\.norm_after\.(weight|bias)", _EYE + r"ln_post.\1", "all"),
    (r"vision\." + _BLOCK + r"attention\.([qkv])\.(weight|bias)", _RES + r"attn.w\2.\3", "rows"),
    (r"vision\." + _BLOCK + r"attention\.o\.weight", _RES + "attn.wo.weight", "columns"),
    (r"vision\." + _BLOCK + r"attention\.o\.bias", _RES + "attn.wo.bias", "all"),
    (r"vision\." + _BLOCK + r"up\.(weight|bias)", _RES + r"mlp.c_fc.\2", "rows"),
    (r"vision\." + _BLOCK + r"down\.weight", _RES + "mlp.c_proj.weight", "columns"),
    (r"vision\." + _BLOCK + r"down\.bias", _RES + "mlp.c_proj.bias", "all"),
    (r"vision\." + _BLOCK + r"attention_norm\.(weight|bias)", _RES + r"ln_1.\2", "all"),
    (r"vision\." + _BLOCK + r"mlp_norm\.(weight|bias)", _RES + r"ln_2.\2", "all"),
    (r"vision\.adapter_in\.weight", "vision_embeddings.vision_adapter.mlp.c_fc.weight", "rows"),
    (
        r"vision\.adapter_out\.weight",
        "vision_embeddings.vision_adapter.mlp.c_proj.weight",
        "columns",
    ),
    (r"vision\.projection\.weight", "vision_projection.weight", "rows"),
]


class Meta(Layout):
    """Tensors by shard and name; shards are mapped, and only touched where a part is copied."""

    says = PARAMS
    ignored = re.compile(
        r"\._extra_state$|(global|running)_gate_stats_3E$|expert_activation_DE$|^rope\.freqs$"
    )

    def read_headers(self) -> None:
        self.files = find_files(self.folder)
        self.shards = [open_file(self.folder / file) for file in self.files]
        self.headers = {
            (i, key): Stored(self.files[i], tuple(tensor.shape), tensor.dtype)
            for i, shard in enumerate(self.shards)
            for key, tensor in shard.items()
        }
        self._check_doubles()
        tables = [shard[EMBED] for shard in self.shards if EMBED in shard]
        if len(tables) < len(self.shards) or any(table.ndim != 2 for table in tables):
            raise CheckpointError(f"{self.folder}: not every shard holds {EMBED} of a Llama 4.")
        self.config = read_params(self.folder, sum(len(table) for table in tables))
        self._check_split()

    def _check_doubles(self) -> None:
        """The checksums in two files' directories are not equal unless all of their bytes are."""
        sums: dict[tuple, str] = {}
        for file in self.files:
            with zipfile.ZipFile(self.folder / file) as directory:
                own = tuple((entry.file_size, entry.CRC) for entry in directory.infolist())
            if (other := sums.setdefault(own, file)) != file:
                raise CheckpointError(
                    f"{self.folder}: {other} and {file} are the same shard twice. Copy both again."
                )

    def _check_split(self) -> None:
        c, n = self.config, len(self.shards)
        sizes = {"width": c.width, "q": c.heads * c.head_width, "k": c.kv_heads * c.head_width}
        sizes |= {"expert_hidden": c.expert_hidden, "dense_hidden": c.dense_hidden}
        if c.vision is not None:
            sizes |= {"vision.width": c.vision.width, "vision.adapter": c.vision.adapter}
        if odd := [f"{name} = {size}" for name, size in sizes.items() if size % n]:
            raise CheckpointError(
                f"{self.folder} holds {n} shards, over which {some(odd)} cannot be split: is a "
                f"file missing, or one too many? Here are {some(self.files)}."
            )

    def read(self, shard: int, key: str, take: tuple[slice, ...]) -> Tensor:
        return self.shards[shard][key][take]

    def __exit__(self, *error) -> None:
        self.shards = []  # unmapped with the last tensor that lies in them
        super().__exit__(*error)

    def label(self, key: Key) -> str:
        return key[1] if len(self.files) == 1 else f"{key[1]} of {self.files[key[0]]}"

    def wanted(self, model) -> dict[Key, tuple[int, ...]]:
        """Copies are taken from the first shard, and must lie in all of them."""
        wanted = super().wanted(model)
        copies = [key for key in wanted if (1, key[1]) not in wanted]
        more = range(1, len(self.files))
        return wanted | {(i, key): wanted[0, key] for _, key in copies for i in more}

    def check_dtypes(self, wanted: dict[Key, tuple[int, ...]]) -> None:
        super().check_dtypes(wanted)
        kinds: dict[str, set] = {}
        for key in wanted:
            kinds.setdefault(key[1], set()).add(self.headers[key].dtype)
        if odd := [key for key, dtypes in kinds.items() if len(dtypes) > 1]:
            raise CheckpointError(f"Shards hold {some(odd)} in different dtypes: copy them again.")

    # ------------------------------------------------------------------ which part goes where
    def parts(self, name: str, shape: tuple[int, ...], expert: int | None = None) -> list[Part]:
        if expert is not None:
            return self._expert_parts(name, shape, expert)
        if found := re.fullmatch(_BLOCK + r"ffn_norm\.weight", name):  # named after what follows it
            experts = int(found[1]) in self.config.moe_layers
            key = found.expand(_FFN) + ("norm.weight" if experts else "mlp.layer_norm_weight")
            return self._split(name, key, "all", shape)
        for ours, theirs, how in NAMES:
            if found := re.fullmatch(ours, name):
                return self._split(name, found.expand(theirs), how, shape)
        raise KeyError(name)

    def _split(self, name: str, key: str, how: str, shape: tuple[int, ...]) -> list[Part]:
        if how == "all":
            return [Part(0, key, whole(shape), whole(shape))]
        if how == "flipped":
            return [Part(0, key, whole(shape[::-1]), whole(shape), flip=True)]
        axis, before = int(how == "columns"), self._stacked_before(name)
        size, parts = shape[axis] // len(self.shards), []
        first = before // len(self.shards)
        for i in range(len(self.shards)):
            take, put = list(whole(shape)), list(whole(shape))
            take[axis] = slice(first, first + size)
            put[axis] = slice(i * size, (i + 1) * size)
            parts.append(Part(i, key, tuple(take), tuple(put)))
        return parts

    def _stacked_before(self, name: str) -> int:
        """Rows of the whole tensor that lie above this part of it."""
        c, last = self.config, name.removesuffix(".weight").rpartition(".")[2]
        if name.startswith("vision."):
            return 0
        q, kv = c.heads * c.head_width, c.kv_heads * c.head_width
        up = 0 if ".shared." in name else c.dense_hidden
        return {"k": q, "v": q + kv, "up": up}.get(last, 0)

    def _expert_parts(self, name: str, shape: tuple[int, ...], expert: int) -> list[Part]:
        """Of (e·m, f / shards), m rows; of (e·f / shards, m), f / shards rows."""
        experts, which, _ = EXPERTS.fullmatch(name).groups()
        prefix = re.sub(_BLOCK + r"ffn\.experts", _FFN + "experts.", experts)
        kinds = ("gate", "up") if which == "gate_up" else ("down",)
        n, parts = len(self.shards), []
        rows, columns = shape[0], shape[1] // len(kinds)
        if which == "down":
            rows //= n
        else:
            columns //= n
        take = slice(expert * rows, (expert + 1) * rows), slice(0, columns)
        for k, kind in enumerate(kinds):
            for i in range(n):
                at = (k * n + i) * columns, i * rows
                across = slice(0, rows), slice(at[0], at[0] + columns)
                below = slice(at[1], at[1] + rows), slice(0, columns)
                put = below if which == "down" else across
                parts.append(Part(i, prefix + EXPERT_KEYS[kind], take, put))
        return parts


def find_files(folder: Path) -> list[str]:
    """``consolidated.pth``, or ``consolidated.00.pth`` and those that follow, none left out."""
    found = {file.name: FILE.fullmatch(file.name) for file in folder.glob("consolidated*.pth")}
    odd = sorted(name for name, match in found.items() if not match)
    numbers = sorted(int(m[1]) for m in found.values() if m and m[1] is not None)
    files = sorted(name for name, match in found.items() if match)
    if odd or (numbers and len(files) > len(numbers)):
        raise CheckpointError(
            f"{folder} holds {some(sorted(found))}: these are not the shards of one model. "
            "Expected are consolidated.00.pth, 01 and so on, or consolidated.pth alone."
        )
    lost = [f"consolidated.{i:02d}.pth" for i in range(len(numbers)) if i not in numbers]
    if lost:
        raise FileNotFoundError(f"{folder} lacks {some(lost)} between the others.")
    return files


def open_file(file: Path) -> dict[str, Tensor]:
    """A shard's tensors, mapped. A file that was cut off has lost its directory, which is at the
    end; one that wants to run code when it is opened is refused."""
    if not zipfile.is_zipfile(file):
        raise unreadable(
            file, "truncated, or not a file of torch.save's zip format: copy it again."
        )
    try:
        with torch.serialization.safe_globals([io.BytesIO]):  # _extra_state
            held = torch.load(file, map_location="cpu", weights_only=True, mmap=True)
    except (RuntimeError, pickle.UnpicklingError, ValueError, EOFError) as error:
        why = str(error).splitlines()[0]
        if "mmap" in why:
            raise cannot_map(file, error) from None
        raise CheckpointError(f"{file} is damaged, or holds more than tensors: {why}") from None
    if not isinstance(held, dict):
        raise CheckpointError(f"{file} holds a {type(held).__name__}, not a dict of tensors.")
    return {str(key): value for key, value in held.items() if isinstance(value, Tensor)}

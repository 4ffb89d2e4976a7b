"""Loading: every tensor is made once, where it will stay, and filled from the files part by part.

With ``quantize`` an expert is put together in a buffer of its own size and quantised from there, a
few rows at a time; the buffer, the rows and a piece of the file are all that lies beside the result
(for Scout 0.3 GB, where one layer's experts have 4 GB).
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from tqdm.auto import tqdm

from ..model import Llama4
from ..serve.int4 import GROUP, PER_WORD, quantize
from ..serve.quantize import quantize_model, unquantised
from .errors import CheckpointError
from .hugging_face import INDEX, SINGLE, HuggingFace
from .layout import Layout
from .meta import Meta
from .names import EXPERTS
from .parts import Part

QUANTIZE = {  # as serve.precision.SCHEMES: which weights, by which convention
    "int4": ("experts", "compressed-tensors"),
    "w4a16": ("experts", "compressed-tensors"),
    "int4-meta": ("experts", "meta"),
    "int4-blocks": ("blocks", "compressed-tensors"),
    "int4-all": ("all", "compressed-tensors"),
}
SUSPECT = 4096  # numbers of a matrix that are not all 0 by chance
ROWS = 2**22  # weights that are quantised at once: their temporaries take 60 MB


def load(
    folder: str | Path,
    dtype: torch.dtype | None = None,
    device="cpu",
    quantize: str | None = None,
    group: int | None = None,
) -> Llama4:
    """The model in ``folder``: Hugging Face's layout, plain or packed Int4, or Meta's own.

    dtype None keeps the file's own; packed weights and their scales stay as they are.
    quantize: "int4" (or "w4a16") turns routed and shared experts into Int4 as they arrive,
    "int4-meta" with Meta's scales, "int4-blocks" attention and dense layers too, "int4-all" also
    the head; what a folder has in Int4 already stays as it is. group: weights that share a scale
    (those of the folder, or 128). Equal, bit for bit, to ``quantize_model`` after loading, but the
    whole is never there.

    Tensors come one by one and experts too: host memory holds less than 0.5 GB above the result.
    FileNotFoundError or CheckpointError before anything large is read.
    """
    _check_dtype(dtype)
    what = _scheme(quantize)
    with open_folder(Path(folder)) as stored:
        plain = stored.skeleton()
        stored.check(plain)
        model = plain
        if what is not None:
            model, group = _quantised(stored, plain, what, group)
        state = Arrival(stored, dtype, device, group, what and what[1]).receive(plain, model)
    model.load_state_dict(state, strict=False, assign=True)
    if stored.config.tied:
        model.head.weight = model.embed.weight
    return model


def _quantised(stored: Layout, plain: Llama4, what, group: int | None) -> tuple[Llama4, int]:
    """The model that is wanted, with shapes alone, and the size of its groups."""
    if packing := stored.packing:
        if what[1] == "meta" or group not in (None, packing.group):
            raise ValueError(
                f"{stored.folder} is packed with compressed-tensors' scales, in groups of "
                f"{packing.group}: other scales would need the original weights."
            )
        group = packing.group
    group = GROUP if group is None else group
    wanted = stored.skeleton()
    if unquantised(wanted, what[0]):
        wanted = quantize_model(wanted, what[0], group, what[1])
    return wanted, group


def open_folder(folder: Path) -> Layout:
    """Told apart by what is in the folder; headers are read, and nothing else."""
    if folder.is_file():
        raise CheckpointError(f"{folder} is a file: give the folder in which it lies.")
    hugging_face = any((folder / name).exists() for name in (INDEX, SINGLE))
    meta = bool(list(folder.glob("consolidated*.pth")))
    if hugging_face and meta:
        raise CheckpointError(
            f"{folder} holds two models, safetensors and consolidated.*.pth: move one elsewhere."
        )
    return Meta(folder) if meta else HuggingFace(folder)


@dataclass
class Arrival:
    """Brings every tensor of a folder to its place; convention None: as it is."""

    stored: Layout
    dtype: torch.dtype | None
    device: torch.device | str
    group: int
    convention: str | None
    warned: bool = False

    def receive(self, plain: Llama4, model: Llama4) -> dict[str, Tensor]:
        """plain: what is stored; model: what is wanted. The state that fills ``model``."""
        state, kept = {}, model.state_dict()
        units = list(self.stored.units(plain))
        total = sum(self._bytes(unit) for unit in units)
        name = self.stored.folder.name
        with tqdm(
            total=total, unit="B", unit_scale=True, desc=f"loading {name}", leave=False
        ) as bar:
            for unit in units:
                receive = self.keep if unit[0] in kept else self.quantise
                receive(*unit, state, bar.update)
        return state

    def keep(self, name, expert, shape, state: dict, report) -> None:
        """A tensor, or one expert of it, as it is."""
        if name not in state:
            like = shape if expert is None else (self._experts(), *shape)
            state[name] = self._empty(like, self._dtype(name, shape, expert))
        into = state[name] if expert is None else state[name][expert]
        self._fill(into, name, expert, shape, report)

    def quantise(self, name, expert, shape, state: dict, report) -> None:
        """The same, Int4 from its arrival on: (out, in), whichever way round it is stored."""
        out, into = shape if expert is None else shape[::-1]
        dtype = self._dtype(name, shape, expert)
        places = self._packed_places(name, expert, out, into, dtype, state)
        step = max(1, ROWS // into)
        if expert is not None:
            matrix = self._empty((out, into), dtype)
            self._fill(matrix.T, name, expert, shape, report)
        for first in range(0, out, step):
            last = min(first + step, out)
            if expert is None:
                rows = self._empty((last - first, into), dtype)
                self._fill(rows, name, None, shape, report, first)
            else:
                rows = matrix[first:last]
            self._round(name, rows, *(place[first:last] for place in places))

    def _round(self, name: str, rows: Tensor, packed: Tensor, scale: Tensor) -> None:
        if rows.is_meta:
            return
        try:
            packed[:], scale[:] = quantize(rows, self.group, self.convention)
        except ValueError as error:
            raise CheckpointError(f"{name}: {error}") from None

    def _packed_places(self, name, expert, out, into, dtype, state) -> tuple[Tensor, Tensor]:
        stem, sep = (name, "_") if EXPERTS.fullmatch(name) else (name.removesuffix("weight"), "")
        names = f"{stem}{sep}packed", f"{stem}{sep}scale"
        if names[0] not in state:
            many = () if expert is None else (self._experts(),)
            steps = torch.float32 if self.convention == "meta" else dtype
            state[names[0]] = self._empty((*many, out, into // PER_WORD), torch.int32)
            state[names[1]] = self._empty((*many, out, into // self.group), steps)
        packed, scale = (state[each] for each in names)
        return (packed, scale) if expert is None else (packed[expert], scale[expert])

    def _fill(self, into: Tensor, name, expert, shape, report: Callable, first: int = 0) -> None:
        """Copy what is stored of rows ``first`` and so on of our matrix into ``into``."""
        if into.is_meta:
            return
        for part in self.stored.parts(name, shape, expert):
            if piece := part.within(first, first + len(into)) if shape else part:
                piece.copy(self.stored.read, into, report)
        if into.numel() >= SUSPECT and into.shape == shape:
            self._warn_of_zeros(into, name, expert, part)

    def _warn_of_zeros(self, into: Tensor, name: str, expert: int | None, part: Part) -> None:
        """Once: a download that takes its room first and is cut off later has its full length."""
        few = into[tuple(slice(None, None, max(1, size // 16)) for size in into.shape)]
        if self.warned or few.any() or into.any():
            return
        self.warned = True
        what = name if expert is None else f"{name}, expert {expert},"
        file = self.stored.headers[part.shard, part.key].file
        warnings.warn(
            f"{what} holds nothing but zeros: was the download of {file} finished? Compare its "
            "checksum with the published one.",
            stacklevel=6,  # where load was called
        )

    def _dtype(self, name, shape, expert) -> torch.dtype:
        stored = self.stored.dtype(name, shape, expert)
        packed = name.endswith(("packed", "scale"))
        return stored if self.dtype is None or packed else self.dtype

    def _bytes(self, unit) -> int:
        name, expert, shape = unit
        size = self.stored.dtype(name, shape, expert).itemsize
        return sum(size * part.numbers() for part in self.stored.parts(name, shape, expert))

    def _experts(self) -> int:
        return self.stored.config.experts

    def _empty(self, shape, dtype: torch.dtype) -> Tensor:
        return torch.empty(shape, dtype=dtype, device=self.device)


def _check_dtype(dtype) -> None:
    if dtype is not None and not (isinstance(dtype, torch.dtype) and dtype.is_floating_point):
        raise TypeError(
            f"dtype must be a floating torch.dtype such as torch.bfloat16, not {dtype!r}."
        )


def _scheme(name: str | None) -> tuple[str, str] | None:
    if name is not None and name not in QUANTIZE:
        known = ", ".join(f'"{each}"' for each in QUANTIZE)
        raise ValueError(f"quantize = {name!r} is not known: use one of {known}, or None.")
    return None if name is None else QUANTIZE[name]

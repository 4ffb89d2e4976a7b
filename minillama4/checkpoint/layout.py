"""What a folder of weights is to the loader, whatever its layout: headers, and parts to copy.

A layout knows the config, the headers of its files, and for each of our tensors the parts of stored
ones that make it up (``parts``). Comparing, and everything that moves numbers, is the same for all.
"""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack
from pathlib import Path

import torch
from torch import Tensor

from ..config import Llama4Config
from ..model import Llama4
from .errors import CheckpointError, some
from .names import EXPERTS
from .packing import Packing
from .parts import Part, Stored, corner

Key = tuple[int, str]  # shard, and the name of a tensor in it
Unit = tuple[str, int | None, tuple[int, ...]]  # our name, which expert of it, the shape of that


class Layout(AbstractContextManager, ABC):
    """A folder whose headers have been read; a ``with`` keeps its files open."""

    config: Llama4Config
    headers: dict[Key, Stored]
    packing: Packing | None = None  # which of its Linears are in Int4
    ignored = re.compile(r"(?!)")  # names that may be there and are not needed: here, none

    def __init__(self, folder: Path):
        self.folder, self.open_files = folder, ExitStack()
        try:
            self.read_headers()
        except BaseException:
            self.open_files.close()
            raise

    def __exit__(self, *error) -> None:
        self.open_files.close()

    @abstractmethod
    def read_headers(self) -> None:
        """Set ``config`` and ``headers``; CheckpointError for a file that is no such thing."""

    @abstractmethod
    def parts(self, name: str, shape: tuple[int, ...], expert: int | None = None) -> list[Part]:
        """What makes up our tensor of this shape, or the matrix of one of its experts."""

    @abstractmethod
    def read(self, shard: int, key: str, take: tuple[slice, ...]) -> Tensor:
        """A piece of a stored tensor, mapped into memory and not copied."""

    def skeleton(self) -> Llama4:
        """The model that is stored, on the meta device: shapes without memory."""
        with torch.device("meta"):
            return Llama4(self.config)

    def units(self, model: Llama4) -> Iterator[Unit]:
        """Everything to be read, experts one by one; a tied head is stored once, as embedding."""
        for name, tensor in model.state_dict().items():
            shape = tuple(tensor.shape)
            if EXPERTS.fullmatch(name):
                yield from ((name, expert, shape[1:]) for expert in range(shape[0]))
            elif not (name == "head.weight" and self.config.tied):
                yield name, None, shape

    def wanted(self, model: Llama4) -> dict[Key, tuple[int, ...]]:
        """The shape of every stored tensor that the model needs."""
        parts: dict[Key, list[Part]] = {}
        for name, expert, shape in self.units(model):
            for part in self.parts(name, shape, expert):
                parts.setdefault((part.shard, part.key), []).append(part)
        return {key: corner(each) for key, each in parts.items()}

    def dtype(self, name: str, shape: tuple[int, ...], expert: int | None) -> torch.dtype:
        part = self.parts(name, shape, expert)[0]
        return self.headers[part.shard, part.key].dtype

    def check(self, model: Llama4) -> None:
        """CheckpointError unless the headers hold what the model needs, and nothing else."""
        found, wanted = self.headers, self.wanted(model)
        missing = [self.label(key) for key in wanted if key not in found]
        extra = [
            self.label(key)
            for key in found
            if key not in wanted and not self.ignored.search(key[1])
        ]
        shapes = [
            f"{self.label(key)} {list(found[key].shape)} in place of {list(shape)}"
            for key, shape in wanted.items()
            if key in found and found[key].shape != shape
        ]
        told = [("missing", missing), ("unexpected", extra), ("wrongly shaped", shapes)]
        told = [f"{len(names)} {kind}: {some(names)}" for kind, names in told if names]
        if told:
            told = ". ".join(told)
            raise CheckpointError(f"{self.folder} does not fit its {self.says}. {told}.")
        self.check_dtypes(wanted)

    says = "config.json"  # the file that says what should be there

    def check_dtypes(self, wanted: dict[Key, tuple[int, ...]]) -> None:
        for key in wanted:
            dtype = self.headers[key].dtype
            if not (
                isinstance(dtype, torch.dtype) and dtype.is_floating_point and dtype.itemsize > 1
            ):
                raise CheckpointError(
                    f"{self.label(key)} in {self.headers[key].file} is {dtype}: {self.odd_dtype}"
                )

    odd_dtype = "weights of this kind are not read."

    def label(self, key: Key) -> str:
        """A stored tensor's name for readers."""
        return key[1]

"""Files are written whole or not at all: beside their place first, then moved there."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def written_whole(file: str | Path) -> Iterator[Path]:
    """A path to write to, which takes the place of ``file`` once the ``with`` has ended well.

    A reader, or a crash, meets the old file or the new one and never a part. Missing folders are
    made.
    """
    file = Path(file)
    file.parent.mkdir(parents=True, exist_ok=True)
    part = file.with_name(f".{file.name}.{os.getpid()}.part")
    try:
        yield part
        os.replace(part, file)
    finally:
        part.unlink(missing_ok=True)


def write_json(file: str | Path, content) -> None:
    """``content`` as indented JSON; ValueError for nan and infinity, which JSON does not have."""
    text = json.dumps(content, indent=1, ensure_ascii=False, allow_nan=False) + "\n"
    with written_whole(file) as part:
        part.write_text(text, encoding="utf-8", newline="\n")

"""What is wrong with a folder of weights, told by the names of its tensors and files."""

from pathlib import Path


class CheckpointError(ValueError):
    """A folder of weights that is not what its config says; the message names each tensor."""


def unreadable(file: Path, otherwise: str) -> CheckpointError:
    """A file that holds no weights: told by its first bytes if a download left something else."""
    with file.open("rb") as opened:
        begin = opened.read(4096).removeprefix(b"\xef\xbb\xbf").lstrip().lower()
    if begin.startswith(b"version https://git-lfs"):
        what = "only git LFS's note of where its content is: run `git lfs pull` in the folder."
    elif begin.startswith((b"<!doctype", b"<html", b"<?xml")):
        what = "a web page, such as one that asks for a login or a licence: download it again."
    elif not file.stat().st_size:
        what = "empty: copy it again."
    else:
        what = otherwise
    return CheckpointError(f"{file} is {what}")


def cannot_map(file: Path, error: Exception) -> CheckpointError:
    """A sound file for which the system has no addresses: it counts them as if they were memory."""
    size, why = file.stat().st_size / 1e9, str(error).splitlines()[0]
    return CheckpointError(
        f"{file}, {size:.1f} GB, cannot be mapped ({why}). It need not fit into memory, but "
        "this system takes no promise of more than it has. On Linux `sysctl "
        "vm.overcommit_memory=1` allows it; so does more swap."
    )


def some(names: list[str], most: int = 8) -> str:
    """The names, the first few of them if they are many."""
    rest = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + rest

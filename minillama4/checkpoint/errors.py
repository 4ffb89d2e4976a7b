"""What is wrong with a folder of weights, told by the names of its tensors and files."""


class CheckpointError(ValueError):
    """A folder of weights that is not what its config says; the message names each tensor."""


def some(names: list[str], most: int = 8) -> str:
    """The names, the first few of them if they are many."""
    rest = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + rest

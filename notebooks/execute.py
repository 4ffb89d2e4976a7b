"""Run notebooks and save them with their outputs, the same bytes on every run on one machine.

python start.py notebooks              all of them
python start.py notebooks 01_moe       those whose path contains a given word
"""

import os
import re
import site
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import nbformat
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError, CellTimeoutError, DeadKernelError

FOLDER = Path(__file__).resolve().parent

# What notebooks see, here and in the tests (conftest.py): the outputs compared there are made here.
ENVIRONMENT = {
    "OMP_NUM_THREADS": "1",  # sums in one order; and tiny models run faster on one thread
    "MKL_NUM_THREADS": "1",
    "PYTHONHASHSEED": "0",
    "TOKENIZERS_PARALLELISM": "false",
    "TQDM_DISABLE": "1",  # progress bars hold timings
    "HF_HUB_OFFLINE": "1",
    "MPLBACKEND": "module://matplotlib_inline.backend_inline",  # pictures in cells, no windows
}

# Folders in which a file is on one machine and not on the next.
_MACHINE = "|".join(["home", "Users", "root", "tmp", "work", "mnt", "private", "var/folders"])
MACHINE_PATH = re.compile(rf"(?<![\w.:/-])/(?:{_MACHINE})/\w+|\b[A-Z]:\\+Users\\+\w+")
WIDGET = "application/vnd.jupyter.widget-view+json"
PROGRESS_BAR = re.compile(r"\[\d\d:\d\d[<,]")


class NotSaved(Exception):
    """The notebook ran, but must not be saved as it is."""


FAILURES = (CellExecutionError, CellTimeoutError, DeadKernelError, NotSaved)


def execute(path):
    """Run a notebook in a fresh kernel and save it; on any failure, leave the file as it was."""
    notebook = nbformat.read(path, as_version=4)
    client = NotebookClient(
        notebook,
        timeout=300,  # for one cell, as in the tests
        kernel_name="python3",
        resources={"metadata": {"path": str(path.parent)}},
        record_timing=False,
        coalesce_streams=True,
    )
    # Ours, even where the user has installed a kernel of the same name.
    environment = {**os.environ, **ENVIRONMENT, "JUPYTER_PREFER_ENV_PATH": "1"}
    # What the kernel itself says is for its log; what a cell writes to stderr arrives all the same.
    client.execute(env=environment, stderr=subprocess.DEVNULL)
    check(notebook)
    normalise(notebook)
    save(notebook, path)


def check(notebook):
    for state in notebook.metadata.get("widgets", {}).values():
        for widget in state.get("state", {}).values():
            # What fails inside `interact` or `Output` stops no cell; it is only kept here.
            for output in widget["state"].get("outputs", []):
                if output["output_type"] == "error":
                    raise NotSaved(f"in a widget: {output['ename']}: {output['evalue']}")
    for path in machine_paths(notebook):
        raise NotSaved(f"a path of this machine: {path}")


def machine_paths(notebook):
    """The paths of a machine that stand in a notebook's cells or outputs."""
    places = {str(FOLDER.parent), str(Path.home()), tempfile.gettempdir(), *site.getsitepackages()}
    for text in texts(notebook):
        yield from MACHINE_PATH.findall(text)
        yield from (place for place in places if len(place) > 1 and place + os.sep in text)


def texts(notebook):
    """Everything a reader can read: sources, printed text, and outputs that are text."""
    for cell in notebook.cells:
        yield cell.source
        for output in cell.get("outputs", []):
            yield output.get("text", "")
            yield "\n".join(output.get("traceback", []))
            data = output.get("data", {})
            yield from (str(data[kind]) for kind in data if not kind.startswith("image/p"))


def normalise(notebook):
    """Drop what changes from run to run or from machine to machine and says nothing."""
    notebook.metadata = nbformat.from_dict(
        {
            "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
            "language_info": {"name": "python"},
        }
    )
    for cell in notebook.cells:
        cell.metadata.pop("execution", None)
        if cell.cell_type == "code":
            cell.outputs = [kept for output in cell.outputs if (kept := without_view(output))]


def without_view(output):
    """An output without its live view, which refers to a kernel that is gone and shows as an error
    when the page is opened again. What stands beside it, a picture or a line, takes its place."""
    data = output.get("data", {})
    if data.pop(WIDGET, None) and "text/html" not in data:
        if PROGRESS_BAR.search(data["text/plain"]):  # TQDM_DISABLE empties it, but shows it still
            return None
        data["text/plain"] = "(interactive: run this cell)"
    return output


def save(notebook, path):
    """Whole or not at all."""
    nbformat.validate(notebook)
    draft = path.with_suffix(".draft")
    try:
        draft.write_text(nbformat.writes(notebook) + "\n", encoding="utf-8", newline="\n")
        draft.replace(path)
    finally:
        draft.unlink(missing_ok=True)


def find(words):
    """All notebooks in reading order, or those whose path contains one of the words."""
    books = [p for p in sorted(FOLDER.rglob("*.ipynb")) if ".ipynb_checkpoints" not in p.parts]
    names = {path: path.relative_to(FOLDER).as_posix() for path in books}
    for word in words:
        if not any(word in name for name in names.values()):
            sys.exit(f"No notebook's path contains {word!r}.")
    return [path for path in books if not words or any(word in names[path] for word in words)]


def main():
    failed = False
    for path in find(sys.argv[1:]):
        print(f"{path.relative_to(FOLDER).as_posix()} ... ", end="", flush=True)
        began = time.monotonic()
        try:
            execute(path)
            print(f"{time.monotonic() - began:.0f} s", flush=True)
        except FAILURES as error:
            failed = True
            print(f"NOT SAVED\n{error}", flush=True)
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())

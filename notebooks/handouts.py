"""Write the notebooks as hand-outs for a workshop: for students, the instructor, and nbgrader.

python start.py handouts                    all of them, into the folder handouts
python start.py handouts 02_ --out DIR      those whose path contains a word, into another folder

What is in a <details> of a notebook counts as an answer; the tags say which cells are solutions.
"""

import argparse
import base64
import copy
import hashlib
import json
import mimetypes
import re
import shutil
import sys
from contextlib import contextmanager
from pathlib import Path

import nbformat

from . import execute, graded, instructor, lesson
from .lesson import Unfit, head, tags

ROOT = execute.FOLDER.parent
RECORD = "written.json"  # in the folder: what was written, to see whether anyone has changed it

README = """\
# Hand-outs

- `student/`: the notebooks without solutions and answers, and without outputs, so that everyone
  can predict before they run. Unfinished exercises do not stop *Run All*.
- `instructor/`: the notebooks with solutions and answers open, each with a page beside it: times,
  usual mistakes, questions for the room and their answers.
- `nbgrader/`: sources for nbgrader; points are minutes. Run in that folder
  `nbgrader generate_assignment CHAPTER` (a folder of `source/`), hand out what is then in
  `release/`, and grade what came back in `submitted/` with `nbgrader autograde CHAPTER`.

All of them need minillama4 to be installed (`python start.py setup`), the kernel of nbgrader too.
"""


# Versions ----------------------------------------------------------------------------------------


def student(notebook):
    """Without solutions, answers and outputs; an exercise left undone does not stop Run All."""
    lesson.exercises(notebook)  # says what is wrong with their form
    notebook = copy.deepcopy(notebook)
    notebook.cells = [cell for cell in notebook.cells if "solution" not in tags(cell)]
    for cell in notebook.cells:
        if cell.cell_type == "markdown":
            cell.source = lesson.without_answers(cell.source)
            continue
        cell.outputs, cell.execution_count = [], None
        if {"exercise", "check"} & set(tags(cell)):
            cell.metadata["tags"] = [*tags(cell), "raises-exception"]
    return notebook


def opened(notebook):
    """With all solutions and answers unfolded."""
    notebook = copy.deepcopy(notebook)
    for cell in notebook.cells:
        if cell.cell_type == "markdown":
            cell.source = re.sub(r"<details(?: open)?>", "<details open>", cell.source)
        elif "solution" in tags(cell):
            cell.metadata.pop("jupyter", None)
    return notebook


LINK = re.compile(r"(!?)\[([^\]]*)\]\((?!https?:|mailto:|attachment:|#)([^)\s#]+)[^)]*\)")


def portable(notebook, folder, there):
    """Relative links must not point into nothing: pictures are taken along, notebooks that are
    handed out stay linked, and of every other file the place in the project is named.

    folder: of the original; there: the notebooks that are handed out.
    """
    for cell in notebook.cells:
        if cell.cell_type == "markdown":
            cell.source = LINK.sub(
                lambda match, cell=cell: _link(match, cell, folder, there), cell.source
            )
        elif re.search(r"""["']\.\.?/""", cell.source):
            raise Unfit(f"a file beside the notebook is read; use ml4.shipped: {head(cell)}")
    return notebook


def _link(match, cell, folder, there):
    picture, text, target = match.groups()
    path = (folder / target).resolve()
    if path in there:
        return match[0]
    if picture and not path.is_file():
        raise Unfit(f"there is no picture {target}")
    if picture:
        return f"![{text}](attachment:{_attached(cell, path)})"
    place = path.relative_to(ROOT).as_posix() if path.is_relative_to(ROOT) else path.name
    return f"{text} (`{place}`)"


def _attached(cell, path):
    kind, _ = mimetypes.guess_type(path.name)
    data = base64.b64encode(path.read_bytes()).decode()
    cell.setdefault("attachments", {})[path.name] = {kind: data}
    return path.name


def versions(path, there):
    """All files of one notebook: path inside the hand-outs -> text."""
    name = path.relative_to(execute.FOLDER).as_posix()
    notebook = nbformat.read(path, as_version=4)
    try:
        books = {
            f"student/{name}": student(notebook),
            f"instructor/{name}": opened(notebook),
            f"nbgrader/source/{name}": graded.form(notebook),
        }
        page = {f"instructor/{name[:-6]}.md": instructor.page(notebook, name)}
        for book in books.values():
            portable(book, path.parent, there)
            nbformat.validate(book)
    except Unfit as error:
        raise Unfit(f"notebooks/{name}: {error}") from None
    return {file: nbformat.writes(book) + "\n" for file, book in books.items()} | page


# Writing -----------------------------------------------------------------------------------------


def write(paths, out):
    """Write the hand-outs of some notebooks into a folder: whole, or not at all."""
    out = out.resolve()
    refuse_what_is_not_ours(out)
    texts = {"README.md": README, "nbgrader/nbgrader_config.py": graded.CONFIG}
    for path in paths:
        texts |= versions(path, set(paths))
    record = {name: digest(text.encode()) for name, text in texts.items()}
    with replaced(out) as draft:
        for name, text in {**texts, RECORD: json.dumps(record, indent=1)}.items():
            file = draft / name
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(text, encoding="utf-8", newline="\n")
    return out


def digest(data):
    return hashlib.sha256(data).hexdigest()


def refuse_what_is_not_ours(out):
    """An older hand-out is replaced; a folder in which there is anything else, never."""
    advice = "move it away, or name another folder with --out"
    if out.is_relative_to(execute.FOLDER):
        raise Refused(f"{out} lies among the notebooks themselves: name another folder with --out.")
    if not out.exists():
        return
    if not out.is_dir():
        raise Refused(f"{out} is a file: {advice}.")
    record = out / RECORD
    known = json.loads(record.read_text(encoding="utf-8")) if record.is_file() else {}
    for path in sorted(p for p in out.rglob("*") if p.is_file() and p != record):
        name = path.relative_to(out).as_posix()
        if known.get(name) != digest(path.read_bytes()):
            change = "was changed since" if name in known else "was not"
            raise Refused(f"{path} {change} written by this command; it stays. {out}: {advice}.")


@contextmanager
def replaced(folder):
    """A draft beside the folder, which takes its place when all went well."""
    draft, old = (folder.with_name(f".{folder.name}.{end}") for end in ("draft", "old"))
    for rest in (draft, old):  # of a run that was killed
        shutil.rmtree(rest, ignore_errors=True)
    draft.mkdir(parents=True)
    try:
        yield draft
        if folder.exists():
            folder.replace(old)
        draft.replace(folder)
    except BaseException:
        if old.exists() and not folder.exists():
            old.replace(folder)
        raise
    finally:
        shutil.rmtree(draft, ignore_errors=True)
        shutil.rmtree(old, ignore_errors=True)


class Refused(Exception):
    """The folder is not ours to write."""


def main():
    parser = argparse.ArgumentParser(prog="python start.py handouts", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("words", nargs="*", help="only notebooks whose path contains one of them")
    parser.add_argument("--out", type=Path, default=ROOT / "handouts", help="default: handouts")
    args = parser.parse_args()
    paths = execute.find(args.words)
    try:
        out = write(paths, args.out)
    except (Unfit, Refused, OSError) as error:
        sys.exit(f"Nothing written.\n{error}")
    books = "1 notebook" if len(paths) == 1 else f"{len(paths)} notebooks"
    print(f"{books}, for students, instructor and nbgrader, in {out}")


if __name__ == "__main__":
    main()

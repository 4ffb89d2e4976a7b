"""What a notebook of the series consists of: sections, exercises, and folded answers.

Read from the tags (`exercise`, `check`, `solution`) and from how the text is written: an exercise
begins with "**Exercise 2** (10 minutes).", and what stands in <details> is an answer.
"""

import ast
import importlib
import re
from dataclasses import dataclass, field

EXERCISE = re.compile(r"\*\*Exercise (\d+)\*\* \(([^)]*)\)")
MINUTES = re.compile(r"(\d+) minutes?\b")
ANSWER = re.compile(
    r"[ \t]*<details[^>]*>\s*<summary>(.*?)</summary>(.*?)</details>[ \t]*\n?", re.S
)
BORDER = re.compile(r"(?=^##? |\*\*Exercise \d+\*\* \()", re.M)  # of an exercise's text


class Unfit(Exception):
    """A notebook that is not in the form of the series: where, and what to do."""


@dataclass
class Part:
    """A stub to fill, with its check and its solution; all of them cells."""

    stub: dict
    check: dict | None = None
    solution: dict | None = None


@dataclass
class Exercise:
    number: int
    minutes: int
    task: str  # its text, without the answer
    answers: list[str]  # what was folded in its text
    parts: list[Part] = field(default_factory=list)


def tags(cell):
    return cell.metadata.get("tags", [])


def head(cell):
    """A cell's first line, by which a message names it."""
    return (cell.source.splitlines() or ["(an empty cell)"])[0]


def title(notebook):
    return head(notebook.cells[0]).lstrip("# ")


def without_answers(text):
    """A text without what is folded in it; a question that folded its own answer stays."""

    def question(match):
        summary = match[1].strip()
        return f"**{summary}**\n\n" if summary.endswith("?") else ""

    text = ANSWER.sub(question, text)
    if re.search(r"</?details|</?summary", text):
        raise Unfit(f"a <details> is not closed, or one stands in another: {text[:60]!r}")
    return re.sub(r"\n{3,}", "\n\n", text).rstrip()


def exercises(notebook):
    """All exercises in reading order."""
    found = []
    for cell in notebook.cells:
        if cell.cell_type == "markdown":
            found += filter(None, map(_exercise, BORDER.split(cell.source)))
        elif {"exercise", "check", "solution"} & set(tags(cell)):
            _add(cell, found)
    numbers = [exercise.number for exercise in found]
    if numbers != list(range(1, len(found) + 1)):
        raise Unfit(f"exercises are numbered {numbers}; give each the next number, from 1")
    for part in (part for exercise in found for part in exercise.parts):
        if part.check is None or part.solution is None:
            raise Unfit(f"this exercise lacks its check or its solution: {head(part.stub)}")
    return found


def _exercise(text):
    match = EXERCISE.match(text)
    if not match:
        return None
    minutes = MINUTES.search(match[2])
    if not minutes:
        raise Unfit(f'{match[0]} states no time; write for instance "(10 minutes)"')
    answers = [answer[2].strip() for answer in ANSWER.finditer(text)]
    task = ANSWER.sub("", text[match.end() :]).strip(" .\n")
    return Exercise(int(match[1]), int(minutes[1]), task + ".", answers)


def _add(cell, found):
    """Put a tagged cell where it belongs: into the exercise announced last."""
    if not found:
        raise Unfit(f'no "**Exercise 1** (… minutes)" stands above this cell: {head(cell)}')
    parts = found[-1].parts
    if "exercise" in tags(cell):
        parts.append(Part(cell))
        return
    (kind,) = {"check", "solution"} & set(tags(cell))
    if not parts or getattr(parts[-1], kind) is not None:
        raise Unfit(f"no stub of its own stands above this {kind}: {head(cell)}")
    setattr(parts[-1], kind, cell)


def discussion(notebook):
    """Questions with their answers, wherever they are folded, save those of exercises."""
    for cell in notebook.cells:
        for text in BORDER.split(cell.source) if cell.cell_type == "markdown" else []:
            if not EXERCISE.match(text):
                yield from ((m[1].strip(), m[2].strip()) for m in ANSWER.finditer(text))


# Checks ------------------------------------------------------------------------------------------


def syntax(cell):
    """The cell's tree; an empty one for cells that are no Python, such as `%timeit`."""
    try:
        return ast.parse(cell.source)
    except SyntaxError:
        return ast.Module([], [])


def checks(notebook, cell):
    """The checks that a check cell names, by the names it uses: `Check`s and their like."""
    modules = _modules(notebook)
    found = {}
    for node in ast.walk(syntax(cell)):
        if isinstance(node, ast.Name | ast.Attribute):
            name = ast.unparse(node)
            value = _value(name.split("."), modules)
            if callable(value) and hasattr(value, "praise"):
                found[name] = value
    if not found:
        raise Unfit(f"no check of minillama4.explore.exercises is named in: {head(cell)}")
    return found


def _modules(notebook):
    """What the notebook imports from the exercises' modules: name -> (module, its name there)."""
    names = {}
    for cell in notebook.cells:
        for node in ast.walk(syntax(cell)) if cell.cell_type == "code" else []:
            if isinstance(node, ast.ImportFrom) and "exercises" in (node.module or ""):
                names |= {a.asname or a.name: (node.module, a.name) for a in node.names}
    return names


def _value(path, modules):
    if path[0] not in modules:
        return None
    package, name = modules[path[0]]
    value = importlib.import_module(package)
    for step in [name, *path[1:]]:
        if not hasattr(value, step):
            try:
                importlib.import_module(f"{package}.{step}")
            except ModuleNotFoundError:
                return None
        value = getattr(value, step)
    return value

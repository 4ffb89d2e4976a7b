"""A notebook in nbgrader's form: https://nbgrader.readthedocs.io describes the metadata.

Each stub takes its solution in, between nbgrader's markers; each check becomes a locked test that
asserts its verdict, with further random inputs that students do not see; each open exercise gets
a cell to write into, marked by hand. Points are minutes.
"""

import ast
import copy
import re
import textwrap

import nbformat
from nbformat.v4 import new_markdown_cell

from . import lesson
from .lesson import Unfit, head, tags

BEGIN, END = "### BEGIN SOLUTION", "### END SOLUTION"
VERDICT = """\
from contextlib import redirect_stderr
from io import StringIO

with redirect_stderr(StringIO()):  # nbgrader gives no points to a test that writes there
    verdict = {call}
assert verdict.right, verdict
"""
FURTHER = """\
### BEGIN HIDDEN TESTS
from dataclasses import replace

assert replace({check}, trials={trials})({answer}).right, "it fails on further inputs"
### END HIDDEN TESTS"""

CONFIG = """\
c = get_config()  # noqa: F821 - nbgrader's, which reads this file

c.CourseDirectory.course_id = "minillama4"
c.Execute.timeout = 300  # seconds for one cell
"""


def form(notebook):
    """The source version for `nbgrader generate_assignment`: answers in, between markers."""
    notebook = copy.deepcopy(notebook)
    every = lesson.exercises(notebook)
    for exercise in every:
        for letter, part in zip("abcdefgh", exercise.parts, strict=False):
            name = f"{exercise.number}{letter if len(exercise.parts) > 1 else ''}"
            points = max(1, round(exercise.minutes / len(exercise.parts)))
            mark(part.stub, f"exercise-{name}", solution=True)
            mark(part.check, f"check-{name}", grade=True, locked=True, points=points)
            part.stub.source = merged(part.stub.source, part.solution.source)
            part.check.source = test(notebook, part.check)
    opens = {exercise.number: exercise for exercise in every if not exercise.parts}
    cells = []
    for cell in notebook.cells:
        if "solution" in tags(cell):
            continue
        if cell.cell_type == "markdown":
            cells += with_answer_cells(cell, opens)
            continue
        if "setup" in tags(cell):
            mark(cell, f"setup-{cell.id}", locked=True)
        cell.outputs, cell.execution_count = [], None
        cells.append(cell)
    notebook.cells = cells
    nbformat.validate(notebook)
    return notebook


def mark(cell, grade_id, *, grade=False, solution=False, locked=False, points=None):
    cell.metadata["nbgrader"] = {
        "schema_version": 3,
        "grade_id": grade_id,
        "grade": grade,
        "solution": solution,
        "locked": locked,
        "task": False,
        **({"points": points} if grade else {}),
    }


def with_answer_cells(cell, opens):
    """A text without answers; below an open exercise, a cell to write one into."""
    texts = lesson.BORDER.split(cell.source)
    pile, cells = [], []
    for text in texts:
        pile.append(lesson.without_answers(text))
        match = lesson.EXERCISE.match(text)
        if match and int(match[1]) in opens:
            exercise = opens[int(match[1])]
            answer = "\n\n".join(exercise.answers) or "Marked by what was tried and found."
            cells += [_text(cell, pile, len(cells)), _written(cell, exercise, answer)]
            pile = []
    return [*cells, _text(cell, pile, len(cells))] if any(pile) else cells


def _text(cell, pile, place):
    new = copy.deepcopy(cell)
    new.source = "\n\n".join(text.strip() for text in pile if text.strip())
    new.id = f"{cell.id}-{place}" if place else cell.id
    return new


def _written(cell, exercise, answer):
    source = f"{BEGIN}\n{answer}\n{END}"
    new = new_markdown_cell(source, id=f"{cell.id}-answer-{exercise.number}")
    name = f"exercise-{exercise.number}"
    mark(new, name, grade=True, solution=True, points=exercise.minutes)
    return new


# Stub and solution in one ------------------------------------------------------------------------


def merged(stub, solution):
    """The stub, where each line that raises has given way to the solution's body."""
    answers = _functions(ast.parse(solution).body)
    stubs = _functions(ast.parse(stub).body)
    lines = stub.splitlines()
    todo = [(name, node, line) for name, node in stubs.items() if (line := _raises(node))]
    if not todo:
        raise Unfit(f"no function of this stub raises NotImplementedError: {stub[:60]!r}")
    extra = _extra(solution, stub)
    for name, node, line in reversed(todo):  # from below, so that line numbers hold
        if name not in answers:
            raise Unfit(f"the stub asks for {name}, its solution has none")
        if line.lineno == node.lineno:
            raise Unfit(f"put the `raise` of {name} on a line of its own")
        helpers = extra if name == todo[0][0] else ""
        body = helpers + _body(solution, answers[name], node.body[: node.body.index(line)])
        hint = re.search(r"#.*", lines[line.end_lineno - 1])
        region = [*([hint[0]] if hint else []), BEGIN, *body.splitlines(), END]
        indent = " " * line.col_offset
        lines[line.lineno - 1 : line.end_lineno] = [indent + new if new else "" for new in region]
    source = "\n".join(lines)
    ast.parse(source)
    return source


def _functions(nodes, prefix=""):
    """Functions by name, methods as Class.method."""
    found = {}
    for node in nodes:
        if isinstance(node, ast.FunctionDef):
            found[prefix + node.name] = node
        elif isinstance(node, ast.ClassDef):
            found |= _functions(node.body, f"{prefix}{node.name}.")
    return found


def _raises(function):
    for node in function.body:
        if isinstance(node, ast.Raise) and "NotImplementedError" in ast.unparse(node):
            return node
    return None


def _body(source, function, given):
    """A function's body to the letter, comments too, without what the stub had given of it."""
    rest = list(function.body)
    for known in given:
        if rest and ast.unparse(rest[0]) == ast.unparse(known):
            rest = rest[1:]
    if not rest:
        raise Unfit(f"the solution adds nothing to the stub of {function.name}")
    lines = source.splitlines()
    first = rest[0].lineno - 1
    while first > function.lineno and lines[first - 1].strip().startswith("#"):
        first -= 1
    return textwrap.dedent("\n".join(lines[first : function.end_lineno]))


def _extra(solution, stub):
    """What a solution defines beside the stub's names: imports, constants, helpers."""
    known = {getattr(node, "name", None) or ast.unparse(node) for node in ast.parse(stub).body}
    lines, pieces = solution.splitlines(), []
    for node in ast.parse(solution).body:
        if (getattr(node, "name", None) or ast.unparse(node)) not in known:
            first = min([node.lineno, *(d.lineno for d in getattr(node, "decorator_list", []))])
            pieces += [*lines[first - 1 : node.end_lineno], ""]
    return "\n".join(pieces) + ("\n" if pieces else "")


# Tests -------------------------------------------------------------------------------------------


def test(notebook, cell):
    """The check's cell as a test: it asserts the verdict, on further inputs too."""
    tree = ast.parse(cell.source)
    last = tree.body[-1] if tree.body else None
    if not (isinstance(last, ast.Expr) and isinstance(last.value, ast.Call)):
        raise Unfit(f"a check cell ends with the check's call; this does not: {head(cell)}")
    before = cell.source.splitlines()[: last.lineno - 1]
    source = "\n".join([*before, VERDICT.format(call=ast.unparse(last))])
    name = ast.unparse(last.value.func)
    trials = further(lesson.checks(notebook, cell).get(name))
    if not trials:
        return source.rstrip()
    answer = ", ".join(map(ast.unparse, last.value.args))
    return source + FURTHER.format(check=name, trials=trials, answer=answer)


def further(check):
    """How many inputs to grade on: up to five times as many as the reader sees; 0 for no more."""
    shown = getattr(check, "trials", 1)
    if shown == 1:  # one number is asked for, or the check draws no inputs
        return 0
    trials = shown
    for seed in range(shown, 5 * shown):
        try:
            check.inputs(seed)
        except Exception:  # some checks have a list of inputs, and it has an end
            break
        trials += 1
    return trials if trials > shown else 0

"""Notebooks as they are saved, and proof that what runs them catches what it should.

`pytest --nbval-lax notebooks` runs them and compares the outputs of cells tagged
`nbval-check-output`; here only the exercises run, each in the cells tagged `setup` before it.
Tags: `setup`, `lib:<dotted name>`, `exercise` (stub), `check`, `solution`, in this order.
"""

import ast
import importlib
import inspect
import os
import re
import subprocess
import sys
import textwrap
from pathlib import Path

import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output

from notebooks import execute

ROOT = Path(__file__).parents[1]
BOOKS = {path.relative_to(execute.FOLDER).as_posix(): path for path in execute.find([])}
every_notebook = pytest.mark.parametrize("name", BOOKS)


def read(name):
    return nbformat.read(BOOKS[name], as_version=4)


def tags(cell):
    return cell.metadata.get("tags", [])


def code_cells(notebook):
    return [cell for cell in notebook.cells if cell.cell_type == "code" and cell.source.strip()]


def head(cell):
    """A cell's first line, by which a message names it."""
    return cell.source.splitlines()[0]


def test_there_is_a_first_notebook():
    assert "01_moe/01_start_here.ipynb" in BOOKS


# As saved ----------------------------------------------------------------------------------------


@every_notebook
def test_is_saved_as_run_by_execute(name):
    notebook = read(name)
    counts = [cell.execution_count for cell in code_cells(notebook)]
    assert counts == list(range(1, len(counts) + 1)), "run `python start.py notebooks`"
    assert notebook.metadata.kernelspec.name == "python3"
    assert "widgets" not in notebook.metadata
    assert not list(execute.machine_paths(notebook))


@every_notebook
def test_shows_no_errors_or_warnings(name):
    for cell in code_cells(read(name)):
        if "raises-exception" in tags(cell):
            continue
        for output in cell.outputs:
            assert output.output_type != "error", head(cell)
            assert output.get("name") != "stderr", f"{head(cell)}: {output.text}"


@every_notebook
def test_has_the_form_of_the_series(name):
    cells = read(name).cells
    assert re.search(r"\bminutes?\b", cells[0].source), "the first cell states the time it takes"
    words = sum(len(cell.source.split()) for cell in cells if cell.cell_type == "markdown")
    assert words <= 1550
    long = {head(cell): len(cell.source.splitlines()) for cell in code_cells(read(name))}
    assert not {line: n for line, n in long.items() if n > 25}


def untold_figures(notebook):
    """First lines of cells that show a picture which no text before the next code explains."""
    figure, untold = None, []
    for cell in [*notebook.cells, new_code_cell()]:
        if cell.cell_type == "code":
            untold += [figure] if figure else []
            kinds = {kind for output in cell.outputs for kind in output.get("data", {})}
            figure = head(cell) if kinds & {"image/png", "image/svg+xml"} else None
        elif "What to see" in cell.source:
            figure = None
    return untold


@every_notebook
def test_says_under_each_figure_what_to_see(name):
    assert not untold_figures(read(name))


# In step with the library ------------------------------------------------------------------------


def bare(source):
    """A syntax tree without docstrings; comments are not in it anyway."""
    tree = ast.parse(textwrap.dedent(source))
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef) and node.body:
            first = node.body[0]
            text = isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant)
            if text and isinstance(first.value.value, str):
                node.body = node.body[1:] or [ast.Pass()]
    return tree


def definition(source, name):
    """The one definition of a name in some source, as normalised text."""
    found = [node for node in bare(source).body if getattr(node, "name", None) == name]
    assert len(found) == 1, f"{name} is defined {len(found)} times here"
    return ast.unparse(found[0])


def library_cells():
    for book in BOOKS:
        for cell in code_cells(read(book)):
            for tag in tags(cell):
                if tag.startswith("lib:"):
                    yield pytest.param(cell.source, tag[4:], id=f"{book}:{tag}")


@pytest.mark.parametrize("source, dotted", list(library_cells()))
def test_cell_equals_the_library(source, dotted):
    module, _, name = dotted.rpartition(".")
    library = inspect.getsource(getattr(importlib.import_module(module), name))
    assert definition(source, name) == definition(library, name)


# Exercises ---------------------------------------------------------------------------------------


def run(source, names):
    """Run a cell; return the value of its last line, as a notebook would show it."""
    tree = ast.parse(source)
    last = tree.body.pop() if tree.body and isinstance(tree.body[-1], ast.Expr) else None
    exec(compile(tree, "<cell>", "exec"), names)
    return last and eval(compile(ast.Expression(last.value), "<cell>", "eval"), names)


def exercises(notebook):
    """Each solution with its stub, its check, and the set-up cells above it."""
    setup, stub, check = [], None, None
    for cell in code_cells(notebook):
        if "setup" in tags(cell):
            setup.append(cell)
        elif "exercise" in tags(cell):
            stub, check = cell, None
        elif "check" in tags(cell):
            check = cell
        elif "solution" in tags(cell):
            assert stub and check, f"no exercise and check above the solution: {head(cell)}"
            yield list(setup), stub, check, cell


def fault(setup, stub, check, solution):
    """What is wrong with an exercise, in words; nothing, if all is well."""
    verdicts = []
    for answer in (stub, solution):
        names = {"__name__": "__main__"}
        for cell in [*setup, answer]:
            run(cell.source, names)
        verdicts.append(run(check.source, names))
    if not all(hasattr(verdict, "right") for verdict in verdicts):
        return "the last line of the check cell is not a verdict"
    if verdicts[0].right:
        return "the check accepts the unfinished stub"
    if not verdicts[1].right:
        return f"the check refuses the solution: {verdicts[1]}"
    return None


def all_exercises():
    for book in BOOKS:
        for number, exercise in enumerate(exercises(read(book)), start=1):
            yield pytest.param(BOOKS[book].parent, exercise, id=f"{book}:{number}")


@pytest.mark.parametrize("folder, exercise", list(all_exercises()))
def test_solution_passes_its_check_and_the_stub_does_not(folder, exercise, monkeypatch):
    monkeypatch.chdir(folder)  # where a notebook's kernel starts
    assert fault(*exercise) is None
    solution = exercise[-1]
    assert head(solution).startswith("#"), "folded, a cell shows only its first line"
    assert solution.metadata.get("jupyter", {}).get("source_hidden"), "a solution is folded"


# Are mistakes caught? ----------------------------------------------------------------------------


def code(source, *tag, **kwargs):
    return new_code_cell(textwrap.dedent(source), metadata={"tags": list(tag)}, **kwargs)


def test_a_wrong_solution_is_caught():
    setup = code("from types import SimpleNamespace")
    stub = code("def double(x):\n    pass", "exercise")
    check = code("SimpleNamespace(right=double(3) == 6)", "check")
    right = code("# Solution\ndef double(x):\n    return 2 * x", "solution")
    wrong = code("# Solution\ndef double(x):\n    return x * x", "solution")
    lenient = code("SimpleNamespace(right=True)", "check")
    silent = code("double(3)", "check")
    assert fault([setup], stub, check, right) is None
    assert "refuses the solution" in fault([setup], stub, check, wrong)
    assert "accepts the unfinished stub" in fault([setup], stub, lenient, right)
    assert "not a verdict" in fault([setup], stub, silent, right)


def test_a_cell_that_left_the_library_is_caught():
    library = 'def f(x):\n    """Twice."""\n    return 2 * x'
    assert definition("def f(x):\n    return 2 * x  # twice", "f") == definition(library, "f")
    assert definition("def f(x):\n    return 3 * x", "f") != definition(library, "f")


def test_a_figure_without_words_is_caught():
    picture = [new_output("display_data", {"image/png": ""})]
    words = new_markdown_cell("*What to see: a line.*")
    cells = [code("bare()", outputs=picture), code("explained()", outputs=picture), words]
    assert untold_figures(new_notebook(cells=cells)) == ["bare()"]


def test_nbval_catches_a_stale_number_an_exception_and_a_broken_widget(tmp_path):
    def printed(text):
        return [new_output("stream", name="stdout", text=text)]

    cells = [
        code("print(6 * 7)", "nbval-check-output", execution_count=1, outputs=printed("42\n")),
        code("print(6 * 7)", "nbval-check-output", execution_count=2, outputs=printed("41\n")),
        code("1 / 0", execution_count=3),
        code("from ipywidgets import interact\ninteract(lambda x: 1 / x, x=0)", execution_count=4),
        code("object()", "nbval-check-output", execution_count=5),
        code("import sys, torch\nassert torch.get_num_threads() == 1", execution_count=6),
        code(f"assert sys.executable == {sys.executable!r}", execution_count=7),
    ]
    address = {"text/plain": "<object at 0x7f0123456789>"}
    cells[4].outputs = [new_output("execute_result", address, execution_count=5)]
    nbformat.write(new_notebook(cells=cells), tmp_path / "tiny.ipynb")

    command = [sys.executable, "-m", "pytest", "-p", "conftest", "-p", "no:cacheprovider", "-q"]
    command += ["-rA", "--color=no", "--nbval-lax", "--rootdir", str(tmp_path), str(tmp_path)]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=100)
    verdicts = re.findall(r"^(PASSED|FAILED) .*::Cell (\d)", result.stdout, re.M)
    assert {int(cell) for word, cell in verdicts if word == "PASSED"} == {0, 4, 5, 6}
    assert {int(cell) for word, cell in verdicts if word == "FAILED"} == {1, 2, 3}


def test_execute_saves_stable_bytes_and_saves_nothing_that_fails(tmp_path):
    def saved(*sources):
        """What is in the file after a run of cells that were never run before."""
        path = tmp_path / "tiny.ipynb"
        cells = [new_code_cell(source, id=f"cell{i}") for i, source in enumerate(sources)]
        nbformat.write(new_notebook(cells=cells), path)
        before = path.read_bytes()
        try:
            execute.execute(path)
        except execute.FAILURES as error:
            assert path.read_bytes() == before
            assert os.listdir(tmp_path) == [path.name]
            return str(error)
        return path.read_bytes()

    good = (
        "import ipywidgets\nipywidgets.IntSlider()",
        "from tqdm.auto import tqdm\nfor word in tqdm({'a', 'b', 'c'}): print(word)",
        "import matplotlib.pyplot as plt\nplt.plot([1, 2])\nplt.show()",
    )
    first = saved(*good)
    notebook = nbformat.reads(first.decode(), as_version=4)
    assert [cell.execution_count for cell in notebook.cells] == [1, 2, 3]
    assert [len(cell.outputs) for cell in notebook.cells] == [1, 1, 1]
    assert notebook.cells[0].outputs[0].data == {"text/plain": "(interactive: run this cell)"}
    assert "image/png" in notebook.cells[2].outputs[0].data
    assert "widgets" not in notebook.metadata
    assert saved(*good) == first

    assert "ZeroDivisionError" in saved("1 / 0")
    assert "ZeroDivisionError" in saved(
        "from ipywidgets import interact\ninteract(lambda x: 1 / x, x=0)"
    )
    assert "a path of this machine" in saved("import os\nprint(os.path.expanduser('~/x'))")

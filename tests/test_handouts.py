"""Hand-outs: nothing of the answers reaches a student, all of them reach the instructor."""

import ast
import functools
import re
import sys
import textwrap

import nbformat
import pytest
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output

from notebooks import execute, graded, handouts, instructor, lesson
from notebooks.lesson import Unfit

BOOKS = {path.relative_to(execute.FOLDER).as_posix(): path for path in execute.find([])}
every_notebook = pytest.mark.parametrize("name", BOOKS)
REGION = re.compile(r"### BEGIN (\w+).*?### END \1(?: TESTS)?", re.S)


def read(name):
    return nbformat.read(BOOKS[name], as_version=4)


@functools.cache
def files(name):
    return handouts.versions(BOOKS[name], frozenset(BOOKS.values()))


def book(kind, name):
    return nbformat.reads(files(name)[f"{kind}/{name}"], as_version=4)


def sources(notebook):
    return "\n".join(cell.source for cell in notebook.cells)


def lines(text):
    return {line.strip() for line in text.splitlines() if len(line.strip()) > 12}


def secrets(notebook):
    """Lines of solutions and of folded answers that stand nowhere else in the notebook."""
    hidden = set().union(*(lines(c.source) for c in notebook.cells if "solution" in lesson.tags(c)))
    shown = "\n".join(c.source for c in notebook.cells if "solution" not in lesson.tags(c))
    for match in lesson.ANSWER.finditer(shown):
        hidden |= lines(match[2])
    return hidden - lines(lesson.ANSWER.sub("", shown))


# Every notebook of the series --------------------------------------------------------------------


@every_notebook
def test_no_answer_is_left_for_students(name):
    hidden = secrets(read(name))
    assert hidden, "a notebook without a single answer?"
    released = REGION.sub("", sources(book("nbgrader/source", name)))  # as nbgrader will do
    for text in (sources(book("student", name)), released):
        assert not hidden & lines(text)
        assert not [line for line in hidden if line in text]
        assert "<details" not in text and "Solution of exercise" not in text


@every_notebook
def test_student_version_is_otherwise_the_same(name):
    before, after = read(name), book("student", name)
    kept = [cell for cell in before.cells if "solution" not in lesson.tags(cell)]
    assert [cell.id for cell in after.cells] == [cell.id for cell in kept]
    for old, new in zip(kept, after.cells, strict=True):
        if new.cell_type == "code":
            assert new.source == old.source and not new.outputs and new.execution_count is None
            unfinished = bool({"exercise", "check"} & set(lesson.tags(new)))
            assert unfinished == ("raises-exception" in lesson.tags(new))
    questions = [question for question, _ in lesson.discussion(before) if question.endswith("?")]
    assert all(f"**{question}**" in sources(after) for question in questions)


@every_notebook
def test_instructor_has_everything_open(name):
    before, after = read(name), book("instructor", name)
    assert len(after.cells) == len(before.cells)
    assert not [cell for cell in after.cells if "source_hidden" in str(cell.metadata)]
    assert "<details>" not in sources(after)
    page = files(name)[f"instructor/{name.removesuffix('.ipynb')}.md"]
    for question, answer in lesson.discussion(before):
        assert question in page and answer in page
    for exercise in lesson.exercises(before):
        assert f"### Exercise {exercise.number} ({exercise.minutes} minutes)" in page
        assert all(answer in page for answer in exercise.answers)
        assert all(part.solution.source in page for part in exercise.parts)


def names_above(notebook, last):
    """What the set-up cells above a cell define."""
    names = {"__name__": "__main__"}
    for cell in notebook.cells[: notebook.cells.index(last)]:
        if "setup" in lesson.tags(cell):
            exec(cell.source, names)
    return names


def every_part():
    for name in BOOKS:
        notebook = read(name)
        for exercise in lesson.exercises(notebook):
            for part in exercise.parts:
                yield pytest.param(name, notebook, part, id=f"{name}:{exercise.number}")


@pytest.mark.parametrize("name, notebook, part", list(every_part()))
def test_exercise_in_its_versions(name, notebook, part, monkeypatch):
    monkeypatch.chdir(BOOKS[name].parent)
    names = names_above(notebook, part.check)
    check = eval(ast.unparse(ast.parse(part.check.source).body[-1].value.func), dict(names))
    page = files(name)[f"instructor/{name.removesuffix('.ipynb')}.md"]
    for message in [*getattr(check, "wrong", {}), *getattr(check, "properties", {}), check.praise]:
        assert message in page
    test = graded.test(notebook, part.check)
    exec(graded.merged(part.stub.source, part.solution.source), names)
    exec(test, names)  # the solution gets its points,
    exec(part.stub.source, names)
    with pytest.raises(AssertionError, match="Not yet"):  # and the stub none
        exec(test, names)


@every_notebook
def test_nbgraders_metadata(name):
    notebook = book("nbgrader/source", name)
    nbformat.validate(notebook)
    marked = [cell for cell in notebook.cells if "nbgrader" in cell.metadata]
    ids = [cell.metadata.nbgrader.grade_id for cell in marked]
    assert len(set(ids)) == len(ids)
    assert sum("setup" in lesson.tags(cell) for cell in marked) >= 1
    for cell in marked:
        data = cell.metadata.nbgrader
        assert data.schema_version == 3 and not data.task
        assert ("points" in data) == data.grade and data.get("points", 1) > 0
        assert data.locked != data.solution
        assert cell.source.count("### BEGIN SOLUTION") == data.solution
        assert cell.source.count("### END SOLUTION") == data.solution
        assert cell.cell_type == "code" or (data.solution and data.grade)
    points = sum(cell.metadata.nbgrader.get("points", 0) for cell in marked)
    assert points == sum(exercise.minutes for exercise in lesson.exercises(read(name)))
    unmarked = "".join(c.source for c in notebook.cells if "nbgrader" not in c.metadata)
    assert "### BEGIN" not in unmarked


# A small notebook, and what runs -----------------------------------------------------------------


def code(source, *tag, **kwargs):
    return new_code_cell(textwrap.dedent(source).strip(), metadata={"tags": list(tag)}, **kwargs)


CHECK = "start_here.without_shared(answer)"
STUB = "def answer():\n    raise NotImplementedError  # return a number"
SOLUTION = "# Solution of exercise 1\ndef answer():\n    # all but the shared\n    return 11132"
TEXT = """\
# A title

It takes 5 minutes. ![A grid](../../data/pictures/routing.png) See [the card](../../README.md).

**Exercise 1** (3 minutes). How many?
"""


def small(text=TEXT, stub=STUB, check=CHECK, solution=SOLUTION):
    setup = "from minillama4.explore.exercises import start_here"
    shown = [new_output("stream", name="stdout", text="seen")]
    return new_notebook(
        cells=[
            new_markdown_cell(text),
            code(setup, "setup"),
            code(stub, "exercise"),
            code(check, "check", outputs=shown, execution_count=3),
            code(solution, "solution"),
            new_markdown_cell("<details><summary>Why?</summary>\n\nSo.\n\n</details>\n\nEnd."),
        ]
    )


def run(notebook, folder):
    client = NotebookClient(notebook, timeout=100, resources={"metadata": {"path": str(folder)}})
    client.execute()


def test_run_all_passes_by_an_unfinished_exercise(tmp_path):
    book = small(stub="raise NotImplementedError  # a stub that stops at once")
    book.cells[1].source = "ready = True"  # no library: quick
    with pytest.raises(CellExecutionError):
        run(book, tmp_path)
    hand_out = handouts.student(book)
    run(hand_out, tmp_path)
    assert hand_out.cells[-1].source == "**Why?**\n\nEnd."


def test_a_list_of_questions_stays_a_list_without_its_answers():
    answer = "   <details><summary>Answer</summary>So.</details>"
    text = f"1. Why?\n{answer}\n2. How?\n{answer}\n\n**Next**: on."
    assert handouts.lesson.without_answers(text) == "1. Why?\n2. How?\n\n**Next**: on."


def test_a_real_hand_out_runs_by_itself(tmp_path):
    first = min(BOOKS)
    hand_out = book("student", first)
    run(hand_out, tmp_path)
    assert "still to do" in str([c.outputs for c in hand_out.cells if "check" in lesson.tags(c)])
    assert not list(tmp_path.iterdir())


def test_links_lead_somewhere():
    folder = execute.FOLDER / "01_moe"
    taken = handouts.portable(small(), folder, set()).cells[0]
    assert "![A grid](attachment:routing.png)" in taken.source
    assert taken.attachments["routing.png"]["image/png"]
    assert "See the card (`README.md`)." in taken.source
    there = {folder / "02_next.ipynb"}
    two = handouts.portable(small("[a](02_next.ipynb), [b](03_gone.ipynb)"), folder, there)
    assert two.cells[0].source == "[a](02_next.ipynb), b (`notebooks/01_moe/03_gone.ipynb`)"
    with pytest.raises(Unfit, match="no picture"):
        handouts.portable(small("![a](b.png)"), folder, there)
    reads = small(stub="open('../x')")
    with pytest.raises(Unfit, match="use ml4"):
        handouts.portable(reads, folder, there)


@pytest.mark.parametrize(
    "change, message",
    [
        (dict(text="**Exercise 1** (long). How?"), "states no time"),
        (dict(text="**Exercise 2** (3 minutes). How?"), "numbered"),
        (dict(text="No exercise"), "Exercise 1"),
        (dict(solution=""), "no function|has none"),
        (dict(check="print(1)"), "no check"),
        (dict(check="verdict = 1"), "ends with"),
        (dict(stub="def answer():\n    pass"), "raises NotImplementedError"),
        (dict(stub="def answer(): raise NotImplementedError"), "line of its own"),
        (dict(text=TEXT + "<details><summary>Open</summary>"), "not closed"),
    ],
)
def test_a_notebook_out_of_form_is_named(change, message):
    with pytest.raises(Unfit, match=message):
        notebook = small(**change)
        handouts.student(notebook)
        graded.form(notebook)


# Stub and solution in one ------------------------------------------------------------------------


def test_merged_keeps_the_stub_and_takes_the_body():
    assert graded.merged(STUB, SOLUTION).splitlines() == [
        "def answer():",
        "    # return a number",
        "    ### BEGIN SOLUTION",
        "    # all but the shared",
        "    return 11132",
        "    ### END SOLUTION",
    ]


def test_merged_takes_methods_helpers_and_what_was_given():
    stub = """\
class Twice:
    factor = 2

    def __init__(self, start):
        self.start = start
        raise NotImplementedError

    def forward(self, x):
        raise NotImplementedError("later")


def four(x):
    \"\"\"x times four.\"\"\"
    raise NotImplementedError
"""
    solution = """\
# Solution
import math

class Twice:
    def __init__(self, start):
        self.start = start
        self.end = math.inf

    def forward(self, x):
        return 2 * x

def four(x):
    return Twice(0).forward(2 * x)
"""
    source = graded.merged(stub, solution)
    assert source.count("self.start = start") == 1 and source.count("import math") == 1
    names = {}
    exec(source, names)
    assert names["Twice"](1).end > 0 and names["Twice"].factor == 2 and names["four"](3) == 12
    left = REGION.sub("raise NotImplementedError", source)
    assert "math" not in left and "forward(2" not in left
    ast.parse(left)


def test_the_graded_test_draws_further_inputs_where_there_are_some():
    book = small(check="start_here.routed_expert(answer)")
    test = graded.test(book, book.cells[3])
    assert "trials=25" in test and "### BEGIN HIDDEN TESTS" in test
    assert "HIDDEN" not in graded.test(small(), small().cells[3])  # one number is asked for


def test_questions_and_times_on_the_page():
    text = TEXT + "\n## Next\n\nIt is so. Is it? And why?\n\n**What to see:** a line\nrising."
    book = small(text)
    assert list(instructor.questions(book)) == ["*Next*: It is so. Is it? And why?"]
    assert list(instructor.seen(book)) == ["*Next*: a line rising."]
    page = instructor.page(book, "a/b.ipynb")
    assert "| 0:01 | 3 | *Exercise 1* |" in page and "**Why?**\n\nSo." in page
    book.cells[1].metadata["execution"] = {
        "iopub.status.busy": "2026-01-01T00:00:00.000000Z",
        "iopub.status.idle": "2026-01-01T00:02:00.000000Z",
    }
    assert "2 to read and run" in page
    assert "3 to read and run" in instructor.page(book, "a/b.ipynb")


# Whole or not at all -----------------------------------------------------------------------------


@pytest.fixture
def shelf(tmp_path, monkeypatch):
    """A folder for hand-outs, of a series with one small notebook in it."""
    books = tmp_path / "project" / "notebooks"
    (books / "01_a").mkdir(parents=True)
    nbformat.write(small(TEXT.replace("../../", "https://x/")), books / "01_a" / "01_b.ipynb")
    monkeypatch.setattr(execute, "FOLDER", books)
    monkeypatch.setattr(handouts, "ROOT", books.parent)
    return books.parent / "handouts"


def call(*args):
    sys.argv = ["handouts", *map(str, args)]
    handouts.main()


def contents(folder):
    return {p.relative_to(folder): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def test_the_command_writes_three_versions_and_replaces_its_own(shelf, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", [])
    call()
    assert "1 notebook, " in capsys.readouterr().out
    first = contents(shelf)
    assert {path.parts[0] for path in first if len(path.parts) > 1} == {
        "student",
        "instructor",
        "nbgrader",
    }
    call("b.ipynb", "--out", shelf)
    assert contents(shelf) == first
    with pytest.raises(SystemExit, match="No notebook's path contains 'nowhere'"):
        call("nowhere")
    assert contents(shelf) == first


@pytest.mark.parametrize("moment", ["writing", "moving"])
def test_an_interrupted_run_leaves_what_there_was(shelf, monkeypatch, moment):
    monkeypatch.setattr(sys, "argv", [])
    call()
    before = contents(shelf)
    path = type(shelf)
    name = {"writing": "write_text", "moving": "replace"}[moment]
    real, calls = getattr(path, name), []

    def interrupted(self, *args, **kwargs):
        calls.append(self)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return real(self, *args, **kwargs)

    monkeypatch.setattr(path, name, interrupted)
    with pytest.raises(KeyboardInterrupt):
        call()
    assert len(calls) >= 2 and contents(shelf) == before
    assert {p.name for p in shelf.parent.iterdir()} == {"notebooks", "handouts"}


def test_it_overwrites_nothing_that_is_not_its_own(shelf, monkeypatch):
    monkeypatch.setattr(sys, "argv", [])
    call()
    page = shelf / "instructor" / "01_a" / "01_b.md"
    page.write_text("my notes")
    with pytest.raises(SystemExit, match=r"01_b.md was changed since"):
        call()
    assert page.read_text() == "my notes"
    handed_in = shelf / "nbgrader" / "submitted"
    call("--out", shelf.with_name("other"))
    handed_in.mkdir()
    page.write_bytes((shelf.with_name("other") / "instructor" / "01_a" / "01_b.md").read_bytes())
    call()  # an empty folder is no loss
    (shelf / "gradebook.db").touch()
    with pytest.raises(SystemExit, match=r"gradebook.db was not written"):
        call()
    with pytest.raises(SystemExit, match="among the notebooks"):
        call("--out", execute.FOLDER / "x")
    with pytest.raises(SystemExit, match="is a file"):
        call("--out", page)


def test_a_broken_notebook_is_named_and_nothing_is_written(shelf, monkeypatch):
    monkeypatch.setattr(sys, "argv", [])
    bad = small(TEXT.replace("3 minutes", "soon").replace("../../", "https://x/"))
    nbformat.write(bad, execute.FOLDER / "01_a" / "02_c.ipynb")
    with pytest.raises(SystemExit, match=r"Nothing written.\nnotebooks/01_a/02_c.ipynb: .*no time"):
        call()
    assert {p.name for p in shelf.parent.iterdir()} == {"notebooks"}

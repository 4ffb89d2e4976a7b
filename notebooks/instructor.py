"""The instructor's page of a notebook: times, misconceptions, answers, what to ask and look for."""

import inspect
import re
from datetime import datetime

from . import lesson

WORDS, LINES = 150, 15  # read a minute: words of text, lines of code
SENTENCE = re.compile(r"(?<=[.!?:])\s+|\n\n|\n(?=\d+\. |- )")
SEEN = re.compile(r"\*\*What to see:?\*\*:?\s*(.*?)(?=\n\n|\Z)", re.S)
CLAIM = re.compile(r"\bClaims? ([A-Z]\d+)")

PAGE = """\
# {title}

*For the instructor. It holds the answers: do not hand it out. Made from `notebooks/{name}` by
`python start.py handouts`.*

## Time

{stated}

| starts at | minutes | what |
|---|--:|---|
{plan}

{sum}

## Exercises

{exercises}

## Questions for the room

{discussion}

## Questions in the text

Ask them before the cell below is run; the figure or the number answers them.

{questions}

## What they should have seen

{seen}
"""


def page(notebook, name):
    """The page as Markdown; name: the notebook's path inside notebooks/."""
    every = lesson.exercises(notebook)
    rows = plan(notebook, every)
    tasks = sum(exercise.minutes for exercise in every)
    reading = sum(minutes for minutes, _ in rows) - tasks
    parts = [section(notebook, exercise) for exercise in every]
    talk = [f"**{summary}**\n\n{answer}" for summary, answer in lesson.discussion(notebook)]
    return PAGE.format(
        title=lesson.title(notebook),
        name=name,
        stated=stated(notebook),
        plan="\n".join(timetable(rows)),
        sum=f"In all {reading + tasks} minutes: {reading} to read and run, {tasks} for exercises. "
        f"Reading is an estimate ({WORDS} words or {LINES} lines of code a minute, one minute more "
        "for each figure); talk in the room comes on top.",
        exercises="\n\n".join(parts) or "None.",
        discussion="\n\n".join(talk) or "None.",
        questions="\n".join(f"- {text}" for text in questions(notebook)) or "None.",
        seen="\n".join(f"- {text}" for text in seen(notebook)) or "None.",
    )


# Time --------------------------------------------------------------------------------------------


def stated(notebook):
    """What the notebook itself says of its time, and which claims it puts to the test."""
    lines = [
        line for line in notebook.cells[0].source.splitlines() if re.search(r"\bminutes?\b", line)
    ]
    text = "\n".join(cell.source for cell in notebook.cells if cell.cell_type == "markdown")
    claims = sorted(set(CLAIM.findall(text)), key=lambda claim: (claim[0], int(claim[1:])))
    told = f"\n\nClaims put to the test: {', '.join(claims)}." if claims else ""
    return (
        "The notebook says: "
        + " ".join(line.replace("**", "").lstrip("- ") for line in lines)
        + told
    )


def plan(notebook, every):
    """(minutes, what) for each section and each exercise, in reading order."""
    section, exercise = [0.0, lesson.title(notebook)], iter(every)
    rows = [section]
    for cell in notebook.cells:
        if cell.cell_type == "code":
            section[0] += time_of_code(cell)
            continue
        for text in lesson.BORDER.split(cell.source):
            if lesson.EXERCISE.match(text):
                task = next(exercise)
                rows.append([task.minutes, f"*Exercise {task.number}*"])
                continue
            if text.startswith("## "):
                section = [0.0, text.splitlines()[0].lstrip("# ")]
                rows.append(section)
            section[0] += len(lesson.without_answers(text).split()) / WORDS
    return [(round(minutes) or 1, what) for minutes, what in rows]


def time_of_code(cell):
    """Minutes to read a cell, to run it where that was measured, and to look at its figure."""
    if {"exercise", "check", "solution"} & set(lesson.tags(cell)):
        return 0
    kinds = {kind for output in cell.outputs for kind in output.get("data", {})}
    figure = bool(kinds & {"image/png", "image/svg+xml", "text/html"})
    return len(cell.source.splitlines()) / LINES + figure + measured(cell) / 60


def measured(cell):
    """Seconds that a cell ran, where the notebook was saved with its timing."""
    times = cell.metadata.get("execution", {})
    began, ended = times.get("iopub.status.busy"), times.get("iopub.status.idle")
    if not (began and ended):
        return 0
    began, ended = (datetime.fromisoformat(t.replace("Z", "+00:00")) for t in (began, ended))
    return (ended - began).total_seconds()


def timetable(rows):
    now = 0
    for minutes, what in rows:
        yield f"| {now // 60}:{now % 60:02} | {minutes} | {what.replace('|', '/')} |"
        now += minutes


# Exercises ---------------------------------------------------------------------------------------


def section(notebook, exercise):
    lines = [f"### Exercise {exercise.number} ({exercise.minutes} minutes)", exercise.task]
    for part in exercise.parts:
        code = part.solution.source
        lines += misconceptions(notebook, part.check)
        lines += [f"A solution:\n\n```python\n{code}\n```"]
    lines += [f"What an answer may hold:\n\n{answer}" for answer in exercise.answers]
    return "\n\n".join(lines)


def misconceptions(notebook, cell):
    """What the check of an exercise says to those who erred, asks besides, and praises."""
    for check in lesson.checks(notebook, cell).values():
        if getattr(check, "wrong", None):
            known = "\n".join(f"- {message}" for message in check.wrong)
            yield f"Mistakes that others have made, in the check's words:\n\n{known}"
        else:
            yield f"The check (`{check.name}`) has no table of mistakes. {inspect.getdoc(check)}"
        if getattr(check, "properties", None):
            yield "It asks besides:\n\n" + "\n".join(f"- {text}" for text in check.properties)
        yield f"To a right answer it says: {check.praise}"


# What to ask and what to look for ----------------------------------------------------------------


def prose(notebook):
    """(section, text), without answers, exercises, tables and code."""
    section = lesson.title(notebook)
    for cell in notebook.cells:
        for text in lesson.BORDER.split(cell.source) if cell.cell_type == "markdown" else []:
            if text.startswith("## "):
                section = text.splitlines()[0].lstrip("# ")
            if not lesson.EXERCISE.match(text):
                text = lesson.ANSWER.sub("", text)
                yield section, re.sub(r"```.*?```|^#+ .*?$|^\|.*?$", "", text, flags=re.S | re.M)


def questions(notebook):
    """Questions by section; one of a few words with the sentence that it leans on."""
    found, before = [], ""
    for section, text in prose(notebook):
        for sentence in SENTENCE.split(text):
            plain = " ".join(re.sub(r"^(\d+\.|-)\s+", "", sentence.strip()).split())
            if plain.endswith("?"):
                if len(plain.split()) <= 4 and before:
                    if before.endswith("?"):
                        found.pop()
                    plain = f"{before} {plain}"
                found.append(f"*{section}*: {plain}")
            before = plain
    return found


def seen(notebook):
    for section, text in prose(notebook):
        yield from (f"*{section}*: {' '.join(found.split())}" for found in SEEN.findall(text))

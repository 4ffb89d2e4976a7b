"""The explorer's script and style: the files in ``static``, each one idea, joined into one module.

A widget and a page can carry one ES module each, and neither may load another. So the files' import
lines go, their exports become plain names, and all of them share one scope.
"""

import re
from functools import cache
from pathlib import Path

STATIC = Path(__file__).parent / "static"
SHARED = ("reading", "page", "comparing", "steering", "tokens", "experts", "layers", "listening")
IMPORT = re.compile(r"^import \{[^}]*\} from \"\.\.?/[\w/]+\.js\";\n", re.MULTILINE)
EXPORT = re.compile(r"^export (?=(?:const|function) )", re.MULTILINE)


@cache
def widget_script() -> str:
    """An ES module whose default export is what anywidget asks for: { render }."""
    return _joined(*SHARED, "sides", "explorer")


@cache
def page_script() -> str:
    """The same without an export, and with ``standIn``: for a <script> in a page of its own."""
    return _joined(*SHARED, "sides", "stand_in", "explorer").replace(
        "export default", "const host ="
    )


@cache
def style() -> str:
    return (STATIC / "explorer.css").read_text("utf-8")


@cache
def small_script(*files: str) -> str:
    """The script of a view that needs no Python to answer: a widget's module, of ``files``."""
    return _joined("page", *files)


@cache
def small_page_script(*files: str) -> str:
    """The same for a page of its own. One of the files has a ``standIn``."""
    return small_script(*files).replace("export default", "const host =")


@cache
def small_style() -> str:
    sheets = ("explorer", "irope/irope", "planner/planner", "int4/int4")
    return "".join((STATIC / f"{name}.css").read_text("utf-8") for name in sheets)


def _joined(*names: str) -> str:
    files = ((STATIC / f"{name}.js").read_text("utf-8") for name in names)
    return "\n".join(EXPORT.sub("", IMPORT.sub("", file)) for file in files)

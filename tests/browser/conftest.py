"""JupyterLab with a notebook of explorers, a browser to open it in, and the page exported from it.

Screenshots are left in pytest's temporary folder, or in the one that EXPLORER_SHOTS names.
"""

import itertools
import os
import re
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import nbformat
import pytest

sync_api = pytest.importorskip("playwright.sync_api", reason="needs playwright: see start.py")
sync_api.expect.set_options(timeout=20_000)  # a machine may be busy with other things

ROOT = Path(__file__).resolve().parents[2]
FOLDERS = ["CONFIG_DIR", "RUNTIME_DIR", "DATA_DIR"]
TEXT = "def area(side):\n    return side * side"
SETUP = """
import torch, minillama4 as ml4
from minillama4.explore import routing_explorer, routing_view

def llama(config):
    torch.manual_seed(0)
    model = ml4.Llama4(config)
    for block in model.blocks:
        if hasattr(block.ffn, "router"):
            block.ffn.router.weight.data.mul_(8)
    return model

tokenizer = ml4.load_tokenizer()
scout = llama(ml4.Llama4Config.mini(moe_at=(0, 1, 2, 3, 5, 6, 7)))
maverick = llama(ml4.Llama4Config.mini(moe_every=2, experts=32))
models = {"mini Scout": scout, "mini Maverick": maverick}
samples = {"sums": "12 + 30 = 42", "prose": "The old house stood at the end of the road."}
"""
CELL = f"view = routing_explorer(models, tokenizer, {TEXT!r}, samples, layer=1)\nview"


def notebook(code=SETUP + CELL):
    kernel = {"kernelspec": {"name": "python3", "display_name": "Python 3"}}  # or Lab would ask
    cells = [nbformat.v4.new_code_cell(code)]
    return nbformat.v4.new_notebook(cells=cells, metadata=kernel)


@pytest.fixture(scope="session")
def browser():
    names = ["chromium", "chromium-browser", "google-chrome"]
    path = next(filter(None, map(shutil.which, names)), None)
    with sync_api.sync_playwright() as playwright:
        try:
            running = playwright.chromium.launch(executable_path=path, args=["--no-sandbox"])
        except sync_api.Error as error:
            pytest.skip(f"no Chromium that starts: {str(error).splitlines()[0]}")
        yield running
        running.close()


@pytest.fixture(scope="session")
def home(tmp_path_factory):
    """An empty place for JupyterLab."""
    return tmp_path_factory.mktemp("lab")


@pytest.fixture(scope="session")
def shots(home):
    folder = Path(os.environ.get("EXPLORER_SHOTS", home))
    folder.mkdir(exist_ok=True)
    return folder


@pytest.fixture(scope="session")
def lab(home):
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    options = {"ip": "127.0.0.1", "port": port, "port_retries": 0, "open_browser": False}
    options |= {"root_dir": home, "allow_root": True, "allow_remote_access": False}
    options = [f"--ServerApp.{name}={value}" for name, value in options.items()]
    env = {f"JUPYTER_{name}": str(home / name) for name in FOLDERS}
    env |= {"JUPYTERLAB_SETTINGS_DIR": str(home / "settings"), "PYTHONPATH": str(ROOT)}
    env |= {"JUPYTERLAB_WORKSPACES_DIR": str(home / "workspaces"), "JUPYTER_TOKEN": "reader"}
    command = [sys.executable, "-m", "jupyterlab", *options]
    with open(home / "lab.log", "w") as log:
        server = subprocess.Popen(command, env={**os.environ, **env}, stdout=log, stderr=log)
    url = f"http://127.0.0.1:{port}"
    try:
        wait_for(url + "/api?token=reader", server, home / "lab.log")
        yield url
    finally:
        server.terminate()
        server.wait(20)


def wait_for(url, server, log):
    for _ in range(240):
        assert server.poll() is None, log.read_text()
        try:
            return urllib.request.urlopen(url, timeout=5).read()
        except OSError:
            time.sleep(0.25)
    raise TimeoutError(log.read_text())


@pytest.fixture(scope="session")
def run_notebook(browser, lab, home):
    """Open the notebook in JupyterLab, run it, and return the page; errors gather in `errors`."""
    names = (f"view-{number}.ipynb" for number in itertools.count())

    def run(width=None, book=None):
        name = next(names)  # a new one: JupyterLab saves, and would show the last reader's view
        nbformat.write(book or notebook(), home / name)
        page = browser.new_page(viewport={"width": 1320, "height": 1000})
        page.set_default_timeout(60_000)
        page.errors = []
        page.on("pageerror", lambda error: page.errors.append(str(error)))
        page.goto(f"{lab}/lab/tree/{name}?token=reader&reset", wait_until="commit")
        page.locator(".jp-Notebook .cm-content").first.click(timeout=60_000)
        bar = page.locator(".jp-NotebookPanel-toolbar")
        sync_api.expect(bar).to_contain_text("Python 3", timeout=60_000)
        run_cell(page)
        if width is not None:  # now, because a narrow toolbar hides the kernel's name
            page.keyboard.press("Control+b")  # the file browser away
            page.set_viewport_size({"width": width, "height": 1000})
        page.locator(".ml4-routing").first.scroll_into_view_if_needed()
        return page

    return run


def run_cell(page):
    """Just after installing, the kernel is slow to come and a key pressed before it is lost."""
    for seconds in (30, 30, 30):
        page.locator(".jp-Notebook .cm-content").first.click()
        page.keyboard.press("Control+Enter")
        try:
            view = page.locator(".ml4-routing").first
            sync_api.expect(view).to_be_visible(timeout=1000 * seconds)
            return
        except AssertionError:
            continue
    raise AssertionError("The view did not appear, though its cell was run three times.")


@pytest.fixture(scope="session")
def live(run_notebook):
    page = run_notebook()
    yield page
    page.close()


@pytest.fixture(scope="session")
def dark_theme(home):
    """From here on, JupyterLab opens in the dark."""
    name = "@jupyterlab/apputils-extension/themes.jupyterlab-settings"
    file = home / "settings" / name
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text('{"theme": "JupyterLab Dark"}')


@pytest.fixture
def open_in(home, run_notebook, request):
    """Open the test module's CODE in JupyterLab, in a theme; the next file finds it as it was."""
    name = "@jupyterlab/apputils-extension/themes.jupyterlab-settings"
    file = home / "settings" / name
    before = file.read_text() if file.exists() else None

    def run(theme="Light", width=None):
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(f'{{"theme": "JupyterLab {theme}"}}')
        return run_notebook(width, notebook(request.module.CODE))

    yield run
    file.unlink() if before is None else file.write_text(before)


@pytest.fixture
def offline_page(browser):
    """Open a file of ``pages`` with no kernel and no network; a script's error fails the test."""
    context = browser.new_context(offline=True, viewport={"width": 1200, "height": 1100})
    page, errors = context.new_page(), []
    page.on("pageerror", lambda error: errors.append(str(error)))

    def run(file):
        page.goto(file.as_uri(), wait_until="domcontentloaded")
        return page

    yield run
    context.close()
    assert errors == []


def stays_within(page, view, parts):
    """Nothing of a view sticks out of it to the right; both are selectors."""
    frame = page.locator(view).bounding_box()
    for part in page.locator(f"{view} :is({parts})").all():
        box = part.bounding_box()
        assert box["x"] + box["width"] <= frame["x"] + frame["width"] + 1, box


def suits_theme(page, text, theme):
    """Writing is light in the dark theme, and dark in the light one."""
    colour = page.locator(text).evaluate("e => getComputedStyle(e).color")
    brightness = sum(map(float, re.findall(r"[\d.]+", colour)[:3]))
    assert (brightness > 380) == (theme == "Dark"), colour


@pytest.fixture(scope="session")
def exported(home):
    return exported_pages(notebook(), home, "exported")


def exported_pages(book, home, name):
    """What `jupyter nbconvert` makes of the executed and saved notebook, in light and dark."""
    from nbclient import NotebookClient
    from nbconvert import HTMLExporter

    NotebookClient(book, resources={"metadata": {"path": str(ROOT)}}).execute()
    book.metadata.pop("widgets", None)
    for output in book.cells[0].outputs:  # as notebooks/execute.py saves it
        output.get("data", {}).pop("application/vnd.jupyter.widget-view+json", None)
    pages = {}
    for theme in ("light", "dark"):
        pages[theme] = home / f"{name}-{theme}.html"
        text = HTMLExporter(theme=theme).from_notebook_node(book)[0]
        pages[theme].write_text(text, encoding="utf-8")
    return pages

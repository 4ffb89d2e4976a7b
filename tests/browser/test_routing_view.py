"""The routing view as a reader meets it: in JupyterLab with a kernel, and in a page without one.

Run by `python start.py browser`. Screenshots are left in pytest's temporary folder.
"""

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

pytestmark = [pytest.mark.browser, pytest.mark.timeout(300)]
sync_api = pytest.importorskip("playwright.sync_api", reason="needs playwright: see start.py")
expect = sync_api.expect

ROOT = Path(__file__).resolve().parents[2]
TEXT = "def area(side):\n    return side * side"
CELL = f"""
import torch, minillama4 as ml4
from minillama4.explore import routing_view

torch.manual_seed(0)
config = ml4.Llama4Config.mini(moe_at=(0, 1, 2, 3, 5, 6, 7))
model = ml4.Llama4(config)
for block in model.blocks:
    if hasattr(block.ffn, "router"):
        block.ffn.router.weight.data.mul_(8)
samples = {{"sums": "12 + 30 = 42", "prose": "The old house stood at the end of the road."}}
view = routing_view(model, ml4.load_tokenizer(), {TEXT!r}, layer=1, domains=samples)
"""
FOLDERS = ["CONFIG_DIR", "RUNTIME_DIR", "DATA_DIR"]


def notebook():
    kernel = {"kernelspec": {"name": "python3", "display_name": "Python 3"}}  # or Lab would ask
    cells = [nbformat.v4.new_code_cell(CELL + "view")]
    return nbformat.v4.new_notebook(cells=cells, metadata=kernel)


@pytest.fixture(scope="module")
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


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """An empty place for JupyterLab, with one notebook in it."""
    home = tmp_path_factory.mktemp("lab")
    nbformat.write(notebook(), home / "view.ipynb")
    return home


@pytest.fixture(scope="module")
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


def run_notebook(browser, lab):
    page = browser.new_page(viewport={"width": 1320, "height": 900})
    page.errors = []
    page.on("pageerror", lambda error: page.errors.append(str(error)))
    page.goto(f"{lab}/lab/tree/view.ipynb?token=reader&reset")
    page.locator(".jp-Notebook .cm-content").first.click(timeout=60_000)
    expect(page.locator(".jp-NotebookPanel-toolbar")).to_contain_text("Python 3", timeout=60_000)
    run_cell(page)
    page.locator(".ml4-routing").scroll_into_view_if_needed()
    return page


def run_cell(page):
    """Just after installing, the kernel is slow to come and a key pressed before it is lost."""
    for seconds in (30, 30, 30):
        page.locator(".jp-Notebook .cm-content").first.click()
        page.keyboard.press("Control+Enter")
        try:
            expect(page.locator(".ml4-token").first).to_be_visible(timeout=1000 * seconds)
            return
        except AssertionError:
            continue
    raise AssertionError("The view did not appear, though its cell was run three times.")


@pytest.fixture(scope="module")
def live(browser, lab):
    page = run_notebook(browser, lab)
    yield page
    page.close()


def pieces(page) -> list[str]:
    return page.locator(".ml4-token > span").all_inner_texts()


def numbers(page) -> list[str]:
    return page.locator(".ml4-token > sub").all_inner_texts()


def selected(page) -> int:
    chip = page.locator(".ml4-token[aria-selected=true]")
    return int(chip.get_attribute("data-token"))


def set_layer(page, layer):
    page.locator(".ml4-layer").focus()
    page.keyboard.press("Home")
    for _ in range(layer):
        page.keyboard.press("ArrowRight")
    expect(page.locator(".ml4-which")).to_have_text(re.compile(rf"^{layer}\b"))


def look_around(page, folder, name):
    """What works with a kernel and without: layers, clicks, hover, keys."""
    set_layer(page, 1)
    ones = numbers(page)
    assert all(number.isdigit() for number in ones)
    set_layer(page, 6)
    assert numbers(page) != ones
    page.screenshot(path=folder / f"{name}.png")

    page.locator(".ml4-token").nth(3).click()
    assert selected(page) == 3
    about = page.locator(".ml4-about")
    expect(about).to_contain_text(f"Layer 6 sends {pieces(page)[3]} to expert {numbers(page)[3]}")
    expect(page.locator(".ml4-row[data-expert]")).to_have_count(16)
    best = page.locator(".ml4-top .ml4-number")
    expect(best).to_have_text(numbers(page)[3])
    loads = page.locator(".ml4-load").all_inner_texts()
    assert sum(map(int, loads)) == len(pieces(page))

    page.locator(".ml4-token").nth(1).hover()
    expect(about).to_contain_text(f"sends {pieces(page)[1]} to")
    assert selected(page) == 3  # hovering looks, clicking takes
    page.mouse.move(5, 5)
    expect(about).to_contain_text(f"sends {pieces(page)[3]} to")

    page.keyboard.press("ArrowRight")
    page.keyboard.press("ArrowDown")
    assert selected(page) == 4
    expect(page.locator(".ml4-which")).to_have_text("7")
    page.keyboard.press("Home")
    assert selected(page) == 0
    expect(page.locator(".ml4-token[data-token='0']")).to_be_focused()

    strip = page.locator(".ml4-strip")
    line = page.locator(".ml4-names text").nth(2).bounding_box()
    cell = {"x": 22 * 2 + 8, "y": line["y"] + 6 - strip.bounding_box()["y"]}
    strip.click(position=cell)
    assert selected(page) == 2
    expect(page.locator(".ml4-which")).to_have_text("2")

    set_layer(page, 4)  # the dense one
    expect(about).to_have_text("Layer 4 is dense")
    assert set(numbers(page)) == {""}
    set_layer(page, 1)


# ------------------------------------------------------------------ with a kernel
def test_tokens_layers_mouse_and_keys(live, home):
    assert "".join(pieces(live)).startswith("⟨begin⟩def")
    look_around(live, home, "light")
    assert live.locator(".jp-Cell").count() == 1  # no key reached JupyterLab's shortcuts


def test_what_is_typed_is_read(live, home):
    live.locator(".ml4-token").last.click()  # the selection then follows the typing
    box = live.locator(".ml4-text")
    box.click()
    live.keyboard.press("Control+a")
    began = time.perf_counter()
    live.keyboard.type("b a m 12", delay=10)  # b, a and m are commands of JupyterLab's
    expect(live.locator(".ml4-token").last).to_contain_text("2")
    print(f"typed, read and drawn in {time.perf_counter() - began:.2f} s")
    assert "".join(pieces(live)) == "⟨begin⟩b·a·m·12"
    assert selected(live) == len(pieces(live)) - 1  # the newest token
    assert box.input_value() == "b a m 12"

    box.fill("word " * 600)
    expect(live.locator(".ml4-message")).to_contain_text("at most 400 fit here")
    assert "".join(pieces(live)) == "⟨begin⟩b·a·m·12"  # nothing lost
    live.screenshot(path=home / "refused.png")

    live.get_by_role("button", name="sums").click()
    expect(live.locator(".ml4-message")).to_be_empty()
    assert "".join(pieces(live)) == "⟨begin⟩12·+·30·=·42"
    assert box.input_value() == "12 + 30 = 42"


def test_code_can_turn_the_knobs_and_two_views_agree(live):
    live.locator(".jp-Notebook .jp-InputArea .cm-content").first.click()
    live.keyboard.press("Escape")
    live.keyboard.press("b")
    live.locator(".jp-Notebook .jp-InputArea .cm-content").nth(1).click()
    live.keyboard.type("view.layer, view.text = 5, 'once more'; view")
    live.keyboard.press("Control+Enter")
    expect(live.locator(".ml4-which")).to_have_text(["5", "5"])
    for text in live.locator(".ml4-text").all():
        expect(text).to_have_value("once more")


def test_dark_theme(browser, lab, home):
    name = "@jupyterlab/apputils-extension/themes.jupyterlab-settings"
    file = home / "settings" / name
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text('{"theme": "JupyterLab Dark"}')
    page = run_notebook(browser, lab)
    expect(page.locator("body")).to_have_attribute("data-jp-theme-light", "false")
    page.screenshot(path=home / "dark.png")
    colour = page.locator(".ml4-hint").evaluate("e => getComputedStyle(e).color")
    assert sum(map(float, re.findall(r"[\d.]+", colour)[:3])) > 1.2, colour  # light on dark
    assert page.errors == []
    page.close()


def test_no_error_was_thrown_meanwhile(live):
    assert live.errors == []


# ------------------------------------------------------------------ without one
@pytest.fixture(scope="module")
def exported(home):
    """The page that `jupyter nbconvert` makes of the executed and saved notebook."""
    from nbclient import NotebookClient
    from nbconvert import HTMLExporter

    book = notebook()
    NotebookClient(book, resources={"metadata": {"path": str(ROOT)}}).execute()
    book.metadata.pop("widgets", None)
    for output in book.cells[0].outputs:  # as notebooks/execute.py saves it
        output.get("data", {}).pop("application/vnd.jupyter.widget-view+json", None)
    page = home / "exported.html"
    page.write_text(HTMLExporter().from_notebook_node(book)[0], encoding="utf-8")
    return page


def test_an_exported_page_works_with_no_kernel_and_no_network(browser, exported, home):
    context = browser.new_context(offline=True, viewport={"width": 1100, "height": 1100})
    page = context.new_page()
    page.goto(exported.as_uri(), wait_until="domcontentloaded")
    expect(page.locator(".ml4-token").first).to_be_visible()
    look_around(page, home, "exported")
    page.get_by_role("button", name="prose").click()
    assert "".join(pieces(page)).startswith("⟨begin⟩The·old")
    assert page.locator(".ml4-text").get_attribute("readonly") is not None
    context.close()


def test_without_javascript_there_is_a_picture(browser, exported, home):
    context = browser.new_context(java_script_enabled=False, offline=True)
    page = context.new_page()
    page.goto(exported.as_uri(), wait_until="domcontentloaded")
    expect(page.get_by_text("Each token with its expert in layer 1")).to_be_visible()
    expect(page.get_by_role("row")).to_have_count(1 + 8)
    page.screenshot(path=home / "still.png")
    context.close()

"""The planner as a reader meets it: in JupyterLab, and in a page alone.

Run by `python start.py browser`. What the browser shows is compared with what Python computes.
"""

import pytest

from minillama4.explore import planner_explorer
from minillama4.explore.widget_planner import in_words
from tests.browser.conftest import exported_pages, notebook, stays_within, suits_theme

pytestmark = [pytest.mark.browser, pytest.mark.timeout(300)]
sync_api = pytest.importorskip("playwright.sync_api", reason="needs playwright: see start.py")
expect = sync_api.expect

CODE = """
from minillama4.explore import planner_explorer
planner = planner_explorer()
planner
"""


def press(page, row, name):
    page.locator(f".ml4-{row}").get_by_role("button", name=name, exact=True).click()


def knob(page, name, steps, start="Home"):
    """A slider, by keys: its end, and so many steps from there."""
    page.locator(f"[data-knob='{name}']").focus()
    page.keyboard.press(start)
    for _ in range(steps):
        page.keyboard.press("ArrowRight")


def shows(page, **knobs):
    """The sentences, the bars' parts and the table agree with Python's for these knobs."""
    view = planner_explorer(**knobs)
    expect(page.locator(".ml4-said")).to_have_text(in_words(view))
    held = view.plan
    parts = page.locator(".ml4-held rect[fill]").all()
    widths = [float(part.get_attribute("width")) for part in parts]
    sizes = [*held.weights.values(), held.cache, held.workspace]
    scale = 756 / max(held.total, held.memory)
    assert sum(widths) == pytest.approx(sum(sizes) * scale, abs=0.1)
    now = page.locator(".ml4-now td").all_inner_texts()
    longest = f"{view.longest:,}" if view.longest else "none"
    speed = f"{view.step.ceiling:,.0f}" if held.fits else "does not fit"
    assert now[:3] == [str(view.batch), longest, speed]


def drive(page):
    shows(page)
    press(page, "scheme", "bf16")
    shows(page, scheme="bf16")
    press(page, "gpu", "8 × H200")
    press(page, "model", "Maverick")
    shows(page, model="Maverick", scheme="bf16", gpu="8 × H200")
    knob(page, "batch", 5)
    knob(page, "context", 0, "End")
    shows(page, model="Maverick", scheme="bf16", gpu="8 × H200", batch=32, context=1_048_576)
    press(page, "cache", "fp8")
    press(page, "chunked", "everything")
    more = dict(batch=32, context=1_048_576, cache="fp8", chunked=False)
    shows(page, model="Maverick", scheme="bf16", gpu="8 × H200", **more)
    press(page, "model", "Scout")
    press(page, "scheme", "Int4 in all blocks")
    press(page, "gpu", "H100 80 GB")
    press(page, "cache", "bf16")
    press(page, "chunked", "one chunk")
    knob(page, "batch", 0)
    knob(page, "context", 20)
    shows(page, scheme="int4-blocks")
    press(page, "scheme", "Meta's Int4")
    shows(page)


@pytest.mark.parametrize("theme", ["Light", "Dark"])
def test_in_jupyterlab(open_in, shots, theme):
    page = open_in(theme)
    drive(page)
    page.locator(".ml4-planner").screenshot(path=shots / f"planner-{theme}.png")
    suits_theme(page, ".ml4-said", theme)
    assert page.locator(".jp-Cell").count() == 1  # no key reached JupyterLab's shortcuts
    assert page.errors == []
    page.close()


@pytest.mark.parametrize("width", [1000, 700])
def test_nothing_sticks_out_on_small_screens(open_in, shots, width):
    page = open_in(width=width)
    stays_within(page, ".ml4-planner", ".ml4-field, svg, table")
    page.locator(".ml4-planner").screenshot(path=shots / f"planner-{width}.png")
    assert page.errors == []
    page.close()


@pytest.fixture(scope="module")
def pages(home):
    return exported_pages(notebook(CODE), home, "planner")


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_an_exported_page_works_with_no_kernel_and_no_network(offline_page, pages, shots, theme):
    page = offline_page(pages[theme])
    expect(page.locator(".ml4-said")).to_be_visible()
    drive(page)
    page.locator(".ml4-planner").screenshot(path=shots / f"planner-exported-{theme}.png")


def test_without_javascript_there_is_a_picture(browser, pages, shots):
    context = browser.new_context(java_script_enabled=False, offline=True)
    page = context.new_page()
    page.goto(pages["light"].as_uri(), wait_until="domcontentloaded")
    expect(page.get_by_text(in_words(planner_explorer()))).to_be_visible()
    page.screenshot(path=shots / "planner-still.png", full_page=True)
    context.close()

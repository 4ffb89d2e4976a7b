"""The Int4 explorer as a reader meets it: in JupyterLab, and in a page alone.

Run by `python start.py browser`. What the browser shows is compared with what Python computes.
"""

import json

import pytest
import torch

from minillama4.explore import int4_explorer
from minillama4.explore.widget_int4 import group_in_words, in_words
from tests.browser.conftest import exported_pages, notebook, stays_within, suits_theme

pytestmark = [pytest.mark.browser, pytest.mark.timeout(300)]
sync_api = pytest.importorskip("playwright.sync_api", reason="needs playwright: see start.py")
expect = sync_api.expect

CODE = """
from minillama4.explore import int4_explorer
explorer = int4_explorer()
explorer
"""


def press(page, row, name):
    page.locator(f".ml4-{row}-row").get_by_role("button", name=name, exact=True).click()


def shows(page, **knobs):
    """The sentences, the picture of the group and the dots agree with Python's for these knobs."""
    view = int4_explorer(**knobs)
    expect(page.locator(".ml4-said")).to_have_text(in_words(view))
    expect(page.locator(".ml4-group-said")).to_have_text(group_in_words(view))
    picture = page.locator(".ml4-group-picture")
    expect(picture.locator(".ml4-level")).to_have_count(len(view.levels))
    ends = picture.locator("circle.ml4-after")
    expect(ends).to_have_count(view.group)
    places = ends.evaluate_all("all => all.map((one) => Number(one.getAttribute('cx')))")
    far = 1.08 * max(view.drawn.abs().max(), view.levels.abs().max())
    expected = 64 + 732 * (0.5 + view.rounded / (2 * far))
    torch.testing.assert_close(torch.tensor(places), expected, atol=0.11, rtol=0)
    for chart, count in (("over-bits", 28), ("over-size", 28)):
        expect(page.locator(f".ml4-{chart} .ml4-dot")).to_have_count(count)
        expect(page.locator(f".ml4-{chart} .ml4-now-at")).to_have_count(1)


def click_dot(page, chart, **to):
    """The dot of these settings, by the mouse: it must not lie wholly under another."""
    for dot in page.locator(f".ml4-{chart} .ml4-dot").all():
        if json.loads(dot.get_attribute("data-to")) == to:
            return dot.dispatch_event("click", {"bubbles": True})
    raise AssertionError(f"no dot for {to}")


def drive(page):
    shows(page)
    press(page, "how", "meta")
    shows(page, how="meta")
    press(page, "bits", "3")
    press(page, "group", "32")
    shows(page, how="meta", bits=3, group=32)
    press(page, "model", "mini Maverick")
    press(page, "what", "blocks and head")
    more = dict(model="mini Maverick", what="all")
    shows(page, how="meta", bits=3, group=32, **more)
    click_dot(page, "over-bits", bits=2, how="asymmetric")
    shows(page, how="asymmetric", bits=2, group=32, **more)
    click_dot(page, "over-size", bits=8, group=16)
    shows(page, how="asymmetric", bits=8, group=16, **more)
    press(page, "how", "textbook")
    shows(page, how="textbook", bits=8, group=16, **more)
    for row, name in (("model", "mini Scout"), ("what", "experts"), ("how", "compressed-tensors")):
        press(page, row, name)
    press(page, "bits", "4")
    press(page, "group", "128")
    shows(page)


@pytest.mark.parametrize("theme", ["Light", "Dark"])
def test_in_jupyterlab(open_in, shots, theme):
    page = open_in(theme)
    drive(page)
    page.locator(".ml4-int4").screenshot(path=shots / f"int4-{theme}.png")
    suits_theme(page, ".ml4-said", theme)
    assert page.locator(".jp-Cell").count() == 1  # no key reached JupyterLab's shortcuts
    assert page.errors == []
    page.close()


@pytest.mark.parametrize("width", [1000, 700])
def test_nothing_sticks_out_on_small_screens(open_in, shots, width):
    page = open_in(width=width)
    stays_within(page, ".ml4-int4", ".ml4-field, svg")
    page.locator(".ml4-int4").screenshot(path=shots / f"int4-{width}.png")
    assert page.errors == []
    page.close()


@pytest.fixture(scope="module")
def pages(home):
    return exported_pages(notebook(CODE), home, "int4")


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_an_exported_page_works_with_no_kernel_and_no_network(offline_page, pages, shots, theme):
    page = offline_page(pages[theme])
    expect(page.locator(".ml4-said")).to_be_visible()
    drive(page)
    page.locator(".ml4-int4").screenshot(path=shots / f"int4-exported-{theme}.png")


def test_without_javascript_there_is_a_picture(browser, pages, shots):
    context = browser.new_context(java_script_enabled=False, offline=True)
    page = context.new_page()
    page.goto(pages["light"].as_uri(), wait_until="domcontentloaded")
    expect(page.get_by_text(in_words(int4_explorer()))).to_be_visible()
    expect(page.get_by_role("row")).to_have_count(1 + 7)
    page.screenshot(path=shots / "int4-still.png", full_page=True)
    context.close()

"""The sizes view: its knobs are turned, its buttons pressed, its drawing read."""

import re

import pytest

pytest.importorskip("ipywidgets", reason="the views need the notebooks' extras")

from minillama4 import Llama4Config
from minillama4.explore.sizes import PRESETS, draw, sizes_view, stored_bytes, touched_bytes

SCOUT, MAVERICK = Llama4Config.scout().parameters(), Llama4Config.maverick().parameters()


def widths(page):
    """Of the two bars, in pixels: stored, touched."""
    rects = re.findall(r'<rect x="[\d.]+" y="(\d+)" width="([\d.]+)"', page)
    return tuple(sum(float(w) for y, w in rects if y == row) for row in ("16", "48"))


def test_bytes_are_those_of_the_published_files():
    assert stored_bytes(SCOUT) == 2 * 108_641_793_536
    assert stored_bytes(MAVERICK) == 2 * 401_583_781_376
    assert stored_bytes(SCOUT, "int4") == pytest.approx(66.48e9, rel=1e-4)
    assert stored_bytes(MAVERICK, "int4") == pytest.approx(231.0e9, rel=1e-3)
    assert touched_bytes(SCOUT) == 2 * 16_138_408_960
    assert touched_bytes(MAVERICK) == 2 * 16_150_205_440
    assert touched_bytes(SCOUT, "int4") < touched_bytes(MAVERICK, "int4")


def test_an_unknown_scheme_is_named():
    with pytest.raises(ValueError, match='scheme = \'fp8\' is not known: use "bf16" or "int4"'):
        stored_bytes(SCOUT, "fp8")


@pytest.mark.parametrize("button", range(3))
def test_a_button_sets_all_knobs(button):
    view = sizes_view(Llama4Config.mini(width=1024, heads=8, kv_heads=8, layers=4))
    pressed = view.presets[button]
    pressed.click()
    wanted = PRESETS[pressed.description].parameters()
    assert view.config.parameters().total == wanted.total
    assert view.config.parameters().active == wanted.active


def test_each_knob_redraws():
    view = sizes_view()
    for knob, value in zip(view.knobs, (24, 4096, 32, 4096, 2), strict=True):
        before = view.drawing.value
        knob.value = value
        assert view.drawing.value != before
        assert view.drawing.value == draw(view.config, "bf16")
    before = view.drawing.value
    view.kept.value = "int4"
    assert view.drawing.value == draw(view.config, "int4") != before


def test_every_end_of_every_knob_is_a_possible_model():
    view = sizes_view()
    for knob in view.knobs[:4]:
        for end in (knob.min, knob.max):
            knob.value = end
            assert view.config.parameters().total > view.config.parameters().active / 2
            assert "GPU of 80 GB" in view.drawing.value


def test_the_drawing_says_what_is_counted():
    page = draw(Llama4Config.scout(), "bf16")
    assert "108.64B parameters stored, 17.17B active per token" in page
    assert "217.3 GB stored, 32.3 GB read" in page and "does not hold it: 3 would" in page
    assert "holds it, with 13.5 GB to spare" in draw(Llama4Config.scout(), "int4")
    stored, touched = widths(page)
    assert stored == pytest.approx(620, abs=1)
    assert touched / stored == pytest.approx(touched_bytes(SCOUT) / stored_bytes(SCOUT), abs=0.01)


def test_no_kernel_leaves_the_drawing():
    view = sizes_view(scheme="int4")
    data, _ = view._repr_mimebundle_()
    assert data["text/html"] == draw(Llama4Config.scout(), "int4")
    assert "application/vnd.jupyter.widget-view+json" in data
    assert repr(view) == "SizesView(48 layers, 16 experts)"
    assert not re.search(r"https?:|src=|script", data["text/html"])

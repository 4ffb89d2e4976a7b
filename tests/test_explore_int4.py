"""The Int4 explorer: its JavaScript compared with Python by running it, its knobs turned as the
browser turns them, a page that needs no kernel; and the four ways of rounding behind it."""

import json
import math
import random
import re
import time

import pytest
import torch

from minillama4.explore.rounding import WAYS, bits_per_weight, levels_of, round_weight
from minillama4.serve.int4 import CONVENTIONS, dequantize, quantize

pytest.importorskip("anywidget", reason="the views need the notebooks' extras")

import minillama4 as ml4
from minillama4.explore import Effect, Int4Explorer, Runs, int4_explorer
from minillama4.explore import widget_int4 as int4
from minillama4.explore.script import STATIC, small_page_script, small_script
from minillama4.serve.precision import weight_bytes
from tests.node import in_node

every_way = pytest.mark.parametrize("how", WAYS)


def some_weight(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


# ------------------------------------------------------------------ rounding
@pytest.mark.parametrize("how", sorted(CONVENTIONS))
def test_at_four_bits_it_is_the_librarys(how):
    w = some_weight(3, 48, 256)
    packed, scale = quantize(w, convention=how)
    assert torch.equal(round_weight(w, how=how), dequantize(packed, scale))


@every_way
@pytest.mark.parametrize("bits", [2, 4, 8])
def test_every_weight_becomes_the_nearest_of_the_levels(how, bits):
    for seed in range(5):
        w = some_weight(32, seed=seed) + 0.3 * seed
        levels, back = levels_of(w, bits, how), round_weight(w[None], bits, 32, how)[0]
        assert len(levels) == 2**bits - (how == "textbook") and (levels.diff() > 0).all()
        assert (levels == 0).any()
        least = (w[:, None] - levels).abs().amin(1)
        torch.testing.assert_close((w - back).abs(), least, atol=1e-6, rtol=0)


def test_who_cuts_what():
    w = some_weight(64, 128)
    steps = {}
    for how in WAYS:
        gap = (round_weight(w, how=how) - w).abs()
        step = torch.stack([levels_of(row, how=how).diff().mean() for row in w])
        steps[how] = (gap.amax(1) / step).max().item()
    assert steps["textbook"] < 0.501 and steps["compressed-tensors"] < 0.501
    assert 0.9 < steps["meta"] < 1.001  # where the largest is positive, it loses a whole step


@every_way
def test_zeros_stay_zeros(how):
    assert not round_weight(torch.zeros(2, 128), how=how).any()


def test_bits_with_their_share_of_the_scale():
    found = [bits_per_weight(4, 128, how) for how in WAYS]
    assert found == [4.125, 4.25, 4.125, 4.15625]
    with pytest.raises(ValueError, match="none of compressed-tensors, meta, textbook, asymmetric"):
        round_weight(torch.ones(1, 128), how="gptq")


# ------------------------------------------------------------------ the browser's own answers
def in_page(expression, cases):
    """What the explorer's own script gives for each case."""
    return in_node((STATIC / "int4" / "rounding.js").read_text("utf-8"), expression, cases)


@pytest.fixture(scope="module")
def sweep():
    return Runs.load(ml4.shipped("experiments") / "int4.json")


def views(sweep, count=80):
    """Explorers with their knobs and weights at random, the ends among them."""
    draw, found = random.Random(0), []
    for number in range(count):
        weights = some_weight(128, seed=number) * draw.choice([1e-3, 0.02, 1.0])
        if number % 4 == 0:
            weights = weights.abs() * draw.choice([1, -1])  # all on one side
        if number % 5 == 0:
            weights[3] *= 20
        model, what = draw.choice(["mini Scout", "mini Maverick"]), draw.choice([*int4.SCHEMES])
        bits, group = draw.choice([2, 3, 4, 5, 6, 7, 8]), draw.choice([16, 32, 64, 128])
        found.append(
            int4_explorer(weights, model, what, bits, group, draw.choice(WAYS), runs=sweep)
        )
    return found


def state(view):
    names = ["model", "what", "how", "bits", "group", "weights", "measured", "plain", "schemes"]
    return {name: getattr(view, name) for name in names}


def test_the_browser_rounds_as_python_rounds(sweep):
    shown = views(sweep)
    cases = [[view.drawn.tolist(), view.bits, view.how] for view in shown]
    for view, found in zip(shown, in_page("roundGroup(...x)", cases), strict=True):
        scale = (view.levels[1] - view.levels[0]).item()
        torch.testing.assert_close(torch.tensor(found["levels"]), view.levels)
        back = torch.tensor(found["back"])
        apart = (back - view.rounded).abs() / scale
        middle = ((view.drawn / scale - 0.5) % 1 - 0.5).abs()  # in float64 a tie can fall otherwise
        assert ((apart < 1e-3) | ((apart - 1).abs() < 1e-3) & (middle > 0.499)).all()


def test_halves_go_to_the_even_number():
    cases = [-2.5, -1.5, -0.5, 0.5, 1.5, 2.5, 7.5, 2.4999, -3.2]
    expected = torch.tensor(cases, dtype=torch.float64).round().tolist()
    assert in_page("nearest(x)", cases) == expected


def test_the_browser_says_what_python_says(sweep):
    shown = views(sweep)
    words = "[`${sizeInWords(x)} ${lossInWords(x)}`, groupInWords(x)]"
    said = in_page(words, [state(view) for view in shown])
    assert [one for one, _ in said] == [int4.in_words(view) for view in shown]
    # the largest error in steps is half a step in float32, and one step in it may fall either way
    for view, (_, group) in zip(shown, said, strict=True):
        assert group.split(";")[:2] == int4.group_in_words(view).split(";")[:2]


def test_the_browser_finds_what_was_measured(sweep):
    view = int4_explorer(runs=sweep)
    (found,) = in_page("at(x, { bits: 3, how: 'meta' })", [state(view)])
    assert found == view.at(bits=3, how="meta")
    condition = "mini_scout, experts, 3 bits, groups of 128, meta"
    rise = Effect.of(sweep.results[condition][0]["rise"])
    assert math.isclose(found["rise"], rise.mean, abs_tol=1e-5)


def test_bytes_are_those_of_the_planner(sweep):
    """Scales in 16 bits as compressed-tensors keeps them, in float32 as Meta does."""
    for name, folder in (("mini Scout", "mini_scout"), ("mini Maverick", "mini_maverick")):
        config = ml4.Llama4Config.from_hf(ml4.shipped(folder) / "config.json")
        view = int4_explorer(model=name, runs=sweep)
        for what, how, scheme in (
            ("experts", "meta", "int4-meta"),
            ("experts", "compressed-tensors", "w4a16"),
            ("blocks", "compressed-tensors", "int4-blocks"),
            ("all", "compressed-tensors", "int4-all"),
        ):
            size = view.at(what=what, how=how)["bytes"]
            assert size == sum(weight_bytes(config, scheme, vision=False).values())
        assert view.plain[name] == sum(weight_bytes(config, "bf16", vision=False).values())


# ------------------------------------------------------------------ Python follows the browser
def from_browser(view, **values):
    """What JavaScript's save_changes does: the message of the widget protocol, handled."""
    view._handle_msg({"content": {"data": {"method": "update", "state": values}}, "buffers": []})


def test_what_the_reader_turns_arrives(sweep):
    view = int4_explorer(runs=sweep)
    assert isinstance(view, Int4Explorer)
    from_browser(view, model="mini Maverick", what="all", how="asymmetric", bits=3, group=32)
    assert repr(view) == "Int4Explorer(mini Maverick, all, 3 bits, groups of 32, asymmetric)"
    assert len(view.drawn) == 32 and len(view.levels) == 8
    assert view.numbers["bits"] == bits_per_weight(3, 32, "asymmetric")
    assert view.numbers == view.at() != view.at(bits=4)


def test_what_was_not_measured_is_refused(sweep):
    view = int4_explorer(runs=sweep)
    for name, value in (("bits", 9), ("group", 48), ("model", "Scout")):
        with pytest.raises(Exception, match="was not measured: "):
            setattr(view, name, value)
    with pytest.raises(ValueError, match="128 finite numbers"):
        int4_explorer([1.0, 2.0], runs=sweep)
    with pytest.raises(ValueError, match="128 finite numbers"):
        int4_explorer([float("nan")] * 128, runs=sweep)


# ------------------------------------------------------------------ without a kernel
def test_the_page_needs_nothing_from_outside(sweep):
    view = int4_explorer(runs=sweep)
    page = view.to_html()
    assert not re.search(r"https?:|src=|@import|url\(|\bimport\b|\bexport ", page)
    assert page.count("</script>") == 1 and page.endswith("</script>")
    assert page == int4_explorer(runs=sweep).to_html()  # the same notebook, the same bytes
    assert len(page) < 120_000
    values = json.loads(re.search(r"^const values = (\{.*\});$", page, re.MULTILINE).group(1))
    listed = json.loads(re.search(r"^const TRAITS = (\[.*?\]);", page, re.MULTILINE).group(1))
    assert set(listed) == values.keys()
    data, _ = view._repr_mimebundle_()
    assert data["text/html"] == page and "application/vnd.jupyter.widget-view+json" in data
    assert len(data["text/plain"]) < 120


def test_the_still_picture_has_a_row_for_each_number_of_bits(sweep):
    still = int4_explorer(runs=sweep).to_html().split("<style>")[0]
    assert "<script" not in still and "class=" not in still  # survives a sanitiser
    rows = [re.findall(r"<td>(.*?)</td>", row) for row in still.split("<tr>")[2:]]
    assert [row[0] for row in rows] == ["2", "3", "4", "5", "6", "7", "8"]
    assert rows[2][1] == "4.125" and rows[2][3] == "11.0%"


def test_the_files_join_into_one_module():
    for script in (small_script(*int4.FILES), small_page_script(*int4.FILES)):
        assert not re.search(r"^(import|export (?!default))", script, re.MULTILINE)
        names = re.findall(r"^(?:const|function|let) (\w+)", script, re.MULTILINE)
        for group in re.findall(r"^const \[([\w, ]+)\] =", script, re.MULTILINE):
            names += [name.strip() for name in group.split(",")]
        assert len(names) == len(set(names)), sorted({n for n in names if names.count(n) > 1})
    for name in int4.FILES:
        text = (STATIC / f"{name}.js").read_text("utf-8")
        for used, source in re.findall(r"import \{ ([^}]*) \} from \"(.+).js\"", text):
            other = ((STATIC / name).parent / f"{source}.js").read_text("utf-8")
            for wanted in used.split(", "):
                assert re.search(rf"^export (const|function) {wanted}\b", other, re.M), wanted
    files = {f"int4/{path.stem}" for path in (STATIC / "int4").glob("*.js")}
    assert files == {name for name in int4.FILES if name.startswith("int4/")}


def test_the_still_is_quick(sweep):
    began = time.process_time()
    int4_explorer(runs=sweep).to_html()
    assert time.process_time() - began < 0.5


# ------------------------------------------------------------------ the figure
@every_way
def test_the_figure_shows_every_weight_and_marks_what_is_cut(how):
    import matplotlib.pyplot as plt

    from minillama4.explore.plots_int4 import CUT, plot_group

    w = some_weight(32)
    w[3] = 4.0  # the largest, and positive
    ax = plot_group(w, how=how)
    assert len(ax.lines) == 3 * 32 and len(ax.collections[0].get_paths()) == len(
        levels_of(w, 4, how)
    )
    red = [line for line in ax.lines if line.get_color() == CUT]
    assert len(red) == (3 if how == "meta" else 0)
    assert how in ax.get_title() and plot_group(w, ax=ax, title="mine").get_title() == "mine"
    plt.close("all")

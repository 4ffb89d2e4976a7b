"""The chunk and temperature explorers: every knob turned as the browser turns it, their JavaScript
compared with Python by running it, and pages that need no kernel."""

import json
import math
import random
import re
import time

import pytest
import torch

pytest.importorskip("anywidget", reason="the views need the notebooks' extras")

import minillama4 as ml4
from minillama4.explore import (
    chunk_explorer,
    kv_entries,
    plot_mask,
    plot_reach,
    plot_temperature,
    receptive_field,
    seen_before,
    temperature_explorer,
)
from minillama4.explore import widget_chunks as chunks
from minillama4.explore import widget_temperature as temperature
from minillama4.explore.reach import visible
from minillama4.explore.script import STATIC, small_page_script, small_script
from minillama4.model.attention import attention_temperature
from tests.node import in_node

FILES = STATIC / "irope"
MEASURED = {
    "positions": [0, 127, 1023],
    "floor_scale": 128,
    "layers": {"3": {"with": [0.0, 4.3, 6.1], "without": [0.0, 4.4, 6.5]}},
}


def from_browser(view, **values):
    """What JavaScript's save_changes does: the message of the widget protocol, handled."""
    view._handle_msg({"content": {"data": {"method": "update", "state": values}}, "buffers": []})


def in_page(files, expression, cases):
    """What an expression of these scripts gives for each case."""
    code = "".join((FILES / f"{name}.js").read_text("utf-8") for name in files)
    return in_node(code, expression, cases)


def layouts(count=120):
    """Knobs at random, their ends among them, as the explorer may have them."""
    draw, found = random.Random(0), []
    for _ in range(count):
        sizes = {n: draw.choice([*ends, draw.randint(*ends)]) for n, ends in chunks.LIMITS.items()}
        sizes["token"] = draw.randrange(sizes["length"])
        sizes["window"], sizes["way"] = draw.random() < 0.5, draw.choice(["reach", "draws"])
        found.append(sizes)
    return found


# ------------------------------------------------------------------ the browser's own answers
def test_the_browser_lights_up_what_python_computes():
    cases = layouts()
    for case, stretches in zip(cases, in_page(["masks"], "litStretches(x)", cases), strict=True):
        lit = chunk_explorer(**case).lit
        assert len(stretches) == len(lit)
        for row, (first, last) in zip(lit, stretches, strict=True):
            expected = torch.zeros_like(row)
            expected[first : last + 1] = True
            assert torch.equal(row, expected), case


def test_the_browser_counts_what_python_counts():
    cases = layouts()
    numbers = "everyLayer(x).map((l) => [seenBefore(x, l, x.token), heldKeys(x, l), isNope(x, l)])"
    sentences = in_page(["masks"], "reachInWords(x)", cases)
    counted = in_page(["masks"], numbers, cases)
    for case, rows, said in zip(cases, counted, sentences, strict=True):
        view = chunk_explorer(**case)
        config, keys = view.config, kv_entries(view.config, view.length)
        for layer, (before, held, nope) in enumerate(rows):
            seen = seen_before(config, layer, view.length, view.window)
            assert before == seen[view.token] and held == keys[layer]
            assert nope == (layer in config.nope_layers)
        assert said == chunks.in_words(view)


def test_the_browsers_mask_is_pythons():
    cases = [{**case, "layer": i % case["layers"]} for i, case in enumerate(layouts(40))]
    pair = "[firstSeen(x, x.layer, t), lastSeeing(x, x.layer, t)]"
    ends = f"Array.from({{ length: x.length }}, (_, t) => {pair})"
    for case, rows in zip(cases, in_page(["masks"], ends, cases), strict=True):
        layer = case.pop("layer")
        view = chunk_explorer(**case)
        view.layer = layer
        assert torch.equal(view.mask, visible(view.config, layer, view.length, view.window))
        for t, (first, last) in enumerate(rows):
            assert view.mask[t].nonzero().flatten().tolist() == list(range(first, t + 1))
            assert view.mask[:, t].nonzero().flatten().tolist() == list(range(t, last + 1))


def test_the_browsers_temperature_is_the_models():
    floors = [128, 100, 8192]
    places = [0, 98, 99, 126, 127, 128, 8190, 8191, 16_382, 32_767, 131_071, 2**20 - 1, 10_485_759]
    cases = [[p, floor, scale] for p in places for floor in floors for scale in (0.0, 0.1, 0.33)]
    found = in_page(["softening"], "temperatureAt(...x)", cases)
    for (position, floor, scale), s in zip(cases, found, strict=True):
        expected = float(attention_temperature(torch.tensor(position), floor, scale))
        assert abs(s - expected) < 1e-6
        if position + 1 < floor:
            assert s == 1 == expected  # exactly


def test_the_browsers_weights_and_entropies_are_pythons():
    draw = random.Random(1)
    knobs = [
        dict(
            length=draw.choice([1024, 8191, 8192, 10_485_760, draw.randint(1024, 10**7)]),
            floor_scale=2 ** draw.randint(4, 17),
            attn_scale=draw.choice([0.0, 0.1, 0.4]),
            advantage=draw.choice([0.0, 20.0, draw.uniform(0, 20)]),
            spread=draw.choice([0.0, 3.0, draw.uniform(0, 3)]),
        )
        for _ in range(80)
    ]
    for case, at in zip(knobs, in_page(["softening"], "atLength(x.length, x)", knobs), strict=True):
        expected = temperature_explorer(**case).numbers
        found = dict(s=at["s"], most=math.log(at["n"]))
        for way, end in (("with", ""), ("without", "_without")):
            found |= {f"{name}{end}": at[way][name] for name in ("weight", "entropy")}
        assert found.keys() == expected.keys()
        for name, value in found.items():
            assert math.isclose(value, expected[name], rel_tol=2e-5, abs_tol=2e-5), (name, case)


def test_the_lines_are_drawn_where_the_steps_are():
    (lengths,) = in_page(["softening"], "lengthsBetween(...x)", [[1024, 10_485_760, 8192]])
    assert (lengths[0], lengths[-1]) == (1024, 10_485_760)
    assert {8191, 8192, 16_383, 16_384} < set(lengths) and lengths == sorted(set(lengths))


# ------------------------------------------------------------------ Python follows the browser
def test_what_the_reader_turns_arrives():
    view = chunk_explorer()
    from_browser(view, length=24, chunk=5, layers=6, nope_every=3, window=True, token=7, layer=2)
    assert repr(view) == "ChunkExplorer(24 tokens, window 5, 6 layers, NoPE every 3, token 7)"
    assert view.config.nope_layers == (2, 5) and view.config.chunk == 5
    assert torch.equal(view.lit, receptive_field(view.config, 24, window=True)[:, :, 7])
    from_browser(view, nope_every=0, way="draws")
    assert view.config.nope_layers == ()
    assert view.lit[0].nonzero().flatten().tolist() == list(range(8))


def test_a_shorter_text_keeps_the_token_inside():
    view = chunk_explorer(length=48, token=40)
    view.layer = 7
    view.length, view.layers = 20, 3
    assert (view.token, view.layer) == (19, 2)
    from_browser(view, length=10, token=9)  # what the browser sends together
    assert view.token == 9


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"length": 97}, "length = 97 does not fit here: it can be 4 to 96"),
        ({"chunk": 0}, "chunk = 0 does not fit here: it can be 1 to 96"),
        ({"layers": 17}, "it can be 1 to 16"),
        ({"nope_every": -1}, "it can be 0 to 16"),
        ({"token": 48}, "there is no token 48: there are 0 to 47"),
        ({"layer": 8}, "there is no layer 8: there are 0 to 7"),
    ],
)
def test_what_cannot_be_is_refused(values, message):
    view = chunk_explorer()
    for name, value in values.items():
        with pytest.raises(Exception, match=re.escape(message)):
            setattr(view, name, value)


def test_the_temperature_arrives_and_lengths_beyond_are_refused():
    view = temperature_explorer()
    from_browser(view, length=131_072, attn_scale=0.2, on=False, advantage=8.5, spread=0.0)
    expected = float(attention_temperature(torch.tensor(131_071), 8192, 0.2))
    assert view.numbers["s"] == expected and not view.on
    with pytest.raises(Exception, match="length = 100 does not fit here: it can be 1,024 to"):
        view.length = 100
    mini = temperature_explorer(128, length=2048, shortest=16, longest=16_384, measured=MEASURED)
    assert mini.numbers["s"] == float(attention_temperature(torch.tensor(2047), 128, 0.1))


# ------------------------------------------------------------------ without a kernel
def views():
    return [chunk_explorer(), temperature_explorer(measured=MEASURED)]


@pytest.mark.parametrize("number", [0, 1])
def test_the_page_needs_nothing_from_outside(number):
    view = views()[number]
    page = view.to_html()
    assert not re.search(r"https?:|src=|@import|url\(|\bimport\b|\bexport ", page)
    assert page.count("</script>") == 1 and page.endswith("</script>")
    assert page == views()[number].to_html()  # the same notebook, the same bytes
    assert len(page) < 60_000
    values = json.loads(re.search(r"^const values = (\{.*\});$", page, re.MULTILINE).group(1))
    listed = re.search(r"^const (?:KNOBS|TRAITS) = (\[.*?\]);", page, re.MULTILINE | re.DOTALL)
    for name in [*re.findall(r"model\.get\(\"(\w+)\"\)", page), *json.loads(listed.group(1))]:
        assert name in values, name
    data, _ = view._repr_mimebundle_()
    assert data["text/html"] == page and "application/vnd.jupyter.widget-view+json" in data
    assert len(data["text/plain"]) < 120


def test_the_still_picture_shows_what_is_lit():
    view = chunk_explorer(length=20, chunk=6, layers=4, token=8)
    still = view.to_html().split("<style>")[0]
    assert "<script" not in still and "class=" not in still  # survives a sanitiser
    rows = re.sub(r"<[^>]+>", "", still).splitlines()[-5:]
    assert [row.split()[0] for row in rows] == ["layer"] * 4 + ["input"]
    for row, lit in zip(reversed(rows), view.lit.tolist(), strict=True):
        marks = re.sub(r"[^●◆·]", "", row)
        assert marks == "".join(
            "◆" if on and t == 8 else "●" if on else "·" for t, on in enumerate(lit)
        )
    assert rows[1].count("|") == 3 and "|" not in rows[0]  # RoPE has borders, NoPE has none
    view.window = True
    assert "|" not in chunks.snapshot(view)


def test_the_still_table_has_the_formulas_numbers():
    still = temperature.snapshot(temperature_explorer())
    rows = [re.findall(r"<td>(.*?)</td>", row) for row in still.splitlines()][2:]
    assert [row[0] for row in rows] == [
        *("1,024", "8,192", "32,768", "131,072", "1,048,576", "10,485,760"),
    ]
    assert [row[1] for row in rows] == ["1.0000", "1.0693", "1.1609", "1.2833", "1.4860", "1.7155"]
    assert rows[0][2] == rows[0][3] and rows[0][4] == rows[0][5]  # below the floor nothing changes
    mini = temperature_explorer(128, length=64, shortest=16, longest=16_384)
    assert temperature.snapshot(mini).count("<tr>") == 1 + 6


@pytest.mark.parametrize("files", [chunks.FILES, temperature.FILES])
def test_the_files_join_into_one_module(files):
    for script in (small_script(*files), small_page_script(*files)):
        assert not re.search(r"^(import|export (?!default))", script, re.MULTILINE)
        names = re.findall(r"^(?:const|function|let) (\w+)", script, re.MULTILINE)
        names += [
            n.strip()
            for group in re.findall(r"^const \[([\w, ]+)\] =", script, re.MULTILINE)
            for n in group.split(",")
        ]
        assert len(names) == len(set(names)), sorted({n for n in names if names.count(n) > 1})
    for name in files:
        for used, source in re.findall(
            r"import \{ ([^}]*) \} from \"(.+).js\"", (STATIC / f"{name}.js").read_text("utf-8")
        ):
            other = (FILES / f"{source}.js").read_text("utf-8")
            for wanted in used.split(", "):
                assert re.search(rf"^export (const|function) {wanted}\b", other, re.MULTILINE), (
                    wanted
                )
    assert {path.stem for path in FILES.glob("*.js")} == {
        name.split("/")[1] for name in chunks.FILES + temperature.FILES
    }


def test_what_lights_up_newly_is_marked_in_browser_and_figure():
    import matplotlib.pyplot as plt

    reaches = chunk_explorer()
    assert reaches.newly(4) == list(range(16, 48)) and reaches.newly(1) == [14, 15]
    assert reaches.newly(0) == [] == reaches.newly(8)
    draws = chunk_explorer(layers=3, token=27, way="draws")
    assert [draws.newly(level) for level in range(4)] == [[], [], [24, 25, 26], []]
    dots = plot_reach(token=13).lines
    assert [len(line.get_xdata()) for line in dots] == [len(reaches.newly(i)) for i in range(9)]
    plt.close("all")


# ------------------------------------------------------------------ figures
def test_the_figures_count_what_they_show():
    import matplotlib.pyplot as plt

    ax = plot_reach(40, 8, 6, 3, token=10)
    lit = chunk_explorer(40, 8, 6, 3, token=10).lit
    assert [text.get_text() for text in ax.texts] == [str(int(n)) for n in lit.sum(1)]
    assert ax.get_title("left") == "Token 10 reaches 30 of 40 tokens"
    assert plot_reach(way="draws", token=5, title="mine").get_title("left") == "mine"
    ax = plot_mask(ml4.Llama4Config.nano(chunk=8), 0, 20, token=9)
    assert ax.get_title("left") == "Layer 0, RoPE" and len(ax.patches) == 20 + 1 + 2
    figure = plot_temperature(titles=("a", "b", "c"))
    assert [ax.get_title("left") for ax in figure.axes] == ["a", "b", "c"]
    figure.canvas.draw()
    plt.close("all")


def test_the_stills_are_quick():
    began = time.process_time()
    for view in views():
        view.to_html()
    seconds = time.process_time() - began
    print(f"two still pictures in {1000 * seconds:.0f} ms")
    assert seconds < 0.5

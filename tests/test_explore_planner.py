"""The planner: its JavaScript compared with the library by running it, its knobs turned as the
browser turns them, and a page that needs no kernel."""

import json
import math
import random
import re

import pytest

pytest.importorskip("anywidget", reason="the views need the notebooks' extras")

import minillama4 as ml4
from minillama4.explore import PlannerExplorer, planner_explorer
from minillama4.explore import widget_planner as planner
from minillama4.explore.script import STATIC, small_page_script, small_script
from minillama4.serve.memory import longest_context, plan
from minillama4.serve.precision import SCHEMES
from minillama4.serve.roofline import decode_step, distinct_experts
from tests.node import in_node

MODELS = {
    "Scout": ml4.Llama4Config.scout(),
    "Maverick": ml4.Llama4Config.maverick(),
    "mini": ml4.Llama4Config.mini(top_k=2),
    "dense": ml4.Llama4Config.mini_dense(),
    "no chunks": ml4.Llama4Config.nano(chunk=None, tied=True),
}


def in_page(expression, cases):
    """What the explorer's own script gives for each case."""
    return in_node((STATIC / "planner" / "bytes.js").read_text("utf-8"), expression, cases)


def views(count=60):
    """Planners with their knobs at random, the ends among them."""
    draw, found = random.Random(0), []
    for number in range(count):
        name = draw.choice([*MODELS])
        most = MODELS[name].max_length
        found.append(
            planner_explorer(
                MODELS,
                name,
                draw.choice([*SCHEMES]),
                draw.choice([gpu.name for gpu in planner.GPUS]),
                draw.choice([1, 8192, 8193, most, draw.randint(1, most)]) if most > 9000 else most,
                draw.choice([1, 2, 4, 64, 512]),
                cache=draw.choice(["bf16", "fp8"]),
                chunked=draw.random() < 0.7,
                vision=number % 3 > 0,
                workspace=draw.choice([0, 3_000_000_000]),
            )
        )
    return found


def state(view):
    names = ["model", "scheme", "gpu", "context", "batch", "cache", "chunked"]
    names += ["models", "gpus", "workspace"]
    return {name: getattr(view, name) for name in names}


# ------------------------------------------------------------------ the browser's own answers
def test_the_browser_counts_the_bytes_that_python_counts():
    shown = views()
    for view, found in zip(shown, in_page("planOf(x)", [state(v) for v in shown]), strict=True):
        held = view.plan
        assert found.pop("weights") == held.weights
        names = ("cache", "workspace", "memory", "total", "free")
        assert found == {name: getattr(held, name) for name in names}


def test_the_browser_finds_the_same_longest_context():
    shown = views()
    assert in_page("longestOf(x)", [state(v) for v in shown]) == [v.longest for v in shown]
    lengths = {view.longest for view in shown}
    assert 0 in lengths and len(lengths) > 10


def test_the_browser_reads_and_computes_the_same():
    shown = views()
    for view, found in zip(shown, in_page("stepOf(x)", [state(v) for v in shown]), strict=True):
        step = view.step
        for name, size in step.reads.items():
            assert math.isclose(found["reads"].get(name, 0), size, rel_tol=1e-9), name
        assert math.isclose(found["ceiling"], step.ceiling, rel_tol=1e-9)
        assert found["bound"] == step.bound
    assert {view.step.bound for view in shown} == {"memory", "arithmetic"}


def test_the_browser_says_what_python_says():
    shown = views()
    words = "[planInWords(x), roomInWords(x), speedInWords(x)].filter(Boolean).join(' ')"
    said = in_page(words, [state(v) for v in shown])
    assert said == [planner.in_words(view) for view in shown]


def test_the_browser_expects_the_same_experts():
    cases = [[dict(experts=e, top_k=k), n] for e, k in ((16, 1), (128, 1), (8, 2)) for n in (1, 30)]
    for (sizes, tokens), found in zip(cases, in_page("distinctExperts(...x)", cases), strict=True):
        assert math.isclose(found, distinct_experts(sizes["experts"], tokens, sizes["top_k"]))


# ------------------------------------------------------------------ Python follows the browser
def from_browser(view, **values):
    """What JavaScript's save_changes does: the message of the widget protocol, handled."""
    view._handle_msg({"content": {"data": {"method": "update", "state": values}}, "buffers": []})


def test_what_the_reader_turns_arrives():
    view = planner_explorer()
    assert isinstance(view, PlannerExplorer)
    assert view.plan == plan(MODELS["Scout"], scheme="int4-meta")
    from_browser(view, model="Maverick", scheme="w4a16", gpu="8 × H100 80 GB", batch=16)
    from_browser(view, context=131_072, cache="fp8")
    assert repr(view) == "PlannerExplorer(Maverick, w4a16, 8 × H100 80 GB, 16 × 131,072 tokens)"
    gpu, cache = view.hardware["8 × H100 80 GB"], planner.CACHES["fp8"]
    place = (MODELS["Maverick"], gpu, "w4a16")
    assert view.plan == plan(*place, 131_072, 16, cache=cache)
    assert view.longest == longest_context(*place, 16, cache=cache)
    assert view.step == decode_step(*place, 131_072, 16, cache=cache)


def test_another_model_shortens_what_it_cannot_read():
    view = planner_explorer(context=10_485_760)
    from_browser(view, model="Maverick")
    assert view.context == 1_048_576


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"context": 0}, "context = 0 does not fit here: it can be 1 to 10,485,760"),
        ({"context": 10_485_761}, "it can be 1 to 10,485,760"),
        ({"batch": 513}, "batch = 513 does not fit here: it can be 1 to 512"),
        ({"model": "Behemoth"}, "there is no model 'Behemoth' here: there are Scout, Maverick"),
        ({"gpu": "H100"}, "there is no gpu 'H100' here: there are H100 80 GB, H200"),
        ({"scheme": "int3"}, "'int3'"),
        ({"cache": "int8"}, "'int8'"),
    ],
)
def test_what_cannot_be_is_refused(values, message):
    view = planner_explorer()
    for name, value in values.items():
        with pytest.raises(Exception, match=re.escape(message)):
            setattr(view, name, value)
    if "model" in values or "gpu" in values:
        with pytest.raises(Exception, match=re.escape(message)):
            planner_explorer(**values)


# ------------------------------------------------------------------ without a kernel
def test_the_page_needs_nothing_from_outside():
    view = planner_explorer()
    page = view.to_html()
    assert not re.search(r"https?:|src=|@import|url\(|\bimport\b|\bexport ", page)
    assert page.count("</script>") == 1 and page.endswith("</script>")
    assert page == planner_explorer().to_html() and len(page) < 60_000
    values = json.loads(re.search(r"^const values = (\{.*\});$", page, re.MULTILINE).group(1))
    listed = re.search(r"^const TRAITS = (\[.*?\]);", page, re.MULTILINE)
    assert not {*json.loads(listed.group(1))} - {*values}
    data, _ = view._repr_mimebundle_()
    assert data["text/html"] == page and "application/vnd.jupyter.widget-view+json" in data


def test_the_still_picture_shows_the_parts():
    still = planner_explorer().to_html().split("<style>")[0]
    assert "<script" not in still and "class=" not in still  # survives a sanitiser
    for part in ("66.48 GB of weights", "51.34 GB", "routed experts", "left", "8.91 GB"):
        assert part in still, part
    assert "dense layers" not in still
    widths = [float(x) for x in re.findall(r"width:([\d.]+)%;padding", still)]
    assert sum(widths) == pytest.approx(100, abs=0.1)
    over = planner.snapshot(planner_explorer(model="Maverick"))
    assert "It does not fit" in over and "dense layers" in over and "left" not in over


def test_the_files_join_into_one_module():
    for script in (small_script(*planner.FILES), small_page_script(*planner.FILES)):
        assert not re.search(r"^(import|export (?!default))", script, re.MULTILINE)
        names = re.findall(r"^(?:const|function|let) (\w+)", script, re.MULTILINE)
        for group in re.findall(r"^(?:const|let) \[([\w, ]+)\] =", script, re.MULTILINE):
            names += group.split(", ")
        assert len(names) == len(set(names)), sorted({n for n in names if names.count(n) > 1})
    for name in planner.FILES:
        file = STATIC / f"{name}.js"
        for used, source in re.findall(
            r"import \{ ([^}]*) \} from \"(.+)\";", file.read_text("utf-8")
        ):
            other = (file.parent / source).read_text("utf-8")
            for wanted in used.split(", "):
                assert re.search(rf"^export (const|function) {wanted}\b", other, re.MULTILINE)
    written = {f"planner/{path.stem}" for path in (STATIC / "planner").glob("*.js")}
    assert written == {name for name in planner.FILES if name.startswith("planner/")}

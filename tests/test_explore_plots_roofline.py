"""The roofline's figures, and the record of a GPU's run: read, drawn, and absent."""

import json

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import pytest

import minillama4 as ml4
from minillama4.explore import plots_roofline as plots
from minillama4.serve.hardware import H100
from minillama4.serve.roofline import decode_step

RECORD = {
    "gpu": "a GPU of this test",
    "date": "2026-11-25T12:00:00+00:00",
    "rows": [
        {"section": "memory", "read": 3e12, "copy": 2.5e12},
        *(
            {"section": "decode", "batch": b, "context": c, "skew": s, "mbu": 0.5}
            | {"tokens_per_second": 100.0 * b, "samples": [0.01], "bytes_per_step": 1e10}
            for b, c, s in ((1, 1024, 0.0), (4, 1024, 0.0), (1, 8192, 0.0), (4, 1024, 1.0))
        ),
    ],
}
REST = [  # one row of each other kind, with keys that nobody reads among them
    {"section": "kernels", "check": "experts", "tokens": 1, "error": 0.002, "passed": True},
    {"section": "kernels", "check": "linear", "tokens": 16, "error": "nan", "passed": False},
    *(
        {"section": "kernels", "sweep": "up", "tuning": f"rows={rows}", "bytes_per_second": speed}
        | {"share_of_read": speed / 3e12, "seconds": 1e-4}
        for rows, speed in ((64, 1.5e12), (128, 2.4e12), (32, 0.9e12))
    ),
    {"section": "kernels", "sweep": "up", "tuning": "rows=256", "failed": "no room"},
    {"section": "kernels", "chosen": "up", "tuning": "rows=128"},
    {"section": "model", "what": "blocks", "bytes": 57_000_000_000},
    {"section": "prefill", "tokens": 8192, "seconds": 1.25, "tokens_per_second": 6553.6},
    {"section": "long", "context": 131_072, "fits": True, "samples": [0.02, 0.025, 0.03]},
    {"section": "long", "context": 393_216, "fits": False, "samples": []},
    {"section": "load", "file_bytes": 217_280_000_000, "seconds": 90.0, "peak": 65_000_000_000}
    | {"host_above_start": 300_000_000},
    {"section": "load", "file_bytes": 9_000_000_000, "seconds": 4.0, "peak": None}
    | {"layers": 1, "layers_of_model": 48, "differences": ["ffn.router"], "passed": False},
    {"section": "load", "decoded": 9, "error": 0.001, "passed": True},
    {"section": "failed", "what": "skew", "error": "RuntimeError('x')", "where": "a.py:1"},
    {"section": "left out", "what": "load", "why": "time"},
    {"section": "left out", "what": "load", "why": "time"},
    {"section": "memory", "when": "end", "read": 2.9e12, "copy": 2.5e12},
]
TOLD = """\
memory: 3.00 TB/s read
memory at the end: 2.90 TB/s read
kernels: 1 of 2 checks within 1% of float64; wrong: linear (nan)
kernel up: 2.40 TB/s, 80% of the memory's, with rows=128
prompt of 8,192 tokens: read in 1.25 s
text of 131,072 tokens: 40 tokens a second
text of 393,216 tokens: does not fit
loading: 217.3 GB of files in 90 s, 0.3 GB at most on the host above its start, \
65.0 GB at most on the device
loading: 9.0 GB of files, 1 of 48 layers, in 4 s: WRONG
loaded, and 9 tokens written: error 0.001
failed: skew: RuntimeError('x')
left out: load"""


@pytest.fixture(autouse=True)
def closed():
    yield
    plt.close("all")


def test_a_recorded_run_is_drawn_line_by_line(tmp_path):
    file = tmp_path / "gpu.json"
    file.write_text(json.dumps(RECORD))
    run = plots.read_gpu_run(file)
    assert run["sections"] == ["memory"] + 4 * ["decode"]
    ax = plots.plot_gpu_run(run)
    lines = {line.get_label(): list(line.get_ydata()) for line in ax.lines}
    even = {"1,024 tokens behind": [100.0, 400.0], "8,192 tokens behind": [100.0]}
    assert lines == even | {"1,024 tokens behind, skew 1": [400.0]}
    assert [text.get_text() for text in ax.texts] == ["50%"] * 4
    assert "a GPU of this test" in ax.get_title()
    one, skewed, other = ax.lines
    assert one.get_color() == skewed.get_color() != other.get_color()
    assert [line.get_linestyle() for line in ax.lines] == ["-", ":", "-"]


def test_every_round_is_drawn_and_a_second_measurement_takes_the_firsts_place(tmp_path):
    first = RECORD["rows"][1] | {"section": "headline", "tokens_per_second": 7.0}
    second = RECORD["rows"][1] | {"samples": [0.01, 0.02], "how": "graph"}
    ax = plots.plot_gpu_run(RECORD | {"rows": [first, second]})
    (line,) = ax.lines
    assert list(line.get_ydata()) == [100.0]
    assert ax.collections[0].get_offsets().tolist() == [[1.0, 100.0], [1.0, 50.0]]
    (line,) = plots.plot_gpu_run(RECORD | {"rows": [first]}).lines
    assert list(line.get_ydata()) == [7.0]


def test_the_rest_of_a_record_is_told_line_by_line(tmp_path):
    file = tmp_path / "gpu.json"
    file.write_text(json.dumps(RECORD | {"rows": RECORD["rows"] + REST}))
    assert plots.tell_gpu_run(plots.read_gpu_run(file)) == TOLD
    lists = {"section": "left out", "what": ["long", "load"]}
    file.write_text(json.dumps(RECORD | {"rows": [lists]}))
    assert plots.tell_gpu_run(plots.read_gpu_run(file)) == "left out: long, load"


def test_nothing_recorded_is_none_and_another_file_is_told(tmp_path):
    assert plots.read_gpu_run(tmp_path / "none.json") is None
    for content in ("{", "[1]", '{"rows": [{}]}'):
        (tmp_path / "other.json").write_text(content)
        with pytest.raises(ValueError, match="no record of"):
            plots.read_gpu_run(tmp_path / "other.json")


def test_ceilings_fall_below_the_memorys_where_arithmetic_binds():
    config = ml4.Llama4Config.scout()
    steps = [decode_step(config, H100, "int4-blocks", 16, b) for b in (1, 16, 4096)]
    ax = plots.plot_ceilings({"even": steps})
    assert list(ax.lines[0].get_ydata()) == [step.ceiling for step in steps]
    squares = [line for line in ax.lines if line.get_marker() == "s"]
    assert len(squares) == sum(step.bound == "arithmetic" for step in steps) == 1


def test_times_are_drawn_with_every_sample():
    points = {"Int4": [(1e6, [1.0, 1.2]), (1e7, [2.0, 2.1])], "float32": [(1e8, [9.0])]}
    ax = plots.plot_time(points, memory=1e10)
    dots = [line for line in ax.lines if line.get_marker() == "o" and len(line.get_ydata())]
    assert [len(line.get_ydata()) for line in dots] == [2, 2, 1]
    labels = [text.get_text() for text in ax.get_legend().get_texts()]
    assert labels == ["Int4", "float32", "memory"]


def test_two_ways_of_one_kind_share_a_colour():
    ways = {f"{kind}, {how}": [(1e6, [1.0])] for kind in ("Int4", "bf16") for how in ("old", "new")}
    lines = [line for line in plots.plot_time(ways).lines if line.get_label() in ways]
    hollow = [line.get_markerfacecolor() == "none" for line in lines]
    assert hollow == [True, False, True, False]
    colours = [line.get_color() for line in lines]
    assert colours[0] == colours[1] != colours[2] == colours[3]

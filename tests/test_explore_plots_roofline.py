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
    assert lines == {"1,024 tokens behind": [100.0, 400.0], "8,192 tokens behind": [100.0]}
    assert [text.get_text() for text in ax.texts] == ["50%"] * 3
    assert "a GPU of this test" in ax.get_title()


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

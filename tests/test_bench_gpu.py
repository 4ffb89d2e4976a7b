"""The GPU's benchmark on a CPU, at small size: every section runs, and what it says adds up."""

import json

import pytest
import torch

import minillama4 as ml4
from minillama4.serve.memory import kv_bytes
from tests.bench import gpu, gpu_kernels, gpu_load
from tests.bench.gpu import Run, measure

SIZES = dict(width=128, expert_hidden=128, heads=4, kv_heads=2, head_width=32, layers=2)
CONFIG = ml4.Llama4Config.nano(**SIZES, nope_every=2, chunk=32, max_length=512)


@pytest.fixture(scope="module")
def rows():
    pytest.importorskip("triton", reason="Triton runs on Linux alone")
    run = Run("cpu", torch.float16, CONFIG, "blocks", limit=1000, steps=4, rounds=2)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(gpu_kernels, "TUNINGS", gpu_kernels.TUNINGS[:2])
        patch.setattr(gpu_kernels, "LAYERS", 1)
        sizes = dict(batches=(1, 3), contexts=(16, 100), prompts=(8, 64), texts=(64, 200))
        measure(run, gpu.SECTIONS, **sizes)
    return run.rows


def of(rows, section, **having):
    return [
        row
        for row in rows
        if row["section"] == section and all(row.get(k) == v for k, v in having.items())
    ]


def test_the_kernels_are_checked_before_they_are_tuned(rows):
    assert {row["check"] for row in of(rows, "kernels") if "check" in row} == {
        *("experts", "linear", "attention")
    }
    assert all(row["error"] < 0.01 for row in of(rows, "kernels") if "check" in row)
    swept = [row["sweep"] for row in of(rows, "kernels") if "bytes_per_second" in row]
    assert swept == ["up", "down", "linear"]


def test_a_wrong_kernel_stops_the_measurement(monkeypatch):
    pytest.importorskip("triton", reason="Triton runs on Linux alone")
    right = gpu_kernels.int4_triton.experts
    monkeypatch.setattr(
        gpu_kernels.int4_triton,
        "experts",
        lambda x, s, *rest: s[:, None] * right(x, s * 0 + 1, *rest),
    )
    run = Run("cpu", torch.float16, CONFIG, "blocks", limit=1000)
    with pytest.raises(AssertionError):
        gpu_kernels.check(run, gpu_kernels.layer_of(CONFIG, "cpu"))
    assert run.rows[-1]["error"] > 0.01  # and what was seen is kept


def test_decoding_is_measured_at_every_batch_and_context(rows):
    plain = [(row["batch"], row["context"]) for row in of(rows, "decode", skew=0.0)]
    assert plain == [(1, 16), (1, 100), (3, 16), (3, 100)]
    assert [(row["batch"], row["context"]) for row in of(rows, "decode", skew=1.0)] == [(3, 16)]
    for row in of(rows, "decode"):
        assert len(row["samples"]) == 2 and row["tokens_per_second"] > 0 and row["mbu"] > 0
    one, long = of(rows, "decode", batch=1)[:2]
    more = kv_bytes(CONFIG, 103) - kv_bytes(CONFIG, 19)
    assert long["bytes_per_step"] - one["bytes_per_step"] == pytest.approx(more, rel=0.5)


def test_reading_and_long_texts_and_loading_are_measured(rows):
    assert [row["tokens"] for row in of(rows, "prefill")] == [8, 64]
    assert [row["fits"] for row in of(rows, "long")] == [True, True]
    (load,) = of(rows, "load")
    assert load["file_bytes"] == 2 * CONFIG.parameters().total and load["hollow"]
    json.dumps(rows)


def test_no_time_left_leaves_sections_out():
    run = Run("cpu", torch.float16, CONFIG, "blocks", limit=0.0, steps=4, rounds=1)
    sections = ("decode", "prefill", "long", "load")
    measure(run, sections, batches=(1,), contexts=(16,), prompts=(8,), texts=(64,))
    assert [row["section"] for row in run.rows] == ["memory", "model", "left out"]
    assert run.rows[-1]["what"] == [*sections]


def test_hollow_files_have_scouts_names_and_weigh_nothing(tmp_path):
    size = gpu_load.write_hollow(ml4.Llama4Config.scout(), tmp_path)
    files = sorted(tmp_path.glob("*.safetensors"))
    assert size == pytest.approx(217.28e9, abs=0.01e9)
    assert sum(file.stat().st_size for file in files) > size
    blocks = sum(file.stat().st_blocks * 512 for file in files)
    assert blocks < 10**7, "this file system stores holes"


def test_without_a_gpu_the_command_says_so(capsys, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert gpu.main(["--only", "decode"]) == 1
    assert "no CUDA device" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        gpu.parse(["--only", "speed"])

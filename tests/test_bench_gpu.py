"""The GPU's benchmark at small size, where there is no GPU on a CPU: every section runs, what it
says adds up, and what fails or is ended takes nothing else with it."""

import gc
import io
import json
import signal
import subprocess
import sys
import time
import weakref
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

import minillama4 as ml4
from minillama4.serve.memory import kv_bytes
from minillama4.serve.roofline import decode_step
from minillama4.serve.static import StaticDecoder
from minillama4.serve.synthetic import synthetic_int4
from tests.bench import gpu, gpu_decode, gpu_kernels, gpu_load, gpu_run
from tests.bench.gpu_run import Run, scheme_of

ROOT = Path(__file__).parents[1]
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
SIZES = dict(width=128, expert_hidden=128, heads=4, kv_heads=2, head_width=32, layers=2)
CONFIG = ml4.Llama4Config.nano(**SIZES, nope_every=2, chunk=32, max_length=512)
SMALL = dict(batches=(1, 16), contexts=(16, 100), prompts=(8, 64), texts=(64, 200))


def small_run(**changes) -> Run:
    options = dict(limit=1000, steps=4, rounds=2) | changes
    return Run(DEVICE, torch.float16, CONFIG, "blocks", **options)


def of(rows, section, **having):
    return [
        row
        for row in rows
        if row["section"] == section and all(row.get(k) == v for k, v in having.items())
    ]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    pytest.importorskip("triton", reason="Triton runs on Linux alone")
    folder = tmp_path_factory.mktemp("gpu")
    run = small_run(file=folder / "run.json", folder=folder, about={"gpu": "none", "date": "today"})
    before = dict(gpu_kernels.int4_triton.TUNINGS)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(gpu_kernels, "TUNINGS", gpu_kernels.TUNINGS[:2])
        patch.setattr(gpu_kernels, "LAYERS", 1)
        patch.setattr(gpu_kernels, "ATTENTION_BYTES", 1)
        patch.setattr(gpu_load, "file_system", lambda folder: "ext4")
        gpu.measure(run, gpu.SECTIONS, **SMALL)
    gpu_kernels.int4_triton.TUNINGS.update(before)
    return run


@pytest.fixture
def rows(run):
    return run.rows


def test_nothing_fails_and_every_section_is_there_in_its_order(run, rows):
    assert not run.failed and not of(rows, "failed")
    seen = list(dict.fromkeys(row["section"] for row in rows))
    measured = ["headline", "kernels", "decode", "prefill", "long", "load"]
    assert seen == ["memory", "model", *measured]
    assert [row["when"] for row in of(rows, "memory")] == ["start", "end"]
    assert [row["skew"] for row in of(rows, "model")] == [0.0, 1.0]


def test_the_file_holds_all_rows_as_the_notebooks_read_them(run, rows):
    from_file = pytest.importorskip("minillama4.explore.plots_roofline").read_gpu_run(run.file)
    assert from_file["rows"] == json.loads(json.dumps(rows)) and from_file["gpu"] == "none"
    assert from_file["sections"] == [row["section"] for row in rows]


def test_the_kernels_are_checked_before_and_after_they_are_tuned(rows):
    kernels = of(rows, "kernels")
    for tuned in (False, True):
        checks = of(kernels, "kernels", tuned=tuned)
        assert {row["check"] for row in checks} == {"experts", "linear", "attention"}
        assert all(row["passed"] and row["error"] < 0.01 for row in checks)
    swept = [row["sweep"] for row in kernels if "bytes_per_second" in row]
    assert swept == ["up", "up", "down", "down", "linear", "linear"]  # every tuning, not the best
    for chosen in [row for row in kernels if "chosen" in row]:
        tried = [row for row in kernels if row.get("sweep") == chosen["chosen"]]
        assert chosen["tuning"] == min(tried, key=lambda row: row["seconds"])["tuning"]


def test_decoding_is_measured_at_every_batch_and_context(rows):
    plain = [(row["batch"], row["context"]) for row in of(rows, "decode", skew=0.0)]
    assert plain == [(1, 16), (1, 100), (16, 16), (16, 100)]
    assert [(row["batch"], row["context"]) for row in of(rows, "decode", skew=1.0)] == [(16, 16)]
    assert [(row["batch"], row["context"]) for row in of(rows, "headline")] == [(1, 16), (16, 16)]
    for row in of(rows, "decode"):
        assert len(row["samples"]) == 2 and row["tokens_per_second"] > 0 and row["mbu"] > 0
        assert row["slots"] == row["context"] + 4  # a short text is not measured in a long cache
    one, long = of(rows, "decode", batch=1)[:2]
    more = kv_bytes(CONFIG, 103) - kv_bytes(CONFIG, 19)
    assert long["bytes_per_step"] - one["bytes_per_step"] == pytest.approx(more, rel=0.5)


def test_rows_of_a_batch_read_several_experts_and_the_bytes_say_how_many(run, rows):
    one, many = (of(rows, "decode", batch=batch, context=16, skew=0.0)[0] for batch in (1, 16))
    assert one["experts_by_layer"] == [1.0, 1.0]
    assert all(1.5 < seen <= CONFIG.experts for seen in many["experts_by_layer"])
    decoder = StaticDecoder(run.model(), 16, 20)
    step = gpu_decode.step_of(run, decoder, 18, [CONFIG.experts] * 2)
    assert step.reads["routed experts"] == pytest.approx(
        sum(part.nbytes for b in run.model().blocks for part in b.ffn.experts.tensors())
    )
    less = gpu_decode.step_of(run, decoder, 18, many["experts_by_layer"])
    share = sum(many["experts_by_layer"]) / (2 * CONFIG.experts)
    assert less.reads["routed experts"] == pytest.approx(share * step.reads["routed experts"])
    assert many["bytes_per_step"] == less.bytes


def test_contexts_read_as_many_keys_as_one_in_the_mean():
    config = ml4.Llama4Config.scout()
    for context in gpu.CONTEXTS[1:]:
        here, mean = (
            decode_step(config, scheme="int4-blocks", context=context + 32, average=average).bytes
            for average in (False, True)
        )
        assert here == pytest.approx(mean, rel=1e-3)


def test_reading_and_long_texts_are_measured(rows):
    assert [row["tokens"] for row in of(rows, "prefill")] == [8, 64]
    assert [row["fits"] for row in of(rows, "long")] == [True, True]


def test_a_wrong_kernel_is_told_and_ends_nothing(monkeypatch):
    pytest.importorskip("triton", reason="Triton runs on Linux alone")
    right = gpu_kernels.int4_triton.experts
    monkeypatch.setattr(
        gpu_kernels.int4_triton,
        "experts",
        lambda x, s, *rest: s[:, None] * right(x, s * 0 + 1, *rest),
    )
    run = small_run()
    gpu_kernels.check(run, gpu_kernels.layer_of(CONFIG, DEVICE), tuned=False)
    assert run.failed and not of(run.rows, "failed")
    assert [row["passed"] for row in of(run.rows, "kernels", check="experts")] == [False] * 3
    assert all(row["passed"] for row in run.rows if row["check"] != "experts")


def test_a_section_that_fails_leaves_the_others_alive(monkeypatch, tmp_path):
    def broken(*args):
        raise RuntimeError("device-side assert")

    monkeypatch.setattr(gpu_decode, "ttft", broken)
    monkeypatch.setattr(gpu_kernels, "measure", broken)
    tpot = gpu_decode.tpot
    monkeypatch.setattr(
        gpu_decode, "tpot", lambda d, *rest: broken() if d.rows == 1 else tpot(d, *rest)
    )
    run = small_run(file=tmp_path / "run.json")
    gpu.measure(run, ("kernels", "decode", "prefill"), **SMALL)
    rows = json.loads(run.file.read_text())["rows"]
    failed = of(rows, "failed")
    assert [row["what"] for row in failed] == [
        *("kernels", "decode, batch 1, context 16", "decode, batch 1, context 100"),
        *("prefill 8", "prefill 64"),
    ]
    assert "device-side assert" in failed[0]["error"] and "test_bench_gpu.py" in failed[0]["where"]
    assert [row["context"] for row in of(rows, "decode")] == [16, 100] and run.failed


def test_numbers_that_json_does_not_have_lose_nothing(tmp_path):
    run = small_run(file=tmp_path / "run.json")
    run.keep("kernels", error=float("nan"), samples=[1.0, float("inf")])
    run.keep("decode", mbu=0.5)
    rows = json.loads(run.file.read_text())["rows"]
    assert rows[0] == {"section": "kernels", "error": "nan", "samples": [1.0, "inf"]}
    assert rows[1]["mbu"] == 0.5


ENDED = """
import sys, time, torch
from pathlib import Path
from tests.bench import gpu, gpu_load
from tests.test_bench_gpu import CONFIG, SMALL, Run
gpu_load.measure = lambda run: (print("loading", flush=True), time.sleep(100))
run = Run("cpu", torch.float16, CONFIG, "blocks", 1000, 4, 2, file=Path(sys.argv[1]))
gpu.measure(run, ("decode", "load"), **SMALL)
"""


def test_a_run_that_is_ended_leaves_the_rows_that_it_had(tmp_path):
    file = tmp_path / "run.json"
    command = [sys.executable, "-c", ENDED, str(file)]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as process:
        told = iter(process.stdout.readline, "loading\n")
        printed = [line.split()[0] for line in told]
        process.send_signal(signal.SIGTERM)
    assert process.returncode not in (0, 1)
    sections = [row["section"] for row in json.loads(file.read_text())["rows"]]
    assert sections == printed and sections.count("decode") == 4


def test_no_time_left_leaves_sections_out_and_says_so():
    run = small_run(limit=0.0)
    gpu.measure(run, gpu.SECTIONS, **SMALL)
    assert [row["what"] for row in of(run.rows, "left out", why="time")] == [*gpu.SECTIONS]
    assert {row["section"] for row in run.rows} == {"memory", "left out"}


def test_what_does_not_fit_is_left_out_by_name(monkeypatch):
    model = synthetic_int4(CONFIG, dtype=torch.float16)
    room = gpu_run.bytes_of(model) + 17 * kv_bytes(CONFIG, 100)
    monkeypatch.setattr(gpu_decode, "CAP", room + gpu_decode.WORKSPACE)
    run = small_run()
    gpu.measure(run, ("decode",), (1, 32), (16, 100), (), ())
    assert [row["context"] for row in of(run.rows, "decode", batch=1)] == [16, 100]
    (out,) = of(run.rows, "left out")
    assert (out["why"], out["batch"], out["context"]) == ("memory", 32, 100)


def test_decoders_are_given_back(monkeypatch):
    made = []

    class Seen(StaticDecoder):
        def __init__(self, *args):
            super().__init__(*args)
            made.append(weakref.ref(self))
            self.circle = self

    monkeypatch.setattr(gpu_decode, "StaticDecoder", Seen)
    run = small_run()
    gc.disable()  # what holds itself in a circle must not wait until Python looks for such
    try:
        gpu.measure(run, ("decode", "long", "prefill"), **SMALL)
        alive = [ref for ref in made if ref() is not None]
    finally:
        gc.enable()
    assert len(made) == 4 + 2 + 1 and not alive
    assert run.held == {}


@pytest.mark.parametrize("what", ["experts", "blocks", "all"])
def test_bytes_are_counted_as_the_model_is_kept(what):
    model = synthetic_int4(CONFIG, what)
    assert scheme_of(model) == gpu_run.SCHEMES[what]
    assert scheme_of(ml4.Llama4(CONFIG)) == "bf16"


def test_without_a_gpu_the_command_says_so(capsys, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert gpu.main(["--only", "decode"]) == 1
    assert "no CUDA device" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        gpu.parse(["--only", "speed"])
    assert gpu.parse(["--json", "out/gpu.json"]).folder == Path("out").resolve()


def test_the_command_measures_scout_within_its_limit_and_says_on_what(monkeypatch, tmp_path):
    gpu_like = SimpleNamespace(name="a GPU of this test", total_memory=141_000_000_000)
    capped, file = [], tmp_path / "out" / "gpu.json"
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda i: gpu_like)
    monkeypatch.setattr(torch.cuda, "set_per_process_memory_fraction", capped.append)
    monkeypatch.setattr(gpu.tqdm, "__init__", gpu.tqdm.__init__)  # put back afterwards

    def measure(run, sections, **sizes):
        assert 0 < run.left < 500 and run.config.layers == 48 and run.folder == file.parent
        assert sections == [*gpu.SECTIONS] and sizes["contexts"] == gpu.CONTEXTS
        assert gpu.tqdm(range(3), file=io.StringIO()).disable  # no bars between the rows
        run.keep("kernels", passed=False)

    monkeypatch.setattr(gpu, "measure", measure)
    monkeypatch.setattr(gpu, "BEGAN", time.monotonic() - 5)
    assert gpu.main(["--json", str(file)]) == 1  # a check was wrong
    kept = json.loads(file.read_text())
    assert kept["gpu"] == gpu_like.name and capped == [pytest.approx(80 / 141)]
    assert {"date", "commit", "cuda", "driver", "versions"} <= kept.keys() and kept["seconds"] >= 5

"""The benchmark's machinery: it refuses wrong results, takes turns, and keeps what it found."""

import json

import pytest
import torch

from minillama4.files import write_json
from tests.bench import llamacpp, moe, report, training
from tests.bench.__main__ import SECTIONS, describe, measure, parse
from tests.bench.plan import Plan, quick
from tests.bench.report import Row, provenance, table
from tests.bench.timing import Candidate, ResultsDiffer, Timing, check_equal, take_turns

TINY = Plan(
    threads=1,
    seconds=0.001,
    rounds=2,
    fewest=1,
    width=32,
    hidden=32,
    experts=(1, 4),
    growth=4,
    tokens=(20,),
    train_experts=(4,),
    train_tokens=(20,),
    models=("nano",),
    train_shape=(("nano", 2, 40),),
    prefill=(40,),
    decode_batches=(2,),
    prompt=31,
    steps=3,  # over a chunk border
    heads=(4, 2, 16),
    chunk=32,
    lengths=(32, 80),
    dense_lengths=(80,),
    memory_lengths=(),
)


def row(ours=(1.0, 3.0, 2.0), theirs=(20.0,), **more):
    return Row("moe", "a case", Timing(ours), "transformers", Timing(theirs), 2, 1e-7, **more)


@pytest.fixture(scope="module")
def rows():
    return measure(TINY, list(SECTIONS))


def test_every_section_measures_equal_results(rows):
    always = set(SECTIONS) - {"llamacpp"}
    assert {r.section for r in rows} == (set(SECTIONS) if llamacpp.INSTALLED else always)
    against = [r for r in rows if r.against.startswith("transformers")]
    assert {r.section for r in against} == always
    assert all(r.difference < 1e-4 for r in against if r.section != "int4")
    assert all(r.ours.median > 0 and r.theirs.median > 0 for r in rows)


def test_wrong_results_are_not_timed(monkeypatch):
    def output_scaled(experts, tokens, score, choice):  # the most common mistake
        return score * moe.looped_experts(experts, tokens, torch.ones_like(score), choice)

    monkeypatch.setattr(moe, "naive_experts", output_scaled)
    with pytest.raises(ResultsDiffer, match="naive"):
        moe.forms(TINY, 4, 20, train=False)


def test_wrong_gradients_are_not_timed(monkeypatch):
    exact = training.gradients

    def one_wrong(ours, theirs):
        mine, other = exact(ours, theirs)
        return [*mine[:-1], mine[-1] * 1.001], other

    monkeypatch.setattr(training, "gradients", one_wrong)
    with pytest.raises(ResultsDiffer, match="step of nano"):
        training.step(TINY, "nano", 2, 40)


def test_check_equal_on_what_it_must_refuse():
    one = torch.ones(3)
    assert check_equal("same", [one], [one]) == 0
    for wrong in (one + 1e-3, one * float("nan"), torch.ones(4)):
        with pytest.raises(ResultsDiffer):
            check_equal("wrong", [wrong], [one])


def test_candidates_take_turns_and_only_run_counts(monkeypatch):
    now, calls = [0.0], []
    monkeypatch.setattr("tests.bench.timing.clock", lambda: now[0])

    def work(name, seconds):
        calls.append(name)
        now[0] += seconds

    slow = Candidate(lambda _: work("slow", 3.0), lambda: work("prepare", 100.0))
    times = take_turns({"slow": slow, "fast": Candidate(lambda _: work("fast", 1.0))}, 4, 7.0, 1)
    assert times["slow"].samples == (3.0, 3.0)  # as many as fit into 7 s
    assert times["fast"].samples == (1.0,) * 4
    assert [c for c in calls if c != "prepare"][4:] == ["slow", "fast"] * 2 + ["fast"] * 2


def test_verdicts():
    assert row().factor == 10
    assert row(target=10).verdict == "met" and row(target=10.1).verdict == "missed"
    assert row(kind="cost").factor == pytest.approx(0.1)
    assert row(kind="cost", target=0.05).verdict == "missed" and row().verdict == ""


def test_table_is_aligned_and_markdown_has_equal_cells():
    lines = table([row(target=10), row(note="1 MiB against 2 MiB")]).splitlines()
    assert len(lines) == 4 and "2 s -50..+50 %" in lines[2] and "20 s once" in lines[2]
    assert lines[0].index("against") == lines[2].index("transformers")
    cells = {line.count("|") for line in table([row(), row()], markdown=True).splitlines()}
    assert cells == {len(report.HEAD) + 1}


def test_json_is_written_whole_or_not_at_all(tmp_path):
    file = tmp_path / "cpu.json"
    about = provenance(["python -m tests.bench", "--quick"], 2)
    write_json(file, about | {"results": [row().record()]})
    read = json.loads(file.read_text(encoding="utf-8"))
    assert read["results"][0]["ours"] == [1, 3, 2] and read["command"].endswith("--quick")
    assert "torch" in describe(read)
    with pytest.raises(ValueError):
        write_json(file, {"results": float("nan")})
    assert json.loads(file.read_text(encoding="utf-8")) == read
    assert [f.name for f in tmp_path.iterdir()] == ["cpu.json"]


def test_options_are_checked_at_once(tmp_path, capsys):
    assert parse(["--only", "train,moe"]).only == ["moe", "train"]
    for wrong in (
        ["--only", "mo"],
        ["--threads", "0"],
        ["--json", str(tmp_path / "no" / "f.json")],
    ):
        with pytest.raises(SystemExit):
            parse(wrong)
    assert "there are moe, train" in capsys.readouterr().err


def test_the_quick_form_is_the_smaller_one():
    short, full = quick(2), Plan(2)
    titles = [sum(len(list(cases(plan))) for cases in SECTIONS.values()) for plan in (short, full)]
    assert titles[0] < titles[1]

"""Experiments: pairs by seed, honest intervals, nothing lost when one is interrupted."""

import json
import statistics

import matplotlib
import matplotlib.pyplot as plt
import pytest
import torch

from minillama4.explore import Effect, Runs, plots, repeat

matplotlib.use("agg")
CONDITIONS = {
    "control": lambda seed: {"loss": 2.0 + seed, "curve": [seed, seed + 1], "step": [0, 10]},
    "treated": lambda seed: {"loss": 1.5 + seed, "curve": [seed, seed + 2], "step": [0, 10]},
}


def test_every_run_is_kept_and_effects_are_paired():
    runs = repeat(CONDITIONS, seeds=(0, 1, 2))
    assert runs.values("treated", "loss") == [1.5, 2.5, 3.5]
    assert runs.mean("control", "loss") == 3.0
    effect = runs.effect("treated", "control", "loss")
    assert (effect.mean, effect.low, effect.high, effect.seeds) == (-0.5, -0.5, -0.5, 3)
    assert effect.certain  # though the seeds differ by far more than the conditions
    assert all(row["seconds"] >= 0 for rows in runs.results.values() for row in rows)


def test_the_interval_is_students():
    assert repr(Effect.of([1.0, 2.0, 3.0])) == "+2 (95 %: -0.484 to +4.48, 3 seeds)"
    assert not Effect.of([1.0, 2.0, 3.0]).certain
    many = Effect.of([0.0, 1.0] * 10)  # t of 19 degrees is 2.093
    assert many.high - 0.5 == pytest.approx(2.093 * statistics.stdev([0, 1] * 10) / 20**0.5, 0.01)
    with pytest.raises(ValueError, match="two seeds"):
        Effect.of([1.0])


def test_it_covers_the_truth_nineteen_times_in_twenty():
    draw = torch.Generator().manual_seed(0)
    samples = torch.randn(4000, 4, generator=draw)
    inside = [effect.low <= 0 <= effect.high for effect in map(Effect.of, samples.tolist())]
    assert statistics.fmean(inside) == pytest.approx(0.95, abs=0.012)


def test_what_is_saved_is_read_again_with_where_it_came_from(tmp_path):
    runs = repeat(CONDITIONS, seeds=range(2))
    runs.save(tmp_path / "a.json", "python a.py")
    again = Runs.load(tmp_path / "a.json")
    assert again.results == runs.results and again.seeds == (0, 1)
    assert again.about["command"] == "python a.py" and again.about["torch"] == torch.__version__
    assert [file.name for file in tmp_path.iterdir()] == ["a.json"]
    for text in ('{"seeds": [1]}', '{"seeds": [1], "results": [1], "about": {}}', "{", "\xff"):
        (tmp_path / "b.json").write_text(text, encoding="latin-1")
        with pytest.raises(ValueError, match=r"b\.json holds no experiment"):
            Runs.load(tmp_path / "b.json")


@pytest.mark.parametrize("seeds", [(0,), (0, 1, 2)])
def test_a_file_with_too_few_or_too_many_runs_is_refused_by_name(tmp_path, seeds):
    repeat(CONDITIONS, seeds=(0, 1)).save(file := tmp_path / "a.json", "python a.py")
    record = json.loads(file.read_text())
    record["results"]["treated"] = repeat(CONDITIONS, seeds).results["treated"]
    file.write_text(json.dumps(record))
    with pytest.raises(
        ValueError, match=rf"a\.json has 2 seeds but {len(seeds)} runs of 'treated'"
    ):
        Runs.load(file)


def test_an_interrupted_experiment_goes_on_where_it_stopped(tmp_path):
    done = []

    def fails_once(seed):
        done.append(seed)
        if len(done) == 2:
            raise KeyboardInterrupt
        return {"loss": float(seed)}

    keep = tmp_path / "keep.json"
    with pytest.raises(KeyboardInterrupt):
        repeat({"a": fails_once}, keep=keep)
    assert list(json.loads(keep.read_text())) == ["a/0"]
    assert repeat({"a": fails_once}, keep=keep).values("a", "loss") == [0.0, 1.0, 2.0]
    assert done == [0, 1, 1, 2]


def test_a_run_that_diverged_is_a_result(tmp_path):
    measured = {"loss": float("nan"), "curve": [1.0, float("inf")], "at": torch.tensor([1, 2])}
    runs = repeat({"a": lambda seed: measured}, seeds=(0, 1), keep=tmp_path / "keep.json")
    assert runs.values("a", "loss") == [None, None]
    assert runs.results["a"][0]["curve"] == [1.0, None] and runs.values("a", "at")[0] == [1, 2]
    runs.save(tmp_path / "a.json", "python a.py")
    for use in (lambda: runs.effect("a", "a", "loss"), lambda: runs.mean("a", "loss")):
        with pytest.raises(ValueError, match="'loss' of 'a' with seed 0 is None"):
            use()
    with pytest.raises(TypeError, match="'curve' of 'a' with seed 0 is list"):
        runs.effect("a", "a", "curve")


@pytest.mark.parametrize("lost", [float("nan"), float("inf"), -float("inf")])
def test_an_effect_names_the_run_that_has_none(lost):
    with pytest.raises(ValueError, match=f"Number 2 of 3 is {lost}"):
        Effect.of([1.0, lost, 2.0])
    rows = {"well": [{"loss": 1.0}, {"loss": 2.0}], "ill": [{"loss": 1.0}, {"loss": lost}]}
    for pair in (("well", "ill"), ("ill", "well")):
        with pytest.raises(ValueError, match=f"'loss' of 'ill' with seed 7 is {lost}"):
            Runs((5, 7), rows).effect(*pair, "loss")


def test_what_cannot_be_kept_is_told_at_once_and_where():
    wrong = {
        "'a' with seed 0, 'model' is Linear": {"model": torch.nn.Linear(1, 1)},
        "returned float": 1.0,
        "the run's own time": {"seconds": 1.0},
    }
    for message, row in wrong.items():
        with pytest.raises((TypeError, ValueError), match=message):
            repeat({"a": lambda seed, row=row: row})
    with pytest.raises(ValueError, match="twice"):
        repeat(CONDITIONS, seeds=(1, 1))


def test_a_file_that_is_no_unfinished_experiment_is_left_alone(tmp_path):
    file = tmp_path / "a.json"
    for text in ('{"seeds": [0], "results": {}}', '{"a/0": '):
        file.write_text(text)
        with pytest.raises(ValueError, match=r"a\.json"):
            repeat(CONDITIONS, keep=file)
        assert file.read_text() == text


def test_unknown_names_are_told():
    runs = repeat(CONDITIONS, seeds=(0,))
    with pytest.raises(LookupError, match="there are control, treated"):
        runs.values("other", "loss")
    with pytest.raises(LookupError, match="measured no 'accuracy', but loss"):
        runs.values("control", "accuracy")
    with pytest.raises(ValueError, match="at least"):
        repeat({})


def test_figures_draw_every_run_and_the_mean():
    runs = repeat(CONDITIONS, seeds=(0, 1, 2))
    figure, (left, right) = plt.subplots(1, 2)
    plots.plot_runs(left, runs, "loss")
    dots = [line for line in left.lines if line.get_marker() == "o"]
    assert [list(line.get_ydata()) for line in dots] == [[2, 3, 4], [1.5, 2.5, 3.5]]
    assert [text.get_text() for text in left.get_xticklabels()] == ["control", "treated"]
    plots.plot_curves(right, runs, "curve")
    assert len(right.lines) == 2 * (3 + 1)
    assert list(right.lines[3].get_ydata()) == [1, 2] and right.lines[3].get_label() == "control"
    plt.close(figure)

"""The training loop: it learns, it resumes exactly, and two processes do what one does."""

import json
import math
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import minillama4 as ml4
from minillama4.train.loop import TrainSettings, make_optimizer, next_token_loss, rate, train

ROOT = Path(__file__).resolve().parents[1]
TEXT = torch.arange(4000) * 7 % 64  # a pattern: the next token follows from the last


def batches(step, rank=0, world=1):
    draw = torch.Generator().manual_seed(step)
    starts = torch.randint(0, len(TEXT) - 40, (8,), generator=draw)[rank::world]
    return torch.stack([TEXT[s : s + 33] for s in starts])


def fresh():
    torch.manual_seed(0)
    return ml4.Llama4(ml4.Llama4Config.nano(vocab_size=64, patch_token=63))


SETTINGS = TrainSettings(steps=30, warmup=5, save_every=7, validate_every=10)


def same(one, other):
    pairs = zip(one.parameters(), other.parameters(), strict=True)
    return all(torch.equal(a, b) for a, b in pairs)


def test_it_learns_and_validates():
    model = fresh()
    held_out = batches(10_000)
    history = train(
        model, batches, SETTINGS, validate=lambda m: {"text": next_token_loss(m, held_out).item()}
    )
    assert [row["step"] for row in history] == list(range(30))
    assert history[0]["loss"] == pytest.approx(math.log(64), abs=0.2)  # knows nothing yet
    assert history[-1]["loss"] < 2
    assert [r["step"] + 1 for r in history if "validation" in r] == [10, 20, 30]
    assert history[-1]["validation"]["text"] < 2
    assert json.dumps(history)  # plain numbers, ready to be kept


@pytest.mark.parametrize("stop", [7, 11, 29])
def test_a_resumed_run_is_the_run_never_stopped(tmp_path, stop):
    whole, pieces = fresh(), fresh()
    history = train(whole, batches, SETTINGS)
    train(pieces, batches, SETTINGS, folder=tmp_path, until=stop)
    resumed = fresh()
    again = train(resumed, batches, SETTINGS, folder=tmp_path)
    assert same(whole, resumed) and not same(pieces, resumed)
    assert [r["loss"] for r in history] == [r["loss"] for r in again]
    assert train(fresh(), batches, SETTINGS, folder=tmp_path) == again  # finished: nothing to do


def test_a_loss_that_draws_random_numbers_resumes_too(tmp_path):
    def noisy(model, tokens):
        return next_token_loss(model, tokens) * (1 + 0.1 * torch.rand(()))

    whole, resumed = fresh(), fresh()
    before = torch.random.get_rng_state()
    train(whole, batches, SETTINGS, loss=noisy)
    assert torch.equal(before, torch.random.get_rng_state())  # the caller's stream is untouched
    train(fresh(), batches, SETTINGS, loss=noisy, folder=tmp_path, until=10)
    train(resumed, batches, SETTINGS, loss=noisy, folder=tmp_path)
    assert same(whole, resumed)


def test_other_settings_do_not_resume(tmp_path):
    train(fresh(), batches, SETTINGS, folder=tmp_path, until=7)
    other = TrainSettings(steps=31, warmup=5, save_every=7, validate_every=10)
    with pytest.raises(ValueError, match=r"other settings \(steps\)"):
        train(fresh(), batches, other, folder=tmp_path)


def test_a_damaged_state_is_named(tmp_path):
    train(fresh(), batches, SETTINGS, folder=tmp_path, until=7)
    file = tmp_path / "training.pt"
    file.write_bytes(file.read_bytes()[:1000])
    with pytest.raises(ValueError, match=r"training\.pt cannot be read"):
        train(fresh(), batches, SETTINGS, folder=tmp_path)


def test_a_failed_save_leaves_the_older_state(tmp_path, monkeypatch):
    train(fresh(), batches, SETTINGS, folder=tmp_path, until=7)
    old = (tmp_path / "training.pt").read_bytes()

    def fail(state, file):
        Path(file).write_bytes(b"half")
        raise OSError("disk full")

    monkeypatch.setattr(torch, "save", fail)
    with pytest.raises(OSError, match="disk full"):
        train(fresh(), batches, SETTINGS, folder=tmp_path)
    assert (tmp_path / "training.pt").read_bytes() == old


def test_divergence_is_told_before_it_spoils_the_weights():
    def explode(model, tokens):
        return next_token_loss(model, tokens) * float("nan")

    model, untouched = fresh(), fresh()
    with pytest.raises(FloatingPointError, match=r"step 0.*learning_rate"):
        train(model, batches, SETTINGS, loss=explode)
    assert same(model, untouched)


def test_rate_warms_up_and_falls():
    settings = TrainSettings(steps=100, learning_rate=1.0, final_rate=0.1, warmup=10)
    rates = [rate(step, settings) for step in range(100)]
    assert rates[0] == pytest.approx(0.1) and rates[9] == rates[10] == pytest.approx(1.0)
    assert rates[:10] == sorted(rates[:10]) and rates[10:] == sorted(rates[10:], reverse=True)
    assert rates[55] == pytest.approx(0.55) and rates[-1] == pytest.approx(0.1, abs=1e-3)


def test_decay_pulls_on_matrices_only():
    model = fresh()
    decayed, kept = make_optimizer(model, SETTINGS).param_groups
    assert decayed["weight_decay"] > 0 and kept["weight_decay"] == 0
    assert {id(p) for p in kept["params"]} == {
        id(p) for n, p in model.named_parameters() if n.endswith("norm.weight")
    }


@pytest.mark.parametrize("bad", [{"steps": 0}, {"learning_rate": -1.0}, {"clip": 0}])
def test_settings_are_checked(bad):
    with pytest.raises(ValueError, match=next(iter(bad))):
        TrainSettings(**({"steps": 1} | bad))


WORKER = """
import sys, torch
sys.path[:0] = {path}
from tests.test_train_loop import SETTINGS, batches, fresh
from minillama4.train.loop import train
from minillama4.train.processes import join_processes, process_rank
torch.set_num_threads(1)
with join_processes():
    rank, world = process_rank()
    model = fresh()
    history = train(model, lambda step: batches(step, rank, world), SETTINGS)
    if rank == 0:
        torch.save(([r["loss"] for r in history], model.state_dict()), sys.argv[1])
"""


def test_two_processes_do_what_one_does(tmp_path):
    script, result = tmp_path / "worker.py", tmp_path / "result.pt"
    script.write_text(WORKER.format(path=[str(ROOT)]))
    env = os.environ | {"OMP_NUM_THREADS": "1"}
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    subprocess.run([*launch, script, result], check=True, env=env, timeout=120, cwd=tmp_path)
    losses, weights = torch.load(result, weights_only=True)
    alone = fresh()
    history = train(alone, batches, SETTINGS)
    torch.testing.assert_close(
        torch.tensor(losses), torch.tensor([r["loss"] for r in history]), rtol=1e-4, atol=1e-4
    )
    for name, value in alone.state_dict().items():
        torch.testing.assert_close(weights[name], value, rtol=1e-2, atol=2e-3)


def test_until_0_trains_nothing():
    model, untouched = fresh(), fresh()
    assert train(model, batches, SETTINGS, until=0) == [] and same(model, untouched)


@pytest.mark.parametrize("changed", ["about", "model"])
def test_other_data_or_another_model_do_not_resume(tmp_path, changed):
    train(fresh(), batches, SETTINGS, folder=tmp_path, until=7, about={"rows": 8})
    model = fresh()
    if changed == "model":
        model = ml4.Llama4(model.config.replace(chunk=8))
    before = [p.clone() for p in model.parameters()]
    about = {"rows": 8 if changed == "model" else 4}
    with pytest.raises(ValueError, match="model" if changed == "model" else "rows"):
        train(model, batches, SETTINGS, folder=tmp_path, about=about)
    assert all(torch.equal(p, q) for p, q in zip(before, model.parameters(), strict=True))


def test_a_foreign_state_is_named(tmp_path):
    torch.save({"weights": torch.ones(2)}, tmp_path / "training.pt")
    with pytest.raises(ValueError, match=r"training\.pt cannot be read"):
        train(fresh(), batches, SETTINGS, folder=tmp_path)


def test_a_failing_validation_leaves_the_model_in_training_mode():
    model = fresh()
    with pytest.raises(ZeroDivisionError):
        train(model, batches, SETTINGS, validate=lambda m: 1 / 0)
    assert model.training

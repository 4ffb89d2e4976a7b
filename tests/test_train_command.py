"""The training command, as the README gives it, at a size that takes seconds."""

import json

import pytest
import torch

import minillama4 as ml4
from minillama4.data.text import DOMAINS
from minillama4.train.__main__ import main

SMALL = ["--preset", "nano", "--batch", "6", "--length", "64", "--tokens-per-domain", "2000"]


@pytest.fixture(autouse=True)
def threads():
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def run(folder, steps, *more):
    every = ["--validate-every", "4", "--threads", "1", "--device", "cpu"]
    main(["--steps", str(steps), "--warmup", "2", *SMALL, *every, *more, "--out", str(folder)])
    return json.loads((folder / "history.json").read_text())


def test_it_writes_a_model_that_loads_and_a_history(tmp_path, capsys):
    record = run(tmp_path, 8)
    assert len(record["steps"]) == 8
    assert set(record["held_out_loss"]) == {*DOMAINS, "mean"}
    assert record["made_with"]["seed"] == 0 and "out" not in record["made_with"]
    assert record["steps"][-1]["loss"] < record["steps"][0]["loss"]
    model = ml4.load(tmp_path / "model")
    assert model.embed.weight.dtype == torch.bfloat16
    assert model.config.vocab_size == ml4.load_tokenizer().vocab_size
    assert "Held-out loss" in capsys.readouterr().out


def test_the_same_command_again_changes_nothing(tmp_path):
    first = run(tmp_path, 4)
    again = run(tmp_path, 4)
    assert first["steps"] == again["steps"] and first["held_out_loss"] == again["held_out_loss"]


def test_a_seed_is_a_run(tmp_path):
    same, other = run(tmp_path / "a", 3), run(tmp_path / "b", 3, "--seed", "1")
    again = run(tmp_path / "c", 3)
    losses = [[row["loss"] for row in record["steps"]] for record in (same, other, again)]
    assert losses[0] == losses[2] != losses[1]

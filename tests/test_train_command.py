"""The training command, as the README gives it, at a size that takes seconds."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

import minillama4 as ml4
from minillama4.data.text import DOMAINS
from minillama4.train.__main__ import main
from minillama4.train.routing_history import Routing

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


def test_it_notes_who_went_where_while_it_learned(tmp_path):
    run(tmp_path, 6, "--balance", "aux")
    routing = Routing.load(tmp_path / "routing.safetensors")
    assert routing.steps.tolist() == [0, 1, 2, 4, 6]
    assert routing.choice.shape == (5, 4, *routing.tokens.shape)  # four layers
    assert sorted(set(routing.domains.flatten().tolist())) == list(range(len(DOMAINS)))
    assert (routing.domains == routing.domains[:, :1]).all()  # a row, a domain
    model = ml4.load(tmp_path / "model", dtype=torch.float32)  # rounded to bf16: not all agree
    with torch.no_grad(), ml4.trace(model) as seen:
        model(routing.tokens)
    last = torch.stack([seen.router[layer].choice[..., 0] for layer in seen.router])
    assert (last == routing.choice[-1]).float().mean() > 0.95


def test_a_resumed_run_keeps_its_routing_history(tmp_path, monkeypatch):
    run(tmp_path / "whole", 6, "--balance", "aux")
    from minillama4.train import __main__ as command

    stopped = command.train
    until = {"until": 3}
    monkeypatch.setattr(command, "train", lambda *a, **k: stopped(*a, **k, **until))
    run(tmp_path / "pieces", 6, "--balance", "aux")
    until["until"] = 6
    run(tmp_path / "pieces", 6, "--balance", "aux")
    whole, pieces = (
        Routing.load(tmp_path / n / "routing.safetensors") for n in ("whole", "pieces")
    )
    assert torch.equal(whole.steps, pieces.steps) and torch.equal(whole.choice, pieces.choice)


def test_a_file_that_is_no_routing_history_is_told(tmp_path):
    (tmp_path / "a.safetensors").write_bytes(b"no tensors here")
    with pytest.raises(ValueError, match="holds no routing history"):
        Routing.load(tmp_path / "a.safetensors")


def test_a_damaged_routing_history_is_told_and_nothing_changes(tmp_path):
    first = run(tmp_path, 4)
    file = tmp_path / "routing.safetensors"
    file.write_bytes(file.read_bytes()[:-100])
    before = {f: f.read_bytes() for f in tmp_path.rglob("*") if f.is_file()}
    with pytest.raises(ValueError, match=r"routing\.safetensors holds .* move it away"):
        run(tmp_path, 4)
    assert before == {f: f.read_bytes() for f in tmp_path.rglob("*") if f.is_file()}
    file.unlink()
    assert run(tmp_path, 4)["steps"] == first["steps"] and not file.exists()


def test_a_routing_history_with_steps_missing_is_told(tmp_path):
    run(tmp_path, 2)
    tensors = load_file(file := tmp_path / "routing.safetensors")
    save_file(tensors | {"steps": tensors["steps"][:-1]}, file)
    with pytest.raises(ValueError, match=r"2 steps, 3 sets of choices\)\. .* move it away"):
        run(tmp_path, 2)


def test_a_bias_is_told_to_be_lost(tmp_path, capsys):
    run(tmp_path, 3, "--balance", "bias")
    assert "selection bias" in capsys.readouterr().out


@pytest.mark.parametrize("preset", ["mini_maverick", "mini_dense"])
def test_the_sisters_of_mini_use_as_much_per_token(preset):
    mini, sister = ml4.Llama4Config.mini(), getattr(ml4.Llama4Config, preset)()
    routers = {"mini_maverick": 0, "mini_dense": mini.parameters().text["routers"]}[preset]
    assert sister.parameters().active == mini.parameters().active - routers

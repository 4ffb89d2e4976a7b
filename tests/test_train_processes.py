"""Several processes: which device is whose, and how they talk; no GPU is needed to see it."""

import pytest
import torch
import torch.distributed as dist

import minillama4 as ml4
from minillama4.train import processes
from minillama4.train.__main__ import main


@pytest.fixture
def fourth_of_four(monkeypatch):
    """The second process of the second machine of two, with GPUs; what it asks torch for."""
    asked = []
    for name, value in {"RANK": 3, "WORLD_SIZE": 4, "LOCAL_RANK": 1}.items():
        monkeypatch.setenv(name, str(value))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "set_device", lambda device: asked.append(str(device)))
    monkeypatch.setattr(dist, "init_process_group", asked.append)
    monkeypatch.setattr(dist, "destroy_process_group", lambda: asked.append("left"))
    return asked


@pytest.mark.parametrize(
    "device, asks",
    [
        ("cuda", ["cuda:1", "nccl", "left"]),
        ("cuda:0", ["cuda:0", "nccl", "left"]),
        ("cpu", ["gloo", "left"]),
        (None, ["cuda:1", "nccl", "left"]),
    ],
)
def test_processes_meet_as_their_device_allows(fourth_of_four, device, asks):
    with processes.join_processes(device):
        assert fourth_of_four == asks[:-1]
    assert fourth_of_four == asks


def test_outside_torchrun_there_is_one_process_on_the_first_gpu(monkeypatch):
    for name in ("RANK", "LOCAL_RANK"):
        monkeypatch.delenv(name, raising=False)
    with processes.join_processes("cuda"):
        assert processes.process_rank() == (0, 1) and processes.is_main()
    assert str(processes.local_device("cuda")) == "cuda:0"
    assert str(processes.local_device("cpu")) == "cpu"


@pytest.mark.parametrize("device, asks", [("cuda", "cuda:1"), ("cpu", "cpu")])
def test_the_command_takes_the_gpu_of_its_own_machine(fourth_of_four, monkeypatch, device, asks):
    def stop(model, device):
        raise InterruptedError(str(device))

    monkeypatch.setattr(ml4.Llama4, "to", stop)
    small = ["--preset", "nano", "--length", "16", "--tokens-per-domain", "600", "--threads", "1"]
    with pytest.raises(InterruptedError, match=f"^{asks}$"):
        main([*small, "--device", device, "--out", "unused"])
    assert fourth_of_four[-2:] == ["nccl" if device == "cuda" else "gloo", "left"]

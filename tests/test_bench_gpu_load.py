"""Loading as the GPU's benchmark measures it, at small size: hollow files, numbers that are looked
for, and less of the model where time is short."""

import json

import pytest
import torch

import minillama4 as ml4
from tests.bench import gpu_load
from tests.bench.gpu_run import Run
from tests.test_bench_gpu import CONFIG, DEVICE, of

FOUR = CONFIG.replace(layers=4)


def a_run(folder, what="blocks", limit=1000) -> Run:
    return Run(DEVICE, torch.bfloat16, FOUR, what, limit, folder=folder)


@pytest.fixture
def on_disk(monkeypatch):
    monkeypatch.setattr(gpu_load, "file_system", lambda folder: "ext4")


@pytest.mark.parametrize("what", ["experts", "blocks", "all"])
def test_one_layer_and_then_all_are_loaded_looked_at_and_decoded(what, tmp_path, on_disk):
    run = a_run(tmp_path, what)
    gpu_load.measure(run)
    loaded = [row for row in of(run.rows, "load") if "file_bytes" in row]
    assert [row["layers"] for row in loaded] == [1, 4]
    assert loaded[1]["file_bytes"] == 2 * FOUR.parameters().total
    assert all(row["passed"] and row["differences"] == [] for row in loaded)
    assert all(row["bytes_per_second"] > 0 and row["hollow"] for row in loaded)
    decoded = [row for row in of(run.rows, "load") if "decoded" in row]
    assert [(row["layers"], row["decoded"]) for row in decoded] == [(1, 16), (4, 16)]
    assert all(row["passed"] and 0 <= row["error"] < 0.05 for row in decoded)
    assert not run.failed and not list(tmp_path.iterdir())
    json.dumps(run.rows)


def test_host_memory_is_counted_from_the_start(tmp_path, on_disk):
    if gpu_load.host_memory(new_peak=True) is None:
        pytest.skip("this system does not tell")
    del_later = bytearray(300_000_000)  # an earlier peak, which is nobody's business
    del del_later
    start = gpu_load.host_memory(new_peak=True)
    held = bytearray(b"1") * 50_000_000
    above = gpu_load.host_memory() - start
    assert len(held) <= above + 5_000_000 and above < 200_000_000


@pytest.mark.parametrize("name", ["attention.o.scale", "ffn.experts.down_packed", "ffn.router"])
def test_a_tensor_in_the_wrong_place_is_seen(name, tmp_path, on_disk, monkeypatch):
    load = ml4.load

    def wrong(*args):
        model = load(*args)
        tensor = dict(model.blocks[0].named_parameters()) | dict(model.blocks[0].named_buffers())
        tensor = tensor[f"{name}.weight" if name.endswith("router") else name].detach()
        tensor.copy_(tensor.roll(1, 0))
        return model

    monkeypatch.setattr(gpu_load.ml4, "load", wrong)
    run = a_run(tmp_path)
    gpu_load.measure(run)
    for row in of(run.rows, "load", layers=4):
        if "differences" in row:
            assert name.startswith(row["differences"][0].split("[")[0]) and not row["passed"]
    assert run.failed


def test_with_little_time_left_fewer_layers_are_loaded_and_a_row_says_so(
    tmp_path, on_disk, monkeypatch
):
    loaded, load = [], gpu_load._load
    sizes = [2 * FOUR.replace(layers=n).parameters().total for n in (1, 2, 3)]

    def slow(run, where, layers):
        loaded.append(layers)
        load(run, where, layers)
        return sizes[1] / 400  # at half of this, 1,000 seconds suffice for two layers, not three

    monkeypatch.setattr(gpu_load, "_load", slow)
    for limit, expected in ((940, [1, 2]), (600, [1]), (100_000, [1, 4])):
        loaded.clear()
        run = a_run(tmp_path, limit=limit)
        gpu_load.measure(run)
        assert loaded == expected
        left = [row["layers"] for row in of(run.rows, "left out", what="load", why="time")]
        assert left == [4 - expected[-1]] * (expected[-1] < 4)
        assert of(run.rows, "load")[-1]["layers"] == expected[-1]


def test_layers_for_the_time_at_scouts_size():
    scout = ml4.Llama4Config.scout()
    full = 2 * scout.parameters().total
    assert gpu_load.layers_in(115, 3.8e9, scout) == 48  # 217 GB at half of 3.8 GB/s
    assert full / 1.9e9 == pytest.approx(114.4, abs=0.1)
    assert gpu_load.layers_in(57, 3.8e9, scout) == pytest.approx(24, abs=1)
    assert gpu_load.layers_in(-5, 3.8e9, scout) <= 1


def test_a_folder_in_memory_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(gpu_load, "file_system", lambda folder: "tmpfs")
    with pytest.raises(ValueError, match=r"tmpfs.*--folder"):
        gpu_load.measure(a_run(tmp_path))
    assert not list(tmp_path.iterdir())


def test_the_file_system_is_that_of_the_nearest_mount(tmp_path, monkeypatch):
    mounts = tmp_path / "mounts"
    mounts.write_text("/dev/a / ext4 rw 0 0\ntmpfs /dev/shm tmpfs rw 0 0\n/dev/b /data xfs rw 0 0")
    path = gpu_load.Path
    monkeypatch.setattr(gpu_load, "Path", lambda p: mounts if str(p) == "/proc/mounts" else path(p))
    kinds = [gpu_load.file_system(path(p)) for p in ("/dev/shm/x", "/data", "/dev/shmx", "/")]
    assert kinds == ["tmpfs", "xfs", "ext4", "ext4"]


def test_hollow_files_have_scouts_names_and_weigh_nothing(tmp_path):
    size = gpu_load.write_hollow(ml4.Llama4Config.scout(), tmp_path)
    files = sorted(tmp_path.glob("*.safetensors"))
    assert size == pytest.approx(217.28e9, abs=0.01e9)
    assert sum(file.stat().st_size for file in files) > size
    blocks = sum(file.stat().st_blocks * 512 for file in files)
    assert blocks < 10**7, "this file system stores holes"


def test_the_first_layer_and_what_a_text_needs_outside_are_filled(tmp_path, monkeypatch):
    monkeypatch.setattr(gpu_load, "OUTSIDE", 2 * 10 * FOUR.width)
    gpu_load.write_hollow(FOUR, tmp_path)
    gpu_load.fill(FOUR, tmp_path)
    model = ml4.load(tmp_path)
    first, second = (dict(model.blocks[i].named_parameters()) for i in (0, 1))
    assert all(tensor.ne(0).float().mean() > 0.99 for tensor in first.values())
    assert not any(tensor.any() for tensor in second.values())
    assert model.norm.weight.all() and model.embed.weight[:10].ne(0).float().mean() > 0.99
    assert not model.embed.weight[10:].any() and not torch.equal(
        model.embed.weight[:10], model.head.weight[:10]
    )
    q = model.blocks[0].attention.q.weight
    assert q.std().item() == pytest.approx(0.02, rel=0.1) and len(q.unique(dim=0)) == len(q)

"""*Loading Scout* with MINILLAMA4_SCOUT: the notebook's own cells read a folder in any layout."""

from pathlib import Path

import nbformat
import pytest
import torch

import minillama4 as ml4
from minillama4.serve.int4 import quantize
from minillama4.serve.quantize import is_int4, quantize_model
from tests.bench.gpu_load import write_hollow
from tests.meta_files import write_meta
from tests.reference import random_model

BOOK = Path(__file__).parents[1] / "notebooks" / "05_serving" / "04_loading_scout.ipynb"
LOOK = "load-01", "load-03", "load-05", "load-07", "load-09", "load-10"  # all that take the folder
LOAD, SPOIL = "load-23", "load-21"
SIZES = dict(vocab_size=2048, width=128, layers=3, heads=8, kv_heads=8, head_width=16)
FFN = dict(experts=16, expert_hidden=128, dense_hidden=256, rope_scaling=ml4.RopeScaling())
CONFIG = ml4.Llama4Config(**SIZES, **FFN, patch_token=2047, chunk=32)


def model() -> ml4.Llama4:
    return random_model(CONFIG, 0, torch.bfloat16)


def write(layout: str, folder: Path) -> None:
    whole = quantize_model(model()) if layout == "packed" else model()
    ml4.save(whole, folder, shard_bytes=10**6, tokenizer=ml4.load_tokenizer())
    if layout == "meta":
        for file in [*folder.glob("model*"), folder / "config.json"]:
            file.unlink()
        write_meta(whole, folder, 8)


def content(folder: Path) -> dict[str, tuple]:
    """What is there, and when it was written: a cell that spoils files puts them right again."""
    return {file.name: (file.read_bytes(), file.stat().st_mtime_ns) for file in folder.iterdir()}


def cells(*names: str) -> dict:
    """What those cells of the notebook leave behind."""
    source = {cell.id: cell.source for cell in nbformat.read(BOOK, as_version=4).cells}
    left = {"__name__": "__main__"}
    threads = torch.get_num_threads()
    try:
        for name in names:
            exec(compile(source[name], f"<{name}>", "exec"), left)
    finally:
        torch.set_num_threads(threads)
    return left


@pytest.mark.parametrize("layout", ["hugging_face", "packed", "meta"])
def test_the_cells_read_the_folder_that_is_named(tmp_path, monkeypatch, capsys, layout):
    write(layout, tmp_path / "mine")
    before = content(tmp_path / "mine")
    monkeypatch.setenv("MINILLAMA4_SCOUT", str(tmp_path / "mine"))
    left = cells(*LOOK, SPOIL, LOAD)
    told = capsys.readouterr().out
    assert all(name in told for name in before), "the files are listed"
    assert content(tmp_path / "mine") == before, "the reader's weights are not touched"

    source = model().blocks[2].ffn.experts.gate_up[15]
    if layout == "packed":
        expected = quantize(source.T, 128)
        found = [left["pieces"][f"blocks.2.ffn.experts.gate_up_{k}"] for k in ("packed", "scale")]
    else:
        expected, found = [source], list(left["pieces"].values())
    assert len(found) == len(expected) and all(map(torch.equal, found, expected))

    loaded, late = left["loaded"], quantize_model(model())
    assert left["where"] == tmp_path / "mine" and is_int4(loaded)
    for name, tensor in late.state_dict().items():
        assert torch.equal(loaded.state_dict()[name].cpu(), tensor), name
    assert "here is the small model instead" not in told


@pytest.mark.skipif(torch.cuda.is_available(), reason="there may be room for it")
def test_full_size_files_are_looked_into_and_not_loaded(tmp_path, monkeypatch, capsys):
    """Scout's names, shapes and sizes, in files that are hollow."""
    write_hollow(ml4.Llama4Config.scout(), tmp_path)
    monkeypatch.setenv("MINILLAMA4_SCOUT", str(tmp_path))
    left = cells(*LOOK, LOAD)
    told = capsys.readouterr().out
    (piece,) = left["pieces"].values()
    assert left["layer"] == 47 and piece.shape == (5120, 16384) and not piece.any()
    assert "1133 of 1133 names are there, and 0 that are not needed" in told
    assert left["where"] == left["small_folder"] and "needs 68 GB in Int4" in told


def test_without_it_the_small_folder_is_read(monkeypatch):
    monkeypatch.delenv("MINILLAMA4_SCOUT", raising=False)
    left = cells(*LOOK)
    assert left["folder"] == left["small_folder"]
    (piece,) = left["pieces"].values()
    assert torch.equal(piece, left["model"].blocks[2].ffn.experts.gate_up[15])

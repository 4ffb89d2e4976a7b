"""Every name and shape of Scout and Maverick, in each layout: what the loader would read of them.

Headers without files, and the meta device in place of memory: nothing here has 217 GB.
"""

import io
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import minillama4 as ml4
from minillama4.checkpoint import CheckpointError
from minillama4.checkpoint.hugging_face import HuggingFace
from minillama4.checkpoint.meta import Meta
from minillama4.checkpoint.names import linears
from minillama4.checkpoint.packing import Packing
from minillama4.checkpoint.parts import Stored
from minillama4.checkpoint.reading import QUANTIZE, Arrival
from minillama4.serve.precision import weight_bytes
from minillama4.serve.quantize import is_int4, quantize_model
from tests.meta_files import shards_of, write_meta
from tests.test_checkpoint import RELEASED
from tests.test_checkpoint_layouts import equal, model_of

KINDS = list(RELEASED)
SCHEMES = {"int4": "w4a16", "int4-meta": "int4-meta", "int4-blocks": "int4-blocks"}


def layout_of(kind: type, config, headers: dict, **more):
    """A layout whose files nobody has: its headers are given."""
    layout = object.__new__(kind)
    layout.folder, layout.config, layout.headers = Path("nowhere"), config, headers
    for name, value in more.items():
        setattr(layout, name, value)
    return layout


def hugging_face(name: str, packing: Packing | None = None) -> HuggingFace:
    config, published, _ = RELEASED[name]
    headers = {
        (0, key): Stored("model.safetensors", shape, torch.bfloat16)
        for key, shape in published.items()
    }
    return layout_of(HuggingFace, config, headers, multimodal=True, packing=packing)


def packed(name: str) -> HuggingFace:
    """As RedHatAI's file of Scout: routed and shared experts as unfused Linears (spec, 14)."""
    layout = hugging_face(name, None)
    config, old = layout.config, layout.headers
    headers = {key: stored for key, stored in old.items() if "expert" not in key[1]}
    for layer in config.moe_layers:
        prefix = f"language_model.model.layers.{layer}.feed_forward."
        experts = [f"experts.{e}" for e in range(config.experts)]
        for expert in [*experts, "shared_expert"]:
            for one, (out, into) in (("gate", (8192, 5120)), ("up", (8192, 5120)), ("down", (5120, 8192))):  # noqa: E501  # fmt: skip
                key = f"{prefix}{expert}.{one}_proj.weight_"
                headers[0, key + "packed"] = Stored("a", (out, into // 8), torch.int32)
                headers[0, key + "scale"] = Stored("a", (out, into // 128), torch.bfloat16)
                headers[0, key + "shape"] = Stored("a", (2,), torch.int64)
    ignore = ["re:.*lm_head", "re:.*self_attn", "re:.*router", "re:.*vision_model.*"]
    ignore += ["re:.*multi_modal_projector.*", r"re:.*feed_forward\.(gate|up|down)_proj"]
    layout.headers, layout.packing = headers, Packing(ignore=tuple(ignore))
    shapes = {key: s.shape for (_, key), s in headers.items()}

    def read(shard, key, take):
        assert key.endswith("weight_shape")  # nothing else is read before the check has passed
        out, words = shapes[key.removesuffix("shape") + "packed"]
        return torch.tensor([out, 8 * words])

    layout.read = read
    return layout


def metas(name: str, shards: int) -> Meta:
    config = RELEASED[name][0]
    with torch.device("meta"):
        states = shards_of(ml4.Llama4(config), shards)
    headers = {
        (i, key): Stored(f"consolidated.{i:02d}.pth", tuple(t.shape), torch.bfloat16)
        for i, state in enumerate(states)
        for key, t in state.items()
    }
    files = [f"consolidated.{i:02d}.pth" for i in range(shards)]
    return layout_of(Meta, config, headers, files=files, shards=states)


def read_everything(layout, quantize: tuple[str, str] | None = None) -> ml4.Llama4:
    """As ``load`` does it, on the meta device."""
    plain = layout.skeleton()
    layout.check(plain)
    model = (
        plain
        if quantize is None
        else quantize_model(layout.skeleton(), quantize[0], 128, quantize[1])
    )
    arrival = Arrival(layout, None, "meta", 128, quantize and quantize[1])
    model.load_state_dict(arrival.receive(plain, model), strict=True, assign=True)
    return model


def numbers(layout, model) -> tuple[int, int]:
    """How many numbers are taken from files, and put into the model."""
    taken = put = 0
    for name, expert, shape in layout.units(model):
        for part in layout.parts(name, shape, expert):
            taken += part.numbers()
            put += torch.Size(s.stop - s.start for s in part.put).numel()
    return taken, put


@pytest.mark.parametrize("name", KINDS)
@pytest.mark.parametrize("layout", ["hugging face", "meta 1", "meta 8"])
def test_every_number_of_the_model_is_taken_from_somewhere_once(name, layout):
    stored = hugging_face(name) if layout == "hugging face" else metas(name, int(layout[-1]))
    model = read_everything(stored)
    total = model.config.parameters().total
    assert numbers(stored, model) == (total, total)
    wanted = stored.wanted(model)
    assert wanted == {key: header.shape for key, header in stored.headers.items()}


@pytest.mark.parametrize("name", KINDS)
def test_every_packed_tensor_has_its_place(name):
    stored = packed(name)
    model = read_everything(stored)
    assert is_int4(model) and stored.wanted(model).keys() == stored.headers.keys()
    held = sum(t.nbytes for t in model.state_dict().values())
    assert held == sum(weight_bytes(model.config, "w4a16").values())


@pytest.mark.parametrize("name", KINDS)
@pytest.mark.parametrize("scheme", SCHEMES)
def test_quantised_on_arrival_it_has_the_bytes_that_are_planned(name, scheme):
    model = read_everything(hugging_face(name), QUANTIZE[scheme])
    held = sum(t.nbytes for t in model.state_dict().values())
    assert held == sum(weight_bytes(model.config, SCHEMES[scheme]).values())


def test_a_shard_too_few_is_seen_in_the_shapes():
    stored = metas("scout", 8)
    stored.shards.pop()
    with pytest.raises(CheckpointError, match=r"holds 7 shards, over which .* cannot be split"):
        stored._check_split()
    del stored.shards[4:], stored.files[4:]
    stored.headers = {key: header for key, header in stored.headers.items() if key[0] < 4}
    with pytest.raises(CheckpointError, match="wrongly shaped"):
        stored.check(stored.skeleton())


# ---------------------------------------------------------------------- other people's rules
RULES = [
    "Linear",
    "lm_head",
    "re:.*router",
    "re:.*self_attn",
    "re:.*down_proj$",
    "re:lm",
    "re:head",
]
RULES += ["model.layers.0.self_attn.q_proj", "model.layers.1.feed_forward.experts.0.up_proj"]


@settings(max_examples=60, deadline=None)
@given(st.lists(st.sampled_from(RULES), max_size=4), st.lists(st.sampled_from(RULES), max_size=4))
def test_the_package_matches_the_same_modules(targets, ignore):
    match = pytest.importorskip("compressed_tensors.utils.match")
    with torch.device("meta"):
        names = [name for name, _ in linears(model_of().to("meta"))]
    packing, linear = Packing(tuple(targets), tuple(ignore)), torch.nn.Linear(1, 1)
    for name in names:
        assert packing.packs(name) == match.is_match(name, linear, targets, ignore), name


# ---------------------------------------------------------------------- small files, once more
def test_a_shard_copied_over_another_is_told(tmp_path):
    write_meta(model_of(), tmp_path, 8)
    one, other = tmp_path / "consolidated.02.pth", tmp_path / "consolidated.05.pth"
    other.write_bytes(one.read_bytes())
    with pytest.raises(CheckpointError, match=r"02\.pth and consolidated\.05\.pth are the same"):
        ml4.load(tmp_path)


def test_transformer_engines_leftovers_are_no_tensors(tmp_path):
    extra = {f"layers.0.attention.{n}._extra_state": io.BytesIO(b"te") for n in ("wo", "wqkv")}
    write_meta(model_of(), tmp_path, 2, extra)
    equal(ml4.load(tmp_path), model_of())


@pytest.mark.parametrize("layout", ["hf", "meta"])
def test_a_file_that_cannot_be_mapped_is_not_called_damaged(tmp_path, layout, monkeypatch):
    def refuse(*args, **kwargs):
        raise RuntimeError("unable to mmap 33220242464 bytes from file <x>: Cannot allocate memory")

    if layout == "hf":
        ml4.save(model_of(), tmp_path)
        monkeypatch.setattr("minillama4.checkpoint.hugging_face.safe_open", refuse)
    else:
        write_meta(model_of(), tmp_path, 2)
        monkeypatch.setattr(torch, "load", refuse)
    with pytest.raises(CheckpointError, match=r"cannot be mapped .*overcommit_memory"):
        ml4.load(tmp_path)

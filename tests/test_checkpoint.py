"""Weights in and out: names of the real files, bit-exact round trips, transformers, and damage."""

import json
import os
import re
from pathlib import Path

import pytest
import safetensors
import safetensors.torch
import torch
from hypothesis import given, settings

import minillama4 as ml4
from minillama4.checkpoint import CheckpointError, hf_name, writing
from minillama4.checkpoint.hugging_face import INDEX, SINGLE
from tests.reference import (
    SMALL,
    configs,
    error,
    hf_class,
    hf_logits,
    hf_twin,
    place_patches,
    random_images,
    random_model,
    random_tokens,
    seeds,
    small,
    small_multimodal,
)

ROOT = Path(__file__).resolve().parents[1]
FACTS = Path(os.environ.get("MINILLAMA4_FACTS", ROOT.parent / "shared" / "facts"))

# ------------------------------------------------------------------ names and shapes
TEXT = {
    "embed_tokens.weight": (202048, 5120),
    "norm.weight": (5120,),
}
LAYER = {
    "input_layernorm.weight": (5120,),
    "post_attention_layernorm.weight": (5120,),
    "self_attn.q_proj.weight": (5120, 5120),
    "self_attn.k_proj.weight": (1024, 5120),
    "self_attn.v_proj.weight": (1024, 5120),
    "self_attn.o_proj.weight": (5120, 5120),
}
EXPERTS = {
    "router.weight": (None, 5120),  # None: the number of experts
    "experts.gate_up_proj": (None, 5120, 16384),
    "experts.down_proj": (None, 8192, 5120),
    "shared_expert.gate_proj.weight": (8192, 5120),
    "shared_expert.up_proj.weight": (8192, 5120),
    "shared_expert.down_proj.weight": (5120, 8192),
}
DENSE = {
    "gate_proj.weight": (16384, 5120),
    "up_proj.weight": (16384, 5120),
    "down_proj.weight": (5120, 16384),
}
VISION = {
    "vision_model.class_embedding": (1408,),
    "vision_model.positional_embedding_vlm": (577, 1408),
    "vision_model.patch_embedding.linear.weight": (1408, 588),
    "vision_model.layernorm_pre.weight": (1408,),
    "vision_model.layernorm_pre.bias": (1408,),
    "vision_model.layernorm_post.weight": (1408,),
    "vision_model.layernorm_post.bias": (1408,),
    "vision_model.vision_adapter.mlp.fc1.weight": (4096, 5632),
    "vision_model.vision_adapter.mlp.fc2.weight": (4096, 4096),
    "multi_modal_projector.linear_1.weight": (5120, 4096),
}
VISION_LAYER = {f"self_attn.{x}_proj.weight": (1408, 1408) for x in "qkvo"}
VISION_LAYER |= {f"self_attn.{x}_proj.bias": (1408,) for x in "qkvo"}
VISION_LAYER |= {"mlp.fc1.weight": (5632, 1408), "mlp.fc1.bias": (5632,)}
VISION_LAYER |= {"mlp.fc2.weight": (1408, 5632), "mlp.fc2.bias": (1408,)}
for _norm in ("input_layernorm", "post_attention_layernorm"):
    VISION_LAYER |= {f"{_norm}.weight": (1408,), f"{_norm}.bias": (1408,)}


def published(experts: int, moe_layers) -> dict[str, tuple[int, ...]]:
    """Every name and shape of the released files, from the pattern above (spec, section 10)."""
    text = {f"model.{name}": shape for name, shape in TEXT.items()} | {
        "lm_head.weight": (202048, 5120)
    }
    for i in range(48):
        ffn = EXPERTS if i in moe_layers else DENSE
        layer = LAYER | {f"feed_forward.{name}": shape for name, shape in ffn.items()}
        text |= {f"model.layers.{i}.{name}": shape for name, shape in layer.items()}
    names = {f"language_model.{name}": shape for name, shape in text.items()} | VISION
    for i in range(34):
        names |= {f"vision_model.model.layers.{i}.{n}": shape for n, shape in VISION_LAYER.items()}
    return {n: tuple(experts if x is None else x for x in shape) for n, shape in names.items()}


RELEASED = {
    "scout": (ml4.Llama4Config.scout(), published(16, range(48)), 1133),
    "maverick": (ml4.Llama4Config.maverick(), published(128, range(1, 48, 2)), 1061),
}


def names_and_shapes(config):
    with torch.device("meta"):
        model = ml4.Llama4(config)
    named = model.named_parameters()
    return {hf_name(name, config.vision is not None): tuple(p.shape) for name, p in named}


@pytest.mark.parametrize("name", RELEASED)
def test_names_and_shapes_are_those_of_the_released_files(name):
    config, expected, tensors = RELEASED[name]
    assert len(expected) == tensors
    assert names_and_shapes(config) == expected


@pytest.mark.parametrize("name", RELEASED)
def test_the_pattern_is_the_recorded_list(name):
    file = FACTS / f"hf_keys_{name}.txt"
    if not file.exists():
        pytest.skip(f"the recorded list is not here: {file} (set MINILLAMA4_FACTS to its folder)")
    rows = (line.split("\t") for line in file.read_text().splitlines())
    assert {key: tuple(json.loads(shape)) for key, shape in rows} == RELEASED[name][1]


@settings(max_examples=25, deadline=None)
@given(configs(vision=True))
def test_names_are_those_of_transformers(config):
    for c in (config, config.replace(vision=None)):
        twin = hf_twin(random_model(c, 0))
        theirs = {name: tuple(p.shape) for name, p in twin.named_parameters()}
        assert names_and_shapes(c) == theirs


# ------------------------------------------------------------------ round trips
def identical(one: ml4.Llama4, other: ml4.Llama4) -> bool:
    ours, theirs = dict(one.named_parameters()), dict(other.named_parameters())
    if list(ours) != list(theirs) or one.config != other.config:
        return False
    return all(
        a.dtype == b.dtype and torch.equal(a, b)
        for a, b in zip(ours.values(), theirs.values(), strict=True)
    )


SIZES = [5 * 10**9, 20_000, 1]  # bytes per shard: one file, several, one tensor each


@pytest.mark.parametrize("shard_bytes", SIZES)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("make", [small, small_multimodal])
def test_load_of_save_is_the_identity(tmp_path, make, tied, dtype, shard_bytes):
    model = make(dtype=dtype, tied=tied)
    ml4.save(model, tmp_path / "model", shard_bytes=shard_bytes)
    loaded = ml4.load(tmp_path / "model")
    assert identical(loaded, model)
    assert (loaded.head.weight is loaded.embed.weight) == tied
    tokens = random_tokens(model.config, 2, 20)
    assert torch.equal(loaded(tokens), model(tokens))
    assert all(p.requires_grad for p in loaded.parameters())


@settings(max_examples=25, deadline=None)
@given(configs(vision=True), seeds())
def test_any_model_survives(tmp_path_factory, config, seed):
    folder = tmp_path_factory.mktemp("round")
    for c in (config, config.replace(vision=None)):
        model = random_model(c, seed)
        ml4.save(model, folder, shard_bytes=3_000, overwrite=True)
        assert identical(ml4.load(folder), model)


def test_shards_are_no_larger_than_asked_and_all_in_the_index(tmp_path):
    model = small()
    ml4.save(model, tmp_path / "m", shard_bytes=20_000)
    files = sorted((tmp_path / "m").glob("*.safetensors"))
    index = json.loads((tmp_path / "m" / INDEX).read_text())
    assert len(files) > 3 and files[0].name == f"model-00001-of-{len(files):05}.safetensors"
    assert set(index["weight_map"].values()) == {file.name for file in files}
    assert index["metadata"]["total_size"] == sum(p.numel() * 8 for p in model.parameters())
    for file in files:
        tensors = safetensors.torch.load_file(file)
        size = sum(t.numel() * t.element_size() for t in tensors.values())
        assert size <= 20_000 or len(tensors) == 1
        assert all(index["weight_map"][name] == file.name for name in tensors)


def test_files_carry_the_mark_that_transformers_4_asks_for(tmp_path):
    ml4.save(small(), tmp_path / "m")
    with safetensors.safe_open(tmp_path / "m" / SINGLE, "pt") as file:
        assert file.metadata() == {"format": "pt"}


def test_dtype_and_device(tmp_path):
    model = small(dtype=torch.float32)
    ml4.save(model, tmp_path / "m")
    assert {p.dtype for p in ml4.load(tmp_path / "m").parameters()} == {torch.float32}
    half = ml4.load(tmp_path / "m", dtype=torch.bfloat16)
    assert {p.dtype for p in half.parameters()} == {torch.bfloat16}
    assert torch.equal(half.head.weight, model.head.weight.bfloat16())
    meta = ml4.load(tmp_path / "m", device="meta")
    assert {p.device.type for p in meta.parameters()} == {"meta"}


def test_loading_does_not_touch_the_random_state(tmp_path):
    ml4.save(small(), tmp_path / "m")
    state = torch.random.get_rng_state()
    ml4.load(tmp_path / "m")
    assert torch.equal(torch.random.get_rng_state(), state)


# ------------------------------------------------------------------ transformers
def inputs(config):
    tokens = random_tokens(config, 2, 37)
    if config.vision is None:
        return tokens, None
    tokens = place_patches(config, tokens, (0, 3), (1, 9))
    return tokens, random_images(config, 2, torch.float32)


@torch.no_grad()
@pytest.mark.parametrize("shard_bytes", SIZES[:2])
@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("make", [small, small_multimodal])
def test_transformers_opens_what_we_save(tmp_path, make, tied, shard_bytes):
    model = make(dtype=torch.float32, tied=tied, moe_every=2)
    ml4.save(model, tmp_path / "m", shard_bytes=shard_bytes)
    twin, report = hf_class(model.config).from_pretrained(
        tmp_path / "m", output_loading_info=True, attn_implementation="eager"
    )
    assert not any(report.values()), report
    assert {p.dtype for p in twin.parameters()} == {torch.float32}
    tokens, images = inputs(model.config)
    assert error(model(tokens, images=images), hf_logits(twin, tokens, images)) < 1e-5


@torch.no_grad()
@pytest.mark.parametrize("shard_size", ["5GB", "20KB"])
@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("make", [small, small_multimodal])
def test_we_open_what_transformers_saves(tmp_path, make, tied, shard_size):
    model = make(dtype=torch.float32, tied=tied, moe_every=2)
    hf_twin(model).save_pretrained(tmp_path / "m", max_shard_size=shard_size)
    assert (tmp_path / "m" / INDEX).exists() == (shard_size == "20KB")
    loaded = ml4.load(tmp_path / "m")
    assert identical(loaded, model)


# ------------------------------------------------------------------ files that do not fit
@pytest.fixture
def saved(tmp_path):
    """A folder with a model in several shards, and its index."""
    ml4.save(small(dtype=torch.float32), tmp_path / "m", shard_bytes=10_000)
    return tmp_path / "m"


def edit(folder: Path, change) -> None:
    """Let ``change`` alter the tensors of a folder's first shard."""
    file = min(folder.glob("*.safetensors"))
    tensors = safetensors.torch.load_file(file)
    change(tensors)
    safetensors.torch.save_file(tensors, file, metadata={"format": "pt"})


EMBED = "model.embed_tokens.weight"
ODD = {
    "1 missing: model.embed_tokens.weight": lambda t: t.pop(EMBED),
    "1 unexpected: model.layers.0.extra": lambda t: t.update(
        {"model.layers.0.extra": torch.zeros(3)}
    ),
    r"1 wrongly shaped: model.embed_tokens.weight \[16, 29\] in place of \[29, 16\]": (
        lambda t: t.update({EMBED: t[EMBED].T.contiguous()})
    ),
    "1 missing: model.embed_tokens.weight. 1 unexpected: embedding": (
        lambda t: t.update(embedding=t.pop(EMBED))
    ),
}


@pytest.mark.parametrize(("message", "change"), ODD.items(), ids=ODD)
def test_every_odd_tensor_is_named(saved, message, change):
    edit(saved, change)
    with pytest.raises(CheckpointError, match=message):
        ml4.load(saved)


def test_buffers_that_old_transformers_wrote_are_ignored(saved):
    edit(saved, lambda t: t.update({"model.rotary_emb.inv_freq": torch.zeros(4)}))
    assert identical(ml4.load(saved), small(dtype=torch.float32))


def test_a_long_list_is_cut_short(saved):
    config = json.loads((saved / "config.json").read_text()) | {"num_hidden_layers": 9}
    config |= {"no_rope_layers": [], "moe_layers": None}
    (saved / "config.json").write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match=r"missing: .* and \d+ more"):
        ml4.load(saved)


@pytest.mark.parametrize("kept", [0, 5, 100, 0.5, -1])
def test_a_file_cut_off_anywhere_is_named(saved, kept):
    file = max(saved.glob("*.safetensors"), key=lambda f: f.stat().st_size)
    whole = file.read_bytes()
    file.write_bytes(whole[: int(len(whole) * kept) if isinstance(kept, float) else kept])
    message = "truncated or not a safetensors" if kept else "empty"
    with pytest.raises(CheckpointError, match=f"{file.name} is {message}"):
        ml4.load(saved)


INSTEAD = {  # what downloads leave in the place of weights
    "git lfs pull": b"version https://git-lfs.github.com/spec/v1\noid sha256:12\nsize 345\n",
    "a web page": b"\xef\xbb\xbf\n<!DOCTYPE html><html>Please log in</html>",
    "a web page ": b'<?xml version="1.0"?><Error><Code>AccessDenied</Code></Error>',
    "truncated": b"404 not found",
}


@pytest.mark.parametrize("message", INSTEAD)
def test_a_file_of_another_kind_is_told_by_what_it_is(saved, message):
    file = min(saved.glob("*.safetensors"))
    file.write_bytes(INSTEAD[message])
    with pytest.raises(CheckpointError, match=f"{re.escape(file.name)} is .*{message.strip()}"):
        ml4.load(saved)


def test_a_file_in_place_of_its_folder_is_told(saved):
    with pytest.raises(CheckpointError, match=r"config\.json is a file: give the folder"):
        ml4.load(saved / "config.json")


def test_a_missing_shard_is_named(saved):
    file = min(saved.glob("*.safetensors"))
    file.unlink()
    for folder in (False, True):  # or something else lies in its place
        if folder:
            file.mkdir()
        with pytest.raises(FileNotFoundError, match=f"lacks {file.name}, which {re.escape(INDEX)}"):
            ml4.load(saved)


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", '{"weight_map": []}', '{"weight_map": 3}'])
def test_a_damaged_index_is_named(saved, text):
    (saved / INDEX).write_text(text)
    with pytest.raises(CheckpointError, match=re.escape(INDEX)):
        ml4.load(saved)


@pytest.mark.parametrize("value", ["../other.safetensors", "/etc/passwd", 3, None])
def test_an_index_that_points_elsewhere_is_refused(saved, value):
    index = json.loads((saved / INDEX).read_text())
    index["weight_map"][EMBED] = value
    (saved / INDEX).write_text(json.dumps(index))
    with pytest.raises((CheckpointError, FileNotFoundError), match=re.escape(INDEX)):
        ml4.load(saved)


def test_folders_that_hold_no_weights(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"No config\.json at"):
        ml4.load(tmp_path / "nowhere")
    (tmp_path / "config.json").write_text(json.dumps(small().config.to_hf()))
    with pytest.raises(FileNotFoundError, match=f"neither {SINGLE} nor {INDEX}"):
        ml4.load(tmp_path)


def test_another_model_is_refused(tmp_path):
    ml4.save(small(), tmp_path / "m")
    config = small(width=24).config.to_hf()
    (tmp_path / "m" / "config.json").write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match="wrongly shaped"):
        ml4.load(tmp_path / "m")


# ------------------------------------------------------------------ saving is all or nothing
def contents(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def test_an_existing_model_is_not_overwritten_unasked(saved):
    before = contents(saved.parent)
    with pytest.raises(FileExistsError, match="overwrite=True"):
        ml4.save(small(1), saved)
    assert contents(saved.parent) == before


def test_overwriting_replaces_the_model_and_keeps_the_rest(saved):
    (saved / "tokenizer.model").write_text("words")
    (saved / "notes").mkdir()
    (saved / "notes" / "how.txt").write_text("so")
    other = small(1, dtype=torch.float32, layers=2)
    ml4.save(other, saved, overwrite=True)
    names = [
        "config.json",
        "generation_config.json",
        SINGLE,
        os.path.join("notes", "how.txt"),
        "tokenizer.model",
    ]
    assert sorted(contents(saved)) == sorted(names)  # no shard, no index of the old one
    assert identical(ml4.load(saved), other)
    assert [p.name for p in saved.parent.iterdir()] == ["m"]


@pytest.mark.parametrize("temperature", [True, False])
def test_vllm_is_told_of_the_temperature(tmp_path, temperature):
    """In generation_config.json, where it looks; what else stood there is kept."""
    file = tmp_path / "generation_config.json"
    file.write_text('{"temperature": 0.6, "attn_temperature_tuning": null}')
    ml4.save(small(temperature=temperature), tmp_path)
    said = json.loads(file.read_text())
    assert said == {"temperature": 0.6, "attn_temperature_tuning": temperature}
    before = contents(tmp_path)
    for wrong in ("{", "[]", "null"):
        file.write_text(wrong)
        with pytest.raises(CheckpointError, match=r"generation_config\.json holds no settings"):
            ml4.save(small(), tmp_path, overwrite=True)
        assert contents(tmp_path) == before | {file.name: wrong.encode()}


def test_vllm_is_told_that_no_layer_has_experts(tmp_path):
    ml4.save(small(moe_at=()), tmp_path)
    written = json.loads((tmp_path / "config.json").read_text())
    assert written["interleave_moe_layer_step"] == 0
    assert identical(ml4.load(tmp_path), small(moe_at=()))


STEPS = {  # where an interruption strikes: what fails, and at which call
    "the first shard": (writing, "save_file", 1),
    "the third shard": (writing, "save_file", 3),
    "moving the old one away": (Path, "rename", 1),
    "moving the new one in": (Path, "rename", 2),
}


@pytest.mark.parametrize("kind", [OSError, KeyboardInterrupt])
@pytest.mark.parametrize("step", STEPS)
def test_an_interrupted_save_leaves_the_old_model(saved, monkeypatch, step, kind):
    owner, name, call = STEPS[step]
    before, original, calls = contents(saved.parent), getattr(owner, name), [0]

    def failing(*args, **kwargs):
        calls[0] += 1
        if calls[0] == call:
            raise kind("the disk is full")
        return original(*args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(owner, name, failing)
        with pytest.raises(kind):
            ml4.save(small(1), saved, shard_bytes=10_000, overwrite=True)
    assert calls[0] >= call
    assert contents(saved.parent) == before  # no clutter either
    assert identical(ml4.load(saved), small(dtype=torch.float32))


def test_an_interrupted_first_save_leaves_nothing(tmp_path, monkeypatch):
    def full(*args, **kwargs):
        raise OSError("the disk is full")

    monkeypatch.setattr(writing, "save_file", full)
    with pytest.raises(OSError, match="full"):
        ml4.save(small(), tmp_path / "deep" / "m")
    assert not contents(tmp_path)
    assert list((tmp_path / "deep").iterdir()) == []


def test_saving_makes_folders_and_follows_relative_paths(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    ml4.save(small(), "a/b/c")
    assert identical(ml4.load("a/b/c"), small())
    (tmp_path / "empty").mkdir()
    ml4.save(small(), tmp_path / "empty")  # a folder without a model is no model
    assert identical(ml4.load(tmp_path / "empty"), small())


def test_config_says_the_dtype(saved):
    assert json.loads((saved / "config.json").read_text())["dtype"] == "float32"
    assert ml4.Llama4Config.from_hf(saved) == ml4.Llama4Config(**SMALL)


@pytest.mark.parametrize("overwrite", [False, True])
def test_other_peoples_safetensors_stay(tmp_path, overwrite):
    safetensors.torch.save_file({"a": torch.ones(2)}, tmp_path / "adapter.safetensors")
    (tmp_path / "elsewhere").symlink_to(tmp_path / "nowhere")  # a dangling link, too
    ml4.save(small(), tmp_path, overwrite=overwrite)
    assert (tmp_path / "adapter.safetensors").exists() and (tmp_path / "elsewhere").is_symlink()
    assert identical(ml4.load(tmp_path), small())


def test_a_link_to_a_folder_stays_a_link(tmp_path):
    (tmp_path / "disk").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "disk", target_is_directory=True)
    for _ in range(2):
        ml4.save(small(), tmp_path / "link", overwrite=True)
    assert (tmp_path / "link").is_symlink() and identical(ml4.load(tmp_path / "disk"), small())
    assert sorted(p.name for p in tmp_path.iterdir()) == ["disk", "link"]


def broken(kind: str) -> ml4.Llama4:
    model = small()
    if kind == "tied by hand":
        model.head.weight = model.embed.weight
    elif kind == "untied by hand":
        model = small(tied=True)
        model.head.weight = torch.nn.Parameter(model.head.weight.clone())
    elif kind == "shared":
        model.blocks[1].attention.q = model.blocks[0].attention.q
    else:
        model = model.to("meta")
    return model


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("tied by hand", "one tensor"),
        ("untied by hand", "two tensors"),
        ("shared", r"blocks\.1\.attention\.q\.weight"),
        ("meta", "meta device"),
    ],
)
def test_what_could_not_be_read_back_is_not_written(tmp_path, kind, message):
    with pytest.raises(ml4.CheckpointError, match=message):
        ml4.save(broken(kind), tmp_path / "model")
    assert not list(tmp_path.iterdir())


def test_weights_of_whole_numbers_are_refused(saved):
    edit(saved, lambda tensors: tensors.update({EMBED: tensors[EMBED].to(torch.int8)}))
    with pytest.raises(ml4.CheckpointError, match=r"embed_tokens\.weight .* I8"):
        ml4.load(saved)


@pytest.mark.parametrize("dtype", ["bfloat16", torch.int8])
def test_a_dtype_must_be_a_floating_one(saved, dtype):
    with pytest.raises(TypeError, match="floating"):
        ml4.load(saved, dtype=dtype)


def test_a_tensor_stored_twice_is_named(tmp_path):
    ml4.save(small(), tmp_path, shard_bytes=20_000)
    first, *_, last = sorted(tmp_path.glob("model-*.safetensors"))
    twice = list(safetensors.torch.load_file(first).items())[:1]
    tensors = safetensors.torch.load_file(last) | dict(twice)
    safetensors.torch.save_file(tensors, last, metadata={"format": "pt"})
    with pytest.raises(ml4.CheckpointError, match="stored twice"):
        ml4.load(tmp_path)

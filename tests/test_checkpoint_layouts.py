"""Meta's files and packed Int4, at small size and with the real names; quantised on arrival."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

import minillama4 as ml4
from minillama4.checkpoint import CheckpointError, hf_name
from minillama4.checkpoint import reading as reading_file
from minillama4.checkpoint.meta import NAMES as META_NAMES
from minillama4.checkpoint.names import linears
from minillama4.checkpoint.params import read_params
from minillama4.checkpoint.reading import Arrival, open_folder
from minillama4.serve.int4_modules import Int4Experts, Int4Linear
from minillama4.serve.quantize import is_int4, quantize_model
from tests.bench.gpu_load import write_hollow
from tests.meta_files import params_of, shards_of, write_meta
from tests.reference import (
    error,
    hf_class,
    hf_logits,
    place_patches,
    random_images,
    random_model,
    random_tokens,
)

SIZES = dict(
    vocab_size=64,
    width=64,
    layers=4,
    heads=8,
    kv_heads=8,
    head_width=8,
    experts=3,
    expert_hidden=256,
    dense_hidden=512,
    chunk=8,
    max_length=10_485_760,
    rope_scaling=ml4.RopeScaling(),
    patch_token=63,
)
EYE = ml4.VisionConfig(
    width=64, layers=2, heads=8, hidden=256, image_size=56, patch_size=14, adapter=32
)
KINDS = {
    "scout": dict(experts=16),
    "maverick": dict(moe_every=2, qk_norm=False, rope_scaling=None, max_length=1_048_576),
    "vision": dict(experts=16, vision=EYE),
}


def model_of(kind: str = "scout", dtype=torch.float32, **changes) -> ml4.Llama4:
    return random_model(ml4.Llama4Config(**(SIZES | KINDS[kind] | changes)), 0, dtype)


def equal(one: ml4.Llama4, other: ml4.Llama4) -> None:
    mine, theirs = one.state_dict(), other.state_dict()
    assert mine.keys() == theirs.keys()
    for name, tensor in mine.items():
        assert tensor.dtype == theirs[name].dtype, name
        assert torch.equal(tensor, theirs[name]), name


# ---------------------------------------------------------------------- Meta
@pytest.mark.parametrize("shards", [1, 2, 8])
@pytest.mark.parametrize("kind", KINDS)
def test_metas_files_hold_the_same_model(tmp_path, kind, shards):
    model = model_of(kind)
    write_meta(model, tmp_path, shards)
    found = ml4.load(tmp_path)
    assert found.config == model.config
    equal(found, model)


def test_logits_are_those_of_the_hugging_face_folder(tmp_path):
    model = model_of()
    write_meta(model, tmp_path / "meta", 8)
    ml4.save(model, tmp_path / "hf")
    tokens = torch.randint(64, (2, 20))
    one, other = ml4.load(tmp_path / "meta"), ml4.load(tmp_path / "hf")
    with torch.inference_mode():
        assert torch.equal(one(tokens), other(tokens))


def test_down_projections_that_are_simply_joined_would_hand_experts_pieces_of_others(tmp_path):
    model = model_of()
    write_meta(model, tmp_path, 8)
    key = "layers.0.feed_forward.experts.moe_w_out_eF_D"
    shards = [torch.load(file)[key] for file in sorted(tmp_path.glob("*.pth"))]
    experts, width = model.config.experts, model.config.width
    naive = torch.cat(shards).view(experts, -1, width)
    right = torch.cat([shard.view(experts, -1, width) for shard in shards], dim=1)
    down = model.blocks[0].ffn.experts.down
    assert torch.equal(right, down) and naive.shape == down.shape and not torch.equal(naive, down)
    assert torch.equal(ml4.load(tmp_path).blocks[0].ffn.experts.down, down)


def test_leftovers_of_training_are_passed_over(tmp_path):
    model = model_of()
    extra = {
        "rope.freqs": torch.zeros(4),
        "layers.0.feed_forward.global_gate_stats_3E": torch.zeros(3, 16),
        "layers.0.feed_forward.running_gate_stats_3E": torch.zeros(3, 16),
        "layers.0.feed_forward.experts.expert_activation_DE": torch.zeros(64, 16),
        "layers.0.attention.wqkv._extra_state": torch.zeros(0),
    }
    write_meta(model, tmp_path, 2, extra)
    equal(ml4.load(tmp_path), model)


@pytest.mark.parametrize("kind", ["scout", "maverick"])
def test_metas_names_and_shapes_of_the_real_models(kind):
    """On the meta device: every parameter of ours has its place, and together they have a shard's
    true shapes (spec, section 10)."""
    config = getattr(ml4.Llama4Config, kind)()
    with torch.device("meta"):
        model = ml4.Llama4(config)
    whole = {key: tuple(t.shape) for key, t in shards_of(model, 1)[0].items()}
    e = config.experts
    layer = "layers.1.feed_forward."
    expected = {
        "tok_embeddings.weight": (202_048, 5120),
        "output.weight": (202_048, 5120),
        "layers.0.attention.wqkv.weight": (7168, 5120),
        "layers.0.attention.wo.weight": (5120, 5120),
        layer + "router_DE": (5120, e),
        layer + "experts.moe_w_in_eD_F": (e * 5120, 8192),
        layer + "experts.moe_w_swiglu_eD_F": (e * 5120, 8192),
        layer + "experts.moe_w_out_eF_D": (e * 8192, 5120),
        layer + "w_in_shared_FD.weight": (8192, 5120),
        layer + "w_out_shared_DF.weight": (5120, 8192),
        "vision_embeddings.vision_encoder.conv1._linear.weight": (1408, 588),
        "vision_projection.weight": (5120, 4096),
    }
    if kind == "maverick":
        expected |= {
            "layers.0.feed_forward.mlp.fc1_weight": (32_768, 5120),
            "layers.0.feed_forward.mlp.fc2_weight": (5120, 16_384),
        }
    assert {key: whole[key] for key in expected} == expected
    experts = [name for name, _ in model.named_parameters() if ".experts." in name]
    others = [
        name
        for name, _ in model.named_parameters()
        if not re.search(r"\.experts\.|blocks\.\d+\.ffn_norm", name)
    ]
    for name in others:
        assert sum(bool(re.fullmatch(ours, name)) for ours, *_ in META_NAMES) == 1, name
    assert len(experts) == 2 * len(config.moe_layers)


@pytest.mark.parametrize("kind", ["scout", "maverick"])
def test_params_json_gives_the_real_sizes(tmp_path, kind):
    config = getattr(ml4.Llama4Config, kind)()
    (tmp_path / "params.json").write_text(json.dumps(params_of(config)))
    assert read_params(tmp_path, config.vocab_size) == config


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        ("missing", "lacks consolidated.03.pth"),
        ("cut", "consolidated.05.pth is truncated"),
        ("pointer", "consolidated.05.pth is only git LFS's note"),
        ("foreign", "is damaged, or holds more than tensors"),
        ("renamed", "not the shards of one model"),
        ("shape", r"wrongly shaped: layers.0.attention.wo.weight of consolidated.02.pth"),
        ("lost", r"1 missing: norm.weight of consolidated.04.pth"),
        ("params", "No params.json"),
        ("both", "holds two models"),
        ("dtype", "in different dtypes"),
    ],
)
def test_damage_is_told_by_name_before_anything_is_read(tmp_path, damage, message, monkeypatch):
    write_meta(model_of(), tmp_path, 8)
    name = "consolidated.{:02d}.pth".format
    if damage == "missing":
        (tmp_path / name(3)).unlink()
    elif damage == "cut":
        file = tmp_path / name(5)
        file.write_bytes(file.read_bytes()[:-500])
    elif damage == "pointer":
        (tmp_path / name(5)).write_text("version https://git-lfs.github.com/spec/v1\n")
    elif damage == "foreign":
        torch.save({"code": Path}, tmp_path / name(1))
    elif damage == "renamed":
        (tmp_path / name(7)).rename(tmp_path / "consolidated_7.pth")
    elif damage in ("shape", "lost", "dtype"):
        i = {"shape": 2, "lost": 4, "dtype": 6}[damage]
        shard = torch.load(tmp_path / name(i))
        if damage == "shape":
            shard["layers.0.attention.wo.weight"] = torch.zeros(3, 3)
        elif damage == "lost":
            del shard["norm.weight"]
        else:
            shard["output.weight"] = shard["output.weight"].double()
        torch.save(shard, tmp_path / name(i))
    elif damage == "params":
        (tmp_path / "params.json").unlink()
    else:
        ml4.save(model_of(), tmp_path / "hf")
        (tmp_path / "hf/model.safetensors").rename(tmp_path / "model.safetensors")
    monkeypatch.setattr(Arrival, "receive", None)  # not reached
    with pytest.raises((CheckpointError, FileNotFoundError), match=message):
        ml4.load(tmp_path)


# ---------------------------------------------------------------------- packed Int4
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("what", ["experts", "blocks", "all"])
@pytest.mark.parametrize("convention", ["compressed-tensors", "meta"])
def test_an_int4_model_comes_back_as_it_was(tmp_path, kind, what, convention):
    model = quantize_model(model_of(kind, torch.bfloat16), what, 64, convention)
    ml4.save(model, tmp_path, shard_bytes=200_000)
    found = ml4.load(tmp_path)
    equal(found, model)
    tokens = torch.randint(60, (1, 20))
    with torch.inference_mode():
        assert torch.equal(found(tokens), model(tokens))


def test_names_and_config_are_those_of_the_published_files(tmp_path):
    """RedHatAI's W4A16 Scout: which tensors there are, of an expert and of a layer."""
    model = quantize_model(model_of("vision", torch.bfloat16), group=64)
    ml4.save(model, tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    expert = "language_model.model.layers.0.feed_forward.experts.3.down_proj."
    kinds = {name: (t.dtype, tuple(t.shape)) for name, t in tensors.items() if expert in name}
    assert kinds == {
        expert + "weight_packed": (torch.int32, (64, 32)),
        expert + "weight_scale": (torch.bfloat16, (64, 4)),
        expert + "weight_shape": (torch.int64, (2,)),
    }
    assert tensors[expert + "weight_shape"].tolist() == [64, 256]
    assert not any("experts.down_proj" in name or "experts.gate_up" in name for name in tensors)
    said = json.loads((tmp_path / "config.json").read_text())["quantization_config"]
    assert said["quant_method"] == "compressed-tensors" and said["format"] == "pack-quantized"
    assert said["config_groups"]["group_0"]["weights"]["group_size"] == 64
    prefix = "language_model.model.layers.0."
    left = {prefix + "self_attn.q_proj", prefix + "feed_forward.router", "language_model.lm_head"}
    left |= {"multi_modal_projector.linear_1", "vision_model.model.layers.0.self_attn.q_proj"}
    assert left <= set(said["ignore"])
    assert not any("experts." in name or "shared_expert" in name for name in said["ignore"])


def test_the_compressed_tensors_package_reads_what_we_save(tmp_path):
    pytest.importorskip("compressed_tensors")
    from compressed_tensors.compressors import PackedQuantizationCompressor
    from compressed_tensors.quantization import QuantizationConfig

    model = quantize_model(model_of(dtype=torch.bfloat16), "blocks", 64)
    ml4.save(model, tmp_path)
    said = json.loads((tmp_path / "config.json").read_text())["quantization_config"]
    (scheme,) = QuantizationConfig.model_validate(said).config_groups.values()
    tensors = load_file(tmp_path / "model.safetensors")

    def unpacked(linear):
        own = {n.rpartition(".")[2]: t for n, t in tensors.items() if n.startswith(f"{linear}.")}
        return PackedQuantizationCompressor.decompress(own, scheme)["weight"]

    experts, prefix = model.blocks[2].ffn.experts, "model.layers.2."
    gate_up, down = experts.weights(1)
    for name, expected in (("gate", gate_up[:256]), ("up", gate_up[256:]), ("down", down)):
        found = unpacked(f"{prefix}feed_forward.experts.1.{name}_proj")
        assert torch.equal(found, expected)
    found = unpacked(f"{prefix}self_attn.o_proj")
    assert torch.equal(found, model.blocks[2].attention.o.weight())


@pytest.mark.parametrize("what", ["experts", "blocks"])
@pytest.mark.parametrize("kind", KINDS)
def test_transformers_opens_a_packed_folder(tmp_path, kind, what):
    """Through compressed-tensors, with experts as a list of Linears; it unpacks them all."""
    pytest.importorskip("compressed_tensors")
    model = quantize_model(model_of(kind), what, 64)
    ml4.save(model, tmp_path)
    twin, report = hf_class(model.config).from_pretrained(tmp_path, output_loading_info=True)
    assert not any(report.values()), report
    tokens, images = random_tokens(model.config, 1, 30), None
    if model.config.vision is not None:
        tokens = place_patches(model.config, tokens, (0, 3))
        images = random_images(model.config, 1, torch.float32)
    with torch.no_grad():
        assert error(model(tokens, images=images), hf_logits(twin, tokens, images)) < 1e-5


@pytest.mark.parametrize("kind", ["scout", "maverick"])
def test_packed_names_of_the_real_models(kind):
    """Every Linear of the published files is either packed or in the ignore list."""
    with torch.device("meta"):
        model = quantize_model(ml4.Llama4(getattr(ml4.Llama4Config, kind)()))
    packed = {name for name, is_packed in linears(model) if is_packed}
    c = model.config
    assert len(packed) == len(c.moe_layers) * (3 * c.experts + 3)
    layer = f"language_model.model.layers.{c.moe_layers[-1]}.feed_forward."
    assert {f"{layer}experts.{c.experts - 1}.up_proj", f"{layer}shared_expert.gate_proj"} <= packed
    assert not any(word in name for name in packed for word in ("router", "self_attn", "vision"))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda q: q["config_groups"]["group_0"]["weights"].update(num_bits=8), "num_bits is 8"),
        (lambda q: q["config_groups"]["group_0"]["weights"].update(symmetric=False), "symmetric"),
        (lambda q: q["config_groups"]["group_0"]["weights"].update(actorder="group"), "g_idx"),
        (lambda q: q["config_groups"]["group_0"]["weights"].update(strategy="channel"), "strategy"),
        (
            lambda q: q["config_groups"]["group_0"].update(input_activations={"num_bits": 8}),
            "input",
        ),
        (lambda q: q.update(format="naive-quantized"), "format is"),
        (lambda q: q.update(quant_method="gptq"), "quant_method is 'gptq'"),
        (lambda q: q.update(ignore=[]), "routers and vision are read in full precision"),
        (
            lambda q: q["ignore"].append("model.layers.0.feed_forward.experts.0.up_proj"),
            "not model",
        ),
        (lambda q: q["config_groups"]["group_0"].pop("targets"), r"\(KeyError: 'targets'\): copy"),
        (lambda q: q.update(config_groups=["group_0"]), "cannot be read .AttributeError"),
        (lambda q: q["config_groups"]["group_0"].update(weights=4), "cannot be read"),
    ],
)
def test_other_ways_of_packing_are_refused_by_name(tmp_path, change, message):
    ml4.save(quantize_model(model_of(dtype=torch.bfloat16), group=64), tmp_path)
    file = tmp_path / "config.json"
    config = json.loads(file.read_text())
    config["quantization_config"]["config_groups"]["group_0"].pop("format", None)
    change(config["quantization_config"])
    file.write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match=message):
        ml4.load(tmp_path)


def test_patterns_in_the_ignore_list_are_understood(tmp_path):
    model = quantize_model(model_of(dtype=torch.bfloat16), group=64)
    ml4.save(model, tmp_path)
    file = tmp_path / "config.json"
    config = json.loads(file.read_text())
    patterns = ["re:.*lm_head", "re:.*self_attn", "re:.*router"]  # llm-compressor's recipe
    config["quantization_config"]["ignore"] = patterns
    file.write_text(json.dumps(config))
    equal(ml4.load(tmp_path), model)


@pytest.mark.parametrize("damage", ["shape", "dtype", "lost", "order"])
def test_damaged_packed_tensors_are_told_by_name(tmp_path, damage):
    ml4.save(quantize_model(model_of(dtype=torch.bfloat16), group=64), tmp_path)
    file = tmp_path / "model.safetensors"
    tensors = load_file(file)
    linear = "model.layers.1.feed_forward.experts.2.gate_proj"
    if damage == "shape":
        tensors[f"{linear}.weight_shape"] = torch.tensor([5, 5])
    elif damage == "dtype":
        tensors[f"{linear}.weight_packed"] = tensors[f"{linear}.weight_packed"].long()
    elif damage == "lost":
        del tensors[f"{linear}.weight_scale"]
    else:
        tensors[f"{linear}.weight_g_idx"] = torch.arange(64)
    save_file(tensors, file, metadata={"format": "pt"})
    with pytest.raises(CheckpointError, match=re.escape(linear)):
        ml4.load(tmp_path)


def test_groups_of_several_sizes_are_not_saved(tmp_path):
    model = quantize_model(model_of(dtype=torch.bfloat16), group=64)
    part = model.blocks[0].ffn.shared
    part.gate = Int4Linear(64, 256, 32)
    with pytest.raises(CheckpointError, match=r"groups of \[32, 64\]"):
        ml4.save(model, tmp_path / "m")
    assert not (tmp_path / "m").exists()


# ---------------------------------------------------------------------- quantised on arrival
SCHEMES = {
    "int4": ("experts", "compressed-tensors"),
    "int4-meta": ("experts", "meta"),
    "int4-blocks": ("blocks", "compressed-tensors"),
    "int4-all": ("all", "compressed-tensors"),
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("layout", ["hf", "meta"])
def test_on_arrival_is_after_loading_bit_for_bit(tmp_path, kind, scheme, layout, monkeypatch):
    model = model_of(kind, torch.bfloat16)
    ml4.save(model, tmp_path, shard_bytes=300_000) if layout == "hf" else write_meta(
        model, tmp_path, 8
    )
    monkeypatch.setattr(reading_file, "ROWS", 64 * 100)  # several blocks of rows, the last short
    found = ml4.load(tmp_path, quantize=scheme, group=64)
    what, convention = SCHEMES[scheme]
    equal(found, quantize_model(ml4.load(tmp_path), what, 64, convention))
    kinds = {type(block.ffn.experts) for block in found.blocks if hasattr(block.ffn, "experts")}
    assert kinds == {Int4Experts} and is_int4(found)


@pytest.mark.parametrize("kind", ["scout", "maverick"])
@pytest.mark.parametrize("scheme", ["int4", "w4a16", "int4-blocks", "int4-all"])
def test_what_a_folder_has_packed_stays_and_the_rest_is_quantised(tmp_path, kind, scheme):
    ml4.save(quantize_model(model_of(kind, torch.bfloat16), group=64), tmp_path)
    found = ml4.load(tmp_path, quantize=scheme)
    what, _ = reading_file.QUANTIZE[scheme]
    equal(found, quantize_model(model_of(kind, torch.bfloat16), what, 64))
    ml4.save(found, tmp_path, overwrite=True)
    for less in (None, "int4", scheme):  # nothing is left to do
        equal(ml4.load(tmp_path, quantize=less), found)


def test_packed_files_are_not_quantised_twice(tmp_path):
    ml4.save(quantize_model(model_of(dtype=torch.bfloat16), group=64), tmp_path)
    for how in (dict(quantize="int4-meta"), dict(quantize="int4-blocks", group=128)):
        with pytest.raises(ValueError, match=r"in groups of 64: other scales would need"):
            ml4.load(tmp_path, **how)
    with pytest.raises(ValueError, match="not known: use one of"):
        ml4.load(tmp_path, quantize="int8")


def test_a_weight_that_is_not_a_number_is_told_by_name(tmp_path):
    model = model_of(dtype=torch.bfloat16)
    with torch.no_grad():
        model.blocks[1].ffn.experts.down[2, 0, 0] = float("nan")
    ml4.save(model, tmp_path)
    with pytest.raises(CheckpointError, match=r"blocks.1.ffn.experts.down: .*not finite"):
        ml4.load(tmp_path, quantize="int4", group=64)


def test_an_interrupted_load_leaves_the_files_and_the_next_load_whole(tmp_path, monkeypatch):
    model = model_of(dtype=torch.bfloat16)
    ml4.save(model, tmp_path)
    exact, calls = Arrival._round, [0]

    def interrupted(self, *args):
        calls[0] += 1
        if calls[0] == 20:
            raise KeyboardInterrupt
        exact(self, *args)

    with monkeypatch.context() as patch:
        patch.setattr(Arrival, "_round", interrupted)
        with pytest.raises(KeyboardInterrupt):
            ml4.load(tmp_path, quantize="int4", group=64)
    expected = quantize_model(ml4.load(tmp_path), group=64)
    equal(ml4.load(tmp_path, quantize="int4", group=64), expected)


def test_layouts_are_told_apart_by_what_is_there(tmp_path):
    write_meta(model_of(), tmp_path / "meta", 2)
    ml4.save(model_of(), tmp_path / "hf")
    for folder, name in (("meta", "Meta"), ("hf", "HuggingFace")):
        with open_folder(tmp_path / folder) as stored:
            assert type(stored).__name__ == name
    with pytest.raises(FileNotFoundError, match=r"config\.json"):
        ml4.load(tmp_path)


# ---------------------------------------------------------------------- memory
MEASURE = """
import json, sys, torch
import minillama4 as ml4
import minillama4.serve.quantize
from minillama4.config import Llama4Config
import threading, time

def anonymous():
    with open("/proc/self/status") as status:
        lines = dict(line.split(":", 1) for line in status)
    return 1024 * sum(int(lines[k].split()[0]) for k in ("RssAnon", "RssFile"))

torch.set_num_threads(1)
with torch.device("meta"):  # imports a good deal when it is first used
    ml4.serve.quantize.quantize_model(ml4.Llama4(Llama4Config.mini(layers=4)))
peak, done = [0], threading.Event()
def watch():
    while not done.wait(0.002):
        peak[0] = max(peak[0], anonymous())
before = anonymous()
thread = threading.Thread(target=watch); thread.start()
model = ml4.load(sys.argv[1], quantize=sys.argv[2] or None)
done.set(); thread.join()
held = sum(t.nbytes for t in model.state_dict().values())
print(json.dumps({"above": peak[0] - before - held, "held": held}))
"""


def memory(folder: Path, quantize: str) -> dict[str, int]:
    """Of a process of its own: bytes held by the model, and at most beside it, mapped ones too."""
    done = subprocess.run(
        [sys.executable, "-c", MEASURE, folder, quantize],
        capture_output=True, text=True, check=True, env=os.environ | {"TQDM_DISABLE": "1"},
        cwd=Path(__file__).parents[1],
    )  # fmt: skip
    return json.loads(done.stdout)


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize("quantize", ["int4", ""])
def test_loading_takes_little_memory_beside_the_result(tmp_path, quantize):
    """A folder of 0.8 GB, one layer's experts of 0.4 GB: hollow files of true layout."""
    sizes = dict(width=1024, experts=16, expert_hidden=4096, layers=2, vocab_size=512)
    config = ml4.Llama4Config(heads=8, kv_heads=2, head_width=128, patch_token=511, **sizes)
    size = write_hollow(config, tmp_path, shards=3)
    assert size > 0.8e9
    found = memory(tmp_path, quantize)
    assert found["above"] < 0.25e9, found
    assert found["held"] < size * (0.35 if quantize else 1.01)


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize("quantize", ["int4", ""])
def test_metas_shards_are_given_back_as_they_are_read(tmp_path, quantize):
    """Eight files of 0.24 GB in all, every one of them mapped from the beginning to the end."""
    sizes = dict(width=1024, heads=8, kv_heads=8, head_width=128, layers=1, vocab_size=512)
    ffn = dict(experts=8, expert_hidden=4096, dense_hidden=8192, patch_token=511)
    write_meta(ml4.Llama4(ml4.Llama4Config(**sizes, **ffn)).bfloat16(), tmp_path, 8)
    found = memory(tmp_path, quantize)
    assert found["above"] < 0.12e9, found
    assert found["held"] > (0.06e9 if quantize else 0.2e9)


@pytest.mark.parametrize("layout", ["hf", "meta"])
@pytest.mark.parametrize("quantize", ["int4", None])
def test_weights_that_are_all_zero_are_told_once(tmp_path, layout, quantize, recwarn):
    """As in a file that was given its full length before its content came."""
    model = model_of(dtype=torch.bfloat16)
    with torch.no_grad():
        model.blocks[1].ffn.experts.down[1:3] = 0
    ml4.save(model, tmp_path) if layout == "hf" else write_meta(model, tmp_path, 2)
    ml4.load(tmp_path, quantize=quantize, group=64)
    (one,) = [one for one in recwarn if "zeros" in str(one.message)]
    assert one.filename == __file__
    said = str(one.message)
    assert re.match(r"blocks\.1\.ffn\.experts\.down, expert 1, holds nothing but zeros", said)
    assert ("model.safetensors" if layout == "hf" else "consolidated.0") in said
    recwarn.clear()
    ml4.save(model_of(dtype=torch.bfloat16), tmp_path / "whole")
    ml4.load(tmp_path / "whole", quantize=quantize, group=64)
    assert not [one for one in recwarn if "zeros" in str(one.message)]


@pytest.mark.filterwarnings("ignore:.*nothing but zeros")
def test_hollow_files_are_read_as_zeros(tmp_path):
    config = ml4.Llama4Config(**(SIZES | KINDS["scout"]))
    write_hollow(config, tmp_path, shards=3)
    model = ml4.load(tmp_path)
    assert not any(p.any() for p in model.parameters())
    with safe_open(sorted(tmp_path.glob("*.safetensors"))[0], "pt") as tensors:
        assert hf_name("embed.weight", False) in tensors.keys()  # noqa: SIM118

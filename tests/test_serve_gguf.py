"""GGUF files: tensors, sizes and tokens come back from them; what does not fit is refused.

Whether llama.cpp computes the same from them is another matter: tests/llamacpp.
"""

import json
import sys
import weakref

import gguf
import numpy as np
import pytest
import torch
from tokenizers import Regex, Tokenizer, models, pre_tokenizers

import minillama4 as ml4
from minillama4 import Llama4, Llama4Config, RopeScaling
from minillama4.data.tokenizer import JsonTokenizer, TokenizerError
from minillama4.data.vocabulary import split_pattern
from minillama4.model.rope import rope_frequencies
from minillama4.serve import gguf as module
from minillama4.serve.gguf import KINDS, save_gguf, tensors
from minillama4.serve.llamacpp import GGUFError, as_llamacpp, llamacpp_length, vocabulary
from minillama4.serve.quantize import quantize_model
from tests.test_data_tokenizer import REAL, needs_real

TOKENIZER = ml4.load_tokenizer()
SCOUT = Llama4Config.nano(vocab_size=64, patch_token=63)
MODELS = {
    "scout": SCOUT,
    "maverick": SCOUT.replace(experts=128, expert_hidden=32, moe_every=2, qk_norm=False),
    "scaled RoPE": SCOUT.replace(rope_scaling=RopeScaling(original_length=64)),
    "RoPE with a ramp": SCOUT.replace(rope_scaling=RopeScaling(8.0, 1.0, 4.0, 64)),
    "dense": SCOUT.replace(moe_at=()),
    "dense without QK-norm": SCOUT.replace(moe_at=(), qk_norm=False),
    "tied": SCOUT.replace(tied=True),
    "two experts a token": SCOUT.replace(top_k=2),
    "narrow heads": SCOUT.replace(heads=8, head_width=4),
}


def make(config):
    torch.manual_seed(0)
    model = Llama4(config)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter)
    return model


def fields(reader):
    return {name: field.contents() for name, field in reader.fields.items()}


# Tensors -----------------------------------------------------------------------------------------


def bound(tensor, kind):
    """How far a number may be from its original: (…, row) of float32."""
    if kind == "f32":
        return np.zeros_like(tensor)
    if kind in ("f16", "bf16"):
        return np.abs(tensor) * 2.0 ** (-11 if kind == "f16" else -8) + 2.0**-25
    blocks = np.abs(tensor.reshape(*tensor.shape[:-1], -1, 32)).max(-1, keepdims=True)
    # the scale is a float16; q4_0's sixteen steps end one short of the other sign's largest
    step = blocks * (1 / 254 + 2.0**-11 if kind == "q8_0" else 1 / 8 + 2.0**-11)
    return np.broadcast_to(step, (*step.shape[:-1], 32)).reshape(tensor.shape)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("config", MODELS.values(), ids=MODELS)
def test_every_tensor_comes_back(config, kind, tmp_path):
    model = make(config)
    save_gguf(model, tmp_path / "model.gguf", kind=kind)
    reader = gguf.GGUFReader(tmp_path / "model.gguf")
    wanted = {name: tensor.numpy() for name, tensor in tensors(model)}
    assert [tensor.name for tensor in reader.tensors] == list(wanted)
    for found in reader.tensors:
        tensor = wanted[found.name]
        vector = tensor.ndim == 1 or "gate_inp" in found.name
        assert found.tensor_type.name == ("F32" if vector else kind.upper())
        numbers = gguf.quants.dequantize(found.data, found.tensor_type)
        assert numbers.shape == tensor.shape
        assert (np.abs(numbers - tensor) <= bound(tensor, "f32" if vector else kind)).all()


def test_the_tensors_are_the_models_under_llama_cpps_names():
    model = make(MODELS["maverick"])
    named, block = dict(tensors(model)), model.blocks[1]
    layer = [name for name in named if name.startswith("blk.1.")]
    attention = ["attn_norm", "attn_q", "attn_k", "attn_v", "attn_output", "ffn_norm"]
    parts = [f"ffn_{part}_{kind}" for part in ("gate", "up", "down") for kind in ("exps", "shexp")]
    assert sorted(layer) == sorted(
        f"blk.1.{n}.weight" for n in [*attention, "ffn_gate_inp", *parts]
    )
    assert {"blk.0.ffn_gate.weight", "blk.0.ffn_up.weight", "blk.0.ffn_down.weight"} <= set(named)
    gate, up, down = (named[f"blk.1.ffn_{part}_exps.weight"] for part in ("gate", "up", "down"))
    x, experts = torch.randn(64), block.ffn.experts
    hidden = torch.nn.functional.silu(gate[7] @ x) * (up[7] @ x)
    both = (x @ experts.gate_up[7]).chunk(2)
    wanted = (torch.nn.functional.silu(both[0]) * both[1]) @ experts.down[7]
    torch.testing.assert_close(down[7] @ hidden, wanted)
    torch.testing.assert_close(named["blk.0.attn_q.weight"], model.blocks[0].attention.q.weight)
    torch.testing.assert_close(named["output.weight"], model.head.weight)


def test_a_tied_head_is_left_out_and_rope_factors_divide_the_plain_frequencies():
    names = dict(tensors(make(MODELS["tied"])))
    assert "output.weight" not in names and "rope_freqs.weight" not in names
    for name in ("scaled RoPE", "RoPE with a ramp"):
        config = MODELS[name]
        factors = dict(tensors(make(config)))["rope_freqs.weight"]
        plain = rope_frequencies(config.head_width, config.rope_theta)
        ours = rope_frequencies(config.head_width, config.rope_theta, config.rope_scaling)
        torch.testing.assert_close(plain / factors, ours)
    real = Llama4Config.scout(vision=None)  # the published file: 35 times 1, then 16
    plain = rope_frequencies(real.head_width, real.rope_theta)
    slowed = rope_frequencies(real.head_width, real.rope_theta, real.rope_scaling)
    assert (plain / slowed).round().tolist() == [1.0] * 35 + [16.0] * 29


# Fields ------------------------------------------------------------------------------------------


def test_sizes_stand_under_llama_cpps_names(tmp_path):
    config = MODELS["maverick"]
    save_gguf(make(config), tmp_path / "model.gguf")
    found = fields(gguf.GGUFReader(tmp_path / "model.gguf"))
    sizes = {k.removeprefix("llama4."): v for k, v in found.items() if k.startswith("llama4.")}
    eps = sizes.pop("attention.layer_norm_rms_epsilon")
    assert eps == pytest.approx(config.norm_eps)
    assert sizes == {
        "block_count": 4,
        "context_length": 31,
        "vocab_size": 64,
        "embedding_length": 64,
        "feed_forward_length": 128,  # of the dense layers: the names are swapped in HF's config
        "expert_feed_forward_length": 32,
        "expert_count": 128,
        "expert_used_count": 1,
        "interleave_moe_layer_step": 2,
        "attention.head_count": 4,
        "attention.head_count_kv": 2,
        "attention.key_length": 16,
        "attention.value_length": 16,
        "rope.dimension_count": 16,
        "rope.freq_base": 500_000.0,
    }
    assert found["general.architecture"] == "llama4"
    assert found["tokenizer.ggml.model"] == "none"
    assert Llama4Config.from_hf(json.loads(found["minillama4.config"])) == config


@pytest.mark.parametrize(
    "name, experts", [("dense", 1), ("dense without QK-norm", 128), ("two experts a token", 4)]
)
def test_the_number_of_experts_says_whether_there_is_qk_norm(name, experts, tmp_path):
    save_gguf(make(MODELS[name]), tmp_path / "model.gguf")
    found = fields(gguf.GGUFReader(tmp_path / "model.gguf"))
    assert found["llama4.expert_count"] == experts
    assert found["llama4.interleave_moe_layer_step"] == (0 if "dense" in name else 1)
    assert found["llama4.expert_used_count"] == MODELS[name].top_k


def test_the_tokenizer_is_in_the_file(tmp_path):
    model = make(SCOUT.replace(vocab_size=TOKENIZER.vocab_size))
    save_gguf(model, tmp_path / "model.gguf", TOKENIZER)
    found = fields(gguf.GGUFReader(tmp_path / "model.gguf"))
    found = {k.removeprefix("tokenizer.ggml."): v for k, v in found.items()}
    assert (found["model"], found["pre"], found["add_bos_token"]) == ("gpt2", "llama4", True)
    assert found["bos_token_id"] == TOKENIZER.begin and found["eos_token_id"] == TOKENIZER.end
    assert found["eot_token_id"] == TOKENIZER.special["<|eot|>"]
    assert found["eom_token_id"] == TOKENIZER.special["<|eom|>"]
    assert found["padding_token_id"] == TOKENIZER.pad
    names, kinds = found["tokens"], found["token_type"]
    control = {name for name, kind in zip(names, kinds, strict=True) if kind == 3}
    assert control == set(TOKENIZER.special) and set(kinds) == {1, 3}
    assert all(names[token] == name for name, token in TOKENIZER.special.items())
    for text in ("def area(side):", "12 + 30 = 42", "naïve “quotes”\n\n\t—"):
        assert bpe(text, names, found["merges"]) == TOKENIZER.encode(text)


def test_what_ends_a_text_can_be_chosen(tmp_path):
    """Texts of the mini models end where the next one begins."""
    model = make(SCOUT.replace(vocab_size=TOKENIZER.vocab_size))
    save_gguf(model, tmp_path / "model.gguf", TOKENIZER, stop=TOKENIZER.begin)
    found = fields(gguf.GGUFReader(tmp_path / "model.gguf"))
    assert found["tokenizer.ggml.eos_token_id"] == TOKENIZER.begin
    with pytest.raises(ValueError, match="stop names 2048"):
        save_gguf(model, tmp_path / "other.gguf", TOKENIZER, stop=2048)


@needs_real
def test_metas_vocabulary_fits_too():
    """Its file lists no merges, and cuts digits by threes."""
    real = ml4.load_tokenizer(REAL)
    names, kinds, merges = vocabulary(real, real.vocab_size)
    assert len(names) == len(kinds) == 202_048 and kinds.count(3) == 2_048
    text = "naïve “quotes”\n\n\t— 1234567"
    assert bpe(text, names, merges) == real.encode(text)


def bpe(text, names, merges):
    """Byte-pair merges of what the file says, on text cut as for "llama4"."""
    pairs = [tuple(merge.split(" ")) for merge in merges]
    model = Tokenizer(models.BPE({name: i for i, name in enumerate(names)}, pairs))
    model.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(split_pattern()), "isolated"),  # digits by threes
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    return model.encode(text).ids


# How long llama.cpp agrees -----------------------------------------------------------------------


@pytest.mark.parametrize(
    "changes, length",
    [
        ({}, 31),  # position 31 is the first whose temperature is not 1
        ({"temperature": False}, 32),
        ({"attn_scale": 0.0}, 32),
        ({"floor_scale": 8192}, 32),
        ({"chunk": 8192}, 31),
        ({"chunk": 8192, "floor_scale": 8192}, 16_384),
        ({"chunk": None, "floor_scale": 8192}, 8192),
        ({"chunk": 8192, "temperature": False}, 8191),
        ({"chunk": 8192, "floor_scale": 8192, "attn_scale": 0.2}, 8191),
        ({"layers": 3}, 32),  # no NoPE layer, hence no temperature
        ({"floor_scale": 1}, 0),
    ],
    ids=str,
)
def test_length_up_to_which_llama_cpp_computes_the_same(changes, length):
    config = SCOUT.replace(**({"max_length": 16_384} | changes))
    assert llamacpp_length(config) == length


@pytest.mark.parametrize("changes", [{}, {"temperature": False}, {"chunk": 12}], ids=str)
@torch.inference_mode()
def test_as_llamacpp_agrees_up_to_that_length_and_not_one_token_further(changes):
    model = make(SCOUT.replace(**changes)).double()
    other = Llama4(as_llamacpp(model.config)).double()
    other.load_state_dict(model.state_dict())
    length = llamacpp_length(model.config)
    tokens = torch.randint(0, 64, (1, length + 1))
    ours, theirs = model(tokens), other(tokens)
    torch.testing.assert_close(ours[:, :length], theirs[:, :length])
    assert not torch.allclose(ours[:, length], theirs[:, length], rtol=1e-4)


def test_the_released_models_lose_nothing():
    for config in (Llama4Config.scout(vision=None), Llama4Config.maverick(vision=None)):
        assert llamacpp_length(config) == config.max_length
        assert as_llamacpp(config) == config


# What is refused ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"qk_norm": False}, "has no QK-norm, and llama.cpp would apply it.*4 here.*exactly 128"),
        ({"experts": 128, "expert_hidden": 8}, "has QK-norm, and llama.cpp would leave it out"),
        ({"layers": 3}, "has 3 layers, and llama.cpp stops"),
        ({"nope_every": 2}, r"NoPE layers are \(1, 3\): llama.cpp takes every fourth"),
        ({"nope_at": ()}, r"NoPE layers are \(\)"),
        ({"moe_at": (1, 2)}, r"MoE layers are \(1, 2\)"),
        ({"floor_scale": 1}, "temperature acts from the first token on"),
    ],
    ids=str,
)
def test_what_llama_cpp_would_compute_otherwise_is_refused(changes, message, tmp_path):
    with pytest.raises(GGUFError, match=message):
        save_gguf(make(SCOUT.replace(**changes)), tmp_path / "model.gguf")
    assert not list(tmp_path.iterdir())


def test_vision_changed_parts_and_missing_weights_are_refused(tmp_path):
    file = tmp_path / "model.gguf"
    with torch.device("meta"):
        seeing = Llama4(Llama4Config.scout(layers=4))
    with pytest.raises(GGUFError, match=r"reads images.*replace\(vision=None\)"):
        save_gguf(seeing, file)
    with torch.device("meta"), pytest.raises(GGUFError, match="no weights"):
        save_gguf(Llama4(SCOUT), file)
    changed = make(SCOUT)
    changed.blocks[2].ffn.shared = torch.nn.Linear(64, 64)
    with pytest.raises(GGUFError, match="was a part exchanged"):
        save_gguf(changed, file)
    with pytest.raises(GGUFError, match=r"was a part exchanged, or quantised\?"):
        save_gguf(quantize_model(make(SCOUT), group=32), file)
    broken = make(SCOUT)
    with torch.no_grad():
        broken.blocks[2].ffn.experts.down[1, 2, 3] = torch.nan
    with pytest.raises(GGUFError, match=r"infinity\): blocks\.2\.ffn\.experts\.down\."):
        save_gguf(broken, file, kind="q4_0")
    with pytest.raises(GGUFError, match="not a Linear"):
        save_gguf(torch.nn.Linear(2, 2), file)
    with pytest.raises(GGUFError, match=r"one of f32, f16.* not 'q4_k'"):
        save_gguf(make(SCOUT), file, kind="q4_k")
    odd = make(SCOUT.replace(width=48))
    with pytest.raises(GGUFError, match=r"32 numbers at a time.*token_embd.weight \(48\).*f16"):
        save_gguf(odd, file, kind="q4_0")
    save_gguf(odd, file, kind="f16")


def test_tokenizers_that_llama_cpp_would_read_otherwise_are_refused(monkeypatch, tmp_path):
    with pytest.raises(TokenizerError, match="has 2,048 tokens, the model 64"):
        save_gguf(make(SCOUT), tmp_path / "model.gguf", TOKENIZER)
    with pytest.raises(TypeError, match=r"one of ml4\.load_tokenizer, not a object"):
        vocabulary(object(), 2048)
    whole = TOKENIZER.definition()

    def refused(change):
        definition = json.loads(json.dumps(whole))
        change(definition)
        monkeypatch.setattr(JsonTokenizer, "definition", lambda self: definition)
        with pytest.raises(GGUFError, match="cuts text"):
            vocabulary(TOKENIZER, 2048)

    refused(lambda d: d["pre_tokenizer"]["pretokenizers"][0].update(pattern={"Regex": r"\S+"}))
    refused(lambda d: d["pre_tokenizer"]["pretokenizers"][1].update(add_prefix_space=True))
    refused(lambda d: d["model"]["vocab"].update({"42": d["model"]["vocab"].pop("in")}))
    refused(lambda d: d.update(normalizer={"type": "NFC"}))


# Whole or not at all -----------------------------------------------------------------------------


def test_a_file_is_replaced_only_when_asked_and_never_half(tmp_path, monkeypatch):
    file = tmp_path / "deep" / "model.gguf"
    save_gguf(make(SCOUT), file)
    before = file.read_bytes()
    with pytest.raises(FileExistsError, match="overwrite=True"):
        save_gguf(make(SCOUT), file)
    monkeypatch.setattr(gguf.GGUFWriter, "write_ti_data_to_file", lambda self: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        save_gguf(make(SCOUT), file, kind="f16", overwrite=True)
    assert file.read_bytes() == before
    monkeypatch.undo()
    save_gguf(make(SCOUT), file, kind="f16", overwrite=True)
    assert len(file.read_bytes()) < len(before)
    assert list(file.parent.iterdir()) == [file]


def test_one_tensor_is_in_memory_at_a_time(tmp_path, monkeypatch):
    alive, most = [], []

    def counted(tensor, kind, encode=module.encode):
        array = encode(tensor, kind).view()
        alive.append(weakref.ref(array))
        most.append(sum(ref() is not None for ref in alive))
        return array

    monkeypatch.setattr(module, "encode", counted)
    save_gguf(make(SCOUT), tmp_path / "model.gguf")
    assert max(most) <= 2 and len(most) > 40


def test_without_the_package_it_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "gguf", None)
    with pytest.raises(ImportError, match=r"pip install 'minillama4\[gguf\]'"):
        save_gguf(make(SCOUT), tmp_path / "model.gguf")


def test_bf16_models_and_the_shipped_one(tmp_path):
    model = ml4.load(ml4.shipped("mini_scout"))
    save_gguf(model, tmp_path / "model.gguf", TOKENIZER)
    reader = gguf.GGUFReader(tmp_path / "model.gguf")
    for found, (name, tensor) in zip(reader.tensors, tensors(model), strict=True):
        assert found.name == name
        assert np.array_equal(found.data, tensor.float().numpy())
    assert fields(reader)["llama4.context_length"] == 127

"""llama.cpp on what ``save_gguf`` wrote: the same logits, tokens and ids; run by ``python start.py
llamacpp``, which compiles llama.cpp first.

What it computes beyond ``llamacpp_length`` is known too: the model of ``as_llamacpp``.
"""

import itertools
import random

import pytest
import torch

import minillama4 as ml4
from minillama4 import KVCache, Llama4, Llama4Config, RopeScaling
from minillama4.data.text import DOMAINS, Corpus, documents
from minillama4.serve.gguf import save_gguf
from minillama4.serve.llamacpp import as_llamacpp, llamacpp_length
from tests.bench.llamacpp import LlamaCpp
from tests.test_data_tokenizer import REAL, needs_real

llama_cpp = pytest.importorskip("llama_cpp", reason="needs llama-cpp-python: see start.py")
pytestmark = pytest.mark.llamacpp

TOKENIZER = ml4.load_tokenizer()
NANO = Llama4Config.nano()
EXPRESSIBLE = {
    "scout": NANO,
    "maverick": NANO.replace(experts=128, expert_hidden=32, moe_every=2, qk_norm=False),
    "maverick's steps with QK-norm": NANO.replace(moe_every=2),
    "two experts a token": NANO.replace(top_k=2),
    "scaled RoPE": NANO.replace(rope_scaling=RopeScaling(original_length=64)),
    "RoPE with a ramp": NANO.replace(rope_scaling=RopeScaling(8.0, 1.0, 4.0, 64)),
    "dense": NANO.replace(moe_at=()),
    "dense without QK-norm": NANO.replace(moe_at=(), qk_norm=False),
    "tied": NANO.replace(tied=True),
    "heads apart from the width": NANO.replace(heads=6, head_width=32),
    "five layers": NANO.replace(layers=5),
    "seven layers": NANO.replace(layers=7),
    "another eps": NANO.replace(norm_eps=1e-3),
    "another theta": NANO.replace(rope_theta=10_000.0),
}


def random_model(config):
    """Weights large enough that every part of the model shows in its logits."""
    torch.manual_seed(0)
    model = Llama4(config).eval()
    for name, parameter in model.named_parameters():
        if "norm" not in name:
            torch.nn.init.normal_(parameter, std=1.5 * parameter.shape[-1] ** -0.5)
        else:
            torch.nn.init.uniform_(parameter, 0.5, 1.5)
    return model


def follows(model):
    """The same weights under the config that llama.cpp follows."""
    other = Llama4(as_llamacpp(model.config)).eval()
    other.load_state_dict(model.state_dict())
    return other


def gap(theirs, ours):
    return ((theirs - ours).norm() / ours.norm()).item()


@pytest.mark.parametrize("config", EXPRESSIBLE.values(), ids=EXPRESSIBLE)
@torch.inference_mode()
def test_logits_are_equal_within_the_length(config):
    model = random_model(config)
    length = min(llamacpp_length(config), 64)
    tokens = torch.randint(0, config.vocab_size, (1, length))
    theirs = LlamaCpp(model, "f32", threads=1, length=256).read_new(tokens, every=True)
    assert gap(theirs, model(tokens)) < 1e-5


@torch.inference_mode()
def test_beyond_the_length_it_computes_another_model_and_which():
    model = random_model(NANO)
    length = llamacpp_length(NANO)
    tokens = torch.randint(0, NANO.vocab_size, (1, 8 * length))
    theirs = LlamaCpp(model, "f32", threads=1, length=512).read_new(tokens, every=True)
    assert gap(theirs, follows(model)(tokens)) < 1e-5
    ours = model(tokens)
    assert gap(theirs[:, :length], ours[:, :length]) < 1e-5
    assert gap(theirs[:, length:], ours[:, length:]) > 0.1


@torch.inference_mode()
def test_past_8192_tokens_its_chunk_and_temperature_are_ours_with_those_numbers():
    model = random_model(NANO.replace(chunk=8192, floor_scale=8192, max_length=16_384))
    assert llamacpp_length(model.config) == 16_384
    tokens = torch.randint(0, NANO.vocab_size, (1, 8192 + 96))
    reader = LlamaCpp(model, "f32", threads=1, length=8704, n_batch=512)
    cache, parts = KVCache(model.config), []
    for part in tokens.split(512, dim=1):
        theirs = reader.read(part, every=True)
        parts.append(gap(theirs, model(part, cache=cache)))
    assert max(parts) < 2e-5 and len(parts) == 17
    one_chunk = Llama4(model.config.replace(chunk=None)).eval()  # the border does matter
    one_chunk.load_state_dict(model.state_dict())
    assert gap(theirs, one_chunk(tokens)[:, 8192:]) > 0.01


def test_a_field_does_not_change_the_chunk(tmp_path):
    """Not llama4.attention.chunk_size or sliding_window: this is why configs are refused."""
    import gguf

    model = random_model(NANO)
    tokens = torch.randint(0, NANO.vocab_size, (1, 100))
    plain = LlamaCpp(model, "f32", threads=1, length=128).read_new(tokens)
    for field in ("chunk_size", "sliding_window"):
        add = gguf.GGUFWriter.add_layer_norm_rms_eps

        def also(self, value, field=field, add=add):
            add(self, value)
            self.add_uint32(f"llama4.attention.{field}", 32)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(gguf.GGUFWriter, "add_layer_norm_rms_eps", also)
            changed = LlamaCpp(model, "f32", threads=1, length=128).read_new(tokens)
        assert torch.equal(plain, changed)


# The shipped model ------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def scout():
    return ml4.load(ml4.shipped("mini_scout"), dtype=torch.float32).eval()


PROMPTS = ["def area(side):\n    return", "12 + 30 =", "The old house stood", "name: Ada; year:"]


@pytest.mark.parametrize("prompt", PROMPTS)
def test_the_shipped_model_writes_the_same_greedy_tokens(scout, prompt):
    ids = [TOKENIZER.begin, *TOKENIZER.encode(prompt)]
    count = llamacpp_length(scout.config) - len(ids)
    (ours,) = ml4.complete(scout, [ids], count)
    reader = LlamaCpp(scout, "f32", threads=1, length=256)
    logits, theirs = reader.read_new(torch.tensor([ids])), []
    for _ in range(count):
        theirs.append(logits[0, -1].argmax().item())
        logits = reader.read(torch.tensor([theirs[-1:]]))
    assert ours == theirs and count > 100


@pytest.mark.parametrize(
    "kind, cache, most", [("f32", "f32", 1e-5), ("f32", "f16", 0.01), ("bf16", "f32", 0.05)]
)
@torch.inference_mode()
def test_the_shipped_models_logits_on_text(scout, kind, cache, most):
    reader = LlamaCpp(scout, kind, threads=1, length=256, cache=cache)
    gaps = [gap(reader.read_new(row, every=True), scout(row)) for row in rows(4)]
    assert max(gaps) < most


def rows(count, length=127):
    """Texts of all domains that nothing was trained on."""
    corpus = Corpus.build(TOKENIZER, "validation", tokens_per_domain=2_000)
    return corpus.batch(0, count, length).tokens[:, None, :-1]


# The tokenizer ----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def vocabulary(scout, tmp_path_factory):
    file = tmp_path_factory.mktemp("gguf") / "model.gguf"
    save_gguf(scout, file, TOKENIZER)
    return llama_cpp.Llama(str(file), vocab_only=True, verbose=False)


def test_it_stops_by_itself_where_a_text_ends(scout, tmp_path):
    """In the training text of the mini models, that is where the next one begins."""
    prompt = [TOKENIZER.begin, *TOKENIZER.encode("12 + 30 =")]
    save_gguf(scout, tmp_path / "model.gguf", TOKENIZER, stop=TOKENIZER.begin)
    there = llama_cpp.Llama(str(tmp_path / "model.gguf"), n_ctx=128, verbose=False)
    (ours,) = ml4.complete(scout, prompt, 100, stop=TOKENIZER.begin)
    assert ours[-1] == TOKENIZER.begin and len(ours) < 100
    said = there.create_completion("12 + 30 =", max_tokens=100, temperature=0)
    assert said["choices"][0]["text"] == TOKENIZER.decode(ours[:-1])
    assert said["choices"][0]["finish_reason"] == "stop"


@needs_real
def test_metas_vocabulary_has_the_same_ids(tmp_path):
    """Whose merges are found again from its tokens."""
    real = ml4.load_tokenizer(REAL)
    model = random_model(NANO.replace(vocab_size=real.vocab_size, width=32))
    save_gguf(model, tmp_path / "model.gguf", real, kind="q4_0")
    there = llama_cpp.Llama(str(tmp_path / "model.gguf"), vocab_only=True, verbose=False)
    texts = [text for name in DOMAINS for text in itertools.islice(documents(name, "train", 0), 20)]
    for text in [*texts, "naïve “quotes”\n\n\t— 1234567 日本語 🎉👩‍👩‍👧 <|eot|>"]:
        assert ids(there, text) == real.encode(text)


def ids(vocabulary, text):
    return vocabulary.tokenize(text.encode(), add_bos=False, special=False)


def test_special_tokens_are_known(vocabulary):
    assert vocabulary.token_bos() == TOKENIZER.begin and vocabulary.token_eos() == TOKENIZER.end
    assert vocabulary.tokenize(b"12", add_bos=True)[0] == TOKENIZER.begin
    assert ids(vocabulary, "<|eot|>") == TOKENIZER.encode("<|eot|>")
    for name, token in TOKENIZER.special.items():
        assert vocabulary.tokenize(name.encode(), add_bos=False, special=True) == [token]


@pytest.mark.parametrize("domain", DOMAINS)
def test_text_of_every_domain_has_the_same_ids(vocabulary, domain):
    texts = list(itertools.islice(documents(domain, "validation", 0), 50))
    assert texts
    for text in texts:
        assert ids(vocabulary, text) == TOKENIZER.encode(text), text


ALPHABETS = {
    "ascii": "".join(map(chr, range(32, 127))) + "\n\t\r",
    "contractions and digits": [
        "'ll",
        "'RE",
        "we",
        "We",
        "WE",
        " ",
        "123",
        "4",
        "1e9",
        "\r\n",
        "/",
    ],
    "accents and capitals": "aébçÉÀñÑüÜß '’AZ",
    "marks": "ae\u0301\u0308 o\u0303B",
    "Greek and Cyrillic": "αβΑΒή абАБ ",
    "Chinese and Japanese": "日本語 漢字かなカナ",
    "Arabic and Devanagari": "السلام नमस्ते ",
    "emoji": "😀👍🏽 ❤️ab",
    "other digits": "12٣٤५²½ a",
    "other spaces": " \u00a0\u2003\t\n\r\u2028\u0085\x0b\x1c\x1f\u200b a",
    "quotes": "“”‘’—…«» aB",
}


@pytest.mark.parametrize("letters", ALPHABETS.values(), ids=ALPHABETS)
def test_random_text_has_the_same_ids(vocabulary, letters):
    draw = random.Random(0)
    for _ in range(400):
        text = "".join(draw.choices(letters, k=draw.randrange(1, 30)))
        assert ids(vocabulary, text) == TOKENIZER.encode(text), repr(text)

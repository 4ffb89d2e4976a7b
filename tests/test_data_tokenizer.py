"""Both vocabularies: text survives, special tokens are never made from text, ids as in Llama 4.

The real vocabulary may not be shipped. Its tests look for it at $MINILLAMA4_TOKENIZER, or in
shared/facts beside the checkout, and are skipped where it is not.
"""

import base64
import json
import os
import random
from pathlib import Path

import pytest
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st

from minillama4.data.bpe_training import train
from minillama4.data.sources import DOMAINS, documents
from minillama4.data.tokenizer import SHIPPED, TokenizerError, load_tokenizer
from minillama4.data.vocabulary import ROLES, llama4_special_tokens

BESIDE = Path(__file__).resolve().parents[2] / "shared" / "facts" / "llama4_tokenizer.model"
REAL = Path(os.environ.get("MINILLAMA4_TOKENIZER", BESIDE))
needs_real = pytest.mark.skipif(
    not REAL.is_file(), reason=f"no real vocabulary at {REAL}; set MINILLAMA4_TOKENIZER to one"
)
SAMPLES = [
    "", "Hello, world!", "I'LL they're\r\n\r\n  x", "1234567 + 89 = 12,345", "\t\tdef f(x):\n",
    "Ünïcödé 日本語 שלום", "🎉👩‍👩‍👧", "   trailing   ", "a" * 1000, "<|eot|>", "//\n//",
    "ＡＢＣ ǅ",
]  # fmt: skip


@pytest.fixture(scope="module", params=["mini", pytest.param("real", marks=needs_real)])
def tokenizer(request):
    return load_tokenizer() if request.param == "mini" else load_tokenizer(REAL)


@pytest.fixture(scope="module")
def real():
    return load_tokenizer(REAL)


# ---- both ----


@settings(max_examples=150, deadline=None)
@given(text=st.text())
def test_text_survives(tokenizer, text):
    ids = tokenizer.encode(text)
    assert tokenizer.decode(ids) == text
    assert not set(ids) & set(tokenizer.special.values())


@settings(max_examples=100, deadline=None)
@given(data=st.data())
def test_any_ids_can_be_shown(tokenizer, data):
    ids = data.draw(st.lists(st.integers(0, tokenizer.vocab_size - 1), max_size=20))
    pieces = tokenizer.pieces(ids)
    assert len(pieces) == len(ids)
    assert all(piece.isprintable() and piece for piece in pieces)
    assert isinstance(tokenizer.decode(ids), str)


@pytest.mark.parametrize("name", ROLES)
def test_special_tokens_are_not_made_from_text(tokenizer, name):
    ids = tokenizer.encode(f"before {name} after")
    assert tokenizer.special[name] not in ids
    assert tokenizer.decode(ids) == f"before {name} after"
    assert tokenizer.pieces([tokenizer.special[name]]) == [name]


def test_names_of_the_special_ids(tokenizer):
    special = tokenizer.special
    assert tokenizer.begin == special["<|begin_of_text|>"]
    assert tokenizer.pad == special["<|finetune_right_pad|>"]
    assert tokenizer.stop_ids == tuple(special[f"<|{n}|>"] for n in ("end_of_text", "eom", "eot"))
    assert sorted(special.values()) == list(
        range(tokenizer.vocab_size - len(special), tokenizer.vocab_size)
    )


def test_part_of_a_character_and_ids_outside(tokenizer):
    first, *rest = tokenizer.encode("\U0001f9ff")  # rare enough to take several tokens
    assert rest and tokenizer.decode([first]) == "\N{REPLACEMENT CHARACTER}"
    assert tokenizer.pieces([first])[0].startswith(r"\xf0")
    for outside in (-1, tokenizer.vocab_size):
        with pytest.raises(ValueError, match="outside the vocabulary"):
            tokenizer.decode([outside])
    with pytest.raises(UnicodeEncodeError):
        tokenizer.encode("\ud800")


def from_definition(tokenizer):
    rebuilt = tokenizers.Tokenizer.from_str(json.dumps(tokenizer.definition()))
    rebuilt.encode_special_tokens = True
    return rebuilt


def test_the_definition_gives_the_same_ids_and_text(tokenizer):
    """The real one, whose file has no merges, too: whole words, rare letters, no word at all."""
    rebuilt = from_definition(tokenizer)
    assert rebuilt.get_vocab_size() == tokenizer.vocab_size
    draw = random.Random(0)
    letters = "aAbcdeéß日本語 שלום\n\t 0123'sẞ🎉👩‍.,;:/\\\r()[]{}<>|"
    noise = ["".join(draw.choices(letters, k=draw.randint(1, 30))) for _ in range(2000)]
    texts = [next(documents(name, "validation", seed=0)) for name in DOMAINS]
    for text in [*SAMPLES, *noise, *texts]:
        ids = rebuilt.encode(text, add_special_tokens=False).ids
        assert ids == tokenizer.encode(text), text
        assert rebuilt.decode(ids) == text
    for name, token in tokenizer.special.items():
        assert rebuilt.token_to_id(name) == token


@needs_real
def test_pairs_lead_to_every_token_of_the_real_vocabulary(real):
    """tiktoken looks a whole piece up before it merges; the pairs alone must come to the same."""
    texts = []
    for token in range(real.vocab_size - len(real.special)):
        text = real.decode([token])
        texts += [] if "\N{REPLACEMENT CHARACTER}" in text else [text]
    assert len(texts) > 198_000
    found = from_definition(real).encode_batch(texts, add_special_tokens=False)
    assert all(one.ids == real.encode(text) for one, text in zip(found, texts, strict=True))


# ---- the small one ----


def test_the_small_vocabulary():
    mini = load_tokenizer()
    assert mini.vocab_size == 2048 and mini.begin == 2048 - len(ROLES)
    assert list(mini.special) == list(ROLES)
    assert mini.pieces(mini.encode("2048")) == list("2048")  # digits one at a time
    text = "The function returns the number of items in the list."
    assert len(mini.encode(text)) < len(text) / 2


def test_training_is_repeatable(tmp_path):
    for folder in ("a", "b"):
        train(tmp_path / folder, vocab_size=400, characters=5000, seed=0)
    first, second = (tmp_path / f / "tokenizer.json" for f in ("a", "b"))
    assert first.read_bytes() == second.read_bytes()
    assert sorted(p.name for p in first.parent.iterdir()) == ["README.md", "tokenizer.json"]
    assert load_tokenizer(first).vocab_size == 400


def test_training_needs_room_and_text(tmp_path):
    with pytest.raises(ValueError, match="at least 271"):
        train(tmp_path, vocab_size=100, characters=1000, seed=0)
    with pytest.raises(ValueError, match="take more"):
        train(tmp_path, vocab_size=4000, characters=50, seed=0)
    assert not list(tmp_path.iterdir())


def test_broken_json_files(tmp_path):
    whole = SHIPPED.read_text(encoding="utf-8")
    file = tmp_path / "tokenizer.json"
    for text, message in [
        (whole[: len(whole) // 2], "not a complete"),
        ("{}", "not a complete"),
        (whole.replace("<|patch|>", "<|other|>"), r"lacks .*<\|patch\|>"),
    ]:
        file.write_text(text, encoding="utf-8")
        with pytest.raises(TokenizerError, match=message):
            load_tokenizer(tmp_path)


def test_missing_files_say_what_was_expected(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"tokenizer\.model or tokenizer\.json"):
        load_tokenizer(tmp_path)


# ---- the real one ----

IDS = {
    "begin_of_text": 200000, "end_of_text": 200001, "fim_prefix": 200002, "fim_middle": 200003,
    "fim_suffix": 200004, "header_start": 200005, "header_end": 200006, "eom": 200007,
    "eot": 200008, "step": 200009, "text_post_train_reserved_special_token_0": 200010,
    "text_post_train_reserved_special_token_5": 200015, "python_start": 200016,
    "python_end": 200017, "finetune_right_pad": 200018,
    "text_post_train_reserved_special_token_8": 200019,
    "text_post_train_reserved_special_token_68": 200079, "image_start": 200080,
    "image_end": 200081, "tile_x_separator": 200084, "tile_y_separator": 200085, "image": 200090,
    "patch": 200092, "vision_reserved_special_token_1047": 201133,
    "reasoning_reserved_special_token_0": 201134, "reasoning_reserved_special_token_7": 201141,
    "reasoning_thinking_start": 201142, "reasoning_thinking_end": 201143,
    "reserved_special_token_0": 201144, "reserved_special_token_903": 202047,
}  # fmt: skip


def test_table_of_special_ids():
    table = llama4_special_tokens()
    assert len(table) == 2048 and sorted(table.values()) == list(range(200000, 202048))
    assert {name: table[f"<|{name}|>"] for name in IDS} == IDS
    assert "<|text_post_train_reserved_special_token_6|>" not in table


@needs_real
def test_known_ids_of_the_real_vocabulary(real):
    assert real.vocab_size == 202048
    assert real.stop_ids == (200001, 200007, 200008) and real.pad == 200018
    assert real.encode("\n\n") == [368]
    assert real.encode("\nfoo") == [198, 16662] and real.encode("\n\n\nfoo") == [2946, 16662]


@needs_real
def test_same_ids_as_tiktoken_with_metas_pattern(real):
    """The pattern of llama-models, written out; ours is put together from named parts."""
    import tiktoken

    pattern = (
        r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+"
        r"(?i:'s|'t|'re|'ve|'m|'ll|'d)?|"
        r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*"
        r"(?i:'s|'t|'re|'ve|'m|'ll|'d)?|"
        r"\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
    )
    lines = (line.split() for line in REAL.read_bytes().splitlines())
    ranks = {base64.b64decode(token): int(rank) for token, rank in lines}
    reference = tiktoken.Encoding("r", pat_str=pattern, mergeable_ranks=ranks, special_tokens={})
    for text in SAMPLES:
        assert real.encode(text) == reference.encode_ordinary(text), text


@needs_real
def test_very_long_runs(real):
    for text in ("^" * 60_000, " " * 60_000 + "x", "ab " * 150_000):
        assert real.decode(real.encode(text)) == text


def test_broken_model_files(tmp_path):
    lines = [base64.b64encode(bytes([i])) + b" %d" % i for i in range(256)]
    swapped = [*lines[:5], lines[6], *lines[5:]]
    file = tmp_path / "tokenizer.model"
    for content, message in [
        (b"\n".join(lines), "256 base tokens, not 200000"),
        (b"\n".join(swapped), "line 6: rank 6 where 5"),
        (b"\n\x0e\n\x05<unk>\x15\0\0\0\0", "line 1: not base64"),
        (b"\n".join(lines)[:-5], "line 256: not base64"),
        (b"", "0 base tokens"),
    ]:
        file.write_bytes(content)
        with pytest.raises(TokenizerError, match=message):
            load_tokenizer(tmp_path)

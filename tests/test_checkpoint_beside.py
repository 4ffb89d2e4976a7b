"""What is saved beside the weights: the tokenizer, and the ids that end a text."""

import json

import pytest
import torch

import minillama4 as ml4
from minillama4.data.tokenizer import SHIPPED, TokenizerError
from tests.reference import small
from tests.test_data_tokenizer import REAL, needs_real

MINI = ml4.load_tokenizer()
TEXT = "def total(prices):\n\treturn 12 + 7"


@pytest.fixture(scope="module", params=["mini", pytest.param("real", marks=needs_real)])
def tokenizer(request):
    return MINI if request.param == "mini" else ml4.load_tokenizer(REAL)


def of(tokenizer, **changes):
    return small(vocab_size=tokenizer.vocab_size, dtype=torch.float32, **changes)


def generation(folder):
    return json.loads((folder / "generation_config.json").read_text())


def test_transformers_goes_from_text_to_text(tokenizer, tmp_path):
    import transformers

    model = of(tokenizer)
    ml4.save(model, tmp_path / "m", tokenizer=tokenizer)
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path / "m")
    ids = [tokenizer.begin, *tokenizer.encode(TEXT)]
    assert theirs(TEXT).input_ids == ids and theirs.decode(ids[1:]) == TEXT
    assert theirs(TEXT, "b").input_ids == [*ids, tokenizer.begin, *tokenizer.encode("b")]
    assert theirs.eos_token_id == tokenizer.end and theirs.pad_token_id == tokenizer.pad
    assert theirs.model_max_length == model.config.max_length
    assert ml4.load_tokenizer(tmp_path / "m").encode(TEXT) == ids[1:]
    assert generation(tmp_path / "m")["eos_token_id"] == list(tokenizer.stop_ids)


def test_transformers_stops_where_we_say(tmp_path):
    import transformers

    model, ids = of(MINI), [MINI.begin, *MINI.encode(TEXT)]
    (free,) = ml4.complete(model, ids, 12)
    stop = free[3]
    ml4.save(model, tmp_path, tokenizer=MINI, stop=stop)
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path)
    made = theirs.generate(torch.tensor([ids]), max_new_tokens=12, do_sample=False)
    assert made[0, len(ids) :].tolist() == free[: free.index(stop) + 1]


def test_a_model_whose_texts_never_end_names_no_end(tmp_path):
    import transformers

    ml4.save(of(MINI), tmp_path, tokenizer=MINI, stop=())
    assert transformers.AutoTokenizer.from_pretrained(tmp_path).eos_token is None
    assert "eos_token_id" not in generation(tmp_path)


def test_an_old_tokenizer_stays_unless_another_is_given(tmp_path):
    model, names = of(MINI), ("tokenizer.json", "tokenizer_config.json")
    for name in names:
        (tmp_path / name).write_text("an old one")
    ml4.save(model, tmp_path)
    assert [(tmp_path / name).read_text() for name in names] == ["an old one"] * 2
    assert "eos_token_id" not in generation(tmp_path)
    ml4.save(model, tmp_path, overwrite=True, tokenizer=MINI, stop=MINI.begin)
    assert ml4.load_tokenizer(tmp_path).encode(TEXT) == MINI.encode(TEXT)
    assert json.loads((tmp_path / names[1]).read_text())["eos_token"] == "<|begin_of_text|>"
    ml4.save(model, tmp_path, overwrite=True)  # keeps both, and what ends a text
    assert ml4.load_tokenizer(tmp_path).vocab_size == MINI.vocab_size
    assert generation(tmp_path)["eos_token_id"] == [MINI.begin]


def test_what_does_not_fit_is_refused_before_anything_is_written(tmp_path):
    with pytest.raises(TokenizerError, match=r"has 2,048 tokens, the model \d+"):
        ml4.save(small(), tmp_path / "m", tokenizer=MINI)
    with pytest.raises(TypeError, match=r"ml4\.load_tokenizer, not a Tokenizer"):
        import tokenizers

        ml4.save(of(MINI), tmp_path / "m", tokenizer=tokenizers.Tokenizer.from_file(str(SHIPPED)))
    for stop in (2048, "<|eot|>", [-1]):
        with pytest.raises(ValueError, match="stop names"):
            ml4.save(of(MINI), tmp_path / "m", stop=stop)
    assert not list(tmp_path.iterdir())

"""Generated text is transformers', token for token, and each row is what it would be alone."""

import pytest
import torch

import minillama4 as ml4
from minillama4.serve import generate as writing
from minillama4.serve.generate import ENDED
from tests.reference import (
    full_precision,
    hf_twin,
    place_patches,
    random_images,
    random_tokens,
    small,
    small_multimodal,
)

NEW = 30  # over three chunk borders and more


@pytest.fixture(params=["flat", "through the model"])
def way(request, monkeypatch):
    """Both ways to read a new token."""
    if request.param != "flat":
        monkeypatch.setattr(writing, "flat", lambda model: False)
    return request.param


def theirs(model, tokens):
    twin = hf_twin(model)
    twin.generation_config.eos_token_id = None  # its default would end a row at id 2
    with full_precision(), torch.no_grad():
        done = twin.generate(tokens, max_new_tokens=NEW, do_sample=False)
    return done[:, tokens.shape[1] :].tolist()


@pytest.mark.parametrize("length", [1, 8, 21])  # a chunk holds 8
@pytest.mark.parametrize("changes", [{}, dict(moe_every=2, qk_norm=False), dict(top_k=2)])
def test_greedy_text_is_that_of_transformers(length, changes, way):
    model = small(3, **changes)
    tokens = random_tokens(model.config, 2, length)
    assert ml4.complete(model, tokens, NEW) == theirs(model, tokens)


def test_rows_of_unequal_prompts_are_continued_as_alone(way):
    model = small()
    prompts = [random_tokens(model.config, 1, n, n)[0].tolist() for n in (23, 8, 3)]
    alone = [ml4.complete(model, prompt, NEW)[0] for prompt in prompts]
    assert ml4.complete(model, prompts, NEW) == alone


@pytest.mark.parametrize("side", ["left", "right"])
def test_padded_rows_are_continued_as_alone(side, way):
    model = small()
    prompts = [random_tokens(model.config, 1, n, n)[0] for n in (19, 8, 1)]
    options = dict(batch_first=True, padding_side=side)
    tokens = torch.nn.utils.rnn.pad_sequence(prompts, **options)
    real = torch.nn.utils.rnn.pad_sequence([torch.ones_like(p) for p in prompts], **options).bool()
    alone = [ml4.complete(model, prompt, NEW)[0] for prompt in prompts]
    assert ml4.complete(model, tokens, NEW, attention_mask=real) == alone


def test_an_image_in_the_prompt_is_read_once(way):
    model = small_multimodal()
    tokens = place_patches(model.config, random_tokens(model.config, 1, 11), (0, 3))
    images = random_images(model.config, 2, torch.float64)
    for image in images[:, None]:
        text = tokens.clone()
        for written in ml4.complete(model, tokens, 6, images=image)[0]:
            with torch.no_grad():
                logits = model(text, images=image)[0, -1]
            assert logits.argmax() == written
            if written == model.config.patch_token:  # then the full text would want a second image
                break
            text = torch.cat([text, torch.tensor([[written]])], dim=1)
    one, other = (ml4.complete(model, tokens, NEW, images=image) for image in images[:, None])
    assert one != other


def test_a_row_ends_with_its_stop_token(way):
    model = small()
    tokens = random_tokens(model.config, 2, 9)
    free = ml4.complete(model, tokens, NEW)
    stop = free[0][4]
    cut = [row[: row.index(stop) + 1] if stop in row else row for row in free]
    for cache in (None, ml4.KVCache(model.config)):
        assert ml4.complete(model, tokens, NEW, stop=stop, cache=cache) == cut
    seen = torch.stack(list(ml4.generate(model, tokens, NEW, stop=stop)), 1)
    assert (seen[0, len(cut[0]) :] == ENDED).all()
    assert cache.lengths == tuple(9 + len(row) - 1 for row in cut)  # the last one is not read


def test_a_cache_is_continued(way):
    model = small()
    tokens = random_tokens(model.config, 2, 20)
    cache = ml4.KVCache(model.config)
    with torch.no_grad():
        model(tokens[:, :13], cache=cache)
    assert ml4.complete(model, tokens[:, 13:], NEW, cache=cache) == ml4.complete(model, tokens, NEW)
    assert cache.lengths == (20 + NEW - 1,) * 2


def test_seeds_modes_and_the_global_random_state():
    model = small().train()
    before = torch.get_rng_state()
    options = dict(temperature=1.0, top_p=0.9)
    first, same, other = (ml4.complete(model, [1, 2], NEW, seed=s, **options) for s in (0, 0, 1))
    assert first == same != other
    assert torch.get_rng_state().equal(before) and model.training
    for token in ml4.generate(model, [1, 2], 2):  # between tokens nothing is switched
        assert torch.is_grad_enabled() and not torch.is_inference_mode_enabled()
        assert not token.is_inference() and model.training


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (dict(tokens=[]), "prompt is empty"),
        (dict(tokens=[[1], []]), "prompt is empty"),
        (dict(tokens="text"), "token ids, not text"),
        (dict(tokens=[29]), "outside this model's vocabulary"),
        (dict(max_new_tokens=0), "max_new_tokens"),
        (dict(max_new_tokens=299), "at most 298"),
        (dict(stop=[29]), "stop names 29"),
        (dict(temperature=-1), "temperature must be"),
        (dict(cache=ml4.KVCache(ml4.Llama4Config.nano())), "another model"),
    ],
)
def test_errors_are_raised_by_the_call(wrong, message):
    with pytest.raises((ValueError, TypeError, IndexError), match=message):
        ml4.generate(small(), **(dict(tokens=[1, 2], max_new_tokens=3) | wrong))


def test_text_is_streamed_in_whole_characters():
    tokenizer = ml4.load_tokenizer()
    ids = tokenizer.encode("naïve Grüße, 日本語 🙂!")
    parts = list(tokenizer.stream(ids))
    assert "".join(parts) == tokenizer.decode(ids) and not any("\ufffd" in part for part in parts)
    assert "".join(tokenizer.stream(ids[:-2])) == tokenizer.decode(ids[:-2])

"""A prompt that begins like an earlier one is continued as if it had been read whole."""

import pytest
import torch

import minillama4 as ml4
from minillama4.serve.generate import read
from minillama4.serve.prompt_cache import PromptCache, beginning, reusable
from tests.reference import random_tokens, small, small_multimodal

NEW = 20  # over two chunk borders and more; a chunk holds 8
ROOM = 10**9


def ids(model, length, seed=0):
    return random_tokens(model.config, 1, length, seed)[0].tolist()


def cache_of(model, tokens):
    cache = ml4.KVCache(model.config)
    read(model, torch.tensor([tokens]), cache)
    return cache


def text(steps):
    return [token.item() for token in steps]


@pytest.mark.parametrize("changes", [{}, dict(moe_every=2, qk_norm=False), dict(chunk=None)])
@pytest.mark.parametrize("shared", [1, 8, 9, 21, 30])
@pytest.mark.parametrize("stored", [9, 24, 30])
def test_the_text_is_the_same_and_less_is_read(stored, shared, changes):
    model, shared = small(**changes), min(shared, stored)
    first = ids(model, stored)
    second = first[:shared] + ids(model, 13, seed=1)
    store = PromptCache(model, ROOM)
    assert text(store.generate(first, NEW)) == ml4.complete(model, first, NEW)[0]
    cache, rest = store.find(second)
    chunk = model.config.chunk
    reach = shared if chunk is None or shared >= stored // chunk * chunk else shared // 8 * 8
    assert len(second) - len(rest) >= reach  # more where the draws agree by chance
    assert (cache.lengths or (0,))[0] + len(rest) == len(second)
    assert text(store.generate(second, NEW)) == ml4.complete(model, second, NEW)[0]


@pytest.mark.parametrize("length", [8, 13, 16])
def test_the_same_prompt_again_leaves_a_token_to_read(length):
    model = small()
    store, prompt = PromptCache(model, ROOM), ids(model, length)
    first = text(store.generate(prompt, NEW))
    _, rest = store.find(prompt)
    assert rest == prompt[len(prompt) - len(rest) :] and 1 <= len(rest) <= 8
    assert text(store.generate(prompt, NEW)) == first and len(store) == 1


def test_logits_are_those_of_the_whole_prompt():
    model = small()
    tokens = random_tokens(model.config, 1, 40)
    held = cache_of(model, tokens[0, :29].tolist())
    for length in (0, 8, 16, 24, 25, 28, 29):
        cache = beginning(held, length)
        logits = read(model, tokens[:, length:], cache)
        with torch.no_grad():
            torch.testing.assert_close(logits, model(tokens)[:, -1], rtol=1e-10, atol=1e-10)


def test_what_was_found_is_written_on_and_the_store_stays():
    """Two continue from the same text at once, past borders, in turns."""
    model = small()
    store, prompt = PromptCache(model, ROOM), ids(model, 21)
    store.keep(prompt, cache_of(model, prompt))
    held = store.texts[0].cache.layers
    kept = [(layer.keys.clone(), layer.values.clone()) for layer in held]
    prompts = [prompt + ids(model, 4, seed) for seed in (1, 2)]
    rows = zip(*(store.generate(each, NEW) for each in prompts), strict=True)
    both = [list(map(int, row)) for row in zip(*rows, strict=True)]
    assert both == [ml4.complete(model, each, NEW)[0] for each in prompts]
    for layer, (keys, values) in zip(held, kept, strict=True):
        assert layer.keys.equal(keys) and layer.values.equal(values)


def test_the_callers_cache_may_go_on_after_it_was_kept():
    model = small()
    store, prompt = PromptCache(model, ROOM), ids(model, 21)
    cache = cache_of(model, prompt)
    store.keep(prompt, cache)
    with torch.no_grad():
        model(random_tokens(model.config, 1, 30, 5), cache=cache)
    again = [*prompt, 3]
    assert text(store.generate(again, NEW)) == ml4.complete(model, again, NEW)[0]


def test_a_conversation_goes_on_from_what_was_written():
    model = small()
    prompt = ids(model, 11)
    cache = ml4.KVCache(model.config)
    written = text(ml4.generate(model, prompt, NEW, cache=cache))
    store = PromptCache(model, ROOM)
    store.keep(prompt + written[:-1], cache)
    longer = prompt + written + ids(model, 5, 1)
    found, rest = store.find(longer)
    assert rest == longer[len(prompt) + NEW - 1 :]
    assert ml4.complete(model, rest, NEW, cache=found) == ml4.complete(model, longer, NEW)


def test_another_beginning_shares_nothing():
    model = small()
    prompt = ids(model, 20)
    store = PromptCache(model, ROOM)
    store.keep(prompt, cache_of(model, prompt))
    other = [(prompt[0] + 1) % 28, *prompt[1:]]
    cache, rest = store.find(other)
    assert cache.lengths is None and rest == other
    assert store.find([prompt[0]])[0].lengths is None  # its one token is left to be read


def test_the_least_recently_used_text_goes_first():
    model = small()
    prompts = [[seed, *ids(model, 16, seed)] for seed in range(4)]
    one = beginning(cache_of(model, prompts[0]), 17).bytes
    store = PromptCache(model, 3 * one)
    for prompt in prompts[:3]:
        store.keep(prompt, cache_of(model, prompt))
    assert store.bytes == 3 * one and len(store) == 3
    store.find([*prompts[0], 1])  # used: now the second is the oldest
    store.keep(prompts[3], cache_of(model, prompts[3]))
    found = [18 - len(store.find([*prompt, 1])[1]) for prompt in prompts]
    assert found == [17, 0, 17, 17] and store.bytes <= store.room
    store.keep(prompts[2], cache_of(model, prompts[2]))  # kept again: used, and not twice
    store.keep(prompts[1], cache_of(model, prompts[1]))
    assert [text.tokens[0].item() for text in store.texts] == [3, 2, 1]


def test_a_text_that_outgrows_the_room_drives_nothing_out():
    model = small()
    prompt = ids(model, 9)
    store = PromptCache(model, beginning(cache_of(model, prompt), 9).bytes)
    store.keep(prompt, cache_of(model, prompt))
    longer = ids(model, 33, 1)
    store.keep(longer, cache_of(model, longer))
    assert len(store) == 1 and len(store.find([*prompt, 1])[1]) == 1


def test_only_as_much_is_kept_as_can_be_used():
    """A longer text takes the place of its beginning where it can be cut back to it."""
    model = small()
    prompt = ids(model, 30)
    store = PromptCache(model, ROOM)
    for length in (16, 25, 27, 30):
        store.keep(prompt[:length], cache_of(model, prompt[:length]))
    assert [len(text.tokens) for text in store.texts] == [30]
    store.keep(prompt[:21], cache_of(model, prompt[:21]))  # between borders: 30 cannot give it
    assert len(store) == 2 and len(store.find([*prompt[:21], 28])[1]) == 1
    cache = ml4.KVCache(model.config)  # with room to spare, which is not kept
    read(model, torch.tensor([prompt]), cache)
    (held,) = {layer.keys.shape[2] for layer in store.texts[0].cache.layers[3:4]}
    assert held == 30


def test_many_prompts_that_overlap_at_random_in_little_room():
    """Three tokens only, so that beginnings meet; each first logits are those of the whole."""
    model = small()
    store = PromptCache(model, room=40_000)
    draw = torch.Generator().manual_seed(0)
    found = 0
    for _ in range(60):
        base = store.texts[-1].tokens if store.texts else torch.zeros(1, dtype=torch.int64)
        keep = int(torch.randint(len(base) + 1, (), generator=draw))
        length = int(torch.randint(1, 30, (), generator=draw))
        prompt = torch.cat([base[:keep], torch.randint(3, (length,), generator=draw)])[:60]
        cache, rest = store.find(prompt)
        found += len(prompt) - len(rest)
        logits = read(model, torch.tensor([rest]), cache)
        with torch.no_grad():
            whole = model(prompt[None], last_only=True)[:, 0]
        torch.testing.assert_close(logits, whole, rtol=1e-10, atol=1e-10)
        store.keep(prompt, cache)
        assert store.bytes <= store.room
    assert found > 300 and len(store) > 1


def test_reusable_counts_borders_and_the_last_chunk():
    # a cache of 20 tokens, chunks of 8: it holds 16 to 19 everywhere
    assert [reusable(n, 20, 8) for n in (0, 7, 8, 15, 16, 17, 20)] == [0, 0, 8, 8, 16, 17, 20]
    assert [reusable(n, 16, 8) for n in (7, 8, 15, 16)] == [0, 8, 8, 16]
    assert reusable(13, 20, None) == 13


def test_several_rows_are_refused():
    model = small()
    cache = ml4.KVCache(model.config)
    rows = torch.nn.utils.rnn.pad_sequence([torch.tensor(ids(model, n)) for n in (9, 4)], True)
    read(model, rows, cache, torch.arange(9) < torch.tensor([[9], [4]]))
    store = PromptCache(model, ROOM)
    with pytest.raises(ValueError, match=r"2 rows, of 9, 4 tokens.*cache.select\(\[row\]\)"):
        store.keep(ids(model, 9), cache)
    with pytest.raises(ValueError, match="one prompt at a time"):
        store.generate([[1, 2], [3]], NEW)
    with pytest.raises(ValueError, match=r"one prompt \(t,\), not \(1, 3\)"):
        store.find(torch.tensor([[1, 2, 3]]))
    store.keep(ids(model, 4), cache.select([1]))
    longer = [*ids(model, 4), 5, 6]
    assert text(store.generate(longer, NEW)) == ml4.complete(model, longer, NEW)[0]


def test_what_does_not_fit_is_said():
    model, other = small(), small(chunk=4)
    store, prompt = PromptCache(model, ROOM), ids(model, 20)
    cache = cache_of(model, prompt)
    with pytest.raises(ValueError, match="has read 20 tokens, but 21 were given"):
        store.keep([*prompt, 1], cache)
    with pytest.raises(ValueError, match="another model"):
        store.keep(prompt, cache_of(other, prompt))
    with pytest.raises(ValueError, match="read nothing yet"):
        store.keep(prompt, ml4.KVCache(model.config))
    with pytest.raises(ValueError, match=r"cannot be cut to 13.*multiple of 8"):
        beginning(cache, 13)
    with pytest.raises(ValueError, match="room must be"):
        PromptCache(model, 0)
    with pytest.raises(TypeError, match="not text"):
        store.find("Hello")
    with pytest.raises(ValueError, match="prompt is empty"):
        store.find([])


def test_pictures_are_refused():
    """The same ids can stand for other pictures."""
    model = small_multimodal()
    store = PromptCache(model, ROOM)
    with pytest.raises(ValueError, match="pictures"):
        store.find([1, model.config.patch_token, 2])
    with pytest.raises(ValueError, match="takes no images"):
        store.generate([1, 2], NEW, images=torch.zeros(1))

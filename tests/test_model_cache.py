"""Reading in pieces is reading at once: the cache, chunk borders, padding, and what is kept."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import minillama4 as ml4
from minillama4.model.attention import locate
from tests.reference import (
    TIGHT,
    configs,
    error,
    full_precision,
    hf_twin,
    pieces,
    place_patches,
    random_images,
    random_model,
    random_tokens,
    seeds,
    small,
    small_multimodal,
)


@torch.no_grad()
def in_pieces(model, tokens, sizes, cache=None):
    cache = ml4.KVCache(model.config) if cache is None else cache
    return torch.cat([model(piece, cache=cache) for piece in tokens.split(sizes, dim=1)], dim=1)


# ------------------------------------------------------------------ pieces
@torch.no_grad()
@settings(max_examples=60, deadline=None)
@given(configs(), seeds(), st.data())
def test_any_pieces_equal_the_full_forward(config, seed, data):
    model = random_model(config, seed)
    length = 4 * config.chunk + seed % 5
    sizes = data.draw(pieces(length))
    tokens = random_tokens(config, 2, length, seed)
    assert error(in_pieces(model, tokens, sizes), model(tokens)) < TIGHT


@torch.no_grad()
@pytest.mark.parametrize("prompt", [1, 7, 8, 9, 15, 16, 17])
def test_a_prompt_and_then_one_by_one(prompt):
    model = small()
    tokens = random_tokens(model.config, 2, 33)
    sizes = [prompt] + [1] * (33 - prompt)
    assert error(in_pieces(model, tokens, sizes), model(tokens)) < TIGHT


@torch.no_grad()
@settings(max_examples=25, deadline=None)
@given(configs(), seeds(), st.data())
def test_decoding_equals_transformers(config, seed, data):
    """transformers is right here as long as nothing is padded."""
    import transformers

    model = random_model(config, seed)
    length = 4 * config.chunk + seed % 5
    sizes = data.draw(pieces(length))
    tokens = random_tokens(config, 2, length, seed)
    twin = hf_twin(model)
    memory, theirs = transformers.DynamicCache(config=twin.config), []
    with full_precision():
        for piece in tokens.split(sizes, dim=1):
            theirs.append(twin(input_ids=piece, past_key_values=memory, use_cache=True).logits)
    assert error(in_pieces(model, tokens, sizes), torch.cat(theirs, dim=1)) < TIGHT


@torch.no_grad()
def test_images_in_the_piece_that_holds_their_patches():
    model = small_multimodal()
    tokens = place_patches(model.config, random_tokens(model.config, 1, 30), (0, 3), (0, 14))
    images = random_images(model.config, 2, torch.float64)
    cache, parts = ml4.KVCache(model.config), []
    for piece, tiles in zip(tokens.split([9, 12, 9], 1), [images[:1], images[1:], None]):  # noqa: B905
        parts.append(model(piece, images=tiles, cache=cache))
    assert error(torch.cat(parts, dim=1), model(tokens, images=images)) < TIGHT


# ------------------------------------------------------------------ padding
def pad(rows: list[torch.Tensor], side: str) -> tuple[torch.Tensor, torch.Tensor]:
    """Rows of different lengths as (tokens, attention_mask)."""
    width = max(len(row) for row in rows)
    tokens = torch.zeros(len(rows), width, dtype=torch.int64)
    mask = torch.zeros(len(rows), width, dtype=torch.bool)
    for i, row in enumerate(rows):
        where = slice(width - len(row), width) if side == "left" else slice(len(row))
        tokens[i, where], mask[i, where] = row, True
    return tokens, mask


@torch.no_grad()
@pytest.mark.parametrize("side", ["left", "right"])
@settings(max_examples=30, deadline=None)
@given(configs(), seeds(), st.data())
def test_a_padded_batch_equals_each_row_alone(side, config, seed, data):
    model = random_model(config, seed)
    lengths = data.draw(st.lists(st.integers(1, 4 * config.chunk), min_size=2, max_size=4))
    rows = [random_tokens(config, 1, n, seed + i)[0] for i, n in enumerate(lengths)]
    tokens, mask = pad(rows, side)
    together = model(tokens, attention_mask=mask)
    for i, row in enumerate(rows):
        assert error(together[i][mask[i]], model(row[None])[0]) < TIGHT


@torch.no_grad()
def test_left_padding_equals_transformers_where_it_is_right():
    """Its temperature counts slots, not positions: compared with temperature off."""
    model = small(temperature=False)
    rows = [random_tokens(model.config, 1, n, n)[0] for n in (37, 20, 9)]
    tokens, mask = pad(rows, "left")
    ours = model(tokens, attention_mask=mask)
    with full_precision():
        positions = (mask.cumsum(1) - 1).clamp_min(0)
        theirs = hf_twin(model)(
            input_ids=tokens, attention_mask=mask.long(), position_ids=positions, use_cache=False
        ).logits
    assert error(ours[mask], theirs[mask]) < TIGHT


@st.composite
def schedules(draw, chunk: int):
    """How many real tokens each row reads in each piece, some none, and where padding stands."""
    rows, count = draw(st.integers(1, 3)), draw(st.integers(1, 6))
    masks = []
    for _ in range(count):
        width = draw(st.integers(1, chunk + 3))
        one = st.lists(st.booleans(), min_size=width, max_size=width)
        row = one | st.just([False] * width) | st.just([True] * width)
        masks.append(torch.tensor([draw(row) for _ in range(rows)]))
    return masks


def no_more_than_a_chunk(cache) -> bool:
    rope = [m for i, m in enumerate(cache.layers) if i not in cache.config.nope_layers]
    return all(m.keys is None or m.keys.shape[2] <= cache.config.chunk for m in rope)


@torch.no_grad()
@settings(max_examples=80, deadline=None)
@given(configs(), seeds(), st.data())
def test_ragged_rows_in_pieces_with_padding_anywhere(config, seed, data):
    """Rows advance at their own pace, padding stands anywhere in a piece, some rows only wait."""
    model = random_model(config, seed)
    masks = data.draw(schedules(config.chunk))
    cache, read = ml4.KVCache(config), [[] for _ in masks[0]]
    seen = [[] for _ in masks[0]]
    for step, mask in enumerate(masks):
        tokens = random_tokens(config, *mask.shape, seed + step)
        logits = model(tokens, cache=cache, attention_mask=mask)
        for i, real in enumerate(mask):
            read[i] += tokens[i][real].tolist()
            seen[i] += [logits[i][real]]
        assert no_more_than_a_chunk(cache)
    assert cache.lengths == tuple(len(row) for row in read)
    for row, parts in zip(read, seen, strict=True):
        if row:
            alone = model(torch.tensor([row]))[0]
            assert error(torch.cat(parts), alone) < TIGHT


@torch.no_grad()
def test_a_ragged_prompt_then_decoding_without_a_mask():
    """The way generation goes: rows of different lengths, then one token for each, at once."""
    model = small()
    rows = [random_tokens(model.config, 1, n, n)[0] for n in (23, 8, 3)]
    more = random_tokens(model.config, 3, 20, 99)
    tokens, mask = pad(rows, "left")
    cache = ml4.KVCache(model.config)
    model(tokens, cache=cache, attention_mask=mask)
    decoded = in_pieces(model, more, [1] * 20, cache)
    for i, row in enumerate(rows):
        alone = model(torch.cat([row, more[i]])[None])[0, len(row) :]
        assert error(decoded[i], alone) < TIGHT


@torch.no_grad()
def test_what_stands_in_padding_does_not_matter():
    model = small()
    tokens = random_tokens(model.config, 2, 20)
    mask = random_tokens(model.config, 2, 20, seed=1) < 18
    other = torch.where(mask, tokens, (tokens + 1) % 28)
    ours, same = (model(t, attention_mask=mask)[mask] for t in (tokens, other))
    assert error(ours, same) < 1e-13  # experts meet other batch sizes, so not bit for bit


# ------------------------------------------------------------------ what is kept
@torch.no_grad()
@settings(max_examples=30, deadline=None)
@given(configs(), seeds(), st.data())
def test_rope_layers_keep_one_chunk_and_nope_layers_everything(config, seed, data):
    model = random_model(config, seed)
    length = 6 * config.chunk
    tokens, cache = random_tokens(config, 1, length, seed), ml4.KVCache(config)
    for piece in tokens.split(data.draw(pieces(length)), dim=1):
        model(piece, cache=cache)
        assert no_more_than_a_chunk(cache)
        for i in config.nope_layers:
            held = cache.layers[i].keys.shape[2]
            assert cache.lengths[0] <= held <= max(2 * cache.lengths[0], 16)


def remember(config: ml4.Llama4Config, length: int) -> ml4.KVCache:
    """The real layers' cache after one prompt, on the meta device: shapes without memory."""
    cache = ml4.KVCache(config)
    shape = 1, config.kv_heads, length, config.head_width
    key = torch.empty(shape, dtype=torch.bfloat16, device="meta")
    with torch.device("meta"):
        place = locate(config, (0,), length, None, "meta")
    for layer in cache.layers:
        layer.attend(key, key, key, place)
    return cache


@pytest.mark.parametrize(
    ("tokens", "full", "bounded"),
    [(8_191, 1.5, 1.5), (32_767, 6, 2.625), (131_071, 24, 7.125), (1_048_575, 192, 49.125)],
)
def test_the_real_sizes_in_gibibytes(tokens, full, bounded):
    """Spec section 13; one token less, as a RoPE layer is empty at a chunk border."""
    scout = ml4.Llama4Config.scout()
    assert remember(scout, tokens).bytes == pytest.approx(bounded * 2**30, rel=2e-4)
    everything = remember(scout.replace(chunk=None), tokens)
    assert everything.bytes == 196_608 * tokens
    assert everything.bytes == pytest.approx(full * 2**30, rel=2e-4)


def test_a_prompt_that_ends_on_a_chunk_border_leaves_rope_layers_empty():
    scout = ml4.Llama4Config.scout()
    assert remember(scout, 16_384).bytes == 12 * 4096 * 16_384  # the NoPE layers alone


def test_no_gradient_is_kept():
    model = small()
    cache = ml4.KVCache(model.config)
    logits = model(random_tokens(model.config, 1, 12), cache=cache)
    assert not logits.requires_grad
    assert not any(layer.keys.requires_grad for layer in cache.layers)
    assert model(random_tokens(model.config, 1, 12)).requires_grad  # nothing was switched off


# ------------------------------------------------------------------ errors
@torch.no_grad()
@pytest.mark.parametrize("kept", [0, 5, 8, 21])
def test_an_error_leaves_the_cache_as_it_was(kept):
    model = small_multimodal(max_length=40)
    c = model.config
    tokens, cache = random_tokens(c, 2, 40), ml4.KVCache(c)
    if kept:
        model(tokens[:, :kept], cache=cache)
    before = cache.lengths
    patches = place_patches(c, tokens[:, :9], (0, 2))
    wrong = [
        ("2 rows, but the tokens have 3", dict(tokens=random_tokens(c, 3, 1))) if kept else None,
        ("max_length is 40", dict(tokens=random_tokens(c, 2, 41 - kept))),
        ("outside this model's vocabulary", dict(tokens=torch.full((2, 3), 29))),
        ("outside this model's vocabulary", dict(tokens=torch.full((2, 3), -1))),
        ("shape", dict(tokens=tokens[0])),
        ("int64", dict(tokens=tokens.float())),
        ("attention_mask", dict(tokens=tokens[:, :3], attention_mask=torch.ones(2, 4).bool())),
        ("attention_mask", dict(tokens=tokens[:, :3], attention_mask=torch.ones(2, 3))),
        ("4 are needed", dict(tokens=patches, images=random_images(c, 2, torch.float64))),
        ("images must have shape", dict(tokens=patches, images=torch.zeros(1, 3, 9, 8))),
    ]
    for message, call in filter(None, wrong):
        with pytest.raises((ValueError, IndexError), match=message):
            model(cache=cache, **call)
        assert cache.lengths == before
    rest = model(tokens[:, kept:], cache=cache)
    assert error(rest, model(tokens)[:, kept:]) < TIGHT


def test_a_full_cache_says_so_and_its_repr_tells_what_it_holds():
    model = small(max_length=10)
    cache = ml4.KVCache(model.config)
    model(random_tokens(model.config, 1, 10), cache=cache)
    assert repr(cache).startswith("KVCache(lengths=(10,)")
    with pytest.raises(ValueError, match="11 tokens"):
        model(random_tokens(model.config, 1, 1), cache=cache)


def test_a_call_cut_off_halfway_is_not_continued():
    """Its first layers have written the next chunk over this one; the same call again is wrong."""
    model = small()
    tokens = random_tokens(model.config, 1, 20)
    cache = ml4.KVCache(model.config)
    model(tokens[:, :5], cache=cache)
    hook = model.blocks[-1].register_forward_pre_hook(lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        model(tokens[:, 5:], cache=cache)
    hook.remove()
    with pytest.raises(RuntimeError, match=r"halfway.*new KVCache"):
        model(tokens[:, 5:], cache=cache)


def test_a_cache_of_another_model_is_refused():
    model = small()
    tokens = random_tokens(model.config, 1, 4)
    other = ml4.KVCache(model.config.replace(chunk=model.config.chunk - 1))
    with pytest.raises(ValueError, match=r"KVCache\(model\.config\)"):
        model(tokens, cache=other)
    with pytest.raises(TypeError, match="config, not a Llama4"):
        ml4.KVCache(model)


def test_a_model_that_was_cast_needs_a_new_cache():
    model = small()
    tokens = random_tokens(model.config, 1, 4)
    cache = ml4.KVCache(model.config)
    model(tokens, cache=cache)
    with pytest.raises(ValueError, match=r"torch\.bfloat16.*new KVCache"):
        model.bfloat16()(tokens, cache=cache)


INFERENCE, PLAIN = torch.inference_mode, torch.no_grad


@pytest.mark.parametrize("modes", [(INFERENCE, PLAIN, INFERENCE), (PLAIN, INFERENCE, PLAIN)])
def test_inference_mode_and_no_grad_mix(modes):
    model = small()
    tokens = random_tokens(model.config, 2, 21)
    cache, parts = ml4.KVCache(model.config), []
    for piece, mode in zip(tokens.split(7, dim=1), modes, strict=True):
        with mode():
            parts.append(model(piece, cache=cache))
    with torch.no_grad():
        assert error(torch.cat(parts, 1), model(tokens)) < TIGHT


@torch.no_grad()
def test_long_pieces_after_a_start_are_cut_and_right(monkeypatch):
    monkeypatch.setattr("minillama4.model.cache.LONGEST_PIECE", 6)
    model = small()
    tokens = random_tokens(model.config, 2, 50)
    cache = ml4.KVCache(model.config)
    parts = [model(piece, cache=cache) for piece in tokens.split([3, 40, 7], dim=1)]
    assert error(torch.cat(parts, 1), model(tokens)) < TIGHT


def test_padding_does_not_count_towards_the_longest_sequence():
    model = small(max_length=16)
    tokens = random_tokens(model.config, 2, 10)
    mask = torch.ones_like(tokens, dtype=torch.bool)
    mask[1, 2:] = False
    cache = ml4.KVCache(model.config)
    model(tokens, cache=cache, attention_mask=mask)
    more = torch.arange(8).expand(2, 8) < torch.tensor([[6], [8]])
    model(tokens[:, :8], cache=cache, attention_mask=more)
    assert cache.lengths == (16, 10)
    with pytest.raises(ValueError, match=r"17 tokens.*max_length is 16"):
        model(tokens[:, :1], cache=cache)

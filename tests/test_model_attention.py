"""Who sees whom, how sharply, and that chunks folded into the batch are only a faster way."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import minillama4 as ml4
from minillama4.model.attention import attend_causal, attend_chunks, attention_temperature, locate
from tests.reference import error, noise, random_tokens, seeds, small

SPEC = {0: 1, 8190: 1, 8191: 1.0693, 32_767: 1.1609, 131_071: 1.2833}
SPEC |= {2**20 - 1: 1.4860, 10 * 2**20 - 1: 1.7155}


# ------------------------------------------------------------------ temperature
@pytest.mark.parametrize(("position", "temperature"), SPEC.items())
def test_temperature_as_in_the_spec(position, temperature):
    found = attention_temperature(torch.tensor([[position]]), 8192, 0.1)
    assert found.dtype == torch.float32
    assert found.item() == pytest.approx(temperature, abs=5e-5)
    if position < 8191:
        assert found.item() == 1  # exactly


def test_temperature_grows_at_the_last_token_of_each_floor():
    s = attention_temperature(torch.arange(20)[None], 5, 0.1)[0]
    steps = (s[1:] > s[:-1]).nonzero().flatten() + 1
    assert steps.tolist() == [4, 9, 14, 19]
    assert s[4].item() == pytest.approx(1 + 0.1 * math.log(2))


# ------------------------------------------------------------------ who sees whom
@torch.no_grad()
def changed_positions(model, tokens, moved: int) -> list[list[int]]:
    """For each layer: the positions whose output changes when the token at ``moved`` does."""
    outputs = []
    hooks = [b.register_forward_hook(lambda *a: outputs.append(a[2])) for b in model.blocks]
    other = tokens.clone()
    other[0, moved] = (tokens[0, moved] + 1) % 28
    model(tokens), model(other)
    for hook in hooks:
        hook.remove()
    layers = len(model.blocks)
    pairs = zip(outputs[:layers], outputs[layers:], strict=True)
    # float64 rounding is 1e-16, and an expert's batch may round differently: 1e-12 is no news
    return [((a - b).abs().amax(-1)[0] > 1e-12).nonzero().flatten().tolist() for a, b in pairs]


def reachable(config, length: int, moved: int) -> list[list[int]]:
    """The rule, layer by layer: within the chunk on RoPE layers, everywhere after on NoPE ones."""
    news, layers = {moved}, []
    for layer in range(config.layers):
        news |= {
            p
            for p in range(length)
            for s in news
            if s <= p and (layer in config.nope_layers or p // config.chunk == s // config.chunk)
        }
        layers.append(sorted(news))
    return layers


@pytest.mark.parametrize("nope_at", [(3,), (), (0, 1, 2, 3, 4), (1,), (4,)])
@pytest.mark.parametrize("moved", [0, 7, 8, 12, 23, 36])
def test_a_change_reaches_exactly_the_positions_that_the_rule_names(moved, nope_at):
    model = small(nope_at=nope_at)
    found = changed_positions(model, random_tokens(model.config, 1, 37), moved)
    assert found == reachable(model.config, 37, moved)


def test_the_first_token_of_a_chunk_sees_only_itself():
    """Not a sliding window: position 8 sees 8 alone, position 15 sees 8 to 15."""
    model = small(nope_at=())
    tokens = random_tokens(model.config, 1, 24)
    assert 8 not in changed_positions(model, tokens, 7)[-1]
    assert changed_positions(model, tokens, 8)[-1] == list(range(8, 16))


# ------------------------------------------------------------------ chunks
def dense(q, k, v, chunk):
    """Softmax of masked scores, written out: the definition."""
    k, v = (x.repeat_interleave(q.shape[1] // x.shape[1], dim=1) for x in (k, v))
    p = torch.arange(q.shape[2])
    seen = (p[None] <= p[:, None]) & (p[None] // chunk == p[:, None] // chunk)
    score = (q @ k.mT / q.shape[-1] ** 0.5).masked_fill(~seen, -torch.inf)
    return score.softmax(-1) @ v


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 40), st.integers(1, 12), st.integers(1, 3), st.integers(1, 3), seeds())
def test_folded_chunks_equal_masked_attention(length, chunk, kv_heads, per_head, seed):
    heads = kv_heads * per_head, kv_heads, kv_heads
    q, k, v = (noise(2, h, length, 4, seed=seed + i).requires_grad_() for i, h in enumerate(heads))
    ours, theirs = attend_chunks(q, k, v, chunk), dense(q, k, v, chunk)
    assert error(ours, theirs) < 1e-13
    weight = noise(*ours.shape, seed=seed + 3)
    gradients = [torch.autograd.grad((out * weight).sum(), (q, k, v)) for out in (ours, theirs)]
    for one, other in zip(*gradients, strict=True):
        assert (one - other).abs().max() < 1e-12  # a chunk of one token has none for q and k


def test_a_query_head_reads_the_kv_head_of_its_group():
    """Heads 0 and 1 share the first, 2 and 3 the second: repeated in place, not in turn."""
    q, k, v = noise(1, 4, 6, 8), *noise(2, 1, 2, 6, 8, seed=1)
    out = attend_causal(q, k, v)
    for head in range(4):
        alone = attend_causal(q[:, [head]], k[:, [head // 2]], v[:, [head // 2]])
        assert error(out[:, [head]], alone) < 1e-13


# ------------------------------------------------------------------ q and k of a layer
@torch.no_grad()
def projections(model, layer, length=20):
    x = noise(1, length, 16)
    attention = model.blocks[layer].attention
    place = locate(model.config, (0,), length, None)
    heads = [w(x).view(1, length, -1, 8).transpose(1, 2) for w in (attention.q, attention.k)]
    return heads, attention.project(x, place), place


def test_qk_norm_gives_every_head_of_a_rope_layer_the_same_length():
    _, (q, k, _), _ = projections(small(), 0)
    for u in (q, k):
        assert error(u.square().mean(-1), torch.ones(u.shape[:-1], dtype=u.dtype)) < 1e-3  # eps
    (raw_q, raw_k), (q, k, _), _ = projections(small(qk_norm=False), 0)
    assert error(q.norm(dim=-1), raw_q.norm(dim=-1)) < 1e-6  # RoPE keeps lengths
    assert error(k.norm(dim=-1), raw_k.norm(dim=-1)) < 1e-6


def test_a_nope_layer_leaves_k_alone_and_sharpens_q():
    (raw_q, raw_k), (q, k, _), place = projections(small(), 3)
    assert torch.equal(k, raw_k)
    assert error(q, raw_q * place.temperature[0, :, None]) < 1e-13
    assert place.temperature[0, -1] > place.temperature[0, 0] == 1
    (raw_q, _), (q, _, _), _ = projections(small(temperature=False), 3)
    assert torch.equal(q, raw_q)


@torch.no_grad()
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_temperature_is_cast_back_in_half_precision(dtype):
    """A float32 factor would turn q and the cache to float32, and the next product would fail."""
    model = small(dtype=dtype)
    tokens, cache = random_tokens(model.config, 1, 20), ml4.KVCache(model.config)
    assert model(tokens).dtype == model(tokens, cache=cache).dtype == dtype
    assert {layer.keys.dtype for layer in cache.layers} == {dtype}

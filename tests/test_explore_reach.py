"""Who can see whom, computed and measured; and how widely attention spreads."""

import math

import pytest
import torch

import minillama4 as ml4
from minillama4.explore import (
    attention_entropy,
    drawn_from,
    entropy_by_length,
    kv_entries,
    measured_field,
    one_among,
    receptive_field,
    seen_before,
    trace,
    visible,
)
from minillama4.explore import entropy as entropy_file
from minillama4.explore.variants import WAYS, nope_everywhere, sliding_window

TOKENS = torch.randint(256, (29,), generator=torch.Generator().manual_seed(0))


def config(**changes):
    return ml4.Llama4Config.nano(**{"chunk": 8, "layers": 5, **changes})


def llama(config, seed=0):
    torch.manual_seed(seed)
    return ml4.Llama4(config).eval()


# ------------------------------------------------------------------ one layer
def test_a_chunk_is_no_window():
    c = config()
    chunk, window = visible(c, 0, 20), visible(c, 0, 20, window=True)
    assert chunk[8].nonzero().flatten().tolist() == [8]  # first of its chunk: itself alone
    assert window[8].nonzero().flatten().tolist() == list(range(1, 9))
    assert torch.equal(chunk[15], window[15])  # last of its chunk
    assert torch.equal(visible(c, 3, 20), torch.ones(20, 20).tril().bool())  # NoPE
    assert torch.equal(visible(c.replace(chunk=None), 0, 20), visible(c, 3, 20))


@pytest.mark.parametrize("window", [False, True])
@pytest.mark.parametrize("length", [1, 7, 8, 9, 30])
def test_seen_before_counts_the_masks_rows(length, window):
    c = config()
    for layer in range(c.layers):
        counted = visible(c, layer, length, window).sum(1) - 1
        assert torch.equal(seen_before(c, layer, length, window), counted)
    assert seen_before(c, 0, 20)[[0, 7, 8, 15]].tolist() == [0, 7, 0, 7]


def test_the_mask_is_what_the_model_does():
    model, c = llama(config()), config()
    with trace(model, attention=True) as seen, torch.no_grad():
        model(TOKENS[None])
    for layer in range(c.layers):
        assert torch.equal((seen.attention[layer] > 0)[0, 0], visible(c, layer, len(TOKENS)))


def test_keys_held_are_those_of_the_cache():
    c = config(chunk=16)
    cache, model = ml4.KVCache(c), llama(c)
    for piece in torch.arange(64).split(16):
        with torch.no_grad():
            model(piece[None], cache=cache)
    assert kv_entries(c, 64) == [memory.keys.shape[2] for memory in cache.layers]
    assert kv_entries(c, 64) == [16, 16, 16, 64, 16]
    assert kv_entries(c, 5) == [5] * 5 and kv_entries(c.replace(chunk=None), 64) == [64] * 5
    real = kv_entries(ml4.Llama4Config.scout(), 10_485_760)
    assert real.count(8192) == 36 and real.count(10_485_760) == 12


# ------------------------------------------------------------------ several layers
def test_the_past_comes_through_the_nope_layers_alone():
    field = receptive_field(config(), 29)
    assert torch.equal(field[0], torch.eye(29).bool())
    for layer in range(3):
        assert torch.equal(field[layer + 1], visible(config(), 0, 29))  # no further than a chunk
    assert torch.equal(field[4], torch.ones(29, 29).tril().bool())
    assert torch.equal(field[5], field[4])


def test_a_window_creeps_on_layer_by_layer():
    field = receptive_field(config(nope_at=()), 60, window=True)
    assert field[:, 50].sum(1).tolist() == [1, 8, 15, 22, 29, 36]
    assert receptive_field(config(nope_at=()), 60)[:, 50].sum(1).tolist() == [1, 3, 3, 3, 3, 3]


@pytest.mark.parametrize("window", [False, True])
def test_down_from_a_token_and_up_to_it_agree(window):
    for c in (config(), config(layers=3, nope_at=(1,)), config(nope_at=())):
        whole = receptive_field(c, 29, window)[-1]
        for token in (0, 8, 13, 28):
            down = drawn_from(c, 29, token, window)
            assert torch.equal(down[0], whole[token])
            assert down[-1].nonzero().flatten().tolist() == [token]


@pytest.mark.parametrize(
    "changes",
    [
        *({}, {"moe_every": 2}, {"nope_every": 1}, {"nope_at": (0,), "chunk": 4}),
        *(WAYS["chunks alone"], WAYS["RoPE everywhere"], nope_everywhere(5)),
    ],
    ids=str,
)
def test_a_model_does_what_is_computed(changes):
    """Every token is disturbed in a real model, and felt exactly where it should be."""
    c = config(**changes)
    model = llama(c)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    assert torch.equal(measured_field(model, TOKENS), receptive_field(c, len(TOKENS)))
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name]) and value.dtype == before[name].dtype
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


def test_a_model_with_windows_does_what_is_computed():
    for c in (config(nope_at=(), layers=3), config()):
        model = sliding_window(llama(c))
        assert torch.equal(measured_field(model, TOKENS), receptive_field(c, 29, window=True))


def test_single_tokens_can_be_disturbed():
    model, c = llama(config()), config()
    some = measured_field(model, TOKENS, disturbed=[13, 4])
    assert torch.equal(some, receptive_field(c, 29)[:, :, [13, 4]])


def test_the_shipped_model_reaches_across_its_chunks():
    model = ml4.load(ml4.shipped("mini_scout"))
    tokens = torch.randint(2000, (140,), generator=torch.Generator().manual_seed(0))
    expected = receptive_field(model.config, 140)[:, :, [5, 130]]
    assert torch.equal(measured_field(model, tokens, [5, 130]), expected)
    assert expected[:, :, 0].sum(1).tolist() == [1, 123, 123, 123, 135, 135, 135, 135, 135]


def test_what_is_not_there_is_named():
    with pytest.raises(ValueError, match="no layer 5: this model has 0 to 4"):
        visible(config(), 5, 8)
    with pytest.raises(ValueError, match="no token 8 among 8"):
        drawn_from(config(), 8, 8)
    with pytest.raises(ValueError, match="length must be above 0"):
        seen_before(config(), 0, 0)
    with pytest.raises(ValueError, match=r"shape \(1, 29\): one text"):
        measured_field(llama(config()), TOKENS[None])


# ------------------------------------------------------------------ one relevant among many
def test_with_equal_others_the_formula_is_softmax():
    n, s = 1000, 1.3
    scores = torch.zeros(n, dtype=torch.float64)
    scores[7] = 5.0
    weights = (s * scores).softmax(0)
    weight, entropy = one_among(n, 5.0, 0.0, s)
    torch.testing.assert_close(weight, weights[7])
    torch.testing.assert_close(entropy, -(weights * weights.log()).sum())
    weight, entropy = one_among(n, 0.0, 0.0, s)
    assert math.isclose(float(entropy), math.log(n)) and math.isclose(float(weight), 1 / n)


@pytest.mark.parametrize("advantage", [0.0, 6.0, 9.0, 12.0])
@pytest.mark.parametrize("spread", [0.5, 1.0, 1.5])
def test_with_spread_others_it_is_what_a_draw_gives(advantage, spread):
    n, s = 200_000, 1.2
    noise = torch.randn(n - 1, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    logs = (s * torch.cat([torch.tensor([advantage]), spread * noise])).log_softmax(0)
    weight, entropy = one_among(n, advantage, spread, s)
    assert abs(float(weight - logs[0].exp())) < 0.01
    assert abs(float(entropy + (logs.exp() * logs).sum())) < 0.1


@pytest.mark.parametrize(("n", "advantage"), [(16, 3.0), (16_384, 10.0), (16_384, 8.0)])
def test_however_spread_it_stays_a_weight_and_an_entropy(n, advantage):
    draw = torch.Generator().manual_seed(2)
    noise = torch.randn(200, n - 1, generator=draw, dtype=torch.float64)
    relevant = torch.full((200, 1), advantage, dtype=torch.float64)
    for width in torch.linspace(0, 12, 25):  # far beyond what the mean of many stands for
        weight, entropy = one_among(n, advantage, 3.0, width / 3)
        assert 0 <= weight <= 1 and -1e-9 <= entropy <= math.log(n) + 1e-9
        logs = torch.cat([relevant * width / 3, width * noise], dim=1).log_softmax(1)
        assert abs(float(weight - logs[:, 0].exp().median())) < 0.1
        if width < 0.7 * math.sqrt(2 * math.log(n)):
            assert abs(float(entropy + (logs.exp() * logs).sum(1).mean())) < 0.4


# ------------------------------------------------------------------ a model's own entropy
@pytest.mark.parametrize("at_once", [1, 500, 10**7])
def test_entropy_is_that_of_the_traced_rows(at_once, monkeypatch):
    monkeypatch.setattr(entropy_file, "AT_ONCE", at_once)  # pieces of any size
    model = llama(config(floor_scale=8))
    tokens = torch.stack([TOKENS, TOKENS.flip(0)])
    with trace(model, attention=True) as seen, torch.no_grad():
        model(tokens)
    found = attention_entropy(model, tokens, layers=range(5))
    for layer, nats in found.items():
        weights = seen.attention[layer]
        expected = -torch.special.xlogy(weights, weights).sum(-1)
        torch.testing.assert_close(nats, expected, atol=1e-5, rtol=1e-5)
    some = attention_entropy(model, tokens, positions=[28, 3])
    assert list(some) == [3]
    torch.testing.assert_close(some[3], found[3][:, :, [28, 3]])


def test_temperature_sharpens_and_is_put_back():
    model = llama(config(floor_scale=8, attn_scale=0.5))
    for p in model.blocks[3].attention.parameters():
        p.data.mul_(4)  # or all scores are near to 0
    on, off, plain = (
        attention_entropy(model, TOKENS[None], temperature=t)[3] for t in (True, False, None)
    )
    assert torch.equal(on, plain)
    assert torch.equal(on[..., :7], off[..., :7])  # below the floor: exactly the same
    assert (on[..., 7:] < off[..., 7:]).all()
    assert model.blocks[3].attention.temperature
    table = entropy_by_length(model, TOKENS[None], [3, 28])
    assert (table["positions"], table["floor_scale"]) == ([3, 28], 8)
    layer = table["layers"]["3"]
    assert layer["with"][0] == layer["without"][0] and layer["with"][1] < layer["without"][1]
    assert abs(layer["with"][1] - float(on[0, :, 28].mean())) < 1e-4

"""trace: what it records is what happened, and the model does not notice."""

import copy

import pytest
import torch
from einops import rearrange, repeat

from minillama4 import KVCache, Llama4, Llama4Config
from minillama4.explore import trace


def nano(**changes) -> Llama4:
    """A small Scout, wide awake: larger weights, so that routers and attention are not flat."""
    torch.manual_seed(0)
    sizes = dict(chunk=8, floor_scale=8, **changes)
    model = Llama4(Llama4Config.nano(**sizes)).double().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.mul_(5)
    return model


def random_tokens(rows=2, length=21) -> torch.Tensor:
    return torch.randint(0, 250, (rows, length), generator=torch.Generator().manual_seed(1))


def hooks_and_methods(model) -> list:
    return [
        (name, len(m._forward_hooks), len(m._forward_pre_hooks), sorted(vars(m)))
        for name, m in model.named_modules()
    ]


# ------------------------------------------------------------------ the model does not notice
@pytest.mark.parametrize("training", [False, True])
def test_results_gradients_and_modules_are_unchanged(training):
    plain = nano().train(training)
    watched = copy.deepcopy(plain)
    before = hooks_and_methods(watched)
    expected = plain(random_tokens())
    with trace(watched, hidden=True, attention=True):
        got = watched(random_tokens())
    assert torch.equal(got, expected)
    got.sum().backward(), expected.sum().backward()
    for (name, a), b in zip(watched.named_parameters(), plain.parameters(), strict=True):
        assert torch.equal(a.grad, b.grad), name
    assert hooks_and_methods(watched) == before
    assert watched.training == training


def test_hooks_come_off_after_an_error_in_the_with_and_in_the_forward():
    model = nano()
    before = hooks_and_methods(model)
    with pytest.raises(ZeroDivisionError), trace(model, hidden=True, attention=True):
        raise ZeroDivisionError
    with pytest.raises(IndexError), trace(model, hidden=True, attention=True):
        model(torch.tensor([[999]]))
    assert hooks_and_methods(model) == before


def test_a_forward_that_failed_leaves_no_half_record():
    model = nano()
    with trace(model) as seen:
        with pytest.raises(IndexError):
            model(torch.tensor([[999]]))
        model.blocks[0].ffn.router(torch.randn(3, 64, dtype=torch.float64))  # not in a forward
        model(random_tokens())
    assert torch.equal(seen.tokens, random_tokens())


def test_dropout_draws_the_same_numbers_while_watched():
    model = nano().train()
    for block in model.blocks:
        block.attention.q = torch.nn.Sequential(block.attention.q, torch.nn.Dropout(0.5))
    torch.manual_seed(7)
    expected = model(random_tokens())
    torch.manual_seed(7)
    with trace(model, attention=True):
        assert torch.equal(model(random_tokens()), expected)


def test_nested_traces_each_see_their_own_calls():
    model = nano()
    before = hooks_and_methods(model)
    with trace(model, attention=True) as outer:
        model(random_tokens())
        with trace(model, attention=True) as inner:
            model(random_tokens())
        model(random_tokens())
    assert (outer.tokens.shape[1], inner.tokens.shape[1]) == (63, 21)
    torch.testing.assert_close(outer.attention[1][:, :, 21:42, 21:42], inner.attention[1])
    assert hooks_and_methods(model) == before


# ------------------------------------------------------------------ routers
@pytest.mark.parametrize("top_k", [1, 2])
def test_router_shows_what_the_experts_were_given(top_k):
    model, given = nano(top_k=top_k), {}
    for layer, block in enumerate(model.blocks):
        keep = lambda module, inputs, layer=layer: given.update({layer: inputs})  # noqa: E731
        block.ffn.experts.register_forward_pre_hook(keep)
    with trace(model) as seen, torch.no_grad():
        model(random_tokens())
    for layer in range(4):
        router, (_, score, choice) = seen.router[layer], given[layer]
        assert torch.equal(rearrange(router.choice, "b t k -> (b t) k"), choice)
        assert torch.equal(rearrange(router.weight, "b t k -> (b t) k"), score)
        torch.testing.assert_close(router.score.gather(-1, router.choice), router.weight)
        assert router.logits.shape == (2, 21, 4)
        assert router.load.sum() == 2 * 21 * top_k


def test_what_is_seen_is_detached_and_can_stay_where_the_model_is():
    model = nano()
    for device in ("cpu", None):
        with trace(model, hidden=True, attention=True, device=device) as seen:
            model(random_tokens())
        kinds = [seen.router[0].logits, seen.router[0].weight, seen.hidden[1], seen.attention[2]]
        assert not any(value.requires_grad for value in kinds)


# ------------------------------------------------------------------ hidden states, attention
def test_hidden_states_lead_to_the_logits():
    model = nano()
    with trace(model, hidden=True) as seen:
        logits = model(random_tokens())
    assert torch.equal(model.head(model.norm(seen.hidden[3])), logits)
    assert torch.equal(seen.embedding, model.embed(random_tokens()))
    assert len({seen.hidden[layer].sum().item() for layer in seen.hidden}) == 4


def test_attention_weights_times_values_are_what_the_layer_read():
    model, read, values = nano(), {}, {}
    for layer, block in enumerate(model.blocks):
        a = block.attention
        a.o.register_forward_pre_hook(lambda m, inputs, layer=layer: read.update({layer: inputs}))
        a.v.register_forward_hook(lambda m, i, out, layer=layer: values.update({layer: out}))
    with trace(model, attention=True) as seen, torch.no_grad():
        model(random_tokens())
    for layer in range(4):
        weights = seen.attention[layer]
        v = rearrange(values[layer], "b s (k d) -> b k s d", k=2)
        out = weights @ repeat(v, "b k s d -> b (k r) s d", r=2)
        torch.testing.assert_close(rearrange(out, "b h t d -> b t (h d)"), read[layer][0])
        torch.testing.assert_close(weights.sum(-1), torch.ones(2, 4, 21, dtype=torch.float64))


def test_attention_keeps_to_its_chunk_in_rope_layers_only():
    with trace(model := nano(), attention=[0, 3]) as seen:
        model(random_tokens())
    assert seen.attention[0][:, :, 8, :8].max() == 0  # the first of a chunk sees only itself
    assert seen.attention[3][:, :, 8, :8].min() > 0
    assert list(seen.attention) == [0, 3]


# ------------------------------------------------------------------ several calls, masks
def test_decoding_in_pieces_is_put_one_behind_the_other():
    model, tokens = nano(), random_tokens()
    with trace(model, hidden=True, attention=True) as whole, torch.no_grad():
        model(tokens)
    cache = KVCache(model.config)
    with trace(model, hidden=True, attention=True) as pieces, torch.no_grad():
        for piece in tokens.split([5, 1, 9, 6], dim=1):
            model(piece, cache=cache)
    assert torch.equal(pieces.tokens, tokens)
    for layer in range(4):
        torch.testing.assert_close(pieces.router[layer].logits, whole.router[layer].logits)
        torch.testing.assert_close(pieces.hidden[layer], whole.hidden[layer])
        torch.testing.assert_close(pieces.attention[layer], whole.attention[layer])


@pytest.mark.parametrize("cached", [False, True])
@pytest.mark.parametrize("side", ["left", "right"])
def test_padded_rows_are_seen_in_the_callers_order(side, cached):
    model, row = nano(), random_tokens(1, 12)
    with trace(model, hidden=True, attention=True) as alone, torch.no_grad():
        model(row)
    blank, real = torch.zeros(1, 5, dtype=torch.int64), torch.ones(2, 17, dtype=torch.bool)
    short = torch.cat([blank, row] if side == "left" else [row, blank], dim=1)
    place = slice(5, 17) if side == "left" else slice(0, 12)
    real[1] = False
    real[1, place] = True
    cache = KVCache(model.config) if cached else None
    both = torch.cat([random_tokens(1, 17), short])
    with trace(model, hidden=True, attention=True) as seen, torch.no_grad():
        model(both, attention_mask=real, cache=cache)
    assert torch.equal(seen.tokens, both)
    torch.testing.assert_close(seen.embedding[1:, place], alone.embedding)
    for layer in range(4):
        torch.testing.assert_close(seen.router[layer].logits[1:, place], alone.router[layer].logits)
        torch.testing.assert_close(seen.hidden[layer][1:, place], alone.hidden[layer])
        weights = seen.attention[layer][1:]
        torch.testing.assert_close(weights[:, :, place, place], alone.attention[layer])
        assert weights[:, :, ~real[1]].abs().max() == 0


def test_rows_of_different_lengths_go_on_decoding_after_padding():
    model, rows = nano(), random_tokens(2, 14)
    real = torch.ones(2, 9, dtype=torch.bool)
    real[1, :4] = False
    cache = KVCache(model.config)
    with trace(model, attention=True) as seen, torch.no_grad():
        model(rows[:, :9], attention_mask=real, cache=cache)
        for t in range(9, 14):
            model(rows[:, t : t + 1], cache=cache)
    with trace(model, attention=True) as alone, torch.no_grad():
        model(rows[1:, 4:])
    for layer in range(4):
        torch.testing.assert_close(seen.attention[layer][1:, :, 4:, 4:], alone.attention[layer])


def test_two_texts_in_one_trace_do_not_attend_to_each_other():
    model, tokens = nano(), random_tokens()
    with trace(model, attention=True) as seen:
        model(tokens[:, :6])
        model(tokens=tokens[:, 6:])
    assert seen.attention[3][:, :, 6:, :6].abs().max() == 0
    assert seen.attention[3][:, :, 6, 6].min() == 1


# ------------------------------------------------------------------ words
def test_repr_is_stable_and_says_what_was_seen():
    with trace(model := nano(moe_every=2), attention=[3]) as seen:
        assert repr(seen) == (
            "Seen(no call yet; router: 1, 3; hidden: not asked for; attention: 3)"
        )
        model(random_tokens())
        model(random_tokens())
    assert repr(seen).startswith("Seen(2 calls, 2 rows × 42 tokens; router: 1, 3; hidden: not")
    assert repr(seen.router[1]) == "RouterSeen(2 rows × 42 tokens, 4 experts, 1 chosen for each)"


def test_errors_say_what_to_do():
    model = nano(moe_every=2)
    with trace(model, attention=[3]) as seen:
        for ask in (lambda: seen.tokens, lambda: seen.router[1], lambda: seen.attention[3]):
            with pytest.raises(LookupError, match="Nothing seen yet: call model"):
                ask()
        model(random_tokens())
    cases = {
        "Layer 2 is dense and has no router. Layers with one: 1, 3": lambda: seen.router[2],
        "There is no layer 4: this model has 0 to 3": lambda: seen.router[4],
        r"not asked for: trace\(model, hidden=True\)": lambda: seen.hidden[0],
        "layer 0 was not asked for: .* or attention=.0.": lambda: seen.attention[0],
        "There is no layer 9": lambda: seen.attention[9],
    }
    for message, ask in cases.items():
        with pytest.raises(LookupError, match=message):
            ask()
    with pytest.raises(LookupError, match="hidden=True"):
        _ = seen.embedding
    with (
        pytest.raises(ValueError, match="layer 7; this model has 0 to 3"),
        trace(model, attention=[7]),
    ):
        pass
    with pytest.raises(TypeError, match="not a Linear"), trace(torch.nn.Linear(2, 2)):
        pass


def test_calls_that_cannot_be_joined_are_refused_when_asked():
    model, cache = nano(), KVCache(nano().config)
    with trace(model) as seen:
        model(random_tokens(2)), model(random_tokens(3))
    with pytest.raises(LookupError, match="2 and 3 rows"):
        _ = seen.tokens
    model(random_tokens(), cache=cache)
    with trace(model, attention=True) as seen:
        model(random_tokens(), cache=cache)
    assert seen.router[0].choice.shape == (2, 21, 1)  # routers need no past
    with pytest.raises(LookupError, match="at position 21, and this trace has not seen"):
        seen.attention[0]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_records_come_to_the_cpu_or_stay_on_the_gpu():
    model, tokens = nano().float().cuda(), random_tokens().cuda()
    for device, kind in (("cpu", "cpu"), (None, "cuda")):
        with trace(model, hidden=True, attention=True, device=device) as seen, torch.no_grad():
            model(tokens)
        assert seen.router[0].logits.device.type == seen.attention[0].device.type == kind


def test_the_routers_input_is_what_its_scores_come_from():
    model = Llama4(Llama4Config.nano())
    tokens = torch.randint(0, 256, (2, 9))
    with trace(model, hidden=True) as seen, torch.no_grad():
        model(tokens)
    for layer, block in enumerate(model.blocks):
        heard = seen.router[layer]
        torch.testing.assert_close(block.ffn.router.logits(heard.input), heard.logits)
    with trace(model) as seen, torch.no_grad():
        model(tokens)
    assert seen.router[0].input is None  # not asked for, not kept


def test_two_caches_in_one_trace_do_not_see_each_other():
    model = Llama4(Llama4Config.nano())
    a, b = torch.randint(0, 256, (2, 1, 6))
    with trace(model, attention=True) as alone, torch.no_grad():
        model(a)
    with trace(model, attention=True) as both, torch.no_grad():
        of_a, of_b = KVCache(model.config), KVCache(model.config)
        model(a[:, :4], cache=of_a)
        model(b[:, :4], cache=of_b)
        model(a[:, 4:], cache=of_a)
    for layer in both.attention:
        last = both.attention[layer][:, :, 8:]  # what the continued tokens of a looked at
        assert last[..., 4:8].abs().max() == 0
        own = torch.cat([last[..., :4], last[..., 8:]], dim=-1)
        torch.testing.assert_close(own, alone.attention[layer][:, :, 4:], atol=1e-5, rtol=1e-4)

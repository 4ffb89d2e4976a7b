"""The flat decoder: after every step the logits of the model's own forward, and of the full one."""

from unittest.mock import patch

import pytest
import torch

import minillama4 as ml4
from minillama4.explore.steer import off, steer
from minillama4.model import cache as cache_file
from minillama4.serve import decoder as decoder_file
from minillama4.serve.decoder import Decoder, flat, worth_copying
from minillama4.serve.int4_modules import Int4Experts, Int4Linear
from minillama4.serve.quantize import quantize_model
from tests.decoding import model_of, tokens_of

KINDS = {
    "scout": {},
    "maverick": dict(moe_every=2, qk_norm=False),
    "dense": dict(moe_at=()),
    "two experts": dict(top_k=2),
    "one kv head": dict(kv_heads=1),
    "every head its own": dict(kv_heads=4),
    "tied": dict(tied=True),
}


def decoded(model, tokens, prompt: int = 3) -> torch.Tensor:
    """Logits (b, t - prompt, v) of a decoder that goes on where the model has read a prompt."""
    kept, decoder = ml4.KVCache(model.config), Decoder(model)
    with torch.inference_mode():
        model(tokens[:, :prompt], cache=kept)
        steps = [decoder.step(token, kept) for token in tokens[:, prompt:].unbind(1)]
    assert kept.lengths == (tokens.shape[1],) * len(tokens)
    return torch.stack(steps, dim=1)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("dtype", "within"), [(torch.float64, 1e-10), (torch.float32, 1e-4)])
@pytest.mark.parametrize("rows", [1, 3])
def test_equals_the_full_forward_over_several_chunks(kind, dtype, within, rows):
    model, tokens = model_of(dtype, **KINDS[kind]), tokens_of(rows, 37)
    with torch.inference_mode():
        full = model(tokens)[:, 3:]
    torch.testing.assert_close(decoded(model, tokens), full, rtol=within, atol=within)


def test_rows_at_different_places_equal_each_row_alone():
    model, tokens = model_of(), tokens_of(3, 30)
    lengths = torch.tensor([2, 7, 13])
    real = torch.arange(13) < lengths[:, None]
    kept, decoder = ml4.KVCache(model.config), Decoder(model)
    with torch.inference_mode():
        model(tokens[:, :13], cache=kept, attention_mask=real)
        later = tokens[:, 13:]
        together = torch.stack([decoder.step(token, kept) for token in later.unbind(1)], dim=1)
        for row, length in enumerate(lengths.tolist()):
            alone = torch.cat([tokens[row : row + 1, :length], later[row : row + 1]], dim=1)
            full = model(alone)[0, length:]
            torch.testing.assert_close(together[row], full, rtol=1e-10, atol=1e-10)


def test_takes_turns_with_the_model():
    model, tokens = model_of(), tokens_of(1, 24)
    kept, decoder = ml4.KVCache(model.config), Decoder(model)
    with torch.inference_mode():
        full = model(tokens)[0]
        for at in range(24):
            step = tokens[:, at]
            one = decoder.step(step, kept) if at % 3 else model(step[None], cache=kept)[:, 0]
            torch.testing.assert_close(one[0], full[at], rtol=1e-10, atol=1e-10)


def test_in_bfloat16_it_is_as_near_as_the_model_itself():
    model, tokens = model_of(torch.bfloat16), tokens_of(1, 20)
    wide = model_of()
    wide.load_state_dict(model.state_dict())
    with torch.inference_mode():
        full = wide(tokens)[:, 3:]
        ours = (decoded(model, tokens).double() - full).abs().median()
        theirs = (model(tokens)[:, 3:].double() - full).abs().median()
    assert ours < 2 * theirs


def _forgets_border(self, position):
    return position


INT4 = dict(width=64, head_width=16, heads=4, expert_hidden=64, dense_hidden=128)


@pytest.mark.parametrize("changes", [{}, dict(moe_every=2, qk_norm=False), dict(top_k=2)])
@pytest.mark.parametrize("what", ["experts", "all"])
def test_int4_weights_are_read_by_the_cpu_kernel(changes, what):
    model = quantize_model(model_of(torch.float32, **INT4, **changes), what, group=32)
    tokens = tokens_of(1, 37)

    def linear(self, x):
        return self.on_cpu(x.flatten(0, -2)).view(*x.shape[:-1], -1).to(x.dtype)

    one = patch.object(Int4Experts, "one", lambda self, x, e: self.on_cpu(x, e).to(x.dtype))
    with patch.object(Int4Linear, "forward", linear), one, torch.inference_mode():
        full = model(tokens)[:, 3:]
    found = decoded(model, tokens)
    # The same products. What is rounded to bfloat16 may fall to the other side here and there, and
    # where an expert then changes, a whole position is another: hence the median.
    assert ((found - full).norm(dim=-1) / full.norm(dim=-1)).median() < 0.01
    with torch.inference_mode():  # nothing rounded
        exact = model(tokens)[:, 3:]
    assert 1e-4 < ((found - exact).norm(dim=-1) / exact.norm(dim=-1)).median() < 0.05


def test_int4_rows_together_equal_each_alone():
    model = quantize_model(model_of(torch.float32, **INT4), "all", group=32)
    tokens = tokens_of(3, 20)
    alone = torch.cat([decoded(model, row[None]) for row in tokens])
    apart = (decoded(model, tokens) - alone).norm(dim=-1) / alone.norm(dim=-1)
    assert apart.median() < 0.02


MISTAKES = {
    "the chunk border": lambda: patch.object(cache_file.LayerMemory, "slot", _forgets_border),
    "the temperature": lambda: patch.object(
        decoder_file, "attention_temperature", lambda p, *_: torch.ones(p.shape)
    ),
    "a position": lambda: patch.object(
        decoder_file, "rotation", lambda p, f: decoder_file_rotation(p + p // 9, f)
    ),
}
decoder_file_rotation = decoder_file.rotation


@pytest.mark.parametrize("mistake", MISTAKES)
def test_each_classic_mistake_shows(mistake):
    model, tokens = model_of(), tokens_of(1, 37)
    with torch.inference_mode():
        full = model(tokens)[:, 3:]
    with MISTAKES[mistake]():
        wrong = decoded(model, tokens)
    apart = (wrong - full).abs().amax((0, 2)) > 1e-6
    assert apart.any() and not apart[0]  # right as long as the mistake cannot be told


def test_knows_when_it_cannot_stand_in():
    model = model_of()
    assert flat(model)
    with ml4.trace(model):
        assert not flat(model)
        with pytest.raises(ValueError, match="hooks that watch it"):
            Decoder(model)
    with steer(model, off(1)):
        assert not flat(model)
    model.blocks[0].attention.q = torch.nn.Sequential(model.blocks[0].attention.q)
    assert not flat(model) and not flat(torch.nn.Linear(2, 2))


def test_says_what_does_not_fit():
    model, tokens = model_of(), tokens_of(2, 64)
    kept, decoder = ml4.KVCache(model.config), Decoder(model)
    model(tokens, cache=kept)
    with pytest.raises(ValueError, match="max_length is 64"):
        decoder.step(tokens[:, 0], kept)
    with pytest.raises(ValueError, match="another model"):
        decoder.step(tokens[:, 0], ml4.KVCache(ml4.Llama4Config.nano()))
    with pytest.raises(ValueError, match="holds 2 rows"):
        decoder.step(tokens[:1, 0], kept)


# ---------------------------------------------------------------------- what it stands on
def test_last_only_gives_each_rows_last_real_token():
    model, tokens = model_of(), tokens_of(3, 12)
    every = model(tokens)
    torch.testing.assert_close(model(tokens, last_only=True), every[:, -1:])
    at = torch.arange(12)
    for mask, last in ((at < torch.tensor([[12], [4], [9]]), [11, 3, 8]), (at >= 5, [11] * 3)):
        mask = mask.expand(3, 12)
        one = model(tokens, attention_mask=mask, last_only=True)
        full = model(tokens, attention_mask=mask)
        torch.testing.assert_close(one[:, 0], full[torch.arange(3), last])


def test_one_prompt_read_once_is_continued_in_many_ways():
    model, tokens = model_of(), tokens_of(2, 20)
    kept = ml4.KVCache(model.config)
    with torch.inference_mode():
        model(tokens[:1, :13], cache=kept)
        fork = kept.select([0, 0])
        both = model(tokens[:, 13:], cache=fork)
        for row in range(2):
            alone = torch.cat([tokens[:1, :13], tokens[row : row + 1, 13:]], dim=1)
            full = model(alone)[0, 13:]
            torch.testing.assert_close(both[row], full, rtol=1e-10, atol=1e-10)
        assert kept.lengths == (13,) and fork.lengths == (20, 20)
        full = model(tokens[:1])[0, 13:]  # the first cache is as it was
        again = model(tokens[:1, 13:], cache=kept)[0]
    torch.testing.assert_close(again, full, rtol=1e-10, atol=1e-10)
    with pytest.raises(IndexError, match="from 0 to 0"):
        kept.select([1])
    with pytest.raises(RuntimeError, match="read a prompt"):
        ml4.KVCache(model.config).select([0])


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_weights_are_turned_only_where_a_cpu_gains(dtype, monkeypatch):
    model = model_of(dtype)
    assert worth_copying(model) == (dtype in (torch.float64, torch.float32))
    monkeypatch.setattr(decoder_file, "COPIED", 1000)
    assert not worth_copying(model)

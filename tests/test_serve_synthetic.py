"""Random Int4 models: true shapes, finite logits, routing as even or skewed as asked."""

import pytest
import torch

import minillama4 as ml4
from minillama4.serve.int4_modules import Int4Linear
from minillama4.serve.quantize import int4_bytes, quantize_model
from minillama4.serve.static import StaticDecoder
from minillama4.serve.synthetic import expert_shares, synthetic_int4

SIZES = dict(width=128, expert_hidden=128, head_width=32, layers=4, experts=8)


@pytest.mark.parametrize("changes", [{}, dict(moe_every=2), dict(tied=True)])
def test_has_the_shapes_of_a_quantised_model(changes):
    config = ml4.Llama4Config.nano(**SIZES, **changes)
    made = synthetic_int4(config)
    twin = quantize_model(ml4.Llama4(config).bfloat16(), "blocks")
    shapes = {k: (v.shape, v.dtype) for k, v in twin.state_dict().items()}
    assert {k: (v.shape, v.dtype) for k, v in made.state_dict().items()} == shapes
    assert int4_bytes(made) == int4_bytes(twin)
    assert isinstance(made.blocks[1].attention.q, Int4Linear)
    with torch.inference_mode():
        logits = made(torch.randint(0, 256, (2, 40)))
    assert logits.isfinite().all() and logits.std() > 0.05


def test_weights_are_spread_as_those_they_stand_for():
    made = synthetic_int4(ml4.Llama4Config.nano(**SIZES))
    weight = made.blocks[0].attention.q.weight(torch.float32)
    assert weight.std() == pytest.approx(0.02, rel=0.05)
    assert not torch.equal(weight, made.blocks[1].attention.q.weight(torch.float32))


def test_random_routers_spread_tokens_evenly_at_any_width():
    """Nibbles drawn from 0 to 15 have a mean of -0.5: through the layers all tokens would come to
    share a direction, and one expert would win up to 0.86 of them."""
    sizes = dict(width=512, heads=16, kv_heads=8, expert_hidden=1024, experts=16)
    decoder = StaticDecoder(synthetic_int4(ml4.Llama4Config.mini(layers=4, **sizes)), 16, 64)
    decoder.pretend(20)
    shares = torch.tensor(expert_shares(decoder, 16))
    assert shares.max() < 0.25 and (shares > 0).all()


def test_skew_gives_favourites_and_its_absence_none():
    config = ml4.Llama4Config.nano(**SIZES)
    most = []
    for skew in (0.0, 2.0):
        decoder = StaticDecoder(synthetic_int4(config, skew=skew), 16, 64)
        decoder.pretend(20)
        shares = expert_shares(decoder)
        assert len(shares) == 4 and all(sum(each) == pytest.approx(1) for each in shares)
        most.append(sum(max(each) for each in shares) / 4)
    assert most[0] < 0.35 and most[1] > most[0] + 0.2
    assert decoder.layers[0].experts.__class__.__name__ != "_Counting"


def test_a_negative_skew_is_refused():
    with pytest.raises(ValueError, match="0 or more"):
        synthetic_int4(ml4.Llama4Config.nano(**SIZES), skew=-1)

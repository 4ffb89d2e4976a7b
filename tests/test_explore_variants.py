"""The controls: windows that slide, and the other ways to give a model its positions."""

import pytest
import torch

import minillama4 as ml4
from minillama4.explore.variants import WAYS, WindowAttention, nope_everywhere, sliding_window

TOKENS = torch.randint(256, (2, 75), generator=torch.Generator().manual_seed(0))


def model(**changes) -> ml4.Llama4:
    torch.manual_seed(0)
    sizes = dict(chunk=16, moe_at=()) | changes
    return ml4.Llama4(ml4.Llama4Config.nano(**sizes)).double().eval()


def reached(model, position: int) -> torch.Tensor:
    """Which positions' logits feel a change of one token, (t,) bool."""
    other = TOKENS.clone()
    other[:, position] = (other[:, position] + 1) % 256
    with torch.no_grad():
        return (model(TOKENS) - model(other)).abs().amax((0, 2)) > 0


def test_within_the_first_window_nothing_changes():
    plain = model()
    with torch.no_grad():
        before = plain(TOKENS)
        after = sliding_window(plain)(TOKENS)
    torch.testing.assert_close(before[:, :16], after[:, :16], rtol=1e-12, atol=1e-12)
    assert (before[:, 16:] - after[:, 16:]).abs().amax((0, 2)).min() > 1e-6
    kinds = [type(block.attention) is WindowAttention for block in plain.blocks]
    assert kinds == [True, True, True, False]


def test_a_window_carries_the_past_on_and_a_chunk_does_not():
    windows = sliding_window(model(nope_at=()))
    place = torch.arange(75)
    # four layers, each 15 back: 20 is felt up to 80, so by all behind it here
    assert torch.equal(reached(windows, 20), place >= 20)
    short = sliding_window(model(nope_at=(), layers=2))
    assert torch.equal(reached(short, 20), (place >= 20) & (place <= 50))
    chunks = model(**WAYS["chunks alone"])
    assert torch.equal(reached(chunks, 20), (place >= 20) & (place < 32))
    assert torch.equal(reached(model(), 20), place >= 20)  # iRoPE: through layer 3


def test_nope_everywhere_cannot_tell_the_order_of_what_it_has_read():
    """One layer without positions: the last token sees a bag of the others."""
    bag = model(layers=1, **nope_everywhere(1))
    mixed = TOKENS.clone()
    mixed[:, :-1] = TOKENS[:, :-1].flip(1)
    with torch.no_grad():
        one, other = bag(TOKENS)[:, -1], bag(mixed)[:, -1]
        torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-10)
        rope = model(layers=1, **WAYS["RoPE everywhere"])
        assert (rope(TOKENS)[:, -1] - rope(mixed)[:, -1]).abs().max() > 1e-6


def test_a_window_learns_and_says_what_it_cannot_do():
    windows = sliding_window(model())
    windows(TOKENS).square().mean().backward()
    assert all(p.grad.abs().max() > 0 for p in windows.blocks[0].attention.parameters())
    with pytest.raises(NotImplementedError, match="no cache"):
        windows(TOKENS, cache=ml4.KVCache(windows.config))
    with pytest.raises(ValueError, match="no chunk"):
        sliding_window(model(**WAYS["RoPE everywhere"]))

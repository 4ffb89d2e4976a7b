"""The GPU's attention for decoding, in Triton's interpreter, against all slots with a mask."""

import pytest
import torch

from tests.kernels import compiled_kernels, kernels_of

kernels = kernels_of("attention_triton")
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


def reference(q, keys, values, last):
    seen = torch.arange(keys.shape[2], device=q.device) <= last[:, None]
    k, v = (x.double().repeat_interleave(q.shape[1] // keys.shape[1], 1) for x in (keys, values))
    score = torch.einsum("bhd,bhsd->bhs", q.double(), k) * q.shape[-1] ** -0.5
    score = score.masked_fill(~seen[:, None], float("-inf")).softmax(-1)
    return torch.einsum("bhs,bhsd->bhd", score, v)


@pytest.mark.parametrize("last", [[0, 5], [255, 256], [63, 599], [511, 300]])
@pytest.mark.parametrize(("heads", "kv"), [(4, 2), (5, 1), (2, 2)])
def test_equals_attention_over_what_is_seen(last, heads, kv):
    torch.manual_seed(0)
    q = torch.randn(2, heads, 32).to(DEVICE, torch.float16)
    keys, values = torch.randn(2, 2, kv, 600, 32).to(DEVICE, torch.float16)
    last = torch.tensor(last, device=DEVICE)
    beyond = torch.arange(600, device=DEVICE) > last[:, None]
    keys[beyond[:, None].expand(2, kv, 600)] = 100.0  # leftovers of an older chunk: never read
    found = kernels.attend(q, keys, values, last)
    torch.testing.assert_close(found.double(), reference(q, keys, values, last), rtol=0, atol=3e-3)


@pytest.mark.parametrize("last", [[0, 1023], [1024, 15], [16, 2079]])
def test_many_parts_are_joined_a_tile_at_a_time(last, monkeypatch):
    monkeypatch.setattr(kernels, "SPAN", 16)  # 64 parts, a tile, end with slot 1023; in all 130
    monkeypatch.setattr(kernels, "BLOCK", 16)
    torch.manual_seed(1)
    q = 3 * torch.randn(2, 2, 16).to(DEVICE, torch.float16)  # some parts outweigh others
    keys, values = torch.randn(2, 2, 1, 2080, 16).to(DEVICE, torch.float16)
    last = torch.tensor(last, device=DEVICE)
    found = kernels.attend(q, keys, values, last)
    torch.testing.assert_close(found.double(), reference(q, keys, values, last), rtol=0, atol=3e-3)


def test_scores_far_apart_do_not_overflow():
    q, keys = torch.full((1, 1, 16), 30.0), torch.zeros(1, 1, 300, 16)
    keys[0, 0, 7], keys[0, 0, 280] = 30.0, 29.9  # in two parts
    values = torch.randn(1, 1, 300, 16)
    given = [x.to(DEVICE, torch.float16) for x in (q, keys, values)]
    last = torch.tensor([299], device=DEVICE)
    found = kernels.attend(*given, last)
    torch.testing.assert_close(found.double(), reference(*given, last), rtol=0, atol=3e-3)


def test_the_kernels_compile_for_real_gpus():
    for what, made in compiled_kernels("attention").items():
        assert made["spilled"] in (0, None), what
        assert made["shared"] <= 164 * 2**10 // 2, what  # two programs find place in an A100's

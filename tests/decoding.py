"""What the tests of both decoders share: a small model whose every part is felt, and tokens."""

import torch

import minillama4 as ml4


def model_of(dtype=torch.float64, **changes) -> ml4.Llama4:
    """A nano Llama 4 with chunks of 8 tokens and random weights; some sizes changed."""
    torch.manual_seed(0)
    sizes = dict(chunk=8, floor_scale=5, max_length=64) | changes
    model = ml4.Llama4(ml4.Llama4Config.nano(**sizes)).to(dtype).eval()
    for parameter in model.parameters():  # strong enough that every part is felt
        if parameter.ndim > 1:
            torch.nn.init.normal_(parameter, std=0.12)
    return model


def tokens_of(rows: int, length: int) -> torch.Tensor:
    """(rows, length) int64, the same on every call."""
    return torch.randint(256, (rows, length), generator=torch.Generator().manual_seed(1))

"""Checks for *Out into the world* (notebooks/05_serving/06_out_into_the_world.ipynb)."""

import torch
from einops import rearrange
from torch import Tensor

from ..checks import Check

# ------------------------------------------------------------------ 1: how far a reader is right


def _sizes(seed: int) -> tuple[int, int]:
    """Chunks and floors below llama.cpp's 8192, either of them the smaller, and equal ones."""
    return ((128, 128), (64, 1000), (500, 100), (256, 257), (2048, 2048))[seed % 5]


right_until = Check(
    "right_until",
    reference=lambda chunk, floor_scale: min(chunk, floor_scale - 1),
    inputs=_sizes,
    wrong={
        "Nearly. The temperature counts position p as p + 1: with a floor of 128 the token at "
        "position 127, the 128th, is already scaled.": min,
        "One too few where the chunk decides: a chunk's last token, position chunk - 1, still "
        "sees what it should.": lambda chunk, floor_scale: min(chunk, floor_scale) - 1,
        "The chunk is one reason; the temperature is another, and may come first.": (
            lambda chunk, floor_scale: chunk
        ),
        "The temperature is one reason; the chunk is another, and may come first.": (
            lambda chunk, floor_scale: floor_scale - 1
        ),
        "That is where the later of the two is met; the first already spoils the logits.": (
            lambda chunk, floor_scale: max(chunk, floor_scale - 1)
        ),
        "llama.cpp's 8192 is where it changes something itself; here our model does so earlier.": (
            lambda chunk, floor_scale: 8192
        ),
    },
    praise="It is what save_gguf writes as the file's context length.",
    tolerance=1e-9,
)

# ------------------------------------------------------------------ 2: a block of q4_0


def _block(seed: int) -> tuple[Tensor]:
    """18 bytes: the scale as a float16, little end first, then 32 numbers of 4 bits."""
    draw = torch.Generator().manual_seed(seed)
    numbers = torch.randint(0, 256, (16,), generator=draw, dtype=torch.uint8)
    numbers[-1] %= 64  # read as a scale by mistake, the last two would not be infinite
    scale = torch.tensor([(-0.37, 0.011, 2.5, -1.75, 0.3)[seed % 5]], dtype=torch.float16)
    return (torch.cat([scale.view(torch.uint8), numbers]),)


def _unpacked(
    block: Tensor, offset: float = 8, together=None, scale: Tensor | None = None, power: int = 1
) -> Tensor:
    """(18,) uint8 -> (32,); ``together`` joins low and high nibbles, the halves one by one."""
    numbers = block[2:]
    join = together or (lambda low, high: torch.cat([low, high]))
    nibbles = join(numbers & 15, numbers >> 4).float()
    scale = block[:2].clone().view(torch.float16) if scale is None else scale
    return (nibbles - offset) * scale.float() ** power


def _at_the_end(block: Tensor) -> Tensor:
    return _unpacked(torch.cat([block[16:], block[:16]]))


def _signed(block: Tensor) -> Tensor:
    numbers = torch.cat([block[2:] & 15, block[2:] >> 4]).float()
    return (numbers - 16 * (numbers > 7)) * block[:2].clone().view(torch.float16).float()


def _wrapped(block: Tensor) -> Tensor:
    numbers = torch.cat([block[2:] & 15, block[2:] >> 4]) - 8
    return numbers * block[:2].clone().view(torch.float16).float()


def _wrapped_in_half(block: Tensor) -> Tensor:
    return (torch.cat([block[2:] & 15, block[2:] >> 4]) - 8) * block[:2].clone().view(torch.float16)


def _in_half(block: Tensor) -> Tensor:
    numbers = torch.cat([block[2:] & 15, block[2:] >> 4]).int() - 8
    return numbers * block[:2].clone().view(torch.float16)


def _not_shifted(block: Tensor) -> Tensor:
    return _unpacked(block, together=lambda low, high: torch.cat([low, high.int() * 16]))


unpack_q4_0 = Check(
    "unpack_q4_0",
    reference=_unpacked,
    inputs=_block,
    wrong={
        "The numbers are right but stand elsewhere: the low halves of all 16 bytes are the first "
        "16 numbers, the high halves the last 16.": lambda block: _unpacked(
            block, together=lambda low, high: torch.stack([low, high], 1).flatten()
        ),
        "High and low are exchanged: the low four bits come first (byte & 15).": (
            lambda block: _unpacked(block, together=lambda low, high: torch.cat([high, low]))
        ),
        "High and low are exchanged, and they do not alternate: all low halves come first.": (
            lambda block: _unpacked(
                block, together=lambda low, high: torch.stack([high, low], 1).flatten()
            )
        ),
        "Four bits say 0 to 15 and mean -8 to 7: take 8 away.": lambda block: _unpacked(
            block, offset=0
        ),
        "You take away 7; it is 8, so that 0 to 15 means -8 to 7.": lambda block: _unpacked(
            block, offset=7
        ),
        "That reads the four bits as two's complement; here 8 is taken away.": _signed,
        "In uint8, 3 - 8 is 251: turn the numbers into float before you take 8 away.": _wrapped,
        "In uint8, 3 - 8 is 251: turn numbers and scale into float32 first.": _wrapped_in_half,
        "Nearly: whole numbers times a float16 are rounded to a float16. Turn the scale into "
        "float32 first.": _in_half,
        "byte & 240 is sixteen times the high half: shift it down, byte >> 4.": _not_shifted,
        "The 8.5 was for rounding on the way in; on the way back it is 8.": lambda block: _unpacked(
            block, offset=8.5
        ),
        "The sign is exchanged: d carries its own, so the number times d is all.": (
            lambda block: -_unpacked(block)
        ),
        "The scale stands in the first two bytes, not in the last.": _at_the_end,
        "The whole numbers are right; multiply by the scale.": lambda block: _unpacked(
            block, power=0
        ),
        "Divide once less: a number is its whole number times the scale.": lambda block: _unpacked(
            block, power=-1
        ),
        "The scale's bytes are exchanged: little end first.": lambda block: _unpacked(
            block, scale=block[:2].flip(0).view(torch.float16)
        ),
        "Those two bytes are a float16, not a bfloat16.": lambda block: _unpacked(
            block, scale=block[:2].clone().view(torch.bfloat16)
        ),
    },
    praise="18 bytes for 32 weights: 4.5 bits each.",
)

# ------------------------------------------------------------------ 3: experts turned round


def _experts(seed: int) -> tuple[Tensor]:
    """gate_up (e, m, 2f)."""
    e, m, f = ((3, 4, 5), (2, 6, 3), (4, 4, 4), (1, 3, 2), (5, 2, 6))[seed % 5]
    return (torch.randn(e, m, 2 * f, generator=torch.Generator().manual_seed(seed)),)


def _turned(gate_up: Tensor, split="e m (two f)", into="two e f m") -> Tensor:
    return rearrange(gate_up, f"{split} -> {into}", two=2)


def _reshaped(gate_up: Tensor) -> Tensor:
    e, m, _ = gate_up.shape
    return torch.stack([half.reshape(e, -1, m) for half in gate_up.chunk(2, dim=-1)])


turn_experts = Check(
    "turn_experts",
    reference=_turned,
    inputs=_experts,
    wrong={
        "Gate and up are exchanged: gate stands first.": lambda x: _turned(x).flip(0),
        "You split even and odd columns; gate is the first half, up the second.": (
            lambda x: _turned(x, split="e m (f two)")
        ),
        "Split as it should be, but not turned: the output axis f comes before the input axis "
        "m.": lambda x: _turned(x, into="two e m f"),
        "A reshape keeps the numbers in order and so mixes rows: the axes must be exchanged.": (
            _reshaped
        ),
        "A view keeps the numbers in order: first split the last axis, then exchange axes.": (
            lambda x: x.reshape(2, x.shape[0], -1, x.shape[1])
        ),
        "The experts stay one after another: axis e comes right after gate and up.": (
            lambda x: _turned(x, into="two f e m")
        ),
        "You give e first; gate and up are two tensors, so theirs is the first axis here.": (
            lambda x: _turned(x, into="e two f m")
        ),
        "You split the input axis m; gate and up lie side by side along the last.": (
            lambda x: (
                _turned(x, split="e (two m) f", into="two e f m") if x.shape[1] % 2 == 0 else x
            )
        ),
    },
    praise="These are llama.cpp's ffn_gate_exps and ffn_up_exps.",
    tolerance=0,
)

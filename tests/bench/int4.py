"""Section "int4": decoding from Int4 weights, beside transformers with the same weights in float32.

The two do not compute the same, so no difference is shown; that Int4 decoding is right is for
tests/test_serve_decoder.py and test_serve_static.py to say.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from minillama4 import Llama4
from minillama4.serve.quantize import quantize_model
from minillama4.serve.static import StaticDecoder

from .inference import Ours, Theirs, begin, write
from .pairs import model_pair
from .plan import MODELS, Plan, model_config
from .report import Row
from .timing import Candidate, take_turns

DECODE = 15  # times transformers in float32, at least


def cases(plan: Plan) -> Iterator[tuple[str, Callable[[], list[Row]]]]:
    """(title, what measures it), in the order of the table."""
    for name in plan.models:
        yield f"{name}, decode", lambda n=name: decode(plan, n)


@torch.inference_mode()
def decode(plan: Plan, name: str) -> list[Row]:
    """Greedy tokens of one row; every weight of the blocks and the head in Int4, eager, compiled,
    and for comparison the compiled program with float32 weights."""
    plain, theirs = model_pair(model_config(name))
    packed = quantize_model(copy.deepcopy(plain), "all", group=min(128, plain.config.width))
    prompt = torch.randint(0, plain.config.vocab_size, (1, plan.prompt))
    what = f"{MODELS[name]}, batch 1, {plan.steps} tokens after {plan.prompt}"
    length = plan.prompt + plan.steps
    readers = {
        "Int4": Ours(packed),
        "Int4, compiled": Fixed(packed, length),
        "float32, compiled": Fixed(plain, length),
        "theirs": Theirs(theirs),
    }
    runs = {
        key: Candidate(lambda last, r=r: write(r, last, plan.steps), begin(r, prompt))
        for key, r in readers.items()
    }
    times = take_turns(runs, plan.rounds, plan.seconds, plan.fewest)
    times = {key: time.per(plan.steps) for key, time in times.items()}
    against, other = "transformers, DynamicCache", times.pop("theirs")
    return [
        Row(
            *("int4", what, time, against, other, plan.threads, None),
            target=DECODE if key == "Int4, compiled" else None,
            unit="step",
            note=key,
        )
        for key, time in times.items()
    ]


class Fixed:
    """minillama4's compiled program."""

    def __init__(self, model: Llama4, length: int):
        self.decoder = StaticDecoder(model, 1, length, how="compiled")
        self.decoder.read(torch.zeros(1, 1, dtype=torch.int64))
        self.decoder.write(torch.zeros(1, dtype=torch.int64), 1)  # compiled now, not on the clock

    def read_new(self, tokens: Tensor) -> Tensor:
        """Forget everything, then read."""
        return self.decoder.read(tokens)[:, None]

    def write(self, last: Tensor, steps: int) -> None:
        """Greedy, ``steps`` tokens on."""
        self.decoder.write(last[:, 0], steps)

"""Is a token's time the reading of its weights? The law on a CPU, from 1 MB to 1 GB a step.

    python data/experiments/decode_speed.py     about 10 minutes on one core; needs a C++ compiler

Conditions are "Int4 256 compiled" and so on: how weights are kept, the width of the model, and how
the step runs (eager, or compiled: StaticDecoder). Random weights, 4 layers, 16 experts and a shared
one (above width 512 only 2 and a shared one: a token reads one of them, however many there are).
Each run gives the bytes that a step reads (counted), the milliseconds of a step at batch 1 behind
64 tokens, and the speed of the memory, measured just before. "batch" and "skew": bytes and
milliseconds of a step of 1 to 16 texts at width 512, with even and with skewed routing.

Wall time of one thread, the best of five tries. A "seed" is another round over all conditions, on
the same weights. The result is decode_speed.json, for `minillama4.explore.Runs.load`.
"""

from functools import cache
from pathlib import Path

import torch

import minillama4 as ml4
from minillama4.explore import repeat
from minillama4.serve.hardware import H100
from minillama4.serve.measure import memory_speed, tpot
from minillama4.serve.roofline import decode_step
from minillama4.serve.static import StaticDecoder
from minillama4.serve.synthetic import expert_shares, synthetic_int4

HERE = Path(__file__).parent
ROUNDS = (0, 1, 2, 3, 4)
WIDTHS = {
    "Int4": (128, 256, 512, 1024, 2048, 4096),
    "float32": (128, 256, 512, 1024, 1536),
    "bfloat16": (128, 256, 512, 1024, 2048),
}
BATCHES = (1, 2, 4, 8, 16)
CONTEXT, STEPS = 64, 8


def sizes(width: int) -> ml4.Llama4Config:
    """Everything grows with the width; every matrix has whole groups of 128."""
    heads = dict(heads=width // 32, kv_heads=width // 64, head_width=32)
    ffn = dict(expert_hidden=4 * width, dense_hidden=8 * width, layers=4)
    ffn["experts"] = 16 if width <= 512 else 2
    return ml4.Llama4Config.mini(width=width, **heads, **ffn)


@cache
def model(kept: str, width: int, skew: float) -> ml4.Llama4:
    if kept == "Int4":
        return synthetic_int4(sizes(width), "all", dtype=torch.float32, skew=skew)
    torch.manual_seed(0)
    return ml4.Llama4(sizes(width)).to(getattr(torch, kept)).requires_grad_(False)


@cache
def decoder(kept: str, width: int, how: str, rows: int = 1, skew: float = 0.0) -> StaticDecoder:
    made = StaticDecoder(model(kept, width, skew), rows, 2 * CONTEXT, how=how)
    made.pretend(CONTEXT)
    made.write(torch.zeros(rows, dtype=torch.int64), 2)  # compiled now
    return made


@cache
def shares(*which) -> list:
    return expert_shares(decoder(*which), 32)


def bytes_read(*which) -> float:
    """Of a step, with the routing that this model shows; float32 is twice bf16."""
    made, kept = decoder(*which), which[0]
    scheme, cache = "int4-all" if kept == "Int4" else "bf16", made.cache.layers[0].keys.dtype
    behind = CONTEXT + STEPS // 2
    step = decode_step(
        made.config, H100, scheme, behind, made.rows, cache=cache, chances=shares(*which)
    )
    weights = step.bytes - step.reads["cache"]
    return weights * (2 if kept == "float32" else 1) + step.reads["cache"]


def measured(*which) -> dict:
    speed = memory_speed("cpu", 2**28, 3)["read"]
    best = min(tpot(decoder(*which), CONTEXT, STEPS, 5))
    return {
        "bytes": round(bytes_read(*which)),
        "milliseconds": round(1e3 * best, 4),
        "memory": round(speed),
    }


def conditions() -> dict:
    made = {}
    for kept, widths in WIDTHS.items():
        for width in widths:
            for how in ("eager", "compiled"):
                which = kept, width, how
                made[f"{kept} {width} {how}"] = lambda _, which=which: measured(*which)
    for rows in BATCHES:
        for name, skew in (("batch", 0.0), ("skew", 2.0)):
            which = "Int4", 512, "eager", rows, skew
            made[f"{name} {rows}"] = lambda _, which=which: measured(*which)
    return made


if __name__ == "__main__":
    torch.set_num_threads(1)
    runs = repeat(conditions(), ROUNDS, keep=HERE / ".decode_speed.part.json")
    runs.save(HERE / "decode_speed.json", "python data/experiments/decode_speed.py")
    (HERE / ".decode_speed.part.json").unlink()

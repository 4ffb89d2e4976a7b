"""What experts buy in memory: random facts, learned at the same cost per token.

    python data/experiments/facts.py             about 20 minutes on one core; start again to resume

9,216 facts: two keys of 96 each -> one of 96 values, drawn at random, so that nothing but memory
helps. One layer of minillama4's MoE learns them, with 1, 2, 4 or 8 experts of hidden width 32,
top-1, and a shared expert: what a fact passes through is equal for all. Beside them

17 half experts      of half the width, three for each fact: active and stored as with 8 experts
dense, stored as 8   one SwiGLU as large as the 8 experts and the shared one together
1 expert, 4x steps   is it only slower?
1 expert, 16x steps  the same, decided after the others were seen

Nothing balances the routers; how even the loads are is recorded. One run each at three learning
rates, on another seed and for half the steps, comes first (facts_rates.json). Results: facts.json,
for `minillama4.explore.Runs.load`.
"""

import argparse
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import minillama4 as ml4
from minillama4.explore import effective_experts, repeat
from minillama4.model.moe import MoE, SwiGLU

HERE = Path(__file__).parent
SEEDS, SWEEP_SEED = (0, 1, 2), 100  # the rate was chosen on a seed that no result rests on
KEYS, WIDTH, HIDDEN = 96, 48, 32
STEPS, BATCH = 4000, 512
RATE, RATES = 3e-2, (1e-2, 3e-2, 9e-2)


def layer(experts: int, top_k: int = 1, hidden: int = HIDDEN) -> MoE:
    sizes = dict(width=WIDTH, experts=experts, top_k=top_k, expert_hidden=hidden)
    return MoE(ml4.Llama4Config.nano(**sizes))


class Facts(nn.Module):
    """Two keys (n,) each -> logits of the value (n, v): embed, one layer, read off."""

    def __init__(self, ffn: nn.Module, keys: int = KEYS, width: int = WIDTH):
        super().__init__()
        self.first, self.second = nn.Embedding(keys, width), nn.Embedding(keys, width)
        self.norm, self.ffn = nn.RMSNorm(width), ffn
        self.head = nn.Linear(width, keys)
        for weight in ffn.parameters():
            nn.init.normal_(weight, std=weight.shape[-2 if weight.ndim == 3 else -1] ** -0.5)

    def forward(self, first: Tensor, second: Tensor) -> Tensor:
        x = self.first(first) + self.second(second)
        return self.head(F.rms_norm(x + self.ffn(self.norm(x)[None])[0], x.shape[-1:]))


def run(make, seed: int, steps: int = STEPS, rate: float = RATE) -> dict:
    """Learn all facts; the share recalled while learning, and how even the experts' loads are."""
    torch.manual_seed(seed)
    first, second = torch.arange(KEYS**2) // KEYS, torch.arange(KEYS**2) % KEYS
    value = torch.randint(KEYS, (KEYS**2,))
    order = torch.Generator().manual_seed(seed)
    model = Facts(make())
    optimizer = torch.optim.AdamW(model.parameters(), lr=rate, weight_decay=0.0)
    recalled, at = [], []
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = rate * (1 - step / steps)
        pick = torch.randint(KEYS**2, (BATCH,), generator=order)
        loss = F.cross_entropy(model(first[pick], second[pick]), value[pick])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if (step + 1) % (steps // 20) == 0:
            with torch.no_grad():
                right = model(first, second).argmax(-1) == value
            at.append(step + 1)
            recalled.append(round(right.float().mean().item(), 4))
    ffn = model.ffn
    row = {"accuracy": recalled[-1], "recalled": recalled, "step": at}
    if isinstance(ffn, MoE):
        with torch.no_grad():
            x = model.norm(model.first(first) + model.second(second))
            load = ffn.router(x)[1].flatten().bincount(minlength=len(ffn.router.weight))
        row["effective_experts"] = round(float(effective_experts(load)), 2)
    return row


def conditions() -> dict:
    makers = {f"{e} expert{'s' if e > 1 else ''}": (lambda e=e: layer(e)) for e in (1, 2, 4, 8)}
    makers["17 half experts"] = lambda: layer(17, top_k=3, hidden=HIDDEN // 2)
    makers["dense, stored as 8"] = lambda: SwiGLU(WIDTH, (8 + 1) * HIDDEN)
    parts = {name: (lambda seed, m=make: run(m, seed)) for name, make in makers.items()}
    for times in (4, 16):
        parts[f"1 expert, {times}x steps"] = lambda seed, t=times: run(
            makers["1 expert"], seed, t * STEPS
        )
    return parts


def sweep() -> dict:
    return {
        f"{e} experts, rate {rate}": (
            lambda seed, e=e, rate=rate: run(lambda: layer(e), seed, STEPS // 2, rate)
        )
        for e in (1, 8)
        for rate in RATES
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.parse_args()
    torch.set_num_threads(1)
    for name, parts, seeds in (
        ("facts_rates", sweep(), (SWEEP_SEED,)),
        ("facts", conditions(), SEEDS),
    ):
        if (HERE / f"{name}.json").exists():
            print(f"{name}.json is there: delete it to make it anew.")
            continue
        keep = HERE / f"{name}.part.json"  # finished runs, from which a second start goes on
        runs = repeat(parts, seeds, keep=keep)
        runs.save(HERE / f"{name}.json", command="python data/experiments/facts.py")
        keep.unlink()


if __name__ == "__main__":
    main()

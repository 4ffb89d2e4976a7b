"""Do routers specialise, by token or by domain, and is it causal? (Claims M7 and M8.)

    python data/experiments/specialisation.py      # 15 minutes on one core; goes on if stopped

writes specialisation.json beside this file. Three conditions, seeds 0 to 2:

trained     a model of 4 layers with 8 experts each, 500 steps of 16 rows of 128 tokens from six
            domains, balanced by an auxiliary loss over many batches
untrained   the same model before its first step: the control for "specialises by learning"
mini_scout  the shipped model; here a seed chooses the text that it is measured on

Measured on 192 excerpts of held-out documents, 96 tokens each (mini_scout: 96 excerpts), by layer:
what the expert tells about token and domain, and, with each expert switched off in turn, how much
the loss rises, by domain and for the tokens that this expert had read.
"""

from dataclasses import asdict
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

import minillama4 as ml4
from minillama4.data.excerpts import excerpts
from minillama4.data.sources import DOMAINS
from minillama4.data.text import Batch, Corpus
from minillama4.explore.experiment import repeat
from minillama4.explore.routing import joint, specialisation
from minillama4.explore.steer import off, steer
from minillama4.train.balance import balance
from minillama4.train.loop import TrainSettings, train

RESULT = Path(__file__).with_suffix(".json")
KEEP = RESULT.with_suffix(".part.json")  # finished runs, until all are done
STEPS, ROWS, LENGTH = 500, 32, 96
SHUFFLES = 100


def main() -> None:
    torch.set_num_threads(1)
    tokenizer = ml4.load_tokenizer()
    corpus = Corpus.build(tokenizer, "train", tokens_per_domain=200_000)

    def trained(seed: int) -> dict:
        model = fresh(tokenizer, seed)
        with balance(model, "aux", over="many") as balanced:
            settings = TrainSettings(steps=STEPS, seed=seed)

            def batches(step: int) -> Tensor:
                return corpus.batch(step, 16, 128, seed).tokens

            train(model, batches, settings, loss=balanced.loss)
        return measure(model, excerpts(tokenizer, ROWS, LENGTH + 1))

    def untrained(seed: int) -> dict:
        return measure(fresh(tokenizer, seed), excerpts(tokenizer, ROWS, LENGTH + 1))

    def mini_scout(seed: int) -> dict:
        model = ml4.load(ml4.shipped("mini_scout"), dtype=torch.float32)
        return measure(model, excerpts(tokenizer, ROWS // 2, LENGTH + 1, seed=seed))

    conditions = {"untrained": untrained, "trained": trained, "mini_scout": mini_scout}
    runs = repeat(conditions, seeds=(0, 1, 2), keep=KEEP)
    runs.save(RESULT, command="python data/experiments/specialisation.py")
    KEEP.unlink()


def fresh(tokenizer, seed: int) -> ml4.Llama4:
    sizes = dict(vocab_size=tokenizer.vocab_size, patch_token=tokenizer.special["<|patch|>"])
    config = ml4.Llama4Config.nano(experts=8, chunk=128, floor_scale=128, **sizes)
    torch.manual_seed(seed)
    return ml4.Llama4(config)


@torch.no_grad()
def measure(model: ml4.Llama4, text: Batch) -> dict:
    """Everything, by layer: information about token and domain, then what knock-outs do."""
    loss, choice = read(model, text.tokens)
    tokens, domains = text.tokens[:, :-1], text.domains[:, :-1]
    rows = torch.arange(len(tokens))[:, None].expand_as(tokens)
    found: dict[str, list] = {"layer": list(model.config.moe_layers)}
    for layer in choice:
        kinds = {
            "token": dict(labels=tokens),
            "domain": dict(labels=domains, groups=rows),
            "domain_by_single_tokens": dict(labels=domains),
        }
        for name, how in kinds.items():
            keep(found, name, specialisation(layer, permutations=SHUFFLES, **how))
        keep(found, "domain_from_token", through_the_token(layer, tokens, domains, rows))
        for name, value in on_common_tokens(layer, tokens, domains, rows).items():
            keep(found, name, value)
    found["loss"] = by_domain(loss, text.domains[:, 1:])
    return found | knock_outs(model, text, loss, choice)


def keep(found: dict, name: str, value) -> None:
    """A list over layers for each number of a measure: "token_raw", "token_null", ..."""
    for key, number in (asdict(value) | {"excess": value.excess, "share": value.share}).items():
        found.setdefault(f"{name}_{key}", []).append(round(number, 5))


def on_common_tokens(choice: Tensor, tokens: Tensor, domains: Tensor, rows: Tensor) -> dict:
    """What the token tells about its expert, and what the domain adds to it: where both can."""
    common = is_common(tokens, domains)
    choice, tokens, domains, rows = (each[common] for each in (choice, tokens, domains, rows))
    more = {"permutations": SHUFFLES}
    return {
        "common_token": specialisation(tokens, choice, **more),
        "common_domain_given_token": specialisation(
            choice, domains, given=tokens, groups=rows, **more
        ),
    }


def is_common(tokens: Tensor, domains: Tensor, times: int = 5) -> Tensor:
    """Which tokens are of a kind that occurs so often in two domains or more."""
    table = joint(tokens, domains, y_size=len(DOMAINS))  # v, domains
    return ((table >= times).sum(1) >= 2)[tokens]


def through_the_token(choice: Tensor, tokens: Tensor, domains: Tensor, rows: Tensor):
    """The control: choices exchanged among equal tokens, so that only the token decides."""
    draw = torch.Generator().manual_seed(0)
    flat, kinds = choice.flatten(), tokens.flatten()
    chance = torch.rand(len(flat), generator=draw, dtype=torch.float64)
    mixed = torch.empty_like(flat)
    mixed[kinds.argsort(stable=True)] = flat[(kinds + chance).argsort()]
    return specialisation(mixed.view_as(choice), domains, groups=rows, permutations=SHUFFLES)


def read(model: ml4.Llama4, tokens: Tensor) -> tuple[Tensor, Tensor]:
    """Loss of every prediction (b, t) in nats, and choices (layers, b, t)."""
    with ml4.trace(model) as seen:
        logits = model(tokens[:, :-1])
    loss = F.cross_entropy(logits.transpose(1, 2), tokens[:, 1:], reduction="none")
    return loss, torch.stack([seen.router[layer].choice[..., 0] for layer in seen.router])


def by_domain(values: Tensor, domains: Tensor) -> list[float]:
    return [round(values[domains == d].mean().item(), 5) for d in range(len(DOMAINS))]


def knock_outs(model: ml4.Llama4, text: Batch, loss: Tensor, choice: Tensor) -> dict:
    """Each expert off in turn. By layer and expert: its tokens by domain (counts), the rise of the
    loss by domain, and the mean rise at the tokens it had read and at all others."""
    domains = text.domains[:, :-1]
    found = {name: [] for name in ("tokens_of_domain", "rise", "rise_own", "rise_other")}
    for i, layer in enumerate(model.config.moe_layers):
        table = joint(choice[i], domains, model.config.experts, len(DOMAINS))
        rows = {"rise": [], "rise_own": [], "rise_other": []}
        for expert in range(model.config.experts):
            with steer(model, off(expert), layers=[layer]):
                rise = read(model, text.tokens)[0] - loss
            own = choice[i] == expert
            rows["rise"].append(by_domain(rise, domains))
            rows["rise_own"].append(round(rise[own].mean().item(), 5) if own.any() else 0.0)
            rows["rise_other"].append(round(rise[~own].mean().item(), 5))
        found["tokens_of_domain"].append(table.tolist())
        for name, values in rows.items():
            found[name].append(values)
    return found


if __name__ == "__main__":
    main()

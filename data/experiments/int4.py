"""What rounding the weights costs: bits, groups, conventions, and which matrices.

    python data/experiments/int4.py     about 6 minutes on one core; start again to resume

grid     int4.json. The shipped mini Scout and mini Maverick with their experts, all matrices of
         their blocks but the routers, or the head as well, rounded to 2 to 8 bits, in groups of 16,
         32, 64 and 128 (as wide as a row of these models, but for one dense matrix of Maverick's),
         in four ways: compressed-tensors (amax / 7.5 at 4 bits), Meta (amax / 8), textbook
         (amax / 7) and asymmetric (a zero point for each group).
parts    int4_parts.json. One kind of matrix alone; experts and routers together; experts with the
         routing held at the original's; noise as large as the rounding error, but drawn; scales
         rounded to bfloat16. For some of them error, rerouted tokens and loss layer by layer.

Nothing is trained: the weights are given, and rounding is not random. A model reads 24 held-out
texts of 256 tokens, four of each of six domains, in this order; "rise" is what each text's loss
gains, in nats per token, and its spread is one over texts. Read with `Runs.load`; the one "seed"
stands for the one set of weights.
"""

from pathlib import Path

import torch
import torch.nn.functional as F
from six_domains import rounded as short
from torch import Tensor

import minillama4 as ml4
from minillama4.data.text import Corpus
from minillama4.explore import repeat
from minillama4.explore.rounding import WAYS, bits_per_weight, round_weight
from minillama4.explore.steer import steer
from minillama4.serve.int4 import round_to_grid

HERE = Path(__file__).parent
MODELS = ("mini_scout", "mini_maverick")
BITS, GROUPS = (2, 3, 4, 5, 6, 7, 8), (16, 32, 64, 128)
EXPERTS = ("routed experts", "shared experts")
WHAT = {"experts": EXPERTS, "blocks": (*EXPERTS, "attention", "dense layers")}
WHAT["all"] = (*WHAT["blocks"], "head")
ALONE = (*WHAT["all"], "embedding", "routers")
TEXTS, LENGTH = 4, 256  # of each domain; tokens


def matrices(model, component: str) -> list[Tensor]:
    """All matrices of a component, each as (..., out, in) and in place."""
    blocks, moe = model.blocks, [model.blocks[i] for i in model.config.moe_layers]
    dense = [block for i, block in enumerate(blocks) if i not in model.config.moe_layers]
    if component == "routed experts":
        held = [w for b in moe for w in (b.ffn.experts.gate_up, b.ffn.experts.down)]
        return [w.data.transpose(-1, -2) for w in held]
    found = {
        "shared experts": [getattr(b.ffn.shared, n) for b in moe for n in ("gate", "up", "down")],
        "attention": [getattr(b.attention, n) for b in blocks for n in "qkvo"],
        "dense layers": [getattr(b.ffn, n) for b in dense for n in ("gate", "up", "down")],
        "routers": [b.ffn.router for b in moe],
        "head": [model.head],
        "embedding": [model.embed],
    }
    return [module.weight.data for module in found[component]]


def choices(seen) -> Tensor:
    """(layers with a router, texts, LENGTH, 1)."""
    return torch.stack([seen.router[layer].choice for layer in seen.router])


class Reader:
    """A model, its original weights, and what it did with the texts before anything was rounded."""

    def __init__(self, name: str, texts: Tensor):
        self.model = ml4.load(ml4.shipped(name), dtype=torch.float32).requires_grad_(False)
        self.weights = {key: value.clone() for key, value in self.model.state_dict().items()}
        self.texts = texts  # (texts, LENGTH + 1)
        self.loss, self.seen = self.read()
        self.choice = choices(self.seen)

    def read(self) -> tuple[Tensor, object]:
        """Loss of each token (texts, LENGTH), and the trace."""
        with torch.no_grad(), ml4.trace(self.model, hidden=True) as seen:
            logits = self.model(self.texts[:, :-1])
        loss = F.cross_entropy(logits.flatten(0, 1), self.texts[:, 1:].flatten(), reduction="none")
        return loss.unflatten(0, (len(self.texts), -1)), seen

    def change(self, components, new) -> tuple[float, int]:
        """Put ``new(weight)`` in the place of every weight; relative error, and their number."""
        self.model.load_state_dict(self.weights)
        gap, all_of_it, count = 0.0, 0.0, 0
        for component in components:
            for weight in matrices(self.model, component):
                other = new(weight)
                gap += (other - weight).pow(2).sum().item()
                all_of_it += weight.pow(2).sum().item()
                count += weight.numel()
                weight.copy_(other)
        return (gap / all_of_it) ** 0.5 if count else 0.0, count

    def compare(self) -> tuple[dict, Tensor, Tensor, object]:
        """What each text's loss gains, and tokens rerouted per layer; then by token."""
        loss, seen = self.read()
        moved = (choices(seen) != self.choice).any(-1)  # l b t
        rise = loss - self.loss
        told = {"rise": short(rise.mean(1)), "rerouted": short(moved.float().mean((1, 2)))}
        return told, rise, moved, seen


def settings(reader: Reader, what: str, bits: int, group: int, how: str) -> dict:
    error, count = reader.change(WHAT[what], lambda w: round_weight(w, bits, group, how))
    told = reader.compare()[0]
    told["rerouted"] = round(sum(told["rerouted"]) / len(told["rerouted"]), 4)
    others = sum(w.numel() for w in reader.weights.values()) - count
    size = round((count * bits_per_weight(bits, group, how) + others * 16) / 8)
    return told | {"error": round(error, 5), "bytes": size}


def in_depth(reader: Reader, components, new, held: bool = False) -> dict:
    """The same, and layer by layer: the error of what leaves it, and the loss by tokens rerouted.

    held: every token goes where it went in the original.
    """
    error, _ = reader.change(components, new)
    places = iter(reader.choice)
    if held:
        with steer(reader.model, lambda logits, k: next(places).reshape(-1, k)):
            told, rise, moved, seen = reader.compare()
    else:
        told, rise, moved, seen = reader.compare()
    layers = range(reader.model.config.layers)
    before, after = reader.seen.hidden, seen.hidden
    gaps = [((after[i] - before[i]).norm() / before[i].norm()).item() for i in layers]
    told |= {"error": round(error, 5), "error_by_layer": short(gaps)}
    times = moved.sum(0)  # b t: in how many layers
    for count in range(4):
        which = times == count if count < 3 else times >= count
        told[f"rerouted {count} times"] = summary(rise[which])
    return told


def summary(rise: Tensor) -> dict:
    if not len(rise):
        return {"tokens": 0}
    mean, size = rise.mean().item(), rise.abs().mean().item()
    return {"tokens": len(rise), "rise": round(mean, 4), "moved": round(size, 4)}


def like_noise(bits: int, group: int, draw: int):
    """Normal noise in the place of the rounding error, as large as it in every group."""
    generator = torch.Generator().manual_seed(draw)

    def new(weight: Tensor) -> Tensor:
        gap = round_weight(weight, bits, group, "compressed-tensors") - weight
        size = gap.unflatten(-1, (-1, group)).pow(2).mean(-1, keepdim=True).sqrt()
        noise = torch.randn(weight.shape, generator=generator).unflatten(-1, (-1, group)) * size
        return weight + noise.flatten(-2)

    return new


def short_scales(weight: Tensor) -> Tensor:
    """4 bits in groups of 128, each scale rounded to bfloat16."""
    q, scale = round_to_grid(weight)
    return (q.unflatten(-1, (-1, 128)) * scale.bfloat16().float()[..., None]).flatten(-2)


def grid(readers: dict) -> dict:
    return {
        f"{name}, {what}, {bits} bits, groups of {group}, {how}": (
            lambda seed, name=name, at=(what, bits, group, how): settings(readers[name], *at)
        )
        for name in MODELS
        for what in WHAT
        for how in WAYS
        for group in GROUPS
        for bits in BITS
    }


def parts(readers: dict) -> dict:
    found = {}

    def add(name: str, label: str, components, new, **more) -> None:
        found[f"{name}, {label}"] = lambda seed: in_depth(readers[name], components, new, **more)

    def plain(bits: int):
        return lambda w: round_weight(w, bits, 128, "compressed-tensors")

    for name in MODELS:
        add(name, "original", (), None)
        for bits in (2, 3, 4):
            for component in ALONE:
                if matrices(readers[name].model, component):
                    add(name, f"{component} alone, {bits} bits", (component,), plain(bits))
            add(name, f"experts, {bits} bits", EXPERTS, plain(bits))
            add(name, f"experts, routing held, {bits} bits", EXPERTS, plain(bits), held=True)
            add(name, f"experts and routers, {bits} bits", (*EXPERTS, "routers"), plain(bits))
        for bits in (5, 6, 8):
            add(name, f"routers alone, {bits} bits", ("routers",), plain(bits))
        for bits in (3, 4):
            for draw in range(5):
                label = f"experts, noise like {bits} bits, draw {draw}"
                add(name, label, EXPERTS, like_noise(bits, 128, draw))
        add(name, "experts, 4 bits, scales in bfloat16", EXPERTS, short_scales)
    return found


def main() -> None:
    torch.set_num_threads(1)
    corpus = Corpus.build(ml4.load_tokenizer(), "validation", tokens_per_domain=TEXTS * LENGTH + 1)
    texts = torch.cat([batch.tokens for batch in corpus.validation_batches(TEXTS, LENGTH)])
    readers = {name: Reader(name, texts) for name in MODELS}
    for make, stem in ((parts, "int4_parts"), (grid, "int4")):
        file, keep = HERE / f"{stem}.json", HERE / f"{stem}.part.json"
        if file.exists():
            print(f"{file.name} is there: delete it to make it anew.")
            continue
        runs = repeat(make(readers), [0], keep=keep)
        runs.save(file, command="python data/experiments/int4.py")
        keep.unlink()


if __name__ == "__main__":
    main()

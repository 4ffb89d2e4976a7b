"""Beyond the trained length: five kinds of attention, trained short and tested up to 16 times that.

    python data/experiments/beyond_length.py     about an hour on one core; start again to resume

RoPE everywhere     rotary positions in all four layers, each sees everything
NoPE everywhere     no positions in any layer
iRoPE               layers 0, 1, 2 with RoPE in chunks of 32, layer 3 without positions (Llama 4)
sliding window      the same with the last 32 tokens in place of chunks
chunks alone        RoPE in chunks in all layers: nothing crosses a border

The attention temperature is off in training and, below the trained length, would be exactly 1; the
trained models are read with it off and on. Two tasks, every model dense, four layers of width 64:

recall    four facts in 16 to 64 tokens of noise, asked back (`minillama4.data.recall`; the facts
          names that stand together in a test stand together in no training text).
          beyond_recall.json; the accuracy by the fact's depth, beyond_depth.json
text      the six domains, rows of 128 tokens; loss by position in held-out rows of 2,048.
          beyond_text.json

The rate and the number of steps were chosen on seed 100, where iRoPE and RoPE everywhere learned
the task at its trained length. Read the results with `minillama4.explore.Runs.load`.
"""

import argparse
from functools import partial
from pathlib import Path

import torch
import torch.nn.functional as F

import minillama4 as ml4
from minillama4.data.recall import IGNORED, Asked, Haystack
from minillama4.data.text import Corpus
from minillama4.explore import repeat
from minillama4.explore.variants import WAYS, nope_everywhere, sliding_window
from minillama4.train.loop import TrainSettings, train

HERE = Path(__file__).parent
SEEDS = (0, 1, 2)
LAYERS, CHUNK = 4, 32
TIMES = (1, 2, 4, 8, 16)  # the trained length
SCALES = (0.1, 0.3)  # of the temperature; Llama 4 has 0.1
RECALL = dict(length=64, steps=1500, rows=32, rate=3e-3)
TEXT = dict(length=128, steps=500, rows=16, rate=8e-3)
EIGHTHS = range(8)  # of a text, in which the asked fact is put
KINDS = ("RoPE everywhere", "NoPE everywhere", "iRoPE", "sliding window", "chunks alone")
MAPPED = ("RoPE everywhere", "iRoPE")  # kinds trained again for a map by depth


def make(kind: str, vocab_size: int, seed: int, **changes) -> ml4.Llama4:
    """A dense nano model with one kind of attention; no temperature unless ``changes`` say so."""
    sizes = dict(vocab_size=vocab_size, patch_token=0, moe_at=(), kv_heads=4, max_length=4096)
    way = WAYS | {"NoPE everywhere": nope_everywhere(LAYERS), "sliding window": {}}
    config = ml4.Llama4Config.nano(layers=LAYERS, chunk=CHUNK, temperature=False, **sizes)
    torch.manual_seed(seed)
    model = ml4.Llama4(config.replace(**way[kind], **changes))
    return sliding_window(model) if kind == "sliding window" else model


def with_temperature(model, kind: str, floor_scale: int, scale: float) -> ml4.Llama4:
    """The same weights, read with the temperature on."""
    hot = dict(temperature=True, floor_scale=floor_scale, attn_scale=scale)
    other = make(kind, model.config.vocab_size, 0, **hot)
    other.load_state_dict(model.state_dict())
    return other


# ---------------------------------------------------------------------- recall
def answer_loss(model, asked: Asked) -> torch.Tensor:
    """Nats per answer; everything else in the text goes unjudged."""
    logits = model(asked.tokens)
    return F.cross_entropy(logits.flatten(0, 1), asked.targets.flatten(), ignore_index=IGNORED)


@torch.no_grad()
def score(model, hay: Haystack, length: int, rows: int = 256, **how) -> tuple[float, float]:
    """Share of right answers, and nats per answer, on texts that no training has seen."""
    asked = hay.batch(0, rows, length, seed=1000, **({"split": "test"} | how))
    with torch.no_grad():
        logits = model(asked.tokens)
    loss = F.cross_entropy(logits.flatten(0, 1), asked.targets.flatten(), ignore_index=IGNORED)
    return asked.right(logits).float().mean().item(), loss.item()


@torch.no_grad()
def at_borders(model, hay: Haystack, length: int) -> dict:
    """Accuracy on facts that a chunk border cuts in two, and on all others."""
    cut, whole = [], []
    for step in range(8):
        asked = hay.batch(1 + step, 256, length, seed=1000, split="test")
        right = asked.right(model(asked.tokens)).float()
        border = (asked.place + 1) % CHUNK == 0
        cut.append(right[border])
        whole.append(right[~border])
    return {"cut": torch.cat(cut).mean().item(), "whole": torch.cat(whole).mean().item()}


def learn_recall(kind: str, seed: int) -> dict:
    """Train on up to 64 tokens of noise; accuracy and loss from there to 16 times as many."""
    model, history = train_recall(kind, seed)
    learned = [row["validation"]["accuracy"] for row in history if "validation" in row]
    return measure_recall(model, kind, Haystack()) | {"learned": learned}


def learn_depth(kind: str, seed: int) -> dict:
    """The same training; accuracy by the part of the text in which the asked fact stands.

    At random places of each part: even steps of depth fall on chunk borders (a first map did, and
    showed losses in iRoPE that were those of facts cut in two).
    """
    model, _ = train_recall(kind, seed)
    lengths, draw = [RECALL["length"] * times for times in TIMES], torch.Generator().manual_seed(0)
    depths = [(torch.rand(96, generator=draw) + part) / len(EIGHTHS) for part in EIGHTHS]
    by_depth = [
        [round(score(model, Haystack(), n, rows=96, depth=depth)[0], 4) for depth in depths]
        for n in lengths
    ]
    return {"length": lengths, "by_depth": by_depth}


def train_recall(kind: str, seed: int) -> tuple[ml4.Llama4, list[dict]]:
    hay, r = Haystack(), RECALL
    model = make(kind, hay.vocab_size, seed)

    def batches(step: int) -> Asked:
        generator = torch.Generator().manual_seed(seed * 10**6 + step)
        length = int(torch.randint(16, r["length"] + 1, (), generator=generator))
        return hay.batch(step, r["rows"], length, seed)

    def validate(model) -> dict:
        return {"accuracy": score(model, hay, r["length"])[0]}

    rules = dict(learning_rate=r["rate"], warmup=100, weight_decay=0.01, validate_every=250)
    settings = TrainSettings(r["steps"], seed=seed, **rules)
    return model, train(model, batches, settings, validate=validate, loss=answer_loss)


def measure_recall(model, kind: str, hay: Haystack) -> dict:
    lengths = [RECALL["length"] * times for times in TIMES]
    plain = [score(model, hay, length) for length in lengths]
    row = {
        "length": lengths,
        "accuracy": [accuracy for accuracy, _ in plain],
        "loss": [round(loss, 4) for _, loss in plain],
        "accuracy_train_split": score(model, hay, lengths[0], split="train")[0],
    }
    row |= {f"{k}_at_2": round(v, 4) for k, v in at_borders(model, hay, lengths[1]).items()}
    if model.config.nope_layers:
        floor = RECALL["length"] + 2 * hay.facts + 1  # a training text with its questions
        for scale in SCALES:
            hot = with_temperature(model, kind, floor, scale)
            both = [score(hot, hay, length) for length in lengths]
            row[f"accuracy_temperature_{scale}"] = [accuracy for accuracy, _ in both]
            row[f"loss_temperature_{scale}"] = [round(loss, 4) for _, loss in both]
    return row


# ---------------------------------------------------------------------- text
class Text:
    """Training rows of 128 tokens, and held-out rows of 16 times as many."""

    def __init__(self):
        self.tokenizer = ml4.load_tokenizer()
        longest = TEXT["length"] * TIMES[-1]
        self.train = Corpus.build(self.tokenizer, "train", tokens_per_domain=400_000)
        held_out = Corpus.build(self.tokenizer, "validation", tokens_per_domain=6 * longest + 1)
        self.held_out = [batch.tokens for batch in held_out.validation_batches(6, longest)]

    @torch.no_grad()
    def by_position(self, model) -> list[float]:
        """Nats per token in the first 128 positions, up to twice as many, up to 4 times, ..."""
        losses = []
        for tokens in self.held_out:
            logits = model(tokens[:, :-1]).transpose(1, 2)
            losses.append(F.cross_entropy(logits, tokens[:, 1:], reduction="none").mean(0))
        mean = torch.stack(losses).mean(0)
        ends = [TEXT["length"] * times for times in TIMES]
        return [round(mean[a:z].mean().item(), 4) for a, z in zip([0, *ends], ends, strict=False)]


def learn_text(kind: str, seed: int, text: Text) -> dict:
    r = TEXT
    model = make(kind, text.tokenizer.vocab_size, seed)
    settings = TrainSettings(r["steps"], learning_rate=r["rate"], warmup=50, seed=seed)

    def batches(step: int):
        return text.train.batch(step, r["rows"], r["length"], seed).tokens

    history = train(model, batches, settings)
    row = {
        "length": [r["length"] * times for times in TIMES],
        "loss": text.by_position(model),
        "training": [round(row["loss"], 3) for row in history[9::10]],
    }
    if model.config.nope_layers:
        for scale in SCALES:
            hot = with_temperature(model, kind, r["length"] + 1, scale)
            row[f"loss_temperature_{scale}"] = text.by_position(hot)
    return row


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    tasks = ["recall", "depth", "text"]
    parser.add_argument("task", nargs="*", choices=tasks, default=tasks)
    torch.set_num_threads(1)
    for task in parser.parse_args().task:
        run(task)


def run(task: str) -> None:
    file = HERE / f"beyond_{task}.json"
    if file.exists():
        print(f"{file.name} is there: delete it to make it anew.")
        return
    learn = {"recall": learn_recall, "depth": learn_depth}.get(task) or partial(
        learn_text, text=Text()
    )
    kinds = MAPPED if task == "depth" else KINDS
    keep = HERE / f"beyond_{task}.part.json"  # finished runs, from which a second start goes on
    runs = repeat({kind: (lambda seed, k=kind: learn(k, seed)) for kind in kinds}, SEEDS, keep=keep)
    runs.save(file, command="python data/experiments/beyond_length.py")
    keep.unlink()


if __name__ == "__main__":
    main()

"""Does the attention temperature hold the entropy steady, and what does it do to the loss?

    python data/experiments/temperature.py     about 7 minutes on one core; start again to resume

long       the shipped mini Scout, trained with the temperature on (floor 128, scale 0.1) on rows
           of 512, reads up to 16,384 held-out tokens. A "seed" is a sample: one text of each of
           six domains. temperature_long.json
untrained  the temperature as something done at inference alone: three seeds of a dense nano iRoPE
           model, trained with it off on rows of 128 (the iRoPE of `beyond_length.py`, its text
           task), read up to 4,096 held-out tokens, floor 128. temperature_untrained.json

Each text is read with four scales: 0 (no temperature), 0.1 (Llama 4's), 0.2 (about 1 / ln 128; for
the real floor 1 / ln 8192 is 0.11) and 0.4. Kept for every text: the entropy of each NoPE layer,
mean over heads and the 32 queries before each length; the loss between one length and the next.
Read the results with `minillama4.explore.Runs.load`.
"""

from pathlib import Path

import torch
import torch.nn.functional as F
from beyond_length import TEXT, make

import minillama4 as ml4
from minillama4.data.text import Corpus
from minillama4.explore import attention_entropy, repeat
from minillama4.train.loop import TrainSettings, train

HERE = Path(__file__).parent
SCALES = (0.0, 0.1, 0.2, 0.4)
QUERIES = 32  # before each length
FLOOR = 128
SEEDS = (0, 1, 2)
SAMPLES = (0, 1)


def read(model, tokens: torch.Tensor, lengths: list[int]) -> dict:
    """One text, (1, t + 1): entropy in nats by NoPE layer at, and loss before, each length."""
    positions = [length - back for length in lengths for back in range(QUERIES, 0, -1)]
    logits = []
    hook = model.register_forward_hook(lambda module, given, out: logits.append(out[0]))
    rows = attention_entropy(model, tokens[:, :-1], positions=positions)
    hook.remove()
    loss = F.cross_entropy(logits[0], tokens[0, 1:], reduction="none")
    parts = zip([0, *lengths], lengths, strict=False)
    entropy = {
        str(layer): [round(x, 4) for x in nats.mean((0, 1)).view(-1, QUERIES).mean(1).tolist()]
        for layer, nats in rows.items()
    }
    return {"entropy": entropy, "loss": [round(loss[a:z].mean().item(), 5) for a, z in parts]}


def read_all(model, texts: list, lengths: list[int], scale: float) -> dict:
    """Every text with one scale of the temperature: lists (domain, length), by layer."""
    config = model.config.replace(temperature=True, floor_scale=FLOOR, attn_scale=scale)
    other = ml4.Llama4(config).requires_grad_(False)
    other.load_state_dict(model.state_dict())
    read_texts = [read(other, tokens, lengths) for tokens in texts]
    row = {"length": lengths, "loss": [text["loss"] for text in read_texts]}
    for layer in config.nope_layers:
        row[f"entropy of layer {layer}"] = [text["entropy"][str(layer)] for text in read_texts]
    return row


def held_out(tokenizer, length: int, samples: int) -> list[list[torch.Tensor]]:
    """Samples of one text for each domain, (1, length + 1) tokens."""
    corpus = Corpus.build(tokenizer, "validation", tokens_per_domain=samples * length + 1)
    rows = [batch.tokens for batch in corpus.validation_batches(1, length)]  # domain by domain
    return [rows[sample::samples] for sample in range(samples)]


def save(name: str, conditions: dict, seeds) -> None:
    file, keep = HERE / f"temperature_{name}.json", HERE / f"temperature_{name}.part.json"
    if file.exists():
        print(f"{file.name} is there: delete it to make it anew.")
        return
    runs = repeat(conditions, seeds, keep=keep)
    runs.save(file, command="python data/experiments/temperature.py")
    keep.unlink()


def far() -> None:
    model = ml4.load(ml4.shipped("mini_scout"), dtype=torch.float32)
    lengths = [128 * 2**i for i in range(8)]
    samples = held_out(ml4.load_tokenizer(), lengths[-1], len(SAMPLES))
    save(
        "long",
        {
            f"scale {scale}": lambda seed, s=scale: read_all(model, samples[seed], lengths, s)
            for scale in SCALES
        },
        SAMPLES,
    )


def untrained() -> None:
    tokenizer = ml4.load_tokenizer()
    lengths = [128 * 2**i for i in range(6)]
    (texts,) = held_out(tokenizer, lengths[-1], 1)
    learned = {}

    def model(seed: int) -> ml4.Llama4:
        """Trained once for all four scales, with no temperature."""
        if seed not in learned:
            corpus = Corpus.build(tokenizer, "train", tokens_per_domain=400_000)
            learned[seed] = make("iRoPE", tokenizer.vocab_size, seed)
            settings = TrainSettings(TEXT["steps"], TEXT["rate"], warmup=50, seed=seed)
            size = TEXT["rows"], TEXT["length"]
            train(learned[seed], lambda step: corpus.batch(step, *size, seed).tokens, settings)
        return learned[seed]

    save(
        "untrained",
        {
            f"scale {scale}": lambda seed, s=scale: read_all(model(seed), texts, lengths, s)
            for scale in SCALES
        },
        SEEDS,
    )


if __name__ == "__main__":
    torch.set_num_threads(1)
    far()
    untrained()

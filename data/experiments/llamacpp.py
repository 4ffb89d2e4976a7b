"""The mini Scout in llama.cpp: what does it compute from our GGUF files, and up to where?

    python start.py setup, then pip install 'minillama4[llamacpp]' into .venv (it compiles)
    python data/experiments/llamacpp.py     a minute on one core; llamacpp.json

Conditions are kinds of file (f32, f16, bf16, q8_0, q4_0), all read with a cache in float32, and f32
with llama.cpp's own cache in float16. A "seed" is a sample: six held-out texts of 384 tokens, one
of each domain. Kept: the relative difference of llama.cpp's logits, by position, from our model's,
and from those of the model that llama.cpp is bound to compute (``as_llamacpp``); the share of
positions with another likeliest token and the loss added, within ``llamacpp_length`` and beyond;
and for how many of 6 beginnings the greedy text is ours up to that length.
Read with `minillama4.explore.Runs.load`.
"""

import sys
from functools import cache
from importlib.metadata import version
from pathlib import Path

import torch
import torch.nn.functional as F

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parents[1]))  # for tests.bench

import minillama4 as ml4  # noqa: E402
from minillama4.data.text import DOMAINS, Corpus  # noqa: E402
from minillama4.explore import repeat  # noqa: E402
from minillama4.serve.gguf import KINDS  # noqa: E402
from minillama4.serve.llamacpp import as_llamacpp, llamacpp_length  # noqa: E402
from tests.bench.llamacpp import LlamaCpp  # noqa: E402

LENGTH, SAMPLES, START = 384, (0, 1, 2), 16


def apart(theirs, ours) -> list[float]:
    """By position, over the texts: (b, t, v) twice -> t numbers."""
    gap = (theirs - ours).norm(dim=(0, 2)) / ours.norm(dim=(0, 2))
    return [float(f"{x:.2e}") for x in gap.tolist()]


def compare(reader, model, other, tokens) -> dict:
    """One sample, (6, LENGTH + 1) tokens."""
    inputs, border = tokens[:, :-1], llamacpp_length(model.config)
    theirs = torch.cat([reader.read_new(row[None], every=True) for row in inputs])
    ours = model(inputs)
    loss = [F.cross_entropy(x.mT, tokens[:, 1:], reduction="none") for x in (theirs, ours)]
    changed = (theirs.argmax(-1) != ours.argmax(-1)).float()
    row = {"apart": apart(theirs, ours), "apart from as_llamacpp": apart(theirs, other(inputs))}
    for name, part in {"within": slice(border), "beyond": slice(border, None)}.items():
        row[f"changed {name}"] = round(changed[:, part].mean().item(), 5)
        row[f"loss added {name}"] = round((loss[0] - loss[1])[:, part].mean().item(), 5)
    starts, count = inputs[:, :START], border - START
    alike = [
        continued(reader, s[None], count) == ours_of(model, tuple(s.tolist()), count)
        for s in starts
    ]
    return row | {"greedy texts alike": sum(alike)}


def continued(reader, start, count: int) -> list[int]:
    """llama.cpp's greedy tokens after ``start`` (1, t)."""
    logits, written = reader.read_new(start), []
    for _ in range(count):
        written.append(logits[0, -1].argmax().item())
        logits = reader.read(torch.tensor([written[-1:]]))
    return written


@cache
def ours_of(model, start: tuple[int, ...], count: int) -> list[int]:
    """Ours, written once for all kinds of file."""
    (written,) = ml4.complete(model, list(start), count)
    return written


@torch.inference_mode()
def main() -> None:
    model = ml4.load(ml4.shipped("mini_scout"), dtype=torch.float32).eval()
    other = ml4.Llama4(as_llamacpp(model.config)).eval()
    other.load_state_dict(model.state_dict())
    tokenizer = ml4.load_tokenizer()
    corpus = Corpus.build(tokenizer, "validation", tokens_per_domain=len(SAMPLES) * LENGTH + 1)
    rows = [batch.tokens for batch in corpus.validation_batches(1, LENGTH)]  # domain by domain
    samples = [torch.cat(rows[sample :: len(SAMPLES)]) for sample in SAMPLES]
    assert samples[0].shape == (len(DOMAINS), LENGTH + 1)

    def condition(kind, cache="f32"):
        reader = LlamaCpp(model, kind, threads=1, length=512, cache=cache)
        return lambda sample: compare(reader, model, other, samples[sample])

    conditions = {kind: condition(kind) for kind in KINDS}
    conditions["f32, cache f16"] = condition("f32", "f16")
    runs = repeat(conditions, SAMPLES)
    built = f"llama-cpp-python {version('llama-cpp-python')}"
    command = f"python data/experiments/llamacpp.py, {built}"
    runs.save(HERE / "llamacpp.json", command=command)
    for name in conditions:
        gaps = torch.tensor(runs.values(name, "apart")).mean(0)
        print(f"{name:15} {gaps[:127].max():.1e} {gaps[127:].mean():.2f}", runs.results[name][0])


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()

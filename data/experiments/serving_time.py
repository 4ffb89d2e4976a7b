"""What an answer's time is made of: reading the prompt, then writing token by token.

    python data/experiments/serving_time.py      about 4 minutes on one core; start again to resume

prefill: ...   time to the first token of prompts up to 16,383 tokens, and the bytes of the cache:
               the shipped mini Scout, the same weights without chunks, and mini dense
decode: ...    time per output token at batch 1. Random weights, 8 layers of width 256: top-1 of 1
               to 128 experts and a dense model of equal active size; controls with hidden layers
               twice and four times as wide, dense and with experts. The two shipped models; and of
               their width (random weights) 1 and 128 experts, and dense with four times the width
batch: ...     time of a step that writes one token for each of 1 to 64 texts, the shipped models
shared: ...    time to the first token of a prompt that begins like one that was read before, with
               ``PromptCache`` and without; 32 tokens are new

All in milliseconds of one thread's CPU time: the better of two tries, of steps the best of five. A
"seed" is another text, and other weights where they are random. The result is serving_time.json,
for `minillama4.explore.Runs.load`.
"""

import time
from pathlib import Path

import torch

import minillama4 as ml4
from minillama4.data.text import Corpus
from minillama4.explore import repeat
from minillama4.serve.generate import read
from minillama4.serve.prompt_cache import PromptCache

HERE = Path(__file__).parent
SEEDS = (0, 1, 2, 3, 4)
LENGTHS = [2**i - 1 for i in range(8, 15)]  # 255 to 16,383: one token of the last chunk is missing
BATCHES = [1, 2, 4, 8, 16, 32, 64]
NEW = 32  # tokens that are written, and that are new behind a shared beginning


def milliseconds(work) -> float:
    """CPU time of this process, the better of two tries; what ``work`` returns is dropped."""
    times = []
    for _ in range(2):
        began = time.process_time()
        work()
        times.append(time.process_time() - began)
    return round(1e3 * min(times), 3)


def prefill(model, text: torch.Tensor) -> dict:
    times, sizes = [], []
    for length in LENGTHS:
        caches = []

        def work(length=length, caches=caches):
            caches.append(ml4.KVCache(model.config))
            read(model, text[None, :length], caches[-1])

        times.append(milliseconds(work))
        sizes.append(caches[-1].bytes)
    return {"tokens": LENGTHS, "milliseconds": times, "bytes": sizes}


def step_time(model, prompts: torch.Tensor, **options) -> float:
    """Milliseconds for one further token of every row, the best of five tries: they are short."""
    times = []
    for _ in range(5):
        steps = ml4.generate(model, prompts, NEW + 1, **options)
        next(steps)
        began = time.process_time()
        for _ in steps:
            pass
        times.append(1e3 * (time.process_time() - began) / NEW)
    return round(min(times), 4)


def sizes() -> dict[str, ml4.Llama4Config]:
    """Of the models with random weights: large enough that weights, not calls, take the time."""
    hidden = 512
    base = ml4.Llama4Config.mini(width=256, heads=8, expert_hidden=hidden, dense_hidden=2 * hidden)
    dense = base.replace(moe_at=())
    return {
        "1 expert": base.replace(experts=1),
        **{f"{e} experts": base.replace(experts=e) for e in (4, 16, 64, 128)},
        "dense": dense,
        "dense, 2 ×": dense.replace(dense_hidden=4 * hidden),
        "dense, 4 ×": dense.replace(dense_hidden=8 * hidden),
        "16 experts, 2 ×": base.replace(expert_hidden=2 * hidden),
        "4 experts, 4 ×": base.replace(experts=4, expert_hidden=4 * hidden),
        # of the shipped models' width, 128: are they too small for the claim?
        "mini, 1 expert": ml4.Llama4Config.mini(experts=1),
        "mini, 128 experts": ml4.Llama4Config.mini(experts=128),
        "mini dense, 4 ×": ml4.Llama4Config.mini_dense(dense_hidden=1024),
    }


def decode(model, prompt: torch.Tensor, seed: int) -> dict:
    """Tokens are drawn, so that they differ and meet different experts; how many is kept."""
    options = dict(temperature=1.0, seed=seed)
    took = step_time(model, prompt[None], **options)
    with ml4.trace(model) as seen:
        ml4.complete(model, prompt, NEW + 1, **options)
    met = [seen.router[i].choice[:, len(prompt) :].unique().numel() for i in seen.router]
    count = model.config.parameters()
    row = {"milliseconds": took, "active": count.active, "stored": count.total}
    return row | {"experts met": sum(met) / max(len(met), 1)}


def random_decode(config: ml4.Llama4Config, prompt: torch.Tensor, seed: int) -> dict:
    torch.manual_seed(seed)
    return decode(ml4.Llama4(config).requires_grad_(False), prompt, seed)


def batch(model, text: torch.Tensor) -> dict:
    times = [step_time(model, text[: 128 * b].view(b, 128)) for b in BATCHES]
    return {"batch": BATCHES, "milliseconds": times}


def shared(model, text: torch.Tensor) -> dict:
    """A beginning that was read, then the same beginning and NEW other tokens."""
    lengths = [length - 2 * NEW for length in LENGTHS]  # room to write in
    with_store, without, reused, same = [], [], [], []
    for length in lengths:
        prompt = text[: length + NEW].tolist()
        store = PromptCache(model, room=10**9)
        store.generate([*prompt[:length], 0], 1)
        without.append(milliseconds(lambda p=prompt: next(ml4.generate(model, p, NEW))))
        with_store.append(milliseconds(lambda p=prompt, s=store: from_store(model, s, p)))
        cache, rest = store.find(prompt)
        reused.append(len(prompt) - len(rest))
        again = ml4.complete(model, rest, NEW, cache=cache)
        same.append(again == ml4.complete(model, prompt, NEW))
    return {
        "tokens": lengths,
        "without": without,
        "milliseconds": with_store,
        "reused": reused,
        "same text": same,
    }


def from_store(model, store: PromptCache, prompt: list[int]) -> torch.Tensor:
    cache, rest = store.find(prompt)
    return next(ml4.generate(model, rest, NEW, cache=cache))


def main() -> None:
    torch.set_num_threads(1)
    corpus = Corpus.build(ml4.load_tokenizer(), "validation", tokens_per_domain=16_384)
    pieces = torch.cat([row.view(-1, 1024) for row in corpus.tokens.values()]).long()
    texts = [
        pieces[torch.randperm(len(pieces), generator=torch.Generator().manual_seed(seed))].flatten()
        for seed in SEEDS
    ]
    shipped = {
        name: ml4.load(ml4.shipped(folder), dtype=torch.float32).requires_grad_(False)
        for name, folder in (("mini Scout", "mini_scout"), ("mini dense", "mini_dense"))
    }
    scout = shipped["mini Scout"]
    whole = ml4.Llama4(scout.config.replace(chunk=None)).requires_grad_(False)
    whole.load_state_dict(scout.state_dict())
    read(scout, texts[0][None, :1000], None)  # a first call warms up
    conditions = {
        f"prefill: {name}": lambda seed, m=model: prefill(m, texts[seed])
        for name, model in {**shipped, "without chunks": whole}.items()
    }
    for name, model in shipped.items():
        conditions |= {
            f"decode: {name}": lambda seed, m=model: decode(m, texts[seed][:128], seed),
            f"batch: {name}": lambda seed, m=model: batch(m, texts[seed]),
        }
    conditions |= {
        f"decode: {name}": lambda seed, c=config: random_decode(c, texts[seed][:128], seed)
        for name, config in sizes().items()
    }
    conditions["shared: mini Scout"] = lambda seed: shared(scout, texts[seed])
    file, keep = HERE / "serving_time.json", HERE / "serving_time.part.json"
    if file.exists():
        raise SystemExit(f"{file.name} is there: delete it to make it anew.")
    runs = repeat(conditions, SEEDS, keep=keep)
    runs.save(file, command="python data/experiments/serving_time.py")
    keep.unlink()


if __name__ == "__main__":
    main()

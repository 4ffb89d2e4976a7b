"""Train a mini model on the text of ``minillama4.data`` from the command line.

    python -m minillama4.train --preset mini --balance aux --steps 2000 --out runs/mini

writes runs/mini/model (what ``ml4.load`` and transformers open), history.json (every step),
routing.safetensors (who went where on held-out tokens while it learned) and training.pt (the
state, from which the same command resumes; when all is done it changes nothing).
"""

from __future__ import annotations

import argparse
import json
import math
import platform
from pathlib import Path

import torch

import minillama4 as ml4
from minillama4.data.text import DOMAINS, Corpus

from ..files import written_whole
from .balance import KINDS, SCOPES, balance
from .loop import TrainSettings, next_token_loss, train
from .processes import is_main, join_processes, local_device, process_rank
from .routing_history import RoutingHistory

PRESETS = ("mini", "mini_maverick", "mini_dense", "nano")
PART_OF_THE_RUN = ("batch", "length", "tokens_per_domain", "balance", "balance_weight")
PART_OF_THE_RUN += ("balance_over",)
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


def arguments(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m minillama4.train", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--out", type=Path, required=True, help="folder of the run")
    parser.add_argument("--preset", choices=PRESETS, default="mini")
    parser.add_argument("--steps", type=int, default=1500)
    parser.add_argument("--batch", type=int, default=8, help="rows over all processes")
    parser.add_argument("--length", type=int, default=512, help="tokens per row")
    parser.add_argument("--learning-rate", type=float, default=3e-3)
    parser.add_argument("--warmup", type=int, default=100)
    parser.add_argument("--balance", choices=KINDS, default="none")
    parser.add_argument("--balance-weight", type=float, default=0.01, help="of the aux loss")
    parser.add_argument("--balance-over", choices=SCOPES, default="many")
    parser.add_argument("--validate-every", type=int, default=250)
    parser.add_argument("--tokens-per-domain", type=int, default=1_000_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--save-dtype", choices=DTYPES, default="bfloat16")
    return parser.parse_args(argv)


def held_out_loss(corpus: Corpus, rows: int, length: int, device):
    """model -> loss per domain in nats per token, on the first ``rows`` rows of each domain."""
    first = {}
    for batch in corpus.validation_batches(rows, length, device):
        first.setdefault(DOMAINS[int(batch.domains[0, 0])], batch.tokens)

    def validate(model) -> dict[str, float]:
        losses = {name: next_token_loss(model, tokens).item() for name, tokens in first.items()}
        return losses | {"mean": math.fsum(losses.values()) / len(losses)}

    return validate


def main(argv: list[str] | None = None) -> None:
    args = arguments(argv)
    torch.set_num_threads(args.threads)
    with join_processes(args.device):
        run(args)


def run(args: argparse.Namespace) -> None:
    tokenizer = ml4.load_tokenizer()
    corpus = Corpus.build(tokenizer, "train", args.tokens_per_domain, args.seed)
    held_out = Corpus.build(tokenizer, "validation", 8 * args.length + 1, args.seed)
    preset = getattr(ml4.Llama4Config, args.preset)
    config = preset(vocab_size=tokenizer.vocab_size, patch_token=tokenizer.special["<|patch|>"])
    rank, world = process_rank()
    device = local_device(args.device)
    torch.manual_seed(args.seed)
    model = ml4.Llama4(config).to(device)
    settings = TrainSettings(
        steps=args.steps,
        learning_rate=args.learning_rate,
        warmup=args.warmup,
        validate_every=args.validate_every,
        seed=args.seed,
    )

    def batches(step: int) -> torch.Tensor:
        cut = {"pieces": 2, "rank": rank, "world": world, "device": device}
        return corpus.batch(step, args.batch, args.length, args.seed, **cut).tokens

    validate = held_out_loss(held_out, 8, args.length, device)
    recorder = RoutingHistory(args.out / "routing.safetensors", held_out, args.length, args.steps)
    about = {k: v for k, v in vars(args).items() if k in PART_OF_THE_RUN}
    how = {"weight": args.balance_weight, "over": args.balance_over}
    with balance(model, args.balance, **how) as balanced:
        more = {"about": about, "loss": balanced.loss, "after": recorder if is_main() else None}
        history = train(model, batches, settings, validate=validate, folder=args.out, **more)
    if is_main():
        model = model.to(DTYPES[args.save_dtype])
        # in the training text a document ends where the next one begins
        ends = dict(tokenizer=tokenizer, stop=tokenizer.begin)
        ml4.save(model, args.out / "model", overwrite=True, **ends)
        finish(history, validate, args)


def finish(history: list[dict], validate, args: argparse.Namespace) -> None:
    """Keep the history, with the losses of the saved model, after rounding to its dtype."""
    with torch.no_grad():
        held_out = validate(ml4.load(args.out / "model", dtype=torch.float32, device=args.device))
    made = {k: str(v) if isinstance(v, Path) else v for k, v in vars(args).items() if k != "out"}
    made |= {"python": platform.python_version(), "torch": torch.__version__}
    record = {"made_with": made, "held_out_loss": held_out, "steps": history}
    with written_whole(args.out / "history.json") as part:
        part.write_text(json.dumps(record) + "\n", encoding="utf-8")  # on one line: it is long
    shown = ", ".join(f"{name} {loss:.3f}" for name, loss in held_out.items())
    if args.balance == "bias":
        print("Saved and measured without the selection bias: the files have no place for one.")
    print(f"Held-out loss in nats per token: {shown}. The model is in {args.out / 'model'}.")


if __name__ == "__main__":
    main()

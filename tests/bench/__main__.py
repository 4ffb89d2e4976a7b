"""``python -m tests.bench``: minillama4 beside transformers, on this machine, in one table."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from pathlib import Path

import torch
from tqdm.auto import tqdm

from minillama4.files import write_json

from . import attention, inference, int4, llamacpp, moe, training
from .plan import Plan, quick
from .report import Row, load, provenance, table
from .timing import ResultsDiffer, threads

SECTIONS = {
    "moe": moe.cases,
    "train": training.cases,
    "prefill": inference.prefill_cases,
    "decode": inference.decode_cases,
    "int4": int4.cases,
    "attention": attention.cases,
    "llamacpp": llamacpp.cases,
}
LEGEND = """
times       median of the rounds, lowest and highest sample around it; candidates take turns
faster      the other's median time over ours; "the time": ours over the other's
difference  between the two results (all gradients too, in training), relative; checked before
            anything is timed. Empty: the two compute different things
1T, 2T      threads: CPU time of the process with one, wall time with more; float32, eager mode,
            same weights, same process
prefill     both return the logits of the last position alone
llamacpp    left out where llama-cpp-python is not installed; Q4_0 has the weights in four bits,
            ours are float32 where "in Int4" does not stand
MiB         attention's peak memory beyond its inputs, its mask included; ours, then the other's
"""


def main(arguments: list[str] | None = None) -> int:
    """The command; 1 if two sides disagree."""
    options = parse(arguments)
    plan = quick(options.threads) if options.quick else Plan(options.threads)
    about = provenance(["python -m tests.bench", *(arguments or sys.argv[1:])], plan.threads)
    print(describe(about))
    print(warning(about))
    try:
        rows = measure(plan, options.only)
    except ResultsDiffer as error:
        print(f"The two sides do not compute the same. {error}", file=sys.stderr)
        return 1
    print(table(rows, options.markdown))
    print(LEGEND)
    if options.json:
        results = [row.record() for row in rows]
        write_json(options.json, about | {"load_after": load(), "results": results})
    return 0


def parse(arguments: list[str] | None) -> argparse.Namespace:
    """Options, checked now rather than after ten minutes."""
    parser = argparse.ArgumentParser(prog="python -m tests.bench", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="small: a minute or two")
    parser.add_argument("--threads", type=int, default=2, help="2 by default")
    parser.add_argument("--only", type=_sections, default=list(SECTIONS), metavar="moe,train,...")
    parser.add_argument("--json", type=Path, metavar="FILE", help="keep every sample there")
    parser.add_argument("--markdown", action="store_true", help="the table as a README shows it")
    options = parser.parse_args(arguments)
    if options.threads < 1:
        parser.error("--threads must be at least 1")
    if options.only == ["llamacpp"] and not llamacpp.INSTALLED:
        parser.error("llama-cpp-python is not installed: `python start.py llamacpp` compiles it")
    if options.json and not options.json.absolute().parent.is_dir():
        parser.error(f"--json: there is no folder {options.json.absolute().parent}")
    return options


def _sections(text: str) -> list[str]:
    unknown = set(text.split(",")) - set(SECTIONS)
    if unknown:
        choices = ", ".join(SECTIONS)
        raise argparse.ArgumentTypeError(f"no {', '.join(sorted(unknown))}; there are {choices}")
    return [name for name in SECTIONS if name in text.split(",")]


def measure(plan: Plan, sections: list[str]) -> list[Row]:
    """Run all cases of ``sections``, with a progress bar."""
    cases: list[tuple[str, Callable[[], list[Row]]]] = []
    for name in sections:
        cases += [(f"{name}: {title}", case) for title, case in SECTIONS[name](plan)]
    rows = []
    with threads(plan.threads), tqdm(cases, unit="case") as bar:
        for title, case in bar:
            bar.set_description(title)
            torch.manual_seed(0)
            rows += case()
    return rows


def describe(about: dict) -> str:
    """Where this runs, in two lines."""
    machine, versions = about["machine"], about["versions"]
    names = ", ".join(f"{name} {number}" for name, number in versions.items())
    where = f"{machine['cpu']} ({about['vector_instructions']}), {machine['cores']} cores"
    return f"{where}, load {about['load_before']}, commit {about['commit']}\n{names}\n"


def warning(about: dict) -> str:
    """What to say where others are using this machine; with several threads it spoils all."""
    idle = about["machine"]["cores"] - (about["load_before"] or 0)
    if about["threads"] == 1 or idle >= about["threads"] - 0.5:
        return ""
    return (
        f"Others use this machine (load {about['load_before']}): {about['threads']} threads will "
        "wait for one another and these figures will mean little. --threads 1 counts CPU time.\n"
    )


if __name__ == "__main__":
    sys.exit(main())

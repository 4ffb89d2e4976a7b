"""Everything that can be run here, each on a fresh machine: sets up .venv first, where needed.

Linux, macOS and Windows; Python 3.10 or newer, and nothing but its standard library.
"""

import argparse
import collections
import hashlib
import importlib.util
import os
import shutil
import signal
import subprocess
import sys
import time
import venv
from pathlib import Path

ROOT = Path(__file__).resolve().parent
ENV = ROOT / ".venv"
PYTHON = ENV / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
STATE = ENV / "start.txt"  # what is installed: nothing, while set-up is unfinished
TORCH = "torch==2.13.0"  # one version for everyone, inside pyproject.toml's range
CPU_INDEX = "https://download.pytorch.org/whl/cpu"
NO_TESTS = 5  # pytest's exit status
GPU_TESTS = "serve_int4_triton", "serve_attention_triton", "serve_static", "bench_gpu"
FIRST_NOTEBOOK = "notebooks/01_moe/01_start_here.ipynb"


# Set-up ------------------------------------------------------------------------------------------


def set_up(extras, gpu=False):
    """Make .venv hold the project with these extras; return at once where it does already."""
    project = hashlib.sha256((ROOT / "pyproject.toml").read_bytes()).hexdigest()
    wanted = {*extras, "gpu"} if gpu else {*extras}
    had = set(STATE.read_text().split()) if STATE.exists() else set()
    if had.issuperset({*wanted, project}):
        return
    if not had or (gpu and "gpu" not in had):
        make_environment()
    STATE.write_text("")  # from here to the end the environment counts as unfinished
    wanted |= had & {"notebooks", "dev", "gguf", "browser", "llamacpp", "gpu"}

    install_torch("gpu" in wanted)
    names = ",".join(sorted(wanted - {"gpu"}))
    pip("the project and its libraries", "-e", f"{ROOT}[{names}]")
    STATE.write_text("\n".join([project, *sorted(wanted)]))
    print("Set-up is done.\n", flush=True)


def make_environment():
    """A new, empty .venv in place of whatever an interrupted set-up has left."""
    if importlib.util.find_spec("ensurepip") is None:
        stop(
            "This Python cannot make virtual environments: its part 'venv' is missing.\n"
            "On Debian and Ubuntu: sudo apt install python3-venv"
        )
    if Path(sys.prefix).resolve() == ENV.resolve():
        stop("This Python lives in .venv, which has to be made anew: run `deactivate` first.")
    if ENV.exists() and not STATE.exists():
        stop("There is a .venv here that start.py did not make. Move it away, then try again.")
    print("Setting up .venv: two to five minutes, once, and 1.5 to 2.5 GB of disk.", flush=True)
    shutil.rmtree(ENV, ignore_errors=True)
    ENV.mkdir(exist_ok=True)
    STATE.touch()
    venv.create(ENV, with_pip=True)


def install_torch(gpu):
    """Torch first and alone, because PyPI's build for Linux carries gigabytes of CUDA.

    The index without CUDA is not simply added to the whole installation: where it cannot be
    reached, pip would wait for it once per package, and there are more than a hundred.
    """
    if sys.platform == "linux" and not gpu:
        quick = ["--timeout", "10", "--retries", "0"]
        if pip("torch for the CPU", *quick, "--index-url", CPU_INDEX, TORCH, may_fail=True):
            return
        print("  PyTorch's own index cannot be reached; taking torch from PyPI", flush=True)
    pip("torch", TORCH)


def pip(what, *args, may_fail=False):
    """Run `pip install`, showing on one line what it is at; on failure, its last words."""
    began, last = time.monotonic(), collections.deque(maxlen=15)
    print(f"- {what} ...", flush=True)
    command = [PYTHON, "-m", "pip", "install", "--disable-pip-version-check", *args]
    streams = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
    ascii_only = {"encoding": "ascii", "errors": "backslashreplace"}  # any console can print it
    with subprocess.Popen(command, **streams, **ascii_only) as process:
        for line in process.stdout:
            last.append(line)
            if sys.stdout.isatty():
                print(f"\r  {line.strip():76.76}", end="", flush=True)
    if sys.stdout.isatty():
        print(f"\r{'':78}\r", end="")
    if process.returncode == 0:
        print(f"  {time.monotonic() - began:.0f} s", flush=True)
    elif not may_fail:
        stop(
            f"{''.join(last)}\nSet-up failed while installing {what} (pip's last words are above)."
            "\nIf the network was away, the same command tries again."
        )
    return process.returncode == 0


def stop(message):
    sys.exit(f"\n{message}")


# Commands ----------------------------------------------------------------------------------------


def lab(args):
    """open JupyterLab on the first notebook; further arguments go to JupyterLab"""
    set_up(["notebooks", "gguf"], args.gpu)
    signal.signal(signal.SIGINT, lambda *_: None)  # Ctrl-C is JupyterLab's: it asks, then ends
    return python("-m", "jupyterlab", ROOT / FIRST_NOTEBOOK, *args.rest)


def test(args):
    """lint, unit tests, then all notebooks; arguments after -- go to pytest"""
    set_up(["notebooks", "dev", "gguf"], args.gpu)
    stages = {
        "lint": [["ruff", "check"], ["ruff", "format", "--check"]],
        "unit": [["pytest", *args.rest]],
        "notebooks": [["pytest", "--nbval-lax", "notebooks", *args.rest]],
    }
    chosen = [name for name in stages if getattr(args, name)] or list(stages)
    summary, failed = [], False
    for name in chosen:
        began = time.monotonic()
        print(f"\n== {name} ==", flush=True)
        codes = [python("-m", *command) for command in stages[name]]
        if args.rest and name != "lint":  # a choice of tests may leave a stage with none
            codes = [code for code in codes if code != NO_TESTS]
        failed |= any(codes)
        verdict = "FAILED" if any(codes) else "passed"
        summary.append(f"{name:10} {verdict}  {time.monotonic() - began:6.1f} s")
    print("\n" + "\n".join(summary), flush=True)
    return int(failed)


def bench(args):
    """measure the library's speed; further arguments go to tests/bench"""
    set_up(["notebooks", "dev", "gguf"], args.gpu)
    return python("-m", "tests.bench", *args.rest)


def gpu(args):
    """measure a GPU: kernels, decoding and loading of Scout in Int4; arguments go to tests/bench"""
    if shutil.which("nvidia-smi") is None:  # before gigabytes of CUDA are installed for nothing
        stop("There is no NVIDIA GPU here (no nvidia-smi): nothing was measured.")
    own = this_python_sees_a_gpu()
    if not own:
        set_up(["notebooks", "dev"], gpu=True)
    command = ["-m", "tests.bench.gpu", *args.rest]
    if args.tests:  # conftest.py asks for packages that only notebooks need
        files = [ROOT / "tests" / f"test_{name}.py" for name in GPU_TESTS]
        command = ["-m", "pytest", "--noconftest", *files, *args.rest]
    return subprocess.call([sys.executable if own else PYTHON, *command], cwd=ROOT)


def this_python_sees_a_gpu():
    """Has the Python that runs this all that is needed there? It need not be installed, then."""
    needed = "import pytest, torch, triton, minillama4; assert torch.cuda.is_available()"
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    return subprocess.call([sys.executable, "-c", needed], cwd=ROOT, **quiet) == 0


def notebooks(args):
    """run and save the notebooks: all of them, or those whose path contains a given word"""
    set_up(["notebooks", "dev", "gguf"], args.gpu)
    return python("notebooks/execute.py", *args.rest)


def handouts(args):
    """write hand-outs for students, instructor and nbgrader: [word ...] [--out DIR]"""
    set_up(["notebooks", "dev", "gguf"], args.gpu)
    return python("-m", "notebooks.handouts", *args.rest)


def browser(args):
    """drive the explorers in a real browser; further arguments go to pytest"""
    set_up(["notebooks", "dev", "browser"], args.gpu)
    if not any(map(shutil.which, ["chromium", "chromium-browser", "google-chrome"])):
        python("-m", "playwright", "install", "chromium")
    return python("-m", "pytest", "-m", "browser", "tests/browser", *args.rest)


def llamacpp(args):
    """compare exported models with llama.cpp, compiled first; further arguments go to pytest"""
    set_up(["notebooks", "dev", "gguf", "llamacpp"], args.gpu)  # ten minutes, the first time
    return python("-m", "pytest", "-m", "llamacpp", "tests/llamacpp", *args.rest)


def setup(args):
    """only set up .venv, with all that `lab` and `test` need"""
    set_up(["notebooks", "dev", "gguf"], args.gpu)
    print(f"Its Python is {PYTHON.relative_to(ROOT)}")
    return 0


COMMANDS = {
    f.__name__: f for f in (lab, test, bench, gpu, notebooks, handouts, browser, llamacpp, setup)
}


def python(*args):
    """Run the environment's Python in the project's folder; return its exit status."""
    return subprocess.call([PYTHON, *args], cwd=ROOT)


def main():
    if sys.version_info < (3, 10):  # noqa: UP036 - pip's own message would come late
        stop("Python 3.10 or newer is needed; this is " + sys.version.split()[0])
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0], allow_abbrev=False)
    commands = parser.add_subparsers(dest="command", required=True, metavar="command")
    for name, function in COMMANDS.items():
        text = function.__doc__
        command = commands.add_parser(name, help=text, description=text, allow_abbrev=False)
        command.add_argument(
            "--gpu", action="store_true", help="PyPI's torch, which on Linux is the CUDA build"
        )
        if name == "test":
            for stage in ("lint", "unit", "notebooks"):
                command.add_argument(f"--{stage}", action="store_true", help=f"only {stage}")
        if name == "gpu":
            command.add_argument(
                "--tests", action="store_true", help="test it instead; arguments go to pytest"
            )
    own, rest = sys.argv[1:], []
    if "--" in own:  # what stands behind it is passed on, even where it looks like ours
        own, rest = own[: own.index("--")], own[own.index("--") + 1 :]
    args, unknown = parser.parse_known_args(own)
    if unknown and args.command in ("test", "setup"):
        parser.error(f"{args.command} knows no {unknown[0]} (arguments for pytest go after --)")
    args.rest = unknown + rest
    try:
        sys.exit(COMMANDS[args.command](args))
    except KeyboardInterrupt:
        stop("Interrupted. The same command starts again.")


if __name__ == "__main__":
    main()

"""Triton's kernels where there is no GPU: in its interpreter, or compiled for a GPU elsewhere.

As a program it compiles the kernels of ``minillama4.serve`` and prints, as JSON, how large they
are and how many instructions their inner loops spend on a weight: python tests/kernels.py int4
"""

from __future__ import annotations

import importlib
import itertools
import json
import os
import re
import subprocess
import sys
import tempfile
import warnings
from pathlib import Path


def kernels_of(name: str):
    """The module ``minillama4.serve.<name>``; conftest.py sees to the interpreter."""
    import pytest

    pytest.importorskip("triton", reason="Triton runs on Linux alone")
    return importlib.import_module(f"minillama4.serve.{name}")


def compiled_kernels(which: str) -> dict:
    """What this file prints; in a process of its own, as this one may have the interpreter on."""
    done = subprocess.run(
        [sys.executable, __file__, which], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


# ---------------------------------------------------------------------- compiled elsewhere
LINEAR = dict(IN=5120, OUT=5120, GROUP=128, PARTS=8)  # of Scout's layers
LAYER = dict(EXPERTS=16, WIDTH=5120, HIDDEN=8192, GROUP=128)
SIZES = {"linear_kernel": LINEAR, "up_kernel": LAYER, "down_kernel": dict(LAYER, PARTS=4)}
TYPES = {"n": "i32", "choice": "*i64", "last": "*i64", "score": "*fp32", "scale": "*bf16"}
FLOATS = {"linear_kernel": "y", "down_kernel": "y", "part_kernel": "out top weight"}
FLOATS["whole_kernel"] = FLOATS["part_kernel"]


def compile_for(kernel, sizes: dict[str, int], arch: int, options: dict[str, int]):
    """The kernel as Triton compiles it for ``sm_<arch>``; ``n`` among the sizes: for that n alone,
    as Triton does for 1."""
    from triton import compile
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    name = kernel.fn.__name__

    def kind(argument: str) -> str:
        if argument in sizes:
            return "constexpr"
        if argument in FLOATS.get(name, "").split():
            return "*fp32"
        if name == "part_kernel" and argument == "scale":
            return "fp32"
        return TYPES.get(argument, "*i32" if argument.endswith("packed") else "*bf16")

    signature = {argument: kind(argument) for argument in kernel.arg_names}
    aligned = {
        (i,): [["tt.divisibility", 16]]
        for i, kind in enumerate(signature.values())
        if kind.startswith("*")
    }
    constants = {(kernel.arg_names.index(argument),): size for argument, size in sizes.items()}
    source = ASTSource(kernel, signature, constants, aligned)
    return compile(source, target=GPUTarget("cuda", arch, 32), options=options)


def disassembled(compiled, tool: str, *options: str) -> str:
    """What one of NVIDIA's programs says of the machine code; "" where Triton brings none."""
    import triton

    tool = Path(triton.__file__).parent / "backends/nvidia/bin" / tool
    if not tool.exists():
        return ""
    with tempfile.TemporaryDirectory() as folder:
        binary = Path(folder) / "kernel.cubin"
        binary.write_bytes(compiled.asm["cubin"])
        return subprocess.run([tool, *options, binary], capture_output=True, text=True).stdout


def loops(compiled) -> list[int]:
    """Instructions of each long loop in the machine code."""
    labels, count, found = {}, 0, []
    for line in disassembled(compiled, "nvdisasm", "-c").splitlines():
        if label := re.match(r"\s*(\.L_x_\d+):", line):
            labels[label[1]] = count
        elif re.search(r"/\*[0-9a-f]{4,}\*/", line):
            count += 1
            jump = re.search(r"BRA\S*\s.*`\((\.L_x_\d+)\)", line)
            if jump and jump[1] in labels:
                found.append(count - labels[jump[1]])
    return [n for n in found if n > 50]


def report(compiled) -> dict:
    """Bytes of code, of shared memory, and of a thread's stack, where registers that do not fit are
    put; the stack is None where Triton does not bring what tells it."""
    stack = re.findall(r"STACK:(\d+)", disassembled(compiled, "cuobjdump", "-res-usage"))
    return {
        "bytes": len(compiled.asm["cubin"]),
        "shared": compiled.metadata.shared,
        "spilled": sum(map(int, stack)) if stack else None,
    }


def int4() -> dict:
    """Every kernel with the tunings that are used, for few tokens, for 64, and for one alone."""
    from minillama4.serve import int4_kernels, int4_triton

    found = {}
    for name, arch, tokens in itertools.product(SIZES, (80, 90), (1, 16, 64)):
        tuning = int4_triton.TUNINGS[name.removesuffix("_kernel")]
        tile = int4_triton._tokens(tokens)
        sizes = dict(SIZES[name], ROWS=tuning.rows, TOKENS=tile)
        if name != "linear_kernel":
            sizes["BY_TOKEN"] = tokens < sizes["EXPERTS"]
        if tokens == 1:
            sizes["n"] = 1
        options = tuning.launch(tile)
        made = compile_for(getattr(int4_kernels, name), sizes, arch, options)
        weights = tuning.rows * sizes["GROUP"] / (32 * options["num_warps"])  # of a thread
        found[f"{name} sm_{arch} {tokens}"] = report(made) | {
            "instructions": [round(n / weights, 3) for n in loops(made)],
            # what a loop waits for, as it is not copied to shared memory ahead of its use
            "waits": made.asm["ttgir"].split("scf.for")[-1].count("tt.load"),
        }
    return found


def attention() -> dict:
    """Both kernels for Scout's heads and 131,072 slots."""
    from minillama4.serve import attention_triton as kernels

    sizes = dict(PARTS=131_072 // kernels.SPAN, D=128, SPAN=kernels.SPAN)
    one = dict(sizes, SLOTS=131_072, KV=8, R=5, HEADS=kernels.LEAST, BLOCK=kernels.BLOCK)
    two = dict(sizes, HEADS=40, TILE=kernels.TILE)
    found = {}
    for arch in (80, 90):
        made = compile_for(kernels.part_kernel, one, arch, {"num_warps": 4})
        found[f"part_kernel sm_{arch}"] = report(made)
        made = compile_for(kernels.whole_kernel, two, arch, {"num_warps": 8})
        found[f"whole_kernel sm_{arch}"] = report(made)
    return found


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
    os.environ.pop("TRITON_INTERPRET", None)
    warnings.simplefilter("ignore")
    print(json.dumps({"int4": int4, "attention": attention}[sys.argv[1]]()))

"""Triton's kernels where there is no GPU: in its interpreter, or compiled for a GPU elsewhere.

As a program it compiles the kernels of ``minillama4.serve`` and prints, as JSON, how large they
are and how many instructions their inner loops spend on a weight: python tests/kernels.py int4
"""

from __future__ import annotations

import importlib
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


# ---------------------------------------------------------------------- compiled elsewhere
LINEAR = dict(IN=5120, OUT=5120, GROUP=128, ROWS=64, TOKENS=16)
LAYER = dict(EXPERTS=16, WIDTH=5120, HIDDEN=8192, GROUP=128, BY_TOKEN=1, ROWS=64, TOKENS=16)
INTEGERS = {"n": "i32", "choice": "*i64"}


def compile_for(kernel, sizes: dict[str, int], arch: int, warps: int = 4, stages: int = 6):
    """The kernel as Triton compiles it for ``sm_<arch>``; pointers named packed hold int32."""
    from triton import compile
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    def kind(name: str) -> str:
        if name in sizes:
            return "constexpr"
        if name in ("score", "y") and kernel.fn.__name__ != "linear_kernel":
            return "*fp32"
        return INTEGERS.get(name, "*i32" if name.endswith("packed") else "*bf16")

    signature = {name: kind(name) for name in kernel.arg_names}
    aligned = {
        (i,): [["tt.divisibility", 16]]
        for i, kind in enumerate(signature.values())
        if kind.startswith("*")
    }
    constants = {(kernel.arg_names.index(name),): size for name, size in sizes.items()}
    source = ASTSource(kernel, signature, constants, aligned)
    options = dict(num_warps=warps, num_stages=stages)
    return compile(source, target=GPUTarget("cuda", arch, 32), options=options)


def instructions_per_weight(compiled, warps: int, rows: int, group: int) -> list[float]:
    """Of each inner loop in the machine code; [] where there is no disassembler."""
    import triton

    tool = Path(triton.__file__).parent / "backends/nvidia/bin/nvdisasm"
    if not tool.exists():
        return []
    with tempfile.TemporaryDirectory() as folder:
        binary = Path(folder) / "kernel.cubin"
        binary.write_bytes(compiled.asm["cubin"])
        text = subprocess.run([tool, "-c", binary], capture_output=True, text=True).stdout
    labels, count, loops = {}, 0, []
    for line in text.splitlines():
        if label := re.match(r"\s*(\.L_x_\d+):", line):
            labels[label[1]] = count
        elif re.search(r"/\*[0-9a-f]{4,}\*/", line):
            count += 1
            jump = re.search(r"BRA\S*\s.*`\((\.L_x_\d+)\)", line)
            if jump and jump[1] in labels:
                loops.append(count - labels[jump[1]])
    return [round(n * warps * 32 / (rows * group), 3) for n in loops if n > 50]


def int4() -> dict:
    from minillama4.serve import int4_triton

    found = {}
    for name in ("linear_kernel", "up_kernel", "down_kernel"):
        sizes = LINEAR if name == "linear_kernel" else LAYER
        for arch in (80, 90):
            made = compile_for(getattr(int4_triton, name), sizes, arch)
            found[f"{name} sm_{arch}"] = {
                "bytes": len(made.asm["cubin"]),
                "shared": made.metadata.shared,
                "instructions": instructions_per_weight(made, 4, sizes["ROWS"], sizes["GROUP"]),
            }
    return found


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
    os.environ.pop("TRITON_INTERPRET", None)
    warnings.simplefilter("ignore")
    print(json.dumps({"int4": int4}[sys.argv[1]]()))

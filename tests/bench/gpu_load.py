"""Section "load": the real loading path, over files of Scout's own names, shapes and sizes.

The weights of Scout have 217 GB. Here its fifty files are hollow: a true header, and behind it a
hole of the right size, which a file system stores as nothing and reads as zeros. The first layer,
the norm behind the last and the beginnings of embedding and head hold numbers, which are looked
for in the model. Every tensor is found, sliced, quantised on arrival and moved exactly as the real
one; what is left out is the disk's own speed, and that the result can say something.

One layer alone comes first: it tells how many more there is time for.
"""

from __future__ import annotations

import json
import re
import struct
import tempfile
import time
import warnings
from pathlib import Path

import torch
from safetensors import safe_open

import minillama4 as ml4
from minillama4.checkpoint import hf_name
from minillama4.serve.int4 import quantize
from minillama4.serve.int4_modules import Int4Linear
from minillama4.serve.measure import wait
from minillama4.serve.quantize import int4_bytes
from minillama4.serve.static import StaticDecoder

from .gpu_run import SCHEMES

SHARDS = 50  # as Scout is published
OUTSIDE = 2**27  # bytes of numbers in a tensor outside of the layers
IN_MEMORY = ("tmpfs", "ramfs")  # file systems that keep even holes there, once they were read
AFTER = 40  # seconds that stay for decoding with what was loaded
CLOSE = 0.05  # relative difference of two ways to compute logits in 16 bits
STEPS = 16


def write_hollow(config: ml4.Llama4Config, folder: Path, shards: int = SHARDS) -> int:
    """A folder in Hugging Face's layout, in bf16, that weighs nothing; bytes it seems to hold."""
    with torch.device("meta"):
        model = ml4.Llama4(config)
    shapes = {hf_name(n, config.vision is not None): p.shape for n, p in model.named_parameters()}
    (folder / "config.json").write_text(json.dumps(config.to_hf() | {"dtype": "bfloat16"}))
    total = 2 * sum(shape.numel() for shape in shapes.values())
    files, filled = [{}], 0
    for name, shape in shapes.items():
        if filled > total / shards and files[-1]:
            files, filled = [*files, {}], 0
        files[-1][name] = shape
        filled += 2 * shape.numel()
    where = {}
    for i, some in enumerate(files):
        file = f"model-{i + 1:05}-of-{len(files):05}.safetensors"
        _write_header(folder / file, some)
        where |= dict.fromkeys(some, file)
    index = {"metadata": {"total_size": total}, "weight_map": where}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    return total


def _write_header(file: Path, shapes: dict[str, torch.Size]) -> None:
    header, at = {}, 0
    for name, shape in shapes.items():
        end = at + 2 * shape.numel()
        header[name] = {"dtype": "BF16", "shape": list(shape), "data_offsets": [at, end]}
        at = end
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with file.open("wb") as out:
        out.write(struct.pack("<Q", len(text)) + text)
        out.truncate(8 + len(text) + at)  # the hole


# ---------------------------------------------------------------------- numbers
def fill(config: ml4.Llama4Config, folder: Path) -> None:
    """Numbers in the first layer, and where a text needs them outside of the layers."""
    names = ("blocks.0.", "embed.weight", "norm.weight", "head.weight")
    whole, *outside = (hf_name(name, config.vision is not None) for name in names)
    draw = torch.Generator().manual_seed(0)
    numbers = 0.02 * torch.randn(8_388_593, generator=draw)  # a prime: no two rows are alike
    pool = numbers.bfloat16().view(torch.uint8).numpy().tobytes()
    for file in sorted(folder.glob("*.safetensors")):
        with file.open("r+b") as out:
            (size,) = struct.unpack("<Q", out.read(8))
            for name, about in json.loads(out.read(size)).items():
                start, end = about["data_offsets"]
                if name.startswith(whole) or name in outside:
                    most = end if name.startswith(whole) else start + OUTSIDE
                    out.seek(8 + size + start)
                    _write(out, pool, min(end, most) - start, start % len(pool))


def _write(out, pool: bytes, size: int, first: int) -> None:
    """``size`` bytes of an endless repetition of ``pool``, from its byte ``first`` on."""
    while size:
        done = out.write(pool[first : first + size])
        size, first = size - done, 0


def differences(model: ml4.Llama4, folder: Path) -> list[str]:
    """Tensors of the first layer that are not what ``quantize`` makes of the files' numbers."""
    block, config = model.blocks[0], model.config
    index = json.loads((folder / "model.safetensors.index.json").read_text())["weight_map"]

    def stored(name: str, *take):
        name = hf_name(f"blocks.0.{name}", config.vision is not None)
        with safe_open(folder / index[name], "pt") as file:
            return file.get_slice(name)[take or slice(None)].to(model.embed.weight.device)

    wrong = []
    for name in ("attention.q", "attention.o", "ffn.shared.down", "ffn.router"):
        module, weight = block.get_submodule(name), stored(f"{name}.weight")
        if isinstance(module, Int4Linear):
            same = map(torch.equal, (module.packed, module.scale), quantize(weight))
        else:
            same = [torch.equal(module.weight, weight)]
        wrong += [] if all(same) else [name]
    for which, held in zip(("gate_up", "down"), block.ffn.experts.pairs(), strict=True):
        for e in {0, config.experts - 1}:
            expected = quantize(stored(f"ffn.experts.{which}", e).T)
            if not all(torch.equal(t[e], x) for t, x in zip(held, expected, strict=True)):
                wrong.append(f"ffn.experts.{which}[{e}]")
    return wrong


# ---------------------------------------------------------------------- loading
def measure(run) -> None:
    """One layer, then as many as there is time for: all, or a row says how many."""
    run.forget_model()
    where = run.folder or Path(tempfile.gettempdir())
    where.mkdir(parents=True, exist_ok=True)
    kind = file_system(where)
    if kind in IN_MEMORY:
        raise ValueError(f"{where} lies in memory ({kind}): name another place with --folder.")
    speed = _load(run, where, 1)
    run.clean()
    layers = layers_in(run.left - AFTER, speed, run.config)
    if layers > 1:
        _load(run, where, layers)
    if layers < run.config.layers:
        run.leave_out("load", "time", layers=run.config.layers - max(1, layers))


def layers_in(seconds: float, speed: float, config: ml4.Llama4Config) -> int:
    """How many layers there is time for at half of ``speed`` bytes per second, to be safe."""
    size = {n: 2 * config.replace(layers=n).parameters().total for n in (1, 2)}
    more = (seconds * speed / 2 - size[1]) / (size[2] - size[1])
    return min(config.layers, 1 + max(-1, int(more // 1)))


def _load(run, where: Path, layers: int) -> float:
    """Load so many layers as Int4, look at the numbers, decode; bytes per second."""
    config = run.config.replace(layers=layers)
    with tempfile.TemporaryDirectory(dir=where) as folder:
        folder = Path(folder)
        size = write_hollow(config, folder)
        fill(config, folder)
        start, _ = host_memory(new_peak=True), run.peak()
        began = time.perf_counter()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of zeros, which are meant here
            model = ml4.load(folder, torch.bfloat16, run.device, SCHEMES[run.what])
        wait(run.device)
        took, peak = time.perf_counter() - began, host_memory()
        row = dict(layers=layers, layers_of_model=run.config.layers, file_bytes=size)
        row |= dict(seconds=took, bytes_per_second=size / took, hollow=True)
        row |= dict(host_above_start=start and peak and peak - start, int4_bytes=int4_bytes(model))
        row |= run.peak() | dict(differences=differences(model, folder))
        run.keep("load", **row, passed=not row["differences"])
    run.attempt("decoding what was loaded", _decode, run, model)
    return size / took


def _decode(run, model: ml4.Llama4) -> None:
    """Write on, by the recorded program; its first logits beside those of the model itself."""
    known = min(model.config.vocab_size, OUTSIDE // (2 * model.config.width))
    prompt = torch.randint(known, (1, 9), device=run.device)
    with torch.inference_mode():
        expected = model(prompt)[:, -1].double()
    decoder = StaticDecoder(model, 1, 9 + STEPS)
    decoder.read(prompt[:, :-1])
    logits = decoder.step(prompt[:, -1]).double()
    error = ((logits - expected).norm() / expected.norm()).item()
    tokens = decoder.write(logits.argmax(-1), STEPS)[0].tolist()
    layers = model.config.layers
    run.keep("load", decoded=len(tokens), layers=layers, error=error, passed=error < CLOSE)


# ---------------------------------------------------------------------- the machine
def file_system(folder: Path) -> str | None:
    """Its kind, as Linux calls it; None elsewhere."""
    mounts, folder = Path("/proc/mounts"), folder.resolve()
    if not mounts.exists():
        return None
    lines = [line.split() for line in mounts.read_text().splitlines()]
    kinds = {Path(line[1]): line[2] for line in lines}  # what was mounted last is seen
    return kinds[max((p for p in kinds if folder.is_relative_to(p)), key=lambda p: len(p.parts))]


def host_memory(new_peak: bool = False) -> int | None:
    """Bytes of this process at most, mapped pages included; None where the system does not say.

    new_peak: what it holds now, from where the highest is counted from here on.
    """
    try:
        if new_peak:
            Path("/proc/self/clear_refs").write_text("5")
        status = Path("/proc/self/status").read_text()
    except OSError:
        return None
    found = re.search(rf"^{'VmRSS' if new_peak else 'VmHWM'}:\s+(\d+) kB", status, re.M)
    return found and 1024 * int(found[1])

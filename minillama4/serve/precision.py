"""How weights are kept: bytes of every matrix in bf16, FP8 and Int4, by component.

    Int4     4 bits a weight, and a scale for every 128 weights along the input axis
    FP8      8 bits a weight, and a scale for every output row
    bf16     16 bits: whatever a scheme does not name; embedding table and vision in all of them

The schemes, by name: "fp8" and "int4-meta" are Meta's two rules (fp8_mixed, int4_mixed); "w4a16" is
the same experts as compressed-tensors keeps them (what llm-compressor's recipe passes over, read to
the letter, leaves it Maverick's dense layers too); "int4-blocks" takes in every matrix of a block
but the router, "int4-all" the head as well. Source: spec, sections 2 and 14.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from ..config import Llama4Config
from ..count import count_parameters

COMPONENTS = (
    *("embedding", "attention", "norms", "routers", "shared experts", "routed experts"),
    *("dense layers", "head", "vision"),
)


@dataclass(frozen=True)
class Format:
    """``bits`` for a weight, and ``scale_bytes`` for every ``group`` of them in an output row.

    group None: one scale for the whole row. A row's last group may be shorter.
    """

    bits: int
    scale_bytes: int = 0
    group: int | None = None

    def weights(self, rows: int, columns: int) -> int:
        """Bytes of the weights of a matrix with ``rows`` outputs and ``columns`` inputs."""
        return rows * _upwards(columns * self.bits, 8)

    def scales(self, rows: int, columns: int) -> int:
        """Bytes of its scales."""
        return rows * _upwards(columns, self.group or columns) * self.scale_bytes


BF16 = Format(16)
FP8 = Format(8, scale_bytes=4)
INT4_FP32 = Format(4, scale_bytes=4, group=128)
INT4_BF16 = Format(4, scale_bytes=2, group=128)


@dataclass(frozen=True)
class Scheme:
    """Which components are kept in ``format``; the others stay in bf16.

    spare_ends: so do the model's first and last layer. label: its name for readers.
    """

    label: str
    format: Format = BF16
    components: tuple[str, ...] = ()
    spare_ends: bool = False

    def format_of(self, config: Llama4Config, component: str, layer: int | None) -> Format:
        """The format of a component's matrices in one layer (None: outside of the layers)."""
        ends = self.spare_ends and layer in (0, config.layers - 1)
        return self.format if component in self.components and not ends else BF16


_EXPERTS = ("shared experts", "routed experts")
_BLOCKS = ("attention", *_EXPERTS, "dense layers")
SCHEMES = {
    "bf16": Scheme("bf16"),
    "fp8": Scheme("Meta's FP8", FP8, ("routed experts",), spare_ends=True),
    "int4-meta": Scheme("Meta's Int4", INT4_FP32, _EXPERTS),
    "w4a16": Scheme("W4A16", INT4_BF16, _EXPERTS),
    "int4-blocks": Scheme("Int4 in all blocks", INT4_BF16, _BLOCKS),
    "int4-all": Scheme("Int4 in blocks and head", INT4_BF16, (*_BLOCKS, "head")),
}


def scheme_named(name: str) -> Scheme:
    """One of ``SCHEMES``; ValueError names them all."""
    if name not in SCHEMES:
        known = ", ".join(f'"{scheme}"' for scheme in SCHEMES)
        raise ValueError(f"scheme = {name!r} is not known: use one of {known}.")
    return SCHEMES[name]


@dataclass(frozen=True)
class Matrices:
    """``number`` equal matrices of one component in one layer (None: outside of the layers)."""

    component: str
    layer: int | None
    number: int
    rows: int  # outputs
    columns: int  # inputs

    def bytes(self, format: Format) -> int:
        one = format.weights(self.rows, self.columns) + format.scales(self.rows, self.columns)
        return self.number * one

    @property
    def parameters(self) -> int:
        return self.number * self.rows * self.columns


def matrices(config: Llama4Config) -> Iterator[Matrices]:
    """Every matrix of the text model, norms as rows of one input each; a tied head is no second
    one. The vision part, which no scheme touches, is not among them."""
    c, m = config, config.width
    yield Matrices("embedding", None, 1, c.vocab_size, m)
    for layer in range(c.layers):
        yield Matrices("norms", layer, 2, m, 1)
        for rows in (c.heads, c.kv_heads, c.kv_heads):  # q, k, v
            yield Matrices("attention", layer, 1, rows * c.head_width, m)
        yield Matrices("attention", layer, 1, m, c.heads * c.head_width)  # o
        if layer not in c.moe_layers:
            yield from _swiglu("dense layers", layer, 1, m, c.dense_hidden)
            continue
        yield Matrices("routers", layer, 1, c.experts, m)
        yield from _swiglu("shared experts", layer, 1, m, c.expert_hidden)
        yield from _swiglu("routed experts", layer, c.experts, m, c.expert_hidden)
    yield Matrices("norms", None, 1, m, 1)
    if not c.tied:
        yield Matrices("head", None, 1, c.vocab_size, m)


def weight_bytes(config: Llama4Config, scheme: str = "bf16", vision: bool = True) -> dict[str, int]:
    """Bytes of all weights by component, scales included; ``sum`` of the values is the model.

    scheme: one of ``SCHEMES``; ValueError for another. vision: False leaves the eye out, as who
    serves text alone may. Scout: 217.28 GB in bf16, 66.48 in "int4-meta", 64.87 in "w4a16".
    """
    kept, size = scheme_named(scheme), dict.fromkeys(COMPONENTS, 0)
    for some in matrices(config):
        size[some.component] += some.bytes(kept.format_of(config, some.component, some.layer))
    if vision:
        size["vision"] = 2 * count_parameters(config).vision_total
    return size


def scale_bytes(config: Llama4Config, scheme: str) -> int:
    """Of these, the bytes of the scales."""
    kept = scheme_named(scheme)
    formats = ((m, kept.format_of(config, m.component, m.layer)) for m in matrices(config))
    return sum(m.number * format.scales(m.rows, m.columns) for m, format in formats)


def _swiglu(component: str, layer: int, number: int, width: int, hidden: int) -> Iterator[Matrices]:
    yield Matrices(component, layer, 2 * number, hidden, width)  # gate, up
    yield Matrices(component, layer, number, width, hidden)  # down


def _upwards(whole: int, part: int) -> int:
    return -(-whole // part)

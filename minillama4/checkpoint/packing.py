"""Which Linears of a folder are packed Int4: the ``quantization_config`` of its config.json.

Written as llm-compressor writes it for W4A16, so that vLLM and the compressed-tensors package read
it. Of what that format can say, we read the one kind that Llama 4 is published in: four bits,
symmetric, one scale for each group of weights. Anything else is refused by name. Source: the
compressed-tensors package, version 0.20; spec, section 14.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from .errors import CheckpointError

FORMAT = "pack-quantized"
WEIGHTS = {  # what must be said of the weights, and what is meant where nothing is said
    "num_bits": (4, 8),
    "type": ("int", "int"),
    "symmetric": (True, True),
    "strategy": ("group", None),
    "dynamic": (False, False),
}
IN_ORDER = (None, "static", "weight")  # orders of GPTQ that leave columns where they are: no g_idx


@dataclass(frozen=True)
class Packing:
    """``targets`` but not ``ignore``: names of modules, ``re:`` patterns, or the class Linear."""

    targets: tuple[str, ...] = ("Linear",)
    ignore: tuple[str, ...] = ()
    group: int = 128

    def packs(self, module: str) -> bool:
        """Is this Linear, by its published name, packed?"""
        return _any(module, self.targets) and not _any(module, self.ignore)


def _any(module: str, rules: tuple[str, ...]) -> bool:
    return any(
        re.match(rule.removeprefix("re:"), module) if rule.startswith("re:") else rule == module
        for rule in rules
        if rule != "Linear"
    ) or ("Linear" in rules)


def read_packing(raw: dict) -> Packing | None:
    """What a config.json says; None where it says nothing. CheckpointError for another format."""
    said = raw.get("quantization_config") or raw.get("compression_config")
    if not said:
        return None
    try:
        return _read(said)
    except (AttributeError, KeyError, TypeError) as error:
        raise CheckpointError(
            f"quantization_config cannot be read ({type(error).__name__}: {error}): copy "
            "config.json again."
        ) from None


def _read(said: dict) -> Packing:
    _require("quant_method", said.get("quant_method", "compressed-tensors"), "compressed-tensors")
    groups = said.get("config_groups") or {}
    if not groups:
        raise CheckpointError("quantization_config has no config_groups: copy config.json again.")
    for scheme in groups.values():
        _require("format", scheme.get("format") or said.get("format"), FORMAT)
        _read_weights(scheme.get("weights") or {})
        for name in ("input_activations", "output_activations"):
            _require(name, scheme.get(name), None)
    _require("kv_cache_scheme", said.get("kv_cache_scheme"), None)
    _require("transform_config", said.get("transform_config") or None, None)
    sparsity = (said.get("sparsity_config") or {}).get("format", "dense")
    _require("sparsity_config.format", sparsity, "dense")
    sizes = {scheme["weights"]["group_size"] for scheme in groups.values()}
    if len(sizes) > 1:
        raise CheckpointError(f"Weights are in groups of {sorted(sizes)}: one size is read only.")
    targets = tuple(target for scheme in groups.values() for target in scheme["targets"])
    return Packing(targets, tuple(said.get("ignore") or ()), sizes.pop())


def _read_weights(weights: dict) -> None:
    for name, (needed, unsaid) in WEIGHTS.items():
        _require(f"weights.{name}", weights.get(name, unsaid), needed)
    if (order := weights.get("actorder")) not in IN_ORDER:
        raise CheckpointError(
            f"weights.actorder is {order!r}: columns of these weights stand in another order "
            "(g_idx), which is not read. Ask for weights without act-order, or with 'static'."
        )
    size = weights.get("group_size")
    if not isinstance(size, int) or size < 8 or size % 8:
        raise CheckpointError(f"weights.group_size is {size!r}: a multiple of 8 is read.")


def _require(name: str, value, needed) -> None:
    if value != needed:
        raise CheckpointError(
            f"quantization_config: {name} is {value!r}, but only {needed!r} is read (Int4 weights "
            "as W4A16 has them). Load the original weights, and quantize= if they are too large."
        )


def write_packing(ignore: list[str], group: int) -> dict:
    """The ``quantization_config`` of packed weights; ignore: full names of Linears left alone."""
    weights = dict(num_bits=4, type="int", symmetric=True, strategy="group", group_size=group)
    weights |= dict(dynamic=False, actorder=None, block_structure=None)
    weights |= dict(observer="minmax", observer_kwargs={})
    scheme = dict(targets=["Linear"], weights=weights, format=FORMAT)
    scheme |= dict(input_activations=None, output_activations=None)
    return {
        "quant_method": "compressed-tensors",
        "format": FORMAT,
        "quantization_status": "compressed",
        "config_groups": {"group_0": scheme},
        "ignore": ignore,
        "kv_cache_scheme": None,
        "global_compression_ratio": None,
    }

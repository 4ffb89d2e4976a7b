"""How fast decoding can be: what one step must read and compute, and what a GPU can do.

    tokens per second  <=  batch · bandwidth / bytes that a step reads        the memory's ceiling
                       <=  flops / operations for a token                     the arithmetic's
    MBU                 =  measured tokens per second / the memory's ceiling

A step writes one token of each text of a batch. It reads attention, routers, shared experts, dense
layers and head once for all of them, of the routed experts those that some token chose, and every
text's own cache. Source: spec, sections 2, 6 and 13.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from ..config import Llama4Config
from ..count import count_parameters
from .hardware import H100, Hardware
from .memory import kv_bytes_per_slot
from .precision import BF16, Matrices, matrices, scheme_named

NOTHING = "embedding", "norms"  # components without a matrix product


def distinct_experts(
    experts: int, tokens: int, top_k: int = 1, chances: Sequence[float] | None = None
) -> float:
    """How many of a layer's experts ``tokens`` tokens are expected to hit: sum of 1 - (1 - p_e)^n.

    chances: p_e, the share of tokens that choose expert e, summing to top_k; even ones if None,
    which makes it e · (1 - (1 - k/e)^n). Tokens are taken to choose independently of each other.
    ValueError for chances that are no such shares.
    """
    if tokens < 0:
        raise ValueError(f"tokens must be 0 or more, not {tokens}.")
    p = [top_k / experts] * experts if chances is None else [float(x) for x in chances]
    if len(p) != experts:
        raise ValueError(f"There are {len(p)} chances for {experts} experts: give one for each.")
    if not all(0 <= x <= 1 + 1e-9 for x in p) or abs(sum(p) - top_k) > 1e-3 * top_k:
        raise ValueError(
            f"chances must lie between 0 and 1 and sum to top_k = {top_k}, not to {sum(p):.4g}."
        )
    return sum(1 - (1 - min(x, 1.0)) ** tokens for x in p)


def entries_read(
    config: Llama4Config, context: int, chunked: bool = True, average: bool = True
) -> list[float]:
    """Keys that the last of ``context`` tokens looks at in each layer, its own among them.

    A RoPE layer reads from where its chunk began: 1 key just behind a border, a whole chunk just
    before the next. average: beyond the first chunk count the mean of these, (chunk + 1) / 2.
    chunked=False: every layer reads everything.
    """
    if context < 1:
        raise ValueError(f"context must be a number of tokens, 1 or more, not {context}.")
    near = context
    if chunked and config.chunk is not None:
        near = (context - 1) % config.chunk + 1
        if average and context >= config.chunk:
            near = (config.chunk + 1) / 2
    return [context if at in config.nope_layers else near for at in range(config.layers)]


@dataclass(frozen=True)
class Step:
    """One step of decoding. reads: bytes by component, the cache among them; flops: operations of
    the whole batch; hardware: what it runs on. Shown as a table."""

    reads: dict[str, float]
    flops: float
    batch: int
    hardware: Hardware

    @property
    def bytes(self) -> float:
        return sum(self.reads.values())

    @property
    def memory_ceiling(self) -> float:
        """Tokens per second, of all texts together, if reading were all there is to do."""
        return self.batch * self.hardware.total_bandwidth / self.bytes

    @property
    def compute_ceiling(self) -> float:
        """Tokens per second if the arithmetic, in bf16, were all there is to do."""
        return self.batch * self.hardware.total_flops / self.flops

    @property
    def ceiling(self) -> float:
        """The lower of the two: no program can be faster."""
        return min(self.memory_ceiling, self.compute_ceiling)

    @property
    def bound(self) -> str:
        """What the step waits for, "memory" or "arithmetic"."""
        return "memory" if self.memory_ceiling <= self.compute_ceiling else "arithmetic"

    def mbu(self, tokens_per_second: float) -> float:
        """Model bandwidth utilisation: the share of the bandwidth that a measured speed (of all
        texts together) makes use of. Above 1 something was not counted, or not measured well."""
        if not tokens_per_second > 0:
            raise ValueError(f"A speed must be above 0 tokens per second: {tokens_per_second!r}.")
        return tokens_per_second / self.memory_ceiling

    def __repr__(self) -> str:
        rows = [(name, size) for name, size in self.reads.items() if size]
        rows += [("a step reads", self.bytes)]
        wide = max(len(f"{size / 1e9:,.3f}") for _, size in rows)
        lines = [f"{name:<14}  {size / 1e9:>{wide},.3f} GB" for name, size in rows]
        said = f"at most {self.ceiling:,.0f} tokens per second in all, bound by {self.bound}"
        return "\n".join([*lines, f"{self.hardware.name}, batch {self.batch}: {said}"])


def decode_step(
    config: Llama4Config,
    hardware: Hardware = H100,
    scheme: str = "bf16",
    context: int = 1024,
    batch: int = 1,
    *,
    cache: torch.dtype = torch.bfloat16,
    chunked: bool = True,
    average: bool = True,
    chances: Sequence | torch.Tensor | None = None,
) -> Step:
    """What one token for each of ``batch`` texts of ``context`` tokens costs, at the least.

    chances: how tokens choose experts, as ``distinct_experts`` takes them: one list for all layers
    with experts, or a list of lists, one for each of them. average: see ``entries_read``.
    """
    if isinstance(batch, bool) or not isinstance(batch, int) or batch < 1:
        raise ValueError(f"batch must be a number of texts, 1 or more, not {batch!r}.")
    hit = _hit(config, batch, chances)
    keys = entries_read(config, context, chunked, average)
    reads = _read_weights(config, scheme, batch, hit)
    reads["cache"] = batch * sum(keys) * kv_bytes_per_slot(config, cache)
    return Step(reads, batch * _flops(config, sum(keys)), batch, hardware)


def flops_per_token(config: Llama4Config, context: int, chunked: bool = True) -> float:
    """Multiplications and additions for one token behind ``context`` - 1 others.

    Two for each weight it uses, four for each number of a query head and key: score and mixture.
    """
    return _flops(config, sum(entries_read(config, context, chunked)))


def _flops(config: Llama4Config, keys: float) -> float:
    active = count_parameters(config).active_text
    weights = sum(n for name, n in active.items() if name not in NOTHING)
    head = config.vocab_size * config.width if config.tied else 0  # stored once, used all the same
    return 2 * (weights + head) + 4 * config.heads * config.head_width * keys


def _hit(
    config: Llama4Config, batch: int, chances: Sequence | torch.Tensor | None
) -> dict[int, float]:
    """Expected distinct experts by layer."""
    layers = config.moe_layers
    chances = chances.tolist() if isinstance(chances, torch.Tensor) else chances
    each = [chances] * len(layers)
    if chances and isinstance(chances[0], Sequence):
        if len(chances) != len(layers):
            raise ValueError(
                f"There are {len(chances)} lists of chances for {len(layers)} layers with experts: "
                "give one for each, or one list for all."
            )
        each = chances
    size = config.experts, batch, config.top_k
    return {at: distinct_experts(*size, p) for at, p in zip(layers, each, strict=True)}


def _read_weights(
    config: Llama4Config, scheme: str, batch: int, hit: dict[int, float]
) -> dict[str, float]:
    """Bytes of the weights that a step reads, by component; of the embedding table one row for
    each text."""
    kept, reads = scheme_named(scheme), {}
    for some in matrices(config):
        size = some.bytes(kept.format_of(config, some.component, some.layer))
        if some.component == "embedding":
            size = min(batch, some.rows) * size / some.rows
        elif some.component == "routed experts":
            size = size * hit[some.layer] / config.experts
        reads[some.component] = reads.get(some.component, 0) + size
    if config.tied:
        table = Matrices("embedding", None, 1, config.vocab_size, config.width)
        reads["head"] = table.bytes(BF16)
    return reads

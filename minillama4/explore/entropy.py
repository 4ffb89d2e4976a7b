"""How sharply attention looks, against the length of the context, with temperature and without.

    H(t) = - sum over s of a(t, s) ln a(t, s)      nats; ln n if all n keys get the same

One relevant key among n - 1 others, in numbers (``one_among``), and a model's own attention, row by
row, in pieces that never hold a whole (t, s) table (``attention_entropy``). Temperature multiplies
a NoPE layer's queries, and so all scores of a row, by s(p). Source: spec, section 7.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager

import torch
from einops import einsum, rearrange, repeat
from torch import Tensor

from ..model.norm import at_least_float32
from .trace import trace

AT_ONCE = 8_388_608  # scores held at a time, 32 MiB in float32


def one_among(n, advantage: float, spread: float, temperature) -> tuple[Tensor, Tensor]:
    """The attention weight of one relevant key among n - 1 others, and the row's entropy in nats.

    advantage: its score above the mean of the others'; spread: their standard deviation, both in
    units of a score before temperature. n, temperature: numbers or tensors of one shape. The
    others' scores are taken as normal and so many that their sum is its expectation,
    (n - 1) exp((s·spread)²/2): exact for spread 0, good while s·spread < 0.7 sqrt(2 ln n). The
    more it is, the fewer hold the sum, and from sqrt(2 ln n) on it is taken to be one key's (the
    random energy model's limit, Derrida 1981): rough, an entropy then comes out nats too low.
    """
    n, s = (torch.as_tensor(x, dtype=torch.float64) for x in (n, temperature))
    width = s * spread
    tilt = torch.minimum(width, torch.sqrt(2 * torch.log(n - 1)))  # how far out they matter
    others = torch.log(n - 1) + width * tilt - tilt**2 / 2  # ln of their share of the denominator
    total = torch.logaddexp(s * advantage, others)
    weight = torch.exp(s * advantage - total)
    mean = weight * s * advantage + (1 - weight) * width * tilt  # of the scores, under the weights
    return weight, total - mean


@torch.no_grad()
def attention_entropy(
    model,
    tokens: Tensor,
    layers: Iterable[int] | None = None,
    positions: Sequence[int] | None = None,
    temperature: bool | None = None,
) -> dict[int, Tensor]:
    """(b, t) tokens -> {layer: (b, h, t)}, the entropy in nats of every query's attention row.

    layers: the NoPE layers if None. positions: only these queries, t is then their number.
    temperature: switched on or off in all NoPE layers for this call; None: as the model is.
    """
    config = model.config
    layers = tuple(config.nope_layers if layers is None else layers)
    with _temperature(model, temperature), trace(model, attention=layers, device=None) as seen:
        model(tokens)
    wanted = torch.arange(tokens.shape[1]) if positions is None else torch.tensor(list(positions))
    result = {}
    for layer in layers:
        q, k = seen._part("q", layer), seen._part("k", layer)  # b t h d, b s k d
        chunk = None if layer in config.nope_layers else config.chunk
        result[layer] = _entropies(q, k, wanted.to(q.device), chunk).cpu()
    return result


def entropy_by_length(model, tokens: Tensor, positions: Sequence[int]) -> dict:
    """Mean entropy over rows and heads at these positions, with the temperature and without.

    {"positions": [...], "layers": {"3": {"with": [nats, ...], "without": [...]}, ...},
    "floor_scale": ...}, a list of one number per position. A query at position p sees p + 1 keys.
    """
    ways = {"with": True, "without": False}
    table = {str(layer): {} for layer in model.config.nope_layers}
    for way, on in ways.items():
        rows = attention_entropy(model, tokens, positions=positions, temperature=on)
        for layer, nats in rows.items():
            table[str(layer)][way] = [round(x, 4) for x in nats.mean(dim=(0, 1)).tolist()]
    places = [int(p) for p in positions]
    return {"positions": places, "layers": table, "floor_scale": model.config.floor_scale}


def _entropies(q: Tensor, k: Tensor, positions: Tensor, chunk: int | None) -> Tensor:
    """(b, t, h, d), (b, s, k, d) -> (b, h, p): of the queries at these positions."""
    q = at_least_float32(q[:, positions]) * q.shape[-1] ** -0.5
    keys = repeat(at_least_float32(k), "b s k d -> b s (k r) d", r=q.shape[2] // k.shape[2])
    rows = max(1, AT_ONCE // (q.shape[0] * q.shape[2] * keys.shape[1]))
    parts = []
    for some, query in zip(positions.split(rows), q.split(rows, dim=1), strict=True):
        last = int(some.max()) + 1  # keys behind the last query are seen by none
        scores = einsum(query, keys[:, :last], "b t h d, b s h d -> b h t s")
        key, at = torch.arange(last, device=some.device), rearrange(some, "t -> t 1")
        seen = key <= at
        if chunk is not None:
            seen = seen & (key // chunk == at // chunk)
        logs = scores.masked_fill(~seen, float("-inf")).log_softmax(dim=-1)
        parts.append(-(logs.exp() * logs.masked_fill(~seen, 0.0)).sum(dim=-1))
    return torch.cat(parts, dim=-1)


@contextmanager
def _temperature(model, on: bool | None) -> Iterator[None]:
    """Attention temperature of all NoPE layers on or off for as long as the ``with`` lasts."""
    nope = [block.attention for block in model.blocks if not block.attention.rope]
    before = [attention.temperature for attention in nope]
    try:
        for attention in nope:
            attention.temperature = attention.temperature if on is None else on
        yield
    finally:
        for attention, was in zip(nope, before, strict=True):
            attention.temperature = was

"""Checks for *Int4* (notebooks/05_serving/02_int4.ipynb)."""

import torch
from torch import Tensor

from ...serve.int4 import pack, unpack
from ..checks import Check
from ..rounding import round_weight

# ------------------------------------------------------------------ 1: eight to a word


def _words(seed: int) -> tuple[Tensor]:
    """packed (out, in / 8) int32, with the sign bit set in some words and all sixteen values."""
    draw = torch.Generator().manual_seed(seed)
    q = torch.randint(-8, 8, (3 + seed, 16), generator=draw, dtype=torch.int8)
    q[0, 7], q[0, 15], q[1, :8] = 7, -8, torch.arange(-8, 0)
    return (pack(q),)


def _nibbles(packed: Tensor) -> Tensor:
    """(out, in / 8, 8), each 0 to 15, lowest bits first."""
    return (packed[..., None] >> torch.arange(0, 32, 4)) & 15


def _unmasked(packed: Tensor) -> Tensor:
    return ((packed[..., None] >> torch.arange(0, 32, 4)) - 8).flatten(-2)


def _in_twos_complement(packed: Tensor) -> Tensor:
    nibbles = _nibbles(packed)
    return torch.where(nibbles > 7, nibbles - 16, nibbles).flatten(-2)


unpacking = Check(
    "unpacking",
    reference=unpack,
    inputs=_words,
    wrong={
        "The 8 that was added before packing is still in: take it off.": lambda packed: _nibbles(
            packed
        ).flatten(-2),
        "You took off 7: stored is q + 8.": lambda packed: (_nibbles(packed) - 7).flatten(-2),
        "The order is the wrong way round: the first weight lies in the lowest bits.": (
            lambda packed: (_nibbles(packed).flip(-1) - 8).flatten(-2)
        ),
        "The bits above each four are still there: keep the lowest four with & 15.": _unmasked,
        "You read the four bits in two's complement, as Meta packs them; here they are q + 8.": (
            _in_twos_complement
        ),
        "First all first weights came, then all second ones: the eight of a word belong beside "
        "each other.": lambda packed: (_nibbles(packed) - 8).transpose(-1, -2).flatten(-2),
        "The eight weights of a word have an axis of their own still: flatten it into the "
        "row.": lambda packed: _nibbles(packed) - 8,
        "The two weights of each byte are exchanged: within a byte too the first is the lower "
        "one.": lambda packed: (_nibbles(packed) - 8).unflatten(-1, (-1, 2)).flip(-1).flatten(-3),
        "You move by one bit each time: a weight has four.": lambda packed: (
            ((packed[..., None] >> torch.arange(8)) & 15) - 8
        ).flatten(-2),
        "The 3 lowest bits alone are kept: 15 is four ones, 7 is three.": lambda packed: (
            (_nibbles(packed) & 7) - 8
        ).flatten(-2),
    },
    praise="It reads the files of compressed-tensors.",
    tolerance=0.0,
)

# ------------------------------------------------------------------ 2: a whole matrix in groups


def _matrix(seed: int) -> tuple[Tensor, int]:
    """w (out, in) and a group; square, so that the axes can be confused. The largest
    of a group is positive in even rows and negative in odd ones, and no weight lies near the middle
    of two levels, where a scale computed in another order could round it otherwise."""
    draw = torch.Generator().manual_seed(seed)
    w = torch.randn(64, 64, generator=draw) * (0.02 + 0.1 * torch.rand(64, 1, generator=draw))
    group = (16, 32, 8, 16, 32)[seed % 5]
    groups = w.unflatten(-1, (-1, group))
    top = groups.abs().amax(-1, keepdim=True) * 1.25
    groups[..., :1] = torch.where(torch.arange(64)[:, None, None] % 2 == 0, top, -0.9 * top)
    groups[..., 1] = groups[..., 1].abs()  # no group is negative throughout
    scale = groups.abs().amax(-1, keepdim=True) / 8
    middle = (groups / scale).frac().abs()
    near = (middle - 0.5).abs() < 0.02
    return torch.where(near, 0.9 * groups, groups).flatten(-2), group


def _metas(w: Tensor, group: int) -> Tensor:
    return round_weight(w, 4, group, "meta")


def _changed(scale=8.0, low=-8, high=7, to_whole=torch.round, of=lambda g: g.abs()):
    """Meta's rule with one thing changed."""

    def answer(w: Tensor, group: int) -> Tensor:
        groups = w.unflatten(-1, (-1, group))
        step = of(groups).amax(-1, keepdim=True).clamp(min=1e-6) / scale
        return (to_whole(groups / step).clamp(low, high) * step).flatten(-2)

    return answer


def _scale_of_all(w: Tensor, group: int) -> Tensor:
    step = w.abs().max() / 8
    return (w / step).round().clamp(-8, 7) * step


def _whole_numbers(w: Tensor, group: int) -> Tensor:
    groups = w.unflatten(-1, (-1, group))
    step = groups.abs().amax(-1, keepdim=True) / 8
    return (groups / step).round().clamp(-8, 7).flatten(-2)


def _across_groups(w: Tensor, group: int) -> Tensor:
    groups = w.unflatten(-1, (-1, group))
    step = groups.abs().amax(-2, keepdim=True) / 8
    return ((groups / step).round().clamp(-8, 7) * step).flatten(-2)


def _range_in_steps(w: Tensor, group: int) -> Tensor:
    groups = w.unflatten(-1, (-1, group))
    step = (groups.amax(-1, keepdim=True) - groups.amin(-1, keepdim=True)) / 15
    return ((groups / step).round().clamp(-8, 7) * step).flatten(-2)


rounding = Check(
    "rounding",
    reference=_metas,
    inputs=_matrix,
    wrong={
        "Without the clamp a seventeenth value comes out: +8 does not fit four bits.": _changed(
            high=8
        ),
        "You clamped to -7: -8 is a level as well, and Meta's scale counts on it.": _changed(
            low=-7
        ),
        "That is amax / 7, the textbook's scale; here it is amax / 8.": _changed(scale=7.0),
        "That is amax / 7.5, compressed-tensors' scale; here it is amax / 8.": _changed(scale=7.5),
        "The largest magnitude is meant: take abs before amax.": _changed(of=lambda g: g),
        "You cut off the digits: round to the nearest.": _changed(to_whole=torch.trunc),
        "You rounded down: round to the nearest.": _changed(to_whole=torch.floor),
        "Groups run along the input, the last axis; yours run along the outputs.": lambda w, g: (
            _metas(w.T.contiguous(), g).T
        ),
        "One scale for the whole matrix: each group has its own.": _scale_of_all,
        "One scale for each row: a row has several groups.": lambda w, g: _metas(w, w.shape[-1]),
        "Each group is a row of its own still: give the matrix its shape back.": lambda w, g: (
            _metas(w, g).reshape(-1, g)
        ),
        "You took amax over the groups, at each place in them: take it over the last axis.": (
            _across_groups
        ),
        "You cut a row into as many groups as a group has weights: (-1, group), not (group, "
        "-1).": lambda w, g: _metas(w, w.shape[-1] // g),
        "That is the step of an asymmetric grid, the whole range in 15 steps; here it is amax / "
        "8.": _range_in_steps,
        "You clamped to 0 and 15: q lies from -8 to 7, and 8 is added for packing only.": _changed(
            low=0, high=15
        ),
        "Sixteen steps from -amax to amax are two for each eighth: the step is amax / 8, not amax "
        "/ 16.": _changed(scale=16.0),
        "Those are the whole numbers: times their scale they are weights again.": _whole_numbers,
        "Nothing is rounded: the weights came back as they were.": lambda w, g: w,
    },
    praise="It is Meta's rule, in groups of every size that was tried.",
)

# ------------------------------------------------------------------ 3: who goes elsewhere


def _two_logits(seed: int) -> tuple[Tensor, Tensor, int]:
    """Scores before and after (n, e), and k; some tokens only exchange their first and second, and
    some change two experts for two others whose numbers have the same sum."""
    draw = torch.Generator().manual_seed(seed)
    before = torch.randn(60, 8, generator=draw)
    after = before + 0.4 * torch.randn(60, 8, generator=draw)
    first, second = before.topk(2).indices.T
    rows = torch.arange(0, 20)
    after[rows] = before[rows]
    after[rows, first[rows]], after[rows, second[rows]] = (
        before[rows, second[rows]],
        before[rows, first[rows]],
    )
    before[20:25, [0, 3]], after[20:25, [1, 2]] = 9.0, 9.0
    return before, after, (2, 1, 3, 2, 4)[seed % 5]


def _chosen(logits: Tensor, k: int) -> Tensor:
    """(n, e) bool."""
    return torch.zeros_like(logits).scatter(1, logits.topk(k).indices, 1.0) > 0


def _rerouted(before: Tensor, after: Tensor, k: int) -> float:
    return (_chosen(before, k) != _chosen(after, k)).any(1).float().mean().item()


def _sets(logits: Tensor, k: int) -> Tensor:
    return logits.topk(k).indices.sort(1).values


rerouted = Check(
    "rerouted",
    reference=_rerouted,
    inputs=_two_logits,
    wrong={
        "A token whose experts only change places is read by the same ones: compare sets.": (
            lambda a, b, k: (a.topk(k).indices != b.topk(k).indices).any(1).float().mean()
        ),
        "You counted places of the top k, in their order; count tokens, by the set of their "
        "experts.": lambda a, b, k: (a.topk(k).indices != b.topk(k).indices).float().mean(),
        "You looked at the best expert only; k of them read a token.": lambda a, b, k: (
            (a.argmax(1) != b.argmax(1)).float().mean()
        ),
        "You counted pairs of token and expert; count tokens.": lambda a, b, k: (
            (_chosen(a, k) != _chosen(b, k)).float().mean()
        ),
        "You counted experts that were lost, of all that were chosen; count tokens.": (
            lambda a, b, k: (_chosen(a, k) & ~_chosen(b, k)).sum() / (len(a) * k)
        ),
        "You counted places in the sorted sets; a token counts once, whether one place differs or "
        "all.": lambda a, b, k: (_sets(a, k) != _sets(b, k)).float().mean(),
        "You asked for every place of the sorted sets to differ; one is enough.": lambda a, b, k: (
            (_sets(a, k) != _sets(b, k)).all(1).float().mean()
        ),
        "Sums of the experts' numbers can agree where the experts do not: compare the sets.": (
            lambda a, b, k: (_sets(a, k).sum(1) != _sets(b, k).sum(1)).float().mean()
        ),
        "Those are the experts with the lowest scores: sorting goes upwards.": (
            lambda a, b, k: _rerouted(-a, -b, k)
        ),
        "That is in percent: a share lies between 0 and 1.": lambda a, b, k: (
            100 * _rerouted(a, b, k)
        ),
        "That is the share of tokens that stay: take it from 1.": lambda a, b, k: (
            1 - _rerouted(a, b, k)
        ),
        "Tokens are counted, not their share: divide by n.": lambda a, b, k: (
            _rerouted(a, b, k) * len(a)
        ),
        "You asked for all k to change; one that changes is enough.": lambda a, b, k: (
            (~(_chosen(a, k) & _chosen(b, k)).any(1)).float().mean()
        ),
    },
    praise="By the set of experts, whatever their order.",
)

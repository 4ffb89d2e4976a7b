"""Checks for *The dense block* (notebooks/01_moe/02_dense_block.ipynb)."""

import torch
from einops import einsum, rearrange, reduce, repeat
from torch import Tensor

from ...config import Llama4Config
from ...model.norm import RMSNorm
from ...model.transformer import Block
from ..checks import Check

# ------------------------------------------------------------------ 1: the norm


def _vectors(seed: int) -> tuple[Tensor, Tensor, float]:
    """x (b, t, m) with long and short vectors, weight (m,), eps."""
    draw = torch.Generator().manual_seed(seed)
    size = torch.tensor([1e-3, 1.0, 30.0])[None, :, None]
    x = (torch.randn(2, 3, 8, generator=draw) + 0.5) * size
    return x, 1 + 0.3 * torch.randn(8, generator=draw), 1e-5


def _library_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    norm = RMSNorm(len(weight), eps)
    norm.load_state_dict({"weight": weight})
    with torch.no_grad():
        return norm(x)


def _mean(x: Tensor) -> Tensor:
    return x.mean(-1, keepdim=True)


def _everything(x, weight, eps) -> Tensor:
    return weight * x / (reduce(x.square(), "b t m -> 1 1 1", "mean") + eps).sqrt()


def _over_time(x, weight, eps) -> Tensor:
    return weight * x / (reduce(x.square(), "b t m -> b 1 m", "mean") + eps).sqrt()


def _half_precision_survives(answer) -> bool:
    x = torch.full((1, 1, 8), 300.0, dtype=torch.float16)  # its square is beyond float16
    out = answer(x, torch.ones(8, dtype=torch.float16), 1e-5)
    return bool((out.float() - 1).abs().max() < 0.01)


rms_norm = Check(
    "my_rms_norm",
    reference=_library_norm,
    inputs=_vectors,
    wrong={
        "Is your epsilon inside the root? Short vectors tell the difference.": lambda x, w, eps: (
            w * x / (_mean(x**2).sqrt() + eps)
        ),
        "The epsilon is missing.": lambda x, w, eps: w * x / _mean(x**2).sqrt(),
        "You divided by the root of the sum of squares; their mean is meant.": lambda x, w, eps: (
            w * x / ((x**2).sum(-1, keepdim=True) + eps).sqrt()
        ),
        "You divided by the length, which is the root of the sum; the mean is meant, and ε inside "
        "the root.": lambda x, w, eps: w * x / (x.norm(dim=-1, keepdim=True) + eps),
        "The root is missing.": lambda x, w, eps: w * x / (_mean(x**2) + eps),
        "You subtracted the mean first: that is LayerNorm.": lambda x, w, eps: (
            w * (x - _mean(x)) / (_mean((x - _mean(x)) ** 2) + eps).sqrt()
        ),
        "You divided by the standard deviation: no mean is taken away.": lambda x, w, eps: (
            w * x / (_mean((x - _mean(x)) ** 2) + eps).sqrt()
        ),
        "The weight is missing.": lambda x, w, eps: x / (_mean(x**2) + eps).sqrt(),
        "You multiplied by 1 + weight: the weight alone is meant.": lambda x, w, eps: (
            (1 + w) * x / (_mean(x**2) + eps).sqrt()
        ),
        "The mean runs over everything; each vector has a length of its own.": _everything,
        "The mean runs over time; it should run over the channels, the last axis.": _over_time,
    },
    properties={
        "Right in float32, but in float16 the square of 300 is too large a number: widen x with "
        ".float() before you square it, and cast back.": _half_precision_survives
    },
    praise="It agrees with the library, for vectors of length 0.003 and of 100, in half precision "
    "too.",
)

# ------------------------------------------------------------------ 2: shared keys


def _heads(seed: int) -> tuple[Tensor, Tensor]:
    """q (b, t, h, d), k (b, s, k, d), with two or three query heads to a KV head."""
    draw = torch.Generator().manual_seed(seed)
    kv, shared = ((2, 2), (2, 3), (3, 2))[seed % 3]
    q = torch.randn(2, 5, kv * shared, 4, generator=draw)
    return q, torch.randn(2, 5, kv, 4, generator=draw)


def _scores(q: Tensor, k: Tensor) -> Tensor:
    return einsum(q, k, "b t h d, b s h d -> b h t s")


def _grouped(q: Tensor, k: Tensor) -> Tensor:
    return repeat(k, "b s k d -> b s (k r) d", r=q.shape[2] // k.shape[2])


def _library_scores(q: Tensor, k: Tensor) -> Tensor:
    return _scores(q, _grouped(q, k)) / q.shape[-1] ** 0.5


def _tiled(q: Tensor, k: Tensor) -> Tensor:
    return repeat(k, "b s k d -> b s (r k) d", r=q.shape[2] // k.shape[2])


def _swapped_axes(q, k) -> Tensor:
    return rearrange(_library_scores(q, k), "b h t s -> b h s t")


grouped_scores = Check(
    "grouped_scores",
    reference=_library_scores,
    inputs=_heads,
    wrong={
        "You used KV head j % k for query head j; neighbours share: it is j // r.": lambda q, k: (
            _scores(q, _tiled(q, k)) / q.shape[-1] ** 0.5
        ),
        "The scores are not divided by √d.": lambda q, k: _scores(q, _grouped(q, k)),
        "You divided by d: its root is meant.": lambda q, k: (
            _scores(q, _grouped(q, k)) / q.shape[-1]
        ),
        "You divided by the root of all heads' width together; each head has d "
        "channels.": lambda q, k: _scores(q, _grouped(q, k)) / (q.shape[-1] * q.shape[-2]) ** 0.5,
        "All heads use the first KV head.": lambda q, k: (
            _scores(q, k[:, :, :1].expand(-1, -1, q.shape[2], -1)) / q.shape[-1] ** 0.5
        ),
        "j % k as well as no √d: neighbours share a KV head, and scores are divided by "
        "√d.": lambda q, k: _scores(q, _tiled(q, k)),
        "Rows and columns are exchanged: a row belongs to a query t.": _swapped_axes,
        "These are the weights after a softmax; the scores before it are asked for.": lambda q, k: (
            _library_scores(q, k).softmax(-1)
        ),
    },
    praise="Neighbouring query heads share a KV head, as in the library.",
)

# ------------------------------------------------------------------ 3: the count


def _sizes(seed: int) -> tuple[int, ...]:
    """width, heads, kv_heads, head_width, hidden."""
    sizes = ((16, 4, 2, 4, 40), (24, 6, 2, 8, 72), (32, 4, 4, 8, 56), (40, 8, 1, 6, 96))
    return sizes[seed % len(sizes)]


def _count(width, heads, kv_heads, head_width, hidden) -> int:
    names = dict(width=width, heads=heads, kv_heads=kv_heads, head_width=head_width)
    config = Llama4Config.nano(dense_hidden=hidden, moe_at=(), nope_at=(), **names)
    with torch.device("meta"):
        return sum(p.numel() for p in Block(config, 0).parameters())


def _parts(q=1, k=1, v=1, o=1, ffn=3, norms=2):
    """A wrong count: some part left out, or counted too often."""

    def count(width, heads, kv_heads, head_width, hidden):
        large, small = width * heads * head_width, width * kv_heads * head_width
        attention = (q + o) * large + (k + v) * small
        return attention + ffn * width * hidden + norms * width

    return count


def _square(width, heads, kv_heads, head_width, hidden) -> int:
    return 2 * width**2 + 2 * width**2 * kv_heads // heads + 3 * width * hidden + 2 * width


def _with_biases(width, heads, kv_heads, head_width, hidden) -> int:
    biases = (heads + 2 * kv_heads) * head_width + width + 2 * hidden + width
    return _count(width, heads, kv_heads, head_width, hidden) + biases


def _no_sharing(width, heads, kv_heads, head_width, hidden) -> int:
    return 4 * width * heads * head_width + 3 * width * hidden + 2 * width


block_parameters = Check(
    "block_parameters",
    reference=_count,
    inputs=_sizes,
    wrong={
        "k and v have kv_heads heads only: that is what sharing saves.": _no_sharing,
        "The output projection o is missing.": _parts(o=0),
        "v is missing.": _parts(v=0),
        "The two norms are missing: a weight per channel each.": _parts(norms=0),
        "A block has two norms, one before each half.": _parts(norms=1),
        "A SwiGLU has three matrices: gate, up and down.": _parts(ffn=2),
        "That is the attention alone, with the norms.": _parts(ffn=0),
        "That is the SwiGLU alone.": _parts(q=0, k=0, v=0, o=0, norms=0),
        "No sharing, and width for heads · head_width: use kv_heads and head_width.": lambda *s: (
            4 * s[0] ** 2 + 3 * s[0] * s[4] + 2 * s[0]
        ),
        "o leads from heads · head_width back to the width.": lambda m, h, k, d, f: (
            m * d * (h + 2 * k) + m * m + 3 * m * f + 2 * m
        ),
        "There are no biases in Llama.": _with_biases,
        "heads · head_width need not be the width: use both.": _square,
    },
    praise="It is what the library's Block holds, to the last parameter.",
    tolerance=1e-9,
)

"""Sizes of a Llama 4: frozen, checked when made, exchanged with Hugging Face's config.json.

The defaults are Scout's text model. A mini model is the same code with smaller numbers.
Source: LLAMA 4 model cards and params (Scout 17B-16E, Maverick 17B-128E); names of the
published files appear only in ``from_hf`` and ``to_hf`` (see ``hf_config.py``).
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path

# What Meta has said of Behemoth: 288B active, 16 experts, nearly 2T in all. The rest is our guess.
BEHEMOTH_ESTIMATED = ("width", "layers", "heads", "kv_heads", "head_width", "expert_hidden")


def _require(ok: bool, name: str, value, rule: str) -> None:
    if not ok:
        raise ValueError(f"{name} = {value!r} is not possible: it must be {rule}.")


def _positive(config, *names: str) -> None:
    for name in names:
        value = getattr(config, name)
        number = isinstance(value, (int, float)) and not isinstance(value, bool)
        _require(number and value > 0, name, value, "a number above 0")


def _count(config, *names: str) -> None:
    for name in names:
        value = getattr(config, name)
        whole = isinstance(value, int) and not isinstance(value, bool)
        _require(whole and value > 0, name, value, "a whole number above 0")


def _kind(config, kind, *names: str) -> None:
    for name in names:
        value = getattr(config, name)
        word = getattr(kind, "__name__", str(kind).replace("minillama4.config.", ""))
        _require(isinstance(value, kind), name, value, f"of type {word}")


def _divides(config, part: str, whole: str) -> None:
    small, large = getattr(config, part), getattr(config, whole)
    _require(large % small == 0, part, small, f"a divisor of {whole} = {large}")


@dataclass(frozen=True)
class RopeScaling:
    """Slows the rotary frequencies whose wavelength exceeds the original context (Scout).

    Wavelengths above ``original_length / low`` are stretched ``factor`` times, those below
    ``original_length / high`` are kept; with low == high, as in Scout, nothing lies between.
    """

    factor: float = 16.0
    low: float = 1.0
    high: float = 1.0
    original_length: int = 8192

    def __post_init__(self):
        _require(self.factor >= 1, "rope_scaling.factor", self.factor, "at least 1")
        _require(0 < self.low <= self.high, "rope_scaling.low", self.low, "above 0, at most high")
        _count(self, "original_length")


@dataclass(frozen=True)
class VisionConfig:
    """The vision encoder of both released models; ``width`` is its own, not the text model's."""

    width: int = 1408
    layers: int = 34
    heads: int = 16
    hidden: int = 5632  # of the encoder's MLPs
    image_size: int = 336  # pixels along a tile's side
    patch_size: int = 14
    channels: int = 3
    shuffle: int = 2  # patches along a side that pixel shuffle merges into one token
    adapter: int = 4096
    rope_theta: float = 10_000.0
    norm_eps: float = 1e-5

    def __post_init__(self):
        _count(self, "width", "layers", "heads", "hidden", "image_size", "patch_size")
        _count(self, "channels", "shuffle", "adapter")
        _positive(self, "rope_theta", "norm_eps")
        _divides(self, "patch_size", "image_size")
        _divides(self, "heads", "width")
        head = self.width // self.heads
        _require(head % 4 == 0, "width / heads", head, "a multiple of 4 (2-D RoPE: pairs for x, y)")
        grid = f"a divisor of the {self.grid} patches along a side"
        _require(self.grid % self.shuffle == 0, "shuffle", self.shuffle, grid)

    @property
    def grid(self) -> int:
        """Patches along a tile's side (24)."""
        return self.image_size // self.patch_size

    @property
    def tokens_per_tile(self) -> int:
        """Text positions that one tile takes (144)."""
        return (self.grid // self.shuffle) ** 2


@dataclass(frozen=True)
class Llama4Config:
    """Every size of a Llama 4. Lengths are in tokens, layers are counted from 0."""

    vocab_size: int = 202_048
    width: int = 5120  # m
    layers: int = 48
    heads: int = 40  # h
    kv_heads: int = 8  # k
    head_width: int = 128  # d
    experts: int = 16  # e
    top_k: int = 1
    expert_hidden: int = 8192  # f of a routed and of the shared expert
    dense_hidden: int = 16_384  # f of the layers without experts
    moe_every: int = 1  # 1: every layer has experts; 2: layers 1, 3, 5, ...
    nope_every: int = 4  # layers 3, 7, 11, ... carry no positions and see everything
    moe_at: tuple[int, ...] | None = None  # the layers by name, in place of moe_every
    nope_at: tuple[int, ...] | None = None  # likewise; () is RoPE everywhere
    chunk: int | None = 8192  # what RoPE layers can see; None: everything
    rope_theta: float = 500_000.0
    rope_scaling: RopeScaling | None = RopeScaling()
    qk_norm: bool = True  # on RoPE layers only
    temperature: bool = True  # on NoPE layers only
    floor_scale: int = 8192
    attn_scale: float = 0.1
    norm_eps: float = 1e-5
    max_length: int = 10_485_760
    tied: bool = False  # is the head the embedding table?
    patch_token: int = 200_092  # the token whose embedding an image patch replaces
    vision: VisionConfig | None = None

    def __post_init__(self):
        _count(self, "vocab_size", "width", "layers", "heads", "kv_heads", "head_width")
        _count(self, "experts", "top_k", "expert_hidden", "dense_hidden", "moe_every", "nope_every")
        _count(self, "floor_scale", "max_length")
        _positive(self, "rope_theta", "norm_eps")
        _kind(self, float | int, "attn_scale")
        _kind(self, bool, "qk_norm", "temperature", "tied")
        _kind(self, RopeScaling | None, "rope_scaling")
        _kind(self, VisionConfig | None, "vision")
        _divides(self, "kv_heads", "heads")
        _require(self.head_width % 2 == 0, "head_width", self.head_width, "even (RoPE pairs)")
        limit = f"at most experts = {self.experts}"
        _require(self.top_k <= self.experts, "top_k", self.top_k, limit)
        if self.chunk is not None:
            _count(self, "chunk")
        for name in ("moe_at", "nope_at"):
            self._check_layers(name)
        if self.moe_at == ():  # then the interval says nothing
            object.__setattr__(self, "moe_every", 1)
        if self.vision is not None:
            inside = f"a token id below vocab_size = {self.vocab_size}"
            ok = 0 <= self.patch_token < self.vocab_size
            _require(ok, "patch_token", self.patch_token, inside)

    def _check_layers(self, name: str) -> None:
        layers = getattr(self, name)
        if layers is None:
            return
        ok = all(isinstance(i, int) and 0 <= i < self.layers for i in layers)
        _require(ok, name, layers, f"layer numbers from 0 to {self.layers - 1}")
        layers = tuple(sorted(set(layers)))  # a list would not hash
        every = self.moe_every if name == "moe_at" else self.nope_every
        usual = layers == tuple(range(every - 1, self.layers, every))
        object.__setattr__(self, name, None if usual else layers)  # one way to say one thing

    @property
    def moe_layers(self) -> tuple[int, ...]:
        """Layers with a router and experts; the others have one dense SwiGLU."""
        if self.moe_at is not None:
            return self.moe_at
        return tuple(range(self.moe_every - 1, self.layers, self.moe_every))

    @property
    def nope_layers(self) -> tuple[int, ...]:
        """Layers without positional encoding; the others rotate q and k and see one chunk."""
        if self.nope_at is not None:
            return self.nope_at
        return tuple(range(self.nope_every - 1, self.layers, self.nope_every))

    def replace(self, **changes) -> Llama4Config:
        """The same configuration with some fields changed, checked again."""
        return dataclasses.replace(self, **changes)

    # ------------------------------------------------------------------ presets
    @classmethod
    def scout(cls, **changes) -> Llama4Config:
        """Llama 4 Scout, 17B active, 16 experts, 109B in all, with vision."""
        return cls(vision=VisionConfig()).replace(**changes)

    @classmethod
    def maverick(cls, **changes) -> Llama4Config:
        """Llama 4 Maverick, 17B active, 128 experts in every second layer, 400B in all."""
        sizes = dict(experts=128, moe_every=2, qk_norm=False, rope_scaling=None)
        return cls(vision=VisionConfig(), max_length=1_048_576, **sizes).replace(**changes)

    @classmethod
    def behemoth(cls, **changes) -> Llama4Config:
        """Behemoth, never released. Public: 288B active, 16 experts, nearly 2T in all.

        The fields named in ``BEHEMOTH_ESTIMATED`` are an estimate: one layout among many
        that gives the public totals. Text only.
        """
        sizes = dict(width=16_384, layers=96, heads=128, kv_heads=8, expert_hidden=24_000)
        return cls(dense_hidden=48_000, **sizes).replace(**changes)

    @classmethod
    def mini(cls, **changes) -> Llama4Config:
        """Scout in small: the shipped model of the series, trained on a laptop."""
        sizes = dict(vocab_size=2048, width=128, layers=8, heads=4, kv_heads=2, head_width=32)
        ffn = dict(experts=16, expert_hidden=128, dense_hidden=256)
        context = dict(chunk=128, floor_scale=128, max_length=16_384)
        scaling = RopeScaling(original_length=128)
        config = cls(rope_scaling=scaling, patch_token=2047, **sizes, **ffn, **context)
        return config.replace(**changes)

    @classmethod
    def mini_maverick(cls, **changes) -> Llama4Config:
        """Maverick in small: twice mini's experts in every second layer, and dense layers between.

        What a token uses is equal to mini's to the last parameter; what is stored, nearly so.
        """
        sizes = dict(experts=32, moe_every=2, qk_norm=False, rope_scaling=None)
        return cls.mini(**sizes).replace(**changes)

    @classmethod
    def mini_dense(cls, **changes) -> Llama4Config:
        """mini without experts: one SwiGLU per layer, of the size that a token uses in mini."""
        return cls.mini(moe_at=()).replace(**changes)

    @classmethod
    def nano(cls, **changes) -> Llama4Config:
        """Smaller still: trains in front of the reader's eyes, and in tests."""
        sizes = dict(vocab_size=256, width=64, layers=4, heads=4, kv_heads=2, head_width=16)
        ffn = dict(experts=4, expert_hidden=64, dense_hidden=128, patch_token=255)
        context = dict(chunk=32, floor_scale=32, max_length=4096)
        return cls(rope_scaling=None, **sizes, **ffn, **context).replace(**changes)

    # ------------------------------------------------------------------ in and out
    @classmethod
    def from_hf(cls, source: str | Path | dict) -> Llama4Config:
        """Read a Hugging Face ``config.json`` (a path, its folder, or the dict itself)."""
        from .hf_config import read_hf

        return read_hf(source)

    def to_hf(self) -> dict:
        """The ``config.json`` that transformers opens: text only without vision, else both."""
        from .hf_config import write_hf

        return write_hf(self)

    def parameters(self):
        """Exact parameter counts by component (``ParameterCount``), from the sizes alone."""
        from .count import count_parameters

        return count_parameters(self)

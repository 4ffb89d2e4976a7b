"""The classic mistakes, planted one by one: the comparisons of this suite must see each of them.

A mutant changes one place of the library's source and runs it; beside it stands the comparison that
must notice. Comparisons are with transformers in float64 (an epsilon of 1e-6 makes 7e-6 there, the
missing RoPE scaling 3e-4: invisible to a float32 test at 1e-3), of decoding with transformers' full
forward, and of padded rows with each row alone. Source: spec, sections 16 and 17.
"""

from __future__ import annotations

import functools
import inspect
import sys
import textwrap
from collections.abc import Callable

import pytest
import torch
from transformers.models.llama4 import modeling_llama4

import minillama4 as ml4
from minillama4.checkpoint import hf_name
from minillama4.model import attention, cache, moe, norm, rope, transformer, vision
from tests.reference import (
    TIGHT,
    error,
    hf_logits,
    hf_twin,
    noise,
    place_patches,
    random_images,
    random_tokens,
    small,
    small_multimodal,
)

# ------------------------------------------------------------------ what compares
CASES = {  # name: the model; every one has chunk 8 and is asked for 37 tokens
    "scout": lambda: small(),
    "maverick": lambda: small(1, moe_every=2, qk_norm=False, rope_scaling=None),
    "top-2": lambda: small(2, top_k=2, tied=True),
    "vision": lambda: small_multimodal(3),
}


def inputs(config):
    tokens = random_tokens(config, 2, 37)
    if config.vision is None:
        return tokens, None
    tokens = place_patches(config, tokens, (0, 3), (1, 2), (1, 9))
    return tokens, random_images(config, 3, torch.float64)


@functools.cache
@torch.no_grad()
def reference(case: str):
    """transformers' logits; computed once, before anything is planted."""
    model = CASES[case]()
    return hf_logits(hf_twin(model), *inputs(model.config))


def full(case: str) -> float:
    model = CASES[case]()
    tokens, images = inputs(model.config)
    return error(model(tokens, images=images), reference(case))


def decode() -> float:
    """A prompt of more than a chunk, pieces that stop before, on and behind a border, then ones."""
    model = CASES["scout"]()
    tokens, _ = inputs(model.config)
    memory = ml4.KVCache(model.config)
    sizes = [11, 3, 2, 9, *[1] * 12]
    parts = [model(piece, cache=memory) for piece in tokens.split(sizes, dim=1)]
    return error(torch.cat(parts, dim=1), reference("scout"))


def padding() -> float:
    """A left-padded batch, read and then decoded from, against each row alone."""
    model = CASES["scout"]()
    tokens, _ = inputs(model.config)
    mask = torch.ones(2, 29, dtype=torch.bool)
    mask[1, :12] = False
    memory = ml4.KVCache(model.config)
    read = model(tokens[:, :29], cache=memory, attention_mask=mask)
    more = [model(tokens[:, i : i + 1], cache=memory) for i in range(29, 37)]
    together = torch.cat([read, *more], dim=1)
    return max(
        error(together[0], reference("scout")[0]),
        error(together[1, 12:], short_row()),
    )


@functools.cache
@torch.no_grad()
def short_row():
    model = CASES["scout"]()
    return hf_logits(hf_twin(model), inputs(model.config)[0][1:, 12:])[0]


def frequencies() -> float:
    """Scout's own, against transformers' angles at the end of its context."""
    scout = ml4.Llama4Config.scout()
    plain = 500_000.0 ** -(torch.arange(0, 128, 2, dtype=torch.float64) / 128)
    expected = torch.where(torch.arange(64) < 35, plain, plain / 16)
    found = rope.rope_frequencies(scout.head_width, scout.rope_theta, scout.rope_scaling)
    ratio = found.double() / expected
    return max(0.0, (ratio - 1).abs().max().item() - 1e-6)  # float32


def half_precision() -> float:
    """bf16: the norm rounds first and then multiplies, and the model stays in its dtype."""
    weight, x = noise(64, seed=1, dtype=torch.bfloat16), noise(50, 64, dtype=torch.bfloat16)
    ours = norm.RMSNorm(64, 1e-5).bfloat16()
    theirs = modeling_llama4.Llama4TextRMSNorm(64).bfloat16()
    for module in (ours, theirs):
        module.weight.copy_(weight)
    model = small(dtype=torch.bfloat16)
    try:
        dtype = model(random_tokens(model.config, 1, 20)).dtype
    except RuntimeError:  # "expected the same dtype"
        dtype = None
    return error(ours(x), theirs(x)) + (dtype != torch.bfloat16)


def gradient() -> float:
    """The router's, against transformers'."""
    model = CASES["scout"]()
    twin, (tokens, _) = hf_twin(model), inputs(model.config)
    with torch.enable_grad():
        model.requires_grad_(), twin.requires_grad_()
        model(tokens).square().sum().backward()
        hf_logits(twin, tokens).square().sum().backward()
    ours = model.blocks[0].ffn.router.weight.grad
    theirs = twin.model.layers[0].feed_forward.router.weight.grad
    return error(torch.zeros_like(theirs) if ours is None else ours, theirs)


def names() -> float:
    """Every weight at home: transformers' names and shapes for Scout and Maverick in small."""
    wrong = 0
    for case in CASES:
        model = CASES[case]()
        named, multimodal = dict(model.named_parameters()), model.vision is not None
        ours = {hf_name(name, multimodal): p.shape for name, p in named.items()}
        wrong += ours != hf_names(case)
    return float(wrong)


@functools.cache
def hf_names(case: str):
    return {name: p.shape for name, p in hf_twin(CASES[case]()).named_parameters()}


DETECTORS: dict[str, Callable[[], float]] = {
    **{case: functools.partial(full, case) for case in CASES},
    "decode": decode,
    "padding": padding,
    "frequencies": frequencies,
    "half precision": half_precision,
    "gradient": gradient,
    "names": names,
}
GRADIENT = 1e-9  # backward sums the errors of forward


@torch.no_grad()
def look(detector: str) -> float:
    return DETECTORS[detector]()


# ------------------------------------------------------------------ what is planted
def edit(function, old: str, new: str) -> Callable:
    """A patch that rewrites ``old`` to ``new`` in the source of a function, for all who use it."""

    def plant(patch: pytest.MonkeyPatch) -> None:
        source = textwrap.dedent(inspect.getsource(function))
        assert source.count(old) == 1, (
            f"{function.__qualname__} no longer holds {old!r} once: plant this mutant anew"
        )
        code = compile(source.replace(old, new), function.__qualname__, "exec", dont_inherit=True)
        scope: dict = {}
        exec(code, vars(sys.modules[function.__module__]), scope)
        patch.setattr(function, "__code__", scope[function.__name__].__code__)

    return plant


def layers_of(name: str, rule: Callable[[int], bool]) -> Callable:
    """A patch by which a config's ``nope_layers`` or ``moe_layers`` are those that fit a rule."""
    found = property(lambda config: tuple(i for i in range(config.layers) if rule(i)))
    return lambda patch: patch.setattr(ml4.Llama4Config, name, found)


def attention_with(**fields) -> Callable:
    """A patch by which every Attention is built and then changed: field=function(attention)."""
    build = attention.Attention.__init__

    def rebuilt(self, config, layer):
        build(self, config, layer)
        for name, value in fields.items():
            setattr(self, name, value(self, config))

    return lambda patch: patch.setattr(attention.Attention, "__init__", rebuilt)


def untied(patch: pytest.MonkeyPatch) -> None:
    build = transformer.Llama4.__init__
    patch.setattr(
        transformer.Llama4,
        "__init__",
        lambda self, config: build(self, config.replace(tied=False)),
    )


project, experts = attention.Attention.project, moe.Experts.forward
routed, split = moe.Router.forward, moe.Experts._split
angle, ramp = rope.rotate, rope.scale_frequencies
eye, encode = vision.Vision.forward, vision.Vision.encode
heat, piece = attention.attention_temperature, cache.LayerMemory._attend_piece
SCALED = "tokens[source] * score.flatten()[pair, None]"
OUT = "index_add(0, source, out.to(tokens.dtype))"
SCORED = "index_add(0, source, out * score.flatten()[pair, None])"
PAIRS = "b t h (d two) -> b t h d two"
UNPAIRS = "b t h d two -> b t h (d two)"
SCORES = "torch.sigmoid(at_least_float32(logit))"
QK = "q, k = rms_norm(q, self.eps), rms_norm(k, self.eps)"


def edits(function, *pairs: tuple[str, str]) -> Callable:
    """Several places of one function at once."""
    source = textwrap.dedent(inspect.getsource(function))
    new = functools.reduce(lambda text, pair: text.replace(*pair), pairs, source)
    assert all(source.count(old) == 1 for old, _ in pairs), function.__qualname__
    return edit(function, source, new)


MUTANTS = {  # what is wrong: (who must notice, the patch)
    # ---- mixture of experts
    "score on the expert's output": (
        "scout",
        edits(experts, (SCALED, "tokens[source]"), (OUT, SCORED)),
    ),
    "score dropped": ("scout", edit(experts, SCALED, "tokens[source]")),
    "score applied twice": ("scout", edit(experts, OUT, SCORED)),
    "score squared": ("scout", edit(experts, SCALED, SCALED.replace("score.f", "(score**2).f"))),
    "shared expert scaled too": (
        "scout",
        edit(moe.MoE.forward, "self.shared(tokens)", "self.shared(tokens * score)"),
    ),
    "shared expert missing": (
        "maverick",
        edit(moe.MoE.forward, "self.shared(tokens) + routed", "routed"),
    ),
    "softmax router": (
        "scout",
        edits(
            routed,
            ("self.logits(tokens)", "self.logits(tokens).softmax(-1)"),
            (SCORES, "at_least_float32(logit)"),
        ),
    ),
    "softmax over the chosen": ("top-2", edit(routed, SCORES, "torch.softmax(logit, -1)")),
    "softmax over the one chosen": ("gradient", edit(routed, SCORES, "torch.softmax(logit, -1)")),
    "scores renormalised": (
        "top-2",
        edit(routed, SCORES, SCORES + " / torch.sigmoid(logit).sum()"),
    ),
    "sigmoid before and after": (
        "scout",
        edit(routed, "self.logits(tokens)", "self.logits(tokens).sigmoid()"),
    ),
    "score cut off from the gradient": ("gradient", edit(routed, SCORES, SCORES + ".detach()")),
    "the worst expert": ("scout", edit(routed, "dim=-1)", "dim=-1, largest=False)")),
    "second expert forgotten": (
        "top-2",
        edit(experts, "score.flatten()[pair", "score[:, :1].repeat(1, 2).flatten()[pair"),
    ),
    "gate and up swapped": ("scout", edit(moe.swiglu, "gate, up =", "up, gate =")),
    "gate and up interleaved": (
        "scout",
        edit(
            moe.swiglu,
            "(x @ gate_up).chunk(2, dim=-1)",
            "(x @ gate_up).unflatten(-1, (-1, 2)).unbind(-1)",
        ),
    ),
    "gate and up swapped in dense layers": (
        "maverick",
        edit(
            moe.SwiGLU.forward,
            "F.silu(self.gate(x)) * self.up(x)",
            "F.silu(self.up(x)) * self.gate(x)",
        ),
    ),
    "gelu for silu": ("scout", edit(moe.swiglu, "F.silu", "F.gelu")),
    "down projection transposed": ("scout", edit(moe.swiglu, "@ down", "@ down.mT")),
    "gate_up stored output first": (
        "scout",
        edit(moe.swiglu, "x @ gate_up", "x @ gate_up.reshape(gate_up.shape[::-1]).mT"),
    ),
    "experts in another order": ("scout", edit(split, "gate_up[e]", "gate_up[e - 1]")),
    "experts in the wrong layers": ("names", layers_of("moe_layers", lambda i: i % 2 == 0)),
    # ---- RoPE
    "halves turned, weights not permuted": (
        "scout",
        edits(
            angle,
            (PAIRS, "b t h (two d) -> b t h d two"),
            (UNPAIRS, "b t h d two -> b t h (two d)"),
        ),
    ),
    "turned backwards": (
        "scout",
        edit(
            rope.rotation,
            "torch.polar(torch.ones_like(angle), angle)",
            "torch.polar(torch.ones_like(angle), -angle)",
        ),
    ),
    "no RoPE scaling": (
        "scout",
        edit(ramp, "frequency / scaling.factor, between", "frequency, between"),
    ),
    "no RoPE scaling, by the table": (
        "frequencies",
        edit(ramp, "frequency / scaling.factor, between", "frequency, between"),
    ),
    "factors 8 and 4": (
        "frequencies",
        edit(
            rope.rope_frequencies, "frequency, scaling)", "frequency, RopeScaling(8, 1, 4, 8192))"
        ),
    ),
    "factor 8": (
        "scout",
        edit(ramp, "frequency / scaling.factor, between", "frequency / 8, between"),
    ),
    "every frequency scaled": (
        "frequencies",
        edit(ramp, "torch.where(fast, frequency, between)", "frequency / scaling.factor"),
    ),
    "exponents i / d": (
        "scout",
        edit(
            rope.rope_frequencies,
            "0, head_width, 2, device=device).float() /",
            "head_width // 2, device=device).float() /",
        ),
    ),
    "positions from 1 in keys": (
        "scout",
        edit(project, "rotate(k, place.turn)", "rotate(k, place.turn.roll(-1, 1))"),
    ),
    "RoPE everywhere": ("scout", edit(project, "if self.rope:", "if True:")),
    "NoPE at i % 4 == 0": ("scout", layers_of("nope_layers", lambda i: i % 4 == 0)),
    "values turned too": (
        "scout",
        edit(project, "if self.qk_norm:", "v = rotate(v, place.turn)\n    if self.qk_norm:"),
    ),
    # ---- chunks
    "global attention in RoPE layers": ("scout", attention_with(chunk=lambda a, c: None)),
    "chunks on the wrong layers": (
        "scout",
        attention_with(chunk=lambda a, c: None if a.rope else c.chunk),
    ),
    "chunks on all layers": ("scout", attention_with(chunk=lambda a, c: c.chunk)),
    "a sliding window in place of chunks": (
        "scout",
        edit(
            attention.attend_chunks,
            "b, t = q.shape[0], q.shape[2]",
            "b, t, back = q.shape[0], q.shape[2], torch.arange(q.shape[2])"
            "\n    back = back[:, None] - back"
            "\n    seen = (back >= 0) & (back < chunk)"
            "\n    return F.scaled_dot_product_attention(q, k, v, attn_mask=seen, enable_gqa=True)",
        ),
    ),
    "one token too much in a chunk": (
        "scout",
        attention_with(chunk=lambda a, c: a.chunk and a.chunk + 1),
    ),
    "the last piece of a chunk sees everything": (
        "scout",
        edit(
            attention.attend_chunks,
            "if whole == t:",
            "return attend_causal(q, k, v)\n    if whole == t:",
        ),
    ),
    "not causal": ("scout", edit(attention.attend_causal, "is_causal=True", "is_causal=False")),
    # ---- QK-norm, norms
    "no QK-norm": ("scout", attention_with(qk_norm=lambda a, c: False)),
    "QK-norm on Maverick": ("maverick", attention_with(qk_norm=lambda a, c: a.rope)),
    "QK-norm also on NoPE layers": ("scout", attention_with(qk_norm=lambda a, c: c.qk_norm)),
    "QK-norm across heads": (
        "scout",
        edit(project, QK, "q, k = (rms_norm(u.flatten(2), self.eps).view_as(u) for u in (q, k))"),
    ),
    "QK-norm of queries alone": ("scout", edit(project, QK, "q = rms_norm(q, self.eps)")),
    "QK-norm of length one": (
        "scout",
        edit(
            project,
            QK,
            "q, k = (torch.nn.functional.normalize(u, dim=-1) for u in (q, k))",
        ),
    ),
    "sum for mean": ("scout", edit(norm.rms_norm, ".mean(-1", ".sum(-1")),
    "eps 1e-6 in QK-norm": ("scout", edit(project, QK, QK.replace("self.eps", "1e-6"))),
    "eps 1e-6 in all norms": ("maverick", edit(norm.rms_norm, "+ eps)", "+ 1e-6)")),
    "eps outside the root": (
        "maverick",
        edit(
            norm.rms_norm,
            "torch.rsqrt(wide.square().mean(-1, keepdim=True) + eps)",
            "(1 / (wide.square().mean(-1, keepdim=True).sqrt() + eps))",
        ),
    ),
    "mean taken away first": (
        "scout",
        edit(
            norm.rms_norm,
            "wide = at_least_float32(x)",
            "wide = at_least_float32(x)\n    wide = wide - wide.mean(-1, keepdim=True)",
        ),
    ),
    "norm weight 1 + w": (
        "scout",
        edit(norm.RMSNorm.forward, "self.weight *", "(1 + self.weight) *"),
    ),
    "norm weight before the cast": (
        "half precision",
        edit(
            norm.RMSNorm.forward,
            "self.weight * rms_norm(x, self.eps)",
            "(self.weight.float() * rms_norm(x.float(), self.eps)).to(x.dtype)",
        ),
    ),
    # ---- attention
    "KV heads in turn": (
        "scout",
        edit(
            attention.attend_causal,
            "q, k, v, is_causal=True, enable_gqa=True",
            "q, *(x.repeat(1, q.shape[1] // x.shape[1], 1, 1) for x in (k, v)), is_causal=True",
        ),
    ),
    "scores not divided": (
        "scout",
        edit(attention.attend_causal, "is_causal=True", "is_causal=True, scale=1.0"),
    ),
    "FFN of x, not of h": (
        "scout",
        edits(
            transformer.Block.forward,
            ("x = x +", "h = x\n    x = x +"),
            ("self.ffn_norm(x)", "self.ffn_norm(h)"),
        ),
    ),
    "no final norm": ("scout", edit(transformer.Llama4.forward, "self.norm(x)", "x")),
    "embeddings scaled": (
        "scout",
        edit(transformer.Llama4.forward, "x = self.embed(tokens)", "x = self.embed(tokens) * 4"),
    ),
    "tied head forgotten": ("names", untied),
    # ---- temperature
    "no temperature": ("scout", attention_with(temperature=lambda a, c: False)),
    "temperature on RoPE layers too": ("scout", attention_with(temperature=lambda a, c: True)),
    "temperature at p, not p + 1": (
        "scout",
        edit(heat, "positions.float() + 1", "positions.float()"),
    ),
    "temperature without the floor": (
        "scout",
        edit(
            heat,
            "torch.floor((positions.float() + 1) / floor_scale)",
            "(positions.float() + 1) / floor_scale",
        ),
    ),
    "temperature ln(f), not ln(f + 1)": (
        "scout",
        edit(heat, "torch.log1p(steps)", "torch.log(steps.clamp_min(1))"),
    ),
    "temperature on keys as well": (
        "scout",
        edit(
            project,
            "return tuple",
            "if self.temperature: k = (k * place.temperature[..., None, None]).to(k.dtype)"
            "\n    return tuple",
        ),
    ),
    "temperature divides": (
        "scout",
        edit(project, "q * place.temperature", "q / place.temperature"),
    ),
    "temperature in float32, not cast back": (
        "half precision",
        edit(
            project,
            "(q * place.temperature[..., None, None]).to(q.dtype)",
            "q.float() * place.temperature[..., None, None]",
        ),
    ),
    # ---- decoding and padding
    "decoding forgets the chunk border": (
        "decode",
        edit(cache.LayerMemory.__init__, "self.chunk = chunk", "self.chunk = chunk = None"),
    ),
    "a new chunk sees what the last one left": (
        "decode",
        edit(
            piece,
            "mask = None",
            "mask = None\n    if z - a == 1:\n        keys, values = self.keys, self.values",
        ),
    ),
    "decoding steps over the border unseen": (
        "decode",
        edit(cache.LayerMemory._borders, "if self.chunk is None:", "if True:"),
    ),
    "cache off by one slot": (
        "decode",
        edit(cache.LayerMemory.slot, "position % self.chunk", "(position + 1) % self.chunk"),
    ),
    "positions start again at each call": (
        "decode",
        edit(
            transformer.Llama4.forward,
            "locate(self.config, start,",
            "locate(self.config, start if not any(start) else (1,) * len(start),",
        ),
    ),
    "a piece is not causal": (
        "decode",
        edit(piece, "if not (place.uniform and z - a == 1):", "if False:"),
    ),
    "a long prompt leaves its start, not its end": (
        "decode",
        edit(
            cache.LayerMemory._remember_start,
            "k[:, :, first:], v[:, :, first:]",
            "k[:, :, : t - first], v[:, :, : t - first]",
        ),
    ),
    "values kept one slot late": (
        "decode",
        edit(
            cache.LayerMemory._write, "begin : begin + t] = v", "begin : begin + t] = v.roll(1, 2)"
        ),
    ),
    "temperature by slot, not by position": (
        "padding",
        edit(
            attention.locate,
            "attention_temperature(positions",
            "attention_temperature(positions.amax(0, keepdim=True)",
        ),
    ),
    "RoPE and chunks by slot": (
        "padding",
        edit(transformer._padding_last, "if mask is None or bool(mask.all()):", "if True:"),
    ),
    "padding overwrites keys": (
        "padding",
        edit(
            transformer.Llama4.forward,
            "start, tokens.shape[1], real,",
            "start, tokens.shape[1], None,",
        ),
    ),
    # ---- vision
    "vision: row before column": (
        "vision",
        edit(rope.vision_rotation, "[column, row]", "[row, column]"),
    ),
    "vision: coordinates from 0": (
        "vision",
        edit(rope.vision_rotation, "torch.arange(1, config.grid + 1,", "torch.arange(config.grid,"),
    ),
    "vision: class token turned": (
        "vision",
        edit(
            rope.vision_rotation,
            "still = torch.ones(1, pairs, dtype=turn.dtype, device=device)",
            "still = torch.cat([turn[:1], turn[:1]], dim=-1)",
        ),
    ),
    "vision: class token first": (
        "vision",
        edits(encode, ("[x, last]", "[last, x]"), ("[:, :-1]", "[:, 1:]")),
    ),
    "vision: patches by row, column, channel": (
        "vision",
        edit(encode, "i (h w) (c y x)", "i (h w) (y x c)"),
    ),
    "vision: patches by column": ("vision", edit(encode, "-> i (h w)", "-> i (w h)")),
    "vision: no second GELU": (
        "vision",
        edit(
            eye,
            "F.gelu(self.adapter_out(F.gelu(self.adapter_in(merged))))",
            "self.adapter_out(F.gelu(self.adapter_in(merged)))",
        ),
    ),
    "vision: GELU by tanh": (
        "vision",
        edit(
            vision.VisionBlock.forward,
            "F.gelu(self.up(self.mlp_norm(x)))",
            "F.gelu(self.up(self.mlp_norm(x)), approximate='tanh')",
        ),
    ),
    "vision: pixel shuffle by column": (
        "vision",
        edit(vision.pixel_shuffle, "(y x c)", "(x y c)"),
    ),
    "vision: pixel shuffle, channels outside": (
        "vision",
        edit(vision.pixel_shuffle, "(y x c)", "(c y x)"),
    ),
    "vision: pixel shuffle of strips": (
        "vision",
        edit(vision.pixel_shuffle, "i (h y w x) c", "i (y h x w) c"),
    ),
    "vision: causal": (
        "vision",
        edit(
            vision.VisionAttention.forward,
            "(q, k, v)\n    return",
            "(q, k, v, is_causal=True)\n    return",
        ),
    ),
    "vision: no last norm": ("vision", edit(encode, "self.norm_after(x)", "x")),
    "vision: tiles in reverse": (
        "vision",
        edit(transformer.Llama4._fuse, "self.vision(images)", "self.vision(images.flip(0))"),
    ),
    "vision: added to the embedding": (
        "vision",
        edit(
            transformer.Llama4._fuse,
            "return x.masked_scatter(where, self.vision(images).to(x.dtype))",
            "return x + torch.zeros_like(x).masked_scatter(where, self.vision(images).to(x.dtype))",
        ),
    ),
}

EQUIVALENT = {  # no mistakes: the same written otherwise, up to the rounding of float32 angles
    "QK-norm before RoPE": (
        "scout",
        1e-6,
        edits(
            project,
            ("if self.qk_norm:", "if False:"),
            ("if self.rope:", "if self.qk_norm:\n        " + QK + "\n    if self.rope:"),
        ),
    ),
    "a ramp of 0 / 0 that nobody reads": (  # transformers' way
        "frequencies",
        TIGHT,
        edit(ramp, "scaling.low == scaling.high", "False"),
    ),
    "positions counted within the chunk": (
        "scout",
        1e-5,
        edit(attention.locate, "rotation(positions,", "rotation(positions % (config.chunk or 1),"),
    ),
    "halves turned, weights permuted": (
        "scout",
        TIGHT,
        edits(
            project,
            (
                "if self.rope:",
                "order = torch.arange(q.shape[-1]).view(-1, 2).T.flatten()\n    if self.rope:",
            ),
            (
                "q, k = rotate(q, place.turn), rotate(k, place.turn)",
                "q, k = (rotate(u, place.turn)[..., order] for u in (q, k))",
            ),
        ),
    ),
}


# ------------------------------------------------------------------ the tests
@pytest.fixture(autouse=True)
def references():
    """All that is compared with, made before anything is planted."""
    short_row()
    for case in CASES:
        reference(case), hf_names(case)


@pytest.mark.parametrize("detector", DETECTORS)
def test_no_false_alarm(detector):
    assert look(detector) < (GRADIENT if detector == "gradient" else TIGHT)


@pytest.mark.parametrize("mistake", MUTANTS)
def test_the_mistake_is_seen(mistake, monkeypatch):
    detector, plant = MUTANTS[mistake]
    plant(monkeypatch)
    found = look(detector)
    print(f"{found:.1e}  {mistake}")  # pytest -rP shows how far each one leads astray
    assert 1e-6 < found < float("inf")


@pytest.mark.parametrize("change", EQUIVALENT)
def test_what_is_no_mistake_is_let_through(change, monkeypatch):
    detector, limit, plant = EQUIVALENT[change]
    plant(monkeypatch)
    assert look(detector) < limit

"""Decoding as one fixed program: the same operations on the same memory for every token.

    decoder = StaticDecoder(model, rows=1, length=8192)    # all memory is taken here
    logits = decoder.read(prompt)                          # (b, t) -> (b, v)
    logits = decoder.step(logits.argmax(-1))               # (b,) -> (b, v), the same program again
    tokens = decoder.write(token, 1000)                    # greedy; nothing waits for the CPU
    rows = ml4.complete(decoder, prompts, 1000, top_p=0.9) # as with a model: drawn, stopped

Nothing in a step depends on numbers that the CPU would have to know: positions are a tensor, a
layer's cache has all its slots from the start (a chunk for RoPE layers), and which of them are seen
is computed. So the step can be compiled into few kernels, and on a GPU recorded once as a CUDA
graph and replayed: launching some two thousand small kernels one by one would take longer than
reading seventeen billion parameters.

On a CPU the compiled step is C++ (torch.compile needs a compiler there, and a minute).
"""

from __future__ import annotations

from types import FunctionType, MethodType

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..model import KVCache, Llama4
from ..model.attention import attention_temperature
from ..model.cache import LayerMemory
from ..model.moe import MoE
from ..model.norm import at_least_float32, rms_norm
from ..model.rope import rope_frequencies
from ..model.transformer import Block
from .decoder import flat, worth_copying
from .static_products import join, make_experts

HOW = ("eager", "compiled", "graph")
PIECE = 32_768  # tokens of a prompt that are read at a time; a first piece needs no mask


class StaticLayer:
    """A block's weights, joined where they read the same, and its memory."""

    def __init__(self, block: Block, memory: LayerMemory, kernels: bool, copy: bool):
        a, ffn = block.attention, block.ffn
        self.rope, self.qk_norm, self.temperature = a.rope, a.qk_norm, a.temperature
        self.attention_norm, self.ffn_norm = block.attention_norm.weight, block.ffn_norm.weight
        self.qkv, self.o = join([a.q, a.k, a.v], kernels, copy), join([a.o], kernels, copy)
        self.keys, self.values, self.chunk = memory.keys, memory.values, memory.chunk
        mlp = ffn.shared if isinstance(ffn, MoE) else ffn
        self.router = ffn.router if isinstance(ffn, MoE) else None
        self.experts = make_experts(ffn, kernels) if isinstance(ffn, MoE) else None
        self.adds_shared = self.experts is not None and self.experts.adds_shared
        if not self.adds_shared:
            self.gate_up = join([mlp.gate, mlp.up], kernels, copy)
            self.down = join([mlp.down], kernels, copy)


class StaticDecoder:
    """Reads prompts through the model, and then one token a row by a fixed program.

    rows: texts side by side; length: the most tokens of each, prompt included. how: "eager",
    "compiled" (torch.compile) or "graph" (compiled and recorded as a CUDA graph; the default on a
    GPU). kernels: use the Triton kernels; by default on a GPU in 16 bits.
    It may hold copies of the weights: after training, make a new one.
    ValueError for a model that was changed, or a length beyond its max_length.
    """

    @torch.no_grad()
    def __init__(self, model: Llama4, rows: int, length: int, how: str | None = None, kernels=None):
        c, weight = model.config, model.embed.weight
        how = how or ("graph" if weight.is_cuda else "eager")
        _check(model, rows, length, how)
        if kernels is None:
            kernels = weight.is_cuda and weight.dtype in (torch.bfloat16, torch.float16)
        self.model, self.config, self.kernels, self.how = model, c, kernels, how
        self.rows, self.length = rows, length
        self.cache = KVCache(c)
        self.cache.reserve(rows, length, weight.dtype, weight.device)
        memories = zip(model.blocks, self.cache.layers, strict=True)
        copy = worth_copying(model)
        self.layers = [StaticLayer(block, memory, kernels, copy) for block, memory in memories]
        self.head = join([model.head], kernels, copy)
        self.frequency = rope_frequencies(c.head_width, c.rope_theta, c.rope_scaling, weight.device)
        self.row = torch.arange(rows, device=weight.device)
        self.token = torch.zeros(rows, dtype=torch.int64, device=weight.device)
        self.position = torch.zeros(rows, dtype=torch.int64, device=weight.device)
        self._run, self._graph, self._logits = None, None, None
        self.texts = 0  # read so far: who writes one can see that another was begun

    # ------------------------------------------------------------------ what is called
    @torch.inference_mode()
    def read(self, tokens: Tensor, mask: Tensor | None = None, images=None) -> Tensor:
        """A new text: tokens (b, t) -> logits (b, v) of what follows.

        mask (b, t) bool: which tokens are no padding; images as for the model.
        """
        if tokens.ndim != 2 or tokens.shape[0] != self.rows or tokens.shape[1] > self.length:
            raise ValueError(
                f"tokens must have shape ({self.rows}, up to {self.length}), as this decoder was "
                f"made, not {tuple(tokens.shape)}."
            )
        self.cache.lengths, self.cache._halfway = None, False
        self.texts += 1
        more = dict(cache=self.cache, last_only=True)
        if mask is None and images is None:
            for piece in tokens.split(PIECE, dim=1):
                logits = self.model(piece, **more)
        else:
            logits = self.model(tokens, attention_mask=mask, images=images, **more)
        self.position.copy_(torch.tensor(self.cache.lengths))
        return logits[:, 0]

    @torch.inference_mode()
    def step(self, token: Tensor) -> Tensor:
        """token (b,) -> logits (b, v), valid until the next step."""
        self._make_room(1)
        self.token.copy_(token)
        self._advance()
        return self._logits

    @torch.inference_mode()
    def write(self, token: Tensor, count: int) -> Tensor:
        """Greedy: feed ``token`` (b,) and then each most likely one; (b, count)."""
        self._make_room(count)
        self.token.copy_(token)
        made = torch.empty(self.rows, count, dtype=torch.int64, device=self.token.device)
        for i in range(count):
            self._advance()
            made[:, i] = self.token  # the program puts the most likely token there
        return made

    def pretend(self, length: int) -> None:
        """As if ``length`` tokens had been read, with a cache that holds anything: to measure."""
        if not 0 <= length <= self.length:
            raise ValueError(f"This decoder was made for {self.length:,} tokens, not {length:,}.")
        self.cache.lengths, self.cache._halfway = (length,) * self.rows, False
        self.texts += 1
        self.position.fill_(length)

    def _make_room(self, count: int) -> None:
        if self.cache.lengths is None:
            raise RuntimeError("Nothing has been read yet: call read(prompt) first.")
        longest = max(self.cache.lengths)
        if longest + count > self.length:
            raise ValueError(
                f"No room for {count:,} more tokens after {longest:,}: this decoder was made for "
                f"{self.length:,}."
            )

    def _advance(self) -> None:
        """One step: token and position in, logits, next token and position out."""
        if self._run is None:
            self._prepare()
        if self._graph is not None:
            self._graph.replay()
        else:
            self._logits = self._run()
        self.cache.advance_by_one()

    def _prepare(self) -> None:
        """Compile, and record; token and position are afterwards as they were."""
        import torch._dynamo

        self._run = self.program
        token, position = self.token.clone(), self.position.clone()
        # an expert's number, read from a tensor, may choose which weights a CPU reads
        with torch._dynamo.config.patch(capture_scalar_outputs=True, recompile_limit=64):
            if self.how == "compiled":
                # the calls of the kernels too: a quarter less time at mini size
                options = {"cpp_wrapper": True, "guard_filter_fn": _tensors_alone}
                own = _own_code(self.program)
                whole = torch.compile(own, fullgraph=True, dynamic=False, options=options)
                self._run = whole
                self._run()
            elif self.how == "graph":
                self._compile_pieces()
                self._record()
        self.token.copy_(token), self.position.copy_(position)

    def _compile_pieces(self) -> None:
        """What stands between the large products becomes few kernels. All layers of a kind share
        them, so this takes seconds; a recorded graph does not mind that there are many calls."""
        names = "before", "after", "end"
        for name in names:
            piece = torch.compile(getattr(self, name), fullgraph=True, dynamic=False)
            setattr(self, name, piece)

    def _record(self) -> None:
        """Warm up on a stream of its own, as recording asks; then record."""
        stream, position = torch.cuda.Stream(), self.position.clone()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(3):
                self._run()
                self.position.copy_(position)  # each writes the same slot again
        torch.cuda.current_stream().wait_stream(stream)
        self._graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self._graph):
            self._logits = self._run()

    # ------------------------------------------------------------------ the program
    def program(self) -> Tensor:
        """Logits (b, v) for ``self.token`` at ``self.position``, both of which move on."""
        c, position = self.config, self.position
        angle = position[:, None].float() * self.frequency  # b d/2
        turn = angle.cos()[:, None, :, None], angle.sin()[:, None, :, None]
        heat = attention_temperature(position, c.floor_scale, c.attn_scale)[:, None, None]
        x = F.embedding(self.token, self.model.embed.weight)
        for layer in self.layers:
            q, k, v = self.before(layer, x, turn, heat)
            x = self.after(layer, x, self.look(layer, q, k, v))
        logits = self.end(x)
        self.token.copy_(logits.argmax(-1))
        self.position.add_(1)
        return logits

    def before(self, layer: StaticLayer, x: Tensor, turn, heat: Tensor) -> tuple[Tensor, ...]:
        """x (b, m) -> q (b, h, d), k and v (b, k, d), ready to be compared."""
        c = self.config
        x = layer.attention_norm * rms_norm(x, c.norm_eps)
        qkv = layer.qkv(x).view(self.rows, -1, c.head_width)
        qk, v = qkv[:, : c.heads + c.kv_heads], qkv[:, c.heads + c.kv_heads :]
        if layer.rope:
            qk = rotate(qk, *turn)
        if layer.qk_norm:
            qk = rms_norm(qk, c.norm_eps)
        q, k = qk[:, : c.heads], qk[:, c.heads :]
        return (q * heat).to(x.dtype) if layer.temperature else q, k, v

    def look(self, layer: StaticLayer, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Remember k and v, and attend to all that may be seen; (b, h, d)."""
        slot = self.position if layer.chunk is None else self.position % layer.chunk
        layer.keys[self.row, :, slot], layer.values[self.row, :, slot] = k, v
        if self.kernels and self.config.head_width in (16, 32, 64, 128, 256):
            from .gpu_ops import decode_attention

            return decode_attention(q.contiguous(), layer.keys, layer.values, slot)
        return attend_masked(q, layer.keys, layer.values, slot)

    def after(self, layer: StaticLayer, x: Tensor, seen: Tensor) -> Tensor:
        """What attention has read, then the experts; (b, m)."""
        x = x + layer.o(seen.reshape(self.rows, -1))
        y = layer.ffn_norm * rms_norm(x, self.config.norm_eps)
        if not layer.adds_shared:  # shared expert or dense layer; else the experts' kernel has it
            gate, up = layer.gate_up(y).chunk(2, -1)
            x = x + layer.down(F.silu(gate) * up)
        if layer.experts is not None:
            x = x + layer.experts(y, *layer.router.forward(y))
        return x

    def end(self, x: Tensor) -> Tensor:
        """x (b, m) -> logits (b, v)."""
        return self.head(self.model.norm.weight * rms_norm(x, self.config.norm_eps))


def _tensors_alone(guards) -> list[bool]:
    """What a compiled step still asks of its decoder each time: that tensors have their types and
    shapes, and the threads their number. Nothing else can change, and asking everything takes a
    seventh of a mini model's step."""
    return [guard.guard_type in ("TENSOR_MATCH", "GLOBAL_STATE") for guard in guards]


def _own_code(method: MethodType) -> MethodType:
    """The same with code of its own. Compiled programs are found by the code they were made of, and
    the questions left out would have told one decoder's from another's."""
    code = method.__func__.__code__.replace()
    return MethodType(FunctionType(code, method.__func__.__globals__), method.__self__)


def rotate(x: Tensor, cosine: Tensor, sine: Tensor) -> Tensor:
    """``model.rope.rotate`` without complex numbers, which compilers do not know."""
    a, b = at_least_float32(x).unflatten(-1, (-1, 2)).split(1, -1)
    return torch.cat([a * cosine - b * sine, a * sine + b * cosine], -1).flatten(-2).to(x.dtype)


def attend_masked(q: Tensor, keys: Tensor, values: Tensor, last: Tensor) -> Tensor:
    """q (b, h, d) over slots 0 to ``last`` (b,) of keys and values (b, k, s, d); (b, h, d)."""
    b, kv, s, d = keys.shape
    seen = torch.arange(s, device=q.device) <= last[:, None]
    score = torch.matmul(q.reshape(b, kv, -1, d), keys.mT) * d**-0.5
    score = score.masked_fill(~seen[:, None, None], float("-inf")).softmax(-1)
    return torch.matmul(score, values).reshape(b, -1, d)


def _check(model: nn.Module, rows: int, length: int, how: str) -> None:
    if not flat(model):
        raise ValueError(
            "This model has parts that a StaticDecoder does not know, or hooks that watch it."
        )
    if how not in HOW or (how == "graph" and not model.embed.weight.is_cuda):
        raise ValueError(f"how = {how!r} is none of eager, compiled or, on a GPU alone, graph.")
    if rows < 1 or not 1 <= length <= model.config.max_length:
        raise ValueError(
            f"rows = {rows} and length = {length:,} must be at least 1, and length at most the "
            f"model's max_length of {model.config.max_length:,}."
        )

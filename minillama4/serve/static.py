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
PIECES = "before", "after", "end"  # of a step, between its large products
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
    It holds the weights as they were, joined or copied: after training, loading or quantising, make
    a new one (``read`` asks for it). ``copy`` and ``pickle`` leave out what was compiled.
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
        self.moves = 0  # readings and steps so far: who writes a text can see another's
        self._made_of = _stamps(model)

    # ------------------------------------------------------------------ what is called
    @torch.inference_mode()
    def read(self, tokens: Tensor, mask: Tensor | None = None, images=None) -> Tensor:
        """A new text: tokens (b, t) -> logits (b, v) of what follows.

        mask (b, t) bool: which tokens are no padding; images as for the model.
        ValueError for tokens of another shape, or a model that was changed since.
        """
        self._check_text(tokens, mask)
        self._forget()
        for memory in self.cache.layers:  # a hidden value counts 0 times, and 0 · NaN is NaN:
            memory.values.zero_()  # a text that failed must leave none
        more = dict(cache=self.cache, last_only=True)
        try:
            if mask is None and images is None:
                for piece in tokens.split(PIECE, dim=1):
                    logits = self.model(piece, **more)
            else:
                logits = self.model(tokens, attention_mask=mask, images=images, **more)
        except BaseException:
            self._forget()  # half a text is none
            raise
        self.position.copy_(torch.tensor(self.cache.lengths))
        return logits[:, 0]

    @torch.inference_mode()
    def step(self, token: Tensor) -> Tensor:
        """token (b,) -> logits (b, v), valid until the next step."""
        self._make_room(1, token)
        self.token.copy_(token)
        self._advance()
        return self._logits

    @torch.inference_mode()
    def write(self, token: Tensor, count: int) -> Tensor:
        """Greedy: feed ``token`` (b,) and then each most likely one; (b, count)."""
        self._make_room(count, token)
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
        self._forget()
        self.cache.lengths = (length,) * self.rows
        self.position.fill_(length)

    def __getstate__(self) -> dict:
        """What was compiled or recorded works on this decoder's memory, and on no other."""
        pieces = dict.fromkeys(("_run", "_graph", "_logits"))
        return {k: v for k, v in self.__dict__.items() if k not in PIECES} | pieces

    def __setstate__(self, state: dict) -> None:
        self.__dict__.update(state)
        self._made_of = _stamps(self.model)

    def _forget(self) -> None:
        """As if nothing had been read."""
        self.cache.lengths, self.cache._halfway = None, False
        self.moves += 1

    def _check_text(self, tokens: Tensor, mask: Tensor | None) -> None:
        if not flat(self.model) or _stamps(self.model) != self._made_of:
            raise ValueError(
                "The model was changed, or is watched by hooks, since this StaticDecoder was made: "
                "make a new one, or call the model itself while it is being watched or steered."
            )
        shape = getattr(tokens, "shape", ())
        fits = len(shape) == 2 and shape[0] == self.rows
        if not fits or (shape[1] if mask is None else mask.sum(1).max()) > self.length:
            raise ValueError(
                f"tokens must be a tensor of shape ({self.rows}, up to {self.length}), as this "
                f"decoder was made, not {tuple(shape) or type(tokens).__name__}."
            )

    def _make_room(self, count: int, token: Tensor) -> None:
        if self.cache.lengths is None:
            raise RuntimeError("Nothing has been read yet: call read(prompt) first.")
        if token.shape != self.token.shape:
            shape = tuple(token.shape)
            raise ValueError(f"token must have shape ({self.rows},), one a row, not {shape}.")
        if not token.is_cuda and not 0 <= token.min() <= token.max() < self.config.vocab_size:
            most = self.config.vocab_size - 1
            raise IndexError(f"Token ids are 0 to {most:,} here, not {token.tolist()}.")
        longest = max(self.cache.lengths)
        if longest + count > self.length:
            raise ValueError(
                f"No room for {count:,} more tokens after {longest:,}: this decoder was made for "
                f"{self.length:,}."
            )
        self.moves += 1

    def _advance(self) -> None:
        """One step: token and position in, logits, next token and position out."""
        if self._run is None:
            self._prepare()
        if self._graph is not None:
            self._graph.replay()
        else:
            self._logits = self.program()
        self.cache.advance_by_one()

    def _prepare(self) -> None:
        """Compile, and record; token and position are afterwards as they were."""
        import torch._dynamo

        run = self.program
        token, position = self.token.clone(), self.position.clone()
        # an expert's number, read from a tensor, may choose which weights a CPU reads
        with torch._dynamo.config.patch(capture_scalar_outputs=True, recompile_limit=64):
            if self.how == "compiled":
                # the calls of the kernels too: a quarter less time at mini size
                options = {"cpp_wrapper": True, "guard_filter_fn": _tensors_alone}
                own = _own_code(self.program)
                run = torch.compile(own, fullgraph=True, dynamic=False, options=options)
                run()
            elif self.how == "graph":
                self._compile_pieces()
                self._record()
        self._run = run
        self.token.copy_(token), self.position.copy_(position)

    def _compile_pieces(self) -> None:
        """What stands between the large products becomes few kernels. All layers of a kind share
        them, so this takes seconds; a recorded graph does not mind that there are many calls."""
        for name in PIECES:
            piece = torch.compile(getattr(self, name), fullgraph=True, dynamic=False)
            setattr(self, name, piece)

    def _record(self) -> None:
        """Warm up on a stream of its own, as recording asks; then record."""
        stream, position = torch.cuda.Stream(), self.position.clone()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(3):
                self.program()
                self.position.copy_(position)  # each writes the same slot again
        torch.cuda.current_stream().wait_stream(stream)
        self._graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self._graph):
            self._logits = self.program()

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


def _stamps(model: Llama4) -> list[tuple]:
    """Which tensors these are, and how often each was written to."""
    tensors = [*model.parameters(), *model.buffers()]
    return [(id(t), None if t.is_inference() else t._version) for t in tensors]


def _tensors_alone(guards) -> list[bool]:
    """What a compiled step still asks each time: whether tensors have their types and shapes, and
    torch its settings. Nothing else can change; asking it takes a seventh of a mini model's step.
    """
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
    whole = isinstance(rows, int) and isinstance(length, int)
    if not whole or rows < 1 or not 1 <= length <= model.config.max_length:
        raise ValueError(
            f"rows = {rows} and length = {length:,} must be whole numbers from 1 on, and length at "
            f"most the model's max_length of {model.config.max_length:,}."
        )

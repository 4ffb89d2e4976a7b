"""Decoding as one fixed program: the same operations on the same memory for every token.

    decoder = StaticDecoder(model, rows=1, length=8192)    # all memory is taken here
    logits = decoder.read(prompt)                          # (b, t) -> (b, v)
    logits = decoder.step(logits.argmax(-1))               # (b,) -> (b, v), the same program again
    tokens = decoder.write(token, 1000)                    # greedy; nothing waits for the CPU
    rows = ml4.complete(decoder, prompts, 1000, top_p=0.9) # as with a model: drawn, stopped

Nothing in a step (``static_program.py``) depends on numbers that the CPU would have to know. So it
can be compiled into few kernels, and on a GPU recorded once as a CUDA graph and replayed: launching
some two thousand small kernels one by one would take longer than reading seventeen billion
parameters.

On a CPU the compiled step is C++ (torch.compile needs a compiler there, and a minute).
"""

from __future__ import annotations

import weakref
from collections.abc import Callable
from types import FunctionType

import torch
from torch import Tensor, nn

from ..model import Llama4
from .decoder import flat
from .static_program import StaticProgram

HOW = ("eager", "compiled", "graph")
PIECES = "before", "after", "end"  # of a step, between its large products
PIECE = 32_768  # tokens of a prompt that are read at a time; a first piece needs no mask


class StaticDecoder(StaticProgram):
    """Reads prompts through the model, and then one token a row by a fixed program.

    rows: texts side by side; length: the most tokens of each, prompt included.
    how: "eager", "compiled" (torch.compile) or "graph" (compiled and recorded as a CUDA graph; the
    default on a GPU). kernels: use the Triton kernels; by default on a GPU in 16 bits.
    It holds the weights as they were, joined or copied: after training, loading or quantising, make
    a new one (``read`` asks for it). ``copy`` and ``pickle`` leave out what was compiled.
    ValueError for a model that was changed, or a length beyond its max_length.
    """

    def __init__(self, model: Llama4, rows: int, length: int, how: str | None = None, kernels=None):
        weight = model.embed.weight
        how = how or ("graph" if weight.is_cuda else "eager")
        _check(model, rows, length, how)
        if kernels is None:
            kernels = weight.is_cuda and weight.dtype in (torch.bfloat16, torch.float16)
        super().__init__(model, rows, length, kernels)
        self.how, self._run, self._graph, self._logits = how, None, None, None
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
        self._begin(1, token)
        self.token.copy_(token)
        self._advance()
        return self._logits

    @torch.inference_mode()
    def write(self, token: Tensor, count: int) -> Tensor:
        """Greedy: feed ``token`` (b,) and then each most likely one; (b, count)."""
        self._begin(count, token)
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

    def _begin(self, count: int, token: Tensor) -> None:
        """Before ``count`` steps from token (b,): check both, and note that the decoder moves."""
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
            self._logits = self._run()
        self.cache.advance_by_one()

    def _prepare(self) -> None:
        """Compile, and record; token and position are afterwards as they were."""
        import torch._dynamo

        run = bound(type(self).program, self)
        token, position = self.token.clone(), self.position.clone()
        # an expert's number, read from a tensor, may choose which weights a CPU reads
        with torch._dynamo.config.patch(capture_scalar_outputs=True, recompile_limit=64):
            if self.how == "compiled":
                # the calls of the kernels too: a quarter less time at mini size
                options = {"cpp_wrapper": True, "guard_filter_fn": _tensors_alone}
                own = _own_code(type(self).program)
                own = torch.compile(own, fullgraph=True, dynamic=False, options=options)
                run = bound(own, self)
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
            piece = torch.compile(getattr(type(self), name), fullgraph=True, dynamic=False)
            setattr(self, name, bound(piece, self))

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


def _stamps(model: Llama4) -> list[tuple]:
    """Which tensors these are, and how often each was written to."""
    tensors = [*model.parameters(), *model.buffers()]
    return [(id(t), None if t.is_inference() else t._version) for t in tensors]


def _tensors_alone(guards) -> list[bool]:
    """What a compiled step still asks each time: whether tensors have their types and shapes, and
    torch its settings. Nothing else can change; asking it takes a tenth of a mini model's step.
    """
    return [guard.guard_type in ("TENSOR_MATCH", "GLOBAL_STATE") for guard in guards]


def _own_code(function: FunctionType) -> FunctionType:
    """The same with code of its own. Compiled programs are found by the code they were made of, and
    the questions left out would have told one decoder's from another's."""
    return FunctionType(function.__code__.replace(), function.__globals__)


def bound(function: Callable, owner: object) -> Callable:
    """A method that its owner can keep without being kept by it: whoever drops a decoder has its
    memory back at once, not when Python next looks for circles."""
    reference = weakref.ref(owner)
    return lambda *given: function(reference(), *given)


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

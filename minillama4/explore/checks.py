"""Checks for the exercises: a specification, properties, and a table of known wrong answers.

A check never raises and never shows the solution. It says "right", names the mistake when the
answer is one that others have made before, or shows the first input on which the answer differs.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

import torch
from torch import Tensor


@dataclass(frozen=True)
class Verdict:
    """What a check found; shown as its message."""

    right: bool
    message: str

    def __repr__(self) -> str:
        return ("Right. " if self.right else "Not yet. ") + self.message


@dataclass(frozen=True)
class Check:
    """One exercise. ``inputs(seed)`` gives the arguments of a call; ``reference`` the answer.

    wrong: message -> a function that makes that mistake; an answer that agrees with it on every
    input gets the message. properties: message -> test(answer), for what must hold besides.
    """

    name: str
    reference: Callable
    inputs: Callable[[int], tuple]
    wrong: dict[str, Callable] = field(default_factory=dict)
    properties: dict[str, Callable[[Callable], bool]] = field(default_factory=dict)
    praise: str = "It agrees with the library on fresh random inputs."
    tolerance: float = 1e-5
    trials: int = 5

    def __call__(self, answer: Callable) -> Verdict:
        try:
            return self._judge(answer)
        except Exception as error:
            if isinstance(error, NotImplementedError) and not str(error):  # torch's own have a text
                return Verdict(False, f"{self.name} is still to do: replace the line that raises.")
            return Verdict(False, f"Your code stopped with {type(error).__name__}: {error}")

    def _judge(self, answer: Callable) -> Verdict:
        cases = [self.inputs(seed) for seed in range(self.trials)]
        given = [answer(*copy.deepcopy(case)) for case in cases]  # an answer may work in place
        if any(value is None for value in given):
            return Verdict(False, f"{self.name} returns None: is a return missing?")
        if self._agree(given, self.reference, cases):
            broken = [text for text, test in self.properties.items() if not test(answer)]
            return Verdict(False, broken[0]) if broken else Verdict(True, self.praise)
        for message, mistake in self.wrong.items():
            if self._agree(given, mistake, cases):
                return Verdict(False, message)
        return Verdict(False, self._describe(given, cases))

    def _agree(self, given: list, function: Callable, cases: Iterable[tuple]) -> bool:
        return all(
            close(value, function(*case), self.tolerance)
            for value, case in zip(given, cases, strict=True)
        )

    def _describe(self, given: list, cases: list[tuple]) -> str:
        for value, case in zip(given, cases, strict=True):
            right = self.reference(*case)
            if close(value, right, self.tolerance):
                continue
            if isinstance(right, Tensor) and not isinstance(value, Tensor):
                return f"{self.name} returns {type(value).__name__}, a tensor is expected."
            if isinstance(right, Tensor):
                if value.shape != right.shape:
                    return f"The shape is {tuple(value.shape)}, expected {tuple(right.shape)}."
                if right.dtype == torch.bool:
                    off = (value != right).sum().item()
                    return f"Shape {tuple(right.shape)} is right; {off} of its values are not."
                gap = (value - right).abs().max().item()
                return f"Shape {tuple(right.shape)} is right; the values differ by up to {gap:.3g}."
            called = f"({', '.join(map(repr, case))})"
            for_which = f" for {self.name}{called}" if case and len(called) < 80 else ""
            return f"You have {value!r}{for_which}; that is not it."
        return "It differs from the reference."


def close(value, right, tolerance: float) -> bool:
    """Equal shape and values (relative to the larger), for tensors and plain numbers."""
    if not isinstance(value, Tensor | int | float):
        return False
    a, b = torch.as_tensor(value), torch.as_tensor(right)
    if a.shape != b.shape:
        return False
    return torch.allclose(a.double(), b.double(), rtol=tolerance, atol=tolerance)


def number(name: str, right: float, wrong: dict[str, float], praise: str, tolerance=1e-3) -> Check:
    """A check for an answer that is one number; ``wrong``: message -> the number it belongs to."""
    return Check(
        name,
        reference=lambda: right,
        inputs=lambda seed: (),
        wrong={message: (lambda v=value: v) for message, value in wrong.items()},
        praise=praise,
        tolerance=tolerance,
        trials=1,
    )

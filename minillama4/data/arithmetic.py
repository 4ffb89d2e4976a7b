"""Arithmetic problems with the steps written out, so that each token can be told from the last.

478 + 356: 8+6=14 write 4 carry 1, 7+5+1=13 write 3 carry 1, 4+3+1=8 write 8. Answer 834
47 * 36 = 47*30 + 47*6 = 1410 + 282 = 1692
478 < 512 because 4 < 5 in the hundreds
"""

from itertools import zip_longest
from random import Random

PLACES = ("units", "tens", "hundreds", "thousands", "ten thousands")


def problem(rng: Random) -> tuple[str, str]:
    """(key, text). The key is the same for a + b and b + a: they are one problem for a split."""
    kind = rng.choice((addition, multiplication, comparison))
    largest = 3 if kind is multiplication else 5  # digits
    a, b = (rng.randrange(10 ** rng.randint(1, largest)) for _ in range(2))
    return f"{kind.__name__} {min(a, b)} {max(a, b)}", kind(a, b)


def addition(a: int, b: int) -> str:
    """Column by column from the right, as on paper."""
    carry, steps = 0, []
    for x, y in zip_longest(reversed(str(a)), reversed(str(b)), fillvalue="0"):
        total = int(x) + int(y) + carry
        terms = f"{x}+{y}+1" if carry else f"{x}+{y}"
        carry = total // 10
        steps.append(f"{terms}={total} write {total % 10}" + " carry 1" * carry)
    if carry:
        steps.append("write 1")
    return f"{a} + {b}: {', '.join(steps)}. Answer {a + b}"


def multiplication(a: int, b: int) -> str:
    """One partial product for each digit of b that is not zero, then their sum."""
    digits = reversed(list(enumerate(reversed(str(b)))))
    parts = [int(digit) * 10**place for place, digit in digits if digit != "0"]
    steps = [f"{a} * {b}"]
    if len(parts) > 1:
        steps.append(" + ".join(f"{a}*{part}" for part in parts))
        steps.append(" + ".join(str(a * part) for part in parts))
    return " = ".join([*steps, str(a * b)])


def comparison(a: int, b: int) -> str:
    """By the number of digits, else by the first digit that differs."""
    if a == b:
        return f"{a} = {b} because all digits agree"
    sign = "<" if a < b else ">"
    left, right = str(a), str(b)
    if len(left) != len(right):
        return f"{a} {sign} {b} because {len(left)} {sign} {len(right)} in number of digits"
    place = next(i for i in range(len(left)) if left[i] != right[i])
    name = PLACES[len(left) - 1 - place]
    return f"{a} {sign} {b} because {left[place]} {sign} {right[place]} in the {name}"

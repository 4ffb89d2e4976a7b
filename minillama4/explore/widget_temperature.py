"""The temperature explorer: how far attention flattens with the context, and what s(p) undoes.

One relevant token among n - 1 others: its share of the attention and the entropy of the whole row,
with temperature and without. The browser answers by itself (static/irope/temperature.js); Python
holds the same numbers, from ``entropy`` and the model's own ``attention_temperature``.
"""

import math

import torch
import traitlets
from torch import Tensor

from ..model.attention import attention_temperature
from .entropy import one_among
from .script import small_script, small_style
from .view import SmallView

FILES = ("irope/softening", "irope/knobs", "irope/charts", "irope/temperature")
STILL = (1024, 8192, 32_768, 131_072, 1_048_576, 10_485_760)  # lengths in the still picture


def temperature_explorer(
    floor_scale: int = 8192,
    attn_scale: float = 0.1,
    length: int = 1_048_576,
    *,
    on: bool = True,
    advantage: float = 12.0,
    spread: float = 1.0,
    shortest: int = 1024,
    longest: int = 10_485_760,
    measured: dict | None = None,
) -> "TemperatureExplorer":
    """s(p) over the position; a relevant token's weight and the entropy over the context's length.

    floor_scale, length, shortest, longest: in tokens. advantage: the relevant token's score above
    the mean of the others; spread: their standard deviation. measured: what
    ``entropy_by_length`` gives of a real model, drawn beside them.
    """
    view = TemperatureExplorer(shortest=shortest, longest=longest, measured=measured or {})
    view.floor_scale, view.attn_scale, view.length = floor_scale, attn_scale, length
    view.on, view.advantage, view.spread = on, advantage, spread
    return view


class TemperatureExplorer(SmallView):
    """See ``temperature_explorer``. The traits follow the reader, and can be set from code.

    numbers: what the view says at ``length``.
    """

    files = FILES
    _esm = small_script(*FILES)
    _css = small_style()

    floor_scale = traitlets.Int(8192, min=1).tag(sync=True)
    attn_scale = traitlets.Float(0.1, min=0.0, max=1.0).tag(sync=True)
    length = traitlets.Int(1_048_576).tag(sync=True)
    on = traitlets.Bool(True).tag(sync=True)
    advantage = traitlets.Float(12.0, min=0.0, max=30.0).tag(sync=True)
    spread = traitlets.Float(1.0, min=0.0, max=3.0).tag(sync=True)
    shortest = traitlets.Int(1024, min=2).tag(sync=True)
    longest = traitlets.Int(10_485_760, min=4).tag(sync=True)
    measured = traitlets.Dict().tag(sync=True)

    def __repr__(self) -> str:
        return (
            f"TemperatureExplorer(floor_scale={self.floor_scale:,}, attn_scale={self.attn_scale}, "
            f"{self.length:,} tokens, {'on' if self.on else 'off'})"
        )

    @property
    def numbers(self) -> dict[str, float]:
        """At ``length`` tokens, seen by the last of them: s, and weight and entropy (nats) of the
        row with the temperature and without; ``most``, ln n, is an even row's entropy."""
        return {name: float(row) for name, row in self.at(torch.tensor(self.length)).items()}

    def at(self, lengths: Tensor) -> dict[str, Tensor]:
        """The same for a tensor of lengths."""
        s = attention_temperature(lengths - 1, self.floor_scale, self.attn_scale)
        weight, entropy = one_among(lengths, self.advantage, self.spread, s)
        plain, flat = one_among(lengths, self.advantage, self.spread, torch.ones_like(s))
        table = dict(s=s, weight=weight, entropy=entropy, most=lengths.double().log())
        return {**table, "weight_without": plain, "entropy_without": flat}

    @traitlets.validate("length")
    def _length_fits(self, proposal) -> int:
        if not self.shortest <= proposal.value <= self.longest:
            raise traitlets.TraitError(
                f"length = {proposal.value:,} does not fit here: it can be {self.shortest:,} to "
                f"{self.longest:,} (set shortest and longest for others)"
            )
        return proposal.value

    def still(self) -> str:
        return snapshot(self)


def in_words(view: TemperatureExplorer) -> str:
    """What the view says at its length."""
    at = view.numbers
    said = f"At {view.length:,} tokens s = {at['s']:.4f}. The relevant token gets "
    said += f"{at['weight']:.1%} of the attention with temperature, {at['weight_without']:.1%} "
    said += f"without. The entropy is {at['entropy']:.2f} nats with it, "
    return said + f"{at['entropy_without']:.2f} without, {at['most']:.2f} if all got the same."


def snapshot(view: TemperatureExplorer) -> str:
    """The still picture: the sentence, and the numbers at some lengths."""
    lengths = [n for n in _lengths(view) if view.shortest <= n <= view.longest]
    rows = [
        "<tr><th>tokens</th><th>s</th><th>weight with</th><th>without</th>"
        "<th>entropy with</th><th>without</th><th>ln n</th></tr>"
    ]
    table = view.at(torch.tensor(lengths))
    for i, n in enumerate(lengths):
        at = {name: float(column[i]) for name, column in table.items()}
        cells = (
            *(f"{n:,}", f"{at['s']:.4f}", f"{at['weight']:.4f}", f"{at['weight_without']:.4f}"),
            *(f"{at['entropy']:.2f}", f"{at['entropy_without']:.2f}", f"{at['most']:.2f}"),
        )
        rows.append("<tr>" + "".join(f"<td>{cell}</td>" for cell in cells) + "</tr>")
    return f"<p><b>{in_words(view)}</b></p>\n<table>" + "\n".join(rows) + "</table>"


def _lengths(view: TemperatureExplorer) -> list[int]:
    """Those of the still picture: the usual ones, or powers of four where they do not fit."""
    if view.shortest <= STILL[0] and view.longest >= STILL[-1]:
        return list(STILL)
    first, last = math.ceil(math.log(view.shortest, 4)), math.floor(math.log(view.longest, 4))
    return sorted({view.shortest, *(4**i for i in range(first, last + 1)), view.longest})

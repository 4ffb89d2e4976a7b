"""The Int4 explorer: how a group of weights is rounded, and what that does to a whole model.

The browser rounds by itself (static/int4/) and looks the losses up in a sweep that was run before,
data/experiments/int4.json; Python holds the same numbers, from ``rounding`` and that file.
"""

from collections.abc import Sequence
from html import escape

import torch
import traitlets
from torch import Tensor

from ..config import Llama4Config
from ..data.shipped import shipped
from .experiment import Effect, Runs
from .rounding import WAYS, bits_per_weight, levels_of, round_weight
from .script import small_script, small_style
from .view import SmallView

FILES = ("int4/rounding", "irope/knobs", "int4/pictures", "int4/int4")
SCHEMES = {"experts": "experts", "blocks": "all blocks", "all": "blocks and head"}
LONGEST = 128  # weights in a group


def int4_explorer(
    weights: Sequence[float] | Tensor | None = None,
    model: str = "mini Scout",
    what: str = "experts",
    bits: int = 4,
    group: int = 128,
    how: str = "compressed-tensors",
    *,
    runs: Runs | None = None,
) -> "Int4Explorer":
    """A group of weights between its levels; loss, error, rerouted tokens and bytes of a model.

    weights: 128 of them, of which the first ``group`` are drawn; normal ones if None. what:
    "experts", "blocks" or "all". how: one of ``rounding.WAYS``. runs: the sweep, the shipped one
    if None.
    """
    if runs is None:
        runs = Runs.load(shipped("experiments") / "int4.json")
    if weights is None:
        weights = torch.randn(LONGEST, generator=torch.Generator().manual_seed(0)) / 50
    weights = torch.as_tensor(weights).detach().float().flatten()
    if len(weights) != LONGEST or not weights.isfinite().all():
        raise ValueError(f"weights must be {LONGEST} finite numbers, not {len(weights)} values.")
    measured = table(runs)
    view = Int4Explorer(
        measured=measured, weights=weights.tolist(), plain={n: _bytes(n) for n in measured}
    )
    view.model, view.what, view.how, view.bits, view.group = model, what, how, bits, group
    return view


class Int4Explorer(SmallView):
    """See ``int4_explorer``. The traits follow the reader, and can be set from code.

    measured: model -> what -> how -> group -> bits -> what ``numbers`` names. plain: bytes in bf16.
    """

    files = FILES
    _esm = small_script(*FILES)
    _css = small_style()

    model = traitlets.Unicode("mini Scout").tag(sync=True)
    what = traitlets.Enum([*SCHEMES], "experts").tag(sync=True)
    how = traitlets.Enum(WAYS, WAYS[0]).tag(sync=True)
    bits = traitlets.Int(4).tag(sync=True)
    group = traitlets.Int(128).tag(sync=True)
    weights = traitlets.List(traitlets.Float()).tag(sync=True)
    measured = traitlets.Dict().tag(sync=True)
    plain = traitlets.Dict().tag(sync=True)
    schemes = traitlets.Dict(SCHEMES).tag(sync=True)

    def __repr__(self) -> str:
        knobs = f"{self.model}, {self.what}, {self.bits} bits, groups of {self.group}, {self.how}"
        return f"Int4Explorer({knobs})"

    @property
    def numbers(self) -> dict[str, float]:
        """At these knobs: ``rise`` of the loss in nats per token with its 95 % interval (low,
        high), relative ``error`` of the weights, share of choices ``rerouted``, ``bytes`` of the
        whole model, and ``bits`` a weight, scale included."""
        return self.at()

    def at(self, **other) -> dict[str, float]:
        """The same with other knobs."""
        x = {name: getattr(self, name) for name in ("model", "what", "how", "bits", "group")}
        x |= other
        row = self.measured[x["model"]][x["what"]][x["how"]][str(x["group"])][str(x["bits"])]
        return dict(zip(KEYS, row, strict=True))

    @property
    def drawn(self) -> Tensor:
        """The weights in the picture, (group,)."""
        return torch.tensor(self.weights[: self.group])

    @property
    def rounded(self) -> Tensor:
        """What they become, (group,)."""
        return round_weight(self.drawn[None], self.bits, self.group, self.how)[0]

    @property
    def levels(self) -> Tensor:
        """What they can become, ascending."""
        return levels_of(self.drawn, self.bits, self.how)

    @traitlets.validate("model", "bits", "group")
    def _was_measured(self, proposal):
        name = proposal.trait.name
        known = self.measured
        if name != "model" and known:
            known = known[self.model][self.what][self.how]
            known = known if name == "group" else known[str(self.group)]
        if known and str(proposal.value) not in known:
            raise traitlets.TraitError(
                f"{name} = {proposal.value!r} was not measured: {', '.join(known)} were"
            )
        return proposal.value

    def still(self) -> str:
        return snapshot(self)


KEYS = ("rise", "low", "high", "error", "rerouted", "bytes", "bits")


def table(runs: Runs) -> dict:
    """The sweep as the browser looks it up: model -> what -> how -> group -> bits -> numbers."""
    found: dict = {}
    for condition in runs.conditions:
        name, what, bits, group, how = condition.split(", ")
        bits, group = int(bits.split()[0]), int(group.split()[-1])
        row = runs.results[condition][0]
        rise = Effect.of(row["rise"])
        loss = [round(value, 5) for value in (rise.mean, rise.low, rise.high)]
        size = [row["error"], row["rerouted"], row["bytes"], bits_per_weight(bits, group, how)]
        model = found.setdefault(_spoken(name), {}).setdefault(what, {}).setdefault(how, {})
        model.setdefault(str(group), {})[str(bits)] = [*loss, *size]
    return found


def _spoken(name: str) -> str:
    return {"mini_scout": "mini Scout", "mini_maverick": "mini Maverick"}.get(name, name)


def _bytes(name: str) -> int:
    """All weights of a shipped model in bf16."""
    folder = shipped(name.lower().replace(" ", "_"))
    return 2 * Llama4Config.from_hf(folder / "config.json").parameters().total


def in_words(view: Int4Explorer) -> str:
    """What the view says of the model, in the browser's words."""
    at, knobs = view.numbers, f"{view.bits} bits, groups of {view.group}, {view.how}"
    bits = _fixed(at["bits"], 3).rstrip("0").rstrip(".")
    size = f"{_fixed(at['bytes'] / 1e6, 2)} MB in all"
    plain = f"{_fixed(view.plain[view.model] / 1e6, 2)} MB in bf16"
    rise, low, high = (_signed(at[name]) for name in KEYS[:3])
    error, moved = (_fixed(100 * at[name], 1) for name in ("error", "rerouted"))
    return (
        f"{view.model}, {SCHEMES[view.what]} in {knobs}: {bits} bits a weight with its share of "
        f"the scale; {size}, {plain}. The rounded weights are off by {error}%, the loss rises by "
        f"{rise} nats per token (95%: {low} to {high}), and {moved}% of the routers' choices "
        "change."
    )


def group_in_words(view: Int4Explorer) -> str:
    """What it says of the group that is drawn."""
    levels, weights = view.levels, view.drawn
    steps = (view.rounded - weights).abs() / (levels[1] - levels[0])
    return (
        f"{len(levels)} levels for {len(weights)} weights; moved by more than half a step: "
        f"{int((steps > 0.5001).sum())}; the largest error is {_fixed(steps.max().item(), 3)} "
        "steps."
    )


def _fixed(x: float, digits: int) -> str:
    return f"{x + 1e-9:.{digits}f}"  # the same in the browser, at halves too


def _signed(x: float) -> str:
    return f"{'−' if x < -5e-5 else '+'}{_fixed(abs(x), 4)}"


def snapshot(view: Int4Explorer) -> str:
    """The still picture: the sentences, and a row of numbers for each number of bits."""
    heads = ("bits", "a weight", "MB in all", "error", "loss added", "95 %", "choices changed")
    rows = ["<tr>" + "".join(f"<th>{head}</th>" for head in heads) + "</tr>"]
    for bits in sorted(map(int, view.measured[view.model][view.what][view.how][str(view.group)])):
        at = view.at(bits=bits)
        ends = f"{_signed(at['low'])} to {_signed(at['high'])}"
        cells = (bits, f"{at['bits']:.3f}", _fixed(at["bytes"] / 1e6, 2), f"{at['error']:.1%}")
        cells += (_signed(at["rise"]), ends, f"{at['rerouted']:.1%}")
        rows.append("<tr>" + "".join(f"<td>{cell}</td>" for cell in cells) + "</tr>")
    said = f"<p><b>{escape(in_words(view))}</b></p>\n<p>{escape(group_in_words(view))}</p>\n"
    return said + "<table>" + "\n".join(rows) + "</table>"

"""The chunk explorer: click a token and see whom it reaches, layer by layer, in chunks and NoPE.

Nothing here needs a model. The browser answers by itself (static/irope/chunks.js), in a running
notebook and in an exported page alike; Python holds the same numbers, from ``reach``.
"""

from html import escape

import traitlets
from torch import Tensor

from ..config import Llama4Config
from .colours import INK
from .reach import drawn_from, kv_entries, receptive_field, seen_before, visible
from .script import small_script, small_style
from .view import SmallView

FILES = ("irope/masks", "irope/knobs", "irope/mask_view", "irope/chunks")
LIMITS = {"length": (4, 96), "chunk": (1, 96), "layers": (1, 16), "nope_every": (0, 16)}
COLOURS = {"rope": "#6c9efe", "nope": "#efaa83", "input": "#b6c9c6"}  # of what is lit


def chunk_explorer(
    length: int = 48,
    chunk: int = 8,
    layers: int = 8,
    nope_every: int = 4,
    *,
    window: bool = False,
    token: int = 13,
    way: str = "reach",
) -> "ChunkExplorer":
    """Rows of tokens, the input below and a layer above the other: what lights up from one token?

    length, chunk: in tokens. nope_every: layers 3, 7, ... for 4; 0: none, 1: all. window: a
    sliding window of ``chunk`` tokens in place of chunks. token: the one in hand. way: "reach",
    what it can influence, or "draws", what its last state can depend on.
    """
    view = ChunkExplorer(length=length, chunk=chunk, layers=layers, nope_every=nope_every)
    view.window, view.way, view.token = window, way, min(token, length - 1)
    return view


class ChunkExplorer(SmallView):
    """See ``chunk_explorer``. The traits follow the reader, and can be set from code.

    layer: the one whose mask is shown. config: a model of these sizes. lit: what is lit up.
    """

    files = FILES
    _esm = small_script(*FILES)
    _css = small_style()

    length = traitlets.Int(48).tag(sync=True)
    chunk = traitlets.Int(8).tag(sync=True)
    layers = traitlets.Int(8).tag(sync=True)
    nope_every = traitlets.Int(4).tag(sync=True)
    window = traitlets.Bool(False).tag(sync=True)
    token = traitlets.Int(0).tag(sync=True)
    layer = traitlets.Int(0).tag(sync=True)
    way = traitlets.Enum(["reach", "draws"], "reach").tag(sync=True)
    limits = traitlets.Dict({name: list(ends) for name, ends in LIMITS.items()}).tag(sync=True)
    colours = traitlets.Dict(COLOURS).tag(sync=True)

    def __repr__(self) -> str:
        kind = "window" if self.window else "chunk"
        sizes = f"{self.length} tokens, {kind} {self.chunk}, {self.layers} layers"
        return f"ChunkExplorer({sizes}, NoPE every {self.nope_every}, token {self.token})"

    @property
    def config(self) -> Llama4Config:
        """A small Llama 4 with these chunks and layers."""
        every = self.nope_every
        nope = tuple(range(every - 1, self.layers, every)) if every else ()
        return Llama4Config.nano(layers=self.layers, chunk=self.chunk, nope_at=nope)

    @property
    def lit(self) -> Tensor:
        """(layers + 1, t) bool: the tokens lit up in the input (row 0) and after each layer."""
        if self.way == "draws":
            return drawn_from(self.config, self.length, self.token, self.window)
        return receptive_field(self.config, self.length, self.window)[:, :, self.token]

    def newly(self, level: int) -> list[int]:
        """Tokens that light up in this row of ``lit``: unlit in the row from which word came."""
        before = level - 1 if self.way == "reach" else level + 1
        if not 0 <= before <= self.layers:
            return []
        lit = self.lit
        return (lit[level] & ~lit[before]).nonzero().flatten().tolist()

    @property
    def mask(self) -> Tensor:
        """(t, s) bool: who sees whom in ``layer``."""
        return visible(self.config, self.layer, self.length, self.window)

    # ------------------------------------------------------------------ what may be set
    @traitlets.validate("length", "chunk", "layers", "nope_every")
    def _size_is_possible(self, proposal) -> int:
        name, (least, most) = proposal.trait.name, LIMITS[proposal.trait.name]
        if not least <= proposal.value <= most:
            raise traitlets.TraitError(
                f"{name} = {proposal.value} does not fit here: it can be {least} to {most}"
            )
        return proposal.value

    @traitlets.validate("token", "layer")
    def _is_there(self, proposal) -> int:
        name = proposal.trait.name
        last = (self.length if name == "token" else self.layers) - 1
        if not 0 <= proposal.value <= last:
            raise traitlets.TraitError(
                f"there is no {name} {proposal.value}: there are 0 to {last}"
            )
        return proposal.value

    @traitlets.observe("length", "layers")
    def _stay_inside(self, change) -> None:
        self.token = min(self.token, self.length - 1)
        self.layer = min(self.layer, self.layers - 1)

    def still(self) -> str:
        return snapshot(self)


def snapshot(view: ChunkExplorer) -> str:
    """The still picture: a line of characters for each layer, ● lit and · not, | at borders."""
    lines = [_head(view)]
    lines += [_line(view, level) for level in reversed(range(view.layers + 1))]
    look = "line-height:1.3;font-family:monospace"  # some pages set <pre> in another font
    said, rows = escape(in_words(view)), "\n".join(lines)
    return f'<p><b>{said}</b></p>\n<pre style="{look}">{rows}</pre>'


def _head(view: ChunkExplorer) -> str:
    borders = 0 if view.window else (view.length - 1) // view.chunk
    return " " * (14 + view.length + borders) + "  lit  sees  keys"


def _line(view: ChunkExplorer, level: int) -> str:
    """The input (level 0), or what has come out of layer level - 1."""
    nope = level - 1 in view.config.nope_layers
    name = f"layer {level - 1} {'NoPE' if nope else 'RoPE'}" if level else "input"
    colour = COLOURS["input" if not level else "nope" if nope else "rope"]
    lit, border = view.lit[level].tolist(), "" if view.window else " " if nope else "|"
    marks, cells = [], []
    for t, on in enumerate(lit):
        if t and t % view.chunk == 0:
            cells.append(border)
        mark = "◆" if t == view.token and on else "●" if on else "·"
        cells.append(
            f'<span style="background-color:{colour};color:{INK}">{mark}</span>' if on else mark
        )
    marks = "".join(cells).replace(
        f'</span><span style="background-color:{colour};color:{INK}">', ""
    )
    return f"{name:14}{marks}  {sum(lit):3}{_numbers(view, level)}"


def _numbers(view: ChunkExplorer, level: int) -> str:
    if not level:
        return ""
    sees = int(seen_before(view.config, level - 1, view.length, view.window)[view.token]) + 1
    return f"  {sees:4}  {kv_entries(view.config, view.length)[level - 1]:4}"


def in_words(view: ChunkExplorer) -> str:
    """What the picture says, for the reader and for screen readers."""
    lit, token, last = view.lit.sum(1).tolist(), view.token, view.length - 1
    if view.way == "reach":
        said = f"Token {token} reaches {lit[-1]} of the {last - token + 1} tokens from {token} on"
    else:
        said = f"Token {token} draws on {lit[0]} of the {token + 1} tokens up to {token}"
    keys = sum(kv_entries(view.config, view.length))
    return (
        f"{said}. The layers hold {keys:,} keys for {view.length} tokens, "
        f"of {view.layers * view.length:,} if all saw everything."
    )

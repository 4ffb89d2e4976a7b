"""A view without a kernel: one piece of HTML with its script, its style and a still picture.

With JavaScript the script draws the view in place of the picture. Without it (GitHub, a mail, a
notebook that is not trusted) the picture stays: plain HTML with its colours written in place.
"""

import hashlib
import json
from html import escape

from .colours import INK, expert_colour
from .reading import STEPS, unpack
from .script import page_script, style

START = """
const values = %s;
for (const el of document.querySelectorAll("#%s:not([data-drawn])")) {
  el.dataset.drawn = "yes";
  render({ model: standIn(values), el });
}
"""


def page(values: dict, still: str, script: str | None = None, look: str | None = None) -> str:
    """The whole piece. values: what the widget's script reads, and the readings that stand_in.js
    gives it; still: the picture, from ``snapshot``. script, look: another view's, with its style.
    """
    script, look = script or page_script(), look or style()
    data = json.dumps(values, separators=(",", ":")).replace("<", "\\u003c")  # no </script> inside
    name = "ml4-" + hashlib.sha256(data.encode()).hexdigest()[:12]
    return (
        f'<div id="{name}">{still}</div>\n<style>{look}</style>\n'
        f'<script type="module">{script}{START % (data, name)}</script>'
    )


def snapshot(state: dict, layer: int) -> str:
    """The still picture: the text in the colours of one layer, and all layers as a table."""
    pieces, moe = state["pieces"], state["moe"]
    choice = unpack(state["choice"], len(moe), len(pieces), state["top_k"])
    score = unpack(state["scores"], len(moe), len(pieces), state["experts"]).gather(2, choice)
    pairs = zip(choice.tolist(), score.tolist(), strict=True)  # by layer, then by token
    chosen = {at: list(zip(*pair, strict=True)) for at, pair in zip(moe, pairs, strict=True)}
    rows = [_row(f"layer {at}", chosen.get(at), state) for at in range(state["layers"])]
    heads = "".join(f"<th>{escape(piece)}</th>" for piece in pieces)
    line = _line(pieces, chosen.get(layer), state)
    return (
        f"<p><b>{_caption(state, layer)}</b></p>\n<p>{line}</p>\n"
        f'<div style="overflow-x:auto"><table><tr><th></th>{heads}</tr>\n'
        + "\n".join(rows)
        + "</table></div>"
    )


def _caption(state: dict, layer: int) -> str:
    if layer not in state["moe"]:
        return f"Layer {layer} is dense: it has no router"
    return f"Each token with its expert in layer {layer}, and g, the sigmoid of its score"


def _line(pieces: list[str], chosen, state: dict) -> str:
    if chosen is None:
        return escape(" ".join(pieces))
    words = []
    for piece, (experts, scores) in zip(pieces, chosen, strict=True):
        names = "+".join(map(str, experts))
        values = "+".join(f"{s / STEPS:.2f}" for s in scores)
        colour = _style(experts[0], state)
        words.append(f'<span style="{colour}">{escape(piece)}</span>&nbsp;{names}&nbsp;({values})')
    return " ".join(words)


def _row(name: str, chosen, state: dict) -> str:
    head = f'<tr><th style="white-space:nowrap">{name}</th>'
    if chosen is None:
        return f'{head}<td colspan="{len(state["pieces"])}" style="text-align:left">dense</td></tr>'
    cells = []
    for experts, _ in chosen:
        style = f"background:{_colour(experts[0], state)};color:{INK}"  # short: there are many
        cells.append(f'<td style="{style}">{"+".join(map(str, experts))}</td>')
    return f"{head}{''.join(cells)}</tr>"


def _style(expert: int, state: dict) -> str:
    return f"background-color:{_colour(expert, state)};color:{INK};padding:1px 4px"


def _colour(expert: int, state: dict) -> str:
    return expert_colour(expert, state["experts"])

"""Views that answer the reader: type a text and see which experts read it.

A view is an anywidget in a running notebook. Where there is no kernel (an exported page, GitHub)
its HTML stands in: the same JavaScript on what was computed before, and a still picture without.
"""

import time
from pathlib import Path

import anywidget
import traitlets

from .colours import PALETTE, SHADES
from .export import to_html
from .reading import CannotRead, read

STATIC = Path(__file__).parent / "static"
LONGEST = 400  # tokens that a view shows

TEXT = "def area(side):\n    return side * side\nThe square of 12 is 144."


def routing_view(
    model,
    tokenizer,
    text: str = TEXT,
    layer: int | None = None,
    domains: dict[str, str] | None = None,
) -> "RoutingView":
    """Every token of a text in the colour of its expert, layer by layer.

    text: what stands there at first; the reader types over it. layer: shown at first, the middle
    one if None. domains: label -> sample text, a button each.
    """
    return RoutingView(model, tokenizer, text, layer, domains or {})


class RoutingView(anywidget.AnyWidget):
    """See ``routing_view``. ``layer`` and ``token`` follow the reader, and can be set from code."""

    _esm = STATIC / "routing_view.js"
    _css = STATIC / "routing_view.css"

    text = traitlets.Unicode().tag(sync=True)
    layer = traitlets.Int().tag(sync=True)
    token = traitlets.Int().tag(sync=True)
    state = traitlets.Dict().tag(sync=True)  # of the last text that could be read
    message = traitlets.Unicode().tag(sync=True)  # why the text now typed could not
    examples = traitlets.List().tag(sync=True)  # [label, text] each
    palette = traitlets.List(list(PALETTE)).tag(sync=True)
    shades = traitlets.List(list(SHADES)).tag(sync=True)
    live = traitlets.Bool(True).tag(sync=True)

    def __init__(self, model, tokenizer, text, layer=None, domains=None):
        self._model, self._tokenizer = model, tokenizer
        self.milliseconds = 0.0  # that the last reading took
        middle = model.config.layers // 2
        super().__init__(layer=middle if layer is None else layer)
        self.examples = [list(pair) for pair in (domains or {}).items()]
        self.state = self._read(text)  # here an unreadable text is the author's error: it raises
        self.text = text

    def __repr__(self) -> str:
        return f"RoutingView({self.text!r:.60}, layer {self.layer})"

    def _read(self, text: str) -> dict:
        limit = min(LONGEST, self._model.config.max_length)
        return read(self._model, self._tokenizer, text, limit)

    @traitlets.validate("layer")
    def _layer_exists(self, proposal) -> int:
        layers = self._model.config.layers
        if not 0 <= proposal.value < layers:
            raise traitlets.TraitError(
                f"there is no layer {proposal.value}: this model has 0 to {layers - 1}"
            )
        return proposal.value

    @traitlets.observe("text")
    def _answer(self, change) -> None:
        """A text has been typed: read it, or say in the view why not and keep what is there."""
        if change.new == self.state.get("text"):
            self.message = ""
            return
        began = time.perf_counter()
        try:
            state = self._read(change.new)
        except CannotRead as refused:
            self.message = f"{refused} Below is still the last text that fit."
        except Exception as error:  # in a callback it would be lost in the server's log
            self.message = f"The model could not read this: {error}"
        else:
            self._show(state)
        self.milliseconds = (time.perf_counter() - began) * 1000

    def _show(self, state: dict) -> None:
        count = len(state["pieces"])
        typed_on = state["text"].startswith(self.state["text"])  # then follow the reader
        with self.hold_sync():
            self.state, self.message = state, ""
            self.token = count - 1 if typed_on else min(self.token, count - 1)

    def to_html(self) -> str:
        """A piece of HTML that needs no kernel and no network: interactive, and still without
        JavaScript. The text and the sample texts can be chosen in it; new ones need Python."""
        texts = {self.state["text"]: self.state}
        texts |= {text: self._read(text) for _, text in self.examples if text not in texts}
        named = [["this text", self.state["text"]], *self.examples]
        return to_html(
            texts=texts,
            text=self.state["text"],
            layer=self.layer,
            token=self.token,
            examples=[pair for pair in named if self.examples],
        )

    def _repr_mimebundle_(self, **options):
        bundle = super()._repr_mimebundle_(**options)
        data, metadata = bundle if isinstance(bundle, tuple) else (bundle, {})
        return {**data, "text/html": self.to_html()}, metadata

"""The routing explorer: type a text, see which experts read it, and take one away.

It is an anywidget in a running notebook. Where there is no kernel (an exported page, GitHub) its
HTML stands in: the same JavaScript on what was computed before, and a still picture without.
"""

import time

import anywidget
import traitlets
from torch import Tensor

from .colours import PALETTE, SHADES
from .edits import CannotSteer
from .reading import CannotRead, domain_loads, read, sample_rows
from .script import style, widget_script
from .stored import to_html
from .view import KeepsHtml

LONGEST = 400  # tokens that a view shows

TEXT = "def area(side):\n    return side * side\nThe square of 12 is 144."
STILL = "Below is still the last text that fit."


def routing_explorer(
    models,
    tokenizer,
    text: str = TEXT,
    samples: dict[str, str] | None = None,
    layer: int | None = None,
    *,
    held_out: dict[str, Tensor] | None = None,
    compare: str = "off",
    other: str | int | None = None,
    same_run: bool = False,
) -> "RoutingExplorer":
    """Every token of a text in the colour of its expert: compare, switch experts off, force others.

    models: a Llama4, or name -> Llama4 to choose among; they share the tokenizer. text: what
    stands there at first; the reader types over it. samples: domain -> text, a button each.
    layer: shown at first, the middle one with experts if None. held_out: domain -> (b, t) token
    ids on which the load per domain is counted; the samples themselves if None.
    compare: "text", "layer" or "model" opens with that comparison, ``other`` being the text, layer
    or name of the model. same_run: the models are stages of one training run, so that their
    experts may be compared by number.
    """
    view = RoutingExplorer(models, tokenizer, text, samples, layer, held_out, same_run=same_run)
    if other is not None:
        name = {"text": "other_text", "layer": "other_layer", "model": "other_model"}.get(compare)
        if name is None:
            raise ValueError(f"other = {other!r} wants compare = 'text', 'layer' or 'model'.")
        setattr(view, name, other)
    view.compare = compare
    if view.other_message:  # in this first comparison it is the author's error
        raise ValueError(view.other_message)
    return view


def routing_view(
    model,
    tokenizer,
    text: str = TEXT,
    layer: int | None = None,
    domains: dict[str, str] | None = None,
) -> "RoutingExplorer":
    """The explorer with nothing but text, samples, layers and scores. domains: its ``samples``."""
    return RoutingExplorer(model, tokenizer, text, domains, layer, full=False)


class RoutingExplorer(KeepsHtml, anywidget.AnyWidget):
    """See ``routing_explorer``. The traits follow the reader, and can be set from code.

    edits: experts switched off or forced, as in ``edits.py``; [] undoes them. state, steered: the
    reading without and with them, among other things ``loss``, nats of each token but the first.
    milliseconds: that the last answer took.
    """

    _esm = widget_script()
    _css = style()

    text = traitlets.Unicode().tag(sync=True)
    model = traitlets.Unicode().tag(sync=True)  # its name
    layer = traitlets.Int().tag(sync=True)
    token = traitlets.Int().tag(sync=True)
    scope = traitlets.Enum(["layer", "all"], "layer").tag(sync=True)  # what the panels show
    compare = traitlets.Enum(["off", "text", "layer", "model"], "off").tag(sync=True)
    other_text = traitlets.Unicode().tag(sync=True)
    other_model = traitlets.Unicode().tag(sync=True)
    other_layer = traitlets.Int().tag(sync=True)
    other_token = traitlets.Int().tag(sync=True)
    edits = traitlets.List(traitlets.Dict()).tag(sync=True)

    state = traitlets.Dict().tag(sync=True)  # of the last text that could be read
    other = traitlets.Dict().tag(sync=True)  # what it is compared with, if that needs the model
    steered = traitlets.Dict().tag(sync=True)  # the reading under the edits, if there are any
    loads = traitlets.Dict().tag(sync=True)  # model -> domain -> tokens per layer and expert
    counted = traitlets.Unicode("the samples").tag(sync=True)  # what the loads were counted on
    message = traitlets.Unicode().tag(sync=True)  # why the text now typed could not be read
    other_message = traitlets.Unicode().tag(sync=True)  # or compared
    steer_message = traitlets.Unicode().tag(sync=True)  # or steered

    models = traitlets.List().tag(sync=True)
    examples = traitlets.List().tag(sync=True)  # [label, text] each
    palette = traitlets.List(list(PALETTE)).tag(sync=True)
    shades = traitlets.List(list(SHADES)).tag(sync=True)
    same_run = traitlets.Bool(False).tag(sync=True)
    full = traitlets.Bool(True).tag(sync=True)
    live = traitlets.Bool(True).tag(sync=True)

    def __init__(
        self, models, tokenizer, text, samples, layer, held_out=None, *, same_run=False, full=True
    ):
        self._models = dict(models) if isinstance(models, dict) else {"model": models}
        if not self._models:
            raise ValueError("models is empty: the explorer needs a Llama4 to run.")
        self._tokenizer, self.milliseconds = tokenizer, 0.0
        self._edits = []  # the last ones that could be answered
        names, samples = list(self._models), samples or {}
        state = self._read(names[0], text)  # an unreadable text is the author's error: it raises
        rows = sample_rows(self._models.values(), tokenizer, samples, LONGEST)
        start = _first_layer(self._models[names[0]].config, layer)
        super().__init__(model=names[0], layer=start, models=names, state=state, text=text)
        self.other_model = names[-1]
        self.same_run, self.full = same_run, full
        self.examples = [list(pair) for pair in samples.items()]
        self.other_text = next(iter(samples.values()), text)
        self.other_layer = _next_router(self._models[names[0]].config, start)
        if held_out is not None:
            self.counted = "held-out text"
        if full:
            rows = rows if held_out is None else held_out
            self.loads = {name: domain_loads(m, rows) for name, m in self._models.items()}

    def __repr__(self) -> str:
        return f"RoutingExplorer({self.text!r:.60}, layer {self.layer})"

    def _read(self, name: str, text: str, edits=()) -> dict:
        model = self._models[name]
        limit = min(LONGEST, model.config.max_length)
        return {**read(model, self._tokenizer, text, limit, edits), "model": name}

    # ------------------------------------------------------------------ what may be set
    @traitlets.validate("layer", "other_layer")
    def _layer_exists(self, proposal) -> int:
        layers = max(model.config.layers for model in self._models.values())
        if not 0 <= proposal.value < layers:
            raise traitlets.TraitError(
                f"there is no layer {proposal.value}: this model has 0 to {layers - 1}"
            )
        return proposal.value

    @traitlets.validate("model", "other_model")
    def _model_exists(self, proposal) -> str:
        if proposal.value not in self._models:
            raise traitlets.TraitError(
                f"there is no model {proposal.value!r}: there are {', '.join(self._models)}"
            )
        return proposal.value

    # ------------------------------------------------------------------ what is answered
    @traitlets.observe("text", "model")
    def _text_or_model(self, change) -> None:
        """A text was typed or another model chosen: read, or say why not and keep what is there."""
        if (self.text, self.model) == (self.state.get("text"), self.state.get("model")):
            self.message = ""
            return
        began = time.perf_counter()
        if self._say("message", self._read_again, STILL):
            self._say("other_message", self._compare)
            self._say("steer_message", self._steer)
        elif self.model != self.state["model"]:
            why = self.message
            self.model = self.state["model"]  # what is shown is still that one's
            self.message = why
        self.milliseconds = (time.perf_counter() - began) * 1000

    @traitlets.observe("compare", "other_text", "other_model")
    def _comparison(self, change) -> None:
        began = time.perf_counter()
        self._say("other_message", self._compare, STILL)
        self.milliseconds = (time.perf_counter() - began) * 1000

    @traitlets.observe("edits")
    def _edit(self, change) -> None:
        began = time.perf_counter()
        if self.edits == self._edits:
            return
        if self._say("steer_message", self._steer):
            self._edits = self.edits
        else:
            self.edits = self._edits  # nothing is shown that is not so
        self.milliseconds = (time.perf_counter() - began) * 1000

    def _say(self, where: str, work, still: str = "") -> bool:
        """Do the work; what goes wrong is said in the view, or it would be lost in a log."""
        try:
            with self.hold_sync():
                work()
                setattr(self, where, "")
            return True
        except (CannotRead, CannotSteer) as refused:
            setattr(self, where, f"{refused} {still}".strip())
        except Exception as error:
            kind = type(error).__name__
            setattr(self, where, f"The model could not do this: {kind}: {error}")
        return False

    def _read_again(self) -> None:
        state, before = self._read(self.model, self.text), self.state
        count = len(state["pieces"])
        typed_on = state["text"].startswith(before["text"])  # then follow the reader
        typed_on &= state["text"] != before["text"]
        self.token = count - 1 if typed_on else min(self.token, count - 1)
        same = state["model"] == before["model"]
        kept = [edit for edit in self.edits if same and edit.get("token") is None]
        self.state, self._edits, self.edits = state, kept, kept

    def _compare(self) -> None:
        """Read what the text is compared with; another layer of it needs no reading."""
        if self.compare == "text":
            self.other = self._read(self.model, self.other_text)
        elif self.compare == "model":
            self.other = self._read(self.other_model, self.state["text"])
        else:
            self.other = {}

    def _steer(self) -> None:
        edits = self.edits
        self.steered = self._read(self.model, self.state["text"], edits) if edits else {}

    # ------------------------------------------------------------------ without a kernel
    def to_html(self) -> str:
        """A piece of HTML that needs no kernel and no network: interactive, and still without
        JavaScript. Texts and models can be chosen in it, and single experts switched off; what
        needs the model itself needs Python."""
        return to_html(self)


def _first_layer(config, layer: int | None) -> int:
    if layer is not None:
        return layer
    return config.moe_layers[len(config.moe_layers) // 2] if config.moe_layers else 0


def _next_router(config, layer: int) -> int:
    """Another layer with experts, to compare with: the next one, or the one before."""
    later = [other for other in config.moe_layers if other > layer]
    before = [other for other in config.moe_layers if other < layer]
    return (later or before[::-1] or [layer])[0]

"""The planner: a model, a precision, a GPU, a context and a batch; what fits, and how fast at most.

The browser answers by itself (static/planner/), from counts that Python hands over once; Python
holds the same numbers, from ``serve.memory`` and ``serve.roofline``.
"""

from collections.abc import Sequence
from html import escape

import torch
import traitlets

from ..config import Llama4Config
from ..serve.hardware import A100, B200, H100, H200, RTX_4090, Hardware
from ..serve.memory import WORKSPACE, Plan, kv_bytes_per_slot, longest_context, plan
from ..serve.precision import SCHEMES, weight_bytes
from ..serve.roofline import Step, decode_step, flops_per_token
from .colours import INK
from .plots_memory import GROUPS, held
from .script import small_script, small_style
from .view import SmallView

FILES = (*("planner/bytes", "irope/knobs", "planner/bars", "planner/planner"),)
CACHES = {"bf16": torch.bfloat16, "fp8": torch.float8_e4m3fn}
GPUS = (H100, H200, A100, B200, RTX_4090, H100.node(), H200.node())
MOST_TEXTS = 512


def planner_explorer(
    models: dict[str, Llama4Config] | None = None,
    model: str | None = None,
    scheme: str = "int4-meta",
    gpu: str = H100.name,
    context: int = 8192,
    batch: int = 1,
    *,
    cache: str = "bf16",
    chunked: bool = True,
    gpus: Sequence[Hardware] = GPUS,
    vision: bool = True,
    workspace: int = WORKSPACE,
) -> "PlannerExplorer":
    """Bars of what lies in memory and of what a step reads; the longest context, and the ceiling.

    models: by name, Scout and Maverick if None; model: the one shown at first. scheme: one of
    ``serve.precision.SCHEMES``. gpu: the name of one of ``gpus``. cache: "bf16" or "fp8". vision,
    workspace: as ``serve.memory.plan`` takes them, the same for all models.
    """
    models = models or {"Scout": Llama4Config.scout(), "Maverick": Llama4Config.maverick()}
    view = PlannerExplorer(
        models={name: counts(config, vision) for name, config in models.items()},
        gpus={each.name: _figures(each) for each in gpus},
        workspace=workspace,
    )
    view.configs, view.hardware, view.vision = dict(models), {g.name: g for g in gpus}, vision
    view.model = model or next(iter(models))
    view.scheme, view.gpu, view.cache, view.chunked = scheme, gpu, cache, chunked
    view.context, view.batch = context, batch
    return view


class PlannerExplorer(SmallView):
    """See ``planner_explorer``. The traits follow the reader, and can be set from code.

    plan, step, longest: what the knobs now come to, as the library counts it.
    """

    files = FILES
    _esm = small_script(*FILES)
    _css = small_style()

    model = traitlets.Unicode().tag(sync=True)
    scheme = traitlets.Enum([*SCHEMES], "int4-meta").tag(sync=True)
    gpu = traitlets.Unicode().tag(sync=True)
    context = traitlets.Int(8192).tag(sync=True)
    batch = traitlets.Int(1).tag(sync=True)
    cache = traitlets.Enum([*CACHES], "bf16").tag(sync=True)
    chunked = traitlets.Bool(True).tag(sync=True)
    models = traitlets.Dict().tag(sync=True)
    gpus = traitlets.Dict().tag(sync=True)
    workspace = traitlets.Int(WORKSPACE).tag(sync=True)
    groups = traitlets.List(
        [dict(name=name, of=list(of), colour=hue) for name, (of, hue) in GROUPS.items()]
    ).tag(sync=True)

    def __repr__(self) -> str:
        sizes = f"{self.batch} × {self.context:,} tokens"
        return f"PlannerExplorer({self.model}, {self.scheme}, {self.gpu}, {sizes})"

    @property
    def plan(self) -> Plan:
        """What must lie in memory, and what there is."""
        return plan(**self._place(), batch=self.batch, context=self.context, **self._more())

    @property
    def longest(self) -> int:
        """The longest context that fits for every text of the batch, in tokens."""
        return longest_context(**self._place(), batch=self.batch, **self._more())

    @property
    def step(self) -> Step:
        """What one step of decoding reads and computes."""
        sizes = dict(batch=self.batch, context=self.context, chunked=self.chunked)
        return decode_step(**self._place(), **sizes, cache=CACHES[self.cache])

    def _place(self) -> dict:
        config, hardware = self.configs[self.model], self.hardware[self.gpu]
        return dict(config=config, hardware=hardware, scheme=self.scheme)

    def _more(self) -> dict:
        more = dict(chunked=self.chunked, vision=self.vision, workspace=self.workspace)
        return dict(cache=CACHES[self.cache], **more)

    # ------------------------------------------------------------------ what may be set
    @traitlets.validate("model", "gpu")
    def _is_known(self, proposal) -> str:
        name = proposal.trait.name
        known = self.models if name == "model" else self.gpus
        if proposal.value not in known:
            raise traitlets.TraitError(
                f"there is no {name} {proposal.value!r} here: there are {', '.join(known)}"
            )
        return proposal.value

    @traitlets.validate("context", "batch")
    def _is_possible(self, proposal) -> int:
        name = proposal.trait.name
        most = MOST_TEXTS if name == "batch" else self._most()
        if not 1 <= proposal.value <= most:
            raise traitlets.TraitError(
                f"{name} = {proposal.value:,} does not fit here: it can be 1 to {most:,}"
            )
        return proposal.value

    @traitlets.observe("model")
    def _stay_readable(self, change) -> None:
        self.context = min(self.context, self._most())

    def _most(self) -> int:
        """Tokens that the model can read; what the models at hand can, before one is chosen."""
        known = [self.models[self.model]] if self.model else self.models.values()
        return max((one["most"] for one in known), default=8192)

    def still(self) -> str:
        return snapshot(self)


def counts(config: Llama4Config, vision: bool = True) -> dict:
    """All that the arithmetic in the browser needs of a model; bytes and operations."""
    one = flops_per_token(config, 1)
    per_key = (flops_per_token(config, 2, chunked=False) - one) / config.layers
    return dict(
        layers=config.layers,
        nope=len(config.nope_layers),
        chunk=config.chunk,
        most=config.max_length,
        experts=config.experts,
        top_k=config.top_k,
        slot={name: kv_bytes_per_slot(config, dtype) for name, dtype in CACHES.items()},
        flops=one - per_key * config.layers,
        flops_per_key=per_key,
        schemes={name: _in_scheme(config, name, vision) for name in SCHEMES},
    )


def _in_scheme(config: Llama4Config, scheme: str, vision: bool) -> dict:
    """weights: all bytes by component. each: those that every step reads; row: of the embedding
    table for each text; expert: one routed expert in every layer that has them."""
    reads = decode_step(config, scheme=scheme).reads
    weights, row = weight_bytes(config, scheme, vision), reads["embedding"]
    each = {name: size for name, size in reads.items() if name not in _BY_TEXT}
    expert = weights["routed experts"] / config.experts
    return dict(label=SCHEMES[scheme].label, weights=weights, each=each, row=row, expert=expert)


_BY_TEXT = ("embedding", "routed experts", "cache")  # what grows with the batch


def _figures(gpu: Hardware) -> dict:
    return dict(memory=gpu.memory, bandwidth=gpu.bandwidth, flops=gpu.flops, gpus=gpu.gpus)


def in_words(view: PlannerExplorer) -> str:
    """What the view says, in the browser's words."""
    now = view.plan
    parts = (sum(now.weights.values()), now.cache, now.workspace)
    names = ("weights", "cache", "workspace")
    said = ", ".join(f"{_gb(size)} of {name}" for size, name in zip(parts, names, strict=True))
    verdict = f"It fits, {_gb(now.free)} are left."
    if not now.fits:
        verdict = f"It does not fit: {_gb(-now.free)} are missing."
    place = f"{view.model} in {SCHEMES[view.scheme].label} on {view.gpu}"
    first = f"{place}, {view.batch} × {view.context:,} tokens: {said}."
    return " ".join(filter(None, [first, verdict, _room(view), _speed(view)]))


def _room(view: PlannerExplorer) -> str:
    longest, most = view.longest, view.models[view.model]["most"]
    if longest == 0:
        return "Not one token fits beside the weights."
    who = "One text" if view.batch == 1 else f"Each of {view.batch} texts"
    whole = ", all that the model can read" if longest == most else ""
    return f"{who} could be {longest:,} tokens long{whole}."


def _speed(view: PlannerExplorer) -> str:
    if not view.plan.fits:
        return ""
    step = view.step
    share = "" if view.batch == 1 else f", {step.ceiling / view.batch:,.1f} for each text"
    most = f"at most {step.ceiling:,.0f} tokens per second{share}, bound by {step.bound}"
    return f"A step reads {_gb(step.bytes)}: {most}."


def _gb(size: float) -> str:
    return f"{size / 1e9:,.2f} GB"


def snapshot(view: PlannerExplorer) -> str:
    """The still picture: the sentences, a bar of what lies in memory, and its parts."""
    now = view.plan
    parts = [(name, size, GROUPS[name][1]) for name, size in held(now).items()]
    parts += [("left", now.free, "#ffffff")] if now.fits else []
    most = max(now.total, now.memory)
    bar = "".join(
        f'<td style="background-color:{hue};width:{100 * size / most:.2f}%;padding:8px 0"></td>'
        for _, size, hue in parts
    )
    legend = ", ".join(
        f'<span style="background-color:{hue};color:{INK};padding:1px 4px">{escape(name)}</span> '
        f"{_gb(size)}"
        for name, size, hue in parts
    )
    frame = "width:100%;border-collapse:collapse;border:1px solid #888888"
    return (
        f"<p><b>{escape(in_words(view))}</b></p>\n"
        f'<table style="{frame}"><tr>{bar}</tr></table>\n<p>{legend}</p>'
    )

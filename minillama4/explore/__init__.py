"""Looking inside: watch a model (trace), draw what was seen (plots), turn a knob (widgets)."""

from importlib import import_module

from .experiment import Effect, Runs, repeat
from .routing import (
    adjusted_rand,
    coactivation,
    effective_experts,
    load,
    mutual_information,
    saturation,
    specialisation,
)
from .seen import RouterSeen, Seen
from .steer import steer
from .trace import trace

__all__ = [
    "PALETTE",
    "Effect",
    "RouterSeen",
    "Runs",
    "Seen",
    "adjusted_rand",
    "coactivation",
    "effective_experts",
    "expert_colour",
    "load",
    "mutual_information",
    "plot_curves",
    "plot_routing",
    "plot_runs",
    "repeat",
    "routing_explorer",
    "routing_view",
    "saturation",
    "specialisation",
    "steer",
    "trace",
]

_LATER = {
    "PALETTE": "colours",
    "expert_colour": "colours",
    "plot_curves": "plots",
    "plot_routing": "plots",
    "plot_runs": "plots",
    "routing_explorer": "widgets",
    "routing_view": "widgets",
}


def __getattr__(name: str):
    """Figures and views are imported when first asked for: the core install can do without."""
    if name not in _LATER:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    try:
        return getattr(import_module(f".{_LATER[name]}", __name__), name)
    except ModuleNotFoundError as missing:
        raise ImportError(
            f"{name} needs {missing.name}, which comes with the notebooks' extras: "
            "pip install 'minillama4[notebooks]'"
        ) from missing

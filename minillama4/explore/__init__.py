"""Looking inside: watch a model (trace), draw what was seen (plots), turn a knob (widgets)."""

from importlib import import_module

from .entropy import attention_entropy, entropy_by_length, one_among
from .experiment import Effect, Runs, repeat
from .reach import (
    drawn_from,
    kv_entries,
    measured_field,
    receptive_field,
    seen_before,
    visible,
)
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
    "ChunkExplorer",
    "Effect",
    "Int4Explorer",
    "PlannerExplorer",
    "RouterSeen",
    "Runs",
    "Seen",
    "TemperatureExplorer",
    "adjusted_rand",
    "attention_entropy",
    "chunk_explorer",
    "coactivation",
    "drawn_from",
    "effective_experts",
    "entropy_by_length",
    "expert_colour",
    "int4_explorer",
    "kv_entries",
    "load",
    "measured_field",
    "mutual_information",
    "one_among",
    "planner_explorer",
    "plot_curves",
    "plot_mask",
    "plot_plans",
    "plot_reach",
    "plot_routing",
    "plot_runs",
    "plot_temperature",
    "receptive_field",
    "repeat",
    "routing_explorer",
    "routing_view",
    "saturation",
    "seen_before",
    "specialisation",
    "steer",
    "temperature_explorer",
    "trace",
    "visible",
]

_LATER = {
    "PALETTE": "colours",
    "expert_colour": "colours",
    "ChunkExplorer": "widget_chunks",
    "Int4Explorer": "widget_int4",
    "PlannerExplorer": "widget_planner",
    "TemperatureExplorer": "widget_temperature",
    "chunk_explorer": "widget_chunks",
    "int4_explorer": "widget_int4",
    "planner_explorer": "widget_planner",
    "plot_mask": "plots_reach",
    "plot_plans": "plots_memory",
    "plot_reach": "plots_reach",
    "plot_temperature": "plots_reach",
    "temperature_explorer": "widget_temperature",
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

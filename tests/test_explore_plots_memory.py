"""Bars of what lies in memory: as long as what they count, and a word on whether it fits."""

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import pytest

import minillama4 as ml4
from minillama4.explore import plot_plans
from minillama4.explore.plots_memory import GROUPS, held
from minillama4.serve.hardware import H100, H200
from minillama4.serve.memory import plan
from minillama4.serve.precision import COMPONENTS

SCOUT, MAVERICK = ml4.Llama4Config.scout(), ml4.Llama4Config.maverick()


def test_every_component_has_a_colour_and_stands_once():
    named = [name for parts, _ in GROUPS.values() for name in parts]
    assert sorted(named) == sorted([*COMPONENTS, "cache", "workspace"])
    assert len({colour for _, colour in GROUPS.values()}) == len(GROUPS)


def test_groups_hold_all_of_a_plan():
    for config in (SCOUT, MAVERICK):
        now = plan(config, H100, "w4a16", 100_000, 2)
        assert sum(held(now).values()) == now.total
    assert "dense layers" not in held(plan(SCOUT)) and "dense layers" in held(now)


def test_bars_are_as_long_as_what_they_count():
    plans = {name: plan(SCOUT, H100, name) for name in ("bf16", "w4a16")}
    ax = plot_plans(plt.figure().gca(), plans)
    for row, now in enumerate(plans.values()):
        parts = [bar.get_width() for bar in ax.patches if abs(bar.get_center()[1] - row) < 0.1]
        assert sum(parts) == pytest.approx(now.total / 1e9)
    said = [text.get_text() for text in ax.texts]
    assert said == ["222 GB, does not fit", "69 GB, fits"]
    names = ax.get_legend_handles_labels()[1]
    assert len(names) == len(set(names)) == 7
    plt.close("all")


def test_plans_of_two_memories_do_not_share_a_line():
    with pytest.raises(ValueError, match="These 2 plans differ in memory"):
        plot_plans(plt.figure().gca(), {"a": plan(SCOUT, H100), "b": plan(SCOUT, H200)})
    plt.close("all")

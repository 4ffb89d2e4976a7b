"""What lies in memory, drawn: stacked bars, in the same colours here and in the planner."""

from collections.abc import Mapping

from ..serve.memory import Plan
from .colours import INK

GROUPS = {  # what a bar is made of, from left to right: its components and its colour
    "routed experts": (("routed experts",), "#c3dc5a"),
    "shared experts": (("shared experts",), "#1c902f"),
    "dense layers": (("dense layers",), "#a47684"),
    "attention": (("attention", "norms", "routers"), "#696cf4"),
    "embedding and head": (("embedding", "head"), "#b6c9c6"),
    "vision": (("vision",), "#efaa83"),
    "cache": (("cache",), "#04cfe9"),
    "workspace": (("workspace",), "#fbf501"),
}


def grouped(sizes: Mapping[str, float]) -> dict[str, float]:
    """Bytes by component -> bytes by group; the small ones go with attention."""
    groups = {name: sum(sizes.get(part, 0) for part in of) for name, (of, _) in GROUPS.items()}
    return {name: size for name, size in groups.items() if size}


def held(plan: Plan) -> dict[str, float]:
    """All that a plan needs, in bytes by group."""
    return grouped(plan.weights | {"cache": plan.cache, "workspace": plan.workspace})


def plot_plans(ax, plans: Mapping[str, Plan]):
    """A bar for each plan, the first on top, in GB; a line where the memory ends. Returns ax.

    ValueError unless all plans have the same memory: they share the line.
    """
    memory = {plan.memory for plan in plans.values()}
    if len(memory) != 1:
        raise ValueError(f"These {len(plans)} plans differ in memory: draw one figure for each.")
    end, seen = memory.pop() / 1e9, set()
    for row, plan in enumerate(plans.values()):
        left = 0.0
        for name, size in held(plan).items():
            look = dict(color=GROUPS[name][1], edgecolor="white", linewidth=0.5)
            ax.barh(row, size / 1e9, left=left, label=name if name not in seen else None, **look)
            left, seen = left + size / 1e9, {*seen, name}
        verdict = "fits" if plan.fits else "does not fit"
        box = dict(facecolor="white", edgecolor="none", pad=1)  # over the line, where they meet
        place = dict(xytext=(8, 0), textcoords="offset points", va="center", zorder=4)
        ax.annotate(f"{left:,.0f} GB, {verdict}", (left, row), color=INK, bbox=box, **place)
    ax.axvline(end, color=INK, linestyle="--", zorder=3)
    ax.set_yticks(range(len(plans)), plans)
    ax.invert_yaxis()
    ax.set_xlim(0, 1.22 * max(end, *(plan.total / 1e9 for plan in plans.values())))
    ax.set_xlabel(f"GB; the dashed line is the memory, {end:,.0f} GB")
    return ax

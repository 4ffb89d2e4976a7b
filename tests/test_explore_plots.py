"""Figures of routing: they draw for few and for many experts, and say what they show."""

import matplotlib

matplotlib.use("agg")

import matplotlib.pyplot as plt
import pytest
import torch

from minillama4.explore import plots
from minillama4.explore.colours import PALETTE
from minillama4.explore.routing import coactivation, joint, saturation, specialisation


def chosen(experts, *shape, seed=0):
    return torch.randint(experts, shape, generator=torch.Generator().manual_seed(seed))


@pytest.fixture
def ax():
    figure, ax = plt.subplots()
    yield ax
    figure.canvas.draw()  # whatever cannot be drawn fails here
    plt.close(figure)


def words(ax):
    return [text.get_text() for text in ax.texts]


def test_few_experts_are_bars_in_their_colours(ax):
    plots.plot_load(ax, torch.arange(1, 17))
    bars = ax.patches
    assert [matplotlib.colors.to_hex(bar.get_facecolor()) for bar in bars] == list(PALETTE)
    assert bars[-1].get_height() == pytest.approx(16 / 136)
    assert ax.get_xlabel() == "expert" and ax.get_ylabel() == "share of tokens"


@pytest.mark.parametrize("experts, rows, across", [(17, 3, 8), (32, 4, 8), (128, 8, 16)])
def test_many_experts_are_a_grid_of_positions(ax, experts, rows, across):
    plots.plot_load(ax, chosen(100, experts) + 1)
    assert ax.images[0].get_array().shape == (rows, across)
    assert words(ax) == [str(e) for e in range(experts)]
    assert "even" in ax.figure.axes[1].get_ylabel()


def test_specialisation_shows_the_null_and_the_interval(ax):
    labels = chosen(4, 600)
    found = [specialisation(c, labels, permutations=20) for c in (labels, chosen(4, 600, seed=1))]
    plots.plot_specialisation(ax, found, layers=[1, 3], label="domain")
    assert ax.get_legend_handles_labels()[1] == ["shuffled: mean and 95 %", "domain"]
    assert [label.get_text() for label in ax.get_xticklabels()] == ["1", "3"]
    assert ax.get_ylabel() == "nats" and ax.get_ylim()[0] == 0


@pytest.mark.parametrize("experts, numbers", [(16, 48), (32, 96), (128, 0)])
def test_experts_by_domain(ax, experts, numbers):
    table = joint(chosen(experts, 900), chosen(3, 900, seed=1), experts, 3)
    table[:, 2] = 0  # a domain that was not read
    plots.plot_experts_by_domain(ax, table, ["code", "prose", "sums"])
    shares = ax.images[0].get_array()
    assert shares.shape == (experts, 3) and shares[:, 0].sum() == pytest.approx(1)
    assert [label.get_text() for label in ax.get_xticklabels()] == ["code", "prose", "sums"]
    assert len(words(ax)) == numbers


def test_rise_may_be_below_zero(ax):
    plots.plot_rise_by_domain(ax, torch.tensor([[0.5, -0.1], [0.0, 0.2]]), ["code", "prose"])
    assert words(ax) == ["0.50", "-0.10", "0.00", "0.20"]
    assert ax.get_ylabel() == "expert switched off"
    assert ax.images[0].get_clim() == pytest.approx((-0.1, 0.5))


def test_coactivation_leaves_the_diagonal_out(ax):
    first = chosen(8, 500)
    found = coactivation(torch.stack([first, first, chosen(8, 500, seed=1)]), permutations=3)
    plots.plot_coactivation(ax, found.excess, layers=[1, 3, 5])
    assert len(words(ax)) == 6 and max(map(float, words(ax))) > 1.8
    assert [label.get_text() for label in ax.get_yticklabels()] == ["1", "3", "5"]


def test_saturation_has_a_line_for_each_layer(ax):
    found = saturation(chosen(4, 3, 8, 50), torch.tensor([0, 1, 100]))
    plots.plot_saturation(ax, found)
    assert ax.get_legend_handles_labels()[1] == [f"layer {i}" for i in range(8)]
    styles = {(line.get_linestyle(), line.get_color()) for line in ax.lines[:8]}
    assert len(styles) == 8
    assert ax.get_xlabel() == "training steps done"


def test_light_words_stand_on_dark_cells(ax):
    plots.plot_experts_by_domain(ax, torch.tensor([[9, 0], [1, 4]]), ["a", "b"])
    colours = {text.get_text(): text.get_color() for text in ax.texts}
    assert colours["0.00"] == "#ffffff" and colours["0.90"] == "#111111"

"""Figures of chapter 02: they draw what they are given."""

import math

import matplotlib.pyplot as plt
import pytest
import torch

from minillama4.explore import plots_irope


@pytest.fixture
def ax():
    figure, ax = plt.subplots()
    yield ax
    plt.close(figure)


def test_hands_turn_anticlockwise_from_the_right(ax):
    plots_irope.plot_hands(ax, torch.tensor([math.pi / 2, 0.0, 0.01]), [0, 2], [0, 1])
    tips = [(line.get_xdata()[1], line.get_ydata()[1]) for line in ax.lines]
    still, up = tips[0], tips[1]
    assert still == pytest.approx((0.38, 0)) and up == pytest.approx((1, -0.38))
    assert len(tips) == 4 and ax.yaxis_inverted()
    assert [label.get_text() for label in ax.get_yticklabels()] == [
        "pair 0, once in 4",
        "pair 2, once in 628",
    ]


def test_pairings_show_where_each_channel_goes(ax):
    plots_irope.plot_pairings(ax, 8, ["red", "blue"])
    below = [text.get_text() for text in ax.texts if text.get_position()[1] == 0]
    places = [text.get_position()[0] for text in ax.texts if text.get_position()[1] == 0]
    shown = [number for _, number in sorted(zip(places, below, strict=True))]
    assert shown == list("02461357")

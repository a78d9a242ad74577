"""Curves of a figure are told apart."""

from __future__ import annotations

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.colors import to_rgb
from test_claims import comparison
from test_comparison import run_of

from reports.figures import STYLES, fid_figure, style_of


def test_no_two_curves_look_alike():
    """Twelve differ in colour and in marker, 144 in one of both."""
    assert len(STYLES) >= 12
    colours, markers, _ = zip(*STYLES, strict=True)
    assert len(set(colours)) == len(set(markers)) == len(STYLES)
    rgb = np.array([to_rgb(colour) for colour in colours])
    apart = np.abs(rgb[:, None] - rgb[None]).max(-1) + np.eye(len(rgb))
    assert apart.min() > 0.15
    assert len({style_of(k) for k in range(len(STYLES) ** 2)}) == len(STYLES) ** 2


def test_a_figure_of_many_recipes_has_a_look_for_each():
    variants = ["vanilla", *(f"r{k}" for k in range(13))]
    figure = fid_figure(
        comparison(*(r for k, variant in enumerate(variants) for r in run_of(variant, 0, 5.0 + k))), ["iterations"]
    )
    lines = [line for line in figure.axes[0].lines if not line.get_label().startswith("_")]
    looks = [(line.get_color(), line.get_marker()) for line in lines]
    assert [line.get_label() for line in lines] == variants
    assert len(set(looks)) == len(variants)
    plt.close(figure)

"""Figures for papers: vector output, readable at column width, colours that the colour-blind can tell apart."""

from finwidth.plots.gram import kernel_on_a_circle, update_over_depth
from finwidth.plots.kernel import growth_with_depth, law_of_kernel, spread_over_depth
from finwidth.plots.style import BLUE, GREEN, GREY, ORANGE, PALETTE, STYLE, VERMILION, save
from finwidth.plots.training import kernel_in_training

__all__ = [
    "BLUE",
    "GREEN",
    "GREY",
    "ORANGE",
    "PALETTE",
    "STYLE",
    "VERMILION",
    "growth_with_depth",
    "kernel_in_training",
    "kernel_on_a_circle",
    "law_of_kernel",
    "save",
    "spread_over_depth",
    "update_over_depth",
]

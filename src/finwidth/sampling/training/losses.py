"""The losses of `finwidth.train`: value, derivative, and what they take as targets."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from finwidth import arguments
from finwidth.networks.laws import FloatArray


@dataclass(frozen=True)
class Loss:
    """A loss of outputs (..., m, n_d) and targets (m, n_d) or (..., m, n_d).

    ``total`` is its sum over inputs and outputs, shape (...); ``slope`` its derivative by the outputs.  Where
    ``classes``, users give whole numbers from 0 to n_d - 1, and the targets are those as one-hot rows.
    """

    name: str
    total: Callable[[FloatArray, FloatArray], FloatArray]
    slope: Callable[[FloatArray, FloatArray], FloatArray]
    classes: bool = False


def _squared(output: FloatArray, targets: FloatArray) -> FloatArray:
    total: FloatArray = 0.5 * np.square(output - targets).sum((-2, -1))
    return total


def _cross_entropy(output: FloatArray, targets: FloatArray) -> FloatArray:
    below = output - output.max(-1, keepdims=True)
    total: FloatArray = (np.log(np.exp(below).sum(-1)) - (below * targets).sum(-1)).sum(-1)
    return total


def _cross_entropy_slope(output: FloatArray, targets: FloatArray) -> FloatArray:
    likely = np.exp(output - output.max(-1, keepdims=True))
    difference: FloatArray = likely / likely.sum(-1, keepdims=True) - targets
    return difference


SQUARED = Loss("squared", _squared, lambda output, targets: output - targets)
LOSSES = {
    each.name: each for each in (SQUARED, Loss("cross-entropy", _cross_entropy, _cross_entropy_slope, classes=True))
}


def loss_called(name: str) -> Loss:
    """The loss of a name; raises FinwidthError if there is none."""
    return LOSSES[arguments.one_of("loss", name, LOSSES)]

"""Inputs of a network: how they are checked, and their size."""

from __future__ import annotations

import math
from collections.abc import Sequence
from decimal import Decimal
from fractions import Fraction
from numbers import Rational
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from finwidth import arguments
from finwidth.arguments import FloatArray
from finwidth.errors import FinwidthError, shown
from finwidth.networks.description import Network, check_network
from finwidth.networks.widths import format_widths

_ORDINARY = 256  # powers of two: lengths of inputs whose squares and their products are far from a double's ends

Vector: TypeAlias = npt.ArrayLike | Sequence[Fraction | float]  # an input; numbers of any kind, shape (n_0,)


def check_inputs(net: Network, X: npt.ArrayLike) -> FloatArray:
    """Several inputs of shape (m, n_0), as float64; raises FinwidthError unless they are finite and fit the network."""
    wanted = f"give an array of shape (m, {check_network(net).widths[0]}), a row for each input: one input x is [x]"
    array = arguments.numbers(X)
    if array is None:
        raise FinwidthError(f"the inputs are {shown(X)}, not an array of numbers; {wanted}")
    if array.ndim != 2 or array.shape[1] != net.widths[0] or not len(array):
        raise FinwidthError(f"the inputs have shape {array.shape}; {wanted}")
    if not np.isfinite(array).all():
        row, place = np.argwhere(~np.isfinite(array))[0]
        raise FinwidthError(f"input {row} holds {array[row, place]} at place {place}; give finite numbers")
    return array


def check_input(net: Network, x: Vector) -> FloatArray:
    """One input of shape (n_0,) as float64; raises FinwidthError unless it is finite and fits the network."""
    return check_vector(x, check_network(net).widths)


def check_vector(x: Vector, widths: Sequence[int]) -> FloatArray:
    """One input for a network of these widths, as `check_input`."""
    wanted = f"give {widths[0]} finite number{'s' * (widths[0] > 1)}"
    array = arguments.numbers(x)
    if array is None:
        raise FinwidthError(f"the input {shown(x)} is not an array of numbers; {wanted}")
    if array.shape != (widths[0],):
        raise FinwidthError(
            f"the input has shape {array.shape}, and the network {format_widths(widths)} takes ({widths[0]},); {wanted}"
        )
    if not np.isfinite(array).all():
        place = int(np.flatnonzero(~np.isfinite(array))[0])
        raise FinwidthError(f"the input holds {array[place]} at place {place}; {wanted}")
    return array


def exact_input(net: Network, x: Vector) -> tuple[Fraction, ...]:
    """One input as fractions: what is given exactly (integers, fractions, decimals, binary floats) stays exact."""
    array = check_input(net, x)
    given = x if isinstance(x, Sequence) else x.tolist() if isinstance(x, np.ndarray) else array
    return tuple(
        arguments.as_fraction(value if isinstance(value, Rational | Decimal) else number)
        for value, number in zip(given, array, strict=True)
    )


def exponent(x: FloatArray) -> int:
    """The power of two by which an input's size leaves the ordinary range, where its square is safe; 0 within it.

    >>> import numpy as np
    >>> from finwidth.networks.inputs import exponent
    >>> exponent(np.array([3.0, 4.0])), exponent(np.array([2.0**-700, 0.0]))
    (0, -700)
    """
    largest = float(np.abs(x).max(initial=0.0))
    found = math.frexp(largest)[1] - 1
    return found if largest and math.isfinite(largest) and abs(found) > _ORDINARY else 0


def extreme_input(net: Network, X: FloatArray) -> str:
    """Which of several inputs is to blame for numbers past the range of a double.

    A normalised network divides by the length of what an input becomes, so that tiny inputs make huge numbers too.
    """
    largest = np.abs(X).max(1)
    if net.norm is None:
        return f"the largest number among the inputs is {largest.max():.3g} (input {largest.argmax()})"
    size = np.abs(np.log(np.where(largest > 0, largest, 1)))
    return (
        f"the largest entry of input {size.argmax()} is {largest[size.argmax()]:.3g}, while a normalised network takes "
        "one between 1e-77 and 1e77"
    )

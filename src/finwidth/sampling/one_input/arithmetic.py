"""What the chains compute with, over the arrays of NumPy or torch.

Where no number of an array is 0 quotients are one operation; tensors are not looked at, as a device would have to be
waited for.
"""

from __future__ import annotations

import numpy as np

from finwidth.networks.activations import Array


def times_power_of_two(values: Array, power: int) -> Array:
    """The values times 2^power, which may take two steps to reach."""
    half = power // 2
    return values * 2.0**half * 2.0 ** (power - half) if power else values


def over(value: Array, divisor: Array) -> Array:
    """The quotient, and 0 where the divisor is, which is 0 or more."""
    if isinstance(divisor, np.ndarray) and divisor.min(initial=np.inf) > 0:
        return value / divisor
    return value / (divisor + (divisor == 0)) * (divisor > 0)


def polar(x: Array, y: Array) -> tuple[Array, Array, Array]:
    """The length of (x, y), and the cosine and sine of its angle: 1 and 0 where the length is 0.

    Examples
    --------
    >>> import numpy as np
    >>> from finwidth.sampling.one_input.arithmetic import polar
    >>> [column.tolist() for column in polar(np.array([3.0, 0.0]), np.array([4.0, 0.0]))]
    [[5.0, 0.0], [0.6000000000000001, 1.0], [0.8, 0.0]]
    """
    length = (x * x + y * y) ** 0.5
    if isinstance(length, np.ndarray) and length.min(initial=np.inf) > 0:
        inverse = 1 / length
        return length, x * inverse, y * inverse
    zero = length == 0
    inverse = 1 / (length + zero)
    return length, x * inverse + zero, y * inverse

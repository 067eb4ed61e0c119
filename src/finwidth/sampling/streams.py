"""Random streams: one integer seed gives the same numbers whatever the order or the number of workers."""

from __future__ import annotations

import operator

import numpy as np

from finwidth.errors import FinwidthError


def check_seed(seed: int) -> int:
    """The seed as an int; raises FinwidthError unless it is a whole number of at least 0."""
    try:
        number = operator.index(seed)
    except TypeError:
        raise FinwidthError(f"seed is {seed!r}; give a whole number, 0 or more, such as seed=0") from None
    if number < 0:
        raise FinwidthError(f"seed is {seed!r}; give a whole number, 0 or more, such as seed=0")
    return number


def stream(seed: int, chunk: int) -> np.random.Generator:
    """The generator of one chunk of draws; chunks are independent of each other and of who draws them.

    SFC64, the fastest of NumPy's bit generators, under a spawn key of the chunk's number.
    """
    return np.random.Generator(np.random.SFC64(np.random.SeedSequence(seed, spawn_key=(chunk,))))

"""Draws of the kernel at one input in law, and what tests compare of their joint law."""

from __future__ import annotations

import tracemalloc
from collections.abc import Callable
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

import finwidth
from finwidth.networks.description import Network
from finwidth.sampling.one_input.sample import one_input_sampler
from finwidth.sampling.sampler import Chunk

Drawn: TypeAlias = dict[str, npt.NDArray[np.float64]]
View: TypeAlias = Callable[[Drawn], npt.NDArray[np.float64]]

X = [1.0, -2.0, 2.0]
DRAWS = 20_000
# Functions of a joint draw whose laws are compared: the marginals, and combinations that see the dependence.
VIEWS: dict[str, View] = {
    "output": lambda d: d["output"],
    "K_w": lambda d: d["K_w"],
    "K_b": lambda d: d["K_b"],
    "dK": lambda d: d["dK"],
    "K_w against K_b": lambda d: d["K_w"] / d["K_b"],
    "output against K": lambda d: d["output"] ** 2 / d["K"],
    "dK against both": lambda d: d["dK"] / (1e-9 + d["output"] ** 2) / d["K"],
}


def draw(net: Network, x: Any = X, draws: int = DRAWS, seed: int = 3, **how: Any) -> Drawn:
    found = finwidth.sample(net, x, draws, seed, **how)
    return {str(name): column.to_numpy() for name, column in found.items()}


def viewed(view: str, drawn: Drawn) -> npt.NDArray[np.float64]:
    return rounded(VIEWS[view], drawn, 9)


def rounded(view: View, drawn: Drawn, digits: int) -> npt.NDArray[np.float64]:
    """Rounded, so that numbers that are equal but for rounding are ties."""
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.nan_to_num(view(drawn), posinf=0).round(digits)


def assert_memory_is_told(net: Network) -> None:
    """A chunk needs no more than its sampler says, and at least half of it."""
    sampler = one_input_sampler(net, X)
    size = sampler.chunk_size
    sampler.draw(Chunk(0, 0, size))
    tracemalloc.start()
    sampler.draw(Chunk(0, 1, size))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak <= sampler.memory(size) <= 2 * peak

"""The grid: its axes, its cells, and the random seed that belongs to a cell wherever it stands."""

from __future__ import annotations

import hashlib
import json
from typing import Any, NamedTuple

import numpy as np

from finwidth.errors import FinwidthError
from finwidth.inputs import parse_input
from finwidth.networks.inputs import check_input
from finwidth.networks.laws import FloatArray
from finwidth.networks.mlp import MLP

# In the order of the stored arrays' dimensions; an axis `ratio` (depth over width) may stand in the place of `width`.
AXES = {
    "n_0": "input width",
    "law": "weight law",
    "activation": "activation",
    "parameterization": "parameterization",
    "input": "input",
    "depth": "depth d, the number of weight layers",
    "width": "width n of the hidden layers",
}
RATIO = "depth over width d/n, before the width was rounded"
TEXT_AXES = ("law", "activation", "parameterization", "input")


class Cell(NamedTuple):
    """One network at one input: a point of the grid."""

    n_0: int
    law: str
    activation: str
    parameterization: str
    input: str
    depth: int
    width: int

    def network(self, more: dict[str, Any]) -> MLP:
        """The network (n_0, n, ..., n, 1) of the cell, with further arguments of `MLP`."""
        widths = [self.n_0, *[self.width] * (self.depth - 1), 1]
        return MLP(widths, self.law, self.activation, self.parameterization, **more)


def width_at(depth: int, ratio: float) -> int:
    """The whole width nearest to depth over ratio, at least 1."""
    return max(1, round(depth / ratio))


def cell_seed(seed: int, cell: Cell, quantity: str, stage: str) -> int:
    """The seed of one stage of one quantity of one cell: a hash of what they are.

    It does not depend on the other cells, nor on the order or place in which cells are computed, so neither do the
    draws. The sampled estimates of a cell are those of `finwidth.sample` with this seed.

    Examples
    --------
    >>> from finwidth.sweeps.schema.grid import Cell, cell_seed
    >>> cell = Cell(2, "gaussian", "relu", "ntk", "1,2", 3, 16)
    >>> cell_seed(0, cell, "sampled", "draws") == cell_seed(0, cell._replace(width=17), "sampled", "draws")
    False
    """
    identity = json.dumps([seed, quantity, stage, cell._asdict()], sort_keys=True)
    return int.from_bytes(hashlib.blake2b(identity.encode(), digest_size=16).digest())


def input_vector(name: str, n_0: int | None, folder: Any) -> FloatArray:
    """The input called ``name``, shape (n_0,), float64; where n_0 is None, as long as the name says.

    ``"ones"``: all entries 1, squared norm n_0. ``"unit"``: the same direction, norm 1. ``"random:7"``: the direction
    number 7 of a uniform law, squared norm n_0. Otherwise as on the command line: numbers, a .npy file (found from
    ``folder``), or an image of scikit-learn's digits.
    """
    if name in {"ones", "unit"} or name.startswith("random:"):
        if n_0 is None:
            raise FinwidthError(f"the input {name!r} fits any input width, so n_0 must be given")
        if name.startswith("random:"):
            return _random_direction(name, n_0)
        return np.ones(n_0) if name == "ones" else np.full(n_0, n_0**-0.5)
    vector: Any = parse_input(str(folder / name) if name.endswith(".npy") else name)
    return check_input(MLP([len(vector) if n_0 is None else n_0, 1]), vector)


def _random_direction(name: str, n_0: int) -> FloatArray:
    number = name.removeprefix("random:")
    if not number.isdecimal() or len(number) > 18:
        raise FinwidthError(f"the input {name!r} is not a random direction; give a number, such as random:7")
    vector = np.random.Generator(np.random.PCG64(int(number))).standard_normal(n_0)
    scaled: FloatArray = vector * (n_0 / np.square(vector).sum()) ** 0.5
    return scaled

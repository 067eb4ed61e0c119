"""The grid: its axes, its cells, and the random seed that belongs to a cell wherever it stands."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

import numpy as np

from finwidth.errors import FinwidthError
from finwidth.inputs import OF_ANY_WIDTH, parse_input
from finwidth.networks.activations import ACTIVATIONS
from finwidth.networks.description import BIASES, Network
from finwidth.networks.family import Family
from finwidth.networks.inputs import check_vector
from finwidth.networks.laws import LAWS, FloatArray
from finwidth.networks.mlp import PARAMETERIZATIONS
from finwidth.sweeps.schema.kinds import NetworkTable, Value, factor_text, kind_of, norm_text
from finwidth.sweeps.schema.values import name_in, nonempty_text, number_in, true_or_false, whole_number

_DEEPEST, _WIDEST_INPUT = 10**6, 10**7

Vectors: TypeAlias = Mapping[tuple[str, int], FloatArray]  # inputs by name and input width


@dataclass(frozen=True)
class Axis:
    """One axis of the grid: its meaning, the check of a value, and whether values are no numbers: texts or flags."""

    meaning: str
    check: Callable[[object], Value]
    text: bool = False


# Arguments of descriptions, one value for all layers or blocks: in [network] the same for all cells, in [axes] an axis.
# A further argument is one entry, at the end. An axis that a config does not give does not enter the seed of a cell.
ARGUMENTS = {
    "bias": Axis("biases", name_in(BIASES), text=True),
    "bias_law": Axis("law of the initial biases", name_in(LAWS), text=True),
    "gains": Axis("fan-in times the variance of a weight", number_in(1e-30, 1e30)),
    "bias_variance": Axis("variance of the initial biases", number_in(0, 1e30)),
    "bias_scale": Axis("multiplier of the biases", number_in(0, 1e30)),
    "base_widths": Axis("hidden width at which the parameterization mup is the standard one", whole_number(1)),
    "hidden": Axis("hidden width of the blocks", whole_number(1)),
    "skip": Axis("factor of the stream in a block", factor_text, text=True),
    "branch": Axis("factor of the branch of a block", factor_text, text=True),
    "norm": Axis("how hidden layers, or what blocks read, are normalised", norm_text, text=True),
    "signs": Axis("whether blocks of one matrix have random signs", true_or_false, text=True),
}
# In the order of the stored arrays' dimensions; an axis `ratio` (depth over width) may stand in the place of `width`.
AXES = {
    "n_0": Axis("input width", whole_number(1, _WIDEST_INPUT)),
    "law": Axis("weight law", name_in(LAWS), text=True),
    "activation": Axis("activation", name_in(ACTIVATIONS), text=True),
    "parameterization": Axis("parameterization", name_in(PARAMETERIZATIONS), text=True),
    **ARGUMENTS,
    "input": Axis("input", nonempty_text, text=True),
    "depth": Axis("how often the network repeats its layers or blocks", whole_number(1, _DEEPEST)),
    "width": Axis("width of the layers or of the stream", whole_number(1)),
}
_RATIO = Axis("depth over width d/n, before the width was rounded", number_in(1e-9, 1e6))
ALL_AXES = {**AXES, "ratio": _RATIO}
DEFAULTS = {"law": "gaussian", "activation": "relu", "parameterization": "ntk", "input": "ones"}


class Cell(NamedTuple):
    """One network at one input: a point of the grid. ``more`` holds its values on the axes of `ARGUMENTS`, if any."""

    n_0: int
    law: str
    activation: str
    parameterization: str
    input: str
    depth: int
    width: int
    more: tuple[tuple[str, Value], ...] = ()

    def coordinates(self) -> dict[str, Value]:
        """The value on each axis."""
        values = self._asdict()
        return values | dict(values.pop("more"))

    def __repr__(self) -> str:
        return f"Cell({', '.join(f'{name}={value!r}' for name, value in self.coordinates().items())})"

    def arguments(self, common: NetworkTable) -> dict[str, Value]:
        """Arguments of the network beside its size; ``common`` is the table [network], which all cells share."""
        own = {"weight_law": self.law, "activation": self.activation, "parameterization": self.parameterization}
        return {**own, **dict(self.more), **{name: value for name, value in common.items() if name != "kind"}}

    def network(self, common: NetworkTable) -> Network:
        """The network of the cell, of the kind that ``common`` says."""
        return self.family(common).net(self.n_0, self.width, self.depth)

    def family(self, common: NetworkTable) -> Family:
        """The networks that are as that of the cell but for width and depth."""
        return kind_of(common).family(self.arguments(common))


def axes_of(network: NetworkTable) -> dict[str, Axis]:
    """The axes that a sweep over networks of this kind may have."""
    kind = kind_of(network)
    return {name: axis for name, axis in ALL_AXES.items() if name not in ARGUMENTS or kind.takes(name)}


def meaning_of(axis: str, network: NetworkTable) -> str:
    """What an axis means."""
    kind = kind_of(network)
    return {"depth": kind.depth, "width": kind.width}.get(axis, ALL_AXES[axis].meaning)


def make_cell(values: Iterable[tuple[str, Any]]) -> Cell:
    """The cell of these values, by axis; a ratio stands for a width."""
    found = dict(values)
    if "ratio" in found:
        found["width"] = _width_at(found["depth"], found.pop("ratio"))
    more = tuple((name, found.pop(name)) for name in ARGUMENTS if name in found)
    return Cell(**found, more=more)


def _width_at(depth: int, ratio: float) -> int:
    """The whole width nearest to depth over ratio, at least 1."""
    return max(1, round(depth / ratio))


def cell_seed(seed: int, cell: Cell, quantity: str, stage: str) -> int:
    """The seed of one stage of one quantity of one cell: a hash of what they are.

    It does not depend on the other cells, nor on the order or place in which cells are computed, so neither do the
    draws. `finwidth.sample` with this seed gives the sampled estimates of the cell.

    Examples
    --------
    >>> from finwidth.sweeps.schema.grid import Cell, cell_seed
    >>> cell = Cell(2, "gaussian", "relu", "ntk", "1,2", 3, 16)
    >>> cell_seed(0, cell, "sampled", "draws") == cell_seed(0, cell._replace(width=17), "sampled", "draws")
    False
    """
    identity = json.dumps([seed, quantity, stage, cell.coordinates()], sort_keys=True)
    return int.from_bytes(hashlib.blake2b(identity.encode(), digest_size=16).digest())


def input_vector(name: str, n_0: int | None, folder: Path) -> FloatArray:
    """The input called ``name``, shape (n_0,), float64; where n_0 is None, as long as the name says.

    ``"ones"``: all entries 1, squared norm n_0. ``"unit"``: the same direction, norm 1. ``"random:7"``: the direction
    number 7 of a uniform law, squared norm n_0. Otherwise as on the command line: numbers, a .npy file (found from
    ``folder``), or an image of scikit-learn's digits.
    """
    if n_0 is None and name.startswith(OF_ANY_WIDTH):
        raise FinwidthError(f"the input {name!r} fits any input width, so n_0 must be given")
    vector = np.asarray(parse_input(str(folder / name) if name.endswith(".npy") else name, n_0))
    return check_vector(vector, [len(vector) if n_0 is None else n_0, 1])

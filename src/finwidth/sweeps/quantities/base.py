"""A quantity of a sweep: its settings in a config, its record in the store, and how a cell is computed."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, TypeAlias

import numpy as np
import numpy.typing as npt

from finwidth.networks.laws import FloatArray
from finwidth.networks.mlp import MLP
from finwidth.sweeps.schema.document import Document
from finwidth.sweeps.schema.grid import Cell

Vectors: TypeAlias = Mapping[tuple[str, int], FloatArray]  # inputs by name and input width
Variable: TypeAlias = tuple[tuple[str, ...], npt.NDArray[Any], dict[str, Any]]  # further dimensions, values, attrs


@dataclass(frozen=True)
class Settings:
    """Common to all cells of a quantity: the seed, further arguments of `MLP`, and the quantity's own table."""

    seed: int
    network: dict[str, Any]
    table: Mapping[str, Any]


class Kind(ABC):
    """One quantity. Its record of a cell is an array of numbers, none of them NaN, which the store holds as it is.

    Attributes
    ----------
    name
        What configs call it.
    keys
        Of its table in a config.
    growing
        Of these, settings that may grow when a sweep goes on: more draws add to those there are.
    block
        How many depths and widths are computed, stored, and lost when a sweep is killed, together.
    """

    name: ClassVar[str]
    keys: ClassVar[tuple[str, ...]] = ()
    growing: ClassVar[tuple[str, ...]] = ()
    block: ClassVar[tuple[int, int]] = (1, 1)

    def settings(self, document: Document, table: dict[str, Any]) -> dict[str, Any]:
        """The checked settings, in plain types, of the quantity's table."""
        return table

    def inputs(self, table: Mapping[str, Any]) -> Sequence[str]:
        """Names of the inputs that the quantity needs in addition to the cell's."""
        return ()

    @abstractmethod
    def check(self, net: MLP, settings: Settings) -> None:
        """Raise FinwidthError if it cannot be had for a network like ``net``."""

    @abstractmethod
    def dims(self, table: Mapping[str, Any]) -> dict[str, list[Any]]:
        """The dimensions of a record and their labels."""

    @abstractmethod
    def compute(
        self,
        cells: Sequence[Cell],
        settings: Settings,
        vectors: Vectors,
        previous: FloatArray | None,
        pause: Callable[[], None],
    ) -> FloatArray:
        """The records of some cells, shape (cells, *dims).

        ``previous`` holds those stored before, which may have been computed with fewer draws. ``pause`` is called now
        and then; it raises an exception when the sweep is stopped.
        """

    def finished(self, records: FloatArray, table: Mapping[str, Any]) -> npt.NDArray[np.bool_]:
        """Whether each stored record, shape (..., *dims), is what the settings ask for; NaN stands for none."""
        return ~np.isnan(first_of(records, len(self.dims(table))))

    def allowed(self, records: FloatArray, table: Mapping[str, Any]) -> npt.NDArray[np.bool_]:
        """Whether each record, shape (..., *dims), is none or may stand in a store with these settings."""
        return np.ones(records.shape[: records.ndim - len(self.dims(table))], bool)

    def numerics(self, table: Mapping[str, Any]) -> dict[str, Any]:
        """What the bits of its numbers depend on, as it is in this process, beside versions; empty if on nothing."""
        return {}

    @abstractmethod
    def variables(self, records: FloatArray, table: Mapping[str, Any]) -> dict[str, Variable]:
        """The records as variables of a Dataset."""

    def converged(self, records: FloatArray, table: Mapping[str, Any]) -> tuple[int | None, list[str]]:
        """Number of converged cells (None if not applicable), and warnings about the others."""
        return None, []

    def work(self, cell: Cell, table: Mapping[str, Any]) -> float:
        """About how long a cell takes, in microseconds."""
        return 10.0 * cell.depth

    def memory(self, cell: Cell, settings: Settings) -> int:
        """Bytes that computing a cell takes; 0 where it is never much."""
        return 0


def first_of(records: FloatArray, dimensions: int) -> FloatArray:
    """The first entry along each of the last ``dimensions`` dimensions: one number for each cell."""
    index: Any = (..., *[0] * dimensions)
    found: FloatArray = records[index]
    return found

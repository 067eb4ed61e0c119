"""A quantity of a sweep: its settings in a config, its record in the store, and how a cell is computed."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import EllipsisType
from typing import ClassVar, Generic, TypeAlias, TypeVar

import numpy as np
import numpy.typing as npt

from finwidth.networks.description import Network
from finwidth.networks.laws import FloatArray
from finwidth.sweeps.schema.document import Document
from finwidth.sweeps.schema.grid import Cell, Vectors
from finwidth.sweeps.schema.kinds import NetworkTable, Value

Flags: TypeAlias = npt.NDArray[np.bool_]
Column: TypeAlias = FloatArray | Flags | npt.NDArray[np.int64]
Variable: TypeAlias = tuple[tuple[str, ...], Column, dict[str, str]]  # further dimensions, values, attrs
Numerics: TypeAlias = Mapping[str, Value | None]  # facts on libraries and the processor
Dims: TypeAlias = dict[str, list[Value]]  # labels by dimension
Table = TypeVar("Table", bound=Mapping[str, object])  # the checked settings of one quantity


@dataclass(frozen=True)
class Settings(Generic[Table]):
    """Common to all cells of a quantity: the seed, the table [network], and the quantity's own table."""

    seed: int
    network: NetworkTable
    table: Table


@dataclass(frozen=True)
class CellBatch(Generic[Table]):
    """Cells that are computed together, with everything that is needed to compute them anywhere.

    ``previous`` holds their stored records, shape (cells, *dims), which may rest on fewer draws; None unless all have
    one.
    """

    cells: Sequence[Cell]
    settings: Settings[Table]
    vectors: Vectors
    previous: FloatArray | None = None

    def rows(self) -> Iterator[tuple[Cell, FloatArray | None]]:
        """Each cell with its previous record, shape (entries, statistics)."""
        for place, cell in enumerate(self.cells):
            yield cell, None if self.previous is None else self.previous[place].reshape(-1, self.previous.shape[-1])


class SweepQuantity(ABC, Generic[Table]):
    """One quantity. Its record of a cell is an array of numbers, none of them NaN, which the store holds as it is.

    Attributes
    ----------
    name
        The word for it in configs.
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

    @abstractmethod
    def settings(self, document: Document, table: Mapping[str, object]) -> Table:
        """The checked settings, in plain types, of the quantity's table."""

    def inputs(self, table: Table) -> Sequence[str]:
        """Names of the inputs that the quantity needs in addition to the cell's."""
        return ()

    @abstractmethod
    def check(self, net: Network, settings: Settings[Table]) -> None:
        """Raise FinwidthError if it cannot be had for a network like ``net``."""

    @abstractmethod
    def dims(self, table: Table) -> Dims:
        """The dimensions of a record, by names that no other quantity has, and their labels.

        There is at least one, with one label where a record is one number.
        """

    def coordinates(self, table: Table) -> Dims:
        """The dimensions of its variables and their labels: those of a record, unless it makes others of them."""
        return self.dims(table)

    @abstractmethod
    def compute(self, batch: CellBatch[Table], check_cancelled: Callable[[], None]) -> FloatArray:
        """The records of some cells, shape (cells, *dims).

        ``check_cancelled`` is called now and then; it raises an exception when the sweep is stopped.
        """

    def finished(self, records: FloatArray, table: Table) -> Flags:
        """Whether each stored record, shape (..., *dims), is complete under these settings; NaN stands for none."""
        return ~np.isnan(first_of(records, len(self.dims(table))))

    def allowed(self, records: FloatArray, table: Table) -> Flags:
        """Whether each record, shape (..., *dims), is none or may stand in a store with these settings."""
        return np.ones(records.shape[: records.ndim - len(self.dims(table))], bool)

    def numerics(self, table: Table) -> Numerics:
        """The libraries and processor features, beside versions, that its bits depend on here; empty if on none."""
        return {}

    @abstractmethod
    def variables(self, records: FloatArray, table: Table) -> dict[str, Variable]:
        """The records as variables of a Dataset."""

    def converged(self, records: FloatArray, table: Table) -> tuple[int | None, list[str]]:
        """Number of converged cells (None if not applicable), and warnings about the others."""
        return None, []

    def work(self, cell: Cell, table: Table) -> float:
        """About how long a cell takes, in microseconds."""
        return 10.0 * cell.depth

    def memory(self, cell: Cell, settings: Settings[Table]) -> int:
        """Bytes that computing a cell takes; 0 where it is never much."""
        return 0


def first_of(records: FloatArray, dimensions: int) -> FloatArray:
    """The first entry along each of the last ``dimensions`` dimensions: one number for each cell."""
    index: tuple[EllipsisType | int, ...] = (..., *[0] * dimensions)
    found: FloatArray = records[index]
    return found

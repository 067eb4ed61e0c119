"""Tasks: blocks of cells of one quantity, and computing one, in whatever thread or process."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple, TypeAlias

from finwidth.execution.task import Cancel, OnCluster, Shared
from finwidth.networks.laws import FloatArray
from finwidth.sweeps.quantities.base import CellBatch, Numerics
from finwidth.sweeps.quantities.registry import QUANTITIES

AnyBatch: TypeAlias = CellBatch[Any]  # with the settings of its quantity


@dataclass(frozen=True)
class Task:
    """A block of cells of one quantity: where they are in the grid, and how many of them were not done before."""

    quantity: str
    region: tuple[slice, ...]
    batch: AnyBatch
    new: int

    def work(self) -> float:
        """About how long it takes, in microseconds."""
        return sum(QUANTITIES[self.quantity].work(cell, self.batch.settings.table) for cell in self.batch.cells)

    def told(self) -> str:
        """What it computes, by its first cell."""
        return f"{self.quantity} of {self.batch.cells[0]}"

    def needs(self) -> tuple[str, ...]:
        """Nothing: it holds what it takes."""
        return ()


class Computed(NamedTuple):
    """The records of a task, shape (cells, *dims), and the numerics of where they were computed."""

    records: FloatArray
    numerics: Numerics


def perform(task: Task, check_cancelled: Cancel = lambda: None) -> Computed:
    """Compute a task, here."""
    quantity = QUANTITIES[task.quantity]
    return Computed(quantity.compute(task.batch, check_cancelled), quantity.numerics(task.batch.settings.table))


class SweepOnCluster(OnCluster[Task, Computed]):
    """The tasks of a sweep on a cluster."""

    change = "make the cell smaller"

    @staticmethod
    def perform(task: Task, shared: Shared) -> Computed:
        """Compute a task, on a worker."""
        return perform(task)

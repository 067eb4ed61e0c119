"""Tasks: blocks of cells of one quantity, and computing one, in whatever thread or process."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeAlias

from finwidth.networks.laws import FloatArray
from finwidth.sweeps.quantities.base import Batch, Numerics
from finwidth.sweeps.quantities.registry import QUANTITIES

AnyBatch: TypeAlias = Batch[Any]  # with the settings of its quantity


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


class Computed(NamedTuple):
    """The records of a task, shape (cells, *dims), and the numerics of where they were computed."""

    records: FloatArray
    numerics: Numerics


def perform(task: Task, check_cancelled: Callable[[], None] = lambda: None) -> Computed:
    """Compute a task, here."""
    quantity = QUANTITIES[task.quantity]
    return Computed(quantity.compute(task.batch, check_cancelled), quantity.numerics(task.batch.settings.table))

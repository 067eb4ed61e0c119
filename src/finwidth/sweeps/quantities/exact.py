"""Exact moments and the paper's forms, for blocks of the grid at once."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import groupby
from typing import TypedDict

import numpy as np

from finwidth.errors import FinwidthError
from finwidth.exact.bounds import STATEMENTS, log_forms, unsupported
from finwidth.exact.grid import moments_grid
from finwidth.networks.laws import FloatArray
from finwidth.networks.mlp import MLP
from finwidth.sweeps.quantities.base import Batch, Dims, Settings, SweepQuantity, Variable
from finwidth.sweeps.schema.document import Document
from finwidth.sweeps.schema.grid import Cell

_EXACT = {
    "mean": "exact mean of the kernel, E[K]",
    "log_second_moment": "log of the exact second moment of the kernel, log E[K^2]",
    "cv": "exact coefficient of variation of the kernel",
    "dK": "exact mean change of K per unit learning rate under one SGD step, E[Delta K]/lambda",
    "log_dK": "log of its absolute value",
}


class NoSettings(TypedDict):
    """The settings of a quantity whose table in a config has no keys."""


class ExactQuantity(SweepQuantity[NoSettings]):
    """Exact moments by `finwidth.exact.grid.moments_grid`."""

    name = "exact"
    block = (64, 256)

    def settings(self, document: Document, table: Mapping[str, object]) -> NoSettings:
        """It has no settings."""
        return {}

    def check(self, net: MLP, settings: Settings[NoSettings]) -> None:
        """Refuse activations without exact moments."""
        net.activation.gate_moment(2)

    def dims(self, table: NoSettings) -> Dims:
        """One: the variables of `moments_grid`."""
        return {"exact_statistic": list(_EXACT)}

    def compute(self, batch: Batch[NoSettings], check_cancelled: Callable[[], None]) -> FloatArray:
        """All depths and widths of networks that are alike otherwise, in one pass."""
        cells = batch.cells
        records = np.empty((len(cells), len(_EXACT)))
        for first, places in _alike(cells):
            check_cancelled()
            depths = sorted({cells[place].depth for place in places})
            widths = sorted({cells[place].width for place in places})
            x = batch.vectors[first.input, first.n_0]
            with np.errstate(over="ignore"):  # inf says so
                found = moments_grid(widths, depths, x, **first.arguments(batch.settings.network))
            rows = np.searchsorted(widths, [cells[place].width for place in places])
            columns = np.searchsorted(depths, [cells[place].depth for place in places])
            for k, name in enumerate(_EXACT):
                records[places, k] = found[name].to_numpy()[rows, columns]
        return records

    def variables(self, records: FloatArray, table: NoSettings) -> dict[str, Variable]:
        """One for each statistic."""
        return {
            f"exact_{name}": ((), records[..., k], {"long_name": meaning})
            for k, (name, meaning) in enumerate(_EXACT.items())
        }


def _alike(cells: Sequence[Cell]) -> Iterable[tuple[Cell, list[int]]]:
    """The places of cells that differ in depth and width only, with one cell of each group."""

    def rest(place: int) -> Cell:
        return cells[place]._replace(depth=0, width=0)

    for _, group in groupby(sorted(range(len(cells)), key=rest), key=rest):
        places = list(group)
        yield cells[places[0]], places


class BoundsQuantity(SweepQuantity[NoSettings]):
    """The paper's forms by `finwidth.exact.bounds.log_forms`."""

    name = "bounds"
    block = (16, 64)

    def settings(self, document: Document, table: Mapping[str, object]) -> NoSettings:
        """It has no settings."""
        return {}

    def check(self, net: MLP, settings: Settings[NoSettings]) -> None:
        """Refuse networks that are not the paper's."""
        if outside := ", ".join(unsupported(net)):
            raise FinwidthError(f"the paper's forms do not cover it: {outside}")

    def dims(self, table: NoSettings) -> Dims:
        """One: the quantities of the paper's statements."""
        return {"form": list(STATEMENTS)}

    def compute(self, batch: Batch[NoSettings], check_cancelled: Callable[[], None]) -> FloatArray:
        """Cell by cell."""
        records = np.empty((len(batch.cells), len(STATEMENTS)))
        for record, cell in zip(records, batch.cells, strict=True):
            check_cancelled()
            forms = log_forms(cell.network(batch.settings.network), batch.vectors[cell.input, cell.n_0])
            record[:] = [forms[name] for name in STATEMENTS]
        return records

    def variables(self, records: FloatArray, table: NoSettings) -> dict[str, Variable]:
        """The logarithms of all forms."""
        attrs = {"long_name": "log of the paper's form, exp(5 beta) with the output layer's constant e^5 in it"}
        return {"bounds_log_form": (("form",), records, attrs)}

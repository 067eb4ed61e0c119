"""Exact moments and the paper's forms, for blocks of the grid at once."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import groupby
from typing import TypedDict, cast

import numpy as np

from finwidth.errors import FinwidthError
from finwidth.exact.bounds import STATEMENTS, log_forms, unsupported
from finwidth.exact.grid import grid_moments
from finwidth.exact.moments import moments
from finwidth.networks.description import Network
from finwidth.networks.family import FamilyOptions
from finwidth.networks.laws import FloatArray
from finwidth.networks.routes import check_mlp, check_supported, not_normalised
from finwidth.sweeps.quantities.base import CellBatch, Dims, Settings, SweepQuantity, Variable
from finwidth.sweeps.schema.document import Document
from finwidth.sweeps.schema.grid import Cell
from finwidth.sweeps.schema.kinds import NetworkTable

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
    """Exact moments: of a block at once, of normalised networks one by one."""

    name = "exact"
    block = (64, 256)

    def settings(self, document: Document, table: Mapping[str, object]) -> NoSettings:
        """It has no settings."""
        return {}

    def check(self, net: Network, settings: Settings[NoSettings]) -> None:
        """Refuse networks without exact moments."""
        check_supported("finwidth.moments", net)

    def dims(self, table: NoSettings) -> Dims:
        """One: the variables of `moments_grid`."""
        return {"exact_statistic": list(_EXACT)}

    def compute(self, batch: CellBatch[NoSettings], check_cancelled: Callable[[], None]) -> FloatArray:
        """Networks that are alike but for depth and width together."""
        cells, common = batch.cells, batch.settings.network
        records = np.empty((len(cells), len(_EXACT)))
        for first, places in _but_for_sizes(cells):
            check_cancelled()
            x = batch.vectors[first.input, first.n_0]
            compute = _each_by_itself if not_normalised(first.network(common)) else _on_a_grid
            records[places] = compute([cells[place] for place in places], common, x, check_cancelled)
        return records

    def variables(self, records: FloatArray, table: NoSettings) -> dict[str, Variable]:
        """One for each statistic."""
        return {
            f"exact_{name}": ((), records[..., k], {"long_name": meaning})
            for k, (name, meaning) in enumerate(_EXACT.items())
        }


def _on_a_grid(
    cells: Sequence[Cell], common: NetworkTable, x: FloatArray, check_cancelled: Callable[[], None]
) -> FloatArray:
    """All depths and widths in one pass."""
    depths, widths = (sorted({getattr(cell, axis) for cell in cells}) for axis in ("depth", "width"))
    with np.errstate(over="ignore"):  # inf says so
        family = cells[0].family(common)
        found = grid_moments(widths, depths, x, kind=family.kind, **cast("FamilyOptions", family.options))
    rows = np.searchsorted(widths, [cell.width for cell in cells])
    columns = np.searchsorted(depths, [cell.depth for cell in cells])
    return np.stack([found.values[name][rows, columns] for name in _EXACT], axis=1)


def _each_by_itself(
    cells: Sequence[Cell], common: NetworkTable, x: FloatArray, check_cancelled: Callable[[], None]
) -> FloatArray:
    records = []
    for cell in cells:
        check_cancelled()
        found = moments(cell.network(common), x)
        change, log_change = found.by_name["dK"], found.log_by_name["dK"]
        records.append([float(found.mean), found.log_second_moment, found.cv, float(change), log_change])
    return np.array(records)


def _but_for_sizes(cells: Sequence[Cell]) -> Iterable[tuple[Cell, list[int]]]:
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

    def check(self, net: Network, settings: Settings[NoSettings]) -> None:
        """Refuse networks that are not the paper's."""
        if outside := ", ".join(unsupported(net)):
            raise FinwidthError(f"the paper's forms do not cover it: {outside}")

    def dims(self, table: NoSettings) -> Dims:
        """One: the quantities of the paper's statements."""
        return {"form": list(STATEMENTS)}

    def compute(self, batch: CellBatch[NoSettings], check_cancelled: Callable[[], None]) -> FloatArray:
        """Cell by cell."""
        records = np.empty((len(batch.cells), len(STATEMENTS)))
        for record, cell in zip(records, batch.cells, strict=True):
            check_cancelled()
            forms = log_forms(check_mlp(cell.network(batch.settings.network)), batch.vectors[cell.input, cell.n_0])
            record[:] = [forms[name] for name in STATEMENTS]
        return records

    def variables(self, records: FloatArray, table: NoSettings) -> dict[str, Variable]:
        """The logarithms of all forms."""
        attrs = {"long_name": "log of the paper's form, exp(5 beta) with the output layer's constant e^5 in it"}
        return {"bounds_log_form": (("form",), records, attrs)}

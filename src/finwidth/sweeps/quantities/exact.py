"""Exact moments and the paper's forms, for blocks of the grid at once."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import groupby
from typing import Any

import numpy as np

from finwidth.errors import FinwidthError
from finwidth.exact.bounds import STATEMENTS, log_forms, why_outside
from finwidth.exact.grid import moments_grid
from finwidth.networks.laws import FloatArray
from finwidth.networks.mlp import MLP, MLPOptions
from finwidth.sweeps.quantities.base import Kind, Settings, Variable, Vectors
from finwidth.sweeps.schema.grid import Cell

_EXACT = {
    "mean": "exact mean of the kernel, E[K]",
    "log_second_moment": "log of the exact second moment of the kernel, log E[K^2]",
    "cv": "exact coefficient of variation of the kernel",
    "dK": "exact mean change of K per unit learning rate under one SGD step, E[Delta K]/lambda",
    "log_dK": "log of its absolute value",
}


class Exact(Kind):
    """Exact moments by `finwidth.exact.grid.moments_grid`."""

    name = "exact"
    block = (64, 256)

    def check(self, net: MLP, settings: Settings) -> None:
        """Refuse activations without exact moments."""
        net.activation.gate_moment(2)

    def dims(self, table: Mapping[str, Any]) -> dict[str, list[Any]]:
        """One: the variables of `moments_grid`."""
        return {"exact_statistic": list(_EXACT)}

    def compute(
        self,
        cells: Sequence[Cell],
        settings: Settings,
        vectors: Vectors,
        previous: FloatArray | None,
        pause: Callable[[], None],
    ) -> FloatArray:
        """All depths and widths of a law, activation, parameterization and input in one pass."""
        records = np.empty((len(cells), len(_EXACT)))
        for first, places in _alike(cells):
            pause()
            depths = sorted({cells[place].depth for place in places})
            widths = sorted({cells[place].width for place in places})
            law: MLPOptions = {
                "weight_law": first.law,
                "activation": first.activation,
                "parameterization": first.parameterization,
            }
            x = vectors[first.input, first.n_0]
            with np.errstate(over="ignore"):  # inf says so
                found = moments_grid(widths, depths, x, **law, **settings.network)
            rows = np.searchsorted(widths, [cells[place].width for place in places])
            columns = np.searchsorted(depths, [cells[place].depth for place in places])
            for k, name in enumerate(_EXACT):
                records[places, k] = found[name].to_numpy()[rows, columns]
        return records

    def variables(self, records: FloatArray, table: Mapping[str, Any]) -> dict[str, Variable]:
        """One for each statistic."""
        return {
            f"exact_{name}": ((), records[..., k], {"long_name": meaning})
            for k, (name, meaning) in enumerate(_EXACT.items())
        }


def _alike(cells: Sequence[Cell]) -> Iterable[tuple[Cell, list[int]]]:
    """The places of cells that differ in depth and width only, with one cell of each group."""

    def rest(place: int) -> tuple[Any, ...]:
        return cells[place]._replace(depth=0, width=0)

    for _, group in groupby(sorted(range(len(cells)), key=rest), key=rest):
        places = list(group)
        yield cells[places[0]], places


class Bounds(Kind):
    """The paper's forms by `finwidth.exact.bounds.log_forms`."""

    name = "bounds"
    block = (16, 64)

    def check(self, net: MLP, settings: Settings) -> None:
        """Refuse networks that are not the paper's."""
        if outside := why_outside(net):
            raise FinwidthError(f"the paper's forms do not cover it: {outside}")

    def dims(self, table: Mapping[str, Any]) -> dict[str, list[Any]]:
        """One: the quantities of the paper's statements."""
        return {"form": list(STATEMENTS)}

    def compute(
        self,
        cells: Sequence[Cell],
        settings: Settings,
        vectors: Vectors,
        previous: FloatArray | None,
        pause: Callable[[], None],
    ) -> FloatArray:
        """Cell by cell."""
        records = np.empty((len(cells), len(STATEMENTS)))
        for record, cell in zip(records, cells, strict=True):
            pause()
            forms = log_forms(cell.network(settings.network), vectors[cell.input, cell.n_0])
            record[:] = [forms[name] for name in STATEMENTS]
        return records

    def variables(self, records: FloatArray, table: Mapping[str, Any]) -> dict[str, Variable]:
        """The logarithms of all forms."""
        attrs = {"long_name": "log of the paper's form, exp(5 beta) with the output layer's constant e^5 in it"}
        return {"bounds_log_form": (("form",), records, attrs)}

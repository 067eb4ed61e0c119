"""Mean, spread and first change of the kernel to first order in 1/width, of any activation, cell by cell."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np

from finwidth.errors import FinwidthError
from finwidth.exact.expansion.expansion import SERVED
from finwidth.exact.expansion.one_input import FirstOrder, to_first_order
from finwidth.networks.description import Network
from finwidth.networks.inputs import Vector
from finwidth.networks.laws import FloatArray
from finwidth.networks.routes import check_supported
from finwidth.sweeps.quantities.base import CellBatch, Dims, Settings, SweepQuantity, Variable
from finwidth.sweeps.quantities.exact import NoSettings
from finwidth.sweeps.schema.document import Document
from finwidth.sweeps.schema.grid import Cell

_VARIABLES: dict[str, tuple[str, Callable[[FirstOrder], float]]] = {
    "mean": ("mean of the kernel to first order in 1/width", lambda found: found.mean),
    "infinite_width": ("kernel at infinite width", lambda found: found.infinite_width),
    "cv": ("coefficient of variation of the kernel to first order", lambda found: found.cv),
    "dK": (
        "mean change of K per unit learning rate under one SGD step, to first order",
        lambda found: np.inf if found.change is None else found.change,
    ),
    "left_out": ("by which share Var K may be larger than first order", lambda found: found.left_out),
}


class ExpansionQuantity(SweepQuantity[NoSettings]):
    """`finwidth.expansion` at the cell's input."""

    name = "expansion"

    def settings(self, document: Document, table: Mapping[str, object]) -> NoSettings:
        """It has no settings."""
        return {}

    def check(self, net: Network, settings: Settings[NoSettings]) -> None:
        """Refuse networks that the expansion does not serve."""
        check_supported("finwidth.expansion", net)

    def dims(self, table: NoSettings) -> Dims:
        """One: the variables."""
        return {"expansion_statistic": list(_VARIABLES)}

    def compute(self, batch: CellBatch[NoSettings], check_cancelled: Callable[[], None]) -> FloatArray:
        """Cell by cell; infinite where the expansion leaves the range of a double, or cannot be integrated."""
        records = np.full((len(batch.cells), len(_VARIABLES)), np.inf)
        for record, cell in zip(records, batch.cells, strict=True):
            check_cancelled()
            found = _first_order_of(cell.network(batch.settings.network), batch.vectors[cell.input, cell.n_0])
            if found is not None:
                record[:] = [value(found) for _, value in _VARIABLES.values()]
        return records

    def variables(self, records: FloatArray, table: NoSettings) -> dict[str, Variable]:
        """One for each statistic, and whether first order serves."""
        found: dict[str, Variable] = {
            f"expansion_{name}": ((), records[..., k], {"long_name": meaning})
            for k, (name, (meaning, _)) in enumerate(_VARIABLES.items())
        }
        serves = records[..., list(_VARIABLES).index("left_out")] <= SERVED
        return found | {"expansion_serves": ((), serves, {"long_name": f"whether that is at most {SERVED}"})}

    def work(self, cell: Cell, table: NoSettings) -> float:
        """Some milliseconds a layer."""
        return 3000.0 * cell.depth


def _first_order_of(net: Network, x: Vector) -> FirstOrder | None:
    try:
        return to_first_order(net, x)
    except FinwidthError:
        return None

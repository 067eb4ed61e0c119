"""Training in every cell, in law or of real networks: how loss, kernel and alignment move over the steps of SGD."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, cast

import numpy as np

from finwidth.errors import FinwidthError, SizeError
from finwidth.extras import load_extra
from finwidth.networks.description import Network, count_weights
from finwidth.networks.laws import FloatArray
from finwidth.networks.mlp import MLP
from finwidth.networks.routes import check_supported
from finwidth.sampling.training.losses import SQUARED
from finwidth.sampling.training.spec import TrainingSpec, training_bytes
from finwidth.sampling.training.train import train, training_chunk_size
from finwidth.schedule import Record, recorded_steps
from finwidth.stores import numerics
from finwidth.sweeps.quantities.base import Dims, Numerics, Settings
from finwidth.sweeps.quantities.records import ResumableSums, estimate_records
from finwidth.sweeps.quantities.sampled import MOST_DRAWS, InputsTable, SeveralInputs, keeps_quantiles, not_finite
from finwidth.sweeps.schema.document import Document
from finwidth.sweeps.schema.grid import Cell, cell_seed
from finwidth.sweeps.schema.values import (
    LISTS,
    checked_value,
    name_in,
    nonempty_text,
    number_in,
    read_values,
    whole_number,
)

if TYPE_CHECKING:
    import xarray as xr

_FOLLOWED = ["loss", "drift", "alignment"]
_FUNCTIONS = {"law": "finwidth.train", "networks": "finwidth.empirical.Ensemble"}  # by method
_MOST_STEPS = 10**5
_CHUNK_WEIGHTS = 2**22  # of the real networks that are trained at once


class TrainingTable(InputsTable):
    """Draws, inputs and their targets, steps of SGD, the learning rate, the steps to record, and the method."""

    targets: list[float]
    steps: int
    lr: float
    record: list[int]
    method: str


class TrainingQuantity(SeveralInputs[TrainingTable]):
    """Loss, drift and alignment at recorded steps, averaged over networks; drift and alignment over those with K != 0.

    Of `finwidth.train`, or with the method "networks" of real ones, `finwidth.empirical.Ensemble`. Of normalised
    networks, whose loss and drift after a step need not have means, quantiles.
    """

    name = "training"
    keys = ("inputs", "targets", "steps", "lr", "draws", "record", "method", "quantiles")

    def settings(self, document: Document, table: Mapping[str, object]) -> TrainingTable:
        """Inputs, targets, steps, learning rate and draws; the steps to record, by default the first and the last."""
        needed = self.keys[:5]
        for key in needed:
            if key not in table:
                wanted = ", ".join(needed)
                raise document.fault(f"training.{key}", f"this key is missing; give [training] {wanted}")
        inputs = read_values(document, "training.inputs", table["inputs"], nonempty_text)
        steps = checked_value(document, "training.steps", table["steps"], whole_number(1, _MOST_STEPS))
        lr = checked_value(document, "training.lr", table["lr"], number_in(1e-12, 1e6))
        draws = checked_value(document, "training.draws", table["draws"], whole_number(1, MOST_DRAWS))
        method = checked_value(document, "training.method", table.get("method", "law"), name_in(_FUNCTIONS))
        targets = table["targets"]
        if not isinstance(targets, list | tuple | np.ndarray) or len(targets) != len(inputs):
            raise document.fault("training.targets", f"give a list of {len(inputs)} numbers, one for each input")
        numbers = [checked_value(document, "training.targets", value, number_in(-1e6, 1e6)) for value in targets]
        record = table.get("record", [0, steps])
        if isinstance(record, LISTS):
            recorded: Sequence[int] = read_values(document, "training.record", record, whole_number(0, steps))
        else:
            with document.at("training.record"):
                recorded = recorded_steps(cast("Record", record), steps)
        found: TrainingTable = {
            "inputs": inputs,
            "steps": steps,
            "lr": lr,
            "draws": draws,
            "targets": numbers,
            "record": sorted({0, steps, *recorded}),
            "method": method,
        }
        if keeps_quantiles(document, self.name, table):
            found["quantiles"] = True
        return found

    def goals(self, table: TrainingTable) -> list[str]:
        """The loss: at step 0 the drift is zero by definition."""
        return ["loss"]

    def check(self, net: Network, settings: Settings[TrainingTable]) -> None:
        """Refuse networks that cannot be trained so, and settings, by training a small one for no time at all."""
        if settings.table["method"] == "networks":
            load_extra("torch", 'training with method = "networks"')
        check_supported(_FUNCTIONS[settings.table["method"]], net)
        table: TrainingTable = {**settings.table, "steps": 1, "lr": 1e-9}
        _train_some(MLP([1, 1, 1]), np.arange(1.0, 1 + len(table["targets"]))[:, None], table, 1, 0)

    def dims(self, table: TrainingTable) -> Dims:
        """Loss and observables, recorded steps, statistics."""
        return {"followed": [*_FOLLOWED], "step": [*table["record"]], "training_statistic": self.statistics(table)}

    def numerics(self, table: TrainingTable) -> Numerics:
        """Real networks are torch's."""
        return numerics.torch() if table["method"] == "networks" else super().numerics(table)

    def of_cell(
        self,
        cell: Cell,
        settings: Settings[TrainingTable],
        X: FloatArray,
        previous: FloatArray | None,
        check_cancelled: Callable[[], None],
    ) -> FloatArray:
        """Each chunk of draws is trained with a seed of its own; inf where training diverges."""
        net, table = cell.network(settings.network), settings.table
        followed = [(name, step) for name in _FOLLOWED for step in table["record"]]
        entries, quantiles = len(followed), bool(table.get("quantiles"))
        sums = ResumableSums(entries, _at_once(net, table), table["draws"], previous, quantiles=quantiles)
        for number, count in sums.chunks():
            seed = cell_seed(settings.seed, cell, "training", f"chunk {number}")
            try:
                run = _train_some(net, X, table, count, seed, check_cancelled=check_cancelled)
            except SizeError:
                raise
            except FinwidthError:  # training diverges; the record says so, and the sweep goes on
                sums.add([np.full(count, np.inf)] * entries)
            else:
                sums.add([_defined(run[name].sel(step=step)) for name, step in followed])
        means = [
            total.estimate() if _has_mean(net, *each) else not_finite(total.estimate())
            for each, total in zip(followed, sums.totals, strict=True)
        ]
        return estimate_records(means, sums.states, table["draws"], sums.quantiles())

    def work(self, cell: Cell, table: TrainingTable) -> float:
        """About a hundred nanoseconds for each neuron, draw and square of the vectors that it meets."""
        met = len(table["inputs"]) * float(table["steps"])
        return 0.01 * cell.depth * cell.width * met * met * float(table["draws"])

    def memory(self, cell: Cell, settings: Settings[TrainingTable]) -> int:
        """Bytes of the networks that are trained at once."""
        net, table = cell.network(settings.network), settings.table
        m = len(table["inputs"])
        if table["method"] == "law":
            X, y = np.ones((m, cell.n_0)), np.zeros((m, 1))
            one = training_bytes(TrainingSpec(net, X, y, table["steps"], 1.0, 0.0, m, SQUARED, table["record"]))
        else:
            one = 40 * count_weights(net)
        return one * min(table["draws"], _at_once(net, table))


def _at_once(net: Network, table: TrainingTable) -> int:
    """How many networks share a seed."""
    if table["method"] == "networks":
        return max(1, _CHUNK_WEIGHTS // count_weights(net))
    return training_chunk_size(net, len(table["inputs"]))


def _has_mean(net: Network, name: str, step: int) -> bool:
    """Whether the mean is sure to be finite: after a step loss and drift grow with powers of the kernel."""
    return net.norm is None or bool(net.norm.epsilon) or name == "alignment" or step == 0


def _defined(values: xr.DataArray) -> FloatArray:
    """The values of networks that have one: a kernel that is 0 has neither drift nor alignment."""
    found: FloatArray = values.to_numpy()
    return found[~np.isnan(found)]


def _train_some(
    net: Network,
    X: FloatArray,
    table: TrainingTable,
    networks: int,
    seed: int,
    *,
    check_cancelled: Callable[[], None] = lambda: None,
) -> xr.Dataset:
    """Networks trained, as a Dataset over draw and step."""
    steps, record, lr = table["steps"], [step for step in table["record"] if step <= table["steps"]], table["lr"]
    if table["method"] == "law":
        return train(
            net, X, table["targets"], steps, lr, networks, seed, record=record, progress=lambda done: check_cancelled()
        )
    from finwidth import empirical

    check_cancelled()
    return empirical.Ensemble(cast("MLP", net), networks, seed).train(
        X, np.array(table["targets"], float), steps, lr, record=record
    )

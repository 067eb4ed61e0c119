"""Training in every cell, in law or of real networks: how loss, kernel and alignment move over the steps of SGD."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from finwidth.empirical.reference.brute_force import weights_of
from finwidth.errors import FinwidthError, SizeError
from finwidth.networks.laws import FloatArray
from finwidth.networks.mlp import MLP
from finwidth.sampling.training import plan as training_plan
from finwidth.sampling.training.losses import SQUARED
from finwidth.sampling.training.train import chunk_size, train
from finwidth.sweeps.quantities.base import Settings
from finwidth.sweeps.quantities.records import STATISTICS, accumulate, record
from finwidth.sweeps.quantities.sampled import MOST_DRAWS, SeveralInputs
from finwidth.sweeps.schema.document import Document
from finwidth.sweeps.schema.grid import Cell, cell_seed
from finwidth.sweeps.schema.values import checked, one_of, several, text, whole, within
from finwidth.sweeps.store import numerics

_FOLLOWED = ["loss", "drift", "alignment"]
_METHODS = ("law", "networks")
_MOST_STEPS = 10**5
_CHUNK_WEIGHTS = 2**22  # of the real networks that are trained at once


class Training(SeveralInputs):
    """Loss, drift and alignment at recorded steps, averaged over networks; drift and alignment over those with K != 0.

    Of `finwidth.train`, or with the method "networks" of real ones, `finwidth.empirical.Ensemble`.
    """

    name = "training"
    keys = ("inputs", "targets", "steps", "lr", "draws", "record", "method")

    def settings(self, document: Document, table: dict[str, Any]) -> dict[str, Any]:
        """Inputs, targets, steps, learning rate and draws; the steps to record, by default the first and the last."""
        needed = self.keys[:-2]
        for key in needed:
            if key not in table:
                wanted = ", ".join(needed)
                raise document.fault(f"training.{key}", f"this key is missing; give [training] {wanted}")
        found = {
            "inputs": several(document, "training.inputs", table["inputs"], text),
            "steps": checked(document, "training.steps", table["steps"], whole(1, _MOST_STEPS)),
            "lr": checked(document, "training.lr", table["lr"], within(1e-12, 1e6)),
            "draws": checked(document, "training.draws", table["draws"], whole(1, MOST_DRAWS)),
        }
        method = checked(document, "training.method", table.get("method", "law"), one_of(_METHODS))
        targets = table["targets"]
        if not isinstance(targets, list | tuple | np.ndarray) or len(targets) != len(found["inputs"]):
            raise document.fault(
                "training.targets", f"give a list of {len(found['inputs'])} numbers, one for each input"
            )
        found["targets"] = [checked(document, "training.targets", value, within(-1e6, 1e6)) for value in targets]
        steps = found["steps"]
        given = several(document, "training.record", table.get("record", [0, steps]), whole(0, steps))
        return found | {"record": sorted({0, steps, *given}), "method": method}

    def goals(self, table: Mapping[str, Any]) -> list[str]:
        """The loss: at step 0 the drift is zero by definition."""
        return ["loss"]

    def check(self, net: MLP, settings: Settings) -> None:
        """Refuse networks that cannot be trained so, by training a small one for no time at all."""
        small = MLP(
            [1, 1, 1], net.weight_law, net.activation, net.parameterization, bias=net.bias[0], bias_law=net.bias_law,
            bias_variance=max(net.bias_variance),
        )  # fmt: skip
        targets = settings.table["targets"]
        _run(small, np.arange(1.0, 1 + len(targets))[:, None], dict(settings.table) | {"steps": 1, "lr": 1e-9}, 1, 0)

    def dims(self, table: Mapping[str, Any]) -> dict[str, list[Any]]:
        """What is followed, recorded steps, statistics."""
        return {"followed": _FOLLOWED, "step": list(table["record"]), "training_statistic": list(STATISTICS)}

    def numerics(self, table: Mapping[str, Any]) -> dict[str, Any]:
        """Real networks are torch's."""
        return numerics.torch() if table["method"] == "networks" else super().numerics(table)

    def of_cell(
        self, cell: Cell, settings: Settings, X: FloatArray, previous: FloatArray | None, pause: Callable[[], None]
    ) -> FloatArray:
        """Each chunk of draws is trained with a seed of its own; inf where training diverges."""
        net, table = cell.network(settings.network), settings.table
        entries = len(_FOLLOWED) * len(table["record"])
        size = _at_once(net, table)

        def piece(number: int, count: int) -> list[FloatArray]:
            seed = cell_seed(settings.seed, cell, "training", f"chunk {number}")
            try:
                run = _run(net, X, table, count, seed, pause=pause)
            except SizeError:
                raise
            except FinwidthError:  # training diverges; the record says so, and the sweep goes on
                return [np.full(count, np.inf)] * entries
            return [_there(run[name].sel(step=step)) for name in _FOLLOWED for step in table["record"]]

        totals, states = accumulate(piece, entries, size, table["draws"], previous)
        return record([total.estimate() for total in totals], states, table["draws"])

    def work(self, cell: Cell, table: Mapping[str, Any]) -> float:
        """About a hundred nanoseconds for each neuron, draw and square of the vectors that it meets."""
        met = len(table["inputs"]) * float(table["steps"])
        return 0.01 * cell.depth * cell.width * met * met * float(table["draws"])

    def memory(self, cell: Cell, settings: Settings) -> int:
        """Of the networks trained at once."""
        net, table = cell.network(settings.network), settings.table
        m = len(table["inputs"])
        if table["method"] == "law":
            X, y = np.ones((m, cell.n_0)), np.zeros((m, 1))
            one = training_plan.memory(
                training_plan.Plan(net, X, y, table["steps"], 1.0, 0.0, m, SQUARED, table["record"])
            )
        else:
            one = 40 * weights_of(net)
        return one * min(int(table["draws"]), _at_once(net, table))


def _at_once(net: MLP, table: Mapping[str, Any]) -> int:
    """How many networks share a seed."""
    if table["method"] == "networks":
        return max(1, _CHUNK_WEIGHTS // weights_of(net))
    return chunk_size(net, len(table["inputs"]))


def _there(values: Any) -> FloatArray:
    """Only of networks with a value: a kernel that is 0 has neither drift nor alignment."""
    found: FloatArray = values.to_numpy()
    return found[~np.isnan(found)]


def _run(
    net: MLP,
    X: FloatArray,
    table: Mapping[str, Any],
    networks: int,
    seed: int,
    *,
    pause: Callable[[], None] | None = None,
) -> Any:
    """Networks trained, as a Dataset over step and draw or member."""
    steps, record, lr = table["steps"], [step for step in table["record"] if step <= table["steps"]], table["lr"]
    if table["method"] == "law":
        tick = None if pause is None else lambda done: pause()
        return train(net, X, table["targets"], steps, lr, networks, seed, record=record, progress=tick)
    from finwidth import empirical

    if pause is not None:
        pause()
    return empirical.Ensemble(net, networks, seed).train(X, np.array(table["targets"], float), steps, lr, at=record)

"""The arguments of a training run, checked, and the memory that it needs."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt

from finwidth.errors import FinwidthError
from finwidth.laws import FloatArray
from finwidth.network import MLP, check_inputs, count
from finwidth.sampling.gram import why_not_gaussian
from finwidth.sampling.revealed import held, work
from finwidth.sampling.training_networks import Rows

LOSSES = ("squared", "cross-entropy")
_SMALLEST = 1e-300  # largest entry of an input that is not 0


@dataclass(frozen=True)
class Plan:
    """What is trained and recorded, checked.

    Arrays: inputs (m + p, n_0), of which the first m are for training and the last p, if any, only probed; targets
    (m, n_d), for cross-entropy one-hot.
    """

    net: MLP
    inputs: FloatArray
    targets: FloatArray
    steps: int
    lr: float
    momentum: float
    batch: int
    loss: str
    record: tuple[int, ...]

    @property
    def m(self) -> int:
        """Training inputs."""
        return len(self.targets)

    @property
    def outputs(self) -> int:
        """n_d."""
        return self.net.widths[-1]

    @property
    def probed(self) -> Rows:
        """The inputs of the kernel, shape (1, p)."""
        first = self.m if self.m < len(self.inputs) else 0
        return np.arange(first, len(self.inputs))[None]

    @property
    def vectors(self) -> tuple[int, int, int]:
        """The most independent vectors that a matrix meets, left and right, and the most at once."""
        seeds = self.probed.size * self.outputs + (self.batch if self.m < len(self.inputs) else 0)
        recorded, others = len(self.record), self.steps - len([t for t in self.record if t < self.steps])
        left, right = recorded * seeds + others * self.batch, recorded * len(self.inputs) + others * self.batch
        return left, right, max(seeds, len(self.inputs))

    def slope(self, output: FloatArray, of: Rows | None = None) -> FloatArray:
        """The derivative of the loss by the outputs, (draws, m or batch, n_d), of all training inputs or of some."""
        targets = self.targets if of is None else self.targets[of]
        if self.loss == "squared":
            return output - targets
        likely = np.exp(output - output.max(-1, keepdims=True))
        difference: FloatArray = likely / likely.sum(-1, keepdims=True) - targets
        return difference

    def total_loss(self, output: FloatArray) -> FloatArray:
        """The loss of all training inputs, (draws,), from their outputs (draws, m, n_d)."""
        total: FloatArray
        if self.loss == "squared":
            total = 0.5 * np.square(output - self.targets).sum((1, 2))
            return total
        below = output - output.max(-1, keepdims=True)
        total = (np.log(np.exp(below).sum(-1)) - (below * self.targets).sum(-1)).sum(-1)
        return total


def check_network(net: MLP) -> None:
    """Raise FinwidthError unless this network can be trained in law."""
    reasons = why_not_gaussian(net)
    if reasons:
        raise FinwidthError(f"finwidth.train cannot draw this network: {'; '.join(reasons)}")


def _resolved(inputs: FloatArray, what: str) -> FloatArray:
    """The inputs, unless one is so small that doubles keep too few digits of what a network makes of it."""
    largest = np.abs(inputs).max(1)
    lost = np.flatnonzero((largest > 0) & (largest < _SMALLEST))
    if len(lost):
        raise FinwidthError(
            f"number {lost[0]} of the {what} underflows: its largest entry is {largest[lost[0]]:.3g}, below "
            f"{_SMALLEST:g}, where products lose a double's digits; scale it up, or give 0"
        )
    return inputs


def _check_targets(net: MLP, y: npt.ArrayLike, m: int, loss: str) -> FloatArray:
    """Targets as (m, n_d), one-hot for cross-entropy."""
    outputs = net.widths[-1]
    if loss not in LOSSES:
        raise FinwidthError(f"loss {loss!r} is not known; choose one of {', '.join(LOSSES)}")
    wanted = f"({m},)" if outputs == 1 else f"({m}, {outputs})"
    try:
        given = np.asarray(y)
        array = given.astype(np.float64)
    except (TypeError, ValueError):
        raise FinwidthError(f"the targets are not an array of numbers; give an array of shape {wanted}") from None
    if loss == "cross-entropy":
        if outputs == 1:
            raise FinwidthError("cross-entropy needs an output for each class, and the network has 1; give 2 or more")
        if given.shape != (m,) or given.dtype.kind not in "iub" or not ((given >= 0) & (given < outputs)).all():
            raise FinwidthError(f"the targets must be {m} whole numbers from 0 to {outputs - 1}, the inputs' classes")
        array = np.eye(outputs)[given.astype(int)]
    if array.shape not in ({(m,), (m, 1)} if outputs == 1 else {(m, outputs)}) or not np.isfinite(array).all():
        raise FinwidthError(f"the targets have shape {array.shape}; give finite numbers of shape {wanted}")
    return array.reshape(m, outputs)


def _check_record(record: Iterable[int] | None, steps: int) -> tuple[int, ...]:
    """The steps to record at, the first and the last among them."""
    if record is None:
        return tuple(range(steps + 1))
    given: list[Any] = list(record) if isinstance(record, Iterable) else [record]
    for step in given:
        if not isinstance(step, int | np.integer) or not 0 <= step <= steps:
            raise FinwidthError(f"record holds {step!r}; give whole numbers from 0 to {steps}")
    return tuple(sorted({0, *(int(step) for step in given), steps}))


def _within(name: str, value: float, low: float, high: float, wanted: str) -> float:
    try:
        number = float(value)
    except (TypeError, ValueError):
        number = math.nan
    if not low <= number < high:
        raise FinwidthError(f"{name} is {value!r}; give {wanted}")
    return number


def plan(
    net: MLP,
    X: npt.ArrayLike,
    y: npt.ArrayLike,
    steps: int,
    lr: float,
    *,
    probe: npt.ArrayLike | None = None,
    batch: int | None = None,
    momentum: float = 0.0,
    loss: str = "squared",
    record: Iterable[int] | None = None,
) -> Plan:
    """The arguments of `train`, checked."""
    check_network(net)
    inputs = _resolved(check_inputs(net, X), "inputs")
    m, steps = len(inputs), count("steps", steps)
    batch = m if batch is None else count("batch", batch)
    if batch > m:
        raise FinwidthError(f"batch is {batch} for {m} training inputs; give {m} or fewer")
    return Plan(
        net,
        inputs if probe is None else np.concatenate([inputs, _resolved(check_inputs(net, probe), "probe inputs")]),
        _check_targets(net, y, m, loss),
        steps,
        _within("lr", lr, 5e-324, math.inf, "a positive number"),
        _within("momentum", momentum, 0, 1, "a number from 0 to below 1"),
        batch,
        loss,
        _check_record(record, steps),
    )


def memory(plan: Plan) -> int:
    """Bytes that one draw of a plan needs at most at a time; the result comes on top.

    Examples
    --------
    >>> import numpy as np
    >>> from finwidth import MLP
    >>> from finwidth.sampling.training_plan import memory, plan
    >>> net = MLP([64, *[10**6] * 5, 1])
    >>> memory(plan(net, np.eye(64)[:4], np.ones(4), steps=5, lr=0.1)) / 2**30
    4.5...
    """
    left, right, at_once = plan.vectors
    shapes = list(pairwise([min(plan.net.widths[0], len(plan.inputs)), *plan.net.widths[1:]]))
    extra = 1 if plan.momentum else 0
    kept = 0
    for i, (columns, rows) in enumerate(shapes):
        whole = rows * columns
        kept += (2 + extra) * whole if i in {0, plan.net.depth - 1} else held(rows, columns, left, right)
        if 0 < i < plan.net.depth - 1:
            kept += (1 + extra) * min(left * right, whole)
        kept += 4 * at_once * rows + (2 + extra) * rows  # A, Y, J and the slope; the bias
    return 8 * (kept + max(work(rows, columns, at_once) for columns, rows in shapes))

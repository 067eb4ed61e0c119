"""The arguments of a training run, checked, and the memory that it needs."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from finwidth import arguments
from finwidth.arguments import count
from finwidth.errors import FinwidthError
from finwidth.memory import afford, amount
from finwidth.networks.description import Network, kept_widths, weight_layers
from finwidth.networks.inputs import check_inputs
from finwidth.networks.laws import FloatArray
from finwidth.networks.routes import check_supported
from finwidth.progress import check_time
from finwidth.sampling.lazy_matrix.gaussian import work_numbers
from finwidth.sampling.training.losses import Loss, loss_called
from finwidth.sampling.training.networks import RowIndex
from finwidth.schedule import Record, recorded_steps

_STEP = 1e-4  # seconds; hardly a step takes less
_SMALLEST = 1e-300  # largest entry of an input that is not 0


@dataclass(frozen=True)
class TrainingSpec:
    """What is trained and recorded, checked.

    Arrays: inputs (m + p, n_0), of which the first m are for training and the last p, if any, only probed; targets
    (m, n_d), for classes one-hot.  Where ``centred``, outputs are those minus their values at initialization.
    """

    net: Network
    inputs: FloatArray
    targets: FloatArray
    steps: int
    lr: float
    momentum: float
    batch: int
    loss: Loss
    record: Sequence[int]
    centred: bool = False

    @property
    def m(self) -> int:
        """Training inputs."""
        return len(self.targets)

    @property
    def outputs(self) -> int:
        """n_d."""
        return self.net.widths[-1]

    @property
    def probes_training_inputs(self) -> bool:
        """Whether the kernel is that of the training inputs, for want of others."""
        return len(self.targets) == len(self.inputs)

    @property
    def probed(self) -> RowIndex:
        """The inputs of the kernel, shape (1, p)."""
        return np.arange(0 if self.probes_training_inputs else self.m, len(self.inputs))[None]

    @property
    def vectors(self) -> tuple[int, int, int]:
        """The most independent vectors that a matrix meets, left and right, and the most at once."""
        cotangents = self.probed.size * self.outputs + (0 if self.probes_training_inputs else self.batch)
        recorded, others = len(self.record), self.steps + 1 - len(self.record)  # the last step is always recorded
        left, right = recorded * cotangents + others * self.batch, recorded * len(self.inputs) + others * self.batch
        return left, right, max(cotangents, len(self.inputs))

    def slope(self, output: FloatArray, rows: RowIndex | None = None) -> FloatArray:
        """The derivative of the loss by the outputs, (draws, m or batch, n_d), of all training inputs or of some."""
        targets = self.targets if rows is None else self.targets[rows]
        return self.loss.slope(output, targets)

    def total_loss(self, output: FloatArray) -> FloatArray:
        """The loss of all training inputs, (draws,), from their outputs (draws, m, n_d)."""
        return self.loss.total(output, self.targets)


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


def _check_targets(net: Network, y: npt.ArrayLike, m: int, loss: Loss) -> FloatArray:
    """Targets as (m, n_d), classes as one-hot rows."""
    outputs = net.widths[-1]
    wanted = f"({m},)" if outputs == 1 else f"({m}, {outputs})"
    array = arguments.array("targets", y, f"finite numbers of shape {wanted}")
    if loss.classes:
        if outputs == 1:
            raise FinwidthError(f"{loss.name} needs an output for each class, and the network has 1; give 2 or more")
        given = np.asarray(y)
        if array.shape != (m,) or given.dtype.kind not in "iub" or not ((array >= 0) & (array < outputs)).all():
            raise FinwidthError(f"the targets must be {m} whole numbers from 0 to {outputs - 1}, the inputs' classes")
        array = 1.0 * (array[:, None] == np.arange(outputs))
    if array.shape not in ({(m,), (m, 1)} if outputs == 1 else {(m, outputs)}):
        raise FinwidthError(f"the targets have shape {array.shape}; give finite numbers of shape {wanted}")
    return array.reshape(m, outputs)


def training_spec(
    net: Network,
    X: npt.ArrayLike,
    y: npt.ArrayLike,
    steps: int,
    lr: float,
    *,
    probe: npt.ArrayLike | None = None,
    batch: int | None = None,
    momentum: float = 0.0,
    loss: str = "squared",
    record: Record = 1,
    centred: bool = False,
) -> TrainingSpec:
    """The arguments of `train`, checked."""
    check_supported("finwidth.train", net)
    inputs = _resolved(check_inputs(net, X), "inputs")
    m, steps = len(inputs), count("steps", steps)
    check_time(steps, _STEP, f"training for {amount(steps)} steps", "take fewer steps")
    outputs = net.widths[-1]
    afford(32 * m * outputs, f"targets of {amount(m)} inputs and {amount(outputs)} outputs", "take fewer outputs")
    batch = m if batch is None else count("batch", batch)
    if batch > m:
        raise FinwidthError(f"batch is {batch} for {m} training inputs; give {m} or fewer")
    taken = loss_called(loss)
    return TrainingSpec(
        net,
        inputs if probe is None else np.concatenate([inputs, _resolved(check_inputs(net, probe), "probe inputs")]),
        _check_targets(net, y, m, taken),
        steps,
        arguments.real("lr", lr, "a positive number", lambda value: 0 < value < math.inf),
        arguments.real("momentum", momentum, "a number from 0 to below 1", lambda value: 0 <= value < 1),
        batch,
        taken,
        recorded_steps(record, steps),
        arguments.flag("centred", centred),
    )


def training_bytes(spec: TrainingSpec) -> int:
    """Bytes that one draw of a training needs at most at a time; the result comes on top.

    Examples
    --------
    >>> import numpy as np
    >>> from finwidth import MLP
    >>> from finwidth.sampling.training.spec import training_bytes, training_spec
    >>> net = MLP([64, *[10**6] * 5, 1])
    >>> training_bytes(training_spec(net, np.eye(64)[:4], np.ones(4), steps=5, lr=0.1)) / 2**30
    4.5...
    """
    left, right, at_once = spec.vectors
    layers = weight_layers(spec.net)
    copies = 2 if spec.momentum else 1  # the weights, their velocity
    kept = at_work = 0
    for i, layer in enumerate(layers):
        columns, rows = layer.fan_in if i else min(layer.fan_in, len(spec.inputs)), layer.fan_out
        known = (left + right) * (rows + columns)
        dense = i in {0, len(layers) - 1} or 2 * known > rows * columns
        core = rows * columns if dense else left * right
        kept += copies * core + (0 if dense else known)
        kept += (1 + copies) * rows  # the bias
        at_work = max(at_work, 2 * core + work_numbers(rows, columns, at_once))  # the gradient, and lr times it
    passed = 4 * at_once * sum(kept_widths(spec.net))  # A, Y, J and the slope
    return 8 * (kept + passed + at_work)


def result_bytes(spec: TrainingSpec) -> int:
    """Bytes of the result for each draw, with the copies from which its observables are read off.

    Examples
    --------
    >>> import numpy as np
    >>> from finwidth import MLP
    >>> from finwidth.sampling.training.spec import result_bytes, training_spec
    >>> spec = training_spec(MLP([4, 10, 1]), np.eye(4), np.ones(4), steps=9, lr=0.1)
    >>> result_bytes(spec)  # ten kernels of 4 x 4, five times
    8080
    """
    p = spec.probed.size
    return 8 * len(spec.record) * (5 * p * p + 3 * p + 5 + len(spec.inputs) * spec.outputs)


def training_seconds(spec: TrainingSpec) -> float:
    """About how long a draw takes: each step multiplies the vectors that were met before by new ones."""
    left, right, at_once = spec.vectors
    met = min(left + right, max(kept_widths(spec.net)))
    return (spec.steps + 1) * (_STEP + 5e-10 * sum(kept_widths(spec.net)) * met * at_once)

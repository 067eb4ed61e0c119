r"""Networks under gradient descent whose weights are revealed only along the vectors they are multiplied with.

Rows are inputs.  A network is a chain of steps (`Network.stages`); in a weight layer, with the weights W_hat_i, a
`Combination` of its initial matrix, and explicit biases b_i::

    forward   Y_i = A_{i-1} W_hat_i^T + b_i
    backward  J_i W_hat_i from J_i; the first J_i are given: unit vectors, or the slope of the loss
    step      W_hat_i <- W_hat_i - lr c_i J_i^T diag(w) A_{i-1},   b_i <- b_i - lr e_i w^T J_i
    kernel    K_ab = sum_i (c_i A_{i-1} A_{i-1}^T + e_i)_ab sum_o (J_i J_i^T)_{ao,bo}

and in a trained norm the same with its scales and shifts.  The inputs are known in advance, so only their inner
products matter: the first layer acts on their coordinates in an orthonormal basis, and is a small matrix that is drawn
as a whole, as is the last.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import singledispatchmethod
from typing import Protocol, TypeAlias

import numpy as np
import numpy.typing as npt

from finwidth.networks.activations import Activation
from finwidth.networks.description import Fork, Join, Layer, Network, Signs, Skip, Step, weight_layers
from finwidth.networks.laws import FloatArray
from finwidth.networks.norm import Norm
from finwidth.sampling.lazy_matrix.combination import Combination, SharedMatrix, sgd_step
from finwidth.sampling.lazy_matrix.gaussian import NotFiniteError, transpose

RowIndex: TypeAlias = npt.NDArray[np.intp]  # numbers of rows, (draws or 1, q)

_SMALLEST, _LARGEST = 1e-100, 1e100  # of a vector that is normalised: beyond, gradients by it would leave a double


def pick(array: FloatArray, rows: RowIndex | None) -> FloatArray:
    """Rows of an array (draws or 1, all, n), the same or different ones in each draw; None: all as they are."""
    if rows is None:
        return array
    if len(rows) == 1:
        return array[:, rows[0]]
    draw = np.arange(len(rows))[:, None] if len(array) > 1 else 0
    picked: FloatArray = array[draw, rows]
    return picked


class Learns(Protocol):
    """What a backward pass leaves of a step with parameters: their gradients."""

    def step(self, weights: FloatArray, lr: float, momentum: float) -> None:
        """A step of SGD along sum_q weights_q times the gradient of cotangent q, weights (draws, q)."""

    def kernel(self, rows: RowIndex | None, outputs: int) -> FloatArray:
        """Its part of K."""


class Passed(Protocol):
    """What a forward pass leaves of a step."""

    def backward(self, J: FloatArray, rows: RowIndex | None, learns: list[Learns]) -> FloatArray:
        """Derivatives by what entered from those by what came out, row q at row ``rows[q]``; adds its gradients."""


class TrainedStep(Protocol):
    """A step of ``draws`` networks, with its parameters."""

    def forward(self, x: FloatArray) -> tuple[FloatArray, Passed]:
        """What comes out, (draws, rows, n), and what the backward pass needs."""


@dataclass
class TrainedVector:
    """A parameter of each neuron, (draws, 1, n)."""

    value: FloatArray
    velocity: FloatArray | float = 0.0

    def move(self, slope: FloatArray, lr: float, momentum: float) -> None:
        """One step along the slope of the loss."""
        self.velocity = momentum * self.velocity + slope
        self.value = self.value - lr * self.velocity


def _gram_of_outputs(slopes: FloatArray, p: int, outputs: int) -> FloatArray:
    """sum_o of products of the slopes (draws, q, n) of output o at two of p inputs, (draws, p, p)."""
    rows = slopes[:, : p * outputs].reshape(len(slopes), p, -1)
    gram: FloatArray = rows @ transpose(rows)
    return gram


@dataclass
class TrainedLayer:
    """A weight layer of ``draws`` networks."""

    layer: Layer
    initial: SharedMatrix[FloatArray]
    weights: Combination[FloatArray]
    velocity: Combination[FloatArray]
    bias: TrainedVector
    first: bool

    def forward(self, x: FloatArray) -> tuple[FloatArray, Passed]:
        """Y."""
        coordinates = self.initial.right(x)
        return self.weights.from_right(coordinates) + self.bias.value, _PassedLayer(self, x, coordinates)


@dataclass
class _PassedLayer:
    of: TrainedLayer
    A: FloatArray
    coordinates: FloatArray

    def backward(self, J: FloatArray, rows: RowIndex | None, learns: list[Learns]) -> FloatArray:
        coordinates = self.of.initial.left(J)
        learns.append(_LearningLayer(self, rows, J, coordinates))
        return J if self.of.first else self.of.weights.from_left(coordinates)  # nothing is below the first


@dataclass
class _LearningLayer:
    passed: _PassedLayer
    rows: RowIndex | None
    J: FloatArray
    coordinates: FloatArray

    def step(self, weights: FloatArray, lr: float, momentum: float) -> None:
        of = self.passed.of
        weighted = weights[:, :, None] * self.coordinates
        gradient = transpose(weighted) @ pick(self.passed.coordinates, self.rows)
        sgd_step(of.weights, of.velocity, gradient, lr * float(of.layer.weight_multiplier), momentum)
        if of.layer.bias_multiplier:
            of.bias.move(weights[:, None, :] @ self.J, lr * float(of.layer.bias_multiplier), momentum)

    def kernel(self, rows: RowIndex | None, outputs: int) -> FloatArray:
        layer, probed = self.passed.of.layer, pick(self.passed.A, rows)
        of_weights = float(layer.weight_multiplier) * (probed @ transpose(probed))
        return (of_weights + float(layer.bias_multiplier)) * _gram_of_outputs(self.J, probed.shape[1], outputs)


@dataclass
class _ActivationStep:
    phi: Activation

    def forward(self, x: FloatArray) -> tuple[FloatArray, Passed]:
        return self.phi.value(x), _PassedActivation(self.phi, x)


@dataclass
class _PassedActivation:
    phi: Activation
    x: FloatArray

    def backward(self, J: FloatArray, rows: RowIndex | None, learns: list[Learns]) -> FloatArray:
        pulled: FloatArray = pick(self.phi.derivative(self.x), rows) * J
        return pulled


@dataclass
class _SignsStep:
    signs: FloatArray  # (draws, 1, n)

    def forward(self, x: FloatArray) -> tuple[FloatArray, Passed]:
        return self.signs * x, self

    def backward(self, J: FloatArray, rows: RowIndex | None, learns: list[Learns]) -> FloatArray:
        return self.signs * J


@dataclass
class _NormStep:
    """scale u + shift, u = C x / s (`kernel_matrix.maps` has the same in other arrays)."""

    norm: Norm
    scale: TrainedVector
    shift: TrainedVector

    def forward(self, x: FloatArray) -> tuple[FloatArray, Passed]:
        if self.norm.centred:
            x = x - x.mean(-1, keepdims=True)
        size = np.sqrt(np.square(x).mean(-1, keepdims=True) + float(self.norm.epsilon))
        if not (((size > _SMALLEST) & (size < _LARGEST)) | ~x.any(-1, keepdims=True)).all():
            raise NotFiniteError("a vector is too small or too large to be normalised")
        factor = (size > 0) / (size + (size == 0))
        u = factor * x
        return self.scale.value * u + self.shift.value, _PassedNorm(self, u, factor)


@dataclass
class _PassedNorm:
    of: _NormStep
    u: FloatArray
    factor: FloatArray  # 1/s, (draws, rows, 1)

    def backward(self, J: FloatArray, rows: RowIndex | None, learns: list[Learns]) -> FloatArray:
        if self.of.norm.parameters == "trained":
            learns.append(_LearningNorm(self, rows, J))
        u, J = pick(self.u, rows), self.of.scale.value * J
        if self.of.norm.centred:
            J = J - J.mean(-1, keepdims=True)
        pulled: FloatArray = pick(self.factor, rows) * (J - u * (u * J).mean(-1, keepdims=True))
        return pulled


@dataclass
class _LearningNorm:
    passed: _PassedNorm
    rows: RowIndex | None
    J: FloatArray

    @property
    def by_scale(self) -> FloatArray:
        """Derivatives by the scales, for each cotangent."""
        return pick(self.passed.u, self.rows) * self.J

    def step(self, weights: FloatArray, lr: float, momentum: float) -> None:
        self.passed.of.scale.move(weights[:, None, :] @ self.by_scale, lr, momentum)
        if self.passed.of.norm.centred:
            self.passed.of.shift.move(weights[:, None, :] @ self.J, lr, momentum)

    def kernel(self, rows: RowIndex | None, outputs: int) -> FloatArray:
        p = self.passed.u.shape[1] if rows is None else rows.shape[1]
        K = _gram_of_outputs(self.by_scale, p, outputs)
        return K + _gram_of_outputs(self.J, p, outputs) if self.passed.of.norm.centred else K


@dataclass
class _ForkStep:
    """Where a branch leaves a stream, whose values wait in ``streams`` until it is back, in both passes."""

    streams: list[FloatArray]

    def forward(self, x: FloatArray) -> tuple[FloatArray, Passed]:
        self.streams.append(x)
        return x, self

    def backward(self, J: FloatArray, rows: RowIndex | None, learns: list[Learns]) -> FloatArray:
        return self.streams.pop() + J


@dataclass
class _JoinStep:
    """Where a branch is back, and added to skip times its stream."""

    skip: float
    streams: list[FloatArray]

    def forward(self, x: FloatArray) -> tuple[FloatArray, Passed]:
        return self.skip * self.streams.pop() + x, self

    def backward(self, J: FloatArray, rows: RowIndex | None, learns: list[Learns]) -> FloatArray:
        self.streams.append(self.skip * J)
        return J


@dataclass
class _SkipStep:
    factor: float

    def forward(self, x: FloatArray) -> tuple[FloatArray, Passed]:
        return self.factor * x, self

    def backward(self, J: FloatArray, rows: RowIndex | None, learns: list[Learns]) -> FloatArray:
        return self.factor * J


@dataclass
class ForwardPass:
    """The forward pass of some rows: the outputs N, shape (draws, rows, n_d), and what each step keeps."""

    output: FloatArray
    passed: Sequence[Passed]


@dataclass
class BackwardPass:
    """The gradients of all parameters along some cotangents, first to last."""

    learns: list[Learns] = field(default_factory=list)


class Networks:
    """``draws`` networks at fixed inputs, shape (inputs, n_0), that can pass forward, backward, and step."""

    def __init__(self, net: Network, inputs: FloatArray, draws: int, rng: np.random.Generator) -> None:
        triangle: FloatArray = np.asarray(np.linalg.qr(inputs.T, mode="r"))
        self.inputs = transpose(triangle)[None]  # triangle^T Q^T; W_hat Q has the law of W_hat[:, :columns]
        self.draws, self.rng = draws, rng
        self.layers: list[TrainedLayer] = []
        self.signs: list[FloatArray] = []
        self._streams: list[FloatArray] = []  # of the branches that a pass is in
        self._total = len(weight_layers(net))
        self.steps = [self._trained(step) for step in net.steps]

    @singledispatchmethod
    def _trained(self, step: Step) -> TrainedStep:
        """A step in these networks."""
        raise NotImplementedError(step)

    @_trained.register
    def _(self, step: Activation) -> TrainedStep:
        return _ActivationStep(step)

    @_trained.register
    def _(self, step: Fork) -> TrainedStep:
        return _ForkStep(self._streams)

    @_trained.register
    def _(self, step: Join) -> TrainedStep:
        return _JoinStep(step.skip, self._streams)

    @_trained.register
    def _(self, step: Skip) -> TrainedStep:
        return _SkipStep(step.factor)

    @_trained.register
    def _(self, step: Signs) -> TrainedStep:
        self.signs.append(np.where(self.rng.standard_normal((self.draws, 1, self.width)) < 0, -1.0, 1.0))
        return _SignsStep(self.signs[-1])

    @_trained.register
    def _(self, step: Norm) -> TrainedStep:
        shape = (self.draws, 1, self.width) if step.parameters == "trained" else (1, 1, 1)
        return _NormStep(step, TrainedVector(np.ones(shape)), TrainedVector(np.zeros(shape)))

    @_trained.register
    def _(self, layer: Layer) -> TrainedStep:
        number, draws = len(self.layers), self.draws
        columns = layer.fan_in if number else self.inputs.shape[2]
        deviation = float(layer.weight_variance) ** 0.5
        initial = SharedMatrix(layer.fan_out, columns, self.rng, deviation=deviation, draws=draws)
        weights, velocity = Combination(initial, scale=1.0), Combination(initial)
        if number in {0, self._total - 1}:
            initial.materialize()
        bias = np.zeros((draws, 1, layer.fan_out))
        if layer.bias_variance:
            bias += float(layer.bias_variance) ** 0.5 * self.rng.standard_normal(bias.shape)
        self.layers.append(TrainedLayer(layer, initial, weights, velocity, TrainedVector(bias), first=not number))
        return self.layers[-1]

    @property
    def width(self) -> int:
        """Of the vectors so far: every step but a layer keeps it."""
        return self.layers[-1].layer.fan_out

    def forward(self, rows: RowIndex | None) -> ForwardPass:
        """The forward pass of some inputs."""
        x, passed = pick(self.inputs, rows), []
        for step in self.steps:
            x, seen = step.forward(x)
            passed.append(seen)
        return ForwardPass(x, passed)

    @staticmethod
    def backward(forward: ForwardPass, cotangents: FloatArray, rows: RowIndex | None) -> BackwardPass:
        """The backward pass of J_d = cotangents, (draws, q, n_d), at these rows of a forward pass."""
        J, done = cotangents, BackwardPass()
        for each in reversed(forward.passed):
            J = each.backward(J, rows, done.learns)
        done.learns.reverse()
        return done

    def step(self, backward: BackwardPass, weights: FloatArray, lr: float, momentum: float) -> None:
        """A step of SGD along sum_q weights_q times the gradient of cotangent q, weights (draws, q).

        Coordinates from before it are of no use after it: matrices may be materialized now.
        """
        for each in backward.learns:
            each.step(weights, lr, momentum)
        for layer in self.layers:
            layer.initial.materialize_if_smaller()

    @staticmethod
    def kernel(backward: BackwardPass, rows: RowIndex | None, outputs: int) -> FloatArray:
        """K of these rows of the forward pass, (draws, p, p), a trace over the outputs.

        The first p * outputs cotangents are the unit vectors, output by output for each row.
        """
        K: FloatArray = np.zeros(())
        for each in backward.learns:
            K = K + each.kernel(rows, outputs)
        return K

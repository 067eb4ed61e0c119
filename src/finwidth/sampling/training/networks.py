r"""Networks under gradient descent whose weights are revealed only along the vectors they are multiplied with.

Rows are inputs.  With the weights W_hat_i of layer i, a `Combination` of its initial matrix, and explicit biases b_i::

    forward   Y_i = A_{i-1} W_hat_i^T + b_i,   A_i = phi(Y_i)
    backward  J_{i-1} = phi'(Y_{i-1}) * (J_i W_hat_i),   J_d given: unit vectors, or the slope of the loss
    step      W_hat_i <- W_hat_i - lr c_i J_i^T diag(w) A_{i-1},   b_i <- b_i - lr e_i w^T J_i
    kernel    K_ab = sum_i (c_i A_{i-1} A_{i-1}^T + e_i)_ab sum_o (J_i J_i^T)_{ao,bo}

The inputs are known in advance, so only their inner products matter: the first layer acts on their coordinates in an
orthonormal basis, and is a small matrix that is drawn as a whole, as is the last.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from finwidth.networks.activations import Activation
from finwidth.networks.description import Layer
from finwidth.networks.laws import FloatArray
from finwidth.networks.mlp import MLP
from finwidth.sampling.lazy_matrix.combination import Combination, SharedMatrix, sgd_step
from finwidth.sampling.lazy_matrix.gaussian import transpose

RowIndex: TypeAlias = npt.NDArray[np.intp]  # numbers of rows, (draws or 1, q)


@dataclass
class _TrainedLayer:
    """A weight layer of ``draws`` networks."""

    layer: Layer
    initial: SharedMatrix[FloatArray]
    weights: Combination[FloatArray]
    velocity: Combination[FloatArray]
    bias: FloatArray  # (draws, 1, n_i)
    bias_velocity: FloatArray | float = 0.0

    def move_bias(self, slope: FloatArray, lr: float, momentum: float) -> None:
        """One step along the slope of the loss by the bias, (draws, 1, n_i)."""
        self.bias_velocity = momentum * self.bias_velocity + slope
        self.bias = self.bias - lr * self.bias_velocity


@dataclass
class ForwardPass:
    """The forward pass of some rows: the input of each layer, its coordinates, and Y_i."""

    A: list[FloatArray]
    coordinates: list[FloatArray]
    Y: list[FloatArray]

    @property
    def output(self) -> FloatArray:
        """N, shape (draws, rows, n_d)."""
        return self.Y[-1]


@dataclass
class BackwardPass:
    """J_i of each layer and its coordinates; row q belongs to row ``rows[q]`` of the forward pass."""

    J: list[FloatArray]
    coordinates: list[FloatArray]
    rows: RowIndex | None


def pick(array: FloatArray, rows: RowIndex | None) -> FloatArray:
    """Rows of an array (draws or 1, all, n), the same or different ones in each draw; None: all as they are."""
    if rows is None:
        return array
    if len(rows) == 1:
        return array[:, rows[0]]
    draw = np.arange(len(rows))[:, None] if len(array) > 1 else 0
    picked: FloatArray = array[draw, rows]
    return picked


class Networks:
    """``draws`` networks at fixed inputs, shape (inputs, n_0), that can pass forward, backward, and step."""

    def __init__(self, net: MLP, inputs: FloatArray, draws: int, rng: np.random.Generator) -> None:
        self.phi: Activation = net.activation
        triangle: FloatArray = np.asarray(np.linalg.qr(inputs.T, mode="r"))
        self.inputs = transpose(triangle)[None]  # triangle^T Q^T; W_hat Q has the law of W_hat[:, :columns]
        self.layers = []
        for i, layer in enumerate(net.layers):
            columns = layer.fan_in if i else self.inputs.shape[2]
            deviation = float(layer.weight_variance) ** 0.5
            initial = SharedMatrix(layer.fan_out, columns, rng, deviation=deviation, draws=draws)
            weights, velocity = Combination(initial, scale=1.0), Combination(initial)
            if i in {0, net.depth - 1}:
                initial.materialize()
            bias = np.zeros((draws, 1, layer.fan_out))
            if layer.bias_variance:
                bias += float(layer.bias_variance) ** 0.5 * rng.standard_normal(bias.shape)
            self.layers.append(_TrainedLayer(layer, initial, weights, velocity, bias))

    def forward(self, rows: RowIndex | None) -> ForwardPass:
        """The forward pass of some inputs."""
        done = ForwardPass([], [], [])
        A = pick(self.inputs, rows)
        for each in self.layers:
            coordinates = each.initial.right(A)
            Y = each.weights.from_right(coordinates) + each.bias
            for kept, value in ((done.A, A), (done.coordinates, coordinates), (done.Y, Y)):
                kept.append(value)
            if each is not self.layers[-1]:
                A = self.phi.value(Y)
        return done

    def backward(self, forward: ForwardPass, cotangents: FloatArray, rows: RowIndex | None) -> BackwardPass:
        """The backward pass of J_d = cotangents, (draws, q, n_d), at these rows of a forward pass."""
        done = BackwardPass([cotangents], [], rows)
        for i in reversed(range(len(self.layers))):
            layer, J = self.layers[i], done.J[0]
            coordinates = layer.initial.left(J)
            done.coordinates.insert(0, coordinates)
            if i:
                slopes = pick(self.phi.derivative(forward.Y[i - 1]), rows)
                done.J.insert(0, slopes * layer.weights.from_left(coordinates))
        return done

    def step(
        self, forward: ForwardPass, backward: BackwardPass, weights: FloatArray, lr: float, momentum: float
    ) -> None:
        """A step of SGD along sum_q weights_q times the gradient of cotangent q, weights (draws, q).

        Coordinates from before it are of no use after it: matrices may be materialized now.
        """
        for i, each in enumerate(self.layers):
            weighted = weights[:, :, None] * backward.coordinates[i]
            gradient = transpose(weighted) @ pick(forward.coordinates[i], backward.rows)
            rate = lr * float(each.layer.weight_multiplier)
            sgd_step(each.weights, each.velocity, gradient, rate, momentum)
            each.initial.materialize_if_smaller()
            if each.layer.bias_multiplier:
                slope = weights[:, None, :] @ backward.J[i]
                each.move_bias(slope, lr * float(each.layer.bias_multiplier), momentum)

    def kernel(self, forward: ForwardPass, backward: BackwardPass, rows: RowIndex | None, outputs: int) -> FloatArray:
        """K of these rows of the forward pass, (draws, p, p), a trace over the outputs.

        The first p * outputs cotangents are the unit vectors, output by output for each row.
        """
        K: FloatArray = np.zeros(())
        for each, A, J in zip(self.layers, forward.A, backward.J, strict=True):
            probed = pick(A, rows)
            p = probed.shape[1]
            slopes = J[:, : p * outputs].reshape(len(J), p, -1)
            of_weights = float(each.layer.weight_multiplier) * (probed @ transpose(probed))
            K = K + (of_weights + float(each.layer.bias_multiplier)) * (slopes @ transpose(slopes))
        return K

r"""Networks under gradient descent whose weights are revealed only along the vectors they are multiplied with.

Rows are inputs.  With the weights W_hat_i of `trained_matrix`, one of them for each layer, and explicit biases b_i::

    forward   Y_i = A_{i-1} W_hat_i^T + b_i,   A_i = phi(Y_i)
    backward  J_{i-1} = phi'(Y_{i-1}) * (J_i W_hat_i),   J_d given: unit vectors, or the slope of the loss
    step      W_hat_i <- W_hat_i - lr c_i J_i^T diag(w) A_{i-1},   b_i <- b_i - lr e_i w^T J_i
    kernel    K_ab = sum_i (c_i A_{i-1} A_{i-1}^T + e_i)_ab sum_o (J_i J_i^T)_{ao,bo}

The inputs are known in advance, so only their inner products matter: the first layer acts on their coordinates in an
orthonormal basis, and is a small matrix that is drawn as a whole, as is the last.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from finwidth.networks.activations import Activation
from finwidth.networks.laws import FloatArray
from finwidth.networks.mlp import MLP, Layer
from finwidth.sampling.lazy_matrix.gaussian import turned
from finwidth.sampling.lazy_matrix.trained import TrainedMatrix

Rows = np.ndarray  # numbers of rows, (draws or 1, q)


@dataclass
class _TrainedLayer:
    """A weight layer of ``draws`` networks."""

    layer: Layer
    matrix: TrainedMatrix
    bias: FloatArray  # (draws, 1, n_i)
    bias_velocity: FloatArray | float = 0.0

    def move_bias(self, slope: FloatArray, lr: float, momentum: float) -> None:
        """One step along the slope of the loss by the bias, (draws, 1, n_i)."""
        self.bias_velocity = momentum * self.bias_velocity + slope
        self.bias = self.bias - lr * self.bias_velocity


@dataclass
class Passed:
    """The forward pass of some rows: the input of each layer, its coordinates, and Y_i."""

    A: list[FloatArray]
    coordinates: list[FloatArray]
    Y: list[FloatArray]

    @property
    def output(self) -> FloatArray:
        """N, shape (draws, rows, n_d)."""
        return self.Y[-1]


@dataclass
class Pulled:
    """A backward pass: J_i of each layer and its coordinates; row q belongs to row ``of[q]`` of the forward pass."""

    J: list[FloatArray]
    coordinates: list[FloatArray]
    of: Rows | None


def pick(array: FloatArray, rows: Rows | None) -> FloatArray:
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
        triangle = np.linalg.qr(inputs.T, mode="r")
        self.inputs = turned(triangle)[None]  # triangle^T Q^T; W_hat Q has the law of W_hat[:, :columns]
        self.layers = []
        for i, layer in enumerate(net.layers):
            columns = layer.fan_in if i else self.inputs.shape[2]
            deviation = float(layer.weight_variance) ** 0.5
            matrix = TrainedMatrix(layer.fan_out, columns, rng, deviation=deviation, draws=draws)
            if i in {0, net.depth - 1}:
                matrix.complete()
            bias = np.zeros((draws, 1, layer.fan_out))
            if layer.bias_variance:
                bias += float(layer.bias_variance) ** 0.5 * rng.standard_normal(bias.shape)
            self.layers.append(_TrainedLayer(layer, matrix, bias))

    def forward(self, rows: Rows | None) -> Passed:
        """The forward pass of some inputs."""
        passed = Passed([], [], [])
        A = pick(self.inputs, rows)
        for each in self.layers:
            Y, coordinates = each.matrix.push(A)
            Y = Y + each.bias
            for kept, value in ((passed.A, A), (passed.coordinates, coordinates), (passed.Y, Y)):
                kept.append(value)
            if each is not self.layers[-1]:
                A = self.phi.value(Y)
        return passed

    def backward(self, passed: Passed, seeds: FloatArray, of: Rows | None) -> Pulled:
        """The backward pass of J_d = seeds, (draws, q, n_d), at the rows ``of`` of a forward pass."""
        pulled = Pulled([seeds], [], of)
        for i in reversed(range(len(self.layers))):
            J, matrix = pulled.J[0], self.layers[i].matrix
            if i == 0:
                pulled.coordinates.insert(0, matrix.left(J))
                break
            L, coordinates = matrix.pull(J)
            pulled.coordinates.insert(0, coordinates)
            pulled.J.insert(0, pick(self.phi.derivative(passed.Y[i - 1]), of) * L)
        return pulled

    def step(self, passed: Passed, pulled: Pulled, weights: FloatArray, lr: float, momentum: float) -> None:
        """A step of SGD along sum_q weights_q times the gradient of seed q, weights (draws, q)."""
        for each, A, J, j in zip(self.layers, passed.coordinates, pulled.J, pulled.coordinates, strict=True):
            weighted = weights[:, :, None] * j
            each.matrix.step(weighted, pick(A, pulled.of), lr * float(each.layer.weight_multiplier), momentum)
            if each.layer.bias_multiplier:
                slope = weights[:, None, :] @ J
                each.move_bias(slope, lr * float(each.layer.bias_multiplier), momentum)

    def kernel(self, passed: Passed, pulled: Pulled, rows: Rows | None, outputs: int) -> FloatArray:
        """K of these rows of the forward pass, (draws, p, p), a trace over the outputs.

        The first p * outputs seeds are the unit vectors, output by output for each row.
        """
        K: FloatArray = np.zeros(())
        for each, A, J in zip(self.layers, passed.A, pulled.J, strict=True):
            probed = pick(A, rows)
            p = probed.shape[1]
            slopes = J[:, : p * outputs].reshape(len(J), p, -1)
            share = float(each.layer.weight_multiplier) * (probed @ turned(probed)) + float(each.layer.bias_multiplier)
            K = K + share * (slopes @ turned(slopes))
        return K

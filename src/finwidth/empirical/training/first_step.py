"""The kernel of networks that hold their weights, before and after one step of SGD at one input.

For weights of any law.  Of several outputs it is the kernel of output 0; all are trained.
"""

from __future__ import annotations

import numpy as np

from finwidth.empirical.reference.brute_force import batches
from finwidth.networks.laws import FloatArray
from finwidth.networks.mlp import MLP


def initial(net: MLP, x: FloatArray, draws: int, seed: int) -> FloatArray:
    """K_00(x,x) of random networks, shape (draws,); `first_step` with the same seed draws the same networks."""
    return np.concatenate(
        [_kernel(net, W, _passes(net, W, b, x)) for W, b in batches(net, draws, np.random.default_rng(seed))]
    )


def first_step(  # noqa: PLR0917
    net: MLP, x: FloatArray, target: FloatArray, lr: float, draws: int, seed: int
) -> tuple[FloatArray, FloatArray]:
    """K_00(x,x) before and after one step on |N(x) - t|^2 / 2, each of shape (draws,); not finite where that overflows.

    Parameters
    ----------
    net
        A network with weights and biases of any law, any activation.
    x, target
        One input, shape (n_0,), and its target, shape (n_d,).
    lr
        Learning rate of the network's parameterization.
    draws, seed
        How many networks, and what fixes them.

    Examples
    --------
    >>> import numpy as np
    >>> from finwidth import MLP
    >>> from finwidth.empirical.training.first_step import first_step
    >>> net = MLP([2, 10, 1], weight_law="uniform")
    >>> before, after = first_step(net, np.array([1.0, 1.0]), np.array([1.0]), 0.1, draws=1000, seed=0)
    >>> before.shape, bool((before != after).any())
    ((1000,), True)
    """
    pieces = []
    with np.errstate(over="ignore", invalid="ignore"):
        for W, b in batches(net, draws, np.random.default_rng(seed)):
            passed = _passes(net, W, b, x)
            before = _kernel(net, W, passed)
            A, Y = passed
            slopes = _backward_pass(net, W, Y, Y[-1] - target)
            for i, layer in enumerate(net.layers):
                W[i] -= lr * float(layer.weight_multiplier) * slopes[i][:, :, None] * A[i][:, None, :]
                b[i] -= lr * float(layer.bias_multiplier) * slopes[i]
            pieces.append((before, _kernel(net, W, _passes(net, W, b, x))))
    first, second = (np.concatenate(each) for each in zip(*pieces, strict=True))
    return first, second


def _passes(
    net: MLP, W: list[FloatArray], b: list[FloatArray], x: FloatArray
) -> tuple[list[FloatArray], list[FloatArray]]:
    """The input of each layer, (draws, n_{i-1}), and its pre-activations, (draws, n_i)."""
    A, Y = [np.broadcast_to(x, (len(W[0]), len(x)))], []
    for weight, bias in zip(W, b, strict=True):
        Y.append((weight @ A[-1][:, :, None])[:, :, 0] + bias)
        A.append(net.activation.value(Y[-1]))
    return A[:-1], Y


def _backward_pass(net: MLP, W: list[FloatArray], Y: list[FloatArray], J: FloatArray) -> list[FloatArray]:
    """J by the pre-activations of every layer, (draws, n_i), for J by those of the last."""
    slopes = [J]
    for i in reversed(range(1, net.depth)):
        slopes.insert(0, (slopes[0][:, None, :] @ W[i])[:, 0] * net.activation.derivative(Y[i - 1]))
    return slopes


def _kernel(net: MLP, W: list[FloatArray], passed: tuple[list[FloatArray], list[FloatArray]]) -> FloatArray:
    A, Y = passed
    unit = np.zeros_like(Y[-1])
    unit[:, 0] = 1.0
    K = np.zeros(len(unit))
    for layer, a, J in zip(net.layers, A, _backward_pass(net, W, Y, unit), strict=True):
        share = float(layer.weight_multiplier) * np.square(a).sum(-1) + float(layer.bias_multiplier)
        K += share * np.square(J).sum(-1)
    return K

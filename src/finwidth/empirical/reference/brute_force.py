"""Ground truth: draw the weights of many small networks and differentiate them, in plain NumPy.

Nothing here knows any theory: a forward pass, backpropagation, and second-order forward differentiation along
the gradient for the update.  It is slow and it is meant to be read; tests and `finwidth.compare` use it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import pairwise
from typing import NamedTuple, TypeVar

import numpy as np
import numpy.typing as npt

from finwidth.memory import afford, amount
from finwidth.networks.activations import SmoothActivation
from finwidth.networks.inputs import Vector, check_input, check_inputs, exponent
from finwidth.networks.laws import FloatArray
from finwidth.networks.mlp import MLP
from finwidth.progress import check_time, stage

Drawn = TypeVar("Drawn")

_BATCH_BYTES = 2**26
_SECONDS = 1e-8  # about so many for a weight of a network


def draw_networks(net: MLP, networks: int, rng: np.random.Generator) -> tuple[list[FloatArray], list[FloatArray]]:
    """Weights W_hat^(i), shapes (networks, n_i, n_{i-1}), and biases, shapes (networks, n_i), of random networks."""
    weights, biases = [], []
    for layer in net.layers:
        shape = (networks, layer.fan_out, layer.fan_in)
        weights.append(net.weight_law.sample(rng, shape) * float(layer.weight_variance) ** 0.5)
        biases.append(net.bias_law.sample(rng, shape[:2]) * float(layer.bias_variance) ** 0.5)
    return weights, biases


def kernel_at_input(net: MLP, weights: list[FloatArray], biases: list[FloatArray], x: Vector) -> dict[str, FloatArray]:
    """Output, K_w, K_b, K and dK (target 0, all outputs; K and dK of output 0) of given networks at one input.

    Returns
    -------
    dict of arrays of shape (networks,); ``output`` has shape (networks, n_d).
    """
    layers, phi, depth = net.layers, net.activation, net.depth
    x = check_input(net, x)
    # With two slopes and biases of 0 a network is at 2^k x what it is at x, times 2^k, and its gradient by the biases
    # is the same: x is scaled if its square may leave a double, and the multipliers of the weights with it.
    scaled = not isinstance(phi, SmoothActivation) and not any(bias.any() for bias in biases)
    k = exponent(x) if scaled else 0
    x, multipliers = np.ldexp(x, -k), [float(np.ldexp(float(layer.weight_multiplier), 2 * k)) for layer in layers]
    activations = [np.broadcast_to(x, (len(weights[0]), len(x)))]
    slopes: list[FloatArray] = []
    bends: list[FloatArray] = []
    for i, (weight, bias) in enumerate(zip(weights, biases, strict=True)):
        y = np.einsum("bij,bj->bi", weight, activations[-1]) + bias
        if i < depth - 1:
            slopes.append(phi.derivative(y))
            bends.append(phi.second_derivative(y))
            activations.append(phi.value(y))
    output = y

    # gradients[i][:, k] = dN_k / dy^(i+1), shape (networks, n_d, n_{i+1})
    gradients = [np.broadcast_to(np.eye(net.widths[-1]), (len(output), *[net.widths[-1]] * 2))]
    for i in reversed(range(depth - 1)):
        gradients.insert(0, np.einsum("bki,bij->bkj", gradients[0], weights[i + 1]) * slopes[i][:, None, :])

    squares = [np.square(gradient[:, 0]).sum(-1) for gradient in gradients]
    K_w = sum(
        multiplier * square * np.square(a).sum(-1)
        for multiplier, square, a in zip(multipliers, squares, activations, strict=True)
    )
    K_b = sum(float(layer.bias_multiplier) * square for layer, square in zip(layers, squares, strict=True))

    # The SGD direction per unit learning rate: -sum_k N_k grad N_k with the layer's multipliers. Along a direction
    # (dW, db), dK is the derivative of K; it is computed forward for the activations and backward for the gradients.
    force = [np.einsum("bk,bki->bi", output, gradient) for gradient in gradients]
    dW = [
        -multiplier * f[:, :, None] * a[:, None, :]
        for multiplier, f, a in zip(multipliers, force, activations, strict=True)
    ]
    db = [-float(layer.bias_multiplier) * f for layer, f in zip(layers, force, strict=True)]
    tangents = [np.zeros_like(activations[0])]
    moved: list[FloatArray] = []
    for i in range(depth - 1):
        dy = np.einsum("bij,bj->bi", dW[i], activations[i]) + np.einsum("bij,bj->bi", weights[i], tangents[i]) + db[i]
        moved.append(dy)
        tangents.append(slopes[i] * dy)
    cotangents = [np.zeros_like(gradients[-1][:, 0])]
    for i in reversed(range(depth - 1)):
        cotangent = np.einsum("bi,bij->bj", cotangents[0], weights[i + 1])
        cotangent += np.einsum("bi,bij->bj", gradients[i + 1][:, 0], dW[i + 1])
        pulled = np.einsum("bi,bij->bj", gradients[i + 1][:, 0], weights[i + 1])
        cotangents.insert(0, cotangent * slopes[i] + pulled * bends[i] * moved[i])
    dK = 0.0
    for layer, multiplier, square, gradient, dgradient, a, da in zip(
        layers, multipliers, squares, gradients, cotangents, activations, tangents, strict=True
    ):
        dsquare = 2 * (gradient[:, 0] * dgradient).sum(-1)
        dnorm = 2 * (a * da).sum(-1)
        dK = dK + multiplier * (dsquare * np.square(a).sum(-1) + square * dnorm)
        dK = dK + float(layer.bias_multiplier) * dsquare
    return {"output": np.ldexp(output, k), "K_w": K_w, "K_b": K_b, "K": K_w + K_b, "dK": dK}


def kernel_matrix(
    net: MLP,
    weights: list[FloatArray],
    biases: list[FloatArray],
    X: npt.ArrayLike,
    targets: npt.ArrayLike | None = None,
) -> dict[str, FloatArray]:
    """Outputs, shape (networks, m), and K_w, K_b, K, shape (networks, m, m), of given networks at m inputs.

    With several outputs the shapes are (networks, m, n_d) and (networks, m, m, n_d, n_d): K_abkl sums over all
    parameters the product of the derivatives of output k at input a and of output l at input b. With ``targets``, of
    the outputs' shape, also dK: the derivative of K along the SGD step, per unit learning rate, of the loss
    sum_a |N(x_a) - t_a|^2 / 2 on all inputs and outputs.
    """
    inputs, phi, outputs = check_inputs(net, X), net.activation, net.widths[-1]
    activations, pre = [np.broadcast_to(inputs, (len(weights[0]), *inputs.shape))], []
    for weight, bias in zip(weights, biases, strict=True):
        pre.append(np.einsum("bij,bmj->bmi", weight, activations[-1]) + bias[:, None, :])
        activations.append(phi.value(pre[-1]))
    gradients = [np.broadcast_to(np.eye(outputs), (*pre[-1].shape, outputs))]  # gradients[i] = dN_k / dy^(i+1)
    for i in reversed(range(1, net.depth)):
        pulled = np.einsum("bmki,bij->bmkj", gradients[0], weights[i])
        gradients.insert(0, pulled * phi.derivative(pre[i - 1])[:, :, None])
    passes = _Passes(weights, pre, activations, gradients)
    K_w, K_b = np.zeros((2, len(pre[0]), len(inputs), len(inputs), outputs, outputs))
    for layer, J, A in zip(net.layers, gradients, activations[:-1], strict=True):
        K_w += float(layer.weight_multiplier) * _pair_products(J, J) * _pairs_of_inputs(A, A)
        K_b += float(layer.bias_multiplier) * _pair_products(J, J)
    found = {"output": pre[-1], "K_w": K_w, "K_b": K_b, "K": K_w + K_b}
    if targets is not None:
        found["dK"] = _matrix_update(net, passes, pre[-1] - np.reshape(targets, (len(inputs), outputs)))
    if outputs > 1:
        return found
    return {name: values[..., 0] if name == "output" else values[..., 0, 0] for name, values in found.items()}


def _pair_products(one: FloatArray, other: FloatArray) -> FloatArray:
    """Inner products of rows of all pairs of inputs and outputs, shape (networks, m, m, n_d, n_d)."""
    products: FloatArray = np.einsum("baki,bcli->backl", one, other)
    return products


def _pairs_of_inputs(one: FloatArray, other: FloatArray) -> FloatArray:
    """Inner products of rows of all pairs of inputs, shape (networks, m, m, 1, 1)."""
    products: FloatArray = np.einsum("bai,bci->bac", one, other)
    return products[..., None, None]


class _Passes(NamedTuple):
    """Both passes of many networks; arrays of shape (networks, m, n_i), the gradients (networks, m, n_d, n_i)."""

    weights: list[FloatArray]
    pre: list[FloatArray]
    activations: list[FloatArray]
    gradients: list[FloatArray]


def _matrix_update(net: MLP, passes: _Passes, residuals: FloatArray) -> FloatArray:
    """The first change of `kernel_matrix`: its parts differentiated along the step (dW, db), forward and backward."""
    phi, (weights, pre, activations, gradients) = net.activation, passes
    dW, db = [], []
    for layer, J, A in zip(net.layers, gradients, activations[:-1], strict=True):
        force = np.einsum("bmk,bmki->bmi", residuals, J)
        dW.append(-float(layer.weight_multiplier) * np.einsum("bmi,bmj->bij", force, A))
        db.append(-float(layer.bias_multiplier) * force.sum(1))
    dA, dY = [np.zeros_like(activations[0])], []
    for i in range(net.depth):
        moved = np.einsum("bij,bmj->bmi", dW[i], activations[i]) + np.einsum("bij,bmj->bmi", weights[i], dA[i])
        dY.append(moved + db[i][:, None, :])
        dA.append(phi.derivative(pre[i]) * dY[i])
    dJ = [np.zeros_like(gradients[-1])]
    for i in reversed(range(1, net.depth)):
        pulled = np.einsum("bmki,bij->bmkj", gradients[i], weights[i])
        dpulled = np.einsum("bmki,bij->bmkj", dJ[0], weights[i]) + np.einsum("bmki,bij->bmkj", gradients[i], dW[i])
        slope, bend = phi.derivative(pre[i - 1]), phi.second_derivative(pre[i - 1])
        dJ.insert(0, (bend * dY[i - 1])[:, :, None] * pulled + slope[:, :, None] * dpulled)
    dK = np.zeros((*residuals.shape[:2], *residuals.shape[1:], residuals.shape[-1]))
    for layer, J, A, U, T in zip(net.layers, gradients, activations[:-1], dJ, dA[:-1], strict=True):
        share = float(layer.weight_multiplier) * _pairs_of_inputs(A, A) + float(layer.bias_multiplier)
        half = share * _pair_products(U, J) + float(layer.weight_multiplier) * _pairs_of_inputs(T, A) * _pair_products(
            J, J
        )
        dK += half + half.transpose(0, 2, 1, 4, 3)
    return dK


def simulate(net: MLP, x: Vector, networks: int, rng: np.random.Generator) -> dict[str, FloatArray]:
    """`kernel_at_input` of random networks, drawn in batches of bounded memory; ``output`` is output 0.

    Examples
    --------
    >>> import numpy as np
    >>> from finwidth import MLP
    >>> from finwidth.empirical.reference.brute_force import simulate
    >>> drawn = simulate(MLP([2, 3, 3, 1]), [1, 2], 20_000, np.random.default_rng(0))
    >>> abs(float(drawn["K_b"].mean()) - 31 / 16) < 0.05    # the exact mean
    True
    """
    pieces = [kernel_at_input(net, *drawn, x) for drawn in batches(net, networks, rng)]
    found = {name: np.concatenate([piece[name] for piece in pieces]) for name in pieces[0]}
    return found | {"output": found["output"][:, 0]}


def weights_of(net: MLP) -> int:
    """Number of weights of a network."""
    return sum(a * b for a, b in pairwise(net.widths))


def memory(net: MLP, networks: int) -> int:
    """Bytes that `kernel_at_input` of a batch of networks needs at its peak: weights, their steps, and both passes."""
    outputs, largest = net.widths[-1], max(a * b for a, b in pairwise(net.widths))
    one = 2 * weights_of(net) + largest // 2 + (outputs + 6) * sum(net.widths)
    return 8 * one * min(networks, max(1, _BATCH_BYTES // (8 * weights_of(net))))


def batches(net: MLP, networks: int, rng: np.random.Generator) -> Iterator[tuple[list[FloatArray], list[FloatArray]]]:
    """`draw_networks`, so many at a time that their weights take bounded memory.

    Raises SizeError where that of one is more than there is, or all take over a year.
    """
    what = f"drawing {amount(networks)} networks of {amount(weights_of(net))} weights"
    afford(memory(net, networks) + 16 * networks * (4 + net.widths[-1]), what, "draw fewer or smaller ones")
    check_time(networks, _SECONDS * weights_of(net), what, "draw fewer")
    batch = max(1, _BATCH_BYTES // (8 * weights_of(net)))
    yield from in_batches(lambda number: draw_networks(net, number, rng), networks, batch)


def in_batches(draw: Callable[[int], Drawn], networks: int, batch: int) -> Iterator[Drawn]:
    """What ``draw`` makes of each number of networks, ``batch`` at a time."""
    with stage("drawing networks", networks) as told:
        for start in range(0, networks, batch):
            yield draw(min(batch, networks - start))
            told(min(start + batch, networks))

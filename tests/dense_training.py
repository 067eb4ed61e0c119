"""Ground truth for training in law: many small networks that hold their weights, trained by plain backpropagation."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from finwidth import MLP
from finwidth.empirical.reference.brute_force import draw_networks

Array = Any
Loss = Callable[[Array, Array], Array]


def softmax(z: Array) -> Array:
    likely = np.exp(z - z.max(-1, keepdims=True))
    return likely / likely.sum(-1, keepdims=True)


# The value, summed over inputs and outputs, and the derivative by the outputs, of outputs N and targets t.
LOSSES: dict[str, tuple[Loss, Loss]] = {
    "squared": (lambda N, t: ((N - t) ** 2).sum((1, 2)) / 2, lambda N, t: N - t),
    "cross-entropy": (lambda N, t: -(np.log(softmax(N)) * t).sum((1, 2)), lambda N, t: softmax(N) - t),
}


def passes(net: MLP, W: list[Array], b: list[Array], X: Array, seeds: Array | None = None) -> tuple[list[Array], ...]:
    """Activations A_{i-1}, pre-activations and, from seeds (draws, m, n_d), backpropagated J_i, (draws, m, n_i)."""
    A: list[Array] = [np.broadcast_to(X, (len(W[0]), *X.shape[-2:]))]
    Y: list[Array] = []
    for weight, bias in zip(W, b, strict=True):
        Y.append(np.einsum("dmi,dji->dmj", A[-1], weight) + bias[:, None])
        A.append(net.activation.value(Y[-1]))
    J: list[Array] = [seeds]
    for i in reversed(range(1, net.depth)):
        if seeds is not None:
            J.insert(0, np.einsum("dmj,dji->dmi", J[0], W[i]) * net.activation.derivative(Y[i - 1]))
    return A, Y, J


def kernel(net: MLP, W: list[Array], b: list[Array], X: Array) -> Array:
    """K over (draws, p, p): the sum over outputs of the products of derivatives by all parameters, one by one."""
    K = 0.0
    for output in range(net.widths[-1]):
        seeds = np.zeros((len(W[0]), len(X), net.widths[-1]))
        seeds[..., output] = 1
        A, _, J = passes(net, W, b, X, seeds)
        for layer, a, j in zip(net.layers, A, J, strict=False):
            by_weight = np.einsum("dmj,dmi->dmji", j, a).reshape(len(a), len(X), -1)
            K = K + float(layer.weight_multiplier) * np.einsum("dmw,dkw->dmk", by_weight, by_weight)
            K = K + float(layer.bias_multiplier) * np.einsum("dmj,dkj->dmk", j, j)
    return K


def dense_training(  # noqa: PLR0917
    net: MLP,
    X: Array,
    y: Array,
    steps: int,
    lr: float,
    draws: int,
    rng: np.random.Generator,
    record: Sequence[int],
    *,
    probe: Array | None = None,
    batch: int | None = None,
    momentum: float = 0.0,
    loss: str = "squared",
    centred: bool = False,
    start: tuple[list[Array], list[Array]] | None = None,
) -> dict[str, Array]:
    """Loss (draws, records), output (.., m, n_d), probe_output and K of ``draws`` networks.

    Where ``centred``, of N - N_0: the first weights are kept, and their outputs subtracted wherever outputs are made.
    """
    W, b = draw_networks(net, draws, rng) if start is None else start
    W, b = [w.copy() for w in W], [each.copy() for each in b]
    first = ([w.copy() for w in W], [each.copy() for each in b])

    def outputs_at(inputs: Array) -> Array:
        now = passes(net, W, b, inputs)[1][-1]
        return now - passes(net, *first, inputs)[1][-1] if centred else now

    velocities = [np.zeros_like(each) for each in (*W, *b)]
    m, outputs = len(X), net.widths[-1]
    value, derivative = LOSSES[loss]
    targets = np.eye(outputs)[y] if loss == "cross-entropy" else np.reshape(y, (m, outputs))
    found: dict[str, list[Array]] = {"loss": [], "output": [], "probe_output": [], "K": []}
    order = np.empty((draws, 0), dtype=int)
    for step in range(steps + 1):
        if step in record:
            output = outputs_at(X)
            found["output"].append(output)
            found["loss"].append(value(output, targets))
            where = X if probe is None else probe
            found["probe_output"].append(outputs_at(where))
            found["K"].append(kernel(net, W, b, where))
        rows = np.broadcast_to(np.arange(m), (draws, m))
        if batch is not None:
            if not order.shape[1]:
                order = rng.permuted(rows, axis=1)
            rows, order = order[:, :batch], order[:, batch:]
        inputs, wanted = X[rows], targets[rows]
        A, _, J = passes(net, W, b, inputs, derivative(outputs_at(inputs), wanted))
        for i, layer in enumerate(net.layers):
            dW, db = np.einsum("dmj,dmi->dji", J[i], A[i]), J[i].sum(1)
            velocities[i] = momentum * velocities[i] + dW
            velocities[net.depth + i] = momentum * velocities[net.depth + i] + db
            W[i] -= lr * float(layer.weight_multiplier) * velocities[i]
            b[i] -= lr * float(layer.bias_multiplier) * velocities[net.depth + i]
    return {name: np.stack(values, axis=1) for name, values in found.items()}

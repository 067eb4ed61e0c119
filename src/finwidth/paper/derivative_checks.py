"""Lemmas 6 and 12: sums over paths against derivatives, on networks with drawn weights.

Derivatives come from differences: with the gates fixed N is linear in every single parameter, so central differences
have no truncation error.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from itertools import product
from typing import Any

import numpy as np
import numpy.typing as npt

from finwidth.empirical.reference.brute_force import draw_networks, kernel_at_input
from finwidth.networks.laws import FloatArray
from finwidth.networks.mlp import MLP
from finwidth.paper.path_checks import common, from_input, names
from finwidth.paper.paths import Edge, Path, paths_from
from finwidth.paper.records import Statement

_SEED = 1909_05989
_STEP, _MARGIN = 1e-3, 0.05
_TOLERANCE = 1e-6
DRAWN = (MLP([2, 2, 2, 1]), MLP([2, 3, 1], "uniform"), MLP([1, 2, 2, 1], "laplace"))
_EACH = 4  # networks for each architecture


@dataclass(frozen=True)
class Drawn:
    """One network with drawn weights, at one input."""

    net: MLP
    x: FloatArray
    theta: FloatArray  # unit-variance weights and biases, layer after layer

    def output(self, theta: Any, seen: list[Any] | None = None) -> Any:
        """N(x); ``theta`` is a NumPy array or a torch tensor. Pre-activations are appended to ``seen``."""
        a, start = self.x if isinstance(theta, np.ndarray) else theta.new_tensor(self.x), 0
        for layer in self.net.layers:
            n_out, n_in = layer.fan_out, layer.fan_in
            weight = theta[start : start + n_out * n_in].reshape(n_out, n_in)
            bias = theta[start + n_out * n_in : start + n_out * (n_in + 1)]
            y = math.sqrt(layer.weight_variance) * (weight @ a) + bias
            if seen is not None:
                seen.append(y)
            a, start = y.clip(min=0), start + n_out * (n_in + 1)
        return y[0]

    @cached_property
    def preactivations(self) -> list[FloatArray]:
        """y^(1), ..., y^(d)."""
        seen: list[FloatArray] = []
        self.output(self.theta, seen)
        return seen

    @cached_property
    def is_weight(self) -> npt.NDArray[np.bool_]:
        """Which entries of theta are weights."""
        pieces = [[True] * (layer.fan_in * layer.fan_out) + [False] * layer.fan_out for layer in self.net.layers]
        return np.concatenate([np.array(piece) for piece in pieces])

    @cached_property
    def first_and_second(self) -> tuple[FloatArray, FloatArray]:
        """Gradient and Hessian of N in theta, by differences."""
        steps = _STEP * np.eye(len(self.theta))
        up_down = [self.output(self.theta + step) - self.output(self.theta - step) for step in steps]
        hessian = [[self._mixed(one, two) for two in steps] for one in steps]
        return np.array(up_down) / (2 * _STEP), np.array(hessian) / (4 * _STEP**2)

    def _mixed(self, one: FloatArray, two: FloatArray) -> float:
        signs = ((1, 1), (1, -1), (-1, 1), (-1, -1))
        return float(sum(s * t * self.output(self.theta + s * one + t * two) for s, t in signs))

    def by_derivatives(self) -> dict[str, float]:
        """K_w, K_b and, with N* = 0, Delta_ww, Delta_bb, from gradient and Hessian."""
        g, H = self.first_and_second
        w, b = np.where(self.is_weight, g, 0), np.where(self.is_weight, 0, g)
        N = self.preactivations[-1][0]
        return {"K_w": w @ w, "K_b": b @ b, "D_ww": N * (w @ H @ w), "D_bb": N * (b @ H @ b), "bend": b @ abs(H) @ b}

    def weight_of(self, gamma: Path) -> float:
        """wt(gamma): the weights on its edges, and the gates of the neurons on it."""
        value = math.prod(math.sqrt(self.net.layers[e.layer - 1].weight_variance) * self.unit[e] for e in gamma.edges)
        return value * all(self.preactivations[gate.layer - 1][gate.neuron] > 0 for gate in gamma.gates)

    @cached_property
    def unit(self) -> dict[Edge, float]:
        """The unit-variance weight of every edge."""
        edges = [
            Edge(i, left, right)
            for i, layer in enumerate(self.net.layers, 1)
            for right in range(layer.fan_out)
            for left in range(layer.fan_in)
        ]
        return dict(zip(edges, self.theta[self.is_weight], strict=True))


def drawn_networks(net: MLP, count: int = _EACH) -> Iterator[Drawn]:
    """Networks with drawn weights of which no pre-activation is closer to 0 than _MARGIN."""
    rng = np.random.default_rng(_SEED)
    x = np.arange(1.0, net.widths[0] + 1)
    while count:
        weights, biases = draw_networks(net, 1, rng)
        scales = [math.sqrt(layer.weight_variance) for layer in net.layers]
        pieces = [
            piece
            for weight, bias, scale in zip(weights, biases, scales, strict=True)
            for piece in (weight[0].ravel() / scale, bias[0])
        ]
        each = Drawn(net, x, np.concatenate(pieces))
        if min(abs(y).min() for y in each.preactivations) > _MARGIN:
            count -= 1
            yield each


def path_sums(each: Drawn) -> dict[str, float]:
    """K_w, K_w^2 and Delta_ww as the sums over paths and marked edges of Lemma 6."""
    value = {gamma: each.x[gamma.neurons[0]] * each.weight_of(gamma) for gamma in from_input(each.net)}
    paths = [gamma for gamma in value if value[gamma]]
    lost = {edge: 1 / weight**2 for edge, weight in each.unit.items()}
    pairs = sum(value[one] * value[two] * lost[e] for one, two in product(paths, repeat=2) for e in common(one, two))
    second = delta = 0.0
    for one, two, three, four in product(paths, repeat=4):
        size = value[one] * value[two] * value[three] * value[four]
        first_marks = common(one, two)
        second += size * sum(lost[e1] * lost[e2] for e1, e2 in product(first_marks, common(three, four)))
        delta += size * sum(lost[e1] * lost[e2] for e1, e2 in product(first_marks, common(two, three)) if e1 != e2)
    return {"K_w": float(pairs), "K_w^2": second, "D_ww": delta}


def _gap(one: float, other: float) -> float:
    return abs(one - other) / max(1.0, abs(one), abs(other))


def _below(gap: float) -> str:
    """A difference by rounding, in a form that does not depend on the machine."""
    return f"below {_TOLERANCE:g}" if gap < _TOLERANCE else f"{gap:.2g}"


def lemma_6() -> Statement:
    """Lemma 6: K_w, K_w^2 and Delta_ww as sums over paths with marked edges."""
    gap, odd, networks = 0.0, 0.0, 0
    for net in DRAWN:
        for each in drawn_networks(net):
            networks += 1
            sums, exact = path_sums(each), each.by_derivatives()
            exact["K_w^2"] = exact["K_w"] ** 2
            other = _backpropagated(each)
            gap = max(gap, *(_gap(sums[name], exact[name]) for name in sums))
            gap = max(gap, *(_gap(sums[name], other[name]) for name in other))
            odd = max(odd, _gap(_bend(each), -_bend(_flipped(each))))
    return Statement(
        "lemma-6",
        "K_w, K_w^2 and Delta_ww (up to a mean-zero term) are sums over pairs and 4-tuples of paths with marked edges.",
        "listing all paths of drawn networks, against first and second derivatives, by differences, "
        "and against backpropagation in NumPy; the term with N* changes sign with W^(d)",
        {
            "networks": networks,
            "architectures": names(DRAWN),
            "largest relative difference": _below(gap),
            "term with N*, asymmetry": _below(odd),
        },
        bool(gap < _TOLERANCE and odd < _TOLERANCE),
    )


def _backpropagated(each: Drawn) -> dict[str, float]:
    """K_w and Delta_ww from `finwidth.empirical.reference.brute_force`, with frozen biases."""
    net = MLP(each.net.widths, each.net.weight_law, bias="frozen")
    weights, start = [], 0
    units = each.theta[each.is_weight]
    for layer in net.layers:
        size = layer.fan_in * layer.fan_out
        shape = (1, layer.fan_out, layer.fan_in)
        weights.append(units[start : start + size].reshape(shape) * math.sqrt(layer.weight_variance))
        start += size
    found = kernel_at_input(net, weights, [np.zeros((1, layer.fan_out)) for layer in net.layers], list(each.x))
    return {"K_w": float(found["K_w"][0]), "D_ww": float(-found["dK"][0] / 2)}


def _bend(each: Drawn) -> float:
    """g^T H g over weights, the factor of N* in Delta_ww."""
    g, H = each.first_and_second
    w = np.where(each.is_weight, g, 0)
    return float(w @ H @ w)


def _flipped(each: Drawn) -> Drawn:
    """The network with the other sign of W^(d), which is as likely."""
    theta = each.theta.copy()
    theta[-1 - each.net.widths[-2] : -1] *= -1
    return Drawn(each.net, each.x, theta)


def lemma_12() -> Statement:
    """Lemma 12: K_b as a sum over open neurons and pairs of paths from them; Delta_bb = 0."""
    gap, bend, networks, negative, off_by_one = 0.0, 0.0, 0, 0, 0
    for net in DRAWN:
        for each in drawn_networks(net):
            networks += 1
            exact = each.by_derivatives()
            hidden, output = _open_neurons(each)
            gap = max(gap, _gap(hidden + 1, exact["K_b"]))
            bend = max(bend, abs(exact["D_bb"]), exact["bend"])
            negative += each.preactivations[-1][0] < 0
            off_by_one += abs(hidden + output - exact["K_b"] + 1) < _TOLERANCE
    return Statement(
        "lemma-12",
        "K_b is the sum over open neurons Z and pairs of paths from Z of wt wt; Delta_bb = 0.",
        "listing all paths of drawn networks, against first and second derivatives by the biases, by differences; "
        "the output neuron counts whether N > 0 or not",
        {
            "networks": networks,
            "architectures": names(DRAWN),
            "largest relative difference": _below(gap),
            "largest second derivative by biases": _below(bend),
            "networks with N < 0": int(negative),
            "of which K_b is 1 more than the sum with a gated output": int(off_by_one),
        },
        bool(gap < _TOLERANCE and bend < _TOLERANCE and off_by_one == negative),
        "Read literally, with the output neuron counted only where N > 0, the sum is 1 too small on the networks with "
        "N < 0 (finding 1).",
    )


def _open_neurons(each: Drawn) -> tuple[float, float]:
    """The sum over open hidden neurons, and the term of the output neuron if it is gated."""
    hidden = 0.0
    for layer in range(1, each.net.depth):
        for neuron in range(each.net.widths[layer]):
            paths = paths_from(each.net, layer, neuron)
            # The first gate of a path from Z is the gate of Z itself.
            hidden += sum(each.weight_of(one) * each.weight_of(two) for one, two in product(paths, repeat=2))
    return hidden, float(each.preactivations[-1][0] > 0)

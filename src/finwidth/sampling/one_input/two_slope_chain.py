r"""One input, any two-slope activation, zero or Gaussian initial biases: the joint law of (N, K_w, K_b, K, Delta K).

A pre-activation y in R^n splits into its m positive and n - m negative coordinates, of norms (rho+, rho-), with slopes
(a, b).  All that a layer's vectors have in common with y lies in four directions: y+ and y- themselves, and the part of
the gradient across each, f+ and f-.  In these coordinates (docs/theory/norm-chain.md), with v, b_0 the variances of the
layer's weights and biases, and beta = b_0 / v of the layer above::

    forward   rho_i^2 = (v_i R_{i-1} + b_i) (chi2(m_i), chi2(n_i - m_i)),  x_i = (a rho+, b rho-),  R_i = |x_i|^2
    backward  q = W_{i+1}^T J_{i+1}: along x_i it is sqrt(R_i) p_{i+1} / (R_i + beta) + sigma sqrt(beta/(R_i + beta)) g,
              across it sigma g', on f+ and f- sigma (chi(m_i - 1), chi(n_i - m_i - 1)); sigma^2 = v_{i+1} S_{i+1}
              J_i = (a q+, b q-, a q_f+, b q_f-),  S_i = |J_i|^2,  p_i = y_i . J_i = x_i . q
    update    dx = alpha x' + r, x' with the constant neuron; W r = J (q . r) / S + sqrt(v) |r| (1 - J J^T / S) g
              dy_i = (k_i + (w_{i-1} - alpha p_i) / S_i) J_i + alpha y_i + noise,  k_i = c_i R_{i-1} + e_i
              w_i = J_i . dy_i = w_{i-1} + k_i S_i,   Delta K / lambda = -4 N sum_i c_i S_i (x_{i-1} . dx_{i-1})
"""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from itertools import pairwise
from typing import TypeAlias

import numpy as np

from finwidth.networks.activations import Array, array_namespace
from finwidth.networks.laws import FloatArray
from finwidth.networks.mlp import MLP
from finwidth.sampling.one_input.arithmetic import over, times_power_of_two
from finwidth.sampling.random.device import DeviceGenerator, generator_namespace, in_numpy
from finwidth.sampling.random.variates import Variates

Generator: TypeAlias = Variates | DeviceGenerator


@dataclass
class HiddenVectors:
    """One hidden layer of all draws; arrays of shape (2, draws) are over the positive and the negative group."""

    place: int
    slopes: Array  # (2, 1)
    counts: Array
    y: Array  # (rho+, rho-)
    unit: Array  # x / |x|; where x = 0, any direction
    turned: Array  # the direction across it in the plane of y+ and y-
    norm: Array  # |x|, shape (draws,), in the layer's unit
    carried: Array  # |x| in the unit of the layer above
    live: Array  # 0 where y = 0 and the gates are closed
    factor: Array  # of the layer's norm, if it has one
    J: Array = None  # (4, draws): on y+, y-, f+, f-
    square: Array = None  # S = |J|^2
    p: Array = None  # y . J
    pulled: Array = None  # x . q
    bend: Array = 0.0  # half of what the norm's curvature gives of the output's second derivative along the tangent


class TwoSlopeChain:
    """The chain of the module's docstring for one network; ``draw`` is that of `norm_chain.NormChain`.

    It computes with the arrays of what draws for it: NumPy's for `Variates`, torch's for a `DeviceGenerator`.

    ``exponent`` is that of an input x = 2^k x' whose square may leave a double.  Then y_i and x_i are kept in units of
    2^k_i, k_i the larger of k and the exponents of the biases' deviations so far; gates and directions know no unit.
    """

    def __init__(self, net: MLP, exponent: int = 0) -> None:
        phi = net.activation
        self.units = _units(net, exponent)
        self.widths = net.widths
        self.slopes = (float(phi.positive), float(phi.negative))
        self.at_zero = float(phi.at_zero)
        self.weight_variance = [float(layer.weight_variance) for layer in net.layers]
        self.bias_variance = [
            float(layer.bias_variance / Fraction(4) ** unit)
            for layer, unit in zip(net.layers, self.units[1:], strict=True)
        ]
        self.weight_multiplier = [float(layer.weight_multiplier) for layer in net.layers]
        self.bias_multiplier = [float(layer.bias_multiplier) for layer in net.layers]

    def draw(self, norm: float, rng: Generator, draws: int) -> dict[str, FloatArray]:
        """``draws`` draws at an input of squared norm 4^exponent ``norm``: output, K_w, K_b, K, dK."""
        xp = generator_namespace(rng)
        with np.errstate(all="ignore"):  # the caller sees to overflow
            normal = rng.standard_normal(draws)  # the output's
            one = xp.ones_like(normal)
            hidden, deviation = self._forward(norm, rng, one)
            output = deviation * normal
            self._backward(hidden, output, rng)
            squares, norms = [*(layer.square for layer in hidden), one], self._norms(norm * one, hidden)
            K_w = K_b = 0 * one
            for c, e, R, S in zip(self.weight_multiplier, self.bias_multiplier, norms, squares, strict=True):
                K_w = K_w + c * R * S
                K_b = K_b + e * S
            output = times_power_of_two(output, self.units[-1])
            dK = -4 * output * self._update(hidden, norms, squares, rng) + 0.0  # no negative zeros
        drawn = {"output": output, "K_w": K_w, "K_b": K_b, "K": K_w + K_b, "dK": dK}
        return {name: in_numpy(values) for name, values in drawn.items()}

    def _norms(self, norm: Array, hidden: list[HiddenVectors]) -> list[Array]:
        """|x_i|^2 of the input and the hidden layers, without units."""
        norms = [times_power_of_two(norm, 2 * self.units[0])]
        return norms + [
            times_power_of_two(each.norm**2, 2 * unit) for each, unit in zip(hidden, self.units[1:], strict=False)
        ]

    def _forward(self, norm: float, rng: Generator, one: Array) -> tuple[list[HiddenVectors], Array]:
        """The hidden layers, and the deviation of the output; ``one`` is 1 for each draw."""
        xp, hidden, draws = generator_namespace(rng), [], len(one)
        steps = [lower - upper for lower, upper in pairwise(self.units)]
        R = times_power_of_two(norm * one, 2 * steps[0])
        can_die = not all(self.slopes)
        for i, width in enumerate(self.widths[1:-1]):
            scale = self.weight_variance[i] * R + self.bias_variance[i]
            silent = norm == 0 and not any(self.bias_variance[: i + 1])  # y = 0 in every network
            positive = width * xp.ones_like(R) if silent else rng.coins(width, draws)
            counts = xp.stack([positive, width - positive])
            y = xp.sqrt(scale * rng.chi_square(counts))
            a, b = (self.at_zero, self.at_zero) if silent else self.slopes
            slopes = xp.stack([a * xp.ones_like(R[:1]), b * xp.ones_like(R[:1])])
            x, factor = self._activated(i, slopes, y)
            R = (x**2).sum(0)
            length = xp.sqrt(R)
            unit = xp.where(length > 0, over(x, length), xp.stack([xp.ones_like(R), xp.zeros_like(R)]))
            live = xp.ones_like(R) if silent or not can_die else 1.0 * (scale > 0)
            carried = times_power_of_two(length, steps[i + 1])
            R = times_power_of_two(R, 2 * steps[i + 1])
            turned = xp.stack([-unit[1], unit[0]])
            hidden.append(HiddenVectors(i, slopes, counts, y, unit, turned, length, carried, live, factor))
        return hidden, xp.sqrt(self.weight_variance[-1] * R + self.bias_variance[-1])

    def _activated(self, i: int, slopes: Array, y: Array) -> tuple[Array, Array]:
        """What hidden layer ``i`` makes of y, and the factor of its norm, if it has one."""
        return slopes * y, None

    def _pulled_back(self, layer: HiddenVectors, plane: Array, fresh: Array) -> tuple[Array, Array]:
        """J from q, on y+, y- and on f+, f-; and y . J."""
        xp = array_namespace(plane)
        return xp.concatenate([layer.slopes * plane, layer.slopes * fresh]) * layer.live, layer.pulled

    def _pushed_on(self, layer: HiddenVectors, dy: Array, spread: Array, chi: Array, w: Array) -> tuple[Array, Array]:
        """The tangent dx from dy in the same directions, and its square beyond them; that of dy is ``spread chi``."""
        slopes = array_namespace(dy).concatenate([layer.slopes, layer.slopes]) * layer.live
        return slopes * dy, layer.live * spread * (layer.slopes**2 * chi).sum(0)

    def _backward(self, hidden: list[HiddenVectors], output: Array, rng: Generator) -> None:
        """Draw J_i, S_i and p_i of every hidden layer, from the output down."""
        xp = generator_namespace(rng)
        S, p, draws = xp.ones_like(output), output, len(output)
        for i in reversed(range(len(hidden))):
            layer = hidden[i]
            total, share = self._constant(i + 1, layer.carried)
            sigma = xp.sqrt(self.weight_variance[i + 1] * S)
            along = over(layer.carried * p, total)
            if share.any():
                along = along + sigma * xp.sqrt(share) * rng.standard_normal(draws)
            across = sigma * rng.standard_normal(draws)
            plane = (along * layer.unit + across * layer.turned) * (layer.counts >= 1)
            fresh = sigma * xp.sqrt(rng.chi_square(layer.counts, less=1))
            layer.pulled = layer.norm * along
            layer.J, p = self._pulled_back(layer, plane, fresh)
            layer.square = S = (layer.J**2).sum(0)
            layer.p = p

    def _constant(self, i: int, norm: Array) -> tuple[Array, Array]:
        """|x'|^2 of the input x of layer ``i`` with its constant neuron, and that neuron's share of it (1 at x = 0)."""
        beta = self.bias_variance[i] / self.weight_variance[i]
        total = norm**2 + beta
        return total, over(beta + 0 * total, total) + 1.0 * (total == 0)

    def _update(self, hidden: list[HiddenVectors], norms: list[Array], squares: list[Array], rng: Generator) -> Array:
        """Sum over layers of c_i S_i (x_{i-1} . dx_{i-1}), for the tangent dx along the gradient."""
        xp = generator_namespace(rng)
        u = w = along = across = result = xp.zeros_like(squares[-1])  # across: the squared part of dx across x
        carried = u  # of the input any number would do: it does not move
        for i, layer in enumerate(hidden):
            k = self.weight_multiplier[i] * norms[i] + self.bias_multiplier[i]
            result = result + times_power_of_two(self.weight_multiplier[i] * squares[i] * u, self.units[i + 1])
            total, share = self._constant(i, carried)
            alpha = over(u, total)
            spread = self.weight_variance[i] * (across + along**2 * share)
            noise = xp.sqrt(spread) * rng.standard_normal(tuple(layer.J.shape))
            noise = noise * xp.concatenate([layer.counts >= 1, layer.counts >= 2])
            pull = k + over(w - alpha * layer.p - (layer.J * noise).sum(0), layer.square)
            dy = pull * layer.J + noise
            dy[:2] += alpha * layer.y
            w = w + k * layer.square
            dx, rest = self._pushed_on(layer, dy, spread, rng.chi_square(layer.counts, less=2), w)
            along = (layer.unit * dx[:2]).sum(0)
            carried = layer.carried
            u = carried * along
            across = (layer.turned * dx[:2]).sum(0) ** 2 + (dx[2:] ** 2).sum(0) + rest
        result = result + sum(layer.bend for layer in hidden)
        return result + times_power_of_two(self.weight_multiplier[-1] * squares[-1] * u, self.units[-1])


def _units(net: MLP, exponent: int) -> list[int]:
    """k_0, ..., k_d; all 0 for an input of ordinary size."""
    units = [exponent]
    for layer in net.layers:
        b = layer.bias_variance
        own = (b.numerator.bit_length() - b.denominator.bit_length()) // 2 if b and exponent else units[-1]
        units.append(max(units[-1], own))
    return units

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

import numpy as np

from finwidth.laws import FloatArray
from finwidth.network import MLP


@dataclass
class _Hidden:
    """One hidden layer of all draws; arrays of shape (2, draws) are over the positive and the negative group."""

    slopes: FloatArray  # (2, 1)
    counts: FloatArray
    y: FloatArray  # (rho+, rho-)
    unit: FloatArray  # x / |x|; where x = 0, any direction
    norm: FloatArray  # |x|, shape (draws,)
    live: FloatArray  # 0 where y = 0 and the gates are closed
    J: FloatArray  # (4, draws): on y+, y-, f+, f-
    square: FloatArray  # S = |J|^2
    p: FloatArray  # y . J


class TwoSlopeChain:
    """The chain of the module's docstring for one network; ``draw`` is that of `diagonal.NormChain`."""

    def __init__(self, net: MLP) -> None:
        phi = net.activation
        self.layers = net.layers
        self.slopes = np.array([[float(phi.positive)], [float(phi.negative)]])
        self.at_zero = float(phi.at_zero)
        self.weight_variance = [float(layer.weight_variance) for layer in net.layers]
        self.bias_variance = [float(layer.bias_variance) for layer in net.layers]
        self.weight_multiplier = [float(layer.weight_multiplier) for layer in net.layers]
        self.bias_multiplier = [float(layer.bias_multiplier) for layer in net.layers]

    def draw(self, norm: float, rng: np.random.Generator, draws: int) -> dict[str, FloatArray]:
        """``draws`` draws at an input of squared norm ``norm``: output, K_w, K_b, K, dK."""
        with np.errstate(all="ignore"):  # the caller sees to overflow
            hidden, output = self._forward(norm, rng, draws)
            self._backward(hidden, output, rng)
            squares = [*(layer.square for layer in hidden), np.ones(draws)]
            norms = [np.full(draws, norm), *(np.square(layer.norm) for layer in hidden)]
            K_w, K_b = np.zeros((2, draws))
            for c, e, R, S in zip(self.weight_multiplier, self.bias_multiplier, norms, squares, strict=True):
                K_w += c * R * S
                K_b += e * S
            dK = self._update(hidden, norms, squares, rng)
            dK *= -4 * output
            dK += 0.0  # no negative zeros
        return {"output": output, "K_w": K_w, "K_b": K_b, "K": K_w + K_b, "dK": dK}

    def _forward(self, norm: float, rng: np.random.Generator, draws: int) -> tuple[list[_Hidden], FloatArray]:
        R, hidden = np.full(draws, norm), []
        for i, layer in enumerate(self.layers[:-1]):
            scale = self.weight_variance[i] * R + self.bias_variance[i]
            silent = norm == 0 and not any(self.bias_variance[: i + 1])  # y = 0 in every network
            open_ = np.full(draws, layer.fan_out) if silent else rng.binomial(layer.fan_out, 0.5, draws)
            counts = np.stack([open_, layer.fan_out - open_]).astype(float)
            y = np.sqrt(scale * 2 * rng.standard_gamma(counts / 2))
            slopes = np.full((2, 1), self.at_zero) if silent else self.slopes
            x = slopes * y
            R = np.square(x).sum(0)
            length = np.sqrt(R)
            unit = np.divide(x, length, out=np.zeros_like(x), where=length > 0)
            unit[0, length == 0] = 1.0
            live = np.ones(draws) if silent or not self._can_die else (scale > 0).astype(float)
            hidden.append(_Hidden(slopes, counts, y, unit, length, live, *(np.empty(0),) * 3))
        scale = self.weight_variance[-1] * R + self.bias_variance[-1]
        return hidden, np.sqrt(scale) * rng.standard_normal(draws)

    @property
    def _can_die(self) -> bool:
        return not self.slopes.all()

    def _backward(self, hidden: list[_Hidden], output: FloatArray, rng: np.random.Generator) -> None:
        """Draw J_i, S_i and p_i of every hidden layer, from the output down."""
        S, p, draws = np.ones(len(output)), output, len(output)
        for i in reversed(range(len(hidden))):
            layer = hidden[i]
            total, share = self._constant(i + 1, layer.norm)
            sigma = np.sqrt(self.weight_variance[i + 1] * S)
            along = np.divide(layer.norm * p, total, out=np.zeros(draws), where=total > 0)
            if share.any():
                along += sigma * np.sqrt(share) * rng.standard_normal(draws)
            across = sigma * rng.standard_normal(draws)
            plane = along * layer.unit + across * _turned(layer.unit)
            plane *= layer.counts >= 1
            fresh = sigma * np.sqrt(2 * rng.standard_gamma(np.maximum(layer.counts - 1, 0) / 2))
            layer.J = np.concatenate([layer.slopes * plane, layer.slopes * fresh]) * layer.live
            layer.square = S = np.square(layer.J).sum(0)
            layer.p = p = layer.norm * along

    def _constant(self, i: int, norm: FloatArray) -> tuple[FloatArray, FloatArray]:
        """|x'|^2 of the input x of layer ``i`` with its constant neuron, and that neuron's share of it (1 at x = 0)."""
        beta = self.bias_variance[i] / self.weight_variance[i]
        total = np.square(norm) + beta
        return total, np.divide(beta, total, out=np.ones_like(total), where=total > 0)

    def _update(
        self, hidden: list[_Hidden], norms: list[FloatArray], squares: list[FloatArray], rng: np.random.Generator
    ) -> FloatArray:
        """Sum over layers of c_i S_i (x_{i-1} . dx_{i-1}), for the tangent dx along the gradient."""
        u, w, along, across, result = np.zeros((5, len(squares[-1])))  # across: the squared part of dx across x
        for i, layer in enumerate(hidden):
            v, k = self.weight_variance[i], self.weight_multiplier[i] * norms[i] + self.bias_multiplier[i]
            result += self.weight_multiplier[i] * squares[i] * u
            total, share = self._constant(i, np.sqrt(norms[i]))
            alpha = np.divide(u, total, out=np.zeros_like(u), where=total > 0)
            spread = np.sqrt(v * (across + np.square(along) * share))
            noise = spread * rng.standard_normal(layer.J.shape)
            noise *= np.concatenate([layer.counts >= 1, layer.counts >= 2])
            over_S = np.divide(1, layer.square, out=np.zeros_like(u), where=layer.square > 0)
            pull = k + (w - alpha * layer.p - (layer.J * noise).sum(0)) * over_S
            dx = pull * layer.J + noise
            dx[:2] += alpha * layer.y
            dx *= np.concatenate([layer.slopes, layer.slopes]) * layer.live
            w += k * layer.square
            along = (layer.unit * dx[:2]).sum(0)
            u = layer.norm * along
            rest = 2 * rng.standard_gamma(np.maximum(layer.counts - 2, 0) / 2)
            across = np.square((_turned(layer.unit) * dx[:2]).sum(0)) + np.square(dx[2:]).sum(0)
            across += layer.live * np.square(spread) * (np.square(layer.slopes) * rest).sum(0)
        return result + self.weight_multiplier[-1] * squares[-1] * u


def _turned(unit: FloatArray) -> FloatArray:
    """The direction across ``unit`` in the plane of y+ and y-."""
    return np.stack([-unit[1], unit[0]])

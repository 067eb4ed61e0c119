r"""The recursion over layers of all that the kernel of wide networks is to first order in 1/width.

Neurons i, j of a layer have pre-activations y_ia at inputs a and kernels H_ij;ab; given the layer below, the pairs
(y_i, H_ii) are independent, and y is Gaussian of covariance G.  H alone is the mean of H_ii given the layer below::

    K, Theta = infinite width;  mean_G, mean_H = first corrections of E[G], E[H]
    V_abcd = Cov(G_ab, G_cd),  D_abcd = Cov(H_ab, G_cd),  A_abcd = Cov(H_ab, H_cd)
    F_acbd = E[H_ij;ab y_ic y_jd],  B_acbd = E[H_ij;ab H_ij;cd]     (i != j; first two inputs on i, last two on j)
    P, Q_0123 = E[sum c c' (d^2 y/dtheta dtheta')(x_0) (dy/dtheta)(x_1) (dy/dtheta')(x_2) y(x_3)],
        neurons (i, j, j, i) and (i, i, j, j)

Derivation: docs/theory/expansion.md.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from finwidth.exact.expansion.means import FourMeans, PairMeans, derivative
from finwidth.networks.description import Layer
from finwidth.networks.laws import FloatArray


@dataclass(frozen=True)
class Tensors:
    """A layer, to first order; shapes (m, m) and (m, m, m, m). Tensors and corrections hold their 1/width."""

    K: FloatArray
    Theta: FloatArray
    mean_G: FloatArray
    mean_H: FloatArray
    V: FloatArray
    D: FloatArray
    A: FloatArray
    F: FloatArray
    B: FloatArray
    P: FloatArray
    Q: FloatArray


def first_layer(layer: Layer, X: FloatArray) -> Tensors:
    """Layer 1 at inputs X, shape (m, n_0): Gaussian, of a constant kernel."""
    gram = X @ X.T
    K = float(layer.bias_variance) + float(layer.weight_variance) * gram
    Theta = float(layer.bias_multiplier) + float(layer.weight_multiplier) * gram
    none, nothing = np.zeros_like(gram), np.zeros(gram.shape * 2)
    return Tensors(K, Theta, none, none, *[nothing] * 7)


def advance(below: Tensors, layer: Layer, pairs: PairMeans, fours: FourMeans, *, change: bool) -> Tensors:
    """The layer above, by its weights and the means over the neurons below; P and Q only with ``change``."""
    step = _Step(below, layer, pairs, fours)
    half_F = _differentiated(pairs.ts, below.F)
    F = step.F(half_F)
    P, Q = step.first_move(half_F, F) if change else (below.P, below.Q)
    return Tensors(
        float(layer.bias_variance) + step.C * step.ss,
        float(layer.bias_multiplier) + step.c * step.ss + step.slope * step.tt,
        *step.mean_corrections(),
        *step.covariances(),
        F,
        step.B(),
        P,
        Q,
    )


class _Step:
    """What `advance` computes, tensor by tensor."""

    def __init__(self, below: Tensors, layer: Layer, pairs: PairMeans, fours: FourMeans) -> None:
        self.below, self.n, self.pairs, self.fours = below, layer.fan_in, pairs, fours
        self.C, self.c = float(layer.weight_variance) * self.n, float(layer.weight_multiplier) * self.n
        self.ss, self.tt = derivative(pairs.ss, 0, 0), derivative(pairs.tt, 0, 0)
        self.slope = self.C * below.Theta

    def covariances(self) -> tuple[FloatArray, FloatArray, FloatArray]:
        """V, D and A: the layer below moves both, and the neurons are a sample."""
        from_G = self._H_moves(self.below.V, self.below.D)  # Cov(H', G)
        from_H = self._H_moves(_swapped(self.below.D), self.below.A)  # Cov(H', H)
        V, D, A = self._sampled()
        V = V + self._G_moves(_swapped(self._G_moves(self.below.V)))
        D = D + _swapped(self._G_moves(_swapped(from_G)))
        return V, D, A + self._H_moves(_swapped(from_G), _swapped(from_H))

    def _G_moves(self, moved: FloatArray) -> FloatArray:
        """How G above answers where the first two indices of an array are those of G below."""
        return self.C * _along(self.pairs.ss, moved)

    def _H_moves(self, moved: FloatArray, moved_H: FloatArray) -> FloatArray:
        """How H above answers, by what is moved in G and in H below."""
        through_slopes = _on_pair(self.slope, _along(self.pairs.tt, moved)) + _on_pair(self.C * self.tt, moved_H)
        return self.c * _along(self.pairs.ss, moved) + through_slopes

    def _sampled(self) -> tuple[FloatArray, FloatArray, FloatArray]:
        """Covariances of averages over n independent neurons."""
        C, c, outer = self.C, self.c, np.multiply.outer
        ss = self.fours.ssss - outer(self.ss, self.ss)
        st = (self.fours.sstt - outer(self.ss, self.tt)) * self.slope
        tt = (self.fours.tttt - outer(self.tt, self.tt)) * self.slope
        ts = _swapped(st)
        A = c * (c * ss + st + ts) + _on_pair(self.slope, tt)
        return C * C * ss / self.n, C * (c * ss + ts) / self.n, A / self.n

    def mean_corrections(self) -> tuple[FloatArray, FloatArray]:
        """Of G and of H: what is below moves them, curves them, and is correlated with the weights (F)."""
        below, pairs = self.below, self.pairs
        values = _along(pairs.ss, below.mean_G) + _curved(pairs.ss, below.V)
        slopes = below.Theta * (_along(pairs.tt, below.mean_G) + _curved(pairs.tt, below.V))
        slopes = slopes + self.tt * below.mean_H + self._slopes_with_H() + self._slopes_with_weights()
        return self.C * values, self.c * values + self.C * slopes

    def _slopes_with_H(self) -> FloatArray:
        """Of <t_a t_b> H_ab the part that is linear in both."""
        D, tt = self.below.D, self.pairs.tt
        first, second, both = (np.einsum(f"ab{which}->ab", D) for which in ("aa", "bb", "ab"))
        own: FloatArray = derivative(tt, 2, 0) * first + derivative(tt, 0, 2) * second
        found: FloatArray = own / 2 + derivative(tt, 1, 1) * both
        return found

    def _slopes_with_weights(self) -> FloatArray:
        """The correlation of t_ka t_kb and of what H_kk deviates by from its mean over the weights of neuron k."""
        F, tt = self.below.F, self.pairs.tt
        one, both, across, other = (np.einsum(f"{which}->ab", F) for which in ("aaba", "aabb", "abba", "abbb"))
        own: FloatArray = derivative(tt, 2, 0) * one + derivative(tt, 0, 2) * other
        found: FloatArray = own + derivative(tt, 1, 1) * (both + across)
        return found

    def F(self, half_F: FloatArray) -> FloatArray:
        """F above, by `_differentiated` F."""
        same = self.fours.sstt.transpose(2, 0, 3, 1) * self.below.Theta[:, None, :, None] / self.n
        return self.C**2 * (same + _on_first(self.pairs.ts, half_F))

    def B(self) -> FloatArray:
        """B above."""
        below, tt = self.below, self.tt
        same = self.fours.tttt * np.einsum("ab,cd->acbd", below.Theta, below.Theta) / self.n
        found: FloatArray = self.C**2 * (same + np.multiply.outer(tt, tt) * below.B)
        return found

    def first_move(self, half_F: FloatArray, F: FloatArray) -> tuple[FloatArray, FloatArray]:
        """P and Q above."""
        below, pairs, Theta = self.below, self.pairs, self.below.Theta
        same = self.fours.utts * Theta[:, :, None, None] * Theta[:, None, :, None] / self.n
        curves = derivative(pairs.us, 0, 0)[:, None, None, :] * np.einsum("aabc->abc", below.B)[..., None]
        moved = _differentiated(pairs.ts, below.P.transpose(1, 2, 0, 3)).transpose(2, 0, 1, 3)
        P = same + self.tt[None, :, :, None] * (curves + moved)
        Q = same + _on_pair(Theta, _on_first(pairs.ut, half_F)) + _on_pair(self.tt, _differentiated(pairs.ts, below.Q))
        return self.C**2 * P, self.C**2 * Q + self.c / self.C * F


def _swapped(tensor: FloatArray) -> FloatArray:
    return tensor.transpose(2, 3, 0, 1)


def _on_pair(matrix: FloatArray, tensor: FloatArray) -> FloatArray:
    """The tensor times a matrix over its first two indices."""
    return matrix[..., None, None] * tensor


def _along(f: FloatArray, moved: FloatArray) -> FloatArray:
    """How <f>_G moves with G, whose indices are the first two of ``moved``: d<f>/dG_gh = <d_g d_h f>/2."""
    rest = (1,) * (moved.ndim - 2)
    own = np.einsum("aa...->a...", moved)
    (first, both, second) = (derivative(f, *order).reshape(f.shape[1:] + rest) for order in ((2, 0), (1, 1), (0, 2)))
    found: FloatArray = both * moved + (first * own[:, None] + second * own[None]) / 2
    return found


def _curved(f: FloatArray, V: FloatArray) -> FloatArray:
    """Half the second derivatives of <f>_G by G, with the covariance V of G."""
    own = np.einsum("aaaa->a", V)
    total: FloatArray = derivative(f, 4, 0) * own[:, None] + derivative(f, 0, 4) * own
    for i, j, times, which in ((3, 1, 4, "aaab"), (2, 2, 4, "abab"), (2, 2, 2, "aabb"), (1, 3, 4, "bbab")):
        total += times * derivative(f, i, j) * np.einsum(f"{which}->ab", V)
    return total / 8


def _differentiated(f: FloatArray, tensor: FloatArray) -> FloatArray:
    """sum_h <d_h f_bd> tensor_..bh in the place of tensor_..bd."""
    own = np.einsum("...bb->...b", tensor)
    found: FloatArray = derivative(f, 1, 0) * own[..., None] + derivative(f, 0, 1) * tensor
    return found


def _on_first(f: FloatArray, tensor: FloatArray) -> FloatArray:
    """sum_g <d_g f_ac> tensor_ag.. in the place of tensor_ac.."""
    own = np.einsum("aa...->a...", tensor)
    return _on_pair(derivative(f, 1, 0), own[:, None]) + _on_pair(derivative(f, 0, 1), tensor)

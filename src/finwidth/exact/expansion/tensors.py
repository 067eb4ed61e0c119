r"""What is known of the neurons of a network to first order in 1/width, and the maps that steps are made of.

Neurons i, j of a vector have values y_ia at inputs a and kernels H_ij;ab; G_ab = y_ia y_ib and H_ab = H_ii;ab of one.
Between neuron i of a vector ("here") and a different neuron j of the same or of another vector ("there")::

    V_abcd = Cov(G_ab, G_cd),  D_abcd = Cov(H_ab, G_cd),  E_abcd = Cov(G_ab, H_cd),  A_abcd = Cov(H_ab, H_cd)
    F_acbd = E[H_ij;ab y_ic y_jd],  B_acbd = E[H_ij;ab H_ij;cd]
    R_0123 = sum c c' (d^2 y/dtheta dtheta')(x_0) (dy/dtheta)(x_1) (dy/dtheta')(x_2) y(x_3), whose means are
    P, with 0 and 3 here and 1 and 2 there, in the order 0312; P_back, with 1 and 2 here, 1203
    Q, with 0 and 1 here and 2 and 3 there, 0123; Q_back, with 2 and 3 here, 2301

The first two indices of each are here.  So a step of the network acts on first two indices, the same for all that there
may be.  Derivation: docs/theory/expansion.md.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, fields, replace

import numpy as np

from finwidth.exact.expansion.means import PairMeans, derivative
from finwidth.networks.laws import FloatArray


@dataclass(frozen=True)
class Between:
    """What binds neurons here to different ones there; shapes (m, m, m, m). They hold their 1/width."""

    V: FloatArray
    D: FloatArray
    E: FloatArray
    A: FloatArray
    F: FloatArray
    B: FloatArray
    P: FloatArray
    P_back: FloatArray
    Q: FloatArray
    Q_back: FloatArray

    @classmethod
    def none(cls, m: int) -> Between:
        """Of neurons that are independent."""
        return cls(*np.zeros((len(fields(cls)), *(m,) * 4)))

    @classmethod
    def same(cls, V: FloatArray, D: FloatArray, A: FloatArray, *others: FloatArray) -> Between:
        """Of neurons of one vector; ``others`` are F, B, P and Q."""
        F, B, P, Q = others
        return cls(V, D, swapped(D), A, F, B, P, swapped(P), Q, swapped(Q))

    def swapped(self) -> Between:
        """Seen from there."""
        V, D, E, A, F, B, P, P_back, Q, Q_back = map(swapped, self)
        return Between(V, E, D, A, F, B, P_back, P, Q_back, Q)

    def __iter__(self) -> Iterator[FloatArray]:
        return (getattr(self, field.name) for field in fields(self))

    def __add__(self, other: Between) -> Between:
        return Between(*(one + another for one, another in zip(self, other, strict=True)))

    def __sub__(self, other: Between) -> Between:
        return self + -1.0 * other

    def __rmul__(self, factor: float) -> Between:
        return Between(*(factor * each for each in self))


@dataclass(frozen=True)
class Signals:
    """A vector of the network at all inputs, by its n neurons, to first order; shapes (m, m).

    Attributes
    ----------
    K, Theta
        Infinite width: E[y_a y_b] and E[H_ii;ab].
    mean_G, mean_H
        Their first corrections.
    own
        Between its neurons.
    streams
        Between its neurons and those of each stream that it is in a branch of, the outermost first.
    """

    n: int
    K: FloatArray
    Theta: FloatArray
    mean_G: FloatArray
    mean_H: FloatArray
    own: Between
    streams: tuple[Between, ...]


@dataclass(frozen=True)
class Neurons(Signals):
    """Neurons that are Gaussian at infinite width, in a law that does not know how they are turned.

    ``shared`` is what E[y_ia y_jb] is of K, and E[H_ij;ab] of Theta, of two neurons: -1/n where their mean is 0.
    ``balanced`` are the parts of K and of Theta that come of a stream whose mean over neurons is 0.
    """

    shared: float = 0.0
    balanced: tuple[FloatArray | float, FloatArray | float] = (0.0, 0.0)


@dataclass(frozen=True)
class Averages(Signals):
    """Neurons of any law, by averages over all of them, each with itself included: all that a weight layer reads.

    V is Cov(avg G_ab, avg G_cd), B is E[sum_ij H_ij;ab H_ij;cd]/n^2, and so on.
    """


def averaged(x: Signals) -> Averages:
    """The averages over neurons, to which each contributes with itself as a Gaussian one does."""
    if isinstance(x, Averages):
        return x
    return Averages(x.n, x.K, x.Theta, x.mean_G, x.mean_H, x.own + _with_themselves(x), x.streams)


def apart(x: Averages, shared: float) -> Neurons:
    """The neurons of averages, if they are Gaussian at infinite width and may be turned."""
    return Neurons(x.n, x.K, x.Theta, x.mean_G, x.mean_H, x.own - _with_themselves(x), x.streams, shared)


def _with_themselves(x: Signals) -> Between:
    """What Gaussian neurons contribute to averages beside pairs of different ones."""
    K, Theta = x.K / x.n, x.Theta
    four = np.einsum("ac,bd->abcd", K, x.K) + np.einsum("ad,bc->abcd", K, x.K)
    none = np.zeros_like(four)
    return Between.same(
        four, none, none, np.einsum("ab,cd->acbd", Theta, K), np.einsum("ab,cd->acbd", Theta, Theta / x.n), none, none
    )


# ---- maps of the first two indices


def through_weights(here: Between, C: float, c: float) -> Between:
    """By weights of variance C/n and multiplier c/n, which are all averages of values and of kernels once."""
    return Between(
        C * here.V,
        c * here.V + C * here.D,
        C * here.E,
        c * here.E + C * here.A,
        C * here.F,
        C * here.B,
        C * here.P,
        C * here.P_back,
        C * here.Q + c * here.F,  # one of two parameters is a weight of the layer
        C * here.Q_back,
    )


def through_gates(here: Between, Theta: FloatArray, pairs: PairMeans) -> Between:
    """By an activation, on neurons that have the means ``pairs``: each answer is linear."""
    ss, tt, ts = pairs.ss, pairs.tt, pairs.ts
    opened = derivative(tt, 0, 0)
    us = derivative(pairs.us, 0, 0)
    both_curved = np.einsum("aabc->abc", here.B)[:, None]
    return Between(
        along(ss, here.V),
        on_pair(Theta, along(tt, here.V)) + on_pair(opened, here.D),
        along(ss, here.E),
        on_pair(Theta, along(tt, here.E)) + on_pair(opened, here.A),
        on_first(ts, here.F),
        on_pair(opened, here.B),
        on_pair(us, both_curved) + on_first(ts, here.P),
        on_pair(opened, here.P_back),
        on_pair(Theta, on_first(pairs.ut, here.F)) + on_pair(opened, here.Q),
        on_first(ts, here.Q_back),
    )


def through_norm(here: Between, K: FloatArray, Theta: FloatArray, inverse: FloatArray) -> Between:
    """By a division by the root mean square, whose ``inverse`` square is given, (m,); K, Theta are those above it."""
    f = np.sqrt(np.outer(inverse, inverse))
    V, D, E, A, F, B, P, P_back, Q, Q_back = (on_pair(f, each) for each in here)

    def lengths(of: FloatArray) -> FloatArray:
        """By how much the lengths of both vectors move."""
        own = np.einsum("aa...->a...", of)
        found: FloatArray = (own[:, None] + own[None]) / 2
        return found

    def taken(of: FloatArray) -> FloatArray:
        """The part along the first vector."""
        found: FloatArray = np.einsum("aa...->a...", of)[:, None]
        return found

    return Between(
        V - on_pair(K, lengths(V)),
        D - on_pair(Theta, lengths(V)),
        E - on_pair(K, lengths(E)),
        A - on_pair(Theta, lengths(E)),
        F - on_pair(K, taken(F)),
        B,
        P - on_pair(K, taken(P) + taken(B)),
        P_back,
        Q - on_pair(Theta, taken(F)),
        Q_back - on_pair(K, taken(Q_back)),
    )


def through_scales(here: Between) -> Between:
    """By trained scales: kernels of neurons have their squares too, and one of two parameters may be a scale."""
    return replace(here, D=here.D + here.V, A=here.A + here.E, Q=here.Q + here.F)


# ---- how means over Gaussian neurons answer


def along(f: FloatArray, moved: FloatArray) -> FloatArray:
    """How <f>_G moves with G, whose indices are the first two of ``moved``: d<f>/dG_gh = <d_g d_h f>/2."""
    rest = (1,) * (moved.ndim - 2)
    own = np.einsum("aa...->a...", moved)
    (first, both, second) = (derivative(f, *order).reshape(f.shape[1:] + rest) for order in ((2, 0), (1, 1), (0, 2)))
    found: FloatArray = both * moved + (first * own[:, None] + second * own[None]) / 2
    return found


def curved(f: FloatArray, V: FloatArray) -> FloatArray:
    """Half the second derivatives of <f>_G by G, with the covariance V of G."""
    own = np.einsum("aaaa->a", V)
    total: FloatArray = derivative(f, 4, 0) * own[:, None] + derivative(f, 0, 4) * own
    for i, j, times, which in ((3, 1, 4, "aaab"), (2, 2, 4, "abab"), (2, 2, 2, "aabb"), (1, 3, 4, "bbab")):
        total += times * derivative(f, i, j) * np.einsum(f"{which}->ab", V)
    return total / 8


def on_first(f: FloatArray, tensor: FloatArray) -> FloatArray:
    """sum_g <d_g f_ac> tensor_ag.. in the place of tensor_ac.."""
    own = np.einsum("aa...->a...", tensor)
    return on_pair(derivative(f, 1, 0), own[:, None]) + on_pair(derivative(f, 0, 1), tensor)


def on_pair(matrix: FloatArray, tensor: FloatArray) -> FloatArray:
    """The tensor times a matrix over its first two indices."""
    return matrix[..., None, None] * tensor


def swapped(tensor: FloatArray) -> FloatArray:
    """The last two indices first."""
    return tensor.transpose(2, 3, 0, 1)

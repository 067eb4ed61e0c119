"""What a network does to vectors between its weight layers: fixed maps, forward and backward, and their tangents.

Each map f takes x and gives f(x); of J, the derivatives of the outputs by f(x), it makes those by x; of the tangent T
of x along the SGD step that of f(x); and of the tangent U of J that of the derivatives by x.  Rows of J and U are pairs
(input, output), those of x and T inputs.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import reduce
from operator import iadd, mul
from typing import Protocol

from finwidth.networks.activations import Activation, Array, SmoothActivation, array_namespace
from finwidth.networks.norm import Norm
from finwidth.sampling.kernel_matrix.gaussian_layer import NetworkBatch
from finwidth.sampling.kernel_matrix.rows import KeptRows, Rows, listed
from finwidth.sampling.kernel_matrix.stacks import gated, gated_in_place, product, repeated, square

_SIZES = (1e-100, 1e100)  # of a vector that is normalised: beyond, gradients by it would leave a double


class DrawnStep(Protocol):
    """A step of a network in the networks of a batch, through which the passes go in this order."""

    def forward(self, x: Rows) -> Rows:
        """f(x)."""

    def backward(self, J: Rows, *, keep: bool) -> Rows:
        """The derivatives by x from those by f(x); ``keep`` what the tangents need."""

    def tangent(self, T: Rows | None, r: Array) -> Rows:
        """The tangent of f(x) from that of x (None: 0), with residuals r, (draws, 1, m o)."""

    def cotangent(self, U: Rows | None) -> Rows:
        """The tangent of the derivatives by x from that of those by f(x) (None: 0)."""


class ActivationPass:
    """phi of each neuron."""

    def __init__(self, phi: Activation) -> None:
        self.phi = phi

    def forward(self, x: Rows) -> Rows:
        """phi(x); two slopes do not depend on units, and keep them."""
        self.x = x.in_units(None) if isinstance(self.phi, SmoothActivation) else x
        self.slopes = self.x.map(self.phi.derivative)
        return self.x.map(self.phi.value, power=self.x.power)

    def backward(self, J: Rows, *, keep: bool) -> Rows:
        """phi'(x) J."""
        if keep:
            self.J = J
        return J.map(gated_in_place if J.once else gated, self.slopes)

    def tangent(self, T: Rows | None, r: Array) -> Rows:
        """phi'(x) T."""
        assert T is not None
        self.T = T
        return T.map(mul, self.slopes)

    def cotangent(self, U: Rows | None) -> Rows:
        """phi'(x) U + phi''(x) T J."""
        assert U is not None
        turned = self.backward(U, keep=False)
        if not isinstance(self.phi, SmoothActivation):
            return turned

        def bent(u: Array, curvature: Array, t: Array, j: Array) -> Array:
            u += gated(j, curvature * t)
            return u

        return turned.map(bent, self.x.map(self.phi.second_derivative), self.T, self.J)


class FactorPass:
    """Factors of the neurons, times them; the factors are the same in all passes."""

    def times(self, rows: Rows) -> Rows:
        """The factors, times the rows."""
        raise NotImplementedError

    def forward(self, x: Rows) -> Rows:
        """The factors, times x."""
        return self.times(x)

    def backward(self, J: Rows, *, keep: bool) -> Rows:
        """The factors, times J."""
        return self.times(J)

    def tangent(self, T: Rows | None, r: Array) -> Rows:
        """The factors, times T."""
        assert T is not None
        return self.times(T)

    def cotangent(self, U: Rows | None) -> Rows:
        """The factors, times U."""
        assert U is not None
        return self.times(U)


class SkipPass(FactorPass):
    """One number for all neurons, at once: in a long row of blocks without branches each would ask the next."""

    def __init__(self, factor: float) -> None:
        self.factor = factor

    def times(self, rows: Rows) -> Rows:
        """The number, times the rows."""
        return listed([self.factor * block for block in rows], rows.power)


class SignsPass(FactorPass):
    """A random sign of each neuron."""

    def __init__(self, batch: NetworkBatch) -> None:
        self.batch = batch

    def forward(self, x: Rows) -> Rows:
        """The signs are drawn when x is first gone through, and are the same for all inputs."""
        rng, draws = self.batch.rng, self.batch.draws

        def drawn() -> Iterator[Array]:
            return (1 - 2.0 * (rng.standard_normal((draws, 1, block.shape[-1])) < 0) for block in x)

        self.signs = KeptRows(drawn)
        return self.times(x)

    def times(self, rows: Rows) -> Rows:
        """The signs, times the rows."""
        return rows.map(lambda block, signs: signs * block, self.signs, power=rows.power)


class NormPass:
    r"""u = C x / s, s = sqrt(|C x|^2/n + epsilon), where C takes away the mean over neurons, or nothing; then g u + h.

    With g = 1 and h = 0 at first, which are parameters if they are trained.  With P = u u^T/n::

        backward   (C - P) J / s                       tangent   (C - P) T / s + dg u + dh
        dg = -sum r J u,  dh = -sum r J over pairs     cotangent: the derivative of the backward map of g J
    """

    def __init__(self, norm: Norm, batch: NetworkBatch) -> None:
        self.norm, self.batch, self.trained = norm, batch, norm.parameters == "trained"

    def forward(self, x: Rows) -> Rows:
        """u; raises FloatingPointError if a vector is too small or too large for its gradients to be doubles."""
        x = x.in_units(None)
        self.n = sum(block.shape[-1] for block in x)
        mean = _row_mean(x, self.n) if self.norm.centred else 0.0
        squares = _row_mean(x.map(lambda block: (block - mean) ** 2), self.n) + float(self.norm.epsilon)
        xp = array_namespace(squares)
        size = xp.sqrt(squares)
        there = _row_mean(x.map(lambda block: abs(block - mean)), self.n) > 0
        if not (((size > _SIZES[0]) & (size < _SIZES[1])) | ~there).all():
            raise FloatingPointError("a vector is too small or too large to be normalised")
        factor = (size > 0) / (size + (size == 0))
        self.factor, self.factors = factor, repeated(factor, self.batch.outputs, -2)
        self.u = x.map(lambda block: factor * (block - mean))
        return self.u

    def backward(self, J: Rows, *, keep: bool) -> Rows:
        """(C - P) J / s."""
        J = listed(list(J)) if J.once else J
        self.J = J
        if self.trained:
            self.K_w = reduce(iadd, (square(gated(j, u)) for u, j in zip(self.u, J, strict=True)))
            self.K_b = reduce(iadd, map(square, J)) if self.norm.centred else 0 * self.K_w
        self.J_along, self.J_mean = self._along(self.u, J), self._mean(J)
        made = self._pulled(J, self.J_along, self.J_mean)
        if keep:
            return KeptRows(made.__iter__)
        made.once = True
        del self.J
        return made

    def tangent(self, T: Rows | None, r: Array) -> Rows:
        """(C - P) T / s + dg u + dh."""
        assert T is not None
        T = listed(list(T))  # gone through several times
        along, mean, factor = _row_mean(T.map(lambda t, u: u * t, self.u), self.n), self._mean(T), self.factor
        self.rate = repeated(factor * along, self.batch.outputs, -2)  # -ds^-1 s
        self.du = T.map(lambda t, u: factor * (t - mean - along * u), self.u)
        if not self.trained:
            return self.du
        self.dg = KeptRows(self.u.map(lambda u, j: -(r @ gated(j, u)), self.J).__iter__)
        if not self.norm.centred:
            return self.du.map(lambda du, u, dg: du + dg * u, self.u, self.dg)
        return self.du.map(lambda du, u, dg, j: du + dg * u - r @ j, self.u, self.dg, self.J)

    def cotangent(self, U: Rows | None) -> Rows:
        """(C - P) U / s, and what the tangents of s, u and g make of J."""
        assert U is not None
        V = listed(list(U))
        if self.trained:
            self.half_change = reduce(
                iadd,
                (
                    product(gated(v, u) + gated(j, du), gated(j, u))
                    for v, u, du, j in zip(V, self.u, self.du, self.J, strict=True)
                ),
            )
            if self.norm.centred:
                self.half_change += reduce(iadd, (product(v, j) for v, j in zip(V, self.J, strict=True)))
            V = V.map(lambda v, j, dg: v + dg * j, self.J, self.dg)
        along, mean = self._along(self.u, V) + self._along(self.du, self.J), self._mean(V)
        factors, rate, J_along, J_mean, outputs = self.factors, self.rate, self.J_along, self.J_mean, self.batch.outputs

        def moved(v: Array, j: Array, u: Array, du: Array) -> Array:
            u, du = repeated(u, outputs, -2), repeated(du, outputs, -2)
            moved: Array = factors * (v - mean - along * u - J_along * du - rate * (j - J_mean - J_along * u))
            return moved

        made = V.map(moved, self.J, self.u, self.du)
        made.once = True
        return made

    def _along(self, u: Rows, J: Rows) -> Array:
        """J u / n, a number for each pair, (draws, m o, 1)."""
        return _row_mean(J.map(gated, u), self.n)

    def _mean(self, rows: Rows) -> Array | float:
        """What C takes away."""
        return _row_mean(rows, self.n) if self.norm.centred else 0.0

    def _pulled(self, J: Rows, along: Array, mean: Array | float) -> Rows:
        outputs, factors = self.batch.outputs, self.factors
        return J.map(lambda j, u: factors * (j - mean - along * repeated(u, outputs, -2)), self.u)


def _row_mean(rows: Rows, n: int) -> Array:
    """The mean over neurons, (draws, rows, 1)."""
    return reduce(iadd, (block.sum(-1)[..., None] for block in rows)) / n

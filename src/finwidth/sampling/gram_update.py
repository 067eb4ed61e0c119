r"""Several inputs: the first change of the kernel under one SGD step on the full batch, in law.

The step, per unit learning rate, is dW_i = -c_i J_i^T diag(r) A_{i-1} and db_i = -e_i J_i^T r, with the residuals
r_a = N(x_a) - t_a.  Tangents, in the notation of `gram_passes` and of docs/theory/gram.md::

    forward   dY_i = T_{i-1} W_i^T - (c_i A_{i-1} A_{i-1}^T + e_i) diag(r) J_i,   T_i = phi'(Y_i) * dY_i,   T_0 = 0
    backward  dL_{i-1} = U_i W_i - c_i J_i J_i^T diag(r) A_{i-1},   U_d = 0,
              U_{i-1} = phi''(Y_{i-1}) * dY_{i-1} * L_{i-1} + phi'(Y_{i-1}) * dL_{i-1}
    kernel    dK = sum_i c_i (T_{i-1} A_{i-1}^T + A_{i-1} T_{i-1}^T) * (J_i J_i^T)
                 + sum_i (c_i A_{i-1} A_{i-1}^T + e_i) * (U_i J_i^T + J_i U_i^T)

T_{i-1} W_i^T is drawn given the products of W_i with A' and J_i, and U_i W_i given those and the first.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from finwidth.activations import Activation, Array, SmoothActivation
from finwidth.sampling.gram_passes import Blocks, Factor, Known, diagonal, factor, fresh, overlap, products, turned


@dataclass
class Tangent:
    """The forward tangent of a hidden layer i, and its place beside A' for W_{i+1}."""

    dY: Blocks
    JdY: Array  # J_i dY_i^T, shape (draws, m, m) as all that follow
    TA: Array  # T_i A_i^T
    along: Array  # T_i = along A' + rest
    rest: Factor  # of rest rest^T
    rest_L: Array  # rest L'_i^T = rest W_{i+1}^T J_{i+1}^T


@dataclass
class Cotangent:
    """The backward tangent U_i = dJ_i, before it meets W_i, which has met J_i, A' and T_{i-1}."""

    along: Array  # U_i = along J_i + rest
    rest_root: Array  # of rest rest^T
    rest_Y: Array  # rest Y_i^T = rest W_i A'^T
    rest_W: Array  # rest W_i (T_{i-1} across A')^T


def update(phi: Activation, known: list[Known], residuals: Array, rng: Any) -> Array:
    """The first change of K per unit learning rate, shape (draws, m, m), after both passes.

    ``residuals`` are N - t, shape (draws, m).
    """
    return _Update(phi, known, residuals[:, None, :], rng).run()


@dataclass
class _Update:
    phi: Activation
    known: list[Known]
    r: Array  # residuals, (draws, 1, m): times a matrix, its columns weighted
    rng: Any

    def run(self) -> Array:
        tangents = self._forward()
        half = self._backward(tangents)
        for step, tangent in zip(self.known[1:], tangents, strict=True):
            half = half + float(step.layer.weight_multiplier) * tangent.TA * step.J_gram
        return half + turned(half)

    def _gated(self, Y: Blocks, other: Blocks) -> Blocks:
        """phi'(Y) * other."""
        return [self.phi.derivative(y) * each for y, each in zip(Y, other, strict=True)]

    def _forward(self) -> list[Tangent]:
        """The forward tangent of the hidden layers, first to last."""
        tangents: list[Tangent] = []
        for step, above in pairwise(self.known):
            dY, JdY = self._move(step, tangents[-1] if tangents else None)
            T = self._gated(step.Y, dY)
            TA, TT = products(T, [self.phi.value(y) for y in step.Y]), products(T, T)
            along = TA @ above.A_factor.inverse
            rest = factor(TT - along @ turned(TA), squares=diagonal(TT))
            rest_L = products(T, step.L) - along @ turned(above.JY)
            tangents.append(Tangent(dY, JdY, TA, along, rest, rest_L))
        return tangents

    def _move(self, step: Known, below: Tangent | None) -> tuple[Blocks, Array]:
        """dY_i and J_i dY_i^T: W_i meets T_{i-1}, having met A' and J_i."""
        J = self._gated(step.Y, step.L)
        push = step.share * self.r
        if below is None:
            dY = [-push @ j for j in J]
            return dY, products(J, dY)
        root = step.deviation * below.rest.root
        Z = fresh(self.rng, root, step.Y)
        toward = (below.rest_L - root @ products(Z, J)) @ step.J_factor.inverse - push
        dY = [below.along @ y + toward @ j + root @ z for y, j, z in zip(step.Y, J, Z, strict=True)]
        return dY, products(J, dY)

    def _backward(self, tangents: list[Tangent]) -> Array:
        """sum_i (c_i A_{i-1} A_{i-1}^T + e_i) * (U_i J_i^T)."""
        zero = 0 * self.known[-1].JY
        total, above = zero, Cotangent(zero, zero[..., :0], zero, zero)  # U_d = 0
        for i in reversed(range(1, len(self.known))):
            below, tangent = self.known[i - 1], tangents[i - 1]
            U = self._pull_back(below, self.known[i], tangent, above)
            UJ = products(U, self._gated(below.Y, below.L))
            total = total + below.share * UJ
            if i > 1:
                above = _meet(U, UJ, below, tangent, tangents[i - 2])
        return total

    def _pull_back(self, below: Known, step: Known, tangent: Tangent, above: Cotangent) -> Blocks:
        """U_{i-1}: W_i meets U_i, having met J_i, A' and T_{i-1}."""
        root = step.deviation * above.rest_root
        A, T, Z = [self.phi.value(y) for y in below.Y], self._gated(below.Y, tangent.dY), fresh(self.rng, root, below.Y)
        ZA = overlap(self.rng, Z, A, step.constant)
        Z_rest = products(Z, T) - ZA @ turned(tangent.along)
        on_A = (above.rest_Y - root @ ZA) @ step.A_factor.inverse
        on_rest = (above.rest_W - root @ Z_rest) @ tangent.rest.inverse
        on_A = on_A - on_rest @ tangent.along - float(step.layer.weight_multiplier) * step.J_gram * self.r
        U = []
        for y, L, dY, a, t, z in zip(below.Y, below.L, tangent.dY, A, T, Z, strict=True):
            U.append(self.phi.derivative(y) * (above.along @ L + on_A @ a + on_rest @ t + root @ z))
            if isinstance(self.phi, SmoothActivation):
                U[-1] += self.phi.second_derivative(y) * dY * L
        return U


def _meet(U: Blocks, UJ: Array, step: Known, tangent: Tangent, below: Tangent) -> Cotangent:
    """Split U_i along J_i and across it."""
    along, UU = UJ @ step.J_factor.inverse, products(U, U)
    root = factor(UU - along @ turned(UJ), squares=diagonal(UU)).root
    rest_Y = products(U, step.Y) - along @ step.JY
    # Y_i and dY_i + push J_i are what W_i made of A' and T; the rest is orthogonal to J_i.
    rest_dY = products(U, tangent.dY) - along @ tangent.JdY
    return Cotangent(along, root, rest_Y, rest_dY - rest_Y @ turned(below.along))

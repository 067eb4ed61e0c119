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

import numpy as np

from finwidth.activations import Activation, SmoothActivation
from finwidth.laws import FloatArray
from finwidth.sampling.gram_passes import Blocks, Known, factor, fresh, overlap, products, turned


@dataclass
class Tangent:
    """The forward tangent of a hidden layer i, and its place beside A' for W_{i+1}."""

    dY: Blocks
    JdY: FloatArray  # J_i dY_i^T, shape (draws, m, m) as all that follow
    TA: FloatArray  # T_i A_i^T
    along: FloatArray  # T_i = along A' + rest
    rest_root: FloatArray  # of rest rest^T
    rest_inverse: FloatArray
    rest_L: FloatArray  # rest L'_i^T = rest W_{i+1}^T J_{i+1}^T


def update(phi: Activation, known: list[Known], residuals: FloatArray, rng: np.random.Generator) -> FloatArray:
    """DK per unit learning rate, shape (draws, m, m), after both passes; residuals N - t of shape (draws, m)."""
    r = residuals[:, None, :]
    tangents = _forward(phi, known, r, rng)
    half = _backward(phi, known, tangents, r, rng)
    for step, tangent in zip(known[1:], tangents, strict=True):
        half += float(step.layer.weight_multiplier) * tangent.TA * step.J_gram
    return half + turned(half)


def _gated(phi: Activation, Y: Blocks, other: Blocks) -> Blocks:
    """phi'(Y) * other."""
    return [phi.derivative(y) * each for y, each in zip(Y, other, strict=True)]


def _forward(phi: Activation, known: list[Known], r: FloatArray, rng: np.random.Generator) -> list[Tangent]:
    """The forward tangent of the hidden layers, first to last."""
    tangents: list[Tangent] = []
    for step, above in zip(known[:-1], known[1:], strict=True):
        dY, JdY = _move(phi, step, tangents[-1] if tangents else None, r, rng)
        T = _gated(phi, step.Y, dY)
        TA, TT = products(T, [phi.value(y) for y in step.Y]), products(T, T)
        along = TA @ above.gram_inverse
        root, inverse = factor(TT - along @ turned(TA), squares=np.diagonal(TT, axis1=1, axis2=2))
        rest_L = products(T, step.L) - along @ turned(above.JY)
        tangents.append(Tangent(dY, JdY, TA, along, root, inverse, rest_L))
    return tangents


def _move(
    phi: Activation, step: Known, below: Tangent | None, r: FloatArray, rng: np.random.Generator
) -> tuple[Blocks, FloatArray]:
    """dY_i and J_i dY_i^T: W_i meets T_{i-1}, having met A' and J_i."""
    J = _gated(phi, step.Y, step.L)
    push = step.share * r
    if below is None:
        dY = [-push @ j for j in J]
        return dY, products(J, dY)
    root = step.deviation * below.rest_root
    Z = fresh(rng, root, step.Y)
    toward = (below.rest_L - root @ products(Z, J)) @ step.J_factor[1] - push
    dY = [below.along @ y + toward @ j + root @ z for y, j, z in zip(step.Y, J, Z, strict=True)]
    return dY, products(J, dY)


@dataclass
class Cotangent:
    """The backward tangent U_i = dJ_i, before it meets W_i, which has met J_i, A' and T_{i-1}."""

    along: FloatArray  # U_i = along J_i + rest
    rest_root: FloatArray  # of rest rest^T
    rest_Y: FloatArray  # rest Y_i^T = rest W_i A'^T
    rest_W: FloatArray  # rest W_i (T_{i-1} across A')^T


def _backward(
    phi: Activation, known: list[Known], tangents: list[Tangent], r: FloatArray, rng: np.random.Generator
) -> FloatArray:
    """sum_i (c_i A_{i-1} A_{i-1}^T + e_i) * (U_i J_i^T)."""
    zero = np.zeros_like(known[-1].JY)
    total, above = zero.copy(), Cotangent(zero, zero[..., :0], zero, zero)  # U_d = 0
    for i in reversed(range(1, len(known))):
        below, tangent = known[i - 1], tangents[i - 1]
        U = _pull_back(phi, below, known[i], tangent, above, r, rng)
        if isinstance(phi, SmoothActivation):
            for u, y, dy, L in zip(U, below.Y, tangent.dY, below.L, strict=True):
                u += phi.second_derivative(y) * dy * L
        UJ = products(U, _gated(phi, below.Y, below.L))
        total += below.share * UJ
        if i > 1:
            above = _meet(U, UJ, below, tangent, tangents[i - 2])
    return total


def _pull_back(
    phi: Activation,
    below: Known,
    step: Known,
    tangent: Tangent,
    above: Cotangent,
    r: FloatArray,
    rng: np.random.Generator,
) -> Blocks:
    """phi'(Y_{i-1}) * dL_{i-1}."""
    root = step.deviation * above.rest_root
    A, T, Z = [phi.value(y) for y in below.Y], _gated(phi, below.Y, tangent.dY), fresh(rng, root, below.Y)
    ZA = overlap(rng, Z, A, step.constant)
    Z_rest = products(Z, T) - ZA @ turned(tangent.along)
    on_A = (above.rest_Y - root @ ZA) @ step.gram_inverse
    on_rest = (above.rest_W - root @ Z_rest) @ tangent.rest_inverse
    on_A -= on_rest @ tangent.along + float(step.layer.weight_multiplier) * step.J_gram * r
    return [
        phi.derivative(y) * (above.along @ L + on_A @ a + on_rest @ t + root @ z)
        for y, L, a, t, z in zip(below.Y, below.L, A, T, Z, strict=True)
    ]


def _meet(U: Blocks, UJ: FloatArray, step: Known, tangent: Tangent, below: Tangent) -> Cotangent:
    """Split U_i along J_i and across it."""
    along, UU = UJ @ step.J_factor[1], products(U, U)
    root, _ = factor(UU - along @ turned(UJ), squares=np.diagonal(UU, axis1=1, axis2=2))
    rest_Y = products(U, step.Y) - along @ step.JY
    # Y_i and dY_i + push J_i are what W_i made of A' and T; the rest is orthogonal to J_i.
    rest_dY = products(U, tangent.dY) - along @ tangent.JdY
    return Cotangent(along, root, rest_Y, rest_dY - rest_Y @ turned(below.along))

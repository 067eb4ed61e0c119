r"""Several inputs: the first change of the kernel under one SGD step on the full batch, in law.

The step, per unit learning rate, is dW_i = -c_i J_i^T diag(r) A_{i-1} and db_i = -e_i J_i^T r, with the residuals
r_a = N(x_a) - t_a.  Tangents, in the notation of `passes` and of docs/theory/gram.md::

    forward   dY_i = T_{i-1} W_i^T - (c_i A_{i-1} A_{i-1}^T + e_i) diag(r) J_i,   T_i = phi'(Y_i) * dY_i,   T_0 = 0
    backward  dL_{i-1} = U_i W_i - c_i J_i J_i^T diag(r) A_{i-1},   U_d = 0,
              U_{i-1} = phi''(Y_{i-1}) * dY_{i-1} * L_{i-1} + phi'(Y_{i-1}) * dL_{i-1}
    kernel    dK = sum_i c_i (T_{i-1} A_{i-1}^T + A_{i-1} T_{i-1}^T) * (J_i J_i^T)
                 + sum_i (c_i A_{i-1} A_{i-1}^T + e_i) * (U_i J_i^T + J_i U_i^T)

T_{i-1} W_i^T is drawn given the products of W_i with A' and J_i, and U_i W_i given those and the first.  Rows of T and
U whose squares would leave a double are kept in units of their own, as those of A are.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

from finwidth.networks.activations import Activation, Array, SmoothActivation
from finwidth.sampling.kernel_matrix.passes import (
    Blocks,
    Factor,
    Generator,
    Known,
    diagonal,
    factorise,
    fresh,
    ordinary,
    overlap,
    product,
    products,
    row_powers,
    scaled,
    transposed,
)


@dataclass
class Tangent:
    """The forward tangent T_i of hidden layer i, split into a part along A' and a rest; in units from TA on."""

    TW: Blocks  # T_{i-1} W_i^T; dY_i = TW - push J_i, kept apart, as the push may be so large that it hides the rest
    push: Array  # shape (draws, m, m) as all that follow but the unit
    JTW: Array  # J_i (T_{i-1} W_i^T)^T
    power: Array | None  # of the units of the rows of T_i, (draws, m, 1); None: 0
    TA: Array  # T_i A_i^T, A_i in its own units
    along: Array  # T_i = along A' + rest
    rest: Factor  # of rest rest^T
    rest_L: Array  # rest L'_i^T = rest W_{i+1}^T J_{i+1}^T


@dataclass
class Cotangent:
    """The backward tangent U_i = dJ_i, in units, to be multiplied by W_i given J_i, A' and T_{i-1}."""

    power: Array | None
    along: Array  # U_i = along J_i + rest
    rest_root: Array  # of rest rest^T
    rest_Y: Array  # rest Y_i^T = rest W_i A'^T
    rest_W: Array  # rest W_i (T_{i-1} across A')^T


def _rescaled(rows: Blocks, rng: Generator) -> tuple[Array | None, Blocks, Array]:
    """Units (as powers of two) in which no square overflows or underflows, the rows in them, and their Gram matrix."""
    gram = products(rows, rows)
    power = None if ordinary(gram) else row_powers(rows, rng)
    if power is None:
        return None, rows, gram
    rows = [scaled(block, power, -1) for block in rows]
    return power, rows, products(rows, rows)


def _columns_scaled(matrix: Array, power: Array | None, sign: int = 1) -> Array:
    """A matrix with its columns in the units of rows, or (-1) out of them."""
    return matrix if power is None else scaled(matrix, transposed(power), sign)


class KernelChange:
    """The change of the kernel of drawn networks, after both passes: `backward` of what `forward` gives.

    ``residuals`` are N - t, shape (draws, m).
    """

    def __init__(self, phi: Activation, known: list[Known], residuals: Array, rng: Generator) -> None:
        self.phi, self.known, self.rng = phi, known, rng
        self.power = row_powers([residuals[:, None, :]], rng)  # dK is linear in them
        self.r = scaled(residuals[:, None, :], self.power, -1)  # (draws, 1, m): times a matrix, its columns weighted

    def forward(self) -> list[Tangent]:
        """The forward tangent of the hidden layers, first to last."""
        tangents: list[Tangent] = []
        for step, above in pairwise(self.known):
            TW, JTW = self._meet_right(step, tangents[-1] if tangents else None)
            push = step.share * self.r
            power, T, TT = _rescaled(step.gated(self.phi, self.moves(step, TW, push)), self.rng)
            TA = products(T, step.values(self.phi))
            along = TA @ above.A_factor.inverse
            rest = factorise(TT - along @ transposed(TA), squares=diagonal(TT))
            rest_L = products(T, step.L) - along @ transposed(above.JY)
            tangents.append(Tangent(TW, push, JTW, power, TA, along, rest, rest_L))
        return tangents

    def backward(self, tangents: list[Tangent]) -> Array:
        """The first change of K per unit learning rate, shape (draws, m, m), by the backward tangent."""
        zero = 0 * self.known[-1].JY
        half, above = zero, Cotangent(None, zero, zero[..., :0], zero, zero)  # U_d = 0
        for i in reversed(range(1, len(self.known))):
            below, tangent = self.known[i - 1], tangents[i - 1]
            U = self._pull_back(below, self.known[i], tangent, above)
            UJ = products(U, below.gated(self.phi, below.L))
            half = half + below.share * UJ
            if i > 1:
                above = _meet(U, UJ, below, tangent, tangents[i - 2], self.rng)
        for step, tangent in zip(self.known[1:], tangents, strict=True):
            TA = _columns_scaled(scaled(tangent.TA, tangent.power), step.power)
            half = half + float(step.layer.weight_multiplier) * TA * step.J_gram
        return scaled(half + transposed(half), self.power)

    def moves(self, step: Known, TW: Blocks, push: Array) -> Blocks:
        """dY_i."""
        phi, blocks = self.phi, zip(TW, step.Y, step.L, strict=True)
        return [w - push @ (phi.derivative(step.argument(phi, y)) * L) for w, y, L in blocks]

    def _meet_right(self, step: Known, below: Tangent | None) -> tuple[Blocks, Array]:
        """T_{i-1} W_i^T and J_i times it: W_i meets T_{i-1}, having met A' and J_i."""
        if below is None:
            return [0 * y for y in step.Y], 0 * step.JY
        J = step.gated(self.phi, step.L)
        root = step.deviation * below.rest.root
        Z = fresh(self.rng, root, step.Y)
        toward = (below.rest_L - root @ products(Z, J)) @ step.J_factor.inverse
        along, toward, root = (scaled(each, below.power) for each in (below.along, toward, root))
        TW = [along @ y + toward @ j + root @ z for y, j, z in zip(step.Y, J, Z, strict=True)]
        return TW, products(J, TW)

    def _pull_back(self, below: Known, step: Known, tangent: Tangent, above: Cotangent) -> Blocks:
        """U_{i-1}: W_i meets U_i, having met J_i, A' and T_{i-1}."""
        root = step.deviation * above.rest_root
        A, Z = below.values(self.phi), fresh(self.rng, root, below.Y)
        moves = self.moves(below, tangent.TW, tangent.push)

        def T(place: int) -> Array:  # made when it is used: one array less
            gate = self.phi.derivative(below.argument(self.phi, below.Y[place]))
            return scaled(gate * moves[place], tangent.power, -1)

        ZA = overlap(self.rng, Z, A, step.constant)
        Z_rest = sum(product(z, T(place)) for place, z in enumerate(Z)) - ZA @ transposed(tangent.along)
        on_A = (above.rest_Y - root @ ZA) @ step.A_factor.inverse
        on_rest = (above.rest_W - root @ Z_rest) @ tangent.rest.inverse
        pull = _columns_scaled(float(step.layer.weight_multiplier) * step.J_gram * self.r, step.power)
        on_A = scaled(on_A - on_rest @ tangent.along, above.power) - pull
        along, on_rest, root = (scaled(each, above.power) for each in (above.along, on_rest, root))
        U = []
        for place, (Y, L, a, z) in enumerate(zip(below.Y, below.L, A, Z, strict=True)):
            dL = along @ L
            dL += on_A @ a
            dL += on_rest @ T(place)
            dL += root @ z
            y = below.argument(self.phi, Y)
            dL *= self.phi.derivative(y)
            if isinstance(self.phi, SmoothActivation):
                dL += self.phi.second_derivative(y) * moves[place] * L
            U.append(dL)
        return U


def _meet(  # noqa: PLR0917
    U: Blocks, UJ: Array, step: Known, tangent: Tangent, below: Tangent, rng: Generator
) -> Cotangent:
    """Split U_i along J_i and across it."""
    power, U, UU = _rescaled(U, rng)
    UJ = scaled(UJ, power, -1)
    along = UJ @ step.J_factor.inverse
    root = factorise(UU - along @ transposed(UJ), squares=diagonal(UU)).root
    rest_Y = products(U, step.Y) - along @ step.JY
    rest_TW = _columns_scaled(products(U, tangent.TW) - along @ tangent.JTW, below.power, -1)
    return Cotangent(power, along, root, rest_Y, rest_TW - rest_Y @ transposed(below.along))

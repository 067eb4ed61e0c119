r"""A weight layer of networks whose weights are never drawn: its products with all that meets it, in law.

A'_{i-1} is what enters, with one more neuron of constant value sqrt(b_i/v_i), whose weights W' are the biases, of
variance b_i; J_i has the derivatives of the outputs by Y_i.  Four products, each given those before it
(docs/theory/gram.md)::

    forward   Y_i = A' W'^T: columns independent N(0, v_i A' A'^T)
    backward  L_{i-1} = J_i W_i = (J_i Y_i^T) (A' A'^T)^- A' + (sqrt(v_i) Z)(1 - P_A'),  columns of Z N(0, J_i J_i^T)
    tangent   dY_i = T_{i-1} W_i^T - (c_i A_{i-1} A_{i-1}^T + e_i) diag(r) J_i,  T = dA, given those
    cotangent dL_{i-1} = U_i W_i - c_i J_i J_i^T diag(r) A_{i-1},  U = dJ, given all three

The last two are along the SGD step dW_i = -c_i J_i^T diag(r) A_{i-1}, db_i = -e_i J_i^T r per unit learning rate,
with the residuals r.  With several outputs r and J have a row for each pair (input, output), the row of A is repeated
for the outputs, and a sum over pairs that multiplies A is one over the outputs first.  Rows of A and Y, of T and of U
whose squares would leave a double are kept in units, powers of two of their own: A = 2^p A', Y = 2^p Y'.

What comes between layers is in `maps`.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial, reduce
from operator import iadd

from finwidth.networks.activations import Array
from finwidth.networks.description import Layer
from finwidth.sampling.kernel_matrix.rows import KeptRows, Powers, Rows, in_safe_units, listed
from finwidth.sampling.kernel_matrix.stacks import (
    DEVICE_BLOCK,
    Blocks,
    Factor,
    Generator,
    diagonal,
    factorise,
    for_pairs,
    fresh,
    ordinary,
    overlap,
    product,
    products,
    repeated,
    row_powers,
    scaled,
    square,
    transposed,
)
from finwidth.sampling.random.device import DeviceGenerator
from finwidth.sampling.random.normals import BLOCK


@dataclass(frozen=True)
class NetworkBatch:
    """Networks that are drawn together, at some inputs."""

    draws: int
    inputs: int
    outputs: int
    rng: Generator

    def sizes(self, width: int) -> list[int]:
        """The blocks into which vectors of this width are cut."""
        block = DEVICE_BLOCK if isinstance(self.rng, DeviceGenerator) else BLOCK
        step = max(1, block // (self.inputs * self.outputs))
        return [min(step, width - start) for start in range(0, width, step)]


@dataclass
class _Tangent:
    """T_{i-1}, split into a part along A' and a rest; ``along`` and ``rest`` in units of its rows."""

    T: Rows
    TA: Array  # T A^T, A in its own units, (draws, m, m)
    along: Array  # T = along A' + rest, (draws, m, m)
    rest: Factor  # of rest rest^T, (draws, m, m)
    rest_L: Array  # rest L'^T = rest W^T J^T, (draws, m, m o)


@dataclass
class _Cotangent:
    """U_i in units, split into a part along J_i and a rest."""

    power: Powers
    along: Array  # U = along J + rest, (draws, m o, m o)
    root: Array  # of rest rest^T, (draws, m o, m o)
    rest_Y: Array  # rest Y^T = rest W A'^T, (draws, m o, m)
    rest_W: Array  # rest W (T across A')^T, (draws, m o, m)


class GaussianLayer:
    """A weight layer in the networks of a batch.

    Attributes, once each is known: A, what enters, Y and J as `Rows`; ``gram`` = A A^T without the constant, (draws or
    1, m, m); J_gram = J J^T, (draws, m o, m o); JY = J Y^T, (draws, m o, m); L, kept for the change only; UJ = U J^T.
    """

    A: Rows
    Y: Rows
    J: Rows
    L: Rows
    gram: Array
    A_factor: Factor  # of A' A'^T
    J_gram: Array
    J_factor: Factor  # of J J^T; of the first layer not made
    JY: Array
    push: Array  # (c A A^T + e) diag(r), (draws, m, m o)
    JTW: Array  # J (T W^T)^T, (draws, m o, m)
    moves: Rows  # dY, as they are kept or made anew
    tangent_in: _Tangent | None = None
    UJ: Array | None = None

    def __init__(self, layer: Layer, batch: NetworkBatch, *, first: bool, last: bool) -> None:
        self.layer, self.batch, self.first, self.last = layer, batch, first, last
        self.sizes = [layer.fan_out] if last else batch.sizes(layer.fan_out)
        self.sizes_in = batch.sizes(layer.fan_in)
        self.TW: Blocks = []  # T W^T; dY = TW - push J, kept apart, as the push may be so large that it hides the rest

    @property
    def deviation(self) -> float:
        """sqrt(v_i), of a weight."""
        return math.sqrt(self.layer.weight_variance)

    @property
    def constant(self) -> float:
        """sqrt(b_i/v_i), the value of the constant neuron."""
        return math.sqrt(self.layer.bias_variance / self.layer.weight_variance)

    @property
    def constant_in_units(self) -> float | Array:
        """The same in the units of the rows of A, if there are any, (draws or 1, 1, m)."""
        value = self.constant
        return value if self.A.power is None or not value else transposed(_in_row_units(value, self.A.power))

    # ---- the kernel

    def weight_share(self, pairs: Array | float = 1.0) -> Array:
        """c_i A_{i-1} A_{i-1}^T times a matrix of pairs, entrywise."""
        outputs = 1 if isinstance(pairs, float) else self.batch.outputs
        product = float(self.layer.weight_multiplier) * for_pairs(self.gram, outputs) * pairs
        if self.A.power is None:
            return product
        power = repeated(self.A.power, outputs, -2)
        return scaled(scaled(product, power), transposed(power))

    @property
    def share(self) -> Array:
        """c_i A_{i-1} A_{i-1}^T + e_i, of inputs: times J_i J_i^T, entrywise, the layer's part of K."""
        return self.weight_share() + float(self.layer.bias_multiplier)

    @property
    def K_w(self) -> Array:
        """Its part of K_w."""
        return self.weight_share(self.J_gram)

    @property
    def K_b(self) -> Array:
        """Its part of K_b."""
        return float(self.layer.bias_multiplier) * self.J_gram

    # ---- forward

    def forward(self, A: Rows) -> Rows:
        """Y_i, drawn when it is first gone through."""
        if A.gram is None:
            A.gram = reduce(iadd, map(square, A))  # no block is held while the next is made
        self.A, self.gram = in_safe_units(A, A.gram, self.batch.rng, self.constant)
        if self.A.power is None or not self.constant:
            with_constant = self.gram + float(self.layer.bias_variance / self.layer.weight_variance)
        else:
            column = _in_row_units(self.constant, self.A.power)
            with_constant = self.gram + column * transposed(column)
        self.A_factor = factorise(with_constant)
        root, draws, rng, sizes = self.deviation * self.A_factor.root, self.batch.draws, self.batch.rng, self.sizes

        def drawn() -> Iterator[Array]:
            return (root @ rng.standard_normal((draws, root.shape[-1], size)) for size in sizes)

        self.Y = KeptRows(drawn, self.A.power)
        return self.Y

    # ---- backward

    def backward(self, J: Rows, *, keep: bool) -> Rows:
        """L_{i-1} = J_i W_i; ``keep`` J and L for the change."""
        self.J_gram, self.JY = 0.0, 0.0
        for j, y in zip(J, self.Y, strict=True):
            self.J_gram = self.J_gram + square(j)
            self.JY = self.JY + product(j, y)
        if keep:
            self.J = J
        if self.first:
            return listed([])
        self.J_factor = factorise(self.J_gram)
        pulled = partial(self._pulled, *self._meet_gradient())
        if not keep:
            return Rows(pulled, once=True)
        self.L = KeptRows(pulled)
        return self.L

    def _meet_gradient(self) -> tuple[Array, Array, Blocks, Blocks]:
        """W_i meets J_i, having met A': J_i W_i = root Z + along A'."""
        rng, root = self.batch.rng, self.deviation * self.J_factor.root
        Z = fresh(rng, root, self.sizes_in, self.batch.draws)
        A = list(self.A)
        return root, (self.JY - root @ overlap(rng, Z, A, self.constant_in_units)) @ self.A_factor.inverse, Z, A

    @staticmethod
    def _pulled(root: Array, along: Array, Z: Blocks, A: Blocks) -> Iterator[Array]:
        """J_i W_i, of blocks that are let go one after the other."""
        while Z:
            L = root @ Z.pop(0)  # not kept: what is freed is still in the cache, and used again
            L += along @ A.pop(0)
            yield L

    # ---- tangents

    def tangent(self, T: Rows | None, r: Array) -> Rows:
        """dY_i, for the tangent T of what enters (None: 0) and residuals r, (draws, 1, m o); not for the last layer."""
        self.r = r
        self.push = repeated(self.share, self.batch.outputs, -1) * r
        self.tangent_in = None if T is None else self._split_tangent(T, list(T))
        if not self.last:
            self._meet_tangent()
        push = self.push
        self._moves_anew = self.J.map(lambda j, w: w - push @ j, self.TW)
        self.moves = Rows(self._moves_anew.__iter__)
        return self.moves

    def _split_tangent(self, T: Rows, blocks: Blocks) -> _Tangent:
        power, rows, TT = _with_units(blocks, self.batch.rng)
        TA = products(rows, self.A)
        along = TA @ self.A_factor.inverse
        rest = factorise(TT - along @ transposed(TA), squares=diagonal(TT))
        rest_L = products(rows, self.L) - along @ transposed(self.JY)
        return _Tangent(T.in_units(power), TA, along, rest, rest_L)

    def _meet_tangent(self) -> None:
        """T_{i-1} W_i^T and J_i times it: W_i meets T_{i-1}, having met A' and J_i."""
        met = self.tangent_in
        if met is None:
            self.TW, self.JTW = [0 * y for y in self.Y], 0 * self.JY
            return
        J = list(self.J)
        root = self.deviation * met.rest.root
        Z = fresh(self.batch.rng, root, self.sizes, self.batch.draws)
        toward = (met.rest_L - root @ products(Z, J)) @ self.J_factor.inverse
        along, toward, root = (scaled(each, met.T.power) for each in (met.along, toward, root))
        self.TW = [along @ y + toward @ j + root @ z for y, j, z in zip(self.Y, J, Z, strict=True)]
        self.JTW = products(J, self.TW)

    def keep_moves(self) -> None:
        """Keep dY from its next use on."""
        self.moves.make = KeptRows(self._moves_anew.__iter__).__iter__

    def forget_moves(self) -> None:
        """Make dY anew again for each use."""
        self.moves.make = self._moves_anew.__iter__

    # ---- cotangents

    def cotangent(self, U: Rows | None) -> Rows:
        """dL_{i-1}, for the tangent U of J_i (None: 0); made when it is needed."""
        if U is None:
            pull = -self._pull
            pushed = self.A.map(lambda a: pull @ a)  # J does not move
            pushed.once = True
            return pushed
        rows = list(U)
        self.forget_moves()
        self.UJ = products(rows, self.J)
        return Rows(self._pull_cotangent(self._split_cotangent(rows)).__iter__, once=True)

    def _split_cotangent(self, U: Blocks) -> _Cotangent | None:
        met = self.tangent_in
        if met is None:
            return None  # nothing is below
        power, U, UU = _with_units(U, self.batch.rng)
        UJ = scaled(self.UJ, power, -1)
        along = UJ @ self.J_factor.inverse
        root = factorise(UU - along @ transposed(UJ), squares=diagonal(UU)).root
        rest_Y = products(U, self.Y) - along @ self.JY
        rest_TW = _columns_scaled(products(U, self.TW) - along @ self.JTW, met.T.power, -1)
        return _Cotangent(power, along, root, rest_Y, rest_TW - rest_Y @ transposed(met.along))

    @property
    def _pull(self) -> Array:
        """c_i J_i J_i^T diag(r), in the units of A; the outputs of an input push its A together."""
        pull = float(self.layer.weight_multiplier) * self.J_gram * self.r
        return _columns_scaled(pull.reshape(*pull.shape[:2], -1, self.batch.outputs).sum(-1), self.A.power)

    def _pull_cotangent(self, met: _Cotangent | None) -> Iterator[Array]:
        """dL_{i-1}: W_i meets U_i, having met J_i, A' and T_{i-1}."""
        tangent = self.tangent_in
        if met is None or tangent is None:
            return
        rng, T, root = self.batch.rng, tangent.T, self.deviation * met.root
        A, Z = list(self.A), fresh(rng, root, self.sizes_in, self.batch.draws)
        ZA = overlap(rng, Z, A, self.constant_in_units)
        Z_rest = reduce(iadd, (product(z, t) for z, t in zip(Z, T, strict=True))) - ZA @ transposed(tangent.along)
        on_A = (met.rest_Y - root @ ZA) @ self.A_factor.inverse
        on_rest = (met.rest_W - root @ Z_rest) @ tangent.rest.inverse
        on_A = scaled(on_A - on_rest @ tangent.along, met.power) - self._pull
        along, on_rest, root = (scaled(each, met.power) for each in (met.along, on_rest, root))
        for L, a, t, z in zip(self.L, A, T, Z, strict=True):
            dL = along @ L
            dL += on_A @ a
            dL += on_rest @ t
            dL += root @ z
            yield dL

    # ---- the change of the kernel, half of it: H of dK = H + H^T

    def change_by_gradient(self) -> Array:
        """(c_i A A^T + e_i) * (U J^T)."""
        return for_pairs(self.share, self.batch.outputs) * self.UJ

    def change_by_activation(self) -> Array:
        """c_i (T A^T) * (J J^T)."""
        assert self.tangent_in is not None
        TA = _columns_scaled(scaled(self.tangent_in.TA, self.tangent_in.T.power), self.A.power)
        return float(self.layer.weight_multiplier) * for_pairs(TA, self.batch.outputs) * self.J_gram


def _in_row_units(value: float, power: Array) -> Array:
    """A number in each row's units."""
    return scaled(0.0 * power + value, power, -1)


def _columns_scaled(matrix: Array, power: Powers, sign: int = 1) -> Array:
    """A matrix with its columns in the units of rows, or (-1) out of them."""
    return matrix if power is None else scaled(matrix, transposed(power), sign)


def _with_units(rows: Blocks, rng: Generator) -> tuple[Powers, Blocks, Array]:
    """Units (as powers of two) in which no square overflows or underflows, the rows in them, and their Gram matrix."""
    gram = products(rows, rows)
    power = None if ordinary(gram) else row_powers(rows, rng)
    if power is None:
        return None, rows, gram
    rows = [scaled(block, power, -1) for block in rows]
    return power, rows, products(rows, rows)

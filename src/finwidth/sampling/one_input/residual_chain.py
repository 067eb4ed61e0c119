r"""One input of a residual network: the joint law of (N, K_w, K_b, K, Delta K) by O(L) scalars a draw.

For Gaussian weights and an activation of two slopes (docs/theory/residual-chain.md).  First without random biases: in
a block x' = a x + b h, h = W z, z = phi(y), y = V x; G' = dN/dx', p = W^T G', J = dN/dy, q = V^T J, G = a G' + q.
Lengths are in units of |x|, so that neither the input's size nor a dead stream needs care::

    forward   y in a group of m neurons with one slope s: |y|^2 = v chi2(m), z = s y, Z = |z|^2
              h = sqrt(w Z) (g, chi(n-1)) along and across x;   a e1 + h = step (cos, sin),   R' = step^2 R
    backward  G' = (nu', rho') along and across x'; the part across x' has a random direction in n - 1 dimensions
              p along z is h.G'/|z|, across it fresh;   J = b D p;   q along x is b h.G', across it fresh
              nu = step nu',   rho = |(a g2 + q2, a g3 + q3, q4)| on: h across x, the rest of G', the rest of q
    tangent   X = (N/|x|) dx for the parameters' velocity, gradient times multipliers: X1 along x, X2 along the part of
              G across x, X3 the length of the rest, whose direction is random in n - 2 dimensions
              dy = (nu k_V + q.r / J^2) J + X1 y + noise across J,  r = X across x,  dz = D dy
              dh = (nu k_W + p.r'/G'^2) G' + (z.dz / Z) h + noise across G',  r' = dz across z
              X' = (a X + b dh) / step,  k_V = c_V R + e_V,  k_W = b (c_W R Z + e_W)
    Delta K / lambda = -4 [sum over blocks R (c_V J^2 X1 + c_W b^2 G'^2 z.dz)  +  c_o R X1 at the head]

A direction exists only where its dimension allows, so that narrow streams and blocks need no cases of their own.  A
random bias is a weight from a constant neuron: lengths are in units of U, that of x with the neuron, F = N / U stands
for nu in the tangent, and of p along z and q along x the neuron's share is left open.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np

from finwidth.networks.activations import Array
from finwidth.networks.description import Layer
from finwidth.networks.laws import FloatArray
from finwidth.networks.resnet import ResNet, ResNetBlock
from finwidth.sampling.one_input.arithmetic import over, polar, times_power_of_two
from finwidth.sampling.random.device import DeviceGenerator, generator_namespace, in_numpy
from finwidth.sampling.random.variates import Variates

Gradient: TypeAlias = tuple[Array, Array, Array]  # at the stem's output: N / U, and its parts along x and across it


@dataclass(frozen=True)
class MatrixNumbers:
    """A layer's numbers as floats: variance and multiplier of its weights, and of its biases."""

    width: int
    v: float
    c: float
    b0: float
    e: float
    beta: float  # b0 / v

    @staticmethod
    def of(layer: Layer) -> MatrixNumbers:
        """The numbers of a layer."""
        v, b0 = float(layer.weight_variance), float(layer.bias_variance)
        return MatrixNumbers(layer.fan_out, v, float(layer.weight_multiplier), b0, float(layer.bias_multiplier), b0 / v)


@dataclass(frozen=True)
class BlockNumbers:
    """A block's numbers as floats."""

    a: float
    b: float
    V: MatrixNumbers
    W: MatrixNumbers

    @staticmethod
    def of(block: ResNetBlock) -> BlockNumbers:
        """The numbers of a block."""
        a, b = float(block.skip_squared) ** 0.5, float(block.branch_squared) ** 0.5
        return BlockNumbers(a, b, MatrixNumbers.of(block.inner), MatrixNumbers.of(block.outer))


@dataclass(slots=True)
class FirstBlockTilt:
    """Of a first block that reads x, and adds to x less its mean: a direction in the plane of both, across x."""

    cos: Array  # of the angle of the two
    sin: Array
    G: Array = None  # the gradient along the direction
    X: Array = None  # and the tangent


@dataclass(slots=True)
class BlockState:
    """One block of all draws: shape (draws,), or with the groups of neurons first, (groups, draws)."""

    U2: Array  # the square of the unit U
    along: Array  # the length of what V reads, which is x unless x is normalised for it, over U
    share: Array  # of U^2: the constant neuron of V
    length: Array  # |x| / U
    slopes: Array  # (groups, 1)
    counts: Array  # neurons in each group
    z: Array
    Z: Array
    Z1: Array  # |z|^2 with the constant neuron of W
    W_share: Array  # of Z1: that neuron
    h: tuple[Array, Array]  # along x and across it
    cos: Array  # of the angle of x' with x
    sin: Array
    step: Array  # |x'| / U
    grown: Array = None  # U' / U
    above: tuple[Array, Array] = (None, None)  # nu', rho'
    square: Array = None  # |G'|^2
    turn: tuple[Array, Array] = (None, None)  # cosine and sine of the angle of G' across x' with the plane of x and h
    p: Array = None  # (2 groups, draws): along the y of each group, and the rest in each group
    p_fresh: Array = 0.0  # what the constant neuron of W leaves open of p along z
    J: Array = None
    J2: Array = None
    q: tuple[Array, ...] = (None, None, None)  # across x: along h, along the rest of G', the rest
    q_fresh: Array = 0.0  # what the constant neuron of V leaves open of q along x
    frame: tuple[Array, Array, Array, Array] = (None, None, None, None)  # of G across x: its two angles in q's frame
    F: Array = None  # N / U
    normed: bool = False  # whether a x + b h is normalised before it is read
    x_normed: tuple[Array, Array] = (None, None)  # x, where it is normalised for V: by which factor f, and 1 - t
    sum_normed: tuple[Array, Array] = (None, None)  # and a x + b h
    pulled: Array = None  # h . G'
    tilt: FirstBlockTilt | None = None
    q_along: Array = 0.0  # q along x, where a norm before V does not tell it of the rest
    pulled_above: Array = 0.0  # what the norm of a x + b h gives . its gradient
    bend: Array = 0.0  # half of what their curvature gives of the output's second derivative along the tangent


class ResidualChain:
    """The chain of the module's docstring for one network and one squared norm of its input, 4^exponent ``norm``.

    It computes with the arrays of what draws for it: NumPy's for `Variates`, torch's for a `DeviceGenerator`.
    Only networks without random biases take an ``exponent``.
    """

    def __init__(self, net: ResNet, norm: float, exponent: int = 0) -> None:
        self.norm = norm
        self.exponent = exponent
        self.width = net.widths[1]
        self.stem, self.head = MatrixNumbers.of(net.stem), MatrixNumbers.of(net.head)
        made: dict[int, BlockNumbers] = {}  # blocks that are equal are one object
        for block in net.blocks:
            if id(block) not in made:
                made[id(block)] = BlockNumbers.of(block)
        self.blocks = [made[id(block)] for block in net.blocks]
        self.random_bias = net.random_bias
        self.own_unit = net.random_bias or net.norm is not None  # U is not |x|
        phi = net.activation
        up, down = float(phi.positive), float(phi.negative)
        # Two slopes of one size are one group of neurons: the signs can be given to the columns of W and the rows of V.
        self.one_group = abs(up) == abs(down)
        self.slopes = [up] if self.one_group else [slope for slope in (up, down) if slope]
        self.at_zero = float(phi.at_zero)
        self.can_die = phi.can_die and not all(block.a for block in self.blocks)

    @property
    def arrays(self) -> int:
        """How many numbers of a block are kept for each draw."""
        return 22 + 6 * len(self.slopes) + 8 * self.random_bias

    def draw(self, rng: Variates | DeviceGenerator, draws: int) -> dict[str, FloatArray]:
        """``draws`` draws: output, K_w, K_b, K, dK."""
        with np.errstate(all="ignore"):  # the caller sees to overflow
            passed, U2, along = self._forward(rng, draws)
            output, K_w, K_b, G = self._backward(passed, U2, along, rng)
            dK, _ = self._tangent(passed, U2 * along, G, rng)
            output, K_w = times_power_of_two(output, self.exponent), times_power_of_two(K_w, 2 * self.exponent)
            dK = times_power_of_two(dK, 2 * self.exponent) + 0.0  # no negative zeros
        drawn = {"output": output, "K_w": K_w, "K_b": K_b, "K": K_w + K_b, "dK": dK}
        return {name: in_numpy(values) for name, values in drawn.items()}

    def _forward(self, rng: Any, draws: int) -> tuple[list[BlockState], Array, Array]:
        """The blocks from the stem up; at the head, U^2 and |x| / U."""
        xp, passed = generator_namespace(rng), []
        R = (self.norm * self.stem.v + self.stem.b0) * self._chi_square(rng, draws)
        U2, along, share, length = self._first_unit(R, rng)
        live = xp.ones_like(U2)
        silent = self.norm == 0 and not self.stem.b0  # y = 0 in every network
        for block, above in zip(self.blocks, [*(each.V for each in self.blocks[1:]), self.head], strict=True):
            silent = silent and not block.V.b0
            slopes, counts = self._gates(block.V.width, silent, rng, draws)
            if self.can_die and not block.V.b0:
                counts = counts * (along > 0 if self.random_bias else live)
            z = slopes * xp.sqrt(block.V.v * rng.chi_square(counts))
            if silent and self.random_bias:
                z = 0 * z
            Z = (z * z).sum(0)
            Z1, W_share = self._with_constant(Z, block.W.beta / U2 if self.random_bias else 0.0)
            h = xp.sqrt(block.W.v * Z1)
            h_along, h_across = h * rng.standard_normal(draws), h * xp.sqrt(self._chi_square(rng, draws, 1))
            step, cos, sin = polar(block.a * length + block.b * h_along, block.b * h_across)
            at = BlockState(
                U2, along, share, length, slopes, counts, z, Z, Z1, W_share, (h_along, h_across), cos, sin, step
            )
            R, at.grown = U2 * step * step, step
            U2, along, share, length = self._unit(R, above)
            if self.own_unit:
                at.grown = xp.sqrt(over(U2, at.U2))
            live = live * (step > 0)
            silent = silent and not (block.W.b0 and block.b)
            passed.append(at)
        self._at_head(passed)
        return passed, U2, along

    def _at_head(self, passed: list[BlockState]) -> None:
        """What is left to say of the blocks, once the forward pass is through."""

    def _first_unit(self, R: Array, rng: Any) -> tuple[Array, Array, Array, Array]:
        """`_unit` of the stem's output, of squared length R."""
        return self._unit(R, self.blocks[0].V)

    def _unit(self, R: Array, above: MatrixNumbers) -> tuple[Array, Array, Array, Array]:
        """U^2, |x|^2 with the constant neuron of the layer above; |x| / U, that neuron's share of U^2, and |x| / U.

        Where U = 0 any unit would do.
        """
        U2, share = self._with_constant(R, above.beta)
        if not self.random_bias:
            return U2, 1.0, share, 1.0
        U2 = U2 + (U2 == 0)
        along = (R / U2) ** 0.5
        return U2, along, share, along

    def _with_constant(self, square: Array, constant: Array) -> tuple[Array, Array]:
        """The square of a vector with a constant neuron of this square; the neuron's share of it, 1 where it is 0."""
        if not self.random_bias:
            return square, 0.0
        total = square + constant
        return total, over(constant + 0 * total, total) + (total == 0)

    def _gates(self, width: int, silent: bool, rng: Any, draws: int) -> tuple[Array, Array]:
        """The slopes of the groups of neurons, shape (groups, 1), and how many neurons each has, (groups, draws)."""
        xp = generator_namespace(rng)
        slopes = [self.at_zero] if silent else self.slopes
        all_of_them = self._full(rng, draws, width)
        columns = xp.stack([slope * xp.ones_like(all_of_them[:1]) for slope in slopes])
        if silent or self.one_group:
            return columns, all_of_them[None]
        positive = rng.coins(width, draws)
        return columns, xp.stack([positive, width - positive]) if len(slopes) == 2 else positive[None]

    def _backward(
        self, passed: list[BlockState], U2: Array, along: Array, rng: Any
    ) -> tuple[Array, Array, Array, Gradient]:
        """The blocks from the head down: N, K_w and K_b, and at the stem's output N / U and the two parts of G."""
        xp, draws = generator_namespace(rng), len(U2)
        deviation = self.head.v**0.5
        F = deviation * rng.standard_normal(draws)
        if self.random_bias and not self.head.b0:
            F = F * (along > 0)  # N = 0 where the stream is
        rho = deviation * xp.sqrt(self._chi_square(rng, draws, 1))
        nu = along * F + deviation * self._left_open(
            self._with_constant(U2 * along * along, self.head.beta)[1], rng, draws
        )
        output = xp.sqrt(U2) * F
        K_w, K_b = self.head.c * U2 * along * along, self.head.e * xp.ones_like(U2)
        for block, at in zip(reversed(self.blocks), reversed(passed), strict=True):
            nu, rho = self._block_down(block, at, nu, rho, rng)
            at.F = F = F * at.grown
            K_w = K_w + at.U2 * (block.V.c * at.J2 * at.along * at.along + block.W.c * block.b**2 * at.square * at.Z)
            K_b = K_b + block.V.e * at.J2 + block.W.e * block.b**2 * at.square
        square = nu * nu + rho * rho
        K_w, K_b = K_w + self.stem.c * self.norm * square, K_b + self.stem.e * square
        return self._at_stem(passed, output, K_w, K_b, (F, nu, rho))

    def _at_stem(
        self, passed: list[BlockState], output: Array, K_w: Array, K_b: Array, G: Gradient
    ) -> tuple[Array, Array, Array, Gradient]:
        """What the backward pass gives, once it is through."""
        return output, K_w, K_b, G

    def _block_down(self, block: BlockNumbers, at: BlockState, nu: Array, rho: Array, rng: Any) -> tuple[Array, Array]:
        """One block from its output down: the two parts of G below it, of those of G' above it."""
        xp, draws = generator_namespace(rng), len(nu)
        nu, rho = self._pulled_to_sum(at, nu, rho)
        at.above, at.square = (nu, rho), nu * nu + rho * rho
        _, t, out = polar(rng.standard_normal(draws), xp.sqrt(self._chi_square(rng, draws, 2)))
        at.turn = t, out
        across, g3 = rho * t, rho * out
        g1, g2 = nu * at.cos - across * at.sin, nu * at.sin + across * at.cos
        at.pulled = pulled = at.h[0] * g1 + at.h[1] * g2  # h . G'
        self._through_outer(block, at, pulled, rng)
        at.J = block.b * xp.concatenate([at.slopes, at.slopes]) * at.p
        at.J2 = (at.J * at.J).sum(0)
        spread = xp.sqrt(block.V.v * at.J2)
        at.q = (
            spread * self._normal(rng, draws, 2),
            spread * self._normal(rng, draws, 3),
            spread * xp.sqrt(self._chi_square(rng, draws, 3)),
        )
        rho = self._across_below(block, at, self._read(at, at.q), g2, g3)
        if self.random_bias:
            at.q_fresh = spread * self._left_open(at.share, rng, draws)
        return self._below(block, at, nu, g1, rng), rho

    @staticmethod
    def _across_below(block: BlockNumbers, at: BlockState, q: tuple[Array, ...], g2: Array, g3: Array) -> Array:
        """The length of G across x, from q as it is read; its frame, by the parts of G' along h and its rest."""
        length, *inner = polar(block.a * g3 + q[1], q[2])
        rho, *outer = polar(block.a * g2 + q[0], length)
        at.frame = (*outer, *inner)
        return rho

    def _pulled_to_sum(self, at: BlockState, nu: Array, rho: Array) -> tuple[Array, Array]:
        """The parts of the gradient by the sum a x + b h, from those by what is made of it."""
        return nu, rho

    def _read(self, at: BlockState, vectors: tuple[Array, ...]) -> tuple[Array, ...]:
        """Vectors across x, taken through the derivative of what V reads of x."""
        return vectors

    def _below(self, block: BlockNumbers, at: BlockState, nu: Array, g1: Array, rng: Any) -> Array:
        """The part of G along x; above the block the gradient has ``nu`` along x' and ``g1`` along x."""
        nu = nu * at.step * at.along
        if self.random_bias:
            nu = nu + block.a * at.share * g1 + at.q_fresh
            nu = nu + at.along * block.b * (at.Z**0.5 * at.p_fresh - at.W_share * at.pulled)
        return nu

    def _left_open(self, share: Array, rng: Any, draws: int) -> Array:
        """What a constant neuron with this share of a vector's square leaves open along the vector, standardised."""
        return share**0.5 * rng.standard_normal(draws) if self.random_bias else 0.0

    def _through_outer(self, block: BlockNumbers, at: BlockState, pulled: Array, rng: Any) -> None:
        """Draw p = W^T G' in its frame: known along z from h.G', but for the constant neuron, and fresh across it."""
        xp, length = generator_namespace(rng), at.Z**0.5
        variance = block.W.v * at.square
        along = over(pulled, length)
        if self.random_bias:
            at.p_fresh = xp.sqrt(variance) * self._left_open(at.W_share, rng, len(pulled)) * (at.counts.sum(0) >= 1)
            along = (1 - at.W_share) * along + at.p_fresh
        if len(at.slopes) == 1:
            plane = along[None]
        else:
            unit = over(at.z, length)
            across = xp.sqrt(variance) * rng.standard_normal(len(pulled))
            plane = along * unit + across * xp.stack([-unit[1], unit[0]]) * (at.counts >= 1)
        at.p = xp.concatenate([plane, xp.sqrt(variance * rng.chi_square(at.counts, less=1))])

    def _tangent(
        self, passed: list[BlockState], head: Array, G: Gradient, rng: Any
    ) -> tuple[Array, tuple[Array, Array]]:
        """Delta K / lambda, and the parts of the tangent along x and along the rest of G at the head."""
        F, nu, rho = self._tangent_start(passed, G)
        k = times_power_of_two(self.stem.c * self.norm, 2 * self.exponent) + self.stem.e
        X1, X2, X3, total = k * F * nu, k * F * rho, 0 * nu, 0 * nu
        for block, at in zip(self.blocks, passed, strict=True):
            X = (X1, *self._in_frame(at, X2, X3, rng))
            read = self._read_tangent(at, X)
            hidden = self._hidden_tangent(block, at, read, rng)
            share = block.V.c * at.J2 * at.along * read[0] + block.W.c * block.b**2 * at.square * hidden[1]
            total = total + at.U2 * share
            X1, X2, X3 = self._stream_tangent(block, at, self._added_to(at, X), hidden, rng)
            X1, X2, X3 = self._normed_tangent(at, X1, X2, X3)
        total = total + sum(at.bend for at in passed)
        return self._in_units(-4 * (total + self.head.c * head * X1), G), (X1, X2)

    def _tangent_start(self, passed: list[BlockState], G: Gradient) -> Gradient:
        """N in units, and the parts of the gradient at the stem's output, from which the tangent starts."""
        return G

    def _in_units(self, change: Array, G: Gradient) -> Array:
        """Delta K of a tangent that started so."""
        return change

    def _added_to(self, at: BlockState, X: tuple[Array, ...]) -> tuple[Array, ...]:
        """The tangent of x, as the block adds to it."""
        return X

    def _read_tangent(self, at: BlockState, X: tuple[Array, ...]) -> tuple[Array, ...]:
        """The tangent of what V reads of x."""
        return X

    def _normed_tangent(self, at: BlockState, X1: Array, X2: Array, X3: Array) -> tuple[Array, Array, Array]:
        """The tangent of what is made of the sum a x + b h."""
        return X1, X2, X3

    def _in_frame(self, at: BlockState, X2: Array, X3: Array, rng: Any) -> tuple[Array, Array, Array, Array]:
        """The tangent across x: along h, along the rest of G', along the rest of q, and beyond them."""
        xp, draws = generator_namespace(rng), len(X2)
        cos, sin, inner_cos, inner_sin = at.frame
        first, second = self._normal(rng, draws, 3), self._normal(rng, draws, 4)
        beyond = self._chi_square(rng, draws, 4)
        share = over(X3, xp.sqrt(first * first + second * second + beyond))
        first, second = share * first, share * second
        turned = sin * X2 - cos * first
        return (
            cos * X2 + sin * first,
            inner_cos * turned + inner_sin * second,
            inner_sin * turned - inner_cos * second,
            share * xp.sqrt(beyond),
        )

    def _hidden_tangent(
        self, block: BlockNumbers, at: BlockState, X: tuple[Array, ...], rng: Any
    ) -> tuple[Array, Array, Array]:
        """The tangent dz in the frame of p, z . dz, and the squared length of dz outside that frame."""
        xp, groups, (X1, *moved) = generator_namespace(rng), len(at.slopes), X
        variance = sum(each * each for each in moved)
        known = sum(one * other for one, other in zip(at.q, moved, strict=False))
        if self.random_bias:
            variance = variance + at.share * X1 * X1
            known = known + at.q_fresh * X1
        variance = block.V.v * variance
        noise = rng.standard_normal((2 * groups, len(X1)))
        if xp is not np or at.counts.min() < 2:
            noise = noise * xp.concatenate([at.counts >= 1, at.counts >= 2])
        noise = noise * xp.sqrt(variance)
        R = at.U2 * at.along * at.along
        k = at.F * (block.V.c * times_power_of_two(R, 2 * self.exponent) + block.V.e)
        pull = k + over(known - (at.J * noise).sum(0), at.J2)
        dz = xp.concatenate([at.slopes, at.slopes]) * (pull * at.J + noise)
        dz[:groups] += at.along * X1 * at.z  # slope times y is z
        rest = variance * (at.slopes * at.slopes * rng.chi_square(at.counts, less=2)).sum(0)
        return dz, (at.z * dz[:groups]).sum(0), rest

    def _stream_tangent(
        self, block: BlockNumbers, at: BlockState, X: tuple[Array, ...], hidden: tuple[Array, Array, Array], rng: Any
    ) -> tuple[Array, Array, Array]:
        """The tangent above the block: along x', along the rest of G', and the length of what is left."""
        xp, draws, groups = generator_namespace(rng), len(at.U2), len(at.slopes)
        a, b, (dz, zdz, rest) = block.a, block.b, hidden
        across = over(zdz, at.Z)
        dz[:groups] -= across * at.z
        share, known = over(zdz, at.Z1) if self.random_bias else across, (at.p * dz).sum(0)
        square = (dz * dz).sum(0) + rest
        if self.random_bias:
            along = over(zdz, at.Z**0.5)
            known, square = known + along * at.p_fresh, square + along * along * at.W_share
        k = at.F * b * (block.W.c * times_power_of_two(at.U2 * at.Z, 2 * self.exponent) + block.W.e)
        pull = b * (k + over(known, at.square))
        deviation = b * xp.sqrt(block.W.v * square)
        # a X + b share h, turned into the frame of x', the rest of G' and what is left.
        e1, e2 = a * X[0] + b * share * at.h[0], a * X[1] + b * share * at.h[1]
        t, out = at.turn
        (nu, rho), in_plane = at.above, at.cos * e2 - at.sin * e1
        noise = over(deviation * self._normal(rng, draws, 2), xp.sqrt(at.square))
        first = at.cos * e1 + at.sin * e2 + pull * nu + noise * rho
        second = t * in_plane + a * out * X[2] + pull * rho - noise * nu
        third = a * t * X[2] - out * in_plane
        left = xp.sqrt(third * third + a * a * (X[3] * X[3] + X[4] * X[4])) + deviation * self._normal(rng, draws, 3)
        left = xp.sqrt(left * left + deviation * deviation * self._chi_square(rng, draws, 3))
        scale = over(1.0, at.grown)
        return first * scale, second * scale, left * scale

    def _full(self, rng: Any, draws: int, value: int) -> Array:
        return np.full(draws, float(value)) if generator_namespace(rng) is np else rng.full(draws, float(value))

    def _chi_square(self, rng: Any, draws: int, less: int = 0) -> Array:
        """chi2(n - less) for the stream's width n."""
        return rng.chi_squares(self.width - less, draws)

    def _normal(self, rng: Any, draws: int, dimension: int) -> Array:
        """Normals along a direction that is there in a stream of at least that dimension."""
        return rng.standard_normal(draws) * (self.width >= dimension)

r"""One input of a residual network: the joint law of (N, K_w, K_b, K, Delta K) by O(L) scalars a draw.

For Gaussian weights, an activation of two slopes and biases that start at zero (docs/theory/residual-chain.md).  In a
block x' = a x + b h, h = W z, z = phi(y), y = V x; G' = dN/dx', p = W^T G', J = dN/dy, q = V^T J, G = a G' + q.
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

A direction exists only where its dimension allows, so that narrow streams and blocks need no cases of their own.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from finwidth.networks.activations import array_namespace
from finwidth.networks.laws import FloatArray
from finwidth.networks.resnet import ResNet
from finwidth.sampling.one_input.arithmetic import Array, over, polar, times_power_of_two
from finwidth.sampling.random.device import DeviceGenerator, generator_namespace
from finwidth.sampling.random.variates import Variates


@dataclass(frozen=True)
class _Numbers:
    """A block's numbers as floats, named as in the module's docstring."""

    width: int
    a: float
    b: float
    v: float
    w: float
    c_V: float
    c_W: float
    e_V: float
    e_W: float


@dataclass(slots=True)
class _Passed:
    """One block of all draws: shape (draws,), or with the groups of neurons first, (groups, draws)."""

    counts: Array  # neurons in each group
    z: Array
    Z: Array
    h: tuple[Array, Array]  # along x and across it
    step: Array  # |x'| / |x|
    cos: Array
    sin: Array
    R: Array  # |x|^2
    above: tuple[Array, Array] = (None, None)  # nu', rho'
    square: Array = None  # |G'|^2
    turn: tuple[Array, Array] = (None, None)  # cosine and sine of the angle of G' across x' with the plane of x and h
    p: Array = None  # (2 groups, draws): along the y of each group, and the rest in each group
    J: Array = None
    J_square: Array = None
    q: tuple[Array, Array, Array] = (None, None, None)  # across x: along h, along the rest of G', the rest
    frame: tuple[Array, Array, Array, Array] = (None, None, None, None)  # of G across x: its two angles in q's frame
    nu: Array = None


class ResidualChain:
    """The chain of the module's docstring for one network and one squared norm of its input, 4^exponent ``norm``.

    It computes with the arrays of what draws for it: NumPy's for `Variates`, torch's for a `DeviceGenerator`.
    """

    def __init__(self, net: ResNet, norm: float, exponent: int = 0) -> None:
        self.norm = norm
        self.exponent = exponent
        self.width = net.widths[1]
        self.stem, self.head = net.stem, net.head
        made: dict[int, _Numbers] = {}  # blocks that are equal are one object
        self.blocks = [made.setdefault(id(block), _numbers(block)) for block in net.blocks]
        phi = net.activation.frozen_at_zero() if norm == 0 else net.activation
        up, down = float(phi.positive), float(phi.negative)
        # Two slopes of one size are one group of neurons: the signs can be given to the columns of W and the rows of V.
        self.random_groups = abs(up) != abs(down)
        self.slopes = [slope for slope in (up, down) if slope] if self.random_groups else [up]
        self.can_die = phi.can_die and not all(block.a for block in self.blocks)

    @property
    def arrays(self) -> int:
        """How many numbers of a block are kept for each draw."""
        return 21 + 6 * len(self.slopes)

    def draw(self, rng: Variates | DeviceGenerator, draws: int) -> dict[str, FloatArray]:
        """``draws`` draws: output, K_w, K_b, K, dK."""
        xp = generator_namespace(rng)
        with np.errstate(all="ignore"):  # the caller sees to overflow
            passed, R = self._forward(rng, draws)
            output, K_w, K_b, G = self._backward(passed, R, rng)
            dK, _ = self._tangent(passed, R, G, rng)
            output, K_w = times_power_of_two(output, self.exponent), times_power_of_two(K_w, 2 * self.exponent)
            dK = times_power_of_two(dK, 2 * self.exponent) + 0.0  # no negative zeros
        drawn = {"output": output, "K_w": K_w, "K_b": K_b, "K": K_w + K_b, "dK": dK}
        return {name: np.asarray(values if xp is np else values.cpu()) for name, values in drawn.items()}

    def _forward(self, rng: Any, draws: int) -> tuple[list[_Passed], Array]:
        """The blocks from the stem up, and |x|^2 at the head."""
        xp, passed = generator_namespace(rng), []
        R = self.norm * float(self.stem.weight_variance) * self._chi_square(rng, draws)
        slopes = self._slopes(R)
        live = xp.ones_like(R)
        for block in self.blocks:
            counts = self._counts(block.width, rng, draws)
            if self.can_die:
                counts = counts * live
            z = slopes * xp.sqrt(block.v * rng.chi_square(counts))
            Z = (z * z).sum(0)
            h = xp.sqrt(block.w * Z)
            h_along, h_across = h * rng.standard_normal(draws), h * xp.sqrt(self._chi_square(rng, draws, 1))
            step, cos, sin = polar(block.a + block.b * h_along, block.b * h_across)
            passed.append(_Passed(counts, z, Z, (h_along, h_across), step, cos, sin, R))
            R = R * step * step
            if self.can_die:
                live = live * (step > 0)
        return passed, R

    def _backward(self, passed: list[_Passed], R: Array, rng: Any) -> tuple[Array, Array, Array, tuple[Array, Array]]:
        """The blocks from the head down: N, K_w and K_b, and the gradient at the stem's output."""
        xp, draws = generator_namespace(rng), len(R)
        slopes, deviation = self._slopes(R), float(self.head.weight_variance) ** 0.5
        nu, rho = deviation * rng.standard_normal(draws), deviation * xp.sqrt(self._chi_square(rng, draws, 1))
        output = xp.sqrt(R) * nu
        K_w, K_b = float(self.head.weight_multiplier) * R, float(self.head.bias_multiplier) * xp.ones_like(R)
        for block, at in zip(reversed(self.blocks), reversed(passed), strict=True):
            at.above, at.square = (nu, rho), nu * nu + rho * rho
            _, t, out = polar(rng.standard_normal(draws), xp.sqrt(self._chi_square(rng, draws, 2)))
            at.turn = t, out
            across, g3 = rho * t, rho * out
            g1, g2 = nu * at.cos - across * at.sin, nu * at.sin + across * at.cos
            pulled = at.h[0] * g1 + at.h[1] * g2  # h . G'
            at.p = self._through_outer(block, at, pulled, rng)
            at.J = block.b * xp.concatenate([slopes, slopes]) * at.p
            at.J_square = (at.J * at.J).sum(0)
            spread = xp.sqrt(block.v * at.J_square)
            at.q = (
                spread * self._normal(rng, draws, 2),
                spread * self._normal(rng, draws, 3),
                spread * xp.sqrt(self._chi_square(rng, draws, 3)),
            )
            length, *inner = polar(block.a * g3 + at.q[1], at.q[2])
            rho, *outer = polar(block.a * g2 + at.q[0], length)
            at.frame = (*outer, *inner)
            at.nu = nu = nu * at.step
            K_w = K_w + at.R * (block.c_V * at.J_square + block.c_W * block.b**2 * at.square * at.Z)
            K_b = K_b + block.e_V * at.J_square + block.e_W * block.b**2 * at.square
        square = nu * nu + rho * rho
        K_w = K_w + float(self.stem.weight_multiplier) * self.norm * square
        return output, K_w, K_b + float(self.stem.bias_multiplier) * square, (nu, rho)

    def _through_outer(self, block: _Numbers, at: _Passed, pulled: Array, rng: Any) -> Array:
        """The gradient by z, W^T G', in its frame: known along z, and fresh across it."""
        xp = generator_namespace(rng)
        variance = block.w * at.square
        length = xp.sqrt(at.Z)
        along = over(pulled, length)
        if len(self.slopes) == 1:
            plane = along[None]
        else:
            unit = over(at.z, length)
            across = xp.sqrt(variance) * rng.standard_normal(len(pulled))
            plane = along * unit + across * xp.stack([-unit[1], unit[0]]) * (at.counts >= 1)
        return xp.concatenate([plane, xp.sqrt(variance * rng.chi_square(at.counts, less=1))])

    def _tangent(
        self, passed: list[_Passed], R: Array, G: tuple[Array, Array], rng: Any
    ) -> tuple[Array, tuple[Array, Array]]:
        """Delta K / lambda, and the parts of the tangent along x and along the rest of G at the head."""
        nu, rho = G
        k = times_power_of_two(float(self.stem.weight_multiplier) * self.norm, 2 * self.exponent)
        k = k + float(self.stem.bias_multiplier)
        X1, X2, X3, total = k * nu * nu, k * nu * rho, 0 * nu, 0 * nu
        for block, at in zip(self.blocks, passed, strict=True):
            moved = self._in_frame(at, X2, X3, rng)
            hidden = self._hidden_tangent(block, at, (X1, *moved), rng)
            total = total + at.R * (block.c_V * at.J_square * X1 + block.c_W * block.b**2 * at.square * hidden[1])
            X1, X2, X3 = self._stream_tangent(block, at, (X1, *moved), hidden, rng)
        return -4 * (total + float(self.head.weight_multiplier) * R * X1), (X1, X2)

    def _in_frame(self, at: _Passed, X2: Array, X3: Array, rng: Any) -> tuple[Array, Array, Array, Array]:
        """The tangent across x: along h, along the rest of G', along the rest of q, and beyond them."""
        xp, draws = generator_namespace(rng), len(X2)
        cos, sin, inner_cos, inner_sin = at.frame
        first, second = (self._normal(rng, draws, dimension) for dimension in (3, 4))
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
        self, block: _Numbers, at: _Passed, X: tuple[Array, ...], rng: Any
    ) -> tuple[Array, Array, Array]:
        """The tangent dz in the frame of p, z . dz, and the squared length of dz outside that frame."""
        xp, groups = generator_namespace(rng), len(self.slopes)
        X1, *moved = X
        slopes = self._slopes(X1)
        variance = block.v * sum(each * each for each in moved)
        noise = rng.standard_normal((2 * groups, len(X1)))
        noise = noise * xp.concatenate([at.counts >= 1, at.counts >= 2]) * xp.sqrt(variance)
        known = at.q[0] * moved[0] + at.q[1] * moved[1] + at.q[2] * moved[2]
        k = at.nu * (block.c_V * times_power_of_two(at.R, 2 * self.exponent) + block.e_V)
        pull = k + over(known - (at.J * noise).sum(0), at.J_square)
        dz = xp.concatenate([slopes, slopes]) * (pull * at.J + noise)
        dz[:groups] += X1 * at.z  # slope times y is z
        rest = variance * (slopes * slopes * rng.chi_square(at.counts, less=2)).sum(0)
        return dz, (at.z * dz[:groups]).sum(0), rest

    def _stream_tangent(
        self, block: _Numbers, at: _Passed, X: tuple[Array, ...], hidden: tuple[Array, Array, Array], rng: Any
    ) -> tuple[Array, Array, Array]:
        """The tangent above the block: along x', along the rest of G', and the length of what is left."""
        xp, draws, groups = generator_namespace(rng), len(at.R), len(self.slopes)
        a, b, (dz, zdz, rest) = block.a, block.b, hidden
        share = over(zdz, at.Z)
        dz[:groups] -= share * at.z
        k = at.nu * b * (block.c_W * times_power_of_two(at.R * at.Z, 2 * self.exponent) + block.e_W)
        pull = b * (k + over((at.p * dz).sum(0), at.square))
        deviation = b * xp.sqrt(block.w * ((dz * dz).sum(0) + rest))
        # a X + b (z.dz / Z) h, turned into the frame of x', the rest of G' and what is left.
        e1, e2 = a * X[0] + b * share * at.h[0], a * X[1] + b * share * at.h[1]
        t, out = at.turn
        (nu, rho), in_plane = at.above, at.cos * e2 - at.sin * e1
        noise = over(deviation * self._normal(rng, draws, 2), xp.sqrt(at.square))
        first = at.cos * e1 + at.sin * e2 + pull * nu + noise * rho
        second = t * in_plane + a * out * X[2] + pull * rho - noise * nu
        third = a * t * X[2] - out * in_plane
        left = xp.sqrt(third * third + a * a * (X[3] * X[3] + X[4] * X[4])) + deviation * self._normal(rng, draws, 3)
        left = xp.sqrt(left * left + deviation * deviation * self._chi_square(rng, draws, 3))
        scale = over(1.0, at.step)
        return first * scale, second * scale, left * scale

    def _slopes(self, like: Array) -> Array:
        """The slopes of the groups, shape (groups, 1), as an array of the same kind."""
        xp = array_namespace(like)
        return xp.stack([slope * xp.ones_like(like[:1]) for slope in self.slopes])

    def _counts(self, width: int, rng: Any, draws: int) -> Array:
        """How many neurons each group has, shape (groups, draws)."""
        xp = generator_namespace(rng)
        if not self.random_groups:
            return self._full(rng, draws, width)[None]
        positive = rng.coins(width, draws)
        return xp.stack([positive, width - positive]) if len(self.slopes) == 2 else positive[None]

    def _full(self, rng: Any, draws: int, value: int) -> Array:
        return np.full(draws, float(value)) if generator_namespace(rng) is np else rng.full(draws, float(value))

    def _chi_square(self, rng: Any, draws: int, less: int = 0) -> Array:
        """chi2(n - less) for the stream's width n."""
        return rng.chi_square(self._full(rng, draws, self.width), less=less)

    def _normal(self, rng: Any, draws: int, dimension: int) -> Array:
        """Normals along a direction that is there in a stream of at least that dimension."""
        return rng.standard_normal(draws) * (self.width >= dimension)


def _numbers(block: Any) -> _Numbers:
    inner, outer = block.inner, block.outer
    fractions = (inner.weight_variance, outer.weight_variance, inner.weight_multiplier, outer.weight_multiplier)
    return _Numbers(
        inner.fan_out,
        float(block.skip_squared) ** 0.5,
        float(block.branch_squared) ** 0.5,
        *map(float, fractions),
        float(inner.bias_multiplier),
        float(outer.bias_multiplier),
    )

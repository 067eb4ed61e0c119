r"""One input of a normalised residual network: the joint law of (N, K_w, K_b, K, Delta K) by O(L) scalars a draw.

The chain of `residual_chain` with norms on the stream (docs/theory/normalisation.md), norm(x) = f x with the derivative
f (1 - t P_x) as in `normalised_chain`.  In a pre-norm network they stand between x and V, and between the last x and
the head; in a post-norm one between the sum a x + b h and the stream.  Their curvature bends the output along the
tangent as there.

Lengths are in units of U, that of what V reads; X is dx / U.  LayerNorm is the same in the n - 1 dimensions across
(1, ..., 1), in which lies all that matters of a stream that is read through LayerNorms only.
"""

from __future__ import annotations

from typing import Any

from finwidth.networks.activations import Array
from finwidth.networks.resnet import ResNet
from finwidth.sampling.one_input.arithmetic import over
from finwidth.sampling.one_input.normalised_chain import Normaliser
from finwidth.sampling.one_input.residual_chain import (
    BlockNumbers,
    BlockState,
    FirstBlockTilt,
    Gradient,
    MatrixNumbers,
    ResidualChain,
)


class NormalisedResidualChain(ResidualChain):
    """The chain of the module's docstring for one network and one squared norm of its input."""

    def __init__(self, net: ResNet, norm: float) -> None:
        super().__init__(net, norm)
        assert net.norm is not None
        self.pre = net.norm.position == "before"
        self.normaliser = Normaliser(self.width, float(net.norm.epsilon))
        self.tilted = net.norm.centred and not self.pre
        if net.norm.centred:
            self.width -= 1

    @property
    def arrays(self) -> int:
        """How many numbers of a block are kept for each draw."""
        return super().arrays + 5

    def _at_head(self, passed: list[BlockState]) -> None:
        for at in passed:
            at.normed = not self.pre or at is passed[-1]
        first = passed[0]
        if self.tilted:
            cos = over(first.length, first.along) + (first.along == 0)
            first.tilt = FirstBlockTilt(cos, ((1 - cos) * (1 + cos)) ** 0.5)

    def _first_unit(self, R: Array, rng: Any) -> tuple[Array, Array, Array, Array]:
        if self.pre:
            return self._unit(R, self.blocks[0].V)
        variance = self.norm * self.stem.v + self.stem.b0
        whole = R + variance * rng.standard_normal(len(R)) ** 2 if self.tilted else R
        U2, along, share, _ = super()._unit(whole, self.blocks[0].V)
        return U2, along, share, over(R, U2) ** 0.5 + (U2 == 0)

    def _unit(self, R: Array, above: MatrixNumbers) -> tuple[Array, Array, Array, Array]:
        U2, along, share, length = super()._unit(R * self.normaliser.factor(R) ** 2, above)
        return U2, along, share, over(R, U2) ** 0.5 + (U2 == 0) if self.pre else length

    def _at_stem(
        self, passed: list[BlockState], output: Array, K_w: Array, K_b: Array, G: Gradient
    ) -> tuple[Array, Array, Array, Gradient]:
        _, nu, rho = G
        if tilt := passed[0].tilt:
            K_w, K_b = K_w + self.stem.c * self.norm * tilt.G**2, K_b + self.stem.e * tilt.G**2
        return output, K_w, K_b, (output, nu, rho)

    def _pulled_to_sum(self, at: BlockState, nu: Array, rho: Array) -> tuple[Array, Array]:
        if not at.normed:
            return nu, rho
        R = at.U2 * at.step * at.step
        at.sum_normed = factor, loose = self.normaliser.factor(R), self.normaliser.loose(R)
        at.pulled_above = factor * R**0.5 * nu
        return loose * factor * nu, factor * rho

    def _read(self, at: BlockState, vectors: tuple[Array, ...]) -> tuple[Array, ...]:
        if not self.pre:
            return vectors
        square = at.U2 * at.length * at.length
        at.x_normed = factor, _ = self.normaliser.factor(square), self.normaliser.loose(square)
        return tuple(factor * each for each in vectors)

    def _read_along(self, at: BlockState, part: Array) -> Array:
        """`_read` for the part of a vector along x, of a pre-norm network."""
        factor, loose = at.x_normed
        return loose * factor * part

    def _below(self, block: BlockNumbers, at: BlockState, nu: Array, g1: Array, rng: Any) -> Array:
        if not self.pre and at.tilt is None:
            return super()._below(block, at, nu, g1, rng)
        z_p = at.pulled
        if self.random_bias:
            z_p = (1 - at.W_share) * z_p + at.Z**0.5 * at.p_fresh
        at.q_along = at.along * block.b * z_p + at.q_fresh
        if at.tilt is None:
            return block.a * g1 + self._read_along(at, at.q_along)
        q = (block.V.v * at.J2) ** 0.5 * rng.standard_normal(len(g1))
        at.q = (*at.q, q)
        at.tilt.G = q - block.a * at.tilt.sin * g1
        return block.a * at.tilt.cos * g1 + at.q_along

    def _tangent_start(self, passed: list[BlockState], G: Gradient) -> Gradient:
        for at in passed:
            at.F = over(1.0, at.U2**0.5)
        _, nu, rho = G
        if tilt := passed[0].tilt:
            tilt.X = (self.stem.c * self.norm + self.stem.e) * passed[0].F * tilt.G
        return passed[0].F, nu, rho

    def _in_units(self, change: Array, G: Gradient) -> Array:
        output, _, _ = G
        return output * change

    def _read_tangent(self, at: BlockState, X: tuple[Array, ...]) -> tuple[Array, ...]:
        if at.tilt is not None:
            return (*X[:4], at.tilt.X, *X[4:])
        if not self.pre:
            return X
        U, (factor, loose) = at.U2**0.5, at.x_normed
        read = (self._read_along(at, X[0]), *(factor * each for each in X[1:]))
        gained = U * sum(one * other for one, other in zip((at.q_along, *at.q), read, strict=False))
        across = over(sum(each * each for each in X[1:]), at.length * at.length)
        pulled = U * at.along * at.q_along
        at.bend = at.bend + self.normaliser.bend(loose, over(X[0], at.length), across, gained, pulled)
        return read

    def _added_to(self, at: BlockState, X: tuple[Array, ...]) -> tuple[Array, ...]:
        return X if at.tilt is None else (at.tilt.cos * X[0] - at.tilt.sin * at.tilt.X, *X[1:])

    def _normed_tangent(self, at: BlockState, X1: Array, X2: Array, X3: Array) -> tuple[Array, Array, Array]:
        if not at.normed:
            return X1, X2, X3
        (nu, rho), U = at.above, at.U2**0.5 * at.grown
        factor, loose = at.sum_normed
        length = over(at.step, at.grown)  # of a x + b h, over U
        gained, across = U * (nu * X1 + rho * X2), over(X2 * X2 + X3 * X3, length * length)
        at.bend = at.bend + self.normaliser.bend(loose, over(X1, length), across, gained, at.pulled_above)
        return loose * factor * X1, factor * X2, factor * X3

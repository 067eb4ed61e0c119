r"""One input of a normalised residual network: the joint law of (N, K_w, K_b, K, Delta K) by O(L) scalars a draw.

The chain of `residual_chain` with norms on the stream (docs/theory/normalisation.md): norm(x) = k x, k = sqrt(n) / |x|,
with the derivative k (1 - P_x).  In a pre-norm network they stand between x and V, and between the last x and the head;
in a post-norm one between a x + b h and the stream.  Neither a gradient nor a tangent that has passed one has a part
along x.  With u = norm(x), g the gradient by u and q = k (1 - P_x) g, the curvature of the norm gives to half the
output's second derivative along the tangent

    - (x . dx / |x|^2) (q . dx)  -  (u . g) |dx across x|^2 / (2 |x|^2).

Lengths are in units of U, that of what V reads; X is dx / U.  LayerNorm is the same in the n - 1 dimensions across
(1, ..., 1), in which lies all that matters of a stream that is read, or made, by LayerNorms only.
"""

from __future__ import annotations

from typing import Any

from finwidth.networks.activations import Array
from finwidth.networks.resnet import ResNet
from finwidth.sampling.one_input.arithmetic import over
from finwidth.sampling.one_input.residual_chain import BlockNumbers, Gradient, MatrixNumbers, Passed, ResidualChain


class NormalisedResidualChain(ResidualChain):
    """The chain of the module's docstring for one network and one squared norm of its input."""

    def __init__(self, net: ResNet, norm: float) -> None:
        super().__init__(net, norm)
        assert net.norm is not None
        self.pre = net.norm.position == "before"
        self.normed_square = float(self.width)
        if net.norm.centred:
            self.width -= 1

    @property
    def arrays(self) -> int:
        """How many numbers of a block are kept for each draw."""
        return super().arrays + 5

    def _forward(self, rng: Any, draws: int) -> tuple[list[Passed], Array, Array]:
        passed, U2, along = super()._forward(rng, draws)
        for at in passed:
            at.normed = not self.pre or at is passed[-1]
        return passed, U2, along

    def _unit(self, R: Array, above: MatrixNumbers, *, stem: bool = False) -> tuple[Array, Array, Array, Array]:
        if stem and not self.pre:
            return super()._unit(R, above)
        U2, along, share, length = super()._unit(self.normed_square * (R > 0), above)
        return U2, along, share, (R / U2) ** 0.5 if self.pre else length

    def _backward(self, passed: list[Passed], U2: Array, along: Array, rng: Any) -> tuple[Array, Array, Array, Gradient]:
        output, K_w, K_b, (_, nu, rho) = super()._backward(passed, U2, along, rng)
        return output, K_w, K_b, (output, nu, rho)

    def _pulled_to_sum(self, at: Passed, nu: Array, rho: Array) -> tuple[Array, Array]:
        if not at.normed:
            return nu, rho
        at.pulled_above = nu * self.normed_square**0.5
        return 0 * nu, over(rho * self.normed_square**0.5, at.step * at.U2**0.5)

    def _read(self, at: Passed, vectors: tuple[Array, ...]) -> tuple[Array, ...]:
        if not self.pre:
            return vectors
        factor = over(at.along, at.length)
        return tuple(factor * each for each in vectors)

    def _below(self, block: BlockNumbers, at: Passed, nu: Array, g1: Array, pulled: Array) -> Array:
        if not self.pre:
            return super()._below(block, at, nu, g1, pulled)
        z_p = (1 - at.W_share) * pulled + at.Z**0.5 * at.p_fresh
        at.pulled = at.U2**0.5 * at.along * (at.along * block.b * z_p + at.q_fresh)
        return block.a * g1

    def _tangent(
        self, passed: list[Passed], head: Array, G: Gradient, rng: Any
    ) -> tuple[Array, tuple[Array, Array]]:
        for at in passed:
            at.F = at.U2**-0.5
        output, nu, rho = G
        total, parts = super()._tangent(passed, head, (passed[0].F, nu, rho), rng)
        return output * total, parts

    def _read_tangent(self, at: Passed, X: tuple[Array, ...]) -> tuple[Array, ...]:
        if not self.pre:
            return X
        read = self._read(at, X[1:])
        gained = at.U2**0.5 * sum(one * other for one, other in zip(at.q, read, strict=False))
        at.bend = at.bend - over(X[0], at.length) * gained
        square = over(sum(each * each for each in read), at.along * at.along)  # |dx across x|^2 / |x|^2
        at.bend = at.bend - at.pulled * square / 2
        return (0 * X[0], *read)

    def _normed_tangent(self, at: Passed, X1: Array, X2: Array, X3: Array) -> tuple[Array, Array, Array]:
        if not at.normed:
            return X1, X2, X3
        inverse = over(at.grown, at.step)  # U' over the length of a x + b h
        _, rho = at.above
        unit = at.U2**0.5 * at.grown
        square = (X2 * X2 + X3 * X3) * inverse * inverse
        at.bend = at.bend - X1 * inverse * rho * X2 * unit - at.pulled_above * square / 2
        factor = over(self.normed_square**0.5, unit) * inverse
        return 0 * X1, factor * X2, factor * X3

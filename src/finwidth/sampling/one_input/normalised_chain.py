r"""One input of a normalised network, fully connected: the joint law of (N, K_w, K_b, K, Delta K) by O(d) scalars.

The chain of `two_slope_chain` with a norm in each hidden layer (docs/theory/normalisation.md), norm(z) = f z with
f = sqrt(n) / |z|, whose derivative is f (1 - P_z)::

    before    u = f y, x = phi(u):      J = f (1 - P_y) D q,   du = f (1 - P_y) dy,   dx = D du
    after     z = phi(y), x = f z:      J = f D (1 - P_z) q,   dz = D dy,             dx = f (1 - P_z) dz

So y . J = 0 in every hidden layer: q has no part along x but in the last, where x . q = N, or beside random biases.
The norm curves the output along the tangent: half its second derivative is

    sum_i c_i S_i (x_{i-1} . dx_{i-1})  -  sum_i [a_i w_i + (x_i . q_i) |dz_i across z_i|^2 / (2 |z_i|^2)],

z what is normalised in the layer, a = z . dz / |z|^2 and w = J . dy, the kernel of everything up to the layer.

LayerNorm of slopes of one size has no more to it than RMSNorm in n - 1 dimensions: the directions across (1, ..., 1).
"""

from __future__ import annotations

from finwidth.networks.activations import Array, array_namespace
from finwidth.networks.mlp import MLP
from finwidth.sampling.one_input.arithmetic import over
from finwidth.sampling.one_input.two_slope_chain import HiddenVectors, TwoSlopeChain


class NormalisedChain(TwoSlopeChain):
    """The chain of the module's docstring for one network; ``draw`` is that of `two_slope_chain.TwoSlopeChain`."""

    def __init__(self, net: MLP) -> None:
        super().__init__(net)
        assert net.norm is not None
        self.after = net.norm.position == "after"
        self.lengths = [width**0.5 for width in net.widths[1:-1]]
        if net.norm.centred:
            self.slopes = (self.slopes[0],) * 2  # signs can be given to the columns of the next matrix
            self.widths = (net.widths[0], *(width - 1 for width in net.widths[1:-1]), net.widths[-1])

    def _activated(self, i: int, slopes: Array, y: Array) -> tuple[Array, Array]:
        z = slopes * y if self.after else y
        factor = over(self.lengths[i], (z * z).sum(0) ** 0.5)
        return slopes * y * factor, factor

    def _pulled_back(self, layer: HiddenVectors, plane: Array, fresh: Array) -> tuple[Array, Array]:
        if self.after:
            plane = _across(layer.unit, plane)
        J, _ = super()._pulled_back(layer, plane, fresh)
        if not self.after:
            J[:2] = _across(over(layer.y, (layer.y * layer.y).sum(0) ** 0.5), J[:2])
        return layer.factor * J, 0 * layer.pulled

    def _pushed_on(
        self, layer: HiddenVectors, dy: Array, spread: Array, chi: Array, w: Array
    ) -> tuple[Array, Array]:
        if self.after:
            dz, rest = super()._pushed_on(layer, dy, spread, chi, w)
            return layer.factor * self._normed(layer, layer.slopes * layer.y, dz, rest, w), layer.factor**2 * rest
        du = layer.factor * self._normed(layer, layer.y, dy, spread * chi.sum(0), w)
        return super()._pushed_on(layer, du, layer.factor**2 * spread, chi, w)

    def _normed(self, layer: HiddenVectors, z: Array, dz: Array, rest: Array, w: Array) -> Array:
        """dz across z, what is normalised; ``rest`` of its squared length is in no direction of the frame."""
        square = (z * z).sum(0)
        along = over((z * dz[:2]).sum(0), square)
        across = array_namespace(dz).concatenate([dz[:2] - along * z, dz[2:]])
        layer.bend = -along * w - layer.pulled * over((across * across).sum(0) + rest, 2 * square)
        return across


def _across(unit: Array, vector: Array) -> Array:
    """The part of a vector across a direction, both in the plane of y+ and y-."""
    return vector - unit * (unit * vector).sum(0)

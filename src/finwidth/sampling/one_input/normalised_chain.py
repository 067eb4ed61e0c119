r"""One input of a normalised network, fully connected: the joint law of (N, K_w, K_b, K, Delta K) by O(d) scalars.

The chain of `two_slope_chain` with a norm in each hidden layer (docs/theory/normalisation.md): norm(z) = f z with
f = (|z|^2 / n + epsilon)^(-1/2), whose derivative is f (1 - t P_z), t = f^2 |z|^2 / n, which is 1 without epsilon::

    before    u = f y, x = phi(u):      J = f (1 - t P_y) D q,   du = f (1 - t P_y) dy,   dx = D du
    after     z = phi(y), x = f z:      J = f D (1 - t P_z) q,   dz = D dy,               dx = f (1 - t P_z) dz

so that y . J = (1 - t) x . q.  The norm curves the output along the tangent: half its second derivative is

    sum_i c_i S_i (x_{i-1} . dx_{i-1})  -  sum_i t_i [a_i w_i + (x_i . q_i / 2) (b_i^2 + (1 - t_i) a_i^2)],

dz = a z + a vector across z of length b |z|, z what is normalised in the layer, and w = J . dy, the kernel of all up to
the layer.

LayerNorm of slopes of one size has no more to it than RMSNorm in n - 1 dimensions: the directions across (1, ..., 1).
"""

from __future__ import annotations

from finwidth.networks.activations import Array, array_namespace
from finwidth.networks.mlp import MLP
from finwidth.sampling.one_input.arithmetic import over
from finwidth.sampling.one_input.two_slope_chain import HiddenVectors, TwoSlopeChain


class Normaliser:
    """A norm of vectors of one width, by their squared lengths."""

    def __init__(self, width: int, epsilon: float) -> None:
        self.width, self.epsilon = width, epsilon

    def factor(self, square: Array) -> Array:
        """The factor f of z; 0 where z and epsilon are 0."""
        return over(1.0, (square / self.width + self.epsilon) ** 0.5)

    def loose(self, square: Array) -> Array:
        """1 - t: the share of a change along z that the norm lets through."""
        if not self.epsilon:
            return 0.0
        return over(self.width * self.epsilon, square + self.width * self.epsilon)

    def bend(self, loose: Array, along: Array, across: Array, gained: Array, pulled: Array) -> Array:
        """Half of what the norm's curvature gives of the output's second derivative along the tangent dz.

        ``loose`` is 1 - t, ``along`` a and ``across`` b^2; ``gained`` the derivative of the output, and ``pulled``
        norm(z) . its gradient.
        """
        if self.epsilon:
            across = across + loose * along * along
        return (loose - 1) * (along * gained + pulled / 2 * across)


class NormalisedChain(TwoSlopeChain):
    """The chain of the module's docstring for one network; ``draw`` is that of `two_slope_chain.TwoSlopeChain`."""

    def __init__(self, net: MLP) -> None:
        super().__init__(net)
        assert net.norm is not None
        self.after = net.norm.position == "after"
        self.norms = [Normaliser(width, float(net.norm.epsilon)) for width in net.widths[1:-1]]
        if net.norm.centred:
            self.slopes = (self.slopes[0],) * 2  # signs can be given to the columns of the next matrix
            self.widths = (net.widths[0], *(width - 1 for width in net.widths[1:-1]), net.widths[-1])

    def _activated(self, i: int, slopes: Array, y: Array) -> tuple[Array, Array]:
        factor = self.norms[i].factor(_square(slopes * y if self.after else y))
        return slopes * y * factor, factor

    def _pulled_back(self, layer: HiddenVectors, plane: Array, fresh: Array) -> tuple[Array, Array]:
        z = self._normalised(layer)
        square = _square(z)
        loose = self.norms[layer.place].loose(square)
        if self.after:
            plane = plane - over(1 - loose, square) * (z * plane).sum(0) * z
        J, _ = super()._pulled_back(layer, plane, fresh)
        if not self.after:
            J[:2] -= over(1 - loose, square) * (z * J[:2]).sum(0) * z
        return layer.factor * J, loose * layer.pulled

    def _pushed_on(self, layer: HiddenVectors, dy: Array, spread: Array, chi: Array, w: Array) -> tuple[Array, Array]:
        if self.after:
            dz, rest = super()._pushed_on(layer, dy, spread, chi, w)
            return layer.factor * self._normed(layer, dz, rest, w), layer.factor**2 * rest
        du = layer.factor * self._normed(layer, dy, spread * chi.sum(0), w)
        return super()._pushed_on(layer, du, layer.factor**2 * spread, chi, w)

    def _normalised(self, layer: HiddenVectors) -> Array:
        """What the norm of a layer is given, on y+ and y-."""
        return layer.slopes * layer.y if self.after else layer.y

    def _normed(self, layer: HiddenVectors, dz: Array, rest: Array, w: Array) -> Array:
        """(1 - t P_z) dz; ``rest`` of the squared length of dz is in no direction of the frame."""
        z = self._normalised(layer)
        square = _square(z)
        along = over((z * dz[:2]).sum(0), square)
        across = array_namespace(dz).concatenate([dz[:2] - along * z, dz[2:]])
        beyond = over(_square(across) + rest, square)
        norm = self.norms[layer.place]
        loose = norm.loose(square)
        layer.bend = norm.bend(loose, along, beyond, w, layer.pulled)
        across[:2] += loose * along * z
        return across


def _square(vector: Array) -> Array:
    return (vector * vector).sum(0)

r"""One input of residual networks of one matrix a block: the joint law of (N, K_w, K_b, K, Delta K), in O(n L) a draw.

x' = a x + b h, h = W z, z = phi(sigma * x), signs sigma or none (docs/theory/residual-chain.md).  The activation acts
on the stream's own neurons, of which lengths do not tell enough: x, G = dN/dx and the tangent are carried as vectors.
W is met along z on the way up and along G' on the way down, as in `residual_chain`, so that a block takes three vectors
g of n normals instead of n^2 weights.  With D = diag sigma phi'(sigma x), z = D x::

    forward   h = sqrt(w) |z| g
    backward  p = (h.G' / |z|^2) z + sqrt(w) |G'| (1 - P_z) g,   G = a G' + b D p
    tangent   X = F dx, F = N / U:   dz = D X,   r' = dz across z,   k = b (c_W |z|^2 + e_W)
              dh = (F k + p.r' / |G'|^2) G' + (z.dz / |z|^2) h + sqrt(w) |r'| (1 - P_G') g,   X' = a X + b dh
    Delta K / lambda = -4 [sum over blocks c_W b^2 |G'|^2 z.dz  +  c_o x.X at the head]

Fair signs can be given to the columns of W; what they leave is a fair coin for the slope of each neuron, whatever x is.
Without them the slope is that of x.

As there, vectors are in units of U, the length of x with the constant neuron of a random bias.  They are kept without
the numbers that multiply all of one: x / U is ``scale`` times s, h is ``deviation`` times g.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from finwidth.networks.activations import Array, array_namespace
from finwidth.networks.balanced import BalancedResNet
from finwidth.networks.laws import FloatArray
from finwidth.sampling.one_input.arithmetic import over, times_power_of_two
from finwidth.sampling.one_input.residual_chain import MatrixNumbers
from finwidth.sampling.random.device import DeviceGenerator, in_numpy
from finwidth.sampling.random.normals import Normals
from finwidth.sampling.random.variates import Variates

VECTORS = 6  # of a block that are kept for each draw


class StreamVariates:
    """Draws from a NumPy generator as the chain wants them: normals many at a time, and coins."""

    def __init__(self, rng: np.random.Generator) -> None:
        self.standard_normal = Normals(rng).standard_normal
        self.coins = Variates(rng).coins


@dataclass(slots=True)
class StreamBlock:
    """One block of all draws: vectors (draws, n), numbers (draws, 1)."""

    U2: Array  # the square of the unit U
    slopes: Array  # the diagonal of D
    Ds: Array
    scale: Array
    Z: Array
    Z1: Array  # |z|^2 with the constant neuron of W
    g: Array
    deviation: Array
    grown: Array = None  # U' / U
    F: Array = None  # N / U
    G: Array = None  # G'
    square: Array = None  # |G'|^2
    pulled: Array = None  # h . G'
    bDp: Array = None


class StreamChain:
    """The chain of the module's docstring for one network and one squared norm of its input, 4^exponent ``norm``.

    Only networks without random biases take an ``exponent``.
    """

    def __init__(self, net: BalancedResNet, norm: float, exponent: int = 0) -> None:
        self.norm, self.exponent, self.width = norm, exponent, net.widths[1]
        self.stem, self.head = MatrixNumbers.of(net.stem), MatrixNumbers.of(net.head)
        numbers = {
            key: (float(block.skip_squared) ** 0.5, float(block.branch_squared) ** 0.5, MatrixNumbers.of(block.outer))
            for key, block in {id(block): block for block in net.blocks}.items()  # blocks that are equal are one
        }
        self.blocks = [numbers[id(block)] for block in net.blocks]
        self.random_bias = net.random_bias
        self.signs = net.signs
        self.phi = net.activation
        reached = self.norm > 0 or self.stem.b0
        self.vanishes = not reached or not all(a for a, _, _ in self.blocks)  # whether x may be 0

    def draw(self, rng: StreamVariates | DeviceGenerator, draws: int) -> dict[str, FloatArray]:
        """``draws`` draws: output, K_w, K_b, K, dK."""
        with np.errstate(all="ignore"):  # the caller sees to overflow
            passed, x, U2 = self._forward(rng, draws)
            output, K_w, K_b, (F, G) = self._backward(passed, x, U2, rng)
            dK, _ = self._tangent(passed, x, U2, (F, G), rng)
            output, K_w = times_power_of_two(output, self.exponent), times_power_of_two(K_w, 2 * self.exponent)
            dK = times_power_of_two(dK, 2 * self.exponent) + 0.0  # no negative zeros
        drawn = {"output": output, "K_w": K_w, "K_b": K_b, "K": K_w + K_b, "dK": dK}
        return {name: in_numpy(values)[:, 0] for name, values in drawn.items()}

    def _forward(self, rng: Any, draws: int) -> tuple[list[StreamBlock], Array, Array]:
        """The blocks from the stem up; at the head, x / U and U^2."""
        passed: list[StreamBlock] = []
        s = rng.standard_normal((draws, self.width))
        s *= (self.norm * self.stem.v + self.stem.b0) ** 0.5
        readers = [*(W for _, _, W in self.blocks), self.head]
        scale, U2, _ = self._unit(s, 1.0, readers[0])
        normals = rng.standard_normal((len(self.blocks), draws, self.width))
        for (a, b, W), above, g in zip(self.blocks, readers[1:], normals, strict=True):
            slopes = self._slopes(s, rng)
            Ds = slopes * s
            Z = scale * scale * dot(Ds, Ds)
            Z1 = Z + over(W.beta, U2)
            at = StreamBlock(U2, slopes, Ds, scale, Z, Z1, g, (W.v * Z1) ** 0.5)
            s = (a * scale) * s
            s += (b * at.deviation) * g
            scale, U2, at.grown = self._unit(s, U2, above)
            passed.append(at)
        return passed, scale * s, U2

    def _unit(self, s: Array, U2: Array, above: MatrixNumbers) -> tuple[Array, Array, Array]:
        """Of a vector over U: 1 over its length with the constant neuron above, the square of that times U, and it."""
        square = dot(s, s)
        if not self.random_bias:
            return over(1.0, square**0.5), U2 * square, square**0.5
        U2_above = U2 * square + above.beta
        U2_above = U2_above + (U2_above == 0)  # where any unit would do
        grown = (U2_above / U2) ** 0.5
        return 1 / grown, U2_above, grown

    def _slopes(self, s: Array, rng: Any) -> Array:
        """The diagonal of D."""
        if not self.signs:
            return self.phi.derivative(s)
        up, down = float(self.phi.positive), float(self.phi.negative)
        slopes = rng.coins(1, s.shape[0] * s.shape[1]).reshape(s.shape)
        if (up, down) != (1, 0):
            slopes = down + (up - down) * slopes
        if self.vanishes:
            slopes = array_namespace(s).where(s == 0, float(self.phi.at_zero) + 0 * s, slopes)
        return slopes

    def _backward(
        self, passed: list[StreamBlock], x: Array, U2: Array, rng: Any
    ) -> tuple[Array, Array, Array, tuple[Array, Array]]:
        """The blocks from the head down: N, K_w and K_b, and at the stem's output N / U and G."""
        head, draws = self.head, len(x)
        G = rng.standard_normal((draws, self.width))
        G *= head.v**0.5
        F = dot(G, x)
        if head.b0:
            F = F + (head.b0 / U2) ** 0.5 * rng.standard_normal((draws, 1))
        output = U2**0.5 * F
        K_w, K_b = head.c * U2 * dot(x, x), head.e + 0 * U2
        normals = rng.standard_normal((len(self.blocks), draws, self.width))
        for (a, b, W), at, g in zip(reversed(self.blocks), reversed(passed), normals, strict=True):
            at.G, at.square, at.pulled = G, dot(G, G), at.deviation * dot(at.g, G)
            at.bDp = self._pulled_back(b, W, at, g, rng)
            G = a * G
            G += at.bDp
            at.F = F = F * at.grown
            size = b * b * at.square
            K_w, K_b = K_w + at.U2 * at.Z * (W.c * size), K_b + W.e * size
        square = dot(G, G)
        return output, K_w + self.stem.c * self.norm * square, K_b + self.stem.e * square, (F, G)

    def _pulled_back(self, b: float, W: MatrixNumbers, at: StreamBlock, g: Array, rng: Any) -> Array:
        """The vector b D p: p is known along z with the constant neuron, and fresh across it; g is overwritten."""
        deviation = (W.v * at.square) ** 0.5
        met = at.scale * dot(at.Ds, g)
        if W.b0:
            met = met + (W.beta / at.U2) ** 0.5 * rng.standard_normal((len(g), 1))
        g *= b * deviation
        g += (b * at.scale * over(at.pulled - deviation * met, at.Z1)) * at.Ds
        g *= at.slopes
        return g

    def _tangent(
        self, passed: list[StreamBlock], x: Array, U2: Array, below: tuple[Array, Array], rng: Any
    ) -> tuple[Array, Array]:
        """Delta K / lambda, and X at the head."""
        F, G = below
        X = ((times_power_of_two(self.stem.c * self.norm, 2 * self.exponent) + self.stem.e) * F) * G
        total = 0 * F
        normals = rng.standard_normal((len(self.blocks), len(G), self.width))
        for (a, b, W), at, g in zip(self.blocks, passed, normals, strict=True):
            dz = at.slopes * X
            zdz = at.scale * dot(at.Ds, dz)
            total = total + at.U2 * zdz * (W.c * b * b * at.square)
            share = over(zdz, at.Z1)
            dz -= (share * at.scale) * at.Ds
            rest = dot(dz, dz) + share * share * over(W.beta, at.U2)
            deviation = b * (W.v * rest) ** 0.5
            k = b * (W.c * times_power_of_two(at.U2 * at.Z, 2 * self.exponent) + W.e)
            known = dot(at.bDp, X) - b * share * at.pulled - deviation * dot(at.G, g)
            each = over(1.0, at.grown)
            X *= a * each
            X += (deviation * each) * g
            X += ((b * at.F * k + over(known, at.square)) * each) * at.G
            X += (b * share * at.deviation * each) * at.g
        return -4 * (total + self.head.c * U2 * dot(x, X)), X


def dot(one: Array, other: Array) -> Array:
    """Inner products of vectors (draws, n), shape (draws, 1)."""
    found: Array = array_namespace(one).einsum("dn,dn->d", one, other)[:, None]
    return found

r"""Residual networks drawn in proportion to what they contribute to the means of K, K^2 and Delta K.

For one input, two slopes and biases that start at zero, x_l = M_l x_{l-1} with matrices M_l = a + b W D V that are
independent of each other (docs/theory/importance.md), and K is a sum of terms, one for each weight matrix and each bias
vector, such as c_V R_{l-1} |J_l|^2.  In each the stream's length R below and the gradient's length Gamma above are
independent products over blocks.  So under the law weighted by the p-th power of one term every block is drawn by
itself: blocks below the term weighted by |M x|^(2p) for a unit vector x, blocks above it by |M^T G|^(2p), and the
term's own block by the length |z|^(2p) or |D p|^(2p) inside it.  Both are weights of the same scalars::

    |a e + b h|^2,   h = sqrt(w v S) (g, chi(n-1)),   S = sum over groups of slope^2 chi2(neurons of the group)

Below the term a block is drawn along x first, as in `residual_chain`; above it along G first, and then turned into the
frame of x.  The mixture of the plain law and of all terms with p = 1 and 2, in proportion to their norms, has a density
that is a sum of powers of the terms: bounded weights without any integral.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from finwidth.errors import FinwidthError
from finwidth.networks.activations import Array
from finwidth.networks.inputs import Vector
from finwidth.networks.laws import FloatArray
from finwidth.networks.resnet import ResNet
from finwidth.networks.routes import not_normalised
from finwidth.sampling.one_input.arithmetic import over, polar, times_power_of_two
from finwidth.sampling.one_input.residual_chain import BlockNumbers, BlockState, ResidualChain
from finwidth.sampling.one_input.sample import ResNetAtOneInput
from finwidth.sampling.random.variates import Variates
from finwidth.sampling.sampler import Chunk, Columns

_POWERS = (1, 2)  # of the terms, beside the plain law
_FURTHEST = 690.0  # logarithms of doubles
_Indices = npt.NDArray[np.int64]


class BlockScalars(NamedTuple):
    """Of one block: neurons of each group and chi^2 of each, shape (groups, draws); g, and chi2(n-1)."""

    counts: FloatArray
    chi: FloatArray
    g: FloatArray
    across: FloatArray


def rising(k: float, power: int) -> float:
    """E[chi2(k)^power] = k (k + 2) ... (k + 2 power - 2)."""
    return math.prod(k + 2 * j for j in range(power))


def certain_heads(power: int) -> list[int]:
    """The c_i of m (m + 2) ... (m + 2 power - 2) = sum_i c_i m (m - 1) ... (m - i + 1), none of them negative.

    >>> from finwidth.sampling.one_input.residual_importance import certain_heads
    >>> certain_heads(2)    # m (m + 2) = 3 m + m (m - 1)
    [0, 3, 1]
    """
    found = [1]
    for k in range(power):
        found = [(i + 2 * k) * c + below for i, (c, below) in enumerate(zip([*found, 0], [0, *found], strict=True))]
    return found


class HiddenTerm(NamedTuple):
    """A part of E[S^power]: chi-squares weighted by their powers, and coins that fall heads or tails for certain."""

    mean: float
    powers: tuple[int, int]
    certain: tuple[int, int]


def _hidden_terms(squares: Sequence[float], width: int, power: int, *, coins: bool) -> list[HiddenTerm]:
    """E[S^power] as a sum; ``squares`` of the slopes of the groups that count."""
    if not coins:
        return [HiddenTerm(squares[0] ** power * rising(width, power), (power, 0), (0, 0))]
    found = []
    for a in range(power + 1):
        b = power - a
        slopes = squares[0] ** a * (squares[1] if len(squares) > 1 else 0.0) ** b * math.comb(power, a)
        for i, heads in enumerate(certain_heads(a)):
            for j, tails in enumerate(certain_heads(b)):
                mean = slopes * heads * tails * math.perm(width, i + j) / 2 ** (i + j) if i + j <= width else 0.0
                if mean:
                    found.append(HiddenTerm(mean, (a, b), (i, j)))
    return found


class TiltedBlock:
    """The scalars of blocks that are alike, plain or weighted by powers of |a e + b h|^2 or of S."""

    def __init__(self, chain: ResidualChain, block: BlockNumbers, powers: Sequence[int]) -> None:
        self.a, self.b, self.n, self.width = block.a, block.b, chain.width, block.V.width
        self.groups, self.coins = len(chain.slopes), not chain.one_group
        self.squares = [slope * slope for slope in chain.slopes]
        self.beta = block.b * math.sqrt(block.V.v * block.W.v)
        self.modes = {(0, False): 0}
        self.log_mean = {(0, False): 0.0}
        rows: list[dict[tuple[int, ...], float]] = [{(0,) * 6: 1.0}]
        for power in powers:
            for half in (False, True):
                weights = self._inside(power) if half else self._through(power)
                mean = sum(weights.values())
                self.modes[power, half] = len(rows)
                self.log_mean[power, half] = math.log(mean) if mean > 0 else -math.inf
                rows.append(weights)
        self.terms = list(dict.fromkeys(term for row in rows for term in row))
        self._exponents = np.array(self.terms, dtype=np.float64).T
        self._reached = np.cumsum([[row.get(term, 0.0) for term in self.terms] for row in rows], axis=1)
        self._powers = np.zeros(len(rows))
        for (power, half), mode in self.modes.items():
            self._powers[mode] = 0 if half else power

    def _inside(self, power: int) -> dict[tuple[int, ...], float]:
        """S^power by terms: powers of the two chi-squares, certain heads and tails, and 0 of c and g^2."""
        terms = _hidden_terms(self.squares, self.width, power, coins=self.coins)
        return {(*term.powers, *term.certain, 0, 0): term.mean for term in terms}

    def _through(self, power: int) -> dict[tuple[int, ...], float]:
        """The part of |a e + b h|^(2 power) that is even in g, by terms: with c = g^2 + chi2(n-1), S^.. c^i g^(2k)."""
        found: dict[tuple[int, ...], float] = {}
        for k in range(power // 2 + 1):
            for i in range(power - 2 * k + 1):
                ways = math.comb(power, 2 * k) * math.comb(power - 2 * k, i) * 4**k
                factor = ways * self.a ** (2 * (power - k - i)) * self.beta ** (2 * (i + k))
                length = rising(self.n, i + k) * rising(1, k) / rising(self.n, k)
                for term, mean in self._inside(i + k).items():
                    key = (*term[:4], i, k)
                    if factor * length * mean:
                        found[key] = found.get(key, 0.0) + factor * length * mean
        return found

    def draw(self, modes: _Indices, rng: Variates) -> BlockScalars:
        """One block of each draw, by its mode."""
        draws, numpy = len(modes), rng.rng
        reached = self._reached[modes]
        chosen = (numpy.random(draws)[:, None] * reached[:, -1:] >= reached[:, :-1]).sum(axis=1)
        a, b, heads, tails, c, k = self._exponents[:, chosen]
        if self.coins:
            m = heads + numpy.binomial((self.width - heads - tails).astype(np.int64), 0.5)
            counts = np.stack([m, self.width - m])[: self.groups]
        else:
            counts = np.full((1, draws), float(self.width))
        chi = rng.chi_square(counts + 2 * np.stack([a, b])[: self.groups])
        g, across = rng.standard_normal(draws), rng.chi_squares(self.n - 1, draws)
        g = np.sqrt(g * g + 2 * numpy.standard_gamma(k))
        longer = 1 + over(2 * numpy.standard_gamma(c), g * g + across)
        g, across = g * np.sqrt(longer), across * longer
        return BlockScalars(counts, chi, self._signed(g, across, chi, modes, numpy), across)

    def _signed(
        self, g: FloatArray, across: FloatArray, chi: FloatArray, modes: _Indices, rng: np.random.Generator
    ) -> FloatArray:
        """Give g a sign, in proportion to the weight that it makes."""
        step = self.beta * np.sqrt(np.array(self.squares) @ chi)
        beyond, power = step * step * across, self._powers[modes]
        plus, minus = (np.square(self.a + sign * step * g) + beyond for sign in (1, -1))
        with np.errstate(invalid="ignore"):
            share = 1 / (1 + over(minus, plus) ** power)
        return np.where(rng.random(len(g)) < share, g, -g)


@dataclass(frozen=True)
class TiltedTerm:
    """One law of the mixture: the plain one, or that weighted by a power of one term of K.

    Attributes
    ----------
    name
        Of the term: a matrix or bias, and its block.
    cut
        How many blocks are drawn along x first: those below the term.
    inside
        The block that is weighted by the length inside it; -1 if none is.
    below, above
        The powers by which blocks below and above are weighted.
    share
        Of the draws.
    log_norm
        Logarithm of E[term^power]^(1/power).
    """

    name: tuple[str, int]
    cut: int
    inside: int
    below: int
    above: int
    share: float = 0.0
    log_norm: float = 0.0

    @property
    def power(self) -> int:
        """Of the term."""
        return max(self.below, self.above)


class _Pulled(NamedTuple):
    """A block that was drawn along G' first."""

    length: FloatArray  # |G'|
    counts: FloatArray
    p: FloatArray  # W^T G', its lengths in the groups
    u: tuple[FloatArray, FloatArray]  # V^T of the unit vector along D p: along G' and across it
    hidden: FloatArray  # |D p|
    cos: FloatArray  # of the angle of G with G'
    sin: FloatArray


class ResidualMixture(ResidualChain):
    """Draws from the plain law and those weighted by terms of K, each with its weight."""

    def __init__(self, net: ResNet, norm: float, exponent: int = 0, powers: Sequence[int] = _POWERS) -> None:
        super().__init__(net, norm, exponent)
        tilts = {id(block): TiltedBlock(self, block, powers) for block in self.blocks}
        self.tilts = [tilts[id(block)] for block in self.blocks]
        self.laws = sorted(self._mixture(powers), key=lambda law: law.cut)
        self._reached = np.cumsum([law.share for law in self.laws])
        self._cut, self._inside, self._powers_below, self._powers_above = (
            np.array([getattr(law, name) for law in self.laws]) for name in ("cut", "inside", "below", "above")
        )
        self._factors: dict[tuple[str, int], list[tuple[float, float, int]]] = {}
        for law in self.laws:
            if law.power:
                self._factors.setdefault(law.name, []).append((law.share, math.exp(-law.log_norm), law.power))

    def _mixture(self, powers: Sequence[int]) -> Iterator[TiltedTerm]:
        depth, part = len(self.blocks), 1 / (1 + len(powers))
        yield TiltedTerm(("plain", 0), depth, -1, 0, 0, part)
        for power in powers:
            found = [[each for each in terms if each.log_norm > -math.inf] for terms in self._terms(power)]
            kept = [terms for terms in found if terms]
            for terms in kept:
                largest = max(each.log_norm for each in terms)
                if abs(largest) > _FURTHEST:
                    raise FinwidthError(
                        "the terms of the kernel leave a double's range; rescale the input, or take smaller gains or "
                        "fewer blocks"
                    )
                norms = [math.exp(each.log_norm - largest) for each in terms]
                for each, norm in zip(terms, norms, strict=True):
                    share = part / len(kept) * norm / sum(norms)
                    if share and each.log_norm > -_FURTHEST:
                        yield TiltedTerm(each.name, each.cut, each.inside, each.below, each.above, share, each.log_norm)

    def _terms(self, power: int) -> tuple[list[TiltedTerm], list[TiltedTerm]]:
        """The terms of K_w and those of K_b that vary, with their norms."""
        depth = len(self.blocks)
        along = [tilt.log_mean[power, False] for tilt in self.tilts]
        start = power * _log_of(self.stem.v * self.norm) + math.log(rising(self.width, power))
        end = power * _log_of(self.head.v) + math.log(rising(self.width, power))
        R = np.concatenate([[0.0], np.cumsum(along)]) + start
        G = np.concatenate([np.cumsum(along[::-1])[::-1], [0.0]]) + end

        def term(name: str, i: int, cut: int, factor: float, logs: float, *, inside: bool, below: bool) -> TiltedTerm:
            norm = (power * _log_of(factor) + logs) / power
            above = 0 if name == "head" else power
            return TiltedTerm((name, i), cut, i if inside else -1, power * below, above, 0.0, norm)

        weights = [
            term("stem", 0, 0, self.stem.c * self.norm, G[0], inside=False, below=False),
            term("head", 0, depth, self.head.c, R[-1], inside=False, below=True),
        ]
        biases = [term("stem bias", 0, 0, self.stem.e, G[0], inside=False, below=False)]
        for i, (block, tilt) in enumerate(zip(self.blocks, self.tilts, strict=True)):
            S, b2, V, W = tilt.log_mean[power, True], block.b**2, block.V, block.W
            weights += [
                term("V", i, i, V.c * b2 * W.v, R[i] + G[i + 1] + S, inside=True, below=True),
                term("W", i, i + 1, W.c * b2 * V.v, R[i] + G[i + 1] + S, inside=True, below=True),
            ]
            biases += [
                term("V bias", i, i, V.e * b2 * W.v, G[i + 1] + S, inside=True, below=False),
                term("W bias", i, i + 1, W.e * b2, G[i + 1], inside=False, below=False),
            ]
        return weights, biases

    def draw_weighted(self, rng: Variates, draws: int) -> Columns:
        """``draws`` draws: output, K_w, K_b, K, dK and ``weight``, the density of the plain law against the mixture."""
        spaced = (np.arange(draws) + rng.rng.random()) / draws * self._reached[-1]
        law = np.minimum(np.searchsorted(self._reached, spaced, side="right"), len(self.laws) - 1)
        with np.errstate(all="ignore"):  # the caller sees to overflow
            passed, R, N, (nu, rho) = self.both_passes(law, rng)
            square = nu * nu + rho * rho
            K_w, K_b, density = self._kernel(passed, R, square)
            dK, _ = self._tangent(passed, R, (nu, nu, rho), rng)
            output = times_power_of_two(N, self.exponent)
            K_w, dK = (times_power_of_two(each, 2 * self.exponent) for each in (K_w, dK + 0.0))
            return {"output": output, "K_w": K_w, "K_b": K_b, "K": K_w + K_b, "dK": dK, "weight": 1 / density}

    def _kernel(self, passed: list[BlockState], R: FloatArray, square: FloatArray) -> tuple[FloatArray, ...]:
        """K_w, K_b and the density of the mixture against the plain law."""
        zero = np.zeros_like(R)
        K_w, K_b, density = zero, zero + self.head.e, zero + 1 / (1 + len({law.power for law in self.laws} - {0}))

        def add(name: str, i: int, value: FloatArray) -> FloatArray:
            nonlocal density
            for share, inverse, power in self._factors.get((name, i), ()):
                density = density + share * (value * inverse) ** power
            return value

        for i, (block, at) in enumerate(zip(self.blocks, passed, strict=True)):
            outer = block.b**2 * at.square
            K_w = K_w + add("V", i, block.V.c * at.U2 * at.J2) + add("W", i, block.W.c * at.U2 * at.Z * outer)
            K_b = K_b + add("V bias", i, block.V.e * at.J2) + add("W bias", i, block.W.e * outer)
        K_w = K_w + add("stem", 0, self.stem.c * self.norm * square) + add("head", 0, self.head.c * R)
        return K_w, K_b + add("stem bias", 0, self.stem.e * square), density

    def both_passes(
        self, law: _Indices, rng: Variates
    ) -> tuple[list[BlockState], FloatArray, FloatArray, tuple[FloatArray, FloatArray]]:
        """The blocks, |x_L|^2, N, and the two parts of G at the stem's output, of draws from these laws in order."""
        draws, depth = len(law), len(self.blocks)
        upper = np.searchsorted(self._cut[law], np.arange(depth), side="right")  # draws for which a block is above
        head = np.sqrt(self.head.v * rng.chi_square(self.width + 2.0 * self._powers_above[law]))
        length = head.copy()
        pulled: list[_Pulled] = []
        for i, k in zip(reversed(range(depth)), reversed(upper), strict=True):
            down, length[:k] = self._pull(i, length[:k].copy(), law[:k], rng)
            pulled.append(down)
        R = self.norm * self.stem.v * rng.chi_square(self.width + 2.0 * self._powers_below[law])
        # Where the two meet, the angle of x and G is that of any two directions.
        _, *angle = polar(rng.standard_normal(draws), np.sqrt(self._chi_square(rng, draws, 1)))
        nu, rho = (length * each for each in angle)
        towards = np.stack(angle)
        uppers, passed = [], []
        for i, k in enumerate(upper):
            above, towards[:, :k] = self._push(self.blocks[i], pulled.pop(), towards[:, :k], R[:k], rng)
            passed.append(self._along_x(i, R[k:], law[k:], rng))
            uppers.append(above)
            R = R * np.concatenate([above.step, passed[i].step]) ** 2
        for i, k in zip(reversed(range(depth)), reversed(upper), strict=True):
            below = passed[i]
            below.F, rho[k:] = self._block_down(self.blocks[i], below, nu[k:].copy(), rho[k:].copy(), rng)
            nu[k:] = below.F
            passed[i] = _joined(uppers.pop(), below)
        return passed, R, np.sqrt(R) * head * towards[0], (nu, rho)

    def _modes(self, i: int, law: _Indices, powers: _Indices) -> _Indices:
        """How block ``i`` is drawn under these laws."""
        tilt = self.tilts[i]
        table = np.zeros((2, 1 + max(power for power, _ in tilt.modes)), dtype=np.int64)
        for (power, half), mode in tilt.modes.items():
            table[int(half), power] = mode
        inside = self._inside[law] == i
        modes: _Indices = np.where(inside, table[1, self._powers_above[law]], table[0, powers[law]])
        return modes

    def _along_x(self, i: int, R: FloatArray, law: _Indices, rng: Variates) -> BlockState:
        """Block ``i`` below the terms of these laws, from its input up."""
        block, drawn = self.blocks[i], self.tilts[i].draw(self._modes(i, law, self._powers_below), rng)
        slopes = np.array(self.slopes)[:, None]
        z = slopes * np.sqrt(block.V.v * drawn.chi)
        Z = (z * z).sum(0)
        h = np.sqrt(block.W.v * Z)
        h_along, h_across = h * drawn.g, h * np.sqrt(drawn.across)
        return self._record(block, R, drawn.counts, z, (h_along, h_across))

    def _record(
        self, block: BlockNumbers, R: FloatArray, counts: FloatArray, z: FloatArray, h: tuple[FloatArray, FloatArray]
    ) -> BlockState:
        """What the pass along x keeps of a block without random biases."""
        step, cos, sin = polar(block.a + block.b * h[0], block.b * h[1])
        return BlockState(
            U2=R, along=1.0, share=0.0, length=1.0, slopes=np.array(self.slopes)[:, None], counts=counts, z=z,
            Z=(z * z).sum(0), Z1=(z * z).sum(0), W_share=0.0, h=h, cos=cos, sin=sin, step=step, grown=step,
        )  # fmt: skip

    def _pull(self, i: int, length: FloatArray, law: _Indices, rng: Variates) -> tuple[_Pulled, FloatArray]:
        """Block ``i`` above the terms of these laws, from its output down, and |G| below it."""
        block, drawn = self.blocks[i], self.tilts[i].draw(self._modes(i, law, self._powers_above), rng)
        p = length * np.sqrt(block.W.v * drawn.chi)
        hidden = np.sqrt(np.square(np.array(self.slopes)[:, None] * p).sum(0))
        u = math.sqrt(block.V.v) * drawn.g, np.sqrt(block.V.v * drawn.across)
        below, cos, sin = polar(block.a * length + block.b * hidden * u[0], block.b * hidden * u[1])
        return _Pulled(length, drawn.counts, p, u, hidden, cos, sin), below

    def _push(
        self, block: BlockNumbers, down: _Pulled, towards: FloatArray, R: FloatArray, rng: Variates
    ) -> tuple[BlockState, FloatArray]:
        """A block that was drawn along G' first, now from its input up: its record in the frame of x.

        ``towards``: the parts of the unit vector x along G and across it; the same above the block comes back. Vectors
        of the stream have four coordinates: along G', along the rest of q, of x and of h.
        """
        draws, slopes, counts = len(R), np.array(self.slopes)[:, None], down.counts
        _, t, out = polar(rng.standard_normal(draws), np.sqrt(self._chi_square(rng, draws, 2)))
        along, across = towards
        zero = np.zeros(draws)
        x = [along * down.cos - across * t * down.sin, along * down.sin + across * t * down.cos, across * out, zero]
        p, z = self._met_hidden(block, down, down.u[0] * x[0] + down.u[1] * x[1], rng)
        Z = (z * z).sum(0)
        noise = np.sqrt(block.W.v * Z)
        h = [
            over((p[: len(slopes)] * z).sum(0), down.length),
            noise * self._normal(rng, draws, 2),
            noise * self._normal(rng, draws, 3),
            noise * np.sqrt(self._chi_square(rng, draws, 3)),
        ]
        first, *rest = (block.a * own + block.b * new for own, new in zip(x, h, strict=True))
        _, *above = polar(first, np.sqrt(sum(np.square(each) for each in rest)))
        g, q = [down.length, zero, zero, zero], [block.b * down.hidden * each for each in down.u] + [zero, zero]
        self._turn_to(x, h, g, q)
        at = self._record(block, R, counts, z, (h[0], h[1]))
        rho, *turn = polar(at.cos * g[1] - at.sin * g[0], g[2])
        nu = at.cos * g[0] + at.sin * g[1]
        J = block.b * np.concatenate([slopes, slopes]) * p
        at.above, at.square, at.turn = (nu, rho), np.square(down.length), (turn[0], turn[1])
        at.p, at.J, at.J2, at.q = p, J, np.square(block.b * down.hidden), (q[1], q[2], np.abs(q[3]))
        self._across_below(block, at, at.q, g[1], g[2])
        at.F = at.step * nu
        return at, np.stack(above)

    def _met_hidden(
        self, block: BlockNumbers, down: _Pulled, along: FloatArray, rng: Variates
    ) -> tuple[FloatArray, FloatArray]:
        """The parts of p in the frame of y, and z by groups: V is met along x, when it has been met along D p."""
        slopes, counts = np.array(self.slopes)[:, None], down.counts
        unit = over(slopes * down.p, down.hidden)
        y = along * unit
        if len(slopes) == 2:
            across = math.sqrt(block.V.v) * rng.standard_normal(len(along))
            y = y + across * np.stack([-unit[1], unit[0]]) * (counts >= 1)
        length, cos, sin = polar(y, np.sqrt(block.V.v * rng.chi_square(counts, less=1)))
        return np.concatenate([down.p * cos, down.p * sin]), slopes * length

    @staticmethod
    def _turn_to(x: list[FloatArray], h: list[FloatArray], g: list[FloatArray], q: list[FloatArray]) -> None:
        """Turn the four vectors, in place, so that each has no coordinates but those of the ones before and one."""
        for place, vector in ((1, x), (0, x), (2, h), (1, h), (2, g)):
            _, cos, sin = polar(vector[place], vector[place + 1])
            for each in (x, h, g, q):
                one, other = each[place], each[place + 1]
                each[place], each[place + 1] = cos * one + sin * other, cos * other - sin * one


def _log_of(value: float) -> float:
    return math.log(value) if value > 0 else -math.inf


def _joined(one: BlockState, other: BlockState) -> BlockState:
    """One record of the draws of two."""

    def join(first: Array, second: Array) -> Array:
        if isinstance(first, tuple):
            return tuple(map(join, first, second))
        by_draw = isinstance(first, np.ndarray) and first.shape[-1:] != (1,)  # slopes are the same for all
        return np.concatenate([first, second], axis=-1) if by_draw else first

    names = [each.name for each in fields(BlockState)]
    return BlockState(*(join(getattr(one, name), getattr(other, name)) for name in names))


class ResNetByImportance(ResNetAtOneInput):
    """Draws of a residual network with a ``weight``: the mean of weight x quantity is the quantity's mean."""

    verb = "drawing in proportion"

    def __init__(self, net: ResNet, x: Vector) -> None:
        super().__init__(net, x)
        if not self.norm:
            raise FinwidthError("at the input zero the kernel is the same in every draw: there is nothing to tilt")
        self.mixture = ResidualMixture(net, self.norm, self.exponent)

    @staticmethod
    def unsupported(net: ResNet) -> list[str]:
        """Reasons why there are no such draws of this network."""
        reasons = ResNetAtOneInput.unsupported(net) or not_normalised(net)
        if not reasons and net.random_bias:
            reasons = ["tilted draws need zero initial biases"]
        if not reasons and net.outlived:
            reasons = ["tilted draws need a skip in every block below trained biases"]
        return reasons

    def memory(self, draws: int) -> int:
        """Bytes that so many draws made at once need at their peak."""
        return 5 * super().memory(draws) // 4  # two records of some blocks

    def draw(self, chunk: Chunk) -> Columns:
        """The draws of a chunk: output, K_w, K_b, K, dK and weight, shape (draws,) each."""
        return self.mixture.draw_weighted(Variates(chunk.stream()), chunk.draws)

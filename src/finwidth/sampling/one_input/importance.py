r"""Means of K, K^2 and Delta K by importance sampling: networks are drawn in proportion to what they contribute.

Read from the top down, the norm chain (`norm_chain`) is a linear recursion whose terms are never negative
(docs/theory/importance.md). With tau_i = sum_{j>i} c_j R_{j-1} S_j / R_i, b_i = sum_{i<j<d} e_j S_j and the state
s_i = (Q_i, S_{i+1}, tau_i, b_i) of a network that lives::

    S_i = Q_i + v_{i+1} chi'_i S_{i+1},   tau_{i-1} = c_i S_i + v_i chi_i tau_i,   Q_{i-1} = v_i chi_i Q_i
    s_{i-1} = (A_0 + chi_i A_1 + chi'_i A_2) s_i,   K_w = |x|^2 tau_0,   K_b = b_0 + e_d

So for g = tau_0 + r b_0 the mean of g^p given s_i is a form of degree p in s_i, and under the law weighted by g^p each
layer is drawn from a mixture of the laws weighted by chi^a chi'^b, a + b <= p: larger shapes of the gammas, and coins
weighted by E[chi^a chi'^b | m].  A third of the draws each follows the plain law, that weighted by g and that weighted
by g^2; the weight 1/(1/3 + g/(3 E g) + g^2/(3 E g^2)) makes their averages those of the plain law.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from finwidth import arguments
from finwidth.errors import FinwidthError
from finwidth.networks.description import Network
from finwidth.networks.inputs import Vector
from finwidth.networks.laws import FloatArray
from finwidth.networks.mlp import MLP
from finwidth.networks.resnet import ResNet
from finwidth.networks.routes import algorithm, check_supported, not_normalised, unsupported_by
from finwidth.quantities import Estimate
from finwidth.sampling.one_input.norm_chain import NormChain, Workspace, plain_relu
from finwidth.sampling.one_input.residual_importance import ResNetByImportance
from finwidth.sampling.one_input.sample import AtOneInput, MLPAtOneInput
from finwidth.sampling.random.variates import Variates
from finwidth.sampling.sampler import Chunk, Columns, Sampler, draw_chunks
from finwidth.sampling.statistics.estimates import MomentAccumulators

# (a, b) of the weights chi^a chi'^b, by the power p of g.
EXPONENTS = {1: ((0, 0), (1, 0), (0, 1)), 2: ((0, 0), (1, 0), (0, 1), (2, 0), (1, 1), (0, 2))}


class MLPByImportance(MLPAtOneInput):
    """Draws of a ReLU network with a ``weight``: the mean of weight x quantity is the quantity's mean."""

    verb = "drawing in proportion"

    def __init__(self, net: MLP, x: Vector) -> None:
        super().__init__(net, x)
        if not self.norm:
            raise FinwidthError("at the input zero the kernel is the same in every draw: there is nothing to tilt")
        self.mixture = Mixture(net, self.exponent)

    @staticmethod
    def unsupported(net: MLP) -> list[str]:
        """Reasons why there are no such draws of this network."""
        reasons = MLPAtOneInput.unsupported(net) or not_normalised(net)
        if not reasons and not (plain_relu(net) and net.widths[-1] == 1):
            reasons = ["tilted draws need ReLU, zero initial biases and one output"]
        return reasons

    def draw(self, chunk: Chunk) -> Columns:
        """The draws of a chunk: output, K_w, K_b, K, dK and weight, shape (draws,) each."""
        return self.mixture.draw(self.norm, Variates(chunk.stream()), chunk.draws)


SAMPLERS: dict[type, type[AtOneInput]] = {MLP: MLPByImportance, ResNet: ResNetByImportance}


def unsupported(net: Network) -> list[str]:
    """Reasons why `importance_estimates` does not serve this network; none if it does."""
    return unsupported_by(SAMPLERS, net)


def importance_sampler(net: Network, x: Vector) -> Sampler:
    """What draws a network at one input in proportion to its kernel; raises FinwidthError unless something does."""
    check_supported("finwidth.sample", net)
    if reasons := unsupported(net):
        raise FinwidthError(
            f"{'; '.join(reasons)}; other two-slope networks are drawn without a tilt (finwidth.sample)"
        )
    return algorithm(SAMPLERS, net)(net, x)


def importance_estimates(
    net: Network,
    x: Vector,
    draws: int,
    seed: int = 0,
    *,
    exact: dict[str, float] | None = None,
    threads: int | None = None,
    progress: Callable[[int], object] | None = None,
) -> dict[str, Estimate]:
    """Estimates of the means of K, K_w, K_b, their squares and product, and dK that hold for any depth and width.

    Parameters
    ----------
    net, x
        An `MLP` with ReLU, or a `ResNet`, with Gaussian weights, initial biases zero and one output; one input, shape
        (n_0,).
    draws, seed, threads, progress
        As in `finwidth.sample`; as many draws are made, with weights.
    exact
        Exact values by name, for the verdicts.

    Returns
    -------
    dict
        `Estimate` by name, as `finwidth.quantities.DRAWN` lists. The relative standard error of K_w and K_b is at most
        sqrt(6/draws), that of K_w^2 and K_b^2 of an `MLP` at most sqrt(12/draws), whatever the network; that of K_w^2
        of a `ResNet` with ReLU at most sqrt(18 (1 + 5/m)/draws), m the hidden width (docs/theory/importance.md).

    Raises
    ------
    FinwidthError
        If an argument is not allowed, the network is not one that is drawn so, or a double overflows.

    Examples
    --------
    >>> from finwidth import MLP, moments
    >>> from finwidth.sampling.one_input.importance import importance_estimates
    >>> net = MLP([3, *[5] * 15, 1])    # the sum of 1/n_i is 3
    >>> exact = moments(net, [1, 2, 2])
    >>> found = importance_estimates(net, [1, 2, 2], draws=60_000)
    >>> abs(found["K^2"].value / exact.second_moment - 1) < 0.02, found["K^2"].trust
    (True, True)
    """
    given = {} if exact is None else arguments.table("exact", exact, "exact values by name, such as {'K': 9.5}")
    known = {name: arguments.real(f"exact[{name!r}]", each, "a number", _is_number) for name, each in given.items()}
    totals = MomentAccumulators()
    for drawn in draw_chunks(importance_sampler(net, x), draws, seed, threads=threads, progress=progress):
        totals.add(drawn)
    return totals.estimates(known)


def _is_number(value: float) -> bool:
    """Infinite ones are past a double's range."""
    return not math.isnan(value)


@dataclass(frozen=True)
class Tilt:
    """The law weighted by (tau_0 + ratio b_0)^power; see the module's docstring."""

    power: int
    ratio: float
    log_mean: float  # of (tau_0 + ratio b_0)^power
    top: FloatArray  # of the weights z^(2k), k = 0, ..., power
    layers: list[FloatArray]  # per hidden layer, forms in s_i of the weights of EXPONENTS: (terms, 4) or (terms, 4, 4)

    def log_density(self, K_w: FloatArray, K_b: FloatArray, norm: float) -> FloatArray:
        """The logarithm of the density against the plain law, given K_w and the hidden layers' K_b."""
        with np.errstate(divide="ignore"):
            log_density: FloatArray = self.power * np.log(K_w / norm + self.ratio * K_b) - self.log_mean
        return log_density


def make_tilts(net: MLP) -> tuple[Tilt, ...]:
    """The tilts by g and by g^2, where g balances the two parts of the kernel by their own moments of that order."""
    found = []
    for power in (1, 2):
        weights, biases = (_tilt(net, power, g).log_mean / power for g in ((0.0, 0.0, 1.0, 0.0), (0.0, 0.0, 0.0, 1.0)))
        ratio = math.exp(min(weights - biases, 700)) if biases > -math.inf else 0.0
        found.append(_tilt(net, power, (0.0, 0.0, 1.0, ratio)))
    return tuple(found)


def _tilt(net: MLP, power: int, g: tuple[float, ...]) -> Tilt:
    form = np.array(g) if power == 1 else np.outer(g, g)
    log_scale, layers = 0.0, []
    for i in range(net.depth - 1):
        moments = _chi_square_moments(net.widths[i + 1])
        terms = np.stack([moments[ab] * part for ab, part in _pulled_back(form, _recursion(net, i)).items()])
        form = terms.sum(0)
        largest = form.max()
        if largest > 0:
            form, terms, log_scale = form / largest, terms / largest, log_scale + math.log(largest)
        layers.append(terms)
    last = net.layers[-1]
    u = [
        np.array([0.0, 1.0, float(last.weight_multiplier), 0.0]),
        np.array([float(last.weight_variance), 0.0, 0.0, 0.0]),
    ]
    if power == 1:
        top = np.array([form @ u[0], form @ u[1]])
    else:
        top = np.array([u[0] @ form @ u[0], 2 * u[0] @ form @ u[1], 3 * u[1] @ form @ u[1]])  # E z^4 = 3
    mean = float(top.sum())
    return Tilt(power, g[3], log_scale + math.log(mean) if mean else -math.inf, top, layers)


def _recursion(net: MLP, i: int) -> tuple[FloatArray, FloatArray, FloatArray]:
    """A_0, A_1 and A_2 of hidden layer ``i`` (from 0)."""
    layer, v_above = net.layers[i], float(net.layers[i + 1].weight_variance)
    v, c, e = (float(each) for each in (layer.weight_variance, layer.weight_multiplier, layer.bias_multiplier))
    of_S = np.array([0.0, 1.0, c, e])  # what S_i adds to the new state
    keep = np.zeros((4, 4))
    keep[:, 0], keep[3, 3] = of_S, 1
    through = np.diag([v, 0.0, v, 0.0])
    fresh = np.zeros((4, 4))
    fresh[:, 1] = v_above * of_S
    return keep, through, fresh


def _pulled_back(form: FloatArray, recursion: tuple[FloatArray, ...]) -> dict[tuple[int, int], FloatArray]:
    """The form of the new state as forms of the old one, by the powers of chi and chi' that they go with."""
    keep, through, fresh = recursion
    if form.ndim == 1:
        return {(0, 0): form @ keep, (1, 0): form @ through, (0, 1): form @ fresh}
    both = {(j, k): a.T @ form @ b for j, a in enumerate(recursion) for k, b in enumerate(recursion)}
    return {
        (0, 0): both[0, 0],
        (1, 0): both[0, 1] + both[1, 0],
        (0, 1): both[0, 2] + both[2, 0],
        (2, 0): both[1, 1],
        (1, 1): both[1, 2] + both[2, 1],
        (0, 2): both[2, 2],
    }


def _chi_square_moments(n: int) -> dict[tuple[int, int], float]:
    """E[chi^a chi'^b; m >= 1] for m ~ Binomial(n, 1/2), chi ~ chi2(m), chi' ~ chi2(m - 1)."""
    alive = 1 - 2.0**-n
    return {
        (0, 0): alive,
        (1, 0): n / 2,
        (0, 1): n / 2 - alive,
        (2, 0): n * (n + 5) / 4,
        (1, 1): n * (n - 1) / 4,
        (0, 2): n * (n + 1) / 4 - alive,
    }


def weighted_coins(rng: np.random.Generator, n: int, a: FloatArray, b: FloatArray) -> FloatArray:
    """Numbers of heads m >= 1 among n fair coins, weighted by E[chi^a chi'^b | m].

    The weights are m^(a) (m - 1)^(b) with x^(1) = x and x^(2) = x (x + 2).  Weighting by m, or by m (m - 1), makes one
    coin, or two, fall heads for certain; m (m + 2) = m (m - 1) + 3 m; and m - 1 and m^2 - 1 are shares of m and m^2.
    """
    m = np.zeros(len(a))
    left = np.arange(len(a))
    while len(left):
        a_left, b_left = a[left], b[left]
        certain = a_left + b_left
        # Two coins of m^2 = m (m - 1) + m, or of m (m + 2); one otherwise.
        two = np.where(a_left == 2, (n - 1) / (n + 5), np.where(b_left == 2, (n - 1) / (n + 1), 1.0))
        certain = np.where((certain == 2) & (rng.random(len(left)) >= two), 1, certain)
        m[left] = drawn = certain + rng.binomial(n - certain.astype(np.int64), 0.5)
        share = np.where((a_left == 1) | (b_left == 0), drawn >= 1, 1 - np.maximum(drawn, 1.0) ** -b_left)
        left = left[rng.random(len(left)) >= share]
    return m


class TiltedChain(NormChain):
    """The norm chain with its numbers drawn from the law weighted by g^p."""

    def __init__(self, net: MLP, tilt: Tilt, exponent: int = 0) -> None:
        super().__init__(net, exponent)
        self.tilt = tilt
        self._recursions = [_recursion(net, i) for i in range(net.depth - 1)]
        self._start = np.array([0.0, 1.0, self.weight_multiplier[-1], 0.0])

    def _draw(self, variates: Variates, work: Workspace) -> FloatArray:
        rng, draws = variates.rng, work.kappa.shape[1]
        k = _choose_terms(rng, np.repeat(self.tilt.top[:, None], draws, axis=1))
        square = 2 * rng.standard_gamma(0.5 + k)
        z: FloatArray = np.sqrt(square) * np.where(rng.random(draws) < 0.5, -1.0, 1.0)
        state = np.repeat(self._start[:, None], draws, axis=1)
        state[0] = self.variance[-1] * square
        exponents = np.array(EXPONENTS[self.tilt.power], dtype=np.float64)
        for i in reversed(range(len(work.chi))):
            a, b = exponents[_choose_terms(rng, _form_values(self.tilt.layers[i], state))].T
            m = work.share[i]
            m[:] = weighted_coins(rng, self.widths[i + 1], a, b)
            work.paired[i] = m >= 2
            chi, fresh = 2 * rng.standard_gamma(m / 2 + a), 2 * rng.standard_gamma((m - 1) / 2 + b)
            np.multiply(chi, self.variance[i], out=work.chi[i])
            np.multiply(fresh, self.variance[i + 1], out=work.zeta[i])
            variates.chi_square(m, less=2, out=work.rest[i])
            keep, through, new = self._recursions[i]
            state = keep @ state + chi * (through @ state) + fresh * (new @ state)
            state /= state.max(axis=0)  # only its direction counts
        return z


def _form_values(forms: FloatArray, state: FloatArray) -> FloatArray:
    """Linear or quadratic forms at the states of all draws: shape (terms, draws)."""
    if forms.ndim == 2:
        return forms @ state
    values: FloatArray = (np.tensordot(forms, state, axes=1) * state).sum(1)
    return values


def _choose_terms(rng: np.random.Generator, weights: FloatArray) -> npt.NDArray[np.int64]:
    """For each draw one of the terms, with probability in proportion to its weight, shape (terms, draws)."""
    reached = np.cumsum(weights, axis=0)
    chosen: npt.NDArray[np.int64] = (rng.random(weights.shape[1]) * reached[-1] >= reached[:-1]).sum(axis=0)
    return chosen


class Mixture:
    """Draws from the plain law and its tilts in equal parts, each with its weight."""

    def __init__(self, net: MLP, exponent: int = 0) -> None:
        self.tilts = make_tilts(net)
        self.chains = [NormChain(net, exponent), *(TiltedChain(net, tilt, exponent) for tilt in self.tilts)]
        self._output_bias = float(net.layers[-1].bias_multiplier)

    def draw(self, norm: float, variates: Variates, draws: int) -> dict[str, FloatArray]:
        """Draws as of `NormChain`, and their ``weight``: the density of the plain law against the mixture."""
        share = draws // len(self.chains)
        parts = [draws - share * len(self.tilts), *[share] * len(self.tilts)]
        drawn = [chain.at_unit(norm, variates, part) for chain, part in zip(self.chains, parts, strict=True) if part]
        joined = {name: np.concatenate([each[name] for each in drawn]) for name in drawn[0]}
        log_mixture = np.full(draws, math.log(parts[0] / draws))
        for tilt, part in zip(self.tilts, parts[1:], strict=True):
            if part:
                K_b = np.maximum(joined["K_b"] - self._output_bias, 0)
                log_density = tilt.log_density(joined["K_w"], K_b, norm)
                with np.errstate(invalid="ignore"):  # the caller sees to overflow
                    log_mixture = np.logaddexp(log_mixture, math.log(part / draws) + log_density)
        return self.chains[0].scaled(joined) | {"weight": np.exp(-log_mixture)}

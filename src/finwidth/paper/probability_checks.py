"""Proposition 10, by exact expectations, and Lemma 11, on drawn networks."""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction

import numpy as np

from finwidth.empirical.reference.brute_force import draw_networks
from finwidth.networks.laws import WeightLaw
from finwidth.networks.mlp import MLP
from finwidth.networks.widths import format_widths
from finwidth.paper.records import Statement

_SEED = 20200426
_FALSE_ALARM = 5e-10  # the share of one comparison in the 10^-6 of the whole test suite

# Proposition 10


@dataclass(frozen=True)
class Chain:
    """The parameters of Z = prod_i alpha_i^{X_i} gamma_i^{X_{i-1} X_i} K_i^{Y_i}, with X_0 = 0."""

    p: Sequence[Fraction]
    q: Sequence[Fraction]
    alpha: Sequence[Fraction]
    gamma: Sequence[Fraction]
    K: Sequence[Fraction]

    def __len__(self) -> int:
        return len(self.p)

    def mean(self) -> Fraction:
        """E[Z], by the chain of X_i: partial products of Z on the event A_i, and off it."""
        happened, not_happened = Fraction(0), Fraction(1)
        for p, q, alpha, gamma, K in zip(self.p, self.q, self.alpha, self.gamma, self.K, strict=True):
            happened, not_happened = (
                p * alpha * (happened * gamma + not_happened),
                (happened + not_happened) * (1 - p - q + q * K),
            )
        return happened + not_happened

    def mean_by_listing(self) -> Fraction:
        """E[Z], by all 3^d outcomes: A_i, B_i or neither."""
        outcomes = [("", Fraction(1))]  # with probability times Z
        for i, (p, q) in enumerate(zip(self.p, self.q, strict=True)):
            event = {"A": p * self.alpha[i], "B": q * self.K[i], "-": 1 - p - q}
            twice = event["A"] * self.gamma[i]
            outcomes = [
                (seen + name, value * (twice if name == "A" and seen.endswith("A") else event[name]))
                for seen, value in outcomes
                for name in event
            ]
        return sum((value for _, value in outcomes), Fraction(0))

    def upper(self, slope: int = 1) -> Fraction:
        """The upper bound (all gamma_i >= 1); ``slope`` multiplies p_i (alpha_i - 1), 1 in the paper."""
        bound = Fraction(1)
        for i in range(len(self)):
            factor = 1 + slope * self.p[i] * (self.alpha[i] - 1) + self.q[i] * (self.K[i] - 1)
            if i:
                both = self.p[i] * self.p[i - 1] * self.alpha[i] * self.alpha[i - 1]
                factor += both * self.gamma[i - 1] * (self.gamma[i] - 1)
            bound *= factor
        return bound

    def lower_factors(self, slope: int = 1) -> list[Fraction]:
        """The factors of the lower bound (all gamma_i <= 1)."""
        factors = []
        for i in range(len(self)):
            factor = 1 + slope * self.p[i] * (self.alpha[i] - 1)
            if i:
                factor += self.p[i] * self.p[i - 1] * self.alpha[i] * self.alpha[i - 1] * (self.gamma[i] - 1)
            factors.append(factor)
        return factors

    def lower(self, slope: int = 1) -> Fraction:
        """The lower bound."""
        return math.prod(self.lower_factors(slope), start=Fraction(1))

    def factors(self) -> list[Fraction]:
        """Factors of a bound that needs only gamma_i >= 1 for all i (upper) or <= 1 (lower); none is negative.

        The printed factors with p_{i-1} alpha_{i-1}, gamma_{i-1} too if that is above 1, over what it and the other
        outcomes of step i - 1 bring together.
        """
        found, share = [], Fraction(0)
        for p, q, alpha, gamma, K in zip(self.p, self.q, self.alpha, self.gamma, self.K, strict=True):
            found.append(1 + p * (alpha - 1) + q * (K - 1) + p * alpha * (gamma - 1) * share)
            most, rest = p * alpha * max(gamma, Fraction(1)), 1 - p - q + q * K
            share = most / (most + rest) if most else Fraction(0)
        return found


def random_chain(rng: random.Random, *, growing: bool, small: bool = False) -> Chain:
    """Random parameters: gamma_i >= 1 if ``growing``, else <= 1; large and small ones, and p_i up to 1.

    alpha_i and K_i are 1 or more, or with ``small`` any positive numbers.
    """
    d = rng.randint(1, 6)

    def unit() -> Fraction:
        return Fraction(rng.randint(0, 12), 12) ** rng.choice((1, 1, 3))

    p = [unit() for _ in range(d)]
    q = [(1 - each) * unit() for each in p]
    above = [[1 + Fraction(rng.randint(0, 20), rng.choice((1, 4, 20))) for _ in range(d)] for _ in range(3)]
    gamma = above[2] if growing else [max(unit(), Fraction(1, 100)) for _ in range(d)]
    if small:
        above = [[rng.choice((each, 1 / each)) for each in some] for some in above]
    return Chain(p, q, above[0], gamma, above[1])


def counterexample() -> Chain:
    """Three certain events, alpha = 10, gamma = 1/100: E[Z] = 1/10, while two factors of the bound are -89."""
    one, ten = [Fraction(1)] * 3, [Fraction(10)] * 3
    return Chain(one, [Fraction(0)] * 3, ten, [Fraction(1, 100)] * 3, one)


def small_factor(gamma: Fraction) -> Chain:
    """Two certain events, alpha = 1/10 and 1: E[Z] = gamma_2 / 10, which neither product bounds."""
    one = [Fraction(1)] * 2
    return Chain(one, [Fraction(0)] * 2, [Fraction(1, 10), Fraction(1)], [Fraction(1), gamma], one)


def proposition_10(slope: int = 1, chains: int = 400) -> Statement:
    r"""Proposition 10: E[Z] between products over i of what one step contributes.

    Let Z_i be the product up to i, m = E[Z_{i-1}] and h = E[Z_{i-1} X_{i-1}].  Step i is independent of what was, so

        E[Z_i] = (1 + p_i (alpha_i - 1) + q_i (K_i - 1)) m + p_i alpha_i (gamma_i - 1) h .

    It remains to bound h.  Write p, q, alpha, gamma, K for the numbers of step i - 1, m' and h' for m and h before it;
    then h = p alpha (m' + (gamma - 1) h'), 0 <= h' <= m', and m - h = (1 - p - q + q K) m'.  So for all alpha, K >= 0,

        h <= g m / (g + 1 - p - q + q K) ,   g = p alpha max(gamma, 1) ,

    whose factors (`Chain.factors`) are not negative, so that their product bounds E[Z].  If alpha, K >= 1 the divisor
    is at least p + 1 - p = 1, and h <= g m: the printed factors f_i (the lower ones leave out q_i (K_i - 1) >= 0).  The
    printed upper bound then holds; of the lower one every step does, E[Z_i] >= f_i E[Z_{i-1}], and the product where no
    f_i is negative.  With alpha < 1 both fail (`small_factor`).
    """
    rng = random.Random(_SEED)
    rising = [random_chain(rng, growing=True) for _ in range(chains)]
    falling = [random_chain(rng, growing=False) for _ in range(chains)]
    agree = all(each.mean() == each.mean_by_listing() for each in (*rising, *falling) if len(each) <= 5)
    above = all(each.mean() <= each.upper(slope) for each in rising)
    positive = [each for each in falling if min(each.lower_factors(slope)) >= 0]
    below = all(each.mean() >= each.lower(slope) for each in positive)
    failing = sum(each.mean() < each.lower(slope) for each in falling)
    any_rising = [random_chain(rng, growing=True, small=True) for _ in range(chains)]
    any_falling = [random_chain(rng, growing=False, small=True) for _ in range(chains)]
    mended = all(each.mean() <= math.prod(each.factors()) for each in (*rising, *any_rising))
    mended &= all(each.mean() >= math.prod(each.factors()) for each in (*falling, *any_falling))
    mended &= all(min(each.factors()) >= 0 for each in (*rising, *any_rising, *falling, *any_falling))
    apart = [each for each in any_falling if min(each.lower_factors(slope)) >= 0]
    return Statement(
        "proposition-10",
        "E[Z] of a product over a chain of independent events is at most (all gamma_i >= 1) or at least (all "
        "gamma_i <= 1) a product of one factor for each event.",
        "exact expectations, by a two-state chain and by listing all outcomes (equal), for random parameters in "
        "fractions",
        {
            "upper bounds tested": len(rising),
            "least slack of an upper bound": _slack([each.upper() / each.mean() for each in rising]),
            "lower bounds tested, factors not negative": len(positive),
            "least slack of a lower bound": _slack([each.mean() / each.lower() for each in positive if each.lower()]),
            "lower bounds that fail, some factors negative": failing,
            "upper bounds that fail of as many, alpha_i and K_i below 1 as well": sum(
                each.mean() > each.upper(slope) for each in any_rising
            ),
            "lower bounds that fail, alpha_i and K_i below 1 as well, factors not negative": sum(
                each.mean() < each.lower(slope) for each in apart
            ),
            "bounds tested that need none of this (finding 7)": 4 * chains,
        },
        agree and above and below and mended,
        "For alpha_i, K_i >= 1, and the lower bound for factors that are not negative, as they are for the small p_i "
        "of the paper's use (finding 7).",
    )


def _slack(ratios: Sequence[Fraction]) -> float:
    """The least relative gap of bounds that are not equalities."""
    return float(min((ratio - 1 for ratio in ratios if ratio != 1), default=Fraction(0)))


# Lemma 11

SIGNS = WeightLaw("signs", (1, 1, 1, 1), lambda rng, shape: rng.choice([-1.0, 1.0], shape))
_NARROW = (2, 3, 2, 2, 3, 1)


def lemma_11(laws: Sequence[str | WeightLaw] = ("gaussian", "uniform", "laplace"), networks: int = 20_000) -> Statement:
    """Lemma 11: with probability 1 a layer is entirely dead or no pre-activation is 0.

    The statement itself is about every drawn network.  The number of networks with a dead layer is binomial with the
    exact probability 1 - prod (1 - 2^{-n_i}), and must lie between its quantiles at _FALSE_ALARM/2 (for each law).
    """
    from scipy.special import bdtr

    dead_chance = float(1 - math.prod(1 - Fraction(1, 2**n) for n in _NARROW[1:-1]))
    at_most = bdtr(np.arange(networks), networks, dead_chance)  # the binomial law's probability of 0, 1, ... or fewer
    low, high = map(int, np.searchsorted(at_most, (_FALSE_ALARM / 2, 1 - _FALSE_ALARM / 2)))
    drawn = [_dead_and_partly(MLP(_NARROW, law), networks) for law in laws]
    _, partly_by_signs = _dead_and_partly(MLP(_NARROW, SIGNS), networks)
    return Statement(
        "lemma-11",
        "With probability 1 either some layer is entirely dead (y = 0) or no pre-activation is 0.",
        f"drawing {networks} networks {format_widths(_NARROW)} for each of {len(laws)} laws with a density; the number "
        f"with a dead layer is binomial with the exact probability (false-alarm rate {_FALSE_ALARM:g} for each law)",
        {
            "networks": networks * len(laws),
            "networks with some zeros in a layer, but not all": sum(partly for _, partly in drawn),
            "share with a dead layer, exact": dead_chance,
            "dead networks allowed, by law": f"{low} to {high}",
            "dead networks seen, by law": ", ".join(str(dead) for dead, _ in drawn),
            "weights of ±1, which have no density: some zeros, not all": partly_by_signs,
        },
        all(low <= dead <= high and not partly for dead, partly in drawn),
        "The density is needed: the last figure is for weights of ±1.",
    )


def _dead_and_partly(net: MLP, networks: int) -> tuple[int, int]:
    """Numbers of networks with a layer of zeros only, and with a layer of some zeros but not all."""
    weights, biases = draw_networks(net, networks, np.random.default_rng(_SEED))
    x = np.ones((networks, net.widths[0]))
    dead, partly = np.zeros(networks, dtype=np.bool_), np.zeros(networks, dtype=np.bool_)
    for weight, bias in zip(weights, biases, strict=True):
        y = np.einsum("bij,bj->bi", weight, x) + bias
        zeros = (y == 0).sum(axis=1)
        dead |= zeros == y.shape[1]
        partly |= (zeros > 0) & (zeros < y.shape[1])
        x = np.maximum(y, 0)
    return int(dead.sum()), int(partly.sum())

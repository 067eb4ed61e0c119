"""Where an exact computation and the paper differ: what is printed, what is exact, with numbers computed here."""

from __future__ import annotations

import math
from collections.abc import Callable
from fractions import Fraction

from finwidth.exact.bounds import bounds
from finwidth.exact.moments import moments
from finwidth.networks.mlp import MLP
from finwidth.paper.bias_checks import SMALL, bias_sums
from finwidth.paper.moment_checks import alive, equal_widths
from finwidth.paper.path_checks import names
from finwidth.paper.probability_checks import counterexample, small_factor
from finwidth.paper.records import Figure, Finding
from finwidth.sampling.training.train import train


def output_bias() -> Finding:
    """Finding 1."""
    net = MLP([16, *[64] * 8, 1])
    exact = moments(net, [1] * 16).K_b.mean
    return Finding(
        "The output bias has no gate",
        "E[K_b] = d/2 (Theorem 1, Proposition 4); the sum in Lemma 12 counts neurons with y_Z > 0, the output too.",
        "dN/db^(d) = 1 in every network, so E[K_b] = 1 + (d-1)/2 up to dead layers.",
        {"network": names([net]), "d/2": net.depth / 2, "E[K_b], exact": float(exact)},
        "The print is 1/2 too small if every bias of the definition is trained; relative to d it vanishes, and the "
        "second moments are right up to constants.",
    )


def dead_layers() -> Finding:
    """Finding 2."""
    figures: dict[str, Figure] = {}
    for n, depth in ((2, 9), (4, 33), (8, 513)):
        net = MLP([1, *[n] * (depth - 1), 1])
        exact = moments(net, [1.0]).K_b.mean
        figures[f"{names([net])}: E[K_b] exact, by the formula, d/2"] = (
            f"{float(exact):.4g}, {float(1 + alive(net) / 2):.4g}, {depth / 2:g}"
        )
    return Finding(
        "Dead layers silence the biases above them",
        "E[K_b] = d/2: each of the d layers contributes 1/2.",
        "A hidden bias of layer j has derivative 0 when a layer below is entirely dead: it contributes "
        "(1/2) prod_{i<j} (1 - 2^{-n_i}). Weights need no such factor.",
        figures,
        "Invisible for wide layers, where 2^{-n} is nothing; decisive for narrow deep ones.",
    )


def exponent_in_52() -> Finding:
    """Finding 3."""
    net = SMALL[0]
    exact = moments(net, [1] * net.widths[0], exact=True).K_b.second_moment
    return Finding(
        "The sign of the exponent in (52)",
        "Lemma 13 weighs a tuple with 2 to the power |Gamma(i)| - 2 at layer i.",
        "2^{2-|Gamma(i)|}, as in Lemma 7: gains 2 for two pairs, a coin for each neuron.",
        {
            "network": f"{names([net])}, Laplace weights",
            "E[K_b^2], exact": exact,
            "with 2^{2-|Gamma(i)|}": bias_sums(net, 1)[1],
            "with the printed sign": bias_sums(net, -1)[1],
        },
        "A misprint: Lemma 7, from which it follows, has the right sign.",
    )


def beta_counts_the_output() -> Finding:
    """Finding 4."""
    net = MLP([16, *[64] * 16, 1])
    found = bounds(net, [1.0] * 16)
    return Finding(
        "beta includes the output layer",
        "beta = sum_{i=1}^d 1/n_i with n_d = 1, so exp(5 beta) has a constant factor e^5.",
        "Only hidden layers, sum_{i<d} 1/n_i, make moments grow.",
        {
            "network": names([net]),
            "E[K_w^2] exact over form": found.ratio["K_w^2"],
            "with the hidden part of beta": found.hidden_ratio["K_w^2"],
            "e^5": math.exp(5),
        },
        "Covered by the universal constants; but numbers should be compared with the hidden part of beta.",
    )


def growth_per_layer() -> Finding:
    """Finding 5."""
    n, layers = 20, 60
    small, large = (moments(MLP([1, *[n] * k, 1]), [1.0]).log_second_moment for k in (2000, 2001))
    return Finding(
        "Growth per layer is 1 + 5/n, not exp(5/n)",
        "exp(5 beta), with relative error O(sum 1/n_i^2).",
        "For Gaussian weights each hidden layer multiplies by 1 + 5/n_i; the two differ by about "
        "exp(-12.5 sum 1/n_i^2).",
        {
            "n, layers": f"{n}, {layers}",
            "exp(5/n)^layers / (1 + 5/n)^layers": math.exp(5 * layers / n) / (1 + 5 / n) ** layers,
            "exp(12.5 layers/n^2), to leading order": math.exp(12.5 * layers / n**2),
            "growth of E[K^2] by one layer, n = 20, after 2000": math.exp(large - small),
            "1 + 5/n": 1 + 5 / n,
            "exp(5/n)": math.exp(5 / n),
        },
        "Within the stated error, which is large for deep narrow networks: here a factor of 5.0, where the leading "
        "order says 6.5.",
    )


def equal_width_lines() -> Finding:
    """Finding 6."""
    figures: dict[str, Figure] = {}
    width = 512
    for name, line in (("K", "E[K^2]/E[K]^2 over exp(5b)"), ("dK", "|E[dK]|/E[K] over d b (|x|^2/n_0) exp(5b)")):
        for norm in (1.0, 1e-4):
            values = [equal_widths(Fraction(b), norm, width)[name] for b in (1, 3, 10)]
            figures[f"{line}, |x|^2/n_0 = {norm:g}, b = 1, 3, 10"] = ", ".join(f"{value:.3g}" for value in values)
    net = MLP([1, *[width] * (10 * width), 1])
    ratio = bounds(net, [1.0]).hidden_ratio
    figures["b = 10, against the sums of Theorems 1 and 2: K^2, dK"] = f"{ratio['K^2']:.3g}, {ratio['dK']:.3g}"
    return Finding(
        "The lines for equal widths need bounded beta",
        "E[K^2]/E[K]^2 ~ exp(5 d/n) and E[Delta K]/E[K] ~ (d beta/n_0) exp(5 beta).",
        "With b = d/n and xi = |x|^2/n_0, as n and d grow: E[K^2]/E[K]^2 over exp(5b) tends to xi^2/(3 (xi + 1/2)^2) "
        "for large b, and to (2/(25 b^2)) (1 - (1 + 5b) e^{-5b}) as xi -> 0; |E[Delta K]|/E[K] ends as (2/3) "
        "xi^2/(xi + 1/2) d exp(5b), without the factor b.",
        figures | {"width": width, "exp(-12.5 b/n) at b = 10, part of each figure": math.exp(-125 / width)},
        "For bounded beta both lines are right, with constants that depend on the bound. For unbounded beta the "
        "first needs |x|^2/n_0 bounded below, and the second has one factor beta too many (two where |x|^2/n_0 is "
        "small); the sums in the theorems themselves keep the right shape.",
    )


def lower_bound() -> Finding:
    """Finding 7."""
    chain, falling, rising = counterexample(), small_factor(Fraction(1, 2)), small_factor(Fraction(2))
    return Finding(
        "Proposition 10 needs alpha_i, K_i >= 1, and its lower bound factors that are not negative",
        "If all gamma_i <= 1, E[Z] >= prod (1 + p_i (alpha_i - 1) + p_i p_{i-1} alpha_{i-1} alpha_i (gamma_i - 1)).",
        "If alpha_i, K_i >= 1, one step gives E[Z_i] >= f_i E[Z_{i-1}], with f_i the i-th factor; two negative "
        "factors make a positive product of nothing. With some alpha_i < 1 both bounds fail: an event that makes Z "
        "small carries more than p_{i-1} alpha_{i-1} of what is left. Divided by 1 + p_{i-1} (alpha_{i-1} - 1) + "
        "q_{i-1} (K_{i-1} - 1) that is the most it carries; with it, and q_i (K_i - 1) added, the lower bound holds "
        "for all alpha_i, K_i >= 0, and no factor is negative.",
        {
            "three certain events, alpha = 10, gamma = 1/100: E[Z]": chain.mean(),
            "the product": chain.lower(),
            "factors": ", ".join(map(str, chain.lower_factors())),
            "two certain events, alpha = 1/10 and 1, gamma_2 = 1/2: E[Z], the lower product": (
                f"{falling.mean()}, {falling.lower()}"
            ),
            "the product that needs neither": math.prod(falling.factors(), start=Fraction(1)),
            "the same events, gamma_2 = 2: E[Z], the upper product": f"{rising.mean()}, {rising.upper()}",
        },
        "Harmless where alpha_i, K_i >= 1 and p_i is of order 1/n_i, as for collisions of paths: the factors are "
        "positive once the widths are past a constant. As we read the statement, it should say so.",
    )


def start_classes() -> Finding:
    """Finding 8."""
    return Finding(
        "Which paths start together in Lemma 8",
        "No indicator for starts (1,1,1,1) and (1,2,1,2), one for (1,1,2,2) and (1,2,2,1).",
        "With the marks as in Lemma 6 (e1 in paths 1, 2), the class without an indicator besides (1,1,1,1) is "
        "(1,1,2,2); for Delta_ww it is the one whose pair with the lower mark starts together.",
        {"counted in": "lemma-8"},
        "A numbering of the four paths (2 and 3 exchanged); the classes carry the same powers of x, so no sum changes.",
    )


def flipping_gates() -> Finding:
    """Finding 9."""
    figures: dict[str, Figure] = {}
    for depth, width, draws in ((2, 10_000, 400), (3, 1_000, 2_000)):
        net, rate = MLP([4, *[width] * (depth - 1), 1]), 0.02
        K = train(net, [[1.0] * 4], [0.0], 1, rate, draws, seed=1).K.to_numpy()[:, :, 0, 0]
        moved = (K[:, 1] - K[:, 0]) / rate
        derivative = float(moments(net, [1] * 4).update["dK"])
        figures[f"{names([net])}: E[Delta K]/lambda, with the flips, measured on {draws} networks"] = (
            f"{derivative:.3f}, {derivative + flips(depth, width):.3f}, "
            f"{moved.mean():.3f} ± {moved.std(ddof=1) / draws**0.5:.3f}"
        )
    return Finding(
        "E[Delta K] is the mean of a derivative, not of the change",
        "Theorem 2 gives the mean of Delta K, the first-order change of K under an SGD step.",
        "K of a ReLU network jumps where a gate flips. A step of size lambda makes flips with probability O(lambda), "
        "so E[K_1 - K_0]/lambda has one more term as lambda tends to 0, of order n^(-1/2) at fixed depth, where "
        "E[Delta K] is of order 1/n (docs/theory/training.md).",
        figures,
        "Theorem 2 is right about the derivative, which exists almost everywhere. The mean of the actual change is "
        "larger, and for wide ReLU networks the flips are most of it; smooth activations have no such term.",
    )


def flips(depth: int, width: int) -> float:
    """Share of flipping gates in E[K_1 - K_0]/lambda, to leading order in 1/n; target 0, |x|^2 = n_0, biases trained.

    The formula of docs/theory/training.md with kappa = 3 and s^2 = 2.

    >>> round(flips(3, 3000), 3)
    -0.145
    """
    total = 0.0
    for i in range(1, depth):
        t = i * (i - 1) * (2 * i - 1) / 6
        total += i * ((3 - i * i / (i * i + t)) * math.sqrt(i * i + t) - math.sqrt(t))
    return -9 * total / (2 * float(math.pi**1.5) * math.sqrt(width))


FINDINGS: tuple[Callable[[], Finding], ...] = (
    output_bias,
    dead_layers,
    exponent_in_52,
    beta_counts_the_output,
    growth_per_layer,
    equal_width_lines,
    lower_bound,
    start_classes,
    flipping_gates,
)


def findings() -> tuple[Finding, ...]:
    """Every finding, with its numbers."""
    return tuple(find() for find in FINDINGS)

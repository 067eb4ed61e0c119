r"""Normalised networks: which moments of the kernel there are, and where they and its law are known exactly.

A norm divides by a length, and where that is near zero the kernel is large: P(length < t) ~ t^k, k the number of
numbers that must be small together, so that E[K^p] is finite for p < k/2 only (docs/theory/normalisation.md).  An
epsilon in the norms makes all moments finite; then the rare networks whose lengths are small rule them instead.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from fractions import Fraction
from math import comb
from typing import TYPE_CHECKING, Any

from finwidth import arguments
from finwidth.errors import FinwidthError
from finwidth.networks.activations import SmoothActivation
from finwidth.networks.description import Network
from finwidth.networks.mlp import MLP
from finwidth.networks.resnet import ResNet

if TYPE_CHECKING:
    from scipy.stats.distributions import rv_frozen


def tail_exponent(net: Network) -> float:
    """The s for which E[K^p] at one input is finite for p < s and infinite for p >= s; infinity without a norm.

    Of an `MLP` it follows from the law of its chain; of a `ResNet` from a count of powers.  Of Delta K, which is of the
    order of K^2, the mean is sure to be finite for s > 2.  For Gaussian weights and activations of two slopes.

    Examples
    --------
    >>> from finwidth import MLP, ResNet
    >>> from finwidth.exact.normalised import tail_exponent
    >>> [tail_exponent(MLP([3, 50, 50, 1], activation=phi, norm="rms")) for phi in ("relu", "abs")]
    [0.5, 25.0]
    >>> tail_exponent(ResNet([3, 50, 1], 4, norm="rms")), tail_exponent(ResNet([3, 50, 1], 100, norm="rms"))
    (5.4, 0.7425742574257426)
    """
    if net.norm is None or net.norm.epsilon:
        return math.inf
    if isinstance(net.activation, SmoothActivation):
        raise FinwidthError(f"the tail of K is known for activations of two slopes, not for {net.activation.name}")
    dimensions = _singular_layers(net) if isinstance(net, MLP) else _singular_stream(net)
    return min(dimensions, default=math.inf) / 2


def _singular_layers(net: MLP) -> Iterator[float]:
    """For each hidden layer how many numbers are small together where K is large because of its norm."""
    norm, phi = net.norm, net.activation
    assert norm is not None
    for i in range(1, net.depth):
        above, width = net.layers[i], net.widths[i] - norm.centred
        if width < 2:
            continue  # a norm in one dimension is +-1 and passes no gradient
        yield width
        if phi.positive and phi.negative:
            continue
        if norm.position == "after":
            yield 2  # two open neurons; one passes no gradient, like a dimension
        elif not norm.centred and i < net.depth - 1 and not above.bias_variance:
            yield 1 if above.bias_multiplier else 2  # what is open is small, and the norm of the layer above large


def _singular_stream(net: Network) -> Iterator[float]:
    """The same for the norms of a residual network; of several norms at once, for each of them."""
    assert isinstance(net, ResNet)
    assert net.norm is not None
    width, all_open = net.widths[1] - net.norm.centred, bool(net.activation.positive and net.activation.negative)
    if width < 2:
        return
    yield width
    blocks = [block for block in net.blocks if block.branch_squared]
    # How many more are small where a block adds next to nothing: the input of its outer matrix, or all that this gives.
    added = [
        width if block.outer.bias_variance else min(width, block.inner.fan_out if all_open else 1) for block in blocks
    ]
    starts = [width if block.skip_squared else more for block, more in zip(blocks, added, strict=True)]
    yield min(starts, default=width)
    if net.norm.position == "before":
        yield _least_average([width, *starts], added)


def _least_average(starts: list[int], added: list[int]) -> float:
    """The least of (starts[i] + added[i] + ... + added[j-1]) / (j - i + 1) over i <= j, by Dinkelbach's method."""
    least = Fraction(min(starts))
    while True:
        run, length = starts[0], 1
        total, best = run - least, (run, 1)
        for start, more in zip(starts[1:], added, strict=True):
            run, length = (start, 1) if start - least < run + more - (length + 1) * least else (run + more, length + 1)
            if run - length * least < total:
                total, best = run - length * least, (run, length)
        if total >= 0:
            return float(least)
        least = Fraction(*best)


def why_no_moments(net: Network) -> str:
    """Why `finwidth.moments` does not serve a normalised network: its moments are infinite, or not known there."""
    assert net.norm is not None
    told = f'it is normalised (norm="{net.norm.kind}")'
    exponent = math.inf if isinstance(net.activation, SmoothActivation) else tail_exponent(net)
    if exponent > 1:
        return f"{told}, which exact moments do not take"
    if isinstance(net, MLP) and not net.activation.positive * net.activation.negative:
        return f"{told} and E[K] is infinite at every width, as a layer has 2 open neurons with probability C(n,2)/2^n"
    return f"{told} and E[K] is infinite, as P(K > t) falls like t^-{exponent:.3g}"


def why_quantiles(net: Network) -> str:
    """Why quantiles, and not means, tell of the kernel of a normalised network; empty for networks without a norm.

    Of all of them, so that networks which differ in width or depth only, on which it depends whether a mean is finite,
    are told of in one way.

    Examples
    --------
    >>> from finwidth import MLP, ResNet
    >>> from finwidth.exact.normalised import why_quantiles
    >>> why_quantiles(MLP([3, 50, 50, 1], norm="rms")), why_quantiles(MLP([3, 50, 50, 1]))
    ('E[K] is infinite', '')
    >>> why_quantiles(ResNet([3, 50, 1], 24, norm="rms")), why_quantiles(MLP([3, 50, 1], norm="rms"))
    ('E[K^p] is infinite for p >= 1.48', 'E[K] and E[K^2] are finite, but not known')
    """
    if net.norm is None:
        return ""
    if net.norm.epsilon:
        return "its means rest on rare networks, in which a norm divides by little more than its epsilon"
    if isinstance(net.activation, SmoothActivation):
        return "E[K] need not be finite"
    exponent = tail_exponent(net)
    if exponent > 4:  # as those of the squares of K^2, on which the errors of draws rest
        return "E[K] and E[K^2] are finite, but not known"
    return "E[K] is infinite" if exponent <= 1 else f"E[K^p] is infinite for p >= {exponent:.3g}"


def perpetuity_moments(net: MLP, least_open: int = 5) -> tuple[Fraction, Fraction]:
    r"""E[K_w] and E[K_w^2] of an `MLP` with RMSNorm, given that each hidden layer has that many open neurons.

    For norms after the activation, or an activation of slopes of one size, and no random biases, K_w / (v_d n_{d-1}) is
    the perpetuity (docs/theory/normalisation.md), with w_i = c_i / v_i and m_i open neurons ::

        T_i = r_i (w_i + T_{i-1}),  T_0 = 0,     w_d + T_{d-1},     r_i = chi2'(m_i - 1) / chi2(m_i)
        E[r | m] = (m-1)/(m-2),  E[r^2 | m] = (m^2-1)/((m-2)(m-4))

    All neurons of slopes of one size count as open.

    Raises
    ------
    FinwidthError
        For networks that it does not hold for, or fewer than 5 open neurons, of which the moments are infinite.

    Examples
    --------
    >>> from finwidth import MLP, Norm
    >>> from finwidth.exact.normalised import perpetuity_moments
    >>> perpetuity_moments(MLP([3, *[6] * 2, 1], activation="linear", norm="rms"))
    (Fraction(61, 16), Fraction(2629, 64))
    >>> mean, _ = perpetuity_moments(MLP([3, *[24] * 5, 1], norm=Norm("rms", "after")))
    >>> round(float(mean), 4)
    7.8576
    """
    least = arguments.count("least_open", least_open)
    norm, phi = net.norm, net.activation
    slopes = (0, 1) if isinstance(phi, SmoothActivation) else sorted((abs(phi.positive), abs(phi.negative)))
    one_size, relu = slopes[0] == slopes[1], not slopes[0] and not isinstance(phi, SmoothActivation)
    if norm is None or norm.centred or norm.epsilon or net.random_bias or net.depth < 2 or least < 5:
        raise FinwidthError(
            'these moments are of networks with hidden layers, norm="rms" without epsilon and no random biases, given '
            f"5 open neurons or more in each layer; the network is {net}, and least_open {least}"
        )
    if not (one_size or (relu and norm.position == "after")):
        raise FinwidthError(
            f"these moments are of ReLU before the norm, or slopes of one size; the network is {net}; give "
            'norm=finwidth.Norm("rms", "after")'
        )
    first, second = Fraction(0), Fraction(0)
    weights = [layer.weight_multiplier / layer.weight_variance for layer in net.layers]
    for n, w in zip(net.widths[1:-1], weights, strict=False):
        law = {n: 1} if one_size else {m: comb(n, m) for m in range(least, n + 1)}
        if n < least:
            raise FinwidthError(f"a layer of width {n} has no {least} open neurons; give wider layers")
        share = Fraction(1, sum(law.values()))
        r1 = share * sum(count * Fraction(m - 1, m - 2) for m, count in law.items())
        r2 = share * sum(count * Fraction(m * m - 1, (m - 2) * (m - 4)) for m, count in law.items())
        first, second = r1 * (w + first), r2 * (w * w + 2 * w * first + second)
    w, scale = weights[-1], net.layers[-1].weight_variance * net.widths[-2]
    return scale * (w + first), scale**2 * (w * w + 2 * w * first + second)


def stationary_law(width: int) -> rv_frozen[Any]:
    """The law that K_w / g of a deep linear network with RMSNorm tends to: 1 / Beta(1/2, (n-1)/2), g the last gain.

    For equal widths n and parameterization "ntk".  It has moments of order below 1/2 only; its quantiles are those of
    typical networks.  LayerNorm: that of n - 1.

    Examples
    --------
    >>> from finwidth.exact.normalised import stationary_law
    >>> round(float(stationary_law(6).median()), 2)
    10.47
    """
    from scipy import stats

    n = arguments.count("width", width)
    if n < 2:
        raise FinwidthError("a norm in one dimension passes no gradient, and K_w / g is 1; give a width of at least 2")
    return stats.betaprime((n - 1) / 2, 0.5, loc=1)

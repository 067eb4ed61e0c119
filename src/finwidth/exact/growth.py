r"""How fast fluctuations grow with depth, for every kind of network: `finwidth.growth`.

With gamma_k = E[phi'^k] of a fair gate and r = 3 gamma_4/gamma_2^2 - 1 (5 for ReLU, 2 for one slope), Gaussian weights
and biases from zero, E|x|^4 over (E|x|^2)^2 is multiplied, whatever the input, by exactly::

    MLP, hidden layer of n neurons      1 + r/n
    ResNet, a block of m in a stream n  alpha / sigma^2,  sigma = a^2 + b^2,
                                        alpha = a^4 + 2 a^2 b^2 (1 + 2/n) + b^4 (1 + 2/n) (1 + r/m)
    BalancedResNet, a block             the same with  alpha = a^4 + 2 a^2 b^2 (1 + 2/n) + b^4 (1 + r/n)

where b^2 stands for branch^2 times what the block's matrices and gates make of a squared length, 1 by default
(docs/theory/residual.md, docs/theory/transfer.md).  E[K^2]/E[K]^2 grows by the same factors, beside a power of the
depth.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction
from itertools import groupby
from typing import Any

from finwidth.documents import exact_number
from finwidth.errors import FinwidthError
from finwidth.networks.activations import SmoothActivation
from finwidth.networks.balanced import BalancedResNet
from finwidth.networks.description import Network, check_network
from finwidth.networks.mlp import MLP
from finwidth.networks.resnet import ResNet
from finwidth.networks.routes import gates_no_coins, instead, not_normalised
from finwidth.tables import Result, Table, Told


@dataclass(frozen=True, repr=False)
class Growth(Result):
    """How fast E|x|^4/(E|x|^2)^2 and E[K^2]/E[K]^2 grow over the layers or blocks of a network.

    Attributes
    ----------
    network
        The network.
    factors
        Of each hidden layer or block, what E|x|^4/(E|x|^2)^2 is multiplied by: exact fractions, for Gaussian weights.
    exponent
        The sum of their logarithms: fluctuations grow like exp(exponent) over the whole network.
    leading
        The exponent to first order in 1/width, for weights of any law.
    form
        ``leading`` in words.
    """

    network: Network
    factors: tuple[Fraction, ...]
    leading: float
    form: str

    @property
    def exponent(self) -> float:
        """Sum of the logarithms of the factors."""
        return math.fsum(math.log1p(float(factor - 1)) for factor in self.factors)

    @property
    def _runs(self) -> list[tuple[Fraction, int]]:
        """Each factor once, with how often it occurs in a row."""
        return [(factor, len(list(run))) for factor, run in groupby(self.factors)]

    def content(self) -> dict[str, object]:
        """The exponents, and each factor once, with how often it occurs in a row."""
        factors = [{**exact_number(factor), "times": times} for factor, times in self._runs]
        return {"exponent": self.exponent, "leading": self.leading, "form": self.form, "factors": factors}

    def _table(self) -> Table:
        table = Table(str(self.network), ("quantity", "value"))
        table.add("exponent", self.exponent)
        table.add("to first order in 1/width", self.leading)
        for factor, times in self._runs[:_MOST_RUNS]:
            text = str(factor) if len(str(factor)) <= _LONGEST else f"{float(factor):.6g}"
            table.add(f"factor of {'each of ' * (times > 1)}{times} {_unit(self.network, times)}", Told(factor, text))
        more = " The first factors are shown; to_json has all." if len(self._runs) > _MOST_RUNS else ""
        table.notes = (
            f"E|x|^4 / (E|x|^2)^2 grows by exp(exponent) over the network, and E[K^2] / E[K]^2 alike. To first order "
            f"in 1/width the exponent is {self.form}.{more}"
        )
        return table

    def _headline(self) -> str:
        return f"{self.network}: exponent {self.exponent:.4g}, to first order in 1/width {self.leading:.4g}"


_MOST_RUNS = 10  # that are shown
_LONGEST = 24  # characters of a fraction


def _unit(net: Network, times: int) -> str:
    return ("layer" if isinstance(net, MLP) else "block") + "s" * (times > 1)


def _layer_factors(net: MLP) -> tuple[tuple[Fraction, ...], Fraction, str]:
    r = _gate_excess(net)
    hidden = net.widths[1:-1]
    inverse = sum((Fraction(1, n) for n in hidden), Fraction(0))
    return tuple(1 + r / n for n in hidden), r * inverse, f"{float(r):g} sum of 1/n over hidden layers"


def _block_factors(net: ResNet) -> tuple[tuple[Fraction, ...], Fraction, str]:
    r, n = _gate_excess(net), net.widths[1]

    def numbers(block: Any) -> tuple[Fraction, Fraction]:
        a2, m = block.skip_squared, block.inner.fan_out
        b2 = block.branch_squared * _passed(net, n * block.inner.weight_variance * m * block.outer.weight_variance)
        sigma = a2 + b2
        alpha = a2**2 + 2 * a2 * b2 * (1 + Fraction(2, n)) + b2**2 * (1 + Fraction(2, n)) * (1 + r / m)
        return alpha / sigma**2, (4 * a2 * b2 / n + b2**2 * (Fraction(2, n) + r / m)) / sigma**2

    return *_each_once(net, numbers), f"sum of (4 a^2 b^2/n + b^4 (2/n + {float(r):g}/m))/(a^2 + b^2)^2 over blocks"


def _balanced_factors(net: BalancedResNet) -> tuple[tuple[Fraction, ...], Fraction, str]:
    r, n = _gate_excess(net), net.widths[1]

    def numbers(block: Any) -> tuple[Fraction, Fraction]:
        a2, b2 = block.skip_squared, block.branch_squared * _passed(net, n * block.outer.weight_variance)
        sigma = a2 + b2
        alpha = a2**2 + 2 * a2 * b2 * (1 + Fraction(2, n)) + b2**2 * (1 + r / n)
        return alpha / sigma**2, (4 * a2 * b2 + b2**2 * r) / n / sigma**2

    return *_each_once(net, numbers), f"sum of (4 a^2 b^2 + {float(r):g} b^4)/(a^2 + b^2)^2/n over blocks"


def _each_once(
    net: ResNet | BalancedResNet, numbers: Callable[[Any], tuple[Fraction, Fraction]]
) -> tuple[tuple[Fraction, ...], Fraction]:
    """Factors of all blocks and the sum of their leading terms; blocks that are equal are one object."""
    found = {id(block): numbers(block) for block in net.blocks}
    all_of_them = [found[id(block)] for block in net.blocks]
    leading = sum((found[id(block)][1] for block in net.blocks), Fraction(0))
    return tuple(factor for factor, _ in all_of_them), leading


def _gate_excess(net: Network) -> Fraction:
    """Three times gamma_4 / gamma_2^2, less 1."""
    return 3 * net.activation.gate_moment(4) / net.activation.gate_moment(2) ** 2 - 1


def _passed(net: Network, gain: Fraction) -> Fraction:
    """What a block's matrices, of this gain, and gates make of a squared length, in the mean."""
    return gain * net.activation.gate_moment(2)


# What replaces the factors in normalised networks is another quantity: E[K^2] need not exist there.
GROWTHS: dict[type, Callable[[Any], tuple[tuple[Fraction, ...], Fraction, str]]] = {
    MLP: _layer_factors,
    ResNet: _block_factors,
    BalancedResNet: _balanced_factors,
}


def unsupported(net: Network) -> list[str]:
    """Reasons why `growth` does not serve this network; none if it does."""
    if isinstance(net.activation, SmoothActivation):
        return [f"its activation is {net.activation.name}, which is not positively homogeneous"]
    reasons = not_normalised(net) + gates_no_coins(net)
    if net.weight_law.name != "gaussian":
        reasons.append(
            f"its weights are {net.weight_law.name}, whose factors depend on the input (Gaussian ones do not)"
        )
    if net.random_bias:
        reasons.append("its initial biases are random, which do not grow with the signal")
    return reasons


def growth(net: Network) -> Growth:
    """How fast the fluctuations of the signal and of the kernel grow over a network, exactly, layer by layer.

    For a ReLU `MLP` the exponent is close to 5 sum 1/n_i, the 5 beta of Hanin and Nica (2020); for a `ResNet` with
    skip 1 and small branches to 4 c/n, c = sum of branch^2 and n the width of the stream, which stays finite at
    infinite depth for branch = 1/sqrt(depth).  It is the exponent of a mean square, which rare networks carry; log|x|^2
    has about this variance.  It says how depth and width enter; E[K^2] itself is what `finwidth.moments` has.

    Parameters
    ----------
    net
        An `MLP`, `ResNet` or `BalancedResNet` with Gaussian weights, biases from zero, and an activation of two slopes.

    Raises
    ------
    FinwidthError
        For another network; `finwidth.signal_moments` has E|x|^4 of other weight laws and of random biases.

    Examples
    --------
    >>> import finwidth
    >>> found = finwidth.growth(finwidth.MLP([3, *[64] * 16, 1]))
    >>> print(found.factors[0], round(found.exponent, 3), found.leading)
    69/64 1.204 1.25
    >>> found = finwidth.growth(finwidth.ResNet([3, 64, 1], 1000, branch="1/sqrt(depth)"))
    >>> round(found.exponent, 5), 4 / 64
    (0.06248, 0.0625)
    """
    net = check_network(net)
    if reasons := unsupported(net):
        raise FinwidthError(f"finwidth.growth cannot serve this network: {'; '.join(reasons)}; {instead(net)}")
    factors, leading, form = next(found for kind, found in GROWTHS.items() if isinstance(net, kind))(net)
    return Growth(net, factors, float(leading), form)

"""Exact moments of the kernel and of its first update: `finwidth.moments`."""

from __future__ import annotations

import decimal
import math
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from fractions import Fraction
from functools import cached_property
from typing import Any, Protocol, TypeAlias, TypeVar

from finwidth import arguments
from finwidth.documents import exact_number
from finwidth.errors import FinwidthError
from finwidth.exact.partitions import State, pairs, start_state
from finwidth.exact.residual import ResNetMoments
from finwidth.exact.transfer import (
    DIGITS,
    Convert,
    Input,
    MLPMoments,
    Number,
    power,
    survival_matters,
    to_decimal,
)
from finwidth.networks.balanced import BalancedResNet
from finwidth.networks.description import Network
from finwidth.networks.inputs import Vector, exact_input
from finwidth.networks.mlp import MLP
from finwidth.networks.resnet import ResNet
from finwidth.networks.routes import algorithm, check_supported, unsupported_by
from finwidth.quantities import DRAWN, MOMENTS
from finwidth.tables import Cell, Result, Table, number, told

Exact: TypeAlias = float | Fraction
_Key = TypeVar("_Key", bound=Hashable)

ORDERS = (2, 3, 4)
_WIDEST_EXACT = 10**6  # the probability that a layer lives, 1 - 2^-n, is a fraction of n binary digits
CONTEXT = decimal.Context(prec=DIGITS, Emin=decimal.MIN_EMIN, Emax=decimal.MAX_EMAX)


def present(value: Number) -> Exact:
    """A result as the caller sees it: fractions stay, decimals become floats (inf where a double overflows)."""
    return value if isinstance(value, Fraction) else float(value)


def log(value: Number) -> float:
    """Natural logarithm of the absolute value of a fraction or decimal of any size; -inf for 0."""
    if not value:
        return -math.inf
    if isinstance(value, Fraction):
        return math.log(abs(value.numerator)) - math.log(value.denominator)
    with decimal.localcontext(CONTEXT):
        return float(abs(value).ln())


@dataclass(frozen=True)
class Moments:
    """Moments of one non-negative random variable, computed from E[X], E[X^2], ... without loss by cancellation."""

    _raw: tuple[Number, ...]

    @property
    def raw(self) -> tuple[Exact, ...]:
        """(E[X], E[X^2], ...) up to the order asked for."""
        return tuple(present(moment) for moment in self._raw)

    @property
    def log_raw(self) -> tuple[float, ...]:
        """Natural logarithms of `raw`; finite also where a double overflows."""
        return tuple(log(moment) for moment in self._raw)

    @property
    def mean(self) -> Exact:
        """E[X]."""
        return present(self._raw[0])

    @property
    def second_moment(self) -> Exact:
        """E[X^2]."""
        return present(self._raw[1])

    @property
    def log_second_moment(self) -> float:
        """Log E[X^2]."""
        return log(self._raw[1])

    @property
    def variance(self) -> Exact:
        """E[X^2] - E[X]^2."""
        return present(self._central(2))

    @property
    def log_variance(self) -> float:
        """Log Var[X]; -inf where X is deterministic."""
        return log(self._central(2))

    @property
    def cv(self) -> float:
        """Coefficient of variation, sqrt(Var[X])/E[X]; 0 where X is deterministic."""
        return exp(self.log_cv)

    @property
    def log_cv(self) -> float:
        """Log of `cv`; -inf where X is deterministic."""
        variance = self._central(2)
        return log(variance) / 2 - log(self._raw[0]) if variance else -math.inf

    @property
    def skewness(self) -> float:
        """E[(X - EX)^3] / Var[X]^(3/2); 0 where X is deterministic. Needs order 3."""
        return self._standardised(3)

    @property
    def kurtosis(self) -> float:
        """E[(X - EX)^4] / Var[X]^2 (3 for a normal law, not the excess); 0 where X is deterministic. Needs order 4."""
        return self._standardised(4)

    def _central(self, order: int) -> Number:
        if order > len(self._raw):
            raise FinwidthError(f"moments were computed up to order {len(self._raw)}; ask for order={order}")
        with decimal.localcontext(CONTEXT):
            mean = self._raw[0]
            raw = (1, *self._raw)
            central = sum(math.comb(order, k) * raw[k] * power(-mean, order - k) for k in range(order + 1))
            # What a 50-digit computation leaves of an exact zero.
            if isinstance(central, Decimal) and abs(central) <= raw[order] * Decimal(10) ** (8 - DIGITS):
                return Decimal(0)
            return central

    def _standardised(self, order: int) -> float:
        central, variance = self._central(order), self._central(2)
        if not variance or not central:
            return 0.0
        size = exp(log(central) - order / 2 * log(variance))
        return size if central > 0 else -size


def exp(exponent: float) -> float:
    """E to a power, inf where a double overflows."""
    try:
        return math.exp(exponent)
    except OverflowError:
        return math.inf


@dataclass(frozen=True, repr=False)
class KernelMoments(Result):
    """What `finwidth.moments` returns: the moments of K, of its parts, and the mean of its first update.

    ``mean``, ``second_moment``, ``variance``, ``cv`` and ``log_second_moment`` are those of K; ``K``, ``K_w``
    and ``K_b`` are `Moments` with the same attributes (and ``raw``, ``skewness``, ``kurtosis`` where the order
    allows).  ``joint[a, b]`` is E[K_w^a K_b^b].  Values are floats, or fractions where ``exact``; a float is
    ``inf`` where a double overflows, and its logarithm is still there.
    """

    network: Network
    exact: bool
    order: int
    _joint: Mapping[tuple[int, int], Number]
    _update: Mapping[str, Number]
    _input: Input

    @cached_property
    def K(self) -> Moments:
        """Moments of the kernel K = K_w + K_b."""
        with decimal.localcontext(CONTEXT):
            return Moments(
                tuple(
                    sum(math.comb(p, a) * self._joint[a, p - a] for a in range(p + 1)) for p in range(1, self.order + 1)
                )
            )

    @property
    def K_w(self) -> Moments:
        """Moments of the weight part."""
        return Moments(tuple(self._joint[p, 0] for p in range(1, self.order + 1)))

    @property
    def K_b(self) -> Moments:
        """Moments of the bias part."""
        return Moments(tuple(self._joint[0, p] for p in range(1, self.order + 1)))

    @property
    def joint(self) -> dict[tuple[int, int], Exact]:
        """E[K_w^a K_b^b] by (a, b), for 1 <= a + b <= order."""
        return {key: present(value) for key, value in self._joint.items()}

    @cached_property
    def _by_name(self) -> dict[str, Number]:
        with decimal.localcontext(CONTEXT):
            return {name: each.exact({**self._joint, **self._update}) for name, each in MOMENTS.items()}

    @property
    def by_name(self) -> dict[str, Exact]:
        """All of `finwidth.quantities.MOMENTS`."""
        return {name: present(value) for name, value in self._by_name.items()}

    @property
    def log_by_name(self) -> dict[str, float]:
        """Natural logarithms of the absolute values of `by_name`."""
        return {name: log(value) for name, value in self._by_name.items()}

    @property
    def mixed(self) -> Exact:
        """E[K_w K_b]."""
        return present(self._joint[1, 1])

    @property
    def log_mixed(self) -> float:
        """Log E[K_w K_b]."""
        return log(self._joint[1, 1])

    @property
    def mean(self) -> Exact:
        """E[K]."""
        return self.K.mean

    @property
    def second_moment(self) -> Exact:
        """E[K^2]."""
        return self.K.second_moment

    @property
    def log_second_moment(self) -> float:
        """Log E[K^2]."""
        return self.K.log_second_moment

    @property
    def log_raw(self) -> tuple[float, ...]:
        """Natural logarithms of `raw`."""
        return self.K.log_raw

    @property
    def variance(self) -> Exact:
        """Var[K]."""
        return self.K.variance

    @property
    def log_variance(self) -> float:
        """The logarithm of Var[K]; -inf where K is deterministic."""
        return self.K.log_variance

    @property
    def log_cv(self) -> float:
        """The logarithm of `cv`."""
        return self.K.log_cv

    @property
    def cv(self) -> float:
        """sqrt(Var[K]) / E[K], a float also where the rest is exact."""
        return self.K.cv

    @property
    def raw(self) -> tuple[Exact, ...]:
        """(E[K], E[K^2], ...) up to the order asked for."""
        return self.K.raw

    @property
    def skewness(self) -> float:
        """Skewness of K; needs order 3."""
        return self.K.skewness

    @property
    def kurtosis(self) -> float:
        """Kurtosis of K (3 for a normal law); needs order 4."""
        return self.K.kurtosis

    @property
    def update(self) -> dict[str, Exact]:
        """``dK`` = E[Delta K]/lambda (negative), and the means of the paper's Delta_ww, Delta_wb, Delta_bb."""
        return {name: present(value) for name, value in self._update.items()}

    @property
    def log_update(self) -> dict[str, float]:
        """Natural logarithms of the absolute values of `update`."""
        return {name: log(value) for name, value in self._update.items()}

    def update_variance(self, target: float | Fraction = 0) -> Exact:
        """Var[Delta K]/lambda^2 for SGD towards the target N*; needs order 4 and one output.

        With g^T H g = G, Delta K = -2 lambda (N - N*) G, and N G^2 is odd in the last layer's weights, so
        E[Delta K^2]/lambda^2 = 4 E[N^2 G^2] + 4 N*^2 E[G^2] while the mean does not depend on N*.
        """
        towards: Number = arguments.exact("the target", target, "a finite number")
        if self.order < max(ORDERS) or self.network.widths[-1] > 1:
            raise FinwidthError("the variance of the update needs moments(..., order=4) of a network with one output")
        with decimal.localcontext(CONTEXT):
            towards = towards if self.exact else to_decimal(towards)
            square = self._update_square["N^2 G^2"] + towards * towards * self._update_square["G^2"]
            return present(4 * square - self._update["dK"] ** 2)

    @cached_property
    def _update_square(self) -> dict[str, Number]:
        return _update_square(self.network, self._input, exact=self.exact)

    @cached_property
    def between_outputs(self) -> Exact:
        """E[K_ab^2] for two outputs a and b of a network with several; E[K_ab] is 0."""
        if self.network.widths[-1] == 1:
            raise FinwidthError("between_outputs needs a network with several outputs; this one has one")
        return present(_between_outputs(self.network, self._input, exact=self.exact))

    def content(self) -> dict[str, object]:
        """Every moment by its name: as a double, its logarithm, and its fraction where it is exact."""
        logs = self.log_by_name
        found = {name: exact_number(value, logs[name]) for name, value in self.by_name.items()}
        for p in range(3, self.order + 1):
            found[f"K^{p}"] = exact_number(self.raw[p - 1], self.K.log_raw[p - 1])
        found["var(K)"] = exact_number(self.variance, self.log_variance)
        found["cv(K)"] = exact_number(self.cv, self.log_cv)
        if self.order > 2:
            found["skewness(K)"] = exact_number(self.skewness)
        if self.order > 3:
            found["kurtosis(K)"] = exact_number(self.kurtosis)
        if self.order == max(ORDERS) and self.network.widths[-1] == 1:
            found["var(dK)"] = exact_number(self.update_variance())
        if self.network.widths[-1] > 1:
            found["K_01^2"] = exact_number(self.between_outputs)
        paper = {"beta": float(self.network.beta)} if isinstance(self.network, MLP) else {}
        return {**paper, "quantities": {name: {"exact": each} for name, each in found.items()}}

    def _table(self) -> Table:
        return moment_table(self)

    def _headline(self) -> str:
        return f"{self.network}: E[K] {number(self.mean, self.K.log_raw[0])}, CV {number(self.cv, self.log_cv)}"


def moment_table(
    found: KernelMoments, headings: tuple[str, ...] = (), beside: Mapping[str, tuple[Cell, ...]] | None = None
) -> Table:
    """Exact values, and beside each quantity what more there is of it."""
    logs, beside = found.log_by_name, beside or {}
    table = Table(str(found.network), ("quantity", "exact", *headings))
    for name, value in found.by_name.items():
        table.add(MOMENTS[name].label, told(value, log=logs[name]), *beside.get(name, ()))
    table.add()
    table.add("Var[K]", told(found.variance, log=found.log_variance))
    table.add("CV of K", told(found.cv, log=found.log_cv))
    for exponent, value, log_value in zip("³⁴", found.raw[2:], found.log_raw[2:], strict=False):
        table.add(f"E[K{exponent}]", told(value, log=log_value))
    if found.order > 2:
        table.add("skewness of K", found.skewness)
    if found.order > 3:
        table.add("kurtosis of K", found.kurtosis)
        if found.network.widths[-1] == 1:
            table.add("Var[ΔK]/λ², N* = 0", found.update_variance())
    if found.network.widths[-1] > 1:
        table.add("E[K_ab²], a ≠ b", found.between_outputs)
    return table


# Which paths end in the same output.
ONE_OUTPUT: tuple[tuple[int, ...], ...] = ((0, 1, 2, 3),)
_TWO_OUTPUTS: tuple[tuple[int, ...], ...] = ((0, 3), (1, 2))


def update_state(kinds: str, outputs: Sequence[Sequence[int]]) -> State:
    """The start of N_c grad N_c . H_a . grad N_a, the gradients by parameters of the two ``kinds``.

    Path 0 is the derivative of the output c whose loss moves the parameters and path 3 is N_c; paths 1 and 2 are the
    second and first derivatives of the output a whose kernel is watched. With c = a the two orders of "wb" are equal.
    """
    return start_state(outputs, [(0, 1, kinds[0]), (1, 2, kinds[1])])


class PathTransfer(Protocol):
    """What moments are computed by, for networks of one description."""

    def unsupported(self, net: Any, /) -> list[str]:
        """Reasons against a network of the description; none if it is served."""

    def values(
        self,
        starts: Sequence[State],
        net: Any,
        x: Input,
        convert: Convert,
        *,
        dead_layers: bool = True,
        watched: Sequence[State] = (),
    ) -> tuple[list[Number], list[list[Number]]]:
        """Values of the starts at the output, and layer by layer those of the ``watched`` ties."""


ALGORITHMS: dict[type, PathTransfer] = {MLP: MLPMoments, ResNet: ResNetMoments, BalancedResNet: ResNetMoments}


def unsupported(net: Network) -> list[str]:
    """Reasons why `moments` has no second moments of this network; none if it has."""
    return unsupported_by(ALGORITHMS, net)


def moments(net: Network, x: Vector, *, exact: bool = False, order: int = 2) -> KernelMoments:
    r"""Exact moments of K(x,x) at initialization and the mean of its first SGD update.

    No randomness and no network: the transfer over path partitions of docs/theory/transfer.md, in O(depth), and of
    docs/theory/residual.md for residual networks.
    It sharpens Theorems 1 and 2 and Propositions 3-5 of the paper, which bound the same quantities up to
    constants.  Exact for any symmetric weight law, positively homogeneous activation and unequal widths;
    with several outputs K is a diagonal entry K_aa, and dK that entry's change under SGD on all outputs.

    Parameters
    ----------
    net
        An `MLP`, `ResNet` or `BalancedResNet`.
    x
        One input, shape (n_0,).
    exact
        Return `fractions.Fraction` (floats given for x count as the binary fractions that they are).
    order
        2, 3 or 4: the highest moment of K to compute.

    Returns
    -------
    KernelMoments
        Dimensionless numbers; update values are per unit learning rate, for the loss (N - N*)^2/2. The mean
        update does not depend on the target N*.

    Raises
    ------
    FinwidthError
        If x does not fit the network, the order is not 2, 3 or 4, the weight law lacks a moment that is
        needed, or ``exact`` is asked for a law whose moments are not rational.

    Examples
    --------
    >>> import finwidth
    >>> net = finwidth.MLP([2, 3, 3, 1])
    >>> m = finwidth.moments(net, [1, 2], exact=True)
    >>> print(m.mean, m.K_w.second_moment, m.K_b.second_moment, m.mixed, m.update["dK"])
    151/16 2300/9 473/72 65/2 -1510/9
    >>> residual = finwidth.moments(finwidth.ResNet([2, 64, 1], 16, branch="1/sqrt(depth)"), [1, 2], exact=True)
    >>> print(float(residual.mean), round(residual.cv, 3))
    31.69... 0.251
    >>> deep = finwidth.moments(finwidth.MLP([4] * 1000 + [1]), [1, 0, 0, 0])
    >>> deep.second_moment, deep.log_second_moment
    (inf, 820.0748159678632)
    """
    check_supported("finwidth.moments", net)
    exact, order = arguments.flag("exact", exact), check_order(order)
    if exact:
        check_exact(net)
    given = Input.of(exact_input(net, x), 2 * order)
    starts = {(a, p - a): pairs("w" * a + "b" * (p - a)) for p in range(1, order + 1) for a in range(p + 1)}
    values = _evaluate(starts | _update_starts(net), net, given, exact=exact)  # in one pass: most states are shared
    joint = {powers: values[powers] for powers in starts}
    return KernelMoments(net, exact, order, joint, _mean_update(net, values), given)


def check_order(order: int) -> int:
    """The highest moment that is computed."""
    checked = arguments.count("order", order)
    if checked not in ORDERS:
        raise FinwidthError(f"order={checked}; give 2, 3 or 4")
    return checked


def check_exact(net: Network) -> None:
    """Raise FinwidthError where the moments of a network are no fractions, or too long ones."""
    laws = [net.weight_law] + [net.bias_law] * net.random_bias
    if names := " and ".join(law.name for law in laws if not law.rational):
        raise FinwidthError(f"exact=True, but the moments of {names} are not all rational; use exact=False")
    if isinstance(net, MLP) and survival_matters(net) and max(net.widths[1:]) > _WIDEST_EXACT:
        raise FinwidthError(
            f"exact=True at width {max(net.widths[1:])}: the probability 1 - 2^-n that a layer lives has that many "
            f"binary digits; use exact=False, or widths up to {_WIDEST_EXACT}"
        )


def _between_outputs(net: Network, x: Input, *, exact: bool) -> Number:
    """E[K_ab^2] for a != b: one path of each pair starts at a, the other at b."""
    starts = {
        kinds: start_state([(0, 2), (1, 3)], [(0, 1, kinds[0]), (2, 3, kinds[1])]) for kinds in ("ww", "wb", "bb")
    }
    values = _evaluate(starts, net, x, exact=exact)
    with decimal.localcontext(CONTEXT):
        return values["ww"] + 2 * values["wb"] + values["bb"]


def _update_square(net: Network, x: Input, *, exact: bool) -> dict[str, Number]:
    """E[N^2 G^2] and E[G^2] for G = g^T H g = G_ww + 2 G_wb: two copies of `update_state`, with and without N."""
    kinds = (("ww", "ww", 1), ("ww", "wb", 4), ("wb", "wb", 4))
    starts = {}
    for name, size in (("N^2 G^2", 4), ("G^2", 3)):
        for one, two, _ in kinds:
            marks = [
                (size * copy + place, size * copy + place + 1, kind)
                for copy, both in enumerate((one, two))
                for place, kind in enumerate(both)
            ]
            starts[name, one, two] = start_state([range(2 * size)], marks)
    values = _evaluate(starts, net, x, exact=exact)
    with decimal.localcontext(CONTEXT):
        return {name: sum(times * values[name, one, two] for one, two, times in kinds) for name in ("N^2 G^2", "G^2")}


def _update_starts(net: Network) -> dict[Hashable, State]:
    """What the first update is made of, by the kinds of its derivatives and the outputs."""
    starts: dict[Hashable, State] = {(kinds, ONE_OUTPUT): update_state(kinds, ONE_OUTPUT) for kinds in ("ww", "wb")}
    if net.widths[-1] > 1:
        starts |= {(kinds, _TWO_OUTPUTS): update_state(kinds, _TWO_OUTPUTS) for kinds in ("ww", "wb", "bw")}
    return starts


def _mean_update(net: Network, values: Mapping[Hashable, Number]) -> dict[str, Number]:
    """E[Delta K_aa]/lambda under SGD on all outputs, and its parts: with one output the paper's Delta_ww, Delta_wb."""
    ww, wb = values["ww", ONE_OUTPUT], values["wb", ONE_OUTPUT]
    others = net.widths[-1] - 1
    with decimal.localcontext(CONTEXT):
        if others:
            ww += others * values["ww", _TWO_OUTPUTS]
            wb += others * (values["wb", _TWO_OUTPUTS] + values["bw", _TWO_OUTPUTS]) / 2
        return {"dK": -2 * (ww + 2 * wb), "D_ww": ww, "D_wb": wb, "D_bb": 0 * ww}


def exact_values(exact: KernelMoments) -> dict[str, float]:
    """Exact values of the moments that draws estimate, `finwidth.quantities.DRAWN`, as floats."""
    return {name: float(value) for name, value in exact.by_name.items() if name in DRAWN}


def infinite_width(net: Network, x: Vector) -> float:
    """K(x,x) of the network with the same gains and infinitely wide hidden layers (NTK parameterization).

    On the diagonal the mean of K depends on the widths only through dead layers; without them it is the limit.

    Examples
    --------
    >>> import finwidth
    >>> finwidth.infinite_width(finwidth.MLP([2, 3, 3, 1]), [1, 2])   # 3 * 5/2 + 1 + 2/2
    9.5
    """
    check_supported("finwidth.moments", net, called="finwidth.infinite_width")
    starts = {kind: pairs(kind) for kind in "wb"}
    values = _evaluate(starts, net, Input.of(exact_input(net, x), 2), exact=False, dead_layers=False)
    with decimal.localcontext(CONTEXT):
        found = float(values["w"] + values["b"])
    if math.isinf(found):
        raise FinwidthError("the kernel overflows a double; rescale the input or the gains")
    return found


def _evaluate(
    starts: Mapping[_Key, State], net: Network, x: Input, *, exact: bool, dead_layers: bool = True
) -> dict[_Key, Number]:
    """The value of each start, in fractions or in decimals."""
    convert = Fraction if exact else to_decimal
    with decimal.localcontext(CONTEXT):
        found, _ = algorithm(ALGORITHMS, net).values([*starts.values()], net, x, convert, dead_layers=dead_layers)
    return dict(zip(starts, found, strict=True))

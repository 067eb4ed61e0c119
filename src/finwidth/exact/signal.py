"""Exact moments of what a network passes on: its outputs and the lengths of its hidden vectors."""

from __future__ import annotations

import decimal
import math
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction

from finwidth import arguments
from finwidth.documents import exact_number
from finwidth.errors import FinwidthError
from finwidth.exact.moments import ALGORITHMS, CONTEXT, Exact, Moments, check_exact, check_order, exp, present
from finwidth.exact.partitions import canonical, start_state
from finwidth.exact.transfer import Input, Number, to_decimal
from finwidth.networks.description import Network, check_network
from finwidth.networks.inputs import Vector, exact_input
from finwidth.networks.routes import algorithm, check_supported
from finwidth.tables import Cell, Result, Table, number, told


@dataclass(frozen=True, repr=False)
class SignalMoments(Result):
    """Moments of the output and of the lengths of the hidden vectors of a random network at one input.

    Attributes
    ----------
    network
        The network.
    output
        `Moments` of N_a^2 for one output a: ``output.raw`` is (E[N_a^2], E[N_a^4], ...).
    hidden
        For each hidden layer i = 1, ..., d - 1 the `Moments` of |x^(i)|^2: ``hidden[0].raw`` is (E|x^(1)|^2,
        E|x^(1)|^4, ...). For a `ResNet` the same of its stream, |x_l|^2 for l = 0, ..., L.
    """

    network: Network
    output: Moments
    hidden: tuple[Moments, ...]
    _between: Number

    @property
    def kurtosis(self) -> float | None:
        """E[N_a^4] / E[N_a^2]^2, which is 3 for a normal law; None where the output is always 0."""
        second, fourth = self.output.log_raw[:2]
        return None if second == -math.inf else exp(fourth - 2 * second)

    @property
    def between_outputs(self) -> Exact:
        """E[N_a^2 N_b^2] for two outputs a and b of a network with several; E[N_a N_b] is 0."""
        if self.network.widths[-1] == 1:
            raise FinwidthError("between_outputs needs a network with several outputs; this one has one")
        return present(self._between)

    def content(self) -> dict[str, object]:
        """Moments of one output N_0 and of the lengths of the hidden vectors, by name."""
        found = _powers("N_0", self.output)
        for place, each in zip(self.network.hidden_places, self.hidden, strict=True):
            found |= _powers(f"|x_{place}|", each)
        if self.kurtosis is not None:
            found["kurtosis(N_0)"] = exact_number(self.kurtosis)
        if self.network.widths[-1] > 1:
            found["N_0^2*N_1^2"] = exact_number(self.between_outputs)
        return {"quantities": {name: {"exact": each} for name, each in found.items()}}

    def _table(self) -> Table:
        powers = tuple(f"E[q{'' if power == 1 else '²³⁴'[power - 2]}]" for power in range(1, len(self.output.raw) + 1))
        table = Table(str(self.network), ("quantity q", *powers), most=_MOST_ROWS)
        for place, each in zip(self.network.hidden_places, self.hidden, strict=True):
            table.add(f"|x_{place}|²", *_raw_cells(each))
        table.add("N²", *_raw_cells(self.output))
        table.notes = f"N is one output; its kurtosis is {number(self.kurtosis)}."
        return table

    def _headline(self) -> str:
        return f"{self.network}: E[N²] {number(self.output.mean)}, kurtosis of N {number(self.kurtosis)}"


_MOST_ROWS = 21  # that are shown


def _powers(name: str, squared: Moments) -> dict[str, dict[str, object]]:
    """Moments of a number by those of its square."""
    both = enumerate(zip(squared.raw, squared.log_raw, strict=True), 1)
    return {f"{name}^{2 * power}": exact_number(value, log) for power, (value, log) in both}


def _raw_cells(found: Moments) -> Iterator[Cell]:
    return (told(value, log=log) for value, log in zip(found.raw, found.log_raw, strict=True))


def signal_moments(net: Network, x: Vector, *, exact: bool = False, order: int = 2) -> SignalMoments:
    r"""Exact moments of the output and of the hidden vectors' lengths at initialization, at any depth and widths.

    For ReLU with gain 2 and zero biases |x^(i)|^2 is a martingale and E|x^(i)|^4 grows by 1 + 5/n_i a layer for
    Gaussian weights, which makes N_a far from normal: its kurtosis is 3 prod_i (1 + 5/n_i) (Hanin 2018; Hanin and Nica
    2020, Products of many large random matrices). The transfer of `moments` without derivatives
    (docs/theory/transfer.md), in O(depth).

    Parameters
    ----------
    net
        An `MLP` or a `ResNet`: any symmetric weight law, homogeneous activation, widths, and initial biases.
    x
        One input, shape (n_0,).
    exact
        Return `fractions.Fraction` (floats given for x count as the binary fractions that they are).
    order
        2, 3 or 4: the highest power of N^2 and |x^(i)|^2.

    Returns
    -------
    SignalMoments
        Dimensionless numbers.

    Raises
    ------
    FinwidthError
        As for `moments`.

    Examples
    --------
    >>> import finwidth
    >>> found = finwidth.signal_moments(finwidth.MLP([2, 10, 10, 10, 1]), [3, 4], exact=True)
    >>> print(found.output.mean, found.hidden[0].mean, found.hidden[2].second_moment)
    25/2 125 421875/8
    >>> round(found.kurtosis, 6), 3 * 1.5**3
    (10.125, 10.125)
    """
    net, exact, order = check_network(net), arguments.flag("exact", exact), check_order(order)
    check_supported("finwidth.moments", net, called="finwidth.signal_moments")
    if exact:
        check_exact(net)
    powers = range(1, order + 1)
    starts = [start_state([range(2 * p)], []) for p in powers]
    if net.widths[-1] > 1:
        starts.append(start_state([(0, 1), (2, 3)], []))
    # Ties of pairs that go on: their value at a layer is the mean of a product of that many squared lengths.
    pairs = [canonical((("", ""),) * p) for p in powers]
    given = Input.of(exact_input(net, x), 2 * order)
    with decimal.localcontext(CONTEXT):
        convert = Fraction if exact else to_decimal
        values, hidden = algorithm(ALGORITHMS, net).values(starts, net, given, convert, watched=pairs)
    return SignalMoments(
        net, Moments(tuple(values[:order])), tuple(Moments(tuple(each)) for each in hidden), values[-1]
    )

"""What draws tell of the kernel: `finwidth.summarize` at one input, and `summarize_gram` at several."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import combinations_with_replacement
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from finwidth import arguments
from finwidth.arguments import FloatArray, count
from finwidth.documents import exact_number, plain
from finwidth.errors import FinwidthError
from finwidth.exact.infinite_width import infinite_width_gram
from finwidth.exact.infinite_width import unsupported as unsupported_at_infinite_width
from finwidth.exact.moments import exact_values, moments, unsupported
from finwidth.exact.normalised import tail_exponent
from finwidth.networks.description import Network, check_network
from finwidth.networks.inputs import Vector
from finwidth.networks.mlp import MLP
from finwidth.quantities import DRAWN, MOMENTS, Estimate, doubts, of_several
from finwidth.sampling.kernel_matrix.sample_gram import kernel_matrix_sampler, sample_gram
from finwidth.sampling.one_input import importance
from finwidth.sampling.one_input.importance import importance_estimates
from finwidth.sampling.one_input.sample import first_output, one_input_sampler, sample
from finwidth.sampling.sampler import afford_draws, draw_chunks
from finwidth.sampling.statistics.estimates import MomentAccumulators, ScaledAccumulator
from finwidth.sampling.statistics.quantile_sketch import SHOWN, Measured, QuantileSketch
from finwidth.tables import Cell, Result, Table, told

if TYPE_CHECKING:
    import xarray as xr

METHODS = ("plain", "importance")
_WRITTEN = 3  # times the bytes of a draw, which is kept and written to a file, from a copy


@dataclass(frozen=True, repr=False)
class Summary(Result):
    """What `summarize` returns.

    Attributes
    ----------
    network, draws, seed
        As given.
    estimates
        Of the means that draws tell (K, K_w, K_b, their squares, K_w K_b, dK), with their standard errors, and whether
        both can be trusted. Of several outputs K is that of output 0, K_00, and dK its change under a step on all.
        Means that are infinite, as those of normalised networks may be, are left out.
    exact
        Exact values of the same moments; None where there are none.
    K
        Quantiles of K and the moments of its logarithm; None of importance sampling, whose draws are weighted.
    """

    network: Network
    draws: int
    seed: int
    estimates: Mapping[str, Estimate]
    exact: Mapping[str, float] | None
    K: QuantileSketch | None

    @property
    def infinite(self) -> tuple[str, ...]:
        """The means that are left out, as they are infinite, or not sure to be finite (`exact.normalised`)."""
        return tuple(name for name in DRAWN if name not in self.estimates)

    @property
    def spread(self) -> Measured | None:
        """(q84 - q16) / (2 median) of K, which is its coefficient of variation where K is near to normal.

        It exists where the moments of K do not. None of importance sampling.
        """
        return None if self.K is None else self.K.relative_spread

    @property
    def method(self) -> str:
        """``"plain"`` or ``"importance"``."""
        return METHODS[self.K is None]

    def content(self) -> dict[str, object]:
        """Exact values and estimates of each mean, and of plain draws the law of K."""
        exact, route = self.exact or {}, "tilted" if self.K is None else "sampled"
        found: dict[str, dict[str, object]] = {name: {"exact": exact_number(value)} for name, value in exact.items()}
        for name, each in self.estimates.items():
            known = exact.get(name)
            found.setdefault(name, {})[route] = each.content() if known is None else each.against(known)
        law = {} if self.K is None else {name: {route: plain(each)} for name, each in self.K.content().items()}
        return {"quantities": found | law, "not_finite": list(self.infinite)}

    def _table(self) -> Table:
        table = Table(str(self.network), ("quantity", "exact", "sampled", "std. err.", "z", "effective draws"))
        exact = self.exact or {}
        for name, each in self.estimates.items():
            value = exact.get(name)
            table.add(MOMENTS[name].label, value, *each.cells(value), told(each.effective_draws, ".3g"))
        table.notes = f"{of_several(self.network)}{self.draws} draws, {self.method}.\n{self._notes()}"
        return table

    def _notes(self) -> str:
        notes = doubts(self.estimates)
        if self.infinite:
            labels = ", ".join(MOMENTS[name].label for name in self.infinite)
            notes += f"Not finite, or not sure to be: {labels}.\n"
            notes += f"(q84 - q16) / (2 median) of K: {_with_error(self.spread, '.4g')}.\n" if self.spread else ""
        if self.K is None:
            return notes + "Tilted draws: networks are drawn in proportion to what they carry, and weighted."
        if notes and not importance.unsupported(self.network):
            notes += 'These means rest on rare networks, which method="importance" (sample --tilted) draws.\n'
        return f"{notes}\n{_law(self.K)}"

    def _headline(self) -> str:
        found = self.estimates.get("K")
        mean = f"E[K] {found.value:.6g} ± {found.se:.2g}, " if found else ""
        median = "" if self.K is None else f"median {self.K.quantile(0.5).value:.4g}, "
        return f"{self.network}: {mean}{median}{self.draws:,} draws"


def _law(law: QuantileSketch) -> str:
    """Quantiles and moments of the logarithm, with their standard errors."""
    quantiles = ", ".join(f"{share:.0%} {_with_error(law.quantile(share), '.4g')}" for share in SHOWN)
    lines = [f"Quantiles of K: {quantiles}."]
    if law.zeros < 1:
        of = "log K" + (", where K > 0," if law.zeros else "")
        mean, sd = _with_error(law.log_mean, ".4f"), _with_error(law.log_sd, ".4f")
        lines.append(f"Mean of {of} {mean}, standard deviation {sd}.")
    if law.zeros:
        lines.append(f"K = 0 in {law.zeros:.2%} of the draws.")
    return "\n".join(lines)


def _with_error(measured: Measured, kind: str) -> str:
    """A statistic in a sentence, its error in one digit."""
    return f"{measured.value:{kind}} ± {float(f'{measured.se:.1g}'):g}"


def summarize(
    net: Network,
    x: Vector,
    draws: int = 100_000,
    seed: int = 0,
    *,
    method: str = "plain",
    threads: int | None = None,
    device: str | None = None,
    progress: Callable[[int], object] | None = None,
) -> Summary:
    """Means, quantiles and their errors from draws of the kernel at one input, beside the exact values.

    The draws are those of `finwidth.sample`, or weighted ones, and none is kept: any number of them takes the same
    memory.  An estimate that cannot be trusted says so: the moments of deep narrow networks rest on rare ones, which
    plain draws miss and importance sampling makes (docs/theory/importance.md).  Quantiles are right to 0.1%
    (DDSketch; Masson, Rim and Lee 2019).  Of normalised networks only the means that exist are estimated; quantiles
    and `Summary.spread` always exist (docs/theory/normalisation.md).

    Parameters
    ----------
    net, x
        The network, of those that `finwidth.sample` draws, and one input, shape (n_0,). Of several outputs the summary
        is of output 0, as `finwidth.moments` is; the others have the same law.
    draws, seed
        How many networks, and a whole number that fixes them.
    method
        ``"plain"``, or ``"importance"``: networks are drawn in proportion to what they contribute to the means, and
        weighted; for initial biases zero and one output, of an `MLP` with ReLU and of a `ResNet` with any two slopes.
    threads, device, progress
        As in `finwidth.sample`; importance sampling is on threads only.

    Raises
    ------
    FinwidthError
        If an argument is not allowed, the network is not one that is drawn so, or a draw overflows a double.

    Examples
    --------
    >>> import finwidth
    >>> net = finwidth.MLP([3, *[5] * 15, 1])    # the sum of 1/n_i is 3
    >>> plain, weighted = (finwidth.summarize(net, [1, 2, 2], method=each) for each in ("plain", "importance"))
    >>> plain.estimates["K^2"].trust, weighted.estimates["K^2"].trust
    (False, True)
    >>> abs(weighted.estimates["K^2"].value / weighted.exact["K^2"] - 1) < 0.02
    True
    >>> round(plain.K.quantile(0.5).value, 1)    # the median
    1.4
    """
    net, draws, method = check_network(net), count("draws", draws), arguments.one_of("method", method, METHODS)
    exact = None if unsupported(net) else exact_values(moments(net, x))
    if method == "importance":
        if device is not None:
            raise FinwidthError("importance sampling is on threads; leave device out, or take method='plain'")
        known = None if exact is None else dict(exact)
        found = importance_estimates(net, x, draws, seed, exact=known, threads=threads, progress=progress)
        return Summary(net, draws, seed, found, exact, None)
    sampler = one_input_sampler(net, x, device, first_output=True)
    chunks = draw_chunks(sampler, draws, seed, threads=threads, progress=progress)
    return summary_of(net, chunks, draws, seed, exact)


def sample_and_summarize(net: Network, x: Vector, draws: int, seed: int) -> tuple[Summary, xr.Dataset]:
    """The draws of `finwidth.sample`, to be written to a file, and their summary."""
    exact = None if unsupported(net) else exact_values(moments(net, x))
    sampler = one_input_sampler(net, x)
    afford_draws(sampler, draws, 1, kept=_WRITTEN * sampler.kept)
    dataset = sample(net, x, draws, seed)
    columns = {str(name): column.to_numpy() for name, column in dataset.items()}
    return summary_of(net, [first_output(columns)], draws, seed, exact), dataset


def summary_of(
    net: Network, chunks: Iterable[Mapping[str, FloatArray]], draws: int, seed: int, exact: dict[str, float] | None
) -> Summary:
    """What chunks of draws tell, of one output."""
    totals, K = MomentAccumulators(), QuantileSketch()
    for drawn in chunks:
        K.add(drawn["K"])
        totals.add(drawn)
    return Summary(net, draws, seed, finite_means(totals.estimates(exact), tail_exponent(net)), exact, K)


def finite_means(estimates: Mapping[str, Estimate], exponent: float) -> dict[str, Estimate]:
    """Those of means that are finite where E[K^p] is for p < ``exponent``; the errors of some may be infinite still.

    Examples
    --------
    >>> from finwidth.quantities import Estimate
    >>> from finwidth.summary import finite_means
    >>> found = finite_means(dict.fromkeys(["K", "K^2"], Estimate(1.0, 0.1, 900, 450.0, True, "")), 1.5)
    >>> [(name, each.trust) for name, each in found.items()]
    [('K', False)]
    """
    verdict = "its standard error is infinite, whatever the draws say of it"
    found = {name: each for name, each in estimates.items() if MOMENTS[name].order < exponent}
    return {
        name: each if 2 * MOMENTS[name].order < exponent else replace(each, trust=False, verdict=verdict)
        for name, each in found.items()
    }


@dataclass(frozen=True, repr=False)
class GramSummary(Result):
    """What `summarize_gram` returns.

    Attributes
    ----------
    network, draws, seed
        As given.
    estimates
        Of E[K_ab], and with targets of E[dK_ab], one for each pair of inputs: shape (m, m) as lists. Of
        several outputs K is that of output 0, K_00, and dK its change under a step on all.
    infinite_width
        K_ab of the infinitely wide network, shape (m, m); None where that is not known.
    """

    network: Network
    draws: int
    seed: int
    estimates: Mapping[str, list[list[Estimate]]]
    infinite_width: FloatArray | None

    def content(self) -> dict[str, object]:
        """Of each pair of inputs the mean kernel, and its change where that was drawn: matrices of shape (m, m)."""
        found: dict[str, dict[str, object]] = {n: {"sampled": _columns_of(rows)} for n, rows in self.estimates.items()}
        if self.infinite_width is not None:
            found["K"]["infinite_width"] = {"value": plain(self.infinite_width)}
        return {"quantities": found}

    def _table(self) -> Table:
        """Of each pair of inputs the mean kernel, its spread, and its change where that was drawn."""
        headings = ("infinite width",) * (self.infinite_width is not None) + ("E[K_ab]", "std. err.", "std. dev.")
        headings += ("E[ΔK_ab]/λ", "std. err.") * ("dK" in self.estimates)
        table = Table(str(self.network), ("a", "b", *headings), named=2)
        m, doubtful = len(self.estimates["K"]), False
        for a, b in combinations_with_replacement(range(min(m, MOST_INPUTS)), 2):
            row: list[Cell] = [] if self.infinite_width is None else [float(self.infinite_width[a, b])]
            for name, rows in self.estimates.items():
                row += rows[a][b].cells()[:2]
                row += [told(rows[a][b].se * rows[a][b].draws ** 0.5, ".3g")] if name == "K" else []
                doubtful |= not rows[a][b].trust
            table.add(str(a), str(b), *row)
        inputs = f"{m} input{'s' * (m > 1)}"
        table.notes = of_several(self.network) + f"{self.draws} draws in law at {inputs}, a and b counted from 0."
        table.notes += f" The table is of the first {MOST_INPUTS}; --json has all." if m > MOST_INPUTS else ""
        table.notes += "\n! too few draws carry this mean to trust it." if doubtful else ""
        return table

    def _headline(self) -> str:
        return f"{self.network}: {self.draws:,} draws at {len(self.estimates['K'])} inputs"


MOST_INPUTS = 6  # whose pairs a table shows


def _columns_of(rows: Sequence[Sequence[Estimate]]) -> dict[str, object]:
    """Estimates, shape (m, m), as a table of each of their numbers."""
    told = [[each.content() for each in row] for row in rows]
    return {column: [[each[column] for each in row] for row in told] for column in ("value", "se", "trust", "verdict")}


def summarize_gram(
    net: Network, X: npt.ArrayLike, draws: int = 1000, seed: int = 0, *, y: npt.ArrayLike | None = None
) -> GramSummary:
    """Means of the kernel matrix of several inputs, and with targets ``y`` of its change, beside infinite width.

    The draws are those of `finwidth.sample_gram`, which are not kept.

    Examples
    --------
    >>> import numpy as np, finwidth
    >>> from finwidth.summary import summarize_gram
    >>> found = summarize_gram(finwidth.MLP([2, 64, 64, 1], activation="tanh"), np.eye(2), draws=2000)
    >>> one = found.estimates["K"][0][1]
    >>> one.trust, bool(abs(one.value - found.infinite_width[0, 1]) < 0.1)
    (True, True)
    """
    chunks = draw_chunks(kernel_matrix_sampler(net, X, y), draws, seed)
    return _gram_summary(net, X, chunks, draws, seed)


def sample_and_summarize_gram(
    net: Network, X: npt.ArrayLike, draws: int, seed: int, *, y: npt.ArrayLike | None = None
) -> tuple[GramSummary, xr.Dataset]:
    """The draws of `finwidth.sample_gram`, to be written to a file, and their summary."""
    dataset = sample_gram(net, X, draws, seed, y=y)
    columns = {str(name): column.to_numpy() for name, column in dataset.items()}
    return _gram_summary(net, X, [columns], draws, seed), dataset


def _gram_summary(
    net: Network, X: npt.ArrayLike, chunks: Iterable[Mapping[str, FloatArray]], draws: int, seed: int
) -> GramSummary:
    totals: dict[str, list[list[ScaledAccumulator]]] = {}
    for drawn in chunks:
        for name, values in _of_pairs(drawn, net.widths[-1]).items():
            m = values.shape[1]
            pairs = totals.setdefault(name, [[ScaledAccumulator() for _ in range(m)] for _ in range(m)])
            for a, b in np.ndindex(m, m):
                pairs[a][b].add(values[:, a, b])
    estimates = {name: [[each.estimate() for each in row] for row in rows] for name, rows in totals.items()}
    limit = infinite_width_gram(net, X) if isinstance(net, MLP) and not unsupported_at_infinite_width(net) else None
    return GramSummary(net, draws, seed, estimates, limit)


def _of_pairs(drawn: Mapping[str, FloatArray], outputs: int) -> dict[str, FloatArray]:
    """K and, if it was drawn, dK of output 0, shape (draws, m, m)."""
    return {name: drawn[name][..., 0, 0] if outputs > 1 else drawn[name] for name in ("K", "dK") if name in drawn}

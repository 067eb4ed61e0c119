"""The main job: everything about the kernel of one network at one input, as a table, figures and a file."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias, cast

import numpy as np

from finwidth import arguments, outputs, plots
from finwidth.arguments import count
from finwidth.documents import beside, extended
from finwidth.errors import FinwidthError
from finwidth.exact.bounds import CAPTION, HEADINGS, Bounds, bounds, unsupported
from finwidth.exact.expansion.one_input import FirstOrder, only_to_first_order, to_first_order
from finwidth.exact.moments import KernelMoments, exact_values, infinite_width, moments
from finwidth.exact.normalised import why_quantiles
from finwidth.networks.description import Network, check_network, kept_widths
from finwidth.networks.family import Family, FamilyOptions, family_of
from finwidth.networks.inputs import Vector
from finwidth.networks.laws import FloatArray
from finwidth.networks.mlp import MLP
from finwidth.networks.routes import check_supported
from finwidth.plots.style import rendered, titled
from finwidth.quantities import MOMENTS, Estimate, attributes, doubts, of_several
from finwidth.sampling.kernel_matrix.one_of_many import draw_one_input
from finwidth.sampling.one_input.sample import AtOneInput, one_input_sampler
from finwidth.sampling.sampler import Columns, draw_chunks
from finwidth.sampling.statistics.estimates import MomentAccumulators
from finwidth.sampling.statistics.quantile_sketch import SHOWN
from finwidth.summary import DrawnSummary, Summary
from finwidth.tables import Result, Table, number, told

if TYPE_CHECKING:
    from matplotlib.figure import Figure

MANIFEST = "manifest.json"
FILES = ("report.json", "law.png", "law.pdf", "depth.png", "depth.pdf", MANIFEST)
_DRAWS, _FEWEST = 10**6, 1000
_NEURONS = 5 * 10**6  # of networks that are drawn neuron by neuron: some seconds
_PICTURED = 10**6  # draws that the histogram shows; more would not change what is seen


@dataclass(frozen=True)
class ReportRow:
    """One quantity by both routes."""

    quantity: str
    exact: float
    sampled: Estimate


@dataclass(frozen=True, repr=False)
class Report(Result):
    """The result of `report`; ``rows`` is the table, ``drawn`` holds draws of K for the figure, shape (draws,)."""

    network: Network
    moments: KernelMoments
    infinite_width: float
    bounds: Bounds | None
    rows: tuple[ReportRow, ...]
    drawn: FloatArray
    provenance: Mapping[str, object]

    def _about(self) -> dict[str, object]:
        return _about_draws(self.network, self.provenance)

    def content(self) -> dict[str, object]:
        """The exact moments, and beside them the paper's forms, the infinite width and the estimates."""
        estimates = {row.quantity: row.sampled.against(row.exact) for row in self.rows}
        drawn: dict[str, dict[str, object]] = {name: {"sampled": each} for name, each in estimates.items()}
        drawn["K"]["infinite_width"] = {"value": self.infinite_width}
        return beside((self.bounds or self.moments).content(), drawn) | {"method": self.provenance["method"]}

    def _table(self) -> Table:
        """Every quantity by every route."""
        headings = HEADINGS if self.bounds else ()
        table = Table(str(self.network), ("quantity", "exact", *headings, "sampled", "std. err.", "z"))
        for row in self.rows:
            forms = self.bounds.cells(row.quantity) or ("", "") if self.bounds else ()
            table.add(MOMENTS[row.quantity].label, row.exact, *forms, *row.sampled.cells(row.exact))
        table.notes = of_several(self.network) + f"Infinite width: K = {self.infinite_width:.6g}. "
        table.notes += f"CV of K: {number(self.moments.cv)}.\n"
        table.notes += doubts({row.quantity: row.sampled for row in self.rows}) + (CAPTION if self.bounds else "")
        return table

    def _headline(self) -> str:
        K = self.rows[0]
        return f"{self.network}: E[K] {number(K.exact)}, sampled {K.sampled.value:.6g}, CV {number(self.moments.cv)}"

    def law(self, title: str) -> Figure:
        """The figure of K's law."""
        return plots.law_of_kernel(self.drawn, float(self.moments.mean), self.infinite_width, title)


@dataclass(frozen=True, repr=False)
class ExpandedReport(Result):
    """The result of `report` where moments are known to first order in 1/width, as for smooth activations.

    Attributes
    ----------
    first_order
        K to first order, and whether that serves at this width.
    estimates
        Of draws, by the names of `finwidth.quantities.MOMENTS`; dK is missing if phi'' is not known.
    drawn
        Draws of K for the figure, shape (draws,).
    """

    network: Network
    first_order: FirstOrder
    estimates: Mapping[str, Estimate]
    drawn: FloatArray
    provenance: Mapping[str, object]

    def _about(self) -> dict[str, object]:
        return _about_draws(self.network, self.provenance)

    def content(self) -> dict[str, object]:
        """First order, and the estimates beside it."""
        drawn = {name: {"sampled": each.content()} for name, each in self.estimates.items()}
        return beside(self.first_order.content(), drawn) | {"method": self.provenance["method"]}

    def _table(self) -> Table:
        """First order in 1/width beside draws, and whether it serves."""
        wide = self.first_order
        table = Table(str(self.network), ("quantity", "first order", "sampled", "std. err.", "differ"))
        for name, each in self.estimates.items():
            known = wide.means.get(name)
            off = each.value / known - 1 if known else None
            table.add(MOMENTS[name].label, known, *each.cells()[:2], "" if off is None else told(off, "+.1%"))
        K, square = self.estimates["K"].value, self.estimates["K^2"].value
        spread = max(0.0, square / K**2 - 1) ** 0.5
        notes = of_several(self.network) + f"Infinite width: K = {wide.infinite_width:.6g}. "
        notes += f"CV of K: {wide.cv:.4g} to first order in 1/width, {spread:.4g} of {len(self.drawn)} draws.\n"
        table.notes = notes + f"First order {wide.verdict}.\n" + doubts(self.estimates)
        return table

    def _headline(self) -> str:
        K, wide = self.estimates["K"], self.first_order
        return (
            f"{self.network}: E[K] {wide.mean:.6g} to first order in 1/width, sampled {K.value:.6g}, CV {wide.cv:.4g}"
        )

    def law(self, title: str) -> Figure:
        """The figure of K's law, without an exact mean."""
        return plots.law_of_kernel(self.drawn, None, self.first_order.infinite_width, title)


@dataclass(frozen=True, repr=False)
class QuantileReport(Result):
    """The result of `report` for a normalised network: what draws tell of K; ``reason`` says why not its means.

    ``drawn`` holds draws of K for the figure, shape (draws,).
    """

    network: Network
    summary: Summary
    reason: str
    drawn: FloatArray
    provenance: Mapping[str, object]

    def _about(self) -> dict[str, object]:
        return _about_draws(self.network, self.provenance)

    def content(self) -> dict[str, object]:
        """What the summary has, and why there are no exact moments."""
        return {**self.summary.content(), "no_moments": self.reason, "method": self.provenance["method"]}

    def _table(self) -> Table:
        """Quantiles and the spread of K, and the means that exist."""
        table = Table(str(self.network), ("quantity", "sampled", "std. err."))
        law, spread = self.summary.K, self.summary.spread
        assert law is not None
        assert spread is not None
        rows = {f"{share:.0%} quantile of K": law.quantile(share) for share in SHOWN}
        rows |= {"(q84 - q16) / (2 median)": spread, "standard deviation of log K": law.log_sd}
        for name, each in rows.items():
            table.add(name, each.value, told(each.se, ".2g"))
        for name, estimate in self.summary.estimates.items():
            table.add(MOMENTS[name].label, *estimate.cells()[:2])
        infinite = ", ".join(MOMENTS[name].label for name in self.summary.infinite)
        table.notes = f"No exact moments: {self.reason}.\n"
        table.notes += f"Not finite, or not sure to be: {infinite}.\n" if infinite else ""
        table.notes += doubts(self.summary.estimates)
        return table

    def _headline(self) -> str:
        spread = self.summary.spread
        return f"{self.network}: (q84 - q16) / (2 median) of K {spread.value if spread else math.nan:.4g}"

    def law(self, title: str) -> Figure:
        """The figure of K's law, without a mean."""
        return plots.law_of_kernel(self.drawn, None, None, title)


def _about_draws(net: Network, provenance: Mapping[str, object]) -> dict[str, object]:
    return {"network": net.describe(), "draws": int(str(provenance["draws"])), "seed": int(str(provenance["seed"]))}


AnyReport: TypeAlias = Report | ExpandedReport | QuantileReport


def report(
    net: Network,
    x: Vector,
    draws: int | None = None,
    seed: int = 0,
    *,
    progress: Callable[[int], object] | None = None,
) -> AnyReport:
    """Exact moments, the paper's forms and draws in law of one network at one input, side by side.

    Of an `MLP`, or of a `ResNet`, which the paper's forms do not cover.  Parameters as in `finwidth.sample`; by default
    10^6 draws. Of several outputs K is that of output 0, and a step trains all.

    Of networks without exact moments, such as those of smooth activations, first order in 1/width (`expansion`) takes
    their place, with a verdict on whether it serves. They are drawn neuron by neuron, by default as often as some
    seconds allow.  Of normalised networks, whose E[K] is often infinite, it tells quantiles of the draws, the spread,
    and those means that exist.

    Examples
    --------
    >>> import finwidth
    >>> from finwidth.report import report
    >>> found = report(finwidth.MLP([2, 16, 16, 1]), [1, 2], draws=20_000)
    >>> [row.quantity for row in found.rows][:3]
    ['K', 'K_w', 'K_b']
    >>> found = report(finwidth.MLP([2, 16, 16, 1], norm="rms"), [1, 2], draws=20_000)
    >>> found.reason, 0.4 < found.summary.spread.value < 0.5
    ('E[K] is infinite', True)
    >>> found = report(finwidth.MLP([2, 64, 64, 1], activation="tanh"), [1, 2], draws=20_000)
    >>> found.first_order.serves, abs(found.first_order.mean - found.estimates["K"].value) < 0.02
    (True, True)
    """
    net, given = check_network(net), None if draws is None else count("draws", draws)
    if only_to_first_order(net):
        return _report_to_first_order(net, x, given or _by_default(net), seed, progress)
    draws = given or _DRAWS
    if reason := why_quantiles(net):
        return _report_of_quantiles(net, one_input_sampler(net, x), reason, draws, seed, progress)
    check_supported("finwidth.moments", net)
    sampler = one_input_sampler(net, x, first_output=True)
    exact = moments(net, x)
    if not exact.mean:
        raise _nothing()
    forms = bounds(net, x, exact=exact) if isinstance(net, MLP) and not unsupported(net) else None
    values, totals, pictured = exact_values(exact), MomentAccumulators(), _Pictured()
    for drawn in draw_chunks(sampler, draws, seed, progress=progress):
        totals.add(drawn)
        pictured.add(drawn)
    rows = tuple(ReportRow(name, values[name], found) for name, found in totals.estimates(values).items())
    provenance = attributes(net, method=f"exact transfer; {sampler.method}", seed=seed, draws=draws)
    return Report(net, exact, infinite_width(net, x), forms, rows, np.concatenate(pictured.K), provenance)


def _by_default(net: Network) -> int:
    """How many networks of so many neurons are drawn."""
    return max(_FEWEST, min(_DRAWS, _NEURONS // sum(kept_widths(net))))


def _report_to_first_order(
    net: Network, x: Vector, draws: int, seed: int, progress: Callable[[int], object] | None
) -> ExpandedReport:
    wide = to_first_order(net, x)
    if not wide.infinite_width:
        raise _nothing()
    totals, pictured = MomentAccumulators(), _Pictured()
    for drawn in draw_one_input(net, x, draws, seed, progress=progress):
        totals.add(drawn)
        pictured.add(drawn)
    method = "expansion in 1/width to first order; conditioned Gaussian layers"
    provenance = attributes(net, method=method, seed=seed, draws=draws)
    return ExpandedReport(net, wide, totals.estimates(), np.concatenate(pictured.K), provenance)


def _report_of_quantiles(  # noqa: PLR0917
    net: Network,
    sampler: AtOneInput,
    reason: str,
    draws: int,
    seed: int,
    progress: Callable[[int], object] | None,
) -> QuantileReport:
    of_draws, pictured = DrawnSummary(), _Pictured()
    for drawn in draw_chunks(sampler, draws, seed, progress=progress):
        of_draws.add(drawn)
        pictured.add(drawn)
    summary = of_draws.summary(net, draws, seed, None)
    if summary.K is not None and summary.K.zeros == 1:
        raise _nothing()
    provenance = attributes(net, method=sampler.method, seed=seed, draws=draws)
    return QuantileReport(net, summary, reason, np.concatenate(pictured.K), provenance)


def _nothing() -> FinwidthError:
    return FinwidthError("the kernel of this network is zero at this input: there is nothing to report on")


class _Pictured:
    """K of the first draws, which the histogram shows."""

    def __init__(self) -> None:
        self.K: list[FloatArray] = []
        self.left = _PICTURED

    def add(self, drawn: Columns) -> None:
        """Take in a chunk of draws."""
        self.K.append(drawn["K"][: self.left])
        self.left -= len(self.K[-1])


def write(found: AnyReport, x: Vector, folder: str | Path) -> list[Path]:
    """Write report.json, and the figures law and depth as PNG and PDF, into ``folder``; returns the paths.

    All files are whole before the first of them takes its place, and manifest.json, which holds their hashes, is the
    last: `verify` tells a report from a mixture of two.

    Raises
    ------
    FinwidthError
        If the folder cannot be made or written, or one of the files is there and finwidth did not write it.
    """
    folder = arguments.path("the folder", folder)
    if not isinstance(found, QuantileReport | ExpandedReport):
        arguments.instance("found", found, Report, "what finwidth.report.report returns")
    net = found.network
    title = titled(net, x, widths=True, more=f"{len(found.drawn):,} draws")
    figures = {
        "law": found.law(title),
        "depth": _depth_figure(net, x),
    }
    contents = {"report.json": _document(extended(found.to_json(), input=x))}
    contents |= {f"{name}{each}": rendered(figures[name], each) for name in figures for each in (".png", ".pdf")}
    contents[MANIFEST] = _document({"files": {name: _fingerprint(content) for name, content in contents.items()}})
    with outputs.replacing_in(folder, FILES) as partials:
        for name, partial in partials.items():
            partial.write_bytes(contents[name])
    return [folder / name for name in FILES]


def verify(folder: str | Path) -> None:
    """Raise FinwidthError unless all files of a report are those that its manifest.json names.

    A report that is written over another replaces file after file; if it is killed between two of them, this tells.

    Examples
    --------
    >>> import tempfile
    >>> from finwidth import MLP
    >>> from finwidth.report import report, verify, write
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     _ = write(report(MLP([2, 8, 1]), [1, 2], draws=1000), [1, 2], Path(folder))
    ...     verify(folder)
    """
    folder = arguments.path("the folder", folder)
    try:
        told = json.loads((folder / MANIFEST).read_bytes())
        wrong = [
            name
            for name in FILES
            if name != MANIFEST and told["files"][name] != _fingerprint((folder / name).read_bytes())
        ]
    except (OSError, ValueError, LookupError, TypeError, RecursionError) as error:
        raise FinwidthError(
            f"there is no whole report in {folder} ({error}); finwidth report writes it again"
        ) from None
    if wrong:
        raise FinwidthError(
            f"the report in {folder} is not whole: {', '.join(wrong)} belongs to another report, or was changed; "
            "finwidth report writes it again"
        )


def _document(content: Mapping[str, object]) -> bytes:
    return (json.dumps({"source": outputs.SOURCE, **content}, indent=1, allow_nan=False) + "\n").encode()


def _fingerprint(content: bytes) -> dict[str, str | int]:
    return {"sha256": hashlib.sha256(content).hexdigest(), "bytes": len(content)}


def _depth_figure(net: Network, x: Vector) -> Figure:
    """Growth with depth around this network: half, once and twice its typical width, up to twice its depth.

    Of a normalised network the spread of draws; exact, or to first order beside draws, of others.
    """
    hidden = net.widths[1:-1]
    typical = round(len(hidden) / sum(1 / n for n in hidden)) if hidden else net.widths[0]
    normed = {} if net.norm is None else {"norm": net.norm}
    narrowest = 1 if net.norm is None else net.norm.narrowest
    widths = sorted({max(narrowest, typical // 2), typical, 2 * typical})
    deepest = max(8, 2 * net.depth)
    plot = plots.spread_over_depth if normed else plots.growth_with_depth
    most = 10 if normed or only_to_first_order(net) else 40
    depths = sorted({*range(1, deepest + 1, math.ceil(deepest / most)), net.depth})
    family = family_of(net)
    usual = Family(type(net), {"activation": net.activation, "parameterization": net.parameterization} | normed)
    drawn = family or usual
    figure = plot(x, widths, depths, here=net, kind=drawn.kind, **cast(FamilyOptions, drawn.options))
    if family is None:
        told = f"this network's {usual.layers} differ; lines: default gains, factors and biases"
        figure.axes[0].set_title(told.replace("weight ", ""), fontsize="small")
    return figure

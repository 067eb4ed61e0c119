"""Tables for people, on the terminal."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from fractions import Fraction
from itertools import combinations_with_replacement
from typing import TYPE_CHECKING, Any

from finwidth.networks.description import Network
from finwidth.paper import page
from finwidth.paper.records import Finding, Statement
from finwidth.quantities import MOMENTS, Estimate
from finwidth.sampling.one_input import importance
from finwidth.sampling.statistics.quantile_sketch import SHOWN

if TYPE_CHECKING:
    import xarray as xr
    from rich.console import Console
    from rich.table import Table

    from finwidth.comparison import Comparison, ExpandedComparison, ModuleComparison, QuantileComparison
    from finwidth.exact.bounds import Bounds
    from finwidth.exact.expansion.criticality import Criticality
    from finwidth.exact.moments import KernelMoments
    from finwidth.measurement import Measurement
    from finwidth.report import AnyReport, ExpandedReport, QuantileReport, Report
    from finwidth.sampling.statistics.quantile_sketch import Measured, QuantileSketch
    from finwidth.summary import GramSummary, Summary
    from finwidth.sweeps.store.dataset import Status

_LONGEST_FRACTION = 300  # bits; longer ones are told in digits and printed whole by --json


def number_of_digits(value: Fraction) -> str:
    """A long fraction by its size and its leading digits."""
    digits = round(value.numerator.bit_length() * math.log10(2))
    try:
        return f"{float(value):.6g} ({digits} digits)"
    except OverflowError:
        return f"({digits} digits)"


def number(value: float | Fraction | None, log: float | None = None) -> str:
    """Six digits; a fraction as it is; past a double's range from its logarithm."""
    if value is None:
        return ""
    if isinstance(value, Fraction):
        return str(value) if value.numerator.bit_length() < _LONGEST_FRACTION else number_of_digits(value)
    if math.isinf(value) and log is not None:
        exponent = math.floor(log / math.log(10))
        return f"{'-' if value < 0 else ''}{math.exp(log - exponent * math.log(10)):.5f}e+{exponent}"
    return f"{value + 0.0:.6g}"  # no negative zero


def _table(*columns: str) -> Table:
    from rich import box
    from rich.table import Table

    # Close columns, for 80 of them to hold every number; where they cannot, a number is folded, never cut.
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, collapse_padding=True, show_edge=False)
    for column in columns:
        named = column == "quantity"
        table.add_column(column, justify="left" if named else "right", no_wrap=named, overflow="fold")
    return table


def _console(*, width: int | None = None, soft_wrap: bool = False) -> Console:
    """A console that leaves a closed pipe to the caller."""
    from rich.console import Console

    class PipedConsole(Console):
        def on_broken_pipe(self) -> None:
            raise BrokenPipeError

    return PipedConsole(highlight=False, width=width, soft_wrap=soft_wrap)


def show(title: str, table: Table, notes: str) -> None:
    """Print to standard output, as wide as the terminal, or 100 columns into a file."""
    console = _console()
    console = console if console.is_terminal else _console(width=100)
    parts = [title, "", *([table, ""] if table.row_count else []), notes.strip()]
    console.print(*parts, sep="\n", soft_wrap=False, markup=False, highlight=False)


def print_moments(found: KernelMoments, forms: Bounds | None) -> None:
    """Print exact values beside the paper's forms."""
    logs = found.log_by_name
    columns = ("paper's form", "ratio") if forms else ()
    table = _table("quantity", "exact", *columns)
    for name, value in found.by_name.items():
        table.add_row(MOMENTS[name].label, number(value, logs[name]), *_form_columns(forms, name))
    table.add_section()
    table.add_row("Var[K]", number(found.variance, found.K.log_variance))
    table.add_row("CV of K", number(found.cv, found.K.log_cv))
    if found.order > 2:
        for power, (value, log) in enumerate(zip(found.raw[2:], found.K.log_raw[2:], strict=True), 3):
            table.add_row(f"E[K{'³⁴'[power - 3]}]", number(value, log))
        table.add_row("skewness of K", number(found.skewness))
    if found.order > 3:
        table.add_row("kurtosis of K", number(found.kurtosis))
        if found.network.widths[-1] == 1:
            table.add_row("Var[ΔK]/λ², N* = 0", number(found.update_variance()))
    if found.network.widths[-1] > 1:
        table.add_row("E[K_ab²], a ≠ b", number(found.between_outputs))
    show(str(found.network), table, _CAPTION if forms else "")


_CAPTION = (
    "ratio: exact value over the paper's form, which holds up to universal constants. The form carries exp(5 β) "
    "with β summed up to the output layer; the ratio leaves out that layer's constant e⁵. ΔK is compared by its "
    "absolute value."
)


def _form_columns(forms: Bounds | None, name: str) -> tuple[str, ...]:
    if forms is None:
        return ()
    if name not in forms.form:
        return "", ""
    return number(forms.form[name], forms.log_form[name]), number(forms.hidden_ratio[name])


_ROUNDING = 1e-14  # of a correction that is 0


def expansion_document(found: xr.Dataset) -> dict[str, object]:
    """The expansion as plain types: each quantity by order, its error of quadrature, and how far it serves."""
    quantities = {
        str(name): {
            "infinite_width": each[0].to_numpy().tolist(),
            "correction": each[1].to_numpy().tolist(),
            "error": each.attrs["error"],
        }
        for name, each in found.items()
    }
    told = ("inverse_widths", "relative_variance", "relative_correction", "left_out", "first_order")
    return {"quantities": quantities, **{name: found.attrs[name] for name in told}}


def print_expansion(net: Network, found: xr.Dataset) -> None:
    """Print what the expansion in 1/width says of each pair of inputs."""
    columns = ("infinite width", "correction", "E[K_ab]", "std. dev.", "E[ΔK_ab]/λ")
    table, m = _table("a", "b", *columns), found.sizes["input"]
    for a, b in combinations_with_replacement(range(min(m, _MOST_INPUTS)), 2):
        limit, correction = (float(each) for each in found.K[:, a, b])
        correction *= abs(correction) > _ROUNDING * abs(limit)
        sd = max(0.0, float(found.K_covariance[1, a, b, a, b])) ** 0.5
        shown = limit, correction, limit + correction, sd, float(found.dK[1, a, b])
        table.add_row(str(a), str(b), *(number(each) for each in shown))
    notes = _of_several(net) + "To first order in 1/width; a and b counted from 0, the step of ΔK on all inputs."
    notes += f" The table is of the first {_MOST_INPUTS}; --json has all." if m > _MOST_INPUTS else ""
    error = max(each.attrs["error"] for each in found.values())
    notes += f" Quadrature errs by {error:.1g} at most; -o and --json have the covariances.\n"
    show(str(net), table, notes + f"First order {found.attrs['first_order']}.")


def print_criticality(found: Criticality) -> None:
    """Print gain and variance of biases, and what kind of criticality it is."""
    table = _table("quantity", "value")
    table.add_row("gain", number(found.gain))
    table.add_row("variance of biases", number(found.bias_variance))
    table.add_row("K*", "any" if found.kernel is None else number(found.kernel))
    table.add_row("class", found.universality)
    show(f"{found.activation} at criticality", table, _CLASSES[found.universality])


_CLASSES = {
    "scale-invariant": "The variance of pre-activations stays as it is, at any size.",
    "K* = 0": "The variance of pre-activations falls as a power of depth.",
    "half-stable": "The variance of pre-activations comes to rest at K* from one side, and leaves it on the other.",
}


def print_summary(found: Summary) -> None:
    """Print sampled values with their standard errors beside exact ones, and the quantiles of K of plain draws."""
    table = _table("quantity", "exact", "sampled", "std. err.", "z", "effective draws")
    exact = found.exact or {}
    for name, each in found.estimates.items():
        value = exact.get(name)
        table.add_row(MOMENTS[name].label, number(value), *_sampled(each, value), f"{each.effective_draws:.3g}")
    notes = _of_several(found.network) + _doubts(found.estimates)
    if found.infinite:
        labels = ", ".join(MOMENTS[name].label for name in found.infinite)
        notes += f"Not finite, or not sure to be: {labels}.\n"
        notes += f"(q84 - q16) / (2 median) of K: {_with_error(found.spread, '.4g')}.\n" if found.spread else ""
    if found.K is None:
        notes += "Tilted draws: networks are drawn in proportion to what they carry, and weighted."
    else:
        if notes and not importance.unsupported(found.network):
            notes += "These means rest on rare networks; finwidth sample --tilted draws them.\n"
        notes += "\n" + _law(found.K)
    show(str(found.network), table, notes)


def _of_several(net: Network) -> str:
    """What K is of a network of several outputs."""
    return "" if net.widths[-1] == 1 else "K is that of output 0; the step of ΔK is on all outputs.\n"


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
    return f"{measured.value:{kind}} ± {float(f'{measured.se:.1g}'):g}"


_MOST_INPUTS = 6  # whose pairs a table shows


def print_gram(found: GramSummary) -> None:
    """Print the mean kernel of each pair of inputs, its spread, and its change where that was drawn."""
    columns = ("infinite width",) * (found.infinite_width is not None) + ("E[K_ab]", "std. err.", "std. dev.")
    columns += ("E[ΔK_ab]/λ", "std. err.") * ("dK" in found.estimates)
    table = _table("a", "b", *columns)
    m, doubts = len(found.estimates["K"]), 0
    for a, b in combinations_with_replacement(range(min(m, _MOST_INPUTS)), 2):
        row = [] if found.infinite_width is None else [number(float(found.infinite_width[a, b]))]
        for name, rows in found.estimates.items():
            row += _sampled(rows[a][b], None)[:2]
            row += [f"{rows[a][b].se * rows[a][b].draws ** 0.5:.3g}"] if name == "K" else []
            doubts += not rows[a][b].trust
        table.add_row(str(a), str(b), *row)
    notes = _of_several(found.network) + f"{found.draws} draws in law at {m} inputs, a and b counted from 0."
    notes += f" The table is of the first {_MOST_INPUTS}; --json has all." if m > _MOST_INPUTS else ""
    notes += "\n! too few draws carry this mean to trust it." if doubts else ""
    show(str(found.network), table, notes)


_MOST_STEPS = 21  # that a table shows


def print_trajectory(net: Network, lr: float, found: Mapping[str, Any]) -> None:
    """Print how loss and kernel go over the steps, evenly thinned out where there are many."""
    series = {name: each for name, each in found.items() if name != "step"}
    table = _table("step", *(name.replace("_", " ") for name in series))
    last = len(found["step"]) - 1
    for place in sorted({round(last * k / (_MOST_STEPS - 1)) for k in range(_MOST_STEPS)}):
        table.add_row(str(found["step"][place]), *(_mean_at(each, place) for each in series.values()))
    notes = f"Learning rate {lr:.4g}. Means over draws ± standard errors. drift: |K_t - K_0| / |K_0|"
    notes += "; alignment: <K, t tᵀ> / (|K| |t tᵀ|)." if "alignment" in series else "."
    for name, each in series.items():
        most = max(each["left_out"])
        if most:
            draws = f"{most} draw{'s' * (most > 1)}"
            notes += f"\n{name}: {draws} left out, as a kernel of zeros has none."
            notes += " Nor have targets that are all 0." if name == "alignment" else ""
    show(str(net), table, notes)


def _mean_at(series: Mapping[str, Any], place: int) -> str:
    """Mean and standard error at a step; a dash where no draw has a value."""
    mean, se = series["mean"][place], series["se"][place] if series["se"] else math.nan
    return "-" if math.isnan(mean) else f"{mean:.4g}" + ("" if math.isnan(se) else f" ± {se:.2g}")


def print_report(found: Report) -> None:
    """Print every quantity by every route."""
    columns = ("paper's form", "ratio") if found.bounds else ()
    table = _table("quantity", "exact", *columns, "sampled", "std. err.", "z")
    for row in found.rows:
        form = _form_columns(found.bounds, row.quantity)
        table.add_row(MOMENTS[row.quantity].label, number(row.exact), *form, *_sampled(row.sampled, row.exact))
    notes = (
        _of_several(found.network)
        + f"Infinite width: K = {found.infinite_width:.6g}. CV of K: {number(found.moments.cv)}.\n"
    )
    notes += _doubts({row.quantity: row.sampled for row in found.rows}) + (_CAPTION if found.bounds else "")
    show(str(found.network), table, notes)


def print_any_report(found: AnyReport) -> None:
    """Print a report of any kind."""
    from finwidth import report

    if isinstance(found, report.Report):
        print_report(found)
    elif isinstance(found, report.ExpandedReport):
        print_expanded_report(found)
    else:
        print_quantile_report(found)


def print_expanded_report(found: ExpandedReport) -> None:
    """Print first order in 1/width beside draws, and whether it serves."""
    table, wide = _table("quantity", "first order", "sampled", "std. err.", "differ"), found.first_order
    for name, each in found.estimates.items():
        known = wide.means.get(name)
        off = "" if not known else f"{each.value / known - 1:+.1%}"
        table.add_row(MOMENTS[name].label, number(known), *_sampled(each, None)[:2], off)
    K, square = found.estimates["K"].value, found.estimates["K^2"].value
    spread = max(0.0, square / K**2 - 1) ** 0.5
    notes = _of_several(found.network) + f"Infinite width: K = {wide.infinite_width:.6g}. "
    notes += f"CV of K: {wide.cv:.4g} to first order in 1/width, {spread:.4g} of {len(found.drawn)} draws.\n"
    notes += f"First order {wide.verdict}.\n"
    show(str(found.network), table, notes + _doubts(found.estimates))


def print_quantile_report(found: QuantileReport) -> None:
    """Print quantiles and the spread of K, and the means that exist."""
    summary, table = found.summary, _table("quantity", "sampled", "std. err.")
    law, spread = summary.K, summary.spread
    assert law is not None
    assert spread is not None
    rows = {f"{share:.0%} quantile of K": law.quantile(share) for share in SHOWN}
    rows |= {"(q84 - q16) / (2 median)": spread, "standard deviation of log K": law.log_sd}
    for name, each in rows.items():
        table.add_row(name, number(each.value), f"{each.se:.2g}")
    for name, estimate in summary.estimates.items():
        table.add_row(MOMENTS[name].label, *_sampled(estimate, None)[:2])
    infinite = ", ".join(MOMENTS[name].label for name in summary.infinite)
    notes = f"No exact moments: {found.reason}.\n"
    notes += f"Not finite, or not sure to be: {infinite}.\n" if infinite else ""
    show(str(found.network), table, notes + _doubts(summary.estimates))


def _sampled(estimate: Estimate, exact: float | None) -> tuple[str, str, str]:
    """The columns sampled, std. err., z; an exclamation mark on what cannot be trusted."""
    z = None if exact is None else estimate.z(exact)
    mark = " " if estimate.trust else "!"
    return (
        number(estimate.value) + mark,
        f"{estimate.se:.2g}",
        "" if z is None else f"{z:+.2f}" if abs(z) < 100 else ">99",
    )


def print_comparison(found: Comparison) -> None:
    """Print the three routes side by side; where plain draws in law cannot be trusted, tilted ones if there are any."""
    sampled = () if found.not_sampled else ("in law", "std. err.", "z")
    table = _table("quantity", "exact", *sampled, "networks", "std. err.", "z")
    notes = f"{_of_several(found.network)}{found.rows[0].networks.draws} real networks"
    for row in found.rows:
        law: tuple[str, ...] = _sampled(row.sampled, row.exact) if row.sampled else ()
        if row.tilted and row.sampled and not row.sampled.trust:
            value, *rest = _sampled(row.tilted, row.exact)
            law = (value.replace(" ", "~"), *rest)
        table.add_row(MOMENTS[row.quantity].label, number(row.exact), *law, *_sampled(row.networks, row.exact))
    if found.rows[0].sampled:
        notes += f", {found.rows[0].sampled.draws} draws in law"
    notes += f".\n{found.not_sampled or ''}\n"
    if any(row.tilted for row in found.rows):
        notes += (
            "~ from draws tilted towards the networks that carry these means: plain draws cannot be trusted here.\n"
        )
    for source, estimates in (
        ("in law", {row.quantity: row.sampled for row in found.rows if row.sampled}),
        ("tilted", {row.quantity: row.tilted for row in found.rows if row.tilted}),
        ("networks", {row.quantity: row.networks for row in found.rows}),
    ):
        notes += _doubts(estimates, source)
    show(str(found.network), table, notes)


def print_any_comparison(found: Comparison | ExpandedComparison | QuantileComparison) -> None:
    """Print a comparison of any kind."""
    from finwidth import comparison

    if isinstance(found, comparison.Comparison):
        print_comparison(found)
    elif isinstance(found, comparison.ExpandedComparison):
        print_expanded_comparison(found)
    else:
        print_quantile_comparison(found)


def print_expanded_comparison(found: ExpandedComparison) -> None:
    """Print first order in 1/width beside draws in law and real networks."""
    table = _table("quantity", "first order", "in law", "std. err.", "networks", "std. err.", "z")
    for row in found.rows:
        estimates = (text for each in (row.sampled, row.networks) for text in _sampled(each, None)[:2])
        table.add_row(MOMENTS[row.quantity].label, number(row.first_order), *estimates, f"{row.z:+.2f}")
    first = found.rows[0]
    notes = f"{_of_several(found.network)}{first.networks.draws} real networks, {first.sampled.draws} draws in law; "
    notes += f"z is between these.\nFirst order {found.first_order}.\n"
    notes += _doubts({row.quantity: row.sampled for row in found.rows}, "in law")
    notes += _doubts({row.quantity: row.networks for row in found.rows}, "networks")
    show(str(found.network), table, notes)


def print_quantile_comparison(found: QuantileComparison) -> None:
    """Print quantiles of K by draws in law and by real networks."""
    table = _table("quantity", "in law", "std. err.", "networks", "std. err.", "z")
    for row in found.rows:
        name = "(q84 - q16) / (2 median)" if row.quantity == "spread" else f"{row.quantity} of K"
        values = (f for each in (row.sampled, row.networks) for f in (number(each.value), f"{each.se:.2g}"))
        table.add_row(name, *values, f"{row.z:+.2f}")
    notes = f"{_of_several(found.network)}{found.networks} real networks, {found.draws} draws in law.\n"
    show(str(found.network), table, f"{notes}No exact moments: {found.reason}.\n")


def print_measurement(found: Measurement) -> None:
    """Print a module's kernel in short, and the theory beside it."""
    table = _table("quantity", "value")
    table.add_row("shape of K", " x ".join(map(str, found.K.shape)))
    table.add_row("trace", number(found.trace))
    for k, value in enumerate(found.eigenvalues[:5], 1):
        table.add_row(f"eigenvalue {k}", number(float(value)))
    if len(found.eigenvalues) > 5:
        table.add_row(f"eigenvalue {len(found.eigenvalues)}, the smallest", number(float(found.eigenvalues[-1])))
    table.add_row("condition", "singular" if found.condition is None else number(found.condition))
    inputs = " x ".join(map(str, found.inputs))
    output = f"output {found.outputs}" if isinstance(found.outputs, int) else f"outputs {found.outputs}"
    title = f"Kernel of {found.module}, {found.parameters:,} parameters, at inputs {inputs}, {output}"
    notes = f"singular: the smallest eigenvalue is below rounding, {found.rounding:.1g}." if not found.condition else ""
    show(title, table, notes)
    if found.theory is None:
        _console(soft_wrap=True).print(f"No theory beside it: {found.no_theory}.", markup=False)
    else:
        _console().print("The kernel at the first input beside its law over initializations:", markup=False)
        print_module_comparison(found.theory)


def print_module_comparison(found: ModuleComparison) -> None:
    """Print a given network's kernel beside its law."""
    exact = ("exact mean", "std. dev.", "z") if found.cv is not None else ()
    table = _table("quantity", "this module", *exact, "percentile (95 %)")
    for row in found.rows:
        z = "" if row.z is None else f"{row.z:+.2f}"
        law = (number(row.exact), number(row.sd), z) if exact else ()
        least, most = row.interval
        percentile = f"{row.percentile:.3g} % ({least:.3g}, {most:.3g})"
        table.add_row(row.quantity.replace("dK", "ΔK/λ"), number(row.measured), *law, percentile)
    net = found.network
    notes = "K is that of output 0. " if net is None else ""
    notes += f"K is that of output 0 of {net.widths[-1]}. " if net is not None and net.widths[-1] > 1 else ""
    notes += f"Percentile among {found.compared}."
    if net is not None:
        notes += f" CV of K: {number(found.cv)}." if exact else " It has no exact moments."
    show("a torch module" if net is None else str(net), table, notes)


def _doubts(found: Mapping[str, Estimate], source: str = "") -> str:
    """A line for each estimate that cannot be trusted, saying why."""
    of = f" ({source})" if source else ""
    return "".join(f"! {MOMENTS[name].label}{of}: {each.verdict}.\n" for name, each in found.items() if not each.trust)


def print_statement(found: Statement) -> None:
    """Print one statement of the paper on one line: what, verdict, how it was checked, figures."""
    figures = "; ".join(f"{name} {value}" for name, value in page.figure_texts(found).items())
    line = f"{page.title(found):<15} {page.verdict(found):<6} {found.checked_by}. {figures}"
    _console(soft_wrap=True).print(line, markup=False)


def print_findings(found: Iterable[Finding]) -> None:
    """Print what the checks find different from what the paper prints."""
    console = _console()
    for number, finding in enumerate(found, 1):
        figures = "; ".join(f"{name} {value}" for name, value in page.figure_texts(finding).items())
        text = (
            f"\nFinding {number}. {finding.title}\n  printed: {finding.printed}\n  exact: {finding.exact}\n  {figures}"
        )
        console.print(text, markup=False)


def print_sweep_status(found: Status) -> None:
    """Print what a sweep's store holds."""
    table = _table("quantity", "cells done", "of", "converged")
    for name, each in found["quantities"].items():
        table.add_row(name, str(each["done"]), str(each["total"]), str(each.get("converged", "")))
    notes = "".join(f"! {line}.\n" for each in found["quantities"].values() for line in each["doubts"])
    axes = ", ".join(f"{size} of {name}" for name, size in found["axes"].items() if size > 1)
    show(f"{found['store']}: {axes or 'one cell'}; seed {found['seed']}", table, notes)

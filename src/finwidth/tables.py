"""Tables for people, on the terminal."""

from __future__ import annotations

import math
from collections.abc import Mapping
from fractions import Fraction
from typing import TYPE_CHECKING

from finwidth.network import MLP
from finwidth.quantities import Estimate

if TYPE_CHECKING:
    from rich.table import Table

    from finwidth.exact.bounds import Bounds
    from finwidth.exact.moments import KernelMoments
    from finwidth.report import Report

# What each quantity's mean is called in a table.
LABELS = {
    "K": "E[K]",
    "K_w": "E[K_w]",
    "K_b": "E[K_b]",
    "K^2": "E[K²]",
    "K_w^2": "E[K_w²]",
    "K_b^2": "E[K_b²]",
    "K_w*K_b": "E[K_w K_b]",
    "dK": "E[ΔK]/λ",
    "D_ww": "E[Δ_ww]",
    "D_wb": "E[Δ_wb]",
}


def number(value: float | Fraction | None, log: float | None = None) -> str:
    """Six digits; a fraction as it is; past a double's range from its logarithm."""
    if value is None:
        return ""
    if isinstance(value, Fraction):
        return str(value)
    if math.isinf(value) and log is not None:
        exponent = math.floor(log / math.log(10))
        return f"{'-' if value < 0 else ''}{math.exp(log - exponent * math.log(10)):.5f}e+{exponent}"
    return f"{value:.6g}"


def _table(*columns: str) -> Table:
    from rich import box
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for column in columns:
        table.add_column(column, justify="left" if column == "quantity" else "right", no_wrap=True)
    return table


def show(title: str, table: Table, notes: str) -> None:
    """Print to standard output, as wide as the terminal, or 100 columns into a file."""
    from rich.console import Console

    console = Console(highlight=False)
    console = console if console.is_terminal else Console(width=100)
    console.print(title, table, notes.strip(), sep="\n", soft_wrap=False, markup=False, highlight=False)


def moments(found: KernelMoments, forms: Bounds | None) -> None:
    """Print exact values beside the paper's forms."""
    exact = {
        "K": (found.mean, found.K.log_raw[0]),
        "K_w": (found.K_w.mean, None),
        "K_b": (found.K_b.mean, None),
        "K^2": (found.second_moment, found.log_second_moment),
        "K_w^2": (found.K_w.second_moment, found.K_w.log_second_moment),
        "K_b^2": (found.K_b.second_moment, found.K_b.log_second_moment),
        "K_w*K_b": (found.mixed, found.log_mixed),
        **{name: (found.update[name], found.log_update[name]) for name in ("dK", "D_ww", "D_wb")},
    }
    columns = ("paper's form", "ratio") if forms else ()
    table = _table("quantity", "exact", *columns)
    for name, (value, log) in exact.items():
        table.add_row(LABELS[name], number(value, log), *_form(forms, name))
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


def _form(forms: Bounds | None, name: str) -> tuple[str, ...]:
    if forms is None:
        return ()
    if name not in forms.form:
        return "", ""
    return number(forms.form[name], forms.log_form[name]), number(forms.hidden_ratio[name])


def estimates(net: MLP, found: Mapping[str, Estimate], exact: Mapping[str, float]) -> None:
    """Print sampled values with their standard errors beside the exact ones."""
    table = _table("quantity", "exact", "sampled", "std. err.", "z", "effective draws")
    for name, each in found.items():
        table.add_row(LABELS[name], number(exact[name]), *_sampled(each, exact[name]), f"{each.effective_draws:.3g}")
    show(str(net), table, _doubts(found))


def report(found: Report) -> None:
    """Print every quantity by every route."""
    columns = ("paper's form", "ratio") if found.bounds else ()
    table = _table("quantity", "exact", *columns, "sampled", "std. err.", "z")
    for row in found.rows:
        form = _form(found.bounds, row.quantity)
        table.add_row(LABELS[row.quantity], number(row.exact), *form, *_sampled(row.sampled, row.exact))
    notes = f"Infinite width: K = {found.infinite_width:.6g}. CV of K: {number(found.moments.cv)}.\n"
    notes += _doubts({row.quantity: row.sampled for row in found.rows}) + (_CAPTION if found.bounds else "")
    show(str(found.network), table, notes)


def _sampled(estimate: Estimate, exact: float) -> tuple[str, str, str]:
    """The columns sampled, std. err., z; an exclamation mark on what cannot be trusted."""
    z = (estimate.value - exact) / estimate.se if estimate.se else math.nan
    mark = " " if estimate.trust else "!"
    return number(estimate.value) + mark, f"{estimate.se:.2g}", f"{z:+.2f}" if math.isfinite(z) else ""


def _doubts(found: Mapping[str, Estimate]) -> str:
    """A line for each estimate that cannot be trusted, saying why."""
    return "".join(f"! {LABELS[name]}: {each.verdict}.\n" for name, each in found.items() if not each.trust)

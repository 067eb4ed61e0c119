"""Tables for people, on the terminal: those of the results, and of what has no class of its own."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from itertools import combinations_with_replacement
from typing import TYPE_CHECKING, Any

from finwidth.networks.description import Network
from finwidth.quantities import of_several
from finwidth.tables import Result, Table, Told

if TYPE_CHECKING:
    import xarray as xr
    from rich.console import Console

    from finwidth.measurement import Measurement
    from finwidth.paper.records import Finding, Statement
    from finwidth.sweeps.store.dataset import Status


def _console(*, width: int | None = None) -> Console:
    """A console that leaves a closed pipe to the caller."""
    from rich.console import Console

    class PipedConsole(Console):
        def on_broken_pipe(self) -> None:
            raise BrokenPipeError

    return PipedConsole(highlight=False, width=width)


def show(found: Result | Table) -> None:
    """Print to standard output, as wide as the terminal, or 100 columns into a file."""
    console = _console()
    console = console if console.is_terminal else _console(width=100)
    console.print(found)


_ROUNDING = 1e-14  # of a correction that is 0


def expansion_content(found: xr.Dataset) -> dict[str, object]:
    """The expansion as plain types: each quantity by order, its error of quadrature, and how far it serves."""
    quantities = {
        str(name): {
            "infinite_width": {"value": each[0].to_numpy().tolist()},
            "correction": {"value": each[1].to_numpy().tolist(), "error": each.attrs["error"]},
        }
        for name, each in found.items()
    }
    told = {
        name: found.attrs[name] for name in ("left_out", "inverse_widths", "relative_variance", "relative_correction")
    }
    return {"quantities": quantities, "first_order": {**told, "verdict": found.attrs["first_order"]}}


def trajectory_content(found: Mapping[str, Any]) -> dict[str, object]:
    """Means over draws at the recorded steps, by quantity."""
    quantities = {
        name: {"sampled": {"value": each["mean"], "se": each["se"], "left_out": each["left_out"]}}
        for name, each in found.items()
        if name != "step"
    }
    return {"step": found["step"], "quantities": quantities}


def print_expansion(net: Network, found: xr.Dataset) -> None:
    """Print what the expansion in 1/width says of each pair of inputs."""
    from finwidth.summary import MOST_INPUTS

    headings = ("a", "b", "infinite width", "correction", "E[K_ab]", "std. dev.", "E[ΔK_ab]/λ")
    table, m = Table(str(net), headings, named=2), found.sizes["input"]
    for a, b in combinations_with_replacement(range(min(m, MOST_INPUTS)), 2):
        limit, correction = (float(each) for each in found.K[:, a, b])
        correction *= abs(correction) > _ROUNDING * abs(limit)
        sd = max(0.0, float(found.K_covariance[1, a, b, a, b])) ** 0.5
        table.add(str(a), str(b), limit, correction, limit + correction, sd, float(found.dK[1, a, b]))
    notes = of_several(net) + "To first order in 1/width; a and b counted from 0, the step of ΔK on all inputs."
    notes += f" The table is of the first {MOST_INPUTS}; --json has all." if m > MOST_INPUTS else ""
    error = max(each.attrs["error"] for each in found.values())
    notes += f" Quadrature errs by {error:.1g} at most; -o and --json have the covariances.\n"
    table.notes = notes + f"First order {found.attrs['first_order']}."
    show(table)


_MOST_STEPS = 21  # that a table shows


def print_trajectory(net: Network, lr: float, found: Mapping[str, Any]) -> None:
    """Print how loss and kernel go over the steps, evenly thinned out where there are many."""
    series = {name: each for name, each in found.items() if name != "step"}
    table = Table(str(net), ("step", *(name.replace("_", " ") for name in series)), most=_MOST_STEPS)
    for place, step in enumerate(found["step"]):
        table.add(str(step), *(_mean_at(each, place) for each in series.values()))
    notes = f"Learning rate {lr:.4g}. Means over draws ± standard errors. drift: |K_t - K_0| / |K_0|"
    notes += "; alignment: <K, t tᵀ> / (|K| |t tᵀ|)." if "alignment" in series else "."
    for name, each in series.items():
        most = max(each["left_out"])
        if most:
            draws = f"{most} draw{'s' * (most > 1)}"
            notes += f"\n{name}: {draws} left out, as a kernel of zeros has none."
            notes += " Nor have targets that are all 0." if name == "alignment" else ""
    table.notes = notes
    show(table)


def _mean_at(series: Mapping[str, Any], place: int) -> Told:
    """Mean and standard error at a step; a dash where no draw has a value."""
    mean, se = series["mean"][place], series["se"][place] if series["se"] else math.nan
    return Told(mean, "-" if math.isnan(mean) else f"{mean:.4g}" + ("" if math.isnan(se) else f" ± {se:.2g}"))


def print_measurement(found: Measurement) -> None:
    """Print a module's kernel in short, and the theory beside it."""
    show(found)
    if found.theory is None:
        others = "finwidth regime and finwidth compare draw such modules again, and tell."
        console = _console()
        told = f"No theory beside it: {found.no_theory}. {others}"
        console.print(told, markup=False, soft_wrap=not console.is_terminal)
    else:
        _console().print("The kernel at the first input beside its law over initializations:", markup=False)
        show(found.theory)


def print_statement(found: Statement) -> None:
    """Print one statement of the paper: what, verdict, how it was checked, figures; on one line where no one reads."""
    from rich.table import Table as Grid
    from rich.text import Text

    from finwidth.paper import page

    figures = "; ".join(f"{name} {value}" for name, value in page.figure_texts(found).items())
    title, verdict, checked = f"{page.title(found):<15}", f"{page.verdict(found):<6}", f"{found.checked_by}. {figures}"
    console = _console()
    if not console.is_terminal:
        console.print(f"{title} {verdict} {checked}", markup=False, soft_wrap=True)
        return
    line = Grid.grid(padding=(0, 1))
    line.add_column(no_wrap=True)
    line.add_column(no_wrap=True)
    line.add_row(title, Text(verdict, style="green" if found.holds else "bold red"), Text(checked))
    console.print(line)


def print_findings(found: Iterable[Finding]) -> None:
    """Print what the checks find different from what the paper prints."""
    from finwidth.paper import page

    console = _console()
    for number, finding in enumerate(found, 1):
        figures = "; ".join(f"{name} {value}" for name, value in page.figure_texts(finding).items())
        text = (
            f"\nFinding {number}. {finding.title}\n  printed: {finding.printed}\n  exact: {finding.exact}\n  {figures}"
        )
        console.print(text, markup=False)


def print_sweep_status(found: Status) -> None:
    """Print what a sweep's store holds."""
    axes = ", ".join(f"{size} of {name}" for name, size in found["axes"].items() if size > 1)
    title = f"{found['store']}: {axes or 'one cell'}; seed {found['seed']}"
    table = Table(title, ("quantity", "cells done", "of", "converged"))
    for name, each in found["quantities"].items():
        table.add(name, str(each["done"]), str(each["total"]), str(each.get("converged", "")))
    table.notes = "".join(f"! {line}.\n" for each in found["quantities"].values() for line in each["doubts"])
    show(table)

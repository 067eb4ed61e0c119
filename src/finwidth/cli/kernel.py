"""Commands on the kernel of one network at one input: `moments`, `sample`, `report` and `compare`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from finwidth.cli.options import Bias, Draws, Input, Json, Law, Parameterization, Phi, Seed, Widths
from finwidth.cli.output import print_json
from finwidth.errors import FinwidthError
from finwidth.inputs import parse_input
from finwidth.networks.mlp import MLP
from finwidth.networks.widths import parse_widths
from finwidth.outputs import RULE, check, check_folder, write_netcdf


def moments_command(
    widths: Widths,
    input: Input,
    law: Law = "gaussian",
    activation: Phi = "relu",
    parameterization: Parameterization = "ntk",
    bias: Bias = "trained",
    exact: Annotated[bool, typer.Option("--exact", help="Fractions instead of floats.")] = False,
    order: Annotated[int, typer.Option("--order", help="Highest moment of K: 2, 3 or 4.")] = 2,
    as_json: Json = False,
) -> None:
    """Exact mean, variance and first update of the kernel at one input."""
    from finwidth.exact.bounds import bounds, unsupported
    from finwidth.exact.moments import moments

    net = MLP(parse_widths(widths), law, activation, parameterization, bias=bias)
    x = parse_input(input)
    found = moments(net, x, exact=exact, order=order)
    outside = ", ".join(unsupported(net))
    forms = None if outside else bounds(net, x, exact=found)
    if as_json:
        print_json(found.to_json() | {"bounds": forms and forms.to_json()})
        return
    from finwidth.cli import tables

    tables.print_moments(found, forms)
    if outside:
        typer.echo(f"The paper's forms do not cover this network: {outside}.")


def sample_command(
    widths: Widths,
    input: Input,
    draws: Draws = 100_000,
    seed: Seed = 0,
    activation: Phi = "relu",
    parameterization: Parameterization = "ntk",
    bias: Bias = "trained",
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", help=f"Keep the draws in this netCDF file. {RULE}", show_default=False),
    ] = None,
    tilt: Annotated[
        bool, typer.Option("--tilted", help="Draw the networks that carry the means: right at any depth (ReLU).")
    ] = False,
    as_json: Json = False,
) -> None:
    """Draw the kernel at one input exactly in law, without building a network."""
    from finwidth.summary import sample_and_summarize, summarize

    check(output)
    if tilt and output is not None:
        raise FinwidthError("--tilted makes weighted draws, which -o does not keep; leave one of the two out")
    net = MLP(parse_widths(widths), "gaussian", activation, parameterization, bias=bias)
    x = parse_input(input)
    if output is None:
        found = summarize(net, x, draws, seed, method="importance" if tilt else "plain")
    else:
        found, dataset = sample_and_summarize(net, x, draws, seed)
        write_netcdf(dataset, output)
    if as_json:
        print_json(found.to_json())
        return
    from finwidth.cli import tables

    tables.print_summary(found)
    if output is not None:
        typer.echo(f"Wrote {draws} draws to {output}.")


def report_command(
    widths: Widths,
    input: Input,
    output: Annotated[
        Path, typer.Option("--output", "-o", help=f"Folder for the figures and report.json. {RULE}")
    ] = Path("report"),
    draws: Draws = 1_000_000,
    seed: Seed = 0,
    activation: Phi = "relu",
    parameterization: Parameterization = "ntk",
    bias: Bias = "trained",
    as_json: Json = False,
) -> None:
    """The main job: exact values, the paper's forms and draws in law side by side, with figures."""
    from finwidth.report import FILES, report, write

    check_folder(output, FILES)
    net = MLP(parse_widths(widths), "gaussian", activation, parameterization, bias=bias)
    x = parse_input(input)
    found = report(net, x, draws, seed)
    paths = write(found, x, output)
    if as_json:
        print_json(found.to_json() | {"files": [str(path) for path in paths]})
        return
    from finwidth.cli import tables

    tables.print_report(found)
    typer.echo("Wrote " + ", ".join(str(path) for path in paths) + ".")


def compare_command(
    widths: Widths,
    input: Input,
    draws: Draws = 100_000,
    networks: Annotated[
        int | None,
        typer.Option("--networks", help="How many real networks to draw; by default as many as seconds allow."),
    ] = None,
    seed: Seed = 0,
    law: Law = "gaussian",
    activation: Phi = "relu",
    parameterization: Parameterization = "ntk",
    bias: Bias = "trained",
    as_json: Json = False,
) -> None:
    """Exact values, draws in law and real networks side by side, with errors and verdicts."""
    from finwidth.comparison import compare

    net = MLP(parse_widths(widths), law, activation, parameterization, bias=bias)
    x = parse_input(input)
    found = compare(net, x, draws=draws, networks=networks, seed=seed)
    if as_json:
        print_json(found.to_json())
        return
    from finwidth.cli import tables

    tables.print_comparison(found)

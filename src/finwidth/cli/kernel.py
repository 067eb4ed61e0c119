"""Commands on the kernel of one network at initialization: `moments`, `sample`, `gram`, `report` and `compare`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from finwidth.cli.networks import network_of, taking
from finwidth.cli.options import Draws, Input, Json, Seed
from finwidth.cli.output import print_json, wrapped
from finwidth.errors import FinwidthError
from finwidth.inputs import parse_input
from finwidth.networks.description import Network
from finwidth.networks.routes import check_mlp
from finwidth.outputs import RULE, check, check_folder, write_netcdf

Keep = Annotated[
    Path | None,
    typer.Option("--output", "-o", help=f"Keep the draws in this netCDF file. {RULE}", show_default=False),
]


@taking("net", network_of)
def moments_command(
    net: Network,
    input: Input,
    exact: Annotated[bool, typer.Option("--exact", help="Fractions instead of floats.")] = False,
    order: Annotated[int, typer.Option("--order", help="Highest moment of K: 2, 3 or 4.")] = 2,
    as_json: Json = False,
) -> None:
    """Exact mean, variance and first update of the kernel at one input."""
    from finwidth.exact.bounds import bounds, unsupported
    from finwidth.exact.moments import moments

    x = parse_input(input, net.widths[0])
    found = moments(net, x, exact=exact, order=order)
    outside = ", ".join(unsupported(net))
    forms = None if outside else bounds(check_mlp(net), x, exact=found)
    if as_json:
        print_json(found.to_json() | {"bounds": forms and forms.to_json()})
        return
    from finwidth.cli import tables

    tables.print_moments(found, forms)
    if outside:
        typer.echo(wrapped(f"The paper's forms do not cover this network: {outside}."))


@taking("net", network_of)
def sample_command(
    net: Network,
    input: Input,
    draws: Draws = 100_000,
    seed: Seed = 0,
    output: Keep = None,
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
    x = parse_input(input, net.widths[0])
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


@taking("net", network_of)
def gram_command(
    net: Network,
    inputs: Annotated[
        list[str],
        typer.Option(
            "--inputs",
            "-i",
            help="An input such as 1,2, ones or random:7, -i for each; a .npy file of shape (m, n_0); or digits:0-5.",
            show_default=False,
        ),
    ],
    targets: Annotated[
        str | None,
        typer.Option(
            "--targets", "-t", help="Numbers, or a .npy file; then also the change of K in a step.", show_default=False
        ),
    ] = None,
    draws: Draws = 1000,
    seed: Seed = 0,
    output: Keep = None,
    as_json: Json = False,
) -> None:
    """Draw the kernel matrix of several inputs in law, with any activation, without building a network."""
    from finwidth.inputs import parse_matrix, parse_numbers
    from finwidth.summary import sample_and_summarize_gram, summarize_gram

    check(output)
    X = parse_matrix(inputs, net.widths[0])
    y = None if targets is None else parse_numbers(targets)
    if output is None:
        found = summarize_gram(net, X, draws, seed, y=y)
    else:
        found, dataset = sample_and_summarize_gram(net, X, draws, seed, y=y)
        write_netcdf(dataset, output)
    if as_json:
        print_json(found.to_json())
        return
    from finwidth.cli import tables

    tables.print_gram(found)
    if output is not None:
        typer.echo(f"Wrote {draws} draws to {output}.")


@taking("net", network_of)
def report_command(
    net: Network,
    input: Input,
    output: Annotated[
        Path, typer.Option("--output", "-o", help=f"Folder for the figures and report.json. {RULE}")
    ] = Path("report"),
    draws: Draws = 1_000_000,
    seed: Seed = 0,
    as_json: Json = False,
) -> None:
    """The main job: exact values, the paper's forms and draws in law side by side, with figures."""
    from finwidth.report import FILES, Report, report, write

    check_folder(output, FILES)
    x = parse_input(input, net.widths[0])
    found = report(net, x, draws, seed)
    paths = write(found, x, output)
    if as_json:
        print_json(found.to_json() | {"files": [str(path) for path in paths]})
        return
    from finwidth.cli import tables

    if isinstance(found, Report):
        tables.print_report(found)
    else:
        tables.print_quantile_report(found)
    typer.echo("Wrote " + ", ".join(str(path) for path in paths) + ".")


@taking("net", network_of)
def compare_command(
    net: Network,
    input: Input,
    draws: Draws = 100_000,
    networks: Annotated[
        int | None,
        typer.Option("--networks", help="How many real networks to draw; by default as many as seconds allow."),
    ] = None,
    seed: Seed = 0,
    as_json: Json = False,
) -> None:
    """Exact values, draws in law and real networks side by side, with errors and verdicts."""
    from finwidth.comparison import Comparison, compare

    x = parse_input(input, net.widths[0])
    found = compare(net, x, draws=draws, networks=networks, seed=seed)
    if as_json:
        print_json(found.to_json())
        return
    from finwidth.cli import tables

    if isinstance(found, Comparison):
        tables.print_comparison(found)
    else:
        tables.print_quantile_comparison(found)

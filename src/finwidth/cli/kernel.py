"""Commands on the kernel of networks at initialization: `moments`, `expansion`, `critical`, `sample`, `gram`, ..."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Annotated

import numpy as np
import typer

from finwidth.cli.modules import NamedModule, network_or_module, one_sample
from finwidth.cli.networks import activation_typed, network_of, taking
from finwidth.cli.options import Draws, Flag, Input, Json, Seed, among, either
from finwidth.cli.output import print_json, verb, wrapped
from finwidth.documents import document, extended
from finwidth.errors import FinwidthError
from finwidth.inputs import parse_input
from finwidth.networks.activations import ACTIVATIONS
from finwidth.networks.description import Network
from finwidth.networks.inputs import Vector
from finwidth.networks.routes import check_mlp
from finwidth.outputs import RULE, check, check_folder, write_netcdf, written
from finwidth.tables import Result

Keep = Annotated[
    Path | None,
    typer.Option(
        "--output", "-o", metavar="FILE", help=f"Keep the draws in this netCDF file. {RULE}", show_default=False
    ),
]


@taking("net", network_of)
def moments_command(
    net: Network,
    input: Input,
    exact: Annotated[bool, Flag("--exact", help="Fractions instead of decimal numbers.")] = False,
    order: Annotated[int, typer.Option("--order", metavar="NUMBER", help="Highest moment of K: 2, 3 or 4.")] = 2,
    as_json: Json = False,
) -> None:
    """Exact mean and variance of the kernel at one input, and its mean change in the first step of SGD."""
    from finwidth.exact.bounds import bounds, unsupported
    from finwidth.exact.moments import moments

    x = parse_input(input, net.widths[0])
    found = moments(net, x, exact=exact, order=order)
    outside = ", ".join(unsupported(net))
    forms = None if outside else bounds(check_mlp(net), x, exact=found)
    told = f"The paper's forms do not cover this network: {outside}." if outside else None
    settings = {"exact": exact, "order": order}
    _give(
        forms or found, as_json=as_json,
        command="moments", input=x, settings=settings, warnings=None if told is None else [told],
    )  # fmt: skip
    if told is not None and not as_json:
        typer.echo(wrapped(told))


Inputs = Annotated[
    list[str],
    typer.Option(
        "--inputs",
        "--input",
        "-i",
        metavar="INPUT",
        help="An input such as 1,2, ones or random:7, -i for each; a .npy file of shape (m, n_0); or digits:0-5.",
        show_default=False,
    ),
]


@taking("net", network_of)
def expansion_command(
    net: Network,
    inputs: Inputs,
    points: Annotated[
        int,
        typer.Option(
            "--points", metavar="NUMBER", help="Of more than two inputs: at how many points averages are computed."
        ),
    ] = 2**15,
    seed: Seed = 0,
    output: Annotated[
        Path | None,
        typer.Option(
            "--output", "-o", metavar="FILE", help=f"Write all of it to this netCDF file. {RULE}", show_default=False
        ),
    ] = None,
    as_json: Json = False,
) -> None:
    """Means, covariances and first change of the kernel to first order in 1/width, any activation, without draws."""
    from finwidth.exact.expansion.expansion import expansion
    from finwidth.inputs import parse_matrix

    check(output)
    done = verb(output)
    X = parse_matrix(inputs, net.widths[0])
    targets = np.zeros((len(X), net.widths[-1])) if net.widths[-1] > 1 else np.zeros(len(X))
    found = expansion(net, X, targets, points=points, seed=seed)
    if output is not None:
        write_netcdf(found, output)
    from finwidth.cli import tables

    if as_json:
        about = {"network": net.describe(), "input": X, "settings": {"points": points}, "seed": seed}
        content = tables.expansion_content(found)
        print_json(document("Expansion", content, command="expansion", **about, files=written(output)))
        return
    tables.print_expansion(net, found)
    if output is not None:
        typer.echo(f"{done} {output}, with the expansion.")


def critical_command(
    activation: Annotated[
        str,
        typer.Argument(
            help=f"{either(ACTIVATIONS)}; or two slopes, for y > 0 and y < 0: 1,0.2.",
            show_default=False,
            autocompletion=among(ACTIVATIONS),
        ),
    ],
    as_json: Json = False,
) -> None:
    """The gain and the variance of biases at which deep wide networks neither amplify nor forget their inputs."""
    from finwidth.exact.expansion.criticality import critical

    found = critical(activation_typed("ACTIVATION", activation))
    _give(found, as_json=as_json, command="critical")


def _give(found: Result, *, as_json: bool, **about: object) -> None:
    """The result of a command: as a document, with what else is known about it, or as a table."""
    if as_json:
        print_json(extended(found.to_json(), **about))
        return
    from finwidth.cli import tables

    tables.show(found)


@taking("net", network_of)
def sample_command(
    net: Network,
    input: Input,
    draws: Draws = 100_000,
    seed: Seed = 0,
    output: Keep = None,
    tilt: Annotated[
        bool, Flag("--tilted", help="Draw most the networks that make the means: right at any depth (ReLU).")
    ] = False,
    as_json: Json = False,
) -> None:
    """Draw the kernel of random networks at one input, exactly in law, without building a network."""
    from finwidth.summary import sample_and_summarize, summarize

    check(output)
    done = verb(output)
    if tilt and output is not None:
        raise FinwidthError("--tilted makes weighted draws, which -o does not keep; leave one of the two out")
    x = parse_input(input, net.widths[0])
    if output is None:
        found = summarize(net, x, draws, seed, method="importance" if tilt else "plain")
    else:
        found, dataset = sample_and_summarize(net, x, draws, seed)
        write_netcdf(dataset, output)
    _give(found, as_json=as_json, command="sample", input=x, settings={"tilted": tilt}, files=written(output))
    if output is not None and not as_json:
        typer.echo(f"{done} {output}, with {draws} draws.")


@taking("net", network_of)
def gram_command(
    net: Network,
    inputs: Inputs,
    targets: Annotated[
        str | None,
        typer.Option(
            "--targets",
            "-t",
            metavar="NUMBERS",
            help="Numbers, or a .npy file; then also the change of K in a step.",
            show_default=False,
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
    done = verb(output)
    X = parse_matrix(inputs, net.widths[0])
    y = None if targets is None else parse_numbers(targets)
    if output is None:
        found = summarize_gram(net, X, draws, seed, y=y)
    else:
        found, dataset = sample_and_summarize_gram(net, X, draws, seed, y=y)
        write_netcdf(dataset, output)
    _give(found, as_json=as_json, command="gram", input=X, settings={"targets": y}, files=written(output))
    if output is not None and not as_json:
        typer.echo(f"{done} {output}, with {draws} draws.")


@taking("net", network_of)
def report_command(
    net: Network,
    input: Input,
    output: Annotated[
        Path, typer.Option("--output", "-o", metavar="FOLDER", help=f"Folder for the figures and report.json. {RULE}")
    ] = Path("report"),
    draws: Annotated[
        int | None,
        typer.Option(
            "--draws",
            "-n",
            metavar="NUMBER",
            help="How many random networks to draw in law; by default a million, fewer with smooth activations.",
            show_default=False,
        ),
    ] = None,
    seed: Seed = 0,
    as_json: Json = False,
) -> None:
    """The main job: exact values, the paper's forms and draws in law side by side, with figures."""
    from finwidth.report import FILES, report, write

    check_folder(output, FILES)
    done = verb(output / FILES[0])
    x = parse_input(input, net.widths[0])
    found = report(net, x, draws, seed)
    paths = write(found, x, output)
    _give(found, as_json=as_json, command="report", input=x, files=written(*paths))
    if not as_json:
        typer.echo(wrapped(f"{done} {', '.join(map(str, paths))}."))


@taking("net", network_or_module)
def compare_command(
    net: Network | NamedModule,
    input: Input,
    draws: Draws = 100_000,
    networks: Annotated[
        int | None,
        typer.Option(
            "--networks", metavar="NUMBER", help="How many real networks to draw; by default as many as seconds allow."
        ),
    ] = None,
    seed: Seed = 0,
    as_json: Json = False,
) -> None:
    """Exact values, draws in law and real networks side by side; or a torch module among random ones like it."""
    from finwidth.comparison import compare

    ask = functools.partial(compare, draws=draws, networks=networks, seed=seed)
    if isinstance(net, NamedModule):
        x: Vector = one_sample(input)
        with net.loaded(seed) as (module, factory):
            of_module = ask(module, x, init=net.init, factory=factory)
        _give(of_module, as_json=as_json, command="compare", input=x, settings=net.settings, seed=seed)
        return
    x = parse_input(input, net.widths[0])
    _give(ask(net, x), as_json=as_json, command="compare", input=x, draws=draws, seed=seed)

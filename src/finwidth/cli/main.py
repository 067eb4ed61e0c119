"""The command line: it parses, calls one function, and writes."""

from __future__ import annotations

import contextlib
import io
import json
import os
import signal
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer

from finwidth.cli import interrupts
from finwidth.cli.bars import Bars
from finwidth.cli.sweeps import sweep_app
from finwidth.errors import FinwidthError, shortened
from finwidth.inputs import parse_input
from finwidth.networks.mlp import MLP
from finwidth.networks.widths import parse_widths
from finwidth.outputs import RULE, check, check_folder, write_netcdf
from finwidth.progress import watching
from finwidth.quantities import plain
from finwidth.sampling.training.losses import LOSSES, loss_called

app = typer.Typer(
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="What finite depth and width do to the neural tangent kernel (NTK).",
    epilog="Widths are written input to output: 16,64x8,1 is input 16, eight hidden layers of 64, output 1.",
)

app.add_typer(sweep_app, name="sweep")

Widths = Annotated[str, typer.Argument(help="Widths, input to output, such as 16,64x8,1.", show_default=False)]
Input = Annotated[
    str,
    typer.Option(
        "--input",
        "-i",
        help="Numbers such as 1,2; a .npy file; or digits:17, an image of scikit-learn's digits (pixels 0 to 16).",
        show_default=False,
    ),
]
Law = Annotated[str, typer.Option("--law", help="Weight law: gaussian, uniform, laplace, ...")]
Phi = Annotated[str, typer.Option("--activation", help="relu, leaky_relu, linear or abs.")]
AnyPhi = Annotated[str, typer.Option("--activation", help="relu, gelu, tanh, erf, silu, ...")]
Parameterization = Annotated[str, typer.Option("--parameterization", help="ntk, standard or mup.")]
Bias = Annotated[str, typer.Option("--bias", help="trained (from zero), frozen or none.")]
Draws = Annotated[int, typer.Option("--draws", "-n", help="How many random networks to draw in law.")]
Seed = Annotated[int, typer.Option("--seed", "-s", help="A whole number that fixes every draw.")]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON document, for programs.")]


def _print_json(document: dict[str, Any]) -> None:
    typer.echo(json.dumps(plain(document), indent=1, allow_nan=False))


def _version(wanted: bool) -> None:
    if wanted:
        from importlib.metadata import version

        typer.echo(f"finwidth {version('finwidth')}")
        raise typer.Exit


@app.callback(invoke_without_command=True)
def _main(
    context: typer.Context,
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    context.with_resource(watching(Bars()))
    if context.invoked_subcommand is None:
        typer.echo(context.get_help())


@app.command("moments")
def _moments(
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
    from finwidth.exact.bounds import bounds, why_outside
    from finwidth.exact.moments import moments

    net = MLP(parse_widths(widths), law, activation, parameterization, bias=bias)
    x = parse_input(input)
    found = moments(net, x, exact=exact, order=order)
    outside = why_outside(net)
    forms = None if outside else bounds(net, x, exact=found)
    if as_json:
        _print_json(found.to_json() | {"bounds": forms and forms.to_json()})
        return
    from finwidth.cli import tables

    tables.moments(found, forms)
    if outside:
        typer.echo(f"The paper's forms do not cover this network: {outside}.")


@app.command("sample")
def _sample(
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
    from finwidth.exact.moments import exact_values, moments
    from finwidth.sampling.one_input.importance import tilted
    from finwidth.sampling.one_input.norm_chain import check_sizes, chunks, sample
    from finwidth.sampling.statistics.estimates import estimates
    from finwidth.sampling.statistics.quantile_sketch import Law

    check(output)
    if tilt and output is not None:
        raise FinwidthError("--tilted makes weighted draws, which -o does not keep; leave one of the two out")
    net = MLP(parse_widths(widths), "gaussian", activation, parameterization, bias=bias)
    x, law = parse_input(input), Law()
    exact = exact_values(moments(net, x))
    if tilt:
        found = tilted(net, x, draws, seed, exact=exact)
    elif output is None:
        found = estimates(law.watch(chunks(net, x, draws, seed)), exact)
    else:
        check_sizes(net, draws, 1, kept=120)  # they are written from a copy
        dataset = sample(net, x, draws, seed)
        columns = {str(name): column.to_numpy() for name, column in dataset.items()}
        found = estimates(law.watch([columns]), exact)
        write_netcdf(dataset, output)
    if as_json:
        document = {"draws": draws, "seed": seed, "estimates": {name: each.to_json() for name, each in found.items()}}
        document |= {"exact": exact, "tilted": tilt}
        _print_json(document | ({} if tilt else {"law": {"K": law.to_json()}}))
        return
    from finwidth.cli import tables

    tables.estimates(net, found, exact, None if tilt else law)
    if output is not None:
        typer.echo(f"Wrote {draws} draws to {output}.")


@app.command("train")
def _train(
    widths: Widths,
    inputs: Annotated[
        str,
        typer.Option(
            "--inputs", "-i", help="A .npy file of shape (m, n_0), or a range such as digits:0-23.", show_default=False
        ),
    ],
    targets: Annotated[
        str | None,
        typer.Option(
            "--targets",
            "-t",
            help="Numbers, or a .npy file; by default the digits' parity or, for cross-entropy, class.",
        ),
    ] = None,
    steps: Annotated[int, typer.Option("--steps", help="Steps of SGD.")] = 20,
    lr: Annotated[
        float | None,
        typer.Option(
            "--lr", help="Learning rate; by default (1 - momentum) / (top eigenvalue of the mean initial kernel)."
        ),
    ] = None,
    draws: Annotated[int, typer.Option("--draws", "-n", help="How many random networks to train in law.")] = 10,
    seed: Seed = 0,
    batch: Annotated[int | None, typer.Option("--batch", help="Inputs of a mini-batch; by default all.")] = None,
    momentum: Annotated[float, typer.Option("--momentum", help="Of heavy-ball momentum.")] = 0.0,
    loss: Annotated[str, typer.Option("--loss", help=f"{' or '.join(LOSSES)}.")] = "squared",
    activation: AnyPhi = "relu",
    parameterization: Parameterization = "ntk",
    bias: Bias = "trained",
    memory: Annotated[
        str | None, typer.Option("--memory", help="Refuse what needs more than this, such as 4GiB.", show_default=False)
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", help=f"Keep the run in this netCDF file. {RULE}", show_default=False),
    ] = None,
    as_json: Json = False,
) -> None:
    """Train networks of any width by SGD, in law and without their weights, and follow their kernel."""
    from finwidth.inputs import parse_training
    from finwidth.sampling.training.train import default_rate, train, trajectory

    check(output)
    net = MLP(parse_widths(widths), activation=activation, parameterization=parameterization, bias=bias)
    X, y = parse_training(inputs, targets, classes=loss_called(loss).classes)
    options: dict[str, Any] = {"batch": batch, "momentum": momentum, "loss": loss, "memory": memory}
    if lr is None:
        lr = default_rate(net, X, seed, momentum=momentum)
    run = train(net, X, y, steps, lr, draws, seed, **options)
    if output is not None:
        write_netcdf(run, output)
    found = trajectory(run)
    if as_json:
        _print_json({"network": net.describe(), "lr": lr, "draws": draws, "seed": seed, "trajectory": found})
        return
    from finwidth.cli import tables

    tables.trajectory(net, lr, found)
    if output is not None:
        typer.echo(f"Wrote {draws} draws to {output}.")


@app.command("report")
def _report(
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
        _print_json(found.to_json() | {"files": [str(path) for path in paths]})
        return
    from finwidth.cli import tables

    tables.report(found)
    typer.echo("Wrote " + ", ".join(str(path) for path in paths) + ".")


@app.command("compare")
def _compare(
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
        _print_json(found.to_json())
        return
    from finwidth.cli import tables

    tables.comparison(found)


@app.command("measure")
def _measure(
    target: Annotated[
        str,
        typer.Argument(
            help="A Python file and a name in it: a torch module, or a function without arguments that makes one.",
            metavar="FILE.py:NAME",
            show_default=False,
        ),
    ],
    input: Annotated[
        str,
        typer.Option("--input", "-i", help="A .npy file of shape (N, ...); or one input: 1,2 or digits:17."),
    ],
    outputs: Annotated[str, typer.Option("--outputs", help="trace, full, or the number of one output.")] = "trace",
    init: Annotated[
        str | None,
        typer.Option("--init", help="How the weights were drawn, if they do not tell: default, kaiming_normal, ..."),
    ] = None,
    seed: Seed = 0,
    trace: Annotated[bool, typer.Option("--traceback", help="Show where in the file an exception is raised.")] = False,
    as_json: Json = False,
) -> None:
    """Measure the kernel of a torch module, with theory beside it where finwidth recognises the module.

    This runs the Python file: give it only files that you trust. Torch's generator is set to the seed before.
    """
    from finwidth.inputs import parse_inputs, whole
    from finwidth.measurement import load, measure, parse_target, running

    X = parse_inputs(input)
    file, name = parse_target(target)
    number = whole(outputs)
    with running(file, trace=trace):
        module = load(file, name, seed)
        wanted = outputs if number is None else number
        found = measure(module, X, wanted, seed=seed, init=init)
    if as_json:
        _print_json(found.to_json())
        return
    from finwidth.cli import tables

    tables.measurement(found)


@app.command("width-for")
def _width_for(
    depth: Annotated[int, typer.Argument(help="Number of weight layers.", show_default=False)],
    cv: Annotated[float, typer.Option("--cv", help="Wanted standard deviation of K over its mean.")] = 0.1,
    norm: Annotated[float, typer.Option("--norm", help="|x|^2 / n_0 of the input.")] = 1.0,
    law: Law = "gaussian",
    activation: AnyPhi = "relu",
    parameterization: Parameterization = "ntk",
    bias: Bias = "trained",
    target: Annotated[float, typer.Option("--target", help="Target of the step that is told of.")] = 1.0,
    lr: Annotated[
        float | None, typer.Option("--lr", help="Its learning rate; by default 1/E[K].", show_default=False)
    ] = None,
    seed: Seed = 0,
    as_json: Json = False,
) -> None:
    """The smallest hidden width from which on the kernel's spread is at most CV; what a step of SGD does there."""
    from finwidth.advice import regime, why_not
    from finwidth.sizing import width_for

    network: dict[str, Any] = {
        "weight_law": law,
        "activation": activation,
        "parameterization": parameterization,
        "bias": bias,
    }
    width = width_for(depth, cv, norm=norm, **network)
    net = MLP([64, *[width] * (depth - 1), 1], **network)
    reason = why_not(net)
    found = None if reason else regime(net, [norm**0.5] * 64, target=target, lr=lr, seed=seed)
    if as_json:
        told = asdict(found) if found else {"name": None, "not_drawn": reason}
        _print_json({"depth": depth, "width": width, "regime": told.pop("name")} | told)
        return
    if found is None:
        typer.echo(f"{width}\nWhat one step of SGD does to a network of this width is not known: {reason}.")
        return
    layers = f"{depth} weight layers" if depth > 1 else "one weight layer, without hidden ones,"
    typer.echo(f"{width}\nA network of {layers} at this width is {found.name}: {found.advice}.")


@app.command("paper")
def _paper(
    ids: Annotated[list[str] | None, typer.Argument(help="Statements, such as theorem-1; by default all.")] = None,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help=f"Write an HTML page here. {RULE}", show_default=False)
    ] = None,
    markdown: Annotated[
        Path | None, typer.Option("--markdown", help=f"Write the same as Markdown here. {RULE}", show_default=False)
    ] = None,
    as_json: Json = False,
) -> None:
    """Check every numbered statement of the source paper, one line each."""
    from finwidth.cli import tables
    from finwidth.paper import page, statements

    check(output, markdown)
    checked = []
    for id in ids or statements.STATEMENTS:
        checked.append(statements.check(id))
        if not as_json:
            tables.statement(checked[-1])
    found = statements.findings() if not ids else ()
    if as_json:
        _print_json(statements.to_json(checked, found))
    else:
        tables.findings(found)
    for path, write in ((output, page.write_page), (markdown, page.write_markdown)):
        if path is not None:
            write(path, checked, found)
            typer.echo(f"Wrote {path}.", err=as_json)
    if not all(statement.holds for statement in checked):
        raise typer.Exit(1)


# What Typer raises for a wrong command line (newer Typer has a Click of its own, so it is not named here).
_UsageError: Any = typer.BadParameter.__mro__[1]


def main() -> None:
    """Run the command line; a user's mistake is one line on standard error and exit status 2."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # a terminal without the superscript two gets a question mark
            stream.reconfigure(errors="replace")
    try:
        status = _run(sys.argv[1:])
        sys.stdout.flush()
    except BaseException as error:  # what is neither a mistake nor a stop is raised again
        status = _status(error)
    sys.exit(status)


def _run(arguments: list[str]) -> int:
    command: Any = typer.main.get_command(app)
    try:
        with command.make_context("finwidth", arguments) as context:
            command.invoke(context)
    except typer.Exit as done:
        return done.exit_code
    return 0


def _status(error: BaseException) -> int:
    """The exit status after an exception, which is told in one line."""
    stop = interrupts.behind(error)
    if stop is not None:
        number = stop.number if isinstance(stop, interrupts.Stopped) else signal.SIGINT
        _tell("; ".join([interrupts.word(number), *getattr(stop, "__notes__", ())]))
        return 128 + number
    if isinstance(error, BrokenPipeError | SystemExit):  # the reader, such as head, has seen enough; Rich exits then
        _drop_output()
        return 0
    message = _mistake(error)
    if message is None:
        raise error
    _tell(f"error: {shortened(message)}")
    try:
        sys.stdout.flush()
    except OSError:
        _drop_output()
    return 2


def _mistake(error: BaseException) -> str | None:
    """What a user has to change; None for a fault of finwidth's."""
    match error:
        case FinwidthError():
            return str(error)
        case _UsageError():
            return f"{error.format_message()} (finwidth COMMAND --help tells what is allowed)"
        case MemoryError():
            return "this needs more memory than there is; ask for fewer draws, or smaller widths and depth"
        case OSError():
            what = "write the output" if error.filename is None else f"use {error.filename}"
            return f"cannot {what}: {error.strerror or error}"
    return None


def _drop_output() -> None:
    """What standard output still holds cannot be written; the interpreter would try again as it ends."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _tell(message: str) -> None:
    """One line on standard error, if that can be written."""
    with contextlib.suppress(OSError):
        typer.echo(f"finwidth: {message}", err=True)

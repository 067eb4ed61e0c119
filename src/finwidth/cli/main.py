"""The command line: its commands, and what becomes of mistakes, signals and full disks."""

from __future__ import annotations

import contextlib
import io
import os
import signal
import sys
from typing import Annotated

import typer

from finwidth.cli import interrupts
from finwidth.cli.bars import Bars
from finwidth.cli.kernel import compare_command, moments_command, report_command, sample_command
from finwidth.cli.modules import measure_command
from finwidth.cli.paper import paper_command
from finwidth.cli.sizes import width_for_command
from finwidth.cli.sweeps import sweep_app
from finwidth.cli.training import train_command
from finwidth.errors import FinwidthError, shortened
from finwidth.progress import watching

app = typer.Typer(
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="What finite depth and width do to the neural tangent kernel (NTK).",
    epilog="Widths are written input to output: 16,64x8,1 is input 16, eight hidden layers of 64, output 1.",
)


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


app.command("moments")(moments_command)
app.command("sample")(sample_command)
app.command("train")(train_command)
app.command("report")(report_command)
app.command("compare")(compare_command)
app.command("measure")(measure_command)
app.command("width-for")(width_for_command)
app.command("paper")(paper_command)
app.add_typer(sweep_app, name="sweep")


# The exception of a wrong command line (newer Typer has a Click of its own, so it is not named here).
_UsageError: type[typer.BadParameter] = typer.BadParameter.__mro__[1]


def main() -> None:
    """Run the command line; a user's mistake is one line on standard error and exit status 2."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # a terminal without the superscript two gets a question mark
            stream.reconfigure(errors="replace")
    try:
        status = _invoke(sys.argv[1:])
        sys.stdout.flush()
    except BaseException as error:  # what is neither a mistake nor a stop is raised again
        status = _exit_status(error)
    sys.exit(status)


def _invoke(arguments: list[str]) -> int:
    """Run a command; its exit status."""
    command = typer.main.get_command(app)
    try:
        with command.make_context("finwidth", arguments) as context:
            command.invoke(context)
    except typer.Exit as done:
        return done.exit_code
    return 0


def _exit_status(error: BaseException) -> int:
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
    """The message of a user's mistake; None for a fault of finwidth's."""
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
    """Drop the rest of standard output, which cannot be written: the interpreter would try again as it ends."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _tell(message: str) -> None:
    """One line on standard error, if that can be written."""
    with contextlib.suppress(OSError):
        typer.echo(f"finwidth: {message}", err=True)

"""The command line: its commands, and what becomes of mistakes, signals and full disks."""

from __future__ import annotations

import contextlib
import io
import os
import re
import signal
import sys
from collections.abc import Callable
from copy import copy
from typing import Annotated

import typer

from finwidth.cli import interrupts
from finwidth.cli.bars import Bars, Spinner
from finwidth.cli.explorer import explore_command
from finwidth.cli.kernel import (
    compare_command,
    critical_command,
    expansion_command,
    gram_command,
    moments_command,
    report_command,
    sample_command,
)
from finwidth.cli.modules import measure_command
from finwidth.cli.options import PlainCommand, PlainGroup, examples
from finwidth.cli.output import in_ascii
from finwidth.cli.paper import paper_command
from finwidth.cli.schema import schema_command
from finwidth.cli.sizes import depth_for_command, regime_command, width_for_command
from finwidth.cli.sweeps import sweep_app
from finwidth.cli.training import train_command
from finwidth.errors import FinwidthError, shortened
from finwidth.progress import watching

app = typer.Typer(
    cls=PlainGroup,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="What finite depth and width do to the neural tangent kernel (NTK).",
    epilog="\n\n".join(
        [
            "Widths are written input to output: 16,64x8,1 is input 16, eight hidden layers of 64, output 1. With "
            "--blocks 8 a network is residual, and its widths are input, stream, output: 16,64,1.",
            "K is the kernel at one input; it differs between random initializations. Draws in law have exactly its "
            "distribution, and build no network. CV is a standard deviation over a mean.",
            "finwidth COMMAND --help tells the options of a command, with examples.",
            examples("", "moments 16,64x8,1 -i ones", "report 64,64x16,1 -i digits:17 -o report/", "explore"),
        ]
    ),
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
    if sys.stderr.isatty():
        context.with_resource(Spinner(sys.stderr).turning())
    context.with_resource(watching(Bars()))
    if context.invoked_subcommand is None:
        typer.echo(context.get_help())


def _add(panel: str, name: str, command: Callable[..., None], *lines: str) -> None:
    app.command(name, cls=PlainCommand, epilog=examples(name, *lines), rich_help_panel=panel)(command)


_EXACT, _DRAWN, _BESIDE = "Without random draws", "Random draws in law", "Side by side"
_ADVICE, _MORE = "Advice", "More"


_add(
    _EXACT, "moments", moments_command,
    "2,3,3,1 -i 1,2 --exact",
    "16,64x8,1 -i ones --law uniform --bias none",
    '16,64,1 --blocks 8 --branch "1/sqrt(depth)" -i ones',
    "16,64x3,10 --pytorch default -i random:1",
)  # fmt: skip
_add(
    _EXACT, "expansion", expansion_command,
    "16,64x8,1 -i ones --activation tanh",
    "2,99x3,1 -i 1,0 -i 0,1 --activation gelu -o wide.nc",
)  # fmt: skip
_add(_EXACT, "critical", critical_command, "gelu", "1,0.2")
_add(
    _DRAWN, "sample", sample_command,
    "16,64x8,1 -i ones --draws 20000",
    "16,64,1 --blocks 8 --branch 0.5 -i ones -o draws.nc",
    "3,5x15,1 -i 1,2,2 --tilted",
)  # fmt: skip
_add(
    _DRAWN, "gram", gram_command,
    "2,64x3,1 -i 1,0 -i 0,1 --activation tanh",
    "64,128x3,10 -i digits:0-5 --activation gelu",
    "2,64x3,1 -i 1,0 -i 0,1 --targets 1,-1 -o draws.nc",
)  # fmt: skip
_add(
    _DRAWN, "train", train_command,
    "64,1000x3,1 -i digits:0-11 --steps 20",
    "64,100x2,10 -i digits:0-11 --loss cross-entropy -o run.nc",
    "64,100x2,1 -i digits:0-11 --activation gelu --record log",
)  # fmt: skip
_add(
    _BESIDE, "report", report_command,
    "64,64x16,1 -i digits:17 -o report/",
    "2,16x4,1 -i 1,2 --draws 20000",
    "2,256x4,1 -i 1,2 --activation gelu",
)  # fmt: skip
_add(
    _BESIDE, "compare", compare_command,
    "3,32x3,1 -i 1,2,3",
    "3,32x3,1 -i ones --activation 1,0.2 --networks 1000",
    "model.py:make -i X.npy",
)  # fmt: skip
_add(
    _ADVICE, "regime", regime_command,
    "10,200x4,1",
    "64,128x3,10 --pytorch default -i digits:17 --target 0",
    "16,64x3,1 --activation tanh --bias none",
    "model.py:make -i X.npy",
)  # fmt: skip
_add(_BESIDE, "measure", measure_command, "model.py:make -i X.npy", "model.py:make -i X.npy --outputs 0 --json")
_add(
    _ADVICE, "width-for", width_for_command,
    "16 --cv 0.1",
    "8 --cv 0.3 --activation tanh",
    '--blocks 16 --branch "1/sqrt(depth)"',
)  # fmt: skip
_add(
    _ADVICE, "depth-for", depth_for_command,
    "256 --cv 0.3",
    "1000 --law uniform --bias none",
    "400 --cv 0.2 --blocks any --branch 0.5",
)  # fmt: skip
_add(_MORE, "explore", explore_command, "", "-o explorer.html")
_add(_MORE, "paper", paper_command, "", "theorem-1", "-o paper.html")
_add(_MORE, "schema", schema_command, "")
app.add_typer(sweep_app, name="sweep", rich_help_panel=_MORE)


_COMPLETING = "_FINWIDTH_COMPLETE"  # set by a shell that asks for completions

# The exception of a wrong command line (newer Typer has a Click of its own, so it is not named here).
_UsageError: type[typer.BadParameter] = typer.BadParameter.__mro__[1]


def main() -> None:
    """Run the command line; a user's mistake is one line on standard error and exit status 2."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors=in_ascii())
    if _COMPLETING in os.environ:
        typer.main.get_command(app).main(prog_name="finwidth")  # tells the shell what may come next, and exits
    try:
        status = _invoke(sys.argv[1:])
        sys.stdout.flush()
    except BaseException as error:  # what is neither a mistake nor a stop is raised again
        status = _exit_status(error)
    sys.exit(status)


def _invoke(arguments: list[str]) -> int:
    """Run a command; its exit status."""
    command = typer.main.get_command(_needed_for(arguments))
    try:
        with command.make_context("finwidth", arguments) as context:
            command.invoke(context)
    except typer.Exit as done:
        return done.exit_code
    return 0


def _needed_for(arguments: list[str]) -> typer.Typer:
    """The program with the one command that is called, if that is plain: to make all of them takes 20 ms."""
    named = [each for each in app.registered_commands if arguments[:1] == [each.name]]
    if not named and arguments != ["--version"]:
        return app
    small = copy(app)
    small.registered_commands, small.registered_groups = named, []
    return small


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
            return f"{_in_our_words(error.format_message())} (finwidth COMMAND --help tells what is allowed)"
        case MemoryError():
            return "this needs more memory than there is; ask for fewer draws, or smaller widths and depth"
        case OSError():
            what = "write the output" if error.filename is None else f"use {error.filename}"
            return f"cannot {what}: {error.strerror or error}"
    return None


def _in_our_words(message: str) -> str:
    """What pydantic, by which Typer reads numbers, says of one that is none."""
    message = re.sub("Input should be a valid integer.*", "give a whole number, such as 1000", message)
    return re.sub("Input should be a valid number.*", "give a number, such as 0.1", message)


def _drop_output() -> None:
    """Drop the rest of standard output, which cannot be written: the interpreter would try again as it ends."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _tell(message: str) -> None:
    """One line on standard error, if that can be written."""
    with contextlib.suppress(OSError):
        typer.echo(f"finwidth: {message}", err=True)

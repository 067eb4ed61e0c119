"""The commands of `finwidth sweep`: they parse, call one function, and write."""

from __future__ import annotations

import contextlib
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from finwidth import outputs
from finwidth.cli.bars import LOG_SECONDS, duration
from finwidth.cli.options import Flag, Json, PlainCommand, PlainGroup, among, either, examples
from finwidth.cli.output import print_json, verb, wrapped
from finwidth.documents import document
from finwidth.errors import FinwidthError

if TYPE_CHECKING:
    from finwidth.sweeps.execution.run import Progress
    from finwidth.sweeps.store.dataset import Status


class _RunByDefault(PlainGroup):
    """`finwidth sweep grid.toml` is short for `finwidth sweep run grid.toml`."""

    # The context is Click's, and newer Typer has a Click of its own.
    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        if not args:
            args = ["--help"]
        elif args[0] not in self.commands and args[0] not in ctx.help_option_names:
            args = ["run", *args]
        return super().parse_args(ctx, args)


sweep_app = typer.Typer(
    cls=_RunByDefault,
    epilog=examples("sweep", "grid.toml", "status grid.zarr", "plot grid.zarr phase -o phase.pdf"),
    help="Sweeps over depth, width and more: finwidth sweep grid.toml starts one, or goes on (docs/sweeps.md).",
)
PICTURES = ("phase", "collapse", "update", "moments", "gram", "training")
StoreArgument = Annotated[Path, typer.Argument(help="The store of a sweep.", show_default=False)]


@sweep_app.command(
    "run", cls=PlainCommand, epilog=examples("sweep", "grid.toml", "run grid.toml -o grid.zarr --workers 2")
)
def run_command(
    config: Annotated[Path, typer.Argument(help="The config, a TOML file.", show_default=False)],
    output: Annotated[
        Path | None,
        typer.Option(
            "--output",
            "-o",
            metavar="STORE",
            help="The store, by default the config's name with .zarr; a sweep goes on in its own store only.",
            show_default=False,
        ),
    ] = None,
    workers: Annotated[
        int | None,
        typer.Option("--workers", metavar="NUMBER", help="Threads; by default one for each core.", show_default=False),
    ] = None,
    scheduler: Annotated[
        str | None,
        typer.Option(
            "--scheduler",
            metavar="ADDRESS",
            help="Compute on a Dask cluster, such as tcp://host:8786.",
            show_default=False,
        ),
    ] = None,
    quiet: Annotated[bool, Flag("--quiet", "-q", help="No progress, only the result.")] = False,
    as_json: Json = False,
) -> None:
    """Compute the cells that the store does not hold yet (the word run may be left out)."""
    from finwidth.sweeps.execution.run import run
    from finwidth.sweeps.schema.document import store_beside
    from finwidth.sweeps.store.dataset import status

    path = store_beside(config) if output is None else output
    last: list[Progress] = []
    try:
        with _progress_bar(quiet or as_json) as show, _one_line_warnings():

            def progress(now: Progress) -> None:
                last[:] = [now]
                show(now)

            run(config, path, workers=workers, scheduler=scheduler, progress=progress)
    except KeyboardInterrupt as stop:
        if last:
            stop.add_note(f"{_done_line(path, last[0])}; the same command goes on")
        raise
    if as_json:
        _print_status(status(path), "sweep run", as_json=True, seconds=last[0].seconds)
        return
    typer.echo(f"{_done_line(path, last[0])}.")
    for each in status(path)["quantities"].values():
        for line in each["doubts"]:
            typer.echo(f"! {line}.")


@contextlib.contextmanager
def _one_line_warnings() -> Iterator[None]:
    """Print warnings, such as that a cluster has no workers, as one line."""
    with warnings.catch_warnings():
        warnings.showwarning = lambda message, *_: typer.echo(f"finwidth: {message}", err=True)
        yield


def _done_line(path: Path, now: Progress) -> str:
    """How many cells are done."""
    new = f", {now.done - now.before} of them new, {now.rate:.3g} a second" if now.done > now.before else ""
    return f"{now.done} of {now.total} cells are in {path}{new}"


@contextlib.contextmanager
def _progress_bar(quiet: bool) -> Iterator[Callable[[Progress], object]]:
    """A bar with the rate and the time left on a terminal, a line now and then in a log, nothing where quiet."""
    from rich.console import Console

    console = Console(stderr=True)
    if quiet:
        yield lambda now: None
    elif not console.is_terminal:
        yield _LogLines()
    else:
        from rich.progress import BarColumn, MofNCompleteColumn, TextColumn
        from rich.progress import Progress as Bar

        columns = (TextColumn("sweep"), BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[pace]}"))
        with Bar(*columns, console=console, transient=True) as bar:
            task = bar.add_task("", total=None, pace="")
            yield lambda now: bar.update(task, completed=now.done, total=now.total, pace=_pace(now))


class _LogLines:
    """A line on standard error at the start and every half a minute."""

    def __init__(self) -> None:
        self.next = 0.0

    def __call__(self, now: Progress) -> None:
        if time.monotonic() >= self.next:
            self.next = time.monotonic() + LOG_SECONDS
            typer.echo(f"{now.done} of {now.total} cells{', ' + _pace(now) if _pace(now) else ''}", err=True)


def _pace(now: Progress) -> str:
    if now.seconds_left is None:
        return ""
    return f"{now.rate:.3g} a second, {duration(now.seconds_left)} left"


@sweep_app.command("status", cls=PlainCommand, epilog=examples("sweep", "status grid.zarr", "status grid.zarr --json"))
def status_command(store: StoreArgument, as_json: Json = False) -> None:
    """How many cells are done, and how many have converged."""
    from finwidth.sweeps.store.dataset import status

    _print_status(status(store), "sweep status", as_json=as_json)


def _print_status(found: Status, command: str, *, as_json: bool, **more: object) -> None:
    if as_json:
        names = {"quantities": "cells"}
        results = {names.get(name, name): each for name, each in found.items() if name != "seed"}
        print_json(document("SweepStatus", results | more, command=command, seed=found["seed"]))
        return
    from finwidth.cli import tables

    tables.print_sweep_status(found)


@sweep_app.command("check", cls=PlainCommand, epilog=examples("sweep", "check grid.zarr", "check K.zarr"))
def check_command(store: StoreArgument, as_json: Json = False) -> None:
    """Find every file of a store that is damaged, and mend what can be computed again; also of a kernel's store."""
    from finwidth.empirical.kernel_store.store import KIND, check_kernel
    from finwidth.stores.files import LEFT
    from finwidth.sweeps.store.mending import check

    found = check_kernel(store) if (store / KIND.copy).exists() else check(store)
    if as_json:
        results = {"store": str(store), "damaged": [asdict(each) for each in found]}
        print_json(document("StoreCheck", results, command="sweep check"))
    else:
        for each in found:
            typer.echo(f"{each.file}: {each.mended}")
        typer.echo(f"{len(found)} files of {store} were damaged." if found else f"{store} is as it was stored.")
    if foreign := [each.file for each in found if each.mended == LEFT]:
        raise FinwidthError(f"{store} is still damaged: move away {', '.join(foreign)}, and check it again")


@sweep_app.command("collect", cls=PlainCommand, epilog=examples("sweep", "collect grid.zarr -o grid.nc"))
def collect_command(
    store: StoreArgument,
    output: Annotated[
        Path,
        typer.Option(
            "--output", "-o", metavar="FILE", help=f"A netCDF file, ending in .nc. {outputs.RULE}", show_default=False
        ),
    ],
    as_json: Json = False,
) -> None:
    """Write what a store holds as one netCDF file of labelled arrays."""
    from finwidth.sweeps.store.dataset import read

    if output.suffix != ".nc":
        raise FinwidthError(f"{output} must end in .nc, for it is a netCDF file; give another with -o")
    outputs.check(output)
    done, found = verb(output), read(store)
    outputs.write_netcdf(found, output)
    sizes = {str(name): size for name, size in found.sizes.items()}
    if as_json:
        results = {"store": str(store), "sizes": sizes, "variables": [str(name) for name in found]}
        print_json(document("Collection", results, command="sweep collect", files=outputs.written(output)))
        return
    typer.echo(wrapped(f"{done} {output}, with {', '.join(map(str, found))} over {', '.join(sizes)}."))


@sweep_app.command("merge", cls=PlainCommand, epilog=examples("sweep", "merge a.zarr b.zarr -o whole.zarr"))
def merge_command(
    stores: Annotated[list[Path], typer.Argument(help="The stores of the parts.", show_default=False)],
    output: Annotated[
        Path,
        typer.Option(
            "--output", "-o", metavar="STORE", help="The new store; there must be nothing yet.", show_default=False
        ),
    ],
    as_json: Json = False,
) -> None:
    """Make one store of the stores of two or more parts of a grid."""
    from finwidth.sweeps.store.dataset import status
    from finwidth.sweeps.store.merge import merge

    merge(stores, output)
    _print_status(status(output), "sweep merge", as_json=as_json)


@sweep_app.command(
    "plot",
    cls=PlainCommand,
    epilog=examples(
        "sweep",
        "plot grid.zarr phase -o phase.pdf",
        "plot grid.zarr gram -o gram.pdf",
        "plot grid.zarr collapse -o c.png --at branch=0.5",
    ),
)
def plot_command(
    store: StoreArgument,
    picture: Annotated[
        str,
        typer.Argument(
            help=f"{either(PICTURES)}.",
            show_default=False,
            autocompletion=among(PICTURES),
        ),
    ],
    output: Annotated[
        Path,
        typer.Option(
            "--output", "-o", metavar="FILE", help=f"Ending in .pdf, .svg or .png. {outputs.RULE}", show_default=False
        ),
    ],
    source: Annotated[
        str | None,
        typer.Option(
            "--source",
            metavar="NAME",
            help="Of phase: exact, expansion, sampled or bounds; by default the first of these that is there.",
            show_default=False,
        ),
    ] = None,
    at: Annotated[
        list[str] | None,
        typer.Option(
            "--at", metavar="AXIS=VALUE", help="Where to cut an axis, such as law=uniform.", show_default=False
        ),
    ] = None,
    as_json: Json = False,
) -> None:
    """Draw a picture of what a store holds.

    phase: spread and first change of the kernel over depth and width.
    collapse, update: its second moment and first change, of all widths together.
    moments: every moment over depth.
    gram: kernel matrices over depth.
    training: loss, drift and alignment over steps.
    """
    from finwidth.sweeps.plots import plot

    done = verb(output)
    plot(store, picture, output, source=source, at=at or [])
    if as_json:
        results = {"store": str(store), "picture": picture}
        print_json(document("Picture", results, command="sweep plot", files=outputs.written(output)))
        return
    typer.echo(f"{done} {output}.")

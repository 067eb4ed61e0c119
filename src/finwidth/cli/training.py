"""The command on training: `train`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from finwidth.cli.networks import network_of, taking
from finwidth.cli.options import Flag, Json, Seed, among, either
from finwidth.cli.output import print_json, verb
from finwidth.documents import document
from finwidth.networks.description import Network
from finwidth.outputs import RULE, check, write_netcdf, written
from finwidth.sampling.training.losses import LOSSES, loss_called

_OF_CLASSES = either(name for name, loss in LOSSES.items() if loss.classes)


@taking("net", network_of)
def train_command(
    net: Network,
    inputs: Annotated[
        str,
        typer.Option(
            "--inputs",
            "-i",
            metavar="FILE",
            help="A .npy file of shape (m, n_0), or a range such as digits:0-23.",
            show_default=False,
        ),
    ],
    targets: Annotated[
        str | None,
        typer.Option(
            "--targets",
            "-t",
            metavar="NUMBERS",
            help=f"Numbers, or a .npy file; by default the digits' parity or, for {_OF_CLASSES}, class.",
        ),
    ] = None,
    steps: Annotated[int, typer.Option("--steps", metavar="NUMBER", help="Steps of SGD.")] = 20,
    lr: Annotated[
        float | None,
        typer.Option(
            "--lr",
            metavar="NUMBER",
            help="Learning rate; by default (1 - momentum) / (top eigenvalue of the mean initial kernel).",
        ),
    ] = None,
    draws: Annotated[
        int, typer.Option("--draws", "-n", metavar="NUMBER", help="How many random networks to train in law.")
    ] = 10,
    seed: Seed = 0,
    batch: Annotated[
        int | None, typer.Option("--batch", metavar="NUMBER", help="Inputs of a mini-batch; by default all.")
    ] = None,
    momentum: Annotated[
        float, typer.Option("--momentum", metavar="NUMBER", help="Share of the last step that the next one repeats.")
    ] = 0.0,
    loss: Annotated[
        str, typer.Option("--loss", metavar="NAME", help=f"{either(LOSSES)}.", autocompletion=among(LOSSES))
    ] = "squared",
    centred: Annotated[
        bool, Flag("--centred", help="Train N(x) - N_0(x), N_0 at initialization: outputs start at 0.")
    ] = False,
    record: Annotated[
        str,
        typer.Option(
            "--record",
            metavar="STEPS",
            help="Steps to record: every 1, 10, ... steps; log; or steps with commas: 0,1,5,20.",
        ),
    ] = "1",
    memory: Annotated[
        str | None,
        typer.Option(
            "--memory", metavar="SIZE", help="Refuse what needs more than this, such as 4GiB.", show_default=False
        ),
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option(
            "--output", "-o", metavar="FILE", help=f"Keep the run in this netCDF file. {RULE}", show_default=False
        ),
    ] = None,
    as_json: Json = False,
) -> None:
    """Train networks of any width by SGD, in law and without their weights, and follow their kernel."""
    from finwidth.inputs import parse_training
    from finwidth.sampling.training.train import default_rate, mean_trajectory, train
    from finwidth.schedule import parse_record

    check(output)
    done = verb(output)
    X, y = parse_training(inputs, targets, classes=loss_called(loss).classes)
    if lr is None:
        lr = default_rate(net, X, seed, momentum=momentum)
    run = train(
        net, X, y, steps, lr, draws, seed,
        batch=batch, momentum=momentum, loss=loss, centred=centred, record=parse_record(record), memory=memory,
    )  # fmt: skip
    if output is not None:
        write_netcdf(run, output)
    found = mean_trajectory(run)
    from finwidth.cli import tables

    if as_json:
        settings = {
            "targets": y, "lr": lr, "steps": steps, "batch": batch, "momentum": momentum, "loss": loss,
            "centred": centred, "record": record,
        }  # fmt: skip
        about = {"network": net.describe(), "input": X, "settings": settings, "draws": draws, "seed": seed}
        content = tables.trajectory_content(found)
        print_json(document("Trajectory", content, command="train", **about, files=written(output)))
        return

    tables.print_trajectory(net, lr, found)
    if centred:
        typer.echo("Centred: the loss is that of N - N_0, the output less its initial value.")
    if output is not None:
        typer.echo(f"{done} {output}, with {draws} draws.")

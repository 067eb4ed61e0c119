"""The command on how wide a network should be: `width-for`."""

from __future__ import annotations

from dataclasses import asdict
from typing import Annotated

import typer

from finwidth.cli.options import AnyPhi, Bias, Json, Law, Parameterization, Seed
from finwidth.cli.output import print_json
from finwidth.networks.mlp import MLP, MLPOptions


def width_for_command(
    depth: Annotated[int, typer.Argument(help="Number of weight layers.", show_default=False)],
    cv: Annotated[float, typer.Option("--cv", help="Wanted standard deviation of K over its mean.")] = 0.1,
    input_norm: Annotated[float, typer.Option("--input-norm", help="|x|^2 / n_0 of the input.")] = 1.0,
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
    from finwidth.advice import regime, too_large
    from finwidth.sizing import width_for

    options: MLPOptions = {
        "weight_law": law, "activation": activation, "parameterization": parameterization, "bias": bias
    }  # fmt: skip
    width = width_for(depth, cv, input_norm=input_norm, **options)
    net = MLP([64, *[width] * (depth - 1), 1], **options)
    reason = too_large(net)
    found = None if reason else regime(net, [input_norm**0.5] * 64, target=target, lr=lr, seed=seed)
    if as_json:
        told = asdict(found) if found else {"name": None, "not_drawn": reason}
        print_json({"depth": depth, "width": width, "regime": told.pop("name")} | told)
        return
    if found is None:
        typer.echo(f"{width}\nWhat one step of SGD does to a network of this width is not known: {reason}.")
        return
    layers = f"{depth} weight layers" if depth > 1 else "one weight layer, without hidden ones,"
    typer.echo(f"{width}\nA network of {layers} at this width is {found.name}: {found.advice}.")

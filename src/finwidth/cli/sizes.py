"""Commands on how wide or deep a network should be, and on what one step does: `width-for`, `depth-for`, `regime`."""

from __future__ import annotations

import functools
import math
import warnings
from typing import Annotated, cast

import typer

from finwidth.cli.named import NamedModule, network_or_module, one_sample
from finwidth.cli.networks import Described, read_options, taking
from finwidth.cli.options import Json, Seed
from finwidth.cli.output import print_json, wrapped
from finwidth.documents import document, extended
from finwidth.errors import FinwidthError
from finwidth.networks.description import Network
from finwidth.networks.family import FamilyOptions
from finwidth.networks.inputs import Vector

Spread = Annotated[
    float,
    typer.Option(
        "--cv",
        metavar="NUMBER",
        help="Wanted standard deviation of K over its mean; with --norm half of what its middle 68% span, over its "
        "median.",
    ),
]
InputNorm = Annotated[
    float,
    typer.Option("--input-norm", metavar="NUMBER", help="Squared length of the input over how many numbers it has."),
]
Rate = Annotated[
    float | None,
    typer.Option(
        "--lr",
        metavar="NUMBER",
        help="Learning rate of the step; by default 1 over the mean of K, with --norm over its median.",
        show_default=False,
    ),
]


@taking("net", network_or_module)
def regime_command(
    net: Network | NamedModule,
    input: Annotated[
        str | None,
        typer.Option(
            "--input",
            "-i",
            metavar="INPUT",
            help="Numbers such as 1,2; ones, the default; random:7; a .npy file; or digits:17.",
            show_default=False,
        ),
    ] = None,
    target: Annotated[
        str,
        typer.Option("--target", metavar="NUMBERS", help="Target of the step: a number, or one for each output: 1,-1."),
    ] = "1",
    lr: Rate = None,
    draws: Annotated[
        int | None,
        typer.Option(
            "--draws",
            "-n",
            metavar="NUMBER",
            help="How many networks; by default as many as a second allows.",
            show_default=False,
        ),
    ] = None,
    seed: Seed = 0,
    as_json: Json = False,
) -> None:
    """Is the kernel settled, noisy or moving: its spread, and what one step of SGD on one input does to it."""
    from finwidth.advice import regime
    from finwidth.inputs import parse_input, parse_numbers

    goal = parse_numbers(target).tolist()
    ask = functools.partial(regime, target=goal if len(goal) > 1 else goal[0], lr=lr, draws=draws, seed=seed)
    settings: dict[str, object] = {"draws": draws}
    if isinstance(net, NamedModule):
        x: Vector = one_sample(input)
        settings |= net.settings
        with net.loaded(seed) as (module, factory):
            found = ask(module, x, init=net.init, factory=factory)
    else:
        x = parse_input("ones" if input is None else input, net.widths[0])
        found = ask(net, x)
    if as_json:
        print_json(extended(found.to_json(), command="regime", input=x, settings=settings, seed=seed))
        return
    typer.echo(wrapped(str(net)))
    typer.echo(wrapped(f"The network is {found.name}: {found.advice}."))


@taking("layers", read_options)
def width_for_command(
    layers: Described,
    depth: Annotated[
        int | None, typer.Argument(help="Number of weight layers; or give --blocks.", show_default=False)
    ] = None,
    cv: Spread = 0.1,
    input_norm: InputNorm = 1.0,
    target: Annotated[
        float, typer.Option("--target", metavar="NUMBER", help="Target of the step that is told of.")
    ] = 1.0,
    lr: Rate = None,
    seed: Seed = 0,
    as_json: Json = False,
) -> None:
    """The smallest width from which on the kernel's spread is at most CV; what a step of SGD does there."""
    from finwidth.advice import regime, too_large
    from finwidth.sizing import EXACTLY, spread_from, width_for

    family, depth = layers.family(), _only_one(depth, layers.blocks)
    width = width_for(depth, cv, kind=family.kind, input_norm=input_norm, **cast("FamilyOptions", family.options))
    net, x = family.net(64, width, depth), [input_norm**0.5] * 64
    source, reason = spread_from(net, x), too_large(net)
    found = None if reason else regime(net, x, target=target, lr=lr, seed=seed)
    if as_json:
        settings = {"cv": cv, "input_norm": input_norm, "target": target, "lr": lr}
        results = {"depth": depth, "width": width, "spread_from": source, "not_drawn": reason}
        results["regime"] = None if found is None else found.content()
        about = {"network": net.describe(), "settings": settings, "seed": seed}
        print_json(document("Width", results, command="width-for", **about))
        return
    typer.echo(width)
    if source != EXACTLY:
        typer.echo(wrapped(f"This is from {source}."))
    if found is None:
        typer.echo(wrapped(f"What one step of SGD does to a network of this width is not known: {reason}."))
        return
    which = f"{depth} {family.layers if depth > 1 else family.layers.removesuffix('s')}"
    typer.echo(wrapped(f"A network of {which} at this width is {found.name}: {found.advice}."))


def _only_one(depth: int | None, blocks: int | None) -> int:
    if depth is not None and blocks is None:
        return depth
    if blocks is not None and depth is None:
        return blocks
    raise FinwidthError("give the number of weight layers, such as width-for 8, or of blocks, such as --blocks 8")


@taking("layers", read_options)
def depth_for_command(
    width: Annotated[
        int, typer.Argument(help="Width of the hidden layers; with --blocks any of the stream.", show_default=False)
    ],
    layers: Described,
    cv: Spread = 0.1,
    input_norm: InputNorm = 1.0,
    as_json: Json = False,
) -> None:
    """The largest number of weight layers, or of blocks, at which the kernel's spread is at most CV."""
    from finwidth.sizing import EXACTLY, depth_for, spread_from

    if layers.blocks is not None:
        raise FinwidthError("the number of blocks is what depth-for finds; give --blocks any")
    family = layers.family()
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always", UserWarning)
        depth = depth_for(
            width, cv, kind=family.kind, input_norm=input_norm, **cast("FamilyOptions", family.options)
        )  # fmt: skip
    notes = [str(each.message) for each in told]
    notes += ["the spread is at most that at every depth"] if math.isinf(depth) else []
    net = family.net(64, width, 1 if math.isinf(depth) else int(depth))
    source = EXACTLY if math.isinf(depth) else spread_from(net, [input_norm**0.5] * 64)
    if as_json:
        results = {"width": width, "depth": depth, "spread_from": source}
        about = {"network": net.describe(), "settings": {"cv": cv, "input_norm": input_norm}, "warnings": notes or None}
        print_json(document("Depth", results, command="depth-for", **about))
        return
    typer.echo("any" if math.isinf(depth) else depth)
    if source != EXACTLY:
        typer.echo(wrapped(f"This is from {source}."))
    for note in notes:
        typer.echo(wrapped(f"! {note}."))

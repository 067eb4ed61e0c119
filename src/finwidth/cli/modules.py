"""The command on torch modules: `measure`."""

from __future__ import annotations

from typing import Annotated

import typer

from finwidth.cli.options import Flag, Json, Seed, among, either
from finwidth.cli.output import print_json
from finwidth.documents import extended

_INITS = (
    "default", "kaiming_uniform", "kaiming_normal", "xavier_uniform", "xavier_normal", "lecun_uniform", "lecun_normal",
    "unit_normal",
)  # fmt: skip


def measure_command(
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
        typer.Option(
            "--init",
            help=f"How the weights were drawn, if they do not tell: {either(_INITS)}.",
            autocompletion=among(_INITS),
        ),
    ] = None,
    seed: Seed = 0,
    trace: Annotated[bool, Flag("--traceback", help="Show where in the file an exception is raised.")] = False,
    as_json: Json = False,
) -> None:
    """Measure the kernel of a torch module, with theory beside it where finwidth recognises the module.

    This runs the Python file: give it only files that you trust. Torch's generator is set to the seed before.
    """
    from finwidth.inputs import parse_inputs, whole
    from finwidth.measurement import load, measure, parse_target, running_user_file

    X = parse_inputs(input)
    file, name = parse_target(target)
    number = whole(outputs)
    with running_user_file(file, trace=trace):
        module = load(file, name, seed)
        wanted = outputs if number is None else number
        found = measure(module, X, wanted, seed=seed, init=init)
    if as_json:
        print_json(extended(found.to_json(), command="measure", settings={"init": init}, seed=seed))
        return
    from finwidth.cli import tables

    tables.print_measurement(found)

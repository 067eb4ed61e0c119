"""The command on torch modules: `measure`."""

from __future__ import annotations

from typing import Annotated

import typer

from finwidth.cli.named import Init, NamedModule, Trace
from finwidth.cli.options import Json, Seed
from finwidth.cli.output import print_json
from finwidth.documents import extended


def measure_command(
    target: Annotated[
        str,
        typer.Argument(
            help="A Python file and a name in it: a torch module, or a function without arguments that makes one. Or "
            "a name in what is installed: torchvision.models:resnet18.",
            metavar="FILE.py:NAME",
            show_default=False,
        ),
    ],
    input: Annotated[
        str,
        typer.Option(
            "--input", "-i", metavar="INPUT", help="A .npy file of shape (N, ...); or one input: 1,2 or digits:17."
        ),
    ],
    outputs: Annotated[
        str,
        typer.Option(
            "--outputs",
            metavar="NAME",
            help="Of several outputs: trace, the sum of their kernels; full, all pairs; or the number of one output.",
        ),
    ] = "trace",
    init: Init = None,
    seed: Seed = 0,
    trace: Trace = False,
    as_json: Json = False,
) -> None:
    """Measure the kernel of a torch module, with theory beside it where finwidth recognises the module.

    This runs the Python file: give it only files that you trust. Torch's generator is set to the seed before.
    """
    from finwidth.inputs import parse_inputs, whole
    from finwidth.measurement import measure

    X, number = parse_inputs(input), whole(outputs)
    with NamedModule(target, init, redraw=False, trace=trace).loaded(seed) as (module, _):
        found = measure(module, X, outputs if number is None else number, seed=seed, init=init)
    if as_json:
        print_json(extended(found.to_json(), command="measure", settings={"init": init}, seed=seed))
        return
    from finwidth.cli import tables

    tables.print_measurement(found)

"""The options and arguments that commands share."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Annotated

import typer

from finwidth.networks.activations import ACTIVATIONS, SmoothActivation
from finwidth.networks.laws import LAWS
from finwidth.networks.mlp import PARAMETERIZATIONS


def either(names: Iterable[str]) -> str:
    """Names as a help text lists them.

    >>> from finwidth.cli.options import either
    >>> either(["a", "b", "c"]), either(["a"])
    ('a, b or c', 'a')
    """
    *others, last = names
    return f"{', '.join(others)} or {last}" if others else last


_TWO_SLOPES = [name for name, phi in ACTIVATIONS.items() if not isinstance(phi, SmoothActivation)]

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
Law = Annotated[str, typer.Option("--law", help=f"Weight law: {either(LAWS)}.")]
Phi = Annotated[str, typer.Option("--activation", help=f"{either(_TWO_SLOPES)}.")]
AnyPhi = Annotated[str, typer.Option("--activation", help=f"{either(ACTIVATIONS)}.")]
Parameterization = Annotated[str, typer.Option("--parameterization", help=f"{either(PARAMETERIZATIONS)}.")]
Bias = Annotated[str, typer.Option("--bias", help="trained (from zero), frozen or none.")]
Draws = Annotated[int, typer.Option("--draws", "-n", help="How many random networks to draw in law.")]
Seed = Annotated[int, typer.Option("--seed", "-s", help="A whole number that fixes every draw.")]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON document, for programs.")]

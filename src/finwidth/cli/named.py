"""How commands take a torch module in a file, or of what is installed, in the place of a network's widths."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

import typer

from finwidth.cli.networks import Described, read_options, taking
from finwidth.cli.options import Flag, among, either
from finwidth.errors import FinwidthError
from finwidth.networks.description import Network
from finwidth.networks.mlp import MLP
from finwidth.networks.widths import parse_widths

if TYPE_CHECKING:
    from torch import nn

    from finwidth.inputs import Numbers

_INITS = (
    "default", "kaiming_uniform", "kaiming_normal", "xavier_uniform", "xavier_normal", "lecun_uniform", "lecun_normal",
    "unit_normal",
)  # fmt: skip
_PANEL = "Torch module"

Init = Annotated[
    str | None,
    typer.Option(
        "--init",
        metavar="NAME",
        help=f"How the weights were drawn, if they do not tell: {either(_INITS)}.",
        autocompletion=among(_INITS),
        rich_help_panel=_PANEL,
    ),
]
Trace = Annotated[
    bool, Flag("--traceback", help="Show where in the file an exception is raised.", rich_help_panel=_PANEL)
]


@dataclass(frozen=True)
class NamedModule:
    """A torch module that the command line names, and how it is drawn again."""

    name: str
    init: str | None
    redraw: bool
    trace: bool

    def __str__(self) -> str:
        return self.name

    @contextlib.contextmanager
    def loaded(self, seed: int) -> Iterator[tuple[nn.Module, Callable[[], nn.Module] | None]]:
        """The module, and the function that draws it again if that is wanted, while its file may be run."""
        from finwidth.measurement import load, parse_target, running_user_file

        file, name = parse_target(self.name)
        with running_user_file(file, trace=self.trace):
            module, maker = load(file, name, seed)
            if self.redraw and maker is None:
                raise FinwidthError(
                    f"--redraw is for functions that make a module; {self.name} is a module itself; leave it out"
                )
            yield module, maker if self.redraw else None

    @property
    def settings(self) -> dict[str, object]:
        """What a document says of it."""
        return {"module": self.name, "init": self.init, "redraw": self.redraw}


@taking("layers", read_options)
def network_or_module(
    widths: Annotated[
        str,
        typer.Argument(
            help="Widths, input to output: 16,64x8,1. With --blocks input, stream, output. Or a torch module "
            "in a file: model.py:make.",
            show_default=False,
        ),
    ],
    layers: Described,
    init: Init = None,
    redraw: Annotated[
        bool,
        Flag(
            "--redraw",
            help="Draw networks by calling the function that is named, and not layer by layer.",
            rich_help_panel=_PANEL,
        ),
    ] = False,
    trace: Trace = False,
) -> Network | NamedModule:
    """The network of these widths that the options describe, or the torch module that stands in their place."""
    named = ":" in widths or widths.endswith(".py")
    if named and layers != Described(MLP, {}):
        raise FinwidthError(
            f"a torch module tells itself what it is; leave out the options that describe a network, or {widths}"
        )
    if named:
        from finwidth.measurement import parse_target

        parse_target(widths)  # a mistake is told before what else is missing
        return NamedModule(widths, init, redraw, trace)
    if own := [flag for flag, value in (("--init", init), ("--redraw", redraw), ("--traceback", trace)) if value]:
        raise FinwidthError(f"{own[0]} is for torch modules, such as model.py:make; leave it out")
    return layers.network(parse_widths(widths))


def one_sample(text: str | None) -> Numbers:
    """The one input that a module is applied to, without a dimension of samples, as `parse_inputs` names several.

    >>> from finwidth.cli.named import one_sample
    >>> one_sample("1,0.5")
    array([1. , 0.5])
    """
    from finwidth.inputs import parse_inputs

    if text is None:
        raise FinwidthError(
            "a torch module needs an input; give one with -i, such as 1,2 or a .npy file of shape (1, ...)"
        )
    inputs = parse_inputs(text)
    if len(inputs) != 1:
        raise FinwidthError(
            f"{text} holds {len(inputs)} inputs, shape {inputs.shape}; give one, shape (1, ...): np.save(file, X[:1])"
        )
    sample: Numbers = inputs[0]
    return sample

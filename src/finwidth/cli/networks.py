"""The options that describe a network, and the one place that makes a network of them.

A command that takes a network has a parameter for it, and `taking` puts the options that describe one in its place.  An
option that is not given leaves the description's own default; one that a description does not know is refused.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Annotated, Any, TypeVar, cast

import typer

from finwidth.cli.options import among, either
from finwidth.errors import FinwidthError, shown
from finwidth.inputs import parse_number, whole
from finwidth.networks.activations import ACTIVATIONS, Activation
from finwidth.networks.balanced import BalancedResNet
from finwidth.networks.description import BIASES, Network
from finwidth.networks.family import Family
from finwidth.networks.laws import LAWS
from finwidth.networks.mlp import MLP, PARAMETERIZATIONS, options_of
from finwidth.networks.norm import KINDS, parse_norm
from finwidth.networks.resnet import ResNet
from finwidth.networks.widths import parse_widths

Item = TypeVar("Item")
Result = TypeVar("Result")

_MOST_ITEMS = 10**7
_PYTORCH = ("default", "kaiming_uniform", "kaiming_normal")


def _option(panel: str, name: str, value: str, told: str, default: str = "", **more: Any) -> Any:
    """An option that is not given unless it is typed, with a word for its value.

    ``default`` is what the description takes if it is not given, in words.
    """
    told += default and f" Default: {default}."
    return typer.Option(name, help=told, metavar=value, rich_help_panel=panel, **more)


_of_network = functools.partial(_option, "Network")
_of_biases = functools.partial(_option, "Biases of the network")
_of_blocks = functools.partial(_option, "Residual network (with --blocks)")
_of_others = functools.partial(_option, "Networks as others write them, instead of the options above")

Law = Annotated[
    str | None, _of_network("--law", "NAME", f"Weight law: {either(LAWS)}.", "gaussian", autocompletion=among(LAWS))
]
Phi = Annotated[
    str | None,
    _of_network(
        "--activation",
        "NAME",
        f"{either(ACTIVATIONS)}; or two slopes, for y > 0 and for y < 0: 1,0.2.",
        "relu",
        autocompletion=among(ACTIVATIONS),
    ),
]
Parameterization = Annotated[
    str | None,
    _of_network(
        "--parameterization",
        "NAME",
        f"How steps scale with width: {either(PARAMETERIZATIONS)}.",
        "ntk",
        autocompletion=among(PARAMETERIZATIONS),
    ),
]
Gains = Annotated[
    str | None,
    _of_network(
        "--gains",
        "NUMBERS",
        "Variance of a weight times the number of inputs of its layer: 2, or one for each layer: 2x3,1.",
        "2 for relu, last layer 1",
    ),
]
BaseWidths = Annotated[
    str | None,
    _of_network("--base-widths", "WIDTHS", "Hidden width, or all widths, at which mup is the standard one.", "1"),
]
Bias = Annotated[
    str | None,
    _of_biases(
        "--bias",
        "NAME",
        f"Biases are {either(BIASES)}, or one for each layer: trainedx3,none.",
        "trained",
        autocompletion=among(BIASES),
    ),
]
BiasVariance = Annotated[
    str | None, _of_biases("--bias-variance", "NUMBERS", "Initial variance, or one for each layer.", "0")
]
BiasLaw = Annotated[
    str | None,
    _of_biases(
        "--bias-law", "NAME", "Law of initial biases that are not 0, as --law.", "gaussian", autocompletion=among(LAWS)
    ),
]
BiasScale = Annotated[
    str | None, _of_biases("--bias-scale", "NUMBERS", "Factor by which biases enter, or one for each layer.", "1")
]
NormOf = Annotated[
    str | None,
    _of_network(
        "--norm",
        "NAME",
        "Normalise hidden layers, or what enters each block: rms or layer; or with more that finwidth.Norm has: "
        "layer,after,1e-5,trained.",
        autocompletion=among(KINDS),
    ),
]
Blocks = Annotated[
    str | None,
    _of_blocks("--blocks", "NUMBER", "Number of blocks x + W relu(V x); the widths are input, stream, output."),
]
Hidden = Annotated[
    str | None, _of_blocks("--hidden", "WIDTHS", "Hidden width, or one for each block: 64x3,32.", "stream's")
]
Skip = Annotated[str | None, _of_blocks("--skip", "NUMBERS", "Factor of x, or one for each block.", "1")]
Branch = Annotated[
    str | None,
    _of_blocks("--branch", "NUMBERS", 'Factor of W relu(V x), such as 0.5, "sqrt(3/4)", "1/sqrt(depth)".', "1"),
]
Balanced = Annotated[
    bool, _of_blocks("--balanced", "", "Blocks x + W relu(signs * x) instead, signs random and fixed.")
]
Signs = Annotated[
    bool | None, _of_blocks("--signs/--no-signs", "", "Of --balanced: without them, blocks x + W relu(x).", "with")
]
PyTorch = Annotated[
    str | None,
    _of_others(
        "--pytorch",
        "NAME",
        f"nn.Linear layers: {either(_PYTORCH)}; for other biases add zeros or none: kaiming_normal,zeros.",
        autocompletion=among(_PYTORCH),
    ),
]
NeuralTangents = Annotated[
    str | None,
    _of_others("--neural-tangents", "NUMBERS", "stax.Dense layers: W_std, or W_std,b_std, such as 1.5,0.05."),
]
Widths = Annotated[
    str,
    typer.Argument(help="Widths, input to output: 16,64x8,1. With --blocks input, stream, output.", show_default=False),
]


@dataclass(frozen=True)
class Described:
    """What options say of a network, but for its widths: what makes it, and its arguments."""

    make: Callable[..., Network]
    arguments: Mapping[str, Any]

    def network(self, widths: Sequence[int]) -> Network:
        """The network of these widths."""
        if self.arguments.get("depth", 1) is None:
            raise FinwidthError("--blocks any is for depth-for, which finds their number; give one, such as --blocks 8")
        return self.make(widths, **self.arguments)

    @property
    def blocks(self) -> int | None:
        """How many blocks, if that is said."""
        found: int | None = self.arguments.get("depth")
        return found

    def family(self) -> Family:
        """Networks of any width and depth with layers, or blocks, like these; refused if that depends on the widths."""
        if self.make != MLP.pytorch:
            kind = cast("type[Network]", self.make)
            return Family(kind, {name: value for name, value in self.arguments.items() if name != "depth"})
        alike = options_of(MLP.pytorch([2, 3, 1], **self.arguments))
        if alike is None:
            raise FinwidthError(
                "biases of --pytorch depend on the widths, which are to be found; give them as zeros or none, such as "
                "--pytorch default,zeros"
            )
        return Family(MLP, alike)


def read_options(
    weight_law: Law = None,
    activation: Phi = None,
    parameterization: Parameterization = None,
    gains: Gains = None,
    base_widths: BaseWidths = None,
    norm: NormOf = None,
    bias: Bias = None,
    bias_variance: BiasVariance = None,
    bias_law: BiasLaw = None,
    bias_scale: BiasScale = None,
    blocks: Blocks = None,
    hidden: Hidden = None,
    skip: Skip = None,
    branch: Branch = None,
    balanced: Balanced = False,
    signs: Signs = None,
    pytorch: PyTorch = None,
    neural_tangents: NeuralTangents = None,
) -> Described:
    """What the options describe."""
    texts = {
        "weight_law": weight_law, "activation": activation, "parameterization": parameterization, "gains": gains,
        "base_widths": base_widths, "norm": norm, "bias": bias, "bias_variance": bias_variance, "bias_law": bias_law,
        "bias_scale": bias_scale, "hidden": hidden, "skip": skip, "branch": branch,
    }  # fmt: skip
    given: dict[str, Any] = {name: _READ[name](_dashed(name), text) for name, text in texts.items() if text is not None}
    given |= {"depth": None if blocks == "any" else _number_of_blocks(blocks)} if blocks is not None else {}
    given |= {"balanced": True} if balanced else {}
    given |= {"signs": signs} if signs is not None else {}
    if pytorch is not None:
        given |= {"neural_tangents": neural_tangents} if neural_tangents is not None else {}
        init, _, biases = pytorch.partition(",")
        own = {"init": init} | ({"biases": biases} if biases else {})
        return _of_kind(MLP.pytorch, {**own, **given}, "--pytorch")
    if neural_tangents is not None:
        if others := [name for name in given if name != "activation"]:
            raise _not_for(others[0], "--neural-tangents")
        return Described(MLP, _neural_tangents(neural_tangents) | given)
    if blocks is not None:
        kind = BalancedResNet if given.pop("balanced", False) else ResNet
        return _of_kind(kind, given, "--balanced" if balanced else "--blocks")
    if residual := [name for name in ("hidden", "skip", "branch", "balanced", "signs") if name in given]:
        raise FinwidthError(
            f"{_dashed(residual[0])} is for residual networks; say how many blocks, such as --blocks 8, or leave it out"
        )
    return Described(MLP, given)


def taking(name: str, make: Callable[..., object]) -> Callable[[Callable[..., Result]], Callable[..., Result]]:
    """Give a function, in place of its parameter ``name``, the parameters of ``make``, which makes a value for it.

    Examples
    --------
    >>> import inspect
    >>> from finwidth.cli.networks import read_options, network_of, taking
    >>> @taking("net", network_of)
    ... def command(net, exact):
    ...     return f"{net}, {exact}"
    >>> list(inspect.signature(command).parameters)[:3]
    ['exact', 'widths', 'weight_law']
    >>> command(widths="2,3,1", bias="none", exact=True)
    '2,3,1 relu, gaussian weights, ntk parameterization, no biases, True'
    """
    of_make = inspect.signature(make, eval_str=True).parameters

    def decorated(function: Callable[..., Result]) -> Callable[..., Result]:
        own = inspect.signature(function, eval_str=True).parameters

        @functools.wraps(function)
        def run(**given: Any) -> Result:
            made = make(**{each: given.pop(each) for each in of_make if each in given})
            return function(**given, **{name: made})

        parameters = [each for each in (*own.values(), *of_make.values()) if each.name != name]
        parameters = [each.replace(kind=inspect.Parameter.KEYWORD_ONLY) for each in parameters]
        parameters.sort(key=lambda each: each.default is not each.empty)  # required ones first; the sort is stable
        run.__dict__["__signature__"] = inspect.Signature(parameters)
        run.__annotations__ = {each.name: each.annotation for each in parameters}
        return run

    return decorated


@taking("layers", read_options)
def network_of(widths: Widths, layers: Described) -> Network:
    """The network of these widths that the options describe."""
    if ".py" in widths:
        raise FinwidthError(
            f"widths {shown(widths)} name a file; finwidth measure, regime and compare take a module in a file"
        )
    return layers.network(parse_widths(widths))


def _dashed(name: str) -> str:
    return _FLAGS.get(name, f"--{name.replace('_', '-')}")


_FLAGS = {"weight_law": "--law", "depth": "--blocks", "signs": "--signs"}  # where it is not the name


def _of_kind(make: Callable[..., Network], given: Mapping[str, Any], who: str) -> Described:
    """Refuse what the description does not know."""
    known = inspect.signature(make).parameters
    for name in given:
        if name not in known:
            raise _not_for(name, who)
    return Described(make, given)


def _not_for(name: str, who: str) -> FinwidthError:
    return FinwidthError(f"{_dashed(name)} does not go with {who}; leave one of the two out")


def _neural_tangents(text: str) -> dict[str, Any]:
    """The arguments of `MLP` for layers stax.Dense(width, W_std, b_std): W_std W x / sqrt(fan_in) + b_std b."""
    numbers = _list(_number_typed)("--neural-tangents", text)
    weights, *biases = numbers if isinstance(numbers, list) else [numbers]
    if len(biases) > 1:
        raise FinwidthError(f"--neural-tangents {shown(text)}: give W_std, or W_std,b_std, such as 1.5,0.05")
    if not biases:
        return {"gains": weights * weights, "bias": "none"}
    return {"gains": weights * weights, "bias_variance": 1, "bias_scale": biases[0]}


def _word(flag: str, text: str) -> str:
    return text


def _number_typed(flag: str, text: str) -> float | Fraction:
    try:
        return parse_number(text)
    except ValueError:
        raise FinwidthError(f"{flag}: {shown(text)} is not a number; give one, such as 2 or 1/3") from None


def _whole_number_typed(flag: str, text: str) -> int:
    number = whole(text)
    if number is None:
        raise FinwidthError(f"{flag}: {shown(text)} is not a width; give a whole number")
    return number


def _number_of_blocks(text: str) -> int:
    number = whole(text)
    if number is None:
        raise FinwidthError(f"--blocks: {shown(text)} is not a whole number; give how many blocks, such as 8")
    return number


def _factor_typed(flag: str, text: str) -> float | Fraction | str:
    """A number, or a text that the description reads."""
    try:
        return parse_number(text)
    except ValueError:
        return text


def _list(read: Callable[[str, str], Item]) -> Callable[[str, str], Item | list[Item]]:
    """How one value is read, or several with commas; 2x3 is 2,2,2."""

    def listed(flag: str, text: str) -> Item | list[Item]:
        found: list[Item] = []
        for part in text.split(","):
            word, _, times = part.strip().rpartition("x")
            number = whole(times) if word else None
            if number is None:
                found.append(read(flag, part.strip()))
            elif number > _MOST_ITEMS - len(found):
                raise FinwidthError(f"{flag} {shown(text)}: a network has at most {_MOST_ITEMS:,} layers")
            else:
                found += [read(flag, word)] * number
        return found[0] if len(found) == 1 and "x" not in text else found

    return listed


def activation_typed(flag: str, text: str) -> str | Activation:
    """An activation as it is typed: a name, or two slopes.

    >>> from finwidth.cli.networks import activation_typed
    >>> activation_typed("--activation", "tanh"), str(activation_typed("--activation", "1,0.2").negative)
    ('tanh', '1/5')
    """
    if "," not in text:
        return text
    slopes = text.split(",")
    if len(slopes) != 2:
        raise FinwidthError(f"{flag} {shown(text)}: give a name, or two slopes, for y > 0 and y < 0, such as 1,0.2")
    return Activation(f"slopes({text})", *(_number_typed(flag, slope) for slope in slopes))


_READ: dict[str, Callable[[str, str], object]] = {
    "weight_law": _word,
    "activation": activation_typed,
    "parameterization": _word,
    "gains": _list(_number_typed),
    "base_widths": _list(_whole_number_typed),
    "norm": lambda flag, text: parse_norm(text),
    "bias": _list(_word),
    "bias_variance": _list(_number_typed),
    "bias_law": _word,
    "bias_scale": _list(_number_typed),
    "hidden": _list(_whole_number_typed),
    "skip": _list(_factor_typed),
    "branch": _list(_factor_typed),
}

"""What descriptions of random networks have in common, and how their numbers are checked and written."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import cached_property
from itertools import groupby
from typing import Any, NamedTuple, TypeAlias

from finwidth import arguments
from finwidth.arguments import typed
from finwidth.errors import FinwidthError, shown
from finwidth.networks.activations import ACTIVATIONS, Activation, SmoothActivation
from finwidth.networks.laws import LAWS, WeightLaw
from finwidth.networks.norm import Norm

_LONGEST_REPR = 500  # characters; longer ones give way to the title
BIASES = ("trained", "frozen", "none")

Gains: TypeAlias = float | Fraction | Sequence[float | Fraction]


@dataclass(frozen=True)
class Layer:
    """One weight layer; symbols as in `finwidth.networks.mlp`. Every number is an exact fraction."""

    fan_in: int
    fan_out: int
    weight_variance: Fraction
    weight_multiplier: Fraction
    bias_variance: Fraction
    bias_multiplier: Fraction


@dataclass(frozen=True)
class Signs:
    """A fair random sign for each neuron, times what enters; drawn with the weights, fixed in training."""


@dataclass(frozen=True)
class Residual:
    """x becomes skip x + branch(x); a branch without steps adds nothing."""

    skip: float
    branch: tuple[Step, ...]


# What a network does to vectors, one after the other.  The factor of a branch is in its last layer (`branch_layer`).
Step: TypeAlias = "Layer | Activation | Norm | Signs | Residual"


def branch_layer(layer: Layer, factor_squared: Fraction) -> Layer:
    """The layer times a fixed number, as a layer: its weights, biases and derivatives all have the factor."""
    c = factor_squared
    return Layer(
        layer.fan_in, layer.fan_out, c * layer.weight_variance, c * layer.weight_multiplier,
        c * layer.bias_variance, c * layer.bias_multiplier,
    )  # fmt: skip


def kept_widths(net: Network, *, norms: bool = False) -> list[int]:
    """The widths of all that is new in a pass: of what each weight layer and each residual block gives, in that order.

    With ``norms`` also of what each norm gives.

    >>> from finwidth import ResNet
    >>> from finwidth.networks.description import kept_widths
    >>> kept_widths(ResNet([2, 4, 1], 1, 7)), kept_widths(ResNet([2, 4, 1], 1, 7, norm="rms"), norms=True)
    ([4, 7, 4, 4, 1], [4, 4, 7, 4, 4, 4, 1])
    """

    def widths(steps: Iterable[Step], n: int) -> list[int]:
        found: list[int] = []
        for step in steps:
            if isinstance(step, Layer):
                n = step.fan_out
                found.append(n)
            elif isinstance(step, Norm) and norms:
                found.append(n)
            elif isinstance(step, Residual):
                found += [*widths(step.branch, n), n]
        return found

    return [width for stage in _with_widths(net) for width in widths(*stage)]


def _with_widths(net: Network) -> Iterator[tuple[tuple[Step, ...], int]]:
    """Each stage, and the width of what enters it."""
    n = net.widths[0]
    for stage in net.stages:
        yield stage, n
        n = next((step.fan_out for step in reversed(stage) if isinstance(step, Layer)), n)


def weight_layers(net: Network) -> list[Layer]:
    """The weight layers of a network and its branches, in the order in which they are passed.

    >>> from finwidth import ResNet
    >>> from finwidth.networks.description import weight_layers
    >>> [(layer.fan_in, layer.fan_out) for layer in weight_layers(ResNet([2, 4, 1], 1, 7))]
    [(2, 4), (4, 7), (7, 4), (4, 1)]
    """

    def layers(steps: Iterable[Step]) -> Iterator[Layer]:
        for step in steps:
            if isinstance(step, Layer):
                yield step
            elif isinstance(step, Residual):
                yield from layers(step.branch)

    return list(layers(net.steps))


def count_weights(net: Network) -> int:
    """How many weights the layers of a network have.

    >>> from finwidth import ResNet
    >>> from finwidth.networks.description import count_weights
    >>> count_weights(ResNet([2, 4, 1], 1, 7))
    68
    """
    return sum(layer.fan_in * layer.fan_out for layer in weight_layers(net))


class Network:
    """A description of a random network, of any kind: what functions read that serve more than one kind.

    Attributes
    ----------
    widths
        Of what passes from layer to layer; the first is the input's and the last the output's.
    gains, bias, bias_variance, bias_scale
        One entry for each kind of weight layer that may differ.
    """

    widths: tuple[int, ...]
    weight_law: WeightLaw
    activation: Activation
    parameterization: str
    gains: tuple[Fraction, ...]
    bias: tuple[str, ...]
    bias_variance: tuple[Fraction, ...]
    bias_law: WeightLaw
    bias_scale: tuple[Fraction, ...]
    norm: Norm | None = None  # how hidden vectors are normalised

    @property
    def depth(self) -> int:
        """How long the network is, in what repeats: weight layers of an `MLP`, blocks of a `ResNet`."""
        raise NotImplementedError

    @cached_property
    def random_bias(self) -> bool:
        """Whether any initial bias is random."""
        return any(variance and scale for variance, scale in zip(self.bias_variance, self.bias_scale, strict=True))

    @property
    def stages(self) -> tuple[tuple[Step, ...], ...]:
        """What the network does, step by step; between two stages are its hidden vectors.

        Every route that walks through networks reads this, so that a new kind of network is a new list of steps.
        """
        raise NotImplementedError

    @property
    def steps(self) -> tuple[Step, ...]:
        """Those of all stages, in the order in which they are passed."""
        return tuple(step for stage in self.stages for step in stage)

    @property
    def hidden_places(self) -> range:
        """The numbers of the hidden vectors, which lie between the stages: of the layer that makes each."""
        return range(1, len(self.stages))

    def describe(self) -> dict[str, Any]:
        """What defines the network, in plain types, enough to make it again: for JSON and for file attributes.

        Of what is made of a user's functions, a smooth activation or a weight law, there is the name only.
        """
        norm = {} if self.norm is None else {"norm": self.norm.describe()}
        phi = self.activation
        slopes = {}
        if phi != ACTIVATIONS.get(phi.name) and not isinstance(phi, SmoothActivation):
            slopes = {"slopes": [str(slope) for slope in (phi.positive, phi.negative, phi.at_zero)]}
        return {
            "kind": type(self).__name__,
            "widths": list(self.widths),
            "weight_law": self.weight_law.name,
            "activation": phi.name,
            **slopes,
            "parameterization": self.parameterization,
            "gains": [str(gain) for gain in self.gains],
            "bias": list(self.bias),
            "bias_variance": [str(variance) for variance in self.bias_variance],
            "bias_law": self.bias_law.name,
            "bias_scale": [str(scale) for scale in self.bias_scale],
            **norm,
        }

    def _arguments(self) -> Iterator[str]:
        """What makes it, as one types it, without what is the default; the widths come first."""
        raise NotImplementedError

    def __repr__(self) -> str:
        text = f"{type(self).__name__}({', '.join(self._arguments())})"
        return text if len(text) <= _LONGEST_REPR else f"<{type(self).__name__} {self}>"

    def _usual_arguments(self, usual_gains: tuple[Fraction, ...]) -> Iterator[str]:
        """Those that descriptions of all kinds have."""
        for name, law in (("weight_law", self.weight_law), ("bias_law", self.bias_law)):
            if law != LAWS["gaussian"]:
                yield f"{name}={law.name!r}" if law == LAWS.get(law.name) else f"{name}={law!r}"
        phi = self.activation
        if phi != ACTIVATIONS["relu"]:
            yield f"activation={phi.name!r}" if phi == ACTIVATIONS.get(phi.name) else f"activation={phi!r}"
        if self.parameterization != "ntk":
            yield f"parameterization={self.parameterization!r}"
        if self.gains != usual_gains:
            yield f"gains={typed_values(self.gains)}"
        if set(self.bias) != {"trained"}:
            yield f"bias={typed_values(self.bias)}"
        for name, values, usual in (("bias_variance", self.bias_variance, 0), ("bias_scale", self.bias_scale, 1)):
            if set(values) != {usual}:
                yield f"{name}={typed_values(values)}"
        if self.norm is not None:
            yield f"norm={self.norm.kind!r}" if self.norm == Norm(self.norm.kind) else f"norm={self.norm!r}"

    def _told_biases(self) -> str:
        """The biases in a title, as far as they are not the usual ones."""
        there = [i for i, kind in enumerate(self.bias) if kind != "none"]
        told = []
        for name, values, usual in (("variance", self.bias_variance, 0), ("scale", self.bias_scale, 1)):
            if any(values[i] != usual for i in there):
                told.append(f"{name} {few_values([values[i] for i in there])}")
        kinds = few_runs(["no" if kind == "none" else kind for kind in self.bias])
        kinds += f" {self.bias_law.name}" if self.random_bias else ""
        if kinds == "trained" and not told:
            return ""
        return f", {kinds} biases" + (f" ({', '.join(told)})" if told else "")


def check_network(net: object) -> Network:
    """A description of a network of any kind."""
    if not isinstance(net, Network):
        raise FinwidthError(
            f"the network is {shown(net)}; give a finwidth.MLP, such as finwidth.MLP([16, 64, 64, 1]); "
            "finwidth.empirical.recognise makes one of a torch module"
        )
    return net


def typed_list(values: Sequence[Fraction | int | str]) -> str:
    """A list as one types it, runs of equal values in short.

    >>> from finwidth.networks.description import typed_list
    >>> typed_list([16, 64, 64, 64, 1])
    '[16, *[64] * 3, 1]'
    """
    runs = [(typed(value), len(list(run))) for value, run in groupby(values)]
    return f"[{', '.join(f'*[{text}] * {times}' if times > 2 else ', '.join([text] * times) for text, times in runs)}]"


def typed_values(values: Sequence[Fraction | int | str]) -> str:
    """One value if they are all equal, else a list."""
    return typed(values[0]) if len(set(values)) == 1 else typed_list(values)


def few_values(values: Sequence[Fraction | float]) -> str:
    """Values in a title: one if they are all equal, and at most four."""
    texts = [f"{float(value):.4g}" for value in (values[:1] if len(set(values)) == 1 else values)]
    return ", ".join([*texts[:3], "..."] if len(texts) > 4 else texts)


def few_runs(words: Sequence[str]) -> str:
    """Words in a title: one if they are all equal, else each with how often it comes in a row, and at most four.

    >>> from finwidth.networks.description import few_runs
    >>> few_runs(["no", "no"]), few_runs(["trained", "trained", "no"])
    ('no', '2 trained/1 no')
    """
    if len(set(words)) == 1:
        return words[0]
    runs = [f"{len(list(run))} {word}" for word, run in groupby(words)]
    return "/".join([*runs[:3], "..."] if len(runs) > 4 else runs)


class Places(NamedTuple):
    """What an argument has one value for, or one for each."""

    number: int
    one: str
    several: str

    def values(self, name: str, given: Any, wanted: str) -> list[Any]:
        """As many values as places."""
        values = arguments.items(name, given, wanted)
        if len(values) != self.number:
            given_as = "word" if wanted.startswith("one of") else "number"
            raise FinwidthError(
                f"{name} has {len(values)} entries for {self.number} {self.several}; give one {given_as}, or "
                f"{self.number}"
            )
        return values

    def numbers(self, name: str, given: Gains, *, positive: bool) -> tuple[Fraction, ...]:
        """A number for each place."""
        size = "positive" if positive else "0 or more"
        wanted = f"finite numbers, {size}: one, or one for each of {self.number} {self.several}"

        def allowed(value: Fraction) -> bool:
            return value > 0 or (value == 0 and not positive)

        array = arguments.real_array(given)
        if array is None or not array.ndim:
            return (arguments.exact(name, given, wanted, allowed),) * self.number
        values = self.values(name, given, wanted)
        return tuple(
            arguments.exact(f"{name} of {self.one} {i}", value, wanted, allowed) for i, value in enumerate(values, 1)
        )

    @staticmethod
    def check_bias_scales(scales: Sequence[Fraction], variances: Sequence[Fraction], given: Gains) -> None:
        """Refuse factors of the biases whose squares, which all routes calculate with, are no doubles."""
        squares = [square for s, v in {*zip(scales, variances, strict=True)} for square in (s * s, s * s * v)]
        if not all(map(arguments.is_double, squares)):
            raise FinwidthError(
                f"bias_scale is {shown(given)}, and its square, or that times bias_variance, is past a double's range; "
                "give numbers of a usual size, such as 0.1"
            )

    def biases(self, given: str | Sequence[str], variances: Sequence[Fraction]) -> tuple[str, ...]:
        """The kind of the biases of each place, of these variances."""
        wanted = f"one of {', '.join(BIASES)}, or one for each of {self.number} {self.several}"
        if isinstance(given, str):
            kinds = (arguments.one_of("bias", given, BIASES),) * self.number
        else:
            kinds = tuple(
                arguments.one_of(f"bias of {self.one} {i}", kind, BIASES)
                for i, kind in enumerate(self.values("bias", given, wanted), 1)
            )
        if any(kind == "none" and variance for kind, variance in zip(kinds, variances, strict=True)):
            raise FinwidthError('bias="none" with a bias_variance that is not 0; use bias="frozen" or bias_variance=0')
        return kinds

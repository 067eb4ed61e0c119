"""What the descriptions of residual networks have in common: stem and head, factors by block, and how they are checked.

Only the squares of ``skip`` and ``branch`` are kept.  Their signs do not matter in law: the matrices of a block are
symmetric, and so are random biases.  And in every mean of products of outputs and their derivatives both come in even
powers: at each neuron of the stream an even number of paths meet, of which an even number pass through the block, as
its last matrix is even in each of its rows.  So means are exact fractions also for branch = 1/sqrt(L).
"""

from __future__ import annotations

import math
import re
from collections.abc import Hashable, Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import cached_property
from typing import Any, ClassVar, TypeAlias, TypeVar

from finwidth import arguments
from finwidth.errors import FinwidthError, shown
from finwidth.memory import afford
from finwidth.networks.activations import Activation, activation
from finwidth.networks.description import (
    Fork,
    Join,
    Layer,
    Network,
    Places,
    Skip,
    Step,
    branch_layer,
    few_values,
    typed_list,
    typed_values,
)
from finwidth.networks.laws import WeightLaw, weight_law
from finwidth.networks.widths import check_depth, check_widths, format_widths

Factor: TypeAlias = float | Fraction | str
_Described = TypeVar("_Described", bound=Hashable)


@dataclass(frozen=True, repr=False)
class ResidualNetwork(Network):
    """A linear stem, blocks that add to a stream, and a linear head; `ResNet` and `BalancedResNet` say which blocks."""

    widths: tuple[int, ...]
    skip_squared: tuple[Fraction, ...]
    branch_squared: tuple[Fraction, ...]
    weight_law: WeightLaw
    activation: Activation
    parameterization: str
    gains: tuple[Fraction, ...]
    bias: tuple[str, ...]
    bias_variance: tuple[Fraction, ...]
    bias_law: WeightLaw
    bias_scale: tuple[Fraction, ...]

    layer_kinds: ClassVar[tuple[str, ...]]  # the kinds of weight layers, in the order of ``gains`` and ``bias``
    block_bytes: ClassVar[int]  # that the description of a block takes
    activated: ClassVar[str]  # the one that by default has the gain of the activation

    def _set(self, widths: Sequence[int], depth: int, given: dict[str, Any]) -> None:
        """Check and set what residual networks have in common; ``given`` are the other arguments by name."""
        blocks = Places(check_depth("depth", depth), "block", "blocks")
        layers = Places(len(self.layer_kinds), "layer", f"kinds of layers ({', '.join(self.layer_kinds)})")
        phi = activation(given["activation"])
        skips, branches = (
            [_as_square(*each, blocks) for each in _by_block(name, given[name], blocks)] for name in ("skip", "branch")
        )
        skips, branches = (each * (blocks.number // len(each)) for each in (skips, branches))
        if not all(a or b for a, b in zip(skips, branches, strict=True)):
            raise FinwidthError("skip and branch are 0 in the same block, which passes nothing on; give one of them")
        variances = layers.numbers("bias_variance", given["bias_variance"], positive=False)
        scales = layers.numbers("bias_scale", given["bias_scale"], positive=False)
        layers.check_bias_scales(scales, variances, given["bias_scale"])
        gains = self._default_gains(phi) if given["gains"] is None else given["gains"]
        fields = {
            "widths": self._widths(widths),
            "skip_squared": tuple(skips),
            "branch_squared": tuple(branches),
            "weight_law": weight_law(given["weight_law"]),
            "activation": phi,
            "parameterization": _parameterization(given["parameterization"]),
            "gains": layers.numbers("gains", gains, positive=True),
            "bias": layers.biases(given["bias"], variances),
            "bias_variance": variances,
            "bias_law": weight_law(given["bias_law"]),
            "bias_scale": scales,
        }
        for key, value in fields.items():
            object.__setattr__(self, key, value)

    @classmethod
    def _widths(cls, widths: Sequence[int]) -> tuple[int, ...]:
        checked = check_widths(widths)
        if len(checked) != 3:
            hidden = ", and the hidden widths of its blocks are given as hidden" if cls.activated == "V" else ""
            raise FinwidthError(
                f"widths has {len(checked)} entries; a {cls.__name__} has three, [input, stream, output], such as "
                f"[16, 64, 1]{hidden}"
            )
        return checked

    @classmethod
    def _default_gains(cls, phi: Activation) -> tuple[Fraction, ...]:
        return tuple(phi.default_gain if kind == cls.activated else Fraction(1) for kind in cls.layer_kinds)

    @property
    def depth(self) -> int:
        """L, the number of blocks."""
        return len(self.skip_squared)

    @property
    def outlived(self) -> bool:
        """Whether gates that a dead stream keeps closed have trained biases above: a block without skip lies below.

        A stream dies in a block without skip, if all its gates are closed and no bias is random.  What reaches such a
        block from above is zero then, gates or not; so only biases of the blocks above it can tell.
        """
        inside = range(1, len(self.layer_kinds) - 1)
        trained = any(self.bias[i] == "trained" and self.bias_scale[i] for i in inside)
        revived = any(self.bias_variance[i] and self.bias_scale[i] for i in inside)
        return self.activation.can_die and trained and not revived and not all(self.skip_squared[:-1])

    @cached_property
    def stem(self) -> Layer:
        """The first layer, from the input to the stream."""
        return self._layer("stem", self.widths[0], self.widths[1])

    @cached_property
    def head(self) -> Layer:
        """The last layer, from the stream to the outputs."""
        return self._layer("head", self.widths[1], self.widths[2])

    def _layer(self, kind: str, fan_in: int, fan_out: int) -> Layer:
        i = self.layer_kinds.index(kind)
        variance, scale = self.gains[i] / fan_in, self.bias_scale[i] ** 2
        return Layer(
            fan_in,
            fan_out,
            weight_variance=variance,
            weight_multiplier=variance if self.parameterization == "ntk" else Fraction(1),
            bias_variance=scale * self.bias_variance[i],
            bias_multiplier=scale if self.bias[i] == "trained" else Fraction(0),
        )

    def _different(self, described: Sequence[_Described]) -> set[_Described]:
        """The blocks of these descriptions that differ, whose number is refused first: equal ones are one object."""
        different = set(described)
        afford(self.block_bytes * len(different), f"a network of {len(different)} different blocks", "take fewer")
        return different

    @cached_property
    def stages(self) -> tuple[tuple[Step, ...], ...]:
        """The stem; each block, and a norm that is after it; the head, and a norm before it."""
        before: tuple[Step, ...] = ()
        after: tuple[Step, ...] = ()
        if self.norm is not None:
            before, after = ((self.norm,), ()) if self.norm.position == "before" else ((), (self.norm,))
        blocks: list[tuple[Step, ...]] = []
        for block in self.blocks:
            skip = float(block.skip_squared) ** 0.5
            steps: tuple[Step, ...] = (Skip(skip),)
            if block.branch_squared:
                last = branch_layer(block.outer, block.branch_squared)
                steps = (Fork(), *before, *self._inside(block), last, Join(skip))
            blocks.append((*steps, *after))
        return ((self.stem,), *blocks, (*before, self.head))

    @property
    def hidden_places(self) -> range:
        """0 for what the stem gives, then the numbers of the blocks."""
        return range(self.depth + 1)

    @property
    def blocks(self) -> Sequence[Any]:
        """The L blocks, first to last, each with ``skip_squared``, ``branch_squared`` and ``outer``, its last layer."""
        raise NotImplementedError

    def _inside(self, block: Any) -> tuple[Step, ...]:
        """The steps of a block before its last layer."""
        raise NotImplementedError

    def describe(self) -> dict[str, Any]:
        """What defines the network, in plain types: for JSON and for file attributes."""
        return {
            **super().describe(),
            "skip_squared": [str(square) for square in self.skip_squared],
            "branch_squared": [str(square) for square in self.branch_squared],
        }

    def _arguments(self) -> Iterator[str]:
        yield typed_list(self.widths)
        yield str(self.depth)
        for name, squares in (("skip", self.skip_squared), ("branch", self.branch_squared)):
            if set(squares) != {1}:
                yield f"{name}={typed_values([_root(square) for square in squares])}"
        yield from self._usual_arguments(self._default_gains(self.activation))

    def __str__(self) -> str:
        told = self._told()
        for name, squares in (("skip", self.skip_squared), ("branch", self.branch_squared)):
            if set(squares) != {1}:
                told.append(f"{name} {few_values([float(square) ** 0.5 for square in squares])}")
        text = f"{type(self).__name__} {format_widths(self.widths)} of {self.depth} block{'s' * (self.depth > 1)}"
        text += f" ({'; '.join(told)})" if told else ""
        text += f" {self.activation.name}, {self.weight_law.name} weights"
        if self.gains != self._default_gains(self.activation):
            text += f" (gains {few_values(self.gains)})"
        return f"{text}, {self.parameterization} parameterization{self._told_biases()}"

    def _told(self) -> list[str]:
        """What a title says of the blocks first."""
        return []


def _root(square: Fraction) -> Fraction | str:
    """The factor of a square: a number, or a root such as "sqrt(3/4)"."""
    root = Fraction(math.isqrt(square.numerator), math.isqrt(square.denominator))
    return root if root * root == square else f"sqrt({square})"


def _wanted(blocks: Places) -> str:
    return (
        'numbers, 0 or more, whose squares are doubles, roots such as "sqrt(3/4)", or "1/sqrt(depth)": one, or one '
        f"for each of {blocks.number} blocks"
    )


def _by_block(name: str, given: Factor | Sequence[Factor], blocks: Places) -> list[tuple[str, Any]]:
    """The factor of all blocks, or that of each, with the name by which messages call it."""
    array = arguments.real_array(given)
    if isinstance(given, str) or (array is not None and not array.ndim):
        return [(name, given)]
    values = blocks.values(name, given, _wanted(blocks))
    return [(f"{name} of block {i}", each) for i, each in enumerate(values, 1)]


def _as_square(name: str, given: Any, blocks: Places) -> Fraction:
    """The square of a factor, exactly."""
    text, wanted = given if isinstance(given, str) else "", _wanted(blocks)
    if text == "1/sqrt(depth)":
        return Fraction(1, blocks.number)
    if root := re.fullmatch(r"sqrt\((\d{1,300})(?:/([1-9]\d{0,300}))?\)", text):
        return arguments.exact(name, Fraction(int(root[1]), int(root[2] or 1)), wanted)
    factor = arguments.exact(name, given, wanted, lambda value: value >= 0)
    square = factor * factor
    if not arguments.is_double(square):
        raise FinwidthError(f"{name} is {shown(given)}; give {wanted}")
    return square


def _parameterization(given: str) -> str:
    if isinstance(given, str) and given == "mup":
        raise FinwidthError(
            'parameterization "mup" is not defined for residual networks: how their branches scale is not settled; '
            "choose ntk or standard"
        )
    return arguments.one_of("parameterization", given, ("ntk", "standard"))

"""The residual network with random weights.

Convention (stream of width n, L blocks of hidden widths m_l)::

    x_0 = W_stem x + b_stem
    y_l = V_l x_{l-1} + p_l,   z_l = phi(y_l),   x_l = skip_l x_{l-1} + branch_l (W_l z_l + s_l),   l = 1..L
    N(x) = W_head x_L + b_head

Every matrix with its bias is a `Layer` as in `finwidth.networks.mlp`: the stem from n_0 to n, the ``inner`` layer
V_l, p_l of a block from n to m_l, the ``outer`` one W_l, s_l back to n, and the head from n to the outputs.  Variances,
multipliers and the parts K_w and K_b of the kernel are those of these layers; ``branch`` is a constant of the network,
not a part of W_l.  No activation acts on the stream.

Only the squares of ``skip`` and ``branch`` are kept.  Their signs do not matter in law: V_l and W_l are symmetric, and
so are random biases.  And in every mean of products of outputs and their derivatives both come in even powers: at each
neuron of the stream an even number of paths meet, of which an even number go through the block, as W_l and s_l are
even in each of their rows.  So means are exact fractions also for branch = 1/sqrt(L).
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import cached_property
from typing import Any, TypeAlias

from finwidth import arguments
from finwidth.errors import FinwidthError
from finwidth.memory import afford
from finwidth.networks.activations import Activation, activation
from finwidth.networks.description import Gains, Layer, Network, Places, few_values
from finwidth.networks.laws import WeightLaw, weight_law
from finwidth.networks.widths import check_depth, check_widths, format_widths

LAYERS = ("stem", "inner", "outer", "head")  # the kinds of weight layers, in the order of ``gains`` and ``bias``

_BLOCK_BYTES = 1500

Factor: TypeAlias = float | Fraction | str


@dataclass(frozen=True)
class Block:
    """One block, x + branch * outer(phi(inner(x))) with x times skip; the factors by their squares."""

    skip_squared: Fraction
    branch_squared: Fraction
    inner: Layer
    outer: Layer


@dataclass(frozen=True)
class ResNet(Network):
    """A random residual network: a linear stem, blocks x <- skip x + branch (W phi(V x + p) + s), and a linear head.

    Parameters
    ----------
    widths
        ``[n_0, n, n_out]``: input width, width of the stream, output width.
    depth
        L, the number of blocks; the network has 2 L + 2 weight matrices.
    hidden
        Hidden width of the blocks, one number or one per block; by default that of the stream.
    skip, branch
        The factors of a block: numbers, 0 or more, one or one per block. A text ``"sqrt(3/4)"`` is the exact root, and
        ``"1/sqrt(depth)"`` is 1/sqrt(L). A block needs one of the two.
    weight_law, activation
        As for `MLP`.
    parameterization
        ``"ntk"`` or ``"standard"``, as for `MLP`. ``"mup"`` is refused: how it scales branches is not settled.
    gains
        fan-in times the variance of a weight: one number, or four, for stem, V, W and head. By default 1, except for V:
        1/E[phi'^2] (2 for ReLU), so that a branch keeps lengths.
    bias, bias_variance, bias_scale
        As for `MLP`, one or four, for stem, V, W and head.
    bias_law
        Law of the initial biases where their variance is not 0.

    Raises
    ------
    FinwidthError
        For widths, names or numbers that are not allowed.

    Examples
    --------
    >>> from finwidth import ResNet
    >>> net = ResNet([16, 64, 1], 8, branch="1/sqrt(depth)")
    >>> net.depth, net.blocks[0].branch_squared, net.blocks[0].inner.weight_variance
    (8, Fraction(1, 8), Fraction(1, 32))
    >>> print(ResNet([16, 64, 1], 2, hidden=[32, 128], branch=0.5))
    ResNet 16,64,1 of 2 blocks (hidden widths 32,128; branch 0.5) relu, gaussian weights, ntk parameterization
    """

    widths: tuple[int, ...]
    hidden: tuple[int, ...]
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

    def __init__(
        self,
        widths: Sequence[int],
        depth: int,
        hidden: int | Sequence[int] | None = None,
        *,
        skip: Factor | Sequence[Factor] = 1,
        branch: Factor | Sequence[Factor] = 1,
        weight_law: str | WeightLaw = "gaussian",
        activation: str | Activation = "relu",
        parameterization: str = "ntk",
        gains: Gains | None = None,
        bias: str | Sequence[str] = "trained",
        bias_variance: Gains = 0,
        bias_law: str | WeightLaw = "gaussian",
        bias_scale: Gains = 1,
    ) -> None:
        checked = check_widths(widths)
        if len(checked) != 3:
            raise FinwidthError(
                f"widths has {len(checked)} entries; a ResNet has three, [input, stream, output], such as [16, 64, 1], "
                "and the hidden widths of its blocks are given as hidden"
            )
        blocks = Places(check_depth("depth", depth), "block", "blocks")
        layers = Places(len(LAYERS), "layer", "kinds of layers (stem, V, W, head)")
        phi = _activation(activation)
        skips, branches = (_squares(name, each, blocks) for name, each in (("skip", skip), ("branch", branch)))
        if not all(a or b for a, b in zip(skips, branches, strict=True)):
            raise FinwidthError("skip and branch are 0 in the same block, which passes nothing on; give one of them")
        kinds, variances = layers.biases(bias, bias_variance)
        fields = {
            "widths": checked,
            "hidden": _hidden_widths(checked[1] if hidden is None else hidden, blocks),
            "skip_squared": skips,
            "branch_squared": branches,
            "weight_law": _weight_law(weight_law),
            "activation": phi,
            "parameterization": _parameterization(parameterization),
            "gains": layers.numbers("gains", (1, phi.default_gain, 1, 1) if gains is None else gains, positive=True),
            "bias": kinds,
            "bias_variance": variances,
            "bias_law": _weight_law(bias_law),
            "bias_scale": layers.numbers("bias_scale", bias_scale, positive=False),
        }
        for key, value in fields.items():
            object.__setattr__(self, key, value)

    @property
    def depth(self) -> int:
        """L, the number of blocks."""
        return len(self.hidden)

    @cached_property
    def stem(self) -> Layer:
        """The first layer, from the input to the stream."""
        return self._layer("stem", self.widths[0], self.widths[1])

    @cached_property
    def head(self) -> Layer:
        """The last layer, from the stream to the outputs."""
        return self._layer("head", self.widths[1], self.widths[2])

    @cached_property
    def blocks(self) -> tuple[Block, ...]:
        """The L blocks, first to last; those that are equal are one object."""
        described = list(zip(self.skip_squared, self.branch_squared, self.hidden, strict=True))
        different = set(described)
        afford(_BLOCK_BYTES * len(different), f"a network of {len(different)} different blocks", "take fewer")
        n = self.widths[1]
        made = {(a, b, m): Block(a, b, self._layer("inner", n, m), self._layer("outer", m, n)) for a, b, m in different}
        return tuple(map(made.__getitem__, described))

    def _layer(self, kind: str, fan_in: int, fan_out: int) -> Layer:
        i = LAYERS.index(kind)
        variance, scale = self.gains[i] / fan_in, self.bias_scale[i] ** 2
        return Layer(
            fan_in,
            fan_out,
            weight_variance=variance,
            weight_multiplier=variance if self.parameterization == "ntk" else Fraction(1),
            bias_variance=scale * self.bias_variance[i],
            bias_multiplier=scale if self.bias[i] == "trained" else Fraction(0),
        )

    def describe(self) -> dict[str, Any]:
        """What defines the network, in plain types: for JSON and for file attributes."""
        return {
            "kind": "ResNet",
            **super().describe(),
            "hidden": list(self.hidden),
            "skip_squared": [str(square) for square in self.skip_squared],
            "branch_squared": [str(square) for square in self.branch_squared],
        }

    def __str__(self) -> str:
        told = []
        if set(self.hidden) != {self.widths[1]}:
            several = len(set(self.hidden)) > 1
            told.append(f"hidden width{'s' * several} {format_widths(self.hidden if several else self.hidden[:1])}")
        for name, squares in (("skip", self.skip_squared), ("branch", self.branch_squared)):
            if set(squares) != {1}:
                told.append(f"{name} {few_values([float(square) ** 0.5 for square in squares])}")
        text = f"ResNet {format_widths(self.widths)} of {self.depth} block{'s' * (self.depth > 1)}"
        text += f" ({'; '.join(told)})" if told else ""
        text += f" {self.activation.name}, {self.weight_law.name} weights"
        if self.gains != (Fraction(1), self.activation.default_gain, Fraction(1), Fraction(1)):
            text += f" (gains {few_values(self.gains)})"
        return f"{text}, {self.parameterization} parameterization{self._told_biases()}"


# Inside ResNet.__init__ the arguments hide these two.
_activation = activation
_weight_law = weight_law


def _hidden_widths(given: int | Sequence[int], blocks: Places) -> tuple[int, ...]:
    array = arguments.real_array(given)
    if array is None or not array.ndim:
        return check_widths([arguments.count("hidden", given), 1], "hidden")[:1] * blocks.number
    wanted = f"whole numbers, one or one for each of {blocks.number} blocks"
    return check_widths([*blocks.values("hidden", given, wanted), 1], "hidden")[:-1]


def _squares(name: str, given: Factor | Sequence[Factor], blocks: Places) -> tuple[Fraction, ...]:
    """The squares of the factors of all blocks, exactly."""
    wanted = (
        'numbers, 0 or more, whose squares are doubles, roots such as "sqrt(3/4)", or "1/sqrt(depth)": one, or one '
        f"for each of {blocks.number} blocks"
    )
    array = arguments.real_array(given)
    if isinstance(given, str) or (array is not None and not array.ndim):
        return (_square(name, given, wanted, blocks.number),) * blocks.number
    values = blocks.values(name, given, wanted)
    return tuple(_square(f"{name} of block {i}", each, wanted, blocks.number) for i, each in enumerate(values, 1))


def _square(name: str, given: Any, wanted: str, depth: int) -> Fraction:
    text = given if isinstance(given, str) else ""
    if text == "1/sqrt(depth)":
        return Fraction(1, depth)
    if root := re.fullmatch(r"sqrt\((\d{1,300})(?:/([1-9]\d{0,300}))?\)", text):
        return arguments.exact(name, Fraction(int(root[1]), int(root[2] or 1)), wanted)
    factor = arguments.exact(name, given, wanted, lambda value: value >= 0 and arguments.is_double(value * value))
    return factor * factor


def _parameterization(given: str) -> str:
    if isinstance(given, str) and given == "mup":
        raise FinwidthError(
            'parameterization "mup" is not defined for a ResNet: how its branches scale is not settled; choose ntk or '
            "standard"
        )
    return arguments.one_of("parameterization", given, ("ntk", "standard"))

"""The residual network with random weights.

Convention (stream of width n, L blocks of hidden widths m_l)::

    x_0 = W_stem x + b_stem
    y_l = V_l x_{l-1} + p_l,   z_l = phi(y_l),   x_l = skip_l x_{l-1} + branch_l (W_l z_l + s_l),   l = 1..L
    N(x) = W_head x_L + b_head

Every matrix with its bias is a `Layer` as in `finwidth.networks.mlp`: the stem from n_0 to n, the ``inner`` layer
V_l, p_l of a block from n to m_l, the ``outer`` one W_l, s_l back to n, and the head from n to the outputs.  Variances,
multipliers and the parts K_w and K_b of the kernel are those of these layers; ``branch`` is a constant of the network,
not a part of W_l.  No activation acts on the stream.  With a norm (`finwidth.networks.norm`) ``"before"`` each block,
y_l = V_l norm(x_{l-1}) + p_l and N = W_head norm(x_L) + b_head; ``"after"`` each addition,
x_l = norm(skip_l x_{l-1} + branch_l (W_l z_l + s_l)), which the stem's output and the head do without.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import cached_property
from typing import Any, ClassVar

from finwidth import arguments
from finwidth.networks.activations import Activation
from finwidth.networks.description import Gains, Layer, Places, Step, typed_values
from finwidth.networks.laws import WeightLaw
from finwidth.networks.norm import Norm, check_norm
from finwidth.networks.residual import Factor, ResidualNetwork
from finwidth.networks.widths import check_width, format_widths


@dataclass(frozen=True)
class ResNetBlock:
    """One block, x + branch * outer(phi(inner(x))) with x times skip; the factors by their squares."""

    skip_squared: Fraction
    branch_squared: Fraction
    inner: Layer
    outer: Layer


@dataclass(frozen=True, repr=False)
class ResNet(ResidualNetwork):
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
    norm
        ``"rms"`` or ``"layer"``: what blocks and head read of the stream is normalised (pre-norm); a `Norm` says more.

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

    hidden: tuple[int, ...]
    norm: Norm | None

    layer_kinds: ClassVar[tuple[str, ...]] = ("stem", "V", "W", "head")
    block_bytes: ClassVar[int] = 1500
    activated: ClassVar[str] = "V"

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
        norm: str | Norm | None = None,
    ) -> None:
        given = {
            "skip": skip, "branch": branch, "weight_law": weight_law, "activation": activation,
            "parameterization": parameterization, "gains": gains, "bias": bias, "bias_variance": bias_variance,
            "bias_law": bias_law, "bias_scale": bias_scale,
        }  # fmt: skip
        self._set(widths, depth, given)
        hidden = self.widths[1] if hidden is None else hidden
        object.__setattr__(self, "hidden", _hidden_widths(hidden, Places(self.depth, "block", "blocks")))
        object.__setattr__(self, "norm", check_norm(norm, self.widths[1:2]))

    @cached_property
    def blocks(self) -> tuple[ResNetBlock, ...]:
        """The L blocks, first to last; those that are equal are one object."""
        n = self.widths[1]
        described = list(zip(self.skip_squared, self.branch_squared, self.hidden, strict=True))
        made = {
            (a, b, m): ResNetBlock(a, b, self._layer("V", n, m), self._layer("W", m, n))
            for a, b, m in self._different(described)
        }
        return tuple(map(made.__getitem__, described))

    def _inside(self, block: ResNetBlock) -> tuple[Step, ...]:
        return block.inner, self.activation

    def describe(self) -> dict[str, Any]:
        """What defines the network, in plain types: for JSON and for file attributes."""
        return {**super().describe(), "hidden": list(self.hidden)}

    def _arguments(self) -> Iterator[str]:
        yield from super()._arguments()
        if set(self.hidden) != {self.widths[1]}:
            yield f"hidden={typed_values(self.hidden)}"

    def _told(self) -> list[str]:
        told = []
        if self.norm is not None:
            told.append(f"{self.norm} {self.norm.position} each {'block' if self.norm.position == 'before' else 'sum'}")
        if set(self.hidden) != {self.widths[1]}:
            several = len(set(self.hidden)) > 1
            told.append(f"hidden width{'s' * several} {format_widths(self.hidden if several else self.hidden[:1])}")
        return told


def _hidden_widths(given: int | Sequence[int], blocks: Places) -> tuple[int, ...]:
    array = arguments.real_array(given)
    if array is None or not array.ndim:
        return (check_width("hidden", given),) * blocks.number
    wanted = f"whole numbers, one or one for each of {blocks.number} blocks"
    values = blocks.values("hidden", given, wanted)
    return tuple(check_width(f"hidden of block {i}", each) for i, each in enumerate(values, 1))

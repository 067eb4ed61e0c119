"""The residual network of one matrix a block, with random signs inside its activations, or without.

Li, Nica and Roy (2021, The future is log-Gaussian: ResNets and their infinite-depth-and-width limit at initialization)
call it balanced.  Convention, with `Layer` as in `finwidth.networks.mlp`::

    x_0 = W_stem x + b_stem
    x_l = skip_l x_{l-1} + branch_l (W_l phi(sigma_l * x_{l-1}) + s_l),   l = 1..L
    N(x) = W_head x_L + b_head

The sigma_l are fair random signs, one for each neuron, which are fixed and not trained: with them gates are fair coins,
whatever the stream is.  Without them, sigma = 1, the activations of one block bias those of the next (hypoactivation:
fewer and fewer neurons of the stream are positive), and there are no exact moments.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import cached_property
from typing import Any, ClassVar

from finwidth.arguments import flag
from finwidth.networks.activations import Activation
from finwidth.networks.description import Gains, Layer, Signs, Step
from finwidth.networks.laws import WeightLaw
from finwidth.networks.residual import Factor, ResidualNetwork


@dataclass(frozen=True)
class BalancedBlock:
    """One block, x + branch * outer(phi(signs * x)) with x times skip; the factors by their squares."""

    skip_squared: Fraction
    branch_squared: Fraction
    outer: Layer


@dataclass(frozen=True, repr=False)
class BalancedResNet(ResidualNetwork):
    """A random residual network with one matrix a block: x <- skip x + branch (W phi(sigma * x) + s), sigma signs.

    Li, Nica and Roy (2021) compare it with the same network without signs, which is not balanced.

    Parameters
    ----------
    widths, depth, skip, branch, weight_law, activation, parameterization
        As for `ResNet`; the network has L + 2 weight matrices.
    gains, bias, bias_variance, bias_law, bias_scale
        As for `ResNet`, one or three, for stem, W and head; the gain of W is 1/E[phi'^2] by default.
    signs
        False: sigma = 1, x <- skip x + branch (W phi(x) + s). Gates are no coins there: such networks can be drawn, but
        have no exact moments.

    Raises
    ------
    FinwidthError
        For widths, names or numbers that are not allowed.

    Examples
    --------
    >>> import finwidth
    >>> net = finwidth.BalancedResNet([3, 6, 1], 3, skip="sqrt(1/2)", branch="sqrt(1/2)")
    >>> found = finwidth.moments(net, [1, 1, 1], exact=True)
    >>> print(found.mean, found.second_moment, found.update["dK"])
    7 1896181/20736 -597611/20736
    """

    signs: bool

    layer_kinds: ClassVar[tuple[str, ...]] = ("stem", "W", "head")
    block_bytes: ClassVar[int] = 900
    activated: ClassVar[str] = "W"

    def __init__(
        self,
        widths: Sequence[int],
        depth: int,
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
        signs: bool = True,
    ) -> None:
        given = {
            "skip": skip, "branch": branch, "weight_law": weight_law, "activation": activation,
            "parameterization": parameterization, "gains": gains, "bias": bias, "bias_variance": bias_variance,
            "bias_law": bias_law, "bias_scale": bias_scale,
        }  # fmt: skip
        self._set(widths, depth, given)
        object.__setattr__(self, "signs", flag("signs", signs))

    @cached_property
    def blocks(self) -> tuple[BalancedBlock, ...]:
        """The L blocks, first to last; those that are equal are one object."""
        n = self.widths[1]
        described = list(zip(self.skip_squared, self.branch_squared, strict=True))
        made = {each: BalancedBlock(*each, self._layer("W", n, n)) for each in self._different(described)}
        return tuple(map(made.__getitem__, described))

    def _inside(self, block: BalancedBlock) -> tuple[Step, ...]:
        return (Signs(), self.activation) if self.signs else (self.activation,)

    def describe(self) -> dict[str, Any]:
        """What defines the network, in plain types: for JSON and for file attributes."""
        return {**super().describe(), "signs": self.signs}

    def _arguments(self) -> Iterator[str]:
        yield from super()._arguments()
        if not self.signs:
            yield "signs=False"

    def _told(self) -> list[str]:
        return [] if self.signs else ["no signs"]

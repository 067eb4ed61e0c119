"""Networks of one kind that differ in width and depth only: what grids and the advice on sizes go over."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from inspect import signature
from typing import Any, NamedTuple

import numpy as np

from finwidth.errors import FinwidthError, shown
from finwidth.networks.balanced import BalancedResNet
from finwidth.networks.description import Network
from finwidth.networks.mlp import MLP, MLPOptions, options_of
from finwidth.networks.residual import Factor, ResidualNetwork
from finwidth.networks.resnet import ResNet

BY_DEPTH = "1/sqrt(depth)"


class FamilyOptions(MLPOptions, total=False):
    """The arguments of an `MLP`, and those of a residual network, but widths and depth."""

    hidden: int | Sequence[int] | None
    skip: Factor | Sequence[Factor]
    branch: Factor | Sequence[Factor]
    signs: bool


class _Kind(NamedTuple):
    """How networks of a kind are made, and told of."""

    repeats_width: bool  # in its widths; or it has the depth as an argument of its own
    layers: str  # what depth counts
    per_layer: tuple[str, ...]  # options that may differ from layer to layer, or from block to block


_FACTORS = ("skip", "branch")
_KINDS = {
    MLP: _Kind(repeats_width=True, layers="weight layers", per_layer=tuple(MLPOptions.__annotations__)),
    ResNet: _Kind(repeats_width=False, layers="blocks", per_layer=("hidden", *_FACTORS)),
    BalancedResNet: _Kind(repeats_width=False, layers="blocks", per_layer=_FACTORS),
}


@dataclass(frozen=True)
class Family:
    """Networks of one kind with hidden layers, or blocks, that are all alike, and one output.

    Parameters
    ----------
    kind
        `MLP`: (n_0, n, ..., n, 1). `ResNet`, `BalancedResNet`: a stream of width n.
    options
        Further arguments of the kind.

    Raises
    ------
    FinwidthError
        If the kind is none of these, or an option is not one of its arguments, or differs between layers.

    Examples
    --------
    >>> from finwidth import ResNet
    >>> from finwidth.networks.family import Family
    >>> print(Family(ResNet, {"branch": "1/sqrt(depth)"}).net(3, 16, 4))
    ResNet 3,16,1 of 4 blocks (branch 0.5) relu, gaussian weights, ntk parameterization
    """

    kind: type[Network]
    options: Mapping[str, Any]

    def __post_init__(self) -> None:
        if not isinstance(self.kind, type) or self.kind not in _KINDS:
            known = ", ".join(f"finwidth.{kind.__name__}" for kind in _KINDS)
            raise FinwidthError(f"kind is {shown(self.kind)}; give one of {known}")
        parameters = signature(self.kind).parameters
        for name, value in self.options.items():
            if name not in parameters or name in {"widths", "depth"}:
                told = ", ".join(each for each in parameters if each not in {"widths", "depth"})
                raise FinwidthError(f"{name} is no option of kind={self.kind.__name__}; it has {told}")
            if name in _KINDS[self.kind].per_layer and isinstance(value, list | tuple | np.ndarray):
                raise FinwidthError(f"{name} is {shown(value)}; give one value, for {self.layers} that are all alike")

    @property
    def layers(self) -> str:
        """What depth counts: weight layers or blocks."""
        return _KINDS[self.kind].layers

    def net(self, n_0: int, width: int, depth: int) -> Network:
        """The network of this width and depth."""
        make: Callable[..., Network] = self.kind
        if _KINDS[self.kind].repeats_width:
            return make([n_0, *[width] * (depth - 1), 1], **self.options)
        return make([n_0, width, 1], depth, **self.options)

    def of_depth(self, depth: int) -> Family:
        """The family in which factors that depend on the depth have the value that they have at this one."""
        factors = {name: f"sqrt(1/{depth})" for name in _FACTORS if _by_depth(self.options.get(name))}
        return Family(self.kind, {**self.options, **factors}) if factors else self

    @property
    def bounded(self) -> bool:
        """Whether the kernel's law has a limit of infinite depth at fixed width: skip 1 and branch 1/sqrt(depth)."""
        return _by_depth(self.options.get("branch")) and self.options.get("skip", 1) == 1


class Cells(NamedTuple):
    """Networks of a family at every width and depth of a grid."""

    family: Family
    n_0: int
    widths: Sequence[int]
    depths: Sequence[int]


def _by_depth(factor: object) -> bool:
    return isinstance(factor, str) and factor == BY_DEPTH


def family_of(net: Network) -> Family | None:
    """The family of a network; None if its hidden layers or blocks differ.

    A branch that is the root of 1/depth is taken to be that at every depth.

    >>> from finwidth import ResNet
    >>> from finwidth.networks.family import family_of
    >>> family_of(ResNet([3, 16, 1], 4, 8, branch=0.5)).options["branch"]
    '1/sqrt(depth)'
    """
    if isinstance(net, MLP):
        options = options_of(net)
        return None if options is None else Family(MLP, options)
    if not isinstance(net, ResidualNetwork):
        return None
    names = ("weight_law", "activation", "parameterization", "gains", "bias", "bias_variance", "bias_law", "bias_scale")
    found: dict[str, Any] = {name: getattr(net, name) for name in names} | {"norm": net.norm}
    for name, squares in (("skip", net.skip_squared), ("branch", net.branch_squared)):
        found[name] = f"sqrt({squares[0]})"
    if net.depth > 1 and net.branch_squared[0] * net.depth == 1:
        found["branch"] = BY_DEPTH
    if isinstance(net, ResNet) and set(net.hidden) != {net.widths[1]}:
        found["hidden"] = net.hidden[0]
    if isinstance(net, BalancedResNet):
        found["signs"] = net.signs
    kind = type(net)
    family = Family(kind, {name: value for name, value in found.items() if name in signature(kind).parameters})
    made = family.net(net.widths[0], net.widths[1], net.depth)
    return family if made.widths[-1] == net.widths[-1] and made == net else None

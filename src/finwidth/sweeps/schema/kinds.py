"""The kinds of networks that a sweep can be of: their names in a config, and how a cell's network is made.

Depth and width are those of what repeats: weight layers and hidden widths of an `MLP`, blocks and the stream's width of
a residual network.  What else a config can say of a network is what its description takes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from inspect import signature
from typing import Any, TypeAlias

from finwidth.errors import FinwidthError
from finwidth.networks.balanced import BalancedResNet
from finwidth.networks.description import Network
from finwidth.networks.mlp import MLP
from finwidth.networks.norm import Norm, parse_norm
from finwidth.networks.residual import ResidualNetwork
from finwidth.networks.resnet import ResNet
from finwidth.sweeps.schema.document import as_typed

Value: TypeAlias = str | int | float
NetworkTable: TypeAlias = Mapping[str, Value]  # the table [network] of a config: the kind, and arguments


@dataclass(frozen=True)
class NetworkKind:
    """One kind of network.

    Attributes
    ----------
    description
        Its class.
    build
        The network of an input width, a width, a depth, and arguments of the description.
    depth, width
        What these two axes mean.
    beside
        Arguments beside which each of the others is allowed.
    """

    description: type[Network]
    build: Callable[[int, int, int, Mapping[str, Any]], Network]
    depth: str
    width: str
    beside: Mapping[str, Value] = field(default_factory=dict)

    def make(self, n_0: int, width: int, depth: int, arguments: Mapping[str, Value]) -> Network:
        """The network of an input width, a width, a depth, and arguments as a config has them."""
        return self.build(n_0, width, depth, {name: _READ.get(name, _as_it_is)(arguments[name]) for name in arguments})

    def takes(self, argument: str) -> bool:
        """Whether the description has an argument."""
        return argument in signature(self.description).parameters


def _mlp(n_0: int, width: int, depth: int, arguments: Mapping[str, Any]) -> MLP:
    return MLP([n_0, *[width] * (depth - 1), 1], **arguments)


def _maker_of(description: Callable[..., ResidualNetwork]) -> Callable[..., ResidualNetwork]:
    def make(n_0: int, width: int, depth: int, arguments: Mapping[str, Any]) -> ResidualNetwork:
        return description([n_0, width, 1], depth, **arguments)

    return make


KINDS = {
    "mlp": NetworkKind(
        MLP, _mlp, "depth d, the number of weight layers", "width n of the hidden layers", {"parameterization": "mup"}
    ),
    "resnet": NetworkKind(ResNet, _maker_of(ResNet), "depth L, the number of blocks", "width n of the stream"),
    "balanced": NetworkKind(
        BalancedResNet, _maker_of(BalancedResNet), "depth L, the number of blocks", "width n of the stream"
    ),
}
DEFAULT_KIND = "mlp"


def kind_of(network: NetworkTable) -> NetworkKind:
    """The kind that the table [network] says, by default a fully connected network."""
    return KINDS[str(network.get("kind", DEFAULT_KIND))]


def factor_text(value: object) -> str:
    """A factor of residual blocks as a text, the same for equal numbers; raises FinwidthError for what is none.

    >>> from finwidth.sweeps.schema.kinds import factor_text
    >>> factor_text(1), factor_text(0.5), factor_text("1/sqrt(depth)")
    ('1', '0.5', '1/sqrt(depth)')
    """
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        raise FinwidthError(f'{as_typed(value)} is neither a number nor a text such as "1/sqrt(depth)"')
    ResNet([1, 1, 1], 1, branch=value)
    return value if isinstance(value, str) else repr(float(value)).removesuffix(".0")


def norm_text(value: object) -> str:
    """A norm as a text; raises FinwidthError for what is none.

    >>> from finwidth.sweeps.schema.kinds import norm_text
    >>> norm_text("layer,after")
    'layer,after'
    """
    if not isinstance(value, str):
        raise FinwidthError(f"{as_typed(value)} is not a norm; write none, rms, layer, or such as layer,after,1e-5")
    parse_norm(value)
    return value


def _factor(text: Value) -> float | str:
    """A factor as a description takes it."""
    try:
        return float(text)
    except ValueError:
        return str(text)


def _norm_as_told(text: Value) -> Norm | None:
    return parse_norm(str(text))


def _as_it_is(value: Value) -> Value:
    return value


_READ: dict[str, Callable[[Value], object]] = {"skip": _factor, "branch": _factor, "norm": _norm_as_told}

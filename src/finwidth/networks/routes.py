"""Which functions serve which network: each is asked, so that no refusal names one that refuses too.

A function has a module with ``unsupported(net)``, the reasons against a network, and a table from descriptions of
networks to the algorithm for them.  The modules are imported by name when they are asked: the routes do not import each
other.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

from finwidth.errors import FinwidthError
from finwidth.networks.activations import SmoothActivation
from finwidth.networks.balanced import BalancedResNet
from finwidth.networks.description import check_network
from finwidth.networks.mlp import MLP

if TYPE_CHECKING:
    from finwidth.networks.description import Network


@dataclass(frozen=True)
class PublicFunction:
    """A function that serves networks: what it gives of the kernel, and the module that says for which."""

    function: str
    gives: str
    module: str
    verb: str = "draw"  # what it does with a network
    needs: str = ""  # an extra, which is told if it is not installed

    @property
    def unsupported(self) -> Callable[[Network], list[str]]:
        """The function that tells the reasons against a network; none if it is served."""
        asked: Callable[[Network], list[str]] = import_module(self.module).unsupported
        return asked

    def __str__(self) -> str:
        """What it gives, and how to install what it needs where that is missing."""
        missing = self.needs and not find_spec(self.needs)
        return f"{self.gives} (pip install 'finwidth[{self.needs}]')" if missing else self.gives


FUNCTIONS = (
    PublicFunction("finwidth.moments", "exact moments", "finwidth.exact.moments", "serve"),
    PublicFunction("finwidth.sample", "draws at one input", "finwidth.sampling.one_input.sample"),
    PublicFunction("finwidth.sample_gram", "draws at several inputs", "finwidth.sampling.kernel_matrix.sample_gram"),
    PublicFunction("finwidth.train", "the kernel in training", "finwidth.sampling.training.train"),
    PublicFunction(
        "finwidth.infinite_width_gram", "the limit of infinite width", "finwidth.exact.infinite_width", "serve"
    ),
    PublicFunction("finwidth.expansion", "the expansion in 1/width", "finwidth.exact.expansion.expansion", "serve"),
    PublicFunction("finwidth.empirical.Ensemble", "real networks", "finwidth.empirical.modules.support", needs="torch"),
)


def check_supported(function: str, net: Network, *, called: str = "") -> None:
    """Raise FinwidthError, which names the functions that serve a network, unless this one does.

    ``called`` is what the user called, if that serves the networks that ``function`` does.

    Examples
    --------
    >>> from finwidth import MLP
    >>> from finwidth.networks.routes import check_supported
    >>> check_supported("finwidth.moments", MLP([2, 3, 1]))
    >>> check_supported("finwidth.moments", MLP([2, 3, 1], activation="tanh"))
    Traceback (most recent call last):
    finwidth.errors.FinwidthError: finwidth.moments cannot serve this network: its activation is tanh, ...
    """
    (route,) = (each for each in FUNCTIONS if each.function == function)
    if reasons := route.unsupported(check_network(net)):
        raise FinwidthError(
            f"{called or function} cannot {route.verb} this network: {'; '.join(reasons)}; {instead(net)}"
        )


def instead(net: Network, *, without: str = "") -> str:
    """The functions that serve a network, ``without`` one of them, and what they give of its kernel.

    Examples
    --------
    >>> from finwidth import MLP
    >>> from finwidth.networks.routes import instead
    >>> instead(MLP([2, 3, 1], "uniform", "tanh"), without="finwidth.empirical.Ensemble")
    'finwidth.infinite_width_gram has the limit of infinite width'
    """
    serving = [each for each in FUNCTIONS if each.function != without and not each.unsupported(net)]
    told = ", ".join(f"{each.function} {'has ' * (not place)}{each}" for place, each in enumerate(serving))
    return told or "no other function serves it"


class Algorithm(Protocol):
    """What a function does for networks of one description: a class, or a module."""

    def unsupported(self, net: Any, /) -> list[str]:
        """Reasons against a network of the description; none if it is served."""


Entry = TypeVar("Entry", bound=Algorithm)


def algorithm(algorithms: Mapping[type, Entry], net: Network) -> Entry:
    """The entry for a network in a table from descriptions to algorithms; raises KeyError if there is none."""
    return algorithms[next(kind for kind in type(net).__mro__ if kind in algorithms or kind is object)]


def unsupported_by(algorithms: Mapping[type, Algorithm], net: Network) -> list[str]:
    """Reasons against a network of the algorithm for it in such a table."""
    try:
        found = algorithm(algorithms, net)
    except KeyError:
        return other_kind(net, *algorithms)
    return found.unsupported(net)


def other_kind(net: Network, *kinds: type) -> list[str]:
    """The reason against a network that is none of the ``kinds`` of description; none if it is."""
    known = " and ".join(kind.__name__ for kind in kinds) or "nothing"
    return (
        []
        if isinstance(net, kinds)
        else [f"it is a {type(net).__name__} ({known} {'are' if len(kinds) > 1 else 'is'} supported)"]
    )


def not_normalised(net: Network) -> list[str]:
    """The reason against a normalised network; none if it is not."""
    return [] if net.norm is None else [f'it is normalised (norm="{net.norm.kind}")']


def gates_no_coins(net: Network) -> list[str]:
    """The reason against a network of two slopes whose gates are no fair coins; none if they are.

    Slopes of one size are alike for all that is even in each column of the matrix above.
    """
    if not isinstance(net, BalancedResNet) or net.signs or isinstance(net.activation, SmoothActivation):
        return []
    if abs(net.activation.positive) == abs(net.activation.negative):
        return []
    return ["its activations act on the stream without signs (signs=False), where gates are no fair coins"]


def not_gaussian(net: Network, rests: str = "the conditioning rests on Gaussian weights") -> list[str]:
    """Reasons why this network is not Gaussian throughout; ``rests`` says what requires it."""
    reasons = []
    if net.weight_law.name != "gaussian":
        reasons.append(f"its weights are {net.weight_law.name} ({rests})")
    if net.random_bias and net.bias_law.name != "gaussian":
        reasons.append(f"its initial biases are {net.bias_law.name} (Gaussian ones are supported)")
    return reasons


def check_mlp(net: object) -> MLP:
    """A fully connected network; raises FinwidthError, which names the functions that serve a network of another kind.

    Examples
    --------
    >>> from finwidth import MLP
    >>> from finwidth.networks.routes import check_mlp
    >>> check_mlp(MLP([2, 3, 1])).depth
    2
    """
    checked = check_network(net)
    if not isinstance(checked, MLP):
        (reason,) = other_kind(checked, MLP)
        raise FinwidthError(f"the network cannot be served here: {reason}; {instead(checked)}")
    if reasons := not_normalised(checked):
        raise FinwidthError(f"the network cannot be served here: {reasons[0]}; {instead(checked)}")
    return checked

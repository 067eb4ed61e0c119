"""Which networks there are torch modules of; torch is loaded only to compare an activation with one of its own."""

from __future__ import annotations

from importlib.util import find_spec

from finwidth.errors import FinwidthError
from finwidth.networks.activations import ACTIVATIONS, SmoothActivation
from finwidth.networks.description import Network
from finwidth.networks.mlp import MLP
from finwidth.networks.routes import not_normalised, other_kind


def unsupported(net: Network) -> list[str]:
    """Reasons why `finwidth.empirical.MLP` and `finwidth.empirical.Ensemble` do not make this network; none if they do.

    Examples
    --------
    >>> from finwidth import MLP
    >>> from finwidth.empirical.modules.support import unsupported
    >>> unsupported(MLP([2, 3, 1], "uniform", "tanh"))
    []
    """
    if reasons := other_kind(net, MLP) + not_normalised(net):
        return reasons
    phi = net.activation
    if not isinstance(phi, SmoothActivation) or phi is ACTIVATIONS.get(phi.name):
        return []
    if phi.torch_module is None:
        return [f"torch's form of its activation {phi.name} is not known"]
    if not find_spec("torch"):  # which form of it torch has is known once it is installed
        return []
    from finwidth.empirical.modules.mlp import activation_module

    try:
        activation_module(phi)
    except FinwidthError as error:
        return [str(error)]
    return []

"""Which torch module a description of a network becomes: the one table of them."""

from __future__ import annotations

import numpy as np
import torch

from finwidth.empirical.modules.activation import Elementwise
from finwidth.empirical.modules.described import DescribedModule
from finwidth.empirical.modules.mlp import MLP
from finwidth.empirical.modules.resnet import ResNet
from finwidth.networks.description import Network
from finwidth.networks.routes import check_supported

MODULES: dict[type[Network], type[DescribedModule]] = {
    kind: module for module in (MLP, ResNet) for kind in module.descriptions
}


def check_described(net: Network) -> Network:
    """The network; raises FinwidthError, which names the functions that serve it, if there is no module of it."""
    check_supported("finwidth.empirical.Ensemble", net)
    return net


def _module_kind(net: Network) -> type[DescribedModule]:
    return next(module for kind, module in MODULES.items() if isinstance(net, kind))


def module_of(
    net: Network,
    seed: int | np.random.SeedSequence | np.random.Generator = 0,
    *,
    activation: Elementwise | None = None,
    dtype: torch.dtype = torch.float64,
    device: torch.device | str | None = None,
) -> DescribedModule:
    """A torch module of a network of any kind; the arguments are those of `finwidth.empirical.MLP`.

    Examples
    --------
    >>> import finwidth
    >>> from finwidth.empirical.modules.table import module_of
    >>> type(module_of(finwidth.BalancedResNet([2, 4, 1], 3))).__name__
    'ResNet'
    """
    return _module_kind(net)(net, seed, activation=activation, dtype=dtype, device=device)


def number_of_weights(net: Network) -> int:
    """How many weights a network has."""
    return sum(place.weights for place in _module_kind(net).places_of(net))

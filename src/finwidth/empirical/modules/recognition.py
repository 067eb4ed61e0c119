"""The `finwidth.MLP` that a torch module is: layers and activation are read, the law of its weights inferred."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import nn

from finwidth.empirical.modules import initialization
from finwidth.empirical.modules.activation import BuiltIn, Pointwise, TwoSlopes, activation_module, torch_class
from finwidth.empirical.modules.mlp import MLP
from finwidth.errors import FinwidthError, shown
from finwidth.networks import mlp as network
from finwidth.networks.activations import ACTIVATIONS, Activation, SmoothActivation


@dataclass(frozen=True)
class _Read:
    """The linear layers in order, and the activation between them."""

    linears: tuple[nn.Linear, ...]
    names: tuple[str, ...]
    activation: Activation


def recognise(module: object, init: str | Mapping[str, object] | None = None) -> network.MLP:
    """The network, with its gains, law and biases, that a torch module of linear layers and activations is.

    Parameters
    ----------
    module
        An nn.Sequential, nested or not, of nn.Linear with one and the same activation between them: ReLU, LeakyReLU,
        Identity or none, Tanh, GELU, SiLU. Flatten in front, Identity, and Dropout in eval mode are passed over. Or a
        `finwidth.empirical.MLP`, which is the network it was made of.
    init
        How the weights were drawn, if you know: ``"default"`` (nn.Linear's own), ``"kaiming_uniform"``,
        ``"kaiming_normal"`` (with the gain of the activation), ``"xavier_uniform"``, ``"xavier_normal"``,
        ``"lecun_uniform"``, ``"lecun_normal"`` (variance 1/fan-in), ``"unit_normal"``; or arguments of `finwidth.MLP`,
        such as ``{"weight_law": "truncated-normal", "gains": 1}``. It is believed, whatever the weights are now.
        By default it is inferred from the weights, which must then be fresh;
        `finwidth.empirical.modules.initialization` says how, and how surely.

    Returns
    -------
    finwidth.MLP
        In the standard parameterization, as PyTorch trains it.

    Raises
    ------
    FinwidthError
        With the reason, if the module is not such a network, if its weights or biases fit no scheme (they are trained,
        or drawn otherwise), or if they fit several, which happens to very small networks.

    Examples
    --------
    >>> import finwidth, torch
    >>> _ = torch.manual_seed(0)
    >>> module = torch.nn.Sequential(torch.nn.Linear(16, 64), torch.nn.ReLU(), torch.nn.Linear(64, 1))
    >>> print(finwidth.empirical.recognise(module))
    16,64,1 relu, uniform weights (gains 0.3333), standard parameterization, trained uniform biases (variance 0.02083, \
0.005208)
    """
    if isinstance(module, MLP):
        return module.network
    read = _read(module)
    linears, phi = read.linears, read.activation
    widths = [linears[0].in_features, *(layer.out_features for layer in linears)]
    weights = {name: layer.weight for name, layer in zip(read.names, linears, strict=True)}
    biases = {name: layer.bias for name, layer in zip(read.names, linears, strict=True) if layer.bias is not None}
    arguments: initialization.LawOptions = {"bias": "none"}
    if biases:
        arguments["bias"] = "trained" if linears[0].bias.requires_grad else "frozen"
        arguments |= initialization.biases(biases, widths, test=init is None)
    if init is None:
        arguments |= initialization.inferred(weights, phi)
    else:
        arguments |= initialization.stated(init, widths, phi)
    return network.MLP(widths, activation=phi, parameterization="standard", **arguments)


def _read(module: object) -> _Read:
    linears: list[nn.Linear] = []
    names: list[str] = []
    found: list[Activation] = []
    place = "before"
    for name, leaf in _leaves(module, ""):
        if isinstance(leaf, nn.Linear) and type(leaf) is nn.Linear:
            if place == "linear":
                found.append(ACTIVATIONS["linear"])
            linears.append(leaf)
            names.append(name)
            place = "linear"
        elif type(leaf) is nn.Flatten and place == "before":
            continue
        elif isinstance(leaf, nn.Dropout):
            if leaf.training and leaf.p:
                raise _not_read(f"layer {name!r} is Dropout in training mode; call module.eval() first")
        elif type(leaf) is not nn.Identity:
            found.append(_activation(name, leaf))
            if place != "linear":
                raise _not_read(f"layer {name!r}, {type(leaf).__name__}, does not follow a Linear layer")
            place = "activation"
    if place != "linear":
        raise _not_read("it does not end with a Linear layer" if linears else "it has no Linear layer")
    _check_activations(found)
    _check_parameters(linears, names)
    return _Read(tuple(linears), tuple(names), found[0] if found else ACTIVATIONS["linear"])


def _not_read(reason: str) -> FinwidthError:
    return FinwidthError(
        f"this module is not a fully connected network that finwidth recognises: {reason} "
        "(recognised are nn.Sequential of nn.Linear and one activation between them)"
    )


def _leaves(module: object, name: str) -> Iterator[tuple[str, nn.Module]]:
    """The layers of nested nn.Sequential in order, by name."""
    if not isinstance(module, nn.Module):
        raise FinwidthError(f"{shown(module)} is not a torch module; give an nn.Module, such as an nn.Sequential")
    if module._forward_hooks or module._forward_pre_hooks:
        raise _not_read(f"{f'layer {name!r}' if name else 'it'} has forward hooks, which may change what it computes")
    if type(module) is nn.Sequential:
        for key, child in module._modules.items():  # named_children would pass over a layer that is used twice
            assert child is not None
            yield from _leaves(child, f"{name}.{key}" if name else key)
    elif not name and not isinstance(module, nn.Linear):
        raise _not_read(f"it is a {type(module).__name__}, whose forward can be anything")
    else:
        yield name, module


def _activation(name: str, leaf: nn.Module) -> Activation:
    if type(leaf) is nn.ReLU:
        return ACTIVATIONS["relu"]
    if type(leaf) is nn.LeakyReLU:
        usual = ACTIVATIONS["leaky_relu"]
        return (
            usual if leaf.negative_slope == float(usual.negative) else Activation("leaky_relu", 1, leaf.negative_slope)
        )
    if type(leaf) is TwoSlopes:
        return leaf.phi
    if type(leaf) is BuiltIn:
        return leaf.phi
    for phi in ACTIVATIONS.values():
        if isinstance(phi, SmoothActivation) and type(leaf) is torch_class(phi):
            known = activation_module(phi)
            if any(getattr(leaf, option) != value for option, value in _options(known).items()):
                raise _not_read(f"layer {name!r} is {leaf}; {known} is known")
            return phi
    what = "a function of the user's own" if type(leaf) is Pointwise else f"of type {type(leaf).__name__}"
    raise _not_read(f"layer {name!r} is {what}")


def _options(module: nn.Module) -> dict[str, object]:
    """The options that a module of torch was made with, where they change what it computes."""
    own = vars(nn.Module())
    return {name: value for name, value in vars(module).items() if name not in own and name != "inplace"}


def _check_activations(found: Sequence[Activation]) -> None:
    names = {
        phi.name
        if isinstance(phi, SmoothActivation)
        else f"{phi.name} (slopes {float(phi.positive)}, {float(phi.negative)})"
        for phi in found
    }
    if len(names) > 1:
        raise _not_read(f"its activations differ: {', '.join(sorted(names))}")


def _check_parameters(linears: Sequence[nn.Linear], names: Sequence[str]) -> None:
    tensors = [each for layer in linears for each in (layer.weight, layer.bias) if each is not None]
    if len({each.data_ptr() for each in tensors if each.numel()}) < len(tensors):
        raise _not_read("layers share parameters")
    for name, layer in zip(names, linears, strict=True):
        if not layer.weight.is_floating_point() or layer.weight.is_meta:
            raise _not_read(f"the weights of layer {name!r} are no real numbers")
        if not layer.weight.requires_grad:
            raise _not_read(f"the weights of layer {name!r} are not trained (requires_grad=False)")
        if not all(torch.isfinite(each).all() for each in (layer.weight, layer.bias) if each is not None):
            raise _not_read(f"layer {name!r} holds numbers that are not finite")
    if len({layer.bias is None for layer in linears}) > 1:
        raise _not_read("some of its Linear layers have a bias and some have none")
    if len({layer.bias.requires_grad for layer in linears if layer.bias is not None}) > 1:
        raise _not_read("some of its biases are trained and some are not")

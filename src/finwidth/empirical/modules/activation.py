"""Activations as torch modules."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

import numpy as np
import torch
from torch import nn

from finwidth import arguments
from finwidth.errors import FinwidthError, shown
from finwidth.networks.activations import ACTIVATIONS, Activation, SmoothActivation

Elementwise: TypeAlias = Callable[[torch.Tensor], torch.Tensor]


class TwoSlopes(nn.Module):
    """An `Activation` that torch has no module for, with the derivative at zero that it states."""

    def __init__(self, phi: Activation) -> None:
        super().__init__()
        self.phi = phi

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """The activation of every entry."""
        slopes = torch.where(input > 0, float(self.phi.positive), float(self.phi.negative))
        return torch.where(input == 0, float(self.phi.at_zero), slopes).to(input.dtype) * input

    def extra_repr(self) -> str:
        """For `repr`."""
        return f"{self.phi.name}, positive={self.phi.positive}, negative={self.phi.negative}"


class BuiltIn(nn.Module):
    """A smooth activation of finwidth that torch has no module for, by its own functions."""

    def __init__(self, name: str) -> None:
        super().__init__()
        self.name = name  # which a copy, or a file, brings back to the same activation

    @property
    def phi(self) -> Activation:
        """The activation."""
        return ACTIVATIONS[self.name]

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """The activation of every entry."""
        found: torch.Tensor = self.phi.value(input)
        return found

    def extra_repr(self) -> str:
        """For `repr`."""
        return self.name


class Pointwise(nn.Module):
    """A function of every entry that the user gave."""

    def __init__(self, function: Elementwise) -> None:
        super().__init__()
        self.function = function

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """The function's value."""
        return self.function(input)


def activation_module(phi: Activation, given: Elementwise | None = None) -> nn.Module:
    """The activation as a torch module; ``given`` is the user's own function, which must be that activation.

    Examples
    --------
    >>> from finwidth.networks.activations import Activation, activation
    >>> from finwidth.empirical.modules.activation import activation_module
    >>> activation_module(Activation("leaky", 1, 0.25)), activation_module(activation("abs"))
    (LeakyReLU(negative_slope=0.25), TwoSlopes(abs, positive=1, negative=-1))
    """
    if given is not None:
        _check_same(phi, given, "activation=")
        return Pointwise(given)
    if isinstance(phi, SmoothActivation):
        return _smooth_module(phi)
    if phi.positive != 1 or phi.at_zero != phi.negative:
        return TwoSlopes(phi)
    if phi.negative == 1:
        return nn.Identity()
    return nn.LeakyReLU(float(phi.negative)) if phi.negative else nn.ReLU()


def torch_class(phi: SmoothActivation) -> type[nn.Module] | None:
    """The class in torch.nn that computes an activation with its default options; None if it names none."""
    if phi.torch_module is None:
        return None
    found = getattr(nn, phi.torch_module, None)
    if not (isinstance(found, type) and issubclass(found, nn.Module)):
        raise FinwidthError(
            f"torch_module of activation {shown(phi.name)} is {shown(phi.torch_module)}, which torch.nn does not have; "
            'give the name of a module in it, such as "Softplus"'
        )
    return found


def _smooth_module(phi: SmoothActivation) -> nn.Module:
    known, kind = phi is ACTIVATIONS.get(phi.name), torch_class(phi)
    if kind is not None:
        with arguments.running(f"torch.nn.{phi.torch_module}"):
            module = kind()
        if not known:
            _check_same(phi, module, f"torch.nn.{phi.torch_module}")
        return module
    if not known:
        raise FinwidthError(
            f"the activation {phi.name!r} is a function of NumPy arrays, and torch's form of it is not known; "
            "give it as activation=, a function of tensors such as torch.sin"
        )
    return BuiltIn(phi.name)


def _check_same(phi: Activation, given: Elementwise, name: str) -> None:
    """Refuse a function of tensors whose values or derivatives are not those of ``phi`` on a grid."""
    grid = torch.linspace(-4, 4, 80, dtype=torch.float64, requires_grad=True)  # without zero, where slopes may jump
    arguments.function(name.rstrip("="), given, "a function of tensors")
    with arguments.running(name):
        value = given(grid)
    same = isinstance(value, torch.Tensor) and value.shape == grid.shape and value.requires_grad
    if same:
        (slope,) = torch.autograd.grad(value.sum(), grid, materialize_grads=True)
        points = grid.detach().numpy()
        wanted = np.stack([phi.value(points), phi.derivative(points)])
        same = np.allclose(np.stack([value.detach().numpy(), slope.numpy()]), wanted, rtol=1e-6, atol=1e-6)
    if not same:
        raise FinwidthError(f"{name} is not the network's activation {phi.name!r}: values or derivatives differ")

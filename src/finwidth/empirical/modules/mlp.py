"""A real torch module of a `finwidth.MLP`: the layers, initial weights and learning rates that its definition says.

The module's parameters are those of the parameterization (convention in `finwidth.networks.mlp`): in "ntk" the weights
W have unit variance and the layer multiplies by their standard deviation, W_hat = sqrt(v) W; in "standard" and "mup"
the weights are W_hat itself, and "mup" trains each parameter at a rate of its own.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from fractions import Fraction
from typing import TypeAlias

import numpy as np
import torch
from torch import nn

from finwidth import arguments
from finwidth.empirical.reference.brute_force import draw_networks, weights_of
from finwidth.errors import FinwidthError, shown
from finwidth.memory import afford, amount
from finwidth.networks import mlp as network
from finwidth.networks.activations import ACTIVATIONS, Activation, SmoothActivation
from finwidth.networks.laws import FloatArray
from finwidth.networks.routes import check_mlp

Elementwise: TypeAlias = Callable[[torch.Tensor], torch.Tensor]


_DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)


class ScaledLinear(nn.Linear):
    """x -> factor W x + bias_scale b; the two numbers, of a network's parameterization, are not parameters."""

    def __init__(
        self,
        in_features: int,
        out_features: int,
        bias: bool = True,
        *,
        factor: float,
        bias_scale: float,
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
    ) -> None:
        super().__init__(in_features, out_features, bias, device, dtype)
        self.factor = factor
        self.bias_scale = bias_scale

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """The layer's value, shape (..., out_features); input shape (..., in_features)."""
        bias = self.bias if self.bias is None or self.bias_scale == 1 else self.bias_scale * self.bias
        return nn.functional.linear(self.factor * input, self.weight, bias)

    def extra_repr(self) -> str:
        """For `repr`."""
        scale = "" if self.bias_scale == 1 else f", bias_scale={self.bias_scale:.6g}"
        return f"{super().extra_repr()}, factor={self.factor:.6g}{scale}"


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


class MLP(nn.Sequential):
    """A random network as a torch module, in the parameters of its parameterization and initialised from its law.

    Its kernel is ``finwidth.empirical.ntk(module, X, scale=module.scale)``. SGD on ``module.parameter_groups(lr)``
    moves W_hat^(i) at rate lr c_i and b_hat^(i) at rate lr e_i, as `finwidth.networks.mlp` says.

    Parameters
    ----------
    net
        The network. Frozen biases are parameters that do not require a gradient.
    seed
        A whole number, or a NumPy generator to draw the weights from: those of `brute_force.draw_networks`.
    activation
        The activation as a function of torch tensors; needed only for a SmoothActivation of the user's own.
    dtype, device
        Of the parameters; by default float64 on the CPU.

    Attributes
    ----------
    network
        ``net``.
    scale
        For every trained parameter the rate, over the learning rate, at which SGD moves it: 1 but in "mup".

    Raises
    ------
    FinwidthError
        If torch's form of the activation is not known, or the one given differs from it.

    Examples
    --------
    >>> import finwidth
    >>> module = finwidth.empirical.MLP(finwidth.MLP([2, 3, 1], parameterization="mup"), seed=0)
    >>> module
    MLP(
      (0): Linear(in_features=2, out_features=3, bias=True)
      (1): ReLU()
      (2): Linear(in_features=3, out_features=1, bias=True)
    )
    >>> [round(rate, 3) for rate in module.scale.values()]    # fan-out in the first layer and the biases, 1/fan-in last
    [3.0, 3.0, 0.333, 1.0]
    """

    def __init__(
        self,
        net: network.MLP,
        seed: int | np.random.Generator = 0,
        *,
        activation: Elementwise | None = None,
        dtype: torch.dtype = torch.float64,
        device: torch.device | str | None = None,
    ) -> None:
        super().__init__()
        check_mlp(net)
        if not isinstance(dtype, torch.dtype) or dtype not in _DTYPES:
            raise FinwidthError(f"dtype is {shown(dtype)}; give torch.float64, or another of floating-point numbers")
        device = None if device is None else arguments.check_device(device)
        self.network = net
        self.scale: dict[str, float] = {}
        phi = activation_module(net.activation, activation)
        numbers = weights_of(net)
        what = f"a module of {amount(numbers)} weights"
        afford(25 * numbers, what, "take a narrower network; finwidth.sample_gram needs no weights")
        weights, biases = draw_networks(net, 1, _weight_generator(seed))
        for i, (layer, weight, bias) in enumerate(zip(net.layers, weights, biases, strict=True)):
            if i:
                self.append(phi)
            kind, scale = net.bias[i], net.bias_scale[i]
            unit = layer.weight_variance if net.parameterization == "ntk" else Fraction(1)
            factors = float(unit) ** 0.5, float(scale)
            own = None if kind == "none" else bias[0] / float(scale or 1)
            self.append(_linear_layer(weight[0] / factors[0], own, factors, dtype, device))
            name = str(len(self) - 1)
            # Multipliers are those of W_hat and b_hat; a step of lr in W is one of lr factor^2 in W_hat.
            self.scale[f"{name}.weight"] = float(layer.weight_multiplier / unit)
            if kind == "trained":
                self.scale[f"{name}.bias"] = float(layer.bias_multiplier / (scale**2 or 1))
            elif kind == "frozen":
                self[-1].bias.requires_grad_(False)

    def parameter_groups(self, lr: float) -> list[dict[str, list[nn.Parameter] | float]]:
        """Groups for ``torch.optim.SGD``, one for each trained parameter, each at its own learning rate.

        Examples
        --------
        >>> import finwidth, torch
        >>> module = finwidth.empirical.MLP(finwidth.MLP([2, 3, 1]))
        >>> optimizer = torch.optim.SGD(module.parameter_groups(lr=0.1))
        """
        lr = arguments.real("lr", lr, "a positive number", lambda rate: 0 < rate < math.inf)
        parameters = dict(self.named_parameters())
        return [{"params": [parameters[name]], "lr": lr * rate} for name, rate in self.scale.items()]


def _weight_generator(seed: object) -> np.random.Generator:
    if isinstance(seed, np.random.Generator):
        return seed
    number = arguments.index(seed)
    if number is None or number < 0:
        raise FinwidthError(f"seed is {shown(seed)}; give a whole number, 0 or more, or a NumPy generator")
    return np.random.default_rng(number)


def _linear_layer(
    weight: FloatArray,
    bias: FloatArray | None,
    factors: tuple[float, float],
    dtype: torch.dtype,
    device: torch.device | str | None,
) -> nn.Linear:
    fan_out, fan_in = weight.shape
    factor, bias_scale = factors
    biased = bias is not None
    # Made on "meta", for torch's own initialization would spend numbers of its global generator.
    if factors == (1.0, 1.0):
        layer = nn.Linear(fan_in, fan_out, biased, "meta", dtype)
    else:
        layer = ScaledLinear(fan_in, fan_out, biased, factor=factor, bias_scale=bias_scale, dtype=dtype, device="meta")
    layer.to_empty(device=device or "cpu")
    with torch.no_grad():
        layer.weight.copy_(torch.from_numpy(weight))
        if bias is not None:
            layer.bias.copy_(torch.from_numpy(bias))
    return layer


def activation_module(phi: Activation, given: Elementwise | None = None) -> nn.Module:
    """The activation as a torch module; ``given`` is the user's own function, which must be that activation.

    Examples
    --------
    >>> from finwidth.networks.activations import Activation, activation
    >>> from finwidth.empirical.modules.mlp import activation_module
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

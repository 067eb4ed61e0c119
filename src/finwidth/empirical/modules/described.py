"""Real torch modules of descriptions of networks: what modules of every kind have in common.

The parameters are those of the parameterization (convention in `finwidth.networks.mlp`): in "ntk" the weights W have
unit variance and the layer multiplies by their standard deviation, W_hat = sqrt(v) W; in "standard" and "mup" the
weights are W_hat itself, and "mup" trains each parameter at a rate of its own.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction
from typing import ClassVar

import numpy as np
import torch
from torch import nn

from finwidth import arguments
from finwidth.empirical.modules.activation import Elementwise, activation_module
from finwidth.empirical.modules.parts import ScaledLinear
from finwidth.errors import FinwidthError, shown
from finwidth.memory import afford, amount
from finwidth.networks.description import Layer, Network, check_network
from finwidth.networks.laws import FloatArray
from finwidth.networks.routes import instead, other_kind

_DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)


@dataclass(frozen=True)
class Place:
    """A weight layer: its kind, by number in `Network.gains`, its numbers, and its name in the module."""

    kind: int
    layer: Layer
    name: str = ""

    @property
    def weights(self) -> int:
        """How many there are."""
        return self.layer.fan_in * self.layer.fan_out


class DescribedModule(nn.Sequential):
    """A random network as a torch module; `finwidth.empirical.MLP` says what arguments and attributes are.

    A kind of it names the ``descriptions`` that it makes modules of, and has the static method ``places_of``, the
    weight layers of such a network in the order in which they are drawn, and the method ``_build``.
    """

    descriptions: ClassVar[tuple[type[Network], ...]]
    places_of: ClassVar[Callable[..., list[Place]]]

    def __init__(
        self,
        net: Network,
        seed: int | np.random.SeedSequence | np.random.Generator = 0,
        *,
        activation: Elementwise | None = None,
        dtype: torch.dtype = torch.float64,
        device: torch.device | str | None = None,
    ) -> None:
        super().__init__()
        if reasons := other_kind(check_network(net), *self.descriptions):
            function = f"finwidth.empirical.{type(self).__name__}"
            raise FinwidthError(f"{function} cannot make this network: {reasons[0]}; {instead(net)}")
        if not isinstance(dtype, torch.dtype) or dtype not in _DTYPES:
            raise FinwidthError(f"dtype is {shown(dtype)}; give torch.float64, or another of floating-point numbers")
        device = torch.device("cpu") if device is None else arguments.check_device(device)
        self.network = net
        phi = activation_module(net.activation, activation)
        places = self.places_of(net)
        weights = sum(place.weights for place in places)
        what = f"a module of {amount(weights)} weights"
        afford(25 * weights, what, "take a narrower network; finwidth.sample_gram needs no weights")
        layers = [self._linear(place, dtype, device) for place in places]
        self._build(layers, phi, dtype, device)
        names = {id(each): name for name, each in self.named_modules()}
        self.places = [Place(p.kind, p.layer, names[id(each)]) for p, each in zip(places, layers, strict=True)]
        self.scale: dict[str, float] = self._rates()
        values = self.draw(seed)
        with torch.no_grad():
            for name, each in (*self.named_parameters(), *self.named_buffers()):
                if name in values:
                    each.copy_(torch.from_numpy(values[name]))

    def _build(self, layers: list[nn.Linear], phi: nn.Module, dtype: torch.dtype, device: torch.device) -> None:
        """Put the layers, which have no numbers yet, together."""
        raise NotImplementedError

    def _factors(self, place: Place) -> tuple[Fraction, Fraction]:
        """The variance of the weights as parameters over that of W_hat, inverted; and what multiplies the biases."""
        unit = place.layer.weight_variance if self.network.parameterization == "ntk" else Fraction(1)
        return unit, self.network.bias_scale[place.kind]

    def _linear(self, place: Place, dtype: torch.dtype, device: torch.device) -> nn.Linear:
        unit, scale = self._factors(place)
        factors = float(unit) ** 0.5, float(scale)
        fan_in, fan_out, bias = place.layer.fan_in, place.layer.fan_out, self.network.bias[place.kind]
        # Made on "meta", for torch's own initialization would spend numbers of its global generator.
        if factors == (1.0, 1.0):
            layer = nn.Linear(fan_in, fan_out, bias != "none", "meta", dtype)
        else:
            layer = ScaledLinear(fan_in, fan_out, bias != "none", *factors, dtype=dtype, device="meta")
        layer.to_empty(device=device)
        if bias == "frozen":
            layer.bias.requires_grad_(False)
        return layer

    def _rates(self) -> dict[str, float]:
        """The rates of the trained parameters; those of a norm have rate 1."""
        found: dict[str, float] = {}
        for place in self.places:
            unit, scale = self._factors(place)
            # Multipliers are those of W_hat and b_hat; a step of lr in W is one of lr factor^2 in W_hat.
            found[f"{place.name}.weight"] = float(place.layer.weight_multiplier / unit)
            found[f"{place.name}.bias"] = float(place.layer.bias_multiplier / (scale**2 or 1))
        return {name: found.get(name, 1.0) for name, each in self.named_parameters() if each.requires_grad}

    def draw(self, seed: int | np.random.SeedSequence | np.random.Generator) -> dict[str, FloatArray]:
        """Parameters and buffers of a random network, by name; what is not drawn (those of a norm) is not there."""
        net, values, rng = self.network, dict[str, FloatArray](), weight_generator(seed)
        for place in self.places:
            layer, (unit, scale) = place.layer, self._factors(place)
            weight = net.weight_law.sample(rng, (1, layer.fan_out, layer.fan_in))[0]
            bias = net.bias_law.sample(rng, (1, layer.fan_out))[0]
            values[f"{place.name}.weight"] = weight * float(layer.weight_variance) ** 0.5 / float(unit) ** 0.5
            values[f"{place.name}.bias"] = bias * float(layer.bias_variance) ** 0.5 / float(scale or 1)
        return values

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


def weight_generator(seed: object) -> np.random.Generator:
    """A generator, or that of a seed or a seed sequence: a module holds its numbers, and records no seed."""
    if isinstance(seed, np.random.Generator | np.random.SeedSequence):
        return np.random.default_rng(seed)
    return np.random.default_rng(arguments.check_seed(seed))

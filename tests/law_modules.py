"""Modules to train, with layers that draw their weights or with layers in law: everything else is the same.

Layers of `Drawing` hold the weights of many independent draws, and use no code of the package.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.nn import functional

from finwidth import MatrixFreeConv2d, MatrixFreeLinear
from finwidth.sampling.lazy_matrix.combination import Combination

Layers = Any  # makes layers: .linear(in, out, gain) and .conv(in, out, kernel, gain, **where)
Phi = Callable[[torch.Tensor], torch.Tensor]


class _Drawn(nn.Module):
    def __init__(self, draws: int, *shape: int, gain: float, fan_in: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(draws, *shape) * (gain / fan_in) ** 0.5)
        self.bias = nn.Parameter(torch.zeros(draws, shape[0]))


class DrawnLinear(_Drawn):
    def __init__(self, fan_in: int, fan_out: int, gain: float, draws: int) -> None:
        super().__init__(draws, fan_out, fan_in, gain=gain, fan_in=fan_in)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        rows = x.reshape(len(x), -1, x.shape[-1])
        y = torch.baddbmm(self.bias[:, None], rows, self.weight.transpose(1, 2))
        return y.reshape(*x.shape[:-1], -1)


class DrawnConv2d(_Drawn):
    """The draws are groups of one convolution."""

    def __init__(self, fan_in: int, fan_out: int, kernel: int, gain: float, draws: int, **where: int) -> None:
        super().__init__(draws, fan_out, fan_in, kernel, kernel, gain=gain, fan_in=fan_in * kernel**2)
        self.where: Any = where

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        draws, images = x.shape[:2]
        grouped = x.transpose(0, 1).reshape(images, -1, *x.shape[-2:])
        weight = self.weight.reshape(-1, *self.weight.shape[2:])
        y: torch.Tensor = functional.conv2d(grouped, weight, self.bias.reshape(-1), groups=draws, **self.where)
        return y.reshape(images, draws, -1, *y.shape[-2:]).transpose(0, 1)


class Drawing:
    """Makes layers that draw the weights of many networks."""

    def __init__(self, draws: int) -> None:
        self.draws = draws

    def linear(self, fan_in: int, fan_out: int, gain: float) -> Any:
        return DrawnLinear(fan_in, fan_out, gain, self.draws)

    def conv(self, fan_in: int, fan_out: int, kernel: int, gain: float, **where: Any) -> Any:
        return DrawnConv2d(fan_in, fan_out, kernel, gain, self.draws, **where)


class ResidualMLP(nn.Module):
    """A block that is used twice, between a first and a last layer; inputs (..., 5)."""

    def __init__(self, layers: Layers, phi: Phi, width: int) -> None:
        super().__init__()
        self.phi, self.width = phi, width
        self.first, self.last = layers.linear(5, width, 1.0), layers.linear(width, 1, 1.0)
        self.up, self.down = layers.linear(width, width, 2.0), layers.linear(width, width, 1.0)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h = self.first(x)
        for _ in range(2):
            h = h + self.down(self.phi(self.up(functional.layer_norm(h, (self.width,)))))
        out: torch.Tensor = self.last(self.phi(h))
        return out.squeeze(-1)


class ConvNet(nn.Module):
    """Two convolutions, the mean over positions, and a last layer; inputs (..., images, 1, 3, 3)."""

    def __init__(self, layers: Layers, phi: Phi, width: int) -> None:
        super().__init__()
        self.phi = phi
        self.one = layers.conv(1, width, 3, 2.0, padding=1)
        self.two = layers.conv(width, width, 3, 2.0, padding=1, stride=2)
        self.last = layers.linear(width, 1, 1.0)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h = self.phi(self.two(self.phi(self.one(x))))
        out: torch.Tensor = self.last(h.mean((-2, -1)))
        return out.squeeze(-1)


class Attention(nn.Module):
    """A transformer block of one head between a first and a last layer; inputs (..., tokens, 5)."""

    def __init__(self, layers: Layers, phi: Phi, width: int) -> None:
        super().__init__()
        self.phi, self.width = phi, width
        self.first, self.last = layers.linear(5, width, 5.0), layers.linear(width, 1, 1.0)
        self.q, self.k, self.v, self.o = (layers.linear(width, width, 1.0) for _ in range(4))
        self.up, self.down = layers.linear(width, width, 2.0), layers.linear(width, width, 1.0)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h = self.first(x)
        normal = functional.layer_norm(h, (self.width,))
        scores = self.q(normal) @ self.k(normal).transpose(-1, -2) / self.width**0.5
        h = h + self.o(scores.softmax(-1) @ self.v(normal))
        h = h + self.down(self.phi(self.up(functional.layer_norm(h, (self.width,)))))
        out: torch.Tensor = self.last(h)
        return out.mean(-2).squeeze(-1)


def inputs_for(module: type[nn.Module], count: int) -> torch.Tensor:
    """Fixed inputs of a module, as float64, (count, ...)."""
    shape = {ResidualMLP: (5,), ConvNet: (1, 3, 3), Attention: (2, 5)}[module]
    return torch.randn(count, *shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


class InLaw:
    """Makes layers in law, and remembers their initial matrices."""

    def __init__(self, draws: int | None = None) -> None:
        self.draws, self.initial = draws, dict[Any, Combination[torch.Tensor]]()

    def _made(self, layer: Any) -> Any:
        self.initial[layer] = layer.weight.combination.copy()
        return layer

    def linear(self, fan_in: int, fan_out: int, gain: float) -> Any:
        return self._made(MatrixFreeLinear(fan_in, fan_out, gain=gain, draws=self.draws))

    def conv(self, fan_in: int, fan_out: int, kernel: int, gain: float, **where: Any) -> Any:
        return self._made(MatrixFreeConv2d(fan_in, fan_out, kernel, gain=gain, draws=self.draws, **where))


class Usual:
    """Makes torch's own layers."""

    def linear(self, fan_in: int, fan_out: int, gain: float) -> Any:
        return nn.Linear(fan_in, fan_out)

    def conv(self, fan_in: int, fan_out: int, kernel: int, gain: float, **where: Any) -> Any:
        return nn.Conv2d(fan_in, fan_out, kernel, **where)

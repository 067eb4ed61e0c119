"""Ground truth for normalised networks: many small ones drawn, and differentiated by torch, which knows no theory.

K is the gradient's squared length in the multipliers, and Delta K = -2 N d^2N/dt^2 along the gradient times them.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch.func import grad, jvp, vmap

from finwidth import MLP, Norm, ResNet
from finwidth.networks.description import Layer

Drawn = dict[str, npt.NDArray[np.float64]]

BATCH = 10_000


def _normed(norm: Norm, z: torch.Tensor) -> torch.Tensor:
    if norm.centred:
        z = z - z.mean(-1, keepdim=True)
    square = (z * z).mean(-1, keepdim=True) + float(norm.epsilon)
    return torch.where(square > 0, z / torch.where(square > 0, square, 1.0).sqrt(), 0 * z)


def _activated(net: Any, y: torch.Tensor) -> torch.Tensor:
    return torch.where(y > 0, float(net.activation.positive) * y, float(net.activation.negative) * y)


def _mlp(net: MLP, layers: list[tuple[torch.Tensor, torch.Tensor]], x: torch.Tensor) -> torch.Tensor:
    assert net.norm is not None
    for weight, bias in layers[:-1]:
        y = weight @ x + bias
        x = _activated(net, _normed(net.norm, y)) if net.norm.position == "before" else y
        x = x if net.norm.position == "before" else _normed(net.norm, _activated(net, y))
    return (layers[-1][0] @ x + layers[-1][1])[0]


def _resnet(net: ResNet, layers: list[tuple[torch.Tensor, torch.Tensor]], x: torch.Tensor) -> torch.Tensor:
    assert net.norm is not None
    norm, pre = net.norm, net.norm.position == "before"
    (stem, stem_bias), *inside, (head, head_bias) = layers
    x = stem @ x + stem_bias
    for i, block in enumerate(net.blocks):
        (V, p), (W, s) = inside[2 * i : 2 * i + 2]
        z = _activated(net, V @ (_normed(norm, x) if pre else x) + p)
        x = float(block.skip_squared) ** 0.5 * x + float(block.branch_squared) ** 0.5 * (W @ z + s)
        x = x if pre else _normed(norm, x)
    return (head @ (_normed(norm, x) if pre else x) + head_bias)[0]


def layers_of(net: MLP | ResNet) -> list[Layer]:
    if isinstance(net, MLP):
        return list(net.layers)
    return [net.stem, *(layer for block in net.blocks for layer in (block.inner, block.outer)), net.head]


def simulate_normalised(net: MLP | ResNet, x: list[float], networks: int, seed: int) -> Drawn:
    """Output, K_w, K_b, K and dK of random networks at one input, shape (networks,) each."""
    rng, layers, at = torch.Generator().manual_seed(seed), layers_of(net), torch.tensor(x, dtype=torch.float64)

    def output(parameters: Any) -> torch.Tensor:
        return _mlp(net, parameters, at) if isinstance(net, MLP) else _resnet(net, parameters, at)

    def one(parameters: Any) -> tuple[torch.Tensor, ...]:
        gradient = grad(output)(parameters)
        step = [
            (float(layer.weight_multiplier) * w, float(layer.bias_multiplier) * b)
            for layer, (w, b) in zip(layers, gradient, strict=True)
        ]
        K_w, K_b = (sum((g[k] * s[k]).sum() for g, s in zip(gradient, step, strict=True)) for k in (0, 1))
        N = output(parameters)
        second = jvp(lambda there: jvp(output, (there,), (step,))[1], (parameters,), (step,))[1]
        return N, K_w, K_b, -2 * N * second

    def normal(deviation: float, *shape: int) -> torch.Tensor:
        return deviation * torch.randn(*shape, generator=rng, dtype=torch.float64)

    pieces = []
    for start in range(0, networks, BATCH):
        count = min(BATCH, networks - start)
        drawn = [
            (
                normal(float(layer.weight_variance) ** 0.5, count, layer.fan_out, layer.fan_in),
                normal(float(layer.bias_variance) ** 0.5, count, layer.fan_out),
            )
            for layer in layers
        ]
        pieces.append(vmap(one)(drawn))
    N, K_w, K_b, dK = (torch.cat(columns).numpy() for columns in zip(*pieces, strict=True))
    return {"output": N, "K_w": K_w, "K_b": K_b, "K": K_w + K_b, "dK": dK}

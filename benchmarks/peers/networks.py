"""The torch module of a problem."""

from __future__ import annotations

import torch
from torch import nn

from peers.contender import Problem


def module(problem: Problem) -> nn.Sequential:
    """Linear layers, or convolutions and one linear layer on all that they give, with ReLU between them."""
    parts: list[nn.Module] = []
    for i, (W, b) in enumerate(problem.layers):
        if W.ndim == 4:
            layer: nn.Module = nn.Conv2d(W.shape[1], W.shape[0], 3, stride=2 if i else 1, padding=1)
        else:
            parts += [nn.Flatten()] if problem.x.ndim == 4 else []
            layer = nn.Linear(W.shape[1], W.shape[0])
        layer.load_state_dict({"weight": torch.tensor(W), "bias": torch.tensor(b)})
        parts += [layer, nn.ReLU()]
    return nn.Sequential(*parts[:-1])

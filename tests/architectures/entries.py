"""The list of the zoo, and what an entry is.

Each entry builds a module without downloading anything: from its configuration, with random weights, in eval mode.
Libraries are imported only when an entry that needs one is built.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

Tensor = torch.Tensor
Inputs = Callable[[int], Tensor]
Build = Callable[[], nn.Module]

ENTRIES: dict[str, Entry] = {}


@dataclass(frozen=True)
class Entry:
    """One architecture: how to build it, inputs for it, and what of its kernel is asked for.

    ``library`` is what has to be installed, ``refused`` a part of the message if finwidth refuses the module, and
    ``tolerance`` the largest relative error; a module that computes in float32 whatever its weights needs a larger one.
    """

    name: str
    build: Build
    inputs: Inputs
    library: str = "torch"
    outputs: str | int = "full"
    refused: str = ""
    tolerance: float = 1e-9

    def subject(self, n: int, dtype: torch.dtype) -> tuple[nn.Module, Tensor]:
        """The module and ``n`` inputs, the same in every call."""
        torch.manual_seed(0)
        module = self.build().eval()
        _stir(module)
        _settle(module, self.inputs(16))
        x = self.inputs(n)
        return module.to(dtype), x.to(dtype) if x.is_floating_point() else x


def register(name: str, inputs: Inputs, library: str = "torch", **given: Any) -> Callable[[Build], Build]:
    """Enter what a function builds; ``given`` are further fields of the entry."""

    def enter(build: Build) -> Build:
        assert name not in ENTRIES
        ENTRIES[name] = Entry(name, build, inputs, library, **given)
        return build

    return enter


def _stir(module: nn.Module) -> None:
    """Move parameters that are constant at the start (layer scales, gains): a fault behind a zero would not be seen."""
    for each in module.parameters():
        if each.numel() > 1 and bool((each == each.flatten()[0]).all()):
            each.data += 0.1 * torch.randn_like(each)


def _settle(module: nn.Module, x: Tensor) -> None:
    """Give batch normalisation the averages of one batch; without them signals vanish or explode with depth."""
    layers = [each for each in module.modules() if isinstance(each, nn.modules.batchnorm._BatchNorm)]
    for layer in layers:
        layer.momentum = 1.0
    if layers:
        with torch.no_grad():
            module.train()(x)
        module.eval()


class First(nn.Module):
    """The first few numbers, or all, of what ``read`` makes of a module and its input."""

    def __init__(self, module: nn.Module, read: Callable[[nn.Module, Tensor], Tensor], outputs: int | None = 3) -> None:
        super().__init__()
        self.module, self.read, self.outputs = module, read, outputs

    def forward(self, x: Tensor) -> Tensor:
        """Shape (N, outputs)."""
        return self.read(self.module, x).flatten(1)[:, : self.outputs]


def numbers(*shape: int) -> Inputs:
    """Normal inputs of a shape."""
    return lambda n: torch.randn(n, *shape)


def tokens(length: int, vocabulary: int) -> Inputs:
    """Texts of a length."""
    return lambda n: torch.randint(3, vocabulary, (n, length))

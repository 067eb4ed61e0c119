"""A real torch module of a `finwidth.ResNet` or `finwidth.BalancedResNet`."""

from __future__ import annotations

import numpy as np
import torch
from torch import nn

from finwidth.empirical.modules.described import DescribedModule, Place, weight_generator
from finwidth.empirical.modules.parts import RandomSigns, ResidualBlock, norm_module
from finwidth.networks import balanced, resnet
from finwidth.networks.laws import FloatArray
from finwidth.networks.residual import ResidualNetwork


class ResNet(DescribedModule):
    """A random residual network as a torch module, in the parameters of its parameterization, drawn from its law.

    Parameters
    ----------
    net
        A `finwidth.ResNet` or `finwidth.BalancedResNet`, normalised or not; the signs of the latter are buffers.
    seed, activation, dtype, device
        As for `finwidth.empirical.MLP`.

    Attributes
    ----------
    network, scale
        As for `finwidth.empirical.MLP`.

    Raises
    ------
    FinwidthError
        If torch's form of the activation is not known, or the one given differs from it.

    Examples
    --------
    >>> import finwidth
    >>> finwidth.empirical.ResNet(finwidth.ResNet([2, 3, 1], 1, 4, parameterization="standard", norm="rms"), seed=0)
    ResNet(
      (0): Linear(in_features=2, out_features=3, bias=True)
      (1): ResidualBlock(
        skip=1, factor=1
        (branch): Sequential(
          (0): ExactNorm(centred=False, trained=False)
          (1): Linear(in_features=3, out_features=4, bias=True)
          (2): ReLU()
          (3): Linear(in_features=4, out_features=3, bias=True)
        )
      )
      (2): ExactNorm(centred=False, trained=False)
      (3): Linear(in_features=3, out_features=1, bias=True)
    )
    """

    descriptions = (resnet.ResNet, balanced.BalancedResNet)
    network: ResidualNetwork

    @staticmethod
    def places_of(net: ResidualNetwork) -> list[Place]:
        """The weight layers: stem, those of the blocks, head."""
        if isinstance(net, resnet.ResNet):
            inside = [place for block in net.blocks for place in (Place(1, block.inner), Place(2, block.outer))]
        else:
            assert isinstance(net, balanced.BalancedResNet)
            inside = [Place(1, block.outer) for block in net.blocks]
        return [Place(0, net.stem), *inside, Place(len(net.layer_kinds) - 1, net.head)]

    def _build(self, layers: list[nn.Linear], phi: nn.Module, dtype: torch.dtype, device: torch.device) -> None:
        net, n, norm = self.network, self.network.widths[1], self.network.norm
        factors = [
            (float(a) ** 0.5, float(b) ** 0.5) for a, b in zip(net.skip_squared, net.branch_squared, strict=True)
        ]
        inside = iter(layers[1:-1])
        self.append(layers[0])
        for skip, factor in factors:
            parts: list[nn.Module] = [phi, next(inside)]
            if isinstance(net, resnet.ResNet):
                parts = [parts[1], phi, next(inside)]
            elif isinstance(net, balanced.BalancedResNet) and net.signs:
                parts.insert(0, RandomSigns(n, dtype, device))
            if norm is not None and norm.position == "before":
                parts.insert(0, norm_module(norm, n, dtype, device))
            self.append(ResidualBlock(nn.Sequential(*parts), skip, factor))
            if norm is not None and norm.position == "after":
                self.append(norm_module(norm, n, dtype, device))
        if norm is not None and norm.position == "before":
            self.append(norm_module(norm, n, dtype, device))
        self.append(layers[-1])

    def draw(self, seed: int | np.random.SeedSequence | np.random.Generator) -> dict[str, FloatArray]:
        """Parameters, and the signs, of a random network, by name."""
        rng = weight_generator(seed)
        values = super().draw(rng)
        for name, each in self.named_buffers():
            values[name] = 2 * rng.integers(0, 2, len(each)).astype(np.float64) - 1
        return values

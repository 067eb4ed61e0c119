"""A real torch module of a `finwidth.MLP`: the layers, initial weights and learning rates that its definition says."""

from __future__ import annotations

import torch
from torch import nn

from finwidth.empirical.modules.described import DescribedModule, Place
from finwidth.empirical.modules.parts import norm_module
from finwidth.networks import mlp as description


class MLP(DescribedModule):
    """A random network as a torch module, in the parameters of its parameterization and initialised from its law.

    Its kernel is ``finwidth.empirical.ntk(module, X, scale=module.scale)``. SGD on ``module.parameter_groups(lr)``
    moves W_hat^(i) at rate lr c_i and b_hat^(i) at rate lr e_i, as `finwidth.networks.mlp` says.

    Parameters
    ----------
    net
        The network. Frozen biases are parameters that do not require a gradient.
    seed
        A whole number, or a seed sequence or generator of NumPy, to draw the weights from: those of
        `brute_force.draw_networks`.
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

    descriptions = (description.MLP,)
    network: description.MLP

    @staticmethod
    def places_of(net: description.MLP) -> list[Place]:
        """The weight layers, first to last."""
        return [Place(i, layer) for i, layer in enumerate(net.layers)]

    def _build(self, layers: list[nn.Linear], phi: nn.Module, dtype: torch.dtype, device: torch.device) -> None:
        norm = self.network.norm
        for i, layer in enumerate(layers):
            if i and norm is None:
                self.append(phi)
            elif i and norm is not None:
                normed = norm_module(norm, layer.in_features, dtype, device)
                self.extend((normed, phi) if norm.position == "before" else (phi, normed))
            self.append(layer)

"""Ground truth for networks of every description: small ones that hold their weights, differentiated by autograd.

Nothing here knows any theory, nor `Network.stages`: forward passes as the docstrings of `MLP`, `ResNet`,
`BalancedResNet` and `Norm` say, in float64; kernels by Jacobians, their first change by a derivative along the step.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch.func import jacrev, jvp, vmap

from finwidth import MLP, BalancedResNet, Norm, ResNet
from finwidth.networks.description import Layer, Network

with warnings.catch_warnings():  # what torch imports for the first forward-mode derivative warns of itself
    warnings.simplefilter("ignore", DeprecationWarning)
    jvp(torch.sin, (torch.ones(1),), (torch.ones(1),))

Tensors = dict[str, torch.Tensor]
_CHUNK = 4000
PHI: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "relu": torch.relu, "tanh": torch.tanh, "gelu": torch.nn.functional.gelu, "silu": lambda y: y * torch.sigmoid(y),
    "erf": torch.erf, "abs": torch.abs, "linear": lambda y: y,
    "leaky_relu": lambda y: torch.nn.functional.leaky_relu(y, 0.01),
}  # fmt: skip


class AutogradNetworks:
    """Networks of a description: their parameters for many draws, and what one of them does."""

    def __init__(self, net: Network, *, project: bool = True, skip: float | None = None) -> None:
        """``project=False`` and ``skip`` make wrong networks: a norm whose length is held fixed, another skip."""
        self.net, self.project, self.skip = net, project, skip
        self.layers: dict[str, Layer] = {}
        self.norms: dict[str, tuple[Norm, int]] = {}
        self.signs: dict[str, int] = {}
        if isinstance(net, MLP):
            self.layers = {f"layer {i}": layer for i, layer in enumerate(net.layers)}
            if net.norm is not None:
                self.norms = {f"norm {i}": (net.norm, net.widths[i + 1]) for i in range(net.depth - 1)}
        else:
            assert isinstance(net, ResNet | BalancedResNet)
            n, blocks = net.widths[1], list[Any](net.blocks)
            self.layers["stem"] = net.stem
            for i, block in enumerate(blocks):
                if isinstance(net, ResNet):
                    self.layers[f"V {i}"] = block.inner
                elif net.signs:
                    self.signs[f"signs {i}"] = n
                self.layers[f"W {i}"] = block.outer
                if net.norm is not None:
                    self.norms[f"norm {i}"] = (net.norm, n)
            self.layers["head"] = net.head
            if net.norm is not None and net.norm.position == "before":
                self.norms["norm head"] = (net.norm, n)

    def draw(self, draws: int, seed: int) -> tuple[Tensors, Tensors]:
        """Parameters that are trained or not, and signs."""
        rng = torch.Generator().manual_seed(seed)

        def normal(*shape: int) -> torch.Tensor:
            return torch.randn(draws, *shape, generator=rng, dtype=torch.float64)

        made, signs = {}, {}
        for name, layer in self.layers.items():
            made[f"{name} weight"] = normal(layer.fan_out, layer.fan_in) * float(layer.weight_variance) ** 0.5
            made[f"{name} bias"] = normal(layer.fan_out) * float(layer.bias_variance) ** 0.5
        for name, (norm, n) in self.norms.items():
            if norm.parameters == "trained":
                made[f"{name} weight"] = torch.ones(draws, n, dtype=torch.float64)
                if norm.kind == "layer":
                    made[f"{name} bias"] = torch.zeros(draws, n, dtype=torch.float64)
        for name, n in self.signs.items():
            signs[name] = torch.sign(normal(n))
        return made, signs

    def multiplier(self, name: str) -> float:
        """How fast SGD moves a parameter."""
        place, kind = name.rsplit(" ", 1)
        if place in self.norms:
            return 1.0
        layer = self.layers[place]
        return float(layer.weight_multiplier if kind == "weight" else layer.bias_multiplier)

    def outputs(self, at: Tensors, signs: Tensors, X: torch.Tensor) -> torch.Tensor:
        """(m, o) of one network."""
        return self._pass(at, signs, X)[0]

    def _pass(self, at: Tensors, signs: Tensors, X: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Outputs, and the Gram matrices of hidden vectors over their widths, (hidden, m, m)."""
        net, phi, hidden = self.net, PHI[self.net.activation.name], []

        def linear(name: str, x: torch.Tensor) -> torch.Tensor:
            return x @ at[f"{name} weight"].T + at[f"{name} bias"]

        def normed(name: str, x: torch.Tensor) -> torch.Tensor:
            norm, n = self.norms[name]
            if norm.kind == "layer":
                x = x - x.mean(-1, keepdim=True)
            squares = (x * x).sum(-1, keepdim=True) / n + float(norm.epsilon)
            safe = torch.where(squares > 0, squares, 1.0)
            length = torch.where(squares > 0, safe.sqrt(), 1.0)
            x = torch.where(squares > 0, x / (length if self.project else length.detach()), 0 * x)
            if norm.parameters == "trained":
                x = x * at[f"{name} weight"]
                if norm.kind == "layer":
                    x = x + at[f"{name} bias"]
            return x

        x = X
        if isinstance(net, MLP):
            for i in range(net.depth):
                x = linear(f"layer {i}", x)
                if i < net.depth - 1:
                    if net.norm is not None and net.norm.position == "before":
                        x = normed(f"norm {i}", x)
                    x = phi(x)
                    if net.norm is not None and net.norm.position == "after":
                        x = normed(f"norm {i}", x)
                    hidden.append(x @ x.T / x.shape[-1])
            return x, torch.stack(hidden) if hidden else x
        assert isinstance(net, ResNet | BalancedResNet)
        position = net.norm.position if net.norm is not None else None
        x = linear("stem", x)
        hidden.append(x @ x.T / x.shape[-1])
        for i, block in enumerate(list[Any](net.blocks)):
            skip, branch = float(block.skip_squared) ** 0.5, float(block.branch_squared) ** 0.5
            skip = self.skip if self.skip is not None else skip
            y = normed(f"norm {i}", x) if position == "before" else x
            y = linear(f"V {i}", y) if isinstance(net, ResNet) else signs.get(f"signs {i}", 1) * y
            x = skip * x + branch * linear(f"W {i}", phi(y))
            if position == "after":
                x = normed(f"norm {i}", x)
            hidden.append(x @ x.T / x.shape[-1])
        return linear("head", normed("norm head", x) if position == "before" else x), torch.stack(hidden)

    def kernels(self, at: Tensors, signs: Tensors, X: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """K_w and K_b of one network, (m, m, o, o)."""
        jacobians = jacrev(self.outputs)(at, signs, X)
        parts = {"weight": torch.zeros(()), "bias": torch.zeros(())}
        for name, jacobian in jacobians.items():
            flat, kind = jacobian.flatten(2), name.rsplit(" ", 1)[1]
            parts[kind] = parts[kind] + self.multiplier(name) * torch.einsum("akw,blw->abkl", flat, flat)
        return parts["weight"], parts["bias"]

    def step(self, at: Tensors, signs: Tensors, X: torch.Tensor, targets: torch.Tensor) -> Tensors:
        """The change of the parameters per unit learning rate, loss sum |N - t|^2 / 2."""

        def loss(at: Tensors) -> torch.Tensor:
            return ((self.outputs(at, signs, X) - targets) ** 2).sum() / 2

        return {name: -self.multiplier(name) * slope for name, slope in torch.func.grad(loss)(at).items()}

    def change(self, at: Tensors, signs: Tensors, X: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        """dK along the step, (m, m, o, o)."""

        def kernel(at: Tensors) -> torch.Tensor:
            return sum(self.kernels(at, signs, X))  # type: ignore[return-value]

        found: torch.Tensor = jvp(kernel, (at,), (self.step(at, signs, X, targets),))[1]
        return found


def autograd_networks(
    net: Network, X: Any, targets: Any, draws: int, seed: int = 0, **wrong: Any
) -> dict[str, np.ndarray]:
    """output, K_w, K_b, K, dK and hidden of drawn networks, with the axes of `sample_gram`."""
    networks = AutogradNetworks(net, **wrong)
    X = torch.as_tensor(np.asarray(X, dtype=float))
    targets = torch.as_tensor(np.asarray(targets, dtype=float)).reshape(len(X), -1)

    def one(at: Tensors, signs: Tensors) -> tuple[torch.Tensor, ...]:
        output, hidden = networks._pass(at, signs, X)
        return output, *networks.kernels(at, signs, X), networks.change(at, signs, X, targets), hidden

    pieces = []
    for start in range(0, draws, _CHUNK):
        made = networks.draw(min(_CHUNK, draws - start), seed + start)
        with torch.no_grad():
            pieces.append(vmap(one)(*made))
    names = ("output", "K_w", "K_b", "dK", "hidden")
    found = {name: torch.cat(parts).numpy() for name, parts in zip(names, zip(*pieces, strict=True), strict=True)}
    found["K"] = found["K_w"] + found["K_b"]
    if net.widths[-1] == 1:
        for name in ("K", "K_w", "K_b", "dK"):
            found[name] = found[name][..., 0, 0]
        found["output"] = found["output"][..., 0]
    return found


def autograd_training(  # noqa: PLR0917
    net: Network, at: Tensors, signs: Tensors, X: Any, targets: Any, steps: int, lr: float, momentum: float = 0.0
) -> dict[str, np.ndarray]:
    """Outputs (draws, steps + 1, m, o) and K (.., m, m), a trace over outputs, of networks that SGD moves on all X."""
    networks, velocity = AutogradNetworks(net), {name: torch.zeros_like(value) for name, value in at.items()}
    X = torch.as_tensor(np.asarray(X, dtype=float))
    targets = torch.as_tensor(np.asarray(targets, dtype=float)).reshape(len(X), -1)
    found: dict[str, list[torch.Tensor]] = {"output": [], "K": []}

    def kernel(at: Tensors, signs: Tensors) -> torch.Tensor:
        return torch.einsum("abkk->ab", sum(networks.kernels(at, signs, X)))

    for _ in range(steps + 1):
        found["output"].append(vmap(lambda at, signs: networks.outputs(at, signs, X))(at, signs))
        found["K"].append(vmap(kernel)(at, signs))
        moves = vmap(lambda at, signs: networks.step(at, signs, X, targets))(at, signs)
        velocity = {name: momentum * velocity[name] + moves[name] for name in at}
        at = {name: value + lr * velocity[name] for name, value in at.items()}
    return {name: torch.stack(values, 1).numpy() for name, values in found.items()}

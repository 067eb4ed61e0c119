"""Products of a module's Jacobian J with vectors, block by block: J^T v by backward passes, J w by forward-mode ones.

Forward mode is torch's own (`torch.autograd.forward_ad`) on the parameters as dual numbers. What torch cannot
differentiate forward is differentiated backward twice: J^T u is linear in u, and the derivative of <J^T u, w> by u is
J w. What it can do neither of has its rows one by one, a backward pass for every sample and output.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import torch
from torch.autograd import forward_ad

from finwidth.empirical.kernel.batch import Batch
from finwidth.empirical.kernel.calls import (
    MeasuredModule,
    ModuleError,
    apply,
    differentiable,
    dual,
    gradient,
    telling,
    unpack_dual,
)
from finwidth.empirical.kernel.layout import pieces

Tensor = torch.Tensor
Vectors: TypeAlias = list[Tensor]  # q vectors of parameter space: for each counted parameter a tensor (q, *its shape)


def _forward_mode(network: MeasuredModule, x: Batch, tangents: Vectors) -> Tensor:
    """A pass on dual numbers for every vector."""
    rows = []
    for column in zip(*tangents, strict=True):
        with differentiable(), forward_ad.dual_level():
            given = zip(network.parameters.items(), column, strict=True)
            moved = {name: dual(each.detach(), along) for (name, each), along in given}
            output, tangent = unpack_dual(apply(network, x, moved))
            rows.append(torch.zeros_like(output) if tangent is None else tangent.detach())
    return torch.stack(rows)


def _double_backward(network: MeasuredModule, x: Batch, tangents: Vectors) -> Tensor:
    """A backward pass whose own graph is kept, and one through it for every vector."""
    with differentiable(), telling(network.module, x):
        output = apply(network, x, network.parameters)
        u = torch.zeros_like(output, requires_grad=True)
        pulled = gradient(output, list(network.parameters.values()), u, create_graph=True)
        linear = [(each, w) for each, w in zip(pulled, tangents, strict=True) if each.requires_grad]
        if not linear:
            return output.new_zeros(len(tangents[0]), *output.shape)
        columns = [each for each, _ in linear]
        return torch.stack([gradient_by(u, columns, [w[c] for _, w in linear]) for c in range(len(tangents[0]))])


def gradient_by(u: Tensor, values: Sequence[Tensor], weights: Sequence[Tensor]) -> Tensor:
    """The derivative of the sum of values times weights by u; the graph is kept."""
    (found,) = torch.autograd.grad(values, u, weights, retain_graph=True, materialize_grads=True)
    return found


def _by_samples(network: MeasuredModule, x: Batch, tangents: Vectors) -> Tensor:
    """The rows of J, each multiplied and dropped."""
    flat = [each.flatten(1) for each in tangents]
    samples = []
    for sample in x.split(1):
        with differentiable(), telling(network.module, sample):
            output = apply(network, sample, network.parameters)[0]
            rows = (gradient(each, list(network.parameters.values())) for each in output)
            found = [torch.stack([w @ g.flatten() for w, g in zip(flat, row, strict=True)]).sum(0) for row in rows]
        samples.append(torch.stack(found, dim=1))
    return torch.stack(samples, dim=1)


WAYS = {
    "forward mode": _forward_mode,
    "double backward": _double_backward,
    "one by one": _by_samples,
}  # fastest first


@dataclass(frozen=True, eq=False)
class Jacobian:
    """J of a module at N inputs: its products, ``at_once`` inputs at a time.

    ``ways`` names the ways to find J w, of `WAYS`, of which those that fail are removed.
    """

    network: MeasuredModule
    x: Batch
    at_once: int
    ways: list[str]

    @property
    def blocks(self) -> list[range]:
        """The inputs of every pass."""
        return pieces(range(len(self.x)), self.at_once)

    def outputs(self) -> Tensor:
        """The module's outputs, shape (N, outputs)."""
        with differentiable():
            blocks = (self.x[block.start : block.stop] for block in self.blocks)
            return torch.cat([apply(self.network, x, self.network.parameters).detach() for x in blocks])

    def pulled_back(self, v: Tensor, told: Callable[[int], None]) -> Vectors:
        """J^T v of q vectors, shape (q, N, outputs)."""
        parameters = list(self.network.parameters.values())
        totals = [each.new_zeros(len(v), *each.shape) for each in parameters]
        for block in self.blocks:
            x, some = self.x[block.start : block.stop], v[:, block.start : block.stop]
            with differentiable(), telling(self.network.module, x):
                output = apply(self.network, x, self.network.parameters)
                for c, weights in enumerate(some.to(output)):
                    for total, each in zip(totals, gradient(output, parameters, weights), strict=True):
                        total[c] += each.detach()
            del output  # and its graph, before the next pass
            told(len(block))
        return totals

    def pushed_forward(self, w: Vectors, told: Callable[[int], None]) -> Tensor:
        """J w of q vectors, shape (q, N, outputs)."""
        blocks = []
        for block in self.blocks:
            blocks.append(self.along(self.x[block.start : block.stop], w))
            told(len(block))
        return torch.cat(blocks, dim=1)

    def along(self, x: Batch, tangents: Vectors) -> Tensor:
        """J w at some inputs in the first way that takes the module, shape (q, inputs, outputs)."""
        while True:
            try:
                return WAYS[self.ways[0]](self.network, x, tangents)
            except ModuleError:
                if len(self.ways) == 1:
                    raise
                del self.ways[0]


def vectors_product(one: Vectors, other: Vectors, scales: Sequence[float]) -> list[float]:
    """sum_p scale_p <one_p, other_p> of every pair of vectors in double precision; a single one meets them all."""
    totals = torch.zeros(max(len(one[0]), len(other[0])), dtype=torch.float64)
    for a, b, scale in zip(one, other, scales, strict=True):
        times = len(totals)
        pairs = zip(a.expand(times, *a.shape[1:]), b.expand(times, *b.shape[1:]), strict=True)
        totals += scale * torch.stack([_dot(*pair) for pair in pairs])
    return totals.tolist()


def _dot(a: Tensor, b: Tensor) -> Tensor:
    return (a * b).sum(dtype=torch.promote_types(a.dtype, torch.float32)).double().cpu()

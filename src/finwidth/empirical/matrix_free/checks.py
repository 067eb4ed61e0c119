"""What holds an operator's products against other ways to the same numbers.

Three things are checked.  When an operator is made: J w, in the way that is taken, against J^T u on a few samples,
<u, J w> = <J^T u, w>; and a product at a few rows against plain backward passes of each sample alone,
<s, K s> = sum_p scale_p (sum_a s_a dN(x_a)/dp)^2.  In every product, over all inputs: with g = J2^T v and f = J1 M g,

    <u, f> = <J1^T u, M g>    and    <w, g> = <J2 w, v>

for random u and w.  J1^T u and J2 w are found once, with the samples in another order and so in other company.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch

from finwidth.empirical.kernel.batch import Batch
from finwidth.empirical.kernel.calls import (
    MeasuredModule,
    ModuleError,
    apply,
    coarsest,
    differentiable,
    gradient,
    telling,
)
from finwidth.empirical.kernel.check import seen_error
from finwidth.empirical.kernel.gradients import MEETING
from finwidth.empirical.matrix_free.products import WAYS, Jacobian, Vectors, vectors_product
from finwidth.errors import FinwidthError

Tensor = torch.Tensor


def agree(jacobian: Jacobian, found: float, right: float, length: float) -> bool:
    """Whether two numbers are equal up to the rounding of vectors of this length."""
    eps = max(torch.finfo(each.dtype).eps for each in jacobian.network.parameters.values())
    off = abs(found - right) / (length or 1.0)
    if not math.isfinite(off):
        raise FinwidthError("the kernel overflows; rescale the inputs, or give module.double()")
    if off <= seen_error(eps):
        return True
    with differentiable():
        return off <= seen_error(coarsest(jacobian.network, jacobian.x[:2]))


def possible_ways(jacobian: Jacobian) -> list[str]:
    """The ways to J w that take the module and agree with J^T u at its inputs, a few, the fastest first.

    Raises
    ------
    FinwidthError
        If none does.
    """
    network, n = jacobian.network, len(jacobian.x)
    w = random_vectors(network, 1)
    for place, way in enumerate(WAYS):
        try:
            found = WAYS[way](network, jacobian.x, w)
        except ModuleError:
            continue
        u = random_rows(n, found.shape[-1], 2).to(found)
        pulled = jacobian.pulled_back(u[None], nobody)
        left, right = float((u * found[0]).double().sum()), vectors_product(pulled, w, unscaled(network))[0]
        if agree(jacobian, left, right, float(u.double().norm()) * float(found.double().norm())):
            return list(WAYS)[place:]
    raise FinwidthError(MEETING)


def unscaled(network: MeasuredModule) -> list[float]:
    """A scale of 1 for each parameter."""
    return [1.0] * len(network.parameters)


def random_vectors(network: MeasuredModule, seed: int) -> Vectors:
    """One Gaussian vector of parameter space."""
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(1, *each.shape, generator=generator).to(each) for each in network.parameters.values()]


def random_rows(n: int, o: int, seed: int) -> Tensor:
    """Gaussian numbers of shape (n, o), on the CPU."""
    return torch.randn(n, o, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@dataclass(frozen=True, eq=False)
class Probe:
    """u and J1^T u, w and J2 w: what every product is held against."""

    u: Tensor
    pulled: Vectors
    w: Vectors
    pushed: Tensor

    def check_pulled(self, jacobian: Jacobian, v: Tensor, pulled: Vectors) -> None:
        """Raise FinwidthError unless J2^T v, shape of v (q, N2, O), agrees with J2 w."""
        found = vectors_product(self.w, pulled, unscaled(jacobian.network))
        size = float(self.pushed.double().norm())
        _raise_unless_near(jacobian, found, weighted_sums(self.pushed, v), [size * each for each in _lengths(v)])

    def check_pushed(self, jacobian: Jacobian, g: Vectors, f: Tensor) -> None:
        """Raise FinwidthError unless f = J1 g, shape (q, N1, O), agrees with J1^T u."""
        ones = unscaled(jacobian.network)
        size = vectors_product(self.pulled, self.pulled, ones)[0] ** 0.5
        sizes = [size * each**0.5 for each in vectors_product(g, g, ones)]
        _raise_unless_near(jacobian, weighted_sums(self.u, f), vectors_product(self.pulled, g, ones), sizes)


def make_probe(first: Jacobian, second: Jacobian, outputs: int) -> Probe:
    """The probe of a kernel between two sets of inputs, the samples of which are in random order here."""
    u, w = random_rows(len(first.x), outputs, 3), random_vectors(second.network, 4)
    order = _order(len(first.x), 5)
    pulled = replace(first, x=first.x[order]).pulled_back(u[order][None], nobody)
    order = _order(len(second.x), 6)
    pushed = replace(second, x=second.x[order]).pushed_forward(w, nobody)[0]
    return Probe(u, pulled, w, pushed[order.argsort()])


def _order(n: int, seed: int) -> Tensor:
    return torch.randperm(n, generator=torch.Generator().manual_seed(seed))


def nobody(_: int) -> None:
    """Told how far the work is."""


def _lengths(rows: Tensor) -> list[float]:
    return [float(each.double().norm()) for each in rows]


def _raise_unless_near(jacobian: Jacobian, found: list[float], right: list[float], sizes: list[float]) -> None:
    if not all(agree(jacobian, *each) for each in zip(found, right, sizes, strict=True)):
        raise FinwidthError(UNLIKE)


def plain_square(network: MeasuredModule, x: Batch, s: Tensor) -> tuple[float, float]:
    """sum_p scale_p (sum_a s_a dN(x_a)/dp)^2, s of shape (n, O), each sample by itself; and its size without signs."""
    parameters, scales = list(network.parameters.values()), list(network.scales.values())
    totals, size = [torch.zeros_like(each) for each in parameters], 0.0
    for sample, weights in zip(x.split(1), torch.split(s, 1), strict=True):
        with differentiable(), telling(network.module, sample):
            output = apply(network, sample, network.parameters)
            row = [each.detach() for each in gradient(output, parameters, weights.to(output))]
        totals = [total + each for total, each in zip(totals, row, strict=True)]
        alone = [each[None] for each in row]
        size += vectors_product(alone, alone, scales)[0] ** 0.5
    whole = [each[None] for each in totals]
    return vectors_product(whole, whole, scales)[0], size**2


UNLIKE = (
    "a product with the kernel is not what its own backward passes say: samples depend on the others of their batch, "
    "or the module's derivatives are not those of its output (custom derivatives, hooks that change gradients?); "
    "with check=False it is returned"
)


def weighted_sums(weights: Tensor, rows: Tensor) -> list[float]:
    """sum_ai weights_ai rows_cai for each c, in double precision."""
    return [float((weights.double() * each.double().to(weights.device)).sum()) for each in rows]

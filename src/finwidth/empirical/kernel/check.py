r"""Is it the kernel? Held against backward passes of the user's own module, which share no code with how K was found.

Let s weigh some samples and c the outputs. The gradient of sum_ai s_a c_i N_i(x_a) is g = J^T (s x c): one plain
backward pass of the module on a batch of those samples. Whatever became of layers, blocks and rules on the way to K,
sum_abij s_a c_i K_ij(x_a, x_b) c_j t_b = sum_p scale_p g_p h_p, with h the gradient for t and c. It is taken for a
random sample of the inputs, in random order, and for one input alone; for random c, or for single outputs where K holds
no pairs of them. docs/empirical-ntk.md says how small a fault is found. The change of K along a step v is held against
the same with (Hv)_p, the derivative of g along v, in the place of one gradient and then of the other.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, TypeAlias

import torch

from finwidth.empirical.kernel.calls import Network, apply, coarsest, differentiable, gradient, telling
from finwidth.empirical.kernel.gradients import MEETING, near, why_unlike
from finwidth.errors import FinwidthError

if TYPE_CHECKING:
    from finwidth.empirical.kernel.ntk import Kernel

Tensor = torch.Tensor
Compute: TypeAlias = "Callable[[Kernel], Tensor]"
_ALL, _FEW, _SHARE = 8, 3, 32  # inputs that are taken: up to 8 all, otherwise 3, or one in 32 if that is more
_COMPANY = 256  # inputs of the largest batch that is passed whole and in halves
_OUTPUTS = 4  # up to so many outputs are taken one by one, otherwise 2 of them


@dataclass(frozen=True)
class Finding:
    """A number of the kernel, what it should be, and the size that its error is measured by."""

    found: float
    right: float
    size: float

    @property
    def error(self) -> float:
        """Relative to the size; infinite where a number is not finite."""
        off = abs(self.found - self.right) / (self.size or 1.0)
        return off if math.isfinite(off) else math.inf


@dataclass(frozen=True, eq=False)
class _Samples:
    """Some of the inputs, and a weight for each."""

    x: Tensor
    rows: Tensor
    weights: Tensor


_Pair: TypeAlias = tuple[_Samples, _Samples]


@dataclass(frozen=True, eq=False)
class _Gradients:
    """Gradients by every parameter, their derivatives along the direction, and the lengths of both."""

    g: list[Tensor]
    moved: list[Tensor]
    length: float
    speed: float


def checked(kernel: Kernel, compute: Compute) -> Tensor:
    """The kernel by ``compute``; by the general route, if it differs from the module's own backward passes.

    Raises
    ------
    FinwidthError
        If the general route does not agree with them either; it says what was seen.
    """
    K, worst = _judged(kernel, compute)
    if worst is not None:
        kernel.generalise()
        K, worst = _judged(kernel, compute)
    if worst is None:
        return K
    raise FinwidthError(
        f"a number of the kernel is {worst.found:.7g} sample by sample, and {worst.right:.7g} by a backward pass of "
        f"the module on several samples: {_reason(kernel)}"
    )


def _judged(kernel: Kernel, compute: Compute) -> tuple[Tensor, Finding | None]:
    """The kernel, and the number that is wrong, if there is one."""
    K = compute(kernel)
    if kernel.plan.general:
        _check_company(kernel)
    return K, _worst(kernel, K, compute)


def _check_company(kernel: Kernel) -> None:
    """Raise FinwidthError if a sample's output in the whole batch is not that in half of it.

    Gradients that are formed sample by sample do not see how a batch with a rare sample in it treats the others.
    """
    network = kernel.network
    for x in [kernel.x1] if kernel.x2 is None else [kernel.x1, kernel.x2]:
        order = torch.randperm(len(x), generator=_generator(6))
        for start in range(0, len(x), _COMPANY):
            some = order[start : start + _COMPANY]
            halves = [each for each in some.tensor_split(2) if len(each)]
            whole, parts = _outputs(network, x[some]), torch.cat([_outputs(network, x[each]) for each in halves])
            if not near(whole, parts) and not near(whole, parts, coarsest(network, x[:2])):
                raise FinwidthError(MEETING)


def _outputs(network: Network, x: Tensor) -> Tensor:
    """Without gradients, unless the module needs them."""
    try:
        with torch.no_grad():
            return apply(network, x, network.parameters)
    except FinwidthError:
        with differentiable():
            return apply(network, x, network.parameters).detach()


def _worst(kernel: Kernel, K: Tensor, compute: Compute) -> Finding | None:
    """The number with the largest error, if rounding does not explain it."""
    eps = torch.finfo(kernel.plan.dtype).eps
    found = list(findings(kernel, K, compute))
    if kernel.network.direction is not None and eps == torch.finfo(torch.float64).eps:
        coarse = coarsest(kernel.network, kernel.x1[:2])
        if coarse == eps:
            found, strange = _by_differences(kernel, K, compute, found, coarse ** (1 / 4))
            if strange:
                return max(strange, key=lambda each: each.error)
    worst = max(found, key=lambda each: each.error, default=Finding(0.0, 0.0, 1.0))
    if worst.error <= _seen(eps) or worst.error <= 10 * _rounding(kernel, eps):
        return None
    return None if worst.error <= _seen(coarsest(kernel.network, kernel.x1[:2])) else worst


def _by_differences(
    kernel: Kernel, K: Tensor, compute: Compute, found: list[Finding], error: float
) -> tuple[list[Finding], list[Finding]]:
    """Findings that central differences confirm, and those by differences that are wrong where they do not.

    A backward pass through backward passes is not their derivative where these are none of the values (hooks, gradient
    reversal), and it may be how K was found. A difference is, but for its own error.
    """
    sure: list[Finding] = []
    strange: list[Finding] = []
    for steps in (1.0, 0.3, 0.1):  # where a kink is in the way of one, it is rarely in that of a shorter one
        by_steps = kernel.by(replace(kernel.network, steps=steps))
        others = list(findings(by_steps, K, lambda part: compute(part.by(kernel.network))))
        pairs = list(zip(found, others, strict=True))
        sure = [one for one, other in pairs if abs(one.right - other.right) <= error * other.size]
        strange = [other for one, other in pairs if one not in sure and other.error > error]
        if not strange:
            break
    return sure, strange


def _seen(eps: float) -> float:
    """The error that is told from rounding."""
    return float(min(0.3, 10 * eps ** (2 / 3)))


def findings(kernel: Kernel, K: Tensor, compute: Compute) -> Iterator[Finding]:
    """Numbers of the kernel, and the same by backward passes."""
    if kernel.outputs == "trace" and kernel.plan.outputs > _OUTPUTS:
        yield from _by_outputs(kernel, K, compute)
        return
    pairs, groups = _pairs(kernel), list(_groups(kernel))
    for group, values in zip(groups, _products(kernel.network, pairs, groups), strict=True):
        for (one, other), (right, size) in zip(pairs, values, strict=True):
            entries = K[one.rows] if kernel.alone else K[one.rows[:, None], other.rows]
            weights = one.weights * other.weights if kernel.alone else one.weights[:, None] * other.weights
            terms = _between(kernel, entries.double(), group[0].to(K.device)) * weights.to(K.device)
            yield Finding(float(terms.sum()), right, max(size, float(terms.abs().sum())))


def _by_outputs(kernel: Kernel, K: Tensor, compute: Compute) -> Iterator[Finding]:
    """A trace over many outputs, by the kernel of each output by itself at some of the inputs."""
    rows = _choose(kernel, len(kernel.x1))
    others = rows if kernel.x2 is None else _choose(kernel, len(kernel.x2))
    part = kernel.among(rows, None if kernel.x2 is None else others, "diagonal")
    by_output = compute(part)
    entries = (K[rows] if kernel.alone else K[rows[:, None], others]).double()
    for found, right in zip(entries.flatten(), by_output.double().sum(-1).flatten(), strict=True):
        yield Finding(float(found), float(right), float(entries.abs().max()))
    yield from findings(part, by_output, compute)


def _groups(kernel: Kernel) -> Iterator[list[Tensor]]:
    """Weights of the outputs; the kernel holds the sum over those of a group."""
    o = kernel.plan.outputs
    if kernel.outputs == "full":
        yield [torch.randn(o, generator=_generator(1), dtype=torch.float64)]
    elif kernel.outputs == "diagonal":
        for i in range(o) if o <= _OUTPUTS else torch.randperm(o, generator=_generator(2))[:2].tolist():
            yield [_single(i, o)]
    else:
        yield [_single(i, o) for i in kernel.wanted]


def _between(kernel: Kernel, entries: Tensor, c: Tensor) -> Tensor:
    """Entries of the kernel between weighted outputs."""
    if kernel.outputs == "full":
        return entries @ c @ c
    return entries[..., int(c.argmax())] if kernel.outputs == "diagonal" else entries


def _single(i: int, o: int) -> Tensor:
    c = torch.zeros(o, dtype=torch.float64)
    c[i] = 1
    return c


def _pairs(kernel: Kernel) -> list[_Pair]:
    """The pairs of samples to compare."""
    x1, x2 = kernel.x1, kernel.x2
    rows = _choose(kernel, len(x1))
    if kernel.alone:  # each in the company of the others
        company = torch.randperm(len(x1), generator=_generator(0))[:_ALL]
        units = torch.eye(len(company), dtype=torch.float64)[:_FEW]
        return [(each, each) for each in (_Samples(x1, company, unit) for unit in units)]
    some, alone = _weighed(x1, rows, 4), _weighed(x1, rows[:1], 3)
    if x2 is None:
        return [(some, some), (some, alone), (alone, alone)]
    others = _weighed(x2, _choose(kernel, len(x2)), 5)
    return [(some, others), (alone, others)]


def _choose(kernel: Kernel, n: int) -> Tensor:
    """Numbers of some inputs of n, in random order, no more than a pass of the kernel has."""
    size = n if n <= _ALL else max(_FEW, min(n // _SHARE, kernel.passes))
    return torch.randperm(n, generator=_generator(0))[:size]


def _weighed(x: Tensor, rows: Tensor, seed: int) -> _Samples:
    return _Samples(x, rows, torch.randn(len(rows), generator=_generator(seed), dtype=torch.float64))


def _generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def _products(network: Network, pairs: list[_Pair], groups: list[list[Tensor]]) -> list[list[tuple[float, float]]]:
    """For every group: what the kernel (or its change) between samples should be, and the size of its terms."""
    members = {id(each): each for pair in pairs for each in pair}
    with differentiable(), telling(network.module, pairs[0][0].x[:1]):
        outputs = {key: _output(network, each) for key, each in members.items()}
        found = []
        for group in groups:
            totals = torch.zeros(len(pairs), 2, dtype=torch.float64)
            for c in group:
                gradients = {key: _measured(network, outputs[key], each, c) for key, each in members.items()}
                values = [_product(network, gradients[id(one)], gradients[id(other)]) for one, other in pairs]
                totals += torch.tensor(values, dtype=torch.float64)
            found.append([(right, size) for right, size in totals.tolist()])
    return found


def _measured(network: Network, output: Tensor, samples: _Samples, c: Tensor) -> _Gradients:
    g, moved = _gradient(network, output, samples, c)
    length, speed = (_inner(network, each, each) ** 0.5 if each else 0.0 for each in (g, moved))
    return _Gradients(g, moved, length, speed)


def _product(network: Network, one: _Gradients, other: _Gradients) -> tuple[float, float]:
    if network.direction is None:
        found = one.length**2 if one is other else _inner(network, one.g, other.g)
        return found, one.length * other.length
    found = _inner(network, one.moved, other.g) + _inner(network, one.g, other.moved)
    return found, one.speed * other.length + one.length * other.speed


def _inner(network: Network, g: list[Tensor], h: list[Tensor]) -> float:
    """sum_p scale_p <g_p, h_p>.

    torch adds by halves, so that sums in single precision are right to a few of its digits, whatever their length.
    """
    parts = ((a * b).sum(dtype=torch.promote_types(a.dtype, torch.float32)) for a, b in zip(g, h, strict=True))
    return sum(network.scales[name] * float(part) for name, part in zip(network.parameters, parts, strict=True))


def _output(network: Network, samples: _Samples) -> Tensor:
    x = samples.x[samples.rows]
    return apply(network, x, network.parameters)


def _gradient(network: Network, output: Tensor, samples: _Samples, c: Tensor) -> tuple[list[Tensor], list[Tensor]]:
    """The gradient of the weighted outputs, by a plain backward pass, and its derivative along the direction."""
    parameters, direction = list(network.parameters.values()), network.direction
    weights = (samples.weights[:, None] * c).to(output)
    g = gradient((output * weights).sum(), parameters, create_graph=direction is not None and not network.steps)
    if direction is None:
        return g, []
    if network.steps:
        return g, _by_steps(network, samples, weights)
    along = torch.stack([(each * direction[name]).sum() for name, each in zip(network.parameters, g, strict=True)])
    return [each.detach() for each in g], gradient(along.sum(), parameters)


def _by_steps(network: Network, samples: _Samples, weights: Tensor) -> list[Tensor]:
    """The derivative of the gradient along the direction, by a central difference."""
    assert network.direction is not None
    length, speed = (
        sum(float(each.detach().double().square().sum()) for each in some.values()) ** 0.5
        for some in (network.parameters, network.direction)
    )
    step = network.steps * torch.finfo(weights.dtype).eps ** 0.5 * length / (speed or 1.0)
    found = []
    for sign in (step, -step):
        moved = {
            name: (each.detach() + sign * network.direction[name]).requires_grad_()
            for name, each in network.parameters.items()
        }
        output = apply(network, samples.x[samples.rows], moved)
        found.append(gradient((output * weights).sum(), list(moved.values())))
    return [(one - other) / (2 * step) for one, other in zip(*found, strict=True)]


def _rounding(kernel: Kernel, eps: float) -> float:
    """How far a batch's gradient is from the sum of its samples' gradients; 0 if rounding does not explain it."""
    samples, c = _weighed(kernel.x1, _choose(kernel, len(kernel.x1)), 4), torch.ones(kernel.plan.outputs).double()
    singles = [_Samples(kernel.x1, samples.rows[[a]], samples.weights[[a]]) for a in range(len(samples.rows))]
    network = replace(kernel.network, direction=None)
    with differentiable():
        together, *apart = (_gradient(network, _output(network, each), each, c)[0] for each in (samples, *singles))
    gaps = [whole - sum(parts) for whole, *parts in zip(together, *apart, strict=True)]
    off, size = _inner(network, gaps, gaps) ** 0.5, _inner(network, together, together) ** 0.5
    return off / size if off <= eps ** (1 / 3) * size else 0.0


def _reason(kernel: Kernel) -> str:
    """Why a module fails for which two ways of differentiating do not agree."""
    x, module = kernel.x1[_choose(kernel, len(kernel.x1))], kernel.network.module
    with differentiable():
        first, alone = (apply(kernel.network, each, kernel.network.parameters) for each in (x, x[:1]))
        unlike = why_unlike(kernel.network, x, first, [alone])
    return unlike or (
        "its outputs agree and its derivatives do not, so that these are not those of a function of one sample (custom "
        f"derivatives of {type(module).__name__} or of its layers, samples that meet in the backward pass only?); with "
        "check=False the first number is returned"
    )

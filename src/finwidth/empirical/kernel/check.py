r"""A check of the kernel by backward passes of the user's own module, which share no code with how K was found.

Let s weigh some samples and c the outputs. The gradient of sum_ai s_a c_i N_i(x_a) is g = J^T (s x c): one plain
backward pass of the module on a batch of those samples. Whatever became of layers, blocks and rules on the way to K,
sum_abij s_a c_i K_ij(x_a, x_b) c_j t_b = sum_p scale_p g_p h_p, with h the gradient for t and c. It is taken for a
random sample of the inputs, in random order, and for one input alone; for random c, or for single outputs where K holds
no pairs of them. docs/empirical-ntk.md says how small a fault is found. The change of K along a step v is held against
the same with (Hv)_p, the derivative of g along v, in the place of one gradient and then of the other.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import TypeAlias

import torch

from finwidth.empirical.kernel.batch import Batch
from finwidth.empirical.kernel.calls import (
    MeasuredModule,
    apply,
    coarsest,
    differentiable,
    gradient,
    telling,
    unpack_dual,
)
from finwidth.empirical.kernel.computation import KernelJob
from finwidth.empirical.kernel.gradients import CHANCE, MEETING, near, why_unlike
from finwidth.empirical.kernel.working_memory import FEW, checked_inputs, company_size, parameters_at_once
from finwidth.errors import FinwidthError

Tensor = torch.Tensor
Compute: TypeAlias = Callable[[KernelJob], tuple[Tensor, KernelJob]]
_EXACT = {torch.float32, torch.float64}  # types of which sums are not too coarse
_RUN = 2**20  # numbers of gradients whose products are added up at once
_MANY = 64  # inputs from which on some are passed again, fewer all
_LOOKED_AT = 256  # numbers of an input by which it is told which are alike
_PAIRS = 16  # a trace of up to so many outputs is held against all pairs of them
_OUTPUTS = 4  # up to so many outputs are taken one by one, otherwise 2 of them


@dataclass(frozen=True)
class Discrepancy:
    """A number of the kernel beside what it should be, and the size that its error is relative to."""

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

    x: Batch
    rows: Tensor
    weights: Tensor


Weighted: TypeAlias = list[tuple[Batch, Tensor]]
_Pair: TypeAlias = tuple[_Samples, _Samples]


@dataclass(frozen=True, eq=False)
class _Gradients:
    """Gradients by some parameters, their derivatives along the direction, and the squared lengths of both by group."""

    g: Mapping[str, Tensor]
    moved: Mapping[str, Tensor]
    length: Tensor
    speed: Tensor


def checked(job: KernelJob, compute: Compute, *, check: bool) -> Tensor:
    """The kernel by ``compute``; with ``check`` by the general route, if it is not what plain backward passes say.

    Raises
    ------
    FinwidthError
        If the general route does not agree with them either; it says what was seen.
    """
    seen = ""
    for general in (False, True):
        K, job = compute(job.generalised() if general else job)
        if not check:
            return K
        if job.plan.general:
            _check_company(job)
        _check_passes(job)
        wrong = worst(job, K, [compute(each) for each in by_output(job)])
        if wrong is None:
            return K
        seen = f"{wrong.found:.7g} sample by sample, and {wrong.right:.7g} by a backward pass of the module"
    raise FinwidthError(f"a number of the kernel is {seen} on several samples: {_reason(job)}")


def by_output(job: KernelJob) -> list[KernelJob]:
    """The kernel of the outputs at some of the inputs, if this one is a trace of many; otherwise none.

    Of more than one, if all gradients are known that it is made of.
    """
    known = job.known is not None and not job.known.pulls and not job.plan.general
    if job.outputs != "trace" or job.plan.outputs <= (1 if known else _OUTPUTS):
        return []
    others = None if job.x2 is None else _choose(job, len(job.x2))
    return [job.among(_choose(job, len(job.x1)), others, "full" if job.plan.outputs <= _PAIRS else "diagonal")]


def _check_company(job: KernelJob) -> None:
    """Raise FinwidthError if a sample's output in the whole batch is not that in half of it.

    Gradients that are formed sample by sample do not see how a batch with a rare sample in it treats the others.
    """
    for x in job.sets:
        size = company_size(job)
        order = torch.arange(len(x)) if len(x) <= size else torch.randperm(len(x), generator=_seeded(6))
        for places in torch.split(order, size):
            some = x[places]
            _check_again(job.network, some, _outputs_of(job.network, some), _halves(some))


def _check_passes(job: KernelJob) -> None:
    """Raise FinwidthError if the outputs of inputs in the kernel's passes are not those in another, in other company.

    That takes at most a twentieth of the passes, forward and backward, that the kernel took, from 64 inputs on. Where
    the gradients of all inputs are compared, their outputs need not be.
    """
    for second, x in enumerate(job.sets):
        keys = sorted(key for key, noted in job.passed.items() if noted and key[0] == bool(second))
        passes = [[unpack_dual(each)[0] for each in job.passed[key]] for key in keys]
        compared = FEW if job.sizes.diagonal_only else checked_inputs(job, len(x))
        if not passes or len(x) <= compared:
            continue
        for first, *others in passes:
            if not all(_alike(job.network, x, first, each) for each in others):
                raise FinwidthError(CHANCE)
        _check_again(job.network, x, torch.cat([first for first, *_ in passes]), _other_passes(job, x))


def _other_passes(job: KernelJob, x: Batch) -> list[Tensor]:
    """The places of inputs that are passed again: all, if they are few or the kernel has many outputs, or some."""
    # A forward pass, of one input in so many; a pass of the kernel goes back once for each output, for twice its time.
    every = 1 if len(x) < _MANY else max(1, 24 // (1 + len(job.entries.outputs)))
    chosen = _halves(x) if every == 1 else [_by_likeness(x)[::every]]
    return [part for each in chosen for part in torch.split(each, job.layout.inputs_per_pass)]


def _halves(x: Batch) -> list[Tensor]:
    """The places of the inputs in two parts, of which each has one of two that are alike."""
    order = _by_likeness(x)
    return [each for each in (order[::2], order[1::2]) if len(each)]


def _by_likeness(x: Batch) -> Tensor:
    """The places of the inputs, those that are alike one after another."""
    keys = torch.zeros(len(x), dtype=torch.float64)
    for each in x.tensors:
        numbers = (torch.view_as_real(each) if each.is_complex() else each).reshape(len(x), -1)
        some = numbers[:, :: max(1, numbers.shape[1] // _LOOKED_AT)].cpu().double()
        keys += some @ torch.randn(some.shape[1], generator=_seeded(6), dtype=torch.float64)
    return keys.argsort()


def _check_again(network: MeasuredModule, x: Batch, outputs: Tensor, passes: Iterable[Tensor]) -> None:
    """Raise FinwidthError if inputs at these places have other outputs in passes of their own than these."""
    for some in passes:
        batch = x[some]
        again = _outputs_of(network, batch)
        if not _alike(network, x, outputs[some], again):
            raise FinwidthError(MEETING if near(again, _outputs_of(network, batch)) else CHANCE)


def _alike(network: MeasuredModule, x: Batch, one: Tensor, other: Tensor) -> bool:
    """Whether outputs are the same but for rounding, by the coarsest type that the module computes in."""
    return near(one, other) or near(one, other, coarsest(network, x[:2]))


def _outputs_of(network: MeasuredModule, x: Batch) -> Tensor:
    """The module's outputs, without a graph if it does not need one."""
    try:
        with torch.no_grad():
            return apply(network, x, network.parameters)
    except FinwidthError:
        with differentiable():
            return apply(network, x, network.parameters).detach()


def worst(job: KernelJob, K: Tensor, parts: list[tuple[Tensor, KernelJob]]) -> Discrepancy | None:
    """The number with the largest error, if rounding does not explain it; ``parts`` are the kernels of `by_output`."""
    eps = torch.finfo(job.plan.dtype).eps
    found = list(discrepancies(job, job.network, K, parts))
    if job.network.direction is not None and eps == torch.finfo(torch.float64).eps:
        coarse = coarsest(job.network, job.x1[:2])
        if coarse == eps:
            found, strange = _by_differences(job, K, parts, found, coarse ** (1 / 4))
            if strange:
                return max(strange, key=lambda each: each.error)
    most = max(found, key=lambda each: each.error, default=Discrepancy(0.0, 0.0, 1.0))
    if most.error <= seen_error(eps) or most.error <= 10 * _rounding(job, eps):
        return None
    return None if most.error <= seen_error(coarsest(job.network, job.x1[:2])) else most


def _by_differences(
    job: KernelJob, K: Tensor, parts: list[tuple[Tensor, KernelJob]], found: list[Discrepancy], error: float
) -> tuple[list[Discrepancy], list[Discrepancy]]:
    """The discrepancies that central differences confirm; where they do not, those by differences that are wrong.

    A backward pass through backward passes is not their derivative where these are none of the values (hooks, gradient
    reversal), and it may be how K was found. A difference is, but for its own error.
    """
    sure: list[Discrepancy] = []
    strange: list[Discrepancy] = []
    for steps in (1.0, 0.3, 0.1):  # where a kink is in the way of one, it is rarely in that of a shorter one
        others = list(discrepancies(job, replace(job.network, steps=steps), K, parts))
        pairs = list(zip(found, others, strict=True))
        sure = [one for one, other in pairs if abs(one.right - other.right) <= error * other.size]
        strange = [other for one, other in pairs if one not in sure and other.error > error]
        if not strange:
            break
    return sure, strange


def seen_error(eps: float) -> float:
    """The relative error that is told from rounding."""
    return float(min(0.3, 10 * eps ** (2 / 3)))


def discrepancies(
    job: KernelJob, network: MeasuredModule, K: Tensor, parts: list[tuple[Tensor, KernelJob]]
) -> Iterator[Discrepancy]:
    """Numbers of the kernel, and the same by backward passes; of a trace those of `by_output`, and their sums.

    Where groups of parameters are told apart, each has numbers of its own.
    """
    for part_K, part in parts:
        rows, others = _choose(job, len(job.x1)), _choose(job, len(job.x1 if job.x2 is None else job.x2))
        for whole, piece in zip(_by_parameters(job, K), _by_parameters(part, part_K), strict=True):
            entries = (whole[rows] if job.sizes.diagonal_only else whole[rows[:, None], others]).double()
            each_output = piece.diagonal(dim1=-2, dim2=-1) if part.outputs == "full" else piece
            totals, most = each_output.double().sum(-1).flatten().tolist(), float(entries.abs().max())
            for found, total in zip(entries.flatten().tolist(), totals, strict=True):
                yield Discrepancy(found, total, most)
        job, K = part, part_K
    pairs, groups = _sample_pairs(job), list(_groups(job))
    for group, values in zip(groups, _backward_products(job, network, pairs, groups), strict=True):
        for pair, (rights, sizes) in zip(pairs, values, strict=True):
            least = torch.finfo(job.plan.dtype).eps * float(sizes.sum())  # of a group whose gradients are rounding
            for each, right, size in zip(_by_parameters(job, K), rights.tolist(), sizes.tolist(), strict=True):
                terms = _terms(job, each, pair, group[0].to(K.device))
                yield Discrepancy(float(terms.sum()), right, max(size, least, float(terms.abs().sum())))


def _by_parameters(job: KernelJob, K: Tensor) -> Tensor:
    """The kernels of all groups of parameters, in the first dimension."""
    return K if job.groups else K[None]


def _terms(job: KernelJob, K: Tensor, pair: _Pair, c: Tensor) -> Tensor:
    """The weighted entries of the kernel between two sets of samples."""
    one, other = pair
    if job.sizes.diagonal_only:
        entries, weights = K[one.rows], one.weights * other.weights
    else:
        entries, weights = K[one.rows[:, None], other.rows], one.weights[:, None] * other.weights
    return _between(job.outputs, entries.double(), c) * weights.to(K.device)


def _groups(job: KernelJob) -> Iterator[list[Tensor]]:
    """Weights of the outputs; the kernel holds the sum over those of a group."""
    o = job.plan.outputs
    if job.outputs == "full":
        yield [torch.randn(o, generator=_seeded(1), dtype=torch.float64)]
    elif job.outputs == "diagonal":
        for i in range(o) if o <= _OUTPUTS else torch.randperm(o, generator=_seeded(2))[:2].tolist():
            yield [_single(i, o)]
    else:
        yield [_single(i, o) for i in job.entries.outputs]


def _between(outputs: str | int, entries: Tensor, c: Tensor) -> Tensor:
    """Entries of the kernel between weighted outputs."""
    if outputs == "full":
        return entries @ c @ c
    return entries[..., int(c.argmax())] if outputs == "diagonal" else entries


def _single(i: int, o: int) -> Tensor:
    c = torch.zeros(o, dtype=torch.float64)
    c[i] = 1
    return c


def _sample_pairs(job: KernelJob) -> list[_Pair]:
    """The pairs of samples to compare."""
    x1, x2 = job.x1, job.x2
    rows = _choose(job, len(x1))
    if job.sizes.diagonal_only:  # each in the company of the others
        size = checked_inputs(job, len(x1), company=True)
        company = torch.randperm(len(x1), generator=_seeded(0))[:size]
        units = torch.eye(size, dtype=torch.float64)[:FEW]
        return [(each, each) for each in (_Samples(x1, company, unit) for unit in units)]
    some, alone = _weighted_samples(x1, rows, 4), _weighted_samples(x1, rows[:1], 3)
    if x2 is None:
        return [(some, some), (some, alone), (alone, alone)]
    others = _weighted_samples(x2, _choose(job, len(x2)), 5)
    return [(some, others), (alone, others)]


def _choose(job: KernelJob, n: int) -> Tensor:
    """Numbers of some inputs of n, in random order."""
    return torch.randperm(n, generator=_seeded(0))[: checked_inputs(job, n)]


def _weighted_samples(x: Batch, rows: Tensor, seed: int) -> _Samples:
    return _Samples(x, rows, torch.randn(len(rows), generator=_seeded(seed), dtype=torch.float64))


def _seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def _backward_products(
    job: KernelJob, network: MeasuredModule, pairs: list[_Pair], groups: list[list[Tensor]]
) -> list[list[Tensor]]:
    """For every group and pair what the kernel (or its change) should be, and the size of its terms.

    Shape (2, groups of parameters).
    """
    members = {id(each): each for pair in pairs for each in pair}
    batches = {id(each.rows): each.x[each.rows] for each in members.values()}
    parts = parameters_at_once(job, len(members), sum(map(len, batches.values())))
    with differentiable(), telling(network.module, pairs[0][0].x[:1]):
        outputs = {key: apply(network, batch, network.parameters) for key, batch in batches.items()}
        passed = {key: (outputs[id(each.rows)], each) for key, each in members.items()}
        found = []
        for group in groups:
            totals: list[Tensor] = []
            for c in group:
                by_part = [_products_by(network, names, passed, pairs, c) for names in parts]
                sums = torch.stack(by_part).sum(0)
                values = [_product_and_size(network, each) for each in sums]
                totals = list(map(torch.add, totals, values)) if totals else values
            found.append(totals)
    return found


def check_sum(job: KernelJob, pairs: list[tuple[Weighted, Weighted]], found: Tensor) -> None:
    """Raise FinwidthError unless a sum over a kernel's entries is what backward passes say.

    For kernels that are put together of the kernels of jobs, of which ``job`` is one. A pair has batches for rows and
    for columns, with the weights of their numbers, shapes (n, numbers); ``found`` is the sum over all pairs, for every
    group of parameters.
    """
    network, first = job.network, pairs[0][0][0][0]
    with differentiable(), telling(network.module, first):
        values = []
        for one, other in pairs:
            longest = max(len(x) for x, _ in (*one, *other))
            parts = parameters_at_once(job, 2 if other is one else 3, longest)  # one more as they are added up
            sums = torch.stack([_products_of_sums(network, names, one, other) for names in parts]).sum(0)
            values.append(_product_and_size(network, sums))
        right, size = torch.stack(values).sum(0)
    off = float((found.double().cpu() - right).abs().max() / size.sum())
    if off > torch.finfo(job.plan.dtype).eps ** 0.5 and off > coarsest(network, first) ** 0.5:
        raise FinwidthError(
            f"a sum of the kernel is {found.tolist()} by its parts, and {right.tolist()} by a backward pass: "
            f"{_reason(job)}"
        )


def _products_of_sums(network: MeasuredModule, names: list[str], one: Weighted, other: Weighted) -> Tensor:
    """As `_products`, of the gradients of sums by some parameters."""
    mine = _measured(network, names, _sum_of_gradients(network, names, one), [])
    theirs = mine if other is one else _measured(network, names, _sum_of_gradients(network, names, other), [])
    return _products(network, mine, theirs)


def _sum_of_gradients(network: MeasuredModule, names: list[str], terms: Weighted) -> list[Tensor]:
    """The gradient of the sum of all numbers with their weights, by some parameters."""
    total: list[Tensor] = []
    for x, weights in terms:
        output = apply(network, x, network.parameters)
        own = network.combinations
        plain = weights if own is None else torch.stack([own.pulled(each, output.shape[1]) for each in weights])
        g = gradient(output, [network.parameters[name] for name in names], plain.to(output))
        total = list(map(torch.add, total, g)) if total else g
    return total


def _products_by(
    network: MeasuredModule,
    names: list[str],
    passed: Mapping[int, tuple[Tensor, _Samples]],
    pairs: list[_Pair],
    c: Tensor,
) -> Tensor:
    """As `_products`, of every pair, by some parameters."""
    gradients: dict[int, _Gradients] = {}
    for key, each in passed.items():
        g, moved = _gradient(network, names, *each, c)
        if network.steps:
            moved = _by_steps(network, *each, c)
        gradients[key] = _measured(network, names, g, moved)
    return torch.stack([_products(network, gradients[id(one)], gradients[id(other)]) for one, other in pairs])


def _measured(network: MeasuredModule, names: list[str], g: list[Tensor], moved: list[Tensor]) -> _Gradients:
    """Gradients and their derivatives along the direction (none without one), with their squared lengths."""
    rates, changes = (dict(zip(names, each, strict=bool(each))) for each in (g, moved))
    squares = (_probe_products(network, each, each) for each in (rates, changes))
    return _Gradients(rates, changes, *squares)


def _products(network: MeasuredModule, one: _Gradients, other: _Gradients) -> Tensor:
    """What `_product_and_size` takes, shape (5, groups); of several parts of the parameters it adds up."""
    if network.direction is None:
        found = one.length if one is other else _probe_products(network, one.g, other.g)
    else:
        found = _probe_products(network, one.moved, other.g) + _probe_products(network, one.g, other.moved)
    return torch.stack([found, one.length, one.speed, other.length, other.speed])


def _product_and_size(network: MeasuredModule, sums: Tensor) -> Tensor:
    """A product of two gradients, or its derivative along the direction, and the size of its terms, for every group."""
    found = sums[0]
    length, speed, length_, speed_ = sums[1:].sqrt()
    size = length * length_ if network.direction is None else speed * length_ + length * speed_
    return torch.stack([found, size])


def _probe_products(network: MeasuredModule, g: Mapping[str, Tensor], h: Mapping[str, Tensor]) -> Tensor:
    """sum_p scale_p <g_p, h_p> over the parameters of each group, in runs: a long sum of numbers loses digits."""
    groups = network.groups or {}
    found = [0.0] * (1 + max(groups.values(), default=0))
    for name, each in g.items():
        place, kind = groups.get(name, 0), each.dtype if each.dtype in _EXACT else torch.float32
        for a, b in zip(torch.split(each.flatten(), _RUN), torch.split(h[name].flatten(), _RUN), strict=True):
            found[place] += network.scales[name] * float(torch.dot(a.to(kind), b.to(kind)))
    return torch.tensor(found, dtype=torch.float64)


def _gradient(
    network: MeasuredModule, names: list[str], output: Tensor, samples: _Samples, c: Tensor
) -> tuple[list[Tensor], list[Tensor]]:
    """The gradient of the weighted outputs by some parameters, by a plain backward pass.

    And its derivative along the direction by one, for which they are all.
    """
    parameters, direction = [network.parameters[name] for name in names], network.direction
    weights = _output_weights(network, samples, c, output)
    g = gradient(output, parameters, weights, create_graph=direction is not None and not network.steps)
    if direction is None or network.steps:
        return g, []
    along = torch.stack([(each * direction[name]).sum() for name, each in zip(names, g, strict=True)])
    return [each.detach() for each in g], gradient(along.sum(), parameters)


def _output_weights(network: MeasuredModule, samples: _Samples, c: Tensor, output: Tensor) -> Tensor:
    """The weights of the outputs of samples in a sum of the kernel's numbers, of which each has its weight in ``c``."""
    by_output = c if network.combinations is None else network.combinations.pulled(c, output.shape[1])
    return (samples.weights[:, None] * by_output).to(output)


def _by_steps(network: MeasuredModule, output: Tensor, samples: _Samples, c: Tensor) -> list[Tensor]:
    """The derivative of the gradient along the direction, by a central difference."""
    assert network.direction is not None
    weights = _output_weights(network, samples, c, output)
    length, speed = (
        sum(float(each.detach().double().square().sum()) for each in some.values()) ** 0.5
        for some in (network.parameters, network.direction)
    )
    step = network.steps * torch.finfo(weights.dtype).eps ** 0.5 * length / (speed or 1.0)
    found, parameters = [], list(network.parameters.values())
    for sign in (step, -step):
        with _moved(network, sign):  # until after the backward pass, in which layers may be computed again (checkpoint)
            found.append(gradient(apply(network, samples.x[samples.rows], network.parameters), parameters, weights))
    return [(one - other) / (2 * step) for one, other in zip(*found, strict=True)]


@contextmanager
def _moved(network: MeasuredModule, step: float) -> Iterator[None]:
    """Inside, the module's parameters are those after a step along the direction, with their hooks."""
    assert network.direction is not None
    before = {name: each.data for name, each in network.parameters.items()}
    try:
        for name, each in network.parameters.items():
            each.data = before[name] + step * network.direction[name]
        yield
    finally:
        for name, each in network.parameters.items():
            each.data = before[name]


def _rounding(job: KernelJob, eps: float) -> float:
    """How far a batch's gradient is from the sum of its samples' gradients; 0 if rounding does not explain it."""
    samples, c = _weighted_samples(job.x1, _choose(job, len(job.x1)), 4), torch.ones(job.plan.outputs).double()
    singles = [_Samples(job.x1, samples.rows[[a]], samples.weights[[a]]) for a in range(len(samples.rows))]
    network, squares = replace(job.network, direction=None), torch.zeros(2, dtype=torch.float64)
    with differentiable():
        passed = [(apply(network, each.x[each.rows], network.parameters), each) for each in (samples, *singles)]
        for names in parameters_at_once(replace(job, network=network), 3, 2 * len(singles)):
            together = _gradient(network, names, *passed[0], c)[0]
            total = _gradient(network, names, *passed[1], c)[0]
            for each in passed[2:]:
                total = list(map(torch.add, total, _gradient(network, names, *each, c)[0]))
            gaps = list(map(torch.sub, together, total))
            squares += torch.stack([_measured(network, names, each, []).length.sum() for each in (gaps, together)])
    off, size = squares.sqrt().tolist()
    return off / size if off <= eps ** (1 / 3) * size else 0.0


def _reason(job: KernelJob) -> str:
    """Why two ways of differentiating a module may not agree."""
    x, module = job.x1[_choose(job, len(job.x1))], job.network.module
    with differentiable():
        first, alone = (apply(job.network, each, job.network.parameters) for each in (x, x[:1]))
        unlike = why_unlike(job.network, x, first, [(torch.arange(1), alone)])
    return unlike or (
        "its outputs agree and its derivatives do not, so that these are not those of a function of one sample (custom "
        f"derivatives of {type(module).__name__} or of its layers, samples that meet in the backward pass only?); with "
        "check=False the first number is returned"
    )

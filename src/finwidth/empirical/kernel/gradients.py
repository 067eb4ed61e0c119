"""From inputs to the factors of every parameter's gradients: one forward pass, and one backward pass for all outputs.

A `GradientPlan` is made once from a few of the inputs (`plan_gradients`): where each operation keeps its samples, and
which parameters go the general way, by torch.func or one sample and output at a time.  `gradients` then follows it for
any inputs, and raises OtherRouteError if a pass does not go as planned.
"""

from __future__ import annotations

import contextlib
import math
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache, reduce
from typing import NamedTuple, TypeAlias

import torch

from finwidth.empirical.kernel.batch import Batch
from finwidth.empirical.kernel.calls import (
    FirstPass,
    MeasuredModule,
    apply,
    coarsest,
    differentiable,
    each_sample,
    making,
    saving,
    telling,
)
from finwidth.empirical.kernel.factors import DenseFactor, FactorSize, GradientFactor, OuterFactor
from finwidth.empirical.kernel.forming import ALONE, TRACED, WAYS, formed
from finwidth.empirical.kernel.layout import Sizes
from finwidth.empirical.kernel.operations import EXCHANGED, Expansion, factor, together
from finwidth.empirical.kernel.recording import DIFFERENTIATED, Record, Recorder, Signature, Use, numbers_of
from finwidth.empirical.kernel.weights import (
    OtherRouteError,
    Weights,
    connected,
    in_rows,
    input_as,
    parameter_gradients,
    parameters_behind,
    pullback,
    rows_of_products,
    size_in_rows,
)
from finwidth.errors import FinwidthError

Tensor = torch.Tensor
_AHEAD = torch.tensor([1.0, 2.0, 4.0])  # weights of three samples that tell them apart
Site: TypeAlias = tuple[type, int, str | None, str | None]  # the kind, groups, weight and bias that uses have in common

_FEW_BYTES = 2**22  # of all gradients together that are formed at once rather than in factors
_OTHER_ROUTE = "the module takes another route for other samples"
_NOWHERE = "used where the samples have no dimension of their own"
MEETING = (
    "the module's output for one sample depends on the other samples of its batch, or on its place in it (batch "
    "statistics, padding to the longest, samples not in the first dimension?), so that no sample has a gradient of its "
    "own; call module.eval() first, or wrap the module in one that takes and returns samples in the first dimension"
)

CHANCE = (
    "two passes of the same inputs through the module differ: it draws random numbers (dropout?) or changes itself; "
    "call module.eval() first"
)


@dataclass(frozen=True)
class Axes:
    """The dimension of the samples in an operation's input and in its result, which has so many entries of each.

    The entries of a sample come one after another, or (``strided``) the samples do, once for each of the entries; or
    (``sorted``) samples and entries have an order of their own, which the gradients of every pass tell.
    """

    input: int
    result: int
    times: int
    strided: bool = False
    sorted: bool = False

    def in_order(self, each: Tensor, dim: int) -> Tensor:
        """With the entries of a sample one after another along this dimension."""
        if not self.strided:
            return each
        return torch.unflatten(each, dim, (self.times, -1)).transpose(dim, dim + 1).flatten(dim, dim + 1)

    def first(self, each: Tensor, dim: int) -> Tensor:
        """The entries of the first sample along this dimension."""
        return self.in_order(each, dim).narrow(dim, 0, self.times)


Places: TypeAlias = tuple[tuple[Signature, Axes | None], ...]


@dataclass(frozen=True)
class GradientPlan:
    """How to find the gradients of a module's parameters.

    ``uses`` has, for every recorded use in order, its signature and the places of its samples; ``pulled`` names the
    parameters whose gradients are pulled back from those by weights that are made of them; ``general`` names the
    parameters whose gradients are formed, with the reason; ``ways`` are the ways to form them (`WAYS`), of which those
    that fail are removed; ``batched``: one backward pass serves all outputs; ``outputs``: how many the module has;
    ``mean``: how many numbers a typical gradient has for one sample and output; ``rows`` names the tables whose
    gradients are kept by their rows, with how many of them a product with the table adds at a sample.
    """

    uses: Places
    pulled: frozenset[str]
    general: Mapping[str, str]
    batched: bool
    ways: list[str]
    outputs: int
    mean: int
    dtype: torch.dtype
    rows: Mapping[str, int] = field(default_factory=dict)

    @property
    def numbers(self) -> frozenset[int]:
        """The numbers of the recorded uses."""
        return frozenset(number for (number, *_), _ in self.uses)


class Whole(NamedTuple):
    """What a kernel is to be of its inputs: outputs, and memory; and whether all may make the plan, if they are few."""

    outputs: range
    memory: int
    at_once: bool


@dataclass(frozen=True, eq=False)
class WholePass:
    """A pass of all inputs, by which a plan was made: the factors of the gradients that its uses give; its output."""

    network: MeasuredModule
    uses: Places
    x: Batch
    outputs: range
    factors: list[GradientFactor]
    output: Tensor

    def serves(self, network: MeasuredModule, plan: GradientPlan, x: Batch, outputs: range) -> bool:
        """Whether these are factors of the gradients of this network, by this plan, at these inputs."""
        same = self.network is network and self.uses is plan.uses and self.x is x
        return same and self.outputs == outputs

    @property
    def pulls(self) -> bool:
        """Whether some are still to be pulled back from weights to parameters."""
        return any(isinstance(each, OuterFactor) and each.pull is not None for each in self.factors)

    def part(self, rows: Tensor, x: Batch) -> WholePass:
        """The same of some of the inputs, which are x."""
        return replace(self, x=x, factors=[each.part(rows) for each in self.factors], output=self.output[rows])


@dataclass(frozen=True, eq=False)
class _Few:
    """Passes of one input and of two, the same one second, and how many numbers autograd keeps of each sample."""

    alone: Tensor
    recorder: Recorder
    output: Tensor
    saved: int


def plan_gradients(
    network: MeasuredModule, x: Batch, three: Tensor, first: FirstPass | None = None, whole: Whole | None = None
) -> tuple[GradientPlan, Sizes, WholePass | None]:
    """Make the plan from three inputs, and refuse a module whose output for one sample depends on others, or on chance.

    ``three`` are the places of these among the inputs x, different ones if possible; ``whole`` says what is wanted.
    Passes of two and of three samples tell where the samples are: in the dimension that grows from 2 to 3. The two are
    in reverse order, so that they and a ``first`` pass, of one alone, tell whether a sample's output depends on its
    company or its place. Where all inputs may go in one pass, that takes the place of the pass of three, and has the
    gradients too.
    """
    rows = x[three]
    with differentiable():
        alone, less = _alone(network, rows[:1], first)
        recorder, output, more = _pass_and_saved(network, rows[:2].flip())
        saved = max(0, more - (more // 2 if less is None else less))
        few = _Few(alone, recorder, output, saved // output.element_size())
        if whole is not None and whole.at_once and len(x) > 3 and _in_one_pass(few, len(x), whole):
            plan, sizes, known = _plan(network, few, x, three[:2], whole)
            n = len(x) * len(whole.outputs)
            # A module that splits its batch into chunks takes another route with few inputs; it may follow their plan.
            if _OTHER_ROUTE not in plan.general.values() or few_gradients(network, n, plan.dtype, whole.memory):
                return plan, sizes, known
        alike = whole if whole is not None and _in_one_pass(few, 3, whole) else None
        return *_plan(network, few, rows, torch.arange(2), alike)[:2], None


def few_gradients(network: MeasuredModule, n: int, dtype: torch.dtype, memory: int) -> bool:
    """Whether n gradients by all parameters are few numbers, that are formed at once rather than found in factors."""
    numbers = n * sum(each.numel() for each in network.parameters.values())
    return numbers * dtype.itemsize < min(_FEW_BYTES, memory // 4)


def _in_one_pass(few: _Few, n: int, whole: Whole) -> bool:
    """Whether all n inputs are to go through the module at once, by what is known from two of them."""
    results = [use.shape.numel() // 2 for use in few.recorder.uses]
    sizes = replace(_pass_sizes(few.saved, results, few.output.element_size()), memory=whole.memory)
    return sizes.block(n, len(whole.outputs) + 1).inputs_per_pass == n


def _plan(
    network: MeasuredModule, few: _Few, x: Batch, two: Tensor, whole: Whole | None
) -> tuple[GradientPlan, Sizes, WholePass | None]:
    """The plan by a pass of inputs x, of which those at ``two`` are the few; and its gradients, if they fit."""
    with Recorder(network.parameters) as recorder:
        output = apply(network, x, network.parameters)
    numbers = numbers_of(few.recorder, recorder)
    smaller, pass_ = few.recorder.record(few.output, numbers), recorder.record(output, numbers)
    alone = few.alone
    if output.shape[1:] != alone.shape[1:] or not near(output[two[:1]], alone):
        # Layers may be written out for the record; whether that is right is for the check to say.
        with Recorder(network.parameters):
            alone = apply(network, x[two[:1]], network.parameters)
    _check_output(network, x, output, [(two, few.output.flip(0)), (two[:1], alone)])
    uses, pulled, general = _with_places(network, pass_, _grown_axes(smaller, pass_))
    columns: list[Tensor] = []
    batched = False
    if pass_.uses and len(general) < len(network.parameters):
        rows = _combined(output) if whole is None else each_sample(network, output, whole.outputs)
        with telling(network.module, x):
            columns, batched = pass_.backward_either_way(_with_weighted(rows))
            uses, disordered, orders = _ordered(smaller, pass_, uses, columns)
        general |= disordered
        pass_, columns = _in_order(pass_, columns, uses, orders)
    ways = _ways(network, general, WAYS)
    if {_OTHER_ROUTE, _NOWHERE} & set(general.values()) and not _in_chunks(few.recorder, recorder):
        ways.sort(key=TRACED.__ne__)  # vmap rarely takes what depends on the data so
    results = [use.shape.numel() // len(x) for use in pass_.uses]
    dtype = _common_dtype(network, output)
    sizes = _pass_sizes(few.saved, results, dtype.itemsize)
    plan = GradientPlan(uses, pulled - general.keys(), general, batched, ways, output.shape[1], sizes.mean, dtype)
    if whole is None or not columns:
        one, of_one = _of_one_sample(pass_, uses, [each[:1] for each in columns])
        found = _factors(network, plan, one, of_one, network.parameters) if columns else ([], [])
        return plan, _with_shapes(network, plan, sizes, _shapes(network, plan, pass_, *found)), None
    factors, rough = _factors(network, plan, pass_, [each[:-1] for each in columns], network.parameters)
    plan = replace(plan, rows=_tables_in_rows(network, rough))
    sizes = _with_shapes(network, plan, sizes, _shapes(network, plan, pass_, factors, rough))
    known = None
    if replace(sizes, memory=whole.memory).block(len(x), len(whole.outputs)).bytes(1) <= whole.memory:
        with contextlib.suppress(OtherRouteError):  # which is dealt with where the kernel is computed
            factors += _of_rough(network, plan, pass_, rough, network.parameters)
            known = WholePass(network, plan.uses, x, whole.outputs, factors, output.detach())
    return plan, sizes, known


def _tables_in_rows(network: MeasuredModule, rough: list[Weights]) -> dict[str, int]:
    """The tables whose gradients are kept by their rows, with how many of them a product adds at a sample."""
    found: dict[str, int] = {}
    for weights in rough:
        (key, *others) = weights
        many = rows_of_products(weights[key]) if not others and key in network.parameters else None
        if many is not None:
            found[key] = many
    return found


def _in_chunks(fewer: Recorder, more: Recorder) -> bool:
    """Whether a pass of more samples calls the same as one of fewer, again and again."""
    return more.operations > fewer.operations > 0 and more.operations % fewer.operations == 0


def _check_output(network: MeasuredModule, x: Batch, output: Tensor, others: list[tuple[Tensor, Tensor]]) -> None:
    """Refuse a module whose output has no gradient, or is not that of other passes."""
    if not output.requires_grad:
        raise FinwidthError(
            "the module's output does not depend on its parameters by differentiable operations (detach, no_grad?)"
        )
    unlike = why_unlike(network, x, output, others)
    if unlike:
        raise FinwidthError(unlike)


def _ways(network: MeasuredModule, general: Mapping[str, str], ways: Iterable[str]) -> list[str]:
    """Those of the ways to form gradients that take these parameters, for these reasons."""
    if any(network.parameters[name]._backward_hooks for name in general):  # which copies would not have
        return [ALONE]
    return [each for each in ways if each != TRACED or DIFFERENTIATED not in general.values()]


def _common_dtype(network: MeasuredModule, output: Tensor) -> torch.dtype:
    """The type of all parameters and of the output."""
    return reduce(torch.promote_types, [each.dtype for each in network.parameters.values()], output.dtype)


def _pass_sizes(saved: int, results: list[int], itemsize: int) -> Sizes:
    """What one sample needs without the factors, by what autograd saves of it, and the results of uses, in numbers.

    The mean is how many numbers a typical gradient has.
    """
    mean = max(1, max(saved // 8, sum(results)) // max(1, len(results)))
    return Sizes((), saved, sum(results), max([1, saved // 8, *results]), mean, itemsize)


def _with_shapes(network: MeasuredModule, plan: GradientPlan, sizes: Sizes, shapes: Iterable[FactorSize]) -> Sizes:
    """With the factors that uses give, and the gradients that are formed."""
    general = (FactorSize(1, 0, 0, each) for each in _numbers_by_group(network, plan.general))
    return replace(sizes, shapes=(*shapes, *general))


def _shapes(
    network: MeasuredModule, plan: GradientPlan, pass_: Record, factors: list[GradientFactor], rough: list[Weights]
) -> list[FactorSize]:
    """The sizes of the factors that uses give, and of the gradients that are formed of those by weights."""
    found = [*map(FactorSize.of, factors)]
    for weights in rough:
        key = next(iter(weights))
        if key in plan.rows:
            found.append(size_in_rows(weights[key], plan.rows[key]))
        else:
            names = parameters_behind(plan.pulled, pass_, weights)
            found += [FactorSize(1, 0, 0, each) for each in _numbers_by_group(network, names)]
    return found


def _numbers_by_group(network: MeasuredModule, names: Iterable[str]) -> list[int]:
    """How many numbers some parameters of every group have."""
    numbers = Counter[int]()
    for name in names:
        numbers[network.group(name)] += network.parameters[name].numel()
    return list(numbers.values())


def _grown_axes(two: Record, more: Record) -> list[Axes | None] | None:
    """The batch axis of every use; None if the passes are not of the same uses."""
    if [use.signature for use in two.uses] != [use.signature for use in more.uses]:
        return None
    n, pairs = len(more.output), zip(more.uses, two.uses, strict=True)
    return [_axes(use, smaller, n) for use, smaller in pairs]


def _with_places(
    network: MeasuredModule, pass_: Record, axes: list[Axes | None] | None
) -> tuple[Places, frozenset[str], dict[str, str]]:
    """The uses with their places, the parameters behind computed or shared weights, reasons for the general way."""
    if axes is None:
        return (), frozenset(), dict.fromkeys(network.parameters, _OTHER_ROUTE)
    sites: dict[str, set[Site]] = {}
    general: dict[str, str] = {}
    pulled: set[str] = set()
    for use, place in zip(pass_.uses, axes, strict=True):
        for key in use.views:
            sites.setdefault(key, set()).add(_site(use))
            pulled |= pass_.made_of.get(key, {key} if len(sites[key]) > 1 else set())
        if place is None:
            general |= dict.fromkeys(pass_.behind(use), _NOWHERE)
    general |= pass_.others
    general |= {name: "it has a hook of its own" for name, each in network.parameters.items() if each._backward_hooks}
    uses = tuple((use.signature, place) for use, place in zip(pass_.uses, axes, strict=True))
    return uses, frozenset(pulled), general


def _site(use: Use) -> Site:
    return type(use.rule), getattr(use.rule, "groups", 1), *use.names


def _pass_and_saved(network: MeasuredModule, x: Batch) -> tuple[Recorder, Tensor, int]:
    """A pass, its output, and the bytes that autograd keeps of it."""
    for counting in (saving, making):  # torch.func inside the module takes no hooks
        with contextlib.suppress(FinwidthError, RuntimeError):
            with counting() as kept, Recorder(network.parameters) as recorder:
                output = apply(network, x, network.parameters)
            return recorder, output, sum(kept.values())
    with Recorder(network.parameters) as recorder:
        output = apply(network, x, network.parameters)
    return recorder, output, 4 * output.element_size() * sum(use.shape.numel() for use in recorder.uses)


def _alone(network: MeasuredModule, x: Batch, first: FirstPass | None) -> tuple[Tensor, int | None]:
    """The output of a single sample, and the bytes that autograd keeps of its pass, if they can be counted."""
    if first is not None and first.output is not None:
        return first.output, first.saved
    try:
        with saving() as kept:
            return apply(network, x, network.parameters).detach(), sum(kept.values())
    except (FinwidthError, RuntimeError):
        return apply(network, x, network.parameters).detach(), None


def general_plan(network: MeasuredModule, plan: GradientPlan, ways: list[str]) -> GradientPlan:
    """The plan that forms the gradients of every parameter, in these ways."""
    reasons = dict.fromkeys(network.parameters, "other samples take another route than the first three")
    reasons |= plan.general
    return replace(plan, uses=(), pulled=frozenset(), general=reasons, batched=False, ways=ways)


def plan_whole(network: MeasuredModule, whole: Batch) -> tuple[GradientPlan, Sizes]:
    """Make the plan for a batch that is one sample: all rows of an operation with a parameter are of this sample."""
    with differentiable():
        recorder, output, saved = _pass_and_saved(network, whole)
        parameters = {use.number for use in recorder.uses if _of_parameters(use, recorder.names)}
        one = recorder.record(output, parameters)
        _check_output(network, whole, output, [(torch.arange(1), apply(network, whole, network.parameters))])
        uses, pulled, general = _with_places(network, one, [_all_rows(use) for use in one.uses])
        with telling(network.module, whole):
            columns, batched = one.backward_either_way(_combined(output).expand(2, -1, -1))
        results, dtype = [use.shape.numel() for use in one.uses], _common_dtype(network, output)
        sizes = _pass_sizes(saved // output.element_size(), results, dtype.itemsize)
        ways = _ways(network, general, ["few at once", ALONE])
        plan = GradientPlan(uses, pulled - general.keys(), general, batched, ways, output.shape[1], sizes.mean, dtype)
        found = (
            _factors(network, plan, one, [each[:1] for each in columns], network.parameters) if columns else ([], [])
        )
        return plan, _with_shapes(network, plan, sizes, _shapes(network, plan, one, *found))


def _of_parameters(use: Use, names: Mapping[int, str]) -> bool:
    """Whether the weights of a use that require a gradient are parameters themselves."""
    return all(id(each) in names for each in use.weights if each is not None and each.requires_grad)


def _all_rows(use: Use) -> Axes | None:
    """The first dimension of a use, all of it of one sample; None if it cannot be a batch's."""
    rows = use.shape[0] if use.shape else 0
    right = rows and use.input.ndim and use.input.shape[0] == rows and use.rule.batched(use.input, 0)
    return Axes(0, 0, rows) if right else None


def unequal_outputs(one: int, other: int) -> str:
    """What is said of functions with different numbers of outputs."""
    return f"the functions have {one} and {other} outputs; give functions with equally many, such as one each"


def between_functions(
    network: MeasuredModule, one: tuple[GradientPlan, Sizes], other: tuple[GradientPlan, Sizes]
) -> tuple[GradientPlan, Sizes]:
    """The plan for the kernel between two functions of the same parameters: all gradients formed, in the same order."""
    (plan, sizes), (theirs, others) = one, other
    if plan.outputs != theirs.outputs:
        raise FinwidthError(unequal_outputs(plan.outputs, theirs.outputs))
    reasons = dict.fromkeys(network.parameters, "the kernel is between two functions")
    ways = plan.ways if len(plan.ways) < len(theirs.ways) else theirs.ways
    numbers = _numbers_by_group(network, network.parameters)
    plan = replace(
        plan,
        uses=(),
        pulled=frozenset(),
        general=reasons,
        batched=False,
        ways=list(ways),
        mean=max(plan.mean, theirs.mean),
        dtype=torch.promote_types(plan.dtype, theirs.dtype),
    )
    most = {name: max(getattr(sizes, name), getattr(others, name)) for name in ("saved", "results", "largest", "mean")}
    return plan, replace(sizes, shapes=tuple(FactorSize(1, 0, 0, each) for each in numbers), **most)


def _of_one_sample(pass_: Record, uses: Places, columns: list[Tensor]) -> tuple[Record, list[Tensor]]:
    """The inputs of uses, and the gradients by their results, of the first sample."""
    narrowed, found = [], []
    for use, (_, axes), D in zip(pass_.uses, uses, columns, strict=bool(columns)):
        narrowed.append(replace(use, input=axes.first(use.input, axes.input)) if axes else use)
        found.append(axes.first(D, axes.result + 1) if axes else D)
    return replace(pass_, uses=narrowed), found


def _axes(more: Use, two: Use, n: int) -> Axes | None:
    """The batch axis in a use by n samples, and the same one by two, if it is not ambiguous."""
    results, sources = _grown(two.shape, more.shape, n), _grown(two.input.shape, more.input.shape, n)
    if len(results) != 1 or len(sources) != 1:
        return None
    (result, times), (source, as_many) = *results, *sources
    return Axes(source, result, times) if times == as_many and more.rule.batched(more.input, source) else None


def _grown(two: torch.Size, more: torch.Size, n: int) -> list[tuple[int, int]]:
    """The dimensions that are larger in a pass of n than in one of two, and how many entries of them a sample has.

    Where windows, positions or tokens are merged with the samples, `_ordered` finds out how.
    """
    sizes = [(i, *each) for i, each in enumerate(zip(two, more, strict=True))]
    changed = [(i, small // 2) for i, small, large in sizes if small != large]
    whole = all(two[i] % 2 == 0 and 2 * more[i] == n * two[i] for i, _ in changed)  # as many of every sample
    return changed if whole else []


def why_unlike(network: MeasuredModule, x: Batch, outputs: Tensor, others: list[tuple[Tensor, Tensor]]) -> str | None:
    """Why a sample's output differs in another batch, in another place, or in another call; None if it does not.

    ``others`` are places in this batch, and the outputs there in others.
    """
    if all(each.shape[1] == outputs.shape[1] and near(outputs[some], each) for some, each in others):
        return None
    coarse = coarsest(network, x)
    if all(each.shape[1] == outputs.shape[1] and near(outputs[some], each, coarse) for some, each in others):
        return None
    return MEETING if near(outputs, apply(network, x, network.parameters), coarse) else CHANCE


def near(one: Tensor, other: Tensor, eps: float = 0.0) -> bool:
    """Equal up to rounding that a deep network may enlarge, of size ``eps`` or that of the type if that is more."""
    one, other = one.detach(), other.detach()
    gap, size = float((one - other).abs().max()), float(one.abs().max())
    if not math.isfinite(gap) and not (torch.isfinite(one).all() and torch.isfinite(other).all()):
        raise FinwidthError("the module's output, or its gradient, is not finite at these inputs")
    return bool(gap <= max(eps, torch.finfo(one.dtype).eps) ** 0.5 * (1e-30 + size))


def _ordered(
    two: Record, more: Record, uses: Places, columns: list[Tensor]
) -> tuple[Places, dict[str, str], dict[int, Tensor]]:
    """The places of the samples in every use, the parameters with a use in which they have none, and orders.

    Every sample's output is given a weight. Where an operation has the samples in their order, the gradient by its
    result at a sample is that for equal weights times the sample's own. So it has to be in the pass of two too, the
    samples of which are in another order, where an operation is found that may sort them. Three samples may be in an
    order of their own by chance, as where experts are given some of them.
    """
    sort = len(more.output) > 3
    uses, found, orders = _in_their_order(more, uses, columns, strided=(False, True), sort=sort)
    if any(axes and not axes.sorted for _, axes in uses) and (more.reorders or two.reorders):
        columns = two.backward(_with_weighted(_combined(two.output)), batched=False)
        uses, others, _ = _in_their_order(two, uses, columns, strided=(None,), sort=sort)
        found |= others
    return uses, found, orders


def _with_weighted(rows: Tensor) -> Tensor:
    """Cotangents of the outputs, the same for every sample, and one more row: their combination times its weight."""
    o, n, _ = rows.shape
    found = rows.new_empty(o + 1, *rows.shape[1:])
    found[:o] = rows
    torch.mul(_weights(n).to(rows)[:, None], _mixed(rows[:, :1]), out=found[o])
    return found


@lru_cache(maxsize=4)
def _weights(n: int) -> Tensor:
    """Weights of samples that tell them apart."""
    if n <= len(_AHEAD):
        return _AHEAD[:n]
    generator = torch.Generator().manual_seed(0)
    places, jitter = torch.randperm(n, generator=generator), torch.rand(n, generator=generator)
    return 4 * (places + 0.4 * jitter) / n - 2  # none are near each other


def _mixed(rows: Tensor) -> Tensor:
    """A combination of rows, in which none is left out."""
    found: Tensor = torch.tensordot(_mixing(len(rows)).to(rows), rows, 1)
    return found


def _in_their_order(
    pass_: Record, uses: Places, columns: list[Tensor], strided: Sequence[bool | None], *, sort: bool
) -> tuple[Places, dict[str, str], dict[int, Tensor]]:
    """The uses with the places of samples, by gradients for `_with_weighted`; and the parameters where they have none.

    The entries of a sample are strided or not, or (None) as they are said to be; or with ``sort`` in any order. Where
    samples are sorted, the third result has, by the number of a use, the order that puts its entries sample by sample.
    """
    noise = _noise([each[-1] for each in columns])
    places: list[tuple[Signature, Axes | None]] = []
    found: dict[str, str] = {}
    orders: dict[int, Tensor] = {}
    for use, (signature, axes), D in zip(pass_.uses, uses, columns, strict=True):
        place = None
        if axes and use.edge.node is pass_.output.grad_fn and axes.result == 0 and axes.times == 1:
            place = axes  # the result is the output itself
        elif axes:
            mixed = _mixed(D[:-1])
            some = strided[:1] if axes.times == 1 else strided  # one entry of each is both
            choices = (axes if each is None else replace(axes, strided=each) for each in some)
            right = (each for each in choices if _like(_by_sample(mixed, each), _by_sample(D[-1], each), noise))
            place = None if axes.sorted else next(right, None)
            order = _order_of_samples(mixed, D[-1], axes, noise) if place is None and (sort or axes.sorted) else None
            if order is not None:
                place, orders[use.number] = replace(axes, strided=False, sorted=True), order
            if place is None:
                found |= dict.fromkeys(pass_.behind(use), "used on samples in another order than that of the batch")
        places.append((signature, place))
    return tuple(places), found, orders


def _order_of_samples(plain: Tensor, weighted: Tensor, axes: Axes, noise: float) -> Tensor | None:
    """The entries along the dimension of the samples, sample by sample; None if each has not as many, or they mix."""
    n = plain.shape[axes.result] // axes.times
    one, other = (each.detach().movedim(axes.result, 0).flatten(1) for each in (plain, weighted))
    weights, between, samples = (each.to(one.device) for each in _sorted_weights(n))
    owner = samples[torch.bucketize((one * other).sum(1) / one.square().sum(1), between.to(one))]
    if owner.bincount(minlength=n).ne(axes.times).any():
        return None
    expected = weights[owner, None].to(one) * one
    gap = float((expected - other).abs_().max())
    right = gap <= noise or near(expected, other, torch.finfo(torch.float32).eps)
    return owner.argsort(stable=True) if right else None


def _in_order(
    pass_: Record, columns: list[Tensor], uses: Places, orders: Mapping[int, Tensor]
) -> tuple[Record, list[Tensor]]:
    """A record, and gradients by its results, with the samples of every use in the order of the batch."""
    if not orders:
        return pass_, columns
    found, inputs = list[Tensor](), dict[int, Tensor]()
    with torch.no_grad():
        for use, (_, axes), D in zip(pass_.uses, uses, columns, strict=True):
            order = orders.get(use.number)
            if axes is None or order is None:
                found.append(D)
                continue
            found.append(D.index_select(axes.result + 1, order))
            if not isinstance(use.rule, Expansion):
                inputs[use.number] = use.input.index_select(axes.input, order)
    return replace(pass_, uses=[replace(use, input=inputs.get(use.number, use.input)) for use in pass_.uses]), found


def _like(plain: Tensor, weighted: Tensor, noise: float) -> bool:
    """Whether gradients, samples last, are those of the same samples with a weight for each.

    Of modules that compute in float32 too, whatever their type.
    """
    weights = _weights(plain.shape[-1]).to(plain)
    gap = (plain.detach() * weights).sub_(weighted.detach()).abs_().max() if plain.numel() else 0.0
    return float(gap) <= noise or near(plain * weights, weighted, torch.finfo(torch.float32).eps)


def _noise(columns: list[Tensor]) -> float:
    """What rounding leaves of gradients that cancel, beside the largest of all."""
    extremes = ((each.dtype, *each.detach().aminmax()) for each in columns if each.numel())
    return 8 * max((torch.finfo(dtype).eps * float(max(-low, high)) for dtype, low, high in extremes), default=0.0)


def _by_sample(D: Tensor, axes: Axes) -> Tensor:
    """A gradient by an operation's result with the samples last, after what a sample has in the same dimension."""
    if axes.times == 1:
        return D.movedim(axes.result, -1)
    return torch.unflatten(axes.in_order(D, axes.result), axes.result, (-1, axes.times)).movedim(axes.result, -1)


def _combined(output: Tensor) -> Tensor:
    """The cotangent of a combination of the outputs of all samples, shape (1, n, all outputs)."""
    return _mixing(output.shape[1]).to(output).expand(1, *output.shape)


@lru_cache(maxsize=4)
def _sorted_weights(n: int) -> tuple[Tensor, Tensor, Tensor]:
    """The weights of samples, the middles between them in ascending order, and the samples in this order."""
    weights = _weights(n)
    ascending, samples = weights.sort()
    return weights, (ascending[1:] + ascending[:-1]) / 2, samples


@lru_cache(maxsize=4)
def _mixing(n: int) -> Tensor:
    """The coefficients of a combination of n numbers, none of which is left out."""
    return torch.cos(torch.arange(1.0, n + 1))


def gradients(  # noqa: PLR0917
    network: MeasuredModule,
    plan: GradientPlan,
    x: Batch,
    outputs: range,
    known: WholePass | None = None,
    passed: Callable[[Tensor], None] | None = None,
) -> list[GradientFactor]:
    """Factors of the gradients of some outputs at inputs ``x``, for all counted parameters.

    ``known`` has those that are found by the plan's uses, if they were found before. ``passed`` is given the outputs of
    the pass that they are found by, shape (n, all outputs).

    Raises
    ------
    OtherRouteError
        If the pass does not go as planned.
    """
    found: list[GradientFactor] = []
    if known is not None:
        found = [*known.factors]
        output = known.output
    elif len(plan.general) < len(network.parameters):
        with differentiable():
            leaves = network.leaves()
            with Recorder(leaves, plan.numbers) as recorder:
                output = apply(network, x, leaves)
            pass_ = recorder.record(output)
            if not follows(pass_, plan, len(x)):
                raise OtherRouteError
            pass_, columns = _columns(network, plan, pass_, x, outputs)
            found = _by_uses(network, plan, pass_, columns, leaves)
            output = output.detach()
            del recorder, pass_, columns
    if found and passed is not None:
        passed(output)
    if plan.general:
        names = [name for name in network.parameters if name in plan.general]
        found += by_groups(network, names, formed(network, plan.ways, frozenset(names), x, outputs, mean=plan.mean))
    nothing = torch.zeros(len(x), len(outputs), 1, dtype=plan.dtype, device=x.device)
    return found or [DenseFactor(nothing)]  # the parameters that count make no difference


def _by_uses(
    network: MeasuredModule, plan: GradientPlan, pass_: Record, columns: list[Tensor], leaves: Mapping[str, Tensor]
) -> list[GradientFactor]:
    """The factors of the gradients of all parameters but the general ones, from those by the results of uses."""
    found, rough = _factors(network, plan, pass_, columns, leaves)
    return found + _of_rough(network, plan, pass_, rough, leaves)


def _of_rough(
    network: MeasuredModule, plan: GradientPlan, pass_: Record, rough: list[Weights], leaves: Mapping[str, Tensor]
) -> list[GradientFactor]:
    """The gradients by parameters from those by weights, each a parameter that several uses share or made of some."""
    found: list[GradientFactor] = []
    for weights in rough:
        key = next(iter(weights))
        if key in plan.rows:
            table = in_rows(weights[key], plan.rows[key], network.scales[key])
            found.append(replace(table, group=network.group(key)))
        else:
            G = parameter_gradients(network, plan.pulled, pass_, weights, leaves)
            found += by_groups(network, parameters_behind(plan.pulled, pass_, weights), G)
    return found


def _columns(
    network: MeasuredModule, plan: GradientPlan, pass_: Record, x: Batch, outputs: range
) -> tuple[Record, list[Tensor]]:
    """The record with the samples of every use in their order, and the gradients of some outputs, (o, *result), by it.

    Where an operation may have put samples into another order, one more row goes back, a combination of the outputs
    with a weight for each sample; by its gradients every use has the samples as planned, or OtherRouteError.
    """
    rows = each_sample(network, pass_.output, outputs)
    reorders = pass_.reorders or any(axes and axes.sorted for _, axes in plan.uses)
    if reorders:
        rows = _with_weighted(rows)
    with telling(network.module, x):  # one that changes what its gradients need raises only now
        columns = pass_.backward(rows, batched=plan.batched)
    if not reorders:
        return pass_, columns
    places, _, orders = _in_their_order(pass_, plan.uses, columns, strided=(None,), sort=False)
    if places != plan.uses:
        raise OtherRouteError
    return _in_order(pass_, [each[:-1] for each in columns], plan.uses, orders)


def follows(pass_: Record, plan: GradientPlan, n: int) -> bool:
    """Whether a pass of n inputs goes as planned."""
    same = [use.signature for use in pass_.uses] == [each for each, _ in plan.uses]
    if not same or not pass_.others.keys() <= plan.general.keys():
        return False
    places = [(use, axes) for use, (_, axes) in zip(pass_.uses, plan.uses, strict=True) if axes]
    return all(use.input.shape[axes.input] == use.shape[axes.result] == axes.times * n for use, axes in places)


def _factors(
    network: MeasuredModule, plan: GradientPlan, pass_: Record, columns: list[Tensor], leaves: Mapping[str, Tensor]
) -> tuple[list[GradientFactor], list[Weights]]:
    """Factors from the gradients by the uses' results, one for all uses of one weight and bias.

    And those by weights that operations share, or that have parameters in common, in groups that have none in common.
    """
    others = plan.pulled | plan.general.keys()
    direct = {key: each for key, each in network.scales.items() if key not in others}
    sites: dict[tuple[int, *Site], list[GradientFactor]] = {}
    weights: Weights = {}
    with torch.no_grad():
        for use, (_, axes), D in zip(pass_.uses, plan.uses, columns, strict=True):
            if axes is None:
                continue
            x, by_result, times = _samples_first(use, axes, D.to(plan.dtype))
            for group, scales in _scales_by_group(network, direct, use):
                own = factor(use.rule, x, by_result, *scales).gathered(times)
                sites.setdefault((group, *_site(use)), []).append(own)
            for key, weight, bias in zip(use.names, (1.0, None), (None, 1.0), strict=True):
                if key is not None and plan.pulled & pass_.made_of.get(key, {key}):
                    own = factor(use.rule, x, by_result, weight, bias).gathered(times)
                    weights.setdefault(key, []).append((use.rule, own))
        found = [replace(together(parts), group=group) for (group, *_), parts in sites.items()]
        sharing = Counter(name for key in weights for name in parameters_behind(plan.pulled, pass_, [key]))
        rough: Weights = {}
        for key, parts in weights.items():
            (rule, first), *more = parts
            names = parameters_behind(plan.pulled, pass_, [key])
            alone = key in pass_.made and not more and all(sharing[name] == 1 for name in names)
            groups = {network.group(name) for name in names}
            if alone and len(groups) == 1 and isinstance(first, OuterFactor) and not isinstance(rule, EXCHANGED):
                pull = pullback(network, [pass_.made[key]], {name: leaves[name] for name in names})
                found.append(replace(first, pull=pull, group=groups.pop()))
            else:
                rough[key] = parts
        return found, connected(plan.pulled, pass_, rough)


def _scales_by_group(
    network: MeasuredModule, direct: Mapping[str, float], use: Use
) -> list[tuple[int, list[float | None]]]:
    """The scales of a use's weight and bias, None for what does not count; those of different groups apart."""
    counted = [name for name in use.names if name is not None and name in direct]
    groups = dict.fromkeys(map(network.group, counted))
    return [
        (group, [direct[each] if each in counted and network.group(each) == group else None for each in use.names])
        for group in groups
    ]


def by_groups(network: MeasuredModule, names: Sequence[str], formed: DenseFactor) -> list[DenseFactor]:
    """The gradients by some parameters, one after another in ``formed``, those of every group by themselves."""
    numbers = [network.parameters[name].numel() for name in names]
    columns: dict[int, list[Tensor]] = {}
    for name, part in zip(names, torch.split(formed.G, numbers, 2), strict=True):
        columns.setdefault(network.group(name), []).append(part)
    if len(columns) == 1:
        return [replace(formed, group=next(iter(columns)))]
    return [DenseFactor(torch.cat(parts, dim=2), group) for group, parts in columns.items()]


def _samples_first(use: Use, axes: Axes, D: Tensor) -> tuple[Tensor, Tensor, int]:
    """A use's input and the gradients by its result, as `factor` takes them; and how many rows of both a sample has."""
    D = axes.in_order(D, axes.result + 1)
    if isinstance(use.rule, Expansion):
        return use.input, torch.unflatten(D, axes.result + 1, (-1, axes.times)).movedim(axes.result + 1, 1), 1
    x = axes.in_order(input_as(use, D.dtype), axes.input).movedim(axes.input, 0)
    return x, D.movedim(axes.result + 1, 1), axes.times

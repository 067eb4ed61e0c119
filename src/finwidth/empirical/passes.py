"""From inputs to the factors of every parameter's gradients: one forward pass, and one backward pass for all outputs.

A `Plan` is made once from a few of the inputs (`plan`): where each operation keeps its samples, and which parameters go
the general way, by torch.func.  `gradients` then follows it for any inputs, and says so if a pass takes another route.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn
from torch.autograd import forward_ad

from finwidth.empirical.blocks import Sizes
from finwidth.empirical.products import Dense, Factor, Shape
from finwidth.empirical.recording import Record, Use, differentiable, record
from finwidth.empirical.rules import factor, together
from finwidth.errors import FinwidthError

Tensor = torch.Tensor
Site = tuple[str | None, str | None]  # the weight and bias that an operation's uses have in common


class OtherRouteError(Exception):
    """A pass used its parameters otherwise than the plan says."""


@dataclass(frozen=True)
class Axes:
    """The dimension of the samples in an operation's input and in its result."""

    input: int
    result: int


@dataclass(frozen=True)
class Plan:
    """How to find the gradients of a module's parameters.

    ``uses`` has, for every recorded use in order, its signature and the places of its samples; ``general`` names the
    parameters whose gradients are formed; ``batched`` is whether one backward pass serves all outputs, and ``vmaps``
    whether torch.func can take the module.
    """

    uses: tuple[tuple[Any, Axes | None], ...]
    general: frozenset[str]
    batched: bool
    vmaps: bool
    outputs: int
    dtype: torch.dtype


@dataclass(frozen=True)
class Network:
    """A module and its counted parameters, with the scale of each.

    With a ``direction``, one tensor for each parameter, gradients are dual numbers: their tangents are the derivatives
    as the parameters move that way. A dual level of torch must be open then.
    """

    module: nn.Module
    parameters: Mapping[str, Tensor]
    scales: Mapping[str, float]
    direction: Mapping[str, Tensor] | None = None

    def leaves(self) -> Mapping[str, Tensor]:
        """The parameters, with their tangents."""
        if self.direction is None:
            return self.parameters
        duals = {name: _dual(each.detach(), self.direction[name]) for name, each in self.parameters.items()}
        return {name: each.requires_grad_() for name, each in duals.items()}


def plan(network: Network, rows: Tensor) -> tuple[Plan, Sizes]:
    """Make the plan from three inputs, and refuse a module whose output for one sample depends on others, or on chance.

    Two passes, of two and of three samples: a dimension that grows from 2 to 3 is that of the samples.
    """
    with differentiable():
        (two, less), (three, more) = (_weighed(network, rows[:n]) for n in (2, 3))
        with torch.no_grad():
            again, one = (network.module(rows[:n]).reshape(n, -1) for n in (3, 1))
    _check_repeats(three.output, again)
    for other in (two.output, one):
        _check_independent(three.output, other)
    general = set(three.others | two.others)
    uses: tuple[tuple[Any, Axes | None], ...] = ()
    if [use.signature for use in two.uses] == [use.signature for use in three.uses]:
        uses = tuple((use.signature, _axes(use, other)) for use, other in zip(three.uses, two.uses, strict=True))
        general |= _unclear(three.uses, uses)
    else:
        general, three = set(network.parameters), Record(three.output, [], three.others)
    names, output = frozenset(general), three.output
    columns, batched = _try_backward(three)
    vmaps = _vmaps(network, names, rows[:1])
    scheme = Plan(uses, names, batched, vmaps, output.shape[1], output.dtype)
    shapes = [Shape.of(each) for each in _factors(network, scheme, three, columns)]
    if names:
        shapes.append(Shape(1, 0, 0, sum(network.parameters[name].numel() for name in names)))
    results = [use.shape.numel() // 3 for use in three.uses]
    itemsize = output.element_size()
    saved = max(0, more - less) // itemsize
    return scheme, Sizes(tuple(shapes), saved, sum(results), max([saved // 8, *results]), itemsize)


def _unclear(uses: list[Use], axes: tuple[tuple[Any, Axes | None], ...]) -> set[str]:
    """Parameters with a use whose samples are not found, or that different operations share."""
    sites: dict[str, set[Site]] = {}
    for use, (_, found) in zip(uses, axes, strict=True):
        for name in use.names:
            sites.setdefault(name, set()).add((use.weight, use.bias) if found else (None, None))
    return {name for name, found in sites.items() if len(found) > 1 or (None, None) in found}


def _weighed(network: Network, x: Tensor) -> tuple[Record, int]:
    """A pass, and the bytes that autograd keeps of it."""
    kept: dict[int, int] = {}

    def note(each: Tensor) -> Tensor:
        kept[each.data_ptr()] = each.numel() * each.element_size()
        return each

    with torch.autograd.graph.saved_tensors_hooks(note, lambda each: each):
        found = record(network.module, x, network.parameters)
    return found, sum(kept.values())


def general_plan(network: Network, scheme: Plan) -> Plan:
    """The plan that forms the gradients of every parameter, one input at a time."""
    return replace(scheme, uses=(), general=frozenset(network.parameters), batched=False, vmaps=False)


def _axes(three: Use, two: Use) -> Axes | None:
    """Where the samples are, if there is no doubt."""
    result = _grown(two.shape, three.shape)
    source = _grown(two.input.shape, three.input.shape)
    if source is None or result is None or not three.rule.batched(three.input, source):
        return None
    return Axes(source, result)


def _grown(two: torch.Size, three: torch.Size) -> int | None:
    changed = [i for i, (small, large) in enumerate(zip(two, three, strict=True)) if small != large]
    return changed[0] if len(changed) == 1 and (two[changed[0]], three[changed[0]]) == (2, 3) else None


def _check_repeats(first: Tensor, second: Tensor) -> None:
    if first.shape != second.shape or not _near(first, second):
        raise FinwidthError(
            "two passes of the same inputs through the module differ: it draws random numbers (dropout?) or changes "
            "itself; call module.eval() first"
        )


def _check_independent(many: Tensor, few: Tensor) -> None:
    if many.shape[1] != few.shape[1] or not _near(many[: len(few)], few):
        raise FinwidthError(
            "the module's output for one sample depends on the other samples of its batch (batch statistics? samples "
            "not in the first dimension?), so that no sample has a gradient of its own; call module.eval() first, or "
            "wrap the module in one that takes and returns samples in the first dimension"
        )


def _near(one: Tensor, other: Tensor) -> bool:
    """Equal up to rounding that a deep network may enlarge; not so if anything is not finite."""
    one, other = one.detach(), other.detach()
    if not (torch.isfinite(one).all() and torch.isfinite(other).all()):
        raise FinwidthError("the module's output is not finite at these inputs")
    return bool((one - other).abs().max() <= torch.finfo(one.dtype).eps ** 0.5 * (1e-30 + one.abs().max()))


def _try_backward(pass_: Record) -> tuple[list[Tensor], bool]:
    """Gradients of the first output, and whether torch can run the backward pass for several outputs at once."""
    try:
        return _backward(pass_, range(1), batched=True), True
    except RuntimeError:
        return _backward(pass_, range(1), batched=False), False


def _vmaps(network: Network, names: frozenset[str], x: Tensor) -> bool:
    """Whether torch.func can form the gradients by these parameters, and forms those of autograd."""
    if not names:
        return True
    try:
        found = _by_vmap(network, names, x, range(1)).G
    except RuntimeError:
        return False
    return _near(_one_by_one(network, names, x, range(1)).G, found)


def _backward(pass_: Record, outputs: range, *, batched: bool) -> list[Tensor]:
    """Gradients of the outputs, each of its own sample, by every use's result, shapes (o, *result)."""
    edges, output = [use.edge for use in pass_.uses], pass_.output
    if not edges:
        return []
    cotangents = _unit(output, outputs)[:, None, :].expand(-1, len(output), -1)
    if batched:
        return list(torch.autograd.grad(output, edges, cotangents, retain_graph=True, is_grads_batched=True))
    rows = [torch.autograd.grad(output, edges, each, retain_graph=True) for each in cotangents]
    return [torch.stack(column) for column in zip(*rows, strict=True)]


def gradients(network: Network, scheme: Plan, x: Tensor, outputs: range) -> list[Factor]:
    """Factors of the gradients of some outputs at inputs ``x``, for all counted parameters.

    Raises
    ------
    OtherRouteError
        If the pass does not go as planned.
    """
    found: list[Factor] = []
    if len(scheme.general) < len(network.parameters):
        found = _by_factors(network, scheme, x, outputs)
    if scheme.general:
        form = _by_vmap if scheme.vmaps else _one_by_one
        found.append(form(network, scheme.general, x, outputs))
    return found


def _by_factors(network: Network, scheme: Plan, x: Tensor, outputs: range) -> list[Factor]:
    with differentiable():
        pass_ = record(network.module, x, network.leaves())
        if [use.signature for use in pass_.uses] != [each for each, _ in scheme.uses] or pass_.others - scheme.general:
            raise OtherRouteError
        columns = _backward(pass_, outputs, batched=scheme.batched)
    return _factors(network, scheme, pass_, columns)


def _factors(network: Network, scheme: Plan, pass_: Record, columns: list[Tensor]) -> list[Factor]:
    """Factors from the gradients by the uses' results; one factor for all uses of one weight and bias."""
    scales = {name: scale for name, scale in network.scales.items() if name not in scheme.general}
    sites: dict[Site, list[Factor]] = {}
    with torch.no_grad():
        for use, (_, axes), D in zip(pass_.uses, scheme.uses, columns, strict=True):
            weight, bias = (scales.get(name or "") for name in (use.weight, use.bias))
            if axes and not (weight is None and bias is None):
                x, moved = _freed(use.input).movedim(axes.input, 0), D.movedim(axes.result + 1, 1)
                sites.setdefault((use.weight, use.bias), []).append(factor(use.rule, x, moved, weight, bias))
        return [together(parts) for parts in sites.values()]


def _freed(x: Tensor) -> Tensor:
    """The tensor without the graph behind it, but with its tangent, if there is one."""
    primal, tangent = forward_ad.unpack_dual(x)  # type: ignore[no-untyped-call]
    if tangent is None:
        return x.detach()
    return _dual(primal.detach(), tangent.detach())


def _dual(primal: Tensor, tangent: Tensor) -> Tensor:
    found: Tensor = forward_ad.make_dual(primal, tangent)  # type: ignore[no-untyped-call]
    return found


def _by_vmap(network: Network, names: frozenset[str], x: Tensor, outputs: range) -> Dense:
    """The gradients by some parameters themselves, sample by sample under vmap."""
    chosen = {name: each.detach() for name, each in network.parameters.items() if name in names}

    def rows(sample: Tensor) -> Tensor:
        def output(given: dict[str, Tensor]) -> Tensor:
            value: Tensor = torch.func.functional_call(network.module, given, (sample[None],))
            return value.reshape(-1)

        value, pull = torch.func.vjp(output, chosen)[:2]
        (by_name,) = torch.func.vmap(pull)(_unit(value, outputs))
        return torch.cat([network.scales[name] ** 0.5 * each.flatten(1) for name, each in by_name.items()], dim=1)

    with differentiable():
        found: Tensor = torch.func.vmap(rows)(x)
    return Dense(found.detach())


def _one_by_one(network: Network, names: frozenset[str], x: Tensor, outputs: range) -> Dense:
    """The same for a module that torch.func cannot take: a pass for every sample, and one back for every output."""
    with differentiable():
        samples = [_rows(network, names, sample, outputs) for sample in torch.split(x, 1)]
    G = torch.stack([rows for rows, _ in samples])
    if network.direction is None:
        return Dense(G)
    return Dense(_dual(G, torch.stack([change for _, change in samples])))


def _rows(network: Network, names: frozenset[str], sample: Tensor, outputs: range) -> tuple[Tensor, Tensor]:
    """Gradients of some outputs at one sample by some parameters, and their tangents (zero without a direction).

    The tangents are found by differentiating twice more: h = d/dp sum_ij u_ij G_ij is linear in u, and the derivative
    of its product with the direction by u is that of G along the direction.
    """
    parameters, direction = dict(network.parameters), network.direction
    chosen = [name for name in parameters if name in names]
    value = torch.func.functional_call(network.module, parameters, (sample,)).reshape(-1)
    rows = []
    for i in outputs:
        columns = torch.autograd.grad(
            value[i],
            [parameters[name] for name in chosen],
            retain_graph=True,
            create_graph=direction is not None,
            materialize_grads=True,
        )
        scaled = [network.scales[name] ** 0.5 * each.flatten() for name, each in zip(chosen, columns, strict=True)]
        rows.append(torch.cat(scaled))
    G = torch.stack(rows)
    if direction is None or not G.requires_grad:
        return G.detach(), torch.zeros_like(G)
    u = torch.zeros_like(G, requires_grad=True)
    pulled = torch.autograd.grad(G, list(parameters.values()), u, create_graph=True, materialize_grads=True)
    along = torch.stack([(each * direction[name]).sum() for name, each in zip(parameters, pulled, strict=True)]).sum()
    (change,) = torch.autograd.grad(along, u, materialize_grads=True) if along.requires_grad else (torch.zeros_like(G),)
    return G.detach(), change


def _unit(value: Tensor, outputs: range) -> Tensor:
    """The rows of the unit matrix of some outputs."""
    whole = torch.eye(value.shape[-1], dtype=value.dtype, device=value.device)
    return whole[outputs.start : outputs.stop]

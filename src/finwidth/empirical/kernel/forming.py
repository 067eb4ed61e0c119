"""Gradients themselves, formed where no rule gives them in factors: under vmap, a few samples at a time, or one by one.

A way that cannot take a module raises OtherWayError, and the next one of `WAYS` is tried (`formed`).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from functools import partial

import torch

from finwidth.empirical.kernel.batch import Batch
from finwidth.empirical.kernel.calls import (
    MeasuredModule,
    apply,
    differentiable,
    dual,
    each_sample,
    gradient,
    selected,
    telling,
)
from finwidth.empirical.kernel.factors import DenseFactor
from finwidth.empirical.kernel.owners import OtherWayError, traced

Tensor = torch.Tensor
_COMPANY = 16  # most samples of a pass that goes back for each of their outputs
_GRADIENTS = 2**18  # numbers of a typical gradient of such a pass that are few


def formed(
    network: MeasuredModule, ways: list[str], names: frozenset[str], x: Batch, outputs: range, *, mean: int
) -> DenseFactor:
    """The gradients by some parameters in the first of these ways that takes the module; others are removed.

    ``mean`` is how many numbers a typical gradient has for one sample and output.
    """
    while True:
        try:
            return WAYS[ways[0]](network, names, x, outputs, mean)
        except OtherWayError:
            del ways[0]


def _by_vmap(network: MeasuredModule, names: frozenset[str], x: Batch, outputs: range, mean: int) -> DenseFactor:
    """Form gradients by some parameters, sample by sample under vmap."""
    chosen = {name: each.detach() for name, each in network.parameters.items() if name in names}

    def rows(*sample: Tensor) -> Tensor:
        alone = x.like([each[None] for each in sample])
        value, pull = torch.func.vjp(partial(apply, network, alone), chosen)[:2]
        (by_name,) = torch.func.vmap(pull)(each_sample(network, value, outputs))
        return _scaled_rows(network, by_name, len(outputs))

    try:
        with differentiable():
            found: Tensor = torch.func.vmap(rows)(*x.clone().tensors)
    except Exception as error:  # whatever the user's code or torch raises under transforms
        raise OtherWayError from error
    return DenseFactor(found.detach())


def _few_at_once(network: MeasuredModule, names: frozenset[str], x: Batch, outputs: range, mean: int) -> DenseFactor:
    """Form gradients that torch.func cannot: by passes of a few samples, and backward for all their outputs at once.

    In a pass of c samples each of the c o outputs goes back through all of them, zeros but for its own. So c is the
    square root of what goes through at once otherwise, which holds as many numbers; or more if these are few.
    """
    chosen = {name: each for name, each in network.parameters.items() if name in names}
    found = []
    with differentiable():
        most = math.isqrt(max(len(x), _GRADIENTS // (mean * len(outputs))))
        for some in x.split(min(_COMPANY, most)):
            values = selected(network, apply(network, some, network.parameters), outputs).flatten()
            rows = _scaled_rows(network, _all_at_once(values, chosen), len(values))
            found.append(rows.view(len(some), len(outputs), -1))
    return DenseFactor(torch.cat(found))


def _scaled_rows(network: MeasuredModule, by_name: Mapping[str, Tensor], n: int) -> Tensor:
    """Gradients of n numbers by parameters, shapes (n, *parameter), with the roots of their scales: (n, numbers)."""
    roots = {name: network.scales[name] ** 0.5 for name in by_name}
    rows = (each if roots[name] == 1 else roots[name] * each for name, each in by_name.items())
    return torch.cat([each.reshape(n, -1) for each in rows], dim=1)


def _all_at_once(values: Tensor, parameters: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The gradients of every value by each parameter, shapes (values, *parameter)."""
    zeros = {name: each.new_zeros(()).expand(len(values), *each.shape) for name, each in parameters.items()}
    if not values.requires_grad:
        return zeros
    unit = torch.eye(len(values), dtype=values.dtype, device=values.device)
    try:
        found = torch.autograd.grad(values, list(parameters.values()), unit, is_grads_batched=True, allow_unused=True)
    except (RuntimeError, NotImplementedError) as error:  # the module, or an operation of it, cannot be taken
        raise OtherWayError from error
    if any(each is not None and each.is_sparse for each in found):
        raise OtherWayError
    return {name: zeros[name] if each is None else each for name, each in zip(parameters, found, strict=True)}


def _one_by_one(network: MeasuredModule, names: frozenset[str], x: Batch, outputs: range, mean: int) -> DenseFactor:
    """Form gradients of any module: by a pass for every sample, and a backward pass for each of its outputs."""
    samples = []
    with differentiable(), telling(network.module, x[:1]):
        for sample in x.split(1):
            output = apply(network, sample, network.parameters)
            samples.append(_gradients_and_tangents(network, names, output[0], outputs))
            del output  # and its graph, before the next pass
    G, change = (torch.stack(each) for each in zip(*samples, strict=True))
    if network.direction is None:
        return DenseFactor(G)
    return DenseFactor(dual(G, change) if network.mix is None else G + network.mix * change)


def mix_of(network: MeasuredModule, x: Batch) -> float:
    """The step along the direction that changes gradients by about their own size."""
    with differentiable(), telling(network.module, x[:1]):
        value = apply(network, x[:1], network.parameters)[0]
        G, change = _gradients_and_tangents(network, frozenset(network.parameters), value, range(1))
    size = float(change.double().norm())
    return float(G.double().norm()) / size if size else 1.0


def _gradients_and_tangents(
    network: MeasuredModule, names: frozenset[str], value: Tensor, outputs: range
) -> tuple[Tensor, Tensor]:
    """Gradients of some outputs of one sample by some parameters, and their tangents (zero without a direction).

    ``value`` has the outputs of the sample. The tangents are found by differentiating twice more:
    h = d/dp sum_ij u_ij G_ij is linear in u, and the derivative of its product with the direction by u is that of G
    along the direction.
    """
    parameters, direction = network.parameters, network.direction
    chosen = [name for name in parameters if name in names]
    rows = []
    for each in selected(network, value, outputs):
        columns = gradient(each, [parameters[name] for name in chosen], create_graph=direction is not None)
        rows.append(_scaled_rows(network, dict(zip(chosen, columns, strict=True)), 1))
    G = torch.cat(rows)
    if direction is None or not G.requires_grad:
        return G.detach(), torch.zeros_like(G)
    u = torch.zeros_like(G, requires_grad=True)
    pulled = torch.autograd.grad(G, list(parameters.values()), u, create_graph=True, materialize_grads=True)
    along = torch.stack([(each * direction[name]).sum() for name, each in zip(parameters, pulled, strict=True)]).sum()
    (change,) = torch.autograd.grad(along, u, materialize_grads=True) if along.requires_grad else (torch.zeros_like(G),)
    return G.detach(), change


ALONE, TRACED = "one by one", "traced"
WAYS = {
    "torch.func": _by_vmap,
    TRACED: traced,
    "few at once": _few_at_once,
    ALONE: _one_by_one,
}  # to form gradients, fastest first

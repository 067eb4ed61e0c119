"""Which sample every row of an operation belongs to, where a module sorts, gathers, scatters or splits its batch.

Mixtures of experts do: an expert is given the tokens of many samples, as many as there are, in an order of its own. The
gradients by its results tell whose they are. With g_r the gradient by row r of the sum of all outputs, and g'_r that of
the sum with a weight s_a for every sample a, g'_r = s_a g_r where the row belongs to sample a, and to no other.
"""

from __future__ import annotations

import torch

from finwidth.empirical.kernel.batch import Batch
from finwidth.empirical.kernel.calls import MeasuredModule, apply, cotangents, differentiable, each_sample
from finwidth.empirical.kernel.factors import DenseFactor, GradientFactor
from finwidth.empirical.kernel.operations import Expansion, factor
from finwidth.empirical.kernel.recording import Record, Recorder, Use
from finwidth.empirical.kernel.weights import (
    OtherRouteError,
    Weights,
    connected,
    input_as,
    parameter_gradients,
    parameters_behind,
)

Tensor = torch.Tensor


class OtherWayError(Exception):
    """The gradients of single parameters cannot be formed in this way."""


def traced(network: MeasuredModule, names: frozenset[str], x: Batch, outputs: range, mean: int) -> DenseFactor:
    """Form gradients by some parameters in one pass, in which the samples of all rows are looked for.

    A weight made of a result that meets samples is none, but another such result.
    """
    if len(x) == 1:  # in company, so that what all samples share can be told from what each has
        return traced(network, names, x.join(x), outputs, mean).part(slice(0, 1))
    leaves = network.parameters
    with differentiable():
        with Recorder(leaves, empty=True) as recorder:  # an expert may get no rows
            output = apply(network, x, leaves)
        pass_, columns, found = _with_owners(network, recorder.record(output), outputs)
        if pass_.others.keys() & names:
            raise OtherWayError
        weights: Weights = {}
        with torch.no_grad():
            for use, D, owner in zip(pass_.uses, columns, found, strict=True):
                for key, weight, bias in zip(use.names, (1.0, None), (None, 1.0), strict=True):
                    if key is not None and names & pass_.made_of.get(key, {key}):
                        own = factor_by_owner(use, D.to(output.dtype), owner, len(x), weight, bias)
                        weights.setdefault(key, []).append((use.rule, own))
        try:
            parts = _by_parameter(network, names, pass_, weights)
        except OtherRouteError as error:
            raise OtherWayError from error
    nothing = output.new_zeros(len(x), len(outputs), 1)
    rows = [parts.get(name, nothing.expand(-1, -1, leaves[name].numel())) for name in leaves if name in names]
    return DenseFactor(torch.cat(rows, dim=2).detach())


def _by_parameter(network: MeasuredModule, names: frozenset[str], pass_: Record, weights: Weights) -> dict[str, Tensor]:
    """The gradients by the parameters behind weights, shapes (n, o, numbers)."""
    leaves, parts = network.parameters, dict[str, Tensor]()
    for group in connected(names, pass_, weights):
        behind = parameters_behind(names, pass_, group)
        G = parameter_gradients(network, names, pass_, group, leaves).G
        parts |= zip(behind, torch.split(G, [leaves[name].numel() for name in behind], dim=2), strict=True)
    return parts


def _with_owners(network: MeasuredModule, pass_: Record, outputs: range) -> tuple[Record, list[Tensor], list[Tensor]]:
    """The record of uses with a sample in each row, gradients of some outputs by their results, and these samples."""
    output = pass_.output
    weights = sample_weights(len(output), output)
    mix = torch.cos(torch.arange(1.0, len(outputs) + 1)).to(output)  # of the outputs; none is left out
    weighted = weights[:, None] * (mix @ cotangents(network, output, outputs))
    rows = torch.cat([each_sample(network, output, outputs), weighted[None]])
    columns, _ = pass_.backward_either_way(rows)
    found: dict[int, tuple[Tensor, Tensor]] = {}
    for use, D in zip(pass_.uses, columns, strict=True):
        owner = owners(use, torch.tensordot(mix.to(D), D[:-1], 1), D[-1], weights)
        if owner is not None:
            found[use.number] = D[:-1], owner
    kept = pass_.without_nested(found)
    pairs = [found[use.number] for use in kept.uses]
    return kept, [D for D, _ in pairs], [owner for _, owner in pairs]


def sample_weights(n: int, like: Tensor) -> Tensor:
    """A weight for each sample, no two of them near each other, nor the mean of others, shape (n,)."""
    generator = torch.Generator().manual_seed(0)
    places, jitter = torch.randperm(n, generator=generator), torch.rand(n, generator=generator, dtype=torch.float64)
    return (1 + (places + 0.4 * jitter) / n).to(like)


def owners(use: Use, plain: Tensor, weighted: Tensor, weights: Tensor) -> Tensor | None:
    """The sample of every row, shape (rows,), by the gradients g and g'; None if rows belong to several."""
    leading = _leading(use)
    if not leading:
        return None
    rows = use.shape[:leading].numel()
    if not plain.numel():
        return torch.zeros(rows, dtype=torch.long, device=plain.device)
    g, other = (each.reshape(rows, -1) for each in (plain, weighted))
    weights = weights.to(g)
    ratio = torch.nan_to_num((g * other).sum(1) / g.square().sum(1))
    owner = (ratio[:, None] - weights).abs().argmin(1)
    off = (g * weights[owner][:, None] - other).abs()
    coarse = max(torch.finfo(g.dtype).eps, torch.finfo(torch.float32).eps)  # some compute in float32 in any case
    return owner if bool(off.max() <= coarse**0.5 * other.abs().max()) else None


def _leading(use: Use) -> int:
    """How many dimensions of the result, from the first, can hold the rows of samples."""
    if isinstance(use.rule, Expansion):
        sizes = (1,) * (len(use.shape) - len(use.rule.shape)) + tuple(use.rule.shape)
        return next((i for i, size in enumerate(sizes) if size > 1), len(sizes))
    return sum(use.rule.batched(use.input, axis) for axis in range(use.input.ndim))


def factor_by_owner(  # noqa: PLR0917 - those of `factor`, and whose they are
    use: Use, D: Tensor, owner: Tensor, n: int, weight: float | None, bias: float | None
) -> GradientFactor:
    """The gradients of n samples, as `factor`, from D (o, *result) and the samples of the rows."""
    x, order = input_as(use, D.dtype), torch.argsort(owner, stable=True)
    counts = torch.bincount(owner, minlength=n)
    most, starts = max(1, int(counts.max())), counts.cumsum(0) - counts
    sorted_owner = owner[order]
    places = sorted_owner * most + torch.arange(len(order), device=owner.device) - starts[sorted_owner]

    def spread(rows: Tensor, dim: int) -> Tensor:
        """The rows of each sample one after another, as many of each, zeros where it has fewer."""
        shape = [*rows.shape]
        shape[dim] = n * most
        return rows.new_zeros(shape).index_copy(dim, places, rows.index_select(dim, order))

    leading = _leading(use)
    rest = use.shape[leading:]
    if isinstance(use.rule, Expansion):  # its rows have all dimensions of the result
        rest = torch.Size((1,) * leading + rest)
    else:
        x = spread(x.reshape(len(owner), *x.shape[leading:]), 0)
    D = spread(D.reshape(len(D), len(owner), *rest), 1)
    return factor(use.rule, x, D, weight, bias).gathered(most)

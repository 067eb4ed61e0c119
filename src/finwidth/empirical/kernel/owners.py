"""Which sample every row of an operation belongs to, where a module sorts, gathers, scatters or splits its batch.

Mixtures of experts do: an expert is given the tokens of many samples, as many as there are, in an order of its own. The
gradients by its results tell whose they are. With g_r the gradient by row r of the sum of all outputs, and g'_r that of
the sum with a weight s_a for every sample a, g'_r = s_a g_r where the row belongs to sample a, and to no other.
"""

from __future__ import annotations

import torch

from finwidth.empirical.kernel.factors import GradientFactor
from finwidth.empirical.kernel.operations import Expansion, factor
from finwidth.empirical.kernel.recording import Use

Tensor = torch.Tensor


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
    use: Use, x: Tensor, D: Tensor, owner: Tensor, n: int, weight: float | None, bias: float | None
) -> GradientFactor:
    """The gradients of n samples, as `factor`, from the rows of an operation's input and D (o, *result)."""
    order = torch.argsort(owner, stable=True)
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

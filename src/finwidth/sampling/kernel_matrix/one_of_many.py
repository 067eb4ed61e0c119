"""Draws at one input of any network with Gaussian weights: those of `sample_gram`, in the columns of `sample`."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from finwidth.networks.activations import has_curvature
from finwidth.networks.description import Network
from finwidth.networks.inputs import Vector, check_input
from finwidth.sampling.kernel_matrix.sample_gram import kernel_matrix_sampler
from finwidth.sampling.one_input.sample import first_output
from finwidth.sampling.sampler import Columns, draw_chunks


def draw_one_input(
    net: Network,
    x: Vector,
    draws: int,
    seed: int = 0,
    *,
    change: bool = True,
    progress: Callable[[int], object] | None = None,
) -> Iterator[Columns]:
    """Chunks of draws of output 0: output, K_w, K_b, K and, where phi'' is known, its change dK, shape (draws,) each.

    For networks that `finwidth.sample` does not draw, at a cost that grows with their widths.

    Examples
    --------
    >>> from finwidth import MLP
    >>> from finwidth.sampling.kernel_matrix.one_of_many import draw_one_input
    >>> [chunk] = draw_one_input(MLP([2, 4, 4, 3], activation="tanh"), [1, 2], draws=5)
    >>> sorted(chunk), chunk["K"].shape
    (['K', 'K_b', 'K_w', 'dK', 'output'], (5,))
    """
    outputs = net.widths[-1]
    targets = [0.0] if outputs == 1 else [[0.0] * outputs]
    moves = change and has_curvature(net.activation)
    sampler = kernel_matrix_sampler(net, [check_input(net, x)], targets if moves else None)
    return map(first_output, draw_chunks(sampler, draws, seed, progress=progress))

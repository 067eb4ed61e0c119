"""The kernel of random Gaussian networks before and after one step of SGD at one input, in law.

One input meets a network twice, so that a draw costs four Gaussian vectors a layer and no matrix, whatever the
activation (derivation in docs/theory/training.md).  Of several outputs it is the kernel of output 0; all are trained.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from finwidth.memory import afford, amount
from finwidth.networks.laws import FloatArray
from finwidth.networks.mlp import MLP
from finwidth.progress import check_time, stage
from finwidth.sampling.lazy_matrix.gaussian import NotFiniteError
from finwidth.sampling.random.streams import stream
from finwidth.sampling.training import plan as training_plan
from finwidth.sampling.training.losses import SQUARED
from finwidth.sampling.training.networks import Networks, Passed, Pulled
from finwidth.sampling.training.plan import Plan

_SECONDS = 1e-7  # about so many for a neuron of a draw
_CHUNK_NEURONS = 2**18  # of all layers and draws of a chunk


def initial(net: MLP, x: FloatArray, draws: int, seed: int) -> FloatArray:
    """K_00(x,x) of random networks, shape (draws,); `first_step` with the same seed draws the same networks.

    Examples
    --------
    >>> import numpy as np
    >>> from finwidth import MLP
    >>> from finwidth.sampling.training.first_step import initial
    >>> abs(float(initial(MLP([2, 3, 3, 1]), np.array([1.0, 2.0]), 100_000, seed=0).mean()) - 151 / 16) < 0.2
    True
    """
    return np.concatenate([_kernel(networks)[0] for networks in _chunks(net, x, draws, seed)])


def first_step(  # noqa: PLR0917
    net: MLP, x: FloatArray, target: FloatArray, lr: float, draws: int, seed: int
) -> tuple[FloatArray, FloatArray]:
    """K_00(x,x) before and after one step on |N(x) - t|^2 / 2, each of shape (draws,).

    Parameters
    ----------
    net
        A network with Gaussian weights and biases, any activation.
    x, target
        One input, shape (n_0,), and its target, shape (n_d,).
    lr
        Learning rate of the network's parameterization.
    draws, seed
        How many networks, and what fixes them.

    Raises
    ------
    NotFiniteError
        If a step leads past a double's range.

    Examples
    --------
    >>> import numpy as np
    >>> from finwidth import MLP
    >>> from finwidth.sampling.training.first_step import first_step
    >>> before, after = first_step(MLP([2, 100, 1]), np.array([1.0, 1.0]), np.array([1.0]), 0.1, draws=1000, seed=0)
    >>> before.shape, bool((before != after).any())
    ((1000,), True)
    """
    pieces = [_step(networks, target, lr) for networks in _chunks(net, x, draws, seed)]
    before, after = (np.concatenate(each) for each in zip(*pieces, strict=True))
    return before, after


def _chunks(net: MLP, x: FloatArray, draws: int, seed: int) -> Iterator[Networks]:
    neurons = sum(net.widths[1:])
    size = min(draws, max(1, _CHUNK_NEURONS // neurons))
    one = training_plan.memory(Plan(net, x[None], np.zeros((1, net.widths[-1])), 1, 1.0, 0.0, 1, SQUARED, range(2)))
    what = f"drawing {amount(draws)} networks of {amount(neurons)} neurons"
    afford(size * one + 16 * draws, what, "draw fewer, or take a narrower network")
    check_time(draws, _SECONDS * neurons, what, "draw fewer")
    with stage("drawing", draws) as told:
        for chunk, start in enumerate(range(0, draws, size)):
            yield Networks(net, x[None], min(size, draws - start), stream(seed, chunk))
            told(min(start + size, draws))


def _step(networks: Networks, target: FloatArray, lr: float) -> tuple[FloatArray, FloatArray]:
    with np.errstate(over="ignore", invalid="ignore"):  # overflow is seen in the kernels
        before, passed, pulled = _kernel(networks)
        slope = passed.output - target
        if len(target) > 1:
            pulled = networks.backward(passed, slope, None)
            slope = np.ones_like(slope[..., :1])
        networks.step(passed, pulled, slope[..., 0], lr, 0.0)
        after = _kernel(networks)[0]
    if not np.isfinite(after).all():
        raise NotFiniteError("a kernel after the step is not finite")
    return before, after


def _kernel(networks: Networks) -> tuple[FloatArray, Passed, Pulled]:
    """K_00 of each network, (draws,), and the passes that gave it."""
    passed = networks.forward(None)
    seeds = np.zeros_like(passed.output)
    seeds[..., 0] = 1.0
    pulled = networks.backward(passed, seeds, None)
    return networks.kernel(passed, pulled, None, 1)[:, 0, 0], passed, pulled

"""What kind of kernel a network has, and what one step of SGD does to it: `regime`."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from finwidth.arguments import count, numbers, real
from finwidth.empirical.training import first_step as dense
from finwidth.errors import FinwidthError, shown
from finwidth.exact.moments import moments
from finwidth.exact.moments import unsupported as no_moments
from finwidth.networks.description import Network, check_network, kept_widths, weight_layers
from finwidth.networks.inputs import Vector, check_input
from finwidth.networks.laws import FloatArray
from finwidth.networks.mlp import MLP
from finwidth.networks.routes import instead, not_normalised
from finwidth.sampling.lazy_matrix.gaussian import NotFiniteError
from finwidth.sampling.random.streams import check_seed
from finwidth.sampling.sampler import not_gaussian
from finwidth.sampling.training import first_step as in_law

if TYPE_CHECKING:
    from torch import nn

# A kernel within 10% of its mean is called deterministic, one that a step moves by less than 10% at rest.
SPREAD = 0.1
MOVEMENT = 0.1
_DRAWS = 4000
_FEWEST = 32
_NEURONS, _WEIGHTS = 10**7, 10**8  # of all draws of a network: about a second
_MOST_NEURONS, _MOST_WEIGHTS = 4 * 10**6, 3 * 10**7  # of one network: some ten seconds for the fewest draws
_MEANING = {
    "near-deterministic": "one fixed kernel, its mean, describes it up to there",
    "noisy": "average over initializations, or widen it, before trusting any one kernel",
    "moving": "a fixed kernel does not describe even this step",
}
_CARRIED = 1 / 6  # of the draws have to carry a mean, in the sense of `Estimate.effective_draws`


@dataclass(frozen=True)
class Regime:
    """What kind of kernel a network has at initialization, at one input, and what one step on that input does to it.

    Nothing here is about longer training, several inputs, or another target or rate than those named.

    Attributes
    ----------
    name
        ``"near-deterministic"``: cv and movement at most 0.1.  ``"noisy"``: cv above 0.1, movement at most 0.1.
        ``"moving"``: movement above 0.1.
    cv, cv_error
        Standard deviation of K over its mean, over random initializations, and its standard error: 0 where it is exact.
    movement, movement_error
        E|K_1 - K_0| / E[K], K_t the kernel of a network after t steps, over random initializations, and its standard
        error.  NaN where so few networks carry the mean that draws do not tell it.
    median
        Of |K_1 - K_0| / E[K]: half of the networks move by less.  NaN if the step leads past a double's range.
    target, lr
        Of the step, on |N(x) - target|^2 / 2 in the network's parameterization.
    advice
        The same in a sentence.
    """

    name: str
    cv: float
    cv_error: float
    movement: float
    movement_error: float
    median: float
    target: float | tuple[float, ...]
    lr: float
    advice: str


def regime(
    net: Network | nn.Module,
    x: Vector | None = None,
    *,
    target: float | Sequence[float] = 1.0,
    lr: float | None = None,
    draws: int | None = None,
    seed: int = 0,
    init: str | Mapping[str, object] | None = None,
) -> Regime:
    """How much the kernel K(x,x) of a network varies between initializations, and how much one step of SGD moves it.

    The spread is exact where the activation is positively homogeneous.  The movement is what happens to the kernels of
    drawn networks, each of which takes the step: gates that flip, and the target's part, are in it (docs/advice.md).

    Parameters
    ----------
    net
        The network: an `MLP`, or a `ResNet` or `BalancedResNet` with Gaussian weights. Or a torch module that
        `finwidth.empirical.recognise` knows: then the law is that of its initialization, and the rate that of
        torch.optim.SGD.  Of several outputs K is that of output 0; all are trained.
    x
        The input, shape (n_0,); by default all ones.
    target
        One number, or one for each output.
    lr
        Learning rate of the network's parameterization, by default 1/E[K]: the rate at which a fixed kernel would fit
        the target in one step.
    draws, seed
        How many networks, by default 4000, fewer of large ones, and a whole number that fixes them.
    init
        How the weights of a module were drawn, as for `finwidth.empirical.recognise`; by default inferred.

    Raises
    ------
    FinwidthError
        If an argument is not allowed, the kernel is zero, or the network is too large to draw (unless ``draws`` is
        given).

    Examples
    --------
    >>> import finwidth
    >>> for hidden in (2000, 200, 20):
    ...     print(finwidth.regime(finwidth.MLP([10, *[hidden] * 4, 1]), draws=400).name)
    near-deterministic
    noisy
    moving
    >>> found = finwidth.regime(finwidth.MLP([10, *[200] * 4, 1]), target=0, lr=0.01)
    >>> found.movement < 0.02, found.movement_error < 0.001
    (True, True)
    """
    net, seed = _network(net, init), check_seed(seed)
    point = check_input(net, [1.0] * net.widths[0] if x is None else x)
    wanted = _step_targets(net, target)
    draws = _default_draws(net) if draws is None else count("draws", draws)
    if draws == 1:
        raise FinwidthError("draws is 1; give at least 2, for one tells nothing of its error")
    mean, cv, cv_error = _spread(net, point if x is None else x, point, draws, seed)
    rate = 1 / mean if lr is None else real("lr", lr, "a finite number above 0", lambda rate: 0 < rate < math.inf)
    moved = _moved(net, point, wanted, rate, draws=draws, seed=seed) / mean
    movement, error = _mean(moved)
    median = float(np.median(moved)) if np.isfinite(moved).all() else math.nan
    name = "moving" if moved.mean() > MOVEMENT else "noisy" if cv > SPREAD else "near-deterministic"
    towards = tuple(wanted.tolist()) if np.ndim(target) else float(wanted[0])
    spread = f"{cv:.2g}{f' +- {2 * cv_error:.1g}' * bool(cv_error)}"
    step = f"target {_plainly(towards)} and learning rate {rate:.3g}{' = 1/E[K]' * (lr is None)}"
    advice = (
        f"at this input its kernel varies by {spread} of its mean between initializations, and the first step of SGD, "
        f"on this input alone with {step}, moves it {_movement_in_words(movement, error, median)}: {_MEANING[name]}; "
        "longer training, more inputs, another target or rate are another matter"
    )
    return Regime(name, cv, cv_error, movement, error, median, towards, rate, advice)


def too_large(net: Network) -> str | None:
    """Why `regime` does not draw a network unless told how often: it is too large; None if it is not."""
    if not_gaussian(net):
        if _weights(net) > _MOST_WEIGHTS:
            return f"{not_gaussian(net)[0]}, so networks are drawn whole, with {_weights(net):.2g} weights each"
    elif sum(kept_widths(net)) > _MOST_NEURONS:
        return f"it has {sum(kept_widths(net)):.2g} neurons"
    return None


def _weights(net: Network) -> int:
    return sum(layer.fan_in * layer.fan_out for stage in net.stages for layer in weight_layers(stage))


def unsupported(net: Network) -> list[str]:
    """Reasons why `regime` does not serve this network; none if it does."""
    return not_normalised(net) or in_law.unsupported(net) * (not isinstance(net, MLP))


def _network(net: Network | nn.Module, init: str | Mapping[str, object] | None) -> Network:
    if not isinstance(net, Network) and hasattr(net, "parameters"):
        from finwidth import empirical

        net = empirical.recognise(net, init)
    checked = check_network(net)
    if reasons := unsupported(checked):
        raise FinwidthError(f"finwidth.regime cannot serve this network: {'; '.join(reasons)}; {instead(checked)}")
    return checked


def _step_targets(net: Network, target: float | Sequence[float]) -> FloatArray:
    outputs = net.widths[-1]
    given = numbers(target)
    if given is None or given.shape not in {(), (outputs,)} or not np.isfinite(given).all():
        raise FinwidthError(f"target is {shown(target)}; give a finite number, or one for each of {outputs} outputs")
    return np.broadcast_to(given, (outputs,))


def _default_draws(net: Network) -> int:
    """Number of draws that take about a second; FinwidthError if even the smallest number takes much longer."""
    if reason := too_large(net):
        raise FinwidthError(f"this network is drawn only if you say how often: {reason}; give draws={_FEWEST}, or so")
    affordable = _WEIGHTS // _weights(net) if not_gaussian(net) else _NEURONS // sum(kept_widths(net))
    return max(_FEWEST, min(_DRAWS, affordable))


def _spread(net: Network, x: Vector, point: FloatArray, draws: int, seed: int) -> tuple[float, float, float]:
    """E[K], the cv of K, and the standard error of the latter: exact where there are exact moments, else drawn."""
    if not no_moments(net):
        exact = moments(net, x)
        mean, cv, error = float(exact.mean), exact.cv, 0.0
    else:
        K = _initial_kernels(net, point, draws, seed)
        mean, cv = float(K.mean()), float(K.std() / K.mean()) if K.any() else 0.0
        error = _cv_error(K / K.mean()) if cv else 0.0
    if not mean:
        raise FinwidthError("the kernel of this network is zero at this input: nothing is trained; use bias='trained'")
    if not 0 < mean < math.inf or math.isinf(1 / mean):
        raise FinwidthError(f"E[K] is {mean:.3g}, past the range in which a step can be drawn; rescale gains or input")
    return mean, cv, error


def _initial_kernels(net: Network, x: FloatArray, draws: int, seed: int) -> FloatArray:
    if isinstance(net, MLP) and not_gaussian(net):
        return dense.initial(net, x, draws, seed)
    return in_law.sampled_kernels(net, x, draws, seed)


def _cv_error(relative: FloatArray) -> float:
    """Standard error of the cv of draws over their mean, by the delta method."""
    deviations = relative - 1
    variance = float(np.square(deviations).mean())
    influence = (np.square(deviations) - variance) / (2 * math.sqrt(variance)) - math.sqrt(variance) * deviations
    return float(influence.std()) / math.sqrt(len(relative))


def _moved(net: Network, x: FloatArray, target: FloatArray, lr: float, *, draws: int, seed: int) -> FloatArray:
    """|K_1 - K_0| of drawn networks; infinite if a step leads past a double's range."""
    try:
        if isinstance(net, MLP) and not_gaussian(net):
            before, after = dense.first_step(net, x, target, lr, draws, seed)
        else:
            before, after = in_law.sampled_first_step(net, x, target, lr, draws, seed)
    except NotFiniteError:
        return np.full(1, math.inf)
    moved: npt.NDArray[np.float64] = np.abs(after - before)
    return np.where(np.isfinite(moved), moved, math.inf)


def _plainly(target: float | tuple[float, ...]) -> str:
    return f"({', '.join(f'{each:g}' for each in target)})" if isinstance(target, tuple) else f"{target:g}"


def _mean(moved: FloatArray) -> tuple[float, float]:
    """Mean and standard error; NaN where too few of the draws carry the mean to tell either."""
    if not moved.any():
        return 0.0, 0.0
    largest = float(moved.max())
    if not math.isfinite(largest):
        return math.nan, math.nan
    relative = moved / largest  # squares may leave a double's range
    if relative.mean() ** 2 < _CARRIED * np.square(relative).mean():
        return math.nan, math.nan
    return largest * float(relative.mean()), largest * float(relative.std(ddof=1)) / math.sqrt(len(moved))


def _movement_in_words(movement: float, error: float, median: float) -> str:
    """How far a step moves the kernel, in words."""
    if math.isnan(median):
        return "past a double's range in some networks"
    if math.isnan(movement):
        return f"by a mean that too few networks carry for draws to tell it (half of them: by less than {median:.1g})"
    return f"by {movement:.2g} +- {2 * error:.1g} of its mean"

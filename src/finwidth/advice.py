"""What kind of kernel a network has, and what one step of SGD does to it: `regime`."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, NamedTuple, TypeGuard

import numpy as np

from finwidth import arguments, module_law
from finwidth.arguments import check_seed, count, numbers, real
from finwidth.documents import plain
from finwidth.empirical.training import first_step as dense
from finwidth.errors import FinwidthError, shown
from finwidth.exact.expansion.one_input import where_it_serves
from finwidth.exact.moments import moments
from finwidth.exact.moments import unsupported as no_moments
from finwidth.exact.normalised import why_quantiles
from finwidth.module_law import ModuleLaw
from finwidth.networks.description import Network, check_network, count_weights, kept_widths
from finwidth.networks.inputs import Vector, check_input
from finwidth.networks.laws import FloatArray
from finwidth.networks.mlp import MLP
from finwidth.networks.routes import instead, not_gaussian
from finwidth.sampling.lazy_matrix.gaussian import NotFiniteError
from finwidth.sampling.statistics.quantile_sketch import QuantileSketch
from finwidth.sampling.training import first_step as in_law
from finwidth.tables import Result, Table, told

if TYPE_CHECKING:
    from torch import nn

# A kernel within 10% of its mean is called deterministic, one that a step moves by less than 10% at rest.
_SPREAD = 0.1
_MOVEMENT = 0.1
_DRAWS = 4000
_FEWEST = 32
_NEURONS, _WEIGHTS = 10**7, 10**8  # of all draws of a network: about a second
_MOST_NEURONS, _MOST_WEIGHTS = 4 * 10**6, 3 * 10**7  # of one network: some ten seconds for the fewest draws
_MEANING = {
    "near-deterministic": "one fixed kernel, its {centre}, describes it up to there",
    "noisy": "{average} over initializations, or widen it, before trusting any one kernel",
    "moving": "a fixed kernel does not describe even this step",
}
_ROUNDING = 1e-5  # of kernels in float32
_ALIKE = (
    "all draws have one kernel up to rounding, as where a last layer begins at zero, which then is all that the first "
    "step trains: ask again after a step, or with that layer drawn"
)
_VARIANTS = (
    "what would change this is seen by asking the same of variants, by factory=: wider layers, fewer blocks, branches "
    "times one over the root of their number, a norm before each"
)
_CARRIED = 1 / 6  # of the draws have to carry a mean, in the sense of `Estimate.effective_draws`


class _Centre(NamedTuple):
    """How the middle of a law is told: its name, of K in a formula, and what to do with many kernels."""

    name: str
    of_kernel: str
    average: str


_MEAN = _Centre("mean", "E[K]", "average")
_MEDIAN = _Centre("median", "median K", "take the median")


class _Spread(NamedTuple):
    """Where the law of K is, and how far it spreads relative to that, with its standard error."""

    middle: float
    cv: float
    error: float
    centre: _Centre = _MEAN
    how: str = ""  # it is known, where that has to be said


@dataclass(frozen=True, repr=False)
class Regime(Result):
    """What kind of kernel a network has at initialization, at one input, and what one step on that input does to it.

    Nothing here is about longer training, several inputs, or another target or rate than those named.

    Attributes
    ----------
    name
        ``"near-deterministic"``: cv and movement at most 0.1.  ``"noisy"``: cv above 0.1, movement at most 0.1.
        ``"moving"``: movement above 0.1.
    cv, cv_error
        Standard deviation of K over its mean, over random initializations, and its standard error: 0 where it is exact,
        and half of what first order in 1/width leaves out of it where it is from that.
        Relative to the median (q84 - q16) / (2 median) of K, which is the same where K is near to normal.
    movement, movement_error
        E|K_1 - K_0| / E[K], K_t the kernel of a network after t steps, over random initializations, and its standard
        error.  NaN where so few networks carry the mean that draws do not tell it.  Relative to the median the median
        of |K_1 - K_0| over that of K.
    median
        Of |K_1 - K_0| / E[K], of normalised networks over the median of K: half of the networks move by less.  NaN if
        the step leads past a double's range.
    relative_to
        ``"mean"`` or, of normalised networks and of draws with a heavy tail, ``"median"``.
    target, lr
        Of the step, on |N(x) - target|^2 / 2 in the network's parameterization.
    advice
        The same in a sentence.
    network
        Whose it is; None of a module that is not recognised.
    """

    name: str
    cv: float
    cv_error: float
    movement: float
    movement_error: float
    median: float
    relative_to: str
    target: float | tuple[float, ...]
    lr: float
    advice: str
    network: Network | None = None

    def content(self) -> dict[str, object]:
        """Its name, the spread and the movement with their errors, the step, and the advice."""
        found: dict[str, object] = plain(
            {
                "regime": self.name,
                "cv": {"value": self.cv, "se": self.cv_error},
                "movement": {"value": self.movement, "se": self.movement_error},
                "median_movement": {"value": self.median},
                **{name: getattr(self, name) for name in ("relative_to", "target", "lr", "advice")},
            }
        )
        return found

    def _table(self) -> Table:
        spread = "CV of K" if self.relative_to == "mean" else "(q84 - q16) / (2 median) of K"
        table = Table(
            f"{self._of}: {self.name}",
            ("quantity", "value", "std. err."),
            f"{self.advice[0].upper()}{self.advice[1:]}.",
        )
        table.add(spread, self.cv, told(self.cv_error, ".2g"))
        table.add("movement of K in a step", self.movement, told(self.movement_error, ".2g"))
        table.add("half of the networks: less than", self.median)
        table.add("learning rate", self.lr)
        return table

    @property
    def _of(self) -> str:
        return "a torch module" if self.network is None else str(self.network)

    def _headline(self) -> str:
        moved = f"a step moves K by {self.movement:.2g} of its {self.relative_to}"
        if math.isnan(self.movement):
            moved = f"a step moves K by less than {self.median:.2g} of its mean in half of the networks"
        if math.isnan(self.median):
            moved = "a step moves K past a double's range in some networks"
        return f"{self._of}: {self.name}, CV {self.cv:.2g}, {moved}"


def regime(
    net: Network | nn.Module,
    x: Vector | None = None,
    *,
    target: float | Sequence[float] = 1.0,
    lr: float | None = None,
    draws: int | None = None,
    seed: int = 0,
    init: str | Mapping[str, object] | None = None,
    factory: Callable[[], nn.Module] | None = None,
    progress: Callable[[int], object] | None = None,
) -> Regime:
    """How much the kernel K(x,x) of a network varies between initializations, and how much one step of SGD moves it.

    The spread is exact where the activation is positively homogeneous, and to first order in 1/width where the network
    is wide enough for `finwidth.expansion` to serve; else of draws.  The movement is what happens to the kernels of
    drawn networks, each of which takes the step: gates that flip, and the target's part, are in it (docs/advice.md).
    Of normalised networks, whose E[K] is often infinite, and of modules that normalise or whose draws have a heavy
    tail, both are told by quantiles of drawn networks, relative to the median of K.

    Parameters
    ----------
    net
        The network: an `MLP`, or a `ResNet` or `BalancedResNet` with Gaussian weights, which normalised networks have
        as well. Or a torch module: then the law is that of its initialization, and the rate that of torch.optim.SGD. A
        module that `finwidth.empirical.recognise` does not know is drawn again, layer by layer or by ``factory``, as
        for `compare`. Of several outputs K is that of output 0; all are trained.
    x
        The input, shape (n_0,); by default all ones.  Of a module that is not recognised, one sample, always given.
    target
        One number, or one for each output.
    lr
        Learning rate of the network's parameterization, by default 1/E[K]: the rate at which a fixed kernel would fit
        the target in one step.  Of normalised networks 1 over the median of K.
    draws, seed
        How many networks, by default 4000, fewer of large ones, 32 of modules that are not recognised, and a whole
        number that fixes them.
    init
        How the weights of a module were drawn, as for `finwidth.empirical.recognise`; by default inferred.
    factory
        A function without arguments that makes a fresh module like the one given, initialised by torch's generator.
    progress
        Called with how far it is while a module that is not recognised is drawn: from 1 to twice ``draws``.

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
    >>> found = finwidth.regime(finwidth.MLP([10, *[200] * 4, 1], norm="layer"), draws=400)
    >>> found.name, found.relative_to
    ('noisy', 'median')
    """
    tell = arguments.progress(progress)
    found, seed = _network(net, init, factory), check_seed(seed)
    if isinstance(found, ModuleLaw):
        draws = _FEWEST if draws is None else count("draws", draws)
        return _regime_of_draws(found, x, target, lr, draws, seed, tell)
    net = found
    point = check_input(net, [1.0] * net.widths[0] if x is None else x)
    wanted = _step_targets(net.widths[-1], target)
    draws = _default_draws(net) if draws is None else count("draws", draws)
    _check_several(draws)
    kernels, step = _drawing(net)
    spread = _known_spread(net, point if x is None else x)
    if spread is None:
        spread = _spread_of_kernels(kernels(point, draws, seed), why_quantiles(net))
    rate = _rate(lr, spread.middle)
    try:
        before, after = step(point, wanted, rate, draws, seed)
        moved = np.abs(after - before) / spread.middle
    except NotFiniteError:  # a step leads past a double's range
        moved = np.full(1, math.inf)
    told_of = _regime_told(spread, moved, _towards(target, wanted), rate, default=lr is None)
    return replace(told_of, network=net)


def _check_several(draws: int) -> None:
    if draws == 1:
        raise FinwidthError("draws is 1; give at least 2, for one tells nothing of its error")


def _towards(target: float | Sequence[float], wanted: FloatArray) -> float | tuple[float, ...]:
    """The target as it was given, one number or one for each output."""
    return tuple(wanted.tolist()) if np.ndim(target) else float(wanted[0])


def _rate(lr: float | None, middle: float) -> float:
    return 1 / middle if lr is None else real("lr", lr, "a finite number above 0", lambda rate: 0 < rate < math.inf)


def _regime_of_draws(  # noqa: PLR0917
    law: ModuleLaw,
    x: object,
    target: float | Sequence[float],
    lr: float | None,
    draws: int,
    seed: int,
    tell: Callable[[int], object],
) -> Regime:
    """The regime of real networks that are drawn and differentiated one by one."""
    _check_several(draws)
    if x is None:
        raise FinwidthError(f"x is None; give one input, of the shape of a sample ({law.not_recognised})")
    X = module_law.one_input(law.module, x)
    wanted = _step_targets(module_law.number_of_outputs(law.module, X), target)
    lr = None if lr is None else _rate(lr, 1.0)  # a mistake is told before anything is drawn
    before = module_law.kernels_of_draws(law, X, draws, seed, tell)
    spread = _spread_of_kernels(before, module_law.heavy_tailed(law, X, before))
    rate = _rate(lr, spread.middle)
    after = module_law.kernels_after_step(law, X, wanted, rate, draws, seed, lambda done: tell(draws + done))
    moved = np.abs(after - before) / spread.middle
    of, same = f"of {draws} {law.told}: ", spread.cv < _ROUNDING
    found = _regime_told(spread, moved, _towards(target, wanted), rate, default=lr is None, of=of)
    return replace(found, advice=f"{found.advice}; {_ALIKE if same else _VARIANTS}")


def _regime_told(
    spread: _Spread,
    moved: FloatArray,
    towards: float | tuple[float, ...],
    rate: float,
    *,
    default: bool,
    of: str = "",
) -> Regime:
    """What is found, in numbers and words."""
    moved, centre = np.where(np.isfinite(moved), moved, math.inf), spread.centre
    median = float(np.median(moved)) if np.isfinite(moved).all() else math.nan
    if centre is _MEAN:
        (movement, error), typical = _mean(moved), moved.mean()
    else:
        movement, typical = median, np.median(moved)
        error = math.nan if math.isnan(median) else QuantileSketch.of(moved).quantile(0.5).se
    name = "moving" if typical > _MOVEMENT else "noisy" if spread.cv > _SPREAD else "near-deterministic"
    varies = f"{spread.cv:.2g}{f' ± {2 * spread.error:.1g}' * bool(spread.error)} of its {centre.name}"
    how = f" ({spread.how})" * bool(spread.how)
    step = f"target {_plainly(towards)} and learning rate {rate:.3g}{f' = 1/{centre.of_kernel}' * default}"
    advice = (
        f"{of}at this input its kernel varies by {varies}{how} between initializations, and the first step of "
        f"SGD, on this input alone with {step}, moves it {_movement_in_words(movement, error, median, centre)}: "
        f"{_MEANING[name].format(centre=centre.name, average=centre.average)}; "
        "longer training, more inputs, another target or rate are another matter"
    )
    return Regime(name, spread.cv, spread.error, movement, error, median, centre.name, towards, rate, advice)


def too_large(net: Network) -> str | None:
    """Why `regime` does not draw a network unless told how often: it is too large; None if it is not."""
    if not_gaussian(net):
        if count_weights(net) > _MOST_WEIGHTS:
            return f"{not_gaussian(net)[0]}, so networks are drawn whole, with {count_weights(net):.2g} weights each"
    elif sum(kept_widths(net)) > _MOST_NEURONS:
        return f"it has {sum(kept_widths(net)):.2g} neurons"
    return None


def unsupported(net: Network) -> list[str]:
    """Reasons why `regime` does not serve this network; none if it does."""
    return [] if _holds_weights(net) else in_law.unsupported(net)


def _holds_weights(net: Network) -> TypeGuard[MLP]:
    """Whether networks are drawn with their weights, as fully connected ones of another law than Gaussian are."""
    return isinstance(net, MLP) and net.norm is None and bool(not_gaussian(net))


def _network(
    net: Network | nn.Module, init: str | Mapping[str, object] | None, factory: Callable[[], nn.Module] | None
) -> Network | ModuleLaw:
    """The description, or of a module that has none that is served here the law of its draws."""
    if not isinstance(net, Network) and hasattr(net, "parameters"):
        return module_law.description_or_law(net, init, factory, serves=lambda found: not unsupported(found))
    module_law.check_no_factory(factory)
    checked = check_network(net)
    if reasons := unsupported(checked):
        raise FinwidthError(f"finwidth.regime cannot serve this network: {'; '.join(reasons)}; {instead(checked)}")
    return checked


def _step_targets(outputs: int, target: float | Sequence[float]) -> FloatArray:
    given = numbers(target)
    if given is None or given.shape not in {(), (outputs,)} or not np.isfinite(given).all():
        raise FinwidthError(f"target is {shown(target)}; give a finite number, or one for each of {outputs} outputs")
    return np.broadcast_to(given, (outputs,))


def _default_draws(net: Network) -> int:
    """Number of draws that take about a second; FinwidthError if even the smallest number takes much longer."""
    if reason := too_large(net):
        raise FinwidthError(f"this network is drawn only if you say how often: {reason}; give draws={_FEWEST}, or so")
    affordable = _WEIGHTS // count_weights(net) if not_gaussian(net) else _NEURONS // sum(kept_widths(net))
    return max(_FEWEST, min(_DRAWS, affordable))


def _known_spread(net: Network, x: Vector) -> _Spread | None:
    """The mean and the spread without draws: exactly, or to first order in 1/width; None where neither serves."""
    if not no_moments(net) and not why_quantiles(net):
        exact = moments(net, x)
        return _Spread(_usable(float(exact.mean)), exact.cv, 0.0)
    found = where_it_serves(net, x)
    if found is None:
        return None
    told = f"to first order in 1/width, which {found.remainder}"
    return _Spread(_usable(found.mean), found.cv, found.cv * found.left_out / 4, how=told)


def _spread_of_kernels(K: FloatArray, quantiles: str) -> _Spread:
    """The middle and the spread of drawn kernels; from quantiles, if that is the reason for them."""
    if quantiles:
        law = QuantileSketch.of(K)
        spread = law.relative_spread
        told = f"(q84 - q16)/2; {quantiles}"
        return _Spread(_usable(law.quantile(0.5).value, _MEDIAN), spread.value, spread.se, _MEDIAN, told)
    mean, cv = float(K.mean()), float(K.std() / K.mean()) if K.any() else 0.0
    return _Spread(_usable(mean), cv, _cv_error(K / K.mean()) if cv else 0.0)


def _usable(middle: float, centre: _Centre = _MEAN) -> float:
    """The mean or median of K, if a step can be drawn with it."""
    if not middle:
        raise FinwidthError(
            f"the {'kernel' if centre is _MEAN else 'median kernel'} of this network is zero at this input: nothing is "
            "trained; use bias='trained'"
        )
    if not 0 < middle < math.inf or math.isinf(1 / middle):
        raise FinwidthError(
            f"{centre.of_kernel} is {middle:.3g}, past the range in which a step can be drawn; rescale gains or input"
        )
    return middle


def _drawing(net: Network) -> tuple[Callable[..., FloatArray], Callable[..., tuple[FloatArray, FloatArray]]]:
    """What draws kernels of a network, and kernels before and after a step."""
    if _holds_weights(net):
        return partial(dense.initial, net), partial(dense.first_step, net)
    return partial(in_law.sampled_kernels, net), partial(in_law.sampled_first_step, net)


def _cv_error(relative: FloatArray) -> float:
    """Standard error of the cv of draws over their mean, by the delta method."""
    deviations = relative - 1
    variance = float(np.square(deviations).mean())
    influence = (np.square(deviations) - variance) / (2 * math.sqrt(variance)) - math.sqrt(variance) * deviations
    return float(influence.std()) / math.sqrt(len(relative))


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


def _movement_in_words(movement: float, error: float, median: float, centre: _Centre) -> str:
    """How far a step moves the kernel, in words."""
    if math.isnan(median):
        return "past a double's range in some networks"
    if math.isnan(movement):
        return f"by a mean that too few networks carry for draws to tell it (half of them: by less than {median:.1g})"
    half = " or more in half of the networks" * (centre is _MEDIAN)
    return f"by {movement:.2g} ± {2 * error:.1g} of its {centre.name}{half}"

"""When a cell has enough draws, without the bias of peeking.

A sample that stops once its own standard error looks small is biased: for a skewed law small errors and small means
come together (docs/sweeps.md has an example and the proof of what follows).  So pilot samples decide the number of
draws N, and the estimate is the mean of N fresh draws, independent of the pilots and hence of N: E[mean | N] is the
expectation whatever N is.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence

from finwidth.quantities import Estimate

# Pilots grow by fours. The first one decides whose estimates can be trusted and which is not tiny beside the sample
# that it asks for, so that it has seen the spread.
_FIRST_PILOT, _GROWTH, _SHARE = 1024, 4, 16
# The pilot's variance is an estimate too; so much more is drawn that most samples come out below the target.
_MARGIN = 1.2


def wanted_draws(
    pilot: Callable[[int, int], Mapping[str, Estimate]], goals: Sequence[str], target: float, most: int
) -> float:
    """Number of fresh draws for the relative standard error of every goal to reach the target; inf if not predictable.

    Parameters
    ----------
    pilot
        ``pilot(stage, draws)`` is the estimates of an independent sample.
    goals
        Which of the estimates count.
    target
        Wanted standard error over the absolute value of the estimate.
    most
        The limit of a sample. With a higher one the answer is the same, or was inf and is above the old limit: the
        sample that was drawn is the beginning of the one that is asked for.

    Examples
    --------
    >>> from finwidth.quantities import Estimate
    >>> from finwidth.sweeps.quantities.stopping import wanted_draws
    >>> pilot = lambda stage, draws: {"K": Estimate(2.0, 2.0 / draws**0.5, draws, draws / 2, True, "")}
    >>> wanted_draws(pilot, ["K"], 0.01, 10**6)        # relative variance 1 over target squared, and a fifth more
    12000
    >>> wanted_draws(pilot, ["K"], 0.01, 10**3)
    inf
    """
    stage, draws = 0, _FIRST_PILOT
    while draws <= most:
        found = pilot(stage, draws)
        if all(found[goal].trust for goal in goals):
            variance = max(_relative_variance(found[goal]) for goal in goals)
            wanted = max(draws, round(_MARGIN * variance / target**2)) if variance < math.inf else math.inf
            if wanted <= _SHARE * draws:
                return wanted
        stage, draws = stage + 1, draws * _GROWTH
    return math.inf


def _relative_variance(estimate: Estimate) -> float:
    if not estimate.se:
        return 0.0
    return estimate.draws * (estimate.se / estimate.value) ** 2 if estimate.value else math.inf

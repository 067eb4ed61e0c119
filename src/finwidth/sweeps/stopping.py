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

# Each pilot is a sample of its own; the next is drawn while the estimates of one cannot be trusted.
PILOTS = tuple(1024 * 4**stage for stage in range(4))
# The pilot's variance is an estimate too; so much more is drawn that most samples come out below the target.
_MARGIN = 1.2


def wanted_draws(pilot: Callable[[int, int], Mapping[str, Estimate]], goals: Sequence[str], target: float) -> float:
    """How many fresh draws bring the relative standard error of every goal to the target; inf if no pilot can tell.

    Parameters
    ----------
    pilot
        ``pilot(stage, draws)`` is the estimates of an independent sample.
    goals
        Which of the estimates count.
    target
        Wanted standard error over the absolute value of the estimate.

    Examples
    --------
    >>> from finwidth.quantities import Estimate
    >>> from finwidth.sweeps.stopping import wanted_draws
    >>> pilot = lambda stage, draws: {"K": Estimate(2.0, 2.0 / draws**0.5, draws, draws / 2, True, "")}
    >>> wanted_draws(pilot, ["K"], 0.01)        # relative variance 1 over target squared, and a fifth more
    12000
    """
    for stage, draws in enumerate(PILOTS):
        found = pilot(stage, draws)
        if all(found[goal].trust for goal in goals):
            needed = max(_relative_variance(found[goal]) for goal in goals) / target**2
            return max(PILOTS[0], math.ceil(round(_MARGIN * needed, 6))) if needed < math.inf else math.inf
    return math.inf


def _relative_variance(estimate: Estimate) -> float:
    if not estimate.se:
        return 0.0
    return estimate.draws * (estimate.se / estimate.value) ** 2 if estimate.value else math.inf

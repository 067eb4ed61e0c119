"""The three routes side by side: `finwidth.compare`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from finwidth.empirical.brute_force import simulate
from finwidth.errors import FinwidthError
from finwidth.exact.moments import exact_values, moments
from finwidth.network import MLP, Vector, check_input, count, format_widths
from finwidth.quantities import Estimate, plain
from finwidth.sampling import diagonal, importance
from finwidth.sampling.estimates import estimates
from finwidth.sampling.streams import check_seed

_WEIGHTS = 2 * 10**8  # that the default number of real networks draws in all: some seconds
_MOST_NETWORKS = 10_000


@dataclass(frozen=True)
class Row:
    """The mean of one quantity by every route that gives it."""

    quantity: str
    exact: float
    sampled: Estimate | None
    tilted: Estimate | None
    networks: Estimate

    def to_json(self) -> dict[str, Any]:
        """The exact value and the estimates, with z-scores against it."""
        return {
            "exact": self.exact,
            **{
                name: None if found is None else found.to_json() | {"z": found.z(self.exact)}
                for name, found in (("sampled", self.sampled), ("tilted", self.tilted), ("networks", self.networks))
            },
        }


@dataclass(frozen=True)
class Comparison:
    """What `compare` returns: rows by quantity, and why the sampled route is missing, if it is."""

    network: MLP
    rows: tuple[Row, ...]
    not_sampled: str | None

    def to_json(self) -> dict[str, Any]:
        """Plain types."""
        document: dict[str, Any] = plain(
            {
                "network": self.network.describe(),
                "quantities": {row.quantity: row.to_json() for row in self.rows},
                "not_sampled": self.not_sampled,
            }
        )
        return document


def compare(
    net: MLP,
    x: Vector,
    *,
    draws: int = 100_000,
    networks: int | None = None,
    seed: int = 0,
    progress: Callable[[int], object] | None = None,
) -> Comparison:
    """Exact values, draws in law and real networks side by side, each estimate with its error and whether to trust it.

    The three routes share no code beyond the network's definition (`MLP.layers`), so agreement is evidence. The verdict
    of an estimate that cannot be trusted says why: too few draws carry it, or it is far from the exact value. Where one
    of the draws in law cannot, ReLU networks are drawn once more in proportion to what they carry
    (`sampling.importance`); these estimates hold at any depth.

    Parameters
    ----------
    net, x
        The network and one input, shape (n_0,).
    draws
        Draws in law, where the network allows them.
    networks
        Real networks to draw and differentiate; by default up to 10,000, fewer where they are large.
    seed
        A whole number, 0 or more.
    progress
        Called with the number of draws in law finished.

    Examples
    --------
    >>> import finwidth
    >>> found = finwidth.compare(finwidth.MLP([2, 8, 8, 1]), [1, 2], draws=20_000, networks=2_000)
    >>> found.rows[0].quantity, abs(found.rows[0].networks.z(found.rows[0].exact)) < 5
    ('K', True)
    """
    seed, draws = check_seed(seed), count("draws", draws)
    exact = exact_values(moments(net, x))
    weights = sum(layer.fan_in * layer.fan_out for layer in net.layers)
    if weights > _WEIGHTS:
        raise FinwidthError(
            f"one network of {format_widths(net.widths)} has {weights:.2g} weights, too many to draw; "
            "finwidth.moments and finwidth.sample need none"
        )
    if networks is None:
        networks = max(1, min(_MOST_NETWORKS, _WEIGHTS // weights))
    with np.errstate(over="ignore", invalid="ignore"):
        measured = simulate(net, x, count("networks", networks), np.random.default_rng(seed))
    if not all(np.isfinite(column).all() for column in measured.values()):
        raise FinwidthError("the networks overflow a double at this input; rescale it")
    found = estimates([measured], exact)
    sampled: dict[str, Estimate] = {}
    reason = diagonal.why_not(net)
    if reason is None:
        sampled = estimates(diagonal.chunks(net, x, draws, seed, progress=progress), exact)
    tilt = _tilted(net, x, draws, seed, exact) if not all(each.trust for each in sampled.values()) else {}
    rows = tuple(Row(name, exact[name], sampled.get(name), tilt.get(name), found[name]) for name in found)
    return Comparison(net, rows, reason)


def _tilted(net: MLP, x: Vector, draws: int, seed: int, exact: dict[str, float]) -> dict[str, Estimate]:
    """Estimates from tilted draws, or none where there are no such draws."""
    if importance.why_not(net) or not np.any(check_input(net, x)):
        return {}
    try:
        return importance.tilted(net, x, draws, seed, exact=exact)
    except FinwidthError:  # past a double's range, where plain draws have none of the large values
        return {}

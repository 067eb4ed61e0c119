"""What the expansion says of the kernel at one input, and whether it serves there: for advice, tables and figures."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from finwidth.errors import FinwidthError
from finwidth.exact.expansion.expansion import SERVED, Columns, converged, served, unsupported
from finwidth.exact.moments import unsupported as no_moments
from finwidth.exact.normalised import why_quantiles
from finwidth.networks.activations import has_curvature
from finwidth.networks.description import Network
from finwidth.networks.inputs import Vector, check_input
from finwidth.networks.routes import check_supported


@dataclass(frozen=True)
class FirstOrder:
    """K of output 0 at one input, to first order in 1/width.

    Attributes
    ----------
    infinite_width, correction
        K at infinite width, and what is added to its mean.
    variance
        Of K.
    change
        E[dK] per unit learning rate of a step towards target 0; None if phi'' is not known.
    left_out
        By how much, relative to it, Var K has been seen to be larger at most.
    verdict
        Whether that is little enough, in words.
    """

    infinite_width: float
    correction: float
    variance: float
    change: float | None
    left_out: float
    verdict: str

    @classmethod
    def of(cls, net: Network, columns: Columns) -> FirstOrder:
        """What the quantities at one input say."""
        limit, correction = (each.item() for each in columns["K"])
        change = columns["dK"][1].item() if "dK" in columns else None
        variance = max(0.0, columns["K_covariance"][1].item())  # of one layer rounding
        told = served(net, columns)
        return cls(limit, correction, variance, change, float(told["left_out"]), str(told["first_order"]))

    @property
    def serves(self) -> bool:
        """Whether what is left out is at most a tenth."""
        return self.left_out <= SERVED

    @property
    def remainder(self) -> str:
        """What is left out, for a sentence."""
        return f"leaves out at most about {self.left_out:.1%} of Var K"

    @property
    def mean(self) -> float:
        """E[K]."""
        return self.infinite_width + self.correction

    @property
    def cv(self) -> float:
        """Standard deviation of K over its mean."""
        return math.sqrt(self.variance) / self.infinite_width if self.infinite_width else 0.0

    @property
    def means(self) -> dict[str, float]:
        """By the names of `finwidth.quantities.MOMENTS`."""
        square = self.infinite_width * (self.infinite_width + 2 * self.correction) + self.variance
        return {"K": self.mean, "K^2": square} | ({} if self.change is None else {"dK": self.change})

    def content(self) -> dict[str, object]:
        """Means, the variance and the spread by name, and whether first order serves."""
        found = self.means | {"var(K)": self.variance, "cv(K)": self.cv}
        quantities: dict[str, dict[str, object]] = {name: {"first_order": {"value": v}} for name, v in found.items()}
        quantities["K"] |= {"infinite_width": {"value": self.infinite_width}, "correction": {"value": self.correction}}
        first_order = {"serves": self.serves, "left_out": self.left_out, "verdict": self.verdict}
        return {"quantities": quantities, "first_order": first_order}


def to_first_order(net: Network, x: Vector) -> FirstOrder:
    """What `finwidth.expansion` says of one input; raises FinwidthError as that does.

    Examples
    --------
    >>> from finwidth import MLP
    >>> from finwidth.exact.expansion.one_input import to_first_order
    >>> found = to_first_order(MLP([2, 100, 100, 1], activation="tanh"), [1, 2])
    >>> round(found.mean, 4), round(found.cv, 4), found.serves
    (2.8174, 0.1059, True)
    """
    check_supported("finwidth.expansion", net)
    columns, _ = converged(net, np.array([check_input(net, x)]), change=has_curvature(net.activation))
    return FirstOrder.of(net, columns)


def only_to_first_order(net: Network) -> bool:
    """Whether moments of the kernel are known to first order and not exactly, as for smooth activations.

    Of normalised networks, whose moments are often infinite, quantiles tell instead.

    Examples
    --------
    >>> from finwidth import MLP
    >>> from finwidth.exact.expansion.one_input import only_to_first_order
    >>> [only_to_first_order(MLP([2, 9, 1], activation=phi)) for phi in ("relu", "tanh")]
    [False, True]
    """
    return bool(no_moments(net)) and not why_quantiles(net) and not unsupported(net)


def where_it_serves(net: Network, x: Vector) -> FirstOrder | None:
    """What the expansion says of one input; None where it does not serve, or its means cannot be integrated.

    Nor does it of normalised networks, of which quantiles tell.

    Examples
    --------
    >>> from finwidth import MLP
    >>> from finwidth.exact.expansion.one_input import where_it_serves
    >>> [where_it_serves(MLP([2, n, n, 1], activation="tanh"), [1, 2]) is not None for n in (5, 100)]
    [False, True]
    """
    if why_quantiles(net) or unsupported(net):
        return None
    try:
        columns, _ = converged(net, np.array([check_input(net, x)]), change=has_curvature(net.activation))
    except FinwidthError:
        return None
    found = FirstOrder.of(net, columns)
    return found if found.serves else None

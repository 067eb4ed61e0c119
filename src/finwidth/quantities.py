"""The vocabulary: names, meaning and units of every quantity, and what an estimate is."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from decimal import Decimal
from fractions import Fraction
from importlib.metadata import version
from typing import Any

import numpy as np

from finwidth import arguments
from finwidth.network import MLP, check_mlp

CONSTANT = 1e-16  # a relative standard error that only rounding makes


def plain(value: Any) -> Any:
    """A result as JSON takes it: fractions as strings, numbers that are not finite as None, containers inside too.

    >>> from finwidth.quantities import plain
    >>> plain(Fraction(15, 2)), plain(float("inf"))
    ('15/2', None)
    """
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, dict):
        return {key: plain(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [plain(each) for each in value]
    if isinstance(value, Fraction):
        return _digits(value.numerator) + (f"/{_digits(value.denominator)}" if value.denominator > 1 else "")
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _digits(number: int) -> str:
    """A whole number of any length; `str` stops at 4300 digits."""
    return str(Decimal(number))


@dataclass(frozen=True)
class Quantity:
    """One drawn or computed quantity."""

    name: str
    meaning: str
    units: str = "1"

    @property
    def attrs(self) -> dict[str, str]:
        """Attributes of an xarray variable that holds it."""
        return {"long_name": self.meaning, "units": self.units}


KERNEL_DRAWS = {
    each.name: each
    for each in (
        Quantity("output", "network output N(x)"),
        Quantity("K_w", "weight part of the kernel K(x,x)"),
        Quantity("K_b", "bias part of the kernel K(x,x)"),
        Quantity("K", "neural tangent kernel K(x,x) = K_w + K_b"),
        Quantity("dK", "first-order change of K under one SGD step on (N - N*)^2/2, N* = 0", "learning rate"),
    )
}


@dataclass(frozen=True)
class Estimate:
    """A sample mean with its standard error, and whether both can be trusted.

    Attributes
    ----------
    value, se
        Sample mean and its estimated standard error.
    draws
        How many draws it averages.
    effective_draws
        (sum v)^2 / sum v^2 over the draws' contributions v: how many of them carry the sum.
    trust, verdict
        Whether the value and its error can be believed, and why, in a sentence.
    """

    value: float
    se: float
    draws: int
    effective_draws: float
    trust: bool
    verdict: str

    def z(self, exact: float) -> float | None:
        """Standard errors between the estimate and an exact value; None where draws do not vary or numbers overflow."""
        exact = arguments.real("exact", exact, "a number", lambda value: not math.isnan(value))
        known = self.se > CONSTANT * abs(self.value) and math.isfinite(self.se) and math.isfinite(exact)
        return (self.value - exact) / self.se if known else None

    def to_json(self) -> dict[str, Any]:
        """Plain types."""
        return {
            "value": plain(self.value),
            "se": plain(self.se),
            "draws": self.draws,
            "trust": self.trust,
            "verdict": self.verdict,
        }


def attributes(net: MLP, *, method: str, **more: Any) -> dict[str, Any]:
    """Provenance for the attrs of a result: plain strings and numbers, so that any file format holds them."""
    return {
        "finwidth_version": version("finwidth"),
        "network": json.dumps(check_mlp(net).describe()),
        "parameterization": net.parameterization,
        "method": method,
        **{name: storable(value) for name, value in more.items()},
    }


def storable(value: Any) -> Any:
    """An attribute that any file format holds: a whole number of more than 32 bits, such as a large seed, as text.

    >>> from finwidth.quantities import storable
    >>> storable(2**31 - 1), storable(2**100)
    (2147483647, '1267650600228229401496703205376')
    """
    return str(value) if isinstance(value, int | np.integer) and not -(2**31) <= value < 2**31 else value

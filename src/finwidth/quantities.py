"""The vocabulary: names, meaning and units of every quantity, and what an estimate is."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from importlib.metadata import version
from typing import Any, TypeAlias

import numpy as np

from finwidth import arguments
from finwidth.documents import plain
from finwidth.networks.description import Network, check_network
from finwidth.networks.laws import FloatArray
from finwidth.tables import Cell, Result, Table, Told, number, told

CONSTANT = 1e-16  # a relative standard error that only rounding makes


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


Means: TypeAlias = Mapping[Any, Any]  # E[a, b] = E[K_w^a K_b^b], 1 <= a + b <= 2; E["dK"], E["D_ww"], E["D_wb"]


@dataclass(frozen=True)
class Moment:
    """A mean over networks: its name, what tables call it, and how each route reads it off what it knows.

    ``exact`` reads it off exact means in any arithmetic; ``drawn`` gives each draw's contribution, shape (draws,), from
    the columns of `KERNEL_DRAWS`. It is None where draws do not tell: they have the change of K, and not its parts.
    ``order`` is the power of K whose mean is finite with it.
    """

    name: str
    label: str
    exact: Callable[[Means], Any]
    drawn: Callable[[Mapping[str, FloatArray]], FloatArray] | None = None
    order: int = 2


MOMENTS = {
    each.name: each
    for each in (
        Moment("K", "E[K]", lambda E: E[0, 1] + E[1, 0], lambda draw: draw["K"], order=1),
        Moment("K_w", "E[K_w]", lambda E: E[1, 0], lambda draw: draw["K_w"], order=1),
        Moment("K_b", "E[K_b]", lambda E: E[0, 1], lambda draw: draw["K_b"], order=1),
        Moment("K^2", "E[K²]", lambda E: E[0, 2] + 2 * E[1, 1] + E[2, 0], lambda draw: np.square(draw["K"])),
        Moment("K_w^2", "E[K_w²]", lambda E: E[2, 0], lambda draw: np.square(draw["K_w"])),
        Moment("K_b^2", "E[K_b²]", lambda E: E[0, 2], lambda draw: np.square(draw["K_b"])),
        Moment("K_w*K_b", "E[K_w K_b]", lambda E: E[1, 1], lambda draw: draw["K_w"] * draw["K_b"]),
        Moment("dK", "E[ΔK]/λ", lambda E: E["dK"], lambda draw: draw["dK"]),
        Moment("D_ww", "E[Δ_ww]", lambda E: E["D_ww"]),
        Moment("D_wb", "E[Δ_wb]", lambda E: E["D_wb"]),
    )
}
DRAWN = {name: each.drawn for name, each in MOMENTS.items() if each.drawn}  # those that draws tell


@dataclass(frozen=True, repr=False)
class Estimate(Result):
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

    def content(self) -> dict[str, object]:
        """The attributes."""
        found: dict[str, object] = plain(asdict(self))
        return found

    def against(self, exact: float) -> dict[str, object]:
        """The attributes, and the standard errors to an exact value."""
        return {**self.content(), "z": plain(self.z(exact))}

    def cells(self, exact: float | None = None) -> tuple[Cell, Cell, Cell]:
        """What a table writes of it: the value, with an exclamation mark if it cannot be trusted; the error; and z."""
        z = None if exact is None else self.z(exact)
        mark = " " if self.trust else "!"
        score = "" if z is None else f"{z:+.2f}" if abs(z) < 100 else ">99"
        return Told(self.value, number(self.value) + mark), told(self.se, ".2g"), Told(z, score)

    def _table(self) -> Table:
        told_of = f"{'' if self.trust else '! '}{self.verdict}."
        table = Table(f"A mean of {self.draws:,} draws", ("quantity", "value", "std. err.", "effective draws"), told_of)
        table.add("mean", *self.cells()[:2], told(self.effective_draws, ".3g"))
        return table

    def _headline(self) -> str:
        doubt = "" if self.trust else f"; not to be trusted: {self.verdict}"
        return f"{self.value:.6g} ± {self.se:.2g} of {self.draws:,} draws{doubt}"


def doubts(found: Mapping[str, Estimate], source: str = "") -> str:
    """One line that names the estimates that cannot be trusted, and says why of the one that fewest draws carry."""
    doubted = {MOMENTS[name].label: each for name, each in found.items() if not each.trust}
    if not doubted:
        return ""
    worst = min(doubted, key=lambda label: doubted[label].effective_draws)
    of, why = f" ({source})" * bool(source), doubted[worst].verdict
    if len(doubted) == 1:
        return f"! {worst}{of}: {why}.\n"
    return f"! Not to be trusted{of}: {', '.join(doubted)}. At worst {worst}: {why}.\n"


def of_several(net: Network) -> str:
    """What K is of a network of several outputs, for a note."""
    return "" if net.widths[-1] == 1 else "K is that of output 0; the step of ΔK is on all outputs.\n"


def attributes(net: Network, *, method: str, **more: Any) -> dict[str, Any]:
    """Provenance for the attrs of a result: plain strings and numbers, so that any file format holds them."""
    return {
        "finwidth_version": version("finwidth"),
        "network": json.dumps(check_network(net).describe()),
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

"""The paper's forms of the same moments, exactly as printed: `finwidth.bounds`."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction

import numpy as np

from finwidth import arguments
from finwidth.documents import beside, exact_number, plain
from finwidth.errors import FinwidthError
from finwidth.exact.moments import KernelMoments, exp, log, moment_table, moments
from finwidth.networks.description import Network, few_runs
from finwidth.networks.inputs import Vector, exact_input
from finwidth.networks.mlp import MLP
from finwidth.networks.routes import check_mlp, instead, not_normalised, other_kind
from finwidth.progress import stage
from finwidth.quantities import MOMENTS
from finwidth.tables import Cell, Result, Table, number, told

STATEMENTS = {
    "K": "theorem-1",
    "K^2": "theorem-1",
    "K_w^2": "proposition-3",
    "K_b^2": "proposition-4",
    "K_w*K_b": "proposition-5",
    "D_ww": "proposition-3",
    "D_wb": "proposition-5",
    "dK": "theorem-2",
}


HEADINGS = ("paper's form", "ratio")
CAPTION = (
    "ratio: exact value over the paper's form, which holds up to universal constants. The form carries exp(5 β) "
    "with β summed up to the output layer; the ratio leaves out that layer's constant e⁵. ΔK is compared by its "
    "absolute value."
)


@dataclass(frozen=True, repr=False)
class Bounds(Result):
    """The right-hand sides of the paper's statements, which hold up to universal constants, and what they miss.

    Each mapping goes by the quantity: K, K^2, K_w^2, K_b^2, K_w*K_b, D_ww, D_wb, dK (see `STATEMENTS`).  ``log_form``
    is the natural logarithm of the form.  ``ratio`` is exact over form (absolute value for dK).  The forms carry
    exp(5 beta) with beta summed up to the output layer, a constant factor exp(5/n_d) that the universal constants
    absorb; ``hidden_ratio`` leaves it out.  ``exact`` are the moments that they are compared with.
    """

    exact: KernelMoments
    log_form: dict[str, float]
    log_ratio: dict[str, float]
    beta: float
    beta_hidden: float

    @property
    def form(self) -> dict[str, float]:
        """The forms themselves; inf where a double overflows."""
        return _exponentials(self.log_form)

    @property
    def ratio(self) -> dict[str, float]:
        """Exact value over form; 1 where both are zero."""
        return _exponentials(self.log_ratio)

    @property
    def hidden_ratio(self) -> dict[str, float]:
        """Exact value over the form with the hidden part of beta; the stated mean of K has no such factor."""
        shift = 5 * (self.beta - self.beta_hidden)
        without = {key for key, form in self.log_form.items() if key == "K" or form == -math.inf}
        return _exponentials({key: ratio + shift * (key not in without) for key, ratio in self.log_ratio.items()})

    def _about(self) -> dict[str, object]:
        return self.exact._about()

    def content(self) -> dict[str, object]:
        """The exact moments, and beside each the paper's form and their ratio."""
        ratio, hidden_ratio = self.ratio, self.hidden_ratio
        forms = {
            key: {
                "form": {
                    **exact_number(form, self.log_form[key]),
                    "statement": STATEMENTS[key],
                    "ratio": plain(ratio[key]),
                    "hidden_ratio": plain(hidden_ratio[key]),
                }
            }
            for key, form in self.form.items()
        }
        return beside(self.exact.content(), forms)

    def cells(self, name: str) -> tuple[Cell, ...]:
        """What a table has of one quantity under `HEADINGS`: the form and the ratio, if there are any."""
        if not isinstance(name, str) or name not in self.log_form:
            return ()
        return told(self.form[name], log=self.log_form[name]), self.hidden_ratio[name]

    def _table(self) -> Table:
        table = moment_table(self.exact, HEADINGS, {name: self.cells(name) for name in self.log_form})
        table.notes = CAPTION
        return table

    def _headline(self) -> str:
        ratios = self.hidden_ratio
        told_of = ", ".join(f"{MOMENTS[name].label} {number(ratios[name])}" for name in ("K", "K^2", "dK"))
        return f"{self.exact.network}: exact values over the paper's forms: {told_of}"


def _exponentials(logs: dict[str, float]) -> dict[str, float]:
    return {key: exp(value) for key, value in logs.items()}


def unsupported(net: Network) -> list[str]:
    """How a network differs from those of the paper, whose forms cover no other; none if it does not."""
    if not isinstance(net, MLP):
        return other_kind(net, MLP)
    paper = MLP(net.widths, net.weight_law)
    mine = net.describe()
    differences = not_normalised(net) + [
        f"{key} is {few_runs(mine[key]) if isinstance(mine[key], list) else mine[key]}"
        for key, value in paper.describe().items()
        if mine[key] != value and key != "bias_law"
    ]
    if net.widths[-1] != 1:
        differences.append(f"it has {net.widths[-1]} outputs")
    return differences


def bounds(net: MLP, x: Vector, *, exact: KernelMoments | None = None) -> Bounds:
    """The paper's forms (Theorems 1 and 2, Propositions 3-5) for the network and input of `finwidth.moments`.

    Parameters
    ----------
    net
        A ReLU network of the paper: NTK parameterization, its gains, trained biases from zero, one output.
    x
        One input, shape (n_0,).
    exact
        The exact moments of the same network and input, if they are at hand.

    Raises
    ------
    FinwidthError
        If x does not fit, or the network is not the paper's; the message says in what.

    Examples
    --------
    >>> import finwidth
    >>> forms = finwidth.bounds(finwidth.MLP([64, *[64] * 16, 1]), [1.0] * 64)
    >>> round(forms.hidden_ratio["K_w^2"], 3)
    0.723
    """
    log_form = log_forms(net, x)
    wanted = "finwidth.moments(net, x), or leave it out"
    exact = moments(net, x) if exact is None else arguments.instance("exact", exact, KernelMoments, wanted)
    log_exact = {
        "K": exact.K.log_raw[0],
        "K^2": exact.log_second_moment,
        "K_w^2": exact.K_w.log_second_moment,
        "K_b^2": exact.K_b.log_second_moment,
        "K_w*K_b": exact.log_mixed,
        **{key: exact.log_update[key] for key in ("D_ww", "D_wb", "dK")},
    }
    log_ratio = {key: 0.0 if log_exact[key] == log_form[key] else log_exact[key] - log_form[key] for key in log_form}
    return Bounds(exact, log_form, log_ratio, float(net.beta), float(net.beta_hidden))


def log_forms(net: MLP, x: Vector) -> dict[str, float]:
    """`Bounds.log_form` alone: what the paper prints, without the exact moments that it is compared with."""
    if differences := unsupported(check_mlp(net)):
        raise FinwidthError(f"the paper's forms do not cover this network: {', '.join(differences)}; {instead(net)}")
    norm = sum((a * a for a in exact_input(net, x)), Fraction(0)) / net.widths[0]  # |x|^2 / n_0
    sums = dict(_sums(net))
    d, beta = net.depth, float(net.beta)
    once, twice = log(norm), 2 * log(norm)
    terms = {  # logarithms of the terms of each sum
        "K": [math.log(d / 2), math.log(d) + once],
        "K^2": [2 * math.log(d) + twice, math.log(d * sums["one"]) + once, math.log(sums["two"])],
        "K_w^2": [2 * math.log(d) + twice],
        "K_b^2": [math.log(sums["two"])],
        "K_w*K_b": [math.log(d * sums["one"]) + once],
        "D_ww": [_log(sums["ww"]) + twice],
        "D_wb": [_log(sums["wb"]) + once],
        "dK": [_log(sums["ww"]) + twice, _log(sums["wb"]) + once],
    }
    return {key: float(np.logaddexp.reduce(logs)) + (0.0 if key == "K" else 5 * beta) for key, logs in terms.items()}


def _log(value: float) -> float:
    return math.log(value) if value > 0 else -math.inf


def _sums(net: MLP) -> Iterator[tuple[str, float]]:
    """The sums over layers in the forms, in O(d).

    With S_j = sum_{i<=j} 1/n_i:  one = sum_j e^{-5 S_j};  two = sum_{i<=j} e^{-5 S_j};  and Theorem 2's sums over
    i1 < i2 and i1 <= l < i2, where the sum over i2 gives d - l::

        ww = sum_l (d - l)/n_l e^{-5/n_l} sum_{i1<=l} e^{-6 sum_{i=i1}^{l-1} 1/n_i}
        wb = sum_l (d - l)/n_l            sum_{i1<=l} e^{-5 S_{i1}} e^{-6 sum_{i=i1+1}^{l-1} 1/n_i}
    """
    d = net.depth
    inverse = 1.0 / np.array(net.widths[1:], dtype=np.float64)
    decay = np.exp(-5 * np.cumsum(inverse))
    yield "one", float(decay.sum())
    yield "two", float((np.arange(1, d + 1) * decay).sum())
    ww = wb = 0.0
    starts_w = starts_b = 0.0  # the sums over i1, for the l of the loop
    with stage("the paper's forms", d) as told:
        for layer in range(1, d):
            above = math.exp(-6 * inverse[layer - 2]) if layer > 1 else 0.0
            starts_w = 1.0 + above * starts_w
            # For i1 = l and i1 = l - 1 the sum in the exponent is empty.
            starts_b = float(decay[layer - 1]) + (
                above * (starts_b - float(decay[layer - 2])) + float(decay[layer - 2]) if layer > 1 else 0.0
            )
            ww += (d - layer) * inverse[layer - 1] * math.exp(-5 * inverse[layer - 1]) * starts_w
            wb += (d - layer) * inverse[layer - 1] * starts_b
            if not layer % 1024:
                told(layer)
    yield "ww", float(ww)
    yield "wb", float(wb)

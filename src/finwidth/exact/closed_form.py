r"""Closed forms in depth and width for equal hidden widths, as SymPy expressions (docs/theory/closed-forms.md).

The network: ``widths = (n_0, n, ..., n, 1)`` with d weight layers, Gaussian weights, ReLU, NTK parameterization,
gain 2 in hidden layers and 1 in the last, biases that start at zero and are trained.

Gaussian weights pair the four paths of a second moment in every layer: 12|34, 13|24 or 14|23.  One layer of width n
acts on the coefficients of the three pairings by the matrix::

    M = (1 - 1/n) I + (2/n) J        (J: all ones)

with eigenvalues alpha = 1 + 5/n for their sum and rho = 1 - 1/n for their differences.  So m layers up a pairing is
found in itself with coefficient (alpha^m + 2 rho^m)/3, and in each other pairing with (alpha^m - rho^m)/3.
Differentiating two paths by one parameter keeps the pairings that hold the two together and drops the others; the
output reads off the sum of the three.  A quantity is a sum of such products over the two layers that are
differentiated: geometric series in alpha, rho and, for biases, the chance sigma = 1 - 2^-n that a layer is alive.

The forms are built on first use.  They hold for every n >= 1, d >= 1 and n_0 >= 1 and every input but zero: no
denominator vanishes.  Only |x|^2 enters, for Gaussian weights do not see the direction of x.
"""

from __future__ import annotations

import math
import numbers
from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction
from functools import cache

import sympy

from finwidth import arguments
from finwidth.errors import FinwidthError, shown
from finwidth.memory import afford, amount
from finwidth.progress import check_time

n = sympy.Symbol("n", integer=True, positive=True)  # hidden width
d = sympy.Symbol("d", integer=True, positive=True)  # weight layers
n_0 = sympy.Symbol("n_0", integer=True, positive=True)  # input width
r2 = sympy.Symbol("r2", positive=True)  # |x|^2
b = sympy.Symbol("b", positive=True)  # d/n, held fixed in `proportional_limit`

# The powers that the geometric series bring; everything else is rational in n and d.
_ALPHA, _RHO = 1 + 5 / n, 1 - 1 / n
_GROWN = sympy.Symbol("A")  # alpha^(d-1)
_DECAYED = sympy.Symbol("R")  # rho^d
_DEAD = sympy.Symbol("q")  # 2^-n, the chance that a layer is dead
_ALIVE = sympy.Symbol("S")  # sum of (1 - q)^(j-1) over j < d: how many hidden layers have an input alive, on average
_POWERS = {
    _GROWN: _ALPHA ** (d - 1),
    _DECAYED: _RHO**d,
    _DEAD: 2**-n,
    _ALIVE: 2**n * (1 - (1 - 2**-n) ** (d - 1)),
}


def _geometric(q: sympy.Expr, q_to_d: sympy.Expr) -> sympy.Expr:
    """Sum of q^k over 0 < k < d."""
    return (q - q_to_d) / (1 - q)


def _weighted_sum(q: sympy.Expr, q_to_d: sympy.Expr) -> sympy.Expr:
    """Sum of k q^k over 0 < k < d."""
    return (_geometric(q, q_to_d) - (d - 1) * q_to_d) / (1 - q)


def _apart() -> sympy.Expr:
    """Sum over layers i < j <= d of (rho/alpha)^(j-i)."""
    ratio, ratio_to_d = _RHO / _ALPHA, _DECAYED / (_ALPHA * _GROWN)
    return d * _geometric(ratio, ratio_to_d) - _weighted_sum(ratio, ratio_to_d)


def _k_w() -> sympy.Expr:
    """E[K_w]: every layer gives |x|^2/n_0."""
    return d * r2 / n_0


def _k_b() -> sympy.Expr:
    """E[K_b]: 1 from the output bias, sigma^(j-1)/2 from the biases of hidden layer j."""
    return 1 + _ALIVE / 2


def _k_w_squared() -> sympy.Expr:
    """Weights of layers i and j, m = |i - j|: (|x|^2/n_0)^2 alpha^(d-1-m) (alpha^m + 2 rho^m)/3."""
    return (r2 / n_0) ** 2 * _GROWN * (d + 2 * (d * (d - 1) / 2 + 2 * _apart()) / 3)


def _d_ww() -> sympy.Expr:
    """Weights of layers i != j, m = |i - j|, in different pairs: (|x|^2/n_0)^2 alpha^(d-1-m) (alpha^m - rho^m)/3."""
    return (r2 / n_0) ** 2 * _GROWN * 2 * (d * (d - 1) / 2 - _apart()) / 3


def _k_w_k_b() -> sympy.Expr:
    """Output bias: E[K_w].  Bias of hidden layer d - k, and weights in each of the d - k - 1 layers below it:
    (|x|^2/n_0) alpha^k / 2; in layer d - k + m, 0 <= m <= k: (|x|^2/n_0) alpha^(k-m) (alpha^m + 2 rho^m)/6.
    """
    grown = _geometric(_ALPHA, _ALPHA * _GROWN)
    grown_k = _weighted_sum(_ALPHA, _ALPHA * _GROWN)
    below = (d - 1) * grown - grown_k
    mixed = (_ALPHA * grown - _RHO * _geometric(_RHO, _DECAYED)) / (_ALPHA - _RHO)  # sum of alpha^(k-m) rho^m
    above = (grown_k + grown + 2 * mixed) / 3
    return r2 / n_0 * (d + (below + above) / 2)


def _d_wb() -> sympy.Expr:
    """Bias of hidden layer d - k, weights of layer d - k + m, 0 < m <= k:
    (|x|^2/n_0) alpha^(k-m) (alpha^m - rho^m)/6.
    """
    grown = _geometric(_ALPHA, _ALPHA * _GROWN)
    mixed = _RHO * (grown - _geometric(_RHO, _DECAYED)) / (_ALPHA - _RHO)  # sum of alpha^(k-m) rho^m, m > 0
    return r2 / n_0 * (_weighted_sum(_ALPHA, _ALPHA * _GROWN) - mixed) / 6


def _k_b_squared() -> sympy.Expr:
    """Output bias twice: 1; with the biases of hidden layer j: sigma^(j-1)/2, in two orders; biases of hidden layers
    i <= j: sigma^(i-1) alpha^(d-j)/4, in two orders if i < j.
    """
    sigma = 1 - _DEAD
    same = _ALPHA * (_GROWN - (1 - _DEAD * _ALIVE)) / (_ALPHA - sigma)  # sum of sigma^(j-1) alpha^(d-j)
    earlier = (_geometric(_ALPHA, _ALPHA * _GROWN) - same) / (1 - sigma)  # sum over i < j of sigma^(i-1) alpha^(d-j)
    return 1 + _ALIVE + (same + 2 * earlier) / 4


@dataclass(frozen=True)
class _Entry:
    """How a quantity is written, how it grows with d when d/n is fixed, and where its form comes from."""

    latex: str
    order: int
    build: Callable[[], sympy.Expr] | None = None
    parts: tuple[tuple[int, str], ...] = ()


_ENTRIES = {
    "K_w": _Entry(r"\mathbb{E}[K_w]", 1, _k_w),
    "K_b": _Entry(r"\mathbb{E}[K_b]", 1, _k_b),
    "K": _Entry(r"\mathbb{E}[K]", 1, parts=((1, "K_w"), (1, "K_b"))),
    "K_w^2": _Entry(r"\mathbb{E}[K_w^2]", 2, _k_w_squared),
    "K_w*K_b": _Entry(r"\mathbb{E}[K_w K_b]", 2, _k_w_k_b),
    "K_b^2": _Entry(r"\mathbb{E}[K_b^2]", 2, _k_b_squared),
    "K^2": _Entry(r"\mathbb{E}[K^2]", 2, parts=((1, "K_w^2"), (2, "K_w*K_b"), (1, "K_b^2"))),
    "D_ww": _Entry(r"\mathbb{E}[\Delta_{ww}]", 2, _d_ww),
    "D_wb": _Entry(r"\mathbb{E}[\Delta_{wb}]", 2, _d_wb),
    "dK": _Entry(r"\mathbb{E}[\Delta K]/\lambda", 2, parts=((-2, "D_ww"), (-4, "D_wb"))),
}
QUANTITIES = tuple(_ENTRIES)


def _entry(name: str) -> _Entry:
    return _ENTRIES[arguments.one_of("the closed form of", name, QUANTITIES)]


@cache
def _by_growth(name: str) -> sympy.Expr:
    """The form in n, d, n_0, r2 and the symbols that stand for powers."""
    entry = _entry(name)
    if entry.build is None:
        return sympy.Add(*(times * _by_growth(part) for times, part in entry.parts))
    form = entry.build()
    return _tidy(form) if name != "K_b^2" else 1 + _tidy(form - 1)


def _tidy(form: sympy.Expr) -> sympy.Expr:
    """One product, its sum collected by powers, each with a factored coefficient."""
    content, factors = sympy.factor(form).as_coeff_mul()
    sums = [factor for factor in factors if factor.is_Add and factor.has(*_POWERS)]
    if len(sums) != 1:
        return form
    others = sympy.Mul(*(factor for factor in factors if factor != sums[0]))
    return abs(content) * others * _collected(sympy.sign(content) * sums[0])


def _collected(form: sympy.Expr) -> sympy.Expr:
    parts = sympy.collect(sympy.expand(form), (_GROWN, _DECAYED, _ALIVE), evaluate=False)
    terms = {power: _collected_by_depth(sympy.factor(part)) for power, part in parts.items()}
    if terms.get(_GROWN, 0) + terms.get(sympy.S.One, 0) == 0:
        del terms[sympy.S.One]
        terms[_GROWN - 1] = terms.pop(_GROWN)
    return sympy.Add(*(power * coefficient for power, coefficient in terms.items()))


def _collected_by_depth(coefficient: sympy.Expr) -> sympy.Expr:
    return sympy.Mul(*(sympy.collect(part, (d, _DEAD), sympy.factor) for part in sympy.Mul.make_args(coefficient)))


def closed_form(quantity: str) -> sympy.Expr:
    r"""A moment of the kernel, or of its first update, as a function of depth and width.

    With ``alpha = 1 + 5/n``, ``rho = 1 - 1/n``, ``sigma = 1 - 2^-n``, ``A = alpha^(d-1)``, ``R = rho^d`` and
    ``S = 2^n (1 - sigma^(d-1))``::

        E[K_w]     = d r2/n_0                E[K_b] = 1 + S/2            E[K] = E[K_w] + E[K_b]
        E[K_w^2]   = (r2/n_0)^2 ((9 d^2 + 6 (n+2) d - (n-1)(n+5)) A + n (n-1) R) / 27
        E[K_w K_b] = (r2/n_0) ((n+5)(15 d + 11 n + 25) A - 45 (n-5) d - 36 n^2 + 25 n (n-1) R) / 450
        E[K_b^2]   = 1 + ((n+5)(2 n+5) (A - 1) + (25 (n+1) 2^-n - 10 (n-5)) S) / (20 (5 + n 2^-n))
        E[K^2]     = E[K_w^2] + 2 E[K_w K_b] + E[K_b^2]
        E[D_ww]    = (r2/n_0)^2 ((18 d^2 - 6 (n+2) d + (n-1)(n+5)) A - n (n-1) R) / 54
        E[D_wb]    = (r2/n_0) ((n+5)(30 d - 11 n - 25) A + 36 n^2 - 25 n (n-1) R) / 900
        E[dK]      = -2 E[D_ww] - 4 E[D_wb]

    D_ww and D_wb are the paper's Delta_ww and Delta_wb (E[Delta_bb] = 0), dK is Delta K over the learning rate; the
    paper (theorems 1 and 2, propositions 3 to 5) bounds these numbers up to universal constants.

    Exact for Gaussian weights, ReLU, the NTK parameterization, gains 2 and (last layer) 1, trained biases that start
    at zero, widths ``(n_0, n, ..., n, 1)`` and an input other than zero; for every n >= 1, d >= 1 (at d = 1 there is
    no hidden layer, and n drops out).

    Parameters
    ----------
    quantity
        One of `QUANTITIES`.

    Returns
    -------
    sympy.Expr
        In this module's symbols `n` (hidden width), `d` (weight layers), `n_0` (input width) and `r2` = |x|^2.
        Substitute exact numbers: in doubles the power of 1 - 2^-n has lost its digits at n = 50.

    Raises
    ------
    FinwidthError
        For an unknown quantity.

    Examples
    --------
    Widths (2, 3, 3, 1) at x = (1, 2):

    >>> from finwidth.exact.closed_form import closed_form, d, n, n_0, r2
    >>> at = {n: 3, d: 3, n_0: 2, r2: 5}
    >>> [closed_form(name).subs(at) for name in ("K_w^2", "K_b^2", "K_w*K_b", "D_ww", "D_wb", "dK")]
    [2300/9, 473/72, 65/2, 650/9, 35/6, -1510/9]
    >>> closed_form("D_wb")
    r2*(36*n**2 - 25*n*(1 - 1/n)**d*(n - 1) + (1 + 5/n)**(d - 1)*(n + 5)*(30*d - 11*n - 25))/(900*n_0)
    """
    _entry(quantity)  # the cache takes texts only
    return _by_growth(quantity).xreplace(_POWERS)


def closed_form_value(quantity: str, *, width: int, depth: int, input_width: int, norm2: int | Fraction) -> Fraction:
    """The closed form of a quantity at numbers, exactly.

    Parameters
    ----------
    quantity
        One of `QUANTITIES`; see `closed_form`.
    width, depth, input_width
        n, d and n_0: whole numbers, at least 1.
    norm2
        |x|^2, an integer or a fraction above 0.

    Returns
    -------
    Fraction
        The expectation.

    Raises
    ------
    FinwidthError
        For an unknown quantity, or a number outside the range of the forms.

    Examples
    --------
    >>> from finwidth.exact.closed_form import closed_form_value
    >>> closed_form_value("K_w^2", width=3, depth=3, input_width=2, norm2=5)
    Fraction(2300, 9)
    """
    width, depth = arguments.count("width", width), arguments.count("depth", depth)
    input_width = arguments.count("input_width", input_width)
    if not isinstance(norm2, numbers.Rational):  # a float would be taken for the fraction that it is, such as 0.1
        raise FinwidthError(f"norm2 is {shown(norm2)}; give |x|^2 as an integer or a fraction above 0")
    square = arguments.exact("norm2", norm2, "|x|^2 as an integer or a fraction above 0", lambda value: value > 0)
    form = closed_form(quantity)
    bits = depth * (width if form.has(2**-n) else width.bit_length())  # of (1 - 2^-n)^d, or of (1 + 5/n)^d
    what = f"a fraction of {amount(bits)} binary digits"
    afford(2 * bits, what, "take a smaller depth or width")
    check_time(bits * bits, 1e-11, what, "take a smaller depth or width")  # to find common factors
    at = {n: width, d: depth, n_0: input_width, r2: sympy.Rational(square.numerator, square.denominator)}
    value = form.subs(at)
    return Fraction(int(value.p), int(value.q))


def proportional_limit(quantity: str) -> sympy.Expr:
    """The limit of a quantity over its power of d as n and d grow with d/n = b fixed.

    The power is 1 for the means ``K``, ``K_w``, ``K_b`` and 2 for all others; the error is of order 1/n.  In the limit
    ``(1 + 5/n)^(d-1)`` is exp(5 b), ``(1 - 1/n)^d`` is exp(-b), and no layer dies.

    Parameters
    ----------
    quantity
        One of `QUANTITIES`.

    Returns
    -------
    sympy.Expr
        In `b`, `n_0` and `r2`.

    Raises
    ------
    FinwidthError
        For an unknown quantity.

    Examples
    --------
    >>> from finwidth.exact.closed_form import proportional_limit
    >>> proportional_limit("K_b^2")
    (-5*b + exp(5*b) - 1)/(50*b**2)
    """
    _entry(quantity)  # the cache takes texts only
    return _limit(quantity)


@cache
def _limit(quantity: str) -> sympy.Expr:
    """`proportional_limit`."""
    entry = _entry(quantity)
    if entry.build is None:
        return sympy.Add(*(times * _limit(part) for times, part in entry.parts))
    # The powers tend to constants, so only the leading coefficients in n of what multiplies them count.
    form = _by_growth(quantity).subs({_ALIVE: b * n - 1, _DEAD: 0, d: b * n}) / (b * n) ** entry.order
    limit = _tidy(sympy.limit(form, n, sympy.oo))
    return limit.subs({_GROWN: sympy.exp(5 * b), _DECAYED: sympy.exp(-b)})


def formulas() -> str:
    r"""The formulas, their limits and a table of numbers, in Markdown with LaTeX (docs/theory/closed-forms.md).

    Examples
    --------
    >>> from finwidth.exact.closed_form import formulas
    >>> print(formulas().splitlines()[3])
    \mathbb{E}[K_w] = \frac{d |x|^{2}}{n_{0}}
    """
    alpha, rho, sigma = sympy.symbols("alpha rho sigma")
    powers = {
        _GROWN: alpha ** (d - 1),
        _DECAYED: rho**d,
        _DEAD: 2**-n,
        _ALIVE: 2**n * (1 - sigma ** (d - 1)),
    }
    exact, limits = [], []
    for name, entry in _ENTRIES.items():
        if entry.build is None:
            exact.append(_equation(entry.latex, "=", _combination(entry)))
        else:
            exact.append(_equation(entry.latex, "=", _latex(_by_growth(name).subs(powers))))
            over = entry.latex + ("/d" if entry.order == 1 else "/d^2")
            limits.append(_equation(over, r"\to", _latex(proportional_limit(name))))
    return "\n\n".join(["### At any depth and width", *exact, "### The limit", *limits, "### In numbers", _example()])


def _equation(left: str, relation: str, right: str) -> str:
    return f"$$\n{left} {relation} {right}\n$$"


def _combination(entry: _Entry) -> str:
    """The sum of the parts, in LaTeX."""
    signs = {-1: "-", 1: "+"}
    terms = [
        f"{signs[1 if times > 0 else -1]} {abs(times) if abs(times) > 1 else ''} {_ENTRIES[part].latex}"
        for times, part in entry.parts
    ]
    return " ".join(" ".join(terms).split()).removeprefix("+ ")


def _latex(form: sympy.Expr) -> str:
    norm = sympy.Symbol("|x|", positive=True)
    return str(sympy.latex(form.subs(r2, norm**2)))


_NUMBERS_WIDTH = 100


def _example() -> str:
    """The ratios of the paper's two theorems at |x|^2 = n_0, against its forms for equal widths."""
    header = (
        r"$b=d/n$",
        r"$\mathbb{E}[K^2]/\mathbb{E}[K]^2$, limit",
        f"at $n={_NUMBERS_WIDTH}$",
        r"limit over $e^{5b}$",
        r"$-\mathbb{E}[\Delta K]/(\lambda d\,\mathbb{E}[K])$, limit",
        f"at $n={_NUMBERS_WIDTH}$",
        r"limit over $b\,e^{5b}$",
    )
    rows = [" | ".join(header), " | ".join(["---:"] * len(header))]
    for ratio in (Fraction(1, 10), Fraction(1, 2), Fraction(1), Fraction(2), Fraction(5)):
        rows.append(" | ".join(f"{number:.4g}" for number in _numbers_at(ratio)))
    return "\n".join(f"| {row} |" for row in rows)


def _numbers_at(ratio: Fraction) -> tuple[float, ...]:
    depth = int(ratio * _NUMBERS_WIDTH)
    limits = (proportional_limit(name).subs({b: sympy.Rational(str(ratio)), r2: n_0}) for name in ("K", "K^2", "dK"))
    mean, square, change = (float(limit) for limit in limits)
    exact_mean, exact_square, exact_change = (
        closed_form_value(name, width=_NUMBERS_WIDTH, depth=depth, input_width=1, norm2=1)
        for name in ("K", "K^2", "dK")
    )
    spread, move, growth = square / mean**2, -change / mean, math.exp(5 * ratio)
    return (
        float(ratio),
        spread,
        float(exact_square / exact_mean**2),
        spread / growth,
        move,
        float(-exact_change / (depth * exact_mean)),
        move / (float(ratio) * growth),
    )


if __name__ == "__main__":
    print(formulas())

r"""Closed forms of residual networks with blocks that are all alike, and their limit of infinite depth, in SymPy.

The network: ``ResNet([n_0, n, 1], L, m, skip=a, branch=b, bias="none")`` with Gaussian weights in the NTK
parameterization and the gains that are the default.  Four paths on the stream pair up in three ways, 12|34, 13|24 and
14|23 (docs/theory/residual.md).  On the three coefficients acts, with J the matrix of ones::

    coming to the stream     H = (1 - 1/n) I + J/n
    in hidden neurons        A = (1 - 1/m) I + (g/m) J,     g = E[phi'^4]/E[phi'^2]^2
    a block without marks    a^4 + 2 a^2 b^2 H + b^4 A H = alpha J/3 + rho (I - J/3)
    with one mark            2 a^2 b^2 E H + b^4 (A E + E A) H
    with two                 b^4 (A E E' + E E' A + E A E' + E' A E) H

where E keeps the pairing that holds the two paths of the mark together, and drops the others.  A second moment is the
sum over where its two marks are, in stem, blocks and head: series in alpha and rho, which are summed here.
"""

from __future__ import annotations

from functools import cache

import sympy

from finwidth import arguments

n = sympy.Symbol("n", integer=True, positive=True)  # width of the stream
m = sympy.Symbol("m", integer=True, positive=True)  # hidden width
L = sympy.Symbol("L", integer=True, positive=True)  # blocks
n_0 = sympy.Symbol("n_0", integer=True, positive=True)  # input width
r2 = sympy.Symbol("r2", positive=True)  # |x|^2
a = sympy.Symbol("a", nonnegative=True)  # skip
b = sympy.Symbol("b", positive=True)  # branch
g = sympy.Symbol("g", positive=True)  # E[phi'^4]/E[phi'^2]^2: 2 for ReLU, 1 for one slope
c = sympy.Symbol("c", positive=True)  # L b^2, held fixed in `infinite_depth`

_ALPHA = a**4 + 2 * a**2 * b**2 * (1 + 2 / n) + b**4 * (1 + 2 / n) * (1 + (3 * g - 1) / m)
_RHO = a**4 + 2 * a**2 * b**2 * (1 - 1 / n) + b**4 * (1 - 1 / n) * (1 - 1 / m)
QUANTITIES = ("K", "K^2", "dK")

_ONES = sympy.ones(3, 1)
_COMING = (1 - 1 / n) * sympy.eye(3) + sympy.ones(3, 3) / n
_HIDDEN = (1 - 1 / m) * sympy.eye(3) + g / m * sympy.ones(3, 3)
_KAPPA = 1 + 2 / n  # what the head and _COMING do to the sum of the three


def _kept(pairing: int) -> sympy.Matrix:
    """E: of the three pairings 12|34, 13|24 and 14|23 only one."""
    return sympy.diag(*(int(place == pairing) for place in range(3)))


def _through(left: sympy.Matrix, right: sympy.Matrix) -> tuple[sympy.Expr, sympy.Expr]:
    """Coefficients of alpha^k and rho^k in ``left`` (k blocks) ``right``."""
    grown = (left * _ONES)[0] * (_ONES.T * right)[0] / 3
    return grown, (left * right)[0] - grown


def closed_form_of_blocks(quantity: str) -> sympy.Expr:
    r"""A moment of the kernel of a residual network as a function of depth, widths, skip and branch.

    ``K`` is E[K], ``K^2`` is E[K^2] and ``dK`` is E[Delta K] over the learning rate, for Gaussian weights, any
    activation of two slopes, blocks that are all alike, the default gains, the NTK parameterization and no biases.

    Parameters
    ----------
    quantity
        One of `QUANTITIES`.

    Returns
    -------
    sympy.Expr
        In this module's symbols `n`, `m` (widths of stream and blocks), `L` (blocks), `n_0`, `r2` = |x|^2, `a` and `b`
        (skip and branch) and `g` = E[phi'^4]/E[phi'^2]^2, which is 2 for ReLU and 1 for one slope. Branches that are
        zero are excluded.

    Raises
    ------
    FinwidthError
        For an unknown quantity.

    Examples
    --------
    >>> from finwidth.exact.residual_form import L, a, b, closed_form_of_blocks, g, m, n, n_0, r2
    >>> closed_form_of_blocks("K")
    r2*(a**2 + b**2)**L*(2*L*b**2/(a**2 + b**2) + 2)/n_0
    >>> at = {n: 1, m: 1, L: 1, n_0: 1, r2: 1, a: 1, b: 1, g: 2}
    >>> [closed_form_of_blocks(name).subs(at) for name in ("K", "K^2", "dK")]
    [6, 512, -508]
    """
    name = arguments.one_of("the closed form of", quantity, QUANTITIES)
    if name == "K":
        sigma = a**2 + b**2
        return r2 / n_0 * sigma**L * (2 + 2 * L * b**2 / sigma)
    return _second_order(0, 0) if name == "K^2" else -2 * _second_order(0, 2)


@cache
def _second_order(one: int, other: int) -> sympy.Expr:
    """The sum over all places of two marks, of which each keeps a pairing."""
    last = (_ALPHA**L - _RHO**L) / (_ALPHA - _RHO)  # sum over l of alpha^(L-l) rho^(l-1)
    both = _kept(one) * _kept(other)
    total = (_ONES.T * both * _ONES)[0] * _KAPPA * _ALPHA**L  # both in the stem
    total += (_ONES.T * both * _COMING * _ONES)[0] * _ALPHA**L  # both in the head
    total += L * _ALPHA ** (L - 1) * _KAPPA * (_ONES.T * _two_marks(one, other) * _ONES)[0]
    for first, second in ((one, other), (other, one)):  # first: the lower one
        stem, head = _kept(first) * _ONES, _ONES.T * _kept(second) * _COMING
        below, above = _one_mark(first) * _ONES, _ONES.T * _one_mark(second)
        grown, decayed = _through(head, stem)
        total += grown * _ALPHA**L + decayed * _RHO**L
        for left, right, factor in ((above, stem, _KAPPA), (head, below, 1)):  # one of them in a block
            grown, decayed = _through(left, right)
            total += factor * (grown * L * _ALPHA ** (L - 1) + decayed * last)
        grown, decayed = _through(above, below)
        # The sum over l < l' of alpha.. rho^(l'-l-1).
        apart = L * _ALPHA ** (L - 1) / (_ALPHA - _RHO) - last / (_ALPHA - _RHO)
        total += _KAPPA * (grown * _ALPHA ** (L - 2) * L * (L - 1) / 2 + decayed * apart)
    return (r2 / n_0) ** 2 * total


def _one_mark(pairing: int) -> sympy.Matrix:
    """A block in which a mark is placed: in either layer, on a pair that passes alone or beside the other pair."""
    E = _kept(pairing)
    return (2 * a**2 * b**2 * E + b**4 * (_HIDDEN * E + E * _HIDDEN)) * _COMING


def _two_marks(one: int, other: int) -> sympy.Matrix:
    """A block in which both marks are placed: all four paths pass."""
    E, F = _kept(one), _kept(other)
    return b**4 * (_HIDDEN * E * F + E * F * _HIDDEN + E * _HIDDEN * F + F * _HIDDEN * E) * _COMING


def infinite_depth(quantity: str) -> sympy.Expr:
    r"""The limit of infinitely many blocks with skip 1 and branch sqrt(c/L), at a fixed width of the stream.

    Hidden width and activation drop out.  The branches of all blocks together weigh as much as c layers, and the
    relative variance of K, which for an MLP grows like exp(5 d/n), stays of order c/n.  In this limit |x_L|^2/|x_0|^2
    is log-normal at every width: its logarithm has mean c - 2 c/n and variance 4 c/n.

    Parameters
    ----------
    quantity
        One of `QUANTITIES`, as for `closed_form_of_blocks`.

    Returns
    -------
    sympy.Expr
        In `n`, `c`, `n_0` and `r2`; for `c` = 1 the limit of ``branch="1/sqrt(depth)"``. Reached at rate 1/L.

    Raises
    ------
    FinwidthError
        For an unknown quantity.

    Examples
    --------
    >>> from finwidth import ResNet, moments
    >>> from finwidth.exact.residual_form import c, infinite_depth, n, n_0, r2
    >>> infinite_depth("K")
    r2*(2*c + 2)*exp(c)/n_0
    >>> at = {n: 8, c: 1, n_0: 1, r2: 1}
    >>> round(float(infinite_depth("K^2").subs(at) / infinite_depth("K").subs(at) ** 2), 4)
    1.8179
    >>> deep = moments(ResNet([1, 8, 1], 1000, branch="1/sqrt(depth)", bias="none"), [1])
    >>> round(deep.second_moment / deep.mean**2, 4)
    1.8181
    """
    name = arguments.one_of("the limit of", quantity, QUANTITIES)
    if name == "K":
        return r2 / n_0 * sympy.exp(c) * (2 + 2 * c)
    return _deep(0, 0) if name == "K^2" else -2 * _deep(0, 2)


@cache
def _deep(one: int, other: int) -> sympy.Expr:
    """`_second_order` with sums over blocks as integrals over c, relative to alpha^L = exp((2 + 4/n) c)."""
    ratio = sympy.Symbol("R")  # (rho/alpha)^L
    once, twice = n / 6 * (1 - ratio), n / 6 * (c - n / 6 * (1 - ratio))  # its integral, and the double one
    both = _kept(one) * _kept(other)
    total = (_ONES.T * both * _ONES)[0] * _KAPPA + (_ONES.T * both * _COMING * _ONES)[0]
    for first, second in ((one, other), (other, one)):
        stem, head = _kept(first) * _ONES, _ONES.T * _kept(second) * _COMING
        below, above = 2 * _kept(first) * _COMING * _ONES, 2 * _ONES.T * _kept(second) * _COMING
        grown, decayed = _through(head, stem)
        total += grown + decayed * ratio
        for left, right, factor in ((above, stem, _KAPPA), (head, below, 1)):
            grown, decayed = _through(left, right)
            total += factor * (grown * c + decayed * once)
        grown, decayed = _through(above, below)
        total += _KAPPA * (grown * c**2 / 2 + decayed * twice)
    form = sympy.collect(sympy.expand(total), (ratio, c), sympy.factor)
    return (r2 / n_0) ** 2 * sympy.exp((2 + 4 / n) * c) * form.subs(ratio, sympy.exp(-6 * c / n))

r"""`expansion`: the kernel of wide networks to first order in 1/width, for any activation and several inputs.

What each step of a network does is in `steps`, by the maps of `tensors` and the Gaussian means of `means`, by the rules
of `rules`; derivation and what the error is: docs/theory/expansion.md.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from fractions import Fraction
from typing import TYPE_CHECKING, TypeAlias

import numpy as np
import numpy.typing as npt

from finwidth import arguments
from finwidth.errors import FinwidthError
from finwidth.exact.expansion.means import GaussianMeans, WideLayer, with_points
from finwidth.exact.expansion.rules import FINEST
from finwidth.exact.expansion.steps import Means, after_steps, at_inputs, unsupported_steps
from finwidth.exact.expansion.tensors import Signals
from finwidth.memory import afford
from finwidth.networks.description import Network, weight_layers
from finwidth.networks.inputs import check_inputs
from finwidth.networks.laws import FloatArray
from finwidth.networks.routes import check_supported, not_gaussian
from finwidth.progress import stage
from finwidth.quantities import Quantity, attributes

if TYPE_CHECKING:
    import xarray as xr

_CONVERGED, _ALLOWED = 1e-10, 1e-6  # relative errors of quadrature: rules are refined to the one, the other is refused
REPLICATES = 8  # independent sets of quasi-random points; their scatter is the error
# Draws have up to r + 16 q + 1/n more variance than first order, relative to it: r = Var K / K^2, q the relative
# correction of E[K] and E[N^2], n the narrowest width (docs/expansion.md).  Up to a tenth first order is said to serve.
OF_MEANS, SERVED = 16.0, 0.1

_PAIR, _FOUR = ("input", "input_"), ("input", "input_", "other", "other_")
_QUANTITIES = {
    each.name: each
    for each in (
        Quantity("K", "mean of the kernel, E[K_ab]"),
        Quantity("output_covariance", "covariance of the outputs, E[N_a N_b]"),
        Quantity("K_covariance", "covariance of kernel entries, Cov(K_ab, K_cd)"),
        Quantity("K_output_covariance", "covariance of the kernel and of products of outputs, Cov(K_ab, N_c N_d)"),
        Quantity("output_cumulant", "fourth cumulant of the outputs N_a, N_b, N_c, N_d"),
        Quantity("K_apart_covariance", "covariance of kernel entries of two different outputs"),
        Quantity("K_between_covariance", "covariance of kernel entries between two different outputs, whose mean is 0"),
        Quantity("dK", "mean of the first-order change of K under one SGD step on the full batch", "learning rate"),
    )
}


def unsupported(net: Network) -> list[str]:
    """Reasons why `expansion` does not serve this network; none if it does."""
    return unsupported_steps(net) + not_gaussian(net, "the expansion in 1/width is that of Gaussian weights")


def expansion(
    net: Network, X: npt.ArrayLike, y: npt.ArrayLike | None = None, *, points: int = 2**15, seed: int = 0
) -> xr.Dataset:
    """Means, covariances and first change of the kernel at several inputs, to first order in 1/width.

    Of a network with hidden widths n_1, n_2, ... every quantity is its value at infinite width plus a correction that
    is linear in 1/n_1, 1/n_2, ...; what is left out is of second order. Any activation serves, with skip connections
    and norms or without.

    Parameters
    ----------
    net
        An `MLP`, `ResNet` or `BalancedResNet` with Gaussian weights; biases from zero, Gaussian, frozen or absent; with
        a norm, of trained parameters in pre-norm networks only, or none. Where a norm makes means infinite at every
        width, through networks whose probability falls exponentially with it, the expansion is that of all others.
    X
        Inputs x_a, shape (m, n_0). Time and memory grow with m^4. Two inputs within an angle of 3e-7 of parallel, or
        opposite, in a layer are taken as dependent there.
    y
        Targets, shape (m,), or (m, o) of o outputs; then ``dK`` is there too. Its mean is the same for all targets:
        to the sign of the last layer K is even, and what is linear in the targets odd. A smooth activation needs its
        second derivative for it.
    points, seed
        Of more than two inputs, means over four neurons' values at three or four different inputs are averages over
        so many quasi-random points (Sobol' points with `REPLICATES` random shifts, rounded up to a power of two each).

    Returns
    -------
    xarray.Dataset
        Over ``order``: 0 is the value at infinite width, 1 the correction at the widths of ``net``, so that
        ``.sum("order")`` is the estimate. With all hidden widths s times as large, order 1 is 1/s of it (in the NTK
        parameterization, or where c_i n_i stays the same). Dimensionless, float64:

        - ``K``, E[K_ab], and ``output_covariance``, E[N_a N_b], over (input, input_);
        - ``K_covariance``, Cov(K_ab, K_cd), ``K_output_covariance``, Cov(K_ab, N_c N_d), and ``output_cumulant``, the
          fourth cumulant of N_a, N_b, N_c, N_d, over (input, input_, other, other_);
        - with targets ``dK``, E[dK_ab], per unit learning rate, under one SGD step on all inputs and outputs with the
          loss sum_a |N(x_a) - y_a|^2 / 2;
        - with several outputs all that is of one of them, and besides ``K_apart_covariance``, of K_ab of one and K_cd
          of another, and ``K_between_covariance``, of the entries of K between both.

        ``error`` in the attributes of a variable is the largest error of quadrature of an entry: the difference of two
        rules, or, of more than two inputs, one standard error of the average over points. Attributes of the dataset say
        how far first order serves: ``relative_variance``, r, the largest Var K_aa / K_aa^2, ``relative_correction``, q,
        the largest of E[K_aa] and of E[N_a^2], ``inverse_widths``, the sum of 1/fan-in over all weight layers
        but the first, ``left_out``, r + 16 q + the largest of these, by which share Var K has been seen to be larger
        than first order at most, and ``first_order``, a verdict: it serves if that is at most a tenth.

    Raises
    ------
    FinwidthError
        If an argument is not allowed, the network is not served, numbers leave the range of a double, or quadrature
        errs by more than 10^-6: inputs within about 10^-3 of parallel, or a function of a user that turns too fast.

    Examples
    --------
    E[K_12] of orthogonal inputs, ReLU: 0.6857 - 0.0503/n, and what one step on both does to the kernel.

    >>> import numpy as np, finwidth
    >>> net = finwidth.MLP([2, 100, 100, 1], bias="none")
    >>> wide = finwidth.expansion(net, np.sqrt(2) * np.eye(2), y=[1, -1])
    >>> wide.K.sel(input=0, input_=1).values.tolist()
    [0.685708..., -0.000503...]
    >>> wide.dK.sel(order=1).values.round(4)
    array([[-0.4074, -0.0936],
           [-0.0936, -0.4074]])
    >>> wide.attrs["first_order"]
    'serves: Var K is larger by at most about 7.4% (Var K / K^2 = 0.064, means are moved by 0.0%)'
    """
    check_supported("finwidth.expansion", net)
    inputs = check_inputs(net, X)
    count = max(1, -(-arguments.count("points", points) // REPLICATES))
    seed = arguments.check_seed(seed)
    if y is not None:
        _check_shape(y, len(inputs), net.widths[-1])
        net.activation.second_derivative(np.zeros(1))  # refuses if there is none
    m = len(inputs)
    needed = 8 * m**4 * (11 * net.depth + 90) + 32 * (m > 2) * m * m * count
    afford(needed, f"the expansion at {m} inputs and {net.depth} layers", "take fewer inputs")
    result, errors = converged(net, inputs, count, seed, change=y is not None)
    return _labelled(net, inputs, result, errors, method=_method(net, m, count))


def _check_shape(y: npt.ArrayLike, m: int, outputs: int) -> None:
    shape = (m,) if outputs == 1 else (m, outputs)
    found = arguments.array("y", y, f"finite numbers of shape {shape}")
    if found.shape != shape:
        raise FinwidthError(f"y has shape {found.shape}; give finite numbers of shape {shape}")


_Orders: TypeAlias = tuple[FloatArray, FloatArray]
Columns: TypeAlias = dict[str, _Orders]


def converged(
    net: Network, X: FloatArray, points: int = 1, seed: int = 0, *, change: bool
) -> tuple[Columns, dict[str, float]]:
    """The quantities at inputs X, shape (m, n_0), by the coarsest rule that is fine enough, and their errors.

    Raises FinwidthError as `expansion` does; ``change``: whether with dK.
    """
    steps = net.steps
    odd = net.norm is not None and net.norm.centred
    found: Columns = {}
    with _refusing_overflow(X):
        for level in range(FINEST + 1):
            means = GaussianMeans(level, change, odd)
            with stage("expansion", len(steps)) as told:
                top = after_steps(steps, at_inputs(X), means, told)
            coarser, found = found, _quantities(net, top, change=change)
            worst = _worst(net, coarser, found) if coarser else math.inf
            if worst <= _CONVERGED:
                break
        if not worst <= _ALLOWED:
            raise FinwidthError(
                f"the means of activation {net.activation.name!r} cannot be integrated: their error is {worst:.1g} of "
                "the result; leave out inputs that are nearly parallel, rescale the inputs or the gains, or give a "
                "function that turns less"
            )
        errors = {name: max(_distances(each, found[name])) for name, each in coarser.items()}
        if len(X) > 2:
            return _averaged(net, X, means.layers, _points(len(X), points, seed), errors, change=change)
    return found, errors


@contextmanager
def _refusing_overflow(X: FloatArray) -> Iterator[None]:
    """Overflow is seen in the results, and refused."""
    with np.errstate(all="ignore"):
        try:
            yield
        except FloatingPointError:
            raise FinwidthError(
                "the expansion leaves the range of a double, and the largest number among the inputs is "
                f"{np.abs(X).max():.3g}; rescale the inputs or the gains"
            ) from None


def _quantities(net: Network, top: Signals, *, change: bool) -> Columns:
    """Orders 0 and 1 of all quantities, from the outputs; raises FloatingPointError where one is not finite."""
    if not all(np.isfinite(each).all() for each in (top.K, top.Theta, top.mean_G, top.mean_H, *top.own)):
        raise FloatingPointError("the outputs are not finite")
    K, V, A, B, F = top.K, top.own.V, top.own.A, top.own.B, top.own.F
    found = {
        "K": (top.Theta, top.mean_H),
        "output_covariance": (K, top.mean_G),
        "K_covariance": A + B.transpose(0, 2, 1, 3) + B.transpose(0, 2, 3, 1),
        "K_output_covariance": top.own.D + F.transpose(0, 2, 1, 3) + F.transpose(0, 2, 3, 1),
        "output_cumulant": V + V.transpose(0, 2, 1, 3) + V.transpose(0, 2, 3, 1),
    }
    o = net.widths[-1]
    if o > 1:
        found |= {"K_apart_covariance": A, "K_between_covariance": B.transpose(0, 2, 1, 3)}
    if change:
        P, Q = np.einsum("acbc->ab", top.own.P), np.einsum("abcc->ab", top.own.Q)  # in the orders 0312 and 0123
        one = P + o * Q + np.einsum("acbc->ab", top.own.Q)
        found["dK"] = -(one + one.T)
    return {name: each if isinstance(each, tuple) else (np.zeros_like(each), each) for name, each in found.items()}


def _distances(one: _Orders, other: _Orders) -> list[float]:
    """The largest difference of each order."""
    return [float(np.abs(a - b).max()) for a, b in zip(one, other, strict=True)]


def _worst(net: Network, found: Columns, finer: Columns) -> float:
    """The largest difference of an order of a quantity over its size.

    Corrections that can vanish while their parts do not are compared with what they are elsewhere.
    """
    limits = {name: float(np.abs(orders[0]).max()) for name, orders in finer.items()}
    K, N = limits["K"], limits["output_covariance"]
    units = {"K": K, "output_covariance": N, "K_output_covariance": K * N, "output_cumulant": N * N}
    usual = {name: _inverse_widths(net) * units.get(name, K * K) for name in finer}
    errors = []
    for name, orders in finer.items():
        sizes = limits[name], max(float(np.abs(orders[1]).max()), usual[name])
        distances = _distances(found[name], orders)
        errors += [distance / (size or 1.0) for distance, size in zip(distances, sizes, strict=True)]
    return max(errors)


def _inverse_widths(net: Network) -> float:
    """The sum of 1/n over all that weight layers read but the input."""
    return float(sum(Fraction(1, layer.fan_in) for layer in weight_layers(net)[1:]))


def _averaged(
    net: Network,
    X: FloatArray,
    layers: list[WideLayer],
    points: Iterator[FloatArray],
    errors: dict[str, float],
    *,
    change: bool,
) -> tuple[Columns, dict[str, float]]:
    """The quantities with means over three and four different inputs by points, and their standard errors."""
    drawn: list[Columns] = []
    steps = net.steps
    with stage("expansion at points", REPLICATES * len(steps)) as told:
        for number, normal in enumerate(points):
            known = iter(layers)

            def means(*_: object, known: Iterator[WideLayer] = known, normal: FloatArray = normal) -> Means:
                each = next(known)
                return each.pairs, with_points(each.phi, each.K, each.pairs, each.fours, normal, change=change)

            def tell(done: int, before: int = number * len(steps)) -> None:
                told(before + done)

            drawn.append(_quantities(net, after_steps(steps, at_inputs(X), means, tell), change=change))
    mean: Columns = {}
    for name in drawn[0]:
        each = np.stack([one[name][1] for one in drawn])
        mean[name] = (drawn[0][name][0], each.mean(0))
        errors[name] += float(each.std(0, ddof=1).max()) / len(drawn) ** 0.5
    return mean, errors


def _points(m: int, count: int, seed: int) -> Iterator[FloatArray]:
    """Sets of standard normal points, (n, m): Sobol' points, randomly scrambled."""
    from scipy.special import ndtri
    from scipy.stats import qmc

    power = (count - 1).bit_length()
    for stream in np.random.default_rng(seed).spawn(REPLICATES):
        uniform = qmc.Sobol(m, seed=stream).random_base2(power)
        yield ndtri(np.clip(uniform, 2.0**-53, 1 - 2.0**-53))


def _labelled(net: Network, X: FloatArray, columns: Columns, errors: dict[str, float], *, method: str) -> xr.Dataset:
    import xarray as xr

    variables = {}
    for name, orders in columns.items():
        dims = ("order", *(_PAIR if orders[0].ndim == 2 else _FOUR))
        variables[name] = (dims, np.stack(orders), _QUANTITIES[name].attrs | {"error": errors[name]})
    attrs = attributes(net, method=method, inputs=X.ravel())
    return xr.Dataset(variables, {"order": [0, 1]}, attrs | served(net, columns))


def served(net: Network, columns: Columns) -> dict[str, float | str]:
    """How far first order serves, numbers and a verdict by the names of `expansion`'s attributes."""

    def relative(change: FloatArray, limit: FloatArray) -> FloatArray:
        return np.abs(change / np.where(limit > 0, limit, np.inf))

    def largest(change: FloatArray, limit: FloatArray) -> float:
        return float(relative(change, limit).max())

    means = [[each.diagonal() for each in columns[name]] for name in ("K", "output_covariance")]
    limits = means[0][0]
    spread = largest(relative(np.einsum("aaaa->a", columns["K_covariance"][1]), limits), limits)
    moved = max(largest(correction, limit) for limit, correction in means)
    left_out = spread + OF_MEANS * moved + max((1 / layer.fan_in for layer in weight_layers(net)[1:]), default=0.0)
    verdict = (
        "serves: Var K is larger by at most about" if left_out <= SERVED else "does not serve: Var K may be larger by"
    )
    return {
        "inverse_widths": _inverse_widths(net),
        "relative_variance": spread,
        "relative_correction": moved,
        "left_out": left_out,
        "first_order": f"{verdict} {left_out:.1%} (Var K / K^2 = {spread:.2g}, means are moved by {moved:.1%})",
    }


def _method(net: Network, m: int, points: int) -> str:
    told = "expansion in 1/width to first order, quadrature"
    return told if m <= 2 else f"{told} and {REPLICATES} x {points} scrambled Sobol' points"

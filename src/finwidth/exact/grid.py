"""Moments of whole grids of equal-width networks at once, for sweeps, phase diagrams and advice."""

from __future__ import annotations

import decimal
from collections.abc import Sequence
from typing import TYPE_CHECKING, Unpack

import numpy as np

from finwidth import arguments
from finwidth.arguments import count, items, numbers
from finwidth.errors import FinwidthError, shown
from finwidth.exact.moments import CONTEXT, ONE_OUTPUT, Moments, update_state
from finwidth.exact.partitions import State, pairs
from finwidth.exact.transfer import Input, LayerNumbers, Transfer, compile_program, to_decimal
from finwidth.memory import afford
from finwidth.networks.description import Layer
from finwidth.networks.inputs import Vector, exact_input
from finwidth.networks.laws import FloatArray
from finwidth.networks.mlp import MLP, MLPOptions
from finwidth.networks.routes import check_mlp
from finwidth.progress import stage
from finwidth.quantities import attributes

if TYPE_CHECKING:
    import xarray as xr

_LARGE = 1e100
_SPREAD = tuple(pairs(kinds) for kinds in ("w", "b", "ww", "wb", "bb"))  # what the spread of K is made of


def moments_grid(widths: Sequence[int], depths: Sequence[int], x: Vector, **network: Unpack[MLPOptions]) -> xr.Dataset:
    """`finwidth.moments` of networks (n_0, n, ..., n, 1) with d weight layers, for every n and d of a grid.

    One pass up the deepest network serves all depths, in double precision for all widths at once: 10^5 pairs take
    about a second.

    Parameters
    ----------
    widths, depths
        Hidden widths n and numbers d of weight layers, each at least 1.
    x
        One input, shape (n_0,).
    network
        Further arguments of `MLP`, the same for all: weight_law, activation, parameterization, gains (one number), ...

    Returns
    -------
    xarray.Dataset
        Over ``width`` and ``depth``: ``mean`` (E[K]), ``log_second_moment`` (log E[K^2]), ``cv``, ``dK``
        (E[Delta K]/lambda) and ``log_dK`` (log of its absolute value). Dimensionless, and inf where a double
        overflows. Relative accuracy of cv: about 10^-15 depth/cv^2; `finwidth.moments` has no such loss.

    Raises
    ------
    FinwidthError
        If a width, depth, the input, or an argument of `MLP` is not allowed.

    Examples
    --------
    >>> from finwidth.exact.grid import moments_grid
    >>> grid = moments_grid([16, 64, 256], range(1, 33), [1.0, 1.0])
    >>> round(float(grid.cv.sel(width=64, depth=32)), 3)
    1.862
    """
    import xarray as xr

    depths = sorted({count("depth", depth) for depth in items("depths", depths, "numbers of layers such as [2, 8]")})
    widths = items("widths", widths, "hidden widths such as [16, 64]")
    needed = 8 * (16 * len(widths) * len(depths) + 700 * len(widths) + 20 * len(depths))
    afford(needed, f"a grid of {len(widths)} widths and {len(depths)} depths", "take fewer of either")
    widths, nets = _of_each_width(widths, x, network)
    if not nets or not depths:
        raise FinwidthError("the grid is empty; give at least one width and one depth")
    given = Input.of(exact_input(nets[0], x), 4)
    means = _log_values((pairs("w"), pairs("b")), nets, given, depths)
    squares = _log_values((pairs("ww"), pairs("wb"), pairs("bb")), nets, given, depths)
    updates = _log_values(tuple(update_state(kinds, ONE_OUTPUT) for kinds in ("ww", "wb")), nets, given, depths)
    log_mean = np.logaddexp(*means)
    log_square = np.logaddexp.reduce([squares[0], squares[1] + np.log(2), squares[2]])
    log_update = np.logaddexp(updates[0], updates[1] + np.log(2)) + np.log(2)
    with np.errstate(over="ignore", invalid="ignore"):  # log 0 - log 0, where K is zero: no spread
        data = {
            "mean": np.exp(log_mean),
            "log_second_moment": log_square,
            "cv": np.sqrt(np.fmax(np.expm1(log_square - 2 * log_mean), 0)),
            "dK": -np.exp(log_update),
            "log_dK": log_update,
        }
    return xr.Dataset(
        {name: (("width", "depth"), values) for name, values in data.items()},
        coords={"width": widths, "depth": depths},
        attrs=attributes(nets[0], method="exact transfer on a grid"),
    )


def spread_by_width(widths: Sequence[int], depth: int, x: Sequence[float], **network: Unpack[MLPOptions]) -> FloatArray:
    """The coefficient of variation of K of networks (n_0, n, ..., n, 1), shape (widths,), in one pass.

    In double precision: the square of a result is right to about 10^-15 depth (1 + its value).

    Examples
    --------
    >>> from finwidth.exact.grid import spread_by_width
    >>> spread_by_width([16, 64, 256], 32, [1.0, 1.0]).round(3)
    array([32.087,  1.862,  0.622])
    """
    depth, (widths, nets) = count("depth", depth), _of_each_width(widths, x, network)
    if not nets:
        return np.zeros(0)
    values = _log_values(_SPREAD, nets, Input.of(exact_input(nets[0], x), 4), [depth])
    w, b, ww, wb, bb = (each[:, 0] for each in values)
    with np.errstate(over="ignore", invalid="ignore"):  # log 0 - log 0, where K is zero: no spread
        log_square = np.logaddexp.reduce([ww, wb + np.log(2), bb])
        spread: FloatArray = np.sqrt(np.fmax(np.expm1(log_square - 2 * np.logaddexp(w, b)), 0))
    return spread


def spread_by_depth(width: int, deepest: int, x: Sequence[float], **network: Unpack[MLPOptions]) -> list[float]:
    """The coefficient of variation of K of networks (n_0, n, ..., n, 1) with d = 1, ..., ``deepest`` weight layers.

    The numbers of `finwidth.moments`, to the last digit, in one pass up the deepest: 10^4 depths take about a second.

    Examples
    --------
    >>> from finwidth import MLP, moments
    >>> from finwidth.exact.grid import spread_by_depth
    >>> spread_by_depth(8, 3, [1.0, 2.0])[2] == moments(MLP([2, 8, 8, 1]), [1.0, 2.0]).cv
    True
    """
    deepest, (_, (net,)) = count("deepest", deepest), _of_each_width([width], x, network)
    program = compile_program(_SPREAD, net)
    found = [0.0]  # one layer has no spread
    with decimal.localcontext(CONTEXT):
        transfer = Transfer(program, net, Input.of(exact_input(net, x), 4), to_decimal)
        first, hidden, last = (
            LayerNumbers.of([net.layers[i]], lambda values: to_decimal(values[0])) for i in (0, 1, -1)
        )
        with stage("exact moments", deepest) as told:
            for depth in range(2, deepest + 1):
                transfer.hidden(first if depth == 2 else hidden)
                w, b, ww, wb, bb = transfer.output(last)
                found.append(Moments((w + b, ww + 2 * wb + bb)).cv)
                told(depth)
    return found


def _of_each_width(widths: Sequence[int], x: Vector, network: MLPOptions) -> tuple[list[int], list[MLP]]:
    """One network of each hidden width, for this input."""
    checked = [count("width", n) for n in items("widths", widths, "hidden widths such as [16, 64]")]
    given = numbers(x)
    if given is None or given.ndim != 1 or not len(given):
        raise FinwidthError(f"the input {shown(x)} is not one list of numbers; give some such as [1.0, 2.0]")
    for name, value in network.items():
        if isinstance(value, list | tuple | np.ndarray):
            raise FinwidthError(f"{name} is {shown(value)}; give one value, for hidden layers that are all alike")
    return checked, [check_mlp(MLP([len(given), n, n, n, 1], **network)) for n in checked]


def _log_values(starts: Sequence[State], nets: Sequence[MLP], x: Input, depths: Sequence[int]) -> list[FloatArray]:
    """For each start its log value, shape (widths, depths)."""
    if not all(arguments.is_double(each) for each in x.power_sums.values()):
        raise FinwidthError("the fourth power of the input leaves a double's range; rescale it (or: finwidth.moments)")
    program = compile_program(tuple(starts), nets[0])
    transfer = Transfer(program, nets[0], x, float)
    first, hidden, last = (_stack([net.layers[place] for net in nets]) for place in (0, 1, -1))
    only = _stack([MLP([net.widths[0], 1], **_arguments(net)).layers[0] for net in nets])
    log_scale = np.zeros(len(nets))
    found = np.full((len(program.starts), len(nets), len(depths)), -np.inf)
    columns = {depth: column for column, depth in enumerate(depths)}
    with stage("exact moments", depths[-1]) as told:
        for depth in range(1, depths[-1] + 1):
            if depth in columns:
                output = transfer.output(only if depth == 1 else last)
                values = np.array([np.broadcast_to(value, len(nets)) for value in output])
                with np.errstate(divide="ignore"):
                    found[:, :, columns[depth]] = np.log(values) + log_scale
            transfer.hidden(first if depth == 1 else hidden)
            top = np.max([np.broadcast_to(value, len(nets)) for value in transfer.values], axis=0)
            if (top > _LARGE).any():
                shrink = np.where(top > _LARGE, 1 / top, 1.0)
                transfer.rescale(shrink)
                log_scale -= np.log(shrink)
            told(depth)
    return list(found)


def _stack(layers: Sequence[Layer]) -> LayerNumbers:
    """The same layer of many networks, as arrays."""
    return LayerNumbers.of(layers, lambda values: np.array([float(value) for value in values]))


def _arguments(net: MLP) -> MLPOptions:
    """Arguments of a one-layer network of the same kind; its only layer has the gains of a last one."""
    return {
        "weight_law": net.weight_law,
        "activation": net.activation,
        "parameterization": net.parameterization,
        "gains": net.gains[-1],
        "bias": net.bias[-1],
        "bias_variance": net.bias_variance[-1],
        "bias_law": net.bias_law,
        "bias_scale": net.bias_scale[-1],
        **({"base_widths": (net.base_widths[0], net.base_widths[-1])} if net.parameterization == "mup" else {}),
    }

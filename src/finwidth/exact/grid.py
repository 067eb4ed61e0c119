"""Moments of whole grids of networks at once, alike but for width and depth: for sweeps, phase diagrams and advice."""

from __future__ import annotations

import decimal
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Unpack

import numpy as np

from finwidth import arguments
from finwidth.arguments import count, items, numbers
from finwidth.errors import FinwidthError, shown
from finwidth.exact.moments import CONTEXT, ONE_OUTPUT, Moments, update_state
from finwidth.exact.partitions import State, pairs
from finwidth.exact.residual_grid import ResidualGrid
from finwidth.exact.transfer import Input, LayerNumbers, Transfer, compile_program, to_decimal
from finwidth.memory import afford
from finwidth.networks.balanced import BalancedResNet
from finwidth.networks.description import Layer, Network
from finwidth.networks.family import Cells, Family, FamilyOptions
from finwidth.networks.inputs import Vector, exact_input
from finwidth.networks.laws import FloatArray
from finwidth.networks.mlp import MLP, MLPOptions
from finwidth.networks.resnet import ResNet
from finwidth.networks.routes import check_mlp, check_supported
from finwidth.progress import stage
from finwidth.quantities import attributes

if TYPE_CHECKING:
    import xarray as xr

_LARGE = 1e100
_SPREAD = tuple(pairs(kinds) for kinds in ("w", "b", "ww", "wb", "bb"))  # what the spread of K is made of


def moments_grid(
    widths: Sequence[int],
    depths: Sequence[int],
    x: Vector,
    *,
    kind: type[Network] = MLP,
    **network: Unpack[FamilyOptions],
) -> xr.Dataset:
    """`finwidth.moments` of networks of every width n and depth d of a grid: (n_0, n, ..., n, 1) with d weight layers.

    Of `MLP` one pass up the deepest network serves all depths, in double precision for all widths at once: 10^5 pairs
    take about a second.  Of residual networks, with n the width of the stream and d the number of blocks, it takes
    about a second for 5,000 pairs.

    Parameters
    ----------
    widths, depths
        Widths n and numbers d of weight layers or blocks, each at least 1.
    x
        One input, shape (n_0,).
    kind
        `MLP`, `ResNet` or `BalancedResNet`.
    network
        Further arguments of the kind, the same for all: weight_law, activation, parameterization, gains, skip, branch,
        ... Blocks are as wide as the stream unless ``hidden`` is given.

    Returns
    -------
    xarray.Dataset
        Over ``width`` and ``depth``: ``mean`` (E[K]), ``log_second_moment`` (log E[K^2]), ``cv``, ``dK``
        (E[Delta K]/lambda) and ``log_dK`` (log of its absolute value). Dimensionless, and inf where a double
        overflows. Relative accuracy of cv: about 10^-15 depth/cv^2; `finwidth.moments` has no such loss.

    Raises
    ------
    FinwidthError
        If a width, depth, the input, or an argument of the network is not allowed.

    Examples
    --------
    >>> from finwidth import ResNet
    >>> from finwidth.exact.grid import moments_grid
    >>> grid = moments_grid([16, 64, 256], range(1, 33), [1.0, 1.0])
    >>> round(float(grid.cv.sel(width=64, depth=32)), 3)
    1.862
    >>> grid = moments_grid([64], [1, 100, 10_000], [1.0, 1.0], kind=ResNet, branch="1/sqrt(depth)")
    >>> grid.cv.to_numpy().round(3).tolist()
    [[0.198, 0.237, 0.237]]
    """
    import xarray as xr

    found = grid_moments(widths, depths, x, kind=kind, **network)
    return xr.Dataset(
        {name: (("width", "depth"), values) for name, values in found.values.items()},
        coords={"width": found.widths, "depth": found.depths},
        attrs=attributes(found.corner, method="exact transfer on a grid"),
    )


@dataclass(frozen=True)
class GridMoments:
    """What `moments_grid` returns, without xarray, whose import takes longer than most grids.

    ``values`` by name, shape (widths, depths); ``depths`` in order; ``corner`` is the network of the first of both.
    """

    widths: list[int]
    depths: list[int]
    values: dict[str, FloatArray]
    corner: Network


def grid_moments(
    widths: Sequence[int],
    depths: Sequence[int],
    x: Vector,
    *,
    kind: type[Network] = MLP,
    **network: Unpack[FamilyOptions],
) -> GridMoments:
    """As `moments_grid`.

    >>> from finwidth.exact.grid import grid_moments
    >>> grid_moments([16, 64], [32], [1.0, 1.0]).values["cv"].round(3).tolist()
    [[32.087], [1.862]]
    """
    depths = sorted({count("depth", depth) for depth in items("depths", depths, "numbers of layers such as [2, 8]")})
    widths = items("widths", widths, "hidden widths such as [16, 64]")
    grid = _Grid(kind, network, x)
    needed = 8 * (16 * len(widths) * len(depths) + 700 * len(widths) + 20 * len(depths)) + grid.algorithm.memory
    afford(needed, f"a grid of {len(widths)} widths and {len(depths)} depths", "take fewer of either")
    widths = _checked_widths(widths)
    if not widths or not depths:
        raise FinwidthError("the grid is empty; give at least one width and one depth")
    grid.check_power()
    cells = grid.algorithm(Cells(grid.family, grid.n_0, widths, depths))
    means = cells.log_values((pairs("w"), pairs("b")), grid.x)
    squares = cells.log_values((pairs("ww"), pairs("wb"), pairs("bb")), grid.x)
    updates = cells.log_values(tuple(update_state(kinds, ONE_OUTPUT) for kinds in ("ww", "wb")), grid.x)
    log_mean = np.logaddexp(*means)
    log_square = np.logaddexp.reduce([squares[0], squares[1] + np.log(2), squares[2]])
    log_update = np.logaddexp(updates[0], updates[1] + np.log(2)) + np.log(2)
    with np.errstate(over="ignore", invalid="ignore"):  # log 0 - log 0, where K is zero: no spread
        values = {
            "mean": np.exp(log_mean),
            "log_second_moment": log_square,
            "cv": np.sqrt(np.fmax(np.expm1(log_square - 2 * log_mean), 0)),
            "dK": -np.exp(log_update),
            "log_dK": log_update,
        }
    return GridMoments(widths, depths, values, grid.family.net(grid.n_0, widths[0], depths[0]))


def spread_by_width(
    widths: Sequence[int],
    depth: int,
    x: Sequence[float],
    *,
    kind: type[Network] = MLP,
    **network: Unpack[FamilyOptions],
) -> FloatArray:
    """The coefficient of variation of K of networks of `moments_grid` of one depth, shape (widths,), in one pass.

    In double precision: the square of a result is right to about 10^-15 depth (1 + its value).

    Examples
    --------
    >>> from finwidth.exact.grid import spread_by_width
    >>> spread_by_width([16, 64, 256], 32, [1.0, 1.0]).round(3)
    array([32.087,  1.862,  0.622])
    """
    depth, widths = count("depth", depth), _checked_widths(items("widths", widths, "widths such as [16, 64]"))
    grid = _Grid(kind, network, x)
    if not widths:
        return np.zeros(0)
    grid.check_power()
    cells = grid.algorithm(Cells(grid.family, grid.n_0, widths, [depth]))
    return _spreads(*cells.log_values(_SPREAD, grid.x))[:, 0]


def spread_by_depth(
    width: int,
    depths: Sequence[int],
    x: Sequence[float],
    *,
    kind: type[Network] = MLP,
    **network: Unpack[FamilyOptions],
) -> list[float]:
    """The coefficient of variation of K of networks of `moments_grid` of one width, at each of some depths.

    Of `MLP` the numbers of `finwidth.moments`, to the last digit, in one pass up the deepest: 10^4 depths take about a
    second. Of residual networks as `spread_by_width`.

    Examples
    --------
    >>> from finwidth import MLP, ResNet, moments
    >>> from finwidth.exact.grid import spread_by_depth
    >>> spread_by_depth(8, [3], [1.0, 2.0])[0] == moments(MLP([2, 8, 8, 1]), [1.0, 2.0]).cv
    True
    >>> [round(spread, 3) for spread in spread_by_depth(8, [1, 4, 16], [1.0, 2.0], kind=ResNet)]
    [0.658, 1.542, 11.517]
    """
    depths = [count("depth", depth) for depth in items("depths", depths, "numbers of layers such as [2, 8]")]
    width, grid = count("width", width), _Grid(kind, network, x)
    if not depths:
        return []
    if kind is not MLP:
        distinct = sorted(set(depths))
        grid.check_power()
        cells = grid.algorithm(Cells(grid.family, grid.n_0, [width], distinct))
        spreads = dict(zip(distinct, _spreads(*cells.log_values(_SPREAD, grid.x))[0].tolist(), strict=True))
        return [spreads[depth] for depth in depths]
    net = grid.family.net(grid.n_0, width, 4)
    found = _spreads_of_all_depths(check_mlp(net), grid.x, max(depths))
    return [found[depth - 1] for depth in depths]


def _spreads_of_all_depths(net: MLP, x: Input, deepest: int) -> list[float]:
    """The spreads at depths 1, ..., deepest of networks with layers like the first, the second and the last here."""
    program = compile_program(_SPREAD, net)
    found = [0.0]  # one layer has no spread
    with decimal.localcontext(CONTEXT):
        transfer = Transfer(program, net, x, to_decimal)
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


def _checked_widths(widths: Sequence[int]) -> list[int]:
    return [count("width", width) for width in widths]


class _Grid:
    """A family of networks, and the input, whose moments are wanted."""

    def __init__(self, kind: type[Network], network: FamilyOptions, x: Vector) -> None:
        given = numbers(x)
        if given is None or given.ndim != 1 or not len(given):
            raise FinwidthError(f"the input {shown(x)} is not one list of numbers; give some such as [1.0, 2.0]")
        self.family, self.n_0 = Family(kind, {**network}), len(given)
        smallest = self.family.net(self.n_0, 2, 2)
        check_supported("finwidth.moments", smallest)
        self.x = Input.of(exact_input(smallest, x), 4)
        self.algorithm = GRIDS[kind]

    def check_power(self) -> None:
        """Raise FinwidthError unless doubles hold what the moments are made of."""
        if not all(arguments.is_double(each) for each in self.x.power_sums.values()):
            raise FinwidthError(
                "the fourth power of the input leaves a double's range; rescale it (or: finwidth.moments)"
            )


def _spreads(w: FloatArray, b: FloatArray, ww: FloatArray, wb: FloatArray, bb: FloatArray) -> FloatArray:
    """Coefficients of variation of K, from the logarithms of what its moments are made of."""
    with np.errstate(over="ignore", invalid="ignore"):  # log 0 - log 0, where K is zero: no spread
        log_square = np.logaddexp.reduce([ww, wb + np.log(2), bb])
        spread: FloatArray = np.sqrt(np.fmax(np.expm1(log_square - 2 * np.logaddexp(w, b)), 0))
    return spread


class MLPGrid:
    """Fully connected networks of a grid: one pass up the deepest."""

    memory = 0  # bytes, beside what grows with the grid

    def __init__(self, cells: Cells) -> None:
        self.cells = cells
        self.nets = [check_mlp(cells.family.net(cells.n_0, width, 4)) for width in cells.widths]

    def log_values(self, starts: Sequence[State], x: Input) -> list[FloatArray]:
        """For each start its log value, shape (widths, depths); depths in order."""
        nets, n_0, depths = self.nets, self.cells.n_0, self.cells.depths
        program = compile_program(tuple(starts), nets[0])
        transfer = Transfer(program, nets[0], x, float)
        first, hidden, last = (_stack([net.layers[place] for net in nets]) for place in (0, 1, -1))
        only = _stack([MLP([n_0, 1], **_arguments(net)).layers[0] for net in nets])
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


GRIDS: dict[type[Network], type[MLPGrid] | type[ResidualGrid]] = {
    MLP: MLPGrid,
    ResNet: ResidualGrid,
    BalancedResNet: ResidualGrid,
}


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

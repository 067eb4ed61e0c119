"""A store as an xarray Dataset."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, NotRequired, TypeAlias, TypedDict

import numpy as np
import numpy.typing as npt

from finwidth.quantities import storable
from finwidth.sweeps.config import cell_at
from finwidth.sweeps.quantities.base import Numerics
from finwidth.sweeps.quantities.registry import QUANTITIES
from finwidth.sweeps.schema.grid import meaning_of
from finwidth.sweeps.store.zarr_store import Store, open_store

if TYPE_CHECKING:
    import xarray as xr

Coordinate: TypeAlias = tuple[tuple[str, ...], npt.NDArray[np.generic], dict[str, str]]  # dimensions, values, attrs


class QuantityStatus(TypedDict):
    """How many cells of a quantity are done, and how many have converged, if that is asked of it."""

    done: int
    total: int
    doubts: list[str]
    converged: NotRequired[int]


class Status(TypedDict):
    """The result of `status`: plain types."""

    store: str
    seed: int
    axes: dict[str, int]
    quantities: dict[str, QuantityStatus]
    complete: bool
    versions: dict[str, str]
    numerics: dict[str, Numerics]


def read(path: str | Path) -> xr.Dataset:
    """The content of a sweep's store, whether or not it is complete.

    Parameters
    ----------
    path
        The store.

    Returns
    -------
    xarray.Dataset
        Its dimensions are the axes that the config gives as lists, in increasing order, and the others coordinates of
        one value; with an axis ``ratio`` the hidden width of each cell is the coordinate ``width``, and
        ``squared_norm`` is |x|^2 of each input. The variables begin with the name of the quantity: ``exact_mean``,
        ``sampled_mean``, ``sampled_se``, ... (docs/sweeps.md); floats are NaN, and ``trust`` and ``converged`` false,
        where a cell is not done. The attributes say what computed it from which config. The same cells give an
        identical Dataset, however many runs, workers or merges made them.

    Raises
    ------
    FinwidthError
        If there is no store, or it is damaged.
    """
    return dataset(open_store(path))


def dataset(store: Store) -> xr.Dataset:
    """`read` of an open store."""
    import xarray as xr

    config = store.config
    places = np.ix_(*([store.axes[name].index(value) for value in axis] for name, axis in config.axes.items()))
    coords: dict[str, Coordinate] = {
        name: ((name,), np.array(axis), {"long_name": meaning_of(name, config.network)})
        for name, axis in config.axes.items()
    }
    if "ratio" in config.axes:
        outer, inner = (0,) * (len(config.axes) - 2), config.shape[-2:]
        widths = [cell_at(config.axes, (*outer, *place)).width for place in np.ndindex(inner)]
        coords["width"] = (
            ("depth", "ratio"),
            np.reshape(widths, inner),
            {"long_name": meaning_of("width", config.network)},
        )
    norms = [[config.inputs[str(name)][str(n_0)][0] for name in config.axes["input"]] for n_0 in config.axes["n_0"]]
    coords["squared_norm"] = (("n_0", "input"), np.array(norms), {"long_name": "|x|^2 of the input"})
    variables = {}
    for quantity, settings in config.quantities.items():
        labels = QUANTITIES[quantity].coordinates(settings)
        for name, (dims, values, attrs) in (
            QUANTITIES[quantity].variables(store.records(quantity)[places], settings).items()
        ):
            variables[name] = ((*config.axes, *dims), values, attrs)
            coords |= {dim: ((dim,), np.array(labels[dim]), {}) for dim in dims}
    attrs = {
        "method": "sweep: " + ", ".join(config.quantities),
        "seed": storable(config.seed),
        "config": json.dumps(config.to_json()),
        **{f"{package}_version": number for package, number in store.versions.items()},
    }
    return xr.Dataset(variables, coords, attrs).squeeze(list(config.single))


def status(path: str | Path) -> Status:
    """How far the sweep of a store is, in plain types."""
    store = open_store(path)
    quantities: dict[str, QuantityStatus] = {}
    for name, settings in store.config.quantities.items():
        records = store.records(name)
        finished = QUANTITIES[name].finished(records, settings)
        converged, doubts = QUANTITIES[name].converged(records, settings)
        quantities[name] = {"done": int(finished.sum()), "total": finished.size, "doubts": doubts}
        if converged is not None:
            quantities[name]["converged"] = converged
    return {
        "store": str(path),
        "seed": store.config.seed,
        "axes": {name: len(values) for name, values in store.config.axes.items()},
        "quantities": quantities,
        "complete": all(each["done"] == each["total"] for each in quantities.values()),
        "versions": dict(store.versions),
        "numerics": store.numerics,
    }

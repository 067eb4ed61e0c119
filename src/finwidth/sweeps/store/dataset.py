"""A store as an xarray Dataset."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from finwidth.quantities import storable
from finwidth.sweeps.quantities.registry import KINDS
from finwidth.sweeps.schema.grid import AXES, RATIO, width_at
from finwidth.sweeps.store.zarr_store import Store, open_store

if TYPE_CHECKING:
    import xarray as xr


def read(path: str | Path) -> xr.Dataset:
    """What a sweep's store holds, whether or not it is complete.

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
    coords: dict[str, Any] = {
        name: (name, np.array(axis), {"long_name": RATIO if name == "ratio" else AXES[name]})
        for name, axis in config.axes.items()
    }
    if "ratio" in config.axes:
        widths = [[width_at(depth, ratio) for ratio in config.axes["ratio"]] for depth in config.axes["depth"]]
        coords["width"] = (("depth", "ratio"), np.array(widths), {"long_name": AXES["width"]})
    norms = [[config.inputs[name][str(n_0)][0] for name in config.axes["input"]] for n_0 in config.axes["n_0"]]
    coords["squared_norm"] = (("n_0", "input"), np.array(norms), {"long_name": "|x|^2 of the input"})
    variables = {}
    for quantity, settings in config.quantities.items():
        kind, labels = KINDS[quantity], KINDS[quantity].dims(settings)
        for name, (dims, values, attrs) in kind.variables(store.records(quantity)[places], settings).items():
            variables[name] = ((*config.axes, *dims), values, attrs)
            coords |= {dim: (dim, np.array(labels[dim])) for dim in dims}
    attrs = {
        "method": "sweep: " + ", ".join(config.quantities),
        "seed": storable(config.seed),
        "config": json.dumps(config.to_json()),
        **{f"{package}_version": number for package, number in store.versions.items()},
    }
    return xr.Dataset(variables, coords, attrs).squeeze(list(config.single))


def status(path: str | Path) -> dict[str, Any]:
    """How far the sweep of a store is, in plain types."""
    store = open_store(path)
    quantities = {}
    for name, settings in store.config.quantities.items():
        kind, records = KINDS[name], store.records(name)
        finished = kind.finished(records, settings)
        converged, doubts = kind.converged(records, settings)
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

"""Sweep configurations: reading and checking, and whether a new one may continue or join an old one."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np

from finwidth.errors import FinwidthError
from finwidth.networks.activations import ACTIVATIONS
from finwidth.networks.laws import LAWS, FloatArray
from finwidth.networks.mlp import MLP, PARAMETERIZATIONS
from finwidth.sweeps.quantities.registry import KINDS, Settings
from finwidth.sweeps.schema.document import Document, read_document, shown
from finwidth.sweeps.schema.grid import AXES, TEXT_AXES, Cell, input_vector, width_at
from finwidth.sweeps.schema.values import checked, numbers, one_of, several, text, whole, within

MOST_CELLS = 10**6
_DEEPEST, _WIDEST_INPUT = 10**6, 10**7
_NETWORK = ("gains", "bias", "bias_variance", "bias_law")
_DEFAULTS = {"law": "gaussian", "activation": "relu", "parameterization": "ntk", "input": "ones"}
_CHECKS = {
    "n_0": whole(1, _WIDEST_INPUT),
    "law": one_of(tuple(LAWS)),
    "activation": one_of(tuple(ACTIVATIONS)),
    "parameterization": one_of(PARAMETERIZATIONS),
    "input": text,
    "depth": whole(1, _DEEPEST),
    "width": whole(1),
    "ratio": within(1e-9, 1e6),
}


@dataclass(frozen=True)
class Config:
    """A checked config; `read_config` makes one.

    Attributes
    ----------
    seed
        Fixes every draw.
    axes
        The values of each axis, in increasing order; ``ratio`` may stand in the place of ``width``.
    single
        The axes that were given as one value rather than a list: no dimensions of the result.
    network
        Further arguments of `MLP`, the same in every cell.
    quantities
        What is computed in each cell, and the settings of each.
    inputs
        The squared norm and a hash of each input that it names, by name and input width.
    """

    seed: int
    axes: Mapping[str, tuple[Any, ...]]
    single: tuple[str, ...]
    network: Mapping[str, Any]
    quantities: Mapping[str, Mapping[str, Any]]
    inputs: Mapping[str, Mapping[str, tuple[float, str]]]

    @property
    def shape(self) -> tuple[int, ...]:
        """The number of values on each axis."""
        return tuple(map(len, self.axes.values()))

    def to_json(self) -> dict[str, Any]:
        """Plain types, the same for the same sweep."""
        return {
            "seed": self.seed,
            "axes": {name: list(values) for name, values in self.axes.items()},
            "single": list(self.single),
            "network": dict(self.network),
            "quantities": {name: dict(settings) for name, settings in self.quantities.items()},
            "inputs": {name: dict(widths) for name, widths in self.inputs.items()},
        }

    @classmethod
    def from_json(cls, document: Mapping[str, Any]) -> Config:
        """The inverse of `to_json`."""
        axes = {name: tuple(values) for name, values in document["axes"].items()}
        inputs = {
            name: {n_0: (norm, digest) for n_0, (norm, digest) in widths.items()}
            for name, widths in document["inputs"].items()
        }
        return cls(**{**document, "axes": axes, "single": tuple(document["single"]), "inputs": inputs})


def cell_at(axes: Mapping[str, tuple[Any, ...]], place: tuple[int, ...]) -> Cell:
    """The cell at a place of the grid."""
    values = {name: axis[i] for (name, axis), i in zip(axes.items(), place, strict=True)}
    if "ratio" in values:
        values["width"] = width_at(values["depth"], values.pop("ratio"))
    return Cell(**values)


Vectors: TypeAlias = dict[tuple[str, int], FloatArray]  # inputs by name and input width


def read_config(source: str | Path | Mapping[str, Any]) -> tuple[Config, Vectors]:
    """The config in a TOML file or a mapping of the same shape (docs/sweeps.md), checked; and the inputs it names.

    Raises
    ------
    FinwidthError
        For anything that cannot be computed; the message names the key, and the line of the file.

    Examples
    --------
    >>> from finwidth.sweeps.config import read_config
    >>> config, _ = read_config({"quantities": ["exact"], "axes": {"depth": [2, 4], "width": 16, "n_0": 8}})
    >>> config.axes["depth"], config.single
    ((2, 4), ('n_0', 'law', 'activation', 'parameterization', 'input', 'width'))
    """
    document = read_document(source)
    top = document.table("", ("seed", "quantities", "axes", "network", *KINDS))
    seed = checked(document, "seed", top.get("seed", 0), whole(0, math.inf))
    if "quantities" not in top:
        raise document.fault("quantities", f"this key is missing; list what to compute, from {', '.join(KINDS)}")
    wanted = several(document, "quantities", top["quantities"], one_of(tuple(KINDS)))
    axes, single = _read_axes(document)
    axes["n_0"], vectors = _read_inputs(document, axes)
    if "n_0" not in document.table("axes", _CHECKS):
        single.add("n_0")
    names = [name if name in axes else "ratio" for name in AXES]
    size = math.prod(len(axes[name]) for name in names)
    if size > MOST_CELLS:
        raise document.fault("axes", f"the grid has {size} cells; at most {MOST_CELLS} are allowed")
    network = _read_network(document)
    quantities = {}
    for name in (name for name in KINDS if name in wanted):
        table = document.table(name, KINDS[name].keys)
        quantities[name] = KINDS[name].settings(document, table)
        for each in KINDS[name].inputs(quantities[name]):
            for n_0 in axes["n_0"]:
                vectors[each, n_0] = _read_input(document, f"{name}.inputs", each, n_0)
    for name in KINDS:
        if name in top and name not in quantities:
            raise document.fault(name, f'this table is of a quantity that is not asked for; add "{name}" to quantities')
    config = Config(
        seed,
        {name: tuple(sorted(axes[name])) for name in names},
        tuple(name for name in names if name in single),
        network,
        quantities,
        _described(vectors),
    )
    _check_combinations(document, config)
    return config, vectors


def _read_axes(document: Document) -> tuple[dict[str, list[Any]], set[str]]:
    """The values of every axis but n_0, which may depend on the inputs; and which were given as one value."""
    table = document.table("axes", _CHECKS)
    if ("width" in table) == ("ratio" in table):
        raise document.fault("axes", "give one of width (of the hidden layers) and ratio (depth over width)")
    if "depth" not in table:
        raise document.fault("axes.depth", "this key is missing; list numbers of weight layers, such as [2, 4, 8]")
    given = {**_DEFAULTS, **table}
    axes: dict[str, list[Any]] = {}
    single = set()
    for name, values in given.items():
        read = several if name in TEXT_AXES else numbers
        axes[name] = read(document, f"axes.{name}", values, _CHECKS[name])
        if not isinstance(values, list | tuple | range | np.ndarray | Mapping):
            single.add(name)
    return axes, single


def _read_inputs(document: Document, axes: dict[str, list[Any]]) -> tuple[list[int], Vectors]:
    """The input widths and the input vectors."""
    widths: list[int] = axes.get("n_0", [])
    if not widths:
        vectors = [_read_input(document, "axes.input", name, None) for name in axes["input"]]
        widths = sorted({len(vector) for vector in vectors})
        if len(widths) > 1:
            raise document.fault("axes.input", f"the inputs have different lengths: {', '.join(map(str, widths))}")
    pairs = product(axes["input"], widths)
    return widths, {(name, n_0): _read_input(document, "axes.input", name, n_0) for name, n_0 in pairs}


def _read_input(document: Document, key: str, name: str, n_0: int | None) -> FloatArray:
    vector: FloatArray = checked(document, key, name, lambda each: input_vector(each, n_0, document.folder))
    return vector


def _described(vectors: Vectors) -> dict[str, dict[str, tuple[float, str]]]:
    """The squared norms and hashes of the inputs."""
    found: dict[str, dict[str, tuple[float, str]]] = {}
    with np.errstate(over="ignore"):
        for (name, n_0), vector in sorted(vectors.items(), key=lambda item: (item[0][0], str(item[0][1]))):
            digest = hashlib.blake2b(vector.tobytes(), digest_size=16).hexdigest()
            found.setdefault(name, {})[str(n_0)] = (float(np.square(vector).sum()), digest)
    return found


def _read_network(document: Document) -> dict[str, Any]:
    table = document.table("network", _NETWORK)
    for key, value in table.items():
        if isinstance(value, list | tuple | np.ndarray):
            raise document.fault(f"network.{key}", "give one value, the same for all layers")
        if not isinstance(value, int | float | str):
            raise document.fault(f"network.{key}", f"{shown(value)} is neither a number nor a name")
        checked(document, f"network.{key}", {key: value}, lambda given: MLP([1, 1, 1], **given))
    if table:
        checked(document, "network", table, lambda given: MLP([1, 1, 1], **given))
    return table


def _check_combinations(document: Document, config: Config) -> None:
    """Refuse what cannot be computed for a law, activation or parameterization of the grid."""
    names = ("law", "activation", "parameterization")
    for name in config.quantities:
        if KINDS[name].inputs(config.quantities[name]) and len(config.axes["input"]) > 1:
            raise document.fault("axes.input", f"give one input, for {name} takes its inputs from the table [{name}]")
    n_0 = config.axes["n_0"][0]
    depth = config.axes["depth"][-1]
    widest = config.axes["width"][-1] if "width" in config.axes else width_at(depth, config.axes["ratio"][0])
    for values in product(*(config.axes[name] for name in names)):
        law, activation, parameterization = values
        cell = Cell(n_0, law, activation, parameterization, "ones", 2, widest)
        net = cell.network(dict(config.network))
        for quantity, settings in config.quantities.items():
            what = ", ".join(f"{name} {value!r}" for name, value in zip(names, values, strict=True))
            try:
                KINDS[quantity].check(net, Settings(config.seed, dict(config.network), dict(settings)))
            except FinwidthError as error:
                raise document.fault("quantities", f'"{quantity}" cannot be had for {what}: {error}') from None


def differences(old: Config, new: Config) -> list[str]:
    """Reasons why ``new`` cannot continue a sweep of ``old``; empty if it only adds to it."""
    found = [
        f"{name} was {getattr(old, name)!r} and is {getattr(new, name)!r}"
        for name in ("seed", "network")
        if getattr(old, name) != getattr(new, name)
    ]
    for name in sorted({*old.axes} | {*new.axes}):
        if name not in new.axes or name not in old.axes:
            found.append(f"axes.{name} was {'given' if name in old.axes else 'not given'} before")
        elif missing := set(old.axes[name]) - set(new.axes[name]):
            found.append(f"axes.{name} no longer has {', '.join(map(str, sorted(missing)))}")
    for name, widths in old.inputs.items():
        now = new.inputs.get(name, {})
        if any(now.get(n_0, described) != described for n_0, described in widths.items()):
            found.append(f"the input {name} has other numbers")
    for quantity, settings in old.quantities.items():
        if quantity not in new.quantities:
            found.append(f"quantities no longer has {quantity}")
            continue
        found += _setting_differences(quantity, settings, new.quantities[quantity])
    return found


def _setting_differences(quantity: str, old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    found = []
    for key in sorted({*old} | {*new}):
        before, now = old.get(key), new.get(key)
        grows = key in KINDS[quantity].growing and before is not None and now is not None and now >= before
        if before != now and not grows:
            found.append(f"{quantity}.{key} was {_said(before)} and is {_said(now)}")
    return found


def _said(value: Any) -> str:
    return "not given" if value is None else str(value)


def united(one: Config, other: Config) -> Config:
    """The config of both grids together; raises FinwidthError if they differ in more than their axes."""
    aligned = replace(other, axes={**one.axes} if {*one.axes} == {*other.axes} else other.axes)
    found = differences(one, aligned) or differences(aligned, one)
    if found:
        raise FinwidthError(f"the sweeps cannot be merged: {'; '.join(found)}")
    axes = {name: tuple(sorted({*one.axes[name], *other.axes[name]})) for name in one.axes}
    single = tuple(name for name in axes if name in one.single and name in other.single and len(axes[name]) == 1)
    names = sorted({*one.inputs, *other.inputs})
    inputs = {name: dict(sorted({**one.inputs.get(name, {}), **other.inputs.get(name, {})}.items())) for name in names}
    return replace(one, axes=axes, single=single, inputs=inputs)

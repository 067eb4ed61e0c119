"""Sweep configurations: reading and checking, and whether a new one may continue or join an old one."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path
from typing import Any, TypedDict

import numpy as np

from finwidth.errors import FinwidthError
from finwidth.networks.description import Network
from finwidth.networks.laws import FloatArray
from finwidth.sweeps.quantities.base import Settings
from finwidth.sweeps.quantities.registry import QUANTITIES
from finwidth.sweeps.schema.document import Document, as_typed, read_document
from finwidth.sweeps.schema.grid import (
    ALL_AXES,
    ARGUMENTS,
    AXES,
    DEFAULTS,
    Cell,
    Vectors,
    axes_of,
    input_vector,
    make_cell,
)
from finwidth.sweeps.schema.kinds import DEFAULT_KIND, KINDS, NetworkTable, Value, kind_of
from finwidth.sweeps.schema.values import LISTS, checked_value, name_in, read_numbers, read_values, whole_number

_MOST_CELLS = 10**6
_SIZES = ("n_0", "input", "depth", "width", "ratio")  # axes on which no network is refused


class ConfigDocument(TypedDict):
    """A `Config` in plain types."""

    seed: int
    axes: dict[str, list[Value]]
    single: list[str]
    network: NetworkTable
    quantities: dict[str, dict[str, object]]
    inputs: dict[str, dict[str, tuple[float, str]]]


@dataclass(frozen=True)
class Config:
    """A checked config; `read_config` makes one.

    Attributes
    ----------
    seed
        Fixes every draw.
    axes
        The values of each axis, in increasing order; ``ratio`` may stand in the place of ``width``, and the axes
        in `ARGUMENTS` are there only where they were given.
    single
        The axes that were given as one value rather than a list: no dimensions of the result.
    network
        The kind of network, if it is not the default, and further arguments, the same in every cell.
    quantities
        The quantities to compute in each cell, and the settings of each.
    inputs
        The squared norm and a hash of each input that it names, by name and input width.
    """

    seed: int
    axes: Mapping[str, tuple[Value, ...]]
    single: tuple[str, ...]
    network: NetworkTable
    quantities: Mapping[str, Mapping[str, object]]
    inputs: Mapping[str, Mapping[str, tuple[float, str]]]

    @property
    def shape(self) -> tuple[int, ...]:
        """The number of values on each axis."""
        return tuple(map(len, self.axes.values()))

    def to_json(self) -> ConfigDocument:
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
    def from_json(cls, document: ConfigDocument) -> Config:
        """The inverse of `to_json`."""
        axes = {name: tuple(values) for name, values in document["axes"].items()}
        inputs = {
            name: {n_0: (norm, digest) for n_0, (norm, digest) in widths.items()}
            for name, widths in document["inputs"].items()
        }
        single, network, quantities = tuple(document["single"]), document["network"], document["quantities"]
        return cls(document["seed"], axes, single, network, quantities, inputs)


def cell_at(axes: Mapping[str, tuple[Value, ...]], place: tuple[int, ...]) -> Cell:
    """The cell at a place of the grid."""
    return make_cell((name, values[i]) for (name, values), i in zip(axes.items(), place, strict=True))


def read_config(source: str | Path | Mapping[str, object]) -> tuple[Config, Vectors]:
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
    config, vectors = _parsed(document)
    for name, table in config.quantities.items():
        if QUANTITIES[name].inputs(table) and len(config.axes["input"]) > 1:
            raise document.fault("axes.input", f"give one input, for {name} takes its inputs from the table [{name}]")
    for told, net in _networks_of_a_kind(document, config):
        for name, table in config.quantities.items():
            try:
                QUANTITIES[name].check(net, Settings(config.seed, config.network, table))
            except FinwidthError as error:
                raise document.fault("quantities", f'"{name}" cannot be had for {told}: {error}') from None
    return config, vectors


def _parsed(document: Document) -> tuple[Config, Vectors]:
    """The config and its inputs, each key checked by itself."""
    top = document.table("", ("seed", "quantities", "axes", "network", *QUANTITIES))
    seed = checked_value(document, "seed", top.get("seed", 0), whole_number(0, math.inf))
    if "quantities" not in top:
        raise document.fault("quantities", f"this key is missing; list what to compute, from {', '.join(QUANTITIES)}")
    wanted = read_values(document, "quantities", top["quantities"], name_in(QUANTITIES))
    kind = _read_kind(document)
    axes, single = _read_axes(document, kind)
    axes["n_0"], vectors = _read_inputs(document, axes)
    if "n_0" not in document.table("axes", ALL_AXES):
        single.add("n_0")
    names = [name for name in (*list(AXES)[:-1], "width", "ratio") if name in axes]
    size = math.prod(len(axes[name]) for name in names)
    if size > _MOST_CELLS:
        raise document.fault("axes", f"the grid has {size} cells; at most {_MOST_CELLS} are allowed")
    network = {**kind, **_read_network(document, axes, kind)}
    quantities = {}
    for name in (name for name in QUANTITIES if name in wanted):
        table = document.table(name, QUANTITIES[name].keys)
        quantities[name] = QUANTITIES[name].settings(document, table)
        for each in QUANTITIES[name].inputs(quantities[name]):
            for n_0 in axes["n_0"]:
                vectors[each, n_0] = _read_input(document, f"{name}.inputs", each, n_0)
    for name in QUANTITIES:
        if name in top and name not in quantities:
            raise document.fault(name, f'this table is of a quantity that is not asked for; add "{name}" to quantities')
    config = Config(
        seed,
        {name: tuple(sorted(axes[name])) for name in names},
        tuple(name for name in names if name in single),
        network,
        quantities,
        _input_digests(vectors),
    )
    return config, vectors


def _read_kind(document: Document) -> NetworkTable:
    """What the table [network] says of the kind; nothing for the default, whose sweeps are the same if they name it."""
    table = document.table("network", ("kind", *ARGUMENTS))
    kind = checked_value(document, "network.kind", table.get("kind", DEFAULT_KIND), name_in(KINDS))
    return {} if kind == DEFAULT_KIND else {"kind": kind}


def _table_of_kind(document: Document, name: str, keys: Iterable[str], network: NetworkTable) -> dict[str, object]:
    """A table, whose arguments of networks are those of the kind."""
    table = document.table(name, keys)
    for key in table:
        if key in ARGUMENTS and not kind_of(network).takes(key):
            kinds = " or ".join(each for each, kind in KINDS.items() if kind.takes(key))
            raise document.fault(
                f"{name}.{key}", f'only networks of kind {kinds} have this; say kind = "..." in [network]'
            )
    return table


def _read_axes(document: Document, network: NetworkTable) -> tuple[dict[str, list[Any]], set[str]]:
    """The values of every axis but n_0, which may depend on the inputs; and which were given as one value."""
    known = axes_of(network)
    table = _table_of_kind(document, "axes", ALL_AXES, network)
    if ("width" in table) == ("ratio" in table):
        raise document.fault("axes", "give one of width (of the hidden layers) and ratio (depth over width)")
    if "depth" not in table:
        raise document.fault("axes.depth", "this key is missing; list numbers of weight layers, such as [2, 4, 8]")
    axes: dict[str, list[Any]] = {}
    single = set()
    for name, values in {**DEFAULTS, **table}.items():
        axis = known[name]
        read = read_values if axis.text else read_numbers
        axes[name] = read(document, f"axes.{name}", values, axis.check)
        if not isinstance(values, (*LISTS, Mapping)):
            single.add(name)
    return axes, single


def _read_inputs(
    document: Document, axes: Mapping[str, list[Any]]
) -> tuple[list[int], dict[tuple[str, int], FloatArray]]:
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
    with document.at(key):
        return input_vector(name, n_0, document.folder)


def _input_digests(vectors: Vectors) -> dict[str, dict[str, tuple[float, str]]]:
    """The squared norms and hashes of the inputs."""
    found: dict[str, dict[str, tuple[float, str]]] = {}
    with np.errstate(over="ignore"):
        for (name, n_0), vector in sorted(vectors.items(), key=lambda item: (item[0][0], str(item[0][1]))):
            digest = hashlib.blake2b(vector.tobytes(), digest_size=16).hexdigest()
            found.setdefault(name, {})[str(n_0)] = (float(np.square(vector).sum()), digest)
    return found


def _read_network(document: Document, axes: Iterable[str], kind: NetworkTable) -> dict[str, Value]:
    """The arguments of the network that are the same in every cell."""
    found: dict[str, Value] = {}
    for key, value in _table_of_kind(document, "network", ("kind", *ARGUMENTS), kind).items():
        if key == "kind":
            continue
        if isinstance(value, list | tuple | np.ndarray):
            raise document.fault(f"network.{key}", "give one value, the same for all layers")
        if not isinstance(value, int | float | str):
            raise document.fault(f"network.{key}", f"{as_typed(value)} is neither a number nor a name")
        if key in axes:
            raise document.fault(f"axes.{key}", "this key stands in [network], too; give one of the two")
        found[key] = value
    for key, some in (*((f"network.{name}", {name: value}) for name, value in found.items()), ("network", found)):
        with document.at(key):
            kind_of(kind).family({**some, **kind_of(kind).beside}).net(1, 2, 2)
    return found


def _networks_of_a_kind(document: Document, config: Config) -> Iterator[tuple[str, Network]]:
    """For each combination of texts, and of either end of numbers, a network of depth 2 and the largest width.

    That of the smallest width is made too: a norm may refuse it.
    """
    first, last = (0,) * len(config.axes), (*[-1] * (len(config.axes) - 1), 0)
    corners = [cell_at(config.axes, place) for place in (first, last, (*first[:-1], -1), (*last[:-1], -1))]
    sizes = sorted(cell.width for cell in corners)
    fixed = {"n_0": config.axes["n_0"][0], "input": "ones", "depth": 2, "width": sizes[-1]}
    known = axes_of(config.network)
    some = {
        name: values if known[name].text else tuple(dict.fromkeys((values[0], values[-1])))
        for name, values in config.axes.items()
        if name not in _SIZES
    }
    for values in product(*some.values()):
        coordinates = dict(zip(some, values, strict=True))
        told = ", ".join(f"{name} {value!r}" for name, value in coordinates.items())
        try:
            cell = make_cell({**fixed, **coordinates}.items())
            cell._replace(width=sizes[0]).network(config.network)
            net = cell.network(config.network)
        except FinwidthError as error:
            raise document.fault("axes", f"there is no network of {told}: {error}") from None
        yield told, net


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
        elif missing := [value for value in old.axes[name] if value not in set(new.axes[name])]:
            found.append(f"axes.{name} no longer has {', '.join(map(str, missing))}")
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


def _setting_differences(quantity: str, old: Mapping[str, object], new: Mapping[str, object]) -> list[str]:
    found = []
    for key in sorted({*old} | {*new}):
        before, now = old.get(key), new.get(key)
        grows = isinstance(before, int) and isinstance(now, int) and now >= before
        if before != now and not (grows and key in QUANTITIES[quantity].growing):
            found.append(f"{quantity}.{key} was {_given_or_not(before)} and is {_given_or_not(now)}")
    return found


def _given_or_not(value: object) -> str:
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

"""The main job: everything about the kernel of one network at one input, as a table, figures and a file."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from finwidth import arguments, plots
from finwidth.arguments import count
from finwidth.errors import FinwidthError
from finwidth.exact.bounds import Bounds, bounds, why_outside
from finwidth.exact.moments import KernelMoments, exact_values, infinite_width, moments
from finwidth.laws import FloatArray
from finwidth.network import MLP, Vector, format_widths
from finwidth.quantities import Estimate, attributes, plain
from finwidth.sampling.diagonal import check_network, chunks
from finwidth.sampling.estimates import estimates

_PICTURED = 10**6  # draws that the histogram shows; more would not change what is seen


@dataclass(frozen=True)
class Row:
    """One quantity by both routes."""

    quantity: str
    exact: float
    sampled: Estimate


@dataclass(frozen=True)
class Report:
    """What `report` computed; ``rows`` is the table, ``drawn`` holds draws of K for the figure, shape (draws,)."""

    network: MLP
    moments: KernelMoments
    infinite_width: float
    bounds: Bounds | None
    rows: tuple[Row, ...]
    drawn: FloatArray
    provenance: Mapping[str, Any]

    def to_json(self) -> dict[str, Any]:
        """Plain types: the moments' document, the infinite-width value, and the estimates with z-scores."""
        document: dict[str, Any] = {
            **self.moments.to_json(),
            "bounds": self.bounds and self.bounds.to_json(),
            "infinite_width": {"K": self.infinite_width},
            "estimates": {
                row.quantity: row.sampled.to_json() | {"exact": row.exact, "z": row.sampled.z(row.exact)}
                for row in self.rows
            },
            "provenance": dict(self.provenance),
        }
        return {key: plain(value) for key, value in document.items()}


def report(
    net: MLP, x: Vector, draws: int = 10**6, seed: int = 0, *, progress: Callable[[int], object] | None = None
) -> Report:
    """Exact moments, the paper's forms and draws in law of one network at one input, side by side.

    Parameters as in `finwidth.sample`.

    Examples
    --------
    >>> import finwidth
    >>> from finwidth.report import report
    >>> found = report(finwidth.MLP([2, 16, 16, 1]), [1, 2], draws=20_000)
    >>> [row.quantity for row in found.rows][:3]
    ['K', 'K_w', 'K_b']
    """
    check_network(net)
    draws = count("draws", draws)
    exact = moments(net, x)
    if not exact.mean:
        raise FinwidthError("the kernel of this network is zero at this input: there is nothing to report on")
    forms = None if why_outside(net) else bounds(net, x, exact=exact)
    values = exact_values(exact)
    kept: list[FloatArray] = []
    found = estimates(_kept(chunks(net, x, draws, seed, progress=progress), kept), values)
    rows = tuple(Row(name, values[name], estimate) for name, estimate in found.items())
    provenance = attributes(net, method="exact transfer; norm chain", seed=seed, draws=draws)
    return Report(net, exact, infinite_width(net, x), forms, rows, np.concatenate(kept), provenance)


def _kept(pieces: Iterable[dict[str, FloatArray]], kept: list[FloatArray]) -> Iterator[dict[str, FloatArray]]:
    """Pass draws on, keeping the first ones of K for the figure."""
    done = 0
    for piece in pieces:
        if done < _PICTURED:
            kept.append(piece["K"][: _PICTURED - done])
        done += len(piece["K"])
        yield piece


def write(found: Report, x: Vector, folder: str | Path) -> list[Path]:
    """Write report.json, and the figures law and depth as PNG and PDF, into ``folder``; returns the paths.

    Raises FinwidthError if the folder cannot be made or written.
    """
    folder = arguments.path("folder", folder)
    arguments.instance("found", found, Report, "what finwidth.report.report returns")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        title = f"{format_widths(found.network.widths)}, {len(found.drawn):,} draws"
        figures = {
            "law": plots.law_of_kernel(found.drawn, float(found.moments.mean), found.infinite_width, title),
            "depth": _depth_figure(found.network, x),
        }
        document = folder / "report.json"
        document.write_text(json.dumps(found.to_json(), indent=1, allow_nan=False) + "\n")
        return [document, *(path for name, figure in figures.items() for path in plots.save(figure, folder / name))]
    except OSError as error:
        raise FinwidthError(f"cannot write the report to {folder}: {error.strerror}; give a folder with -o") from None


def _depth_figure(net: MLP, x: Vector) -> Any:
    """Growth with depth around this network: half, once and twice its typical width, up to twice its depth."""
    hidden = net.widths[1:-1]
    typical = round(len(hidden) / sum(1 / n for n in hidden)) if hidden else net.widths[0]
    widths = sorted({max(1, typical // 2), typical, 2 * typical})
    deepest = max(8, 2 * net.depth)
    step = math.ceil(deepest / 40)
    kind = {"activation": net.activation, "parameterization": net.parameterization, "bias": net.bias}
    return plots.growth_with_depth(x, widths, range(1, deepest + 1, step), here=net, **kind)

"""Products of a kernel with vectors, from those of its Jacobians: `KernelProduct`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias

import torch

from finwidth.empirical.matrix_free.checks import Probe
from finwidth.empirical.matrix_free.products import Jacobian

Tensor = torch.Tensor
Index: TypeAlias = int | slice
Column: TypeAlias = tuple[
    Index, Index, int
]  # outputs of the module, entries of b that weigh them, number of the vector


@dataclass(frozen=True, eq=False)
class KernelProduct:
    """K V = J1 M (J2^T V), M the scales of the parameters, for vectors V of shape (N2, b, k).

    ``units`` pair outputs of the module with entries of b: K V is the sum over them of products with the kernels of
    those outputs. All outputs with all of b make one unit; a trace has one for each output, with the only entry.
    """

    first: Jacobian
    second: Jacobian
    units: list[tuple[Index, Index]]
    outputs: int

    def columns(self, k: int) -> list[Column]:
        """What goes through the module by itself, for k vectors."""
        return [(output, b, c) for c in range(k) for output, b in self.units]

    def inputs_passed(self, k: int, at_once: int) -> int:
        """Inputs of all passes of a product with k vectors, so many columns at once."""
        return -(-len(self.units) * k // at_once) * (len(self.first.x) + len(self.second.x))

    def of(self, V: Tensor, at_once: int, told: Callable[[int], None], probe: Probe | None) -> Tensor:
        """K V, shape (N1, b, k), of so many columns at once; FinwidthError if one does not pass the probe.

        ``told`` is called with the inputs that have passed the module since the last time.
        """
        network, columns = self.first.network, self.columns(V.shape[2])
        found = V.new_zeros(len(self.first.x), *V.shape[1:])
        for start in range(0, len(columns), at_once):
            some = columns[start : start + at_once]
            v = V.new_zeros(len(some), len(V), self.outputs)
            for row, (output, b, c) in zip(v, some, strict=True):
                row[:, output] = V[:, b, c]
            g = self.second.pulled_back(v, told)
            if probe is not None:
                probe.check_pulled(self.second, v, g)
            for name, each in zip(network.parameters, g, strict=True):
                each.mul_(network.scales[name])
            f = self.first.pushed_forward(g, told)
            if probe is not None:
                probe.check_pushed(self.first, g, f)
            for row, (output, b, c) in zip(f, some, strict=True):
                found[:, b, c] += row[:, output]
        return found

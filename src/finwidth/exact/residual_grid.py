"""Residual networks of a whole grid at once: the map of a block as a matrix, and its power.

Blocks are all alike, so that what a network does to the values of all states is stem, one matrix to the power of its
depth, and head: in double precision, for all networks of the grid at once.
"""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction
from typing import TypeAlias, cast

import numpy as np
import numpy.typing as npt

from finwidth.exact.partitions import State
from finwidth.exact.residual import ResidualProgram, ResidualTransfer, compile_residual
from finwidth.exact.transfer import Input
from finwidth.networks.balanced import BalancedResNet
from finwidth.networks.family import Cells
from finwidth.networks.laws import FloatArray
from finwidth.networks.resnet import ResNet
from finwidth.progress import stage

_Residual: TypeAlias = ResNet | BalancedResNet

_AT_ONCE = 1024  # networks, whose matrices take some megabytes


def _as_column(values: Sequence[Fraction]) -> FloatArray:
    return np.array([float(value) for value in values])[:, None]


class ResidualGrid:
    """What `finwidth.exact.grid` does for residual networks."""

    memory = 40 * 2**20  # bytes of the matrices of a pass

    def __init__(self, cells: Cells) -> None:
        self.cells = cells

    def log_values(self, starts: Sequence[State], x: Input) -> list[FloatArray]:
        """For each start its log value, shape (widths, depths)."""
        cells = self.cells
        pairs = [(width, depth) for width in cells.widths for depth in cells.depths]
        of_depth = {depth: cells.family.of_depth(depth) for depth in cells.depths}
        found = np.empty((len(starts), len(pairs)))
        program: ResidualProgram | None = None
        with stage("exact moments", len(pairs)) as told:
            for start in range(0, len(pairs), _AT_ONCE):
                batch = pairs[start : start + _AT_ONCE]
                # Of two blocks: the first may differ from the others, at the input zero.
                nets = [cast(_Residual, of_depth[depth].net(cells.n_0, width, 2)) for width, depth in batch]
                program = program or compile_residual(starts, nets[0])
                exponents = np.array([depth for _, depth in batch]) - 1
                found[:, start : start + len(batch)] = _log_outputs(program, nets, exponents, x)
                told(start + len(batch))
        return list(found.reshape(len(starts), len(cells.widths), len(cells.depths)))


def _log_outputs(
    program: ResidualProgram, nets: Sequence[_Residual], exponents: npt.NDArray[np.int64], x: Input
) -> FloatArray:
    """The logarithms of the program's starts, shape (starts, networks), with so many blocks after the first."""
    transfer = ResidualTransfer(program, nets, x, float, _as_column)
    transfer.block(*(net.blocks[0] for net in nets))
    states = len(transfer.stream)
    values = np.stack([np.broadcast_to(each, (len(nets), 1))[:, 0] for each in transfer.stream], axis=1)
    transfer.stream = list(np.eye(states))
    transfer.block(*(net.blocks[1] for net in nets))
    matrices = np.stack([np.broadcast_to(each, (len(nets), states)) for each in transfer.stream], axis=1)
    values, logs = _times_powers(matrices, exponents, values)
    transfer.stream = [values[:, [state]] for state in range(states)]
    outputs = np.array([np.broadcast_to(each, (len(nets), 1))[:, 0] for each in transfer.output()])
    with np.errstate(divide="ignore", invalid="ignore"):
        found: FloatArray = np.log(outputs) + logs
    return found


def _times_powers(
    matrices: FloatArray, exponents: npt.NDArray[np.int64], values: FloatArray
) -> tuple[FloatArray, FloatArray]:
    """matrix^exponent values of each network, over a factor whose logarithm is the second result."""
    power, logs, growth, left = matrices, np.zeros(len(values)), np.zeros(len(values)), exponents.copy()
    while left.any():
        odd = left % 2 == 1
        values = np.where(odd[:, None], np.einsum("nij,nj->ni", power, values), values)
        logs = logs + odd * growth
        values, logs = _scaled(values, logs)
        left //= 2
        if left.any():
            power, growth = _scaled(power @ power, 2 * growth)
    return values, logs


def _scaled(values: FloatArray, logs: FloatArray) -> tuple[FloatArray, FloatArray]:
    """The values of each network over the largest, and the logarithm of what they were divided by."""
    largest = np.abs(values).reshape(len(values), -1).max(axis=1)
    largest = np.where(largest > 0, largest, 1.0)
    return values / largest.reshape(-1, *[1] * (values.ndim - 1)), logs + np.log(largest)

"""Several inputs: the passes through networks whose weights are never drawn, whatever steps they are made of.

A network is a chain of steps (`Network.stages`), each of which knows its forward and its backward map and the tangents
of both: weight layers in `gaussian_layer`, what is between them in `maps`, and here the chain and the residual block,
which has a chain of its own, its branch.  The kernel is a sum over layers and trained norms (entrywise products)::

    K_w = sum_i c_i (A_{i-1} A_{i-1}^T) * (J_i J_i^T) + ...,   K_b = sum_i e_i J_i J_i^T + ...

Where a matrix of inputs meets one of pairs, its rows and columns are repeated for the outputs.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from finwidth.networks.activations import Activation, Array
from finwidth.networks.description import Layer, Network, Residual, Signs, Step, weight_layers
from finwidth.networks.norm import Norm
from finwidth.sampling.kernel_matrix.gaussian_layer import GaussianLayer, NetworkBatch
from finwidth.sampling.kernel_matrix.maps import ActivationPass, DrawnStep, NormPass, SignsPass
from finwidth.sampling.kernel_matrix.rows import KeptRows, Rows, common_units, listed, with_gram
from finwidth.sampling.kernel_matrix.stacks import Generator, row_powers, scaled, transposed
from finwidth.sampling.random.device import as_array


class ResidualPass:
    """skip x + branch(x)."""

    def __init__(self, skip: float, branch: Sequence[DrawnStep]) -> None:
        self.skip, self.branch = skip, branch

    def forward(self, x: Rows) -> Rows:
        """Kept, as every block reads the stream several times."""
        if not self.branch:
            return self._skipped(x)
        y = x
        for step in self.branch:
            y = step.forward(y)
        if x.power is not None or y.power is not None:
            power = common_units(x, y)
            x, y = x.in_units(power), y.in_units(power)
        return self._joined(x, y)

    def backward(self, J: Rows, *, keep: bool) -> Rows:
        """The sum over both ways."""
        J = listed(list(J)) if J.once else J
        if not self.branch:
            return self._skipped(J)
        inside = J
        for step in reversed(self.branch):
            inside = step.backward(inside, keep=keep)
        return self._joined(J, inside) if keep else inside.map(self._onto, J)

    def tangent(self, T: Rows | None, r: Array) -> Rows:
        """The sum over both ways."""
        assert T is not None
        if not self.branch:
            return self._skipped(T)
        inside = T
        for step in self.branch:
            inside = step.tangent(inside, r)
        return self._joined(T, inside)

    def cotangent(self, U: Rows | None) -> Rows:
        """The sum over both ways."""
        assert U is not None
        U = listed(list(U))
        if not self.branch:
            return self._skipped(U)
        inside = U
        for step in reversed(self.branch):
            inside = step.cotangent(inside)
        return inside.map(self._onto, U)

    def _skipped(self, rows: Rows) -> Rows:
        """Made at once: in a long row of blocks without a branch each would ask the next for its blocks."""
        return listed([self.skip * block for block in rows], rows.power)

    def _joined(self, x: Rows, y: Rows) -> Rows:
        skip = self.skip
        return KeptRows(lambda: (skip * one + other for one, other in zip(x, y, strict=True)), x.power)

    def _onto(self, new: Array, old: Array) -> Array:
        """New rows, to which the skip of old ones is added."""
        new += self.skip * old
        return new


class DrawnNetworks:
    """The networks of a description at inputs X, shape (m, n_0), drawn as far as their passes reveal them."""

    def __init__(self, net: Network, X: Array, draws: int, rng: Generator) -> None:
        outputs = net.widths[-1]
        self.batch = NetworkBatch(draws, len(X), outputs, rng)
        self.norms: list[NormPass] = []
        layers = list(enumerate(weight_layers(net), 1))
        self.layers = [GaussianLayer(each, self.batch, first=i == 1, last=i == len(layers)) for i, each in layers]
        self._coming = iter(self.layers)  # they are passed in this order
        self.stages = [[self._passed(step) for step in stage] for stage in net.stages]
        self.inputs = Rows(lambda: iter([X[None]]), gram=(X @ X.T)[None])

    def _passed(self, step: Step) -> DrawnStep:
        """What a step does in these networks."""
        if isinstance(step, Layer):
            return next(self._coming)
        if isinstance(step, Activation):
            return ActivationPass(step)
        if isinstance(step, Norm):
            self.norms.append(NormPass(step, self.batch))
            return self.norms[-1]
        if isinstance(step, Signs):
            return SignsPass(self.batch)
        assert isinstance(step, Residual)
        return ResidualPass(step.skip, [self._passed(each) for each in step.branch])

    @property
    def steps(self) -> list[DrawnStep]:
        """Those of all stages."""
        return [step for stage in self.stages for step in stage]

    @property
    def trained_norms(self) -> list[NormPass]:
        """Those with parameters."""
        return [norm for norm in self.norms if norm.trained]

    def forward(self) -> Array:
        """The outputs, (draws, m, o)."""
        self.hidden: list[Rows] = []  # what passes between the stages
        x = self.inputs
        for stage in self.stages:
            for step in stage:
                x = step.forward(x)
            self.hidden.append(x)
        (output,) = self.hidden.pop()
        return scaled(output, x.power)

    def hidden_grams(self) -> list[Array]:
        """The Gram matrices of hidden vectors over their widths, (draws, m, m) each."""
        return [_mean_gram(rows, self.batch.rng) for rows in self.hidden]

    def backward(self, *, keep: bool) -> tuple[Array, Array]:
        """K_w and K_b, (draws, m o, m o), after `forward`; ``keep`` what `move` and `change` need."""
        draws, m, outputs = self.batch.draws, self.batch.inputs, self.batch.outputs
        units = np.broadcast_to(np.tile(np.eye(outputs), (m, 1)), (draws, m * outputs, outputs))
        J = listed([as_array(self.batch.rng, units.copy(), "float64")])
        for step in reversed(self.steps):
            J = step.backward(J, keep=keep)
        parts: list[GaussianLayer | NormPass] = [*self.layers, *self.trained_norms]
        return sum(each.K_w for each in parts), sum(each.K_b for each in parts)

    def move(self, residuals: Array) -> None:
        """The tangents of all hidden vectors, after `backward` that kept; ``residuals`` are N - t, (draws, m, o)."""
        r = residuals.reshape(len(residuals), 1, -1)
        self.unit = row_powers([r], self.batch.rng)  # dK is linear in the residuals
        r = scaled(r, self.unit, -1)  # (draws, 1, m o): times a matrix, its columns weighted
        T: Rows | None = None
        for step in self.steps:
            T = step.tangent(T, r)

    def change(self) -> Array:
        """The first change of K per unit learning rate, (draws, m o, m o), after `move`."""
        for layer in self.layers:
            layer.keep_moves()
        U: Rows | None = None
        for step in reversed(self.steps):
            U = step.cotangent(U)
        for layer in self.layers:
            layer.forget_moves()  # also where no one needed them
        half = 0 * self.layers[-1].J_gram
        for layer in reversed(self.layers[:-1]):
            half = half + layer.change_by_gradient()
        for layer in self.layers[1:]:
            half = half + layer.change_by_activation()
        for norm in self.trained_norms:
            half = half + norm.half_change
        return scaled(half + transposed(half), self.unit)


def _mean_gram(rows: Rows, rng: Generator) -> Array:
    """The mean over neurons of the products of two rows."""
    rows, gram = with_gram(rows, rng, 0.0)
    mean = gram / sum(block.shape[-1] for block in rows)
    return mean if rows.power is None else scaled(scaled(mean, rows.power), transposed(rows.power))

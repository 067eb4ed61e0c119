"""Several inputs: the passes through networks whose weights are never drawn, whatever steps they are made of.

A network is a chain of steps (`Network.stages`), each of which knows its forward and its backward map and the tangents
of both: weight layers in `gaussian_layer`, what is between them in `maps`, and here the chain, and where a branch
leaves its stream and comes back.  The kernel is a sum over layers and trained norms (entrywise products)::

    K_w = sum_i c_i (A_{i-1} A_{i-1}^T) * (J_i J_i^T) + ...,   K_b = sum_i e_i J_i J_i^T + ...

Where a matrix of inputs meets one of pairs, its rows and columns are repeated for the outputs.
"""

from __future__ import annotations

from functools import partial, reduce, singledispatchmethod
from operator import add, iadd, mul

import numpy as np

from finwidth.networks.activations import Activation, Array
from finwidth.networks.description import Fork, Join, Layer, Network, Signs, Skip, Step, weight_layers
from finwidth.networks.norm import Norm
from finwidth.sampling.kernel_matrix.gaussian_layer import GaussianLayer, NetworkBatch
from finwidth.sampling.kernel_matrix.maps import ActivationPass, DrawnStep, NormPass, SignsPass, SkipPass
from finwidth.sampling.kernel_matrix.rows import KeptRows, Rows, common_units, in_safe_units, listed
from finwidth.sampling.kernel_matrix.stacks import Generator, row_powers, scaled, square, transposed
from finwidth.sampling.random.device import as_array


class ForkPass:
    """Where a branch leaves a stream, whose rows wait in ``streams`` until it is back, in all passes."""

    def __init__(self, streams: list[Rows]) -> None:
        self.streams = streams

    def forward(self, x: Rows) -> Rows:
        """x, for both ways."""
        self.streams.append(x)
        return x

    def backward(self, J: Rows, *, keep: bool) -> Rows:
        """The sum over both ways."""
        return _sum(self.streams.pop(), J) if keep else J.map(iadd, self.streams.pop())

    def tangent(self, T: Rows | None, r: Array) -> Rows:
        """T, for both ways."""
        assert T is not None
        self.streams.append(T)
        return T

    def cotangent(self, U: Rows | None) -> Rows:
        """The sum over both ways."""
        assert U is not None
        return U.map(iadd, self.streams.pop())


class JoinPass:
    """Where a branch is back, and added to skip times its stream."""

    def __init__(self, skip: float, streams: list[Rows]) -> None:
        self.times_skip, self.streams = partial(mul, skip), streams

    def forward(self, x: Rows) -> Rows:
        """The sum over both ways, kept, as every block reads the stream several times."""
        stream = self.streams.pop()
        if x.power is not None or stream.power is not None:
            power = common_units(stream, x)
            stream, x = stream.in_units(power), x.in_units(power)
        return _sum(stream.map(self.times_skip, power=stream.power), x)

    def backward(self, J: Rows, *, keep: bool) -> Rows:
        """J, for both ways."""
        J = listed(list(J)) if J.once else J
        self.streams.append(J.map(self.times_skip))
        return J

    def tangent(self, T: Rows | None, r: Array) -> Rows:
        """The sum over both ways."""
        assert T is not None
        stream = self.streams.pop()
        return _sum(stream.map(self.times_skip, power=stream.power), T)

    def cotangent(self, U: Rows | None) -> Rows:
        """U, for both ways."""
        assert U is not None
        U = listed(list(U))
        self.streams.append(U.map(self.times_skip))
        return U


def _sum(x: Rows, y: Rows) -> Rows:
    """Rows in the same units, added and kept."""
    return KeptRows(partial(map, add, x, y), x.power)


class DrawnNetworks:
    """The networks of a description at inputs X, shape (m, n_0), drawn as far as their passes reveal them."""

    def __init__(self, net: Network, X: Array, draws: int, rng: Generator) -> None:
        outputs = net.widths[-1]
        self.batch = NetworkBatch(draws, len(X), outputs, rng)
        self.norms: list[NormPass] = []
        layers = list(enumerate(weight_layers(net), 1))
        self.layers = [GaussianLayer(each, self.batch, first=i == 1, last=i == len(layers)) for i, each in layers]
        self._coming = iter(self.layers)  # they are passed in this order
        self._streams: list[Rows] = []  # of the branches that a pass is in
        self.stages = [[self._passed(step) for step in stage] for stage in net.stages]
        self.inputs = Rows(lambda: iter([X[None]]), gram=(X @ X.T)[None])

    @singledispatchmethod
    def _passed(self, step: Step) -> DrawnStep:
        """What a step does in these networks."""
        raise NotImplementedError(step)

    @_passed.register
    def _(self, step: Layer) -> DrawnStep:
        return next(self._coming)

    @_passed.register
    def _(self, step: Activation) -> DrawnStep:
        return ActivationPass(step)

    @_passed.register
    def _(self, step: Norm) -> DrawnStep:
        self.norms.append(NormPass(step, self.batch))
        return self.norms[-1]

    @_passed.register
    def _(self, step: Signs) -> DrawnStep:
        return SignsPass(self.batch)

    @_passed.register
    def _(self, step: Fork) -> DrawnStep:
        return ForkPass(self._streams)

    @_passed.register
    def _(self, step: Join) -> DrawnStep:
        return JoinPass(step.skip, self._streams)

    @_passed.register
    def _(self, step: Skip) -> DrawnStep:
        return SkipPass(step.factor)

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
    gram = reduce(iadd, map(square, rows)) if rows.gram is None else rows.gram
    rows, gram = in_safe_units(rows, gram, rng, 0.0)
    mean = gram / sum(block.shape[-1] for block in rows)
    return mean if rows.power is None else scaled(scaled(mean, rows.power), transposed(rows.power))

r"""The steps of a network, each as what it does to all that is known of its vectors to first order in 1/width.

Weight layers read averages over neurons and make Gaussian neurons; activations and norms make averages of these; where
a branch joins its stream, those of both are added.  Derivation: docs/theory/expansion.md.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import singledispatch
from itertools import pairwise
from typing import NamedTuple, TypeAlias

import numpy as np

from finwidth.exact.expansion.means import FourMeans, PairMeans, derivative
from finwidth.exact.expansion.tensors import (
    Averages,
    Between,
    Neurons,
    Signals,
    along,
    apart,
    averaged,
    curved,
    on_pair,
    swapped,
    through_gates,
    through_norm,
    through_scales,
    through_weights,
)
from finwidth.networks.activations import Activation
from finwidth.networks.description import Fork, Join, Layer, Network, Signs, Skip, Step
from finwidth.networks.laws import FloatArray
from finwidth.networks.norm import Norm

# Of an activation the means over neurons of covariance K; centred: of what deviates from its mean.
Means: TypeAlias = tuple[PairMeans, FourMeans]
NeuronMeans: TypeAlias = Callable[[Activation, FloatArray, bool], Means]


def at_inputs(X: FloatArray) -> Averages:
    """The inputs X, shape (m, n_0), themselves."""
    m, n = X.shape
    none = np.zeros((m, m))
    return Averages(n, X @ X.T / n, none, none, none, Between.none(m), ())


class Around(NamedTuple):
    """What a step may ask for beside the vectors that enter it."""

    means: NeuronMeans
    after: Step | None  # the next step
    streams: list[Neurons]  # of the branches that it is in


def after_steps(
    steps: Sequence[Step], x: Signals, means: NeuronMeans, told: Callable[[int], object] = lambda done: None
) -> Signals:
    """What the steps of a network make of vectors; ``told`` hears how many are done."""
    streams: list[Neurons] = []
    for done, (step, after) in enumerate(zip(steps, (*steps[1:], None), strict=True), 1):
        x = _stepped(step, x, Around(means, after, streams))
        told(done)
    return x


def unsupported_steps(net: Network) -> list[str]:
    """Reasons against the steps of a network; none if their recursions are known."""
    neighbours = [pair for stage in net.stages for pair in pairwise(stage)]
    reasons = []
    if any(isinstance(step, Fork) and isinstance(after, Activation) for step, after in neighbours):
        reasons.append("its activations act on the stream without random signs, which makes its neurons dependent")
    trained = [step for step in net.steps if isinstance(step, Norm) and step.parameters == "trained"]
    read = [step for step, after in neighbours if isinstance(after, Layer)]
    made = [step for before, step in neighbours if isinstance(before, Activation)]
    if any(step not in read or step in made for step in trained):
        reasons.append("the parameters of its norm are trained, which is known of pre-norm residual networks only")
    return reasons


@singledispatch
def _stepped(step: Step, x: Signals, around: Around) -> Signals:
    """What a step makes of vectors."""
    raise NotImplementedError(step)


@_stepped.register(Layer)
def _weighted(step: Layer, x: Signals, around: Around) -> Neurons:
    """Given what is below, neurons are Gaussian and independent."""
    x = averaged(x)
    C, c = float(step.weight_variance) * x.n, float(step.weight_multiplier) * x.n
    return Neurons(
        step.fan_out,
        float(step.bias_variance) + C * x.K,
        float(step.bias_multiplier) + c * x.K + C * x.Theta,
        C * x.mean_G,
        c * x.mean_G + C * x.mean_H,
        through_weights(through_weights(x.own, C, c).swapped(), C, c),
        tuple(through_weights(each, C, c) for each in x.streams),
    )


@_stepped.register(Activation)
def _activated(step: Activation, x: Signals, around: Around) -> Averages:
    assert isinstance(x, Neurons)
    after = around.after
    pairs, fours = around.means(step, x.K, isinstance(after, Norm) and after.centred)
    own = through_gates(through_gates(x.own, x.Theta, pairs).swapped(), x.Theta, pairs) + _sampled(x, pairs, fours)
    return Averages(
        x.n,
        derivative(pairs.ss, 0, 0),
        derivative(pairs.tt, 0, 0) * x.Theta,
        *_activated_means(x, pairs),
        own + _of_shared(x, pairs) if x.shared else own,
        tuple(through_gates(each, x.Theta, pairs) for each in x.streams),
    )


@_stepped.register(Norm)
def _after_norm(step: Norm, x: Signals, around: Around) -> Signals:
    below = averaged(x)
    square = below.K.diagonal() + float(step.epsilon)
    inverse = 1 / np.where(square > 0, square, np.inf)
    divisors = np.sqrt(np.outer(inverse, inverse))
    K, Theta = divisors * below.K, divisors * below.Theta
    found = Averages(
        x.n, K, Theta,
        *_normalised_means(below, inverse, _taken_away(x) if step.centred else (0.0, 0.0)),
        through_norm(through_norm(below.own, K, Theta, inverse).swapped(), K, Theta, inverse),
        tuple(through_norm(each, K, Theta, inverse) for each in x.streams),
    )  # fmt: skip
    if step.parameters == "trained":
        return _with_parameters(found, float(step.centred))
    return apart(found, -1 / x.n if step.centred else 0.0) if isinstance(x, Neurons) else found


@_stepped.register(Signs)
def _signed(step: Signs, x: Signals, around: Around) -> Signals:
    """Neurons are as likely as their negatives already."""
    return x


@_stepped.register(Fork)
def _after_fork(step: Fork, x: Signals, around: Around) -> Signals:
    """The stream waits, and what the branch makes of it depends on it."""
    assert isinstance(x, Neurons)
    around.streams.append(x)
    return replace(x, streams=(*x.streams, averaged(x).own))


@_stepped.register(Join)
def _after_join(step: Join, h: Signals, around: Around) -> Neurons:
    """The branch adds Gaussian neurons that are not correlated with the stream's, but depend on its averages."""
    a = step.skip**2
    x = _times(around.streams.pop(), a)
    return Neurons(
        x.n,
        x.K + h.K,
        x.Theta + h.Theta,
        x.mean_G + h.mean_G,
        x.mean_H + h.mean_H,
        x.own + a * _across(h.streams[-1]) + h.own,
        tuple(one + other for one, other in zip(x.streams, h.streams[:-1], strict=True)),
        balanced=x.balanced,
    )


@_stepped.register(Skip)
def _after_skip(step: Skip, x: Signals, around: Around) -> Neurons:
    assert isinstance(x, Neurons)
    return _times(x, step.factor**2)


def _times(x: Neurons, a: float) -> Neurons:
    """What a stream is after its skip, of square a."""
    K, Theta = a * x.K, a * x.Theta
    return Neurons(
        x.n, K, Theta, a * x.mean_G, a * x.mean_H, a * a * x.own, tuple(a * each for each in x.streams),
        balanced=(K, Theta) if x.shared else (0.0, 0.0),
    )  # fmt: skip


# ---- activations


def _sampled(x: Neurons, pairs: PairMeans, fours: FourMeans) -> Between:
    """What each neuron contributes to averages with itself."""
    n, Theta, outer = x.n, x.Theta, np.multiply.outer
    ss, tt = derivative(pairs.ss, 0, 0), derivative(pairs.tt, 0, 0)
    same = fours.utts * Theta[:, :, None, None] * Theta[:, None, :, None] / n
    return Between.same(
        (fours.ssss - outer(ss, ss)) / n,
        on_pair(Theta, fours.sstt.transpose(2, 3, 0, 1) - outer(tt, ss)) / n,
        on_pair(Theta, (fours.tttt - outer(tt, tt)) * Theta) / n,
        fours.sstt.transpose(2, 0, 3, 1) * Theta[:, None, :, None] / n,
        fours.tttt * np.einsum("ab,cd->acbd", Theta, Theta) / n,
        same.transpose(0, 3, 1, 2),
        same,
    )


def _of_shared(x: Neurons, pairs: PairMeans) -> Between:
    """What neurons contribute whose mean is kept at 0: they are correlated, and so are their kernels."""
    moved, none = np.eye(len(x.K)), np.zeros(x.own.V.shape)

    def gradient(f: FloatArray) -> FloatArray:
        """<d_g f_ab>, shape (m, m, m)."""
        found: FloatArray = derivative(f, 1, 0)[:, :, None] * moved[:, None] + derivative(f, 0, 1)[:, :, None] * moved
        return found

    values, slopes = gradient(pairs.ss), x.Theta[:, :, None] * gradient(pairs.tt)
    V, D, A = (
        np.einsum("abg,gh,cdh->abcd", *each, optimize=True)
        for each in ((values, x.K, values), (slopes, x.K, values), (slopes, x.K, slopes))
    )
    ts, ut = derivative(pairs.ts, 0, 0), derivative(pairs.ut, 0, 0)
    F = np.einsum("ab,ac,bd->acbd", x.Theta, ts, ts)
    Q = np.einsum("ab,ac,ab,cd->abcd", x.Theta, x.Theta, ut, ts)
    return x.shared * Between.same(V, D, A, F, none, none, Q)


def _activated_means(x: Neurons, pairs: PairMeans) -> tuple[FloatArray, FloatArray]:
    """First corrections: what is below moves and curves means, and kernels are correlated with slopes."""
    V, F = x.own.V, x.own.F
    values = along(pairs.ss, x.mean_G) + curved(pairs.ss, V)
    slopes = x.Theta * (along(pairs.tt, x.mean_G) + curved(pairs.tt, V)) + derivative(pairs.tt, 0, 0) * x.mean_H
    bends = np.outer(pairs.bend, pairs.bend)  # of the mean over neurons that is taken away
    values -= bends * np.einsum("aabb->ab", V) / 4
    slopes -= bends * np.einsum("aabb->ab", F)
    return values, slopes + _slopes_with_H(x.own.D, pairs.tt) + _slopes_with_weights(F, pairs.tt)


def _slopes_with_H(D: FloatArray, tt: FloatArray) -> FloatArray:
    """Of <t_a t_b> H_ab the part that is linear in both."""
    first, second, both = (np.einsum(f"ab{which}->ab", D) for which in ("aa", "bb", "ab"))
    own: FloatArray = derivative(tt, 2, 0) * first + derivative(tt, 0, 2) * second
    found: FloatArray = own / 2 + derivative(tt, 1, 1) * both
    return found


def _slopes_with_weights(F: FloatArray, tt: FloatArray) -> FloatArray:
    """The correlation of t_ka t_kb and of what H_kk deviates by from its mean over the weights of neuron k."""
    one, both, across, other = (np.einsum(f"{which}->ab", F) for which in ("aaba", "aabb", "abba", "abbb"))
    own: FloatArray = derivative(tt, 2, 0) * one + derivative(tt, 0, 2) * other
    found: FloatArray = own + derivative(tt, 1, 1) * (both + across)
    return found


# ---- norms


def _taken_away(x: Signals) -> tuple[FloatArray, FloatArray]:
    """What K and Theta lose with the mean over neurons, of which a stream may have none left."""
    K, Theta = x.balanced if isinstance(x, Neurons) else (0.0, 0.0)
    return (x.K - K) / x.n, (x.Theta - Theta) / x.n


def _normalised_means(
    x: Averages, inverse: FloatArray, taken: tuple[FloatArray | float, FloatArray | float]
) -> tuple[FloatArray, FloatArray]:
    """First corrections: divisors move and curve, and kernels lose their part along the vectors."""
    V, F = x.own.V, x.own.F
    mean_G, mean_H = x.mean_G - taken[0], x.mean_H - taken[1]
    divisors, ratio = np.sqrt(np.outer(inverse, inverse)), np.outer(inverse, inverse)
    own = inverse**2 * np.einsum("aaaa->a", V)
    lengths = _half_sum(3 / 4 * own - inverse * mean_G.diagonal()) + ratio * np.einsum("aabb->ab", V) / 4

    def divided(limit: FloatArray, mean: FloatArray, with_G: FloatArray) -> FloatArray:
        one, other = (np.einsum(f"ab{which}->ab", with_G) for which in ("aa", "bb"))
        found: FloatArray = divisors * (mean + limit * lengths - (inverse[:, None] * one + inverse * other) / 2)
        return found

    one, other, both = (np.einsum(f"{which}->ab", F) for which in ("aaba", "abbb", "aabb"))
    lost = inverse[:, None] * one + inverse * other - ratio * x.K * both
    return divided(x.K, mean_G, V), divided(x.Theta, mean_H, x.own.D) - divisors * lost


def _with_parameters(x: Averages, shift: float) -> Averages:
    """Trained scales and shifts of Gaussian neurons, which add u_a u_b + ``shift`` to the kernels of these."""
    return Averages(
        x.n,
        x.K,
        x.Theta + x.K + shift,
        x.mean_G,
        x.mean_H + x.mean_G,
        through_scales(through_scales(x.own).swapped()) + _of_scales(x, shift),
        tuple(map(through_scales, x.streams)),
    )


def _of_scales(x: Averages, shift: float) -> Between:
    """What scales and shifts add to averages for each neuron with itself."""
    K, Theta, none, outer = x.K, x.Theta, np.zeros(x.own.V.shape), np.multiply.outer
    one = np.ones_like(K)
    four = outer(K, K) + np.einsum("ac,bd->abcd", K, K) + np.einsum("ad,bc->abcd", K, K)  # <u_a u_b u_c u_d>
    F = four + shift * outer(one, K)
    mixed = outer(Theta, K) + shift * outer(Theta + K, one)
    B = four + mixed + swapped(mixed) + shift**2
    Q = outer(Theta, K)
    P = Q + np.einsum("ac,bd->abcd", Theta, K)
    F, B = (each.transpose(0, 2, 1, 3) for each in (F, B))
    return 1 / x.n * Between.same(none, none, none, F, B, P.transpose(0, 3, 1, 2), Q)


def _half_sum(own: FloatArray) -> FloatArray:
    found: FloatArray = (own[:, None] + own) / 2
    return found


# ---- residual blocks


def _across(between: Between) -> Between:
    """What binds two neurons of the sum through the branch of one and the stream of the other."""
    return between + between.swapped()

"""Kernel matrices of several outputs, and hidden Gram matrices: against networks that draw their weights, exact moments
and identities that hold draw by draw."""

from __future__ import annotations

import tracemalloc
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

import finwidth
from devices import DEVICE
from finwidth import MLP, sample_gram
from finwidth.empirical.reference.brute_force import draw_networks, kernel_matrix
from finwidth.sampling.kernel_matrix.gaussian_layer import GaussianLayer
from finwidth.sampling.kernel_matrix.sample_gram import bytes_per_draw, kernel_matrix_sampler
from finwidth.sampling.sampler import Chunk
from sampling.test_gram import forget_the_forward_pass, forget_the_gradient, forget_the_tangent, two_sides
from stats import same_law, same_mean

FloatArray = npt.NDArray[Any]
Drawn = dict[str, FloatArray]

X = np.array([[1.0, 2.0], [0.5, -1.0], [-1.0, 0.5]])
DRAWS = 20_000

NETWORKS = {
    "relu": MLP([2, 5, 4, 2]),
    "tanh, random biases": MLP([2, 4, 5, 4, 2], activation="tanh", bias_variance=[0.5, 0.2, 0.3, 0.1]),
    "gelu, more outputs than neurons": MLP([2, 3, 2, 3], activation="gelu"),
    "relu that dies, frozen random biases": MLP([2, 2, 1, 2, 2], bias="frozen", bias_variance=0.1),
    "mup, no biases": MLP([2, 5, 4, 3], activation="abs", parameterization="mup", bias="none"),
    "one layer": MLP([2, 2]),
}


def targets(net: MLP) -> FloatArray:
    return np.array([[1.0, -1.0, 0.5], [0.0, 2.0, -0.5], [-1.0, 1.0, 1.0]])[:, : net.widths[-1]]


def matrix(K: FloatArray) -> FloatArray:
    """Over pairs (input, output)."""
    draws, m, _, outputs, _ = K.shape
    return K.swapaxes(2, 3).reshape(draws, m * outputs, m * outputs)


# What is compared: the entries of every kind of pair, their dependence, and the spectrum.
VIEWS: dict[str, Callable[[Drawn], FloatArray]] = {
    "output": lambda d: d["output"][:, 0, 1],
    "outputs of one input": lambda d: d["output"][:, 0, 0] * d["output"][:, 0, 1],
    "outputs of two inputs": lambda d: d["output"][:, 0, 0] * d["output"][:, 1, 1],
    "K of one pair": lambda d: d["K"][:, 0, 0, 1, 1],
    "K of one input": lambda d: d["K"][:, 0, 0, 0, 1],
    "K of one output": lambda d: d["K"][:, 0, 1, 1, 1],
    "K of two and two": lambda d: d["K"][:, 0, 1, 0, 1],
    "K of two and two, exchanged": lambda d: d["K"][:, 0, 1, 0, 1] * d["K"][:, 0, 1, 1, 0],
    "K_w": lambda d: d["K_w"][:, 1, 2, 0, 1],
    "K_b": lambda d: d["K_b"][:, 1, 2, 0, 1],
    "largest eigenvalue": lambda d: np.linalg.eigvalsh(matrix(d["K"]))[:, -1],
    "smallest eigenvalue": lambda d: np.linalg.eigvalsh(matrix(d["K"]))[:, 0],
    "output against kernel": lambda d: d["output"][:, 0, 0] * d["output"][:, 1, 1] * d["K"][:, 0, 1, 0, 1],
    "dK of one pair": lambda d: d["dK"][:, 0, 0, 1, 1],
    "dK of one input": lambda d: d["dK"][:, 0, 0, 0, 1],
    "dK of one output": lambda d: d["dK"][:, 0, 1, 1, 1],
    "dK of two and two": lambda d: d["dK"][:, 0, 1, 0, 1],
    "largest eigenvalue of dK": lambda d: np.linalg.eigvalsh(matrix(d["dK"]))[:, -1],
    "dK against kernel": lambda d: d["dK"][:, 0, 1, 0, 1] * d["K"][:, 0, 1, 0, 1],
    "dK against output": lambda d: d["dK"][:, 1, 1, 0, 1] * d["output"][:, 1, 0] * d["output"][:, 1, 1],
    "hidden": lambda d: d["hidden"][:, -1, 0, 1],
    "hidden against kernel": lambda d: d["hidden"][:, -1, 0, 1] * d["K"][:, 0, 1, 1, 0],
}


def networks(net: MLP, draws: int = DRAWS) -> Drawn:
    weights, biases = draw_networks(net, draws, np.random.default_rng(8))
    found = kernel_matrix(net, weights, biases, X, targets(net))
    A, grams = np.broadcast_to(X, (draws, *X.shape)), []
    for weight, bias in zip(weights[:-1], biases, strict=False):
        A = net.activation.value(A @ weight.swapaxes(1, 2) + bias[:, None])
        grams.append(A @ A.swapaxes(1, 2) / A.shape[-1])
    return found | {"hidden": np.stack(grams, 1)} if grams else found


def in_law(net: MLP, draws: int = DRAWS, device: str | None = None) -> Drawn:
    found = sample_gram(net, X, draws, seed=7, y=targets(net), hidden=net.depth > 1, device=device)
    return {str(name): found[name].to_numpy() for name in found}


@pytest.mark.parametrize("name", NETWORKS)
def test_joint_law_is_that_of_networks(name: str) -> None:
    net = NETWORKS[name]
    ours, theirs = in_law(net), networks(net)
    for view, function in VIEWS.items():
        if net.depth > 1 or "hidden" not in view:
            assert same_law(function(ours).round(9), function(theirs).round(9)), view


def test_a_device_draws_the_same_law() -> None:
    pytest.importorskip("torch")
    net = NETWORKS["gelu, more outputs than neurons"]
    ours, theirs = in_law(net, device=DEVICE), networks(net)
    for view, function in VIEWS.items():
        assert same_law(function(ours).round(9), function(theirs).round(9)), view


def mix_up_outputs_and_inputs(patch: pytest.MonkeyPatch) -> None:
    """The update only: the wrong rows of A go with rows of J."""

    def mixed_up(self: GaussianLayer) -> FloatArray:
        wrong: FloatArray = np.tile(self.share, (1, self.batch.outputs, self.batch.outputs)) * self.UJ
        return wrong

    patch.setattr(GaussianLayer, "change_by_gradient", mixed_up)


def test_a_forgotten_conditioning_is_rejected(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fresh weights where an earlier pass has met them already."""
    net = MLP([2, 4, 4, 4, 4, 2], activation="tanh", bias_variance=0.1)
    theirs = networks(net, 30_000)
    for forget, rejecting, passing in (
        (forget_the_forward_pass, ["smallest eigenvalue", "dK of one pair"], "output"),
        (forget_the_gradient, ["largest eigenvalue of dK"], "smallest eigenvalue"),
        (mix_up_outputs_and_inputs, ["dK of one input", "dK of two and two"], "K_w"),
    ):
        with monkeypatch.context() as patch:
            forget(patch)
            ours = in_law(net, 30_000)
        assert same_law(VIEWS[passing](ours), VIEWS[passing](theirs))
        for view in rejecting:
            assert not same_law(VIEWS[view](ours), VIEWS[view](theirs)), view


SIDES = {
    **{name: net for name, net in NETWORKS.items() if name != "one layer"},
    "wide": MLP([2, 50, 60, 50, 3], activation="silu", bias_variance=0.2),
    "deep relu": MLP([2, *[20] * 8, 3]),
}


@pytest.mark.parametrize("name", SIDES)
def test_a_weight_matrix_is_the_same_from_both_sides(name: str) -> None:
    """The identity of docs/theory/gram.md, which two-sample tests are too weak to replace."""
    one, other = two_sides(SIDES[name], 200, targets(SIDES[name]))
    assert np.abs(one).max() > 0
    assert one == pytest.approx(other, rel=1e-6, abs=1e-7 * np.median(np.abs(one)))


@pytest.mark.parametrize("name", ["wide", "deep relu"])
def test_a_tangent_that_is_forgotten_is_seen(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    forget_the_tangent(monkeypatch)
    one, other = two_sides(SIDES[name], 200, targets(SIDES[name]))
    assert one != pytest.approx(other, rel=1e-3, abs=1e-3 * np.median(np.abs(one)))


@pytest.mark.parametrize("widths", [[2, 6, 6, 2], [2, 10, 10, 10, 5]])
def test_exact_moments(widths: list[int]) -> None:
    """Of a diagonal entry, of two outputs, and the mean change under a step on all outputs."""
    net, draws = MLP(widths), 100_000
    exact = finwidth.moments(net, X[0], order=4)
    found = sample_gram(net, X[:1], draws, seed=3, y=np.zeros((1, widths[-1])))
    K, dK = found.K.to_numpy()[:, 0, 0], found.dK.to_numpy()[:, 0, 0]
    for k in (0, 1):
        assert same_mean(K[:, k, k], float(exact.mean), float(exact.variance))
        assert abs(dK[:, k, k].mean() / float(exact.update["dK"]) - 1) < 0.06
    between = K[:, 0, 1] ** 2
    error = between.std() / draws**0.5
    assert abs(between.mean() - float(exact.between_outputs)) < 6 * error < 0.1 * float(exact.between_outputs)
    assert abs(K[:, 0, 1].mean()) < 6 * K[:, 0, 1].std() / draws**0.5


def test_one_of_several_outputs_has_the_law_of_one() -> None:
    several = in_law(MLP([2, 6, 5, 3], activation="gelu"))
    alone = MLP([2, 6, 5, 1], activation="gelu")
    one = kernel_matrix(alone, *draw_networks(alone, DRAWS, np.random.default_rng(4)), X)
    assert same_law(several["K"][:, 0, 1, 2, 2], one["K"][:, 0, 1])
    assert same_law(several["output"][:, 0, 2], one["output"][:, 0])


def test_duplicate_collinear_and_zero_inputs() -> None:
    inputs = np.array([[1.0, 2.0], [1.0, 2.0], [2.0, 4.0], [0.0, 0.0]])
    drawn = sample_gram(MLP([2, 6, 5, 3], bias="none"), inputs, 200, seed=1, y=np.ones((4, 3)))
    for values in (drawn.K.to_numpy(), drawn.dK.to_numpy()):
        scale = np.abs(values).max(axis=(1, 2, 3, 4), keepdims=True)[:, 0] + 1e-9  # some networks are dead
        assert np.allclose(values[:, 0] / scale, values[:, 1] / scale, atol=1e-6)
        assert np.allclose(2 * values[:, 0] / scale, values[:, 2] / scale, atol=1e-6)  # ReLU is homogeneous
        assert not values[:, 3].any()


@pytest.mark.parametrize("activation", ["relu", "leaky_relu"])
def test_inputs_of_extreme_sizes(activation: str) -> None:
    """A homogeneous network at inputs times powers of two: the same numbers times powers of two."""
    net, y = MLP([2, 6, 5, 2], activation=activation, bias="none"), np.zeros((3, 2))
    usual = sample_gram(net, X, 50, seed=2, y=y, hidden=True)
    for powers in ([-500] * 3, [-500, 0, 300]):
        found = sample_gram(net, np.ldexp(X, np.array(powers)[:, None]), 50, seed=2, hidden=True)
        sizes = np.add.outer(powers, powers)
        for name, power in (("K", sizes[..., None, None]), ("hidden", sizes), ("output", np.array(powers)[:, None])):
            expected = np.ldexp(usual[name].to_numpy(), power)
            assert found[name].to_numpy() == pytest.approx(expected, rel=1e-6, abs=0), name
    found = sample_gram(net, np.ldexp(X, -200), 50, seed=2, y=y)
    assert found.dK.to_numpy() == pytest.approx(np.ldexp(usual.dK.to_numpy(), -800), rel=1e-6, abs=0)


@pytest.mark.parametrize("device", [None, DEVICE])
def test_inputs_of_extreme_sizes_side_by_side(device: str | None) -> None:
    """Rows in units of their own, with random biases: the law of networks that hold their weights."""
    if device is not None:
        pytest.importorskip("torch")
    inputs, net = X * np.array([[1e-200], [1], [1e70]]), MLP([2, 5, 4, 2], activation="leaky_relu", bias_variance=0.1)
    weights, biases = draw_networks(net, DRAWS, np.random.default_rng(8))
    theirs = kernel_matrix(net, weights, biases, inputs, targets(net))
    ours = sample_gram(net, inputs, DRAWS, seed=7, y=targets(net), device=device)
    for name in ("K", "dK"):
        for entry in ((0, 0, 0, 1), (0, 1, 1, 0), (1, 2, 1, 1), (2, 2, 0, 1), (0, 2, 0, 0)):
            one, other = ours[name].to_numpy()[:, *entry], theirs[name][:, *entry]
            scale = np.median(np.abs(other)) + 1e-300
            assert same_law((one / scale).round(7), (other / scale).round(7)), (name, entry)


def test_symmetries_hold_to_the_last_bit() -> None:
    drawn = sample_gram(MLP([2, 50, 30, 3], activation="silu"), X, 20, seed=2, y=np.ones((3, 3)), hidden=True)
    for name in ("K_w", "K_b", "K", "dK"):
        turned = drawn[name].transpose("draw", "input_", "input", "component_", "component")
        assert np.array_equal(drawn[name], turned), name
    assert np.array_equal(drawn.hidden, drawn.hidden.transpose("draw", "layer", "input_", "input"))


def test_threads_do_not_change_the_numbers() -> None:
    net = MLP([2, 300, 300, 2])
    one = sample_gram(net, X, 1000, seed=1, y=targets(net), threads=1)
    assert one.identical(sample_gram(net, X, 1000, seed=1, y=targets(net), threads=3))
    assert one.attrs["targets"].shape == (6,)


@pytest.mark.parametrize("shape", [(6, 30_000, 4), (3, 200, 40), (20, 50, 10), (1, 50, 100)])
@pytest.mark.parametrize("with_targets", [False, True])
def test_memory_is_what_was_promised(shape: tuple[int, int, int], with_targets: bool) -> None:
    m, width, outputs = shape
    inputs = np.random.default_rng(0).normal(size=(m, 20))
    net = MLP([20, *[width] * 5, outputs], activation="gelu" if with_targets else "relu")
    sampler = kernel_matrix_sampler(net, inputs, np.zeros((m, outputs)) if with_targets else None)
    sampler.draw(Chunk(0, 0, 1))  # what is made once: modules, caches
    tracemalloc.start()
    sampler.draw(Chunk(0, 0, 1))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < bytes_per_draw(net, m, targets=with_targets) < 2 * peak


def test_sizes_are_refused_first() -> None:
    with pytest.raises(finwidth.FinwidthError, match="GiB, and of the"):
        sample_gram(MLP([2, 3, 10**5]), X, 1)


def test_hidden_layers_have_exact_moments_and_are_numbered() -> None:
    net = MLP([2, *[30] * 5, 1])
    found = sample_gram(net, X, 20_000, seed=1, hidden=True).hidden
    assert found.layer.to_numpy().tolist() == [1, 2, 3, 4, 5]
    for layer, exact in zip(found.layer, finwidth.signal_moments(net, X[0]).hidden, strict=True):
        lengths = 30 * found.sel(layer=layer)[:, 0, 0].to_numpy()
        assert same_mean(lengths, float(exact.mean), float(exact.variance))

"""One input and several outputs: the chain against networks that draw their weights, exact moments and itself."""

from __future__ import annotations

import tracemalloc
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

import finwidth
from devices import DEVICE
from finwidth import MLP, sample
from finwidth.empirical.reference.brute_force import draw_networks, kernel_matrix
from finwidth.sampling.kernel_matrix.stacks import Factor, factorise
from finwidth.sampling.one_input import outputs_chain
from finwidth.sampling.one_input.outputs_chain import wishart_root
from finwidth.sampling.one_input.sample import one_input_sampler
from finwidth.sampling.random.variates import Variates
from finwidth.sampling.sampler import Chunk, collect
from stats import same_law, same_mean

FloatArray = npt.NDArray[Any]
Drawn = dict[str, FloatArray]

X = np.array([1.0, 2.0])
DRAWS = 30_000

NETWORKS = {
    "relu": MLP([2, 5, 4, 2]),
    "leaky relu, random biases": MLP([2, 4, 5, 4, 3], activation="leaky_relu", bias_variance=[0.5, 0.2, 0.3, 0.1]),
    "more outputs than neurons, dies": MLP([2, 1, 2, 1, 3], bias_variance=[0, 0.2, 0, 0.2], bias="frozen"),
    "abs, mup, no biases": MLP([2, 3, 2, 3], activation="abs", parameterization="mup", bias="none"),
    "linear, standard": MLP([2, 6, 7, 2], activation="linear", parameterization="standard"),
    "wider, scaled biases": MLP([2, 20, 20, 20, 20, 2], bias_scale=0.3, bias_variance=1),
    "one layer": MLP([2, 2]),
}

VIEWS: dict[str, Callable[[Drawn], FloatArray]] = {
    "output": lambda d: d["output"][:, 1],
    "outputs": lambda d: d["output"][:, 0] * d["output"][:, 1],
    "K of one": lambda d: d["K"][:, 0, 0],
    "K of two": lambda d: d["K"][:, 0, 1],
    "K_w": lambda d: d["K_w"][:, 0, 1],
    "K_b": lambda d: d["K_b"][:, 0, 1],
    "trace": lambda d: np.trace(d["K"], axis1=1, axis2=2),
    "determinant": lambda d: np.linalg.det(d["K"]),
    "output against kernel": lambda d: d["output"][:, 0] * d["output"][:, 1] * d["K"][:, 0, 1],
    "dK of one": lambda d: d["dK"][:, 1, 1],
    "dK of two": lambda d: d["dK"][:, 0, 1],
    "determinant of dK": lambda d: np.linalg.det(d["dK"]),
    "dK against kernel": lambda d: d["dK"][:, 0, 1] * d["K"][:, 0, 1],
    "dK against output": lambda d: d["dK"][:, 0, 1] * d["output"][:, 0] * d["output"][:, 1],
    "dK against both": lambda d: d["dK"][:, 0, 0] / (1e-9 + (d["output"] ** 2).sum(1) * d["K"][:, 1, 1]),
}


def networks(net: MLP, draws: int = DRAWS) -> Drawn:
    weights, biases = draw_networks(net, draws, np.random.default_rng(8))
    found = kernel_matrix(net, weights, biases, X[None], np.zeros((1, net.widths[-1])))
    return {name: values[:, 0] if name == "output" else values[:, 0, 0] for name, values in found.items()}


def in_law(net: MLP, draws: int = DRAWS, device: str | None = None) -> Drawn:
    found = sample(net, X, draws, seed=7, device=device)
    return {str(name): found[name].to_numpy() for name in found}


@pytest.mark.parametrize("name", NETWORKS)
def test_joint_law_is_that_of_networks(name: str) -> None:
    ours, theirs = in_law(NETWORKS[name]), networks(NETWORKS[name])
    for view, function in VIEWS.items():
        assert same_law(function(ours).round(9), function(theirs).round(9)), view


def test_a_device_draws_the_same_law() -> None:
    pytest.importorskip("torch")
    net = NETWORKS["leaky relu, random biases"]
    ours, theirs = in_law(net, device=DEVICE), networks(net)
    for view, function in VIEWS.items():
        assert same_law(function(ours).round(9), function(theirs).round(9)), view


def one_neuron_more(patch: pytest.MonkeyPatch) -> None:
    """The Wishart matrices have a degree of freedom too many."""
    patch.setattr(outputs_chain, "wishart_root", lambda rng, counts, o, less: wishart_root(rng, counts, o, less - 1))


def forget_the_gradient(patch: pytest.MonkeyPatch) -> None:
    """Fresh weights in the update, although the backward pass has met them."""
    patch.setattr(outputs_chain, "factorise", lambda gram: Factor(factorise(gram).root, lambda: 0 * gram))


@pytest.mark.parametrize(
    ("fault", "rejecting", "passing"),
    [
        (one_neuron_more, ["K of one", "determinant"], "output"),
        (forget_the_gradient, ["dK of one", "dK against both"], "determinant"),
    ],
)
def test_a_fault_is_rejected(
    monkeypatch: pytest.MonkeyPatch, fault: Callable[[pytest.MonkeyPatch], None], rejecting: list[str], passing: str
) -> None:
    net = NETWORKS["leaky relu, random biases"]
    theirs = networks(net)
    fault(monkeypatch)
    ours = in_law(net)
    assert same_law(VIEWS[passing](ours), VIEWS[passing](theirs))
    for view in rejecting:
        assert not same_law(VIEWS[view](ours), VIEWS[view](theirs)), view


@pytest.mark.parametrize("widths", [[2, 6, 6, 2], [2, 10, 10, 10, 4], [2, *[30] * 5, 3]])
def test_exact_moments(widths: list[int]) -> None:
    """Of an entry, of two outputs, and the mean change under a step on all outputs."""
    net, draws = MLP(widths), 100_000
    exact, found = finwidth.moments(net, X, order=4), in_law(net, draws)
    last = widths[-1] - 1
    assert same_mean(found["K"][:, last, last], float(exact.mean), float(exact.variance))
    for drawn, value in (
        (found["dK"][:, last, last], exact.update["dK"]),
        (found["K"][:, 0, 1] ** 2, exact.between_outputs),
    ):
        error = drawn.std() / draws**0.5
        assert abs(drawn.mean() - float(value)) < 6 * error < 0.08 * abs(float(value))
    assert not same_mean(found["K"][:, 0, 0], 1.1 * float(exact.mean), float(exact.variance))


def test_it_has_the_law_of_conditioned_layers() -> None:
    """`finwidth.sample_gram` at one input, which draws all neurons."""
    net = MLP([2, 12, 9, 12, 3], activation="leaky_relu", bias_variance=0.1)
    gram = finwidth.sample_gram(net, X[None], 100_000, seed=3, y=np.zeros((1, 3)))
    theirs = {str(n): gram[n].to_numpy()[:, 0] if n == "output" else gram[n].to_numpy()[:, 0, 0] for n in gram}
    ours = in_law(net, 100_000)
    for view, function in VIEWS.items():
        assert same_law(function(ours), function(theirs)), view


@pytest.mark.parametrize("degrees", [0, 1, 2, 3, 7])
def test_wishart_root_has_the_law_of_products(degrees: int) -> None:
    rng = np.random.default_rng(degrees)
    T = wishart_root(Variates(rng), np.full(DRAWS, degrees + 2.0), 3, less=2)
    G = rng.normal(size=(DRAWS, 3, degrees))
    ours, theirs = T @ T.swapaxes(1, 2), G @ G.swapaxes(1, 2)
    assert not np.triu(T, 1).any()
    for entry in ((0, 0), (2, 2), (0, 1), (1, 2)):
        assert same_law(ours[:, *entry], theirs[:, *entry])
    assert same_law(np.linalg.det(ours).round(9), np.linalg.det(theirs).round(9))


@pytest.mark.parametrize("power", [-1000, -500, -300, 200])
def test_inputs_of_extreme_sizes(power: int) -> None:
    """ReLU at an input times a power of two: the same numbers times powers of two, K_b the same."""
    net = MLP([2, 6, 5, 2])
    usual, found = sample(net, X, 50, seed=2), sample(net, np.ldexp(X, power), 50, seed=2)
    for name, of in (("output", 1), ("K_w", 2), ("K_b", 0)):
        assert found[name].to_numpy() == pytest.approx(np.ldexp(usual[name].to_numpy(), of * power), rel=1e-9, abs=0)
    free = MLP([2, 6, 5, 2], bias="none")
    if abs(power) <= 200:
        one, other = sample(free, X, 50, seed=2), sample(free, np.ldexp(X, power), 50, seed=2)
        assert other.dK.to_numpy() == pytest.approx(np.ldexp(one.dK.to_numpy(), 4 * power), rel=1e-6, abs=0)


def test_the_zero_input_and_huge_widths() -> None:
    silent = sample(MLP([2, 4, 4, 2]), [0, 0], 10)
    assert np.array_equal(silent.K, np.broadcast_to(np.eye(2), (10, 2, 2)))
    assert not silent.dK.any()
    wide = sample(MLP([2, 10**12, 10**12, 2], bias="none"), X, 2000, seed=1)
    limit = finwidth.infinite_width_gram(MLP([2, 10**12, 10**12, 2], bias="none"), X[None])[0, 0]
    assert wide.K.to_numpy() == pytest.approx(np.broadcast_to(limit * np.eye(2), (2000, 2, 2)), abs=1e-4)
    with pytest.raises(finwidth.FinwidthError, match="rescale the input"):
        sample(MLP([2, 4, 4, 2]), [1e200, 1], 10)


def test_matrices_are_symmetric_and_seeds_fix_them() -> None:
    net = NETWORKS["leaky relu, random biases"]
    one, same = (sample(net, X, 20_000, seed=4, threads=threads) for threads in (1, 2))
    assert one.identical(same)
    for name in ("K_w", "K_b", "K", "dK"):
        assert np.array_equal(one[name], one[name].transpose("draw", "component_", "component")), name
    assert one.output.dims == ("draw", "component")
    assert (np.linalg.eigvalsh(one.K) > -1e-9).all()


def test_the_first_output_is_that_of_all() -> None:
    net = NETWORKS["relu"]
    alone, all_of_them = collect(one_input_sampler(net, X, first_output=True), 100), sample(net, X, 100)
    assert np.array_equal(alone["output"], all_of_them.output[:, 0])
    for name in ("K_w", "K_b", "K", "dK"):
        assert np.array_equal(alone[name], all_of_them[name][:, 0, 0]), name


@pytest.mark.parametrize("net", [MLP([2, 3, 4, 2]), MLP([2, *[5] * 30, 2]), MLP([2, *[100] * 4, 20])], ids=str)
def test_memory_is_what_was_promised(net: MLP) -> None:
    sampler = one_input_sampler(net, X)
    size = sampler.chunk_size
    sampler.draw(Chunk(0, 0, 10))
    tracemalloc.start()
    sampler.draw(Chunk(0, 0, size))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < sampler.memory(size) < 2 * peak
    assert peak < 1.05e8

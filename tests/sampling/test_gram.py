"""Kernel matrices and their first change, drawn in law: against networks that draw their weights and exact moments."""

from __future__ import annotations

import math
import tracemalloc
from collections.abc import Callable
from importlib.util import find_spec
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from scipy import integrate, special, stats

import finwidth
from finwidth import MLP, SmoothActivation, sample_gram
from finwidth.empirical.reference.brute_force import draw_networks, kernel_matrix
from finwidth.sampling.kernel_matrix import gaussian_layer, stacks
from finwidth.sampling.kernel_matrix.gaussian_layer import GaussianLayer
from finwidth.sampling.kernel_matrix.maps import ActivationPass
from finwidth.sampling.kernel_matrix.passes import DrawnNetworks
from finwidth.sampling.kernel_matrix.rows import Rows
from finwidth.sampling.kernel_matrix.sample_gram import bytes_per_draw, kernel_matrix_sampler
from finwidth.sampling.random.streams import stream
from finwidth.sampling.sampler import Chunk
from stats import same_law, same_mean

FloatArray = npt.NDArray[Any]
Drawn = dict[str, FloatArray]

X = np.array([[1.0, 2.0], [0.5, -1.0], [-1.0, 0.5]])  # more inputs than input dimensions
TARGETS = np.array([1.0, -1.0, 0.5])
DRAWS = 40_000

NETWORKS = {
    "relu": MLP([2, 5, 4, 1]),
    "gelu": MLP([2, 5, 4, 1], activation="gelu"),
    "tanh": MLP([2, 4, 5, 1], activation="tanh"),
    "silu, random biases": MLP([2, 5, 4, 1], activation="silu", bias_variance=[0.5, 0.2, 0.3]),
    "leaky, standard": MLP([2, 6, 3, 1], activation="leaky_relu", parameterization="standard"),
    "fewer neurons than inputs": MLP([2, 2, 2, 2, 1], activation="erf"),
    "relu that dies, frozen random biases": MLP([2, 2, 1, 2, 1], bias="frozen", bias_variance=0.1),
    "mup, no biases": MLP([2, 5, 4, 1], activation="abs", parameterization="mup", bias="none"),
    "deep": MLP([2, 4, 4, 4, 4, 1], activation="tanh", bias_variance=0.1),
    "one layer": MLP([2, 1]),
    "scaled biases": MLP([2, 5, 4, 1], activation="tanh", bias_variance=1, bias_scale=[0.3, 2, 1]),
    "biases by layer, mup": MLP(
        [2, 5, 4, 1], activation="gelu", parameterization="mup", bias=["trained", "none", "frozen"], base_widths=4
    ),
}

# What is compared: entries, outputs and their dependence, determinant and eigenvalues.
VIEWS: dict[str, Callable[[Drawn], FloatArray]] = {
    "output 0": lambda d: d["output"][:, 0],
    "output 0 - output 1": lambda d: d["output"][:, 0] - d["output"][:, 1],
    "output product": lambda d: d["output"][:, 0] * d["output"][:, 2],
    "K 00": lambda d: d["K"][:, 0, 0],
    "K_w 01": lambda d: d["K_w"][:, 0, 1],
    "K_b 12": lambda d: d["K_b"][:, 1, 2],
    "determinant": lambda d: np.linalg.det(d["K"]),
    "largest eigenvalue": lambda d: np.linalg.eigvalsh(d["K"])[:, -1],
    "smallest eigenvalue": lambda d: np.linalg.eigvalsh(d["K"])[:, 0],
    "correlation": lambda d: d["K"][:, 0, 1] / np.sqrt(1e-300 + d["K"][:, 0, 0] * d["K"][:, 1, 1]),
    "output against kernel": lambda d: d["output"][:, 0] ** 2 / (1e-12 + d["K"][:, 0, 0]),
    "dK 00": lambda d: d["dK"][:, 0, 0],
    "dK 01": lambda d: d["dK"][:, 0, 1],
    "dK 12": lambda d: d["dK"][:, 1, 2],
    "determinant of dK": lambda d: np.linalg.det(d["dK"]),
    "largest eigenvalue of dK": lambda d: np.linalg.eigvalsh(d["dK"])[:, -1],
    "dK against kernel": lambda d: d["dK"][:, 0, 1] / (1e-9 + d["K"][:, 0, 0] ** 2),
    "dK against output": lambda d: d["dK"][:, 1, 1] / (1e-9 + np.abs(d["output"] - TARGETS).sum(1)),
}


def networks(net: MLP, draws: int = DRAWS) -> Drawn:
    return kernel_matrix(net, *draw_networks(net, draws, np.random.default_rng(8)), X, TARGETS)


def in_law(net: MLP, draws: int = DRAWS, inputs: FloatArray = X) -> Drawn:
    """One stream for all draws, as many at once as a chunk has."""
    sampler, rng = kernel_matrix_sampler(net, inputs, TARGETS[: len(inputs)]), stream(7, 0)

    class OfOneStream(Chunk):
        def stream_on(self, device: object) -> np.random.Generator:
            return rng

    sizes = [min(sampler.chunk_size, draws - start) for start in range(0, draws, sampler.chunk_size)]
    drawn = [sampler.draw(OfOneStream(7, 0, size)) for size in sizes]
    return {name: np.concatenate([each[name] for each in drawn]) for name in drawn[0]}


@pytest.mark.parametrize("name", NETWORKS)
def test_joint_law_is_that_of_networks(name: str) -> None:
    ours, theirs = in_law(NETWORKS[name]), networks(NETWORKS[name])
    for view, function in VIEWS.items():
        # Exact zeros and duplicates are zeros and duplicates up to rounding.
        assert same_law(function(ours).round(9), function(theirs).round(9)), view


def without_inverse(gram: FloatArray) -> stacks.Factor:
    """A wrong `factorise`: what was met on the side it is asked for is forgotten."""
    return stacks.Factor(stacks.factorise(gram).root, lambda: np.zeros_like(gram))


def forget_the_forward_pass(patch: pytest.MonkeyPatch) -> None:
    real = GaussianLayer.forward

    def forward(self: GaussianLayer, A: Rows) -> Rows:
        found = real(self, A)
        self.A_factor = without_inverse(self.A_factor.root @ self.A_factor.root.swapaxes(1, 2))
        return found

    patch.setattr(GaussianLayer, "forward", forward)


def forget_the_gradient(patch: pytest.MonkeyPatch) -> None:
    """The update only: the backward pass takes the root of the factor, not the inverse."""
    real = GaussianLayer.backward

    def backward(self: GaussianLayer, J: Rows, *, keep: bool) -> Rows:
        found = real(self, J, keep=keep)
        if not self.first:
            self.J_factor = without_inverse(self.J_gram)
        return found

    patch.setattr(GaussianLayer, "backward", backward)


def forget_the_tangent(patch: pytest.MonkeyPatch) -> None:
    """What is across the rows of A' in the tangent is forgotten when its own tangent comes from the left."""

    def factorise(gram: FloatArray, squares: FloatArray | None = None) -> stacks.Factor:
        if squares is None:
            return stacks.factorise(gram)
        return stacks.Factor(stacks.factorise(gram, squares).root, lambda: np.zeros_like(gram))

    patch.setattr(gaussian_layer, "factorise", factorise)


@pytest.mark.parametrize(
    ("forget", "rejecting", "passing"),
    [
        (forget_the_forward_pass, ["smallest eigenvalue", "dK 00"], "output 0"),
        (forget_the_gradient, ["dK 00", "largest eigenvalue of dK"], "smallest eigenvalue"),
    ],
)
def test_a_forgotten_conditioning_is_rejected(
    monkeypatch: pytest.MonkeyPatch, forget: Callable[[pytest.MonkeyPatch], None], rejecting: list[str], passing: str
) -> None:
    """Fresh weights where an earlier pass has met them already."""
    net = NETWORKS["deep"]
    theirs = networks(net, 100_000)  # a true distance of 0.027 under a threshold of 0.015
    forget(monkeypatch)
    ours = in_law(net, 100_000)
    assert same_law(VIEWS[passing](ours), VIEWS[passing](theirs))
    for view in rejecting:
        assert not same_law(VIEWS[view](ours), VIEWS[view](theirs)), view


def two_sides(net: MLP, draws: int, targets: FloatArray = TARGETS[:, None]) -> tuple[FloatArray, FloatArray]:
    """r^T dK r of each draw, and -2 sum_b r_b N_b'' along the step, which needs the forward tangent only.

    Targets have the shape (m, o), and b runs over the pairs (input, output).

    They are equal for every network, as g_a^T H_b g_c is the same from either end; in draws, only if each product
    u W t is the same from both sides of W, whatever met W first.
    """
    phi, outputs = net.activation, targets.shape[1]
    networks = DrawnNetworks(net, X, draws, stream(9, 0))
    residuals = networks.forward() - targets
    networks.backward(keep=True)
    networks.move(residuals)
    r = residuals.reshape(draws, -1)
    second = np.zeros_like(r)
    for layer in networks.layers[1:]:
        assert layer.tangent_in is not None
        pulled = stacks.for_pairs(stacks.transposed(layer.tangent_in.TA), outputs) * layer.J_gram
        second -= 2 * float(layer.layer.weight_multiplier) * np.einsum("da,dab->db", r, pulled)
    for stage, above in zip(networks.stages[:-1], networks.layers[1:], strict=True):
        between = stage[1]
        assert isinstance(between, ActivationPass)
        for y, L, dY in zip(between.x, above.L, between.T, strict=True):
            second += stacks.gated(L, phi.second_derivative(y) * np.square(dY)).sum(-1)
    dK = networks.change()
    return np.einsum("da,dab,db->d", r, dK, r), -2 * (r * second).sum(1)


SIDES = {
    **{name: net for name, net in NETWORKS.items() if name != "one layer"},
    "wide": MLP([2, 50, 60, 50, 1], activation="silu", bias_variance=0.2),
    "deep relu": MLP([2, *[20] * 8, 1]),
}


@pytest.mark.parametrize("name", SIDES)
def test_a_weight_matrix_is_the_same_from_both_sides(name: str) -> None:
    one, other = two_sides(SIDES[name], 200)
    assert np.abs(one).max() > 0
    assert one == pytest.approx(other, rel=1e-6, abs=1e-7 * np.median(np.abs(one)))


@pytest.mark.parametrize("name", ["deep", "wide", "deep relu"])
def test_a_tangent_that_is_forgotten_is_seen(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    forget_the_tangent(monkeypatch)
    one, other = two_sides(SIDES[name], 200)
    assert one != pytest.approx(other, rel=1e-3, abs=1e-3 * np.median(np.abs(one)))


@pytest.mark.parametrize("widths", [[2, 4, 4, 1], [2, 30, 20, 1], [2, 10, 10, 10, 10, 1]])
def test_diagonal_has_the_exact_moments(widths: list[int]) -> None:
    net = MLP(widths)
    exact = finwidth.moments(net, X[0], order=4)
    K = in_law(net, 160_000)["K"][:, 0, 0]
    assert same_mean(K, float(exact.mean), float(exact.variance))
    assert same_mean(K**2, float(exact.raw[1]), float(exact.raw[3]) - float(exact.raw[1]) ** 2)
    assert not same_mean(K, 1.1 * float(exact.mean), float(exact.variance))


def test_one_input_has_the_law_of_the_norm_chain() -> None:
    net = MLP([2, 5, 4, 1])
    ours = in_law(net, 100_000, X[:1])
    chain = finwidth.sample(net, X[0], 100_000, seed=3)
    assert same_law(ours["K"][:, 0, 0], chain.K.to_numpy())
    assert same_law(ours["output"][:, 0], chain.output.to_numpy())
    dK, N = chain.dK.to_numpy(), chain.output.to_numpy()  # the chain's target is 0; dK is in proportion to N - N*
    moved = np.divide(dK * (N - TARGETS[0]), N, out=np.zeros_like(N), where=N != 0)
    assert same_law(ours["dK"][:, 0, 0].round(12), moved.round(12))


def arc_cosine_kernel(a: FloatArray, b: FloatArray, depth: int) -> float:
    """The infinite-width kernel of a bias-free ReLU network in the paper's parameterization (Cho and Saul; Jacot)."""
    scale, cosine = np.linalg.norm(a) * np.linalg.norm(b) / len(a), a @ b / np.linalg.norm(a) / np.linalg.norm(b)
    covariance, kernel = scale * cosine, scale * cosine
    for _ in range(1, depth):
        angle = math.acos(min(1.0, max(-1.0, covariance / scale)))
        covariance = scale * (math.sin(angle) + (math.pi - angle) * math.cos(angle)) / math.pi
        slope = (math.pi - angle) / math.pi
        kernel = covariance + kernel * slope
    return float(kernel)


def test_arc_cosine_formula_is_the_gaussian_integral() -> None:
    """2 E[relu(u) relu(v)] and 2 E[1{u > 0} 1{v > 0}] for unit Gaussians of correlation c, by quadrature."""
    c = 0.3

    def over_v(u: float, power: int) -> float:
        mean, deviation = c * u, math.sqrt(1 - c * c)
        if power == 0:
            return float(stats.norm.cdf(mean / deviation))
        return float(mean * stats.norm.cdf(mean / deviation) + deviation * stats.norm.pdf(mean / deviation))

    angle = math.acos(c)
    for power, value in ((1, (math.sin(angle) + (math.pi - angle) * c) / math.pi), (0, (math.pi - angle) / math.pi)):
        integral = integrate.quad(lambda u, p=power: u**p * over_v(u, p) * stats.norm.pdf(u), 0, 12)[0]
        assert 2 * integral == pytest.approx(value, abs=1e-10)


def test_mean_kernel_approaches_infinite_width_like_one_over_n() -> None:
    """The diagonal of a bias-free ReLU network has no finite-width correction; the off-diagonal has, of order 1/n."""
    widths, depth, draws = (20, 40, 80), 4, 60_000
    limit, errors, spreads = arc_cosine_kernel(X[1], X[2], depth), [], []
    for n in widths:
        K = in_law(MLP([2, *[n] * (depth - 1), 1], bias="none"), draws, X[[1, 2]])["K"]
        exact = finwidth.moments(MLP([2, *[n] * (depth - 1), 1], bias="none"), X[1])
        assert exact.mean == pytest.approx(depth * 1.25 / 2)  # no correction, exactly
        assert same_mean(K[:, 0, 0], float(exact.mean), float(exact.variance))
        errors.append(K[:, 0, 1].mean() / limit - 1)
        spreads.append(K[:, 0, 1].std() / math.sqrt(draws) / abs(limit))
    assert all(0.01 < abs(error) < 0.10 for error in errors)
    assert all(abs(error) > 6 * spread for error, spread in zip(errors, spreads, strict=True))
    slope = np.polyfit(np.log(widths), np.log(np.abs(errors)), 1)[0]
    assert -1.35 < slope < -0.65


def test_duplicate_collinear_and_zero_inputs() -> None:
    inputs = np.array([[1.0, 2.0], [1.0, 2.0], [2.0, 4.0], [0.0, 0.0]])
    drawn = sample_gram(MLP([2, 6, 5, 1], bias="none"), inputs, 200, seed=1)
    K = drawn.K.to_numpy()
    scale = np.abs(K).max(axis=(1, 2), keepdims=True) + 1e-9  # some networks are dead
    assert np.allclose(K[:, 0] / scale[:, 0], K[:, 1] / scale[:, 0], atol=1e-6)
    assert np.allclose(2 * K[:, 0] / scale[:, 0], K[:, 2] / scale[:, 0], atol=1e-6)  # ReLU is homogeneous
    assert not K[:, 3].any()
    assert np.allclose(drawn.output[:, 0], drawn.output[:, 1], atol=1e-6)


def test_duplicates_move_as_one() -> None:
    """Twice the same input: the same dK between any two of its copies, and twice the step of one copy."""
    twice = sample_gram(MLP([2, 6, 5, 1], activation="gelu"), X[[0, 0, 1]], 200, seed=1, y=[1, 1, 0]).dK
    dK = twice.to_numpy()
    scale = np.abs(dK).max(axis=(1, 2))
    for a, b in ((0, 1), (1, 0), (1, 1)):
        assert np.allclose(dK[:, a, b] / scale, dK[:, 0, 0] / scale, atol=1e-6)
    assert np.allclose(dK[:, 0, 2] / scale, dK[:, 1, 2] / scale, atol=1e-6)


def test_memory_is_what_was_promised() -> None:
    X = np.random.default_rng(0).normal(size=(6, 20))
    for targets in (None, np.zeros(6)):
        net = MLP([20, *[30_000] * 5, 1], activation="relu" if targets is None else "gelu")
        sampler = kernel_matrix_sampler(net, X, targets)
        sampler.draw(Chunk(0, 0, 1))  # what is made once: modules, caches
        tracemalloc.start()
        sampler.draw(Chunk(0, 0, 1))
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert peak < bytes_per_draw(net, 6, targets=targets is not None) < 1.6 * peak


def test_threads_and_the_number_of_draws_do_not_change_the_numbers() -> None:
    net = MLP([2, 300, 300, 1])
    one = sample_gram(net, X, 3000, seed=1, y=TARGETS, threads=1)
    assert one.identical(sample_gram(net, X, 3000, seed=1, y=TARGETS, threads=3))
    size = kernel_matrix_sampler(net, X).chunk_size
    assert size < 1500  # several chunks
    few = sample_gram(net, X, 2 * size, seed=1, y=TARGETS)
    assert few.K.equals(one.K[: few.sizes["draw"]])


@pytest.mark.parametrize(
    "shape", [(1, 8, 16_384), (4, 8, 4099), (4, 3, 1023), (3, 1, 5000), (64, 8, 1024), (2, 0, 5000)]
)
def test_products_in_pieces_are_the_products(shape: tuple[int, ...]) -> None:
    one, other = np.random.default_rng(0).normal(size=(2, *shape))
    assert np.allclose(stacks.product(one, other), np.einsum("dan,dbn->dab", one, other), rtol=1e-12, atol=1e-9)
    assert np.allclose(stacks.square(one), np.einsum("dan,dbn->dab", one, one), rtol=1e-12, atol=1e-9)


def test_kernels_are_positive_semi_definite_and_symmetric() -> None:
    K = sample_gram(MLP([3, 7, 7, 7, 1], activation="silu"), np.random.default_rng(0).normal(size=(12, 3)), 50).K
    assert np.allclose(K, K.transpose("draw", "input_", "input"), rtol=1e-12)
    values = np.linalg.eigvalsh(K)
    assert (values > -1e-10 * values[:, -1:]).all()


def test_a_seed_fixes_the_numbers_and_provenance_is_kept() -> None:
    net = MLP([2, 300, 1])
    one, same, other = (sample_gram(net, X, 5000, seed=seed) for seed in (1, 1, 2))
    assert one.identical(same)
    assert not np.array_equal(one.K, other.K)
    assert one.attrs["seed"] == 1
    assert one.output.dims == ("draw", "input")


def test_users_bring_their_own_activation() -> None:
    sine = SmoothActivation("sin", np.sin, np.cos, d2phi=lambda y: -np.sin(y))
    net = MLP([2, 5, 1], activation=sine)
    ours, theirs = in_law(net), networks(net)
    assert same_law(ours["K"][:, 0, 1], theirs["K"][:, 0, 1])
    assert same_law(ours["dK"][:, 0, 1], theirs["dK"][:, 0, 1])


BARE = SmoothActivation("bare", np.sin, np.cos)


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: sample_gram(MLP([2, 3, 1], "uniform"), X, 1), "its weights are uniform"),
        (
            lambda: sample_gram(MLP([2, 3, 1], bias_variance=1, bias_law="uniform"), X, 1),
            "its initial biases are uniform",
        ),
        (lambda: sample_gram(MLP([2, 3, 2]), X, 1, y=TARGETS), r"shape \(3, 2\), one for each input and output"),
        (lambda: sample_gram(MLP([2, 3, 2]), X, 1, y=[[1, 2], [3, 4]]), r"have shape \(2, 2\)"),
        (lambda: sample_gram(MLP([2, 1]), X, 1, hidden=True), "this one has none"),
        (lambda: sample_gram(MLP([2, 3, 1]), X, 1, hidden=2), "hidden is 2"),  # type: ignore[arg-type]
        (lambda: sample_gram(MLP([2, 3, 1]), X[0], 1), r"shape \(2,\)"),
        (lambda: sample_gram(MLP([3, 3, 1]), X, 1), r"shape \(m, 3\)"),
        (lambda: sample_gram(MLP([2, 3, 1]), np.empty((0, 2)), 1), r"shape \(0, 2\)"),
        (lambda: sample_gram(MLP([2, 3, 1]), [[1, math.nan]], 1), "input 0 holds nan at place 1"),
        (lambda: sample_gram(MLP([2, 3, 1]), X, 0), "draws is 0"),
        (lambda: sample_gram(MLP([2, 3, 1]), X, 1, seed=-1), "seed is -1"),
        (lambda: sample_gram(MLP([2, 3, 1]), X, 1, y=[1, 2]), "3 finite numbers"),
        (lambda: sample_gram(MLP([2, 3, 1]), X, 1, y=[1, 2, math.nan]), "3 finite numbers"),
        (lambda: sample_gram(MLP([2, 3, 1]), X, 1, y="abc"), "not an array of numbers"),
        (lambda: sample_gram(MLP([2, 3, 1]), X, 1, y=[1e200, 1, 1e308]), "the targets or the gains"),
        (lambda: sample_gram(MLP([2, 3, 1], activation=BARE), X, 1, y=TARGETS), "d2phi="),
        pytest.param(
            lambda: sample_gram(MLP([2, 3, 1]), X, 1, device="nowhere"),
            "device='nowhere' cannot be used",
            marks=pytest.mark.skipif(find_spec("torch") is None, reason="needs the torch extra"),
        ),
        (lambda: sample_gram(MLP([2, 3, 1]), 1e200 * X, 1), "rescale the inputs"),
        (lambda: finwidth.moments(MLP([2, 3, 1], activation="gelu"), X[0]), "not positively homogeneous"),
        (lambda: MLP([2, 3, 1], activation=SmoothActivation("bad", np.sum, np.cos)), "to a finite array"),
    ],
)
def test_mistakes_are_told(call, words: str) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(finwidth.FinwidthError, match=words):
        call()


@pytest.mark.parametrize("m", [1, 2, 3, 8])
def test_draws_are_symmetric_to_the_last_bit(m: int) -> None:
    inputs = np.random.default_rng(1).normal(size=(m, 4))
    drawn = sample_gram(MLP([4, 50, 30, 1], activation="silu"), inputs, 20, seed=2, y=np.ones(m))
    for name in ("K_w", "K_b", "K", "dK"):
        assert np.array_equal(drawn[name], drawn[name].transpose("draw", "input_", "input")), name


def test_an_activation_may_return_its_argument() -> None:
    """phi' = y of phi = y^2/2, as the array it was given and as another one."""

    def drawn(dphi: Callable[[FloatArray], FloatArray]) -> Any:
        square = SmoothActivation("square", lambda y: y * y / 2, dphi, d2phi=np.ones_like)
        return sample_gram(MLP([2, 5, 4, 1], activation=square), X, 50, seed=3, y=TARGETS)

    itself, another = drawn(lambda y: y), drawn(lambda y: y.copy())
    for name in ("output", "K", "dK"):
        assert np.array_equal(itself[name], another[name])


# The sign of the first move of a network with one hidden layer (docs/theory/gram.md)

SLOPES: dict[
    str,
    tuple[Callable[[FloatArray], FloatArray], Callable[[FloatArray], FloatArray], Callable[[FloatArray], FloatArray]],
] = {
    "tanh": (np.tanh, lambda y: np.cosh(y) ** -2, lambda y: -2 * np.tanh(y) * np.cosh(y) ** -2),
    "erf": (
        special.erf,
        lambda y: 2 / np.sqrt(np.pi) * np.exp(-(y**2)),
        lambda y: -4 / np.sqrt(np.pi) * y * np.exp(-(y**2)),
    ),
    "gelu": (
        lambda y: y * special.ndtr(y),
        lambda y: special.ndtr(y) + y * np.exp(-(y**2) / 2) / np.sqrt(2 * np.pi),
        lambda y: (2 - y**2) * np.exp(-(y**2) / 2) / np.sqrt(2 * np.pi),
    ),
    "linear": (lambda y: y, np.ones_like, np.zeros_like),
}

NODES = np.polynomial.legendre.leggauss(400)


def first_move(activation: str, q: float, kappa: float, rho: float = 1, *, n: int = 1) -> tuple[float, float]:
    """n E[dK], and Var[dK] at width n, d = 2; q the variance of a pre-activation, rho the last multiplier times n.

    With a = u phi and f = 2 rho u phi phi'^2 + kappa u^3 phi'^2 phi'' of a neuron, dK = -2 kappa/n^2 (sum a)(sum f),
    and u has the moments 1, 3, 15, 105.
    """
    nodes, weights = NODES
    top = min(12 * math.sqrt(q), 30.0)
    y = top * nodes
    weights = top * weights * np.exp(-(y**2) / (2 * q)) / math.sqrt(2 * math.pi * q)
    phi, slope, bend = (each(y) for each in SLOPES[activation])
    out, turned = 2 * rho * phi, kappa * bend  # f = phi'^2 (out u + turned u^3)
    aa, af = weights @ phi**2, weights @ (phi * slope**2 * (out + 3 * turned))
    ff = weights @ (slope**4 * (out**2 + 6 * out * turned + 15 * turned**2))
    both = phi**2 * slope**4 * (3 * out**2 + 30 * out * turned + 105 * turned**2)
    square = 4 * kappa**2 / n**3 * (weights @ both + (n - 1) * (aa * ff + 2 * af**2))
    return -2 * kappa * float(af), float(square) - (2 * kappa * float(af) / n) ** 2


@pytest.mark.parametrize(
    ("activation", "size", "bias", "n", "parameterization"),
    [
        ("tanh", 0.2, "none", 16, "ntk"),
        ("tanh", 0.1, "trained", 7, "ntk"),
        ("tanh", 2.0, "none", 3, "ntk"),
        ("tanh", 0.3, "trained", 20, "standard"),
        ("erf", 0.3, "none", 12, "ntk"),
        ("erf", 0.3, "trained", 12, "ntk"),
        ("gelu", 0.5, "none", 10, "ntk"),
        ("gelu", 0.2, "trained", 5, "standard"),
        ("linear", 1.0, "trained", 4, "ntk"),
    ],
)
def test_first_move_of_one_hidden_layer_is_the_closed_form(
    activation: str, size: float, bias: str, n: int, parameterization: Any
) -> None:
    """At any width; not what the other choice of biases gives."""
    net = MLP([4, n, 1], activation=activation, bias=bias, parameterization=parameterization)
    x, draws = np.full((1, 4), math.sqrt(size)), 100_000
    hidden, last = net.layers
    assert last.weight_variance * n == 1
    q, weights = float(hidden.weight_variance) * 4 * size, float(hidden.weight_multiplier) * 4 * size
    trained, rho = float(hidden.bias_multiplier), float(last.weight_multiplier) * n
    mean, variance = first_move(activation, q, weights + trained, rho, n=n)
    found = sample_gram(net, x, draws, seed=11, y=[0.0]).dK.to_numpy().ravel()
    assert same_mean(found, mean / n, variance)
    assert not same_mean(found, first_move(activation, q, weights + 1 - trained, rho)[0] / n, variance)


def test_the_mean_of_the_first_move_does_not_depend_on_the_target() -> None:
    net, x = MLP([4, 16, 1], activation="tanh", bias="none"), np.full((1, 4), math.sqrt(0.2))
    found = sample_gram(net, x, 100_000, seed=12, y=[0.7]).dK.to_numpy().ravel()
    assert abs(found.mean() - first_move("tanh", 0.2, 0.2)[0] / 16) < 6 * found.std() / len(found) ** 0.5


def test_where_the_sign_of_saturating_activations_turns() -> None:
    """Without biases it is ReLU's for small inputs and turns once; with trained ones it is the opposite one always."""
    assert first_move("tanh", 0.2, 0.2)[0] == pytest.approx(-0.03104925, rel=1e-6)
    for activation, crossing in (("tanh", 0.486774), ("erf", 0.430092)):
        assert first_move(activation, crossing - 1e-5, crossing - 1e-5)[0] < 0
        assert first_move(activation, crossing + 1e-5, crossing + 1e-5)[0] > 0
        sizes = np.geomspace(1e-6, 1e3, 46)
        signs = [first_move(activation, q, q)[0] > 0 for q in sizes]
        assert signs == [q > crossing for q in sizes]
        assert all(first_move(activation, q, q + 1)[0] > 0 for q in sizes)
        kappas = 4 * sizes + 1  # standard, n_0 = 4; n = rho
        assert all(first_move(activation, q, kappa, 3 * kappa)[0] < 0 for q, kappa in zip(sizes, kappas, strict=True))
        assert first_move(activation, 1e-6, 1.0, 2.99)[0] > 0


@pytest.mark.parametrize(
    ("activation", "depth", "bias", "size", "sign"),
    [
        ("tanh", 3, "none", 0.2, -1),
        ("tanh", 3, "none", 0.6, 1),
        ("tanh", 5, "none", 0.02, -1),
        ("erf", 4, "frozen", 0.01, -1),
        ("tanh", 4, "trained", 0.02, 1),
        ("erf", 4, "trained", 0.01, 1),
        ("relu", 4, "none", 0.02, -1),
        ("relu", 4, "trained", 2.0, -1),
    ],
)
def test_sign_of_the_first_move_of_deeper_networks(
    activation: str, depth: int, bias: str, size: float, sign: int
) -> None:
    net = MLP([4, *[32] * (depth - 1), 1], activation=activation, bias=bias)
    found = sample_gram(net, np.full((1, 4), math.sqrt(size)), 10_000, seed=13, y=[0.0]).dK.to_numpy()
    assert sign * found.mean() > 10 * found.std() / 100


@pytest.mark.slow
def test_where_the_sign_turns_with_two_hidden_layers() -> None:
    """tanh without biases, n = 128: 0 between |x|^2/n_0 of 0.345 and 0.36."""
    for size, sign in ((0.345, -1), (0.36, 1)):
        net = MLP([4, 128, 128, 1], activation="tanh", bias="none")
        found = sample_gram(net, np.full((1, 4), math.sqrt(size)), 10**6, seed=14, y=[0.0]).dK.to_numpy()
        mean, error = 128 * found.mean(), 0.128 * found.std()
        print(f"|x|^2/n_0 = {size}: n E[dK] = {mean:.5f} +- {error:.5f}")
        assert sign * mean > 6 * error

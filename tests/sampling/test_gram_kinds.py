"""Kernel matrices of residual and normalised networks: against networks that hold their weights and are differentiated
by autograd, in law and draw by draw; against the chain at one input and closed forms."""

from __future__ import annotations

import tracemalloc
from collections.abc import Callable
from fractions import Fraction
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

import finwidth
from devices import DEVICE
from finwidth import MLP, BalancedResNet, FinwidthError, Norm, ResNet, sample_gram
from finwidth.networks.description import Network
from finwidth.sampling.kernel_matrix.gaussian_layer import GaussianLayer
from finwidth.sampling.kernel_matrix.maps import NormPass, SignsPass
from finwidth.sampling.kernel_matrix.passes import DrawnNetworks, JoinPass
from finwidth.sampling.kernel_matrix.rows import Rows, listed
from finwidth.sampling.kernel_matrix.sample_gram import bytes_per_draw, kernel_matrix_sampler
from finwidth.sampling.random.streams import stream
from finwidth.sampling.sampler import Chunk
from sampling.test_gram import forget_the_forward_pass, forget_the_tangent
from stats import same_law, same_mean

torch = pytest.importorskip("torch")
from autograd_networks import AutogradNetworks, autograd_networks  # noqa: E402

FloatArray = npt.NDArray[Any]
Drawn = dict[str, FloatArray]

X = np.array([[1.0, 2.0], [0.5, -1.0], [-1.0, 0.5]])  # more inputs than input dimensions
TARGETS = np.array([[1.0, -1.0], [0.5, 2.0], [-0.5, 1.0]])

NETWORKS: dict[str, Network] = {
    "relu": ResNet([2, 5, 1], 2, 4),
    "tanh, random biases, two outputs": ResNet(
        [2, 4, 2], 2, 3, activation="tanh", skip=0.7, branch=0.8, bias_variance=[0.2, 0.3, 0.1, 0.1]
    ),
    "branches and skips cut": ResNet([2, 3, 1], 3, [2, 3, 4], branch=[1, 0, 0.5], skip=[0.5, 1, 0], activation="gelu"),
    "stream of 1": ResNet([2, 1, 1], 2, 2, activation="leaky_relu", parameterization="standard", bias_scale=0.5),
    "balanced": BalancedResNet([2, 4, 1], 3, branch="1/sqrt(depth)"),
    "balanced, tanh, two outputs": BalancedResNet([2, 3, 2], 2, activation="tanh", bias_variance=0.2),
    "no signs": BalancedResNet([2, 4, 1], 3, branch=0.7, signs=False),
    "rms": MLP([2, 4, 4, 1], norm="rms"),
    "rms of widths 2 and 1": MLP([2, 2, 1, 2, 1], norm="rms", activation="tanh"),
    "layer, two outputs": MLP([2, 4, 5, 2], norm="layer", activation="tanh", bias_variance=0.2),
    "rms, trained": MLP([2, 4, 3, 2], norm=Norm("rms", parameters="trained"), activation="silu"),
    "rms after, trained": MLP([2, 4, 4, 1], norm=Norm("rms", "after", epsilon=0.1, parameters="trained")),
    "layer after, trained": MLP(
        [2, 4, 4, 1], norm=Norm("layer", "after", epsilon=Fraction(1, 100), parameters="trained"), activation="gelu"
    ),
    "pre-norm": ResNet([2, 4, 1], 2, 3, norm="rms"),
    "pre-norm, layer, trained": ResNet(
        [2, 4, 2], 2, 3, norm=Norm("layer", epsilon=0.1, parameters="trained"), activation="tanh", bias_variance=0.1
    ),
    "post-norm, trained": ResNet([2, 4, 1], 2, 3, norm=Norm("rms", "after", parameters="trained"), activation="tanh"),
    "streams that die": ResNet([2, 2, 1], 3, 1, skip=[1, 0, 0.5], norm=Norm("rms", "after")),
    "post-norm, layer": ResNet([2, 5, 1], 2, 3, norm=Norm("layer", "after")),
}


def targets(net: Network) -> FloatArray:
    return TARGETS[:, : net.widths[-1]]


# ---- draw by draw: there are weights that give exactly the products that were drawn


def draw_and_record(net: Network, draws: int, inputs: FloatArray = X) -> tuple[DrawnNetworks, Drawn]:
    """Networks in law and their kernels; what meets each weight layer from the left in the last pass is kept."""
    made = DrawnNetworks(net, inputs, draws, stream(7, 0))
    output = made.forward()
    K_w, K_b = made.backward(keep=True)
    with pytest.MonkeyPatch.context() as patch:
        real = GaussianLayer.cotangent

        def recording(self: GaussianLayer, U: Rows | None) -> Rows:
            rows = None if U is None else list(U)
            blocks = list(real(self, None if rows is None else listed(rows)))
            if rows is not None and not self.first:
                products = [block + self._pull @ a for block, a in zip(blocks, self.A, strict=True)]
                self.met_last = whole(listed(rows)), whole(listed(products))  # type: ignore[attr-defined]
            return Rows(lambda: iter(blocks), once=True)

        patch.setattr(GaussianLayer, "cotangent", recording)
        made.move(output - targets(net))
        dK = made.change()
    return made, {"output": output, "K_w": K_w, "K_b": K_b, "dK": dK}


def whole(rows: Rows) -> FloatArray:
    return np.concatenate(list(rows), -1)


def weights_of(layer: GaussianLayer, draw: int) -> tuple[FloatArray, FloatArray]:
    """Weights and biases that give all products of a layer in a draw; an assertion if there are none."""
    n, k = layer.layer.fan_out, layer.layer.fan_in
    biases = bool(layer.layer.bias_variance)
    A = whole(layer.A)
    right = [(A[draw if len(A) > 1 else 0], whole(layer.Y)[draw], biases)]
    if layer.tangent_in is not None and layer.TW:  # the last layer has no use for it
        right.append((whole(layer.tangent_in.T.in_units(None))[draw], whole(listed(layer.TW))[draw], False))
    left = [] if layer.first else [(whole(layer.J)[draw], whole(layer.L)[draw])]
    if hasattr(layer, "met_last"):
        left.append(tuple(each[draw] for each in layer.met_last))
    equations, values = [], []  # of the rows of [W b], one after the other
    for given, found, with_bias in right:
        rows = np.concatenate([given, np.full((len(given), 1), float(with_bias))], 1)
        equations.append(np.kron(np.eye(n), rows))
        values.append(found.T.ravel())
    for given, found in left:
        equations.append(np.kron(given, np.eye(k, k + 1)))
        values.append(found.ravel())
    system, wanted = np.concatenate(equations), np.concatenate(values)
    sizes = np.linalg.norm(system, axis=1) + 1e-300  # each equation counts as much as any other
    solved = np.linalg.lstsq(system / sizes[:, None], wanted / sizes, rcond=1e-9)[0]
    assert system @ solved == pytest.approx(wanted, rel=1e-5, abs=1e-6 * np.abs(wanted).max())
    W = solved.reshape(n, k + 1)
    return W[:, :-1], W[:, -1] * biases


def held(net: Network, made: DrawnNetworks, draws: int) -> tuple[dict[str, Any], dict[str, Any]]:
    """The same networks with weights, as `AutogradNetworks` takes them."""
    dense = AutogradNetworks(net)
    at, signs = dense.draw(draws, 0)
    factors = dict.fromkeys(dense.layers, 1.0)
    for i, block in enumerate(getattr(net, "blocks", ())):
        factors[f"W {i}"] = float(block.branch_squared) ** 0.5
        if not block.branch_squared:
            del factors[f"W {i}"]
            factors.pop(f"V {i}", None)
    for (name, factor), layer in zip(factors.items(), made.layers, strict=True):
        found = [weights_of(layer, draw) for draw in range(draws)]
        at[f"{name} weight"] = torch.tensor(np.stack([W for W, _ in found]) / factor)
        at[f"{name} bias"] = torch.tensor(np.stack([b for _, b in found]) / factor)
    passes = [step for stage in made.stages for step in stage]
    drawn = [each.signs for each in passes if isinstance(each, SignsPass)]
    for name, rows in zip(signs, drawn, strict=True):
        signs[name] = torch.tensor(whole(rows)[:, 0])
    return at, signs


def assert_weights_give(net: Network, draws: int = 4) -> None:
    """Autograd, at weights that give the products that were drawn, finds the outputs and kernels that were drawn."""
    made, found = draw_and_record(net, draws)
    at, signs = held(net, made, draws)
    dense, inputs, wanted = AutogradNetworks(net), torch.tensor(X), torch.tensor(targets(net))

    def one(at: Any, signs: Any) -> tuple[Any, ...]:
        K_w, K_b = dense.kernels(at, signs, inputs)
        return dense.outputs(at, signs, inputs), K_w, K_b, dense.change(at, signs, inputs, wanted)

    for (name, ours), theirs in zip(found.items(), torch.func.vmap(one)(at, signs), strict=True):
        values = theirs.numpy()
        values = values if name == "output" else values.transpose(0, 1, 3, 2, 4).reshape(ours.shape)
        scale = np.abs(values).max(axis=tuple(range(1, values.ndim)), keepdims=True) + 1e-12
        assert ours / scale == pytest.approx(values / scale, abs=1e-5), name


@pytest.mark.parametrize("name", NETWORKS)
def test_there_are_weights_that_give_what_is_drawn(name: str) -> None:
    assert_weights_give(NETWORKS[name])


def fix_the_length(patch: pytest.MonkeyPatch) -> None:
    """A norm without its projection: the length is no function of the vector."""
    real = NormPass.backward

    def backward(self: NormPass, J: Rows, *, keep: bool) -> Rows:
        patch.setattr(self, "_along", lambda u, rows: 0.0)
        return real(self, J, keep=keep)

    patch.setattr(NormPass, "backward", backward)


def skip_more(patch: pytest.MonkeyPatch) -> None:
    """Another skip backward than forward."""
    real = JoinPass.backward

    def backward(self: JoinPass, J: Rows, *, keep: bool) -> Rows:
        passed = real(self, J, keep=keep)
        self.streams.append(self.streams.pop().map(lambda block: 1.1 * block))
        return passed

    patch.setattr(JoinPass, "backward", backward)


WRONG: dict[str, tuple[Callable[[pytest.MonkeyPatch], None], list[str]]] = {
    "the forward pass is forgotten": (forget_the_forward_pass, ["relu", "balanced", "pre-norm"]),
    "the tangent is forgotten": (forget_the_tangent, ["tanh, random biases, two outputs", "rms after, trained"]),
    "a norm without projection": (fix_the_length, ["rms", "pre-norm", "post-norm, layer"]),
    "another skip": (skip_more, ["relu", "balanced, tanh, two outputs"]),
}


@pytest.mark.parametrize("wrong", WRONG)
def test_there_are_no_weights_for_wrong_products(wrong: str, monkeypatch: pytest.MonkeyPatch) -> None:
    patch, names = WRONG[wrong]
    patch(monkeypatch)
    for name in names:
        with pytest.raises(AssertionError):
            assert_weights_give(NETWORKS[name])


# ---- in law

# Entries of every kind of pair, their dependence, and the spectrum.
VIEWS: dict[str, Callable[[Drawn], FloatArray]] = {
    "output": lambda d: d["output"][:, 0, -1],
    "outputs of two inputs": lambda d: d["output"][:, 0, 0] * d["output"][:, 1, -1],
    "K_w": lambda d: d["K_w"][:, 0, 1, 0, -1],
    "K_b": lambda d: d["K_b"][:, 1, 2, 0, 0],
    "K of two inputs": lambda d: d["K"][:, 0, 1, -1, -1],
    "smallest eigenvalue": lambda d: np.linalg.eigvalsh(d["K"][..., 0, 0])[:, 0],
    "output against kernel": lambda d: d["output"][:, 0, 0] * d["output"][:, 1, 0] * d["K"][:, 0, 1, 0, 0],
    "dK of one input": lambda d: d["dK"][:, 0, 0, 0, 0],
    "dK of two inputs": lambda d: d["dK"][:, 0, 1, 0, -1],
    "largest eigenvalue of dK": lambda d: np.linalg.eigvalsh(d["dK"][..., 0, 0])[:, -1],
    "dK against kernel": lambda d: d["dK"][:, 0, 1, 0, 0] * d["K"][:, 0, 1, 0, 0],
    "hidden": lambda d: d["hidden"][:, -1, 0, 1],
    "hidden against kernel": lambda d: d["hidden"][:, -1, 0, 1] * d["K"][:, 0, 1, 0, 0],
}


def in_law(net: Network, draws: int, device: str | None = None) -> Drawn:
    y = targets(net)
    found = sample_gram(net, X, draws, 7, y=y if y.shape[1] > 1 else y[:, 0], hidden=True, device=device)
    return with_outputs({str(name): found[name].to_numpy() for name in found})


def held_in_law(net: Network, draws: int, **wrong: Any) -> Drawn:
    return with_outputs(autograd_networks(net, X, targets(net), draws, 8, **wrong))


def with_outputs(drawn: Drawn) -> Drawn:
    """Axes of outputs also where there is one."""
    if drawn["output"].ndim == 2:
        drawn["output"] = drawn["output"][..., None]
        drawn |= {name: drawn[name][..., None, None] for name in ("K_w", "K_b", "K", "dK")}
    return drawn


def assert_same(ours: Drawn, theirs: Drawn) -> None:
    for view, function in VIEWS.items():
        # Exact zeros and duplicates are zeros and duplicates up to rounding.
        assert same_law(function(ours).round(8), function(theirs).round(8)), view


FAST = ["relu", "balanced, tanh, two outputs", "pre-norm, layer, trained"]


@pytest.mark.parametrize("name", FAST)
def test_joint_law_is_that_of_networks(name: str) -> None:
    assert_same(in_law(NETWORKS[name], 6000), held_in_law(NETWORKS[name], 6000))


@pytest.mark.slow
@pytest.mark.parametrize("name", NETWORKS)
def test_joint_law_is_that_of_many_networks(name: str) -> None:
    assert_same(in_law(NETWORKS[name], 40_000), held_in_law(NETWORKS[name], 40_000))


def test_wrong_networks_are_rejected() -> None:
    """A norm whose length is held fixed, and another skip, against draws in law."""
    net = NETWORKS["pre-norm"]
    ours, theirs = in_law(net, 6000), held_in_law(net, 6000, project=False)
    assert same_law(VIEWS["output"](ours), VIEWS["output"](theirs))
    assert not same_law(VIEWS["K of two inputs"](ours), VIEWS["K of two inputs"](theirs))
    assert not same_law(VIEWS["dK of one input"](ours), VIEWS["dK of one input"](theirs))
    net = NETWORKS["relu"]
    ours, theirs = in_law(net, 6000), held_in_law(net, 6000, skip=0.7)
    assert not same_law(VIEWS["output"](ours), VIEWS["output"](theirs))


def test_a_device_draws_the_same_law() -> None:
    net = NETWORKS["pre-norm, layer, trained"]
    assert_same(in_law(net, 6000, device=DEVICE), held_in_law(net, 6000))


@pytest.mark.parametrize("name", ["balanced, tanh, two outputs", "branches and skips cut", "post-norm, trained"])
def test_a_device_draws_what_is_drawn_here(name: str) -> None:
    ours, there = in_law(NETWORKS[name], 6000), in_law(NETWORKS[name], 6000, device=DEVICE)
    assert_same(ours, there)


# ---- one input, exact moments, closed forms


@pytest.mark.parametrize(
    "net",
    [
        ResNet([3, 6, 1], 3, 5, branch="1/sqrt(depth)"),
        ResNet([3, 3, 1], 2, [1, 2], activation="abs", skip=0.5, bias_variance=[0.5, 0.2, 0.3, 1]),
    ],
    ids=str,
)
def test_one_input_has_the_law_of_the_residual_chain(net: ResNet) -> None:
    x, draws = np.array([1.0, -2.0, 2.0]), 20_000
    ours, chain = sample_gram(net, x[None], draws, seed=1, y=[0.0]), finwidth.sample(net, x, draws, seed=2)
    for name, values in (
        ("output", ours.output[:, 0]),
        *((each, ours[each][:, 0, 0]) for each in ("K_w", "K_b", "dK")),
    ):
        assert same_law(values.to_numpy().round(10), chain[name].to_numpy().round(10)), name


@pytest.mark.parametrize("kind", [ResNet, BalancedResNet])
def test_the_diagonal_has_the_exact_moments(kind: type[ResNet | BalancedResNet]) -> None:
    net = kind([2, 12, 1], 4, branch="1/sqrt(depth)")
    exact = finwidth.moments(net, X[0], order=4)
    K = sample_gram(net, X[:1], 40_000, seed=3).K.to_numpy()[:, 0, 0]
    assert same_mean(K, float(exact.mean), float(exact.variance))
    assert same_mean(K**2, float(exact.raw[1]), float(exact.raw[3]) - float(exact.raw[1]) ** 2)
    assert not same_mean(K, 1.1 * float(exact.mean), float(exact.variance))


def test_linear_blocks_have_the_mean_of_their_infinite_width() -> None:
    """Without activation E[K_w(x, x')] is x.x'/n_0 times what each layer adds, (1 + b^2)^L each, at every width."""
    L, b = 3, 0.5
    K = sample_gram(ResNet([2, 5, 1], L, 3, activation="linear", branch=b, bias="none"), X, 20_000, seed=4).K.to_numpy()
    grown = (1 + b * b) ** L
    for a, c in ((0, 0), (0, 1), (1, 2)):
        # Stem and head see the whole network, V_l and W_l only the paths through their branch.
        mean = X[a] @ X[c] / 2 * (2 * grown + 2 * L * b * b * grown / (1 + b * b))
        error = K[:, a, c].std() / len(K) ** 0.5
        assert abs(K[:, a, c].mean() - mean) < 5 * error + 1e-12
        assert abs(mean) < 1e-12 or error < 0.03 * abs(mean)


def test_wide_residual_networks_approach_the_limit_like_one_over_n() -> None:
    """Off the diagonal; on it E[K] has no correction (docs/theory/residual.md)."""
    L, widths, draws = 2, (4, 8, 16), 60_000
    inputs = np.array([[1.0, 2.0], [2.0, -1.0]])
    # The limit, by the arc-cosine map of each block: Sigma <- Sigma + b^2 S(Sigma), Theta likewise.
    scale = np.outer(np.linalg.norm(inputs, axis=1), np.linalg.norm(inputs, axis=1)) / 2
    sigma = theta = inputs @ inputs.T / 2
    for _ in range(L):
        angle = np.arccos(np.clip(sigma / scale, -1, 1))
        branch, slope = scale * (np.sin(angle) + (np.pi - angle) * np.cos(angle)) / np.pi, (np.pi - angle) / np.pi
        theta = theta + branch + slope * (theta + sigma)
        sigma, scale = sigma + branch, 2 * scale
    limit = (theta + sigma)[0, 1]
    errors = []
    for n in widths:
        K = sample_gram(ResNet([2, n, 1], L, bias="none"), inputs, draws, seed=5).K.to_numpy()[:, 0, 1]
        errors.append(K.mean() / limit - 1)
        assert abs(errors[-1]) > 4 * K.std() / draws**0.5 / abs(limit)
    slope = np.polyfit(np.log(widths), np.log(np.abs(errors)), 1)[0]
    assert -1.5 < slope < -0.6


# ---- inputs and sizes


def test_hidden_vectors_are_numbered() -> None:
    found = sample_gram(ResNet([2, 4, 1], 3), X, 5, hidden=True).hidden
    assert found.layer.to_numpy().tolist() == [0, 1, 2, 3]
    found = sample_gram(MLP([2, 4, 4, 1], norm=Norm("rms", "after")), X, 5, hidden=True, seed=3).hidden
    assert found.layer.to_numpy().tolist() == [1, 2]
    lengths = found.to_numpy().diagonal(0, 2, 3)
    assert ((abs(lengths - 1) < 1e-12) | (lengths == 0)).all()


@pytest.mark.parametrize("kind", [ResNet, BalancedResNet])
def test_duplicate_collinear_and_zero_inputs(kind: type[ResNet | BalancedResNet]) -> None:
    inputs = np.array([[1.0, 2.0], [1.0, 2.0], [2.0, 4.0], [0.0, 0.0]])
    drawn = sample_gram(kind([2, 6, 1], 3, bias="none"), inputs, 200, seed=1, y=np.ones(4))
    for K in (drawn.K.to_numpy(), drawn.dK.to_numpy()):
        scale = np.abs(K).max(axis=(1, 2), keepdims=True)[:, 0]
        assert np.allclose(K[:, 0] / scale, K[:, 1] / scale, atol=1e-6)
        assert np.allclose(2 * K[:, 0] / scale, K[:, 2] / scale, atol=1e-6)  # ReLU is homogeneous
        assert not K[:, 3].any()


def test_collinear_inputs_are_one_to_a_norm() -> None:
    """Outputs do not depend on an input's length; and the gradient by the first layer is in proportion to 1/length."""
    inputs = np.array([[1.0, 2.0], [3.0, 6.0], [0.0, 0.0]])
    drawn = sample_gram(MLP([2, 6, 6, 1], norm="rms", activation="gelu", bias="none"), inputs, 50, seed=1, y=np.ones(3))
    output, K = drawn.output.to_numpy(), drawn.K.to_numpy()
    assert np.allclose(output[:, 0], output[:, 1], atol=1e-6)
    assert not output[:, 2].any()
    assert np.allclose(K[:, 0, 0], K[:, 1, 1], rtol=1e-6)  # 3 times the input, a third of the gradient
    assert np.allclose(K[:, 0, 0], K[:, 0, 1], rtol=1e-6)


@pytest.mark.parametrize("powers", [[-500] * 3, [-500, 0, 300]])
def test_inputs_of_extreme_sizes(powers: list[int]) -> None:
    """A homogeneous network at inputs times powers of two: the same numbers times powers of two."""
    for net in (ResNet([2, 6, 2], 3, bias="none", branch=0.7), BalancedResNet([2, 4, 2], 2, bias="none")):
        usual = sample_gram(net, X, 50, seed=2, hidden=True)
        found = sample_gram(net, np.ldexp(X, np.array(powers)[:, None]), 50, seed=2, hidden=True)
        sizes = np.add.outer(powers, powers)
        for name, power in (("K", sizes[..., None, None]), ("hidden", sizes), ("output", np.array(powers)[:, None])):
            assert found[name].to_numpy() == pytest.approx(np.ldexp(usual[name].to_numpy(), power), rel=1e-6, abs=0)


def test_a_norm_of_extreme_inputs() -> None:
    """Within 10^+-100 as at size 1, beyond it refused."""
    net = MLP([2, 5, 5, 1], norm="rms", bias="none")
    usual, found = (sample_gram(net, size * X, 20, seed=2, y=np.ones(3)) for size in (1.0, 2.0**300))
    for name in ("output", "K", "dK"):
        assert found[name].to_numpy() == pytest.approx(usual[name].to_numpy(), rel=1e-6, abs=1e-9)
    for size in (1e-150, 1e120):
        with pytest.raises(FinwidthError, match="overflow a double"):
            sample_gram(net, size * X, 2)


@pytest.mark.parametrize("with_targets", [False, True])
@pytest.mark.parametrize(
    "net",
    [
        ResNet([20, 8000, 1], 3, 4000, activation="gelu"),
        ResNet([20, 4000, 3], 3, 16_000),
        BalancedResNet([20, 8000, 1], 4),
        MLP([20, *[8000] * 4, 3], norm=Norm("layer", "after", parameters="trained")),
        ResNet([20, 8000, 3], 3, norm=Norm("rms", "after")),
        ResNet([20, 8000, 1], 3, norm=Norm("layer", parameters="trained"), activation="gelu"),
    ],
    ids=["resnet", "wide branches", "balanced", "normalised", "post-norm", "pre-norm"],
)
def test_memory_is_what_was_promised(net: Network, with_targets: bool) -> None:
    inputs, y = np.random.default_rng(0).normal(size=(16, 20)), np.zeros((16, net.widths[-1]))
    sampler = kernel_matrix_sampler(net, inputs, (y if y.shape[1] > 1 else y[:, 0]) if with_targets else None)
    sampler.draw(Chunk(0, 0, 1))  # what is made once: modules, caches
    tracemalloc.start()
    sampler.draw(Chunk(0, 0, 1))
    left, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < bytes_per_draw(net, 16, targets=with_targets) < 1.6 * peak
    assert left < 0.02 * peak  # no cycle of references keeps arrays


@pytest.mark.parametrize(
    ("branch", "norm"), [(0.01, None), ([0.0] * 1100 + [1.0], None), ([0.0] * 1100 + [1.0], "rms")]
)
def test_very_deep_networks(branch: Any, norm: str | None) -> None:
    """No pass goes deeper into calls with each block."""
    found = sample_gram(ResNet([2, 2, 1], 1101, branch=branch, norm=norm), X[:1], 1, y=[0.0], hidden=True)
    assert np.isfinite(found.dK).all()
    assert found.hidden.shape == (1, 1102, 1, 1)


def test_threads_do_not_change_the_numbers() -> None:
    net = ResNet([2, 300, 1], 3, norm="rms")
    one, two = (sample_gram(net, X, 300, seed=1, y=TARGETS[:, 0], threads=threads) for threads in (1, 2))
    assert one.identical(two)
    assert kernel_matrix_sampler(net, X).chunk_size < 300

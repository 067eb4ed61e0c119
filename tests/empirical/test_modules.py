"""Torch modules of a network: their weights, kernel and learning rates are what the network says, by brute force."""

from __future__ import annotations

import numpy as np
import pytest

import finwidth
from finwidth import MLP, Activation, SmoothActivation
from finwidth.empirical.reference.brute_force import draw_networks, kernel_matrix
from finwidth.networks.activations import ACTIVATIONS
from stats import same_mean

torch = pytest.importorskip("torch")
nn = torch.nn
empirical = finwidth.empirical

X = np.array([[0.4, -0.5, 0.2], [1.0, 2.0, -1.0], [-0.3, 0.1, 0.9], [0.0, 0.0, 0.0]])

NETWORKS = {
    "ntk": MLP([3, 5, 4, 1]),
    "ntk, gains": MLP([3, 5, 4, 1], "uniform", gains=(1, 3, 0.5), bias_variance=1),
    "standard": MLP([3, 5, 4, 1], parameterization="standard", bias_variance=0.25),
    "mup": MLP([3, 5, 4, 1], parameterization="mup", bias_variance=(1, 0, 2)),
    "mup, one layer": MLP([3, 1], parameterization="mup", bias_variance=1),
    "PyTorch": MLP.pytorch([3, 4, 4, 4, 1]),
    "two slopes": MLP([3, 5, 4, 1], "laplace", Activation("steep", -0.5, 2), bias_variance=1),
    "leaky": MLP([3, 5, 4, 1], activation="leaky_relu", parameterization="mup"),
    "abs": MLP([3, 5, 4, 1], activation="abs"),
    "linear": MLP([3, 5, 4, 1], "smoothed-rademacher", "linear"),
    "tanh": MLP([3, 5, 4, 1], activation="tanh", parameterization="standard"),
    "erf": MLP([3, 5, 4, 1], activation="erf", bias_variance=1),
    "gelu": MLP([3, 5, 4, 1], activation="gelu", parameterization="mup"),
    "silu": MLP([3, 5, 4, 1], activation="silu"),
    "frozen": MLP([3, 5, 4, 1], bias="frozen", bias_variance=1),
    "no biases": MLP([3, 5, 4, 1], bias="none"),
    "several outputs": MLP([3, 5, 4, 3], bias_variance=1),
    "several outputs, mup": MLP([3, 5, 4, 2], parameterization="mup", bias_variance=1),
    "scaled biases": MLP([3, 5, 4, 1], bias_variance=1, bias_scale=0.1),
    "scales by layer": MLP([3, 5, 4, 1], parameterization="standard", bias_variance=1, bias_scale=(0.5, 2, 0)),
    "biases by layer": MLP([3, 5, 4, 1], bias=("frozen", "trained", "none"), bias_variance=(1, 0.5, 0)),
    "mup, base widths": MLP([3, 5, 4, 1], parameterization="mup", bias_scale=0.5, base_widths=(3, 2, 8, 1)),
}
BY_ACTIVATION = {f"activation {name}": MLP([3, 5, 4, 1], activation=name) for name in ACTIVATIONS}


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.mark.parametrize("name", NETWORKS | BY_ACTIVATION)
def test_kernel_is_the_brute_force_one(name: str) -> None:
    net = (NETWORKS | BY_ACTIVATION)[name]
    for seed in range(3):
        module = empirical.MLP(net, seed)
        right = kernel_matrix(net, *draw_networks(net, 1, np.random.default_rng(seed)), X)
        output = right["output"][0].reshape(len(X), net.widths[-1])
        assert np.allclose(module(torch.tensor(X)).detach(), output, rtol=1e-10, atol=1e-12)
        trained = list(module.scale)
        parts = {"K": trained} | {
            f"K_{kind[0]}": [p for p in trained if p.endswith(kind)] for kind in ("weight", "bias")
        }
        for part, parameters in parts.items():
            if not parameters:
                assert not right[part].any()
                continue
            K = empirical.ntk(module, X, outputs="full", scale=module.scale, parameters=parameters)
            assert np.allclose(K, right[part][0].reshape(K.shape), rtol=1e-10, atol=1e-10), part


@pytest.mark.parametrize(("name", "other"), [("ntk", "standard"), ("standard", "mup"), ("mup", "ntk")])
def test_another_parameterization_is_another_kernel(name: str, other: str) -> None:
    net = NETWORKS[name]
    wrong = empirical.MLP(MLP(net.widths, parameterization=other), 1)
    right = kernel_matrix(net, *draw_networks(net, 1, np.random.default_rng(1)), X)["K"][0]
    assert not np.allclose(empirical.ntk(wrong, X, outputs=0, scale=wrong.scale), right, rtol=1e-3)


@pytest.mark.parametrize("name", [name for name in NETWORKS if "one layer" not in name])
def test_sgd_on_the_parameter_groups_moves_at_the_rates_of_the_network(name: str) -> None:
    """One step of torch's optimizer moves W_hat by -lr c dL/dW_hat and b_hat by -lr e dL/db_hat, for any loss."""
    net, lr = NETWORKS[name], 0.01
    module = empirical.MLP(net, 5)
    weights, biases = draw_networks(net, 1, np.random.default_rng(5))
    effective = [torch.tensor(each[0], requires_grad=True) for each in (*weights, *biases)]
    y = torch.tensor(X)
    for i, (W, b) in enumerate(zip(effective[: net.depth], effective[net.depth :], strict=True)):
        y = (module[1](y) if i else y) @ W.T + b
    gradients = torch.autograd.grad(y.cos().sum(), effective, allow_unused=True, materialize_grads=True)
    optimizer = torch.optim.SGD(module.parameter_groups(lr), lr=1.0)
    module(torch.tensor(X)).cos().sum().backward()
    optimizer.step()
    linears = [layer for layer in module if isinstance(layer, nn.Linear)]
    for i, (layer, what) in enumerate(zip(linears, net.layers, strict=True)):
        moved = effective[i] - lr * float(what.weight_multiplier) * gradients[i]
        assert torch.allclose(getattr(layer, "factor", 1.0) * layer.weight, moved, rtol=1e-10, atol=1e-12)
        if layer.bias is not None:
            moved = effective[net.depth + i] - lr * float(what.bias_multiplier) * gradients[net.depth + i]
            assert torch.allclose(getattr(layer, "bias_scale", 1.0) * layer.bias, moved, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("name", ["ntk", "mup", "PyTorch"])
def test_fresh_modules_have_the_exact_mean(name: str) -> None:
    """Their kernels by batches of products, which test_ensemble.py holds against the Jacobian's."""
    net = NETWORKS[name]
    exact = finwidth.moments(net, X[1])
    K = empirical.Ensemble(net, 20_000, seed=52).kernels(X[1:2], 0)[:, 0, 0].numpy()
    assert same_mean(K, float(exact.mean), float(exact.variance))
    assert not same_mean(K, 1.3 * float(exact.mean), float(exact.variance))


@pytest.mark.slow
def test_ntk_of_fresh_modules_has_the_exact_mean() -> None:
    """The same one by one, by `ntk`."""
    net = NETWORKS["mup"]
    exact = finwidth.moments(net, X[1])
    rng = np.random.default_rng(52)
    modules = [empirical.MLP(net, rng) for _ in range(4_000)]
    K = np.array([float(empirical.ntk(each, X[1:2], outputs=0, scale=each.scale)) for each in modules])
    assert same_mean(K, float(exact.mean), float(exact.variance))
    assert not same_mean(K, 2 * float(exact.mean), float(exact.variance))


def test_module_is_an_ordinary_torch_module() -> None:
    state = torch.random.get_rng_state()
    module = empirical.MLP(MLP([3, 5, 2], bias="frozen", bias_variance=1), 3, dtype=torch.float32)
    assert torch.equal(torch.random.get_rng_state(), state)  # torch's own generator is left alone
    assert {each.dtype for each in module.parameters()} == {torch.float32}
    assert [name for name, each in module.named_parameters() if each.requires_grad] == list(module.scale)
    again = empirical.MLP(MLP([3, 5, 2], bias="frozen", bias_variance=1), 4, dtype=torch.float32)
    again.load_state_dict(module.state_dict())
    assert torch.equal(again(torch.ones(1, 3)), module(torch.ones(1, 3)))
    assert module(torch.ones(7, 4, 3)).shape == (7, 4, 2)


def test_a_seed_fixes_the_weights() -> None:
    net = NETWORKS["ntk"]
    one, same, other = (empirical.MLP(net, seed)[0].weight for seed in (1, np.random.default_rng(1), 2))
    assert torch.equal(one, same)
    assert not torch.equal(one, other)


def test_users_bring_their_own_activation() -> None:
    sine = SmoothActivation("sin", np.sin, np.cos)
    net = MLP([3, 5, 1], activation=sine)
    module = empirical.MLP(net, 1, activation=torch.sin)
    right = kernel_matrix(net, *draw_networks(net, 1, np.random.default_rng(1)), X)["K"][0]
    assert np.allclose(empirical.ntk(module, X, outputs=0), right, rtol=1e-10, atol=1e-10)
    with pytest.raises(finwidth.FinwidthError, match="torch's form of it is not known"):
        empirical.MLP(net)
    with pytest.raises(finwidth.FinwidthError, match="is not the network's activation 'sin'"):
        empirical.MLP(net, activation=torch.cos)


def test_users_name_the_module_that_torch_has() -> None:
    def net(name: str) -> MLP:
        phi = SmoothActivation(
            "softplus", lambda y: np.logaddexp(0, y), lambda y: 1 / (1 + np.exp(-y)), torch_module=name
        )
        return MLP([3, 5, 1], activation=phi)

    right = kernel_matrix(net("Softplus"), *draw_networks(net("Softplus"), 1, np.random.default_rng(1)), X)["K"][0]
    assert np.allclose(empirical.ntk(empirical.MLP(net("Softplus"), 1), X, outputs=0), right, rtol=1e-6, atol=1e-6)
    for name, message in {
        "SoftPlus": "which torch.nn does not have",
        "Parameter": "which torch.nn does not have",
        "Softsign": "torch.nn.Softsign is not the network's activation 'softplus'",
        "Linear": "torch.nn.Linear raises TypeError",
    }.items():
        with pytest.raises(finwidth.FinwidthError, match=message):
            empirical.MLP(net(name))


def test_derivatives_at_zero_are_those_of_the_activation() -> None:
    zero = torch.zeros(1, dtype=torch.float64, requires_grad=True)
    for phi in [
        *map(finwidth.networks.activations.activation, ("relu", "leaky_relu", "linear", "abs")),
        NETWORKS["two slopes"].activation,
    ]:
        (slope,) = torch.autograd.grad(finwidth.empirical.modules.mlp.activation_module(phi)(zero), zero)
        assert slope.item() == float(phi.at_zero), phi.name


@pytest.mark.parametrize("seed", [-1, 0.5, "one"])
def test_a_seed_is_a_whole_number(seed: int) -> None:
    with pytest.raises(finwidth.FinwidthError, match="give a whole number"):
        empirical.MLP(MLP([2, 3, 1]), seed)

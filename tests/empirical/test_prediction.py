"""Training at a fixed kernel in closed form: against the equation, torch, and training of wide networks."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from scipy.integrate import solve_ivp

import finwidth
from finwidth.errors import FinwidthError

torch = pytest.importorskip("torch")
from torch import nn  # noqa: E402

from finwidth.empirical import KernelOperator, linearise, ntk, predict  # noqa: E402
from finwidth.empirical.kernel import gradients as _gradients  # noqa: E402
from programs import PROGRAMS, Body, perceptron  # noqa: E402

gradients: Any = _gradients  # in which a test puts something else
Tensor = Any
N, P, OUTPUTS = 6, 4, 2
KINDS = ["full", "diagonal", "trace"]


def data(seed: int = 0) -> tuple[nn.Module, Tensor, Tensor, Tensor]:
    torch.manual_seed(seed)
    return perceptron(3, 8, OUTPUTS).double(), *(
        torch.randn(*shape).double() for shape in ((N, 3), (P, 3), (N, OUTPUTS))
    )


def all_pairs(K: Any) -> Any:
    """The kernel as (N, N, OUTPUTS, OUTPUTS), whatever its kind."""
    if K.ndim == 4:
        return K
    return np.einsum(
        "abi,ij->abij", np.broadcast_to(K.reshape(*K.shape[:2], -1), (*K.shape[:2], OUTPUTS)), np.eye(OUTPUTS)
    )


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("ridge", [0.0, 0.3])
def test_flow_and_descent_are_those_of_the_equation(kind: str, ridge: float) -> None:
    """a' = -(K + r) a + y - f0, integrated step by step, and the same in steps of gradient descent."""
    module, X, T, y = data()
    K, K_test = ntk(module, X, outputs=kind).numpy(), ntk(module, T, X, outputs=kind).numpy()
    f0, f0_test = module(X).detach().numpy(), module(T).detach().numpy()
    pairs, pairs_test, rest = all_pairs(K), all_pairs(K_test), y.numpy() - f0

    def slope(a: Any) -> Any:
        return rest - np.einsum("abij,bj->ai", pairs, a) - ridge * a

    times = [0.1, 1.0, 7.0]
    solved = solve_ivp(
        lambda _, a: slope(a.reshape(N, OUTPUTS)).ravel(),
        (0, 7),
        np.zeros(N * OUTPUTS),
        t_eval=times,
        rtol=1e-11,
        atol=1e-12,
    )
    found = predict(K, y, K_test, t=[0, *times], ridge=ridge, f0=f0, f0_test=f0_test)
    for i, a in enumerate([np.zeros((N, OUTPUTS)), *solved.y.T.reshape(3, N, OUTPUTS)]):
        assert np.allclose(found.coefficients[i], a, atol=1e-8)
        assert np.allclose(found.output[i], f0 + np.einsum("abij,bj->ai", pairs, a), atol=1e-8)
        assert np.allclose(found.probe_output[i], f0_test + np.einsum("abij,bj->ai", pairs_test, a), atol=1e-8)
        assert float(found.loss[i]) == pytest.approx(float(((found.output[i] - y.numpy()) ** 2).sum()) / 2)
    a = np.zeros((N, OUTPUTS))
    for _ in range(25):
        a = a + 0.01 * slope(a)
    found = predict(K, y, steps=25, lr=0.01, ridge=ridge, f0=f0)
    assert np.allclose(found.coefficients, a, rtol=1e-12, atol=1e-14)
    assert found.output.dims == ("input", "component")
    assert int(found.step) == 25


@pytest.mark.parametrize("kind", KINDS)
def test_regression_by_products(kind: str) -> None:
    module, X, T, y = data()
    K, K_test = ntk(module, X, outputs=kind), ntk(module, T, X, outputs=kind)
    right = predict(K, y, K_test, ridge=0.3, f0=module(X).detach(), f0_test=module(T).detach())
    weights = np.linalg.solve(
        all_pairs(K.numpy()).transpose(0, 2, 1, 3).reshape(N * OUTPUTS, N * OUTPUTS) + 0.3 * np.eye(N * OUTPUTS),
        (y - module(X)).detach().numpy().ravel(),
    )
    assert np.allclose(right.coefficients.to_numpy().ravel(), weights)
    one, other = KernelOperator(module, X, outputs=kind), KernelOperator(module, T, X, kind)
    found = predict(one, y, other, ridge=0.3, f0=module(X).detach(), f0_test=module(T).detach())
    for name in ("output", "probe_output", "coefficients", "loss"):
        assert np.allclose(found[name], right[name], atol=1e-6)
    with pytest.raises(FinwidthError, match="with a KernelOperator t is infinite"):
        predict(one, y, t=1.0)


def test_torch_trains_a_linear_model_as_predicted() -> None:
    """Features that are not linear in the inputs, a model that is linear in its parameters: exact at every step."""
    torch.manual_seed(1)
    features = perceptron(3, 20, 5).double().requires_grad_(False)
    module = nn.Sequential(features, nn.Linear(5, OUTPUTS).double())
    X, T, y = (torch.randn(*shape).double() for shape in ((N, 3), (P, 3), (N, OUTPUTS)))
    K, K_test = ntk(module, X), ntk(module, T, X)
    steps = [0, 1, 10, 300]
    found = predict(K, y, K_test, steps=steps, lr=0.02, f0=module(X).detach(), f0_test=module(T).detach())
    wrong = predict(K, y, t=[0.02 * n for n in steps], f0=module(X).detach())  # the flow, which is another thing
    optimizer = torch.optim.SGD(module[1].parameters(), lr=0.02)
    for step in range(301):
        if step in steps:
            i = steps.index(step)
            assert np.allclose(module(X).detach(), found.output[i], rtol=0, atol=1e-10)
            assert np.allclose(module(T).detach(), found.probe_output[i], rtol=0, atol=1e-10)
            assert step == 0 or not np.allclose(module(X).detach(), wrong.output[i], rtol=0, atol=1e-6)
        optimizer.zero_grad()
        ((module(X) - y) ** 2).sum().div(2).backward()
        optimizer.step()


def test_wide_networks_are_predicted_in_law() -> None:
    """The error of the prediction falls as 1/width, at inputs that are trained and at one that is not."""
    X = np.array([[1.0, 0.3], [-0.5, 1.0], [0.2, -1.0]])
    errors = []
    for width in (100, 2000):
        net = finwidth.MLP([2, width, width, 1], activation="tanh", parameterization="ntk")
        options: dict[str, Any] = {"steps": 20, "lr": 0.1, "draws": 20, "seed": 3}
        run = finwidth.train(net, X[:2], [0.5, -0.5], probe=X, record=[0, 20], **options)
        off = []
        for draw in range(20):
            K, start = run.K[draw, 0].to_numpy(), run.probe_output[draw, 0].to_numpy()
            found = predict(K[:2, :2], [0.5, -0.5], K[2:, :2], steps=20, lr=0.1, f0=start[:2], f0_test=start[2:])
            trained = run.probe_output[draw, 1].to_numpy()
            assert np.abs(trained[:2] - start[:2]).max() > 0.01  # it did learn
            off.append(np.abs(trained - np.concatenate([found.output, found.probe_output])).max())
        errors.append(np.mean(off))
    assert errors[1] < 0.003
    assert 10 < errors[0] / errors[1] < 40


def test_wide_torch_networks_are_predicted() -> None:
    """The same for modules, whose weights are drawn; on the way, where the training inputs are not fitted yet."""
    X, T = torch.tensor([[1.0, 0.3], [-0.5, 1.0], [0.2, -1.0]]).double(), torch.tensor([[0.4, 0.4]]).double()
    y, both = torch.tensor([[0.5], [-0.5], [0.2]]).double(), torch.cat([X, T])
    errors = []
    for width in (32, 2048):
        net, off = finwidth.MLP([2, width, 1], activation="tanh", parameterization="ntk"), []
        for seed in range(15):
            module = finwidth.empirical.MLP(net, seed)
            K, K_test, f = ntk(module, X), ntk(module, T, X), linearise(module)
            found = predict(K, y, K_test, steps=10, lr=0.1, f0=module(X).detach(), f0_test=module(T).detach())
            predicted = np.concatenate([found.output, found.probe_output])
            optimizer = torch.optim.SGD(module.parameters(), lr=0.1)
            for _ in range(10):
                optimizer.zero_grad()
                ((module(X) - y) ** 2).sum().div(2).backward()
                optimizer.step()
            off.append(np.abs(module(both).detach().numpy() - predicted).max())
        assert np.allclose(f(both, f.train(X, y, steps=10, lr=0.1)), predicted, atol=1e-10)
        errors.append(np.median(off))
    assert errors[1] < 1e-3
    assert 20 < errors[0] / errors[1] < 200  # the widths' ratio is 64


# ---- numbers at the ends


def test_a_singular_kernel_and_long_times() -> None:
    """A time of 10^9, and for ever, where y is not in reach: what is reached is the least-squares fit."""
    J = np.random.default_rng(0).standard_normal((5, 2))
    y, K = np.arange(5.0), J @ J.T
    found = predict(K, y, J[:1] @ J.T, t=[1e9, np.inf])
    best, *_ = np.linalg.lstsq(J, y, rcond=None)
    assert np.allclose(found.output, np.broadcast_to(J @ best, (2, 5)))
    assert np.allclose(found.probe_output[1], J[:1] @ best)
    K32 = K.astype(np.float32)
    assert np.allclose(predict(K32, y).output, J @ best, atol=1e-3)


def test_small_rates_lose_no_digits() -> None:
    found = predict([[1.0]], [1.0], steps=[1, 10**6], lr=1e-12).output.to_numpy().ravel()
    assert np.allclose(found, [1e-12, 1e-6 * (1 - 0.5e-6)], rtol=1e-9, atol=0)


def test_large_rates_oscillate_and_diverge() -> None:
    K = [[1.0]]
    assert np.allclose(predict(K, [1.0], steps=[1, 2, 3], lr=1.5).output.to_numpy().ravel(), [1.5, 0.75, 1.125])
    assert np.allclose(predict(K, [1.0], steps=3, lr=3).output, 9)
    with pytest.raises(FinwidthError, match="diverges past a double"):
        predict(K, [1.0], steps=5000, lr=3)


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ({"K": np.eye(3)}, r"K has shape \(3, 3\), and y \(2,\)"),
        ({"K": [[1.0, 2.0], [0.0, 1.0]]}, "not symmetric"),
        ({"K": [[1.0, 2.0], [2.0, 1.0]]}, "a negative eigenvalue"),
        ({"K": "x"}, "give a kernel"),
        ({"t": -1}, "t is -1"),
        ({"t": np.nan}, "t is nan"),
        ({"t": 1, "steps": 1, "lr": 1}, "steps and lr together"),
        ({"steps": 1}, "steps and lr together"),
        ({"steps": 1.5, "lr": 1}, "whole numbers"),
        ({"steps": [1, 1e30], "lr": 0.1}, "whole numbers from 0 to 2"),
        ({"ridge": -1}, "ridge is -1"),
        ({"f0": [1.0, 2.0, 3.0]}, r"f0 has shape \(3,\)"),
        ({"K_test": np.ones((2, 3))}, r"K_test has shape \(2, 3\)"),
    ],
)
def test_mistakes(given: dict[str, Any], told: str) -> None:
    with pytest.raises(FinwidthError, match=told):
        predict(**{"K": np.eye(2), "y": [1.0, 2.0], **given})


# ---- the linearised network


@pytest.mark.parametrize(
    "name", ["residual of a wave equation", "jvp by torch.func", "bag of words", "tied without bias"]
)
def test_linearised_modules(name: str) -> None:
    """Against differences: N(theta + e d) = f(x, e d) + O(e^2); and J M J^T = K."""
    build, inputs = PROGRAMS[name]
    torch.manual_seed(3)
    module, x = build().double(), inputs(5)
    f = linearise(module)
    start = module(x).detach().reshape(5, -1)
    assert torch.allclose(f(x), start, rtol=1e-12)
    d = {key: torch.randn_like(each) for key, each in module.named_parameters()}
    for size, error in ((1e-5, 1e-7),):
        moved = {key: each.detach() + size * d[key] for key, each in module.named_parameters()}
        right = torch.func.functional_call(module, moved, (x.clone(),)).detach().reshape(5, -1)
        along = {key: size * each for key, each in d.items()}
        assert (f(x, along) - right).abs().max() < error < 1e-2 * (right - start).abs().max()
    v = torch.randn_like(start)
    K = ntk(module, x)
    assert torch.allclose(f(x, f.operator(x).to_parameters(v)) - start, torch.einsum("abij,bj->ai", K, v))


@pytest.mark.parametrize("given", [{}, {"t": 0.3}, {"steps": 7, "lr": 0.01, "ridge": 0.2}, {"ridge": 0.1}])
def test_parameters_go_where_functions_go(given: dict[str, Any]) -> None:
    module, X, T, y = data()
    options: dict[str, Any] = {"scale": {"0.weight": 0.3}, "parameters": ["0.weight", "2.weight"]}
    f = linearise(module, **options)
    d = f.train(X, y, **given)
    K, K_test = ntk(module, X, **options), ntk(module, T, X, **options)
    right = predict(K, y, K_test, f0=module(X).detach(), f0_test=module(T).detach(), **given)
    assert set(d) == {"0.weight", "2.weight"}
    assert np.allclose(f(X, d), right.output, atol=1e-9)
    assert np.allclose(f(T, d), right.probe_output, atol=1e-9)
    if "ridge" in given and len(given) == 1:
        d = f.train(X, y, formed=False, **given)
        assert np.allclose(f(T, d), right.probe_output, atol=1e-6)


def test_the_kernel_that_training_forms_is_checked(monkeypatch: pytest.MonkeyPatch) -> None:
    """One of its factors is off by one percent, which products with it do not have."""
    module, X, _, y = data()
    right = linearise(module).train(X, y, t=0.3)
    factor = gradients.factor

    def off(*arguments: Any) -> Any:
        found = factor(*arguments)
        return replace(found, D=found.D * 1.01**0.5)

    monkeypatch.setattr(gradients, "factor", off)
    unchecked, found = (linearise(module, check=check).train(X, y, t=0.3) for check in (False, True))
    assert not any(torch.allclose(unchecked[name], right[name], rtol=1e-5) for name in right)
    assert all(torch.allclose(found[name], right[name], rtol=1e-9) for name in right)


def test_samples_in_another_dimension() -> None:
    module, X, T, y = data()
    f = linearise(Body(lambda m, x: m.net(x.T), net=module), in_dims=1)
    d = f.train(X.T, y, ridge=0.2)
    right = linearise(module).train(X, y, ridge=0.2)
    assert all(torch.allclose(d[f"net.{name}"], right[name]) for name in right)
    assert torch.allclose(f(T.T, d), linearise(module)(T, right))


def test_it_stays_where_it_was_made() -> None:
    module, X, _, y = data()
    f = linearise(module)
    before = f(X)
    with torch.no_grad():
        module.get_parameter("0.weight").mul_(2)
    assert torch.equal(f(X), before)
    assert torch.allclose(f(X, f.train(X, y)), y)
    with pytest.raises(FinwidthError, match=r"'3\.weight' is no parameter that counts"):
        f(X, {"3.weight": y})
    with pytest.raises(FinwidthError, match=r"give finite numbers of shape \(8, 3\)"):
        f(X, {"0.weight": y})
    with pytest.raises(FinwidthError, match="give targets of shape"):
        f.train(X, y[:3])
    with pytest.raises(FinwidthError, match="one time"):
        f.train(X, y, t=[1, 2])  # type: ignore[arg-type]

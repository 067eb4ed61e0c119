"""The kernel as an operator: its products against plain backward passes, what is found by them, and planted faults."""

from __future__ import annotations

import copy
import itertools
import subprocess
import sys
import warnings
from importlib.util import find_spec
from typing import Any

import numpy as np
import pytest
from scipy.linalg import logm
from scipy.sparse import linalg

from finwidth.errors import FinwidthError
from finwidth.progress import watching

torch = pytest.importorskip("torch")
from torch import nn  # noqa: E402

import plain_backward as plain  # noqa: E402
from architectures import ENTRIES, truth  # noqa: E402
from finwidth.empirical import KernelOperator, ntk  # noqa: E402
from finwidth.empirical.matrix_free import estimates, kernel_operator, kernel_product, products  # noqa: E402
from programs import PROGRAMS, Body, perceptron  # noqa: E402

Tensor = Any
SLOWER = {
    "laplacian by torch.func": "double backward",
    "jvp by torch.func": "double backward",
    "weight normalised": "double backward",
    "bag of words": "one by one",
}


def matrix(K: Tensor, outputs: str | int = "full") -> Any:
    """What the operator stands for, from the kernel of all pairs of outputs, shape (N1, N2, O, O)."""
    n, m, o, _ = K.shape
    if outputs == "diagonal":
        K = torch.einsum("abii,ij->abij", K, torch.eye(o).to(K))
    if outputs == "trace":
        return K.diagonal(dim1=2, dim2=3).sum(-1).numpy()
    if isinstance(outputs, int):
        return K[..., outputs, outputs].numpy()
    return K.permute(0, 2, 1, 3).reshape(n * o, m * o).numpy()


def near(one: Any, other: Any, tolerance: float = 1e-10) -> bool:
    return one.shape == other.shape and bool(np.abs(one - other).max() <= tolerance * np.abs(other).max())


def example(o: int = 2, n: int = 7) -> tuple[nn.Module, Tensor]:
    torch.manual_seed(0)
    return perceptron(3, 9, o).double(), torch.randn(n, 3).double()


def cnn() -> tuple[nn.Module, Tensor]:
    torch.manual_seed(1)
    layers = nn.Conv2d(2, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(16, 3)
    module = nn.Sequential(*layers).double()
    module(torch.randn(20, 2, 6, 6).double())  # statistics that are not those of its start
    return module.eval(), torch.randn(6, 2, 6, 6).double()


class Tied(nn.Module):
    """A transformer whose last weight is the table of its embedding."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(9, 8)
        self.layer = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=True)
        self.last = nn.Linear(8, 9, bias=False)
        self.last.weight = self.table.weight

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.layer(self.table(x)))[:, -1]


# ---- products


@pytest.mark.parametrize("name", PROGRAMS)
def test_products_are_those_of_the_kernel(name: str) -> None:
    build, inputs = PROGRAMS[name]
    torch.manual_seed(3)
    module, x = build().double(), inputs(9)
    K, right = KernelOperator(module, x), matrix(plain.kernel(module, x))
    assert K.way == SLOWER.get(name, "forward mode")
    assert near(K @ np.eye(K.shape[1]), right)


@pytest.mark.parametrize("outputs", ["full", "diagonal", "trace", 1])
def test_convolutions_and_outputs(outputs: str | int) -> None:
    module, x = cnn()
    K = KernelOperator(module, x, outputs=outputs)
    right = matrix(plain.kernel(module, x), outputs)
    assert near(K @ np.eye(K.shape[1]), right)
    assert near(K.H @ np.eye(K.shape[1]), right)
    between = KernelOperator(module, x[:4], x[4:], outputs)
    right = matrix(plain.kernel(module, x)[:4, 4:], outputs)
    assert near(between @ np.eye(between.shape[1]), right)
    assert near(between.T @ np.eye(between.shape[0]), right.T)


def test_a_transformer_with_tied_weights() -> None:
    torch.manual_seed(2)
    module, x = Tied().double(), torch.randint(9, (5, 4))
    K = KernelOperator(module, x, outputs="trace")
    assert near(K @ np.eye(5), ntk(module, x, outputs="trace").numpy())
    assert near(K @ np.eye(5), matrix(plain.kernel(module, x), "trace"))


def test_parameters_and_scales() -> None:
    module, x = example()
    given: dict[str, Any] = {"parameters": ["0.weight", "2.bias"], "scale": {"0.weight": 0.3, "2.bias": 0.0}}
    assert near(KernelOperator(module, x, **given) @ np.eye(14), matrix(ntk(module, x, **given)))


def test_a_hook_counts_as_in_backward_passes() -> None:
    """The kernel is that of the gradients that people get; forward mode knows nothing of hooks."""
    module, x = example()
    weight: Tensor = module.get_parameter("0.weight")
    weight.register_hook(lambda g: 2 * g)
    K = KernelOperator(module, x)
    assert K.way == "double backward"
    assert near(K @ np.eye(14), matrix(ntk(module, x)))


def test_tensors() -> None:
    module, x = example()
    K, right, V = KernelOperator(module, x), torch.from_numpy(matrix(ntk(module, x))), torch.randn(7, 2, 3).double()
    flat = V.reshape(14, 3)
    assert torch.allclose(K @ flat, right @ flat)
    assert torch.allclose(K(flat[:, 0]), right @ flat[:, 0])
    assert torch.allclose(K @ V, (right @ flat).reshape(7, 2, 3))
    assert torch.allclose(K @ V[..., 0], (right @ flat[:, 0]).reshape(7, 2))


def test_float32_and_mixed_dtypes() -> None:
    module, x = example()
    right = matrix(ntk(module, x))
    K = KernelOperator(module.float(), x.float())
    assert K.dtype == np.float32
    assert near(K @ np.eye(14), right, 1e-5)
    coarse = KernelOperator(module.bfloat16(), x)
    assert coarse.dtype == np.float32
    assert near(coarse @ np.eye(14), right, 0.1)


def test_blocks_and_few_vectors_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    module, x = example(n=23)
    monkeypatch.setattr(kernel_operator, "_PASS_BYTES", 1)
    K = KernelOperator(module, x, memory="10 kB")
    assert K._inputs_at_once() == 1
    assert K._columns_at_once(100) < 20
    assert near(K @ np.eye(46), matrix(ntk(module, x)))
    with pytest.raises(FinwidthError, match="give at least memory="):
        KernelOperator(module, x, memory="1 kB")


def test_no_kernel_has_to_fit() -> None:
    """40,000 inputs, whose kernel would take 13 GB; of a linear layer it is x.x' + 1."""
    x = torch.randn(40_000, 2, generator=torch.Generator().manual_seed(0)).double()
    v = torch.sin(torch.arange(40_000.0)).double()
    found = KernelOperator(nn.Linear(2, 1).double(), x) @ v
    assert torch.allclose(found, x @ (x.T @ v) + v.sum())


def test_the_module_is_left_as_it_was() -> None:
    module, x = cnn()
    weight = module.get_parameter("0.weight")
    weight.grad = torch.ones_like(weight)
    before, state = copy.deepcopy(module.state_dict()), torch.random.get_rng_state()
    K = KernelOperator(module, x)
    K @ np.ones(18)
    K.eigenpairs(2)
    assert all(torch.equal(each, before[name]) for name, each in module.state_dict().items())
    assert torch.equal(state, torch.random.get_rng_state())
    assert torch.equal(weight.grad, torch.ones_like(weight))
    assert not module.training
    assert not any(part._forward_hooks for part in module.modules())
    assert module.get_parameter("0.bias").grad is None


def test_a_changed_module_is_refused() -> None:
    module, x = example()
    K = KernelOperator(module, x)
    K @ np.ones(14)
    with torch.no_grad():
        module.get_parameter("0.weight").mul_(2)
    with pytest.raises(FinwidthError, match="has changed since the operator was made"):
        K @ np.ones(14)
    assert near(KernelOperator(module, x) @ np.eye(14), matrix(ntk(module, x)))
    K = KernelOperator(module, x)
    module.train(False)
    with pytest.raises(FinwidthError, match="has changed"):
        K @ np.ones(14)


@pytest.mark.parametrize(
    "wrong", [torch.ones(13), torch.ones(14, 2, 2), torch.full((14,), torch.nan), 1j * torch.ones(14)]
)
def test_vectors_that_do_not_fit(wrong: Tensor) -> None:
    module, x = example()
    with pytest.raises(FinwidthError, match="the vector"):
        KernelOperator(module, x) @ wrong


# ---- faults


def test_a_wrong_forward_derivative_is_not_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    module, x = example()
    right, ways = matrix(ntk(module, x)), dict(products.WAYS)
    for i, name in enumerate(ways):
        monkeypatch.setitem(products.WAYS, name, lambda *given, name=name: ways[name](*given) * (1 + 1e-7))
        if i < 2:
            K = KernelOperator(module, x)
            assert K.way == list(ways)[i + 1]
            assert near(K @ np.eye(14), right)
    with pytest.raises(FinwidthError, match="no sample has a gradient of its own"):
        KernelOperator(module, x)


@pytest.mark.parametrize("fault", ["a block of J^T v", "samples of J w exchanged", "a factor", "a row of v"])
def test_planted_faults_are_found(fault: str, monkeypatch: pytest.MonkeyPatch) -> None:
    module, x = example(n=41)
    monkeypatch.setattr(kernel_operator, "_PASS_BYTES", 2**8)
    pulled, pushed, of = (
        products.Jacobian.pulled_back,
        products.Jacobian.pushed_forward,
        kernel_product.KernelProduct.of,
    )

    def without(self: Any, v: Tensor, told: Any) -> Any:
        first = self.blocks[0]
        v = v.clone()
        if len(self.blocks) > 2:
            v[:, first.start : first.stop] = 0
        return pulled(self, v, told)

    def without_a_row(self: Any, v: Tensor, told: Any) -> Any:
        v = v.clone()
        if len(self.x) > 8:
            v[:, 0, 0] = 0
        return pulled(self, v, told)

    def exchanged(self: Any, w: Any, told: Any) -> Tensor:
        found = pushed(self, w, told)
        return torch.cat([found[:, 1:2], found[:, :1], found[:, 2:]], 1) if len(self.x) > 8 else found

    if fault == "samples of J w exchanged":
        monkeypatch.setattr(products.Jacobian, "pushed_forward", exchanged)
    elif fault == "a factor":
        monkeypatch.setattr(kernel_product.KernelProduct, "of", lambda *given: of(*given) * (1 + 1e-6))
    else:
        monkeypatch.setattr(products.Jacobian, "pulled_back", without if fault.startswith("a block") else without_a_row)
    with pytest.raises(FinwidthError, match="is not what its own backward passes say"):
        KernelOperator(module, x) @ np.ones(82)
    KernelOperator(module, x, check=False) @ np.ones(82)


def test_a_rare_sample_that_changes_others_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is neither among the first three nor among those that are looked at when the operator is made."""

    def forward(m: Any, x: Tensor) -> Tensor:
        y = m.net(x)
        return y + y.mean(0) if bool((x > 100).any()) else y

    torch.manual_seed(0)
    module, x = Body(forward, net=perceptron(3, 5, 1)).double(), torch.randn(64, 3).double()
    monkeypatch.setattr(kernel_operator, "_PASS_BYTES", 2**10)
    rows = torch.randperm(64, generator=torch.Generator().manual_seed(0))[:8].tolist()
    x[next(i for i in range(20, 64) if i not in rows)] = 101.0
    K = KernelOperator(module, x)
    with pytest.raises(FinwidthError, match="samples depend on the others of their batch"):
        K @ np.ones(64)


# ---- what is found by products


def test_eigenpairs() -> None:
    module, x = example(n=20)
    K, right = KernelOperator(module, x), matrix(ntk(module, x))
    told: list[int] = []
    found = K.eigenpairs(4, tol=0, progress=told.append)
    assert np.allclose(found.eigenvalue, np.linalg.eigvalsh(right)[::-1][:4], rtol=1e-12)
    assert found.eigenvector.dims == ("input", "output", "number")
    vectors = found.eigenvector.to_numpy().reshape(40, 4)
    assert np.allclose(right @ vectors, vectors * found.eigenvalue.to_numpy(), atol=1e-9)
    assert np.allclose(
        found.residual, np.linalg.norm(right @ vectors - vectors * found.eigenvalue.to_numpy(), axis=0), atol=1e-9
    )
    assert told == sorted(told)
    assert found.attrs["way"] == "forward mode"
    assert near(found.eigenvalue.to_numpy(), K.eigenpairs(4, tol=0).eigenvalue.to_numpy(), 1e-14)
    with pytest.raises(FinwidthError, match="not converged in 5 products"):
        K.eigenpairs(4, products=5)
    with pytest.raises(FinwidthError, match="k is 40, and the kernel has 40 rows"):
        K.eigenpairs(40)
    with pytest.raises(FinwidthError, match="make an operator without x2"):
        KernelOperator(module, x, x).eigenpairs(2)


def test_scipy_takes_it() -> None:
    module, x = example(n=20)
    K, right = KernelOperator(module, x), matrix(ntk(module, x))
    start = np.random.default_rng(0).standard_normal((40, 3))
    values, _ = linalg.lobpcg(K, start, maxiter=200, tol=1e-10)
    assert np.allclose(values, np.linalg.eigvalsh(right)[::-1][:3])
    shifted = K + 2 * linalg.aslinearoperator(np.eye(40))
    assert near(shifted @ np.eye(40), right + 2 * np.eye(40))


def test_solve() -> None:
    module, x = example(n=20)
    K, right = KernelOperator(module, x), matrix(ntk(module, x))
    y = torch.randn(20, 2, 3).double()
    found = K.solve(y, 0.5, tol=1e-11)
    assert isinstance(found, torch.Tensor)
    assert near(found.numpy().reshape(40, 3), np.linalg.solve(right + 0.5 * np.eye(40), y.reshape(40, 3).numpy()), 1e-8)
    flat = K.solve(y.numpy().reshape(40, 3), 0.5, tol=1e-11)
    assert isinstance(flat, np.ndarray)
    assert near(flat, found.numpy().reshape(40, 3), 1e-12)
    assert not np.any(K.solve(np.zeros(40), 0.5))
    with pytest.raises(FinwidthError, match=r"do not converge: after 4 products the residual is .* of y"):
        K.solve(y[:, :, 0], tol=1e-12, products=3)
    with pytest.raises(FinwidthError, match="y has shape"):
        K.solve(y[:4])


def test_the_answer_of_conjugate_gradients_is_looked_at() -> None:
    """A product that is not symmetric leads CG astray; its own residual would not tell."""
    A = np.triu(np.ones((30, 30))) + np.eye(30)
    with pytest.raises(FinwidthError, match="do not converge"):
        estimates.conjugate_gradients(linalg.aslinearoperator(A), 0.0, np.arange(30.0), 1e-10, 200)
    with pytest.raises(FinwidthError, match="the kernel is 0 where y is not; give a ridge="):
        estimates.conjugate_gradients(linalg.aslinearoperator(np.zeros((3, 3))), 0.0, np.ones(3), 1e-5, 200)


def test_trace() -> None:
    module, x = example(n=20)
    for outputs in ("full", "trace", 0):
        K, right = KernelOperator(module, x, outputs=outputs), matrix(ntk(module, x), outputs)
        assert K.trace().value == pytest.approx(np.trace(right), rel=1e-12)
        assert K.trace().se == 0
        assert K.trace("hutch++", products=120).value == pytest.approx(np.trace(right), rel=1e-12)  # all rows
        rough = K.trace("hutchinson", products=60)
        assert 0 < rough.se < np.trace(right)


SIGNS = np.array(list(itertools.product([-1.0, 1.0], repeat=6))).T  # (6, 64), all of them


@pytest.fixture
def dense() -> Any:
    root = np.random.default_rng(0).standard_normal((6, 4))
    return root @ root.T


def test_traces_are_exact_over_all_signs(dense: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """The mean over all vectors of signs is the trace, so the estimates have no bias; another mean has one."""
    K, rng = linalg.aslinearoperator(dense), np.random.default_rng(0)
    monkeypatch.setattr(estimates, "rademacher", lambda M, m, rng: SIGNS if m > 3 else SIGNS[:, :m])
    assert estimates.hutchinson(K, 64, rng).value == pytest.approx(np.trace(dense), rel=1e-13)
    spread = estimates.hutchinson(K, 64, rng).se ** 2 * 64
    assert spread == pytest.approx(64 / 63 * 2 * (np.sum(dense**2) - np.sum(np.diag(dense) ** 2)), rel=1e-12)
    found = estimates.hutch_plus_plus(K, 11, rng)  # three vectors of signs, then all
    assert found.value == pytest.approx(np.trace(dense), rel=1e-13)
    assert found.se < estimates.hutchinson(K, 64, rng).se
    monkeypatch.setattr(estimates, "rademacher", lambda M, m, rng: SIGNS[:, :40] if m > 3 else SIGNS[:, :m])
    assert estimates.hutchinson(K, 64, rng).value != pytest.approx(np.trace(dense), rel=1e-3)


@pytest.mark.parametrize("ridge", [1e-3, 1.0, 100.0])
def test_log_determinant(dense: Any, ridge: float, monkeypatch: pytest.MonkeyPatch) -> None:
    K, right = linalg.aslinearoperator(dense), np.linalg.slogdet(dense + ridge * np.eye(6))[1]
    monkeypatch.setattr(estimates, "rademacher", lambda M, m, rng: SIGNS)
    found = estimates.log_determinant(K, ridge, 64, 6, np.random.default_rng(0))
    assert found.value == pytest.approx(right, rel=1e-9, abs=1e-9)
    assert found.trust


def test_bounds_of_quadrature(dense: Any) -> None:
    """From every number of steps, on both sides, and closer with each."""
    big = np.random.default_rng(1).standard_normal((40, 60))
    A, ridge = big @ big.T, 0.1
    z = np.random.default_rng(2).choice([-1.0, 1.0], (40, 1))
    right = float(np.squeeze(z.T @ logm(A + ridge * np.eye(40)) @ z)) / 40
    lanczos = estimates.Lanczos(linalg.aslinearoperator(A), z)
    gaps = []
    for _ in range(40):
        lanczos.step()
        rule = estimates.LogQuadrature(*lanczos.tridiagonal(0), ridge)
        assert rule.lower <= right + 1e-9
        assert rule.upper >= right - 1e-9
        gaps.append(rule.upper - rule.lower)
    assert gaps[0] > 0.1
    assert gaps[-1] < 1e-9
    assert (np.diff(gaps) < 1e-9).all()


def test_a_log_determinant_that_needs_more_steps_says_so() -> None:
    module, x = example(n=40)
    found = KernelOperator(module, x).logdet(1e-6, steps=3)
    assert not found.trust
    assert "give more steps=" in found.verdict
    with pytest.raises(FinwidthError, match="by rounding the kernel has an eigenvalue"):
        KernelOperator(module.float(), x).logdet(1e-12, steps=80)


def test_progress() -> None:
    module, x = example()
    passed: list[int] = []
    K = KernelOperator(module, x, outputs="trace", progress=passed.append)
    K @ np.ones(7)
    assert passed == sorted(passed)
    assert passed[-1] == 14
    seen: list[tuple[str, int]] = []
    with watching(lambda stage: seen.append((stage.what, stage.done))):
        K.trace("hutchinson", products=12)
    assert seen[-1] == ("trace", 12)


PEAK = """
import sys, torch
from torch import nn
from finwidth.empirical import KernelOperator

def peak():
    return next(int(line.split()[1]) * 1024 for line in open("/proc/self/status") if line.startswith("VmHWM"))

torch.set_num_threads(1)
torch.manual_seed(0)
module = nn.Sequential(nn.Conv2d(3, 32, 3), nn.ReLU(), nn.Conv2d(32, 32, 3), nn.Flatten(), nn.Linear(25088, 10))
few, x, v = torch.randn(4, 3, 32, 32), torch.randn(200, 3, 32, 32), torch.randn(2000, 12)
KernelOperator(module, few, memory="40MB") @ v[:40]
before = peak()
KernelOperator(module, x, memory=sys.argv[1]) @ v
print(peak() - before)
"""


@pytest.mark.slow
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
@pytest.mark.parametrize("memory", [40, 120])
def test_memory_is_kept_to(memory: int) -> None:
    done = subprocess.run([sys.executable, "-c", PEAK, f"{memory}MB"], capture_output=True, text=True, check=True)
    assert int(done.stdout) < memory * 10**6


class OfTwo(nn.Module):
    """Of two arguments, and a number."""

    def __init__(self) -> None:
        super().__init__()
        self.left, self.right, self.last = nn.Linear(3, 8), nn.Linear(2, 8), nn.Linear(8, 2)

    def forward(self, x: Any, y: Any, gain: float = 1.0) -> Any:
        return self.last(torch.tanh(self.left(x) + gain * self.right(y)))


@pytest.mark.parametrize("outputs", ["full", "trace", 1])
def test_several_arguments(outputs: Any) -> None:
    torch.manual_seed(0)
    net, x, y = OfTwo().double(), torch.randn(7, 3).double(), torch.randn(7, 2).double()
    x1, x2 = {"x": x, "y": y, "gain": 2.0}, {"x": x[:4], "y": y[3:], "gain": 2.0}
    right = ntk(net, x1, x2, outputs=outputs)
    right = right.permute(0, 2, 1, 3).reshape(14, 8) if outputs == "full" else right
    K = KernelOperator(net, x1, x2, outputs)
    torch.testing.assert_close(K @ torch.eye(K.shape[1]).double(), right, rtol=1e-10, atol=1e-12)
    y += 1
    with pytest.raises(FinwidthError, match="inputs have; make a new KernelOperator"):
        K @ torch.ones(K.shape[1]).double()


def test_samples_in_another_dimension() -> None:
    net, x = example(n=7)
    turned = Body(lambda m, x: m.net(x.T), net=net)
    K, right = KernelOperator(turned, x.T, x[:4].T, in_dims=1), matrix(ntk(net, x, x[:4]))
    assert near(K @ np.eye(K.shape[1]), right)
    assert KernelOperator(turned, x.T, in_dims=1).trace().value == pytest.approx(np.trace(matrix(ntk(net, x))))


class Residual(nn.Module):
    """A solution u, and the residual -u'' - u^3 of its equation, at every point."""

    def __init__(self) -> None:
        super().__init__()
        self.u = nn.Sequential(nn.Linear(1, 16), nn.Tanh(), nn.Linear(16, 16), nn.Tanh(), nn.Linear(16, 1))

    def forward(self, x: Tensor) -> Tensor:
        x = x.requires_grad_()
        u = self.u(x)
        (slope,) = torch.autograd.grad(u.sum(), x, create_graph=True)
        (second,) = torch.autograd.grad(slope.sum(), x, create_graph=True)
        return torch.cat([u, -second - u**3], dim=1)


def pinn() -> tuple[nn.Module, Tensor]:
    torch.manual_seed(0)
    return Residual().double(), torch.linspace(-1, 1, 4).double()[:, None]


REAL = (
    "torchvision/resnet18",
    "torchvision/VisionTransformer",
    "transformers/ViT",
    "transformers/BERT",
    "transformers/GPT-2",
)


@pytest.mark.parametrize("name", ["PINN", *[pytest.param(each, marks=pytest.mark.slow) for each in REAL]])
def test_real_models_agree_with_their_formed_kernel_and_with_autograd(name: str) -> None:
    """Products, trace and eigenvalues; scales give every parameter the same part, so that no fault can hide."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # those of other libraries
        if name != "PINN" and find_spec(ENTRIES[name].library) is None:
            pytest.skip(f"needs {ENTRIES[name].library}")
        module, x = pinn() if name == "PINN" else ENTRIES[name].subject(4, torch.float64)
        J = truth.jacobians(module, x)
        scales = truth.equal_shares(J)
        right, formed = matrix(truth.kernel(J, scales)), matrix(ntk(module, x, scale=scales))
        K = KernelOperator(module, x, scale=scales)
        V = np.random.default_rng(0).standard_normal((len(right), 3))
        for whole in (right, formed):
            assert near(K @ V, whole @ V, 1e-11)
            assert abs(K.trace().value / np.trace(whole) - 1) < 1e-11
        exact = np.linalg.eigvalsh(right)[::-1][:2]
        np.testing.assert_allclose(K.eigenpairs(2, tol=1e-9).eigenvalue, exact, rtol=1e-9)


def test_the_transpose_while_a_product_is_under_way() -> None:
    net, x = example(n=6)
    asked: list[bool] = []
    found: list[Any] = []

    def ask(_: int) -> None:
        if not asked:
            asked.append(True)
            found.append(K.T @ v)

    K = KernelOperator(net, x[:3], x[3:], progress=ask)
    v, right = np.arange(K.shape[0], dtype=float), matrix(ntk(net, x[:3], x[3:]))
    assert near(K @ v, right @ v)
    assert near(found[0], right.T @ v)


def test_a_dataset_of_pairs_has_its_inputs() -> None:
    torch.manual_seed(0)
    net, x = nn.Linear(3, 1).double(), torch.randn(5, 3).double()
    pairs = torch.utils.data.TensorDataset(x, torch.zeros(5))
    v = torch.randn(5).double()
    torch.testing.assert_close(KernelOperator(net, pairs) @ v, ntk(net, x, outputs=0) @ v)


@pytest.mark.parametrize("outputs", [[0, 1], slice(0, 1), torch.eye(2), lambda output, sample: output])
def test_combinations_of_outputs_are_refused(outputs: Any) -> None:
    with pytest.raises(FinwidthError, match=r"outputs is .*; choose"):
        KernelOperator(nn.Linear(3, 2), torch.ones(4, 3), outputs=outputs)

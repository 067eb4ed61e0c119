"""Torch modules of residual and normalised networks: outputs, kernels and rates, by plain NumPy and by plain torch."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import finwidth
from finwidth import MLP, BalancedResNet, FinwidthError, Norm, ResNet
from finwidth.empirical.reference.residual import draw_residual_networks, residual_kernel
from stats import same_law, same_mean

torch = pytest.importorskip("torch")
functional = torch.nn.functional
empirical = finwidth.empirical

RESIDUAL = {
    "ntk": ResNet([3, 5, 2], 3, [4, 6, 5], skip="sqrt(1/2)", branch=[0.5, 1, 2], bias_variance=0.3),
    "standard": ResNet([3, 5, 1], 2, branch="1/sqrt(depth)", parameterization="standard", bias_variance=0.5),
    "tanh": ResNet([3, 4, 1], 2, activation="tanh", weight_law="uniform", bias=("none", "frozen", "trained", "none")),
    "scaled": ResNet([3, 4, 1], 2, bias_scale=[0.5, 2, 0, 1], bias_variance=1),
}
x = np.array([0.4, -0.5, 1.2])


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.mark.parametrize("name", RESIDUAL)
def test_a_residual_module_is_the_network_of_plain_numpy(name: str) -> None:
    net = RESIDUAL[name]
    for seed in range(3):
        module = empirical.ResNet(net, seed)
        right = residual_kernel(net, draw_residual_networks(net, 1, np.random.default_rng(seed)), x)
        assert np.isclose(float(module(torch.tensor(x))[0].detach()), right["output"][0], rtol=1e-10)
        weights = [name for name in module.scale if name.endswith("weight")]
        for part, names in (("K", list(module.scale)), ("K_w", weights)):
            K = empirical.ntk(module, x[None], outputs=0, scale=module.scale, parameters=names)
            assert np.isclose(float(K), right[part][0], rtol=1e-10), part
        if net.activation.name == "relu" and net.widths[-1] == 1:  # the reference steps on output 0 alone
            dK = empirical.sgd_update(module, x[None], np.zeros((1, 1)), outputs=0, scale=module.scale)
            assert np.isclose(float(dK), right["dK"][0], rtol=1e-8)


def normed(z: Any, norm: Norm, parameters: dict[str, Any] | None = None, name: str = "") -> Any:
    z = z - z.mean(-1, keepdim=True) if norm.kind == "layer" else z
    z = z / (z.square().mean(-1, keepdim=True) + float(norm.epsilon)).sqrt()
    if parameters is None or norm.parameters == "none":
        return z
    z = parameters[f"{name}.weight"] * z
    return z + parameters[f"{name}.bias"] if norm.kind == "layer" else z


NORMS = [
    Norm(kind, position, epsilon=epsilon, parameters=parameters)
    for kind in ("rms", "layer")
    for position in ("before", "after")
    for epsilon, parameters in ((0, "none"), (0.01, "trained"), (0, "trained"), (0.01, "none"))
]


def stirred(module: Any) -> dict[str, Any]:
    """Its parameters, after all have been moved, so that none is at 0 or 1."""
    for each in module.parameters():
        each.data += 0.3 * torch.randn_like(each)
    return dict(module.named_parameters())


@pytest.mark.parametrize("norm", NORMS, ids=str)
def test_normalised_modules_compute_what_the_convention_says(norm: Norm) -> None:
    torch.manual_seed(1)
    X = torch.randn(4, 3, dtype=torch.float64)
    mlp = empirical.MLP(MLP([3, 6, 5, 2], parameterization="standard", activation="tanh", norm=norm))
    p = stirred(mlp)
    h = X
    for i in (0, 3):
        h = h @ p[f"{i}.weight"].T + p[f"{i}.bias"]
        if norm.position == "before":
            h = normed(h, norm, p, str(i + 1)).tanh()
        else:
            h = normed(h.tanh(), norm, p, str(i + 2))
    assert torch.allclose(mlp(X), h @ p["6.weight"].T + p["6.bias"], rtol=1e-12)

    net = ResNet([3, 6, 2], 2, 4, skip=0.5, branch=2, parameterization="standard", activation="tanh", norm=norm)
    module = empirical.ResNet(net)
    p = stirred(module)
    x, pre = X @ p["0.weight"].T + p["0.bias"], norm.position == "before"
    for i in (1, 2) if pre else (1, 3):
        branch, first = f"{i}.branch.", int(pre)
        y = normed(x, norm, p, f"{branch}0") if pre else x
        y = (y @ p[f"{branch}{first}.weight"].T + p[f"{branch}{first}.bias"]).tanh()
        x = 0.5 * x + 2 * (y @ p[f"{branch}{first + 2}.weight"].T + p[f"{branch}{first + 2}.bias"])
        x = x if pre else normed(x, norm, p, str(i + 1))
    x, head = (normed(x, norm, p, "3"), "4") if pre else (x, "5")
    assert torch.allclose(module(X), x @ p[f"{head}.weight"].T + p[f"{head}.bias"], rtol=1e-12)


def test_the_vector_zero_stays_zero() -> None:
    """And a wide range of lengths is normalised alike, where squares would leave a double."""
    for kind in ("rms", "layer"):
        net = MLP([2, 4, 1], norm=kind, bias_variance=0)
        module = empirical.MLP(net)
        inputs = torch.tensor([[0.0, 0.0], [1.0, 2.0], [1e-200, 2e-200], [1e200, 2e200]], dtype=torch.float64)
        found = module(inputs)
        assert float(found[0].detach()) == 0
        assert torch.allclose(found[1:], found[1].expand(3, 1))
        K = empirical.ntk(module, inputs[:2], outputs=0, scale=module.scale)
        assert torch.isfinite(K).all()
        assert float(K[0, 0]) == 1  # of the last bias


def test_balanced_blocks_have_fair_signs_of_their_own() -> None:
    net = BalancedResNet([3, 6, 1], 2, skip=0.5, branch=2, parameterization="standard")
    module = empirical.ResNet(net, 3)
    p, signs = dict(module.named_parameters()), dict(module.named_buffers())
    s = module[0](torch.tensor(x))
    for i in (1, 2):
        phi = functional.relu(signs[f"{i}.branch.0.signs"] * s)
        s = 0.5 * s + 2 * (phi @ p[f"{i}.branch.2.weight"].T + p[f"{i}.branch.2.bias"])
    assert torch.allclose(module(torch.tensor(x)), s @ p["3.weight"].T + p["3.bias"])
    drawn = [b for seed in range(200) for b in empirical.ResNet(net, seed).buffers()]
    assert {float(each) for each in torch.cat(drawn)} == {-1.0, 1.0}
    assert abs(float(torch.stack(drawn).mean())) < 0.15


def test_blocks_without_signs() -> None:
    module = empirical.ResNet(
        BalancedResNet([3, 6, 1], 2, skip=0.5, branch=2, parameterization="standard", signs=False), 3
    )
    assert not dict(module.named_buffers())
    p, s = dict(module.named_parameters()), module[0](torch.tensor(x))
    for i in (1, 2):
        s = 0.5 * s + 2 * (functional.relu(s) @ p[f"{i}.branch.1.weight"].T + p[f"{i}.branch.1.bias"])
    assert torch.allclose(module(torch.tensor(x)), s @ p["3.weight"].T + p["3.bias"])


@pytest.mark.parametrize(
    "net",
    [
        ResNet([3, 6, 1], 2, 4, branch=0.5, bias_variance=0.3),
        BalancedResNet([3, 6, 1], 2, branch="1/sqrt(depth)"),
    ],
    ids=str,
)
def test_members_of_an_ensemble_have_the_exact_mean(net: Any) -> None:
    exact = finwidth.moments(net, x)
    ensemble = empirical.Ensemble(net, 12_000, seed=7)
    member: Any = ensemble.member(3)
    assert torch.equal(member[0].weight, ensemble.parameters["0.weight"][3])
    K = ensemble.kernels(x[None], 0)[:, 0, 0].numpy()
    alone = empirical.ntk(ensemble.member(3), x[None], outputs=0, scale=ensemble.scale)
    assert np.isclose(K[3], float(alone), rtol=1e-12)
    assert same_mean(K, float(exact.mean), float(exact.variance))
    assert not same_mean(K, 1.3 * float(exact.mean), float(exact.variance))


def test_members_of_an_ensemble_are_the_modules_of_its_seeds() -> None:
    for net in (BalancedResNet([3, 6, 1], 2), ResNet([3, 6, 1], 2, norm=Norm("layer", parameters="trained"))):
        ensemble = empirical.Ensemble(net, 3, seed=5)
        seed = np.random.SeedSequence(5).spawn(3)[2]
        alone, member = empirical.ResNet(net, np.random.default_rng(seed)), ensemble.member(2)
        for name, each in alone.state_dict().items():
            assert torch.equal(each, member.state_dict()[name]), name
        found = ensemble.train(torch.eye(3, dtype=torch.float64), [1.0, -1.0, 0.5], steps=10, lr=0.01)
        assert bool((found.loss[:, -1] < found.loss[:, 0]).all())


def test_a_module_of_another_kind_is_told() -> None:
    with pytest.raises(FinwidthError, match=r"empirical\.ResNet cannot make this network: it is a MLP"):
        empirical.ResNet(MLP([3, 4, 1]))


def test_a_normalised_module_has_the_law_of_its_definition() -> None:
    """Kernels over draws of the module, beside those of plain torch networks; another epsilon is rejected."""
    X = torch.tensor(x)[None]

    def plain(epsilon: float) -> Any:
        generator = torch.Generator().manual_seed(11)
        W = [torch.randn(1000, m, n, generator=generator, dtype=torch.float64) for n, m in ((3, 5), (5, 1))]
        W = [(each * v**0.5).requires_grad_() for each, v in zip(W, (2 / 3, 1 / 5), strict=True)]
        y = (W[0] @ torch.tensor(x)[:, None])[..., 0]
        z = normed(y, Norm("rms", epsilon=epsilon)).relu()
        out = (W[1] @ z[..., None]).sum()
        grads = torch.autograd.grad(out, W)
        return sum(g.square().sum((1, 2)) for g in grads).numpy()

    net = MLP([3, 5, 1], parameterization="standard", bias="none", norm=Norm("rms", epsilon=0.1))
    K = empirical.Ensemble(net, 1000, seed=2).kernels(X, 0)[:, 0, 0].numpy()
    assert same_law(K, plain(0.1))
    assert not same_law(K, plain(1.0))

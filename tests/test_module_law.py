"""Any torch module in its own law: draws beside modules that are made afresh, layers in law beside formed ones."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np
import pytest

import finwidth
from finwidth import FinwidthError
from stats import same_law

torch = pytest.importorskip("torch")
nn, functional = torch.nn, torch.nn.functional

DRAWS = 460
in_law: Any = finwidth.in_law


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)
    torch.manual_seed(0)


class Tiny(nn.Module):  # type: ignore[misc, name-defined]
    """Two layers, with biases of nn.Linear's own."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm, self.last = nn.Conv2d(2, 40, 2), nn.BatchNorm2d(40), nn.Linear(40, 2)
        nn.init.kaiming_normal_(self.conv.weight)
        nn.init.kaiming_normal_(self.last.weight)

    def forward(self, x: Any) -> Any:
        return self.last(self.norm(self.conv(x)).relu().mean((-2, -1)))


class BasicBlock(nn.Module):  # type: ignore[misc, name-defined]
    def __init__(self, n: int) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(n, n, 3, padding=1, bias=False), nn.BatchNorm2d(n)
        self.conv2, self.bn2 = nn.Conv2d(n, n, 3, padding=1, bias=False), nn.BatchNorm2d(n)

    def forward(self, x: Any) -> Any:
        return functional.relu(x + self.bn2(self.conv2(functional.relu(self.bn1(self.conv1(x))))))


class SmallResNet(nn.Module):  # type: ignore[misc, name-defined]
    """As torchvision makes them: Kaiming's by fan-out in convolutions, nn.Linear's own in the last layer."""

    def __init__(self, n: int = 12) -> None:
        super().__init__()
        self.stem, self.bn = nn.Conv2d(3, n, 3, padding=1, bias=False), nn.BatchNorm2d(n)
        self.block, self.fc = BasicBlock(n), nn.Linear(n, 5)
        for each in self.modules():
            if isinstance(each, nn.Conv2d):
                nn.init.kaiming_normal_(each.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, x: Any) -> Any:
        x = functional.relu(self.bn(self.stem(x)))
        return self.fc(self.block(x).mean((-2, -1)))


class Transformer(nn.Module):  # type: ignore[misc, name-defined]
    """A pre-norm block with Gaussian weights and biases of 0, over words; the table is torch's own."""

    def __init__(self, n: int = 24) -> None:
        super().__init__()
        self.table = nn.Embedding(11, n)
        self.ln1, self.ln2, self.ln = nn.LayerNorm(n), nn.LayerNorm(n), nn.LayerNorm(n)
        self.qkv, self.out = nn.Linear(n, 3 * n), nn.Linear(n, n)
        self.up, self.down = nn.Linear(n, 2 * n), nn.Linear(2 * n, n)
        self.head = nn.Linear(n, 4, bias=False)
        for each in self.modules():
            if isinstance(each, nn.Linear):
                nn.init.xavier_normal_(each.weight)
                if each.bias is not None:
                    nn.init.zeros_(each.bias)

    def forward(self, x: Any) -> Any:
        h = self.table(x)
        q, k, v = self.qkv(self.ln1(h)).chunk(3, -1)
        h = h + self.out((q @ k.mT / q.shape[-1] ** 0.5).softmax(-1) @ v)
        h = h + self.down(functional.gelu(self.up(self.ln2(h))))
        return self.head(self.ln(h).mean(1))


class Default(nn.Module):  # type: ignore[misc, name-defined]
    """All by reset_parameters: attention, convolution, group norm, a learned slope."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm, self.phi = nn.Conv1d(3, 16, 2), nn.GroupNorm(4, 16), nn.PReLU()
        self.attention, self.last = nn.MultiheadAttention(16, 2, batch_first=True), nn.Linear(16, 3)

    def forward(self, x: Any) -> Any:
        h = self.phi(self.norm(self.conv(x))).mT
        return self.last(self.attention(h, h, h, need_weights=False)[0].mean(1))


class Sequences(nn.Module):  # type: ignore[misc, name-defined]
    """Convolutions of one side, dilated and in groups, with Gaussian weights."""

    def __init__(self) -> None:
        super().__init__()
        self.first: Any = nn.Conv1d(2, 24, 2, padding=1, dilation=2)
        self.second, self.last = nn.Conv1d(24, 18, 2, stride=2, groups=6), nn.Linear(18, 2)
        for each in (self.first, self.second, self.last):
            nn.init.kaiming_normal_(each.weight)
            nn.init.zeros_(each.bias)

    def forward(self, x: Any) -> Any:
        return self.last(self.second(self.first(x).relu()).relu().mean(-1))


CASES: dict[str, tuple[Callable[[], Any], Any]] = {
    "default": (lambda: Default().eval(), torch.linspace(-1, 1, 15).reshape(3, 5)),
    "tiny": (lambda: Tiny().eval(), torch.linspace(-1, 1, 12).reshape(2, 2, 3)),
    "ResNet": (lambda: SmallResNet().eval(), torch.linspace(-1, 1, 48).reshape(3, 4, 4)),
    "transformer": (Transformer, torch.tensor([1, 2, 3, 2])),
    "sequences": (Sequences, torch.linspace(-1, 1, 10).reshape(2, 5)),
}


def plain_kernel(module: Any, x: Any) -> float:
    """K of output 0 by autograd."""
    output = module(x[None])[0, 0]
    return float(sum(each.square().sum() for each in torch.autograd.grad(output, list(module.parameters()))))


@cache
def fresh_kernels(name: str) -> Any:
    """Of modules that are made afresh."""
    make, x = CASES[name]
    torch.manual_seed(77)
    return np.array([plain_kernel(make(), x) for _ in range(DRAWS)])


def slow(*names: str) -> list[Any]:
    """The cases, of which these are in the slow tier."""
    return [pytest.param(name, marks=pytest.mark.slow if name in names else ()) for name in CASES]


@pytest.mark.parametrize("name", slow("default", "ResNet", "sequences"))
def test_layers_drawn_again_have_the_law_of_fresh_modules(name: str) -> None:
    """So that the percentile of a fresh module is uniform; that of one whose last layer is scaled is not."""
    from finwidth import module_law

    make, x = CASES[name]
    module = make()
    law = module_law.law_of_module(module)
    drawn = module_law.kernels_of_draws(law, module_law.one_input(module, x), DRAWS, seed=1)
    fresh = fresh_kernels(name)
    assert same_law(drawn, fresh)
    assert not same_law(drawn, 2 * fresh)


@pytest.mark.parametrize("name", slow("transformer", "ResNet", "default")[1:])
def test_modules_in_law_have_the_law_of_fresh_ones(name: str) -> None:
    from finwidth import module_law
    from finwidth.empirical.modules.redrawing import plan_of

    make, x = CASES[name]
    module = make()
    plan = plan_of(module)

    def kernels(gain: float) -> Any:
        torch.manual_seed(5)
        found = []
        for _ in range(DRAWS):
            each = module_law.made_in_law(module, plan)
            for layer in each.modules():
                if gain != 1 and type(layer).__name__.startswith("MatrixFree"):
                    layer.get_parameter("weight").data.mul_(gain**0.5)
            output = each(x[None])[:, 0]
            found.append(float(finwidth.tangent_kernel(output, each.parameters())))
        return np.array(found)

    fresh = fresh_kernels(name)
    assert same_law(kernels(1), fresh)
    assert not same_law(kernels(2), fresh)


def test_in_law_says_what_it_replaced() -> None:
    module = SmallResNet().eval()
    found = in_law(module)
    assert (
        found.told_in_law
        == "in law: 3 layers; drawn again: 1 layer with default weights, 3 other parts by reset_parameters"
    )
    assert not found.training
    assert isinstance(found.block.conv1, finwidth.MatrixFreeConv2d)
    assert isinstance(module.block.conv1, nn.Conv2d)
    assert not torch.equal(found.fc.weight, module.fc.weight)
    module.scale = nn.Parameter(torch.rand(3))
    assert "as they were: 'scale' (it is drawn otherwise, or trained)" in in_law(module).told_in_law
    attention = nn.Sequential(nn.TransformerEncoderLayer(16, 2, 32, batch_first=True), nn.Linear(16, 2)).eval()
    with pytest.raises(FinwidthError, match="no layer of this module is drawn in law"):
        finwidth.in_law(attention)
    for each in (attention[0].linear1, attention[0].linear2, attention[1]):
        nn.init.kaiming_normal_(each.weight)
        nn.init.zeros_(each.bias)
    found = in_law(attention)
    assert found.told_in_law.startswith("in law: 3 layers; drawn again: ")
    assert "as they were" not in found.told_in_law
    assert found(torch.ones(2, 3, 16)).shape == (2, 3, 2)


def test_shapes_of_any_width() -> None:
    """A ResNet of a width whose weights would not fit; parts without numbers are made."""
    with torch.device("meta"):
        wide = SmallResNet(200_000).eval()
    with pytest.raises(FinwidthError, match="give gains="):
        finwidth.in_law(wide)
    found = finwidth.in_law(wide, gains=2)
    assert found(torch.ones(1, 3, 2, 2)).shape == (1, 5)
    with pytest.raises(FinwidthError, match="gains names 'stemm'"):
        finwidth.in_law(wide, gains={"stemm": 2})
    wide.scale = nn.Parameter(torch.ones(3, device="meta"))
    with pytest.raises(FinwidthError, match="'scale' has no numbers"):
        finwidth.in_law(wide, gains=2)


def test_gains_by_name_and_biases() -> None:
    module = nn.Sequential(nn.Linear(5, 30), nn.ReLU(), nn.Linear(30, 2))
    found: Any = finwidth.in_law(module, gains={"0": 3})
    assert isinstance(found[0], finwidth.MatrixFreeLinear)
    assert found[0].gain == 3
    assert isinstance(found[2], nn.Linear)
    with pytest.raises(FinwidthError, match="a positive number"):
        finwidth.in_law(module, gains=-1)
    reflecting = nn.Sequential(nn.Conv2d(4, 4, 3, padding=1, padding_mode="reflect"))
    with pytest.raises(FinwidthError, match="it does not pad by numbers of zeros"):
        finwidth.in_law(reflecting, gains={"0": 1})


@pytest.mark.parametrize(("make", "words"), [
    (lambda: nn.LazyLinear(2), "'weight' has no shape yet"),
    (lambda: nn.Linear(3, 2, dtype=torch.complex64), "'weight' is complex; only real layers are drawn in law"),
])  # fmt: skip
def test_weights_in_law_are_real_and_have_a_shape(make: Callable[[], Any], words: str) -> None:
    with pytest.raises(FinwidthError, match=words):
        finwidth.in_law(make(), gains=2)


WITHOUT_FORM: dict[str, tuple[Callable[[], Any], str]] = {
    "transposed": (lambda: nn.ConvTranspose2d(3, 4, 3), "'0' (ConvTranspose2d has no form in law)"),
    "volumes": (lambda: nn.Conv3d(3, 40, 3), "'0' (Conv3d has no form in law)"),
    "attention": (lambda: nn.MultiheadAttention(16, 2), "'0' (MultiheadAttention has no form in law)"),
    "words": (lambda: nn.Embedding(9, 16), "'0' (Embedding has no form in law)"),
    "uniform": (lambda: nn.Linear(30, 40), "'0' (its weights are default, not Gaussian)"),
    "padded": (lambda: nn.Conv1d(3, 40, 3, padding="same"), "'0' (it does not pad by numbers of zeros)"),
}


@pytest.mark.parametrize("name", WITHOUT_FORM)
def test_what_has_no_form_in_law_is_told_with_the_way_out(name: str) -> None:
    make, reason = WITHOUT_FORM[name]
    with pytest.raises(FinwidthError) as caught:
        finwidth.in_law(nn.Sequential(make()))
    assert f"no layer of this module is drawn in law: {reason}" in str(caught.value)
    assert "draw it again, or what factory= makes" in str(caught.value)


# ---- compare


def test_compare_places_any_module() -> None:
    make, x = CASES["ResNet"]
    module = make()
    before = {name: each.clone() for name, each in module.state_dict().items()}
    state = torch.random.get_rng_state()
    done: list[int] = []
    found = finwidth.compare(module, x, networks=60, progress=done.append)
    (row,) = found.rows
    assert row.measured == pytest.approx(plain_kernel(module, x), rel=1e-4)
    assert found.draws == 60
    assert found.network is None
    assert "drawn again as its weights tell (3 layers with kaiming (fan_out) gaussian weights" in found.compared
    least, most = row.interval
    assert least < row.percentile < most
    assert done[-1] == 60
    assert torch.equal(torch.random.get_rng_state(), state)  # nothing is left behind
    assert all(torch.equal(each, before[name]) for name, each in module.state_dict().items())
    assert finwidth.compare(module, x, networks=60) == found
    again = finwidth.compare(module, x, networks=60, factory=make)
    assert "networks that factory makes" in again.compared
    assert "does not pass" not in again.compared


def test_an_interrupt_leaves_the_module_and_the_generator() -> None:
    make, x = CASES["default"]
    module = make()
    state = torch.random.get_rng_state()

    def stop(done: int) -> None:
        if done == 3:
            raise KeyboardInterrupt

    before = module.last.weight.clone()
    with pytest.raises(KeyboardInterrupt):
        finwidth.compare(module, x, networks=50, progress=stop)
    assert torch.equal(module.last.weight, before)
    assert torch.equal(torch.random.get_rng_state(), state)


def test_the_interval_is_that_of_a_binomial_share() -> None:
    from finwidth.comparison import _interval

    assert _interval(0, 100) == pytest.approx((0, 100 * (1 - 0.025 ** (1 / 100))))
    assert _interval(100, 100) == pytest.approx((100 * 0.025 ** (1 / 100), 100))
    assert _interval(50, 100) == pytest.approx((39.83, 60.17), abs=0.01)


def test_a_trained_module_is_not_presented_as_a_draw() -> None:
    make, x = CASES["transformer"]
    module = make()
    with torch.no_grad():
        module.up.weight += 0.05
        module.ln.bias += 0.1
    with pytest.raises(
        FinwidthError, match=r"how this module is drawn cannot be told: parameter 'ln\.weight' .*factory="
    ):
        finwidth.compare(module, x, networks=5)
    found = finwidth.compare(module, x, networks=5, factory=make)
    assert "the module itself does not pass for one of them (trained, or drawn otherwise): " in found.compared
    assert "up.weight" in found.compared
    assert "ln.bias" in found.compared


REFUSED: dict[str, tuple[Callable[[], Any], dict[str, Any], str]] = {
    "another architecture": (SmallResNet, {"factory": lambda: SmallResNet(5).eval()}, "makes another architecture"),
    "no module": (SmallResNet, {"factory": lambda: 3}, "it must make a torch module"),
    "no function": (SmallResNet, {"factory": 3}, "factory is 3; give a function without arguments"),
    "training mode": (lambda: SmallResNet().train(), {}, "call module.eval"),
    "raises": (SmallResNet, {"factory": lambda: 1 / 0}, "ZeroDivisionError"),
    "too few weights": (lambda: nn.Sequential(nn.Conv2d(3, 1, 1), nn.Flatten()), {}, "too few to tell"),
    "shape": (SmallResNet, {"x": torch.ones(3)}, "raises"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_compared_is_told(name: str) -> None:
    make, given, words = REFUSED[name]
    module = make()
    module = module if name == "training mode" else module.eval()
    with pytest.raises(FinwidthError, match=words):
        finwidth.compare(module, given.pop("x", torch.ones(3, 4, 4)), networks=5, **given)


def test_a_law_is_told_once() -> None:
    module, net = nn.Linear(3, 1), finwidth.MLP([3, 4, 1])
    for call in (finwidth.compare, finwidth.regime):
        function: Any = call
        with pytest.raises(FinwidthError, match="init and factory both say"):
            function(module, [1, 2, 3], init="default", factory=lambda: nn.Linear(3, 1))
        with pytest.raises(FinwidthError, match="factory is for torch modules"):
            function(net, [1, 2, 3], factory=lambda: nn.Linear(3, 1))


# ---- regime


@pytest.mark.parametrize("name", slow("ResNet", "default", "transformer", "sequences"))
def test_the_regime_of_any_module_is_that_of_its_own_steps(name: str) -> None:
    """Against a loop of torch's own optimizer over modules that are made afresh."""
    make, x = CASES[name]
    found = finwidth.regime(make(), x, draws=150, target=0.5)
    torch.manual_seed(9)
    before, after = [], []
    for _ in range(150):
        module = make()
        before.append(plain_kernel(module, x))
        optimizer = torch.optim.SGD(module.parameters(), lr=found.lr)
        optimizer.zero_grad()
        (0.5 * (module(x[None]) - 0.5).square().sum()).backward()
        optimizer.step()
        after.append(plain_kernel(module, x))
    K, moved = np.array(before), np.abs(np.array(after) - before)
    mean = K.mean()
    assert found.lr == pytest.approx(1 / mean, rel=5 * K.std() / mean / 150**0.5 * 2**0.5)
    movement, error = moved.mean() / mean, moved.std() / mean / 150**0.5
    assert not math.isnan(found.movement)
    assert abs(found.movement - movement) < 6 * math.hypot(error, found.movement_error) + 0.1 * movement
    assert abs(found.cv - K.std() / mean) < 6 * 2**0.5 * found.cv_error
    assert f"of 150 {'networks drawn again'}" in found.advice


class Scaled(nn.Module):  # type: ignore[misc, name-defined]
    """Kernels whose tail is heavy, by the law of one scale."""

    def __init__(self) -> None:
        super().__init__()
        self.last, self.scale = nn.Linear(3, 1), float(torch.rand(()) ** -2)

    def forward(self, x: Any) -> Any:
        return self.scale * self.last(x)


class ByHand(nn.Module):  # type: ignore[misc, name-defined]
    """An RMSNorm without a layer of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Conv1d(2, 30, 2), nn.Linear(30, 1)

    def forward(self, x: Any) -> Any:
        h = self.first(x).mean(-1)
        return self.last((h * torch.rsqrt(h.square().mean(-1, keepdim=True))).relu())


def batch_normalised() -> Any:
    return nn.Sequential(nn.Conv1d(2, 30, 2), nn.BatchNorm1d(30), nn.ReLU(), nn.Flatten(), nn.Linear(30, 1)).eval()


def group_normalised() -> Any:
    return nn.Sequential(nn.Conv1d(2, 30, 2), nn.GroupNorm(3, 30), nn.ReLU(), nn.Flatten(), nn.Linear(30, 1))


HEAVY: dict[str, tuple[Callable[[], Any], Any, str]] = {
    "group norm": (group_normalised, torch.tensor([[1.0, 2.0], [-1.0, 0.5]]), "it normalises (group_norm)"),
    "norm by hand": (ByHand, torch.tensor([[1.0, 2.0], [-1.0, 0.5]]), "it normalises (rsqrt)"),
    "heavy tail": (Scaled, torch.ones(3), "few of the draws carry their mean"),
    "batch norm": (batch_normalised, torch.tensor([[1.0, 2.0], [-1.0, 0.5]]), ""),
}


@pytest.mark.parametrize("name", HEAVY)
def test_medians_tell_of_modules_whose_means_need_not_exist(name: str) -> None:
    make, x, reason = HEAVY[name]
    done: list[int] = []
    found = finwidth.regime(make(), x, draws=60, factory=make, progress=done.append)
    assert done == list(range(1, 121))
    assert found.relative_to == ("median" if reason else "mean")
    assert reason in found.advice
    torch.manual_seed(3)
    K = np.array([plain_kernel(make(), x) for _ in range(400)])
    low, middle, high = np.quantile(K, [0.16, 0.5, 0.84])
    spread = (high - low) / (2 * middle) if reason else K.std() / K.mean()
    assert abs(found.cv - spread) < 6 * found.cv_error
    assert found.lr == pytest.approx(1 / (middle if reason else K.mean()), rel=6 * spread * 1.3 / 60**0.5)
    if name == "heavy tail":  # a control: the mean of draws is far from what they are like
        assert K.mean() > 3 * middle


def test_a_last_layer_that_begins_at_zero_is_told() -> None:
    def make() -> Any:
        module = nn.Sequential(nn.Linear(3, 8, bias=False), nn.Tanh(), nn.Linear(8, 1))
        nn.init.zeros_(module[0].weight)
        nn.init.zeros_(module[2].weight)
        return module

    found = finwidth.regime(make(), torch.ones(3), draws=6, factory=make)
    assert found.cv == 0
    assert "all draws have one kernel up to rounding" in found.advice
    sentence = f"{found.advice[0].upper()}{found.advice[1:]}."
    assert " ".join(str(found).split()).endswith(sentence)
    assert found.advice.startswith("of 6 networks that factory makes")


def test_regime_of_a_recognised_residual_module_is_that_of_its_network() -> None:
    net, x = finwidth.ResNet([4, 16, 1], 2, norm="rms", parameterization="standard"), [1.0, 2.0, 3.0, 4.0]
    assert finwidth.regime(finwidth.empirical.ResNet(net), x, draws=20) == finwidth.regime(net, x, draws=20)


def test_regime_of_a_recognised_module_that_is_not_drawn_in_law_draws_its_network() -> None:
    net = finwidth.ResNet([4, 16, 1], 2, weight_law="uniform", norm="rms", parameterization="standard")
    found = finwidth.regime(finwidth.empirical.ResNet(net), [1.0, 2.0, 3.0, 4.0], draws=20)
    assert "of 20 draws of ResNet 4,16,1 of 2 blocks" in found.advice


def test_regime_by_a_factory_of_modules_in_law() -> None:
    make, x = CASES["ResNet"]
    module = make()
    found = finwidth.regime(module, x, draws=5, factory=lambda: finwidth.in_law(module))
    assert "networks that factory makes" in found.advice
    assert found.movement > 0


def test_a_residual_module_of_several_outputs_has_its_update_placed() -> None:
    """A step on all outputs, as in the exact mean and in the networks that it stands among."""
    net, x = finwidth.ResNet([3, 6, 2], 2, parameterization="standard"), [1.0, -1.0, 0.5]
    rows = {row.quantity: row for row in finwidth.compare(finwidth.empirical.ResNet(net), x, networks=400).rows}
    assert rows["dK"].exact == float(finwidth.moments(net, x).update["dK"])
    assert 0 < rows["dK"].percentile < 100


@pytest.mark.parametrize("networks", [0, -1, 1.5])
def test_numbers_of_networks_are_checked_for_modules_too(networks: Any) -> None:
    module = finwidth.empirical.ResNet(finwidth.ResNet([3, 6, 2], 2))
    with pytest.raises(FinwidthError, match="networks is"):
        finwidth.compare(module, [1.0, -1.0, 0.5], networks=networks)

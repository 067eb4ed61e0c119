"""Numbers of outputs, combinations of them, and functions of output and sample; what fails is found while it runs."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from finwidth.errors import FinwidthError

torch = pytest.importorskip("torch")
from torch import nn  # noqa: E402
from torch.nn import functional  # noqa: E402
from torch.utils import data  # noqa: E402

from finwidth.empirical import explain, ntk, sgd_update  # noqa: E402
from finwidth.empirical.kernel import calls, computation, gradients  # noqa: E402
from plain_rows import close, kernel_of  # noqa: E402

Tensor = Any
N, M = 7, 4


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(6)


def network(kind: str) -> tuple[nn.Module, Tensor]:
    """One by products of layers, one by torch.func, one by passes of few, one by one."""
    x = torch.randn(N, 3).double()
    if kind == "products":
        return nn.Sequential(nn.Linear(3, 6), nn.Tanh(), nn.Linear(6, M)).double(), x
    if kind == "torch.func":
        return nn.Sequential(nn.Flatten(1), Bilinear(), nn.Linear(5, M)).double(), x
    return Recurrent().double(), x


class Bilinear(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Bilinear(3, 3, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x, x)


class Recurrent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer, self.last = nn.LSTM(1, 4, batch_first=True), nn.Linear(4, M)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.layer(x[..., None])[0][:, -1])


KINDS = ["products", "torch.func", "few at once"]


@pytest.mark.parametrize("kind", KINDS)
def test_some_outputs_and_combinations(kind: str) -> None:
    module, x = network(kind)
    right = kernel_of(lambda a: module(x[[a]]), N, module)
    for chosen in ([2, 0], (1,), torch.tensor([3, 3, 1]), range(3)):
        numbers = torch.tensor(list(chosen))
        assert close(ntk(module, x, outputs=chosen), right[:, :, numbers][:, :, :, numbers])
    for some in (slice(1, 3), slice(None, None, 3), slice(-2, None)):
        assert close(ntk(module, x, x[:3], outputs=some), right[:, :3, some, some])
    C = torch.randn(3, M).double()
    combined = torch.einsum("abij,ki,lj->abkl", right, C, C)
    assert close(ntk(module, x, outputs=C), combined)
    assert close(ntk(module, x, outputs=C.tolist(), memory="20KB"), combined)
    assert close(ntk(module, x, outputs=C, entries="diagonal"), torch.einsum("aakl->akl", combined))
    assert close(ntk(module, x, outputs=C[1]), combined[:, :, 1, 1])
    assert close(ntk(module, x, outputs=C[1].numpy(), entries="diagonal"), combined[:, :, 1, 1].diagonal())


@pytest.mark.parametrize("kind", KINDS)
def test_functions_of_output_and_sample(kind: str) -> None:
    module, x = network(kind)
    y = torch.randint(M, (N,))

    def loss(output: Tensor, sample: Tensor) -> Tensor:
        return functional.cross_entropy(output, sample[1], reduction="none")

    def two(output: Tensor, sample: Tensor) -> Tensor:
        return torch.stack([output.logsumexp(1), (output * sample.sum(1, keepdim=True)).sum(1)], 1)

    pairs = data.TensorDataset(x, y)
    right = kernel_of(lambda a: loss(module(x[[a]]), (None, y[[a]])), N, module)[..., 0, 0]
    found = ntk(module, pairs, outputs=loss, labelled=True)
    assert close(torch.from_numpy(found.to_numpy()), right)
    assert (found.dims, found.attrs["outputs"]) == (("input", "input_"), "loss")
    assert close(ntk(module, pairs, outputs=loss, memory="20KB"), right)
    assert close(ntk(module, x, outputs=two), kernel_of(lambda a: two(module(x[[a]]), x[[a]]), N, module))
    assert not close(ntk(module, data.TensorDataset(x, y.flip(0)), outputs=loss), right)


@pytest.mark.parametrize("kind", KINDS)
def test_functions_that_squeeze_a_single_sample(kind: str) -> None:
    """Its outputs come without a dimension of the samples, and are not one number for each of several samples."""
    module, x = network(kind)
    right = ntk(module, x)
    assert close(ntk(module, x[:1], outputs=lambda output, _: output.squeeze()), right[:1, :1])
    assert close(ntk(module, x[:1], outputs=lambda output, _: output.sum(1).squeeze()), right[:1, :1].sum((2, 3)))


def test_mappings_have_logits_or_are_told() -> None:
    module, x = network("products")

    class Wrapped(nn.Module):
        def __init__(self, names: tuple[str, ...]) -> None:
            super().__init__()
            self.module, self.names = module, names

        def forward(self, x: Tensor) -> dict[str, Tensor]:
            return dict(zip(self.names, (self.module(x), x), strict=True))

    right = ntk(module, x)
    assert torch.equal(ntk(Wrapped(("logits", "hidden")), x), right)
    assert torch.equal(ntk(Wrapped(("state", "hidden")), x, outputs=lambda out, _: out["state"]), right)
    with pytest.raises(FinwidthError, match=r"a dict of state, hidden; say which .* outputs=lambda output, sample: o"):
        ntk(Wrapped(("state", "hidden")), x)


def test_labels_and_other_functions() -> None:
    module, x = network("products")
    found = ntk(module, x, outputs=[3, 1], labelled=True)
    assert found.output.to_numpy().tolist() == found.output_.to_numpy().tolist() == [3, 1]
    y = torch.randn(N, M).double()
    C = torch.randn(2, M).double()
    dK = sgd_update(module, x, y)
    assert close(sgd_update(module, x, y, outputs=C), torch.einsum("abij,ki,lj->abkl", dK, C, C))
    assert close(sgd_update(module, x, y, outputs=[1]), dK[:, :, 1:2, 1:2])
    summed = sgd_update(module, x, y, outputs=lambda output, _: output.sum(1))
    assert close(summed, dK.sum((2, 3)))
    assert explain(module, x, outputs=C).kernel_bytes == 8 * N * N * 4


MISTAKES: dict[str, tuple[Any, str]] = {
    "too large": ([0, 4], r"outputs is \[0, 4\], and the module has 4, numbered from 0"),
    "negative": ([-1], "numbered from 0"),
    "too wide": (torch.ones(2, 5), "combines 5 outputs, and the module has 4; give rows of as many"),
    "too short": ([1.0, 2.0], "combines 2 outputs"),
    "none": (slice(4, 9), "chooses none of the module's 4 outputs"),
    "infinite": ([[1.0, 0.0, float("inf"), 0.0]], "not finite"),
    "step": (slice(None, None, -1), "give a slice of whole numbers"),
    "batch": (lambda output, sample: output.sum(), "one row for each sample"),
    "failing": (lambda output, sample: sample["x"], r"outputs= raises"),
    "mixing": (lambda output, sample: output - output.mean(0), "depends on the other samples"),
    "random": (lambda output, sample: output * torch.rand(1), "draws random numbers"),
    "nothing": (lambda output, sample: None, "returns a NoneType"),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_mistakes_are_told_in_one_line(name: str) -> None:
    module, x = network("products")
    outputs, words = MISTAKES[name]
    with pytest.raises(FinwidthError, match=words) as caught:
        ntk(module, x, outputs=outputs)
    assert "\n" not in str(caught.value)


def shifted(rows: Any, some: range, values: Tensor) -> Tensor:
    return SimpleNamespace(right=COTANGENTS(rows, some, values)).right.roll(1, 1)


COTANGENTS, OF = calls.Combinations.cotangents, calls.Combinations.of
FAULTS = {
    "another output": shifted,
    "a coefficient": lambda rows, some, values: COTANGENTS(rows, some, values) * 1.01,
    "the wrong rows": lambda rows, some, values: COTANGENTS(rows, some, values).flip(0),
}


@pytest.mark.parametrize("name", FAULTS)
@pytest.mark.parametrize("outputs", [[1, 3], torch.tensor([[1.0, 0.0, 2.0, 0.5], [0.0, 1.0, 0.0, -1.0]])])
def test_planted_faults_are_found(name: str, outputs: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """By the check, and the general route, which does without, is right."""
    module, x = network("products")
    right = ntk(module, x, outputs=outputs)
    monkeypatch.setattr(calls.Combinations, "cotangents", FAULTS[name])
    assert not close(ntk(module, x, outputs=outputs, check=False), right, 1e-3)
    assert close(ntk(module, x, outputs=outputs), right)
    monkeypatch.setattr(calls.Combinations, "of", lambda rows, values, some: 1.01 * OF(rows, values, some))
    with pytest.raises(FinwidthError, match="a number of the kernel is"):
        ntk(module, x, outputs=outputs)


def test_labels_of_other_samples_are_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """A pass that takes the targets of others is not what backward passes of the module say."""
    module, x = network("products")
    pairs = data.TensorDataset(x, torch.randn(N, M).double())

    def loss(output: Tensor, sample: Any) -> Tensor:
        return (output * sample[1]).sum(1)

    right, given = ntk(module, pairs, outputs=loss), gradients.gradients

    def rotated(network: Any, plan: Any, x: Any, outputs: range, *_: Any) -> Any:
        return given(network, plan, x.like([x.tensors[0], x.tensors[1].roll(1, 0)]), outputs)

    monkeypatch.setattr(computation, "gradients", rotated)
    assert not close(ntk(module, pairs, outputs=loss, check=False), right, 1e-3)
    with pytest.raises(FinwidthError, match="a number of the kernel is"):
        ntk(module, pairs, outputs=loss)

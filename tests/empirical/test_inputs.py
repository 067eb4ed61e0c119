"""Inputs as people have them: several arguments, datasets, loaders, graphs; each against plain backward passes."""

from __future__ import annotations

from collections import UserDict, namedtuple
from collections.abc import Callable
from decimal import Decimal
from typing import Any

import numpy as np
import pytest

from finwidth.errors import FinwidthError

torch = pytest.importorskip("torch")
from torch import nn  # noqa: E402
from torch.nn import functional  # noqa: E402
from torch.utils import data  # noqa: E402

import finwidth  # noqa: E402
from finwidth.empirical import explain, ntk, sgd_update  # noqa: E402
from finwidth.empirical.kernel.inputs import read_batch  # noqa: E402
from plain_rows import close, kernel_of  # noqa: E402

Tensor = Any
N = 6


class Masked(nn.Module):
    """A mean over the tokens that a mask leaves, with a time, attention to what all samples share, and a switch."""

    def __init__(self) -> None:
        super().__init__()
        self.tokens, self.time, self.head = nn.Embedding(9, 5), nn.Linear(1, 5), nn.Linear(5, 2)

    def forward(
        self, words: Tensor, mask: Tensor, time: Tensor, shared: Tensor | None = None, *, doubled: bool = False
    ) -> Tensor:
        weights = mask / mask.sum(1, keepdim=True)
        h = (self.tokens(words) * weights[..., None]).sum(1) + self.time(time[:, None])
        if shared is not None:
            h = h + functional.softmax(h @ shared.T, 1) @ shared
        return self.head(torch.tanh(2 * h if doubled else h))


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(5)


def masked() -> tuple[nn.Module, dict[str, Tensor]]:
    mask = (torch.rand(N, 4) > 0.3).double()
    mask[:, 0] = 1
    given = {"words": torch.randint(9, (N, 4)), "mask": mask, "time": torch.rand(N).double()}
    return Masked().double(), given


def alone(given: dict[str, Tensor], a: int) -> dict[str, Tensor]:
    return {name: each[[a]] for name, each in given.items()}


def test_arguments_by_name_and_by_place() -> None:
    module, given = masked()
    right = kernel_of(lambda a: module(**alone(given, a)), N, module)
    assert close(ntk(module, given), right)
    assert close(ntk(module, UserDict(given)), right)  # such as transformers' BatchEncoding
    assert close(ntk(module, tuple(given.values())), right)
    assert close(ntk(module, namedtuple("Given", given)(**given)), right)
    assert close(ntk(module, {**given, "words": given["words"].numpy()}, memory="20KB"), right)
    assert close(ntk(module, given, {name: each[2:] for name, each in given.items()}), right[:, 2:])
    assert close(ntk(module, given, outputs="trace", entries="diagonal"), torch.einsum("aaii->a", right))
    assert not close(ntk(module, {**given, "time": given["time"].flip(0)}), right)


def test_what_all_samples_share() -> None:
    module, given = masked()
    shared = torch.randn(N, 5).double()  # as many rows as there are samples
    right = kernel_of(lambda a: module(**alone(given, a), shared=shared, doubled=True), N, module)
    whole = {**given, "shared": shared, "doubled": True}
    assert close(ntk(module, whole, in_dims={"shared": None}), right)
    assert close(ntk(module, (*given.values(), shared), in_dims=(0, 0, 0, None)), kernel_of(
        lambda a: module(**alone(given, a), shared=shared), N, module))  # fmt: skip
    with pytest.raises(FinwidthError, match="depends on the other samples"):
        ntk(Body(), {"x": torch.randn(N, 3).double(), "shared": torch.randn(N, 3).double()})


class Body(nn.Module):
    """Uses all of an argument that is said to be of each sample."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(3, 2).double()

    def forward(self, x: Tensor, shared: Tensor) -> Tensor:
        return self.layer(x + shared.mean(0))


class Turned(nn.Module):
    """Takes the samples in the second dimension."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(3, 2).double()

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return torch.tanh(self.layer(x.mean(0))) * y[:, None]


def test_samples_in_another_dimension() -> None:
    module, x, y = Turned(), torch.randn(4, N, 3).double(), torch.randn(N).double()
    right = kernel_of(lambda a: module(x[:, [a]], y[[a]]), N, module)
    for dims in (1, -2):
        assert close(ntk(module, (x, y), in_dims=(dims, 0)), right)
    with pytest.raises(FinwidthError, match=r"x1\[1\] has shape \(6,\), and in_dims is 1 there"):
        ntk(module, (x, y), in_dims=1)


class Pairs(data.Dataset):  # type: ignore[type-arg]
    """Samples and their classes."""

    def __init__(self, x: Tensor, y: Tensor) -> None:
        self.x, self.y = x, y

    def __len__(self) -> int:
        return len(self.x)

    def __getitem__(self, i: int) -> tuple[Tensor, int]:
        return self.x[i], int(self.y[i])


def perceptron() -> tuple[nn.Module, Tensor, Tensor]:
    module = nn.Sequential(nn.Linear(3, 6), nn.Tanh(), nn.Linear(6, 3)).double()
    return module, torch.randn(N, 3).double(), torch.tensor([0, 2, 1, 1, 0, 2])


def many(x: Tensor, y: Tensor) -> dict[str, Any]:
    return {
        "dataset": Pairs(x, y),
        "tensors": data.TensorDataset(x, y),
        "without targets": data.TensorDataset(x),
        "loader": data.DataLoader(Pairs(x, y), batch_size=4),
        "list": [(each, int(c)) for each, c in zip(x, y, strict=True)],
        "list of inputs": list(x),
        "arrays": [each.numpy() for each in x],
        "subset": data.Subset(Pairs(torch.cat([x, x]), torch.cat([y, y])), range(N)),
        "two of everything": data.DataLoader(data.TensorDataset(x), batch_sampler=[[0, 1], [2, 3, 4, 5]]),
    }


@pytest.mark.parametrize("kind", many(torch.zeros(N, 3), torch.zeros(N)))
def test_datasets_and_loaders(kind: str) -> None:
    module, x, y = perceptron()
    given = many(x, y)[kind]
    right = ntk(module, x)
    assert torch.equal(ntk(module, given), right)
    assert close(ntk(module, x[:2], given), right[:2])
    assert explain(module, given).routes == explain(module, x).routes


@pytest.mark.parametrize("doubled", [True, torch.tensor(True)])
def test_what_all_batches_share(doubled: Any) -> None:
    module, given = masked()
    numbers: list[int] = list(range(N))
    loader: data.DataLoader[Any] = data.DataLoader(
        numbers,  # type: ignore[arg-type]
        batch_size=4,
        collate_fn=lambda some: {**{name: each[some] for name, each in given.items()}, "doubled": doubled},
    )
    K = ntk(module, loader)
    assert torch.equal(K, ntk(module, {**given, "doubled": True}))
    assert not close(K, ntk(module, given), 0.01)


def test_targets_of_pairs() -> None:
    module, x, y = perceptron()
    loss = functional.cross_entropy
    found = sgd_update(module, Pairs(x, y), loss=loss)
    assert torch.equal(found, sgd_update(module, x, y, loss=loss))
    tracker = finwidth.empirical.Tracker(module, Pairs(x, y))
    plain = finwidth.empirical.Tracker(module, x, y)
    assert tracker.dataset().drop_attrs().identical(plain.dataset().drop_attrs())
    with pytest.raises(FinwidthError, match="give a tensor of targets, or pairs"):
        sgd_update(module, x, loss=loss)


def test_a_tracker_follows_several_arguments() -> None:
    module, given = masked()
    tracker = finwidth.empirical.Tracker(module, given, torch.arange(1.0, N + 1), kernels=True)
    K = ntk(module, given, outputs="trace")
    assert np.allclose(tracker.dataset().K[0], K, rtol=1e-12)
    other = finwidth.empirical.Tracker(module, {**given, "time": given["time"] + 1})
    assert tracker.dataset().attrs["inputs_sha256"] != other.dataset().attrs["inputs_sha256"]


class Graph:
    """A graph as of PyTorch Geometric: nodes, and edges between them."""

    def __init__(self, x: Tensor, edge_index: Tensor) -> None:
        self.x, self.edge_index = x, edge_index

    def to(self, device: Any) -> Graph:
        return Graph(self.x.to(device), self.edge_index)

    def clone(self) -> Graph:
        return Graph(self.x.clone(), self.edge_index.clone())


class Batch(Graph):
    """Graphs in one, with the number of each node's graph."""

    batch: Tensor
    num_graphs: int

    @classmethod
    def from_data_list(cls, graphs: list[Graph]) -> Batch:
        sizes = torch.tensor([len(each.x) for each in graphs])
        starts = sizes.cumsum(0) - sizes
        edges = [each.edge_index + start for each, start in zip(graphs, starts, strict=True)]
        found = cls(torch.cat([each.x for each in graphs]), torch.cat(edges, 1))
        found.batch, found.num_graphs = torch.arange(len(graphs)).repeat_interleave(sizes), len(graphs)
        return found


class GraphNet(nn.Module):
    """Messages from neighbours, and the mean over the nodes of each graph."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(3, 4).double(), nn.Linear(4, 2).double()

    def forward(self, graphs: Batch) -> Tensor:
        h = self.first(graphs.x)
        h = torch.tanh(h + h.new_zeros(h.shape).index_add(0, graphs.edge_index[1], h[graphs.edge_index[0]]))
        pooled = h.new_zeros(graphs.num_graphs, 4).index_add(0, graphs.batch, h)
        return self.last(pooled / graphs.batch.bincount(minlength=graphs.num_graphs)[:, None])


@pytest.fixture
def graphs(monkeypatch: pytest.MonkeyPatch) -> list[Graph]:
    """Of different sizes; their library is this file."""
    import sys
    from types import SimpleNamespace

    monkeypatch.setattr(Graph, "__module__", "graph_library")
    monkeypatch.setitem(sys.modules, "graph_library", SimpleNamespace(__path__=[]))
    monkeypatch.setitem(sys.modules, "graph_library.data", SimpleNamespace(Batch=Batch))
    sizes = (3, 5, 4, 4, 2, 6)
    return [Graph(torch.randn(n, 3).double(), torch.randint(n, (2, 2 * n))) for n in sizes]


def test_graphs(graphs: list[Graph]) -> None:
    module = GraphNet()
    right = kernel_of(lambda a: module(Batch.from_data_list([graphs[a]])), N, module)
    assert close(ntk(module, graphs), right)
    whole = Batch.from_data_list(graphs)
    whole.to_data_list = lambda: graphs  # type: ignore[attr-defined]
    assert close(ntk(module, whole, outputs="trace"), right.diagonal(dim1=2, dim2=3).sum(-1))
    with pytest.raises(FinwidthError, match=r"no node has a gradient of its own; .* coupled=True"):
        ntk(module, graphs[0])


MISTAKES: dict[str, tuple[Callable[[Tensor, Tensor], Any], str]] = {
    "lengths": (lambda x, y: (x, y[:4]), r"different numbers of samples: x1\[0\] 6, x1\[1\] 4; in_dims="),
    "nothing": (lambda x, y: {}, "no tensor with samples"),
    "numbers": (lambda x, y: {"input": 1.0}, "no tensor with samples"),
    "no samples": (lambda x, y: (x[:0], y[:0]), "no samples; give at least one"),
    "not a number": (lambda x, y: (x / 0 * 0, y), r"x1\[0\] holds numbers that are not finite"),
    "texts": (lambda x, y: (x, ["a"] * 6), r"x1\[1\] is \['a'"),
    "shuffled": (lambda x, y: data.DataLoader(Pairs(x, y), shuffle=True), "shuffles, so that"),
    "weighted": (
        lambda x, y: data.DataLoader(Pairs(x, y), sampler=data.WeightedRandomSampler([1.0] * 6, 6)), "shuffles, so",
    ),
    "endless": (lambda x, y: Endless(), "may have no end; give a list"),
    "endless loader": (lambda x, y: data.DataLoader(Endless()), "DataLoader of an IterableDataset"),
    "triples": (lambda x, y: data.TensorDataset(x, y, y), "have 3 parts; give samples that are inputs, or pairs"),
    "ragged": (lambda x, y: [(x[0], 1), (x[0, :2], 0)], "cannot be joined .* one shape"),
    "ragged batches": (
        lambda x, y: data.DataLoader(
            [torch.ones(2), torch.ones(2), torch.ones(3)], batch_size=2, collate_fn=torch.stack),  # type: ignore[arg-type]
        r"have shapes \(2, 2\), \(1, 3\), which cannot be joined; pad",
    ),
    "unequal batches": (
        lambda x, y: data.DataLoader(
            list(x), batch_size=4, collate_fn=lambda some: {"input": torch.stack(some), "size": len(some)}),  # type: ignore[arg-type]
        r"x1\['size'\] is 4 in one batch and 2 in another, and all samples share it; give a tensor",
    ),
    "empty": (lambda x, y: data.TensorDataset(x[:0]), "no samples; give at least one"),
    "failing": (lambda x, y: Failing(), r"raises KeyError"),
    "arguments": (lambda x, y: (x, y), "takes 2 positional arguments but 3"),
}  # fmt: skip


class Endless(data.IterableDataset):  # type: ignore[type-arg]
    def __iter__(self) -> Any:
        while True:
            yield torch.ones(3)


class Failing(data.Dataset):  # type: ignore[type-arg]
    def __len__(self) -> int:
        return 2

    def __getitem__(self, i: int) -> Tensor:
        raise KeyError(i)


@pytest.mark.parametrize("name", MISTAKES)
def test_mistakes_are_told_in_one_line(name: str) -> None:
    module, x, y = perceptron()
    make, words = MISTAKES[name]
    with pytest.raises(FinwidthError, match=words) as caught:
        ntk(module, make(x, y))
    assert "\n" not in str(caught.value)


def test_other_samples_have_the_same_outputs() -> None:
    with pytest.raises(FinwidthError, match="2 outputs at x1 and 1 at x2"):
        ntk(nn.Linear(2, 2), torch.randn(3, 2), torch.ones(2))
    wide = nn.Sequential(nn.AdaptiveAvgPool1d(3), nn.Linear(3, 2)).double()
    x, longer = torch.randn(2, 5).double(), torch.randn(4, 9).double()
    right = kernel_of(lambda a: wide((x, x, longer, longer)[a][[a % 2]]), 4, wide)
    assert close(ntk(wide, x, longer[:2]), right[:2, 2:])


@pytest.mark.parametrize(
    ("in_dims", "words"),
    [
        ({"mas": None}, "in_dims names 'mas', which is no argument; there are words, mask, time"),
        ((0, 0), "for 3 arguments; give one for each"),
        ("first", "in_dims is 'first' there"),
        (7, "in_dims is 7 there"),
        (None, "no tensor with samples by in_dims"),
    ],
)
def test_dimensions_that_are_none(in_dims: Any, words: str) -> None:
    module, given = masked()
    with pytest.raises(FinwidthError, match=words):
        ntk(module, given, in_dims=in_dims)


@pytest.mark.parametrize(
    "in_dims",
    [torch.ones(2, 2), np.array([1, "x"], object), np.ones((2, 2)), np.zeros(2, "i8,f8"), Decimal("sNaN"), False],
    ids=repr,
)
def test_dimensions_that_cannot_be_compared(in_dims: Any) -> None:
    with pytest.raises(FinwidthError, match=r"x1 has shape \(4, 3\), and in_dims is .* there"):
        ntk(nn.Linear(3, 1), torch.ones(4, 3), in_dims=in_dims)


def test_inputs_are_not_touched() -> None:
    """Not even by a module that works in place, on what samples share too."""
    x, shared = torch.randn(N, 3).double(), torch.ones(3).double()
    before = x.clone()

    class Rough(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(3, 2).double()

        def forward(self, x: Tensor, shared: Tensor) -> Tensor:
            return self.layer(x.mul_(2) + shared.add_(1))

    module = Rough()
    right = kernel_of(lambda a: module(x[[a]].clone(), shared.clone()), N, module)
    assert close(ntk(module, (x, shared), in_dims=(0, None)), right)
    assert torch.equal(x, before)
    assert torch.equal(shared, torch.ones(3))


def test_the_masks_of_a_batch_may_be_infinite() -> None:
    batch = read_batch(nn.Linear(2, 2), (torch.ones(3, 2), torch.tensor([0.0, -torch.inf, 0.0])))
    assert len(batch) == 3
    assert batch.tensors[1].isinf().sum() == 1


@pytest.mark.filterwarnings("ignore")
def test_graphs_of_pytorch_geometric() -> None:
    pytest.importorskip("torch_geometric")
    from torch_geometric.data import Batch, Data
    from torch_geometric.loader import DataLoader
    from torch_geometric.nn import GCNConv, global_mean_pool

    class Pooled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.last = GCNConv(3, 4), nn.Linear(4, 2)

        def forward(self, data: Any) -> Tensor:
            return self.last(global_mean_pool(torch.tanh(self.first(data.x, data.edge_index)), data.batch))

    some = [Data(x=torch.randn(n, 3).double(), edge_index=torch.randint(n, (2, 2 * n))) for n in (3, 5, 4, 4, 2, 6)]
    module = Pooled().double()
    right = kernel_of(lambda a: module(Batch.from_data_list([some[a]])), N, module)
    assert close(ntk(module, some), right)
    assert close(ntk(module, Batch.from_data_list(some), by="layer").sum(0), right)
    assert close(ntk(module, DataLoader(some, batch_size=4)), right)
    nodes = GCNConv(3, 2).double()
    whole = ntk(nodes, (some[1].x, some[1].edge_index), coupled=True)
    assert whole.shape == (5, 5, 2, 2)

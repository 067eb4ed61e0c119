"""Parameters that meet the samples outside of layers: position tables, gains, gates, class tokens, bags of rows."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

torch = pytest.importorskip("torch")
from torch import nn  # noqa: E402
from torch.nn import functional  # noqa: E402

import plain_backward as plain  # noqa: E402
from architectures import truth  # noqa: E402
from finwidth.empirical import explain, ntk, sgd_update  # noqa: E402
from finwidth.empirical.kernel import calls, computation, owners, recording, weights  # noqa: E402
from plain_backward import near  # noqa: E402
from programs import Body, force, linears, normal, perceptron, slope, words  # noqa: E402

Tensor = Any
INDEX = torch.tensor([[0, 1, 2, 2], [1, 0, 1, 2], [2, 1, 0, 1], [2, 2, 1, 0]])  # of places relative to each other
PRODUCTS, PULLED = "products", "pulled back"


class Holder(nn.Module):
    """Parameters of these shapes, p0, p1 and so on, beside layers."""

    def __init__(self, forward: Callable[..., Tensor], *shapes: tuple[int, ...], **layers: nn.Module) -> None:
        super().__init__()
        for i, shape in enumerate(shapes):
            self.register_parameter(f"p{i}", nn.Parameter(torch.randn(shape)))
        for name, layer in layers.items():
            self.add_module(name, layer)
        self.body = forward

    def forward(self, x: Tensor) -> Tensor:
        return self.body(self, x)


def attend(m: Any, x: Tensor, bias: Tensor) -> Tensor:
    """Attention of four places in two heads with a bias on the scores, and a last layer."""
    q, k, v = (each.unflatten(-1, (2, 3)).transpose(1, 2) for each in m.first(x).chunk(3, -1))
    return m.last((torch.softmax(q @ k.mT + bias, -1) @ v).transpose(1, 2).flatten(2)).flatten(1)


def attention(n: int = 5) -> dict[str, nn.Module]:
    return {"first": nn.Linear(n, 18), "last": nn.Linear(6, 1)}


def fused(m: Any, x: Tensor) -> Tensor:
    q, k, v = (each.unflatten(-1, (2, 3)).transpose(1, 2) for each in m.first(x).chunk(3, -1))
    bias = m.p0[INDEX].permute(2, 0, 1)
    attended = functional.scaled_dot_product_attention(q, k, v, attn_mask=bias[None])
    return m.last(attended.transpose(1, 2).flatten(2)).flatten(1)


def classed(m: Any, x: Tensor) -> Tensor:
    tokens = torch.cat([m.p0.expand(len(x), -1, -1), m.first(x)], 1) + torch.cat([m.p1, m.p2])
    return m.last(torch.tanh(tokens).mean(1))


def windows(m: Any, x: Tensor) -> Tensor:
    """Windows are samples of their own for a while, with one bias for all and one for each."""
    parts = torch.tanh(m.first(x.unflatten(1, (2, 2)).flatten(0, 1)) + m.p0)  # (n 2, 2, c)
    parts = parts.unflatten(0, (-1, 2)) * m.p1
    return m.last(parts.flatten(1))


def queries(m: Any, x: Tensor) -> Tensor:
    """Learned queries, flattened with the batch."""
    asked = torch.tanh(m.p0.expand(len(x), 3, 4).flatten(0, 1) @ m.last.weight.T).unflatten(0, (-1, 3))
    return (asked * m.first(x)[:, None]).sum(1)


def tiled(m: Any, x: Tensor) -> Tensor:
    return m.last(torch.tanh(m.first(x).flatten(0, 1) + m.p0.repeat(len(x), 1)).unflatten(0, (-1, 4)).flatten(1))


def interpolated(m: Any, x: Tensor) -> Tensor:
    """A table of 3 x 3 places for images of 5 x 4."""
    table = functional.interpolate(m.p0, (5, 4), mode="bicubic", align_corners=False)
    return m.last(torch.tanh(m.first(x) + table)).flatten(1)


def computed(m: Any, x: Tensor) -> Tensor:
    """The bias is a network of where places are."""
    places = torch.linspace(-1, 1, 4)[:, None].to(x)
    bias = 3 * torch.sigmoid(m.net((places - places.T)[..., None])).permute(2, 0, 1)
    return attend(m, x, bias)


def gated(m: Any, x: Tensor) -> Tensor:
    gate, h = torch.sigmoid(m.p0).view(1, -1, 1, 1), m.first(x)
    return m.last(((1 - gate) * torch.tanh(h) + gate * torch.sin(h)).flatten(1))


def mixed(m: Any, x: Tensor) -> Tensor:
    """Tokens mixed with those before, as RWKV does; powers, maxima, in place."""
    h = torch.lerp(m.first(x), m.first(x).roll(1, 1), m.p0.sigmoid())
    h = torch.addcmul(h, h.sin(), m.p1)
    h = (torch.maximum(h, m.p2).exp() ** (m.p3 / 3).tanh()).clone()
    h += m.p0
    h.mul_(m.p1)
    return m.last(h / (2 + m.p2.cos())).flatten(1)


def masked(m: Any, x: Tensor) -> Tensor:
    return m.last(torch.where(x[..., :1] > 0, m.p0, torch.tanh(m.first(x)))).flatten(1)


def cosine(m: Any, x: Tensor) -> Tensor:
    """A temperature, and weights that are normalised where they are used."""
    return functional.normalize(m.first(x), dim=-1) @ functional.normalize(m.p1, dim=0) * m.p0.exp().clamp(max=20)


def twice(m: Any, x: Tensor) -> Tensor:
    h = m.p0 * m.first(x) + m.p0
    return m.last(torch.tanh(h - m.p0[:2].sum()) / (1 + m.p0**2))


def tied(m: Any, x: Tensor) -> Tensor:
    """A table of words that is that of places too, and the last layer's weight."""
    places = m.table(torch.arange(x.shape[1])) + m.p0 * m.table.weight[[2, 2, 0]]
    return functional.linear(torch.tanh(m.table(x) + places), m.table.weight).flatten(1)


def squeezed(m: Any, x: Tensor) -> Tensor:
    """A gate that depends on the sample, beside one that does not."""
    h = torch.tanh(m.first(x))
    return m.last(h * torch.sigmoid(m.gate(h.mean(1, keepdim=True))) * (1 + torch.tanh(m.p0))).flatten(1)


def moving(m: Any, x: Tensor) -> Tensor:
    """A derivative of a layer with a gain."""
    with torch.enable_grad():
        x = x.detach().requires_grad_()
        return slope(m.last(torch.sin(m.p0 * m.first(x)) + m.p1), x)


def places_first(m: Any, x: Tensor) -> Tensor:
    return m.last(torch.tanh(m.first(x).transpose(0, 1) + m.p0[:, None] * m.p1)).transpose(0, 1).flatten(1)


def of_one(m: Any, x: Tensor) -> Tensor:
    """The gain is a row of what was expanded for all samples."""
    rows = (m.p0 * m.p1).expand(len(x), -1)
    return m.last(torch.tanh(m.first(x) + rows) * rows[0])


def in_a_loop(m: Any, x: Tensor) -> Tensor:
    h = m.first(x)
    return m.last(torch.stack([torch.tanh(each * m.p0) for each in h]))


def sorted_by_size(m: Any, x: Tensor) -> Tensor:
    order = x.sum(1).argsort()
    return (torch.tanh(m.first(x[order])) * m.p0 + m.p1)[order.argsort()]


def own_table(m: Any, x: Tensor) -> Tensor:
    return m.last(torch.tanh(m.p0[x] + m.p1[x - 9])).flatten(1)


def bags(m: Any, x: Tensor) -> Tensor:
    return m.last(torch.tanh(torch.cat([m.sums(x), m.means(x[:, :3]), m.sparse(x)], 1)))


def matrices(m: Any, x: Tensor) -> Tensor:
    return torch.matmul(torch.tanh(x @ m.p0 + m.p1), (m.p2 @ m.p3)).flatten(1)


def bag_layers() -> dict[str, nn.Module]:
    return {
        "sums": nn.EmbeddingBag(9, 2, mode="sum", padding_idx=-4),
        "means": nn.EmbeddingBag(9, 3, padding_idx=2),
        "sparse": nn.EmbeddingBag(9, 2, sparse=True),
        "last": nn.Linear(7, 2),
    }


Case = tuple[Callable[[], nn.Module], Callable[[int], Tensor], dict[str, str]]
CASES: dict[str, Case] = {
    "relative places": (
        lambda: Holder(lambda m, x: attend(m, x, m.p0[INDEX].permute(2, 0, 1)), (3, 2), **attention()),
        normal(4, 5),
        {"p0": PULLED},
    ),
    "relative places, fused": (lambda: Holder(fused, (3, 2), **attention()), normal(4, 5), {"p0": PULLED}),
    "bias of each head": (
        lambda: Holder(lambda m, x: attend(m, x, m.p0), (2, 1, 4), **attention()), normal(4, 5), {"p0": PRODUCTS}
    ),
    "network of places": (
        lambda: Holder(computed, net=perceptron(1, 5, 2), **attention()), normal(4, 5), {"net.0.weight": PULLED}
    ),
    "class token": (
        lambda: Holder(classed, (1, 1, 4), (1, 4), (3, 4), **linears(5, 4, 2)),
        normal(3, 5),
        {"p0": PRODUCTS, "p1": PULLED, "p2": PULLED},
    ),
    "windows": (
        lambda: Holder(windows, (2, 3), (2, 1, 3), first=nn.Linear(5, 3), last=nn.Linear(12, 2)),
        normal(4, 5),
        {"p0": PRODUCTS, "p1": PRODUCTS},
    ),
    "queries": (lambda: Holder(queries, (3, 4), **linears(5, 2, 2) | {"last": nn.Linear(4, 2)}), normal(5), {}),
    "tiled": (
        lambda: Holder(tiled, (4, 3), first=nn.Linear(5, 3), last=nn.Linear(12, 2)), normal(4, 5), {"p0": PRODUCTS}
    ),
    "interpolated": (
        lambda: Holder(interpolated, (1, 2, 3, 3), first=nn.Conv2d(1, 2, 1), last=nn.AdaptiveAvgPool2d(1)),
        normal(1, 5, 4),
        {"p0": PULLED},
    ),
    "gates": (
        lambda: Holder(gated, (3,), first=nn.Conv2d(1, 3, 2), last=nn.Linear(12, 2)), normal(1, 3, 3), {"p0": PULLED}
    ),
    "elementwise": (
        lambda: Holder(mixed, (4,), (3, 4), (), (1,), **linears(5, 4, 1)), normal(3, 5), {"p0": PULLED, "p1": PRODUCTS}
    ),
    "mask token": (lambda: Holder(masked, (4,), **linears(5, 4, 1)), normal(3, 5), {"p0": PRODUCTS}),
    "cosines": (lambda: Holder(cosine, (), (4, 2), first=nn.Linear(5, 4)), normal(5), {"p0": PULLED}),
    "used four times": (lambda: Holder(twice, (4,), **linears(5, 4, 2)), normal(5), {"p0": PULLED}),
    "tied": (
        lambda: Holder(tied, (), table=nn.Embedding(5, 3)),
        lambda n: torch.randint(0, 5, (n, 3)),
        {"p0": PULLED, "table.weight": PULLED},
    ),
    "gate of the sample": (
        lambda: Holder(squeezed, (4,), gate=nn.Linear(4, 4), **linears(5, 4, 1)), normal(3, 5), {"p0": PULLED}
    ),
    "derivative": (lambda: Holder(moving, (4,), (4,), **linears(3, 4, 1)), normal(3), {}),
    "places first": (
        lambda: Holder(places_first, (3, 4), (4,), **linears(5, 4, 1)), normal(3, 5), {"p0": PULLED, "p1": PULLED}
    ),
    "gain of one sample": (lambda: Holder(of_one, (4,), (4,), **linears(5, 4, 2)), normal(5), {}),
    "in a loop": (lambda: Holder(in_a_loop, (4,), **linears(5, 4, 2)), normal(5), {"first.weight": PRODUCTS}),
    "sorted": (lambda: Holder(sorted_by_size, (2,), (2,), first=nn.Linear(5, 2)), normal(5), {}),
    "own table": (
        lambda: Holder(own_table, (9, 3), (9, 3), last=nn.Linear(3, 1)), words(4), {"p0": PRODUCTS, "p1": PRODUCTS}
    ),
    "bags": (lambda: Body(bags, **bag_layers()), words(4), {"sums.weight": PRODUCTS, "sparse.weight": PRODUCTS}),
    "matrices": (
        lambda: Holder(matrices, (5, 4), (4,), (4, 3), (3, 1)), normal(3, 5), {"p0": PRODUCTS, "p2": PULLED}
    ),
}  # fmt: skip


def make(name: str, n: int = 6) -> tuple[nn.Module, Tensor]:
    build, inputs, _ = CASES[name]
    torch.manual_seed(2)
    return build().double(), inputs(n)


@pytest.mark.parametrize("name", CASES)
def test_kernel_is_that_of_plain_autograd(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the check, of every parameter by itself; the check agrees; and in blocks of four, two and one input."""
    module, x = make(name)
    right = plain.kernel(module, x)
    assert near(ntk(module, x), right)
    for parameter, _ in module.named_parameters():
        names = [parameter]
        own = {each: float(each in names) for each, _ in module.named_parameters()}
        part = ntk(module, x, parameters=names, check=False)
        assert near(part, ntk(module, x, scale=own, check=False))
        scaled = truth.kernel(truth.jacobians(module, x), own)
        assert near(part, scaled)
    for size in (4, 2, 1):
        monkeypatch.setattr(computation, "fit_memory", lambda sizes, N, o, size=size: (min(N, size), o))
        assert near(ntk(module, x, check=False), right)
        assert near(ntk(module, x[:3], x[3:], "trace", check=False), right[:3, 3:].diagonal(dim1=2, dim2=3).sum(-1))
    diagonal = right.diagonal(dim1=0, dim2=1).movedim(-1, 0)
    assert near(ntk(module, x, entries="diagonal", check=False), diagonal)


@pytest.mark.parametrize("name", CASES)
def test_routes(name: str) -> None:
    module, x = make(name)
    routes = {each.parameter: each.route for each in explain(module, x).routes}
    assert CASES[name][2].items() <= routes.items()


@pytest.mark.parametrize("name", [each for each in CASES if each != "bags"])
def test_first_change_is_that_of_plain_autograd(name: str) -> None:
    module, x = make(name)
    y = torch.randn(len(x), ntk(module, x[:1]).shape[-1]).double()
    right = plain.update(module, x, y)
    assert near(sgd_update(module, x, y, check=False), right, 1e-5)


def test_a_long_table_is_pulled_back_row_by_row(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(weights, "_LONG", 1)
    module, x = make("tied")
    assert near(ntk(module, x, check=False), plain.kernel(module, x))


def test_a_force_with_a_gain() -> None:
    torch.manual_seed(0)
    gain = Holder(lambda m, x: m.p0 * torch.sin(x), (4,))
    module = Body(force, net=nn.Sequential(nn.Linear(3, 4), gain, nn.Linear(4, 1))).double()
    x = torch.randn(5, 3).double()
    assert near(ntk(module, x, check=False), plain.kernel(module, x))


class Recurrent(nn.Module):
    """The last numbers of a recurrent layer's results."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x)[0].flatten(1)[:, -3:]


RECURRENT: dict[str, Callable[[], nn.Module]] = {
    "LSTM": lambda: nn.LSTM(3, 4, 2, batch_first=True, bidirectional=True),
    "LSTM, projected": lambda: nn.LSTM(3, 4, batch_first=True, proj_size=2),
    "LSTM without biases": lambda: nn.LSTM(3, 4, bias=False, batch_first=True, proj_size=2),
    "GRU": lambda: nn.GRU(3, 4, 2, batch_first=True, bidirectional=True),
    "GRU without biases": lambda: nn.GRU(3, 4, bias=False, batch_first=True),
    "RNN": lambda: nn.RNN(3, 4, batch_first=True),
    "RNN of ReLUs": lambda: nn.RNN(3, 4, 2, nonlinearity="relu", batch_first=True),
}


@pytest.mark.parametrize("name", RECURRENT)
def test_recurrent_layers_are_products_of_layers(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    module, x = Recurrent(RECURRENT[name]()).double(), torch.randn(4, 5, 3).double()
    monkeypatch.setattr(computation.KernelJob, "generalised", lambda *_: pytest.fail("the check fired"))
    J = truth.jacobians(module, x)
    assert near(ntk(module, x), truth.kernel(J, dict.fromkeys(J, 1.0)))
    assert {each.route for each in explain(module, x).routes} == {PRODUCTS}


CELLS = {"LSTM": nn.LSTMCell, "GRU": nn.GRUCell, "RNN": nn.RNNCell}


@pytest.mark.parametrize("name", CELLS)
def test_cells_are_products_of_layers(name: str) -> None:
    class Steps(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.cell = CELLS[name](3, 4)

        def forward(self, x: Tensor) -> Tensor:
            state = None
            for each in x.unbind(1):
                state = self.cell(each, state)
            return state if isinstance(state, torch.Tensor) else torch.cat(state, 1)

    torch.manual_seed(0)
    module, x = Steps().double(), torch.randn(4, 5, 3).double()
    J = truth.jacobians(module, x)
    assert near(ntk(module, x), truth.kernel(J, dict.fromkeys(J, 1.0)))
    assert {each.route for each in explain(module, x).routes} == {PRODUCTS}


@pytest.mark.parametrize("given", ["one", "two", "three"])
@pytest.mark.parametrize("bias", [True, False])
def test_attention_is_made_of_layers(given: str, bias: bool) -> None:
    """Of a sequence to itself the projections are one layer; otherwise they are parts of one weight."""

    class Attending(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.MultiheadAttention(4, 2, bias=bias, batch_first=True)

        def forward(self, x: Tensor) -> Tensor:
            queries, keys = (x, x) if given == "one" else (x[:, :1], x)
            values = x.flip(1) if given == "three" else keys
            return self.layer(queries, keys, values)[0].flatten(1)[:, :3]

    torch.manual_seed(0)
    module, x = Attending().double(), torch.randn(4, 5, 4).double()
    J = truth.jacobians(module, x)
    scales = truth.equal_shares(J)
    assert near(ntk(module, x, scale=scales), truth.kernel(J, scales))
    routes = {each.parameter: each.route for each in explain(module, x).routes}
    assert routes["layer.out_proj.weight"] == PRODUCTS
    assert routes["layer.in_proj_weight"] == (PRODUCTS if given == "one" else PULLED)


def routed(m: Any, x: Tensor) -> Tensor:
    """Tokens of all samples together, each for the expert of the largest score; the last may get none."""
    tokens = m.first(x).flatten(0, 1)
    scores, best = torch.softmax(m.gate(tokens), -1).max(-1)
    found = torch.zeros_like(tokens)
    for i, (up, down) in enumerate(zip(m.p0, m.p1, strict=True)):
        (rows,) = torch.where(best == i)
        hidden = torch.tanh(functional.linear(tokens[rows], up) + m.p2[i])
        found = found.index_add(0, rows, functional.linear(hidden, down) * scores[rows, None])
    return m.last((tokens + found).unflatten(0, x.shape[:2])).mean(1)


def of_experts() -> nn.Module:
    torch.manual_seed(0)
    layers = {"first": nn.Linear(3, 4), "gate": nn.Linear(4, 5), "last": nn.Linear(4, 2)}
    return Holder(routed, (5, 6, 4), (5, 4, 6), (5, 6), **layers).double()


@pytest.mark.parametrize("n", [1, 2, 7])
@pytest.mark.parametrize("outputs", ["full", 1])
def test_rows_of_experts_are_traced_to_their_samples(n: int, outputs: str | int) -> None:
    module, x = of_experts(), torch.randn(n, 3, 3).double()
    J = truth.jacobians(module, x, outputs)
    scales = truth.equal_shares(J)
    right = truth.kernel(J, scales)
    assert near(ntk(module, x, outputs=outputs, scale=scales, check=False).view(right.shape), right)
    routes = {each.parameter: each.route for each in explain(module, x).routes}
    assert routes["p0"] == routes["p1"] == routes["p2"] == "traced"


def test_a_row_of_several_samples_is_not_traced() -> None:
    """Each row of the first layer takes part in the outputs of two samples."""

    def mixed_rows(m: Any, x: Tensor) -> Tensor:
        rows = m.first(x)
        return m.last(torch.tanh(rows + rows.flip(0) * x.sum(1, keepdim=True)))

    module = Holder(mixed_rows, first=nn.Linear(3, 4), last=nn.Linear(4, 2)).double()
    leaves = dict(module.named_parameters())
    with recording.Recorder(leaves) as recorder:
        output = module(torch.randn(4, 3).double())
    network = calls.MeasuredModule(module, leaves, dict.fromkeys(leaves, 1.0), calls.Snapshot(module))
    pass_, _, _ = owners._with_owners(network, recorder.record(output), range(2))
    assert {"first.weight", "first.bias"} <= pass_.others.keys()
    assert not {"last.weight", "last.bias"} & pass_.others.keys()


def test_rows_are_traced_for_groups_and_combinations_of_outputs() -> None:
    module, x = of_experts(), torch.randn(7, 3, 3).double()
    groups = {"some": ["p0", "first.bias", "last.weight"], "others": ["p1", "gate.weight"]}
    rest = [name for name, _ in module.named_parameters() if name not in groups["some"] + groups["others"]]
    J, mix = truth.jacobians(module, x), torch.randn(3, 2).double()
    found = ntk(module, x, outputs=mix, by=groups, check=False)
    for K, names in zip(found, [*groups.values(), rest], strict=True):
        right = truth.kernel(J, {name: float(name in names) for name in J}).view(7, 7, 2, 2)
        assert near(K, torch.einsum("ki,abij,lj->abkl", mix, right, mix))
    squares = ntk(module, x, outputs=lambda output, sample: output**2 * sample[:, 0, :2], check=False)
    weights = 2 * module(x).detach() * x[:, 0, :2]
    whole = truth.kernel(J, dict.fromkeys(J, 1.0)).view(7, 7, 2, 2)
    assert near(squares, torch.einsum("ai,abij,bj->abij", weights, whole, weights))
    assert "traced" in {each.route for each in explain(module, x, outputs=mix).routes}


def test_attention_and_recurrent_layers_have_groups() -> None:
    torch.manual_seed(0)

    class Both(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.steps, self.attend = nn.GRU(3, 4, batch_first=True), nn.MultiheadAttention(4, 2, batch_first=True)

        def forward(self, x: Tensor) -> Tensor:
            hidden = self.steps(x)[0]
            return self.attend(hidden[:, :1], hidden, hidden)[0].flatten(1)[:, :3]

    module, x = Both().double(), torch.randn(4, 5, 3).double()
    J = truth.jacobians(module, x)
    by = {"a": ["steps.weight_hh_l0", "attend.in_proj_bias"], "b": ["attend.in_proj_weight", "steps.bias_ih_l0"]}
    rest = [name for name in J if name not in by["a"] + by["b"]]
    for K, names in zip(ntk(module, x, by=by, check=False), [*by.values(), rest], strict=True):
        assert near(K, truth.kernel(J, {name: float(name in names) for name in J}))

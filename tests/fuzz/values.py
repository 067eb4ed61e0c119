"""Values to call things with: junk of every kind, and for each parameter, by its name, what it takes."""

from __future__ import annotations

import decimal
import math
import random
from collections import deque
from collections.abc import Callable
from decimal import Decimal
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
import xarray as xr
from matplotlib import figure as figures
from torch import nn

import finwidth
from finwidth.networks.activations import ACTIVATIONS, array_namespace
from finwidth.networks.laws import LAWS
from finwidth.networks.mlp import PARAMETERIZATIONS
from finwidth.report import report
from finwidth.sampling.training.losses import LOSSES

Make = Callable[[random.Random], Any]


class Hostile:
    """What raises errors of its own where it is looked at."""

    def __array__(self, *_: Any, **__: Any) -> Any:
        raise RuntimeError("no array")

    def __index__(self) -> int:
        raise OverflowError("no index")

    def __float__(self) -> float:
        raise ZeroDivisionError("no float")

    def __len__(self) -> int:
        return 3

    def __iter__(self) -> Any:
        raise LookupError("no items")


class Plain:
    """Nothing but an object."""


class Text(str):
    """A subclass."""


class Whole(int):
    """A subclass."""


class Raising(nn.Module):
    """A module that cannot be called."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        raise KeyError("no output")


class Other(nn.Module):
    """A module of one parameter that returns something else."""

    def __init__(self, result: Callable[[torch.Tensor], Any]) -> None:
        super().__init__()
        self.result, self.w = result, nn.Parameter(torch.ones(2))

    def forward(self, x: torch.Tensor) -> Any:
        return self.result(x * self.w)


def _raises(*_: Any, **__: Any) -> Any:
    raise ArithmeticError("from the user's function")


NUMBERS: list[Make] = [
    lambda r: r.choice([None, True, False, 0, -1, 1, 2, 3, Whole(2)]),
    lambda r: r.choice([10**30, -(10**30), 2**63, 2**64, 10**400, -(10**5000), Fraction(10**400, 3)]),
    lambda r: r.choice([1.5, -0.0, math.nan, math.inf, -math.inf, 1e308, 5e-324, 1e-320, 1e16, 1j]),
    lambda r: r.choice(
        [Fraction(1, 3), Fraction(2), Decimal("1.5"), Decimal("NaN"), Decimal("sNaN"), Decimal("1E+999")]
    ),
    lambda r: r.choice(
        [np.float32(1.5), np.float16(2), np.int64(3), np.uint8(200), np.bool_(True), np.longdouble(1.5)]
    ),
    lambda r: r.choice(
        [np.complex64(1), np.str_("x"), np.datetime64("2020-01-01"), np.float64("nan"), np.timedelta64(3)]
    ),
]
OTHERS: list[Make] = [
    lambda r: r.choice(["x", "", "relu", "1GiB", "a" * 5000, "nan", "1", "digits:1", "\0", "log", "trace", Text("x")]),
    lambda r: r.choice(
        [b"x", bytearray(b"x"), Ellipsis, slice(3), int, str, object(), Plain(), np, Path("x"), deque()]
    ),
    lambda r: r.choice([set(), {1, 2}, frozenset("ab"), {}, {"a": 1}, {1: 2}, {"weight_law": "x"}, {"gains": None}]),
    lambda r: r.choice(
        [iter([1, 2]), (each for each in (1.0, 2.0)), range(3), range(0), map(int, "12"), enumerate("ab")]
    ),
    lambda r: r.choice([lambda: 1, lambda x: x, lambda *_: None, _raises, print, len, Hostile(), Hostile]),
    lambda r: r.choice([[], [1, 2], (1, 2), ["a", "b"], [None], [math.nan, 1.0], [10**400, 1], [[1], [1, 2]], [[[]]]]),
    lambda r: r.choice([[1, "2"], [1, None], [True, False], [1j, 2], [[1, 2], 3], [Fraction(1, 3), 2], [-1, 0], [0.5]]),
    lambda r: r.choice(
        [[Decimal("1.5"), Decimal("sNaN")], [Plain(), 1], [{}, {}], [np.array(1), 2], [range(2), [1, 2]]]
    ),
    lambda r: ValueError("x") if r.random() < 0.5 else finwidth.FinwidthError("x"),
    lambda r: r.choice(
        [finwidth.MLP([2, 3, 1]), finwidth.moments(finwidth.MLP([2, 1]), [1, 1]), finwidth.MLP, nn.Linear]
    ),
]
ARRAYS: list[Make] = [
    lambda r: r.choice([np.array(3), np.array([]), np.array([1, 2]), np.array([[1.0, 2], [3, 4]]), np.zeros((0, 2))]),
    lambda r: r.choice([np.zeros((2, 2, 2)), np.array([1.5, math.nan]), np.array([math.inf, 1]), np.ones(2, bool)]),
    lambda r: np.array(
        [1, r.choice(["x", "2", None, Fraction(1, 3), 10**400, 1j, Plain(), Decimal("NaN")])], dtype=object
    ),
    lambda r: np.ones(2, r.choice(["c16", "U3", "S2", "M8[s]", "m8[s]", "f2", "u1", "i8,f8", "O"])),
    lambda r: np.ma.masked_array([1.0, 2.0], [False, True]),
    lambda r: r.choice([np.ones((2, 2)), np.full((2, 2), 1e200), np.full((2, 2), 1e-200), np.full((2, 2), np.nan)]),
    lambda r: r.choice(
        [pd.Series([1.0, 2.0]), pd.DataFrame({"a": [1.0, 2.0]}), pd.Series(["a", "b"]), pd.Timestamp(0)]
    ),
    lambda r: r.choice([xr.DataArray([1.0, 2.0]), xr.Dataset({"a": ("b", [1.0])}), xr.Dataset()]),
]
TENSORS: list[Make] = [
    lambda r: torch.ones(
        r.choice([(), (2,), (2, 2), (0, 2), (2, 0), (3, 2, 2)]), dtype=r.choice([torch.float32, torch.float64])
    ),
    lambda r: torch.ones(
        2, 2, dtype=r.choice([torch.int32, torch.bool, torch.complex64, torch.bfloat16, torch.float16, torch.uint8])
    ),
    lambda r: torch.ones(r.choice([(2,), (2, 2)]), requires_grad=True, device=r.choice(["cpu", "meta"])),
    lambda r: torch.eye(2).to_sparse() if r.random() < 0.5 else torch.eye(2).to_sparse_csr(),
    lambda r: torch.quantize_per_tensor(torch.ones(2, 2), 0.1, 0, torch.qint8),
    lambda r: r.choice([torch.float32, torch.int64, torch.device("meta"), torch.Generator(), torch.Size([2])]),
    lambda r: torch.nested.nested_tensor([torch.ones(2), torch.ones(3)]),
    lambda r: torch.full((2, 2), r.choice([math.nan, math.inf, 1e30, 1e-30])),
    lambda r: torch.conj(torch.ones(2, dtype=torch.complex64)),
]
MODULES: list[Make] = [
    lambda r: r.choice([nn.ReLU(), nn.Identity(), nn.Sequential(), Raising(), nn.Dropout(), nn.BatchNorm1d(2)]),
    lambda r: r.choice(
        [nn.Linear(2, 2, device="meta"), nn.LazyLinear(2), nn.Linear(3, 1), nn.Embedding(3, 2), nn.LSTM(2, 2)]
    ),
    lambda r: nn.Linear(2, 1).to(r.choice([torch.bfloat16, torch.float16, torch.complex64])),
    lambda r: Other(
        r.choice([lambda x: None, lambda x: (x, x), lambda x: x.sum(), lambda x: x[:, :0], lambda x: x.long()])
    ),
    lambda r: Other(
        r.choice(
            [
                lambda x: x.detach(),
                lambda x: x / 0,
                lambda x: x.to_sparse(),
                lambda x: x.tolist(),
                lambda x: x.to("meta"),
            ]
        )
    ),
    lambda r: r.choice(
        [nn.Linear(2, 1).requires_grad_(False), nn.Sequential(nn.Flatten(), nn.Softmax(0)), nn.ParameterList()]
    ),
]
JUNK = [NUMBERS, OTHERS, ARRAYS, TENSORS, MODULES]


def junk(r: random.Random, name: str) -> Any:
    """Of any kind."""
    value = r.choice(r.choice(JUNK))(r)
    if name == "progress" and callable(value):  # what it raises passes through, and must be told from our own
        return r.choice([print, _raises])
    return value


def _sin(y: Any) -> Any:
    return array_namespace(y).sin(y)


def _cos(y: Any) -> Any:
    return array_namespace(y).cos(y)


def activations(r: random.Random) -> Any:
    return r.choice(
        [
            *ACTIVATIONS,
            finwidth.Activation("mine", 1, Fraction(1, 4)),
            finwidth.Activation("minus", 1, -0.5, 0),
            finwidth.SmoothActivation("cos", _cos, lambda y: -_sin(y), d2phi=lambda y: -_cos(y)),
            finwidth.SmoothActivation("no second", _sin, _cos),
        ]
    )


def laws(r: random.Random) -> Any:
    signs = finwidth.WeightLaw("signs", (1, 1, 1, 1), lambda rng, shape: rng.choice([-1.0, 1.0], shape))
    few = finwidth.WeightLaw("few moments", (1, 3), lambda rng, shape: rng.standard_normal(shape))
    return r.choice([*LAWS, signs, few])


def widths(r: random.Random) -> list[int]:
    return [2, *[r.choice([1, 2, 3, 8]) for _ in range(r.choice([0, 1, 1, 2, 3]))], r.choice([1, 1, 1, 2])]


def variance(r: random.Random) -> Any:
    return r.choice([0, 0.5, Fraction(1, 3), np.float32(0.25), 1e-20, 1e20])


def kind(r: random.Random) -> dict[str, Any]:
    """Some further arguments of an MLP, with the same in every layer."""
    found: dict[str, Any] = {}
    if r.random() < 0.5:
        found["activation"] = activations(r)
    if r.random() < 0.2:
        found["weight_law"] = laws(r)
    if r.random() < 0.3:
        found["parameterization"] = r.choice(PARAMETERIZATIONS)
    if r.random() < 0.3:
        found["gains"] = r.choice([1, 2.0, Fraction(1, 2), 1e-30, 1e30])
    if r.random() < 0.4:
        found["bias"] = r.choice(["trained", "frozen", "none"])
    if r.random() < 0.3 and found.get("bias") != "none":
        found["bias_variance"] = variance(r)
        found["bias_law"] = laws(r)
    if r.random() < 0.2:
        found["bias_scale"] = variance(r)
    if found.get("parameterization") == "mup" and r.random() < 0.3:
        found["base_widths"] = r.randint(1, 9)
    return found


def kinds_of_networks(r: random.Random) -> type[finwidth.MLP | finwidth.ResNet | finwidth.BalancedResNet]:
    return r.choice([finwidth.MLP, finwidth.ResNet, finwidth.BalancedResNet])


def net(r: random.Random) -> finwidth.MLP:
    return finwidth.MLP(widths(r), **kind(r))


def net_of_any_kind(r: random.Random) -> finwidth.MLP | finwidth.ResNet | finwidth.BalancedResNet:
    if r.random() < 0.5:
        return net(r)
    given = {key: value for key, value in kind(r).items() if key not in {"base_widths", "parameterization"}}
    residual: type[finwidth.ResNet | finwidth.BalancedResNet] = r.choice([finwidth.ResNet, finwidth.BalancedResNet])
    return residual([2, r.choice([1, 2, 8]), r.choice([1, 1, 2])], r.choice([1, 3]), branch=factor(r), **given)


def factor(r: random.Random) -> Any:
    return r.choice([1, 0.5, "sqrt(1/2)", "1/sqrt(depth)", 1e-20, 1e20])


def number(r: random.Random) -> Any:
    return r.choice([0, 1, -2, 0.5, Fraction(1, 3), 1e-200, 1e150, -1e-3, np.float32(1.5), Decimal("0.25"), 10**20])


def vector(r: random.Random) -> Any:
    values = [number(r), number(r)]
    as_is = (
        list,
        tuple,
        lambda v: np.array([float(each) for each in v]),
        lambda v: torch.tensor([float(each) for each in v]),
    )
    return r.choice([[1.0, 2.0], (0, 0), np.array([1, -1]), pd.Series([1.0, 2.0]), r.choice(as_is)(values)])


def matrix(r: random.Random, rows: int | None = None) -> Any:
    m = rows or r.choice([1, 2, 3])
    sizes = r.choice([1.0, 1.0, 1.0, 1e-150, 1e100, 0.0])
    array = np.array([[r.gauss(0, 1), r.choice([0.0, r.gauss(0, 1)])] for _ in range(m)]) * sizes
    return r.choice([array, array, array.tolist(), array.astype(np.float32), torch.tensor(array), pd.DataFrame(array)])


def targets(r: random.Random) -> Any:
    values = [r.choice([1.0, -1.0, 0.5]), -1.0, r.choice([0.0, 2.0])]
    return r.choice([values, np.array(values), torch.tensor(values), [0, 1, 1], np.array(values)[:, None], [1, 1, 1]])


def module(r: random.Random) -> Any:
    width, o = r.choice([1, 3, 16]), r.choice([1, 1, 2])
    phi = r.choice([nn.ReLU, nn.Tanh, nn.GELU, nn.Identity])()
    found: nn.Module = nn.Sequential(nn.Linear(2, width), phi, nn.Linear(width, o, bias=r.random() < 0.8))
    found = r.choice([found, found, nn.Linear(2, o), finwidth.empirical.MLP(finwidth.MLP([2, width, o]))])
    return r.choice([found, found.double(), found.double(), found.to(torch.bfloat16)])


def kernel(r: random.Random) -> Any:
    root = np.array([[r.gauss(0, 1) for _ in range(3)] for _ in range(3)]) * r.choice([1, 1, 0, 1e-170, 1e170])
    K = root @ root.T
    return r.choice([K, K, np.stack([K, K, 0 * K]), K.astype(np.float32), torch.tensor(K), K.tolist()])


def run(r: random.Random) -> Any:
    if r.random() < 0.5:
        return finwidth.train(
            finwidth.MLP([2, 2, 1]), np.eye(2), [1, -1], 2, 0.1, r.choice([1, 3]), bool(r.random() < 0.5)
        )
    tracker = finwidth.empirical.Tracker(module(r).double(), torch.eye(2).double(), r.choice([None, [1.0, -1.0]]))
    tracker.step(r.choice([None, 1.0]))
    return tracker.dataset()


def outputs(r: random.Random) -> Any:
    return r.choice(["full", "trace", "diagonal", 0, 0, 1, np.int64(0)])


def chosen_outputs(r: random.Random) -> Any:
    more = ([0], slice(0, 1), np.eye(1), [1.0], lambda output, sample: output.sum(1), torch.zeros(2, 2), [0, 0])
    return r.choice([outputs(r), r.choice(more)])


def several_inputs(r: random.Random) -> Any:
    x = torch.tensor(np.asarray(matrix(r, 3), dtype=float))
    pairs = torch.utils.data.TensorDataset(x, torch.tensor([0, 1, 1]))
    return r.choice(
        [
            matrix(r),
            matrix(r),
            matrix(r),
            matrix(r),
            matrix(r),
            (x,),
            {"input": x},
            pairs,
            torch.utils.data.DataLoader(pairs),
            list(x),
            (x, x),
            {"x": x},
        ]
    )


def several_modules(r: random.Random) -> Any:
    one = module(r)
    return r.choice([one, one, one, one, one, one, [one, lambda x: 2 * one(x)], {"u": one}])


class Writer:
    """What a SummaryWriter and a run of W&B have."""

    def add_scalar(self, tag: str, value: float, step: int) -> None:
        assert np.isfinite(value), tag

    def log(self, values: dict[str, float]) -> None:
        assert all(map(np.isfinite, values.values())), values

    def define_metric(self, name: str, step_metric: str | None = None) -> None:
        pass


def law_outputs(r: random.Random) -> torch.Tensor:
    layer = finwidth.MatrixFreeLinear(2, r.choice([1, 2, 3]))
    found: torch.Tensor = layer(torch.ones(2, 2))
    return found.squeeze(1) if r.random() < 0.7 else found


CONFIG = {"quantities": ["exact"], "axes": {"depth": [2, 3], "width": [2, 4], "n_0": 2}}


def config(r: random.Random) -> Any:
    found: dict[str, Any] = {**CONFIG, "seed": r.choice([0, 7])}
    found["quantities"] = r.choice([["exact"], ["sampled"], ["exact", "bounds"], ["gram"]])
    if "sampled" in found["quantities"]:
        found["sampled"] = {"draws": 100}
    return found


def one(*values: Any) -> Make:
    return lambda r: r.choice(values)


VALID: dict[str, Make] = {
    "G": lambda r: r.choice([None, kernel(r)]),
    "K": kernel,
    "K_0": kernel,
    "K_test": lambda r: r.choice([None, matrix(r, 3), np.ones((2, 3)), np.ones((1, 3))]),
    "X": matrix,
    "activation": activations,
    "at_zero": one(None, 0, Fraction(1, 4), 1.0),
    "batch": one(None, 1, 2, np.int64(1)),
    "bias": one(True, False, "trained", "frozen", "none"),
    "bias_law": laws,
    "bias_variance": variance,
    "bias_scale": variance,
    "base_widths": one(None, 1, 4, [2, 4, 4, 1], 2.5),
    "biases": one("default", "zeros", "none"),
    "by": one(None, "layer", "module", {"first": "0.weight"}),
    "centred": one(False, True),
    "check": one(True, False),
    "config": config,
    "coupled": one(False, False, False, True),
    "cv": one(0.1, 0.5, 2, Fraction(1, 3), np.float32(0.3), 50.0),
    "d": lambda r: r.choice([None, {}, {"0.weight": torch.ones(3, 2)}]),
    "d2phi": one(None, np.cos),
    "deepest": one(1, 3, 9),
    "depth": one(1, 2, 3, np.int64(4), 9),
    "depths": one([1, 2, 3], range(1, 4), (2,), np.array([1, 4]), {1, 2}),
    "device": one(None, "cpu", torch.device("cpu")),
    "diagonals": lambda r: (
        np.abs(np.array([[r.gauss(0, 1) for _ in range(2)] for _ in range(3)])) * r.choice([1, 0, 1e200])
    ),
    "dilation": one(1, 2, (1, 2)),
    "direction": lambda r: r.choice([{}, {"0.weight": torch.ones(3, 2)}, {"weight": torch.ones(1, 2)}]),
    "groups": one(1, 1, 2, 3),
    "dphi": one(np.cos, lambda y: -np.sin(y)),
    "draws": one(1, 2, 50, np.int64(20)),
    "dtype": one(torch.float64, torch.float32),
    "eigenvalues": lambda r: np.abs(np.array([r.gauss(0, 1) for _ in range(3)])) * r.choice([1, 1e200, 1e-200, 0]),
    "entries": one("full", "diagonal"),
    "even_moments": one((1, 3, 15, 105), (1, 1), [1, Fraction(9, 5)], (1.0, 2.5), np.array([1.0, 3.0])),
    "exact": one(True, False, None),
    "f0": one(0, 0.5, [1.0, -1.0, 0.5]),
    "f0_test": one(0, 0.5, [1.0, -1.0]),
    "figure": lambda r: finwidth.plots.law_of_kernel(np.array([1.0, 2.0, 3.0]), 2.0, 2.0),
    "findings": one((), []),
    "folder": one("report", Path("report")),
    "formed": one(True, False),
    "found": run,
    "gain": one(1, 2.0, Fraction(1, 2), np.float32(2)),
    "gains": one(None, 1, 2.0, Fraction(1, 2), [1], [1, 2], (1, 2, 1.5), np.array([1.0, 2.0])),
    "given": activations,
    "here": lambda r: r.choice([None, net(r)]),
    "i": one(0),
    "id": one("lemma-9", "theorem-1", "figure-1", "definition-1"),
    "in_channels": one(1, 2, 3),
    "in_dims": one(0, 0, 0, 0, None, (0,), {"input": 0}),
    "in_features": one(1, 2, np.int64(3)),
    "infinite_width": number,
    "init": one(None, None, "default", "kaiming_normal", {"gains": 1}, {"weight_law": "uniform"}),
    "input_width": one(1, 2, 5),
    "inputs": lambda r: matrix(r, 3),
    "k": one(1, 2, np.int64(1)),
    "kernel_size": one(1, 2, (1, 2)),
    "kernels": one(True, False),
    "kinds": one("w", "b", "wb", "ww"),
    "labelled": one(True, False),
    "law": laws,
    "log": one(None, lambda step, values: None),
    "loss": one(*LOSSES),
    "lr": one(0.01, 0.1, Fraction(1, 100), np.float32(0.1), 1e-3, 1e3, None),
    "mean": number,
    "memory": one("1GiB", "100 MB", 10**8, 1e9, None),
    "method": one("by hand"),
    "module": module,
    "momentum": one(0, 0.5, Fraction(1, 2)),
    "name": one("mine", "x"),
    "negative": one(0, 1, -1, 0.5, Fraction(1, 4), np.float32(0.5)),
    "net": net,
    "networks": one(1, 2, 5),
    "input_norm": one(1, 0.5, 0, 1e-10, 1e10, Fraction(1, 3)),
    "norm2": one(1, Fraction(1, 3), 0, 10**30),
    "one": kernel,
    "order": one(2, 3, 4),
    "other": kernel,
    "out_channels": one(1, 2, 3),
    "out_features": one(1, 2, np.int64(3)),
    "output": one("out.zarr", Path("out.zarr")),
    "outputs": outputs,
    "padding": one(0, 1, (0, 1)),
    "parameterization": one(*PARAMETERIZATIONS),
    "parameters": one(None, lambda name, each: True, lambda name, each: "weight" in name),
    "parts": one([], ["a.zarr"], ["a.zarr", "b.zarr"]),
    "path": one("some.nc", Path("other.nc")),
    "phi": one(np.sin, np.tanh),
    "points": one(3, 5, 6),
    "positive": one(1, 2, 0, 0.5, Fraction(1, 4), np.float32(0.5)),
    "prefix": one("ntk", "k"),
    "probe": lambda r: r.choice([None, matrix(r)]),
    "probe_targets": one(None, [1.0, -1.0, 0.5]),
    "probes": one(2, 5),
    "products": one(12, 100),
    "progress": one(None, lambda done: None),
    "quantity": one("K", "K_w", "K_b", "K^2", "dK", "D_ww"),
    "record": one("log", [0, 1], (1,), {1}, range(2), 1),
    "ridge": one(0, 0.5, 1e-3, Fraction(1, 3), 1e10),
    "run": run,
    "runs": lambda r: [run(r), run(r)],
    "sample": one(lambda rng, shape: rng.standard_normal(shape)),
    "scale": one(None, lambda name, each: 2.0, lambda name, each: 0),
    "scheduler": one(None),
    "seed": one(0, 1, 2**70, np.int64(5)),
    "share": one(None, 0.05, 1),
    "start": one(0),
    "statements": one((), []),
    "stem": one(Path("figure"), "figure"),
    "steps": one(1, 2, np.int64(3)),
    "store": one(None, "store.zarr", Path("other.zarr")),
    "stride": one(1, 2, (1, 2)),
    "t": one(None, 0, 1.5, [0, 1, math.inf], math.inf, 1e300),
    "target": one(1.0, 0, -0.5, Fraction(1, 3), np.float32(2)),
    "targets": lambda r: r.choice([None, targets(r)]),
    "tol": one(0, 1e-6, 1e-3),
    "text": one("2,3x4,1", "1,1", "16, 64x3, 1"),
    "threads": one(None, 1, 2),
    "title": one("", "A title"),
    "v": lambda r: r.choice([torch.ones(2, 1), torch.ones(3, 2), torch.ones(3, 1), np.ones((2, 2))]),
    "ax": lambda r: r.choice([None, figures.Figure().add_subplot()]),
    "value": lambda r: {"a": [number(r), {"b": number(r)}]},
    "weight_law": laws,
    "width": one(1, 2, 8, np.int64(64)),
    "widths": widths,
    "workers": one(None, 1, 2),
    "writer": lambda r: Writer(),
    "x": vector,
    "x1": several_inputs,
    "x2": lambda r: r.choice([None, matrix(r)]),
    "y": targets,
}


def numbers(r: random.Random) -> list[Any]:
    return [r.choice([1, 2, 8]) for _ in range(r.choice([1, 2]))]


def residual(r: random.Random) -> Any:
    options: dict[str, Any] = {"branch": r.choice([1, 0.5]), "activation": r.choice(["relu", "tanh"])}
    if r.random() < 0.5:
        return finwidth.BalancedResNet([2, r.choice([1, 4]), 1], 2, signs=r.choice([True, False]), **options)
    return finwidth.ResNet([2, r.choice([2, 4]), r.choice([1, 2])], 2, norm=r.choice([None, "rms", "layer"]), **options)


def ensemble_of(r: random.Random) -> Any:
    kind = r.random()
    return net(r) if kind < 0.6 else residual(r) if kind > 0.9 else lambda: module(r)


def tensor_law(r: random.Random) -> Any:
    return r.choice([None, torch.sin, torch.relu, torch.tanh])


def factors(r: random.Random) -> Any:
    return r.choice([1, 0.5, Fraction(1, 3), "1/sqrt(depth)", "sqrt(3/4)", 0, [1, "sqrt(2)"], np.array([0.5, 2])])


def norms(r: random.Random) -> Any:
    return r.choice([None, "rms", "layer", finwidth.Norm("layer", "after", epsilon=1e-5, parameters="trained")])


OWN: dict[str, Make] = {  # where a name means something else
    "gate_moment.order": one(1, 2, 4),
    "moment.order": one(0, 2, 4, np.int64(2)),
    "step.loss": one(None, 1.0, torch.tensor(2.0)),
    "z.exact": number,
    "finwidth.SmoothActivation.torch_module": one(None, "GELU"),
    "finwidth.SmoothActivation.gain": one(1, 2.0, Fraction(1, 2)),
    "finwidth.BalancedResNet.widths": lambda r: [2, r.choice([1, 2, 3, 8]), r.choice([1, 1, 2])],
    "finwidth.BalancedResNet.gains": one(None, 1, 2.0, [1, 2, 0.5]),
    "finwidth.BalancedResNet.skip": factors,
    "finwidth.BalancedResNet.branch": factors,
    "finwidth.empirical.KernelOperator.method": one("exact", "hutch++", "hutchinson"),
    "finwidth.empirical.KernelOperator.x": lambda r: r.choice([torch.ones(2), np.ones(3), np.ones((2, 2)), 2.0]),
    "finwidth.empirical.KernelOperator.y": lambda r: r.choice([targets(r), torch.ones(2), np.ones((2, 1))]),
    "finwidth.empirical.linearise.x": matrix,
    "finwidth.empirical.linearise.y": lambda r: r.choice([targets(r), torch.ones(2, 1)]),
    "finwidth.BalancedResNet.signs": one(True, False),
    "finwidth.ResNet.widths": lambda r: [2, r.choice([1, 2, 3, 8]), r.choice([1, 1, 2])],
    "finwidth.ResNet.gains": one(None, 1, 2.0, [1, 2, 1, 0.5]),
    "finwidth.ResNet.hidden": one(None, 1, 5, [1, 2], np.array([3, 2])),
    "finwidth.ResNet.skip": factors,
    "finwidth.ResNet.branch": factors,
    "finwidth.MLP.norm": norms,
    "finwidth.ResNet.norm": norms,
    "finwidth.Norm.kind": one("rms", "layer"),
    "finwidth.Norm.position": one("before", "after"),
    "finwidth.Norm.epsilon": one(0, 1e-5, Fraction(1, 8)),
    "finwidth.Norm.parameters": one("none", "trained"),
    "finwidth.bounds.net": lambda r: finwidth.MLP([*widths(r)[:-1], 1]) if r.random() < 0.8 else net(r),
    "finwidth.bounds.exact": one(None),
    "finwidth.compare.factory": lambda r: r.choice([None, None, lambda: module(r)]),
    "finwidth.regime.factory": lambda r: r.choice([None, None, lambda: module(r)]),
    "finwidth.in_law.gains": one(None, 1, 2.0, {}, {"0": 1.5}),
    "finwidth.in_law.module": lambda r: nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3), nn.Linear(3, 1)).double(),
    "finwidth.empirical.ResNet.net": residual,
    "finwidth.empirical.ResNet.activation": tensor_law,
    "finwidth.compare.net": lambda r: r.choice([net_of_any_kind, module])(r),
    "finwidth.regime.net": lambda r: r.choice([net_of_any_kind, module])(r),
    "finwidth.sampling.one_input.importance.importance_estimates.net": net_of_any_kind,
    "finwidth.summarize.net": net_of_any_kind,
    "finwidth.growth.net": net_of_any_kind,
    "finwidth.report.report.net": net_of_any_kind,
    "finwidth.plots.kernel_on_a_circle.ax": lambda r: r.choice([None, figures.Figure().subplots(1, r.choice([1, 2]))]),
    "finwidth.plots.kernel_in_training.ax": lambda r: r.choice([None, figures.Figure().subplots(2, 2)]),
    "finwidth.plots.growth_with_depth.here": lambda r: r.choice([None, net_of_any_kind(r)]),
    "finwidth.plots.spread_over_depth.here": lambda r: r.choice([None, net_of_any_kind(r)]),
    "finwidth.tangent_kernel.outputs": law_outputs,
    "finwidth.tangent_kernel.parameters": lambda r: list(finwidth.MatrixFreeLinear(2, 1).parameters()),
    "finwidth.empirical.Ensemble.net": ensemble_of,
    "finwidth.empirical.MLP.activation": tensor_law,
    "finwidth.empirical.Tracker.steps": one("log", 1, 2, [1, 2], {3}),
    "finwidth.empirical.ntk.module": several_modules,
    **{f"finwidth.empirical.{name}.outputs": chosen_outputs for name in ("ntk", "sgd_update", "explain")},
    "finwidth.empirical.sgd_update.x": several_inputs,
    "finwidth.empirical.wandb_log.run": lambda r: Writer(),
    "finwidth.empirical.sgd_update.y": lambda r: r.choice([targets(r), torch.ones(3, 1), np.zeros((2, 1)), [[1.0]]]),
    "finwidth.empirical.sgd_update.loss": one(nn.functional.mse_loss, lambda out, y: (out**2).sum(), None),
    "finwidth.empirical.reference.jacobian.jacobian.x": matrix,
    "finwidth.observables.target_gram.inputs": one(3),
    "finwidth.observables.target_gram.outputs": one(1, 2),
    "finwidth.observables.targets_are.outputs": one(1, 2),
    "finwidth.measurement.load.target": one("nothing.py:make", "module.py:make"),
    "finwidth.measurement.measure.outputs": one("trace", "full", 0),
    "finwidth.report.write.found": lambda r: report(finwidth.MLP([2, 2, 1]), [1, 2], 100),
    "finwidth.report.write.x": one([1, 2]),
    "finwidth.paper.paths.enumerate_moments.net": lambda r: finwidth.MLP([2, 2, 1], **kind(r)),
    "finwidth.paper.paths.enumerate_moments.outputs": one(None, [(0, 0)]),
    "finwidth.sampling.one_input.importance.importance_estimates.exact": one(None, {"K": 1.0}),
    "finwidth.sample_gram.hidden": one(False, True),
    "finwidth.sample_gram.y": lambda r: r.choice([None, targets(r)]),
    "finwidth.plots.growth_with_depth.widths": numbers,
    "finwidth.plots.spread_over_depth.widths": numbers,
    "finwidth.plots.kernel_on_a_circle.widths": numbers,
    "finwidth.plots.update_over_depth.widths": numbers,
    "finwidth.plots.law_of_kernel.K": lambda r: (
        np.array([abs(r.gauss(0, 1)) for _ in range(20)]) * r.choice([1, 0, 1e200])
    ),
    "finwidth.exact.grid.moments_grid.kind": kinds_of_networks,
    "finwidth.exact.grid.grid_moments.kind": kinds_of_networks,
    "finwidth.exact.grid.spread_by_width.kind": kinds_of_networks,
    "finwidth.exact.grid.spread_by_depth.kind": kinds_of_networks,
    "finwidth.plots.growth_with_depth.kind": kinds_of_networks,
    "finwidth.plots.spread_over_depth.kind": kinds_of_networks,
    "finwidth.width_for.kind": kinds_of_networks,
    "finwidth.depth_for.kind": kinds_of_networks,
    "finwidth.exact.grid.spread_by_depth.depths": numbers,
    "finwidth.exact.grid.moments_grid.widths": numbers,
    "finwidth.exact.grid.grid_moments.widths": numbers,
    "finwidth.exact.grid.spread_by_width.widths": numbers,
}
decimal.getcontext()  # made here, so that no call makes it


def valid(r: random.Random, target: str, name: str) -> Any:
    """What this parameter of a function takes."""
    method = target.rpartition(".")[2]
    make = OWN.get(f"{target}.{name}") or OWN.get(f"{method}.{name}") or VALID.get(name)
    assert make is not None, f"{target} has a parameter {name!r}: say in tests/fuzz/values.py what it takes"
    return make(r)

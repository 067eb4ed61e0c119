"""How the package is built, in figures: depth of calls, names, `Any`, imports, sizes, files to touch for a new thing.

    python benchmarks/house.py            a Markdown table
    python benchmarks/house.py --json     the same figures, and everything that they count

Source files are read; public functions are called on small networks with a profile function set, on one core, so that
every machine runs the same.  Calls that need torch or Zarr are left out where it is not installed.
"""

from __future__ import annotations

import ast
import io
import json
import math
import os
import re
import statistics
import sys
import tempfile
import threading
import tokenize
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from types import CodeType, FrameType
from typing import Any, TypeAlias

import numpy as np

import finwidth
from finwidth.networks.description import Network
from finwidth.report import report

PACKAGE = Path(finwidth.__file__).parent
REPOSITORY = Path(__file__).parents[1]

# For each new thing the files that it touches, each with a name defined there; tests last.  Written by hand, from the
# recipes of CONTRIBUTING.md; that files and names exist is checked, here and of the engines.
NEW: dict[str, tuple[str, ...]] = {
    "activation of two slopes": ("src/finwidth/networks/activations.py:ACTIVATIONS",),
    "smooth activation": ("src/finwidth/networks/activations.py:SMOOTH",),
    "weight law": ("src/finwidth/networks/laws.py:LAWS", "tests/exact/test_networks.py:DISTRIBUTIONS"),
    "moment": ("src/finwidth/quantities.py:MOMENTS",),
    "observable of a kernel": ("src/finwidth/observables.py:observe", "tests/test_observables.py:plainly"),
    "loss": (
        "src/finwidth/sampling/training/losses.py:LOSSES",
        "tests/dense_training.py:LOSSES",
        "tests/sampling/test_training.py:RUNS",
    ),
    "sweep quantity": (
        "src/finwidth/sweeps/quantities/exact.py:BoundsQuantity",
        "tests/sweeps/test_numbers.py:AXES",
    ),
    "sweep axis": ("src/finwidth/sweeps/schema/grid.py:ARGUMENTS", "tests/sweeps/test_numbers.py:NETWORK_AXES"),
    "description of a network, a function": (
        "src/finwidth/sampling/one_input/sample.py:SAMPLERS",
        "tests/networks/test_routes.py:RESNETS",
    ),
    "sampler": (
        "src/finwidth/sampling/kernel_matrix/sample_gram.py:NetworkAtSeveralInputs",
        "tests/sampling/test_gram.py:VIEWS",
    ),
    "torch operation": (
        "src/finwidth/empirical/kernel/operations.py:OPERATIONS",
        "tests/empirical/test_kernel.py:CASES",
    ),
    "statement of the paper": (
        "src/finwidth/paper/bias_checks.py:lemma_13",
        "tests/paper/test_statements.py:WRONG",
    ),
}

# Where numerics begin; what a public function enters before them only carries arguments and results.
ENGINES = (
    "src/finwidth/exact/transfer.py:Transfer.hidden",
    "src/finwidth/sampling/one_input/norm_chain.py:NormChain.at_unit",
    "src/finwidth/sampling/kernel_matrix/gaussian_layer.py:GaussianLayer.forward",
    "src/finwidth/sampling/training/networks.py:Networks.forward",
    "src/finwidth/sampling/lazy_matrix/gaussian.py:DeferredGaussianMatrix.right",
    "src/finwidth/empirical/kernel/gradients.py:gradients",
    "src/finwidth/empirical/reference/brute_force.py:draw_networks",
)

X = [[1.0, 0.0, 2.0], [0.0, 1.0, 1.0], [2.0, 1.0, 0.0], [1.0, 1.0, 1.0]]
Y = [1.0, -1.0, 1.0, -1.0]
RESIDUAL = (finwidth.ResNet, finwidth.BalancedResNet)

DEEPEST = 10  # functions of the package, one within the other, of every call but `compare`


# Calls: each builds what it needs and returns what is measured.

Call: TypeAlias = Callable[[], object]


def _plain() -> dict[str, Call]:
    net = finwidth.MLP([3, 16, 16, 16, 1])
    tanh = finwidth.MLP([3, 16, 16, 16, 1], activation="tanh")
    return {
        "moments": lambda: finwidth.moments(net, X[0]),
        "signal_moments": lambda: finwidth.signal_moments(net, X[0]),
        "bounds": lambda: finwidth.bounds(net, X[0]),
        "infinite_width": lambda: finwidth.infinite_width(net, X[0]),
        "infinite_width_gram": lambda: finwidth.infinite_width_gram(tanh, X),
        "sample": lambda: finwidth.sample(net, X[0], draws=100),
        "sample_gram": lambda: finwidth.sample_gram(tanh, X, draws=10),
        "sample_gram(y=)": lambda: finwidth.sample_gram(tanh, X, draws=10, y=Y),
        "summarize": lambda: finwidth.summarize(net, X[0], draws=1000),
        "regime": lambda: finwidth.regime(net),
        "width_for": lambda: finwidth.width_for(4, 0.5),
        "width_for(tanh)": lambda: finwidth.width_for(3, 0.5, activation="tanh"),
        "depth_for": lambda: finwidth.depth_for(64, 0.5),
        "train": lambda: finwidth.train(net, X, Y, steps=3, lr=0.01, draws=4),
        "compare(net)": lambda: finwidth.compare(net, X[0], draws=1000, networks=100),
        "report": lambda: report(net, X[0], draws=1000),
        **({"sweep": _sweep} if find_spec("zarr") else {}),
    }


def _of_kinds() -> dict[str, Call]:
    """The same for networks of other kinds: residual ones, with norms, with a smooth activation."""
    after = finwidth.Norm("layer", "after")
    rms, gelu = finwidth.MLP([3, 16, 16, 1], norm="rms"), finwidth.MLP([3, 16, 16, 1], activation="gelu")
    blocks: dict[Any, Callable[..., Network]] = {kind: partial(kind, [3, 16, 1], 2) for kind in RESIDUAL}
    plain = {kind.__name__: make() for kind, make in blocks.items()}
    residual = blocks[finwidth.ResNet]
    chains = plain | {"rms": rms, "ResNet, rms": residual(norm="rms"), "ResNet, layer after": residual(norm=after)}
    smooth = {f"{kind.__name__}, gelu": make(activation="gelu") for kind, make in blocks.items()}
    most = chains | {"gelu": gelu} | smooth
    every = most | {"BalancedResNet, no signs": finwidth.BalancedResNet([3, 16, 1], 2, signs=False)}
    tilted = {"ResNet": residual(), "MLP": finwidth.MLP([3, 16, 16, 1])}
    functions: dict[str, tuple[Callable[[Any], object], dict[str, Any]]] = {
        "moments": (lambda net: finwidth.moments(net, X[0]), plain),
        "moments(order=4)": (lambda net: finwidth.moments(net, X[0], order=4), plain),
        "signal_moments": (lambda net: finwidth.signal_moments(net, X[0]), plain),
        "growth": (finwidth.growth, plain),
        "expansion": (lambda net: finwidth.expansion(net, X[:3], points=64), most),
        "sample": (lambda net: finwidth.sample(net, X[0], draws=50), chains),
        "summarize": (lambda net: finwidth.summarize(net, X[0], draws=200), chains),
        "summarize(method=)": (lambda net: finwidth.summarize(net, X[0], draws=200, method="importance"), tilted),
        "sample_gram": (lambda net: finwidth.sample_gram(net, X, draws=4, hidden=True), every),
        "sample_gram(y=)": (lambda net: finwidth.sample_gram(net, X, draws=4, y=Y), every),
        "train": (lambda net: finwidth.train(net, X, Y, steps=2, lr=0.01, draws=2), every),
        "regime": (lambda net: finwidth.regime(net, draws=50), every),
        "report": (lambda net: report(net, X[0], draws=200), most),
    }
    return {
        f"{name} of {kind}": partial(function, net)
        for name, (function, nets) in functions.items()
        for kind, net in nets.items()
    }


def _of_sizes() -> dict[str, Call]:
    """How wide and how deep networks of these kinds are."""
    branch = {"branch": "1/sqrt(depth)"}
    options: dict[str, dict[str, Any]] = {
        "gelu": {"activation": "gelu"},
        "rms": {"norm": "rms"},
        **{kind.__name__: {"kind": kind, **branch} for kind in RESIDUAL},
        **{f"{kind.__name__}, gelu": {"kind": kind, "activation": "gelu"} for kind in RESIDUAL},
        "ResNet, rms": {"kind": finwidth.ResNet, "norm": "rms"},
    }
    found: dict[str, Call] = {}
    for name, each in options.items():
        found[f"width_for of {name}"] = partial(finwidth.width_for, 3, 0.5, **each)
        found[f"depth_for of {name}"] = partial(finwidth.depth_for, 8, 2.0, **each)
    return found


def _sweep() -> None:
    axes = {"depth": [2, 4], "width": [16, 64], "n_0": 8}
    finwidth.sweep({"quantities": ["exact", "sampled"], "axes": axes, "sampled": {"draws": 1000}})


def _with_torch() -> dict[str, Call]:
    import torch
    from torch import nn

    inputs = torch.tensor(X, dtype=torch.float64)
    module = finwidth.empirical.MLP(finwidth.MLP([3, 16, 16, 1]), seed=0)
    layers = [finwidth.MatrixFreeLinear(3, 500, draws=1), finwidth.MatrixFreeLinear(500, 500, draws=1)]
    model = nn.Sequential(layers[0], nn.ReLU(), layers[1], nn.ReLU(), finwidth.MatrixFreeLinear(500, 1, draws=1))
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)

    def step() -> None:
        optimizer.zero_grad()
        model(inputs[None].float()).square().sum().backward()
        optimizer.step()

    net = finwidth.MLP([3, 16, 16, 1])

    def ensemble() -> None:
        finwidth.empirical.Ensemble(net, 2).train(inputs, Y, steps=2, lr=0.01)

    def tracker() -> None:
        follows = finwidth.empirical.Tracker(module, inputs, torch.tensor(Y))
        follows.step()
        follows.dataset()

    def stored() -> None:
        with tempfile.TemporaryDirectory() as folder:
            finwidth.empirical.ntk(module, inputs, store=f"{folder}/kernel.zarr").load()

    def linearised() -> None:
        f = finwidth.empirical.linearise(module)
        f(inputs, f.train(inputs, torch.tensor(Y)[:, None]))

    norm = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 1)).double()
    pair: dict[str, Callable[..., object]] = {"one": module, "two": lambda x: 2 * module(x)}
    K = finwidth.empirical.ntk(module, inputs, outputs="trace")
    return {
        "empirical.MLP": lambda: finwidth.empirical.MLP(net),
        "empirical.recognise": lambda: finwidth.empirical.recognise(nn.Sequential(nn.Linear(3, 64), nn.Linear(64, 1))),
        "empirical.explain": lambda: finwidth.empirical.explain(module, inputs),
        "empirical.Ensemble.train": ensemble,
        "empirical.Tracker": tracker,
        "empirical.ntk": lambda: finwidth.empirical.ntk(module, inputs),
        "empirical.ntk(outputs=)": lambda: finwidth.empirical.ntk(module, inputs, outputs=lambda f, x: f.sum(1)),
        "empirical.ntk(coupled=)": lambda: finwidth.empirical.ntk(norm, inputs, coupled=True),
        "empirical.ntk of functions": lambda: finwidth.empirical.ntk(pair, [inputs, inputs]),
        **({"empirical.ntk(store=)": stored} if find_spec("zarr") else {}),
        "empirical.KernelOperator": lambda: finwidth.empirical.KernelOperator(module, inputs) @ np.ones(len(Y)),
        "empirical.linearise": linearised,
        "empirical.predict": lambda: finwidth.empirical.predict(K, Y),
        "empirical.sgd_update": lambda: finwidth.empirical.sgd_update(module, inputs, torch.ones(4, 1)),
        "MatrixFreeLinear, an SGD step": step,
        "compare(module)": lambda: finwidth.compare(module, X[0], draws=1000),
    }


class Profile:
    """What one thread does in a call: which functions of the package it enters, and how deep.

    Comprehensions are no functions of their own, and what importing a module runs does not count.
    """

    def __init__(self, engines: Mapping[tuple[str, str], str]) -> None:
        self.engines = engines
        self.all: list[bool] = []  # of every Python function that runs: whether it counts
        self.running: list[CodeType] = []  # those that count
        self.deepest: list[CodeType] = []  # the running ones when they were most
        self.importing = 0
        self.entered: set[CodeType] = set()
        self.before: dict[str, int] = {}  # of each engine: functions that run when it is entered

    def __call__(self, frame: FrameType, event: str, arg: object) -> None:
        """The profile function of `sys.setprofile`."""
        if event == "call":
            self._enter(frame.f_code)
        elif event == "return" and self.all:
            self.importing -= frame.f_code.co_name == "<module>"
            if self.all.pop():
                self.running.pop()

    def _enter(self, code: CodeType) -> None:
        self.importing += code.co_name == "<module>"
        named = not code.co_name.startswith("<") or code.co_name == "<lambda>"
        self.all.append(named and not self.importing and code.co_filename.startswith(str(PACKAGE)))
        if not self.all[-1]:
            return
        engine = self.engines.get((code.co_filename, code.co_qualname))
        if engine and not any((other.co_filename, other.co_qualname) in self.engines for other in self.running):
            self.before[engine] = max(len(self.running), self.before.get(engine, 0))
        self.running.append(code)
        self.entered.add(code)
        if len(self.running) > len(self.deepest):
            self.deepest = list(self.running)


def profiled(call: Call) -> list[Profile]:
    """The profiles of this thread and of those that the call starts."""
    engines = {(str(REPOSITORY / file), name): name for file, _, name in (place.partition(":") for place in ENGINES)}
    found = [Profile(engines)]

    def start(frame: FrameType, event: str, arg: object) -> None:
        found.append(Profile(engines))
        sys.setprofile(found[-1])
        found[-1](frame, event, arg)

    threading.setprofile(start)
    sys.setprofile(found[0])
    try:
        call()
    finally:
        sys.setprofile(None)
        threading.setprofile(None)
    return found


def forget() -> None:
    """Empty all caches, so that no call depends on those before it."""
    for name, module in list(sys.modules.items()):
        if name.startswith(finwidth.__name__):
            for each in list(vars(module).values()):
                if hasattr(each, "cache_clear"):
                    each.cache_clear()


def measured(call: Call) -> dict[str, Any]:
    """The deepest stack, how many functions and files are entered, and how many run when numerics begin."""
    forget()
    profiles = profiled(call)
    entered = {code for profile in profiles for code in profile.entered}
    before = {name: depth for profile in profiles for name, depth in profile.before.items()}
    deepest = max((profile.deepest for profile in profiles), key=len)
    return {
        "deepest": len(deepest),
        "stack": [f"{Path(code.co_filename).name}:{code.co_qualname}" for code in deepest],
        "functions": len(entered),
        "files": len({code.co_filename for code in entered}),
        "before": before,
    }


# Source files.


class Source:
    """One module: its name below a root, its text and its tree."""

    def __init__(self, path: Path, root: Path) -> None:
        self.path = path
        parts = path.relative_to(root).with_suffix("").parts
        self.name = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
        self.text = path.read_text(encoding="utf-8")
        self.tree = ast.parse(self.text)

    @property
    def defined(self) -> dict[str, ast.stmt]:
        """Top-level names that the module makes, without dunder names."""
        found: dict[str, ast.stmt] = {}
        for node in self.tree.body:
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
                found[node.name] = node
            elif isinstance(node, ast.Assign):
                found |= {
                    name.id: node for target in node.targets for name in ast.walk(target) if isinstance(name, ast.Name)
                }
            elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
                found[node.target.id] = node
        return {name: node for name, node in found.items() if not name.startswith("__")}

    def imports(self, modules: Iterable[str], *, typing: bool = True) -> Iterator[tuple[str, str, str]]:
        """Every (module, name, name here) of ``modules`` that is imported, in functions too; name "": the module."""
        nodes = ast.walk(self.tree) if typing else _running(self.tree)
        for node in nodes:
            if isinstance(node, ast.Import):
                yield from ((alias.name, "", alias.asname or "") for alias in node.names if alias.name in modules)
            elif isinstance(node, ast.ImportFrom) and node.module:
                for alias in node.names:
                    whole, here = f"{node.module}.{alias.name}", alias.asname or alias.name
                    if whole in modules:
                        yield whole, "", here
                    elif node.module in modules:
                        yield node.module, alias.name, here

    def uses(self, modules: Iterable[str]) -> set[tuple[str, str]]:
        """(module, name) of ``modules`` that is imported, or read as an attribute of an imported module."""
        imports = list(self.imports(modules))
        found = {(module, name) for module, name, _ in imports if name}
        homes = defaultdict(set)  # two modules may be called the same in two functions
        for module, name, here in imports:
            if not name:
                homes[here].add(module)
        for node in ast.walk(self.tree):
            if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
                found |= {(module, node.attr) for module in homes.get(node.value.id, ())}
        return found


def _running(node: ast.AST) -> Iterator[ast.AST]:
    """All nodes but those under ``if TYPE_CHECKING``, which never run."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.If) and isinstance(child.test, ast.Name) and child.test.id == "TYPE_CHECKING":
            continue
        yield child
        yield from _running(child)


def defined_twice(sources: Iterable[Source]) -> dict[str, list[str]]:
    """Functions and classes of one name in two modules or more, and these modules."""
    homes = defaultdict(list)
    for source in sources:
        for name, node in source.defined.items():
            if not isinstance(node, ast.Assign | ast.AnnAssign):
                homes[name].append(source.name)
    return {name: places for name, places in sorted(homes.items()) if len(places) > 1}


def unshared(sources: Iterable[Source], others: Iterable[Source]) -> dict[str, list[str]]:
    """Top-level names without underscore that no other module uses and no package promises, by who else does.

    ``others`` are sources outside the package: what only they use is under "tests, benchmarks, examples".
    """
    modules = {source.name: source for source in sources}
    used = {use for source in modules.values() for use in source.uses(modules)}
    outside = {use for source in others for use in source.uses(modules)}
    promised = {
        text.value
        for source in modules.values()
        for node in source.tree.body
        if source.path.name == "__init__.py" or _assigns(node, "__all__")
        for text in ast.walk(node)
        if isinstance(text, ast.Constant) and isinstance(text.value, str)
    }
    found: dict[str, list[str]] = {"tests, benchmarks, examples": [], "nobody": []}
    for module, source in modules.items():
        for name in source.defined:
            if not name.startswith("_") and name not in promised and (module, name) not in used:
                users = "tests, benchmarks, examples" if (module, name) in outside else "nobody"
                found[users].append(f"{module}.{name}")
    return found


def _assigns(node: ast.stmt, name: str) -> bool:
    return isinstance(node, ast.Assign) and any(isinstance(to, ast.Name) and to.id == name for to in node.targets)


def cycles_and_longest_chain(sources: Iterable[Source]) -> tuple[list[list[str]], list[str]]:
    """Groups of modules that import each other, and the longest chain of imports, with each group as one link."""
    modules = {source.name: source for source in sources}
    graph = {
        name: {module for module, *_ in source.imports(modules, typing=False)} - {name}
        for name, source in modules.items()
    }
    reached = {name: _reached(graph, name) for name in graph}
    group = {name: tuple(sorted(m for m in reached[name] if name in reached[m])) or (name,) for name in graph}
    groups = set(group.values())
    below = {g: {group[m] for name in g for m in graph[name]} - {g} for g in groups}
    chains: dict[tuple[str, ...], list[str]] = {}
    for g in sorted(groups, key=lambda g: len(reached[g[0]] - {*g})):  # what a group imports reaches fewer others
        longest = max((chains[b] for b in below[g]), key=len, default=[])
        chains[g] = [" and ".join(g), *longest]
    return sorted(list(g) for g in groups if len(g) > 1), max(chains.values(), key=len)


def _reached(graph: Mapping[str, set[str]], start: str) -> set[str]:
    found: set[str] = set()
    waiting = [start]
    while waiting:
        new = graph[waiting.pop()] - found
        found |= new
        waiting += new
    return found


def any_in_code(sources: Iterable[Source]) -> int:
    """How often `Any` stands in code: not in strings, comments and imports."""
    total = 0
    for source in sources:
        imports = {
            line
            for node in ast.walk(source.tree)
            if isinstance(node, ast.ImportFrom)
            for line in range(node.lineno, (node.end_lineno or node.lineno) + 1)
        }
        tokens = tokenize.generate_tokens(io.StringIO(source.text).readline)
        total += sum(token.string == "Any" and token.start[0] not in imports for token in tokens)
    return total


def lines(sources: Iterable[Source]) -> dict[str, list[int]]:
    """Lines of each file, and of each function and method with its docstring."""
    sources = list(sources)
    return {
        "file": [source.text.count("\n") for source in sources],
        "function": [
            (node.end_lineno or node.lineno) - node.lineno + 1
            for source in sources
            for node in ast.walk(source.tree)
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        ],
    }


def check_places() -> None:
    """Exit unless every place of `NEW` and `ENGINES`, such as "folder/file.py:Class.method", exists."""
    for place in (*ENGINES, *(place for places in NEW.values() for place in places)):
        file, _, name = place.partition(":")
        path, last = REPOSITORY / file, name.rpartition(".")[2]
        text = path.read_text() if path.exists() else ""
        if not re.search(rf"^ *(class |def )?{re.escape(last)}\b", text, re.MULTILINE):
            sys.exit(f"{Path(__file__).name} is out of date: {place} does not exist")


def figures() -> dict[str, Any]:
    """Everything measured."""
    sources = [Source(path, PACKAGE.parent) for path in sorted(PACKAGE.rglob("*.py"))]
    folders = ("tests", "benchmarks", "examples")
    others = [Source(path, REPOSITORY) for folder in folders for path in (REPOSITORY / folder).rglob("*.py")]
    cycles, chain = cycles_and_longest_chain(sources)
    sizes = lines(sources)
    calls = _plain() | (_with_torch() if find_spec("torch") else {})
    return {
        "calls": {name: measured(call) for name, call in calls.items()},
        "kinds": {name: measured(call)["stack"] for name, call in (_of_kinds() | _of_sizes()).items()},
        "files": len(sizes["file"]),
        "functions": len(sizes["function"]),
        "lines": sum(sizes["file"]),
        "defined_twice": defined_twice(sources),
        "any": any_in_code(sources),
        "cycles": cycles,
        "longest_chain": chain,
        "unshared": unshared(sources, others),
        "sizes": {what: _summary(values) for what, values in sizes.items()},
        "to_touch": NEW,
    }


def _summary(values: list[int]) -> dict[str, float]:
    ordered = sorted(values)
    return {
        "median": statistics.median(ordered),
        "p99": ordered[math.ceil(0.99 * len(ordered)) - 1],
        "max": ordered[-1],
    }


def markdown(found: Mapping[str, Any]) -> str:
    """The figures as tables."""
    twice, alone = found["defined_twice"], found["unshared"]
    table = [
        ("files, functions, lines", f"{found['files']}, {found['functions']}, {found['lines']}"),
        *(
            (f"lines per {what}: median, 99 %, most", f"{size['median']:g}, {size['p99']}, {size['max']}")
            for what, size in found["sizes"].items()
        ),
        ("functions and classes defined in two modules or more", f"{len(twice)}"),
        ("  of them without underscore", f"{sum(not name.startswith('_') for name in twice)}"),
        ("`Any` in code, per 1,000 lines", f"{1000 * found['any'] / found['lines']:.1f}"),
        ("cycles of imports", f"{len(found['cycles'])}"),
        ("longest chain of imports, modules", f"{len(found['longest_chain'])}"),
        ("names without underscore that no other module uses", f"{sum(map(len, alone.values()))}"),
        *((f"  of them used by {users}", f"{len(names)}") for users, names in alone.items()),
    ]
    rows = ["| the source | |", "|---|---|", *(f"| {name} | {value} |" for name, value in table), ""]
    rows += [
        "| call | deepest stack | functions | files | functions before numerics |",
        "|---|---|---|---|---|",
    ]
    for name, call in found["calls"].items():
        before = ", ".join(f"{depth} (`{engine}`)" for engine, depth in call["before"].items())
        rows.append(f"| {name} | {call['deepest']} | {call['functions']} | {call['files']} | {before} |")
    rows += ["", "| call, for networks of other kinds | deepest stack | of which kind |", "|---|---|---|"]
    for name, stacks in _by_function(found["kinds"]).items():
        kind = max(stacks, key=lambda kind: len(stacks[kind]))
        rows.append(f"| {name} | {len(stacks[kind])} | {kind} |")
    rows += ["", "| to add | files, without tests | which |", "|---|---|---|"]
    for thing, places in found["to_touch"].items():
        code = [place for place in places if not place.startswith("tests/")]
        rows.append(f"| {thing} | {len(code)} | {', '.join(f'`{place}`' for place in places)} |")
    rows += ["", f"Defined twice: {', '.join(twice)}."]
    rows += [f"Modules that import each other: {' and '.join(group)}." for group in found["cycles"]]
    return "\n".join(rows)


def _by_function(kinds: Mapping[str, list[str]]) -> dict[str, dict[str, list[str]]]:
    """The stacks of calls "function of kind", by both."""
    found: dict[str, dict[str, list[str]]] = defaultdict(dict)
    for name, stack in kinds.items():
        function, _, kind = name.partition(" of ")
        found[function][kind] = stack
    return found


def main() -> None:
    """Print it."""
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})  # one core: the same threads on every machine
    check_places()
    found = figures()
    print(json.dumps(found, indent=1) if "--json" in sys.argv[1:] else markdown(found))


if __name__ == "__main__":
    main()

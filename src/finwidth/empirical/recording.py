"""One forward pass with a record of every operation that uses a parameter, and the proof that no use is missed.

Autograd's graph leads from the output to every parameter.  A parameter whose edges in it are as many as the recorded
uses is used in no other way; any other parameter is left to the general route.
"""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.autograd.graph import GradientEdge, Node, get_gradient_edge
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.overrides import TorchFunctionMode

from finwidth.empirical.rules import OPERATIONS, Rule
from finwidth.errors import FinwidthError

Tensor = torch.Tensor


@dataclass(frozen=True)
class Use:
    """One call of an operation with counted parameters: their names, its input, and its result as a graph edge."""

    rule: Rule
    weight: str | None
    bias: str | None
    input: Tensor
    version: int  # of the input at the call; another one later means that it was changed in place
    edge: GradientEdge
    shape: torch.Size  # of the result

    @property
    def names(self) -> list[str]:
        """The parameters it uses."""
        return [name for name in (self.weight, self.bias) if name is not None]

    @property
    def signature(self) -> tuple[Any, ...]:
        """What is the same in every pass through a module that takes one route."""
        return type(self.rule), self.weight, self.bias, self.input.ndim, len(self.shape)


@dataclass(frozen=True)
class Record:
    """The output of a pass, shape (n, o), the uses that it depends on, and the parameters used in other ways."""

    output: Tensor
    uses: list[Use]
    others: frozenset[str]


class _Recorder(TorchFunctionMode):
    """Notes every operation of `OPERATIONS` that takes a counted parameter itself."""

    def __init__(self, names: dict[int, str]) -> None:
        super().__init__()
        self.names = names
        self.uses: list[Use] = []

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Call the function, and note it."""
        kwargs = kwargs or {}
        found = func(*args, **kwargs)
        read = OPERATIONS.get(func)
        operation = read(*args, **kwargs) if read else None
        if operation is not None and found.requires_grad:
            weight, bias = (self.names.get(id(each)) for each in (operation.weight, operation.bias))
            if weight is not None or bias is not None:
                source = operation.input
                edge = get_gradient_edge(found)
                self.uses.append(Use(operation.rule, weight, bias, source, source._version, edge, found.shape))
        return found


@contextmanager
def differentiable() -> Iterator[None]:
    """Gradients on, whatever the caller has switched off, and attention by formulas that every transform can take."""
    with (
        torch.inference_mode(False),
        torch.enable_grad(),
        sdpa_kernel(SDPBackend.MATH),
        warnings.catch_warnings(),
    ):
        warnings.filterwarnings("ignore", message="There is a performance drop")  # an operation vmap runs one by one
        yield


def record(module: nn.Module, x: Tensor, parameters: Mapping[str, Tensor]) -> Record:
    """Pass ``x`` through the module with the given tensors as its counted parameters (leaves of the graph)."""
    recorder = _Recorder({id(each): name for name, each in parameters.items()})
    with recorder:
        output = torch.func.functional_call(module, dict(parameters), (x,))
    flat = check_output(output, len(x))
    edges, nodes = _edges(flat)
    uses = [use for use in recorder.uses if use.edge.node in nodes and use.input._version == use.version]
    recorded = Counter(name for use in uses for name in use.names)
    leaves = {name: get_gradient_edge(each).node for name, each in parameters.items()}
    others = frozenset(name for name, leaf in leaves.items() if edges[leaf] != recorded[name])
    return Record(flat, uses, others)


def check_output(output: Any, n: int) -> Tensor:
    """The output of ``n`` samples as shape (n, o)."""
    if not isinstance(output, torch.Tensor):
        raise FinwidthError(
            f"the module returns a {type(output).__name__}; wrap it in one that returns one tensor, samples first"
        )
    if output.ndim < 1 or len(output) != n or not output.is_floating_point():
        raise FinwidthError(
            f"the module returns {output.dtype} of shape {tuple(output.shape)} for {n} samples; it must return "
            "floating-point numbers of shape (N,) or (N, ...), one row for each sample"
        )
    return output.reshape(n, -1)


def _edges(output: Tensor) -> tuple[Counter[Node], set[Node]]:
    """How many edges of the graph lead to each node, and the nodes."""
    start = output.grad_fn
    edges: Counter[Node] = Counter()
    nodes: set[Node] = set()
    waiting = [] if start is None else [start]
    while waiting:
        node = waiting.pop()
        if node in nodes:
            continue
        nodes.add(node)
        for following, _ in node.next_functions:
            if following is not None:
                edges[following] += 1
                waiting.append(following)
    return edges, nodes

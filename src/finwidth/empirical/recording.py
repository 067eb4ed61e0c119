"""One forward pass with a record of every operation that uses a parameter, and the proof that no use is missed.

A recorded operation is given a view of the parameter instead of the parameter itself, so that autograd's graph tells
its uses apart.  A parameter whose only edges in the graph are those of its views is used in no other way; and a view
that the output reaches only through the result of its operation takes part in that operation only, and not in a
derivative that the forward pass takes of it.  Any other parameter is left to the general route.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch.autograd.graph import GradientEdge, Node, get_gradient_edge
from torch.overrides import TorchFunctionMode

from finwidth.empirical.forward import Network, apply
from finwidth.empirical.rules import OPERATIONS, Operation, Rule
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
    views: Mapping[str, Node]  # of the parameters

    @property
    def names(self) -> list[str]:
        """The parameters it uses."""
        return list(self.views)

    @property
    def signature(self) -> tuple[Any, ...]:
        """What is the same in every pass through a module that takes one route."""
        return type(self.rule), self.weight, self.bias, self.input.ndim, len(self.shape)


@dataclass(frozen=True)
class Record:
    """The output of a pass, shape (n, o), the uses that it depends on, and why other parameters are used otherwise."""

    output: Tensor
    uses: list[Use]
    others: Mapping[str, str]


class _Recorder(TorchFunctionMode):
    """Notes every operation of `OPERATIONS` that takes a counted parameter itself."""

    def __init__(self, parameters: Mapping[str, Tensor]) -> None:
        super().__init__()
        self.names = {id(each): name for name, each in parameters.items()}
        self.uses: list[Use] = []

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Call the function, and note it."""
        kwargs = kwargs or {}
        if kwargs.get("generator") is not None:
            raise FinwidthError(
                "the module draws random numbers by a generator of its own, so that each call is of another network; "
                "call module.eval() first, or give it fixed numbers"
            )
        read = OPERATIONS.get(func)
        operation = read(*args, **kwargs) if read else None
        if operation is None or not self._takes(operation):
            return func(*args, **kwargs)
        given = [each for each in (operation.weight, operation.bias) if id(each) in self.names]
        views = {id(each): each.view_as(each) for each in given if each is not None}
        args = [views.get(id(each), each) for each in args]
        found = func(*args, **{key: views.get(id(each), each) for key, each in kwargs.items()})
        if found.requires_grad:
            self._note(operation, found, {self.names[key]: each.grad_fn for key, each in views.items()})
        return found

    def _takes(self, operation: Operation) -> bool:
        """Whether it uses a parameter as a weight or bias only, outside the transforms of torch.func."""
        weights = [each for each in (operation.weight, operation.bias) if id(each) in self.names]
        tensors = [operation.input, *(each for each in weights if each is not None)]
        wrapped = any(torch._C._functorch.is_functorch_wrapped_tensor(each) for each in tensors)
        return bool(weights) and id(operation.input) not in self.names and not wrapped

    def _note(self, operation: Operation, found: Tensor, views: Mapping[str, Any]) -> None:
        weight, bias = (self.names.get(id(each)) for each in (operation.weight, operation.bias))
        source, edge = operation.input, get_gradient_edge(found)
        self.uses.append(Use(operation.rule, weight, bias, source, source._version, edge, found.shape, views))


def record(network: Network, x: Tensor, parameters: Mapping[str, Tensor]) -> Record:
    """Pass ``x`` through the module with the given tensors as its counted parameters, leaves of the graph."""
    recorder = _Recorder(parameters)
    with recorder:
        output = apply(network, x, parameters)
    graph = _Graph(output)
    if any("CheckpointFunction" in node.name() for node in graph.users):
        raise FinwidthError(
            "the module uses torch.utils.checkpoint with use_reentrant=True, which hides its layers from "
            "autograd.grad; give use_reentrant=False"
        )
    uses = [use for use in recorder.uses if use.edge.node in graph.users and use.input._version == use.version]
    return Record(output, uses, _others(graph, uses, parameters))


def _others(graph: _Graph, uses: list[Use], parameters: Mapping[str, Tensor]) -> dict[str, str]:
    """The parameters that are used in a way that is not recorded, and in which."""
    recorded = {id(node) for use in uses for node in use.views.values()}
    found: dict[str, str] = {}
    for name, each in parameters.items():
        users = graph.users.get(get_gradient_edge(each).node, [])
        strangers = [user for user in users if id(user) not in recorded]
        if strangers:
            kinds = sorted({user.name().removesuffix("0").removesuffix("Backward") for user in strangers})
            found[name] = f"used in {', '.join(kinds)}, for which there is no rule"
    for use in uses:
        for name, node in use.views.items():
            if graph.reaches(node, without=use.edge.node):
                found[name] = "used in a derivative that the module takes of its own layers"
    return found


class _Graph:
    """Autograd's graph behind an output: the users of every node, once for each edge."""

    def __init__(self, output: Tensor) -> None:
        self.root = output.grad_fn
        self.users: dict[Node, list[Node]] = {} if self.root is None else {self.root: []}
        waiting = list(self.users)
        while waiting:
            node = waiting.pop()
            for each, _ in node.next_functions:
                if each is not None and each not in self.users:
                    waiting.append(each)
                if each is not None:
                    self.users.setdefault(each, []).append(node)

    def reaches(self, node: Node, without: Node) -> bool:
        """Whether there is a way from the output to a node that does not pass through another."""
        seen = {node}
        waiting = [node]
        while waiting:
            for user in self.users[waiting.pop()]:
                if user is not without and user not in seen:
                    seen.add(user)
                    waiting.append(user)
        return self.root in seen

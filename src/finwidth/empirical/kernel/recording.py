"""One forward pass with a record of every operation that uses a parameter, and the proof that no use is missed.

A recorded operation is given a view of its weight instead of the weight itself, so that autograd's graph tells its uses
apart.  A view that the output reaches only through the result of its operation takes part in that operation only, and
not in a derivative that the forward pass takes of it.  A parameter that the output reaches only through such views is
used in no other way: directly, or, as in weight normalisation, through a weight that is made of it.  Any other
parameter is left to the general route.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import TypeAlias

import torch
from torch.autograd.graph import GradientEdge, Node, get_gradient_edge
from torch.overrides import TorchFunctionMode

from finwidth.empirical.kernel.calls import Network, apply
from finwidth.empirical.kernel.operations import OPERATIONS, Operation, Rule
from finwidth.errors import FinwidthError

Tensor = torch.Tensor
Signature: TypeAlias = tuple[type, str | None, str | None, int, int]


@dataclass(frozen=True)
class Use:
    """One call of an operation with counted parameters: their names, its input, and its result as a graph edge.

    A weight that is no parameter but made of some has a name too, "#0", "#1" and so on in a pass.
    """

    rule: Rule
    weight: str | None
    bias: str | None
    input: Tensor
    version: int  # of the input at the call; another one later means that it was changed in place
    edge: GradientEdge
    shape: torch.Size  # of the result
    views: Mapping[str, Node]  # of the weights

    @property
    def signature(self) -> Signature:
        """Identifies the call; the same in every pass, unless control flow depends on the data."""
        return type(self.rule), self.weight, self.bias, self.input.ndim, len(self.shape)


@dataclass(frozen=True)
class Record:
    """The record of one forward pass.

    ``output`` has shape (n, o); ``uses`` are the calls that it depends on; ``others`` has the parameters used in other
    ways, and how; ``made`` has the weights computed from parameters, and ``made_of`` the names of these; ``reorders``
    is whether some operation is not known to keep samples in their order.
    """

    output: Tensor
    uses: list[Use]
    others: Mapping[str, str]
    made: Mapping[str, Tensor]
    made_of: Mapping[str, frozenset[str]]
    reorders: bool

    def behind(self, use: Use) -> set[str]:
        """The parameters that a use depends on by its weights."""
        return {name for key in use.views for name in self.made_of.get(key, {key})}


class Recorder(TorchFunctionMode):
    """Notes every operation of `OPERATIONS` that takes a counted parameter itself, or a weight made of others.

    The given tensors are the counted parameters, leaves of the graph.
    """

    def __init__(self, parameters: Mapping[str, Tensor]) -> None:
        super().__init__()
        self.parameters = parameters
        self.names = {id(each): name for name, each in parameters.items()}
        self.made: dict[str, Tensor] = {}
        self.uses: list[Use] = []

    def __torch_function__(
        self,
        func: Callable[..., Tensor],
        types: Collection[type],
        args: tuple[object, ...] = (),
        kwargs: Mapping[str, object] | None = None,
    ) -> Tensor:
        """Call the function, and note it."""
        kwargs = kwargs or {}
        if kwargs.get("generator") is not None:
            raise FinwidthError(
                "the module draws random numbers by a generator of its own, so that each call is of another network; "
                "call module.eval() first, or give it fixed numbers"
            )
        read = OPERATIONS.get(func)
        operation = read(*args, **kwargs) if read else None
        if operation is None or not _is_usual(operation):
            return func(*args, **kwargs)
        given = [each for each in (operation.weight, operation.bias) if each is not None and self._name(each)]
        if not any(each.requires_grad for each in given):
            return func(*args, **kwargs)
        views = {id(each): each.view_as(each) for each in given}
        found = func(
            *(views.get(id(each), each) for each in args),
            **{key: views.get(id(each), each) for key, each in kwargs.items()},
        )
        if found.requires_grad:
            self._note(operation, found, views)
        return found

    def _name(self, weight: Tensor) -> str | None:
        """The name of a parameter that counts, or of a weight that is no parameter."""
        if id(weight) not in self.names and weight.grad_fn is not None:
            name = f"#{len(self.made)}"
            self.made[name] = weight  # which keeps it, and so its id
            self.names[id(weight)] = name
        return self.names.get(id(weight))

    def _note(self, operation: Operation, found: Tensor, views: Mapping[int, Tensor]) -> None:
        weight, bias = (self.names.get(id(each)) for each in (operation.weight, operation.bias))
        source, edge = operation.input, get_gradient_edge(found)
        nodes = {self.names[key]: each.grad_fn for key, each in views.items() if each.grad_fn is not None}
        self.uses.append(Use(operation.rule, weight, bias, source, source._version, edge, found.shape, nodes))

    def record(self, output: Tensor) -> Record:
        """The record of a pass under this mode that gave this output."""
        graph = _Graph(output)
        if any("CheckpointFunction" in node.name() for node in graph.users):
            raise FinwidthError(
                "the module uses torch.utils.checkpoint with use_reentrant=True, which hides its layers from "
                "autograd.grad; give use_reentrant=False"
            )
        uses = [use for use in self.uses if use.edge.node in graph.users and use.input._version == use.version]
        leaves = {get_gradient_edge(each).node: name for name, each in self.parameters.items()}
        results = {use.edge.node for use in uses}
        below = {name: reachable(weight.grad_fn) for name, weight in self.made.items()}
        made_of = {name: frozenset(leaves[each] for each in nodes if each in leaves) for name, nodes in below.items()}
        sound = {name for name in self.names.values() if not below.get(name, set()) & results}
        above = {view: graph.above({view}, use.edge.node) for use in uses for view in use.views.values()}
        after = graph.above(results) - results.union(*above.values())  # what becomes of results up to the output
        reorders = any(map(_reorders, after))
        return Record(output, uses, _others(graph, uses, above, leaves, sound), self.made, made_of, reorders)


def record(network: Network, x: Tensor, parameters: Mapping[str, Tensor]) -> Record:
    """Pass ``x`` through the module, with the given tensors as its counted parameters."""
    recorder = Recorder(parameters)
    with recorder:
        output = apply(network, x, parameters)
    return recorder.record(output)


def _is_usual(operation: Operation) -> bool:
    """Whether weight and bias have no other part in the call, and no transform of torch.func is at work."""
    weights = [each for each in (operation.weight, operation.bias) if each is not None and each.requires_grad]
    wrapped = torch._C._functorch.is_functorch_wrapped_tensor
    if not weights or operation.weight is operation.bias or any(map(wrapped, (operation.input, *weights))):
        return False
    return not any(operation.input is each for each in weights)


# Autograd's names of what keeps samples in their order, whatever its arguments; and where that depends on dimensions.
_KEEPS = frozenset(
    """
    AccumulateGrad Add Sub Rsub Mul Div Neg Pow Exp Log Log1p Sqrt Rsqrt Reciprocal Abs Sin Cos Sinh Cosh Tanh Atan
    Sigmoid LogSigmoid Relu LeakyRelu Elu Celu Gelu Silu Mish Softplus Hardtanh Hardswish Hardsigmoid Hardshrink
    Softshrink Threshold Clamp ClampMin ClampMax Erf Where Maximum Minimum Lerp Addcmul Addcdiv ToCopy Clone Alias
    Convolution MkldnnConvolution NativeBatchNorm NativeLayerNorm NativeGroupNorm FusedRmsNorm WeightNormInterface View
    UnsafeView ReshapeAlias Squeeze Unsqueeze Expand Repeat Mean Sum Norm Var Std VarMean Softmax SafeSoftmax LogSoftmax
    MaxPool2DWithIndices MaxPool3DWithIndices AvgPool2D AvgPool3D AdaptiveAvgPool2D AdaptiveAvgPool3D AdaptiveMaxPool2D
    ConstantPadNd ReflectionPad1D ReflectionPad2D ReplicationPad2D UpsampleNearest2D UpsampleBilinear2D Embedding
    PreluKernel Bmm Baddbmm T Unfold PixelShuffle
    """.split()  # noqa: SIM905
)
_ON_DIMENSIONS = {"Select", "Slice", "Cat", "Stack", "Split", "SplitWithSizes", "Unbind", "Transpose", "Permute"}
_LOSES_ONE = {"Select", "Unbind"}  # their results have one dimension less than what they take


def _kind(node: Node) -> str:
    """Autograd's name of an operation, without the suffix "Backward0"."""
    return node.name().split("::")[-1].rstrip("0123456789").removesuffix("Backward")


def _reorders(node: Node) -> bool:
    """Whether an operation may put samples into another order, as far as its name and dimensions tell."""
    name = _kind(node)
    if name not in _ON_DIMENSIONS:
        return name not in _KEEPS
    saved = [getattr(node, each) for each in dir(node) if each.startswith("_saved_dim")]
    ndim = len(node._input_metadata[0].shape) + (name in _LOSES_ONE)  # of the tensor that the dimensions are those of
    dims = [_from_the_front(each, ndim) for some in saved for each in (some if isinstance(some, tuple) else (some,))]
    return dims[0] != 0 if name == "Permute" else 0 in dims or not dims


def _from_the_front(dim: int, ndim: int) -> int:
    """A dimension that autograd saved; it keeps a negative one as an unsigned number, so that -1 is 2^64 - 1."""
    return dim if dim < 2**63 else dim - 2**64 + ndim


def _others(
    graph: _Graph, uses: list[Use], above: Mapping[Node, set[Node]], leaves: Mapping[Node, str], sound: set[str]
) -> dict[str, str]:
    """The parameters with a use that is not recorded, and what that use is.

    ``above`` has what uses a view but for the result of its operation. A weight is ``sound`` if no recorded operation
    is in its making, so that no gradient is counted twice.
    """
    views: set[Node] = set()
    differentiated: set[str] = set()
    for use in uses:
        for name, node in use.views.items():
            if graph.root in above[node]:
                differentiated.add(name)
            elif name in sound:
                views.add(node)
    found: dict[str, str] = {}
    for node in reachable(graph.root, views):
        if node in leaves:
            kinds = sorted({_kind(user) for user in graph.users[node] if user not in views})
            found[leaves[node]] = f"used in {', '.join(kinds)}, for which there is no rule"
            if leaves[node] in differentiated:
                found[leaves[node]] = "used in a derivative that the module takes of its own layers"
    return found


def reachable(start: Node | None, without: Collection[Node] = ()) -> set[Node]:
    """The nodes of autograd's graph that can be reached from ``start`` on paths without the nodes ``without``."""
    seen = set() if start is None else {start}
    waiting = list(seen)
    while waiting:
        for each, _ in waiting.pop().next_functions:
            if each is not None and each not in seen and each not in without:
                seen.add(each)
                waiting.append(each)
    return seen


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

    def above(self, nodes: set[Node], without: Node | None = None) -> set[Node]:
        """Nodes and those that use them, directly or not, on paths that do not pass through ``without``."""
        seen = set(nodes)
        waiting = list(nodes)
        while waiting:
            for user in self.users.get(waiting.pop(), []):
                if user is not without and user not in seen:
                    seen.add(user)
                    waiting.append(user)
        return seen

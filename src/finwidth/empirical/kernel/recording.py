"""One forward pass with a record of every operation that uses a parameter, and the proof that no use is missed.

A recorded operation is given a view of its weight instead of the weight itself, so that autograd's graph tells its uses
apart.  A view that the output reaches only through the result of its operation takes part in that operation only, and
not in a derivative that the forward pass takes of it.  A parameter that the output reaches only through such views is
used in no other way: directly, or, as in weight normalisation, through a weight that is made of it.  Any other
parameter is left to the general route.

Where something made of parameters only meets the samples by broadcasting, as a position table or a gain does, what is
recorded is its expansion to the shape of the result: the gradients by that are those of every sample.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, replace
from functools import cache, cached_property
from typing import TypeAlias

import torch
from torch.autograd.graph import GradientEdge, Node, get_gradient_edge
from torch.overrides import TorchFunctionMode

from finwidth.empirical.kernel.calls import COPY
from finwidth.empirical.kernel.compositions import COMPOSITIONS
from finwidth.empirical.kernel.operations import MEETINGS, OPERATIONS, Expansion, Meeting, Operation, Rule
from finwidth.errors import FinwidthError

Tensor = torch.Tensor
Signature: TypeAlias = tuple[int, type, str | None, str | None, int, int]
DIFFERENTIATED = "used in a derivative that the module takes of its own layers"


@dataclass(frozen=True)
class Use:
    """One call of an operation with counted parameters: its weight and bias, its input, its result as a graph edge.

    ``number`` tells it from others of a pass: operations are counted up, tensors that may be expanded down. ``names``
    are those of weight and bias; one that is no parameter but made of some has a name too, "#0", "#1" and so on.
    """

    number: int
    rule: Rule
    weights: tuple[Tensor | None, Tensor | None]
    input: Tensor
    version: int  # of the input at the call; another one later means that it was changed in place
    edge: GradientEdge
    shape: torch.Size  # of the result
    nodes: tuple[Node | None, Node | None]  # of the views of weight and bias
    names: tuple[str | None, str | None] = (None, None)

    @property
    def views(self) -> dict[str, Node]:
        """The views of the weights that count, by name."""
        pairs = zip(self.names, self.nodes, strict=True)
        return {name: node for name, node in pairs if name is not None and node is not None}

    @property
    def signature(self) -> Signature:
        """Identifies the call; the same in every pass, unless control flow depends on the data."""
        return self.number, type(self.rule), *self.names, self.input.ndim, len(self.shape)

    def meets_samples(self, fewer: Use) -> bool:
        """Whether the samples are in its input or result, and not in its weights, by the same use of fewer samples."""
        sizes = [[None if each is None else each.shape for each in use.weights] for use in (self, fewer)]
        return sizes[0] == sizes[1] and (self.shape != fewer.shape or self.input.shape != fewer.input.shape)


@dataclass(frozen=True, eq=False)
class Record:
    """The record of one forward pass.

    ``output`` has shape (n, o); ``uses`` are the calls that it depends on; ``made`` has the weights computed from
    ``parameters``, which are the leaves of the ``graph`` behind the output.
    """

    output: Tensor
    uses: list[Use]
    made: Mapping[str, Tensor]
    graph: _Graph
    parameters: Mapping[str, Tensor]

    def backward(self, cotangents: Tensor, *, batched: bool) -> list[Tensor]:
        """Gradients by the result of every use, for rows of cotangents of the outputs, shape (rows, n, all outputs)."""
        if not self.uses:
            return []
        if batched:
            return self._backward(cotangents, batched=True)
        rows = [self._backward(each, batched=False) for each in cotangents]
        return [torch.stack(column) for column in zip(*rows, strict=True)]

    def _backward(self, cotangents: Tensor, *, batched: bool) -> list[Tensor]:
        """Gradients for one row of cotangents or, batched, several; zeros where a function of autograd gives none."""
        found = torch.autograd.grad(
            self.output,
            [use.edge for use in self.uses],
            cotangents,
            retain_graph=True,
            is_grads_batched=batched,
            allow_unused=True,
        )
        rows = cotangents.shape[:1] if batched else ()
        pairs = zip(found, self.uses, strict=True)
        return [self.output.new_zeros(*rows, *use.shape) if each is None else each for each, use in pairs]

    def backward_either_way(self, cotangents: Tensor) -> tuple[list[Tensor], bool]:
        """As `backward`, for all rows at once if torch can; and whether it can."""
        try:
            return self.backward(cotangents, batched=True), True
        except RuntimeError:
            return self.backward(cotangents, batched=False), False

    def behind(self, use: Use) -> set[str]:
        """The parameters that a use depends on by its weights."""
        return {name for key in use.views for name in self.made_of.get(key, {key})}

    def without_nested(self, numbers: Collection[int]) -> Record:
        """The record of the uses with these numbers, but for those with a result of another in their weights' making.

        Those are operations on what is made of samples, and no weights.
        """
        record = replace(self, uses=[use for use in self.uses if use.number in numbers])
        uses = [use for use in record.uses if not record.nested & use.views.keys()]
        names = {name for use in uses for name in use.views}
        return replace(self, uses=uses, made={name: each for name, each in self.made.items() if name in names})

    @cached_property
    def nested(self) -> set[str]:
        """The computed weights with a result of a use in their making."""
        above = self.graph.above(self._results)
        return {name for name, weight in self.made.items() if weight.grad_fn in above}

    @cached_property
    def made_of(self) -> Mapping[str, frozenset[str]]:
        """The names of the parameters that computed weights are made of."""
        leaves, below = self._leaves, {name: reachable(weight.grad_fn) for name, weight in self.made.items()}
        return {name: frozenset(leaves[each] for each in nodes if each in leaves) for name, nodes in below.items()}

    @cached_property
    def others(self) -> Mapping[str, str]:
        """The parameters used in other ways, and how.

        Those of a weight with a recorded operation in its making are among them: gradients would be counted twice.
        """
        views: set[Node] = set()
        differentiated: set[str] = set()
        for use in self.uses:
            for name, node in use.views.items():
                if self.graph.root in self._above[node]:
                    differentiated.add(name)
                elif name not in self.nested:
                    views.add(node)
        found: dict[str, str] = {}
        for node in reachable(self.graph.root, views):
            if node in self._leaves:
                name = self._leaves[node]
                kinds = sorted({_kind(user.name()) for user in self.graph.users[node] if user not in views})
                found[name] = f"used in {', '.join(kinds)}, for which there is no rule"
                if name in differentiated:
                    found[name] = DIFFERENTIATED
        for name in self.nested:
            reason = "used in the making of a weight with others that meet the samples"
            found |= dict.fromkeys(self.made_of[name], reason)
        return found

    @cached_property
    def reorders(self) -> bool:
        """Whether some operation between the results and the output is not known to keep samples in their order."""
        after = self.graph.above(self._results) - self._results.union(*self._above.values())
        return any(map(_reorders, after))

    @cached_property
    def _results(self) -> set[Node]:
        return {use.edge.node for use in self.uses}

    @cached_property
    def _leaves(self) -> Mapping[Node, str]:
        return {get_gradient_edge(each).node: name for name, each in self.parameters.items()}

    @cached_property
    def _above(self) -> Mapping[Node, set[Node]]:
        """What uses a view but for the result of its operation."""
        return {view: self.graph.above({view}, use.edge.node) for use in self.uses for view in use.views.values()}


class Recorder(TorchFunctionMode):
    """Notes every operation of `OPERATIONS` and `MEETINGS` that takes a counted parameter itself, or a weight.

    The given tensors are the counted parameters, leaves of the graph. With ``numbers`` only the calls of these are
    noted; without, all that may count, and among them weights that depend on the samples. Tensors without numbers tell
    no places of samples, so their calls are noted only with ``empty``.
    """

    def __init__(
        self, parameters: Mapping[str, Tensor], numbers: Collection[int] | None = None, *, empty: bool = False
    ) -> None:
        super().__init__()
        self.empty = empty
        self.parameters = parameters
        self.names = {id(each): name for name, each in parameters.items()}
        self.numbers = numbers
        self.operations = self.expansions = 0
        self.uses: list[Use] = []

    def __torch_function__(
        self,
        func: Callable[..., Tensor],
        types: Collection[type],
        args: tuple[object, ...] = (),
        kwargs: Mapping[str, object] | None = None,
    ) -> object:
        """Call the function, and note it."""
        kwargs = kwargs or {}
        if kwargs.get("generator") is not None:
            raise FinwidthError(
                "the module draws random numbers by a generator of its own, so that each call is of another network; "
                "call module.eval() first, or give it fixed numbers"
            )
        if func in MEETINGS:
            args, kwargs = _replaced(args, kwargs, self._expanded(MEETINGS[func](*args, **kwargs)))
        elif func in COMPOSITIONS:
            result = COMPOSITIONS[func](self, *args, **kwargs)
            if result is not None:
                return result
        elif func in OPERATIONS:
            self.operations += 1
            operation = OPERATIONS[func](*args, **kwargs) if self._wanted(self.operations) else None
            if operation is not None and _is_usual(operation, empty=self.empty):
                views = self._views(operation)
                args, kwargs = _replaced(args, kwargs, views)
                return self._noted(self.operations, operation, views, func(*args, **kwargs))
        return func(*args, **kwargs)

    def _wanted(self, number: int) -> bool:
        return self.numbers is None or number in self.numbers

    def _views(self, operation: Operation) -> dict[int, Tensor]:
        """Views of an operation's weights that count, or may be made of parameters that do, by the id of these."""
        trained = [each for each in (operation.weight, operation.bias) if each is not None and each.requires_grad]
        return {id(each): each.view_as(each) for each in trained if id(each) in self.names or each.grad_fn is not None}

    def _expanded(self, meeting: Meeting | None) -> dict[int, Tensor]:
        """The expansions of the tensors that an elementwise operation expands, by the id of these."""
        found: dict[int, Tensor] = {}
        if meeting is None or not (self.empty or meeting.shape.numel()):
            return found
        for each in meeting.tensors:
            self.expansions -= 1
            smaller = each.shape != meeting.shape or self.numbers is not None  # of a single sample it is as large
            if smaller and self._wanted(self.expansions):
                whole = Operation(Expansion(each.shape), each, None, None)
                views = self._views(whole)
                if views:
                    found[id(each)] = self._noted(self.expansions, whole, views, views[id(each)].expand(meeting.shape))
        return found

    def _noted(self, number: int, operation: Operation, views: Mapping[int, Tensor], result: Tensor) -> Tensor:
        """The result of an operation that was given views of its weights, by the id of these; and note it."""
        if views and result.requires_grad:
            weights = operation.weight, operation.bias
            source, edge = result if operation.input is None else operation.input, get_gradient_edge(result)
            weight, bias = (views[id(each)].grad_fn if id(each) in views else None for each in weights)
            use = Use(number, operation.rule, weights, source, source._version, edge, result.shape, (weight, bias))
            self.uses.append(use)
        return result

    def record(self, output: Tensor, numbers: Collection[int] | None = None) -> Record:
        """The record of a pass under this mode that gave this output, of the calls with these numbers or of all."""
        graph = _Graph(output)
        if any("CheckpointFunction" in node.name() for node in graph.users):
            raise FinwidthError(
                "the module uses torch.utils.checkpoint with use_reentrant=True, which hides its layers from "
                "autograd.grad; give use_reentrant=False"
            )
        for node in graph.users:
            name = getattr(getattr(node, "variable", None), COPY, None)
            if name is not None:
                raise FinwidthError(
                    f"the module keeps what it makes of its parameter {name!r} from one call to the next, where it "
                    "cannot be put back (in a class, a global, functools.cache), so that its gradients would be those "
                    "of an earlier call; empty that and make it anew in every call, or keep it in an attribute of the "
                    "module"
                )
        chosen = (each for each in self.uses if numbers is None or each.number in numbers)
        uses, made = self._named([each for each in chosen if graph.has(each)])
        return Record(output, uses, made, graph, self.parameters)

    def _named(self, uses: list[Use]) -> tuple[list[Use], dict[str, Tensor]]:
        """The uses with the names of their weights, and the weights that are no parameters."""
        names, made, found = dict(self.names), dict[str, Tensor](), list[Use]()
        for use in uses:
            for each, node in zip(use.weights, use.nodes, strict=True):
                if each is not None and node is not None and id(each) not in names:
                    names[id(each)] = f"#{len(made)}"
                    made[names[id(each)]] = each
            weight, bias = (names.get(id(each)) for each in use.weights)
            found.append(replace(use, names=(weight, bias)))
        return found, made


def _replaced(
    args: tuple[object, ...], kwargs: Mapping[str, object], others: Mapping[int, Tensor]
) -> tuple[tuple[object, ...], Mapping[str, object]]:
    """The arguments of a call with other tensors in the place of some, by the id of these."""
    if not others:
        return args, kwargs
    replaced = {key: others.get(id(each), each) for key, each in kwargs.items()}
    return tuple(others.get(id(each), each) for each in args), replaced


def numbers_of(two: Recorder, three: Recorder) -> frozenset[int]:
    """The numbers of the calls in which weights without samples meet samples, by passes of two samples and of three."""
    fewer = {use.number: use for use in two.uses}
    if two.expansions != three.expansions:  # how often depends on the samples; operations are compared by the plan
        fewer = {number: use for number, use in fewer.items() if number > 0}
    if two.operations != three.operations:
        return frozenset(use.number for use in three.uses)
    return frozenset(use.number for use in three.uses if use.number in fewer and use.meets_samples(fewer[use.number]))


def _is_usual(operation: Operation, *, empty: bool) -> bool:
    """Whether weight and bias have no other part in the call, and no transform of torch.func is at work.

    Nor are there nested tensors, whose samples have no axis, or ones without numbers unless they may be.
    """
    weights = [each for each in (operation.weight, operation.bias) if each is not None and each.requires_grad]
    wrapped = torch._C._functorch.is_functorch_wrapped_tensor
    source = [] if operation.input is None else [operation.input]
    if any(each.is_nested or not (empty or each.numel()) for each in (*source, *weights)):
        return False
    if not weights or operation.weight is operation.bias or any(map(wrapped, (*source, *weights))):
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


@cache
def _kind(name: str) -> str:
    """Autograd's name of an operation, without the suffix "Backward0"."""
    return name.rsplit("::", maxsplit=1)[-1].rstrip("0123456789").removesuffix("Backward")


@cache
def _saved_dimensions(kind: type[Node]) -> list[str]:
    """The attributes in which nodes of a kind keep dimensions."""
    return [each for each in dir(kind) if each.startswith("_saved_dim")]


def _reorders(node: Node) -> bool:
    """Whether an operation may put samples into another order, as far as its name and dimensions tell."""
    name = _kind(node.name())
    if name not in _ON_DIMENSIONS:
        return name not in _KEEPS
    saved = [getattr(node, each) for each in _saved_dimensions(type(node))]
    ndim = len(node._input_metadata[0].shape) + (name in _LOSES_ONE)  # of the tensor that the dimensions are those of
    dims = [_from_the_front(each, ndim) for some in saved for each in (some if isinstance(some, tuple) else (some,))]
    return dims[0] != 0 if name == "Permute" else 0 in dims or not dims


def _from_the_front(dim: int, ndim: int) -> int:
    """A dimension that autograd saved; it keeps a negative one as an unsigned number, so that -1 is 2^64 - 1."""
    return dim if dim < 2**63 else dim - 2**64 + ndim


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
                if each in self.users:
                    self.users[each].append(node)
                elif each is not None:
                    self.users[each] = [node]
                    waiting.append(each)

    def has(self, use: Use) -> bool:
        """Whether the output depends on a use, whose input is as it was."""
        return use.edge.node in self.users and use.input._version == use.version

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

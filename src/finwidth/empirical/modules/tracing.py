"""What a torch module computes, as an expression of its layers: `traced`.

The forward pass is followed by torch.fx.  A layer without an nn.Linear inside, and a function of one tensor, is told by
what it makes of numbers, unless it is one of torch's own: the identity, an activation, a norm.  So an expression is a
guess where forward passes are the user's own; `finwidth.empirical.modules.recognition` holds it against the module.
"""

from __future__ import annotations

import copy
import math
import operator
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from functools import partial
from itertools import permutations
from typing import Any, NoReturn, TypeAlias

import numpy as np
import torch
from torch import fx, nn
from torch.nn import functional

from finwidth.empirical.kernel.calls import differentiable, first_line, untouched
from finwidth.empirical.modules.activation import BuiltIn, Pointwise, TwoSlopes, activation_module, torch_class
from finwidth.errors import FinwidthError, shown
from finwidth.networks.activations import ACTIVATIONS, Activation, SmoothActivation

Tensor = torch.Tensor

RECOGNISED = (
    "recognised are nn.Sequential of nn.Linear and one activation between them, residual networks of a first "
    "nn.Linear, blocks x + f(x) with two of them in f, and a last one, and both with RMSNorm or LayerNorm"
)


def unread(reason: str) -> FinwidthError:
    """The one error."""
    return FinwidthError(f"this module is not a network that finwidth recognises: {reason} ({RECOGNISED})")


def not_read(reason: str) -> NoReturn:
    """Raise it."""
    raise unread(reason)


# ---- expressions


@dataclass(eq=False)
class Value:
    """What a part of the module gives, called ``name`` there: of the module's input, unless it is a kind below."""

    name: str


@dataclass(eq=False)
class Product(Value):
    """Of a linear layer, with the names of its parameters."""

    of: Value
    weight: str
    bias: str | None


@dataclass(eq=False)
class Entrywise(Value):
    """Of an activation."""

    of: Value
    phi: Activation


@dataclass(eq=False)
class Normed(Value):
    """Of a norm, with the names of its scale and shift."""

    of: Value
    kind: str
    epsilon: Fraction
    parameters: tuple[str, ...]


@dataclass(eq=False)
class Total(Value):
    """A sum of multiples of values."""

    terms: tuple[Term, ...]


@dataclass(frozen=True)
class Term:
    """A multiple of a value."""

    value: Value
    factor: float = 1.0


@dataclass(frozen=True)
class _Parameter:
    """A parameter that the forward pass uses itself, by name."""

    name: str


@dataclass(frozen=True)
class _Transposed:
    """The transpose of a parameter."""

    name: str


class _Unknown:
    """A number that depends on the input's shape, or the like."""


_Traced: TypeAlias = Term | _Parameter | _Transposed | _Unknown | object  # the last: a constant


@dataclass(frozen=True)
class Trace:
    """The output's expression; whether it is certain; and whether a part of it is computed in float32 always."""

    output: Value
    certain: bool
    coarse: bool


def traced(module: nn.Module) -> Trace:
    """The expression that a module computes; FinwidthError, with the reason, if it is not made of what is known."""
    for name, each in module.named_modules(remove_duplicate=False):
        if each._forward_hooks or each._forward_pre_hooks:
            told = f"layer {name!r}" if name else "it"
            not_read(f"{told} has forward hooks, which may change what it computes")
    try:
        graph = _Tracer().trace(module)
    except Exception as error:  # whatever the user's forward raises when it is followed
        kind = type(module).__name__
        not_read(f"the forward of {kind} cannot be followed: {type(error).__name__}: {first_line(error)}")
    reader = _Reader(module)
    for node in graph.nodes:
        reader.read(node)
    own = all(type(each) in _CERTAIN or isinstance(each, nn.modules.dropout._DropoutNd) for each in module.modules())
    return Trace(reader.output(), own and not reader.reshaped, reader.coarse)


_CERTAIN = {nn.Sequential, nn.Linear, nn.Identity, nn.Flatten, nn.ReLU, nn.LeakyReLU, nn.Tanh, nn.GELU, nn.SiLU}


class _Tracer(fx.Tracer):
    """Goes into the modules that have a linear layer inside."""

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        """Whether the module is one node."""
        return isinstance(m, nn.Linear) or not any(isinstance(each, nn.Linear) for each in m.modules())


_ADD = {operator.add, operator.iadd, torch.add, "add", "add_"}
_SUBTRACT = {operator.sub, operator.isub, torch.sub, "sub", "sub_"}
_MULTIPLY = {operator.mul, operator.imul, torch.mul, torch.multiply, "mul", "mul_"}
_DIVIDE = {operator.truediv, operator.itruediv, torch.div, torch.true_divide, "div", "div_"}
_RESHAPE = {"view", "reshape", "flatten", torch.flatten, torch.reshape}
_SQUEEZE = {"squeeze", torch.squeeze, operator.getitem, *_RESHAPE}
_TRANSPOSE = {"t", torch.t, "transpose", torch.transpose, getattr}
_MATMUL = {operator.matmul, torch.matmul, "matmul", torch.mm, "mm"}


class _Reader:
    """Goes through the graph of a module, node by node, and keeps what each gives."""

    def __init__(self, module: nn.Module) -> None:
        self.module = module
        self.found: dict[fx.Node, _Traced] = {}
        self.result: _Traced = None
        self.scaled: dict[tuple[Total, float], Total] = {}  # by what multiple of which sum they are
        self.begun = self.coarse = self.reshaped = False
        self.width = next((each.in_features for each in module.modules() if isinstance(each, nn.Linear)), 1)
        self.dtype = next((each.dtype for each in module.parameters() if each.is_floating_point()), torch.float32)

    def output(self) -> Value:
        """Of the module."""
        if not isinstance(self.result, Term):
            not_read("it does not return one tensor")
        if self.result.factor != 1:
            not_read(f"its output is multiplied by {self.result.factor:g}")
        return self.result.value

    def read(self, node: fx.Node) -> None:
        """Find what a node gives, of those before it."""
        args, kwargs = self._values(node.args), self._values(node.kwargs)
        if node.op == "placeholder":
            self.found[node] = self._placeholder(node)
        elif node.op == "get_attr":
            self.found[node] = self._attribute(str(node.target))
        elif node.op == "output":
            self.result = args[0]
        elif node.op == "call_module":
            self.found[node] = self._layer(str(node.target), args, kwargs)
        else:
            self.found[node] = self._function(node, args, kwargs)

    def _values(self, given: Any) -> Any:
        return fx.node.map_arg(given, self.found.__getitem__)  # type: ignore[arg-type]  # not for a graph

    def _placeholder(self, node: fx.Node) -> _Traced:
        if not self.begun:
            self.begun = True
            return Term(Value("input"))
        if not node.args:
            not_read(f"its forward takes {node.target!r} besides")
        default: object = node.args[0]
        return default

    def _attribute(self, name: str) -> _Traced:
        found: object = operator.attrgetter(name)(self.module)
        if isinstance(found, nn.Parameter):
            return _Parameter(name)
        if isinstance(found, Tensor) and not found.ndim:
            return float(found)
        return found

    # ---- layers

    def _layer(self, name: str, args: Sequence[_Traced], kwargs: object) -> _Traced:
        leaf = self.module.get_submodule(name)
        if len(args) != 1 or kwargs or not isinstance(args[0], Term):
            not_read(f"layer {name!r}, {type(leaf).__name__}, takes more than one tensor")
        term = args[0]
        first = type(term.value) is Value
        if isinstance(leaf, nn.Linear):
            if type(leaf) is not nn.Linear:
                not_read(f"layer {name!r} is of type {type(leaf).__name__}")
            return self._product(name, term, f"{name}.weight", None if leaf.bias is None else f"{name}.bias")
        if isinstance(leaf, nn.modules.dropout._DropoutNd):
            if leaf.training and leaf.p:
                not_read(f"layer {name!r} is Dropout in training mode; call module.eval() first")
            return term
        if type(leaf) is nn.Identity or (type(leaf) is nn.Flatten and first):
            return term
        if type(leaf) is nn.Flatten and self._one_number(term):
            return self._squeezed(term)
        phi = None if type(leaf) is nn.Flatten else _known_activation(name, leaf)
        if phi is None and not first and type(leaf) is not nn.Flatten:
            found = self._run_layer(name, leaf, term)
            if found is not None:
                return found
        if phi is None:
            what = "a function of the user's own" if type(leaf) is Pointwise else f"of type {type(leaf).__name__}"
            not_read(f"layer {name!r} is {what}")
        if isinstance(term.value, Entrywise) or first:
            not_read(f"layer {name!r}, {type(leaf).__name__}, does not follow a Linear layer")
        return Term(Entrywise(name, self._plain(term, name), phi))

    def _run_layer(self, name: str, leaf: nn.Module, term: Term) -> Term | None:
        """What a layer of the user's own is, by running it; None if it is none of those known."""
        leaf = in_double(leaf, self.dtype)
        names = [each for each, _ in leaf.named_parameters()]
        width = self._width(term.value)
        with untouched(leaf), differentiable(), torch.no_grad():
            if not names and not list(leaf.buffers()):
                found = _entrywise(leaf, width)
                if found is not None:
                    return self._applied(name, found, term)
            norm = _norm_of(leaf, width)
        if norm is None:
            return None
        kind, epsilon, order, coarse = norm
        self.coarse |= coarse
        return Term(Normed(name, self._plain(term, name), kind, epsilon, tuple(f"{name}.{each}" for each in order)))

    def _applied(self, name: str, found: Activation, term: Term) -> Term:
        if found == ACTIVATIONS["linear"]:
            return term
        if isinstance(term.value, Entrywise) or type(term.value) is Value:
            not_read(f"{name!r}, {found.name}, does not follow a Linear layer")
        return Term(Entrywise(name, self._plain(term, name), found))

    def _product(self, name: str, term: Term, weight: str, bias: str | None) -> Term:
        return Term(Product(name, self._plain(term, name), weight, bias))

    def _plain(self, term: Term, name: str) -> Value:
        """What a layer takes; a multiple of a sum as a sum of multiples, the same one for all that take it."""
        if term.factor != 1 and isinstance(term.value, Total):
            each = tuple(Term(part.value, part.factor * term.factor) for part in term.value.terms)
            return self.scaled.setdefault((term.value, term.factor), Total(term.value.name, each))
        if term.factor != 1:
            not_read(f"what {name!r} takes is multiplied by {term.factor:g}")
        return term.value

    def _one_number(self, term: Term) -> bool:
        """Whether it is one number a sample, of a layer of one neuron, which the module may give as it likes."""
        return isinstance(term.value, Product) and self._width(term.value) == 1

    def _squeezed(self, term: Term) -> Term:
        self.reshaped = True
        return term

    def _width(self, value: Value) -> int:
        """How many numbers a value has for each sample."""
        while not isinstance(value, Product):
            if isinstance(value, Total):
                value = value.terms[0].value
            elif isinstance(value, Entrywise | Normed):
                value = value.of
            else:
                return self.width
        return len(self.module.get_parameter(value.weight))

    # ---- functions

    def _function(  # noqa: PLR0911 - a table of cases
        self, node: fx.Node, args: Sequence[_Traced], kwargs: dict[str, _Traced]
    ) -> _Traced:
        name, target = node.name, node.target
        terms = [each for each in (*args, *kwargs.values()) if isinstance(each, Term)]
        if not terms:
            return self._transposed(args[0], args[1:]) if target in _TRANSPOSE and args else _Unknown()
        if target in _ADD or target in _SUBTRACT:
            alpha = kwargs.get("alpha", 1)
            others = kwargs.keys() - {"alpha"}
            return self._sum(name, args, others, alpha if target in _ADD else _times(alpha, -1))
        if target in _MULTIPLY and len(args) == 2 and not kwargs:
            return self._multiple(name, args[0], args[1])
        if target in _DIVIDE and len(args) == 2 and not kwargs and isinstance(args[1], int | float):
            return self._multiple(name, args[0], 1 / args[1] if args[1] else None)
        if target in {operator.neg, torch.neg, "neg"}:
            return self._multiple(name, terms[0], -1)
        if target is functional.linear:
            return self._linear_function(name, *args, **kwargs)
        if target in _MATMUL and len(args) == 2 and isinstance(args[1], _Transposed):
            return self._linear_function(name, args[0], _Parameter(args[1].name))
        if target in {torch.addmm, "addmm"} and len(args) == 3 and not kwargs and isinstance(args[2], _Transposed):
            return self._linear_function(name, args[1], _Parameter(args[2].name), args[0])
        if target in {functional.layer_norm, getattr(functional, "rms_norm", None)}:
            return self._norm_function(name, target is functional.layer_norm, *args, **kwargs)
        first = type(terms[0].value) is Value
        if len(terms) == 1 and first and target in _RESHAPE:
            return terms[0]
        if len(terms) == 1 and target in _SQUEEZE and self._one_number(terms[0]):
            return self._squeezed(terms[0])
        return self._run_function(node, terms, args, kwargs)

    def _transposed(self, matrix: _Traced, how: Sequence[_Traced]) -> _Traced:
        known = {(), ("T",), ("mT",), (0, 1), (1, 0), (-1, -2), (-2, -1)}
        if isinstance(matrix, _Parameter) and tuple(how) in known and self.module.get_parameter(matrix.name).ndim == 2:
            return _Transposed(matrix.name)
        return _Unknown()

    def _sum(self, name: str, args: Sequence[_Traced], others: Collection[str], alpha: _Traced) -> Term:
        if args[0] == 0 and alpha == 1 and len(args) == 2 and isinstance(args[1], Term):  # as sum() begins
            return args[1]
        if len(args) == 2 and not others and alpha == 1 and (layer := _with_bias(*args)):
            return Term(layer)
        if others or len(args) != 2 or not all(isinstance(each, Term) for each in args):
            not_read(f"it adds what is neither a Linear layer's nor the stream ({name!r})")
        one, other = args
        assert isinstance(one, Term)
        assert isinstance(other, Term)
        return Term(Total(name, (self._as_taken(one), self._as_taken(self._multiple(name, other, alpha)))))

    def _as_taken(self, term: Term) -> Term:
        """A multiple of a sum as one of the multiple that layers took before, if they did."""
        for (total, factor), taken in self.scaled.items():
            if total is term.value:
                return Term(taken, term.factor / factor)
        return term

    def _multiple(self, name: str, one: _Traced, other: _Traced) -> Term:
        term, number = (one, other) if isinstance(one, Term) else (other, one)
        if isinstance(number, _Parameter):
            not_read(f"it multiplies by a parameter, {number.name!r}")
        if not isinstance(term, Term) or isinstance(number, bool) or not isinstance(number, int | float):
            not_read(f"it multiplies by what is no number ({name!r})")
        return term if number == 1 else Term(term.value, term.factor * number)

    def _linear_function(self, name: str, input: _Traced, weight: _Traced, bias: _Traced = None) -> Term:
        if not (isinstance(input, Term) and isinstance(weight, _Parameter) and isinstance(bias, _Parameter | None)):
            not_read(f"the weights of {name!r} are no parameters")
        return self._product(name, input, weight.name, None if bias is None else bias.name)

    def _norm_function(  # noqa: PLR0917
        self,
        name: str,
        centred: bool,
        input: _Traced,
        normalized_shape: _Traced,
        weight: _Traced = None,
        bias: _Traced = None,
        eps: _Traced = None,
    ) -> Term:
        given = [each for each in (weight, bias) if each is not None]
        parameters = [each for each in given if isinstance(each, _Parameter)]
        shape = tuple(normalized_shape) if isinstance(normalized_shape, Sequence) else (normalized_shape,)
        if not isinstance(input, Term) or len(parameters) < len(given) or len(shape) != 1:
            not_read(f"{name!r} is no norm of the neurons of one layer by numbers")
        if shape[0] != self._width(input.value):
            not_read(f"{name!r} does not normalise all neurons")
        default = 1e-5 if centred else torch.finfo(self.dtype).eps
        number = default if eps is None else eps
        if not isinstance(number, int | float):
            not_read(f"{name!r} has an epsilon that is no number")
        epsilon = Fraction(str(float(number)))
        names = tuple(each.name for each in parameters)
        _check_parts(name, "layer" if centred else "rms", names)
        return Term(Normed(name, self._plain(input, name), "layer" if centred else "rms", epsilon, names))

    def _run_function(
        self, node: fx.Node, terms: list[Term], args: Sequence[_Traced], kwargs: dict[str, _Traced]
    ) -> _Traced:
        """What a function, or a method, of one tensor and constants is, by running it."""
        name = node.name
        others = [each for each in (*args, *kwargs.values()) if not isinstance(each, Term)]
        if len(terms) > 1 or any(isinstance(each, Term | _Parameter) for each in _inside(others)):
            not_read(f"its forward has {name!r}, of several tensors")

        def run(x: Tensor) -> object:
            put = [x if isinstance(each, Term) else each for each in args]
            named = {key: x if isinstance(each, Term) else each for key, each in kwargs.items()}
            if node.op == "call_method":
                return getattr(put[0], str(node.target))(*put[1:], **named)
            assert callable(node.target)
            return node.target(*put, **named)

        state = torch.random.get_rng_state()
        try:
            found = _entrywise(run, self._width(terms[0].value))
            random = not torch.equal(torch.random.get_rng_state(), state)
            no_tensor = found is None and not isinstance(
                _tried(run, torch.ones(2, self._width(terms[0].value))), Tensor
            )
        finally:
            torch.random.set_rng_state(state)
        if random:
            not_read(f"its forward has {name!r}, which draws random numbers; call module.eval() first")
        if no_tensor:
            return _Unknown()
        if found is None:
            not_read(f"its forward has {name!r}, which is not known")
        return self._applied(name, found, terms[0])


def _with_bias(one: _Traced, bias: _Traced) -> Product | None:
    """A linear layer without a bias, and a parameter that is added to it; None if that is not what they are."""
    layer = one.value if isinstance(one, Term) and one.factor == 1 else None
    if not isinstance(layer, Product) or layer.bias is not None or not isinstance(bias, _Parameter):
        return None
    return replace(layer, bias=bias.name)


def _times(one: _Traced, other: int) -> _Traced:
    return one * other if isinstance(one, int | float) else one


def _inside(values: Sequence[object]) -> Iterator[object]:
    """Values, and those in tuples and lists."""
    for each in values:
        if isinstance(each, list | tuple):
            yield from _inside(each)
        else:
            yield each


# ---- what torch's own layers are


def _known_activation(name: str, leaf: nn.Module) -> Activation | None:
    """The activation that one of torch's modules, or of ours, is; FinwidthError for other options of it."""
    if type(leaf) is nn.ReLU:
        return ACTIVATIONS["relu"]
    if type(leaf) is nn.LeakyReLU:
        usual = ACTIVATIONS["leaky_relu"]
        return (
            usual if leaf.negative_slope == float(usual.negative) else Activation("leaky_relu", 1, leaf.negative_slope)
        )
    if isinstance(leaf, TwoSlopes | BuiltIn):
        return leaf.phi
    for phi in ACTIVATIONS.values():
        if isinstance(phi, SmoothActivation) and type(leaf) is torch_class(phi):
            known = activation_module(phi)
            if any(getattr(leaf, option) != value for option, value in _options(known).items()):
                not_read(f"layer {name!r} is {leaf}; {known} is known")
            return phi
    return None


def _options(module: nn.Module) -> dict[str, object]:
    """The options that a module of torch was made with, where they change what it computes."""
    own = vars(nn.Module())
    return {name: value for name, value in vars(module).items() if name not in own and name != "inplace"}


# ---- what a function is, by running it


def in_double(module: nn.Module, dtype: torch.dtype) -> nn.Module:
    """A copy in float64; an RMSNorm whose epsilon is that of its dtype keeps it."""
    try:
        module = copy.deepcopy(module)
    except Exception as error:  # whatever a user's module raises
        raise FinwidthError(f"{shown(type(module).__name__)} cannot be copied: {first_line(error)}") from error
    for each in module.modules():
        if isinstance(each, nn.RMSNorm) and each.eps is None:
            each.eps = torch.finfo(dtype).eps
    return module.double()


def _tried(run: Callable[[Tensor], object], x: Tensor) -> object:
    """What a function of the user's makes of numbers; None if it raises."""
    try:
        return run(x.clone())
    except Exception:  # it is a layer or function of the user's own, which may take other shapes
        return None


def _tensor_of(run: Callable[[Tensor], object], x: Tensor) -> Tensor | None:
    found = _tried(run, x)
    same = isinstance(found, Tensor) and found.shape == x.shape and found.dtype == x.dtype
    return found.detach() if same and isinstance(found, Tensor) else None


def _test_points(width: int) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    sizes = torch.logspace(-3, 2, 11, dtype=torch.float64)[:, None]
    return sizes * torch.randn(11, width, generator=generator, dtype=torch.float64)


def _entrywise(run: Callable[[Tensor], object], width: int) -> Activation | None:
    """The activation that a function of numbers is, the identity among them; None if it is another."""
    x = _test_points(width)
    y, ones, minus = (_tensor_of(run, each) for each in (x, torch.ones_like(x), -torch.ones_like(x)))
    if y is None or ones is None or minus is None:
        return None
    positive, negative = float(ones.flatten()[0]), -float(minus.flatten()[0])
    if torch.equal(y, torch.where(x > 0, positive * x, negative * x)):
        known = (phi for phi in ACTIVATIONS.values() if not isinstance(phi, SmoothActivation))
        same = (phi for phi in known if (float(phi.positive), float(phi.negative)) == (positive, negative))
        return next(same, None) or (Activation("two slopes", positive, negative) if positive or negative else None)
    values = x.numpy()
    smooth = (phi for phi in ACTIVATIONS.values() if isinstance(phi, SmoothActivation))
    return next((phi for phi in smooth if np.allclose(y.numpy(), phi.value(values), rtol=1e-12, atol=1e-15)), None)


def _norm_of(leaf: nn.Module, width: int) -> tuple[str, Fraction, tuple[str, ...], bool] | None:
    """Kind, epsilon, and the names of scale and shift of the norm that a layer is, and if it computes in float32."""
    shapes = {name: each.shape for name, each in leaf.named_parameters()}
    if len(shapes) > 2 or any(shape != (width,) for shape in shapes.values()) or width < 2:
        return None
    x, generator = _test_points(width), torch.Generator().manual_seed(1)
    for order in permutations(shapes):
        values = [1 + torch.rand(width, generator=generator, dtype=torch.float64) for _ in order]
        scale, shift = (*values, None, None)[:2]
        unit = dict(zip(order, (torch.ones_like(x[0]), torch.zeros_like(x[0])), strict=False))
        y = _tensor_of(partial(_called, leaf, unit), x)
        z = _tensor_of(partial(_called, leaf, dict(zip(order, values, strict=True))), x)
        if y is None or z is None:
            continue
        coarse = torch.equal(y, y.float().double())
        for kind in ("rms", "layer"):
            epsilon = _epsilon(kind, x, y, coarse, getattr(leaf, "eps", None))
            if epsilon is None:
                continue
            right = _normalised(kind, x, float(epsilon))
            whole = (right if scale is None else scale * right) + (0 if shift is None else shift)
            if torch.allclose(z, whole, rtol=1e-4 if coarse else 1e-10, atol=1e-5 if coarse else 1e-12):
                _check_parts(type(leaf).__name__, kind, order)
                return kind, epsilon, order, coarse
    return None


def _called(leaf: nn.Module, values: dict[str, Tensor], x: Tensor) -> object:
    return torch.func.functional_call(leaf, values, (x,))


def _check_parts(name: str, kind: str, parameters: Sequence[str]) -> None:
    """Refuse a scale and a shift other than those of `Norm`."""
    if len(parameters) not in {0, 2 if kind == "layer" else 1}:
        wanted = "scale and shift" if kind == "layer" else "scale and no shift"
        not_read(f"{name} is a {kind} norm with other parameters than {wanted}, or none")


def _normalised(kind: str, x: Tensor, epsilon: float) -> Tensor:
    x = x - x.mean(-1, keepdim=True) if kind == "layer" else x
    return x / (x.square().mean(-1, keepdim=True) + epsilon).sqrt()


def _epsilon(kind: str, x: Tensor, y: Tensor, coarse: bool, hint: object) -> Fraction | None:
    """The epsilon with which y is the norm of x, the hint or as short as it can be written; None if there is none."""
    centred = x[0] - x[0].mean() if kind == "layer" else x[0]  # the shortest row
    place = int(centred.abs().argmax())
    if not float(y[0, place]) * float(centred[place]) > 0:
        return None
    number = float(centred[place] / y[0, place]) ** 2 - float(centred.square().mean())
    hints = [Fraction(hint)] if isinstance(hint, float) and 0 < hint < math.inf else []
    tried = [
        *hints,
        Fraction(0),
        *(_simple(number, digits) for digits in ((2, 3) if coarse else (2, 7, 12)) if number > 0),
    ]
    far = 1e-4 if coarse else 1e-10
    return next((e for e in tried if torch.allclose(y, _normalised(kind, x, float(e)), rtol=far, atol=far)), None)


def _simple(number: float, digits: int) -> Fraction:
    """A number as it is written."""
    return Fraction(f"{number:.{digits}g}")

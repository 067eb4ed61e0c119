"""How a module is called: on copies of what it may change, with gradients on, and left as it was found.

A module may count its calls, keep averages, or work in place on its input; each pass gets the buffers as they were and
an input of its own, so that every pass is of the same function and none leaves a trace.
"""

from __future__ import annotations

import contextlib
import operator
import random
import warnings
from collections import deque
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass, replace
from itertools import chain
from types import CellType, FunctionType, ModuleType
from typing import Any, NamedTuple, TypeAlias, TypeGuard

import numpy as np
import torch
from torch import nn
from torch.autograd import forward_ad
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.utils import parametrize
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from finwidth.arguments import running
from finwidth.empirical.kernel.batch import Batch
from finwidth.errors import FinwidthError

Tensor = torch.Tensor
COPY = "_finwidth_copy_of"  # the attribute that marks copies of parameters, whose graphs no later pass should reach
_HOOKS = nn.Module().__dict__.keys() - {"_parameters", "_buffers", "_modules"}  # torch's own attributes of every part
_FEW = 64  # objects in a container that is searched for generators of random numbers
_KINDS: dict[type, bool] = {}  # whether objects of a type draw random numbers
_UNTOUCHED: dict[int, _RandomStates] = {}  # of modules inside `untouched`, by their ids
_Generator: TypeAlias = torch.Generator | np.random.Generator | np.random.RandomState | random.Random


# A tensor with its derivative; and both of a tensor, None for the derivative if it has none. torch gives them no types.
dual: Callable[[Tensor, Tensor], Tensor] = forward_ad.make_dual
unpack_dual: Callable[[Tensor], tuple[Tensor, Tensor | None]] = forward_ad.unpack_dual

Container: TypeAlias = dict[Any, Any] | list[Any] | set[Any] | deque[Any]


class Snapshot:
    """The attributes of a module's parts (modes, hooks, counters, caches) as they are now, to be put back.

    And those of objects that the parts hold, which may keep such things for them.
    """

    def __init__(self, module: nn.Module, *, hooks: bool = True) -> None:
        self.held = _containers(module, hooks=hooks)
        self.before = [(each, list(each) if isinstance(each, list | deque) else each.copy()) for each in self.held]
        views = ((each.keys(), each.values()) if isinstance(each, dict) else (each,) for each, _ in self.before)
        self._now = [*chain.from_iterable(views)]  # which show what the containers hold at any time
        self._lengths, self._objects = [*map(len, self._now)], [*chain.from_iterable(self._now)]

    def restore(self) -> None:
        """Restore everything that has changed."""
        same = map(operator.is_, chain.from_iterable(self._now), self._objects)
        if [*map(len, self._now)] == self._lengths and all(same):
            return
        for each, before in self.before:
            if _same_objects(each, before):
                continue
            each.clear()
            if isinstance(each, list | deque):
                each.extend(before)
            elif isinstance(each, set) or isinstance(before, dict):
                each.update(before)


def _containers(module: nn.Module, *, hooks: bool = True) -> list[Container]:
    """The dicts, lists and the like in which a module's parts, and objects that they hold, keep what they know."""
    held: dict[int, Container] = {id(part.__dict__): part.__dict__ for part in module.modules()}
    waiting = [
        (each, True) for part in module.modules() for name, each in part.__dict__.items() if hooks or name not in _HOOKS
    ]
    while waiting:
        each, followed = waiting.pop()
        own = vars(each) if followed and _keeps(each) else each
        if isinstance(own, dict | list | set | deque) and id(own) not in held:
            held[id(own)] = own
            deeper = followed and (own is each or isinstance(each, nn.Module))  # of other objects only their attributes
            waiting += [(one, deeper) for one in _inside([own])]
    return [*held.values()]


def _inside(held: Iterable[Container | tuple[Any, ...]]) -> Iterator[Any]:
    """What containers hold, of dicts the values."""
    return chain.from_iterable(each.values() if isinstance(each, dict) else each for each in held)


def _keeps(each: object) -> bool:
    """Whether it is an object, or a function, with attributes of its own that may change in a forward pass.

    Those of torch do not, such as an optimizer, but for layers.
    """
    foreign = type(each).__module__.partition(".")[0] == "torch" and not isinstance(each, nn.Module)
    own = None if foreign or isinstance(each, ModuleType | type) else getattr(each, "__dict__", None)
    return isinstance(own, dict)


def _same_objects(one: Container, other: Container) -> bool:
    """Whether two containers hold the same objects."""
    if isinstance(one, dict) and isinstance(other, dict):
        return one.keys() == other.keys() and all(map(operator.is_, one.values(), other.values()))
    if isinstance(one, set):
        return bool(one == other)
    return len(one) == len(other) and all(map(operator.is_, one, other))


@dataclass(frozen=True, eq=False)
class Combinations:
    """Numbers that are made of a module's outputs.

    ``rows`` are the numbers of some outputs, or the coefficients of linear combinations, shape (k, outputs). There are
    as many of each of ``times`` equal parts of the outputs.
    """

    rows: Tensor
    times: int = 1

    def __len__(self) -> int:
        return self.times * len(self.rows)

    def cotangents(self, some: range, values: Tensor) -> Tensor:
        """The derivatives of some of the numbers by all outputs, shape (some, outputs)."""
        found = values.new_zeros(len(some), self.times, values.shape[-1] // self.times)
        for place, number in enumerate(some):
            part, i = divmod(number, len(self.rows))
            if self.rows.is_floating_point():
                found[place, part] = self.rows[i]
            else:
                found[place, part, self.rows[i]] = 1
        return found.flatten(1)

    def of(self, values: Tensor, some: range) -> Tensor:
        """Some of the numbers, from outputs in the last dimension."""
        parts = torch.unflatten(values, -1, (self.times, -1))
        found = parts @ self.rows.T if self.rows.is_floating_point() else parts[..., self.rows]
        return found.flatten(-2)[..., some.start : some.stop]

    def pulled(self, c: Tensor, outputs: int) -> Tensor:
        """The weights of the outputs in a sum of all numbers with weights ``c``."""
        rows = self.rows.to(c.device)
        if not rows.is_floating_point():
            rows = nn.functional.one_hot(rows, outputs // self.times)
        return (c.view(self.times, -1) @ rows.to(c)).flatten()


@dataclass(frozen=True)
class MeasuredModule:
    """A module and its counted parameters, with the scale of each.

    With a ``direction``, one tensor for each parameter, gradients are dual numbers: their tangents are the derivatives
    as the parameters move that way. A dual level of torch must be open then. With a ``mix`` t besides, gradients G are
    plain numbers G + t dG instead, and found sample by sample. ``steps``, if not 0, asks the check for central
    differences. ``changing`` names the buffers that a pass changes, ``snapshot`` puts everything else back after each.
    With a ``function``, its values at what the module returns and the samples are the outputs; with ``combinations``,
    the kernel is of these. ``groups`` has for every parameter the number of its group, if groups are told apart.
    """

    module: nn.Module
    parameters: Mapping[str, Tensor]
    scales: Mapping[str, float]
    snapshot: Snapshot
    direction: Mapping[str, Tensor] | None = None
    mix: float | None = None
    steps: float = 0.0
    changing: frozenset[str] = frozenset()
    function: Callable[[object, object], object] | None = None
    combinations: Combinations | None = None
    groups: Mapping[str, int] | None = None

    def group(self, name: str) -> int:
        """The number of a parameter's group; 0 where groups are not told apart."""
        return self.groups[name] if self.groups else 0

    def buffers(self) -> dict[str, Tensor]:
        """Copies of the buffers that a pass changes."""
        own = dict(self.module.named_buffers()) if self.changing else {}
        return {name: own[name].clone() for name in self.changing}

    def leaves(self) -> Mapping[str, Tensor]:
        """The parameters, with their tangents."""
        if self.direction is None:
            return self.parameters
        duals = {name: dual(each.detach(), self.direction[name]) for name, each in self.parameters.items()}
        return {name: each.requires_grad_() for name, each in duals.items()}


def selected(network: MeasuredModule, values: Tensor, outputs: range) -> Tensor:
    """Some of the numbers that the kernel is of, from the module's outputs, the last dimension of ``values``."""
    if network.combinations is not None:
        return network.combinations.of(values, outputs)
    return values[..., outputs.start : outputs.stop]


def cotangents(network: MeasuredModule, values: Tensor, outputs: range) -> Tensor:
    """The derivatives of these numbers by the module's outputs, which are the last dimension of ``values``.

    Without combinations they are rows of the unit matrix; the whole of it may be far larger than they.
    """
    if network.combinations is not None:
        return network.combinations.cotangents(outputs, values)
    found = torch.zeros(len(outputs), values.shape[-1], dtype=values.dtype, device=values.device)
    found.diagonal(outputs.start).fill_(1)
    return found


def each_sample(network: MeasuredModule, values: Tensor, outputs: range) -> Tensor:
    """The cotangents of these numbers, each summed over the samples, shape (o, n, all outputs)."""
    return cotangents(network, values, outputs)[:, None, :].expand(-1, len(values), -1)


@contextmanager
def differentiable() -> Iterator[None]:
    """Gradients on, whatever the caller has set."""
    with torch.inference_mode(False), torch.enable_grad():
        yield


def _contiguous_gradient(layer: nn.Module, _: object, output: Any) -> None:
    """Have gradients reach batch normalisation in the order of its results: of transposed ones it makes wrong ones.

    So it is in torch 2.13 on the CPU, for a single sample (docs/zoo.md). Only the order of numbers in memory changes.
    """
    if output.requires_grad and not torch._C._functorch.is_functorch_wrapped_tensor(output):
        output.register_hook(torch.Tensor.contiguous)


def apply(network: MeasuredModule, x: Batch, parameters: Mapping[str, Tensor], *, flat: bool = True) -> Tensor:
    """The module's outputs at a copy of inputs x, shape (n, o), with the given tensors as its counted parameters.

    Of a function of the module's output, its values. Not ``flat``: in the shape in which they are returned.
    """
    module = network.module
    given = network.buffers()
    if parameters is not network.parameters:
        given |= parameters
    try:
        with telling(module, x):
            args, kwargs, _ = x.clone().call()
            output = torch.func.functional_call(module, given, args, kwargs) if given else module(*args, **kwargs)
            if network.function is not None:
                with running("outputs="):
                    output = network.function(output, x.clone().call().sample)
    finally:  # torch.func puts parameters back in the wrong order where two names are of one layer
        network.snapshot.restore()
    values = tensor_of(output)
    if x.form.rows is not None:
        values = values[x.form.rows.start : x.form.rows.stop]
    return check_output(values, len(x)) if flat else values


def call_module(module: nn.Module, x: Batch) -> object:
    """What a module returns at a copy of inputs x."""
    args, kwargs, _ = x.clone().call()
    return module(*args, **kwargs)


def gradient(
    values: Tensor, parameters: Sequence[Tensor], weights: Tensor | None = None, *, create_graph: bool = False
) -> list[Tensor]:
    """The derivatives of a number, or of values times weights, by each parameter.

    Zeros where it has no part in them, and never sparse.
    """
    if not values.requires_grad:
        return [torch.zeros_like(each) for each in parameters]
    found = torch.autograd.grad(
        values, parameters, weights, retain_graph=True, create_graph=create_graph, materialize_grads=True
    )
    return [each.to_dense() if each.is_sparse else each for each in found]


class FirstPass(NamedTuple):
    """A pass of one sample: what it changes in the module, its output, and how many bytes autograd keeps of it.

    There is no output (None) where it has ``failed`` or makes the module another, no count where torch cannot count.
    """

    changing: frozenset[str]
    output: Tensor | None = None
    saved: int | None = None
    failed: bool = False


@contextmanager
def saving() -> Iterator[dict[int, int]]:
    """Inside, the bytes of what autograd keeps are noted, by address."""
    kept: dict[int, int] = {}

    def note(each: Tensor) -> Tensor:
        kept[each.data_ptr()] = each.numel() * each.element_size()
        return each.detach()  # itself, the result of an operation would keep its own graph alive for ever

    with torch.autograd.graph.saved_tensors_hooks(note, lambda each: each):
        yield kept


class _Made(TorchDispatchMode):
    """Notes the bytes of all results that are no views, inside transforms of torch.func too."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.bytes: dict[int, int] = {}

    def __torch_dispatch__(
        self,
        func: torch._ops.OpOverload,
        types: Collection[type],
        args: tuple[object, ...] = (),
        kwargs: Mapping[str, object] | None = None,
    ) -> object:
        """Call the function, and note its results."""
        found = func(*args, **(kwargs or {}))
        if all(each.alias_info is None for each in func._schema.returns):
            made = (each for each in tree_leaves(found) if isinstance(each, Tensor) and not each._is_zerotensor())
            self.bytes[len(self.bytes)] = sum(each.numel() * each.element_size() for each in made)
        return found


@contextmanager
def making() -> Iterator[dict[int, int]]:
    """As `saving`, of all that is made: of it transforms of torch.func keep a part that is not told."""
    with _Made() as mode:
        yield mode.bytes


def copies(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Copies of parameters and buffers for one call, with a mark by which graphs of later calls are told from it."""
    found = {name: each.detach().clone().requires_grad_(each.requires_grad) for name, each in tensors.items()}
    for name, each in found.items():
        setattr(each, COPY, name)
    return found


def first_pass(network: MeasuredModule, x: Batch) -> FirstPass:
    """A pass of inputs x on copies of all buffers and parameters, which it may change in place."""
    module, born = network.module, set[str]()
    held = {**dict(module.named_buffers()), **dict(module.named_parameters())}

    def noting(output: object, sample: object) -> object:
        born.update(dict(module.named_parameters()).keys() - held.keys())
        return output if network.function is None else network.function(output, sample)

    for counting in (saving(), making(), contextlib.nullcontext(dict[int, int]())):  # what the module takes
        given, output = copies(held), None
        with contextlib.suppress(FinwidthError), differentiable(), counting as kept:
            output = apply(replace(network, function=noting), x, given).detach()
        if output is not None or born:  # a failure is told when the module is called in earnest
            break
    if born:
        raise FinwidthError(
            f"the module makes its parameter {min(born)!r} when it is first called; call it once before"
        )
    states = _UNTOUCHED.get(id(module))
    if states is not None:
        states.check()
    changed = frozenset(name for name, each in given.items() if each._version or not _equal(each, held[name]))
    failed = output is None
    return FirstPass(changed | _bounded_tables(module), output, sum(kept.values()) or None, failed=failed)


def _bounded_tables(module: nn.Module) -> frozenset[str]:
    """The names of tables whose rows are rescaled in place where they are looked up, at some inputs or others."""
    tables = {id(part.weight) for part in module.modules() if rescales(part)}
    return frozenset(name for name, each in module.named_parameters() if id(each) in tables)


def rescales(layer: nn.Module) -> bool:
    """Whether it is a table that keeps the norm of its rows below a bound."""
    return isinstance(layer, nn.Embedding | nn.EmbeddingBag) and layer.max_norm is not None


@contextmanager
def settled(network: MeasuredModule, inputs: Sequence[Batch]) -> Iterator[tuple[MeasuredModule, FirstPass]]:
    """The network with the names of the buffers that a pass changes in place, and a pass of the first input.

    Some modules rescale their own weights, at their first call or at every: the kernel is that of the weights as they
    are after a call with all inputs. They are put back afterwards.
    """
    module, first = network.module, first_pass(network, inputs[0][:1])
    network = replace(network, changing=first.changing)
    own = {name: each for name, each in module.named_parameters() if name in first.changing}
    before = {name: each.detach().clone() for name, each in own.items()}
    try:
        if own and not first.failed:
            with telling(module, inputs[0]), differentiable():
                for x in inputs:
                    call_module(module, x)
            network = replace(network, changing=first.changing - own.keys(), snapshot=Snapshot(module, hooks=False))
            first = FirstPass(network.changing)
        yield network, first
    finally:
        for name, each in own.items():
            each.detach().copy_(before[name])


class ModuleError(FinwidthError):
    """The user's module raised an exception."""


class _Results(TorchFunctionMode):
    """Notes the floating-point types of all results."""

    def __init__(self) -> None:
        super().__init__()
        self.dtypes: set[torch.dtype] = set()

    def __torch_function__(
        self,
        func: Callable[..., object],
        types: Collection[type],
        args: tuple[object, ...] = (),
        kwargs: Mapping[str, object] | None = None,
    ) -> object:
        """Call the function, and note the type of its result."""
        found = func(*args, **(kwargs or {}))
        if isinstance(found, torch.Tensor) and found.is_floating_point():
            self.dtypes.add(found.dtype)
        return found


def coarsest(network: MeasuredModule, x: Batch) -> float:
    """The rounding of the coarsest type that the module computes in, whatever its parameters are (RMSNorm, softmax)."""
    with _Results() as results:
        output = apply(network, x, network.parameters)
    return max(torch.finfo(each).eps for each in {output.dtype, *results.dtypes})


@contextmanager
def telling(module: nn.Module, x: Tensor | Batch) -> Iterator[None]:
    """Turn whatever the module raises at inputs x into a FinwidthError of one line."""
    try:
        yield
    except FinwidthError:
        raise
    except Exception as error:
        raise ModuleError(
            f"the module, a {type(module).__name__}, raises {type(error).__name__} for "
            f"{Batch.of(x) if isinstance(x, Tensor) else x}: {first_line(error)}"
        ) from error


def first_line(error: BaseException) -> str:
    """The first line of an exception's message."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()] or ["no message"]
    return lines[0] if len(lines[0]) <= 300 else lines[0][:297] + "..."


def tensor_of(output: object) -> Tensor:
    """The one tensor that a module returns; of a mapping such as transformers' ModelOutput, its ``logits``."""
    if isinstance(output, Mapping) and isinstance(output.get("logits"), Tensor):
        output = output["logits"]
    if isinstance(output, Tensor):
        return output
    kind, allowed = type(output).__name__, "outputs=lambda output, sample: output[0]"
    if isinstance(output, Mapping):
        first = next((str(name) for name, each in output.items() if isinstance(each, Tensor)), "name")
        kind, allowed = f"{kind} of {', '.join(map(str, output))}", f"outputs=lambda output, sample: output[{first!r}]"
    raise FinwidthError(f"the module returns a {kind}; say which tensor of it counts, samples first: {allowed}")


def check_output(output: Tensor, n: int) -> Tensor:
    """The output of ``n`` samples as shape (n, o); a single one may come without its dimension, as from squeeze()."""
    if not output.numel():
        raise FinwidthError(
            f"the module returns no numbers: its output for {n} samples has shape {tuple(output.shape)}"
        )
    if output.is_meta:
        raise FinwidthError(
            "the module's output is on the device meta, and holds no numbers; move the module to another"
        )
    rows = n == 1 or (output.ndim > 0 and len(output) == n)
    if not rows or not output.is_floating_point() or output.layout != torch.strided:
        raise FinwidthError(
            f"the module returns {output.dtype} of shape {tuple(output.shape)}, {output.layout}, for {n} samples; it "
            "must return dense floating-point numbers of shape (N,) or (N, ...), one row for each sample"
        )
    return output if output.ndim == 2 and len(output) == n else output.reshape(n, -1)


@contextmanager
def measuring(module: nn.Module, *, alone: bool = True) -> Iterator[ExitStack]:
    """Inside, a user's module computes in its own precision, and attention by formulas that every transform can take.

    Afterwards it is as it was before. ``alone`` is as for `untouched`.
    """
    no_cpu, no_cuda = torch.autocast("cpu", enabled=False), torch.autocast("cuda", enabled=False)
    with (
        torch.inference_mode(False),
        untouched(module, alone=alone),
        _uncached(),
        no_cpu,
        no_cuda,
        ExitStack() as stack,
    ):
        stack.enter_context(sdpa_kernel(SDPBackend.MATH))
        stack.enter_context(warnings.catch_warnings())
        warnings.filterwarnings("ignore", message="There is a performance drop")  # an operation vmap runs one by one
        warnings.filterwarnings("ignore", message=".*torch.jit.script")  # torch's own
        if any(each.is_cuda for each in module.parameters()):
            stack.enter_context(_exact_cudnn(module))
        for layer in module.modules():
            if isinstance(layer, nn.modules.batchnorm._BatchNorm):
                stack.callback(layer.register_forward_hook(_contiguous_gradient).remove)
        yield stack


def _exact_cudnn(module: nn.Module) -> AbstractContextManager[None]:
    """Convolutions in float32, which cuDNN otherwise rounds to 10 bits; no cuDNN for recurrent layers.

    It has no second derivatives of them, and in eval mode no first ones.
    """
    now, recurrent = torch.backends.cudnn, any(isinstance(layer, nn.RNNBase) for layer in module.modules())
    flags: AbstractContextManager[None] = now.flags(
        enabled=now.enabled and not recurrent,
        benchmark=now.benchmark,
        deterministic=now.deterministic,
        allow_tf32=False,
    )
    return flags


@contextmanager
def _uncached() -> Iterator[None]:
    """Without the caches of `torch.nn.utils.parametrize.cached`, whose weights are those of other passes."""
    enabled, parametrize._cache_enabled = parametrize._cache_enabled, 0
    try:
        yield
    finally:
        parametrize._cache_enabled = enabled


@contextmanager
def untouched(module: nn.Module, *, alone: bool = True) -> Iterator[None]:
    """Whatever happens inside, the module and all random numbers are as before; told if random numbers were drawn.

    Where it is not ``alone``, since other threads of the process may draw some meanwhile, nothing is said of these.
    """
    outside = _UNTOUCHED.get(id(module))
    if outside is not None:  # where gradients and random numbers are put back
        snapshot = Snapshot(module, hooks=False)
        try:
            with _same_buffers(module, _containers(module)):
                yield
        finally:
            snapshot.restore()
        outside.check()
        return
    gradients = [(each, each.grad) for each in module.parameters()]
    snapshot = Snapshot(module)
    states = _RandomStates(module, snapshot.held)
    _UNTOUCHED[id(module)] = states
    same = False
    try:
        with _same_buffers(module, snapshot.held):
            yield
            if alone:
                states.check()
                same = True
    finally:
        _UNTOUCHED.pop(id(module), None)  # another thread may be through with it
        if alone and not same:
            states.restore()
        snapshot.restore()
        for parameter, gradient in gradients:
            parameter.grad = gradient


@contextmanager
def _same_buffers(module: nn.Module, held: list[Container]) -> Iterator[None]:
    """Buffers, and tensors and arrays among what is held, have their numbers back if they are changed in place."""
    own = {id(each) for each in module.parameters()}
    loose = [each for each in _inside(held) if isinstance(each, Tensor | np.ndarray) and id(each) not in own]
    tensors = {id(each): each for each in (*module.buffers(), *(each for each in loose if isinstance(each, Tensor)))}
    before = [(each, each.detach().clone()) for each in tensors.values()]
    arrays = [(each, each.copy()) for each in loose if isinstance(each, np.ndarray)]
    try:
        yield
    finally:
        for each, numbers in before:
            if not _equal(each, numbers):
                each.detach().copy_(numbers)
        for array, entries in arrays:
            array[...] = entries


def _equal(one: Tensor, other: Tensor) -> bool:
    """Whether two tensors of one shape have the same numbers; sparse ones, which torch does not compare, in full."""
    if one.layout is not torch.strided:
        one, other = one.to_dense(), other.to_dense()
    return torch.equal(one, other)


class _States(NamedTuple):
    """The states of torch's, Python's and NumPy's global generators, and of those of a module's own."""

    of_torch: Tensor
    of_python: tuple[Any, ...]
    of_numpy: dict[str, Any] | tuple[Any, ...]
    of_cuda: list[Tensor]
    own: list[Any]


class _RandomStates:
    """The states of all generators of random numbers that a module can be expected to draw from."""

    def __init__(self, module: nn.Module, held: list[Container]) -> None:
        self.own = list({id(each): each for each in _at_hand(module, held) if _generates(each)}.values())
        self.cuda = bool(torch.cuda.is_initialized())  # type: ignore[no-untyped-call]
        self.before = self._states()

    def _states(self) -> _States:
        of_numpy = np.random.get_state(legacy=False)  # noqa: NPY002
        cuda = torch.cuda.get_rng_state_all() if self.cuda else []
        return _States(torch.random.get_rng_state(), random.getstate(), of_numpy, cuda, [*map(_state, self.own)])

    def check(self) -> None:
        """Raise FinwidthError if random numbers were drawn."""
        before, now = (list(_state_values(each)) for each in (self.before, self._states()))
        if not all(map(_same, before, now)):
            raise FinwidthError(
                "the module draws random numbers when it is called (dropout, stochastic depth, noise?), so that each "
                "call is of another network; call module.eval() first, or give it fixed numbers"
            )

    def restore(self) -> None:
        """Put the states back."""
        torch.random.set_rng_state(self.before.of_torch)
        random.setstate(self.before.of_python)
        np.random.set_state(self.before.of_numpy)  # noqa: NPY002
        if self.cuda:
            torch.cuda.set_rng_state_all(self.before.of_cuda)
        for each, state in zip(self.own, self.before.own, strict=True):
            _put(each, state)


@contextmanager
def repeatable() -> Iterator[None]:
    """Whatever happens inside, the global generators of random numbers are as before."""
    states = _RandomStates(nn.Module(), [])
    try:
        yield
    finally:
        states.restore()


def _at_hand(module: nn.Module, held: list[Container]) -> Iterator[object]:
    """Objects in reach of a module's forward: attributes of its parts and what these hold; what its functions see.

    Those see globals, defaults and closures, and what short lists and the like among these hold.
    """
    attributes = [*_inside(held)]
    yield from attributes
    candidates = (*{type(part).forward for part in module.modules()}, *attributes)
    functions = [each for each in candidates if isinstance(each, FunctionType)]
    around = [*chain.from_iterable({id(each.__globals__): each.__globals__.values() for each in functions}.values())]
    for each in functions:
        around += each.__defaults__ or ()
        around += (each.__kwdefaults__ or {}).values()
        around += (cell.cell_contents for cell in each.__closure__ or () if cell != CellType())
    yield from around
    yield from _inside(each for each in around if isinstance(each, dict | list | tuple | deque) and len(each) <= _FEW)


def _generates(each: object) -> TypeGuard[_Generator]:
    """Whether it draws random numbers, looked up by its type, as there are many objects."""
    kind = type(each)
    if kind not in _KINDS:
        _KINDS[kind] = issubclass(kind, _Generator) and not issubclass(kind, random.SystemRandom)  # it has no state
    return _KINDS[kind]


def _state(generator: _Generator) -> Any:
    if isinstance(generator, np.random.Generator):
        return generator.bit_generator.state
    if isinstance(generator, np.random.RandomState):
        return generator.get_state(legacy=False)
    return generator.get_state() if isinstance(generator, torch.Generator) else generator.getstate()


def _put(generator: _Generator, state: Any) -> None:
    if isinstance(generator, np.random.Generator):
        generator.bit_generator.state = state
    elif isinstance(generator, np.random.RandomState | torch.Generator):
        generator.set_state(state)
    else:
        generator.setstate(state)


def _state_values(states: _States) -> Iterator[object]:
    """All numbers, texts, tensors and arrays in states."""
    waiting = list[object](states)
    while waiting:
        each = waiting.pop()
        if isinstance(each, dict | list):
            waiting += each.values() if isinstance(each, dict) else each
        else:
            yield each


def _same(one: object, other: object) -> bool:
    """Whether two values of states are equal."""
    if isinstance(one, torch.Tensor) and isinstance(other, torch.Tensor):
        return torch.equal(one, other)
    if isinstance(one, np.ndarray) and isinstance(other, np.ndarray):
        return np.array_equal(one, other)
    return bool(one == other)

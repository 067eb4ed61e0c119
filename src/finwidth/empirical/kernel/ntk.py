"""The empirical kernel of any torch module: `ntk`."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import partial
from importlib.metadata import version
from itertools import product
from typing import TYPE_CHECKING, Any, Literal, overload

import torch
from torch import nn

from finwidth import arguments
from finwidth.arguments import flag
from finwidth.empirical.kernel.calls import ModuleError, Network, Snapshot, apply, differentiable, measuring, settled
from finwidth.empirical.kernel.check import checked
from finwidth.empirical.kernel.factors import Factor, Outer, Shape, add_outputs, add_pairs, each_with_itself, joined
from finwidth.empirical.kernel.gradients import (
    ALONE,
    OtherRouteError,
    OtherWayError,
    Plan,
    follows,
    general_plan,
    gradients,
    plan,
)
from finwidth.empirical.kernel.options import (
    Parameters,
    Scale,
    check_entries,
    check_inputs,
    check_module,
    check_outputs,
    check_parameters,
    numpy_of,
)
from finwidth.empirical.kernel.sizes import Sizes, layout, pieces
from finwidth.errors import FinwidthError
from finwidth.memory import afford, amount, check_memory
from finwidth.progress import stage
from finwidth.quantities import KERNEL_DRAWS

if TYPE_CHECKING:
    import xarray as xr

Tensor = torch.Tensor

_OUTPUT_DIMS = {"full": ("output", "output_"), "diagonal": ("output",)}


@overload
def ntk(
    module: nn.Module,
    x1: Any,
    x2: Any = ...,
    outputs: str | int = ...,
    *,
    entries: str = ...,
    memory: str | int = ...,
    parameters: Parameters | None = ...,
    scale: Scale | None = ...,
    check: bool = ...,
    labelled: Literal[False] = ...,
    progress: Callable[[int], object] | None = ...,
) -> Tensor: ...


@overload
def ntk(
    module: nn.Module,
    x1: Any,
    x2: Any = ...,
    outputs: str | int = ...,
    *,
    entries: str = ...,
    memory: str | int = ...,
    parameters: Parameters | None = ...,
    scale: Scale | None = ...,
    check: bool = ...,
    labelled: Literal[True],
    progress: Callable[[int], object] | None = ...,
) -> xr.DataArray: ...


def ntk(
    module: nn.Module,
    x1: Any,
    x2: Any = None,
    outputs: str | int = "full",
    *,
    entries: str = "full",
    memory: str | int = "1GiB",
    parameters: Parameters | None = None,
    scale: Scale | None = None,
    check: bool = True,
    labelled: bool = False,
    progress: Callable[[int], object] | None = None,
) -> Tensor | xr.DataArray:
    """The empirical neural tangent kernel of any torch module, K_ij(x_a, x_b) = sum_p s_p <dN_i(x_a)/dp, dN_j(x_b)/dp>.

    The sum runs over the parameters p, s_p is the scale of each. No Jacobian is formed for the usual layers: K is a sum
    over layers of products of their inputs and of the outputs' gradients by their results (docs/empirical-ntk.md).
    Parameters used in any other way are found out and left to torch.func, so that any module works.

    Parameters
    ----------
    module
        A module that takes one tensor of shape (N, ...) and returns one of shape (N,) or (N, ...), the samples first
        and independent of each other; the O outputs of a sample are all its numbers, in order, and 1 for shape (N,).
        It is used in the mode it is in; batch normalisation and dropout must be in eval mode.
    x1, x2
        Inputs, shapes (N1, ...) and (N2, ...); x2 is x1 by default, for half the work. They are moved to the module's
        device and, if floating, to its dtype, which is that of the computation: ``module.double()`` gives float64.
    outputs
        ``"full"``: all pairs of outputs; ``"diagonal"``: every output with itself; ``"trace"``: the sum of those, not
        their mean; or the number of one output, from 0.
    entries
        ``"full"``: all pairs of inputs; ``"diagonal"``: K(x_a, x_a) only.
    memory
        Most working memory beside the kernel itself, a text such as ``"200MB"`` or bytes; inputs, and if need be
        outputs, are taken in blocks that keep to it. The kernel itself has to fit what there is (`finwidth.memory`).
    parameters
        Which parameters count: their names, or a function of name and parameter that says so; by default all. Those
        that do not require a gradient never count.
    scale
        A multiplier for each parameter: a dict by name, 1 where it says nothing, or a function of name and parameter.
        With the weights' variance 1/fan_in, for instance, the kernel is that of the NTK parameterization.
    check
        Hold numbers of the kernel against plain backward passes of the module itself (docs/empirical-ntk.md says what
        that finds and costs). Where they do not agree, K is found again, one sample and output at a time.
    labelled
        Return a DataArray with named dimensions.
    progress
        Called with the number of pairs of inputs finished, each time some are; in the end N1 N2.

    Returns
    -------
    torch.Tensor or xarray.DataArray
        On the module's device and in its dtype, not differentiable.

        | outputs | entries="full" | entries="diagonal" |
        |---|---|---|
        | "full" | (N1, N2, O, O): input, input_, output, output_ | (N1, O, O): input, output, output_ |
        | "diagonal" | (N1, N2, O): input, input_, output | (N1, O): input, output |
        | "trace" or a number | (N1, N2): input, input_ | (N1,): input |

    Raises
    ------
    FinwidthError
        If an argument is not allowed; if the module draws random numbers or mixes the samples of a batch, by layer
        where one can be named; if ``memory`` does not suffice for one input.

    Examples
    --------
    >>> import torch
    >>> from finwidth.empirical import ntk
    >>> module = torch.nn.Sequential(torch.nn.Linear(3, 8), torch.nn.ReLU(), torch.nn.Linear(8, 2)).double()
    >>> x = torch.randn(5, 3, dtype=torch.float64)
    >>> K = ntk(module, x)
    >>> K.shape
    torch.Size([5, 5, 2, 2])
    >>> weights = ntk(module, x, parameters=lambda name, p: p.ndim > 1)
    >>> biases = ntk(module, x, parameters=["0.bias", "2.bias"])
    >>> torch.allclose(weights + biases, K)
    True
    >>> ntk(module, x, outputs="trace", labelled=True).dims
    ('input', 'input_')
    """
    check, labelled, tell = flag("check", check), flag("labelled", labelled), arguments.progress(progress)
    with measuring(check_module(module)) as stack:
        kernel, bytes_ = prepare(stack, module, x1, x2, outputs, entries, memory, parameters, scale)
        kernel.afford(bytes_)
        kernel.progress = tell
        K = checked(kernel, partial(Kernel.compute, memory=bytes_)) if check else kernel.compute(bytes_)
    return label(K, "K", kernel) if labelled else K


def prepare(  # noqa: PLR0917 - the arguments of ntk
    stack: ExitStack,
    module: nn.Module,
    x1: Any,
    x2: Any,
    outputs: str | int,
    entries: str,
    memory: str | int,
    parameters: Parameters | None,
    scale: Scale | None,
) -> tuple[Kernel, int]:
    """The kernel to compute, all arguments checked, and the memory in bytes, while the stack is open."""
    outputs, entries, memory = check_outputs(outputs), check_entries(entries), check_memory(memory)
    if entries == "diagonal" and x2 is not None:
        raise FinwidthError('entries="diagonal" is K(x_a, x_a) of one set of inputs; leave x2 out')
    scales = check_parameters(module, parameters, scale)
    counted = {name: each for name, each in module.named_parameters() if name in scales}
    inputs = check_inputs(module, x1)
    others = None if x2 is None else check_inputs(module, x2, "x2")
    pairs = len(inputs) * (1 if entries == "diagonal" else len(inputs if others is None else others))
    _afford(inputs, pairs, pairs * inputs.element_size())  # before the module is looked at, with what K has at least
    changing = stack.enter_context(settled(module, [inputs] if others is None else [inputs, others]))
    network = Network(module, counted, scales, Snapshot(module, hooks=False), changing=changing)
    return Kernel(network, inputs, others, outputs, alone=entries == "diagonal"), memory


def label(K: Tensor, name: str, kernel: Kernel) -> xr.DataArray:
    """A result with the names of its dimensions and where it comes from."""
    import xarray as xr

    dims = (*(("input",) if kernel.alone else ("input", "input_")), *_OUTPUT_DIMS.get(str(kernel.outputs), ()))
    attrs = {
        **KERNEL_DRAWS[name].attrs,
        "long_name": "neural tangent kernel" if name == "K" else "first-order change of the kernel under one SGD step",
        "finwidth_version": version("finwidth"),
        "method": "empirical",
        "module": type(kernel.network.module).__name__,
        "outputs": kernel.outputs,
    }
    return xr.DataArray(numpy_of(K), dims=dims, name=name, attrs=attrs)


def _afford(inputs: Tensor, numbers: int, needed: int) -> None:
    """Refuse a kernel of so many numbers that needs so many bytes; on a device it is for torch to say."""
    if inputs.device.type == "cpu":
        afford(needed, f"a kernel of {amount(numbers)} numbers", 'give fewer inputs, or outputs="trace"')


@dataclass(frozen=True)
class _Tile:
    """Factors of the gradients of some outputs at some inputs, and where they belong in the kernel."""

    inputs: slice
    outputs: slice
    factors: Sequence[Factor]


def _planned(network: Network, some: Tensor, whole: Tensor) -> tuple[Plan, Sizes]:
    """The plan, from a few of the inputs; told apart is a module that takes all of them but not a few."""
    try:
        return plan(network, _three(some))
    except ModuleError as error:
        try:
            with differentiable():
                apply(network, whole, network.parameters)
        except FinwidthError:
            raise error from None
        raise FinwidthError(
            f"{error}; it does take all {len(whole)} inputs at once, and must take any number of them: samples must "
            "not need each other (batch statistics: call module.eval() first), nor the batch have a fixed size (write "
            "x.view(len(x), -1) and the like)"
        ) from None


def _three(x: Tensor) -> Tensor:
    """Three inputs, different if possible: equal ones would hide how samples affect each other."""
    chosen = [0]
    for i, row in enumerate(x):
        if len(chosen) < 3 and not any(torch.equal(row, x[j]) for j in chosen):
            chosen.append(i)
        if len(chosen) == 3 or i > 10_000:
            break
    return x[(chosen + [i for i in range(len(x)) if i not in chosen][: 3 - len(chosen)] + chosen * 2)[:3]]


class Kernel:
    """One kernel to compute: of which outputs, by which plan, in what blocks."""

    def __init__(self, network: Network, x1: Tensor, x2: Tensor | None, outputs: str | int, *, alone: bool) -> None:
        self.network, self.x1, self.x2, self.outputs, self.alone = network, x1, x2, outputs, alone
        alike = x2 is not None and x1.shape[1:] == x2.shape[1:] and x1.dtype == x2.dtype
        self.plan, sizes = _planned(network, torch.cat([x1[:64], x2[:64]]) if x2 is not None and alike else x1, x1)
        o = self.plan.outputs
        if isinstance(outputs, int) and outputs >= o:
            raise FinwidthError(f"outputs is {outputs}, and the module has {o}, numbered from 0")
        self.wanted = range(outputs, outputs + 1) if isinstance(outputs, int) else range(o)
        self.pairs = outputs == "full" and o > 1  # otherwise every output meets only itself
        self.sizes = replace(sizes, pairs=self.pairs, alone=alone)
        self.progress: Callable[[int], object] | None = None
        self.passed: Callable[[int], object] = lambda inputs: None

    def afford(self, memory: int, copies: int = 1) -> None:
        """Refuse a kernel of which so many, with the work for it, do not fit what there is."""
        _afford(self.x1, self.bytes // self.plan.dtype.itemsize, copies * self.bytes + self.layout(memory)[2])

    def compute(self, memory: int) -> Tensor:
        """The kernel in its final shape; by a more general plan if a pass does not go as planned."""
        while True:
            try:
                K = self._attempt(memory)
                break
            except OtherWayError:
                self.plan = replace(self.plan, ways=self.plan.ways[1:])
            except OtherRouteError:
                self._retreat()
        # isfinite(K) would need a second K, and aminmax has no forward derivative before torch 2.12.
        if not torch.isfinite(torch.stack([K.amin(), K.amax()])).all():
            raise FinwidthError(f"the kernel overflows {K.dtype}; rescale the inputs, or give module.double()")
        if self.outputs == "full":
            return K if self.pairs else K[..., None]
        return K if self.outputs == "diagonal" else K[..., 0]

    def pass_all(self) -> None:
        """Find the factors of the gradients at the first set of inputs, and drop them."""
        with torch.no_grad():
            for group, some in product(self._groups(), pieces(range(len(self.x1)), self.n)):
                for outputs in group:
                    self._tiles(self.x1, outputs, some)

    def by(self, network: Network) -> Kernel:
        """The same computation for another network."""
        other = copy.copy(self)
        other.network = network
        return other

    @property
    def bytes(self) -> int:
        """Size of the kernel itself."""
        o = 1 if self.outputs == "trace" else len(self.wanted)
        return self._pairs_of_inputs * (o * o if self.pairs else o) * self.plan.dtype.itemsize

    @property
    def _pairs_of_inputs(self) -> int:
        return len(self.x1) * (1 if self.alone else len(self.x1 if self.x2 is None else self.x2))

    def layout(self, memory: int) -> tuple[int, int, int]:
        """Inputs of a block, inputs of a pass, and peak memory in bytes without the kernel itself."""
        n, o = self._layout(memory)
        return n, self.sizes.once(n, o), self.sizes.bytes(n, o, 2 if n < self._longest else 1)

    @property
    def _longest(self) -> int:
        return max(len(self.x1), 0 if self.x2 is None else len(self.x2))

    def _layout(self, memory: int) -> tuple[int, int]:
        self.sizes = replace(self.sizes, memory=memory)
        return layout(self.sizes, self._longest, len(self.wanted), memory)

    @property
    def passes(self) -> int:
        """Number of inputs of a pass."""
        return self.sizes.once(self.n, self.o)

    def among(self, rows: Tensor, others: Tensor | None, outputs: str | int) -> Kernel:
        """The kernel of the same outputs, or of "diagonal" for "trace", among some of the inputs, by the same plan."""
        part = copy.copy(self)
        part.x1, part.outputs, part.progress = self.x1[rows], outputs, None
        part.x2 = None if self.x2 is None or others is None else self.x2[others]
        return part

    def generalise(self, *ways: str) -> None:
        """From now on form every gradient, in these ways, by default one sample at a time."""
        self.plan = general_plan(self.network, self.plan, ways or (ALONE,))

    def _attempt(self, memory: int) -> Tensor:
        self.n, self.o = self._layout(memory)
        self.t = self.sizes.tile(self.n, self.o)
        total = self._pairs_of_inputs
        with torch.no_grad(), stage("kernel", total, self.progress) as told:
            left = self._to_pass()

            def passed(inputs: int, whole: int = left) -> None:
                nonlocal left
                left -= inputs
                told(total * (whole - left) // whole)

            self.passed = passed
            return self._diagonal() if self.alone else self._matrix()

    def _to_pass(self) -> int:
        """How many times an input goes through the module: blocks are passed anew for each other that they meet."""
        groups = self._groups()
        ranges = len(groups[0])
        if self.alone:
            return len(groups) * ranges * len(self.x1)
        rows = ranges * [len(some) for some in pieces(range(len(self.x1)), self.n)]
        if self.x2 is None:
            return len(groups) * (rows[0] + sum(place * size for place, size in enumerate(rows)))
        return len(groups) * (sum(rows) + len(rows) * ranges * len(self.x2))

    def _retreat(self) -> None:
        """After a pass that did not follow the plan: try smaller passes, and if they do not either, general ones.

        A module that splits its batch into chunks, for instance, does not if the pass is no larger than a chunk.
        """
        once = self.sizes.once(self.n, self.o)
        while once > 6:
            once //= 2
            if follows(self.network, self.plan, self.x1[:once]):
                self.sizes = replace(self.sizes, most=once)
                return
        self.sizes = replace(self.sizes, most=2**62)
        self.generalise(*self.plan.ways)

    def _matrix(self) -> Tensor:
        """All pairs of inputs; if x2 is x1, half of them are computed and the rest is copied by symmetry."""
        same = self.x2 is None
        x2 = self.x1 if self.x2 is None else self.x2
        K = self._empty(len(self.x1), len(x2))
        for group in self._groups():
            rows, columns = (list(product(group, pieces(range(len(x)), self.n))) for x in (self.x1, x2))
            right: list[_Tile] = []
            for i, row in enumerate(rows):
                left = right if same else []  # the last column was the next row
                right = []
                left = left or self._tiles(self.x1, *row)
                if same:
                    self._add(K, left, left)
                for column in reversed(columns[i + 1 :] if same else columns):
                    right = []  # frees the block before
                    right = self._tiles(x2, *column)
                    self._add(K, left, right)
        return K

    def _add(self, K: Tensor, left: list[_Tile], right: list[_Tile]) -> None:
        """Add the products of two blocks to the kernel; if x2 is x1, also at the mirror image of their place."""
        home = left is right
        pairs = [(i, j) for i in range(len(left)) for j in range(i if home else 0, len(right))]
        across = self._parts(right)
        for ones in self._parts(left):
            others = ones if home else next(across)
            for i, j in pairs:
                self._enter(K, ones[i], others[j])
        if self.x2 is None:
            for i, j in pairs:
                self._mirror(K, left[i], right[j])

    def _enter(self, K: Tensor, one: _Tile, other: _Tile) -> None:
        """Add the products of two tiles to the kernel."""
        place = self._place(K, one, other)
        found = place if len(one.factors) == 1 else torch.zeros_like(place, memory_format=torch.contiguous_format)
        for left, right in zip(one.factors, other.factors, strict=True):
            (add_pairs if self.pairs else add_outputs)(found, left, right)
        if found is not place:
            place += found

    def _mirror(self, K: Tensor, one: _Tile, other: _Tile) -> None:
        if one is not other:
            here, there = self._place(K, one, other), self._place(K, other, one)
            there.copy_(here.permute(2, 3, 0, 1) if self.pairs else here.mT)

    def _place(self, K: Tensor, one: _Tile, other: _Tile) -> Tensor:
        """The part of the kernel that belongs to two tiles, in the order of their products."""
        if self.pairs:
            return K[one.inputs, other.inputs, one.outputs, other.outputs].permute(2, 0, 3, 1)
        return K[one.inputs, other.inputs, one.outputs].permute(2, 0, 1)

    def _diagonal(self) -> Tensor:
        """Every input with itself."""
        K = self._empty(len(self.x1))
        for inputs, group in product(pieces(range(len(self.x1)), self.n), self._groups()):
            blocks = [self._tiles(self.x1, outputs, inputs) for outputs in group]
            for one, other in product(blocks, blocks):
                for tile, across in zip(one, other, strict=True):
                    factors = zip(tile.factors, across.factors, strict=True)
                    found = sum(each_with_itself(left, right, pairs=self.pairs) for left, right in factors)
                    K[tile.inputs, tile.outputs, *([across.outputs] if self.pairs else [])] += found
        return K

    def _empty(self, *inputs: int) -> Tensor:
        """A kernel of zeros, shape (*inputs, o, o) with all pairs of outputs, (*inputs, o) without."""
        o = 1 if self.outputs == "trace" else len(self.wanted)
        return self.x1.new_zeros((*inputs, o, o) if self.pairs else (*inputs, o), dtype=self.plan.dtype)

    def _groups(self) -> list[list[range]]:
        """Ranges of outputs, grouped: products are taken between the ranges of one group."""
        ranges = pieces(range(len(self.wanted)), self.o)
        return [ranges] if self.pairs else [[each] for each in ranges]

    def _tiles(self, x: Tensor, outputs: range, inputs: range) -> list[_Tile]:
        """The gradients of a block in tiles, each as the cheaper of factors and formed gradients."""
        place = slice(0, 1) if self.outputs == "trace" else slice(outputs.start, outputs.stop)
        once, tiles = self.sizes.once(self.n, self.o), []
        for some in pieces(inputs, max(once, self.t)):
            factors = joined((self._factors(x, outputs, each) for each in pieces(some, once)), len(some))
            for part in pieces(range(len(some)), self.t):
                own = slice(some.start + part.start, some.start + part.stop)
                tiles.append(_Tile(own, place, [each.tile(slice(part.start, part.stop)) for each in factors]))
        return tiles

    def _factors(self, x: Tensor, outputs: range, inputs: range) -> list[Factor]:
        """The gradients of one pass, each as the cheaper of factors and formed gradients."""
        numbers = range(self.wanted.start + outputs.start, self.wanted.start + outputs.stop)
        factors = gradients(self.network, self.plan, x[inputs.start : inputs.stop], numbers)
        kept = [self._kept(each) for each in factors]
        self.passed(len(inputs))
        return kept

    def _kept(self, factor: Factor) -> Factor:
        shape = Shape.of(factor)
        if isinstance(factor, Outer) and self.sizes.late(shape, self.n, self.o):
            return replace(factor, late=self.sizes.channels(shape, self.n, self.o))
        factor = factor.dense() if self.sizes.forms(shape, self.n, self.o) else factor
        return factor.summed() if self.outputs == "trace" else factor

    def _parts(self, tiles: list[_Tile]) -> Iterator[list[_Tile]]:
        """Split a block by parameters: first all that are not late, then each late one, some channels at a time."""
        late = {i: factor for i, factor in enumerate(tiles[0].factors) if isinstance(factor, Outer) and factor.late}
        if len(late) < len(tiles[0].factors):
            yield [replace(tile, factors=[f for i, f in enumerate(tile.factors) if i not in late]) for tile in tiles]
        for i, factor in late.items():
            for some in pieces(range(factor.D.shape[-1]), factor.late):
                yield [self._formed(tile, i, slice(some.start, some.stop)) for tile in tiles]

    def _formed(self, tile: _Tile, i: int, channels: slice) -> _Tile:
        factor = tile.factors[i]
        assert isinstance(factor, Outer)
        formed = factor.channels(channels).dense()
        return replace(tile, factors=[formed.summed() if self.outputs == "trace" else formed])

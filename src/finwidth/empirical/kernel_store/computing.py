"""The blocks of a kernel, computed: on threads, each with a module of its own, or on the workers of a cluster.

Every block is the kernel of its own inputs, computed and `checked` by itself, on one core: so its bits depend neither
on how many are computed at once, nor on which were before, though blocks may share the gradients at their inputs.
"""

from __future__ import annotations

import copy
import pickle
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from functools import partial
from queue import SimpleQueue
from typing import NamedTuple, cast

import torch
from torch import nn

from finwidth.empirical.kernel.arguments import numpy_of
from finwidth.empirical.kernel.batch import Batch
from finwidth.empirical.kernel.calls import Snapshot, first_line, measuring, untouched
from finwidth.empirical.kernel.check import checked
from finwidth.empirical.kernel.parts import KernelInParts
from finwidth.empirical.kernel_store.array import Numbers, Place
from finwidth.empirical.kernel_store.identity import every_function, near_values, rebuilt
from finwidth.empirical.kernel_store.sharing import KeptGradients
from finwidth.errors import FinwidthError
from finwidth.execution.task import Cancel, OnCluster, Shared
from finwidth.stores import numerics
from finwidth.stores.numerics import Facts

_LONG = 1e6  # microseconds: blocks never travel together
_IN_PROCESS = threading.Lock()  # of a worker: what `measuring` sets is the process's


@dataclass(frozen=True)
class KernelBlock:
    """A block to compute, and its inputs: those of x1, and those of x2 unless it has all pairs of the same."""

    place: Place
    rows: range
    columns: range | None
    of_x2: bool

    def work(self) -> float:
        """About how long it takes, in microseconds; enough to travel alone."""
        return _LONG

    def told(self) -> str:
        """Where it is."""
        return f"the block {self.place} of the kernel"

    def needs(self) -> list[str]:
        """The module and the inputs, by the names of their parts."""
        return ["network", *self.inputs]

    @property
    def inputs(self) -> list[str]:
        """The names of x1, and of x2 unless it is the same."""
        columns = [] if self.columns is None else [_part_name("x2" if self.of_x2 else "x1", self.columns)]
        return [_part_name("x1", self.rows), *columns]


class ComputedBlock(NamedTuple):
    """The entries of a block, and what their bits depend on."""

    entries: Numbers
    numerics: Facts


def _part_name(x: str, rows: range) -> str:
    return f"{x} {rows.start} {rows.stop}"


def _side(kernel: KernelInParts, name: str) -> list[Batch]:
    """The inputs of a name, those of each function by themselves."""
    x, start, stop = name.split()
    return kernel.side(int(x == "x2"), range(int(start), int(stop)))


@contextmanager
def on_one_core(device: torch.device) -> Iterator[Facts]:
    """Inside, the calling thread computes on one core: yields what its bits then depend on."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield numerics.torch() | {
            "device": torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
        }
    finally:
        torch.set_num_threads(before)


def compute_block(
    kernel: KernelInParts, inputs: Mapping[str, list[Batch]], kept: KeptGradients, cancel: Cancel
) -> ComputedBlock:
    """The kernel of some inputs, one side or two by name, by the plans of the whole."""
    names, sides = [*inputs], [*inputs.values()]
    K: torch.Tensor | None = None
    with on_one_core(kernel.first.x1.device) as facts:
        for part in kernel.parts(sides[0], sides[1] if len(sides) == 2 else None):
            plan = replace(part.job.plan, ways=[*part.job.plan.ways])  # one that a way fails leaves the others theirs
            own = replace(part.job, plan=plan, progress=lambda _: cancel())
            forms = [each.form for each in own.sets]
            keys = [
                (part.kind, name, x.function, x.rows) for name, x in zip((names[0], names[-1]), forms, strict=False)
            ]
            found = checked(own, partial(kept.compute, own=own, names=keys), check=kernel.check)
            K = kernel.joined(K, part, found, sides)
        assert K is not None
        kernel.check_joined(K, sides)
    return ComputedBlock(numpy_of(K), facts)


class BlocksOnThreads:
    """Kernels for threads: the caller's and, where its module can be copied, of copies that share its parameters."""

    def __init__(self, kernel: KernelInParts, threads: int, stack: ExitStack, *, kept: int) -> None:
        self._kept = KeptGradients(kept)
        self._free: SimpleQueue[KernelInParts] = SimpleQueue()
        copies = (_copied(kernel, stack) for _ in range(threads - 1))
        kernels = [kernel, *(each for each in copies if each is not None)]
        for each in kernels:
            self._free.put(each)
        self.threads = len(kernels)
        # Threads that overlap leave torch another number for new ones than this one has.
        stack.callback(torch.set_num_threads, torch.get_num_threads())

    def perform(self, block: KernelBlock, cancel: Cancel) -> ComputedBlock:
        """Compute a block on this thread."""
        kernel = self._free.get()
        try:
            return compute_block(kernel, {name: _side(kernel, name) for name in block.inputs}, self._kept, cancel)
        finally:
            self._free.put(kernel)


def _copied(kernel: KernelInParts, stack: ExitStack) -> KernelInParts | None:
    """The kernel of a copy of its module that another thread may call, while the stack is open; None if there is none.

    A copy of a module that keeps a function over its layers may still call the original's. So other tensors take the
    place of the copy's parameters, and what it computes, and its derivatives by them, must be the same to the last bit.
    """
    module = kernel.first.network.module
    versions = {each: each._version for each in module.parameters()}
    try:
        copied = copy.deepcopy(module, {id(each): each for each in module.parameters()})
    except Exception:  # whatever copying parts of the user's module raises: one thread computes
        return None
    other = rebuilt(kernel, copied)
    stack.enter_context(untouched(copied, alone=False))
    with on_one_core(kernel.first.x1.device):
        try:
            same = every_function(other, substituted=True) == every_function(kernel)
        except FinwidthError:
            same = False
    unchanged = all(each._version == versions[each] for each in module.parameters())
    return other if same and unchanged else None


@dataclass(frozen=True, eq=False)
class _SentKernel:
    """What a worker needs of a kernel beside its inputs: the first of these, and what it must compute there."""

    module: nn.Module
    kernel: KernelInParts
    values: list[list[list[float]]]
    rounding: float


class KernelOnCluster(OnCluster[KernelBlock, ComputedBlock]):
    """The blocks of a kernel on a cluster: the module is sent once, and so is each block of inputs."""

    packages = ("finwidth", "numpy", "torch")
    change = "begin another store with less memory="

    def __init__(self, kernel: KernelInParts, rounding: float) -> None:
        self.kernel, self.rounding = kernel, rounding

    def part(self, name: str) -> object:
        """A pickled module, or rows of inputs."""
        if name == "network":
            return self._network()
        return pickle.dumps([each.clone() for each in _side(self.kernel, name)])

    def _network(self) -> bytes:
        """The module and the plan; FinwidthError if the module cannot be sent."""
        from distributed.protocol import pickle as wire

        module, values = self.kernel.first.network.module, every_function(self.kernel)
        none = nn.Module()
        kernel = self.kernel.at_first_inputs().with_networks(
            lambda each: replace(each, module=none, parameters={}, snapshot=Snapshot(none))
        )
        sent = _SentKernel(module, kernel, values, self.rounding)
        try:
            return bytes(cast("Callable[[object], bytes]", wire.dumps)(sent))
        except Exception as error:  # whatever pickling the user's module raises
            raise FinwidthError(
                f"the module, a {type(module).__name__}, cannot be sent to a cluster "
                f"({type(error).__name__}: {first_line(error)}); leave scheduler= out"
            ) from None

    @staticmethod
    def perform(task: KernelBlock, shared: Shared) -> ComputedBlock:
        """Compute a block on a worker."""
        network, *names = task.needs()
        sent = _unpickled(shared[network])
        inputs = {name: cast("list[Batch]", pickle.loads(shared[name])) for name in names}
        with _IN_PROCESS, measuring(sent.module, alone=False):
            kernel = rebuilt(sent.kernel, sent.module)
            with on_one_core(kernel.first.x1.device):
                values = every_function(kernel)
            if not all(near_values(*each, sent.rounding) for each in zip(sent.values, values, strict=True)):
                raise FinwidthError(
                    f"the module, a {type(sent.module).__name__}, computes something else on a worker than here; make "
                    "its code there the same, or leave scheduler= out"
                )
            return compute_block(kernel, inputs, KeptGradients(0), cancel=lambda: None)


def _unpickled(content: bytes) -> _SentKernel:
    try:
        return cast("_SentKernel", pickle.loads(content))
    except Exception as error:  # whatever loading the user's module raises
        raise FinwidthError(
            f"a worker cannot load the module ({type(error).__name__}: {first_line(error)}); install there what it "
            "needs, or leave scheduler= out"
        ) from None

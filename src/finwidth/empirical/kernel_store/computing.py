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
from finwidth.empirical.kernel.computation import KernelJob
from finwidth.empirical.kernel_store.array import Numbers, Place
from finwidth.empirical.kernel_store.identity import function_values, near_values, rebuilt
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


def _part(job: KernelJob, name: str) -> Batch:
    """The inputs of a name."""
    x, start, stop = name.split()
    whole = job.x1 if x == "x1" else job.x2
    assert whole is not None
    return whole[int(start) : int(stop)]


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
    job: KernelJob, inputs: Mapping[str, Batch], kept: KeptGradients, *, check: bool, cancel: Cancel
) -> ComputedBlock:
    """The kernel of some inputs, one batch or two by name, by the plan of the whole."""
    plan = replace(job.plan, ways=[*job.plan.ways])  # a block that a way fails leaves the others theirs
    x1, *x2 = inputs.values()
    own = replace(job, x1=x1, x2=x2[0] if x2 else None, plan=plan, progress=lambda _: cancel())
    with on_one_core(x1.device) as facts:
        K = checked(own, partial(kept.compute, own=own, names=[*inputs]), check=check)
    return ComputedBlock(numpy_of(K), facts)


class BlocksOnThreads:
    """Jobs for threads: that of the caller and, where its module can be copied, copies that share its parameters."""

    def __init__(self, job: KernelJob, threads: int, stack: ExitStack, *, kept: int, check: bool) -> None:
        self.job, self.check, self._kept = job, check, KeptGradients(kept)
        self._free: SimpleQueue[KernelJob] = SimpleQueue()
        jobs = [job, *(each for each in (_copied(job, stack) for _ in range(threads - 1)) if each is not None)]
        for each in jobs:
            self._free.put(each)
        self.threads = len(jobs)
        # Threads that overlap leave torch another number for new ones than this one has.
        stack.callback(torch.set_num_threads, torch.get_num_threads())

    def perform(self, block: KernelBlock, cancel: Cancel) -> ComputedBlock:
        """Compute a block on this thread."""
        job = self._free.get()
        try:
            inputs = {name: _part(job, name) for name in block.inputs}
            return compute_block(job, inputs, self._kept, check=self.check, cancel=cancel)
        finally:
            self._free.put(job)


def _copied(job: KernelJob, stack: ExitStack) -> KernelJob | None:
    """The job with a copy of its module that another thread may call, while the stack is open; None if there is none.

    A copy of a module that keeps a function over its layers may still call the original's. So other tensors take the
    place of the copy's parameters, and what it computes, and its derivatives by them, must be the same to the last bit.
    """
    module = job.network.module
    versions = {each: each._version for each in module.parameters()}
    try:
        copied = copy.deepcopy(module, {id(each): each for each in module.parameters()})
    except Exception:  # whatever copying parts of the user's module raises: one thread computes
        return None
    network = rebuilt(job, copied)
    stack.enter_context(untouched(copied, alone=False))
    with on_one_core(job.x1.device):
        try:
            same = function_values(network, job.x1[:1], substituted=True) == function_values(job.network, job.x1[:1])
        except FinwidthError:
            same = False
    unchanged = all(each._version == versions[each] for each in module.parameters())
    return replace(job, network=network) if same and unchanged else None


@dataclass(frozen=True, eq=False)
class _SentKernel:
    """What a worker needs of a job beside inputs; ``values`` are those that its module must compute at ``x``."""

    module: nn.Module
    job: KernelJob
    check: bool
    x: Batch
    values: list[list[float]]
    rounding: float


class KernelOnCluster(OnCluster[KernelBlock, ComputedBlock]):
    """The blocks of a kernel on a cluster: the module is sent once, and so is each block of inputs."""

    packages = ("finwidth", "numpy", "torch")
    change = "begin another store with less memory="

    def __init__(self, job: KernelJob, rounding: float, *, check: bool) -> None:
        self.job, self.check, self.rounding = job, check, rounding

    def part(self, name: str) -> object:
        """A pickled module, or rows of inputs."""
        if name == "network":
            return self._network()
        return pickle.dumps(_part(self.job, name).clone())

    def _network(self) -> bytes:
        """The module and the plan; FinwidthError if the module cannot be sent."""
        from distributed.protocol import pickle as wire

        job, few = self.job, self.job.x1[:1].clone()
        values = function_values(job.network, few)
        bare = replace(job.network, module=nn.Module(), parameters={}, snapshot=Snapshot(nn.Module()))
        kept = replace(job, network=bare, x1=few[:0], x2=None if job.x2 is None else few[:0], progress=None)
        sent = _SentKernel(job.network.module, kept, self.check, few, values, self.rounding)
        try:
            return bytes(cast("Callable[[object], bytes]", wire.dumps)(sent))
        except Exception as error:  # whatever pickling the user's module raises
            raise FinwidthError(
                f"the module, a {type(job.network.module).__name__}, cannot be sent to a cluster "
                f"({type(error).__name__}: {first_line(error)}); leave scheduler= out"
            ) from None

    @staticmethod
    def perform(task: KernelBlock, shared: Shared) -> ComputedBlock:
        """Compute a block on a worker."""
        network, *names = task.needs()
        sent = _unpickled(shared[network])
        inputs = {name: cast("Batch", pickle.loads(shared[name])) for name in names}
        with _IN_PROCESS, measuring(sent.module, alone=False):
            job = replace(sent.job, network=rebuilt(sent.job, sent.module))
            with on_one_core(sent.x.device):
                values = function_values(job.network, sent.x)
            if not near_values(sent.values, values, sent.rounding):
                raise FinwidthError(
                    f"the module, a {type(sent.module).__name__}, computes something else on a worker than here; make "
                    "its code there the same, or leave scheduler= out"
                )
            return compute_block(job, inputs, KeptGradients(0), check=sent.check, cancel=lambda: None)


def _unpickled(content: bytes) -> _SentKernel:
    try:
        return cast("_SentKernel", pickle.loads(content))
    except Exception as error:  # whatever loading the user's module raises
        raise FinwidthError(
            f"a worker cannot load the module ({type(error).__name__}: {first_line(error)}); install there what it "
            "needs, or leave scheduler= out"
        ) from None

"""The kernel of a network while the user trains it: `Tracker`, one line in the training loop.

Everything lands in one Dataset, and with a path in one netCDF file, which is replaced as a whole after every
measurement (written beside it, synchronised, renamed): a run that is killed leaves the file of its last measurement.
"""

from __future__ import annotations

import contextlib
import hashlib
import math
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias, TypedDict, Unpack

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from finwidth.arguments import count, flag, function, index, instance, items, numbers, real, running
from finwidth.arguments import path as checked_path
from finwidth.empirical.kernel.arguments import Parameters, Scale, check_module, numpy_of
from finwidth.empirical.kernel.calls import call_module, check_output, differentiable, measuring, tensor_of
from finwidth.empirical.kernel.inputs import read_batch
from finwidth.empirical.kernel.ntk import ntk
from finwidth.errors import FinwidthError, shown
from finwidth.memory import afford
from finwidth.networks.laws import FloatArray
from finwidth.observables import OBSERVABLES, SHAPES, check_varied, observe, spread, target_gram, targets_are
from finwidth.outputs import write_netcdf
from finwidth.quantities import Quantity
from finwidth.schedule import Record, schedule

if TYPE_CHECKING:
    import xarray as xr

Row: TypeAlias = dict[str, FloatArray | np.float64]  # one measurement


class NtkOptions(TypedDict, total=False):
    """The arguments of `ntk` that a tracker passes on."""

    check: bool
    memory: str | int
    parameters: Parameters | None
    scale: Scale | None


class TrackerOptions(NtkOptions, total=False):
    """The arguments of a tracker by name, but for ``start``."""

    path: str | Path | None
    record: Record
    share: float | None
    outputs: str | int
    kernels: bool
    log: Callable[[int, dict[str, float]], object] | None


_VARIABLES = {"loss": Quantity("loss", "loss that the user gave")} | OBSERVABLES


class Tracker:
    """Follow the kernel of a module on a fixed probe set through a training loop.

    Parameters
    ----------
    module
        Any torch module that `finwidth.empirical.ntk` takes. It is measured in eval mode and without autocast, and left
        as it was: modes, gradients, random numbers and parameters are not touched.
    X
        The probe set, N inputs as for `finwidth.empirical.ntk`; it stays the same.
    y
        Targets of the probe set, for the alignment, by default those of a Dataset or DataLoader of pairs: numbers of
        shape (N,) or (N, C). Whole numbers of shape (N,) are classes if the module has two or more outputs
        (`finwidth.observables.targets_are`).
    path
        A netCDF file to keep the results in; by default they are in memory only.
    record
        When to measure: ``"log"``, at 0, 1, 2, ... four times an octave; a number k, every k steps; or the steps.
        Step 0 is measured when the tracker is made, and the last one when you ask for the `dataset`, unless you name
        the steps.
    start
        To go on with a run that was stopped: the number of steps that the module has been trained, as your checkpoint
        says; the file at ``path`` must exist, and later measurements in it are dropped.
    share
        The most that tracking may take, over the time of the training itself, such as 0.05. A measurement that would
        exceed it is put off until it does not; of several that wait one is taken, and the others are missed. By default
        every chosen step is measured, whatever it takes. ``attrs["tracking_share"]`` says what it took, and
        ``attrs["measurements_missed"]`` how many of ``attrs["measurements_due"]`` were not taken. Not counted is what
        only the first use of torch costs: a small measurement pays for it when the tracker is made. A last step that
        `dataset` measures is counted, but not put off.
    outputs
        ``"trace"`` (the kernel summed over outputs) or the number of one output.
    kernels
        Whether to keep every kernel matrix too.
    log
        Called after every measurement but that of `dataset`, with the step and its numbers by name, such as for a
        dashboard (`tensorboard_log`, `wandb_log`); those that are not finite are left out.
    ntk_options
        Further arguments of `finwidth.empirical.ntk`: scale, parameters, memory.

    Raises
    ------
    FinwidthError
        If an argument is not allowed, the file exists (or with ``start`` does not), or it is of another probe set or
        other targets.

    Examples
    --------
    >>> import finwidth, torch
    >>> module = finwidth.empirical.MLP(finwidth.MLP([2, 8, 1]), seed=0)
    >>> X, y = torch.eye(2, dtype=torch.float64), torch.tensor([1.0, -1.0], dtype=torch.float64)
    >>> optimizer = torch.optim.SGD(module.parameter_groups(lr=0.1))
    >>> tracker = finwidth.empirical.Tracker(module, X, y)
    >>> for _ in range(8):
    ...     optimizer.zero_grad()
    ...     loss = (module(X)[:, 0] - y).square().sum() / 2
    ...     loss.backward()
    ...     optimizer.step()
    ...     measured = tracker.step(loss)
    >>> tracker.dataset().step.to_numpy().tolist()
    [0, 1, 2, 3, 4, 5, 6, 7, 8]
    """

    def __init__(
        self,
        module: nn.Module,
        X: object,
        y: object = None,
        *,
        path: str | Path | None = None,
        record: Record = "log",
        start: int = 0,
        share: float | None = None,
        outputs: str | int = "trace",
        kernels: bool = False,
        log: Callable[[int, dict[str, float]], object] | None = None,
        **ntk_options: Unpack[NtkOptions],
    ) -> None:
        outputs, start = one_output(outputs), count("start", start, 0)
        kernels = flag("kernels", kernels)
        if share is not None:
            share = real("share", share, "the most that tracking may take, such as 0.05", lambda each: 0 < each <= 1)
        instance("the module", module, nn.Module, "a torch.nn.Module")
        with _evaluating(module):
            check_module(module)
        for option in ntk_options.keys() - NtkOptions.__annotations__.keys():
            raise FinwidthError(
                f"{option} is no option of a tracker; give some of {', '.join(NtkOptions.__annotations__)}"
            )
        if log is not None:
            function("log", log, "a function of a step and its numbers by name")
        with _evaluating(module):
            self._module, self._inputs, self._log = module, read_batch(module, X, "X"), log
        y = self._inputs.target if y is None else y
        m = len(self._inputs)
        afford(48 * m * m, f"kernels of {m} inputs, and what is read off them,", "give fewer inputs")
        self._targets = None if y is None else numpy_of(y)
        self._gram: FloatArray | None = None
        self._options, self._output = ntk_options, outputs
        self._due, self._share, self._kernels = schedule(record), share, kernels
        self._named = not isinstance(record, str | int)
        self._path = None if path is None else checked_path("path", path)
        self._attrs: dict[str, str | int] = {
            "finwidth_version": version("finwidth"),
            "method": "empirical kernel of a torch module in training",
            "module": type(module).__name__,
            "outputs": outputs,
            "dtype": str(self._inputs.dtype).removeprefix("torch."),
            "inputs_sha256": _hash(*map(numpy_of, self._inputs.own)),
            "targets_sha256": "" if self._targets is None else _hash(self._targets),
        }
        self._step, self._put_off, self._stopped, self._warned = start, False, "", False
        self._loss = math.nan
        self._rows: dict[int, Row] = {}
        self._last: dict[int, Row] = {}  # the step that `dataset` measured, until training goes on
        self._initial: FloatArray = np.zeros((0, 0))
        if start:
            self._resume(start)
        elif self._path is not None and self._path.exists():
            raise FinwidthError(f"{path} exists; give another path, or start=, the steps done, to go on with that run")
        if share is not None:
            self._first_use()
        self._wanted = sum(map(self._due, range(1, start + 1)))
        self._began = time.perf_counter()
        self._spent = self._latest = 0.0
        if not start:
            self._record(self._rows)

    def __repr__(self) -> str:
        return f"<Tracker of a {self._attrs['module']} at {len(self._inputs)} inputs: step {self._step}>"

    def step(self, loss: object = None) -> bool:
        """Count one step of training, and measure if it is time to; returns whether it did.

        Parameters
        ----------
        loss
            The loss of this step, a number or a tensor of one; NaN is kept where none is given, and at step 0.
        """
        given = None if loss is None else numbers(loss)
        if loss is not None and (given is None or given.size != 1):
            raise FinwidthError(f"the loss is {shown(loss)}; give one number, or leave it out")
        self._step += 1
        self._last.clear()
        self._loss = math.nan if given is None else float(given.reshape(()))
        due = not self._stopped and self._due(self._step)
        self._wanted += due
        if not (due or self._put_off) or self._stopped:
            return False
        self._put_off = not self._affordable()
        if self._put_off:
            return False
        self._record(self._rows)
        return True

    def dataset(self) -> xr.Dataset:
        """The measurements so far, over ``step``: the loss, and the variables of `finwidth.observables`.

        It ends with the step that the module is at: if that has not been measured, it is now, in the file too, unless
        ``record`` names the steps and none of them waits. When training goes on it is dropped again, so that it does
        not matter to a run when it is looked at. One warning is given where ``share`` left fewer than one in 20 of the
        measurements that were due.
        """
        waits = self._put_off or not self._named
        if waits and not self._stopped and self._step not in self._rows | self._last:
            self._record(self._last)
        self._warn_of_missed()
        return self._assembled()

    def _assembled(self) -> xr.Dataset:
        import xarray as xr

        rows = dict(sorted((self._rows | self._last).items()))
        variables = {
            name: (
                ("step", *SHAPES.get(name, ())),
                np.array([row[name] for row in rows.values()]),
                quantity.attrs,
            )
            for name, quantity in _VARIABLES.items()
            if name in rows[min(rows)]
        }
        variables["initial_K"] = (SHAPES["K"], self._initial, OBSERVABLES["initial_K"].attrs)
        training = time.perf_counter() - self._began - self._spent
        attrs = self._attrs | {
            "tracking_seconds": self._spent,
            "tracking_share": self._spent / max(training, 1e-9),
            "measurements_due": self._wanted,
            "measurements_missed": self._missed,
        }
        if self._last:
            attrs["beside_the_steps"] = self._step
        if self._stopped:
            attrs["stopped"] = self._stopped
        return xr.Dataset(variables, {"step": np.array(list(rows), dtype=np.int32)}, attrs)

    @property
    def _missed(self) -> int:
        """Number of measurements that were due and not taken, without one that is still waiting."""
        return max(0, self._wanted - self._taken - self._put_off)

    @property
    def _taken(self) -> int:
        return len(self._rows) - 1  # but for step 0

    def _warn_of_missed(self) -> None:
        if self._warned or self._share is None or not self._missed or 20 * self._taken >= self._wanted:
            return
        self._warned = True
        warnings.warn(
            f"share={self._share} let the tracker take {self._taken} of {self._wanted} measurements that were due: one "
            f"takes {self._latest:.2g} s; give a larger share, or fewer inputs",
            stacklevel=3,
        )

    def _first_use(self) -> None:
        """Do once, uncounted, what only a first measurement pays for: imports and preparations of torch."""
        if self._path is not None:
            import xarray as xr

            xr.Dataset({"K": ("input", np.zeros(1))}).to_netcdf(engine="scipy")
        with contextlib.suppress(FinwidthError), _evaluating(self._module):  # the measurement itself will tell
            ntk(self._module, self._inputs[:2], outputs=self._output, **self._options)

    def _affordable(self) -> bool:
        training = time.perf_counter() - self._began - self._spent
        return self._share is None or self._spent + self._latest <= self._share * training

    def _record(self, rows: dict[int, Row]) -> None:
        """Measure this step into these rows, and write all that there is."""
        began = time.perf_counter()
        try:
            with _evaluating(self._module):
                K = _symmetric(ntk(self._module, self._inputs, outputs=self._output, **self._options))
            if not self._rows and not K.any():
                raise FinwidthError(_NO_KERNEL)
        except FinwidthError as error:  # it was fine at initialization
            if not self._rows:
                raise
            self._stopped = f"the kernel cannot be measured at step {self._step}: {error}"
            warnings.warn(f"tracking stops: {self._stopped}", stacklevel=3)
        else:
            if not self._rows:
                self._initial = K
                self._read_targets()
            row: Row = {"loss": np.float64(self._loss)} | observe(K, self._initial, self._gram)
            rows[self._step] = row | ({"K": K} if self._kernels else {})
            if self._log is not None and rows is self._rows:
                with running("log="):
                    self._log(self._step, _scalars(row))
        if self._path is not None:
            write_netcdf(self._assembled(), self._path)
        self._latest = time.perf_counter() - began
        self._spent += self._latest

    def _read_targets(self) -> None:
        if self._targets is not None:
            outputs = self._outputs() if self._targets.dtype.kind in "biu" else 1  # only whole numbers may be classes
            self._gram = check_varied(target_gram(self._targets, len(self._inputs), outputs))
            self._attrs["targets_are"] = targets_are(self._targets, outputs)

    def _outputs(self) -> int:
        """Number of outputs for one input."""
        with _evaluating(self._module), measuring(self._module), differentiable():
            return check_output(tensor_of(call_module(self._module, self._inputs)), len(self._inputs)).shape[1]

    def _resume(self, start: int) -> None:
        if self._path is None or not self._path.is_file():
            raise FinwidthError(f"start={start} goes on with a run, whose file path= must name; {self._path} is none")
        stored = _loaded(self._path)
        for key, what in _SAME.items():
            if stored.attrs.get(key) != self._attrs[key]:
                raise FinwidthError(f"{self._path} is a run on {what}; give the same, or another path and start=0")
        self._read_targets()
        self._initial = stored.initial_K.to_numpy().astype(np.float64)
        per_step = [name for name in stored.data_vars if "step" in stored[name].dims]
        for place, step in enumerate(stored.step.to_numpy().tolist()):
            if step <= start and step != stored.attrs.get("beside_the_steps"):
                self._rows[step] = {str(name): stored[name].to_numpy()[place] for name in per_step}


def _scalars(row: Row) -> dict[str, float]:
    """The finite numbers of a measurement, without its arrays."""
    return {name: float(each) for name, each in row.items() if np.ndim(each) == 0 and np.isfinite(each)}


def _symmetric(K: torch.Tensor) -> FloatArray:
    """A kernel matrix in double precision, without the rounding by which it is not symmetric."""
    found = numpy_of(K).astype(np.float64)
    if not np.isfinite(found).all():
        raise FinwidthError(_NO_KERNEL)
    return (found + found.T) / 2


_NO_KERNEL = "the kernel on the probe set is zero or not finite"
_SAME = {"inputs_sha256": "another probe set", "outputs": "other outputs", "targets_sha256": "other targets"}


def _hash(*arrays: npt.NDArray[np.generic]) -> str:
    found = hashlib.sha256()
    for each in arrays:
        found.update(np.ascontiguousarray(each).tobytes())
    return found.hexdigest()


def one_output(outputs: object) -> str | int:
    """The ``outputs`` of a kernel that is one matrix: ``"trace"``, or the number of one output."""
    if isinstance(outputs, str) and outputs == "trace":
        return outputs
    number = index(outputs)
    if number is None or number < 0:
        raise FinwidthError(f'outputs is {shown(outputs)}; give "trace", or the number of one output, from 0')
    return number


@contextlib.contextmanager
def _evaluating(module: nn.Module) -> Iterator[None]:
    modes = [(layer, layer.training) for layer in module.modules()]
    module.eval()
    try:
        yield
    finally:
        for layer, mode in modes:
            layer.training = mode


def _loaded(run: object) -> xr.Dataset:
    """The dataset of a tracker, or of its file."""
    import xarray as xr

    if not isinstance(run, xr.Dataset):
        file = checked_path("a run", run)
        try:
            run = xr.load_dataset(file, engine="scipy")
        except (OSError, ValueError, TypeError, IndexError) as error:  # SciPy has no error of its own for a bad file
            told = " ".join(str(error).split())[:100]
            raise FinwidthError(f"{file} is no file of a tracker ({type(error).__name__}: {told})") from None
    if "inputs_sha256" not in run.attrs or "step" not in run.dims or "diagonal" not in run:
        raise FinwidthError(f"{shown(run)} is no dataset of a tracker; give what its dataset() returns, or its file")
    found: xr.Dataset = run
    return found


def combine(runs: Sequence[xr.Dataset | str | Path]) -> xr.Dataset:
    """Runs of one architecture from several initializations, over ``draw``, with the spread ``cv`` at common steps.

    Parameters
    ----------
    runs
        Datasets of trackers, or their files: at least two, of one probe set.
    """
    import xarray as xr

    sets = [_loaded(run) for run in items("runs", runs, "two or more datasets of trackers, or their files")]
    if len(sets) < 2 or len({each.attrs["inputs_sha256"] for each in sets}) > 1:
        raise FinwidthError(f"{len(sets)} runs were given; give two or more, of one and the same probe set")
    joined = xr.concat(sets, "draw", join="inner", combine_attrs="drop_conflicts")
    cv = spread(joined.diagonal.transpose("draw", "step", "input").to_numpy())
    return joined.assign(cv=("step", cv, OBSERVABLES["cv"].attrs))

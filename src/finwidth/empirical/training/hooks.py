"""A `Tracker` in other people's training loops and dashboards: thin adapters, each of one library.

The libraries are imported when an adapter is made.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Protocol, TypeAlias, Unpack

from torch import nn

from finwidth.arguments import text
from finwidth.empirical.training.tracker import Tracker, TrackerOptions
from finwidth.errors import FinwidthError, shown
from finwidth.extras import load_library

if TYPE_CHECKING:
    import xarray as xr

Log: TypeAlias = Callable[[int, dict[str, float]], object]


class Callback(Protocol):
    """What the callbacks of this module have in common."""

    tracker: Tracker | None

    def dataset(self) -> xr.Dataset:
        """The measurements so far."""


class _Follower:
    """A tracker that is made when training begins, for the module that is trained then."""

    def __init__(self, X: object, y: object, options: TrackerOptions) -> None:
        super().__init__()
        self.probe, self.options = (X, y), options
        self.tracker: Tracker | None = None
        self.steps = 0

    def dataset(self) -> xr.Dataset:
        """The measurements so far."""
        if self.tracker is None:
            raise FinwidthError("nothing is measured before training begins; train first")
        return self.tracker.dataset()

    def begin(self, module: nn.Module, steps: int) -> None:
        """Measure the module for the first time, after so many steps of earlier runs."""
        X, y = self.probe
        self.steps = steps
        self.tracker = Tracker(module, X, y, **self.options, start=steps)

    def follow(self, steps: int, loss: object = None) -> None:
        """Count a step, if the optimizer has made one."""
        if self.tracker is not None and steps > self.steps:
            self.steps = steps
            self.tracker.step(loss)


def lightning_callback(X: object, y: object = None, **options: Unpack[TrackerOptions]) -> Callback:
    """A callback of Lightning's Trainer that tracks the kernel of the LightningModule, as its forward is.

    Parameters
    ----------
    X, y, options
        As for `finwidth.empirical.Tracker`. Steps are those of the optimizer, also with accumulated gradients; a run
        that goes on from a checkpoint goes on with the file at ``path``.

    Returns
    -------
    lightning.pytorch.Callback
        With ``tracker``, and ``dataset()``. Only the first of several processes measures.

    Raises
    ------
    FinwidthError
        If Lightning is not installed; when training begins, as `finwidth.empirical.Tracker`.
    """
    base: type = load_library("lightning.pytorch", "the callback", "lightning", "lightning").Callback

    class KernelCallback(_Follower, base):  # type: ignore[misc]
        def on_train_start(self, trainer: _Trainer, pl_module: nn.Module) -> None:
            if trainer.is_global_zero:
                self.begin(pl_module, trainer.global_step)

        def on_train_batch_end(
            self, trainer: _Trainer, pl_module: nn.Module, outputs: object, batch: object, batch_idx: int
        ) -> None:
            self.follow(trainer.global_step, outputs.get("loss") if isinstance(outputs, Mapping) else outputs)

    return KernelCallback(X, y, options)


class _Trainer(Protocol):
    """What is read of Lightning's Trainer."""

    is_global_zero: bool
    global_step: int


def trainer_callback(X: object, y: object = None, **options: Unpack[TrackerOptions]) -> Callback:
    """A callback of transformers' Trainer that tracks the kernel of its model.

    Parameters
    ----------
    X, y, options
        As for `finwidth.empirical.Tracker`; X is a BatchEncoding of the tokenizer, for instance. The loss of a step is
        not known to callbacks, and NaN.

    Returns
    -------
    transformers.TrainerCallback
        With ``tracker``, and ``dataset()``. Only the first of several processes measures.

    Raises
    ------
    FinwidthError
        If transformers is not installed; when training begins, as `finwidth.empirical.Tracker`.
    """
    base: type = load_library("transformers", "the callback", "transformers", "transformers").TrainerCallback

    class KernelCallback(_Follower, base):  # type: ignore[misc]
        def on_train_begin(
            self, args: object, state: _State, control: object, *, model: nn.Module, **kwargs: object
        ) -> None:
            if state.is_world_process_zero:
                self.begin(model, state.global_step)

        def on_step_end(self, args: object, state: _State, control: object, **kwargs: object) -> None:
            self.follow(state.global_step)

    return KernelCallback(X, y, options)


class _State(Protocol):
    """What is read of the state of transformers' Trainer."""

    is_world_process_zero: bool
    global_step: int


def tensorboard_log(writer: object, prefix: str = "ntk") -> Log:
    """The ``log`` of a `Tracker` that writes scalars for TensorBoard.

    Parameters
    ----------
    writer
        A ``torch.utils.tensorboard.SummaryWriter``, or anything with its ``add_scalar(tag, value, step)``.
    prefix
        The group of the scalars.

    Raises
    ------
    FinwidthError
        If it has no ``add_scalar``.

    Examples
    --------
    >>> from finwidth.empirical import tensorboard_log
    >>> class Writer:
    ...     def add_scalar(self, tag, value, step):
    ...         print(tag, value, step)
    >>> tensorboard_log(Writer())(10, {"drift": 0.25})
    ntk/drift 0.25 10
    """
    add, prefix = _hook_method(writer, "add_scalar", "a SummaryWriter of torch.utils.tensorboard"), _prefix(prefix)

    def log(step: int, values: dict[str, float]) -> None:
        for name, value in values.items():
            add(f"{prefix}/{name}", value, step)

    return log


def wandb_log(run: object, prefix: str = "ntk") -> Log:
    """The ``log`` of a `Tracker` that sends scalars to Weights & Biases.

    They are over a step of their own, ``ntk/step``, so that they do not get in the way of what else the run logs.

    Parameters
    ----------
    run
        What ``wandb.init()`` returns, or anything with its ``log`` and ``define_metric``.
    prefix
        The group of the scalars.

    Raises
    ------
    FinwidthError
        If it has no ``log`` and ``define_metric``.

    Examples
    --------
    >>> from finwidth.empirical import wandb_log
    >>> class Run:
    ...     log = staticmethod(print)
    ...     def define_metric(self, name, step_metric=None):
    ...         pass
    >>> wandb_log(Run())(10, {"drift": 0.25})
    {'ntk/step': 10, 'ntk/drift': 0.25}
    """
    send, define = (_hook_method(run, each, "what wandb.init() returns") for each in ("log", "define_metric"))
    prefix = _prefix(prefix)
    define(f"{prefix}/step")
    define(f"{prefix}/*", step_metric=f"{prefix}/step")

    def log(step: int, values: dict[str, float]) -> None:
        send({f"{prefix}/step": step} | {f"{prefix}/{name}": value for name, value in values.items()})

    return log


def _prefix(prefix: object) -> str:
    return text("prefix", prefix, "the name of the group of scalars")


def _hook_method(thing: object, name: str, wanted: str) -> Callable[..., object]:
    found = getattr(thing, name, None)
    if not callable(found) or isinstance(thing, type):
        raise FinwidthError(f"{shown(thing)} cannot {name}; give {wanted}")
    method: Callable[..., object] = found
    return method

"""The empirical route: real networks and their own parameters.

`ntk`, `sgd_update`, `explain`, `MLP`, `ResNet`, `recognise`, `Ensemble`, `Tracker` and its adapters to other libraries
need PyTorch, which is imported when one of them is first used.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

from finwidth.errors import FinwidthError

if TYPE_CHECKING:
    from finwidth.empirical.kernel.explanation import explain as explain
    from finwidth.empirical.kernel.ntk import ntk as ntk
    from finwidth.empirical.kernel.sgd_update import sgd_update as sgd_update
    from finwidth.empirical.kernel_store.store import check_kernel as check_kernel
    from finwidth.empirical.matrix_free.kernel_operator import KernelOperator as KernelOperator
    from finwidth.empirical.modules.mlp import MLP as MLP
    from finwidth.empirical.modules.recognition import recognise as recognise
    from finwidth.empirical.modules.resnet import ResNet as ResNet
    from finwidth.empirical.prediction.linearised import linearise as linearise
    from finwidth.empirical.prediction.regression import predict as predict
    from finwidth.empirical.training.ensemble import Ensemble as Ensemble
    from finwidth.empirical.training.hooks import lightning_callback as lightning_callback
    from finwidth.empirical.training.hooks import tensorboard_log as tensorboard_log
    from finwidth.empirical.training.hooks import trainer_callback as trainer_callback
    from finwidth.empirical.training.hooks import wandb_log as wandb_log
    from finwidth.empirical.training.tracker import Tracker as Tracker
    from finwidth.empirical.training.tracker import combine as combine

_HOMES = {
    "ntk": "kernel.ntk",
    "sgd_update": "kernel.sgd_update",
    "explain": "kernel.explanation",
    "KernelOperator": "matrix_free.kernel_operator",
    "MLP": "modules.mlp",
    "ResNet": "modules.resnet",
    "recognise": "modules.recognition",
    "linearise": "prediction.linearised",
    "predict": "prediction.regression",
    "Tracker": "training.tracker",
    "Ensemble": "training.ensemble",
    "check_kernel": "kernel_store.store",
    "combine": "training.tracker",
    "lightning_callback": "training.hooks",
    "trainer_callback": "training.hooks",
    "tensorboard_log": "training.hooks",
    "wandb_log": "training.hooks",
}


if not TYPE_CHECKING:  # a type checker would take any name

    def __getattr__(name: str) -> object:
        """Load a public name from its module when it is first used."""
        if name not in _HOMES:
            raise AttributeError(f"module 'finwidth.empirical' has no attribute {name!r}")
        try:
            return getattr(import_module(f"finwidth.empirical.{_HOMES[name]}"), name)
        except ModuleNotFoundError as error:
            if error.name != "torch":
                raise
            raise FinwidthError(
                f"finwidth.empirical.{name} needs PyTorch, which is not installed; pip install 'finwidth[torch]'"
            ) from None


def __dir__() -> list[str]:
    """Everything public, whether it is loaded or not."""
    return sorted([*globals(), *_HOMES])

"""The libraries of the zoo."""

from __future__ import annotations

import importlib
import os
import sys
from importlib.util import find_spec
from typing import Any

import torch

os.environ["HF_HUB_OFFLINE"] = "1"  # nothing is downloaded


def load(name: str) -> Any:
    """Import a library; torchvision comes first, which the others import if it is there."""
    if find_spec("torchvision"):
        _load_torchvision()
    return importlib.import_module(name)


def _load_torchvision() -> None:
    """Import torchvision, and if its compiled operators do not fit this torch declare them: no model here uses them."""
    if "torchvision" in sys.modules:
        return
    try:
        importlib.import_module("torchvision")
    except RuntimeError:
        for name in [each for each in sys.modules if each.split(".")[0] == "torchvision"]:
            del sys.modules[name]
        for name in ("nms", "qnms"):
            torch.library.define(f"torchvision::{name}", "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        importlib.import_module("torchvision")

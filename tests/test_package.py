"""What the package promises as a whole: its names, its imports, its start-up."""

from __future__ import annotations

import subprocess
import sys

import finwidth

PUBLIC = {
    "MLP",
    "Activation",
    "Bounds",
    "Comparison",
    "Estimate",
    "FinwidthError",
    "KernelMoments",
    "Regime",
    "SmoothActivation",
    "WeightLaw",
    "bounds",
    "compare",
    "depth_for",
    "infinite_width",
    "infinite_width_gram",
    "moments",
    "regime",
    "sample",
    "sample_gram",
    "sweep",
    "train",
    "width_for",
}


def test_public_names() -> None:
    assert set(finwidth.__all__) == PUBLIC


def test_import_is_light() -> None:
    """The library loads NumPy and nothing heavier; torch is used only where it is asked for."""
    code = "import sys, finwidth; finwidth.MLP; print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert "numpy" in loaded
    heavy = {
        "torch",
        "xarray",
        "pandas",
        "matplotlib",
        "scipy",
        "sklearn",
        "rich",
        "typer",
        "sympy",
        "zarr",
        "distributed",
    }
    assert not heavy & set(loaded)

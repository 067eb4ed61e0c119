"""What the package promises as a whole: its names, its imports, its start-up."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

import finwidth
from finwidth import public

PUBLIC = {
    "MLP",
    "Activation",
    "BalancedResNet",
    "Bounds",
    "Comparison",
    "Criticality",
    "Estimate",
    "FinwidthError",
    "Growth",
    "KernelMoments",
    "Norm",
    "Regime",
    "ResNet",
    "SignalMoments",
    "SmoothActivation",
    "Summary",
    "WeightLaw",
    "bounds",
    "compare",
    "critical",
    "depth_for",
    "expansion",
    "growth",
    "infinite_width",
    "infinite_width_gram",
    "moments",
    "regime",
    "sample",
    "sample_gram",
    "signal_moments",
    "summarize",
    "sweep",
    "train",
    "width_for",
}


def test_public_names() -> None:
    assert set(public.__all__) == PUBLIC


def test_a_name_that_is_not_there() -> None:
    """A type checker refuses it too: an ignore that is not needed fails in CI."""
    with pytest.raises(AttributeError, match="has no attribute 'sampel'") as fault:
        _ = finwidth.sampel  # type: ignore[attr-defined]
    assert (fault.value.name, fault.value.obj) == ("sampel", finwidth)  # from which Python suggests `sample`
    with pytest.raises(AttributeError, match="has no attribute 'nkt'"):
        _ = finwidth.empirical.nkt  # type: ignore[attr-defined]
    assert {"ntk", "check_kernel"} <= set(dir(finwidth.empirical))
    assert {"MatrixFreeLinear", "sample", "empirical", "plots"} <= set(dir(finwidth))


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


@pytest.mark.parametrize(
    ("command", "unused"),
    [
        ("moments 2,4,4,1 -i 1,2", {"matplotlib", "sklearn", "finwidth.sampling.one_input", "finwidth.paper"}),
        ("report 64,4,4,1 -i digits:17 --draws 1000", {"sklearn"}),
    ],
)
def test_commands_are_light(command: str, unused: set[str], tmp_path: Path) -> None:
    """They load what they use: imports take longer than most of the work."""
    if "digits" in command:
        pytest.importorskip("sklearn", reason="needs the digits extra")
    code = (
        "import sys, atexit; from finwidth.__main__ import main; atexit.register(lambda: print(*sys.modules)); main()"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, *command.split()], capture_output=True, text=True, check=True, cwd=tmp_path
    )
    loaded = set(done.stderr.splitlines()[-1].split())  # where `main` leaves standard output, too
    assert {"numpy", "typer", "rich"} <= loaded
    assert not {"torch", "xarray", "pandas", "scipy", "sympy", "zarr", *unused} & loaded


def test_the_version_is_the_same_everywhere() -> None:
    root = Path(__file__).parents[1]
    for file in ("pyproject.toml", "CITATION.cff", "README.md"):
        told = re.findall(r"""(?m)^\s*version(?: =|:) ["{]?([0-9.]+)""", (root / file).read_text(encoding="utf-8"))
        assert told == [finwidth.__version__], file

"""The examples of docs/pinn-kernels.md and docs/architecture-score.md run, in small, and draw their figures."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parents[1] / "examples"


def run(tmp_path: Path, name: str, *options: str) -> list[str]:
    pytest.importorskip("torch")
    command = [sys.executable, str(EXAMPLES / name), "-o", "figure.png", *options]
    process = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False, timeout=300)
    assert process.returncode == 0, process.stderr
    assert not process.stderr
    assert (tmp_path / "figure.png").stat().st_size > 10_000
    return process.stdout.splitlines()


def test_pinn_kernels(tmp_path: Path) -> None:
    printed = run(tmp_path, "pinn_kernels.py", "--steps", "4")
    assert printed[0] == "trace of K_uu 21.92, of K_rr 173.9: ratio 7.932"  # as in docs/pinn-kernels.md
    assert len(printed) == 8


def test_architecture_score(tmp_path: Path) -> None:
    printed = run(tmp_path, "architecture_score.py", "--inits", "2", "--batches", "2", "--widths", "4", "8")
    assert len([line for line in printed if "log condition number" in line]) == 6
    assert len(printed) == 6 + 3 + 2 + 1

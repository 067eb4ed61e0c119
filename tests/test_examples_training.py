"""The example of docs/weak-feature-learning.md runs, and its figure is drawn."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLE = Path(__file__).parents[1] / "examples" / "weak_feature_learning.py"


@pytest.mark.slow
def test_weak_feature_learning(tmp_path: Path) -> None:
    pytest.importorskip("sklearn", reason="needs the digits extra")
    figure = tmp_path / "figure.png"
    command = [sys.executable, str(EXAMPLE), "--quick", "-o", str(figure)]
    printed = subprocess.run(command, capture_output=True, text=True, check=True, timeout=1200).stdout
    assert len([line for line in printed.splitlines() if line.startswith(("gelu", "relu  "))]) >= 18
    assert figure.read_bytes()[:4] == b"\x89PNG"

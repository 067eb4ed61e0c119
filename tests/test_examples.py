"""The examples run, in small."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parents[1] / "examples"


def test_digits_movement(tmp_path: Path) -> None:
    pytest.importorskip("torch")
    pytest.importorskip("sklearn", reason="needs the digits extra")
    command = [sys.executable, str(EXAMPLES / "digits_movement.py"), "--draws", "3", "--steps", "3", "--images", "12"]
    process = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False, timeout=300)
    assert process.returncode == 0, process.stderr
    assert not process.stderr
    rows = json.loads((tmp_path / "movement.json").read_text())
    assert len(rows) == process.stdout.count("\n| ") - 1
    assert all(low <= middle <= high for row in rows for middle, low, high in [row["drift at the end"]])
    assert (tmp_path / "movement.png").stat().st_size > 10_000


def test_skip_and_norm(tmp_path: Path) -> None:
    pytest.importorskip("torch")
    few = ["--draws", "500", "--networks", "5", "--matrices", "4", "6"]
    command = [sys.executable, str(EXAMPLES / "skip_and_norm.py"), *few, "-o", "figure.png"]
    process = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False, timeout=300)
    assert process.returncode == 0, process.stderr
    assert not process.stderr
    assert len([line for line in process.stdout.splitlines() if " matrices: " in line]) == 4 * 2 + 7 + 7 * 2
    assert (tmp_path / "figure.png").stat().st_size > 10_000


def test_resnet_spectrum(tmp_path: Path) -> None:
    pytest.importorskip("torch")
    pytest.importorskip("sklearn", reason="needs the digits extra")
    few = ["--images", "6", "--steps", "2", "-o", "figure.png"]
    command = [sys.executable, str(EXAMPLES / "resnet_spectrum.py"), *few]
    process = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False, timeout=300)
    assert process.returncode == 0, process.stderr
    assert not process.stderr
    rows = [
        line.split("|")[1:-1] for line in process.stdout.splitlines() if line.startswith("| ") and "step" not in line
    ]
    assert [int(row[0]) for row in rows] == [0, 1, 2]
    assert float(rows[0][1]) == float(rows[0][2])  # nothing has moved yet
    assert (tmp_path / "figure.png").stat().st_size > 10_000

"""The notebooks of docs/ run, cell by cell, and hold no results; `scripts/docs` runs them in Jupyter's kernel too."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

NOTEBOOKS = sorted((Path(__file__).parents[1] / "docs" / "notebooks").glob("*.ipynb"))


def code(path: Path) -> list[dict[str, Any]]:
    return [cell for cell in json.loads(path.read_text())["cells"] if cell["cell_type"] == "code"]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebooks_run(path: Path) -> None:
    for extra in ("torch", "zarr", "sympy"):
        pytest.importorskip(extra, reason="notebooks use the extras")
    names: dict[str, object] = {"__name__": "__main__"}
    for number, cell in enumerate(code(path)):
        lines = [line for line in cell["source"] if not line.lstrip().startswith("%pip")]
        exec(compile("".join(lines), f"{path.name}, cell {number}", "exec"), names)


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebooks_hold_no_results_and_install_what_they_need(path: Path) -> None:
    cells = code(path)
    assert not any(cell["outputs"] or cell["execution_count"] for cell in cells)
    assert "%pip install" in "".join(cells[0]["source"])
    assert len(cells) > 4


def test_there_are_notebooks() -> None:
    assert len(NOTEBOOKS) >= 6

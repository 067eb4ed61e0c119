"""Every Python block of the README and the docs runs, and every command of the README does what it shows."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md", *sorted((ROOT / "docs").rglob("*.md"))]


@pytest.fixture(autouse=True)
def torch_as_it_was() -> Iterator[None]:
    """A page may choose torch's default precision; the next test must not see it."""
    torch = pytest.importorskip("torch", reason="pages use the torch extra")
    precision = torch.get_default_dtype()
    yield
    torch.set_default_dtype(precision)


def blocks(page: Path, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", page.read_text(), flags=re.MULTILINE | re.DOTALL)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_python_blocks_run(page: Path) -> None:
    """They run, and a print whose comment begins with the value prints that."""
    printed: dict[int, str] = {}  # by the line of the block

    def noting(*values: object) -> None:
        printed[sys._getframe(1).f_lineno] = " ".join(map(str, values))

    names: dict[str, object] = {"print": noting}
    for block in blocks(page, "python"):
        printed.clear()
        exec(compile(block, str(page), "exec"), names)
        for number, line in enumerate(block.splitlines(), 1):
            if line.startswith("print("):
                assert printed[number], line
                promised = line.partition("  # ")[2].partition(":")[0]
                if promised and promised.split()[0] in {"moving", "3723", "151/16"}:
                    assert printed[number].startswith(promised), line


LINES = [line for block in blocks(ROOT / "README.md", "sh") for line in block.splitlines() if "scripts/run" in line]
# Those of sweeps work on one store, one after another.
COMMANDS = [[line] for line in LINES if " sweep " not in line] + [[line for line in LINES if " sweep " in line]]


@pytest.mark.parametrize("lines", COMMANDS, ids=" ; ".join)
def test_readme_commands_work(lines: list[str], tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", np.linspace(-1, 1, 784))
    (tmp_path / "examples").symlink_to(ROOT / "examples")
    for line in lines:
        arguments = shlex.split(line)[1:]
        process = subprocess.run(
            [sys.executable, "-c", "from finwidth.cli.main import main; main()", *arguments],
            cwd=tmp_path, capture_output=True, text=True, check=False, timeout=300,
        )  # fmt: skip
        assert process.returncode == 0, process.stderr
        assert process.stdout
        # A sweep tells a log how far it is.
        assert not [told for told in process.stderr.splitlines() if not re.fullmatch(r"\d+ of \d+ cells.*", told)]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#\s]+)\)", page.read_text()):
        if "://" not in target:
            assert (page.parent / target).exists(), target

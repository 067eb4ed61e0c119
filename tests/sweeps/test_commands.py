"""`finwidth sweep` as a stranger meets it."""

from __future__ import annotations

import json
import os
import pty
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

import finwidth
from finwidth.sweeps import read

pytest.importorskip("zarr", reason="needs the sweep extra")

COMMAND = [sys.executable, "-c", "from finwidth.cli.main import main; main()", "sweep"]
GRID = """\
quantities = ["exact", "sampled"]
[axes]
depth = [2, 3]
width = [4, 8, 16]
n_0 = 2
[sampled]
draws = 2000
"""


def run(*arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run([*COMMAND, *arguments], capture_output=True, text=True, cwd=cwd, check=False, timeout=120)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "grid.toml").write_text(GRID)
    return tmp_path


def test_a_sweep_from_start_to_picture(folder: Path) -> None:
    first = run("grid.toml", cwd=folder)
    assert first.returncode == 0, first.stderr
    assert "12 of 12 cells are in grid.zarr, 12 of them new" in first.stdout
    assert first.stderr.splitlines()[0] == "0 of 12 cells"  # a log, not a terminal
    again = run("--workers", "1", "grid.toml", "--quiet", cwd=folder)
    assert again.stdout.splitlines()[0] == "12 of 12 cells are in grid.zarr."
    assert not again.stderr

    table = run("status", "grid.zarr", cwd=folder).stdout
    assert "2 of depth, 3 of width; seed 0" in table
    assert re.search(r"sampled +6 +6 +\d", table)
    found = json.loads(run("status", "grid.zarr", "--json", cwd=folder).stdout)["results"]
    assert found["complete"] is True
    assert found["cells"]["exact"] == {"done": 6, "total": 6, "doubts": []}

    assert "exact_cv" in run("collect", "grid.zarr", "-o", "grid.nc", cwd=folder).stdout
    import xarray as xr

    with xr.open_dataset(folder / "grid.nc", engine="scipy") as collected:
        whole = read(folder / "grid.zarr")
        assert {*collected} == {*whole}
        assert (collected.sampled_mean == whole.sampled_mean).all()
        assert collected.attrs["config"] == whole.attrs["config"]

    drawn = run("plot", "grid.zarr", "phase", "-o", "phase.pdf", cwd=folder)
    assert drawn.stdout == "Wrote phase.pdf.\n"
    assert (folder / "phase.pdf").read_bytes()[:5] == b"%PDF-"


def test_json_of_a_run(folder: Path) -> None:
    found = json.loads(run("run", "grid.toml", "-o", "other.zarr", "--json", cwd=folder).stdout)["results"]
    assert (found["store"], found["complete"]) == ("other.zarr", True)
    assert found["seconds"] > 0


def test_merge(folder: Path) -> None:
    (folder / "a.toml").write_text(GRID.replace("[2, 3]", "[2]"))
    (folder / "b.toml").write_text(GRID.replace("[2, 3]", "[3]"))
    for part in ("a.toml", "b.toml"):
        assert run(part, "-q", cwd=folder).returncode == 0
    merged = run("merge", "a.zarr", "b.zarr", "-o", "grid.zarr", cwd=folder)
    assert merged.returncode == 0, merged.stderr
    assert read(folder / "grid.zarr").identical(finwidth.sweep(folder / "grid.toml", folder / "whole.zarr"))


MISTAKES = [
    (("none.toml",), "the config none.toml does not exist; give a TOML file"),
    (("bad.toml",), "bad.toml, line 3: axes.dept: this key is not known; did you mean depth?"),
    (("grid.toml", "--scheduler", "tcp://x:1", "--workers", "2"), "give one of the two"),
    (("grid.toml", "-o", "folder"), "folder is not the store of a sweep; it is left as it is"),
    (("grid.toml", "-o", "grid.toml/x.zarr"), "cannot write to grid.toml/x.zarr: Not a directory"),
    (("status", "none.zarr"), "there is no store at none.zarr"),
    (("collect", "none.zarr", "-o", "x.nc"), "there is no store at none.zarr"),
    (("plot", "none.zarr", "phase", "-o", "x.pdf"), "there is no store at none.zarr"),
    (("plot", "none.zarr", "cake", "-o", "x.pdf"), "the picture 'cake' is not known; choose from phase, collapse"),
    (("merge", "none.zarr", "-o", "x.zarr"), "there is no store at none.zarr"),
    (("status",), "Missing argument"),
    (("",), "the config . is a folder, not a file; give a TOML file"),
    ((".",), "the config . is a folder, not a file; give a TOML file"),
    (("/",), "the config / is a folder, not a file; give a TOML file"),
    (("grid.toml", "-o", ""), ". is not the store of a sweep; it is left as it is"),
    (("grid.toml", "-o", "/"), "/ is not the store of a sweep; it is left as it is"),
    (("check", "folder"), "folder is not the store of a sweep; it is left as it is"),
    (("check", "none.zarr"), "there is no store at none.zarr"),
]


@pytest.mark.parametrize(("arguments", "message"), MISTAKES)
def test_mistakes_are_one_line(folder: Path, arguments: tuple[str, ...], message: str) -> None:
    (folder / "bad.toml").write_text(GRID.replace("depth", "dept"))
    (folder / "folder").mkdir()
    (folder / "folder" / "file").write_text("")
    process = run(*arguments, cwd=folder)
    assert process.returncode == 2
    assert message in process.stderr
    assert process.stderr.count("\n") == 1
    assert not process.stdout


def test_damage_is_told_and_mended(folder: Path) -> None:
    """A label's metadata cut short, as a power cut leaves it; and a file of the user's that looks like a temporary."""
    assert run("grid.toml", "-q", cwd=folder).returncode == 0
    assert run("check", "grid.zarr", cwd=folder).stdout == "grid.zarr is as it was stored.\n"
    os.truncate(folder / "grid.zarr" / "depth" / "zarr.json", 30)
    os.truncate(folder / "grid.zarr" / "sampled" / "c.0.0.0.0.0.1.1.0.0", 30)
    (folder / "grid.zarr" / "film.partial").write_text("x")
    uses = [
        ("grid.toml",),
        ("status",),
        ("collect", "-o", "x.nc"),
        ("plot", "phase", "-o", "x.pdf"),
        ("merge", "-o", "x"),
    ]
    for command, *arguments in uses:
        process = run(command, *["grid.zarr"] * (command != "grid.toml"), *arguments, cwd=folder)
        assert process.returncode == 2
        assert process.stderr == (
            "finwidth: error: the store grid.zarr is damaged in depth/zarr.json, and left as it is; finwidth sweep "
            "check grid.zarr lists all damage and mends what can be computed again\n"
        )
    found = json.loads(run("check", "grid.zarr", "--json", cwd=folder).stdout)["results"]
    assert [each["file"] for each in found["damaged"]] == ["depth/zarr.json", "sampled/c.0.0.0.0.0.1.1.0.0"]
    assert "12 of 12 cells are in grid.zarr, 1 of them new" in run("grid.toml", "-q", cwd=folder).stdout
    assert read(folder / "grid.zarr").identical(finwidth.sweep(folder / "grid.toml", folder / "whole.zarr"))
    assert (folder / "grid.zarr" / "film.partial").read_text() == "x"

    (folder / "grid.zarr" / "exact" / "c.0.0.0.0.0.0.0.0").unlink()
    (folder / "grid.zarr" / "exact" / "c.0.0.0.0.0.0.0.0").mkdir()
    process = run("check", "grid.zarr", cwd=folder)
    assert (process.returncode, process.stderr.count("\n")) == (2, 1)
    assert "grid.zarr is still damaged: move away exact/c.0.0.0.0.0.0.0.0, and check it again" in process.stderr


def test_help(folder: Path) -> None:
    assert "merge" in run(cwd=folder).stdout
    assert "--scheduler" in run("run", "--help", cwd=folder).stdout


def test_ctrl_c_ends_with_a_summary_and_the_sweep_goes_on(folder: Path) -> None:
    (folder / "long.toml").write_text(GRID.replace("draws = 2000", "draws = 500_000"))
    process = subprocess.Popen(
        [*COMMAND, "long.toml", "--workers", "1"],
        stderr=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        cwd=folder,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # noqa: PLW1509 - off in background jobs
    )
    while not list(folder.glob("long.zarr/sampled/c.*")):
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=30)
    assert process.returncode == 130
    summary = re.search(
        r"^finwidth: interrupted; (\d+) of 12 cells are in long.zarr, .* new, .* a second; the same command goes on$",
        errors,
        re.M,
    )
    assert summary, errors
    assert 1 <= int(summary[1]) < 12
    assert "Traceback" not in errors
    shutil.copytree(folder / "long.zarr", folder / "copy.zarr")
    resumed = finwidth.sweep(folder / "long.toml", folder / "copy.zarr")
    assert resumed.identical(finwidth.sweep(folder / "long.toml", folder / "whole.zarr"))


def test_a_bar_with_rate_and_time_left_on_a_terminal(folder: Path) -> None:
    (folder / "long.toml").write_text(GRID.replace("draws = 2000", "draws = 100_000"))
    ours, theirs = pty.openpty()
    with subprocess.Popen(
        [*COMMAND, "long.toml"], stderr=theirs, stdout=subprocess.DEVNULL, cwd=folder,
        env=os.environ | {"TERM": "xterm", "COLUMNS": "100"},
    ) as process:  # fmt: skip
        os.close(theirs)
        shown = b""
        while True:
            try:
                piece = os.read(ours, 4096)
            except OSError:  # the other end is closed
                break
            if not piece:
                break
            shown += piece
    os.close(ours)
    assert process.returncode == 0
    assert re.search(rb"\d+/12", shown)
    assert re.search(rb"a second, 0:00:\d\d left", shown)

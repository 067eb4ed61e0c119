"""The command line as a process among others: signals, streams, locales, arguments of any bytes, what is no file."""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import random
import re
import shlex
import signal
import socket
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from finwidth.outputs import wrote
from forks import forks
from fuzzing import call, make_files, within_memory

FINWIDTH = f"{sys.executable} -m finwidth"
FOREVER = "sample 8,64x50,1 -i 1,1,1,1,1,1,1,1 -n 100000000"
GRID = """
quantities = ["sampled"]
axes = {depth = [2, 3, 4, 5, 6, 7], width = [8, 16], n_0 = 4}
sampled = {draws = 500_000}
"""


def shell(
    line: str, cwd: Path | None = None, variables: dict[str, str] | None = None
) -> subprocess.CompletedProcess[bytes]:
    env = {**os.environ, **(variables or {})}
    return subprocess.run(["bash", "-c", line], capture_output=True, cwd=cwd, env=env, check=False, timeout=120)


@contextlib.contextmanager
def started(line: str, cwd: Path | None = None, **variables: str) -> Iterator[subprocess.Popen[str]]:
    """A process with its signals switched on, which a shell's job in the background has not."""
    code = (
        "import pathlib, signal\n"
        "for each in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP): signal.signal(each, signal.SIG_DFL)\n"
        "pathlib.Path('begun').touch()\n"
        "from finwidth.__main__ import main; main()"
    )
    env = {**os.environ, **variables}
    with subprocess.Popen(
        [sys.executable, "-c", code, *line.split()],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=cwd, env=env,
    ) as process:  # fmt: skip
        try:
            yield process
        finally:
            process.kill()


def wait_for(folder: Path, pattern: str) -> None:
    until = time.monotonic() + 60
    while not list(folder.glob(pattern)):
        assert time.monotonic() < until, f"no {pattern}"
        time.sleep(0.01)


SIGNALS = {signal.SIGINT: "interrupted", signal.SIGTERM: "terminated", signal.SIGHUP: "its terminal is closed"}
each_signal = pytest.mark.parametrize("number", SIGNALS, ids=lambda number: number.name)


@each_signal
def test_a_signal_while_modules_load(number: signal.Signals, tmp_path: Path) -> None:
    """A module that takes long to load stands before NumPy."""
    (tmp_path / "numpy.py").write_text("import pathlib, time\npathlib.Path('loading').touch()\ntime.sleep(60)")
    with started("moments 2,3,1 -i 1,2", tmp_path, PYTHONPATH=f"{tmp_path}:{os.environ.get('PYTHONPATH', '')}") as it:
        wait_for(tmp_path, "loading")
        it.send_signal(number)
        output, errors = it.communicate(timeout=20)
    assert (it.returncode, output, errors) == (128 + number, "", f"finwidth: {SIGNALS[number]}\n")


@each_signal
def test_a_signal_in_a_sweep_closes_its_store(number: signal.Signals, tmp_path: Path) -> None:
    pytest.importorskip("zarr")
    (tmp_path / "long.toml").write_text(GRID)
    with started("sweep long.toml --workers 1 --json", tmp_path) as it:
        wait_for(tmp_path, "long.zarr/sampled/c.*")
        it.send_signal(number)
        output, errors = it.communicate(timeout=60)
    assert (it.returncode, output) == (128 + number, "")
    told = rf"finwidth: {SIGNALS[number]}; (\d+) of 12 cells are in long.zarr.*; the same command goes on\n"
    done = re.fullmatch(told, errors)
    assert done, errors
    status = shell(f"{FINWIDTH} sweep status long.zarr --json", tmp_path)
    stored = json.loads(status.stdout)["results"]["cells"]["sampled"]["done"]
    assert int(done[1]) <= stored <= int(done[1]) + 1  # the cell that was computed may be stored without being told


WRITING = (
    "sample 3,8x20,1 -i 1,2,3 -n 100000 -o draws.nc",
    "gram 3,32x3,1 -i X.npy -n 3000 -o gram.nc",
    "expansion 3,8x9,1 -i X.npy --points 64 -o wide.nc",
    "train 3,8,1 -i X.npy -t 1,2,3 --steps 3 --draws 50 -o run.nc",
    "report 3,8,1 -i 1,2,3 --draws 3000 -o report",
    "explore -o explorer.html",
    "moments 3,64x300,1 -i 1,2,3 --order 3",
)


@pytest.mark.slow
@pytest.mark.parametrize("line", WRITING)
def test_signals_at_random_moments(line: str, tmp_path: Path) -> None:
    """21 of each command, from its first line on: one line, and each output is there as a whole or not at all."""
    np.save(tmp_path / "X.npy", np.eye(3))
    rng, seconds, found = random.Random(line), 0.0, Counter[int]()
    for k in range(22):
        (tmp_path / "begun").unlink(missing_ok=True)
        with started(line, tmp_path) as it:
            wait_for(tmp_path, "begun")
            began, number = time.monotonic(), [*SIGNALS][k % 3]
            if seconds:
                time.sleep(rng.uniform(0, 1.05 * seconds))
                it.send_signal(number)
            _, errors = it.communicate(timeout=100)
            seconds = seconds or time.monotonic() - began
        ends = {0: "", 128 + number: f"finwidth: {SIGNALS[number]}\n", -number: ""}  # the last: while it is loaded
        assert errors == ends[it.returncode], it.returncode
        assert not list(tmp_path.rglob("*.partial"))
        assert all(map(wrote, {*tmp_path.rglob("*.*")} - {tmp_path / "X.npy"}))
        found[it.returncode] += 1
    print(line, dict(found))
    assert sum(found[128 + number] for number in SIGNALS) > 5


def test_a_second_signal_does_not_wait(tmp_path: Path) -> None:
    """What cleans up, here a user's own code, may take its time: until it is asked again."""
    pytest.importorskip("torch")
    (tmp_path / "slow.py").write_text(
        "import pathlib, time\n"
        "try:\n    pathlib.Path('ready').touch(); time.sleep(60)\n"
        "finally:\n    pathlib.Path('cleaning').touch(); time.sleep(60)"
    )
    with started("measure slow.py:make -i 1,2", tmp_path) as it:
        wait_for(tmp_path, "ready")
        it.send_signal(signal.SIGTERM)
        wait_for(tmp_path, "cleaning")
        it.send_signal(signal.SIGINT)
        output, errors = it.communicate(timeout=20)
    assert (it.returncode, output, errors) == (130, "", "finwidth: interrupted\n")


def test_what_a_stop_leaves_half_made_is_not_told(tmp_path: Path) -> None:
    """Its destructor fails, as that of an event loop that was stopped as it began: it is told without a stop only."""
    pytest.importorskip("torch")
    (tmp_path / "half.py").write_text(
        "import pathlib, time\n"
        "class Half:\n    def __del__(self):\n        raise AttributeError('half made')\n"
        "def begin():\n"
        "    half = Half(); pathlib.Path('made').touch(); time.sleep(60 if pathlib.Path('wait').exists() else 0)\n"
        "def make():\n    begin()"
    )
    with started("measure half.py:make -i 1,2", tmp_path) as it:
        assert "AttributeError: half made" in it.communicate(timeout=60)[1]
    (tmp_path / "made").unlink()
    (tmp_path / "wait").touch()
    with started("measure half.py:make -i 1,2", tmp_path) as it:
        wait_for(tmp_path, "made")
        it.send_signal(signal.SIGINT)
        assert it.communicate(timeout=20) == ("", "finwidth: interrupted\n")


def test_a_stop_where_exceptions_are_lost_still_cleans_up(tmp_path: Path) -> None:
    pytest.importorskip("torch")
    (tmp_path / "lost.py").write_text(
        "import pathlib, signal, time\n"
        "class Lost:\n    def __del__(self):\n        signal.raise_signal(signal.SIGTERM)\n"
        "try:\n    Lost(); time.sleep(60)\n"
        "finally:\n    pathlib.Path('clean').touch()"
    )
    with started("measure lost.py:make -i 1,2", tmp_path) as it:
        assert it.communicate(timeout=50) == ("", "finwidth: terminated\n")
    assert (tmp_path / "clean").exists()


def test_a_stop_at_each_line_around_a_command(tmp_path: Path) -> None:
    """What surrounds it: the mistake that it makes may have been told before."""
    with forks() as process:
        for line in itertools.count(1):
            found = process.run(tmp_path, ["moments", "3,4,1", "-i", "1,2"], line=line)
            told = found["stderr"].splitlines()
            if found["status"] == 2:
                break
            assert found["status"] == 130, line
            assert told.pop() == "finwidth: interrupted", line
            assert len(told) < 2
            assert all("input" in each for each in told)
    assert line > 50


def test_signals_that_are_switched_off_stay_so(tmp_path: Path) -> None:
    process = shell(f"trap '' HUP; {FINWIDTH} {FOREVER} & sleep 3; kill -HUP $!; sleep 1; kill -TERM $!; wait $!")
    assert process.returncode == 143
    assert process.stderr.endswith(b"finwidth: terminated\n")


STREAMS = {  # line: status, and what standard error says
    "{} moments 2,3,1 -i 1,2 >&-": (2, "standard output is closed; send it to a file, or to /dev/null"),
    "{} --version >&-": (2, "standard output is closed"),
    "{} moments 2,3,1 -i 1,2 2>&-": (0, ""),
    "{} moments 2,3,1 -i 1,2,3 2>&-": (2, ""),
    "{} moments 2,3,1 -i 1,2 <&- 2>&-": (0, ""),
    "{} moments 2,3,1 -i 1,2,3 >&- <&- 2>&-": (2, ""),
    "{} moments 2,3,1 -i 1,2,3 2>/dev/full": (2, ""),
    "{} moments 2,3,1 -i 1,2 >/dev/full": (2, "cannot write the output: No space left on device"),
    "{} --help >/dev/full": (2, "cannot write the output: No space left on device"),
    "{} moments 2,3,1 -i 1,2 1</dev/null": (2, "cannot write the output: Bad file descriptor"),
    "{} moments 2,3,1 -i 1,2 | true; exit ${{PIPESTATUS[0]}}": (0, ""),
    "{} --help | true; exit ${{PIPESTATUS[0]}}": (0, ""),
    "{} moments 2,3,1 -i 1,2,3 2>&1 | true; exit ${{PIPESTATUS[0]}}": (2, ""),
}


@pytest.mark.parametrize("line", STREAMS)
def test_streams(line: str) -> None:
    status, told = STREAMS[line]
    process = shell(line.format(FINWIDTH))
    assert process.returncode == status, process.stderr
    assert process.stderr.count(b"\n") == bool(told)
    assert told in process.stderr.decode()


def test_a_file_never_takes_the_number_of_a_closed_stream(tmp_path: Path) -> None:
    pytest.importorskip("torch")
    (tmp_path / "loud.py").write_text("import os, torch\nos.write(2, b'loud')\nmake = torch.nn.Linear(2, 1)")
    done = shell(f"{FINWIDTH} measure loud.py:make -i 1,2 --json <&- 2>&- >out", tmp_path)
    assert done.returncode == 0
    found = json.loads((tmp_path / "out").read_text())["results"]["quantities"]
    assert found["K"]["module"]["value"] == [[6]]


SURROUNDINGS: tuple[dict[str, str], ...] = (
    {"LC_ALL": "C"},
    {"LC_ALL": "C", "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0"},
    {"PYTHONIOENCODING": "ascii"},
    {"TERM": "dumb"},
    {"NO_COLOR": "1"},
    {"COLUMNS": "1", "FORCE_COLOR": "1"},
    {"COLUMNS": "0", "FORCE_COLOR": "1"},
    {"COLUMNS": "x" * 5000},
    {"PYTHONOPTIMIZE": "2"},
    {"PYTHONWARNINGS": "error"},
)


@pytest.mark.parametrize("variables", SURROUNDINGS, ids=str)
def test_surroundings(variables: dict[str, str]) -> None:
    found = shell(f"{FINWIDTH} moments 2,3,1 -i 1,2; {FINWIDTH} moments -h", variables=variables)
    assert not found.stderr
    text = re.sub(rb"\x1b\[[0-9;]*m", b"", found.stdout)
    assert b"151" in text or b"E[K]" in text
    assert b"--exact" in text


def test_arguments_of_any_bytes(tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", [1.0, 2.0])
    os.rename(tmp_path / "x.npy", os.fsencode(tmp_path) + b"/\xff\xe9.npy")
    known = shell(rf"{FINWIDTH} moments 2,3,1 -i $'\xff\xe9.npy'", tmp_path, {"LC_ALL": "C"})
    assert (known.returncode, known.stderr) == (0, b"")
    for junk in (r"$'\xff\xfe'", r"$'\x1b[2J'", r"$'a\nb\u2028c'"):
        process = shell(f"{FINWIDTH} moments {junk} -i 1,2", variables={"LC_ALL": "C"})
        assert process.returncode == 2
        assert process.stderr.startswith(b"finwidth: error: widths")
        assert process.stderr.decode("ascii")[:-1].isprintable()


def test_the_version_is_told_at_once() -> None:
    """No NumPy has to be loaded for an interrupt to be taken; the version itself needs little more."""
    code = "import sys, finwidth.__main__; print(*sys.modules)"
    loaded = shell(f"{sys.executable} -c '{code}'").stdout.decode().split()
    assert not {"numpy", "typer", "typing", "finwidth.public"} & set(loaded)


NINES = 5000 * "9"
LONG = {
    f"moments 64,1 -i digits:{NINES}": "give a number, such as digits:17",
    f"moments {NINES} -i 1": "such as 16,64x8,1",
    f"moments 2,3,1 -i {NINES}": "finite number",
    f"moments 2,3,1 -i {NINES}x": "or digits:17",
    f"moments 2,3,1 -i 1,2 --order {NINES}": "--order",
    f"moments 2,3,1 -i 1,2 --law {NINES}": "choose one of gaussian",
    f"moments 2,3,1 -i {NINES}.npy": "give numbers such as 1,2",
    f"train 64,1 -i digits:0-{NINES}": "such as digits:0-23",
    f"train 2,1 -i X.npy -t 1,2 --memory {NINES}x": '"1GiB" or "200 MB"',
    f"measure m.py:M -i 1,2 --outputs {NINES}": "or the number of one output",
    f"measure {NINES}.py:M -i 1,2": "such as mymodel.py:make_model",
    f"sample 2,3,1 -i 1,2 --seed {NINES}": "--seed",
    f"sample 2,3,1 -i 1,2 --bias '{'a b ' * 1300}'": "choose one of trained",
    f"paper {NINES}": "choose one of theorem-1",
    f"sweep {NINES}": "give a TOML file",
    f"sweep status {NINES}": NINES[:20],
    f"{NINES}": "--help tells what is allowed",
}


@pytest.fixture
def files(tmp_path: Path) -> Path:
    np.save(tmp_path / "X.npy", np.eye(2))
    (tmp_path / "m.py").write_text("import torch\nM = torch.nn.Linear(2, 1)")
    os.mkfifo(tmp_path / "pipe.npy")
    os.mkfifo(tmp_path / "pipe.toml")
    (tmp_path / "zero.npy").symlink_to("/dev/zero")
    (tmp_path / "folder.npy").mkdir()
    with socket.socket(socket.AF_UNIX) as at, contextlib.chdir(tmp_path):
        at.bind("socket.npy")
    return tmp_path


def refused(line: str, folder: Path) -> str:
    """The one line that a mistake is told in."""
    with contextlib.chdir(folder):
        called = call(shlex.split(line))
    assert called.status == 2, called
    assert not called.output
    assert called.fault() is None
    return called.errors


@pytest.mark.parametrize("line", LONG, ids=lambda line: line.replace(NINES, "9...9")[:50])
def test_long_arguments_are_shortened(line: str, files: Path) -> None:
    if line.startswith("measure"):
        pytest.importorskip("torch")
    told = refused(line, files)
    assert len(told) < 1300
    assert LONG[line] in told


NO_FILES = {
    "moments 2,3,1 -i pipe.npy": "pipe.npy is a pipe",
    "moments 2,3,1 -i zero.npy": "zero.npy is a device",
    "moments 2,3,1 -i folder.npy": "folder.npy is a folder",
    "moments 2,3,1 -i socket.npy": "socket.npy is a socket",
    "train 2,3,1 -i pipe.npy -t 1": "pipe.npy is a pipe",
    "train 2,3,1 -i X.npy -t pipe.npy": "pipe.npy is a pipe",
    "measure m.py:M -i pipe.npy": "pipe.npy is a pipe",
    "sweep pipe.toml": "pipe.toml is a pipe",
    "sweep /dev/zero": "/dev/zero is a device",
    "sweep ''": "is a folder",
    "sweep .": "is a folder",
    "sweep /": "is a folder",
}


@pytest.mark.parametrize("line", NO_FILES)
def test_what_is_no_file_is_not_read(line: str, files: Path) -> None:
    if line.startswith("measure"):
        pytest.importorskip("torch")
    assert NO_FILES[line] in refused(line, files)


def test_npy_files_of_every_kind(tmp_path: Path) -> None:
    """Two of them are three real numbers; none is run, or takes more memory than it has."""
    arrays = make_files(tmp_path)
    assert len(arrays) > 35
    with contextlib.chdir(tmp_path), within_memory(2**30):
        calls = {name: call(["moments", "3,4,1", "-i", name, "--json"]) for name in arrays}
    assert not [each for each in calls.values() if each.fault()]
    assert {name for name, each in calls.items() if each.status == 0} == {"x.npy", "unsigned.npy"}
    assert not (tmp_path / "ran").exists()


EDGES = (
    "moments 3,4,1 -i 1e100,1,1 --exact --order 4",
    "moments 3,4,1 -i 1e100,1,1 --order 4 --json",
    "sample 3,1 -i 1e154,0,0 --tilted --bias none -n 500",
    "sample 3,1 -i 1e154,0,0 --bias none -n 500 --json",
    "report 3,2x20,1 -i 1e-162,0,0 --bias none -n 500",
    "train 3,16x2,1 -i X.npy --targets 1,-1,1,-1 --lr 1 --draws 2 --bias frozen",
    "train 3,16x2,1 -i X.npy --targets 1e200,-1,1,-1 --draws 2 --json",
    f"moments 3,4,1 -i {400 * '9'}/1,1,1",
    f"train 3,4,1 -i X.npy -t {400 * '9'}/1,1,1,1",
)


@pytest.mark.parametrize("line", EDGES, ids=lambda line: line[:60])
def test_numbers_at_the_edge_are_no_nan_and_raise_no_warning(line: str, tmp_path: Path) -> None:
    make_files(tmp_path)
    with contextlib.chdir(tmp_path):
        called = call(line.split())
    assert called.status in {0, 2}
    assert called.fault() is None

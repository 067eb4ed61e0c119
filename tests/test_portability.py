"""Nothing of finwidth needs POSIX or a shell: all of it is imported, and runs, without what Windows does not have.

The libraries below it are loaded before, since on this system they use what it has.
"""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

import pytest

WITHOUT_POSIX = """
import os, signal, sys
from importlib import import_module

for library in ("matplotlib.backends.backend_pdf", "rich.progress", "typer", "scipy.stats", "torch", "xarray", "zarr",
                "sklearn.datasets", "filelock", "distributed", "sympy", "jinja2", "tempfile", "subprocess"):
    try:
        import_module(library)
    except ModuleNotFoundError:
        pass
for module in ("fcntl", "resource", "pwd", "grp", "termios", "tty", "pty", "syslog", "crypt"):
    sys.modules[module] = None
for name in (
    "fork forkpty register_at_fork getuid geteuid getgid getegid getpgid getsid setsid setpgid killpg nice mkfifo "
    "mknod chown lchown fchown chroot statvfs fstatvfs sysconf sysconf_names getloadavg uname ttyname openpty "
    "sched_getaffinity sched_setaffinity posix_fadvise posix_fallocate posix_spawn sendfile wait wait3 wait4 fdatasync "
    "O_DIRECTORY O_NONBLOCK O_NOFOLLOW O_CLOEXEC O_SYNC EX_OK WNOHANG"
).split():
    if hasattr(os, name):
        delattr(os, name)
kept = {"SIGABRT", "SIGFPE", "SIGILL", "SIGINT", "SIGSEGV", "SIGTERM", "SIG_DFL", "SIG_IGN"}
for name in [each for each in dir(signal) if each.startswith("SIG") and each not in kept]:
    delattr(signal, name)
for name in ("alarm", "setitimer", "pthread_sigmask", "sigwait", "siginterrupt", "pause"):
    delattr(signal, name)
os.process_cpu_count = os.cpu_count  # where there is no affinity
os.O_TEMPORARY = 0  # files that go when they are closed, which this system does not have
"""
SWEEP = 'quantities = ["exact", "sampled"]\n[axes]\ndepth = [2, 3]\nwidth = [4, 8]\nn_0 = 2\n[sampled]\ndraws = 100\n'
COMMANDS = {
    "--help": "finite depth",
    "moments 2,4,4,1 -i 1,2": "relu",
    "sample 2,4,4,1 -i 1,2 --draws 100 -o draws.nc": "Wrote draws.nc, with 100 draws.",
    "report 2,4,4,1 -i 1,2 --draws 1000 -o report": "manifest.json",
    "sweep run grid.toml": "",
    "sweep run grid.toml -o grid.zarr": "",
    "sweep status grid.zarr": "grid.zarr",
    "sweep plot grid.zarr phase -o phase.png": "",
}
PROGRAM = f"""{WITHOUT_POSIX}
import contextlib, io, json, pkgutil
from pathlib import Path

def told(code):
    try:
        exec(code)
    except Exception as error:
        return type(error).__name__

found = {{}}
hidden = ("import fcntl", "import resource", "os.fork()", "signal.SIGALRM", "signal.SIGHUP", "os.mkfifo('a')")
found["hidden"] = {{line: told(line) for line in hidden}}

import finwidth
found["modules"], found["missing"] = 0, {{}}
for each in pkgutil.walk_packages(finwidth.__path__, "finwidth."):
    try:
        import_module(each.name)
        found["modules"] += 1
    except ModuleNotFoundError as error:
        found["missing"][each.name] = error.name.partition(".")[0]

from finwidth.cli.main import main
from finwidth.stores.files import lock

def run(command):
    sys.argv = ["finwidth", *command.split()]
    with contextlib.redirect_stdout(io.StringIO()) as out, contextlib.redirect_stderr(io.StringIO()) as errors:
        try:
            main()
        except SystemExit as end:
            return end.code, out.getvalue(), errors.getvalue()

if "zarr" in sys.modules:
    Path("busy.zarr").mkdir()
    with lock(Path("busy.zarr"), "-o"):
        found["busy"] = run("sweep run grid.toml -o busy.zarr")
    found["free"] = run("sweep run grid.toml -o busy.zarr")
found["commands"] = {{command: run(command) for command in {list(COMMANDS)}}}
print(json.dumps(found))
"""


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What one process without POSIX finds."""
    folder = tmp_path_factory.mktemp("portable")
    (folder / "grid.toml").write_text(SWEEP)
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM], capture_output=True, text=True, check=False, cwd=folder, timeout=300
    )
    assert done.returncode == 0, done.stderr
    told: dict[str, Any] = json.loads(done.stdout)
    return told | {"files": {each.name for each in folder.iterdir()}}


def test_what_is_hidden_is_missed(found: dict[str, Any]) -> None:
    """The negative control."""
    assert set(found["hidden"].values()) == {"ModuleNotFoundError", "AttributeError"}


def test_everything_is_imported(found: dict[str, Any]) -> None:
    assert found["modules"] > 100
    assert set(found["missing"].values()) <= {"torch", "zarr", "sympy", "distributed", "dask", "jinja2"}  # extras


@pytest.mark.parametrize("command", COMMANDS)
def test_commands_run(found: dict[str, Any], command: str) -> None:
    if command.startswith("sweep"):
        pytest.importorskip("zarr", reason="needs the sweep extra")
    status, output, errors = found["commands"][command]
    assert status == 0, errors
    assert COMMANDS[command] in output
    wanted = command.partition(" -o ")[2]
    assert not wanted or wanted in found["files"]


def test_one_process_writes_to_a_store(found: dict[str, Any]) -> None:
    pytest.importorskip("zarr", reason="needs the sweep extra")
    status, _, errors = found["busy"]
    assert (status, errors) == (
        2,
        "finwidth: error: another process writes to busy.zarr; wait until it ends, or stop it\n",
    )
    assert found["free"][0] == 0

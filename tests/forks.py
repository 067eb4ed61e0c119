"""A process that runs finwidth's commands in forks of itself, and stops them: a command takes a tenth of a second.

It reads one JSON document a line, {"cwd", "arguments", ...}, and answers with {"status", "stderr", "seconds"}, the
status as `os.waitstatus_to_exitcode` has it.  What may be asked besides: "signal" after so many seconds ("after"); a
kill just before the step number "at" among those that touch a file of the folder; Ctrl-C at the "line" of that number
among those of the program that surround the command; "limit", the most bytes of a file.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import resource
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import FrameType
from typing import Any

_STEPS = {"open", "os.rename", "os.remove", "os.mkdir", "os.rmdir"}  # audit events
_STOPS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class Forks:
    """The other end: `run` asks for one command."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process

    def run(self, cwd: Path, arguments: Sequence[str], **more: Any) -> dict[str, Any]:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        print(json.dumps({"cwd": str(cwd), "arguments": [*arguments], **more}), file=self._process.stdin, flush=True)
        found: dict[str, Any] = json.loads(self._process.stdout.readline())
        return found


@contextlib.contextmanager
def forks(*modules: str) -> Iterator[Forks]:
    """A process that has imported these modules, where they are installed, so that no fork has to."""
    shared = [
        "finwidth.cli.main",
        "finwidth.cli.tables",
        "rich.progress",
        "xarray",
        "scipy.io",
        "dask.array",
        "distributed",
        "pydantic.main",
    ]
    command = [sys.executable, __file__, *shared, *modules]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        yield Forks(process)
        assert process.stdin is not None
        process.stdin.close()


def _child(task: dict[str, Any], errors: int) -> int:
    from finwidth.__main__ import main
    from finwidth.cli.interrupts import end, handle

    os.chdir(task["cwd"])
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    os.dup2(errors, 2)
    sys.stdout, sys.stderr = os.fdopen(1, "w", closefd=False), os.fdopen(2, "w", closefd=False)
    handle(end)  # as the program begins
    signal.pthread_sigmask(signal.SIG_UNBLOCK, _STOPS)
    if "limit" in task:
        resource.setrlimit(resource.RLIMIT_FSIZE, (task["limit"], task["limit"]))
    if "at" in task:
        _kill_at(task["at"], os.path.realpath(task["cwd"]))
    if "line" in task:
        _interrupt_at(task["line"])
    sys.argv = ["finwidth", *task["arguments"]]
    try:
        main()
    except SystemExit as done:
        return done.code if isinstance(done.code, int) else 0
    return 0


def _kill_at(steps: int, folder: str) -> None:
    left = steps

    def watch(event: str, given: tuple[Any, ...]) -> None:
        nonlocal left
        if event in _STEPS and isinstance(given[0], str) and os.path.realpath(given[0]).startswith(folder):
            left -= 1
            if left < 0:
                os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(watch)


def _interrupt_at(lines: int) -> None:
    import finwidth.__main__
    import finwidth.cli.main

    files = {finwidth.__main__.__file__, finwidth.cli.main.__file__}
    left = lines

    def watch(frame: FrameType, event: str, given: object) -> Any:
        nonlocal left
        if frame.f_code.co_filename not in files:
            return None
        left -= event == "line"
        if left == 0:
            os.kill(os.getpid(), signal.SIGINT)
        return watch

    sys.settrace(watch)


def _answer(task: dict[str, Any]) -> dict[str, Any]:
    read, write = os.pipe()
    began = time.monotonic()
    signal.pthread_sigmask(signal.SIG_BLOCK, _STOPS)  # until the program is as it is when its command line begins
    pid = os.fork()
    if pid:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, _STOPS)
    else:
        status = 1
        try:
            status = _child(task, write)
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stderr.flush()
            os._exit(status)
    os.close(write)
    if "signal" in task:
        time.sleep(task["after"])
        os.kill(pid, task["signal"])  # it is not waited for yet, so the number is still its own
    with os.fdopen(read) as pipe:
        stderr = pipe.read()
    status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    return {"status": status, "stderr": stderr, "seconds": time.monotonic() - began}


if __name__ == "__main__":
    for name in sys.argv[1:]:
        with contextlib.suppress(ModuleNotFoundError):
            importlib.import_module(name)
    for line in sys.stdin:
        print(json.dumps(_answer(json.loads(line))), flush=True)

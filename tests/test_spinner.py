"""What a terminal shows while a command works: a spinner after two silent seconds, which leaves nothing behind."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

pty = pytest.importorskip("pty", reason="there are no such terminals")
SLOW = "import time, torch\ntime.sleep(3.5)\nmake = torch.nn.Linear(2, 1)\n"


def on_a_terminal(arguments: list[str], folder: Path) -> tuple[int, str, str]:
    """Status, standard output in a pipe, and what a terminal got as standard error."""
    ours, theirs = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-m", "finwidth", *arguments], cwd=folder, stdout=subprocess.PIPE, stderr=theirs, text=True
    )
    os.close(theirs)
    told, shown = b"", b"first"
    while shown:
        try:
            shown = os.read(ours, 10_000)
        except OSError:  # the other end is closed
            break
        told += shown
    os.close(ours)
    output, _ = process.communicate(timeout=60)
    return process.returncode, output, told.decode()


def left_on_screen(told: str) -> str:
    """What a line of a terminal shows in the end: carriage returns go back, and ESC [K clears."""
    return "\n".join(
        re.split(r"\r\x1b\[K", line)[-1].split("\r")[-1] for line in told.replace("\r\n", "\n").split("\n")
    )


def test_a_spinner_turns_in_silence_and_leaves_nothing(tmp_path: Path) -> None:
    pytest.importorskip("torch")
    (tmp_path / "slow.py").write_text(SLOW)
    status, output, told = on_a_terminal(["measure", "slow.py:make", "-i", "1,2", "--json"], tmp_path)
    assert status == 0
    assert json.loads(output)["command"] == "measure"
    assert re.search(r"[|/\\-] working, 0:0\d", told)
    assert left_on_screen(told) == ""


def test_it_is_gone_when_a_mistake_is_told(tmp_path: Path) -> None:
    pytest.importorskip("torch")
    (tmp_path / "slow.py").write_text(SLOW)
    status, output, told = on_a_terminal(["measure", "slow.py:absent", "-i", "1,2"], tmp_path)
    assert (status, output) == (2, "")
    assert "working" in told
    assert left_on_screen(told).startswith("finwidth: error: ")


def test_quick_commands_leave_none(tmp_path: Path) -> None:
    status, output, told = on_a_terminal(["moments", "2,3,1", "-i", "1,2"], tmp_path)
    assert (status, left_on_screen(told)) == (0, "")
    assert "E[K]" in output

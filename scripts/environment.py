"""What the scripts beside this one share: the environment .venv, made once for each state of pyproject.toml.

They need Python 3.11 or newer (`python3`, or what the variable PYTHON names) and a package index, no shell and nothing
else: where a file cannot be run by its name, as on Windows, it is `python scripts/test`.
"""

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PYTHON = os.environ.get("PYTHON", sys.executable)
ONE_THREAD = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}  # each of several processes
WORKERS = ("--numprocesses", os.environ.get("FINWIDTH_TEST_WORKERS") or "auto")  # of pytest


def check_python() -> None:
    """End with a word on it if Python is too old."""
    if subprocess.run([PYTHON, "-c", "import sys; sys.exit(sys.version_info < (3, 11))"]).returncode:
        sys.exit(f"finwidth needs Python 3.11 or newer, and {PYTHON} is older. Set PYTHON to a newer one.")


def program(name: str, environment: Path = ROOT / ".venv") -> str:
    """The path of a program of an environment."""
    return str(environment / ("Scripts" if os.name == "nt" else "bin") / name)


def make_environment(extras: str, group: str = "") -> None:
    """Make .venv, or have it hold these extras of finwidth and this group of pyproject.toml, unless it does."""
    check_python()
    wanted = (ROOT / "pyproject.toml").read_bytes()
    stamp = ROOT / ".venv" / "-".join(["stamp", *extras.split(","), *([group] if group else [])])
    if stamp.is_file() and stamp.read_bytes() == wanted:
        return
    print("finwidth: making .venv, which takes a minute or two, once", file=sys.stderr)
    if not Path(program("python")).exists():
        subprocess.run([PYTHON, "-m", "venv", str(ROOT / ".venv")], check=True)
    pip = [program("python"), "-m", "pip", "install", "--quiet"]
    of_group = ["--group", f"{ROOT / 'pyproject.toml'}:{group}"] if group else []
    subprocess.run([*pip, "--upgrade", "pip>=25.1"], check=True)
    subprocess.run([*pip, "--editable", f"{ROOT}[{extras}]", *of_group], check=True)
    stamp.write_bytes(wanted)


def run(*command: str, **variables: str) -> None:
    """Run a program in the folder of the project, and end as it does unless it succeeds."""
    try:
        status = subprocess.run(command, cwd=ROOT, env={**os.environ, **variables}).returncode
    except KeyboardInterrupt:
        status = 130  # the program got it too, and has said so
    if status:
        sys.exit(status if status > 0 else 128 - status)

"""Commands and configs by chance, valid ones and junk, and what must hold of each call; seeds fix them all."""

from __future__ import annotations

import contextlib
import functools
import io
import json
import os
import random
import re
import shutil
import signal
import socket
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from finwidth.cli.main import main
from finwidth.documents import schema

LONGEST = 20  # seconds of a call, of all its threads' work
TOO_LONG = -1  # the status of one that is stopped
_STUCK = 200  # seconds that pass on a busy machine while it works so long, or waits
NINES = 5000 * "9"
JUNK = (
    *("", " ", "x", "-", "--", "nan", "inf", "-1", "0", "1e400", "1e-400", "2.5", "1/0", "None", "true", "[1]", "\n"),
    *("\x1b[2J", "é\udcff", "'", '"', "a b " * 1300, NINES, "x" * 5000, ",", "1,,2", "/", ".", "..", "/dev/null"),
    *("digits:", "digits:-1", f"digits:{NINES}", "pipe.npy", "zero.npy", "folder.npy", "socket.npy", "absent.npy"),
    *("X.npy:make", "model.py", "model.py:", ":make", "broken.py:make", "%s", "{}", "$HOME", "*", "\\", "２"),
)
# Whole numbers of any kind, and so large that what they count fits no machine and no year: less would be honest work.
INTEGERS = ("1", "2", "0", "-1", "7", "1_0", "+3", "00", "0x10", "3.0", str(2**63), str(2**64), NINES)

MODULES = """
import os, subprocess, sys, warnings
import torch
from torch import nn

class Body(nn.Module):
    def __init__(self, n=3, o=2):
        super().__init__()
        self.first, self.last = nn.Linear(n, 4), nn.Linear(4, o)
    def forward(self, x):
        return self.last(torch.tanh(self.first(x)))

def kind(forward):
    return type(forward.__name__, (Body,), {"forward": forward})

class Own(Exception):
    def __str__(self):
        raise ValueError("no text")

class Base(BaseException):
    pass

@kind
def no_grad(m, x):
    with torch.no_grad():
        return Body.forward(m, x)

@kind
def detach(m, x):
    return Body.forward(m, x).detach()

@kind
def detach_within(m, x):
    return m.last(m.first(x).detach())

@kind
def one_only(m, x):
    if len(x) != 1:
        raise ValueError("one sample only " * 500)
    return Body.forward(m, x)

@kind
def own_exception(m, x):
    raise Own

@kind
def base_exception(m, x):
    raise Base("base")

@kind
def leaves(m, x):
    sys.exit(0)

@kind
def interrupts(m, x):
    raise KeyboardInterrupt

@kind
def recurses(m, x):
    return m(x)

@kind
def asserts(m, x):
    assert x.shape == (7, 7)

@kind
def prints(m, x):
    os.write(1, b"by number\\n")
    subprocess.run(["echo", "by a program"], check=True)
    print("by name")
    sys.__stdout__.write("by its other name")
    return Body.forward(m, x)

@kind
def warns(m, x):
    warnings.warn("a warning")
    return Body.forward(m, x)

@kind
def nothing(m, x):
    return None

@kind
def words(m, x):
    return "words"

@kind
def pair(m, x):
    return x, x

@kind
def empty(m, x):
    return Body.forward(m, x)[:, :0]

@kind
def number(m, x):
    return Body.forward(m, x).sum()

@kind
def infinite(m, x):
    return Body.forward(m, x) / 0

@kind
def undefined(m, x):
    return torch.sqrt(-Body.forward(m, x).square())

@kind
def integers(m, x):
    return Body.forward(m, x).long()

@kind
def complexes(m, x):
    return Body.forward(m, x).to(torch.complex64)

@kind
def transposed(m, x):
    return Body.forward(m, x).T

@kind
def mixes(m, x):
    return Body.forward(m, x - x.mean(0))

@kind
def draws(m, x):
    return Body.forward(m, x) * torch.rand(1)

@kind
def in_place(m, x):
    y = m.first(x)
    y += 1
    return m.last(y.relu_())

@kind
def changes_in_place(m, x):
    y = torch.exp(m.first(x))
    z = y.square()
    y += 1
    return m.last(z)

@kind
def counts(m, x):
    m.calls = getattr(m, "calls", 0) + 1
    return Body.forward(m, x) * m.calls

@kind
def numpy(m, x):
    return torch.as_tensor(Body.forward(m, x).detach().numpy())

@kind
def imports(m, x):
    from . import neighbour

def make():
    return nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 1))

def takes(argument):
    return make()

def raises():
    raise RuntimeError("first line\\nsecond line")

def parses():
    import argparse
    parser = argparse.ArgumentParser()
    parser.add_argument("needed")
    return parser.parse_args()

def base():
    raise Base

class Bare(nn.Module):
    def forward(self, x):
        return x

class Lazy(nn.Module):
    def __init__(self):
        super().__init__()
        self.first = nn.LazyLinear(2)
    def forward(self, x):
        return self.first(x)

class NoForward(nn.Module):
    pass

half = Body().half()
double = Body().double()
meta = Body().to("meta")
frozen = Body().requires_grad_(False)
dropout = nn.Sequential(nn.Linear(3, 2), nn.Dropout())
norm = nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2))
huge = nn.Linear(3, 2)
nn.init.constant_(huge.weight, 1e38)
poisoned = nn.Linear(3, 2)
nn.init.constant_(poisoned.weight, float("nan"))
scripted = torch.jit.script(nn.Linear(3, 2)) if False else nn.Linear(3, 2)
three, text, none = 3, "text", None
"""
NAMES = tuple(re.findall(r"^(?:def|class) (\w+)", MODULES, re.M))
NAMES += ("half", "double", "meta", "frozen", "dropout", "norm", "huge", "poisoned", "three", "text", "none", "absent")


def _headers() -> dict[str, bytes]:
    """Files that begin as .npy files do."""
    headers = {
        "deep": "{'descr': " + 300 * "(",
        "open": "{'descr': '''",
        "indented": "  \n {'descr':\n   x",
        "huge": "{'descr': '<f8', 'fortran_order': False, 'shape': (1000000000000000,), }",
        "vast": "{'descr': '<f8', 'fortran_order': False, 'shape': (" + 30 * "9" + ",), }",
        "long": "{'descr': '<f8', 'fortran_order': False, 'shape': (" + NINES + ",), }",
        "negative": "{'descr': '<f8', 'fortran_order': False, 'shape': (-3,), }",
        "code": "__import__('os').system('touch ran')",
        "keys": "{'descr': '<f8', 'shape': (3,), }",
        "kind": "{'descr': '<q9', 'fortran_order': False, 'shape': (3,), }",
    }
    magic = b"\x93NUMPY\x01\x00"
    return {name: magic + len(text).to_bytes(2, "little") + text.encode() + bytes(24) for name, text in headers.items()}


def make_files(folder: Path) -> list[str]:
    """Fill a folder with what commands read; the names of the .npy files in it."""
    rng = np.random.default_rng(0)
    X = rng.normal(size=(4, 3))
    arrays: dict[str, Any] = {
        "X": X, "x": X[0], "one": X[:1], "y": np.array([1.0, -1, 1, -1]), "scalar": np.array(3.0),
        "none": np.zeros((0, 3)), "empty": np.zeros(0), "fortran": np.asfortranarray(X), "big": X.astype(">f4"),
        "half": X.astype(np.float16), "long_double": np.array([np.longdouble("1e4000"), 1, 2]), "zeros": 0 * X,
        "complex": X + 1j, "bool": X > 0, "text": np.array(["a", "b", "c"]), "objects": np.array([{}, 1, None]),
        "unsigned": np.array([2**64 - 1, 1, 2], np.uint64), "bytes": np.array([[1, 2, 3]], np.uint8),
        "nan": np.array([np.nan, 1, 2]), "large": X * 1e300, "small": X * 1e-300, "words": np.array([[0, 1, 2]]),
        "dates": np.ones(3, "datetime64[s]"), "record": np.zeros(3, [("a", "f8")]), "cube": np.zeros((2, 2, 2)),
    }  # fmt: skip
    for name, array in arrays.items():
        np.save(folder / f"{name}.npy", array, allow_pickle=True)
    for name, content in _headers().items():
        (folder / f"{name}.npy").write_bytes(content)
    whole = (folder / "X.npy").read_bytes()
    (folder / "cut.npy").write_bytes(whole[:-9])
    (folder / "header.npy").write_bytes(whole[:20])
    (folder / "nothing.npy").write_bytes(b"")
    np.savez(folder / "several.npz", X)
    shutil.move(folder / "several.npz", folder / "several.npy")
    (folder / "model.py").write_text(MODULES)
    (folder / "broken.py").write_text("import torch, (")
    (folder / "null.py").write_bytes(b"\0")
    (folder / "latin.py").write_bytes(b"x = '\xe9'")
    (folder / "exits.py").write_text("raise SystemExit(0)")
    (folder / "grid.toml").write_text(GRID)
    os.mkfifo(folder / "pipe.npy")
    os.mkfifo(folder / "pipe.toml")
    (folder / "zero.npy").symlink_to("/dev/zero")
    (folder / "folder.npy").mkdir()
    with socket.socket(socket.AF_UNIX) as at, contextlib.chdir(folder):  # a path of a socket is short
        at.bind("socket.npy")
    return sorted(path.name for path in folder.glob("*.npy"))


GRID = """
seed = 1
quantities = ["exact", "sampled"]
[axes]
depth = [2, 4]
width = [8, 16]
n_0 = 4
law = "gaussian"
[sampled]
draws = 200
"""


RESIDUAL_GRID = """
quantities = ["exact", "sampled"]
[network]
kind = "resnet"
hidden = 3
[axes]
depth = [2, 4]
width = [8, 16]
n_0 = 4
branch = [0.5, "1/sqrt(depth)"]
[sampled]
draws = 200
"""


@dataclass(frozen=True)
class Called:
    """A call of the command line, and how it ended."""

    arguments: list[str]
    status: int
    output: str
    errors: str
    seconds: float

    def fault(self) -> str | None:
        """What is wrong with it; None if all that is promised holds."""
        if self.status == TOO_LONG:
            return f"works or waits on after {self.seconds:.0f} s"
        return self._fault_of_errors() or (self._fault_of_output() if self.status == 0 else None)

    def _fault_of_errors(self) -> str | None:
        """A mistake is told in one line, and nothing else is; but the modules that `measure` runs may print."""
        # Of work that takes long, and beside JSON.
        news = r"\d+ of \d+ cells.*|.*% done, .* left|(Wrote|Replaced) .*"
        lines = [line for line in self.errors.splitlines() if not re.fullmatch(news, line)]
        own = [line for line in lines if line.startswith("finwidth: ")]
        others = len(lines) - len(own) if self.arguments[0] != "measure" else 0
        right = {
            0: not own,
            2: len(own) == 1 and own[0].startswith("finwidth: error: ") and len(own[0]) < 1600,
            130: own == ["finwidth: interrupted"] and "interrupts" in " ".join(self.arguments),
        }
        good = right.get(self.status, False) and not others
        return None if good else f"status {self.status}, and on standard error: {self.errors[-2000:]}"

    def _fault_of_output(self) -> str | None:
        """NaN is no result, and --json gives JSON."""
        if re.search(r"(?<![a-z_])nan(?![a-z_])", self.output, re.I):
            return "NaN is printed: " + self.output[-2000:]
        if "--json" in self.arguments and "--help" not in self.arguments and not _is_json(self.output):
            return "no JSON: " + self.output[-2000:]
        if "--json" in self.arguments and "--help" not in self.arguments:
            return misshapen(json.loads(self.output))
        return None


@functools.cache
def validator() -> Any:
    """Of the schema of all documents; None where jsonschema is not installed."""
    try:
        from jsonschema import Draft202012Validator
    except ModuleNotFoundError:
        return None
    Draft202012Validator.check_schema(schema())
    return Draft202012Validator(schema())


def misshapen(document: object) -> str | None:
    """Where a document is not as the schema says; None where it is, or where jsonschema is not installed."""
    if validator() is None:
        return None
    from jsonschema.exceptions import best_match

    error = best_match(validator().iter_errors(document))
    return None if error is None else f"not of the schema: {error.json_path}: {error.message[-2000:]}"


def _is_json(text: str) -> bool:
    try:
        json.loads(text, parse_constant=lambda name: json.loads("not JSON"))
    except ValueError:
        return False
    return True


class TooLongError(BaseException):
    """A call is stopped."""


def call(arguments: list[str]) -> Called:
    """Run the command line in this process; a traceback is an exception of this function."""
    output, errors = io.StringIO(), io.StringIO()
    start = time.process_time()

    def too_long(*_: Any) -> None:
        raise TooLongError

    before = {number: signal.signal(number, too_long) for number in (signal.SIGALRM, signal.SIGPROF)}
    argv, sys.argv = sys.argv, ["finwidth", *arguments]
    signal.alarm(_STUCK)
    signal.setitimer(signal.ITIMER_PROF, LONGEST)
    try:
        with contextlib.redirect_stdout(output), contextlib.redirect_stderr(errors), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            warnings.simplefilter("error", RuntimeWarning)
            main()
    except SystemExit as done:
        status = int(done.code or 0)
    except TooLongError:
        status = TOO_LONG
    finally:
        signal.alarm(0)
        signal.setitimer(signal.ITIMER_PROF, 0)
        for number, handler in before.items():
            signal.signal(number, handler)
        sys.argv = argv
    return Called(arguments, status, output.getvalue(), errors.getvalue(), time.process_time() - start)


Make = Callable[[random.Random], str]


def among(*values: str, odd: tuple[str, ...] = ()) -> Make:
    """One of a few values; now and then one that is refused, or that is at the edge."""
    return lambda rng: rng.choice(odd if odd and rng.random() < 0.1 else values)


WIDTHS = among(
    "3,4,1", "3,1", "3,8x4,1", "3,2x9,1", "3,1,1", "3,16,16,1", odd=("3,5,2", "1,1", "64,4,1", "3,4x0,1", "3,-1,1", "3")
)  # fmt: skip
INPUT = among(
    "1,2,3", "1/3,0.5,-2", "x.npy", "-1,1,0", "ones", "unit", "random:3",
    odd=(
        "0,0,0", "1e100,1,1", "1e154,0,0", "1e-162,0,0", "1e300,0,0", "1", "digits:17", "1,nan,2", "random:", "onest",
        "random:1" + 30 * "0",
    ),
)  # fmt: skip
LAW = among("gaussian", "uniform", "laplace", "smoothed-rademacher", "truncated-normal", odd=("cauchy",))
PHI = among(
    "relu", "leaky_relu", "linear", "abs", "1,0.2", "1,-1/3",
    odd=("tanh", "erf", "gelu", "silu", "sigmoid", "1,2,3", "0,0", "1,nan", ","),
)  # fmt: skip
DRAWS = among("2", "100", "500", "2000", odd=("1", "0"))
SEED = among("0", "1", "7", "123", odd=(str(2**31), str(2**63), str(2**64), "-1", 300 * "9"))
NUMBER = among("0.1", "1", "0.3", "0.01", odd=("0", "-1", "1e-9", "1e9", "nan", "inf", "1e400"))
FLAG: Make = lambda rng: ""  # noqa: E731 - takes no value
RESIDUAL: dict[str, Make] = {
    "--hidden": among("2", "5", "2,3", "4x2", odd=("0", "2,x", "1x10000000", "9x99999999999")),
    "--skip": among("1", "0.5", "sqrt(1/2)", "1,0", odd=("-1", "nan", "x", "1e200")),
    "--branch": among("1", "0.5", "1/sqrt(depth)", "sqrt(3/4)", "0,1", odd=("0", "sqrt(3)4", "inf", "1/3x2", "")),
    "--balanced": FLAG,
    "--no-signs": FLAG,
}
NETWORK: dict[str, Make] = {
    "--activation": PHI, "--parameterization": among("ntk", "standard", "mup", odd=("mean-field",)), "--law": LAW,
    "--bias": among("trained", "frozen", "none", "trained,none", "trainedx3,none", odd=("some", "nonex0", "x")),
    "--gains": among("1", "2", "1/3", "2,1", "2x3,1", odd=("0", "-1", "1e400", "x", "2,,1", "1/0", "9x9999999999999")),
    "--bias-variance": among("0", "0.1", "0,0.5", odd=("-1", "nan", "x")), "--bias-law": LAW,
    "--bias-scale": among("1", "0.5", "0", "1,2", odd=("-1", "1e300", "x")),
    "--base-widths": among("8", "3,8,1", odd=("0", "8,8", "x", "8.5")),
    "--pytorch": among("default", "kaiming_normal,zeros", "default,none", odd=("xavier", "default,", ",", "a,b,c")),
    "--neural-tangents": among("1.5", "1.5,0.1", odd=("0", "x", "1,2,3", "1,-1", "nan,1")),
    "--norm": among("rms", "layer", "rms,after", "layer,trained,1e-5", odd=("batch", "rms,x", "rms,-1", "", "none")),
    "--blocks": among("1", "2", "5", odd=("0", "-1", "100000000", "x")), **RESIDUAL,
}  # fmt: skip
RARE = {*NETWORK} - {"--activation", "--parameterization", "--law", "--bias"}  # of which most do not go together
ONE: dict[str, Make] = {**NETWORK, "--json": FLAG, "-i": INPUT}
DRAWN: dict[str, Make] = {"--draws": DRAWS, "--seed": SEED}
COMMANDS: dict[str, tuple[int, tuple[Make, ...], dict[str, Make]]] = {  # weight, arguments, options
    "moments": (6, (WIDTHS,), {**ONE, "--exact": FLAG, "--order": among("2", "3", "4", odd=("5",))}),
    "sample": (6, (WIDTHS,), {**ONE, **DRAWN, "--tilted": FLAG, "-o": among("draws.nc", odd=("absent/x.nc", "."))}),
    "train": (5, (WIDTHS,), {
        **NETWORK, "--json": FLAG, "--record": among("1", "log", "0,2", odd=("0", "x", "9,9", "1" + 30 * "0")),
        "-i": among("X.npy", odd=("digits:0-3", "one.npy", "large.npy", "zeros.npy", "small.npy")),
        "-t": among("1,-1,1,-1", "y.npy", "0,1,0,1", odd=("0,0,0,0", "1", "1e200,1,1,1")), "--lr": NUMBER,
        "--steps": among("1", "3", odd=("0",)), "--draws": among("1", "2"), "--seed": SEED,
        "--batch": among("1", "2", odd=("9",)), "--momentum": among("0", "0.9", odd=("1", "nan", "-1")),
        "--loss": among("squared", "cross-entropy"), "--memory": among("1GiB", odd=("1kB", "x")),
        "-o": among("run.nc", odd=("absent/x.nc", ".")), "--centred": FLAG,
    }),
    "expansion": (3, (WIDTHS,), {
        **NETWORK, "-i": among("X.npy", "1,2,3", "ones", "random:2", odd=("large.npy", "zeros.npy", "random:x")),
        "--input": INPUT, "--points": among("8", "100", odd=("0", "x")), "--seed": SEED, "--json": FLAG,
        "-o": among("wide.nc", odd=("absent/x.nc", ".")),
    }),
    "critical": (1, (among("relu", "tanh", "gelu", "1,0.2", odd=("0,0", "nothing", "1,2,3")),), {"--json": FLAG}),
    "report": (1, (WIDTHS,), {**ONE, **DRAWN, "-o": among("report", odd=("X.npy",))}),
    "compare": (3, (WIDTHS,), {**ONE, **DRAWN, "--networks": among("1", "20", odd=("0",))}),
    "measure": (8, (lambda rng: "model.py:" + rng.choice(NAMES),), {
        "-i": among("X.npy", "x.npy", "one.npy", "1,2,3", odd=("words.npy", "zeros.npy", "large.npy", "bytes.npy")),
        "--outputs": among("trace", "full", "0", "1", odd=("5", "diagonal")), "--seed": SEED, "--json": FLAG,
        "--init": among("default", "kaiming_normal", odd=("magic",)),
    }),
    "width-for": (1, (among("1", "2", "5", odd=("0", "64")),), {
        **NETWORK, "--cv": among("0.3", "1", odd=("0", "nan")), "--input-norm": NUMBER, "--target": NUMBER,
        "--lr": NUMBER, "--json": FLAG, "--seed": SEED,
    }),
    "depth-for": (1, (among("1", "8", "100", odd=("0", "1" + 30 * "0")),), {
        **NETWORK, "--cv": among("0.3", "1", odd=("0", "nan")), "--input-norm": NUMBER, "--json": FLAG,
    }),
    "gram": (3, (WIDTHS,), {
        **NETWORK, "-i": among("X.npy", "1,2,3", "ones", "random:2", odd=("digits:0-3", "large.npy", "random:x")),
        "--inputs": INPUT, "--targets": among("1", "1,-1", "y.npy", odd=("x", "nan")),
        "--draws": among("2", "50", odd=("0",)), "--seed": SEED, "--json": FLAG,
        "-o": among("g.nc", odd=("absent/x", ".")),
    }),
    "regime": (2, (WIDTHS,), {
        **ONE, "--draws": among("2", "50", odd=("0", "1")), "--seed": SEED, "--lr": NUMBER,
        "--target": among("1", "0", "1,-1", odd=("nan", "x", "1e300")),
    }),
    "explore": (1, (lambda _: "-o", among("page.html", odd=("absent/x.html", ".", "X.npy"))), {}),  # opens no browser
    "paper": (1, (among("lemma-9", "lemma-7", "figure-1", odd=("lemma-99",)),), {
        "--json": FLAG, "-o": among("page.html", odd=("absent/x.html", ".")), "--markdown": among("page.md"),
    }),
    "sweep": (1, (among("grid.toml", odd=("absent.toml", "pipe.toml", "model.py", "X.npy", "folder.npy")),), {
        "-o": among("grid.zarr", "other.zarr", odd=("X.npy",)), "--workers": among("1", "2", odd=("0",)),
        "--json": FLAG, "-q": FLAG,
    }),
    "sweep status": (1, (among("grid.zarr", odd=("absent.zarr", "X.npy", "folder.npy")),), {"--json": FLAG}),
    "sweep check": (1, (among("grid.zarr", "K.zarr", odd=("absent.zarr", "X.npy", "folder.npy")),), {"--json": FLAG}),
    "schema": (1, (), {}),
    "sweep collect": (1, (among("grid.zarr", odd=("absent.zarr",)),), {
        "-o": among("grid.nc", odd=("absent/x.nc", ".")), "--json": FLAG,
    }),
    "sweep merge": (1, (among("grid.zarr", odd=("absent.zarr",)), among("grid.zarr", "other.zarr")), {
        "-o": among("merged.zarr", odd=("X.npy",)), "--json": FLAG,
    }),
    "sweep plot": (1, (among("grid.zarr", odd=("absent.zarr",)), among("phase", "collapse", "update", odd=("cake",))), {
        "-o": among("plot.png", odd=("plot.txt", "absent/x.png")), "--source": among("exact", "sampled", odd=("both",)),
        "--at": among("law=gaussian", odd=("law", "depth=2", "=", "depth=x")), "--json": FLAG,
    }),
}  # fmt: skip
NEEDED = {"-i", "-t", "-o"}  # mostly there


def command(rng: random.Random, arrays: list[str]) -> list[str]:
    """A command line: mostly right, with one or two places of junk."""
    name = rng.choices(list(COMMANDS), [weight for weight, _, _ in COMMANDS.values()])[0]
    _, places, options = COMMANDS[name]
    found = [*name.split(), *(_value(rng, place, arrays) for place in places)]
    for option, value in options.items():
        often = 0.9 if option in NEEDED and name not in {"sample", "paper", "report", "gram"} else 0.25
        often = {"-i": 0.9, "--blocks": 0.2}.get(option, 0.03 if option in RARE else often)
        if rng.random() < (0.5 if option in RESIDUAL and "--blocks" in found else often):
            found += [option] if value is FLAG else [option, _value(rng, value, arrays)]
    if rng.random() < 0.04:
        found.insert(rng.randrange(len(found) + 1), rng.choice((*JUNK, "--help", "--version", "--nonsense")))
    if rng.random() < 0.02:
        del found[rng.randrange(len(found))]
    return found or [""]


def _value(rng: random.Random, value: Make, arrays: list[str]) -> str:
    """Valid or not: mostly what the option takes, else an array, a number, or junk."""
    chance = rng.random()
    if chance < 0.94:
        return value(rng)
    return rng.choice(JUNK if chance < 0.96 else arrays if chance < 0.98 else INTEGERS)


VALUES = (
    *("0", "-1", "1", "2", "3.5", "1e400", "nan", "inf", "true", '""', '"x"', '"ones"', "[]", "[1]", "[[1]]", "{}"),
    *("[2, 2]", "[3, 1]", "{from = 1, to = 3}", "{from = 3, to = 1}", "{from = 1, to = 9, factor = 1}", '"X.npy"'),
    *('"pipe.npy"', '"\\u0000.npy"', '"' + 5000 * "x" + '"', "9" * 300, "1979-05-27", '["exact", "sampled"]', '"relu"'),
    *(
        '["gaussian", "uniform"]',
        '"digits:3"',
        '"random:1"',
        '"tanh"',
        "4",
        "[4, 8]",
        '"resnet"',
        '"balanced"',
        '"mlp"',
        '"sqrt(1/2)"',
        '"rms"',
        '"bounds"',
        '"gram"',
        "'",
    ),
)
KEYS = (
    *("seed", "quantities", "axes.depth", "axes.width", "axes.ratio", "axes.n_0", "axes.law", "axes.input", "x"),
    *("axes.activation", "axes.parameterization", "network.bias", "network.gains", "network.bias_variance", "axes"),
    *("sampled.draws", "sampled.target", "sampled", "exact", "gram.draws", "gram.inputs", "training.steps", "network"),
    *("network.kind", "network.hidden", "network.branch", "network.norm", "axes.branch", "axes.skip", "axes.norm"),
)


def config(rng: random.Random) -> str:
    """A config with a few changes: of a line, of a value, or of some characters."""
    lines = rng.choice((GRID, RESIDUAL_GRID)).strip().splitlines()
    for _ in range(rng.randint(1, 3)):
        place = rng.randrange(len(lines))
        match rng.randrange(6):
            case 0:
                del lines[place]
                lines = lines or ["seed = 1"]
            case 1:
                lines.insert(place, rng.choice(lines))
            case 2 | 3:
                lines[place] = f"{lines[place].partition('=')[0].strip()} = {rng.choice(VALUES)}"
            case 4:
                lines.insert(0, f"{rng.choice(KEYS)} = {rng.choice(VALUES)}")
            case 5:
                text = list(lines[place]) or [""]
                text[rng.randrange(len(text))] = rng.choice(("", "=", "[", "]", '"', "\\", "9", ".", "\x00", "é", "#"))
                lines[place] = "".join(text)
    return "\n".join(lines)


@contextlib.contextmanager
def within_memory(size: int) -> Iterator[None]:
    """No more than so many bytes of addresses beside those that the process has."""
    import resource

    now = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    before = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (now + size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, before)

"""Calls, and what came of them: right or refused in one FinwidthError; all else is a fault."""

from __future__ import annotations

import contextlib
import dataclasses
import inspect
import math
import os
import random
import re
import signal
import sys
import tempfile
import time
import traceback
import types
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import xarray as xr

from finwidth import FinwidthError
from finwidth.observables import OBSERVABLES
from fuzz.surface import public
from fuzz.values import junk, kind, valid

SECONDS = 20  # of a call, of all its threads' work
STUCK = 200  # seconds that pass on a busy machine while it works so long, or waits
TOLD = ("at width ", "tracking stops", "share=")  # warnings that the docs promise
# Observables that do not grow like the kernel have no value where it is 0.
RATIOS = OBSERVABLES.keys() - {"trace", "eigenvalues", "diagonal", "K", "initial_K", "cv"}
# What has no value is NaN, by the docs: of dead networks, of means that draws do not tell, of losses not given.
NAN = {
    "finwidth.regime": {"movement", "movement_error", "median"},
    "finwidth.train": RATIOS,
    "finwidth.sampling.training.train.mean_trajectory": {"mean", "se"},
    "finwidth.empirical.Tracker": {"loss", *RATIOS},
    "finwidth.empirical.Ensemble": {"cv", *RATIOS},
    "finwidth.empirical.combine": {"loss", "alignment", "centred_alignment"},
    "finwidth.observables.observe": RATIOS,
    **{f"finwidth.observables.{name}": {""} for name in ("effective_rank", "drift", "rotation", "spread")},
    "finwidth.sweep": {"*"},
}
FEWER = {  # of what takes seconds and has next to no arguments
    "finwidth.exact.closed_form.formulas": 1,
    "finwidth.paper.check_all": 4,
    "finwidth.paper.findings": 1,
    "finwidth.paper.page.write_page": 40,
    "finwidth.report.write": 40,
}
ELEMENTWISE = {"forward", "value", "derivative", "second_derivative"}  # of arrays that the package makes, unchecked


class TooLongError(BaseException):
    """A call that works for more than SECONDS, or waits for STUCK."""


@dataclasses.dataclass(frozen=True)
class Fault:
    """A call that was neither right nor refused."""

    target: str
    seed: int
    what: str
    given: str

    def __str__(self) -> str:
        return f"{self.target} (call {self.seed}): {self.what}\n    given {self.given}"


def arguments(r: random.Random, target: str, function: Callable[..., Any], share: float) -> dict[str, Any]:
    """A value for every parameter that must have one, and for some of the others; a share of them is junk."""
    given: dict[str, Any] = {}
    for name, each in _parameters(function):
        if each.kind is each.VAR_KEYWORD:
            given |= _further(r, target, name, share)
        elif each.default is each.empty or r.random() < 0.4:
            given[name] = junk(r, name) if r.random() < share else valid(r, target, name)
    return given


def _further(r: random.Random, target: str, name: str, share: float) -> dict[str, Any]:
    if name == "network":
        found = kind(r) | ({"branch": "1/sqrt(depth)"} if r.random() < 0.2 else {})
        return {key: junk(r, key) if r.random() < share else value for key, value in found.items()}
    return {"scale": junk(r, "scale")} if name in {"ntk_options", "options"} and r.random() < share else {}


def _parameters(function: Callable[..., Any]) -> list[tuple[str, inspect.Parameter]]:
    return list(inspect.signature(function).parameters.items())


@contextlib.contextmanager
def limited() -> Iterator[None]:
    """In a folder of its own, warnings as errors, with no more than SECONDS of work."""

    def stop(*_: Any) -> None:
        raise TooLongError

    before = {number: signal.signal(number, stop) for number in (signal.SIGALRM, signal.SIGPROF)}
    here = Path.cwd()
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("error")
        for text in TOLD:
            warnings.filterwarnings("ignore", message=text)
        os.chdir(folder)
        signal.alarm(STUCK)
        signal.setitimer(signal.ITIMER_PROF, SECONDS)
        try:
            yield
        finally:
            signal.alarm(0)
            signal.setitimer(signal.ITIMER_PROF, 0)
            for number, handler in before.items():
                signal.signal(number, handler)
            os.chdir(here)


class Tally:
    """Calls made, by what came of them, and the faults."""

    def __init__(self) -> None:
        self.outcomes: Counter[str] = Counter()
        self.faults: list[Fault] = []

    def calls(self, target: str, function: Callable[..., Any], number: int, share: float) -> None:
        """So many calls of a function, and of the methods of what it returns."""
        for seed in range(number):
            r = random.Random(f"{target} {seed} {share}")
            torch.manual_seed(seed)
            with limited():
                given = self._made(r, target, function, share)
                result = self._call(target, seed, given, partial(function, **given))
                if result is not None:
                    self._methods(r, target, seed, result, share)

    def different(self) -> list[Fault]:
        """The faults, of those that are alike the first."""
        return list({(fault.target, fault.what[:60]): fault for fault in reversed(self.faults)}.values())

    def _made(self, r: random.Random, target: str, function: Callable[..., Any], share: float) -> dict[str, Any]:
        while True:
            try:
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore")
                    return arguments(r, target, function, r.choice([share, share / 2, min(1.0, 1.5 * share)]))
            except FinwidthError:  # of a valid kind, but not possible together
                continue

    def _call(self, target: str, seed: int, given: dict[str, Any], call: Callable[[], Any]) -> Any:
        try:
            result = call()
            if isinstance(result, types.GeneratorType):
                result = list(result)
            of_table = {"*"} if target.endswith((".to_xarray", ".to_pandas")) else set()  # cells that are empty
            unknown = next(_nan(result, NAN.get(_base(target), set()) | of_table), None)
        except FinwidthError as error:
            if len(str(error)) > 2000 or "\n" in str(error).strip():
                self._fault(target, seed, f"a message of {len(str(error))} characters: {str(error)[:300]}", given)
            self.outcomes["FinwidthError"] += 1
            return None
        except TooLongError:
            self._fault(target, seed, "too long", given)
            return None
        except Exception as error:
            if any(frame.name == "_raises" for frame in traceback.extract_tb(error.__traceback__)):
                self.outcomes["the user's own exception"] += 1  # of a callback, which passes through
            else:
                place = _place(error)
                self._fault(target, seed, f"{type(error).__name__} at {place}: {str(error)[:200]}", given)
            return None
        if unknown is not None:
            self._fault(target, seed, f"NaN in {unknown or 'the result'}", given)
        self.outcomes["right"] += 1
        return result

    def _fault(self, target: str, seed: int, what: str, given: dict[str, Any]) -> None:
        self.outcomes[what.split(" at ", maxsplit=1)[0].split(" in ", maxsplit=1)[0].split(" of ", maxsplit=1)[0]] += 1
        self.faults.append(Fault(target, seed, what, _told(given)))

    def _methods(self, r: random.Random, target: str, seed: int, result: Any, share: float) -> None:
        for name in _own_names(result):
            method = f"{target}().{name}"
            each = self._call(method, seed, {}, partial(getattr, result, name))
            if inspect.ismethod(each):
                given = self._made(r, target.split("()", maxsplit=1)[0] + "." + name, each, share)
                self._call(method, seed, given, partial(each, **given))
        for each in _parts(result):
            self._methods(r, f"{target}", seed, each, share)


def _place(error: BaseException) -> str:
    """The last line of the package that it came through."""
    frames = [
        each for each in traceback.extract_tb(error.__traceback__) if f"{os.sep}finwidth{os.sep}" in each.filename
    ]
    return f"{Path(frames[-1].filename).name}:{frames[-1].lineno}" if frames else "no line of the package"


def _base(target: str) -> str:
    return target.split("()", maxsplit=1)[0]


def _own_names(result: Any) -> list[str]:
    """Public attributes and methods that the package defines for this object."""
    own = [each for each in type(result).__mro__ if each.__module__.startswith("finwidth")]
    return sorted({name for each in own for name in vars(each) if not name.startswith("_")} - ELEMENTWISE)


def _parts(result: Any) -> list[Any]:
    """Results within a result."""
    if isinstance(result, dict):
        return list(result.values())[:3]
    if isinstance(result, list | tuple):
        return list(result[:3])
    return []


def _nan(result: Any, allowed: set[str], name: str = "") -> Iterator[str]:
    """Names of what is NaN."""
    if "*" in allowed or (name in allowed and name):
        return
    if isinstance(result, dict):
        for key, each in result.items():
            yield from _nan(each, allowed, str(key))
    elif isinstance(result, list | tuple):
        for each in result:
            yield from _nan(each, allowed, name)
    elif isinstance(result, xr.Dataset):
        for key, each in result.variables.items():
            yield from _nan(each.to_numpy(), allowed, str(key))
    elif dataclasses.is_dataclass(result):
        for field in dataclasses.fields(result):
            yield from _nan(getattr(result, field.name, None), allowed, field.name)
    elif isinstance(result, torch.Tensor):
        if type(result) is torch.Tensor and not result.is_nested and "" not in allowed and torch.isnan(result).any():
            yield name
    elif _is_nan(result) and "" not in allowed:
        yield name


def _is_nan(value: Any) -> bool:
    if isinstance(value, xr.DataArray):
        value = value.to_numpy()
    if isinstance(value, np.ndarray):
        return value.dtype.kind == "f" and bool(np.isnan(value).any())
    return isinstance(value, float) and math.isnan(value)


def _told(given: dict[str, Any]) -> str:
    parts = []
    for name, value in given.items():
        try:
            text = " ".join(repr(value).split())
        except Exception as error:  # of junk
            text = f"a {type(value).__name__} whose repr raises {type(error).__name__}"
        parts.append(f"{name}={text[:150]}")
    return ", ".join(parts)


def fuzz(target: str, number: int) -> Tally:
    """So many calls with mostly junk, and as many with mostly what is allowed."""
    tally = Tally()
    for share in (0.5, 0.03):
        tally.calls(target, public()[target], min(number, FEWER.get(target, number)), share)
    return tally


def main(pattern: str, number: int) -> None:
    """Fuzz all whose names match the pattern, and print what came of it."""
    outcomes: Counter[str] = Counter()
    for target in public():
        if re.search(pattern, target):
            began, tally = time.perf_counter(), fuzz(target, number)
            outcomes += tally.outcomes
            print(f"{target}: {time.perf_counter() - began:.1f} s", *tally.different(), sep="\n", flush=True)
    print(sum(outcomes.values()), dict(outcomes.most_common()))


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))

"""The command line and configs by chance: no traceback, no hang, no NaN, and one line where something is wrong."""

from __future__ import annotations

import random
from collections import Counter
from pathlib import Path

import pytest

import fuzzing

torch = pytest.importorskip("torch", reason="measures modules")
pytest.importorskip("zarr", reason="runs sweeps")
pytest.importorskip("sklearn", reason="reads digits")


@pytest.fixture
def arrays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of the .npy files in the folder that this makes and goes to."""
    torch.set_num_threads(1)
    names = fuzzing.make_files(tmp_path)
    monkeypatch.chdir(tmp_path)
    fuzzing.call(["sweep", "grid.toml", "--quiet"])
    return names


def commands(seed: int, calls: int, arrays: list[str]) -> Counter[int]:
    """How often which status came out."""
    rng = random.Random(seed)
    found: Counter[int] = Counter()
    with fuzzing.within_memory(4 * 2**30):
        for number in range(calls):
            arguments = fuzzing.command(rng, arrays)
            called = fuzzing.call(arguments)
            assert called.fault() is None, (seed, number, arguments, called.fault())
            found[called.status] += 1
    return found


def configs(seed: int, mutants: int, folder: Path) -> Counter[int]:
    """How often which status came out; each is asked for, collected and run again."""
    rng = random.Random(seed)
    found: Counter[int] = Counter()
    for number in range(mutants):
        text, name = fuzzing.config(rng), f"mutant{number}"
        (folder / f"{name}.toml").write_text(text)
        first = ["sweep", f"{name}.toml", "--workers", "1"]
        more = (["sweep", "status", f"{name}.zarr"], ["sweep", "collect", f"{name}.zarr", "-o", f"{name}.nc"], first)
        run, *later = map(fuzzing.call, (first, *more))
        for called in (run, *later):
            assert called.fault() is None, (seed, number, text, called.arguments, called.fault())
            assert (called.status == 0) == (run.status == 0), (text, called.errors)
        assert (folder / f"{name}.zarr").exists() == (run.status == 0), text
        found[run.status] += 1
    return found


def test_a_hundred_commands(arrays: list[str]) -> None:
    found = commands(0, 100, arrays)
    assert found[0] > 10
    assert found[2] > 40


def test_some_configs(arrays: list[str], tmp_path: Path) -> None:
    assert configs(0, 10, tmp_path)[2] > 3


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(1, 21))
def test_two_thousand_commands(seed: int, arrays: list[str]) -> None:
    print(seed, dict(commands(seed, 100, arrays)))


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(1, 6))
def test_five_hundred_configs(seed: int, arrays: list[str], tmp_path: Path) -> None:
    print(seed, dict(configs(seed, 100, tmp_path)))

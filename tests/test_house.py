"""What benchmarks/house.py counts, on packages where the right answer is plain; its places and the recipes' exist."""

from __future__ import annotations

import importlib
import re
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[1]
CODE = {
    "one": "from typing import Any\nfrom pkg import two\n\ndef same(x: Any) -> Any: ...  # Any\n\nclass Alone: 'Any'\n",
    "two": "def same() -> None:\n    from pkg.one import same\n\n\nused = 1\n",
    "three": "from pkg import two as other\nprint(other.used)\n",
}


@pytest.fixture
def house(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    return importlib.import_module("house")


@pytest.fixture
def sources(house: Any, tmp_path: Path) -> Any:
    (tmp_path / "pkg").mkdir()
    for name, code in CODE.items():
        (tmp_path / "pkg" / f"{name}.py").write_text(code)
    return [house.Source(tmp_path / "pkg" / f"{name}.py", tmp_path) for name in CODE]


def test_names_and_imports(house: Any, sources: Any) -> None:
    assert house.defined_twice(sources) == {"same": ["pkg.one", "pkg.two"]}
    assert house.any_in_code(sources) == 2  # neither the import, nor the comment, nor the string
    cycles, chain = house.cycles_and_longest_chain(sources)
    assert cycles == [["pkg.one", "pkg.two"]]  # the import in a function counts
    assert chain == ["pkg.three", "pkg.one and pkg.two"]
    found = house.unshared(sources, [])
    assert found["nobody"] == ["pkg.one.Alone", "pkg.two.same"]


def test_imports_for_types_make_no_cycle(house: Any, tmp_path: Path) -> None:
    (tmp_path / "a.py").write_text("from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import b\n")
    (tmp_path / "b.py").write_text("import a\n")
    assert house.cycles_and_longest_chain([house.Source(tmp_path / f"{n}.py", tmp_path) for n in "ab"])[0] == []


def test_depth_counts_functions_of_the_package(house: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(house, "PACKAGE", Path(__file__))

    def one() -> int:
        return two() + sum(two() for _ in range(2))  # a generator expression is no function of its own

    def two() -> int:
        return len(re.findall("a", "banana"))  # nor are functions of other libraries

    found = house.measured(one)
    assert (found["deepest"], found["functions"], found["files"]) == (2, 2, 1)
    assert sys.getprofile() is None


# What takes long when every function is watched.
LONG = ("moments(order=4)", "expansion", "regime", "width_for", "depth_for", "bounds", "compare", "sweep", "report")


def assert_shallow(house: Any, calls: dict[str, Any]) -> None:
    assert calls
    found = {name: house.measured(call)["stack"] for name, call in calls.items()}
    deep = {name: stack for name, stack in found.items() if len(stack) > house.DEEPEST}
    assert deep == {}


def test_functions_are_not_deep(house: Any) -> None:
    """Of networks of all kinds; the other calls are in the long tier."""
    assert_shallow(house, {name: call for name, call in house._of_kinds().items() if not name.startswith(LONG)})


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:at width 8 the spread is at most 2.0 at every depth")
def test_no_function_is_deep(house: Any) -> None:
    calls = house._plain() | house._of_kinds() | house._of_sizes() | house._with_torch()
    assert_shallow(house, {name: call for name, call in calls.items() if not name.startswith("compare")})


def test_depth_is_seen(house: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(house, "DEEPEST", 3)
    with pytest.raises(AssertionError, match=r"moments\.py:moments"):
        assert_shallow(house, {"moments": house._plain()["moments"]})


def test_places_exist(house: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    house.check_places()
    for wrong in ("src/finwidth/networks/laws.py:LAWZ", "src/finwidth/networks/lawz.py:LAWS"):
        monkeypatch.setitem(house.NEW, "wrong", (wrong,))
        with pytest.raises(SystemExit, match="does not exist"):
            house.check_places()


def test_files_of_the_recipes_exist() -> None:
    text = (ROOT / "CONTRIBUTING.md").read_text()
    files = set(re.findall(r"`((?:src|tests|benchmarks)/[\w./]+\.py)`", text))
    assert len(files) > 15
    assert [file for file in files if not (ROOT / file).exists()] == []


def test_the_map_names_every_module() -> None:
    """docs/architecture.md says where everything is; a file's name is enough."""
    told = (ROOT / "docs/architecture.md").read_text()
    modules = {path.name for path in (ROOT / "src/finwidth").rglob("*.py")} - {"__init__.py"}
    assert sorted(name for name in modules if f"`{name}`" not in told and f"/{name}`" not in told) == []


def test_the_tests_that_promises_name_exist() -> None:
    """Of docs/reliability.md: after the name of a file those of tests in it."""
    missing, file = [], ""
    for name in re.findall(r"`(tests/[\w/]+\.py|test_\w+)`", (ROOT / "docs" / "reliability.md").read_text()):
        if name.startswith("tests/"):
            file = (ROOT / name).read_text()
        elif f"def {name}(" not in file:
            missing.append(name)
    assert not missing

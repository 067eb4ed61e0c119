"""Examples in docstrings are skipped where what they need is not installed, as tests are."""

from importlib.util import find_spec

import pytest

NEEDS = {"torch": "torch", "finwidth.empirical": "torch", "DeviceGenerator": "torch", "finwidth.sweep(": "zarr"}
MISSING = {words: package for words, package in NEEDS.items() if find_spec(package) is None}


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Called by pytest when it has found the tests."""
    for item in items:
        if isinstance(item, pytest.DoctestItem):
            code = "".join(example.source for example in item.dtest.examples)
            for words, package in MISSING.items():
                if words in code:
                    item.add_marker(pytest.mark.skip(reason=f"needs {package}"))

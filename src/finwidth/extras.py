"""Optional libraries: each is asked for before the work that needs it, and its absence is told with the pip command."""

from __future__ import annotations

from importlib import import_module
from types import ModuleType

from finwidth.errors import FinwidthError

EXTRAS = {  # by module: the library's name, and the extra of finwidth that installs it
    "distributed": ("Dask", "dask"),
    "filelock": ("filelock", "sweep"),
    "jinja2": ("Jinja2", "paper"),
    "sklearn.datasets": ("scikit-learn", "digits"),
    "torch": ("PyTorch", "torch"),
    "zarr": ("Zarr", "sweep"),
}


def load_extra(module: str, what: str) -> ModuleType:
    """One of `EXTRAS`, imported.

    Raises
    ------
    FinwidthError
        If it is not installed; the message says ``what`` needs it, and what to type.

    Examples
    --------
    >>> import sys
    >>> from finwidth.extras import load_extra
    >>> sys.modules["jinja2"] = None  # as if it were not installed
    >>> load_extra("jinja2", "the HTML page")
    Traceback (most recent call last):
    finwidth.errors.FinwidthError: the HTML page needs Jinja2, which is not installed; pip install 'finwidth[paper]'
    >>> del sys.modules["jinja2"]
    """
    name, extra = EXTRAS[module]
    return load_library(module, what, name, f"'finwidth[{extra}]'")


def load_library(module: str, what: str, name: str, package: str) -> ModuleType:
    """A module of a library, imported; where it is not installed, the message says so by its name, and its package."""
    try:
        return import_module(module)
    except ModuleNotFoundError as error:
        if error.name is None or error.name.partition(".")[0] != module.partition(".")[0]:
            raise  # it is installed, and something that it needs is not
        raise FinwidthError(f"{what} needs {name}, which is not installed; pip install {package}") from None

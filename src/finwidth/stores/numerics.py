"""The libraries and processor features that the bits of matrix products depend on, beside versions.

A BLAS chooses its kernels by the processor, and each adds in an order of its own (docs/processors.md).  OpenBLAS, which
NumPy's wheels carry, says which kernels and how many threads; of another BLAS its name and the processor's features are
known.
"""

from __future__ import annotations

import ctypes
from collections.abc import Mapping
from typing import TypeAlias

import numpy as np

Facts: TypeAlias = Mapping[str, str | int | float | bool | None]

# NumPy's wheels give the functions of their OpenBLAS a prefix, and 64-bit builds a suffix.
_NAMES = [f"{prefix}openblas_get_{{}}{suffix}" for prefix in ("scipy_", "") for suffix in ("64_", "")]


def blas() -> dict[str, str | int | None]:
    """The build of NumPy's BLAS, its kernels and threads if it tells them, the vectors of NumPy's own loops.

    Examples
    --------
    >>> from finwidth.stores.numerics import blas
    >>> sorted(blas())
    ['blas', 'kernels', 'scipy', 'threads', 'vectors']
    """
    import scipy

    built = np.show_config(mode="dicts")
    library = built.get("Build Dependencies", {}).get("blas", {})
    return {
        "blas": f"{library.get('name')} {library.get('version')}",
        "kernels": _asked("corename", ctypes.c_char_p),
        "threads": _asked("num_threads", ctypes.c_int),
        "vectors": " ".join(built.get("SIMD Extensions", {}).get("found", [])),
        "scipy": scipy.__version__,
    }


def torch() -> dict[str, str | int | None]:
    """The version, vectors and threads of PyTorch."""
    import torch as library

    return {
        "torch": library.__version__,
        "torch_vectors": library.backends.cpu.get_cpu_capability(),
        "torch_threads": library.get_num_threads(),
    }


def _asked(what: str, answer: type[ctypes.c_char_p] | type[ctypes.c_int]) -> str | int | None:
    """The answer of OpenBLAS; None if NumPy has another BLAS."""
    from numpy.linalg import _umath_linalg

    library = ctypes.CDLL(_umath_linalg.__file__)  # symbols are also looked for in what it is linked with
    for name in _NAMES:
        function = getattr(library, name.format(what), None)
        if function is not None:
            function.restype = answer
            found: bytes | int = function()
            return found.decode() if isinstance(found, bytes) else found
    return None


def unlike(there: Facts, here: Facts) -> list[str]:
    """In a message, the facts that differ in two places."""
    return [
        f"{name} {there.get(name)} (here {here.get(name)})"
        for name in sorted({*there, *here})
        if there.get(name) != here.get(name)
    ]

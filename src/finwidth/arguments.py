"""Checks of arguments: each function returns the value it proved, or raises a FinwidthError that says what to give.

Looking at a value runs its own code (``__index__``, ``__float__``, ``__array__``, ``__len__``), which may raise
anything; so these, and nothing else here, are inside ``except Exception``.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from decimal import Decimal
from fractions import Fraction
from numbers import Rational, Real
from pathlib import Path
from typing import (
    TYPE_CHECKING,
    Any,
    Protocol,
    SupportsFloat,
    SupportsIndex,
    TypeAlias,
    TypeGuard,
    TypeVar,
    cast,
    runtime_checkable,
)

import numpy as np
import numpy.typing as npt

from finwidth.errors import FinwidthError, shown
from finwidth.extras import load_extra

if TYPE_CHECKING:
    import torch

FloatArray: TypeAlias = npt.NDArray[np.float64]
_Number: TypeAlias = Real | Decimal

_Told = TypeVar("_Told")
_Instance = TypeVar("_Instance")
Item = TypeVar("Item")
_Function = TypeVar("_Function", bound=Callable[..., object])


def count(name: str, value: object, least: int = 1) -> int:
    """A whole number of at least ``least``.

    >>> from finwidth.arguments import count
    >>> count("draws", 5)
    5
    """
    if type(value) is int and value >= least:  # nearly always
        return value
    number = index(value)
    if number is None or number < least:
        raise FinwidthError(f"{name} is {shown(value)}; give a whole number, {least} or more")
    return number


def index(value: object) -> int | None:
    """A whole number; None if it is none, or a truth value."""
    if isinstance(value, bool | np.bool_ | np.timedelta64):  # NumPy takes times for whole numbers
        return None
    try:
        return int(operator.index(value)) if isinstance(value, SupportsIndex) else None
    except Exception:
        return None


def check_seed(seed: object) -> int:
    """The seed as an int: a whole number of at least 0, which results record, so that anyone draws the same again.

    A generator or a seed sequence of NumPy is refused, with what to type instead: it cannot be recorded as it is.

    >>> from finwidth.arguments import check_seed
    >>> check_seed(np.random.default_rng(1))
    Traceback (most recent call last):
        ...
    finwidth.errors.FinwidthError: seed is a Generator, which a result cannot record; give a whole number, such as \
int(rng.integers(2**63))
    """
    number = index(seed)
    if number is None or number < 0:
        for kind, whole in _AS_WHOLE_NUMBERS.items():
            if isinstance(seed, kind):
                told = f"seed is a {kind.__name__}, which a result cannot record; give a whole number"
                raise FinwidthError(f"{told}, such as {whole}")
        raise FinwidthError(f"seed is {shown(seed)}; give a whole number, 0 or more, such as seed=0")
    return number


_AS_WHOLE_NUMBERS: dict[type, str] = {
    np.random.Generator: "int(rng.integers(2**63))",
    np.random.SeedSequence: "int(sequence.generate_state(1, np.uint64)[0])",
    np.random.RandomState: "int(state.randint(2**31))",
}


def real(name: str, value: object, wanted: str, allowed: Callable[[float], bool] = math.isfinite) -> float:
    """A real number that a double holds, of those that are ``allowed``.

    >>> from finwidth.arguments import real
    >>> real("lr", 0.5, "a positive number", lambda lr: 0 < lr < math.inf)
    0.5
    """
    number = _float(value)
    if not allowed(number):
        raise FinwidthError(f"{name} is {shown(value)}; give {wanted}")
    return number


def exact(name: str, value: object, wanted: str, allowed: Callable[[Fraction], bool] = lambda _: True) -> Fraction:
    """A real number as a fraction, without rounding, of a size that a double has."""
    number = _float(value)
    double = math.isfinite(number) and (number != 0 or value == 0)  # the test of `is_double`
    if not double or not allowed(fraction := as_fraction(cast("SupportsFloat", value))):
        raise FinwidthError(f"{name} is {shown(value)}; give {wanted}")
    return fraction


def is_double(value: object) -> TypeGuard[SupportsFloat]:
    """Whether it is a real number of a size that a double has: neither infinite there, nor 0 unless it is 0."""
    number = _float(value)
    return math.isfinite(number) and (number != 0 or value == 0)


def as_fraction(value: SupportsFloat) -> Fraction:
    """A finite real number, exactly."""
    if isinstance(value, Rational):  # NumPy's whole numbers are some
        return Fraction(int(value.numerator), int(value.denominator))
    return Fraction(value) if isinstance(value, Decimal) else Fraction(float(value))


def _float(value: object) -> float:
    """NaN if it is no real number, or past a double's range."""
    if isinstance(value, bool | np.timedelta64):  # NumPy takes times for whole numbers
        return math.nan
    try:
        return float(value) if isinstance(value, _Number) else math.nan
    except (OverflowError, ValueError):  # a signalling NaN raises the latter
        return math.nan


def flag(name: str, value: object) -> bool:
    """True or False."""
    if not isinstance(value, bool | np.bool_):
        raise FinwidthError(f"{name} is {shown(value)}; give True or False")
    return bool(value)


def one_of(name: str, value: object, names: Collection[str], more: str = "") -> str:
    """One of a few names."""
    if not isinstance(value, str) or value not in names:
        raise FinwidthError(f"{name} {shown(value)} is not known; choose one of {', '.join(names)}{more}")
    return str(value)


def text(name: str, value: object, wanted: str) -> str:
    """A text."""
    if not isinstance(value, str):
        raise FinwidthError(f"{name} is {shown(value)}; give {wanted}")
    return str(value)


def path(name: str, value: object) -> Path:
    """A path of a file or folder."""
    if not isinstance(value, str | Path) or "\0" in str(value) or not str(value):
        raise FinwidthError(f"{name} is {shown(value)}; give a path")
    return Path(value)


def items(name: str, values: Iterable[Item] | Fraction | float | type, wanted: str) -> list[Item]:
    """The values of a list, or of something like it."""
    found: list[Item] | None = None
    if isinstance(values, Collection) and not isinstance(values, str | bytes | bytearray | memoryview | Mapping):
        with suppress(Exception):
            found = list(values) if len(values) >= 0 else None
    if found is None:
        raise FinwidthError(f"{name} is {shown(values)}; give {wanted}")
    return found


def table(name: str, value: Mapping[str, Item] | type, wanted: str) -> dict[str, Item]:
    """A mapping whose keys are texts."""
    if not isinstance(value, Mapping) or not all(isinstance(key, str) for key in value):
        raise FinwidthError(f"{name} is {shown(value)}; give {wanted}")
    return dict(value)


def function(name: str, value: _Function | None, wanted: str = "a function") -> _Function:
    """Something that can be called."""
    if not callable(value):
        raise FinwidthError(f"{name} is {shown(value)}; give {wanted}")
    return value


def progress(value: Callable[[_Told], object] | None) -> Callable[[_Told], object]:
    """A function to call with how far the work is; its exceptions pass through, so that it can end the work."""
    if value is None:
        return lambda _: None
    return function("progress", value, "a function of one argument, or leave it out")


@contextmanager
def running(name: str) -> Iterator[None]:
    """Turn exceptions of a user's function into FinwidthErrors that name it."""
    try:
        yield
    except FinwidthError:
        raise
    except Exception as error:
        message = " ".join(str(error).split())[:200] or "no message"
        raise FinwidthError(f"{name} raises {type(error).__name__}: {message}") from error


def instance(name: str, value: object, kind: type[_Instance], wanted: str) -> _Instance:
    """A value of a type."""
    if not isinstance(value, kind):
        raise FinwidthError(f"{name} is {shown(value)}; give {wanted}")
    return value


def real_array(values: object) -> npt.NDArray[Any] | None:
    """Real numbers as an array, whole ones as such; None if there are others, or some are missing."""
    if isinstance(values, np.ma.MaskedArray) and np.ma.is_masked(values):
        return None
    try:
        found: npt.NDArray[Any] = np.asarray(_from_torch(values) if isinstance(values, _Tensor) else values)
    except Exception:
        return None
    if found.dtype.kind == "O":
        real = all(isinstance(each, _Number) for each in found.flat)
        return np.array([_rounded(each) for each in found.flat]).reshape(found.shape) if real else None
    return found if found.dtype.kind in "biuf" else None


@runtime_checkable
class _Tensor(Protocol):
    """A torch tensor, as far as it is used here."""

    dtype: object

    def detach(self) -> _Tensor: ...

    def cpu(self) -> _Tensor: ...

    def float(self) -> _Tensor: ...

    def __array__(self) -> npt.NDArray[np.generic]: ...


def _from_torch(values: _Tensor) -> _Tensor:
    """A tensor that NumPy takes: without gradients, on no device, no bfloat16."""
    values = values.detach().cpu()
    return values.float() if "bfloat16" in str(values.dtype) else values


def _rounded(value: _Number) -> float:
    """As a double; infinite past its range, and NaN where it is one."""
    try:
        return float(value)
    except OverflowError:
        return math.inf
    except ValueError:  # a signalling NaN
        return math.nan


def numbers(values: object, *, copy: bool = True) -> FloatArray | None:
    """Real numbers as float64, inf where a double overflows; None if there are others, or some are missing."""
    found = real_array(values)
    with np.errstate(over="ignore"):
        return None if found is None else found.astype(np.float64, copy=copy)


def array(name: str, values: object, wanted: str, *, copy: bool = True) -> FloatArray:
    """Finite real numbers as float64; without a copy, if it is only read, where it is such an array already."""
    found = numbers(values, copy=copy)
    if found is None:
        raise FinwidthError(f"{name} is {shown(values)}, not an array of numbers; give {wanted}")
    if not np.isfinite(found).all():
        raise FinwidthError(f"{name} holds numbers that are not finite, or missing; give {wanted}")
    return found


def check_device(device: object) -> torch.device:
    """The torch device called ``device``; raises FinwidthError unless torch is installed and finds it."""
    load_extra("torch", f"device={shown(device)}")
    import torch

    wanted = "give one such as 'cpu' or 'cuda:0'"
    if not isinstance(device, str | torch.device):
        raise FinwidthError(f"device={shown(device)} is no device; {wanted}")
    try:
        probe = torch.zeros(1, dtype=torch.float64, device=device)
        probe.item()  # the device "meta" has no numbers
    except (RuntimeError, TypeError, AssertionError) as error:  # torch without CUDA asserts
        reason = str(error).splitlines()[0]
        raise FinwidthError(f"device={shown(str(device))} cannot be used: {reason}; {wanted}") from None
    return probe.device  # with its number, as tensors have it


def typed(value: Fraction | int | str) -> str:
    """A value as one types it: a fraction as a whole number or a float where it is one.

    >>> from finwidth.arguments import typed
    >>> typed(Fraction(1, 4)), typed(Fraction(3)), typed(Fraction(1, 3)), typed("trained")
    ('0.25', '3', 'Fraction(1, 3)', "'trained'")
    """
    if not isinstance(value, Fraction):
        return repr(value)
    if value.denominator == 1:
        return str(value.numerator)
    return repr(float(value)) if is_double(value) and Fraction(float(value)) == value else repr(value)

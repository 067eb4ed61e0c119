"""Inputs as the command line names them: numbers, a .npy file, or an image of scikit-learn's digits."""

from __future__ import annotations

import math
import stat
from collections.abc import Sequence
from fractions import Fraction
from importlib.util import find_spec
from pathlib import Path
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from finwidth.errors import FinwidthError
from finwidth.extras import load_extra
from finwidth.networks.inputs import Vector
from finwidth.networks.laws import FloatArray

Numbers: TypeAlias = npt.NDArray[np.floating | np.int64]

_ALLOWED = "give numbers such as 1,2, a .npy file of real numbers, or digits:17"
OF_ANY_WIDTH = ("ones", "unit", "random:")
_SEVERAL = "give a .npy file of shape (m, n_0), or a range such as digits:0-23"
_KINDS = {stat.S_IFDIR: "a folder", stat.S_IFIFO: "a pipe", stat.S_IFSOCK: "a socket"}


def check_file(path: Path, what: str, allowed: str) -> None:
    """Refuse what is no file: to read a pipe or a device may never end.

    Raises
    ------
    FinwidthError
        Which says what is there instead, and what is ``allowed``.

    Examples
    --------
    >>> from finwidth.inputs import check_file
    >>> check_file(Path("/dev/null"), "the config", "give a TOML file")
    Traceback (most recent call last):
        ...
    finwidth.errors.FinwidthError: the config /dev/null is a device, not a file; give a TOML file
    """
    try:
        mode = path.stat().st_mode
    except FileNotFoundError:
        raise FinwidthError(f"{what} {path} does not exist; {allowed}") from None
    except (OSError, ValueError) as error:  # ValueError: a name with a null character
        raise FinwidthError(f"cannot read {what} {path}: {getattr(error, 'strerror', error)}; {allowed}") from None
    if not stat.S_ISREG(mode):
        raise FinwidthError(f"{what} {path} is {_KINDS.get(stat.S_IFMT(mode), 'a device')}, not a file; {allowed}")


def parse_input(text: str, n_0: int | None = None) -> Vector:
    """The vector that ``text`` names; decimal numbers are read exactly, as fractions.

    With a width n_0 also ``"ones"``: all entries 1, squared norm n_0; ``"unit"``: the same direction, norm 1; and
    ``"random:7"``: the direction number 7 of a uniform law, squared norm n_0.

    Examples
    --------
    >>> from finwidth.inputs import parse_input
    >>> parse_input("1,0.5")
    [Fraction(1, 1), Fraction(1, 2)]
    >>> parse_input("ones", 3)
    array([1., 1., 1.])
    """
    if text.startswith(OF_ANY_WIDTH):
        if n_0 is None:
            raise FinwidthError(f"the input {text!r} has as many numbers as widths say, and there are none; {_ALLOWED}")
        return _of_width(text, n_0)
    if text.startswith("digits:"):
        return _digit(text)
    if text.endswith(".npy"):
        return _load(Path(text))
    try:
        return [parse_number(part) for part in text.split(",")]
    except ValueError:
        raise FinwidthError(f"the input {text!r} is neither numbers nor a .npy file nor a digit; {_ALLOWED}") from None


def parse_matrix(texts: Sequence[str], n_0: int) -> FloatArray:
    """Several inputs, shape (m, n_0): each of the texts names one, as in `parse_input`, or a file or a range of them.

    Examples
    --------
    >>> from finwidth.inputs import parse_matrix
    >>> parse_matrix(["1,0.5", "ones"], 2)
    array([[1. , 0.5],
           [1. , 1. ]])
    """
    parts = [_rows(text, n_0) for text in texts]
    for text, rows in zip(texts, parts, strict=True):
        if rows.ndim != 2 or rows.shape[1] != n_0:
            raise FinwidthError(f"the inputs {text!r} have shape {rows.shape}; give vectors of {n_0} numbers")
    return np.concatenate(parts)


def _rows(text: str, n_0: int) -> FloatArray:
    if text.startswith("digits:") and "-" in text:
        return _digit_range(text)[0]
    if text.endswith(".npy"):
        return np.atleast_2d(_load(Path(text)))
    return np.asarray(parse_input(text, n_0), dtype=np.float64)[None]


def _of_width(text: str, n_0: int) -> FloatArray:
    if text.startswith("random:"):
        return _random_direction(text, n_0)
    if text not in OF_ANY_WIDTH:
        raise FinwidthError(f"the input {text!r} is not known; {_ALLOWED}, ones, unit or random:7")
    return np.ones(n_0) if text == "ones" else np.full(n_0, n_0**-0.5)


def _random_direction(name: str, n_0: int) -> FloatArray:
    number = name.removeprefix("random:")
    if not number.isdecimal() or len(number) > 18:
        raise FinwidthError(f"the input {name!r} is not a random direction; give a number, such as random:7")
    vector = np.random.Generator(np.random.PCG64(int(number))).standard_normal(n_0)
    scaled: FloatArray = vector * (n_0 / np.square(vector).sum()) ** 0.5
    return scaled


def parse_inputs(text: str) -> Numbers:
    """Several inputs of shape (N, ...) from a .npy file; or one, as in `parse_input`, of shape (1, n_0).

    Examples
    --------
    >>> from finwidth.inputs import parse_inputs
    >>> parse_inputs("1,0.5")
    array([[1. , 0.5]])
    """
    if text.endswith(".npy"):
        array = _read_npy(Path(text))
        return array if array.ndim > 1 else array[None]
    return np.asarray(parse_input(text), dtype=np.float64)[None]


def parse_number(part: str) -> Fraction | float:
    """A number as it is typed, exactly; raises ValueError for what is none.

    >>> from finwidth.inputs import parse_number
    >>> parse_number("0.1"), parse_number("1/3")
    (Fraction(1, 10), Fraction(1, 3))
    """
    if "/" in part:
        top, bottom = (int(each) for each in part.split("/"))
        if not bottom:
            raise ValueError(part)
        return _in_range(Fraction(top, bottom))
    value = float(part)
    # inf and nan are refused by place by the network's check; 1e-99999 must not become a fraction of that many digits.
    return Fraction(part.strip()) if math.isfinite(value) and (value or "e" not in part.lower()) else value


def _in_range(value: Fraction) -> Fraction | float:
    """The fraction, or what is left of it in a double past its range, which the network's check refuses."""
    try:
        float(value)
    except OverflowError:
        return math.inf if value > 0 else -math.inf
    return value


def whole(text: str) -> int | None:
    """The whole number that a text is, if it is one of usual size.

    >>> from finwidth.inputs import whole
    >>> whole("17"), whole("-1"), whole(5000 * "9")
    (17, None, None)
    """
    return int(text) if text.isdecimal() and len(text) < 19 else None


def _digit(text: str) -> FloatArray:
    number = whole(text.removeprefix("digits:"))
    if number is None:
        raise FinwidthError(f"the input {text!r} is not an image of the digits; give a number, such as digits:17")
    images, _ = _all_digits(text)
    if number >= len(images):
        raise FinwidthError(
            f"the input {text!r} is not an image of the digits; give digits:0 to digits:{len(images) - 1}"
        )
    image: FloatArray = images[number]
    return image


def _load(path: Path) -> FloatArray:
    return _read_npy(path).astype(np.float64)


def _read_npy(path: Path) -> Numbers:
    """An array of numbers in a type that everything downstream takes: int64, or floats of at most 64 bits."""
    check_file(path, "the input file", _ALLOWED)
    try:  # which takes no memory, and refuses a shape of more numbers than the file has
        mapped = np.load(path, mmap_mode="r", allow_pickle=False)
    except Exception:  # NumPy reads the header as Python code, and raises what Python raises for it
        raise FinwidthError(f"the input file {path} is not a .npy file of numbers; {_ALLOWED}") from None
    if not isinstance(mapped, np.ndarray) or mapped.dtype.kind not in "iuf":
        raise FinwidthError(f"the input file {path} does not hold an array of real numbers; {_ALLOWED}")
    kind: npt.DTypeLike = np.float64
    if np.can_cast(mapped.dtype, np.int64):
        kind = np.int64
    elif mapped.dtype.itemsize < 8:
        kind = mapped.dtype.newbyteorder("=")
    with np.errstate(over="ignore"):  # what is infinite then is refused by its place
        array: Numbers = np.load(path, allow_pickle=False).astype(kind)
    return array


def _all_digits(text: str) -> tuple[FloatArray, npt.NDArray[np.int64]]:
    """Images and their classes, from the file of the library: to import the library itself takes a second."""
    library = find_spec("sklearn")
    folders = (library and library.submodule_search_locations) or []
    for file in (Path(folder, "datasets", "data", "digits.csv.gz") for folder in folders):
        if file.is_file():
            table = np.loadtxt(file, delimiter=",")
            return table[:, :-1], table[:, -1].astype(np.int64)
    data = load_extra("sklearn.datasets", f"the input {text!r}").load_digits()
    return data.data, data.target


def parse_numbers(text: str) -> FloatArray:
    """Numbers with commas, shape (m,), or those of a .npy file: targets.

    >>> from finwidth.inputs import parse_numbers
    >>> parse_numbers("1,-1")
    array([ 1., -1.])
    """
    return np.asarray(parse_input(text), dtype=np.float64)


def parse_training(inputs: str, targets: str | None, *, classes: bool) -> tuple[FloatArray, Numbers]:
    """Training inputs, shape (m, n_0), and targets from the way the command line writes them.

    ``inputs`` is a .npy file or a range of scikit-learn's digits; ``targets`` numbers or a .npy file.  Digits have
    targets of their own: their classes where ``classes`` are wanted, else +1 for even and -1 for odd ones.

    Examples
    --------
    >>> import tempfile
    >>> from finwidth.inputs import parse_training
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     np.save(f"{folder}/X.npy", np.eye(2))
    ...     parse_training(f"{folder}/X.npy", "1,-1", classes=False)[1]
    array([ 1., -1.])
    """
    if inputs.startswith("digits:"):
        X, labels = _digit_range(inputs)
        if targets is None:
            return X, labels if classes else 1 - 2 * (labels % 2)
    elif inputs.endswith(".npy"):
        X = _load(Path(inputs))
    else:
        raise FinwidthError(f"the inputs {inputs!r} are neither a .npy file nor digits; {_SEVERAL}")
    if targets is None:
        raise FinwidthError("the targets are missing; give --targets with numbers such as 1,-1, or a .npy file")
    y = parse_numbers(targets)
    whole_numbers = np.array_equal(y, y.round()) and np.abs(y).max(initial=0) < 2**53
    return X, y.astype(np.int64) if classes and whole_numbers else y


def _digit_range(text: str) -> tuple[FloatArray, npt.NDArray[np.int64]]:
    first, last = map(whole, text.removeprefix("digits:").partition("-")[::2])
    images, labels = _all_digits(text)
    if first is None or last is None or not first <= last < len(images):
        raise FinwidthError(
            f"the inputs {text!r} are not a range of the digits; give one within digits:0-{len(images) - 1}, "
            "such as digits:0-23"
        )
    return images[first : last + 1], labels[first : last + 1]

"""Inputs as the command line names them: numbers, a .npy file, or an image of scikit-learn's digits."""

from __future__ import annotations

import math
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from finwidth.errors import FinwidthError
from finwidth.laws import FloatArray
from finwidth.network import Vector

_ALLOWED = "give numbers such as 1,2, a .npy file of one vector, or digits:17"
_SEVERAL = "give a .npy file of shape (m, n_0), or a range such as digits:0-23"


def parse_input(text: str) -> Vector:
    """The vector that ``text`` names; decimal numbers are read exactly, as fractions.

    Examples
    --------
    >>> from finwidth.inputs import parse_input
    >>> parse_input("1,0.5")
    [Fraction(1, 1), Fraction(1, 2)]
    """
    if text.startswith("digits:"):
        return _digit(text)
    if text.endswith(".npy"):
        return _load(Path(text))
    try:
        return [_number(part) for part in text.split(",")]
    except ValueError:
        raise FinwidthError(f"the input {text!r} is neither numbers nor a .npy file nor a digit; {_ALLOWED}") from None


def _number(part: str) -> Fraction | float:
    if "/" in part:
        top, bottom = (int(each) for each in part.split("/"))
        if not bottom:
            raise ValueError(part)
        return Fraction(top, bottom)
    value = float(part)
    # inf and nan are refused by place by the network's check; 1e-99999 must not become a fraction of that many digits.
    return Fraction(part.strip()) if math.isfinite(value) and (value or "e" not in part.lower()) else value


def _digit(text: str) -> FloatArray:
    number = text.removeprefix("digits:")
    if not number.isdecimal():
        raise FinwidthError(f"the input {text!r} is not an image of the digits; give a number, such as digits:17")
    images, _ = _all_digits(text)
    if int(number) >= len(images):
        raise FinwidthError(
            f"the input {text!r} is not an image of the digits; give digits:0 to digits:{len(images) - 1}"
        )
    image: FloatArray = images[int(number)]
    return image


def _load(path: Path) -> FloatArray:
    try:
        array = np.load(path, allow_pickle=False)
    except FileNotFoundError:
        raise FinwidthError(f"the input file {path} does not exist; {_ALLOWED}") from None
    except (OSError, ValueError, EOFError):
        raise FinwidthError(f"the input file {path} is not a .npy file of numbers; {_ALLOWED}") from None
    if not isinstance(array, np.ndarray) or array.dtype.kind not in "iuf":
        raise FinwidthError(f"the input file {path} does not hold an array of real numbers; {_ALLOWED}")
    return array.astype(np.float64)


def _all_digits(text: str) -> tuple[FloatArray, npt.NDArray[np.int64]]:
    """Images and their classes."""
    try:
        from sklearn.datasets import load_digits
    except ImportError:
        raise FinwidthError(
            f"the input {text!r} needs scikit-learn; install it with: pip install 'finwidth[digits]'"
        ) from None
    data = load_digits()
    return data.data, data.target


def parse_training(inputs: str, targets: str | None, *, classes: bool) -> tuple[FloatArray, npt.NDArray[Any]]:
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
    y: npt.NDArray[Any] = np.asarray(parse_input(targets), dtype=np.float64)
    return X, y.astype(np.int64) if classes and np.array_equal(y, y.round()) else y


def _digit_range(text: str) -> tuple[FloatArray, npt.NDArray[np.int64]]:
    first, _, last = text.removeprefix("digits:").partition("-")
    images, labels = _all_digits(text)
    if not first.isdecimal() or not last.isdecimal() or not int(first) <= int(last) < len(images):
        raise FinwidthError(
            f"the inputs {text!r} are not a range of the digits; give one within digits:0-{len(images) - 1}, "
            "such as digits:0-23"
        )
    chosen = slice(int(first), int(last) + 1)
    return images[chosen], labels[chosen]

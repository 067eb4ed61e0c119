"""The kernel of a torch module from a file, summarised, with theory beside it where the module is recognised."""

from __future__ import annotations

import contextlib
import importlib.util
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from finwidth import empirical
from finwidth.comparison import ModuleComparison, compare
from finwidth.errors import FinwidthError
from finwidth.laws import FloatArray
from finwidth.observables import spectrum
from finwidth.quantities import plain

if TYPE_CHECKING:
    from torch import nn


@dataclass(frozen=True)
class Measurement:
    """The result of `measure`.

    Attributes
    ----------
    module
        The module's class.
    parameters
        How many numbers are trained.
    inputs
        Shape of the inputs.
    outputs
        As asked for.
    K
        The kernel as one symmetric matrix: (N, N), or (N O, N O) for outputs "full".
    eigenvalues
        Of K, largest first.
    rounding
        Eigenvalues below this are rounding: the size of K times the precision of its numbers times its largest.
    theory, no_theory
        The first input's kernel beside its law; or why there is none.
    """

    module: str
    parameters: int
    inputs: tuple[int, ...]
    outputs: str | int
    K: FloatArray
    eigenvalues: FloatArray
    rounding: float
    theory: ModuleComparison | None
    no_theory: str | None

    @property
    def trace(self) -> float:
        """Sum of the diagonal."""
        return float(np.trace(self.K))

    @property
    def condition(self) -> float | None:
        """Largest over smallest eigenvalue; None where the smallest is rounding."""
        smallest = float(self.eigenvalues[-1])
        return float(self.eigenvalues[0]) / smallest if smallest > self.rounding else None

    def to_json(self) -> dict[str, Any]:
        """Plain types; the kernel itself as nested lists."""
        document: dict[str, Any] = plain(
            {
                "module": self.module,
                "parameters": self.parameters,
                "inputs": list(self.inputs),
                "outputs": self.outputs,
                "kernel": {
                    "shape": list(self.K.shape),
                    "trace": self.trace,
                    "eigenvalues": self.eigenvalues.tolist(),
                    "condition": self.condition,
                    "entries": self.K.tolist(),
                },
                "theory": None if self.theory is None else self.theory.to_json(),
                "no_theory": self.no_theory,
            }
        )
        return document


def measure(
    module: nn.Module,
    X: npt.ArrayLike,
    outputs: str | int = "trace",
    *,
    seed: int = 0,
    init: str | Mapping[str, Any] | None = None,
    progress: Callable[[int], object] | None = None,
) -> Measurement:
    """The kernel of a module on given inputs, its spectrum, and for the first input the theory beside it.

    Parameters
    ----------
    module
        Any torch module; theory is there for those that `finwidth.empirical.recognise` knows.
    X
        Inputs of shape (N, ...); whole numbers stay whole only where the module takes them, as words.
    outputs
        "trace", "full", or the number of one output, as for `finwidth.empirical.ntk`.
    seed, init, progress
        As for `finwidth.compare`.

    Raises
    ------
    FinwidthError
        If the module cannot be applied to the inputs, or its kernel is not defined.

    Examples
    --------
    >>> import numpy as np, finwidth
    >>> from finwidth.measurement import measure
    >>> found = measure(finwidth.empirical.MLP(finwidth.MLP([2, 8, 1]), seed=1), np.eye(2))
    >>> found.K.shape, found.theory.rows[0].quantity, found.condition > 1
    ((2, 2), 'K', True)
    """
    if outputs == "diagonal":
        raise FinwidthError(
            'outputs is "diagonal", which is one matrix for each output; choose trace, full or a number'
        )
    inputs = _inputs(module, X)
    scale = module.scale if isinstance(module, empirical.MLP) else None
    K = empirical.ntk(module, inputs, outputs=outputs, scale=scale)
    precision = float(np.finfo(str(K.dtype).removeprefix("torch.")).eps) if "bf" not in str(K.dtype) else 2**-8
    matrix: FloatArray = K.double().cpu().numpy()
    if matrix.ndim == 4:
        matrix = matrix.transpose(0, 2, 1, 3).reshape(len(matrix) * matrix.shape[2], -1)
    eigenvalues = spectrum((matrix + matrix.T) / 2)
    theory, reason = _theory(module, np.asarray(X)[0].ravel(), seed, init, progress)
    return Measurement(
        type(module).__name__,
        sum(each.numel() for each in module.parameters() if each.requires_grad),
        tuple(inputs.shape),
        outputs,
        matrix,
        eigenvalues,
        len(matrix) * precision * max(float(eigenvalues[0]), 0.0),
        theory,
        reason,
    )


def _theory(
    module: nn.Module,
    x: npt.NDArray[Any],
    seed: int,
    init: str | Mapping[str, Any] | None,
    progress: Callable[[int], object] | None,
) -> tuple[ModuleComparison | None, str | None]:
    try:
        return compare(module, x, seed=seed, init=init, progress=progress), None
    except FinwidthError as error:
        if init is not None:
            raise
        return None, str(error)


def _inputs(module: nn.Module, X: npt.ArrayLike) -> Any:
    """The inputs as a tensor that the module takes; raises FinwidthError where it does not."""
    from finwidth.empirical.arguments import check_inputs
    from finwidth.empirical.forward import differentiable, first_line, untouched

    array = np.asarray(X)
    if array.dtype.kind not in "biuf" or not array.ndim:
        raise FinwidthError(f"the inputs are {array.dtype} of shape {array.shape}; give real numbers of shape (N, ...)")
    inputs = check_inputs(module, array, "X")
    try:
        with untouched(module), differentiable():  # a forward pass may differentiate, count and draw
            module(inputs[:1].clone())
    except FinwidthError:
        raise
    except Exception as error:
        told = f"{type(error).__name__}: {first_line(error)}"
        raise FinwidthError(f"the module cannot be applied to inputs of shape {array.shape}: {told}") from None
    return inputs


def load(target: str, seed: int = 0) -> nn.Module:
    """The module that ``file.py:name`` names: a module, or something that makes one when it is called.

    The file is run, and the function called, with torch's generator at ``seed``; they print to standard error.
    """
    try:
        import torch
    except ModuleNotFoundError:
        raise FinwidthError(
            "finwidth measure needs PyTorch, which is not installed; pip install 'finwidth[torch]'"
        ) from None
    path, colon, name = target.rpartition(":")
    if not colon or not path.endswith(".py") or not name.isidentifier():
        raise FinwidthError(f"{target!r} names no module; write a file and a name in it, such as mymodel.py:make_model")
    file = Path(path)
    if not file.is_file():
        raise FinwidthError(f"the file {path} does not exist; write a file and a name in it: mymodel.py:make_model")
    torch.manual_seed(seed)
    with _running(file):
        namespace = _run(file)
        if not hasattr(namespace, name):
            public = [each for each in vars(namespace) if not each.startswith("_")]
            raise FinwidthError(f"{path} has no {name!r}; it has {', '.join(public[-8:]) or 'no names'}")
        found = getattr(namespace, name)
        if not isinstance(found, torch.nn.Module) and callable(found):
            torch.manual_seed(seed)
            found = found()
    if not isinstance(found, torch.nn.Module):
        raise FinwidthError(
            f"{target} is a {type(found).__name__}, and not a torch module nor a function that makes one"
        )
    return found


def _run(file: Path) -> Any:
    spec = importlib.util.spec_from_file_location(file.stem, file)
    assert spec is not None
    assert spec.loader is not None
    namespace = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(namespace)
    return namespace


@contextlib.contextmanager
def _running(file: Path) -> Iterator[None]:
    """Run the user's own code: it may import its neighbours and print; errors become one line."""
    sys.path.insert(0, str(file.parent.resolve()))
    try:
        with contextlib.redirect_stdout(sys.stderr):
            yield
    except FinwidthError:
        raise
    except (Exception, SystemExit) as error:
        raise FinwidthError(f"{file} raises {type(error).__name__}: {error}") from None
    finally:
        sys.path.pop(0)

"""The kernel of a torch module from a file, summarised, with theory beside it where the module is recognised."""

from __future__ import annotations

import contextlib
import importlib
import os
import site
import sys
import traceback
import types
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from finwidth import arguments, empirical
from finwidth.comparison import ModuleComparison, compare_with_law
from finwidth.documents import plain
from finwidth.errors import FinwidthError, shown
from finwidth.extras import load_extra
from finwidth.inputs import check_file
from finwidth.memory import afford
from finwidth.networks.laws import FloatArray
from finwidth.observables import spectrum
from finwidth.tables import Result, Table, Told

if TYPE_CHECKING:
    import torch
    from torch import nn


@dataclass(frozen=True, repr=False)
class Measurement(Result):
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

    def _about(self) -> dict[str, object]:
        return {} if self.theory is None else self.theory._about()

    def content(self) -> dict[str, object]:
        """The kernel itself, what is read off it, and the theory of its first input."""
        numbers = {"K": self.K, "trace": self.trace, "eigenvalues": self.eigenvalues, "condition": self.condition}
        found: dict[str, object] = plain(
            {
                **{name: getattr(self, name) for name in ("module", "parameters", "inputs", "outputs")},
                "quantities": {name: {"module": {"value": value}} for name, value in numbers.items()},
                "theory": None if self.theory is None else self.theory.content(),
                "no_theory": self.no_theory,
            }
        )
        return found

    @property
    def _of(self) -> str:
        inputs = " x ".join(map(str, self.inputs))
        output = f"output {self.outputs}" if isinstance(self.outputs, int) else f"outputs {self.outputs}"
        return f"Kernel of {self.module}, {self.parameters:,} parameters, at inputs {inputs}, {output}"

    def _table(self) -> Table:
        table = Table(self._of, ("quantity", "value"))
        table.add("shape of K", " x ".join(map(str, self.K.shape)))
        table.add("trace", self.trace)
        for k, value in enumerate(self.eigenvalues[:5], 1):
            table.add(f"eigenvalue {k}", float(value))
        if len(self.eigenvalues) > 5:
            table.add(f"eigenvalue {len(self.eigenvalues)}, the smallest", float(self.eigenvalues[-1]))
        table.add("condition", Told(None, "singular") if self.condition is None else self.condition)
        if not self.condition:
            table.notes = f"singular: the smallest eigenvalue is below rounding, {self.rounding:.1g}."
        return table

    def _headline(self) -> str:
        return f"{self._of}: trace {self.trace:.6g}"


def measure(
    module: nn.Module,
    X: npt.ArrayLike,
    outputs: str | int = "trace",
    *,
    seed: int = 0,
    init: str | Mapping[str, object] | None = None,
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
    from finwidth.empirical.kernel.arguments import check_module, check_outputs
    from finwidth.empirical.modules.described import DescribedModule

    outputs, module, seed = check_outputs(outputs), check_module(module), arguments.check_seed(seed)
    tell = arguments.progress(progress)
    if outputs == "diagonal":
        raise FinwidthError(
            'outputs is "diagonal", which is one matrix for each output; choose trace, full or a number'
        )
    inputs, first = _inputs(module, X)
    scale = module.scale if isinstance(module, DescribedModule) else None
    K = empirical.ntk(module, inputs, outputs=outputs, scale=scale)
    precision = float(np.finfo(str(K.dtype).removeprefix("torch.")).eps) if "bf" not in str(K.dtype) else 2**-8
    afford(8 * 5 * K.numel(), f"the eigenvalues of a kernel of {K.numel()} entries", "give fewer inputs")
    matrix: FloatArray = K.double().cpu().numpy()
    if matrix.ndim == 4:
        matrix = matrix.transpose(0, 2, 1, 3).reshape(len(matrix) * matrix.shape[2], -1)
    eigenvalues = spectrum((matrix + matrix.T) / 2)
    theory, reason = _theory(module, first, seed, init, tell)
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
    x: npt.ArrayLike,
    seed: int,
    init: str | Mapping[str, object] | None,
    tell: Callable[[int], object],
) -> tuple[ModuleComparison | None, str | None]:
    try:
        net = empirical.recognise(module, init)
        return compare_with_law(net, module, np.ravel(x), tell, seed=seed), None
    except FinwidthError as error:
        if init is not None:
            raise
        return None, str(error)


def _inputs(module: nn.Module, X: npt.ArrayLike) -> tuple[torch.Tensor, npt.ArrayLike]:
    """The inputs as a tensor that the module takes, and the first as given; raises FinwidthError where it does not."""
    from finwidth.empirical.kernel.arguments import check_batch
    from finwidth.empirical.kernel.calls import differentiable, first_line, untouched

    array = arguments.real_array(X)
    if array is None or not array.ndim:
        raise FinwidthError(f"the inputs are {shown(X)}; give real numbers of shape (N, ...)")
    inputs = check_batch(module, array, "X")
    try:
        with untouched(module), differentiable():  # a forward pass may differentiate, count and draw
            module(inputs[:1].clone())
    except FinwidthError:
        raise
    except Exception as error:
        told = f"{type(error).__name__}: {first_line(error)}"
        raise FinwidthError(f"the module cannot be applied to inputs of shape {array.shape}: {told}") from error
    return inputs, array[0].ravel()


def parse_target(target: str) -> tuple[Path | str, str]:
    """What ``file.py:name`` means: a file and a name in it; or of ``package.module:name`` a module and a name.

    >>> from finwidth.measurement import parse_target
    >>> parse_target("models/mine.py:make")[1], parse_target("torchvision.models:resnet18")
    ('make', ('torchvision.models', 'resnet18'))
    """
    wanted = (
        "a file and a name in it, such as mymodel.py:make_model, or of what is installed torchvision.models:resnet18"
    )
    path, colon, name = arguments.text("the module", target, wanted).rpartition(":")
    if colon and name.isidentifier() and "\0" not in path:
        if path.endswith(".py"):
            return Path(path), name
        if all(part.isidentifier() for part in path.split(".")):
            return path, name
    raise FinwidthError(f"{shown(target)} names no module; write {wanted}")


def load(file: Path | str, name: str, seed: int = 0) -> tuple[nn.Module, Callable[[], nn.Module] | None]:
    """The torch module of that name in a Python file, or in a Python module that is installed or beside the user.

    Or something that makes one when it is called; with the module comes what made it, or None.  The file is run, and
    the function called, with torch's generator at ``seed``.
    """
    load_extra("torch", "a torch module")
    import torch

    # Torch takes 64 bits; longer seeds are hashed to as many.
    number = (
        seed
        if arguments.check_seed(seed) < 2**64
        else int(np.random.SeedSequence(seed).generate_state(1, np.uint64)[0])
    )
    torch.manual_seed(number)
    namespace = _imported(file) if isinstance(file, str) else _run(file)
    if not hasattr(namespace, name):
        public = [each for each in vars(namespace) if not each.startswith("_")]
        raise FinwidthError(f"{file} has no {name!r}; it has {', '.join(public[-8:]) or 'no names'}")
    found = getattr(namespace, name)
    maker = found if callable(found) and not isinstance(found, torch.nn.Module) else None
    if maker is not None:
        torch.manual_seed(number)
        try:
            found = maker()
        except Exception as error:
            raise FinwidthError(f"{file}:{name}, called without arguments, raises {_named(error)}") from error
    if not isinstance(found, torch.nn.Module):
        raise FinwidthError(
            f"{file}:{name} is a {type(found).__name__}, and not a torch module nor a function that makes one"
        )
    return found, maker


def _imported(name: str) -> types.ModuleType:
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise FinwidthError(
            f"cannot import {name}: {error}; write a file and a name in it, such as mymodel.py:make"
        ) from error


def _run(file: Path) -> types.ModuleType:
    """Run a Python file as a module; unlike an import, this writes nothing beside the file."""
    check_file(file, "the file", "write a Python file and a name in it, such as mymodel.py:make_model")
    try:
        code = compile(file.read_bytes(), str(file), "exec")
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:  # all that compile raises
        raise FinwidthError(f"{file} is not Python: {error}") from None
    namespace = types.ModuleType(f"measured_{file.stem}")
    namespace.__file__, namespace.__package__ = str(file), ""
    sys.modules[namespace.__name__] = namespace  # where dataclasses and pickles look for it
    exec(code, vars(namespace))
    return namespace


@contextlib.contextmanager
def running_user_file(file: Path | str, *, trace: bool = False) -> Iterator[None]:
    """For all that runs the code of a user's file: it may import its neighbours, and writes to standard error only.

    A Python module, which is named by a text, is looked for in the folder of the user too.

    Its exceptions are told in one line, with the place in its files; with ``trace``, after the whole traceback.
    """
    paths, given = sys.path[:], sys.argv
    folder = file.parent.resolve() if isinstance(file, Path) else Path.cwd()
    sys.path.insert(0, str(folder))
    sys.argv = [str(file)]
    try:
        with _to_standard_error():
            yield
    except KeyboardInterrupt:
        raise
    except BaseException as error:
        place = _user_line(error, folder)
        if place is None:  # a mistake that finwidth tells, or a fault of its own
            raise
        if trace:
            traceback.print_exception(error)
        told = str(error) if isinstance(error, FinwidthError) else f"{file} raises {_named(error)}"
        raise FinwidthError(f"{told} ({place}; --traceback shows the way there)") from error
    finally:
        sys.path[:], sys.argv = paths, given


@contextlib.contextmanager
def _to_standard_error() -> Iterator[None]:
    """Whatever is printed, by Python, C or other programs, goes to standard error: standard output has the result."""
    output = sys.stdout
    output.flush()
    kept = os.dup(1)
    os.dup2(2, 1)
    try:
        with contextlib.redirect_stdout(sys.stderr):
            yield
    finally:
        output.flush()  # it may have been written to by its other name, sys.__stdout__
        os.dup2(kept, 1)
        os.close(kept)


def _user_line(error: BaseException | None, folder: Path) -> str | None:
    """The last line of a user's files that an exception, or one behind it, has passed; None if it has passed none."""
    while error is not None:
        for frame, line in reversed(list(traceback.walk_tb(error.__traceback__))):
            path = Path(frame.f_code.co_filename).resolve()
            if path.is_file() and path.is_relative_to(folder) and not any(map(path.is_relative_to, _OTHERS)):
                return f"{path.name}, line {line}, in {frame.f_code.co_name}"
        error = error.__cause__ or error.__context__
    return None


# The package itself, Python's library, and what is installed.
_OTHERS = [str(Path(each).resolve().parent) for each in (__file__, os.__file__)]
_OTHERS += [*site.getsitepackages(), site.getusersitepackages()]


def _named(error: BaseException) -> str:
    try:
        return f"{type(error).__name__}: {error}"
    except Exception:  # a user's exception may have a __str__ that raises another
        return f"{type(error).__name__}, which cannot be printed"

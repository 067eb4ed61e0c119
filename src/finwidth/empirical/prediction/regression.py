r"""Training at a fixed kernel, in closed form: `predict`.

The squared loss is sum_a |f(x_a) - y_a|^2 / 2, and f(x) = f_0(x) + J(x) d is linear in the parameters, d their change.
Gradient flow of the loss, with a ridge r that pulls d back to 0, is d' = -M J^T (f - y) - r d, M the parameters'
scales. So d = M J^T a with

    a' = -(K + r) a + (y - f_0),    a(0) = 0,    f(x) = f_0(x) + K(x, X) a,

and a(t) = phi_t(K + r) (y - f_0) with phi_t(z) = (1 - exp(-z t)) / z; n steps of gradient descent at rate h have
phi(z) = (1 - (1 - h z)^n) / z, and t = infinity is regression, phi(z) = 1/z (Jacot, Gabriel and Hongler 2018; Lee et
al. 2019). docs/predictions.md says for which networks this is what training does.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
from scipy.linalg import eigh
from scipy.sparse.linalg import LinearOperator

from finwidth.arguments import array, numbers, real, real_array
from finwidth.empirical.matrix_free.estimates import conjugate_gradients
from finwidth.errors import FinwidthError, shown
from finwidth.memory import afford, amount
from finwidth.networks.laws import FloatArray

if TYPE_CHECKING:
    import xarray as xr

_TOL = 1e-8  # of the residual of conjugate gradients
_PRODUCTS = 10_000  # of them, at most


def predict(
    K: npt.ArrayLike | LinearOperator,
    y: npt.ArrayLike,
    K_test: npt.ArrayLike | LinearOperator | None = None,
    *,
    t: npt.ArrayLike | None = None,
    steps: npt.ArrayLike | None = None,
    lr: float | None = None,
    ridge: float = 0.0,
    f0: npt.ArrayLike = 0.0,
    f0_test: npt.ArrayLike = 0.0,
) -> xr.Dataset:
    """What a network with a fixed kernel predicts after training on the squared loss, exactly, at any times.

    For the linearised network this is training itself; for a wide one it is so up to terms of order 1/width.

    Parameters
    ----------
    K
        The kernel of the N training inputs, symmetric. Shape (N, N), one kernel for every output, as of one output;
        (N, N, O), one for each, as of ``ntk(..., outputs="diagonal")``; or (N, N, O, O), all pairs, as of
        ``outputs="full"``. Or a `KernelOperator` of the training inputs: then t is infinite, and conjugate gradients
        solve.
    y
        Targets, shape (N,) or (N, O).
    K_test
        The kernel of P test inputs with the training inputs, as K is: shape (P, N, ...), or a `KernelOperator`.
    t
        Times of gradient flow of sum_a |f - y|^2 / 2, a number or several in any order; infinity, the default, is
        kernel regression. One step of gradient descent at a small rate is a time of that rate.
    steps, lr
        Instead of times, numbers of steps of gradient descent at the rate lr, over all training inputs.
    ridge
        r: the loss has r |d|^2 / 2 besides, d the change of the parameters (over the roots of their scales); so t =
        infinity is kernel ridge regression.
    f0, f0_test
        What the network outputs before training at the training and at the test inputs, of the shape of y and (P,) or
        (P, O); 0 for a network that is centred, or for regression by itself.

    Returns
    -------
    xarray.Dataset
        ``output`` over (input[, component]) and, with K_test, ``probe_output`` over (probe[, component]), named as
        those of `finwidth.train`; ``loss``, sum_a |f - y|^2 / 2; ``coefficients``, a of f = f_0 + K a, as output,
        without what K does not see, eigenvectors of eigenvalue 0. If several times or steps are given, ``time`` or
        ``step`` comes first. float64.

    Raises
    ------
    FinwidthError
        If an argument is not allowed, shapes do not fit, K has an eigenvalue that is negative beyond rounding, or
        gradient descent at this rate diverges past a double.

    Examples
    --------
    >>> import numpy as np
    >>> from finwidth.empirical import predict
    >>> K, y = np.array([[2.0, 1.0], [1.0, 2.0]]), [1.0, -1.0]        # y is an eigenvector: K y = y
    >>> predict(K, y, t=[0, 1, np.inf]).output.values.round(6).tolist()         # (1 - exp(-t)) y
    [[0.0, 0.0], [0.632121, -0.632121], [1.0, -1.0]]
    >>> predict(K, y, steps=[1, 2], lr=0.5).output.values.round(6).tolist()     # (1 - 0.5^n) y
    [[0.5, -0.5], [0.75, -0.75]]
    >>> predict(K, y, np.array([[1.0, 0.0]]), ridge=1).probe_output.values.round(6).tolist()    # k (K + 1)^-1 y
    [0.5]
    """
    targets = _finite_rows("y", y)
    start, ridge = _of_the_kind_given("f0", f0, targets.shape), real("ridge", ridge, "a number, 0 or more", _at_least_0)
    when, rest = _when(t, steps, lr), targets - start
    if isinstance(K, LinearOperator):
        if not when.regression:
            raise FinwidthError("with a KernelOperator t is infinite; form the kernel (ntk) for other times, or steps")
        a = _solved(K, rest, ridge)
        f, test = _by_products("K", K, a), None if K_test is None else _by_products("K_test", K_test, a)
    else:
        kernel = _FixedKernel.of(K, targets)
        probes = None if K_test is None else kernel.of_probes("K_test", K_test)
        _afford_times(when, targets, 0 if probes is None else len(probes))
        a, f = kernel.trained(rest, when, ridge)
        test = None if probes is None else kernel.at(probes, a)
    if test is not None:
        test = test + _of_the_kind_given("f0_test", f0_test, test.shape[1:])
    return _flow_at(when, targets, {"output": start + f, "probe_output": test, "coefficients": a}, ridge)


def _afford_times(when: When, targets: FloatArray, probes: int) -> None:
    """Refuse more times than fit the memory: at each are what the filters need, and outputs at all inputs."""
    per_time = 6 * targets.size + 3 * probes * targets[0].size
    told = f"the outputs at {amount(len(when.values))} times"
    afford(8 * per_time * len(when.values), told, "give fewer times, or parts of them one after the other")


def _at_least_0(value: float) -> bool:
    return 0 <= value < math.inf


def _solved(K: LinearOperator, rest: FloatArray, ridge: float) -> FloatArray:
    """(K + ridge)^-1 of targets, in whose order K has its rows, by conjugate gradients; (1, *shape)."""
    if K.shape[0] != K.shape[1] or rest.size % K.shape[0] or K.shape[0] not in {len(rest), rest.size}:
        raise FinwidthError(f"K has shape {K.shape}, and y {rest.shape}; give the kernel of the training inputs")
    columns = rest.reshape(K.shape[0], -1).astype(K.dtype)
    tol = max(_TOL, float(np.finfo(K.dtype).eps ** 0.75))
    a = [conjugate_gradients(K, ridge, b, tol, _PRODUCTS) for b in columns.T]
    return np.stack(a, axis=1).reshape(1, *rest.shape).astype(np.float64)


def _by_products(name: str, K: object, a: FloatArray) -> FloatArray:
    """K a of an operator, (1, *shape)."""
    M = getattr(K, "shape", (0, 0))[1]
    if not isinstance(K, LinearOperator) or M not in {a.shape[1], a[0].size}:
        raise FinwidthError(
            f"{name} is {shown(K)}; give a KernelOperator with the training inputs as its x2, as K is one"
        )
    found: FloatArray = K @ a.reshape(M, -1).astype(K.dtype)
    return found.astype(np.float64).reshape(1, -1, *a.shape[2:])


@dataclass(frozen=True)
class When:
    """Times of gradient flow, or numbers of steps of gradient descent at a rate."""

    values: FloatArray
    lr: float | None
    single: bool

    @classmethod
    def of(cls, name: str, given: npt.ArrayLike, lr: float | None) -> When:
        """Numbers of 0 or more, one or several."""
        values = numbers(given)
        if values is None or values.ndim > 1 or not values.size or not (values >= 0).all():
            raise FinwidthError(f"{name} is {shown(given)}; give numbers of 0 or more, one or a list")
        return cls(np.atleast_1d(values), lr, values.ndim == 0)

    @property
    def regression(self) -> bool:
        """Whether all are infinite."""
        return bool(np.isinf(self.values).all())

    def filters(self, z: FloatArray) -> FloatArray:
        """The values of phi at every eigenvalue z >= 0 at every time, shape (times, *z).

        It is 0 for z = 0: what K does not see changes no output, and grows with time.
        """
        n = self.values.reshape(-1, *[1] * z.ndim)
        safe = np.where(z > 0, z, 1.0)
        with np.errstate(over="ignore", invalid="ignore"):  # what diverges is seen in the coefficients
            moved = -np.expm1(-safe * n) if self.lr is None else _descended(self.lr * safe, n)
        return np.where(z > 0, moved / safe, 0.0)


def _descended(hz: FloatArray, n: FloatArray) -> FloatArray:
    """1 - (1 - hz)^n, to full precision where hz is small."""
    slow = np.clip(hz, None, 0.5)
    return np.where(hz <= 0.5, -np.expm1(n * np.log1p(-slow)), 1 - (1 - hz) ** n)


def _when(t: npt.ArrayLike | None, steps: npt.ArrayLike | None, lr: object) -> When:
    if steps is None and lr is None:
        return When.of("t", math.inf if t is None else t, None)
    if steps is None or lr is None or t is not None:
        raise FinwidthError("give times t, or steps and lr together")
    rate = real("lr", lr, "a positive number", lambda each: 0 < each < math.inf)
    found = When.of("steps", steps, rate)
    if not ((found.values <= 2**53) & (found.values == np.floor(found.values))).all():  # more are no whole numbers here
        raise FinwidthError(f"steps is {shown(steps)}; give whole numbers from 0 to 2^53, or times t")
    return found


def _finite_rows(name: str, values: npt.ArrayLike) -> FloatArray:
    wanted = "finite numbers of shape (N,) or (N, O)"
    found = array(name, values, wanted)
    if found.ndim not in {1, 2} or not found.size:
        raise FinwidthError(f"{name} has shape {found.shape}; give {wanted}")
    return found


def _of_the_kind_given(name: str, values: npt.ArrayLike, shape: tuple[int, ...]) -> FloatArray:
    """Numbers of a shape, or one number for all; a column of one output is as good as a row."""
    found = array(name, values, "finite numbers, or one")
    if found.ndim and found.size == math.prod(shape) and 1 in {*found.shape[1:], *shape[1:]}:
        found = found.reshape(shape)
    if found.ndim and found.shape != shape:
        raise FinwidthError(f"{name} has shape {found.shape}; give shape {shape}, or one number")
    return np.broadcast_to(found, shape)


@dataclass(frozen=True)
class _FixedKernel:
    """A kernel as a stack of g matrices, each of which acts on some columns of the targets.

    One for every output (``kind`` 2, as K has dimensions), one for each output (3), or one of all pairs of them (4).
    ``cut`` is the share of the largest eigenvalue that is rounding; ``shape`` is that of the targets.
    """

    K: FloatArray
    kind: int
    cut: float
    shape: tuple[int, ...]

    @classmethod
    def of(cls, K: npt.ArrayLike, targets: FloatArray) -> _FixedKernel:
        """The kernel of the training inputs, checked against the targets."""
        given = _matrix_entries("K", K, copies=4)
        N, o = len(targets), targets[0].size
        allowed = [(N, N), (N, N, o), (N, N, o, o)]
        if given.shape not in allowed:
            raise FinwidthError(
                f"K has shape {given.shape}, and y {targets.shape}; give K of shape {allowed[0]}, "
                f"{allowed[1]} or {allowed[2]}"
            )
        K = _stacked(given)
        rounding = float(np.finfo(given.dtype).eps) if given.dtype.kind == "f" else float(np.finfo(float).eps)
        if not np.abs(K - np.swapaxes(K, 1, 2)).max() <= rounding**0.5 * np.abs(K).max():
            raise FinwidthError("K is not symmetric; give the kernel of the training inputs with themselves")
        return cls(K, given.ndim, K.shape[1] * rounding, targets.shape)

    def trained(self, rest: FloatArray, when: When, ridge: float) -> tuple[FloatArray, FloatArray]:
        """The coefficients a at every time, and K a; both (times, *shape)."""
        if self.kind == 4:
            columns = rest.reshape(1, -1, 1)
        else:
            columns = rest.reshape(1, len(rest), -1)
            columns = columns if self.kind == 2 else columns.transpose(2, 1, 0)
        a, f = [], []
        for K, column in zip(self.K, columns, strict=True):
            found, vectors = eigh(K)
            values = self._positive(found)
            filtered = when.filters(values + ridge)[..., None] * (vectors.T @ column)
            with np.errstate(over="ignore", invalid="ignore"):
                a.append(vectors @ filtered)
                f.append(vectors @ (values[:, None] * filtered))
        if not np.isfinite(a).all():
            raise FinwidthError(
                "gradient descent at this rate diverges past a double; give fewer steps, or a smaller lr"
            )
        return self._shaped(np.stack(a, axis=1)), self._shaped(np.stack(f, axis=1))

    def of_probes(self, name: str, K_test: npt.ArrayLike) -> npt.NDArray[Any]:
        """The kernel of test inputs with the training inputs, checked."""
        given, N, o = _matrix_entries(name, K_test, copies=2), self.shape[0], math.prod(self.shape[1:])
        wanted = (N, o, o)[: self.kind - 1]
        if given.ndim != self.kind or given.shape[1:] != wanted or not len(given):
            raise FinwidthError(
                f"{name} has shape {given.shape}; give shape (P, {', '.join(map(str, wanted))}), as K is"
            )
        return given

    def at(self, probes: npt.NDArray[Any], a: FloatArray) -> FloatArray:
        """K_test a at every time, (times, P[, O])."""
        N = self.shape[0]
        if self.kind == 4:
            columns = a.reshape(len(a), 1, -1, 1)
        else:
            columns = a.reshape(len(a), 1, N, -1)
            columns = columns if self.kind == 2 else columns.transpose(0, 3, 2, 1)
        return self._shaped(_stacked(probes) @ columns)

    def _shaped(self, found: FloatArray) -> FloatArray:
        """Of shape (times, g, rows, columns), in that of the targets."""
        found = found[:, 0] if self.kind != 3 else found[..., 0].swapaxes(1, 2)
        return found.reshape(len(found), -1, *self.shape[1:])

    def _positive(self, values: FloatArray) -> FloatArray:
        """Eigenvalues without rounding: what is as small as that is 0."""
        largest = max(float(np.abs(values).max()), np.finfo(float).tiny)
        if values[0] < -100 * self.cut * largest:
            raise FinwidthError(
                f"K has a negative eigenvalue, {values[0]:.3g}, beside the largest, {values[-1]:.3g}; it is no kernel"
            )
        return np.where(values > self.cut * largest, values, 0.0)


def _matrix_entries(name: str, K: npt.ArrayLike, copies: int) -> npt.NDArray[Any]:
    """A kernel's numbers, finite, in their own precision, if so many copies in doubles fit the memory."""
    found = real_array(K)
    if found is not None:
        afford(8 * copies * found.size, f"work with {name}, {amount(found.size)} numbers,", "give fewer inputs")
    if found is None or not found.size or not np.isfinite(found).all():
        raise FinwidthError(f"{name} is {shown(K)}; give a kernel, finite numbers, or a KernelOperator")
    return found


def _stacked(K: npt.NDArray[Any]) -> FloatArray:
    """(P, N), (P, N, O) or (P, N, O, O) as matrices (g, rows, columns)."""
    found = K.astype(np.float64)
    if found.ndim == 2:
        return found[None]
    if found.ndim == 3:
        return np.moveaxis(found, 2, 0)
    P, N, o, _ = found.shape
    return found.swapaxes(1, 2).reshape(1, P * o, N * o)


def _flow_at(when: When, targets: FloatArray, found: dict[str, FloatArray | None], ridge: float) -> xr.Dataset:
    """The dataset of values over (times, ...)."""
    import xarray as xr

    single = targets.ndim == 1
    places = {"output": "input", "probe_output": "probe", "coefficients": "input"}
    meanings = {
        "output": "network output at the training inputs",
        "probe_output": "network output at the test inputs",
        "coefficients": "a of f = f_0 + K a",
    }
    axis = "time" if when.lr is None else "step"
    first, cut = ((), 0) if when.single else ((axis,), slice(None))
    variables = {}
    for name, values in found.items():
        if values is not None:
            dims = (*first, places[name], *([] if single else ["component"]))
            variables[name] = (dims, values[cut], {"long_name": meanings[name], "units": "1"})
    output = found["output"]
    assert output is not None
    loss = ((output - targets) ** 2).reshape(len(output), -1).sum(axis=1) / 2
    variables["loss"] = (first, loss[cut], {"long_name": "sum of (f - y)^2 / 2 over inputs and outputs", "units": "1"})
    values = when.values if when.lr is None else when.values.astype(int)
    attrs = {"finwidth_version": version("finwidth"), "method": "training at a fixed kernel", "ridge": ridge}
    told = {} if when.lr is None else {"lr": when.lr}
    return xr.Dataset(variables, coords={axis: values[0] if when.single else (axis, values)}, attrs=attrs | told)

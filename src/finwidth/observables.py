r"""Observables of a kernel matrix that changes: one definition of each, whichever route computed the kernel.

K is the kernel on N inputs, K_0 the same at initialization, G the Gram matrix of the targets, |.| the Frobenius norm
and H = 1 - 11^T/N the centring::

    drift              |K - K_0| / |K_0|
    rotation           1 - <K, K_0> / (|K| |K_0|)       the kernel distance of Fort et al. (2020), blind to scale
    alignment          <K, G> / (|K| |G|)               Cristianini et al. (2001)
    centred_alignment  the same of HKH and HGH          Cortes, Mohri and Rostamizadeh (2012)
    effective_rank     exp(-sum p log p), p the eigenvalues over their sum      Roy and Vetterli (2007)

With several outputs K is the sum over outputs, or the kernel of one.  A constant added to every entry of K, as the
output bias does, moves the plain alignment and leaves the centred one.

Undefined values are NaN: all of the above for a network that is dead on the inputs, the centred alignment for a
constant kernel.  Averages over networks leave them out, and say how many.

Targets are read in one way (`targets_are`): whole numbers, one an input, beside a network of two or more outputs are
classes, and G is 1 within a class and 0 between two; all other targets are numbers Y, and G = Y Y^T.  So one-hot
numbers and classes are the same, and one output is measured against the numbers that it learns, 1 as well as 1.0.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from finwidth import arguments
from finwidth.errors import FinwidthError, shown
from finwidth.networks.laws import FloatArray
from finwidth.quantities import Quantity

OBSERVABLES = {
    each.name: each
    for each in (
        Quantity("drift", "Frobenius distance of the kernel from initialization, over the size of the initial one"),
        Quantity("rotation", "one minus the cosine between the kernel and the initial one"),
        Quantity("alignment", "cosine between the kernel and the Gram matrix of the targets"),
        Quantity("centred_alignment", "the same, both matrices centred"),
        Quantity("trace", "trace of the kernel"),
        Quantity("effective_rank", "exponential of the entropy of the eigenvalues"),
        Quantity("eigenvalues", "eigenvalues of the kernel, largest first"),
        Quantity("diagonal", "K(x,x) of each input"),
        Quantity("K", "neural tangent kernel, of one output or summed over the outputs"),
        Quantity("initial_K", "the same kernel at initialization"),
        Quantity("cv", "standard deviation of K(x,x) over networks, over its mean; the mean over inputs"),
    )
}
LOSS = Quantity("loss", "loss on all training inputs, a sum")
SHAPES = {"eigenvalues": ("eigenvalue",), "diagonal": ("input",), "K": ("input", "input_")}  # others are one number
_ROUNDING = 16 * np.finfo(float).eps  # of a matrix: what is smaller of its centred part is not there


def _matrices(name: str, K: npt.ArrayLike) -> FloatArray:
    """A stack of square matrices."""
    wanted = "finite numbers of shape (..., N, N), N at least 1"
    found = arguments.array(name, K, wanted, copy=False)
    if found.ndim < 2 or found.shape[-1] != found.shape[-2] or not found.shape[-1]:
        raise FinwidthError(f"{name} has shape {found.shape}; give {wanted}")
    return found


def _kernel_pair(K: npt.ArrayLike, K_0: npt.ArrayLike) -> tuple[FloatArray, FloatArray]:
    """A stack of kernels, and the initial ones."""
    one, other = _matrices("K", K), _matrices("K_0", K_0)
    try:
        np.broadcast_shapes(one.shape, other.shape)
    except ValueError:
        other = other[..., :0]
    if other.shape[-2:] != one.shape[-2:]:
        raise FinwidthError(f"K has shape {one.shape}, and K_0 is of other matrices; give kernels of the same inputs")
    return one, other


def _frobenius_inner(one: FloatArray, other: FloatArray) -> FloatArray:
    """Frobenius inner products of stacks of matrices, shape (...)."""
    found: FloatArray = np.einsum("...ab,...ab->...", one, other)
    return found


def _frobenius_norm(K: FloatArray) -> FloatArray:
    """Frobenius norms of a stack of matrices, also where squares of their entries leave the range of doubles.

    >>> import numpy as np
    >>> from finwidth.observables import _frobenius_norm
    >>> _frobenius_norm(np.array([[[3e-200, 4e-200]], [[3e200, 4e200]]]))
    array([5.e-200, 5.e+200])
    """
    largest = np.abs(K).max(axis=(-2, -1))
    scaled = K / np.where(largest > 0, largest, 1)[..., None, None]
    found: FloatArray = largest * np.sqrt(_frobenius_inner(scaled, scaled))
    return found


def _normalized(K: FloatArray) -> FloatArray:
    """Each matrix over its norm; NaN where it is zero."""
    with np.errstate(divide="ignore", invalid="ignore"):  # NumPy 1.26 calls 0/0 a division by zero
        scaled = K / np.abs(K).max(axis=(-2, -1), keepdims=True)  # so that the norm is neither tiny nor infinite
        found: FloatArray = scaled / _frobenius_norm(scaled)[..., None, None]
    return found


def _cosine(one: FloatArray, other: FloatArray) -> FloatArray:
    """Inner product over the product of the norms; NaN where a matrix is zero."""
    return _frobenius_inner(_normalized(one), _normalized(other))


def _centred(K: FloatArray) -> FloatArray:
    """HKH of a stack of matrices; zero where nothing but rounding is left, as of a constant one."""
    rows = K - K.mean(axis=-1, keepdims=True)
    found = rows - rows.mean(axis=-2, keepdims=True)
    kept: FloatArray = np.where((_frobenius_norm(found) > _ROUNDING * _frobenius_norm(K))[..., None, None], found, 0.0)
    return kept


def spectrum(K: FloatArray) -> FloatArray:
    """Eigenvalues of a stack of kernels, the largest first."""
    found: FloatArray = np.linalg.eigvalsh(_matrices("K", K))[..., ::-1].astype(np.float64)
    return found


def effective_rank(eigenvalues: FloatArray) -> FloatArray:
    """Between 1 and N, for eigenvalues in the last dimension; negative ones (rounding) count as 0, NaN if all do.

    >>> import numpy as np
    >>> from finwidth.observables import effective_rank
    >>> float(effective_rank(np.array([2.0, 2.0, 0.0])).round(9))
    2.0
    """
    wanted = "finite numbers, with the eigenvalues in the last dimension"
    positive = np.maximum(arguments.array("eigenvalues", eigenvalues, wanted), 0)
    if not positive.ndim or not positive.shape[-1]:
        raise FinwidthError(f"eigenvalues has shape {positive.shape}; give {wanted}")
    with np.errstate(invalid="ignore"):
        scaled = positive / positive.max(axis=-1, keepdims=True)
        share = scaled / scaled.sum(axis=-1, keepdims=True)
    logs = np.log(share, out=np.zeros_like(share), where=share > 0)
    found: FloatArray = np.exp(-(share * logs).sum(axis=-1))
    return found


def drift(K: FloatArray, K_0: FloatArray) -> FloatArray:
    """|K - K_0| / |K_0|; NaN where K_0 is zero."""
    K, K_0 = _kernel_pair(K, K_0)
    with np.errstate(invalid="ignore", divide="ignore"):
        found: FloatArray = np.where(_frobenius_norm(K_0) > 0, _frobenius_norm(K - K_0) / _frobenius_norm(K_0), np.nan)
    return found


def rotation(K: FloatArray, K_0: FloatArray) -> FloatArray:
    """1 - cosine, as half the squared distance of the matrices over their norms: small ones keep their digits."""
    K, K_0 = _kernel_pair(K, K_0)
    apart = _normalized(K) - _normalized(K_0)
    return _frobenius_inner(apart, apart) / 2


def observe(K: FloatArray, K_0: FloatArray, G: FloatArray | None) -> dict[str, FloatArray]:
    """Everything of `OBSERVABLES` that one stack of kernels has, shape (..., N, N); G of `target_gram`, or None.

    Examples
    --------
    >>> import numpy as np
    >>> from finwidth.observables import observe
    >>> found = observe(2 * np.eye(3), np.eye(3), None)
    >>> float(found["drift"]), float(found["rotation"]), float(found["trace"])
    (1.0, 0.0, 6.0)
    """
    (K, K_0), G = _kernel_pair(K, K_0), None if G is None else _matrices("G", G)
    if G is not None and (G.ndim > 2 or G.shape != K.shape[-2:]):
        raise FinwidthError(f"G has shape {G.shape}, and the kernels {K.shape}; give target_gram of the same inputs")
    eigenvalues = spectrum(K)
    found = {
        "drift": drift(K, K_0),
        "rotation": rotation(K, K_0),
        "trace": np.trace(K, axis1=-2, axis2=-1),
        "effective_rank": effective_rank(eigenvalues),
        "eigenvalues": eigenvalues,
        "diagonal": np.diagonal(K, axis1=-2, axis2=-1).copy(),
    }
    if G is not None:
        found |= {"alignment": _cosine(K, G), "centred_alignment": _cosine(_centred(K), _centred(G))}
    return found


def spread(diagonals: FloatArray) -> FloatArray:
    """``cv``: over the first dimension, the networks, of K(x,x), averaged over the last, the inputs.

    An input at which every network's kernel is 0 has no spread, and does not count; NaN if none has one.

    >>> import numpy as np
    >>> from finwidth.observables import spread
    >>> round(float(spread(np.array([[1.0, 0.0], [3.0, 0.0]]))), 6)
    0.707107
    """
    wanted = "kernels K(x,x) of two networks or more, finite numbers of shape (networks, ..., inputs)"
    diagonals = arguments.array("diagonals", diagonals, wanted)
    if diagonals.ndim < 2 or len(diagonals) < 2:
        raise FinwidthError(f"diagonals has shape {diagonals.shape}; give {wanted}")
    mean = diagonals.mean(axis=0)
    with np.errstate(invalid="ignore", divide="ignore"):
        each = np.where(mean > 0, (diagonals / mean).std(axis=0, ddof=1), 0.0)
        found: FloatArray = each.sum(axis=-1) / (mean > 0).sum(axis=-1)
    return found


def targets_are(targets: npt.ArrayLike, outputs: int) -> str:
    """``"classes"`` or ``"numbers"``, for a network of so many outputs.

    >>> from finwidth.observables import targets_are
    >>> targets_are([0, 2, 1], outputs=3), targets_are([0.0, 2.0, 1.0], outputs=3), targets_are([1, -1, 1], outputs=1)
    ('classes', 'numbers', 'numbers')
    """
    array, outputs = arguments.real_array(targets), arguments.count("outputs", outputs)
    if array is None:
        raise FinwidthError(f"the targets are {shown(targets)}; give an array of numbers")
    one_each = array.ndim == 1 or (array.ndim == 2 and array.shape[1] == 1)
    return "classes" if array.dtype.kind in "biu" and one_each and outputs > 1 else "numbers"


def target_gram(targets: npt.ArrayLike, inputs: int, outputs: int) -> FloatArray:
    """G of the targets of so many inputs, shape (N, N), for a network of so many outputs.

    Classes of shape (N,): 1 in one class, 0 elsewhere.  Numbers of shape (N,) or (N, C): Y Y^T.

    Raises
    ------
    FinwidthError
        If the targets are not finite numbers, one row for each input.

    Examples
    --------
    >>> from finwidth.observables import target_gram
    >>> target_gram([7, 3, 7], inputs=3, outputs=10)
    array([[1., 0., 1.],
           [0., 1., 0.],
           [1., 0., 1.]])
    >>> target_gram([1, -1], inputs=2, outputs=1)
    array([[ 1., -1.],
           [-1.,  1.]])
    """
    inputs, outputs = arguments.count("inputs", inputs), arguments.count("outputs", outputs)
    wanted = f"finite numbers of shape ({inputs},) or ({inputs}, C)"
    Y = arguments.array("targets", targets, wanted)
    if not Y.ndim or len(Y) != inputs or not Y.size:
        raise FinwidthError(f"the targets have shape {Y.shape}; give {wanted}")
    Y = Y.reshape(inputs, -1)
    if targets_are(targets, outputs) == "classes":
        return np.equal(Y, Y.T).astype(np.float64)
    with np.errstate(over="ignore", invalid="ignore"):
        G: FloatArray = Y @ Y.T
    if not np.isfinite(G).all():
        raise FinwidthError("the products of the targets overflow a double; rescale them")
    return G


def check_varied(G: FloatArray) -> FloatArray:
    """G, unless its targets are all equal."""
    G = _matrices("G", G)
    if not _centred(G).any():
        raise FinwidthError(
            "the targets are all equal, so no kernel aligns with them; give a probe set on which they vary"
        )
    return G

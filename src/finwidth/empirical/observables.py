r"""What is read off a kernel matrix that moves: how far it has come, how it lies to the targets, its spectrum.

K is the kernel on N fixed inputs, K_0 the same at initialization, G the Gram matrix of the targets, |.| the Frobenius
norm and H = 1 - 11^T/N the centring::

    drift              |K - K_0| / |K_0|
    rotation           1 - <K, K_0> / (|K| |K_0|)       the kernel distance of Fort et al. (2020), blind to scale
    alignment          <K, G> / (|K| |G|)               Cristianini et al. (2001)
    centred_alignment  the same of HKH and HGH          Cortes, Mohri and Rostamizadeh (2012)
    effective_rank     exp(-sum p log p), p the eigenvalues over their sum      Roy and Vetterli (2007)

A constant added to every entry of K, as the output bias does, moves the plain alignment and leaves the centred one.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from finwidth.errors import FinwidthError
from finwidth.laws import FloatArray
from finwidth.quantities import Quantity

OBSERVABLES = {
    each.name: each
    for each in (
        Quantity("loss", "loss that the user gave"),
        Quantity("drift", "Frobenius distance of the kernel from initialization, over the size of the initial one"),
        Quantity("rotation", "one minus the cosine between the kernel and the initial one"),
        Quantity("alignment", "cosine between the kernel and the Gram matrix of the targets"),
        Quantity("centred_alignment", "the same, both matrices centred"),
        Quantity("trace", "trace of the kernel"),
        Quantity("effective_rank", "exponential of the entropy of the eigenvalues"),
        Quantity("eigenvalues", "eigenvalues of the kernel, largest first"),
        Quantity("diagonal", "K(x,x) of each input"),
        Quantity("K", "neural tangent kernel"),
        Quantity("initial_K", "neural tangent kernel at initialization"),
        Quantity("cv", "standard deviation of K(x,x) over members, over its mean; the mean over inputs"),
    )
}


def inner(one: FloatArray, other: FloatArray) -> FloatArray:
    """Frobenius inner products of stacks of matrices, shape (...)."""
    found: FloatArray = np.einsum("...ab,...ab->...", one, other)
    return found


def cosine(one: FloatArray, other: FloatArray) -> FloatArray:
    """Inner product over the product of the norms; 0 where a matrix is zero."""
    size = np.sqrt(inner(one, one) * inner(other, other))
    found: FloatArray = np.divide(inner(one, other), size, out=np.zeros_like(size), where=size > 0)
    return found


def centred(K: FloatArray) -> FloatArray:
    """HKH of a stack of matrices."""
    rows = K - K.mean(axis=-1, keepdims=True)
    found: FloatArray = rows - rows.mean(axis=-2, keepdims=True)
    return found


def effective_rank(eigenvalues: FloatArray) -> FloatArray:
    """Between 1 and N, for eigenvalues in the last dimension; what rounding makes negative counts as 0.

    >>> import numpy as np
    >>> from finwidth.empirical.observables import effective_rank
    >>> float(effective_rank(np.array([2.0, 2.0, 0.0])).round(9))
    2.0
    """
    positive = np.maximum(eigenvalues, 0)
    share = positive / np.maximum(positive.sum(axis=-1, keepdims=True), np.finfo(float).tiny)
    logs = np.log(share, out=np.zeros_like(share), where=share > 0)
    found: FloatArray = np.exp(-(share * logs).sum(axis=-1))
    return found


def observe(K: FloatArray, K_0: FloatArray, G: FloatArray | None) -> dict[str, FloatArray]:
    """Everything but the loss, of a stack of kernels, shape (..., N, N); G is what `target_gram` made, or None.

    Examples
    --------
    >>> import numpy as np
    >>> from finwidth.empirical.observables import observe
    >>> found = observe(2 * np.eye(3), np.eye(3), None)
    >>> float(found["drift"]), float(found["rotation"]), float(found["trace"])
    (1.0, 0.0, 6.0)
    """
    eigenvalues: FloatArray = np.linalg.eigvalsh(K)[..., ::-1].astype(np.float64)
    found = {
        "drift": np.sqrt(inner(K - K_0, K - K_0) / inner(K_0, K_0)),
        "rotation": np.maximum(1 - cosine(K, K_0), 0),
        "trace": np.trace(K, axis1=-2, axis2=-1),
        "effective_rank": effective_rank(eigenvalues),
        "eigenvalues": eigenvalues,
        "diagonal": np.diagonal(K, axis1=-2, axis2=-1).copy(),
    }
    if G is not None:
        found |= {"alignment": cosine(K, G), "centred_alignment": cosine(centred(K), centred(G))}
    return found


def spread(diagonals: FloatArray) -> FloatArray:
    """``cv`` over the first dimension, the members of an ensemble, of K(x,x) with the inputs in the last."""
    found: FloatArray = (diagonals.std(axis=0, ddof=1) / diagonals.mean(axis=0)).mean(axis=-1)
    return found


def target_gram(targets: npt.ArrayLike, inputs: int) -> FloatArray:
    """G of the targets, shape (N, N): Y Y^T of numbers, shape (N,) or (N, C); of whole numbers (N,), 1 in one class.

    Examples
    --------
    >>> from finwidth.empirical.observables import target_gram
    >>> target_gram([7, 3, 7], inputs=3)
    array([[1., 0., 1.],
           [0., 1., 0.],
           [1., 0., 1.]])
    """
    try:
        array: npt.NDArray[Any] = np.asarray(targets)
        classes = array.dtype.kind in "biu" and array.ndim == 1
        Y = array.astype(np.float64).reshape(len(array), -1)
    except (TypeError, ValueError):
        raise FinwidthError(
            f"the targets are not numbers; give an array of shape ({inputs},) or ({inputs}, C)"
        ) from None
    if len(Y) != inputs or not np.isfinite(Y).all():
        raise FinwidthError(
            f"the targets have shape {array.shape}; give finite numbers, one row for each of {inputs} inputs"
        )
    G: FloatArray = (array[:, None] == array[None, :]).astype(np.float64) if classes else Y @ Y.T
    if not centred(G).any():
        raise FinwidthError(
            "the targets are all equal, so no kernel aligns with them; give a probe set on which they vary"
        )
    return G

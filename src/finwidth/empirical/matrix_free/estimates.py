"""What is read off a symmetric matrix by its products with vectors: SciPy's iterations, and stochastic estimates.

The matrix K is M x M, real, positive semidefinite, and a `scipy.sparse.linalg.LinearOperator`.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from scipy.linalg import eigh_tridiagonal
from scipy.sparse import linalg

from finwidth.errors import FinwidthError
from finwidth.networks.laws import FloatArray
from finwidth.quantities import Estimate

_LOOK = 8  # steps of Lanczos between two looks at the bounds
_FEW = 8  # samples from which on their spread tells the error of the mean
_RESTARTS = 20  # of conjugate gradients
_EXHAUSTED = 1e-10  # of the largest: a Lanczos vector that is rounding


def counted(K: linalg.LinearOperator, most: int, told: Callable[[int], object]) -> linalg.LinearOperator:
    """K, whose products with vectors are counted: told after each, and refused past the most."""
    done = 0

    def product(V: FloatArray) -> FloatArray:
        nonlocal done
        done += V.shape[1] if V.ndim > 1 else 1
        if done > most:
            raise FinwidthError(
                f"not converged in {most} products with the kernel; give more products=, or a larger tol="
            )
        found: FloatArray = K @ V
        told(done)
        return found

    return linalg.LinearOperator(K.shape, matvec=product, matmat=product, dtype=K.dtype)


def top_eigenpairs(
    K: linalg.LinearOperator, k: int, tol: float, rng: np.random.Generator
) -> tuple[FloatArray, FloatArray, FloatArray]:
    """The k largest eigenvalues, largest first, their vectors (M, k), and the lengths of K q - lambda q.

    Implicitly restarted Lanczos (ARPACK).  An eigenvalue of K is as close to each as its residual.
    """
    start = rng.standard_normal(K.shape[0]).astype(K.dtype)
    try:
        values, vectors = linalg.eigsh(K, k, which="LA", v0=start, tol=tol)
    except linalg.ArpackError as error:
        raise FinwidthError(f"the eigenvalues do not converge ({error}); give a larger tol=, or a smaller k") from None
    values, vectors = values[::-1], vectors[:, ::-1]
    residuals = np.linalg.norm(K @ vectors - vectors * values, axis=0)
    return values.astype(np.float64), vectors, residuals.astype(np.float64)


def conjugate_gradients(K: linalg.LinearOperator, ridge: float, b: FloatArray, tol: float, most: int) -> FloatArray:
    """Find x with |(K + ridge) x - b| <= tol |b|, by conjugate gradients that begin anew from the residual.

    The residual that CG itself follows drifts from the true one; this one is computed of the answer.

    Raises
    ------
    FinwidthError
        If the residual is larger after so many products, or falls no more.
    """
    done = 0

    def shifted(v: FloatArray) -> FloatArray:
        nonlocal done
        if not np.isfinite(v).all():
            raise FinwidthError("conjugate gradients do not converge: the kernel is 0 where y is not; give a ridge=")
        done += 1
        found: FloatArray = K @ v + ridge * v
        return found

    A = linalg.LinearOperator(K.shape, matvec=shifted, dtype=K.dtype)
    length = float(np.linalg.norm(b))
    x, residual, reached = np.zeros_like(b), b, 1.0 if length else 0.0
    for _ in range(_RESTARTS):
        if reached <= tol or done >= most:
            break
        with np.errstate(divide="ignore", invalid="ignore", over="ignore"):  # what comes of it is looked at
            step, _ = linalg.cg(A, residual, atol=0.5 * tol * length, maxiter=min(most - done, 10 * len(b)))
        rest = b - shifted(x + step)
        left = float(np.linalg.norm(rest)) / length
        if not left < reached:  # also where it is NaN
            break
        x, residual, reached = x + step, rest, left
    if not reached <= tol:
        raise FinwidthError(
            f"conjugate gradients do not converge: after {done} products the residual is {reached:.2g} of y, and tol "
            f"is {tol:.2g}; give a larger ridge= or tol=, more products=, or module.double()"
        )
    return x


# ---- stochastic estimates


def rademacher(M: int, m: int, rng: np.random.Generator) -> FloatArray:
    """Independent signs, shape (M, m)."""
    return rng.choice([-1.0, 1.0], (M, m))


def hutchinson(K: linalg.LinearOperator, m: int, rng: np.random.Generator) -> Estimate:
    """The trace as the mean of z^T K z over m vectors of signs (Hutchinson 1990)."""
    Z = rademacher(K.shape[0], m, rng)
    return mean_estimate(np.einsum("am,am->m", Z, K @ Z))


def hutch_plus_plus(K: linalg.LinearOperator, m: int, rng: np.random.Generator) -> Estimate:
    """The trace, exactly on the range of K S, S a third of m products, and Hutchinson's way on the rest.

    Meyer, Musco, Musco and Woodruff, Hutch++: Optimal stochastic trace estimation, SOSA 2021, algorithm 1. With Q an
    orthonormal basis of that range, tr K = tr Q^T K Q + tr (1 - QQ^T) K (1 - QQ^T), whatever Q is.
    """
    third = m // 3
    Q, _ = np.linalg.qr(K @ rademacher(K.shape[0], third, rng))
    Z = rademacher(K.shape[0], m - 2 * third, rng)
    Z = Z - Q @ (Q.T @ Z)
    return mean_estimate(np.einsum("am,am->m", Z, K @ Z), float(np.einsum("am,am->", Q, K @ Q)))


def mean_estimate(samples: FloatArray, known: float = 0.0) -> Estimate:
    """A known part and the mean of samples of the rest."""
    n = len(samples)
    se = float(samples.std(ddof=1)) / math.sqrt(n) if n > 1 else math.inf
    trust = n >= _FEW
    verdict = f"{n} independent samples" if trust else f"{n} samples do not tell their error; {_FEW} do"
    return Estimate(known + float(samples.mean()), se, n, float(n), trust, verdict)


def log_determinant(
    K: linalg.LinearOperator, ridge: float, probes: int, steps: int, rng: np.random.Generator
) -> Estimate:
    """The logarithm of det (K + ridge) by stochastic Lanczos quadrature (Ubaru, Chen and Saad 2017, SIMAX 38).

    The mean over vectors of signs z of z^T log(K + ridge) z, which Lanczos bounds on both sides (`LogQuadrature`).
    Steps are made until the bounds are a tenth of the standard error apart, or ``steps`` are done.
    """
    M = K.shape[0]
    low = high = np.zeros(probes)
    lanczos = Lanczos(K, rademacher(M, probes, rng))
    while len(lanczos.alpha) < min(steps, M):
        lanczos.step()
        made = len(lanczos.alpha)
        if made % _LOOK and made < min(steps, M):
            continue
        rules = [LogQuadrature(*lanczos.tridiagonal(c), ridge) for c in range(probes)]
        low, high = M * np.array([each.lower for each in rules]), M * np.array([each.upper for each in rules])
        found = mean_estimate((low + high) / 2)
        if float((high - low).mean()) <= 0.1 * found.se:
            break
    gap = float((high - low).mean()) / 2
    told = f"{found.verdict}; quadrature is within {gap:.2g} after {made} steps"
    if gap > found.se and gap > 1e-12 * abs(found.value):
        return Estimate(found.value, found.se + gap, probes, probes, False, f"{told}: give more steps=")
    return Estimate(found.value, found.se + gap, probes, probes, found.trust, told)


class Lanczos:
    """Lanczos' recursion from several vectors at once, each with its own basis, reorthogonalised.

    After n steps K is T in the basis of a vector: ``alpha`` are n diagonals of T, ``beta`` what is beside them and, the
    last, what leads out of the basis; each of shape (vectors,).
    """

    def __init__(self, K: linalg.LinearOperator, Z: FloatArray) -> None:
        self.K, self.basis = K, [Z / np.linalg.norm(Z, axis=0)]
        self.alpha: list[FloatArray] = []
        self.beta: list[FloatArray] = []

    def step(self) -> None:
        """One product with every vector."""
        q = self.basis[-1]
        v = (self.K @ q).astype(np.float64)
        self.alpha.append(np.einsum("ac,ac->c", q, v))
        for _ in range(2):  # twice is enough (Giraud, Langou and Rozloznik 2005)
            for each in self.basis:
                v -= each * np.einsum("ac,ac->c", each, v)
        beta = np.linalg.norm(v, axis=0)
        beta[beta <= _EXHAUSTED * np.max(self.alpha, axis=0)] = 0  # nothing is left that this vector reaches
        self.beta.append(beta)
        self.basis.append(np.divide(v, beta, out=np.zeros_like(v), where=beta > 0))

    def tridiagonal(self, c: int) -> tuple[FloatArray, FloatArray]:
        """T of one vector, up to where its basis ends: diagonal, and off-diagonal with the step out of it."""
        alpha, beta = np.array(self.alpha)[:, c], np.array(self.beta)[:, c]
        ends = np.flatnonzero(beta == 0)
        n = int(ends[0]) + 1 if len(ends) else len(beta)
        return alpha[:n], beta[:n]


@dataclass(frozen=True)
class LogQuadrature:
    """Bounds of z^T log(K + ridge) z for a unit vector z, from T of Lanczos.

    All even derivatives of the logarithm are negative and all odd ones positive, so that Gauss' rule is an upper bound,
    and that of Gauss and Radau with a node below the spectrum a lower one (Golub and Meurant, Matrices, Moments and
    Quadrature, 2010, theorems 6.3 and 6.4). The node is -ridge/2, since K has no negative eigenvalues.
    """

    alpha: FloatArray
    beta: FloatArray
    ridge: float

    @property
    def upper(self) -> float:
        """By Gauss' rule."""
        return self._rule(self.alpha, self.beta[:-1])

    @property
    def lower(self) -> float:
        """By Gauss and Radau's; Gauss' is exact where the basis cannot grow."""
        last = self.beta[-1]
        if last == 0:
            return self.upper
        node = -self.ridge / 2
        pivot = self.alpha[0] - node  # the last of T - node is 1 / (its inverse's last entry)
        for diagonal, beside in zip(self.alpha[1:], self.beta[:-1], strict=True):
            pivot = diagonal - node - beside**2 / pivot
        shift = last**2 / pivot
        return self._rule(np.append(self.alpha, node + shift), self.beta)

    def _rule(self, diagonal: FloatArray, beside: FloatArray) -> float:
        nodes, vectors = eigh_tridiagonal(diagonal, beside)
        if nodes[0] < -0.6 * self.ridge:
            raise FinwidthError(
                f"by rounding the kernel has an eigenvalue of {nodes[0]:.2g}, and ridge is {self.ridge:.2g}; give a "
                "larger one, or module.double()"
            )
        return float((vectors[0] ** 2 * np.log(np.maximum(nodes, -self.ridge / 2) + self.ridge)).sum())

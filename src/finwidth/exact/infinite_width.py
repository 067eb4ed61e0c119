r"""The kernel matrix of infinitely wide networks, for comparison: the limit that finite widths deviate from.

With Q_i the covariance of the pre-activations of layer i at the inputs, and E over a Gaussian pair of that covariance::

    Q_1 = v_1 X X^T + b_1,   Q_{i+1} = v_{i+1} n_i E[phi phi](Q_i) + b_{i+1}
    G_d = 1,   G_i = v_{i+1} n_i E[phi' phi'](Q_i) * G_{i+1}
    K = sum_i (c_i |x^(i-1)|^2 + e_i) * G_i,   |x^(i)|^2 = n_i E[phi phi](Q_i)

(Jacot, Gabriel, Hongler 2018, written for any parameterization).  For two slopes the expectations are the arc-cosine
kernels of Cho and Saul; for smooth activations they are integrated numerically.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from finwidth.activations import Activation, SmoothActivation
from finwidth.errors import FinwidthError
from finwidth.laws import FloatArray
from finwidth.network import MLP, check_inputs

# The trapezoidal rule, which converges faster than any power for functions analytic about the real line: with nodes 0.1
# apart and the poles of tanh(s y) at a distance of pi/(2 s), its error is exp(-10 pi^2/s), 10^-14 at a deviation s = 3.
_REACH, _NODES = 10.0, 201


def infinite_width_gram(net: MLP, X: npt.ArrayLike) -> FloatArray:
    """K at several inputs of the network with the same gains and infinitely wide hidden layers, shape (m, m).

    Parameters
    ----------
    net
        Any `MLP`; its hidden widths enter only where the parameterization puts them into learning rates.
    X
        Inputs, shape (m, n_0).

    Raises
    ------
    FinwidthError
        If an argument is not allowed, or the kernel overflows a double.

    Examples
    --------
    >>> import finwidth
    >>> finwidth.infinite_width_gram(finwidth.MLP([2, 3, 3, 1], bias="none"), [[1, 0], [0, 1]]).round(4)
    array([[1.5   , 0.3429],
           [0.3429, 1.5   ]])
    """
    inputs, layers = check_inputs(net, X), net.layers
    with np.errstate(over="ignore", invalid="ignore"):
        squares, slopes = [inputs @ inputs.T], []
        for layer in layers[:-1]:
            Q = float(layer.weight_variance) * squares[-1] + float(layer.bias_variance)
            values, gates = _pair_means(net.activation, Q)
            squares.append(layer.fan_out * values)
            slopes.append(layer.fan_out * gates)
        K, G = np.zeros_like(squares[0]), np.ones_like(squares[0])
        for i in reversed(range(net.depth)):
            K += (float(layers[i].weight_multiplier) * squares[i] + float(layers[i].bias_multiplier)) * G
            if i:
                G = float(layers[i].weight_variance) * slopes[i - 1] * G
    if not np.isfinite(K).all():
        raise FinwidthError("the kernel overflows a double; rescale the inputs or the gains")
    return K


def _pair_means(phi: Activation, Q: FloatArray) -> tuple[FloatArray, FloatArray]:
    """E[phi(u) phi(v)] and E[phi'(u) phi'(v)] for Gaussian pairs: all pairs of a vector with covariance Q, (m, m)."""
    deviations = np.sqrt(np.diagonal(Q))
    scale = np.outer(deviations, deviations)
    cosine = np.clip(np.divide(Q, scale, out=np.zeros_like(Q), where=scale > 0), -1, 1)
    np.fill_diagonal(cosine, 1)
    if isinstance(phi, SmoothActivation):
        return _integrated(phi.value, deviations, cosine), _integrated(phi.derivative, deviations, cosine)
    a, b = float(phi.positive), float(phi.negative)
    angle = np.arccos(cosine)
    # Both on the same side of zero, or on opposite sides: the supplement of the angle.
    values = scale * ((a * a + b * b) * _rectified(angle) - 2 * a * b * _rectified(np.pi - angle))
    gates = ((a * a + b * b) * (np.pi - angle) + 2 * a * b * angle) / (2 * np.pi)
    alone = np.where(deviations > 0, (a + b) / 2, float(phi.at_zero))  # a gate at y = 0 is phi'(0), always
    return values, np.where(scale > 0, gates, np.outer(alone, alone))


def _rectified(angle: FloatArray) -> FloatArray:
    """E[u_+ v_+] for unit Gaussians at this angle, the arc-cosine kernel of degree 1 over 2."""
    kernel: FloatArray = (np.sin(angle) + (np.pi - angle) * np.cos(angle)) / (2 * np.pi)
    return kernel


def _integrated(function: Callable[[FloatArray], FloatArray], deviations: FloatArray, cosine: FloatArray) -> FloatArray:
    """E[f(u) f(v)], a pair of inputs at a time."""
    nodes = np.linspace(-_REACH, _REACH, _NODES)
    weights = np.exp(-0.5 * nodes * nodes)
    weights /= weights.sum()
    first = [function(deviation * nodes) * weights for deviation in deviations]
    found = np.empty_like(cosine)
    for a, row in enumerate(first):
        for b in range(a, len(deviations)):
            sine = np.sqrt(1 - cosine[a, b] ** 2)
            second = function(deviations[b] * (cosine[a, b] * nodes[:, None] + sine * nodes)) @ weights
            found[a, b] = found[b, a] = row @ second
    return found

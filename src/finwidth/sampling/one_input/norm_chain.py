r"""One input: the joint law of (N, K_w, K_b, K, Delta K) by O(d) scalars per draw, with no network.

For Gaussian weights and ReLU the kernel on the diagonal is a function of 3 to 5 random numbers a layer,
whatever the width (docs/theory/norm-chain.md)::

    R_i = |x^(i)|^2,  S_i = |dN/dy^(i)|^2,  m_i ~ Binomial(n_i, 1/2) open neurons,  v_i the weight variance
    forward   chi_i ~ chi2(m_i),        R_i = v_i chi_i R_{i-1},   N = sqrt(v_d R_{d-1}) z
    backward  S_d = 1,  Q_i = N^2/R_i,  S_i = Q_i + v_{i+1} S_{i+1} chi2(m_i - 1)
    kernel    K_w = sum_i kappa_i,  kappa_i = c_i R_{i-1} S_i,   K_b = sum_i e_i S_i
    update    with zeta_i = Q_i/S_i, w_i = sum_{j<=i} (kappa_j + e_j S_j), A_0 = P_0 = 0, t_i = P_{i-1}/chi_i,
              D_i = w_i - A_{i-1},  A_i = A_{i-1} + zeta_i D_i + sqrt(t_i (1 - zeta_i)) xi_i,
              P_i = zeta_i (sqrt(1 - zeta_i) D_i - sqrt(t_i) xi_i)^2 + t_i chi2(m_i - 2)
              Delta K / lambda = -4 sum_i kappa_i A_{i-1}      (target N* = 0)

A_i is N (x^(i) . dx^(i)) / R_i for the tangent dx^(i) along the gradient, P_i what of it is orthogonal to x^(i).
Other slopes and random biases take the longer chain of `two_slope_chain`.
No divisor is zero unless the network is dead, and no subtraction loses digits.
"""

from __future__ import annotations

import threading
from dataclasses import dataclass, field
from itertools import groupby

import numpy as np
import numpy.typing as npt

from finwidth.networks.laws import FloatArray
from finwidth.networks.mlp import MLP
from finwidth.sampling.random.variates import Variates

# Above this width fewer than two open neurons, 129 / 2^128, are rarer than what the generators can resolve.
_NARROW = 128


def plain_relu(net: MLP) -> bool:
    """Whether the shorter chain of this module applies; if not, the chain of `two_slope_chain` does."""
    return net.activation.positive == 1 and net.activation.negative == 0 and not net.random_bias and net.norm is None


@dataclass
class Workspace:
    """Arrays that some draws are made in: a row for each hidden layer, and in kappa one for the output layer."""

    chi: FloatArray  # v_i chi2(m_i)
    zeta: FloatArray  # v_{i+1} chi2(m_i - 1), and then zeta_i
    rest: FloatArray  # chi2(m_i - 2)
    share: FloatArray  # m_i, and then kappa_i + e_i S_i
    kappa: FloatArray
    paired: dict[int, npt.NDArray[np.bool_]] = field(default_factory=dict)  # of a narrow layer: m_i >= 2


class NormChain:
    """The chain of the module's docstring for one network; several threads may draw from it, each in arrays of its own.

    ``exponent`` k is that of an input x = 2^k x' whose square may leave a double.  Gates and directions do not depend
    on k, so the passes are those at x'; there N is N/2^k and each kappa_i is kappa_i/4^k.
    """

    def __init__(self, net: MLP, exponent: int = 0) -> None:
        self.widths = net.widths
        self.exponent = exponent
        layers = net.layers
        self.variance = [float(layer.weight_variance) for layer in layers]
        self.weight_multiplier = [float(layer.weight_multiplier) for layer in layers]
        self.bias_multiplier = [float(layer.bias_multiplier) for layer in layers]
        self._runs = self._equal_layers()
        self._kept = threading.local()

    def _equal_layers(self) -> list[tuple[slice, int, float, float]]:
        """Runs of hidden layers that are drawn alike: which, their width n_i, v_i and v_{i+1}."""
        alike = zip(self.widths[1:-1], self.variance[:-1], self.variance[1:], strict=True)
        runs, start = [], 0
        for key, run in groupby(alike):
            stop = start + len(list(run))
            runs.append((slice(start, stop), *key))
            start = stop
        return runs

    def draw(self, norm: float, variates: Variates, draws: int) -> dict[str, FloatArray]:
        """``draws`` draws at an input of squared norm 4^exponent ``norm``: output, K_w, K_b, K, dK."""
        return self.scaled(self.at_unit(norm, variates, draws))

    def scaled(self, drawn: dict[str, FloatArray]) -> dict[str, FloatArray]:
        """Draws of `at_unit` at the input itself, and K."""
        if self.exponent:
            with np.errstate(over="ignore", under="ignore"):
                for name, power in (("output", 1), ("K_w", 2), ("dK", 2)):
                    drawn[name] = np.ldexp(drawn[name], power * self.exponent) + 0.0  # no negative zeros
        drawn["K"] = drawn["K_w"] + drawn["K_b"]
        return drawn

    def at_unit(self, norm: float, variates: Variates, draws: int) -> dict[str, FloatArray]:
        """N/2^k, K_w/4^k, K_b and dK/4^k."""
        work = self._workspace(draws)
        z = self._draw(variates, work)
        with np.errstate(all="ignore"):  # dead networks are set right below, the caller sees to overflow
            output, Q = self._forward(norm, z, work)
            K_w, K_b = self._backward(Q, work)
            vanished = not Q.all()  # some network is dead, or N^2 too small for a double
            if vanished:
                np.nan_to_num(work.zeta, copy=False)  # 0/0; the layer's share of K is 0 as well
            dK = self._update(variates, work)
        if vanished or norm == 0:
            # Where a layer is entirely closed the output is its bias, and only that bias has a derivative.
            dead = (work.chi == 0).any(axis=0) | (norm == 0)
            for column, value in ((output, 0.0), (K_w, 0.0), (K_b, self.bias_multiplier[-1]), (dK, 0.0)):
                column[dead] = value
        return {"output": output, "K_w": K_w, "K_b": K_b, "dK": dK}

    def _workspace(self, draws: int) -> Workspace:
        """Arrays that this thread keeps between chunks: fresh memory costs as much time as the draws."""
        size = 5 * (len(self.widths) - 1) * draws
        numbers: FloatArray = getattr(self._kept, "numbers", np.empty(0))
        if numbers.size < size:
            numbers = self._kept.numbers = np.empty(size)
        rows = numbers[:size].reshape(5, -1, draws)
        return Workspace(rows[0, :-1], rows[1, :-1], rows[2, :-1], rows[3, :-1], rows[4])

    def _draw(self, variates: Variates, work: Workspace) -> FloatArray:
        """Draw the coins and the chi-squares of all layers, and z, the output over its standard deviation."""
        for rows, width, v, v_above in self._runs:
            m = work.share[rows]  # free until the backward pass
            variates.coins(width, m.size, out=m.reshape(-1))
            if width < _NARROW:
                work.paired |= dict(enumerate(m >= 2, rows.start))
            variates.chi_square(m, scale=v, out=work.chi[rows])
            variates.chi_square(m, less=1, scale=v_above, out=work.zeta[rows])
            variates.chi_square(m, less=2, out=work.rest[rows])
        z: FloatArray = variates.standard_normal(len(work.kappa[0]))
        return z

    def _forward(self, norm: float, z: FloatArray, work: Workspace) -> tuple[FloatArray, FloatArray]:
        """Leave c_i R_{i-1} in kappa; return N and Q_{d-1} = v_d z^2."""
        kappa = work.kappa
        R = np.full(kappa.shape[1], norm)
        for i, factor in enumerate(work.chi):
            np.multiply(R, self.weight_multiplier[i], out=kappa[i])
            R *= factor
        np.multiply(R, self.weight_multiplier[-1], out=kappa[-1])
        Q = z * z
        Q *= self.variance[-1]
        R *= self.variance[-1]
        z *= np.sqrt(R, out=R)
        return z, Q

    def _backward(self, Q: FloatArray, work: Workspace) -> tuple[FloatArray, FloatArray]:
        """Compute S_i, complete kappa_i, turn the fresh chi-squares into zeta_i; return K_w and K_b.

        Q ends as N^2/R_0, which is zero where a layer is closed.
        """
        chi, zeta, share, kappa = work.chi, work.zeta, work.share, work.kappa
        S = np.ones_like(Q)
        K_w = kappa[-1].copy()
        K_b = np.full_like(Q, self.bias_multiplier[-1])
        for i in reversed(range(len(chi))):
            S *= zeta[i]
            S += Q
            np.divide(Q, S, out=zeta[i])
            kappa[i] *= S
            K_w += kappa[i]
            e = self.bias_multiplier[i]
            bias_share = S if e == 1 else np.multiply(S, e, out=share[i])
            K_b += bias_share
            weight_share = np.ldexp(kappa[i], 2 * self.exponent) if self.exponent else kappa[i]
            np.add(bias_share, weight_share, out=share[i])
            Q *= chi[i]
        return K_w, K_b

    def _update(self, variates: Variates, work: Workspace) -> FloatArray:
        """Draw Delta K / lambda, given the passes before."""
        chi, zeta, rest, share, kappa = work.chi, work.zeta, work.rest, work.share, work.kappa
        w, A, P, dK = np.zeros((4, kappa.shape[1]))
        xi, D, root = np.empty((3, kappa.shape[1]))
        for i in range(len(chi)):
            dK += np.multiply(kappa[i], A, out=root)
            w += share[i]
            np.subtract(w, A, out=D)
            A += np.multiply(zeta[i], D, out=root)
            np.sqrt(np.subtract(1, zeta[i], out=root), out=root)
            D *= root
            if i:  # the first layer has no tangent below it
                P /= chi[i]
                P *= self.variance[i]  # t
                rest[i] *= P
                variates.standard_normal(out=xi)
                xi *= np.sqrt(P, out=P)
                if i in work.paired:
                    xi *= work.paired[i]  # one open neuron leaves no direction across x^(i)
                D -= xi
                xi *= root
                A += xi
            np.square(D, out=P)
            P *= zeta[i]
            if i:
                P += rest[i]
        dK += np.multiply(kappa[-1], A, out=root)
        dK *= -4
        dK += 0.0  # no negative zeros
        return dK

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
Other slopes and random biases take the longer chain of `two_slopes`.
No quantity is divided by one that can vanish while the network lives, and none is lost to cancellation.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from queue import SimpleQueue
from typing import TYPE_CHECKING

import numpy as np

from finwidth.activations import SmoothActivation
from finwidth.errors import FinwidthError
from finwidth.laws import FloatArray
from finwidth.network import MLP, Vector, check_input, count
from finwidth.quantities import KERNEL_DRAWS, attributes
from finwidth.sampling.device import DeviceGenerator, check_device
from finwidth.sampling.streams import check_seed, check_threads, collect, in_order, stream
from finwidth.sampling.two_slopes import TwoSlopeChain

if TYPE_CHECKING:
    import xarray as xr

_CHUNK_CELLS = 2**21  # layers x draws of one chunk: 16 MiB an array, five arrays
_LARGEST_CHUNK = 2**15
_DEVICE_CELLS = 2**22  # on a torch device: 14 arrays of 32 MiB, and some for a layer at a time
_LARGEST_DEVICE_CHUNK = 2**20
_WIDEST = 2**62  # of the integers of NumPy's binomial generator
# Above this width fewer than two open neurons, 129 / 2^128, are rarer than what the generators can resolve.
_NARROW = 128


def why_not(net: MLP) -> str | None:
    """Why the chain does not draw this network's kernel, or None if it does."""
    reasons = []
    if net.weight_law.name != "gaussian":
        reasons.append(f"its weights are {net.weight_law.name} (the chain rests on Gaussian weights)")
    if isinstance(net.activation, SmoothActivation):
        reasons.append(f"its activation is {net.activation.name} (two slopes, such as relu, are supported)")
    if net.random_bias and net.bias_law.name != "gaussian":
        reasons.append(f"its initial biases are {net.bias_law.name} (Gaussian and zero ones are supported)")
    if net.widths[-1] != 1:
        reasons.append(f"it has {net.widths[-1]} outputs (one is supported)")
    if max(net.widths) > _WIDEST:
        reasons.append(f"it has a width of {max(net.widths)} (up to {_WIDEST} is supported)")
    return f"finwidth.sample cannot draw this network: {'; '.join(reasons)}" if reasons else None


def check_network(net: MLP) -> None:
    """Raise FinwidthError unless the chain draws this network's kernel."""
    reason = why_not(net)
    if reason:
        raise FinwidthError(f"{reason}. finwidth.moments has exact moments, finwidth.sample_gram other activations")


def _plain_relu(net: MLP) -> bool:
    """Whether the shorter chain of this module holds; otherwise that of `two_slopes` does."""
    return net.activation.positive == 1 and net.activation.negative == 0 and not net.random_bias


def make_chain(net: MLP, size: int) -> NormChain | TwoSlopeChain:
    """The chain of the network, for up to ``size`` draws at once."""
    return NormChain(net, size) if _plain_relu(net) else TwoSlopeChain(net)


def squared_norm(net: MLP, x: Vector) -> float:
    """|x|^2, all that the chain needs of the input; inf where a double overflows."""
    with np.errstate(over="ignore"):
        return float(np.square(check_input(net, x)).sum())


def chunk_size(net: MLP) -> int:
    """How many draws are made at once: it depends on the network only, so that a seed fixes the numbers."""
    size = _LARGEST_CHUNK if _plain_relu(net) else _LARGEST_CHUNK // 4
    return max(1, min(size, _CHUNK_CELLS // net.depth))


def chunks(
    net: MLP,
    x: Vector,
    draws: int,
    seed: int = 0,
    *,
    threads: int | None = None,
    device: str | None = None,
    progress: Callable[[int], object] | None = None,
) -> Iterator[dict[str, FloatArray]]:
    """The draws of `sample` in pieces of at most `chunk_size`, so that any number of them fits in memory.

    Examples
    --------
    >>> from finwidth.sampling.diagonal import chunks
    >>> from finwidth import MLP
    >>> [len(piece["K"]) for piece in chunks(MLP([2, 4, 4, 1]), [1, 2], draws=40_000, seed=1)]
    [32768, 7232]
    """
    check_network(net)
    norm = squared_norm(net, x)
    draws, seed, threads = count("draws", draws), check_seed(seed), check_threads(threads)
    pieces = _by_threads(net, norm, draws, seed, threads) if device is None else _on(device, net, norm, draws, seed)
    done = 0
    for drawn in pieces:
        if not np.isfinite(drawn["K"]).all() or not np.isfinite(drawn["dK"]).all():
            raise FinwidthError(f"the draws overflow a double: the input's squared norm is {norm:g}; rescale the input")
        yield drawn
        done += len(drawn["K"])
        if progress is not None:
            progress(done)


def _by_threads(net: MLP, norm: float, draws: int, seed: int, threads: int) -> Iterator[dict[str, FloatArray]]:
    size = chunk_size(net)
    idle: SimpleQueue[NormChain | TwoSlopeChain] = SimpleQueue()  # a chain's work arrays serve one thread at a time
    for _ in range(min(threads, -(-draws // size))):
        idle.put(make_chain(net, min(size, draws)))

    def piece(number: int) -> dict[str, FloatArray]:
        chain = idle.get()
        try:
            return chain.draw(norm, stream(seed, number), min(size, draws - number * size))
        finally:
            idle.put(chain)

    yield from in_order(piece, -(-draws // size), threads)


def _on(device: str, net: MLP, norm: float, draws: int, seed: int) -> Iterator[dict[str, FloatArray]]:
    """The same law from a torch device; there one kind of chain serves all networks."""
    place, chain = check_device(device), TwoSlopeChain(net)
    size = max(1, min(_LARGEST_DEVICE_CHUNK, _DEVICE_CELLS // net.depth))
    for number, start in enumerate(range(0, draws, size)):
        yield chain.draw(norm, DeviceGenerator(place, seed, number), min(size, draws - start))


def sample(
    net: MLP,
    x: Vector,
    draws: int,
    seed: int = 0,
    *,
    threads: int | None = None,
    device: str | None = None,
    progress: Callable[[int], object] | None = None,
) -> xr.Dataset:
    """Draw the network's output and kernel at one input exactly in law, without building a network.

    Parameters
    ----------
    net
        A network with Gaussian weights, an activation of two slopes (relu, leaky_relu, linear, abs), initial biases
        that are zero or Gaussian, and one output.
    x
        One input, shape (n_0,).
    draws
        How many independent networks to draw, at least 1.
    seed
        A whole number, 0 or more; it fixes every number, whatever the number of threads.
    threads
        How many to use; by default one for each core.
    device
        A torch device to draw on, such as "cuda:0"; by default NumPy. The law is the same, the numbers are not.
    progress
        Called with the number of draws finished, each time some are.

    Returns
    -------
    xarray.Dataset
        Over the dimension ``draw``: ``output`` (N), ``K_w``, ``K_b``, ``K``, and ``dK``, the change of K per unit
        learning rate under one SGD step on (N - N*)^2/2 with target N* = 0. Dimensionless, float64; attrs
        carry the network, the seed, the method and the version. Memory: 40 bytes a draw, and at most 100 MiB a thread.

    Raises
    ------
    FinwidthError
        If an argument is not allowed, or the network is not one that the chain draws.

    Examples
    --------
    >>> import finwidth
    >>> draws = finwidth.sample(finwidth.MLP([2, 3, 3, 1]), [1, 2], draws=100_000, seed=0)
    >>> abs(float(draws.K.mean()) - 151 / 16) < 0.2    # the exact mean
    True
    """
    import xarray as xr

    draws = count("draws", draws)
    columns = {name: np.empty(draws) for name in KERNEL_DRAWS}
    collect(chunks(net, x, draws, seed, threads=threads, device=device, progress=progress), columns)
    method = "norm chain" if device is None else f"norm chain on a torch device ({device})"
    return xr.Dataset(
        {name: ("draw", column, KERNEL_DRAWS[name].attrs) for name, column in columns.items()},
        attrs=attributes(net, method=method, seed=seed, input=check_input(net, x)),
    )


class NormChain:
    """The chain of the module's docstring for one network, with work arrays for up to ``size`` draws at once."""

    def __init__(self, net: MLP, size: int) -> None:
        self.widths = net.widths
        layers = net.layers
        self.variance = [float(layer.weight_variance) for layer in layers]
        self.weight_multiplier = [float(layer.weight_multiplier) for layer in layers]
        self.bias_multiplier = [float(layer.bias_multiplier) for layer in layers]
        # A row a layer. chi2(m) is drawn as 2 gamma(m/2); the halves of m and chi are what is stored.
        self._half_open, self._half_chi, self._zeta = np.empty((3, net.depth - 1, size))
        self._kappa, self._share = np.empty((2, net.depth, size))

    def draw(self, norm: float, rng: np.random.Generator, draws: int) -> dict[str, FloatArray]:
        """``draws`` draws at an input of squared norm ``norm``: output, K_w, K_b, K, dK."""
        with np.errstate(all="ignore"):  # dead networks are set right below, the caller sees to overflow
            output, Q = self._forward(norm, rng, draws)
            K_w, K_b = self._backward(Q, rng, draws)
            vanished = not Q.all()  # some network is dead, or N^2 too small for a double
            if vanished:
                np.nan_to_num(self._zeta[:, :draws], copy=False)  # 0/0; the layer's share of K is 0 as well
            dK = self._update(rng, draws)
        if vanished or norm == 0:
            # Where a layer is entirely closed the output is its bias, and only that bias has a derivative.
            dead = (self._half_open[:, :draws] == 0).any(axis=0) | (norm == 0)
            for column, value in ((output, 0.0), (K_w, 0.0), (K_b, self.bias_multiplier[-1]), (dK, 0.0)):
                column[dead] = value
        return {"output": output, "K_w": K_w, "K_b": K_b, "K": K_w + K_b, "dK": dK}

    def _draw_forward(self, i: int, rng: np.random.Generator, half_open: FloatArray, half_chi: FloatArray) -> None:
        """Draw m/2 and chi2(m)/2 of hidden layer i (from 0)."""
        np.multiply(rng.binomial(self.widths[i + 1], 0.5, len(half_open)), 0.5, out=half_open)
        rng.standard_gamma(half_open, out=half_chi)

    def _draw_output(self, rng: np.random.Generator, draws: int) -> FloatArray:
        """Draw z, the output over its standard deviation."""
        return rng.standard_normal(draws)

    def _draw_backward(self, i: int, rng: np.random.Generator, half_open: FloatArray, half_chi: FloatArray) -> None:
        """Draw chi2(m - 1)/2 of hidden layer i given m/2."""
        shape = np.subtract(half_open, 0.5)
        if self.widths[i + 1] < _NARROW:
            np.maximum(shape, 0, out=shape)
        rng.standard_gamma(shape, out=half_chi)

    def _forward(self, norm: float, rng: np.random.Generator, draws: int) -> tuple[FloatArray, FloatArray]:
        """Draw m_i and chi_i, leave c_i R_{i-1} in kappa; return N and Q_{d-1} = v_d z^2."""
        R = np.full(draws, norm)
        for i in range(len(self.widths) - 2):
            half_open, half_chi = self._half_open[i, :draws], self._half_chi[i, :draws]
            np.multiply(R, self.weight_multiplier[i], out=self._kappa[i, :draws])
            self._draw_forward(i, rng, half_open, half_chi)
            R *= half_chi
            R *= 2 * self.variance[i]
        np.multiply(R, self.weight_multiplier[-1], out=self._kappa[-1, :draws])
        output = self._draw_output(rng, draws)
        Q = output * output
        Q *= self.variance[-1]
        R *= self.variance[-1]
        output *= np.sqrt(R, out=R)
        return output, Q

    def _backward(self, Q: FloatArray, rng: np.random.Generator, draws: int) -> tuple[FloatArray, FloatArray]:
        """Draw S_i, complete kappa_i, leave zeta_i and the layer's share kappa_i + e_i S_i; return K_w and K_b.

        Q ends as N^2/R_0, which is zero where a layer is closed.
        """
        S = np.ones(draws)
        gamma = np.empty(draws)
        K_w = self._kappa[-1, :draws].copy()
        K_b = np.full(draws, self.bias_multiplier[-1])
        for i in reversed(range(len(self.widths) - 2)):
            kappa, zeta, share = self._kappa[i, :draws], self._zeta[i, :draws], self._share[i, :draws]
            self._draw_backward(i, rng, self._half_open[i, :draws], gamma)
            S *= gamma
            S *= 2 * self.variance[i + 1]
            S += Q
            np.divide(Q, S, out=zeta)
            kappa *= S
            K_w += kappa
            e = self.bias_multiplier[i]
            bias_share = S if e == 1 else np.multiply(S, e, out=share)
            K_b += bias_share
            np.add(bias_share, kappa, out=share)
            Q *= self._half_chi[i, :draws]
            Q *= 2 * self.variance[i]
        return K_w, K_b

    def _update(self, rng: np.random.Generator, draws: int) -> FloatArray:
        """Draw Delta K / lambda, given the passes before."""
        w, A, P, dK = np.zeros((4, draws))
        shape, gamma, xi, D, root = np.empty((5, draws))
        for i in range(len(self.widths) - 2):
            half_open, zeta = self._half_open[i, :draws], self._zeta[i, :draws]
            dK += np.multiply(self._kappa[i, :draws], A, out=root)
            w += self._share[i, :draws]
            np.subtract(w, A, out=D)
            A += np.multiply(zeta, D, out=root)
            np.sqrt(np.subtract(1, zeta, out=root), out=root)
            if i == 0:  # the first layer has no tangent below it
                np.multiply(zeta, np.square(np.multiply(root, D, out=D), out=D), out=P)
                continue
            rng.standard_normal(out=xi)
            np.subtract(half_open, 1, out=shape)
            if self.widths[i + 1] < _NARROW:
                xi *= shape >= 0  # one open neuron leaves no direction across x^(i)
                np.maximum(shape, 0, out=shape)
            rng.standard_gamma(shape, out=gamma)
            P /= self._half_chi[i, :draws]  # 2 t
            gamma *= P
            P *= 0.5
            xi *= np.sqrt(P, out=P)
            D *= root
            D -= xi
            np.multiply(np.square(D, out=D), zeta, out=P)
            P += gamma
            xi *= root
            A += xi
        dK += np.multiply(self._kappa[-1, :draws], A, out=root)
        dK *= -4
        dK += 0.0  # no negative zeros
        return dK

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
No divisor is zero unless the network is dead, and no subtraction loses digits.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import groupby
from queue import SimpleQueue
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from finwidth import arguments
from finwidth.arguments import check_device, count
from finwidth.errors import FinwidthError
from finwidth.memory import afford, amount
from finwidth.networks.activations import SmoothActivation
from finwidth.networks.inputs import Vector, check_input, exponent
from finwidth.networks.laws import FloatArray
from finwidth.networks.mlp import MLP, check_mlp
from finwidth.progress import check_time, stage
from finwidth.quantities import KERNEL_DRAWS, attributes
from finwidth.sampling.instead import advice
from finwidth.sampling.one_input.two_slope_chain import TwoSlopeChain
from finwidth.sampling.random.device import DeviceGenerator
from finwidth.sampling.random.streams import check_seed, check_threads, collect, in_order, stream
from finwidth.sampling.random.variates import Variates

if TYPE_CHECKING:
    import xarray as xr

_CHUNK_CELLS = 2**21  # layers x draws of one chunk: 16 MiB an array, five arrays
_LARGEST_CHUNK = 2**14
_DEVICE_CELLS = 2**22  # on a torch device: 14 arrays of 32 MiB, and some for a layer at a time
_LARGEST_DEVICE_CHUNK = 2**20
SECONDS = 6e-8  # about so many for a layer of a draw
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
    reason = why_not(check_mlp(net))
    if reason:
        raise FinwidthError(f"{reason}; {advice(net)}")


def plain_relu(net: MLP) -> bool:
    """Whether the shorter chain of this module applies; if not, the chain of `two_slopes` does."""
    return net.activation.positive == 1 and net.activation.negative == 0 and not net.random_bias


def make_chain(net: MLP, size: int, exponent: int = 0) -> NormChain | TwoSlopeChain:
    """The chain of the network, for up to ``size`` draws at once, at inputs of that `squared_norm`."""
    return NormChain(net, size, exponent) if plain_relu(net) else TwoSlopeChain(net, exponent)


def squared_norm(net: MLP, x: Vector) -> tuple[float, int]:
    """The input's squared length as (r, k), |x|^2 = 4^k r; k = 0 unless |x|^2 may overflow or underflow."""
    given = check_input(net, x)
    k = exponent(given)
    return float(np.square(np.ldexp(given, -k)).sum()), k


def chunk_size(net: MLP) -> int:
    """Number of draws made at once; it depends on the network only, so that a seed fixes the numbers."""
    size = _LARGEST_CHUNK if plain_relu(net) else _LARGEST_CHUNK // 2
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
    >>> from finwidth.sampling.one_input.norm_chain import chunks
    >>> from finwidth import MLP
    >>> [len(piece["K"]) for piece in chunks(MLP([2, 4, 4, 1]), [1, 2], draws=40_000, seed=1)]
    [16384, 16384, 7232]
    """
    check_network(net)
    norm, k = squared_norm(net, x)
    draws, seed, threads = count("draws", draws), check_seed(seed), check_threads(threads)
    tell = arguments.progress(progress)
    check_sizes(net, draws, threads)
    if device is None:
        size = chunk_size(net)
        pieces = by_threads(
            lambda: make_chain(net, min(size, draws), k).draw, norm, draws, size=size, seed=seed, threads=threads
        )
    else:
        pieces = _on(device, TwoSlopeChain(net, k), norm, draws, seed)
    done = 0
    with stage("drawing", draws, tell) as told:
        for drawn in pieces:
            check_finite(drawn, net, x)
            yield drawn
            done += len(drawn["K"])
            told(done)


def memory(net: MLP, draws: int, threads: int) -> int:
    """Bytes that `chunks` works in at its peak."""
    at_once = min(chunk_size(net), draws)
    arrays = 8 * net.depth + 20 if plain_relu(net) else 24 * net.depth + 60
    return 8 * at_once * arrays * min(threads, -(-draws // at_once)) + 200 * net.depth


def check_sizes(net: MLP, draws: int, threads: int, kept: int = 0) -> None:
    """Refuse draws that take over a year, or more memory than there is with ``kept`` bytes of each draw."""
    needed = memory(net, draws, threads) + kept * draws
    what = f"drawing {amount(draws)} networks of {net.depth} layers"
    afford(needed, what, "make fewer draws" if kept else "use fewer threads, or take fewer layers")
    check_time(draws, SECONDS * net.depth / threads, what, "make fewer draws")


def check_finite(drawn: dict[str, FloatArray], net: MLP, x: Vector) -> None:
    """Raise FinwidthError where draws overflow."""
    for name, power in (("K", "second"), ("dK", "fourth"), ("weight", "")):
        if not np.isfinite(drawn.get(name, 0.0)).all():
            largest = np.abs(check_input(net, x)).max()
            grows = f"{name} grows like its {power} power" if power else "the weights of the draws do"
            raise FinwidthError(
                f"the draws overflow a double: the largest entry of the input is {largest:.3g} and {grows}; rescale "
                "the input, or take smaller gains or fewer layers"
            )


Drawer = Callable[[float, Variates, int], dict[str, FloatArray]]


def by_threads(
    make: Callable[[], Drawer], norm: float, draws: int, *, size: int, seed: int, threads: int
) -> Iterator[dict[str, FloatArray]]:
    """Chunks of ``size`` draws by chains that ``make`` gives: work arrays serve one thread at a time."""
    idle: SimpleQueue[Drawer] = SimpleQueue()
    for _ in range(min(threads, -(-draws // size))):
        idle.put(make())

    def piece(number: int) -> dict[str, FloatArray]:
        draw = idle.get()
        try:
            return draw(norm, Variates(stream(seed, number)), min(size, draws - number * size))
        finally:
            idle.put(draw)

    yield from in_order(piece, -(-draws // size), threads)


def _on(device: str, chain: TwoSlopeChain, norm: float, draws: int, seed: int) -> Iterator[dict[str, FloatArray]]:
    """The same law from a torch device; there one kind of chain serves all networks."""
    place = check_device(device)
    size = max(1, min(_LARGEST_DEVICE_CHUNK, _DEVICE_CELLS // (len(chain.widths) - 1)))
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
        One input, shape (n_0,), of any size at which the results are doubles: K_w grows like |x|^2, dK like |x|^4,
        and where they fall below the smallest double they are 0. K_b depends on the direction of x only, and is not 0.
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
        carry the network, the seed (from 2^31 on as text, which int() reads), the method and the version.
        Memory: 40 bytes a draw, and at most 100 MiB a thread.

    Raises
    ------
    FinwidthError
        If an argument is not allowed, the network is not one that the chain draws, or a draw overflows a double.

    Examples
    --------
    >>> import finwidth
    >>> draws = finwidth.sample(finwidth.MLP([2, 3, 3, 1]), [1, 2], draws=100_000, seed=0)
    >>> abs(float(draws.K.mean()) - 151 / 16) < 0.2    # the exact mean
    True
    """
    import xarray as xr

    check_network(net)
    draws = count("draws", draws)
    check_sizes(net, draws, check_threads(threads), kept=8 * len(KERNEL_DRAWS))
    columns = {name: np.empty(draws) for name in KERNEL_DRAWS}
    collect(chunks(net, x, draws, seed, threads=threads, device=device, progress=progress), columns)
    method = "norm chain" if device is None else f"norm chain on a torch device ({device})"
    return xr.Dataset(
        {name: ("draw", column, KERNEL_DRAWS[name].attrs) for name, column in columns.items()},
        attrs=attributes(net, method=method, seed=seed, input=check_input(net, x)),
    )


@dataclass
class Rows:
    """The work arrays of some draws: a row a hidden layer, and in kappa one for the output layer."""

    chi: FloatArray  # v_i chi2(m_i)
    zeta: FloatArray  # v_{i+1} chi2(m_i - 1), and then zeta_i
    rest: FloatArray  # chi2(m_i - 2)
    share: FloatArray  # m_i, and then kappa_i + e_i S_i
    kappa: FloatArray
    paired: dict[int, npt.NDArray[np.bool_]] = field(default_factory=dict)  # of a narrow layer: m_i >= 2


class NormChain:
    """The chain of the module's docstring for one network, with work arrays for up to ``size`` draws at once.

    ``exponent`` k is that of an input x = 2^k x' whose square may leave a double.  Gates and directions do not depend
    on k, so the passes are those at x'; there N is N/2^k and each kappa_i is kappa_i/4^k.
    """

    def __init__(self, net: MLP, size: int, exponent: int = 0) -> None:
        self.widths = net.widths
        self.exponent = exponent
        layers = net.layers
        self.variance = [float(layer.weight_variance) for layer in layers]
        self.weight_multiplier = [float(layer.weight_multiplier) for layer in layers]
        self.bias_multiplier = [float(layer.bias_multiplier) for layer in layers]
        self._work = np.empty(5 * net.depth * size)
        self._runs = self._equal_layers()

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
        rows = self._work[: 5 * (len(self.widths) - 1) * draws].reshape(5, -1, draws)
        work = Rows(rows[0, :-1], rows[1, :-1], rows[2, :-1], rows[3, :-1], rows[4])
        self._draw(variates, work)
        with np.errstate(all="ignore"):  # dead networks are set right below, the caller sees to overflow
            output, Q = self._forward(norm, variates, work)
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

    def _draw(self, variates: Variates, work: Rows) -> None:
        """Draw the coins and the chi-squares of all layers."""
        for rows, width, v, v_above in self._runs:
            m = work.share[rows]  # free until the backward pass
            variates.coins(width, m.size, out=m.reshape(-1))
            if width < _NARROW:
                work.paired |= dict(enumerate(m >= 2, rows.start))
            variates.chi_square(m, scale=v, out=work.chi[rows])
            variates.chi_square(m, less=1, scale=v_above, out=work.zeta[rows])
            variates.chi_square(m, less=2, out=work.rest[rows])

    def _output(self, variates: Variates, draws: int) -> FloatArray:
        """Draw z, the output over its standard deviation."""
        return variates.standard_normal(draws)

    def _forward(self, norm: float, variates: Variates, work: Rows) -> tuple[FloatArray, FloatArray]:
        """Leave c_i R_{i-1} in kappa; return N and Q_{d-1} = v_d z^2."""
        kappa = work.kappa
        R = np.full(kappa.shape[1], norm)
        for i, factor in enumerate(work.chi):
            np.multiply(R, self.weight_multiplier[i], out=kappa[i])
            R *= factor
        np.multiply(R, self.weight_multiplier[-1], out=kappa[-1])
        output = self._output(variates, len(R))
        Q = output * output
        Q *= self.variance[-1]
        R *= self.variance[-1]
        output *= np.sqrt(R, out=R)
        return output, Q

    def _backward(self, Q: FloatArray, work: Rows) -> tuple[FloatArray, FloatArray]:
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

    def _update(self, variates: Variates, work: Rows) -> FloatArray:
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

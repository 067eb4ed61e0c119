r"""One input, several outputs: the joint law of all N_k, K_kl and Delta K_kl, whatever the widths.

As `two_slope_chain`, with a matrix of o rows where that has a vector of the gradient: J_i holds the gradients of all
outputs.  Across y+ and y- the fresh rows of q have a Wishart matrix of inner products in each group, whose triangular
root is drawn by itself (Bartlett): chi variables on the diagonal, normal numbers below it.  In an orthonormal basis of
the 2 + 2 o directions that the rows of J_i have in common with y (docs/theory/two-slopes.md)::

    backward  q_k: along x_i sqrt(R_i) p_k / (R_i + beta) + sqrt(v beta/(R_i + beta)) root g, across it sqrt(v) root g',
              on the groups' others sqrt(v) root (T+, T-), where root root^T = S_{i+1} = J_{i+1} J_{i+1}^T
    update    dx_j, along the gradient of output j, = alpha_j x' + r_j;  W r = J^T S^- (w - p alpha^T) + (1 - Q) noise
              u_j = x_{i-1} . dx_j,   w = sum k_i S_i
              Delta K_kl / lambda = -sum_j N_j sum_i c_i (2 S_kl u_j + S_kj u_l + S_lj u_k)
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from finwidth.networks.activations import Array
from finwidth.networks.laws import FloatArray
from finwidth.networks.mlp import MLP
from finwidth.sampling.kernel_matrix.stacks import Factor, factorise, transposed
from finwidth.sampling.one_input.arithmetic import over, times_power_of_two
from finwidth.sampling.one_input.two_slope_chain import Generator, HiddenVectors, TwoSlopeChain
from finwidth.sampling.random.device import as_array, generator_namespace, in_numpy


@dataclass
class Gradients:
    """The gradients of all outputs at one layer."""

    J: Array  # (draws, o, 2 + 2 o): on y+, y-, and the directions of each group across them
    gram: Array  # S = J J^T
    factor: Factor  # of S
    p: Array  # J y, (draws, o)


class OutputsChain(TwoSlopeChain):
    """The chain of the module's docstring for one network of several outputs; ``exponent`` as in `TwoSlopeChain`."""

    def __init__(self, net: MLP, exponent: int = 0) -> None:
        super().__init__(net, exponent)
        self.outputs = net.widths[-1]

    def draw(self, norm: float, rng: Generator, draws: int) -> dict[str, FloatArray]:
        """Output (draws, o), and K_w, K_b, K and dK (draws, o, o); FloatingPointError if a Gram matrix overflows."""
        xp = generator_namespace(rng)
        unit = as_array(rng, np.eye(self.outputs), "float64")
        with np.errstate(all="ignore"):  # the caller sees to overflow
            normal = rng.standard_normal((draws, self.outputs))
            one = xp.ones_like(normal[:, 0])
            hidden, deviation = self._forward(norm, rng, one)
            output = deviation[:, None] * normal
            gradients = self._gradients(hidden, output, rng)
            norms, grams = self._norms(norm * one, hidden), [*(each.gram for each in gradients), unit]
            K_w = K_b = 0 * (one[:, None, None] * unit)
            for c, e, R, S in zip(self.weight_multiplier, self.bias_multiplier, norms, grams, strict=True):
                K_w = K_w + c * R[:, None, None] * S
                K_b = K_b + e * S
            output = times_power_of_two(output, self.units[-1])
            dK = self._change(hidden, gradients, norms, output, rng)
        drawn = {"output": output, "K_w": K_w, "K_b": K_b, "K": K_w + K_b, "dK": dK}
        return {name: in_numpy(values) for name, values in drawn.items()}

    def _gradients(self, hidden: list[HiddenVectors], output: Array, rng: Generator) -> list[Gradients]:
        """Of the hidden layers, first to last, drawn from the outputs down."""
        xp, (draws, o), made = generator_namespace(rng), output.shape, list[Gradients]()
        root, p = as_array(rng, np.eye(o), "float64"), output
        for i in reversed(range(len(hidden))):
            layer, v = hidden[i], self.weight_variance[i + 1] ** 0.5
            total, share = self._constant(i + 1, layer.carried)
            along = over(layer.carried[:, None] * p, total[:, None])
            if share.any():
                along = along + v * xp.sqrt(share)[:, None] * (root @ rng.standard_normal((draws, o, 1)))[..., 0]
            across = v * (root @ rng.standard_normal((draws, o, 1)))[..., 0]
            plane = along[..., None] * layer.unit.T[:, None] + across[..., None] * layer.turned.T[:, None]
            plane = plane * (layer.counts >= 1).T[:, None]
            fresh = [v * (root @ wishart_root(rng, counts, o, less=1)) for counts in layer.counts]
            J = self._slopes(layer, rng) * xp.concatenate([plane, *fresh], -1)
            gram, p = _symmetrised(J @ transposed(J)), layer.norm[:, None] * along
            made.insert(0, Gradients(J, gram, factorise(gram), p))
            root = made[0].factor.root
        return made

    def _slopes(self, layer: HiddenVectors, rng: Generator) -> Array:
        """The slope at each of the 2 + 2 o directions, 0 in dead networks."""
        a, b = layer.slopes[:, 0]
        slopes = [a, b, *[a] * self.outputs, *[b] * self.outputs]
        return layer.live[:, None, None] * generator_namespace(rng).stack(slopes)

    def _change(
        self, hidden: list[HiddenVectors], gradients: list[Gradients], norms: list[Array], output: Array, rng: Generator
    ) -> Array:
        """Delta K / lambda for the targets 0, from the tangents dx_j along the gradient of each output."""
        xp, o = generator_namespace(rng), self.outputs
        unit, places = as_array(rng, np.eye(o), "float64"), as_array(rng, np.arange(o), "float64")
        u = along = 0 * output
        w = across = dK = 0 * (output[..., None] * unit)
        carried = u[:, 0]
        for i, (layer, known) in enumerate(zip(hidden, gradients, strict=True)):
            k = (self.weight_multiplier[i] * norms[i] + self.bias_multiplier[i])[:, None, None]
            dK = dK - times_power_of_two(self.weight_multiplier[i] * _pushed(known.gram, u, output), self.units[i + 1])
            total, share = self._constant(i, carried)
            alpha = over(u, total[:, None])
            spread = across + share[:, None, None] * along[..., None] * along[:, None]
            root = factorise(self.weight_variance[i] * spread).root if i else across
            exist = [layer.counts[0] >= 1, layer.counts[1] >= 1]
            exist += [counts - 2 >= place for counts in layer.counts for place in places]
            noise = (root @ rng.standard_normal(known.J.shape)) * xp.stack(exist, -1)[:, None]
            pull = known.factor.inverse @ (w - known.p[..., None] * alpha[:, None] - known.J @ transposed(noise))
            dy = (transposed(pull) + k * unit) @ known.J + noise
            dx = xp.concatenate([dy[..., :2] + alpha[..., None] * layer.y.T[:, None], dy[..., 2:]], -1)
            slopes = self._slopes(layer, rng)
            dx = slopes * dx
            w = w + k * known.gram
            along = (dx[..., :2] * layer.unit.T[:, None]).sum(-1)
            turned = (dx[..., :2] * layer.turned.T[:, None]).sum(-1)
            carried = layer.carried
            u = carried[:, None] * along
            rest = [root @ wishart_root(rng, counts, o, less=1 + o) for counts in layer.counts]
            rest = [slopes[..., g : g + 1] * each for g, each in enumerate(rest)]
            vectors = xp.concatenate([turned[..., None], dx[..., 2:], *rest], -1)
            across = _symmetrised(vectors @ transposed(vectors))
        dK = dK - times_power_of_two(self.weight_multiplier[-1] * _pushed(unit, u, output), self.units[-1])
        return dK + 0.0  # no negative zeros


def wishart_root(rng: Generator, counts: Array, o: int, less: int) -> Array:
    """Lower triangular T, (draws, o, o): T T^T is a Wishart matrix of ``counts - less`` degrees of freedom (Bartlett).

    It has the law of G G^T for a matrix G of o rows and so many columns of independent N(0, 1); with fewer columns than
    rows the last columns of T are 0.

    Examples
    --------
    >>> import numpy as np
    >>> from finwidth.sampling.one_input.outputs_chain import wishart_root
    >>> from finwidth.sampling.random.variates import Variates
    >>> T = wishart_root(Variates(np.random.default_rng(0)), np.full(10_000, 6.0), 2, less=1)
    >>> (T @ T.swapaxes(1, 2)).mean(0).round() + 0.0
    array([[5., 0.],
           [0., 5.]])
    """
    xp = generator_namespace(rng)
    exist = xp.stack([counts - less > place for place in range(o)], -1)
    below = xp.tril(rng.standard_normal((len(counts), o, o)) * exist[:, None], -1)
    diagonal = xp.stack([xp.sqrt(rng.chi_square(counts, less=less + place)) for place in range(o)], -1)
    return below + diagonal[:, None] * as_array(rng, np.eye(o), "float64")


def _pushed(S: Array, u: Array, N: Array) -> Array:
    """sum_j N_j (2 S_kl u_j + S_kj u_l + S_lj u_k)."""
    SN = (S @ N[..., None]) * u[:, None]
    return 2 * S * (N * u).sum(-1)[:, None, None] + (SN + transposed(SN))


def _symmetrised(stack: Array) -> Array:
    """The same on both sides, to the last bit."""
    return (stack + transposed(stack)) / 2

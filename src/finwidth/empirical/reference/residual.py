"""Ground truth for residual networks: draw the weights of many small ones and differentiate them, in plain NumPy.

Nothing here knows any theory: a forward pass, backpropagation, and both passes differentiated along the SGD step for
the first change of the kernel.  As `brute_force`, it is slow and meant to be read.
"""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction

import numpy as np

from finwidth.arguments import FloatArray
from finwidth.empirical.reference.brute_force import in_batches
from finwidth.memory import afford, amount
from finwidth.networks.balanced import BalancedResNet
from finwidth.networks.description import Layer
from finwidth.networks.inputs import Vector, check_input
from finwidth.networks.resnet import ResNet, ResNetBlock
from finwidth.progress import check_time

_BATCH_BYTES = 2**25
_SECONDS = 2e-8  # about so many for a weight of a network


@dataclass
class DrawnLayer:
    """The weights, shape (networks, fan_out, fan_in), and biases, (networks, fan_out), of a layer in many networks."""

    layer: Layer
    weight: FloatArray
    bias: FloatArray

    def forward(self, values: FloatArray) -> FloatArray:
        """What the layer makes of vectors of shape (networks, fan_in)."""
        return _times_vectors(self.weight, values) + self.bias

    def backward(self, gradients: FloatArray) -> FloatArray:
        """Gradients by the layer's input, from those by its output."""
        return _times_vectors(self.weight.transpose(0, 2, 1), gradients)

    def step(self, force: FloatArray, values: FloatArray) -> DrawnLayer:
        """The SGD step of the layer, -multiplier x the gradient by each parameter; ``force`` is N dN/d(output)."""
        return DrawnLayer(
            self.layer,
            -float(self.layer.weight_multiplier) * force[:, :, None] * values[:, None, :],
            -float(self.layer.bias_multiplier) * force,
        )


def draw_residual_networks(net: ResNet | BalancedResNet, networks: int, rng: np.random.Generator) -> list[DrawnLayer]:
    """The layers of random networks: stem, V_1, W_1, ..., V_L, W_L, head; a V_l that is not there is diag(sigma_l)."""

    def signs() -> DrawnLayer:
        n = net.widths[1]
        sigma = rng.choice([-1.0, 1.0], (networks, n)) if isinstance(net, BalancedResNet) and net.signs else 1.0
        weight = np.eye(n) * np.broadcast_to(sigma, (networks, n))[:, :, None]
        return DrawnLayer(Layer(n, n, *[Fraction(0)] * 4), weight, np.zeros((networks, n)))

    def random(layer: Layer) -> DrawnLayer:
        shape = (networks, layer.fan_out, layer.fan_in)
        weight = net.weight_law.sample(rng, shape) * float(layer.weight_variance) ** 0.5
        bias = net.bias_law.sample(rng, shape[:2]) * float(layer.bias_variance) ** 0.5
        return DrawnLayer(layer, weight, bias)

    drawn = [random(net.stem)]
    for block in net.blocks:
        drawn += [random(block.inner) if isinstance(block, ResNetBlock) else signs(), random(block.outer)]
    return [*drawn, random(net.head)]


def residual_kernel(net: ResNet | BalancedResNet, drawn: list[DrawnLayer], x: Vector) -> dict[str, FloatArray]:
    """Output 0, and K_w, K_b, K and dK of it, of given networks at one input; shape (networks,) each.

    dK is the change under a step on |N|^2/2, all outputs.
    """
    phi, networks = net.activation, len(drawn[0].weight)
    factors = [(float(block.skip_squared) ** 0.5, float(block.branch_squared) ** 0.5) for block in net.blocks]
    stem, head, pairs = drawn[0], drawn[-1], list(zip(drawn[1:-1:2], drawn[2:-1:2], strict=True))

    values = [np.broadcast_to(check_input(net, x), (networks, net.widths[0]))]  # what each layer is given
    stream, pre = stem.forward(values[0]), []
    for (a, b), (inner, outer) in zip(factors, pairs, strict=True):
        y = inner.forward(stream)
        values += [stream, phi.value(y)]
        pre.append(y)
        stream = a * stream + b * outer.forward(values[-1])
    values.append(stream)
    outputs = head.forward(stream)
    output = outputs[:, 0]

    def gradients_of(cotangents: FloatArray) -> list[FloatArray]:
        """By what each layer gives, from those by the outputs."""
        found = [cotangents]
        G = head.backward(cotangents)
        for (a, b), (inner, outer), y in reversed(list(zip(factors, pairs, pre, strict=True))):
            J = phi.derivative(y) * outer.backward(b * G)
            found = [J, b * G, *found]
            G = a * G + inner.backward(J)
        return [G, *found]

    unit = np.zeros_like(outputs)
    unit[:, 0] = 1
    gradients = gradients_of(unit)
    one = net.widths[-1] == 1
    forces = [output[:, None] * gradient for gradient in gradients] if one else gradients_of(outputs)
    steps = [layer.step(force, value) for layer, force, value in zip(drawn, forces, values, strict=True)]
    moved = [np.zeros_like(values[0])]  # the derivatives of ``values`` along the step
    dstream, dpre = steps[0].forward(values[0]), []
    for i, (a, b) in enumerate(factors):
        (inner, outer), (dinner, douter) = pairs[i], steps[1 + 2 * i : 3 + 2 * i]
        dpre.append(dinner.forward(values[1 + 2 * i]) + _times_vectors(inner.weight, dstream))
        dz = phi.derivative(pre[i]) * dpre[i]
        moved += [dstream, dz]
        dstream = a * dstream + b * (douter.forward(values[2 + 2 * i]) + _times_vectors(outer.weight, dz))
    moved.append(dstream)

    turned = [np.zeros_like(gradients[-1])]  # the derivatives of ``gradients``
    dG = steps[-1].backward(gradients[-1])
    for i, (a, b) in reversed(list(enumerate(factors))):
        (inner, outer), (dinner, douter) = pairs[i], steps[1 + 2 * i : 3 + 2 * i]
        J, G = gradients[1 + 2 * i : 3 + 2 * i]  # G with the branch's factor
        dJ = phi.derivative(pre[i]) * (douter.backward(G) + outer.backward(b * dG))
        dJ += phi.second_derivative(pre[i]) * dpre[i] * outer.backward(G)
        turned = [dJ, b * dG, *turned]
        dG = a * dG + dinner.backward(J) + inner.backward(dJ)
    turned = [dG, *turned]

    K_w, K_b, dK = np.zeros((3, networks))
    for layer, A, J, dA, dJ in zip(drawn, values, gradients, moved, turned, strict=True):
        c, e = float(layer.layer.weight_multiplier), float(layer.layer.bias_multiplier)
        K_w += c * _inner(J, J) * _inner(A, A)
        K_b += e * _inner(J, J)
        dK += 2 * (c * _inner(A, A) + e) * _inner(J, dJ) + 2 * c * _inner(J, J) * _inner(A, dA)
    return {"output": output, "K_w": K_w, "K_b": K_b, "K": K_w + K_b, "dK": dK}


def simulate_residual(
    net: ResNet | BalancedResNet, x: Vector, networks: int, rng: np.random.Generator
) -> dict[str, FloatArray]:
    """`residual_kernel` of random networks, drawn in batches of bounded memory; raises SizeError for too many.

    Examples
    --------
    >>> import numpy as np
    >>> from finwidth import ResNet
    >>> from finwidth.empirical.reference.residual import simulate_residual
    >>> drawn = simulate_residual(ResNet([2, 5, 1], 1, 4, branch=0.5), [1, 1], 20_000, np.random.default_rng(0))
    >>> abs(float(drawn["K_w"].mean()) - 3) < 0.1    # the exact mean
    True
    """
    n = net.widths[1]
    hidden = sum(net.hidden) if isinstance(net, ResNet) else n * net.depth
    weights = n * (net.widths[0] + 2 * hidden + net.widths[2])
    batch = max(1, min(networks, _BATCH_BYTES // (8 * weights)))
    what = f"drawing {amount(networks)} networks of {amount(weights)} weights"
    vectors = 6 * (net.widths[0] + (2 * net.depth + 3) * n + 2 * hidden + net.widths[2])
    afford(8 * batch * (3 * weights + vectors) + 80 * networks, what, "draw fewer or smaller ones")
    check_time(networks, _SECONDS * weights, what, "draw fewer")
    drawn = in_batches(lambda number: draw_residual_networks(net, number, rng), networks, batch)
    pieces = [residual_kernel(net, layers, x) for layers in drawn]
    return {name: np.concatenate([piece[name] for piece in pieces]) for name in pieces[0]}


def _times_vectors(matrices: FloatArray, vectors: FloatArray) -> FloatArray:
    product: FloatArray = np.einsum("bij,bj->bi", matrices, vectors)
    return product


def _inner(one: FloatArray, other: FloatArray) -> FloatArray:
    inner: FloatArray = np.einsum("bi,bi->b", one, other)
    return inner

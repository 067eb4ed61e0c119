"""The kernel by neural-tangents, compiled beforehand for the inputs' shape; convolutions in NHWC."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import neural_tangents as nt
import numpy as np

from peers.contender import Array, Compute, Problem, serve


def weights(problem: Problem) -> list[Any]:
    """Kernels (height, width, in, out); the linear layer after them reads positions before channels."""
    found = []
    for W, b in problem.layers:
        if W.ndim == 4:
            found.append((W.transpose(2, 3, 1, 0), b))
            channels = len(W)
        elif problem.x.ndim == 4:
            side = round((W.shape[1] // channels) ** 0.5)
            found.append((W.reshape(-1, channels, side, side).transpose(2, 3, 1, 0).reshape(W.shape[1], -1), b))
        else:
            found.append((W.T, b))
    return [(jnp.array(W), jnp.array(b)) for W, b in found]


def network(layers: list[Any], x: Any) -> Any:
    """The network that `networks.module` makes."""
    for i, (W, b) in enumerate(layers):
        if i:
            x = jax.nn.relu(x)
        if W.ndim == 4:
            stride = (2, 2) if i else (1, 1)
            x = jax.lax.conv_general_dilated(x, W, stride, [(1, 1)] * 2, dimension_numbers=("NHWC", "HWIO", "NHWC"))
            x = x + b
        else:
            x = x.reshape(len(x), -1) @ W + b
    return x


def prepare(problem: Problem) -> tuple[Compute, str]:
    full = problem.outputs == "full"
    kernel = nt.empirical_ntk_fn(
        network,
        trace_axes=() if full else (-1,),
        vmap_axes=0,
        implementation=getattr(nt.NtkImplementation, problem.method),
    )
    x = jnp.array(problem.x if problem.x.ndim == 2 else problem.x.transpose(0, 2, 3, 1))
    layers = weights(problem)
    compiled = jax.jit(lambda x, layers: kernel(x, None, layers)).lower(x, layers).compile()
    factor = np.float32(1 if full else len(problem.layers[-1][1]))  # its trace is a mean

    def compute() -> Array:
        found: Array = np.asarray(compiled(x, layers).block_until_ready()) * factor
        return found

    return compute, f"{nt.__version__} (jax {jax.__version__})"


if __name__ == "__main__":
    serve(prepare)

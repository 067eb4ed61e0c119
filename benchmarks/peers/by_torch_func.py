"""The kernel by torch.func: contraction of Jacobians, or NTK-vector products, the two recipes of torch's tutorial.

The tutorial takes two sets of inputs; here they are one, and its Jacobian is computed once.
"""

from __future__ import annotations

from typing import Any

import torch
from torch.func import functional_call, jacrev, jvp, vjp, vmap

from peers.contender import Array, Compute, Problem, serve
from peers.networks import module

Tensor = torch.Tensor


def jacobian(net: torch.nn.Module, x: Tensor, outputs: str) -> Tensor:
    """J of all parameters, contracted parameter by parameter."""
    weights = {name: each.detach() for name, each in net.named_parameters()}

    def single(given: dict[str, Tensor], sample: Tensor) -> Any:
        return functional_call(net, given, (sample[None],))[0]

    J = vmap(jacrev(single), (None, 0))(weights, x)
    recipe = "nip,mjp->nmij" if outputs == "full" else "nip,mip->nm"
    K = torch.zeros(())
    for each in J.values():
        K = K + torch.einsum(recipe, each.flatten(2), each.flatten(2))
    return K


def products(net: torch.nn.Module, x: Tensor, outputs: str) -> Tensor:
    """J (J^T v) for all unit vectors v, pair by pair of inputs."""
    weights = {name: each.detach() for name, each in net.named_parameters()}

    def pair(one: Tensor, other: Tensor) -> Any:
        value, pull = vjp(lambda given: functional_call(net, given, (one[None],))[0], weights)[:2]

        def column(v: Tensor) -> Any:
            return jvp(lambda given: functional_call(net, given, (other[None],))[0], (weights,), pull(v))[1]

        return vmap(column)(torch.eye(len(value), dtype=value.dtype))

    K: Tensor = vmap(vmap(pair, (None, 0)), (0, None))(x, x)
    return K if outputs == "full" else K.diagonal(dim1=2, dim2=3).sum(-1)


def prepare(problem: Problem) -> tuple[Compute, str]:
    net, x = module(problem), torch.tensor(problem.x)
    recipe = {"jacobian": jacobian, "products": products}[problem.method]
    recipe(net, x[:2], problem.outputs)

    def compute() -> Array:
        return recipe(net, x, problem.outputs).numpy()

    return compute, torch.__version__


if __name__ == "__main__":
    serve(prepare)

"""The kernel by finwidth."""

from __future__ import annotations

import torch

import finwidth
from finwidth.empirical import ntk
from peers.contender import Array, Compute, Problem, serve
from peers.networks import module


def prepare(problem: Problem) -> tuple[Compute, str]:
    net, x = module(problem), torch.tensor(problem.x)
    ntk(net, x[:2], outputs=problem.outputs)

    def compute() -> Array:
        K = ntk(net, x, outputs=problem.outputs, memory="1GiB")
        assert isinstance(K, torch.Tensor)
        return K.numpy()

    return compute, finwidth.__version__


if __name__ == "__main__":
    serve(prepare)

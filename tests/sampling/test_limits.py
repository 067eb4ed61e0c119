"""Limit laws, which are derived without proof (docs/theory), against draws in law at finite size."""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt
import pytest
from scipy import stats as laws

import finwidth
from finwidth import MLP, ResNet
from finwidth.sampling.one_input.residual_chain import ResidualChain
from finwidth.sampling.random.streams import stream
from finwidth.sampling.random.variates import Variates
from stats import follows, same_law

Paths = dict[str, npt.NDArray[np.float64]]
DRAWS, STEPS, N = 20_000, 300, 800


def diffusion(beta: float, covariance: float = -4.0) -> Paths:
    """N^2 / xi, K_w / (n xi) and K_b / n of the limit of d, n -> infinity at d/n = beta (docs/theory/norm-chain.md)."""
    rng, h = np.random.default_rng(1), beta / STEPS
    square, cosine = rng.standard_normal(DRAWS) ** 2, covariance / math.sqrt(40)
    log_length, Y, of_weights, of_biases = np.zeros(DRAWS), np.ones(DRAWS), np.zeros(DRAWS), np.zeros(DRAWS)
    for _ in range(STEPS):
        one, other = rng.standard_normal((2, DRAWS))
        both = cosine * one + math.sqrt(1 - cosine**2) * other
        below = log_length - 2.5 * h + math.sqrt(5 * h) * one
        grown = Y * np.exp(-2 * h + math.sqrt(8 * h) * both) + 2 * square * h
        of_weights += h / 2 * (Y + grown)
        of_biases += h / 4 * (Y * np.exp(log_length) + grown * np.exp(below))
        log_length, Y = below, grown
    length = np.exp(log_length)
    return {"N^2": length * square, "K_w": length * of_weights, "K_b": of_biases}


@pytest.mark.parametrize("beta", [0.25, pytest.param(1.0, marks=pytest.mark.slow)])
def test_deep_wide_networks_follow_a_diffusion(beta: float) -> None:
    """Networks of width 800; the covariance of the two Brownian motions is -4, and others are rejected."""
    drawn = finwidth.sample(MLP([3, *[N] * (round(beta * N) - 1), 1]), [1, 1, 1], DRAWS, seed=2)
    ours = {"N^2": drawn.output.to_numpy() ** 2, "K_w": drawn.K_w.to_numpy() / N, "K_b": drawn.K_b.to_numpy() / N}
    limit, wrong = diffusion(beta), diffusion(beta, covariance=0.0)
    for name, column in ours.items():
        assert same_law(column, limit[name]), name
    for one, other in (("K_w", "K_b"), ("N^2", "K_w")):
        assert same_law(ours[one] / ours[other], limit[one] / limit[other])
    for name in ("K_w", "K_b"):
        assert not same_law(ours[name], wrong[name]), name


@pytest.mark.parametrize("width", [10, 2])
def test_streams_of_small_blocks_are_log_normal(width: int) -> None:
    """|x_L|^2 / |x_0|^2 for b^2 = c/L and L -> infinity, at every width: mean c - 2c/n and variance 4c/n."""
    c, depth = 2, 400
    chain = ResidualChain(ResNet([3, width, 1], depth, branch=f"sqrt({c}/{depth})", bias="none"), 3.0)
    passed, U2, _ = chain._forward(Variates(stream(3, 0)), DRAWS)
    grown = np.log(U2 / passed[0].U2)
    assert follows(grown, laws.norm(c - 2 * c / width, math.sqrt(4 * c / width)).cdf)
    assert not follows(grown, laws.norm(c, math.sqrt(4 * c / width)).cdf)

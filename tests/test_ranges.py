"""Inputs of any size: every route is right where the result is a double, or refuses in one line that says why.

The kernel's part by the biases depends on the direction of an input only, that by the weights on its square.  So draws
of one seed at two sizes are the same networks: what they give is compared draw by draw, in powers of two.
"""

from __future__ import annotations

import math
import re
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import finwidth
from devices import DEVICE
from finwidth import MLP, Activation, FinwidthError
from finwidth.comparison import Comparison
from finwidth.empirical.reference.brute_force import draw_networks, kernel_at_input
from finwidth.networks.laws import FloatArray
from finwidth.sampling.one_input.importance import importance_estimates
from finwidth.sampling.statistics.estimates import estimate_moments
from stats import same_law, same_mean

SIZES = [5e-324, 1e-310, 1e-300, 1e-200, 1e-165, 1e-162, 1e-155, 1e-150, 1e-100, 1.0, 1e70]
HUGE = [1e154, 1e160, 1e300, 1.7e308]
NETWORKS = {
    "relu": MLP([2, 8, 8, 1]),
    "leaky": MLP([2, 8, 8, 1], activation="leaky_relu"),
    "bent": MLP([2, 6, 5, 4, 1], activation=Activation("bent", 2, -0.3), parameterization="standard"),
    "no biases": MLP([2, 8, 8, 1], bias="none"),
}
DRAWS = 400


def powers(values: FloatArray, power: int) -> FloatArray:
    """The values times 2^power."""
    return np.asarray(np.ldexp(values, power))


@pytest.mark.parametrize("device", [None, DEVICE])
@pytest.mark.parametrize("name", NETWORKS)
def test_one_input_in_law(name: str, device: str | None) -> None:
    if device:
        pytest.importorskip("torch", reason="a torch device")
    net = NETWORKS[name]
    one = finwidth.sample(net, [1.0, -1.5], DRAWS, seed=3, device=device)
    for power in (-1070, -600, -540, -515, -400, 100):
        found = finwidth.sample(net, [math.ldexp(1.0, power), math.ldexp(-1.5, power)], DRAWS, seed=3, device=device)
        assert found.K_b.to_numpy() == pytest.approx(one.K_b.to_numpy(), rel=1e-12)
        assert found.K_w.to_numpy() == pytest.approx(powers(one.K_w.to_numpy(), 2 * power), rel=1e-9, abs=1e-322)
        assert found.output.to_numpy() == pytest.approx(powers(one.output.to_numpy(), power), rel=1e-9, abs=1e-322)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("name", NETWORKS)
def test_means_agree_with_the_exact_ones(name: str, size: float) -> None:
    """Draws, tilted draws and drawn networks, each within its own error of exact arithmetic."""
    net, x = NETWORKS[name], [size, -size]
    exact = finwidth.compare(net, x, draws=20_000, networks=2000, seed=1)
    assert isinstance(exact, Comparison)
    rows = [row for row in exact.rows if row.exact == 0 or abs(row.exact) > 1e-312]  # below, draws have few digits
    for row in rows:
        for found in (row.sampled, row.tilted, row.networks):
            if found is not None and found.trust:
                z = found.z(row.exact)
                assert abs(found.value - row.exact) <= 1e-9 * abs(row.exact) if z is None else abs(z) < 5.5, row
    assert all(row.networks.trust for row in rows if row.quantity in {"K", "K_w", "K_b"})
    if name == "relu":
        drawn = importance_estimates(net, x, 20_000, seed=2)
        assert drawn["K_b"].value == pytest.approx(float(finwidth.moments(net, x).K_b.mean), rel=0.05)


@pytest.mark.parametrize("biases", [[0, 0.1, 0], [0.1, 0.1, 0.1], [0, 0, 0.5], [0, 1e-280, 0]])
@pytest.mark.parametrize("size", [5e-324, 1e-200, 1e-155])
def test_random_biases_beside_tiny_inputs(biases: list[float], size: float) -> None:
    """The mean of the exact transfer, which computes in decimals without a smallest number."""
    net = MLP([2, 8, 8, 1], bias_variance=biases)
    exact, drawn = finwidth.moments(net, [size, -size]), finwidth.sample(net, [size, -size], 40_000, seed=1)
    for name, moments in (("K_b", exact.K_b), ("K", exact.K)):
        mean, variance = float(moments.mean), float(moments.variance)
        assert same_mean(drawn[name].to_numpy(), mean, variance), name
        assert not same_mean(drawn[name].to_numpy(), 1.1 * mean, variance), name
    gram = finwidth.sample_gram(net, [[size, -size]], 40_000, seed=1)
    assert same_law(gram.K[:, 0, 0].to_numpy(), drawn.K.to_numpy())
    assert same_law(np.abs(gram.output[:, 0].to_numpy()) > 0, np.abs(drawn.output.to_numpy()) > 0)
    assert not same_law(1.1 * gram.K[:, 0, 0].to_numpy(), drawn.K.to_numpy())


X = np.array([[1.0, 2.0], [0.5, -1.0], [2.0, 4.5]])
POWERS = [[0, -600, 0], [-1074, 0, -400], [0, -515, 300], [-1060, -1060, -1060], [-530, -600, 0]]


@pytest.mark.parametrize("device", [None, DEVICE])
@pytest.mark.parametrize("shifts", POWERS)
@pytest.mark.parametrize("name", NETWORKS)
def test_several_inputs_in_law_are_scaled_each_by_itself(name: str, shifts: list[int], device: str | None) -> None:
    """A tiny or a huge input beside ordinary ones changes nothing of theirs."""
    if device:
        pytest.importorskip("torch", reason="a torch device")
    net = NETWORKS[name]
    given = np.ldexp(X, np.array(shifts)[:, None])
    kept = np.ldexp(given, -np.array(shifts)[:, None])  # what subnormal inputs keep of their digits
    one, found = (finwidth.sample_gram(net, each, 200, seed=1, device=device) for each in (kept, given))
    both = np.add.outer(shifts, shifts)
    assert found.K_b.to_numpy() == pytest.approx(one.K_b.to_numpy(), rel=1e-9, abs=1e-9)
    assert found.K_w.to_numpy() == pytest.approx(np.ldexp(one.K_w.to_numpy(), both), rel=1e-9, abs=1e-322)


@pytest.mark.parametrize("bias", ["trained", "none"])
@pytest.mark.parametrize("activation", ["relu", "leaky_relu", "tanh", "silu"])
def test_first_change_beside_tiny_inputs(activation: str, bias: str) -> None:
    """dK of ordinary inputs does not depend on how tiny another is; dK with that is in proportion to it."""
    net = MLP([2, 8, 8, 8, 1], activation=activation, bias=bias)

    def dK(power: int) -> Any:
        given = np.ldexp(X, np.array([[0], [power], [0]]))
        return finwidth.sample_gram(net, given, 100, seed=1, y=[1, -1, 0.5]).dK.to_numpy()

    one, other = dK(-400), dK(-500)
    assert np.isfinite(other).all()
    scale = np.abs(one[:, ::2, ::2]).max((1, 2), keepdims=True) + 1e-300
    assert other[:, ::2, ::2] / scale == pytest.approx(one[:, ::2, ::2] / scale, abs=1e-9)
    with_tiny = np.ldexp(other[:, 1, ::2], 100 if bias == "none" else 0)
    scale = np.abs(one[:, 1, ::2]).max(1, keepdims=True) + 1e-300
    assert with_tiny / scale == pytest.approx(one[:, 1, ::2] / scale, abs=1e-9)


def test_first_change_does_not_jump_where_units_begin() -> None:
    """Where gates are disjoint the step's push hid what the weights make of a tangent: dK was 10^19 at 2^-100."""
    net = MLP([2, 8, 8, 8, 1], bias="none")

    def largest(power: int) -> float:
        given = np.ldexp(X, np.array([[0], [power], [0]]))
        dK = finwidth.sample_gram(net, given, 300, seed=1, y=[1, -1, 0.5]).dK.to_numpy()
        return float(np.abs(dK[:, 0, 0]).max())

    sizes = [largest(power) for power in (-20, -60, -100, -300, -500)]
    assert sizes == pytest.approx([sizes[0]] * 5, rel=0.01)


@pytest.mark.parametrize("activation", ["relu", "tanh", "gelu"])
def test_tiny_inputs_in_training(activation: str) -> None:
    """Their kernel by the biases, and after a step theirs by what the other input taught the biases."""
    net, y = MLP([2, 200, 200, 1], activation=activation), [0.5, 1.0]
    runs = [finwidth.train(net, [[s, -s], [1.0, 2.0]], y, 2, 0.01, 3, seed=3) for s in (1e-100, 1e-155, 1e-165, 1e-300)]
    for run in runs[1:]:
        assert run.K[:, 0, 0, 0].to_numpy() == pytest.approx(runs[0].K[:, 0, 0, 0].to_numpy(), rel=1e-9)
        assert run.K.to_numpy() == pytest.approx(runs[0].K.to_numpy(), rel=0.1)  # as many numbers need not be drawn
        assert run.loss.to_numpy() == pytest.approx(runs[0].loss.to_numpy(), rel=0.1)
    with pytest.raises(FinwidthError, match="number 0 of the inputs underflows"):
        finwidth.train(net, [[5e-324, 0.0], [1.0, 2.0]], y, 2, 0.01, 3)
    with pytest.raises(FinwidthError, match="number 1 of the probe inputs underflows"):
        finwidth.train(net, X, [1, 2, 3], 2, 0.01, 3, probe=[[0.0, 0.0], [1e-310, 0.0]])


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_vectors_of_any_size_meet_matrix_free_layers(dtype: str) -> None:
    torch = pytest.importorskip("torch", reason="a torch layer")
    kind = getattr(torch, dtype)
    sizes = [2.0**-120, 2.0**-100, 2.0**-70, 2.0**100] if dtype == "float32" else [2.0**-1040, 2.0**-600, 2.0**900]
    for n in (10, 300):

        def norm(size: float, n: int = n) -> Any:
            torch.manual_seed(0)
            layer = finwidth.MatrixFreeLinear(n, n, bias=False, dtype=kind)
            x = torch.tensor(np.linspace(-1, 2, n), dtype=kind)[None] * size
            with np.errstate(over="ignore"):  # NumPy 1.26 sees one where a subnormal divides
                return layer(x).detach().double().numpy() / size

        for size in sizes:
            assert norm(size) == pytest.approx(norm(1.0), rel=1e-4 if dtype == "float32" else 1e-11, abs=2e-4)


def test_real_networks_of_the_smallest_input() -> None:
    net = NETWORKS["leaky"]
    weights, biases = draw_networks(net, 50, np.random.default_rng(0))
    one, tiny = (kernel_at_input(net, weights, biases, x) for x in ([1.0, -2.0], [5e-324, -1e-323]))
    assert np.array_equal(one["K_b"], tiny["K_b"])
    assert not tiny["K_w"].any()


@pytest.mark.parametrize("size", HUGE)
@pytest.mark.parametrize("name", NETWORKS)
def test_what_overflows_is_told(name: str, size: float) -> None:
    net, x = NETWORKS[name], [size, size]
    calls: list[Callable[[], object]] = [
        lambda: finwidth.sample(net, x, 100),
        lambda: finwidth.sample_gram(net, [x, [1.0, 1.0]], 100),
        lambda: finwidth.sample_gram(net, [x, [1.0, 1.0]], 100, y=[1, 2]),
        lambda: finwidth.train(net, [x, [1.0, 1.0]], [1.0, 2.0], 2, 0.01, 3),
        lambda: finwidth.infinite_width_gram(net, [x, [1.0, 1.0]]),
        lambda: finwidth.infinite_width(net, x),
        lambda: finwidth.compare(net, x, draws=100, networks=10),
    ]
    calls += [lambda: importance_estimates(net, x, 100)] if name in {"relu", "no biases"} else []
    for call in calls:
        with pytest.raises(FinwidthError, match="overflow"):
            call()


def test_large_inputs_of_bounded_activations_are_drawn() -> None:
    """No gate of tanh is open at 10^160, so K is that of the layers above."""
    net = MLP([2, 8, 8, 1], activation="tanh")
    one, other = (finwidth.sample_gram(net, [[s, -s], [1.0, 2.0]], 100, seed=2).K.to_numpy() for s in (1e100, 1e300))
    assert other == pytest.approx(one, rel=1e-9)


def test_estimates_of_huge_and_tiny_numbers_have_errors() -> None:
    rng = np.random.default_rng(0)
    drawn = {name: rng.exponential(size=5000) for name in ("K_w", "K_b")}
    drawn |= {"K": drawn["K_w"] + drawn["K_b"], "dK": -drawn["K_w"]}
    one = estimate_moments([drawn])
    for size in (1e-150, 1e-120, 1e120, 1e150):
        scaled = estimate_moments([{name: size * values for name, values in drawn.items()}])
        for name, power in (("K", 1), ("dK", 1), ("K^2", 2), ("K_w*K_b", 2)):
            assert scaled[name].value == pytest.approx(one[name].value * size**power, rel=1e-9)
            assert scaled[name].se == pytest.approx(one[name].se * size**power, rel=1e-9)
            assert scaled[name].effective_draws == pytest.approx(one[name].effective_draws)
    infinite = estimate_moments([{name: 1e200 * values for name, values in drawn.items()}])["K^2"]
    assert (infinite.value, infinite.trust, infinite.z(1.0)) == (math.inf, False, None)
    assert "overflows" in infinite.verdict


COMMANDS = [
    "moments 3,8,1 -i {}", "sample 3,8,1 -n 2000 -i {}", "sample 3,8,1 -n 2000 --tilted -i {}",
    "sample 3,1 -n 2000 --tilted --bias none -i {}", "compare 3,8,1 --draws 2000 --networks 50 -i {}",
    "moments 3,4,1 --exact --order 4 -i {}", "gram 3,8,8,1 -n 500 -i 1,2,-1 -i {}", "gram 3,8,1 -t 1 -n 500 -i {}",
]  # fmt: skip


def test_no_command_prints_a_number_that_is_none() -> None:
    """In one process: status 0 and no NaN nor warning, or status 2 and one line."""
    program = (
        "import sys\nfrom finwidth.cli.main import main\n"
        "for line in sys.stdin.read().splitlines():\n"
        "    sys.argv = ['finwidth', *line.split()]\n"
        "    print('>>>', line, flush=True)\n"
        "    print('>>>', line, file=sys.stderr, flush=True)\n"
        "    try:\n        main()\n"
        "    except SystemExit as end:\n        print('<<<', end.code or 0, flush=True)\n"
    )
    sizes = ("5e-324,0,0", "1e-165,1,1", "1e-310,-1e-310,0", "1e70,0,1", "1e120,0,0", "1e154,0,0", "1.7e308,1,1")
    lines = [command.format(size) for command in COMMANDS for size in sizes]
    ran = subprocess.run(
        [sys.executable, "-c", program], input="\n".join(lines), capture_output=True, text=True, check=True
    )
    outputs, errors = (
        dict(re.findall(r"^>>> (.*)\n((?:(?!>>>).*\n?)*)", text, re.M)) for text in (ran.stdout, ran.stderr)
    )
    assert set(outputs) == set(lines)
    for line in lines:
        status = int(outputs[line].rsplit("<<<", 1)[1])
        assert status in {0, 2}, line
        assert not re.search(r"\bnan\b", outputs[line]), outputs[line]
        if status == 0:
            assert not errors[line], errors[line]
        else:
            assert errors[line].count("\n") == 1, errors[line]
            assert "overflow" in errors[line]


@pytest.mark.parametrize(
    "net", [MLP([2, *[8] * 200, 1], activation="leaky_relu", gains=0.01), MLP([2, *[3] * 1500, 1], activation="abs")]
)
def test_activations_that_fade_with_depth(net: MLP) -> None:
    """Lengths of 10^-200, and of less than the smallest double, have directions."""
    exact = finwidth.moments(net, [1.0, -1.0])
    K_b = finwidth.sample_gram(net, [[1.0, -1.0]], 1000, seed=1).K_b[:, 0, 0].to_numpy()
    chain = finwidth.sample(net, [1.0, -1.0], 1000, seed=2).K_b.to_numpy()
    assert same_law(K_b, chain)
    assert not same_law(10 * K_b, chain)
    if exact.K_b.cv < 1:  # in the other network the mean rests on networks that never happen
        assert same_mean(K_b, float(exact.K_b.mean), float(exact.K_b.variance))


@pytest.mark.parametrize("norm", ["rms", "layer"])
@pytest.mark.parametrize("size", [1e-170, 1e-130, 1e130])
def test_the_input_that_a_normalised_network_cannot_take(norm: str, size: float) -> None:
    """It divides by its length; the others, however large, are not to blame."""
    net, X = MLP([2, 8, 8, 1], norm=norm, bias="none"), [[3.0, -1.0], [size, size]]
    words = rf"the largest entry of input 1 is {size:.3g}, .* one between 1e-77 and 1e77".replace("+", r"\+")
    with pytest.raises(FinwidthError, match=words):
        finwidth.sample_gram(net, X, draws=20)
    with pytest.raises(FinwidthError, match=words):
        finwidth.train(net, X, [0.0, 0.0], steps=1, lr=0.1, draws=4)
    for rescaled in (1e-77, 1e77):
        assert np.isfinite(finwidth.sample_gram(net, [[3.0, -1.0], [rescaled, rescaled]], draws=20).K).all()

"""The closed forms against the engine, their limits against sums, and the documentation page against both."""

import subprocess
import sys
from fractions import Fraction
from pathlib import Path

import pytest

from finwidth import MLP
from finwidth.errors import FinwidthError

sympy = pytest.importorskip("sympy", reason="needs the paper extra")
from finwidth.exact import closed_form as module  # noqa: E402
from finwidth.exact.closed_form import (  # noqa: E402
    QUANTITIES,
    b,
    closed_form,
    closed_form_value,
    d,
    formulas,
    n,
    n_0,
    proportional_limit,
    r2,
)
from finwidth.exact.partitions import pairs, start_state  # noqa: E402
from finwidth.exact.transfer import Input, compile_program, evaluate  # noqa: E402

PAGE = Path(__file__).parents[2] / "docs" / "theory" / "closed-forms.md"

FOUR = ((0, 1, 2, 3),)
STARTS = {
    "K_w": pairs("w"),
    "K_b": pairs("b"),
    "K_w^2": pairs("ww"),
    "K_w*K_b": pairs("wb"),
    "K_b^2": pairs("bb"),
    "D_ww": start_state(FOUR, [(0, 1, "w"), (1, 2, "w")]),
    "D_wb": start_state(FOUR, [(0, 1, "w"), (1, 2, "b")]),
    "N^4": start_state(FOUR, []),
    "N^2*K_b": start_state(FOUR, [(0, 1, "b")]),
}
INPUTS = [(1, 2), (3,), (Fraction(1, 2), -1, 2)]
XI = sympy.Symbol("xi", positive=True)  # |x|^2/n_0


def engine(net: MLP, x: tuple[int | Fraction, ...]) -> dict[str, Fraction]:
    program = compile_program(tuple(STARTS.values()), net)
    values = evaluate(program, net, Input.of([Fraction(a) for a in x], 4), Fraction)
    found = dict(zip(STARTS, values, strict=True))
    found["K"] = found["K_w"] + found["K_b"]
    found["K^2"] = found["K_w^2"] + 2 * found["K_w*K_b"] + found["K_b^2"]
    found["dK"] = -2 * found["D_ww"] - 4 * found["D_wb"]
    return found


def equal_widths(width: int, depth: int, x: tuple[int | Fraction, ...]) -> MLP:
    return MLP([len(x), *[width] * (depth - 1), 1])


def value(quantity: str, width: int, depth: int, x: tuple[int | Fraction, ...]) -> Fraction:
    norm2 = sum((Fraction(a) ** 2 for a in x), Fraction(0))
    return closed_form_value(quantity, width=width, depth=depth, input_width=len(x), norm2=norm2)


@pytest.mark.parametrize("width", [*range(1, 8), 12, 40])
@pytest.mark.parametrize("x", INPUTS, ids=str)
def test_equal_to_the_engine(width: int, x: tuple[int | Fraction, ...]) -> None:
    for depth in range(1, 10):
        expected = engine(equal_widths(width, depth, x), x)
        for quantity in QUANTITIES:
            assert value(quantity, width, depth, x) == expected[quantity], (quantity, depth)


@pytest.mark.parametrize(("width", "depth"), [(2, 60), (30, 40), (200, 15)])
def test_equal_to_the_engine_deep_or_wide(width: int, depth: int) -> None:
    expected = engine(equal_widths(width, depth, (1, 2)), (1, 2))
    for quantity in QUANTITIES:
        assert value(quantity, width, depth, (1, 2)) == expected[quantity], quantity


def test_only_the_norm_of_the_input_enters() -> None:
    net = MLP([2, 3, 3, 3, 1])
    assert engine(net, (3, 4)) == engine(net, (5, 0))
    other = MLP([2, 3, 3, 3, 1], "laplace")
    assert engine(other, (3, 4))["K_w^2"] != engine(other, (5, 0))["K_w^2"]


def test_other_laws_are_other_numbers() -> None:
    expected = engine(MLP([2, 3, 3, 1], "uniform"), (1, 2))
    for quantity in ("K_w^2", "K_w*K_b", "K_b^2", "D_ww", "D_wb"):
        assert value(quantity, 3, 3, (1, 2)) != expected[quantity]


def test_only_the_four_symbols_are_left() -> None:
    for quantity in QUANTITIES:
        assert closed_form(quantity).free_symbols <= {n, d, n_0, r2}
        assert proportional_limit(quantity).free_symbols <= {b, n_0, r2}


def test_no_denominator_can_vanish() -> None:
    for quantity in QUANTITIES:
        denominator = sympy.denom(sympy.together(module._by_growth(quantity)))
        # Integers, n_0 and 5 + n 2^-n: all above 0.
        assert sympy.Poly(denominator, n, n_0, module._DEAD).free_symbols <= {n, n_0, module._DEAD}
        assert all(coefficient > 0 for coefficient in sympy.Poly(denominator, n, n_0, module._DEAD).coeffs())


# ---- the limit d/n = b


@pytest.mark.parametrize("quantity", [q for q in QUANTITIES if q != "K_w"])  # K_w/d is its limit
@pytest.mark.parametrize("ratio", [Fraction(1, 2), Fraction(2)])
def test_the_limit_is_reached_at_rate_one_over_width(quantity: str, ratio: Fraction) -> None:
    limit = float(proportional_limit(quantity).subs({b: sympy.Rational(str(ratio)), n_0: 2, r2: 5}))
    order = 1 if quantity in ("K", "K_b") else 2
    errors = []
    for width in (100, 200):
        depth = int(ratio * width)
        errors.append(float(value(quantity, width, depth, (1, 2)) / depth**order) / limit - 1)
    assert abs(errors[1]) < 0.2
    assert errors[0] / errors[1] == pytest.approx(2, abs=0.35)


def test_limits_are_the_papers_sums_times_constants() -> None:
    """Riemann sums of theorems 1 and 2 with the hidden part of beta; the constants are 1/2 (biases), 4, 1 (update)."""
    s, t = sympy.symbols("s t", positive=True)
    growth = sympy.exp(5 * b)
    biases = growth * sympy.integrate(t * sympy.exp(-5 * b * t), (t, 0, 1))
    first = XI**2 * growth * sympy.integrate((1 - s) * (1 - sympy.exp(-6 * b * s)) / 6, (s, 0, 1))
    above = sympy.integrate((1 - sympy.exp(-6 * b * s)) / 6, (s, 0, 1 - t))
    second = XI * growth * sympy.integrate(sympy.expand(sympy.exp(-5 * b * t) * above), (t, 0, 1))
    for quantity, constant, paper in (("K_b^2", Fraction(1, 2), biases), ("D_ww", 4, first), ("D_wb", 1, second)):
        difference = proportional_limit(quantity).subs(r2, XI * n_0) - sympy.nsimplify(constant) * paper
        assert sympy.simplify(difference) == 0, quantity


def test_the_two_ratios_at_both_ends() -> None:
    limit = {name: proportional_limit(name).subs(r2, XI * n_0) for name in ("K", "K^2", "dK")}
    spread, move = limit["K^2"] / limit["K"] ** 2, -limit["dK"] / limit["K"]
    half, grown = sympy.Rational(1, 2), sympy.exp(5 * b)
    ends = (
        (spread, 0, 1),
        (spread / grown, sympy.oo, XI**2 / (3 * (XI + half) ** 2)),
        (move / b, 0, 4 * XI / 3),
        (move / grown, sympy.oo, 2 * XI**2 / (3 * (XI + half))),
    )
    for ratio, end, expected in ends:
        assert sympy.simplify(sympy.limit(ratio, b, end) - expected) == 0, expected


# ---- what the page says beyond equal widths and Gaussian weights


@pytest.mark.parametrize("activation", ["relu", "leaky_relu", "linear"])
def test_moments_and_update_add_up_at_any_widths(activation: str) -> None:
    net = MLP([2, 3, 1, 4, 2, 1], activation=activation)
    found = engine(net, (1, 2))
    assert found["K_w^2"] + 2 * found["D_ww"] == Fraction(net.depth**2, 3) * found["N^4"]
    assert found["K_w*K_b"] + 2 * found["D_wb"] == net.depth * found["N^2*K_b"]
    laplace = engine(MLP([2, 3, 1, 4, 2, 1], "laplace", activation), (1, 2))
    assert laplace["K_w^2"] + 2 * laplace["D_ww"] != Fraction(net.depth**2, 3) * laplace["N^4"]


def test_unequal_widths_replace_powers_by_products() -> None:
    hidden = [3, 1, 4, 2]
    alpha, rho = [1 + Fraction(5, m) for m in hidden], [1 - Fraction(1, m) for m in hidden]
    total = Fraction(0)
    for i in range(len(hidden) + 1):
        for j in range(len(hidden) + 1):
            low, high = min(i, j), max(i, j)
            together = apart = Fraction(1)
            for layer in range(len(hidden)):
                together *= alpha[layer]
                apart *= rho[layer] if low <= layer < high else alpha[layer]
            total += (together + 2 * apart) / 3
    assert engine(MLP([2, *hidden, 1]), (1, 2))["K_w^2"] == Fraction(5, 2) ** 2 * total


@pytest.mark.parametrize("law", ["gaussian", "uniform", "laplace"])
def test_growth_under_other_laws(law: str) -> None:
    """E[N^4] obeys the recurrence of the 2 x 2 matrix of other laws; its larger root is 1 + 5/n + 12 (mu_4 - 3)/n^2."""
    width, mu_4 = 3, MLP([1, 1], law).weight_law.moment(4)
    trace = 1 + (2 * mu_4 - 1) / width
    determinant = 2 * (1 - Fraction(1, width)) * (mu_4 - 3) / width
    fourth = [engine(MLP([2, *[width] * k, 1], law), (1, 2))["N^4"] for k in range(5)]
    for low, middle, high in zip(fourth, fourth[1:], fourth[2:], strict=False):
        assert high == trace * middle - determinant * low
    z, m = sympy.Symbol("z"), sympy.Symbol("m", positive=True)
    root = 1 + 5 * z + 12 * (m - 3) * z**2
    polynomial = root**2 - (1 + (2 * m - 1) * z) * root + 2 * z * (1 - z) * (m - 3)
    assert sympy.Poly(sympy.expand(polynomial), z).coeffs()[-1] != 0
    assert all(sympy.expand(polynomial).coeff(z, k) == 0 for k in range(3))


# ---- the module and the page


def test_the_page_holds_what_the_module_prints() -> None:
    printed = subprocess.run(
        [sys.executable, "-m", "finwidth.exact.closed_form"], capture_output=True, text=True, check=True
    ).stdout
    assert printed == formulas() + "\n"
    assert printed in PAGE.read_text(encoding="utf-8")


def test_sympy_is_imported_here_only() -> None:
    code = "import sys, finwidth.exact.transfer; sys.exit('sympy' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_forms_are_built_once() -> None:
    assert closed_form("K^2") is closed_form("K^2")


def test_unknown_quantities_and_bad_numbers() -> None:
    with pytest.raises(FinwidthError, match=r"the closed form of 'K\^3' is not known; choose one of K_w, K_b"):
        closed_form("K^3")
    with pytest.raises(FinwidthError, match="the closed form of"):
        proportional_limit("Delta")
    good: dict[str, int | Fraction] = {"width": 3, "depth": 3, "input_width": 2, "norm2": 5}
    for name, number in (("width", 0), ("depth", True), ("input_width", 2.0), ("norm2", 0), ("norm2", 0.5)):
        with pytest.raises(FinwidthError, match=f"{name} is {number}; give"):
            closed_form_value("K", **{**good, name: number})  # type: ignore[arg-type]

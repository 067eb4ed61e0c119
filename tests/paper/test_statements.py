"""Every statement of the paper holds, and a statement made wrong on purpose fails."""

from __future__ import annotations

import json
import math
import random
from collections.abc import Callable
from dataclasses import replace
from fractions import Fraction
from itertools import product

import numpy as np
import pytest

from finwidth.errors import FinwidthError
from finwidth.networks.mlp import MLP
from finwidth.paper import bias_checks, derivative_checks, moment_checks, path_checks, probability_checks
from finwidth.paper.findings import flipping_gates
from finwidth.paper.paths import enumerate_moments, is_even
from finwidth.paper.records import Finding, Statement
from finwidth.paper.statements import STATEMENTS, check, to_json


@pytest.mark.parametrize("id", STATEMENTS)
def test_statement_holds(checked: dict[str, Statement], id: str) -> None:
    assert checked[id].holds is True, checked[id]
    assert checked[id].claim.endswith(".")
    assert checked[id].figures


def test_every_statement_of_the_paper_is_there(checked: dict[str, Statement], seen: list[str]) -> None:
    numbered = [f"{kind}-{k}" for kind, many in (("theorem", (1, 2)), ("proposition", (3, 4, 5))) for k in many]
    numbered += [f"{'proposition' if k == 10 else 'lemma'}-{k}" for k in range(6, 15)]
    numbered += ["definition-1", "definition-2", "definition-3", "figure-1", "figure-2"]
    assert list(STATEMENTS) == numbered == list(checked) == seen


def test_a_statement_that_is_not_there() -> None:
    with pytest.raises(FinwidthError, match=r"statement 'lemma-15' is not known; choose one of theorem-1, "):
        check("lemma-15")


WRONG: dict[str, Callable[[], Statement]] = {
    "theorem 1 with exp(4 beta)": lambda: moment_checks.theorem_1(growth=4),
    "theorem 2 with exp(6 beta)": lambda: moment_checks.theorem_2(growth=6),
    "proposition 3 with exp(4 beta)": lambda: moment_checks.proposition_3(growth=4),
    "proposition 4 with exp(6 beta)": lambda: moment_checks.proposition_4(growth=6),
    "proposition 5 with exp(4 beta)": lambda: moment_checks.proposition_5(growth=4),
    "lemma 7 with the other sign": lambda: path_checks.lemma_7(exponent_sign=-1),
    "lemma 8 with 5 ways": lambda: path_checks.lemma_8(ways=5),
    "lemma 8 with 7 ways": lambda: path_checks.lemma_8(ways=7),
    "lemma 9 with 3 ways": lambda: path_checks.lemma_9(ways=3),
    "proposition 10 without alpha": lambda: probability_checks.proposition_10(slope=0, chains=100),
    "proposition 10 with alpha twice": lambda: probability_checks.proposition_10(slope=2, chains=100),
    "lemma 11 without a density": lambda: probability_checks.lemma_11([probability_checks.SIGNS], 2000),
    "lemma 13 with the printed sign": lambda: bias_checks.lemma_13(exponent_sign=-1),
    "lemma 14 with exp(4 sum)": lambda: bias_checks.lemma_14(growth=4),
    "lemma 14 with exp(6 sum)": lambda: bias_checks.lemma_14(growth=6),
}


@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_statement_fails(name: str) -> None:
    assert WRONG[name]().holds is False


def test_differences_are_the_derivatives_that_torch_finds() -> None:
    torch = pytest.importorskip("torch")
    for net in derivative_checks.DRAWN:
        for each in derivative_checks.drawn_networks(net):
            theta = torch.tensor(each.theta, requires_grad=True)
            (gradient,) = torch.autograd.grad(each.output(theta), theta, create_graph=True)
            rows = [torch.autograd.grad(one, theta, retain_graph=True)[0] for one in gradient]
            for found, wanted in zip(each.first_and_second, (gradient.detach(), torch.stack(rows)), strict=True):
                np.testing.assert_allclose(found, wanted.numpy(), atol=1e-7)


def test_path_sums_see_a_wrong_derivative() -> None:
    (each,) = derivative_checks.drawn_networks(derivative_checks.DRAWN[0], 1)
    wrong = replace(each, theta=each.theta * np.where(each.is_weight, 1.001, 1))
    sums, exact = derivative_checks.path_sums(each), wrong.by_derivatives()
    assert all(abs(sums[name] / exact[name] - 1) > 1e-3 for name in ("K_w", "D_ww"))


def test_figures_show_what_they_say() -> None:
    kept, swapped = path_checks.figure_paths(1), path_checks.figure_paths(2)
    loop = path_checks.MEETINGS[0] + 1
    for gammas in (kept, swapped):
        assert is_even(gammas)
        assert path_checks.partners(gammas, path_checks.FIRST_MARK) == path_checks.KEPT
        assert path_checks.partners(gammas, path_checks.SECOND_MARK) == path_checks.KEPT
    assert path_checks.partners(kept, loop) == path_checks.KEPT
    assert path_checks.partners(swapped, loop) != path_checks.KEPT


def test_even_fours_are_all_even_tuples() -> None:
    paths = path_checks.from_input(MLP([2, 2, 1]))
    assert set(path_checks.even_fours(paths, paths)) == set(filter(is_even, product(paths, repeat=4)))


def test_bias_sums_know_what_the_print_leaves_out() -> None:
    net = MLP([2, 1, 2, 1])
    exact = tuple(enumerate_moments(net, [1, 1], kinds) for kinds in ("b", "bb"))
    assert bias_checks.bias_sums(net) == exact
    assert bias_checks.bias_sums(net, as_printed=True)[0] == Fraction(3, 2) != exact[0]


def test_chains_by_both_ways_and_the_counterexample() -> None:
    chain = probability_checks.counterexample()
    assert chain.mean() == chain.mean_by_listing() == Fraction(1, 10)
    assert chain.lower() == 79210
    assert min(chain.lower_factors()) < 0
    assert math.prod(chain.factors()) <= chain.mean()


def test_both_bounds_of_chains_need_alpha_of_at_least_one() -> None:
    falling, rising = (probability_checks.small_factor(Fraction(gamma)) for gamma in (Fraction(1, 2), 2))
    assert falling.mean() == falling.mean_by_listing() == Fraction(1, 20) < falling.lower() == Fraction(19, 200)
    assert min(falling.lower_factors()) > 0
    assert rising.mean() == rising.mean_by_listing() == Fraction(1, 5) > rising.upper() == Fraction(11, 100)
    for chain in (falling, rising):
        assert math.prod(chain.factors()) == chain.mean()


def test_and_k_of_at_least_one() -> None:
    one = [Fraction(1)]
    chain = probability_checks.Chain([Fraction(0)], one, one, one, [Fraction(1, 2)])
    assert chain.mean() == Fraction(1, 2) == math.prod(chain.factors()) < chain.lower() == 1


@pytest.mark.parametrize("seed", range(3))
def test_bounds_that_need_no_more_hold_for_all_chains(seed: int) -> None:
    """Steps with p = 0, p = 1, p + q = 1, alpha = 0 and K = 0 among them."""
    rng = random.Random(seed)
    for growing in (True, False):
        for _ in range(300):
            chain = probability_checks.random_chain(rng, growing=growing, small=True)
            alpha, K = ([rng.choice((each, Fraction(0))) for each in some] for some in (chain.alpha, chain.K))
            for each in (chain, replace(chain, alpha=alpha), replace(chain, K=K)):
                bound = math.prod(each.factors())
                assert min(each.factors()) >= 0
                assert each.mean() <= bound if growing else each.mean() >= bound


def test_findings(found: tuple[Finding, ...]) -> None:
    bias, dead, sign, _, growth, *_ = found
    assert bias.figures["E[K_b], exact"] == pytest.approx(5)
    assert all(text.split(", ")[0] == text.split(", ")[1] for text in map(str, dead.figures.values()))
    assert sign.figures["E[K_b^2], exact"] == sign.figures["with 2^{2-|Gamma(i)|}"]
    assert sign.figures["E[K_b^2], exact"] != sign.figures["with the printed sign"]
    ratio = growth.figures["exp(5/n)^layers / (1 + 5/n)^layers"]
    assert ratio == pytest.approx(5.01, abs=0.01)


def test_json_has_plain_types(checked: dict[str, Statement], found: tuple[Finding, ...]) -> None:
    document = json.loads(json.dumps(to_json(checked.values(), found), allow_nan=False))["results"]
    assert [each["id"] for each in document["statements"]] == list(STATEMENTS)
    assert set(document["statements"][0]) == {"id", "claim", "checked_by", "figures", "holds", "note"}
    assert len(document["findings"]) == len(found) >= 5
    wrong = replace(checked["lemma-9"], figures={"limit": float("inf"), "half": Fraction(1, 2)})
    assert wrong.content()["figures"] == {"limit": None, "half": "1/2"}


def test_flipping_gates_move_the_mean() -> None:
    """Measured changes agree with the derivative and the flips together, and not with the derivative alone."""
    for text in flipping_gates().figures.values():
        derivative, both, measured = (part.split(" ± ") for part in str(text).split(", "))
        mean, error = map(float, measured)
        assert abs(mean - float(both[0])) < 5 * error + 0.1 * abs(float(both[0]))  # to leading order in 1/n
        assert abs(mean - float(derivative[0])) > 5 * error + 0.1 * abs(float(both[0]))

"""Weight laws: symmetric distributions of unit variance, given by their even moments and a sampler."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from fractions import Fraction
from itertools import pairwise
from typing import TypeAlias

import numpy as np

from finwidth import arguments
from finwidth.errors import FinwidthError, shown

Rational: TypeAlias = int | Fraction
FloatArray: TypeAlias = arguments.FloatArray
Sampler: TypeAlias = Callable[[np.random.Generator, tuple[int, ...]], FloatArray]


@dataclass(frozen=True)
class WeightLaw:
    """A symmetric law of mean 0 and variance 1 for the entries of a weight matrix.

    Parameters
    ----------
    name
        What the law is called in tables and file attributes.
    even_moments
        ``(mu_2, mu_4, mu_6, mu_8)``, dimensionless; ``mu_2`` must be 1.  The second moment of the
        kernel needs ``mu_4``; its third and fourth need ``mu_6`` and ``mu_8``.  Fractions keep exact
        results exact; a float stands for a moment that is not rational.
    sample
        ``sample(rng, shape)`` draws an array of independent entries.

    Raises
    ------
    FinwidthError
        If ``mu_2`` is not 1, or the moments are those of no law at all.

    Examples
    --------
    >>> from fractions import Fraction
    >>> from finwidth import WeightLaw
    >>> signs = WeightLaw("signs", (1, 1, 1, 1), lambda rng, shape: rng.choice([-1.0, 1.0], shape))
    >>> signs.moment(4)
    Fraction(1, 1)
    """

    name: str
    even_moments: tuple[Rational | float, ...]
    sample: Sampler = field(compare=False, repr=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "name", arguments.text("the name of a weight law", self.name, "a text"))
        arguments.function("sample", self.sample, "a function of a NumPy generator and a shape")
        wanted = "even_moments=(mu_2, mu_4, ...), which must be finite and begin with mu_2 = 1"
        moments = tuple(arguments.items("even_moments", self.even_moments, wanted))
        for place, moment in enumerate(moments, 1):
            arguments.exact(f"mu_{2 * place} of weight law {shown(self.name)}", moment, wanted)
        object.__setattr__(self, "even_moments", moments)
        if not moments or moments[0] != 1:
            raise FinwidthError(
                f"weight law {shown(self.name)} has even moments {shown(moments)}; they must be finite and begin "
                "with mu_2 = 1 (rescale the law to unit variance and set the scale with gains=)"
            )
        # Lyapunov: mu_{2k}^(1/2k) grows with k, for any law.
        roots = [float(m) ** (1 / (2 * k)) if m > 0 else 0.0 for k, m in enumerate(moments, 1)]
        if any(after < before * (1 - 1e-12) for before, after in pairwise(roots)):
            raise FinwidthError(
                f"weight law {shown(self.name)} has even moments {shown(moments)}; no law of unit variance has "
                "these (mu_4 >= 1, mu_6 >= mu_4^(3/2), mu_8 >= mu_6^(4/3))"
            )

    @property
    def rational(self) -> bool:
        """Whether every moment is known exactly."""
        return all(isinstance(m, int | Fraction) for m in self.even_moments)

    def moment(self, order: int) -> Fraction:
        """E[W^order] for an even ``order``; raises FinwidthError past the moments given."""
        if arguments.count("order", order, 0) % 2:
            raise FinwidthError(f"order is {order}; give an even number: the odd moments are 0")
        if not order:
            return Fraction(1)
        if order // 2 > len(self.even_moments):
            raise FinwidthError(
                f"weight law {shown(self.name)} gives moments up to mu_{2 * len(self.even_moments)}; "
                f"this result needs mu_{order}: give it in even_moments="
            )
        return arguments.as_fraction(self.even_moments[order // 2 - 1])


def _smoothed_sign_moments(half_width: Fraction) -> tuple[Fraction, ...]:
    """Even moments of (sign + half_width * U) / sqrt(1 + half_width^2/3), U uniform on [-1, 1]."""
    variance = 1 + half_width**2 / 3
    raw = [
        sum((math.comb(2 * k, 2 * j) * half_width ** (2 * j) / Fraction(2 * j + 1) for j in range(k + 1)), Fraction(0))
        for k in range(1, 5)
    ]
    return tuple(moment / variance**k for k, moment in enumerate(raw, 1))


_HALF = Fraction(1, 2)


def _sample_smoothed_sign(rng: np.random.Generator, shape: tuple[int, ...]) -> FloatArray:
    signs = 2.0 * rng.integers(0, 2, shape) - 1.0
    return (signs + 0.5 * rng.uniform(-1, 1, shape)) / math.sqrt(1 + 0.25 / 3)


def _truncated_normal_moments(cut: float) -> tuple[float, ...]:
    """Even moments of a normal variable kept within +-cut, rescaled to unit variance.

    Integration by parts: m_k = (k - 1) m_{k-2} - 2 cut^(k-1) phi(cut) / Z.
    """
    boundary = 2 * math.exp(-cut * cut / 2) / math.sqrt(2 * math.pi) / math.erf(cut / math.sqrt(2))
    raw = [1.0]
    for k in range(2, 9, 2):
        raw.append((k - 1) * raw[-1] - cut ** (k - 1) * boundary)
    return (1, *(raw[k] / raw[1] ** k for k in range(2, 5)))


_CUT = 2.0
_CUT_SCALE = 1 / math.sqrt(1 - _CUT * 2 * math.exp(-(_CUT**2) / 2) / math.sqrt(2 * math.pi) / math.erf(_CUT / 2**0.5))


def _sample_truncated_normal(rng: np.random.Generator, shape: tuple[int, ...]) -> FloatArray:
    draws = rng.standard_normal(shape)
    outside = np.abs(draws) > _CUT
    while outside.any():
        draws[outside] = rng.standard_normal(int(outside.sum()))
        outside = np.abs(draws) > _CUT
    return draws * _CUT_SCALE


# All rescaled to unit variance. truncated-normal is the shape of torch.nn.init.trunc_normal_ with std=1 and its default
# cut at +-2; smoothed-rademacher is a random sign plus uniform noise of half-width 1/2.
LAWS: dict[str, WeightLaw] = {
    law.name: law
    for law in (
        WeightLaw("gaussian", (1, 3, 15, 105), lambda rng, shape: rng.standard_normal(shape)),
        WeightLaw(
            "uniform",
            (1, Fraction(9, 5), Fraction(27, 7), Fraction(9)),
            lambda rng, shape: rng.uniform(-math.sqrt(3), math.sqrt(3), shape),
        ),
        WeightLaw("laplace", (1, 6, 90, 2520), lambda rng, shape: rng.laplace(0.0, math.sqrt(0.5), shape)),
        WeightLaw("smoothed-rademacher", _smoothed_sign_moments(_HALF), _sample_smoothed_sign),
        WeightLaw("truncated-normal", _truncated_normal_moments(_CUT), _sample_truncated_normal),
    )
}


def weight_law(law: str | WeightLaw) -> WeightLaw:
    """The law called ``law``, or ``law`` itself if it already is one."""
    if isinstance(law, WeightLaw):
        return law
    return LAWS[arguments.one_of("weight law", law, LAWS, more=", or give a WeightLaw")]

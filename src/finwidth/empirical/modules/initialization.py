"""How the weights of a torch network were drawn, inferred from the weights themselves.

A module does not say how it was initialised. What is tested is whether its weights pass for draws of the schemes that
PyTorch users call, layer by layer: Kolmogorov-Smirnov; the bound of a uniform law; for Gaussian weights the mean square
and the largest singular value, which exceeds sd (sqrt n + sqrt m + t) with probability at most exp(-t^2/2) (Davidson
and Szarek, 2001, theorem II.13). Weights fresh from one of the schemes are refused less than once in 10^6. Of the
schemes that pass the likeliest is taken if it is 10^4 times likelier than each other one; by Markov's inequality a
wrong one beats the right one so less than once in 10^4. Not seen: a scheme that is none of these and that so few
weights do not tell from one of them, and training that moves Gaussian weights by much less than their size.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from itertools import pairwise
from typing import TypeAlias, TypedDict, TypeGuard

import numpy as np
import torch
from torch import nn

from finwidth.arguments import table
from finwidth.errors import FinwidthError, shown
from finwidth.networks.activations import Activation
from finwidth.networks.description import Gains
from finwidth.networks.laws import FloatArray, WeightLaw


class LawOptions(TypedDict, total=False):
    """The arguments of `finwidth.MLP` that say how weights and biases are drawn."""

    weight_law: str | WeightLaw
    gains: Gains
    bias: str | Sequence[str]
    bias_variance: Gains
    bias_law: str | WeightLaw


Scheme: TypeAlias = tuple[str, tuple[Fraction, ...]]  # the law's name, and the gain of each layer

_ARGUMENTS = LawOptions.__annotations__.keys()  # that a user may state
_FALSE_REFUSALS = 1e-6
_LIKELIER = math.log(1e4)
_TESTED = 2**17  # weights of a layer that the slower test looks at
_ROUNDING = 1e-6  # float32 weights may exceed a bound by this share
_CLOSE = 1e-3  # gains that differ by less are taken as one: leaky ReLU of slope 0.01, with and without its own gain


def schemes(widths: Sequence[int], phi: Activation) -> dict[str, Scheme]:
    """The initializations that are known, by name: the weights' law, and for each layer fan-in times their variance.

    Examples
    --------
    >>> from finwidth.networks.activations import ACTIVATIONS
    >>> from finwidth.empirical.modules.initialization import schemes
    >>> schemes([2, 8, 1], ACTIVATIONS["relu"])["xavier_normal"]
    ('gaussian', (Fraction(2, 5), Fraction(16, 9)))
    """
    fans = list(pairwise(widths))
    same = {"default": Fraction(1, 3), "kaiming": phi.default_gain, "lecun": Fraction(1), "kaiming, a = 0": Fraction(2)}
    gains = {name: tuple(gain for _ in fans) for name, gain in same.items()}
    gains["xavier"] = tuple(Fraction(2 * n, n + m) for n, m in fans)
    gains["xavier, relu gain"] = tuple(2 * gain for gain in gains["xavier"])
    found: dict[str, Scheme] = {"default": ("uniform", gains.pop("default"))}
    for name, values in gains.items():
        family, comma, rest = name.partition(",")
        for suffix, law in (("uniform", "uniform"), ("normal", "gaussian")):
            found.setdefault(f"{family}_{suffix}{comma}{rest}", (law, values))
    return found | {"unit_normal": ("gaussian", tuple(Fraction(n) for n, _ in fans))}


def stated(init: str | Mapping[str, object], widths: Sequence[int], phi: Activation) -> LawOptions:
    """The law of the weights that the user states, as arguments of `finwidth.MLP`."""
    if isinstance(init, Mapping):
        given = table("init", init, "arguments of finwidth.MLP by name")
        if not _is_law(given):
            name, allowed = next(iter(given.keys() - _ARGUMENTS)), ", ".join(sorted(_ARGUMENTS))
            raise FinwidthError(f"init names {shown(name)}; give some of {allowed}")
        return given
    known = schemes(widths, phi)
    if not isinstance(init, str) or init not in known:
        raise FinwidthError(
            f"init {shown(init)} is not known; choose one of {'; '.join(known)}, or give arguments of finwidth.MLP "
            'such as {"weight_law": "gaussian", "gains": 1}'
        )
    law, gains = known[init]
    return {"weight_law": law, "gains": gains}


def _is_law(given: Mapping[str, object]) -> TypeGuard[LawOptions]:
    return given.keys() <= _ARGUMENTS


def inferred(tensors: Mapping[str, torch.Tensor], phi: Activation) -> LawOptions:
    """The scheme that fits the weights, given by name from first to last layer; FinwidthError if that is not clear."""
    weights = [_as_doubles(each) for each in tensors.values()]
    for name, weight in zip(tensors, weights, strict=True):
        if _orthogonal(weight):
            raise _unknown(f"the weights of layer {name!r} are orthogonal, so they are not independent")
    known = _distinct(schemes([weights[0].shape[1], *(len(weight) for weight in weights)], phi))
    likelihoods = {name: _log_likelihood(weights, scheme) for name, scheme in known.items()}
    ordered = sorted((name for name in known if math.isfinite(likelihoods[name])), key=likelihoods.__getitem__)
    fitting = [name for name in reversed(ordered) if _fits(weights, known[name])]
    if not fitting:
        sizes = [f"{weight.shape[1] * np.square(weight).mean():.3g}" for weight in weights]
        measured = ", ".join(sizes[:6] + ["..."] * (len(sizes) > 6))
        raise _unknown(
            f"its weights fit none of {'; '.join(known)}, so they are trained, or drawn otherwise "
            f"(fan-in times mean square, by layer: {measured})"
        )
    best = likelihoods[fitting[0]]
    rivals = [name for name in fitting if best - likelihoods[name] < _LIKELIER]
    if len(rivals) > 1:
        raise _unknown(f"its weights are too few to tell {' from '.join(rivals)}")
    law, gains = known[fitting[0]]
    return {"weight_law": law, "gains": gains}


def _unknown(reason: str) -> FinwidthError:
    return FinwidthError(
        f"how this module was initialised cannot be told: {reason}. Say it with init=, such as "
        'init="kaiming_normal", or with arguments of finwidth.MLP such as {"weight_law": "gaussian", "gains": 1}'
    )


def _as_doubles(tensor: torch.Tensor) -> FloatArray:
    array: FloatArray = tensor.detach().to("cpu", torch.float64).numpy()
    return array


def _distinct(known: dict[str, Scheme]) -> dict[str, Scheme]:
    """The schemes that differ from every earlier one at these widths."""
    kept: dict[str, Scheme] = {}
    for name, scheme in known.items():
        if not any(_same_scheme(scheme, other) for other in kept.values()):
            kept[name] = scheme
    return kept


def _same_scheme(one: Scheme, other: Scheme) -> bool:
    numbers, others = (np.array(gains, dtype=np.float64) for _, gains in (one, other))
    return one[0] == other[0] and np.allclose(numbers, others, _CLOSE)


def _deviations(weights: list[FloatArray], scheme: Scheme) -> Iterator[tuple[FloatArray, float]]:
    for weight, gain in zip(weights, scheme[1], strict=True):
        yield weight, math.sqrt(gain / weight.shape[1])


def _log_likelihood(weights: list[FloatArray], scheme: Scheme) -> float:
    """Minus infinity where a weight lies beyond the bound of its uniform law."""
    total = 0.0
    for weight, sd in _deviations(weights, scheme):
        if scheme[0] == "uniform":
            bound = math.sqrt(3) * sd
            if np.abs(weight).max() > bound * (1 + _ROUNDING):
                return -math.inf
            total -= weight.size * math.log(2 * bound)
        else:
            total -= weight.size * math.log(math.sqrt(2 * math.pi) * sd) + 0.5 * float(np.square(weight / sd).sum())
    return total


def _fits(weights: list[FloatArray], scheme: Scheme) -> bool:
    """Whether every layer passes; all tests together reject correct weights less than once in 10^6."""
    allowed = _FALSE_REFUSALS / (3 * len(weights))
    for weight, sd in _deviations(weights, scheme):
        standard = weight / sd
        if _p_value(standard.ravel(), scheme[0]) < allowed:
            return False
        if scheme[0] == "gaussian" and not _gaussian(standard, allowed):
            return False
    return True


def _gaussian(standard: FloatArray, allowed: float) -> bool:
    """Whether mean square and largest singular value are plausible for independent N(0, 1) entries."""
    from scipy import stats

    squares, entries = float(np.square(standard).sum()), standard.size
    if 2 * min(stats.chi2.cdf(squares, entries), stats.chi2.sf(squares, entries)) < allowed:
        return False
    edge = math.sqrt(len(standard)) + math.sqrt(standard.shape[1]) + math.sqrt(2 * math.log(1 / allowed))
    return _largest_singular_value(standard) <= edge


def _p_value(standard: FloatArray, law: str) -> float:
    """Kolmogorov-Smirnov, of numbers of unit variance."""
    from scipy import stats

    tested = standard[:: -(-len(standard) // _TESTED)]
    unit = stats.norm() if law == "gaussian" else stats.uniform(-math.sqrt(3), 2 * math.sqrt(3))
    return float(stats.kstest(tested, unit.cdf).pvalue)


def _largest_singular_value(weight: FloatArray) -> float:
    """A lower bound by power iteration, close enough to see a direction that training added."""
    vector = np.random.default_rng(0).standard_normal((weight.shape[1], 1))
    for _ in range(30):
        vector = weight.T @ (weight @ vector)
        vector /= np.linalg.norm(vector)
    return float(np.linalg.norm(weight @ vector) / np.linalg.norm(vector))


def _orthogonal(weight: FloatArray) -> bool:
    """Whether the rows, or the fewer columns, are orthogonal and of one length, as nn.init.orthogonal_ makes them."""
    few = weight if len(weight) <= weight.shape[1] else weight.T
    if len(few) < 2:
        return False
    few = few[: min(len(few), 256)]
    gram = few @ few.T
    return bool(np.allclose(gram, np.eye(len(few)) * gram[0, 0], atol=1e-4 * gram[0, 0], rtol=0) and gram[0, 0])


def biases(tensors: Mapping[str, torch.Tensor], fan_ins: Sequence[int], *, test: bool) -> LawOptions:
    """The law of these biases as arguments of `finwidth.MLP`: zero, or as nn.Linear draws them, which can be tested."""
    if not any(each.any() for each in tensors.values()):
        return {}
    values = [_as_doubles(each) * math.sqrt(3 * fan_in) for each, fan_in in zip(tensors.values(), fan_ins, strict=True)]
    standard = np.concatenate(values)
    beyond = np.abs(standard).max() > math.sqrt(3) * (1 + _ROUNDING)
    if test and (beyond or _p_value(standard, "uniform") < _FALSE_REFUSALS):
        raise _unknown(
            "its biases are neither all zero nor as nn.Linear draws them, so they are trained, or drawn otherwise"
        )
    return {"bias_variance": [Fraction(1, 3 * fan_in) for fan_in in fan_ins], "bias_law": "uniform"}


# ---- one layer by itself


@dataclass(frozen=True)
class LayerScheme:
    """How a linear or convolutional layer is drawn: the law of its weights, fan-in times their variance, its biases.

    ``names`` has all that it is called for a layer of its shape. Biases are ``"zero"`` or ``"default"``, as nn.Linear
    draws them.
    """

    names: tuple[str, ...]
    law: str
    gain: float
    bias: str

    def draw(self, layer: nn.Linear | nn.Conv1d | nn.Conv2d | nn.Conv3d) -> None:
        """Draw the parameters of a layer by torch's generator."""
        fan_in = layer.weight[0].numel()
        deviation = math.sqrt(self.gain / fan_in)
        if self.law == "uniform":
            nn.init.uniform_(layer.weight, -math.sqrt(3) * deviation, math.sqrt(3) * deviation)
        else:
            nn.init.normal_(layer.weight, std=deviation)
        if layer.bias is not None and self.bias == "zero":
            nn.init.zeros_(layer.bias)
        elif layer.bias is not None:
            nn.init.uniform_(layer.bias, -1 / math.sqrt(fan_in), 1 / math.sqrt(fan_in))


def layer_schemes(layer: nn.Linear | nn.Conv1d | nn.Conv2d | nn.Conv3d) -> list[LayerScheme]:
    """The schemes that one layer may be a draw of: none; one; or several that its weights are too few to tell apart.

    Examples
    --------
    >>> import torch
    >>> from finwidth.empirical.modules.initialization import layer_schemes
    >>> _ = torch.manual_seed(0)
    >>> layer_schemes(torch.nn.Linear(30, 40))
    [LayerScheme(names=('default',), law='uniform', gain=0.3333333333333333, bias='default')]
    """
    weight = _as_doubles(layer.weight.flatten(1))
    fan_out, fan_in = weight.shape[0] * layer.weight[0, 0].numel(), weight.shape[1]
    kind = "zero" if layer.bias is None else zero_or_default(layer.bias, fan_in)
    if kind is None or not np.isfinite(weight).all() or _orthogonal(weight):
        return []
    known = _schemes_of_layer(fan_in, fan_out)
    likelihoods = {name: _log_likelihood([weight], scheme) for name, scheme in _distinct(known).items()}
    fitting = [name for name, found in likelihoods.items() if math.isfinite(found) and _fits([weight], known[name])]
    best = max((likelihoods[name] for name in fitting), default=0.0)
    rivals = sorted((name for name in fitting if best - likelihoods[name] < _LIKELIER), key=lambda n: -likelihoods[n])
    return [
        LayerScheme(
            tuple(other for other, scheme in known.items() if _same_scheme(known[name], scheme)),
            known[name][0],
            float(known[name][1][0]),
            kind,
        )
        for name in rivals
    ]


def _schemes_of_layer(fan_in: int, fan_out: int) -> dict[str, Scheme]:
    gains = {
        "kaiming": Fraction(2),
        "lecun": Fraction(1),
        "xavier": Fraction(2 * fan_in, fan_in + fan_out),
        "kaiming (fan_out)": Fraction(2 * fan_in, fan_out),
    }
    found: dict[str, Scheme] = {"default": ("uniform", (Fraction(1, 3),))}
    for name, gain in gains.items():
        found |= {f"{name} {law}": (law, (gain,)) for law in ("gaussian", "uniform")}
    deviations = {"N(0, 0.02^2)": Fraction(2, 100), "N(0, 0.01^2)": Fraction(1, 100), "N(0, 1)": Fraction(1)}
    return found | {name: ("gaussian", (fan_in * each**2,)) for name, each in deviations.items()}


def zero_or_default(bias: torch.Tensor, fan_in: int) -> str | None:
    """Whether biases are all zero or pass for nn.Linear's own; None if neither."""
    if not bias.any():
        return "zero"
    standard = _as_doubles(bias) * math.sqrt(3 * fan_in)
    beyond = not np.abs(standard).max() <= math.sqrt(3) * (1 + _ROUNDING)
    return None if beyond or _p_value(standard, "uniform") < _FALSE_REFUSALS else "default"

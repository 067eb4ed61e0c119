"""The fully connected network with random weights.

Convention (used by every route; layer i = 1..d maps width n_{i-1} to n_i)::

    y^(i) = W_hat^(i) x^(i-1) + b_hat^(i),   x^(i) = phi(y^(i)) for i < d,   N(x) = y^(d)
    W_hat^(i)_ab has variance v_i = gain_i / n_{i-1},   b_hat^(i)_a variance b_i (0: zero-initialised)
    K(x,x) = K_w + K_b,   K_w = sum_i c_i sum_ab (dN/dW_hat^(i)_ab)^2,   K_b = sum_i e_i sum_a (dN/db_hat^(i)_a)^2

The multipliers c_i, e_i are the parameterization: SGD on the parameters of that parameterization with
learning rate lambda moves W_hat^(i) at rate lambda c_i and b_hat^(i) at rate lambda e_i.  With a ``bias_scale`` s_i the
parameter is b^(i) = b_hat^(i)/s_i, so that b_i and e_i have the factor s_i^2; a frozen bias has e_i = 0.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import cached_property
from itertools import pairwise
from typing import Any, TypedDict

import numpy as np

from finwidth import arguments
from finwidth.errors import FinwidthError
from finwidth.memory import afford
from finwidth.networks.activations import Activation, activation
from finwidth.networks.description import Gains, Layer, Network, Places, Step, few_values, typed_list
from finwidth.networks.laws import WeightLaw, weight_law
from finwidth.networks.norm import Norm, check_norm
from finwidth.networks.widths import check_widths, format_widths

PARAMETERIZATIONS = ("ntk", "standard", "mup")

_LAYER_BYTES = 450


class MLPOptions(TypedDict, total=False):
    """The arguments of `MLP` but the widths, for functions that make networks of many widths."""

    weight_law: str | WeightLaw
    activation: str | Activation
    parameterization: str
    gains: Gains | None
    bias: str | Sequence[str]
    bias_variance: Gains
    bias_law: str | WeightLaw
    bias_scale: Gains
    base_widths: int | Sequence[int] | None
    norm: str | Norm | None


@dataclass(frozen=True, repr=False)
class MLP(Network):
    """A random fully connected network, the object every other function takes.

    Parameters
    ----------
    widths
        ``[n_0, n_1, ..., n_d]``: input width, hidden widths, output width. Whole numbers, at least 1.
    weight_law
        Law of the weights, rescaled to the layer's variance: a name in `finwidth.networks.laws.LAWS`, such as
        ``"gaussian"``, ``"uniform"``, ``"laplace"`` or ``"truncated-normal"``, or a `WeightLaw`.
    activation
        A name in `finwidth.networks.activations.ACTIVATIONS`: one of two slopes, such as ``"relu"``, ``"leaky_relu"``
        or ``"linear"``, or for draws in law of several inputs a smooth one, such as ``"tanh"`` or ``"gelu"``. Or an
        `Activation` or `SmoothActivation` of your own.
    parameterization
        ``"ntk"`` (derivatives by the unit-variance weights, as in the paper), ``"standard"`` (by the weights
        themselves, as PyTorch does) or ``"mup"`` (maximal update, SGD: output variance divided by its fan-in,
        learning rates times fan-out in the first layer and the biases, over fan-in in the last; widths count in units
        of ``base_widths``).
    gains
        fan-in times the variance of a weight, one number or one per layer. By default 1/E[phi'^2] in hidden
        layers (2 for ReLU; what a smooth activation says, such as 1 for tanh and 2 for gelu) and 1 in the last, which
        for ReLU is the paper's network.
    bias
        ``"trained"`` (K_b counts them), ``"frozen"`` or ``"none"``: one for all layers, or one per layer.
    bias_variance
        Variance of the initial biases, one number or one per layer; 0 (the default) is the paper's.
    bias_law
        Law of the initial biases where their variance is not 0.
    bias_scale
        A layer adds ``bias_scale`` times its bias, which multiplies K_b by its square: the beta of Jacot, Gabriel
        and Hongler (2018), and b_std of neural-tangents, whose networks also have ``bias_variance=1``. One number, 0
        or more, or one per layer; by default 1.
    base_widths
        For ``"mup"``: the widths at which the parameterization is the standard one, as of Yang et al.'s package mup.
        One number for the hidden layers, where inputs and outputs then have the base widths that they have, or one
        for each of ``widths``; by default 1 for each.
    norm
        ``"rms"`` or ``"layer"``: hidden layers are normalised before the activation; a `Norm` says more.

    Raises
    ------
    FinwidthError
        For widths, names or numbers that are not allowed.

    Examples
    --------
    >>> from finwidth import MLP
    >>> net = MLP([16, *[64] * 8, 1])
    >>> net.depth, float(net.beta), float(net.beta_hidden)
    (9, 1.125, 0.125)
    """

    widths: tuple[int, ...]
    weight_law: WeightLaw
    activation: Activation
    parameterization: str
    gains: tuple[Fraction, ...]
    bias: tuple[str, ...]
    bias_variance: tuple[Fraction, ...]
    bias_law: WeightLaw
    bias_scale: tuple[Fraction, ...]
    base_widths: tuple[int, ...]
    norm: Norm | None

    def __init__(
        self,
        widths: Sequence[int],
        weight_law: str | WeightLaw = "gaussian",
        activation: str | Activation = "relu",
        parameterization: str = "ntk",
        *,
        gains: Gains | None = None,
        bias: str | Sequence[str] = "trained",
        bias_variance: Gains = 0,
        bias_law: str | WeightLaw = "gaussian",
        bias_scale: Gains = 1,
        base_widths: int | Sequence[int] | None = None,
        norm: str | Norm | None = None,
    ) -> None:
        checked = check_widths(widths)
        depth = len(checked) - 1
        layers = Places(depth, "layer", "weight layers")
        phi = _activation(activation)
        parameterization = arguments.one_of("parameterization", parameterization, PARAMETERIZATIONS)
        if gains is None:
            (hidden,) = Places(1, "layer", "weight layers").numbers("gains", phi.default_gain, positive=True)
            given = (hidden,) * (depth - 1) + (Fraction(1),)
        else:
            given = layers.numbers("gains", gains, positive=True)
        variances = layers.numbers("bias_variance", bias_variance, positive=False)
        scales = layers.numbers("bias_scale", bias_scale, positive=False)
        layers.check_bias_scales(scales, variances, bias_scale)
        fields = {
            "widths": checked,
            "weight_law": _weight_law(weight_law),
            "activation": phi,
            "parameterization": parameterization,
            "gains": given,
            "bias": layers.biases(bias, variances),
            "bias_variance": variances,
            "bias_law": _weight_law(bias_law),
            "bias_scale": scales,
            "base_widths": _base_widths(base_widths, checked, parameterization),
            "norm": _allowed_norm(norm, checked, parameterization),
        }
        for key, value in fields.items():
            object.__setattr__(self, key, value)

    @classmethod
    def pytorch(
        cls,
        widths: Sequence[int],
        init: str = "default",
        activation: str | Activation = "relu",
        *,
        biases: str = "default",
    ) -> MLP:
        """The network that PyTorch users write: nn.Linear layers, an activation between them, SGD on all of them.

        Parameters
        ----------
        widths, activation
            As for `MLP`.
        init
            ``"default"``: nn.Linear's own, weights uniform on +-1/sqrt(fan-in); ``"kaiming_uniform"`` or
            ``"kaiming_normal"``: nn.init's, with the gain of the activation, on every layer.
        biases
            ``"default"``: uniform on +-1/sqrt(fan-in) as nn.Linear makes them; ``"zeros"``; or ``"none"`` (bias=False).

        Examples
        --------
        >>> from finwidth import MLP
        >>> layer = MLP.pytorch([16, 64, 1]).layers[0]
        >>> layer.weight_variance, layer.bias_variance, layer.weight_multiplier
        (Fraction(1, 48), Fraction(1, 48), Fraction(1, 1))
        """
        checked, phi = check_widths(widths), _activation(activation)
        kaiming = phi.default_gain
        inits = {"default": ("uniform", Fraction(1, 3)), "kaiming_uniform": ("uniform", kaiming)}
        inits["kaiming_normal"] = ("gaussian", kaiming)
        law, gain = inits[arguments.one_of("init", init, inits)]
        biases = arguments.one_of("biases", biases, ("default", "zeros", "none"))
        variance = [Fraction(1, 3 * fan_in) for fan_in in checked[:-1]] if biases == "default" else 0
        return cls(
            checked,
            law,
            phi,
            "standard",
            gains=gain,
            bias="none" if biases == "none" else "trained",
            bias_variance=variance,
            bias_law="uniform",
        )

    @property
    def depth(self) -> int:
        """d, the number of weight layers."""
        return len(self.widths) - 1

    @property
    def beta(self) -> Fraction:
        """sum_{i=1}^d 1/n_i, the paper's (it includes the output layer, 1/n_d)."""
        return self.beta_hidden + Fraction(1, self.widths[-1])

    @property
    def beta_hidden(self) -> Fraction:
        """sum_{i=1}^{d-1} 1/n_i, the part that varies with depth over width."""
        return sum((Fraction(count, n) for n, count in Counter(self.widths[1:-1]).items()), Fraction(0))

    @cached_property
    def layers(self) -> tuple[Layer, ...]:
        """The d weight layers, first to last; neighbours that are equal are one object."""
        fresh = 1 + sum(one != other for one, other in pairwise(zip(*self._numbers(), strict=True)))
        afford(_LAYER_BYTES * fresh, f"a network of {fresh} different layers", "take fewer")
        made: list[Layer] = []
        last = None
        for i, own in enumerate(zip(*self._numbers(), strict=True), 1):
            inner = 1 < i < self.depth
            made.append(made[-1] if inner and own == last else self._layer(i))
            last = own if inner else None
        return tuple(made)

    @cached_property
    def stages(self) -> tuple[tuple[Step, ...], ...]:
        """Layer and activation for each hidden layer, with the norm before or after the activation; the last layer."""
        after: tuple[Step, ...] = (self.activation,)
        if self.norm is not None:
            after = (self.norm, self.activation) if self.norm.position == "before" else (self.activation, self.norm)
        return (*((layer, *after) for layer in self.layers[:-1]), (self.layers[-1],))

    def _numbers(self) -> tuple[tuple[object, ...], ...]:
        """What a layer inside the network depends on, by layer."""
        bases = self.base_widths
        return (
            self.widths[:-1], self.widths[1:], self.gains, self.bias, self.bias_variance, self.bias_scale,
            bases[:-1], bases[1:],
        )  # fmt: skip

    def _layer(self, i: int) -> Layer:
        fan_in, fan_out = self.widths[i - 1], self.widths[i]
        variance = self.gains[i - 1] / fan_in
        weight_multiplier = bias_multiplier = Fraction(1)
        if self.parameterization == "ntk":
            weight_multiplier = variance
        elif self.parameterization == "mup":
            below, above = (Fraction(self.widths[j], self.base_widths[j]) for j in (i - 1, i))
            bias_multiplier = above
            if i == self.depth:
                variance /= below
                weight_multiplier = 1 / below
            elif i == 1:
                weight_multiplier = above
        scale = self.bias_scale[i - 1] ** 2
        bias_multiplier *= scale if self.bias[i - 1] == "trained" else 0
        return Layer(fan_in, fan_out, variance, weight_multiplier, scale * self.bias_variance[i - 1], bias_multiplier)

    def describe(self) -> dict[str, Any]:
        """What defines the network, in plain types: for JSON and for file attributes."""
        bases = {"base_widths": list(self.base_widths)} if self.parameterization == "mup" else {}
        return {**super().describe(), **bases}

    def _arguments(self) -> Iterator[str]:
        yield typed_list(self.widths)
        yield from self._usual_arguments(MLP(self.widths, activation=self.activation).gains)
        if set(self.base_widths) != {1}:
            yield f"base_widths={typed_list(self.base_widths)}"

    def __str__(self) -> str:
        usual = MLP(self.widths, self.weight_law, self.activation, self.parameterization)
        text = f"{format_widths(self.widths)} {self.activation.name}"
        if self.norm is not None:
            text += f" {'after' if self.norm.position == 'before' else 'before'} {self.norm}"
        text += f", {self.weight_law.name} weights"
        if self.gains != usual.gains:
            text += f" (gains {few_values(self.gains)})"
        text += f", {self.parameterization} parameterization"
        if self.base_widths != usual.base_widths:
            text += f" (base widths {format_widths(self.base_widths)})"
        return text + self._told_biases()


# Inside MLP.__init__ the arguments hide these two.
_activation = activation
_weight_law = weight_law


def _allowed_norm(given: str | Norm | None, widths: tuple[int, ...], parameterization: str) -> Norm | None:
    norm = check_norm(given, widths[1:-1])
    if norm is not None and norm.parameters == "trained" and parameterization == "mup":
        raise FinwidthError(
            'the rates of trained parameters of a norm in parameterization "mup" are not settled; choose ntk or '
            'standard, or give parameters="none"'
        )
    return norm


def _base_widths(given: int | Sequence[int] | None, widths: Sequence[int], parameterization: str) -> tuple[int, ...]:
    if given is None:
        return (1,) * len(widths)
    if parameterization != "mup":
        raise FinwidthError(
            f'base_widths belong to parameterization="mup", and this one is "{parameterization}"; leave base_widths out'
        )
    if not isinstance(given, Sequence | np.ndarray):
        hidden = arguments.count("base_widths", given)
        return widths[0], *(hidden,) * (len(widths) - 2), widths[-1]
    bases = check_widths(given, "base_widths")
    if len(bases) != len(widths):
        raise FinwidthError(
            f"base_widths has {len(bases)} entries for {len(widths)} widths; give one number, or {len(widths)}"
        )
    return bases


def options_of(net: MLP) -> MLPOptions | None:
    """Arguments for networks of other depths and widths with layers like these; None if the layers differ.

    >>> from finwidth.networks.mlp import MLP, options_of
    >>> options_of(MLP([2, 3, 3, 1], gains=1))["gains"], options_of(MLP([2, 3, 3, 1], gains=[1, 1, 2]))
    (Fraction(1, 1), None)
    """
    found: MLPOptions = {
        "weight_law": net.weight_law,
        "activation": net.activation,
        "parameterization": net.parameterization,
        "bias": net.bias[0],
        "bias_law": net.bias_law,
        "bias_variance": net.bias_variance[0] if net.bias[0] != "none" else 0,
        "bias_scale": net.bias_scale[0],
        "norm": net.norm,
    }
    if net.gains != MLP(net.widths, activation=net.activation).gains:
        found["gains"] = net.gains[0]
    if set(net.base_widths) != {1}:
        found["base_widths"] = net.base_widths[1] if net.depth > 1 else 1
    return found if MLP(net.widths, **found) == net else None

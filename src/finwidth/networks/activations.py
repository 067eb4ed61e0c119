"""Activations: positively homogeneous ones, two slopes, for every route; smooth ones where weights are Gaussian."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import numpy as np

from finwidth import arguments
from finwidth.errors import FinwidthError, shown

_HIGHEST = 1000  # order of a moment
Array = Any  # of numbers: NumPy's, or a torch tensor on any device
_OF_NUMPY = (np.ndarray, np.generic)


def array_namespace(values: Array) -> Any:
    """The module whose functions take these values: NumPy, or torch for its tensors."""
    if isinstance(values, _OF_NUMPY):
        return np
    import torch

    return torch


def _indicator(condition: Array, values: Array) -> Array:
    """1 where the condition holds and 0 elsewhere, in the precision of the values."""
    return condition.astype(values.dtype) if isinstance(values, _OF_NUMPY) else condition.to(values.dtype)


@dataclass(frozen=True, repr=False)
class Activation:
    """phi(y) = positive * y for y > 0, negative * y for y < 0, and phi'(0) = at_zero.

    The slopes are dimensionless and finite, and not both zero.  ``at_zero`` follows PyTorch: the
    negative slope for ReLU and leaky ReLU, 0 for the absolute value.

    Examples
    --------
    >>> from finwidth import Activation
    >>> Activation("leaky", 1, 0.25).gate_moment(2)   # E[phi'(y)^2] for a symmetric y
    Fraction(17, 32)
    """

    name: str
    positive: Fraction
    negative: Fraction
    at_zero: Fraction

    def __init__(
        self,
        name: str,
        positive: int | float | Fraction,
        negative: int | float | Fraction,
        at_zero: int | float | Fraction | None = None,
    ) -> None:
        name, wanted = arguments.text("the name of an activation", name, "a text"), "a finite number"
        up, down = (
            arguments.exact(f"the {side} slope of activation {shown(name)}", slope, wanted)
            for side, slope in (("positive", positive), ("negative", negative))
        )
        can_die = not (up and down)
        if at_zero is None:
            at_zero = 0 if can_die else down
        middle = arguments.exact(f"at_zero of activation {shown(name)}", at_zero, wanted)
        if not (up or down):
            raise FinwidthError(f"activation {shown(name)} has slopes 0 and 0; they must be finite and not both 0")
        if can_die and middle:
            raise FinwidthError(
                f"activation {shown(name)} has a zero slope, so at_zero must be 0; it is {shown(at_zero)}"
            )
        for key, value in (("name", name), ("positive", up), ("negative", down), ("at_zero", middle)):
            object.__setattr__(self, key, value)

    def __repr__(self) -> str:
        usual = Activation(self.name, self.positive, self.negative).at_zero
        slopes = [self.positive, self.negative] + [self.at_zero] * (self.at_zero != usual)
        return f"Activation({self.name!r}, {', '.join(map(arguments.typed, slopes))})"

    @property
    def can_die(self) -> bool:
        """Whether a whole layer can be mapped to zero (one of the slopes is zero)."""
        return self.positive == 0 or self.negative == 0

    def gate_moment(self, order: int) -> Fraction:
        """E[phi'(y)^order] for y symmetric without an atom at zero (theory, "gate")."""
        if arguments.count("order", order, 0) > _HIGHEST:
            raise FinwidthError(f"order is {shown(order)}; give at most {_HIGHEST}")
        return (self.positive**order + self.negative**order) / 2

    @property
    def default_gain(self) -> Fraction:
        """fan-in times weight variance that keeps gradients' size through a layer, 1/E[phi'^2]."""
        return 2 / (self.positive**2 + self.negative**2)

    def frozen_at_zero(self) -> Activation:
        """The linear activation with slope ``at_zero``: what pre-activations that are exactly zero meet."""
        return _unchecked(self.name, self.at_zero)

    def value(self, y: Array) -> Array:
        """phi(y), elementwise."""
        if self.negative == 0 and self.positive == 1:
            return y.clip(0.0, math.inf)  # ReLU, in one pass, which with two bounds takes NumPy half the time
        return self.derivative(y) * y

    def derivative(self, y: Array) -> Array:
        """phi'(y), elementwise, with phi'(0) = at_zero."""
        slopes = _indicator(y > 0, y)
        if self.negative == 0 and self.positive == 1:
            return slopes
        slopes = float(self.negative) + float(self.positive - self.negative) * slopes
        if self.at_zero == self.negative:
            return slopes
        return slopes + float(self.at_zero - self.negative) * _indicator(y == 0, y)

    def second_derivative(self, y: Array) -> Array:
        """phi''(y), elementwise: zero, but for the kink."""
        return 0.0 * y


def _unchecked(name: str, slope: Fraction) -> Activation:
    """A linear activation whose slope may be zero."""
    made = object.__new__(Activation)
    for key in ("positive", "negative", "at_zero"):
        object.__setattr__(made, key, slope)
    object.__setattr__(made, "name", name)
    return made


Elementwise = Callable[[Array], Array]


@dataclass(frozen=True, eq=False, repr=False)
class SmoothActivation(Activation):
    """Any activation, given by its value and derivative; no exact moments, but draws in law of Gaussian networks.

    ``phi``, ``dphi`` and ``d2phi`` map an array of any shape to an array of that shape; ``gain`` is the default fan-in
    times weight variance of hidden layers.  ``d2phi``, the second derivative, is needed only for the change of the
    kernel under an SGD step; it must be right almost everywhere.  Draws on a torch device call all three with tensors.
    ``torch_module`` names the class in torch.nn that computes it with its default options, such as ``"Softplus"``:
    `finwidth.empirical.MLP` then makes real networks of it.

    Examples
    --------
    >>> import numpy as np
    >>> from finwidth.networks.activations import SmoothActivation
    >>> cosine = SmoothActivation("cos", np.cos, lambda y: -np.sin(y), d2phi=lambda y: -np.cos(y))
    >>> float(cosine.derivative(np.array(0.0)))
    -0.0
    """

    phi: Elementwise
    dphi: Elementwise
    gain: Fraction
    d2phi: Elementwise | None
    torch_module: str | None

    def __init__(
        self,
        name: str,
        phi: Elementwise,
        dphi: Elementwise,
        gain: int | float | Fraction = 1,
        d2phi: Elementwise | None = None,
        *,
        torch_module: str | None = None,
    ) -> None:
        arguments.text("the name of an activation", name, "a text")
        for key, function in (("phi", phi), ("dphi", dphi), ("d2phi", d2phi)):
            if function is not None or key != "d2phi":
                arguments.function(f"{key} of activation {shown(name)}", function, "a function of arrays")
            object.__setattr__(self, key, function)
        object.__setattr__(self, "name", name)
        if torch_module is not None:
            arguments.text(f"torch_module of activation {shown(name)}", torch_module, "the name of a class in torch.nn")
        object.__setattr__(self, "torch_module", torch_module)
        object.__setattr__(self, "gain", arguments.exact("gain", gain, "a positive number", lambda v: v > 0))

    # Its functions define it, not the slopes of the base class.
    __eq__ = object.__eq__
    __hash__ = object.__hash__

    def __repr__(self) -> str:
        return f"SmoothActivation({self.name!r})"

    def check(self) -> None:
        """Raise FinwidthError unless the functions map an array to a finite array of its shape."""
        for key in ("phi", "dphi", "d2phi"):
            function, probe = getattr(self, key), np.array([-1.0, 0.0, 1.0])
            if function is None:
                continue
            with arguments.running(f"{key} of activation {shown(self.name)}"):
                found = arguments.numbers(function(probe.copy()))
            if found is None or found.shape != probe.shape or not np.isfinite(found).all():
                raise FinwidthError(
                    f"{key} of activation {shown(self.name)} must map {probe} to a finite array of the same shape"
                )

    def frozen_at_zero(self) -> Activation:
        """Refuse: it is no linear map where pre-activations are zero."""
        raise FinwidthError(f"activation {self.name} is not positively homogeneous, and not linear at zero")

    @property
    def can_die(self) -> bool:
        """No: a smooth activation maps almost no layer to zero."""
        return False

    def gate_moment(self, order: int) -> Fraction:
        """Refuse: the moments of phi' depend on the pre-activation, so none is exact."""
        raise FinwidthError(
            f"activation {self.name} is not positively homogeneous, so there are no exact moments; "
            "give one of two slopes, such as relu"
        )

    @property
    def default_gain(self) -> Fraction:
        """The gain that was given."""
        return self.gain

    @property
    def value(self) -> Elementwise:
        """phi, elementwise."""
        return self.phi

    @property
    def derivative(self) -> Elementwise:
        """phi', elementwise."""
        return self.dphi

    @property
    def second_derivative(self) -> Elementwise:
        """phi'', elementwise; raises FinwidthError if it was not given."""
        if self.d2phi is None:
            raise FinwidthError(
                f"activation {shown(self.name)} has no second derivative, which the change of the kernel under an SGD "
                f'step needs; give one: SmoothActivation("{self.name}", phi, dphi, d2phi=...)'
            )
        return self.d2phi


_ROOT_2, _ROOT_2_PI = math.sqrt(2), math.sqrt(2 * math.pi)


def _erf(y: Array) -> Array:
    if not isinstance(y, _OF_NUMPY):
        return y.erf()
    from scipy.special import erf

    return erf(y)


def _tanh(y: Array) -> Array:
    return np.tanh(y) if isinstance(y, _OF_NUMPY) else y.tanh()


def _gauss(y: Array) -> Array:
    """exp(-y^2)."""
    square = -y * y
    return np.exp(square) if isinstance(y, _OF_NUMPY) else square.exp()


def _gelu(y: Array) -> Array:
    """Y Phi(y), with Phi the distribution function of N(0, 1)."""
    return y * (0.5 * (1 + _erf(y / _ROOT_2)))


def _gelu_slope(y: Array) -> Array:
    scaled = y / _ROOT_2
    return 0.5 * (1 + _erf(scaled)) + y * (_gauss(scaled) / _ROOT_2_PI)


def _gelu_curvature(y: Array) -> Array:
    return (2 - y * y) * (_gauss(y / _ROOT_2) / _ROOT_2_PI)


def _silu(y: Array) -> Array:
    return y * (0.5 * (1 + _tanh(0.5 * y)))


def _silu_slope(y: Array) -> Array:
    gate = 0.5 * (1 + _tanh(0.5 * y))
    return gate * (1 + y * (1 - gate))


def _silu_curvature(y: Array) -> Array:
    gate = 0.5 * (1 + _tanh(0.5 * y))
    return gate * (1 - gate) * (2 + y * (1 - 2 * gate))


def _tanh_curvature(y: Array) -> Array:
    value = _tanh(y)
    return 2 * value * (value * value - 1)


SMOOTH = (
    SmoothActivation("tanh", _tanh, lambda y: 1 - _tanh(y) ** 2, 1, _tanh_curvature, torch_module="Tanh"),
    SmoothActivation(
        "erf",
        _erf,
        lambda y: 2 / math.sqrt(math.pi) * _gauss(y),
        1,
        lambda y: -4 / math.sqrt(math.pi) * y * _gauss(y),
    ),
    SmoothActivation("gelu", _gelu, _gelu_slope, 2, _gelu_curvature, torch_module="GELU"),
    SmoothActivation("silu", _silu, _silu_slope, 2, _silu_curvature, torch_module="SiLU"),
)

ACTIVATIONS: dict[str, Activation] = {
    each.name: each
    for each in (
        Activation("relu", 1, 0),
        Activation("leaky_relu", 1, Fraction(1, 100)),
        Activation("linear", 1, 1),
        Activation("abs", 1, -1, at_zero=0),
        *SMOOTH,
    )
}


def has_curvature(phi: Activation) -> bool:
    """Whether phi'' is known, which the change of the kernel under a step needs."""
    return not isinstance(phi, SmoothActivation) or phi.d2phi is not None


def activation(given: str | Activation) -> Activation:
    """The activation called ``given``, or ``given`` itself if it already is one."""
    if isinstance(given, SmoothActivation):
        given.check()
    if isinstance(given, Activation):
        return given
    return ACTIVATIONS[arguments.one_of("activation", given, ACTIVATIONS, more=", or give an Activation")]

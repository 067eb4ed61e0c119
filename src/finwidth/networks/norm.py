"""Normalisation of the vectors inside a network: RMSNorm and LayerNorm.

Convention, for a vector z of width n::

    rms     norm(z) = z / sqrt(|z|^2 / n + epsilon)
    layer   the same of z less its mean over the n neurons

The vector zero stays zero.  With trained parameters the result is scale * norm(z), and + shift for ``"layer"``, neuron
by neuron, with scale = 1 and shift = 0 at initialization; K_w then has the derivatives by scales and K_b those by
shifts, both with multiplier 1.
"""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from typing import Any

from finwidth import arguments
from finwidth.arguments import typed
from finwidth.errors import FinwidthError, shown

KINDS = ("rms", "layer")
_POSITIONS = ("before", "after")
_PARAMETERS = ("none", "trained")


@dataclass(frozen=True, repr=False)
class Norm:
    """How a network normalises its vectors: z / sqrt(mean square of z + epsilon), neuron by neuron.

    Parameters
    ----------
    kind
        ``"rms"`` (RMSNorm, Zhang and Sennrich 2019), or ``"layer"`` (LayerNorm, Ba, Kiros and Hinton 2016), which takes
        away the mean over neurons first.
    position
        In an `MLP` ``"before"`` or ``"after"`` the activation. In a `ResNet` ``"before"`` each block and the head
        (pre-norm), or ``"after"`` each addition to the stream (post-norm).
    epsilon
        Added to the mean square; 0 or more. By default 0, where torch.nn.LayerNorm has 1e-5.
    parameters
        ``"none"``, or ``"trained"``: a scale for each neuron, and for ``"layer"`` a shift, from 1 and 0.

    Raises
    ------
    FinwidthError
        If an argument is not allowed.

    Examples
    --------
    >>> from finwidth import MLP, Norm
    >>> print(MLP([2, 8, 8, 1], norm="rms"))
    2,8x2,1 relu after rms norm, gaussian weights, ntk parameterization
    >>> print(MLP([2, 8, 8, 1], norm=Norm("layer", "after", epsilon=1e-5)))
    2,8x2,1 relu before layer norm (epsilon 1e-05), gaussian weights, ntk parameterization
    """

    kind: str
    position: str
    epsilon: Fraction
    parameters: str

    def __init__(
        self, kind: str, position: str = "before", *, epsilon: float | Fraction = 0, parameters: str = "none"
    ) -> None:
        fields = {
            "kind": arguments.one_of("norm", kind, KINDS),
            "position": arguments.one_of("position of the norm", position, _POSITIONS),
            "epsilon": arguments.exact("epsilon", epsilon, "a finite number, 0 or more", lambda value: value >= 0),
            "parameters": arguments.one_of("parameters of the norm", parameters, _PARAMETERS),
        }
        for key, value in fields.items():
            object.__setattr__(self, key, value)

    @property
    def centred(self) -> bool:
        """Whether the mean over neurons is taken away."""
        return self.kind == "layer"

    @property
    def narrowest(self) -> int:
        """The least width that it is of use for: LayerNorm of one neuron is zero."""
        return 2 if self.centred else 1

    def describe(self) -> dict[str, Any]:
        """What defines it, in plain types."""
        return {
            "kind": self.kind, "position": self.position, "epsilon": str(self.epsilon), "parameters": self.parameters
        }  # fmt: skip

    def __repr__(self) -> str:
        given = [repr(self.kind)] + [repr(self.position)] * (self.position != "before")
        given += [f"epsilon={typed(self.epsilon)}"] * bool(self.epsilon)
        given += [f"parameters={self.parameters!r}"] * (self.parameters != "none")
        return f"Norm({', '.join(given)})"

    def __str__(self) -> str:
        told = [f"epsilon {float(self.epsilon):.4g}"] * bool(self.epsilon)
        told += ["trained parameters"] * (self.parameters == "trained")
        return f"{self.kind} norm" + f" ({', '.join(told)})" * bool(told)


def parse_norm(text: str) -> Norm | None:
    """A norm as the command line and sweeps write it: its kind, then in any order what is not the default.

    >>> from finwidth.networks.norm import parse_norm
    >>> print(parse_norm("layer,after,1e-5"), parse_norm("none"))
    layer norm (epsilon 1e-05) None
    """
    if text == "none":
        return None
    kind, *rest = (part.strip() for part in text.split(","))
    options: dict[str, Any] = {}
    for part in rest:
        name = "position" if part in _POSITIONS else "parameters" if part in _PARAMETERS else "epsilon"
        options[name] = part
        if name == "epsilon":
            try:
                options[name] = float(part)
            except ValueError:
                raise FinwidthError(
                    f"norm {shown(text)}: {shown(part)} is none of {', '.join(_POSITIONS + _PARAMETERS)}, nor an "
                    "epsilon; write rms, layer, or such as layer,after,1e-5,trained"
                ) from None
    return Norm(kind, **options)


def check_norm(given: str | Norm | None, widths: tuple[int, ...]) -> Norm | None:
    """The norm that is given, by name or as it is, of vectors of these widths.

    >>> from finwidth.networks.norm import check_norm
    >>> check_norm("rms", (8, 8)).position
    'before'
    """
    if given is None:
        return None
    if not isinstance(given, Norm):
        if not isinstance(given, str) or given not in KINDS:
            raise FinwidthError(
                f'norm is {shown(given)}; give None, "rms", "layer", or a finwidth.Norm such as '
                'finwidth.Norm("layer", "after")'
            )
        given = Norm(given)
    if any(width < given.narrowest for width in widths):
        raise FinwidthError('norm="layer" of width 1 is always zero; give widths of at least 2, or norm="rms"')
    return given

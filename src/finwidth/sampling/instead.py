"""What serves a network that one way of drawing does not: one table, so that no way names another that refuses too."""

from __future__ import annotations

from collections.abc import Callable

from finwidth.networks.activations import SmoothActivation
from finwidth.networks.mlp import MLP


def advice(net: MLP) -> str:
    """The functions that do serve a network, and what they have of its kernel.

    Examples
    --------
    >>> from finwidth import MLP
    >>> from finwidth.sampling.instead import advice
    >>> advice(MLP([2, 3, 2], activation="tanh"))
    'finwidth.train has the kernel in training, finwidth.empirical.Ensemble real networks'
    """
    serving = [f"{name} {what}" for name, what, unsupported in _table() if not unsupported(net)]
    return ", ".join([serving[0].replace(" ", " has ", 1), *serving[1:]])


def _table() -> list[tuple[str, str, Callable[[MLP], object]]]:
    from finwidth.sampling.kernel_matrix import gram
    from finwidth.sampling.one_input import norm_chain as diagonal

    return [
        ("finwidth.moments", "exact moments", lambda net: isinstance(net.activation, SmoothActivation)),
        ("finwidth.sample", "draws at one input", diagonal.why_not),
        ("finwidth.sample_gram", "draws at several inputs", gram.why_not),
        ("finwidth.train", "the kernel in training", gram.why_not_gaussian),
        ("finwidth.empirical.Ensemble", "real networks", lambda net: None),
    ]

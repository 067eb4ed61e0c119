"""Functions of torch that hide the layers they are made of: attention and recurrent networks, written out.

torch runs them in one call, in which the recorder sees no layer. Here each is made of linear layers and elementwise
operations, with the same results up to rounding. Each is given the mode that is to see its layers.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from types import FunctionType
from typing import Concatenate, TypeAlias

import torch
from torch.nn import functional
from torch.overrides import TorchFunctionMode

Tensor: TypeAlias = torch.Tensor
State: TypeAlias = tuple[Tensor, ...]  # the hidden state, first, and whatever else a step hands on
Linear: TypeAlias = Callable[..., Tensor]  # torch's, under the mode
Step: TypeAlias = Callable[[Linear, Tensor, State, Sequence[Tensor]], State]


def _under(mode: TorchFunctionMode, *given: Tensor | None) -> Tensor:
    """A linear layer that the mode sees."""
    with mode:
        return functional.linear(*given)  # type: ignore[arg-type]


def _undispatched(func: Callable[..., object]) -> Callable[Concatenate[TorchFunctionMode, ...], object]:
    """A function of torch's Python code that does not ask the mode for itself, so that it sees all that it calls."""
    assert isinstance(func, FunctionType)
    own = {**func.__globals__, "has_torch_function": lambda _: False}
    copy = FunctionType(func.__code__, own, func.__name__, func.__defaults__, func.__closure__)
    copy.__kwdefaults__ = func.__kwdefaults__

    def call(mode: TorchFunctionMode, *args: object, **kwargs: object) -> object:
        with mode:
            return copy(*args, **kwargs)

    return call


def _elman(
    activation: Callable[[Tensor], Tensor], linear: Linear, x: Tensor, state: State, weights: Sequence[Tensor]
) -> State:
    return (activation(x + linear(state[0], *weights)),)


def _gated(linear: Linear, x: Tensor, state: State, weights: Sequence[Tensor]) -> State:
    reset, update, new = x.chunk(3, -1)
    of_reset, of_update, of_new = linear(state[0], *weights).chunk(3, -1)
    candidate = torch.tanh(new + torch.sigmoid(reset + of_reset) * of_new)
    return (candidate + torch.sigmoid(update + of_update) * (state[0] - candidate),)


def _long_short_term(linear: Linear, x: Tensor, state: State, weights: Sequence[Tensor]) -> State:
    """``weights`` are those of the hidden state and their bias, if any; then those of a projection, if any."""
    projected = len(weights) > 1 and weights[-1].ndim == 2
    own = weights[:-1] if projected else weights
    enter, keep, new, leave = (x + linear(state[0], *own)).chunk(4, -1)
    cell = torch.sigmoid(keep) * state[1] + torch.sigmoid(enter) * torch.tanh(new)
    hidden = torch.sigmoid(leave) * torch.tanh(cell)
    return linear(hidden, weights[-1]) if projected else hidden, cell


def _cell(  # noqa: PLR0917 - the signature of torch
    step: Step,
    mode: TorchFunctionMode,
    x: Tensor,
    state: Tensor | State,
    w_input: Tensor,
    w_hidden: Tensor,
    *biases: Tensor | None,
) -> Tensor | State:
    """One step of a recurrent network; a state of one tensor goes in and comes out as it is."""
    b_input, b_hidden = biases or (None, None)
    linear = partial(_under, mode)
    own = [each for each in (w_hidden, b_hidden) if each is not None]
    states = (state,) if isinstance(state, Tensor) else tuple(state)
    found = step(linear, linear(x, w_input, b_input), states, own)
    return found[0] if isinstance(state, Tensor) else found


def _recurrent(  # noqa: PLR0917 - the signature of torch
    step: Step,
    mode: TorchFunctionMode,
    x: Tensor,
    state: Tensor | State,
    weights: object,
    has_biases: bool,
    layers: int,
    dropout: float,
    train: bool,
    bidirectional: bool,
    batch_first: bool,
) -> tuple[Tensor, ...] | None:
    """The results of all steps, and the last state; None for packed sequences or dropout."""
    if not isinstance(weights, list) or (dropout and train):
        return None
    linear = partial(_under, mode)
    states = (state,) if isinstance(state, Tensor) else tuple(state)
    ways = 2 if bidirectional else 1
    each = len(weights) // (layers * ways)
    x = x.transpose(0, 1) if batch_first else x
    lasts: list[State] = []
    for layer in range(layers):
        results = []
        for way in range(ways):
            at = layer * ways + way
            own = weights[at * each : (at + 1) * each]
            b_input = own.pop(2) if has_biases else None
            inputs = linear(x, own.pop(0), b_input).unbind(0)
            now, steps = tuple(part[at] for part in states), []
            for given in inputs[::-1] if way else inputs:
                now = step(linear, given, now, own)
                steps.append(now[0])
            results.append(torch.stack(steps[::-1] if way else steps))
            lasts.append(now)
        x = results[0] if ways == 1 else torch.cat(results, -1)
    found = x.transpose(0, 1) if batch_first else x
    return found, *(torch.stack(part) for part in zip(*lasts, strict=True))


_STEPS: dict[str, Step] = {
    "rnn_tanh": partial(_elman, torch.tanh),
    "rnn_relu": partial(_elman, torch.relu),
    "gru": _gated,
    "lstm": _long_short_term,
}
COMPOSITIONS: dict[Callable[..., object], Callable[Concatenate[TorchFunctionMode, ...], object]] = {
    functional.multi_head_attention_forward: _undispatched(functional.multi_head_attention_forward),
    **{getattr(torch, name): partial(_recurrent, step) for name, step in _STEPS.items()},
    **{getattr(torch, f"{name}_cell"): partial(_cell, step) for name, step in _STEPS.items()},
}

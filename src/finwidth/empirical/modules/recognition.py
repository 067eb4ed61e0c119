"""The description that a torch module is: its forward is followed, checked by running, and its law inferred.

What `finwidth.empirical.modules.tracing` makes of a module is matched with the networks that are described.  Where
forwards are the user's own, the network so found is made as a module and computes with random parameters, the same in
both, what the module does, to 1e-9 in float64: an order of terms, a factor or a skip that was misread would show.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import TypeVar

import torch
from torch import nn

from finwidth.empirical.kernel.calls import differentiable, telling, untouched
from finwidth.empirical.modules import initialization
from finwidth.empirical.modules.described import DescribedModule
from finwidth.empirical.modules.parts import ExactNorm
from finwidth.empirical.modules.table import module_of
from finwidth.empirical.modules.tracing import (
    Entrywise,
    Normed,
    Product,
    Total,
    Trace,
    Value,
    in_double,
    not_read,
    traced,
    unread,
)
from finwidth.errors import FinwidthError, shown
from finwidth.networks import mlp as network
from finwidth.networks.activations import ACTIVATIONS, Activation, SmoothActivation
from finwidth.networks.description import Network
from finwidth.networks.norm import Norm
from finwidth.networks.resnet import ResNet

_SAME = 1e-9  # the largest relative difference from what the module computes
_SAME_COARSE = 1e-4  # where a part of it is in float32 whatever the module is in
_LARGEST = 10**6  # denominator of the square of a factor

Item = TypeVar("Item")


@dataclass(frozen=True)
class _Branch:
    """A residual block: its factors, its two layers, the activation between them, and the norm in front, if any."""

    skip: float
    branch: float
    layers: tuple[Product, Product]
    phi: Activation
    norm: Normed | None


@dataclass(frozen=True)
class _Read:
    """The linear layers in order, and the kind of each; the activation; the norms in order; the blocks, if any."""

    layers: tuple[Product, ...]
    kinds: tuple[int, ...]
    activation: Activation
    norms: tuple[Normed, ...] = ()
    position: str = "before"
    blocks: tuple[_Branch, ...] = ()


def recognise(module: object, init: str | Mapping[str, object] | None = None) -> Network:
    """The network, with its gains, law and biases, that a torch module is.

    Parameters
    ----------
    module
        Layers nn.Linear with one and the same activation between them: ReLU, LeakyReLU, Identity or none, Tanh, GELU,
        SiLU. Or a residual network: a first nn.Linear, blocks a x + b f(x) with two nn.Linear and the activation in f,
        and a last nn.Linear. Both with RMSNorm or LayerNorm, of torch or the user's own, where a `finwidth.Norm` has
        them. It may be an nn.Sequential, nested or not, or have forwards of its own: they are followed, and what the
        network computes with the same weights is held against the module. Flatten in front, Identity, and Dropout in
        eval mode are passed over. A `finwidth.empirical.MLP` or `ResNet` is the network that it was made of.
    init
        How the weights were drawn, if you know: ``"default"`` (nn.Linear's own), ``"kaiming_uniform"``,
        ``"kaiming_normal"`` (with the gain of the activation), ``"xavier_uniform"``, ``"xavier_normal"``,
        ``"lecun_uniform"``, ``"lecun_normal"`` (variance 1/fan-in), ``"unit_normal"``; or arguments of `finwidth.MLP`,
        such as ``{"weight_law": "truncated-normal", "gains": 1}``. It is believed, whatever the weights are now.
        By default it is inferred from the weights, which must then be fresh;
        `finwidth.empirical.modules.initialization` says how, and how surely.

    Returns
    -------
    finwidth.MLP or finwidth.ResNet
        In the standard parameterization, as PyTorch trains it.

    Raises
    ------
    FinwidthError
        With the reason, if the module is not such a network, if its weights or biases fit no scheme (they are trained,
        or drawn otherwise), or if they fit several, which happens to very small networks.

    Examples
    --------
    >>> import finwidth, torch
    >>> _ = torch.manual_seed(0)
    >>> module = torch.nn.Sequential(torch.nn.Linear(16, 64), torch.nn.ReLU(), torch.nn.Linear(64, 1))
    >>> print(finwidth.empirical.recognise(module))
    16,64,1 relu, uniform weights (gains 0.3333), standard parameterization, trained uniform biases (variance 0.02083, \
0.005208)
    >>> class Block(torch.nn.Module):
    ...     def __init__(self):
    ...         super().__init__()
    ...         self.norm, self.up, self.down = torch.nn.RMSNorm(32), torch.nn.Linear(32, 64), torch.nn.Linear(64, 32)
    ...     def forward(self, x):
    ...         return x + 0.5 * self.down(self.up(self.norm(x)).relu())
    >>> layers = torch.nn.Linear(16, 32), Block(), Block(), torch.nn.RMSNorm(32), torch.nn.Linear(32, 1)
    >>> net = finwidth.empirical.recognise(torch.nn.Sequential(*layers))
    >>> net.depth, net.hidden, float(net.branch_squared[0]), net.norm.kind, net.norm.position
    (2, (64, 64), 0.25, 'rms', 'before')
    """
    if isinstance(module, DescribedModule):
        return module.network
    if not isinstance(module, nn.Module):
        raise FinwidthError(f"{shown(module)} is not a torch module; give an nn.Module, such as an nn.Sequential")
    trace = traced(module)
    read = _read(trace.output)
    _check_parameters(module, read)
    net = _described(module, read, init)
    if not trace.certain:
        _check_same_function(module, net, read, trace)
    return net


# ---- the structure


def _read(output: Value) -> _Read:
    """The structure of an expression; FinwidthError if it is none of the known ones."""
    if type(output) is Value:
        not_read("it has no Linear layer")
    if not isinstance(output, Product):
        not_read("it does not end with a Linear layer")
    below = output.of.of if isinstance(output.of, Normed) else output.of
    return _read_residual(output) if isinstance(below, Total) else _read_mlp(output)


def _read_mlp(output: Product) -> _Read:
    layers, gaps, value = [output], list[list[Entrywise | Normed]](), output.of
    while True:
        gap: list[Entrywise | Normed] = []
        while isinstance(value, Entrywise | Normed):
            gap.insert(0, value)
            value = value.of
        if not isinstance(value, Product):
            break
        gaps.insert(0, gap)
        layers.insert(0, value)
        value = value.of
    if isinstance(value, Total):
        not_read(f"the sum {value.name!r} is followed by an activation, or is inside a branch")
    if gap:  # of the input
        not_read(f"layer {gap[0].name!r} does not follow a Linear layer")
    found = [[each for each in gap if isinstance(each, Entrywise)] for gap in gaps]
    norms = [[each for each in gap if isinstance(each, Normed)] for gap in gaps]
    phis = [each[0].phi if each else ACTIVATIONS["linear"] for each in found]
    if max([0, *map(len, found), *map(len, norms)]) > 1:
        not_read("it has two activations, or two norms, between Linear layers")
    _check_activations(phis)
    if len({bool(each) for each in norms}) > 1:
        not_read("some of its layers are normalised and some are not")
    positions = {"after" if isinstance(gap[0], Entrywise) else "before" for gap in gaps if len(gap) == 2}
    if len(positions) > 1 and any(norms):
        not_read("some of its norms are before and some after the activation")
    position = next(iter(positions), "before")
    flat = tuple(norm for each in norms for norm in each)
    return _Read(tuple(layers), tuple(range(len(layers))), phis[0] if phis else ACTIVATIONS["linear"], flat, position)


def _read_residual(head: Product) -> _Read:
    value, blocks, tops = head.of, list[_Branch](), list[Normed | None]()
    while not isinstance(value, Product):
        top = value if isinstance(value, Normed) else None
        total = value if top is None else top.of
        if not isinstance(total, Total):
            not_read(f"its stream passes through {total.name!r}, which is no sum x + f(x)")
        value, block = _block(total)
        blocks.insert(0, block)
        tops.insert(0, top)
    if type(value.of) is not Value:
        not_read(f"its stream begins with layer {value.name!r}, which does not take the input")
    _check_activations([block.phi for block in blocks])
    norms, position = _norms_of_blocks([block.norm for block in blocks], tops)
    layers = (value, *(layer for block in blocks for layer in block.layers), head)
    return _Read(layers, (0, *(1, 2) * len(blocks), 3), blocks[0].phi, norms, position, tuple(blocks))


def _block(total: Total) -> tuple[Value, _Branch]:
    """What a block takes, and the block whose sum this is."""
    for skip, branch in (total.terms, total.terms[::-1]):
        outer = branch.value
        inner = outer.of if isinstance(outer, Product) else None
        phi, inner = (inner.phi, inner.of) if isinstance(inner, Entrywise) else (ACTIVATIONS["linear"], inner)
        if not isinstance(outer, Product) or not isinstance(inner, Product):
            continue
        norm = inner.of if isinstance(inner.of, Normed) and inner.of is not skip.value else None
        if (inner.of if norm is None else norm.of) is skip.value:
            if min(skip.factor, branch.factor) < 0:
                not_read(f"the sum {total.name!r} has a negative factor")
            return skip.value, _Branch(skip.factor, branch.factor, (inner, outer), phi, norm)
    raise unread(f"the sum {total.name!r} is not one of x and of two Linear layers of x with an activation between")


def _norms_of_blocks(inside: list[Normed | None], after: list[Normed | None]) -> tuple[tuple[Normed, ...], str]:
    """The norms of residual blocks in order, and their position."""
    found = tuple(each for each in (*inside, *after) if each is not None)
    if not found:
        return (), "before"
    if all(inside) and not any(after[:-1]) and after[-1]:
        return found, "before"
    if all(after) and not any(inside):
        return found, "after"
    raise unread("its norms are not those in front of every block and of the last layer, nor those after every sum")


def _check_activations(found: Sequence[Activation]) -> None:
    names = {
        phi.name
        if isinstance(phi, SmoothActivation)
        else f"{phi.name} (slopes {float(phi.positive)}, {float(phi.negative)})"
        for phi in found
    }
    if len(names) > 1:
        not_read(f"its activations differ: {', '.join(sorted(names))}")


# ---- the parameters, and the description


def _check_parameters(module: nn.Module, read: _Read) -> None:
    used = [name for layer in read.layers for name in (layer.weight, layer.bias) if name is not None]
    used += [name for norm in read.norms for name in norm.parameters]
    tensors = {name: module.get_parameter(name) for name in used}
    addresses = {each.data_ptr() for each in tensors.values() if each.numel()}
    if len(set(used)) < len(used) or len(addresses) < len(used):
        not_read("layers share parameters")
    others = sorted({name for name, _ in module.named_parameters(remove_duplicate=False)} - set(used))
    if others:
        not_read(f"its parameter {others[0]!r} is not one of its Linear layers or norms")
    for layer in read.layers:
        _check_layer(layer, tensors)
    kinds = {
        kind: [layer for layer, own in zip(read.layers, read.kinds, strict=True) if own == kind] for kind in read.kinds
    }
    for alike in list(kinds.values()) if read.blocks else [read.layers]:
        if len({layer.bias is None for layer in alike}) > 1:
            not_read("some of its Linear layers have a bias and some have none")
        if len({tensors[layer.bias].requires_grad for layer in alike if layer.bias is not None}) > 1:
            not_read("some of its biases are trained and some are not")


def _check_layer(layer: Product, tensors: Mapping[str, nn.Parameter]) -> None:
    weight, given = tensors[layer.weight], [layer.weight] + [layer.bias] * (layer.bias is not None)
    if not weight.is_floating_point() or weight.is_meta:
        not_read(f"the weights of layer {layer.name!r} are no real numbers")
    if not weight.requires_grad:
        not_read(f"the weights of layer {layer.name!r} are not trained (requires_grad=False)")
    if not all(torch.isfinite(tensors[name]).all() for name in given if name is not None):
        not_read(f"layer {layer.name!r} holds numbers that are not finite")


def _described(module: nn.Module, read: _Read, init: str | Mapping[str, object] | None) -> Network:
    weights = {layer.name: module.get_parameter(layer.weight) for layer in read.layers}
    biases = {layer.name: module.get_parameter(layer.bias) for layer in read.layers if layer.bias is not None}
    widths = [weights[read.layers[0].name].shape[1], *(each.shape[0] for each in weights.values())]
    fan_ins = [weights[name].shape[1] for name in biases]
    law: initialization.LawOptions = {}
    if biases:
        law |= initialization.biases(biases, fan_ins, test=init is None)
    phi, norm = read.activation, _norm_of_module(module, read, fresh=init is None)
    law |= initialization.inferred(weights, phi) if init is None else initialization.stated(init, widths, phi)
    kinds = [_bias_kind(biases.get(layer.name)) for layer in read.layers]
    if not read.blocks:
        law["bias"] = kinds[0]
        return network.MLP(widths, activation=phi, parameterization="standard", norm=norm, **law)
    by_kind = _ByKind(read.kinds)
    variances, gains = law.get("bias_variance"), law.get("gains")
    if isinstance(variances, list):
        own = iter(variances)
        law["bias_variance"] = by_kind(
            [next(own) if kind != "none" else 0 for kind in kinds], "variances of its biases"
        )
    if isinstance(gains, tuple):
        law["gains"] = by_kind(gains, "gains")
    law["bias"] = by_kind(kinds, "biases")
    return ResNet(
        [widths[0], widths[1], widths[-1]],
        len(read.blocks),
        widths[2:-2:2],
        skip=[_by_square(block.skip) for block in read.blocks],
        branch=[_by_square(block.branch) for block in read.blocks],
        activation=phi,
        parameterization="standard",
        norm=norm,
        **law,
    )


def _bias_kind(bias: nn.Parameter | None) -> str:
    return "none" if bias is None else "trained" if bias.requires_grad else "frozen"


def _norm_of_module(module: nn.Module, read: _Read, *, fresh: bool) -> Norm | None:
    if not read.norms:
        return None
    if len({(each.kind, each.epsilon, len(each.parameters)) for each in read.norms}) > 1:
        not_read("its norms differ in kind, epsilon or parameters")
    first = read.norms[0]
    tensors = [[module.get_parameter(name) for name in each.parameters] for each in read.norms]
    trained = {each.requires_grad for some in tensors for each in some}
    if len(trained) > 1:
        not_read("some parameters of its norms are trained and some are not")
    moved = any(bool((each != (1 - place)).any()) for some in tensors for place, each in enumerate(some))
    if moved and (fresh or trained == {False}):
        not_read("the scales and shifts of its norms are not 1 and 0, so they are trained, or set otherwise")
    parameters = "trained" if trained == {True} else "none"
    return Norm(first.kind, read.position, epsilon=float(first.epsilon), parameters=parameters)


def _by_square(factor: float) -> str | float:
    """A factor by its square, if that is a simple fraction."""
    square = Fraction(factor * factor).limit_denominator(_LARGEST)
    close = math.isclose(float(square), factor * factor, rel_tol=1e-15)
    return f"sqrt({square.numerator}/{square.denominator})" if close else factor


@dataclass(frozen=True)
class _ByKind:
    """Values of all layers of a residual network as one for each kind, which layers of that kind must share."""

    kinds: tuple[int, ...]

    def __call__(self, values: Sequence[Item], what: str) -> list[Item]:
        """The values of the kinds, in order."""
        found = [{value for value, own in zip(values, self.kinds, strict=True) if own == kind} for kind in range(4)]
        if max(map(len, found)) > 1:
            not_read(f"the {what} of its blocks differ (their hidden widths differ?)")
        return [next(iter(each)) for each in found]


# ---- the module beside the network that it is taken for


def _check_same_function(module: nn.Module, net: Network, read: _Read, trace: Trace) -> None:
    """Refuse a module whose values or gradients, with random parameters, are not the network's with the same."""
    ours, theirs = module_of(net), in_double(module, module.get_parameter(read.layers[0].weight).dtype)
    names = dict(_same_parameters(ours, read))
    generator = torch.Generator().manual_seed(0)
    own = dict(ours.named_parameters())
    far = _SAME_COARSE if trace.coarse else _SAME
    sizes = torch.logspace(-1, 2, 4, dtype=torch.float64)[:, None]
    for _ in range(2):
        X = sizes * torch.randn(4, net.widths[0], generator=generator, dtype=torch.float64)
        cotangent = torch.randn(4, net.widths[-1], generator=generator, dtype=torch.float64) / sizes
        values = {name: _random_like(own[name], name, generator) for name in names}
        with untouched(theirs), differentiable(), telling(theirs, X):
            right = _with_gradients(ours, values, X, cotangent)
            found = _with_gradients(theirs, {names[name]: each for name, each in values.items()}, X, cotangent)
        if found is None or right is None or not all(map(_close, found, right, [far] * len(right))):
            kind = type(net).__name__
            not_read(f"with other weights it does not compute what the {kind} does that it looks like")


def _with_gradients(
    module: nn.Module, values: Mapping[str, torch.Tensor], X: torch.Tensor, cotangent: torch.Tensor
) -> list[torch.Tensor] | None:
    """Outputs, row by row, and the gradients of a sum of multiples of them; None if there are no such outputs."""
    given = {name: each.clone().requires_grad_() for name, each in values.items()}
    found = torch.func.functional_call(module, given, (X.clone(),))
    if isinstance(found, torch.Tensor) and found.shape == cotangent.shape[:1] and cotangent.shape[1] == 1:
        found = found[:, None]
    if not isinstance(found, torch.Tensor) or found.shape != cotangent.shape or not found.requires_grad:
        return None
    gradients = torch.autograd.grad((found * cotangent).sum(), list(given.values()), materialize_grads=True)
    return [*found.detach(), *gradients]


def _close(one: torch.Tensor, other: torch.Tensor, far: float) -> bool:
    return bool(((one - other).abs() <= far * other.abs().max()).all())


def _same_parameters(ours: DescribedModule, read: _Read) -> Iterator[tuple[str, str]]:
    """The names of parameters of our module, with those of the same parameter in the user's."""
    for place, layer in zip(ours.places, read.layers, strict=True):
        yield f"{place.name}.weight", layer.weight
        if layer.bias is not None:
            yield f"{place.name}.bias", layer.bias
    norms = [
        (name, each) for name, each in ours.named_modules() if isinstance(each, ExactNorm | nn.LayerNorm | nn.RMSNorm)
    ]
    for (name, module), norm in zip(norms, read.norms, strict=True):
        for own, other in zip(("weight", "bias"), norm.parameters, strict=False):
            if getattr(module, own) is not None:
                yield f"{name}.{own}", other


def _random_like(parameter: torch.Tensor, name: str, generator: torch.Generator) -> torch.Tensor:
    drawn = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
    if parameter.ndim > 1:
        return drawn / math.sqrt(parameter.shape[1])
    return 0.3 * drawn + (0 if name.endswith("bias") else 1)

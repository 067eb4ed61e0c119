"""The law of any torch module: draws of it, their kernels, and what a step of SGD does to them; `in_law`.

The law is that of the layers as they are drawn again (`finwidth.empirical.modules.redrawing`), or of the modules that a
function of the user's makes.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, TypeAlias

import numpy as np

from finwidth import arguments
from finwidth.errors import FinwidthError, shown
from finwidth.networks.description import Network
from finwidth.networks.laws import FloatArray
from finwidth.progress import stage

if TYPE_CHECKING:
    import torch
    from torch import nn

    from finwidth.empirical.modules.redrawing import Plan

_SAME = 1e-3  # kernels of float32 that agree
_FEWEST_CARRYING = 1 / 6  # of the draws, to carry a mean, in the sense of `Estimate.effective_draws`
# Functions of torch that normalise, or that norms written by hand call.
_NORMS = {"layer_norm", "group_norm", "rms_norm", "instance_norm", "local_response_norm", "normalize"}
_NORMS |= {"norm", "vector_norm", "rsqrt", "sqrt", "std", "var", "std_mean", "var_mean"}

Factory: TypeAlias = "Callable[[], nn.Module]"


@dataclass(frozen=True)
class ModuleLaw:
    """How draws of a module are made, by torch's generator; in words; and what of the module does not pass for a draw.

    Attributes
    ----------
    module
        The module that was given.
    make
        Makes a draw.
    told
        What the draws are.
    moved
        The parameters of the module itself that do not pass for those of draws, as after training.
    not_recognised
        Why the module is not described.
    """

    module: nn.Module
    make: Factory
    told: str
    moved: tuple[str, ...] = ()
    not_recognised: str = ""

    @property
    def doubt(self) -> str:
        """What is to be said of the module itself; "" if it passes for a draw."""
        if not self.moved:
            return ""
        some = ", ".join(self.moved[:3]) + f" and {len(self.moved) - 3} more" * (len(self.moved) > 3)
        return f"; the module itself does not pass for one of them (trained, or drawn otherwise): {some} differ"

    def draw(self, seed: np.random.SeedSequence) -> nn.Module:
        """A draw; the same for the same seed."""
        from finwidth.empirical.modules.redrawing import made_module

        return made_module(self.make, seed, "the function that makes the networks")


def description_or_law(
    module: nn.Module,
    init: str | Mapping[str, object] | None,
    factory: Factory | None,
    serves: Callable[[Network], bool],
) -> Network | ModuleLaw:
    """The description of a module if it is recognised and one that ``serves``; else the law of its draws.

    Raises
    ------
    FinwidthError
        If it is not recognised though ``init`` says how it was drawn, and as `law_of_module`.
    """
    from finwidth import empirical

    if factory is not None:
        if init is not None:
            raise FinwidthError("init and factory both say how the module is drawn; give one of them")
        return law_of_module(module, factory)
    try:
        net = empirical.recognise(module, init)
    except FinwidthError as error:
        if init is not None or not hasattr(module, "named_modules"):
            raise
        from finwidth.empirical.modules.tracing import RECOGNISED

        return law_of_module(module, reason=str(error).removesuffix(f" ({RECOGNISED})"))
    if serves(net):
        return net
    return law_of_network(net, module)


def check_no_factory(factory: object) -> None:
    """Refuse a factory beside a description of a network."""
    if factory is not None:
        raise FinwidthError("factory is for torch modules, and the law of a description is its own; leave factory out")


def law_of_network(net: Network, module: nn.Module) -> ModuleLaw:
    """The law of the torch modules of a description, which ``module`` is recognised as."""
    import torch

    from finwidth.empirical.modules.table import module_of

    first = next(module.parameters())

    def make() -> nn.Module:
        return module_of(net, int(torch.randint(2**62, ())), dtype=first.dtype, device=first.device)

    return ModuleLaw(module, make, f"draws of {net}", not_recognised=f"it is a {type(net).__name__}")


def law_of_module(module: nn.Module, factory: Factory | None = None, *, reason: str = "") -> ModuleLaw:
    """The law of a module: that of the factory's modules, or of the module with its layers drawn again.

    ``reason`` is why it is not described.

    Raises
    ------
    FinwidthError
        If some parameter is drawn in a way that the module does not tell, and there is no factory.
    """
    from finwidth.empirical.kernel.arguments import check_module
    from finwidth.empirical.modules.redrawing import names_of, plan_of, redrawn

    if factory is not None:
        make = arguments.function("factory", factory, "a function without arguments that makes a torch module")
        law = ModuleLaw(check_module(module), make, "networks that factory makes")
        return replace(law, moved=_unlike_draws(law))
    plan = plan_of(check_module(module))
    if plan.kept:
        raise FinwidthError(
            f"how this module is drawn cannot be told: parameter {names_of(plan.kept)}; give factory=, a function "
            f"without arguments that makes a fresh module like it{f' ({reason})' * bool(reason)}"
        )
    told = f"networks drawn again as its weights tell ({plan})"
    return ModuleLaw(module, redrawn(module, plan), told, not_recognised=reason)


def _unlike_draws(law: ModuleLaw) -> tuple[str, ...]:
    """The parameters that do not pass for those of a few draws."""
    from finwidth.empirical.modules.redrawing import differing, seeds_of

    draws = [law.draw(seed) for seed in seeds_of(2**63, 4)]
    if any(_is_matrix_free(each) for each in draws):
        return ()
    own = {name: each.shape for name, each in law.module.named_parameters()}
    for each in draws:
        made = {name: parameter.shape for name, parameter in each.named_parameters()}
        if made != own:
            raise FinwidthError(
                f"factory makes another architecture: its parameters are {_some(made)}, and the module's {_some(own)}"
            )
    return tuple(differing(law.module, draws))


def _some(shapes: Mapping[str, torch.Size]) -> str:
    few = ", ".join(f"{name} {tuple(shape)}" for name, shape in list(shapes.items())[:3])
    return few + ", ..." * (len(shapes) > 3)


# ---- kernels of draws, of output 0 at one input


def _is_matrix_free(module: nn.Module) -> bool:
    from finwidth.sampling.layers.tensor import MatrixFreeTensor

    return any(isinstance(each, MatrixFreeTensor) for each in module.parameters())


def kernel_of(module: nn.Module, X: torch.Tensor) -> float:
    """K_00(x,x) of a module at one input X, shape (1, ...), by the parameters that it trains."""
    from finwidth import empirical
    from finwidth.empirical.modules.described import DescribedModule

    if _is_matrix_free(module):
        return _squared_gradient(module, X)
    scale = module.scale if isinstance(module, DescribedModule) else None
    return float(empirical.ntk(module, X, outputs=0, scale=scale))


def _squared_gradient(module: nn.Module, X: torch.Tensor) -> float:
    """The same by one backward pass, without the checks of `finwidth.empirical.ntk`."""
    import torch

    from finwidth.empirical.modules.described import DescribedModule
    from finwidth.sampling.layers.modules import tangent_kernel

    output = _outputs_at(module, X)[:1]
    if _is_matrix_free(module):
        return float(tangent_kernel(output, module.parameters()))
    named = {name: each for name, each in module.named_parameters() if each.requires_grad}
    scale = module.scale if isinstance(module, DescribedModule) else {}
    gradients = torch.autograd.grad(output.sum(), list(named.values()), materialize_grads=True)
    squares = (each.to_dense().double().square().sum() for each in gradients)
    return float(sum(scale.get(name, 1.0) * square for name, square in zip(named, squares, strict=True)))


def _kernel_function(module: nn.Module, X: torch.Tensor) -> Callable[[nn.Module, torch.Tensor], float]:
    """The fast function of the two where it agrees with the careful one at a module."""
    careful, fast = kernel_of(module, X), _squared_gradient(module, X)
    return _squared_gradient if math.isclose(careful, fast, rel_tol=_SAME) else kernel_of


def _outputs_at(module: nn.Module, X: torch.Tensor) -> torch.Tensor:
    """All outputs at one input, shape (O,)."""
    from finwidth.empirical.kernel.calls import check_output, differentiable, telling

    with differentiable(), telling(module, X):
        return check_output(module(X.clone()), 1)[0]


def kernels_of_draws(
    law: ModuleLaw, X: torch.Tensor, draws: int, seed: int, progress: Callable[[int], object] | None = None
) -> FloatArray:
    """`kernel_of` draws, shape (draws,); that of a draw does not depend on how many there are."""
    from finwidth.empirical.modules.redrawing import seeds_of

    K, seeds = np.zeros(draws), seeds_of(seed, draws)
    kernel = _kernel_function(law.draw(seeds[0]), X)
    with stage("drawing networks", draws, progress) as told:
        for i, each in enumerate(seeds):
            K[i] = kernel(law.draw(each), X)
            told(i + 1)
    return K


def heavy_tailed(law: ModuleLaw, X: torch.Tensor, K: FloatArray) -> str:
    """Why quantiles, and not the mean, tell of the kernels K of draws; "" if the mean does.

    A norm divides by a length, which makes tails that few draws show (`finwidth.exact.normalised`).
    """
    if called := sorted(_functions_called(law.module, X) & _NORMS):
        return f"it normalises ({', '.join(called)}), so that E[K] need not be finite"
    if (
        np.isfinite(K).all()
        and K.any()
        and (K / K.max()).mean() ** 2 < _FEWEST_CARRYING * np.square(K / K.max()).mean()
    ):
        return "few of the draws carry their mean"
    return ""


def _functions_called(module: nn.Module, X: torch.Tensor) -> set[str]:
    """The names of torch's functions that a module calls at an input."""
    from torch.overrides import TorchFunctionMode

    from finwidth.empirical.kernel.calls import untouched

    names = set[str]()

    class Names(TorchFunctionMode):
        def __torch_function__(
            self, func: Callable[..., object], types: object, args: Sequence[object] = (), kwargs: object = None
        ) -> object:
            names.add(getattr(func, "__name__", ""))
            return func(*args, **(kwargs if isinstance(kwargs, dict) else {}))

    with untouched(module), Names():
        _outputs_at(module, X)
    return names


def kernels_after_step(  # noqa: PLR0917
    law: ModuleLaw,
    X: torch.Tensor,
    target: FloatArray,
    lr: float,
    draws: int,
    seed: int,
    progress: Callable[[int], object] | None = None,
) -> FloatArray:
    """`kernel_of` the draws of `kernels_of_draws` after a step of SGD on |N(x) - t|^2 / 2, shape (draws,).

    Parameters
    ----------
    law, X
        What is drawn, and one input, shape (1, ...).
    target
        Of the outputs, shape (O,).
    lr
        Learning rate of torch.optim.SGD; of a module of a description, that of its parameterization.
    draws, seed, progress
        How many, what fixes them, and what is called with the number that took the step.
    """
    from finwidth.empirical.modules.redrawing import seeds_of

    K, seeds = np.full(draws, math.inf), seeds_of(seed, draws)
    kernel = _kernel_function(law.draw(seeds[0]), X)
    with stage("taking a step", draws, progress) as told:
        for i, each in enumerate(seeds):
            module = law.draw(each)
            _take_step(module, X, target, lr)
            if all(bool(each.isfinite().all()) for each in _formed(module)):
                K[i] = kernel(module, X)
            told(i + 1)
    return K


def _formed(module: nn.Module) -> list[torch.Tensor]:
    from finwidth.sampling.layers.tensor import MatrixFreeTensor

    return [each for each in module.parameters() if not isinstance(each, MatrixFreeTensor)]


def _take_step(module: nn.Module, X: torch.Tensor, target: FloatArray, lr: float) -> None:
    import torch

    from finwidth.empirical.modules.described import DescribedModule

    trained = [each for each in module.parameters() if each.requires_grad]
    groups = module.parameter_groups(lr) if isinstance(module, DescribedModule) else trained
    optimizer = torch.optim.SGD(groups, lr=lr)
    optimizer.zero_grad()
    outputs = _outputs_at(module, X)
    loss = (outputs - torch.tensor(target).to(outputs)).square().sum() / 2
    loss.backward()  # type: ignore[no-untyped-call]
    optimizer.step()


def number_of_outputs(module: nn.Module, X: torch.Tensor) -> int:
    """Of a module at an input."""
    from finwidth.empirical.kernel.calls import untouched

    with untouched(module):
        return len(_outputs_at(module, X))


def one_input(module: nn.Module, x: object) -> torch.Tensor:
    """One input of a module as it takes it, with a first dimension of 1; raises FinwidthError if it does not."""
    from finwidth.empirical.kernel.arguments import check_batch, check_tensor
    from finwidth.empirical.kernel.calls import ModuleError

    wanted = "one input, without a dimension of samples"
    if isinstance(x, Mapping):
        raise FinwidthError(
            f"x is {shown(x)}; give {wanted}, as one tensor: a module of several arguments is asked through one that "
            "makes them of a tensor, such as forward(self, ids): return self.model(input_ids=ids)"
        )
    X = check_batch(module, check_tensor(x, "x", wanted)[None], "x")
    try:
        number_of_outputs(module, X)
    except ModuleError as error:
        raise FinwidthError(f"{error}; x has shape {tuple(X.shape[1:])}; give {wanted}, such as X[0]") from error
    return X


# ---- layers in law


def in_law(module: nn.Module, *, gains: Mapping[str, float] | float | None = None) -> nn.Module:
    """A copy of a module whose Gaussian layers are never formed: exact in law at any width.

    Its nn.Linear, nn.Conv1d and nn.Conv2d layers with Gaussian weights become `MatrixFreeLinear`, `MatrixFreeConv1d`
    and `MatrixFreeConv2d`. Other parts (convolutions that are transposed, of three sides, or pad by other numbers than
    zeros; embeddings, and what attention holds itself) are drawn again as their numbers tell, by ``reset_parameters``
    or from the scheme of their weights; what is neither keeps its numbers. ``torch.manual_seed`` before the call fixes
    the numbers.

    Parameters
    ----------
    module
        Any torch module; with ``gains`` it may be on the device "meta", where wide layers take no memory.
    gains
        fan-in times the variance of the weights of each layer to replace: one number for all nn.Linear, nn.Conv1d and
        nn.Conv2d, or numbers by name; biases are zero then. By default inferred from the weights, which must be fresh.

    Returns
    -------
    torch.nn.Module
        Its attribute ``told_in_law`` says in a line what was replaced and what was not.

    Raises
    ------
    FinwidthError
        If no layer is replaced, or a part on the device "meta" has no ``reset_parameters``.

    Examples
    --------
    >>> import finwidth, torch
    >>> with torch.device("meta"):
    ...     wide = torch.nn.Sequential(torch.nn.Linear(4, 10**6), torch.nn.ReLU(), torch.nn.Linear(10**6, 1))
    >>> module = finwidth.in_law(wide, gains=2)
    >>> module.told_in_law
    'in law: 2 layers'
    >>> finwidth.tangent_kernel(module(torch.ones(2, 4)).squeeze(1), module.parameters()).shape
    torch.Size([2, 2])
    """
    from torch import nn

    from finwidth.empirical.kernel.arguments import check_materialised
    from finwidth.empirical.modules import redrawing

    if not isinstance(module, nn.Module):
        raise FinwidthError(f"the module is {shown(module)}; give a torch.nn.Module")
    check_materialised(module)
    unreal = [name for name, each in module.named_parameters() if each.is_complex()]
    if unreal:
        raise FinwidthError(f"parameter {unreal[0]!r} is complex; only real layers are drawn in law")
    if gains is None and any(each.is_meta for each in module.parameters()):
        raise FinwidthError("the module is on the device meta, where weights tell nothing; give gains=")
    plan = redrawing.plan_of(module) if gains is None else _stated_plan(module, gains)
    return made_in_law(module, plan)


def made_in_law(module: nn.Module, plan: Plan) -> nn.Module:
    """`in_law` by a plan of the module."""
    import torch
    from torch import nn

    from finwidth.empirical.modules import redrawing

    replaced = {
        name: scheme
        for name, scheme in plan.schemes.items()
        if scheme.law == "gaussian" and not _why_not(module.get_submodule(name))
    }
    if not replaced:
        raise FinwidthError(
            f"no layer of this module is drawn in law{_first_reasons(module, plan)}; give gains= where weights of an "
            "nn.Linear, nn.Conv1d or nn.Conv2d are Gaussian and do not tell it, or leave the module as it is: "
            "finwidth.compare and finwidth.regime draw it again, or what factory= makes"
        )
    layers = {name: _matrix_free(module.get_submodule(name), scheme.gain) for name, scheme in replaced.items()}
    memo: dict[int, object] = {id(module.get_submodule(name)): layer for name, layer in layers.items()}
    found = redrawing.copied(module, memo)
    rest = replace(plan, schemes={name: each for name, each in plan.schemes.items() if name not in replaced})
    for name, layer in layers.items():
        if replaced[name].bias == "default" and "bias" in dict(layer.named_parameters()):
            fan_in = module.get_submodule(name).get_parameter("weight")[0].numel()
            nn.init.uniform_(layer.get_parameter("bias"), -(fan_in**-0.5), fan_in**-0.5)
    with torch.no_grad():
        _fill(found, rest)
    found.told_in_law = _replacement_told(replaced, rest)  # type: ignore[assignment]
    return found


def _first_reasons(module: nn.Module, plan: Plan) -> str:
    """Why the first few parts with weights have no form in law."""
    reasons = {}
    for name, each in module.named_modules():
        if any(parameter.ndim > 1 for parameter in each.parameters(recurse=False)):
            scheme = plan.schemes.get(name)
            drawn = f"its weights are {scheme.names[0]}, not Gaussian" if scheme else "how it is drawn cannot be told"
            reasons[name] = _why_not(each) or drawn
    told = [f"{name!r} ({reason})" for name, reason in list(reasons.items())[:3]]
    return f": {', '.join(told)}{f' and {len(reasons) - 3} more' * (len(reasons) > 3)}" if told else ""


def _replacement_told(replaced: Mapping[str, object], rest: Plan) -> str:
    from finwidth.empirical.modules.redrawing import names_of

    number = len(replaced)
    told = f"in law: {number} layer{'s' * (number > 1)}"
    told += f"; drawn again: {rest}" if rest.schemes or rest.reset else ""
    return told + (f"; as they were: {names_of(rest.kept)}" if rest.kept else "")


def _fill(module: nn.Module, rest: Plan) -> None:
    """Draw what is not in law; parts without numbers are made on the CPU first."""
    for name in rest.reset:
        part = module.get_submodule(name)
        if any(each.is_meta for each in part.parameters()):
            part.to_empty(device="cpu")
    left = [name for name, each in (*module.named_parameters(), *module.named_buffers()) if each.is_meta]
    if left:
        raise FinwidthError(f"{left[0]!r} has no numbers (device meta), and no reset_parameters draws it")
    rest.draw(module)


def _stated_plan(module: nn.Module, gains: Mapping[str, float] | float) -> Plan:
    """The plan that replaces the layers named, or all that can be, with these gains."""
    from torch import nn

    from finwidth.empirical.modules.initialization import LayerScheme
    from finwidth.empirical.modules.redrawing import Plan, has_reset

    able = [name for name, each in module.named_modules() if type(each) in {nn.Linear, nn.Conv1d, nn.Conv2d}]
    if isinstance(gains, Mapping):
        given = {name: value for name, value in gains.items() if name in able}
        if len(given) < len(gains):
            wrong = next(name for name in gains if name not in given)
            raise FinwidthError(
                f"gains names {shown(wrong)}, which is no nn.Linear, nn.Conv1d or nn.Conv2d of the module"
            )
    else:
        given = dict.fromkeys(able, gains)
    numbers = {
        name: arguments.real(f"the gain of {name!r}", value, "a positive number", lambda gain: 0 < gain < math.inf)
        for name, value in given.items()
    }
    for name in numbers:
        if (reason := _why_not(module.get_submodule(name))) and isinstance(gains, Mapping):
            raise FinwidthError(f"layer {name!r} cannot be drawn in law: {reason}")
    schemes = {name: LayerScheme(("stated",), "gaussian", gain, "zero") for name, gain in numbers.items()}
    schemes = {name: scheme for name, scheme in schemes.items() if not _why_not(module.get_submodule(name))}
    inside = [name for name, each in module.named_modules() if name not in schemes and has_reset(each)]
    outer = [name for name in inside if not any(name.startswith(f"{other}.") for other in inside if other)]
    return Plan(schemes, tuple(name for name in outer if name), {})


def _why_not(layer: nn.Module) -> str:
    """Why a layer has no form in law; "" if it has."""
    from torch import nn

    if type(layer) not in {nn.Linear, nn.Conv1d, nn.Conv2d}:
        return f"{type(layer).__name__} has no form in law"
    if isinstance(layer, nn.Conv1d | nn.Conv2d) and (layer.padding_mode != "zeros" or isinstance(layer.padding, str)):
        return "it does not pad by numbers of zeros"
    return "" if layer.get_parameter("weight").requires_grad else "its weights are not trained"


def _matrix_free(layer: nn.Module, gain: float) -> nn.Module:
    from torch import nn

    from finwidth.sampling.layers.modules import MatrixFreeConv1d, MatrixFreeConv2d, MatrixFreeLinear

    assert isinstance(layer, nn.Linear | nn.Conv1d | nn.Conv2d)
    device = "cpu" if layer.weight.is_meta else layer.weight.device
    dtype, bias = layer.weight.dtype, layer.bias is not None
    made: nn.Module
    if isinstance(layer, nn.Linear):
        made = MatrixFreeLinear(layer.in_features, layer.out_features, gain=gain, bias=bias, dtype=dtype, device=device)
    else:
        assert not isinstance(layer.padding, str)
        kind: type[MatrixFreeConv1d | MatrixFreeConv2d]
        kind = MatrixFreeConv1d if isinstance(layer, nn.Conv1d) else MatrixFreeConv2d
        made = kind(
            layer.in_channels,
            layer.out_channels,
            layer.kernel_size,
            stride=layer.stride,
            padding=layer.padding,
            dilation=layer.dilation,
            groups=layer.groups,
            gain=gain,
            bias=bias,
            dtype=dtype,
            device=device,
        )
    if layer.bias is not None:
        made.get_parameter("bias").requires_grad_(layer.bias.requires_grad)
    return made.train(layer.training)

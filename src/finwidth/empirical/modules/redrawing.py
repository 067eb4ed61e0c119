"""How any torch module is initialised again, layer by layer: `plan_of`.

Linear and convolutional layers whose weights pass for draws of a known scheme (`initialization`) are drawn from it.
Other layers are drawn by their own ``reset_parameters``, if their parameters pass for what it draws.  What is neither
is not drawn again: it was trained, or drawn in a way that the module does not tell.
"""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import TypeAlias

import numpy as np
import torch
from torch import nn

from finwidth.arguments import running
from finwidth.empirical.kernel.arguments import check_module
from finwidth.empirical.kernel.calls import first_line
from finwidth.empirical.modules.initialization import LayerScheme, layer_schemes
from finwidth.errors import FinwidthError

Weighted: TypeAlias = nn.Linear | nn.Conv1d | nn.Conv2d | nn.Conv3d

WEIGHTED = {nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d}

_FALSE_REFUSALS = 1e-6
_DRAWS = 4  # that parameters are compared with
_TESTED = 2**15  # numbers of a parameter that are looked at


@dataclass(frozen=True)
class Plan:
    """How the layers of a module are drawn again.

    Attributes
    ----------
    schemes
        Of the linear and convolutional layers, by name.
    reset
        The names of parts with a ``reset_parameters`` of their own that draws all of their parameters.
    kept
        The parameters that are not drawn again, with the reason.
    """

    schemes: Mapping[str, LayerScheme]
    reset: tuple[str, ...]
    kept: Mapping[str, str]

    def draw(self, module: nn.Module) -> None:
        """Draw the parameters of a module of this plan by torch's generator."""
        for name in self.reset:
            reset(module.get_submodule(name))
        for name, scheme in self.schemes.items():
            layer = module.get_submodule(name)
            assert isinstance(layer, Weighted)
            scheme.draw(layer)

    def __str__(self) -> str:
        counts = Counter(scheme.names[0] for scheme in self.schemes.values())
        told = [f"{number} layer{'s' * (number > 1)} with {name} weights" for name, number in counts.items()]
        number = len(self.reset)
        told += [f"{number} other part{'s' * (number > 1)} by reset_parameters"] if number else []
        return ", ".join(told) or "no parameters"


def plan_of(module: nn.Module) -> Plan:
    """How a module's layers are drawn again, as their parameters tell.

    Examples
    --------
    >>> import torch
    >>> from finwidth.empirical.modules.redrawing import plan_of
    >>> _ = torch.manual_seed(0)
    >>> module = torch.nn.Sequential(torch.nn.Conv2d(8, 32, 3), torch.nn.BatchNorm2d(32), torch.nn.PReLU())
    >>> print(plan_of(module))
    1 layer with default weights, 2 other parts by reset_parameters
    """
    schemes = dict[str, LayerScheme]()
    unclear = dict[str, list[LayerScheme]]()
    kept, resets = dict[str, str](), list[str]()
    several = _shared(module)

    def visit(part: nn.Module, name: str) -> None:
        inside = f"{name}." if name else ""
        if type(part) in WEIGHTED and not several & {id(each) for each in part.parameters()}:
            assert isinstance(part, Weighted)
            found = layer_schemes(part)
            if len(found) == 1:
                schemes[name] = found[0]
            elif found:
                unclear[name] = found
            if found:
                return
        reason = "it is drawn otherwise, or trained"
        if has_reset(part):
            wrong = _not_as_reset(part)
            if not wrong:
                resets.append(name)
                return
            reason = wrong
        for child, each in part.named_children():
            visit(each, f"{inside}{child}")
        kept.update({f"{inside}{each}": reason for each, _ in part.named_parameters(recurse=False)})

    with torch.random.fork_rng(devices=[]):
        visit(module, "")
    _settle(schemes, unclear, kept)
    return Plan(schemes, tuple(resets), kept)


def _settle(schemes: dict[str, LayerScheme], unclear: dict[str, list[LayerScheme]], kept: dict[str, str]) -> None:
    """Have every scheme called by the name that most layers share; layers with too few weights to tell follow those."""
    common = Counter(name for scheme in schemes.values() for name in scheme.names)
    for layer, rivals in unclear.items():
        most = [max(common[name] for name in scheme.names) for scheme in rivals]
        if max(most) and most.count(max(most)) == 1:
            schemes[layer] = rivals[most.index(max(most))]
        else:
            told = " from ".join(scheme.names[0] for scheme in rivals)
            kept[f"{layer}.weight"] = f"its weights are too few to tell {told}"
    common = Counter(name for scheme in schemes.values() for name in scheme.names)
    for layer, scheme in schemes.items():
        schemes[layer] = replace(scheme, names=tuple(sorted(scheme.names, key=lambda name: -common[name])))


def _shared(module: nn.Module) -> set[int]:
    """The parameters that more than one part has."""
    seen, several = set[int](), set[int]()
    for part in module.modules():
        for each in part.parameters(recurse=False):
            (several if id(each) in seen else seen).add(id(each))
    return several


def _resetter(part: nn.Module) -> Callable[[], object] | None:
    """The function that does; attention and transformers of torch have it under another name."""
    found = getattr(part, "reset_parameters", None) or getattr(part, "_reset_parameters", None)
    return found if callable(found) else None


def has_reset(part: nn.Module) -> bool:
    """Whether a part draws its parameters by ``reset_parameters``."""
    return _resetter(part) is not None and any(True for _ in part.parameters())


def reset(part: nn.Module) -> None:
    """Draw all parameters of a part by ``reset_parameters``, its own after those of what is in it."""
    for each in reversed(list(part.modules())):
        found = _resetter(each)
        if found is not None:
            with running(f"reset_parameters of {type(each).__name__}"):
                found()


def _not_as_reset(part: nn.Module) -> str:
    """Why the parameters of a part do not pass for what its reset_parameters draws; "" if they do."""
    copies = [copy.deepcopy(part) for _ in range(_DRAWS)]
    for each in copies:
        with torch.no_grad():
            for parameter in each.parameters():
                parameter.fill_(float("nan"))  # what is not drawn will show
        reset(each)
    left = [name for name, each in copies[0].named_parameters() if bool(each.isnan().any())]
    if left:
        return f"reset_parameters of {type(part).__name__} does not draw it"
    far = differing(part, copies)
    return f"it is not as reset_parameters of {type(part).__name__} draws it" if far else ""


def differing(module: nn.Module, draws: list[nn.Module]) -> list[str]:
    """The names of the parameters that do not pass for those of the draws, by Kolmogorov-Smirnov."""
    given = dict(module.named_parameters())
    others = [dict(each.named_parameters()) for each in draws]
    allowed = _FALSE_REFUSALS / max(1, len(given))
    return [name for name, each in given.items() if not _of_one_law(each, [other[name] for other in others], allowed)]


def _of_one_law(one: torch.Tensor, drawn: list[torch.Tensor], allowed: float) -> bool:
    from scipy import stats

    numbers, pools = _few(one), [_few(each) for each in drawn]
    if all(np.array_equal(pools[0], each) for each in pools):
        return bool(np.allclose(numbers, pools[0], rtol=1e-6, atol=0))
    if not numbers.any():  # as zeros_ leaves them
        return False
    return float(stats.ks_2samp(numbers, np.concatenate(pools), method="asymp").pvalue) >= allowed


def _few(tensor: torch.Tensor) -> np.ndarray[tuple[int, ...], np.dtype[np.float64]]:
    flat = tensor.detach().flatten()
    return flat[:: -(-len(flat) // _TESTED)].to("cpu", torch.float64).numpy()


# ---- draws


def seeds_of(seed: int, draws: int) -> list[np.random.SeedSequence]:
    """A seed for each draw, which does not depend on how many there are."""
    return np.random.SeedSequence(seed).spawn(draws)


def made_module(make: Callable[[], nn.Module], seed: np.random.SeedSequence, what: str) -> nn.Module:
    """What ``make`` makes with torch's generator at a seed; the generator is as before afterwards."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(int(seed.generate_state(1, np.uint64)[0] >> np.uint64(1)))
        with running(what):
            module = make()
    if not isinstance(module, nn.Module):
        raise FinwidthError(f"the function made a {type(module).__name__}; it must make a torch module")
    return check_module(module)


def copied(module: nn.Module, memo: dict[int, object] | None = None) -> nn.Module:
    """A copy of the user's module, in which some of its parts are what ``memo`` has for them."""
    try:
        return copy.deepcopy(module, memo)
    except Exception as error:  # whatever a user's module raises
        raise FinwidthError(f"the module cannot be copied: {first_line(error)}; give factory=") from error


def redrawn(module: nn.Module, plan: Plan) -> Callable[[], nn.Module]:
    """A function that makes a module of the plan's law, in the mode of the one given."""

    def make() -> nn.Module:
        fresh = copied(module)
        plan.draw(fresh)
        return fresh

    return make


def names_of(kept: Mapping[str, str]) -> str:
    """The first few parameters that are not drawn again, with the reasons."""
    some = [f"{name!r} ({reason})" for name, reason in list(kept.items())[:3]]
    return ", ".join(some) + (f" and {len(kept) - 3} more" if len(kept) > 3 else "")

"""Many networks of one architecture at once: their parameters are stacked, and every product is a batch of products.

Training and outputs go through torch.func (functional_call under vmap), for any module.  Kernels of a `finwidth.MLP`
without a norm are batches of Gram matrices, layer by layer, and no Jacobian is formed: with A the activations that
enter layer i, J the derivatives of an output by its pre-activations and c, e its multipliers,
K = sum_i (c_i A A^T + e_i) * (J J^T).  Those of other descriptions are batches of Jacobians, and those of other modules
are those of `finwidth.empirical.ntk`, member by member.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import nn

from finwidth.arguments import array, check_seed, count, flag, function
from finwidth.empirical.kernel.arguments import check_batch, numpy_of
from finwidth.empirical.kernel.calls import ModuleError, telling
from finwidth.empirical.kernel.ntk import ntk
from finwidth.empirical.modules.described import DescribedModule
from finwidth.empirical.modules.redrawing import made_module
from finwidth.empirical.modules.table import check_described, module_of, number_of_weights
from finwidth.empirical.training.tracker import one_output
from finwidth.errors import FinwidthError, shown
from finwidth.memory import afford, amount, check_memory
from finwidth.networks.description import Network
from finwidth.networks.laws import FloatArray
from finwidth.networks.mlp import MLP
from finwidth.observables import LOSS, OBSERVABLES, SHAPES, check_varied, observe, spread, target_gram, targets_are
from finwidth.progress import stage
from finwidth.quantities import attributes, storable
from finwidth.schedule import Record, recorded_steps

if TYPE_CHECKING:
    import xarray as xr


_IN_EVAL = "return module.eval() from the function that makes it"


class Ensemble:
    """Independent random networks of one architecture, in the mode in which they are made.

    Parameters
    ----------
    net
        A `finwidth.MLP`, `ResNet` or `BalancedResNet`, or a function without arguments that makes a torch module,
        initialised by torch's generator.
        Batch normalisation and dropout must be in eval mode (``return module.eval()``), as for
        `finwidth.empirical.ntk`: what they do in training is no function of one input. Buffers stay as they are made,
        also in `train`.
    draws
        How many networks.
    seed
        A whole number, 0 or more. Member i has the same weights whatever the number of draws.
    dtype, device
        As for `finwidth.empirical.MLP`; a function's modules are taken as they are.

    Attributes
    ----------
    parameters
        By name, with the draws in the first dimension.
    scale
        Rates of the parameters over the learning rate, as of `finwidth.empirical.MLP`.

    Examples
    --------
    >>> import finwidth, torch
    >>> ensemble = finwidth.empirical.Ensemble(finwidth.MLP([2, 16, 16, 1]), draws=5)
    >>> X, y = torch.eye(2, dtype=torch.float64), [1.0, -1.0]
    >>> ensemble.kernels(X).shape
    torch.Size([5, 2, 2])
    >>> found = ensemble.train(X, y, steps=20, lr=0.02)
    >>> found.drift.dims, bool((found.loss[:, -1] < found.loss[:, 0]).all())
    (('draw', 'step'), True)
    """

    def __init__(
        self,
        net: Network | Callable[[], nn.Module],
        draws: int,
        seed: int = 0,
        *,
        dtype: torch.dtype = torch.float64,
        device: torch.device | str | None = None,
    ) -> None:
        self.draws = count("draws", draws)
        seed = check_seed(seed)
        weights = number_of_weights(check_described(net)) if isinstance(net, Network) else 0
        self._afford(self.draws * (1000 + 24 * weights), "parameters")  # drawn, joined, and as torch has them
        seeds = np.random.SeedSequence(seed).spawn(self.draws)
        self.network = net if isinstance(net, Network) else None
        self._grams = isinstance(net, MLP) and net.norm is None
        self.scale: dict[str, float] = {}
        self._buffers: dict[str, torch.Tensor] = {}
        if isinstance(net, Network):
            module = module_of(net, dtype=dtype, device=device)
            self._template: nn.Module = module.eval()
            self.scale = module.scale
            self.parameters, self._buffers = _drawn(module, seeds)
            self._attrs = attributes(net, method="ensemble of torch networks", seed=seed)
        else:
            make = function("net", net, "a finwidth.MLP or ResNet, or a function that makes a torch module")
            modules = [_made_module(make, seeds[0])]
            self._afford(2 * self.draws * sum(each.nbytes for each in modules[0].parameters()), "parameters")
            modules += [_made_module(make, each) for each in seeds[1:]]
            self._template = copy.deepcopy(modules[0])
            try:
                self.parameters, self._buffers = torch.func.stack_module_state(modules)
            except RuntimeError as error:
                raise FinwidthError(f"net makes networks that differ: {error}; make one architecture") from None
            self._attrs = {
                "module": type(modules[0]).__name__,
                "method": "ensemble of torch networks",
                "seed": storable(seed),
            }

    def _afford(self, needed: int, what: str) -> None:
        afford(needed, f"the {what} of {amount(self.draws)} networks", "take fewer or smaller ones, or fewer inputs")

    def member(self, i: int) -> nn.Module:
        """A module of its own with the parameters of member ``i`` as they are now."""
        if count("i", i, 0) >= self.draws:
            raise FinwidthError(f"i is {i}, and there are {self.draws} draws, numbered from 0")
        module = copy.deepcopy(self._template)
        with torch.no_grad():
            for stacked, own in ((self.parameters, module.named_parameters()), (self._buffers, module.named_buffers())):
                for name, each in own:
                    each.copy_(stacked[name][i])
        return module

    def outputs(self, X: object) -> torch.Tensor:
        """The output of every network at inputs X, shape (draws, N, ...)."""

        def one(parameters: dict[str, torch.Tensor], buffers: dict[str, torch.Tensor]) -> torch.Tensor:
            found: torch.Tensor = torch.func.functional_call(self._template, (parameters, buffers), (inputs,))
            return found

        inputs = self._inputs(X)
        buffers = {name: each.clone() for name, each in self._buffers.items()}  # a forward pass may write to its own
        try:
            with telling(self._template, inputs):
                found: torch.Tensor = torch.func.vmap(one)(self.parameters, buffers)
        except ModuleError as error:
            if "random" not in str(error):
                raise
            raise FinwidthError(f"the networks draw random numbers (dropout, stochastic depth?); {_IN_EVAL}") from None
        return found

    def kernels(self, X: object, outputs: str | int = "trace", *, memory: str | int = "1GiB") -> torch.Tensor:
        """The kernel of every network on inputs X, shape (draws, N, N).

        Parameters
        ----------
        X
            Inputs, shape (N, ...).
        outputs
            ``"trace"``, or the number of one output.
        memory
            What the work for it may take; the result comes on top.
        """
        outputs = one_output(outputs)
        inputs = self._inputs(X)
        self._afford((2 * self.draws + 8) * len(inputs) ** 2 * inputs.element_size(), "kernels")
        if self.network is None:
            kernels = [ntk(self.member(i), inputs, outputs=outputs, memory=memory) for i in range(self.draws)]
            return torch.stack([torch.as_tensor(each) for each in kernels])
        chosen = self._chosen(outputs)
        if self._grams:
            # Activations and slopes of all layers, and derivatives of all outputs for two of them.
            widths = self.network.widths
            cells = len(inputs) * (2 * sum(widths) + 2 * len(chosen) * max(widths) + 4 * len(inputs))
        else:  # the Jacobian, and what torch.func holds of it
            cells = 3 * len(inputs) * len(chosen) * sum(each[0].numel() for each in self.parameters.values())
        size = max(1, check_memory(memory) // (cells * inputs.element_size()))
        kernels_of = self._gram_kernels if self._grams else self._jacobian_kernels
        with torch.no_grad():
            pieces = [kernels_of(inputs, chosen, slice(i, i + size)) for i in range(0, self.draws, size)]
        return torch.cat(pieces)

    def _inputs(self, given: object, name: str = "X") -> torch.Tensor:
        """Inputs of the networks, shape (N, ...); kernels of an MLP are found without calling it."""
        inputs = check_batch(self._template, given, name)
        if self.network is not None and inputs.shape[1:] != self.network.widths[:1]:
            raise FinwidthError(f"{name} has shape {tuple(inputs.shape)}; give one of (N, {self.network.widths[0]})")
        return inputs

    def _chosen(self, outputs: str | int) -> list[int]:
        assert self.network is not None
        available = self.network.widths[-1]
        if outputs == "trace":
            return list(range(available))
        number = int(outputs)
        if number >= available:
            raise FinwidthError(f"outputs is {number}, and the networks have {available}, numbered from 0")
        return [number]

    def _jacobian_kernels(self, X: torch.Tensor, chosen: list[int], part: slice) -> torch.Tensor:
        """Kernels of some draws, summed over the chosen outputs, from their Jacobians."""
        trained = {name: self.parameters[name].detach()[part] for name in self.scale}
        fixed = {name: each[part] for name, each in self.parameters.items() if name not in trained} | {
            name: each[part] for name, each in self._buffers.items()
        }

        def one(trained: dict[str, torch.Tensor], fixed: dict[str, torch.Tensor]) -> torch.Tensor:
            def values(given: dict[str, torch.Tensor]) -> torch.Tensor:
                found: torch.Tensor = torch.func.functional_call(self._template, {**given, **fixed}, (X,))
                return found[:, chosen]

            K = X.new_zeros(len(X), len(X))
            for name, jacobian in torch.func.jacrev(values)(trained).items():
                rows = jacobian.flatten(1)
                K = K + self.scale[name] * (rows @ rows.T)
            return K

        found: torch.Tensor = torch.func.vmap(one)(trained, fixed)
        return found

    def _gram_kernels(self, X: torch.Tensor, chosen: list[int], part: slice) -> torch.Tensor:
        """Kernels of some draws, summed over the chosen outputs: forward, then backward with the Gram matrices."""
        linears = [(name, layer) for name, layer in self._template.named_children() if isinstance(layer, nn.Linear)]
        phi = next((layer for layer in self._template.children() if not isinstance(layer, nn.Linear)), nn.Identity())
        weights = [self.parameters[f"{name}.weight"][part] for name, _ in linears]
        factors = [float(getattr(layer, "factor", 1.0)) for _, layer in linears]
        scales = [float(getattr(layer, "bias_scale", 1.0)) for _, layer in linears]
        activations, slopes = [X.expand(len(weights[0]), *X.shape)], []
        for place, ((name, _), W, factor) in enumerate(zip(linears[:-1], weights, factors, strict=False)):
            Y = factor * activations[place] @ W.mT
            if f"{name}.bias" in self.parameters:
                Y += scales[place] * self.parameters[f"{name}.bias"][part][:, None]
            value, slope = _with_slope(phi, Y)
            activations.append(value)
            slopes.append(slope)
        outputs = torch.eye(weights[-1].shape[1], dtype=X.dtype, device=X.device)[chosen]
        J = outputs.expand(len(weights[0]), len(X), *outputs.shape)  # draws, inputs, outputs, neurons
        K = torch.zeros((len(J), len(X), len(X)), dtype=X.dtype, device=X.device)
        for place in reversed(range(len(linears))):
            name, A, flat = linears[place][0], activations[place], J.flatten(2)
            share = self.scale[f"{name}.weight"] * factors[place] ** 2 * (A @ A.mT)
            K += (share + self.scale.get(f"{name}.bias", 0.0) * scales[place] ** 2) * (flat @ flat.mT)
            if place:
                pulled = J.flatten(1, 2) @ (factors[place] * weights[place])
                J = pulled.reshape(*J.shape[:3], -1) * slopes[place - 1][:, :, None]
        return K

    def train(
        self,
        X: object,
        y: object,
        steps: int,
        lr: object,
        *,
        record: Record = "log",
        probe: object = None,
        probe_targets: object = None,
        outputs: str | int = "trace",
        centred: bool = False,
    ) -> xr.Dataset:
        """Train every network by gradient descent on all of the data, and follow the kernels.

        The loss of a network is sum_a |N(x_a) - y_a|^2 / 2, a sum over the batch and the outputs; each parameter moves
        at ``lr`` times its rate in the parameterization. The ensemble itself is trained: it keeps the last parameters.

        Parameters
        ----------
        X, y
            Data: inputs (N, ...) and targets (N,) or (N, O).
        steps
            How many.
        lr
            Learning rate: one number, or one for each draw.
        record
            When to measure, as for `Tracker`; step 0 and the last step always are.
        probe, probe_targets
            Where to measure kernels and alignment; by default on X and y. Of networks with several outputs, whole
            numbers of shape (N,) are classes.
        outputs
            ``"trace"``, or the number of one output.
        centred
            Train N(x) - N_0(x), N_0 the same network as it is now, held fixed: the loss begins at that of outputs 0, as
            with `finwidth.train`.

        Returns
        -------
        xarray.Dataset
            Over draw and step: loss (before the step's own move), and the variables of
            `finwidth.observables`, NaN for a network that is dead on the probe set; ``cv`` over step.

        Raises
        ------
        FinwidthError
            If an argument is not allowed, or a network diverges.
        """
        steps, outputs = count("steps", steps), one_output(outputs)
        recorded = recorded_steps(record, steps)
        self._afford(2 * sum(each.nbytes for each in self.parameters.values()), "gradients")
        inputs, rates = self._inputs(X), self._rates(lr)
        targets = torch.tensor(numpy_of(y)).to(inputs)
        targets = targets[:, None] if targets.ndim == 1 else targets
        if (probe is None) != (probe_targets is None):
            raise FinwidthError("give both of probe and probe_targets, or neither")
        probe = inputs if probe is None else self._inputs(probe, "probe")
        aims = numpy_of(targets if probe_targets is None else probe_targets)
        self._afford(72 * self.draws * len(probe) ** 2, "kernels")  # and what is read off them
        G = check_varied(target_gram(aims, len(probe), targets.shape[1:].numel()))
        start = self.outputs(inputs).detach() if flag("centred", centred) else 0.0
        rows: dict[int, dict[str, FloatArray]] = {}
        initial = np.zeros(0)
        with stage("training", steps) as told:
            for step in range(steps + 1):
                losses, gradients = self._losses(inputs, targets, start)
                if step in recorded:
                    K = self.kernels(probe, outputs).double().cpu().numpy()
                    initial = initial if step else K
                    self._check_finite(K, losses, step)
                    rows[step] = {"loss": losses.double().cpu().numpy()} | observe(K, initial, G)
                if step < steps:
                    for name, gradient in gradients.items():
                        self.parameters[name].data -= rates[name] * gradient
                told(step)
        more = {
            "lr": np.asarray(numpy_of(lr), np.float64),
            "targets_are": targets_are(aims, targets.shape[1:].numel()),
            "outputs_are": "N(x) - N_0(x), centred" if centred else "N(x)",
        }
        return self._dataset(rows, initial, more)

    def _rates(self, lr: object) -> dict[str, torch.Tensor]:
        """The learning rate of each parameter, one number for each draw in its first dimension."""
        first = next(iter(self.parameters.values()))
        wanted = f"one positive number, or one for each of {self.draws} draws"
        given = torch.tensor(array("lr", lr, wanted)).to(first)
        if given.shape not in {(), (self.draws,)} or not (torch.isfinite(given) & (given > 0)).all():
            raise FinwidthError(f"lr is {shown(lr)}; give {wanted}")
        each = given.expand(self.draws)
        return {
            name: self.scale.get(name, 1.0) * each.reshape(-1, *[1] * (parameter.ndim - 1))
            for name, parameter in self.parameters.items()
            if parameter.requires_grad
        }

    def _losses(
        self, X: torch.Tensor, y: torch.Tensor, start: torch.Tensor | float
    ) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """The loss of each member, of outputs minus ``start``, and its gradient by the parameters that are trained."""
        trained = {name: each for name, each in self.parameters.items() if each.requires_grad}
        found = self.outputs(X)
        if found.shape[1:] != y.shape:
            raise FinwidthError(f"the targets have shape {tuple(y.shape)}, and the outputs {tuple(found.shape[1:])}")
        losses = (found - start - y).square().flatten(1).sum(1) / 2
        return losses.detach(), dict(
            zip(trained, torch.autograd.grad(losses.sum(), list(trained.values())), strict=True)
        )

    def _check_finite(self, K: FloatArray, losses: torch.Tensor, step: int) -> None:
        bad = ~np.isfinite(K).all(axis=(1, 2)) | ~torch.isfinite(losses).cpu().numpy()
        if bad.any():
            raise FinwidthError(f"{int(bad.sum())} of {self.draws} networks diverge before step {step}; lower lr")

    def _dataset(
        self, rows: dict[int, dict[str, FloatArray]], initial: FloatArray, more: dict[str, object]
    ) -> xr.Dataset:
        import xarray as xr

        steps = sorted(rows)
        variables = {
            name: (
                ("draw", "step", *SHAPES.get(name, ())),
                np.stack([rows[step][name] for step in steps], axis=1),
                (LOSS if name == "loss" else OBSERVABLES[name]).attrs,
            )
            for name in rows[0]
        }
        variables["initial_K"] = (("draw", *SHAPES["K"]), initial, OBSERVABLES["initial_K"].attrs)
        found = xr.Dataset(variables, {"step": steps}, self._attrs | more)
        if self.draws > 1:
            cv = spread(found.diagonal.transpose("draw", "step", "input").to_numpy())
            found = found.assign(cv=("step", cv, OBSERVABLES["cv"].attrs))
        return found


def _drawn(
    module: DescribedModule, seeds: list[np.random.SeedSequence]
) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    """Stacked parameters and buffers; member i is the module made with seed i."""
    draws = [module.draw(np.random.default_rng(seed)) for seed in seeds]

    def stacked(name: str, own: torch.Tensor) -> torch.Tensor:
        if name not in draws[0]:
            return own.detach().repeat(len(draws), *[1] * own.ndim)
        return torch.from_numpy(np.stack([draw.pop(name) for draw in draws])).to(own.device, own.dtype)

    parameters = {name: stacked(name, each) for name, each in module.named_parameters()}
    for name, each in module.named_parameters():
        parameters[name].requires_grad_(each.requires_grad)
    return parameters, {name: stacked(name, each) for name, each in module.named_buffers()}


def _made_module(make: Callable[[], nn.Module], seed: np.random.SeedSequence) -> nn.Module:
    try:
        return made_module(make, seed, "the function that makes the networks")
    except FinwidthError as error:
        if "training mode" not in str(error) and "is active" not in str(error):
            raise
        raise FinwidthError(f"{error}: {_IN_EVAL}") from None


def _with_slope(phi: nn.Module, Y: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The activation of every entry and its derivative there."""
    with torch.enable_grad():
        Y = Y.requires_grad_()
        value = phi(Y)
        (slope,) = torch.autograd.grad(value.sum(), Y)
    return value.detach(), slope

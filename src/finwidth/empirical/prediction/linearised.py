"""The network to first order in its parameters: `linearise`, f(x) = N(x) + J(x) d."""

from __future__ import annotations

import copy
from collections.abc import Mapping

import torch
from torch import nn

from finwidth.arguments import flag
from finwidth.empirical.kernel.arguments import Parameters, Scale, check_module, check_tensor, numpy_of
from finwidth.empirical.kernel.calls import first_line
from finwidth.empirical.kernel.inputs import InDims
from finwidth.empirical.kernel.ntk import ntk
from finwidth.empirical.matrix_free.kernel_operator import KernelOperator, OperatorOptions
from finwidth.empirical.prediction.regression import predict
from finwidth.errors import FinwidthError

Tensor = torch.Tensor


def linearise(
    module: nn.Module,
    *,
    memory: str | int = "1GiB",
    parameters: Parameters | None = None,
    scale: Scale | None = None,
    in_dims: InDims = 0,
    check: bool = True,
) -> LinearisedModule:
    """The module to first order in its parameters, around those that it has now: f(x) = N(x) + J(x) d.

    Parameters
    ----------
    module, memory, parameters, scale, in_dims, check
        As for `KernelOperator`. A copy of the module is kept, so that the module itself may be trained on.

    Returns
    -------
    LinearisedModule
        ``f(x, d)``, and ``f.train(X, y)``, which finds the d to which training leads.

    Examples
    --------
    >>> import torch
    >>> from finwidth.empirical import linearise
    >>> _ = torch.manual_seed(0)
    >>> module = torch.nn.Sequential(torch.nn.Linear(2, 50), torch.nn.Tanh(), torch.nn.Linear(50, 1)).double()
    >>> X, y = torch.eye(2).double(), torch.tensor([[1.0], [-1.0]]).double()
    >>> f = linearise(module)
    >>> torch.allclose(f(X), module(X))
    True
    >>> d = f.train(X, y)    # for ever: the smallest change that fits
    >>> torch.allclose(f(X, d), y)
    True
    """
    return LinearisedModule(module, memory=memory, parameters=parameters, scale=scale, in_dims=in_dims, check=check)


class LinearisedModule:
    """A module to first order in its parameters; `linearise` makes it, and says what the arguments are."""

    def __init__(
        self,
        module: nn.Module,
        *,
        memory: str | int = "1GiB",
        parameters: Parameters | None = None,
        scale: Scale | None = None,
        in_dims: InDims = 0,
        check: bool = True,
    ) -> None:
        try:
            self.module = copy.deepcopy(check_module(module))
        except (RuntimeError, TypeError) as error:
            raise FinwidthError(f"the module cannot be copied (copy.deepcopy): {first_line(error)}") from None
        self._options: OperatorOptions = {
            "memory": memory,
            "parameters": parameters,
            "scale": scale,
            "in_dims": in_dims,
        }
        self._check = flag("check", check)

    def __call__(self, x: object, d: Mapping[str, Tensor] | None = None) -> Tensor:
        """The outputs N(x) + J(x) d, shape (N, O) whatever the module's, not differentiable.

        Parameters
        ----------
        x
            Inputs, as for `ntk`.
        d
            The change of the parameters: tensors by name, of the parameter's shape. By default 0.
        """
        K = self.operator(x)
        return K.outputs_at_rows() if d is None else K.outputs_at_rows() + K.from_parameters(d)

    def operator(self, x: object) -> KernelOperator:
        """The kernel of all outputs at some inputs."""
        return KernelOperator(self.module, x, check=self._check, **self._options)

    def train(
        self,
        X: object,
        y: object,
        *,
        t: float | None = None,
        steps: int | None = None,
        lr: float | None = None,
        ridge: float = 0.0,
        formed: bool = True,
    ) -> dict[str, Tensor]:
        """The change of the parameters under the squared loss sum_a |f(x_a) - y_a|^2 / 2, in closed form.

        Parameters
        ----------
        X, y
            Training inputs, and targets of the outputs' shape.
        t, steps, lr, ridge
            As for `predict`, one time or number of steps: gradient flow until time t, or so many steps of gradient
            descent over all of X at the rate lr.
        formed
            Form the kernel of the training inputs, and find its eigenvalues. False: conjugate gradients with the kernel
            as an operator, for t = infinity.

        Returns
        -------
        dict of tensors by the parameter's name
            d, for ``f(x, d)``.
        """
        K = self.operator(X)
        start, targets = K.outputs_at_rows(), check_tensor(y, "y", "a tensor of targets")
        if targets.shape[:1] != start.shape[:1] or targets.numel() != start.numel():
            raise FinwidthError(f"y has shape {tuple(targets.shape)}; give targets of shape {tuple(start.shape)}")
        kernel = ntk(self.module, X, check=self._check, **self._options) if flag("formed", formed) else K
        given = kernel.cpu() if isinstance(kernel, Tensor) else kernel
        rows = numpy_of(targets).reshape(start.shape)
        found = predict(given, rows, t=t, steps=steps, lr=lr, ridge=ridge, f0=numpy_of(start)).coefficients
        if found.ndim > 2:
            raise FinwidthError("give one time t, or one number of steps")
        return K.to_parameters(torch.from_numpy(found.to_numpy()))

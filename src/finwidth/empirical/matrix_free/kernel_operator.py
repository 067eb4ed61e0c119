"""The kernel as a matrix that is never formed: `KernelOperator`.

K = J1 M J2^T, with J1 and J2 the Jacobians at the inputs x1 and x2 and M the parameters' scales. K v is one backward
pass, g = J2^T v, and one forward-mode pass, J1 (M g), over the inputs in blocks (docs/kernel-operator.md).
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from importlib.metadata import version
from typing import TYPE_CHECKING, TypeAlias, TypedDict

import numpy as np
import numpy.typing as npt
import torch
from scipy.sparse.linalg import LinearOperator
from torch import nn

from finwidth import arguments
from finwidth.arguments import count, flag, one_of, real, real_array
from finwidth.empirical.kernel.arguments import Parameters, Scale, check_module, check_outputs, check_tensor, numpy_of
from finwidth.empirical.kernel.batch import Batch
from finwidth.empirical.kernel.calls import Snapshot, measuring, settled
from finwidth.empirical.kernel.computation import KernelJob
from finwidth.empirical.kernel.inputs import InDims
from finwidth.empirical.kernel.ntk import ntk
from finwidth.empirical.kernel.preparation import prepare
from finwidth.empirical.matrix_free.checks import (
    UNLIKE,
    Probe,
    agree,
    make_probe,
    nobody,
    plain_square,
    possible_ways,
    random_rows,
)
from finwidth.empirical.matrix_free.estimates import (
    conjugate_gradients,
    counted,
    hutch_plus_plus,
    hutchinson,
    log_determinant,
    top_eigenpairs,
)
from finwidth.empirical.matrix_free.kernel_product import Index, KernelProduct
from finwidth.empirical.matrix_free.products import Jacobian
from finwidth.errors import FinwidthError, shown
from finwidth.memory import afford, amount, size
from finwidth.progress import stage
from finwidth.quantities import Estimate

if TYPE_CHECKING:
    import xarray as xr

Tensor = torch.Tensor
Array: TypeAlias = npt.NDArray[np.floating]
_PASS_BYTES = 2**20  # of a typical layer's results in a pass; larger ones leave the cache
_FIXED = 5  # copies of the parameters beside the vectors: two of the probe, a gradient, a product, tangents
_GRAPHS = 3  # of a pass that is differentiated twice, in those of one that is differentiated once
_ROWS, _UNITS = 8, 3  # samples, and outputs, of the check at the beginning


class OperatorOptions(TypedDict):
    """Arguments that an operator shares with `ntk`."""

    memory: str | int
    parameters: Parameters | None
    scale: Scale | None
    in_dims: InDims


class KernelOperator(LinearOperator):  # type: ignore[misc] # SciPy has no types
    r"""The empirical kernel of a torch module as an operator: products with vectors, and what is found by them.

    The kernel is that of `finwidth.empirical.ntk`, but no entry of it is formed: ``K @ v`` takes a backward and a
    forward-mode pass over the inputs, whatever their number, and memory that grows with N alone. It is a
    `scipy.sparse.linalg.LinearOperator`, real, symmetric where x2 is left out, which SciPy's solvers take; ``K @ v``
    and ``K(v)`` of a torch tensor are tensors.

    Parameters
    ----------
    module, x1, x2, parameters, scale, in_dims
        As for `ntk`, but for graphs. The module is left as it was found; if its parameters, its mode or the inputs
        change, make a new operator.
    outputs
        ``"full"``: all outputs, with all pairs of them, a matrix of N1 O rows and N2 O columns, output by output of
        input by input, as ``ntk(...).permute(0, 2, 1, 3).reshape(N1 * O, N2 * O)``; ``"diagonal"``: the same with every
        output by itself, other pairs 0; ``"trace"``: their sum, N1 x N2; or the number of one output, N1 x N2. The
        latter two take a product for each output.
    memory
        Most working memory of a product, beside the vectors: gradients of the parameters' size, of as many vectors at
        once as fit, and a pass of some inputs.
    check
        Hold the operator against plain backward passes of the module when it is made, and every product against two
        more at random directions, which are found once and take as long as a product (docs/kernel-operator.md).
    progress
        Called with the number of inputs that have passed the module in the product that is under way.

    Attributes
    ----------
    shape, dtype
        Of the matrix; the dtype is NumPy's float64 or float32.
    way
        How J w is found: ``"forward mode"``; ``"double backward"`` where torch cannot differentiate the module forward;
        ``"one by one"`` where it cannot do that either, a backward pass for each sample and output.
    attrs
        Where the kernel comes from, and ``way``.

    Raises
    ------
    FinwidthError
        As for `ntk`; in a product, if the module has changed, or the product is not what backward passes say.

    Examples
    --------
    >>> import torch
    >>> from finwidth.empirical import KernelOperator, ntk
    >>> _ = torch.manual_seed(0)
    >>> module = torch.nn.Sequential(torch.nn.Linear(3, 8), torch.nn.ReLU(), torch.nn.Linear(8, 1)).double()
    >>> x, v = torch.randn(5, 3), torch.randn(5, dtype=torch.float64)
    >>> K = KernelOperator(module, x)
    >>> K.shape, K.way
    ((5, 5), 'forward mode')
    >>> torch.allclose(K @ v, ntk(module, x, outputs="trace") @ v)
    True
    >>> K.eigenpairs(2).eigenvalue.shape
    (2,)
    """

    def __init__(
        self,
        module: nn.Module,
        x1: object,
        x2: object = None,
        outputs: str | int = "full",
        *,
        memory: str | int = "1GiB",
        parameters: Parameters | None = None,
        scale: Scale | None = None,
        in_dims: InDims = 0,
        check: bool = True,
        progress: Callable[[int], object] | None = None,
    ) -> None:
        self.check, self._told = flag("check", check), arguments.progress(progress)
        self._options: OperatorOptions = {
            "memory": memory,
            "parameters": parameters,
            "scale": scale,
            "in_dims": in_dims,
        }
        self._open: KernelProduct | None = None
        self._probe: Probe | None = None
        with measuring(check_module(module)) as stack:
            kind = check_outputs(outputs)
            job = prepare(stack, module, x1, x2, kind, "full", memory, parameters, scale, in_dims=in_dims, copies=0)
            _refuse_graphs(job.sets)
            self._job, self._ways = job, ["forward mode"]
            first = self._jacobian(job, job.x1[:3])
            self._ways[:] = possible_ways(first)
            self._inputs_at_once()  # refused where not even one fits
            dtype = np.float64 if job.plan.dtype == torch.float64 else np.float32
            b = self._entries
            super().__init__(dtype, (len(job.x1) * b, len(job.x2 if job.x2 is not None else job.x1) * b))
            if self.check:
                self._check_few_rows(job)
        self._state = self._current_state()

    # ---- what it is

    @property
    def module(self) -> nn.Module:
        """The module, whose kernel it is."""
        return self._job.network.module

    @property
    def way(self) -> str:
        """How J w is found."""
        return self._ways[0]

    @property
    def attrs(self) -> dict[str, str | int]:
        """Provenance."""
        return {
            "finwidth_version": version("finwidth"),
            "method": "empirical, matrix-free",
            "module": type(self.module).__name__,
            "outputs": self._job.outputs,
            "way": self.way,
        }

    def __repr__(self) -> str:
        rows, columns = self.shape
        return f"<{rows} x {columns} kernel of a {type(self.module).__name__} by products, {self.dtype}, {self.way}>"

    def _adjoint(self) -> KernelOperator:
        """The kernel between x2 and x1."""
        if self._job.x2 is None:
            return self
        found = copy.copy(self)
        found._job = replace(self._job, x1=self._job.x2, x2=self._job.x1)
        found.shape, found._probe, found._open = self.shape[::-1], None, None
        return found

    _transpose = _adjoint  # it is real

    @property
    def _entries(self) -> int:
        """Numbers of a vector for each input."""
        return self._job.plan.outputs if self._job.outputs in {"full", "diagonal"} else 1

    def _units(self) -> list[tuple[Index, Index]]:
        """Which outputs go with which entries of a vector (`KernelProduct`)."""
        outputs, o = self._job.outputs, self._job.plan.outputs
        if outputs == "full":
            return [(slice(None), slice(None))]
        if isinstance(outputs, int):
            return [(outputs, 0)]
        return [(i, i if outputs == "diagonal" else 0) for i in range(o)]

    # ---- products

    def dot(self, x: object) -> object:
        """K x of a vector or matrix, an array or a tensor; of a number or another operator as SciPy has it.

        Outputs may have a dimension of their own, (N2, O) or (N2, O, k), and so has the result.
        """
        if isinstance(x, Tensor):
            return self._product(x)
        if isinstance(x, LinearOperator) or np.isscalar(x):
            return super().dot(x)
        given = real_array(x)
        if given is None:
            raise FinwidthError(f"the vector is {shown(x)}; give an array of real numbers, or a tensor")
        return self._matmat(given)

    def _matmat(self, X: Array) -> Array:
        with np.errstate(over="ignore"):  # what is not finite is refused
            given = np.array(X, self.dtype, order="C")
        found = numpy_of(self._product(torch.from_numpy(given)))
        return found.astype(self.dtype, copy=False)

    _matvec = _matmat

    def _product(self, x: Tensor) -> Tensor:
        """K x of a tensor, in the kernel's dtype and on the tensor's device."""
        N, b = self.shape[1] // self._entries, self._entries
        flat = self._has_rows("the vector", x.shape, N)
        if x.is_complex():
            raise FinwidthError(f"the vector has {x.dtype}; give real numbers")
        if not torch.isfinite(x).all():
            raise FinwidthError("the vector holds numbers that are not finite")
        with self._measured() as product, torch.no_grad():
            if self.check and self._probe is None:
                self._probe = make_probe(product.first, product.second, product.outputs)
            V = x.detach().to(self._device, self._job.plan.dtype).reshape(N, b, -1)
            at_once = self._columns_at_once(len(product.units) * V.shape[2])
            passed, whole = 0, product.inputs_passed(V.shape[2], at_once)
            with stage("kernel product", whole, self._told) as told:

                def add(inputs: int) -> None:
                    nonlocal passed
                    passed += inputs
                    told(passed)

                found = product.of(V, at_once, add, self._probe)
        if not torch.isfinite(found).all():
            raise FinwidthError(f"the product overflows {found.dtype}; rescale it, or give module.double()")
        return found.reshape(len(found) * b if flat else len(found), *x.shape[1:]).to(x.device)

    def _has_rows(self, name: str, shape: tuple[int, ...], N: int) -> bool:
        """Whether inputs and outputs are in one dimension; FinwidthError unless vectors have this shape."""
        b = self._entries
        flat = len(shape) in {1, 2} and shape[0] == N * b
        if not flat and not (len(shape) in {2, 3} and shape[:2] == (N, b)):
            more = f", or ({N}, {b}) or ({N}, {b}, k)" * (b > 1)
            raise FinwidthError(f"{name} has shape {tuple(shape)}; give shape ({N * b},) or ({N * b}, k){more}")
        return flat

    def outputs_at_rows(self) -> Tensor:
        """The module's outputs at x1, shape (N1, O)."""
        with self._measured() as product:
            return product.first.outputs()

    def to_parameters(self, v: Tensor) -> dict[str, Tensor]:
        """M J2^T v, by the parameter's name: the direction in which parameters move the outputs by K v.

        Parameters
        ----------
        v
            Shape (N2, O), a number for each output of each input of the columns, whatever ``outputs`` of the operator.
        """
        o = self._job.plan.outputs
        given = check_tensor(v, "v", f"a tensor of shape (N2, {o})").detach()
        with self._measured() as product, torch.no_grad():
            N = len(product.second.x)
            if given.is_complex() or given.shape != (N, o) or not torch.isfinite(given).all():
                raise FinwidthError(f"v is {shown(v)}; give finite numbers of shape {(N, o)}")
            found = product.second.pulled_back(given.to(self._device, self._job.plan.dtype)[None], nobody)
        scales = self._job.network.scales
        return {name: scales[name] * each[0] for name, each in zip(scales, found, strict=True)}

    def from_parameters(self, direction: Mapping[str, Tensor]) -> Tensor:
        """J1 d, how a change d of the parameters moves the outputs to first order, shape (N1, O).

        Parameters
        ----------
        direction
            Tensors by the parameter's name, of its shape; parameters that are left out do not move.
        """
        vectors = check_direction(self._job.network.parameters, direction)
        with self._measured() as product, torch.no_grad():
            return product.first.pushed_forward([each[None] for each in vectors], nobody)[0]

    @property
    def _device(self) -> torch.device:
        return next(iter(self._job.network.parameters.values())).device

    @contextmanager
    def _measured(self) -> Iterator[KernelProduct]:
        """The module as `ntk` measures it, inside; what it costs to begin is paid once by many products."""
        if self._open is not None:
            yield self._open
            return
        if self._current_state() != self._state:
            raise FinwidthError(
                "the module has changed since the operator was made (its parameters, their place or its mode), or the "
                "inputs have; make a new KernelOperator"
            )
        with measuring(check_module(self.module)) as stack:
            job = self._job
            network = replace(job.network, snapshot=Snapshot(self.module, hooks=False), changing=frozenset())
            network, _ = stack.enter_context(settled(network, job.sets))
            job = replace(job, network=network)
            first = self._jacobian(job, job.x1)
            second = first if job.x2 is None else self._jacobian(job, job.x2)
            self._open = KernelProduct(first, second, self._units(), job.plan.outputs)
            try:
                yield self._open
            finally:
                self._open = None
        self._state = self._current_state()

    def _current_state(self) -> tuple[object, ...]:
        """What tells whether the kernel is another: the parameters' places and versions, modes, and inputs."""
        tensors = [*self.module.parameters(), *(each for x in self._job.sets for each in x.own)]
        modes = [part.training for part in self.module.modules()]
        return frozenset((id(each), each.data_ptr(), _state_version(each)) for each in tensors), *modes

    def _jacobian(self, job: KernelJob, x: Batch) -> Jacobian:
        return Jacobian(job.network, x, self._inputs_at_once(), self._ways)

    def _check_few_rows(self, job: KernelJob) -> None:
        """Raise FinwidthError unless s^T K s at a few inputs is what plain backward passes of each alone say."""
        o, rows = job.plan.outputs, torch.randperm(len(job.x1), generator=torch.Generator().manual_seed(0))[:_ROWS]
        few = self._jacobian(job, job.x1[rows])
        units = self._units() if job.outputs == "full" else [(unit, 0) for unit, _ in self._units()]
        some = torch.randperm(len(units), generator=torch.Generator().manual_seed(1))[:_UNITS].tolist()
        for unit, b in (units[i] for i in some):
            s = random_rows(len(rows), o if isinstance(b, slice) else 1, 7)
            weights = torch.zeros(len(rows), o, dtype=torch.float64)
            weights[:, unit] = s if isinstance(b, slice) else s[:, 0]
            V = s[..., None].to(self._device, job.plan.dtype)
            found = KernelProduct(few, few, [(unit, b)], o).of(V, 1, nobody, None)
            right, length = plain_square(job.network, few.x, weights)
            if not agree(few, float((found * V).double().sum()), right, length):
                raise FinwidthError(UNLIKE)

    # ---- memory

    def _inputs_at_once(self) -> int:
        """Inputs of a pass."""
        sizes, job = self._job.sizes, self._job
        passing = self._numbers_of_a_pass
        room = sizes.memory // sizes.itemsize - (_FIXED + 1) * self._parameter_numbers
        if room < passing:
            needed = size(sizes.itemsize * ((_FIXED + 1) * self._parameter_numbers + passing))
            raise FinwidthError(
                f'a product needs {needed} for one input and one vector; give at least memory="{needed}"'
            )
        enough = _PASS_BYTES // (sizes.itemsize * max(1, sizes.mean))
        return max(1, min(max(map(len, job.sets)), enough, room // passing))

    def _columns_at_once(self, columns: int) -> int:
        """Vectors that pass the module at once, of so many."""
        sizes, N = self._job.sizes, sum(self.shape) // self._entries
        left = sizes.memory // sizes.itemsize - _FIXED * self._parameter_numbers
        left -= self._inputs_at_once() * self._numbers_of_a_pass
        return max(1, min(columns, left // (self._parameter_numbers + N * self._job.plan.outputs)))

    @property
    def _parameter_numbers(self) -> int:
        return sum(each.numel() for each in self._job.network.parameters.values())

    @property
    def _numbers_of_a_pass(self) -> int:
        """At one input."""
        sizes = self._job.sizes
        once = sizes.saved + sizes.results + 4 * sizes.largest
        return max(1, once if self.way == "forward mode" else _GRAPHS * once)

    # ---- what is found by products

    def eigenpairs(
        self,
        k: int = 10,
        *,
        tol: float = 1e-4,
        products: int = 1000,
        seed: int = 0,
        progress: Callable[[int], object] | None = None,
    ) -> xr.Dataset:
        """The largest eigenvalues and their vectors, by implicitly restarted Lanczos (SciPy's eigsh, ARPACK).

        Parameters
        ----------
        k
            How many; fewer than the matrix has rows.
        tol
            ARPACK's: the residuals |K q - lambda q| to reach, relative to lambda; 0 is machine precision. In float32
            products are right to some 1e-7 of the largest eigenvalue, so that small ones cannot have less.
        products
            Most products with the kernel; some 3 to 10 a pair are usual.
        seed
            Fixes the first vector.
        progress
            Called with the number of products done.

        Returns
        -------
        xarray.Dataset
            Over ``number``, from 0, the largest first: ``eigenvalue``; ``eigenvector`` over (input[, output], number),
            of length 1; ``residual``, |K q - lambda q|, computed of the answer: an eigenvalue is no further off.

        Raises
        ------
        FinwidthError
            If they do not converge in so many products.
        """
        import xarray as xr

        self._check_symmetric("eigenpairs")
        k, tol = count("k", k), real("tol", tol, "a number, 0 or more", lambda each: 0 <= each < math.inf)
        if k >= self.shape[0]:
            raise FinwidthError(
                f"k is {shown(k)}, and the kernel has {self.shape[0]} rows; give fewer, or form it (ntk) for all"
            )
        self._afford_columns(max(2 * k + 1, 20) + k)
        with self._counting("eigenvalues", products, progress) as K:
            values, vectors, residuals = top_eigenpairs(K, k, tol, self._generator(seed))
        single = self._entries == 1
        dims = ("input", "number") if single else ("input", "output", "number")
        vectors = vectors if single else vectors.reshape(-1, self._entries, k)
        told = {
            "eigenvalue": ("number", values, {"long_name": "eigenvalue of the kernel, largest first", "units": "1"}),
            "eigenvector": (dims, vectors, {"long_name": "eigenvector of length 1", "units": "1"}),
            "residual": ("number", residuals, {"long_name": "length of K q - lambda q", "units": "1"}),
        }
        return xr.Dataset(told, attrs={**self.attrs, "seed": str(seed), "tol": tol})

    def trace(
        self,
        method: str = "exact",
        *,
        products: int = 100,
        seed: int = 0,
        progress: Callable[[int], object] | None = None,
    ) -> Estimate:
        """The trace of the matrix.

        Parameters
        ----------
        method
            ``"exact"``: the sum of the diagonal, by `ntk`, which takes a backward pass for each output; ``"hutch++"``:
            an estimate by products, of error O(1/products); ``"hutchinson"``: of error O(1/sqrt(products)).
        products, seed
            Of an estimate: the products with the kernel, at least 12, and what fixes its random signs.
        progress
            Called with the number of products done, or for ``"exact"`` of inputs.

        Returns
        -------
        Estimate
            Its ``se`` is 0 where it is exact.
        """
        self._check_symmetric("trace")
        method = one_of("method", method, ("exact", "hutch++", "hutchinson"))
        if method == "exact":
            outputs = self._job.outputs if isinstance(self._job.outputs, int) else "trace"
            K = ntk(
                self.module,
                self._job.x1,
                outputs=outputs,
                entries="diagonal",
                check=self.check,
                progress=progress,
                **self._options,
            )
            return Estimate(float(K.double().sum()), 0.0, 1, 1.0, True, "exact: the sum of the diagonal")
        m = count("products", products, 12)
        self._afford_columns(2 * m)
        estimate = hutchinson if method == "hutchinson" else hutch_plus_plus
        with self._counting("trace", m, progress) as K:
            return estimate(K, m, self._generator(seed))

    def logdet(
        self,
        ridge: float,
        *,
        probes: int = 16,
        steps: int = 100,
        seed: int = 0,
        progress: Callable[[int], object] | None = None,
    ) -> Estimate:
        """An estimate of log det(K + ridge), by stochastic Lanczos quadrature with bounds on both sides.

        Parameters
        ----------
        ridge
            Added to the diagonal, above 0. The smaller it is beside the eigenvalues, the more steps are needed.
        probes, steps
            Random vectors, and the most steps of Lanczos for them: as many products with the kernel as their product,
            or fewer if the bounds are close before.
        seed
            Fixes the vectors.
        progress
            Called with the number of products done.

        Returns
        -------
        Estimate
            Its ``se`` is the standard error over the vectors plus half the distance of the bounds; it is not to be
            trusted where the latter is more (give more steps).
        """
        self._check_symmetric("logdet")
        ridge = real("ridge", ridge, "a positive number", lambda each: 0 < each < math.inf)
        probes, steps = count("probes", probes, 2), count("steps", steps)
        self._afford_columns(2 * probes * (min(steps, self.shape[0]) + 3))
        with self._counting("log-determinant", probes * steps, progress) as K:
            return log_determinant(K, ridge, probes, steps, self._generator(seed))

    def solve(
        self,
        y: object,
        ridge: float = 0.0,
        *,
        tol: float = 1e-5,
        products: int = 1000,
        progress: Callable[[int], object] | None = None,
    ) -> Tensor | Array:
        """Find x with (K + ridge) x = y, by conjugate gradients (SciPy), column by column.

        Parameters
        ----------
        y
            A vector, or several in columns, as for ``K @ y``; a tensor or an array.
        ridge
            Added to the diagonal, 0 or more.
        tol
            The residual to reach, |(K + ridge) x - y| over |y|. It is computed of the answer.
        products
            Most products with the kernel, for each column.
        progress
            Called with the number of products done.

        Returns
        -------
        torch.Tensor or numpy.ndarray
            What y is, and of its shape.

        Raises
        ------
        FinwidthError
            If the residual is not reached, with the one that is.
        """
        self._check_symmetric("solve")
        ridge = real("ridge", ridge, "a number, 0 or more", lambda each: 0 <= each < math.inf)
        tol = real("tol", tol, "a number between 0 and 1", lambda each: 0 < each < 1)
        given = y if isinstance(y, Tensor) else real_array(y)
        if given is None or (isinstance(given, Tensor) and given.is_complex()):
            raise FinwidthError(f"y is {shown(y)}; give real numbers")
        self._has_rows("y", given.shape, self.shape[0] // self._entries)
        with np.errstate(over="ignore"):
            columns = numpy_of(given).astype(self.dtype).reshape(self.shape[0], -1)
        if not np.isfinite(columns).all():
            raise FinwidthError("y holds numbers that are not finite")
        most = count("products", products)
        with self._counting("conjugate gradients", (most + 1) * columns.shape[1], progress) as K:
            found = np.stack([conjugate_gradients(K, ridge, b, tol, most) for b in columns.T], axis=1)
        found = found.reshape(given.shape)
        return torch.from_numpy(found).to(given) if isinstance(given, Tensor) else found

    def _check_symmetric(self, what: str) -> None:
        if self._job.x2 is not None:
            raise FinwidthError(f"{what} is of the kernel of one set of inputs; make an operator without x2")

    def _afford_columns(self, columns: int) -> None:
        """Refuse what needs so many columns beside the vectors of a product."""
        afford(
            self._job.sizes.memory + 8 * columns * self.shape[0],
            f"{amount(columns)} vectors of {self.shape[0]} numbers, and a product,",
            "ask for fewer",
        )

    @contextmanager
    def _counting(self, what: str, most: object, progress: Callable[[int], object] | None) -> Iterator[LinearOperator]:
        """The matrix with its products counted and told; the module is measured, as begun once."""
        most = count("products", most)
        with self._measured(), stage(what, most, arguments.progress(progress)) as told:
            yield counted(self, most, told)

    @staticmethod
    def _generator(seed: object) -> np.random.Generator:
        return np.random.default_rng(arguments.check_seed(seed))


def check_direction(parameters: Mapping[str, Tensor], direction: Mapping[str, Tensor]) -> list[Tensor]:
    """A tensor for each parameter, zeros where none is given."""
    given = arguments.table("the change of the parameters", direction, "tensors by the parameter's name")
    for name, each in given.items():
        if name not in parameters:
            raise FinwidthError(
                f"{shown(name)} is no parameter that counts; there are {', '.join(list(parameters)[:6])}"
            )
        wanted = f"finite numbers of shape {tuple(parameters[name].shape)}"
        found = check_tensor(each, f"the change of {name!r}", wanted)
        if found.is_complex() or found.shape != parameters[name].shape or not torch.isfinite(found).all():
            raise FinwidthError(f"the change of {name!r} is {shown(each)}; give {wanted}")
    return [
        torch.as_tensor(given[name]).detach().to(each) if name in given else torch.zeros_like(each)
        for name, each in parameters.items()
    ]


def _refuse_graphs(inputs: list[Batch]) -> None:
    """Raise FinwidthError if samples are graphs, whose changes in place would go unnoticed."""
    if any(each.form.collate is not None for each in inputs):
        raise FinwidthError("an operator takes no graphs; form their kernel (ntk), or give dense tensors")


def _state_version(x: Tensor) -> int:
    """How often it has been changed in place."""
    return 0 if x.is_inference() else x._version

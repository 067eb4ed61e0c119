"""Training in law: networks of any width under SGD, in O(n (m T)^2) operations a layer, with no weight matrix.

For Gaussian weights, any activation, several outputs.  The passes are in `networks`; here is what the user calls
(derivation in docs/theory/training.md).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, TypedDict

import numpy as np
import numpy.typing as npt

from finwidth.arguments import check_seed, count
from finwidth.errors import FinwidthError, shown
from finwidth.memory import afford, amount
from finwidth.networks.balanced import BalancedResNet
from finwidth.networks.description import Network, kept_widths
from finwidth.networks.inputs import check_inputs, extreme_input
from finwidth.networks.laws import FloatArray
from finwidth.networks.mlp import MLP
from finwidth.networks.resnet import ResNet
from finwidth.networks.routes import algorithm, not_gaussian, unsupported_by
from finwidth.observables import LOSS, OBSERVABLES, SHAPES, observe, target_gram
from finwidth.quantities import KERNEL_DRAWS, Quantity, attributes
from finwidth.sampling.lazy_matrix.gaussian import NotFiniteError
from finwidth.sampling.random.streams import stream
from finwidth.sampling.sampler import Chunk, Columns, Sampler, afford_draws, collect
from finwidth.sampling.training.networks import Networks, RowIndex, pick
from finwidth.sampling.training.spec import (
    TrainingSpec,
    result_bytes,
    training_bytes,
    training_seconds,
    training_spec,
)
from finwidth.schedule import Record

if TYPE_CHECKING:
    import xarray as xr

_CHUNK_CELLS = 2**18  # neurons x inputs of all layers and draws of one chunk
_BATCHES, _PILOTS = 1, 2  # spawn keys of the streams of a chunk's batches, and of the pilots of `default_rate`

QUANTITIES = {
    each.name: each
    for each in (
        LOSS,
        KERNEL_DRAWS["output"],
        Quantity("probe_output", "network output N(x) at the probe inputs"),
        *OBSERVABLES.values(),
    )
}


def training_chunk_size(net: Network, inputs: int) -> int:
    """Number of draws that share a random stream; from network and inputs only, so that a seed fixes the numbers."""
    return max(1, _CHUNK_CELLS // (inputs * sum(kept_widths(net))))


class NetworkTraining(Sampler):
    """Networks that are trained as a `TrainingSpec` says, from initialization to the last step."""

    verb: ClassVar[str] = "training"
    fewer: ClassVar[str] = "record fewer steps, probe fewer inputs, or take a narrower network"

    def __init__(self, spec: TrainingSpec) -> None:
        self.spec, self.parts = spec, spec.steps + 1
        records, p = len(spec.record), spec.probed.size
        self.shapes = {
            "loss": (records,),
            "output": (records, spec.m, spec.outputs),
            "probe_output": (records, len(spec.inputs) - spec.m, spec.outputs),
            "K": (records, p, p),
        }

    @staticmethod
    def unsupported(net: Network) -> list[str]:
        """Reasons why this network is not trained; none if it is."""
        return not_gaussian(net)

    @property
    def chunk_size(self) -> int:
        """Draws of a chunk, by network and inputs only."""
        return training_chunk_size(self.spec.net, len(self.spec.inputs))

    def memory(self, draws: int) -> int:
        """Bytes that so many draws made at once need at their peak."""
        return draws * training_bytes(self.spec)

    @property
    def seconds(self) -> float:
        """About how long a draw takes."""
        return training_seconds(self.spec)

    @property
    def kept(self) -> int:
        """Bytes of the result for each draw, with the copies from which its observables are read off."""
        return result_bytes(self.spec)

    def task(self, draws: int) -> str:
        """The work in words."""
        left, right, _ = self.spec.vectors
        vectors = f"{amount(left)} left and {amount(right)} right vectors"
        at_once = " at once" * (draws <= self.chunk_size)
        return f"training {amount(draws)} draw{'s' * (draws > 1)}{at_once}, whose matrices meet {vectors},"

    def draw(self, chunk: Chunk) -> Columns:
        """A chunk trained: loss (draws, records), output and probe_output (.., inputs, n_d), K (.., p, p)."""
        spec = self.spec
        batches = _batches(spec, chunk.draws, chunk.stream(_BATCHES))
        networks = Networks(spec.net, spec.inputs, chunk.draws, chunk.stream())
        probed = None if spec.probes_training_inputs else spec.probed
        records: list[dict[str, FloatArray]] = []
        start: FloatArray = np.zeros(())
        step = 0
        try:
            with np.errstate(all="ignore"):  # overflow is seen in the outputs
                for step, rows in zip(range(spec.steps + 1), batches, strict=False):
                    recorded, last = step in spec.record, step == spec.steps
                    fed = None if recorded else rows
                    forward = networks.forward(fed)
                    output = _finite_outputs(forward.output)
                    if spec.centred:
                        start = start if step else output  # step 0 is recorded: these are the outputs at all inputs
                        output = output - pick(start, fed)
                    if recorded:
                        cotangents = _recorded(spec, output, rows, last=last)
                    else:
                        cotangents = _unrecorded(spec, output, rows)
                    backward = networks.backward(forward, cotangents.vectors, cotangents.rows)
                    if recorded:
                        K = _finite_outputs(networks.kernel(backward, probed, spec.outputs))
                        records.append(_record(spec, output, K))
                    if not last:
                        networks.step(backward, cotangents.weights, spec.lr, spec.momentum)
                    chunk.tick(chunk.draws)
        except (NotFiniteError, np.linalg.LinAlgError):
            raise (_diverges(spec, step, records[0]["K"]) if records else _overflow(spec.net, spec.inputs)) from None
        return {name: np.stack([each[name] for each in records], axis=1) for name in records[0]}


SAMPLERS: dict[type, type[NetworkTraining]] = dict.fromkeys((MLP, ResNet, BalancedResNet), NetworkTraining)


def unsupported(net: Network) -> list[str]:
    """Reasons why `train` does not train this network; none if it does."""
    return unsupported_by(SAMPLERS, net)


def _batches(spec: TrainingSpec, draws: int, rng: np.random.Generator) -> Iterator[RowIndex]:
    """The rows of each step's batch, (draws, batch): all inputs once, in an order of each draw's own, then again.

    If a batch is all inputs, (1, m).
    """
    everything = np.arange(spec.m)
    while spec.batch == spec.m:
        yield everything[None]
    while True:
        order = rng.permuted(np.broadcast_to(everything, (draws, spec.m)), axis=1)
        for start in range(0, spec.m, spec.batch):
            yield order[:, start : start + spec.batch]


def _finite_outputs(array: FloatArray) -> FloatArray:
    if not np.isfinite(array).all():
        raise NotFiniteError("outputs")
    return array


def _overflow(net: Network, inputs: FloatArray) -> FinwidthError:
    """Before any step."""
    return FinwidthError(
        f"the kernel at initialization overflows a double: {extreme_input(net, inputs)}; rescale the inputs, the "
        "targets or the gains"
    )


def _diverges(spec: TrainingSpec, step: int, K: FloatArray) -> FinwidthError:
    """At a step, from kernels K at step 0."""
    stable = 2 / float(np.linalg.eigvalsh(K)[..., -1].max())
    return FinwidthError(
        f"training diverges: numbers overflow at step {step}. The learning rate {spec.lr:g} is too large for some "
        f"draw; steps of the squared loss are stable below 2 / (largest eigenvalue of K), {stable:.3g} at step 0"
    )


def _record(spec: TrainingSpec, output: FloatArray, K: FloatArray) -> dict[str, FloatArray]:
    """What is kept of a recorded step, from the outputs at all inputs."""
    trained = output[:, : spec.m]
    return {"loss": spec.total_loss(trained), "output": trained, "probe_output": output[:, spec.m :], "K": K}


@dataclass
class _Cotangents:
    """Where a backward pass begins: vectors (draws, q, n_d) at rows of the forward pass; their weights in the step."""

    vectors: FloatArray
    rows: RowIndex | None
    weights: FloatArray  # (draws, q)


def _unrecorded(spec: TrainingSpec, output: FloatArray, rows: RowIndex) -> _Cotangents:
    """The slope of the loss, for the step alone."""
    slope = spec.slope(output, rows)
    return _Cotangents(slope, None, np.ones(slope.shape[:2]))


def _recorded(spec: TrainingSpec, output: FloatArray, rows: RowIndex, *, last: bool) -> _Cotangents:
    """Unit vectors for the kernel, then the slope of the loss, unless it is a sum of these or no step follows."""
    draws, outputs, probed = len(output), spec.outputs, spec.probed
    units = np.broadcast_to(np.tile(np.eye(outputs), (probed.size, 1)), (draws, probed.size * outputs, outputs))
    slope = spec.slope(output[:, : spec.m])
    if spec.probes_training_inputs:
        chosen = np.zeros((draws, spec.m, 1))
        np.put_along_axis(chosen, rows[:, :, None], 1.0, axis=1)
        weights = (slope * chosen).reshape(draws, -1)
        return _Cotangents(units, None if outputs == 1 else np.repeat(probed, outputs, axis=1), weights)
    at = np.repeat(probed, outputs, axis=1)
    if last:
        return _Cotangents(units, at, np.zeros(units.shape[:2]))
    at = np.concatenate([np.broadcast_to(at, (len(rows), at.shape[1])), rows], axis=1)
    weights = np.concatenate([np.zeros(units.shape[:2]), np.ones((draws, rows.shape[1]))], axis=1)
    return _Cotangents(np.concatenate([units, pick(slope, rows)], axis=1), at, weights)


def train(  # noqa: PLR0917
    net: Network,
    X: npt.ArrayLike,
    y: npt.ArrayLike,
    steps: int,
    lr: float,
    draws: int,
    seed: int = 0,
    *,
    probe: npt.ArrayLike | None = None,
    batch: int | None = None,
    momentum: float = 0.0,
    loss: str = "squared",
    record: Record = 1,
    centred: bool = False,
    memory: float | str | None = None,
    progress: Callable[[int], object] | None = None,
) -> xr.Dataset:
    """Train random networks, and follow their kernels, exactly in law and without ever drawing a weight matrix.

    Weight matrices are revealed only along the vectors that they meet: k of them on each side cost O(n k) numbers and
    O(n k^2) operations a layer. Inputs that meet a network at T steps make k = m T.

    Parameters
    ----------
    net
        A network of any description, fully connected or residual, normalised or not, with Gaussian weights, any
        activation, any number of outputs; biases from zero, Gaussian, frozen or absent. The signs of a `BalancedResNet`
        are drawn and fixed; scales and shifts of a norm are trained where it says so.
    X
        Training inputs, shape (m, n_0); duplicates and linear dependence are fine. Entries may be as small as 1e-300.
    y
        Targets: for the squared loss shape (m,) with one output, (m, n_d) with several; for cross-entropy m classes.
    steps, lr
        Number of steps of SGD and the learning rate of the network's parameterization: lr moves the weights of layer i
        at the rate lr times its multiplier (`MLP.layers`), and a norm's parameters at the rate lr.
    draws, seed
        How many independent networks, and a whole number that fixes every number.
    probe
        Inputs of shape (p, n_0) at which to record the kernel, instead of the training inputs. They are vectors that
        the weights meet besides, at recorded steps.
    batch
        Inputs of a mini-batch: each draw goes through the inputs in an order of its own, again and again, as a
        DataLoader with shuffle=True does; by default all m.
    momentum
        mu of heavy-ball momentum, v <- mu v + g, w <- w - lr v, as in torch.optim.SGD. Optimizers that rescale entries,
        such as Adam, do not keep updates in the span of the vectors met, and cannot be simulated so.
    loss
        ``"squared"``, |N - t|^2 / 2, or ``"cross-entropy"``: summed over the batch and outputs, not a mean.
    record
        When to record: ``"log"``, at 0, 1, 2, ... four times an octave; a number k, every k steps; or the steps. Step 0
        and the last are always recorded. By default every step.
    centred
        Train N(x) - N_0(x), N_0 the same draw's network at initialization, held fixed (Chizat, Oyallon and Bach 2019):
        outputs begin at 0 exactly, the loss sees them so, and so are they recorded, also those at the probe. The kernel
        is the same function of the parameters.
    memory
        Bytes, or such as ``"4GiB"``, that the draws made at once may use: what would need more is refused at once. By
        default three quarters of what there is, which the result has to fit as well (`finwidth.memory`).
    progress
        Called with the number of steps finished, those of all draws; in the end draws * (steps + 1).

    Returns
    -------
    xarray.Dataset
        Over draw and step: ``loss`` of all training inputs, a sum; ``output`` over (.., input[, component]) and
        likewise ``probe_output`` over (.., probe[, component]), minus their values at initialization where ``centred``
        (the attribute ``outputs_are`` tells); ``K``, the kernel over (.., input, input_) or
        (.., probe, probe_), for several outputs the trace over them, sum_o of dN_o(x) . dN_o(x'); and what is read off
        it, as `finwidth.observables` defines it: ``drift``, ``rotation``, ``trace``, ``effective_rank``,
        ``eigenvalues`` over (.., eigenvalue), ``diagonal`` over (.., input) or (.., probe), and where K is that of the
        training inputs, ``alignment`` and ``centred_alignment`` with the targets, for cross-entropy classes. A draw
        that is dead on the inputs, K = 0, has none of these but the trace and zeros: the others are NaN. float64.

    Raises
    ------
    FinwidthError
        If an argument is not allowed, the memory does not suffice, or training diverges.

    Examples
    --------
    >>> import numpy as np, finwidth
    >>> net = finwidth.MLP([2, *[10**4] * 3, 1], activation="gelu")
    >>> run = finwidth.train(net, [[1.0, 2.0], [2.0, -1.0]], [1.0, -1.0], steps=3, lr=0.1, draws=1, seed=0)
    >>> run.K.dims, run.K.shape, bool((run.loss.diff("step") < 0).all())
    (('draw', 'step', 'input', 'input_'), (1, 4, 2, 2), True)
    """
    spec = training_spec(
        net, X, y, steps, lr, probe=probe, batch=batch, momentum=momentum, loss=loss, record=record, centred=centred
    )
    sampler, draws = algorithm(SAMPLERS, net)(spec), count("draws", draws)
    if memory is not None:
        at_once = min(draws, sampler.chunk_size)
        afford(sampler.memory(at_once), sampler.task(at_once), f"{sampler.fewer}, or give more memory", memory)
    columns = collect(sampler, draws, seed, threads=1, progress=progress)
    return _dataset(spec, columns, check_seed(seed))


def _dataset(spec: TrainingSpec, columns: dict[str, FloatArray], seed: int) -> xr.Dataset:
    import xarray as xr

    K, own = columns["K"], spec.probes_training_inputs
    name = "input" if own else "probe"
    shapes = {key: tuple(dim.replace("input", name) for dim in dims) for key, dims in SHAPES.items()}
    shapes |= {"output": ("input", "component"), "probe_output": ("probe", "component")}
    values = columns | observe(K, K[:, :1], target_gram(spec.targets, spec.m, spec.outputs) if own else None)
    variables = {}
    for key, array in values.items():
        dims = shapes.get(key, ())
        single = spec.outputs == 1 and "component" in dims
        where = ("draw", "step", *dims[: len(dims) - single])
        variables[key] = (where, array[..., 0] if single else array, QUANTITIES[key].attrs)
    if own:
        del variables["probe_output"]
    provenance = attributes(
        spec.net,
        method="training with deferred Gaussian matrices",
        seed=seed,
        inputs=spec.inputs.ravel(),
        targets=spec.targets.ravel(),
        lr=spec.lr,
        steps=spec.steps,
        momentum=spec.momentum,
        batch=spec.batch,
        loss=spec.loss.name,
        targets_are="classes" if spec.loss.classes else "numbers",
        outputs_are="N(x) - N_0(x), centred" if spec.centred else "N(x)",
    )
    return xr.Dataset(variables, coords={"step": list(spec.record)}, attrs=provenance)


def default_rate(net: Network, X: npt.ArrayLike, seed: int = 0, *, momentum: float = 0.0) -> float:
    """A learning rate at which most draws are stable: (1 - momentum) / (largest eigenvalue of the mean initial kernel).

    The kernel is averaged over the outputs and over 16 draws (fewer of networks wider than 6,250) that are independent
    of those that `train` makes with the seed.

    Examples
    --------
    >>> from finwidth import MLP
    >>> from finwidth.sampling.training.train import default_rate
    >>> 0.1 < default_rate(MLP([2, *[1000] * 3, 1]), [[1.0, 1.0]]) < 0.25    # E[K] = 6.5
    True
    """
    inputs, seed = check_inputs(net, X), check_seed(seed)
    targets = np.broadcast_to(0.0, (len(inputs), net.widths[-1]))
    spec = training_spec(net, inputs, targets, 1, 1.0, momentum=momentum)
    afford_draws(NetworkTraining(spec), 1, 1)
    pilots = max(1, min(16, 10**5 // max(kept_widths(net))))
    K: FloatArray = np.zeros(())
    with np.errstate(all="ignore"):
        for pilot in range(pilots):
            networks = Networks(net, inputs, 1, stream(seed, pilot, _PILOTS))
            forward = networks.forward(None)
            units = _recorded(spec, forward.output, spec.probed, last=True)
            backward = networks.backward(forward, units.vectors, units.rows)
            K = K + networks.kernel(backward, None, spec.outputs)[0]
    if not np.isfinite(K).all():
        raise _overflow(net, inputs)
    top = float(np.linalg.eigvalsh(K / (pilots * spec.outputs))[-1])
    if not 0 < top < math.inf:
        raise FinwidthError("the initial kernel is zero, so nothing can be learned; give a learning rate to see it")
    return (1 - spec.momentum) / top


class SeriesOverDraws(TypedDict):
    """Of the draws that have a value, at every recorded step."""

    mean: list[float]
    se: list[float] | None
    left_out: list[int]


class Trajectory(TypedDict, total=False):
    """Means over draws of a run; alignment where the run has it."""

    step: list[int]
    loss: SeriesOverDraws
    drift: SeriesOverDraws
    alignment: SeriesOverDraws
    largest_eigenvalue: SeriesOverDraws


def mean_trajectory(run: xr.Dataset) -> Trajectory:
    """Means over draws and their standard errors at every recorded step, in plain types.

    Keys are step, loss, drift, largest_eigenvalue and, where the run has it, alignment, each with its ``mean``, its
    ``se`` (None for one draw) and ``left_out``: how many draws have no such value at a step, as a kernel that is 0 has
    no drift and no alignment. The means are those of the other draws, NaN where there is none.
    """
    import xarray as xr

    if not isinstance(run, xr.Dataset) or not {"step", "loss", "drift", "eigenvalues"} <= {*run.variables}:
        raise FinwidthError(f"the run is {shown(run)}; give a dataset of finwidth.train")
    found = Trajectory(
        step=run.step.to_numpy().tolist(),
        loss=_over_draws(run.loss.to_numpy()),
        drift=_over_draws(run.drift.to_numpy()),
    )
    if "alignment" in run:
        found["alignment"] = _over_draws(run.alignment.to_numpy())
    found["largest_eigenvalue"] = _over_draws(run.eigenvalues.to_numpy()[..., 0])
    return found


def _over_draws(values: FloatArray) -> SeriesOverDraws:
    """Mean, standard error and number of NaN at each step, of values over (draw, step)."""
    there = ~np.isnan(values)
    count = there.sum(axis=0)
    with np.errstate(invalid="ignore", divide="ignore"):
        mean = np.where(there, values, 0).sum(axis=0) / count
        variance = (np.where(there, values - mean, 0) ** 2).sum(axis=0) / (count - 1)
        se = np.where(count > 1, np.sqrt(variance / count), np.nan)
    return {
        "mean": mean.tolist(),
        "se": se.tolist() if len(values) > 1 else None,
        "left_out": (len(values) - count).tolist(),
    }

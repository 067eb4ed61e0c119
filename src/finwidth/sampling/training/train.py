"""Training in law: networks of any width under SGD, in O(n (m T)^2) operations a layer, with no weight matrix.

For Gaussian weights, any activation, several outputs.  The passes are in `training_networks`; here is what the user
calls (derivation in docs/theory/training.md).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from finwidth import arguments
from finwidth.arguments import count
from finwidth.errors import FinwidthError, shown
from finwidth.memory import afford, amount
from finwidth.networks.inputs import check_inputs
from finwidth.networks.laws import FloatArray
from finwidth.networks.mlp import MLP
from finwidth.observables import LOSS, OBSERVABLES, SHAPES, observe, target_gram
from finwidth.progress import check_time, stage
from finwidth.quantities import KERNEL_DRAWS, Quantity, attributes
from finwidth.sampling.lazy_matrix.gaussian import NotFiniteError
from finwidth.sampling.random.streams import check_seed, collect, stream
from finwidth.sampling.training import plan as training_plan
from finwidth.sampling.training.networks import Networks, Rows, pick
from finwidth.sampling.training.plan import Plan, plan

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


def chunk_size(net: MLP, inputs: int) -> int:
    """Number of draws that share a random stream; from network and inputs only, so that a seed fixes the numbers."""
    return max(1, _CHUNK_CELLS // (inputs * sum(net.widths[1:])))


def _batches(plan: Plan, draws: int, rng: np.random.Generator) -> Iterator[Rows | None]:
    """The rows of each step's batch, (draws, batch): all inputs once, in an order of each draw's own, then again."""
    while plan.batch == plan.m:
        yield None
    while True:
        order = rng.permuted(np.broadcast_to(np.arange(plan.m), (draws, plan.m)), axis=1)
        for start in range(0, plan.m, plan.batch):
            yield order[:, start : start + plan.batch]


def draw(
    plan: Plan, draws: int, rng: np.random.Generator, batches: np.random.Generator, tick: Callable[[], object]
) -> dict[str, FloatArray]:
    """``draws`` networks trained: loss (draws, records), output and probe_output (.., inputs, n_d), K (.., p, p)."""
    networks = Networks(plan.net, plan.inputs, draws, rng)
    found: list[dict[str, FloatArray]] = []
    step = 0
    try:
        with np.errstate(all="ignore"):  # overflow is seen in the outputs
            for step, rows in zip(range(plan.steps + 1), _batches(plan, draws, batches), strict=False):
                seen = _step(plan, networks, rows, step)
                found += [seen] if seen else []
                tick()
    except (NotFiniteError, np.linalg.LinAlgError):
        if not found:
            raise _overflow(plan.inputs) from None
        raise FinwidthError(
            f"training diverges: numbers overflow at step {step}. The learning rate {plan.lr:g} is too large for some "
            f"draw; steps of the squared loss are stable below 2 / (largest eigenvalue of K), {_stable(found):.3g} at "
            "step 0"
        ) from None
    return {name: np.stack([each[name] for each in found], axis=1) for name in found[0]}


def _stable(found: list[dict[str, FloatArray]]) -> float:
    return 2 / float(np.linalg.eigvalsh(found[0]["K"])[..., -1].max())


def _overflow(inputs: FloatArray) -> FinwidthError:
    """Before any step."""
    largest = np.abs(inputs).max(1)
    return FinwidthError(
        f"the kernel at initialization overflows a double: the largest number among the inputs is {largest.max():.3g} "
        f"(input {largest.argmax()}); rescale the inputs, the targets or the gains"
    )


def _step(plan: Plan, networks: Networks, rows: Rows | None, step: int) -> dict[str, FloatArray]:
    """Record, if this step is to be, and go on, unless it is the last."""
    recorded, last = step in plan.record, step == plan.steps
    if not recorded:
        passed = networks.forward(np.arange(plan.m)[None] if rows is None else rows)
        slope = _finite(plan.slope(passed.output, rows))
        pulled = networks.backward(passed, slope, None)
        networks.step(passed, pulled, np.ones(slope.shape[:2]), plan.lr, plan.momentum)
        return {}
    passed = networks.forward(None)
    trained = _finite(passed.output)[:, : plan.m]
    seeds, of, weights = _seeds(plan, plan.slope(trained), rows, last=last)
    pulled = networks.backward(passed, seeds, of)
    own = len(plan.inputs) == plan.m
    seen = {
        "loss": plan.total_loss(trained),
        "output": trained,
        "probe_output": passed.output[:, plan.m :],
        "K": _finite(networks.kernel(passed, pulled, None if own else plan.probed, plan.outputs)),
    }
    if not last:
        networks.step(passed, pulled, weights, plan.lr, plan.momentum)
    return seen


def _finite(array: FloatArray) -> FloatArray:
    if not np.isfinite(array).all():
        raise NotFiniteError("outputs")
    return array


def _seeds(
    plan: Plan, slope: FloatArray, rows: Rows | None, *, last: bool
) -> tuple[FloatArray, Rows | None, FloatArray]:
    """Where a recorded step's backward pass begins: unit vectors for the kernel, then the slope of the loss.

    Returns the seeds (draws, q, n_d), the inputs they belong to, and their weights in the step.  Where the kernel is
    that of the training inputs, the slope is a sum of its unit vectors.
    """
    draws, outputs, probed = len(slope), plan.outputs, plan.probed
    units = np.broadcast_to(np.tile(np.eye(outputs), (probed.size, 1)), (draws, probed.size * outputs, outputs))
    if len(plan.inputs) == plan.m:
        if rows is not None:
            chosen = np.zeros((draws, plan.m, 1))
            np.put_along_axis(chosen, rows[:, :, None], 1.0, axis=1)
            slope = slope * chosen
        return units, None if outputs == 1 else np.repeat(probed, outputs, axis=1), slope.reshape(draws, -1)
    of = np.repeat(probed, outputs, axis=1)
    if last:
        return units, of, np.zeros(units.shape[:2])
    rows = np.arange(plan.m)[None] if rows is None else rows
    of = np.concatenate([np.broadcast_to(of, (len(rows), of.shape[1])), rows], axis=1)
    weights = np.concatenate([np.zeros(units.shape[:2]), np.ones((draws, rows.shape[1]))], axis=1)
    return np.concatenate([units, pick(slope, rows)], axis=1), of, weights


def train(  # noqa: PLR0917
    net: MLP,
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
    record: Iterable[int] | None = None,
    memory: float | str | None = None,
    progress: Callable[[int], object] | None = None,
) -> xr.Dataset:
    """Train random networks, and follow their kernels, exactly in law and without ever drawing a weight matrix.

    Weight matrices are revealed only along the vectors that they meet: k of them on each side cost O(n k) numbers and
    O(n k^2) operations a layer. Inputs that meet a network at T steps make k = m T.

    Parameters
    ----------
    net
        A network with Gaussian weights, any activation, any number of outputs; biases from zero, Gaussian, frozen or
        absent.
    X
        Training inputs, shape (m, n_0); duplicates and linear dependence are fine. Entries may be as small as 1e-300.
    y
        Targets: for the squared loss shape (m,) with one output, (m, n_d) with several; for cross-entropy m classes.
    steps, lr
        Number of steps of SGD and the learning rate of the network's parameterization: lr moves the weights of layer i
        at the rate lr times its multiplier (`MLP.layers`).
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
        Steps to record at, from 0 to ``steps``; the first and the last always are. By default all.
    memory
        Bytes, or such as ``"4GiB"``, that the draws made at once may use: what would need more is refused at once. By
        default three quarters of what there is, which the result has to fit as well (`finwidth.memory`).
    progress
        Called with the number of steps finished, those of all draws; in the end draws * (steps + 1).

    Returns
    -------
    xarray.Dataset
        Over draw and step: ``loss`` of all training inputs, a sum; ``output`` over (.., input[, component]) and
        likewise ``probe_output`` over (.., probe[, component]); ``K``, the kernel over (.., input, input_) or
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
    checked = plan(net, X, y, steps, lr, probe=probe, batch=batch, momentum=momentum, loss=loss, record=record)
    draws, seed, tell = count("draws", draws), check_seed(seed), arguments.progress(progress)
    size = chunk_size(net, len(checked.inputs))
    _fits(checked, draws, min(draws, size), memory)
    columns = _columns(checked, draws)

    def pieces(told: Callable[[int], None]) -> Iterator[dict[str, FloatArray]]:
        done = 0

        def tick(by: int) -> None:
            nonlocal done
            done += by
            told(done)

        for chunk in range(-(-draws // size)):
            some = min(size, draws - chunk * size)
            yield draw(checked, some, stream(seed, chunk), stream(seed, chunk, _BATCHES), partial(tick, some))

    with stage("training", draws * (checked.steps + 1), tell) as told:
        collect(pieces(told), columns)
    return _dataset(checked, columns, seed)


def _fits(plan: Plan, draws: int, at_once: int, memory: float | str | None) -> None:
    """Raise FinwidthError if all draws need more than there is, or those made at once more than the user gives."""
    needed, result = training_plan.memory(plan) * at_once, training_plan.result(plan) * draws
    left, right, _ = plan.vectors
    what = (
        f"training {amount(at_once)} draw{'s' * (at_once > 1)} at once, whose matrices meet {amount(left)} left and "
        f"{amount(right)} right vectors,"
    )
    change = "record fewer steps, probe fewer inputs, or take a narrower network"
    afford(needed, what, change + ", or give more memory", memory)
    afford(needed + result, f"{what} and keeping {amount(draws)}", change + " or fewer draws")
    check_time(draws, training_plan.seconds(plan), f"training {amount(draws)} draws", "ask for fewer draws or steps")


def _columns(plan: Plan, draws: int) -> dict[str, FloatArray]:
    """Empty arrays for the result."""
    lead, p = (draws, len(plan.record)), plan.probed.size
    return {
        "loss": np.empty(lead),
        "output": np.empty((*lead, plan.m, plan.outputs)),
        "probe_output": np.empty((*lead, len(plan.inputs) - plan.m, plan.outputs)),
        "K": np.empty((*lead, p, p)),
    }


def _dataset(plan: Plan, columns: dict[str, FloatArray], seed: int) -> xr.Dataset:
    import xarray as xr

    K, own = columns["K"], len(plan.inputs) == plan.m
    name = "input" if own else "probe"
    shapes = {key: tuple(dim.replace("input", name) for dim in dims) for key, dims in SHAPES.items()}
    shapes |= {"output": ("input", "component"), "probe_output": ("probe", "component")}
    values = columns | observe(K, K[:, :1], target_gram(plan.targets, plan.m, plan.outputs) if own else None)
    variables = {}
    for key, array in values.items():
        dims = shapes.get(key, ())
        single = plan.outputs == 1 and "component" in dims
        where = ("draw", "step", *dims[: len(dims) - single])
        variables[key] = (where, array[..., 0] if single else array, QUANTITIES[key].attrs)
    if own:
        del variables["probe_output"]
    return xr.Dataset(variables, coords={"step": list(plan.record)}, attrs=_provenance(plan, seed))


def _provenance(plan: Plan, seed: int) -> dict[str, Any]:
    return attributes(
        plan.net,
        method="training with revealed Gaussian matrices",
        seed=seed,
        inputs=plan.inputs.ravel(),
        targets=plan.targets.ravel(),
        lr=plan.lr,
        steps=plan.steps,
        momentum=plan.momentum,
        batch=plan.batch,
        loss=plan.loss.name,
        targets_are="classes" if plan.loss.classes else "numbers",
    )


def default_rate(net: MLP, X: npt.ArrayLike, seed: int = 0, *, momentum: float = 0.0) -> float:
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
    checked = plan(net, inputs, np.broadcast_to(0.0, (len(inputs), net.widths[-1])), 1, 1.0, momentum=momentum)
    _fits(checked, 1, 1, None)
    pilots = max(1, min(16, 10**5 // max(net.widths)))
    K: FloatArray = np.zeros(())
    with np.errstate(all="ignore"):
        for pilot in range(pilots):
            networks = Networks(net, inputs, 1, stream(seed, pilot, _PILOTS))
            passed = networks.forward(None)
            seeds, of, _ = _seeds(checked, passed.output, None, last=True)
            K = K + networks.kernel(passed, networks.backward(passed, seeds, of), None, checked.outputs)[0]
    if not np.isfinite(K).all():
        raise _overflow(inputs)
    top = float(np.linalg.eigvalsh(K / (pilots * checked.outputs))[-1])
    if not 0 < top < math.inf:
        raise FinwidthError("the initial kernel is zero, so nothing can be learned; give a learning rate to see it")
    return (1 - checked.momentum) / top


def trajectory(run: xr.Dataset) -> dict[str, Any]:
    """Means over draws and their standard errors at every recorded step, in plain types.

    Keys are step, loss, drift, largest_eigenvalue and, where the run has it, alignment, each with its ``mean``, its
    ``se`` (None for one draw) and ``left_out``: how many draws have no such value at a step, as a kernel that is 0 has
    no drift and no alignment. The means are those of the other draws, NaN where there is none.
    """
    import xarray as xr

    if not isinstance(run, xr.Dataset) or not {"step", "loss", "drift", "eigenvalues"} <= {*run.variables}:
        raise FinwidthError(f"the run is {shown(run)}; give a dataset of finwidth.train")
    series = {name: run[name].to_numpy() for name in ("loss", "drift", "alignment") if name in run}
    series["largest_eigenvalue"] = run.eigenvalues.to_numpy()[..., 0]
    return {"step": run.step.to_numpy().tolist()} | {name: _over_draws(values) for name, values in series.items()}


def _over_draws(values: FloatArray) -> dict[str, Any]:
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

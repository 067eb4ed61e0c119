"""Estimates from draws in law: at one input, and of the kernel matrix of several."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, TypedDict, TypeVar, cast

import numpy as np
import numpy.typing as npt

from finwidth.errors import FinwidthError
from finwidth.exact.moments import exact_values, moments, unsupported
from finwidth.exact.normalised import tail_exponent
from finwidth.networks.activations import SmoothActivation
from finwidth.networks.description import Network
from finwidth.networks.laws import FloatArray
from finwidth.networks.routes import check_supported
from finwidth.quantities import DRAWN, Estimate
from finwidth.sampling.kernel_matrix.sample_gram import check_targets, kernel_matrix_sampler
from finwidth.sampling.one_input.sample import SECONDS, one_input_sampler
from finwidth.sampling.sampler import Chunk, Sampler
from finwidth.stores import numerics
from finwidth.summary import finite_means
from finwidth.sweeps.quantities.base import (
    CellBatch,
    Column,
    Dims,
    Flags,
    Numerics,
    Settings,
    SweepQuantity,
    Variable,
    first_of,
)
from finwidth.sweeps.quantities.records import QUANTILES, SHARES, STATISTICS, ResumableSums, estimate_records
from finwidth.sweeps.quantities.stopping import wanted_draws
from finwidth.sweeps.schema.document import Document
from finwidth.sweeps.schema.grid import ALL_AXES, ARGUMENTS, Cell, cell_seed
from finwidth.sweeps.schema.kinds import Value
from finwidth.sweeps.schema.values import (
    LISTS,
    checked_value,
    name_in,
    nonempty_text,
    number_in,
    read_values,
    true_or_false,
    whole_number,
)

MOST_DRAWS = 10**12
_DEFAULT_MOST = 10**7
_DEFAULT_GOALS = {False: ["K", "K^2", "dK"], True: ["K"]}  # whether quantiles are kept, which are the goals then
_MEANINGS = {
    "mean": "sample mean",
    "se": "estimated standard error of the sample mean",
    "effective_draws": "how many draws carry the sum, (sum v)^2 / sum v^2",
    "trust": "whether the sample mean and its standard error can be believed",
}
_UNITS = "1; of dK: learning rate"
_QUANTILE_MEANINGS = {
    "quantile": "quantile over networks: the value that this share of the draws does not exceed",
    "quantile_se": "its standard error, from the quantiles two standard deviations of the rank below and above",
}


class DrawnTable(TypedDict, total=False):
    """A number of draws; or a target for the relative standard error, and a limit of draws; and if quantiles are kept.

    The key ``quantiles`` is there only where they are.
    """

    draws: int
    target: float
    most_draws: int
    quantiles: bool


class SampledTable(DrawnTable):
    """Draws, and the moments that are to reach the target."""

    of: list[str]


class InputsTable(DrawnTable):
    """Draws, and the names of the inputs."""

    inputs: list[str]


class GramTable(InputsTable, total=False):
    """Draws and inputs, and targets where the change of the kernel is wanted."""

    targets: list[float]


_AnyDrawn = TypeVar("_AnyDrawn", bound=DrawnTable)
_AnyInputs = TypeVar("_AnyInputs", bound=InputsTable)


class DrawnQuantity(SweepQuantity[_AnyDrawn]):
    """Common to all estimates: the number of draws, and the variables made of their records."""

    growing = ("draws", "most_draws")
    units: ClassVar[str] = "1"

    def finished(self, records: FloatArray, table: _AnyDrawn) -> Flags:
        """Whether there are as many draws as the settings ask for, or as the stopping rule does up to their limit."""
        draws, wanted = (self._column(name, records, table) for name in ("draws", "wanted"))
        asked = table["draws"] if "draws" in table else np.minimum(wanted, table["most_draws"])
        with np.errstate(invalid="ignore"):  # no record is NaN, and not finished
            return np.asarray(draws >= asked)

    def allowed(self, records: FloatArray, table: _AnyDrawn) -> Flags:
        """A store of fewer draws never held more."""
        most = table["draws"] if "draws" in table else table["most_draws"]
        return np.asarray(~(self._column("draws", records, table) > most))

    def variables(self, records: FloatArray, table: _AnyDrawn) -> dict[str, Variable]:
        """Mean, standard error, effective draws and trust of every entry; draws and convergence of every cell."""
        dims = tuple(self.dims(table))[:-1]
        columns: dict[str, Column] = {name: records[..., k] for k, name in enumerate(STATISTICS)}
        columns["trust"] = columns["trusted"] == 1
        units = {"mean": {"units": self.units}, "se": {"units": self.units}}
        found: dict[str, Variable] = {
            f"{self.name}_{name}": (dims, columns[name], {"long_name": meaning, **units.get(name, {})})
            for name, meaning in _MEANINGS.items()
        }
        draws = np.nan_to_num(self._column("draws", records, table)).astype(np.int64)
        found[f"{self.name}_draws"] = ((), draws, {"long_name": "number of draws"})
        meaning = f"whether {', '.join(self.goals(table))} can be trusted"
        meaning += f" and have a relative standard error of at most {table['target']:g}" if "target" in table else ""
        found[f"{self.name}_converged"] = ((), self._judged(records, table)[1], {"long_name": meaning})
        if table.get("quantiles"):
            for first, (name, meaning) in zip((-2, -1), _QUANTILE_MEANINGS.items(), strict=True):
                columns_of = records[..., first * len(SHARES) :][..., : len(SHARES)]
                attrs = {"long_name": meaning, "units": self.units}
                found[f"{self.name}_{name}"] = ((*dims, "quantile"), columns_of, attrs)
        return found

    def coordinates(self, table: _AnyDrawn) -> Dims:
        """Those of the record, and the shares of quantiles."""
        return {**self.dims(table), **({"quantile": [*SHARES]} if table.get("quantiles") else {})}

    @staticmethod
    def statistics(table: _AnyDrawn) -> list[Value]:
        """What a record has of each entry."""
        return [*STATISTICS, *(QUANTILES if table.get("quantiles") else ())]

    def _column(self, name: str, records: FloatArray, table: _AnyDrawn) -> FloatArray:
        """A statistic that is the same for all entries of a cell."""
        return first_of(records[..., STATISTICS.index(name)], len(self.dims(table)) - 1)

    @abstractmethod
    def goals(self, table: _AnyDrawn) -> list[str]:
        """The moments that must be trusted, and within the target, in a cell that is called converged.

        Where quantiles are kept it is their medians.
        """

    def _judged(self, records: FloatArray, table: _AnyDrawn) -> tuple[Flags, Flags]:
        """For each cell whether all its goals are trusted, and whether they are within the target as well."""
        moments, *others = self.dims(table).values()
        axis = -len(others) - 1
        goals = np.take(records, [moments.index(goal) for goal in self.goals(table)], axis)
        names = ("quantile 0.5", "se of quantile 0.5") if table.get("quantiles") else ("mean", "se")
        mean, se = (goals[..., self.statistics(table).index(name)] for name in names)
        entries = tuple(range(axis + 1, 0))
        trusted = goals[..., STATISTICS.index("trusted")] == 1
        sound: Flags = np.isfinite(np.asarray(se)) if table.get("quantiles") else np.asarray(trusted)
        with np.errstate(invalid="ignore"):
            exact_enough = se <= table["target"] * np.abs(mean) if "target" in table else True
        return np.asarray(sound.all(entries)), np.asarray((sound & exact_enough).all(entries))

    def converged(self, records: FloatArray, table: _AnyDrawn) -> tuple[int | None, list[str]]:
        """Number of converged cells, and why the others have not converged."""
        done = ~np.isnan(self._column("mean", records, table))
        trusted, converged = self._judged(records, table)
        heavy, short = int((done & ~trusted).sum()), int((done & trusted & ~converged).sum())
        doubts = []
        if heavy and table.get("quantiles"):
            doubts.append(f"{self.name}: {heavy} cells have medians that are not finite, as draws overflow a double")
        elif heavy:
            doubts.append(f"{self.name}: {heavy} cells cannot be trusted, for too few draws carry their sums")
        if short:
            doubts.append(
                f"{self.name}: {short} cells are above the target of {table['target']:g}, with the draws allowed"
            )
        return int(converged.sum()), doubts


class SampledQuantity(DrawnQuantity[SampledTable]):
    """Moments of the kernel at one input and of its first change, by the chains of `finwidth.sample`.

    And quantiles, if asked for or where networks are normalised, whose means need not exist.
    """

    name = "sampled"
    units = _UNITS
    keys = ("draws", "target", "most_draws", "of", "quantiles")

    def settings(self, document: Document, table: Mapping[str, object]) -> SampledTable:
        """A number of draws, or a target for the relative standard error and a limit of draws."""
        quantiles = keeps_quantiles(document, self.name, table)
        of = table.get("of", _DEFAULT_GOALS[quantiles])
        found: SampledTable = {"of": sorted(read_values(document, "sampled.of", of, name_in(DRAWN)))}
        if quantiles:
            found["quantiles"] = True
        if ("draws" in table) == ("target" in table):
            raise document.fault("sampled", "give one of draws and target (a relative standard error)")
        number = whole_number(1, MOST_DRAWS)
        if "draws" in table:
            if "most_draws" in table:
                raise document.fault("sampled.most_draws", "this is the limit of a target; draws is a number already")
            found["draws"] = checked_value(document, "sampled.draws", table["draws"], number)
            return found
        found["most_draws"] = checked_value(
            document, "sampled.most_draws", table.get("most_draws", _DEFAULT_MOST), number
        )
        found["target"] = checked_value(document, "sampled.target", table["target"], number_in(1e-6, 1.0))
        return found

    def check(self, net: Network, settings: Settings[SampledTable]) -> None:
        """Refuse networks that the chain does not draw."""
        check_supported("finwidth.sample", net)

    def dims(self, table: SampledTable) -> Dims:
        """Moments and statistics."""
        return {"moment": list(DRAWN), "sampled_statistic": self.statistics(table)}

    def compute(self, batch: CellBatch[SampledTable], check_cancelled: Callable[[], None]) -> FloatArray:
        """Cell by cell, in one thread; `finwidth.sample` with the cell's seed makes the same draws."""
        seed, common, table = batch.settings.seed, batch.settings.network, batch.settings.table
        found = []
        for cell, previous in batch.rows():
            net, x = cell.network(common), batch.vectors[cell.input, cell.n_0]
            exact = {} if unsupported(net) else exact_values(moments(net, x))
            quantiles = bool(table.get("quantiles"))
            source = _Source(cell, seed, net, one_input_sampler(net, x), exact, quantiles, check_cancelled)
            if "draws" in table:
                draws = table["draws"]
                wanted: float = draws
            else:
                most = table["most_draws"]
                wanted = wanted_draws(source.pilot, table["of"], table["target"], most)
                draws = int(min(wanted, most))
            sums = source.sums("draws", draws, previous)
            found.append(estimate_records(source.means(sums), sums.states, wanted, sums.quantiles()))
        return np.array(found)

    def goals(self, table: SampledTable) -> list[str]:
        """The moments named in the config."""
        return table["of"]

    def work(self, cell: Cell, table: SampledTable) -> float:
        """Some tens of nanoseconds a layer and draw."""
        return 1e6 * SECONDS * cell.depth * float(table.get("draws", 10**5)) + 1000


def keeps_quantiles(document: Document, name: str, table: Mapping[str, object]) -> bool:
    """Whether a config asks for quantiles, or has normalised networks and does not say no."""
    axes, network = document.table("axes", ALL_AXES), document.table("network", ("kind", *ARGUMENTS))
    norms = axes.get("norm", network.get("norm", "none"))
    default = any(each != "none" for each in (norms if isinstance(norms, LISTS) else [norms]))
    return checked_value(document, f"{name}.quantiles", table.get("quantiles", default), true_or_false)


def _mean_if_finite(moment: str, estimate: Estimate, net: Network) -> Estimate:
    """An estimate of a moment; infinite where that is, or is not known to be finite (`exact.normalised`)."""
    if net.norm is None or net.norm.epsilon:
        return estimate
    exponent = 0.0 if isinstance(net.activation, SmoothActivation) else tail_exponent(net)
    return finite_means({moment: estimate}, exponent).get(moment, not_finite(estimate))


def not_finite(estimate: Estimate) -> Estimate:
    """In the place of an estimate of a mean that need not exist."""
    return Estimate(math.inf, math.inf, estimate.draws, 0.0, trust=False, verdict="the mean need not be finite")


@dataclass(frozen=True)
class _Source:
    """The samples of one cell, each from a stream of its own, and the exact values, if any, that they are judged by."""

    cell: Cell
    seed: int
    net: Network
    sampler: Sampler
    exact: Mapping[str, float]
    quantiles: bool
    check_cancelled: Callable[[], None]

    def pilot(self, stage: int, draws: int) -> dict[str, Estimate]:
        """Estimates of an independent sample: of medians, where quantiles are kept."""
        sums = self.sums(f"pilot {stage}", draws)
        found = [sums.median(place) for place in range(len(DRAWN))] if self.quantiles else self.means(sums)
        return dict(zip(DRAWN, found, strict=True))

    def sums(self, stage: str, draws: int, previous: FloatArray | None = None) -> ResumableSums:
        """The sums of a sample, going on from previous records."""
        seed = cell_seed(self.seed, self.cell, "sampled", stage)
        sums = ResumableSums(len(DRAWN), self.sampler.chunk_size, draws, previous, quantiles=self.quantiles)
        for number, count in sums.chunks():
            self.check_cancelled()
            drawn = self.sampler.draw(Chunk(seed, number, count))
            with np.errstate(over="ignore", invalid="ignore"):  # `estimate_records` says so
                sums.add([value(drawn) for value in DRAWN.values()])
        return sums

    def means(self, sums: ResumableSums) -> list[Estimate]:
        """Estimates of the moments."""
        return [
            _mean_if_finite(name, total.estimate(self.exact.get(name)), self.net)
            for name, total in zip(DRAWN, sums.totals, strict=True)
        ]


_GRAM_MOMENTS: dict[str, Callable[[FloatArray], FloatArray]] = {"K": lambda K: K, "K^2": np.square}


class SeveralInputs(DrawnQuantity[_AnyInputs]):
    """Common to quantities of several inputs."""

    def inputs(self, table: _AnyInputs) -> Sequence[str]:
        """The inputs named in the quantity's table."""
        return table["inputs"]

    def numerics(self, table: _AnyInputs) -> Numerics:
        """Products of matrices, and smooth activations in NumPy's loops."""
        return numerics.blas()

    def compute(self, batch: CellBatch[_AnyInputs], check_cancelled: Callable[[], None]) -> FloatArray:
        """Cell by cell, by `of_cell`."""
        settings = batch.settings
        shape = tuple(map(len, self.dims(settings.table).values()))
        found = []
        for cell, previous in batch.rows():
            X = np.array([batch.vectors[name, cell.n_0] for name in settings.table["inputs"]])
            found.append(self.of_cell(cell, settings, X, previous, check_cancelled).reshape(shape))
        return np.array(found)

    @abstractmethod
    def of_cell(
        self,
        cell: Cell,
        settings: Settings[_AnyInputs],
        X: FloatArray,
        previous: FloatArray | None,
        check_cancelled: Callable[[], None],
    ) -> FloatArray:
        """The records of one cell at inputs X, shape (m, n_0), going on from the previous ones: (..., statistics)."""


class GramQuantity(SeveralInputs[GramTable]):
    """Moments of the kernel matrix of several inputs, and of its first change, by conditioned Gaussian layers.

    And quantiles, as of `SampledQuantity`.
    """

    name = "gram"
    units = _UNITS
    keys = ("inputs", "targets", "draws", "quantiles")

    def settings(self, document: Document, table: Mapping[str, object]) -> GramTable:
        """Inputs, draws, and targets if the change of the kernel is wanted."""
        for key in ("inputs", "draws"):
            if key not in table:
                raise document.fault(f"gram.{key}", "this key is missing; give [gram] inputs and draws")
        inputs = read_values(document, "gram.inputs", table["inputs"], nonempty_text)
        draws = checked_value(document, "gram.draws", table["draws"], whole_number(1, MOST_DRAWS))
        found: GramTable = {"inputs": inputs, "draws": draws}
        if keeps_quantiles(document, self.name, table):
            found["quantiles"] = True
        if "targets" in table:
            found["targets"] = checked_value(
                document,
                "gram.targets",
                table["targets"],
                lambda given: check_targets(cast("npt.ArrayLike", given), len(inputs)).tolist(),
            )
        return found

    def goals(self, table: GramTable) -> list[str]:
        """Every moment of the matrix."""
        return [*_GRAM_MOMENTS, *(["dK"] if "targets" in table else [])]

    def check(self, net: Network, settings: Settings[GramTable]) -> None:
        """Refuse networks that cannot be drawn."""
        check_supported("finwidth.sample_gram", net)
        if "targets" in settings.table:
            net.activation.second_derivative(np.zeros(1))

    def dims(self, table: GramTable) -> Dims:
        """Moments, two inputs and statistics."""
        return {
            "gram_moment": [*self.goals(table)],
            "gram_input": [*table["inputs"]],
            "gram_input_": [*table["inputs"]],
            "gram_statistic": self.statistics(table),
        }

    def of_cell(
        self,
        cell: Cell,
        settings: Settings[GramTable],
        X: FloatArray,
        previous: FloatArray | None,
        check_cancelled: Callable[[], None],
    ) -> FloatArray:
        """`finwidth.sample_gram` with the cell's seed makes the same draws."""
        net, table = cell.network(settings.network), settings.table
        seed = cell_seed(settings.seed, cell, "gram", "draws")
        sampler = kernel_matrix_sampler(net, X, table.get("targets"))
        names = [name for name in self.goals(table) for _ in range(len(X) ** 2)]
        entries, quantiles = len(names), bool(table.get("quantiles"))
        sums = ResumableSums(entries, sampler.chunk_size, table["draws"], previous, quantiles=quantiles)
        for number, count in sums.chunks():
            check_cancelled()
            try:
                drawn = sampler.draw(Chunk(seed, number, count))
                sampler.check(drawn)
            except FinwidthError:  # a double overflowed; the record says so, and the sweep goes on
                sums.add([np.full(count, np.inf)] * entries)
            else:
                sums.add(_gram_entries(drawn))
        means = [_mean_if_finite(name, total.estimate(), net) for name, total in zip(names, sums.totals, strict=True)]
        return estimate_records(means, sums.states, table["draws"], sums.quantiles())

    def work(self, cell: Cell, table: GramTable) -> float:
        """About a hundred nanoseconds for each neuron, input and draw."""
        return 0.1 * cell.depth * cell.width * len(table["inputs"]) * float(table["draws"])

    def memory(self, cell: Cell, settings: Settings[GramTable]) -> int:
        """Bytes of the draws that are made at once."""
        net, table = cell.network(settings.network), settings.table
        X = np.ones((len(table["inputs"]), cell.n_0))
        sampler = kernel_matrix_sampler(net, X, table.get("targets"))
        return sampler.memory(min(table["draws"], sampler.chunk_size))


def _gram_entries(drawn: Mapping[str, FloatArray]) -> list[FloatArray]:
    """The values of each moment at each pair of inputs."""
    with np.errstate(over="ignore"):
        moments = [function(drawn["K"]) for function in _GRAM_MOMENTS.values()]
    if "dK" in drawn:
        moments.append(drawn["dK"])
    m = drawn["K"].shape[-1]
    return [moment[:, a, b] for moment in moments for a in range(m) for b in range(m)]

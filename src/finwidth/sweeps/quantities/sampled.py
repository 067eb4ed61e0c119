"""Estimates from draws in law: at one input (`Sampled`), and of the kernel matrix of several (`Gram`)."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from finwidth.errors import FinwidthError
from finwidth.exact.moments import exact_values, moments
from finwidth.networks.laws import FloatArray
from finwidth.networks.mlp import MLP
from finwidth.quantities import DRAWN, Estimate
from finwidth.sampling.kernel_matrix import gram
from finwidth.sampling.one_input import norm_chain as diagonal
from finwidth.sampling.random.streams import stream
from finwidth.sampling.random.variates import Variates
from finwidth.sweeps.quantities.base import Kind, Settings, Variable, Vectors, first_of
from finwidth.sweeps.quantities.records import STATISTICS, accumulate, record
from finwidth.sweeps.quantities.stopping import wanted_draws
from finwidth.sweeps.schema.document import Document
from finwidth.sweeps.schema.grid import Cell, cell_seed
from finwidth.sweeps.schema.values import checked, one_of, several, text, whole, within
from finwidth.sweeps.store import numerics

Flags: TypeAlias = npt.NDArray[np.bool_]

MOST_DRAWS = 10**12
_DEFAULT_MOST = 10**7
_DEFAULT_GOALS = ["K", "K^2", "dK"]
_MEANINGS = {
    "mean": "sample mean",
    "se": "estimated standard error of the sample mean",
    "effective_draws": "how many draws carry the sum, (sum v)^2 / sum v^2",
    "trust": "whether the sample mean and its standard error can be believed",
}


class Drawn(Kind):
    """Common to all estimates: the number of draws, and the variables made of their records."""

    growing = ("draws", "most_draws")

    def finished(self, records: FloatArray, table: Mapping[str, Any]) -> Flags:
        """Whether there are as many draws as the settings ask for, or as the stopping rule does up to their limit."""
        draws, wanted = (self._column(name, records, table) for name in ("draws", "wanted"))
        asked = table["draws"] if "draws" in table else np.minimum(wanted, table["most_draws"])
        with np.errstate(invalid="ignore"):  # no record is NaN, and not finished
            return np.asarray(draws >= asked)

    def allowed(self, records: FloatArray, table: Mapping[str, Any]) -> Flags:
        """A store of fewer draws never held more."""
        return np.asarray(~(self._column("draws", records, table) > table.get("draws", table.get("most_draws"))))

    def variables(self, records: FloatArray, table: Mapping[str, Any]) -> dict[str, Variable]:
        """Mean, standard error, effective draws and trust of every entry; draws and convergence of every cell."""
        dims = tuple(self.dims(table))[:-1]
        columns: dict[str, Any] = {name: records[..., k] for k, name in enumerate(STATISTICS)}
        columns["trust"] = columns["trusted"] == 1
        found: dict[str, Variable] = {
            f"{self.name}_{name}": (dims, columns[name], {"long_name": meaning}) for name, meaning in _MEANINGS.items()
        }
        draws = np.nan_to_num(self._column("draws", records, table)).astype(np.int64)
        found[f"{self.name}_draws"] = ((), draws, {"long_name": "number of draws"})
        meaning = f"whether {', '.join(self.goals(table))} can be trusted"
        meaning += f" and have a relative standard error of at most {table['target']:g}" if "target" in table else ""
        found[f"{self.name}_converged"] = ((), self._judged(records, table)[1], {"long_name": meaning})
        return found

    def _column(self, name: str, records: FloatArray, table: Mapping[str, Any]) -> FloatArray:
        """A statistic that is the same for all entries of a cell."""
        return first_of(records[..., STATISTICS.index(name)], len(self.dims(table)) - 1)

    @abstractmethod
    def goals(self, table: Mapping[str, Any]) -> list[str]:
        """The moments that must be trusted, and within the target, in a cell that is called converged."""

    def _judged(self, records: FloatArray, table: Mapping[str, Any]) -> tuple[Flags, Flags]:
        """For each cell whether all its goals are trusted, and whether they are within the target as well."""
        moments, *others = self.dims(table).values()
        axis = -len(others) - 1
        goals = np.take(records, [moments.index(goal) for goal in self.goals(table)], axis)
        mean, se, trusted = (goals[..., STATISTICS.index(name)] for name in ("mean", "se", "trusted"))
        entries = tuple(range(axis + 1, 0))
        sound = trusted == 1
        with np.errstate(invalid="ignore"):
            exact_enough = se <= table["target"] * np.abs(mean) if "target" in table else True
        return sound.all(entries), (sound & exact_enough).all(entries)

    def converged(self, records: FloatArray, table: Mapping[str, Any]) -> tuple[int | None, list[str]]:
        """Number of converged cells, and why the others have not converged."""
        done = ~np.isnan(self._column("mean", records, table))
        trusted, converged = self._judged(records, table)
        heavy, short = int((done & ~trusted).sum()), int((done & trusted & ~converged).sum())
        doubts = []
        if heavy:
            doubts.append(f"{self.name}: {heavy} cells cannot be trusted, for too few draws carry their sums")
        if short:
            doubts.append(
                f"{self.name}: {short} cells are above the target of {table['target']:g}, with the draws allowed"
            )
        return int(converged.sum()), doubts


class Sampled(Drawn):
    """Moments of the kernel at one input and of its first change, by the norm chain."""

    name = "sampled"
    keys = ("draws", "target", "most_draws", "of")

    def settings(self, document: Document, table: dict[str, Any]) -> dict[str, Any]:
        """A number of draws, or a target for the relative standard error and a limit of draws."""
        of = several(document, "sampled.of", table.get("of", _DEFAULT_GOALS), one_of(tuple(DRAWN)))
        if ("draws" in table) == ("target" in table):
            raise document.fault("sampled", "give one of draws and target (a relative standard error)")
        if "draws" in table:
            if "most_draws" in table:
                raise document.fault("sampled.most_draws", "this is the limit of a target; draws is a number already")
            draws = checked(document, "sampled.draws", table["draws"], whole(1, MOST_DRAWS))
            return {"draws": draws, "of": sorted(of)}
        most = checked(document, "sampled.most_draws", table.get("most_draws", _DEFAULT_MOST), whole(1, MOST_DRAWS))
        target = checked(document, "sampled.target", table["target"], within(1e-6, 1.0))
        return {"target": target, "most_draws": most, "of": sorted(of)}

    def check(self, net: MLP, settings: Settings) -> None:
        """Refuse networks that the chain does not draw."""
        diagonal.check_network(net)

    def dims(self, table: Mapping[str, Any]) -> dict[str, list[Any]]:
        """Moments and statistics."""
        return {"moment": list(DRAWN), "sampled_statistic": list(STATISTICS)}

    def compute(
        self,
        cells: Sequence[Cell],
        settings: Settings,
        vectors: Vectors,
        previous: FloatArray | None,
        pause: Callable[[], None],
    ) -> FloatArray:
        """Cell by cell, in one thread; `finwidth.sample` with the cell's seed makes the same draws."""
        rows = [None] * len(cells) if previous is None else list(previous)
        found = [
            _sampled(cell, settings, vectors[cell.input, cell.n_0], row, pause)
            for cell, row in zip(cells, rows, strict=True)
        ]
        return np.array(found)

    def goals(self, table: Mapping[str, Any]) -> list[str]:
        """The moments named in the config."""
        names: list[str] = table["of"]
        return names

    def work(self, cell: Cell, table: Mapping[str, Any]) -> float:
        """Some tens of nanoseconds a layer and draw."""
        return 1e6 * diagonal.SECONDS * cell.depth * float(table.get("draws", 10**5)) + 1000


def _sampled(
    cell: Cell, settings: Settings, x: FloatArray, previous: FloatArray | None, pause: Callable[[], None]
) -> FloatArray:
    """The record of one cell, shape (moments, statistics)."""
    net, table = cell.network(settings.network), settings.table
    exact = exact_values(moments(net, x))
    norm, exponent = diagonal.squared_norm(net, x)

    def estimates(stage: str, draws: int, previous: FloatArray | None = None) -> tuple[dict[str, Estimate], FloatArray]:
        size = diagonal.chunk_size(net)
        chain = diagonal.make_chain(net, min(size, draws), exponent)
        seed = cell_seed(settings.seed, cell, "sampled", stage)

        def piece(number: int, count: int) -> list[FloatArray]:
            pause()
            drawn = chain.draw(norm, Variates(stream(seed, number)), count)
            with np.errstate(over="ignore", invalid="ignore"):  # `record` says so
                return [value(drawn) for value in DRAWN.values()]

        totals, states = accumulate(piece, len(DRAWN), size, draws, previous)
        return {name: total.estimate(exact[name]) for name, total in zip(DRAWN, totals, strict=True)}, states

    if "draws" in table:
        draws = wanted = table["draws"]
    else:
        most = table["most_draws"]
        wanted = wanted_draws(lambda i, count: estimates(f"pilot {i}", count)[0], table["of"], table["target"], most)
        draws = int(min(wanted, most))
    found, states = estimates("draws", draws, previous)
    return record(list(found.values()), states, wanted)


_GRAM_MOMENTS: dict[str, Callable[[FloatArray], FloatArray]] = {"K": lambda K: K, "K^2": np.square}


class SeveralInputs(Drawn):
    """Common to quantities of several inputs."""

    def inputs(self, table: Mapping[str, Any]) -> Sequence[str]:
        """The inputs named in the quantity's table."""
        names: list[str] = table["inputs"]
        return names

    def numerics(self, table: Mapping[str, Any]) -> dict[str, Any]:
        """Products of matrices, and smooth activations in NumPy's loops."""
        return numerics.blas()

    def compute(
        self,
        cells: Sequence[Cell],
        settings: Settings,
        vectors: Vectors,
        previous: FloatArray | None,
        pause: Callable[[], None],
    ) -> FloatArray:
        """Cell by cell, by `of_cell`."""
        shape = tuple(map(len, self.dims(settings.table).values()))
        rows = [None] * len(cells) if previous is None else list(previous.reshape(len(cells), -1, shape[-1]))
        found = []
        for cell, row in zip(cells, rows, strict=True):
            X = np.array([vectors[name, cell.n_0] for name in settings.table["inputs"]])
            found.append(self.of_cell(cell, settings, X, row, pause).reshape(shape))
        return np.array(found)

    @abstractmethod
    def of_cell(
        self, cell: Cell, settings: Settings, X: FloatArray, previous: FloatArray | None, pause: Callable[[], None]
    ) -> FloatArray:
        """The records of one cell at inputs X, shape (m, n_0), going on from the previous ones: (..., statistics)."""


class Gram(SeveralInputs):
    """Moments of the kernel matrix of several inputs, and of its first change, by conditioned Gaussian layers."""

    name = "gram"
    keys = ("inputs", "targets", "draws")

    def settings(self, document: Document, table: dict[str, Any]) -> dict[str, Any]:
        """Inputs, draws, and targets if the change of the kernel is wanted."""
        for key in ("inputs", "draws"):
            if key not in table:
                raise document.fault(f"gram.{key}", "this key is missing; give [gram] inputs and draws")
        found = {
            "inputs": several(document, "gram.inputs", table["inputs"], text),
            "draws": checked(document, "gram.draws", table["draws"], whole(1, MOST_DRAWS)),
        }
        if "targets" in table:
            count = len(found["inputs"])
            targets = checked(
                document, "gram.targets", table["targets"], lambda given: gram.check_targets(given, count)
            )
            found["targets"] = targets.tolist()
        return found

    def goals(self, table: Mapping[str, Any]) -> list[str]:
        """All."""
        return list(self.dims(table)["gram_moment"])

    def check(self, net: MLP, settings: Settings) -> None:
        """Refuse networks that cannot be drawn."""
        gram.check_network(net)
        if "targets" in settings.table:
            net.activation.second_derivative(np.zeros(1))

    def dims(self, table: Mapping[str, Any]) -> dict[str, list[Any]]:
        """Moments, two inputs and statistics."""
        names = [*_GRAM_MOMENTS, *(["dK"] if "targets" in table else [])]
        inputs = list(table["inputs"])
        return {
            "gram_moment": names,
            "gram_input": inputs,
            "gram_input_": inputs,
            "gram_statistic": list(STATISTICS),
        }

    def of_cell(
        self, cell: Cell, settings: Settings, X: FloatArray, previous: FloatArray | None, pause: Callable[[], None]
    ) -> FloatArray:
        """`finwidth.sample_gram` with the cell's seed makes the same draws."""
        net, table = cell.network(settings.network), settings.table
        seed = cell_seed(settings.seed, cell, "gram", "draws")
        targets = np.array(table["targets"]) if "targets" in table else None

        def piece(number: int, count: int) -> list[FloatArray]:
            pause()
            try:
                drawn = gram.draw(net, X, count, stream(seed, number), targets)
            except FinwidthError:  # a double overflowed; the record says so, and the sweep goes on
                return [np.full(count, np.inf)] * entries
            with np.errstate(over="ignore"):
                moments = [function(drawn["K"]) for function in _GRAM_MOMENTS.values()]
            if targets is not None:
                moments.append(drawn["dK"])
            return [moment[:, a, b] for moment in moments for a in range(len(X)) for b in range(len(X))]

        entries = (len(_GRAM_MOMENTS) + (targets is not None)) * len(X) ** 2
        totals, states = accumulate(piece, entries, gram.chunk_size(net, len(X)), table["draws"], previous)
        return record([total.estimate() for total in totals], states, table["draws"])

    def work(self, cell: Cell, table: Mapping[str, Any]) -> float:
        """About a hundred nanoseconds for each neuron, input and draw."""
        return 0.1 * cell.depth * cell.width * len(table["inputs"]) * float(table["draws"])

    def memory(self, cell: Cell, settings: Settings) -> int:
        """Of the draws made at once."""
        net, table = cell.network(settings.network), settings.table
        m, targets = len(table["inputs"]), "targets" in table
        return min(int(table["draws"]), gram.chunk_size(net, m)) * gram.memory(net, m, targets=targets)

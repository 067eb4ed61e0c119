"""The three routes side by side, and one real network beside its law: `finwidth.compare`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, overload

import numpy as np

from finwidth import arguments, module_law
from finwidth.arguments import check_seed, count
from finwidth.documents import exact_number, plain
from finwidth.empirical.reference.brute_force import simulate
from finwidth.empirical.reference.residual import simulate_residual
from finwidth.errors import FinwidthError, SizeError
from finwidth.exact.expansion.one_input import only_to_first_order, to_first_order
from finwidth.exact.moments import KernelMoments, exact_values, moments
from finwidth.exact.moments import unsupported as no_moments
from finwidth.exact.normalised import why_quantiles
from finwidth.module_law import ModuleLaw
from finwidth.networks.activations import SmoothActivation
from finwidth.networks.balanced import BalancedResNet
from finwidth.networks.description import Network, check_network, count_weights, kept_widths
from finwidth.networks.inputs import Vector, check_input
from finwidth.networks.laws import FloatArray
from finwidth.networks.mlp import MLP
from finwidth.networks.resnet import ResNet
from finwidth.networks.routes import instead, other_kind
from finwidth.networks.widths import format_widths
from finwidth.quantities import MOMENTS, Estimate, doubts, of_several
from finwidth.sampling.kernel_matrix.one_of_many import draw_one_input
from finwidth.sampling.one_input import importance, sample
from finwidth.sampling.sampler import afford_draws, collect, draw_chunks
from finwidth.sampling.statistics.estimates import estimate_moments
from finwidth.sampling.statistics.quantile_sketch import Measured, QuantileSketch
from finwidth.sampling.training import first_step
from finwidth.tables import Cell, Result, Table, Told, number, told

if TYPE_CHECKING:
    import torch
    from torch import nn

_MOST_OUTPUTS = 32  # of networks that are drawn in law as well
_WEIGHTS = 2 * 10**8  # that the default number of real networks draws in all: some seconds
_MOST_NETWORKS = 10_000
_REDRAWN = 200  # by default, of a module that is not recognised
_ROUNDING = 1e-6  # of kernels in float32
_NEURONS = 10**8  # of networks that are drawn neuron by neuron: some ten seconds
_SHARES = {"q16": 0.16, "median": 0.5, "q84": 0.84}

# How real networks are drawn and differentiated.
_SIMULATIONS: dict[type, Callable[[Any, Vector, int, np.random.Generator], dict[str, FloatArray]]] = {
    MLP: simulate,
    ResNet: simulate_residual,
    BalancedResNet: simulate_residual,
}


@dataclass(frozen=True)
class Row:
    """The mean of one quantity by every route that gives it."""

    quantity: str
    exact: float
    sampled: Estimate | None
    tilted: Estimate | None
    networks: Estimate

    def content(self) -> dict[str, object]:
        """The exact value and the estimates, with z-scores against it."""
        estimates = {"sampled": self.sampled, "tilted": self.tilted, "networks": self.networks}
        found = {name: each.against(self.exact) for name, each in estimates.items() if each is not None}
        return {"exact": exact_number(self.exact), **found}

    def in_law(self) -> tuple[Cell, ...]:
        """What a table has of the draws in law: of tilted ones where plain ones cannot be trusted."""
        if self.sampled is None:
            return ()
        if self.tilted is None or self.sampled.trust:
            return self.sampled.cells(self.exact)
        _, *rest = self.tilted.cells(self.exact)
        return Told(self.tilted.value, f"{number(self.tilted.value)}{'~' if self.tilted.trust else '!'}"), *rest


@dataclass(frozen=True, repr=False)
class Comparison(Result):
    """The result of `compare`: rows by quantity, and why the sampled route is missing, if it is."""

    network: Network
    rows: tuple[Row, ...]
    not_sampled: str | None

    def content(self) -> dict[str, object]:
        """Each quantity by every route, and why draws in law are missing, if they are."""
        return {"quantities": {row.quantity: row.content() for row in self.rows}, "not_sampled": self.not_sampled}

    def _table(self) -> Table:
        """The routes side by side; where plain draws in law cannot be trusted, tilted ones if there are any."""
        sampled = () if self.not_sampled else ("in law", "std. err.", "z")
        table = Table(str(self.network), ("quantity", "exact", *sampled, "networks", "std. err.", "z"))
        for row in self.rows:
            table.add(MOMENTS[row.quantity].label, row.exact, *row.in_law(), *row.networks.cells(row.exact))
        table.notes = self._notes()
        return table

    def _notes(self) -> str:
        first = self.rows[0]
        notes = f"{of_several(self.network)}{first.networks.draws} real networks"
        notes += f", {first.sampled.draws} draws in law" if first.sampled else ""
        notes += f".\n{self.not_sampled or ''}\n"
        tilted = {row.quantity: row.tilted for row in self.rows if row.tilted}
        if tilted:
            notes += (
                "~ from draws tilted towards the networks that carry these means: plain draws cannot be trusted here.\n"
            )
        notes += doubts({row.quantity: row.sampled for row in self.rows if row.sampled}, "in law")
        notes += doubts(tilted, "tilted")
        return notes + doubts({row.quantity: row.networks for row in self.rows}, "networks")

    def _headline(self) -> str:
        row = self.rows[0]
        law = "" if row.sampled is None else f"in law {row.sampled.value:.6g} ± {row.sampled.se:.2g}, "
        return f"{self.network}: E[K] {row.exact:.6g}, {law}networks {row.networks.value:.6g} ± {row.networks.se:.2g}"


def _z_between(one: Estimate | Measured, other: Estimate | Measured) -> float:
    """Difference of two independent estimates over the standard error of both; 0 where neither varies."""
    error = float(np.hypot(one.se, other.se))
    return (one.value - other.value) / error if error else 0.0


@dataclass(frozen=True)
class ExpandedRow:
    """The mean of one quantity to first order in 1/width, of draws in law and of real networks."""

    quantity: str
    first_order: float | None
    sampled: Estimate
    networks: Estimate

    @property
    def z(self) -> float:
        """Standard errors between the two, 0 where neither varies."""
        return _z_between(self.sampled, self.networks)

    def content(self) -> dict[str, object]:
        """First order, and both estimates."""
        known = {} if self.first_order is None else {"first_order": {"value": plain(self.first_order)}}
        networks = {**self.networks.content(), "z_to_sampled": plain(self.z)}
        return {**known, "sampled": self.sampled.content(), "networks": networks}


@dataclass(frozen=True, repr=False)
class ExpandedComparison(Result):
    """The result of `compare` where moments are known to first order in 1/width, as for smooth activations.

    Attributes
    ----------
    rows
        By quantity; K_w and K_b are not known to first order.
    first_order
        Whether first order serves at this width, in words.
    """

    network: Network
    rows: tuple[ExpandedRow, ...]
    first_order: str

    def content(self) -> dict[str, object]:
        """Each quantity by every route, and whether first order serves."""
        quantities = {row.quantity: row.content() for row in self.rows}
        return {"quantities": quantities, "first_order": {"verdict": self.first_order}}

    def _table(self) -> Table:
        headings = ("quantity", "first order", "in law", "std. err.", "networks", "std. err.", "z")
        table, first = Table(str(self.network), headings), self.rows[0]
        for row in self.rows:
            estimates = (*row.sampled.cells()[:2], *row.networks.cells()[:2])
            table.add(MOMENTS[row.quantity].label, row.first_order, *estimates, told(row.z, "+.2f"))
        table.notes = (
            f"{of_several(self.network)}{first.networks.draws} real networks, {first.sampled.draws} draws in law; "
            f"z is between these.\nFirst order {self.first_order}.\n"
        )
        table.notes += doubts({row.quantity: row.sampled for row in self.rows}, "in law")
        table.notes += doubts({row.quantity: row.networks for row in self.rows}, "networks")
        return table

    def _headline(self) -> str:
        row = self.rows[0]
        estimates = f"in law {row.sampled.value:.6g}, networks {row.networks.value:.6g}, z {row.z:+.2f}"
        return f"{self.network}: E[K] {number(row.first_order)} to first order in 1/width, {estimates}"


@dataclass(frozen=True)
class QuantileRow:
    """A quantile of K, or its spread, of draws in law and of real networks."""

    quantity: str
    sampled: Measured
    networks: Measured

    @property
    def z(self) -> float:
        """Standard errors between the two, 0 where neither varies."""
        return _z_between(self.sampled, self.networks)

    def content(self) -> dict[str, object]:
        """Both estimates."""
        networks = {**self.networks.content(), "z_to_sampled": self.z}
        found: dict[str, object] = plain({"sampled": self.sampled.content(), "networks": networks})
        return found


@dataclass(frozen=True, repr=False)
class QuantileComparison(Result):
    """The result of `compare` for a normalised network: quantiles by two routes, as means need not exist.

    Attributes
    ----------
    rows
        ``q16``, ``median`` and ``q84`` of K, and the ``spread`` (q84 - q16) / (2 median).
    draws, networks
        How many were drawn in law, and how many real networks.
    reason
        Why there are no exact moments.
    """

    network: Network
    rows: tuple[QuantileRow, ...]
    draws: int
    networks: int
    reason: str

    def content(self) -> dict[str, object]:
        """Each quantile by both routes, how many real networks there were, and why there are no moments."""
        names = {"median": "q50(K)"}
        quantities = {names.get(row.quantity, f"{row.quantity}(K)"): row.content() for row in self.rows}
        return {"quantities": quantities, "networks": self.networks, "no_moments": self.reason}

    def _table(self) -> Table:
        table = Table(str(self.network), ("quantity", "in law", "std. err.", "networks", "std. err.", "z"))
        for row in self.rows:
            name = "(q84 - q16) / (2 median)" if row.quantity == "spread" else f"{row.quantity} of K"
            values = (f for each in (row.sampled, row.networks) for f in (each.value, told(each.se, ".2g")))
            table.add(name, *values, told(row.z, "+.2f"))
        notes = f"{of_several(self.network)}{self.networks} real networks, {self.draws} draws in law.\n"
        table.notes = f"{notes}No exact moments: {self.reason}.\n"
        return table

    def _headline(self) -> str:
        apart = ", ".join(f"{row.quantity} {row.sampled.value:.4g} ({row.z:+.2f})" for row in self.rows)
        return f"{self.network}: in law, and z of the networks: {apart}"


@overload
def compare(
    net: Network,
    x: Vector,
    *,
    draws: int = ...,
    networks: int | None = ...,
    seed: int = ...,
    progress: Callable[[int], object] | None = ...,
) -> Comparison | ExpandedComparison | QuantileComparison: ...


@overload
def compare(
    net: nn.Module,
    x: Vector,
    *,
    draws: int = ...,
    networks: int | None = ...,
    seed: int = ...,
    init: str | Mapping[str, object] | None = ...,
    factory: Callable[[], nn.Module] | None = ...,
    progress: Callable[[int], object] | None = ...,
) -> ModuleComparison: ...


def compare(
    net: Network | nn.Module,
    x: Vector,
    *,
    draws: int = 100_000,
    networks: int | None = None,
    seed: int = 0,
    init: str | Mapping[str, object] | None = None,
    factory: Callable[[], nn.Module] | None = None,
    progress: Callable[[int], object] | None = None,
) -> Comparison | ExpandedComparison | QuantileComparison | ModuleComparison:
    """Exact values, draws in law and real networks side by side, each estimate with its error and whether to trust it.

    The three routes share no code beyond the network's definition (its layers), so agreement is evidence. The verdict
    of an estimate that cannot be trusted says why: too few draws carry it, or it is far from the exact value. Where one
    of the draws in law cannot, ReLU networks, and residual ones, are drawn once more in proportion to what they carry
    (`sampling.one_input.importance`); these estimates hold at any depth.

    Of networks without exact moments, such as those of smooth activations, the place of exact values is taken by first
    order in 1/width (`finwidth.expansion`), with a verdict on whether it serves; draws in law are by neurons, and fewer
    of large networks.

    Of normalised networks, whose E[K] is often infinite, quantiles of K and their spread are compared, of draws in law
    (by neurons, and fewer, where `finwidth.sample` does not draw them) and of real networks, which need PyTorch.

    A torch module takes the place of the network where `finwidth.empirical.recognise` knows it. Then the kernel of that
    very module (of its output 0), and its first-order change dK per unit learning rate under SGD on sum N^2 / 2, stand
    beside their exact means and standard deviations over initializations, with their percentiles in the law: among
    draws in law where the network allows them, among real networks otherwise.

    Of any other module K alone has a percentile, among networks of the same architecture: its own layers drawn again as
    their weights tell (`finwidth.empirical.modules.redrawing`), or the modules that ``factory`` makes. The result says
    what is compared, and where the module itself does not pass for such a draw, as after training.

    Parameters
    ----------
    net, x
        The network, an `MLP` or a `ResNet`, or a torch module, and one input, shape (n_0,), or of a module that is not
        recognised whatever shape a sample has.
    draws
        Draws in law, where the network allows them.
    networks
        Real networks to draw and differentiate; by default up to 10,000, fewer where they are large, and 200 of modules
        that are not recognised.
    seed
        A whole number, 0 or more.
    init
        How the weights of a module were drawn, as for `finwidth.empirical.recognise`; by default inferred.
    factory
        A function without arguments that makes a fresh module like the one given, initialised by torch's generator; the
        percentile is then among those.
    progress
        Called with the number of draws finished.

    Returns
    -------
    Comparison, without exact moments ExpandedComparison, for a normalised network QuantileComparison, or for a torch
    module ModuleComparison

    Examples
    --------
    >>> import finwidth
    >>> found = finwidth.compare(finwidth.MLP([2, 8, 8, 1]), [1, 2], draws=20_000, networks=2_000)
    >>> found.rows[0].quantity, abs(found.rows[0].networks.z(found.rows[0].exact)) < 5
    ('K', True)
    """
    seed, draws = check_seed(seed), count("draws", draws)
    tell = arguments.progress(progress)
    if not isinstance(net, Network) and hasattr(net, "parameters"):
        law = module_law.description_or_law(net, init, factory, serves=lambda _: True)
        if isinstance(law, ModuleLaw):
            return _compare_in_module_law(law, x, tell, networks=networks, seed=seed)
        return compare_with_law(law, net, x, tell, draws=draws, networks=networks, seed=seed)
    module_law.check_no_factory(factory)
    net = check_network(net)
    if reasons := unsupported(net):
        raise FinwidthError(f"finwidth.compare cannot serve this network: {'; '.join(reasons)}; {instead(net)}")
    if reason := why_quantiles(net):
        return _compare_quantiles(net, x, reason, tell, draws=draws, networks=networks, seed=seed)
    if only_to_first_order(net):
        return _compare_to_first_order(net, x, tell, draws=draws, networks=networks, seed=seed)
    exact = exact_values(moments(net, x))
    not_sampled = _not_sampled(net)
    sampler = None if not_sampled else sample.one_input_sampler(net, x, first_output=True)
    if sampler is not None:
        afford_draws(sampler, draws)
    found = estimate_moments([_networks(net, x, networks, seed)], exact)
    sampled = {} if sampler is None else estimate_moments(draw_chunks(sampler, draws, seed, progress=tell), exact)
    tilt = _tilted(net, x, draws, seed, exact) if not all(each.trust for each in sampled.values()) else {}
    rows = tuple(Row(name, exact[name], sampled.get(name), tilt.get(name), found[name]) for name in found)
    return Comparison(net, rows, not_sampled)


def unsupported(net: Network) -> list[str]:
    """Reasons why `compare` does not serve this network; none if it does."""
    if net.norm is not None:
        return first_step.unsupported(net)
    return other_kind(net, *_SIMULATIONS)


def _compare_to_first_order(
    net: Network, x: Vector, tell: Callable[[int], object], *, draws: int, networks: int | None, seed: int
) -> ExpandedComparison:
    wide = to_first_order(net, x)
    real = estimate_moments([_networks(net, x, networks, seed)])
    law = estimate_moments(draw_one_input(net, x, _by_neurons(net, draws), seed, progress=tell))
    rows = tuple(ExpandedRow(name, wide.means.get(name), each, real[name]) for name, each in law.items())
    return ExpandedComparison(net, rows, wide.verdict)


def _by_neurons(net: Network, draws: int) -> int:
    """How many of the draws are affordable neuron by neuron."""
    return max(1, min(draws, _NEURONS // sum(kept_widths(net))))


def _compare_quantiles(
    net: Network,
    x: Vector,
    reason: str,
    tell: Callable[[int], object],
    *,
    draws: int,
    networks: int | None,
    seed: int,
) -> QuantileComparison:
    real = QuantileSketch.of(_real_networks(net, x, networks, seed)["K"])
    if _not_sampled(net) is None:
        K = collect(sample.one_input_sampler(net, x, first_output=True), draws, seed, progress=tell)["K"]
    else:
        draws = _by_neurons(net, draws)
        K = first_step.sampled_kernels(net, check_input(net, x), draws, seed)
    law = QuantileSketch.of(K)
    rows = [QuantileRow(name, law.quantile(share), real.quantile(share)) for name, share in _SHARES.items()]
    rows.append(QuantileRow("spread", law.relative_spread, real.relative_spread))
    return QuantileComparison(net, tuple(rows), law.draws, real.draws, reason)


def _not_sampled(net: Network) -> str | None:
    """Why a network is not drawn in law beside the real ones; None if it is."""
    if reasons := sample.unsupported(net):
        return f"finwidth.sample cannot draw this network: {'; '.join(reasons)}"
    if net.widths[-1] > _MOST_OUTPUTS:
        return (
            f"it has {net.widths[-1]} outputs, and a draw in law takes a time in proportion to their cube "
            f"(up to {_MOST_OUTPUTS} are drawn)"
        )
    return None


def _networks(net: Network, x: Vector, networks: int | None, seed: int) -> dict[str, FloatArray]:
    """Real networks, drawn and differentiated, as many as asked for or as seconds allow."""
    weights = count_weights(net)
    if weights > _WEIGHTS:
        raise FinwidthError(
            f"one network of {format_widths(net.widths)} has {weights:.2g} weights, too many to draw; "
            f"{instead(net, without='finwidth.empirical.Ensemble')}, and need none"
        )
    if networks is None:
        networks = max(1, min(_MOST_NETWORKS, _WEIGHTS // weights))
    with np.errstate(over="ignore", invalid="ignore"):
        draw = next(draw for kind, draw in _SIMULATIONS.items() if isinstance(net, kind))
        drawn = draw(net, x, count("networks", networks), np.random.default_rng(seed))
    if not all(np.isfinite(column).all() for column in drawn.values()):
        raise FinwidthError("the networks overflow a double at this input; rescale it")
    return drawn


def _tilted(net: Network, x: Vector, draws: int, seed: int, exact: dict[str, float]) -> dict[str, Estimate]:
    """Estimates by importance sampling, or none where there are no such draws."""
    if importance.unsupported(net) or not np.any(check_input(net, x)):
        return {}
    try:
        return importance.importance_estimates(net, x, draws, seed, exact=exact)
    except SizeError:
        raise
    except FinwidthError:  # past a double's range, where plain draws have none of the large values
        return {}


# ---- one real network beside its law


@dataclass(frozen=True)
class Placed:
    """One quantity of a given network, and its percentile among random networks of that kind.

    Attributes
    ----------
    measured
        Of the given network.
    exact, sd
        Exact mean and standard deviation over initializations; None where there are no exact moments, and sd for dK.
    percentile
        Percent of drawn networks below it (half of those equal to it).
    interval
        Between which the percentile is with probability 95%, by how many were drawn (Clopper and Pearson, 1934).
    """

    quantity: str
    measured: float
    exact: float | None
    sd: float | None
    percentile: float
    interval: tuple[float, float]

    @property
    def z(self) -> float | None:
        """Standard deviations from the exact mean; the law is skewed, so the percentile says more."""
        return (self.measured - self.exact) / self.sd if self.sd and self.exact is not None else None

    def content(self) -> dict[str, object]:
        """The module's value and its place in the law, and the exact mean where there is one."""
        module = {"value": self.measured, "percentile": self.percentile, "interval": self.interval, "z": self.z}
        exact = {} if self.exact is None else {"exact": {"value": self.exact, "sd": self.sd}}
        found: dict[str, object] = plain({"module": module, **exact})
        return found


@dataclass(frozen=True, repr=False)
class ModuleComparison(Result):
    """The result of `compare` for a torch module: its quantities, and their percentiles over initializations.

    Attributes
    ----------
    network
        What the module is recognised as; None if it is not.
    rows
        The quantities.
    draws, in_law
        How many the percentiles rest on, and whether they were drawn in law, or are real networks.
    cv
        Of K, exact; None where there are no exact moments.
    compared
        What the module is compared with, and whether it passes for such a network itself.
    """

    network: Network | None
    rows: tuple[Placed, ...]
    draws: int
    in_law: bool
    cv: float | None
    compared: str

    def content(self) -> dict[str, object]:
        """Each quantity of the module and its law, and what the module is compared with."""
        quantities = {row.quantity: row.content() for row in self.rows}
        quantities |= {} if self.cv is None else {"cv(K)": {"exact": exact_number(self.cv)}}
        return {"quantities": quantities, "in_law": self.in_law, "compared": self.compared}

    @property
    def _of(self) -> str:
        return "a torch module" if self.network is None else str(self.network)

    def _table(self) -> Table:
        exact = ("exact mean", "std. dev.", "z") if self.cv is not None else ()
        table = Table(self._of, ("quantity", "this module", *exact, "percentile (95 %)"))
        for row in self.rows:
            z = None if row.z is None else told(row.z, "+.2f")
            law = (row.exact, row.sd, z) if exact else ()
            least, most = row.interval
            percentile = Told(row.percentile, f"{row.percentile:.3g} % ({least:.3g}, {most:.3g})")
            table.add(row.quantity.replace("dK", "ΔK/λ"), row.measured, *law, percentile)
        table.notes = self._notes()
        return table

    def _notes(self) -> str:
        outputs = None if self.network is None else self.network.widths[-1]
        notes = "" if outputs == 1 else f"K is that of output 0{'' if outputs is None else f' of {outputs}'}. "
        notes += f"Percentile among {self.compared}."
        if self.network is None:
            return notes
        return notes + (" It has no exact moments." if self.cv is None else f" CV of K: {number(self.cv)}.")

    def _headline(self) -> str:
        row = self.rows[0]
        return (
            f"{self._of}: {row.quantity} {row.measured:.6g}, at {row.percentile:.3g} % of {self.draws:,} such networks"
        )


def compare_with_law(
    net: Network,
    module: nn.Module,
    x: Vector,
    tell: Callable[[int], object],
    *,
    draws: int = 100_000,
    networks: int | None = None,
    seed: int = 0,
) -> ModuleComparison:
    """A module beside the law of the network that it is recognised as."""
    measured = _measured_module(net, module, x)
    in_law = _not_sampled(net) is None
    if in_law:
        drawn = collect(sample.one_input_sampler(net, x, first_output=True), draws, seed, progress=tell)
    else:
        drawn = _real_networks(net, x, networks, seed)
    exact = None if no_moments(net) else moments(net, x)
    rows = tuple(
        Placed(name, value, *_exact_mean(exact, name), *_percentile(drawn[name], value))
        for name, value in measured.items()
        if name in drawn
    )
    number = len(drawn["K"])
    compared = f"{number} {'draws in law' if in_law else 'random networks'} of this architecture and initialization"
    return ModuleComparison(net, rows, number, in_law, None if exact is None else exact.cv, compared)


def _real_networks(net: Network, x: Vector, networks: int | None, seed: int) -> dict[str, FloatArray]:
    """Real networks of any description: by plain NumPy where there is a reference, else torch modules, for K alone."""
    if isinstance(net, MLP) and net.norm is None:
        return _networks(net, x, networks, seed)
    from finwidth import empirical
    from finwidth.empirical.modules.table import number_of_weights

    affordable = max(1, min(_MOST_NETWORKS // 10, _WEIGHTS // number_of_weights(net)))
    number = affordable if networks is None else count("networks", networks)
    if isinstance(net, ResNet) and net.norm is None:
        return simulate_residual(net, x, number, np.random.default_rng(seed))
    ensemble = empirical.Ensemble(net, number, seed)
    return {"K": ensemble.kernels(check_input(net, x)[None], 0)[:, 0, 0].numpy()}


def _compare_in_module_law(
    law: ModuleLaw, x: Vector, tell: Callable[[int], object], *, networks: int | None, seed: int
) -> ModuleComparison:
    """K of a module of any kind among draws of its law."""
    X = module_law.one_input(law.module, x)
    K = module_law.kernel_of(law.module, X)
    number = _REDRAWN if networks is None else count("networks", networks)
    drawn = module_law.kernels_of_draws(law, X, number, seed, tell)
    row = Placed("K", K, None, None, *_percentile(drawn, K))
    return ModuleComparison(None, (row,), number, False, None, f"{number} {law.told}{law.doubt}")


def _measured_module(net: Network, module: nn.Module, x: Vector) -> dict[str, float]:
    """K of output 0 at the input, its parts where biases are trained, its update unless the activation is smooth."""
    from finwidth import empirical
    from finwidth.empirical.modules.described import DescribedModule

    X = check_input(net, x)[None]
    names = [name for name, each in module.named_parameters() if each.requires_grad]
    biases = [name for name in names if name.endswith("bias")]
    parts = {"K_w": [name for name in names if name not in biases], "K_b": biases} if biases else {"K": names}
    scale = module.scale if isinstance(module, DescribedModule) else None
    found = {part: float(empirical.ntk(module, X, outputs=0, parameters=p, scale=scale)) for part, p in parts.items()}
    found = {"K": sum(found.values()), **found}
    if not isinstance(net.activation, SmoothActivation):
        targets = np.zeros((1, net.widths[-1]))
        dK = empirical.sgd_update(module, X, targets, outputs=0, scale=scale, loss=_half_square)
        found["dK"] = float(dK)
    return found


def _half_square(output: torch.Tensor, _: object) -> torch.Tensor:
    """The loss sum N^2 / 2 of outputs in whatever shape they are, (1, outputs) or (1,)."""
    return output.square().sum() / 2


def _exact_mean(exact: KernelMoments | None, quantity: str) -> tuple[float | None, float | None]:
    """Mean and standard deviation over initializations."""
    if exact is None:
        return None, None
    if quantity == "dK":
        return float(exact.update["dK"]), None
    found = {"K": exact.K, "K_w": exact.K_w, "K_b": exact.K_b}[quantity]
    return float(found.mean), float(found.variance) ** 0.5


def _percentile(drawn: FloatArray, value: float) -> tuple[float, tuple[float, float]]:
    """Percentage of the draws below the value, plus half of the draws that are equal up to rounding; its interval."""
    same = np.isclose(drawn, value, rtol=_ROUNDING, atol=0)
    below = float(((drawn < value) & ~same).sum() + same.sum() / 2)
    return 100 * below / len(drawn), _interval(below, len(drawn))


def _interval(below: float, draws: int) -> tuple[float, float]:
    """In percent, with 95% confidence."""
    from scipy import stats

    least = float(stats.beta.ppf(0.025, below, draws - below + 1)) if below else 0.0
    most = float(stats.beta.ppf(0.975, below + 1, draws - below)) if below < draws else 1.0
    return 100 * least, 100 * most

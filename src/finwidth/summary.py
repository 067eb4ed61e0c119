"""What draws at one input tell of the kernel, beside the exact values: `finwidth.summarize`."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from finwidth import arguments
from finwidth.arguments import FloatArray, count
from finwidth.errors import FinwidthError
from finwidth.exact.moments import exact_values, moments, unsupported
from finwidth.networks.description import Network, check_network
from finwidth.networks.inputs import Vector
from finwidth.quantities import MOMENTS, Estimate, plain
from finwidth.sampling.one_input.importance import importance_estimates
from finwidth.sampling.one_input.sample import first_output, one_input_sampler, sample
from finwidth.sampling.sampler import afford_draws, draw_chunks
from finwidth.sampling.statistics.estimates import MomentAccumulators
from finwidth.sampling.statistics.quantile_sketch import SHOWN, QuantileSketch

if TYPE_CHECKING:
    import xarray as xr

METHODS = ("plain", "importance")
_WRITTEN = 3  # times the bytes of a draw, which is kept and written to a file, from a copy


@dataclass(frozen=True)
class Summary:
    """What `summarize` returns.

    Attributes
    ----------
    network, draws, seed
        As given.
    estimates
        Of the means that draws tell (K, K_w, K_b, their squares, K_w K_b, dK), with their standard errors, and whether
        both can be trusted. Of several outputs K is that of output 0, K_00, and dK its change under a step on all.
    exact
        Exact values of the same moments; None where there are none.
    K
        Quantiles of K and the moments of its logarithm; None of importance sampling, whose draws are weighted.
    """

    network: Network
    draws: int
    seed: int
    estimates: Mapping[str, Estimate]
    exact: Mapping[str, float] | None
    K: QuantileSketch | None

    @property
    def method(self) -> str:
        """``"plain"`` or ``"importance"``."""
        return METHODS[self.K is None]

    def to_json(self) -> dict[str, object]:
        """Plain types, as ``finwidth sample --json`` prints them."""
        document: dict[str, object] = {
            "draws": self.draws,
            "seed": self.seed,
            "estimates": {name: each.to_json() for name, each in self.estimates.items()},
            "exact": plain(None if self.exact is None else dict(self.exact)),
            "tilted": self.K is None,
        }
        return document if self.K is None else document | {"law": {"K": plain(self.K.to_json())}}

    def __str__(self) -> str:
        outputs = self.network.widths[-1]
        of = "" if outputs == 1 else f", output 0 of {outputs}"
        lines = [f"{self.network}: {self.draws} draws, {self.method}{of}"]
        for name, each in self.estimates.items():
            line = f"{MOMENTS[name].label}: {each.value:.6g} ± {each.se:.2g}"
            line += "" if self.exact is None else f", exactly {self.exact[name]:.6g}"
            lines.append(line if each.trust else f"{line}; not to be trusted: {each.verdict}")
        if self.K is not None:
            lines.append("Quantiles of K: " + ", ".join(f"{s:.0%} {self.K.quantile(s).value:.4g}" for s in SHOWN))
        return "\n".join(lines)


def summarize(
    net: Network,
    x: Vector,
    draws: int = 100_000,
    seed: int = 0,
    *,
    method: str = "plain",
    threads: int | None = None,
    device: str | None = None,
    progress: Callable[[int], object] | None = None,
) -> Summary:
    """Means, quantiles and their errors from draws of the kernel at one input, beside the exact values.

    The draws are those of `finwidth.sample`, or weighted ones, and none is kept: any number of them takes the same
    memory.  An estimate that cannot be trusted says so: the moments of deep narrow networks rest on rare ones, which
    plain draws miss and importance sampling makes (docs/theory/importance.md).  Quantiles are right to 0.1%
    (DDSketch; Masson, Rim and Lee 2019).

    Parameters
    ----------
    net, x
        The network, of those that `finwidth.sample` draws, and one input, shape (n_0,). Of several outputs the summary
        is of output 0, as `finwidth.moments` is; the others have the same law.
    draws, seed
        How many networks, and a whole number that fixes them.
    method
        ``"plain"``, or ``"importance"``: networks are drawn in proportion to what they contribute to the means, and
        weighted; for initial biases zero and one output, of an `MLP` with ReLU and of a `ResNet` with any two slopes.
    threads, device, progress
        As in `finwidth.sample`; importance sampling is on threads only.

    Raises
    ------
    FinwidthError
        If an argument is not allowed, the network is not one that is drawn so, or a draw overflows a double.

    Examples
    --------
    >>> import finwidth
    >>> net = finwidth.MLP([3, *[5] * 15, 1])    # the sum of 1/n_i is 3
    >>> plain, weighted = (finwidth.summarize(net, [1, 2, 2], method=each) for each in ("plain", "importance"))
    >>> plain.estimates["K^2"].trust, weighted.estimates["K^2"].trust
    (False, True)
    >>> abs(weighted.estimates["K^2"].value / weighted.exact["K^2"] - 1) < 0.02
    True
    >>> round(plain.K.quantile(0.5).value, 1)    # the median
    1.4
    """
    net, draws, method = check_network(net), count("draws", draws), arguments.one_of("method", method, METHODS)
    exact = None if unsupported(net) else exact_values(moments(net, x))
    if method == "importance":
        if device is not None:
            raise FinwidthError("importance sampling is on threads; leave device out, or take method='plain'")
        known = None if exact is None else dict(exact)
        found = importance_estimates(net, x, draws, seed, exact=known, threads=threads, progress=progress)
        return Summary(net, draws, seed, found, exact, None)
    sampler = one_input_sampler(net, x, device, first_output=True)
    chunks = draw_chunks(sampler, draws, seed, threads=threads, progress=progress)
    return _summary(net, chunks, draws, seed, exact)


def sample_and_summarize(net: Network, x: Vector, draws: int, seed: int) -> tuple[Summary, xr.Dataset]:
    """The draws of `finwidth.sample`, to be written to a file, and their summary."""
    exact = None if unsupported(net) else exact_values(moments(net, x))
    sampler = one_input_sampler(net, x)
    afford_draws(sampler, draws, 1, kept=_WRITTEN * sampler.kept)
    dataset = sample(net, x, draws, seed)
    columns = {str(name): column.to_numpy() for name, column in dataset.items()}
    return _summary(net, [first_output(columns)], draws, seed, exact), dataset


def _summary(
    net: Network, chunks: Iterable[Mapping[str, FloatArray]], draws: int, seed: int, exact: dict[str, float] | None
) -> Summary:
    totals, K = MomentAccumulators(), QuantileSketch()
    for drawn in chunks:
        K.add(drawn["K"])
        totals.add(drawn)
    return Summary(net, draws, seed, totals.estimates(exact), exact, K)

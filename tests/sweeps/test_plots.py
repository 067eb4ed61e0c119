"""Pictures: what they show is what the store holds, one command each."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xarray as xr
from matplotlib.figure import Figure

import finwidth
from finwidth import FinwidthError
from finwidth.sweeps import curves, plots

pytest.importorskip("zarr", reason="needs the sweep extra")

CONFIG: dict[str, Any] = {
    "quantities": ["exact", "bounds", "sampled"],
    "axes": {"depth": [1, 2, 4, 8, 16], "width": [4, 8, 16, 32], "n_0": 2},
    "sampled": {"draws": 3000},
}

SEVERAL: dict[str, Any] = {
    "gram": {"inputs": ["1,0", "0.6,0.8", "ones"], "targets": [1, -1, 1], "draws": 60},
    "training": {"inputs": ["1,0", "0,1"], "targets": [1, -1], "steps": 2, "lr": 0.01, "draws": 5},
}


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("plots") / "a.zarr"
    finwidth.sweep(CONFIG | {"quantities": [*CONFIG["quantities"], "gram", "training"]} | SEVERAL, path)
    return path


BEGINS = {".pdf": b"%PDF-", ".svg": b"<?xml", ".png": b"\x89PNG"}
FILES = [(picture, suffix) for picture in ("phase", "collapse", "update") for suffix in BEGINS]
FILES += [("moments", ".pdf"), ("gram", ".svg"), ("training", ".png")]  # drawn by the same code, and slow to write


@pytest.mark.parametrize(("picture", "suffix"), FILES)
def test_every_picture_as_every_kind_of_file(store: Path, tmp_path: Path, picture: str, suffix: str) -> None:
    target = tmp_path / f"figure{suffix}"
    plots.plot(store, picture, target)
    assert target.read_bytes().startswith(BEGINS[suffix])
    again = tmp_path / f"again{suffix}"
    plots.plot(store, picture, again)
    assert target.read_bytes() == again.read_bytes()  # no date in it


def colours(axes: Any) -> Any:
    """The numbers behind the colours of a panel, shape (depth, width), masked where there are none."""
    return np.ma.asarray(axes.collections[0].get_array()).reshape(4, 5).T


def test_the_phase_diagram_shows_the_values(store: Path) -> None:
    found = plots.cut(finwidth.sweeps.read(store), [])
    for source in ("exact", "sampled"):
        left, right = plots.phase(found, source).axes[:2]
        for axes, exact in ((left, found.exact_cv), (right, abs(found.exact_dK / found.exact_mean))):
            drawn = colours(axes)
            there = ~np.ma.getmaskarray(drawn) & (exact.to_numpy() > 0)
            assert there.sum() == (16 if source == "exact" else there.sum())
            tolerance = 1e-12 if source == "exact" else 0.5  # the draws of another law would be far off
            np.testing.assert_allclose(drawn[there], exact.to_numpy()[there], rtol=tolerance)
    untrusted = int((~found.sampled_trust.sel(moment="K^2")).sum())
    mask = np.ma.getmaskarray(colours(plots.phase(found, "sampled").axes[0]))
    assert mask.sum() == untrusted > 0


def test_colours_have_plain_numbers() -> None:
    axes = {"depth": [2, 4, 8, 16], "width": [16, 32, 64], "n_0": 2}
    figure = plots.phase(finwidth.sweep({"quantities": ["exact"], "axes": axes}))
    figure.draw_without_rendering()
    told = {each.get_text() for each in figure.axes[2].get_yticklabels(which="both")}
    assert told == {"", "0.1", "0.2", "0.5", "1", "2", "5"}  # with the next ones outside


def test_pictures_are_drawn_into_axes_that_are_given(store: Path) -> None:
    found = plots.cut(finwidth.sweeps.read(store), [])
    whole = Figure()
    top, bottom = whole.subplots(2, 2)
    assert plots.phase(found, ax=top) is whole
    assert plots.collapse(found, ax=bottom[0]) is whole
    assert plots.update_collapse(found, ax=bottom[1]) is whole
    assert all(axes.has_data() for axes in (*top, *bottom))
    assert whole.get_suptitle() == ""
    title = "relu, gaussian weights, $|x|^2/n_0 = 1$"
    assert bottom[0].get_title() == bottom[1].get_title() == plots.phase(found).get_suptitle() == title
    with pytest.raises(finwidth.FinwidthError, match="ax holds 1 axes, and the figure has 2 panels"):
        plots.phase(found, ax=bottom[:1])


def test_the_collapse_shows_the_values(store: Path) -> None:
    found = plots.cut(finwidth.sweeps.read(store), [])
    axes = plots.collapse(found).axes[0]
    lines = {str(line.get_label()): line for line in axes.get_lines()}
    for width in (4, 8, 16, 32):
        x, y = (np.asarray(each, dtype=float) for each in lines[f"$n={width}$"].get_data())
        for depth, beta, value in zip(found.depth.to_numpy(), x, y, strict=True):
            net = finwidth.MLP([2, *[width] * (depth - 1), 1])
            exact = finwidth.moments(net, [1.0, 1.0])
            assert beta == pytest.approx(float(net.beta_hidden))
            assert value == pytest.approx(float(exact.second_moment) / float(exact.mean) ** 2)
    x, y = (np.asarray(each, dtype=float) for each in lines[r"paper: $e^{5\beta}$"].get_data())
    np.testing.assert_allclose(y, np.exp(5 * x))


def test_exact_lines_differ_by_more_than_colour(store: Path) -> None:
    found = plots.cut(finwidth.sweeps.read(store), [])
    exact = found.drop_vars([name for name in found if str(name).startswith("sampled_")])
    for draw in (plots.collapse, plots.update_collapse):
        lines = [line for line in draw(exact).axes[0].get_lines() if str(line.get_label()).startswith("$n=")]
        assert len({line.get_marker() for line in lines}) == len(lines) == 4
        assert not any(np.any(np.asarray(line.get_ydata(), float) == 0) for line in draw(exact).axes[0].get_lines())


def test_the_update_shows_the_values(store: Path) -> None:
    found = plots.cut(finwidth.sweeps.read(store), [])
    axes = plots.update_collapse(found).axes[0]
    line = next(line for line in axes.get_lines() if line.get_label() == "$n=8$")
    x, y = (np.asarray(each, dtype=float) for each in line.get_data())
    exact = finwidth.moments(finwidth.MLP([2, *[8] * 3, 1]), [1.0, 1.0])
    assert x[2] == pytest.approx(16 * 2 / (8 * 2))  # d^2 |x|^2 / (n n_0)
    assert y[2] == pytest.approx(-float(exact.update["dK"]) / float(exact.mean))
    assert np.isnan(y[0])  # one layer has no update
    assert axes.get_xlabel() == r"$d^2\,|x|^2/(n\,n_0)$"
    unit = finwidth.sweep(CONFIG | {"axes": CONFIG["axes"] | {"input": "unit"}})
    assert plots.update_collapse(plots.cut(unit, [])).axes[0].get_xlabel() == r"$d^2/(n\,n_0)$"


def test_samples_alone_are_enough() -> None:
    found = plots.cut(finwidth.sweep(CONFIG | {"quantities": ["sampled"]}), [])
    labels = [text.get_text() for text in plots.collapse(found).axes[0].get_legend().get_texts()]  # type: ignore[union-attr]
    assert "$n=16$" in labels
    assert "sampled, 2 s.e." in labels
    assert len(plots.phase(found).axes) == 4  # two panels, two bars


def test_what_cannot_be_drawn_is_said(tmp_path: Path, store: Path) -> None:
    axes = {"depth": [2, 3], "width": [4, 8], "n_0": 2, "law": ["gaussian", "uniform"]}
    found = finwidth.sweep({"quantities": ["exact"], "axes": axes})
    with pytest.raises(FinwidthError, match=r"several values of law: gaussian, uniform; choose one with --at law"):
        plots.cut(found, [])
    assert plots.cut(found, ["law=uniform"]).law == "uniform"
    with pytest.raises(FinwidthError, match="the values of law are gaussian, uniform"):
        plots.cut(found, ["law=laplace"])
    with pytest.raises(FinwidthError, match="AXIS is one of law, depth, width"):
        plots.cut(found, ["nothing=1"])
    with pytest.raises(FinwidthError, match="the store has no sampled values; it has exact"):
        plots.phase(plots.cut(found, ["law=uniform"]), "sampled")
    by_ratio = finwidth.sweep({"quantities": ["exact"], "axes": {"depth": [2, 3], "ratio": [0.5, 1.0], "n_0": 2}})
    for picture in (plots.phase, plots.collapse, plots.update_collapse):
        with pytest.raises(FinwidthError, match="the axes depth and width, and not depth over width, ratio"):
            picture(plots.cut(by_ratio, []))
    for arguments, message in (
        (("phase", "a.jpeg"), "must end in .pdf, .svg, .png"),
        (("phase", "none/a.pdf"), "cannot write .*: there is no folder"),
        (("cake", "a.pdf"), "is not known; choose from phase, collapse, update, moments, gram, training"),
    ):
        with pytest.raises(FinwidthError, match=message):
            plots.plot(store, arguments[0], tmp_path / arguments[1])
    with pytest.raises(FinwidthError, match="source is for phase"):
        plots.plot(store, "collapse", tmp_path / "a.pdf", source="exact")


def test_pictures_of_the_expansion(tmp_path: Path) -> None:
    """Of smooth activations: what first order says where it serves, without the paper's forms."""
    axes = {"depth": [2, 4, 8], "width": [16, 64, 256], "n_0": 2, "activation": "tanh"}
    finwidth.sweep({"quantities": ["expansion"], "axes": axes}, tmp_path / "wide.zarr")
    for picture in ("phase", "collapse", "update", "moments"):
        plots.plot(tmp_path / "wide.zarr", picture, tmp_path / f"{picture}.png")
    found = plots.cut(finwidth.sweeps.read(tmp_path / "wide.zarr"), [])
    left = plots.phase(found).axes[0]
    drawn: Any = np.ma.asarray(left.collections[0].get_array()).reshape(3, 3).T
    serves = found.expansion_serves.to_numpy()
    assert (~np.ma.getmaskarray(drawn)).tolist() == serves.tolist()
    assert drawn.filled()[serves] == pytest.approx(found.expansion_cv.to_numpy()[serves])
    labels = plots.collapse(found).axes[0].get_legend_handles_labels()[1]
    assert labels == [f"$n={n}$" for n in (16, 64, 256) if found.expansion_serves.sel(width=n).any()]
    with pytest.raises(FinwidthError, match="has no exact values; it has expansion"):
        plots.phase(found, "exact")


def drawn_at(axes: Any, colour: str) -> tuple[Any, Any, Any]:
    """Depths, values and bars of the samples in one colour, trusted or not."""
    points = [line.get_xydata() for line in axes.get_lines() if line.get_color() == colour and len(line.get_xdata())]
    bars = [each for each in axes.containers if each.lines[0].get_color() == colour]
    segments = bars[0].lines[2][0].get_segments() if bars else []
    together = np.concatenate(points)
    return together[:, 0], together[:, 1], segments


COLOURS = ("#D55E00", "#0072B2", "#009E73", "#E69F00")


def test_the_kernel_matrix_shows_the_values(store: Path) -> None:
    found = plots.cut(finwidth.sweeps.read(store), [])
    figure = curves.matrix_over_depth(found)
    panels = figure.axes
    assert len(panels) == 9
    assert [axes.get_title() for axes in panels[:3]] == [
        "a: 1,0, b: 1,0",
        "a: 1,0, b: 0.6,0.8",
        "a: 0.6,0.8, b: 0.6,0.8",
    ]
    assert figure.get_suptitle() == "relu, gaussian weights\n3 of 6 entries, $m$: mean of $K$"
    mean, se = found.gram_mean.sel(width=16), found.gram_se.sel(width=16)
    K = [mean.sel(gram_moment="K")[:, a, b].to_numpy() for a, b in ((0, 0), (0, 1), (1, 1))]
    square, update = (mean.sel(gram_moment=name)[:, 0, 1].to_numpy() for name in ("K^2", "dK"))
    for place, wanted in ((1, K[1]), (4, square / (K[0] * K[2])), (7, update / np.sqrt(K[0] * K[2]))):
        x, y, _ = drawn_at(panels[place], COLOURS[2])
        order = np.argsort(x)
        assert x[order].tolist() == found.depth.to_numpy().tolist()
        np.testing.assert_allclose(y[order], wanted)
    sure = found.assign(gram_trust=xr.ones_like(found.gram_trust))
    errors = [se.sel(gram_moment="K")[:, a, a].to_numpy() for a in (0, 1)]
    of_square = se.sel(gram_moment="K^2")[:, 0, 1].to_numpy()
    relative = of_square / square + errors[0] / K[0] + errors[1] / K[2]
    *_, segments = drawn_at(curves.matrix_over_depth(sure).axes[4], COLOURS[2])
    half = [(top - bottom) / 2 for (_, bottom), (_, top) in segments]
    np.testing.assert_allclose(half, 2 * relative * square / (K[0] * K[2]), atol=1e-12)
    part = curves.matrix_over_depth(found.isel(gram_input=[2], gram_input_=[2])).axes
    assert [part[0].get_title(), len(part)] == ["a: ones, b: ones", 3]


D = "depth $d$ (weight layers)"


def test_training_shows_the_values(store: Path) -> None:
    found = plots.cut(finwidth.sweeps.read(store), [])
    panels = curves.training_curves(found).axes
    assert [axes.get_title() for axes in panels[:3]] == ["loss", "drift", "alignment"]
    assert [panels[row].get_ylabel() for row in (0, 3, 6)] == [f"{D}: {d}" for d in (1, 4, 16)]
    for column, name in enumerate(("loss", "drift", "alignment")):
        line = next(each for each in panels[3 + column].get_lines() if each.get_color() == COLOURS[1])
        assert np.asarray(line.get_xdata()).tolist() == [0, 2]
        wanted = found.training_mean.sel(depth=4, width=8, followed=name)
        np.testing.assert_allclose(np.asarray(line.get_ydata(), float), wanted)


def test_every_moment_is_drawn(store: Path) -> None:
    found = plots.cut(finwidth.sweeps.read(store), [])
    panels = curves.moments_over_depth(found).axes
    assert len(panels) == found.sizes["moment"] == 8
    by_title = {axes.get_title(): axes for axes in panels}
    line = next(each for each in by_title[r"$\mathbb{E}[K^2]$"].get_lines() if each.get_label() == "$n=8$")
    exact = finwidth.moments(finwidth.MLP([2, 8, 8, 8, 1]), [1.0, 1.0])
    assert np.asarray(line.get_ydata(), float)[2] == pytest.approx(float(exact.second_moment))
    x, y, _ = drawn_at(by_title[r"$\mathbb{E}[K_b]$"], COLOURS[3])
    wanted = found.sampled_mean.sel(moment="K_b", width=32)
    np.testing.assert_allclose(y[np.argsort(x)], wanted)


def test_pictures_of_quantiles() -> None:
    """Of normalised networks medians, with their errors; their means need not exist."""
    axes = {"depth": [2, 4], "width": [8, 32], "n_0": 2, "norm": "rms"}
    config = {"quantities": ["sampled", "gram", "training"], "axes": axes, "sampled": {"draws": 500}}
    found = plots.cut(finwidth.sweep(config | SEVERAL), [])
    assert curves.moments_over_depth(found).axes[0].get_title() == r"$\mathrm{median}(K)$"
    _, y, _ = drawn_at(curves.matrix_over_depth(found).axes[1], COLOURS[1])
    medians = found.gram_quantile.sel(gram_moment="K", quantile=0.5, width=32)[:, 0, 1]
    np.testing.assert_allclose(y, medians)
    _, spreads, _ = drawn_at(curves.matrix_over_depth(found).axes[3], COLOURS[1])
    of_first = found.gram_quantile.sel(gram_moment="K", width=32)[:, 0, 0]
    low, middle, high = (of_first.sel(quantile=share) for share in (0.16, 0.5, 0.84))
    np.testing.assert_allclose(spreads, (high - low) / (2 * middle))
    assert curves.training_curves(found).axes[0].get_title() == "median loss"


def test_the_forms_alone_and_one_depth_alone() -> None:
    found = plots.cut(finwidth.sweep({"quantities": ["bounds"], "axes": CONFIG["axes"]}), [])
    figure = plots.phase(found)
    assert figure.get_suptitle().endswith("the paper's forms, which hold up to constants")
    line = next(each for each in plots.collapse(found).axes[0].get_lines() if each.get_label() == "$n=8$")
    forms = finwidth.bounds(finwidth.MLP([2, 8, 8, 8, 1]), [1.0, 1.0]).form
    assert np.asarray(line.get_ydata(), float)[2] == pytest.approx(forms["K^2"] / forms["K"] ** 2 / np.exp(5))
    for axes in (plots.collapse(found).axes[0], plots.update_collapse(found).axes[0]):
        drawn = [np.asarray(each.get_ydata(), float) for each in axes.get_lines() if str(each.get_label())[:2] == "$n"]
        assert axes.get_ylim()[0] < min(each.min() for each in map(np.ma.masked_invalid, drawn))
    one = finwidth.sweep({"quantities": ["exact"], "axes": {"depth": 4, "width": [8, 16], "n_0": 2}})
    for draw in (plots.phase, plots.collapse, plots.update_collapse, curves.moments_over_depth):
        assert draw(plots.cut(one, [])).axes[0].has_data()


def test_a_point_without_neighbours_is_seen() -> None:
    """A line of one point has nothing but its marker."""
    axes = {"depth": [2, 4, 8], "width": [16, 256], "n_0": 2, "activation": "tanh"}
    found = plots.cut(finwidth.sweep({"quantities": ["expansion"], "axes": axes}), [])
    assert found.expansion_serves.sel(width=16).sum() == 1
    for draw in (plots.collapse, plots.update_collapse):
        line = next(each for each in draw(found).axes[0].get_lines() if each.get_label() == "$n=16$")
        assert (line.get_marker(), line.get_markevery()) == ("o", None)


def test_what_a_store_does_not_hold_is_said(tmp_path: Path) -> None:
    from finwidth.cli.sweeps import PICTURES

    assert tuple(plots.PICTURES) == PICTURES
    axes = {"depth": [2, 3], "width": [4, 8], "n_0": 2}
    exact = plots.cut(finwidth.sweep({"quantities": ["exact"], "axes": axes}), [])
    gram = plots.cut(finwidth.sweep({"quantities": ["gram"], "axes": axes, "gram": SEVERAL["gram"]}), [])
    for draw, found, message in (
        (curves.matrix_over_depth, exact, "no kernel matrices; the quantity gram of a sweep computes them"),
        (curves.training_curves, exact, "no training; the quantity training of a sweep computes it"),
        (curves.moments_over_depth, gram, "no exact, expansion or sampled values, so there are no moments"),
        (plots.collapse, gram, "none of exact, expansion, sampled, bounds; of others there are gram and training"),
        (plots.phase, gram, "it has none of exact, expansion, sampled, bounds"),
    ):
        with pytest.raises(FinwidthError, match=message):
            draw(found)
    with pytest.raises(FinwidthError, match="ax holds 1 axes, and the figure has 9 panels"):
        curves.matrix_over_depth(gram, ax=[Figure().subplots()])

"""Pictures: what they show is what the store holds, one command each."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.figure import Figure

import finwidth
from finwidth import FinwidthError
from finwidth.sweeps import plots

pytest.importorskip("zarr", reason="needs the sweep extra")

CONFIG: dict[str, Any] = {
    "quantities": ["exact", "bounds", "sampled"],
    "axes": {"depth": [1, 2, 4, 8, 16], "width": [4, 8, 16, 32], "n_0": 2},
    "sampled": {"draws": 3000},
}


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("plots") / "a.zarr"
    finwidth.sweep(CONFIG, path)
    return path


@pytest.mark.parametrize("picture", plots.PICTURES)
@pytest.mark.parametrize(("suffix", "begins"), [(".pdf", b"%PDF-"), (".svg", b"<?xml"), (".png", b"\x89PNG")])
def test_every_picture_as_every_kind_of_file(
    store: Path, tmp_path: Path, picture: str, suffix: str, begins: bytes
) -> None:
    target = tmp_path / f"figure{suffix}"
    plots.plot(store, picture, target)
    assert target.read_bytes().startswith(begins)
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
        with pytest.raises(FinwidthError, match="on each of the axes depth and width"):
            picture(plots.cut(by_ratio, []))
    for arguments, message in (
        (("phase", "a.jpeg"), "must end in .pdf, .svg, .png"),
        (("phase", "none/a.pdf"), "cannot write .*: there is no folder"),
        (("cake", "a.pdf"), "is not known; choose from phase, collapse, update"),
    ):
        with pytest.raises(FinwidthError, match=message):
            plots.plot(store, arguments[0], tmp_path / arguments[1])
    with pytest.raises(FinwidthError, match="source is for phase"):
        plots.plot(store, "collapse", tmp_path / "a.pdf", source="exact")


def test_pictures_of_the_expansion(tmp_path: Path) -> None:
    """Of smooth activations: what first order says where it serves, without the paper's forms."""
    axes = {"depth": [2, 4, 8], "width": [16, 64, 256], "n_0": 2, "activation": "tanh"}
    finwidth.sweep({"quantities": ["expansion"], "axes": axes}, tmp_path / "wide.zarr")
    for picture in plots.PICTURES:
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

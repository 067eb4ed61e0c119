"""Outputs appear whole or not at all, and replace nothing of the user's."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xarray as xr
from matplotlib.figure import Figure

import finwidth
from finwidth import FinwidthError, outputs
from finwidth.cli import main as cli
from finwidth.outputs import SOURCE, check, replacing, replacing_in, wrote
from finwidth.paper import page
from finwidth.plots.style import save_as
from finwidth.report import FILES, MANIFEST, report, verify, write
from forks import Forks, forks

DRAWS = xr.Dataset({"K": ("draw", np.arange(3.0))}, attrs={"seed": 1})
GRID = 'quantities = ["exact"]\nseed = {seed}\n[axes]\ndepth = [2, 4]\nwidth = {width}\nn_0 = 2\n'


def figure() -> Figure:
    drawn = Figure()
    drawn.add_subplot().plot([1, 2], label="$x$")
    return drawn


def partials(folder: Path) -> list[Path]:
    return [*folder.rglob(".finwidth-*.partial")]


@pytest.fixture(scope="module")
def reports(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Two reports of different draws."""
    folders = [tmp_path_factory.mktemp("report") for _ in range(2)]
    for seed, folder in enumerate(folders):
        write(report(finwidth.MLP([2, 8, 1]), [1, 2], 500, seed), [1, 2], folder)
    return folders


def ours(folder: Path) -> list[Path]:
    """A file of every format, written by finwidth."""
    pytest.importorskip("jinja2")
    outputs.write_netcdf(DRAWS, folder / "draws.nc")
    save_as(figure(), *(folder / f"figure{suffix}" for suffix in (".png", ".pdf", ".svg")))
    page.write_markdown(folder / "page.md", [], [])
    page.write_page(folder / "page.html", [], [])
    return [*folder.iterdir()]


def theirs(folder: Path) -> list[Path]:
    """Files that finwidth did not write, some made from such that it did."""
    folder.mkdir()
    np.save(folder / "in.npy", np.eye(2))
    (folder / "config.toml").write_text(GRID)
    (folder / "empty.nc").touch()
    (folder / "notes.md").write_text(f"# About\n<!-- {SOURCE} -->\n")
    (folder / "page.html").write_text("<!DOCTYPE html>\n<html><body>finwidth 0.1.0</body></html>")
    (folder / "data.json").write_text(json.dumps({"name": "x", "source": SOURCE}))
    DRAWS.assign_attrs(finwidth_version="0.1.0", title=SOURCE).to_netcdf(folder / "own.nc", engine="scipy")
    for suffix in (".png", ".pdf", ".svg"):
        figure().savefig(folder / f"own{suffix}")
        save_as(figure(), folder / f"ours{suffix}")
    drawing = (folder / "ours.svg").read_text()
    (folder / "edited.svg").write_text(drawing.replace("<svg ", "<!-- Created with Inkscape -->\n<svg ", 1))
    pdf = (folder / "ours.pdf").read_bytes()
    thesis = (folder / "own.pdf").read_bytes()
    end = thesis.rindex(b"\nxref")
    information = pdf[pdf.rindex(b"\n", 0, pdf.rindex(b" 0 obj\n<< /Creator")) : pdf.rindex(b"xref\n")]
    (folder / "thesis.pdf").write_bytes(thesis[:end] + information.rstrip(b"\n") + thesis[end:])  # as pdfTeX copies it
    (folder / "annotated.pdf").write_bytes(
        pdf + b"99 0 obj\n<< >>\nendobj\nxref\n0 0\ntrailer\n<< >>\nstartxref\n1\n%%EOF\n"
    )
    for suffix in (".png", ".pdf", ".svg"):
        (folder / f"ours{suffix}").unlink()
    return [*folder.iterdir()]


def test_what_finwidth_wrote_is_recognised_and_replaced(tmp_path: Path, reports: list[Path]) -> None:
    files = ours(tmp_path)
    assert len(files) == 6
    for path in (*files, *reports[0].iterdir()):
        assert wrote(path), path
    check(*files)
    outputs.check_folder(reports[0], FILES)
    outputs.write_netcdf(DRAWS + 1, tmp_path / "draws.nc")
    assert xr.load_dataset(tmp_path / "draws.nc", engine="scipy").K[0] == 1


def test_what_others_wrote_is_refused_and_left(tmp_path: Path) -> None:
    for path in theirs(tmp_path / "theirs"):
        before = path.read_bytes()
        with pytest.raises(FinwidthError, match="a file that finwidth did not write, and it is left as it is"):
            check(path)
        with pytest.raises(FinwidthError, match="did not write"), replacing(path):
            pytest.fail("not reached")
        assert path.read_bytes() == before


def test_the_mark_is_found_whatever_the_file_holds(tmp_path: Path) -> None:
    """Many dimensions before the mark of a netCDF file; many objects after that of a PDF."""
    many = {f"a rather long name {i}": (f"the dimension number {i}", np.zeros(1)) for i in range(60)}
    outputs.write_netcdf(xr.Dataset(many), tmp_path / "a.nc")
    drawn = Figure()
    for axes in drawn.subplots(4, 4).ravel():
        axes.imshow(np.eye(2))
    save_as(drawn, tmp_path / "a.pdf", tmp_path / "a.png", tmp_path / "a.svg")
    assert all(map(wrote, tmp_path.iterdir()))


def test_a_file_is_as_the_umask_says_and_a_link_stays_one(tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "link.nc").symlink_to("elsewhere/draws.nc")
    outputs.write_netcdf(DRAWS, tmp_path / "link.nc")  # it leads nowhere yet
    os.link(tmp_path / "elsewhere" / "draws.nc", tmp_path / "other.nc")
    before = (tmp_path / "other.nc").read_bytes()
    umask = os.umask(0o027)
    try:
        outputs.write_netcdf(DRAWS + 1, tmp_path / "link.nc")
    finally:
        os.umask(umask)
    assert (tmp_path / "link.nc").is_symlink()
    assert stat.S_IMODE((tmp_path / "link.nc").stat().st_mode) == 0o640
    assert xr.load_dataset(tmp_path / "link.nc", engine="scipy").K[0] == 1
    assert (tmp_path / "other.nc").read_bytes() == before  # another name of what was replaced
    assert not partials(tmp_path)


@pytest.mark.parametrize("error", [OSError(28, "full"), KeyboardInterrupt(), ZeroDivisionError(), FinwidthError("no")])
def test_whatever_happens_in_between_changes_nothing(tmp_path: Path, error: BaseException) -> None:
    files = [tmp_path / name for name in ("a.md", "b.md")]
    for path in files:
        path.write_text(f"<!-- {SOURCE} -->")
    expected = FinwidthError if isinstance(error, OSError) else type(error)
    with pytest.raises(expected) as told, replacing(*files) as new:  # noqa: PT012 - it is the end that raises
        for each in new:
            each.write_text("new")
        raise error
    if isinstance(error, OSError):
        assert "no space is left; what was there before is unchanged; make room" in str(told.value)
    assert {path.read_text() for path in files} == {f"<!-- {SOURCE} -->"}
    assert {*tmp_path.iterdir()} == {*files}
    with pytest.raises(expected), replacing_in(tmp_path / "new" / "folder", ["a"]):
        raise error
    assert {*tmp_path.iterdir()} == {*files}  # the folders that were made are gone


def test_what_appears_meanwhile_is_left(tmp_path: Path) -> None:
    path = tmp_path / "draws.nc"
    with pytest.raises(FinwidthError, match="did not write"), replacing(path) as [partial]:  # noqa: PT012
        partial.write_text("ours")
        path.write_text("theirs")
    assert path.read_text() == "theirs"
    assert not partials(tmp_path)


def test_what_a_kill_left_is_in_nobodys_way(tmp_path: Path) -> None:
    left = tmp_path / ".finwidth-0123456789abcdef.partial"
    left.write_text("half")
    for content in ("old", "new"):
        with replacing_in(tmp_path, ["a", "b"]) as partials:
            for partial in partials.values():
                partial.write_text(f"<!-- {SOURCE} -->{content}")
    assert left.read_text() == "half"
    assert {path.name for path in tmp_path.iterdir()} == {left.name, "a", "b"}


STEPS = """
import os, signal, sys
from pathlib import Path
from finwidth.outputs import SOURCE, replacing_in

def kill_at(steps):
    def watch(event, given):
        global left
        if event in {"open", "os.rename", "os.remove", "os.mkdir"} and str(given[0]).startswith(sys.argv[1]):
            left -= 1
            if left < 0:
                os.kill(os.getpid(), 9)
    global left
    left = steps
    sys.addaudithook(watch)

for steps in range(100):
    pid = os.fork()
    if not pid:
        kill_at(steps)
        with replacing_in(Path(sys.argv[1]) / str(steps), ["a", "b", "c"]) as partials:
            for partial in partials.values():
                partial.write_text(f"<!-- {SOURCE} -->new")
        os._exit(0)
    if os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0:
        print(steps)
        break
"""


def test_a_kill_at_every_step_leaves_old_or_new(tmp_path: Path) -> None:
    for number in range(100):
        (tmp_path / str(number)).mkdir()
        for name in "abc":
            (tmp_path / str(number) / name).write_text(f"<!-- {SOURCE} -->old")
    found = subprocess.run([sys.executable, "-c", STEPS, str(tmp_path)], stdout=subprocess.PIPE, check=True, timeout=60)
    steps = int(found.stdout)
    seen = set()
    for number in range(steps):
        state = [(tmp_path / str(number) / name).read_text()[-3:] for name in "abc"]
        assert state == sorted(state)  # "new" before "old": one by one, in order
        seen.add(state.count("new"))
    assert seen == {0, 1, 2}
    assert steps > 12  # opened three times each, and renamed


def test_where_no_file_can_be(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file.npy").touch()
    (tmp_path / "folder").mkdir()
    (tmp_path / "loop").symlink_to("loop")
    for store, name in (("a.zarr", "zarr.json"), ("b.zarr", ".zgroup"), ("c", ".zattrs")):
        (tmp_path / store / "inner").mkdir(parents=True)
        (tmp_path / store / name).write_text("{}")
    (tmp_path / "into").symlink_to("a.zarr/inner")
    os.mkfifo(tmp_path / "pipe")
    for path, message in {
        "folder": "it is a folder",
        "": "it is a folder",
        "folder/none/x.nc": "there is no folder",
        "file.npy/x.nc": "Not a directory",
        "loop": "symbolic links",
        "x" * 300: "name too long",
        "x" * 5000: "name too long",
        "pipe": "it is a device or a pipe",
        "/dev/null": "it is a device or a pipe",
        "/dev/full": "it is a device or a pipe",
        "a.zarr/zarr.json": "is a Zarr store",
        "a.zarr/new.nc": "is a Zarr store",
        "./folder/../a.zarr/inner/new.nc": "is a Zarr store",
        "into/new.nc": "is a Zarr store",
        "b.zarr/new.nc": "is a Zarr store",
        "c/inner/new.nc": "is a Zarr store",
    }.items():
        with pytest.raises(FinwidthError, match=f"cannot write .*{message}") as told:
            check(Path(path))
        assert len(str(told.value)) < 1000
    for path in ("a.zarr", "a.zarr/new", "c/inner/new/er", "file.npy", "file.npy/report", "loop", "pipe", "x" * 300):
        with pytest.raises(FinwidthError, match="cannot write"):
            outputs.check_folder(Path(path), FILES)
    for one, other in (("x.nc", "x.nc"), ("x.nc", "./folder/../x.nc")):
        with pytest.raises(FinwidthError, match="two outputs go to"):
            check(Path(one), None, Path(other))
    assert check(None, Path("folder/x.nc")) == [tmp_path / "folder" / "x.nc"]
    outputs.check_folder(Path("folder/new/er"), FILES)
    there = {*tmp_path.iterdir()}
    for path in ("x" * 300, f"new/{'x' * 300}"):
        with pytest.raises(FinwidthError, match=r"cannot write .*name too long"), replacing_in(Path(path), ["a"]):
            pass
    assert {*tmp_path.iterdir()} == there


def test_a_report_of_two_is_told(tmp_path: Path, reports: list[Path]) -> None:
    for number, folder in enumerate(reports):
        verify(shutil.copytree(folder, tmp_path / str(number)))
    changed = [name for name in FILES if (tmp_path / "0" / name).read_bytes() != (tmp_path / "1" / name).read_bytes()]
    assert {"report.json", "law.png", "law.pdf", MANIFEST} <= {*changed}
    for count in range(1, len(changed)):
        mixed = shutil.copytree(tmp_path / "0", tmp_path / f"mixed{count}")
        for name in changed[:count]:
            shutil.copy(tmp_path / "1" / name, mixed / name)
        with pytest.raises(FinwidthError, match=r"is not whole: .* belongs to another report"):
            verify(mixed)
    for damage in ("", "{", "[]", '{"files": {}}', '{"files": {"law.png": 1}}', '{"files": 3}', "[" * 10**5):
        (tmp_path / "0" / MANIFEST).write_text(damage)
        with pytest.raises(FinwidthError, match="there is no whole report"):
            verify(tmp_path / "0")
    (tmp_path / "1" / "law.pdf").unlink()
    with pytest.raises(FinwidthError, match=r"no whole report .*law\.pdf"):
        verify(tmp_path / "1")
    with pytest.raises(FinwidthError, match="there is no whole report"):
        verify(tmp_path / "none")


SEEDS = (2**31 - 1, 2**31, 2**62, 2**63 - 1, 2**64, 2**100)


@pytest.mark.parametrize("seed", SEEDS)
def test_any_seed_goes_into_any_file(tmp_path: Path, seed: int) -> None:
    net, X = finwidth.MLP([2, 4, 1]), np.eye(2)
    config: dict[str, Any] = {"quantities": ["sampled"], "seed": seed, "sampled": {"draws": 100}}
    config["axes"] = {"depth": [2, 3], "width": 4, "n_0": 2}
    for number, found in enumerate(
        (
            finwidth.sample(net, [1, 2], 10, seed),
            finwidth.train(net, X, [1, -1], 1, 0.1, 1, seed),
            finwidth.sample_gram(net, X, 2, seed),
            finwidth.sweep(config),
        )
    ):
        assert int(found.attrs["seed"]) == seed
        path = tmp_path / f"{number}.nc"
        outputs.write_netcdf(found, path)
        with xr.open_dataset(path, engine="scipy") as stored:
            assert int(stored.attrs["seed"]) == seed
            assert found.equals(stored.drop_attrs()[[*found]])
        found.to_netcdf(path, engine="scipy")  # a user's own way
    assert json.loads(json.dumps(report(net, [1, 2], 10, seed).to_json()))["seed"] == seed


def test_whole_numbers_of_any_size_are_kept_exactly(tmp_path: Path) -> None:
    widths = {"small": [4, 2**31 - 1], "large": [4, 2**53], "larger": [4, 2**53 + 1, 2**62]}
    for name, values in widths.items():
        outputs.write_netcdf(xr.Dataset(coords={"width": values}), tmp_path / f"{name}.nc")
        stored = xr.load_dataset(tmp_path / f"{name}.nc", engine="scipy").width
        assert [int(each) for each in stored.to_numpy()] == values
        assert stored.dtype.kind == {"small": "i", "large": "f", "larger": "O"}[name]


@pytest.fixture
def call(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Any:
    """A command, here: its status and what it says on standard error."""

    def call(line: str) -> tuple[int, str]:
        monkeypatch.setattr(sys, "argv", ["finwidth", *line.split()])
        with pytest.raises(SystemExit) as end:
            cli.main()
        return int(end.value.code or 0), capsys.readouterr().err

    return call


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder with inputs, and a store."""
    monkeypatch.chdir(tmp_path)
    np.save("in.npy", np.arange(1.0, 3))
    np.save("X.npy", np.eye(2))
    Path("c.toml").write_text(GRID.format(seed=2**62, width=[4, 8]))
    os.link("in.npy", "hard.nc")
    Path("link.nc").symlink_to("in.npy")
    finwidth.sweep("c.toml", "own.zarr")
    return tmp_path


def contents(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


REFUSED = [
    "sample 2,8,1 -i in.npy -o in.npy",
    "sample 2,8,1 -i in.npy -o ./../{here}/in.npy",
    "sample 2,8,1 -i in.npy -o hard.nc",
    "sample 2,8,1 -i in.npy -o link.nc",
    "sample 2,8,1 -i in.npy -o own.zarr",
    "sample 2,8,1 -i in.npy -o own.zarr/zarr.json",
    "sample 2,8,1 -i in.npy -o /dev/stdout",
    "gram 2,8,1 -i X.npy -o X.npy",
    "train 2,8,1 -i X.npy -t 1,2 -o X.npy",
    "report 2,8,1 -i in.npy -o in.npy",
    "report 2,8,1 -i in.npy -o own.zarr",
    "report 2,8,1 -i in.npy -o own.zarr/report",
    "paper -o c.toml",
    "paper --markdown c.toml",
    "paper -o page.html --markdown ./page.html",
    "sweep collect own.zarr -o own.zarr/zarr.json",
    "sweep collect own.zarr -o own.zarr/new.nc",
    "sweep collect own.zarr -o own.zarr",
    "sweep collect own.zarr -o hard.nc",
    "sweep collect own.zarr -o new.json",
    "sweep plot own.zarr phase -o own.zarr/phase.png",
    "sweep plot own.zarr phase -o own.zarr/zarr.json",
    "sweep plot own.zarr phase -o c.toml",
    "sweep run c.toml -o own.zarr/inner.zarr",
    "sweep merge own.zarr -o own.zarr/inner.zarr",
]


def test_no_output_replaces_an_input_or_goes_into_a_store(
    folder: Path, call: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def worked(*_: Any, **__: Any) -> None:
        pytest.fail("the work had begun")

    before = contents(folder)
    for name in (
        "summary.sample_and_summarize",
        "summary.sample_and_summarize_gram",
        "report.report",
        "sampling.training.train.train",
        "paper.statements.check",
        "sweeps.store.dataset.read",
    ):
        monkeypatch.setattr(f"finwidth.{name}", worked)
    for line in REFUSED:
        status, errors = call(line.format(here=folder.name))
        assert (status, errors.count("\n")) == (2, 1), (line, errors)
        assert contents(folder) == before, line
        assert Path("link.nc").is_symlink()


def test_large_seeds_on_the_command_line(folder: Path, call: Any) -> None:
    for line in (
        f"sample 2,8,1 -i in.npy -n 10 --seed {2**31} -o a.nc",
        f"train 2,8,1 -i X.npy -t 1,2 --steps 1 --draws 2 --seed {2**63 - 1} -o a.nc",
        "sweep collect own.zarr -o a.nc",
    ):
        assert call(line) == (0, "")
    assert xr.load_dataset("a.nc", engine="scipy").attrs["seed"] == str(2**62)


def test_the_help_of_every_output_tells_the_rule(call: Any, capsys: pytest.CaptureFixture[str]) -> None:
    import typer.main

    group: Any = typer.main.get_command(cli.app)
    commands = {**group.commands, **{f"sweep {name}": each for name, each in group.commands["sweep"].commands.items()}}
    told = {
        name: option.help
        for name, each in commands.items()
        for option in each.params
        if option.name in {"output", "markdown"}
    }
    assert {*told} == {
        "sample",
        "gram",
        "train",
        "report",
        "expansion",
        "explore",
        "paper",
        "sweep run",
        "sweep collect",
        "sweep merge",
        "sweep plot",
    }
    for name, text in told.items():
        assert outputs.RULE in text or name in {"sweep run", "sweep merge"}


# The commands that write, where the seed tells an old output from a new one; and how often each is stopped.
WRITERS = {
    "sample 3,8,1 -i 1,2,3 -n 20000 --seed {seed} -o out/draws.nc": 17,
    "train 3,8,1 -i X.npy -t 1,2,3 --steps 3 --draws 20 --seed {seed} -o out/run.nc": 17,
    "report 3,8,1 -i 1,2,3 --draws 3000 --seed {seed} -o out": 25,
    "paper lemma-{seed} -o out/page.html --markdown out/page.md": 17,
    "gram 3,8,1 -i X.npy -n 2000 --seed {seed} -o out/gram.nc": 17,
    "expansion 3,8,1 -i X.npy --points 64 --seed {seed} -o out/wide.nc": 17,
    "explore -o out/explorer.html": 17,
    "sweep collect {seed}.zarr -o out/grid.nc": 17,
    "sweep plot {seed}.zarr phase -o out/phase.pdf": 17,
}


@pytest.fixture(scope="module")
def forked() -> Iterator[Forks]:
    pytest.importorskip("jinja2")
    pytest.importorskip("zarr")
    pictures = [f"matplotlib.backends.backend_{kind}" for kind in ("agg", "pdf", "svg")]
    commands = [
        "sampling.training",
        "exact.expansion.expansion",
        "report",
        "explorer",
        "paper.page",
        "paper.statements",
    ]
    commands += ["sweeps.plots", "sweeps.store.merge"]
    with forks("zarr", *pictures, *(f"finwidth.{each}" for each in commands)) as process:
        yield process


class Writer:
    """A command, the folder that it ran in with the old values, and both outputs."""

    def __init__(self, process: Forks, folder: Path, line: str) -> None:
        self.process, self.folder, self.line = process, folder, line
        np.save(folder / "X.npy", np.eye(3))
        for seed in (7, 9):
            config = folder / f"{seed}.toml"
            config.write_text(GRID.format(seed=seed, width=[4, seed]))
            assert process.run(folder, ["sweep", str(config), "-q"])["status"] == 0
        self.states = []
        for seed in (9, 7):
            (folder / "out").mkdir(exist_ok=True)
            found = self.run(seed)
            assert found["status"] == 0, found
            self.seconds = found["seconds"]
            self.states.append(self.outputs())
            assert not partials(folder)
            shutil.rmtree(folder / "out")
        self.old, self.new = self.states
        if "{seed}" not in line:  # its old output was of another version
            self.old = {name: content.replace(b"<title>", b"<title>old ") for name, content in self.old.items()}
        assert {*self.old} == {*self.new}
        assert self.old != self.new

    def run(self, seed: int = 7, **more: Any) -> dict[str, Any]:
        return self.process.run(self.folder, self.line.format(seed=seed).split(), **more)

    def outputs(self) -> dict[str, bytes]:
        return {path.name: path.read_bytes() for path in (self.folder / "out").iterdir() if path.suffix != ".partial"}

    def reset(self) -> None:
        shutil.rmtree(self.folder / "out", ignore_errors=True)
        (self.folder / "out").mkdir()
        for name, content in self.old.items():
            (self.folder / "out" / name).write_bytes(content)

    def state(self) -> str:
        """Old, new or mixed, which a report must tell; anything else fails."""
        found = self.outputs()
        for name, content in found.items():
            assert content in {self.old[name], self.new[name]}, name
        state = "old" if found == self.old else "new" if found == self.new else "mixed"
        if MANIFEST in found:
            whole = True
            try:
                verify(self.folder / "out")
            except FinwidthError:
                whole = False
            assert whole == (state != "mixed")
        else:
            assert state != "mixed" or "page.md" in found  # two outputs, each whole
        return state


@pytest.mark.slow
@pytest.mark.parametrize("line", WRITERS)
def test_kills_and_interrupts_at_any_moment(forked: Forks, tmp_path: Path, line: str) -> None:
    """At random moments, and at each step that touches a file: old or new; after it the same command mends all."""
    writer, rng, seen = Writer(forked, tmp_path, line), random.Random(line), []
    trials: list[dict[str, Any]] = [{"at": step} for step in range(200)]
    for number in (signal.SIGKILL, signal.SIGINT):
        trials += [{"signal": number, "after": rng.uniform(0, 1.1 * writer.seconds)} for _ in range(WRITERS[line])]
    finished = False
    for trial in trials:
        if "at" in trial and finished:
            continue
        writer.reset()
        found = writer.run(**trial)
        finished = found["status"] == 0
        assert found["status"] in ({0, 130} if trial.get("signal") == signal.SIGINT else {0, -9}), found
        if found["status"] != -9:
            assert not partials(tmp_path)
        state = writer.state()
        seen.append((trial.get("signal", "step"), found["status"], state))
        if state == "mixed":
            assert writer.run()["status"] == 0
            assert writer.state() == "new"
    for each in sorted(set(seen), key=str):
        print(line.split(" -o ", maxsplit=1)[0], *each, seen.count(each))  # for docs/reliability.md
    assert any(status != 0 for _, status, _ in seen)


@pytest.mark.slow
@pytest.mark.parametrize("line", WRITERS)
def test_a_full_disk_changes_nothing(forked: Forks, tmp_path: Path, line: str) -> None:
    """Ten sizes at which the largest file does not fit."""
    writer = Writer(forked, tmp_path, line)
    largest = max(map(len, writer.new.values()))
    for limit in [0, 1, *(largest * part // 8 for part in range(1, 8)), largest - 1]:
        writer.reset()
        found = writer.run(limit=limit)
        assert found["status"] == 2
        told = [line for line in found["stderr"].splitlines() if not line.endswith(" left")]  # how far it is
        assert len(told) == 1
        assert "no space is left; what was there before is unchanged; make room" in told[0]
        assert writer.outputs() == writer.old or "page.md" in writer.old
        assert writer.state() != "new"
        assert not partials(tmp_path)
    assert writer.run(limit=largest)["status"] == 0
    assert writer.state() == "new"


@pytest.mark.parametrize("every", [9, pytest.param(1, marks=pytest.mark.slow)])
def test_a_merged_store_appears_whole_or_not_at_all(forked: Forks, tmp_path: Path, every: int) -> None:
    """Kills before each step that touches a file, interrupts, and disks that are full."""
    for name, width in (("a", [4]), ("b", [8])):
        (tmp_path / f"{name}.toml").write_text(GRID.format(seed=1, width=width))
        assert forked.run(tmp_path, ["sweep", f"{name}.toml", "-q"])["status"] == 0
    merge, out = ["sweep", "merge", "a.zarr", "b.zarr", "-o", "out.zarr"], tmp_path / "out.zarr"
    parts = contents(tmp_path)
    done = forked.run(tmp_path, merge)
    whole = contents(out)
    assert (done["status"], {*contents(tmp_path)}) == (0, {*parts, *whole})

    def stopped(**trial: Any) -> int:
        """The status of a merge that is stopped; its output is whole or not there, and all else is as it was."""
        shutil.rmtree(out, ignore_errors=True)
        found = forked.run(tmp_path, merge, **trial)
        for left in tmp_path.glob(".finwidth-*.partial"):
            assert found["status"] == -signal.SIGKILL
            shutil.rmtree(left)
        assert contents(tmp_path) == parts | (whole if out.exists() else {})
        assert found["status"] != 2 or "cannot write to out.zarr: no space is left" in found["stderr"]
        assert found["stderr"].count("\n") == (found["status"] in {2, 130})
        return int(found["status"])

    steps = 0
    while (status := stopped(at=every * steps)) != 0:
        assert status == -signal.SIGKILL
        steps += 1
    assert steps > 50 // every
    rng = random.Random(1)
    for _ in range(20 // every):
        assert stopped(signal=signal.SIGINT, after=rng.uniform(0, done["seconds"])) in {0, 130}
        assert stopped(limit=rng.randrange(max(map(len, whole.values())))) == 2


def test_a_full_disk_and_kills_of_one_command(tmp_path: Path) -> None:
    """In short what the two slow tests do for every command."""
    line = "sample 2,8,1 -i 1,2 -n 2000 --seed {seed} -o draws.nc"
    with forks("finwidth.sampling.one_input.importance") as process:

        def run(seed: int, **more: Any) -> tuple[int, str]:
            found = process.run(tmp_path, line.format(seed=seed).split(), **more)
            return found["status"], found["stderr"]

        assert run(0) == (0, "")
        old = (tmp_path / "draws.nc").read_bytes()
        for limit in (1000, len(old) - 1):
            status, errors = run(1, limit=limit)
            assert (status, errors.count("\n")) == (2, 1)
            assert "no space is left; what was there before is unchanged" in errors
            assert [path.name for path in tmp_path.iterdir()] == ["draws.nc"]
            assert (tmp_path / "draws.nc").read_bytes() == old
        seen: list[bytes] = []
        while run(1, at=len(seen))[0] == -signal.SIGKILL:
            seen.append((tmp_path / "draws.nc").read_bytes())
        new = (tmp_path / "draws.nc").read_bytes()
        assert new != old
        assert seen == [old] * len(seen)
        assert len(seen) > 4

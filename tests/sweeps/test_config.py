"""Configs: what is read, and that every mistake is one sentence that names the key and the line."""

from __future__ import annotations

import contextlib
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from finwidth import FinwidthError
from finwidth.sweeps.config import Config, differences, read_config

GOOD = """\
seed = 3
quantities = ["exact", "sampled", "gram"]

[axes]
depth = [4, 2]
width = {from = 4, to = 16, factor = 2}
n_0 = 3
input = "random:1"
law = "gaussian"

[network]
bias = "frozen"

[sampled]
target = 0.01
most_draws = 4_000

[gram]
inputs = ["ones", "1,2,3"]
draws = 300
targets = [1, -1]
"""


def written(folder: Path, text: str) -> Path:
    path = folder / "grid.toml"
    path.write_text(text)
    return path


def test_what_a_file_says(tmp_path: Path) -> None:
    config, vectors = read_config(written(tmp_path, GOOD))
    assert config.axes == {
        "n_0": (3,), "law": ("gaussian",), "activation": ("relu",), "parameterization": ("ntk",),
        "input": ("random:1",), "depth": (2, 4), "width": (4, 8, 16),
    }  # fmt: skip
    assert config.single == ("n_0", "law", "activation", "parameterization", "input")
    assert config.quantities["sampled"] == {"target": 0.01, "most_draws": 4000, "of": ["K", "K^2", "dK"]}
    assert np.square(vectors["random:1", 3]).sum() == pytest.approx(3)
    assert vectors["1,2,3", 3].tolist() == [1, 2, 3]
    assert Config.from_json(config.to_json()) == config


MISTAKES = [
    ("depth = [4, 2]", "dpeth = [4, 2]", 5, "axes.dpeth: this key is not known; did you mean depth?"),
    ("depth = [4, 2]", "depth = [4, 0]", 5, "axes.depth: 0 is not a whole number from 1"),
    ("depth = [4, 2]", "depth = [4, 4]", 5, "axes.depth: 4 comes twice"),
    ("depth = [4, 2]", "depth = []", 5, "axes.depth: the list is empty"),
    ("depth = [4, 2]", "depth = true", 5, "axes.depth: true is not a whole number"),
    ("depth = [4, 2]", "depth = {from = 1, to = 1000000}", 5, "axes.depth: the range has more than 100000 values"),
    ("depth = [4, 2]", "depth = {from = 4, to = 2}", 5, "axes.depth: a range goes up"),
    ("depth = [4, 2]", "depth = {from = 1, to = 2, step = 0.5}", 5, "axes.depth: 1.5 is not a whole number"),
    ("depth = [4, 2]", "", 4, "axes.depth: this key is missing"),
    ("n_0 = 3", "ratio = 0.5", 4, "axes: give one of width (of the hidden layers) and ratio"),
    ("n_0 = 3", "n_0 = nan", 7, "axes.n_0: nan is not a whole number"),
    ("n_0 = 3", "", 8, "axes.input: the input 'random:1' fits any input width, so n_0 must be given"),
    ('input = "random:1"', "input = [1, 2, 3]", 8, "axes.input: 1 is not text; write it in quotes"),
    ('input = "random:1"', 'input = "1,2"', 8, "axes.input: the input has shape (2,)"),
    ('input = "random:1"', 'input = "nothing.npy"', 8, "does not exist"),
    ('input = "random:1"', 'input = ["ones", "1,1,1"]', 8, "axes.input: give one input, for gram takes its inputs"),
    ('law = "gaussian"', 'law = "gausian"', 9, "axes.law: 'gausian' is not known; choose from gaussian, uniform"),
    ('law = "gaussian"', 'law = "uniform"', 2, 'quantities: "sampled" cannot be had for law \'uniform\''),
    ('bias = "frozen"', 'bias = "thawed"', 12, "network.bias: bias 'thawed' is not known"),
    ('bias = "frozen"', "biases = 1", 12, "network.biases: this key is not known; did you mean bias?"),
    ('bias = "frozen"', "gains = [1, 2]", 12, "network.gains: give one value, the same for all layers"),
    ("n_0 = 3", "n_0 = 3\ngains = -1", 8, "axes.gains: -1 is not a number from 1e-30 to 1e+30"),
    ("n_0 = 3", "n_0 = 3\ngains = [[1, 2]]", 8, "axes.gains: [1, 2] is not a number"),
    ("n_0 = 3", "n_0 = 3\nbias_variance = [0, true]", 8, "axes.bias_variance: true is not a number"),
    ("n_0 = 3", 'n_0 = 3\nbias = "no"', 8, "axes.bias: 'no' is not known; choose from trained, frozen, none"),
    ("n_0 = 3", "n_0 = 3\nbias = \"none\"", 8, "axes.bias: this key stands in [network], too; give one of the two"),
    ("n_0 = 3", 'n_0 = 3\nbias_law = "gausian"', 8, "axes.bias_law: 'gausian' is not known"),
    ('law = "gaussian"\n\n[network]\nbias = "frozen"', 'bias = ["none"]\nbias_variance = [0, 1]', 4,
     "axes: there is no network of law 'gaussian', activation 'relu', parameterization 'ntk', bias 'none', "
     "bias_variance 1.0: bias=\"none\" with a bias_variance that is not 0"),
    ("target = 0.01", "target = 0", 15, "sampled.target: 0 is not a number from 1e-06 to 1"),
    ("target = 0.01", "draws = 10", 16, "sampled.most_draws: this is the limit of a target"),
    ("target = 0.01", "of = []", 15, "sampled.of: the list is empty"),
    ("targets = [1, -1]", "targets = [1]", 21, "gram.targets: the targets have shape (1,); give 2 finite numbers"),
    ("draws = 300", "", 18, "gram.draws: this key is missing"),
    ('"exact", "sampled", "gram"', '"exat"', 2, "quantities: 'exat' is not known; choose from exact, bounds"),
    ('"exact", "sampled", "gram"', '"exact"', 14, "sampled: this table is of a quantity that is not asked for"),
    ("seed = 3", "seed = -1", 1, "seed: -1 is not a whole number from 0"),
    ("[axes]", "[axis]", 4, "axis: this key is not known; did you mean axes?"),
    ("[axes]", "axes = 3\n[bounds]", 4, "axes: 3 is not a table"),
    ("seed = 3", "seed == 3", None, "is not TOML: Invalid value (at line 1, column 7)"),
    ("seed = 3", "seed = " + "9" * 5000, None, "is not TOML: Exceeds the limit"),
    ("seed = 3", "seed = " + "[" * 10000, None, "nests its values too deeply"),
]  # fmt: skip


@pytest.mark.parametrize(("right", "wrong", "line", "message"), MISTAKES)
def test_a_mistake_names_the_key_and_the_line(
    tmp_path: Path, right: str, wrong: str, line: int | None, message: str
) -> None:
    assert right in GOOD
    with pytest.raises(FinwidthError) as caught:
        read_config(written(tmp_path, GOOD.replace(right, wrong, 1)))
    assert message in str(caught.value)
    if line is not None:
        assert str(caught.value).startswith(f"grid.toml, line {line}: ")


def test_the_example_of_the_docs_is_allowed(tmp_path: Path) -> None:
    docs = (Path(__file__).parents[2] / "docs" / "sweeps.md").read_text(encoding="utf-8")
    [example] = re.findall(r"```toml\n(seed = .*?)```", docs, re.DOTALL)
    config, _ = read_config(written(tmp_path, example))
    assert list(config.quantities) == ["exact", "bounds", "sampled", "gram"]


def test_files_that_are_none(tmp_path: Path) -> None:
    with pytest.raises(FinwidthError, match="does not exist; give a TOML file"):
        read_config(tmp_path / "none.toml")
    (tmp_path / "binary.toml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(FinwidthError, match="not a text file"):
        read_config(tmp_path / "binary.toml")
    with pytest.raises(FinwidthError, match="is a folder, not a file; give a TOML file"):
        read_config(tmp_path)


def test_ranges_and_ratios() -> None:
    axes = {"depth": {"from": 2, "to": 8, "step": 3}, "ratio": {"from": 0.1, "to": 0.3, "step": 0.1}, "n_0": 4}
    config, _ = read_config({"quantities": "exact", "axes": axes})
    assert config.axes["depth"] == (2, 5, 8)
    assert config.axes["ratio"] == (0.1, 0.2, 0.3)  # in decimals: no 0.30000000000000004
    assert "ratio" not in config.single


def test_an_input_of_a_file_is_known_by_its_numbers(tmp_path: Path) -> None:
    text = 'quantities = ["exact"]\n[axes]\ndepth = 2\nwidth = 4\ninput = "x.npy"\n'
    np.save(tmp_path / "x.npy", [1.0, 2.0])
    first, vectors = read_config(written(tmp_path, text))
    assert vectors["x.npy", 2].tolist() == [1, 2]  # found beside the config, and its length is n_0
    np.save(tmp_path / "x.npy", [1.0, 3.0])
    assert differences(first, read_config(tmp_path / "grid.toml")[0]) == ["the input x.npy has other numbers"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"seed": 1}, "seed was 0 and is 1"),
        ({"network": {"bias": "none"}}, "network was {} and is {'bias': 'none'}"),
        ({"quantities": ["sampled"]}, "quantities no longer has exact"),
        ({"sampled": {"draws": 99}}, "sampled.draws was 100 and is 99"),
        ({"sampled": {"target": 0.1}}, "sampled.draws was 100 and is not given"),
        ({"sampled": {"draws": 100, "of": ["K"]}}, "sampled.of was"),
        ({"axes": {"depth": [2, 8], "width": 4, "n_0": 2}}, "axes.depth no longer has 4"),
        ({"axes": {"depth": [2, 4], "ratio": 0.5, "n_0": 2}}, "axes.ratio was not given before"),
        ({"axes": {"depth": [2, 4], "width": 4, "n_0": 2, "input": "1,1"}}, "axes.input no longer has ones"),
        ({"axes": {"depth": [2, 4], "width": 4, "n_0": 2, "gains": 2}}, "axes.gains was not given before"),
        ({"axes": {"depth": [2, 4, 8], "width": [2, 4], "n_0": 2}}, None),
        ({"sampled": {"draws": 101}}, None),
    ],
)  # fmt: skip
def test_what_a_config_may_become(change: dict[str, Any], message: str | None) -> None:
    old: dict[str, Any] = {
        "quantities": ["exact", "sampled"], "axes": {"depth": [2, 4], "width": 4, "n_0": 2}, "sampled": {"draws": 100},
    }  # fmt: skip
    found = differences(read_config(old)[0], read_config(old | change)[0])
    assert message is None or any(message in each for each in found), found
    assert (message is None) == (not found)


FRAGMENTS = st.sampled_from([
    "seed", "quantities", "axes", "depth", "width", "ratio", "n_0", "input", "law", "sampled", "gram", "network",
    "draws", "target", "bias", "gains", "=", "[", "]", "{", "}", "[axes]", "[[axes]]", "[sampled]", "[gram]",
    "[network]", ",", ".", '"exact"', '"sampled"', '"gram"', '"bounds"', '"ones"', '"random:1"', '"random:x"',
    '"1,2"', '"1/0"', '"digits:99999"', '"x.npy"', "0", "1", "2", "-1", "1e400", "0.5", "nan", "inf", "true", "'''",
    '"""', "\\", "#", "\n", "\n", "\n", "1979-05-27", "9223372036854775808", "{from = 1, to = 3}",
    "{from = 1, to = 1e9, factor = 1.0000001}", "\x00", "é",
])  # fmt: skip
VALUES = st.recursive(
    st.one_of(
        st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=5), st.binary(max_size=3), FRAGMENTS
    ),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5) | FRAGMENTS, inner, max_size=3),
    max_leaves=5,
)
KEYS = [
    ("seed",), ("quantities",), ("axes",), ("network",), ("sampled",), ("gram",), ("axes", "depth"),
    ("axes", "width"), ("axes", "n_0"), ("axes", "input"), ("axes", "law"), ("axes", "activation"), ("axes", "ratio"),
    ("axes", "gains"), ("axes", "bias"), ("network", "gains"), ("network", "bias_variance"), ("sampled", "draws"),
    ("sampled", "target"),
    ("sampled", "of"), ("gram", "inputs"), ("gram", "targets"), ("gram", "draws"),
]  # fmt: skip
fuzz = settings(
    max_examples=300, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


def read_or_refused(source: Any) -> None:
    """Any other exception fails the test."""
    with contextlib.suppress(FinwidthError):
        config, _ = read_config(source)
        assert Config.from_json(config.to_json()) == config


@fuzz
@given(st.lists(FRAGMENTS, max_size=30), st.integers(0, 600), st.integers(0, 30))
def test_broken_files_never_give_a_traceback(tmp_path: Path, pieces: list[str], start: int, length: int) -> None:
    """Fragments in the place of a stretch of a good file: read, or refused in a sentence; nothing else."""
    text = GOOD[:start] + " ".join(pieces) + GOOD[start + length :]
    path = tmp_path / "grid.toml"
    path.write_text(text, newline="")
    read_or_refused(path)


@fuzz
@given(st.sampled_from(KEYS), VALUES)
def test_wrong_values_never_give_a_traceback(key: tuple[str, ...], value: Any) -> None:
    given: dict[str, Any] = {
        "quantities": ["exact", "sampled", "gram"], "axes": {"depth": [2], "width": [4], "n_0": 3},
        "sampled": {"draws": 100}, "gram": {"inputs": ["ones"], "draws": 10}, "network": {},
    }  # fmt: skip
    place = given
    for name in key[:-1]:
        place = place[name]
    place[key[-1]] = value
    read_or_refused(given)

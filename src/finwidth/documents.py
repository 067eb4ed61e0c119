"""Results as JSON documents: one shape for all of them, which ``schema.json`` beside this file describes."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from decimal import Decimal
from fractions import Fraction
from importlib.metadata import version
from typing import Any

import numpy as np

# The keys of a document in the order in which they are written; which of them there are depends on its type.
_KEYS = (
    "source", "finwidth", "type", "command", "network", "input", "settings", "draws", "seed", "results", "warnings",
    "files",
)  # fmt: skip


def plain(value: Any) -> Any:
    """A result as JSON takes it: fractions as strings, numbers that are not finite as None, containers inside too.

    >>> from finwidth.documents import plain
    >>> plain(Fraction(15, 2)), plain(float("inf"))
    ('15/2', None)
    """
    if isinstance(value, np.generic | np.ndarray):
        value = value.tolist()
    if isinstance(value, Mapping):
        return {key: plain(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [plain(each) for each in value]
    if isinstance(value, Fraction):
        return _digits(value.numerator) + (f"/{_digits(value.denominator)}" if value.denominator > 1 else "")
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _digits(number: int) -> str:
    """A whole number of any length; `str` stops at 4300 digits."""
    return str(Decimal(number))


def exact_number(value: float | Fraction, log: float | None = None) -> dict[str, object]:
    """An exact value as every document has it: a double, the logarithm of its size, and the fraction that it is.

    >>> from finwidth.documents import exact_number
    >>> exact_number(Fraction(15, 2)), exact_number(float("inf"), log=2000.0)
    ({'value': 7.5, 'fraction': '15/2'}, {'value': None, 'log': 2000.0})
    """
    try:
        number = float(value)
    except OverflowError:
        number = math.inf
    more = {"log": log, "fraction": value if isinstance(value, Fraction) else None}
    found: dict[str, object] = plain({"value": number} | {key: each for key, each in more.items() if each is not None})
    return found


def beside(content: Mapping[str, object], more: Mapping[str, Mapping[str, object]]) -> dict[str, object]:
    """The content of a result, with more routes to its quantities.

    >>> from finwidth.documents import beside
    >>> beside({"quantities": {"K": {"exact": 1}}}, {"K": {"sampled": 2}})
    {'quantities': {'K': {'exact': 1, 'sampled': 2}}}
    """
    quantities: Mapping[str, Any] = content["quantities"]  # type: ignore[assignment]
    names = dict.fromkeys([*quantities, *more])
    return {**content, "quantities": {name: {**quantities.get(name, {}), **more.get(name, {})} for name in names}}


def document(type: str, results: Mapping[str, object], **about: object) -> dict[str, object]:
    """A result of this type as one document; what is None of ``about``, such as a seed, is left out.

    >>> from finwidth.documents import document
    >>> list(document("Width", {"width": 8}, seed=0, command="width-for", input=None))
    ['finwidth', 'type', 'command', 'seed', 'results']
    """
    return extended({"finwidth": version("finwidth"), "type": type, "results": results}, **about)


def extended(document: Mapping[str, object], **about: object) -> dict[str, object]:
    """A document with more about it, in the order of all documents; what is None is left out."""
    whole = {**document, **about}
    whole["input"] = _as_typed(whole.get("input"))
    return {key: plain(whole[key]) for key in _KEYS if whole.get(key) is not None}


def _as_typed(value: object) -> object:
    """Entries of an input as decimals, which JSON has; what no decimal is stays a fraction."""
    if isinstance(value, np.ndarray | list | tuple):
        return [_as_typed(each) for each in value]
    return float(value) if isinstance(value, Fraction) and Fraction(repr(float(value))) == value else value


def schema() -> dict[str, Any]:
    """The JSON Schema (draft 2020-12) of all documents, as ``finwidth schema`` prints it.

    >>> from finwidth.documents import schema
    >>> schema()["$schema"]
    'https://json-schema.org/draft/2020-12/schema'
    """
    from importlib import resources

    found: dict[str, Any] = json.loads(resources.files("finwidth").joinpath("schema.json").read_text("utf-8"))
    return found

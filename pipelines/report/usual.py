"""What a night counts, beside what the nights before it counted: each report carries the counts of the last ones on."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from pipelines.report.contents import LEFT_BEHIND

NIGHTS_KEPT = 10
_SHARE_APART, _SLACK, _TIMES = 0.1, 5, 2
_SHARES = {"overlap": "search answers as before", "own_title": "found by their own title"}
_COUNTS = {
    "products": "products",
    "added": "added",
    "removed": "removed",
    "edited": "values edited",
    "rejected": "rows rejected",
    "degraded": "without their picture",
}
_MEANINGS = {
    "products": "Products of this version.",
    "added": "Products that the night before did not have.",
    "removed": "Products that only the night before has.",
    "edited": "Products of both nights with another value in some column. Texts are counted below, in what changed.",
    "rejected": "Rows of the catalog that became no product, each with a reason.",
    "degraded": "Products that are searched by their text alone, because their picture could not be used.",
    "overlap": "The same queries are asked of both nights: how many of the first ten answers are the same products.",
    "own_title": "Titles of drawn products are asked as queries: how many find their product among the first ten.",
}

Counts = Mapping[str, float]
"""Of one night: `products`, `added`, `removed`, `edited`, `rejected`, `degraded`, `overlap`, `own_title`."""


@dataclass(frozen=True, slots=True)
class Tile:
    """A figure of a night in words, what it usually is, and whether it is far from that: a share
    from the middle one of the nights kept, a count from that of every night. `meaning` says what is counted, and over
    which nights it is usual.
    """

    key: str
    name: str
    value: str
    usual: str
    unusual: bool
    meaning: str = ""


def tiles_of(now: Counts, before: Sequence[Counts]) -> list[Tile]:
    """The figures of a night beside those of the nights before it."""
    return [_tile(name, now[name], [each[name] for each in before if name in each]) for name in _known(now)]


def _known(now: Counts) -> list[str]:
    return [name for name in (*_COUNTS, *_SHARES) if name in now]


def _tile(name: str, value: float, before: Sequence[float]) -> Tile:
    in_words = "{:.0%}".format if name in _SHARES else "{:,.0f}".format
    label = (_SHARES | _COUNTS)[name]
    if not before:
        return Tile(name, label, in_words(value), "", unusual=False, meaning=_MEANINGS[name])
    usual, least, most = float(np.median(before)), min(before), max(before)
    if name in _SHARES:
        unusual = value < usual - _SHARE_APART
    elif name == "products":
        unusual = abs(value - before[-1]) > LEFT_BEHIND * before[-1]
    else:
        unusual = value > _TIMES * most + _SLACK or value < least / _TIMES - _SLACK
    word, meaning = "usually about" if len(before) > 1 else "the night before", _MEANINGS[name]
    if len(before) > 1:
        of_nights = f"The {len(before)} nights before had {in_words(least)} to {in_words(most)}"
        meaning += f" {of_nights}" + ("." if name == "products" else f", the middle one {in_words(usual)}.")
    if name == "products":
        usual, word = before[-1], "the night before"
    return Tile(name, label, in_words(value), f"{word} {in_words(usual)}", unusual=unusual, meaning=meaning)


def read_counts(data: bytes) -> list[dict[str, float]]:
    """The counts of a night and of those before it from its `report.json`, the oldest first; empty of one without."""
    try:
        values: Any = json.loads(data)["counts"]
        return [{str(name): float(value) for name, value in each.items()} for each in values][-NIGHTS_KEPT:]
    except (ValueError, KeyError, TypeError, AttributeError):
        return []

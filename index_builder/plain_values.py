"""Plain JSON values, the only ones that name or describe what is kept, and the digest that they have."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterable
from typing import Any


def digest(inputs: Any) -> str:
    """32 hex digits that name what an output is made of: sha256 over canonical JSON.

    The order of a dict's keys does not matter, that of a list does; a tuple counts as a list; 1, 1.0, "1" and True are
    four values. TypeError or ValueError where there is something else than plain JSON values; the message says where.
    """
    return _named(canonical_json(inputs))


def digests(first: Any, texts: Iterable[str], last: Any) -> list[str]:
    """The digest of `[first, text, last]` for each text, where `first` and `last` are looked at once."""
    before, after = canonical_json(first), canonical_json(last)
    return [_named(f"[{before}, {json.dumps(text)}, {after}]") for text in texts]


def canonical_json(value: Any) -> str:
    """The one JSON text of a plain value; TypeError or ValueError as `digest` raises them."""
    check_plain(value, "inputs")
    return json.dumps(value, sort_keys=True)


def _named(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:32]


def check_plain(value: Any, name: str) -> None:
    """TypeError or ValueError for what JSON cannot hold, or would give back as something else."""
    kind = type(value)  # exactly: a subclass (an enum, a NumPy scalar) may be written in another way
    if kind is dict:
        for key, item in value.items():
            if type(key) is not str:
                raise TypeError(f"{name} has the key {key!r}, a {type(key).__name__}: expected str keys")
            check_plain(item, f"{name}.{key}")
    elif kind in (list, tuple):
        for number, item in enumerate(value):
            check_plain(item, f"{name}[{number}]")
    elif kind is float and not math.isfinite(value):
        raise ValueError(f"{name} is {value}: expected a finite number")
    elif kind not in (str, bool, int, float, type(None)):
        expected = "plain JSON values (dict, list, str, int, float, bool, None)"
        raise TypeError(f"{name} is a {kind.__qualname__}: expected {expected}")

"""Plain JSON values, the only ones that name or describe what is kept, and the digest that they have."""

from __future__ import annotations

import hashlib
import json
import math
from typing import Any


def digest(inputs: Any) -> str:
    """32 hex digits that name what an output is made of: sha256 over canonical JSON.

    The order of a dict's keys does not matter, that of a list does; a tuple counts as a list; 1, 1.0, "1" and True are
    four values. TypeError or ValueError where there is something else than plain JSON values; the message says where.
    """
    check_plain(inputs, "inputs")
    return hashlib.sha256(json.dumps(inputs, sort_keys=True).encode()).hexdigest()[:32]


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

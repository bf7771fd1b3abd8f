"""The catalog room's exception tree.

    CatalogError                    something about the catalog that stops the run before any work
    └── CatalogConfigError          a key of the `catalog:` section has a value that cannot be used (also a ValueError)

A single dirty row or picture never raises one of these: it becomes a `DeadLetter`, and its neighbours go on.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class CatalogError(Exception):
    """The catalog cannot be read as the config asks; the message names what was expected, what was found and where."""


class CatalogConfigError(CatalogError, ValueError):
    """A value in the `catalog:` section is not usable; the message names key, value and what is expected."""


def nearest(name: str, known: Iterable[str]) -> str:
    """A closing sentence that names the known name most like `name`, if any is, and the first few known ones."""
    names = sorted(known)
    by_lower = {candidate.lower(): candidate for candidate in names}
    close = difflib.get_close_matches(name.lower(), list(by_lower), n=1, cutoff=0.7)
    question = f"Did you mean '{by_lower[close[0]]}'? " if close else ""
    listed = ", ".join(f"'{candidate}'" for candidate in names[:12])
    return f"{question}Known: {listed}{', ...' if len(names) > 12 else ''}."

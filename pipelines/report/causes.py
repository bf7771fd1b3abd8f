"""What is found on a night belongs together: one planted fault shows in texts, in columns, in vectors and in answers. A
cause is said once, with what follows from it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from pipelines.report.night import TITLES, Finding

_FOLLOWS = ("anew", "moved", "own", "answers", "codec")
"""Kinds that follow from most others."""
_TEXTS = ("no text", "scripts", "words", "texts")
KINDS: dict[str, tuple[str, ...]] = {
    "letters": ("letters", "rows", "products", "pictures", "category", "spread", "repeated", *_TEXTS, *_FOLLOWS),
    "rows": ("rows", "products", "category", "spread", "pictures", *_TEXTS, *_FOLLOWS),
    "category": ("category", "spread", "products", "repeated", *_TEXTS, *_FOLLOWS),
    "products": ("category", "spread", "products", "rows", "repeated", "pictures", *_TEXTS, *_FOLLOWS),
    "encoder": _FOLLOWS,
    "vectors": ("vectors", *_FOLLOWS),
    "mixed": ("mixed", "edits", "category", "spread", "lost", "pictures", *_TEXTS, *_FOLLOWS),
    "flaw": ("flaw", *_TEXTS, *_FOLLOWS),
    "no text": ("repeated", *_TEXTS, *_FOLLOWS),
    "scripts": ("flaw", "repeated", *_TEXTS, *_FOLLOWS),
    "words": ("repeated", *_TEXTS, *_FOLLOWS),
    "texts": ("repeated", "texts", *_FOLLOWS),
    "pictures": ("pictures", "repeated", *_FOLLOWS),
    "repeated": ("repeated", *_FOLLOWS),
    "column": (),
    "lost": (),
    "edits": (),
    "spread": (),
    "anew": _FOLLOWS,
    "moved": _FOLLOWS,
    "own": _FOLLOWS,
    "answers": _FOLLOWS,
    "codec": _FOLLOWS,
}
"""Kinds of findings, causes before what follows from them; and of each which others it explains. A finding of a column
explains the others of that column too."""
_ORDER = tuple(KINDS)
_OF_COLUMNS = ("column", "lost", "edits", "spread", "category", "mixed")
_NEARLY = 0.8


@dataclass(frozen=True, slots=True)
class Cause:
    """One thing that is wrong, or that somebody may have meant: the finding that says it, and those that follow."""

    finding: Finding
    follows: tuple[Finding, ...] = ()

    @property
    def broken(self) -> bool:
        """Whether it, or what follows from it, is nothing that a shop means."""
        return any(each.broken for each in self.findings)

    @property
    def findings(self) -> tuple[Finding, ...]:
        """Itself, and what follows from it."""
        return (self.finding, *self.follows)

    @property
    def says(self) -> str:
        """The sentence that says it."""
        return self.finding.says


def causes_of(findings: Sequence[Finding]) -> list[Cause]:
    """Findings by what causes them: broken ones first, and of those the worst."""
    causes: list[tuple[Finding, list[Finding]]] = []
    for finding in sorted(findings, key=lambda each: (_place(each, findings), -each.size, -each.weight)):
        for lead, follows in causes:
            if _explains(lead, finding):
                follows.append(finding)
                break
        else:
            causes.append((finding, []))
    found = [Cause(lead, tuple(sorted(follows, key=lambda each: -each.weight))) for lead, follows in causes]
    return sorted(found, key=lambda each: (not each.broken, -each.finding.weight))


def _place(finding: Finding, findings: Sequence[Finding]) -> float:
    """Where a finding stands in the order of causes: a category that explains how many products are missing stands
    before their number, one of many that went with them behind it.
    """
    if finding.kind == "category":
        missing = max((each.size for each in findings if each.kind == "products"), default=0)
        return _ORDER.index("category" if finding.size >= _NEARLY * missing else "products") + 0.5
    return _ORDER.index(_kind(finding))


def _kind(finding: Finding) -> str:
    """The kind: of the columns of titles, and of columns of texts, that of texts."""
    if finding.kind == "lost" and finding.about in TITLES:
        return "no text"
    return "texts" if finding.kind in ("edits", "spread") and finding.about in TITLES else finding.kind


def _explains(lead: Finding, other: Finding) -> bool:
    if lead.about and lead.about == other.about and lead.kind in _OF_COLUMNS and other.kind in _OF_COLUMNS:
        return True
    if lead.kind == "mixed" and lead.about not in ("", *TITLES):
        return False
    return _kind(other) in KINDS[_kind(lead)]


def shown_first(causes: Sequence[Cause]) -> Iterator[tuple[str, list[Cause]]]:
    """The causes under their headings: those that are broken, then those that somebody is asked about."""
    for broken, heading in ((True, "Looks broken"), (False, "Please confirm")):
        if chosen := [each for each in causes if each.broken is broken]:
            yield heading, chosen

"""What thumbnails tell of pictures that changed: whose they were, and which products show it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace

from pipelines.report.night import EXAMPLES, Example, Finding, Night, Pairs, of_products

Picture = Callable[[bool, int], bytes | None]
"""The thumbnail (WebP) of a row of the version, or with False of the one before; None without one."""
_LOOKED_AT = 1000
"""Products of which thumbnails are read."""


def with_pictures(findings: Sequence[Finding], old: Night | None, new: Night, picture: Picture) -> list[Finding]:
    """The findings: those of pictures have products that show it, and say where pictures went to other products."""
    if old is None or not any(each.kind == "pictures" for each in findings):
        return list(findings)
    pairs = Pairs.of(old, new)
    rows: list[tuple[int, int]] = list(zip(pairs.old.tolist(), pairs.new.tolist(), strict=True))[:_LOOKED_AT]
    seen = [(picture(False, before), picture(True, after)) for before, after in rows]
    if not any(before for before, _ in seen):
        return list(findings)
    return [_told(each, rows, seen) if each.kind == "pictures" else each for each in findings]


def _told(
    finding: Finding, rows: Sequence[tuple[int, int]], seen: Sequence[tuple[bytes | None, bytes | None]]
) -> Finding:
    changed = [place for place, (before, after) in enumerate(seen) if before != after]
    if finding.what == "pictures changed":
        owners = {before for before, _ in seen if before}
        taken = [seen[place][1] for place in changed if seen[place][1] in owners]
        share = finding.value
        if len(set(taken)) > max(1, len(changed) / 2):
            says = of_products(share, "shows the picture of another product", "show the pictures of other products")
            return replace(finding, says=says, broken=True)
        return finding
    if finding.what == "products without a picture":
        return replace(finding, examples=_some(rows, [place for place in changed if seen[place][1] is None]))
    common = Counter(after for _, after in seen if after).most_common(1)
    shared = [place for place, (_, after) in enumerate(seen) if common and after == common[0][0]]
    return replace(finding, examples=_some(rows, [place for place in shared if place in set(changed)] or shared))


def _some(rows: Sequence[tuple[int, int]], places: Sequence[int]) -> tuple[Example, ...]:
    return tuple(rows[place] for place in places[:EXAMPLES])

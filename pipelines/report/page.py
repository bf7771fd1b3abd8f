"""The report of a night: `report.html` for people, `report.md` for chat, `report.json` for programs and the next night.

The page is one file that loads nothing: styles, plots (SVG) and thumbnails stand in it, and it runs no script. All that
comes from the catalog is escaped: Jinja2 does it for the page, `_plain` for chat.
"""

from __future__ import annotations

import json
import shlex
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
from jinja2 import Environment, FileSystemLoader
from rich.filesize import decimal

from index_builder.manifest import Manifest
from pipelines.published.version_diff import VersionDiff
from pipelines.report import plots
from pipelines.report.cards import SHOWN_ANSWERS, Cards, changed_products
from pipelines.report.causes import Cause, causes_of, shown_first
from pipelines.report.contents import moment_of
from pipelines.report.night import Finding, Night
from pipelines.report.pictures import Picture
from pipelines.report.queries import CanaryAnswer, ComparedQuery, mean_overlap
from pipelines.report.texts import TextFacts
from pipelines.report.usual import NIGHTS_KEPT, Counts, Tile, tiles_of

HTML_FILE, MARKDOWN_FILE, JSON_FILE = "report.html", "report.md", "report.json"
MOST_BYTES = 5_000_000
_WORST_QUERIES = 4

Status = Literal["published", "held", "waiting"]


@dataclass(frozen=True, kw_only=True, slots=True)
class NightCost:
    """What one of the last nights took until its report: `seconds` that workers were busy, and `money`, by stage; no
    money where `plan.prices` has none.
    """

    name: str
    seconds: Mapping[str, float]
    money: Mapping[str, float] = field(default_factory=dict)

    @property
    def total(self) -> float | None:
        """Of all stages; None without prices."""
        return sum(self.money.values()) if self.money else None


@dataclass(frozen=True, kw_only=True, slots=True)
class GateLine:
    """A gate: its key, what was found, its limit and how far from it, in words; `holds` is None where it is open."""

    key: str
    found: str
    limit: str
    margin: str
    holds: bool | None


@dataclass(frozen=True, kw_only=True, slots=True)
class LetterGroup:
    """Dead letters of one kind: how many, what to do about them, and some of them as rows of `rejected.parquet`."""

    kind: str
    count: int
    examples: Sequence[Mapping[str, Any]]


@dataclass(frozen=True, kw_only=True, slots=True)
class NightReport:
    """What is known of a night when its version is written.

    Attributes:
        manifest, previous: Of the version, and of the one that was published before it, if any.
        failed: The gates that hold it back, in words.
        findings: What a person should look at, the worst first.
        edited: Share of the products whose value changed, by column.
        diff: Products that came, went, changed; None without a version before.
        embedded, carried_over: Products that went through the towers, and that did not.
        queries_note: Which queries were compared, or why none were.
        nights: What the last nights took, the latest first.
        counts_before: `counts` of the nights before this one, the oldest first.
        list_sizes: Products of each inverted list, int64.
        image_sides: Images that were decoded, by the power of two below the shorter side.
    """

    status: Status
    index_uri: str
    manifest: Manifest
    previous: Manifest | None
    gates: Sequence[GateLine]
    failed: Sequence[str]
    findings: Sequence[Finding]
    edited: Mapping[str, float]
    night: Night
    night_before: Night | None
    diff: VersionDiff | None
    embedded: int
    carried_over: int
    canaries: Sequence[CanaryAnswer]
    queries: Sequence[ComparedQuery]
    queries_note: str
    nights: Sequence[NightCost]
    letters: Sequence[LetterGroup]
    counts_before: Sequence[Counts] = ()
    list_sizes: np.ndarray = field(default_factory=lambda: np.empty(0, np.int64))
    image_sides: Mapping[str, int] = field(default_factory=dict)

    @property
    def causes(self) -> list[Cause]:
        """The findings by what causes them, broken ones first."""
        return causes_of(self.findings)

    @property
    def headline(self) -> str:
        """The night in one plain sentence."""
        causes = self.causes
        if causes:
            more = f", and {len(causes) - 1:,} more to look at" if len(causes) > 1 else ""
            return f"{causes[0].says.rstrip('.')}{more}"
        if self.failed:
            said = self.failed_plainly[0]
            return f"{said[:1].upper()}{said[1:]}"
        return "Nothing unusual" if self.previous is not None else "Nothing unusual in the first version"

    @property
    def look(self) -> str:
        """How the headline is meant: `broken`, `confirm` or `calm`."""
        if self.status == "held" or any(each.broken for each in self.causes):
            return "broken"
        return "confirm" if self.causes else "calm"

    @property
    def verdict(self) -> str:
        """What became of the night, in one sentence."""
        if self.status == "held":
            keys = dict.fromkeys(text.partition(":")[0] for text in self.failed)
            return f"Held back: {', and '.join(_HELD_BY.get(key, key) for key in keys)}"
        return "Waits for your approval" if self.status == "waiting" else "Published"

    @property
    def failed_plainly(self) -> list[str]:
        """The gates that hold it back without the settings that they hang on."""
        parts = [text.partition(": ") for text in self.failed]
        return [(said if key == "gates.canaries" else said.partition("; ")[0]) or key for key, _, said in parts]

    @property
    def meanwhile(self) -> str:
        """What a night that is held back asks of a person; "" of another one."""
        if self.status != "held":
            return ""
        served = "nothing is published yet"
        if self.previous is not None:
            served = f"searches go on with the night of {moment_of(self.previous.version)}"
        return f"It is not published: {served}. Nothing needs to be done. Approve would publish it as it is."

    @property
    def counts(self) -> dict[str, float]:
        """What is shown beside the same of the last nights."""
        catalog, diff = self.manifest.catalog, self.diff
        counts: dict[str, float] = {"products": catalog.products}
        if diff is not None:
            counts |= {"added": diff.added, "removed": diff.removed, "edited": diff.edited}
        counts |= {"rejected": catalog.rejected, "degraded": catalog.degraded}
        names = ("overlap", "own_title")
        return counts | {name: self.night.figures[name] for name in names if name in self.night.figures}

    @property
    def tiles(self) -> list[Tile]:
        """The figures of the night, beside what is usual."""
        return tiles_of(self.counts, self.counts_before)

    @property
    def mean_overlap(self) -> float | None:
        """Mean share of the first ten answers that both versions have; None without a version before."""
        return mean_overlap(self.queries) if self.previous is not None else None

    @property
    def without_answer(self) -> int:
        """Queries that find nothing."""
        return sum(not query.new for query in self.queries)

    @property
    def commands(self) -> list[tuple[str, str]]:
        """What a person would run next: what it does, and the command."""
        index = shlex.quote(self.index_uri)
        version = self.manifest.version
        approve = ("Approve", f"python -m pipelines.versions approve {version} --index {index}")
        if self.status == "waiting":
            return [approve, ("Hold", f"python -m pipelines.versions hold {version} --reason '...' --index {index}")]
        if self.status == "published" and self.previous is not None:
            return [("Take back", f"python -m pipelines.versions rollback --index {index}")]
        rejected = ("Rejected rows", f"python -m pipelines.versions rejected {version} --index {index}")
        return [*([rejected] if self.letters else []), *([approve] if self.status == "held" else [])]


_GATES = {
    "gates.min_recall": "the index finds the true neighbours",
    "gates.max_rejected_share": "rows that were rejected",
    "gates.max_degraded_share": "products without a usable picture",
    "gates.max_row_change": "how much the catalog grew or shrank",
    "gates.min_precision_cosine": "vectors in a lower precision",
    "gates.canaries": "queries that must find their products",
}
_HELD_BY = {
    "gates.min_recall": "the index finds too few of the true neighbours",
    "gates.max_rejected_share": "too many rows were rejected",
    "gates.max_degraded_share": "too many products have no usable picture",
    "gates.max_row_change": "the catalog grew or shrank too much",
    "gates.min_precision_cosine": "vectors of a lower precision are too far off",
    "gates.canaries": "queries miss products that they must find",
}


def changes(report: NightReport) -> tuple[list[tuple[str, str, str]], list[tuple[str, str, str]]]:
    """What changed since the version before, as (what, before, now): for everybody, and of the index and its model."""
    old, new = report.previous, report.manifest
    lines: list[tuple[str, str, str]] = []

    def line(what: str, of: Callable[[Manifest], str]) -> None:
        lines.append((what, "" if old is None else of(old), of(new)))

    line("products", lambda each: f"{each.catalog.products:,}")
    if any(each is not None and each.catalog.vectors for each in (old, new)):
        line("vectors", lambda each: f"{each.catalog.vectors:,}")
    for word in ("rejected", "degraded"):
        line(word, lambda each, word=word: _of_rows(getattr(each.catalog, word), each))  # type: ignore[misc]
    if any(each is not None and each.catalog.left_out for each in (old, new)):
        line("left out by catalog.where", lambda each: f"{each.catalog.left_out:,}")
    for name, figure in (
        ("without a picture", "without_image"),
        ("with the text and picture of another", "repeated_content"),
        ("titles that find their own product", "own_title"),
    ):
        nights = (report.night_before, report.night)
        was, now = (f"{night.figures[figure]:.1%}" if night and figure in night.figures else "" for night in nights)
        if now:
            lines.append((name, was, now))
    of_everybody = len(lines)
    line("encoder", lambda each: f"{each.encoder.model or 'made elsewhere'} {each.encoder.fingerprint}")
    line("precision of its towers", lambda each: each.encoder.precision or "not said")
    line("codec", lambda each: each.codec.fingerprint[:16] or "none")
    line("index", lambda each: each.index.factory)
    line("nprobe, candidates re-ranked", lambda each: f"{each.index.search.nprobe}, {each.index.search.refine_factor}")
    line(f"recall {new.recall.k}@{new.recall.k}", lambda each: f"{each.recall.value:.4f}")
    error = lambda each: "" if each.codec.quantization_error is None else f"{each.codec.quantization_error:.4f}"  # noqa: E731
    line("quantization error", error)
    line("imbalance of the lists", lambda each: f"{each.codec.list_imbalance:.2f}")
    line("files that a search reads", lambda each: decimal(each.loaded_bytes) if each.loaded_bytes else "")
    shown, of_index = (
        [each for each in part if each[1] or each[2]] for part in (lines[:of_everybody], lines[of_everybody:])
    )
    return shown, of_index


def _of_rows(count: int, manifest: Manifest) -> str:
    return f"{count:,} ({count / max(1, manifest.catalog.rows_in):.2%})"


def render_html(report: NightReport, picture: Picture) -> str:
    """The page, of at most `MOST_BYTES`: without thumbnails where they would make it larger."""
    page = _render(report, picture)
    return page if len(page.encode()) <= MOST_BYTES else _render(report, lambda of_new, row: None)


def _render(report: NightReport, picture: Picture) -> str:
    folder = Environment(loader=FileSystemLoader(Path(__file__).parent), autoescape=True, trim_blocks=True)
    filters: dict[str, Callable[[Any], str]] = {
        "percent": lambda share: f"{share:.1%}",
        "thousands": lambda number: f"{number:,}",
        "money": money,
        "day": moment_of,
    }
    folder.filters |= filters
    cards = Cards(new=report.night, old=report.night_before, picture=picture)
    moved = sorted((query for query in report.queries if query.old), key=lambda query: query.overlap)
    worst = [query for query in moved if query.overlap < 1.0][:_WORST_QUERIES]

    shown, of_index = changes(report)
    return folder.get_template(HTML_FILE).render(
        report=report,
        causes=list(shown_first(report.causes)),
        cards=cards,
        changes=shown,
        index_changes=of_index,
        changed=changed_products(cards, report.diff, report.edited),
        moved=cards.queries(worst),
        as_usual=next(
            (tile for tile in report.tiles if tile.key == "overlap" and tile.usual and not tile.unusual), None
        ),
        letters_of={group.kind: group for group in report.letters},
        gates=[(_GATES.get(each.key, each.key), each) for each in report.gates if each.holds is not None],
        plots=[(title, svg) for title, svg in _plots(report) if svg],
        shown_answers=SHOWN_ANSWERS,
    )


def _plots(report: NightReport) -> list[tuple[str, str]]:
    manifest, chosen = report.manifest, report.manifest.index.search
    texts = [
        TextFacts.of(night.sample["text"].to_pylist()).lengths
        if night is not None and night.sample is not None
        else None
        for night in (report.night_before, report.night)
    ]
    empty = np.empty(0, np.int64)
    drawn = [
        (
            "Recall by list of search settings",
            plots.recall_by_setting(manifest.recall.table, (chosen.nprobe, chosen.refine_factor), manifest.recall.k),
        ),
        (
            "Time of each stage over the last nights",
            plots.stage_bars(
                "times", [(night.name, night.seconds) for night in report.nights], "seconds that workers were busy"
            ),
        ),
        (
            "Money of each stage over the last nights",
            plots.stage_bars("money", [(night.name, night.money) for night in report.nights], "by plan.prices"),
        ),
    ]
    if texts[1] is not None:
        old = texts[0] if texts[0] is not None else empty
        drawn.append(
            (
                "Lengths of texts",
                plots.histograms(
                    "text-lengths", old, texts[1], "characters; all texts longer than 120 in the last bar"
                ),
            )
        )
    if report.image_sides:
        order = sorted(report.image_sides.items(), key=lambda each: int(each[0]) if each[0].isdecimal() else 0)
        sides = {name: count for name, count in order if name != "?"}
        title = f"Sizes of the {sum(sides.values()):,} images decoded for its vectors"
        if len(sides) > 1:
            drawn.append((title, plots.counts_by_name("image-sides", sides, "pixels of the shorter side, at least")))
    if len(report.list_sizes) > 1:
        drawn.append(
            ("Balance of the lists", plots.histograms("list-sizes", empty, report.list_sizes, "products of a list"))
        )
    return drawn


def money(amount: float) -> str:
    """An amount of whatever money in two decimals, or in two digits that count."""
    return f"{amount:,.2f}" if amount >= 0.1 or not amount else f"{amount:.2g}"


def to_json(report: NightReport) -> dict[str, Any]:
    """What programs and the next night read."""
    return {
        "version": report.manifest.version,
        "status": report.status,
        "verdict": report.verdict,
        "headline": report.headline,
        "failed_gates": list(report.failed),
        "gates": [asdict(each) for each in report.gates],
        "findings": [asdict(each) for each in report.findings],
        "previous_version": report.previous.version if report.previous else None,
        "products": {
            "added": report.diff.added if report.diff else None,
            "removed": report.diff.removed if report.diff else None,
            "edited": report.diff.edited if report.diff else None,
            "embedded": report.embedded,
            "carried_over": report.carried_over,
        },
        "canaries": [
            {"query": each.canary.query, "k": each.canary.k, "missing": list(each.missing)} for each in report.canaries
        ],
        "queries": {
            "compared": len(report.queries),
            "mean_overlap": report.mean_overlap,
            "without_answer": report.without_answer,
        },
        "nights": [{"night": each.name, "seconds": dict(each.seconds), "money": each.total} for each in report.nights],
        "counts": [*report.counts_before, report.counts][-NIGHTS_KEPT:],
        "figures": dict(report.night.figures),
        "edited": dict(report.edited),
    }


def read_figures(data: bytes) -> tuple[dict[str, float], dict[str, float]]:
    """`figures` and `edited` of a night's `report.json`; empty where it has none, or is no such file."""
    try:
        values = json.loads(data)
        return dict(values["figures"]), dict(values["edited"])
    except (ValueError, KeyError, TypeError):
        return {}, {}

"""The report of a night: `report.html` for people, `report.md` for chat, `report.json` for programs and the next night.

The page is one file that loads nothing: styles, plots (SVG) and thumbnails stand in it, and it runs no script. All that
comes from the catalog is escaped: Jinja2 does it for the page, `_plain` for chat.
"""

from __future__ import annotations

import base64
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
from pipelines.catalog.dead_letters import cut_at_word, one_line
from pipelines.published.version_diff import VersionDiff
from pipelines.report import plots
from pipelines.report.contents import TextFacts
from pipelines.report.night import Finding, Night, title_column
from pipelines.report.queries import Answer, CanaryAnswer, ComparedQuery, own_found

HTML_FILE, MARKDOWN_FILE, JSON_FILE = "report.html", "report.md", "report.json"
MOST_BYTES = 5_000_000
MOST_CHARACTERS = 3500
"""Of `report.md`: what chat systems take in one message."""
WORST_QUERIES, SHOWN_ANSWERS = 6, 6
_TITLE_CHARACTERS = 80
_FINDINGS_IN_CHAT = 8

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
    list_sizes: np.ndarray = field(default_factory=lambda: np.empty(0, np.int64))
    image_sides: Mapping[str, int] = field(default_factory=dict)

    @property
    def verdict(self) -> str:
        """What became of the night, in one sentence."""
        if self.status == "held":
            keys = ", ".join(dict.fromkeys(text.partition(":")[0] for text in self.failed))
            return f"Held back by {keys}"
        return "Waits for your approval" if self.status == "waiting" else "Published"

    @property
    def mean_overlap(self) -> float | None:
        """Mean share of the first ten answers that both versions have; None without a version before."""
        compared = [query.overlap for query in self.queries if self.previous is not None]
        return float(np.mean(compared)) if compared else None

    @property
    def without_answer(self) -> int:
        """Queries that find nothing."""
        return sum(not query.new for query in self.queries)

    @property
    def commands(self) -> list[str]:
        """What a person would run next."""
        index = shlex.quote(self.index_uri)
        version = self.manifest.version
        if self.status == "waiting":
            return [
                f"python -m pipelines.versions approve {version} --index {index}",
                f"python -m pipelines.versions hold {version} --reason '...' --index {index}",
            ]
        if self.status == "published" and self.previous is not None:
            return [f"python -m pipelines.versions rollback --index {index}"]
        rejected = [f"python -m pipelines.versions rejected {version} --index {index}"] if self.letters else []
        if self.status == "held":
            return [f"python -m pipelines.versions approve {version} --index {index}", *rejected]
        return rejected


Picture = Callable[[bool, int], bytes | None]
"""The thumbnail (WebP) of a row of the version, or with False of the one before; None without one."""


def changes(report: NightReport) -> list[tuple[str, str, str]]:
    """What changed since the version before, as (what, before, now)."""
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
    return [each for each in lines if each[1] or each[2]]


def _of_rows(count: int, manifest: Manifest) -> str:
    return f"{count:,} ({count / max(1, manifest.catalog.rows_in):.2%})"


def render_html(report: NightReport, picture: Picture) -> str:
    """The page, of at most `MOST_BYTES`: without thumbnails where they would make it larger."""
    page = _render(report, picture)
    return page if len(page.encode()) <= MOST_BYTES else _render(report, lambda of_new, row: None)


def _render(report: NightReport, picture: Picture) -> str:
    folder = Environment(loader=FileSystemLoader(Path(__file__).parent), autoescape=True, trim_blocks=True)
    folder.filters |= {
        "percent": lambda share: f"{share:.1%}",
        "thousands": lambda number: f"{number:,}",
        "money": money,
    }
    titles = {True: _Titles(report.night), False: _Titles(report.night_before)}

    def card(answer: Answer, of_new: bool) -> dict[str, Any]:
        data = picture(of_new, answer.row)
        title = titles[of_new].of(answer.row)
        source = _in_page(data)
        initials = "".join(word[0] for word in title.split()[:2]).upper() or "?"
        return {"id": answer.product_id, "title": title, "source": source, "initials": initials, "score": answer.score}

    def examples(finding: Finding) -> list[dict[str, Any]]:
        shown = [
            {"title": titles[True].of(new), "old": _in_page(picture(False, old)), "new": _in_page(picture(True, new))}
            for old, new in finding.examples
        ]
        return [each for each in shown if each["old"] and each["new"]]

    def letter_picture(letter: Mapping[str, Any]) -> str | None:
        row = letter.get("row")
        return None if row is None else _in_page(picture(True, row))

    moved = sorted((query for query in report.queries if query.old), key=lambda query: query.overlap)
    shown: list[dict[str, Any]] = [
        {
            "query": query,
            "old": [
                card(each, False) | {"lost": each.product_id not in {other.product_id for other in query.new}}
                for each in query.old[:SHOWN_ANSWERS]
            ],
            "new": [
                card(each, True) | {"new": each.product_id not in {other.product_id for other in query.old}}
                for each in query.new[:SHOWN_ANSWERS]
            ],
        }
        for query in moved[:WORST_QUERIES]
        if query.overlap < 1.0
    ]
    return folder.get_template(HTML_FILE).render(
        report=report,
        changes=changes(report),
        moved=shown,
        own_title=own_found(report.queries),
        plots=[(title, svg) for title, svg in _plots(report) if svg],
        has_pictures=any(each["source"] for query in shown for each in (*query["old"], *query["new"])),
        shown_answers=SHOWN_ANSWERS,
        letter_picture=letter_picture,
        examples=examples,
    )


def _in_page(picture: bytes | None) -> str | None:
    """A WebP picture as an address that holds it."""
    return None if picture is None else f"data:image/webp;base64,{base64.b64encode(picture).decode()}"


class _Titles:
    """What products are called: the column of titles, else the first of texts."""

    def __init__(self, night: Night | None) -> None:
        names = [] if night is None else night.columns
        of_texts = [name for name in names if night and str(night.products.schema.field(name).type) == "string"]
        name = (night and title_column(night.products)) or next(iter(of_texts), None)
        self._column = None if night is None or name is None else night.products.column(name)

    def of(self, row: int) -> str:
        """The title of a row, "" without one."""
        value = None if self._column is None else self._column[row].as_py()
        return one_line(value, _TITLE_CHARACTERS) if value else ""


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
            plots.stage_bars("times", [(night.name, night.seconds) for night in report.nights], "busy seconds"),
        ),
        (
            "Money of each stage over the last nights",
            plots.stage_bars("money", [(night.name, night.money) for night in report.nights], "by plan.prices"),
        ),
    ]
    if texts[1] is not None:
        old = texts[0] if texts[0] is not None else empty
        drawn.append(
            ("Lengths of texts", plots.histograms("text-lengths", old, texts[1], "characters of a text, up to 121"))
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


def render_markdown(report: NightReport) -> str:
    """The report in at most `MOST_CHARACTERS`, the verdict first."""
    manifest = report.manifest
    lines = [f"**{report.verdict}**: {manifest.version} ({manifest.catalog.products:,} products)"]
    lines += [f"- {_plain(text)}" for text in report.failed]
    if report.findings:
        lines += ["", f"**Look at this before approving** ({len(report.findings)})"]
        lines += [f"- {_plain(each.what)}: {_plain(each.found)}" for each in report.findings[:_FINDINGS_IN_CHAT]]
    elif report.previous is not None:
        lines += ["", "Nothing unusual beside the version before."]
    if report.diff is not None:
        diff = report.diff
        lines += [
            "",
            f"Products: +{diff.added:,} -{diff.removed:,}, {diff.edited:,} edited; {report.embedded:,} embedded",
        ]
    if report.canaries:
        missed = [each for each in report.canaries if each.missing]
        lines.append(f"Canaries: {len(report.canaries) - len(missed):,} of {len(report.canaries):,} found")
    if report.mean_overlap is not None:
        empty = f", {report.without_answer:,} without an answer" if report.without_answer else ""
        lines.append(
            f"First ten answers as before: {report.mean_overlap:.0%} over {len(report.queries):,} queries{empty}"
        )
    open_gates = [f"{each.key.removeprefix('gates.')} {each.margin}" for each in report.gates if each.margin]
    lines.append(f"Margins: {'; '.join(open_gates)}" if open_gates else "")
    if report.letters:
        counts = ", ".join(f"{_plain(group.kind)} {group.count:,}" for group in report.letters[:6])
        lines.append(f"Dead letters: {counts}")
    if report.nights:
        seconds = report.nights[0].seconds
        lines.append(
            f"Busy seconds: {', '.join(f'{stage} {value:.0f}' for stage, value in seconds.items() if value >= 1)}"
        )
        if costs := [money(night.total) for night in report.nights[:2] if night.total is not None]:
            before = f", the night before {costs[1]}" if costs[1:] else ""
            lines.append(f"Cost until this report: {costs[0]}{before}")
    lines += ["", *(f"`{command}`" for command in report.commands), f"{HTML_FILE} beside the version has the rest."]
    text = "\n".join(lines) + "\n"
    if len(text) <= MOST_CHARACTERS:
        return text
    return f"{cut_at_word(text, MOST_CHARACTERS - 40)}\n... ({HTML_FILE} has the rest)\n"


def money(amount: float) -> str:
    """An amount of whatever money in two decimals, or in two digits that count."""
    return f"{amount:,.2f}" if amount >= 0.1 or not amount else f"{amount:.2g}"


def _plain(text: str) -> str:
    """A text of the catalog for chat: nothing in it is a link, a mention, code or markup."""
    swapped = str.maketrans({"<": "‹", ">": "›", "[": "(", "]": ")", "`": "'", "@": "＠", "|": "/"})
    return one_line(text, 400).translate(swapped).replace("://", ":/ /")


def to_json(report: NightReport) -> dict[str, Any]:
    """What programs and the next night read."""
    return {
        "version": report.manifest.version,
        "status": report.status,
        "verdict": report.verdict,
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

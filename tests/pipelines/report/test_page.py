from __future__ import annotations

import json
from dataclasses import replace
from html.parser import HTMLParser
from random import Random

import numpy as np
import pyarrow as pa
import pytest

from index_builder.manifest import EncoderSummary, IndexSummary, Manifest, RecallSummary, SearchSettings
from index_builder.spec import IndexSpec
from index_builder.tuning import SearchMeasurement
from pipelines.config.job import Canary
from pipelines.published.version_diff import compare_products
from pipelines.report import page
from pipelines.report.chat import MOST_CHARACTERS, render_markdown
from pipelines.report.contents import find_faults
from pipelines.report.night import Finding
from pipelines.report.page import GateLine, LetterGroup, NightCost, NightReport
from pipelines.report.queries import Answer, CanaryAnswer, ComparedQuery, Query
from pipelines.report.usual import read_counts
from tests.reliability.faults import first_night, good_night, night_of

HOSTILE = (
    '<script>alert(1)</script><img src=x onerror=alert(2)>" onmouseover="x [click](https://evil.example) @all `code`'
)


@pytest.fixture(scope="module")
def report() -> NightReport:
    """A night of which every text that a catalog may bring is hostile."""
    random = Random(1)
    before = first_night(random, 120)
    catalog = good_night(before, random)
    for row in catalog.rows:
        row["title"] = row["kind"] = HOSTILE
    old, new = night_of(before, random)[0], night_of(catalog, random)[0]
    findings, edited = find_faults(old, new)
    manifests = [
        Manifest(
            catalog=night.catalog,
            encoder=EncoderSummary(model="clip", fingerprint=night.encoder, dim=32),
            codec=night.codec,
            index=IndexSummary(
                spec=IndexSpec.parse("Flat", 32), factory="Flat", serving_shards=1, search=SearchSettings(nprobe=1)
            ),
            recall=RecallSummary(
                k=10,
                value=0.99,
                queries=50,
                table=tuple(SearchMeasurement(nprobe=n, recall=1 - 0.1 / n, latency_ms=0.1 * n) for n in (1, 2, 4)),
            ),
            version=f"2026112{number}T030000Z-0123456789ab",
        )
        for number, night in enumerate((old, new))
    ]
    answers = [Answer(product_id=HOSTILE, row=row, score=0.5) for row in range(10)]
    query = ComparedQuery(
        query=Query(text=HOSTILE), old=tuple(answers[:5]), new=(Answer(product_id="x", row=3, score=1.0),)
    )
    letter = {"file": HOSTILE, "unit": "line", "number": 3, "product_id": HOSTILE, "title": HOSTILE, "detail": HOSTILE}
    return NightReport(
        status="waiting",
        index_uri="s3://bucket/index",
        manifest=manifests[1],
        previous=manifests[0],
        gates=[GateLine(key="gates.min_recall", found="recall is 0.99", limit="≥ 0.05", margin="+0.94", holds=True)],
        failed=[],
        findings=findings,
        edited=edited,
        night=new,
        night_before=old,
        diff=compare_products(manifests, [old.products, new.products]),
        embedded=10,
        carried_over=110,
        canaries=[CanaryAnswer(canary=Canary(query=HOSTILE, ids=(HOSTILE,)), missing=(HOSTILE,))],
        queries=[query],
        queries_note="One query.",
        nights=[
            NightCost(name=name, seconds={"embed": 12.0, "number": 0.5}, money={"embed": amount, "number": 0.004})
            for name, amount in (("11-26 03:00", 0.4), ("11-25 03:00", 0.3))
        ],
        letters=[LetterGroup(kind="rejected: missing_id", count=1, examples=[letter | {"picture": HOSTILE}])],
        list_sizes=np.array([4, 5, 6]),
        image_sides={"64": 3, "512": 9, "?": 1},
    )


@pytest.fixture(scope="module")
def html(report) -> str:
    return page.render_html(report, lambda of_new, row: None)


@pytest.fixture
def no_plots(monkeypatch):
    """They take most of the time of a page."""
    monkeypatch.setattr(page, "_plots", lambda report: [])


class Parsed(HTMLParser):
    """The page's elements, their attributes, and its text."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))

    def handle_data(self, data):
        self.text += data


def test_the_page_says_its_verdict_first_and_runs_and_loads_nothing(html):
    parsed = Parsed(html)
    assert parsed.text.index("Waits for your approval") < parsed.text.index("Looks broken")
    assert parsed.text.index("Looks broken") < parsed.text.index("gates.min_recall")
    assert "versions approve 20261121T030000Z-0123456789ab --index s3://bucket/index" in parsed.text
    assert "script" not in {tag for tag, _ in parsed.elements}
    loaded = [
        value
        for _, attributes in parsed.elements
        for name, value in attributes.items()
        if name in ("src", "href", "srcset", "style") and "//" in (value or "")
    ]
    assert loaded == []
    assert not any(name.startswith("on") for _, attributes in parsed.elements for name in attributes)
    assert parsed.text.count("<script>alert(1)</script>") > 10, "what the catalog says is shown as it is"


def test_what_the_last_nights_cost_is_told_by_stage(report, html, no_plots):
    text = " ".join(Parsed(html).text.split())
    assert "cost0.40before 0.30" in text
    assert "11-25 03:00embed 12.0, number 0.5embed 0.30, number 0.0040.30" in text
    assert "Cost until this report: 0.40, the night before 0.30" in render_markdown(report)
    unpriced = replace(report, nights=[replace(night, money={}) for night in report.nights])
    assert "cost" not in Parsed(page.render_html(unpriced, lambda of_new, row: None)).text


def test_the_plots_stand_in_the_page_in_its_own_colours(html):
    assert html.count("<svg") == 6
    assert "var(--main)" in html and "#0102" not in html
    ids = [attributes["id"] for _, attributes in Parsed(html).elements if "id" in attributes]
    assert len(ids) == len(set(ids))


def test_thumbnails_stand_in_the_page_unless_they_make_it_too_large(no_plots, report):
    small = page.render_html(report, lambda of_new, row: b"webp" if of_new else None)
    assert small.count("data:image/webp;base64,d2VicA==") > 1
    large = page.render_html(report, lambda of_new, row: bytes(2_000_000))
    assert len(large.encode()) < page.MOST_BYTES and "data:image/webp" not in large


def test_the_message_for_chat_is_short_and_brings_no_markup(report):
    text = render_markdown(report)
    assert text.startswith("**Every product has markup in its text")
    assert "(waits for your approval): 20261121T030000Z-0123456789ab" in text.split("\n")[0]
    assert len(text) <= MOST_CHARACTERS
    assert not {"<", ">", "[", "@"} & set(text)
    assert "https://evil" not in text
    long = replace(
        report, findings=[replace(each, found=each.found * 30, says=each.says * 30) for each in report.findings] * 8
    )
    assert len(render_markdown(long)) <= MOST_CHARACTERS


@pytest.mark.parametrize(
    ("status", "failed", "verdict"),
    [
        ("published", [], "Published"),
        (
            "held",
            ["gates.min_recall: recall is 0.01", "gates.canaries: a"],
            "Held back: the index finds too few of the true neighbours, and queries miss products that they must find",
        ),
    ],
)
def test_the_verdict_says_what_the_gates_found(no_plots, report, status, failed, verdict):
    other = replace(report, status=status, failed=failed)
    assert other.verdict == verdict
    assert verdict in Parsed(page.render_html(other, lambda of_new, row: None)).text


def test_a_first_night_compares_with_nothing(no_plots, report):
    first = replace(
        report, previous=None, night_before=None, diff=None, findings=[], queries=[], canaries=[], nights=[]
    )
    text = Parsed(page.render_html(first, lambda of_new, row: None)).text
    assert "the first version here" in text and "Nothing unusual" in text
    assert render_markdown(first)


def test_the_page_begins_with_what_is_wrong_in_a_sentence(no_plots, report):
    found = Finding(
        kind="lost",
        about="price",
        what="price lost its values",
        says="Every product lost its price.",
        found="100%",
        value=1.0,
        limit=0.03,
        broken=True,
        examples=((0, 0), (1, None)),
        shows="price",
    )
    asked = replace(found, kind="edits", about="kind", broken=False, says="30% of the products have another kind")
    night = replace(report, findings=[asked, found])
    assert (night.headline, night.look) == ("Every product lost its price, and 1 more to look at", "broken")
    text = " ".join(Parsed(page.render_html(night, lambda of_new, row: None)).text.split())
    assert text.startswith("Every product lost its price, and 1 more to look at (2026-11-21 03:00)")
    assert text.index("Looks broken") < text.index("Please confirm") < text.index("none of them looks at what")
    old, new = (night.products["price"][0].as_py() for night in (report.night_before, report.night))
    assert f"price {old:,.2f} → {new:,.2f}" in text and "→ gone" in text
    assert replace(report, findings=[asked]).look == "confirm"
    quiet = replace(report, findings=[])
    assert (quiet.headline, quiet.look) == ("Nothing unusual", "calm")
    assert replace(quiet, status="held", failed=["gates.min_recall: recall is 0.01"]).headline == "Recall is 0.01"


def test_a_night_that_is_held_back_is_told_in_plain_words_and_its_settings_are_folded(no_plots, report):
    said = "763 of 1,526 rows (50.0%) were rejected, at most 5.0% are allowed"
    failed = [f"gates.max_rejected_share: {said}; most: duplicate_id (763), see catalog.id_field; where that is right"]
    night = replace(report, status="held", failed=failed)
    text = " ".join(Parsed(page.render_html(night, lambda of_new, row: None)).text.split())
    first, _, folded = text[: text.index("Looks broken")].partition("Settings that this hangs on")
    assert "Held back: too many rows were rejected" in first and f"{said}." in first
    assert "searches go on with the night of 2026-11-20 03:00. Nothing needs to be done." in first
    assert "gates." not in first and "catalog." not in first and failed[0] in folded
    alone = replace(night, findings=[])
    assert Parsed(page.render_html(alone, lambda of_new, row: None)).text.count(said) == 3
    assert replace(report, failed=[]).meanwhile == ""
    assert "nothing is published yet" in replace(alone, previous=None).meanwhile


def test_answers_that_came_or_went_are_told_by_why(no_plots, report):
    old, new = report.night_before.products["product_id"], report.night.products["product_id"]
    kept = sorted(set(old.to_pylist()) & set(new.to_pylist()))
    (gone, *_), (came, *_) = (sorted(set(a.to_pylist()) - set(b.to_pylist())) for a, b in ((old, new), (new, old)))
    sides = [[*kept[:8], gone, kept[8]], [kept[1], kept[0], *kept[2:8], came, kept[9]]]
    answers = [tuple(Answer(product_id=name, row=0, score=1.0) for name in side) for side in sides]
    asked = ComparedQuery(query=Query(text="mug"), old=answers[0], new=answers[1])
    text = " ".join(Parsed(page.render_html(replace(report, queries=[asked]), lambda of_new, row: None)).text.split())
    for word in (
        "removed from the shop",
        "no longer found",
        "new in the shop",
        "newly found",
        "1. now 2.",
        "1. was 2.",
    ):
        assert word in text, word


def test_answers_that_moved_as_usual_are_folded(no_plots, report):
    answers = tuple(Answer(product_id=str(row), row=row, score=0.5) for row in range(11))
    asked = ComparedQuery(query=Query(text="mug"), old=answers[:10], new=answers[1:])
    assert (asked.kept, asked.most, asked.overlap) == (9, 10, 0.9)
    figures = report.night.figures | {"overlap": 0.8}
    night = replace(report, queries=[asked], night=replace(report.night, figures=figures))
    folded = "Search answers moved as on a usual night: 80% of the first ten are those of before, usually about"
    for usual, said in ((0.88, True), (0.96, False)):
        other = replace(night, counts_before=[{"overlap": usual}] * 2)
        text = Parsed(page.render_html(other, lambda of_new, row: None)).text
        assert (folded in text, "9 of 10 kept" in text) == (said, True)
    assert folded not in Parsed(page.render_html(night, lambda of_new, row: None)).text


def test_the_next_night_reads_its_figures_back(report):
    data = json.dumps(page.to_json(report)).encode()
    assert page.read_figures(data) == (report.night.figures, report.edited)
    assert page.read_figures(b"not JSON") == page.read_figures(b"[]") == ({}, {})
    assert read_counts(data) == [report.counts]
    later = replace(report, counts_before=[{"removed": 4.0}] * 12)
    assert len(read_counts(json.dumps(page.to_json(later)).encode())) == 10
    assert read_counts(b"not JSON") == read_counts(b"[]") == []
    assert page.read_figures(data) == (report.night.figures, report.edited)
    assert page.read_figures(b"not JSON") == page.read_figures(b"[]") == ({}, {})


def test_products_without_a_text_column_have_no_title(no_plots, report):
    bare = replace(
        report.night, rows=np.arange(10), products=pa.table({"product_id": ["a"] * 10, "price": list(range(10))})
    )
    text = Parsed(page.render_html(replace(report, night=bare, findings=[]), lambda of_new, row: None)).text
    assert "before" in text

"""Products and queries as the page shows them: with picture, title, and what became of them."""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipelines.catalog.dead_letters import MAX_TITLE_CHARACTERS, Reason, one_line
from pipelines.published.version_diff import VersionDiff
from pipelines.report.causes import Cause
from pipelines.report.columns import EDITED, MOST_VALUES
from pipelines.report.night import TEXT, Example, Finding, Night, Pairs, in_words, title_column
from pipelines.report.pictures import Picture
from pipelines.report.queries import Answer, ComparedQuery
from pipelines.report.texts import count_changed_texts

SHOWN_PAIRS, SHOWN_ANSWERS, SHOWN_PRODUCTS, SHOWN_CATEGORIES = 4, 6, 6, 8
_TITLE_CHARACTERS, _VALUE_CHARACTERS = 80, 90
_WITHOUT_QUERY = ("column", "lost", "edits", "spread", "letters", "rows", "codec")
"""Kinds of causes that no query shows."""
_CATEGORIES = ("category", "kind", "product_type", "type", "department", "group")
_WORD = {
    "added": "new in the shop",
    "found": "newly found",
    "removed": "removed from the shop",
    "lost": "no longer found",
}


@dataclass(frozen=True, kw_only=True)
class Cards:
    """Makes what the page shows of products and queries of a night and of the one before it."""

    new: Night
    old: Night | None
    picture: Picture

    def product(self, row: int, *, of_new: bool) -> dict[str, Any]:
        """A product of either night."""
        night = self.new if of_new else self.old
        title = title_of(night, row)
        return {
            "id": "" if night is None else str(night.products["product_id"][row].as_py()),
            "title": title,
            "source": in_page(self.picture(of_new, row)),
            "initials": "".join(word[0] for word in title.split()[:2]).upper() or "?",
        }

    def letter(self, letter: Mapping[str, Any]) -> dict[str, Any]:
        """What a dead letter says of its product: its picture, its title, the text behind it, and of a second row with
        an id whether its text is that of the kept one, as far as letters and samples keep it.
        """
        row, text = letter.get("row"), letter.get("title") or ""
        title = "" if row is None else title_of(self.new, row)
        title = title if text.startswith(title) else ""
        source = None if row is None else in_page(self.picture(True, row))
        kept = None
        if row is not None and letter.get("reason") == Reason.duplicate_id:
            kept = _sampled_text(self.new, row)
        same = None if kept is None else one_line(kept, MAX_TITLE_CHARACTERS) == text
        return {
            "source": source,
            "initials": "?",
            "title": title,
            "text": in_short(text.removeprefix(title).strip(), ""),
            "same": same,
        }

    def pairs(self, cause: Cause) -> list[dict[str, Any]]:
        """Products that show a cause, before and now."""
        finding = next((each for each in cause.findings if each.examples), cause.finding)
        word = "new" if finding.kind == "products" else ""
        return [self._pair(example, finding.shows, word) for example in finding.examples[:SHOWN_PAIRS]]

    def _pair(self, example: Example, shows: str, alone: str) -> dict[str, Any]:
        """A product, before and now; `alone` is said of one that only this night has."""
        before, after = example
        old = None if before is None else self.product(before, of_new=False)
        new = None if after is None else self.product(after, of_new=True)
        values = [self._value(row, shows, of_new=of_new) for of_new, row in ((False, before), (True, after))]
        same = old is not None and new is not None and old["source"] == new["source"]
        titles = [each and each["title"] for each in (old, new)]
        if shows == title_column(self.new.products):
            titles = ["", ""]
        if shows == TEXT:  # the title stands before the text, unless it is what changed
            title, stays = titles[1] or "", titles[0] == titles[1]
            stays = stays and all(value is None or value.startswith(title) for value in values)
            if stays:
                values = [None if value is None else value.removeprefix(title).strip() or "none" for value in values]
            titles = titles if stays else ["", ""]
        became = "gone" if new is None else alone if old is None else ""
        return {"old": old, "new": new, "same": same, "was": values[0], "now": values[1], "became": became} | {
            "title": titles[1] or titles[0],
            "shows": "" if shows in ("", TEXT) else in_words(shows),
        }

    def _value(self, row: int | None, shows: str, *, of_new: bool) -> str | None:
        """What a finding shows of a product: None where it has no such product, or shows nothing."""
        night = self.new if of_new else self.old
        if row is None or not shows or night is None:
            return None
        if shows == TEXT:
            return in_short(_sampled_text(night, row))
        return in_short(night.products[shows][row].as_py() if shows in night.products.column_names else None)

    def queries(self, queries: Sequence[ComparedQuery], shown: int = SHOWN_ANSWERS) -> list[dict[str, Any]]:
        """Queries with their answers before and now."""
        asked = {each.product_id for query in queries for each in (*query.old, *query.new)}
        there = [_there(night, asked) for night in (self.old, self.new)]
        return [self._query(query, there, shown) for query in queries]

    def _query(self, query: ComparedQuery, there: Sequence[set[str]], shown: int) -> dict[str, Any]:
        ranks = [{each.product_id: rank for rank, each in enumerate(side, 1)} for side in (query.old, query.new)]
        sides = {}
        for of_new, (name, answers) in enumerate((("old", query.old), ("new", query.new))):
            other = ranks[not of_new]
            picked = _worth_showing(answers, other, shown)
            sides[name] = [
                self.product(each.row, of_new=bool(of_new))
                | {"rank": ranks[of_new][each.product_id], "other": other.get(each.product_id)}
                | _became(each.product_id, other, there, of_new=bool(of_new))
                for each in picked
            ]
        return {"query": query} | sides

    def query_of(self, cause: Cause, queries: Sequence[ComparedQuery]) -> list[dict[str, Any]]:
        """The query that shows a cause best, if any does: of those of a category's products where one is gone."""
        asked = [query for query in queries if query.old and query.query.row_before is not None]
        asked = asked or [query for query in queries if query.old]
        if cause.finding.kind == "category":
            asked = self._of_category(cause.finding, asked)
        elif cause.finding.kind in _WITHOUT_QUERY:
            return []
        elif cause.finding.kind != "products":
            asked = self._still_there(asked) or asked
        worst = min(asked, key=lambda query: query.overlap, default=None)
        return [] if worst is None or worst.overlap == 1.0 else self.queries([worst], 3)

    def _still_there(self, queries: Sequence[ComparedQuery]) -> list[ComparedQuery]:
        """The queries whose product this night has too: what moved in them did not leave the shop."""
        if self.old is None:
            return []
        products = [
            (query, self.old.products["product_id"][row].as_py())
            for query in queries
            if (row := query.query.row_before) is not None
        ]
        there = _there(self.new, {name for _, name in products})
        return [query for query, name in products if name in there]

    def _of_category(self, finding: Finding, queries: Sequence[ComparedQuery]) -> list[ComparedQuery]:
        """The queries whose product was of the category that a finding is about."""
        shown = next((before for before, _ in finding.examples if before is not None), None)
        if self.old is None or shown is None:
            return []
        column = self.old.products[finding.shows]
        return [
            query
            for query in queries
            if (row := query.query.row_before) is not None and column[row].as_py() == column[shown].as_py()
        ]


def in_page(picture: bytes | None) -> str | None:
    """A WebP picture as an address that holds it."""
    return None if picture is None else f"data:image/webp;base64,{base64.b64encode(picture).decode()}"


def in_short(value: object, nothing: str = "none") -> str:
    """A value of a product for people."""
    if value is None or value == "":
        return nothing
    return f"{value:,.2f}" if isinstance(value, float) else _shortened(str(value), _VALUE_CHARACTERS)


def _sampled_text(night: Night, row: int) -> str | None:
    """The beginning of the text of a product, if it is sampled and has one."""
    if night.sample is None or (place := pc.index(night.sample["row"], row).as_py()) < 0:
        return None
    return night.sample["text"][place].as_py()


def title_of(night: Night | None, row: int) -> str:
    """What a product is called: by the column of titles, else the first of texts; "" without one."""
    if night is None:
        return ""
    of_texts = (name for name in night.columns if pa.types.is_string(night.products.schema.field(name).type))
    name = title_column(night.products) or next(of_texts, None)
    value = None if name is None else night.products[name][row].as_py()
    return _shortened(value, _TITLE_CHARACTERS) if value else ""


def _shortened(text: str, limit: int) -> str:
    """A text in one line; where it is cut behind a sentence, three dots stand behind it and not four."""
    line = one_line(text, limit)
    return f"{line[:-3].rstrip('. ')}..." if line.endswith("....") else line


def _there(night: Night | None, ids: set[str]) -> set[str]:
    """Those of some ids that a night has."""
    if night is None:
        return set()
    column, wanted = night.products["product_id"], pa.array(sorted(ids), night.products["product_id"].type)
    return set(column.filter(pc.is_in(column, value_set=wanted)).to_pylist())


def _worth_showing(answers: Sequence[Answer], other: Mapping[str, int], shown: int) -> list[Answer]:
    """The answers that came or went, the best ranks first, and of the others the best: in the order of their ranks."""
    moved = [each for each in answers[1:] if each.product_id not in other]
    stayed = [each for each in answers[1:] if each.product_id in other]
    picked = {each.product_id for each in [*answers[:1], *moved, *stayed][:shown]}
    return [each for each in answers if each.product_id in picked]


def _became(name: str, other: Mapping[str, int], there: Sequence[set[str]], *, of_new: bool) -> dict[str, Any]:
    """What is to be said of an answer: whether it came or went with the shop's products, or by being found."""
    if name in other:
        return {"became": "", "word": ""}
    elsewhere = name in there[not of_new]
    became = ("found" if elsewhere else "added") if of_new else ("lost" if elsewhere else "removed")
    return {"became": became, "word": _WORD[became]}


def changed_products(cards: Cards, diff: VersionDiff | None, edited: Mapping[str, float]) -> dict[str, Any]:
    """What came, went and got another price: some products of each, and the categories that grew or shrank."""
    old, new = cards.old, cards.new
    if old is None or diff is None:
        return {"added": [], "removed": [], "categories": [], "prices": [], "texts": (0, 0)}
    added, removed = (
        [cards.product(row, of_new=of_new) for row in _rows(night, names)[:SHOWN_PRODUCTS]]
        for night, names, of_new in ((new, diff.added_examples, True), (old, diff.removed_examples, False))
    )
    name, categories = _categories(old, new)
    return {
        "added": added,
        "removed": removed,
        "category": in_words(name),
        "categories": categories,
        "prices": _prices(cards, old, new, edited),
        "texts": count_changed_texts(old, new),
    }


def _rows(night: Night, ids: Sequence[str]) -> list[int]:
    found = [pc.index(night.products["product_id"], pa.scalar(name)).as_py() for name in ids]
    return [row for row in found if row >= 0]


def _categories(old: Night, new: Night) -> tuple[str, list[tuple[str, int, int]]]:
    """The column that tells categories, and those whose number of products changed most: value, before, now."""
    named = [name for name in _CATEGORIES if name in new.columns and name in old.columns]
    for name in named:
        counts = [
            {each["values"]: each["counts"] for each in night.products[name].value_counts().to_pylist()}
            for night in (old, new)
        ]
        if 1 < len(counts[0]) <= MOST_VALUES:
            lines = [
                (in_short(each), counts[0].get(each, 0), counts[1].get(each, 0)) for each in {**counts[0], **counts[1]}
            ]
            moved = sorted((each for each in lines if each[1] != each[2]), key=lambda each: -abs(each[2] - each[1]))
            return name, moved[:SHOWN_CATEGORIES]
    return "", []


def _prices(cards: Cards, old: Night, new: Night, edited: Mapping[str, float]) -> list[dict[str, Any]]:
    """The products, of those sampled, whose price changed most."""
    prices = [name for name in new.columns if "price" in name.casefold() and 0.0 < edited.get(name, 0.0) <= EDITED]
    if not prices or not pa.types.is_floating(new.products.schema.field(prices[0]).type):
        return []
    pairs = Pairs.of(old, new)
    values = [
        night.products[prices[0]].take(pa.array(rows)).to_numpy().astype(float)
        for night, rows in ((old, pairs.old), (new, pairs.new))
    ]
    with np.errstate(divide="ignore", invalid="ignore"):
        moved = np.abs(np.log(values[1] / values[0]))
    moved[~np.isfinite(moved)] = 0.0
    places = [place for place in np.argsort(-moved, kind="stable")[:SHOWN_PRODUCTS].tolist() if moved[place] > 0]
    return [
        cards.product(int(pairs.new[place]), of_new=True)
        | {"was": in_short(float(values[0][place])), "now": in_short(float(values[1][place]))}
        for place in places
    ]

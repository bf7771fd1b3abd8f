"""Which products and queries a card shows."""

from __future__ import annotations

from random import Random
from types import SimpleNamespace
from typing import Any

import pytest

from pipelines.catalog.dead_letters import MAX_TITLE_CHARACTERS, one_line
from pipelines.published.version_diff import VersionDiff, compare_products
from pipelines.report.cards import SHOWN_PAIRS, Cards, changed_products, in_short
from pipelines.report.causes import causes_of
from pipelines.report.contents import find_faults
from pipelines.report.night import short
from pipelines.report.queries import Answer, ComparedQuery, Query
from pipelines.report.texts import count_changed_texts
from tests.reliability.faults import FAULTS, first_night, good_night, night_of

BEFORE = first_night(Random(3), 400)


def cards_of(fault: str) -> tuple[Cards, list]:
    random = Random(3)
    old, new = (night_of(catalog, random)[0] for catalog in (BEFORE, FAULTS[fault](BEFORE, random)))
    return Cards(new=new, old=old, picture=lambda of_new, row: b"webp"), causes_of(find_faults(old, new)[0])


def asked(cards: Cards, row: int, overlap: int) -> ComparedQuery:
    """A query of the night before, of the product of a row there, of whose answers so many are kept."""
    names = cards.old.products["product_id"].to_pylist()
    answers = [tuple(Answer(product_id=name, row=0, score=1.0) for name in names[:10])]
    answers += [(*answers[0][:overlap], *(Answer(product_id=f"x{n}", row=0, score=1.0) for n in range(10 - overlap)))]
    return ComparedQuery(query=Query(text=f"query {row}", row_before=row), old=answers[0], new=answers[1])


def test_lost_products_are_shown_with_a_query_of_their_category():
    cards, (cause,) = cards_of("one category gone")
    pairs = cards.pairs(cause)
    assert [pair["became"] for pair in pairs] == ["gone"] * SHOWN_PAIRS
    kinds = cards.old.products["kind"].to_pylist()
    dress, other = kinds.index("dress"), next(row for row, kind in enumerate(kinds) if kind != "dress")
    (shown,) = cards.query_of(cause, [asked(cards, other, 0), asked(cards, dress, 4)])
    assert shown["query"].query.text == f"query {dress}"
    assert [card["rank"] for card in shown["old"]] == [1, 5, 6]
    assert {card["word"] for card in shown["new"][1:]} == {"new in the shop"}


@pytest.mark.parametrize(
    ("fault", "shows", "now"),
    [("prices null", "price", "none"), ("titles empty", "title", "none"), ("texts in German", "", "")],
)
def test_what_changed_stands_before_and_after(fault, shows, now):
    cards, (cause,) = cards_of(fault)
    for pair in cards.pairs(cause):
        assert pair["shows"] == shows
        assert pair["was"] != pair["now"]
        assert not now or pair["now"] == now


def test_a_description_is_shown_behind_a_title_that_stayed():
    cards, (cause,) = cards_of("descriptions swapped")
    for pair in cards.pairs(cause):
        assert pair["title"] and pair["was"].startswith("A ") and pair["now"].startswith("A ")


def test_no_query_shows_a_price_and_one_shows_pictures_of_a_product_that_is_still_there():
    cards, (cause,) = cards_of("prices null")
    assert cards.query_of(cause, [asked(cards, 0, 0)]) == []
    random = Random(3)
    after = FAULTS["one category gone"](FAULTS["pictures swapped"](BEFORE, random), random)
    cards = Cards(new=night_of(after, random)[0], old=cards.old, picture=lambda of_new, row: None)
    cause = next(each for each in causes_of(find_faults(cards.old, cards.new)[0]) if each.finding.kind == "pictures")
    kinds = cards.old.products["kind"].to_pylist()
    gone, stays = kinds.index("dress"), next(row for row, kind in enumerate(kinds) if kind != "dress")
    (shown,) = cards.query_of(cause, [asked(cards, gone, 0), asked(cards, stays, 5)])
    assert shown["query"].query.text == f"query {stays}"


def test_prices_that_changed_most_and_categories_that_shrank_are_told():
    random = Random(5)
    after = FAULTS["one category gone"](good_night(BEFORE, random), random)
    old, new = (night_of(catalog, random)[0] for catalog in (BEFORE, after))
    ids = [night.products["product_id"].to_pylist() for night in (old, new)]
    gone, came = ([name for name in a if name not in b] for a, b in (ids, ids[::-1]))
    facts = {"added": len(came), "removed": len(gone), "kept": 1, "changed": {}}
    diff = VersionDiff(
        **facts, old=None, new=None, columns_added=(), columns_removed=(), added_examples=tuple(came[:5]),
        removed_examples=tuple(gone[:5]),
    )  # fmt: skip
    told = changed_products(Cards(new=new, old=old, picture=lambda of_new, row: None), diff, {"price": 0.02})
    assert [each["id"] for each in told["removed"]] == gone[:5]
    assert told["categories"][0][0] == "dress" and told["categories"][0][2] == 0
    assert told["texts"][0] <= 0.1 * told["texts"][1] and told["texts"][1] == len(set(ids[0]) & set(ids[1]))
    assert told["prices"] and all(each["was"] != each["now"] for each in told["prices"])


def test_texts_that_changed_are_counted():
    cards, _ = cards_of("descriptions swapped")
    changed, both = count_changed_texts(cards.old, cards.new)
    assert 0.9 * both < changed <= both == 400


def test_removed_products_are_shown_from_all_over_them():
    old = night_of(BEFORE, Random(3))[0]
    usual, lost = [3, 5, 8, 13, 21, 34], list(range(340, 400))
    stay = [row for row in range(400) if row not in {*usual, *lost}]
    manifests: Any = [SimpleNamespace(catalog=old.catalog)] * 2
    diff = compare_products(manifests, [old.products, old.products.take(stay)])
    rows = [old.products["product_id"].to_pylist().index(name) for name in diff.removed_examples]
    assert diff.removed == 66 and rows == sorted(set(rows)) and sum(row in lost for row in rows) == 4


def test_a_letter_tells_the_title_from_the_text_behind_it():
    cards, _ = cards_of("prices null")
    title = cards.new.products["title"][0].as_py()
    told = cards.letter({"row": 0, "title": f"{title} Made by hand.", "product_id": "a"})
    assert (told["title"], told["text"]) == (title, "Made by hand.")
    assert told["same"] is None
    (text, row), reason = (cards.new.sample[name][0].as_py() for name in ("text", "row")), "duplicate_id"
    for begins, same in ((text, True), (f"{text[:9]} and more", False)):
        letter = {"row": row, "title": one_line(begins, MAX_TITLE_CHARACTERS), "reason": reason}
        assert cards.letter(letter)["same"] is same
    unknown = cards.letter({"row": None, "title": "A mug. Made by hand."})
    assert (unknown["source"], unknown["title"], unknown["text"]) == (None, "", "A mug. Made by hand.")
    assert cards.letter({"title": None})["text"] == ""


def test_a_text_that_is_cut_behind_a_sentence_ends_in_three_dots():
    words = " ".join(["word"] * 16)
    assert in_short(f"{words} ends. {words}") == f"{words} ends..."
    assert in_short(f"{words} goes on {words}").endswith(" goes on...")
    assert short(f"{'a' * 56}. {words}") == repr(f"{'a' * 56}...")

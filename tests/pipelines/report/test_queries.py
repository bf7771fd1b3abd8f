from __future__ import annotations

from dataclasses import replace

import numpy as np
import pyarrow as pa
import pytest

from index_builder import IndexReader
from index_builder.embedding_shards import fixed_binary
from pipelines.config.canaries import load_canaries, load_queries
from pipelines.config.job import Canary
from pipelines.config.validation import ConfigError
from pipelines.report.night import sample_schema
from pipelines.report.queries import (
    Query,
    ask_canaries,
    compare_queries,
    drawn_products,
    drawn_queries,
    mean_overlap,
    own_found,
    queries_of_both,
)
from tests.index_builder.builds import clustered, published

ROWS, DIM = 200, 16
VECTORS = clustered(ROWS, DIM)


class NumberedEncoder:
    """Encodes the text "7" as the vector of product 7."""

    accepts_text = True

    def encode(self, texts):
        return VECTORS[[int(text) for text in texts]]


@pytest.fixture(scope="module")
def reader(tmp_path_factory) -> IndexReader:
    return IndexReader.open(published(str(tmp_path_factory.mktemp("index")), ROWS, DIM, factory="Flat"))


def test_a_canary_is_missed_by_the_ids_that_are_not_among_its_first_k(reader):
    canaries = (
        Canary(query="7", ids=("sku-7",), k=1),
        Canary(query="8", ids=("sku-8", "sku-7", "gone"), k=3),
    )
    found, missed = ask_canaries(canaries, reader, NumberedEncoder())
    assert found.missing == ()
    assert (missed.missing, missed.unknown) == (("sku-7", "gone"), ("gone",))
    assert str(missed) == "the query '8' does not find sku-7, gone (gone not in the catalog) among its first 3"


def test_answers_of_two_versions_are_compared_and_own_products_found(reader):
    queries = [Query(text=str(number), own=f"sku-{number}") for number in range(20)]
    pair = (reader, NumberedEncoder())
    compared = compare_queries(queries, pair, pair)
    assert [query.overlap for query in compared] == [1.0] * 20
    assert own_found(compared) == own_found(compared, of_old=True) == 1.0
    (alone, *_) = compare_queries(queries, pair, None)
    assert alone.old == () and alone.new[0].product_id == "sku-0"


def sample(texts: list[str | None]) -> pa.Table:
    count = len(texts)
    ids, rows = pa.array([f"sku-{row}" for row in range(count)]), pa.array(range(count), pa.int64())
    digests = pa.array([bytes(16)] * count, pa.binary(16))
    vectors = fixed_binary(VECTORS[:count].astype(np.float16))
    return pa.table([ids, rows, pa.array(texts, pa.string()), digests, vectors], schema=sample_schema(DIM))


def test_queries_are_drawn_from_texts_and_products_stand_in_for_them(reader):
    texts = ["red mug", None, "red mug", "a long text " * 20, " "]
    drawn = drawn_queries(sample(texts), pa.table({"price": [1] * 5}))
    assert [query.own for query in drawn] == ["sku-0", "sku-3"]
    assert drawn[0].text == "red mug" and len(drawn[1].text) <= 60
    (titled, *_) = drawn_queries(sample(texts), pa.table({"title": ["A mug", "B", "C", "D", "E"]}))
    assert titled.text == "A mug"
    products = drawn_products(sample([None, "blue"]))
    compared = compare_queries(products, (reader, None), (reader, None))
    assert [query.new[0].product_id for query in compared] == ["sku-0", "sku-1"]


def test_the_queries_of_the_night_before_stay_beside_those_of_this_one(reader):
    before = [(Query(text=str(number), own=f"sku-{number}"), number + 50) for number in (0, 1)]
    both = queries_of_both(before, [Query(text="1", own="sku-1"), Query(text="2", own="sku-2")])
    assert [(each.text, each.own, each.row_before) for each in both] == [
        *(("0", None, 50), ("1", "sku-1", 51), ("2", "sku-2", None))
    ]
    pair = (reader, NumberedEncoder())
    compared = compare_queries(both, pair, pair)
    assert mean_overlap(compared) == own_found(compared) == 1.0
    moved = [replace(each, new=()) if each.query.row_before is None else each for each in compared]
    assert mean_overlap(moved) == 1.0
    assert mean_overlap(compare_queries(both, pair, None)) is None


def test_canaries_and_queries_come_from_files(tmp_path):
    file = tmp_path / "canaries.yaml"
    file.write_text("- query: red mug\n  ids: [sku-1, sku-2]\n- {query: lamp, ids: [sku-3], k: 3}\n")
    assert load_canaries(str(file)) == (
        Canary(query="red mug", ids=("sku-1", "sku-2")),
        Canary(query="lamp", ids=("sku-3",), k=3),
    )
    (tmp_path / "queries.txt").write_text("red mug\n\n lamp \nred mug\n")
    assert load_queries(str(tmp_path / "queries.txt")) == ("red mug", "lamp")
    assert load_queries(None) == () == load_canaries(())


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("- {query: red, ids: [sku-1], l: 3}", r"unknown key canaries\[0\].l"),
        ("- {query: red, ids: []}", "expected at least one product id"),
        ("- {query: red, ids: [1]}", r"canaries\[0\].ids: expected a list of text"),
        ("- {query: red, ids: [a, b], k: 1}", "k is 1: expected at least 2"),
        ("- {query: red}", r"canaries\[0\].ids: missing; expected a list of text$"),
        ("query: red", "expected a list of"),
        ("- [", "not valid YAML"),
        ("", "expected a list of"),
    ],
)
def test_what_is_no_list_of_canaries_is_refused_by_name(tmp_path, text, message):
    (tmp_path / "canaries.yaml").write_text(text)
    with pytest.raises(ConfigError, match=message) as caught:
        load_canaries(str(tmp_path / "canaries.yaml"))
    assert "gates.canaries" in str(caught.value)


def test_files_that_are_not_there_and_lists_that_are_too_long_are_refused(tmp_path):
    with pytest.raises(ConfigError, match=r"gates\.canaries: .* expected a file, found none"):
        load_canaries(str(tmp_path / "none.yaml"))
    with pytest.raises(ConfigError, match=r"gates\.queries: expected texts"):
        load_queries(())
    with pytest.raises(ConfigError, match=r"gates\.queries: expected at most 1,000"):
        load_queries(tuple(map(str, range(1001))))

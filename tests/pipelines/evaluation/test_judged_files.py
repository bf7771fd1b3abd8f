from __future__ import annotations

import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipelines.config.validation import ConfigError
from pipelines.evaluation.config import EvaluationConfig
from pipelines.evaluation.judged_files import (
    JudgedQueries,
    Pairs,
    label_grades,
    normal_labels,
    ordered_labels,
    read_judged_queries,
    relevant_labels,
    short_name,
)

QUERIES = [
    {"query_id": "q1", "query": "red mug", "split": "train"},
    {"query_id": "q2", "query": "blue sofa", "split": "eval"},
    {"query_id": "q3", "query": "nothing fits", "split": "eval"},
]
JUDGMENTS = [
    {"query_id": "q1", "product_id": "p1", "label": 1},
    {"query_id": "q1", "product_id": "p2", "label": 0},
    {"query_id": "q2", "product_id": "p3", "label": 2},
    {"query_id": "q9", "product_id": "p4", "label": 1},
]


def write(path, rows):
    if path.suffix == ".parquet":
        pq.write_table(pa.Table.from_pylist(rows), path)
    elif path.suffix == ".jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    else:
        separator = "\t" if path.suffix == ".tsv" else ","
        lines = [rows[0].keys(), *(row.values() for row in rows)]
        path.write_text("".join(separator.join(map(str, line)) + "\n" for line in lines))
    return str(path)


def read(queries: str, judgments: str | None = None, **options) -> JudgedQueries:
    return read_judged_queries(EvaluationConfig(queries=queries, judgments=judgments, **options))


def texts_of(queries: JudgedQueries) -> dict[str, str | None]:
    return dict(zip(queries.ids, queries.texts, strict=True))


def by_query(queries: JudgedQueries, pairs: Pairs) -> dict[str, set[str]]:
    found: dict[str, set[str]] = {}
    for row, product in zip(pairs.queries.tolist(), pairs.product_ids.to_pylist(), strict=True):
        found.setdefault(queries.ids[row], set()).add(product)
    return found


@pytest.mark.parametrize("suffix", [".parquet", ".csv", ".tsv", ".jsonl"])
def test_queries_and_their_relevant_products(tmp_path, suffix):
    queries = write(tmp_path / f"queries{suffix}", QUERIES)
    judgments = write(tmp_path / f"judgments{suffix}", JUDGMENTS)
    found = read(queries, judgments)
    assert texts_of(found) == {"q1": "red mug", "q2": "blue sofa"}
    assert by_query(found, found.relevant_pairs) == {"q1": {"p1"}, "q2": {"p3"}}
    assert found.labels == ("2", "1", "0")
    assert found.left_out == 1


def test_numbers_as_ids_are_read_as_text(tmp_path):
    queries = write(tmp_path / "q.parquet", [{"query_id": 7, "query": "red mug"}])
    judgments = write(tmp_path / "j.parquet", [{"query_id": 7, "product_id": 1229111, "label": 1.0}])
    found = read(queries, judgments)
    assert by_query(found, found.relevant_pairs) == {"7": {"1229111"}}
    assert found.labels == ("1",)


def test_zeros_before_an_id_stay_in_text_files(tmp_path):
    queries = write(tmp_path / "q.csv", [{"query_id": "007", "query": "red mug"}])
    judgments = write(tmp_path / "j.csv", [{"query_id": "007", "product_id": "00042", "label": 1}])
    found = read(queries, judgments)
    assert by_query(found, found.relevant_pairs) == {"007": {"00042"}}


def test_labels_that_are_words(tmp_path):
    queries = write(tmp_path / "q.csv", QUERIES)
    rows = [
        {"query_id": "q1", "product_id": "p1", "label": "Exact"},
        {"query_id": "q1", "product_id": "p2", "label": "Substitute"},
        {"query_id": "q2", "product_id": "p3", "label": "Irrelevant"},
    ]
    judgments = write(tmp_path / "j.csv", rows)
    found = read(queries, judgments)
    assert by_query(found, found.relevant_pairs) == {"q1": {"p1"}}
    assert found.labels == ("Exact", "Substitute", "Irrelevant")
    wider = read(queries, judgments, relevant=("Exact", "Substitute"))
    assert by_query(wider, wider.relevant_pairs) == {"q1": {"p1", "p2"}}


def test_letters_stand_for_the_four_words(tmp_path):
    queries = write(tmp_path / "q.csv", QUERIES)
    rows = [{"query_id": "q1", "product_id": f"p{row}", "label": label} for row, label in enumerate("ESCI")]
    found = read(queries, write(tmp_path / "j.csv", rows))
    assert found.labels == ("Exact", "Substitute", "Complement", "Irrelevant")
    assert by_query(found, found.relevant_pairs) == {"q1": {"p0"}}


def test_labels_that_are_named_win_over_numbers(tmp_path):
    queries, judgments = write(tmp_path / "q.csv", QUERIES), write(tmp_path / "j.csv", JUDGMENTS)
    found = read(queries, judgments, relevant=("2",))
    assert by_query(found, found.relevant_pairs) == {"q2": {"p3"}}


def test_one_split(tmp_path):
    queries, judgments = write(tmp_path / "q.csv", QUERIES), write(tmp_path / "j.csv", JUDGMENTS)
    found = read(queries, judgments, split="eval")
    assert (texts_of(found), found.left_out) == ({"q2": "blue sofa"}, 1)


def test_empty_rows_are_passed_over(tmp_path):
    rows = [*QUERIES, {"query_id": "q4", "query": "", "split": None}, {"query_id": None, "query": "x", "split": None}]
    queries = write(tmp_path / "q.parquet", rows)
    judgments = write(
        tmp_path / "j.parquet",
        [
            *JUDGMENTS,
            {"query_id": "q4", "product_id": "p1", "label": 1},
            {"query_id": "q1", "product_id": None, "label": 1},
            {"query_id": "q1", "product_id": "p8", "label": None},
        ],
    )
    found = read(queries, judgments)
    assert by_query(found, found.relevant_pairs) == {"q1": {"p1"}, "q2": {"p3"}}
    assert len(found.judged) == 3


def test_purchases_are_what_recall_wants(tmp_path):
    queries, judgments = write(tmp_path / "q.csv", QUERIES), write(tmp_path / "j.csv", JUDGMENTS)
    bought = [{"query_id": "q1", "product_id": "p2"}] * 2 + [{"query_id": "q3", "product_id": "p7"}]
    found = read(queries, judgments, purchases=write(tmp_path / "p.jsonl", bought))
    assert found.ids == ["q1", "q2", "q3"]
    assert by_query(found, found.wanted) == {"q1": {"p2"}, "q3": {"p7"}}
    assert len(found.wanted) == 2
    alone = read(queries, purchases=str(tmp_path / "p.jsonl"))
    assert (alone.labels, alone.ids, alone.left_out) == ((), ["q1", "q3"], 1)


def test_columns_of_other_names_and_queries_that_repeat(tmp_path):
    ratings = [{"query": "laptop", "docid": 5, "rating": 3}, {"query": "laptop", "docid": 6, "rating": 0}]
    file = write(tmp_path / "ratings.csv", ratings)
    found = read(file, file, query_id_field="query", product_id_field="docid", label_field="rating")
    assert texts_of(found) == {"laptop": "laptop"}
    assert by_query(found, found.relevant_pairs) == {"laptop": {"5"}}


def test_queries_that_are_pictures(tmp_path):
    photos = [{"image": "val/apple_1.jpg", "product_id": "apple"}, {"image": "val/pear_1.jpg", "product_id": "pear"}]
    file = write(tmp_path / "photos.jsonl", photos)
    found = read(file, purchases=file, query_id_field="image", query_field=None, query_image_field="image")
    assert found.texts == [None, None]
    assert [picture for picture in found.images if picture] == ["val/apple_1.jpg", "val/pear_1.jpg"]
    assert by_query(found, found.wanted) == {"val/apple_1.jpg": {"apple"}, "val/pear_1.jpg": {"pear"}}


def test_pictures_may_be_bytes(tmp_path):
    rows = [{"query_id": "a", "photo": b"picture"}, {"query_id": "b", "photo": None}]
    queries = write(tmp_path / "q.parquet", rows)
    bought = write(tmp_path / "p.csv", [{"query_id": "a", "product_id": "p1"}, {"query_id": "b", "product_id": "p1"}])
    found = read(queries, purchases=bought, query_field=None, query_image_field="photo")
    assert found.ids == ["a"]
    assert found.images[0] == b"picture"


@pytest.mark.parametrize(("rule", "relevant", "judged"), [("best", {"p1"}, 2), ("leave-out", set(), 1)])
def test_a_pair_with_two_labels(tmp_path, rule, relevant, judged):
    rows = [("q1", "p1", "Substitute"), ("q1", "p2", "Irrelevant"), ("q1", "p1", "Exact"), ("q1", "p2", "Irrelevant")]
    queries = write(tmp_path / "q.csv", QUERIES)
    labels = [dict(zip(("query_id", "product_id", "label"), row, strict=True)) for row in rows]
    judgments = write(tmp_path / "j.csv", labels)
    with pytest.raises(ConfigError, match="1 pairs stand there with two labels; product 'p1' is 'Exact' and 'Subst"):
        read(queries, judgments)
    found = read(queries, judgments, two_labels=rule)
    assert by_query(found, found.relevant_pairs).get("q1", set()) == relevant
    assert (len(found.judged), found.two_labels) == (judged, 1)


def test_what_cannot_be_measured_is_explained(tmp_path):
    queries, judgments = write(tmp_path / "q.csv", QUERIES), write(tmp_path / "j.csv", JUDGMENTS)
    with pytest.raises(ConfigError, match=r"missing\.csv"):
        read(str(tmp_path / "missing.csv"), judgments)
    with pytest.raises(ConfigError, match="no column 'product_id'"):
        read(queries, queries)
    with pytest.raises(ConfigError, match=r"--split test: .* Known: 'eval', 'train'"):
        read(queries, judgments, split="test")
    with pytest.raises(ConfigError, match="no product is relevant"):
        read(queries, judgments, relevant=("5",))
    (tmp_path / "no.parquet").write_text("this is no Parquet")
    with pytest.raises(ConfigError, match=r"no\.parquet: expected Parquet, CSV"):
        read(str(tmp_path / "no.parquet"), judgments)
    others = write(tmp_path / "others.csv", [{"query_id": "x", "product_id": "p1"}])
    with pytest.raises(ConfigError, match=r"no query of .* is judged in .*: do they belong together"):
        read(queries, purchases=others)
    twice = write(tmp_path / "twice.csv", [*QUERIES, {"query_id": "q1", "query": "green mug", "split": "eval"}])
    with pytest.raises(ConfigError, match="query 'q1' stands there with different texts"):
        read(twice, judgments)
    scores = [{"query_id": "q1", "product_id": f"p{row}", "label": row / 7} for row in range(20)]
    with pytest.raises(ConfigError, match="label holds 20 different values"):
        read(queries, write(tmp_path / "scores.csv", scores))
    with pytest.raises(ConfigError, match="nothing to measure with"):
        read(queries)
    with pytest.raises(ConfigError, match="no column 'query'"):
        read_judged_queries(EvaluationConfig(judgments=judgments))


def test_real_labels_and_purchases(shared_data):
    """The fashion set calls two of its pairs both Exact and Complement."""
    folder = shared_data / "fashion"
    files = {name: str(folder / f"{name}.parquet") for name in ("queries", "judgments", "purchases")}
    with pytest.raises(ConfigError, match="2 pairs stand there with two labels"):
        read(**files, split="eval")
    found = read(**files, split="eval", two_labels="best")
    assert (len(found.ids), found.two_labels, found.left_out) == (244, 2, 0)
    assert found.labels == ("Exact", "Substitute", "Complement")
    bought, exact = by_query(found, found.wanted), by_query(found, found.relevant_pairs)
    assert sum(map(len, bought.values())) == 2531
    assert all(products <= exact[query] for query, products in bought.items())


@pytest.mark.parametrize(
    ("found", "shown"),
    [
        (["E", "I"], ["Exact", "Irrelevant"]),
        (["exact", "S", "Complement"], ["Exact", "Substitute", "Complement"]),
        (["1.0", "0"], ["1", "0"]),
        (["0.5", "2"], ["0.5", "2"]),
        (["E", "good"], ["E", "good"]),
        ([], []),
    ],
)
def test_labels_are_shown_in_one_way(found, shown):
    assert [normal_labels(found)[label] for label in found] == shown


def test_the_best_label_comes_first():
    assert ordered_labels(["Irrelevant", "Exact", "Complement"]) == ("Exact", "Complement", "Irrelevant")
    assert ordered_labels(["0", "10", "2"]) == ("10", "2", "0")
    assert ordered_labels(["poor", "good"]) == ("good", "poor")


def test_short_names_are_for_the_four_words_only():
    assert [short_name(label) for label in ("Exact", "Irrelevant", "Easy", "3")] == ["E", "I", "Easy", "3"]


@pytest.mark.parametrize(
    ("labels", "asked", "relevant"),
    [
        (("Exact", "Substitute"), (), {"Exact"}),
        (("Exact", "Substitute"), ("S", "E"), {"Exact", "Substitute"}),
        (("3", "1", "0"), (), {"3", "1"}),
        (("3", "1", "0"), ("3",), {"3"}),
        (("good", "poor"), (), set()),
        (("good", "poor"), ("good", "best"), {"good"}),
    ],
)
def test_relevant_labels(labels, asked, relevant):
    assert relevant_labels(labels, asked) == relevant


def test_grades_are_asked_for_or_numbers_or_relevance():
    assert label_grades(("Exact", "Substitute"), {"Exact"}, {}) == [1, 0]
    assert label_grades(("Exact", "Substitute"), {"Exact"}, {"E": 5, "S": 2, "C": 1}) == [5, 2]
    assert label_grades(("3", "1", "0", "-1"), {"3", "1"}, {}) == [3, 1, 0, 0]
    assert label_grades(("1", "0.5"), {"1"}, {}) == [1, 0]
    with pytest.raises(ConfigError, match=r"evaluation\.grades: 'great' is no label"):
        label_grades(("good", "poor"), {"good"}, {"great": 2})


RATINGS = [
    {"query": "laptop", "docid": "00042", "rating": 3},
    {"query": "laptop", "docid": "7", "rating": 0},
    {"query": "red mug", "docid": "7", "rating": 1},
]


@pytest.mark.parametrize("suffix", [".csv", ".parquet", ".jsonl"])
def test_ratings_of_query_texts_are_enough(tmp_path, suffix):
    ratings = write(tmp_path / f"ratings{suffix}", RATINGS)
    queries = read_judged_queries(EvaluationConfig(judgments=ratings))
    assert texts_of(queries) == {"laptop": "laptop", "red mug": "red mug"}
    assert queries.labels == ("3", "1", "0")
    assert by_query(queries, queries.relevant_pairs) == {"laptop": {"00042"}, "red mug": {"7"}}


def test_ratings_of_texts_beside_queries_with_ids(tmp_path):
    ratings = write(tmp_path / "ratings.csv", RATINGS)
    queries = read(write(tmp_path / "queries.parquet", QUERIES), ratings)
    assert by_query(queries, queries.relevant_pairs) == {"q1": {"7"}}


ESCI_ROWS = [
    {"example_id": row, "query": query, "query_id": query_id, "product_id": product, "product_locale": locale,
     "esci_label": label, "small_version": 1, "large_version": 1, "split": split}
    for row, (query, query_id, product, locale, label, split) in enumerate([
        ("revent 80 cfm", 0, "B000MOO21W", "us", "I", "train"),
        ("revent 80 cfm", 0, "B07X3Y6B1V", "us", "E", "train"),
        ("gafas de sol", 1, "B07X3Y6B1V", "es", "S", "test"),
        ("sun glasses", 2, "B07WDM7MQQ", "us", "E", "test"),
        ("sun glasses", 2, "B07WP4RXHY", "us", "C", "test"),
    ])
]  # fmt: skip


def test_the_shopping_queries_set_is_read_as_it_is(tmp_path):
    examples = write(tmp_path / "shopping_queries_dataset_examples.parquet", ESCI_ROWS)
    found = read_judged_queries(EvaluationConfig(judgments=examples, split="test", only={"product_locale": "us"}))
    assert texts_of(found) == {"2": "sun glasses"}
    assert found.labels == ("Exact", "Complement")
    assert by_query(found, found.relevant_pairs) == {"2": {"B07WDM7MQQ"}}
    assert texts_of(read_judged_queries(EvaluationConfig(judgments=examples, only={"small_version": 1}))).keys() == {
        "0", "1", "2",
    }  # fmt: skip
    with pytest.raises(ConfigError, match=r"evaluation.only: .* has no row whose product_locale is 'uk'"):
        read_judged_queries(EvaluationConfig(judgments=examples, only={"product_locale": "uk"}))
    with pytest.raises(ConfigError, match=r"no column 'query'"):
        read_judged_queries(EvaluationConfig(judgments=write(tmp_path / "j.csv", JUDGMENTS)))

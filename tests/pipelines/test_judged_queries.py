from __future__ import annotations

import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipelines.config.errors import ConfigError
from pipelines.judged_queries import read_judged_queries

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


@pytest.mark.parametrize("suffix", [".parquet", ".csv", ".tsv", ".jsonl"])
def test_queries_and_their_relevant_products(tmp_path, suffix):
    queries = write(tmp_path / f"queries{suffix}", QUERIES)
    judgments = write(tmp_path / f"judgments{suffix}", JUDGMENTS)
    read = read_judged_queries(queries, judgments)
    assert read.texts == {"q1": "red mug", "q2": "blue sofa"}
    assert read.relevant == {"q1": {"p1"}, "q2": {"p3"}}
    assert read.without_relevant == 1


def test_numbers_as_ids_are_read_as_text(tmp_path):
    queries = write(tmp_path / "q.parquet", [{"query_id": 7, "query": "red mug"}])
    judgments = write(tmp_path / "j.parquet", [{"query_id": 7, "product_id": 1229111, "label": 1.0}])
    assert read_judged_queries(queries, judgments).relevant == {"7": {"1229111"}}


def test_labels_that_are_words(tmp_path):
    queries = write(tmp_path / "q.csv", QUERIES)
    rows = [
        {"query_id": "q1", "product_id": "p1", "label": "Exact"},
        {"query_id": "q1", "product_id": "p2", "label": "Substitute"},
        {"query_id": "q2", "product_id": "p3", "label": "Irrelevant"},
    ]
    judgments = write(tmp_path / "j.csv", rows)
    assert read_judged_queries(queries, judgments).relevant == {"q1": {"p1"}}
    wider = read_judged_queries(queries, judgments, relevant_labels=["Exact", "Substitute"])
    assert wider.relevant == {"q1": {"p1", "p2"}}


def test_labels_that_are_named_win_over_numbers(tmp_path):
    queries, judgments = write(tmp_path / "q.csv", QUERIES), write(tmp_path / "j.csv", JUDGMENTS)
    assert read_judged_queries(queries, judgments, relevant_labels=["2"]).relevant == {"q2": {"p3"}}


def test_one_split(tmp_path):
    queries, judgments = write(tmp_path / "q.csv", QUERIES), write(tmp_path / "j.csv", JUDGMENTS)
    read = read_judged_queries(queries, judgments, split="eval")
    assert (read.texts, read.without_relevant) == ({"q2": "blue sofa"}, 1)


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
    assert read_judged_queries(queries, judgments).relevant == {"q1": {"p1"}, "q2": {"p3"}}


def test_what_cannot_be_measured_is_explained(tmp_path):
    queries, judgments = write(tmp_path / "q.csv", QUERIES), write(tmp_path / "j.csv", JUDGMENTS)
    with pytest.raises(ConfigError, match=r"missing\.csv"):
        read_judged_queries(str(tmp_path / "missing.csv"), judgments)
    with pytest.raises(ConfigError, match="no column 'product_id'"):
        read_judged_queries(queries, queries)
    with pytest.raises(ConfigError, match=r"--split test: .* Known: 'eval', 'train'"):
        read_judged_queries(queries, judgments, split="test")
    with pytest.raises(ConfigError, match="no product is relevant"):
        read_judged_queries(queries, judgments, relevant_labels=["5"])
    (tmp_path / "no.parquet").write_text("this is no Parquet")
    with pytest.raises(ConfigError, match=r"no\.parquet: expected Parquet, CSV"):
        read_judged_queries(str(tmp_path / "no.parquet"), judgments)

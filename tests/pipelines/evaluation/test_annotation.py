from __future__ import annotations

import numpy as np
import pyarrow.parquet as pq
import pytest

from pipelines.catalog.config import CatalogConfig
from pipelines.config.validation import ConfigError
from pipelines.evaluation import annotation
from pipelines.evaluation.annotation import annotate_batch, annotate_results, catalog_records, load_annotator
from pipelines.evaluation.config import EvaluationConfig
from pipelines.evaluation.judged_files import read_judged_queries
from tests.pipelines.evaluation.made import LABELS, numbers_of, queries_of
from tests.pipelines.indexing.job import product, write_catalog

FOUND = np.array([[0, 1, 2], [2, 3, -1]])


class Judge:
    """Labels by the number of the product, and remembers what it was asked."""

    def __init__(self) -> None:
        self.asked: list[list[tuple[str, str]]] = []

    def __call__(self, pairs):
        self.asked.append([(query.query_id, product["product_id"]) for query, product in pairs])
        return ["E" if product["product_id"] in ("p0", "p3") else "I" for _, product in pairs]


def records(wanted):
    return {product_id: {"product_id": product_id, "text": f"text of {product_id}"} for product_id in wanted}


def annotated(tmp_path, judge, labels=({}, {}), *, rankings=(FOUND,), batch=2, name="my:judge", records=records):
    return annotate_results(
        queries_of([dict(one) for one in labels], relevant=("Exact",)),
        numbers_of(5),
        rankings,
        EvaluationConfig(annotator=name, annotator_batch=batch),
        annotator=judge,
        records=records,
        kept_uri=str(tmp_path / "kept" / "labels.parquet"),
    )


def labels_of(queries):
    rows = zip(
        queries.judged.queries.tolist(), queries.judged.product_ids.to_pylist(), queries.judged.labels, strict=True
    )
    return {(queries.ids[row], product): queries.labels[label] for row, product, label in rows}


def test_every_result_without_a_label_is_asked_about_once(tmp_path):
    judge = Judge()
    queries, asked = annotated(
        tmp_path, judge, ({"p1": LABELS.index("Substitute")}, {}), rankings=(FOUND, FOUND[:, ::-1])
    )
    assert asked == 4
    assert sorted(pair for batch in judge.asked for pair in batch) == [
        ("q0", "p0"), ("q0", "p2"), ("q1", "p2"), ("q1", "p3"),
    ]  # fmt: skip
    assert [len(batch) for batch in judge.asked] == [2, 2]
    assert labels_of(queries) == {
        ("q0", "p0"): "Exact", ("q0", "p1"): "Substitute", ("q0", "p2"): "Irrelevant",
        ("q1", "p2"): "Irrelevant", ("q1", "p3"): "Exact",
    }  # fmt: skip
    assert queries.relevant == {"Exact"}


def test_what_was_labelled_is_kept(tmp_path):
    first, _ = annotated(tmp_path, Judge())
    again = Judge()
    second, asked = annotated(tmp_path, again)
    assert (asked, again.asked) == (0, [])
    assert labels_of(second) == labels_of(first)


@pytest.mark.parametrize("change", ["annotator", "text"])
def test_another_annotator_or_product_text_is_asked_about_again(tmp_path, change):
    annotated(tmp_path, Judge())
    name = "other:judge" if change == "annotator" else "my:judge"

    def changed(wanted):
        return (
            {key: {**value, "text": "new"} for key, value in records(wanted).items()}
            if change == "text"
            else records(wanted)
        )

    assert annotated(tmp_path, Judge(), name=name, records=changed)[1] == 5


def test_the_kept_file_is_a_judgments_file(tmp_path):
    expected, _ = annotated(tmp_path, Judge())
    (tmp_path / "queries.csv").write_text("query_id,query\nq0,a\nq1,b\n")
    kept = str(tmp_path / "kept" / "labels.parquet")
    queries = read_judged_queries(EvaluationConfig(queries=str(tmp_path / "queries.csv"), judgments=kept))
    assert labels_of(queries) == labels_of(expected)


def test_labels_until_a_failure_are_kept(tmp_path):
    judge = Judge()

    def failing(pairs):
        if judge.asked:
            raise ConnectionError("the service is down")
        return judge(pairs)

    with pytest.raises(ConnectionError):
        annotated(tmp_path, failing)
    assert pq.read_table(tmp_path / "kept" / "labels.parquet").num_rows == 2
    assert annotated(tmp_path, Judge())[1] == 3


def test_kept_labels_are_saved_on_the_way(tmp_path, monkeypatch):
    monkeypatch.setattr(annotation, "SAVE_EVERY_PAIRS", 2)
    seen = []

    def looking(pairs):
        file = tmp_path / "kept" / "labels.parquet"
        seen.append(pq.read_table(file).num_rows if file.exists() else 0)
        return ["E"] * len(pairs)

    annotated(tmp_path, looking)
    assert seen == [0, 2, 4]


def test_a_pair_that_cannot_be_judged_has_no_label(tmp_path):
    queries, asked = annotated(tmp_path, lambda pairs: [None] * len(pairs))
    assert (len(queries.judged), asked) == (0, 5)
    assert annotated(tmp_path, Judge())[1] == 0


def test_products_that_the_catalog_does_not_hold_are_not_asked_about(tmp_path):
    judge = Judge()
    _, asked = annotated(tmp_path, judge, records=lambda wanted: records(wanted - {"p2"}))
    assert asked == 3


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (["E"], "expected 2 labels for a batch of 2 pairs, found 1"),
        (["E", "E", "E"], "expected 2 labels for a batch of 2 pairs, found 3"),
        ("Exact", "expected 2 labels for a batch of 2 pairs, found 1"),
        (None, "expected a list of 2 labels, found NoneType"),
        (["E", ""], "text, a number or None, found ''"),
        (["E", True], "found True"),
        ([float("nan"), "E"], "found nan"),
    ],
)
def test_an_annotator_that_does_not_keep_its_part(answer, message):
    with pytest.raises(ConfigError, match=rf"evaluation\.annotator my:judge: .*{message}"):
        annotate_batch(lambda pairs: answer, "my:judge", [None, None])  # type: ignore[list-item]


def test_numbers_are_labels_too():
    assert annotate_batch(lambda pairs: [3, 0.5, None], "my:judge", [None] * 3) == ["3", "0.5", None]  # type: ignore[list-item]


def test_the_annotator_is_found_by_its_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "my_relevance_of_a_test.py").write_text("def annotate(pairs):\n    return ['E' for _ in pairs]\n")
    assert load_annotator("my_relevance_of_a_test:annotate")([1, 2]) == ["E", "E"]
    with pytest.raises(ConfigError, match="has no function 'annotat'"):
        load_annotator("my_relevance_of_a_test:annotat")
    with pytest.raises(ConfigError, match="no module 'no_such_module'"):
        load_annotator("no_such_module.inner:annotate")


def test_records_are_what_the_catalog_says(tmp_path):
    rows = [product(number) for number in range(6)]
    rows[5] |= {"product_id": "p00001"}
    write_catalog(tmp_path / "catalog", rows)
    config = CatalogConfig(uri=str(tmp_path / "catalog"), image_field="image", display_fields=("price",))
    found = catalog_records(config, str(tmp_path / "spool"), {"p00001", "p00004", "p99999"})
    assert sorted(found) == ["p00001", "p00004"]
    assert found["p00001"] == {
        "product_id": "p00001",
        "text": rows[1]["title"],
        "picture": rows[1]["image"]["bytes"],
        "price": 1.0,
    }

"""Labels, seen and mined negatives and a teacher's scores, as they come from files to the batch and the loss."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from encoders.errors import EncoderConfigError
from encoders.training.batches import PairDataset
from encoders.training.config import PairsConfig, TrainingConfig
from encoders.training.module import EncoderTraining
from encoders.training.pairs import read_pairs
from tests.encoders.tiny import tiny_parts
from tests.encoders.training.pairs_files import coloured_rows, write_pairs
from tests.encoders.training.runs import pairs_of, train

WEIGHTS = {"E": 1.0, "S": 0.1, "I": 0.0}


def labelled(tmp_path, labels: str = "ESIES", queries: str = "aaabb") -> PairsConfig:
    """Products p0 to p4, of the queries a and b."""
    rows = coloured_rows(len(labels))
    for row, label, query in zip(rows, labels, queries, strict=True):
        row |= {"label": label, "query": query}
    return PairsConfig(uri=write_pairs(tmp_path / "labelled", rows), label_field="label", validation_share=0.0)


def test_labels_weigh_pairs_and_worthless_ones_become_negatives_of_their_query(tmp_path):
    pairs = read_pairs(labelled(tmp_path), label_weights=WEIGHTS)
    assert pairs.queries == ["a", "a", "b", "b"]
    np.testing.assert_allclose(pairs.weights, [1.0, 0.1, 1.0, 0.1])
    assert pairs.products.product_ids == [f"p{number}" for number in range(5)]
    assert pairs.negative_rows.tolist() == [[2], [2], [-1], [-1]]
    both = read_pairs(labelled(tmp_path / "two", "ESIEI", "aaabb"), label_weights=WEIGHTS | {"I": 0.01})
    assert both.weights.tolist() == pytest.approx([1.0, 0.1, 0.01, 1.0, 0.01])


def test_worthless_products_are_read_from_the_catalog(tmp_path):
    from tests.encoders.training.test_pairs import CATALOG, catalog_reader

    pairs = read_pairs(labelled(tmp_path), catalog_reader(CATALOG), label_weights=WEIGHTS)
    ids = np.array([*pairs.products.product_ids, None], object)
    assert ids[pairs.negative_rows].tolist() == [["p2"], ["p2"], [None], [None]]
    words = read_pairs(
        labelled(tmp_path), catalog_reader(CATALOG), label_weights={"exact": 1, "Substitute": 0.1, "irrelevant": 0}
    )
    assert words.digest() == pairs.digest(), "letters and words are the same labels"


def test_the_heaviest_pairs_alone_are_validated_on(tmp_path):
    pairs = read_pairs(labelled(tmp_path), label_weights=WEIGHTS)
    trained, validated = pairs.split(1.0)
    assert (trained.tolist(), validated.tolist()) == ([], [0, 2])
    given = replace(labelled(tmp_path / "t"), validation_uri=labelled(tmp_path / "v", "SE", "cc").uri)
    assert read_pairs(given, label_weights=WEIGHTS).split(0.5)[1].tolist() == [5]


@pytest.mark.parametrize(
    ("weights", "words"),
    [
        ({"E": 1.0, "S": 0.1}, "'I' has no weight.*are E, I, S"),
        ({"E": 1.0, "S": 0.1, "I": 0.0, "Ecxat": 1.0}, "no pair is labelled 'ecxat'"),
    ],
)
def test_labels_that_are_not_known(tmp_path, weights, words):
    with pytest.raises(EncoderConfigError, match=words):
        read_pairs(labelled(tmp_path), label_weights=weights)


def test_pairs_that_all_weigh_nothing_or_lack_a_label(tmp_path):
    with pytest.raises(EncoderConfigError, match=r"every pair of .* weighs 0"):
        read_pairs(labelled(tmp_path, "II", "ab"), label_weights=WEIGHTS)
    data = labelled(tmp_path / "lacking")
    path = next((tmp_path / "lacking").rglob("*.parquet"))
    table = pq.read_table(path)
    labels = pa.array([None, *table["label"].to_pylist()[1:]])
    pq.write_table(table.set_column(table.schema.get_field_index("label"), "label", labels), path)
    with pytest.raises(EncoderConfigError, match="1 pairs have no label"):
        read_pairs(data, label_weights=WEIGHTS)


def taught(tmp_path, rows: list[tuple], **changes) -> PairsConfig:
    names = ("query", "positive", "negative", "positive_score", "negative_score")
    pq.write_table(pa.table(dict(zip(names, zip(*rows, strict=True), strict=True))), tmp_path / "teacher.parquet")
    data = PairsConfig(uri=write_pairs(tmp_path / "pairs", coloured_rows(12)), validation_share=0.0)
    return replace(data, teacher_uri=str(tmp_path / "teacher.parquet"), **changes)


FITTING = [("red dress", "p0", "p1", 9.0, 4.0), ("red dress", "p0", "p2", 9.0, 8.0), ("blue mug", "p4", "p0", 3.0, 1.0)]


def test_a_teachers_scores_belong_to_pairs(tmp_path):
    pairs = read_pairs(taught(tmp_path, FITTING), teacher_scale=0.1)
    assert pairs.negative_rows[[0, 4]].tolist() == [[1, 2], [0, -1]]
    np.testing.assert_allclose(pairs.margins[[0, 4]], [[0.5, 0.1], [0.2, np.nan]], rtol=1e-6)
    assert np.isnan(pairs.margins[1]).all()
    dropped = taught(tmp_path / "pairs", [*FITTING, ("green tea", "p9", "p1", 1.0, 0.0)], unknown_products="drop")
    assert read_pairs(dropped, teacher_scale=0.1).negative_rows.tolist() == pairs.negative_rows.tolist()


@pytest.mark.parametrize(
    ("rows", "words"),
    [
        ([("green tea", "p0", "p1", 1.0, 0.0)], "of its 1 rows 1 have a query and positive that are no pair"),
        ([*FITTING, ("red dress", "p0", "p99", 1.0, 0.0)], "1 a negative that is no product"),
        ([*FITTING, ("red dress", "p0", "p3", float("nan"), 0.0)], "row 4 of 4 lacks a value, or its score is not"),
        ([*FITTING, ("red dress", "p0", None, 1.0, 0.0)], "row 4 of 4 lacks a value"),
        ([("red dress", "p0", "p1", "high", "low")], "expected texts, ids and two scores"),
    ],
)
def test_a_teacher_of_other_pairs(tmp_path, rows, words):
    with pytest.raises(EncoderConfigError, match=words):
        read_pairs(taught(tmp_path, rows))


def test_a_teachers_file_lacks_a_column(tmp_path):
    data = taught(tmp_path, FITTING)
    pq.write_table(pq.read_table(tmp_path / "teacher.parquet").drop_columns(["negative"]), tmp_path / "teacher.parquet")
    with pytest.raises(EncoderConfigError, match="has no column negative: it has query, positive, positive_score"):
        read_pairs(data)


def test_pairs_that_are_held_out_are_not_mined(tmp_path):
    data = PairsConfig(
        uri=write_pairs(tmp_path / "pairs", coloured_rows(6)),
        validation_uri=write_pairs(tmp_path / "validate", coloured_rows(2)),
    )
    asked: list = []

    def mine(queries, product_ids, chosen):
        asked.append((list(queries), list(product_ids), {text: set(ids) for text, ids in chosen.items()}))
        return [[f"p{(number + 1) % 6}", "gone"] for number in range(len(queries))]

    pairs = read_pairs(data, mine=mine)
    ((queries, product_ids, chosen),) = asked
    assert product_ids == [f"p{number}" for number in range(6)]
    assert queries[0] == "red dress"
    assert chosen["red dress"] == {"p0"}
    assert pairs.negative_rows.tolist() == [[(number + 1) % 6, -1] for number in range(6)] + [[-1, -1]] * 2


def module_and_batch(pairs, model="3tmm", rows=range(6), **options):
    parts = tiny_parts(model)
    config = TrainingConfig(tuned=("fusion", "text"), **options)
    module = EncoderTraining(parts.model, config, steps=1, taught=pairs.margins is not None)
    module.eval()
    return module, PairDataset(pairs, np.arange(len(pairs)), parts)[list(rows)]


def test_each_query_has_its_own_negatives_alone_if_so_told(tmp_path):
    pairs = replace(read_pairs(pairs_of(tmp_path)), negative_rows=np.full((60, 1), -1, np.int64))
    pairs.negative_rows[0, 0] = 40
    losses = {}
    for negatives in ("batch", "own"):
        module, batch = module_and_batch(pairs, negatives=negatives)
        with torch.no_grad():
            losses[negatives] = float(module.losses(batch, drop=None))
            first = replace(pairs, negative_rows=np.full((60, 0), -1, np.int64))
            without = float(module.losses(module_and_batch(first)[1], drop=None))
    assert losses["batch"] > losses["own"] > without, "one more negative for six queries, for one, for none"


def test_a_teacher_adds_a_term(tmp_path):
    pairs = read_pairs(taught(tmp_path, FITTING), teacher_scale=0.1)
    module, batch = module_and_batch(pairs)
    terms = module.terms(batch, drop=None)
    with torch.no_grad():
        fused = module.model.fuse_query(module.model.query_text(*batch.queries.tokens))
        inputs = batch.products
        halves = module.model.document_text(*inputs.tokens), module.model.image(inputs.pixels)
        products = module.model.fuse_product(halves[0], inputs.has_text, halves[1], inputs.has_image)
    cosine = {
        (row, int(key)): float(fused[row] @ products[place])
        for place, key in enumerate(batch.product_keys)
        for row in (0, 4)
    }
    ours = [cosine[0, 0] - cosine[0, 1], cosine[0, 0] - cosine[0, 2], cosine[4, 4] - cosine[4, 0]]
    expected = np.mean((np.array(ours) - [0.5, 0.1, 0.2]) ** 2)
    assert float(terms["distillation"].detach()) == pytest.approx(expected, rel=1e-4)
    terms["distillation"].backward()
    assert any(weight.grad is not None and weight.grad.any() for weight in module.model.query_text.parameters())


def test_it_trains_with_labels_a_teacher_and_nested_dimensions(tmp_path):
    rows = coloured_rows(48)
    for number, row in enumerate(rows):
        row["label"] = "ES"[number % 2]
    data = PairsConfig(uri=write_pairs(tmp_path / "pairs", rows), label_field="label", validation_share=0.2)
    teacher = {
        "query": rows[0]["query"],
        "positive": "p0",
        "negative": "p2",
        "positive_score": 0.9,
        "negative_score": 0.1,
    }
    pq.write_table(pa.Table.from_pylist([teacher]), tmp_path / "teacher.parquet")
    data = replace(data, teacher_uri=str(tmp_path / "teacher.parquet"))
    options = {"label_weights": {"E": 1.0, "S": 0.1}, "matryoshka": (4, 8), "drop_image": 0.1, "negatives": "own"}
    note = train(data, tmp_path / "out", **options)
    assert np.isfinite(note["loss"])
    assert note["settings"]["label_weights"] == {"E": 1.0, "S": 0.1}

from __future__ import annotations

import json
import pickle
from dataclasses import replace

import fsspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from encoders.errors import CheckpointError, EncoderConfigError, TrainingError
from encoders.training.batches import PairDataset
from encoders.training.config import PairsConfig
from encoders.training.images import EncodedImages
from encoders.training.pairs import TrainingProducts, read_pairs
from tests.encoders.tiny import tiny_parts
from tests.encoders.training.pairs_files import coloured_rows, picture_bytes, rows_of, write_pairs


def test_pairs_share_their_products(tmp_path):
    rows = rows_of({"product_id": "a"}, {"product_id": "b"}, {"product_id": "a"}, {"query": "red dress"})
    pairs = read_pairs(PairsConfig(uri=write_pairs(tmp_path, rows)))
    assert pairs.products.product_ids == ["a", "b", "p3"]
    assert pairs.product_rows.tolist() == [0, 1, 0, 2]
    assert pairs.query_keys[0] == pairs.query_keys[3] != pairs.query_keys[1]
    assert pairs.products.texts == ["dress large", "dress small", "mug small"]
    assert pairs.products.images.take([1])[0] == picture_bytes("blue")


def test_files_are_read_in_the_order_of_their_names_and_cut(tmp_path):
    uri = write_pairs(tmp_path, coloured_rows(6), files=2)
    pairs = read_pairs(PairsConfig(uri=uri, max_pairs=4))
    assert pairs.products.product_ids == ["p0", "p2", "p4", "p1"]


def test_remote_pairs(tmp_path):
    memory = fsspec.filesystem("memory")
    memory.put(write_pairs(tmp_path, coloured_rows(3)), "/pairs", recursive=True)
    try:
        assert len(read_pairs(PairsConfig(uri="memory://pairs"))) == 3
    finally:
        memory.rm("/pairs", recursive=True)


def test_rows_without_query_or_id_are_left_out_and_empty_texts_are_missing(tmp_path):
    rows = rows_of({"query": None}, {"product_id": None}, {"title": "  red   mug ", "description": None}, {})
    rows[3].update(title=None, description=" ", image=None)
    pairs = read_pairs(PairsConfig(uri=write_pairs(tmp_path, rows)))
    assert pairs.products.texts == ["red mug", None]
    assert pairs.products.images.take([1])[0] is None


def test_missing_columns_and_files(tmp_path):
    uri = write_pairs(tmp_path, coloured_rows(3))
    with pytest.raises(EncoderConfigError, match=r"no column brand: it has query, product_id.*data\.text_fields|brand"):
        read_pairs(PairsConfig(uri=uri, text_fields=("brand",)))
    with pytest.raises(EncoderConfigError, match=r"data\.image_field is 'title' of type string"):
        read_pairs(PairsConfig(uri=uri, image_field="title"))
    with pytest.raises(CheckpointError, match="no Parquet files"):
        read_pairs(PairsConfig(uri=str(tmp_path / "nowhere")))
    (tmp_path / "pairs-9.parquet").write_bytes(b"no parquet")
    with pytest.raises(CheckpointError, match="cannot be read as Parquet"):
        read_pairs(PairsConfig(uri=uri))


def test_seen_negatives(tmp_path):
    rows = rows_of({"seen": ["p2", "p1"]}, {"seen": None}, {"seen": ["p0"]})
    config = PairsConfig(uri=write_pairs(tmp_path, rows), negatives_field="seen")
    pairs = read_pairs(config)
    assert pairs.negative_rows.tolist() == [[2, 1], [-1, -1], [0, -1]]
    batch = PairDataset(pairs, np.array([0, 1]), tiny_parts("3tmm"))[[0]]
    assert batch.positives.tolist() == [0]
    assert len(batch.products.has_text) == 3, "its own product and the two seen ones"
    rows[0]["seen"] = ["nobody"]
    write_pairs(tmp_path, rows)
    with pytest.raises(EncoderConfigError, match="'nobody'"):
        read_pairs(config)


def test_held_out_products_do_not_depend_on_the_order(tmp_path):
    rows = coloured_rows(60)
    one = read_pairs(PairsConfig(uri=write_pairs(tmp_path / "one", rows)))
    two = read_pairs(PairsConfig(uri=write_pairs(tmp_path / "two", rows[::-1])))
    held = [
        {pairs.products.product_ids[row] for row in pairs.product_rows[pairs.split(0.3)[1]]} for pairs in (one, two)
    ]
    assert held[0] == held[1]
    assert 5 < len(held[0]) < 30
    train, validation = one.split(0.3)
    assert sorted([*train, *validation]) == list(range(60))
    assert len(one.split(0.0)[1]) == 0


def catalog_reader(products, asked=None):
    """A catalog as a function, as `pipelines.train_encoder` gives one."""

    def read(wanted):
        if asked is not None:
            asked.append(wanted)
        chosen = {name: values for name, values in products.items() if wanted is None or name in wanted}
        return TrainingProducts(
            product_ids=list(chosen),
            texts=[text for text, _ in chosen.values()],
            images=EncodedImages(pa.chunked_array([pa.array([data for _, data in chosen.values()], pa.binary())])),
        )

    return read


CATALOG = {f"p{number}": (f"text {number}", b"picture %d" % number) for number in range(20)}


def test_products_of_a_catalog(tmp_path):
    table = pa.table({"query": ["a", "b", "a"], "product_id": ["p7", "p3", "p7"], "bad": [["p9"], None, []]})
    pq.write_table(table, tmp_path / "pairs.parquet")
    asked: list = []
    data = PairsConfig(uri=str(tmp_path / "pairs.parquet"), negatives_field="bad")
    pairs = read_pairs(data, catalog_reader(CATALOG, asked))
    assert asked == [{"p3", "p7", "p9"}]
    names = pairs.products.product_ids
    assert [names[row] for row in pairs.product_rows] == ["p7", "p3", "p7"]
    assert [names[row] for row in pairs.negative_rows[0]] == ["p9"]
    assert pairs.products.images.take([names.index("p3")]) == [b"picture 3"]


def test_products_that_the_catalog_does_not_hold(tmp_path):
    pq.write_table(pa.table({"query": list("abc"), "product_id": ["p7", "gone", "p3"]}), tmp_path / "pairs.parquet")
    data = PairsConfig(uri=str(tmp_path / "pairs.parquet"))
    with pytest.raises(
        EncoderConfigError, match=r"1 of its 3 product ids are not in the catalog \(first: 'gone'\).*drop"
    ):
        read_pairs(data, catalog_reader(CATALOG))
    dropped = read_pairs(replace(data, unknown_products="drop"), catalog_reader(CATALOG))
    assert dropped.queries == ["a", "c"]
    with pytest.raises(EncoderConfigError, match="3 of its 3 product ids"):
        read_pairs(replace(data, unknown_products="drop"), catalog_reader({"other": ("x", None)}))


def test_an_empty_file(tmp_path):
    pq.write_table(
        pa.table({"query": pa.array([], pa.string()), "product_id": pa.array([], pa.string())}), tmp_path / "p.parquet"
    )
    with pytest.raises(EncoderConfigError, match="no pair has a query and a product id"):
        read_pairs(PairsConfig(uri=str(tmp_path / "p.parquet")), catalog_reader(CATALOG))


def test_validation_pairs_of_their_own(tmp_path):
    for name, ids in (("train", ["p1", "gone", "p2"]), ("valid", ["p2", "p5"])):
        pq.write_table(
            pa.table({"query": [f"{name} {row}" for row in ids], "product_id": ids}), tmp_path / f"{name}.parquet"
        )
    data = PairsConfig(
        uri=str(tmp_path / "train.parquet"), validation_uri=str(tmp_path / "valid.parquet"), unknown_products="drop"
    )
    pairs = read_pairs(data, catalog_reader(CATALOG))
    train, validation = pairs.split(0.5)
    assert [pairs.queries[row] for row in train] == ["train p1", "train p2"]
    assert [pairs.queries[row] for row in validation] == ["valid p2", "valid p5"]


def test_titles_as_queries_for_their_own_pictures(tmp_path):
    catalog = {"a": ("red mug", b"1"), "b": (None, b"2"), "c": ("red mug", b"3"), "d": ("lamp", None)}
    pairs = read_pairs(PairsConfig(queries="titles"), catalog_reader(catalog))
    assert pairs.queries == ["red mug", "red mug"]
    assert pairs.product_rows.tolist() == [0, 2]
    assert pairs.query_keys[0] == pairs.query_keys[1], "equal titles are no negatives of each other"
    rows = coloured_rows(12)
    pairs = read_pairs(PairsConfig(uri=write_pairs(tmp_path, rows), queries="titles"))
    batch = PairDataset(pairs, np.arange(12), tiny_parts("clip"))[[0, 1, 2]]
    assert not batch.products.has_text.any(), "its text would give it away"
    assert batch.products.has_image.all()
    assert batch.queries.has_text.all()


def test_pictures_as_queries_for_their_own_texts(tmp_path):
    catalog = {"a": ("red mug", b"1"), "b": (None, b"2"), "c": ("red mug", b"3"), "d": ("lamp", b"3"), "e": ("x", None)}
    pairs = read_pairs(PairsConfig(queries="pictures"), catalog_reader(catalog))
    assert pairs.queries == [None] * 3 and pairs.product_rows.tolist() == [0, 2, 3]
    assert pairs.query_images.take([0, 1, 2]) == [b"1", b"3", b"3"]
    assert pairs.query_images.present().tolist() == [True] * 3
    assert pairs.query_keys[1] == pairs.query_keys[2] != pairs.query_keys[0], "equal pictures are one query"
    again = pickle.loads(pickle.dumps(pairs.query_images))
    assert again.at(np.array([2, 0])).take([0, 1]) == [b"3", b"1"] and len(again) == 3
    rows = coloured_rows(12)
    pairs = read_pairs(PairsConfig(uri=write_pairs(tmp_path, rows), queries="pictures"))
    batch = PairDataset(pairs, np.arange(12), tiny_parts("match3"))[[0, 1, 2]]
    assert batch.products.has_text.all() and batch.queries.has_image.all() and not batch.queries.has_text.any()


def test_titles_may_be_shown(tmp_path):
    data = PairsConfig(uri=write_pairs(tmp_path, coloured_rows(12)), queries="titles", show_texts=True)
    batch = PairDataset(read_pairs(data), np.arange(12), tiny_parts("3tmm"))[[0, 1, 2]]
    assert batch.products.has_text.all() and batch.products.has_image.all() and batch.queries.has_text.all()


def test_queries_that_are_pictures(tmp_path):
    rows = coloured_rows(4)
    for number, row in enumerate(rows):
        row["photo"] = picture_bytes("red" if number % 2 else "blue")
    rows[3]["photo"] = None
    rows[2]["query"] = None
    pairs = read_pairs(PairsConfig(uri=write_pairs(tmp_path, rows), query_image_field="photo"))
    assert len(pairs) == 4
    assert len(set(pairs.query_keys.tolist())) == 4, "other texts, or another picture"
    assert pairs.query_images.present().tolist() == [True, True, True, False]
    batch = PairDataset(pairs, np.arange(4), tiny_parts("match4"))[[0, 1, 2, 3]]
    assert batch.queries.has_image.tolist() == [True, True, True, False]
    assert batch.queries.has_text.tolist() == [True, True, False, True]
    batch = PairDataset(pairs, np.arange(4), tiny_parts("match3"))[[0, 1, 2, 3]]
    assert len(batch.query_keys) == 3, "match3 reads no text: nothing is left of the last query"
    with pytest.raises(TrainingError, match="none of the 1 queries of a batch can be read"):
        PairDataset(pairs, np.arange(4), tiny_parts("match3"))[[3]]
    photos_alone = read_pairs(PairsConfig(uri=str(tmp_path), query_field=None, query_image_field="photo"))
    assert photos_alone.queries == [None] * 3


def test_query_images_by_path(tmp_path):
    (tmp_path / "photos").mkdir()
    for colour in ("red", "blue"):
        (tmp_path / "photos" / f"{colour}.png").write_bytes(picture_bytes(colour))
    table = pa.table(
        {
            "photo": ["photos/red.png", "photos/blue.png", "photos/red.png", "gone.png"],
            "product_id": ["p1", "p2", "p3", "p1"],
        }
    )
    pq.write_table(table, tmp_path / "pairs.parquet")
    data = PairsConfig(
        uri=str(tmp_path / "pairs.parquet"), query_field=None, query_image_field="photo", image_root=str(tmp_path)
    )
    pairs = read_pairs(data, catalog_reader(CATALOG))
    assert pairs.query_keys[0] == pairs.query_keys[2] != pairs.query_keys[1]
    assert pairs.query_images.take([1, 3]) == [picture_bytes("blue"), None]
    with pytest.raises(
        EncoderConfigError, match=r"none of \d paths .*photos/red.png, below .*elsewhere.*data.image_root"
    ):
        read_pairs(replace(data, image_root=str(tmp_path / "elsewhere")), catalog_reader(CATALOG))


def test_json_lines(tmp_path):
    lines = [{"query": "red", "product_id": "p1", "more": 1}, {"query": "blue", "product_id": "p2"}]
    (tmp_path / "pairs.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    pairs = read_pairs(PairsConfig(uri=str(tmp_path / "pairs.jsonl")), catalog_reader(CATALOG))
    assert pairs.queries == ["red", "blue"]
    (tmp_path / "pairs.jsonl").write_text("no json\n")
    with pytest.raises(CheckpointError, match="cannot be read"):
        read_pairs(PairsConfig(uri=str(tmp_path / "pairs.jsonl")), catalog_reader(CATALOG))

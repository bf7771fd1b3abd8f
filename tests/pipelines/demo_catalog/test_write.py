from __future__ import annotations

import hashlib
import io
import json
from pathlib import Path

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from index_builder import StorageError
from pipelines.demo_catalog import (
    demo_folder,
    draw_named_catalog,
    is_demo_address,
    write_demo_catalog,
    write_training_pairs,
)
from pipelines.demo_catalog import write as write_module
from pipelines.demo_catalog.words import choose_attributes
from pipelines.demo_catalog.write import CATALOG_SCHEMA, PAIRS_SCHEMA, QUERIES_PER_PRODUCT


def digests(folder: Path) -> dict[str, str]:
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def test_the_catalog_is_complete_and_readable(tmp_path):
    write_demo_catalog(str(tmp_path), products=41, seed=3, files=2)
    assert [path.name for path in sorted((tmp_path / "catalog").iterdir())] == [
        "part-00000.parquet",
        "part-00001.parquet",
    ]
    table = pq.read_table(tmp_path / "catalog")
    assert table.schema.equals(CATALOG_SCHEMA)
    assert table["product_id"].to_pylist() == [f"demo-{number:06d}" for number in range(41)]
    for number, row in enumerate(table.to_pylist()):
        attributes = choose_attributes("demo", 3, number)
        assert (row["kind"], row["brand"]) == (attributes.kind, attributes.brand)
        assert row["price"] > 0
        assert row["image"]["path"] == f"{row['product_id']}.jpg"
        with Image.open(io.BytesIO(row["image"]["bytes"])) as picture:
            picture.load()
            assert picture.format == "JPEG"
    assert json.loads((tmp_path / "demo_catalog.json").read_text())["products"] == 41
    pictures = sorted((tmp_path / "query_pictures").iterdir())
    assert [path.name for path in pictures] == ["floral_purple_dress.png", "striped_red_mug.png"]


def test_queries_and_judgments_belong_to_the_catalog(tmp_path, monkeypatch):
    # The texts and pictures do not matter here, and take their time.
    monkeypatch.setattr(write_module, "_write_part", lambda *arguments: Path(arguments[0]).write_bytes(b""))
    write_demo_catalog(str(tmp_path), products=2000, queries=60)
    queries = pq.read_table(tmp_path / "queries.parquet").to_pylist()
    judgments = pq.read_table(tmp_path / "judgments.parquet").to_pylist()
    assert len(queries) == 60
    assert {query["split"] for query in queries} == {"test"}
    assert {judgment["query_id"] for judgment in judgments} == {query["query_id"] for query in queries}
    assert {judgment["label"] for judgment in judgments} == {1}
    known = {f"demo-{number:06d}" for number in range(2000)}
    assert {judgment["product_id"] for judgment in judgments} <= known


def test_two_drawings_are_byte_identical(tmp_path):
    for name in ("first", "second"):
        write_demo_catalog(str(tmp_path / name), products=25, files=2)
    assert digests(tmp_path / "first") == digests(tmp_path / "second")


def test_rows_do_not_depend_on_the_number_of_files(tmp_path):
    for files in (1, 3):
        write_demo_catalog(str(tmp_path / str(files)), products=25, files=files)
    one, three = (pq.read_table(tmp_path / str(files) / "catalog") for files in (1, 3))
    assert one.equals(three)


def test_a_complete_folder_is_left_alone(tmp_path):
    write_demo_catalog(str(tmp_path), products=10, files=1)
    part = tmp_path / "catalog" / "part-00000.parquet"
    part.write_bytes(b"touched")
    write_demo_catalog(str(tmp_path), products=10, files=1)
    assert part.read_bytes() == b"touched"


def test_other_arguments_draw_anew_and_leave_other_files_alone(tmp_path):
    write_demo_catalog(str(tmp_path), products=12, files=3)
    mine = tmp_path / "catalog" / "notes.txt"
    mine.write_text("mine")
    write_demo_catalog(str(tmp_path), products=10, files=2)
    parts = sorted(path.name for path in (tmp_path / "catalog").glob("*.parquet"))
    assert parts == ["part-00000.parquet", "part-00001.parquet"]
    assert sum(pq.read_metadata(tmp_path / "catalog" / part).num_rows for part in parts) == 10
    assert mine.read_text() == "mine"


def test_a_drawing_that_stops_midway_is_not_taken_for_complete(tmp_path, monkeypatch):
    write_demo_catalog(str(tmp_path), products=8, files=2)
    complete = digests(tmp_path)
    real = write_module.make_product

    def breaks(stream, seed, number):
        if number == 7:
            raise KeyboardInterrupt
        return real(stream, seed, number)

    monkeypatch.setattr(write_module, "make_product", breaks)
    with pytest.raises(KeyboardInterrupt):
        write_demo_catalog(str(tmp_path), products=9, files=2)
    assert not (tmp_path / "demo_catalog.json").exists()
    monkeypatch.undo()
    write_demo_catalog(str(tmp_path), products=8, files=2)
    assert digests(tmp_path) == complete


def test_a_catalog_can_be_drawn_into_an_object_store():
    write_demo_catalog("memory://drawn", products=5, files=1)
    filesystem = fsspec.filesystem("memory")
    with filesystem.open("/drawn/catalog/part-00000.parquet") as file:
        assert pq.read_table(pa.BufferReader(file.read())).num_rows == 5
    filesystem.rm("/drawn", recursive=True)


def test_a_folder_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match="file"):
        write_demo_catalog(str(tmp_path / "file"), products=5)


@pytest.mark.parametrize(("name", "value"), [("products", 0), ("files", 0), ("products", -3)])
def test_counts_below_one_are_refused(tmp_path, name, value):
    with pytest.raises(ValueError, match=f"{name} is {value}"):
        write_demo_catalog(str(tmp_path), **{name: value})


def test_a_demo_address_draws_below_the_work_folder(tmp_path):
    assert is_demo_address("demo://7")
    assert not is_demo_address("/demo")
    assert not is_demo_address(("demo://7",))
    uri = draw_named_catalog("demo://7", str(tmp_path))
    assert uri == str(tmp_path / "demo_catalog_7" / "catalog")
    assert demo_folder("demo://3000", str(tmp_path)) == str(tmp_path / "demo_catalog")
    assert pq.read_table(uri).num_rows == 7


def test_another_demo_catalog_takes_nothing_from_the_first(tmp_path):
    first = draw_named_catalog("demo://7", str(tmp_path))
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    assert draw_named_catalog("demo://5", str(tmp_path)) != first
    assert {path: path.read_bytes() for path in before} == before


@pytest.mark.parametrize("uri", ["demo://", "demo://many", "demo://0", "demo://-1", "demo://٣", "/somewhere"])
def test_a_wrong_demo_address_is_explained(uri, tmp_path):
    with pytest.raises(ValueError, match="demo://3000"):
        draw_named_catalog(uri, str(tmp_path))


def test_pairs_have_the_columns_and_rows_asked_for(tmp_path):
    write_training_pairs(str(tmp_path), pairs=20)
    table = pq.read_table(tmp_path)
    assert table.schema.equals(PAIRS_SCHEMA)
    assert table.num_rows == 20
    rows = table.to_pylist()
    for row, pair in enumerate(rows):
        assert pair["product_id"] == f"training-{row // QUERIES_PER_PRODUCT:06d}"
        assert pair["image"]["bytes"].startswith(b"\xff\xd8")
    assert len({row["query"] for row in rows}) > 15
    assert rows[0]["image"] == rows[1]["image"] != rows[3]["image"]


def test_pairs_are_cut_into_files_without_losing_any(tmp_path, monkeypatch):
    write_training_pairs(str(tmp_path / "one"), pairs=29)
    monkeypatch.setattr(write_module, "PRODUCTS_PER_FILE", 4)
    write_training_pairs(str(tmp_path / "many"), pairs=29)
    assert len(list((tmp_path / "many").glob("pairs-*.parquet"))) == 3
    assert pq.read_table(tmp_path / "many").equals(pq.read_table(tmp_path / "one"))


def test_a_picture_is_stored_once_for_its_queries(tmp_path):
    write_training_pairs(str(tmp_path), pairs=60)
    table = pq.read_table(tmp_path)
    distinct = {row["bytes"] for row in table["image"].to_pylist()}
    size = (tmp_path / "pairs-00000.parquet").stat().st_size
    assert len(distinct) == 20
    assert size < 1.5 * sum(map(len, distinct))


def test_fewer_pairs_are_the_first_of_more(tmp_path):
    for pairs in (9, 30):
        write_training_pairs(str(tmp_path / str(pairs)), pairs=pairs)
    few, many = (pq.read_table(tmp_path / str(pairs)) for pairs in (9, 30))
    assert few.equals(many.slice(0, 9))


def test_a_complete_folder_is_left_alone_and_another_seed_draws_anew(tmp_path):
    write_training_pairs(str(tmp_path), pairs=6)
    part = tmp_path / "pairs-00000.parquet"
    before = part.read_bytes()
    part.write_bytes(b"touched")
    write_training_pairs(str(tmp_path), pairs=6)
    assert part.read_bytes() == b"touched"
    write_training_pairs(str(tmp_path), pairs=6, seed=1)
    assert part.read_bytes() not in (before, b"touched")


def test_no_pairs_are_refused(tmp_path):
    with pytest.raises(ValueError, match="pairs is 0"):
        write_training_pairs(str(tmp_path), pairs=0)

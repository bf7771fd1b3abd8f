"""Bitmaps of a column's values answer every condition as the columns do, and a damaged file is noticed."""

from __future__ import annotations

import datetime
import decimal
import math
from itertools import pairwise
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from index_builder import IndexReader, storage
from index_builder.errors import StorageError, VerificationError
from index_builder.filter_bitmaps import MOST_VALUES, FilterBitmaps, read_products_file, write_filter_bitmaps
from index_builder.manifest import FILTERS_FILE
from index_builder.open_version import FILTERS_KEPT, ProductRows, RowFilters
from index_builder.publish import publish_version, read_manifest, version_uri
from index_builder.spec import IndexConfig
from index_builder.version_files import content_fingerprint, staged_files
from tests.index_builder.builds import build_index, clustered, stage, write_shards

ROWS, DIM = 4000, 16
DAY = datetime.date(2026, 1, 1)


def products() -> pa.Table:
    random = np.random.default_rng(0)

    def drawn(values: list[object], kind: pa.DataType) -> pa.Array:
        return pa.array([values[place] for place in random.integers(0, len(values), ROWS)], kind)

    return pa.table(
        {
            "product_id": [f"sku-{row}" for row in range(ROWS)],
            "kind": drawn(["chair", "mug", "dress", "lamp", None], pa.string()),
            "stock": drawn([True, False, None], pa.bool_()),
            "size": drawn([38, 39, 40, 41, 42], pa.int64()),
            "rating": drawn([1.0, 2.5, 4.0, math.nan, None], pa.float64()),
            "day": drawn([DAY + datetime.timedelta(days) for days in range(9)], pa.date32()),
            "cost": drawn([decimal.Decimal("1.10"), decimal.Decimal("2.20"), None], pa.decimal128(6, 2)),
            "grade": drawn(["1", "2", "x", " 3 "], pa.string()).dictionary_encode(),
            "tags": drawn([["a"], ["a", "b"], [], None], pa.list_(pa.string())),
            "price": pa.array(np.where(random.random(ROWS) < 0.1, np.nan, random.random(ROWS) * 100)),
            "title": [f"title {row}" for row in range(ROWS)],
        }
    )


TABLE = products()
WITH_BITMAPS = ["kind", "stock", "size", "rating", "day", "cost", "grade"]


def write(table: pa.Table, folder: Path, batch_rows: int = 700) -> tuple[str, pa.Table]:
    """The file of bitmaps of a table, and the table as a version has it."""
    path = str(folder / "products.arrow")
    with pa.OSFile(path, "wb") as sink, pa.ipc.new_file(sink, table.schema) as writer:
        writer.write_table(table, max_chunksize=batch_rows)
    part = read_products_file(path, str(folder / "values"), of_rows=len(table))
    return write_filter_bitmaps([part], str(folder / "filters")), pa.ipc.open_file(pa.memory_map(path)).read_all()


@pytest.fixture(scope="module")
def opened(tmp_path_factory: pytest.TempPathFactory) -> FilterBitmaps:
    path, table = write(TABLE, tmp_path_factory.mktemp("bitmaps"))
    return FilterBitmaps(path, table, ProductRows(table).take)


def test_columns_of_few_values_have_bitmaps(opened: FilterBitmaps) -> None:
    assert list(opened) == WITH_BITMAPS
    for name in WITH_BITMAPS:
        column = TABLE.column(name).combine_chunks()
        plain = column.dictionary_decode() if pa.types.is_dictionary(column.type) else column
        assert len(opened[name].values) == len(plain.dictionary_encode("encode").dictionary)


LEAVES = st.sampled_from(
    [
        *("kind = 'chair'", "kind <> 'mug'", "kind in ('mug', 'lamp', 'none')", "kind is null", "kind like '%a%'"),
        *("stock", "stock = false", "stock is null", "size between 39 and 41", "size >= 42", "size = '40'", "size < 3"),
        *("rating > 2", "rating is null", "rating not in (1, 4)", "day <= '2026-01-04'", "day = 'soon'", "cost < 2"),
        *("grade >= 2", "grade = 'x'", "grade is not null", "price < 30", "price is null", "title like '%7'"),
        *("tags = 'b'", "size > rating", "size < price", "kind = grade", "kind not in ('mug', null)"),
    ]
)
CONDITIONS = st.recursive(
    LEAVES,
    lambda parts: st.one_of(
        st.tuples(parts, st.sampled_from(["and", "or"]), parts).map(lambda found: f"({' '.join(found)})"),
        parts.map(lambda part: f"not ({part})"),
        parts.map(lambda part: f"(({part}) is true)"),
        parts.map(lambda part: f"(({part}) is not false)"),
    ),
    max_leaves=6,
)


@given(condition=CONDITIONS)
@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_conditions_find_the_same_rows_as_on_the_columns(opened: FilterBitmaps, condition: str) -> None:
    by_bitmaps, by_columns = (RowFilters(TABLE, bitmaps).select(condition) for bitmaps in (opened, None))
    assert by_bitmaps.rows == by_columns.rows
    assert np.array_equal(by_bitmaps.bits, by_columns.bits)


def test_the_same_table_gives_the_same_bytes(tmp_path: Path) -> None:
    files = []
    for number, batch_rows in enumerate((ROWS, 700, 33)):
        folder = tmp_path / str(number)
        folder.mkdir()
        files.append(Path(write(TABLE, folder, batch_rows)[0]).read_bytes())
    assert files[0] == files[1] == files[2]


@pytest.mark.parametrize("edges", [[0, 1000, ROWS], [0, 0, 3, 4, 2500, 2500, ROWS]])
def test_parts_give_the_bytes_of_the_whole(tmp_path: Path, edges: list[int]) -> None:
    turned = TABLE.set_column(9, "late", pa.array(["new" if row >= 2500 else None for row in range(ROWS)]))
    for table in (TABLE, turned):
        parts = []
        for number, (start, stop) in enumerate(pairwise(edges)):
            folder = tmp_path / f"{table.column_names[9]}-{number}"
            folder.mkdir()
            write(table.slice(start, stop - start), folder)
            parts.append(
                read_products_file(str(folder / "products.arrow"), str(folder / "values-of-all"), of_rows=ROWS)
            )
        united = write_filter_bitmaps(parts, str(tmp_path / f"{table.column_names[9]}-united"))
        (tmp_path / f"{table.column_names[9]}-whole").mkdir()
        whole, _ = write(table, tmp_path / f"{table.column_names[9]}-whole")
        assert Path(united).read_bytes() == Path(whole).read_bytes()


def test_products_that_were_damaged_after_they_were_made_are_not_read(tmp_path: Path) -> None:
    def make(path: str) -> None:
        with pa.OSFile(f"{path}.arrow", "wb") as sink, pa.ipc.new_file(sink, TABLE.schema) as writer:
            writer.write_table(TABLE)

    made = storage.artifact(str(tmp_path / "products"), "x", make)
    data = bytearray(Path(made.files[0]).read_bytes())
    data[len(data) // 2] ^= 1
    Path(made.files[0]).write_bytes(data)
    with pytest.raises(StorageError, match="was damaged after it was made"):
        read_products_file(made.files[0], str(tmp_path / "values"), of_rows=ROWS)


def test_columns_of_many_values_and_empty_tables_have_none(tmp_path: Path) -> None:
    rows = 20 * MOST_VALUES
    numbers = np.arange(rows)
    table = pa.table(
        {"product_id": numbers.astype(str), "most": numbers % MOST_VALUES, "more": numbers % (MOST_VALUES + 1)}
    )
    path, written = write(table, tmp_path)
    assert list(FilterBitmaps(path, written, ProductRows(written).take)) == ["most"]
    (tmp_path / "empty").mkdir()
    path, written = write(table.slice(0, 0), tmp_path / "empty")
    assert RowFilters(written, FilterBitmaps(path, written, ProductRows(written).take)).select("most = 1").rows == 0


@pytest.fixture(scope="module")
def index(tmp_path_factory: pytest.TempPathFactory) -> str:
    root = str(tmp_path_factory.mktemp("index"))
    shards = write_shards(root, clustered(ROWS, DIM), 1000)
    config = IndexConfig(uri=f"{root}/index", factory="IVF32,Flat", serving_shards=2, verify_queries=50)
    staged, manifest = stage(root, build_index(root, shards, config, DIM))
    (Path(root) / "own").mkdir()
    staged[FILTERS_FILE] = write(TABLE, Path(root) / "own")[0]
    staged["products.arrow"] = f"{root}/own/products.arrow"
    publish_version(config.uri, staged, manifest)
    return config.uri


def test_bitmaps_do_not_change_what_a_version_is(index: str) -> None:
    manifest = read_manifest(index)
    files = staged_files(version_uri(index, manifest.version))
    without = {name: file for name, file in files.items() if name != FILTERS_FILE}
    assert len(without) == len(files) - 1
    given = (manifest.encoder.fingerprint, manifest.index.spec, manifest.index.search)
    assert content_fingerprint(without, *given) == content_fingerprint(files, *given)
    index_files, (products,) = manifest.index_files(), manifest.products_files()
    assert manifest.loaded_bytes > sum(entry.bytes for entry in (*index_files, products))


@given(condition=CONDITIONS, k=st.sampled_from([1, 10, 300]))
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_a_search_finds_what_brute_force_finds(index: str, condition: str, k: int) -> None:
    reader = IndexReader.open(index)
    queries = clustered(3, DIM, seed=9)
    passing = reader._state.filters.select(condition).numbers
    scores = queries @ clustered(ROWS, DIM)[passing].T
    best = np.argsort(-scores, axis=1, kind="stable")[:, :k]
    for _ in range(2):  # the second time by the codes of the rows that pass
        result = reader.search(queries, k, filter=condition, nprobe=32)
        count = min(k, len(passing))
        assert np.allclose(result.scores[:, :count], np.take_along_axis(scores, best, 1), atol=1e-5)
        assert np.isin(result.rows[:, :count], passing).all()
        assert (result.rows[:, count:] == -1).all()


def copied(index: str, tmp_path: Path) -> tuple[str, Path]:
    """A copy of an index, and the bitmaps in it."""
    for name in storage.list_names(index):
        storage.copy_file(storage.join(index, name), str(tmp_path / "copy" / name))
    return str(tmp_path / "copy"), next((tmp_path / "copy").rglob(FILTERS_FILE))


def without_files(index: str, *names: str) -> None:
    """Makes the manifest that of a version from before these files were written."""
    manifest = next(Path(index).rglob("manifest.json"))
    entries = storage.read_json(str(manifest))
    entries["files"] = [entry for entry in entries["files"] if entry["path"] not in names]
    del entries["manifest_sha256"]  # nor had the versions of then such a hash
    storage.write_json_atomic(str(manifest), entries)


def test_a_version_without_the_file_is_searched_alike(index: str, tmp_path: Path) -> None:
    copy, bitmaps = copied(index, tmp_path)
    without_files(copy, FILTERS_FILE, "checksums.json")
    bitmaps.unlink()
    condition = "kind in ('mug', 'lamp') and not (stock or rating > 2)"
    with_file, without = (
        IndexReader.open(uri).search(clustered(5, DIM, seed=2), 10, condition) for uri in (index, copy)
    )
    assert np.array_equal(with_file.rows, without.rows)


def test_filters_are_those_of_the_version_that_is_open(index: str, tmp_path: Path) -> None:
    copy, _ = copied(index, tmp_path)
    reader, condition = IndexReader.open(copy), "kind = 'mug' and size > 40"
    queries = clustered(4, DIM, seed=3)
    for _ in range(2):
        before = reader.search(queries, 10, condition)
    (tmp_path / "turned").mkdir()
    turned = TABLE.set_column(1, "kind", TABLE["kind"].combine_chunks()[::-1])
    folder = Path(copy) / "versions" / reader.manifest.version
    staged = {name: str(folder / name) for name in storage.list_names(str(folder)) if name != "manifest.json"}
    staged[FILTERS_FILE] = write(turned, tmp_path / "turned")[0]
    staged["products.arrow"] = str(tmp_path / "turned" / "products.arrow")
    publish_version(copy, staged, reader.manifest)
    assert np.array_equal(reader.search(queries, 10, condition).rows, before.rows)
    assert reader.refresh()
    for table, result in ((TABLE, before), (turned, reader.search(queries, 10, condition))):
        found = table.take(pa.array(result.rows.ravel()))
        assert set(found["kind"].to_pylist()) == {"mug"}
        assert min(found["size"].to_pylist()) > 40


def test_a_damaged_file_is_noticed(index: str, tmp_path: Path) -> None:
    copy, bitmaps = copied(index, tmp_path)
    data = bytearray(bitmaps.read_bytes())
    bitmaps.write_bytes(data[:-10])
    with pytest.raises(VerificationError, match=r"filters\.arrow: expected \d+ bytes"):
        IndexReader.open(copy)
    bitmaps.write_bytes(bytes(len(data)))
    with pytest.raises(
        VerificationError, match=r"filters\.arrow: (expected the bitmaps of|bytes 0 to .* are not those)"
    ):
        IndexReader.open(copy)
    without_files(copy, "checksums.json")  # which would tell of it first
    stored = FilterBitmaps(str(next(Path(index).rglob(FILTERS_FILE))), TABLE, ProductRows(TABLE).take)["kind"]
    place = bytes(data).index(stored._bitmaps.column("bitmap")[0].as_py())
    data[place + 20] ^= 1
    bitmaps.write_bytes(data)
    reader = IndexReader.open(copy)
    assert reader.search(clustered(1, DIM), 1, filter="stock").rows[0, 0] >= 0
    with pytest.raises(VerificationError, match=r"filters\.arrow: expected the bitmap that was written for 'kind'"):
        reader.search(clustered(1, DIM), 1, filter=f"kind = '{stored.values.column('kind')[0]}'")


def test_bitmaps_of_other_products(tmp_path: Path) -> None:
    path, _ = write(TABLE, tmp_path)
    for other in (TABLE.slice(1), TABLE.drop_columns(["kind"])):
        with pytest.raises(VerificationError, match=r"filters: expected"):
            FilterBitmaps(path, other, ProductRows(other).take)


def test_kept_filters_have_a_bound(index: str, monkeypatch: pytest.MonkeyPatch) -> None:
    reader = IndexReader.open(index)
    filters = reader._state.filters
    query = clustered(1, DIM)
    for low in range(2 * FILTERS_KEPT):
        for _ in range(2):
            reader.search(query, 3, filter=f"price between {low / 2} and {low / 2 + 10}")
    assert len(filters._known) <= FILTERS_KEPT + 1
    one = max(selection.bytes for selection in filters._known.values())
    assert one > ROWS // 8 + 16 * 4 * 100  # with codes
    bound = 5 * one
    monkeypatch.setattr("index_builder.open_version.FILTER_BYTES", bound)
    for low in range(50):
        for _ in range(3):
            reader.search(query, 3, filter=f"price between {low} and {low + 10}")
            assert sum(selection.bytes for selection in filters._known.values()) <= bound + one
    assert 2 <= len(filters._known) <= 6


def test_a_mask_is_known_by_its_content() -> None:
    filters = RowFilters(TABLE)
    mask = np.random.default_rng(0).random(ROWS) < 0.2
    first = filters.select(mask)
    assert filters.select(mask.copy()) is first
    mask[7] ^= True
    assert filters.select(mask).rows == mask.sum() != first.rows
    assert filters.select(np.repeat(mask, 2)[::2]) is filters.select(mask)

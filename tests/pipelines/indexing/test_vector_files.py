"""Vector files made elsewhere: which are read, in which order, what a row of them is, and what is refused by name."""

from __future__ import annotations

import contextlib
import os
import pickle
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipelines.catalog.config import CatalogError
from pipelines.config.job import EmbeddingsConfig
from pipelines.indexing import npy_vectors, vector_files
from pipelines.indexing.vector_files import VectorBatch, plan_vectors, read_vectors

VECTORS = np.arange(40, dtype=np.float32).reshape(10, 4) + 1
IDS = [f"p{number}" for number in range(10)]


def config_of(uri: Path | str, **options: Any) -> EmbeddingsConfig:
    return EmbeddingsConfig(uri=str(uri), **options)


def read(uri: Path, **options: Any) -> list[VectorBatch]:
    config = config_of(uri, **options)
    shards, dim = plan_vectors(config)
    return [batch for shard in shards for batch in read_vectors(shard, config, dim)]


def ids_of(batches: list[VectorBatch]) -> list[str | None]:
    return [product_id for batch in batches for product_id in batch.ids.to_pylist()]


def vectors_of(batches: list[VectorBatch]) -> np.ndarray:
    return np.concatenate([batch.vectors for batch in batches])


def save(path: Path, vectors: np.ndarray, ids: bytes | np.ndarray | None = None) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    np.save(path, vectors, allow_pickle=True)
    beside = str(path).removesuffix(".npy")
    if isinstance(ids, bytes):
        Path(f"{beside}.ids.txt").write_bytes(ids)
    elif ids is not None:
        np.save(f"{beside}.ids.npy", ids, allow_pickle=True)
    return path


def parquet(path: Path, vectors: pa.Array, ids: Any = None, **columns: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    ids = [f"p{number}" for number in range(len(vectors))] if ids is None else ids
    pq.write_table(pa.table({"product_id": ids, "vector": vectors, **columns}), path, row_group_size=4)
    return path


def clip_folder(root: Path, parts: int = 12, *, folders: tuple[str, ...] = ("img_emb", "text_emb")) -> Path:
    """A folder as clip-retrieval writes it; the first value of a vector is ten times its number, and its row."""
    for number in range(parts):
        part = np.full((3, 4), 10 * number) + np.arange(3)[:, None]
        for folder in folders:
            save(root / folder / f"{folder}_{number}.npy", (part + 1000 * (folder == "text_emb")).astype(np.float32))
        (root / "metadata").mkdir(exist_ok=True)
        table = pa.table(
            {
                "image_path": [f"{number}-{row}" for row in range(3)],
                "caption": pa.array(["a", "b", "a"]).dictionary_encode(),
                "width": pa.array([None] * 3) if number == 1 else pa.array([1, 2, number]),
            }
        )
        pq.write_table(table, root / "metadata" / f"metadata_{number}.parquet", row_group_size=2)
    return root


@pytest.mark.parametrize("shard_rows", [2, 65_536])
def test_clip_retrievals_rows_have_the_ids_and_columns_of_their_number(tmp_path: Path, shard_rows: int) -> None:
    root = clip_folder(tmp_path / "clip")
    for folder, offset in ((None, 0), ("text_emb", 1000), ("img_emb", 0)):
        batches = read(root, emb_folder=folder, display_fields=("width", "caption"), shard_rows=shard_rows)
        assert ids_of(batches) == [f"{number}-{row}" for number in range(12) for row in range(3)]
        expected = [10 * number + row + offset for number in range(12) for row in range(3)]
        assert vectors_of(batches)[:, 0].tolist() == expected
        shown = [row for batch in batches for row in batch.columns.to_pylist()]
        assert shown[30:33] == [
            {"width": 1, "caption": "a"},
            {"width": 2, "caption": "b"},
            {"width": 10, "caption": "a"},
        ]
        assert shown[3]["width"] is None
    assert ids_of(read(root, id_field="caption")) == ["a", "b", "a"] * 12
    assert ids_of(read(root, id_field=None)) == [str(row) for row in range(36)]
    # One of its folders, or one of its files, may be named as well.
    assert vectors_of(read(root / "text_emb"))[0, 0] == 1000
    assert ids_of(read(root / "img_emb" / "img_emb_10.npy")) == ["10-0", "10-1", "10-2"]
    # Without metadata it is a folder of NumPy files.
    shutil.rmtree(root / "metadata")
    assert vectors_of(read(root, id_field=None))[:, 0].tolist()[27:31] == [90, 91, 92, 100]


def test_a_folder_of_clip_retrieval_that_does_not_fit_together_is_refused_by_name(tmp_path: Path) -> None:
    root = clip_folder(tmp_path / "clip", 3)
    with pytest.raises(CatalogError, match=r"embeddings\.id_field: expected a column 'sku' in .*metadata_0\.parquet"):
        read(root, id_field="sku")
    with pytest.raises(CatalogError, match=r"embeddings\.display_fields: expected a column 'title' in .*metadata_0"):
        read(root, display_fields=("title",))
    os.rename(root / "img_emb" / "img_emb_1.npy", tmp_path / "away.npy")
    with pytest.raises(CatalogError, match=r"expected .*img_emb/img_emb_1\.npy, whose rows are named in .*metadata_1"):
        read(root)
    os.rename(tmp_path / "away.npy", root / "img_emb" / "img_emb_1.npy")
    os.unlink(root / "metadata" / "metadata_1.parquet")
    with pytest.raises(CatalogError, match=r"expected the ids of .*img_emb_1\.npy in .*metadata/"):
        read(root)
    pq.write_table(pa.table({"image_path": ["a", "b"]}), root / "metadata" / "metadata_1.parquet")
    with pytest.raises(
        CatalogError, match=r"metadata_1\.parquet: expected a row for each of the 3 vectors of .*, found 2"
    ):
        read(root)
    only = clip_folder(tmp_path / "only", 1, folders=("text_emb",))
    assert vectors_of(read(only))[0, 0] == 1000
    with pytest.raises(CatalogError, match=r"embeddings\.emb_folder: expected a folder img_emb in .*, found text_emb"):
        read(only, emb_folder="img_emb")
    save(tmp_path / "plain" / "a.npy", VECTORS)
    with pytest.raises(CatalogError, match=r"embeddings\.emb_folder: expected a folder of clip-retrieval"):
        read(tmp_path / "plain", emb_folder="img_emb", id_field=None)
    mixed = clip_folder(tmp_path / "mixed", 2)
    table = pq.read_table(mixed / "metadata" / "metadata_1.parquet").set_column(2, "width", pa.array([["x"]] * 3))
    pq.write_table(table, mixed / "metadata" / "metadata_1.parquet")
    with pytest.raises(CatalogError, match=r"embeddings\.display_fields: .*one type in all files.*img_emb_1"):
        read(mixed, display_fields=("width",))


def test_a_changed_file_of_ids_or_columns_makes_other_shards(tmp_path: Path) -> None:
    root = clip_folder(tmp_path / "clip", 1)
    save(tmp_path / "plain" / "a.npy", VECTORS, "\n".join(IDS).encode())
    for uri, beside in (
        (root, root / "metadata" / "metadata_0.parquet"),
        (tmp_path / "plain", tmp_path / "plain" / "a.ids.txt"),
    ):
        (before,), _ = plan_vectors(config_of(uri))
        os.utime(beside, ns=(5, 5))
        (after,), _ = plan_vectors(config_of(uri))
        assert before.version != after.version


@pytest.mark.parametrize("end", ["\n", "\r\n"])
@pytest.mark.parametrize("last", ["", "end"])
def test_only_line_feeds_separate_ids(tmp_path: Path, end: str, last: str) -> None:
    ids = ["a\x0cb", "c\x0bd", "e\u2028f", "g\x85h", "i\x1cj", "k\rl", "ü", " m ", "", "\ufeffn"]
    text = "\ufeff" + end.join(ids) + (end if last == "end" else "")
    save(tmp_path / "a.npy", VECTORS, text.encode())
    (batch,) = read(tmp_path)
    # An id with a control character in it is a letter, and the ids behind it stay with their vectors.
    controlled = [0, 1, 3, 4, 5]
    assert list(batch.wrong_ids) == controlled
    found = [None if number in controlled else product_id for number, product_id in enumerate(ids[:7])]
    assert batch.ids.to_pylist() == [*found, "m", None, "\ufeffn"]


@settings(max_examples=100, deadline=None)
@given(ids=st.lists(st.text(st.characters(exclude_characters="\n", codec="utf-8"), max_size=5), max_size=9))
def test_lines_of_any_text(ids: list[str]) -> None:
    lines = npy_vectors._lines("".join(f"{line}\n" for line in ids).encode()).to_pylist()
    expected = [f"{line}\n" for line in ids]
    assert lines == ([expected[0].removeprefix("\ufeff"), *expected[1:]] if ids else [])


@pytest.mark.parametrize(
    ("ids", "message"),
    [
        (b"a\nb\n\xff\nc\n" + b"x\n" * 6, r"a\.ids\.txt: expected ids.*expected UTF-8, found the byte 0xff on line 3"),
        ("\n".join(IDS).encode("utf-16"), r"a\.ids\.txt: .*found UTF-16"),
        (b"a\nb", r"a\.ids\.txt: expected an id for each of the 10 vectors of .*a\.npy, found 2"),
        (b"", r"found 0"),
        (np.array(IDS[:9]), r"a\.ids\.npy: expected an id for each of the 10 vectors of .*a\.npy, found 9"),
        (np.array(IDS, object), r"a\.ids\.npy: .*expected texts or numbers \[n\], found object \[10\]"),
        (np.array([IDS]), r"a\.ids\.npy: .*found <U2 \[1, 10\]"),
        (np.array([1 + 2j] * 10), r"a\.ids\.npy: .*found complex128"),
        (np.array([b"\xff"] * 10), r"a\.ids\.npy: expected ids, cannot read them"),
        (np.array(["\udc80"] * 10), r"a\.ids\.npy: expected ids, cannot read them"),
    ],
)
def test_ids_that_cannot_be_used_are_refused_in_the_plan(tmp_path: Path, ids: Any, message: str) -> None:
    save(tmp_path / "a.npy", VECTORS, ids)
    with pytest.raises(CatalogError, match=message):
        plan_vectors(config_of(tmp_path))


def test_ids_of_numpy_arrays(tmp_path: Path) -> None:
    for ids in (np.array(IDS), np.array(IDS).astype("S")):
        save(tmp_path / "a.npy", VECTORS, ids)
        assert ids_of(read(tmp_path, shard_rows=3)) == IDS
    for dtype in (np.int64, np.float64, np.uint64):
        save(tmp_path / "a.npy", VECTORS, np.arange(10, dtype=dtype))
        assert ids_of(read(tmp_path, shard_rows=3)) == [str(number) for number in range(10)]
    save(tmp_path / "a.npy", VECTORS, np.array([1.5, np.nan, *range(8)]))
    (batch,) = read(tmp_path)
    assert batch.ids.to_pylist()[:3] == [None, None, "0"]
    assert list(batch.wrong_ids) == [0]


@pytest.mark.parametrize(
    "dtype", [np.float16, np.float32, np.float64, ">f4", np.longdouble, np.int8], ids=lambda dtype: np.dtype(dtype).str
)
def test_numbers_of_many_types_are_read(tmp_path: Path, dtype: Any) -> None:
    save(tmp_path / "a.npy", VECTORS.astype(dtype))
    (batch,) = read(tmp_path, id_field=None)
    assert batch.vectors.dtype == np.float32
    assert np.array_equal(batch.vectors, VECTORS)


@pytest.mark.parametrize(
    ("vectors", "message"),
    [
        (VECTORS.astype(np.uint16), r"found uint16 \[10, 4\] row by row \(as bfloat16 or packed bits are kept"),
        (VECTORS.astype(np.uint8), r"found uint8"),
        (VECTORS.astype(np.int64), r"found int64"),
        (VECTORS.astype(np.float16).view("V2"), r"bfloat16 is no type of NumPy's"),
        (np.asfortranarray(VECTORS), r"column by column; save numpy\.ascontiguousarray"),
        (VECTORS[0], r"found float32 \[4\]"),
        (VECTORS[None], r"found float32 \[1, 10, 4\]"),
        (np.array(1.0), r"found float64 \[\]"),
        (VECTORS[:, :0], r"at least one value in each vector, found an array \[10, 0\]"),
        (VECTORS.astype(object), r"found object \[10, 4\] row by row \(a pickled array is never loaded\)"),
        (VECTORS.astype(complex), r"found complex128"),
        (np.array([(1.0, 2)], "f4,i4"), r"expected floats \[n, D\]"),
        (np.array(["x"]), r"expected floats \[n, D\]"),
        (VECTORS[:0], r"found files without a row that has one"),
    ],
)
def test_arrays_that_are_no_vectors_are_refused(tmp_path: Path, vectors: np.ndarray, message: str) -> None:
    save(tmp_path / "a.npy", vectors)
    with pytest.raises(CatalogError, match=message):
        plan_vectors(config_of(tmp_path, id_field=None))


class Trap:
    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (os.environ["TRAP"],)


def test_nothing_is_ever_unpickled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRAP", str(tmp_path / "sprung"))
    (tmp_path / "v").mkdir()
    (tmp_path / "v" / "a.npy").write_bytes(pickle.dumps(Trap()))
    save(tmp_path / "w" / "a.npy", np.array([[Trap()]], object))
    save(tmp_path / "x" / "a.npy", VECTORS, np.array([Trap()] * 10, object))
    for folder in "vwx":
        with pytest.raises(CatalogError):
            plan_vectors(config_of(tmp_path / folder, id_field=None if folder != "x" else "product_id"))
    assert not (tmp_path / "sprung").exists()
    with pytest.raises(FileExistsError):  # the trap works
        (tmp_path / "sprung").mkdir() or pickle.loads((tmp_path / "v" / "a.npy").read_bytes())


@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_a_damaged_file_is_refused_or_read_and_nothing_else(
    data: st.DataObject, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.mktemp("damaged")
    save(folder / "a.npy", VECTORS, "\n".join(IDS).encode())
    save(folder / "ids" / "a.npy", VECTORS, np.array(IDS))
    for path in (folder / "a.npy", folder / "ids" / "a.ids.npy"):
        content = bytearray(path.read_bytes())
        for _ in range(data.draw(st.integers(0, 4))):
            content[data.draw(st.integers(0, 127))] = data.draw(st.integers(0, 255))
        path.write_bytes(content[: data.draw(st.integers(0, len(content)))])
        with contextlib.suppress(CatalogError):
            assert len(ids_of(read(path.parent / "a.npy"))) > 0


def test_vectors_in_parquet_that_are_none_are_problems_of_their_rows(tmp_path: Path) -> None:
    """The dimension is that of most rows: a short first row does not decide."""
    values: list[Any] = [[1.0], None, [1.0, None, 3.0], [], [1.0, 2.0, 3.0], [1.0, 2.0, 3.0, 4.0], [4.0, 5.0, 6.0]]
    for data_type in (
        pa.list_(pa.float32()),
        pa.large_list(pa.float64()),
        pa.list_(pa.float16()),
        pa.list_(pa.int32()),
    ):
        parquet(tmp_path / "a.parquet", pa.array(values, data_type))
        batches = read(tmp_path)
        vectors = vectors_of(batches)
        assert vectors[[4, 6]].tolist() == [[1, 2, 3], [4, 5, 6]]
        assert np.isnan(vectors[2, 1])
        found = {batch.ids[row].as_py(): why for batch in batches for row, why in batch.problems.items()}
        short = "{} values, expected 3"
        assert found == {"p0": short.format(1), "p1": "no vector", "p3": short.format(0), "p5": short.format(4)}


def test_nulls_in_lists_of_one_size(tmp_path: Path) -> None:
    values: list[Any] = [[1.0, 2.0], None, [None, 1.0], [3.0, 4.0], [None, None], None]
    tensor = pa.fixed_shape_tensor(pa.float32(), [2])
    for data_type in (pa.list_(pa.float32(), 2), pa.list_(pa.float16(), 2), pa.list_(pa.int8(), 2), tensor):
        plain = pa.array(values, data_type.storage_type if data_type is tensor else data_type)
        column = pa.ExtensionArray.from_storage(tensor, plain) if data_type is tensor else plain
        parquet(tmp_path / "a.parquet", column, n=list(range(6)))
        batches = read(tmp_path)
        vectors = vectors_of(batches)
        assert vectors[[0, 3]].tolist() == [[1, 2], [3, 4]]
        assert np.isnan(vectors[[2, 4], 0]).all()
        assert [list(batch.problems) for batch in batches] == [[1], [1]]  # of row groups of four rows
        assert ids_of(batches) == IDS[:6]
        assert vectors_of(read(tmp_path, id_field=None))[3].tolist() == [3, 4]
        columns = [batch.columns.column("n").to_pylist() for batch in read(tmp_path, display_fields=("n",))]
        assert columns == [[0, 1, 2, 3], [4, 5]]


@pytest.mark.parametrize(
    ("vectors", "message"),
    [
        (pa.array([[[1.0, 2.0]]]), r"expected lists of floats in 'vector' .*found list<.*: list<"),
        (pa.array([[[1.0, 2.0]]], pa.list_(pa.list_(pa.float32(), 2), 1)), r"expected lists of floats"),
        (pa.array([["a", "b"]]), r"expected lists of floats"),
        (pa.array([[True, False]]), r"expected lists of floats"),
        (pa.array([[1, 2]], pa.list_(pa.uint8())), r"expected lists of floats"),
        (pa.array([None], pa.list_(pa.null())), r"expected lists of floats"),
        (pa.array([None]), r"expected lists of floats in 'vector' .*found null"),
        (pa.array([b"\0" * 8], pa.binary(8)), r"expected lists of floats"),
        (pa.array([1.5]), r"expected lists of floats"),
        (pa.array([{"a": 1.5}]), r"expected lists of floats"),
        (pa.array([[], None], pa.list_(pa.float32())), r"found files without a row that has one"),
    ],
)
def test_columns_that_hold_no_vectors_are_refused(tmp_path: Path, vectors: pa.Array, message: str) -> None:
    parquet(tmp_path / "a.parquet", vectors)
    with pytest.raises(CatalogError, match=message):
        plan_vectors(config_of(tmp_path))


def test_ids_and_columns_of_parquet_files_that_are_no_text(tmp_path: Path) -> None:
    vectors = pa.array([[1.0, 2.0]] * 3)
    bad = pa.Array.from_buffers(pa.string(), 3, pa.array([b"a", b"\xff", b"c"]).buffers())
    for ids in (pa.array([b"a", b"\xff", b"c"]), bad):
        parquet(tmp_path / "a.parquet", vectors, ids, title=pa.array(["x", "y", "z"]))
        (batch,) = read(tmp_path, display_fields=("title",))
        assert batch.ids.to_pylist() == ["a", None, "c"]
        assert batch.wrong_ids == {1: "expected UTF-8 text, found other bytes"}
    parquet(tmp_path / "a.parquet", vectors, title=bad)
    (batch,) = read(tmp_path, display_fields=("title",))
    assert batch.ids.to_pylist() == ["p0", None, "p2"]
    for ids in (pa.array([["a"]] * 3), pa.array([True, False, True]), pa.array([{"a": 1}] * 3)):
        parquet(tmp_path / "a.parquet", vectors, ids)
        with pytest.raises(CatalogError, match=r"embeddings\.id_field: expected text or whole numbers in 'product_id'"):
            plan_vectors(config_of(tmp_path))
    table = pa.Table.from_arrays(
        [vectors, pa.array(IDS[:3]), pa.array(IDS[:3])], names=["vector", "product_id", "product_id"]
    )
    pq.write_table(table, tmp_path / "a.parquet")
    with pytest.raises(CatalogError, match=r"embeddings\.id_field: expected a column .*found 2 of that name"):
        plan_vectors(config_of(tmp_path))


def test_a_parquet_file_with_a_damaged_page_is_named(tmp_path: Path) -> None:
    values = np.random.default_rng(0).normal(size=(500, 8))
    for data_type in (pa.list_(pa.float64()), pa.list_(pa.float64(), 8)):
        path = parquet(tmp_path / "a.parquet", pa.array(values.tolist(), data_type))
        data = bytearray(path.read_bytes())
        data[4:2000] = b"\xff" * 1996
        path.write_bytes(data)
        with pytest.raises(CatalogError, match=r"embeddings\.uri: expected a whole Parquet file at .*a\.parquet"):
            read(tmp_path)


def test_dictionaries_are_written_out(tmp_path: Path) -> None:
    for name in "ab":
        brands = pa.array([name, "x", name]).dictionary_encode()
        parquet(tmp_path / f"{name}.parquet", pa.array([[1.0, 2.0]] * 3), brand=brands)
    columns = [batch.columns.column("brand") for batch in read(tmp_path, display_fields=("brand",))]
    assert [column.type for column in columns] == [pa.string()] * 2
    assert columns[1].to_pylist() == ["b", "x", "b"]


def test_files_come_in_the_order_of_the_numbers_in_their_names(tmp_path: Path) -> None:
    names = ["part-9", "part-10", "part-2", "part-010", "part-1b", "part-1a", "x"]
    for number, name in enumerate(names):
        save(tmp_path / f"{name}.npy", np.full((1, 2), number, np.float32))
    found = [names[int(value)] for value in vectors_of(read(tmp_path, id_field=None))[:, 0]]
    assert found == ["part-1a", "part-1b", "part-2", "part-9", "part-010", "part-10", "x"]
    assert vector_files._natural("a²9")[0] == ["a²", 9, ""]


@pytest.mark.parametrize("dtype", ["<u8", ">u8", ">i4"])
def test_ids_of_numpy_in_every_width_and_byte_order(dtype: str, tmp_path: Path) -> None:
    ids = np.array([0, 7, np.iinfo(np.dtype(dtype)).max], dtype)
    save(tmp_path / "v.npy", np.eye(3, 4, dtype=np.float32) + 1, ids)
    assert ids_of(read(tmp_path / "v.npy")) == [str(each) for each in ids.tolist()]

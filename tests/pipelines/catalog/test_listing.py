"""Which files make the catalog, and what is said about those that do not; Delta Lake and Iceberg tables."""

from __future__ import annotations

import base64
import gzip
import io
import json
import logging
import lzma
import os
import struct
import zipfile
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from pipelines.catalog.config import CatalogConfig, CatalogError
from pipelines.catalog.listing import CatalogListing, list_catalog
from pipelines.catalog.plan import catalog_schema, plan_catalog
from tests.pipelines.catalog.catalogs import encode, pairs, read_plan, write

LINE = b'{"product_id": "1", "title": "a"}\n'


def listed(uri: str | Path | tuple[str, ...], **options: str) -> CatalogListing:
    config = CatalogConfig(uri=uri if isinstance(uri, tuple) else str(uri), **options)  # type: ignore[arg-type]
    return list_catalog(config.uris, config.format)


def names(listing: CatalogListing) -> list[str]:
    return [file.name for file in listing.files]


def test_a_folder_is_read_with_its_subfolders_in_codepoint_order(tmp_path: Path) -> None:
    for name in ("b.jsonl", "a/z.jsonl", "a-1.jsonl", "B.jsonl", "ä.jsonl", "a/10.jsonl", "a/9.jsonl"):
        write(tmp_path / name, LINE)
    expected = ["B.jsonl", "a-1.jsonl", "a/10.jsonl", "a/9.jsonl", "a/z.jsonl", "b.jsonl", "ä.jsonl"]
    assert names(listed(tmp_path)) == expected


def test_hidden_empty_and_foreign_files_are_skipped_with_a_word(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    write(tmp_path / "kind=shoe" / "_day=1" / "part.jsonl", LINE)
    hidden = ("_SUCCESS", ".part.jsonl.crc", "_temporary/0/part.jsonl", ".git/a.jsonl")
    for name in (*hidden, "README.md", "cup.jpg", "LICENSE"):
        write(tmp_path / name, b"text")
    write(tmp_path / "empty.jsonl", b"")
    with caplog.at_level(logging.INFO):
        listing = listed(tmp_path)
    assert names(listing) == ["kind=shoe/_day=1/part.jsonl"]
    why = {Path(uri).relative_to(tmp_path).as_posix(): reason for uri, reason in listing.skipped}
    assert all(why[name] == "hidden" for name in hidden)
    assert why["empty.jsonl"] == "no bytes"
    assert why["README.md"] == why["cup.jpg"] == "not a catalog file by its suffix"
    assert "set catalog.format" in why["LICENSE"]
    assert "skipped 8 of the files" in caplog.text


def test_a_catalog_file_inside_a_compression_that_is_not_read_is_never_passed_over(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    uri = write(tmp_path / "b.jsonl.br", b"packed")
    write(tmp_path / "README.md", b"text")
    for place in (uri, tmp_path, tmp_path / "*.br"):
        for format in ("auto", "jsonl"):
            with pytest.raises(
                CatalogError, match=r"b\.jsonl\.br: \.br is no compression that is read; those are \.gz.* \.zip"
            ):
                listed(place, format=format)
    for number in range(6):
        write(tmp_path / f"a{number}.md", b"text")
    write(tmp_path / "_old" / "c.csv.7z", b"hidden")
    write(tmp_path / "a.jsonl", LINE)
    caplog.clear()
    assert names(listed(tmp_path)) == ["a.jsonl"]
    (record,) = caplog.records
    assert record.levelno == logging.WARNING
    assert "b.jsonl.br (.br is no compression" in record.message


def archive(**members: bytes) -> bytes:
    sink = io.BytesIO()
    with zipfile.ZipFile(sink, "w") as packed:
        for name, data in members.items():
            packed.writestr(name, data)
    return sink.getvalue()


def test_an_archive_holds_one_data_file(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    plain = {"__MACOSX/._a.csv": b"x", ".hidden.csv": b"x", "empty.csv": b"", "README.txt": b"x", "cup.jpg": b"x"}
    table = b"product_id,title\n1,a\n"
    for name, members, format in (
        ("one.zip", {"deep/a.csv": table}, "csv"),
        ("b.jsonl.zip", {"export": LINE}, "jsonl"),
        ("c.zip", {"export": LINE}, "jsonl"),
        ("d.zip", {"a.csv.gz": gzip.compress(table)}, "csv"),
        ("e.zip", {"a.jsonl.xz": lzma.compress(LINE)}, "jsonl"),
        ("f.csv.zip", {"a.jsonl": LINE}, "jsonl"),
    ):
        config = CatalogConfig(uri=write(tmp_path / "in" / name, archive(**plain, **members)))
        (file,) = listed(config.uris).files
        assert (file.format, file.compression) == (format, "zip")
        (batch,) = read_plan(plan_catalog(config, spool_uri=str(tmp_path / "work")), config)
        assert pairs(batch) == [("1", "a")]
    for members, found in (
        ({"a.csv": table, "b.csv": table}, r"found 2 \(a\.csv, b\.csv\); unpack it"),
        ({"cup.jpg": b"x"}, r"found none \(cup\.jpg\)"),
        ({"a.csv.zip": archive(a=b"x")}, "found another archive; unpack it"),
    ):
        uri = write(tmp_path / "no.zip", archive(**members))
        with pytest.raises(CatalogError, match=rf"no\.zip: expected .*{found}"):
            catalog_schema(CatalogConfig(uri=uri))
    write(tmp_path / "mixed" / "photos.zip", archive(**{"1.jpg": b"x", "2.jpg": b"x"}))
    write(tmp_path / "mixed" / "a.jsonl", LINE)
    assert names(listed(tmp_path / "mixed")) == ["a.jsonl"]
    assert "photos.zip (expected a zip archive with one data file in it, found none" in caplog.text
    with pytest.raises(CatalogError, match="expected a whole zip file, found one that does not decompress"):
        catalog_schema(CatalogConfig(uri=write(tmp_path / "cut.zip", archive(a=LINE)[:-20])))


@pytest.mark.parametrize(
    ("name", "data", "message"),
    [
        ("shop.db", b"SQLite format 3\0" + bytes(100), r"a SQLite database: set catalog\.uri to sqlite:///"),
        ("a.pdf", b"%PDF-1.7 ...", "a PDF file: export the products"),
        ("a.7z", b"7z\xbc\xaf\x27\x1c...", "a 7z archive: unpack it"),
        ("a.tar", b"a.csv".ljust(257, b"\0") + b"ustar\0", "a tar archive: unpack it"),
        ("a.tar.gz", gzip.compress(b"a.csv".ljust(257, b"\0") + b"ustar\0", mtime=0), "a tar archive: unpack it"),
        ("a.bin", b"\x01\0\x02", "it is no text; export the products as CSV"),
    ],
)
def test_what_is_no_catalog_file_is_never_answered_with_a_format(
    name: str, data: bytes, message: str, tmp_path: Path
) -> None:
    with pytest.raises(CatalogError, match=message) as caught:
        listed(write(tmp_path / name, data))
    assert "catalog.format" not in str(caught.value)


def test_sheets_and_xml_beside_other_catalog_files_are_passed_over_as_ever(tmp_path: Path) -> None:
    for name in ("~$list.xlsx", "list.xlsx", "sitemap.xml", "notes.ods"):
        write(tmp_path / name, b"<a/>")
    assert {file.format for file in listed(tmp_path / "*.xml").files} == {"xml"}
    with pytest.raises(
        CatalogError, match=r"expected files of one format .*xlsx: list\.xlsx, notes\.ods; xml: sitemap"
    ):
        listed(tmp_path)
    write(tmp_path / "a.jsonl", LINE)
    listing = listed(tmp_path)
    assert names(listing) == ["a.jsonl"]
    assert ("xlsx, beside files of another format") in dict(listing.skipped)[str(tmp_path / "list.xlsx")]
    assert names(listed(tmp_path, format="xml")) == ["sitemap.xml"]
    with pytest.raises(CatalogError, match="expected files of one format"):
        listed((str(tmp_path / "list.xlsx"), str(tmp_path)))


def test_json_as_a_format_takes_the_files_of_json_lines_too(tmp_path: Path) -> None:
    for name in ("a.json", "b.jsonl", "c.csv"):
        write(tmp_path / name, LINE)
    assert names(listed(tmp_path, format="json")) == ["a.json", "b.jsonl"]


def test_files_of_several_formats_are_an_error_that_lists_them(tmp_path: Path) -> None:
    write(tmp_path / "a.jsonl", LINE)
    for number in range(6):
        write(tmp_path / f"b{number}.csv", b"product_id,title\n1,a\n")
    with pytest.raises(CatalogError, match=r"csv: b0\.csv, b1\.csv, b2\.csv, b3\.csv and 2 more; jsonl: a\.jsonl"):
        listed(tmp_path)
    assert names(listed(tmp_path, format="jsonl")) == ["a.jsonl"]


def test_a_format_that_no_name_tells_is_told_by_the_first_bytes(tmp_path: Path) -> None:
    rows = [{"product_id": "1", "title": "a"}]
    for form in ("parquet", "arrow", "arrow_stream", "jsonl"):
        write(tmp_path / form / "part-00000", encode(rows, form))
        assert listed(tmp_path / form).files[0].format == form.removesuffix("_stream")
    write(tmp_path / "packed" / "part-00000", gzip.compress(LINE))
    (file,) = listed(tmp_path / "packed").files
    assert (file.format, file.compression) == ("jsonl", "gzip")
    write(tmp_path / "part-00001", b"products of the week\n1,a\nbanana\n")
    with pytest.raises(CatalogError, match=r"set catalog\.format to csv \(any table as text\), jsonl, json, xml"):
        listed(tmp_path / "part-00001")
    assert listed(tmp_path / "part-00001", format="csv").files[0].format == "csv"


@pytest.mark.parametrize("name", ["items.txt", "part-00000", "items.dat", "items.txt.gz"])
@pytest.mark.parametrize("delimiter", [",", ";", "\t", "|"])
@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "cp1252"])
def test_a_table_as_text_is_told_by_its_lines(name: str, delimiter: str, encoding: str, tmp_path: Path) -> None:
    text = "id,title,price\n" + "".join(f"{number},Größe {number},5\n" for number in range(9))
    data = text.replace(",", delimiter).encode(encoding)
    write(tmp_path / name, gzip.compress(data) if name.endswith(".gz") else data)
    assert listed(tmp_path / name).files[0].format == "csv"


@pytest.mark.parametrize("text", ["a\nb\nc\n", "Dear Sir,\nthis, that, and more.\n\nYours,\nme\n", "\n", "id,title\n"])
def test_another_text_is_no_table(text: str, tmp_path: Path) -> None:
    write(tmp_path / "a.txt", text.encode())
    with pytest.raises(CatalogError, match=r"set catalog\.format to csv"):
        listed(tmp_path / "a.txt")


def test_files_of_one_name_in_several_folders_keep_names_of_their_own(tmp_path: Path) -> None:
    folders = [str(tmp_path / name) for name in ("shop/b", "shop/a")]
    for folder in folders:
        write(f"{folder}/part.jsonl", LINE)
    assert names(listed(tuple(folders))) == ["a/part.jsonl", "b/part.jsonl"]


def test_names_do_not_depend_on_where_the_catalog_stands(tmp_path: Path, memory_root: str) -> None:
    for root in (str(tmp_path / "here"), f"{memory_root}/there/deep"):
        write(f"{root}/x/a.jsonl", LINE)
        write(f"{root}/b.jsonl", LINE)
        assert names(listed(root)) == ["b.jsonl", "x/a.jsonl"]
        assert names(listed(f"{root}/*/*.jsonl")) == ["x/a.jsonl"]
        assert names(listed(f"{root}/x/a.jsonl")) == ["a.jsonl"]


def test_a_file_that_several_entries_name_is_read_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    uri = write(tmp_path / "a.jsonl", LINE)
    assert names(listed((uri, str(tmp_path), f"{tmp_path}/*.jsonl"))) == ["a.jsonl"]


def test_a_name_with_brackets_is_a_file_where_one_is_called_so(tmp_path: Path) -> None:
    uri = write(tmp_path / "a[1].jsonl", LINE)
    assert names(listed(uri)) == ["a[1].jsonl"]


def test_the_version_changes_with_the_content(tmp_path: Path, memory_root: str) -> None:
    for uri in (str(tmp_path / "a.jsonl"), f"{memory_root}/a.jsonl"):
        write(uri, LINE)
        before, again = listed(uri).files[0], listed(uri).files[0]
        assert before == again
        write(uri, LINE.replace(b"a", b"b"))
        if uri.startswith("/"):
            os.utime(uri, ns=(1, 1))
        assert listed(uri).files[0].version != before.version


@pytest.mark.parametrize(
    ("uri", "message"),
    [
        ("/nowhere/at/all", "expected a file or folder at /nowhere/at/all, found nothing there"),
        ("memory://nowhere", "expected a file or folder at memory://nowhere"),
        ("/nowhere/*.csv", "expected files that match"),
        ("foo://bar/x", "Protocol not known"),
    ],
)
def test_a_catalog_that_is_not_there_is_an_error(uri: str, message: str) -> None:
    with pytest.raises(CatalogError, match=message.replace("*", r"\*")):
        listed(uri)


@pytest.mark.parametrize(("scheme", "extra"), [("s3", "s3"), ("gs", "gcs"), ("https", "http")])
def test_a_store_without_its_extra_says_what_to_type(scheme: str, extra: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(*args: Any, **options: Any) -> Any:
        raise ImportError("Install the library")

    monkeypatch.setattr("pipelines.catalog.stores.url_to_fs", missing)
    with pytest.raises(CatalogError, match=rf"pip install -e '\.\[{extra}\]' \(Install the library\)"):
        listed(f"{scheme}://bucket/a.csv")


def test_a_folder_with_nothing_to_read_is_an_error_that_says_why(tmp_path: Path) -> None:
    with pytest.raises(CatalogError, match="the folder is empty"):
        listed(tmp_path)
    write(tmp_path / "_SUCCESS", b"")
    with pytest.raises(CatalogError, match="_SUCCESS: hidden"):
        listed(tmp_path)


@pytest.mark.parametrize(
    ("inner", "format"), [("_delta_log/00000000000000000000.json", "delta"), ("metadata/v1.metadata.json", "iceberg")]
)
def test_a_table_folder_is_not_read_as_if_its_files_were_the_catalog(inner: str, format: str, tmp_path: Path) -> None:
    write(tmp_path / "data.parquet", encode([{"product_id": "1", "title": "a"}], "parquet"))
    write(tmp_path / inner, b"{}")
    with pytest.raises(CatalogError, match=rf"set catalog\.format: {format} .*pip install -e '\.\[{format}\]'"):
        listed(tmp_path)


ROWS = pa.table(
    {
        "product_id": ["1", "2", "3", "4"],
        "title": ["a", "b", "c", "d"],
        "kind": ["red shoe", "red shoe", "cup", None],
        "day": [1, 1, 2, 2],
    }
)


def rows_of(uri: str, format: Any, spool: Path) -> list[tuple[str, str | None, Any]]:
    config = CatalogConfig(uri=uri, format=format, filter_fields=("kind", "day"))
    assert {"product_id", "title", "kind", "day"} <= set(catalog_schema(config).columns)
    batches = read_plan(plan_catalog(config, spool_uri=str(spool)), config)
    assert all(batch.columns.schema.types == [pa.string(), pa.int64()] for batch in batches)
    return sorted(
        (*pair, tuple(carried.values()))
        for batch in batches
        for pair, carried in zip(pairs(batch), batch.columns.to_pylist(), strict=True)
    )


EXPECTED = [("1", "a", ("red shoe", 1)), ("3", "c", ("cup", 2)), ("4", "d", (None, 2)), ("5", "e", ("cup", 3))]
MORE = pa.table({"product_id": ["5"], "title": ["e"], "kind": ["cup"], "day": [3]})


@pytest.mark.parametrize("format", ["delta", "iceberg"])
def test_a_table_needs_one_address(format: Any) -> None:
    with pytest.raises(CatalogError, match=r"expected one table"):
        catalog_schema(CatalogConfig(uri=("a", "b"), format=format))


@pytest.mark.parametrize("partition_by", [[], ["kind", "day"]])
def test_the_newest_version_of_a_delta_table(partition_by: list[str], tmp_path: Path) -> None:
    deltalake = pytest.importorskip("deltalake")
    uri = str(tmp_path / "table")
    deltalake.write_deltalake(uri, ROWS, partition_by=partition_by)
    deltalake.write_deltalake(uri, MORE, mode="append")
    deltalake.DeltaTable(uri).delete("product_id = '2'")
    assert rows_of(uri, "delta", tmp_path / "spool") == EXPECTED


def test_a_delta_table_that_is_none_or_empty_is_an_error(tmp_path: Path) -> None:
    deltalake = pytest.importorskip("deltalake")
    with pytest.raises(CatalogError, match="expected a Delta Lake table"):
        catalog_schema(CatalogConfig(uri=str(tmp_path / "none"), format="delta"))
    deltalake.write_deltalake(str(tmp_path / "empty"), ROWS)
    deltalake.DeltaTable(str(tmp_path / "empty")).delete()
    with pytest.raises(CatalogError, match="empty Delta Lake table"):
        catalog_schema(CatalogConfig(uri=str(tmp_path / "empty"), format="delta"))


def inline_deletion_vector(row: int) -> dict[str, Any]:
    """A deletion vector of one row as the Delta protocol writes it: a roaring bitmap in Z85."""
    bitmap = struct.pack("<IIHHIH", 12346, 1, 0, 0, 16, row)
    data = struct.pack("<IQI", 1681511377, 1, 0) + bitmap
    ascii85 = b"0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz!#$%&()*+-;<=>?@^_`{|}~"
    z85 = b"0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ.-:+=^!/*?&<>()[]{}@%$#"
    text = base64.b85encode(data + b"\0" * (-len(data) % 4)).translate(bytes.maketrans(ascii85, z85)).decode()
    return {"storageType": "i", "pathOrInlineDv": text, "sizeInBytes": len(data), "cardinality": 1}


def rewrite_log(table: Path, **changes: dict[str, Any]) -> None:
    """Changes the actions of a table's first version."""
    log = table / "_delta_log" / f"{0:020d}.json"
    actions = [json.loads(line) for line in log.read_text().splitlines()]
    for action in actions:
        for kind, change in changes.items():
            if kind in action:
                action[kind] |= change
    log.write_text("\n".join(map(json.dumps, actions)) + "\n")


def protocol(*features: str) -> dict[str, Any]:
    return {
        "minReaderVersion": 3,
        "minWriterVersion": 7,
        "readerFeatures": list(features),
        "writerFeatures": list(features),
    }


def test_a_delta_table_with_deleted_rows_is_refused_only_if_it_has_some(tmp_path: Path) -> None:
    deltalake = pytest.importorskip("deltalake")
    table = tmp_path / "table"
    deltalake.write_deltalake(str(table), ROWS)
    rewrite_log(table, protocol=protocol("deletionVectors"))
    assert len(rows_of(str(table), "delta", tmp_path / "spool")) == 4
    rewrite_log(table, add={"deletionVector": inline_deletion_vector(2)})
    with pytest.raises(CatalogError, match="has deletion vectors, which are not read"):
        catalog_schema(CatalogConfig(uri=str(table), format="delta"))


def test_a_delta_table_with_column_mapping_is_refused(tmp_path: Path) -> None:
    deltalake = pytest.importorskip("deltalake")
    table = tmp_path / "table"
    deltalake.write_deltalake(str(table), ROWS)
    rewrite_log(table, metaData={"configuration": {"delta.columnMapping.mode": "name"}})
    with pytest.raises(CatalogError, match="column mapping"):
        catalog_schema(CatalogConfig(uri=str(table), format="delta"))


@pytest.fixture
def iceberg(tmp_path: Path) -> Any:
    """A catalog of Iceberg tables in a folder."""
    sql = pytest.importorskip("pyiceberg.catalog.sql")
    pytest.importorskip("sqlalchemy")
    catalog = sql.SqlCatalog("test", uri=f"sqlite:///{tmp_path}/catalog.db", warehouse=f"file://{tmp_path}")
    catalog.create_namespace("shop")
    return catalog


def test_the_current_snapshot_of_an_iceberg_table(iceberg: Any, tmp_path: Path) -> None:
    table = iceberg.create_table("shop.products", schema=ROWS.schema)
    table.append(ROWS)
    table.append(MORE)
    table.delete("product_id = '2'")
    folder = table.location().removeprefix("file://")
    assert rows_of(folder, "iceberg", tmp_path / "spool") == EXPECTED
    assert rows_of(table.metadata_location, "iceberg", tmp_path / "spool") == EXPECTED


def test_an_iceberg_table_that_plain_files_do_not_tell_is_refused(iceberg: Any, tmp_path: Path) -> None:
    table = iceberg.create_table("shop.products", schema=ROWS.schema)
    config = CatalogConfig(uri=table.location(), format="iceberg")
    with pytest.raises(CatalogError, match="empty Iceberg table"):
        catalog_schema(config)
    table.append(ROWS)
    with table.update_schema() as update:
        update.rename_column("title", "name")
    with pytest.raises(CatalogError, match=r"'name' was renamed"):
        catalog_schema(config)
    with pytest.raises(CatalogError, match="found no metadata/"):
        catalog_schema(CatalogConfig(uri=str(tmp_path / "shop"), format="iceberg"))

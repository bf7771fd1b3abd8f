from __future__ import annotations

import json

import pytest

from index_builder.errors import ManifestError
from index_builder.manifest import (
    CatalogSummary,
    CodecSummary,
    EncoderSummary,
    FileEntry,
    IndexSummary,
    Manifest,
    RecallSummary,
    SearchSettings,
    index_file_name,
    refine_file_name,
)
from index_builder.spec import IndexSpec
from index_builder.tuning import SearchMeasurement


def example() -> Manifest:
    spec = IndexSpec.parse("PCAR64,IVF64,PQ32x8", 128)
    return Manifest(
        catalog=CatalogSummary(
            uri="demo", rows_in=10, products=8, rejected=2, degraded=1, by_reason={"rejected: empty_product": 2}
        ),
        encoder=EncoderSummary(model="3tmm", fingerprint="ab", dim=128),
        codec=CodecSummary(fingerprint="cd", training_rows=7),
        index=IndexSummary(
            spec=spec,
            factory=spec.factory,
            serving_shards=2,
            search=SearchSettings(nprobe=4, refine_factor=2),
            refine="sq8",
        ),
        recall=RecallSummary(
            k=10, value=0.9, queries=3, table=(SearchMeasurement(nprobe=4, recall=0.9, latency_ms=0.2),)
        ),
        embedding_shards=("a.parquet", "b.parquet"),
        gates={"failed": []},
        software={"faiss": "1"},
        version="20261121T000000Z-0123456789ab",
        created_utc="2026-11-21T00:00:00Z",
        content_fingerprint="0" * 64,
        files=(
            FileEntry(path="index-00000-of-00002.faiss", bytes=3, sha256="a" * 64),
            FileEntry(path="index-00001-of-00002.faiss", bytes=4, sha256="b" * 64),
            FileEntry(path="products.arrow", bytes=5, sha256="c" * 64),
            FileEntry(path="refine-00000-of-00001.faiss", bytes=6, sha256="d" * 64),
        ),
    )


def test_json_there_and_back() -> None:
    manifest = example()
    text = manifest.to_json()
    assert Manifest.from_json(text) == manifest
    assert Manifest.from_json(text.encode()).to_json() == text
    values = json.loads(text)
    assert list(values) == sorted(values)
    assert values["index"]["search"] == {"nprobe": 4, "refine_factor": 2}
    assert values["index"]["refine"] == "sq8"
    row = {"latency_ms": 0.2, "nprobe": 4, "recall": 0.9, "recalls": {}, "refine_factor": 0}
    assert values["recall"]["table"] == [row]


def test_the_documented_keys() -> None:
    """README.md lists these; one that goes or is renamed breaks the readers of others."""
    assert set(json.loads(example().to_json())) == {
        "schema_version",
        "version",
        "created_utc",
        "content_fingerprint",
        "catalog",
        "encoder",
        "codec",
        "index",
        "recall",
        "loaded_bytes",
        "resident_bytes",
        "embedding_shards",
        "gates",
        "files",
        "software",
    }


def test_fields_that_came_later_are_ignored_and_missing_ones_default() -> None:
    values = json.loads(example().to_json())
    values["weather"] = "rain"
    values["catalog"]["colour"] = "red"
    for key in ("gates", "software", "loaded_bytes", "resident_bytes"):
        del values[key]
    del values["index"]["refine"], values["index"]["search"]["refine_factor"]
    del values["codec"]["training_rows"]
    manifest = Manifest.from_json(json.dumps(values))
    assert manifest.gates == {}
    assert manifest.codec.fingerprint == "cd"
    assert (manifest.index.refine, manifest.index.search.refine_factor) == ("none", 0)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"schema_version": 5}, "expected schema version 4 or older, found 5; update Shelfmark"),
        ({"schema_version": None}, "expected a manifest with a schema_version"),
        ({"catalog": {"uri": "demo"}}, r"catalog\.rows_in"),
        ({"index": "flat"}, "index"),
    ],
)
def test_what_cannot_be_read_is_told(change: dict[str, object], message: str) -> None:
    values = json.loads(example().to_json()) | change
    with pytest.raises(ManifestError, match=message) as caught:
        Manifest.from_json(json.dumps(values), where="s3://x/manifest.json")
    assert str(caught.value).startswith("s3://x/manifest.json: ")


@pytest.mark.parametrize("text", ["", "{", "[]", "3"])
def test_other_text(text: str) -> None:
    with pytest.raises(ManifestError, match="expected"):
        Manifest.from_json(text)


def test_index_files_in_row_order() -> None:
    assert [entry.bytes for entry in example().index_files()] == [3, 4]
    assert index_file_name(1, 2) == "index-00001-of-00002.faiss"
    assert [entry.bytes for entry in example().refine_files()] == [6]
    assert refine_file_name(1, 2) == "refine-00001-of-00002.faiss"


@pytest.mark.parametrize(
    "path",
    [
        *(
            "../CURRENT",
            "/etc/passwd",
            "a/../../b",
            "./a",
            "a//b",
            "a/",
            "",
            ".",
            "..",
            "a\\..\\..\\b",
            "C:\\a",
            "a\0b",
        ),
        *("s3://bucket/a", "file:///etc/passwd", "simplecache::a", "a\nb"),
    ],
)
def test_a_path_that_climbs_is_no_path_of_a_version(path: str) -> None:
    values = json.loads(example().to_json())
    values["files"][0]["path"] = path
    with pytest.raises(ManifestError, match=r"m\.json: files\.path: expected a plain relative path below the version"):
        Manifest.from_json(json.dumps(values), where="m.json")


def test_a_file_named_twice_is_refused() -> None:
    values = json.loads(example().to_json())
    values["files"].append(values["files"][0])
    with pytest.raises(ManifestError, match="expected each file once"):
        Manifest.from_json(json.dumps(values))


def test_lists_without_end_are_no_manifest() -> None:
    with pytest.raises(ManifestError, match="expected JSON"):
        Manifest.from_json("[" * 100_000)

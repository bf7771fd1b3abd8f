"""`pipelines.build_index`: vectors of every kind become a published index; dirty ones become dead letters."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from encoders import load_query_encoder
from index_builder import IndexReader, publish
from pipelines import build_index, search, versions
from pipelines.catalog.dead_letters import read_dead_letters
from pipelines.config.command_line import load_index_job_config, run_command
from pipelines.indexing import job
from pipelines.indexing.import_vectors import VectorSource
from pipelines.indexing.publish_step import RunResult
from pipelines.indexing.run_record import RunRecord
from tests.encoders.tiny import save_tiny_encoder
from tests.pipelines.indexing.job import index_files, product, run_job, write_catalog

DIM = 16
ROWS = 1500
SETTINGS = ["--index.factory", "IVF8,SQ8", "--index.verify_queries", "50", "--index.rows_per_add", "400"]


def made_vectors(rows: int = ROWS, dim: int = DIM, seed: int = 0) -> np.ndarray:
    """float32 [rows, dim] of lengths other than 1, in clusters."""
    random = np.random.default_rng(seed)
    centres = random.normal(size=(20, dim))
    return (3 * (centres[random.integers(0, 20, rows)] + 0.3 * random.normal(size=(rows, dim)))).astype(np.float32)


HALVES = made_vectors().astype(np.float16).astype(np.float32)
"""What every kind of column can hold."""


def fixed_lists(vectors: np.ndarray) -> pa.Array:
    return pa.FixedSizeListArray.from_arrays(pa.array(vectors.reshape(-1)), vectors.shape[1])


def build(folder: Path, *overrides: str) -> tuple[RunResult, RunRecord]:
    arguments = ["--work.uri", str(folder / "work"), "--index.uri", str(folder / "index"), *SETTINGS, *overrides]
    command = load_index_job_config(arguments)
    return job.run_job(VectorSource(command.config), command.pipeline_options)


def command_line(folder: Path, *overrides: str) -> int:
    arguments = ["--work.uri", str(folder / "work"), "--index.uri", str(folder / "index"), *SETTINGS, *overrides]
    return run_command(build_index.main, arguments)


def write_parquet(path: Path, vectors: pa.Array, ids: list | pa.Array, **columns) -> None:
    path.parent.mkdir(exist_ok=True, parents=True)
    table = pa.table({"product_id": ids, "vector": vectors, **columns})
    pq.write_table(table, path, row_group_size=200)


def finds_itself(folder: Path, vectors: np.ndarray, ids: list[str]) -> float:
    """Share of vectors whose nearest product is their own."""
    unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    found = IndexReader.open(str(folder / "index")).search(unit, 3, nprobe=8).product_ids
    return float(np.mean([own in products for own, products in zip(ids, found, strict=True)]))


@pytest.fixture(scope="module")
def reference(tmp_path_factory) -> dict[str, str]:
    """The index files of `HALVES` as fixed lists of float32."""
    folder = tmp_path_factory.mktemp("reference")
    ids = [f"item-{number}" for number in range(ROWS)]
    write_parquet(folder / "vectors" / "a.parquet", fixed_lists(HALVES[:900]), ids[:900])
    write_parquet(folder / "vectors" / "b.parquet", fixed_lists(HALVES[900:]), ids[900:])
    overrides = ("--embeddings.uri", str(folder / "vectors"), "--embeddings.shard_rows", "400")
    return index_files(build(folder, *overrides)[0])


def as_plain_lists(vectors: np.ndarray) -> pa.Array:
    return pa.array(vectors.tolist(), pa.list_(pa.float32()))


@pytest.mark.parametrize(
    "make",
    [
        as_plain_lists,
        lambda vectors: pa.array(vectors.astype(np.float64).tolist(), pa.large_list(pa.float64())),
        lambda vectors: fixed_lists(vectors.astype(np.float16)),
    ],
    ids=["plain lists", "large lists of float64", "fixed lists of float16"],
)
def test_every_kind_of_parquet_column_gives_the_same_index(tmp_path, make, reference):
    vectors, ids = HALVES, [f"item-{number}" for number in range(ROWS)]
    write_parquet(tmp_path / "vectors" / "a.parquet", make(vectors[:900]), ids[:900])
    write_parquet(tmp_path / "vectors" / "b.parquet", make(vectors[900:]), ids[900:])
    outcome, _ = build(tmp_path, "--embeddings.uri", str(tmp_path / "vectors"), "--embeddings.shard_rows", "400")
    assert (outcome.status, outcome.totals.rows_in, outcome.totals.products) == ("published", ROWS, ROWS)
    assert (outcome.totals.embedded, outcome.totals.shards) == (0, 5)
    assert IndexReader.open(str(tmp_path / "index")).products["product_id"].to_pylist() == ids
    assert finds_itself(tmp_path, vectors, ids) > 0.95
    assert index_files(outcome) == reference


def test_vectors_to_rerank_from_are_published_beside_the_index(tmp_path, capsys, measured_memory):
    vectors, ids = made_vectors(), [f"item-{number}" for number in range(ROWS)]
    write_parquet(tmp_path / "v.parquet", fixed_lists(vectors), ids)
    settings = ["--embeddings.uri", str(tmp_path / "v.parquet"), "--embeddings.shard_rows", "300"]
    settings += ["--index.factory", "IVF8,PQ8x6", "--index.serving_shards", "2", "--index.target_recall", "0.97"]
    plain, _ = build(tmp_path / "plain", *settings)
    outcome, record = build(tmp_path, *settings, "--index.refine", "fp16")
    assert outcome.recall > plain.recall
    assert outcome.recall > 0.97
    manifest = publish.read_manifest(str(tmp_path / "index"))
    assert (manifest.index.refine, len(manifest.refine_files())) == ("fp16", 2)
    assert manifest.index.search.refine_factor > 0
    assert {row.refine_factor for row in manifest.recall.table} > {0}
    assert manifest.resident_bytes > 1_000_000
    assert outcome.index_bytes > plain.index_bytes + 2 * DIM * ROWS
    assert sorted(record.reports("refine")) == ["00000", "00001"]
    assert finds_itself(tmp_path, vectors, ids) > 0.94
    again, _ = build(tmp_path, *settings, "--index.refine", "fp16")
    assert (again.status, again.version) == ("unchanged", outcome.version)

    assert versions.main(["show", "--index", str(tmp_path / "index"), "--verify"]) == 0
    shown = capsys.readouterr().out
    assert f"fp16, {manifest.index.search.refine_factor} candidates re-ranked for each neighbour" in shown
    assert "in a fresh process that answered the held-out queries" in shown


@pytest.mark.parametrize("kind", ["txt", "npy", "numbers"])
@pytest.mark.parametrize("dtype", [np.float16, np.float32])
def test_numpy_files_with_their_ids_beside_them(tmp_path, kind, dtype):
    vectors, folder = made_vectors(), tmp_path / "vectors"
    folder.mkdir()
    ids = [str(number) if kind == "numbers" else f"é{number}" for number in range(ROWS)]
    for name, rows in (("part-0", slice(0, 700)), ("part-1", slice(700, ROWS))):
        np.save(folder / f"{name}.npy", vectors[rows].astype(dtype))
        if kind == "txt":
            (folder / f"{name}.ids.txt").write_text("\n".join(ids[rows]) + "\n")
        elif kind == "npy":
            np.save(folder / f"{name}.ids.npy", np.array(ids[rows]))
    overrides = ["--embeddings.id_field", "null"] if kind == "numbers" else []
    outcome, _ = build(tmp_path, "--embeddings.uri", str(folder), "--embeddings.shard_rows", "300", *overrides)
    assert outcome.totals.products == ROWS
    assert finds_itself(tmp_path, vectors, ids) > 0.95


def test_dirty_vectors_become_letters(tmp_path):
    vectors = made_vectors().tolist()
    ids: list[str | None] = [f"item-{number}" for number in range(ROWS)]
    dirt = {
        3: (None, "vector_unusable", "no vector"),
        5: ([1.0] * (DIM - 1), "vector_unusable", f"{DIM - 1} values, expected {DIM}"),
        7: ([float("nan")] * DIM, "vector_unusable", "not finite"),
        9: ([float("inf"), *[1.0] * (DIM - 1)], "vector_unusable", "not finite"),
        11: ([0.0] * DIM, "vector_unusable", "is zero"),
        13: ([*[1.0] * (DIM - 1), None], "vector_unusable", "not finite"),
    }
    for row, (value, _, _) in dirt.items():
        vectors[row] = value
    ids[20], ids[21], ids[22] = None, " ", "item-0"
    write_parquet(tmp_path / "v.parquet", pa.array(vectors, pa.list_(pa.float32())), ids)
    outcome, _ = build(tmp_path, "--embeddings.uri", str(tmp_path / "v.parquet"))
    letters = {letter.product_id: letter for letter in read_dead_letters(f"{outcome.uri}/rejected.parquet")}
    for row, (_, reason, why) in dirt.items():
        letter = letters[f"item-{row}"]
        assert (letter.outcome, letter.stage, letter.reason.value) == ("rejected", "import", reason)
        assert letter.place[1:] == ("row", row)
        assert letter.place.file.endswith("v.parquet")
        assert why in letter.detail
    assert outcome.totals.by_reason == {
        "rejected: duplicate_id": 1,
        "rejected: missing_id": 2,
        "rejected: vector_unusable": 6,
    }
    assert outcome.totals.products == ROWS - 9
    assert outcome.totals.rows_in == ROWS


def test_vectors_as_they_are_are_found_by_inner_product(tmp_path):
    vectors = made_vectors()
    write_parquet(tmp_path / "v.parquet", fixed_lists(vectors), list(range(ROWS)))
    build(
        tmp_path,
        *("--embeddings.uri", str(tmp_path / "v.parquet"), "--embeddings.normalize", "false"),
        *("--index.factory", "Flat"),
    )
    reader = IndexReader.open(str(tmp_path / "index"))
    found = reader.search(vectors[:5], 1)
    exact = vectors[:5] @ vectors.astype(np.float16).astype(np.float32).T
    assert found.product_ids == [[str(row)] for row in exact.argmax(axis=1)]
    assert found.scores[:, 0] == pytest.approx(exact.max(axis=1), rel=1e-3)
    assert reader.query_encoder_uri is None


@pytest.mark.parametrize("factor", [1e-5, 1e-7, 1e5])
def test_lengths_that_float16_cannot_keep_are_refused_before_any_work(tmp_path, capsys, factor):
    """Its index would find other products than the vectors say, and measure a recall of 1 against what it kept."""
    vectors = made_vectors() / 8
    write_parquet(tmp_path / "v.parquet", fixed_lists(vectors * np.float32(factor)), list(range(ROWS)))
    options = ["--embeddings.uri", str(tmp_path / "v.parquet"), "--embeddings.normalize", "false"]
    options += ["--index.factory", "Flat"]
    assert command_line(tmp_path, *options) == 2
    said = capsys.readouterr().err
    assert re.search(r"embeddings\.normalize is false.*multiply all vectors by one number, such as \S+, which", said)
    assert not list(tmp_path.glob("work/embeddings/**/*.parquet"))
    times = np.float32(re.search(r"such as (\S+),", said)[1])
    scaled = vectors * np.float32(factor) * times
    write_parquet(tmp_path / "v.parquet", fixed_lists(scaled), list(range(ROWS)))
    assert command_line(tmp_path, *options) == 0
    found = IndexReader.open(str(tmp_path / "index")).search(scaled[:50], 10).product_ids
    exact = np.argsort(-(scaled[:50].astype(np.float64) @ scaled.T.astype(np.float64)), axis=1)[:, :10].astype(str)
    assert np.mean([len({*one} & {*two}) / 10 for one, two in zip(found, exact, strict=True)]) >= 0.99


def test_a_few_vectors_too_small_or_large_are_letters(tmp_path):
    vectors = made_vectors()
    vectors[[3, 5]] *= np.float32(1e-8)
    vectors[7, 0] = 1e5
    write_parquet(tmp_path / "v.parquet", fixed_lists(vectors), list(range(ROWS)))
    settings = ("--embeddings.uri", str(tmp_path / "v.parquet"), "--index.factory", "Flat")
    outcome, _ = build(tmp_path, *settings, "--embeddings.normalize", "false")
    letters = {letter.product_id: letter for letter in read_dead_letters(f"{outcome.uri}/rejected.parquet")}
    assert sorted(letters) == ["3", "5", "7"]
    assert (letters["3"].place.number, letters["7"].place.number) == (3, 7)
    assert letters["3"].detail.startswith("the vector is too small for float16; multiply all vectors by one number")
    assert letters["7"].detail.startswith("the vector holds values beyond the 65,504 of float16")
    normalised, _ = build(tmp_path / "unit", *settings)
    assert (normalised.totals.rejected, normalised.totals.products) == (0, ROWS)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_directions_of_any_length_are_taken(tmp_path, dtype):
    """Lengths are taken in float64: the squares of 3e38 are too large for float32, those of 1e-40 too small."""
    vectors = (made_vectors() / 8).astype(dtype)
    sizes = np.array([1, 1e38, 1e-38, 1e300, 1e-300][: 3 if dtype is np.float32 else 5], dtype)
    vectors *= sizes[np.arange(ROWS) % len(sizes), None]
    assert np.isfinite(vectors).all()
    write_parquet(tmp_path / "v.parquet", fixed_lists(vectors), list(range(ROWS)))
    outcome, _ = build(tmp_path, "--embeddings.uri", str(tmp_path / "v.parquet"), "--index.factory", "Flat")
    assert (outcome.totals.rejected, outcome.totals.products) == (0, ROWS)
    unit = vectors.astype(np.float64) / np.abs(vectors).max(axis=1, keepdims=True)
    assert finds_itself(tmp_path, unit, [str(row) for row in range(ROWS)]) == 1


def test_a_folder_of_clip_retrieval_is_taken_whole(tmp_path, capsys):
    rows = 30
    for name, seed in (("img_emb", 0), ("text_emb", 1)):
        (tmp_path / "clip" / name).mkdir(parents=True)
        for number in range(12):
            part = made_vectors(rows, seed=100 * seed + number).astype(np.float16)
            np.save(tmp_path / "clip" / name / f"{name}_{number}.npy", part)
    (tmp_path / "clip" / "metadata").mkdir()
    for number in range(12):
        paths = [f"{number:02d}/{row}.jpg" for row in range(rows)]
        table = pa.table({"image_path": paths, "caption": [f"{number} {row}" for row in range(rows)]})
        pq.write_table(table, tmp_path / "clip" / "metadata" / f"metadata_{number}.parquet")
    settings = ("--embeddings.uri", str(tmp_path / "clip"), "--index.factory", "Flat")
    for folder, seed in ((), 0), (("--embeddings.emb_folder", "text_emb"), 1):
        here = tmp_path / str(seed)
        outcome, _ = build(here, *settings, *folder, "--embeddings.display_fields", "[caption]")
        assert outcome.totals.products == 12 * rows
        reader = IndexReader.open(str(here / "index"))
        expected = [f"{number:02d}/{row}.jpg" for number in range(12) for row in range(rows)]
        assert reader.products["product_id"].to_pylist() == expected  # 10 after 9
        assert reader.products["caption"].to_pylist()[9 * rows : 11 * rows : rows] == ["9 0", "10 0"]
        for number in (0, 2, 10):
            vectors = made_vectors(rows, seed=100 * seed + number)
            vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
            assert reader.search(vectors, 1).product_ids == [[f"{number:02d}/{row}.jpg"] for row in range(rows)]
    pq.write_table(table.slice(1), tmp_path / "clip" / "metadata" / "metadata_10.parquet")
    assert command_line(tmp_path, *settings) == 2
    assert "metadata_10.parquet: expected a row for each of the 30 vectors of" in capsys.readouterr().err


def test_display_columns_are_carried(tmp_path):
    price = pa.array(np.arange(ROWS, dtype=np.float64))
    write_parquet(tmp_path / "v.parquet", fixed_lists(made_vectors()), list(range(ROWS)), price=price)
    build(tmp_path, "--embeddings.uri", str(tmp_path / "v.parquet"), "--embeddings.display_fields", "[price]")
    products = IndexReader.open(str(tmp_path / "index")).products
    assert products.schema.field("price").type == pa.float64()
    assert products["price"].to_pylist()[:3] == [0.0, 1.0, 2.0]


def test_a_rerun_skips_what_stands_and_a_changed_file_is_read_again(tmp_path):
    folder, vectors = tmp_path / "vectors", made_vectors()
    for part in range(3):
        rows = slice(part * 500, part * 500 + 500)
        write_parquet(folder / f"{part}.parquet", fixed_lists(vectors[rows]), list(range(ROWS))[rows])
    first, _ = build(tmp_path, "--embeddings.uri", str(folder))
    again, record = build(tmp_path, "--embeddings.uri", str(folder))
    assert again.status == "unchanged"
    assert all(report["skipped"] for report in record.reports("import").values())
    write_parquet(folder / "1.parquet", fixed_lists(made_vectors(500, seed=9)), list(range(500, 1000)))
    changed, record = build(tmp_path, "--embeddings.uri", str(folder))
    assert changed.status == "published"
    assert changed.previous_version == first.version
    assert [report["skipped"] for report in record.reports("import").values()] == [True, False, True]


def test_another_index_of_the_last_runs_products(tmp_path, capsys):
    """Without `embeddings.uri` nothing is embedded again, and the query encoder comes along."""
    write_catalog(tmp_path / "catalog", [product(number) for number in range(300)])
    nightly, _ = run_job(tmp_path)
    outcome, record = build(tmp_path, "--index.uri", str(tmp_path / "other"), "--index.factory", "Flat")
    assert (outcome.status, outcome.factory, outcome.totals.products) == ("published", "Flat", 300)
    assert (outcome.totals.embedded, outcome.totals.carried_over) == (0, 300)
    assert record.reports("embed") == {}
    assert [report["skipped"] for report in record.reports("import").values()] == [True] * 6
    old, new = (publish.read_manifest(str(tmp_path / name)) for name in ("index", "other"))
    assert new.encoder == old.encoder
    assert new.catalog.uri == old.catalog.uri
    assert (Path(outcome.uri) / "products.arrow").read_bytes() == (Path(nightly.uri) / "products.arrow").read_bytes()
    assert run_command(search.main, ["--index", str(tmp_path / "other"), "red chair"]) == 0
    assert "p00" in capsys.readouterr().out
    earlier, record = run_job(tmp_path)
    assert earlier.status == "unchanged"
    assert all(report["skipped"] for report in record.reports("embed").values())


def test_an_encoder_comes_with_vectors_that_it_made(tmp_path, capsys):
    saved = save_tiny_encoder(tmp_path / "encoder", model="bibert")
    encoder = load_query_encoder(saved.uri)
    texts = ["red dress", "blue mug", "green chair"] * 50
    write_parquet(tmp_path / "v.parquet", fixed_lists(encoder.encode(texts=texts)), list(range(150)))
    overrides = ["--embeddings.uri", str(tmp_path / "v.parquet"), "--embeddings.encoder", saved.uri]
    build(tmp_path, *overrides)
    assert run_command(search.main, ["--index", str(tmp_path / "index"), "-k", "3", "blue mug"]) == 0
    assert " 1 " in capsys.readouterr().out
    write_parquet(tmp_path / "v.parquet", fixed_lists(made_vectors(dim=encoder.dim + 8)), list(range(ROWS)))
    assert command_line(tmp_path, *overrides) == 2
    assert f"makes vectors of {encoder.dim} dimensions" in capsys.readouterr().err


def test_the_command_prints_its_summary(tmp_path, capsys):
    write_parquet(tmp_path / "v.parquet", fixed_lists(made_vectors()), list(range(ROWS)))
    assert command_line(tmp_path, "--embeddings.uri", str(tmp_path / "v.parquet")) == 0
    printed = capsys.readouterr().out
    assert "(published)" in printed
    assert "import" in printed


@pytest.fixture(scope="module")
def bad_files(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("bad")
    good = made_vectors(50)
    write_parquet(folder / "other_dim" / "a.parquet", fixed_lists(good), list(range(50)))
    write_parquet(folder / "other_dim" / "b.parquet", fixed_lists(made_vectors(50, dim=8)), list(range(50)))
    write_parquet(folder / "words" / "a.parquet", pa.array(["x"] * 50), list(range(50)))
    write_parquet(folder / "good" / "a.parquet", fixed_lists(good), list(range(50)))
    write_parquet(folder / "no_rows" / "a.parquet", fixed_lists(good[:0]), pa.array([], pa.string()))
    for name in ("no_ids", "few_ids", "flat", "integers", "cut", "pickle", "no_array", "empty"):
        (folder / name).mkdir()
    np.save(folder / "no_ids" / "a.npy", good)
    np.save(folder / "few_ids" / "a.npy", good)
    (folder / "few_ids" / "a.ids.txt").write_text("one\ntwo\n")
    np.save(folder / "flat" / "a.npy", good.reshape(-1))
    np.save(folder / "integers" / "a.npy", good.astype(np.int32))
    np.save(folder / "cut" / "a.npy", good)
    (folder / "cut" / "a.npy").write_bytes((folder / "cut" / "a.npy").read_bytes()[:-100])
    np.save(folder / "pickle" / "a.npy", np.array([{"a": 1}], dtype=object), allow_pickle=True)
    (folder / "no_array" / "a.npy").write_bytes(b"hello")
    return folder


@pytest.mark.parametrize(
    ("name", "overrides", "message"),
    [
        ("nowhere", [], "nowhere"),
        ("empty", [], "expected .parquet or .npy files"),
        ("no_rows", [], "without a row"),
        ("other_dim", [], "one dimension, found 8 in .*b.parquet, 16 in .*a.parquet"),
        ("words", [], "embeddings.vector_field: expected lists of floats in 'vector' .* found string"),
        ("good", ["--embeddings.vector_field", "embedding"], "embeddings.vector_field: .*'embedding'.*'vector'"),
        ("good", ["--embeddings.id_field", "sku"], "embeddings.id_field: expected a column 'sku'"),
        ("good", ["--embeddings.display_fields", "[title]"], "embeddings.display_fields: expected a column 'title'"),
        ("good", ["--embeddings.shard_rows", "0"], "embeddings.shard_rows.*0"),
        ("good", ["--embeddings.uris", "x"], "embeddings.uris"),
        ("no_ids", [], r"a.ids.txt \(one a line\) or .*embeddings.id_field null"),
        ("few_ids", [], "a.ids.txt: expected an id for each of the 50 vectors of .*a.npy, found 2"),
        ("flat", ["--embeddings.id_field", "null"], r"\[n, D\] row by row, found float32 \[800\]"),
        ("integers", ["--embeddings.id_field", "null"], "found int32"),
        ("cut", ["--embeddings.id_field", "null"], "bytes as its header says"),
        ("pickle", ["--embeddings.id_field", "null"], "found object"),
        ("no_array", ["--embeddings.id_field", "null"], "expected a NumPy array"),
        (None, [], "embeddings.uri is null and no run has finished on work.uri"),
    ],
)
def test_what_cannot_work_stops_before_any_work(tmp_path, bad_files, capsys, name, overrides, message):
    uri = [] if name is None else ["--embeddings.uri", str(bad_files / name)]
    assert command_line(tmp_path, *uri, *overrides) == 2
    said = capsys.readouterr().err
    assert "Traceback" not in said
    assert said.startswith("error: ")
    assert re.search(message, said, re.DOTALL), said
    assert not (tmp_path / "work" / "embeddings").exists()
    assert not (tmp_path / "index" / "versions").exists()


def test_the_manifest_is_that_of_vectors_made_elsewhere(tmp_path):
    write_parquet(tmp_path / "v.parquet", fixed_lists(made_vectors()), list(range(ROWS)))
    outcome, _ = build(tmp_path, "--embeddings.uri", str(tmp_path / "v.parquet"))
    manifest = json.loads((Path(outcome.uri) / "manifest.json").read_text())
    assert manifest["encoder"]["model"] == ""
    assert manifest["encoder"]["dim"] == DIM
    assert manifest["catalog"]["uri"] == str(tmp_path / "v.parquet")


def test_the_plan_is_printed_and_nothing_done(tmp_path, capsys):
    write_parquet(tmp_path / "v" / "a.parquet", fixed_lists(made_vectors()), [f"p{row}" for row in range(ROWS)])
    assert command_line(tmp_path, "--embeddings.uri", str(tmp_path / "v"), "--plan") == 0
    printed = capsys.readouterr().out
    assert "1,500 of 16 dimensions" in printed
    assert "IVF8,SQ8: as index.factory asks" in printed
    assert not (tmp_path / "index").exists()
    assert not list(tmp_path.glob("work/embeddings/**/*.parquet"))


@pytest.fixture(scope="module")
def many_vectors(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("many")
    np.save(folder / "a.npy", np.ones((120_000, DIM), np.float32))
    return folder


@pytest.mark.parametrize(
    ("override", "message"),
    [
        (("--index.factory", "IVF8,PQ5"), "a divisor of 16"),
        (("--index.factory", "IVF4096,Flat", "--index.memory_budget_mb", "16"), "but training of IVF4096,Flat"),
        (
            ("--index.factory", "IVF8192,SQ8"),
            "needs 131,072 products beside those held out, and the catalog has 120,000",
        ),
        (("--index.queries_uri", "nowhere.npy"), "index.queries_uri is 'nowhere.npy'"),
        (("--index.thumbnails", "true", "--plan"), "index.thumbnails: vectors come without images"),
    ],
)
def test_an_index_that_cannot_be_built_stops_before_any_work(tmp_path, many_vectors, capsys, override, message):
    options = ["--embeddings.uri", str(many_vectors), "--embeddings.id_field", "null", *override]
    assert command_line(tmp_path, *options) == 2
    assert message in capsys.readouterr().err
    assert not list(tmp_path.glob("work/embeddings/**/*.parquet"))


def test_real_queries_measure_and_tune_the_index(tmp_path, measured_memory):
    vectors = made_vectors()
    (tmp_path / "v").mkdir()
    np.save(tmp_path / "v" / "a.npy", vectors)
    np.save(tmp_path / "q.npy", vectors[:30] / np.linalg.norm(vectors[:30], axis=1, keepdims=True))
    options = ["--embeddings.uri", str(tmp_path / "v"), "--embeddings.id_field", "null"]
    outcome, _ = build(tmp_path, *options, "--index.queries_uri", str(tmp_path / "q.npy"))
    assert outcome.recall_queries == 30
    manifest = IndexReader.open(str(tmp_path / "index")).manifest
    assert manifest.recall.queries == 30
    assert set(manifest.recall.table[0].recalls) == {"1", "10", "100"}
    assert manifest.codec.reason.startswith("trained")
    assert 0 < manifest.codec.quantization_error < 0.01
    assert manifest.codec.list_imbalance > 1
    assert manifest.index.reasons[0] == "IVF8,SQ8: as index.factory asks"
    assert manifest.resident_bytes > 1_000_000

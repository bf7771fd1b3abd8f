"""The steps of publishing, called as workers call them: file by file, twice, at the same time, stopped on the way."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from pathlib import Path

import pyarrow as pa
import pytest

from encoders import EncoderConfig
from encoders.errors import EncoderError
from index_builder import IndexReader, publish, storage
from index_builder.drift import CodecChoice, CodecFit
from index_builder.errors import StorageError
from index_builder.filter_bitmaps import ProductsFile, read_products_file
from index_builder.manifest import EncoderSummary
from index_builder.spec import IndexConfig
from pipelines.catalog.dead_letters import write_dead_letters
from pipelines.config.job import GatesConfig
from pipelines.indexing import product_table, progress, publish_step
from pipelines.indexing.build_steps import BuildPlan, FinishedBuild, RunContext
from pipelines.indexing.product_table import Numbering
from pipelines.indexing.publish_step import (
    RunResult,
    begin_publishing,
    copy_tasks,
    copy_to_version,
    publish_build,
    stage_query_encoder,
)
from pipelines.indexing.run_record import RunRecord
from pipelines.indexing.shard_files import Totals
from pipelines.indexing.work_folder import LeaseLostError, WorkLease
from tests.counting_store import counted_store, counting
from tests.encoders.tiny import save_tiny_encoder
from tests.index_builder.builds import ENCODER, Build, build_index, clustered, write_shards

ROWS, DIM = 1200, 12
KINDS = ("chair", "mug", "lamp")


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> tuple[Build, EncoderConfig]:
    root = tmp_path_factory.mktemp("built")
    config = IndexConfig(uri="x", factory="IVF8,PQ4x4", refine="sq8", serving_shards=3, verify_queries=50)
    shards = write_shards(str(root), clustered(ROWS, DIM), 400)
    return build_index(str(root), shards, config, DIM), save_tiny_encoder(root / "encoder")


@pytest.fixture
def store() -> Iterator[str]:
    with counted_store() as root:
        yield root


@pytest.fixture
def night(store: str, built: tuple[Build, EncoderConfig], tmp_path: Path) -> Iterator[tuple[RunContext, FinishedBuild]]:
    """A build whose files lie in the store, with products in three parts, and a run that is to publish it."""
    build, encoder = built
    moved = []
    for shard in (*build.merged, *build.refined):
        uri = f"{store}/work/{shard.uri.rsplit('/', 2)[-2]}/{shard.first_row}.faiss"
        storage.copy_file(shard.uri, uri)
        moved.append(dataclasses.replace(shard, uri=uri))
    with WorkLease(str(tmp_path / "lease")) as lease:
        run = RunContext(
            work_uri=f"{store}/work",
            build="b",
            record=RunRecord(uri=f"{store}/work/runs/first"),
            lease=lease,
            index=dataclasses.replace(build.config, uri=f"{store}/index"),
            gates=GatesConfig(),
            encoder=EncoderSummary(model="3tmm", fingerprint=ENCODER, dim=DIM),
            query_encoder_uri=stage_query_encoder(encoder, ENCODER, f"{store}/work"),
            catalog_uri="shop",
        )
        letters = f"{store}/work/letters.parquet"
        write_dead_letters(letters, [])
        table = pa.table(
            {
                "key": [str(shard.first_row) for shard in build.shards],
                "rows": [shard.rows for shard in build.shards],
                "products": [shard.rows for shard in build.shards],
                "duplicates": [0] * 3,
                "dropped": [[]] * 3,
            },
            product_table._SHARDS_SCHEMA,
        )
        made = storage.artifact(f"{store}/work/numbered", 1, lambda path: product_table.write_shards(table, path))
        numbering = Numbering(
            shards_uri=made.files[0], folder=f"{store}/work/embeddings", products=(), rejected_uri=letters, **made.facts
        )
        totals = Totals(
            rows_in=ROWS, products=ROWS, embedded=ROWS, carried_over=0, degraded=0, rejected=0, images_unchanged=0,
            texts_cut=0, by_reason={}, shards=3,
        )  # fmt: skip
        yield (
            run,
            FinishedBuild(
                plan=BuildPlan(numbering=numbering, spec=build.spec, refine=build.refine, totals=totals),
                choice=CodecChoice(codec=build.codec, kept=False, reason="trained"),
                fit=CodecFit(products=ROWS, quantization_error=0.1, list_imbalance=1.0),
                serving_shards=tuple(moved[:3]),
                refine_shards=tuple(moved[3:]),
                products=products(store, [0, 500, 700, ROWS]),
                table=build.measured,
                chosen=build.choice,
                queries=50,
                resident_bytes=1,
            ),
        )


def products(store: str, edges: list[int]) -> tuple[ProductsFile, ...]:
    """The files of products in ranges of rows, as their stage leaves them."""
    parts = []
    for number, (start, stop) in enumerate(pairwise(edges)):
        rows = range(start, stop)
        table = pa.table(
            {
                "product_id": [f"sku-{row}" for row in rows],
                "title": [f"title {row}" for row in rows],
                "kind": pa.array([KINDS[row % 3] if row % 7 else None for row in rows]),
            }
        )

        def make(path: str, table: pa.Table = table) -> None:
            with pa.OSFile(f"{path}.arrow", "wb") as sink, pa.ipc.new_file(sink, table.schema) as writer:
                writer.write_table(table, max_chunksize=150)

        made = storage.artifact(f"{store}/work/products-{number}-of-{len(edges)}", edges, make)
        parts.append(read_products_file(made.files[0], f"{store}/work/values/{number}-of-{len(edges)}", of_rows=ROWS))
    return tuple(parts)


def publish_all(run: RunContext, build: FinishedBuild) -> RunResult:
    begun = begin_publishing(run, build)
    tasks = copy_tasks(run, build, begun)
    return publish_build(run, build, begun, [file for task in tasks for file in copy_to_version(run, begun, task)])


def in_next_run(run: RunContext) -> RunContext:
    return dataclasses.replace(run, record=RunRecord(uri=f"{run.record.uri}-next"))


def test_a_version_is_read_once_and_written_once_and_not_at_all_where_nothing_changed(night, tmp_path, monkeypatch):
    monkeypatch.setenv("SHELFMARK_CACHE", str(tmp_path / "cache"))
    run, build = night
    with counting() as asked:
        result = publish_all(run, build)
    assert result.status == "published"
    manifest = publish.read_manifest(run.index.uri)
    size = sum(entry.bytes for entry in manifest.files)
    filters = next(entry.bytes for entry in manifest.files if entry.path == "filters.arrow")
    of_version = sum(asked.bytes_of("write", below=f"{result.version}/{entry.path}") for entry in manifest.files)
    assert of_version == size
    in_work = [build.serving_shards, build.refine_shards, build.products]
    assert [asked.by("path")[f"/{each.uri.partition('://')[2]}"] for files in in_work for each in files] == [1] * 9
    on_the_way = asked.bytes_of("read", below="/values/") + filters  # the bitmaps are looked at once they are made
    assert asked.bytes_of("read", below="/work/") <= 1.05 * size + on_the_way
    assert on_the_way < 0.15 * size
    quiet = in_next_run(run)
    with counting() as asked:
        again = publish_all(quiet, build)
    assert (again.status, again.version, again.index_bytes) == ("unchanged", result.version, result.index_bytes)
    assert asked.bytes_of("read", below=".faiss") == asked.bytes_of("read", below=".safetensors") == 0
    assert asked.of("write", below="/index/") == 0
    assert asked.of(below="/index/") <= 4


def test_products_in_parts_are_one_table(night, tmp_path, monkeypatch):
    monkeypatch.setenv("SHELFMARK_CACHE", str(tmp_path / "cache"))
    run, build = night
    publish_all(run, build)
    reader = IndexReader.open(run.index.uri, verify="full")
    assert reader.manifest.schema_version == 4
    names = [entry.path for entry in reader.manifest.products_files()]
    assert names == [f"products-0000{number}-of-00003.arrow" for number in range(3)]
    assert reader.products["product_id"].to_pylist() == [f"sku-{row}" for row in range(ROWS)]
    query = clustered(ROWS, DIM)[699:701]
    result = reader.search(query, 400, filter="kind = 'mug' and title != 'title 1'", nprobe=8)
    passing = [row for row in range(2, ROWS) if row % 3 == 1 and row % 7]
    assert [sorted(rows[rows >= 0].tolist()) for rows in result.rows] == [passing] * 2
    assert result.product_ids[0] == [f"sku-{row}" for row in result.rows[0][result.rows[0] >= 0]]
    assert set(result.columns(["kind"])["kind"].to_pylist()) == {"mug"}
    assert reader.why_not("sku-1199", query[0], 3).status != "not_in_version"
    assert reader.search(query[:1], 3, group="kind").rows.shape == (1, 3)


def test_one_file_of_products_is_the_same_version_but_for_its_name(night):
    run, build = night
    parts = publish_all(run, build)
    whole = dataclasses.replace(build, products=products(run.work_uri.removesuffix("/work"), [0, ROWS]))
    one = publish_all(in_next_run(dataclasses.replace(run, build="whole")), whole)
    assert one.version != parts.version
    files = [
        {file.path: file.sha256 for file in publish.read_manifest(run.index.uri, each.version).files}
        for each in (parts, one)
    ]
    assert files[0]["filters.arrow"] == files[1]["filters.arrow"]
    assert "products.arrow" in files[1] and publish.read_manifest(run.index.uri).schema_version == 2


def test_steps_that_are_done_again_make_one_version(night):
    run, build = night
    with ThreadPoolExecutor(4) as pool:
        begun = list(pool.map(lambda _: begin_publishing(run, build), range(4)))
        assert all(each == begun[0] for each in begun)
        tasks = copy_tasks(run, build, begun[0])
        written = list(pool.map(lambda task: copy_to_version(run, begun[0], task), [*tasks, *reversed(tasks)]))
        files = [file for each in written[: len(tasks)] for file in each]
        results = list(pool.map(lambda _: publish_build(run, build, begun[0], files), range(2)))
    late = publish_all(run, build)  # the runner lost what the steps gave, and does them all again
    assert results[0] == results[1] == late
    assert late.status == "published"
    assert publish.list_versions(run.index.uri) == (late.version,)
    assert publish.damaged_files(run.index.uri, late.version) == []


@pytest.mark.parametrize("kind", ["index-00001", "refine-00002", "products-00000", "query_encoder"])
def test_nothing_is_seen_of_a_version_with_a_damaged_file(night, kind):
    run, build = night
    begun = begin_publishing(run, build)
    tasks = copy_tasks(run, build, begun)
    task = next(task for task in tasks if task.name.startswith(kind))
    uri = max((file.uri for file in task.files.values()), key=storage.size)
    data = bytearray(storage.read_bytes(uri))
    data[len(data) // 2] ^= 1
    storage.write_bytes_atomic(uri, bytes(data))
    for each in tasks:
        if each.name != task.name:
            copy_to_version(run, begun, each)
    with pytest.raises(StorageError, match="was damaged after it was made, so nothing is published"):
        copy_to_version(run, begun, task)
    assert publish.list_versions(run.index.uri) == ()
    assert not storage.exists(f"{run.index.uri}/CURRENT")
    assert not any(task.name in name for name in storage.list_names(publish.version_uri(run.index.uri, begun.version)))


def test_a_query_encoder_that_does_not_run_never_appears(night, monkeypatch):
    run, build = night
    begun = begin_publishing(run, build)
    (task,) = [task for task in copy_tasks(run, build, begun) if task.name == "query_encoder"]

    def refuse(folder: str) -> None:
        raise EncoderError("other shapes")

    monkeypatch.setattr(publish_step.encoders, "load_query_encoder", refuse)
    with pytest.raises(EncoderError, match="other shapes"):
        copy_to_version(run, begun, task)
    assert storage.list_names(run.index.uri) == []


def test_a_version_that_a_gate_holds_is_written_and_not_published(night):
    run, build = night
    first = publish_all(run, build)
    held = in_next_run(dataclasses.replace(run, gates=GatesConfig(min_recall=1.0)))
    missed = dataclasses.replace(build, chosen=dataclasses.replace(build.chosen, recall=0.5))
    result = publish_all(held, missed)
    assert (result.status, result.previous_version) == ("held", first.version)
    assert publish.read_current(run.index.uri) == first.version
    assert publish.list_versions(run.index.uri) == (first.version, result.version)
    assert publish.read_manifest(run.index.uri, result.version).gates["failed"] == result.failed_gates


def test_a_version_that_gives_way_to_a_newer_one_is_not_called_published(night):
    run, build = night
    first = publish_all(run, build)
    chosen = [dataclasses.replace(build.chosen, nprobe=build.chosen.nprobe + more) for more in (1, 2)]
    run, build = in_next_run(run), dataclasses.replace(build, chosen=chosen[0])
    begun = begin_publishing(run, build)
    written = [file for task in copy_tasks(run, build, begun) for file in copy_to_version(run, begun, task)]
    # Another run, on another work folder, publishes the same index later and is done earlier.
    other = dataclasses.replace(run, record=RunRecord(uri=f"{run.work_uri}/runs/other"))
    newer = publish_all(other, dataclasses.replace(build, chosen=chosen[1]))
    result = publish_build(run, build, begun, written)
    assert (result.status, newer.status) == ("superseded", "published")
    assert first.version < result.version < newer.version
    assert publish.read_current(run.index.uri) == newer.version
    assert publish.read_manifest(run.index.uri, result.version).version == result.version, "it stands, to go back to"
    assert publish_build(run, build, begun, written).status == "superseded", "done again"
    lines = dict(progress.summary_lines(result, run.record, {}))
    assert lines["version"] == f"{result.version} (NOT published: another run has published a newer one meanwhile)"


def test_a_lost_lease_stops_before_the_pointer_flips(night):
    run, build = night
    begun = begin_publishing(run, build)
    tasks = copy_tasks(run, build, begun)
    written = [file for task in tasks for file in copy_to_version(run, begun, task)]
    lost = dataclasses.replace(run, lease=dataclasses.replace(run.lease, token="of another run"))
    with pytest.raises(LeaseLostError):
        publish_build(lost, build, begun, written)
    assert publish.list_versions(run.index.uri) == ()

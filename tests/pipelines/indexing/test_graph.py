"""What travels to the runner does not grow with the catalog: the graph of a billion products, built and not run."""

from __future__ import annotations

import pickle
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path

import apache_beam as beam
import pyarrow as pa
import pytest

from encoders import EncoderConfig
from index_builder.embedding_shards import NumberedShard
from index_builder.errors import StorageError
from index_builder.manifest import EncoderSummary
from index_builder.spec import IndexConfig
from pipelines.catalog.config import CatalogConfig
from pipelines.catalog.plan import CatalogShard, RowRange
from pipelines.catalog.stores import CatalogFile
from pipelines.config.job import GatesConfig
from pipelines.images.config import DecodeConfig, FetchConfig
from pipelines.indexing import product_groups, transforms
from pipelines.indexing.beam_run import BeamOptions
from pipelines.indexing.build_steps import BuildPlan, RunContext
from pipelines.indexing.catalog_source import embedding
from pipelines.indexing.precision_loss import Measuring
from pipelines.indexing.previous_lookups import PreviousLookups
from pipelines.indexing.product_groups import ShardGroups
from pipelines.indexing.run_record import RunRecord
from pipelines.indexing.shard_files import ShardFiles, ShardSummary, ShardTask, StandingRows
from pipelines.indexing.task_list import TaskList
from pipelines.indexing.transforms import ShardPlan, number_products, run_pipeline
from pipelines.indexing.work_folder import HeldLease
from tests.pipelines.indexing.test_product_groups import shards as write_shards

SHARDS = 244_000
"""Of 4,096 products: a billion."""
MOST_BYTES = 1_000_000
WORK = "s3://a-bucket-of-the-shop/nightly/work"


def planned(work: str, count: int, *, repeated: int = 1) -> ShardPlan:
    """The plan of a second night, which carries over what the version before has; its shards stand in it so often."""
    schema = pa.schema([(f"column_{number}", pa.string()) for number in range(40)])
    names = {"version": "v", "format": "parquet", "compression": None, "size": 1 << 30}
    file = CatalogFile(uri="s3://shop/export/part-00001.parquet", name="part-00001.parquet", **names)
    rows = RowRange(file=file, path=file.uri, part=0, start=0, stop=4096, bytes=1 << 20)
    tasks = []
    for number in range(count):
        shard = CatalogShard(position=number, key=f"{number:032x}", format="parquet", ranges=(rows,), schema=schema)
        files = ShardFiles(folder=f"{work}/embeddings/{'e' * 16}", key=f"{number:032x}-{number:08x}")
        tasks.append(ShardTask(position=number, files=files, rows=shard))
    encoder = EncoderConfig(uri=f"{work}/encoder")
    previous = PreviousLookups.of_version("s3://shop/index", "v1", work, count * repeated)
    return ShardPlan(
        stage="embed",
        tasks=tuple(tasks) * repeated,
        complete=0,
        previous=previous,
        maker=partial(
            embedding,
            catalog=CatalogConfig(uri="s3://shop/export"),
            fetch=FetchConfig(),
            decode=DecodeConfig(),
            encoder=encoder,
            previous=previous,
            measuring=Measuring.of_plan(count, None),
        ),
        rows=None,
        encoder=EncoderSummary(model="clip", fingerprint="e" * 16, dim=512),
        query_encoder=encoder,
        catalog_uri="s3://shop/export",
        catalog_files=frozenset([file.uri]),
    )


def context(work: str) -> RunContext:
    return RunContext(
        work_uri=work,
        build="b" * 32,
        record=RunRecord(uri=f"{work}/runs/now"),
        lease=HeldLease(folder=f"{work}/lease", number=1, token="t"),
        index=IndexConfig(uri="s3://shop/index"),
        gates=GatesConfig(),
        encoder=EncoderSummary(model="clip", fingerprint="e" * 16, dim=512),
        query_encoder_uri=None,
        catalog_uri="s3://shop/export",
    )


def graph_bytes(folder: Path, count: int, monkeypatch: pytest.MonkeyPatch) -> int:
    """The serialized graph of a run over so many shards, as `run_pipeline` wires it."""
    built = []

    @contextmanager
    def only_built(options: BeamOptions, record: RunRecord) -> Iterator[beam.Pipeline]:
        root = beam.Pipeline(options=options)
        yield root
        built.append(len(root.to_runner_api().SerializeToString()))

    monkeypatch.setattr(transforms, "beam_run", only_built)
    run_pipeline(planned(str(folder), 1, repeated=count), context(str(folder)), BeamOptions([]))
    return built[0]


def test_the_graph_of_a_billion_products_stays_small(tmp_path, monkeypatch):
    few, many = (graph_bytes(tmp_path, count, monkeypatch) for count in (2000, SHARDS))
    assert few < many < few + 10_000, "the groups' beginnings alone grow"
    assert many < MOST_BYTES


def test_each_task_is_read_from_the_list_as_it_was_planned(tmp_path):
    tasks = planned(str(tmp_path), 150).tasks
    listed = TaskList.write(str(tmp_path / "tasks"), tasks)
    assert [element.read() for element in listed.ranges()] == list(tasks)
    assert [*TaskList.write(str(tmp_path / "none"), ()).ranges()] == []


@pytest.mark.parametrize("changed", ["table", "block"])
def test_tasks_that_others_wrote_are_not_unpickled(tmp_path, changed):
    listed = TaskList.write(str(tmp_path / "tasks"), planned(str(tmp_path), 3).tasks)
    elements = list(listed.ranges())
    data = bytearray((tmp_path / "tasks").read_bytes())
    data[9 if changed == "table" else -1] ^= 1
    (tmp_path / "tasks").write_bytes(data)
    with pytest.raises(StorageError, match="expected the tasks of this run, found others"):
        _ = list(listed.ranges()) if changed == "table" else elements[0].read()


def test_beam_numbers_by_groups(tmp_path, monkeypatch):
    """The steps are those of `test_product_groups`; here it is their wiring that runs."""
    monkeypatch.setattr(product_groups, "SHARDS_OF_GROUP", 2)
    run = replace(context(str(tmp_path)), index=IndexConfig(uri=str(tmp_path / "index"), factory="Flat"))
    files = write_shards(tmp_path / "embeddings" / run.encoder.fingerprint, 5)
    tasks = [ShardTask(position=number, files=each, rows=StandingRows(40)) for number, each in enumerate(files)]
    summaries = [ShardSummary(position=number, key=each.key, products=40) for number, each in enumerate(files)]
    left = tmp_path / "plan.pickle"
    with beam.Pipeline() as root:
        plan = number_products(root | beam.Create(summaries), run, ShardGroups.of_plan(tasks))
        _ = plan | beam.Map(pickle.dumps) | beam.Map(left.write_bytes)
    found: BuildPlan = pickle.loads(left.read_bytes())
    numbering = found.numbering
    assert len(numbering.products) == 3
    assert [shard.uri for shard in numbering.shards] == [each.embeddings for each in files]
    assert all(isinstance(shard, NumberedShard) for shard in numbering.shards)
    assert found.totals.products == numbering.product_count == 160 - numbering.duplicates
    assert set(run.record.reports("number")) == {
        *(f"{step}-{number:05d}" for step in ("ids", "repeats", "products") for number in range(3)),
        "all",
    }

"""Runs at their full number of shards the steps that see all of them, over made-up shards in a store that answers late.

    python -m tests.benchmarks.simulation [--rows 1e8 1e9] [--request-ms 30] [--workers 64]

A billion products are 244,000 shards of 4,096. Planning lists and names all of them. Numbering runs one group of
shards in full, and the steps over all groups with the others' files made up; so do merging (as many parts), the
manifest and the reader. Every request waits as an object store lets it wait, on the thread that asked, so what is read
side by side is seen to be. Two things are added by calculation, and marked so: the work for rows (the made-up shards have few), by what is measured of whole shards, and how often 64 workers do what one was measured at.
"""

from __future__ import annotations

import argparse
import json
import math
import multiprocessing
import resource
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from unittest.mock import patch

import faiss
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from index_builder import IndexReader, storage
from index_builder.embedding_shards import EmbeddingShardWriter, Modality
from index_builder.faiss_files import IndexShard
from index_builder.manifest import Manifest
from index_builder.merge import merge_index_shards
from index_builder.publish import manifest_uri, read_current, read_manifest
try:
    from index_builder.verify import check_index_shard
except ImportError:
    check_index_shard = None
from pipelines.catalog.dead_letters import places_table, write_dead_letters
from pipelines.catalog.previous_version import keyed_records
from pipelines.catalog.sorted_runs import SortedRun, write_run
from pipelines.config.command_line import load_job_config
from pipelines.indexing.build_steps import embeddings_folder
from pipelines.indexing.catalog_source import CatalogSource
from pipelines.indexing.job import plan_run
from pipelines.indexing.product_groups import (
    ListedGroup,
    RepeatsFile,
    ShardGroups,
    WrittenGroup,
    find_group_repeats,
    join_groups,
    list_group,
    write_group_part,
)
from pipelines.indexing.product_table import columns_writer, places_writer
from pipelines.indexing.shard_files import (
    SUMMARIES,
    FinishedRun,
    ShardFiles,
    ShardSummary,
    write_finished_run,
    write_summaries,
)
from tests import counting_store
from tests.benchmarks.machine import command_line, machine_line
from tests.counting_store import CountingStore, counted_store, counting
from tests.index_builder.builds import published

SHARD_ROWS = 4096
FILE_SHARDS = 244
FEW_ROWS = 16
KEYS_OF_LISTING = 1000
"""What an object store names in one answer."""
FILES_OF_SHARD = (".parquet", ".columns.arrow", ".rejected.parquet", ".places.arrow", ".json")
ADD_ROWS = 200_000
ENCODER = "package://encoders/pretrained/demo"


@dataclass(frozen=True, kw_only=True)
class Step:
    """A step as it was measured.

    Attributes:
        seconds: In all, requests and what was calculated included.
        calculated: Those of them that were not measured, in words; "" where all were.
    """

    name: str
    seconds: float
    memory_mb: float
    requests: int
    calculated: str = ""


class Store:
    """The counting store, in which every request takes its time."""

    def __init__(self, uri: str, request_seconds: float):
        self.uri = uri
        self.request_seconds = request_seconds
        self.waits = False

    @contextmanager
    def late(self) -> Iterator[None]:
        """Lets requests wait, a listing for each thousand names."""
        real = counting_store._count

        def wait(kind: counting_store.Kind, path: Any) -> counting_store.Request:
            request = real(kind, path)
            if not getattr(counting_store._inside, "depth", 0):
                pages = self.pages(request.path) if kind == "list" else 1
                time.sleep(self.request_seconds * pages)
            return request

        with patch.object(counting_store, "_count", wait):
            yield

    def pages(self, path: str) -> int:
        """Requests of a listing of a folder."""
        prefix = path.rstrip("/") + "/"
        return max(1, math.ceil(sum(name.startswith(prefix) for name in CountingStore.store) / KEYS_OF_LISTING))

    def put_as(self, uri: str, standing: str) -> None:
        """Another name for a file that stands; no bytes are copied."""
        strip = CountingStore._strip_protocol
        CountingStore.store[strip(uri)] = CountingStore.store[strip(standing)]


@contextmanager
def measured(store: Store, steps: list[Step], name: str, **changes: Any) -> Iterator[dict[str, Any]]:
    """Measures a block in the late store; what is put into the yielded dict goes into the step."""
    before, started = _peak_mb(), time.perf_counter()
    facts: dict[str, Any] = {}
    with counting() as asked, store.late():
        yield facts
        seconds = time.perf_counter() - started
    pages = sum(store.pages(request.path) - 1 for request in asked.requests if request.kind == "list")
    step = Step(name=name, seconds=seconds, memory_mb=_peak_mb() - before, requests=asked.of() + pages)
    step = replace(step, **changes | facts)
    steps.append(step)
    print_step(step)


def _peak_mb() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1000


def print_step(step: Step) -> None:
    """A line for a step, as soon as it is known."""
    what = f"   ({step.calculated})" if step.calculated else ""
    print(f"  {step.name:34} {step.seconds:9.1f} s  {step.memory_mb:8,.0f} MB  {step.requests:9,} requests{what}", flush=True)


def write_catalog(store: Store, files: int) -> str:
    """Parquet files of 244 row groups of 4,096 rows; all have the same bytes, since only their footers are read."""
    rows = FILE_SHARDS * SHARD_ROWS
    ids = pa.DictionaryArray.from_arrays(pa.array(np.zeros(rows, np.int32)), pa.array(["p"])).cast(pa.string())
    first = storage.join(store.uri, "catalog", "part-00000.parquet")
    with storage.atomic_file(first) as path:
        pq.write_table(pa.table({"product_id": ids, "title": ids}), path, row_group_size=SHARD_ROWS)
    for number in range(1, files):
        store.put_as(storage.join(store.uri, "catalog", f"part-{number:05d}.parquet"), first)
    return storage.join(store.uri, "catalog")


def job(store: Store, catalog: str) -> CatalogSource:
    """A night over that catalog, checked."""
    settings = {"catalog.uri": catalog, "catalog.image_field": "null", "catalog.text_fields": "[title]"}
    settings |= {"catalog.display_fields": "[title]", "catalog.shard_rows": str(SHARD_ROWS), "index.factory": "auto"}
    settings |= {name: storage.join(store.uri, name.partition(".")[0]) for name in ("work.uri", "index.uri")}
    given = [text for name, value in settings.items() for text in (f"--{name}", value)]
    source = CatalogSource(load_job_config(["--config", "demo", *given]).config)
    source.check()
    return source


def plan_nights(store: Store, shards: int, steps: list[Step]) -> list[str]:
    """Plans a first night, and a second one that finds all shards complete; gives their keys."""
    source = job(store, write_catalog(store, math.ceil(shards / FILE_SHARDS)))
    with measured(store, steps, "plan, first night"):
        planned, _ = plan_run(source)
    keys = planned.keys
    work, folder = source.config.work.uri, embeddings_folder(source.config.work.uri, planned.encoder.fingerprint)
    write_finished_run(work, FinishedRun(name="r", shards=tuple(keys), encoder=planned.encoder.fingerprint, build="b"))

    def summaries(path: str) -> None:
        made = (ShardSummary(position=number, key=key, products=SHARD_ROWS) for number, key in enumerate(keys))
        write_summaries(f"{path}.parquet", made)

    storage.artifact(storage.join(work, "builds", "b", SUMMARIES), keys, summaries)
    standing = storage.join(store.uri, "standing")
    storage.write_bytes_atomic(standing, b"{}")
    for key in keys:
        for ending in FILES_OF_SHARD:
            store.put_as(storage.join(folder, key + ending), standing)
    with measured(store, steps, "plan, second night"):
        again, _ = plan_run(source)
    if again.keys != keys or again.complete != len(keys):
        raise SystemExit(f"expected {len(keys)} complete shards of the same keys, found {again.complete}")
    return keys


def write_shard(files: ShardFiles, position: int, rows: int) -> ShardSummary:
    """A shard of products with ids of their own, as `embed_shard` leaves it."""

    def make(made: ShardFiles) -> ShardSummary:
        ids = pa.array([f"{position:06d}-{row:06d}" for row in range(rows)])
        fingerprints = np.random.default_rng(position).integers(0, 256, (rows, 16), np.uint8)
        with (
            EmbeddingShardWriter(made.embeddings, dim=8, encoder_fingerprint="e") as vectors,
            columns_writer(made.columns) as write_columns,
            places_writer(made.places) as write_places,
        ):
            modalities = np.full(rows, Modality.TEXT, np.uint8)
            vectors.write(ids, np.zeros((rows, 8), np.float16), fingerprints, modalities)
            write_columns(pa.record_batch({"title": ids}))
            write_places(places_table([], pa.array([], pa.string())))
        write_dead_letters(made.rejected, [])
        return ShardSummary(position=position, key=files.key, rows_in=rows, products=rows, embedded=rows)

    return files.complete(position, make)


def seconds_of_rows(store: Store) -> float:
    """What numbering takes for a row, on one worker that waits for nothing: whole shards over nearly empty ones."""
    folder, out = storage.join(store.uri, "rows", "embeddings"), storage.join(store.uri, "rows", "build")
    found = []
    for rows in (FEW_ROWS, SHARD_ROWS):
        summaries = [write_shard(ShardFiles(folder=folder, key=f"{rows}-{n}"), n, rows) for n in range(32)]
        groups = ShardGroups((0,))
        started = time.process_time()
        listed = list_group(groups, 0, summaries, folder, storage.join(out, str(rows)))
        repeats = find_group_repeats([listed], 0, storage.join(out, str(rows)))
        write_group_part([listed], [repeats], 0, storage.join(out, str(rows)))
        found.append(time.process_time() - started)
    return max(0.0, found[1] - found[0]) / (32 * (SHARD_ROWS - FEW_ROWS))


def number(store: Store, shards: int, workers: int, steps: list[Step]) -> None:
    """Numbers one group in full, and what all groups come together for."""
    of_row = seconds_of_rows(store)
    starts = tuple(range(0, shards, 1024))
    groups = ShardGroups(starts)
    folder, out = storage.join(store.uri, "work", "group"), storage.join(store.uri, "work", "build")
    sizes = [min(1024, shards - start) for start in starts]
    summaries = [write_shard(ShardFiles(folder=folder, key=f"k{n}"), n, FEW_ROWS) for n in range(sizes[0])]
    waves, rows_seconds = math.ceil(len(starts) / workers), of_row * 1024 * SHARD_ROWS
    words = f"{waves} of {len(starts)} groups after the other, {rows_seconds:.0f} s of rows each"

    def of_all(seconds: float, share: float) -> dict[str, Any]:
        return {"seconds": waves * (seconds + share * rows_seconds), "calculated": words}

    with measured(store, steps, "number: list ids") as facts:
        started = time.perf_counter()
        first = list_group(groups, 0, summaries, folder, out)
        facts |= of_all(time.perf_counter() - started, 0.4)
    listed = [first, *(_other_group(store, groups, n, first, out) for n in range(1, len(starts)))]
    with measured(store, steps, "number: find repeats") as facts:
        started = time.perf_counter()
        repeats = find_group_repeats(listed, 0, out)
        facts |= of_all(time.perf_counter() - started, 0.1)
    empty = [replace(repeats, starts=(0,) * len(repeats.starts)) for _ in starts[1:]]
    all_repeats: list[RepeatsFile] = [repeats, *empty]
    with measured(store, steps, "number: write products") as facts:
        started = time.perf_counter()
        written = write_group_part(listed, all_repeats, 0, out)
        facts |= of_all(time.perf_counter() - started, 0.5)
    parts = [written]
    for position in range(1, len(starts)):
        uri = storage.join(out, f"products-{position:05d}-of-{len(starts):05d}")
        for ending in (".shards.arrow", ".rejected.parquet", ".arrow"):
            store.put_as(uri + ending, written.uri + ending)
        parts.append(WrittenGroup(uri=uri, rows=written.rows))
    with measured(store, steps, "number: join groups"):
        join_groups(listed, parts, out)


def _other_group(store: Store, groups: ShardGroups, position: int, first: ListedGroup, out: str) -> ListedGroup:
    """A group of as many shards, with ids that nobody else has."""
    start, count = groups.starts[position], len(first.keys)
    random = np.random.default_rng(position)
    keys = random.integers(0, 256, (count * FEW_ROWS, 16), np.uint8)
    records = np.sort(keyed_records(keys, start, np.arange(len(keys))), order=["key", "tail"])
    run = storage.join(out, f"ids-{position:05d}.run")
    with storage.atomic_file(run) as path:
        starts = write_run(path, records, len(groups.starts))
    names = tuple(f"k{start + number}" for number in range(count))
    summaries = storage.join(out, f"ids-{position:05d}.summaries.parquet")
    with storage.atomic_file(summaries) as path:
        write_summaries(path, (ShardSummary(position=start + n, key=key) for n, key in enumerate(names)))
    ids = SortedRun(uri=run, starts=tuple(starts))
    return replace(first, number=position, first_shard=start, keys=names, ids=ids, summaries_uri=summaries)


LISTS, CODE_DIM = 1024, 64


def merge_parts(folder: str, parts: int) -> tuple[float, float, float]:
    """Merges so many parts of few rows; gives seconds, MB that the process grew, and seconds of checking the file."""
    random = np.random.default_rng(0)
    kind = faiss.ScalarQuantizer.QT_8bit_direct
    flat = faiss.IndexFlatIP(CODE_DIM)
    codec = faiss.IndexIVFScalarQuantizer(flat, CODE_DIM, LISTS, kind, faiss.METRIC_INNER_PRODUCT, False)
    codec.quantizer.add(random.normal(size=(LISTS, CODE_DIM)).astype(np.float32))
    codec.is_trained = True
    made = []
    for number in range(parts):
        codec.reset()
        ids = np.arange(number * FEW_ROWS, (number + 1) * FEW_ROWS)
        vectors = random.integers(0, 255, (FEW_ROWS, CODE_DIM)).astype(np.float32)
        codec.add_core(*(FEW_ROWS, faiss.swig_ptr(vectors), faiss.swig_ptr(ids)), faiss.swig_ptr(ids % LISTS))
        path = f"{folder}/{number}.faiss"
        faiss.write_index(codec, path)
        facts = {"rows": FEW_ROWS, "first_row": number * FEW_ROWS, "codec_fingerprint": "c", "sha256": str(number)}
        made.append(IndexShard(uri=path, **facts))
    before, started = _peak_mb(), time.perf_counter()
    merge_index_shards(made, f"{folder}/merged.faiss")
    return time.perf_counter() - started, _peak_mb() - before, 0.0


def check_rows(folder: str, rows: int) -> tuple[float, float, float]:
    """Checks an index file of so many rows; gives seconds, MB that the process grew, and the file's bytes."""
    random = np.random.default_rng(0)
    flat = faiss.IndexFlatIP(CODE_DIM)
    kind = faiss.ScalarQuantizer.QT_8bit_direct
    codec = faiss.IndexIVFScalarQuantizer(flat, CODE_DIM, LISTS, kind, faiss.METRIC_INNER_PRODUCT, False)
    codec.quantizer.add(random.normal(size=(LISTS, CODE_DIM)).astype(np.float32))
    codec.is_trained = True
    ids, vectors = np.arange(rows), np.zeros((rows, CODE_DIM), np.float32)
    codec.add_core(*(rows, faiss.swig_ptr(vectors), faiss.swig_ptr(ids)), faiss.swig_ptr(ids % LISTS))
    part = f"{folder}/part.faiss"
    faiss.write_index(codec, part)
    del codec, vectors
    shard = IndexShard(uri=part, rows=rows, first_row=0, codec_fingerprint="c", sha256="one")
    merged = merge_index_shards([shard], f"{folder}/merged.faiss")
    before, started = _peak_mb(), time.perf_counter()
    check_index_shard(merged, dim=CODE_DIM, codec_fingerprint="c")
    return time.perf_counter() - started, _peak_mb() - before, float(storage.size(merged.uri))


def in_own_process(work: Callable[..., tuple[float, float, float]], *arguments: Any) -> tuple[float, float, float]:
    """What a fresh process measures, whose memory is its own."""
    with tempfile.TemporaryDirectory() as folder, multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(work, (folder, *arguments))


def manifest_and_reader(shards: int, steps: list[Step]) -> None:
    """A small version whose manifest names as many shards: written, read, opened."""
    with tempfile.TemporaryDirectory() as folder:
        index = published(folder, rows=2000)
        version = read_current(index)
        names = [f"s3://a-bucket-of-the-shop/nightly/work/embeddings/{'e' * 16}/{n:032x}.parquet" for n in range(shards)]
        small = read_manifest(index, version)
        started, before = time.perf_counter(), _peak_mb()
        text = replace(small, embedding_shards=tuple(names)).to_sealed_json()
        steps.append(Step(name="manifest, written", seconds=time.perf_counter() - started, memory_mb=_peak_mb() - before, requests=1))
        print_step(steps[-1])
        Path(manifest_uri(index, version)).write_text(text)
        started, before = time.perf_counter(), _peak_mb()
        Manifest.from_json(text)
        steps.append(Step(name=f"manifest, read ({len(text) / 1e6:.0f} MB)", seconds=time.perf_counter() - started, memory_mb=_peak_mb() - before, requests=1))
        print_step(steps[-1])
        started, before = time.perf_counter(), _peak_mb()
        reader = IndexReader.open(index)
        seconds = time.perf_counter() - started
        requests = 2 + len(small.files)
        steps.append(Step(name="reader, opened", seconds=seconds + 0.03 * requests, memory_mb=_peak_mb() - before, requests=requests, calculated="0.03 s for each file; without downloads"))
        print_step(steps[-1])
        del reader


def simulate(rows: int, workers: int, request_seconds: float, check_million: tuple[float, float, float]) -> list[Step]:
    """All steps at so many rows."""
    shards = math.ceil(rows / SHARD_ROWS)
    steps: list[Step] = []
    with counted_store() as uri:
        plan_nights(Store(uri, request_seconds), shards, steps)
    with counted_store() as uri:
        number(Store(uri, request_seconds), shards, workers, steps)
    parts = math.ceil(rows / ADD_ROWS)
    seconds, grown, _ = in_own_process(merge_parts, parts)
    steps.append(Step(name=f"merge, {parts:,} parts of few rows", seconds=seconds + 2 * request_seconds * parts, memory_mb=grown, requests=2 * parts, calculated="2 requests a part, one after the other"))
    print_step(steps[-1])
    seconds, grown, size = check_million
    per_worker = rows / min(workers, max(1, rows // 15_000_000))
    words = f"{min(workers, max(1, rows // 15_000_000))} serving shards, by {seconds:.2f} s for a million rows"
    steps.append(Step(name="check of a serving shard", seconds=seconds * per_worker / 1e6, memory_mb=grown * per_worker / 1e6, requests=3, calculated=words))
    print_step(steps[-1])
    manifest_and_reader(shards, steps)
    return steps


def main(argv: Sequence[str] | None = None) -> None:
    """Runs the simulation and prints its table."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--rows", type=float, nargs="+", default=[1e8, 1e9])
    parser.add_argument("--workers", type=int, default=64)
    parser.add_argument("--request-ms", type=float, default=30.0)
    parser.add_argument("--json", help="write the steps here too")
    arguments = parser.parse_args(argv)
    faiss.omp_set_num_threads(1)
    print(machine_line("faiss-cpu", "pyarrow", "apache-beam"))
    print(command_line())
    million = in_own_process(check_rows, 1_000_000)
    found = {}
    for rows in map(int, arguments.rows):
        print(f"\n{rows:,} rows, {math.ceil(rows / SHARD_ROWS):,} shards, {arguments.workers} workers, {arguments.request_ms:g} ms a request")
        found[rows] = simulate(rows, arguments.workers, arguments.request_ms / 1000, million)
        for name in ("plan", "number"):
            own = [step for step in found[rows] if step.name.startswith(name)]
            print(f"  {name}: {sum(step.seconds for step in own) / 60:.1f} min, {sum(step.requests for step in own):,} requests")
    if arguments.json:
        Path(arguments.json).write_text(json.dumps({rows: [vars(step) for step in steps] for rows, steps in found.items()}))


if __name__ == "__main__":
    main()

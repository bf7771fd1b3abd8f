"""Runs at their full number of shards the steps that see all of them, over made-up shards in a store that answers late.

    python -m tests.benchmarks.simulation [--rows 1e8 1e9] [--request-ms 30] [--workers 64]

A billion products are 244,000 shards of 4,096. Planning lists and names all of them. Numbering runs one group of
shards in full, and the steps over all groups with the others' files made up; so do merging (as many parts), the
manifest and the reader. Every request waits as an object store lets it wait, on the thread that asked, so what is read
side by side is seen to be. Two things are calculated, and marked so: the work for rows, of which the made-up shards
have few, by what whole shards take; and how often each of the workers does what one was measured at.
"""

from __future__ import annotations

import argparse
import json
import math
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
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
from index_builder.verify import check_index_shard
from pipelines.catalog.dead_letters import PLACES_SCHEMA, write_dead_letters
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
ROWS_OF_SERVING_SHARD = 15_000_000


@dataclass(frozen=True)
class Step:
    """A step as it was measured.

    Attributes:
        seconds: In all, requests and what was calculated included.
        cpu_seconds: Of this process; where other work kept the machine busy, `seconds` are more than these and the
            waiting for requests.
        calculated: Those of them that were not measured, in words; "" where all were.
    """

    name: str
    seconds: float
    memory_mb: float
    requests: int
    calculated: str = ""
    cpu_seconds: float = 0.0


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
    before, started, cpu = peak_mb(), time.perf_counter(), time.process_time()
    facts: dict[str, Any] = {}
    with counting() as asked, store.late():
        yield facts
        seconds, facts["cpu_seconds"] = time.perf_counter() - started, time.process_time() - cpu
    pages = sum(store.pages(request.path) - 1 for request in asked.requests if request.kind == "list")
    step = Step(name=name, seconds=seconds, memory_mb=peak_mb() - before, requests=asked.of() + pages)
    step = replace(step, **changes | facts)
    steps.append(step)
    print_step(step)


def peak_mb() -> float:
    """The most that this process has held so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1000


def print_step(step: Step) -> None:
    """A line for a step, as soon as it is known."""
    what = f"   ({step.calculated})" if step.calculated else ""
    print(
        f"  {step.name:32}{step.seconds:8.1f} s {step.cpu_seconds:8.1f} CPU s{step.memory_mb:8,.0f} MB"
        f"{step.requests:9,} requests{what}",
        flush=True,
    )


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
    settings["index.thumbnails"] = "false"
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
            write_places(PLACES_SCHEMA.empty_table())
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


def write_parts(folder: str, parts: int, rows: int) -> list[IndexShard]:
    """Parts of an index, each of so many rows with codes of 64 bytes."""
    random = np.random.default_rng(0)
    kind, flat = faiss.ScalarQuantizer.QT_8bit_direct, faiss.IndexFlatIP(CODE_DIM)
    codec = faiss.IndexIVFScalarQuantizer(flat, CODE_DIM, LISTS, kind, faiss.METRIC_INNER_PRODUCT, False)
    codec.quantizer.add(random.normal(size=(LISTS, CODE_DIM)).astype(np.float32))
    codec.is_trained = True
    made = []
    for number in range(parts):
        codec.reset()
        ids = np.arange(number * rows, (number + 1) * rows)
        vectors, lists = np.zeros((rows, CODE_DIM), np.float32), ids % LISTS
        codec.add_core(rows, faiss.swig_ptr(vectors), faiss.swig_ptr(ids), faiss.swig_ptr(lists))
        path = f"{folder}/{number}.faiss"
        faiss.write_index(codec, path)
        facts = {"rows": rows, "first_row": number * rows, "codec_fingerprint": "c", "sha256": str(number)}
        made.append(IndexShard(uri=path, **facts))
    return made


def merge_parts(folder: str, parts: int) -> tuple[float, float]:
    """Merges so many parts of few rows; gives seconds, and MB that the process grew."""
    made = write_parts(folder, parts, FEW_ROWS)
    before, started = peak_mb(), time.perf_counter()
    merge_index_shards(made, f"{folder}/merged.faiss")
    return time.perf_counter() - started, peak_mb() - before


def check_rows(folder: str, rows: int) -> tuple[float, float]:
    """Checks an index file of so many rows; gives CPU seconds, and MB that the process grew."""
    merged = merge_index_shards(write_parts(folder, 2, rows // 2), f"{folder}/merged.faiss")
    before, started = peak_mb(), time.process_time()
    check_index_shard(merged, dim=CODE_DIM, codec_fingerprint="c")
    return time.process_time() - started, peak_mb() - before


def in_own_process(work: str, count: int) -> tuple[float, float]:
    """What a fresh process measures, whose memory is its own."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "tests.benchmarks.simulation", "--work", work, "--folder", folder]
        told = subprocess.run([*command, "--count", str(count)], check=True, capture_output=True, text=True).stdout
    seconds, grown = json.loads(told.splitlines()[-1])
    return seconds, grown


def manifest_and_reader(shards: int, request_seconds: float, steps: list[Step]) -> None:
    """A small version whose manifest names as many shards: written, read, opened."""

    def step(name: str, started: float, before: float, requests: int, calculated: str = "") -> None:
        seconds = time.perf_counter() - started + request_seconds * requests
        steps.append(Step(name, seconds, peak_mb() - before, requests, calculated))
        print_step(steps[-1])

    with tempfile.TemporaryDirectory() as folder:
        index = published(folder, rows=2000)
        version = read_current(index)
        prefix = f"s3://a-bucket-of-the-shop/nightly/work/embeddings/{'e' * 16}"
        names = tuple(f"{prefix}/{number:032x}.parquet" for number in range(shards))
        small = read_manifest(index, version)
        before, started = peak_mb(), time.perf_counter()
        text = replace(small, embedding_shards=names).to_sealed_json()
        step(f"manifest of {len(text) / 1e6:.0f} MB, written", started, before, 1)
        Path(manifest_uri(index, version)).write_text(text)
        before, started = peak_mb(), time.perf_counter()
        Manifest.from_json(text)
        step("manifest, read", started, before, 1)
        before, started = peak_mb(), time.perf_counter()
        IndexReader.open(index)
        step("reader, opened", started, before, 2 + len(small.files), "one request a file; without downloads")


def simulate(rows: int, workers: int, request_seconds: float, million: tuple[float, float]) -> list[Step]:
    """All steps at so many rows; `million` is what checking an index of a million rows takes."""
    shards = math.ceil(rows / SHARD_ROWS)
    steps: list[Step] = []
    with counted_store() as uri:
        plan_nights(Store(uri, request_seconds), shards, steps)
    with counted_store() as uri:
        number(Store(uri, request_seconds), shards, workers, steps)
    parts = math.ceil(rows / ADD_ROWS)
    seconds, grown = in_own_process("merge_parts", parts)
    words = "2 requests a part, one after the other; rows apart"
    merged = Step(f"merge of {parts:,} parts", seconds + 2 * request_seconds * parts, grown, 2 * parts, words)
    serving = max(1, min(workers, rows // ROWS_OF_SERVING_SHARD))
    share = rows / serving / 1e6
    words = f"each of {serving} serving shards by its worker; {million[0]:.2f} s for a million rows"
    checked = Step("check of an index file", million[0] * share, million[1] * share, 3, words)
    for step in (merged, checked):
        print_step(step)
    steps += [merged, checked]
    manifest_and_reader(shards, request_seconds, steps)
    return steps


def main(argv: Sequence[str] | None = None) -> None:
    """Runs the simulation and prints its table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--rows", type=float, nargs="+", default=[1e8, 1e9])
    parser.add_argument("--workers", type=int, default=64)
    parser.add_argument("--request-ms", type=float, default=30.0)
    for name in ("--work", "--folder", "--count"):  # of a process of its own
        parser.add_argument(name, help=argparse.SUPPRESS)
    arguments = parser.parse_args(argv)
    faiss.omp_set_num_threads(1)
    if arguments.work:
        works = {"merge_parts": merge_parts, "check_rows": check_rows}
        print(json.dumps(works[arguments.work](arguments.folder, int(arguments.count))))
        return
    print(machine_line("faiss-cpu", "pyarrow", "apache-beam"))
    print(command_line())
    storage._sync = lambda path: None  # type: ignore[attr-defined]  # the shards that it makes up may be lost
    million = in_own_process("check_rows", 1_000_000)
    for rows in map(int, arguments.rows):
        machines = f"{arguments.workers} workers, {arguments.request_ms:g} ms a request"
        print(f"\n{rows:,} rows, {math.ceil(rows / SHARD_ROWS):,} shards, {machines}")
        steps = simulate(rows, arguments.workers, arguments.request_ms / 1000, million)
        for name in ("plan, second", "number"):
            own = [step for step in steps if step.name.startswith(name)]
            print(f"  {name}: {sum(step.seconds for step in own) / 60:.1f} min in all")


if __name__ == "__main__":
    main()

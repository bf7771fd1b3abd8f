"""Checks a bill against the run that it was made out for: rates of a small run, and what a larger one then takes.

    python -m tests.benchmarks.bill SMALL LARGE [--config demo] [OPTIONS of the job ...]
    python -m tests.benchmarks.bill requests

SMALL and LARGE are catalogs of one kind, or `demo://N`. Each is indexed by a command of its own in an empty folder; the
bill for LARGE is made out before it, by the rates of SMALL alone. CPU seconds are compared, stage by stage and in all:
other work on the machine stretches the wall time, and hardly these. `requests` counts what each stage asks of an object
store for a shard, and besides.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pyarrow as pa
import pyarrow.parquet as pq

from index_builder import storage
from pipelines.config.command_line import load_job_config
from pipelines.indexing.bill import make_out_bill
from pipelines.indexing.catalog_source import CatalogSource
from pipelines.indexing.cpu_time import process_cpu_seconds
from pipelines.indexing.forecast import forecast_run
from pipelines.indexing.rates import MeasuredRun
from pipelines.indexing.run_record import RunRecord
from tests.benchmarks.machine import command_line, machine_line
from tests.counting_store import counted_store, counting
from tests.pipelines.indexing.job import SCHEMA, product, run_job


def options(catalog: str, folder: str, given: Sequence[str]) -> list[str]:
    """The job's command line for a catalog, in a folder of its own."""
    return ["--catalog.uri", catalog, "--work.uri", f"{folder}/work", "--index.uri", f"{folder}/index", *given]


def run(catalog: str, folder: str, given: Sequence[str]) -> float:
    """Indexes a catalog; CPU seconds of the command, drawing a demo's catalog apart."""
    source = CatalogSource(load_job_config(options(catalog, folder, given)).config)
    source.check()  # draws it
    before = process_cpu_seconds()
    command = [sys.executable, "-m", "pipelines.embed_catalog", *options(catalog, folder, given)]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    return process_cpu_seconds() - before


def spent_by_stage(work_uri: str) -> dict[str, float]:
    """CPU seconds of each stage of the only run there."""
    (name,) = storage.list_folders(storage.join(work_uri, "runs"))
    measured = MeasuredRun.read(RunRecord(uri=storage.join(work_uri, "runs", name)))
    assert measured is not None
    found = {stage: sum(each["cpu_seconds"] for each in reports) for stage, reports in measured.reports.items()}
    return {"start": measured.reports["plan"][0]["start_cpu_seconds"], **{k: v for k, v in found.items() if v}}


def count_requests(shards: int) -> Counter[str]:
    """What each stage of a first night over so many shards asks of an object store that is in memory."""
    found: Counter[str] = Counter()
    timed = RunRecord.timed
    with tempfile.TemporaryDirectory() as folder, counted_store() as store, counting() as asked:

        @contextmanager
        def watched(record: RunRecord, stage: str, unit: str = "all") -> Iterator[dict[str, Any]]:
            before = len(asked.requests)
            with timed(record, stage, unit) as facts:
                yield facts
            found[stage] += len(asked.requests) - before

        rows = [product(number, image=None) for number in range(128)]
        (root := Path(folder, "catalog")).mkdir()
        pq.write_table(pa.Table.from_pylist(rows, schema=SCHEMA), root / "part.parquet", row_group_size=16)
        where = ("--work.uri", f"{store}/work", "--index.uri", f"{store}/index", "--catalog.image_field", "null")
        with patch.object(RunRecord, "timed", watched), patch.object(storage, "_sync", lambda path: None):
            run_job(Path(folder), *where, "--catalog.shard_rows", str(128 // shards), "--index.serving_shards", "1")
    return found


def print_requests() -> None:
    """Requests of each stage for a shard and besides, by two runs."""
    few, many = count_requests(8), count_requests(64)
    print(f"{'stage':10}{'a shard':>10}{'besides':>10}")
    for stage in many:
        of_shard = (many[stage] - few[stage]) / 56
        print(f"{stage:10}{of_shard:10.1f}{few[stage] - 8 * of_shard:10.1f}")


def main(argv: Sequence[str] | None = None) -> None:
    """Prints the bill beside the run."""
    if list(argv or sys.argv[1:]) == ["requests"]:
        print_requests()
        return
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("small")
    parser.add_argument("large")
    arguments, given = parser.parse_known_args(argv)
    print(machine_line("torch", "faiss-cpu", "apache-beam"))
    print(command_line())
    with tempfile.TemporaryDirectory() as folder:
        small, large = f"{folder}/small", f"{folder}/large"
        first = run(arguments.small, small, given)
        rest = first - sum(spent_by_stage(f"{small}/work").values())
        planned = forecast_run(CatalogSource(load_job_config(options(arguments.large, large, given)).config))
        if planned.bill is None:
            raise SystemExit(f"{arguments.large}: no product")
        bill = make_out_bill(planned.bill.work, load_job_config(given).config.plan, f"{small}/work")
        took = run(arguments.large, large, given)
        spent = spent_by_stage(f"{large}/work")
        rows = load_job_config(options(arguments.small, small, given)).config.catalog.uri
        print(f"{rows}: {first:.1f} CPU s; {arguments.large}: {planned.products:,} products")
        print(f"{'stage':10}{'bill':>10}{'run':>10}{'bill/run':>10}")
        for stage in bill.stages:
            found = spent.get(stage.stage, 0.0)
            share = f"{stage.cpu_seconds / found:10.2f}" if found else ""
            print(f"{stage.stage:10}{stage.cpu_seconds:10.2f}{found:10.2f}{share}")
        print(
            f"{'all':10}{bill.cpu_seconds:10.2f}{sum(spent.values()):10.2f}"
            f"{bill.cpu_seconds / sum(spent.values()):10.2f}"
        )
        print(
            f"the command in all {took:.1f} CPU s; beside its stages it took {rest:.1f} s of the small one and "
            f"{took - sum(spent.values()):.1f} s of the large one"
        )


if __name__ == "__main__":
    main()

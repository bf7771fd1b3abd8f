"""What Beam costs: the embedding of a drawn catalog's shards through its direct runner, and in a loop without it.

    python -m tests.benchmarks.plain_loop [--products 3000] [--times 5]

Both call the same shard function over the same plan, each time in a process and a work folder of its own, in turn; the
clock runs from the first shard's beginning, the loading of the encoder included, to the last one's end.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from tests.benchmarks.machine import command_line, machine_line

WAYS = ("loop", "beam")


def main() -> None:
    """Prints medians of both ways, and the cost of Beam."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--products", type=int, default=3000)
    parser.add_argument("--times", type=int, default=5)
    parser.add_argument("--way", choices=WAYS)
    parser.add_argument("--folder", type=Path)
    given = parser.parse_args()
    if given.way is not None:
        print(json.dumps(measure(given.way, given.folder, given.products)))
        return
    print(machine_line("apache-beam"))
    print(command_line())
    found: dict[str, list[tuple[float, float]]] = {way: [] for way in WAYS}
    with tempfile.TemporaryDirectory() as root:
        for number in range(given.times):
            for way in WAYS if number % 2 else WAYS[::-1]:
                words = ["--way", way, "--folder", f"{root}/{number}-{way}", "--products", str(given.products)]
                said = subprocess.run(
                    [sys.executable, "-m", "tests.benchmarks.plain_loop", *words],
                    capture_output=True,
                    text=True,
                    check=True,
                )
                found[way].append(tuple(json.loads(said.stdout.splitlines()[-1])))
    medians = {way: [statistics.median(column) for column in zip(*times, strict=True)] for way, times in found.items()}
    for way, (wall, cpu) in medians.items():
        print(f"{way}: {wall:.2f} s, {cpu:.2f} CPU s (medians of {given.times})")
    costs = [
        100 * (with_beam / without - 1) for with_beam, without in zip(medians["beam"], medians["loop"], strict=True)
    ]
    print(f"Beam costs {costs[0]:+.1f} % of the time on the clock, {costs[1]:+.1f} % of the CPU time")


def measure(way: str, folder: Path, products: int) -> tuple[float, float]:
    """Wall and CPU seconds of this process over all shards."""
    from pipelines.config.command_line import load_job_config
    from pipelines.indexing.beam_run import beam_run
    from pipelines.indexing.catalog_source import CatalogSource
    from pipelines.indexing.run_record import RunRecord
    from pipelines.indexing.task_list import TaskList
    from pipelines.indexing.transforms import TASKS_FILE, MakeShards, beam

    overrides = [
        "--catalog.uri",
        f"demo://{products}",
        "--work.uri",
        f"{folder}/work",
        "--index.uri",
        f"{folder}/index",
    ]
    command = load_job_config(overrides)
    source = CatalogSource(command.config)
    source.check()
    record = RunRecord.begin(f"{folder}/work")
    plan = source.plan()
    wall, cpu = time.monotonic(), time.process_time()
    if way == "loop":
        with plan.maker(lambda make: make()) as make:
            for task in plan.tasks:
                make(task, lambda _: None)
    else:
        tasks = TaskList.write(f"{record.uri}/{TASKS_FILE}", plan.tasks)
        with beam_run(command.pipeline_options, record) as root:
            ranges = root | beam.Create([tasks], reshuffle=False) | beam.FlatMap(lambda tasks: tasks.ranges())
            _ = ranges | beam.Reshuffle() | beam.ParDo(MakeShards("embed", plan.maker, record, None))
    return time.monotonic() - wall, time.process_time() - cpu


if __name__ == "__main__":
    main()

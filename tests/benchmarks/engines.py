"""One night on each engine: does it work, the same bytes, wall and CPU seconds, memory of all its processes.

    python -m tests.benchmarks.engines direct flink spark [--products 480] [--shard-rows 30]
    python -m tests.benchmarks.engines direct flink --catalog ../shared/data/fashion/catalog --text title

`make engines` fetches the jars. CPU and memory are those of all processes that the engine needs (the command, JVMs,
worker pools, Python workers), sampled twice a second; the time to start a cluster is not the night's and stands apart.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import threading
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext, suppress
from pathlib import Path
from typing import Any

from pipelines.config.stopping import _descendants
from pipelines.demo_catalog import draw_named_catalog
from tests.benchmarks.machine import command_line, machine_line
from tests.engines.flink import flink_cluster
from tests.engines.jobs import SETTINGS, SHARD_ROWS, start_night, whole_catalog
from tests.engines.processes import JARS
from tests.engines.spark import spark_cluster

TICKS = os.sysconf("SC_CLK_TCK")
PAGE = os.sysconf("SC_PAGE_SIZE")
CLUSTERS: dict[str, Callable[[Path], AbstractContextManager[Any]]] = {
    "direct": lambda folder: nullcontext(),
    "flink": lambda folder: flink_cluster(folder, JARS),
    "spark": lambda folder: spark_cluster(folder, JARS),
}


class Sampler:
    """CPU seconds, and the largest memory of all processes below this one, while the block runs."""

    def __enter__(self) -> Sampler:
        self._seconds: dict[int, float] = {}
        self._stop, self.peak_bytes = threading.Event(), 0
        self._look()
        self._before = dict(self._seconds)
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    @property
    def cpu_seconds(self) -> float:
        return sum(seconds - self._before.get(pid, 0.0) for pid, seconds in self._seconds.items())

    def _watch(self) -> None:
        while not self._stop.wait(0.5):
            self._look()

    def _look(self) -> None:
        resident = 0
        for pid in _descendants(os.getpid()):
            with suppress(OSError):
                fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
                self._seconds[pid] = (int(fields[11]) + int(fields[12])) / TICKS
                resident += int(fields[21]) * PAGE
        self.peak_bytes = max(self.peak_bytes, resident)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("engines", nargs="+", choices=CLUSTERS)
    parser.add_argument("--products", type=int, default=480)
    parser.add_argument("--shard-rows", type=int, default=SHARD_ROWS)
    parser.add_argument("--catalog", help="instead of a drawn one; shards and index are the default's then")
    parser.add_argument("--text", help="the text field of that catalog")
    given = parser.parse_args()
    print(machine_line("torch", "apache-beam"), command_line(), f"load before: {os.getloadavg()[0]:.1f}", sep="\n")
    settings = (*SETTINGS, "--catalog.shard_rows", str(given.shard_rows))
    with tempfile.TemporaryDirectory() as name:
        folder, expected = Path(name), None
        catalog = given.catalog or draw_named_catalog(f"demo://{given.products}", str(folder))
        if given.catalog:
            settings = whole_catalog(given.text)
        for engine in given.engines:
            started = time.monotonic()
            with CLUSTERS[engine](folder / f"{engine}-cluster") as cluster:
                up = time.monotonic() - started
                options = cluster.options if cluster else ["--runner=DirectRunner"]
                with Sampler() as used:
                    night = start_night(folder / engine, catalog, options, settings)
                    night.finish(7200)
                    wall = time.monotonic() - started - up
            files = night.files()
            expected = expected or files
            same = "same bytes" if files == expected else "OTHER BYTES"
            night_took = f"{wall:.1f} s, {used.cpu_seconds:.1f} CPU s, {used.peak_bytes / 2**20:,.0f} MB"
            print(f"{engine}: {same}, {night_took}; start {up:.1f} s", flush=True)


if __name__ == "__main__":
    main()

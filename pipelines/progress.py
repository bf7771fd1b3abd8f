"""How far a run is, while it runs: a live display on a terminal, plain log lines elsewhere.

Both read the run record, so they show the same on every runner.
"""

from __future__ import annotations

import logging
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from index_builder import storage
from pipelines.run_record import INDEX_STAGES, RunRecord

log = logging.getLogger(__name__)

POLL_SECONDS = 0.5
REMOTE_POLL_SECONDS = 5.0
"""Each look at an object store is a dozen requests, which cost time and money."""
LOG_SECONDS = 15.0
FirstStage = Literal["embed", "import"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Snapshot:
    """A moment of a run.

    Attributes:
      stage: the stage at work.
      shards: catalog shards that are finished.
      products: products read so far, those of unfinished shards included.
      products_per_second: of this run's own work; shards found complete do not count.
      finished_units: finished units of the stage at work.
    """

    stage: str
    shards: int
    products: int
    products_per_second: float
    finished_units: int


class ProgressReader:
    """Takes snapshots from a run record.

    Args:
      record: the run.
      shards: catalog shards of the plan.
      first_stage: what makes embedding shards of them.
    """

    def __init__(self, record: RunRecord, shards: int, first_stage: FirstStage = "embed"):
        self._record = record
        self._shards = shards
        self.first_stage = first_stage
        self._started = time.monotonic()
        self._reports: dict[str, dict[str, dict[str, Any]]] = {}  # stage -> unit -> report

    @property
    def poll_seconds(self) -> float:
        """Time between two looks."""
        return POLL_SECONDS if storage.is_local(self._record.uri) else REMOTE_POLL_SECONDS

    def snapshot(self) -> Snapshot:
        """How far the run is now."""
        finished = self._finished(self.first_stage)
        partial = self._record.partial_reports(self.first_stage, finished)
        done = sum(report["rows_in"] for report in finished.values())
        own = sum(report["rows_in"] for report in finished.values() if not report["skipped"])
        under_way = sum(report["products"] for report in partial.values())
        elapsed = time.monotonic() - self._started
        stage, units = str(self.first_stage), len(finished)
        if units >= self._shards:
            stage, units = self._index_stage()
        return Snapshot(
            stage=stage,
            shards=len(finished),
            products=done + under_way,
            products_per_second=(own + under_way) / elapsed if elapsed else 0.0,
            finished_units=units,
        )

    def _finished(self, stage: str) -> dict[str, dict[str, Any]]:
        """The reports of a stage; each is read once."""
        self._reports[stage] = self._record.reports(stage, self._reports.get(stage))
        return self._reports[stage]

    def _index_stage(self) -> tuple[str, int]:
        """The stage at work after the embedding, and its finished units.

        It is the last one with a report; a stage of one unit ("all") is over with its report, so the next is at work.
        """
        stage, units = INDEX_STAGES[0], 0
        for place, later in enumerate(INDEX_STAGES):
            reports = self._finished(later)
            if reports:
                over = "all" in reports and place + 1 < len(INDEX_STAGES)
                stage, units = (INDEX_STAGES[place + 1], 0) if over else (later, len(reports))
        return stage, units


@contextmanager
def show_progress(
    record: RunRecord,
    *,
    shards: int,
    rows: int | None,
    first_stage: FirstStage = "embed",
    console: Console | None = None,
) -> Iterator[None]:
    """Shows a run's progress for the length of the block.

    Args:
      record: the run.
      shards: catalog shards of the plan.
      rows: catalog rows, None where the format does not tell before reading.
      first_stage: what makes embedding shards of them.
      console: where to draw; by default standard error, live only if that is a terminal.
    """
    console = console or Console(file=sys.stderr)
    reader = ProgressReader(record, shards, first_stage)
    stop = threading.Event()
    if console.is_terminal:
        work = _draw(reader, shards, rows, console, stop)
    else:
        work = _log_lines(reader, shards, rows, stop)
    thread = threading.Thread(target=lambda: [None for _ in work], name="progress", daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()


def _draw(
    reader: ProgressReader, shards: int, rows: int | None, console: Console, stop: threading.Event
) -> Iterator[None]:
    columns = (
        SpinnerColumn(finished_text="[green]done[/]"),
        TextColumn("{task.description}"),
        BarColumn(bar_width=28),
        MofNCompleteColumn(),
        TextColumn("{task.fields[detail]}"),
        TimeElapsedColumn(),
    )
    with Progress(*columns, console=console, transient=True) as progress:
        embedding = progress.add_task(f"{reader.first_stage} products", total=rows, detail="")
        building = progress.add_task("build index", total=len(INDEX_STAGES), detail="waiting")
        while True:
            ended = stop.wait(reader.poll_seconds)
            now = reader.snapshot()
            progress.update(
                embedding,
                completed=now.products,
                detail=f"{now.products_per_second:,.0f} products/s, shard {now.shards} of {shards}",
            )
            if now.shards >= shards:
                progress.stop_task(embedding)
                progress.update(
                    building, completed=INDEX_STAGES.index(now.stage), detail=f"{now.stage} ({now.finished_units} done)"
                )
            yield
            if ended:
                return


def _log_lines(reader: ProgressReader, shards: int, rows: int | None, stop: threading.Event) -> Iterator[None]:
    of_rows = "" if rows is None else f" of {rows:,}"
    last_stage = ""
    last_word = time.monotonic()
    while not stop.wait(reader.poll_seconds):
        now = reader.snapshot()
        if now.stage == reader.first_stage and not now.products:
            yield
            continue
        if now.stage != last_stage or (now.stage == reader.first_stage and time.monotonic() - last_word >= LOG_SECONDS):
            if now.stage == reader.first_stage:
                log.info(
                    "%s: %s%s products, %.0f products/s, shard %d of %d",
                    now.stage, f"{now.products:,}", of_rows, now.products_per_second, now.shards, shards,
                )  # fmt: skip
            else:
                log.info("%s", now.stage)
            last_stage, last_word = now.stage, time.monotonic()
        yield

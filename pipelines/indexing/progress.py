"""Progress shows how far a run is, and at its end what it did.

All of it is read from the run record, so it is the same on every runner.
"""

from __future__ import annotations

import logging
import shlex
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

from rich.console import Console
from rich.filesize import decimal
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from index_builder import storage
from index_builder.explain import explain_index, serving_shards
from index_builder.spec import IndexConfig, IndexSpec
from pipelines.config.stopping import at_stop
from pipelines.config.terminal import Verbatim, print_lines
from pipelines.indexing.publish_step import RunResult
from pipelines.indexing.run_record import INDEX_STAGES, STAGES, RunRecord

log = logging.getLogger(__name__)

POLL_SECONDS = 0.5
REMOTE_POLL_SECONDS = 5.0
"""Each look at an object store is a dozen requests, which cost time and money."""
LOG_SECONDS = 15.0
FirstStage = Literal["embed", "import"]

_STATUS = {
    "unchanged": "nothing changed: stays published",
    "held": "NOT published: a gate failed",
    "waiting": "NOT published: waits for approval",
}


def print_summary(result: RunResult, record: RunRecord, *, console: Console | None = None) -> None:
    """Prints the closing summary of a run to standard output."""
    print_lines(summary_lines(result, record), title="Summary", console=console)


def index_lines(config: IndexConfig, spec: IndexSpec, rows: int) -> list[tuple[str, str]]:
    """An index to be built, and why it is built so, as (what, how) pairs."""
    first, *others = explain_index(config, spec, rows)
    return [("index", first), *(("", line) for line in others)]


def summary_lines(result: RunResult, record: RunRecord) -> list[tuple[str, str]]:
    """The summary as (what, how much) pairs, in the order in which they are read.

    The rows are those folded, left out and rejected, and the products; these are embedded or carried over.
    """
    totals = result.totals
    plan = record.reports("plan").get("all", {})
    why = plan.get("nothing_carried_over", "")
    if totals.images_unchanged:
        why = f"{totals.images_unchanged:,} pictures not read again: they have not changed"
    lines = [
        ("rows in", f"{totals.rows_in:,}"),
        *([("folded by catalog.group_by", f"{totals.folded:,}")] if totals.folded else []),
        *([("left out by catalog.where", f"{totals.left_out:,}")] if totals.left_out else []),
        ("rejected", f"{totals.rejected:,}"),
        ("products", f"{totals.products:,}"),
        ("  embedded", f"{totals.embedded:,}"),
        ("  carried over", f"{totals.carried_over:,}" + (f" ({why})" if why else "")),
    ]
    if totals.vectors:
        lines.append(("vectors", f"{totals.vectors:,}, one an image, {totals.vectors_embedded:,} of them embedded"))
    if totals.degraded:
        lines.append(("  degraded", f"{totals.degraded:,} (indexed without the part that could not be used)"))
    for reason, count in totals.by_reason.items():
        example = result.examples.get(reason)
        lines.append((reason, f"{count:,}" + (f", such as {example}" if example else "")))
    if totals.by_reason:
        lines.append(("dead letters", Verbatim(result.rejected_uri)))
        if result.status != "unchanged":  # else those of this run are in no version
            command = f"python -m pipelines.versions rejected --index {shlex.quote(result.index_uri)}"
            lines.append(("", Verbatim(command)))
    if totals.texts_cut:
        read = f"{plan.get('text_limit') or 'fewer tokens'}, the end of longer texts is lost"
        lines.append(("texts cut", f"{totals.texts_cut:,}: the text tower reads {read}"))
    if loss := totals.precision_loss:
        found = f"{loss['mean']:.5f} on average, 1st percentile {loss['percentile_1']:.5f}"
        lines.append(("cosine to float32", f"{found}, of {loss['products']:,} products"))
    skipped = sum(report["skipped"] for stage in ("embed", "import") for report in record.reports(stage).values())
    lines.append(("catalog shards", f"{totals.shards:,}, of which {skipped:,} stood complete and were skipped"))
    lines += [("seconds", _seconds_by_stage(record))]
    lines += [("codec", report["codec"]) for report in record.reports("train").values() if "codec" in report]
    re_ranked = f", {result.refine_factor} candidates re-ranked for each" if result.refine_factor else ""
    files = f"{serving_shards(result.serving_shards)}, {decimal(result.index_bytes)}"
    measured = f"{result.recall_queries:,} {result.recall_over}, nprobe {result.nprobe}{re_ranked}"
    indexed = f"{totals.vectors:,} vectors" if totals.vectors else f"{totals.products:,} products"
    recall = f"{result.recall:.4f} against exact search ({measured}, {result.latency_ms:.2f} ms a query)"
    lines += [
        ("index", f"{indexed}, {result.factory}, {files}"),
        (f"recall {result.recall_k}@{result.recall_k}", recall),
        *([("", result.missed_target)] if result.missed_target else []),
        ("version", f"{result.version} ({_STATUS.get(result.status, result.status)})"),
        ("at", Verbatim(result.uri)),
    ]
    lines += [("gate failed", failed) for failed in result.failed_gates]
    lines += [("look at", finding) for finding in result.findings]
    if result.status == "waiting":
        command = f"python -m pipelines.versions approve {result.version} --index {shlex.quote(result.index_uri)}"
        lines.append(("to publish it", Verbatim(command)))
    return lines


def _seconds_by_stage(record: RunRecord) -> str:
    """Busy seconds of each stage; those of tasks that ran side by side add up."""
    seconds = {stage: [report.get("seconds", 0.0) for report in record.reports(stage).values()] for stage in STAGES}
    return ", ".join(f"{stage} {sum(each):.1f}" for stage, each in seconds.items() if each)


@dataclass(frozen=True, kw_only=True, slots=True)
class Snapshot:
    """A moment of a run.

    Attributes:
        stage: At work; `finished_tasks` of it are done.
        shards: Catalog shards that are finished.
        products: Read so far, those of unfinished shards included.
        products_per_second: Of this run's own work; shards found complete do not count.
    """

    stage: str
    shards: int
    products: int
    products_per_second: float
    finished_tasks: int


class ProgressReader:
    """Takes snapshots from the record of a run over so many catalog shards, which `first_stage` makes to vectors."""

    def __init__(self, record: RunRecord, shards: int, first_stage: FirstStage = "embed"):
        self._record, self._shards, self.first_stage = record, shards, first_stage
        self._started = time.monotonic()
        self._reports: dict[str, dict[str, dict[str, Any]]] = {}  # stage -> task -> report

    @property
    def poll_seconds(self) -> float:
        """Time between two looks."""
        return POLL_SECONDS if storage.is_local(self._record.uri) else REMOTE_POLL_SECONDS

    def snapshot(self) -> Snapshot:
        """How far the run is now."""
        finished = self._finished(self.first_stage)
        done = sum(report["rows_in"] for report in finished.values())
        own = sum(report["rows_in"] for report in finished.values() if not report["skipped"])
        unfinished = self._record.partial_reports(self.first_stage, finished)
        under_way = sum(report["products"] for report in unfinished.values())
        elapsed = time.monotonic() - self._started
        stage, tasks = str(self.first_stage), len(finished)
        if tasks >= self._shards:
            stage, tasks = self._index_stage()
        return Snapshot(
            stage=stage,
            shards=len(finished),
            products=done + under_way,
            products_per_second=(own + under_way) / elapsed if elapsed else 0.0,
            finished_tasks=tasks,
        )

    def _finished(self, stage: str) -> dict[str, dict[str, Any]]:
        """The reports of a stage; each is read once."""
        self._reports[stage] = self._record.reports(stage, self._reports.get(stage))
        return self._reports[stage]

    def _index_stage(self) -> tuple[str, int]:
        """The stage at work after the embedding, and its finished tasks.

        It is the last one with a report; a stage of one task ("all") is over with its report, so the next is at work.
        """
        stage, tasks = INDEX_STAGES[0], 0
        for number, later in enumerate(INDEX_STAGES):
            if reports := self._finished(later):
                over = "all" in reports and number + 1 < len(INDEX_STAGES)
                stage, tasks = (INDEX_STAGES[number + 1], 0) if over else (later, len(reports))
        return stage, tasks


@contextmanager
def show_progress(
    record: RunRecord,
    *,
    shards: int,
    rows: int | None,
    first_stage: FirstStage = "embed",
    console: Console | None = None,
) -> Iterator[None]:
    """Shows a run's progress for the length of the block, by default on standard error, live only in a terminal.

    Args:
        record: The run.
        shards, rows: Catalog shards and rows of the plan; None where the format does not say before reading.
        first_stage: What makes embedding shards of them.
        console: Where to draw.
    """
    console = console or Console(file=sys.stderr)
    reader = ProgressReader(record, shards, first_stage)
    stop = threading.Event()
    show = _draw if console.is_terminal else _log_lines
    thread = threading.Thread(target=show, args=(reader, shards, rows, console, stop), name="progress", daemon=True)
    thread.start()

    def end() -> None:
        stop.set()
        thread.join()

    try:
        with at_stop(end):  # else a terminal keeps the bars, and no cursor
            yield
    finally:
        end()


def _draw(reader: ProgressReader, shards: int, rows: int | None, console: Console, stop: threading.Event) -> None:
    counted = (SpinnerColumn(finished_text="[green]done[/]"), TextColumn("{task.description}"), BarColumn(bar_width=28))
    columns = (*counted, MofNCompleteColumn(), TextColumn("{task.fields[detail]}"), TimeElapsedColumn())
    with Progress(*columns, console=console, transient=True) as progress:
        embedding = progress.add_task(f"{reader.first_stage} products", total=rows, detail="")
        building = progress.add_task("build index", total=len(INDEX_STAGES), detail="waiting")
        ended = False
        while not ended:
            ended = stop.wait(reader.poll_seconds)
            now = reader.snapshot()
            speed = f"{now.products_per_second:,.0f} products/s, shard {now.shards} of {shards}"
            progress.update(embedding, completed=now.products, detail=speed)
            if now.shards >= shards:
                progress.stop_task(embedding)
                stage = f"{now.stage} ({now.finished_tasks} done)"
                progress.update(building, completed=INDEX_STAGES.index(now.stage), detail=stage)


def _log_lines(reader: ProgressReader, shards: int, rows: int | None, _: Console, stop: threading.Event) -> None:
    of_rows = "" if rows is None else f" of {rows:,}"
    last_stage, last_line = "", time.monotonic()
    while not stop.wait(reader.poll_seconds):
        now = reader.snapshot()
        if now.stage != reader.first_stage:
            if now.stage != last_stage:
                log.info("%s", now.stage)
        elif now.products and (now.stage != last_stage or time.monotonic() - last_line >= LOG_SECONDS):
            products = f"{now.products:,}{of_rows} products, {now.products_per_second:.0f} products/s"
            log.info("%s: %s, shard %d of %d", now.stage, products, now.shards, shards)
        else:
            continue
        last_stage, last_line = now.stage, time.monotonic()

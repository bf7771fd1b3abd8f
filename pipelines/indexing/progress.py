"""Progress shows how far a run is, and at its end what it did.

All of it is read from the run record, so it is the same on every runner.
"""

from __future__ import annotations

import logging
import shlex
import statistics
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import copy_context
from dataclasses import dataclass
from typing import Any, Literal

from rich import box
from rich.console import Console
from rich.filesize import decimal
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.table import Table

from index_builder import storage
from index_builder.errors import IndexBuilderError
from index_builder.explain import explain_index, serving_shards
from index_builder.meter import Counts
from index_builder.spec import IndexConfig, IndexSpec
from pipelines.config.stopping import at_stop
from pipelines.config.terminal import Verbatim, print_lines, table_console
from pipelines.indexing.metrics import STEPS
from pipelines.indexing.publish_step import RunResult
from pipelines.indexing.run_record import INDEX_STAGES, RunRecord

log = logging.getLogger(__name__)

POLL_SECONDS = 0.5
REMOTE_POLL_SECONDS = 5.0
"""Each look at an object store is a dozen requests, which cost time and money."""
LOG_SECONDS = 15.0
STRAGGLER_TIMES = 3.0
STRAGGLER_LEAST_SECONDS = 10.0
STRAGGLER_LEAST_TASKS = 3
"""Finished ones, to take a median of."""
SEVERAL_TASKS = ("sample", "refine", "add", "merge")
FirstStage = Literal["intake", "embed", "import"]

_STATUS = {
    "unchanged": "nothing changed: stays published",
    "held": "NOT published: a gate failed",
    "waiting": "NOT published: waits for approval",
    "superseded": "NOT published: another run has published a newer one meanwhile",
}


def _status_of(result: RunResult) -> str:
    if result.status == "held" and result.version == result.previous_version:
        return "published before, nothing changed; a gate that was added fails"
    return _STATUS.get(result.status, result.status)


def _on_channel(result: RunResult) -> str:
    return f" on the channel {result.channel}" if result.channel is not None and result.status == "published" else ""


def print_summary(
    result: RunResult, record: RunRecord, stages: Mapping[str, Counts], *, console: Console | None = None
) -> None:
    """Prints the closing summary of a run to standard output, and a table of what its stages counted."""
    print_lines(summary_lines(result, record, stages), title="Summary", console=console)
    if stages:
        (console or table_console(110)).print(stage_table(stages))


def stage_table(stages: Mapping[str, Counts]) -> Table:
    """What each stage did; seconds of tasks that ran side by side add up. Columns of nothing but zeros are left out."""
    columns: dict[str, Callable[[Counts], str]] = {
        "tasks": lambda counts: f"{counts['task_seconds']['count']:,}",
        "seconds": lambda counts: f"{counts['task_seconds']['sum']:,.1f}",
        "longest": lambda counts: f"{counts['task_seconds']['max']:,.1f}",
        "read": lambda counts: decimal(counts.get("read_bytes", 0)),
        "written": lambda counts: decimal(counts.get("written_bytes", 0)),
    }
    for name, heading in (("store_requests", "store requests"), ("image_requests", "image requests")):
        if any(name in counts for counts in stages.values()):
            columns[heading] = lambda counts, name=name: f"{counts.get(name, 0):,}"  # type: ignore[misc]
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("stage")
    for heading in columns:
        table.add_column(heading, justify="right")
    for stage, counts in stages.items():
        if "task_seconds" in counts:
            table.add_row(stage, *(cell(counts) for cell in columns.values()))
    return table


def index_lines(config: IndexConfig, spec: IndexSpec, rows: int) -> list[tuple[str, str]]:
    """An index to be built, and why it is built so, as (what, how) pairs."""
    first, *others = explain_index(config, spec, rows)
    return [("index", first), *(("", line) for line in others)]


def summary_lines(
    result: RunResult, record: RunRecord, stages: Mapping[str, Counts] | None = None
) -> list[tuple[str, str]]:
    """The summary as (what, how much) pairs, in the order in which they are read.

    The rows are those folded, left out and rejected, and the products; these are embedded or carried over. `stages` is
    what the record's stages counted; None: it is read.
    """
    stages = record.stage_counts() if stages is None else stages
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
    skipped = sum(stages.get(stage, {}).get("tasks_skipped", 0) for stage in ("embed", "import"))
    lines.append(("catalog shards", f"{totals.shards:,}, of which {skipped:,} stood complete and were skipped"))
    lines += _step_lines(stages.get("embed", {}))
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
        ("version", f"{result.version} ({_status_of(result)}{_on_channel(result)})"),
        ("at", Verbatim(result.uri)),
    ]
    lines += [("gate failed", failed) for failed in result.failed_gates]
    lines += [("look at", finding) for finding in result.findings]
    if result.status == "waiting":
        command = f"python -m pipelines.versions approve {result.version} --index {shlex.quote(result.index_uri)}"
        lines.append(("to publish it", Verbatim(command)))
    return lines


def _step_lines(counts: Counts) -> list[tuple[str, str]]:
    """Busy seconds of the steps of embedding, which run side by side, so that their sum is not the stage's."""
    named = {step: name for step, name in STEPS.items() if step != "queue" and name in counts}
    busy = [f"{'towers' if step == 'embed' else step} {counts[name]:.1f}" for step, name in named.items()]
    if not busy or "batch_products" not in counts:
        return []
    batches = counts["batch_products"]
    of_size = f"{batches['count']:,} batches of {batches['sum'] / batches['count']:,.0f} products"
    waited = f"the towers waited {counts['queue_seconds']:.1f}"
    return [("embed seconds", f"{', '.join(busy)}; {waited} ({of_size})")]


@dataclass(frozen=True, kw_only=True, slots=True)
class Straggler:
    """A task that takes much longer than the others of its stage; `host` is where it was last heard of."""

    unit: str
    host: str
    seconds: float
    median_seconds: float

    def __str__(self) -> str:
        others = f"the others took {duration(self.median_seconds)} (median)"
        return f"{self.unit} on {self.host} has run for {duration(self.seconds)}, {others}"


@dataclass(frozen=True, kw_only=True, slots=True)
class Snapshot:
    """A moment of a run.

    Attributes:
        stage: At work; `finished_tasks` of its `tasks` are done (None: nobody knows how many there are).
        shards: Tasks of the first stage that are finished.
        products: Read so far, those of unfinished shards included.
        products_per_second: Of this run's own work since it began; shards found complete do not count.
        seconds_left: Of the stage, at the rate measured so far; None where nothing is measured yet.
        running_seconds: For which the oldest unfinished task has run; 0 where none is known of.
        stragglers: Tasks that run more than `STRAGGLER_TIMES` as long as the median of the finished ones took.
    """

    stage: str
    shards: int
    products: int
    products_per_second: float
    finished_tasks: int
    tasks: int | None = None
    seconds_left: float | None = None
    running_seconds: float = 0.0
    stragglers: tuple[Straggler, ...] = ()


class ProgressReader:
    """Takes snapshots from the record of a run over so many catalog shards.

    Args:
        record: The run's, in `work.uri`: whatever runner the workers belong to, they write it there.
        shards, rows: Tasks of the first stage and the rows they read; None where nobody knows before reading.
        first_stage: What is done with the shards.
        later_stages: What follows, in order.
    """

    def __init__(
        self,
        record: RunRecord,
        shards: int,
        first_stage: FirstStage = "embed",
        *,
        rows: int | None = None,
        later_stages: Sequence[str] = INDEX_STAGES,
    ):
        self._record, self.shards, self.rows = record, shards, rows
        self.first_stage, self.later_stages = first_stage, later_stages
        self._reports: dict[str, dict[str, dict[str, Any]]] = {}  # stage -> task -> report
        self._expected: dict[str, int] = {}
        self._began: dict[str, float] = {}  # stage -> when its work began, by this process's monotonic clock
        self._heard: dict[tuple[str, str], tuple[float, float]] = {}  # task -> its seconds, and when it said so
        self._look_seconds = 0.0

    @property
    def poll_seconds(self) -> float:
        """Time between two looks; a look at tens of thousands of reports takes at most a tenth of it."""
        least = POLL_SECONDS if storage.is_local(self._record.uri) else REMOTE_POLL_SECONDS
        return max(least, 10 * self._look_seconds)

    def snapshot(self) -> Snapshot:
        """How far the run is now."""
        looked = time.monotonic()
        stage, shards = str(self.first_stage), len(self._finished(self.first_stage))
        if shards >= self.shards and self.later_stages:
            stage = self._later_stage()
        now = self._of_stage(stage, shards)
        self._look_seconds = time.monotonic() - looked
        return now

    def _of_stage(self, stage: str, shards: int) -> Snapshot:
        is_first, finished = stage == self.first_stage, self._reports[stage]
        own = [report for report in finished.values() if not report.get("skipped")]
        partial = self._record.partial_reports(stage, finished)
        running = {unit: self._running_seconds(stage, unit, report) for unit, report in partial.items()}
        took = [report.get("seconds", 0.0) for report in own]
        if (own or partial) and stage not in self._began:
            self._began[stage] = time.monotonic() - max([*took, *running.values()])
        elapsed = time.monotonic() - self._began.get(stage, time.monotonic())

        of_first = self._reports[self.first_stage].values()
        under_way = sum(report.get("products", 0) for report in partial.values()) if is_first else 0
        own_products = under_way + sum(report.get("rows_in", 0) for report in of_first if not report.get("skipped"))
        products = under_way + sum(report.get("rows_in", 0) for report in of_first)
        tasks = self.shards if is_first else self._tasks_of(stage)
        left = None
        if is_first and self.rows is not None and own_products and elapsed:
            left = max(0, self.rows - products) * elapsed / own_products
        elif tasks is not None and own and elapsed:
            left = (tasks - len(finished)) * elapsed / len(own)
        return Snapshot(
            stage=stage,
            shards=shards,
            products=products,
            products_per_second=own_products / elapsed if elapsed and is_first else 0.0,
            finished_tasks=len(finished),
            tasks=tasks,
            seconds_left=left,
            running_seconds=max(running.values(), default=0.0),
            stragglers=_stragglers(took, running, partial),
        )

    def _running_seconds(self, stage: str, unit: str, report: Mapping[str, Any]) -> float:
        """For how long a task has run: what it said, and the time since. A worker that hangs says nothing any more."""
        said, now = report.get("seconds", 0.0), time.monotonic()
        if self._heard.get((stage, unit), (None,))[0] != said:
            self._heard[stage, unit] = (said, now)
        return said + now - self._heard[stage, unit][1]

    def _tasks_of(self, stage: str) -> int | None:
        if stage not in SEVERAL_TASKS:
            return 1
        if stage not in self._expected:
            self._expected = self._record.expected()
        return self._expected.get(stage)

    def _finished(self, stage: str) -> dict[str, dict[str, Any]]:
        """The reports of a stage; each is read once, and a stage that is over is not looked at again."""
        known = self._reports.setdefault(stage, {})
        if not ("all" in known or (stage == self.first_stage and len(known) >= self.shards)):
            self._reports[stage] = self._record.reports(stage, known)
        return self._reports[stage]

    def _later_stage(self) -> str:
        """The stage at work after the first.

        It is the last one with a report; a stage of one task ("all") is over with its report, so the next is at work.
        """
        stage = self.later_stages[0]
        for number, later in enumerate(self.later_stages):
            if reports := self._finished(later):
                over = "all" in reports and number + 1 < len(self.later_stages)
                stage = self.later_stages[number + 1] if over else later
        return stage


def _stragglers(
    took: Sequence[float], running: Mapping[str, float], partial: Mapping[str, Mapping[str, Any]]
) -> tuple[Straggler, ...]:
    if len(took) < STRAGGLER_LEAST_TASKS:
        return ()
    median = statistics.median(took)
    limit = max(STRAGGLER_LEAST_SECONDS, STRAGGLER_TIMES * median)
    return tuple(
        Straggler(unit=unit, host=partial[unit].get("host", "?"), seconds=seconds, median_seconds=median)
        for unit, seconds in sorted(running.items())
        if seconds > limit
    )


def duration(seconds: float) -> str:
    """Seconds for people: `8 s`, `3 min`, `2.4 h`."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def progress_line(now: Snapshot, reader: ProgressReader) -> str:
    """A snapshot in words, for a log."""
    read = ""
    if now.stage == reader.first_stage and (now.products or reader.rows):
        read = f"{now.products:,}" + ("" if reader.rows is None else f" of {reader.rows:,}") + " products, "
    details = read + progress_details(now, reader)
    return f"{now.stage}: {details}" if details else now.stage


def progress_details(now: Snapshot, reader: ProgressReader) -> str:
    """The same without the products: a bar has these."""
    said = []
    if now.stage == reader.first_stage:
        said += [f"{now.products_per_second:,.0f} products/s"] if now.products else []
        unit = "file" if now.stage == "intake" else "shard"
        said += [f"{unit} {now.finished_tasks:,} of {reader.shards:,}"]
    elif now.tasks != 1:
        said += [f"{now.finished_tasks:,}" + (" done" if now.tasks is None else f" of {now.tasks:,} done")]
    if now.seconds_left is not None and now.seconds_left >= 1:
        said += [f"{duration(now.seconds_left)} left"]
    elif now.running_seconds:
        said += [f"{duration(now.running_seconds)} so far"]
    return ", ".join(said)


@contextmanager
def show_progress(
    record: RunRecord,
    *,
    shards: int,
    rows: int | None,
    first_stage: FirstStage = "embed",
    later_stages: Sequence[str] = INDEX_STAGES,
    console: Console | None = None,
) -> Iterator[None]:
    """Shows a run's progress for the length of the block, by default on standard error, live only in a terminal.

    Args:
        record, shards, rows, first_stage, later_stages: As `ProgressReader`.
        console: Where to draw.
    """
    console = console or Console(file=sys.stderr)
    reader = ProgressReader(record, shards, first_stage, rows=rows, later_stages=later_stages)
    stop = threading.Event()
    show = _draw if console.is_terminal else _log_lines
    context = copy_context()  # so that its log lines name the run
    thread = threading.Thread(target=context.run, args=(show, reader, console, stop), name="progress", daemon=True)
    thread.start()

    def end() -> None:
        stop.set()
        thread.join()

    try:
        with at_stop(end):  # else a terminal keeps the bars, and no cursor
            yield
    finally:
        end()


def _snapshots(reader: ProgressReader, stop: threading.Event) -> Iterator[Snapshot]:
    """A snapshot every now and then, and a last one at the end; a store that does not answer costs a warning."""
    ended = unread = False
    while not ended:
        ended = stop.wait(reader.poll_seconds)
        try:
            now = reader.snapshot()
        except (IndexBuilderError, OSError) as error:
            if not unread:
                log.warning("how far the run is cannot be read, it goes on: %s", error)
            unread = True
            continue
        unread = False
        yield now


def _draw(reader: ProgressReader, console: Console, stop: threading.Event) -> None:
    counted = (SpinnerColumn(finished_text="[green]done[/]"), TextColumn("{task.description}"), BarColumn(bar_width=28))
    columns = (*counted, MofNCompleteColumn(), TextColumn("{task.fields[detail]}"), TimeElapsedColumn())
    with Progress(*columns, console=console, transient=True) as progress:
        by_rows = reader.rows is not None
        total = reader.rows if by_rows else reader.shards
        first = progress.add_task(f"{reader.first_stage} {'products' if by_rows else 'shards'}", total=total, detail="")
        later = progress.add_task("build index", total=len(reader.later_stages), detail="waiting")
        progress.update(later, visible=bool(reader.later_stages))
        for now in _snapshots(reader, stop):
            slow = f"; slow: {', '.join(each.unit for each in now.stragglers[:3])}" if now.stragglers else ""
            is_first = now.stage == reader.first_stage
            progress.update(first, completed=now.products if by_rows else now.shards)
            if is_first:
                progress.update(first, detail=progress_details(now, reader) + slow)
            else:
                progress.stop_task(first)
                completed = reader.later_stages.index(now.stage)
                progress.update(later, completed=completed, detail=progress_line(now, reader) + slow)


def _log_lines(reader: ProgressReader, _: Console, stop: threading.Event) -> None:
    last_stage, last_line = "", time.monotonic()
    told: set[tuple[str, str]] = set()
    for now in _snapshots(reader, stop):
        if stop.is_set():
            return
        for straggler in now.stragglers:
            if (now.stage, straggler.unit) not in told:
                told.add((now.stage, straggler.unit))
                log.warning("%s: %s", now.stage, straggler)
        is_news = now.stage != last_stage and (now.products or now.finished_tasks or now.stage != reader.first_stage)
        if is_news or time.monotonic() - last_line >= LOG_SECONDS:
            log.info("%s", progress_line(now, reader))
            last_stage, last_line = now.stage, time.monotonic()

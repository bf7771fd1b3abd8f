"""A run's record holds small files that any worker on any machine adds to, and that are read while Beam blocks.

Under `<work uri>/runs/<run id>/` each finished task (a catalog shard, an index shard, a merge) writes one JSON file

    <stage>/<unit>.json            when it began, its seconds, host, counts (`metrics`) and facts about it
    <stage>-partial/<unit>.json    while it runs, once it has for a second: its seconds so far
    expected/<stage>.json          how many tasks a stage has, where it has more than one
    failures/<stage>-<unit>.json   an error, with its traceback

They are reports for people: no result depends on them.
"""

from __future__ import annotations

import logging
import socket
import threading
import time
import traceback
from collections.abc import Callable, Collection, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from time import perf_counter
from types import MappingProxyType
from typing import Any

from index_builder import storage
from index_builder.errors import IndexBuilderError
from index_builder.meter import METER, Counts
from pipelines.config.log_lines import log_context
from pipelines.indexing.cpu_time import cpu_timed
from pipelines.indexing.metrics import add_up, in_short

log = logging.getLogger(__name__)

PARTIAL_SECONDS = 1.0
REMOTE_PARTIAL_SECONDS = 10.0
"""Between two reports of a task that runs; each is a request to the store."""
READERS = 32

INDEX_STAGES = ("number", "sample", "refine", "train", "add", "merge", "verify", "report", "publish")
STAGES = ("intake", "plan", "load", "embed", "import", *INDEX_STAGES)
"""The stages of a job, in order; an encoder is loaded and products are embedded, or their vectors imported."""


@dataclass(frozen=True, kw_only=True, slots=True)
class RunRecord:
    """Names a run's folder, `<work uri>/runs/<run id>`; travels to the workers.

    Attributes:
        counted: Is told the stage and the counts of each task that finishes, on the worker: Beam's counters hear of
            them so.
    """

    uri: str
    counted: Callable[[str, Counts], None] | None = None

    @classmethod
    def begin(
        cls, work_uri: str, now: datetime | None = None, counted: Callable[[str, Counts], None] | None = None
    ) -> RunRecord:
        """The record of a run that begins; its id is UTC to the microsecond."""
        name = (now or datetime.now(UTC)).strftime("%Y%m%dT%H%M%S.%fZ")
        return cls(uri=storage.join(work_uri, "runs", name), counted=counted)

    @property
    def name(self) -> str:
        """The run's id."""
        return self.uri.rstrip("/").rsplit("/", 1)[-1]

    def report(self, stage: str, unit: str, **facts: Any) -> None:
        """Notes that a task of a stage is finished, with facts about it."""
        storage.write_json_atomic(storage.join(self.uri, stage, f"{unit}.json"), facts)

    def report_partial(self, stage: str, unit: str, **facts: Any) -> None:
        """Notes how far an unfinished task is; its next report replaces this one."""
        storage.write_json_atomic(storage.join(self.uri, f"{stage}-partial", f"{unit}.json"), facts)

    def expect(self, stage: str, tasks: int) -> None:
        """Notes how many tasks a stage has."""
        storage.write_json_atomic(storage.join(self.uri, "expected", f"{stage}.json"), {"tasks": tasks})

    def expected(self) -> dict[str, int]:
        """Tasks by stage, as far as they are known."""
        return {stage: facts["tasks"] for stage, facts in self._read_all("expected").items()}

    def finish(self, stage: str, unit: str, *, began: float, seconds: float, **facts: Any) -> Counts:
        """Reports a finished task with what this process counted since its last report; gives these counts in short.

        Args:
            began: When, as seconds since 1970.
            facts: What the report says besides; `counts` among them go with those that were counted.
        """
        counts = METER.take() | facts.pop("counts", {}) | {"task_seconds": [round(seconds, 4)]}
        short = in_short(counts)
        self.report(stage, unit, began=began, seconds=seconds, host=socket.gethostname(), counts=short, **facts)
        if self.counted is not None:
            self.counted(stage, counts)
        return short

    @contextmanager
    def timed(self, stage: str, unit: str = "all") -> Iterator[dict[str, Any]]:
        """Times a task of a stage and reports it; facts put into the yielded dict are reported with it.

        While it runs its seconds so far are reported, and its fact `products`; once it is over `seconds` are how long
        it took, `cpu_seconds` what the process used on it (see `cpu_time`), and `counts` what `finish` gave. An
        exception is written down before it goes on: a distributed runner hands the submitting process only a string.
        """
        facts: dict[str, Any] = {}
        began, started = time.time(), perf_counter()
        context = log_context(run=self.name, stage=stage, shard=unit)
        with context, self._signs_of_life(stage, unit, facts), cpu_timed() as cpu_seconds:
            try:
                yield facts
            except Exception as error:
                self.report_failure(stage, unit, error)
                raise
            facts["cpu_seconds"] = cpu_seconds()
        facts["counts"] = self.finish(stage, unit, began=began, seconds=perf_counter() - started, **facts)

    @contextmanager
    def _signs_of_life(self, stage: str, unit: str, facts: Mapping[str, Any]) -> Iterator[None]:
        """Reports for the length of the block that the task runs, from a thread of its own."""
        started, over = perf_counter(), threading.Event()
        pause = PARTIAL_SECONDS if storage.is_local(self.uri) else REMOTE_PARTIAL_SECONDS

        def report() -> None:
            while not over.wait(pause):
                so_far = {"seconds": perf_counter() - started, "host": socket.gethostname()}
                try:
                    self.report_partial(stage, unit, **so_far, products=facts.get("products", 0))
                except (IndexBuilderError, OSError) as error:  # the task itself may well succeed
                    log.debug("stage %s, unit %s: how far it is could not be noted: %s", stage, unit, error)

        thread = threading.Thread(target=report, name=f"report-{stage}-{unit}", daemon=True)
        thread.start()
        try:
            yield
        finally:
            over.set()
            thread.join()

    def report_failure(self, stage: str, unit: str, error: Exception) -> None:
        """Writes an error down for the summary: its kind, its message, its traceback.

        Where that cannot be written either, a line in the log says so, and the error itself goes on.
        """
        facts = {"stage": stage, "unit": unit, "kind": type(error).__name__, "message": str(error), "at": time.time()}
        facts |= {"traceback": "".join(traceback.format_exception(error))}
        try:
            storage.write_json_atomic(storage.join(self.uri, "failures", f"{stage}-{unit}.json"), facts)
        except IndexBuilderError as failure:
            log.warning("stage %s failed on unit %s, which could not be noted: %s", stage, unit, failure)

    def reports(self, stage: str, known: Mapping[str, dict[str, Any]] | None = None) -> dict[str, dict[str, Any]]:
        """The reports of a stage by task; those read before never change, and are not read again."""
        return self._read_all(stage, known or {})

    def partial_reports(self, stage: str, finished: Collection[str]) -> dict[str, dict[str, Any]]:
        """How far those tasks of a stage are that are not finished yet."""
        return self._read_all(f"{stage}-partial", without=finished)

    def stage_counts(self, stages: Collection[str] = STAGES) -> dict[str, Counts]:
        """What the finished tasks of each stage counted, in short; stages of which none finished are absent."""
        found = {stage: [report.get("counts", {}) for report in self.reports(stage).values()] for stage in stages}
        return {stage: add_up(counts) for stage, counts in found.items() if counts}

    def failures(self) -> list[dict[str, Any]]:
        """Errors that workers wrote down, the earliest first; none where they cannot be read."""
        try:
            found = list(self._read_all("failures").values())
        except IndexBuilderError as failure:
            log.warning("what workers wrote down cannot be read: %s", failure)
            return []
        return sorted(found, key=lambda facts: facts.get("at", 0.0))

    def _read_all(
        self, folder: str, known: Mapping[str, dict[str, Any]] = MappingProxyType({}), without: Collection[str] = ()
    ) -> dict[str, dict[str, Any]]:
        uris = [uri for uri in storage.list_files(storage.join(self.uri, folder)) if uri.endswith(".json")]
        units = {uri.rsplit("/", 1)[-1].removesuffix(".json"): uri for uri in uris}
        units = {unit: uri for unit, uri in units.items() if unit not in without}
        new = [unit for unit in units if not known.get(unit)]
        if storage.is_local(self.uri) or len(new) < 2:
            read = {unit: storage.read_json(units[unit]) for unit in new}
        else:
            with ThreadPoolExecutor(min(READERS, len(new)), thread_name_prefix="read-reports") as pool:
                read = dict(zip(new, pool.map(lambda unit: storage.read_json(units[unit]), new), strict=True))
        return {unit: known.get(unit) or read[unit] for unit in units}

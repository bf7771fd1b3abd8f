"""A run's record holds small files that any worker on any machine adds to, and that are read while Beam blocks.

Each finished task (a catalog shard, an index shard, a merge) writes one JSON file under
`<work uri>/runs/<run id>/<stage>/`. They are reports for people: no result depends on them.
"""

from __future__ import annotations

import logging
import time
import traceback
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from time import perf_counter
from types import MappingProxyType
from typing import Any

from index_builder import storage
from index_builder.errors import IndexBuilderError
from pipelines.indexing.cpu_time import cpu_timed

log = logging.getLogger(__name__)

INDEX_STAGES = ("number", "sample", "refine", "train", "add", "merge", "verify", "publish")
STAGES = ("plan", "load", "embed", "import", *INDEX_STAGES)
"""The stages of a job, in order; an encoder is loaded and products are embedded, or their vectors imported."""


@dataclass(frozen=True, kw_only=True, slots=True)
class RunRecord:
    """Names a run's folder, `<work uri>/runs/<run id>`; travels to the workers."""

    uri: str

    @classmethod
    def begin(cls, work_uri: str, now: datetime | None = None) -> RunRecord:
        """The record of a run that begins; its id is UTC to the microsecond."""
        name = (now or datetime.now(UTC)).strftime("%Y%m%dT%H%M%S.%fZ")
        return cls(uri=storage.join(work_uri, "runs", name))

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

    @contextmanager
    def timed(self, stage: str, unit: str = "all") -> Iterator[dict[str, Any]]:
        """Times a task of a stage and reports it; facts put into the yielded dict are reported with it.

        `seconds` is how long it took, `cpu_seconds` what the process used on it (see `cpu_time`).

        An exception is written down before it goes on: a distributed runner hands the submitting process only a string.
        """
        facts: dict[str, Any] = {}
        started = perf_counter()
        with cpu_timed() as cpu_seconds:
            try:
                yield facts
            except Exception as error:
                self.report_failure(stage, unit, error)
                raise
            self.report(stage, unit, seconds=perf_counter() - started, cpu_seconds=cpu_seconds(), **facts)

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
        return {unit: known.get(unit) or storage.read_json(uri) for unit, uri in units.items() if unit not in without}

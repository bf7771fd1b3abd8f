"""Rates say how fast workers really are: what the last runs on a work folder took, over what was guessed of them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from index_builder import storage
from index_builder.errors import SpecError, StorageError
from index_builder.spec import IndexSpec
from pipelines.config.job import PlanConfig
from pipelines.indexing.publish_step import RESULT_FILE
from pipelines.indexing.run_record import RunRecord
from pipelines.indexing.shard_files import read_finished_run
from pipelines.indexing.stage_costs import StageCost, Workload, stage_costs

LOCAL_REQUEST_MS, REMOTE_REQUEST_MS = 0.0, 30.0
SHARED_REQUESTS = 16
"""Requests that a worker has under way at once, where a step asks for many (`plan`, `embed`); others wait for each."""
_BEFORE_INDEX = ("start", "plan", "load", "embed", "carry")


@dataclass(frozen=True, kw_only=True, slots=True)
class Rate:
    """How a stage's cost differs from the first guess.

    Attributes:
        factor: CPU seconds that were measured over those guessed of that run.
        busy: How long its tasks took over their CPU seconds: less than 1 on several cores, more where they waited.
        run: Where that was measured.
    """

    factor: float
    busy: float
    run: str


@dataclass(frozen=True, kw_only=True, slots=True)
class MeasuredRun:
    """What a run's record says of its work; `reports` are those of each stage, of tasks that it did itself."""

    name: str
    reports: Mapping[str, list[dict[str, Any]]]
    result: Mapping[str, Any]

    @classmethod
    def read(cls, record: RunRecord) -> MeasuredRun | None:
        """None where the run did not measure CPU seconds."""
        stages = ("plan", "load", "embed", "import", "number", "sample", "train", "refine", "add", "merge", "verify")
        found = {stage: list(record.reports(stage).values()) for stage in (*stages, "publish")}
        own = {
            stage: [each for each in reports if "cpu_seconds" in each and not each.get("skipped")]
            for stage, reports in found.items()
        }
        try:
            result = storage.read_json(storage.join(record.uri, RESULT_FILE))
        except (FileNotFoundError, StorageError):
            result = {}
        return cls(name=record.name, reports=own, result=result) if own["plan"] else None

    def made(self) -> tuple[int, int]:
        """Products that went through the towers, and those that were carried over."""
        reports = self.reports["embed"]
        embedded = sum(report["embedded"] for report in reports)
        return embedded, sum(report["products"] for report in reports) - embedded

    def workload(self, like: Workload) -> Workload | None:
        """What this run had to do, with a catalog and an encoder like those of `like`; None where it built nothing."""
        plan, totals = self.reports["plan"][0], self.result.get("totals")
        if totals is None:
            return None
        try:
            spec = IndexSpec.parse(self.result["factory"], like.spec.dim)
        except SpecError:  # another encoder's
            return None
        embedded, carried = self.made()
        train = self.reports["train"][0] if self.reports["train"] else {}
        return replace(
            like,
            rows=totals["rows_in"],
            products=totals["products"],
            embedded=embedded,
            carried=carried,
            index_rows=totals["vectors"] or totals["products"],
            shards=plan["shards"],
            open_shards=max(1, plan["shards"] - plan["shards_complete"]),
            spec=spec,
            refine=like.refine if self.result.get("refine_factor") else "none",
            trains=not train.get("kept", False),
            published=0 if plan["nothing_carried_over"] else totals["products"],
        )


def measured_rates(work_uri: str, like: Workload) -> dict[str, Rate]:
    """The latest rate of each stage among the runs up to the last finished one.

    Index stages count only of a run that made embedding shards: one over the same shards finds its index built.
    """
    finished = read_finished_run(work_uri)
    names = storage.list_folders(storage.join(work_uri, "runs")) if finished is not None else []
    found: dict[str, Rate] = {}
    for name in sorted((name for name in names if finished and name <= finished.name), reverse=True):
        run = MeasuredRun.read(RunRecord(uri=storage.join(work_uri, "runs", name)))
        if run is not None:
            found = _rates_of(run, like) | found
    return found


def _rates_of(run: MeasuredRun, like: Workload) -> dict[str, Rate]:
    work, (embedded, carried) = run.workload(like), run.made()
    built = work is not None and run.reports["plan"][0]["shards_complete"] < run.reports["plan"][0]["shards"]
    work = work or replace(like, embedded=embedded, carried=carried, open_shards=max(1, len(run.reports["embed"])))
    guessed = {cost.stage: cost for cost in stage_costs(work, max(1, len(run.reports["load"])))}
    spent = {stage: _spent(reports) for stage, reports in run.reports.items()}
    spent["start"] = (start := run.reports["plan"][0].get("start_cpu_seconds", 0.0)), start
    if embedded and carried:  # what is carried over is told apart where whole shards were
        alone = [report for report in run.reports["embed"] if not report["embedded"]]
        each = _spent(alone)[0] / max(1, sum(report["products"] for report in alone))
        taken = each * carried if alone else guessed["carry"].cpu_seconds
        cpu, busy = spent["embed"]
        taken = min(taken, 0.9 * cpu)
        if cpu:
            spent |= {"carry": (taken, busy * taken / cpu), "embed": (cpu - taken, busy * (cpu - taken) / cpu)}
    elif carried:
        spent["carry"] = spent.pop("embed")
    return {
        stage: Rate(factor=cpu / guessed[stage].cpu_seconds, busy=busy / cpu, run=run.name)
        for stage, (cpu, busy) in spent.items()
        if stage in guessed and cpu > 0 and guessed[stage].cpu_seconds > 0 and (built or stage in _BEFORE_INDEX)
    }


def _spent(reports: list[dict[str, Any]]) -> tuple[float, float]:
    """CPU seconds of some tasks, and how long they took."""
    return sum(each["cpu_seconds"] for each in reports), sum(each["seconds"] for each in reports)


def rated_costs(work: Workload, config: PlanConfig, rates: Mapping[str, Rate], work_uri: str) -> tuple[StageCost, ...]:
    """The stages at given rates, else at measured ones, else at first guesses; `source` says which."""
    usual = LOCAL_REQUEST_MS if storage.is_local(work_uri) else REMOTE_REQUEST_MS
    latency = (usual if config.request_ms is None else config.request_ms) / 1000
    found = []
    for cost in stage_costs(work, config.workers):
        rate = rates.get(cost.stage)
        if cost.stage in config.rates:
            seconds = config.rates[cost.stage] * cost.units
            cost = replace(cost, cpu_seconds=seconds, busy_seconds=seconds, source="given")
        elif rate is not None:
            seconds = cost.cpu_seconds * rate.factor
            cost = replace(cost, cpu_seconds=seconds, busy_seconds=seconds * rate.busy, source="measured")
        if cost.source != "measured":  # what was measured waited for its store already
            at_once = SHARED_REQUESTS if cost.stage in ("plan", "embed", "carry") else 1
            cost = replace(cost, busy_seconds=cost.busy_seconds + cost.requests * latency / at_once)
        found.append(cost)
    return tuple(found)

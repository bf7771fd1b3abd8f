"""The transforms wire the steps into a Beam pipeline: thin DoFns over the steps' functions.

Elements are descriptors: no image and no vector crosses the boundary of a stage.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, suppress
from dataclasses import dataclass
from typing import Any, Literal

import apache_beam as beam
from apache_beam.pvalue import AsIter, AsSingleton, TaggedOutput
from apache_beam.utils import shared

from encoders.config import EncoderConfig
from index_builder import storage
from index_builder.errors import IndexBuilderError
from index_builder.manifest import EncoderSummary
from index_builder.meter import Counts
from pipelines.config.gpu import GpuRequest
from pipelines.indexing import build_steps as steps
from pipelines.indexing import numbering_steps as numbering
from pipelines.indexing.beam_run import BeamOptions, beam_run, counted_by_runner, has_workers
from pipelines.indexing.build_steps import BuildPlan, RunContext
from pipelines.indexing.metrics import STEPS, add_up
from pipelines.indexing.previous_lookups import PreviousLookups
from pipelines.indexing.product_groups import ShardGroups
from pipelines.indexing.progress import FirstStage, show_progress
from pipelines.indexing.publish_step import (
    RunResult,
    begin_publishing,
    copy_tasks,
    copy_to_version,
    inspect_version,
    publish_build,
)
from pipelines.indexing.run_record import RunRecord
from pipelines.indexing.shard_files import ShardSummary, ShardTask
from pipelines.indexing.shared_maker import SharedMaker
from pipelines.indexing.task_list import TaskList, TaskRange
from pipelines.indexing.worker_probe import WorkerFacts, WorkerProbe, describe_workers

TASKS_FILE = "tasks.pickle"
"""In the run's record, while it runs."""
QUESTIONS = 256
"""How often the workers are asked together, dealt out at random: of 16 workers one is missed in 1 of 900,000 runs."""
COUNTS = "counts"
"""Name of the output of a transform that has the counts of its tasks."""

log = logging.getLogger(__name__)

Stage = Literal["embed", "import"]
MakeShard = Callable[[ShardTask, Callable[[int], None]], ShardSummary]
"""Writes a task's embedding shard, reports the products written so far after each batch, and gives its summary."""
Once = Callable[[Callable[[], Any]], Any]
"""Gives what its argument makes, made once a worker process."""
ShardMaker = Callable[[Once], AbstractContextManager[MakeShard]]
"""Pickled to the workers, and called there on the first shard that needs work: it loads what the work needs."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ShardPlan:
    """The embedding shards of a run.

    Attributes:
        tasks: The shards in plan order.
        maker: Makes those that are not complete.
        complete: How many of them are, as far as a listing says.
        previous: The lookups that the maker opens, if any.
        rows: Rows to read; None where the catalog does not say before reading.
        encoder: What makes the vectors, or made them.
        query_encoder: Whose query side is published with the index; None for what stands on the work URI, if anything.
        catalog_uri: What the vectors are of, for people.
        catalog_files: What the tasks read; None for vectors, which need no intake copies.
        nothing_carried_over: Why nothing is carried over, in words; empty where something is.
        folded: Rows of the catalog that went into another's, beside `rows`.
        vectors_of_row: The most that a row may give.
        group_field: The column by which searches group their answers, if any.
        text_limit: How much of a text is read, and what says so, in words; empty where nothing is embedded.
        shard_rows: Rows that the shards were cut to; 0 for vectors, which were cut before.
        gpu: What the workers that make shards need; None where any worker will do.
    """

    stage: Stage
    tasks: tuple[ShardTask, ...]
    maker: ShardMaker
    complete: int
    previous: PreviousLookups | None = None
    rows: int | None
    encoder: EncoderSummary
    query_encoder: EncoderConfig | None
    catalog_uri: str
    catalog_files: frozenset[str] | None = None
    nothing_carried_over: str = ""
    folded: int = 0
    vectors_of_row: int = 1
    group_field: str | None = None
    text_limit: str = ""
    shard_rows: int = 0
    gpu: GpuRequest | None = None

    @property
    def keys(self) -> list[str]:
        """Of the embedding shards, in plan order."""
        return [task.files.key for task in self.tasks]


def run_on_workers(
    stage: FirstStage,
    elements: Sequence[Any],
    deed: Callable[[Any], None],
    record: RunRecord,
    work_uri: str,
    options: BeamOptions,
) -> None:
    """A pipeline of its own that does something with each element, spread over the workers, and shows how far it is.

    Raises as `beam_run`.
    """

    def timed(numbered: tuple[int, Any]) -> None:
        number, element = numbered
        with record.timed(stage, f"{number:06d}"):
            deed(element)

    probe = WorkerProbe.begin(record, work_uri) if has_workers(options) else None
    progress = show_progress(record, shards=len(elements), rows=None, first_stage=stage, later_stages=())
    with progress, beam_run(options, record) as root:
        numbered = root | beam.Create(list(enumerate(elements)), reshuffle=False)
        _ = after_probe(numbered, probe) | beam.Reshuffle() | beam.Map(timed)


def ask_workers(
    record: RunRecord, work_uri: str, encoder: EncoderConfig, options: BeamOptions, gpu: GpuRequest | None
) -> list[WorkerFacts]:
    """What the workers are that will run an encoder's towers, by a pipeline of its own; raises as `beam_run`."""
    probe = WorkerProbe.begin(record, work_uri, encoder)
    with beam_run(options, record) as root:
        after_probe(root | "Asked" >> beam.Create([None], reshuffle=False), probe, gpu)
    return probe.answers()


def run_pipeline(shards: ShardPlan, run: RunContext, options: BeamOptions) -> dict[str, Counts]:
    """Makes the embedding shards of a run, builds its index and publishes it; raises as `beam_run`.

    Returns:
        What the runner counted, by stage.
    """
    encoder = shards.query_encoder if shards.stage == "embed" else None
    asked = has_workers(options)
    probe = WorkerProbe.begin(run.record, run.work_uri, encoder, shards.encoder.fingerprint) if asked else None
    tasks = TaskList.write(storage.join(run.record.uri, TASKS_FILE), shards.tasks)
    with beam_run(options, run.record) as root:
        summaries, counts = make_shards(root, tasks, shards, run, probe)
        groups = ShardGroups.of_plan(shards.tasks)
        build_and_publish(summaries, run, groups, shards.stage, counts)
    with suppress(IndexBuilderError):
        storage.remove_file(tasks.uri)  # of use to this run alone
    if probe is not None:
        log.info("%s", describe_workers(probe.answers()))
    return counted_by_runner(getattr(root, "result", None))


def make_shards(
    root: beam.Pipeline, tasks: TaskList, shards: ShardPlan, run: RunContext, probe: WorkerProbe | None
) -> tuple[beam.PCollection[ShardSummary], AsSingleton]:
    """Wires in the making of the shards, which travel by the address of their list, so that the graph stays small.

    Returns:
        Their summaries, and what all of them counted.
    """
    planned = after_probe(root | "PlannedShards" >> beam.Create([tasks], reshuffle=False), probe, shards.gpu)
    if shards.previous is not None and shards.previous.groups > 1 and shards.complete < tasks.count:
        planned = after_lookups(planned, shards.previous)
    making = beam.ParDo(MakeShards(shards.stage, shards.maker, run.record, probe))
    making.with_resource_hints(**_hints(shards.gpu))
    made = (
        planned
        | "CutShardTasks" >> beam.FlatMap(lambda tasks: tasks.ranges())
        # Breaks fusion with the plan, so that the shards spread over the workers.
        | "SpreadShards" >> beam.Reshuffle()
        | "MakeShard" >> making.with_outputs(COUNTS, main="summaries")
    )
    return made.summaries, AsSingleton(made[COUNTS] | "AddUpCounts" >> beam.CombineGlobally(add_up))


def _hints(gpu: GpuRequest | None) -> dict[str, str]:
    return {} if gpu is None else {"accelerator": gpu.hint}


def after_probe(
    elements: beam.PCollection[Any], probe: WorkerProbe | None, gpu: GpuRequest | None = None
) -> beam.PCollection[Any]:
    """The elements, once the workers were asked and all agree; at once without a probe.

    With `gpu` those are asked that will run the towers.
    """
    if probe is None:
        return elements
    met = (
        elements.pipeline
        | "Questions" >> beam.Create(range(QUESTIONS), reshuffle=False)
        | "SpreadQuestions" >> beam.Reshuffle()
        | "AskWorkers" >> beam.Map(lambda _: probe.ask()).with_resource_hints(**_hints(gpu))
        | "GatherAnswers" >> beam.combiners.ToList()
        | "MeetWorkers" >> beam.Map(probe.meet)
    )
    return elements | "AwaitWorkers" >> beam.Map(lambda element, _: element, AsSingleton(met))


def after_lookups(elements: beam.PCollection[Any], previous: PreviousLookups) -> beam.PCollection[Any]:
    """The elements, once all workers have made the lookups of a large previous version, or these stand."""
    listed = (
        elements
        | "CutLookups" >> beam.FlatMap(lambda _: range(0 if previous.stand() else previous.groups))
        | "SpreadLookups" >> beam.Reshuffle()
        | "ListKeys" >> beam.Map(previous.list_keys)
    )
    all_listed = AsIter(listed)
    made = (
        elements.pipeline
        | "LookupParts" >> beam.Create([None], reshuffle=False)
        | "CutLookupParts" >> beam.FlatMap(lambda _, listed: range(len(list(listed))), all_listed)
        | "SpreadLookupParts" >> beam.Reshuffle()
        | "WriteLookupPart" >> beam.Map(lambda part, listed: previous.write_part(list(listed), part), all_listed)
        | "GatherLookupParts" >> beam.combiners.ToList()
        | "CompleteLookups" >> beam.Map(lambda parts: previous.complete(parts) if parts else None)
    )
    return elements | "AwaitLookups" >> beam.Map(lambda element, _: element, AsSingleton(made))


class MakeShards(beam.DoFn):
    """Makes embedding shards that are not complete yet: `TaskRange` in, `ShardSummary` and its counts out.

    The maker is opened on the first of them: a rerun over complete shards loads no encoder.
    """

    def __init__(self, stage: Stage, maker: ShardMaker, record: RunRecord, probe: WorkerProbe | None = None):
        self._stage, self._maker, self._record, self._probe = stage, maker, record, probe
        self._handle = shared.Shared()
        self._shared: SharedMaker[MakeShard] | None = None
        self._make: MakeShard | None = None

    def process(self, element: TaskRange) -> Iterator[ShardSummary | TaggedOutput]:
        if self._probe is not None:
            self._probe.ask()  # a worker that came later, or took the place of one that died
        task = element.read()
        unit = f"{task.position:06d}"
        summary = task.files.read_summary(task.position)
        if summary is not None:
            facts = {"skipped": True, "counts": {"tasks_skipped": 1}, **_facts(summary)}
            counts = self._record.finish(self._stage, unit, began=time.time(), seconds=0.0, **facts)
            yield summary
            yield TaggedOutput(COUNTS, counts)
            return
        if self._make is None:
            with self._record.timed("load", unit):
                self._make = self._enter()
        with self._record.timed(self._stage, unit) as facts:
            summary = self._make(task, lambda products: facts.update(products=products))
            facts |= {"skipped": False, "steps": summary.seconds, "counts": _counts(summary), **_facts(summary)}
        yield summary
        yield TaggedOutput(COUNTS, facts["counts"])

    def _enter(self) -> MakeShard:
        """Opens the maker, or joins the threads of this process for which it is open."""
        self._shared = self._handle.acquire(lambda: SharedMaker(self._maker))
        return self._shared.enter()

    def teardown(self) -> None:
        if self._make is not None and self._shared is not None:
            self._make = None
            self._shared.leave()


def _facts(summary: ShardSummary) -> dict[str, int]:
    return {"rows_in": summary.rows_in, "products": summary.products, "embedded": summary.embedded}


def _counts(summary: ShardSummary) -> Counts:
    """What a shard that was just made counts, beside what the process counted."""
    seconds = {STEPS[step]: seconds for step, seconds in summary.seconds.items() if step in STEPS}
    return (
        seconds
        | {
            "rows": summary.rows_in,
            "products_embedded": summary.embedded,
            "products_carried_over": summary.carried_over,
            "products_degraded": summary.degraded,
            "products_rejected": summary.rejected,
            "images_unchanged": summary.images_unchanged,
        }
        | ({"letters": summary.by_reason} if summary.by_reason else {})
    )


def number_products(
    summaries: beam.PCollection[ShardSummary], run: RunContext, groups: ShardGroups
) -> beam.PCollection[BuildPlan]:
    """Wires in the numbering: by one worker, or, of a catalog of several groups, by all."""
    if len(groups.starts) == 1:
        return (
            summaries
            | "GatherSummaries" >> beam.combiners.ToList()
            | "NumberProducts" >> beam.Map(lambda summaries: numbering.number(run, summaries))
        )
    listed = (
        summaries
        | "GroupOfShard" >> beam.Map(lambda summary: (groups.group_of(summary.position), summary))
        | "ShardsOfGroup" >> beam.GroupByKey()
        | "ListIds" >> beam.Map(lambda group: numbering.list_ids(run, groups, group[0], group[1]))
        | "GatherListed" >> beam.combiners.ToList()
    )
    numbers = listed | "CutNumbering" >> beam.FlatMap(lambda listed: range(len(listed)))
    all_listed = AsSingleton(listed)
    repeats = (
        numbers
        | "SpreadRepeats" >> beam.Reshuffle()
        | "FindRepeats" >> beam.Map(lambda number, listed: numbering.find_repeats(run, listed, number), all_listed)
    )
    written = (
        numbers
        | "SpreadProducts" >> beam.Reshuffle()
        | "WriteProducts"
        >> beam.Map(
            lambda number, listed, repeats: numbering.write_products(run, listed, list(repeats), number),
            *(all_listed, AsIter(repeats)),
        )
    )
    return (
        written
        | "GatherWritten" >> beam.combiners.ToList()
        | "JoinGroups" >> beam.Map(lambda written, listed: numbering.join_groups(run, listed, written), all_listed)
    )


def search_groups(
    plan: beam.PCollection[BuildPlan], samples: AsIter, run: RunContext, groups: ShardGroups
) -> list[AsIter]:
    """Wires in the search for what recall is measured by; none for a catalog of one group, which training searches."""
    if len(groups.starts) == 1:
        return []
    searched = (
        plan
        | "CutSearch" >> beam.FlatMap(lambda _: range(len(groups.starts)))
        | "SpreadSearch" >> beam.Reshuffle()
        | "SearchGroup"
        >> beam.Map(
            lambda number, plan, samples: steps.search_group(run, plan, groups, number, list(samples)),
            *(AsSingleton(plan), samples),
        )
    )
    return [AsIter(searched)]


def build_and_publish(
    summaries: beam.PCollection[ShardSummary],
    run: RunContext,
    groups: ShardGroups,
    first_stage: Stage,
    counts: AsSingleton,
) -> beam.PCollection[RunResult]:
    """Wires in the steps of `build_steps`, and the publishing, which also leaves the result in the run's folder.

    Args:
        first_stage, counts: What made the shards, and what it counted.
    """
    plan = number_products(summaries, run, groups)
    the_plan = AsSingleton(plan)
    samples = (
        plan
        | "CutSampleTasks" >> beam.FlatMap(steps.sample_tasks)
        | "SpreadSampling" >> beam.Reshuffle()
        | "SampleShards" >> beam.Map(lambda first, plan: steps.sample(run, plan, first), the_plan)
    )
    all_samples = AsIter(samples)
    choice = plan | "TrainCodec" >> beam.Map(
        lambda plan, samples, *searched: steps.train(run, plan, list(samples), *map(list, searched)),
        *(all_samples, *search_groups(plan, all_samples, run, groups)),
    )
    the_choice = AsSingleton(choice)
    refined = (
        plan
        | "CutRefineTasks" >> beam.FlatMap(lambda plan, choice: steps.refine_tasks(run, plan, choice), the_choice)
        | "SpreadRefining" >> beam.Reshuffle()
        | "WriteRefineCodes"
        >> beam.Map(
            lambda task, choice, samples: steps.refine(run, choice, task, list(samples)), the_choice, all_samples
        )
    )
    merged = (
        plan
        | "CutAddTasks" >> beam.FlatMap(lambda plan, choice: steps.add_tasks(run, plan, choice), the_choice)
        | "SpreadAdding" >> beam.Reshuffle()
        | "AddToIndexShard"
        >> beam.Map(lambda task, choice: (task.serving_shard, steps.add(run, choice.codec, task)), the_choice)
        | "IndexShardsOfServingShard" >> beam.GroupByKey()
        | "MergeIndexShards"
        >> beam.Map(lambda group, choice: steps.merge(run, choice, group[0], list(group[1])), the_choice)
    )
    products = (
        plan
        | "CutProducts" >> beam.FlatMap(lambda plan: range(len(plan.numbering.products)))
        | "SpreadReading" >> beam.Reshuffle()
        | "ReadProducts" >> beam.Map(lambda number, plan: steps.read_products(run, plan, number), the_plan)
    )
    build = (
        merged
        | "GatherMerged" >> beam.combiners.ToList()
        | "VerifyIndex"
        >> beam.Map(
            lambda merged, plan, choice, samples, refined, products: steps.verify(
                run, plan, choice, list(samples), merged, list(refined), list(products)
            ),
            *(the_plan, the_choice, all_samples, AsIter(refined), AsIter(products)),
        )
    )
    the_publication = AsSingleton(build | "BeginPublishing" >> beam.Map(lambda build: begin_publishing(run, build)))
    written = (
        build
        | "CutCopyTasks" >> beam.FlatMap(lambda build, begun: copy_tasks(run, build, begun), the_publication)
        | "SpreadCopying" >> beam.Reshuffle()
        | "CopyToVersion" >> beam.FlatMap(lambda task, begun: copy_to_version(run, begun, task), the_publication)
    )
    all_written = AsIter(written)
    inspected = build | "InspectVersion" >> beam.Map(
        lambda build, begun, written: inspect_version(run, build, begun, list(written)), the_publication, all_written
    )
    return build | "PublishVersion" >> beam.Map(
        lambda build, begun, written, inspected, counted: publish_build(
            run, build, begun, list(written), inspected, {first_stage: counted} if counted else {}
        ),
        *(the_publication, all_written, AsSingleton(inspected), counts),
    )

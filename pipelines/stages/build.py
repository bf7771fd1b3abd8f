"""Beam wiring of the index stages: shard summaries in, one verified build out. Only descriptors cross a boundary."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import apache_beam as beam
from apache_beam.pvalue import AsIter, AsSingleton

from pipelines.build_parts import FinishedBuild
from pipelines.index_build import BuildJob
from pipelines.shard_files import ShardSummary


@dataclass(kw_only=True, eq=False)  # not frozen: Beam sets the label
class GatherAll(beam.PTransform):
    """All elements as one list, even when there are none. For descriptors: the list is held in memory."""

    def expand(self, elements: beam.PCollection[Any]) -> beam.PCollection[list[Any]]:
        """Wires the step in."""
        return elements | "ToOneList" >> beam.combiners.ToList()


@dataclass(kw_only=True, eq=False)
class BuildIndex(beam.PTransform):
    """Numbers, samples, trains, writes the vectors to re-rank from where there are to be some, adds, merges, verifies.

    Input: `ShardSummary`, one a catalog shard. Output: one `FinishedBuild`.

    Attributes:
      job: the steps themselves.
    """

    job: BuildJob

    def expand(self, summaries: beam.PCollection[ShardSummary]) -> beam.PCollection[FinishedBuild]:
        """Wires the step in."""
        job = self.job
        plan = summaries | "GatherSummaries" >> GatherAll() | "NumberProducts" >> beam.Map(job.number)
        pieces = (
            plan
            | "PlaceOfEachShard" >> beam.FlatMap(lambda plan: range(len(plan.numbering.shards)))
            | "SpreadSampling" >> beam.Reshuffle()
            | "SampleShard" >> beam.Map(lambda place, plan: job.sample(plan, place), AsSingleton(plan))
        )
        codec = plan | "TrainCodec" >> beam.Map(lambda plan, pieces: job.train(plan, list(pieces)), AsIter(pieces))
        refined = (
            plan
            | "CutRefineTasks" >> beam.FlatMap(job.refine_tasks)
            | "SpreadRefining" >> beam.Reshuffle()
            | "WriteRefineCodes" >> beam.Map(lambda task, pieces: job.refine(task, list(pieces)), AsIter(pieces))
        )
        merged = (
            plan
            | "CutAddTasks" >> beam.FlatMap(job.add_tasks)
            | "SpreadAdding" >> beam.Reshuffle()
            | "AddToIndexShard"
            >> beam.Map(lambda task, codec: (task.serving_shard, job.add(codec, task)), AsSingleton(codec))
            | "IndexShardsOfServingShard" >> beam.GroupByKey()
            | "MergeIndexShards"
            >> beam.Map(lambda group, plan: job.merge(plan, group[0], list(group[1])), AsSingleton(plan))
        )
        return (
            merged
            | "GatherMerged" >> GatherAll()
            | "VerifyIndex"
            >> beam.Map(
                lambda merged, plan, codec, pieces, refined: job.verify(
                    plan, codec, list(pieces), merged, list(refined)
                ),
                AsSingleton(plan),
                AsSingleton(codec),
                AsIter(pieces),
                AsIter(refined),
            )
        )

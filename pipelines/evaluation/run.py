"""Runs an evaluation from its configuration to its figures."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace

import pyarrow as pa

from encoders import check_encoder
from index_builder import storage
from pipelines.catalog.layouts import resolved
from pipelines.catalog.plan import catalog_schema
from pipelines.config.exit_codes import failures_of_work
from pipelines.config.validation import ConfigError
from pipelines.demo_catalog import demo_folder, draw_named_catalog, is_demo_address
from pipelines.evaluation.annotation import Annotator, annotate_results, catalog_records, load_annotator
from pipelines.evaluation.comparison import compare_systems
from pipelines.evaluation.config import EvaluateJob, EvaluationConfig, ProductPart, SystemConfig
from pipelines.evaluation.encoder_ranking import VIEWS
from pipelines.evaluation.judged_files import JudgedQueries, label_grades, read_judged_queries, unlabelled_label
from pipelines.evaluation.measures import (
    UNKNOWN,
    Comparison,
    Judgments,
    number_judgments,
    parse_measures,
    results_needed,
)
from pipelines.evaluation.ranking import ProductNumbers, Ranked
from pipelines.evaluation.segments import check_segments, read_segments
from pipelines.evaluation.systems import check_system, rank_systems

Progress = Callable[[str], AbstractContextManager[Callable[[int], None]]]
"""Shows that something is counted: what it is, to a function that is told how many more."""


DEFAULT_MEASURES = ("R@10", "nDCG@10", "RR@10")
"""Of one encoder's views."""
COMPARED_MEASURES = ("R@10", "nDCG@10", "RR@10", "AP@100")
"""Of several systems, beside recall@k."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Evaluated:
    """What came of an evaluation.

    Attributes:
        measures: Names of the standard measures, as ir-measures has them.
        products: Of all systems together.
        queries, without_relevant: How many have something relevant, and how many have not.
        unknown_wanted: Relevant (or bought) products that no system has.
    """

    title: str
    measures: tuple[str, ...]
    comparison: Comparison
    products: int
    queries: int
    without_relevant: int
    unknown_wanted: int


def run_evaluation(job: EvaluateJob, progress: Progress) -> Evaluated:
    """Checks everything that can be checked before any work, then ranks, labels and measures.

    Raises:
        ConfigError: A measure, a system or an address is not what it should be.
        CatalogError: The catalog cannot be read.
        RunFailedError: It failed once products were being encoded, by whose ids it is known that judgments belong to
            another catalog; or an annotator does not do its part.
    """
    config = job.evaluation
    measures = config.measures or (COMPARED_MEASURES if job.systems else DEFAULT_MEASURES)
    try:
        parse_measures(measures)
    except ValueError as error:
        raise ConfigError(f"--measures: {error}") from error
    job = replace(job, catalog=resolved(job.catalog))
    systems, title = _systems_of(job)
    for system in systems:
        check_system(system, job.catalog)
    by = config.by
    if job.out is not None:
        storage.check_writable(job.out)
    if config.vectors is not None:
        storage.check_writable(os.path.expanduser(config.vectors))
    queries_config = _with_queries(job)
    job = _with_drawn_catalog(job)
    if any(system.index is None for system in systems):
        catalog_schema(job.catalog)
    if by is not None:
        check_segments(by, systems, job)
    queries = read_judged_queries(queries_config)
    annotator = None if config.annotator is None else load_annotator(config.annotator)
    if annotator is None:
        # Before any encoding; an annotator's labels are known only after it.
        unlabelled_label(config, queries.labels)
        label_grades(queries.labels, queries.relevant, config.grades)

    with failures_of_work(remedy=""):
        return _evaluated(job, systems, title, queries, annotator, measures, progress)


def _evaluated(
    job: EvaluateJob,
    systems: Sequence[SystemConfig],
    title: str,
    queries: JudgedQueries,
    annotator: Annotator | None,
    measures: Sequence[str],
    progress: Progress,
) -> Evaluated:
    """Ranks, labels and measures."""
    config, by = job.evaluation, job.evaluation.by
    depth = max(config.k, results_needed(measures))
    with progress("encoding products") as advance:
        ranked, numbers = rank_systems(systems, queries, job, depth=depth, k=config.k, on_progress=advance)
    annotator_notes = []
    if annotator is not None:
        with progress("labelling pairs") as advance:
            queries, asked = annotate_results(
                queries,
                numbers,
                [found[:, : config.k] for system in ranked for found in system.runs],
                config,
                annotator=annotator,
                records=lambda wanted: catalog_records(job.catalog, job.spool_uri, wanted),
                kept_uri=config.annotations or storage.join(job.work.uri, "annotations.parquet"),
                on_progress=advance,
            )
        annotator_notes.append(
            f"labels by {config.annotator} for results that no file labels: {len(queries.judged):,} labelled pairs in "
            f"all, {asked:,} pairs labelled now"
        )
    unlabelled = unlabelled_label(config, queries.labels)
    judgments = number_judgments(queries, numbers, unlabelled=unlabelled, grades=config.grades)
    _check_together(queries, judgments, numbers)
    with_relevant = int((judgments.wanted.count_by_query(len(queries.ids)) > 0).sum())
    notes = _notes(config, queries, judgments, numbers, ranked, with_relevant)
    comparison = compare_systems(
        ranked,
        judgments,
        baseline=job.baseline,
        k=config.k,
        measures=measures,
        resamples=config.resamples,
        confidence=config.confidence,
        seed=config.seed,
        notes=[*notes, *annotator_notes],
        segments=None if by is None else read_segments(by, systems, job, numbers),
        most_segments=config.segments,
    )
    return Evaluated(
        title=f"{title} over {len(numbers):,} products" if job.systems else title,
        measures=tuple(measures),
        comparison=comparison,
        products=len(numbers),
        queries=with_relevant,
        without_relevant=queries.left_out + len(queries.ids) - with_relevant,
        unknown_wanted=judgments.unknown_wanted,
    )


def _systems_of(job: EvaluateJob) -> tuple[tuple[SystemConfig, ...], str]:
    """What is compared, and the heading: the systems named, or the views of the one encoder."""
    if job.systems:
        names = ", ".join(system.name for system in job.systems)
        return job.systems, names if len(job.systems) < 4 else f"{len(job.systems)} systems"
    if job.encoder is None:
        raise ConfigError("nothing to evaluate: expected an encoder (encoder.uri, encoder.model) or --systems")
    description = check_encoder(job.encoder)
    parts: tuple[ProductPart, ...] = ("text",)
    if description.uses_images and job.catalog.has_images:
        parts = ("text", "picture", "fused")
    systems = tuple(SystemConfig(name=VIEWS[part].value, encoder=job.encoder, products=part) for part in parts)
    return systems, f"{description.model} encoder {description.fingerprint}"


def _with_drawn_catalog(job: EvaluateJob) -> EvaluateJob:
    """The job; a catalog that is drawn (`demo://N`) with its folder instead of its address."""
    uri = job.catalog.uri
    if not isinstance(uri, str) or not is_demo_address(uri):
        return job
    try:
        return replace(job, catalog=replace(job.catalog, uri=draw_named_catalog(uri, job.work.uri)))
    except ValueError as error:
        raise ConfigError(str(error)) from error


def _with_queries(job: EvaluateJob) -> EvaluationConfig:
    """The evaluation section; without queries, with those that were drawn with the demo catalog."""
    config = job.evaluation
    known = [config.judgments, config.purchases, config.annotator]
    if config.queries is not None and not any(known):
        raise ConfigError(
            f"--queries {config.queries}: expected --judgments (or --purchases, or an annotator) beside it, to measure "
            "with"
        )
    if any(known):
        return config
    if not is_demo_address(job.catalog.uri):
        raise ConfigError(f"catalog {job.catalog.uri}: expected --queries FILE and --judgments FILE to measure with")
    folder = demo_folder(str(job.catalog.uri), job.work.uri)
    return replace(
        config, queries=storage.join(folder, "queries.parquet"), judgments=storage.join(folder, "judgments.parquet")
    )


def _check_together(queries: JudgedQueries, judgments: Judgments, numbers: ProductNumbers) -> None:
    given = [pairs.product_ids for pairs in (queries.judged, queries.purchases) if pairs is not None]
    named = pa.concat_arrays(given).unique()
    if len(named) and judgments.unknown_products == len(named):
        message = "no relevant product of the judgments is in the catalog: do they belong together?"
        example = f"The judgments name {named[0].as_py()!r}"
        raise ConfigError(f"{message} {example}, the catalog {numbers.ids[0].as_py()!r}." if len(numbers) else message)


def _notes(
    config: EvaluationConfig,
    queries: JudgedQueries,
    judgments: Judgments,
    numbers: ProductNumbers,
    ranked: Sequence[Ranked],
    with_relevant: int,
) -> list[str]:
    """What the figures stand on."""
    notes = [
        f"{len(queries.ids):,} queries over {len(numbers):,} products; intervals: {config.confidence:.0%}, "
        f"{config.resamples:,} bootstrap samples of the queries (seed {config.seed}), the same for every system"
    ]
    relevant = ", ".join(label for label in queries.labels if label in queries.relevant)
    if queries.purchases is not None:
        notes.append(
            f"recall: of {len(queries.purchases):,} purchases" + (f"; relevant: {relevant}" if relevant else "")
        )
    elif relevant:
        notes.append(f"recall: of {len(queries.relevant_pairs):,} products labelled {relevant}")
    if len(judgments.labels) > 1:
        is_left_out = judgments.unlabelled == UNKNOWN
        counted = "left out" if is_left_out else f"counted as {judgments.labels[judgments.unlabelled]}"
        notes.append(f"results without a label: {counted}")
    if queries.two_labels:
        settled = {"best": "the best one counts"}.get(config.two_labels, "left out")
        notes.append(f"pairs that the judgments give two labels: {queries.two_labels:,}, {settled}")
    if queries.left_out:
        notes.append(f"queries left out because nothing is known of them: {queries.left_out:,}")
    if with_relevant < len(queries.ids):
        notes.append(
            f"queries without a relevant product, which no recall counts: {len(queries.ids) - with_relevant:,}"
        )
    if judgments.unknown_products:
        notes.append(
            f"judged products that the catalog does not hold: {judgments.unknown_products:,}; the relevant ones among "
            f"them ({judgments.unknown_wanted:,}) count as not found"
        )
    for system in ranked:
        mean = sum(float((found[:, : config.k] >= 0).sum(axis=1).mean()) for found in system.runs) / len(system.runs)
        if mean < min(config.k, len(numbers)):
            notes.append(f"{system.name}: gave {mean:.1f} results a query, of {config.k} asked for")
    return [*notes, *(note for system in ranked for note in system.notes)]

"""An evaluation from its configuration to its figures."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass

import pyarrow as pa

from index_builder import storage
from pipelines.config.validation import ConfigError
from pipelines.evaluation.annotation import annotate_results, catalog_records, load_annotator
from pipelines.evaluation.comparison import compare_systems
from pipelines.evaluation.config import LEAVE_OUT, EvaluationConfig, SystemConfig
from pipelines.evaluation.judged_files import ESCI, JudgedQueries, is_number, label_grades, normal_labels
from pipelines.evaluation.judgments import Judgments, number_judgments
from pipelines.evaluation.measures import Comparison, results_needed
from pipelines.evaluation.ranking import ProductNumbers, Ranked, Surroundings
from pipelines.evaluation.systems import rank_systems

Progress = Callable[[str], AbstractContextManager[Callable[[int], None]]]
"""Shows that something is counted: what it is, to a function that is told how many more."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Evaluated:
    """What came of an evaluation.

    Attributes:
        comparison: Its figures.
        products: Products of all systems together.
        queries: Queries that have something relevant.
        without_relevant: Queries that have not.
        unknown_wanted: Relevant (or bought) products that no system has.
    """

    comparison: Comparison
    products: int
    queries: int
    without_relevant: int
    unknown_wanted: int


def evaluate_systems(
    systems: Sequence[SystemConfig],
    queries: JudgedQueries,
    config: EvaluationConfig,
    surroundings: Surroundings,
    *,
    baseline: str | None,
    measures: Sequence[str],
    work_uri: str,
    progress: Progress,
) -> Evaluated:
    """Ranks, labels and measures.

    Args:
        systems: What is compared; checked already.
        queries: What is asked, and what is known.
        config: How it is counted.
        surroundings: The catalog, and how pictures are read.
        baseline: Name of the system that others are compared with.
        measures: Names as ir-measures has them.
        work_uri: Where labels of an annotator are kept.
        progress: Shows what is counted.

    Raises:
        ConfigError: The judgments belong to another catalog, or an annotator does not do its part.
    """
    annotator = None if config.annotator is None else load_annotator(config.annotator)
    if annotator is None:
        # Before any encoding; an annotator's labels are known only after it.
        _unlabelled(config, queries)
        label_grades(queries.labels, queries.relevant, config.grades)
    depth = max(config.k, results_needed(measures) if measures else 1)
    with progress("encoding products") as advance:
        ranked, numbers = rank_systems(systems, queries, surroundings, depth=depth, k=config.k, on_progress=advance)
    notes = []
    if annotator is not None:
        with progress("labelling pairs") as advance:
            queries, asked = annotate_results(
                queries,
                numbers,
                [found[:, : config.k] for system in ranked for found in system.runs],
                annotator=annotator,
                name=str(config.annotator),
                records=lambda wanted: catalog_records(surroundings.catalog, surroundings.spool_uri, wanted),
                kept_uri=config.annotations or storage.join(work_uri, "annotations.parquet"),
                batch_pairs=config.annotator_batch,
                relevant=config.relevant,
                on_progress=advance,
            )
        notes.append(
            f"labels by {config.annotator} for results that no file labels: {len(queries.judged):,} labelled pairs in "
            f"all, {asked:,} pairs labelled now"
        )
    unlabelled = _unlabelled(config, queries)
    judgments = number_judgments(queries, numbers, unlabelled=unlabelled, grades=config.grades)
    _check_together(queries, judgments, numbers)
    with_relevant = int((judgments.wanted.count_by_query(len(queries.ids)) > 0).sum())
    comparison = compare_systems(
        ranked,
        judgments,
        baseline=baseline,
        k=config.k,
        measures=measures,
        resamples=config.resamples,
        confidence=config.confidence,
        seed=config.seed,
        notes=[*_notes(config, queries, judgments, numbers, ranked, with_relevant, unlabelled), *notes],
    )
    return Evaluated(
        comparison=comparison,
        products=len(numbers),
        queries=with_relevant,
        without_relevant=queries.left_out + len(queries.ids) - with_relevant,
        unknown_wanted=judgments.unknown_wanted,
    )


def _unlabelled(config: EvaluationConfig, queries: JudgedQueries) -> str | None:
    """The label that a pair without one counts as; None to leave it out, or where nothing is labelled at all."""
    if config.unlabelled == LEAVE_OUT or not queries.labels:
        return None
    (label,) = normal_labels([config.unlabelled]).values()
    of_a_kind = {*queries.labels, *(ESCI if set(queries.labels) <= set(ESCI) else ())}
    if label not in of_a_kind and not all(map(is_number, [label, *queries.labels])):
        raise ConfigError(
            f"--unlabelled {config.unlabelled}: expected {LEAVE_OUT} or a label such as those of the judgments, which "
            f"are {list(queries.labels)}"
        )
    return label


def _check_together(queries: JudgedQueries, judgments: Judgments, numbers: ProductNumbers) -> None:
    parts = [pairs.product_ids for pairs in (queries.judged, queries.purchases) if pairs is not None]
    named = pa.concat_arrays(parts).unique() if parts else []
    if len(named) and judgments.unknown_products == len(named):
        told = "no relevant product of the judgments is in the catalog: do they belong together?"
        example = f"The judgments name {named[0].as_py()!r}"
        raise ConfigError(f"{told} {example}, the catalog {numbers.ids[0].as_py()!r}." if len(numbers) else told)


def _notes(
    config: EvaluationConfig,
    queries: JudgedQueries,
    judgments: Judgments,
    numbers: ProductNumbers,
    ranked: Sequence[Ranked],
    with_relevant: int,
    unlabelled: str | None,
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
        counted = "left out" if unlabelled is None else f"counted as {unlabelled}"
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

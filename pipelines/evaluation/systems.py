"""From systems to rankings: every query answered by every system."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from encoders import check_encoder
from index_builder import IndexReader
from pipelines.catalog.config import CatalogConfig
from pipelines.config.validation import ConfigError
from pipelines.evaluation.config import SystemConfig
from pipelines.evaluation.encoder_ranking import Found, rank_encoders
from pipelines.evaluation.index_ranking import rank_index
from pipelines.evaluation.judged_files import JudgedQueries
from pipelines.evaluation.ranking import ProductNumbers, Ranked, Surroundings


def check_system(system: SystemConfig, catalog: CatalogConfig) -> None:
    """Finds what a system is made of, without loading weights.

    Raises:
        EncoderError, IndexBuilderError: It is not there, or not complete.
        ConfigError: An index without a query encoder, or a part that the encoder does not read.
    """
    if system.products == "picture" and catalog.image_field is None:
        raise ConfigError(f"system {system.name!r}: products is 'picture', but catalog.image_field is null")
    for encoder in system.runs:
        description = check_encoder(encoder)
        if system.products == "picture" and not description.uses_images:
            raise ConfigError(
                f"system {system.name!r}: products is 'picture', but a {description.model} encoder reads only texts"
            )
    if system.index is not None:
        reader = IndexReader.open(system.index, system.version)
        if reader.query_encoder_uri is None:
            raise ConfigError(
                f"system {system.name!r}: version {reader.manifest.version} of {system.index} has no query encoder"
            )


def rank_systems(
    systems: Sequence[SystemConfig],
    queries: JudgedQueries,
    surroundings: Surroundings,
    *,
    depth: int,
    k: int,
    on_progress: Callable[[int], None] = lambda products: None,
) -> tuple[list[Ranked], ProductNumbers]:
    """Answers every query with every system.

    Args:
        systems: What is compared.
        queries: What is asked.
        surroundings: The catalog, and how pictures are read.
        depth: Results of a query.
        k: How many of an index's are compared with exact search.
        on_progress: Told the number of products encoded, batch by batch.

    Returns:
        One entry a system, in their order, and the products' numbers.
    """
    numbers = ProductNumbers()
    found = rank_encoders(systems, queries, surroundings, numbers, depth=depth, on_progress=on_progress)
    ranked = []
    for place, system in enumerate(systems):
        if system.index is not None:
            ranked.append(rank_index(system, queries, surroundings, numbers, depth=depth, k=k))
            continue
        runs = [found[place, run] for run in range(len(system.runs))]
        notes = tuple(dict.fromkeys(note for run in runs for note in run.notes))
        rows = tuple(run.rows for run in runs)
        ranked.append(Ranked(name=system.name, about=_about(system, runs), runs=rows, notes=notes))
    return ranked, numbers


def _about(system: SystemConfig, runs: Sequence[Found]) -> str:
    parts = [", ".join(run.encoder for run in runs)]
    parts += [] if system.products == "fused" else [f"products by {system.products} only"]
    parts += [] if system.queries == "all" else [f"queries by {system.queries} only"]
    return "; ".join([*parts, "exact search"])

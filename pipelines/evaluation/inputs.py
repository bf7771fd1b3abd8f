"""Resolves what an evaluation is asked: systems, a drawn catalog, and the queries that were drawn with it."""

from __future__ import annotations

from dataclasses import replace

from encoders import check_encoder
from index_builder import storage
from pipelines.config.validation import ConfigError
from pipelines.demo_catalog import demo_folder, draw_named_catalog, is_demo_address
from pipelines.evaluation.config import EvaluateJob, EvaluationConfig, SystemConfig
from pipelines.evaluation.encoder_ranking import View


def systems_of(job: EvaluateJob) -> tuple[tuple[SystemConfig, ...], str]:
    """What is compared, and the heading: the systems named, or the views of the one encoder."""
    if job.systems:
        return job.systems, ", ".join(system.name for system in job.systems) if len(job.systems) < 4 else (
            f"{len(job.systems)} systems"
        )
    if job.encoder is None:
        raise ConfigError("nothing to evaluate: expected an encoder (encoder.uri, encoder.model) or --systems")
    description = check_encoder(job.encoder)
    parts = {View.TEXT: "text", View.PICTURE: "picture", View.FUSED: "fused"}
    sees_pictures = description.uses_images and job.catalog.image_field is not None
    views = parts if sees_pictures else {View.TEXT: "text"}
    systems = tuple(
        SystemConfig(name=view.value, encoder=job.encoder, products=part)  # type: ignore[arg-type]
        for view, part in views.items()
    )
    return systems, f"{description.model} encoder {description.fingerprint}"


def with_drawn_catalog(job: EvaluateJob) -> EvaluateJob:
    """The job with the folder of a catalog that is drawn (`demo://N`) instead of its address."""
    uri = job.catalog.uri
    if not isinstance(uri, str) or not is_demo_address(uri):
        return job
    try:
        drawn = draw_named_catalog(uri, job.work.uri)
    except ValueError as error:
        raise ConfigError(str(error)) from error
    return replace(job, catalog=replace(job.catalog, uri=drawn))


def with_queries(job: EvaluateJob) -> EvaluationConfig:
    """The evaluation section; without queries, with those that were drawn with the demo catalog."""
    config = job.evaluation
    known = [config.judgments, config.purchases, config.annotator]
    if (config.queries is None) == any(known):
        raise ConfigError(
            "--queries and --judgments (or --purchases) belong together: expected both, or none for the demo catalog's "
            "own"
        )
    if config.queries is not None:
        return config
    if not isinstance(job.catalog.uri, str) or not is_demo_address(job.catalog.uri):
        raise ConfigError(f"catalog {job.catalog.uri}: expected --queries FILE and --judgments FILE to measure with")
    folder = demo_folder(job.catalog.uri, job.work.uri)
    return replace(
        config, queries=storage.join(folder, "queries.parquet"), judgments=storage.join(folder, "judgments.parquet")
    )

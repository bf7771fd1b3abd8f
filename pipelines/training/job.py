"""Holds what a training run is asked, and reads the catalog for it once the wanted products are known."""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from pathlib import Path

from encoders.config import EncoderConfig
from encoders.errors import EncoderConfigError
from encoders.training.config import PairsConfig, SmallEncoderConfig, TrainingConfig
from encoders.training.pairs import TrainingProducts
from pipelines.catalog.config import CatalogConfig
from pipelines.catalog.plan import catalog_schema
from pipelines.config.terminal import shown_progress
from pipelines.images.config import DecodeConfig, FetchConfig
from pipelines.training.products import read_training_products


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainEncoderJob:
    """Everything that decides what a training run makes.

    Attributes:
        data: The pairs.
        out: Local folder for the trained encoder; written when the training is done.
        catalog: The products, as the nightly job reads them; null takes those in the pairs' own files.
        fetch: How images of the catalog are fetched.
        decode: How large an image may be.
        encoder: The encoder to start from; null puts one together.
        small: Shape of the one that is put together.
        training: How it is trained.
    """

    data: PairsConfig
    out: str
    catalog: CatalogConfig | None = None
    fetch: FetchConfig = field(default_factory=FetchConfig)
    decode: DecodeConfig = field(default_factory=DecodeConfig)
    encoder: EncoderConfig | None = None
    small: SmallEncoderConfig = field(default_factory=SmallEncoderConfig)
    training: TrainingConfig = field(default_factory=TrainingConfig)

    def __post_init__(self) -> None:
        if not self.out or "://" in self.out:
            raise EncoderConfigError(f"out is {self.out!r}: expected a local folder")
        if self.data.uri is None and self.catalog is None:
            raise EncoderConfigError("data.uri is null: expected pairs, or a catalog whose products are trained on")


def product_reader(
    job: TrainEncoderJob, catalog: CatalogConfig, folder: Path
) -> Callable[[Collection[str] | None], TrainingProducts]:
    """What reads the products of the pairs from the catalog, when their ids are known.

    Raises:
        CatalogError: the catalog is not there, or has not the fields it is said to have.
    """
    from encoders.training.new_encoder import find_starting_point

    catalog_schema(catalog)
    model = job.small.model if job.encoder is None else find_starting_point(job.encoder).architecture.model

    def read(wanted: Collection[str] | None) -> TrainingProducts:
        searches_all = job.training.validation_candidates == "all"
        with shown_progress("reading the catalog") as on_progress:
            return read_training_products(
                None if searches_all else wanted,
                catalog=catalog,
                fetch=job.fetch,
                decode=job.decode,
                path=str(folder / "products.arrow"),
                spool_uri=str(folder / "spool"),
                with_images=model != "bibert",
                on_progress=on_progress,
            )

    return read

"""`python -m pipelines.train_encoder`: trains an encoder on pairs of query and product.

    python -m pipelines.train_encoder --config train_catalog_pairs --catalog.uri catalog/ --data.uri pairs.parquet \\
        --encoder.uri package://encoders/pretrained/demo --out my_encoder

Without `--encoder.*` one is put together (`small:`), from nothing, as the demo encoder was, or from parts of others.
The result is a saved encoder folder, for `encoder.uri` of the nightly job.
"""

from __future__ import annotations

import shlex
import sys
import tempfile
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from rich.console import Console
from rich.progress import MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from encoders.config import EncoderConfig
from encoders.errors import EncoderConfigError
from encoders.training.config import PairsConfig, SmallEncoderConfig, TrainingConfig
from encoders.training.pairs import TrainingProducts
from pipelines.catalog.config import CatalogConfig
from pipelines.catalog.plan import catalog_schema
from pipelines.config.command_line import parse_arguments, run_command
from pipelines.config.validation import ConfigError
from pipelines.images.config import DecodeConfig, FetchConfig
from pipelines.training_products import decode_for_training, read_training_products

_PROG = "python -m pipelines.train_encoder"
_OF_THE_EXTRA = ("lightning", "matplotlib", "tensorboard")


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainEncoderJob:
    """Everything that decides what a training run makes.

    Attributes:
        data: The pairs.
        out: Local folder for the trained encoder; written when the training is done.
        catalog: The products, as the nightly job reads them; null takes those in the pairs' own files.
        fetch: How pictures of the catalog are fetched.
        decode: How large a picture may be.
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


def main(argv: Sequence[str]) -> int:
    """Runs the command; errors are raised."""
    parsed = parse_arguments(
        argv,
        TrainEncoderJob,
        default_config="train_demo_encoder.yaml",
        prog=_PROG,
        description="Train an encoder on pairs of query and product.",
    )
    job = parsed.config
    try:
        from encoders.training.run import train_encoder
    except ModuleNotFoundError as error:
        if error.name not in _OF_THE_EXTRA:
            raise
        raise ConfigError(["training needs the extra `train`: pip install 'shelfmark[train]'"]) from error
    with tempfile.TemporaryDirectory(prefix="shelfmark-training-") as folder:
        train_encoder(
            job.data,
            job.training,
            job.out,
            start=job.encoder,
            small=job.small,
            read_products=None if job.catalog is None else _product_reader(job, job.catalog, Path(folder)),
            decode=partial(decode_for_training, config=job.decode),
            command=shlex.join([*_PROG.split(), *argv]),
        )
    return 0


def _product_reader(
    job: TrainEncoderJob, catalog: CatalogConfig, folder: Path
) -> Callable[[Collection[str] | None], TrainingProducts]:
    """Reads the catalog when the pairs' product ids are known."""
    from encoders.training.new_encoder import find_starting_point

    catalog_schema(catalog)  # a wrong address or field is told before anything else is done
    model = job.small.model if job.encoder is None else find_starting_point(job.encoder).architecture.model

    def read(wanted: Collection[str] | None) -> TrainingProducts:
        searches_all = job.training.validation_candidates == "all"
        with _shown() as on_progress:
            return read_training_products(
                None if searches_all else wanted,
                catalog=catalog,
                fetch=job.fetch,
                decode=job.decode,
                path=str(folder / "products.arrow"),
                spool_uri=str(folder / "spool"),
                with_pictures=model != "bibert",
                on_progress=on_progress,
            )

    return read


@contextmanager
def _shown() -> Iterator[Callable[[int], None]]:
    """Counts catalog rows on a terminal."""
    console = Console(file=sys.stderr)
    columns = (SpinnerColumn(), TextColumn("{task.description}"), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
        task = progress.add_task("reading the catalog", total=None)
        yield lambda rows: progress.advance(task, rows)


if __name__ == "__main__":
    sys.exit(run_command(main))

"""`python -m pipelines.train_encoder`: trains an encoder on pairs of query and product.

    python -m pipelines.train_encoder --data.uri pairs/ --out my_encoder --encoder.uri package://encoders/pretrained/demo

Without `--encoder.*` a small 3tmm is made from nothing, as the demo encoder was. The result is a saved encoder folder,
for `encoder.uri` of the nightly job.
"""

from __future__ import annotations

import shlex
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field

from encoders.errors import EncoderConfigError
from encoders.spec import EncoderConfig
from encoders.training.config import PairsConfig, SmallEncoderConfig, TrainingConfig
from pipelines.config.commands import run_command
from pipelines.config.errors import ConfigError
from pipelines.config.parser import parse_arguments
from pipelines.config.schema import to_yaml

_PROG = "python -m pipelines.train_encoder"


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainEncoderJob:
    """Everything that decides what a training run makes.

    Attributes:
        data: The pairs.
        out: Local folder for the trained encoder; written when the training is done.
        encoder: The encoder to start from; null makes a small one.
        small: Shape of the small one.
        training: How it is trained.
    """

    data: PairsConfig
    out: str
    encoder: EncoderConfig | None = None
    small: SmallEncoderConfig = field(default_factory=SmallEncoderConfig)
    training: TrainingConfig = field(default_factory=TrainingConfig)

    def __post_init__(self) -> None:
        if not self.out or "://" in self.out:
            raise EncoderConfigError(f"out is {self.out!r}: expected a local folder")


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
    if parsed.flags.print_config:
        sys.stdout.write(to_yaml(job))
        return 0
    try:
        from encoders.training.run import train_encoder
    except ModuleNotFoundError as error:
        if error.name != "lightning":
            raise
        raise ConfigError(["training needs the extra `train`: pip install 'shelfmark[train]'"]) from error
    train_encoder(
        job.data,
        job.training,
        job.out,
        start=job.encoder,
        small=job.small,
        command=shlex.join([*_PROG.split(), *argv]),
    )
    return 0


if __name__ == "__main__":
    sys.exit(run_command(main))

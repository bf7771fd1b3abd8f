"""Trains an encoder on pairs of query and product: `python -m pipelines.train_encoder`.

    python -m pipelines.train_encoder --config train_catalog_pairs --catalog.uri catalog/ --data.uri pairs.parquet \\
        --encoder.uri package://encoders/pretrained/demo --out my_encoder

Without `--encoder.*` one is put together (`small:`), from nothing, as the demo encoder was, or from parts of others.
The result is a saved encoder folder, for `encoder.uri` of the indexing job. Exit codes: 0 trained, 1 failed while it
trained or saved (the same command goes on from the last checkpoint), 2 refused before, 130 stopped by Ctrl-C.
"""

from __future__ import annotations

import os
import shlex
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

from index_builder import storage
from pipelines.config.command_line import parse_arguments, run_command
from pipelines.config.exit_codes import failures_of_work
from pipelines.config.validation import ConfigError
from pipelines.training.job import TrainEncoderJob, decode_for_training, product_reader
from pipelines.training.mining import negative_miner

_PROG = "python -m pipelines.train_encoder"
_OF_THE_EXTRA = ("lightning", "matplotlib", "tensorboard")


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
        raise ConfigError(["training needs the extra `train`: pip install -e '.[train]'"]) from error
    kept = job.training.vectors or (None if job.work is None else job.work.vectors)
    if kept is not None:
        storage.check_writable(os.path.expanduser(kept))
    with tempfile.TemporaryDirectory(prefix="shelfmark-training-") as folder:
        train_encoder(
            job.data,
            replace(job.training, vectors=kept),
            job.out,
            start=job.encoder,
            small=job.small,
            read_products=None if job.catalog is None else product_reader(job, job.catalog, Path(folder)),
            mine=None if job.training.mine_from is None else negative_miner(job.training),
            decode=partial(decode_for_training, config=job.decode),
            decoding=job.decode.rules,
            command=shlex.join([*_PROG.split(), *argv]),
            working=partial(failures_of_work, remedy="Run the same command again to go on from the last checkpoint."),
        )
    return 0


if __name__ == "__main__":
    sys.exit(run_command(main))

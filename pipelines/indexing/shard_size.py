"""The size of a catalog shard is chosen in seconds: what one worker embeds in a minute.

So a worker that is slow, or dies, holds up a run by about a minute, whatever the encoder; and of shards far smaller the
files, requests and bookkeeping would cost more than a hundredth of the work. A new size gives shards new names. That
embeds nothing again, since carry-over goes by products, but it reads and writes all of them once: so a size stays until
it is wrong by `CHANGED_FROM` times. A run that goes on after a killed one always comes to the same size, for only what
stood before the killed one decides.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from encoders import EncoderConfig, EncoderDescription
from index_builder import storage
from index_builder.errors import StorageError
from pipelines.catalog.config import USUAL_SHARD_ROWS
from pipelines.indexing.run_record import RunRecord
from pipelines.indexing.shard_files import FinishedRun
from pipelines.indexing.stage_costs import DEFAULT_IMAGE_BYTES, seconds_of_product
from pipelines.indexing.towers_cost import towers_of

TARGET_SECONDS = 60.0
LEAST_ROWS = 256
"""A few batches of the towers. A shard costs some 30 requests, a second at 30 ms each, of any size."""
MOST_ROWS = 65_536
"""An embedding shard is then 50 MB at 384 dimensions; what a killed worker loses, and a lookup reads at once."""
MOST_ROWS_WITH_IMAGES = 16_384
"""A worker holds the image vectors of a shard, 50 MB at 768 dimensions, to run each distinct image once."""
CHANGED_FROM = 4.0
USUAL_TEXT_CHARACTERS = 100


@dataclass(frozen=True, kw_only=True, slots=True)
class LastSize:
    """What the last finished run says of sizes.

    Attributes:
        rows: Of its shards, at most.
        seconds: It took for a product that went through the towers; None where none did.
    """

    rows: int
    seconds: float | None


def read_last_size(work_uri: str, finished: FinishedRun | None, encoder_fingerprint: str) -> LastSize | None:
    """What is known of a run with this encoder; None where there was none, or its record is gone."""
    if finished is None or finished.encoder != encoder_fingerprint:
        return None
    record = RunRecord(uri=storage.join(work_uri, "runs", finished.name))
    try:
        plan = record.reports("plan").get("all")
        reports = list(record.reports("embed").values())
    except StorageError:
        return None
    if plan is None:
        return None
    return LastSize(rows=plan.get("shard_rows") or USUAL_SHARD_ROWS, seconds=_seconds_of_product(reports))


def _seconds_of_product(reports: Sequence[Mapping[str, Any]]) -> float | None:
    """Of shards that were embedded, the faster ones: others waited for something else than their own work."""
    each = [report["seconds"] / report["embedded"] for report in reports if not report["skipped"] and _is_new(report)]
    return float(np.quantile(each, 0.25)) if each else None


def _is_new(report: Mapping[str, Any]) -> bool:
    """Whether most of a shard went through the towers, so that its time is theirs."""
    return bool(report["embedded"] > 0.9 * report["products"])


def choose_size(seconds: float, last: LastSize | None, *, with_images: bool) -> int:
    """Rows of a shard: a power of two, so that sizes that are nearly the same are the same.

    Args:
        seconds: First guess of what a product takes.
        last: What the last finished run says; its measured seconds go before the guess.
        with_images: Whether products have images.
    """
    most = MOST_ROWS_WITH_IMAGES if with_images else MOST_ROWS
    if last is not None and last.seconds is not None:
        seconds = last.seconds
    elif last is not None:
        return max(LEAST_ROWS, min(most, last.rows))
    wanted = max(LEAST_ROWS, min(most, TARGET_SECONDS / seconds))
    if last is not None and last.rows / CHANGED_FROM < wanted < last.rows * CHANGED_FROM:
        return max(LEAST_ROWS, min(most, last.rows))
    return int(2 ** math.floor(math.log2(wanted)))


def first_guess(
    config: EncoderConfig, description: EncoderDescription, *, images_per_product: int, has_images: bool
) -> float:
    """Seconds of one worker for a product of usual texts and images, by the encoder alone."""
    images = max(1.0, images_per_product / 2) if has_images and description.uses_images else 0.0
    towers = towers_of(config, description, USUAL_TEXT_CHARACTERS, images > 0)
    on_core, on_gpu = seconds_of_product(towers, images=images, outside=images, image_bytes=DEFAULT_IMAGE_BYTES)
    return max(on_core, on_gpu)

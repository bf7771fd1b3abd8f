"""Dead letters name the products, rows and images that could not be taken as they are, and why.

A letter's outcome is either `rejected` (the row became no product) or `degraded` (the product was indexed without the
part that was broken).
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from enum import StrEnum
from typing import Literal

import pyarrow as pa
import pyarrow.parquet as pq

from index_builder.storage import atomic_file, localized

Outcome = Literal["rejected", "degraded"]
Stage = Literal["read", "validate", "import", "fetch", "decode", "embed", "number"]

MAX_DETAIL_CHARACTERS = 500

REJECTED_SCHEMA = pa.schema([(name, pa.string()) for name in ("product_id", "outcome", "stage", "reason", "detail")])


class Reason(StrEnum):
    """Why a row, a value or an image was not taken. The values are part of the artifact contract."""

    missing_id = "missing_id"
    duplicate_id = "duplicate_id"
    malformed_record = "malformed_record"
    empty_product = "empty_product"
    """Neither text nor picture."""
    field_type_mismatch = "field_type_mismatch"
    """A display or filter value does not fit its column's type: it becomes null, the product stays (degraded)."""
    vector_unusable = "vector_unusable"
    """A vector made elsewhere that is missing, of another length, not finite, or zero (`pipelines.build_index`)."""
    picture_missing = "picture_missing"
    picture_unreadable = "picture_unreadable"
    picture_truncated = "picture_truncated"
    picture_too_large = "picture_too_large"
    """More pixels than `decode.max_pixels`."""
    picture_too_many_bytes = "picture_too_many_bytes"
    picture_unsupported_type = "picture_unsupported_type"
    host_not_allowed = "host_not_allowed"
    scheme_not_allowed = "scheme_not_allowed"
    fetch_failed = "fetch_failed"
    fetch_timeout = "fetch_timeout"


@dataclass(frozen=True, slots=True)
class DeadLetter:
    """One row of `rejected.parquet`.

    `product_id` is trimmed, or "" where the row has none (the detail then says where the row is). `stage` is the step
    that noticed, `reason` a stable code, `detail` one line for people, cut at `MAX_DETAIL_CHARACTERS`.
    """

    product_id: str
    outcome: Outcome
    stage: Stage
    reason: Reason
    detail: str = ""


class ImageError(Exception):
    """An image could not be fetched or decoded. Costs its product the image, never its batch."""

    def __init__(self, stage: Literal["fetch", "decode"], reason: Reason, detail: str = "") -> None:
        super().__init__(stage, reason, detail)
        self.stage, self.reason, self.detail = stage, reason, detail

    def __str__(self) -> str:
        return f"{self.reason}: {self.detail}" if self.detail else str(self.reason)

    def to_letter(self, product_id: str, outcome: Outcome) -> DeadLetter:
        """The dead letter of the product that this image belongs to."""
        return DeadLetter(product_id, outcome, self.stage, self.reason, self.detail)


def letters_to_table(letters: Iterable[DeadLetter]) -> pa.Table:
    """The letters, in the given order, as a table of `REJECTED_SCHEMA`."""
    rows = [{**asdict(letter), "detail": _printable(letter.detail)} for letter in letters]
    return pa.Table.from_pylist(rows, schema=REJECTED_SCHEMA)


def write_dead_letters(uri: str, letters: Iterable[DeadLetter]) -> int:
    """Writes the letters as one Parquet file, in place only when complete. Returns how many."""
    table = letters_to_table(letters)
    with atomic_file(uri) as path:
        pq.write_table(table, path, compression="zstd")
    return table.num_rows


def read_dead_letters(uri: str) -> list[DeadLetter]:
    """The inverse of `write_dead_letters`."""
    with localized(uri) as path:
        table = pq.read_table(path, schema=REJECTED_SCHEMA)
    return [DeadLetter(**{**row, "reason": Reason(row["reason"])}) for row in table.to_pylist()]


def _printable(detail: str) -> str:
    line = " ".join(detail.split()).encode("utf-8", "replace").decode("utf-8")
    return line if len(line) <= MAX_DETAIL_CHARACTERS else line[: MAX_DETAIL_CHARACTERS - 3] + "..."


def malformed(where: str, why: str) -> DeadLetter:
    """The letter of a record that could not be read; it has no id that could be trusted."""
    return DeadLetter("", "rejected", "read", Reason.malformed_record, f"{where}: {why}")
